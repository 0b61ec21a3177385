//! Who the command will be: the user, and which of the user's groups it keeps.

use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User};

use super::{RunAs, RunError};

/// Groups whose members can become root or read what only root may: the command does not get them
/// unless asked for.
///
/// Gid 0 counts as `root` whatever its name.
pub const DANGEROUS_GROUPS: [&str; 20] = [
    "root",
    "adm",
    "admin",
    "containerd",
    "disk",
    "docker",
    "incus",
    "incus-admin",
    "input",
    "kmem",
    "kvm",
    "libvirt",
    "lxd",
    "podman",
    "shadow",
    "staff",
    "sudo",
    "systemd-journal",
    "tty",
    "wheel",
];

/// The user and groups of the command, resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    /// The supplementary groups that are kept.
    pub(super) groups: Vec<Gid>,
    /// The names of those that are not.
    pub(super) dropped: Vec<String>,
    pub(super) name: String,
    pub(super) home: PathBuf,
    pub(super) shell: PathBuf,
}

/// Resolves whom the command runs as; `variable` reads the caller's environment.
///
/// # Errors
/// An unknown user, root without `allow_root`, a dangerous primary group, a group asked for that
/// is not the user's, and a user database that does not answer.
pub(super) fn resolve(
    user: &RunAs,
    allow_root: bool,
    keep_groups: &[String],
    caller: Uid,
    variable: impl Fn(&'static str) -> Option<OsString>,
) -> Result<Identity, RunError> {
    let (uid, entry, fallback_gid) = match user {
        RunAs::Invoker => {
            let uid = number("SUDO_UID", variable("SUDO_UID"))?.map_or(caller, Uid::from_raw);
            let gid = number("SUDO_GID", variable("SUDO_GID"))?.map(Gid::from_raw);
            (uid, by_uid(uid)?, gid)
        }
        RunAs::Named(name) => {
            let entry = User::from_name(name).map_err(lookup(format!("user {name}")))?;
            match entry {
                Some(entry) => (entry.uid, Some(entry), None),
                None => {
                    let raw = parse(name.as_ref())
                        .ok_or_else(|| RunError::UnknownUser { name: name.clone() })?;
                    let uid = Uid::from_raw(raw);
                    (uid, by_uid(uid)?, None)
                }
            }
        }
    };
    let name = entry.as_ref().map_or_else(|| uid.to_string(), |entry| entry.name.clone());
    if uid.is_root() && !allow_root {
        return Err(RunError::RootRefused { user: name });
    }
    // A number without an entry has no group of its own: its own number is the only one that gives
    // it nothing of anyone else's.
    let gid = entry
        .as_ref()
        .map(|entry| entry.gid)
        .or(fallback_gid)
        .unwrap_or_else(|| Gid::from_raw(uid.as_raw()));
    let members = match &entry {
        Some(entry) => of_user(entry)?,
        None => vec![gid],
    };

    let names = GroupNames::look_up(members.iter().chain([&gid]).copied())?;
    let wanted = |group: Gid| {
        keep_groups
            .iter()
            .any(|wanted| names.name(group) == *wanted || names.gid_of(wanted) == Some(group))
    };
    for group in keep_groups {
        let is_member = names.gid_of(group).is_some_and(|gid| members.contains(&gid))
            || members.iter().any(|gid| names.name(*gid) == *group);
        if !is_member {
            return Err(RunError::NotAMember { user: name, group: group.clone() });
        }
    }
    if names.is_dangerous(gid) && !wanted(gid) && !uid.is_root() {
        return Err(RunError::DangerousPrimaryGroup { user: name, group: names.name(gid) });
    }
    let (kept, dropped): (Vec<Gid>, Vec<Gid>) = members
        .into_iter()
        .partition(|group| *group == gid || !names.is_dangerous(*group) || wanted(*group));

    let (home, shell) = match entry {
        Some(entry) => (entry.dir, entry.shell),
        None => (PathBuf::from("/"), PathBuf::new()),
    };
    Ok(Identity {
        uid,
        gid,
        groups: kept,
        dropped: dropped.into_iter().map(|group| names.name(group)).collect(),
        name,
        home,
        shell: usable_shell(shell),
    })
}

/// The user's shell, or `/bin/sh` for users who may not log in: agents run their tools by `$SHELL`.
fn usable_shell(shell: PathBuf) -> PathBuf {
    let refuses = shell.file_name().is_none_or(|name| name == "nologin" || name == "false");
    if refuses { PathBuf::from("/bin/sh") } else { shell }
}

fn by_uid(uid: Uid) -> Result<Option<User>, RunError> {
    User::from_uid(uid).map_err(lookup(format!("user {uid}")))
}

fn of_user(entry: &User) -> Result<Vec<Gid>, RunError> {
    let what = || format!("the groups of {}", entry.name);
    let name = CString::new(entry.name.as_str())
        .map_err(|_| RunError::Lookup { what: what(), errno: Errno::EINVAL })?;
    nix::unistd::getgrouplist(&name, entry.gid).map_err(lookup(what()))
}

fn lookup(what: String) -> impl FnOnce(Errno) -> RunError {
    move |errno| RunError::Lookup { what, errno }
}

fn number(variable: &'static str, value: Option<OsString>) -> Result<Option<u32>, RunError> {
    let Some(value) = value else { return Ok(None) };
    match parse(&value) {
        Some(number) => Ok(Some(number)),
        None => Err(RunError::BadSudo { variable, value }),
    }
}

/// A user or group number: digits only, and not the highest, which to the kernel means "leave as
/// it is" and would so leave the command root.
fn parse(text: &OsStr) -> Option<u32> {
    let text = text.to_str().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse().ok().filter(|number| *number != u32::MAX)
}

/// Names of the groups at hand, and the numbers of the dangerous ones: a group is dangerous by its
/// number, so that a second name for it does not hide it.
struct GroupNames {
    names: HashMap<Gid, String>,
    dangerous: HashMap<&'static str, Gid>,
}

impl GroupNames {
    fn look_up(groups: impl Iterator<Item = Gid>) -> Result<Self, RunError> {
        let mut names = HashMap::new();
        for gid in groups {
            let group = Group::from_gid(gid).map_err(lookup(format!("group {gid}")))?;
            names.insert(gid, group.map_or_else(|| gid.to_string(), |group| group.name));
        }
        let mut dangerous = HashMap::new();
        for name in DANGEROUS_GROUPS {
            let group = Group::from_name(name).map_err(lookup(format!("group {name}")))?;
            if let Some(group) = group {
                dangerous.insert(name, group.gid);
            }
        }
        dangerous.insert("root", Gid::from_raw(0));
        Ok(Self { names, dangerous })
    }

    fn name(&self, gid: Gid) -> String {
        self.names.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }

    fn gid_of(&self, name: &str) -> Option<Gid> {
        self.dangerous.get(name).copied()
    }

    fn is_dangerous(&self, gid: Gid) -> bool {
        self.dangerous.values().any(|dangerous| *dangerous == gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn as_named(name: &str) -> Result<Identity, RunError> {
        resolve(&RunAs::Named(name.to_owned()), false, &[], Uid::from_raw(0), |_| None)
    }

    fn as_sudo(uid: &'static str) -> Result<Identity, RunError> {
        resolve(&RunAs::Invoker, false, &[], Uid::from_raw(0), move |name| {
            (name == "SUDO_UID").then(|| uid.into())
        })
    }

    #[test]
    fn refuses_root_by_name_number_sudo_and_as_caller() {
        for result in [
            as_named("root"),
            as_named("0"),
            as_named("000"),
            as_sudo("0"),
            resolve(&RunAs::Invoker, false, &[], Uid::from_raw(0), |_| None),
        ] {
            let message = result.unwrap_err().to_string();
            assert!(message.contains("--user") && message.contains("--allow-root"), "{message}");
        }
    }

    #[test]
    fn refuses_numbers_that_would_leave_the_command_root() {
        for text in ["4294967295", "4294967296", "-1", "+5", "", "12x"] {
            assert!(matches!(as_named(text), Err(RunError::UnknownUser { .. })), "{text}");
        }
        assert!(matches!(as_sudo("4294967295"), Err(RunError::BadSudo { .. })));
    }

    #[test]
    fn a_number_without_an_entry_gets_its_own_number_as_group_and_the_root_folder_as_home() {
        let identity = as_named("54321").unwrap();
        assert_eq!((identity.uid.as_raw(), identity.gid.as_raw()), (54321, 54321));
        assert_eq!(identity.groups, [Gid::from_raw(54321)]);
        assert_eq!((identity.name.as_str(), identity.home), ("54321", PathBuf::from("/")));
    }

    #[test]
    fn a_group_that_the_user_is_not_in_cannot_be_kept() {
        let keep = ["disk".to_owned()];
        let named = RunAs::Named("54321".to_owned());
        let result = resolve(&named, false, &keep, Uid::from_raw(0), |_| None);
        assert!(matches!(result, Err(RunError::NotAMember { .. })));
    }
}
