//! What programs contain: read by one thread, when a policy asks for it, and written where the hooks look.
//!
//! A digest is of use only while the file stays as it was read, and what the hooks can compare is its change
//! time and size. So a file is read when nobody has it open for writing, and when its change time is long
//! enough past that a later change must have another; and it is looked at again after.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::File,
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use agent_ebpf::{Config, Content, FileSystem, PathHash, PlaceKind, Version};
use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::Mode,
};
use sha2::{Digest as _, Sha256};

use super::engine::lock_of;
use crate::{
    api::Metrics,
    kernel::{TableError, Tables, host, lease},
    policy::content::Digest,
};

/// The largest file that is read.
const BYTES_MAX: u64 = 4 << 30;
/// How many files may wait to be read; what is asked for beyond it is asked again by the next try to run it.
const WAITING: usize = 1024;
/// How long the thread may take to end.
const ENDING: Duration = Duration::from_secs(2);
/// How long a file must have been left alone: several ticks of the clock that change times are taken from.
const SETTLED: Duration = Duration::from_millis(100);
/// The same where change times may be kept in whole seconds.
const SETTLED_SECONDS: Duration = Duration::from_millis(2_100);
/// How often a file is looked at that is being written.
const TRIES: u32 = 10;
/// How long to wait before looking again.
const AGAIN: Duration = Duration::from_millis(200);
/// Different files that the log names.
const NAMED: usize = 256;

/// What came of reading a file; the names are a metric's label.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// Its content is known.
    Computed,
    /// It is being written, or was changed just now: to be looked at again then.
    Young(Duration),
    /// It is open for writing.
    Busy,
    /// It is not there, or it is not what was asked for.
    Gone,
    /// Its content is not read, with the reason.
    Refused(String),
    /// Nor is it here, where the hooks ask IMA whenever it is to run.
    Unkept,
    /// It could not be read.
    Failed(String),
}

impl Outcome {
    const fn name(&self) -> &'static str {
        match self {
            Self::Computed => "computed",
            Self::Young(_) | Self::Busy => "busy",
            Self::Gone => "gone",
            Self::Refused(_) | Self::Unkept => "refused",
            Self::Failed(_) => "failed",
        }
    }
}

/// Every outcome that is counted.
pub const OUTCOMES: [&str; 6] = ["computed", "busy", "gone", "refused", "failed", "dropped"];

/// A file to be read.
#[derive(Clone, Debug)]
struct Asked {
    /// Its path in that process's view.
    path: Vec<u8>,
    /// A process through which it can be seen; without one, or when it is gone, the daemon's own view counts.
    process: Option<u32>,
    /// What must be found there, if that is known.
    object: Option<(u32, u64)>,
    due: Instant,
    tries: u32,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Asked>,
    /// What is being read.
    reading: Option<Vec<u8>>,
    stopping: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    in_use: AtomicBool,
    metrics: Arc<Metrics>,
}

/// The thread that reads programs.
pub struct Contents {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Contents {
    /// Starts the thread; it waits until it is asked.
    pub fn start(
        maps: &Path,
        config: Config,
        metrics: Arc<Metrics>,
    ) -> Result<Arc<Self>, StartError> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            in_use: AtomicBool::new(config.contents != 0),
            metrics,
        });
        let mut reader = Reader {
            shared: shared.clone(),
            tables: Tables::open(maps)?,
            config,
            named: BTreeSet::new(),
        };
        let thread = thread::Builder::new().name("contents".to_owned()).spawn(move || reader.run());
        Ok(Arc::new(Self { shared, thread: Mutex::new(Some(thread?)) }))
    }

    /// Whether any policy has asked for contents.
    pub fn in_use(&self) -> bool {
        self.shared.in_use.load(Ordering::Relaxed)
    }

    /// Has a file read that was about to run.
    pub fn ask(&self, path: &[u8], process: u32, object: (u32, u64)) {
        self.put(path, Some(process), Some(object));
    }

    /// Has files read before anybody runs them, and waits for that, but no longer than this.
    pub fn ahead<'a>(
        &self,
        paths: impl IntoIterator<Item = &'a Vec<u8>>,
        process: Option<u32>,
        most: Duration,
    ) {
        self.shared.in_use.store(true, Ordering::Relaxed);
        let own: BTreeSet<&[u8]> = paths.into_iter().map(Vec::as_slice).collect();
        own.iter().for_each(|path| self.put(path, process, None));
        let is_own = |path: &Vec<u8>| own.contains(path.as_slice());
        let until = Instant::now() + most;
        let mut queue = lock_of(&self.shared.queue);
        while !queue.stopping
            && (queue.reading.as_ref().is_some_and(is_own)
                || queue.waiting.iter().any(|one| is_own(&one.path)))
        {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return };
            let waited = self.shared.changed.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn put(&self, path: &[u8], process: Option<u32>, object: Option<(u32, u64)>) {
        let mut queue = lock_of(&self.shared.queue);
        let known = |one: &Asked| one.object == object && one.path == path;
        if queue.waiting.iter().any(known) {
            return;
        }
        if queue.waiting.len() >= WAITING {
            drop(queue);
            self.shared.metrics.hashed("dropped");
            return;
        }
        let (path, due) = (path.to_vec(), Instant::now());
        queue.waiting.push(Asked { path, process, object, due, tries: 0 });
        self.shared.changed.notify_all();
    }

    /// Ends the thread.
    pub fn stop(&self) {
        lock_of(&self.shared.queue).stopping = true;
        self.shared.changed.notify_all();
        if let Some(thread) = lock_of(&self.thread).take() {
            // A file system that does not answer holds it; then it ends with the daemon.
            let until = Instant::now() + ENDING;
            while !thread.is_finished() && Instant::now() < until {
                thread::sleep(Duration::from_millis(5));
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}

/// Why the thread could not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A pinned table could not be opened.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The thread could not be started.
    #[error("cannot start the thread that reads programs: {0}")]
    Thread(#[from] io::Error),
}

struct Reader {
    shared: Arc<Shared>,
    tables: Tables,
    config: Config,
    /// What the log has named.
    named: BTreeSet<Vec<u8>>,
}

impl Reader {
    fn run(&mut self) {
        while let Some(asked) = self.next() {
            let outcome = self.read(&asked);
            self.shared.metrics.hashed(outcome.name());
            let again = match &outcome {
                Outcome::Young(left) => Some(*left),
                Outcome::Busy => Some(AGAIN),
                Outcome::Computed | Outcome::Gone | Outcome::Unkept => None,
                Outcome::Refused(why) | Outcome::Failed(why) => {
                    if self.named.len() < NAMED && self.named.insert(asked.path.clone()) {
                        let path = Path::new(OsStr::from_bytes(&asked.path)).display();
                        eprintln!(
                            "ambitd: the content of {path}, which a policy asks for, stays unknown: {why}"
                        );
                    }
                    None
                }
            };
            let mut queue = lock_of(&self.shared.queue);
            queue.reading = None;
            if let Some(left) = again.filter(|_| asked.tries < TRIES) {
                let (due, tries) = (Instant::now() + left, asked.tries + 1);
                queue.waiting.push(Asked { due, tries, ..asked });
            }
            self.shared.changed.notify_all();
        }
    }

    /// Waits for a file that is to be read now; `None` at the end.
    fn next(&self) -> Option<Asked> {
        let mut queue = lock_of(&self.shared.queue);
        loop {
            if queue.stopping {
                return None;
            }
            let now = Instant::now();
            let first = queue.waiting.iter().enumerate().min_by_key(|(_, asked)| asked.due);
            let left = match first {
                Some((index, asked)) if asked.due <= now => {
                    queue.reading = Some(asked.path.clone());
                    return Some(queue.waiting.swap_remove(index));
                }
                Some((_, asked)) => asked.due - now,
                None => Duration::from_secs(3600),
            };
            let waited = self.shared.changed.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn read(&mut self, asked: &Asked) -> Outcome {
        let with_ima = self.config.ima != 0;
        let own = || find("self", asked, with_ima);
        let found = match asked.process {
            Some(pid) => find(&pid.to_string(), asked, with_ima).or_else(|_| own()),
            None => own(),
        };
        let (file, object) = match found {
            Ok(Ok(found)) => found,
            Ok(Err(outcome)) => return outcome,
            Err(_) => return Outcome::Gone,
        };
        self.learn(&file, object).unwrap_or_else(|error| Outcome::Failed(error.to_string()))
    }

    /// Reads a file and writes down what it contains, if it can be told when that changes.
    fn learn(&mut self, file: &File, object: (u32, u64)) -> io::Result<Outcome> {
        if !lease::has_no_writers(file)? {
            return Ok(Outcome::Busy);
        }
        let version = version(file)?;
        let failed = |error: TableError| io::Error::other(error.to_string());
        let known = self.tables.content(object).map_err(failed)?;
        if known.is_some_and(|known| known.version == version) {
            return Ok(Outcome::Computed);
        }
        if let Some(left) = unsettled(&version, SystemTime::now()) {
            // Far in the future: the clock was set back.
            if left > 2 * SETTLED_SECONDS {
                return Ok(Outcome::Refused(
                    "its change time is in the future; `touch` it".to_owned(),
                ));
            }
            return Ok(Outcome::Young(left));
        }
        let stopping = || lock_of(&self.shared.queue).stopping;
        let Some(digest) = digest(file, stopping)? else {
            return Ok(Outcome::Gone);
        };
        if self::version(file)? != version {
            return Ok(Outcome::Busy);
        }
        let hash = PathHash::of(&self.config, PlaceKind::Content, &digest.0).hash;
        self.tables.know(object, &Content { version, hash }).map_err(failed)?;
        // Whoever opened it for writing before that was there may not have been seen by the hooks.
        if !lease::has_no_writers(file)? || self::version(file)? != version {
            self.tables.unknow(object).map_err(failed)?;
            return Ok(Outcome::Busy);
        }
        Ok(Outcome::Computed)
    }
}

/// The file system that a file is on, if its bytes are in this kernel's hands alone there.
fn file_system(file: &File) -> io::Result<Option<FileSystem>> {
    // The width of the number differs between machines; as the kernel has it, it is never negative.
    let magic = nix::sys::statfs::fstatfs(file)?.filesystem_type().0 as u64;
    Ok(FileSystem::of_magic(magic))
}

/// Why the content of a file is not kept, if so.
fn refusal(file: &File, with_ima: bool) -> io::Result<Option<Outcome>> {
    let file_system = file_system(file)?;
    if !file_system.is_some_and(FileSystem::shows_changes) {
        return Ok(Some(if with_ima && file_system.is_some() {
            Outcome::Unkept
        } else {
            Outcome::Refused(
                "only on ext4, xfs, f2fs can it be told when a file is changed; move the program there"
                    .to_owned(),
            )
        }));
    }
    let is_large = file.metadata()?.len() > BYTES_MAX;
    Ok(is_large.then(|| Outcome::Refused(format!("it is larger than {} GiB", BYTES_MAX >> 30))))
}

/// The digest of what can be read from here on; `None` when it was stopped, or the file grew beyond bound.
fn digest(mut file: &File, stopping: impl Fn() -> bool) -> io::Result<Option<Digest>> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut left = BYTES_MAX;
    loop {
        if stopping() {
            return Ok(None);
        }
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Some(Digest(hasher.finalize().into()))),
            Ok(count) if count as u64 <= left => {
                hasher.update(buffer.get(..count).unwrap_or_default());
                left -= count as u64;
            }
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The digest by which a program would be judged, and whether it would be without IMA too; the error says why it would
/// stay unknown.
pub fn content_of(path: &Path) -> Result<(Digest, bool), String> {
    let read = || -> io::Result<Result<(Digest, bool), String>> {
        let file = File::open(path)?;
        let is_kept = match refusal(&file, true)? {
            Some(Outcome::Refused(why)) => return Ok(Err(why)),
            refused => refused.is_none(),
        };
        let digest = digest(&file, || false)?;
        Ok(digest.map(|digest| (digest, is_kept)).ok_or_else(|| "it grows".to_owned()))
    };
    read().unwrap_or_else(|error| Err(error.to_string()))
}

/// A file, and the object that it is.
type Found = (File, (u32, u64));

/// Opens what was asked for in a process's view, or says why it is not read.
fn find(process: &str, asked: &Asked, with_ima: bool) -> io::Result<Result<Found, Outcome>> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let root = format!("/proc/{process}/root");
    let root = nix::fcntl::open(root.as_str(), flags | OFlag::O_DIRECTORY, Mode::empty())?;
    let mounts = host::Objects::of_process(process)?;
    let how = OpenHow::new().flags(flags).resolve(
        ResolveFlag::RESOLVE_IN_ROOT
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS,
    );
    let path = Path::new(OsStr::from_bytes(&asked.path));
    let place = File::from(openat2(root.as_fd(), path, how)?);
    let stat = place.metadata()?;
    if !stat.is_file() {
        return Ok(Err(Outcome::Gone));
    }
    if let Some(refused) = refusal(&place, with_ima)? {
        return Ok(Err(refused));
    }
    let Some(object) = mounts.key(&place, &stat) else {
        return Ok(Err(Outcome::Gone));
    };
    if asked.object.is_some_and(|wanted| wanted != object) {
        return Ok(Err(Outcome::Gone));
    }
    // What is open is opened again, for reading: nothing else can be there now.
    Ok(Ok((File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))?, object)))
}

fn version(file: &File) -> io::Result<Version> {
    Ok(host::version(&file.metadata()?))
}

/// How long until a change of this file must have another change time; `None` when it must already.
fn unsettled(version: &Version, now: SystemTime) -> Option<Duration> {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let changed = Duration::from_secs(version.seconds)
        .checked_add(Duration::from_nanos(version.nanoseconds))
        .unwrap_or(Duration::MAX);
    let wanted = if version.nanoseconds == 0 { SETTLED_SECONDS } else { SETTLED };
    changed.saturating_add(wanted).checked_sub(since).filter(|left| !left.is_zero())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_is_left_alone_until_its_next_change_must_show() {
        let at = |millis: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let version = |nanoseconds| Version { seconds: 100, nanoseconds, size: 1 };
        let fine = version(500_000_000);
        assert_eq!(unsettled(&fine, at(100_500)), Some(SETTLED));
        assert_eq!(unsettled(&fine, at(100_599)), Some(Duration::from_millis(1)));
        assert_eq!(unsettled(&fine, at(100_600)), None);
        // Kept in whole seconds: the next change may show only in the next one.
        assert_eq!(unsettled(&version(0), at(101_500)), Some(Duration::from_millis(600)));
        assert_eq!(unsettled(&version(0), at(102_100)), None);
        // The clock was set back.
        assert!(unsettled(&fine, at(50_000)).unwrap() > 2 * SETTLED_SECONDS);
        // A change time before 1970 is far in the future as the kernel half has it.
        let before = Version { seconds: u64::MAX, nanoseconds: 999_999_999, size: 1 };
        assert!(unsettled(&before, at(100_500)).unwrap() > 2 * SETTLED_SECONDS);
    }

    #[test]
    fn finds_the_very_object_and_nothing_through_links() {
        // The build's own folder, which is no tmpfs.
        let built = std::env::current_exe().unwrap();
        let folder = built.with_file_name(format!("ambit-contents-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let folder = fs::canonicalize(&folder).unwrap();
        let (program, link) = (folder.join("program"), folder.join("link"));
        fs::write(&program, "abc").unwrap();
        std::os::unix::fs::symlink(&program, &link).unwrap();
        let asked = |path: &Path, object| Asked {
            path: path.as_os_str().as_bytes().to_vec(),
            process: None,
            object,
            due: Instant::now(),
            tries: 0,
        };
        let (file, object) = match find("self", &asked(&program, None), false).unwrap() {
            Ok(found) => found,
            // Where the build lies on another file system, that is said.
            Err(outcome) => {
                assert!(matches!(&outcome, Outcome::Refused(why) if why.contains("only on ext4")));
                fs::remove_dir_all(&folder).unwrap();
                return;
            }
        };
        assert_eq!(version(&file).unwrap().size, 3);
        assert!(find("self", &asked(&program, Some(object)), false).unwrap().is_ok());
        let other = (object.0, object.1 + 1);
        let gone = find("self", &asked(&program, Some(other)), false).unwrap();
        assert_eq!(gone.err(), Some(Outcome::Gone));
        assert!(find("self", &asked(&link, None), false).is_err());
        assert_eq!(find("self", &asked(&folder, None), false).unwrap().err(), Some(Outcome::Gone));
        fs::remove_dir_all(&folder).unwrap();
    }
}
