//! The words that the kernel half and the daemon exchange: map keys and values, and event records.
//!
//! Everything is `#[repr(C)]`, integers only, padding explicit and size asserted, so that both
//! halves, whatever compiled them, mean the same bytes. The daemon reads records by a checked parse
//! (`zerocopy`), never by a cast.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Changes whenever a map's or a record's layout does; a daemon refuses pinned maps of another one.
pub const ABI_VERSION: u32 = 1;

/// The longest path that a hook resolves, in bytes with its final NUL (`PATH_MAX` of
/// include/uapi/linux/limits.h). What is longer is [`Reason::PathUnresolved`].
pub const PATH_MAX: usize = 4096;

/// How many bytes of a command line an exec record carries; what is cut off is counted in
/// [`ExecBody::argv_total`].
pub const ARGV_MAX: usize = 4096;

/// Deepest cgroup level (root is 0) at which an agent may be bound.
pub const MAX_CGROUP_LEVEL: u32 = 31;

/// A rule's number within its policy set; 0 is "none". The daemon keeps the names.
pub type RuleId = u32;

/// No rule.
pub const RULE_NONE: RuleId = 0;
/// The built-in forbid that keeps agents away from Ambit's own files. Policy rules start above it.
pub const RULE_PROTECTED: RuleId = 1;
/// First number that a policy's rules may have.
pub const RULE_FIRST: RuleId = 2;

macro_rules! codes {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $value:literal, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $($(#[$vmeta])* $variant = $value,)* }
        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// The value with this code, or `None` when no such code exists.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($value => Some(Self::$variant),)* _ => None }
            }
            /// The name used in policies, events and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

codes! {
    /// What an agent tries to do; the names are the actions of the Cedar schema.
    Action {
        /// Run a program (the file, a script's interpreter, or the ELF loader).
        Exec = 0, "exec";
        /// Open a file or folder for reading.
        Read = 1, "read";
        /// Open a file for writing, truncate it by opening, or create it.
        Write = 2, "write";
        /// Connect to, or send a datagram to, an internet peer.
        Connect = 3, "connect";
        /// Take a local internet address.
        Bind = 4, "bind";
        /// Call `bpf(2)`; never granted to an agent.
        Bpf = 5, "bpf";
    }
}

codes! {
    /// What came of it.
    Verdict {
        /// It went ahead.
        Allowed = 1, "allowed";
        /// It was stopped with `EPERM`.
        Denied = 2, "denied";
        /// Audit mode: it went ahead, and would have been denied.
        WouldDeny = 3, "audit";
    }
}

codes! {
    /// Why.
    Reason {
        /// A permit matched and no forbid did.
        Permitted = 1, "permitted";
        /// A forbid matched.
        Forbidden = 2, "forbidden";
        /// Nothing matched; the default is deny.
        NoPermit = 3, "no_permit";
        /// The object's path could not be had whole (too long, unreachable, read error).
        PathUnresolved = 4, "path_unresolved";
        /// The task's root folder or mount namespace is not the one it was enrolled with.
        RootChanged = 5, "root_changed";
        /// The agent has no policy loaded.
        NoPolicy = 6, "no_policy";
        /// A program that has no name in any folder: a memfd, or one that was deleted.
        NoName = 7, "no_name";
        /// A pipe or the like, reopened through its descriptor: it has no name to judge.
        Anonymous = 8, "anonymous";
        /// No scratch space was free to resolve the object.
        NoScratch = 9, "no_scratch";
        /// The address could not be read.
        PeerUnresolved = 10, "peer_unresolved";
    }
}

impl Reason {
    /// True when nothing was judged because something could not be known.
    pub const fn is_unresolved(self) -> bool {
        match self {
            Self::PathUnresolved
            | Self::RootChanged
            | Self::NoPolicy
            | Self::NoName
            | Self::NoScratch
            | Self::PeerUnresolved => true,
            Self::Permitted | Self::Forbidden | Self::NoPermit | Self::Anonymous => false,
        }
    }
}

codes! {
    /// What a record tells, and so what follows its [`Header`].
    Kind {
        /// A file opened, or a program about to run: [`FileBody`], then the path.
        File = 0, "file";
        /// A peer connected, sent to or bound: [`PeerBody`].
        Peer = 1, "peer";
        /// A `bpf(2)` call refused: [`BpfBody`].
        Bpf = 2, "bpf";
        /// A process began by fork: [`ForkBody`]. The header is the parent's.
        Fork = 3, "fork";
        /// A program now runs: [`ExecBody`], then file name and arguments.
        Exec = 4, "exec";
        /// A process ended: [`ExitBody`].
        Exit = 5, "exit";
        /// A process was found in an agent's cgroup and now belongs to the agent: no body.
        Enrol = 6, "enrol";
    }
}

/// How many [`Kind`]s there are.
pub const KINDS: usize = Kind::ALL.len();

codes! {
    /// Which ring a record travels in.
    Lane {
        /// What was denied, or would have been.
        Denied = 0, "denied";
        /// Everything else.
        Told = 1, "told";
    }
}

codes! {
    /// The hook that wrote a record.
    Hook {
        /// LSM `file_open`.
        FileOpen = 0, "lsm/file_open";
        /// LSM `bprm_check_security`.
        BprmCheck = 1, "lsm/bprm_check_security";
        /// LSM `socket_connect`.
        SocketConnect = 2, "lsm/socket_connect";
        /// LSM `bpf`.
        Bpf = 3, "lsm/bpf";
        /// cgroup `connect4`.
        Connect4 = 4, "cgroup/connect4";
        /// cgroup `connect6`.
        Connect6 = 5, "cgroup/connect6";
        /// cgroup `sendmsg4`.
        Sendmsg4 = 6, "cgroup/sendmsg4";
        /// cgroup `sendmsg6`.
        Sendmsg6 = 7, "cgroup/sendmsg6";
        /// cgroup `bind4`.
        Bind4 = 8, "cgroup/bind4";
        /// cgroup `bind6`.
        Bind6 = 9, "cgroup/bind6";
        /// BTF tracepoint `sched_process_fork`.
        SchedFork = 10, "tp_btf/sched_process_fork";
        /// BTF tracepoint `sched_process_exec`.
        SchedExec = 11, "tp_btf/sched_process_exec";
        /// BTF tracepoint `sched_process_exit`.
        SchedExit = 12, "tp_btf/sched_process_exit";
        /// fanotify permission event, judged in the daemon.
        Fanotify = 13, "fanotify";
        /// LSM `inode_unlink`.
        InodeUnlink = 14, "lsm/inode_unlink";
        /// LSM `inode_rmdir`.
        InodeRmdir = 15, "lsm/inode_rmdir";
        /// LSM `inode_rename`.
        InodeRename = 16, "lsm/inode_rename";
        /// LSM `inode_link`.
        InodeLink = 17, "lsm/inode_link";
        /// LSM `inode_create`.
        InodeCreate = 18, "lsm/inode_create";
        /// LSM `inode_mkdir`.
        InodeMkdir = 19, "lsm/inode_mkdir";
        /// LSM `inode_symlink`.
        InodeSymlink = 20, "lsm/inode_symlink";
        /// LSM `path_truncate`.
        PathTruncate = 21, "lsm/path_truncate";
    }
}

codes! {
    /// What happens to what the policy does not permit.
    Mode {
        /// Denied.
        Enforce = 0, "enforce";
        /// Let go, and marked.
        Audit = 1, "audit";
    }
}

codes! {
    /// Which kind of entity, under which action, a place is judged as: Cedar's resource type and
    /// action in one index.
    Facet {
        /// `Action::"read"` on a `File`.
        ReadFile = 0, "read File";
        /// `Action::"read"` on a `Dir`.
        ReadDir = 1, "read Dir";
        /// `Action::"write"` on a `File`.
        WriteFile = 2, "write File";
        /// `Action::"write"` on a `Dir`.
        WriteDir = 3, "write Dir";
        /// `Action::"exec"` on a `Program`.
        ExecProgram = 4, "exec Program";
    }
}

/// How many [`Facet`]s there are.
pub const FACETS: usize = Facet::ALL.len();

impl Facet {
    /// The facet under which a file action on an object is judged.
    pub const fn of(action: Action, is_dir: bool) -> Option<Self> {
        match (action, is_dir) {
            (Action::Exec, _) => Some(Self::ExecProgram),
            (Action::Read, false) => Some(Self::ReadFile),
            (Action::Read, true) => Some(Self::ReadDir),
            (Action::Write, false) => Some(Self::WriteFile),
            (Action::Write, true) => Some(Self::WriteDir),
            (Action::Connect | Action::Bind | Action::Bpf, _) => None,
        }
    }
}

/// A permit and a forbid; either may be [`RULE_NONE`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Pair {
    /// The lowest-numbered rule that permits.
    pub permit: RuleId,
    /// The lowest-numbered rule that forbids.
    pub forbid: RuleId,
}

const fn lowest(a: RuleId, b: RuleId) -> RuleId {
    if a == RULE_NONE || (b != RULE_NONE && b < a) { b } else { a }
}

impl Pair {
    /// Both together: each side keeps its lowest rule, so the id that is reported is always the same.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            permit: lowest(self.permit, other.permit),
            forbid: lowest(self.forbid, other.forbid),
        }
    }
}

/// Where a place is in the table of places: its whole path, hashed under this boot's secret.
///
/// The hash is keyed with numbers that no agent can read, so a colliding path cannot be made on
/// purpose; the length stands beside it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PlaceKey {
    /// The keyed hash of the path without its final slash.
    pub hash: u64,
    /// The path's length in bytes; 0 is the root folder.
    pub len: u32,
    /// Zero.
    pub pad: u32,
}

/// What the policy says of one place.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PlaceCell {
    /// Rules on this very object, by [`Facet`].
    pub exact: [Pair; FACETS],
    /// Rules on this folder and everything beneath it, by [`Facet`].
    pub beneath: [Pair; FACETS],
}

/// Internet protocol numbers as used in [`PeerKey`]; 0 stands for "any".
pub mod protocol {
    /// Any protocol.
    pub const ANY: u8 = 0;
    /// TCP, MPTCP included.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
}

/// The address family of a peer, in one form: IPv4-mapped IPv6 is IPv4.
pub mod family {
    /// IPv4; the address is in the first four bytes.
    pub const V4: u8 = 4;
    /// IPv6.
    pub const V6: u8 = 6;
}

/// Key of the longest-prefix-match table of peers (`struct bpf_lpm_trie_key`).
///
/// `prefix_len` counts bits of everything after itself: 32 for protocol, family and port, then those
/// of the address. Tables hold, for each protocol and port (or "any"), the longest prefix with all
/// that shorter prefixes of the same protocol and port say already folded in.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PeerKey {
    /// Bits that count, after this field.
    pub prefix_len: u32,
    /// IP protocol number, or [`protocol::ANY`].
    pub protocol: u8,
    /// [`family::V4`] or [`family::V6`].
    pub family: u8,
    /// Port in network byte order, or 0 for any.
    pub port: [u8; 2],
    /// The address in network byte order, from the first byte.
    pub address: [u8; 16],
}

/// Bits of [`PeerKey`] before the address.
pub const PEER_FIXED_BITS: u32 = 32;

/// What the policy says of peers under one prefix.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PeerCell {
    /// Rules for `Action::"connect"`.
    pub connect: Pair,
    /// Rules for `Action::"bind"`.
    pub bind: Pair,
}

/// What both halves must agree on at run time; the one element of map `CONFIG`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Config {
    /// Bit n is set when some agent is bound to a cgroup at level n; 0 means no agent at all.
    pub levels: u64,
    /// First secret of [`crate::PathHash`].
    pub hash_seed: u64,
    /// Second secret of [`crate::PathHash`], odd.
    pub hash_factor: u64,
    /// [`ABI_VERSION`] of whoever made the maps.
    pub abi: u32,
    /// Zero.
    pub pad: u32,
}

/// An agent as the kernel knows it; value of map `AGENTS`, keyed by the agent's number.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Agent {
    /// Its policy set: the key into the tables of places and peers. One write of it swaps policy.
    pub set: u32,
    /// [`Mode`].
    pub mode: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// A process of an agent; value of map `TASKS`, keyed by thread group id.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Task {
    /// The agent's number.
    pub agent: u32,
    /// Thread group id of the process that forked it; 0 when it was enrolled by its cgroup.
    pub parent: u32,
    /// `task_struct.start_boottime` of the thread group leader in nanoseconds; 0 when unknown.
    pub start: u64,
    /// Kernel address of `fs_struct.root.mnt` at enrolment; 0 when not yet known.
    pub root_mount: u64,
    /// Kernel address of `fs_struct.root.dentry` at enrolment.
    pub root_dentry: u64,
    /// Kernel address of the mount namespace at enrolment.
    pub mount_ns: u64,
}

/// An object of Ambit's own, which no agent may remove, rename, link or truncate; key of map `GUARDED`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ObjectKey {
    /// Inode number as the hooks read it.
    pub inode: u64,
    /// `super_block.s_dev`: major in the upper 12 bits, minor in the lower 20.
    pub device: u32,
    /// Zero.
    pub pad: u32,
}

/// Value of map `GUARDED`: the object itself is out of reach.
pub const GUARD_SELF: u32 = 1;
/// Value of map `GUARDED`: so is everything directly in this folder, and nothing may be made there.
pub const GUARD_CHILDREN: u32 = 2;

/// Per-CPU account of one lane: value of map `STREAM`, keyed by [`Lane`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Stream {
    /// Numbers given out so far: the last record's `seq`.
    pub sequence: u64,
    /// Records that found no room, by [`Kind`].
    pub lost: [u64; KINDS],
}

/// What every record begins with.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Header {
    /// Whole record in bytes, this header included.
    pub size: u32,
    /// [`Kind`].
    pub kind: u8,
    /// [`Action`].
    pub action: u8,
    /// [`Verdict`].
    pub verdict: u8,
    /// [`Reason`].
    pub reason: u8,
    /// Position in its CPU's and lane's sequence; the first is 1. Records of the daemon's own have 0.
    pub sequence: u64,
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub time: u64,
    /// The actor's `start_boottime`, or 0 when unknown.
    pub start: u64,
    /// The CPU that wrote it.
    pub cpu: u32,
    /// The actor's thread group id.
    pub tgid: u32,
    /// The actor's thread id.
    pub tid: u32,
    /// The actor's real user id in the initial namespace.
    pub uid: u32,
    /// The agent's number.
    pub agent: u32,
    /// The rule that decided, or [`RULE_NONE`].
    pub rule: RuleId,
    /// The policy set that `rule` belongs to.
    pub set: u32,
    /// [`Hook`].
    pub hook: u8,
    /// Zero.
    pub pad: [u8; 3],
    /// `task_struct.comm`: evidence only, the process chooses it.
    pub comm: [u8; 16],
}

/// After the header of [`Kind::File`]; then `path_len` bytes of path.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FileBody {
    /// Inode number as the hook reads it.
    pub inode: u64,
    /// `super_block.s_dev`: major in the upper 12 bits, minor in the lower 20.
    pub device: u32,
    /// `open(2)` flags (`file.f_flags`).
    pub flags: u32,
    /// Bytes of path that follow; the path is absolute in the agent's own root.
    pub path_len: u32,
    /// 1 for a folder.
    pub is_dir: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// After the header of [`Kind::Peer`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PeerBody {
    /// Address in network byte order; IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// Port in network byte order.
    pub port: [u8; 2],
    /// [`family`].
    pub family: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 4],
}

/// After the header of [`Kind::Bpf`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct BpfBody {
    /// `enum bpf_cmd`.
    pub command: u32,
    /// Zero.
    pub pad: u32,
}

/// After the header of [`Kind::Fork`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ForkBody {
    /// The child's `start_boottime` in nanoseconds.
    pub child_start: u64,
    /// The child's thread group id.
    pub child: u32,
    /// Zero.
    pub pad: u32,
}

/// After the header of [`Kind::Exec`]; then `filename_len` bytes of file name as `execve` got it,
/// then `argv_len` bytes of arguments, each ended by NUL.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ExecBody {
    /// Bytes of file name that follow, without NUL.
    pub filename_len: u32,
    /// Bytes of arguments that follow; at most [`ARGV_MAX`].
    pub argv_len: u32,
    /// Bytes of arguments that there were.
    pub argv_total: u32,
    /// 1 when the program that runs is the interpreter of the file that was named.
    pub is_script: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// After the header of [`Kind::Exit`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ExitBody {
    /// `task_struct.exit_code`: exit status in bits 8 to 15, signal in bits 0 to 6.
    pub code: u32,
    /// Zero.
    pub pad: u32,
}

/// An offset that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

macro_rules! offsets {
    ($($(#[$meta:meta])* $field:ident = $owner:literal, $member:literal;)*) => {
        /// Byte offsets of the kernel's struct members that the programs read, as found in the running
        /// kernel's BTF; the read-only global `OFFSETS`. A member that is missing is [`ABSENT`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(C)]
        pub struct Offsets { $($(#[$meta])* pub $field: u32,)* }
        impl Offsets {
            /// All of them unknown.
            pub const UNKNOWN: Self = Self { $($field: ABSENT,)* };
            /// Fills each field by asking for its struct and member; `None` becomes [`ABSENT`].
            pub fn resolve(mut find: impl FnMut(&str, &str) -> Option<u32>) -> Self {
                Self { $($field: find($owner, $member).unwrap_or(ABSENT),)* }
            }
            /// The struct and member of each field that is [`ABSENT`].
            pub fn missing(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
                [$((self.$field, $owner, $member),)*]
                    .into_iter()
                    .filter(|(offset, ..)| *offset == ABSENT)
                    .map(|(_, owner, member)| (owner, member))
            }
        }
    };
}

offsets! {
    /// The opened path.
    file_path = "file", "f_path";
    /// The opened inode.
    file_inode = "file", "f_inode";
    /// `open(2)` flags.
    file_flags = "file", "f_flags";
    /// `FMODE_*`.
    file_mode = "file", "f_mode";
    /// Mount of a path.
    path_mount = "path", "mnt";
    /// Directory entry of a path.
    path_dentry = "path", "dentry";
    /// The `vfsmount` within its `mount`.
    mount_vfs = "mount", "mnt";
    /// The mount namespace that a mount belongs to.
    mount_ns = "mount", "mnt_ns";
    /// Object of a directory entry.
    dentry_inode = "dentry", "d_inode";
    /// Last component of a directory entry's name.
    dentry_name = "dentry", "d_name";
    /// The bytes of a name.
    qstr_name = "qstr", "name";
    /// Folder of a directory entry; itself at the root of a file system.
    dentry_parent = "dentry", "d_parent";
    /// Hash chain of a directory entry; unhashed means unlinked.
    dentry_hash = "dentry", "d_hash";
    /// Inode number.
    inode_number = "inode", "i_ino";
    /// File type and permissions.
    inode_mode = "inode", "i_mode";
    /// File system of an inode.
    inode_super = "inode", "i_sb";
    /// Device number of a file system.
    super_device = "super_block", "s_dev";
    /// The file about to be run.
    binprm_file = "linux_binprm", "file";
    /// The name as `execve` got it.
    binprm_filename = "linux_binprm", "filename";
    /// The name of the interpreter, or the same pointer as the name.
    binprm_interp = "linux_binprm", "interp";
    /// Thread group id.
    task_tgid = "task_struct", "tgid";
    /// Thread group leader.
    task_leader = "task_struct", "group_leader";
    /// Nanoseconds since boot at start.
    task_start = "task_struct", "start_boottime";
    /// Shared signal state.
    task_signal = "task_struct", "signal";
    /// Exit status.
    task_exit_code = "task_struct", "exit_code";
    /// Control groups.
    task_cgroups = "task_struct", "cgroups";
    /// The cgroup2 group of a set.
    css_set_group = "css_set", "dfl_cgrp";
    /// How deep a group is.
    cgroup_level = "cgroup", "level";
    /// Ids of a group's ancestors; before 6.1, when tracing programs had no helper that asks for one.
    cgroup_ancestor_ids = "cgroup", "ancestor_ids";
    /// Address space.
    task_mm = "task_struct", "mm";
    /// Root and working folder.
    task_fs = "task_struct", "fs";
    /// Namespaces.
    task_nsproxy = "task_struct", "nsproxy";
    /// Threads that still live.
    signal_live = "signal_struct", "live";
    /// The root folder.
    fs_root = "fs_struct", "root";
    /// The mount namespace.
    nsproxy_mount = "nsproxy", "mnt_ns";
    /// First byte of the arguments.
    mm_arg_start = "mm_struct", "arg_start";
    /// Past the last byte of the arguments.
    mm_arg_end = "mm_struct", "arg_end";
    /// The protocol side of a socket.
    socket_sock = "socket", "sk";
    /// IP protocol number of a socket.
    sock_protocol = "sock", "sk_protocol";
}

/// Facts about the running kernel that are not offsets; the read-only global `KERNEL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Kernel {
    /// The `f_mode` bits that mark the backing file of an overlay (include/linux/fs.h: NONOTIFY, bit
    /// 26, before 6.5; BACKING, bit 25, from 6.5; BACKING, bit 24, from 6.14).
    pub backing_mode: u32,
    /// Which argument of the LSM hook `bpf` is the verdict so far: 3, or 4 from 6.15.
    pub bpf_verdict: u32,
}

const _: () = {
    assert!(size_of::<PlaceKey>() == 16);
    assert!(size_of::<PlaceCell>() == 80);
    assert!(size_of::<PeerKey>() == 24);
    assert!(size_of::<PeerCell>() == 16);
    assert!(size_of::<Config>() == 32);
    assert!(size_of::<Agent>() == 8);
    assert!(size_of::<Task>() == 40);
    assert!(size_of::<ObjectKey>() == 16);
    assert!(size_of::<Stream>() == 8 + 8 * KINDS);
    assert!(size_of::<Header>() == 80);
    assert!(size_of::<FileBody>() == 24);
    assert!(size_of::<PeerBody>() == 24);
    assert!(size_of::<BpfBody>() == 8);
    assert!(size_of::<ForkBody>() == 16);
    assert!(size_of::<ExecBody>() == 16);
    assert!(size_of::<ExitBody>() == 8);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: each is `repr(C)`, made of integers only and without implicit padding (the sizes are
    // asserted above and `IntoBytes` is derived, which refuses padding).
    unsafe impl aya::Pod for super::PlaceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PlaceCell {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PeerCell {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Agent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Task {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ObjectKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Stream {}
    // SAFETY: as above; all fields are u32.
    unsafe impl aya::Pod for super::Offsets {}
    // SAFETY: as above; all fields are u32.
    unsafe impl aya::Pod for super::Kernel {}
}
