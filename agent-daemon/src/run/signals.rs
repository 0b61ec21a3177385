//! Signals of the launcher as bytes in a pipe, so that one `poll` waits for them and the terminal.
//!
//! A self-pipe and not a signalfd: it needs no signal blocked, so it works whichever threads the
//! process has and whenever they were started.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};
use nix::unistd::{pipe2, read};

use super::RunError;

/// The pipe, made once and never closed: a handler may be about to write to it at any time.
static PIPE: OnceLock<(OwnedFd, OwnedFd)> = OnceLock::new();
/// Its write end, for the handler.
static WRITE_END: AtomicI32 = AtomicI32::new(-1);
/// Whether a [`Signals`] is alive.
static TAKEN: AtomicBool = AtomicBool::new(false);

const HANDLED: [Signal; 10] = [
    Signal::SIGCHLD,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
];

/// The handlers of this process while it relays; as they were before when dropped.
#[derive(Debug)]
pub(super) struct Signals {
    former: Vec<(Signal, SigAction)>,
    read_end: BorrowedFd<'static>,
}

impl Signals {
    /// Starts to collect the signals.
    ///
    /// One that the caller ignores (`nohup`, a job of a script) stays ignored.
    pub(super) fn install() -> Result<Self, RunError> {
        let failed = RunError::system;
        if TAKEN.swap(true, Ordering::AcqRel) {
            return Err(RunError::Busy);
        }
        let pipe = match PIPE.get() {
            Some(pipe) => pipe,
            None => {
                let pipe = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(|errno| {
                    TAKEN.store(false, Ordering::Release);
                    failed("making a pipe for signals")(errno)
                })?;
                PIPE.get_or_init(|| pipe)
            }
        };
        WRITE_END.store(pipe.1.as_raw_fd(), Ordering::Release);
        // From here on dropping it undoes what was done.
        let mut signals = Self { former: Vec::new(), read_end: pipe.0.as_fd() };
        while signals.next().is_some() {}
        for signal in HANDLED {
            let former = set(signal, note_action()).map_err(failed("handling signals"))?;
            let ignored = matches!(former.handler(), SigHandler::SigIgn);
            if ignored && signal != Signal::SIGCHLD {
                set(signal, former).map_err(failed("handling signals"))?;
            } else {
                signals.former.push((signal, former));
            }
        }
        Ok(signals)
    }

    /// The next signal that arrived, if one did.
    pub(super) fn next(&self) -> Option<Signal> {
        let mut byte = [0];
        loop {
            match read(self.read_end, &mut byte) {
                Ok(1) => {
                    let [number] = byte;
                    if let Ok(signal) = Signal::try_from(i32::from(number)) {
                        return Some(signal);
                    }
                }
                Err(Errno::EINTR) => {}
                _ => return None,
            }
        }
    }

    /// Stops this process as ^Z would; returns when it is continued.
    ///
    /// Where no shell could continue it (an orphaned process group, SIGTSTP ignored) it does
    /// nothing: the kernel does not stop such a process either.
    pub(super) fn stop_self(&self) -> Result<(), Errno> {
        if self.former.iter().all(|(signal, _)| *signal != Signal::SIGTSTP) {
            return Ok(());
        }
        set(Signal::SIGTSTP, default_action())?;
        let stopped = raise(Signal::SIGTSTP);
        set(Signal::SIGTSTP, note_action())?;
        stopped
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read_end
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        for (signal, action) in &self.former {
            // The action was this signal's before; there is nobody to tell if it cannot be again.
            let _ = set(*signal, *action);
        }
        TAKEN.store(false, Ordering::Release);
    }
}

fn note_action() -> SigAction {
    // Without SA_RESTART: a write to a caller's terminal that does not drain must not keep signals
    // from being relayed.
    SigAction::new(SigHandler::Handler(note), SaFlags::empty(), SigSet::empty())
}

fn default_action() -> SigAction {
    SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty())
}

fn set(signal: Signal, action: SigAction) -> Result<SigAction, Errno> {
    // SAFETY: the action is the default, was the process's own before, or is `note`, which does
    // only what is async-signal-safe.
    unsafe { sigaction(signal, &action) }
}

/// The handler: writes the signal's number into the pipe and leaves errno as it was.
extern "C" fn note(signal: libc::c_int) {
    let errno = Errno::last_raw();
    let byte = signal as u8;
    // SAFETY: one byte that outlives the call; the pipe is never closed and does not block. When it
    // is full there are signals enough to wake the reader.
    let _ = unsafe { libc::write(WRITE_END.load(Ordering::Acquire), (&raw const byte).cast(), 1) };
    Errno::set_raw(errno);
}
