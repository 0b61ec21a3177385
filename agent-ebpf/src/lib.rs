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
    /// What the policy says of the objects of this key, if anything.
    fn place(&self, key: &PlaceKey) -> Option<&PlaceCell>;
    /// Where the automaton of patterns goes from this state, if it goes anywhere.
    fn row(&self, state: u32) -> Option<&PatternRow>;
    /// What the policy says under the longest prefix that holds this key, if anything.
    fn peer(&self, key: &PeerKey) -> Option<&PeerCell>;
    /// What rules that join dimensions say of these classes, if anything.
    fn join(&self, key: &JoinKey) -> Option<&Pair>;
    /// Where the rules on the content of what is run are, when that content is known.
    #[inline(always)]
    fn content(&self) -> Option<PlaceKey> {
        None
    }
}

/// The names that an agent was told, as [`decide_peer`] asks them.
pub trait Names {
    /// The agent's number.
    fn agent(&self) -> u32;
    /// The names that an address is known by, if any.
    fn named(&self, key: &NamedKey) -> Option<&PeerNames>;
    /// What the agent's policy says of the peers with this name. It says something of every name.
    fn name(&self, number: u32) -> Option<&PeerCell>;
    /// Nanoseconds since boot, suspended time included.
    fn now(&self) -> u64;
    /// Zero; in the kernel one that the verifier does not know ([`Config::zero`]).
    fn zero(&self) -> u32;
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

    /// The same, where the object itself is forbidden whatever it is called. What could not be judged stays so.
    #[inline(always)]
    #[must_use]
    pub const fn or_forbidden(self, object: RuleId) -> Self {
        let named = match self.reason {
            // Whatever the content is: what is forbidden of the object decides.
            Reason::HashUnknown if object != RULE_NONE => RULE_NONE,
            Reason::Permitted | Reason::NoPermit => RULE_NONE,
            Reason::Forbidden => self.rule,
            Reason::PathUnresolved
            | Reason::RootChanged
            | Reason::NoPolicy
            | Reason::NoName
            | Reason::Anonymous
            | Reason::NoScratch
            | Reason::PeerUnresolved
            | Reason::HashUnknown => return self,
        };
        if object == RULE_NONE {
            return self;
        }
        let by_name = Pair { permit: RULE_NONE, forbid: named };
        Self::of(by_name.and(Pair { permit: RULE_NONE, forbid: object }))
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
            | Reason::PeerUnresolved
            | Reason::HashUnknown => {
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
    pub const fn key(&self, kind: PlaceKind) -> PlaceKey {
        PlaceKey { hash: self.state, len: self.len, kind: kind as u32 }
    }

    /// The key of some bytes, as rules are stored.
    pub fn of(config: &Config, kind: PlaceKind, bytes: &[u8]) -> PlaceKey {
        let mut hash = Self::new(config);
        if matches!(kind, PlaceKind::Suffix) {
            bytes.iter().rev().for_each(|byte| hash.push(*byte));
        } else {
            bytes.iter().for_each(|byte| hash.push(*byte));
        }
        hash.key(kind)
    }
}

/// Nothing is said.
const NONE: Pair = Pair { permit: RULE_NONE, forbid: RULE_NONE };

/// Copies pair by pair: the verifier would follow a `memcpy` byte by byte.
#[inline(always)]
fn copy(to: &mut [Pair; FACETS], from: &[Pair; FACETS]) {
    for (to, from) in to.iter_mut().zip(from) {
        // SAFETY: a reference to write to; volatile, so that the compiler calls no `memcpy`.
        unsafe { core::ptr::write_volatile(to, *from) };
    }
}

/// One walk along an absolute path, or along `@` and an abstract unix address, for every [`Facet`] at once:
/// forth, for the folders and prefixes that hold the object, itself, and the patterns that match; then back,
/// for its suffix. Feed every byte to [`PathWalk::step`], then call [`PathWalk::turn`], feed as many bytes as
/// it says, from the last one on, to [`PathWalk::step_back`], and ask [`PathWalk::decide`].
///
/// On each of these dimensions the nearest cell counts, and no other.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct PathWalk {
    hash: PathHash,
    /// What of [`PlaceCell::lengths`] is yet to come.
    lengths: u64,
    /// What the nearest cell of this dimension says, by [`Facet`].
    nearest: [Pair; FACETS],
    /// What the dimensions before it said, by [`Facet`].
    found: [Pair; FACETS],
    /// The nearest cell's class in this dimension.
    class: u32,
    /// Its class by path.
    path_class: u32,
    state: u32,
    pad: u32,
}

impl PathWalk {
    /// A walk that has not begun.
    #[inline(always)]
    pub const fn new(config: &Config) -> Self {
        Self {
            hash: PathHash::new(config),
            // A first byte that is no slash is the `@` of an abstract address, which is in no folder.
            lengths: 1,
            nearest: [NONE; FACETS],
            found: [NONE; FACETS],
            class: 0,
            path_class: 0,
            state: STATE_START,
            pad: 0,
        }
    }

    /// Lets a cell be the nearest.
    #[inline(always)]
    fn take(&mut self, cell: &PlaceCell) {
        copy(&mut self.nearest, &cell.pairs);
        self.class = cell.class;
    }

    /// One byte more: whether a key goes on exactly here.
    #[inline(always)]
    fn is_in_use(&mut self) -> bool {
        let here = self.lengths & 1 != 0;
        // The highest bit stays: it stands for every further length.
        self.lengths = (self.lengths as i64 >> 1) as u64;
        here
    }

    /// Takes the next byte. A slash ends the name of a folder that the object lies beneath.
    #[inline(always)]
    pub fn step(&mut self, byte: u8, reach: &impl Reach) {
        if byte == b'/' {
            self.lengths = 0;
            if let Some(cell) = reach.place(&self.hash.key(PlaceKind::Beneath)) {
                self.take(cell);
                self.lengths = cell.lengths;
            }
            self.hash.push(byte);
        } else {
            self.hash.push(byte);
            if self.is_in_use()
                && let Some(cell) = reach.place(&self.hash.key(PlaceKind::Prefix))
            {
                self.take(cell);
                self.lengths |= cell.lengths;
            }
        }
    }

    /// Takes the same byte through the patterns. Where there are none, this need not be called.
    #[inline(always)]
    pub fn step_pattern(&mut self, byte: u8, reach: &impl Reach) {
        if self.state != STATE_DEAD
            && let Some(row) = reach.row(self.state)
        {
            self.state = row.next[byte as usize] as u32;
        }
    }

    /// Judges the object itself, and says how many bytes to walk back.
    #[inline(always)]
    pub fn turn(&mut self, config: &Config, reach: &impl Reach) -> u32 {
        if let Some(cell) = reach.place(&self.hash.key(PlaceKind::Object)) {
            self.take(cell);
        }
        let nearest = self.nearest;
        copy(&mut self.found, &nearest);
        self.path_class = self.class;
        copy(&mut self.nearest, &[NONE; FACETS]);
        self.class = 0;
        self.hash = PathHash::new(config);
        match reach.place(&self.hash.key(PlaceKind::Suffix)) {
            Some(cell) => {
                self.take(cell);
                self.lengths = cell.lengths;
                cell.longest
            }
            None => 0,
        }
    }

    /// Takes the byte before.
    #[inline(always)]
    pub fn step_back(&mut self, byte: u8, reach: &impl Reach) {
        self.hash.push(byte);
        if self.is_in_use()
            && let Some(cell) = reach.place(&self.hash.key(PlaceKind::Suffix))
        {
            self.take(cell);
        }
    }

    /// What it comes to for one facet, at the end.
    #[inline(always)]
    pub fn decide(&self, facet: Facet, reach: &impl Reach) -> Decision {
        self.found(facet, reach).decide(facet, reach)
    }

    /// What it comes to for one facet, but for the content.
    #[inline(always)]
    pub fn found(&self, facet: Facet, reach: &impl Reach) -> Found {
        let index = facet as usize & (FACETS - 1);
        let mut found = self.found[index].and(self.nearest[index]);
        let mut classes = [self.path_class, self.class, 0];
        // Where there are patterns, no path ends in the state in which it began.
        if self.state != STATE_START
            && let Some(cell) = reach.place(&PlaceKey::state(self.state))
        {
            found = found.and(cell.pairs[index]);
            classes[2] = cell.class;
        }
        // No rule that joins dimensions holds of a path of class 0.
        if self.path_class != 0
            && let Some(joined) = reach.join(&JoinKey { facet: facet as u32, classes })
        {
            found = found.and(*joined);
        }
        Found { found, classes }
    }
}

/// What a [`PathWalk`] came to for one facet, but for the content.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Found {
    found: Pair,
    /// Its classes by path, suffix and pattern.
    classes: [u32; 3],
}

impl Found {
    /// What it comes to with the content.
    #[inline(always)]
    pub fn decide(self, facet: Facet, reach: &impl Reach) -> Decision {
        if self.classes[0] & PlaceCell::BY_CONTENT != 0 && matches!(facet, Facet::ExecProgram) {
            return by_content(self, reach);
        }
        Decision::of(self.found)
    }

    /// What it comes to where the content decides, which is this one. Only of what came to
    /// [`Reason::HashUnknown`].
    #[inline(always)]
    pub fn decide_content(self, content: &PlaceKey, reach: &impl Reach) -> Decision {
        let exec = Facet::ExecProgram as u32;
        let said = |mark: u32| reach.join(&JoinKey { facet: exec | mark, classes: self.classes });
        let class = reach.place(content).map_or(0, |cell| cell.class);
        let named = said(JoinKey::content(class));
        let named = if named.is_some() { named } else { said(JoinKey::content(0)) };
        match named {
            Some(named) => Decision::of(self.found.and(*named)),
            // There is always one for every other content: the set is gone.
            None => Decision::because(Reason::HashUnknown),
        }
    }
}

/// What it comes to for a program of these classes where rules may ask for its content. What nobody knows
/// is only asked for where it can make a difference.
#[inline(always)]
fn by_content(here: Found, reach: &impl Reach) -> Decision {
    let Found { found, classes } = here;
    let facet = Facet::ExecProgram as u32 | JoinKey::CONTENTS;
    let Some(possible) = reach.join(&JoinKey { facet, classes }) else {
        return Decision::of(found);
    };
    if let Some(key) = reach.content() {
        return here.decide_content(&key, reach);
    }
    let is_forbidden = found.forbid != RULE_NONE;
    let is_permitted = found.permit != RULE_NONE;
    if is_forbidden
        || is_permitted && possible.forbid == RULE_NONE
        || !is_permitted && possible.permit == RULE_NONE
    {
        return Decision::of(found);
    }
    Decision::because(Reason::HashUnknown)
}

/// Judges an action on the object at an absolute path: the host's way to run a [`PathWalk`].
///
/// A path that does not start with a slash is [`Reason::PathUnresolved`].
pub fn decide_path(config: &Config, facet: Facet, path: &[u8], reach: &impl Reach) -> Decision {
    if path.first() != Some(&b'/') {
        return Decision::because(Reason::PathUnresolved);
    }
    walk(config, facet, path, reach)
}

/// Judges an action on a unix socket, by its absolute path or by `@` and its abstract address: the
/// host's way. Any other name is [`Reason::PathUnresolved`].
pub fn decide_socket(config: &Config, facet: Facet, name: &[u8], reach: &impl Reach) -> Decision {
    if !matches!(name.first(), Some(b'/' | b'@')) {
        return Decision::because(Reason::PathUnresolved);
    }
    walk(config, facet, name, reach)
}

fn walk(config: &Config, facet: Facet, name: &[u8], reach: &impl Reach) -> Decision {
    let mut walk = PathWalk::new(config);
    for byte in name {
        walk.step(*byte, reach);
        walk.step_pattern(*byte, reach);
    }
    let back = walk.turn(config, reach) as usize;
    for byte in name.iter().rev().take(back) {
        walk.step_back(*byte, reach);
    }
    walk.decide(facet, reach)
}

/// Judges what has a number and no path: a kind of socket to make, or a privilege.
#[inline(always)]
pub fn decide_numbered(key: &PlaceKey, reach: &impl Reach) -> Decision {
    match reach.place(key) {
        Some(cell) => Decision::of(cell.pairs[NUMBERED]),
        None => Decision::because(Reason::NoPermit),
    }
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

    #[inline(always)]
    const fn address_key(&self) -> PeerKey {
        let bits = if self.family == family::V4 { 32 } else { 128 };
        PeerKey {
            prefix_len: PeerKey::ADDRESS + bits,
            kind: PeerKind::Address as u8,
            of: self.family,
            port: [0, 0],
            address: self.address,
        }
    }

    #[inline(always)]
    const fn port_key(&self, kind: PeerKind) -> PeerKey {
        let named = matches!(kind, PeerKind::Port);
        PeerKey {
            prefix_len: PeerKey::PORT + 16,
            kind: kind as u8,
            of: if named { self.protocol } else { 0 },
            port: self.port,
            address: [0; 16],
        }
    }
}

/// Judges a peer: what holds of its address, of its protocol and port, of the name that its address is
/// known by, and of them together. An address with several names is judged once under each, and any
/// forbid denies.
///
/// An action that is not about peers is permitted by nothing.
#[inline(always)]
pub fn decide_peer(
    action: Action,
    peer: &Peer,
    reach: &impl Reach,
    names: &impl Names,
) -> Decision {
    let Some(facet) = PeerFacet::of(action) else {
        return Decision::because(Reason::NoPermit);
    };
    let zero = names.zero();
    let none = Pair { permit: zero, forbid: zero };
    let (mut found, classes) = of_address_and_port(facet, peer, reach, none);
    // Where no rule asks for names there is no such entry.
    let Some(nameless) = reach.peer(&PeerKey::NAMELESS) else {
        return Decision::of(found);
    };
    // The numbers of the names that live: none is 0.
    let mut living = zero;
    // A local address is not looked up.
    if matches!(facet, PeerFacet::Connect) {
        let key = NamedKey::of(names.agent(), peer);
        if let Some(known) = names.named(&key) {
            let now = names.now();
            for name in &known.names {
                if name.expires <= now {
                    continue;
                }
                let Some(cell) = names.name(name.name) else {
                    return Decision::because(Reason::PeerUnresolved);
                };
                living |= name.name;
                found = found.and(named_peer(facet, classes, cell, reach));
            }
            if known.more_until > now || !known.is_of(&key) {
                return Decision::because(Reason::PeerUnresolved);
            }
        }
    }
    if living == 0 {
        found = found.and(named_peer(facet, classes, nameless, reach));
    }
    Decision::of(found)
}

/// What holds of a peer's address, of its protocol and port, and of both together; and its classes.
#[inline(always)]
fn of_address_and_port(
    facet: PeerFacet,
    peer: &Peer,
    reach: &impl Reach,
    none: Pair,
) -> (Pair, [u32; 2]) {
    let mut found = none;
    let mut classes = [none.permit; 2];
    if let Some(cell) = reach.peer(&peer.address_key()) {
        found = cell.pairs[facet as usize];
        classes[0] = cell.class;
    }
    let port = match reach.peer(&peer.port_key(PeerKind::Port)) {
        Some(cell) => Some(cell),
        None => reach.peer(&peer.port_key(PeerKind::OtherPort)),
    };
    if let Some(cell) = port {
        found = found.and(cell.pairs[facet as usize]);
        classes[1] = cell.class;
    }
    // No rule that joins dimensions and asks for the address holds of one of class 0.
    if classes[0] != 0
        && let Some(joined) = joined_peer(facet, [classes[0], classes[1], JoinKey::ANY], reach)
    {
        found = found.and(*joined);
    }
    (found, classes)
}

/// Judges what is connected already by what is forbidden of its address, protocol and port. What asks for names
/// says nothing of it, as patterns say nothing of a file that is open.
#[inline(always)]
pub fn decide_connected(peer: &Peer, reach: &impl Reach, zero: u32) -> Decision {
    let none = Pair { permit: zero, forbid: zero };
    Decision::of(of_address_and_port(PeerFacet::Connect, peer, reach, none).0)
}

/// What a name adds to what holds of a peer's address and port.
#[inline(always)]
fn named_peer(
    facet: PeerFacet,
    [address, port]: [u32; 2],
    cell: &PeerCell,
    reach: &impl Reach,
) -> Pair {
    let mut found = cell.pairs[facet as usize];
    // What asks for no address holds of no name of class 0.
    if cell.class != 0
        && let Some(joined) = joined_peer(facet, [JoinKey::ANY, port, cell.class], reach)
    {
        found = found.and(*joined);
    }
    if address != 0
        && let Some(joined) = joined_peer(facet, [address, port, cell.class], reach)
    {
        found = found.and(*joined);
    }
    found
}

/// What rules that join dimensions say of a peer of these classes.
#[inline(always)]
fn joined_peer(facet: PeerFacet, classes: [u32; 3], reach: &impl Reach) -> Option<&Pair> {
    reach.join(&JoinKey { facet: JoinKey::PEERS | facet as u32, classes })
}

impl PeerNames {
    /// True when this tells of that key; see there why it is asked last.
    #[inline(always)]
    fn is_of(&self, key: &NamedKey) -> bool {
        self.first.is(key) && self.last.is(key)
    }
}

impl NamedKey {
    /// Where the names that an agent knows an address by are.
    #[inline(always)]
    pub const fn of(agent: u32, peer: &Peer) -> Self {
        Self { address: peer.address, agent, family: peer.family as u32 }
    }

    #[inline(always)]
    fn is(&self, other: &Self) -> bool {
        // SAFETY: a reference to read from; volatile, since another may write there meanwhile.
        let own = unsafe { core::ptr::read_volatile(self) };
        u128::from_ne_bytes(own.address) == u128::from_ne_bytes(other.address)
            && own.agent == other.agent
            && own.family == other.family
    }
}

#[cfg(test)]
mod tests;
