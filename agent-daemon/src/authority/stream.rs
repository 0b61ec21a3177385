//! The thread that carries the story: rings, and the fanotify backend, to the pipeline, to the sinks.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use agent_ebpf::{
    Action, FileBody, Header, Kind, Lane, NamedKey, PeerBody, Privilege, Reason, SocketKind,
    Verdict,
};
use std::os::unix::ffi::OsStrExt as _;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zerocopy::FromBytes as _;

use super::{contents::Contents, directory::Directory, stated::Stated};
use crate::{
    api::Metrics,
    config::EventsConfig,
    events::{Batch, Body, Host, Pipeline, Processes, decode, heartbeat::Pulse, proc::SlashProc},
    kernel::{Rings, TableError, Tables, fanotify::boot_time},
    policy::{AgentName, Attempt, Target},
    sinks::{FileSink, Sink, SinkError},
};

/// How long a quiet stream is left alone.
const QUIET: u8 = 50;
/// Records of the common lane taken at once, so that denials are looked at in between.
const AT_ONCE: usize = 16 * 1024;
/// How often losses are settled and the fill of the rings is shown.
const SETTLE: Duration = Duration::from_millis(200);
/// Different denied actions that are remembered for an agent's audit.
const ATTEMPTS: usize = 10_000;
/// Records of the fanotify backend that may wait; the answerers wait for room, so nothing is lost.
const WAITING: usize = 64 * 1024;

/// Why the stream could not begin.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A pinned ring or table could not be opened.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The event file could not be opened.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The host could not be read, or the thread not be started.
    #[error("cannot start the event stream: {0}")]
    Io(#[from] std::io::Error),
}

/// Records that the daemon makes itself.
#[derive(Debug, Default)]
pub struct Inbox(Mutex<Vec<Vec<u8>>>);

impl Inbox {
    /// Adds a record; waits while there is no room.
    pub fn put(&self, record: &[u8]) {
        loop {
            let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() < WAITING {
                waiting.push(record.to_vec());
                return;
            }
            drop(waiting);
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn take(&self, batch: &mut Vec<Vec<u8>>) {
        std::mem::swap(batch, &mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The running thread.
pub struct Stream {
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread works with.
struct Carrier {
    rings: Rings,
    tables: Tables,
    directory: Arc<Directory>,
    inbox: Arc<Inbox>,
    metrics: Arc<Metrics>,
    contents: Arc<Contents>,
    pipeline: Pipeline,
    config: EventsConfig,
    /// By the file that an agent's events go to.
    ways: HashMap<PathBuf, Way>,
    /// Files that could not be opened.
    refused: HashSet<PathBuf>,
    stated: Stated,
}

/// One file with the batch that is on its way there.
struct Way {
    batch: Batch,
    sink: FileSink,
    warned: bool,
}

impl Stream {
    /// Opens the rings and the common event file and starts to carry. `run` is the folder in which the daemon
    /// before may have left how far it came, which counts where its programs are `adopted`.
    pub fn start(
        maps: &Path,
        config: &EventsConfig,
        (run, adopted): (&Path, bool),
        directory: Arc<Directory>,
        inbox: Arc<Inbox>,
        metrics: Arc<Metrics>,
        contents: Arc<Contents>,
    ) -> Result<Self, StreamError> {
        let tables = Tables::open(maps)?;
        let mut pipeline = Pipeline::new(&Host::read()?, Processes::new(Box::new(SlashProc)));
        let mut tasks = tables.tasks();
        tasks.sort_by_key(|(_, task)| task.start);
        for (tgid, task) in &tasks {
            pipeline.processes_mut().adopt(*tgid, task);
        }
        let stated = Stated::resume(run, adopted, pipeline.gaps_mut());
        let mut carrier = Carrier {
            rings: Rings::open(maps)?,
            tables,
            directory,
            inbox,
            metrics,
            contents,
            pipeline,
            config: config.clone(),
            ways: HashMap::new(),
            refused: HashSet::new(),
            stated,
        };
        let sink = FileSink::open(&config.file, config.max_bytes, config.keep)?;
        let way = Way { batch: Batch::new(), sink, warned: false };
        carrier.ways.insert(config.file.clone(), way);
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let thread =
            thread::Builder::new().name("stream".to_owned()).spawn(move || carrier.run(&stop))?;
        Ok(Self { stopping, thread: Some(thread) })
    }

    /// Carries what is there and ends.
    pub fn stop(mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Carrier {
    fn run(mut self, stop: &AtomicBool) {
        let mut lines = Vec::with_capacity(1 << 20);
        let mut own = Vec::new();
        let mut settled = Instant::now();
        let interval = Duration::from_secs(u64::from(self.config.heartbeat_seconds));
        let mut pulse = Pulse::every(interval);
        loop {
            let last = stop.load(Ordering::SeqCst);
            if !last {
                let fds = self.rings.fds();
                let mut ready = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
                let _ = poll(&mut ready, PollTimeout::from(QUIET));
            }
            // Counters first: what they count as sent is in the rings by the time these are drained.
            let settle = (last || settled.elapsed() >= SETTLE).then(|| self.counters());
            loop {
                let began = boot_time();
                self.inbox.take(&mut own);
                let drained = self.gather(&mut own);
                self.metrics.ring_fill(
                    drained.denied_bytes,
                    drained.told_bytes,
                    self.rings.bytes(),
                );
                // A record later than the drain's beginning may have an earlier one behind it in the
                // other lane; it waits for the next round, unless nothing is left to wait for.
                let until = if drained.records == 0 || last { u64::MAX } else { began };
                self.tell(until, &mut lines);
                if drained.records == 0 {
                    break;
                }
            }
            if let Some(counters) = settle {
                settled = Instant::now();
                lines.clear();
                let stated = self.pipeline.settle(counters, &mut lines);
                for kind in agent_ebpf::Kind::ALL {
                    self.metrics.lost_in_ring(kind.name(), stated.lost(*kind));
                }
                let events = stated.events + self.beat(&mut pulse, &mut lines);
                let common = self.config.file.clone();
                self.write(&common, &lines, events);
                self.pipeline.refresh_clock();
                self.flush();
                self.stated.keep(self.pipeline.gaps());
            }
            if last {
                self.flush();
                return;
            }
        }
    }

    /// Adds a heartbeat if one is due; returns the events that it added.
    fn beat(&mut self, pulse: &mut Pulse, lines: &mut Vec<u8>) -> u64 {
        let names = self.directory.read();
        let agents = names.agents.values().filter(|agent| !agent.ended).count();
        let Some(beat) = pulse.due(Instant::now(), names.generation, agents) else { return 0 };
        drop(names);
        self.pipeline.beat(&beat, lines);
        self.metrics.heartbeat(beat.interval);
        1
    }

    fn counters(&self) -> Vec<(u32, Lane, agent_ebpf::Stream)> {
        let mut all = Vec::new();
        for lane in Lane::ALL {
            if let Ok(streams) = self.tables.stream(*lane) {
                all.extend((0_u32..).zip(streams).map(|(cpu, stream)| (cpu, *lane, stream)));
            }
        }
        all
    }

    /// Moves what waits into the batches of its agents' files.
    fn gather(&mut self, own: &mut Vec<Vec<u8>>) -> crate::kernel::rings::Drained {
        let Self { rings, ways, refused, directory, config, .. } = self;
        let names = directory.read();
        let mut put = |bytes: &[u8]| {
            let file = Header::read_from_prefix(bytes)
                .ok()
                .and_then(|(header, _)| names.agents.get(&header.agent))
                .and_then(|agent| agent.events.as_deref())
                .filter(|file| !refused.contains(*file))
                .unwrap_or(&config.file);
            if !ways.contains_key(file) {
                match FileSink::open(file, config.max_bytes, config.keep) {
                    Ok(sink) => {
                        let way = Way { batch: Batch::new(), sink, warned: false };
                        ways.insert(file.to_path_buf(), way);
                    }
                    Err(error) => {
                        eprintln!("ambitd: {error}; its events go to {}", config.file.display());
                        refused.insert(file.to_path_buf());
                    }
                }
            }
            let file = if refused.contains(file) { &config.file } else { file };
            if let Some(way) = ways.get_mut(file) {
                way.batch.push(bytes);
            }
        };
        let mut drained = crate::kernel::rings::Drained::default();
        for record in own.drain(..) {
            put(&record);
            drained.records += 1;
        }
        let from_rings = rings.drain(AT_ONCE, &mut put);
        drop(names);
        drained.records += from_rings.records;
        drained.denied_bytes = from_rings.denied_bytes;
        drained.told_bytes = from_rings.told_bytes;
        drained
    }

    fn tell(&mut self, until: u64, lines: &mut Vec<u8>) {
        let files: Vec<PathBuf> = self.ways.keys().cloned().collect();
        for file in files {
            let Some(way) = self.ways.get_mut(&file) else {
                continue;
            };
            if way.batch.is_empty() {
                continue;
            }
            let mut batch = std::mem::take(&mut way.batch);
            remember(&self.directory, &batch);
            learn(&self.contents, &batch);
            lines.clear();
            let names = self.directory.read();
            let taken = self.pipeline.take_until(&mut batch, until, &*names, lines);
            let (events, undecodable) = (taken.events, taken.undecodable);
            let counts = taken.counts.to_vec();
            for count in &counts {
                if let Some(agent) = names.agents.get(&count.agent) {
                    self.metrics.action(&agent.name, count.action, count.verdict, count.count);
                }
            }
            drop(names);
            let mut names = self.directory.write();
            for count in &counts {
                if let Some(agent) = names.agents.get_mut(&count.agent) {
                    agent.counts[count.verdict as usize - 1] += count.count;
                }
            }
            drop(names);
            self.metrics.undecodable(undecodable);
            if let Some(way) = self.ways.get_mut(&file) {
                way.batch = batch;
            }
            self.write(&file, lines, events);
        }
    }

    fn write(&mut self, file: &Path, lines: &[u8], events: u64) {
        if events == 0 && lines.is_empty() {
            return;
        }
        let Some(way) = self.ways.get_mut(file) else {
            return;
        };
        let before = way.sink.lost();
        let result = way.sink.write(lines, events);
        self.metrics.emitted(events);
        self.metrics.lost_in_sink("file", way.sink.lost() - before);
        report(way, result);
    }

    fn flush(&mut self) {
        for way in self.ways.values_mut() {
            let result = way.sink.flush();
            report(way, result);
        }
        self.metrics.sink_stalled("file", self.ways.values().any(|way| way.warned));
        // A file whose agents have all ended is closed.
        let names = self.directory.read();
        let common = &self.config.file;
        self.ways.retain(|file, way| {
            file == common
                || !way.batch.is_empty()
                || names.agents.values().any(|agent| agent.events.as_ref() == Some(file))
        });
    }
}

/// Says once that a file cannot be written, and once that it can again.
fn report(way: &mut Way, result: Result<(), SinkError>) {
    match result {
        Ok(()) => way.warned = false,
        Err(error) => {
            if !way.warned {
                eprintln!("ambitd: {error}");
            }
            way.warned = true;
        }
    }
}

/// Has the programs read that were denied, or would have been, because nobody knows what they contain; and those that
/// IMA read, so that it need not again.
fn learn(contents: &Contents, batch: &Batch) {
    for bytes in batch.records() {
        let Ok((header, rest)) = Header::read_from_prefix(bytes) else { continue };
        let is_unread = header.kind == Kind::File as u8
            && FileBody::read_from_prefix(rest).is_ok_and(|(body, _)| body.is_unread != 0);
        if (is_unread || header.reason == Reason::HashUnknown as u8)
            && let Ok(record) = decode(bytes)
            && let Body::File { body, path, .. } = record.body
        {
            contents.ask(path, record.header.tgid, (body.device, body.inode));
        }
    }
}

/// Remembers what audited agents would have been denied, for the lines that would have permitted it.
fn remember(directory: &Directory, batch: &Batch) {
    let mut found = Vec::new();
    for record in batch.records().filter_map(|bytes| decode(bytes).ok()) {
        let unknown = record.header.reason == Reason::HashUnknown as u8;
        // What is not known yet is no reason for a line.
        if record.header.verdict != Verdict::WouldDeny as u8 || unknown {
            continue;
        }
        let Some(action) = Action::from_code(record.header.action) else {
            continue;
        };
        let file = |path: &[u8], is_dir| Target::File {
            path: PathBuf::from(std::ffi::OsStr::from_bytes(path)),
            is_dir,
        };
        let targets = match record.body {
            Body::File { path, .. } if matches!(action, Action::Connect | Action::Bind) => {
                let named = path.starts_with(b"/") || path.starts_with(b"@");
                let name = PathBuf::from(std::ffi::OsStr::from_bytes(path));
                named.then_some(Target::UnixSocket(name)).into_iter().collect()
            }
            Body::File { body, path, result } => [path, result]
                .into_iter()
                .filter(|path| path.starts_with(b"/"))
                .map(|path| file(path, body.is_dir != 0))
                .collect(),
            Body::Peer(peer) => vec![Target::Peer { peer: peer_of(&peer), host: None }],
            Body::Privilege(body) => {
                let one = u8::try_from(body.privilege).ok().and_then(Privilege::from_code);
                one.map(Target::Privilege).into_iter().collect()
            }
            Body::Socket(body) => {
                let kind = u8::try_from(body.kind).ok().and_then(SocketKind::from_code);
                kind.map(Target::Socket).into_iter().collect()
            }
            Body::Fork(_) | Body::Exec { .. } | Body::Exit(_) | Body::Enrol => Vec::new(),
        };
        found.extend(targets.into_iter().map(|target| (record.header.agent, action, target)));
    }
    if found.is_empty() {
        return;
    }
    let mut names = directory.write();
    for (number, action, target) in found {
        let Some(agent) = names.agents.get(&number) else {
            continue;
        };
        let Ok(name) = AgentName::parse(&agent.name) else {
            continue;
        };
        let target = match target {
            Target::Peer { peer, .. } if action == Action::Connect => {
                let host = names
                    .names
                    .of(&NamedKey::of(number, &peer))
                    .first()
                    .map(|name| (*name).to_owned());
                Target::Peer { peer, host }
            }
            other => other,
        };
        let Some(agent) = names.agents.get_mut(&number) else {
            continue;
        };
        let attempt = Attempt { agent: name, action, target };
        if agent.attempts.len() < ATTEMPTS && !agent.attempts.contains(&attempt) {
            agent.attempts.push(attempt);
        }
    }
}

fn peer_of(body: &PeerBody) -> agent_ebpf::Peer {
    agent_ebpf::Peer {
        protocol: body.protocol,
        family: body.family,
        port: body.port,
        address: body.address,
    }
}
