//! The actor's steps around sockets that are not internet peers, and around privileges.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, SockaddrIn, UnixAddr, bind, connect, sendto};
use serde_json::{Value, json};

/// Does a step, or says that it is none of these. An error of the kernel is the step's errno.
pub fn step(words: &[&str]) -> Result<Option<Value>> {
    match *words {
        // A listener at an address, and one that the kernel gives an address.
        ["listen", address] => {
            let socket = make(libc::AF_INET, libc::SOCK_STREAM, 0)?;
            let address: std::net::SocketAddrV4 = address.parse()?;
            let reuse = nix::sys::socket::sockopt::ReuseAddr;
            nix::sys::socket::setsockopt(&socket, reuse, &true)?;
            bind(socket.as_raw_fd(), &SockaddrIn::from(address))?;
            listen(&socket)?;
        }
        ["listen-unbound"] => listen(&make(libc::AF_INET, libc::SOCK_STREAM, 0)?)?,
        // A socket by the three numbers of `socket(2)`.
        ["make", family, kind, protocol] => {
            drop(make(family.parse()?, kind.parse()?, protocol.parse()?)?);
        }
        // A TCP connection by MPTCP.
        ["connect-mptcp", address] => {
            let socket = make(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
            let address: std::net::SocketAddrV4 = address.parse()?;
            connect(socket.as_raw_fd(), &SockaddrIn::from(address))?;
        }
        ["unix-connect", name] => {
            let socket = make(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
            connect(socket.as_raw_fd(), &unix(name)?)?;
        }
        ["unix-send", name] => {
            let socket = make(libc::AF_UNIX, libc::SOCK_DGRAM, 0)?;
            sendto(socket.as_raw_fd(), b"hello", &unix(name)?, MsgFlags::MSG_NOSIGNAL)?;
        }
        ["unix-bind", name] => {
            let socket = make(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
            bind(socket.as_raw_fd(), &unix(name)?)?;
        }
        // Both ends are the actor's own: nobody is asked.
        ["unix-pair"] => {
            let (one, other) = std::os::unix::net::UnixDatagram::pair()?;
            one.send(b"hello")?;
            other.recv(&mut [0; 8])?;
        }
        ["addresses-of", host] => {
            let found = std::net::ToSocketAddrs::to_socket_addrs(&(host, 80_u16))?.count();
            return Ok(Some(json!({ "found": found })));
        }
        ["trace", pid] => {
            // SAFETY: no memory is passed.
            answer(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid.parse::<i32>()?, 0, 0) })?;
        }
        // EFAULT is the answer to those who may: the address is no one's.
        ["peek", pid] => {
            let mut byte = 0_u8;
            let own = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
            let other = libc::iovec { iov_base: std::ptr::without_provenance_mut(1), iov_len: 1 };
            // SAFETY: `own` is one byte that outlives the call; `other` is only looked up there.
            let read = unsafe { libc::process_vm_readv(pid.parse()?, &own, 1, &other, 1, 0) };
            match Errno::result(read) {
                Err(Errno::EFAULT) => {}
                other => drop(other?),
            }
        }
        ["take-descriptor", pid] => {
            // SAFETY: no memory is passed; what is opened is closed here.
            unsafe {
                let process = answer(libc::syscall(libc::SYS_pidfd_open, pid.parse::<i32>()?, 0))?;
                let process = OwnedFd::from_raw_fd(i32::try_from(process)?);
                let taken =
                    answer(libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), 0, 0))?;
                drop(OwnedFd::from_raw_fd(i32::try_from(taken)?));
            }
        }
        ["kill", signal, pid] => {
            // SAFETY: no memory is passed.
            answer(libc::c_long::from(unsafe { libc::kill(pid.parse()?, signal.parse()?) }))?;
        }
        ["mount-tmpfs", place] => {
            use nix::mount::{MsFlags, mount};
            const NONE: Option<&str> = None;
            mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), NONE)?;
        }
        ["bind-mount", from, to] => {
            use nix::mount::{MsFlags, mount};
            const NONE: Option<&str> = None;
            mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE)?;
        }
        ["unmount", place] => nix::mount::umount(place)?,
        // A copy of a mount that is then put elsewhere, without mount(2).
        ["move-mount", from, to] => {
            let (from, to) = (path(from)?, path(to)?);
            // OPEN_TREE_CLONE (include/uapi/linux/mount.h).
            let clone = 1_u32;
            let empty_path = 4_u32; // MOVE_MOUNT_F_EMPTY_PATH
            // SAFETY: the strings outlive the calls; what is opened is closed here.
            unsafe {
                let tree = answer(libc::syscall(
                    libc::SYS_open_tree,
                    libc::AT_FDCWD,
                    from.as_ptr(),
                    clone,
                ))?;
                let tree = OwnedFd::from_raw_fd(i32::try_from(tree)?);
                answer(libc::syscall(
                    libc::SYS_move_mount,
                    tree.as_raw_fd(),
                    c"".as_ptr(),
                    libc::AT_FDCWD,
                    to.as_ptr(),
                    empty_path,
                ))?;
            }
        }
        ["unshare", what] => {
            use nix::sched::{CloneFlags, unshare};
            let flags = match what {
                "user" => CloneFlags::CLONE_NEWUSER,
                "mount" => CloneFlags::CLONE_NEWNS,
                "network" => CloneFlags::CLONE_NEWNET,
                other => bail!("`{other}` is no namespace of the actor's"),
            };
            unshare(flags)?;
        }
        ["enter-own", what] => {
            let file = std::fs::File::open(Path::new("/proc/self/ns").join(what))?;
            nix::sched::setns(file, nix::sched::CloneFlags::empty())?;
        }
        // No module and no kernel: ENOEXEC and EINVAL are the answers to those who may.
        ["load-module"] => {
            let image = [0_u8; 8];
            // SAFETY: the image is 8 bytes that the call only reads.
            let answered = unsafe {
                libc::syscall(libc::SYS_init_module, image.as_ptr(), image.len(), c"".as_ptr())
            };
            match Errno::result(answered) {
                Err(Errno::ENOEXEC | Errno::ENOSYS) => {}
                other => drop(other?),
            }
        }
        ["load-kernel"] => {
            let nonsense = u64::MAX;
            // SAFETY: no segment is passed, and no kernel takes these flags.
            let answered = unsafe { libc::syscall(libc::SYS_kexec_load, 0, 0, 0, nonsense) };
            match Errno::result(answered) {
                Err(Errno::EINVAL | Errno::ENOSYS) => {}
                other => drop(other?),
            }
        }
        ["make-device", place] => {
            use nix::sys::stat::{Mode, SFlag, makedev, mknod};
            mknod(place, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, 3))?;
        }
        ["set-mtu"] => {
            // The loopback's own, so that nothing changes; only who may ask for it counts.
            let socket = make(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
            let mut request = [0_u8; 40]; // `struct ifreq` of include/uapi/linux/if.h
            request[..2].copy_from_slice(b"lo");
            request[16..20].copy_from_slice(&65_536_i32.to_ne_bytes());
            // SAFETY: the request is a whole `struct ifreq`, which the call only reads.
            let answered =
                unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, request.as_ptr()) };
            Errno::result(answered)?;
        }
        _ => return Ok(None),
    }
    Ok(Some(Value::Null))
}

fn answer(value: libc::c_long) -> nix::Result<libc::c_long> {
    Errno::result(value)
}

fn make(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed; the descriptor is nobody else's.
    unsafe {
        let socket = libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol);
        if socket < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(socket)) }
    }
}

fn listen(socket: &OwnedFd) -> nix::Result<()> {
    nix::sys::socket::listen(socket, nix::sys::socket::Backlog::new(1)?)
}

/// A unix address: a path, or `@` and an abstract one.
fn unix(name: &str) -> nix::Result<UnixAddr> {
    match name.strip_prefix('@') {
        Some(name) => UnixAddr::new_abstract(name.as_bytes()),
        None => UnixAddr::new(name),
    }
}

fn path(text: &str) -> Result<CString> {
    CString::new(Path::new(text).as_os_str().as_bytes()).context("a path with a NUL in it")
}
