//! What changes of that which has a name and no place: abstract unix addresses, kinds of sockets and
//! privileges.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::{Action, Privilege, SocketKind};

use super::super::atoms::{Atoms, Pattern};
use super::super::model::Target;
use super::regions::{Patterns, Region, abstracts};
use super::{Both, Change, CompareError, Flip};

/// Everything with a name, one for each kind that policies tell apart.
pub(super) struct Names {
    patterns: Vec<Pattern>,
    /// Of abstract addresses the first is `@` alone.
    abstracts: Vec<Region>,
    any_named: bool,
    /// Whether that one is named.
    bare: bool,
}

impl Names {
    pub(super) fn new(atoms: &Atoms) -> Result<Self, CompareError> {
        let patterns: Vec<Pattern> = atoms.patterns.iter().cloned().collect();
        let mut named: Vec<&str> = vec!["@"];
        named.extend(atoms.abstracts.iter().map(String::as_str).filter(|name| *name != "@"));
        let (any_named, bare) = (!atoms.abstracts.is_empty(), atoms.abstracts.contains("@"));
        Ok(Self { abstracts: abstracts(&named, &patterns)?, patterns, any_named, bare })
    }

    pub(super) fn changes(&self, both: &Both) -> Vec<Change> {
        let mut changes = Vec::new();
        for action in [Action::Connect, Action::Bind] {
            self.of_sockets(action, both, &mut changes);
        }
        let kinds = SocketKind::ALL.iter();
        let kinds = kinds.map(|one| (Action::Socket, one.name(), Target::Socket(*one)));
        let privileges = Privilege::ALL.iter();
        let privileges =
            privileges.map(|one| (Action::Privilege, one.name(), Target::Privilege(*one)));
        for (action, name, target) in kinds.chain(privileges) {
            changes.extend(both.flip(action, &target).map(|flip| change(action, name, flip)));
        }
        changes
    }

    fn of_sockets(&self, action: Action, both: &Both, changes: &mut Vec<Change>) {
        // Of names that are named nowhere those that match the same patterns are judged alike.
        let mut others: BTreeMap<Patterns, Option<Flip>> = BTreeMap::new();
        for region in &self.abstracts {
            let flip = both.flip(action, &Target::UnixSocket(region.path.as_str().into()));
            if region.beneath || region.place == 0 && !self.bare {
                others.insert(region.like, flip);
            } else if let Some(flip) = flip {
                changes.push(change(action, &format!("unix socket {}", region.path), flip));
            }
        }
        let which = if self.any_named { "any other" } else { "any" };
        let every: BTreeSet<&Option<Flip>> = others.values().collect();
        if let (1, Some(Some(flip))) = (every.len(), every.first()) {
            changes.push(change(action, &format!("{which} abstract unix socket"), flip.clone()));
            return;
        }
        for (like, flip) in &others {
            let Some(flip) = flip else { continue };
            let each = self.patterns.iter().enumerate().filter_map(|(index, pattern)| {
                let is = |like: &Patterns| like >> index & 1 == 1;
                // What holds of all, or of none, tells nothing.
                let tells = others.keys().any(is) && !others.keys().all(is);
                let not = if is(like) { "" } else { "not " };
                tells.then(|| format!("{not}like \"{pattern}\""))
            });
            let each = each.collect::<Vec<_>>().join(" and ");
            let what = format!("{which} abstract unix socket where the path is {each}");
            changes.push(change(action, &what, flip.clone()));
        }
    }
}

fn change(action: Action, what: &str, flip: Flip) -> Change {
    Change {
        became: flip.became,
        action: action.name(),
        what: what.to_owned(),
        except: Vec::new(),
        before: BTreeSet::from([flip.before]),
        after: BTreeSet::from([flip.after]),
    }
}
