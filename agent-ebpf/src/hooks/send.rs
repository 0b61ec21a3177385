//! Sockets that are connected already: one from before the policy, an inherited or a received one.
//!
//! As with files ([`super::held`]), what an agent connects is judged when it connects, and afterwards nothing has
//! to be permitted any more; but what is sent to, or comes from, a peer to which the policy forbids to connect is
//! refused. A connection that the agent accepted is an answer, and was judged when it listened.

use agent_ebpf::{Action, Decision, Hook, Peer, Reason, Verdict};
use aya_ebpf::{
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    helpers::{
        bpf_probe_read_kernel,
        generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
    },
    programs::LsmContext,
};
use core::ffi::c_void;

use super::{
    file::outcome,
    net::{self, AF_INET, AF_INET6, Judged, protocol},
    path,
};
use crate::{
    identity::{self, Actor},
    maps::ACCEPTED,
    memo::Memo,
    offsets::{known, member, offsets, within},
};

/// include/linux/net.h
const SOCK_STREAM: u16 = 1;

/// LSM `sock_graft(sk, parent)`: a connection that was accepted.
#[inline(always)]
pub fn accepted(ctx: &LsmContext) -> i32 {
    if let Some(actor) = identity::acting() {
        let sock: *mut u8 = ctx.arg(0);
        let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        // SAFETY: the hook's socket, and its mark of one word. Without memory there is no mark, and the
        // connection is judged as any other.
        unsafe {
            let mark = bpf_sk_storage_get(marks(), sock.cast(), core::ptr::null_mut(), flags);
            if let Some(mark) = mark.cast::<u32>().as_mut() {
                *mark = actor.agent;
            }
        }
    }
    0
}

/// A socket that is connected anew is no longer one that was accepted.
#[inline(always)]
pub fn connects(socket: *const u8) {
    // SAFETY: a member of the hook's socket; without a mark nothing is done.
    unsafe {
        let sock: *const u8 = member(socket, &offsets().socket_sock);
        if !sock.is_null() {
            let _ = bpf_sk_storage_delete(marks(), sock.cast_mut().cast());
        }
    }
}

/// LSM `socket_sendmsg(sock, msg, size)` and `socket_recvmsg(sock, msg, size, flags)`.
#[inline(always)]
pub fn message(ctx: &LsmContext, hook: Hook, prior: i32) -> i32 {
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::settled() else { return 0 };
    let (socket, message): (*const u8, *const u8) = (ctx.arg(0), ctx.arg(1));
    // SAFETY: members of the hook's socket and message.
    let (kind, address): (u16, u64) = unsafe {
        (member(socket, &offsets().socket_type), member(message, &offsets().message_name))
    };
    // A stream goes to its peer whatever address is said; a datagram to that, which `sendmsg4` and `sendmsg6`
    // judge. What is received has an address to be filled in.
    if matches!(hook, Hook::SocketSendmsg) && address != 0 && kind != SOCK_STREAM {
        return 0;
    }
    outcome(judge(&actor, socket, hook))
}

/// Judges the use of a socket that the verifier knows by its peer, if it has one, and tells it unless it is
/// allowed.
#[inline(always)]
pub fn judge(actor: &Actor, socket: *const u8, hook: Hook) -> Verdict {
    // SAFETY: members of the hook's socket, and of what they point to.
    let (sock, family, port) = unsafe {
        let sock: *const u8 = member(socket, &offsets().socket_sock);
        if sock.is_null() {
            return Verdict::Allowed;
        }
        let common = within(sock, &offsets().sock_common);
        let family: u16 = member(common, &offsets().common_family);
        let port: u16 = member(common, &offsets().common_peer_port);
        (sock, family, port)
    };
    // A unix socket was judged when it was connected; one without a peer goes nowhere by itself.
    if family != AF_INET && family != AF_INET6 || port == 0 {
        return Verdict::Allowed;
    }
    let peer = remote(sock, family, port);
    let asked = u64::from(port) << 16 | u64::from(family);
    let [a, b] = peer.as_ref().map_or([0; 2], |peer| halves(&peer.address));
    // As a number, which the verifier does not make of an address that it knows.
    let own: u64 = path::read(socket as u64, &offsets().socket_sock);
    let memo = Memo::of(actor, [own, a, b, asked]);
    if memo.is_kept() {
        return Verdict::Allowed;
    }
    let mut decision = Decision::because(Reason::PeerUnresolved);
    if let Some(peer) = &peer {
        decide(actor, peer, &mut decision);
    }
    let is_refused = match decision.reason {
        Reason::Forbidden => !is_accepted(sock, actor.agent),
        Reason::Permitted | Reason::NoPermit | Reason::NoPolicy => false,
        Reason::PathUnresolved
        | Reason::RootChanged
        | Reason::NoName
        | Reason::Anonymous
        | Reason::NoScratch
        | Reason::PeerUnresolved
        | Reason::HashUnknown => true,
    };
    let verdict = if is_refused { actor.verdict(decision) } else { Verdict::Allowed };
    if is_refused {
        let peer = peer.unwrap_or_default();
        net::tell(actor, &peer, &Judged { action: Action::Connect, hook, decision, verdict });
    }
    if !matches!(verdict, Verdict::Denied) {
        memo.keep();
    }
    verdict
}

/// Not inlined: what looking up takes of the stack is given back before it is told.
#[inline(never)]
fn decide(actor: &Actor, peer: &Peer, decision: &mut Decision) {
    let mut peer = *peer;
    *decision = net::decide_connected(actor, &mut peer);
}

/// Whether this agent accepted it.
#[inline(always)]
fn is_accepted(sock: *const u8, agent: u32) -> bool {
    // SAFETY: a socket that the verifier knows; nothing is made where there is no mark.
    let mark =
        unsafe { bpf_sk_storage_get(marks(), sock.cast_mut().cast(), core::ptr::null_mut(), 0) };
    // SAFETY: null, or a live mark of one word.
    unsafe { mark.cast::<u32>().as_ref() }.is_some_and(|mark| *mark == agent)
}

#[inline(always)]
fn marks() -> *mut c_void {
    &raw const ACCEPTED as *mut c_void
}

/// The other end of an internet socket; `None` when it cannot be read.
#[inline(always)]
fn remote(sock: *const u8, family: u16, port: u16) -> Option<Peer> {
    let common = within(sock, &offsets().sock_common);
    let port = port.to_ne_bytes();
    let number: u16 = read(sock, &offsets().sock_protocol)?;
    let number = protocol(u32::from(number));
    Some(if family == AF_INET {
        Peer::v4(number, read(common, &offsets().common_peer_v4)?, port, true)
    } else {
        Peer::v6(number, read(common, &offsets().common_peer_v6)?, port, true)
    })
}

#[inline(always)]
fn read<T: Copy>(base: *const u8, offset: &'static u32) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(known(offset)).cast::<T>()).ok() }
}

/// An address as two words.
#[inline(always)]
fn halves(address: &[u8; 16]) -> [u64; 2] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    [u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u64::from_ne_bytes([i, j, k, l, m, n, o, p])]
}
