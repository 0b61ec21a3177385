//! Event records, as they travel in the rings.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::RuleId;

/// What every record begins with.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Header {
    /// Whole record in bytes, this header included.
    pub size: u32,
    /// [`super::Kind`].
    pub kind: u8,
    /// [`super::Action`].
    pub action: u8,
    /// [`super::Verdict`].
    pub verdict: u8,
    /// [`super::Reason`].
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
    /// The rule that decided, or [`super::RULE_NONE`].
    pub rule: RuleId,
    /// The policy set that `rule` belongs to.
    pub set: u32,
    /// [`super::Hook`].
    pub hook: u8,
    /// Zero.
    pub pad: [u8; 3],
    /// `task_struct.comm`: evidence only, the process chooses it.
    pub comm: [u8; 16],
}

/// After the header of [`super::Kind::File`]; then `path_len` bytes of path and `result_len` bytes of another.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FileBody {
    /// Inode number as the hook reads it.
    pub inode: u64,
    /// `super_block.s_dev`: major in the upper 12 bits, minor in the lower 20.
    pub device: u32,
    /// `open(2)` flags (`file.f_flags`), or those of `renameat2(2)`.
    pub flags: u32,
    /// Bytes of path that follow. The path is absolute in the agent's own root; of an object that has no
    /// such path it is the last name alone.
    pub path_len: u32,
    /// Bytes that follow then: the absolute path that a rename or a link gives to the object.
    pub result_len: u32,
    /// 1 for a folder.
    pub is_dir: u8,
    /// 1 when the open made the file.
    pub is_new: u8,
    /// 1 when IMA was asked for a content that the daemon could keep: it is to read the file. Of an allowed part
    /// of a program the record is for that alone, and no event.
    pub is_unread: u8,
    /// Zero.
    pub pad: [u8; 5],
}

/// After the header of [`super::Kind::Peer`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PeerBody {
    /// Address in network byte order; IPv4 in the first four bytes.
    pub address: [u8; 16],
    /// Port in network byte order.
    pub port: [u8; 2],
    /// [`super::family`].
    pub family: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 4],
}

/// After the header of [`super::Kind::Privilege`].
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct PrivilegeBody {
    /// [`super::Privilege`].
    pub privilege: u32,
    /// What of it: `enum bpf_cmd`, a signal's number, a capability's number, `PTRACE_MODE_*`; else 0.
    pub detail: u32,
    /// Thread group id of the process that it is done to, or 0.
    pub target: u32,
    /// Zero.
    pub pad: u32,
}

/// After the header of [`super::Kind::Socket`]: what `socket(2)` was asked for.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SocketBody {
    /// [`super::SocketKind`].
    pub kind: u32,
    /// Address family.
    pub family: u32,
    /// `SOCK_*`.
    pub socket_type: u32,
    /// Protocol.
    pub protocol: u32,
}

/// After the header of [`super::Kind::Fork`].
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

/// After the header of [`super::Kind::Exec`]; then `filename_len` bytes of file name as `execve` got it,
/// then `argv_len` bytes of arguments, each ended by NUL.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ExecBody {
    /// Bytes of file name that follow, without NUL.
    pub filename_len: u32,
    /// Bytes of arguments that follow; at most [`super::ARGV_MAX`].
    pub argv_len: u32,
    /// Bytes of arguments that there were.
    pub argv_total: u32,
    /// 1 when the program that runs is the interpreter of the file that was named.
    pub is_script: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// After the header of [`super::Kind::Exit`].
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

const _: () = {
    assert!(size_of::<Header>() == 80);
    assert!(size_of::<FileBody>() == 32);
    assert!(size_of::<PeerBody>() == 24);
    assert!(size_of::<PrivilegeBody>() == 16);
    assert!(size_of::<SocketBody>() == 16);
    assert!(size_of::<ForkBody>() == 16);
    assert!(size_of::<ExecBody>() == 16);
    assert!(size_of::<ExitBody>() == 8);
};
