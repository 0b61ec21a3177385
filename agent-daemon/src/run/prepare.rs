//! Everything about a launch that can fail before a process exists.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

use super::ceiling::Ceiling;
use super::user::{self, Identity};
use super::{Launch, RunError};

/// Where programs are looked for when the caller has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A launch whose user, groups, program, environment and cgroup files are known and in hand.
#[derive(Debug)]
pub struct Prepared {
    pub(super) identity: Identity,
    /// The command as given, for messages.
    pub(super) command: OsString,
    /// The program as an absolute path.
    pub(super) program: PathBuf,
    /// The program as it is executed; relative when the caller gave it so, because the user may be
    /// able to use the working directory and not the folders above it.
    pub(super) executed: CString,
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
    /// The `cgroup.procs` files, open for writing.
    pub(super) cgroups: Vec<(PathBuf, File)>,
    pub(super) ceiling: Option<Ceiling>,
}

/// What is known of the one who calls.
pub(super) struct Caller {
    pub(super) uid: Uid,
    pub(super) effective: Uid,
    pub(super) environment: BTreeMap<OsString, OsString>,
}

impl Caller {
    pub(super) fn current() -> Self {
        Self {
            uid: Uid::current(),
            effective: Uid::effective(),
            environment: std::env::vars_os().collect(),
        }
    }
}

pub(super) fn prepare(launch: Launch, caller: &Caller) -> Result<Prepared, RunError> {
    let command = launch.command.first().cloned().ok_or(RunError::NoCommand)?;
    if !caller.effective.is_root() {
        return Err(RunError::NotRoot);
    }
    let variable = |name: &'static str| caller.environment.get(OsStr::new(name)).cloned();
    let identity =
        user::resolve(&launch.user, launch.allow_root, &launch.keep_groups, caller.uid, variable)?;

    let environment = environment(&caller.environment, &identity, &launch.environment)?;
    let path = environment.get(OsStr::new("PATH")).map_or(OsStr::new(DEFAULT_PATH), |path| path);
    let found = find(&command, path, &identity)?;
    let program = std::path::absolute(&found).unwrap_or_else(|_| found.clone());

    let arguments = launch
        .command
        .into_iter()
        .map(|argument| c_string("argument", argument))
        .collect::<Result<Vec<_>, _>>()?;
    let variables = environment
        .into_iter()
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            c_string("variable", name)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let cgroups = launch
        .cgroup_procs
        .into_iter()
        .map(|path| match OpenOptions::new().write(true).open(&path) {
            Ok(file) => Ok((path, file)),
            Err(source) => Err(RunError::CgroupFile { path, source }),
        })
        .collect::<Result<Vec<_>, _>>()?;

    let ceiling = match &launch.ceiling {
        Some(folders) => Ceiling::over(folders)?,
        None => None,
    };

    Ok(Prepared {
        identity,
        command,
        program,
        executed: c_string("program", found.into_os_string())?,
        arguments,
        environment: variables,
        cgroups,
        ceiling,
    })
}

/// The environment of the child: the caller's, as the user, without what `sudo` left of the caller.
fn environment(
    caller: &BTreeMap<OsString, OsString>,
    identity: &Identity,
    extra: &[(OsString, OsString)],
) -> Result<BTreeMap<OsString, OsString>, RunError> {
    let mut environment = caller.clone();
    // `MAIL` is the mailbox of whom the caller was made by sudo.
    environment.retain(|name, _| !name.as_bytes().starts_with(b"SUDO_") && name != "MAIL");
    environment.insert("HOME".into(), identity.home.clone().into());
    environment.insert("USER".into(), identity.name.clone().into());
    environment.insert("LOGNAME".into(), identity.name.clone().into());
    environment.insert("SHELL".into(), identity.shell.clone().into());
    for (name, value) in extra {
        if name.is_empty() || name.as_bytes().contains(&b'=') {
            return Err(RunError::BadString { what: "variable", value: name.clone() });
        }
        environment.insert(name.clone(), value.clone());
    }
    Ok(environment)
}

fn c_string(what: &'static str, value: OsString) -> Result<CString, RunError> {
    CString::new(value.clone().into_vec()).map_err(|_| RunError::BadString { what, value })
}

/// Finds the program as the shell would for that user: a command with a slash is a path, any other
/// is looked for in `path`.
fn find(command: &OsStr, path: &OsStr, identity: &Identity) -> Result<PathBuf, RunError> {
    if command.as_bytes().contains(&b'/') {
        let program = PathBuf::from(command);
        return match fits(&program, identity) {
            Fit::Missing => Err(RunError::NotFound { command: command.to_owned(), path: None }),
            Fit::NotAProgram(reason) => {
                Err(RunError::NotExecutable { program, reason: reason.to_owned() })
            }
            // For a program that only others may execute the kernel has the last word: the user may
            // have permission by an access list.
            Fit::ForOthers | Fit::ForUser => Ok(program),
        };
    }
    let mut for_others = None;
    let mut refused = None;
    for folder in path.as_bytes().split(|byte| *byte == b':') {
        if command.is_empty() {
            break;
        }
        // An empty entry is the working directory.
        let folder = if folder.is_empty() { b"." } else { folder };
        let program = Path::new(OsStr::from_bytes(folder)).join(command);
        match fits(&program, identity) {
            Fit::ForUser => return Ok(program),
            Fit::ForOthers => {
                for_others.get_or_insert(program);
            }
            Fit::NotAProgram(reason) => {
                refused.get_or_insert((program, reason));
            }
            Fit::Missing => {}
        }
    }
    match (for_others, refused) {
        (Some(program), _) => Ok(program),
        (None, Some((program, reason))) => {
            Err(RunError::NotExecutable { program, reason: reason.to_owned() })
        }
        (None, None) => {
            Err(RunError::NotFound { command: command.to_owned(), path: Some(path.to_owned()) })
        }
    }
}

enum Fit {
    Missing,
    NotAProgram(&'static str),
    ForOthers,
    ForUser,
}

/// Whether there is a program there, and whether the mode bits let the user execute it.
fn fits(program: &Path, identity: &Identity) -> Fit {
    let metadata = match fs::metadata(program) {
        Ok(metadata) => metadata,
        Err(_) => return Fit::Missing,
    };
    if metadata.is_dir() {
        return Fit::NotAProgram("it is a folder: give the path of a program");
    }
    if !metadata.is_file() {
        return Fit::NotAProgram("it is not a regular file: give the path of a program");
    }
    if metadata.mode() & 0o111 == 0 {
        return Fit::NotAProgram("permission denied: nobody may execute it (chmod +x)");
    }
    let reachable = match fs::canonicalize(program) {
        Ok(real) => real.ancestors().skip(1).all(|folder| {
            fs::metadata(folder).is_ok_and(|metadata| may_execute(&metadata, identity))
        }),
        Err(_) => false,
    };
    if reachable && may_execute(&metadata, identity) { Fit::ForUser } else { Fit::ForOthers }
}

fn may_execute(metadata: &fs::Metadata, identity: &Identity) -> bool {
    let mode = metadata.mode();
    let group = metadata.gid();
    if identity.uid.is_root() {
        mode & 0o111 != 0
    } else if metadata.uid() == identity.uid.as_raw() {
        mode & 0o100 != 0
    } else if identity.gid.as_raw() == group
        || identity.groups.iter().any(|kept| kept.as_raw() == group)
    {
        mode & 0o010 != 0
    } else {
        mode & 0o001 != 0
    }
}
