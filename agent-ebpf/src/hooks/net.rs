//! Peers: connect, unconnected send and bind, for IPv4 and IPv6.
//!
//! Cgroup programs run for the cgroup of the socket; they are attached at or above the agents'
//! cgroups and judge the current task. They see what LSM `socket_connect` does not (TCP Fast Open,
//! `sendmsg` with an address); that one sees sockets of cgroups outside the attachment point, and only
//! speaks when it denies. Names are [`super::names`]'s.

use agent_ebpf::{
    Action, Decision, Header, Hook, JoinKey, Kind, Pair, PatternRow, Peer, PeerBody, PeerCell,
    PeerKey, PlaceCell, PlaceKey, RULE_PROTECTED, Reach, Reason, Verdict, decide_peer,
};
use aya_ebpf::{
    helpers::{bpf_probe_read_kernel, generated::bpf_map_lookup_elem},
    programs::{LsmContext, SockAddrContext},
};

use super::{
    DENY,
    file::{joined, outcome},
    names::{self, Known},
    send,
};
use crate::{
    emit,
    identity::{self, Actor},
    maps::PEERS,
    offsets::{known, offsets},
};

/// What a cgroup program returns to let a call go on, and to fail it with `EPERM`.
const PROCEED: i32 = 1;
const REFUSE: i32 = 0;

pub(super) const AF_INET: u16 = 2;
pub(super) const AF_INET6: u16 = 10;
/// `IPPROTO_MPTCP` (include/uapi/linux/in.h): judged as TCP, which it is on the wire.
const IPPROTO_MPTCP: u32 = 262;

/// The tables of one policy set that peers are judged by.
struct Peers {
    /// Its number.
    set: u32,
    /// Its inner map of `PEERS`.
    peers: *mut core::ffi::c_void,
}

impl Reach for Peers {
    #[inline(always)]
    fn place(&self, _: &PlaceKey) -> Option<&PlaceCell> {
        None
    }

    #[inline(always)]
    fn row(&self, _: u32) -> Option<&PatternRow> {
        None
    }

    #[inline(always)]
    fn join(&self, key: &JoinKey) -> Option<&Pair> {
        joined(self.set, key)
    }

    #[inline(always)]
    fn peer(&self, key: &PeerKey) -> Option<&PeerCell> {
        // SAFETY: an inner map of `PEERS`, whose key is a `PeerKey` and value a `PeerCell`; inner maps
        // are never written after they are published.
        unsafe {
            let cell = bpf_map_lookup_elem(self.peers, core::ptr::from_ref(key).cast());
            cell.cast::<PeerCell>().as_ref()
        }
    }
}

#[repr(C)]
struct PeerRecord {
    header: Header,
    body: PeerBody,
}

/// The tables by which an agent's peers are judged.
#[inline(always)]
fn peers(actor: &Actor) -> Option<Peers> {
    // SAFETY: a lookup; the inner map lives until the program ends.
    let peers = core::ptr::from_ref(unsafe { PEERS.get(&actor.set) }?);
    Some(Peers { set: actor.set, peers: peers.cast_mut().cast() })
}

#[inline(always)]
fn decide(actor: &Actor, action: Action, peer: &Peer) -> Decision {
    match peers(actor) {
        Some(peers) => {
            let known = Known { config: actor.config, agent: actor.agent, set: actor.set };
            decide_peer(action, peer, &peers, &known)
        }
        None => Decision::because(Reason::NoPolicy),
    }
}

/// The decision on the other end of a connection.
#[inline(always)]
pub(super) fn decide_connected(actor: &Actor, peer: &mut Peer) -> Decision {
    if !names::behind(actor.agent, peer) {
        return Decision { reason: Reason::Forbidden, rule: RULE_PROTECTED };
    }
    match peers(actor) {
        Some(peers) => agent_ebpf::decide_connected(peer, &peers, names::zero(actor.config)),
        None => Decision::because(Reason::NoPolicy),
    }
}

/// The decision on a destination, which becomes the name server when it is a port of the daemon.
#[inline(always)]
fn decide_destination(actor: &Actor, peer: &mut Peer) -> Decision {
    if names::behind(actor.agent, peer) {
        decide(actor, Action::Connect, peer)
    } else {
        Decision { reason: Reason::Forbidden, rule: RULE_PROTECTED }
    }
}

/// What was judged and what came of it.
pub(super) struct Judged {
    pub(super) action: Action,
    pub(super) hook: Hook,
    pub(super) decision: Decision,
    pub(super) verdict: Verdict,
}

/// Not inlined: a record on the stack of a frame of its own.
#[inline(never)]
pub(super) fn tell(actor: &Actor, peer: &Peer, judged: &Judged) {
    let mut record = PeerRecord {
        header: Header::default(),
        body: PeerBody {
            address: peer.address,
            port: peer.port,
            family: peer.family,
            protocol: peer.protocol,
            pad: [0; 4],
        },
    };
    emit::fill(&mut record.header, actor, Kind::Peer, judged.hook);
    emit::decided(&mut record.header, judged.action, judged.decision, judged.verdict);
    emit::send(&mut record);
}

/// Judges a call by its address, and says at which port of the daemon it is to be aimed, if at any.
#[inline(always)]
fn judge(
    ctx: &SockAddrContext,
    actor: &Actor,
    action: Action,
    hook: Hook,
    peer: &mut Peer,
) -> (i32, u32) {
    let mut port = names::DIRECT;
    let mut decision;
    if matches!(action, Action::Connect) {
        decision = decide_destination(actor, peer);
        if decision.allows()
            && let Some(peers) = peers(actor)
        {
            port = names::route(ctx, actor, peer, &peers);
            if port == names::NO_PORT {
                decision = Decision::because(Reason::PeerUnresolved);
                port = names::DIRECT;
            }
        }
    } else {
        decision = decide(actor, action, peer);
    }
    let verdict = actor.verdict(decision);
    tell(actor, peer, &Judged { action, hook, decision, verdict });
    match verdict {
        Verdict::Allowed | Verdict::WouldDeny => (PROCEED, port),
        Verdict::Denied => (REFUSE, names::DIRECT),
    }
}

#[inline(always)]
pub(super) const fn protocol(number: u32) -> u8 {
    match number {
        IPPROTO_MPTCP => agent_ebpf::protocol::TCP,
        0..=255 => number as u8,
        // No rule names it; only rules for any protocol match.
        _ => 255,
    }
}

#[inline(always)]
fn v4(ctx: &SockAddrContext, action: Action, hook: Hook) -> i32 {
    let Some(actor) = identity::current() else {
        return PROCEED;
    };
    // SAFETY: the program's own context.
    let address = unsafe { &*ctx.sock_addr };
    let mut peer = Peer::v4(
        protocol(address.protocol),
        address.user_ip4.to_ne_bytes(),
        (address.user_port as u16).to_ne_bytes(),
        !matches!(action, Action::Bind),
    );
    let (outcome, port) = judge(ctx, &actor, action, hook, &mut peer);
    if port != names::DIRECT {
        names::aim4(ctx, port);
    }
    outcome
}

#[inline(always)]
fn v6(ctx: &SockAddrContext, action: Action, hook: Hook) -> i32 {
    let Some(actor) = identity::current() else {
        return PROCEED;
    };
    let (words, port) = names::words(ctx.sock_addr);
    // SAFETY: the program's own context.
    let number = unsafe { (*ctx.sock_addr).protocol };
    let mut peer = Peer::v6(
        protocol(number),
        words,
        (port as u16).to_ne_bytes(),
        !matches!(action, Action::Bind),
    );
    let (outcome, port) = judge(ctx, &actor, action, hook, &mut peer);
    if port != names::DIRECT {
        names::aim6(ctx, &peer, port);
    }
    outcome
}

/// cgroup `connect4`.
#[inline(always)]
pub fn connect4(ctx: &SockAddrContext) -> i32 {
    v4(ctx, Action::Connect, Hook::Connect4)
}

/// cgroup `connect6`.
#[inline(always)]
pub fn connect6(ctx: &SockAddrContext) -> i32 {
    v6(ctx, Action::Connect, Hook::Connect6)
}

/// cgroup `sendmsg4`.
#[inline(always)]
pub fn sendmsg4(ctx: &SockAddrContext) -> i32 {
    v4(ctx, Action::Connect, Hook::Sendmsg4)
}

/// cgroup `sendmsg6`.
#[inline(always)]
pub fn sendmsg6(ctx: &SockAddrContext) -> i32 {
    v6(ctx, Action::Connect, Hook::Sendmsg6)
}

/// cgroup `bind4`.
#[inline(always)]
pub fn bind4(ctx: &SockAddrContext) -> i32 {
    v4(ctx, Action::Bind, Hook::Bind4)
}

/// cgroup `bind6`.
#[inline(always)]
pub fn bind6(ctx: &SockAddrContext) -> i32 {
    v6(ctx, Action::Bind, Hook::Bind6)
}

/// LSM `socket_connect(sock, address, addrlen)`. The address is the kernel's copy.
#[inline(always)]
pub fn socket_connect(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(3);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else {
        return 0;
    };
    send::connects(ctx.arg(0));
    let address: *const u8 = ctx.arg(1);
    let length: i32 = ctx.arg(2);
    let peer = match read::<u16>(address, 0) {
        // Too short to say; the protocol itself answers EINVAL.
        _ if length < 2 => return 0,
        None => None,
        Some(AF_INET) if length >= 8 => v4_peer(ctx, address),
        Some(AF_INET6) if length >= 24 => v6_peer(ctx, address),
        // Other families are not internet peers; shorter addresses are refused by the protocol.
        Some(_) => return 0,
    };
    let (peer, decision) = match peer {
        Some(mut peer) => {
            let decision = decide_destination(&actor, &mut peer);
            (peer, decision)
        }
        None => (Peer::default(), Decision::because(Reason::PeerUnresolved)),
    };
    let verdict = actor.verdict(decision);
    match verdict {
        // The cgroup hook is next and tells it.
        Verdict::Allowed | Verdict::WouldDeny => 0,
        Verdict::Denied => {
            let (action, hook) = (Action::Connect, Hook::SocketConnect);
            tell(&actor, &peer, &Judged { action, hook, decision, verdict });
            DENY
        }
    }
}

/// LSM `socket_listen(sock, backlog)`.
#[inline(always)]
pub fn listen(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(2);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else {
        return 0;
    };
    let (peer, decision) = match local(ctx) {
        // No internet socket: made only if the policy names its kind; a unix socket is judged when bound.
        Some(None) => return 0,
        Some(Some(peer)) => (peer, decide(&actor, Action::Listen, &peer)),
        None => (Peer::default(), Decision::because(Reason::PeerUnresolved)),
    };
    let verdict = actor.verdict(decision);
    let (action, hook) = (Action::Listen, Hook::SocketListen);
    tell(&actor, &peer, &Judged { action, hook, decision, verdict });
    outcome(verdict)
}

/// The local address of an internet socket.
#[inline(always)]
fn local(ctx: &LsmContext) -> Option<Option<Peer>> {
    let socket: *const u8 = ctx.arg(0);
    let sock: *const u8 = read(socket, known(&offsets().socket_sock))?;
    let common = sock.wrapping_add(known(&offsets().sock_common));
    let family: u16 = read(common, known(&offsets().common_family))?;
    if family != AF_INET && family != AF_INET6 {
        return Some(None);
    }
    let port: u16 = read(common, known(&offsets().common_port))?;
    let (port, protocol) = (port.to_be_bytes(), socket_protocol(ctx)?);
    Some(Some(if family == AF_INET {
        let ip: [u8; 4] = read(common, known(&offsets().common_v4))?;
        Peer::v4(protocol, ip, port, false)
    } else {
        let ip: [u32; 4] = read(common, known(&offsets().common_v6))?;
        Peer::v6(protocol, ip, port, false)
    }))
}

#[inline(always)]
fn read<T: Copy>(base: *const u8, offset: usize) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(offset).cast::<T>()).ok() }
}

#[inline(always)]
fn socket_protocol(ctx: &LsmContext) -> Option<u8> {
    let socket: *const u8 = ctx.arg(0);
    let sock: *const u8 = read(socket, known(&offsets().socket_sock))?;
    let number: u16 = read(sock, known(&offsets().sock_protocol))?;
    Some(protocol(u32::from(number)))
}

#[inline(always)]
fn v4_peer(ctx: &LsmContext, address: *const u8) -> Option<Peer> {
    let (port, ip) = (read::<[u8; 2]>(address, 2)?, read::<[u8; 4]>(address, 4)?);
    Some(Peer::v4(socket_protocol(ctx)?, ip, port, true))
}

#[inline(always)]
fn v6_peer(ctx: &LsmContext, address: *const u8) -> Option<Peer> {
    let (port, ip) = (read::<[u8; 2]>(address, 2)?, read::<[u32; 4]>(address, 8)?);
    Some(Peer::v6(socket_protocol(ctx)?, ip, port, true))
}
