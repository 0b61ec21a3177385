//! The maps that the daemon writes and reads, by meaning.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use agent_ebpf::{
    Agent, BOUND_BY_DAEMON, Config, Content, HostName, JoinKey, Lane, NameKey, NamedKey,
    ObjectCell, ObjectKey, Pair, PatternRow, PeerCell, PeerKey, PeerNames, PlaceCell, PlaceKey,
    SERVERS_PER_AGENT, ServerKey, Stream, Task,
};
use aya::{
    Pod,
    maps::{
        Array, HashMap, HashOfMaps, LpmTrie, MapData, MapError, PerCpuArray, Queue, lpm_trie::Key,
    },
};

use super::load::{config_of, open_map};
use crate::policy::Lowered;

/// Objects with what is forbidden of them, by device and inode number.
pub type Objects = BTreeMap<(u32, u64), ObjectCell>;

/// Places as they are keyed.
type Keyed = std::collections::HashMap<PlaceKey, PlaceCell>;
type ObjectTable = HashMap<MapData, ObjectKey, ObjectCell>;
type Places = HashMap<MapData, PlaceKey, PlaceCell>;
type Peers = LpmTrie<MapData, [u8; 20], PeerCell>;
type Patterns = HashMap<MapData, u32, PatternRow>;
type Joins = HashMap<MapData, JoinKey, Pair>;

/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h).
const NO_PREALLOC: u32 = 1;

/// Why a table could not be read or written. The kernel half goes on with what it has.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// A pinned map could not be opened.
    #[error("cannot open the pinned table {path}: {source}")]
    Open {
        /// The pin.
        path: PathBuf,
        /// What aya or the kernel said.
        source: Box<MapError>,
    },
    /// A map operation failed.
    #[error("cannot use the kernel's table {table}: {source}")]
    Map {
        /// Which.
        table: &'static str,
        /// What aya or the kernel said (`E2BIG`: it is full).
        source: Box<MapError>,
    },
}

pub(super) fn failed(table: &'static str) -> impl Fn(MapError) -> TableError {
    move |source| TableError::Map { table, source: Box::new(source) }
}

/// A policy set that is to be published.
pub struct NewSet<'a> {
    /// A number that was never used.
    pub number: u32,
    /// What it says.
    pub lowered: &'a Lowered,
    /// Its table of places as it is keyed.
    pub places: &'a Keyed,
    /// The objects that it forbids whatever they are called.
    pub objects: &'a Objects,
    /// Room for so many of them.
    pub most: usize,
}

/// How many sets are published or retired at once; each is a few waits for the kernel, and no work.
const AT_ONCE: usize = 64;

/// All tables, opened from their pins.
pub struct Tables {
    maps: PathBuf,
    config: Array<MapData, Config>,
    agents: HashMap<MapData, u32, Agent>,
    cgroups: HashMap<MapData, u64, u32>,
    bindings: Array<MapData, u64>,
    tasks: HashMap<MapData, u32, Task>,
    strays: HashMap<MapData, u32, u32>,
    places: HashOfMaps<MapData, u32, Places>,
    peers: HashOfMaps<MapData, u32, Peers>,
    patterns: HashOfMaps<MapData, u32, Patterns>,
    joins: HashOfMaps<MapData, u32, Joins>,
    objects: HashOfMaps<MapData, u32, ObjectTable>,
    hosts: HashMap<MapData, NamedKey, PeerNames>,
    names: HashMap<MapData, NameKey, PeerCell>,
    texts: HashMap<MapData, u32, HostName>,
    routes: HashMap<MapData, NamedKey, u32>,
    resolvers: HashMap<MapData, u32, NamedKey>,
    servers: HashMap<MapData, ServerKey, u32>,
    free_ports: Queue<MapData, u32>,
    guarded: HashMap<MapData, ObjectKey, u32>,
    contents: HashMap<MapData, ObjectKey, Content>,
    stream: PerCpuArray<MapData, Stream>,
}

impl Tables {
    /// Opens the pinned maps in a folder.
    pub fn open(maps: &Path) -> Result<Self, TableError> {
        Ok(Self {
            maps: maps.to_path_buf(),
            config: config_of(open_map(maps, "CONFIG")?)?,
            agents: HashMap::try_from(open_map(maps, "AGENTS")?).map_err(failed("AGENTS"))?,
            cgroups: HashMap::try_from(open_map(maps, "CGROUPS")?).map_err(failed("CGROUPS"))?,
            bindings: Array::try_from(open_map(maps, "BINDINGS")?).map_err(failed("BINDINGS"))?,
            tasks: HashMap::try_from(open_map(maps, "TASKS")?).map_err(failed("TASKS"))?,
            strays: HashMap::try_from(open_map(maps, "STRAYS")?).map_err(failed("STRAYS"))?,
            places: HashOfMaps::try_from(open_map(maps, "PLACES")?).map_err(failed("PLACES"))?,
            peers: HashOfMaps::try_from(open_map(maps, "PEERS")?).map_err(failed("PEERS"))?,
            patterns: HashOfMaps::try_from(open_map(maps, "PATTERNS")?)
                .map_err(failed("PATTERNS"))?,
            joins: HashOfMaps::try_from(open_map(maps, "JOINS")?).map_err(failed("JOINS"))?,
            objects: HashOfMaps::try_from(open_map(maps, "OBJECTS")?).map_err(failed("OBJECTS"))?,
            hosts: HashMap::try_from(open_map(maps, "HOSTS")?).map_err(failed("HOSTS"))?,
            names: HashMap::try_from(open_map(maps, "NAMES")?).map_err(failed("NAMES"))?,
            texts: HashMap::try_from(open_map(maps, "TEXTS")?).map_err(failed("TEXTS"))?,
            routes: HashMap::try_from(open_map(maps, "ROUTES")?).map_err(failed("ROUTES"))?,
            resolvers: HashMap::try_from(open_map(maps, "RESOLVERS")?)
                .map_err(failed("RESOLVERS"))?,
            servers: HashMap::try_from(open_map(maps, "SERVERS")?).map_err(failed("SERVERS"))?,
            free_ports: Queue::try_from(open_map(maps, "FREE_PORTS")?)
                .map_err(failed("FREE_PORTS"))?,
            guarded: HashMap::try_from(open_map(maps, "GUARDED")?).map_err(failed("GUARDED"))?,
            contents: HashMap::try_from(open_map(maps, "CONTENTS")?).map_err(failed("CONTENTS"))?,
            stream: PerCpuArray::try_from(open_map(maps, "STREAM")?).map_err(failed("STREAM"))?,
        })
    }

    /// What both halves agreed on.
    pub fn config(&self) -> Result<Config, TableError> {
        self.config.get(&0, 0).map_err(failed("CONFIG"))
    }

    /// Replaces it whole.
    pub fn set_config(&mut self, config: &Config) -> Result<(), TableError> {
        self.config.set(0, config, 0).map_err(failed("CONFIG"))
    }

    /// Publishes policy sets: each is complete before anyone can see it. Nothing of them changes after but their
    /// objects, when others are found ([`Tables::forbid`]). What came of each, in their order.
    pub fn publish(&mut self, sets: &[NewSet<'_>]) -> Vec<Result<(), TableError>> {
        self.for_each(sets, Self::publish_one)
    }

    fn publish_one(&mut self, set: &NewSet<'_>) -> Result<(), TableError> {
        let NewSet { number, lowered, places, objects, most } = set;
        let objects_of_set = || -> Result<ObjectTable, MapError> {
            let mut inner = HashMap::create(room((*most).max(objects.len())), NO_PREALLOC)?;
            for (object, cell) in *objects {
                inner.insert(object_key(*object), cell, 0)?;
            }
            Ok(inner)
        };
        let peers_of_set = || -> Result<Peers, MapError> {
            let mut inner = LpmTrie::create(room(lowered.peers.len()), NO_PREALLOC)?;
            for (key, cell) in &lowered.peers {
                inner.insert(&lpm(key), cell, 0)?;
            }
            Ok(inner)
        };
        let Self { patterns, joins, objects: by_object, peers, .. } = self;
        together([
            Box::new(|| publish(patterns, "PATTERNS", *number, lowered.rows())),
            Box::new(|| {
                let entries = lowered.joins.iter().map(|(key, pair)| (*key, *pair));
                publish(joins, "JOINS", *number, entries)
            }),
            Box::new(|| {
                objects_of_set()
                    .and_then(|inner| by_object.insert(number, &inner, 0))
                    .map_err(failed("OBJECTS"))
            }),
            Box::new(|| {
                peers_of_set()
                    .and_then(|inner| peers.insert(number, &inner, 0))
                    .map_err(failed("PEERS"))
            }),
        ])?;
        // The last: a set without places is one that nothing is decided by.
        let mut inner: Places =
            HashMap::create(room(places.len()), NO_PREALLOC).map_err(failed("PLACES"))?;
        for (key, cell) in *places {
            inner.insert(key, cell, 0).map_err(failed("PLACES"))?;
        }
        self.places.insert(number, &inner, 0).map_err(failed("PLACES"))
    }

    /// Takes sets away that no agent has had for a while. What came of each, in their order.
    pub fn retire(&mut self, sets: &[u32]) -> Vec<Result<(), TableError>> {
        self.for_each(sets, Self::retire_one)
    }

    fn retire_one(&mut self, set: &u32) -> Result<(), TableError> {
        self.places.remove(set).map_err(failed("PLACES"))?;
        let Self { patterns, joins, objects, peers, .. } = self;
        together([
            Box::new(|| ignore_missing(patterns.remove(set)).map_err(failed("PATTERNS"))),
            Box::new(|| ignore_missing(joins.remove(set)).map_err(failed("JOINS"))),
            Box::new(|| objects.remove(set).map_err(failed("OBJECTS"))),
            Box::new(|| peers.remove(set).map_err(failed("PEERS"))),
        ])
    }

    /// Does it for each set, for many of them at once: the kernel's waits for its readers are then shared
    /// (`synchronize_rcu` of kernel/rcu/tree.c).
    fn for_each<T: Sync>(
        &mut self,
        sets: &[T],
        work: fn(&mut Self, &T) -> Result<(), TableError>,
    ) -> Vec<Result<(), TableError>> {
        // Handles to the same tables; with fewer of them it takes longer.
        let wanted = sets.len().min(AT_ONCE);
        let mut others: Vec<Self> =
            (1..wanted).map_while(|_| Self::open(&self.maps).ok()).collect();
        let share = sets.len().div_ceil(1 + others.len()).max(1);
        let hands = std::iter::once(self).chain(&mut others);
        std::thread::scope(|scope| {
            let parts: Vec<_> = sets
                .chunks(share)
                .zip(hands)
                .map(|(part, tables)| {
                    scope
                        .spawn(move || part.iter().map(|set| work(tables, set)).collect::<Vec<_>>())
                })
                .collect();
            let done = parts.into_iter().map(|part| match part.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            done.flatten().collect()
        })
    }

    /// Makes these objects, and no others, the ones that a set forbids whatever they are called. What is
    /// new is there before what is old goes, unless there is room for the new only without the old.
    pub fn forbid(&mut self, set: u32, objects: &Objects) -> Result<(), TableError> {
        let mut inner: ObjectTable = self.objects.get(&set, 0).map_err(failed("OBJECTS"))?;
        let insert = |inner: &mut ObjectTable| {
            let each = |(object, cell): (&(u32, u64), &ObjectCell)| {
                inner.insert(object_key(*object), cell, 0)
            };
            objects.iter().try_for_each(each)
        };
        let inserted = insert(&mut inner);
        let gone: Vec<ObjectKey> = inner
            .keys()
            .filter_map(Result::ok)
            .filter(|key| !objects.contains_key(&(key.device, key.inode)))
            .collect();
        for key in gone {
            ignore_missing(inner.remove(&key)).map_err(failed("OBJECTS"))?;
        }
        match inserted {
            Ok(()) => Ok(()),
            Err(_) => insert(&mut inner).map_err(failed("OBJECTS")),
        }
    }

    /// Gives a number to a name.
    pub fn name(&mut self, number: u32, name: &str) -> Result<(), TableError> {
        let mut host =
            HostName { len: u8::try_from(name.len()).unwrap_or(u8::MAX), bytes: [0; 255] };
        host.bytes.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
        self.texts.insert(number, host, 0).map_err(failed("TEXTS"))
    }

    /// Writes what a set says of a name. Before an agent with that set knows an address by it.
    pub fn say(&mut self, set: u32, name: u32, cell: &PeerCell) -> Result<(), TableError> {
        self.names.insert(NameKey { set, name }, cell, 0).map_err(failed("NAMES"))
    }

    /// Takes that away.
    pub fn unsay(&mut self, set: u32, name: u32) -> Result<(), TableError> {
        ignore_missing(self.names.remove(&NameKey { set, name })).map_err(failed("NAMES"))
    }

    /// Takes a name away that nobody knows an address by.
    pub fn unname(&mut self, number: u32) -> Result<(), TableError> {
        ignore_missing(self.texts.remove(&number)).map_err(failed("TEXTS"))
    }

    /// Writes the names of an address, all at once.
    pub fn know_host(&mut self, names: &PeerNames) -> Result<(), TableError> {
        self.hosts.insert(names.first, names, 0).map_err(failed("HOSTS"))
    }

    /// Forgets the names of an address.
    pub fn unknow_host(&mut self, key: &NamedKey) -> Result<(), TableError> {
        ignore_missing(self.hosts.remove(key)).map_err(failed("HOSTS"))
    }

    /// Every name, by its number.
    pub fn host_names(&self) -> Vec<(u32, HostName)> {
        self.texts.iter().filter_map(Result::ok).collect()
    }

    /// Every address that has names, with them.
    pub fn known_hosts(&self) -> Vec<(NamedKey, PeerNames)> {
        self.hosts.iter().filter_map(Result::ok).collect()
    }

    /// The names of which sets say something, with these sets.
    pub fn said(&self) -> Vec<NameKey> {
        self.names.keys().filter_map(Result::ok).collect()
    }

    /// Begins to aim questions for names at the daemon's ports, of which there are none yet.
    pub fn forward(&mut self, netns: u64) -> Result<(), TableError> {
        self.forget_ports()?;
        let mut config = self.config()?;
        config.netns = netns;
        self.set_config(&config)
    }

    /// Forgets all ports: they are no daemon's any more. Questions are denied until there are others.
    pub fn forget_ports(&mut self) -> Result<(), TableError> {
        while self.free_ports.pop(0).is_ok() {}
        for (port, server) in self.name_servers() {
            self.forget_name_server(port, &server)?;
        }
        Ok(())
    }

    fn forget_name_server(&mut self, port: u32, server: &NamedKey) -> Result<(), TableError> {
        // The way there first, so that nobody is sent where nothing is known of him.
        ignore_missing(self.routes.remove(server)).map_err(failed("ROUTES"))?;
        ignore_missing(self.resolvers.remove(&port)).map_err(failed("RESOLVERS"))?;
        for place in 0..SERVERS_PER_AGENT {
            let key = ServerKey { agent: server.agent, place };
            if self.servers.get(&key, 0).is_ok_and(|its| its == port) {
                ignore_missing(self.servers.remove(&key)).map_err(failed("SERVERS"))?;
            }
        }
        Ok(())
    }

    /// Gives a port to the hooks.
    pub fn free_port(&mut self, port: u16) -> Result<(), TableError> {
        self.free_ports.push(u32::from(port), 0).map_err(failed("FREE_PORTS"))
    }

    /// The agent and name server that a port is for.
    pub fn name_server(&self, port: u16) -> Option<NamedKey> {
        self.resolvers.get(&u32::from(port), 0).ok()
    }

    /// All ports that are in use, and for whom.
    pub fn name_servers(&self) -> Vec<(u32, NamedKey)> {
        self.resolvers.iter().filter_map(Result::ok).collect()
    }

    /// Forgets an agent's name servers; their ports are free again.
    pub fn forget_name_servers(&mut self, agent: u32) -> Result<(), TableError> {
        let own = self.name_servers().into_iter().filter(|(_, server)| server.agent == agent);
        for (port, server) in own.collect::<Vec<_>>() {
            self.forget_name_server(port, &server)?;
            self.free_ports.push(port, 0).map_err(failed("FREE_PORTS"))?;
        }
        Ok(())
    }

    /// All sets that are published.
    pub fn sets(&self) -> BTreeSet<u32> {
        self.places.keys().filter_map(Result::ok).collect()
    }

    /// Writes an agent: the one write that swaps its policy.
    pub fn set_agent(&mut self, number: u32, agent: &Agent) -> Result<(), TableError> {
        self.agents.insert(number, agent, 0).map_err(failed("AGENTS"))
    }

    /// Forgets an agent. What still runs of it has no policy from then on.
    pub fn remove_agent(&mut self, number: u32) -> Result<(), TableError> {
        ignore_missing(self.agents.remove(&number)).map_err(failed("AGENTS"))
    }

    /// All agents that the kernel half knows.
    pub fn agents(&self) -> Vec<(u32, Agent)> {
        self.agents.iter().filter_map(Result::ok).collect()
    }

    /// Binds a cgroup to an agent, then lets the hooks look at its level.
    pub fn bind(&mut self, cgroup: u64, level: u32, agent: u32) -> Result<(), TableError> {
        self.cgroups.insert(cgroup, agent, 0).map_err(failed("CGROUPS"))?;
        let mut config = self.config()?;
        config.levels |= Config::level(level);
        self.set_config(&config)?;
        self.bound()
    }

    /// Lets a cgroup go. Levels are never taken back: they only save time.
    pub fn unbind(&mut self, cgroup: u64) -> Result<(), TableError> {
        ignore_missing(self.cgroups.remove(&cgroup)).map_err(failed("CGROUPS"))
    }

    /// All bindings.
    pub fn cgroups(&self) -> Vec<(u64, u32)> {
        self.cgroups.iter().filter_map(Result::ok).collect()
    }

    /// The agent's entry for a process, or `None` for a bystander.
    pub fn task(&self, tgid: u32) -> Result<Option<Task>, TableError> {
        match self.tasks.get(&tgid, 0) {
            Ok(task) => Ok(Some(task)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed("TASKS")(error)),
        }
    }

    /// The agent of a process that the table of tasks had no room for.
    pub fn stray(&self, tgid: u32) -> Result<Option<u32>, TableError> {
        match self.strays.get(&tgid, 0) {
            Ok(agent) => Ok(Some(agent)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed("STRAYS")(error)),
        }
    }

    /// Makes a process an agent's, as the hooks would at its next action.
    pub fn enrol(&mut self, tgid: u32, task: &Task) -> Result<(), TableError> {
        self.tasks.insert(tgid, task, 0).map_err(failed("TASKS"))?;
        self.bound()
    }

    /// Makes void what the hooks know of bystanders.
    fn bound(&mut self) -> Result<(), TableError> {
        let bound = self.bindings.get(&BOUND_BY_DAEMON, 0).map_err(failed("BINDINGS"))?;
        self.bindings.set(BOUND_BY_DAEMON, bound.wrapping_add(1), 0).map_err(failed("BINDINGS"))
    }

    /// Forgets a process that is no more.
    pub fn forget(&mut self, tgid: u32) -> Result<(), TableError> {
        ignore_missing(self.tasks.remove(&tgid)).map_err(failed("TASKS"))?;
        ignore_missing(self.strays.remove(&tgid)).map_err(failed("STRAYS"))
    }

    /// All processes of agents.
    pub fn tasks(&self) -> Vec<(u32, Task)> {
        let strays = self.strays.iter().filter_map(Result::ok);
        let strays = strays.map(|(tgid, agent)| (tgid, Task { agent, ..Task::default() }));
        self.tasks.iter().filter_map(Result::ok).chain(strays).collect()
    }

    /// Makes these objects, and no others, the ones that no agent may remove or rename.
    pub fn guard(&mut self, objects: &BTreeMap<(u32, u64), u32>) -> Result<(), TableError> {
        for (object, flags) in objects {
            self.guarded.insert(object_key(*object), flags, 0).map_err(failed("GUARDED"))?;
        }
        let gone: Vec<ObjectKey> = self
            .guarded
            .keys()
            .filter_map(Result::ok)
            .filter(|key| !objects.contains_key(&(key.device, key.inode)))
            .collect();
        for key in gone {
            ignore_missing(self.guarded.remove(&key)).map_err(failed("GUARDED"))?;
        }
        Ok(())
    }

    /// From now on the hooks keep up what is known of contents.
    pub fn ask_contents(&mut self) -> Result<(), TableError> {
        let config = self.config()?;
        self.set_config(&Config { contents: 1, ..config })
    }

    /// What is known of an object's content.
    pub fn content(&self, object: (u32, u64)) -> Result<Option<Content>, TableError> {
        match self.contents.get(&object_key(object), 0) {
            Ok(content) => Ok(Some(content)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(failed("CONTENTS")(error)),
        }
    }

    /// Writes down an object's content. When there is no room for it, all others are forgotten.
    pub fn know(&mut self, object: (u32, u64), content: &Content) -> Result<(), TableError> {
        let key = object_key(object);
        match self.contents.insert(key, content, 0) {
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(nix::libc::E2BIG) =>
            {
                let all: Vec<ObjectKey> = self.contents.keys().filter_map(Result::ok).collect();
                for one in all {
                    ignore_missing(self.contents.remove(&one)).map_err(failed("CONTENTS"))?;
                }
                self.contents.insert(key, content, 0)
            }
            other => other,
        }
        .map_err(failed("CONTENTS"))
    }

    /// Forgets it.
    pub fn unknow(&mut self, object: (u32, u64)) -> Result<(), TableError> {
        ignore_missing(self.contents.remove(&object_key(object))).map_err(failed("CONTENTS"))
    }

    /// Of how many objects the content is known.
    pub fn known_contents(&self) -> usize {
        self.contents.keys().filter_map(Result::ok).count()
    }

    /// The tables that fill up with what agents do, by name: how many entries each has, and room for how many.
    pub fn fill(&self) -> Result<Vec<(&'static str, usize, u32)>, TableError> {
        let counts = [
            ("AGENTS", self.agents.keys().filter_map(Result::ok).count()),
            ("CGROUPS", self.cgroups.keys().filter_map(Result::ok).count()),
            ("TASKS", self.tasks.keys().filter_map(Result::ok).count()),
            ("PLACES", self.places.keys().filter_map(Result::ok).count()),
            ("HOSTS", self.hosts.keys().filter_map(Result::ok).count()),
            ("NAMES", self.names.keys().filter_map(Result::ok).count()),
            ("SERVERS", self.servers.keys().filter_map(Result::ok).count()),
            ("CONTENTS", self.known_contents()),
        ];
        let room = |name| -> Result<u32, TableError> {
            let map = MapData::from_pin(self.maps.join(name)).map_err(failed(name))?;
            Ok(map.info().map_err(failed(name))?.max_entries())
        };
        counts.into_iter().map(|(name, count)| Ok((name, count, room(name)?))).collect()
    }

    /// Per-CPU account of a lane.
    pub fn stream(&self, lane: Lane) -> Result<Vec<Stream>, TableError> {
        let values = self.stream.get(&(lane as u32), 0).map_err(failed("STREAM"))?;
        Ok(values.iter().copied().collect())
    }
}

fn room(entries: usize) -> u32 {
    u32::try_from(entries.max(1)).unwrap_or(u32::MAX)
}

/// Does several things at once: each change of a table of tables waits until no program can see what was
/// there (`maybe_wait_bpf_programs` of kernel/bpf/syscall.c). The error is one of theirs.
fn together<const N: usize>(
    work: [Box<dyn FnOnce() -> Result<(), TableError> + Send + '_>; N],
) -> Result<(), TableError> {
    std::thread::scope(|scope| {
        let threads = work.map(|one| scope.spawn(one));
        let done = threads.map(|thread| match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        done.into_iter().collect()
    })
}

/// Publishes a table that a set has only when there is something in it.
fn publish<K: Pod, V: Pod>(
    outer: &mut HashOfMaps<MapData, u32, HashMap<MapData, K, V>>,
    name: &'static str,
    set: u32,
    entries: impl ExactSizeIterator<Item = (K, V)>,
) -> Result<(), TableError> {
    if entries.len() == 0 {
        return Ok(());
    }
    let mut inner: HashMap<MapData, K, V> =
        HashMap::create(room(entries.len()), NO_PREALLOC).map_err(failed(name))?;
    for (key, value) in entries {
        inner.insert(key, value, 0).map_err(failed(name))?;
    }
    outer.insert(set, &inner, 0).map_err(failed(name))
}

fn ignore_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(error) if is_missing(&error) => Ok(()),
        other => other,
    }
}

/// True when what was asked for is not there, or no more.
pub(super) fn is_missing(error: &MapError) -> bool {
    match error {
        MapError::KeyNotFound => true,
        MapError::SyscallError(error) => error.io_error.raw_os_error() == Some(nix::libc::ENOENT),
        _ => false,
    }
}

const fn object_key((device, inode): (u32, u64)) -> ObjectKey {
    ObjectKey { inode, device, pad: 0 }
}

fn lpm(key: &PeerKey) -> Key<[u8; 20]> {
    let mut data = [0; 20];
    data[0] = key.kind;
    data[1] = key.of;
    data[2..4].copy_from_slice(&key.port);
    data[4..].copy_from_slice(&key.address);
    Key::new(key.prefix_len, data)
}
