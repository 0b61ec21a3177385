//! What each hook sees, said once for all that tell of it.

use agent_ebpf::Hook;

/// What a hook sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sees {
    /// A file, and what is done to it.
    File(Operation),
    /// A datagram that is sent without a connection.
    Datagram,
    /// Neither.
    Else,
}

/// What is done to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Open,
    Receive,
    Map,
    Use,
    Exec,
    Unlink,
    Rmdir,
    Rename,
    Link,
    Create,
    Mkdir,
    Symlink,
    Truncate,
    Chmod,
    Chown,
    Utimes,
    Setxattr,
    Removexattr,
    Setfacl,
    Removefacl,
}

impl Operation {
    /// Its name in an event.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Receive => "receive",
            Self::Map => "map",
            Self::Use => "use",
            Self::Exec => "exec",
            Self::Unlink => "unlink",
            Self::Rmdir => "rmdir",
            Self::Rename => "rename",
            Self::Link => "link",
            Self::Create => "create",
            Self::Mkdir => "mkdir",
            Self::Symlink => "symlink",
            Self::Truncate => "truncate",
            Self::Chmod => "chmod",
            Self::Chown => "chown",
            Self::Utimes => "utimes",
            Self::Setxattr => "setxattr",
            Self::Removexattr => "removexattr",
            Self::Setfacl => "setfacl",
            Self::Removefacl => "removefacl",
        }
    }
}

/// What this hook sees.
pub(super) const fn sees(hook: Hook) -> Sees {
    let operation = match hook {
        Hook::FileOpen | Hook::Fanotify => Operation::Open,
        Hook::FileReceive => Operation::Receive,
        Hook::MmapFile | Hook::FileMprotect => Operation::Map,
        Hook::FilePermission => Operation::Use,
        Hook::BprmCheck => Operation::Exec,
        Hook::PathUnlink => Operation::Unlink,
        Hook::PathRmdir => Operation::Rmdir,
        Hook::PathRename => Operation::Rename,
        Hook::PathLink => Operation::Link,
        Hook::PathMknod => Operation::Create,
        Hook::PathMkdir => Operation::Mkdir,
        Hook::PathSymlink => Operation::Symlink,
        Hook::PathTruncate | Hook::FileTruncate => Operation::Truncate,
        Hook::PathChmod => Operation::Chmod,
        Hook::PathChown => Operation::Chown,
        Hook::InodeSetattr => Operation::Utimes,
        Hook::InodeSetxattr => Operation::Setxattr,
        Hook::InodeRemovexattr => Operation::Removexattr,
        Hook::InodeSetAcl => Operation::Setfacl,
        Hook::InodeRemoveAcl => Operation::Removefacl,
        Hook::Sendmsg4 | Hook::Sendmsg6 | Hook::UnixMaySend => return Sees::Datagram,
        Hook::SocketConnect
        | Hook::Bpf
        | Hook::Connect4
        | Hook::Connect6
        | Hook::Bind4
        | Hook::Bind6
        | Hook::Recvmsg4
        | Hook::Recvmsg6
        | Hook::SchedFork
        | Hook::SchedExec
        | Hook::SchedExit
        | Hook::SocketCreate
        | Hook::SockCreate
        | Hook::SocketListen
        | Hook::SocketBind
        | Hook::SocketSendmsg
        | Hook::SocketRecvmsg
        | Hook::SockGraft
        | Hook::UnixStreamConnect
        | Hook::PtraceAccessCheck
        | Hook::TaskKill
        | Hook::SbMount
        | Hook::MoveMount
        | Hook::SbUmount
        | Hook::SbPivotroot
        | Hook::UsernsCreate
        | Hook::Capable
        | Hook::BprmCredsFromFile => return Sees::Else,
    };
    Sees::File(operation)
}
