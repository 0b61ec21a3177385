//! Keys and values of the maps.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Action, KINDS, MAX_CGROUP_LEVEL, Privilege, RuleId, SocketKind};

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
        /// `Action::"connect"` on a `UnixSocket`.
        ConnectSocket = 5, "connect UnixSocket";
        /// `Action::"bind"` on a `UnixSocket`.
        BindSocket = 6, "bind UnixSocket";
    }
}

/// Room for every [`Facet`]: a power of two, so that an index is masked and not compared. A comparison
/// leaves a branch that some verifiers follow though it cannot be taken.
pub const FACETS: usize = Facet::ALL.len().next_power_of_two();

impl Facet {
    /// The facet under which a file action on an object is judged.
    pub const fn of(action: Action, is_dir: bool) -> Option<Self> {
        match (action, is_dir) {
            (Action::Exec, _) => Some(Self::ExecProgram),
            (Action::Read, false) => Some(Self::ReadFile),
            (Action::Read, true) => Some(Self::ReadDir),
            (Action::Write, false) => Some(Self::WriteFile),
            (Action::Write, true) => Some(Self::WriteDir),
            (
                Action::Connect
                | Action::Bind
                | Action::Listen
                | Action::Socket
                | Action::Privilege,
                _,
            ) => None,
        }
    }

    /// The facet under which an action on a unix socket is judged.
    pub const fn of_socket(action: Action) -> Option<Self> {
        match action {
            Action::Connect => Some(Self::ConnectSocket),
            Action::Bind => Some(Self::BindSocket),
            Action::Exec
            | Action::Read
            | Action::Write
            | Action::Listen
            | Action::Socket
            | Action::Privilege => None,
        }
    }
}

/// A permit and a forbid; either may be [`super::RULE_NONE`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Pair {
    /// The lowest-numbered rule that permits.
    pub permit: RuleId,
    /// The lowest-numbered rule that forbids.
    pub forbid: RuleId,
}

/// The lower of two rules; [`super::RULE_NONE`], which is zero, is above all others.
#[inline(always)]
pub const fn lowest(a: RuleId, b: RuleId) -> RuleId {
    let (a, b) = (a.wrapping_sub(1), b.wrapping_sub(1));
    (if a < b { a } else { b }).wrapping_add(1)
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

codes! {
    /// Which objects a [`PlaceKey`] is about, and so what its hash is of.
    PlaceKind {
        /// The object at this path, or the unix socket with this abstract address.
        Object = 0, "object";
        /// What lies beneath the folder at this path; the empty path is the root folder's.
        Beneath = 1, "beneath";
        /// Every path that begins with these bytes; `@` is every abstract address.
        Prefix = 2, "prefix";
        /// Every path that ends with these bytes, hashed from the last one on.
        Suffix = 3, "suffix";
        /// Every path that leaves the automaton of patterns in this state, which stands for the hash.
        State = 4, "state";
        /// A [`SocketKind`], which stands for the hash.
        Socket = 5, "socket";
        /// A [`Privilege`], which stands for the hash.
        Privilege = 6, "privilege";
        /// Programs whose content has this SHA-256; the bytes are those of the digest.
        Content = 7, "content";
    }
}

/// Where something is in the table of places.
///
/// The hash is keyed with numbers that no agent can read, so a colliding path cannot be made on
/// purpose; the length stands beside it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct PlaceKey {
    /// The keyed hash of the bytes.
    pub hash: u64,
    /// How many bytes.
    pub len: u32,
    /// [`PlaceKind`].
    pub kind: u32,
}

impl PlaceKey {
    /// Where a state of the automaton of patterns is.
    #[inline(always)]
    pub const fn state(state: u32) -> Self {
        Self { hash: state as u64, len: 0, kind: PlaceKind::State as u32 }
    }

    /// Where the rules on a kind of socket are.
    #[inline(always)]
    pub const fn socket(kind: SocketKind) -> Self {
        Self { hash: kind as u64, len: 0, kind: PlaceKind::Socket as u32 }
    }

    /// Where the rules on a privilege are.
    #[inline(always)]
    pub const fn privilege(privilege: Privilege) -> Self {
        Self { hash: privilege as u64, len: 0, kind: PlaceKind::Privilege as u32 }
    }
}

/// Where the cell of a [`PlaceKey`] with a number, which only one action is about, keeps its rules:
/// in [`PlaceCell::pairs`].
pub const NUMBERED: usize = 0;

/// What the policy says of the objects of one [`PlaceKey`], and of no other dimension: everything that
/// holds of them, whatever shorter or wider keys hold them too.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PlaceCell {
    /// Which keys in [`PlaceKind::Prefix`] or [`PlaceKind::Suffix`] go on from here: bit n stands for
    /// n + 1 more bytes, and the highest for every further length.
    pub lengths: u64,
    /// By [`Facet`].
    pub pairs: [Pair; FACETS],
    /// The class of these objects in rules that join dimensions: a part of [`JoinKey`].
    pub class: u32,
    /// [`PlaceKind::Suffix`] of no bytes: the longest suffix in use.
    pub longest: u32,
}

impl PlaceCell {
    /// In the class of a path: rules that are left here ask for the content of what is run.
    pub const BY_CONTENT: u32 = 1 << 31;
}

/// The state of the automaton of patterns in which nothing can match any more.
pub const STATE_DEAD: u32 = 0;
/// The state in which every path begins, and to which none comes back.
pub const STATE_START: u32 = 1;

/// Where one state of the automaton of patterns goes to, by the next byte of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PatternRow {
    /// By byte.
    pub next: [u16; 256],
}

/// Where rules that join dimensions are: the classes of one object in each of them.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct JoinKey {
    /// A [`Facet`], with [`JoinKey::CONTENTS`] or a [`JoinKey::content`] where rules ask for that, or
    /// [`JoinKey::PEERS`] with a [`PeerFacet`].
    pub facet: u32,
    /// Places: by path, by suffix, by pattern. Peers: by address, by protocol and port, by name; of what asks
    /// for no address, or for no name, it is [`JoinKey::ANY`].
    pub classes: [u32; 3],
}

impl JoinKey {
    /// Marks [`JoinKey::facet`] as a [`PeerFacet`].
    pub const PEERS: u32 = 1 << 31;
    /// Stands for every address, or for every name.
    pub const ANY: u32 = u32::MAX;
    /// Marks what rules on content could say here, whatever the content is. Without such an entry no content
    /// makes a difference.
    pub const CONTENTS: u32 = 1 << 30;

    /// Marks what rules on content say of this class of contents; 0 is every content that is not named
    /// where the other classes meet, and is asked when this class has no entry.
    #[inline(always)]
    pub const fn content(class: u32) -> u32 {
        (class + 1) << 8
    }
}

/// The object whose content is known, and since when: value of map `CONTENTS`, keyed by [`ObjectKey`]. It is
/// of use while the object's own times and size are these.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Content {
    /// Its version when it was read.
    pub version: Version,
    /// [`PlaceKey::hash`] of its digest.
    pub hash: u64,
}

impl Content {
    /// Bytes of a digest.
    pub const BYTES: u32 = 32;
    /// What the kernel calls SHA-256 (include/uapi/linux/hash_info.h: `HASH_ALGO_SHA256`).
    pub const SHA256: i64 = 4;

    /// Where the rules on this content are.
    #[inline(always)]
    pub const fn key(&self) -> PlaceKey {
        PlaceKey { hash: self.hash, len: Self::BYTES, kind: PlaceKind::Content as u32 }
    }
}

/// A question to IMA and its answer; the one element of map `TRIAL`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Trial {
    /// Where the kernel has its `ima_policy_flag`.
    pub flag: u64,
    /// The algorithm of the digest ([`Content::SHA256`]), or an error.
    pub algorithm: i64,
    /// The digest of the file that was locked.
    pub digest: [u8; Content::BYTES as usize],
    /// The process that locks it.
    pub tgid: u32,
    /// 1 where an IMA policy is loaded.
    pub has_policy: u32,
}

/// What changes whenever a file's content does, on the file systems of which contents are kept.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Version {
    /// Seconds of the inode's change time.
    pub seconds: u64,
    /// Its nanoseconds.
    pub nanoseconds: u64,
    /// Bytes.
    pub size: u64,
}

impl Version {
    /// The bits of the kernel's `i_ctime_nsec` that are nanoseconds (include/linux/fs.h: `I_CTIME_QUERIED` is
    /// above them).
    pub const NANOSECONDS: u64 = (1 << 30) - 1;
}

/// The file systems on which a file's bytes are in nobody's hands but this kernel's, by `super_block.s_magic`
/// (include/uapi/linux/magic.h): what is read of a file there is what runs. On all others (FUSE, the network's)
/// somebody else may answer the next read with other bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// ext4, and ext2 and ext3.
    Ext4,
    /// xfs.
    Xfs,
    /// f2fs.
    F2fs,
    /// tmpfs.
    Tmpfs,
    /// ramfs.
    Ramfs,
    /// overlayfs.
    Overlay,
    /// btrfs.
    Btrfs,
    /// squashfs.
    Squashfs,
    /// erofs.
    Erofs,
}

impl FileSystem {
    /// The one with this number.
    #[inline(always)]
    pub const fn of_magic(magic: u64) -> Option<Self> {
        match magic {
            0xef53 => Some(Self::Ext4),
            0x5846_5342 => Some(Self::Xfs),
            0xf2f5_2010 => Some(Self::F2fs),
            0x0102_1994 => Some(Self::Tmpfs),
            0x8584_58f6 => Some(Self::Ramfs),
            0x794c_7630 => Some(Self::Overlay),
            0x9123_683e => Some(Self::Btrfs),
            0x7371_7368 => Some(Self::Squashfs),
            0xe0f5_e1e2 => Some(Self::Erofs),
            _ => None,
        }
    }

    /// Whether every change of a file's bytes changes its change time, and device and inode number are no other
    /// object's, so that what was read once can be kept. Not on tmpfs: what is written through a mapping leaves
    /// no trace there. Not on overlayfs: its inode does not follow the file beneath. Not on btrfs: its subvolumes
    /// share a device and have the same inode numbers.
    #[inline(always)]
    pub const fn shows_changes(self) -> bool {
        match self {
            Self::Ext4 | Self::Xfs | Self::F2fs => true,
            Self::Tmpfs
            | Self::Ramfs
            | Self::Overlay
            | Self::Btrfs
            | Self::Squashfs
            | Self::Erofs => false,
        }
    }
}

/// Internet protocol numbers as used in [`PeerKey`].
pub mod protocol {
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

codes! {
    /// Under which action a peer is judged.
    PeerFacet {
        /// `Action::"connect"` on a `Peer`.
        Connect = 0, "connect Peer";
        /// `Action::"bind"` on a `Peer`.
        Bind = 1, "bind Peer";
        /// `Action::"listen"` on a `Peer`.
        Listen = 2, "listen Peer";
    }
}

/// How many [`PeerFacet`]s there are.
pub const PEER_FACETS: usize = PeerFacet::ALL.len();

impl PeerFacet {
    /// The facet under which an action on a peer is judged.
    pub const fn of(action: Action) -> Option<Self> {
        match action {
            Action::Connect => Some(Self::Connect),
            Action::Bind => Some(Self::Bind),
            Action::Listen => Some(Self::Listen),
            Action::Exec | Action::Read | Action::Write | Action::Socket | Action::Privilege => {
                None
            }
        }
    }
}

codes! {
    /// Which side of a peer a [`PeerKey`] is about.
    PeerKind {
        /// Its address.
        Address = 0, "address";
        /// Its protocol and port, for a protocol of which something is said in particular.
        Port = 1, "port";
        /// Its port, for all other protocols.
        OtherPort = 2, "other port";
        /// That no name is known for its address. Only where rules ask for names there is a cell.
        Nameless = 3, "nameless";
    }
}

/// Key of the longest-prefix-match table of peers (`struct bpf_lpm_trie_key`).
///
/// `prefix_len` counts bits of everything after itself. The cell of the longest prefix says all that
/// holds of a peer on that side, whatever shorter prefixes hold it too.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct PeerKey {
    /// Bits that count, after this field.
    pub prefix_len: u32,
    /// [`PeerKind`].
    pub kind: u8,
    /// [`family`] of the address; the IP protocol number; or 0.
    pub of: u8,
    /// Port in network byte order; 0 with an address.
    pub port: [u8; 2],
    /// The address in network byte order, from the first byte; 0 with a port.
    pub address: [u8; 16],
}

impl PeerKey {
    /// Bits before the address.
    pub const ADDRESS: u32 = 32;
    /// Bits before the port.
    pub const PORT: u32 = 16;

    /// Where the cell of what has no name is.
    pub const NAMELESS: Self = Self {
        prefix_len: Self::PORT,
        kind: PeerKind::Nameless as u8,
        of: 0,
        port: [0; 2],
        address: [0; 16],
    };
}

/// How many names of one address are told apart for one agent.
pub const NAMES_PER_PEER: usize = 8;

/// An address as an agent knows it; key of maps `HOSTS` and `ROUTES`, value of map `RESOLVERS`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct NamedKey {
    /// The address in network byte order; IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// The agent's number.
    pub agent: u32,
    /// [`family`].
    pub family: u32,
}

/// One name of an address.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PeerName {
    /// When the answer that told it ends, in nanoseconds since boot, suspended time included
    /// (`CLOCK_BOOTTIME`); 0 when there is no name here.
    pub expires: u64,
    /// Its number: a part of [`NameKey`].
    pub name: u32,
    /// Zero.
    pub pad: u32,
}

/// The names that an agent knows an address by; value of map `HOSTS`.
///
/// An element that is replaced may be used again for another address while somebody reads it, so its key
/// stands at both ends and is looked at after the rest.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PeerNames {
    /// Its key.
    pub first: NamedKey,
    /// Its names.
    pub names: [PeerName; NAMES_PER_PEER],
    /// Until when there are more names than there is room for.
    pub more_until: u64,
    /// Its key.
    pub last: NamedKey,
}

/// A name under one policy set; key of map `NAMES`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct NameKey {
    /// The policy set.
    pub set: u32,
    /// The name's number.
    pub name: u32,
}

/// The longest host name (RFC 1035, section 2.3.4: 255 octets with the lengths of its labels).
pub const HOST_MAX: usize = 253;

/// How many name servers an agent may ask at once: each has a port of the daemon.
pub const SERVERS_PER_AGENT: u32 = 8;

/// One of the places that an agent has for a name server; key of map `SERVERS`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ServerKey {
    /// The agent's number.
    pub agent: u32,
    /// Below [`SERVERS_PER_AGENT`].
    pub place: u32,
}

/// A host name in lower case, without a dot at the end; value of map `TEXTS`, keyed by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HostName {
    /// How many bytes.
    pub len: u8,
    /// The bytes; zero behind them.
    pub bytes: [u8; 255],
}

/// [`Config::netns`]: the initial network namespace, whose cookie only the kernel knows.
pub const NETNS_INITIAL: u64 = u64::MAX;

/// The port that name servers answer at (RFC 1035, section 4.2).
pub const DNS_PORT: u16 = 53;

/// What the policy says of peers under one prefix.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PeerCell {
    /// By [`PeerFacet`].
    pub pairs: [Pair; PEER_FACETS],
    /// The class of these peers in rules that join dimensions: a part of [`JoinKey`].
    pub class: u32,
    /// Zero.
    pub pad: u32,
}

/// What both halves must agree on at run time; the one element of map `CONFIG`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Config {
    /// The [`Config::level`]s at which agents are bound to cgroups; 0 means no agent at all.
    pub levels: u64,
    /// First secret of [`crate::PathHash`].
    pub hash_seed: u64,
    /// Second secret of [`crate::PathHash`], odd.
    pub hash_factor: u64,
    /// The cookie of the network namespace in which the daemon's forwarder of names listens; 0 where there
    /// is none.
    pub netns: u64,
    /// Zero, and read where a zero is meant of which the verifier knows nothing: what begins as a number that it
    /// knows is another state to it than what comes out of a table, and it follows each.
    pub zero: u64,
    /// [`super::ABI_VERSION`] of whoever made the maps.
    pub abi: u32,
    /// 1 once a policy set asked for the content of programs: what is known of them is kept up only then.
    pub contents: u32,
    /// Where this kernel has its `ima_policy_flag`, while the hooks may ask IMA for the content of a program; 0
    /// where they may not.
    pub ima: u64,
}

impl Config {
    /// The bit of a cgroup level in [`Config::levels`]: the deeper, the lower.
    #[must_use]
    pub const fn level(level: u32) -> u64 {
        1 << MAX_CGROUP_LEVEL.saturating_sub(level)
    }

    /// The deepest of some levels, and the others; meaningless when there are none. Without a branch, each of which
    /// the verifier would follow.
    #[inline(always)]
    #[must_use]
    pub const fn deepest(levels: u64) -> (u32, u64) {
        /// Which bit it is, by the upper five bits of its product with a de Bruijn sequence.
        static PLACES: [u8; 32] = [
            0, 1, 28, 2, 29, 14, 24, 3, 30, 22, 20, 15, 25, 17, 4, 8, 31, 27, 13, 23, 21, 19, 16,
            7, 26, 12, 18, 6, 11, 5, 10, 9,
        ];
        let lowest = levels & levels.wrapping_neg();
        let product = (lowest as u32).wrapping_mul(0x077c_b531);
        let place = PLACES[(product >> 27) as usize & 31];
        (MAX_CGROUP_LEVEL.wrapping_sub(place as u32), levels ^ lowest)
    }
}

/// An agent as the kernel knows it; value of map `AGENTS`, keyed by the agent's number.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Agent {
    /// Its policy set: the key into the tables of places and peers. One write of it swaps policy.
    pub set: u32,
    /// [`super::Mode`].
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

/// An object, whatever it is called; key of map `GUARDED` and of the tables in `OBJECTS`.
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

/// What the policy forbids of one object through every name that it has, by [`Facet`]; value of the tables in
/// `OBJECTS`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ObjectCell {
    /// The lowest rule that forbids this very object, or [`super::RULE_NONE`].
    pub exact: [RuleId; FACETS],
    /// The lowest rule that forbids this folder and everything beneath it, or [`super::RULE_NONE`].
    pub beneath: [RuleId; FACETS],
}

/// Value of map `GUARDED`: no agent may remove, rename, link or truncate the object.
pub const GUARD_SELF: u32 = 1;
/// Value of map `GUARDED`: so is everything directly in this folder, and nothing may be made there.
pub const GUARD_CHILDREN: u32 = 2;

/// Per-CPU account of one lane: value of map `STREAM`, keyed by [`super::Lane`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Stream {
    /// Numbers given out so far: the last record's `seq`.
    pub sequence: u64,
    /// Records that found no room, by [`super::Kind`].
    pub lost: [u64; KINDS],
}

const _: () = {
    assert!(size_of::<PlaceKey>() == 16);
    assert!(size_of::<PlaceCell>() == 16 + 8 * FACETS);
    assert!(size_of::<PatternRow>() == 512);
    assert!(size_of::<JoinKey>() == 16);
    assert!(size_of::<PeerKey>() == 24);
    assert!(size_of::<PeerCell>() == 8 + 8 * PEER_FACETS);
    assert!(size_of::<NamedKey>() == 24);
    assert!(size_of::<PeerNames>() == 56 + 16 * NAMES_PER_PEER);
    assert!(size_of::<NameKey>() == 8);
    assert!(size_of::<ServerKey>() == 8);
    assert!(size_of::<HostName>() == 256);
    assert!(size_of::<Config>() == 56);
    assert!(size_of::<Trial>() == 56);
    assert!(size_of::<Agent>() == 8);
    assert!(size_of::<Task>() == 40);
    assert!(size_of::<ObjectKey>() == 16);
    assert!(size_of::<Stream>() == 8 + 8 * KINDS);
    assert!(size_of::<ObjectCell>() == 8 * FACETS);
    assert!(size_of::<Content>() == 32);
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
    unsafe impl aya::Pod for super::PatternRow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::JoinKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Pair {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::NamedKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PeerNames {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::NameKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ServerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::HostName {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Agent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Task {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ObjectKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ObjectCell {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Content {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Trial {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Stream {}
}
