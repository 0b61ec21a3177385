//! Files that are open already: a descriptor from before the policy, an inherited or a received one.
//!
//! What an agent opens is judged when it is opened. Afterwards nothing has to be permitted any more, so what a
//! user hands over goes on to work; but what is forbidden of the object, by itself or by a folder above it, is
//! refused at every read and write, and when it is mapped.

use agent_ebpf::{Action, Decision, Hook, RULE_NONE, Reason, Verdict};
use aya_ebpf::{helpers::generated::bpf_sock_from_file, programs::LsmContext};

use super::{
    file::{self, FMODE_EXEC, Judged, Object},
    path::{self, Spot},
    send,
};
use crate::{
    identity::{self, Actor},
    memo::Memo,
    offsets::{kernel, known, member, offsets, within},
};

// include/linux/fs.h
const MAY_WRITE: u32 = 2;
const MAY_READ: u32 = 4;
const MAY_APPEND: u32 = 8;

/// A file that is open, by what tells which it is.
pub struct Held {
    pub flags: u32,
    pub inode: u64,
    pub spot: Spot,
}

impl Held {
    /// What can be read of it.
    #[inline(always)]
    pub fn read(file: u64) -> Self {
        let at = file.wrapping_add(known(&offsets().file_path) as u64);
        Self {
            flags: path::read(file, &offsets().file_flags),
            inode: path::read(file, &offsets().file_inode),
            spot: Spot::of_path(at as *const u8),
        }
    }
}

/// LSM `file_permission(file, mask)`: every read, write and list; `sendfile`, `splice`, `copy_file_range` and
/// `fallocate` too.
#[inline(always)]
pub fn permission(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(2);
    if prior != 0 {
        return prior;
    }
    let mask: u32 = ctx.arg(1);
    let (reads, writes) = (mask & MAY_READ != 0, mask & (MAY_WRITE | MAY_APPEND) != 0);
    if !reads && !writes {
        return 0;
    }
    let Some(actor) = identity::settled() else { return 0 };
    used(&actor, ctx.arg(0), reads, writes, Hook::FilePermission)
}

/// LSM `file_truncate(file)`, from 6.2; before it, `path_truncate`.
#[inline(always)]
pub fn truncate(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(1);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::settled() else { return 0 };
    used(&actor, ctx.arg(0), false, true, Hook::FileTruncate)
}

/// Judges the use of a file that the verifier knows: what of it is a number costs a load each.
#[inline(always)]
fn used(actor: &Actor, file: *const u8, reads: bool, writes: bool, hook: Hook) -> i32 {
    // SAFETY: members of the hook's file, and of what they point to.
    let (mode, flags, number): (u32, u32, u64) = unsafe {
        let inode: *const u8 = member(file, &offsets().file_inode);
        (
            member(file, &offsets().file_mode),
            member(file, &offsets().file_flags),
            member(inode, &offsets().inode_number),
        )
    };
    // The kernel's own, of which nothing is kept: of a program that it runs; beneath an overlay, of whose own file
    // it was asked just before.
    let marked = mode & known(&kernel().backing_mode) as u32 != 0;
    if flags & FMODE_EXEC != 0 || marked && file::is_backing(file) {
        return 0;
    }
    let spot = Spot::of_path(within(file, &offsets().file_path));
    let asked = u64::from(reads) | u64::from(writes) << 1;
    let memo = Memo::of(actor, [spot.dentry, spot.mount, number, asked]);
    if memo.is_kept() {
        return 0;
    }
    if known(&kernel().sends_pages) != 0 && writes {
        // SAFETY: the hook's file.
        let socket = unsafe { bpf_sock_from_file(file.cast_mut().cast()) };
        if !socket.is_null() {
            let verdict = send::judge(actor, socket.cast_const().cast(), hook);
            if !matches!(verdict, Verdict::Denied) {
                memo.keep();
            }
            return file::outcome(verdict);
        }
    }
    let verdict = judge(actor, &Held::read(file as u64), reads, writes, hook);
    if !matches!(verdict, Verdict::Denied) {
        memo.keep();
    }
    file::outcome(verdict)
}

/// Judges the use of a file by what is forbidden of the object, and tells it unless it is allowed.
#[inline(always)]
pub fn judge(actor: &Actor, held: &Held, reads: bool, writes: bool, hook: Hook) -> Verdict {
    // The kernel's own: of a program that it runs; a layer of an overlay. Or a pipe, a socket, memory.
    if held.flags & FMODE_EXEC != 0 || path::is_internal(held.spot.mount) {
        return Verdict::Allowed;
    }
    let Some(slot) = file::claim() else {
        return file::unjudged_verdict(actor);
    };
    let object = Object::of(held.inode);
    let mut action = if reads { Action::Read } else { Action::Write };
    let decision = match path::held(actor, &held.spot, slot) {
        // It can open nothing; of what it has, nobody says anything.
        Err(Reason::NoPolicy) => Decision { reason: Reason::Permitted, rule: RULE_NONE },
        Err(reason) => Decision::because(reason),
        Ok(()) => {
            let mut rule = file::forbidden(slot, action, object.is_dir);
            if rule == RULE_NONE && writes {
                action = Action::Write;
                rule = file::forbidden(slot, action, object.is_dir);
            }
            Decision { reason: Reason::Permitted, rule: RULE_NONE }.or_forbidden(rule)
        }
    };
    let verdict = actor.verdict(decision);
    if !matches!(verdict, Verdict::Allowed) {
        // For its name alone; without one in the agent's view the record has its last part.
        let _ = path::resolve(actor, &held.spot, slot);
        slot.record.body.flags = held.flags;
        file::tell(actor, slot, &object, &Judged { hook, action, decision, verdict });
    }
    file::release(slot);
    verdict
}
