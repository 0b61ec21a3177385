//! What a change of policy changes: everything that becomes reachable, and everything that ceases to
//! be, for every agent.
//!
//! Two policies can differ only between what they tell apart. So each named place is asked for itself
//! and for what lies beneath it and beneath no other named place, there once for each set of patterns
//! that a path can match; addresses and ports are split wherever any range begins or ends; and of what
//! is named nowhere, one stands for all. Every one of these is judged under both policies by the tables
//! themselves, which makes the answer exact; afterwards neighbours that changed alike are told in one
//! line.

mod named;
mod peers;
mod places;
mod regions;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use agent_ebpf::{Action, Decision, Reason};
use serde::Serialize;

use super::atoms::Atoms;
use super::content::Digest;
use super::explain::{Judge, JudgeError};
use super::formula::AgentTest;
use super::model::Target;
use super::rule::{Agent, AgentName};
use super::{Policies, PolicyError};
use named::Names;
use peers::Peers;
use places::Places;

/// The most sets of groups that agents are thought to be in, for each name.
const GROUPINGS_MAX: usize = 64;
/// The most questions that are put to each policy.
const QUESTIONS_MAX: usize = 20_000_000;

/// Why policies cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompareError {
    /// They tell something apart that is not understood here.
    #[error(
        "the policies ask for {0}, by which they cannot be compared yet; use `ambit policy explain` on each"
    )]
    Unknown(String),
    /// Agents differ in more than their names and groups.
    #[error(
        "the policies ask for {0}, in which agents may differ in too many ways; name one with --agent"
    )]
    Attributes(String),
    /// Patterns make more kinds of paths than can be looked at.
    #[error(
        "the policies' patterns tell more than {0} kinds of paths apart, too many to compare; compare fewer policies at once"
    )]
    Patterns(usize),
    /// Too many groups to think of every agent that may be in them.
    #[error(
        "the policies name {0} groups, which agents may be in in too many ways; name one with --agent and --group"
    )]
    Groups(usize),
    /// Too many ranges of addresses, ports and protocols.
    #[error(
        "the policies split addresses, ports and protocols into {0} parts; at most {QUESTIONS_MAX} are compared"
    )]
    Questions(usize),
    /// Too many contents of programs at too many places.
    #[error(
        "the policies tell {contents} contents of programs apart at {places} places; at most {QUESTIONS_MAX} \
         questions are compared"
    )]
    Contents {
        /// How many, with one for all others.
        contents: usize,
        /// Kinds of paths.
        places: usize,
    },
    /// Cedar refused what it took before.
    #[error("Cedar refused the policies, which it took before: {0}")]
    Policies(String),
    /// They are not lowered for an agent.
    #[error(transparent)]
    Judge(#[from] JudgeError),
}

/// Whether something became reachable, or ceased to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Became {
    /// It is permitted now.
    Reachable,
    /// It was permitted before.
    Unreachable,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Change {
    /// In which direction.
    pub became: Became,
    /// What is done.
    pub action: &'static str,
    /// To what.
    pub what: String,
    /// What of it stays as it was.
    pub except: Vec<String>,
    /// The policies that decided before, or in brackets why none did.
    pub before: BTreeSet<String>,
    /// Those that decide now.
    pub after: BTreeSet<String>,
}

/// The changes for some agents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Changes {
    /// Whom they are for, such as `agent coder`, `any other agent in the group builders`.
    pub agents: Vec<String>,
    /// What changes for each of them.
    pub changes: Vec<Change>,
}

/// Compares two sets of policies, for one agent or for all that there can be. Nothing found means
/// that they permit the same.
///
/// # Errors
/// They cannot be compared exactly.
pub fn compare(
    old: &Policies,
    new: &Policies,
    only: Option<&Agent>,
) -> Result<Vec<Changes>, CompareError> {
    let atoms = |policies: &Policies| policies.cedar().map(|set| Atoms::of(&set, &policies.labels));
    let atoms = atoms(old)
        .and_then(|old| atoms(new).map(|new| old.and(new)))
        .map_err(CompareError::Policies)?;
    if !atoms.others.is_empty() {
        let list: Vec<&str> = atoms.others.iter().map(String::as_str).collect();
        return Err(CompareError::Unknown(list.join(", ")));
    }
    if only.is_none() && !atoms.of_agents.is_empty() {
        let list: Vec<&str> = atoms.of_agents.iter().map(String::as_str).collect();
        return Err(CompareError::Attributes(list.join(", ")));
    }
    let places = Places::new(&atoms)?;
    let peers = Peers::new(&atoms)?;
    let names = Names::new(&atoms)?;
    let mut found: Vec<(Vec<Named>, Vec<Change>)> = Vec::new();
    for subject in subjects(&atoms, only)? {
        let judge = |policies| Judge::new(policies, subject.subject.clone(), &[]);
        let mut both = Both { old: judge(old)?, new: judge(new)? };
        let mut changes = places.changes(&mut both);
        changes.extend(peers.changes(&both));
        changes.extend(names.changes(&both));
        changes.sort();
        // An agent in groups is told of only when this is not what the agent, or one in fewer groups,
        // is told already.
        let told = found
            .iter()
            .any(|(of, known)| *known == changes && of.iter().any(|one| one.is_told_by(&subject)));
        if changes.is_empty() || told {
            continue;
        }
        match found.iter_mut().find(|(_, known)| *known == changes) {
            Some((of, _)) => of.push(subject),
            None => found.push((vec![subject], changes)),
        }
    }
    let named = |(of, changes): (Vec<Named>, Vec<Change>)| Changes {
        agents: of.iter().map(Named::text).collect(),
        changes,
    };
    Ok(found.into_iter().map(named).collect())
}

/// The most rules that are looked at to find whether agents' tables have room.
const LOOKS_MAX: usize = 20_000_000;

/// Lowers policies for the agents that they can tell from others by name and groups, as long as rules times
/// agents stay within a bound, and says how many agents were tried. What else policies ask of agents is
/// taken to be unknown; where they name too many groups, an agent is tried in none and in all of them.
///
/// # Errors
/// An agent's tables have no room for the policies, with the place of one of them.
pub fn bounds(policies: &Policies) -> Result<usize, PolicyError> {
    let mut atoms = Atoms::default();
    for question in policies.questions.iter() {
        match question {
            AgentTest::Is(name) => drop(atoms.agents.insert(name.clone())),
            AgentTest::In(group) => drop(atoms.groups.insert(group.clone())),
            AgentTest::Has(_) | AgentTest::Attribute(..) | AgentTest::Label(_) => {}
        }
    }
    let subjects = subjects(&atoms, None).or_else(|_| {
        let groups = std::mem::take(&mut atoms.groups);
        let mut found = subjects(&atoms, None)?;
        let every: Vec<String> = groups.into_iter().collect();
        let more: Vec<Agent> = found.iter().map(|one| one.subject.clone()).collect();
        found.extend(more.into_iter().map(|one| Named {
            subject: Agent { groups: every.clone(), ..one },
            other: false,
            alone: true,
        }));
        Ok::<_, CompareError>(found)
    });
    let most = (LOOKS_MAX / policies.rules.len().max(1)).max(1);
    // Kept, so that agents for whom the same is left are lowered once.
    let mut known = Vec::new();
    for one in subjects.unwrap_or_default().into_iter().take(most) {
        known.push(policies.lower(&one.subject, &[])?);
    }
    Ok(known.len())
}

/// The comparison for people, one line for each change.
#[must_use]
pub fn text(all: &[Changes]) -> String {
    let mut text = String::new();
    let list = |ids: &BTreeSet<String>| ids.iter().cloned().collect::<Vec<_>>().join(", ");
    // Writing to a `String` cannot fail.
    for one in all {
        let _ = writeln!(text, "{}:", one.agents.join("; "));
        for change in &one.changes {
            let sign = match change.became {
                Became::Reachable => '+',
                Became::Unreachable => '-',
            };
            let _ = write!(text, "{sign} {:<7} {}", change.action, change.what);
            for (index, part) in change.except.iter().enumerate() {
                let _ = write!(text, "{}{part}", if index == 0 { ", except " } else { ", " });
            }
            let _ = writeln!(text, "  [{} -> {}]", list(&change.before), list(&change.after));
        }
    }
    text
}

/// An agent, and how it is spoken of.
struct Named {
    subject: Agent,
    /// It stands for all that have no name in the policies.
    other: bool,
    /// The user chose it.
    alone: bool,
}

impl Named {
    /// Whether what is told of this one is told of another too: the same name in more groups.
    fn is_told_by(&self, more: &Self) -> bool {
        let fewer = self.subject.groups.iter().all(|group| more.subject.groups.contains(group));
        fewer && self.subject.name == more.subject.name
    }

    fn text(&self) -> String {
        let mut text = if self.other {
            "any other agent".to_owned()
        } else {
            format!("agent {}", self.subject.name)
        };
        let groups = self.subject.groups.join(", ");
        if !groups.is_empty() {
            let _ = write!(text, " in {groups}");
        } else if !self.other && !self.alone {
            text.push_str(" in no group that is named");
        }
        text
    }
}

/// Every agent that policies can tell from others: each name, and one that has none, in each set of
/// groups; those in fewer groups first.
fn subjects(atoms: &Atoms, only: Option<&Agent>) -> Result<Vec<Named>, CompareError> {
    if let Some(subject) = only {
        return Ok(vec![Named { subject: subject.clone(), other: false, alone: true }]);
    }
    let groups: Vec<&String> = atoms.groups.iter().collect();
    let sets = 1_usize.checked_shl(groups.len() as u32).unwrap_or(usize::MAX);
    if sets > GROUPINGS_MAX {
        return Err(CompareError::Groups(groups.len()));
    }
    let mut sets: Vec<Vec<String>> = (0..sets)
        .map(|set| {
            let chosen = groups.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1);
            chosen.map(|(_, group)| (*group).clone()).collect()
        })
        .collect();
    sets.sort_by_key(Vec::len);
    let mut names: Vec<(AgentName, bool)> = atoms
        .agents
        .iter()
        .filter_map(|name| AgentName::parse(name).ok())
        .map(|name| (name, false))
        .collect();
    let mut other = "other".to_owned();
    while atoms.agents.contains(&other) {
        other.push('-');
    }
    names.extend(AgentName::parse(&other).map(|name| (name, true)));
    let mut found = Vec::new();
    for groups in sets {
        for (name, other) in &names {
            let subject = Agent { groups: groups.clone(), ..Agent::named(name.clone()) };
            found.push(Named { subject, other: *other, alone: atoms.groups.is_empty() });
        }
    }
    Ok(found)
}

/// The two policies of one agent.
struct Both {
    old: Judge,
    new: Judge,
}

/// How one request is judged differently.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flip {
    became: Became,
    before: String,
    after: String,
}

impl Both {
    /// From now on programs are asked about that contain this.
    fn set_content(&mut self, content: Option<Digest>) {
        self.old.set_content(content);
        self.new.set_content(content);
    }

    fn flip(&self, action: Action, target: &Target) -> Option<Flip> {
        let (old, new) = (self.old.decide(action, target), self.new.decide(action, target));
        let allows = |decision: Decision| decision.reason == Reason::Permitted;
        let became = match (allows(old), allows(new)) {
            (false, true) => Became::Reachable,
            (true, false) => Became::Unreachable,
            (true, true) | (false, false) => return None,
        };
        Some(Flip { became, before: self.old.decider(old), after: self.new.decider(new) })
    }
}
