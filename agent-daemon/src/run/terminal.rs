//! The command's own pseudo-terminal, and the caller's terminal in raw mode while it is relayed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{Uid, fchown, getpgrp, isatty, tcgetpgrp};

use super::{RunError, sys};

/// The pseudo-terminal, between the command and the caller's terminal.
#[derive(Debug)]
pub(super) struct Terminal {
    master: PtyMaster,
    /// Open until the command ended: without it the master would report a hang-up, again and again,
    /// whenever nothing of the command has the terminal open.
    slave: Option<OwnedFd>,
    /// Which of the command's standard streams it stands for.
    replaces: [bool; 3],
    /// The caller's terminal to read from, when that is its standard input.
    input: Option<OwnedFd>,
    /// The caller's terminal to write to.
    output: OwnedFd,
    /// How the caller's terminal was before raw mode, while it is in raw mode.
    before: Option<Termios>,
}

impl Terminal {
    /// Makes a pseudo-terminal for the user, like the caller's, when a standard stream of the
    /// caller is a terminal; nothing when none is.
    pub(super) fn open(owner: Uid) -> Result<Option<Self>, RunError> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let replaces = [is_terminal(&stdin), is_terminal(&stdout), is_terminal(&stderr)];
        let output = match replaces {
            [_, true, _] => stdout.as_fd(),
            [_, _, true] => stderr.as_fd(),
            [true, _, _] => stdin.as_fd(),
            _ => return Ok(None),
        };
        let output = duplicate(output)?;
        let [stdin_is_terminal, ..] = replaces;
        let input = if stdin_is_terminal { Some(duplicate(stdin.as_fd())?) } else { None };
        let (master, slave) = pair(owner).map_err(RunError::system("making a pseudo-terminal"))?;

        if let Some(input) = &input {
            let settings = tcgetattr(input).map_err(RunError::system("reading the terminal"))?;
            tcsetattr(&slave, SetArg::TCSANOW, &settings)
                .map_err(RunError::system("setting the pseudo-terminal"))?;
        }
        let slave = Some(slave);
        let terminal = Self { master, slave, replaces, input, output, before: None };
        terminal.copy_window_size();
        Ok(Some(terminal))
    }

    pub(super) fn master(&self) -> &PtyMaster {
        &self.master
    }

    /// The command's side, until the command ended.
    pub(super) fn slave(&self) -> Option<BorrowedFd<'_>> {
        self.slave.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn replaces(&self) -> [bool; 3] {
        self.replaces
    }

    /// The caller's terminal to read from, while it is ours to read.
    pub(super) fn raw_input(&self) -> Option<BorrowedFd<'_>> {
        self.before.as_ref().and(self.input.as_ref()).map(AsFd::as_fd)
    }

    pub(super) fn output(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }

    /// Lets go of the command's side, so that the master ends when nobody else has it.
    pub(super) fn close_slave(&mut self) {
        self.slave = None;
    }

    /// Stops reading the caller's terminal for good.
    pub(super) fn close_input(&mut self) {
        self.leave_raw();
        self.input = None;
    }

    /// Gives the command's terminal the size of the caller's.
    pub(super) fn copy_window_size(&self) {
        if let Ok(size) = sys::window_size(self.output.as_fd()) {
            // A size is a courtesy: the command runs without.
            let _ = sys::set_window_size(self.master.as_fd(), &size);
        }
    }

    /// Whether the caller's terminal is to be read and is not in raw mode, because another job of
    /// the caller's shell has it.
    pub(super) fn waits_for_foreground(&self) -> bool {
        self.input.is_some() && self.before.is_none()
    }

    /// Puts the caller's terminal in raw mode, if it is to be read and this process is in its
    /// foreground: from the background that would take it from another job.
    pub(super) fn enter_raw(&mut self) {
        let Some(input) = &self.input else { return };
        // A terminal that is not the controlling one has no foreground to respect.
        let foreground = tcgetpgrp(input).map_or(true, |group| group == getpgrp());
        if self.before.is_some() || !foreground {
            return;
        }
        let Ok(before) = tcgetattr(input) else { return };
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        if self.replaces != [true; 3] {
            // What does not pass through the pseudo-terminal (`ambit run … | tee`) still needs its
            // line ends made here.
            let post = OutputFlags::OPOST;
            raw.output_flags.set(post, before.output_flags.contains(post));
        }
        if tcsetattr(input, SetArg::TCSANOW, &raw).is_ok() {
            self.before = Some(before);
        }
    }

    /// Puts the caller's terminal back as it was, at once: waiting until what was written is shown
    /// could wait for ever.
    pub(super) fn leave_raw(&mut self) {
        if let (Some(before), Some(input)) = (self.before.take(), &self.input) {
            while tcsetattr(input, SetArg::TCSANOW, &before) == Err(Errno::EINTR) {}
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.leave_raw();
    }
}

fn is_terminal(stream: &impl AsFd) -> bool {
    isatty(stream).unwrap_or(false)
}

fn duplicate(stream: BorrowedFd<'_>) -> Result<OwnedFd, RunError> {
    stream.try_clone_to_owned().map_err(|error| RunError::System {
        doing: "duplicating a standard stream",
        errno: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
    })
}

/// A pseudo-terminal that neither side inherits and that the owner may open by name.
fn pair(owner: Uid) -> Result<(PtyMaster, OwnedFd), Errno> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    // Writing to the master must not wait for a command that does not read.
    let master = posix_openpt(flags | OFlag::O_NONBLOCK)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = open(ptsname_r(&master)?.as_str(), flags, Mode::empty())?;
    fchown(&slave, Some(owner), None)?;
    Ok((master, slave))
}
