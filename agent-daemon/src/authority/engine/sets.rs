//! Policy sets: made, shared, swapped by one write, retired; and what is Ambit's own.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Instant};

use agent_ebpf::{Agent, MAX_CGROUP_LEVEL};

use super::{Engine, EngineError, Inner, lock_of};
use crate::{
    authority::{
        directory::{self, AgentEntry, SetEntry, Source},
        protect, state,
    },
    config::Config,
    kernel::{TableError, host},
    policy::{self, AgentName, HashedTables, Policies, Protected},
};

impl Engine {
    pub(super) fn policies_of(&self, source: &Source) -> Result<Policies, EngineError> {
        match source {
            Source::Run { name, text } => {
                let source = policy::Source { name: name.clone(), text: text.clone() };
                Ok(Policies::check(&[source])?)
            }
            Source::Folder => {
                self.inner().folder.clone().ok_or_else(|| {
                    EngineError::Request("no policy folder has been read".to_owned())
                })
            }
        }
    }

    pub(super) fn lower(&self, policies: &Policies, entry: &AgentEntry) -> policy::Lowered {
        let name = AgentName::parse(&entry.name);
        match name {
            Ok(name) => policies.lower(&name, &entry.groups, &self.protected(entry)),
            // Names were checked when the agent began; nothing is permitted to what has none.
            Err(_) => policy::Lowered::default(),
        }
    }

    pub(super) fn protected(&self, entry: &AgentEntry) -> Vec<Protected> {
        protect::protected(&self.config, self.config_path.as_deref(), entry)
    }

    /// Guards what is Ambit's own. Looked at again now and then: files rotate, policies are replaced.
    pub(super) fn guard(&self) -> Result<(), TableError> {
        let paths: BTreeSet<PathBuf> = {
            let names = self.directory.read();
            let agents = names.agents.values().filter(|agent| !agent.ended);
            agents.flat_map(|agent| self.protected(agent)).map(|one| one.path).collect()
        };
        let objects = protect::guarded(&self.config, &paths);
        let mut inner = self.inner();
        inner.guarded = Instant::now();
        inner.tables.guard(&objects)
    }

    /// Publishes an agent's tables if nobody has them, and swaps it to them by one write.
    pub(super) fn bind(&self, number: u32, lowered: policy::Lowered) -> Result<(), EngineError> {
        let mut inner = self.inner();
        let set = self.publish(&mut inner, lowered)?;
        let mut names = self.directory.write();
        let Some(entry) = names.agents.get_mut(&number) else {
            return Ok(());
        };
        let old = std::mem::replace(&mut entry.set, set);
        let agent = Agent { set, mode: entry.mode as u8, pad: [0; 3] };
        inner.tables.set_agent(number, &agent)?;
        let level = host::cgroup_level(&self.hierarchy, &entry.cgroup)
            .filter(|level| *level <= MAX_CGROUP_LEVEL)
            .ok_or_else(|| {
                EngineError::Request(format!(
                    "{} lies deeper than {MAX_CGROUP_LEVEL} levels, where agents cannot be bound",
                    entry.cgroup.display()
                ))
            })?;
        inner.tables.bind(entry.cgroup_id, level, number)?;
        if old != set {
            Self::retire(&mut inner, &mut names, old);
        }
        Ok(())
    }

    /// Lets a set go, after a while, unless some agent still has it.
    pub(super) fn retire(inner: &mut Inner, names: &mut directory::Inner, set: u32) {
        if names.agents.values().any(|agent| !agent.ended && agent.set == set) {
            return;
        }
        if let Some(entry) = names.sets.get_mut(&set) {
            entry.retired = true;
            inner.retiring.push((set, Instant::now()));
        }
    }

    pub(super) fn publish(
        &self,
        inner: &mut Inner,
        lowered: policy::Lowered,
    ) -> Result<u32, EngineError> {
        let shared = self
            .directory
            .read()
            .sets
            .iter()
            .find(|(_, entry)| !entry.retired && entry.lowered == lowered)
            .map(|(set, _)| *set);
        if let Some(set) = shared {
            return Ok(set);
        }
        let hashed = Arc::new(hashed(&lowered, &self.hash)?);
        let places: Vec<_> =
            lowered.keyed_places(&self.hash).map_err(collision)?.into_iter().collect();
        let peers: Vec<_> =
            lowered.peers.iter().map(|(prefix, cell)| (prefix.key(), *cell)).collect();
        let set = inner.next_set;
        inner.next_set += 1;
        inner.tables.publish(set, &places, &peers)?;
        let generation = inner.generation;
        self.directory
            .write()
            .sets
            .insert(set, SetEntry { lowered, hashed, generation, retired: false });
        Ok(set)
    }

    /// Takes the pinned set of an agent for what it is when it was made from the same tables, so that it
    /// need not be swapped and its rules keep their names.
    pub(super) fn recognise(
        &self,
        number: u32,
        digest: u64,
        lowered: &policy::Lowered,
    ) -> Result<(), EngineError> {
        let inner = self.inner();
        let pinned = inner.tables.agents().into_iter().find(|(agent, _)| *agent == number);
        if let Some((_, agent)) = pinned
            && state::digest(lowered) == digest
        {
            let hashed = Arc::new(hashed(lowered, &self.hash)?);
            let generation = inner.generation;
            let entry = SetEntry { lowered: lowered.clone(), hashed, generation, retired: false };
            self.directory.write().sets.insert(agent.set, entry);
        }
        Ok(())
    }

    /// Takes the policy folder, and the configuration's agents, anew. On any error what was in force
    /// stays in force.
    pub fn reload(&self) -> Result<u64, EngineError> {
        let result = self.try_reload();
        match &result {
            Ok(generation) => self.metrics.generation(*generation),
            Err(_) => self.metrics.load_error(),
        }
        result
    }

    pub(super) fn try_reload(&self) -> Result<u64, EngineError> {
        let agents = match &self.config_path {
            Some(path) => Config::read(Some(path))?.agents,
            None => self.config.agents.clone(),
        };
        if agents.is_empty() && self.inner().folder.is_none() {
            return Ok(self.inner().generation);
        }
        let policies = Policies::check(&policy::read_folder(&self.config.policy.folder)?)?;
        *lock_of(&self.agents) = agents;
        let generation = {
            let mut inner = self.inner();
            inner.folder = Some(policies.clone());
            inner.generation += 1;
            inner.generation
        };
        {
            let agents = lock_of(&self.agents);
            let mut names = self.directory.write();
            for entry in names.agents.values_mut().filter(|a| a.source == Source::Folder) {
                if let Some(agent) = agents.iter().find(|agent| agent.name == entry.name) {
                    entry.mode = agent.mode.into();
                    entry.groups.clone_from(&agent.groups);
                }
            }
        }
        let lowered: Vec<(u32, policy::Lowered)> = {
            let names = self.directory.read();
            names
                .agents
                .iter()
                .filter(|(_, agent)| !agent.ended && agent.source == Source::Folder)
                .map(|(number, agent)| (*number, self.lower(&policies, agent)))
                .collect()
        };
        for (number, lowered) in lowered {
            self.bind(number, lowered)?;
        }
        self.scan();
        self.save_or_say();
        Ok(generation)
    }
}

fn collision(error: policy::Collision) -> EngineError {
    EngineError::Request(error.to_string())
}

fn hashed(
    lowered: &policy::Lowered,
    config: &agent_ebpf::Config,
) -> Result<HashedTables, EngineError> {
    HashedTables::new(lowered, config).map_err(collision)
}
