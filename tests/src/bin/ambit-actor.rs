//! The agent of the tests: does what its arguments say and tells what the kernel answered.
//!
//! `ambit-actor STEP [then STEP]…` prints one JSON line for each step: `{"step": …, "errno": …}`,
//! where 0 means that it went well. A step that fails does not end the run, unless `strict` came
//! before. `fork`, `doublefork` and
//! `thread` move the steps after them into the new task. `try NAME STEP [then STEP]… [try …]` does each
//! such row of steps in a child of its own; `must STEP` prints nothing, and its exit code is the errno.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, connect, sendto,
    socket,
};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, setsid};
use serde_json::{Value, json};

const NONE: Option<&str> = None;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.first().map(String::as_str) {
        Some("must") => must(&arguments[1..]),
        _ => attempts(&arguments),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("ambit-actor: {error:#}");
            ExitCode::from(64)
        }
    }
}

/// Does one step, and says by the exit code alone how it went.
fn must(words: &[String]) -> Result<u8> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = Actor::default().step(&words).map(drop);
    Ok(u8::try_from(ambit_tests::verbs::code(result))?)
}

/// Does the steps before the first `try`, then what follows each `try` in a child, which is told of by
/// the name that follows and the actor's pid.
fn attempts(arguments: &[String]) -> Result<u8> {
    let mut rows = arguments.split(|word| word == "try");
    let steps = |row: &'_ [String]| -> Vec<Vec<String>> {
        row.split(|word| word == "then").map(<[String]>::to_vec).collect()
    };
    let mut code = 0;
    if let Some(row) = rows.next().filter(|row| !row.is_empty()) {
        let steps = steps(row);
        code = Actor::default().act(&steps.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    }
    for row in rows {
        let (name, row) = row.split_first().context("`try` has no name")?;
        tell(&["try", name], 0, json!({ "pid": std::process::id() }))?;
        // SAFETY: this process has one thread.
        match unsafe { fork() }? {
            ForkResult::Child => {
                // SAFETY: no memory is passed. What hangs ends by this signal.
                unsafe { nix::libc::alarm(20) };
                let steps = steps(row);
                let done =
                    Actor::default().act(&steps.iter().map(Vec::as_slice).collect::<Vec<_>>());
                if let Err(error) = &done {
                    eprintln!("ambit-actor: {error:#}");
                }
                std::process::exit(done.map_or(64, i32::from));
            }
            ForkResult::Parent { child } => drop(waitpid(child, None)?),
        }
    }
    Ok(code)
}

#[derive(Default)]
struct Actor {
    /// A socket made by an earlier step.
    held: Option<OwnedFd>,
    /// Whether a step that fails ends the run, with exit code 1.
    strict: bool,
}

impl Actor {
    fn act(&mut self, steps: &[&[String]]) -> Result<u8> {
        for (at, step) in steps.iter().enumerate() {
            let rest = steps.get(at + 1..).unwrap_or_default();
            let words: Vec<&str> = step.iter().map(String::as_str).collect();
            match words.as_slice() {
                ["fork"] => return self.fork(rest),
                ["doublefork"] => return self.double_fork(rest),
                ["thread"] => return self.thread(rest),
                ["strict"] => self.strict = true,
                ["exit", code] => return code.parse().context("the exit code is no number"),
                ["become", program, args @ ..] => {
                    let errno = execute(program, args);
                    tell(&words, errno as i32, Value::Null)?;
                }
                _ => {
                    let (errno, more) = match self.step(&words) {
                        Ok(more) => (0, more),
                        Err(error) => match errno_of(&error) {
                            Some(errno) => (errno, Value::Null),
                            None => return Err(error),
                        },
                    };
                    tell(&words, errno, more)?;
                    if self.strict && errno != 0 {
                        return Ok(1);
                    }
                }
            }
        }
        Ok(0)
    }

    fn step(&mut self, words: &[&str]) -> Result<Value> {
        match *words {
            [] | ["nothing", ..] => {}
            ["open-read", path] => drop(options(false).read(true).open(path)?),
            ["open-write", path] => drop(options(false).write(true).open(path)?),
            ["truncate", path] => drop(options(false).write(true).truncate(true).open(path)?),
            ["append", path] => drop(options(false).append(true).open(path)?),
            ["create", path] => drop(options(false).write(true).create(true).open(path)?),
            ["list", path] => drop(options(true).read(true).open(path)?),
            // Waits for nobody who answers opens, as making a file would.
            ["mkdir", path] => fs::create_dir(path)?,
            ["read-all", path] => {
                let text = fs::read(path)?;
                return Ok(json!({ "bytes": text.len() }));
            }
            ["ring-read", way, path] => ring_read(way, path)?,
            ["watch", path, gate] => watch(path, gate)?,
            ["symlink", to, from] => std::os::unix::fs::symlink(to, from)?,
            ["mkfifo", path] => nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o600))?,
            ["unlink", path] => fs::remove_file(path)?,
            ["rmdir", path] => fs::remove_dir(path)?,
            ["rename", from, to] => fs::rename(from, to)?,
            ["exchange", one, other] => {
                let flags = RenameFlags::RENAME_EXCHANGE;
                renameat2(AT_FDCWD, one, AT_FDCWD, other, flags)?;
            }
            ["link", from, to] => fs::hard_link(from, to)?,
            ["cut", path] => nix::unistd::truncate(path, 0)?,
            ["chmod", path] => fs::set_permissions(path, fs::Permissions::from_mode(0o600))?,
            ["chown", path] => {
                std::os::unix::fs::chown(path, None, Some(nix::unistd::getgid().into()))?
            }
            ["utimes", path] => {
                let time = TimeSpec::new(1, 0);
                utimensat(AT_FDCWD, path, &time, &time, UtimensatFlags::FollowSymlink)?;
            }
            ["setxattr", path] => {
                let (path, value) = (CString::new(path)?, b"value");
                // SAFETY: strings that end in NUL and a value of that length, all only read.
                let answer = unsafe {
                    nix::libc::setxattr(
                        path.as_ptr(),
                        c"user.ambit".as_ptr(),
                        value.as_ptr().cast(),
                        value.len(),
                        0,
                    )
                };
                Errno::result(answer)?;
            }
            ["removexattr", path] => {
                let path = CString::new(path)?;
                // SAFETY: strings that end in NUL, only read.
                let answer =
                    unsafe { nix::libc::removexattr(path.as_ptr(), c"user.ambit".as_ptr()) };
                Errno::result(answer)?;
            }
            ["chdir", path] => std::env::set_current_dir(path)?,
            ["chroot", path] => {
                nix::unistd::chroot(path)?;
                std::env::set_current_dir("/")?;
            }
            ["exec", program, ref args @ ..] => return exec(program, args),
            ["connect", protocol, address] => {
                let (socket, address) = new_socket(protocol, address)?;
                address.connect(&socket)?;
            }
            ["socket", protocol, address] => self.held = Some(new_socket(protocol, address)?.0),
            ["connect-held", address] => {
                let socket = self.held.as_ref().context("no socket was made before")?;
                Address::new(address)?.connect(socket)?;
            }
            ["send", protocol, address] => {
                let (socket, address) = new_socket(protocol, address)?;
                address.send(&socket, MsgFlags::empty())?;
            }
            ["bind", protocol, address] => {
                let (socket, address) = new_socket(protocol, address)?;
                address.bind(&socket)?;
            }
            // TCP's connect and first bytes in one call.
            ["fastopen", address] => {
                let (socket, address) = new_socket("tcp", address)?;
                address.send(&socket, MsgFlags::from_bits_retain(nix::libc::MSG_FASTOPEN))?;
            }
            ["flood", rounds, permitted, forbidden] => {
                return flood(rounds.parse()?, permitted, forbidden);
            }
            ["unix", path] => drop(std::os::unix::net::UnixStream::connect(path)?),
            ["user", uid] => {
                let uid: u32 = uid.parse()?;
                nix::unistd::setgroups(&[])?;
                nix::unistd::setgid(uid.into())?;
                nix::unistd::setuid(uid.into())?;
            }
            ["ask", path, line] => {
                let mut stream = std::os::unix::net::UnixStream::connect(path)?;
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                writeln!(stream, "{line}")?;
                let mut answer = String::new();
                io::BufReader::new(stream).read_line(&mut answer)?;
                return Ok(json!({ "answer": answer.trim_end() }));
            }
            ["fetch", address, path] => {
                let (socket, address) = new_socket("tcp", address)?;
                address.connect(&socket)?;
                let mut stream = std::net::TcpStream::from(socket);
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
                let mut page = String::new();
                stream.read_to_string(&mut page)?;
                let (_, body) = page.split_once("\r\n\r\n").unwrap_or_default();
                return Ok(json!({ "body": body.trim_end() }));
            }
            ["setsid"] => drop(setsid()?),
            ["join", file] => options(false)
                .write(true)
                .open(file)?
                .write_all(std::process::id().to_string().as_bytes())?,
            ["sleep", milliseconds] => {
                std::thread::sleep(Duration::from_millis(milliseconds.parse()?));
            }
            ["await", path] => {
                let end = Instant::now() + Duration::from_secs(120);
                while !Path::new(path).exists() {
                    if Instant::now() > end {
                        return Err(Errno::ETIMEDOUT.into());
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            ["spawn", count, program, ref args @ ..] => {
                return spawn(count.parse()?, program, args);
            }
            ["forks", count] => return forks(count.parse()?),
            ["type", terminal, text] => type_in(terminal, text)?,
            // A mount namespace of its own, in which nothing reaches any other.
            ["unshare"] => {
                unshare(CloneFlags::CLONE_NEWNS)?;
                mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
            }
            ["bind-mount", from, to] => mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE)?,
            ["unmount", path] => unmount(path)?,
            ["burst", count, path] => {
                let count: u32 = count.parse()?;
                for _ in 0..count {
                    drop(options(false).read(true).open(path)?);
                }
            }
            ["bpf"] => {
                // Before 5.11 maps are locked memory, and the daemon's count for the same user.
                use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
                let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
                // An array map of one 4-byte value; what matters is who may call at all.
                let attributes: [u32; 32] = {
                    let mut words = [0; 32];
                    words[..4].copy_from_slice(&[2, 4, 4, 1]);
                    words
                };
                // SAFETY: `BPF_MAP_CREATE` (0) only reads `size` bytes of the attributes, which are
                // that long and outlive the call.
                let answer = unsafe {
                    nix::libc::syscall(
                        nix::libc::SYS_bpf,
                        0,
                        attributes.as_ptr(),
                        size_of_val(&attributes),
                    )
                };
                Errno::result(answer)?;
            }
            ["signal", pid] => nix::sys::signal::kill(Pid::from_raw(pid.parse()?), None)?,
            _ => {
                if let Some(more) = ambit_tests::verbs::step(words)? {
                    return Ok(more);
                }
                let done = ambit_tests::powers::step(words)?;
                return done.with_context(|| format!("there is no step `{}`", words.join(" ")));
            }
        }
        Ok(Value::Null)
    }

    fn fork(&mut self, rest: &[&[String]]) -> Result<u8> {
        // SAFETY: this process has one thread.
        match unsafe { fork() }? {
            ForkResult::Child => self.act(rest),
            ForkResult::Parent { child } => code_of(child),
        }
    }

    /// The steps run in a grandchild that init adopts; this process waits for it by a pipe, as
    /// nothing else is left between them.
    fn double_fork(&mut self, rest: &[&[String]]) -> Result<u8> {
        let (read, write) = nix::unistd::pipe()?;
        // SAFETY: this process has one thread.
        match unsafe { fork() }? {
            ForkResult::Child => {
                drop(read);
                let between = nix::unistd::getpid();
                // SAFETY: as above.
                match unsafe { fork() }? {
                    ForkResult::Child => {
                        while nix::unistd::getppid() == between {
                            std::thread::sleep(Duration::from_millis(1));
                        }
                        let code = self.act(rest);
                        drop(write);
                        code
                    }
                    ForkResult::Parent { .. } => std::process::exit(0),
                }
            }
            ForkResult::Parent { child } => {
                drop(write);
                waitpid(child, None)?;
                fs::File::from(read).read_to_end(&mut Vec::new())?;
                Ok(0)
            }
        }
    }

    fn thread(&mut self, rest: &[&[String]]) -> Result<u8> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| self.act(rest))
                .join()
                .map_err(|_| anyhow::anyhow!("the thread ended badly"))?
        })
    }
}

/// Opens a file for reading by io_uring: `inline` in the submitter, in a `worker`, or `polled` by the thread
/// that watches the queue.
fn ring_read(way: &str, path: &str) -> Result<()> {
    let mut builder = io_uring::IoUring::builder();
    if way == "polled" {
        builder.setup_sqpoll(1000);
    }
    let mut ring: io_uring::IoUring = builder.build(4)?;
    let path = CString::new(path)?;
    let open =
        io_uring::opcode::OpenAt::new(io_uring::types::Fd(nix::libc::AT_FDCWD), path.as_ptr())
            .flags(nix::libc::O_RDONLY | nix::libc::O_CLOEXEC)
            .build();
    let open = match way {
        "worker" => open.flags(io_uring::squeue::Flags::ASYNC),
        _ => open,
    };
    // SAFETY: the path outlives the wait for the one completion below.
    unsafe { ring.submission().push(&open) }.context("the ring is full")?;
    ring.submit_and_wait(1)?;
    let answer = ring.completion().next().context("the ring said nothing")?.result();
    Errno::result(answer.max(-1)).map_err(|_| Errno::from_raw(-answer))?;
    // SAFETY: the descriptor was just opened, and is nobody else's.
    drop(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(answer) });
    Ok(())
}

/// Has fanotify hand over a descriptor of a file when somebody else opens it. The gate is made once it
/// watches.
fn watch(path: &str, gate: &str) -> Result<()> {
    use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
    let group = Fanotify::init(InitFlags::FAN_CLOEXEC, EventFFlags::O_RDONLY)?;
    group.mark(MarkFlags::FAN_MARK_ADD, MaskFlags::FAN_OPEN, nix::fcntl::AT_FDCWD, Some(path))?;
    drop(options(false).write(true).create(true).open(gate)?);
    for event in group.read_events()? {
        let fd = event.fd().context("the event has no descriptor")?;
        let mut byte = [0];
        nix::unistd::read(fd, &mut byte)?;
    }
    Ok(())
}

fn options(folder: bool) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o644);
    if folder {
        options.custom_flags(nix::libc::O_DIRECTORY);
    }
    options
}

/// An address as the kernel takes it.
enum Address {
    V4(SockaddrIn),
    V6(SockaddrIn6),
}

impl Address {
    fn new(text: &str) -> Result<Self> {
        let address: SocketAddr =
            text.parse().with_context(|| format!("`{text}` is no address with a port"))?;
        Ok(match address {
            SocketAddr::V4(address) => Self::V4(address.into()),
            SocketAddr::V6(address) => Self::V6(address.into()),
        })
    }

    fn connect(&self, socket: &OwnedFd) -> nix::Result<()> {
        match self {
            Self::V4(address) => connect(socket.as_raw_fd(), address),
            Self::V6(address) => connect(socket.as_raw_fd(), address),
        }
    }

    fn bind(&self, socket: &OwnedFd) -> nix::Result<()> {
        match self {
            Self::V4(address) => bind(socket.as_raw_fd(), address),
            Self::V6(address) => bind(socket.as_raw_fd(), address),
        }
    }

    fn send(&self, socket: &OwnedFd, flags: MsgFlags) -> nix::Result<usize> {
        let (fd, flags) = (socket.as_raw_fd(), flags | MsgFlags::MSG_NOSIGNAL);
        match self {
            Self::V4(address) => sendto(fd, b"hello", address, flags),
            Self::V6(address) => sendto(fd, b"hello", address, flags),
        }
    }
}

fn new_socket(protocol: &str, address: &str) -> Result<(OwnedFd, Address)> {
    let address = Address::new(address)?;
    let family = match address {
        Address::V4(_) => AddressFamily::Inet,
        Address::V6(_) => AddressFamily::Inet6,
    };
    let kind = match protocol {
        "tcp" => SockType::Stream,
        "udp" => SockType::Datagram,
        other => bail!("`{other}` is no protocol; tcp and udp are"),
    };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    Ok((socket, address))
}

/// Runs a program and waits for it; the errno is `execve`'s.
fn exec(program: &str, args: &[&str]) -> Result<Value> {
    // `Command` reports the child's `execve` error, and closes nothing that it needs.
    let status = Command::new(program).args(args).status()?;
    Ok(json!({ "exit": status.code() }))
}

fn execute(program: &str, args: &[&str]) -> Errno {
    let words: Result<Vec<CString>, _> =
        std::iter::once(program).chain(args.iter().copied()).map(CString::new).collect();
    let Ok(words) = words else {
        return Errno::EINVAL;
    };
    let environment: Vec<CString> = Vec::new();
    match words.first() {
        Some(path) => match nix::unistd::execve(path, &words, &environment) {
            Ok(never) => match never {},
            Err(errno) => errno,
        },
        None => Errno::EINVAL,
    }
}

fn spawn(count: u32, program: &str, args: &[&str]) -> Result<Value> {
    let (mut started, mut failed) = (0, 0);
    for at in 0..count {
        let mut command = Command::new(program);
        command.args(args).arg(at.to_string()).stdout(Stdio::null());
        match command.status() {
            Ok(status) if status.success() => started += 1,
            Ok(_) | Err(_) => failed += 1,
        }
    }
    Ok(json!({ "started": started, "failed": failed }))
}

/// In each round ten connects to a permitted peer, one to a forbidden one, and a child that ends at
/// once. Opens nothing.
fn flood(rounds: u32, permitted: &str, forbidden: &str) -> Result<Value> {
    let (mut made, mut refused, mut forked) = (0, 0, 0);
    for _ in 0..rounds {
        for peer in [[permitted; 10].as_slice(), &[forbidden]].concat() {
            let (socket, address) = new_socket("udp", peer)?;
            match address.connect(&socket) {
                Ok(()) => made += 1,
                Err(Errno::EPERM) => refused += 1,
                Err(errno) => return Err(errno.into()),
            }
        }
        // SAFETY: this process has one thread.
        match unsafe { fork() }? {
            ForkResult::Child => std::process::exit(0),
            ForkResult::Parent { child } => {
                waitpid(child, None)?;
                forked += 1;
            }
        }
    }
    Ok(json!({ "made": made, "refused": refused, "forked": forked }))
}

/// Forks children that live until all are made, and says how many there could be.
fn forks(count: u32) -> Result<Value> {
    let (read, write) = nix::unistd::pipe()?;
    let (mut children, mut refused) = (Vec::new(), 0);
    for _ in 0..count {
        // SAFETY: this process has one thread.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => {
                drop(write);
                fs::File::from(read).read_to_end(&mut Vec::new())?;
                std::process::exit(0);
            }
            Ok(ForkResult::Parent { child }) => children.push(child),
            Err(errno) => {
                refused = errno as i32;
                break;
            }
        }
    }
    drop(write);
    for child in &children {
        waitpid(*child, None)?;
    }
    Ok(json!({ "forked": children.len(), "refused": refused }))
}

/// Puts text into a terminal's input, as if it had been typed there.
fn type_in(terminal: &str, text: &str) -> Result<()> {
    let terminal =
        options(false).read(true).write(true).custom_flags(nix::libc::O_NOCTTY).open(terminal)?;
    for byte in text.bytes() {
        // SAFETY: `TIOCSTI` reads one byte, which outlives the call.
        let answer = unsafe { nix::libc::ioctl(terminal.as_raw_fd(), nix::libc::TIOCSTI, &byte) };
        Errno::result(answer)?;
    }
    Ok(())
}

/// Takes away all that is mounted at a place. The error is a place where nothing is.
fn unmount(path: &str) -> nix::Result<()> {
    umount2(path, MntFlags::MNT_DETACH)?;
    while umount2(path, MntFlags::MNT_DETACH).is_ok() {}
    Ok(())
}

fn code_of(child: Pid) -> Result<u8> {
    Ok(match waitpid(child, None)? {
        WaitStatus::Exited(_, code) => u8::try_from(code).unwrap_or(255),
        WaitStatus::Signaled(_, signal, _) => u8::try_from(128 + signal as i32).unwrap_or(255),
        _ => 255,
    })
}

fn errno_of(error: &anyhow::Error) -> Option<i32> {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return error.raw_os_error();
    }
    error.downcast_ref::<Errno>().map(|errno| *errno as i32)
}

fn tell(words: &[&str], errno: i32, more: Value) -> Result<()> {
    let mut line = json!({ "step": words.join(" "), "errno": errno });
    if let (Some(line), Value::Object(more)) = (line.as_object_mut(), more) {
        line.extend(more);
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}
