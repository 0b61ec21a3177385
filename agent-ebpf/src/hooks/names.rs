//! Host names: what an agent was told by its name servers, and how its questions come to the daemon.
//!
//! A question to a name server that the policy permits goes to a port of the daemon instead, one for each
//! agent and server. The daemon asks the server, writes the answer's addresses into `HOSTS`, and only then
//! passes it on; `recvmsg` makes it come from the server. With the daemon gone nobody answers there.

use agent_ebpf::{
    Config, DNS_PORT, NETNS_INITIAL, NameKey, NamedKey, Names, Peer, PeerCell, PeerKey, PeerNames,
    Reach, SERVERS_PER_AGENT, ServerKey, family, protocol,
};
use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST, bpf_sock_addr},
    helpers::generated::{bpf_get_netns_cookie, bpf_ktime_get_boot_ns},
    programs::SockAddrContext,
};

use crate::{
    identity::{self, Actor},
    maps::{FREE_PORTS, HOSTS, NAMES, RESOLVERS, ROUTES, SERVERS},
};

const LOOPBACK_V4: [u8; 4] = [127, 0, 0, 1];
const LOOPBACK_V6: [u32; 4] = [0, 0, 0, 1_u32.to_be()];
const LOOPBACK_MAPPED: [u32; 4] = [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes(LOOPBACK_V4)];

/// The names that an agent knows under its policy set.
pub struct Known {
    pub config: &'static Config,
    pub agent: u32,
    pub set: u32,
}

impl Names for Known {
    #[inline(always)]
    fn agent(&self) -> u32 {
        self.agent
    }

    #[inline(always)]
    fn named(&self, key: &NamedKey) -> Option<&PeerNames> {
        // SAFETY: a lookup; an element that is used again meanwhile is told by its key.
        unsafe { HOSTS.get(key) }
    }

    #[inline(always)]
    fn name(&self, number: u32) -> Option<&PeerCell> {
        // SAFETY: a lookup. The element stays for seconds after the last answer that told the name has ended
        // and the last agent has left the set, and a number is never used again.
        unsafe { NAMES.get(&NameKey { set: self.set, name: number }) }
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a plain helper call.
        unsafe { bpf_ktime_get_boot_ns() }
    }

    #[inline(always)]
    fn zero(&self) -> u32 {
        zero(self.config)
    }
}

/// [`Config::zero`].
#[inline(always)]
pub fn zero(config: &'static Config) -> u32 {
    // SAFETY: a reference to read from; volatile, so that it is read each time.
    unsafe { core::ptr::read_volatile(&raw const config.zero) as u32 }
}

/// Lets a port of the daemon be the name server that it stands for; false when it is another agent's, and so
/// Ambit's own.
#[inline(always)]
pub fn behind(agent: u32, peer: &mut Peer) -> bool {
    let own = match peer.family {
        family::V4 => peer.address[..4] == LOOPBACK_V4,
        _ => u128::from_be_bytes(peer.address) == 1,
    };
    if !own {
        return true;
    }
    let port = u32::from(u16::from_be_bytes(peer.port));
    // SAFETY: a lookup; an element that is used again is some other server's, which is judged then.
    let Some(server) = (unsafe { RESOLVERS.get(&port) }) else { return true };
    if server.agent != agent {
        return false;
    }
    peer.address = server.address;
    peer.family = server.family as u8;
    peer.port = DNS_PORT.to_be_bytes();
    true
}

/// What [`route`] says of what goes to the server itself.
pub const DIRECT: u32 = 0;
/// What it says when there is no port left.
pub const NO_PORT: u32 = u32::MAX;

/// The port of the daemon that a permitted question goes to; or [`DIRECT`], or [`NO_PORT`].
#[inline(always)]
pub fn route(ctx: &SockAddrContext, actor: &Actor, peer: &Peer, reach: &impl Reach) -> u32 {
    let asks = matches!(peer.protocol, protocol::TCP | protocol::UDP)
        && u16::from_be_bytes(peer.port) == DNS_PORT;
    if !asks || reach.peer(&PeerKey::NAMELESS).is_none() {
        return DIRECT;
    }
    if actor.config.netns == 0 {
        return NO_PORT; // nobody would learn what is answered
    }
    // SAFETY: plain helper calls: on the program's own context, and on none for the initial namespace's.
    let (here, initial) = unsafe {
        (bpf_get_netns_cookie(ctx.sock_addr.cast()), bpf_get_netns_cookie(core::ptr::null_mut()))
    };
    let there = if actor.config.netns == NETNS_INITIAL { initial } else { actor.config.netns };
    if here != there {
        return DIRECT; // the daemon's ports are not here
    }
    let server = NamedKey::of(actor.agent, peer);
    // SAFETY: the value is one word.
    if let Some(port) = unsafe { ROUTES.get(&server) } {
        return *port;
    }
    let Some(port) = FREE_PORTS.take() else { return NO_PORT };
    if let Some(place) = settle(actor.agent, port) {
        if RESOLVERS.insert(&port, &server, BPF_ANY as u64).is_ok() {
            if ROUTES.insert(&server, &port, BPF_NOEXIST as u64).is_ok() {
                return port;
            }
            let _ = RESOLVERS.remove(&port);
        }
        let _ = SERVERS.remove(&place);
    }
    FREE_PORTS.put(port);
    // Another was faster, or there are as many as there may be.
    // SAFETY: the value is one word.
    match unsafe { ROUTES.get(&server) } {
        Some(port) => *port,
        None => NO_PORT,
    }
}

/// Gives a port one of the agent's places, if there is one left.
#[inline(always)]
fn settle(agent: u32, port: u32) -> Option<ServerKey> {
    for place in 0..SERVERS_PER_AGENT {
        let key = ServerKey { agent, place };
        if SERVERS.insert(&key, &port, BPF_NOEXIST as u64).is_ok() {
            return Some(key);
        }
    }
    None
}

/// Aims a call at a port of the daemon.
#[inline(always)]
pub fn aim4(ctx: &SockAddrContext, port: u32) {
    set4(ctx.sock_addr, LOOPBACK_V4, port as u16);
}

/// The same for a call with an IPv6 address, be it IPv4 in IPv6 clothes.
#[inline(always)]
pub fn aim6(ctx: &SockAddrContext, peer: &Peer, port: u32) {
    let address = if peer.family == family::V4 { LOOPBACK_MAPPED } else { LOOPBACK_V6 };
    set6(ctx.sock_addr, address, port as u16);
}

/// cgroup `recvmsg4`: what the daemon passes on comes from the name server.
#[inline(always)]
pub fn answered4(ctx: &SockAddrContext) {
    // SAFETY: the program's own context.
    let (address, port) = unsafe { ((*ctx.sock_addr).user_ip4, (*ctx.sock_addr).user_port) };
    if address != u32::from_ne_bytes(LOOPBACK_V4) {
        return;
    }
    if let Some(server) = answerer(port)
        && server.family == u32::from(family::V4)
    {
        let [a, b, c, d, ..] = server.address;
        set4(ctx.sock_addr, [a, b, c, d], DNS_PORT);
    }
}

/// cgroup `recvmsg6`.
#[inline(always)]
pub fn answered6(ctx: &SockAddrContext) {
    let (words, port) = words(ctx.sock_addr);
    if words != LOOPBACK_V6 && words != LOOPBACK_MAPPED {
        return;
    }
    let Some(server) = answerer(port) else { return };
    let word = |index: usize| {
        let bytes = &server.address;
        u32::from_ne_bytes([bytes[index], bytes[index + 1], bytes[index + 2], bytes[index + 3]])
    };
    let address = if server.family == u32::from(family::V4) {
        [0, 0, 0xffff_u32.to_be(), word(0)]
    } else {
        [word(0), word(4), word(8), word(12)]
    };
    set6(ctx.sock_addr, address, DNS_PORT);
}

/// The name server of the current agent for which this port of the daemon answers.
#[inline(always)]
fn answerer(port: u32) -> Option<&'static NamedKey> {
    let actor = identity::current()?;
    let port = u32::from(u16::from_be(port as u16));
    // SAFETY: a lookup; as in `behind`.
    unsafe { RESOLVERS.get(&port) }.filter(|server| server.agent == actor.agent)
}

/// The IPv6 address of a context, and its port in network byte order; word by word, as the verifier wants it.
#[inline(always)]
pub fn words(address: *const bpf_sock_addr) -> ([u32; 4], u32) {
    // SAFETY: the program's own context.
    unsafe {
        let word = |index: usize| core::ptr::read_volatile(&raw const (*address).user_ip6[index]);
        ([word(0), word(1), word(2), word(3)], (*address).user_port)
    }
}

#[inline(always)]
fn set4(address: *mut bpf_sock_addr, ip: [u8; 4], port: u16) {
    // SAFETY: the program's own context, of which these may be written (net/core/filter.c:
    // `sock_addr_is_valid_access`).
    unsafe {
        core::ptr::write_volatile(&raw mut (*address).user_ip4, u32::from_ne_bytes(ip));
        core::ptr::write_volatile(&raw mut (*address).user_port, u32::from(port.to_be()));
    }
}

#[inline(always)]
fn set6(address: *mut bpf_sock_addr, words: [u32; 4], port: u16) {
    // SAFETY: as above; word by word.
    unsafe {
        let word = |index: usize| {
            core::ptr::write_volatile(&raw mut (*address).user_ip6[index], words[index])
        };
        word(0);
        word(1);
        word(2);
        word(3);
        core::ptr::write_volatile(&raw mut (*address).user_port, u32::from(port.to_be()));
    }
}
