//! What the fanotify backend asks of the rest: who a process is, and what it may reach.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use agent_ebpf::{Content, Task};

use super::{contents::Contents, directory::Directory, engine::lock_of, stream::Inbox};
use crate::{
    kernel::{
        Tables,
        fanotify::{self, Root},
    },
    policy::HashedTables,
};

/// The agent bound to a cgroup, by its path in the hierarchy, or to the nearest above it.
pub fn agent_of_cgroup(directory: &Directory, path: &str) -> Option<u32> {
    let names = directory.read();
    names
        .agents
        .iter()
        .filter(|(_, agent)| !agent.ended && Path::new(path).starts_with(&agent.cgroup_path))
        .max_by_key(|(_, agent)| agent.cgroup_path.len())
        .map(|(number, _)| *number)
}

/// What the fanotify backend asks.
pub struct Bounds {
    /// Its own handle on the tables.
    pub tables: Mutex<Tables>,
    /// Names and sets.
    pub directory: Arc<Directory>,
    /// The secrets of the tables.
    pub config: agent_ebpf::Config,
    /// Where its records go.
    pub inbox: Arc<Inbox>,
    /// Who reads programs.
    pub contents: Arc<Contents>,
}

impl fanotify::Bounds for Bounds {
    fn task(&self, tgid: u32) -> Option<Task> {
        lock_of(&self.tables).task(tgid).ok().flatten()
    }

    fn stray(&self, tgid: u32) -> Option<u32> {
        lock_of(&self.tables).stray(tgid).ok().flatten()
    }

    fn processes(&self) -> Vec<(u32, Task)> {
        lock_of(&self.tables).tasks()
    }

    fn agent_of_cgroup(&self, path: &str) -> Option<u32> {
        agent_of_cgroup(&self.directory, path)
    }

    fn enrol(&self, tgid: u32, agent: u32) {
        let task = Task { agent, ..Task::default() };
        if let Err(error) = lock_of(&self.tables).enrol(tgid, &task) {
            eprintln!("ambitd: process {tgid} is judged by its cgroup only: {error}");
        }
    }

    fn reach(&self, agent: u32) -> Option<(u32, u8, Option<Arc<HashedTables>>)> {
        let names = self.directory.read();
        let entry = names.agents.get(&agent)?;
        let tables = names.sets.get(&entry.set).map(|set| set.hashed.clone());
        Some((entry.set, entry.mode as u8, tables))
    }

    fn content(&self, object: (u32, u64)) -> Option<Content> {
        lock_of(&self.tables).content(object).ok().flatten()
    }

    fn forget_content(&self, object: (u32, u64)) {
        if self.contents.in_use()
            && let Err(error) = lock_of(&self.tables).unknow(object)
        {
            eprintln!("ambitd: {error}");
        }
    }

    fn config(&self) -> agent_ebpf::Config {
        self.config
    }

    fn root(&self, agent: u32, seen: &Root) -> Root {
        let mut names = self.directory.write();
        match names.agents.get_mut(&agent) {
            Some(entry) => entry.root.get_or_insert_with(|| seen.clone()).clone(),
            None => seen.clone(),
        }
    }

    fn tell(&self, record: &[u8]) {
        self.inbox.put(record);
    }
}
