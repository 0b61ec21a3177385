//! The relay between the caller and the command, until the first process of the command ends.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, read, write};

use super::signals::Signals;
use super::terminal::Terminal;
use super::{Outcome, RunError};

/// How much is copied at once, in bytes.
const CHUNK: usize = 8 * 1024;
/// How long the terminal may be silent after the end, all its silences together, before nothing more
/// is expected: what the command wrote is there already, and those that it left behind may write a
/// little for ever.
const QUIET: Duration = Duration::from_millis(80);
/// How often a job in the background asks whether it is in the foreground now.
const FOREGROUND_CHECK_MS: u8 = 250;
/// How much is copied after the end at most, in bytes: more than a terminal holds, so what comes
/// beyond it was written later, by others.
const DRAIN: usize = 1024 * 1024;

/// Bytes on their way in one direction.
struct Flow {
    bytes: Vec<u8>,
    sent: usize,
    open: bool,
}

impl Flow {
    fn new(open: bool) -> Self {
        Self { bytes: Vec::with_capacity(CHUNK), sent: 0, open }
    }

    fn is_empty(&self) -> bool {
        self.sent >= self.bytes.len()
    }

    /// Reads once; `false` when the source has ended.
    fn fill(&mut self, source: BorrowedFd<'_>) -> bool {
        self.bytes.resize(CHUNK, 0);
        let result = read(source, &mut self.bytes);
        self.bytes.truncate(result.unwrap_or(0));
        self.sent = 0;
        match result {
            Ok(count) => count > 0,
            Err(errno) => is_passing(errno),
        }
    }

    /// Writes once. When the sink has ended, what comes for it is thrown away from then on, so that
    /// whoever writes does not wait forever.
    fn flush(&mut self, sink: BorrowedFd<'_>) {
        let rest = self.bytes.get(self.sent..).unwrap_or_default();
        if !self.open || rest.is_empty() {
            self.bytes.clear();
            return;
        }
        match write(sink, rest) {
            Ok(count) => self.sent += count,
            Err(errno) if is_passing(errno) => {}
            Err(_) => {
                self.open = false;
                self.bytes.clear();
            }
        }
    }
}

fn is_passing(errno: Errno) -> bool {
    matches!(errno, Errno::EAGAIN | Errno::EINTR)
}

/// What is new about the first process.
enum Change {
    Ended(Outcome),
    Stopped,
    Nothing,
}

/// Sends a signal on to the command's process group.
///
/// SIGTSTP is sent as SIGSTOP: the command's group has no shell above it in its session, and the
/// kernel lets SIGTSTP do nothing there. SIGCHLD and SIGWINCH are the launcher's own.
pub(super) fn forward(command: Pid, signal: Signal) -> Result<(), Errno> {
    match signal {
        Signal::SIGCHLD | Signal::SIGWINCH => Ok(()),
        Signal::SIGTSTP => killpg(command, Signal::SIGSTOP),
        other => killpg(command, other),
    }
}

/// Copies between the caller's terminal and the command's, and sends signals on.
pub(super) fn relay(
    command: Pid,
    mut terminal: Option<Terminal>,
    signals: &Signals,
) -> Result<Outcome, RunError> {
    let mut to_command = Flow::new(true);
    let mut to_caller = Flow::new(true);
    if let Some(terminal) = &mut terminal {
        terminal.copy_window_size();
        terminal.enter_raw();
    }
    let outcome = loop {
        match change(command)? {
            Change::Ended(outcome) => break outcome,
            Change::Stopped => {
                if let Some(terminal) = &mut terminal {
                    terminal.leave_raw();
                    signals.stop_self().map_err(RunError::system("stopping with the command"))?;
                    terminal.copy_window_size();
                    terminal.enter_raw();
                }
            }
            Change::Nothing => {}
        }
        pump(&mut terminal, signals, &mut to_command, &mut to_caller)?;
        while let Some(signal) = signals.next() {
            match (&terminal, signal) {
                (Some(terminal), Signal::SIGWINCH) => terminal.copy_window_size(),
                // A group that is gone is about to be seen as ended.
                _ => drop(forward(command, signal)),
            }
        }
    };
    if let Some(terminal) = &mut terminal {
        drain(terminal, signals, &mut to_caller);
    }
    Ok(outcome)
}

fn change(command: Pid) -> Result<Change, RunError> {
    loop {
        return match waitpid(command, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Exited(_, code)) => Ok(Change::Ended(Outcome::Exited(code))),
            Ok(WaitStatus::Signaled(_, signal, _)) => {
                Ok(Change::Ended(Outcome::Signaled(signal as i32)))
            }
            Ok(WaitStatus::Stopped(..)) => Ok(Change::Stopped),
            Ok(_) => Ok(Change::Nothing),
            Err(Errno::EINTR) => continue,
            Err(errno) => Err(RunError::System { doing: "waiting for the command", errno }),
        };
    }
}

/// Waits until something can be copied or a signal has arrived, and copies it.
fn pump(
    terminal: &mut Option<Terminal>,
    signals: &Signals,
    to_command: &mut Flow,
    to_caller: &mut Flow,
) -> Result<(), RunError> {
    let mut ended = false;
    if let Some(terminal) = terminal.as_mut().filter(|terminal| terminal.waits_for_foreground()) {
        terminal.enter_raw();
    }
    match terminal.as_ref() {
        None => {
            wait_for(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        }
        Some(terminal) => {
            let input = terminal.raw_input().filter(|_| to_command.is_empty());
            let mut master_events = PollFlags::empty();
            master_events.set(PollFlags::POLLIN, to_caller.is_empty());
            master_events.set(PollFlags::POLLOUT, !to_command.is_empty());
            let master = terminal.master().as_fd();

            // Only what is wanted is asked for: a descriptor that has hung up would otherwise wake
            // the loop for ever.
            let mut waited = vec![
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(master, master_events),
            ];
            if let Some(input) = input {
                waited.push(PollFd::new(input, PollFlags::POLLIN));
            }
            if !to_caller.is_empty() {
                waited.push(PollFd::new(terminal.output(), PollFlags::POLLOUT));
            }
            let timeout = if terminal.waits_for_foreground() {
                PollTimeout::from(FOREGROUND_CHECK_MS)
            } else {
                PollTimeout::NONE
            };
            wait_for(&mut waited, timeout)?;

            let ready = |index: usize, events: PollFlags| {
                waited
                    .get(index)
                    .and_then(PollFd::revents)
                    .unwrap_or_else(PollFlags::empty)
                    .intersects(events)
            };
            let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
            if !to_command.is_empty() && ready(1, PollFlags::POLLOUT | gone) {
                to_command.flush(master);
            }
            if to_caller.is_empty() && ready(1, PollFlags::POLLIN) {
                to_caller.fill(master);
            } else if !to_caller.is_empty() && ready(waited.len() - 1, PollFlags::POLLOUT | gone) {
                to_caller.flush(terminal.output());
            }
            if let Some(input) = input
                && ready(2, PollFlags::POLLIN | gone)
            {
                ended = !to_command.fill(input);
            }
        }
    }
    if let Some(terminal) = terminal.as_mut().filter(|_| ended) {
        terminal.close_input();
    }
    Ok(())
}

fn wait_for(waited: &mut [PollFd<'_>], timeout: PollTimeout) -> Result<(), RunError> {
    match poll(waited, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(RunError::System { doing: "waiting for terminal and signals", errno }),
    }
}

/// Copies what the command wrote before it ended, and does not wait for those that it left behind.
///
/// A signal that would end the command ends this: a caller's terminal that takes nothing more must
/// not hold the launcher.
fn drain(terminal: &mut Terminal, signals: &Signals, to_caller: &mut Flow) {
    terminal.close_slave();
    let mut copied = 0;
    let mut patience = QUIET;
    loop {
        while !to_caller.is_empty() {
            let mut waited = [
                PollFd::new(terminal.output(), PollFlags::POLLOUT),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            if wait_for(&mut waited, PollTimeout::NONE).is_err() {
                return;
            }
            let [output, _] = waited;
            while let Some(signal) = signals.next() {
                if !matches!(signal, Signal::SIGCHLD | Signal::SIGWINCH | Signal::SIGCONT) {
                    return;
                }
            }
            if output.any().unwrap_or(true) {
                to_caller.flush(terminal.output());
            }
        }
        let mut master = [PollFd::new(terminal.master().as_fd(), PollFlags::POLLIN)];
        let asked = Instant::now();
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
        match poll(&mut master, timeout) {
            Ok(0) => return,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
        patience = patience.saturating_sub(asked.elapsed());
        if copied > DRAIN || !to_caller.fill(terminal.master().as_fd()) {
            return;
        }
        copied += to_caller.bytes.len();
    }
}
