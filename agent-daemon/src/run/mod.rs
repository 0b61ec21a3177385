//! Starts the agent's command with less power than the caller had, and stands between it and the
//! caller's terminal, signals and exit code.
//!
//! Everything that can fail early fails in [`Launch::prepare`], before an agent exists: the user,
//! the groups, the program, the cgroup files. [`Prepared::start`] forks a child that gives up what
//! it has in a fixed order and executes; [`Running::wait`] relays until that first process ends.
//!
//! The child joins the agent's cgroups as its last step as root. From there on every open and exec
//! of it is judged, so nothing is opened after it but the program itself. `start` returns only when
//! the program was executed or refused: whoever judges (a fanotify engine, say) must therefore live
//! in another thread or process than the caller of `start`.

mod ceiling;
mod child;
mod error;
mod prepare;
mod relay;
mod signals;
mod sys;
mod terminal;
#[cfg(test)]
mod tests;
mod user;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nix::unistd::{Pid, Uid};

pub use ceiling::available as ceiling_is_available;
pub use error::{RunError, Step};
pub use prepare::Prepared;
pub use user::DANGEROUS_GROUPS;

/// Whose identity the command gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunAs {
    /// The person who called: `SUDO_UID` when `sudo` set it, else the caller's own user.
    Invoker,
    /// A user by name or, when no user has that name, by number.
    Named(String),
}

/// What to start, as whom and where.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program, as a name to be found in `PATH` or as a path, and its arguments.
    pub command: Vec<OsString>,
    /// Whose identity the command gets.
    pub user: RunAs,
    /// Permits uid 0, which is refused otherwise.
    pub allow_root: bool,
    /// Those of the user's [`DANGEROUS_GROUPS`] to keep.
    pub keep_groups: Vec<String>,
    /// The `cgroup.procs` files of the cgroups to join, in this order.
    pub cgroup_procs: Vec<PathBuf>,
    /// Variables to set beside those of the caller; these win.
    pub environment: Vec<(OsString, OsString)>,
    /// The folders beneath which it may change anything at most, where a ceiling is to keep it there.
    pub ceiling: Option<BTreeSet<PathBuf>>,
}

impl Launch {
    /// Resolves the user, the groups, the environment, the program and the cgroup files.
    ///
    /// # Errors
    /// Everything that can be known before a process exists; nothing was started and nothing has
    /// to be undone.
    pub fn prepare(self) -> Result<Prepared, RunError> {
        prepare::prepare(self, &prepare::Caller::current())
    }
}

impl Prepared {
    /// The program that will be executed, as an absolute path.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The user that the command will have.
    pub fn uid(&self) -> Uid {
        self.identity.uid
    }

    /// The name of that user, or the number when the user has no name.
    pub fn user_name(&self) -> &str {
        &self.identity.name
    }

    /// The groups of the user that the command will not have, by name.
    pub fn dropped_groups(&self) -> &[String] {
        &self.identity.dropped
    }

    /// Whether a ceiling will keep it: it was asked for, and this kernel has Landlock.
    pub fn has_ceiling(&self) -> bool {
        self.ceiling.is_some()
    }

    /// Folders of the ceiling that do not exist, each with the one above it that stands for it.
    pub fn widened(&self) -> &[(PathBuf, PathBuf)] {
        self.ceiling.as_ref().map_or(&[], |ceiling| &ceiling.widened)
    }

    /// Starts the command; returns once it was executed.
    ///
    /// When one of the standard streams is a terminal the command gets a pseudo-terminal of its
    /// own in its place. Until the [`Running`] is waited for or dropped, the signals that are to be
    /// relayed are handled by this process; there can be only one `Running` at a time.
    ///
    /// # Errors
    /// The step that failed, on what, with its errno. The child is gone then.
    pub fn start(self) -> Result<Running, RunError> {
        let signals = signals::Signals::install()?;
        let terminal = terminal::Terminal::open(self.identity.uid)?;
        let pid = child::spawn(self, terminal.as_ref(), &signals)?;
        Ok(Running { pid, terminal, signals })
    }
}

/// A command that was started and not yet waited for.
///
/// Dropped without [`Running::wait`], its terminal hangs up and it remains unreaped.
#[derive(Debug)]
pub struct Running {
    pid: Pid,
    terminal: Option<terminal::Terminal>,
    signals: signals::Signals,
}

impl Running {
    /// The first process: leader of its session and of its process group.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Relays terminal and signals until the first process ends.
    ///
    /// Processes that it left behind go on, without the terminal.
    ///
    /// # Errors
    /// When the first process cannot be waited for or the caller's terminal cannot be polled. The
    /// caller's terminal is as it was before on every way out.
    pub fn wait(self) -> Result<Outcome, RunError> {
        relay::relay(self.pid, self.terminal, &self.signals)
    }
}

/// How the first process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It ended by itself with this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
}

impl Outcome {
    /// The exit code that a shell would report: 128 + n for signal n.
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
        }
    }
}
