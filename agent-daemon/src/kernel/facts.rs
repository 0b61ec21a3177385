//! What the kernel half has to know of the kernel that it runs on.

use agent_ebpf::{Kernel, Offsets};

use super::{btf::Btf, host::Host, load::LoadError};

/// Where this kernel has the members that the kernel half reads.
pub(super) fn offsets(btf: &Btf) -> Result<Offsets, LoadError> {
    let offsets = Offsets::resolve(|owner, member| {
        btf.offset(owner, member).or_else(|| {
            // A `timespec64` of two 64-bit numbers before 6.11, with this name from 6.6.
            let whole = || btf.offset(owner, "__i_ctime").or_else(|| btf.offset(owner, "i_ctime"));
            match (owner, member) {
                ("inode", "i_ctime_sec") => whole(),
                ("inode", "i_ctime_nsec") => Some(whole()? + 8),
                _ => None,
            }
        })
    });
    let missing: Vec<String> = offsets
        .missing()
        // Gone since 6.1, where a helper takes its place; and the name that x86 alone gives.
        .filter(|missing| !matches!(missing, ("cgroup", "ancestor_ids") | ("pt_regs", "orig_ax")))
        .map(|(owner, member)| format!("struct {owner}.{member}"))
        .collect();
    if missing.is_empty() { Ok(offsets) } else { Err(LoadError::Offsets(missing.join(", "))) }
}

/// What else differs between kernels.
pub(super) fn facts(host: &Host, btf: &Btf) -> Kernel {
    // The function came with the change that moved the bit, also to stable kernels ("fsnotify: opt-in for
    // permission events at file open time").
    let moved = host.version >= (6, 14) || btf.parameters("file_set_fsnotify_mode").is_some();
    let bit = if moved && host.version >= (6, 5) {
        24
    } else if host.version >= (6, 5) {
        25
    } else {
        26
    };
    // The verdict so far follows the hook's own parameters.
    let bpf_verdict = if btf.parameters("bpf_lsm_bpf") == Some(4) { 4 } else { 3 };
    let setattr_dentry = u32::from(btf.parameters("bpf_lsm_inode_setattr") == Some(3));
    let number = |call: nix::libc::c_long| u32::try_from(call).unwrap_or(u32::MAX);
    use nix::libc as sys;
    Kernel {
        backing_mode: 1 << bit,
        bpf_verdict,
        setattr_dentry,
        sends_pages: u32::from(host.version < (6, 5)),
        types_tasks: u32::from(host.version >= (5, 11)),
        namespace_calls: [sys::SYS_clone, sys::SYS_clone3, sys::SYS_unshare, sys::SYS_setns]
            .map(number),
        mount_calls: [
            sys::SYS_mount,
            sys::SYS_umount2,
            sys::SYS_pivot_root,
            sys::SYS_open_tree,
            sys::SYS_move_mount,
            sys::SYS_fsopen,
            sys::SYS_fsconfig,
            sys::SYS_fsmount,
            sys::SYS_fspick,
            sys::SYS_mount_setattr,
        ]
        .map(number),
    }
}

/// How many CPUs the kernel may ever number, present or not.
pub(super) fn cpus() -> u32 {
    let possible = aya::util::nr_cpus().ok().and_then(|count| u32::try_from(count).ok());
    possible.unwrap_or(128)
}
