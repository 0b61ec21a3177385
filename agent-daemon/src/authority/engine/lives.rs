//! The lives of agents: how they begin, what is known of them meanwhile, how they end.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
    time::{Duration, Instant, SystemTime},
};

use agent_ebpf::Mode;

use super::{
    Engine, EngineError, Finished, RunRequest, Running, Started, answers::failed, lock_of,
};
use crate::{
    authority::{
        directory::{AgentEntry, Source},
        objects::View,
        stream::StreamError,
    },
    identity::{self, cgroups},
    kernel::{fanotify, host, load},
    policy::{self, AgentName, Attributes},
};

/// How long a policy set outlives its last agent, so that no hook still works with it.
const RETIRE: Duration = Duration::from_secs(5);
/// How long an engine on demand waits for its first agent.
const UNUSED: Duration = Duration::from_secs(20);
/// Ticks in a row at which nothing of an agent is found before it has ended: a fork outruns one look.
const QUIET_TICKS: u32 = 4;
/// How often the objects that are guarded are looked up again.
const GUARD_AGAIN: Duration = Duration::from_secs(2);
/// How long names of what has ended are kept for events on their way.
const REMEMBER: Duration = Duration::from_secs(30);

/// An agent's stable identity where nothing better is known.
pub(in crate::authority) fn uid(name: &str) -> String {
    format!("ambit:agent:{name}")
}

impl Engine {
    /// Looks for configured agents: begins those whose cgroup appeared.
    pub(super) fn scan(&self) {
        let agents = lock_of(&self.agents).clone();
        let mut entries = Vec::new();
        for found in identity::find(&self.attach, &agents) {
            let Some(agent) = agents.get(found.agent) else {
                continue;
            };
            let Ok(cgroup_id) = host::cgroup_id(&found.folder) else {
                continue;
            };
            let bound = |entry: &AgentEntry| !entry.ended && entry.cgroup_id == cgroup_id;
            if self.directory.read().agents.values().any(bound) {
                continue;
            }
            let mut entry = self.entry(
                agent.name.clone(),
                agent.mode.into(),
                Source::Folder,
                found.folder,
                cgroup_id,
            );
            entry.groups.clone_from(&agent.groups);
            entry.attributes.clone_from(&agent.attributes);
            entries.push(entry);
        }
        if self.enter_all(entries) {
            if let Err(error) = self.guard() {
                eprintln!("ambitd: {error}");
            }
            self.save_or_say();
        }
    }

    /// Begins agents of the policy folder, and does once for all of them what can be; true when there is one more.
    /// Their cgroups run already: one that cannot have its policy is bound all the same, and nothing is permitted to it.
    fn enter_all(&self, entries: Vec<AgentEntry>) -> bool {
        if entries.is_empty() {
            return false;
        }
        let policies = match self.policies_of(&Source::Folder) {
            Ok(policies) => policies,
            Err(error) => {
                eprintln!("ambitd: no configured agent can begin: {error}");
                return false;
            }
        };
        let lowered = entries.into_iter().map(|entry| (self.lower(&policies, &entry), entry));
        let lowered: Vec<_> = lowered.collect();
        let ready = lowered.iter().filter_map(|(lowered, _)| lowered.as_ref().ok());
        let wanted: Vec<_> = ready.map(|lowered| (View::Own, lowered.clone())).collect();
        self.publish_ahead(&wanted);
        let mut begun = false;
        for (lowered, entry) in lowered {
            let name = entry.name.clone();
            let number = match self.reserve().and_then(|number| self.enter(number, entry)) {
                Ok(number) => number,
                Err(error) => {
                    eprintln!("ambitd: agent {name}: {error}");
                    continue;
                }
            };
            begun = true;
            let Err(error) = lowered.and_then(|lowered| self.bind(number, lowered)) else {
                continue;
            };
            match self.confine(number) {
                Ok(()) => eprintln!(
                    "ambitd: agent {name}: {error}; nothing is permitted to it until a policy can be loaded"
                ),
                Err(worse) => eprintln!("ambitd: agent {name} is NOT bounded: {error}; {worse}"),
            }
        }
        self.retire_unused();
        begun
    }

    pub(super) fn entry(
        &self,
        name: String,
        mode: Mode,
        source: Source,
        cgroup: PathBuf,
        cgroup_id: u64,
    ) -> AgentEntry {
        let cgroup_path = cgroup.strip_prefix(&self.hierarchy).unwrap_or(Path::new(""));
        AgentEntry {
            uid: uid(&name),
            instance: instance(),
            name,
            groups: Vec::new(),
            attributes: Attributes::default(),
            mode,
            source,
            cgroup_path: format!("/{}", cgroup_path.display()),
            cgroup,
            cgroup_id,
            pids_cgroup: None,
            since: SystemTime::now(),
            events: None,
            set: 0,
            attempts: Vec::new(),
            counts: [0; 3],
            root: None,
            holder: None,
            holders: 0,
            ended: false,
        }
    }

    /// A number that no agent has or will have.
    pub(super) fn reserve(&self) -> Result<u32, EngineError> {
        let mut inner = self.inner();
        if inner.closing {
            return Err(EngineError::Closing);
        }
        inner.next_agent += 1;
        Ok(inner.next_agent - 1)
    }

    /// Begins an agent, with all that has to be done when there is one more.
    fn begin(&self, number: u32, entry: AgentEntry) -> Result<(), EngineError> {
        let lowered = self.lower(&self.policies_of(&entry.source)?, &entry)?;
        self.enter(number, entry)?;
        let bound = self.bind(number, lowered);
        let guarded = bound.and_then(|()| self.guard().map_err(EngineError::from));
        let begun = guarded.and_then(|()| self.save());
        if begun.is_err() {
            // Nothing is in its cgroup yet; what was written for it is taken back.
            let _ = self.end(number);
        }
        begun
    }

    /// Writes an agent down that is to be bound; gives its number.
    fn enter(&self, number: u32, entry: AgentEntry) -> Result<u32, EngineError> {
        {
            let inner = self.inner();
            if inner.closing {
                return Err(EngineError::Closing);
            }
            // Entered under the same lock, so that nobody who closes can miss it.
            self.directory.write().agents.insert(number, entry);
        }
        self.had_agents.store(true, Ordering::SeqCst);
        Ok(number)
    }

    /// Begins an agent of `ambit run`, in a cgroup made for it.
    pub fn run(&self, request: RunRequest, caller: u32) -> Result<Started, EngineError> {
        let name = AgentName::parse(&request.name)
            .map_err(|error| EngineError::Request(error.to_string()))?;
        let name_of_policy = request.policy.display().to_string();
        let source = Source::Run { name: name_of_policy, text: request.text, more: request.more };
        self.policies_of(&source)?; // before anything is made
        if let Some(file) = &request.events {
            crate::sinks::FileSink::open(
                file,
                self.config.events.max_bytes,
                self.config.events.keep,
            )
            .map_err(StreamError::from)?;
        }
        let parent = self.attach.join(&self.config.kernel.agents);
        fs::create_dir_all(&parent).map_err(failed("make the cgroup", &parent))?;
        let number = self.reserve()?;
        let leaf = format!("{name}-{number}");
        let cgroup = parent.join(&leaf);
        fs::create_dir(&cgroup).map_err(failed("make the cgroup", &cgroup))?;
        let cgroup_id = host::cgroup_id(&cgroup).map_err(failed("look at", &cgroup))?;
        let mode = if request.audit { Mode::Audit } else { Mode::Enforce };
        let mut entry = self.entry(name.to_string(), mode, source, cgroup.clone(), cgroup_id);
        entry.events = request.events.clone();
        entry.holders = 1;
        entry.root = fanotify::root_of(caller);
        entry.holder = Some(caller);
        entry.pids_cgroup = cgroups::bound_pids(&parent, &cgroup, &leaf, request.pids_max);
        let mut procs = vec![cgroup.join("cgroup.procs")];
        procs.extend(entry.pids_cgroup.as_ref().map(|folder| folder.join("cgroup.procs")));
        let pids_bounded = entry.pids_cgroup.is_some() || cgroup.join("pids.max").exists();
        let instance = entry.instance.clone();
        let pids = entry.pids_cgroup.clone();
        match self.begin(number, entry) {
            Ok(()) => Ok(Started {
                number,
                instance,
                procs,
                pids_bounded,
                ceiling: !request.audit && self.coverage.files == Some(load::Backend::Fanotify),
                events: request.events.unwrap_or_else(|| self.config.events.file.clone()),
            }),
            Err(error) => {
                let _ = fs::remove_dir(&cgroup);
                let _ = pids.map(fs::remove_dir);
                Err(error)
            }
        }
    }

    /// What came of an agent so far. Events on their way are waited for.
    pub fn finish(&self, number: u32) -> Finished {
        // One round of the stream, so that what the agent just did is counted.
        std::thread::sleep(Duration::from_millis(300));
        let names = self.directory.read();
        let Some(agent) = names.agents.get(&number) else {
            return Finished { allowed: 0, denied: 0, audited: 0, suggestion: String::new() };
        };
        let [allowed, denied, audited] = agent.counts;
        Finished { allowed, denied, audited, suggestion: policy::suggest(&agent.attempts) }
    }

    /// A connection of `ambit run` closed.
    pub fn release(&self, number: u32) {
        if let Some(agent) = self.directory.write().agents.get_mut(&number) {
            agent.holders = agent.holders.saturating_sub(1);
        }
    }

    /// Every agent that runs.
    pub fn running(&self) -> Vec<Running> {
        let tasks = self.inner().tables.tasks();
        let names = self.directory.read();
        let mut agents: Vec<Running> = names
            .agents
            .iter()
            .filter(|(_, agent)| !agent.ended)
            .map(|(number, agent)| {
                let mut pids: Vec<u32> = tasks
                    .iter()
                    .filter(|(_, task)| task.agent == *number)
                    .map(|(pid, _)| *pid)
                    .collect();
                pids.extend(cgroups::processes(&agent.cgroup));
                pids.sort_unstable();
                pids.dedup();
                Running {
                    name: agent.name.clone(),
                    instance: agent.instance.clone(),
                    mode: agent.mode.name().to_owned(),
                    cgroup: agent.cgroup.clone(),
                    pids,
                    since: agent
                        .since
                        .duration_since(SystemTime::UNIX_EPOCH)
                        .map_or(0, |since| since.as_secs()),
                    allowed: agent.counts[0],
                    denied: agent.counts[1],
                    audited: agent.counts[2],
                }
            })
            .collect();
        agents.sort_by(|a, b| (&a.name, a.since).cmp(&(&b.name, b.since)));
        agents
    }

    /// Ends every process of the agents of this name; returns how many agents there were.
    pub fn stop_agent(&self, name: &str) -> Result<usize, EngineError> {
        let found: Vec<(u32, PathBuf)> = {
            let names = self.directory.read();
            names.running(name).map(|(number, agent)| (number, agent.cgroup.clone())).collect()
        };
        if found.is_empty() {
            let names = self.directory.read();
            let mut known: Vec<&str> =
                names.agents.values().filter(|a| !a.ended).map(|a| a.name.as_str()).collect();
            known.sort_unstable();
            known.dedup();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(EngineError::Request(format!(
                "no agent {name:?} runs; running agents: {known}"
            )));
        }
        for (number, cgroup) in &found {
            cgroups::kill_all(cgroup, || {
                let tasks = self.inner().tables.tasks();
                tasks
                    .into_iter()
                    .filter(|(_, task)| task.agent == *number)
                    .map(|(pid, _)| pid)
                    .collect()
            });
        }
        Ok(found.len())
    }

    /// What happens by itself: agents that appear and end, sets that nobody has any more.
    pub fn tick(&self) {
        self.scan();
        self.tend_names();
        let over = self.over();
        let due = self.inner().guarded.elapsed() >= GUARD_AGAIN;
        if due && self.has_agents() {
            if let Err(error) = self.guard() {
                eprintln!("ambitd: {error}");
            }
            self.look_again();
            // Roots that were seen for the first time are remembered, too.
            self.save_or_say();
        }
        for number in over {
            if let Err(error) = self.end(number) {
                eprintln!("ambitd: ending agent {number}: {error}");
            }
        }
        let mut inner = self.inner();
        let now = Instant::now();
        let due: Vec<u32> = inner
            .retiring
            .iter()
            .filter(|(_, since)| now.duration_since(*since) > RETIRE)
            .map(|(set, _)| *set)
            .collect();
        for (set, retired) in due.iter().zip(inner.tables.retire(&due)) {
            if let Err(error) = retired {
                eprintln!("ambitd: retiring policy set {set}: {error}");
            }
            for name in self.directory.write().names.retire(*set) {
                if let Err(error) = inner.tables.unsay(*set, name) {
                    eprintln!("ambitd: retiring policy set {set}: {error}");
                }
            }
            inner.ended.push((*set | 1 << 31, now));
        }
        inner.retiring.retain(|(set, _)| !due.contains(set));
        let mut names = self.directory.write();
        inner.ended.retain(|(number, since)| {
            let keep = now.duration_since(*since) < REMEMBER;
            if !keep {
                if number & 1 << 31 != 0 {
                    names.sets.remove(&(number & !(1 << 31)));
                } else {
                    names.agents.remove(number);
                }
            }
            keep
        });
    }

    /// Agents of which nothing is left: nobody holds them, their cgroup is empty or gone, and no process of
    /// theirs lives anywhere, at several looks in a row.
    pub(super) fn over(&self) -> Vec<u32> {
        let mut inner = self.inner();
        let mut living = BTreeSet::new();
        for (pid, task) in inner.tables.tasks() {
            if cgroups::lives(pid) {
                living.insert(task.agent);
            } else {
                // Its end was not seen; without this its number would stand for somebody else one day.
                let _ = inner.tables.forget(pid);
            }
        }
        let names = self.directory.read();
        let found = names.agents.iter().filter(|(number, agent)| {
            let gone = match agent.source {
                Source::Run { .. } => agent.holders == 0 && !cgroups::populated(&agent.cgroup),
                Source::Folder => host::cgroup_id(&agent.cgroup).ok() != Some(agent.cgroup_id),
            };
            !agent.ended && gone && !living.contains(*number)
        });
        let found: BTreeSet<u32> = found.map(|(number, _)| *number).collect();
        inner.quiet.retain(|number, _| found.contains(number));
        let mut over = Vec::new();
        for number in found {
            let ticks = inner.quiet.entry(number).or_insert(0);
            *ticks += 1;
            if *ticks >= QUIET_TICKS {
                over.push(number);
            }
        }
        over
    }

    pub(super) fn end(&self, number: u32) -> Result<(), EngineError> {
        let mut inner = self.inner();
        let mut names = self.directory.write();
        let Some(agent) = names.agents.get_mut(&number) else {
            return Ok(());
        };
        agent.ended = true;
        inner.tables.unbind(agent.cgroup_id)?;
        inner.tables.remove_agent(number)?;
        let set = agent.set;
        if matches!(agent.source, Source::Run { .. }) {
            let _ = fs::remove_dir(&agent.cgroup);
            let _ = agent.pids_cgroup.as_ref().map(fs::remove_dir);
        }
        Self::forget_names(&mut inner, &mut names, number);
        inner.ended.push((number, Instant::now()));
        Self::retire(&mut inner, &mut names, set);
        drop(names);
        drop(inner);
        self.save_or_say();
        Ok(())
    }

    /// True when there was an agent and none is left: an engine on demand may go.
    pub fn idle(&self) -> bool {
        let begun = self.had_agents.load(Ordering::SeqCst) || self.started.elapsed() > UNUSED;
        begun && !self.has_agents()
    }

    pub(super) fn has_agents(&self) -> bool {
        self.directory.read().agents.values().any(|agent| !agent.ended)
    }

    /// Lets nothing begin any more; false, and no change, while an agent runs.
    pub fn close_if_idle(&self) -> bool {
        let mut inner = self.inner();
        inner.closing = !self.has_agents();
        inner.closing
    }
}

/// A random (version 4) UUID for a run; the kernel makes them.
fn instance() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}
