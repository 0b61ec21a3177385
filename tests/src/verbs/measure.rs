//! An action many times over, and what it took of the CPU.

use std::ffi::CString;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{UsageWho, getrusage};
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// `measure ACTION COUNT TARGET`: nanoseconds of this process and its children for each of them. Every one
/// must end as the first did, which is told.
pub(super) fn step(words: &[&str]) -> Result<Option<Value>> {
    let ["measure", action, count, target] = *words else { return Ok(None) };
    let count: u32 = count.parse().context("the count is no number")?;
    let mut act = action_of(action, target)?;
    let outcome = act();
    // What a first time costs, in caches and in code that the kernel patches.
    let mut all = |count: u32| -> Result<()> {
        for _ in 0..count {
            let again = act();
            ensure!(
                again == outcome,
                "`{action}` ended with {again:?}, and before with {outcome:?}"
            );
        }
        Ok(())
    };
    all(count / 10)?;
    let before = used()?;
    all(count)?;
    let spent = used()?.saturating_sub(before);
    let nanoseconds = spent.as_nanos() as f64 / f64::from(count);
    Ok(Some(
        json!({ "nanoseconds": nanoseconds, "outcome": outcome.err().map_or(0, |e| e as i32) }),
    ))
}

/// What was used of the CPU by this process and by the children that it has waited for.
fn used() -> Result<Duration> {
    let own = Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?);
    let children = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let of = |time: nix::sys::time::TimeVal| -> Result<Duration> {
        Ok(Duration::from_secs(time.tv_sec().try_into()?)
            + Duration::from_micros(time.tv_usec().try_into()?))
    };
    Ok(own + of(children.user_time())? + of(children.system_time())?)
}

type Act = Box<dyn FnMut() -> Result<(), Errno>>;

fn action_of(action: &str, target: &str) -> Result<Act> {
    let errno =
        |error: std::io::Error| error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    Ok(match action {
        // The kernel's own cost of a call.
        "call" => Box::new(|| {
            // SAFETY: no memory is passed.
            unsafe { libc::syscall(libc::SYS_getppid) };
            Ok(())
        }),
        "open" => {
            let path = CString::new(target)?;
            Box::new(move || open(&path).map(close))
        }
        "read" => {
            let path = CString::new(target)?;
            let mut page = vec![0; 4096];
            Box::new(move || {
                let fd = open(&path)?;
                // SAFETY: a buffer of that length.
                let got = unsafe { libc::read(fd, page.as_mut_ptr().cast(), page.len()) };
                close(fd);
                Errno::result(got).map(drop)
            })
        }
        "exec" => {
            let program = CString::new(target)?;
            Box::new(move || exec(&program))
        }
        "connect" => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            // A port alone is one at which nobody need listen.
            let own = listener.local_addr()?.to_string();
            let to = if target.is_empty() { own } else { target.to_owned() };
            Box::new(move || {
                let stream = TcpStream::connect(&to).map_err(errno)?;
                let (other, _) = listener.accept().map_err(errno)?;
                drop((stream, other));
                Ok(())
            })
        }
        "send" => {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            let own = socket.local_addr()?.to_string();
            let to = if target.is_empty() { own } else { target.to_owned() };
            let mut bytes = [0; 64];
            Box::new(move || {
                socket.send_to(b"text", &to).map_err(errno)?;
                socket.recv(&mut bytes).map(drop).map_err(errno)
            })
        }
        _ => anyhow::bail!("`{action}` is nothing that is measured"),
    })
}

fn open(path: &CString) -> Result<i32, Errno> {
    // SAFETY: a string that ends in NUL.
    Errno::result(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) })
}

fn close(fd: i32) {
    // SAFETY: what `open` has just given, and nobody else has.
    unsafe { libc::close(fd) };
}

fn exec(program: &CString) -> Result<(), Errno> {
    let (arguments, environment) =
        ([program.as_ptr(), c"true".as_ptr(), std::ptr::null()], [std::ptr::null()]);
    // SAFETY: one thread; the child calls only what is safe after a fork.
    match unsafe { libc::fork() } {
        -1 => Err(Errno::last()),
        0 => {
            // SAFETY: strings that end in NUL, and lists of them that end in null.
            unsafe {
                libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
                libc::_exit(*libc::__errno_location())
            }
        }
        child => {
            let mut status = 0;
            // SAFETY: a place for the status.
            Errno::result(unsafe { libc::waitpid(child, &raw mut status, 0) })?;
            match libc::WEXITSTATUS(status) {
                0 => Ok(()),
                code => Err(Errno::from_raw(code)),
            }
        }
    }
}
