//! Every map, with who writes it and who reads it.
//!
//! Sizes are those of a small machine; the daemon raises `TASKS` and the rings to fit the host before
//! it loads them.

use agent_ebpf::{
    ARGV_MAX, Agent, Config, ExecBody, FileBody, Header, ObjectKey, PATH_MAX, PathWalk, PeerCell,
    PeerKey, PlaceCell, PlaceKey, Stream, Task,
};
use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, HashOfMaps, PerCpuArray, RingBuf},
    macros::btf_map,
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// Written by the daemon, read by every hook.
#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();

/// Agent number to its policy set and mode. Written by the daemon: one write swaps its policy.
#[btf_map]
pub static AGENTS: HashMap<u32, Agent, 4096, NO_PREALLOC> = HashMap::new();

/// Cgroup id to agent number. Written by the daemon.
#[btf_map]
pub static CGROUPS: HashMap<u64, u32, 4096, NO_PREALLOC> = HashMap::new();

/// Processes of agents, by thread group id. Written by the hooks, removed at exit; read by the daemon
/// for the fanotify backend and to refuse agents at its control socket.
#[btf_map]
pub static TASKS: HashMap<u32, Task, 32768, NO_PREALLOC> = HashMap::new();

/// Policy set to its places. The inner tables are written by the daemon before they are published and
/// never after.
#[btf_map]
pub static PLACES: HashOfMaps<u32, PlaceTable, 4096> = HashOfMaps::new();

/// Policy set to its peers; published like `PLACES`.
#[btf_map]
pub static PEERS: HashOfMaps<u32, PeerTable, 4096> = HashOfMaps::new();

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

/// Objects of Ambit's own, and the folders that lead to them. Written by the daemon.
#[btf_map]
pub static GUARDED: HashMap<ObjectKey, u32, 65536, NO_PREALLOC> = HashMap::new();

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
/// claimed, not indexed by CPU; each CPU begins to look at a place of its own.
#[btf_map]
pub static SCRATCH: Array<Scratch, { SLOTS as usize }> = Array::new();

/// Room for an exec record; a tracepoint program never runs twice at once on one CPU.
#[btf_map]
pub static EXEC_SCRATCH: PerCpuArray<ExecRecord, 1> = PerCpuArray::new();

/// How many slots of scratch space there are: eight for each of 128 CPUs, about 4 MiB.
pub const SLOTS: u32 = 1024;

/// One slot of [`SCRATCH`].
#[repr(C)]
pub struct Scratch {
    /// 1 while somebody is in it.
    pub busy: u64,
    pub walk: PathWalk,
    pub record: FileRecord,
}

/// A [`agent_ebpf::Kind::File`] record with room for the longest path.
#[repr(C)]
pub struct FileRecord {
    pub header: Header,
    pub body: FileBody,
    pub path: [u8; PATH_MAX],
}

/// A [`agent_ebpf::Kind::Exec`] record with room for the longest file name and arguments.
#[repr(C)]
pub struct ExecRecord {
    pub header: Header,
    pub body: ExecBody,
    pub tail: [u8; PATH_MAX + ARGV_MAX],
}
