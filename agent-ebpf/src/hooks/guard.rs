//! Ambit's own objects: no agent may remove, rename, link or truncate them, or the folders that lead to
//! them, whatever its policy says. Opening them is forbidden by name, as everything else that opens is.

use agent_ebpf::{
    Action, Decision, GUARD_CHILDREN, GUARD_SELF, Hook, Kind, ObjectKey, PATH_MAX, RULE_PROTECTED,
    Reason,
};
use aya_ebpf::{helpers::generated::bpf_probe_read_kernel_str, programs::LsmContext};

use super::file::{claim, outcome, release};
use crate::{
    emit,
    identity::{self, Actor},
    maps::{FileRecord, GUARDED},
    offsets::{member, offsets, within},
};

/// Longest name of a directory entry with its NUL (include/linux/limits.h: `NAME_MAX`).
const NAME_BYTES: u32 = 256;

/// `inode_unlink(dir, dentry)`, `inode_rmdir(dir, dentry)`.
#[inline(always)]
pub fn removes(ctx: &LsmContext, hook: Hook) -> i32 {
    let Some(actor) = identity::current() else { return 0 };
    let (dir, dentry): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(1));
    if guarded(dir, GUARD_CHILDREN) || names_guarded(dentry) {
        return refuse(&actor, dir, dentry, hook);
    }
    0
}

/// `inode_create(dir, dentry, ...)`, `inode_mkdir`, `inode_symlink`.
#[inline(always)]
pub fn makes(ctx: &LsmContext, hook: Hook) -> i32 {
    let Some(actor) = identity::current() else { return 0 };
    let (dir, dentry): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(1));
    if guarded(dir, GUARD_CHILDREN) {
        return refuse(&actor, dir, dentry, hook);
    }
    0
}

/// `inode_rename(old_dir, old_dentry, new_dir, new_dentry)`.
#[inline(always)]
pub fn rename(ctx: &LsmContext) -> i32 {
    let Some(actor) = identity::current() else { return 0 };
    let (old_dir, old): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(1));
    let (new_dir, new): (*const u8, *const u8) = (ctx.arg(2), ctx.arg(3));
    if guarded(old_dir, GUARD_CHILDREN)
        || guarded(new_dir, GUARD_CHILDREN)
        || names_guarded(old)
        || names_guarded(new)
    {
        return refuse(&actor, old_dir, old, Hook::InodeRename);
    }
    0
}

/// `inode_link(old_dentry, dir, new_dentry)`.
#[inline(always)]
pub fn link(ctx: &LsmContext) -> i32 {
    let Some(actor) = identity::current() else { return 0 };
    let (old, dir): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(1));
    if guarded(dir, GUARD_CHILDREN) || names_guarded(old) {
        return refuse(&actor, dir, old, Hook::InodeLink);
    }
    0
}

/// `path_truncate(path)`.
#[inline(always)]
pub fn truncate(ctx: &LsmContext) -> i32 {
    let Some(actor) = identity::current() else { return 0 };
    let path: *const u8 = ctx.arg(0);
    // SAFETY: a member of the path that is truncated.
    let dentry: *const u8 = unsafe { member(path, &offsets().path_dentry) };
    if names_guarded(dentry) {
        return refuse(&actor, core::ptr::null(), dentry, Hook::PathTruncate);
    }
    0
}

/// True when the entry's object is guarded itself.
#[inline(always)]
fn names_guarded(dentry: *const u8) -> bool {
    // SAFETY: a member of a live entry.
    let inode: *const u8 = unsafe { member(dentry, &offsets().dentry_inode) };
    !inode.is_null() && guarded(inode, GUARD_SELF)
}

#[inline(always)]
fn guarded(inode: *const u8, how: u32) -> bool {
    // SAFETY: the value is one word.
    unsafe { GUARDED.get(&key(inode)) }.is_some_and(|flags| flags & how != 0)
}

#[inline(always)]
fn key(inode: *const u8) -> ObjectKey {
    // SAFETY: members of a live inode.
    unsafe {
        let fs: *const u8 = member(inode, &offsets().inode_super);
        ObjectKey {
            inode: member(inode, &offsets().inode_number),
            device: member(fs, &offsets().super_device),
            pad: 0,
        }
    }
}

/// Denies and tells, with the last component of the name: these hooks may not resolve a whole one.
#[inline(always)]
fn refuse(actor: &Actor, dir: *const u8, dentry: *const u8, hook: Hook) -> i32 {
    let decision = Decision { reason: Reason::Forbidden, rule: RULE_PROTECTED };
    let verdict = actor.verdict(decision);
    let Some(scratch) = claim() else {
        emit::lost(verdict, Kind::File);
        return outcome(verdict);
    };
    // SAFETY: this slot is ours until `release`.
    let record = unsafe { &mut (*scratch).record };
    emit::fill(&mut record.header, actor, Kind::File, hook);
    emit::decided(&mut record.header, Action::Write, decision, verdict);
    (record.body.flags, record.body.is_dir) = (0, 0);
    let object = if dir.is_null() { ObjectKey::default() } else { key(dir) };
    (record.body.inode, record.body.device) = (object.inode, object.device);
    // SAFETY: a member of a live entry; the helper checks the address of the name.
    let len = unsafe {
        let name: *const u8 = member(within(dentry, &offsets().dentry_name), &offsets().qstr_name);
        bpf_probe_read_kernel_str(record.path.as_mut_ptr().cast(), NAME_BYTES, name.cast())
    };
    record.body.path_len = if len > 0 { (len as u32 - 1) & (NAME_BYTES - 1) } else { 0 };
    let size = (size_of::<FileRecord>() - PATH_MAX) as u32 + record.body.path_len;
    // SAFETY: the slot is larger than that and begins with its header.
    unsafe { emit::send_bytes(core::ptr::from_mut(record).cast(), size) };
    release(scratch);
    outcome(verdict)
}
