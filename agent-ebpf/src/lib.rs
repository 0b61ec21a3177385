//! What the kernel half and the daemon share: the ABI, and the verdict.
//!
//! The verdict is a pure function over a trait. In the kernel the trait is backed by BPF maps, in
//! the daemon (the fanotify backend, `ambit policy explain`) and in tests by ordinary maps, so the
//! code that is tested is the code that decides.
#![no_std]

mod abi;

pub use abi::*;

/// The tables of one policy set, as [`PathWalk`] and [`decide_peer`] ask them.
pub trait Reach {
    /// What the policy says of the place with this key, if anything.
    fn place(&self, key: &PlaceKey) -> Option<&PlaceCell>;
    /// What the policy says under the longest prefix that holds this key, if anything.
    fn peer(&self, key: &PeerKey) -> Option<&PeerCell>;
}

/// A verdict before the agent's mode is applied, with its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Why; [`Reason::Permitted`] and [`Reason::Anonymous`] are the only ones that let it happen.
    pub reason: Reason,
    /// The rule that decided, or [`RULE_NONE`].
    pub rule: RuleId,
}

impl Decision {
    /// Not judged: something could not be known, or nothing was there to judge.
    #[inline(always)]
    pub const fn because(reason: Reason) -> Self {
        Self { reason, rule: RULE_NONE }
    }

    /// Cedar's rule: any forbid denies, else any permit allows, else it is denied.
    #[inline(always)]
    pub const fn of(found: Pair) -> Self {
        if found.forbid != RULE_NONE {
            Self { reason: Reason::Forbidden, rule: found.forbid }
        } else if found.permit != RULE_NONE {
            Self { reason: Reason::Permitted, rule: found.permit }
        } else {
            Self::because(Reason::NoPermit)
        }
    }

    /// True when the action may go ahead.
    #[inline(always)]
    pub const fn allows(self) -> bool {
        matches!(self.reason, Reason::Permitted | Reason::Anonymous)
    }

    /// What happens under the agent's mode. An unknown mode enforces.
    #[inline(always)]
    pub const fn verdict(self, mode: u8) -> Verdict {
        match self.reason {
            Reason::Permitted | Reason::Anonymous => Verdict::Allowed,
            Reason::Forbidden
            | Reason::NoPermit
            | Reason::PathUnresolved
            | Reason::RootChanged
            | Reason::NoPolicy
            | Reason::NoName
            | Reason::NoScratch
            | Reason::PeerUnresolved => {
                if mode == Mode::Audit as u8 {
                    Verdict::WouldDeny
                } else {
                    Verdict::Denied
                }
            }
        }
    }
}

/// The keyed hash of a path, one byte at a time, so that every folder above a file is met on the way.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct PathHash {
    state: u64,
    factor: u64,
    len: u32,
    pad: u32,
}

impl PathHash {
    /// The hash of the empty path under this boot's secrets.
    #[inline(always)]
    pub const fn new(config: &Config) -> Self {
        Self { state: config.hash_seed, factor: config.hash_factor, len: 0, pad: 0 }
    }

    /// Takes one more byte.
    #[inline(always)]
    pub const fn push(&mut self, byte: u8) {
        let mixed = (self.state ^ byte as u64).wrapping_mul(self.factor);
        self.state = mixed ^ (mixed >> 32);
        self.len += 1;
    }

    /// The key of what was taken so far.
    #[inline(always)]
    pub const fn key(&self) -> PlaceKey {
        PlaceKey { hash: self.state, len: self.len, pad: 0 }
    }

    /// The key of a whole absolute path, as rules are stored. The root folder is the empty path.
    pub fn of(config: &Config, path: &[u8]) -> PlaceKey {
        let mut hash = Self::new(config);
        for byte in if path == b"/" { &[] } else { path } {
            hash.push(*byte);
        }
        hash.key()
    }
}

/// One walk along an absolute path, gathering what the policy says of each folder on the way and of
/// the object at its end. Feed every byte to [`PathWalk::step`], then call [`PathWalk::finish`].
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct PathWalk {
    hash: PathHash,
    found: Pair,
    facet: u32,
    pad: u32,
}

impl PathWalk {
    /// A walk that has not begun.
    #[inline(always)]
    pub const fn new(config: &Config, facet: Facet) -> Self {
        let found = Pair { permit: RULE_NONE, forbid: RULE_NONE };
        Self { hash: PathHash::new(config), found, facet: facet as u32, pad: 0 }
    }

    #[inline(always)]
    fn facet(&self) -> usize {
        // The kernel's verifier wants to see the bound; `new` never exceeds it.
        if self.facet < FACETS as u32 { self.facet as usize } else { 0 }
    }

    /// Takes the next byte. A slash ends the name of a folder that the object lies beneath.
    #[inline(always)]
    pub fn step(&mut self, byte: u8, reach: &impl Reach) {
        if byte == b'/'
            && let Some(cell) = reach.place(&self.hash.key())
        {
            self.found = self.found.and(cell.beneath[self.facet()]);
        }
        self.hash.push(byte);
    }

    /// Judges the object itself and ends the walk. The root folder is walked as no bytes at all.
    #[inline(always)]
    pub fn finish(&mut self, reach: &impl Reach) -> Decision {
        if let Some(cell) = reach.place(&self.hash.key()) {
            let facet = self.facet();
            self.found = self.found.and(cell.beneath[facet]).and(cell.exact[facet]);
        }
        Decision::of(self.found)
    }
}

/// Judges an action on the object at an absolute path: the host's way to run a [`PathWalk`].
///
/// A path that does not start with a slash is [`Reason::PathUnresolved`].
pub fn decide_path(config: &Config, facet: Facet, path: &[u8], reach: &impl Reach) -> Decision {
    if path.first() != Some(&b'/') {
        return Decision::because(Reason::PathUnresolved);
    }
    let mut walk = PathWalk::new(config, facet);
    for byte in if path == b"/" { &[] } else { path } {
        walk.step(*byte, reach);
    }
    walk.finish(reach)
}

/// An internet peer in the one form in which it is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// IP protocol number ([`protocol`]).
    pub protocol: u8,
    /// [`family::V4`] or [`family::V6`].
    pub family: u8,
    /// Port in network byte order.
    pub port: [u8; 2],
    /// Address in network byte order; IPv4 in the first four bytes.
    pub address: [u8; 16],
}

impl Peer {
    /// An IPv4 peer. As a destination, 0.0.0.0 is this host (net/ipv4/route.c), so it is judged as
    /// 127.0.0.1.
    #[inline(always)]
    pub const fn v4(protocol: u8, address: [u8; 4], port: [u8; 2], destination: bool) -> Self {
        let [a, b, c, d] = address;
        let zero = a == 0 && b == 0 && c == 0 && d == 0;
        let [a, b, c, d] = if zero && destination { [127, 0, 0, 1] } else { address };
        let address = [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        Self { protocol, family: family::V4, port, address }
    }

    /// An IPv6 peer. `::ffff:a.b.c.d` is the IPv4 peer; as a destination, `::` is `::1`
    /// (net/ipv6/tcp_ipv6.c).
    #[inline(always)]
    pub const fn v6(protocol: u8, words: [u32; 4], port: [u8; 2], destination: bool) -> Self {
        let [w0, w1, w2, w3] = words; // each in network byte order, as in memory
        if w0 == 0 && w1 == 0 && w2 == 0xffff_u32.to_be() {
            return Self::v4(protocol, w3.to_ne_bytes(), port, destination);
        }
        let any = w0 == 0 && w1 == 0 && w2 == 0 && w3 == 0;
        let w3 = if any && destination { 1_u32.to_be() } else { w3 };
        let [a, b, c, d] = w0.to_ne_bytes();
        let [e, f, g, h] = w1.to_ne_bytes();
        let [i, j, k, l] = w2.to_ne_bytes();
        let [m, n, o, p] = w3.to_ne_bytes();
        let address = [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p];
        Self { protocol, family: family::V6, port, address }
    }

    const fn key(&self, protocol: u8, port: [u8; 2]) -> PeerKey {
        let bits = if self.family == family::V4 { 32 } else { 128 };
        PeerKey {
            prefix_len: PEER_FIXED_BITS + bits,
            protocol,
            family: self.family,
            port,
            address: self.address,
        }
    }
}

/// Judges a peer: the rules for its protocol and port, for either alone, and for neither.
#[inline(always)]
pub fn decide_peer(action: Action, peer: &Peer, reach: &impl Reach) -> Decision {
    let mut found = Pair::default();
    let mut ask = |protocol, port| {
        if let Some(cell) = reach.peer(&peer.key(protocol, port)) {
            found =
                found.and(if matches!(action, Action::Bind) { cell.bind } else { cell.connect });
        }
    };
    ask(peer.protocol, peer.port);
    ask(peer.protocol, [0, 0]);
    ask(protocol::ANY, peer.port);
    ask(protocol::ANY, [0, 0]);
    Decision::of(found)
}

#[cfg(test)]
mod tests;
