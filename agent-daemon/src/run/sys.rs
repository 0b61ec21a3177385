//! The few system calls of this room that nix has no safe wrapper for, each made safe here.
//!
//! Everything here but [`CStringArray::new`] is async-signal-safe: no allocation, no lock.

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::pty::Winsize;

/// Strings for `execve`, with the array of pointers that it wants made before the fork.
#[derive(Debug)]
pub(super) struct CStringArray<'a> {
    pointers: Vec<*const c_char>,
    strings: PhantomData<&'a [CString]>,
}

impl<'a> CStringArray<'a> {
    pub(super) fn new(strings: &'a [CString]) -> Self {
        let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(ptr::null());
        Self { pointers, strings: PhantomData }
    }
}

/// Replaces this process by the program; returns only to say why it could not.
pub(super) fn execve(
    program: &CStr,
    arguments: &CStringArray<'_>,
    environment: &CStringArray<'_>,
) -> Result<Infallible, Errno> {
    // SAFETY: the program is a C string; both arrays end with a null pointer and point to C strings
    // that they borrow.
    unsafe {
        libc::execve(program.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr())
    };
    Err(Errno::last())
}

/// Ends this process without running anything more of it.
pub(super) fn exit_now(code: c_int) -> ! {
    // SAFETY: takes no pointers and does not return.
    unsafe { libc::_exit(code) }
}

/// Closes the descriptors `first..=last` of this process.
///
/// # Safety
/// Nothing may use a descriptor of that range afterwards.
pub(super) unsafe fn close_range(first: c_uint, last: c_uint) -> Result<(), Errno> {
    const NO_FLAGS: c_uint = 0;
    // SAFETY: takes no pointers; that the descriptors are not used any more is the caller's word.
    // The system call and not the C library's function, which glibc before 2.34 does not have.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, NO_FLAGS) };
    Errno::result(result).map(drop)
}

/// Sets every signal to its default, real-time signals and the C library's own included: what a
/// parent ignored would stay ignored through exec.
pub(super) fn default_all_signals() -> Result<(), Errno> {
    /// The size of a signal mask of the kernel, in bytes.
    const MASK_SIZE: usize = 8;
    const LAST_SIGNAL: c_int = 64;
    // The kernel's sigaction: handler (SIG_DFL is 0), flags, restorer, mask.
    let action = [0_u64; 4];
    for signal in 1..=LAST_SIGNAL {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        let former = ptr::null_mut::<u64>();
        // SAFETY: the action is as long as the kernel's, outlives the call and installs no handler.
        // The system call and not the C library's function, which refuses the signals that the
        // library keeps to itself.
        let result = unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), former, MASK_SIZE)
        };
        Errno::result(result)?;
    }
    Ok(())
}

/// Makes the terminal the controlling terminal of this session, whose leader must be the caller.
pub(super) fn take_terminal(terminal: RawFd) -> Result<(), Errno> {
    const DO_NOT_STEAL: c_int = 0;
    // SAFETY: TIOCSCTTY takes an integer; a descriptor that is none gives EBADF.
    let result = unsafe { libc::ioctl(terminal, libc::TIOCSCTTY, DO_NOT_STEAL) };
    Errno::result(result).map(drop)
}

/// The size of a terminal's window.
pub(super) fn window_size(terminal: BorrowedFd<'_>) -> Result<Winsize, Errno> {
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize, which outlives the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &mut size) };
    Errno::result(result).map(|_| size)
}

/// Sets the size of a terminal's window; its foreground group gets SIGWINCH when it changes.
pub(super) fn set_window_size(terminal: BorrowedFd<'_>, size: &Winsize) -> Result<(), Errno> {
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, size) };
    Errno::result(result).map(drop)
}

/// Gives up every capability of this process, ambient and inheritable ones included.
pub(super) fn drop_capabilities() -> Result<(), Errno> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: c_int,
    }
    const VERSION_3: u32 = 0x2008_0522;
    const THIS_PROCESS: c_int = 0;
    let header = Header { version: VERSION_3, pid: THIS_PROCESS };
    // Effective, permitted and inheritable, for capabilities 0 to 31 and 32 to 63.
    let none = [0_u32; 6];
    // SAFETY: version 3 reads the header and two triples of u32, which outlive the call. Ambient
    // capabilities are always among the permitted: the kernel drops them along.
    let result = unsafe { libc::syscall(libc::SYS_capset, &header, none.as_ptr()) };
    Errno::result(result).map(drop)
}

/// Puts this process, and all that it ever starts, under a Landlock ruleset.
pub(super) fn landlock(ruleset: BorrowedFd<'_>) -> Result<(), Errno> {
    const NO_FLAGS: c_uint = 0;
    // SAFETY: takes no pointers; a descriptor that is no ruleset gives EBADFD.
    let result =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), NO_FLAGS) };
    Errno::result(result).map(drop)
}

/// Leaves the session keyring that was inherited, for a new empty one.
///
/// # Errors
/// None when the process cannot use keyrings at all: a kernel without them (ENOSYS) or a container
/// that forbids them (EPERM), which forbids them to the command as well.
pub(super) fn leave_keyring() -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring; no other pointer is passed.
    let result = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, ptr::null::<c_char>())
    };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno),
    }
}
