//! What fanotify does not say of an open, read off the opener while it waits.

use std::{
    fs, io, thread,
    time::{Duration, Instant},
};

use agent_ebpf::{Action, Task};
use nix::{errno::Errno, libc};

/// What an open is for, as the opener's registers tell it.
#[derive(Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The opener is within `execve`: the second event of an exec that was judged just before.
    InExec,
    /// These actions, the first of which is told unless a later one is denied.
    Actions(&'static [Action], u32),
}

// x86-64 numbers (arch/x86/entry/syscalls/syscall_64.tbl); on other architectures `open` and `creat`
// do not exist and the others differ.
#[cfg(target_arch = "x86_64")]
mod call {
    pub const OPEN: u64 = 2;
    pub const CREAT: u64 = 85;
    pub const OPENAT: u64 = 257;
    pub const EXECVE: u64 = 59;
    pub const EXECVEAT: u64 = 322;
}
#[cfg(not(target_arch = "x86_64"))]
mod call {
    pub const OPEN: u64 = u64::MAX;
    pub const CREAT: u64 = u64::MAX - 1;
    pub const OPENAT: u64 = 56;
    pub const EXECVE: u64 = 221;
    pub const EXECVEAT: u64 = 281;
}

/// What cannot be told apart counts as both.
pub const BOTH: &[Action] = &[Action::Write, Action::Read];

fn by_registers(registers: &str) -> Purpose {
    const WRITE: &[Action] = &[Action::Write];
    const READ: &[Action] = &[Action::Read];
    let mut words = registers.split_ascii_whitespace();
    let number: Option<u64> = words.next().and_then(|word| word.parse().ok());
    let arguments: Vec<u64> = words
        .map_while(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok())
        .collect();
    let flags = match number {
        Some(call::EXECVE | call::EXECVEAT) => return Purpose::InExec,
        Some(call::CREAT) => {
            return Purpose::Actions(
                WRITE,
                libc_flags(libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC),
            );
        }
        Some(call::OPEN) => arguments.get(1),
        Some(call::OPENAT) => arguments.get(2),
        // openat2 and io_uring keep their flags in memory, which another thread may change.
        _ => None,
    };
    let Some(flags) = flags.map(|flags| *flags as u32) else {
        return Purpose::Actions(BOTH, 0);
    };
    // An open that may create cannot be told from one that does.
    let writes = flags & (libc::O_TRUNC | libc::O_CREAT) as u32 != 0;
    match flags & libc_flags(libc::O_ACCMODE) {
        0 if !writes => Purpose::Actions(READ, flags),
        1 => Purpose::Actions(WRITE, flags),
        _ => Purpose::Actions(BOTH, flags),
    }
}

const fn libc_flags(flags: i32) -> u32 {
    flags as u32
}

/// What a thread's open is for. A worker of io_uring carries the registers of whoever made it, for life, so
/// they tell nothing.
pub fn purpose(tid: u32) -> Purpose {
    if is_io_worker(tid) { Purpose::Actions(BOTH, 0) } else { by_registers(&registers(tid)) }
}

/// The opener's registers. It was queued a moment before it went to sleep, so a few looks may be needed;
/// on a loaded machine it may first have to be given a CPU.
fn registers(tid: u32) -> String {
    let path = format!("/proc/{tid}/syscall");
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut pause = Duration::from_micros(20);
    while Instant::now() < deadline {
        match fs::read_to_string(&path) {
            Ok(text) if text.starts_with("running") => thread::sleep(pause),
            Ok(text) => return text,
            Err(_) => break,
        }
        pause = (pause * 2).min(Duration::from_millis(5));
    }
    String::new()
}

/// True for threads that the kernel made to work for io_uring: `PF_IO_WORKER` of include/linux/sched.h.
fn is_io_worker(tid: u32) -> bool {
    const PF_IO_WORKER: u64 = 0x10;
    flags(tid).is_none_or(|flags| flags & PF_IO_WORKER != 0)
}

/// The flags of a task, `PF_*` of include/linux/sched.h.
fn flags(tid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
    // proc_pid_stat(5): the name, in parentheses, may hold anything; flags are the 7th field after it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(6)?.parse().ok()
}

/// The agent's process for which a kernel thread opens, if any. Before 5.12 io_uring hands its work to kernel
/// threads, which take on the file table of whoever asked (fs/io-wq.c).
///
/// # Errors
/// The thread is gone, or the kernel does not say whose table it has: then it may not open while there
/// are agents.
pub fn served_by(tid: u32, agents: &[(u32, Task)]) -> io::Result<Option<Task>> {
    const PF_KTHREAD: u64 = 0x20_0000;
    if flags(tid).ok_or(io::ErrorKind::NotFound)? & PF_KTHREAD == 0 {
        return Ok(None);
    }
    for (tgid, task) in agents {
        match same_files(tid, *tgid) {
            Ok(true) => return Ok(Some(*task)),
            Ok(false) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(None)
}

/// True when two tasks share one table of file descriptors: kcmp(2) with `KCMP_FILES`.
fn same_files(one: u32, other: u32) -> nix::Result<bool> {
    const KCMP_FILES: libc::c_long = 2;
    // SAFETY: the call takes numbers and touches no memory of this process.
    let order = unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            libc::c_long::from(one),
            libc::c_long::from(other),
            KCMP_FILES,
            0_usize,
            0_usize,
        )
    };
    Errno::result(order).map(|order| order == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_reading_from_writing_by_the_registers() {
        let at = |flags: &str| {
            by_registers(&format!("257 0xffffff9c 0x7ffd {flags} 0x0 0x0 0x0 0x1 0x2\n"))
        };
        assert_eq!(at("0x80000"), Purpose::Actions(&[Action::Read], 0x80000));
        assert_eq!(at("0x80001"), Purpose::Actions(&[Action::Write], 0x80001));
        assert_eq!(at("0x2"), Purpose::Actions(&[Action::Write, Action::Read], 2));
        // O_RDONLY|O_TRUNC truncates.
        assert_eq!(at("0x200"), Purpose::Actions(&[Action::Write, Action::Read], 0x200));
        assert_eq!(by_registers("59 0x1 0x2"), Purpose::InExec);
    }

    #[test]
    fn what_cannot_be_told_counts_as_write() {
        let both: &[Action] = &[Action::Write, Action::Read];
        assert_eq!(by_registers("437 0xffffff9c 0x7ffd 0x7ffe 0x18"), Purpose::Actions(both, 0));
        assert_eq!(by_registers("426 0x3 0x1"), Purpose::Actions(both, 0));
        assert_eq!(by_registers("running"), Purpose::Actions(both, 0));
        assert_eq!(by_registers(""), Purpose::Actions(both, 0));
    }
}
