//! Every map, with who writes it and who reads it.
//!
//! Sizes are those of a small machine; the daemon raises `TASKS` and the rings to fit the host before
//! it loads them.

use agent_ebpf::{
    ARGV_MAX, Action, Agent, Config, Content, Decision, ExecBody, FACETS, FileBody, Found, Header,
    HostName, JoinKey, NameKey, NamedKey, ObjectCell, ObjectKey, PATH_MAX, Pair, PathWalk,
    PatternRow, PeerCell, PeerKey, PeerNames, PlaceCell, PlaceKey, RuleId, SLOTS_PER_CPU,
    ServerKey, Stream, Task, Trial,
};
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, HashOfMaps, PerCpuArray, RingBuf, SkStorage},
    helpers::generated::{bpf_map_pop_elem, bpf_map_push_elem},
    macros::btf_map,
};

use crate::hooks::path::Spot;

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// Written by the daemon, read by every hook.
#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();

/// Agent number to its policy set and mode. Written by the daemon: one write swaps its policy.
#[btf_map]
pub static AGENTS: HashMap<u32, Agent, 4096, NO_PREALLOC> = HashMap::new();

/// Cgroup id to agent number. Written by the daemon. There is room for more than in [`AGENTS`]: who is bound
/// and has no entry there is permitted nothing.
#[btf_map]
pub static CGROUPS: HashMap<u64, u32, 16384, NO_PREALLOC> = HashMap::new();

/// Processes of agents, by thread group id. Written by the hooks, removed at exit; read by the daemon
/// for the fanotify backend and to refuse agents at its control socket.
#[btf_map]
pub static TASKS: HashMap<u32, Task, 32768, NO_PREALLOC> = HashMap::new();

/// Agents' processes that [`TASKS`] had no room for, with their agent: nothing is permitted to them. It
/// has its memory from the beginning. Written by the hooks.
#[btf_map]
pub static STRAYS: HashMap<u32, u32, 4096> = HashMap::new();

/// 1 once there has been a stray: bystanders pay for the look into [`STRAYS`] only then.
#[btf_map]
pub static STRAYED: Array<u32, 1> = Array::new();

/// Policy set to its places. The inner tables are written by the daemon before they are published and
/// never after.
#[btf_map]
pub static PLACES: HashOfMaps<u32, PlaceTable, 4096> = HashOfMaps::new();

/// Policy set to its peers; published like `PLACES`.
#[btf_map]
pub static PEERS: HashOfMaps<u32, PeerTable, 4096> = HashOfMaps::new();

/// Policy set to its automaton of patterns, where it has any; published like `PLACES`.
#[btf_map]
pub static PATTERNS: HashOfMaps<u32, PatternTable, 4096> = HashOfMaps::new();

/// Policy set to its rules that join dimensions, where it has any; published like `PLACES`.
#[btf_map]
pub static JOINS: HashOfMaps<u32, JoinTable, 4096> = HashOfMaps::new();

/// Policy set to the objects that it forbids whatever they are called. The inner tables are written by the
/// daemon before they are published, and again when it finds other objects at the places of the rules.
#[btf_map]
pub static OBJECTS: HashOfMaps<u32, ObjectTable, 4096> = HashOfMaps::new();

/// What the tables of one policy set look like, by sizes and not by types: from 5.15 to 6.1 the kernel
/// takes an inner map with type information for another kind than one without (`timer_off` in
/// `bpf_map_meta_equal`), and those that the daemon makes have none.
macro_rules! inner_table {
    ($(#[$meta:meta])* $name:ident, $kind:ident, $key:ty, $value:ty) => {
        $(#[$meta])*
        #[repr(C)]
        pub struct $name {
            r#type: *const [i32; aya_ebpf::bindings::bpf_map_type::$kind as usize],
            key_size: *const [i32; size_of::<$key>()],
            value_size: *const [i32; size_of::<$value>()],
            max_entries: *const [i32; 1],
            map_flags: *const [i32; NO_PREALLOC],
        }
    };
}

inner_table!(
    /// [`PlaceKey`] to [`PlaceCell`].
    PlaceTable, BPF_MAP_TYPE_HASH, PlaceKey, PlaceCell
);
inner_table!(
    /// [`agent_ebpf::PeerKey`] to [`PeerCell`], by longest prefix.
    PeerTable, BPF_MAP_TYPE_LPM_TRIE, PeerKey, PeerCell
);
inner_table!(
    /// State to [`PatternRow`].
    PatternTable, BPF_MAP_TYPE_HASH, u32, PatternRow
);
inner_table!(
    /// [`JoinKey`] to [`Pair`].
    JoinTable, BPF_MAP_TYPE_HASH, JoinKey, Pair
);

inner_table!(
    /// [`ObjectKey`] to [`ObjectCell`].
    ObjectTable, BPF_MAP_TYPE_HASH, ObjectKey, ObjectCell
);

/// The names that agents were told, by address. Written by the daemon before an answer is passed on.
#[btf_map]
pub static HOSTS: HashMap<NamedKey, PeerNames, 65536, NO_PREALLOC> = HashMap::new();

/// What policy sets say of the names in [`HOSTS`]. Written by the daemon before a name is there, and before
/// an agent is given a set.
#[btf_map]
pub static NAMES: HashMap<NameKey, PeerCell, 131_072, NO_PREALLOC> = HashMap::new();

/// What names are called, by number. Written by the daemon, and read by the one after it.
#[btf_map]
pub static TEXTS: HashMap<u32, HostName, 65536, NO_PREALLOC> = HashMap::new();

/// An agent's name server to the port of the daemon that asks it. Written by the hooks.
#[btf_map]
pub static ROUTES: HashMap<NamedKey, u32, 8192, NO_PREALLOC> = HashMap::new();

/// The other way round. Written by the hooks, read by the daemon.
#[btf_map]
pub static RESOLVERS: HashMap<u32, NamedKey, 8192, NO_PREALLOC> = HashMap::new();

/// The ports of an agent's name servers, each in a place of its own. Written by the hooks.
#[btf_map]
pub static SERVERS: HashMap<ServerKey, u32, 8192, NO_PREALLOC> = HashMap::new();

/// Ports of the daemon that have no name server yet. Written by the daemon, emptied by the hooks.
#[btf_map]
pub static FREE_PORTS: Ports = Ports::new();

/// A queue of ports (`BPF_MAP_TYPE_QUEUE`).
#[repr(C)]
pub struct Ports {
    r#type: *const [i32; aya_ebpf::bindings::bpf_map_type::BPF_MAP_TYPE_QUEUE as usize],
    value_size: *const [i32; size_of::<u32>()],
    max_entries: *const [i32; 16384],
}

// SAFETY: never read as what it is made of: the loader makes a map of it.
unsafe impl Sync for Ports {}

impl Ports {
    const fn new() -> Self {
        use core::ptr::null;
        Self { r#type: null(), value_size: null(), max_entries: null() }
    }

    /// Takes one.
    #[inline(always)]
    pub fn take(&self) -> Option<u32> {
        let mut port = 0_u32;
        // SAFETY: a queue of `u32`, and room for one.
        let failed = unsafe {
            bpf_map_pop_elem(
                core::ptr::from_ref(self).cast_mut().cast(),
                core::ptr::from_mut(&mut port).cast(),
            )
        };
        (failed == 0).then_some(port)
    }

    /// Puts one back. There is room for more than there can be.
    #[inline(always)]
    pub fn put(&self, port: u32) {
        // SAFETY: as above.
        let _ = unsafe {
            bpf_map_push_elem(
                core::ptr::from_ref(self).cast_mut().cast(),
                core::ptr::from_ref(&port).cast(),
                0,
            )
        };
    }
}

/// How many questions that went ahead are kept.
pub const MEMOS_MAX: usize = 4096;

/// Questions that went ahead, by their hash. Written and read by the hooks.
#[btf_map]
pub static MEMOS: Array<u64, MEMOS_MAX> = Array::new();

/// How many bystanders are remembered; two that fall into one place forget each other.
pub const BYSTANDERS_MAX: usize = 16384;

/// Tasks that were found to be nobody's, by their hash. Written and read by the hooks.
#[btf_map]
pub static BYSTANDERS: Array<u64, BYSTANDERS_MAX> = Array::new();

/// How often a cgroup or a process that lived already was bound to an agent, by the hooks and by the daemon: what is
/// known of bystanders from before is void. Each counts after the table that it is about has been written.
#[btf_map]
pub static BINDINGS: Array<u64, 2> = Array::new();

/// The agent that accepted a connection, for as long as it is that connection. Written and read by the hooks.
#[btf_map]
pub static ACCEPTED: SkStorage<u32> = SkStorage::new();

/// Objects of Ambit's own, and the folders that lead to them. Written by the daemon.
#[btf_map]
pub static GUARDED: HashMap<ObjectKey, u32, 65536, NO_PREALLOC> = HashMap::new();

/// Programs whose content is known. Written by the daemon, which forgets all when it is full; what an agent
/// opens for writing, the hooks take out.
#[btf_map]
pub static CONTENTS: HashMap<ObjectKey, Content, 65536, NO_PREALLOC> = HashMap::new();

/// Whether IMA gives digests here. Written by the daemon before it loads anything else, and by the program that it
/// tries; not pinned.
#[btf_map]
pub static TRIAL: Array<Trial, 1> = Array::new();

/// What was denied, or would have been. Written by the hooks, read by the daemon.
#[btf_map]
pub static DENIED: RingBuf<u8, { 1 << 20 }> = RingBuf::new();

/// Everything else that agents did. Written by the hooks, read by the daemon.
#[btf_map]
pub static TOLD: RingBuf<u8, { 1 << 22 }> = RingBuf::new();

/// Sequence numbers and losses by lane. Written by the hooks, read by the daemon.
#[btf_map]
pub static STREAM: PerCpuArray<Stream, 2> = PerCpuArray::new();

/// Room in which a path is resolved and its record built. Hooks may be preempted, so a slot is
/// claimed, not indexed by CPU; each CPU looks for one among [`SLOTS_PER_CPU`] of its own. The
/// daemon makes the table as large as the host has CPUs.
#[btf_map]
pub static SCRATCH: Array<Scratch, { SLOTS_PER_CPU as usize }> = Array::new();

/// Room for an exec record; a tracepoint program never runs twice at once on one CPU.
#[btf_map]
pub static EXEC_SCRATCH: PerCpuArray<ExecRecord, 1> = PerCpuArray::new();

/// One slot of [`SCRATCH`].
#[repr(C)]
pub struct Scratch {
    /// 1 while somebody is in it.
    pub busy: u64,
    pub walk: PathWalk,
    pub climb: Climb,
    /// The new name and the old one of what moves.
    pub ends: [End; 2],
    /// What its ends come to so far.
    pub action: Action,
    pub decision: Decision,
    /// What the walk came to, where IMA may be asked for the content.
    pub found: Found,
    /// The names met on the way up, written from the end.
    pub names: [u8; PATH_MAX + NAME_ROOM],
    /// The other path of a change that has two.
    pub result: [u8; PATH_MAX],
    pub record: FileRecord,
}

/// One end of a move.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct End {
    pub spot: Spot,
    /// What is asked of it: bits by [`agent_ebpf::Facet`].
    pub asked: u32,
}

/// Room for the longest name of a directory entry and its NUL (include/linux/limits.h: `NAME_MAX`), and for
/// the verifier, which sees the bounds of a name's place and of its length apart.
pub const NAME_ROOM: usize = 264;

/// Where a climb from an object to the root is, and what it found.
#[repr(C)]
pub struct Climb {
    /// The `vfsmount` that it is in.
    pub mount: u64,
    /// The directory entry that it is at.
    pub dentry: u64,
    /// Where it ends: the task's root.
    pub root_mount: u64,
    /// The same.
    pub root_dentry: u64,
    /// Where in [`Scratch::names`] the last name begins.
    pub at: u32,
    /// `super_block.s_dev` of the file system that it is in.
    pub device: u32,
    /// 1 while it is above the root of its mount, where only objects count.
    pub beside: u32,
    /// 0 until it arrived somewhere.
    pub arrived: u32,
    /// 1 where no name is wanted.
    pub nameless: u32,
    /// Zero.
    pub pad: u32,
    /// What is forbidden of the object itself, by [`agent_ebpf::Facet`].
    pub forbidden: [RuleId; FACETS],
}

/// A [`agent_ebpf::Kind::File`] record with room for the two longest paths.
#[repr(C)]
pub struct FileRecord {
    pub header: Header,
    pub body: FileBody,
    pub path: [u8; PATH_MAX],
    /// Where the second path goes when the first is at its longest.
    pub more: [u8; PATH_MAX],
}

/// A [`agent_ebpf::Kind::Exec`] record with room for the longest file name and arguments.
#[repr(C)]
pub struct ExecRecord {
    pub header: Header,
    pub body: ExecBody,
    pub tail: [u8; PATH_MAX + ARGV_MAX],
}
