//! The backend for kernels without BPF LSM: every open waits here for its verdict.
//!
//! One thread reads events and lets bystanders go at once; events of agents go to a few workers, which
//! resolve the object, ask the same `decide` over the same tables, tell it, and answer. Nobody here may
//! open a file of a marked file system: the reader would wait for itself. `/proc` is never marked.
//!
//! What fanotify does not say, the opener's own system call does: while it waits, its registers stand
//! in `/proc/TID/syscall`. Where they do not tell reading from writing (`openat2`, io_uring), the open
//! counts as write.

mod opener;

use std::{
    collections::{HashMap, VecDeque},
    ffi::OsString,
    fs,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use agent_ebpf::{
    Action, Config, Content, Decision, Facet, FileBody, Header, Hook, Kind, Reason, Task, Verdict,
    Version, decide_path,
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::fanotify::{
        EventFFlags, Fanotify, FanotifyEvent, FanotifyResponse, InitFlags, MarkFlags, MaskFlags,
        Response,
    },
};

use self::opener::{BOTH, Purpose};
use super::host;
use crate::{
    events::{
        encode_file,
        proc::{ProcSource as _, SlashProc},
    },
    policy::{HashedTables, WithContent},
};

const WORKERS: usize = 4;

/// What the kernel adds to the name of an object that no folder holds any more.
const DELETED: &[u8] = b" (deleted)";

/// File systems that are the kernel's own windows; marking them would make the answerer wait for itself
/// or says nothing about files. FUSE could block the answerer for ever.
const UNMARKED: [&str; 22] = [
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "bpf",
    "tracefs",
    "debugfs",
    "securityfs",
    "devpts",
    "mqueue",
    "pstore",
    "configfs",
    "fusectl",
    "binfmt_misc",
    "autofs",
    "rpc_pipefs",
    "hugetlbfs",
    "nsfs",
    "efivarfs",
    "selinuxfs",
    "smackfs",
    "fuse",
];

/// Why the backend cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FanotifyError {
    /// The kernel has no permission events, or the caller may not have them.
    #[error(
        "fanotify permission events are refused: {0}; they need CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y and CAP_SYS_ADMIN"
    )]
    Init(nix::Error),
    /// A file system could not be marked.
    #[error("cannot mark the file system at {path}: {source}")]
    Mark {
        /// Where it is mounted.
        path: PathBuf,
        /// What the kernel said.
        source: nix::Error,
    },
    /// A configured place may not be marked.
    #[error("{path} is {kind}, which is never marked: take it out of `kernel.filesystems`")]
    Unmarkable {
        /// Where it is mounted.
        path: PathBuf,
        /// File system type.
        kind: String,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// The mounts could not be read.
    #[error(transparent)]
    Host(#[from] host::HostError),
}

/// What the backend asks of the rest of the daemon. Called from its threads; may not open files.
pub trait Bounds: Send + Sync {
    /// The agent's entry for a process.
    fn task(&self, tgid: u32) -> Option<Task>;
    /// The agent of a process that the table of tasks had no room for; nothing is permitted to it.
    fn stray(&self, tgid: u32) -> Option<u32>;
    /// Every process of every agent.
    fn processes(&self) -> Vec<(u32, Task)>;
    /// The agent bound to a cgroup (its path in the cgroup2 hierarchy) or to the nearest above it.
    fn agent_of_cgroup(&self, path: &str) -> Option<u32>;
    /// Makes a process the agent's, which was found in its cgroup.
    fn enrol(&self, tgid: u32, agent: u32);
    /// Set, mode and tables of an agent; no tables when it has no policy, `None` when nobody knows it.
    fn reach(&self, agent: u32) -> Option<(u32, u8, Option<Arc<HashedTables>>)>;
    /// What is known of an object's content.
    fn content(&self, object: (u32, u64)) -> Option<Content>;
    /// An agent may write to an object: nothing is known of its content any more.
    fn forget_content(&self, object: (u32, u64));
    /// The secrets of the tables.
    fn config(&self) -> Config;
    /// The root that the agent was enrolled with; recorded at the first call.
    fn root(&self, agent: u32, seen: &Root) -> Root;
    /// Takes a record, before the opener goes on.
    fn tell(&self, record: &[u8]);
}

/// A root folder and mount namespace.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Root {
    /// `/proc/PID/ns/mnt`.
    pub mount_ns: String,
    /// `/proc/PID/root`, as this process sees it.
    pub path: Vec<u8>,
}

/// The marks and the threads that answer.
pub struct Backend {
    group: Arc<Fanotify>,
    /// Where file systems are marked.
    pub marked: Vec<PathBuf>,
    stopping: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<()>>,
}

/// True when the kernel gives permission events; the error says why not.
pub fn available() -> Result<(), FanotifyError> {
    group().map(drop)
}

fn group() -> Result<Fanotify, FanotifyError> {
    let flags = InitFlags::FAN_CLASS_CONTENT
        | InitFlags::FAN_CLOEXEC
        | InitFlags::FAN_NONBLOCK
        | InitFlags::FAN_UNLIMITED_QUEUE
        | InitFlags::FAN_UNLIMITED_MARKS
        | InitFlags::FAN_REPORT_TID;
    let files = EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC | EventFFlags::O_LARGEFILE;
    Fanotify::init(flags, files).map_err(FanotifyError::Init)
}

/// The file systems that hold files, in this process's mount namespace.
fn places(configured: &[PathBuf]) -> Result<Vec<PathBuf>, FanotifyError> {
    let mounts = host::mounts()?;
    let refused = |kind: &str| UNMARKED.contains(&kind) || kind.starts_with("fuse.");
    if !configured.is_empty() {
        for path in configured {
            let holder = mounts
                .iter()
                .filter(|mount| path.starts_with(&mount.at))
                .max_by_key(|mount| mount.at.as_os_str().len());
            if let Some(mount) = holder
                && refused(&mount.kind)
            {
                let kind = mount.kind.clone();
                return Err(FanotifyError::Unmarkable { path: path.clone(), kind });
            }
        }
        return Ok(configured.to_vec());
    }
    // Of several mounts at one place the last is seen; one place for each file system is enough.
    let seen: HashMap<PathBuf, host::Mount> =
        mounts.into_iter().map(|mount| (mount.at.clone(), mount)).collect();
    let chosen: HashMap<String, PathBuf> = seen
        .into_values()
        .filter(|mount| !refused(&mount.kind))
        .map(|mount| (mount.device, mount.at))
        .collect();
    Ok(chosen.into_values().collect())
}

impl Backend {
    /// Marks the file systems mounted at `configured`, or all that hold files, and begins to answer.
    pub fn start(configured: &[PathBuf], bounds: Arc<dyn Bounds>) -> Result<Self, FanotifyError> {
        let group = Arc::new(group()?);
        let (stopping, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let queue = Arc::new(Queue::default());
        let execs = Arc::new(Execs::default());
        let mut threads = Vec::new();
        for number in 0..WORKERS {
            let (queue, bounds, execs) = (queue.clone(), bounds.clone(), execs.clone());
            let config = bounds.config();
            threads.push(spawn(&format!("judge-{number}"), move || {
                let mut worker = Worker { execs, bounds, config, record: Vec::new() };
                while let Some((event, who)) = queue.take() {
                    worker.judge(event, &who);
                }
            })?);
        }
        let reader = Reader {
            group: group.clone(),
            bounds,
            queue,
            own: std::process::id(),
            stopping: stopping.clone(),
            answered: answered.clone(),
        };
        threads.push(spawn("fanotify", move || reader.run())?);
        // Marked last: from here on every open waits for the threads above.
        let mut marked = Vec::new();
        if configured.is_empty() {
            threads.push(follow_mounts(group.clone(), stopping.clone())?);
        }
        for path in places(configured)? {
            match mark(&group, &path) {
                Ok(()) => marked.push(path),
                // A place of the default list that its owner withdrew; a configured one must be there.
                Err(error) if configured.is_empty() => {
                    eprintln!("ambitd: opens at {} are not judged: {error}", path.display());
                }
                Err(source) => {
                    stopping.store(true, Ordering::SeqCst);
                    return Err(FanotifyError::Mark { path, source });
                }
            }
        }
        Ok(Self { group, marked, stopping, answered, threads })
    }

    /// How many opens were answered, bystanders' included.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

fn mask() -> MaskFlags {
    MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_OPEN_EXEC_PERM | MaskFlags::FAN_ONDIR
}

fn mark(group: &Fanotify, path: &Path) -> nix::Result<()> {
    let flags = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
    group.mark(flags, mask(), nix::fcntl::AT_FDCWD, Some(path))
}

/// Marks file systems that are mounted later; the kernel says when the list of mounts changes.
fn follow_mounts(
    group: Arc<Fanotify>,
    stopping: Arc<AtomicBool>,
) -> Result<thread::JoinHandle<()>, FanotifyError> {
    let list = fs::File::open("/proc/self/mountinfo").map_err(FanotifyError::Thread)?;
    spawn("mounts", move || {
        while !stopping.load(Ordering::SeqCst) {
            let mut ready = [PollFd::new(list.as_fd(), PollFlags::POLLPRI)];
            let changed = poll(&mut ready, PollTimeout::from(200_u8)).is_ok_and(|count| count > 0);
            if !changed {
                continue;
            }
            for path in places(&[]).unwrap_or_default() {
                if let Err(error) = mark(&group, &path) {
                    eprintln!("ambitd: opens at {} are not judged: {error}", path.display());
                }
            }
        }
    })
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Marks go first, so that nothing new waits; the threads answer and tell the rest and end.
        let flags = MarkFlags::FAN_MARK_FLUSH | MarkFlags::FAN_MARK_FILESYSTEM;
        let nothing = MaskFlags::empty();
        let _ = self.group.mark(flags, nothing, nix::fcntl::AT_FDCWD, Some(Path::new("/")));
        self.stopping.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn spawn(
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> Result<thread::JoinHandle<()>, FanotifyError> {
    thread::Builder::new().name(name.to_owned()).spawn(body).map_err(FanotifyError::Thread)
}

/// An open that waits; dropped unanswered, it is denied.
struct Waiting {
    group: Arc<Fanotify>,
    event: FanotifyEvent,
    answered: bool,
}

impl Waiting {
    fn answer(mut self, response: Response) {
        self.send(response);
    }

    fn send(&mut self, response: Response) {
        self.answered = true;
        if let Some(fd) = self.event.fd() {
            // The opener may have been killed meanwhile; then there is nobody to answer.
            let _ = self.group.write_response(FanotifyResponse::new(fd, response));
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.answered {
            self.send(Response::FAN_DENY);
        }
    }
}

/// Whose open it is.
struct Who {
    agent: u32,
    /// The table of tasks had no room for it: nothing is permitted.
    stray: bool,
    tgid: u32,
    tid: u32,
    uid: u32,
    start: u64,
    comm: [u8; 16],
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<(VecDeque<(Waiting, Who)>, bool)>,
    filled: Condvar,
}

impl Queue {
    fn put(&self, event: Waiting, who: Who) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).0.push_back((event, who));
        self.filled.notify_one();
    }

    fn close(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.filled.notify_all();
    }

    fn take(&self) -> Option<(Waiting, Who)> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(next) = waiting.0.pop_front() {
                return Some(next);
            }
            if waiting.1 {
                return None;
            }
            waiting = self.filled.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

struct Reader {
    group: Arc<Fanotify>,
    bounds: Arc<dyn Bounds>,
    queue: Arc<Queue>,
    own: u32,
    stopping: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
}

impl Reader {
    fn run(self) {
        loop {
            // Asked before the queue is: what waited when the marks went is still answered.
            let stopping = self.stopping.load(Ordering::SeqCst);
            let mut ready = [PollFd::new(self.group.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut ready, PollTimeout::from(100_u8));
            let Ok(events) = self.group.read_events() else {
                if stopping {
                    break;
                }
                continue;
            };
            for event in events {
                let waiting = Waiting { group: self.group.clone(), event, answered: false };
                self.answered.fetch_add(1, Ordering::Relaxed);
                match self.who(waiting.event.pid()) {
                    Ok(Some(who)) => self.queue.put(waiting, who),
                    Ok(None) => waiting.answer(Response::FAN_ALLOW),
                    // The opener is gone: whatever is answered, nobody hears it.
                    Err(_) => drop(waiting),
                }
            }
        }
        self.queue.close();
    }

    /// The agent's process behind a thread, or `None` for a bystander.
    fn who(&self, tid: i32) -> std::io::Result<Option<Who>> {
        let tid = tid.unsigned_abs();
        let status = fs::read(format!("/proc/{tid}/status"))?;
        let tgid: u32 = number(&status, b"Tgid:").unwrap_or(tid);
        if tgid == self.own {
            return Ok(None);
        }
        // A kernel thread has no memory of its own to tell of (fs/proc/task_mmu.c).
        let serves = match field(&status, b"VmPeak:") {
            None => opener::served_by(tid, &self.bounds.processes())?,
            Some(_) => None,
        };
        let known = serves.or_else(|| self.bounds.task(tgid));
        let stray = if known.is_none() { self.bounds.stray(tgid) } else { None };
        let task = match (known, stray) {
            (Some(task), _) => task,
            (None, Some(agent)) => Task { agent, ..Task::default() },
            (None, None) => {
                let groups = fs::read_to_string(format!("/proc/{tgid}/cgroup"))?;
                let own = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
                let Some(agent) = self.bounds.agent_of_cgroup(own) else {
                    return Ok(None);
                };
                self.bounds.enrol(tgid, agent);
                Task { agent, ..Task::default() }
            }
        };
        let mut comm = [0; 16];
        let name = field(&status, b"Name:").unwrap_or_default();
        let len = name.len().min(15);
        comm[..len].copy_from_slice(&name[..len]);
        let uid = number(&status, b"Uid:").unwrap_or(u32::MAX);
        // The kernel half learns it at the first exec, which this may be. The opener waits, so it is there.
        let start = match task.start {
            0 => SlashProc.read(tgid).map_or(0, |process| process.start),
            start => start,
        };
        let stray = stray.is_some();
        Ok(Some(Who { agent: task.agent, stray, tgid, tid, uid, start, comm }))
    }
}

fn field<'a>(status: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let line = status.split(|byte| *byte == b'\n').find(|line| line.starts_with(name))?;
    Some(line[name.len()..].trim_ascii())
}

fn number(status: &[u8], name: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(field(status, name)?).ok()?;
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// Files that threads were just allowed to run: each opens once more, within the same `execve`.
#[derive(Default)]
struct Execs(Mutex<HashMap<u32, Vec<(u32, u64)>>>);

impl Execs {
    /// Threads remembered at once; beyond it a second event is judged as an open like any other.
    const BOUND: usize = 16 * 1024;

    fn allowed(&self, tid: u32, object: &Object) {
        let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if threads.len() < Self::BOUND {
            threads.entry(tid).or_default().push((object.device, object.inode));
        }
    }

    /// True, once, when this thread was just allowed to run this file.
    fn confirm(&self, tid: u32, object: &Object) -> bool {
        let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(files) = threads.get_mut(&tid) else { return false };
        let found = files.iter().position(|file| *file == (object.device, object.inode));
        if let Some(index) = found {
            files.swap_remove(index);
        }
        if files.is_empty() {
            threads.remove(&tid);
        }
        found.is_some()
    }
}

struct Worker {
    execs: Arc<Execs>,
    bounds: Arc<dyn Bounds>,
    config: Config,
    record: Vec<u8>,
}

impl Worker {
    fn judge(&mut self, waiting: Waiting, who: &Who) {
        let Some(fd) = waiting.event.fd() else { return };
        let exec = waiting.event.mask().contains(MaskFlags::FAN_OPEN_EXEC_PERM);
        let object = self.object(fd, who);
        let (actions, flags): (&[Action], u32) = if exec {
            (&[Action::Exec], 0)
        } else {
            match opener::purpose(who.tid) {
                Purpose::InExec if self.execs.confirm(who.tid, &object) => {
                    return waiting.answer(Response::FAN_ALLOW);
                }
                Purpose::InExec => (BOTH, 0),
                Purpose::Actions(actions, flags) => (actions, flags),
            }
        };
        let reach = if who.stray { None } else { self.bounds.reach(who.agent) };
        let (set, mode) = reach.as_ref().map_or((0, 0), |(set, mode, _)| (*set, *mode));
        let mut action = actions[0];
        let mut decision = Decision::because(Reason::NoPolicy);
        if let Some((_, _, Some(tables))) = &reach {
            for (index, one) in actions.iter().enumerate() {
                let mut next = object.decide(&self.config, *one, tables, None);
                if next.reason == Reason::HashUnknown {
                    let known = self.bounds.content((object.device, object.inode));
                    let same = known.filter(|known| Some(known.version) == object.version);
                    next = object.decide(&self.config, *one, tables, same);
                }
                if index == 0 || !next.allows() {
                    (action, decision) = (*one, next);
                }
                if !decision.allows() {
                    break;
                }
            }
        }
        let verdict = decision.verdict(mode);
        if actions.contains(&Action::Write) && !matches!(verdict, Verdict::Denied) {
            self.bounds.forget_content((object.device, object.inode));
        }
        let header = Header {
            kind: Kind::File as u8,
            action: action as u8,
            verdict: verdict as u8,
            reason: decision.reason as u8,
            time: boot_time(),
            start: who.start,
            tgid: who.tgid,
            tid: who.tid,
            uid: who.uid,
            agent: who.agent,
            rule: decision.rule,
            set,
            hook: Hook::Fanotify as u8,
            comm: who.comm,
            ..Header::default()
        };
        let body = FileBody {
            inode: object.inode,
            device: object.device,
            flags,
            is_dir: u8::from(object.is_dir),
            ..FileBody::default()
        };
        self.record.clear();
        encode_file(&mut self.record, &header, &body, &object.path);
        self.bounds.tell(&self.record);
        if exec && !matches!(verdict, Verdict::Denied) {
            self.execs.allowed(who.tid, &object);
        }
        waiting.answer(match verdict {
            Verdict::Allowed | Verdict::WouldDeny => Response::FAN_ALLOW,
            Verdict::Denied => Response::FAN_DENY,
        });
    }

    /// What was opened, by its name in the agent's own view.
    fn object(&self, fd: BorrowedFd<'_>, who: &Who) -> Object {
        let mut object = Object::default();
        let link = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let Ok(path) = fs::read_link(&link) else {
            return object;
        };
        object.path = path.into_os_string().into_vec();
        if let Ok(stat) = fs::metadata(&link) {
            (object.device, object.inode) = host::object(&stat);
            object.is_dir = stat.is_dir();
            object.version = Some(host::version(&stat));
            // fs/d_path.c says so at the end of the name, unless that is the name itself.
            let named = PathBuf::from(OsString::from_vec(object.path.clone()));
            object.deleted = object.path.ends_with(DELETED)
                && fs::symlink_metadata(&named).map(|stat| host::object(&stat)).ok()
                    != Some((object.device, object.inode));
        } else {
            return object;
        }
        let Some(seen) = root_of(who.tid) else {
            return object;
        };
        let enrolled = self.bounds.root(who.agent, &seen);
        if seen != enrolled {
            object.unresolved = Some(Reason::RootChanged);
            return object;
        }
        if enrolled.path != b"/" {
            match object.path.strip_prefix(enrolled.path.as_slice()) {
                Some([]) => object.path = b"/".to_vec(),
                Some(rest) if rest[0] == b'/' => object.path = rest.to_vec(),
                _ => return object,
            }
        }
        object.unresolved = None;
        object
    }
}

/// What was opened.
struct Object {
    path: Vec<u8>,
    inode: u64,
    device: u32,
    is_dir: bool,
    version: Option<Version>,
    deleted: bool,
    unresolved: Option<Reason>,
}

impl Default for Object {
    fn default() -> Self {
        Self {
            path: Vec::new(),
            inode: 0,
            device: 0,
            is_dir: false,
            version: None,
            deleted: false,
            unresolved: Some(Reason::PathUnresolved),
        }
    }
}

impl Object {
    fn decide(
        &self,
        config: &Config,
        action: Action,
        tables: &HashedTables,
        content: Option<Content>,
    ) -> Decision {
        if let Some(reason) = self.unresolved {
            return Decision::because(reason);
        }
        if self.deleted && action == Action::Exec {
            return Decision::because(Reason::NoName);
        }
        let path = match self.deleted {
            true => self.path.strip_suffix(DELETED).unwrap_or(&self.path),
            false => &self.path,
        };
        match Facet::of(action, self.is_dir) {
            Some(facet) => {
                let content = content.map(|content| content.key());
                decide_path(config, facet, path, &WithContent { tables, content })
            }
            None => Decision::because(Reason::PathUnresolved),
        }
    }
}

/// A thread's root folder and mount namespace.
pub fn root_of(tid: u32) -> Option<Root> {
    let link = |name: &str| {
        fs::read_link(Path::new("/proc").join(tid.to_string()).join(name))
            .ok()
            .map(|path| path.into_os_string().into_vec())
    };
    let mount_ns = String::from_utf8(link("ns/mnt")?).ok()?;
    Some(Root { mount_ns, path: link("root")? })
}

/// Nanoseconds of `CLOCK_BOOTTIME`, as the hooks stamp records.
pub fn boot_time() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs()
    })
}
