//! The most that an agent may ever be permitted to change: folders beneath which all that any permit
//! allows to write lies, and every place where it allows a unix socket. A ceiling is wider than the
//! policy and never narrower.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use agent_ebpf::{Action, Privilege};

use super::Policies;
use super::formula::{Atom, Atoms, Formula};
use super::lower;
use super::rule::{Agent, Effect};
use super::scope::Type;

/// What Landlock keeps from whoever is under a ceiling, whatever lies beneath it.
const KEPT: [Privilege; 3] = [Privilege::Ptrace, Privilege::Mount, Privilege::Capability];

/// These folders; `None` when a permit allows what no ceiling lets through: to trace others, to mount, or
/// to make devices. What a permit names alone counts as the folder that it is in, since it may be
/// replaced by another object of its name.
#[must_use]
pub fn ceiling(policies: &Policies, agent: &Agent) -> Option<BTreeSet<PathBuf>> {
    let mut folders = BTreeSet::new();
    for rule in policies.rules.iter().filter(|rule| rule.info.effect == Effect::Permit) {
        let mut atoms = Atoms::default();
        let left = lower::rest(rule, agent, Action::Privilege, Type::Privilege, &mut atoms);
        let permits = |one: &Privilege| {
            let named = |id| atoms.get(id) == Some(&Atom::Object(one.name().as_bytes().to_vec()));
            left.holds(&named)
        };
        if KEPT.iter().any(permits) {
            return None;
        }
        for (action, kind) in [
            (Action::Write, Type::File),
            (Action::Write, Type::Dir),
            (Action::Bind, Type::UnixSocket),
        ] {
            let mut atoms = Atoms::default();
            let left = lower::rest(rule, agent, action, kind, &mut atoms);
            folders.extend(above(&left, kind, &atoms));
        }
    }
    let all = folders.clone();
    folders.retain(|folder| !folder.ancestors().skip(1).any(|above| all.contains(above)));
    Some(folders)
}

/// Folders that hold all for which something holds.
fn above(formula: &Formula, kind: Type, atoms: &Atoms) -> BTreeSet<PathBuf> {
    let root = Path::new("/");
    let one = |folder: &Path| BTreeSet::from([folder.to_path_buf()]);
    let path = |bytes| Path::new(OsStr::from_bytes(bytes));
    match formula {
        Formula::Const(false) => BTreeSet::new(),
        Formula::Const(true) | Formula::Not(_) => one(root),
        Formula::Atom(id) => match atoms.get(*id) {
            // Of an abstract unix address nothing is in the file tree.
            Some(Atom::Object(name) | Atom::Beneath(name) | Atom::Prefix(name))
                if name.starts_with(b"@") =>
            {
                BTreeSet::new()
            }
            Some(Atom::Object(place)) if kind == Type::Dir => one(path(place)),
            Some(Atom::Object(place)) => one(path(place).parent().unwrap_or(root)),
            Some(Atom::Beneath(folder)) if !folder.is_empty() => one(path(folder)),
            Some(Atom::Labelled(label, objects)) => {
                let places = label.places(*objects).filter(|(place, _)| place.starts_with('/'));
                let folder = |(place, is_dir): (&str, bool)| {
                    let place = Path::new(place);
                    if is_dir { place } else { place.parent().unwrap_or(root) }.to_path_buf()
                };
                places.map(folder).collect()
            }
            Some(Atom::Prefix(bytes)) => one(path(whole_components(bytes))),
            Some(Atom::Like(pattern)) => one(path(whole_components(pattern.beginning()))),
            Some(
                Atom::Beneath(_)
                | Atom::Suffix(_)
                | Atom::Content(_)
                | Atom::Address(_)
                | Atom::Port(..)
                | Atom::Protocol(_)
                | Atom::HasHost
                | Atom::Host(_)
                | Atom::HostEnds(_)
                | Atom::Agent(_),
            )
            | None => one(root),
        },
        Formula::Any(parts) => {
            let atom = |part: &Formula| match part {
                Formula::Atom(id) => atoms.get(*id).cloned(),
                _ => None,
            };
            // The folder itself, and what lies beneath it, is one folder.
            let is_folder = |part: &&Formula| match atom(part) {
                Some(Atom::Object(place)) => {
                    parts.iter().any(|one| atom(one) == Some(Atom::Beneath(place.clone())))
                }
                _ => false,
            };
            let parts = parts.iter().filter(|part| !is_folder(part));
            parts.flat_map(|part| above(part, kind, atoms)).collect()
        }
        // Each part holds it all; one that says something is enough.
        Formula::All(parts) => {
            let mut each = parts.iter().map(|part| above(part, kind, atoms));
            each.find(|folders| !folders.contains(root)).unwrap_or_else(|| one(root))
        }
        Formula::If(parts) => {
            let [_, then, other] = &**parts;
            [then, other].into_iter().flat_map(|part| above(part, kind, atoms)).collect()
        }
    }
}

/// The folder that every path which begins so lies beneath.
fn whole_components(bytes: &[u8]) -> &[u8] {
    match bytes.iter().rposition(|byte| *byte == b'/') {
        Some(slash) if slash > 0 => bytes.get(..slash).unwrap_or(b"/"),
        _ => b"/",
    }
}
