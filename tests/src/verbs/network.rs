//! Ways to a peer.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::Result;
use io_uring::{IoUring, opcode, types};
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrLike, SockaddrStorage, sendmmsg, sendmsg};

use super::files::submit;
use super::{held, hold};

pub(super) fn step(words: &[&str]) -> Result<bool> {
    match *words {
        ["sendmsg", address] => {
            let parts = [IoSlice::new(b"hello")];
            let (socket, address) = udp(address)?;
            sendmsg(socket.as_raw_fd(), &parts, &[], MsgFlags::empty(), Some(&address))?;
        }
        ["sendmmsg", address] => {
            let parts = [[IoSlice::new(b"hello")]];
            let (socket, address) = udp(address)?;
            let mut headers = MultiHeaders::preallocate(1, None);
            let fd = socket.as_raw_fd();
            let to = [Some(address)];
            let sent = sendmmsg(fd, &mut headers, &parts, to, [], MsgFlags::empty())?.count();
            if sent == 0 {
                return Err(Errno::EIO.into());
            }
        }
        // Connected to one peer, and sent to another all the same.
        ["send-elsewhere", first, other] => {
            let socket = unbound()?;
            socket.connect(first)?;
            socket.send_to(b"hello", other)?;
        }
        ["reconnect", first, other] => {
            let socket = unbound()?;
            socket.connect(first)?;
            socket.send(b"hello")?;
            socket.connect(other)?;
            socket.send(b"hello")?;
        }
        // A peer that refuses was reached.
        ["reach", kind, protocol, address] => {
            let (kind, protocol) = (kind.parse::<i32>()?, protocol.parse()?);
            // SAFETY: no memory is passed.
            let made = unsafe { libc::socket(libc::AF_INET, kind | libc::SOCK_CLOEXEC, protocol) };
            let socket = super::owned(made.into())?;
            refused_is_reached(connect(&socket, storage(address)?))?;
        }
        ["ring-connect", address] => {
            let socket = internet(libc::SOCK_STREAM)?;
            let address = storage(address)?;
            let mut ring = IoUring::new(4)?;
            let fd = types::Fd(socket.as_raw_fd());
            let entry = opcode::Connect::new(fd, address.as_ptr(), address.len()).build();
            submit(&mut ring, &entry)?;
        }
        ["ring-send", address] => {
            let socket = internet(libc::SOCK_DGRAM)?;
            let address = storage(address)?;
            let mut ring = IoUring::new(4)?;
            let mut text = *b"hello";
            let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
            // SAFETY: a `struct msghdr` of zeros is one without anything in it.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_name = address.as_ptr().cast_mut().cast();
            message.msg_namelen = address.len();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            let fd = types::Fd(socket.as_raw_fd());
            submit(&mut ring, &opcode::SendMsg::new(fd, &raw const message).build())?;
        }
        ["hold-connect", address] => hold(&TcpStream::connect(address)?)?,
        // One who calls hears again what he says, and how a program begins.
        ["serve", address] => {
            let (mut stream, _) = TcpListener::bind(address)?.accept()?;
            let mut asked = [0; 5];
            stream.read_exact(&mut asked)?;
            stream.write_all(&asked)?;
            let none = std::ptr::null_mut();
            let file = File::open("/proc/self/exe")?;
            // SAFETY: no memory is passed.
            let sent = unsafe { libc::sendfile(stream.as_raw_fd(), file.as_raw_fd(), none, 4) };
            Errno::result(sent)?;
        }
        ["held-send"] => held()?.write_all(b"hello")?,
        ["held-receive"] => {
            let read = held()?.read(&mut [0; 16])?;
            return if read == 0 { Err(Errno::ENODATA.into()) } else { Ok(true) };
        }
        // A file's text, within the kernel.
        ["held-send-file", path] => {
            let (file, socket) = (File::open(path)?, held()?);
            let none = std::ptr::null_mut();
            // SAFETY: no memory is passed.
            let sent = unsafe { libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), none, 4) };
            Errno::result(sent)?;
        }
        ["held-ring-send"] => {
            let mut ring = IoUring::new(4)?;
            let (socket, text) = (held()?, b"hello");
            let fd = types::Fd(socket.as_raw_fd());
            submit(&mut ring, &opcode::Send::new(fd, text.as_ptr(), 5).build())?;
        }
        // In a network of its own, where nothing listens: a refusal comes from the other end.
        ["own-network", address] => {
            unshare(CloneFlags::CLONE_NEWNET)?;
            crate::stage::loopback_up()?;
            refused_is_reached(connect(&internet(libc::SOCK_STREAM)?, storage(address)?))?;
        }
        ["many-peers", count] => {
            for number in 0..count.parse::<u32>()? {
                let ip = std::net::Ipv4Addr::from(0x7f10_0000 + number);
                let _ = unbound()?.connect((ip, 9));
            }
        }
        ["make-tunnel"] => {
            let tunnels = File::options().read(true).write(true).open("/dev/net/tun")?;
            let mut request = [0_u8; 40]; // `struct ifreq` of include/uapi/linux/if.h
            request[..6].copy_from_slice(b"ambit0");
            request[16..18].copy_from_slice(&u16::try_from(libc::IFF_TUN)?.to_ne_bytes());
            // SAFETY: the request is a whole `struct ifreq`. The device goes with the descriptor.
            let made = unsafe {
                libc::ioctl(tunnels.as_raw_fd(), libc::TUNSETIFF as _, request.as_mut_ptr())
            };
            Errno::result(made)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn refused_is_reached(connected: nix::Result<()>) -> nix::Result<()> {
    match connected {
        Err(Errno::ECONNREFUSED) => Ok(()),
        other => other,
    }
}

fn connect(socket: &OwnedFd, address: SockaddrStorage) -> nix::Result<()> {
    nix::sys::socket::connect(socket.as_raw_fd(), &address)
}

fn storage(address: &str) -> Result<SockaddrStorage> {
    Ok(address.parse::<SocketAddr>()?.into())
}

fn internet(kind: i32) -> Result<OwnedFd> {
    // SAFETY: no memory is passed.
    super::owned(unsafe { libc::socket(libc::AF_INET, kind | libc::SOCK_CLOEXEC, 0) }.into())
}

fn udp(address: &str) -> Result<(OwnedFd, SockaddrStorage)> {
    Ok((internet(libc::SOCK_DGRAM)?, storage(address)?))
}

/// A socket that was never bound, which would be an action of its own.
pub(super) fn unbound() -> std::io::Result<UdpSocket> {
    let socket = internet(libc::SOCK_DGRAM).map_err(|_| std::io::Error::last_os_error())?;
    Ok(UdpSocket::from(socket))
}
