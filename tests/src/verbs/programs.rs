//! Ways to run a program, to gain power, and to be somebody else.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use anyhow::Result;
use nix::errno::Errno;
use nix::libc;

use super::{in_child, owned};

pub(super) fn step(words: &[&str]) -> Result<bool> {
    match *words {
        // A program that ends with 0; its exit code is the errno otherwise.
        ["run", program, ref args @ ..] => {
            let status = Command::new(program)
                .args(args)
                .stdout(Stdio::null())
                .stdin(Stdio::null())
                .status()?;
            match (status.code(), status.signal()) {
                (Some(0), _) => {}
                (Some(code), _) => return Err(Errno::from_raw(code).into()),
                _ => return Err(Errno::EINTR.into()),
            }
        }
        ["run-fed", program, script] => {
            let status =
                Command::new(program).stdin(File::open(script)?).stdout(Stdio::null()).status()?;
            if !status.success() {
                return Err(Errno::EACCES.into());
            }
        }
        ["need-root"] => {
            if !nix::unistd::geteuid().is_root() {
                return Err(Errno::EACCES.into());
            }
        }
        // A program that is nowhere but in memory.
        ["memory-exec", program] => in_child(|| {
            // SAFETY: the name ends in NUL.
            let fd = owned(unsafe {
                libc::syscall(libc::SYS_memfd_create, c"tool".as_ptr(), libc::MFD_CLOEXEC)
            })?;
            std::io::copy(&mut File::open(program)?, &mut File::from(fd.try_clone()?))?;
            execute(&fd, false)
        })?,
        ["memory-exec-path", program] => in_child(|| {
            // SAFETY: the name ends in NUL.
            let fd = owned(unsafe { libc::syscall(libc::SYS_memfd_create, c"tool".as_ptr(), 0) })?;
            std::io::copy(&mut File::open(program)?, &mut File::from(fd.try_clone()?))?;
            execute(&fd, true)
        })?,
        ["deleted-exec", program, at] => in_child(|| {
            fs::copy(program, at)?;
            let fd = OwnedFd::from(File::open(at)?);
            fs::remove_file(at)?;
            execute(&fd, false)
        })?,
        ["map-exec", path] => {
            map(Some(&File::open(path)?), libc::PROT_READ | libc::PROT_EXEC)?;
        }
        ["protect-exec", path] => protect(map(Some(&File::open(path)?), libc::PROT_READ)?)?,
        ["memory-of-code"] => {
            let all = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
            map(None, all)?;
        }
        ["memfd-of-code"] => {
            // SAFETY: a name that ends in NUL.
            let fd = owned(unsafe { libc::syscall(libc::SYS_memfd_create, c"code".as_ptr(), 0) })?;
            let memory = File::from(fd);
            memory.set_len(4096)?;
            map(Some(&memory), libc::PROT_READ | libc::PROT_EXEC)?;
        }
        ["subreaper"] => nix::sys::prctl::set_child_subreaper(true)?,
        ["enter", namespace] => {
            nix::sched::setns(File::open(namespace)?, nix::sched::CloneFlags::empty())?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Runs an open program, by its descriptor alone or by the name that the descriptor has.
fn execute(program: &OwnedFd, by_name: bool) -> Result<()> {
    let name = CString::new(format!("/proc/self/fd/{}", program.as_raw_fd()))?;
    let arguments = [c"tool".as_ptr(), c"must".as_ptr(), c"nothing".as_ptr(), std::ptr::null()];
    let none = [std::ptr::null()];
    // SAFETY: strings that end in NUL, and lists of them that end in a null pointer.
    unsafe {
        if by_name {
            libc::execve(name.as_ptr(), arguments.as_ptr(), none.as_ptr());
        } else {
            libc::syscall(
                libc::SYS_execveat,
                program.as_raw_fd(),
                c"".as_ptr(),
                arguments.as_ptr(),
                none.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
    }
    Err(Errno::last().into())
}

fn map(file: Option<&File>, protection: i32) -> Result<*mut libc::c_void> {
    let flags = libc::MAP_PRIVATE | if file.is_none() { libc::MAP_ANONYMOUS } else { 0 };
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: a new mapping of a page, which is never touched, and gone at the actor's end.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, fd, 0) };
    if at == libc::MAP_FAILED { Err(Errno::last().into()) } else { Ok(at) }
}

fn protect(at: *mut libc::c_void) -> Result<()> {
    // SAFETY: a page of `map`, which nobody else knows of.
    Errno::result(unsafe { libc::mprotect(at, 4096, libc::PROT_READ | libc::PROT_EXEC) })?;
    Ok(())
}
