//! Sockets of kinds whose use is not judged: only those that the policy names are made.
//!
//! The cgroup program sees internet sockets on every kernel and tells them; the LSM program sees all
//! families, and speaks of internet sockets only when it denies.

use agent_ebpf::{Action, Hook, Kind, PlaceKey, SocketBody, SocketKind, Verdict};
use aya_ebpf::programs::{LsmContext, SockContext};

use super::{file::outcome, privilege::decide};
use crate::{
    emit,
    identity::{self, Actor},
};
use agent_ebpf::{Decision, Header};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

#[repr(C)]
struct SocketRecord {
    header: Header,
    body: SocketBody,
}

/// LSM `socket_create(family, type, protocol, kern)`.
#[inline(always)]
pub fn create(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(4);
    if prior != 0 {
        return prior;
    }
    let by_kernel: i32 = ctx.arg(3);
    let (family, socket_type, protocol) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    if by_kernel != 0 {
        return 0; // no process asked for it
    }
    let Some(actor) = identity::acting() else { return 0 };
    let Some(kind) = SocketKind::asked(family, socket_type, protocol) else { return 0 };
    let body = SocketBody { kind: kind as u32, family, socket_type, protocol };
    let internet = family == AF_INET || family == AF_INET6;
    outcome(judge(&actor, &body, kind, Hook::SocketCreate, internet))
}

/// cgroup `sock_create`.
#[inline(always)]
pub fn made(ctx: &SockContext) -> i32 {
    // SAFETY: the program's own context.
    let (family, socket_type, protocol) =
        unsafe { ((*ctx.sock).family, (*ctx.sock).type_, (*ctx.sock).protocol) };
    let Some(actor) = identity::current() else { return PROCEED };
    let Some(kind) = SocketKind::asked(family, socket_type, protocol) else {
        return PROCEED;
    };
    let body = SocketBody { kind: kind as u32, family, socket_type, protocol };
    match judge(&actor, &body, kind, Hook::SockCreate, false) {
        Verdict::Allowed | Verdict::WouldDeny => PROCEED,
        Verdict::Denied => REFUSE,
    }
}

/// What a cgroup program returns to let a call go on, and to fail it with `EPERM`.
const PROCEED: i32 = 1;
const REFUSE: i32 = 0;

/// Judges it, and tells it unless somebody else will. Not inlined: a record on the stack of a frame of its
/// own.
#[inline(never)]
fn judge(
    actor: &Actor,
    body: &SocketBody,
    kind: SocketKind,
    hook: Hook,
    told_later: bool,
) -> Verdict {
    let decision = decide(actor, PlaceKey::socket(kind));
    let verdict = actor.verdict(decision);
    if told_later && !matches!(verdict, Verdict::Denied) {
        return verdict;
    }
    tell(actor, body, hook, decision, verdict);
    verdict
}

#[inline(always)]
fn tell(actor: &Actor, body: &SocketBody, hook: Hook, decision: Decision, verdict: Verdict) {
    let mut record = SocketRecord { header: Header::default(), body: *body };
    emit::fill(&mut record.header, actor, Kind::Socket, hook);
    emit::decided(&mut record.header, Action::Socket, decision, verdict);
    emit::send(&mut record);
}
