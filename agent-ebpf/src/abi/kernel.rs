//! What the daemon finds out about the running kernel and writes into read-only globals before load.

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
    /// The directory entry at the root of a mount.
    vfs_root = "vfsmount", "mnt_root";
    /// The mount on which a mount lies; itself at the bottom.
    mount_parent = "mount", "mnt_parent";
    /// The directory entry on which a mount lies.
    mount_point = "mount", "mnt_mountpoint";
    /// The mount namespace that a mount belongs to.
    mount_ns = "mount", "mnt_ns";
    /// Object of a directory entry.
    dentry_inode = "dentry", "d_inode";
    /// Last component of a directory entry's name.
    dentry_name = "dentry", "d_name";
    /// The bytes of a name.
    qstr_name = "qstr", "name";
    /// How many bytes.
    qstr_len = "qstr", "len";
    /// Folder of a directory entry; itself at the root of a file system.
    dentry_parent = "dentry", "d_parent";
    /// File system of a directory entry.
    dentry_super = "dentry", "d_sb";
    /// Hash chain of a directory entry; unhashed means unlinked.
    dentry_hash = "dentry", "d_hash";
    /// Inode number.
    inode_number = "inode", "i_ino";
    /// Bytes of a file.
    inode_size = "inode", "i_size";
    /// Seconds of an inode's change time; before 6.11 within a `timespec64`.
    inode_ctime = "inode", "i_ctime_sec";
    /// Its nanoseconds, with flags above them.
    inode_ctime_nsec = "inode", "i_ctime_nsec";
    /// `ATTR_*`: what of an inode is to change.
    iattr_valid = "iattr", "ia_valid";
    /// File type and permissions.
    inode_mode = "inode", "i_mode";
    /// File system of an inode.
    inode_super = "inode", "i_sb";
    /// Which file system it is.
    super_magic = "super_block", "s_magic";
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
    /// The node of a group in its file system.
    cgroup_node = "cgroup", "kn";
    /// A node's id, which no other node ever has.
    kernfs_id = "kernfs_node", "id";
    /// How deep a group is.
    cgroup_level = "cgroup", "level";
    /// Ids of a group's ancestors; before 6.1, when tracing programs had no helper that asks for one.
    cgroup_ancestor_ids = "cgroup", "ancestor_ids";
    /// Address space.
    task_mm = "task_struct", "mm";
    /// The path that an open of this task is looking up; null otherwise.
    task_lookup = "task_struct", "nameidata";
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
    /// What all kinds of sockets have.
    sock_common = "sock", "__sk_common";
    /// Address family.
    common_family = "sock_common", "skc_family";
    /// Local IPv4 address.
    common_v4 = "sock_common", "skc_rcv_saddr";
    /// Local IPv6 address.
    common_v6 = "sock_common", "skc_v6_rcv_saddr";
    /// Local port, in the host's byte order.
    common_port = "sock_common", "skc_num";
    /// The other end's IPv4 address.
    common_peer_v4 = "sock_common", "skc_daddr";
    /// The other end's IPv6 address.
    common_peer_v6 = "sock_common", "skc_v6_daddr";
    /// The other end's port, in network byte order; 0 when there is none.
    common_peer_port = "sock_common", "skc_dport";
    /// `SOCK_*`.
    socket_type = "socket", "type";
    /// The address that a message is for; null when it has none.
    message_name = "msghdr", "msg_name";
    /// A unix socket's address.
    unix_address = "unix_sock", "addr";
    /// Where a unix socket lies in the file tree.
    unix_path = "unix_sock", "path";
    /// The socket to which a unix socket is connected.
    unix_peer = "unix_sock", "peer";
    /// Bytes of a unix address, its family included.
    address_len = "unix_address", "len";
    /// A unix address: its family, then its bytes.
    address_name = "unix_address", "name";
    /// The file that a part of an address space maps.
    vma_file = "vm_area_struct", "vm_file";
    /// How it is mapped.
    vma_flags = "vm_area_struct", "vm_flags";
    /// Set once a private mapping has pages of its own; until then it has the file's.
    vma_anon = "vm_area_struct", "anon_vma";
    /// The program that an address space belongs to.
    mm_exe = "mm_struct", "exe_file";
    /// A task's own credentials, whatever it acts with for the moment.
    task_real_cred = "task_struct", "real_cred";
    /// A task's credentials.
    task_cred = "task_struct", "cred";
    /// The credentials that a program would run with.
    binprm_cred = "linux_binprm", "cred";
    /// Effective user.
    cred_euid = "cred", "euid";
    /// Effective group.
    cred_egid = "cred", "egid";
    /// Capabilities.
    cred_permitted = "cred", "cap_permitted";
    /// How deep a user namespace is; 0 is the first.
    user_ns_level = "user_namespace", "level";
    /// The system call that a task is in; elsewhere than on x86 it has another name.
    regs_call = "pt_regs", "orig_ax";
}

/// Facts about the running kernel that are not offsets; the read-only global `KERNEL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Kernel {
    /// The `f_mode` bit that marks the backing file of an overlay (include/linux/fs.h: NONOTIFY, bit
    /// 26, before 6.5; BACKING, bit 25, from 6.5; BACKING, bit 24, from 6.14 and in the stable kernels that have
    /// what made it move, where bit 25 is NONOTIFY).
    pub backing_mode: u32,
    /// Which argument of the LSM hook `bpf` is the verdict so far: 3, or 4 from 6.15.
    pub bpf_verdict: u32,
    /// Which argument of the LSM hook `inode_setattr` is the directory entry: 0, or 1 from 6.9.
    pub setattr_dentry: u32,
    /// 1 where `sendfile` and `splice` pass pages to a socket as no message: before 6.5.
    pub sends_pages: u32,
    /// 1 where programs may know the current task by its type: from 5.11.
    pub types_tasks: u32,
    /// The numbers of `clone`, `clone3`, `unshare` and `setns`.
    pub namespace_calls: [u32; 4],
    /// The numbers of the system calls that change mounts.
    pub mount_calls: [u32; 10],
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: all fields are u32, so there is no padding and every bit pattern is one.
    unsafe impl aya::Pod for super::Offsets {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Kernel {}
}
