//! Unix sockets: connect, send and bind, judged by the place of the socket that is reached, or by its
//! abstract address.
//!
//! A socket without a name was handed over by a process that has it, or is one half of a pair: there is nothing
//! to judge. Binding to a path is judged where the path is made.

use agent_ebpf::{Action, Decision, Facet, Hook, RULE_PROTECTED, Reason, Verdict};
use aya_ebpf::{helpers::bpf_probe_read_kernel_buf, programs::LsmContext};
use core::arch::asm;

use super::{
    file::{self, Judged, Object},
    path::{self, Spot},
};
use crate::{
    identity::{self, Actor, read, read_at},
    maps::Scratch,
    offsets::{known, offsets},
};

const AF_UNIX: u16 = 1;
/// Bytes of an address before its name: the family.
const FAMILY: u32 = 2;
/// The longest name, an abstract one's leading NUL included (`sun_path` of include/uapi/linux/un.h).
const NAME_MAX: u32 = 108;

/// LSM `unix_stream_connect(sock, other, newsk)`.
#[inline(always)]
pub fn connect(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(3);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else { return 0 };
    reach(&actor, ctx.arg(1), Hook::UnixStreamConnect, true)
}

/// LSM `unix_may_send(sock, other)`: a datagram, or the connection of a datagram socket. What is sent over
/// a connection was told when that was made.
#[inline(always)]
pub fn may_send(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(2);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else { return 0 };
    let (own, other): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    let other: u64 = read(other, &offsets().socket_sock).unwrap_or(0);
    let own: u64 = read(own, &offsets().socket_sock).unwrap_or(0);
    let connected = read::<u64>(own, &offsets().unix_peer) == Some(other);
    reach(&actor, other, Hook::UnixMaySend, !connected)
}

/// LSM `socket_bind(sock, address, addrlen)`: an abstract address. The address is the kernel's copy.
#[inline(always)]
pub fn bind(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(3);
    if prior != 0 {
        return prior;
    }
    let (address, len): (u64, u32) = (ctx.arg(1), ctx.arg(2));
    let Some(actor) = identity::acting() else { return 0 };
    let Some(target) = abstract_address(address, len) else { return 0 };
    judge(&actor, &target, Action::Bind, Hook::SocketBind, true)
}

/// The abstract address to bind to; `None` is one of another family, or a path.
#[inline(always)]
fn abstract_address(address: u64, len: u32) -> Option<Target> {
    let Some(family) = read_at::<u16>(address) else { return Some(Target::Unknown) };
    if family != AF_UNIX {
        return None;
    }
    let name = address + u64::from(FAMILY);
    // Of two bytes alone, the kernel chooses an abstract address.
    if len > FAMILY {
        match read_at::<u8>(name) {
            Some(0) => {}
            Some(_) => return None,
            None => return Some(Target::Unknown),
        }
    }
    Some(Target::Abstract { name, len: len.saturating_sub(FAMILY) })
}

/// A socket that is bound to a path, where the path is made.
#[inline(always)]
pub fn bind_path(actor: &Actor, spot: Spot, is_guarded: bool) -> i32 {
    let target = if is_guarded { Target::Guarded(spot) } else { Target::Place(spot) };
    judge(actor, &target, Action::Bind, Hook::PathMknod, true)
}

/// A socket to reach, or a name to take.
enum Target {
    /// The bytes of a name, its leading NUL included, in the kernel.
    Abstract { name: u64, len: u32 },
    /// In the file tree.
    Place(Spot),
    /// In the file tree, and out of reach.
    Guarded(Spot),
    /// Nobody can say.
    Unknown,
}

#[inline(always)]
fn reach(actor: &Actor, other: u64, hook: Hook, tells: bool) -> i32 {
    match target_of(other) {
        Some(Some(target)) => judge(actor, &target, Action::Connect, hook, tells),
        Some(None) => 0,
        None => judge(actor, &Target::Unknown, Action::Connect, hook, true),
    }
}

/// What a socket is called, if anything.
#[inline(always)]
fn target_of(other: u64) -> Option<Option<Target>> {
    let address: u64 = read(other, &offsets().unix_address)?;
    if address == 0 {
        return Some(None);
    }
    let name = address + known(&offsets().address_name) as u64 + u64::from(FAMILY);
    let len: u32 = read(address, &offsets().address_len)?;
    if len > FAMILY && read_at::<u8>(name)? != 0 {
        // The address is what its binder said; the place is where it is.
        let path = other + known(&offsets().unix_path) as u64;
        return Some(Some(Target::Place(Spot::of_path(path as *const u8))));
    }
    Some(Some(Target::Abstract { name, len: len.saturating_sub(FAMILY) }))
}

/// Judges it, and tells it if asked, or if it is not allowed.
#[inline(always)]
fn judge(actor: &Actor, target: &Target, action: Action, hook: Hook, tells: bool) -> i32 {
    let Some(slot) = file::claim() else {
        return file::unjudged(actor);
    };
    let facet =
        if matches!(action, Action::Bind) { Facet::BindSocket } else { Facet::ConnectSocket };
    let mut object = Object { inode: 0, is_dir: false };
    let decision = match target {
        Target::Abstract { name, len } => match written(slot, *name, *len) {
            Some(len) => match file::walk(actor, slot, len) {
                Ok(tables) => slot.walk.decide(facet, &tables),
                Err(reason) => Decision::because(reason),
            },
            None => Decision::because(Reason::PathUnresolved),
        },
        Target::Place(spot) | Target::Guarded(spot) => {
            object.inode = path::read(spot.dentry, &offsets().dentry_inode);
            match path::resolve(actor, spot, slot) {
                _ if matches!(target, Target::Guarded(_)) => {
                    Decision { reason: Reason::Forbidden, rule: RULE_PROTECTED }
                }
                // There is no path that a socket in the file tree could be judged without.
                Err(Reason::Anonymous) => Decision::because(Reason::PathUnresolved),
                Err(reason) => Decision::because(reason),
                Ok(name) => match file::walk(actor, slot, name.len) {
                    Ok(tables) => file::decide(slot, &tables, Some(facet)),
                    Err(reason) => Decision::because(reason),
                },
            }
        }
        Target::Unknown => Decision::because(Reason::PathUnresolved),
    };
    let verdict = actor.verdict(decision);
    if tells || !matches!(verdict, Verdict::Allowed) {
        file::tell(actor, slot, &object, &Judged { hook, action, decision, verdict });
    }
    file::release(slot);
    file::outcome(verdict)
}

/// Writes `@` and an abstract address, without the NUL at its beginning, into the record.
#[inline(always)]
fn written(slot: &mut Scratch, name: u64, len: u32) -> Option<u32> {
    if len > NAME_MAX {
        return None;
    }
    let mut len = u64::from(len);
    // SAFETY: a plain instruction. The compiler knows the bound and would leave it out; the verifier, which
    // looks at another copy of the length, would not know it then.
    unsafe { asm!("{0} &= 127", inout(reg) len) };
    let len = len as u32;
    if len > 0 {
        // SAFETY: the path is longer than any name; the helper checks the address.
        unsafe {
            let room = (&raw mut slot.record.path).cast::<u8>();
            let room = core::slice::from_raw_parts_mut(room, len as usize);
            bpf_probe_read_kernel_buf(name as *const u8, room).ok()?;
        }
    }
    slot.record.path[0] = b'@';
    let len = if len == 0 { 1 } else { len };
    slot.record.body.path_len = len;
    Some(len)
}
