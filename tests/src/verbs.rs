//! The actor's steps that try a way around: each ends well only if what it tries was done.

mod files;
mod measure;
mod names;
mod network;
mod programs;
mod races;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::Result;
use nix::errno::Errno;
use nix::libc;
use serde_json::Value;

/// What a forbidden file holds.
pub const SECRET: &str = "hidden";

/// Where `hold` keeps a descriptor, and where one is passed on by whoever starts the actor.
pub const HELD: i32 = 57;

/// Does a step, or says that it is none of these. An error of the kernel is the step's errno.
pub fn step(words: &[&str]) -> Result<Option<Value>> {
    if let Some(told) = names::step(words)? {
        return Ok(Some(told));
    }
    if let Some(told) = measure::step(words)? {
        return Ok(Some(told));
    }
    let done = files::step(words)?
        || programs::step(words)?
        || network::step(words)?
        || races::step(words)?;
    Ok(done.then_some(Value::Null))
}

/// Reads from an open file what is forbidden. `EIO` is another text.
fn take(mut file: impl Read) -> Result<()> {
    let mut text = [0; SECRET.len()];
    file.read_exact(&mut text)
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    same(&text)
}

fn same(text: &[u8]) -> Result<()> {
    if text == SECRET.as_bytes() { Ok(()) } else { Err(Errno::EIO.into()) }
}

/// What a raw call answered, as a descriptor of one's own.
fn owned(answer: libc::c_long) -> Result<OwnedFd> {
    let fd = i32::try_from(Errno::result(answer)?)?;
    // SAFETY: callers pass what the kernel has just opened for them.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Another handle of the descriptor that is held, at its beginning. `EBADF` is that none is.
fn held() -> Result<File> {
    // SAFETY: no memory is passed.
    let copy = unsafe { libc::fcntl(HELD, libc::F_DUPFD_CLOEXEC, 0) };
    let mut file = File::from(owned(copy.into())?);
    // All handles share one place in the file; a socket has none.
    let _ = std::io::Seek::rewind(&mut file);
    Ok(file)
}

/// Runs something in a child and returns its exit code, which is an errno.
fn in_child(work: impl FnOnce() -> Result<()>) -> Result<()> {
    // SAFETY: the actor has one thread here.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => std::process::exit(code(work())),
        nix::unistd::ForkResult::Parent { child } => ended(child),
    }
}

/// The exit code that tells of a result: an errno, or 0.
#[must_use]
pub fn code(result: Result<()>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => match error.downcast_ref::<Errno>() {
            Some(errno) => *errno as i32,
            None => error
                .downcast_ref::<std::io::Error>()
                .and_then(std::io::Error::raw_os_error)
                .unwrap_or(libc::EPROTO),
        },
    }
}

/// Waits for a child whose exit code is an errno. One that was killed is `EINTR`.
fn ended(child: nix::unistd::Pid) -> Result<()> {
    use nix::sys::wait::{WaitStatus, waitpid};
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, code) => Err(Errno::from_raw(code).into()),
        _ => Err(Errno::EINTR.into()),
    }
}

/// Puts a descriptor where [`held`] finds it.
fn hold(file: &impl AsRawFd) -> Result<()> {
    // SAFETY: no memory is passed; nothing else uses that number.
    Errno::result(unsafe { libc::dup2(file.as_raw_fd(), HELD) })?;
    Ok(())
}
