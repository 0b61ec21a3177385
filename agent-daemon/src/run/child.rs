//! The child between fork and exec: it gives up what it has, in a fixed order, and executes.
//!
//! Only async-signal-safe calls are made there and nothing is allocated: the process that forked
//! may have had other threads, whose locks nobody holds any more in the child.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{
    ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, getresuid, pipe2, read, setgroups,
    setresgid, setresuid, setsid, write,
};

use super::error::Step;
use super::relay::forward;
use super::signals::Signals;
use super::sys::{self, CStringArray};
use super::terminal::Terminal;
use super::{Prepared, RunError};

/// What a child that could not execute tells: the step, which of several things it was on, errno.
const REPORT_SIZE: usize = 6;

/// A step that failed.
struct Failure {
    step: Step,
    /// Which of several: of cgroups or standard streams.
    which: u8,
    errno: Errno,
}

impl Failure {
    fn at(step: Step) -> impl FnOnce(Errno) -> Self {
        Self::of(step, 0)
    }

    fn of(step: Step, which: usize) -> impl FnOnce(Errno) -> Self {
        move |errno| Self { step, which: which as u8, errno }
    }

    fn to_bytes(&self) -> [u8; REPORT_SIZE] {
        let [a, b, c, d] = (self.errno as i32).to_ne_bytes();
        [self.step as u8, self.which, a, b, c, d]
    }

    fn from_bytes(bytes: [u8; REPORT_SIZE]) -> Self {
        let [step, which, errno @ ..] = bytes;
        Self {
            step: Step::from_number(step).unwrap_or(Step::Exec),
            which,
            errno: Errno::from_raw(i32::from_ne_bytes(errno)),
        }
    }

    fn explain(self, prepared: Prepared) -> RunError {
        let Self { step, which, errno } = self;
        let which = usize::from(which);
        let on = match step {
            Step::Exec => {
                return RunError::from_exec(prepared.program, prepared.command, errno);
            }
            Step::Cgroup => match prepared.cgroups.get(which) {
                Some((path, _)) => path.display().to_string(),
                None => "a cgroup".to_owned(),
            },
            Step::StandardStreams => format!("descriptor {which}"),
            Step::User | Step::Groups => prepared.identity.name,
            _ => "the new process".to_owned(),
        };
        RunError::Child { step, on, errno }
    }
}

/// Everything that the child needs, made before the fork.
struct Plan<'a> {
    prepared: &'a Prepared,
    terminal: Option<&'a Terminal>,
    report: BorrowedFd<'a>,
    arguments: CStringArray<'a>,
    environment: CStringArray<'a>,
    /// The descriptors above the standard streams that stay open until exec, in ascending order.
    keep: Vec<RawFd>,
}

/// Forks the child and returns its pid once it has executed the program.
///
/// # Errors
/// The step of the child that failed; the child was reaped.
pub(super) fn spawn(
    prepared: Prepared,
    terminal: Option<&Terminal>,
    signals: &Signals,
) -> Result<Pid, RunError> {
    let (report, report_write) =
        pipe2(OFlag::O_CLOEXEC).map_err(RunError::system("making a pipe"))?;
    let mut keep: Vec<RawFd> = prepared.cgroups.iter().map(|(_, file)| file.as_raw_fd()).collect();
    keep.push(report_write.as_raw_fd());
    keep.extend(prepared.ceiling.as_ref().map(|ceiling| ceiling.ruleset.as_raw_fd()));
    keep.sort_unstable();
    let plan = Plan {
        prepared: &prepared,
        terminal,
        report: report_write.as_fd(),
        arguments: CStringArray::new(&prepared.arguments),
        environment: CStringArray::new(&prepared.environment),
        keep,
    };

    // No handler of this process may run in the child.
    let mask = SigSet::all()
        .thread_swap_mask(SigmaskHow::SIG_SETMASK)
        .map_err(RunError::system("blocking signals"))?;
    // SAFETY: the child calls only `run_child`, which makes async-signal-safe calls alone and ends
    // in exec or _exit.
    let forked = unsafe { fork() };
    if let Ok(ForkResult::Child) = forked {
        run_child(&plan);
    }
    mask.thread_set_mask().map_err(RunError::system("unblocking signals"))?;
    let pid = match forked.map_err(RunError::system("forking"))? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => sys::exit_now(125),
    };
    drop(report_write);

    let failure = match read_report(&report, pid, signals) {
        Ok(None) => return Ok(pid),
        Ok(Some(failure)) => failure.explain(prepared),
        Err(error) => {
            // It may have executed by now; what nobody waits for must not run.
            let _ = kill(pid, Signal::SIGKILL);
            error
        }
    };
    while waitpid(pid, None) == Err(Errno::EINTR) {}
    Err(failure)
}

/// Waits until the child has executed (nothing) or failed; signals go to it meanwhile, so that a
/// judge who does not answer cannot hold the caller.
fn read_report(
    report: &OwnedFd,
    child: Pid,
    signals: &Signals,
) -> Result<Option<Failure>, RunError> {
    let failed = RunError::system("waiting for the new process");
    let mut bytes = [0; REPORT_SIZE];
    loop {
        let mut waited = [
            PollFd::new(report.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut waited, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(failed(errno)),
        }
        while let Some(signal) = signals.next() {
            if forward(child, signal).is_err() {
                // It has no group of its own yet.
                let _ = kill(child, signal);
            }
        }
        if !waited[0].any().unwrap_or(true) {
            continue;
        }
        return match read(report, &mut bytes) {
            // The report is written at once: shorter than a pipe's atomic write.
            Ok(REPORT_SIZE) => Ok(Some(Failure::from_bytes(bytes))),
            Ok(_) => Ok(None),
            Err(Errno::EINTR) => continue,
            Err(errno) => Err(failed(errno)),
        };
    }
}

/// The whole life of the child before exec.
fn run_child(plan: &Plan<'_>) -> ! {
    let Err(failure) = steps(plan);
    let _ = write(plan.report, &failure.to_bytes());
    sys::exit_now(125)
}

/// The steps, in the one order that is right: what needs root before the user is changed, what is
/// judged by the agent's policy after everything else.
fn steps(plan: &Plan<'_>) -> Result<Infallible, Failure> {
    let identity = &plan.prepared.identity;

    setsid().map_err(Failure::at(Step::Session))?;
    if let Some(terminal) = plan.terminal
        && let Some(slave) = terminal.slave()
    {
        sys::take_terminal(slave.as_raw_fd()).map_err(Failure::at(Step::ControllingTerminal))?;
        let [stdin, stdout, stderr] = terminal.replaces();
        if stdin {
            dup2_stdin(slave).map_err(Failure::of(Step::StandardStreams, 0))?;
        }
        if stdout {
            dup2_stdout(slave).map_err(Failure::of(Step::StandardStreams, 1))?;
        }
        if stderr {
            dup2_stderr(slave).map_err(Failure::of(Step::StandardStreams, 2))?;
        }
    }
    close_others(&plan.keep).map_err(Failure::at(Step::CloseFiles))?;
    sys::default_all_signals().map_err(Failure::at(Step::Signals))?;
    SigSet::empty().thread_set_mask().map_err(Failure::at(Step::Signals))?;

    for (which, (_, procs)) in plan.prepared.cgroups.iter().enumerate() {
        // 0 is the process that writes.
        write(procs, b"0").map_err(Failure::of(Step::Cgroup, which))?;
    }

    setgroups(&identity.groups).map_err(Failure::at(Step::Groups))?;
    setresgid(identity.gid, identity.gid, identity.gid).map_err(Failure::at(Step::Groups))?;
    setresuid(identity.uid, identity.uid, identity.uid).map_err(Failure::at(Step::User))?;
    let now = getresuid().map_err(Failure::at(Step::User))?;
    if [now.real, now.effective, now.saved] != [identity.uid; 3] {
        return Err(Failure::at(Step::User)(Errno::EPERM));
    }
    set_no_new_privs().map_err(Failure::at(Step::NoNewPrivileges))?;
    if let Some(ceiling) = &plan.prepared.ceiling {
        sys::landlock(ceiling.ruleset.as_fd()).map_err(Failure::at(Step::Ceiling))?;
    }
    if !identity.uid.is_root() {
        sys::drop_capabilities().map_err(Failure::at(Step::Capabilities))?;
    }
    sys::leave_keyring().map_err(Failure::at(Step::Keyring))?;

    sys::execve(&plan.prepared.executed, &plan.arguments, &plan.environment)
        .map_err(Failure::at(Step::Exec))
}

/// Closes every descriptor above the standard streams but those to keep (in ascending order).
fn close_others(keep: &[RawFd]) -> Result<(), Errno> {
    let mut first: u32 = 3;
    for kept in keep {
        let Ok(kept) = u32::try_from(*kept) else {
            continue;
        };
        if kept > first {
            // SAFETY: in the child nothing uses the descriptors between those that are kept.
            unsafe { sys::close_range(first, kept - 1) }?;
        }
        first = first.max(kept.saturating_add(1));
    }
    // SAFETY: as above, for those after the last that is kept.
    unsafe { sys::close_range(first, u32::MAX) }
}
