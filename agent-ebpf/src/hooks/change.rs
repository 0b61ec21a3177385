//! Changes other than by writing: what is made, removed, renamed, linked, cut, or given other rights. All
//! are the action `write` on every name that they change.
//!
//! A link or a rename gives an object another name, under which more may be permitted; so it asks for
//! `read` under the old name too, as a copy would.
//!
//! The hooks of times and extended attributes have no mount, and so no name: these ask what is forbidden of
//! the object, and need no permit. They are passed on by an overlay to its layers, too, of which an agent
//! knows nothing; so they tell only what is denied.
//!
//! Ambit's own objects, and the folders that lead to them, are out of reach here whatever the policy says.

use agent_ebpf::{
    Action, Decision, Facet, GUARD_CHILDREN, GUARD_SELF, Hook, PATH_MAX, RULE_NONE, RULE_PROTECTED,
    Reason, Verdict,
};
use aya_ebpf::{
    EbpfContext as _,
    cty::c_long,
    helpers::{
        bpf_probe_read_kernel_buf,
        generated::{bpf_get_current_task, bpf_loop},
    },
    programs::LsmContext,
};
use core::{arch::asm, ffi::c_void};

use super::{
    file::{self, Judged, Object, Places},
    path::{self, Name, Spot},
    unix,
};
use crate::{
    identity::{self, Actor},
    maps::{End, GUARDED, Scratch},
    offsets::{kernel, known, offsets},
};

// include/uapi/linux/stat.h
const S_IFMT: u32 = 0o170_000;
const S_IFSOCK: u32 = 0o140_000;
/// include/uapi/linux/fs.h
const RENAME_EXCHANGE: u32 = 2;
// include/linux/fs.h: one of these is set by every call that sets times, and by no other.
const ATTR_TIMES_SET: u32 = 1 << 16;
const ATTR_TOUCH: u32 = 1 << 17;

/// `path_unlink(dir, dentry)`, `path_rmdir(dir, dentry)`.
#[inline(always)]
pub fn remove(ctx: &LsmContext, hook: Hook) -> i32 {
    let prior: i32 = ctx.arg(2);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else { return 0 };
    let (dir, spot) = named(ctx.arg(0), ctx.arg(1));
    let object = Object::of(inode_of(spot.dentry));
    let guard = guarded(dir, GUARD_CHILDREN) || guarded(object.inode, GUARD_SELF);
    judge(&actor, hook, &spot, &object, guard, true)
}

/// `path_mkdir(dir, dentry, mode)`, `path_symlink(dir, dentry, target)`.
#[inline(always)]
pub fn make(ctx: &LsmContext, hook: Hook) -> i32 {
    let prior: i32 = ctx.arg(3);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else { return 0 };
    let (dir, spot) = named(ctx.arg(0), ctx.arg(1));
    let object = Object { inode: 0, is_dir: matches!(hook, Hook::PathMkdir) };
    judge(&actor, hook, &spot, &object, guarded(dir, GUARD_CHILDREN), true)
}

/// `path_mknod(dir, dentry, mode, dev)`: a device, pipe or socket; or a file, before an open makes it, which
/// tells it then.
#[inline(always)]
pub fn make_node(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(4);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else { return 0 };
    let (dir, spot) = named(ctx.arg(0), ctx.arg(1));
    let object = Object { inode: 0, is_dir: false };
    let guard = guarded(dir, GUARD_CHILDREN);
    let mode: u32 = ctx.arg(2);
    if mode & S_IFMT == S_IFSOCK {
        return unix::bind_path(&actor, spot, guard);
    }
    judge(&actor, Hook::PathMknod, &spot, &object, guard, !is_opening())
}

/// `path_truncate(path)`; before 6.2 also for a file that is open, or being opened, which was judged
/// already.
#[inline(always)]
pub fn truncate(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(1);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else { return 0 };
    if is_opening() {
        return 0;
    }
    alter(&actor, Hook::PathTruncate, &Spot::of_path(ctx.arg(0)))
}

/// `path_chmod(path, mode)`.
#[inline(always)]
pub fn chmod(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(2);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else { return 0 };
    alter(&actor, Hook::PathChmod, &Spot::of_path(ctx.arg(0)))
}

/// `path_chown(path, uid, gid)`.
#[inline(always)]
pub fn chown(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(3);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else { return 0 };
    alter(&actor, Hook::PathChown, &Spot::of_path(ctx.arg(0)))
}

/// `inode_setattr([idmap,] dentry, attr)`: everything that may be set passes here; times have no hook of their
/// own.
#[inline(always)]
pub fn times(ctx: &LsmContext) -> i32 {
    let (dentry, change, prior): (u64, u64, u64);
    // Loads at constant offsets: the verifier allows no computed ones into the context.
    // SAFETY: the hook's arguments, 8 bytes each; the branch not taken is dead to the verifier.
    unsafe {
        let args = ctx.as_ptr();
        if known(&kernel().setattr_dentry) == 1 {
            asm!("{0} = *(u64 *)({3} + 8)", "{1} = *(u64 *)({3} + 16)", "{2} = *(u64 *)({3} + 24)",
                out(reg) dentry, out(reg) change, out(reg) prior, in(reg) args);
        } else {
            asm!("{0} = *(u64 *)({3} + 0)", "{1} = *(u64 *)({3} + 8)", "{2} = *(u64 *)({3} + 16)",
                out(reg) dentry, out(reg) change, out(reg) prior, in(reg) args);
        }
    }
    if prior as i32 != 0 {
        return prior as i32;
    }
    let Some(actor) = identity::acting() else { return 0 };
    let valid: u32 = path::read(change, &offsets().iattr_valid);
    if valid & (ATTR_TIMES_SET | ATTR_TOUCH) == 0 {
        return 0;
    }
    unnamed(&actor, Hook::InodeSetattr, dentry)
}

/// `inode_setxattr(idmap, dentry, ...)`, `inode_removexattr`, `inode_set_acl`, `inode_remove_acl`.
#[inline(always)]
pub fn attribute(ctx: &LsmContext, hook: Hook, prior: i32) -> i32 {
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else { return 0 };
    let dentry: *const u8 = ctx.arg(1);
    unnamed(&actor, hook, dentry as u64)
}

/// Judges a change of an object of which no name is known.
#[inline(always)]
fn unnamed(actor: &Actor, hook: Hook, dentry: u64) -> i32 {
    let Some(slot) = file::claim() else {
        return file::unjudged(actor);
    };
    let object = Object::of(inode_of(dentry));
    let decision = match path::forbidden(actor, dentry, slot) {
        Err(reason) => Decision::because(reason),
        Ok(()) => {
            let rule = file::forbidden(slot, Action::Write, object.is_dir);
            Decision { reason: Reason::Permitted, rule: RULE_NONE }.or_forbidden(rule)
        }
    };
    let verdict = actor.verdict(decision);
    if !matches!(verdict, Verdict::Allowed) {
        file::tell(
            actor,
            slot,
            &object,
            &Judged { hook, action: Action::Write, decision, verdict },
        );
    }
    file::release(slot);
    file::outcome(verdict)
}

#[inline(always)]
fn alter(actor: &Actor, hook: Hook, spot: &Spot) -> i32 {
    let object = Object::of(inode_of(spot.dentry));
    judge(actor, hook, spot, &object, guarded(object.inode, GUARD_SELF), true)
}

/// `path_link(old_dentry, new_dir, new_dentry)`: both names are in one mount.
#[inline(always)]
pub fn link(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(3);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else { return 0 };
    let (dir, new) = named(ctx.arg(1), ctx.arg(2));
    let old: *const u8 = ctx.arg(0);
    let old = Spot { mount: new.mount, dentry: old as u64 };
    let object = Object::of(inode_of(old.dentry));
    let guard = guarded(dir, GUARD_CHILDREN) || guarded(object.inode, GUARD_SELF);
    let is_dir = object.is_dir;
    let moved =
        Move { hook: Hook::PathLink, old, new, object, other: is_dir, swaps: false, flags: 0 };
    judge_move(&actor, &moved, guard)
}

/// `path_rename(old_dir, old_dentry, new_dir, new_dentry, flags)`.
#[inline(always)]
pub fn rename(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(5);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else { return 0 };
    let (old_dir, old) = named(ctx.arg(0), ctx.arg(1));
    let (new_dir, new) = named(ctx.arg(2), ctx.arg(3));
    let flags: u32 = ctx.arg(4);
    let object = Object::of(inode_of(old.dentry));
    let other = Object::of(inode_of(new.dentry));
    let guard = guarded(old_dir, GUARD_CHILDREN)
        || guarded(new_dir, GUARD_CHILDREN)
        || guarded(object.inode, GUARD_SELF)
        || guarded(other.inode, GUARD_SELF);
    let moved = Move {
        hook: Hook::PathRename,
        old,
        new,
        other: if other.inode == 0 { object.is_dir } else { other.is_dir },
        object,
        swaps: flags & RENAME_EXCHANGE != 0,
        flags,
    };
    judge_move(&actor, &moved, guard)
}

/// The folder's inode and the entry in it, from what the hooks of names pass.
#[inline(always)]
fn named(dir: *const u8, dentry: *const u8) -> (u64, Spot) {
    let folder = Spot::of_path(dir);
    (inode_of(folder.dentry), Spot { mount: folder.mount, dentry: dentry as u64 })
}

/// The inode behind an entry; 0 when there is none.
#[inline(always)]
fn inode_of(dentry: u64) -> u64 {
    path::read(dentry, &offsets().dentry_inode)
}

/// True while an open looks its path up, and makes or cuts what it finds.
#[inline(always)]
fn is_opening() -> bool {
    // SAFETY: a plain helper call.
    let task = unsafe { bpf_get_current_task() };
    path::read::<u64>(task, &offsets().task_lookup) != 0
}

#[inline(always)]
fn guarded(inode: u64, how: u32) -> bool {
    // SAFETY: the value is one word.
    unsafe { GUARDED.get(&path::key(inode)) }.is_some_and(|flags| flags & how != 0)
}

const PROTECTED: Decision = Decision { reason: Reason::Forbidden, rule: RULE_PROTECTED };

/// Judges a change of one name, and tells it unless it is `quiet` about what is allowed.
#[inline(always)]
fn judge(
    actor: &Actor,
    hook: Hook,
    spot: &Spot,
    object: &Object,
    is_guarded: bool,
    tells: bool,
) -> i32 {
    let Some(slot) = file::claim() else {
        return file::unjudged(actor);
    };
    let decision = match path::resolve(actor, spot, slot) {
        _ if is_guarded => PROTECTED,
        Err(reason) => Decision::because(reason),
        Ok(name) => match file::walk(actor, slot, name.len) {
            Err(reason) => Decision::because(reason),
            Ok(tables) => file::decide(slot, &tables, Facet::of(Action::Write, object.is_dir)),
        },
    };
    let verdict = actor.verdict(decision);
    if tells || !matches!(verdict, Verdict::Allowed) {
        file::tell(actor, slot, object, &Judged { hook, action: Action::Write, decision, verdict });
    }
    file::release(slot);
    file::outcome(verdict)
}

/// An object that gets a new name.
struct Move {
    hook: Hook,
    old: Spot,
    new: Spot,
    object: Object,
    /// Whether what is under the new name now, if anything, is a folder.
    other: bool,
    /// What is under the new name gets the old one.
    swaps: bool,
    flags: u32,
}

/// Judges both names; the record has the old one and then the new one.
#[inline(always)]
fn judge_move(actor: &Actor, moved: &Move, is_guarded: bool) -> i32 {
    let Some(slot) = file::claim() else {
        return file::unjudged(actor);
    };
    let (is_dir, other) = (moved.object.is_dir, moved.other);
    let leaves = asks(Action::Read, is_dir);
    let returns = if moved.swaps { asks(Action::Read, other) } else { 0 };
    let written = asks(Action::Write, is_dir);
    let replaced = asks(Action::Write, other);
    // What is under the new name is written there, and under the old one if it moves there.
    let swapped = if moved.swaps { replaced } else { written };
    slot.ends = [
        End { spot: moved.new, asked: written | replaced | returns },
        End { spot: moved.old, asked: written | swapped | leaves },
    ];
    slot.action = Action::Write;
    slot.decision = Decision::because(Reason::Permitted);
    let mut ends = Ends { actor, slot };
    // SAFETY: the callback has the helper's signature, and `ends` outlives the call.
    let done =
        unsafe { bpf_loop(2, judge_end as *const () as *mut c_void, (&raw mut ends).cast(), 0) };
    // SAFETY: still ours.
    let slot = unsafe { &mut *ends.slot };
    if done != 2 {
        slot.decision = Decision::because(Reason::PathUnresolved);
    }
    if is_guarded {
        (slot.action, slot.decision) = (Action::Write, PROTECTED);
    }
    slot.record.body.flags = moved.flags;
    let (action, decision) = (slot.action, slot.decision);
    let verdict = actor.verdict(decision);
    let judged = Judged { hook: moved.hook, action, decision, verdict };
    file::tell(actor, slot, &moved.object, &judged);
    file::release(slot);
    file::outcome(verdict)
}

/// The bit of a facet in [`End::asked`].
#[inline(always)]
fn asks(action: Action, is_dir: bool) -> u32 {
    Facet::of(action, is_dir).map_or(0, |facet| 1 << facet as u32)
}

/// What [`judge_end`] needs.
struct Ends<'a> {
    actor: &'a Actor,
    slot: *mut Scratch,
}

/// Judges one end of a move, the new name and then the old one; called by `bpf_loop`.
extern "C" fn judge_end(index: u64, ends: *mut Ends<'_>) -> c_long {
    // SAFETY: `judge_move` passed it; the slot is ours.
    let (actor, slot) = unsafe { ((*ends).actor, &mut *(*ends).slot) };
    let End { spot, asked } = slot.ends[index as usize & 1];
    let walked = match path::resolve(actor, &spot, slot) {
        Ok(name) => {
            if index == 0 {
                keep_result(slot, &name);
            }
            file::walk(actor, slot, name.len)
        }
        Err(reason) => Err(reason),
    };
    let tables = match walked {
        Ok(tables) => tables,
        Err(reason) => {
            if slot.decision.allows() {
                (slot.action, slot.decision) = (Action::Write, Decision::because(reason));
            }
            return 0;
        }
    };
    // One after the other: in a loop, the verifier would not know what a facet's number may be.
    ask(slot, &tables, asked, Facet::WriteFile);
    ask(slot, &tables, asked, Facet::WriteDir);
    ask(slot, &tables, asked, Facet::ReadFile);
    ask(slot, &tables, asked, Facet::ReadDir);
    0
}

/// Judges one end for one facet, if it is asked for and nothing is denied yet.
#[inline(always)]
fn ask(slot: &mut Scratch, tables: &Places, asked: u32, facet: Facet) {
    if asked & 1 << facet as u32 == 0 || !slot.decision.allows() {
        return;
    }
    let decision = file::decide(slot, tables, Some(facet));
    let is_read = matches!(facet, Facet::ReadFile | Facet::ReadDir);
    // What is told of a move that goes ahead is who permits the change.
    if !is_read || !decision.allows() {
        slot.action = if is_read { Action::Read } else { Action::Write };
        slot.decision = decision;
    }
}

/// Puts the path in the record aside, for the record's second one.
#[inline(always)]
fn keep_result(slot: &mut Scratch, name: &Name) {
    let len = name.len & (PATH_MAX as u32 - 1);
    // SAFETY: both are longer than that.
    let kept = unsafe {
        let room = core::slice::from_raw_parts_mut((&raw mut slot.result).cast(), len as usize);
        bpf_probe_read_kernel_buf((&raw const slot.record.path).cast(), room)
    };
    slot.record.body.result_len = if kept.is_ok() { len } else { 0 };
}
