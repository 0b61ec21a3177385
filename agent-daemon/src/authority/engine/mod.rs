//! The engine: puts everything in place, and takes it away again. Agents live in [`lives`], their policies
//! in [`sets`].

mod answers;
mod lives;
mod names;
mod sets;

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::AtomicBool},
    time::Instant,
};

use agent_ebpf::Agent;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{
    bounds::{self, Bounds},
    contents::Contents,
    directory::Directory,
    objects::View,
    state::{self, State},
    stated::Stated,
    stream::{Inbox, Stream},
};
use crate::{
    api::{
        Metrics,
        doctor::{Facts, Report},
    },
    config::{BackendChoice, Config},
    identity::cgroups,
    kernel::{Coverage, Host, Tables, fanotify, host, load, memory},
    policy::{self, Policies},
};

struct Inner {
    tables: Tables,
    next_agent: u32,
    next_set: u32,
    generation: u64,
    /// The policy folder as last taken; `None` while no configured agent needs it.
    folder: Option<Policies>,
    retiring: Vec<(u32, Instant)>,
    ended: Vec<(u32, Instant)>,
    /// Agents of which nothing was found at the last ticks, and how many ticks.
    quiet: HashMap<u32, u32>,
    /// When the objects that are guarded were last looked up.
    guarded: Instant,
    /// Nothing may begin any more.
    closing: bool,
    /// Where agents' questions for names come to, once a policy asks for names.
    forwarder: Option<names::Forwarding>,
    /// When names that ended were last looked for.
    expired: Instant,
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
    contents: Arc<Contents>,
    had_agents: AtomicBool,
    started: Instant,
    me: Weak<Self>,
    _locks: [Lock; 2],
}

use answers::failed;
pub use answers::{CLOSING, EngineError, Finished, RunRequest, Running, Started, Summary};
pub(in crate::authority) use lives::uid;

/// The right to be the only daemon.
pub type Lock = nix::fcntl::Flock<fs::File>;

impl Engine {
    /// Makes the daemon's folder, only for root, and takes the right to be alone in it.
    pub fn lock(config: &Config) -> Result<Lock, EngineError> {
        host::require_root("ambitd")?;
        host::require_initial_pid_namespace()?;
        let run = &config.daemon.run;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(run)
            .map_err(failed("make the folder", run))?;
        let only_root = fs::Permissions::from_mode(0o700);
        fs::set_permissions(run, only_root).map_err(failed("close to others", run))?;
        let path = run.join("lock");
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        alone(file, &path)
    }

    /// Puts everything in place: kernel half, backend, stream, configured agents.
    ///
    /// `lock` is what [`Engine::lock`] gave.
    pub fn start(
        config: Config,
        config_path: Option<PathBuf>,
        lock: Lock,
    ) -> Result<Arc<Self>, EngineError> {
        let host = Host::read()?;
        // Opens that wait, ports and tables are descriptors. Up to its own bound a process may always go.
        if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
        }
        let hierarchy = host::cgroup2()?;
        let attach = config.kernel.attach.clone().unwrap_or_else(|| hierarchy.clone());
        if !attach.starts_with(&hierarchy) || !attach.is_dir() {
            return Err(EngineError::Request(format!(
                "kernel.attach = {attach:?} is not a cgroup beneath {}",
                hierarchy.display()
            )));
        }
        let run = &config.daemon.run;
        let locks = [lock, lock_pins(&config.kernel.pins)?];
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
            processes: config.kernel.processes,
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
        if coverage.adopted
            && let Some(other) = saved.attach.as_ref().filter(|other| **other != attach)
        {
            return Err(EngineError::Request(format!(
                "the pinned network programs are attached at {}, not at {}; run `ambit detach --all` \
                 to move them",
                other.display(),
                attach.display()
            )));
        }
        let by_fanotify = coverage.files.is_none();
        if by_fanotify {
            coverage.files = Some(load::Backend::Fanotify);
        }
        let metrics = Arc::new(Metrics::new(&coverage));
        let directory = Arc::new(Directory::default());
        let inbox = Arc::new(Inbox::default());
        let maps = config.kernel.pins.join("maps");
        let contents = Contents::start(&maps, loaded.config, metrics.clone()).map_err(|error| {
            if !coverage.adopted {
                let _ = load::remove_pins(&config.kernel.pins);
            }
            EngineError::from(error)
        })?;

        let engine = Arc::new_cyclic(|me| Self {
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
                quiet: HashMap::new(),
                guarded: Instant::now(),
                closing: false,
                forwarder: None,
                expired: Instant::now(),
            }),
            coverage,
            fanotify: Mutex::new(None),
            stream: Mutex::new(None),
            contents: contents.clone(),
            had_agents: AtomicBool::new(false),
            started: Instant::now(),
            me: me.clone(),
            _locks: locks,
        });
        let undo = |error: EngineError| {
            if !engine.coverage.adopted {
                let _ = load::remove_pins(&engine.config.kernel.pins);
            }
            error
        };
        engine.restore_names().map_err(|error| undo(error.into()))?;
        engine.restore(saved).map_err(undo)?;
        let stream = Stream::start(
            &maps,
            &engine.config.events,
            (&engine.config.daemon.run, engine.coverage.adopted),
            directory,
            inbox.clone(),
            metrics,
            contents.clone(),
        )
        .map_err(|error| undo(error.into()))?;
        *lock_of(&engine.stream) = Some(stream);
        if by_fanotify {
            let bounds = Arc::new(Bounds {
                tables: Mutex::new(Tables::open(&maps).map_err(|error| undo(error.into()))?),
                directory: engine.directory.clone(),
                config: engine.hash,
                inbox,
                contents,
            });
            let backend = fanotify::Backend::start(&engine.config.kernel.filesystems, bounds)
                .map_err(|error| undo(error.into()))?;
            *lock_of(&engine.fanotify) = Some(backend);
        }
        engine.scan();
        engine.show_generation(engine.inner().generation);
        match Facts::of(&engine.summary()) {
            Ok(facts) => engine.metrics.enforced(&Report::of(facts, true).actions),
            Err(error) => eprintln!("ambitd: metrics do not say what is enforced: {error}"),
        }
        Ok(engine)
    }

    /// Lets heartbeats and metrics tell it.
    fn show_generation(&self, generation: u64) {
        self.directory.write().generation = generation;
        self.metrics.generation(generation);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        lock_of(&self.inner)
    }

    /// Takes up the agents that ran when the last daemon ended, and lets go of those that are gone.
    fn restore(&self, saved: State) -> Result<(), EngineError> {
        let pinned: HashMap<u32, Agent> = self.inner().tables.agents().into_iter().collect();
        let (mut known, mut views) = (Vec::new(), Vec::new());
        for saved in saved.agents {
            let (number, digest) = (saved.number, saved.digest);
            if host::cgroup_id(&saved.cgroup).ok() == Some(saved.cgroup_id) {
                let entry = saved.entry();
                let lowered = self.policies_of(&entry.source).and_then(|p| self.lower(&p, &entry));
                match lowered {
                    Ok(lowered) => {
                        let view = View::of(entry.root.as_ref());
                        self.directory.write().agents.insert(number, entry);
                        if let Some(agent) = pinned.get(&number) {
                            self.recognise(view.clone(), agent.set, digest, &lowered)?;
                        }
                        known.push(number);
                        views.push((view, lowered));
                    }
                    // Its tables stay as they are pinned; only its names are missing.
                    Err(error) => eprintln!("ambitd: agent {number} keeps its old policy: {error}"),
                }
            }
        }
        self.publish_ahead(&views);
        for (number, (_, lowered)) in known.iter().zip(views) {
            self.bind(*number, lowered)?;
        }
        self.retire_unused();
        // A binding is let go only when its cgroup is gone: an agent that nobody remembers stays bound
        // to the policy that is pinned. Its number is not given out again.
        let living = cgroups::ids(&self.hierarchy);
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

    fn save(&self) -> Result<(), EngineError> {
        let inner = self.inner();
        let mut state =
            State::of(&self.directory.read(), inner.next_agent, inner.next_set, inner.generation);
        state.attach = Some(self.attach.clone());
        let run = &self.config.daemon.run;
        state.write(run).map_err(failed("write", &run.join(state::FILE)))
    }

    fn save_or_say(&self) {
        if let Err(error) = self.save() {
            eprintln!("ambitd: after a crash the agents' names would be lost: {error}");
        }
    }

    /// True when this process belongs to an agent.
    pub fn is_agent(&self, pid: u32) -> Result<bool, EngineError> {
        let inner = self.inner();
        if inner.tables.task(pid)?.is_some() || inner.tables.stray(pid)?.is_some() {
            return Ok(true);
        }
        drop(inner);
        let Ok(groups) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
            return Ok(true); // gone, or not to be seen: not to be trusted
        };
        let own = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
        Ok(bounds::agent_of_cgroup(&self.directory, own).is_some())
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

    /// The metrics as they are now.
    pub fn scrape(&self) -> Vec<u8> {
        self.metrics.hashes(self.inner().tables.known_contents());
        if let Some(tables) = self.kernel_memory() {
            self.metrics.kernel_memory(&tables);
        }
        match self.inner().tables.fill() {
            Ok(tables) => self.metrics.fill(&tables),
            Err(error) => eprintln!("ambitd: how full the tables are is not known: {error}"),
        }
        self.metrics.text()
    }

    /// What each table costs; where the kernel does not say, the daemon says why.
    fn kernel_memory(&self) -> Option<Vec<(&'static str, u64)>> {
        memory(&self.config.kernel.pins.join("maps"))
            .inspect_err(|error| eprintln!("ambitd: what the tables cost is not known: {error}"))
            .ok()
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
            landlock: crate::run::ceiling_is_available(),
            kernel_memory: self.kernel_memory().map(|all| all.iter().map(|(_, n)| n).sum()),
            agents: self.directory.read().agents.values().filter(|agent| !agent.ended).count(),
        }
    }

    /// Ends the threads. With agents still there the pinned programs stay and go on enforcing;
    /// otherwise, or with `detach`, everything is removed.
    pub fn shut_down(&self, detach: bool) {
        let agents = {
            let mut inner = self.inner();
            inner.closing = true;
            // Known or not: what is bound, or still lives, is bounded by what is pinned.
            self.has_agents()
                || !inner.tables.cgroups().is_empty()
                || inner.tables.tasks().iter().any(|(pid, _)| cgroups::lives(*pid))
        };
        self.stop_forwarding();
        // Who judges ends before who tells: every verdict that was given is written down.
        drop(lock_of(&self.fanotify).take());
        if let Some(stream) = lock_of(&self.stream).take() {
            stream.stop();
        }
        self.contents.stop();
        if detach || !agents {
            if let Err(error) = remove_all(&self.config, &self.attach) {
                eprintln!("ambitd: {error}");
            }
            let _ = fs::remove_file(self.config.daemon.run.join(state::FILE));
            Stated::forget(&self.config.daemon.run);
        } else {
            self.save_or_say();
        }
    }
}

/// Removes every pin and cgroup of Ambit; what was in the cgroups moves to the nearest group above that
/// takes processes.
pub fn remove_all(config: &Config, attach: &Path) -> Result<(), EngineError> {
    let pins = &config.kernel.pins;
    load::remove_pins(pins).map_err(failed("remove the pins in", pins))?;
    let parent = attach.join(&config.kernel.agents);
    let leaves: Vec<_> = fs::read_dir(&parent)
        .map(|entries| entries.filter_map(Result::ok).map(|entry| entry.file_name()).collect())
        .unwrap_or_default();
    cgroups::remove_tree(&parent).map_err(failed("remove the cgroup", &parent))?;
    if let Some(above) = host::pids_v1().map(|pids| pids.join(&config.kernel.agents)) {
        for leaf in leaves {
            let folder = above.join(leaf);
            cgroups::remove_tree(&folder).map_err(failed("remove the cgroup", &folder))?;
        }
        let _ = fs::remove_dir(above);
    }
    Ok(())
}

/// Pins have one owner, wherever its folder is.
fn lock_pins(pins: &Path) -> Result<Lock, EngineError> {
    host::require_bpffs(pins)?;
    fs::create_dir_all(pins).map_err(failed("make the folder", pins))?;
    let folder = fs::File::open(pins).map_err(failed("open", pins))?;
    alone(folder, pins)
}

fn alone(file: fs::File, path: &Path) -> Result<Lock, EngineError> {
    nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusiveNonblock)
        .map_err(|_| EngineError::Running { lock: path.to_path_buf() })
}

pub(super) fn lock_of<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
