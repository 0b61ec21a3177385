//! Names for the numbers that the kernel half deals in, shared by everyone who explains.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant, SystemTime},
};

use agent_ebpf::{Mode, NamedKey, RuleId};
use serde::{Deserialize, Serialize};

use super::{names::KnownNames, objects::View};
use crate::{
    events::{AgentInfo, Names},
    kernel::{fanotify::Root, tables::Objects},
    policy::{self, Attempt, Attributes, HashedTables, Lowered, Notes},
};

/// Where an agent's policy comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// Given once, by `ambit run`; the text is what was read then.
    Run {
        /// The policy file's name, for messages.
        name: String,
        /// Its text.
        text: String,
        /// What was given with it: more policies, and files of entities.
        #[serde(default)]
        more: Vec<policy::Source>,
    },
    /// The policy folder; follows reloads.
    Folder,
}

/// One agent that runs, or has just ended.
#[derive(Debug)]
pub struct AgentEntry {
    /// Its name in policies.
    pub name: String,
    /// Its groups in policies.
    pub groups: Vec<String>,
    /// What else policies know of it.
    pub attributes: Attributes,
    /// Its stable identity.
    pub uid: String,
    /// This run of it.
    pub instance: String,
    /// What happens to what is not permitted.
    pub mode: Mode,
    /// Where its policy comes from.
    pub source: Source,
    /// Its cgroup's folder.
    pub cgroup: PathBuf,
    /// The kernel's id of that cgroup.
    pub cgroup_id: u64,
    /// Its cgroup's path in the hierarchy, as `/proc/PID/cgroup` has it.
    pub cgroup_path: String,
    /// The cgroup of the version 1 pids controller, where the host has that.
    pub pids_cgroup: Option<PathBuf>,
    /// Since when.
    pub since: SystemTime,
    /// Its events go here and not to the common file.
    pub events: Option<PathBuf>,
    /// Its policy set.
    pub set: u32,
    /// What was denied, or would have been, for the lines that would permit it.
    pub attempts: Vec<Attempt>,
    /// Allowed, denied, would have been denied.
    pub counts: [u64; 3],
    /// The root that it was enrolled with, for the fanotify backend.
    pub root: Option<Root>,
    /// The process that asked for it, while it holds it.
    pub holder: Option<u32>,
    /// Connections of `ambit run` that still hold it.
    pub holders: u32,
    /// It has ended; its name is kept for events on their way.
    pub ended: bool,
}

/// One policy set.
#[derive(Debug)]
pub struct SetEntry {
    /// Its rules' names.
    pub lowered: Arc<Lowered>,
    /// Its tables, for judging outside the kernel.
    pub hashed: Arc<HashedTables>,
    /// Where its paths are meant.
    pub view: View,
    /// The objects that it forbids, as the kernel half has them.
    pub objects: Objects,
    /// When they were last looked up, and how long that took.
    pub looked: (Instant, Duration),
    /// The generation of the policy it was made from.
    pub generation: u64,
    /// On its way out: only its names are still of use.
    pub retired: bool,
}

/// All agents and sets.
#[derive(Debug, Default)]
pub struct Inner {
    /// By number.
    pub agents: HashMap<u32, AgentEntry>,
    /// By number.
    pub sets: HashMap<u32, SetEntry>,
    /// What agents were told of names.
    pub names: KnownNames,
    /// How often a policy folder was taken.
    pub generation: u64,
}

/// All agents and sets, behind one lock that is only ever held for a moment.
#[derive(Debug, Default)]
pub struct Directory(RwLock<Inner>);

impl Directory {
    /// To look.
    pub fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To change.
    pub fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// A set that says the same of the same file tree, and is not on its way out.
    pub fn shared(&self, lowered: &Arc<Lowered>, view: &View) -> Option<u32> {
        let same = |other: &Arc<Lowered>| {
            Arc::ptr_eq(other, lowered) || other.as_ref() == lowered.as_ref()
        };
        self.sets
            .iter()
            .find(|(_, set)| !set.retired && set.view == *view && same(&set.lowered))
            .map(|(number, _)| *number)
    }

    /// The agent of this name that runs.
    pub fn running(&self, name: &str) -> impl Iterator<Item = (u32, &AgentEntry)> {
        self.agents
            .iter()
            .filter(move |(_, agent)| agent.name == name && !agent.ended)
            .map(|(number, agent)| (*number, agent))
    }
}

impl Names for Inner {
    fn agent(&self, id: u32) -> Option<AgentInfo<'_>> {
        self.agents.get(&id).map(|agent| AgentInfo {
            name: &agent.name,
            uid: &agent.uid,
            instance_uid: &agent.instance,
            charter: None,
            mode: agent.mode,
        })
    }

    fn rule(&self, set: u32, rule: RuleId) -> Option<&str> {
        self.sets.get(&set)?.lowered.rule_name(rule)
    }

    fn notes(&self, set: u32, rule: RuleId) -> Option<Notes<'_>> {
        Some(self.sets.get(&set)?.lowered.rule(rule)?.notes())
    }

    fn hosts(&self, key: &NamedKey) -> Vec<&str> {
        self.names.of(key)
    }

    fn generation(&self, set: u32) -> Option<u64> {
        self.sets.get(&set).map(|entry| entry.generation)
    }
}
