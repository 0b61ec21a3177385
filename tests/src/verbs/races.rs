//! Ways by many at once: floods, full tables, and buffers that change during the call.

use std::cell::UnsafeCell;
use std::fs::File;
use std::net::SocketAddrV4;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::libc;

use super::{owned, take};

pub(super) fn step(words: &[&str]) -> Result<bool> {
    match *words {
        ["race-path", permitted, forbidden, milliseconds] => {
            race_path(permitted, forbidden, Duration::from_millis(milliseconds.parse()?))?;
        }
        ["race-peer", permitted, forbidden, milliseconds] => {
            race_peer(
                permitted.parse()?,
                forbidden.parse()?,
                Duration::from_millis(milliseconds.parse()?),
            )?;
        }
        ["alternate", permitted, forbidden, until] => alternate(permitted, forbidden, until)?,
        ["steal-crowded", count, path] => super::files::crowded(count.parse()?, path)?,
        ["many-paths", count, folder] => {
            for number in 0..count.parse::<u32>()? {
                let _ = File::open(format!("{folder}/none-{number}"));
            }
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Opens what is permitted and what is forbidden in turn, until something is at a path and each was opened
/// some hundred times. Ends well when only the former ever opened; `EEXIST` is that the latter did.
fn alternate(permitted: &str, forbidden: &str, until: &str) -> Result<()> {
    let mut rounds = 0;
    while rounds < 300 || !std::path::Path::new(until).exists() {
        drop(File::open(permitted)?);
        match File::open(forbidden) {
            Ok(_) => return Err(Errno::EEXIST.into()),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            Err(error) => return Err(error.into()),
        }
        rounds += 1;
        // So that who swaps has a CPU: there are many rounds to each swap all the same.
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// How often a race is run at most.
const ROUNDS: u32 = 2000;

/// Memory that one thread changes while the kernel reads it for another.
struct Shared<const N: usize>(UnsafeCell<[u8; N]>);

// SAFETY: written and read by volatile accesses of bytes and by the kernel only; what is torn is what
// the race is for.
unsafe impl<const N: usize> Sync for Shared<N> {}

impl<const N: usize> Shared<N> {
    fn put(&self, bytes: &[u8]) {
        for (at, byte) in bytes.iter().enumerate().take(N) {
            // SAFETY: `at` is below the length; nothing has a reference to the bytes.
            unsafe { self.0.get().cast::<u8>().add(at).write_volatile(*byte) };
        }
    }
}

/// Has one thread put now one, now the other into the memory, while `each` uses it. Ends well when
/// `each` says so; `EPERM` is that it never did.
fn race<const N: usize>(
    one: &[u8],
    other: &[u8],
    limit: Duration,
    mut each: impl FnMut(*const u8) -> bool,
) -> Result<()> {
    let shared = Shared::<N>(UnsafeCell::new([0; N]));
    shared.put(one);
    let done = AtomicBool::new(false);
    let won = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for bytes in [other, one] {
                    shared.put(bytes);
                    // Long enough for a call to come between.
                    (0..500).for_each(|_| std::hint::spin_loop());
                }
            }
        });
        let end = Instant::now() + limit;
        // Not so often that what is told of it takes long.
        let won = (0..ROUNDS).take_while(|_| Instant::now() < end).any(|_| {
            // The other thread gets its turn where there is one CPU for both.
            std::thread::sleep(Duration::from_micros(50));
            each(shared.0.get().cast())
        });
        done.store(true, Ordering::Relaxed);
        won
    });
    if won { Ok(()) } else { Err(Errno::EPERM.into()) }
}

fn race_path(permitted: &str, forbidden: &str, limit: Duration) -> Result<()> {
    if permitted.len() != forbidden.len() || permitted.len() >= 256 {
        bail!("both paths have to be of one length, below 256");
    }
    race::<256>(permitted.as_bytes(), forbidden.as_bytes(), limit, |path| {
        // SAFETY: the memory ends in a NUL that is never overwritten; the kernel copies it.
        let opened = unsafe { libc::open(path.cast(), libc::O_RDONLY | libc::O_CLOEXEC) };
        owned(opened.into()).is_ok_and(|fd| take(File::from(fd)).is_ok())
    })
}

fn race_peer(permitted: SocketAddrV4, forbidden: SocketAddrV4, limit: Duration) -> Result<()> {
    // `struct sockaddr_in`.
    let bytes = |address: SocketAddrV4| -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&2_u16.to_ne_bytes());
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        bytes[4..8].copy_from_slice(&address.ip().octets());
        bytes
    };
    race::<16>(&bytes(permitted), &bytes(forbidden), limit, |address| {
        let Ok(socket) = super::network::unbound() else {
            return false;
        };
        // SAFETY: the memory is 16 bytes long, which the kernel copies.
        let connected = unsafe { libc::connect(socket.as_raw_fd(), address.cast(), 16) };
        connected == 0 && socket.peer_addr().is_ok_and(|peer| peer == forbidden.into())
    })
}
