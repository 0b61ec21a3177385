//! What must be known again after a restart: which numbers mean which agents.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use agent_ebpf::Mode;
use serde::{Deserialize, Serialize};

use super::directory::{AgentEntry, Inner, Source};
use crate::{
    kernel::fanotify::Root,
    policy::{Attributes, Lowered},
};

/// The file in `daemon.run`.
pub const FILE: &str = "state.json";

/// Everything that is written down.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The next number for an agent.
    pub next_agent: u32,
    /// The next number for a policy set.
    pub next_set: u32,
    /// The last policy generation.
    pub generation: u64,
    /// Where the pinned network programs are attached.
    pub attach: Option<PathBuf>,
    /// Agents that run.
    pub agents: Vec<Saved>,
}

/// One agent.
#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    /// Its number.
    pub number: u32,
    name: String,
    groups: Vec<String>,
    attributes: Attributes,
    instance: String,
    audit: bool,
    source: Source,
    /// Its cgroup's folder.
    pub cgroup: PathBuf,
    /// The kernel's id of that cgroup.
    pub cgroup_id: u64,
    cgroup_path: String,
    pids_cgroup: Option<PathBuf>,
    since: u64,
    events: Option<PathBuf>,
    root: Option<Root>,
    /// [`digest`] of its tables.
    pub digest: u64,
}

/// Tells tables apart, for the same build: what was pinned from equal ones need not be made anew.
pub fn digest(lowered: &Lowered) -> u64 {
    let mut hasher = DefaultHasher::new();
    lowered.hash(&mut hasher);
    hasher.finish()
}

impl State {
    /// Gathers what runs.
    pub fn of(inner: &Inner, next_agent: u32, next_set: u32, generation: u64) -> Self {
        let mut agents: Vec<Saved> = inner
            .agents
            .iter()
            .filter(|(_, agent)| !agent.ended)
            .map(|(number, agent)| Saved {
                number: *number,
                name: agent.name.clone(),
                groups: agent.groups.clone(),
                attributes: agent.attributes.clone(),
                instance: agent.instance.clone(),
                audit: agent.mode == Mode::Audit,
                source: agent.source.clone(),
                cgroup: agent.cgroup.clone(),
                cgroup_id: agent.cgroup_id,
                cgroup_path: agent.cgroup_path.clone(),
                pids_cgroup: agent.pids_cgroup.clone(),
                since: agent.since.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
                events: agent.events.clone(),
                root: agent.root.clone(),
                digest: inner.sets.get(&agent.set).map_or(0, |set| digest(&set.lowered)),
            })
            .collect();
        agents.sort_by_key(|agent| agent.number);
        Self { next_agent, next_set, generation, attach: None, agents }
    }

    /// Reads the file; a missing one is an empty state.
    pub fn read(folder: &Path) -> io::Result<Self> {
        match fs::read_to_string(folder.join(FILE)) {
            Ok(text) => serde_json::from_str(&text).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file whole.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let new = folder.join("state.json.new");
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        io::Write::write_all(&mut file, &text)?;
        fs::rename(new, folder.join(FILE))
    }
}

impl Saved {
    /// The agent as it was.
    pub fn entry(self) -> AgentEntry {
        AgentEntry {
            uid: super::engine::uid(&self.name),
            name: self.name,
            groups: self.groups,
            attributes: self.attributes,
            instance: self.instance,
            mode: if self.audit { Mode::Audit } else { Mode::Enforce },
            source: self.source,
            cgroup: self.cgroup,
            cgroup_id: self.cgroup_id,
            cgroup_path: self.cgroup_path,
            pids_cgroup: self.pids_cgroup,
            since: UNIX_EPOCH
                .checked_add(Duration::from_secs(self.since))
                .unwrap_or(SystemTime::now()),
            events: self.events,
            set: 0,
            attempts: Vec::new(),
            counts: [0; 3],
            root: self.root,
            holder: None,
            holders: 0,
            ended: false,
        }
    }
}
