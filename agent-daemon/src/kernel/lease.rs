//! Whether a file is open for writing, as only a lease tells.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
};

use nix::libc;

/// include/uapi/asm-generic/fcntl.h
const F_SETSIG: libc::c_int = 10;

/// True when nobody has the file open for writing, nor mapped so. A lease for reading is given only then
/// (fs/locks.c: `check_conflicting_open`); it is given back at once, so that nobody waits for it.
pub fn has_no_writers(file: &File) -> io::Result<bool> {
    let fd = file.as_raw_fd();
    // Whoever opens it in between makes the kernel send a signal: one that nobody minds.
    control(fd, F_SETSIG, libc::SIGURG)?;
    let given = control(fd, libc::F_SETLEASE, libc::F_RDLCK);
    if let Err(error) = given {
        return match error.raw_os_error() {
            Some(libc::EAGAIN) => Ok(false),
            _ => Err(error),
        };
    }
    control(fd, libc::F_SETLEASE, libc::F_UNLCK)?;
    Ok(true)
}

fn control(fd: RawFd, command: libc::c_int, argument: libc::c_int) -> io::Result<()> {
    // SAFETY: a live descriptor, and commands that take an integer.
    match unsafe { libc::fcntl(fd, command, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_who_writes() {
        let path = std::env::temp_dir().join(format!("ambit-lease-{}", std::process::id()));
        std::fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        assert!(has_no_writers(&file).unwrap());
        let writer = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        assert!(!has_no_writers(&file).unwrap());
        drop(writer);
        assert!(has_no_writers(&file).unwrap());
        std::fs::remove_file(&path).unwrap();
    }
}
