//! Contents: what the daemon found out about a program, while it is still so; else what the kernel's IMA says.

use agent_ebpf::{Config, Content, FileSystem, PathHash, PlaceKey, PlaceKind, Version};
use aya_ebpf::{
    cty::c_void,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_ima_file_hash, bpf_probe_read_kernel},
    },
    programs::LsmContext,
};

use super::path::{self, read};
use crate::{
    identity::Actor,
    maps::{CONTENTS, TRIAL},
    offsets::offsets,
};

/// Where the rules on the content of this inode's file are; `None` when nobody has read it, or when it was
/// changed since.
#[inline(always)]
pub fn known(inode: u64) -> Option<PlaceKey> {
    // SAFETY: a lookup; an element is replaced whole, never written to.
    let known = unsafe { CONTENTS.get(&path::key(inode)) }?;
    let nanoseconds: u32 = read(inode, &offsets().inode_ctime_nsec);
    let now = Version {
        seconds: read(inode, &offsets().inode_ctime),
        nanoseconds: u64::from(nanoseconds) & Version::NANOSECONDS,
        size: read(inode, &offsets().inode_size),
    };
    let then = &known.version;
    let same =
        now.seconds == then.seconds && now.nanoseconds == then.nanoseconds && now.size == then.size;
    same.then(|| known.key())
}

/// An agent may write to this file: what was known of it is known no more.
#[inline(always)]
pub fn forget(actor: &Actor, inode: u64) {
    if actor.config.contents == 0 {
        return;
    }
    let key = path::key(inode);
    // SAFETY: a lookup; asked first, because to remove takes a lock.
    if unsafe { CONTENTS.get(&key) }.is_some() {
        let _ = CONTENTS.remove(&key);
    }
}

/// Whether IMA may be asked for the content of this inode's file.
#[inline(always)]
pub fn is_for_ima(config: &Config, inode: u64) -> bool {
    config.ima != 0 && !has_policy(config.ima) && file_system(inode).is_some()
}

/// Whether the daemon could keep the content of this inode's file.
#[inline(always)]
pub fn is_for_daemon(inode: u64) -> bool {
    file_system(inode).is_some_and(FileSystem::shows_changes)
}

/// The file system that this inode is on, if files are in this kernel's hands alone there.
#[inline(always)]
fn file_system(inode: u64) -> Option<FileSystem> {
    FileSystem::of_magic(read(read(inode, &offsets().inode_super), &offsets().super_magic))
}

/// Where the rules on the content of this file are, as IMA reads it now. It may sleep.
#[inline(always)]
pub fn by_ima(config: &Config, file: *const c_void) -> Option<PlaceKey> {
    let mut digest = [0_u8; Content::BYTES as usize];
    let algorithm = hash(file, &mut digest);
    // With a policy, what was collected for that one is given out.
    if algorithm != Content::SHA256 || has_policy(config.ima) {
        return None;
    }
    let mut hash = PathHash::new(config);
    for byte in digest {
        hash.push(byte);
    }
    Some(hash.key(PlaceKind::Content))
}

/// Whether an IMA policy is loaded, by the kernel's own flag. What cannot be read is one.
#[inline(always)]
fn has_policy(flag: u64) -> bool {
    let mut value = 0_u32;
    // SAFETY: room for an `int`; the helper checks the address.
    let failed = unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<u32>() as u32,
            flag as *const c_void,
        )
    };
    failed != 0 || value != 0
}

/// The algorithm of the digest that IMA gives, or an error.
#[inline(always)]
fn hash(file: *const c_void, digest: &mut [u8; Content::BYTES as usize]) -> i64 {
    // SAFETY: a file that the verifier knows, and room for so many bytes.
    unsafe { bpf_ima_file_hash(file.cast_mut().cast(), digest.as_mut_ptr().cast(), Content::BYTES) }
}

/// LSM `file_lock(file, cmd)`, attached for a moment: tells the daemon what IMA says of a file of its own.
#[inline(always)]
pub fn try_ima(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(2);
    if let Some(trial) = TRIAL.get_ptr_mut(0) {
        // SAFETY: a live element, into which only this run writes: the daemon waits for it.
        unsafe {
            if (*trial).tgid == (bpf_get_current_pid_tgid() >> 32) as u32 {
                (*trial).has_policy = u32::from(has_policy((*trial).flag));
                (*trial).algorithm = hash(ctx.arg(0), &mut (*trial).digest);
            }
        }
    }
    prior
}
