//! The engine: agents begin, their policy is swapped, they end; everything else asks it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use agent_ebpf::{Agent, Facet, GUARD_CHILDREN, GUARD_SELF, MAX_CGROUP_LEVEL, Mode, Task};
use serde::{Deserialize, Serialize};

use super::{
    directory::{AgentEntry, Directory, SetEntry, Source},
    state::{self, State},
    stream::{Inbox, Stream, StreamError},
};
use crate::{
    api::Metrics,
    config::{BackendChoice, Config, ConfigError},
    identity,
    kernel::{
        Coverage, Host, LoadError, TableError, Tables,
        fanotify::{self, FanotifyError, Root},
        host::{self, HostError},
        load,
    },
    policy::{self, AgentName, HashedTables, Policies, PolicyError, Protected},
};

/// How long a policy set outlives its last agent, so that no hook still works with it.
const RETIRE: Duration = Duration::from_secs(5);
/// What a daemon answers that is about to end.
pub const CLOSING: &str = "ambitd is about to end; ask again";

/// How often the objects that are guarded are looked up again.
const GUARD_AGAIN: Duration = Duration::from_secs(2);
/// How long names of what has ended are kept for events on their way.
const REMEMBER: Duration = Duration::from_secs(30);

/// Why the engine could not do something. What ran before goes on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The host lacks something.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The kernel half could not be put in place.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A kernel table could not be used.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Nobody can judge files as the configuration asks.
    #[error("files cannot be judged: {0}")]
    Backend(String),
    /// The fanotify backend could not start.
    #[error(transparent)]
    Fanotify(#[from] FanotifyError),
    /// The event stream could not start.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The policy was refused.
    #[error("{0}")]
    Policy(#[from] PolicyError),
    /// The configuration was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another daemon is there.
    #[error(
        "another ambitd runs already (it holds {lock}); stop it first, or use another `daemon.run`"
    )]
    Running {
        /// The lock.
        lock: PathBuf,
    },
    /// The daemon is about to end; another may be started.
    #[error("{CLOSING}")]
    Closing,
    /// A request makes no sense.
    #[error("{0}")]
    Request(String),
    /// A file could not be used.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EngineError {
    let path = path.to_path_buf();
    move |source| EngineError::Io { what, path, source }
}

/// What `ambit run` asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRequest {
    /// The agent's name.
    pub name: String,
    /// The policy file, for messages and so that the agent cannot touch it.
    pub policy: PathBuf,
    /// Its text, read by the caller.
    pub text: String,
    /// Deny nothing, mark everything.
    pub audit: bool,
    /// A file of its own for its events.
    pub events: Option<PathBuf>,
    /// Bound on its processes.
    pub pids_max: u64,
}

/// Where the agent's first process goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Started {
    /// The agent's number.
    pub number: u32,
    /// This run of it.
    pub instance: String,
    /// `cgroup.procs` files to join, in this order.
    pub procs: Vec<PathBuf>,
    /// Where its events go.
    pub events: PathBuf,
}

/// What came of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finished {
    /// Actions that were let go.
    pub allowed: u64,
    /// Actions that were denied.
    pub denied: u64,
    /// Actions that would have been denied.
    pub audited: u64,
    /// Cedar lines that would have permitted these.
    pub suggestion: String,
}

/// An agent that runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// This run of it.
    pub instance: String,
    /// `enforce` or `audit`.
    pub mode: String,
    /// Its cgroup's folder.
    pub cgroup: PathBuf,
    /// Its processes.
    pub pids: Vec<u32>,
    /// Seconds since 1970.
    pub since: u64,
    /// Actions that were let go.
    pub allowed: u64,
    /// Actions that were denied.
    pub denied: u64,
    /// Actions that would have been denied.
    pub audited: u64,
}

/// What `ambit doctor` asks a running daemon.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Programs and backends.
    pub coverage: Coverage,
    /// File systems that the fanotify backend has marked.
    pub marked: Vec<PathBuf>,
    /// Where the network programs are attached.
    pub attach: PathBuf,
    /// Address of `/metrics`, when it is served.
    pub metrics: Option<String>,
    /// Where events go.
    pub events: PathBuf,
    /// Policy generation.
    pub generation: u64,
    /// Agents that run.
    pub agents: usize,
}

struct Inner {
    tables: Tables,
    next_agent: u32,
    next_set: u32,
    generation: u64,
    /// The policy folder as last taken; `None` while no configured agent needs it.
    folder: Option<Policies>,
    retiring: Vec<(u32, Instant)>,
    ended: Vec<(u32, Instant)>,
    /// When the objects that are guarded were last looked up.
    guarded: Instant,
    /// Nothing may begin any more.
    closing: bool,
}

/// Everything that runs.
pub struct Engine {
    /// The configuration that it was started with; its agents follow reloads.
    pub config: Config,
    config_path: Option<PathBuf>,
    agents: Mutex<Vec<crate::config::AgentConfig>>,
    /// Names of agents and rules.
    pub directory: Arc<Directory>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Where `/metrics` is served, once it is.
    metrics_address: Mutex<Option<String>>,
    attach: PathBuf,
    hierarchy: PathBuf,
    coverage: Coverage,
    hash: agent_ebpf::Config,
    inner: Mutex<Inner>,
    fanotify: Mutex<Option<fanotify::Backend>>,
    stream: Mutex<Option<Stream>>,
    had_agents: AtomicBool,
    _lock: nix::fcntl::Flock<fs::File>,
}

/// An agent's stable identity where nothing better is known.
pub(super) fn uid(name: &str) -> String {
    format!("ambit:agent:{name}")
}

impl Engine {
    /// Puts everything in place: kernel half, backend, stream, configured agents.
    pub fn start(config: Config, config_path: Option<PathBuf>) -> Result<Arc<Self>, EngineError> {
        host::require_root("ambitd")?;
        host::require_initial_pid_namespace()?;
        let host = Host::read()?;
        let hierarchy = host::cgroup2()?;
        let attach = config.kernel.attach.clone().unwrap_or_else(|| hierarchy.clone());
        if !attach.starts_with(&hierarchy) || !attach.is_dir() {
            return Err(EngineError::Request(format!(
                "kernel.attach = {attach:?} is not a cgroup beneath {}",
                hierarchy.display()
            )));
        }
        let run = &config.daemon.run;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(run)
            .map_err(failed("make the folder", run))?;
        let lock = lock(&run.join("lock"))?;
        if let Some(folder) = config.events.file.parent().filter(|folder| !folder.exists()) {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(failed("make the folder", folder))?;
        }
        let folder = if config.agents.is_empty() {
            None
        } else {
            Some(Policies::check(&policy::read_folder(&config.policy.folder)?)?)
        };
        let saved = State::read(run).map_err(failed("read", &run.join(state::FILE)))?;

        let settings = load::Settings {
            pins: config.kernel.pins.clone(),
            attach: attach.clone(),
            denied_bytes: config.kernel.denied_ring_bytes,
            told_bytes: config.kernel.told_ring_bytes,
            lsm: config.kernel.backend != BackendChoice::Fanotify,
        };
        let loaded = load::load(&host, &settings)?;
        let mut coverage = loaded.coverage;
        if config.kernel.backend == BackendChoice::Lsm && coverage.files.is_none() {
            let why = coverage.no_lsm.unwrap_or_default();
            if !coverage.adopted {
                let _ = load::remove_pins(&config.kernel.pins);
            }
            return Err(EngineError::Backend(format!("kernel.backend is \"lsm\", and {why}")));
        }
        let by_fanotify = coverage.files.is_none();
        if by_fanotify {
            coverage.files = Some(load::Backend::Fanotify);
        }
        let metrics = Arc::new(Metrics::new(&coverage));
        let directory = Arc::new(Directory::default());
        let inbox = Arc::new(Inbox::default());
        let maps = config.kernel.pins.join("maps");

        let engine = Arc::new(Self {
            agents: Mutex::new(config.agents.clone()),
            config,
            config_path,
            directory: directory.clone(),
            metrics: metrics.clone(),
            metrics_address: Mutex::new(None),
            attach,
            hierarchy,
            hash: loaded.config,
            inner: Mutex::new(Inner {
                next_set: saved.next_set.max(loaded.tables.sets().last().copied().unwrap_or(0) + 1),
                next_agent: saved.next_agent.max(1),
                generation: saved.generation + u64::from(folder.is_some()),
                tables: loaded.tables,
                folder,
                retiring: Vec::new(),
                ended: Vec::new(),
                guarded: Instant::now(),
                closing: false,
            }),
            coverage,
            fanotify: Mutex::new(None),
            stream: Mutex::new(None),
            had_agents: AtomicBool::new(false),
            _lock: lock,
        });
        let undo = |error: EngineError| {
            if !engine.coverage.adopted {
                let _ = load::remove_pins(&engine.config.kernel.pins);
            }
            error
        };
        engine.restore(saved).map_err(undo)?;
        let stream = Stream::start(&maps, &engine.config.events, directory, inbox.clone(), metrics)
            .map_err(|error| undo(error.into()))?;
        *lock_of(&engine.stream) = Some(stream);
        if by_fanotify {
            let bounds = Arc::new(Bounds {
                tables: Mutex::new(Tables::open(&maps).map_err(|error| undo(error.into()))?),
                directory: engine.directory.clone(),
                config: engine.hash,
                inbox,
            });
            let backend = fanotify::Backend::start(&engine.config.kernel.filesystems, bounds)
                .map_err(|error| undo(error.into()))?;
            *lock_of(&engine.fanotify) = Some(backend);
        }
        engine.scan();
        engine.metrics.generation(engine.inner().generation);
        Ok(engine)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock_of(&self.inner)
    }

    /// Takes up the agents that ran when the last daemon ended, and lets go of those that are gone.
    fn restore(&self, saved: State) -> Result<(), EngineError> {
        let mut known = Vec::new();
        for saved in saved.agents {
            let (number, digest) = (saved.number, saved.digest);
            if host::cgroup_id(&saved.cgroup).ok() == Some(saved.cgroup_id) {
                let entry = saved.entry();
                let lowered = self.policies_of(&entry.source).map(|p| self.lower(&p, &entry));
                match lowered {
                    Ok(lowered) => {
                        self.directory.write().agents.insert(number, entry);
                        self.recognise(number, digest, &lowered)?;
                        self.bind(number, lowered)?;
                        known.push(number);
                    }
                    // Its tables stay as they are pinned; only its names are missing.
                    Err(error) => eprintln!("ambitd: agent {number} keeps its old policy: {error}"),
                }
            }
        }
        // A binding is let go only when its cgroup is gone: an agent that nobody remembers stays bound
        // to the policy that is pinned. Its number is not given out again.
        let living = cgroup_ids(&self.hierarchy);
        let mut inner = self.inner();
        for (cgroup, agent) in inner.tables.cgroups() {
            inner.next_agent = inner.next_agent.max(agent + 1);
            if !living.contains(&cgroup) {
                inner.tables.unbind(cgroup)?;
            } else if !known.contains(&agent) {
                eprintln!("ambitd: an unknown agent, number {agent}, keeps its pinned policy");
            }
        }
        for (agent, _) in inner.tables.agents() {
            inner.next_agent = inner.next_agent.max(agent + 1);
        }
        Ok(())
    }

    /// Takes the pinned set of an agent for what it is when it was made from the same tables, so that it
    /// need not be swapped and its rules keep their names.
    fn recognise(
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

    fn policies_of(&self, source: &Source) -> Result<Policies, EngineError> {
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

    fn lower(&self, policies: &Policies, entry: &AgentEntry) -> policy::Lowered {
        let name = AgentName::parse(&entry.name);
        match name {
            Ok(name) => policies.lower(&name, &entry.groups, &self.protected(entry)),
            // Names were checked when the agent began; nothing is permitted to what has none.
            Err(_) => policy::Lowered::default(),
        }
    }

    /// What no agent may touch, whatever its policy says.
    fn protected(&self, entry: &AgentEntry) -> Vec<Protected> {
        const BINARY: &[Facet] = &[Facet::WriteFile, Facet::ExecProgram];
        let whole =
            |path: &Path| Protected { path: path.to_path_buf(), beneath: true, facets: Facet::ALL };
        let mut paths = vec![
            whole(&self.config.daemon.run),
            whole(&self.config.kernel.pins),
            whole(&self.config.policy.folder),
            whole(self.config_path.as_deref().unwrap_or(Path::new(crate::config::DEFAULT_PATH))),
        ];
        if let Ok(own) = std::env::current_exe() {
            for name in ["ambit", "ambitd"] {
                let path = own.with_file_name(name);
                paths.push(Protected { path, beneath: false, facets: BINARY });
            }
        }
        let events = [Some(&self.config.events.file), entry.events.as_ref()];
        for file in events.into_iter().flatten() {
            paths.push(whole(file));
            for number in 1..self.config.events.keep {
                let mut name = file.as_os_str().to_owned();
                name.push(format!(".{number}"));
                paths.push(whole(Path::new(&name)));
            }
        }
        if let Source::Run { name, .. } = &entry.source {
            paths.push(whole(Path::new(name)));
        }
        // The name that was given and what it leads to.
        let real: Vec<Protected> = paths
            .iter()
            .filter_map(|one| {
                let path = fs::canonicalize(&one.path).ok().filter(|path| *path != one.path)?;
                Some(Protected { path, ..one.clone() })
            })
            .collect();
        paths.extend(real);
        paths.retain(|one| one.path.is_absolute());
        paths
    }

    /// Keeps the objects behind [`Engine::protected`], and the folders that lead to them, from being
    /// removed or renamed by agents. Looked at again now and then: files rotate, policies are replaced.
    fn guard(&self) -> Result<(), TableError> {
        let paths: BTreeSet<PathBuf> = {
            let names = self.directory.read();
            let agents = names.agents.values().filter(|agent| !agent.ended);
            agents.flat_map(|agent| self.protected(agent)).map(|one| one.path).collect()
        };
        let mut objects = BTreeMap::new();
        let mut guard = |path: &Path, how: u32| {
            if let Ok(stat) = fs::symlink_metadata(path) {
                *objects.entry(host::object(&stat)).or_insert(0) |= how;
            }
        };
        let own = [&self.config.daemon.run, &self.config.kernel.pins, &self.config.policy.folder];
        for path in &paths {
            let inside = if own.contains(&path) { GUARD_CHILDREN } else { 0 };
            guard(path, GUARD_SELF | inside);
            for parent in path.ancestors().skip(1) {
                // A folder that only root may enter holds nothing but what is Ambit's.
                let private = fs::metadata(parent)
                    .is_ok_and(|stat| stat.uid() == 0 && stat.mode() & 0o7777 == 0o700);
                let inside =
                    if private && path.parent() == Some(parent) && parent != Path::new("/root") {
                        GUARD_CHILDREN
                    } else {
                        0
                    };
                guard(parent, GUARD_SELF | inside);
            }
        }
        for folder in ["maps", "links"] {
            guard(&self.config.kernel.pins.join(folder), GUARD_SELF | GUARD_CHILDREN);
        }
        let mut inner = self.inner();
        inner.guarded = Instant::now();
        inner.tables.guard(&objects)
    }

    /// Publishes an agent's tables if nobody has them, and swaps it to them by one write.
    fn bind(&self, number: u32, lowered: policy::Lowered) -> Result<(), EngineError> {
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
    fn retire(inner: &mut Inner, names: &mut super::directory::Inner, set: u32) {
        if names.agents.values().any(|agent| !agent.ended && agent.set == set) {
            return;
        }
        if let Some(entry) = names.sets.get_mut(&set) {
            entry.retired = true;
            inner.retiring.push((set, Instant::now()));
        }
    }

    fn publish(&self, inner: &mut Inner, lowered: policy::Lowered) -> Result<u32, EngineError> {
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

    /// Looks for configured agents: begins those whose cgroup appeared.
    fn scan(&self) {
        let agents = lock_of(&self.agents).clone();
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
            let entry = self.entry(
                agent.name.clone(),
                agent.groups.clone(),
                agent.mode.into(),
                Source::Folder,
                found.folder,
                cgroup_id,
            );
            if let Err(error) = self.begin(entry) {
                eprintln!("ambitd: agent {}: {error}", agent.name);
            }
        }
    }

    fn entry(
        &self,
        name: String,
        groups: Vec<String>,
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
            groups,
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
            holders: 0,
            ended: false,
        }
    }

    fn begin(&self, entry: AgentEntry) -> Result<u32, EngineError> {
        let policies = self.policies_of(&entry.source)?;
        let lowered = self.lower(&policies, &entry);
        let number = {
            let mut inner = self.inner();
            if inner.closing {
                return Err(EngineError::Closing);
            }
            let number = inner.next_agent;
            inner.next_agent += 1;
            // Entered under the same lock, so that nobody who closes can miss it.
            self.directory.write().agents.insert(number, entry);
            number
        };
        if let Err(error) = self.bind(number, lowered) {
            self.directory.write().agents.remove(&number);
            return Err(error);
        }
        self.had_agents.store(true, Ordering::SeqCst);
        self.guard()?;
        self.save();
        Ok(number)
    }

    /// Begins an agent of `ambit run`, in a cgroup made for it.
    pub fn run(&self, request: RunRequest) -> Result<Started, EngineError> {
        let name = AgentName::parse(&request.name)
            .map_err(|error| EngineError::Request(error.to_string()))?;
        let source = Source::Run { name: request.policy.display().to_string(), text: request.text };
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
        let number = self.inner().next_agent;
        let leaf = format!("{name}-{number}");
        let cgroup = parent.join(&leaf);
        fs::create_dir(&cgroup).map_err(failed("make the cgroup", &cgroup))?;
        let cgroup_id = host::cgroup_id(&cgroup).map_err(failed("look at", &cgroup))?;
        let mode = if request.audit { Mode::Audit } else { Mode::Enforce };
        let mut entry =
            self.entry(name.to_string(), Vec::new(), mode, source, cgroup.clone(), cgroup_id);
        entry.events = request.events.clone();
        entry.holders = 1;
        entry.pids_cgroup = bound_pids(&parent, &cgroup, &leaf, request.pids_max);
        let mut procs = vec![cgroup.join("cgroup.procs")];
        procs.extend(entry.pids_cgroup.as_ref().map(|folder| folder.join("cgroup.procs")));
        let instance = entry.instance.clone();
        let pids = entry.pids_cgroup.clone();
        match self.begin(entry) {
            Ok(number) => Ok(Started {
                number,
                instance,
                procs,
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
                pids.extend(processes(&agent.cgroup));
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
            kill_all(cgroup, || {
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

    fn try_reload(&self) -> Result<u64, EngineError> {
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
        self.save();
        Ok(generation)
    }

    /// What happens by itself: agents that appear and end, sets that nobody has any more.
    pub fn tick(&self) {
        self.scan();
        let over: Vec<u32> = {
            let tasks = self.inner().tables.tasks();
            let names = self.directory.read();
            names
                .agents
                .iter()
                .filter(|(_, agent)| !agent.ended && agent.holders == 0)
                .filter(|(number, agent)| match agent.source {
                    Source::Run { .. } => {
                        !populated(&agent.cgroup)
                            && !tasks.iter().any(|(pid, t)| t.agent == **number && lives(*pid))
                    }
                    Source::Folder => host::cgroup_id(&agent.cgroup).ok() != Some(agent.cgroup_id),
                })
                .map(|(number, _)| *number)
                .collect()
        };
        let due = self.inner().guarded.elapsed() >= GUARD_AGAIN;
        if due
            && self.has_agents()
            && let Err(error) = self.guard()
        {
            eprintln!("ambitd: {error}");
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
        for set in &due {
            if let Err(error) = inner.tables.retire(*set) {
                eprintln!("ambitd: retiring policy set {set}: {error}");
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

    fn end(&self, number: u32) -> Result<(), EngineError> {
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
        inner.ended.push((number, Instant::now()));
        Self::retire(&mut inner, &mut names, set);
        drop(names);
        drop(inner);
        self.save();
        Ok(())
    }

    /// True when there was an agent and none is left: an engine on demand may go.
    pub fn idle(&self) -> bool {
        self.had_agents.load(Ordering::SeqCst) && !self.has_agents()
    }

    fn has_agents(&self) -> bool {
        self.directory.read().agents.values().any(|agent| !agent.ended)
    }

    /// Lets nothing begin any more; false, and no change, while an agent runs.
    pub fn close_if_idle(&self) -> bool {
        let mut inner = self.inner();
        inner.closing = !self.has_agents();
        inner.closing
    }

    fn save(&self) {
        let inner = self.inner();
        let state =
            State::of(&self.directory.read(), inner.next_agent, inner.next_set, inner.generation);
        if let Err(error) = state.write(&self.config.daemon.run) {
            eprintln!(
                "ambitd: the state could not be written to {}: {error}",
                self.config.daemon.run.display()
            );
        }
    }

    /// True when this process belongs to an agent.
    pub fn is_agent(&self, pid: u32) -> Result<bool, EngineError> {
        if self.inner().tables.task(pid)?.is_some() {
            return Ok(true);
        }
        let Ok(groups) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
            return Ok(true); // gone, or not to be seen: not to be trusted
        };
        let own = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        Ok(agent_of_cgroup(&self.directory, own).is_some())
    }

    /// Says where `/metrics` is served.
    pub fn set_metrics_address(&self, address: String) {
        *lock_of(&self.metrics_address) = Some(address);
    }

    /// One line on what is in place.
    pub fn headline(&self) -> String {
        let files = self.coverage.files.map_or("nobody".to_owned(), |backend| backend.to_string());
        format!(
            "files are judged by {files}, the network by cgroup programs at {}{}",
            self.attach.display(),
            if self.coverage.adopted { "; pinned programs were taken over" } else { "" }
        )
    }

    /// For `ambit doctor`.
    pub fn summary(&self) -> Summary {
        let marked = lock_of(&self.fanotify)
            .as_ref()
            .map(|backend| backend.marked.clone())
            .unwrap_or_default();
        Summary {
            coverage: self.coverage.clone(),
            marked,
            attach: self.attach.clone(),
            metrics: lock_of(&self.metrics_address).clone(),
            events: self.config.events.file.clone(),
            generation: self.inner().generation,
            agents: self.directory.read().agents.values().filter(|agent| !agent.ended).count(),
        }
    }

    /// Ends the threads. With agents still there the pinned programs stay and go on enforcing;
    /// otherwise, or with `detach`, everything is removed.
    pub fn shut_down(&self, detach: bool) {
        let agents = {
            self.inner().closing = true;
            self.has_agents()
        };
        if let Some(stream) = lock_of(&self.stream).take() {
            if detach || !agents {
                // Nothing new begins; what is in the rings is still told.
                drop(lock_of(&self.fanotify).take());
            }
            stream.stop();
        }
        drop(lock_of(&self.fanotify).take());
        if detach || !agents {
            let folders: Vec<(PathBuf, Option<PathBuf>)> = {
                let names = self.directory.read();
                let made = names.agents.values().filter(|a| matches!(a.source, Source::Run { .. }));
                made.map(|agent| (agent.cgroup.clone(), agent.pids_cgroup.clone())).collect()
            };
            if let Err(error) = remove_all(&self.config, &self.attach) {
                eprintln!("ambitd: {error}");
            }
            for (_, pids) in folders {
                let _ = pids.map(|folder| empty_and_remove(&folder));
            }
            let _ = fs::remove_file(self.config.daemon.run.join(state::FILE));
        } else {
            self.save();
        }
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

/// Removes every pin and cgroup of Ambit; what was in the cgroups moves to their parent.
pub fn remove_all(config: &Config, attach: &Path) -> Result<(), EngineError> {
    let pins = &config.kernel.pins;
    load::remove_pins(pins).map_err(failed("remove the pins in", pins))?;
    let parent = attach.join(&config.kernel.agents);
    if parent.is_dir() {
        for entry in fs::read_dir(&parent).map_err(failed("read", &parent))?.filter_map(Result::ok)
        {
            if entry.path().is_dir() {
                empty_and_remove(&entry.path())?;
            }
        }
        empty_and_remove(&parent)?;
    }
    if let Some(pids) = host::pids_v1() {
        let folder = pids.join(&config.kernel.agents);
        if folder.is_dir() {
            for entry in
                fs::read_dir(&folder).map_err(failed("read", &folder))?.filter_map(Result::ok)
            {
                if entry.path().is_dir() {
                    empty_and_remove(&entry.path())?;
                }
            }
            let _ = fs::remove_dir(&folder);
        }
    }
    Ok(())
}

fn empty_and_remove(folder: &Path) -> Result<(), EngineError> {
    let up = folder.parent().unwrap_or(folder).join("cgroup.procs");
    for _ in 0..50 {
        for pid in processes(folder) {
            let _ = fs::write(&up, pid.to_string());
        }
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    fs::remove_dir(folder).map_err(failed("remove the cgroup", folder))
}

fn lock(path: &Path) -> Result<nix::fcntl::Flock<fs::File>, EngineError> {
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed("open", path))?;
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock)
        .map_err(|_| EngineError::Running { lock: path.to_path_buf() })
}

fn lock_of<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A random (version 4) UUID for a run; the kernel makes them.
fn instance() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// Bounds the number of processes: by the cgroup2 controller, else by the version 1 hierarchy. Returns
/// the folder in the latter.
fn bound_pids(parent: &Path, cgroup: &Path, leaf: &str, max: u64) -> Option<PathBuf> {
    let above = parent.parent().unwrap_or(parent);
    for folder in [above, parent] {
        let _ = fs::write(folder.join("cgroup.subtree_control"), "+pids");
    }
    if fs::write(cgroup.join("pids.max"), max.to_string()).is_ok() {
        return None;
    }
    let made = host::pids_v1()?.join("ambit").join(leaf);
    fs::create_dir_all(&made).ok()?;
    if fs::write(made.join("pids.max"), max.to_string()).is_err() {
        let _ = fs::remove_dir(&made);
        return None;
    }
    Some(made)
}

/// Processes in a cgroup and beneath it.
fn processes(cgroup: &Path) -> Vec<u32> {
    let mut found: Vec<u32> = fs::read_to_string(cgroup.join("cgroup.procs"))
        .map(|text| text.lines().filter_map(|line| line.parse().ok()).collect())
        .unwrap_or_default();
    if let Ok(entries) = fs::read_dir(cgroup) {
        for entry in entries.filter_map(Result::ok).filter(|e| e.path().is_dir()) {
            found.extend(processes(&entry.path()));
        }
    }
    found
}

/// The ids of all cgroups there are.
fn cgroup_ids(folder: &Path) -> HashSet<u64> {
    let mut found = HashSet::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        found.extend(host::cgroup_id(&folder));
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        folders.extend(entries.filter_map(Result::ok).map(|e| e.path()).filter(|p| p.is_dir()));
    }
    found
}

fn populated(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events"))
        .is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
}

fn lives(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Kills a cgroup's processes and those that left it, until none is left.
fn kill_all(cgroup: &Path, others: impl Fn() -> Vec<u32>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        // 5.14 and later; elsewhere one by one, again until forks are outrun.
        let _ = fs::write(cgroup.join("cgroup.kill"), "1");
        let mut left = processes(cgroup);
        left.extend(others());
        left.retain(|pid| lives(*pid));
        if left.is_empty() {
            return;
        }
        for pid in left {
            if let Ok(pid) = i32::try_from(pid) {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn agent_of_cgroup(directory: &Directory, path: &str) -> Option<u32> {
    let names = directory.read();
    names
        .agents
        .iter()
        .filter(|(_, agent)| !agent.ended && Path::new(path).starts_with(&agent.cgroup_path))
        .max_by_key(|(_, agent)| agent.cgroup_path.len())
        .map(|(number, _)| *number)
}

/// What the fanotify backend asks.
struct Bounds {
    tables: Mutex<Tables>,
    directory: Arc<Directory>,
    config: agent_ebpf::Config,
    inbox: Arc<Inbox>,
}

impl fanotify::Bounds for Bounds {
    fn task(&self, tgid: u32) -> Option<Task> {
        lock_of(&self.tables).task(tgid).ok().flatten()
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

    fn reach(&self, agent: u32) -> Option<(u32, u8, Arc<HashedTables>)> {
        let names = self.directory.read();
        let entry = names.agents.get(&agent)?;
        let set = names.sets.get(&entry.set)?;
        Some((entry.set, entry.mode as u8, set.hashed.clone()))
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
