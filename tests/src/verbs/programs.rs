//! Ways to run a program, to gain power, and to be somebody else.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::errno::Errno;
use nix::libc;

use super::{in_child, owned};

pub(super) fn step(words: &[&str]) -> Result<bool> {
    match *words {
        // A program that ends with 0; its exit code is the errno otherwise.
        ["run", program, ref args @ ..] => {
            run(program, args)?;
        }
        // The same, tried again for a while as long as it may not be run.
        ["run-soon", program, ref args @ ..] => {
            let end = Instant::now() + Duration::from_secs(5);
            while run(program, args) == Err(Errno::EPERM) {
                if Instant::now() > end {
                    return Err(Errno::EPERM.into());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            run(program, args)?;
        }
        // Writes one of two bytes over the last one, over and over, and runs the program each time. `EIO` is
        // that it ran with the second.
        ["rewrite-and-run", program, bytes, times] => {
            for time in 0..times.parse::<u64>()? {
                let byte = bytes.as_bytes()[usize::from(time % 3 != 0)];
                let file = File::options().write(true).open(program)?;
                let last = file.metadata()?.len() - 1;
                file.write_all_at(&[byte], last)?;
                drop(file);
                // Long enough, now and then, for somebody to read it in between.
                std::thread::sleep(Duration::from_millis(time % 7 * 30));
                if run(program, &["must", "nothing"]).is_ok() && byte == bytes.as_bytes()[1] {
                    return Err(Errno::EIO.into());
                }
            }
            let file = File::options().write(true).open(program)?;
            file.write_all_at(&bytes.as_bytes()[..1], file.metadata()?.len() - 1)?;
        }
        // Holds the last page of a program mapped for writing while it is asked for, writes another byte there,
        // which changes no time, lets it go, and runs it. `EIO` is that it ran.
        ["map-and-run", program, bytes] => {
            let file = File::options().read(true).write(true).open(program)?;
            let last = file.metadata()?.len() - 1;
            let (page, at) = (last / 4096 * 4096, usize::try_from(last % 4096)?);
            let mapped = shared_page(&file, page)?;
            drop(file);
            // SAFETY: within the page that was mapped.
            unsafe { mapped.add(at).write_volatile(bytes.as_bytes()[0]) };
            for _ in 0..20 {
                if run(program, &["must", "nothing"]).is_ok() {
                    return Err(Errno::EEXIST.into());
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            // SAFETY: as above; and nobody holds it any more.
            unsafe {
                mapped.add(at).write_volatile(bytes.as_bytes()[1]);
                libc::munmap(mapped.cast(), 4096);
            }
            let ran = run(program, &["must", "nothing"]).is_ok();
            let file = File::options().write(true).open(program)?;
            file.write_all_at(&bytes.as_bytes()[..1], last)?;
            if ran {
                return Err(Errno::EIO.into());
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
        ["memory-to-code"] => protect(map(None, libc::PROT_READ | libc::PROT_WRITE)?)?,
        ["shared-to-code"] => {
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            protect(map_as(None, libc::PROT_READ | libc::PROT_WRITE, flags)?)?;
        }
        ["device-to-code"] => protect(map(Some(&File::open("/dev/zero")?), libc::PROT_READ)?)?,
        ["written-to-code", path] => {
            let at = map(Some(&File::open(path)?), libc::PROT_READ | libc::PROT_WRITE)?;
            // SAFETY: within the page that was mapped; the file does not see it.
            unsafe { at.cast::<u8>().write_volatile(0) };
            protect(at)?;
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

/// Runs a program that ends with 0, or with an errno as its exit code.
fn run(program: &str, arguments: &[&str]) -> std::result::Result<(), Errno> {
    let status = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stdin(Stdio::null())
        .status()
        .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(Errno::from_raw(code)),
        _ => Err(Errno::EINTR),
    }
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
    map_as(file, protection, flags)
}

fn map_as(file: Option<&File>, protection: i32, flags: i32) -> Result<*mut libc::c_void> {
    let fd = file.map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: a new mapping of a page, which is gone at the actor's end.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, fd, 0) };
    if at == libc::MAP_FAILED { Err(Errno::last().into()) } else { Ok(at) }
}

fn shared_page(file: &File, from: u64) -> Result<*mut u8> {
    let (both, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
    let from = libc::off_t::try_from(from)?;
    // SAFETY: a new mapping of a page.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, both, libc::MAP_SHARED, fd, from) };
    if at == libc::MAP_FAILED { Err(Errno::last().into()) } else { Ok(at.cast()) }
}

fn protect(at: *mut libc::c_void) -> Result<()> {
    // SAFETY: a page of `map_as`, which nobody else knows of.
    Errno::result(unsafe { libc::mprotect(at, 4096, libc::PROT_READ | libc::PROT_EXEC) })?;
    Ok(())
}
