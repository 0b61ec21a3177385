//! Everything that has a number in the kernel and a name in policies, events and metrics.

codes! {
    /// What an agent tries to do; the names are the actions of the Cedar schema.
    Action {
        /// Run a program (the file, a script's interpreter, or the ELF loader), or map a file as code.
        Exec = 0, "exec";
        /// Open a file or folder for reading.
        Read = 1, "read";
        /// Open a file for writing, or change it, its name or what is known of it in any other way.
        Write = 2, "write";
        /// Connect to, or send a datagram to, an internet peer or a unix socket.
        Connect = 3, "connect";
        /// Take a local internet address, or a unix socket's name.
        Bind = 4, "bind";
        /// Wait for connections at a local internet address.
        Listen = 5, "listen";
        /// Make a socket of a kind whose use is not judged.
        Socket = 6, "socket";
        /// Do what reaches beyond an agent's own processes and files.
        Privilege = 7, "privilege";
    }
}

codes! {
    /// The kinds of sockets that no agent may make unless its policy names them: `SocketFamily` of the
    /// Cedar schema. Those of other address families have the family's number
    /// (include/linux/socket.h).
    SocketKind {
        /// Amateur radio AX.25.
        Ax25 = 3, "ax25";
        /// Novell IPX.
        Ipx = 4, "ipx";
        /// `AppleTalk`.
        Appletalk = 5, "appletalk";
        /// Amateur radio NET/ROM.
        Netrom = 6, "netrom";
        /// Multiprotocol bridge.
        Bridge = 7, "bridge";
        /// ATM permanent circuits.
        Atmpvc = 8, "atmpvc";
        /// X.25.
        X25 = 9, "x25";
        /// Amateur radio X.25 PLP.
        Rose = 11, "rose";
        /// `DECnet`.
        Decnet = 12, "decnet";
        /// `NetBEUI`.
        Netbeui = 13, "netbeui";
        /// Security callbacks.
        Security = 14, "security";
        /// IPsec keys.
        Key = 15, "key";
        /// The kernel's own message bus: routes, audit, device events.
        Netlink = 16, "netlink";
        /// Raw link-layer packets.
        Packet = 17, "packet";
        /// Ash.
        Ash = 18, "ash";
        /// Acorn Econet.
        Econet = 19, "econet";
        /// ATM switched circuits.
        Atmsvc = 20, "atmsvc";
        /// Reliable datagrams.
        Rds = 21, "rds";
        /// Linux SNA.
        Sna = 22, "sna";
        /// Infrared.
        Irda = 23, "irda";
        /// PPP over X.
        Pppox = 24, "pppox";
        /// Wanpipe.
        Wanpipe = 25, "wanpipe";
        /// IEEE 802.2 LLC.
        Llc = 26, "llc";
        /// `InfiniBand`.
        Ib = 27, "ib";
        /// MPLS.
        Mpls = 28, "mpls";
        /// Controller area network.
        Can = 29, "can";
        /// TIPC.
        Tipc = 30, "tipc";
        /// Bluetooth.
        Bluetooth = 31, "bluetooth";
        /// IUCV.
        Iucv = 32, "iucv";
        /// `RxRPC`.
        Rxrpc = 33, "rxrpc";
        /// ISDN.
        Isdn = 34, "isdn";
        /// Phonet.
        Phonet = 35, "phonet";
        /// IEEE 802.15.4.
        Ieee802154 = 36, "ieee802154";
        /// CAIF.
        Caif = 37, "caif";
        /// The kernel's cryptography.
        Alg = 38, "alg";
        /// NFC.
        Nfc = 39, "nfc";
        /// Between a virtual machine and its host.
        Vsock = 40, "vsock";
        /// Kernel connection multiplexor.
        Kcm = 41, "kcm";
        /// Qualcomm IPC router.
        Qipcrtr = 42, "qipcrtr";
        /// SMC, by its family or over internet sockets.
        Smc = 43, "smc";
        /// Express data path.
        Xdp = 44, "xdp";
        /// MCTP.
        Mctp = 45, "mctp";
        /// IPv4 or IPv6, with headers of one's own.
        InetRaw = 128, "inet-raw";
        /// IPv4 or IPv6, echo requests.
        InetIcmp = 129, "inet-icmp";
        /// SCTP.
        InetSctp = 130, "inet-sctp";
        /// DCCP.
        InetDccp = 131, "inet-dccp";
        /// UDP-Lite.
        InetUdplite = 132, "inet-udplite";
        /// IPv4 or IPv6 with any other protocol.
        InetOther = 133, "inet-other";
        /// An address family that has no name here.
        Other = 255, "other";
    }
}

impl SocketKind {
    /// The kind that `socket(2)` asks for; `None` for one that is always lawful to make, since its use
    /// is judged: TCP (MPTCP included) and UDP over IPv4 and IPv6, and unix sockets.
    #[inline(always)]
    pub const fn asked(family: u32, kind: u32, protocol: u32) -> Option<Self> {
        // include/linux/socket.h, include/linux/net.h, include/uapi/linux/in.h
        match (family, kind, protocol) {
            // AF_UNSPEC is not made into anything.
            (0 | 1, ..) | (2 | 10, 1, 0 | 6 | 262) | (2 | 10, 2, 0 | 17) => None,
            (2 | 10, 3, _) => Some(Self::InetRaw),
            (2 | 10, _, 1 | 58) => Some(Self::InetIcmp),
            (2 | 10, _, 132) => Some(Self::InetSctp),
            (2 | 10, _, 33) => Some(Self::InetDccp),
            (2 | 10, _, 136) => Some(Self::InetUdplite),
            (2 | 10, _, 256) => Some(Self::Smc),
            (2 | 10, ..) => Some(Self::InetOther),
            (3..=45, ..) => match Self::from_code(family as u8) {
                Some(kind) => Some(kind),
                None => Some(Self::Other),
            },
            (..) => Some(Self::Other),
        }
    }
}

codes! {
    /// What reaches beyond an agent's own processes and files: `Privilege` of the Cedar schema.
    Privilege {
        /// Trace, or look into the memory of, a process outside the agent.
        Ptrace = 1, "ptrace";
        /// Signal a process outside the agent.
        Signal = 2, "signal";
        /// Mount, unmount, move a mount or change the root.
        Mount = 3, "mount";
        /// Make or enter a namespace.
        Namespace = 4, "namespace";
        /// Run a program that gains a user, a group or capabilities.
        Setuid = 5, "setuid";
        /// Use a capability that reaches beyond files, signals and peers.
        Capability = 6, "capability";
        /// Call `bpf(2)`.
        Bpf = 7, "bpf";
        /// Load or unload a kernel module.
        Module = 8, "module";
        /// Load another kernel, or reboot.
        Kexec = 9, "kexec";
        /// Turn memory into code that no file has: what just-in-time compilers do.
        Execmem = 10, "execmem";
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
        /// The verdict depends on the program's content, whose SHA-256 is not known, or not any more.
        HashUnknown = 11, "hash_unknown";
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
            | Self::PeerUnresolved
            | Self::HashUnknown => true,
            Self::Permitted | Self::Forbidden | Self::NoPermit | Self::Anonymous => false,
        }
    }
}

codes! {
    /// What a record tells, and so what follows its [`super::Header`].
    Kind {
        /// A file opened, a program about to run, or a unix socket connected, sent to or bound:
        /// [`super::FileBody`], then the path (of an abstract unix address, `@` and its bytes).
        File = 0, "file";
        /// A peer connected, sent to or bound: [`super::PeerBody`].
        Peer = 1, "peer";
        /// A privilege asked for: [`super::PrivilegeBody`].
        Privilege = 2, "privilege";
        /// A process began by fork: [`super::ForkBody`]. The header is the parent's.
        Fork = 3, "fork";
        /// A program now runs: [`super::ExecBody`], then file name and arguments.
        Exec = 4, "exec";
        /// A process ended: [`super::ExitBody`].
        Exit = 5, "exit";
        /// A process was found in an agent's cgroup and now belongs to the agent: no body.
        Enrol = 6, "enrol";
        /// A socket made of a kind whose use is not judged: [`super::SocketBody`].
        Socket = 7, "socket";
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
        /// LSM `path_unlink`.
        PathUnlink = 14, "lsm/path_unlink";
        /// LSM `path_rmdir`.
        PathRmdir = 15, "lsm/path_rmdir";
        /// LSM `path_rename`.
        PathRename = 16, "lsm/path_rename";
        /// LSM `path_link`.
        PathLink = 17, "lsm/path_link";
        /// LSM `path_mknod`.
        PathMknod = 18, "lsm/path_mknod";
        /// LSM `path_mkdir`.
        PathMkdir = 19, "lsm/path_mkdir";
        /// LSM `path_symlink`.
        PathSymlink = 20, "lsm/path_symlink";
        /// LSM `path_truncate`.
        PathTruncate = 21, "lsm/path_truncate";
        /// LSM `path_chmod`.
        PathChmod = 60, "lsm/path_chmod";
        /// LSM `path_chown`.
        PathChown = 61, "lsm/path_chown";
        /// LSM `inode_setattr`: times.
        InodeSetattr = 62, "lsm/inode_setattr";
        /// LSM `inode_setxattr`.
        InodeSetxattr = 63, "lsm/inode_setxattr";
        /// LSM `inode_removexattr`.
        InodeRemovexattr = 64, "lsm/inode_removexattr";
        /// LSM `inode_set_acl`, from 6.2; before it, `inode_setxattr`.
        InodeSetAcl = 65, "lsm/inode_set_acl";
        /// LSM `inode_remove_acl`, from 6.2; before it, `inode_removexattr`.
        InodeRemoveAcl = 66, "lsm/inode_remove_acl";
        /// LSM `socket_create`.
        SocketCreate = 30, "lsm/socket_create";
        /// cgroup `sock_create`.
        SockCreate = 31, "cgroup/sock_create";
        /// LSM `socket_listen`.
        SocketListen = 32, "lsm/socket_listen";
        /// LSM `socket_bind`.
        SocketBind = 33, "lsm/socket_bind";
        /// LSM `unix_stream_connect`.
        UnixStreamConnect = 34, "lsm/unix_stream_connect";
        /// LSM `unix_may_send`.
        UnixMaySend = 35, "lsm/unix_may_send";
        /// LSM `ptrace_access_check`.
        PtraceAccessCheck = 36, "lsm/ptrace_access_check";
        /// LSM `task_kill`.
        TaskKill = 37, "lsm/task_kill";
        /// LSM `sb_mount`.
        SbMount = 38, "lsm/sb_mount";
        /// LSM `move_mount`.
        MoveMount = 39, "lsm/move_mount";
        /// LSM `sb_umount`.
        SbUmount = 40, "lsm/sb_umount";
        /// LSM `sb_pivotroot`.
        SbPivotroot = 41, "lsm/sb_pivotroot";
        /// LSM `userns_create`.
        UsernsCreate = 42, "lsm/userns_create";
        /// LSM `capable`.
        Capable = 43, "lsm/capable";
        /// LSM `bprm_creds_from_file`.
        BprmCredsFromFile = 44, "lsm/bprm_creds_from_file";
        /// LSM `file_receive`.
        FileReceive = 45, "lsm/file_receive";
        /// LSM `mmap_file`.
        MmapFile = 46, "lsm/mmap_file";
        /// LSM `file_mprotect`.
        FileMprotect = 47, "lsm/file_mprotect";
        /// LSM `file_permission`.
        FilePermission = 48, "lsm/file_permission";
        /// LSM `file_truncate`, from 6.2; before it, `path_truncate`.
        FileTruncate = 49, "lsm/file_truncate";
        /// LSM `socket_sendmsg`.
        SocketSendmsg = 50, "lsm/socket_sendmsg";
        /// LSM `socket_recvmsg`.
        SocketRecvmsg = 51, "lsm/socket_recvmsg";
        /// LSM `sock_graft`.
        SockGraft = 52, "lsm/sock_graft";
        /// cgroup `recvmsg4`: what a name server answered.
        Recvmsg4 = 53, "cgroup/recvmsg4";
        /// cgroup `recvmsg6`.
        Recvmsg6 = 54, "cgroup/recvmsg6";
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
