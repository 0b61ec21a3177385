//! Why a command could not be started or waited for, and the exit code that a shell would give.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

/// What the child was doing between fork and exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Making a session of its own.
    Session = 1,
    /// Taking the pseudo-terminal as its controlling terminal.
    ControllingTerminal,
    /// Putting the pseudo-terminal in the place of the caller's terminal.
    StandardStreams,
    /// Closing what it inherited.
    CloseFiles,
    /// Setting signals to their defaults.
    Signals,
    /// Joining a cgroup of the agent.
    Cgroup,
    /// Setting the supplementary groups.
    Groups,
    /// Becoming the user.
    User,
    /// Giving up gaining privileges by exec.
    NoNewPrivileges,
    /// Putting on the ceiling.
    Ceiling,
    /// Giving up capabilities.
    Capabilities,
    /// Leaving the caller's session keyring.
    Keyring,
    /// Executing the program.
    Exec,
}

impl Step {
    /// Every step, in the order in which the child takes them.
    pub(super) const ALL: [Self; 13] = [
        Self::Session,
        Self::ControllingTerminal,
        Self::StandardStreams,
        Self::CloseFiles,
        Self::Signals,
        Self::Cgroup,
        Self::Groups,
        Self::User,
        Self::NoNewPrivileges,
        Self::Ceiling,
        Self::Capabilities,
        Self::Keyring,
        Self::Exec,
    ];

    /// The step with this number, if there is one.
    pub(super) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u8 == number)
    }

    fn text(self) -> &'static str {
        match self {
            Self::Session => "making a session",
            Self::ControllingTerminal => "taking the pseudo-terminal",
            Self::StandardStreams => "connecting the standard streams",
            Self::CloseFiles => "closing inherited files (close_range, Linux 5.9 or later)",
            Self::Signals => "resetting signals",
            Self::Cgroup => "joining the cgroup",
            Self::Groups => "setting the groups",
            Self::User => "becoming the user",
            Self::NoNewPrivileges => "setting no_new_privs",
            Self::Ceiling => "putting on the Landlock ceiling",
            Self::Capabilities => "dropping capabilities",
            Self::Keyring => "leaving the caller's keyring",
            Self::Exec => "executing the program",
        }
    }
}

/// Why a command could not be started or waited for.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No command was given.
    #[error("no command to run: give it after `--`")]
    NoCommand,
    /// Without root there is no power to give away.
    #[error("starting an agent needs root: run this with sudo")]
    NotRoot,
    /// The ceiling could not be made.
    #[error("the Landlock ceiling over what the agent may change could not be made: {0}")]
    Ceiling(String),
    /// The agent would be root.
    #[error(
        "the command would run as root ({user}): name another user with --user, \
         or permit root with --allow-root"
    )]
    RootRefused {
        /// The user that was resolved.
        user: String,
    },
    /// There is no such user.
    #[error("there is no user `{name}`: give the name of a user or a number with --user")]
    UnknownUser {
        /// What was asked for.
        name: String,
    },
    /// What `sudo` left in the environment is no number.
    #[error("{variable}={value:?} is not a user or group number: name the user with --user")]
    BadSudo {
        /// The variable.
        variable: &'static str,
        /// What it holds.
        value: OsString,
    },
    /// The user's own group is one of the dangerous ones.
    #[error(
        "the primary group of {user} is {group}, which gives power over the machine: \
         name another user with --user, or permit it with --group {group}"
    )]
    DangerousPrimaryGroup {
        /// The user.
        user: String,
        /// The group.
        group: String,
    },
    /// A group that was asked for is not one of the user's.
    #[error("--group {group}: {user} is not a member of that group")]
    NotAMember {
        /// The user.
        user: String,
        /// The group.
        group: String,
    },
    /// The databases of users and groups did not answer.
    #[error("cannot look up {what} in the user database: {errno}")]
    Lookup {
        /// What was looked up.
        what: String,
        /// What the system said.
        errno: Errno,
    },
    /// There is no such program.
    #[error("{command:?}: command not found{}", searched(.path))]
    NotFound {
        /// The command as given.
        command: OsString,
        /// The `PATH` that was searched, or nothing when the command is a path.
        path: Option<OsString>,
    },
    /// The program is there and cannot be executed.
    #[error("{}: cannot be executed: {reason}", .program.display())]
    NotExecutable {
        /// The program.
        program: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The policy denied the command itself.
    #[error(
        "the policy of the agent does not permit running {}: permit `exec` of it in the policy",
        .program.display()
    )]
    Denied {
        /// The program.
        program: PathBuf,
    },
    /// A string cannot be handed to a program.
    #[error(
        "{what} {value:?} cannot be handed to a program: remove the NUL byte or the `=` from it"
    )]
    BadString {
        /// What the string is.
        what: &'static str,
        /// The string.
        value: OsString,
    },
    /// A cgroup file could not be opened.
    #[error("cannot open {} to put the command in its cgroup: {source}", .path.display())]
    CgroupFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another command is running in this process.
    #[error(
        "this process relays for another command already: start the second from another process"
    )]
    Busy,
    /// A system call of the launcher itself failed.
    #[error("cannot start the command: {doing}: {errno}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// What the system said.
        errno: Errno,
    },
    /// A step of the child failed before the program was executed.
    #[error("cannot start the command: {} on {on} failed: {errno}", .step.text())]
    Child {
        /// The step.
        step: Step,
        /// What it was on.
        on: String,
        /// What the system said.
        errno: Errno,
    },
}

impl RunError {
    /// The exit code that a shell would give: 127 not found, 126 not executable, else 125.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } | Self::Denied { .. } => 126,
            _ => 125,
        }
    }

    /// What an errno of `execve` means for the one who asked for `program`.
    pub(super) fn from_exec(program: PathBuf, command: OsString, errno: Errno) -> Self {
        let reason = match errno {
            Errno::EPERM => return Self::Denied { program },
            Errno::ENOENT if !program.exists() => {
                return Self::NotFound { command, path: None };
            }
            Errno::ENOENT => {
                "its interpreter does not exist: check the first line or the loader it names".into()
            }
            Errno::EACCES => {
                "permission denied: the user of the agent needs permission to execute \
                              it and to search the folders above it"
                    .into()
            }
            Errno::ENOEXEC => "it is neither a program of this machine nor begins with `#!`".into(),
            other => other.desc().to_owned(),
        };
        Self::NotExecutable { program, reason }
    }

    /// A failed call of the launcher itself.
    pub(super) fn system(doing: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::System { doing, errno }
    }
}

fn searched(path: &Option<OsString>) -> String {
    match path {
        Some(path) => format!(" in PATH={}", path.display()),
        None => ": no such file".to_owned(),
    }
}
