//! Ways to a file.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use io_uring::{IoUring, opcode, squeue, types};
use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::chdir;

use super::{SECRET, held, hold, owned, same, take};

const NONE: Option<&str> = None;

pub(super) fn step(words: &[&str]) -> Result<bool> {
    match *words {
        ["steal", path] => take(File::open(path)?)?,
        // A path that arguments cannot carry, in hexadecimal digits.
        ["steal-hex", digits] => take(File::open(OsStr::from_bytes(&bytes(digits)?))?)?,
        // A path longer than any call takes: one folder after the other.
        ["steal-beneath", top, name, count] => {
            chdir(top)?;
            for _ in 0..count.parse::<u32>()? {
                chdir(name)?;
            }
            take(File::open("key")?)?;
        }
        ["hold", path] => hold(&File::open(path)?)?,
        ["hold-write", path] => hold(&OpenOptions::new().read(true).write(true).open(path)?)?,
        ["held-read"] => take(held()?)?,
        ["held-write"] => held()?.write_all(SECRET.as_bytes())?,
        ["held-cut"] => held()?.set_len(6)?,
        ["held-list"] => {
            let (folder, mut entries) = (held()?, [0_u8; 1024]);
            let room = entries.len();
            // SAFETY: room for that many bytes.
            let listed = unsafe {
                let at = entries.as_mut_ptr();
                libc::syscall(libc::SYS_getdents64, folder.as_raw_fd(), at, room)
            };
            Errno::result(listed)?;
        }
        // Mapped to be read, and then made writable.
        ["held-map-writable"] => {
            let file = held()?;
            let (none, fd) = (std::ptr::null_mut(), file.as_raw_fd());
            // SAFETY: a new mapping of a page, which is gone at the actor's end.
            unsafe {
                let at = libc::mmap(none, 4096, libc::PROT_READ, libc::MAP_SHARED, fd, 0);
                if at == libc::MAP_FAILED {
                    return Err(Errno::last().into());
                }
                Errno::result(libc::mprotect(at, 4096, libc::PROT_READ | libc::PROT_WRITE))?;
            }
        }
        ["held-ring-read"] => {
            let mut ring = IoUring::new(4)?;
            let (file, mut text) = (held()?, [0; 6]);
            let fd = types::Fd(file.as_raw_fd());
            submit(&mut ring, &opcode::Read::new(fd, text.as_mut_ptr(), 6).build())?;
            same(&text)?;
        }
        ["held-map"] => map(&held()?)?,
        ["held-sendfile"] => through_pipe(|from, to| {
            // SAFETY: no memory is passed.
            unsafe { libc::sendfile(to, from, std::ptr::null_mut(), 6) }
        })?,
        ["held-splice"] => through_pipe(|from, to| {
            let none = std::ptr::null_mut();
            // SAFETY: no memory is passed.
            unsafe { libc::splice(from, none, to, none, 6, 0) }
        })?,
        ["held-copy", to] => {
            let (from, file) = (held()?, File::create(to)?);
            let none = std::ptr::null_mut();
            // SAFETY: no memory is passed.
            let copied = unsafe {
                libc::copy_file_range(from.as_raw_fd(), none, file.as_raw_fd(), none, 6, 0)
            };
            Errno::result(copied)?;
            same(&fs::read(to)?)?;
        }
        ["held-clone", to] => {
            let (from, file) = (held()?, File::create(to)?);
            // SAFETY: no memory is passed.
            let cloned =
                unsafe { libc::ioctl(file.as_raw_fd(), libc::FICLONE as _, from.as_raw_fd()) };
            Errno::result(cloned)?;
        }
        ["reopen", folder, path] => {
            let found = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
            take(File::open(Path::new(folder).join(found.as_raw_fd().to_string()))?)?;
        }
        ["openat2", base, path] => with_every_flag(base, path)?,
        ["by-handle", path] => by_handle(path)?,
        ["tmpfile-link", folder, to] => {
            let mut file = OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_TMPFILE)
                .mode(0o600)
                .open(folder)?;
            file.write_all(b"made")?;
            let (own, to) = (format!("/proc/self/fd/{}", file.as_raw_fd()), CString::new(to)?);
            let (own, here) = (CString::new(own)?, libc::AT_FDCWD);
            // SAFETY: both strings end in NUL and outlive the call.
            let linked = unsafe {
                libc::linkat(here, own.as_ptr(), here, to.as_ptr(), libc::AT_SYMLINK_FOLLOW)
            };
            Errno::result(linked)?;
        }
        ["ring-fixed", path] => ring_fixed(path)?,
        ["ring-openat2", path] => ring_openat2(path)?,
        ["receive", socket] => receive(socket)?,
        ["steal-descriptor", pid, number] => {
            // SAFETY: no memory is passed.
            let process =
                owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.parse::<i32>()?, 0) })?;
            let (pidfd, number) = (process.as_raw_fd(), number.parse::<i32>()?);
            // SAFETY: no memory is passed.
            let taken = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, number, 0) };
            let taken = owned(taken)?;
            let mut text = [0; 6];
            nix::sys::uio::pread(&taken, &mut text, 0)?;
            same(&text)?;
        }
        // Namespaces of its own, in which it may do everything.
        ["user-namespace"] => {
            unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
            mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)?;
        }
        ["pivot", root, old] => {
            mount(Some(root), root, NONE, MsFlags::MS_BIND, NONE)?;
            nix::unistd::pivot_root(root, old)?;
            chdir("/")?;
        }
        ["overlay", lower, other, at] => {
            let options = format!("lowerdir={lower}:{other}");
            mount(
                Some("overlay"),
                at,
                Some("overlay"),
                MsFlags::MS_RDONLY,
                Some(options.as_str()),
            )?;
        }
        ["into-cgroup", cgroup, path] => into_cgroup(cgroup, path)?,
        ["make-node", path, kind, major, minor] => {
            use nix::sys::stat::{Mode, SFlag, makedev, mknod};
            let kind = if kind == "b" { SFlag::S_IFBLK } else { SFlag::S_IFCHR };
            let device = makedev(major.parse()?, minor.parse()?);
            mknod(path, kind, Mode::from_bits_truncate(0o600), device)?;
        }
        ["read-some", path] => {
            use std::io::Read;
            File::open(path)?.read_exact(&mut [0])?;
        }
        ["copy", from, to] => drop(fs::copy(from, to)?),
        ["write", path, text] => {
            OpenOptions::new().create(true).append(true).open(path)?.write_all(text.as_bytes())?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn bytes(digits: &str) -> Result<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?)).collect()
}

fn map(file: &File) -> Result<()> {
    // SAFETY: a new mapping of a page, which is only read, and gone at the actor's end.
    let text = unsafe {
        let (none, fd) = (std::ptr::null_mut(), file.as_raw_fd());
        let at = libc::mmap(none, 4096, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0);
        if at == libc::MAP_FAILED {
            return Err(Errno::last().into());
        }
        std::slice::from_raw_parts(at.cast::<u8>(), 6)
    };
    same(text)
}

/// Moves the held file's text into a pipe by a call that copies within the kernel.
fn through_pipe(call: impl FnOnce(i32, i32) -> isize) -> Result<()> {
    let (read, write) = nix::unistd::pipe()?;
    let moved = call(held()?.as_raw_fd(), write.as_raw_fd());
    Errno::result(moved)?;
    drop(write);
    take(File::from(read))
}

/// `openat2` with each flag of `linux/openat2.h`, one after the other. The error is the last one's.
fn with_every_flag(base: &str, path: &str) -> Result<()> {
    let folder = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(base)?;
    let name = CString::new(path)?;
    let mut answer = Err(Errno::EINVAL.into());
    for resolve in [0, 0x01, 0x02, 0x04, 0x08, 0x10, 0x20] {
        let how: [u64; 3] = [u64::try_from(libc::O_RDONLY | libc::O_CLOEXEC)?, 0, resolve];
        // SAFETY: the name ends in NUL, and `how` is a whole `struct open_how`; both are only read.
        let opened = unsafe {
            libc::syscall(
                libc::SYS_openat2,
                folder.as_raw_fd(),
                name.as_ptr(),
                how.as_ptr(),
                size_of_val(&how),
            )
        };
        answer = owned(opened).and_then(|fd| take(File::from(fd)));
        if answer.is_ok() {
            break;
        }
    }
    answer
}

fn by_handle(path: &str) -> Result<()> {
    /// `struct file_handle` of fcntl.h, with room for any handle.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        handle: [u8; 128],
    }
    let mut handle = Handle { bytes: 128, kind: 0, handle: [0; 128] };
    let mut number = 0_i32;
    let parent = File::open(Path::new(path).ancestors().nth(2).context("no folder above")?)?;
    let path = CString::new(path)?;
    // SAFETY: the path ends in NUL; the handle says how much room it has; the number is an int.
    let named = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw mut handle,
            &raw mut number,
            0,
        )
    };
    Errno::result(named)?;
    // SAFETY: the handle is as the kernel made it.
    let opened = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            parent.as_raw_fd(),
            &raw mut handle,
            libc::O_RDONLY | libc::O_CLOEXEC,
        )
    };
    take(File::from(owned(opened)?))
}

/// Submits one entry and waits for its completion.
pub(super) fn submit(ring: &mut IoUring, entry: &squeue::Entry) -> Result<i32> {
    // SAFETY: callers keep what the entry points to until this returns.
    unsafe { ring.submission().push(entry) }.context("the ring is full")?;
    ring.submit_and_wait(1)?;
    let answer = ring.completion().next().context("the ring said nothing")?.result();
    if answer < 0 { Err(Errno::from_raw(-answer).into()) } else { Ok(answer) }
}

/// Into a slot of the ring's own table of files, so that no descriptor is ever made.
fn ring_fixed(path: &str) -> Result<()> {
    let mut ring = IoUring::new(4)?;
    ring.submitter().register_files(&[-1; 2])?;
    let path = CString::new(path)?;
    let slot = types::DestinationSlot::try_from_slot_target(0).map_err(|_| Errno::EINVAL)?;
    let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr())
        .flags(libc::O_RDONLY)
        .file_index(Some(slot));
    submit(&mut ring, &open.build())?;
    let mut text = [0; 6];
    submit(&mut ring, &opcode::Read::new(types::Fixed(0), text.as_mut_ptr(), 6).build())?;
    same(&text)
}

fn ring_openat2(path: &str) -> Result<()> {
    let mut ring = IoUring::new(4)?;
    let path = CString::new(path)?;
    let how = types::OpenHow::new().flags(u64::try_from(libc::O_RDONLY | libc::O_CLOEXEC)?);
    let open = opcode::OpenAt2::new(types::Fd(libc::AT_FDCWD), path.as_ptr(), &raw const how);
    let fd = submit(&mut ring, &open.build())?;
    take(File::from(owned(fd.into())?))
}

/// Takes a descriptor that whoever serves a unix socket passes on.
fn receive(socket: &str) -> Result<()> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let stream = std::os::unix::net::UnixStream::connect(socket)?;
    let mut byte = [0];
    let mut parts = [std::io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part
            && let Some(fd) = fds.first()
        {
            // SAFETY: the descriptor was just received, and is nobody else's.
            let file = unsafe { OwnedFd::from_raw_fd(*fd) };
            let mut text = [0; 6];
            nix::sys::uio::pread(&file, &mut text, 0)?;
            return same(&text);
        }
    }
    // The kernel takes out what may not be received.
    Err(Errno::EACCES.into())
}

/// Makes a child right inside another cgroup, which steals.
fn into_cgroup(cgroup: &str, path: &str) -> Result<()> {
    let folder = File::open(cgroup)?;
    let mut arguments = [0_u64; 11]; // `struct clone_args` of linux/sched.h
    arguments[0] = 0x2_0000_0000; // CLONE_INTO_CGROUP
    arguments[4] = u64::try_from(libc::SIGCHLD)?;
    arguments[10] = u64::try_from(folder.as_raw_fd())?;
    // SAFETY: a whole `struct clone_args`; without CLONE_VM it is as fork is, in a process of one thread.
    let made =
        unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size_of_val(&arguments)) };
    match Errno::result(made)? {
        0 => {
            let code = super::code(File::open(path).map_err(Into::into).and_then(take));
            // SAFETY: nothing of the child is to be cleaned up.
            unsafe { libc::_exit(code) }
        }
        child => super::ended(nix::unistd::Pid::from_raw(i32::try_from(child)?)),
    }
}

/// Forks until there are so many children at once, each of which steals. Ends well if any could.
pub(super) fn crowded(count: u32, path: &str) -> Result<()> {
    let (read, write) = nix::unistd::pipe()?;
    let mut children = Vec::new();
    for _ in 0..count {
        // SAFETY: the actor has one thread here.
        match unsafe { nix::unistd::fork() } {
            Ok(nix::unistd::ForkResult::Child) => {
                drop(write);
                let _ = std::io::Read::read_to_end(&mut File::from(read), &mut Vec::new());
                let got = File::open(path).map_err(Into::into).and_then(take);
                std::process::exit(super::code(got));
            }
            Ok(nix::unistd::ForkResult::Parent { child }) => children.push(child),
            Err(_) => break,
        }
    }
    drop(write);
    let mut answer = Err(Errno::ECHILD.into());
    for child in children {
        let own = super::ended(child);
        if answer.is_err() {
            answer = own;
        }
    }
    answer
}
