//! Ranges of addresses, and the table of peers: rules about peers, folded by address, by protocol and port,
//! and by name.
//!
//! The kernel finds only the longest prefix that holds an address or a port. What holds of a shorter
//! one therefore stands in the longer one's cell too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent_ebpf::{JoinKey, PEER_FACETS, Pair, PeerCell, PeerKey, PeerKind, family};

use super::fold::{Classes, Fold, Pieces, TooManyJoins, joins};
use super::formula::{Atom, AtomId, Dimension, Protocols};
use super::hosts::{Hosts, by_name};

/// A range of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Net {
    /// [`family::V4`] or [`family::V6`].
    pub(super) family: u8,
    /// The address from the highest bit on; bits beyond the prefix are zero.
    pub(super) address: u128,
    /// How many bits count.
    pub(super) bits: u8,
}

impl Net {
    pub(super) const LOOPBACK: [Self; 2] = [
        Self { family: family::V4, address: 127 << 120, bits: 8 },
        Self { family: family::V6, address: 1, bits: 128 },
    ];
    pub(super) const MULTICAST: [Self; 2] = [
        Self { family: family::V4, address: 0xe0 << 120, bits: 4 },
        Self { family: family::V6, address: 0xff << 120, bits: 8 },
    ];
    pub(super) const ALL_V4: Self = Self { family: family::V4, address: 0, bits: 0 };
    pub(super) const ALL_V6: Self = Self { family: family::V6, address: 0, bits: 0 };
    /// `::ffff:0:0/96`, which the kernel half judges as IPv4.
    const MAPPED: Self = Self { family: family::V6, address: 0xffff << 32, bits: 96 };

    fn new(address: IpAddr, bits: u8) -> Self {
        let (family, aligned) = match address {
            IpAddr::V4(v4) => (family::V4, u128::from(u32::from(v4)) << 96),
            IpAddr::V6(v6) => (family::V6, u128::from(v6)),
        };
        Self { family, address: aligned & mask(bits), bits }
    }

    /// Reads what Cedar's `ip("…")` takes: an address, or an address and a prefix length.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let parsed: IpAddr =
            address.parse().map_err(|_| format!("`{address}` is no IPv4 or IPv6 address"))?;
        let most: u8 = if parsed.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            None => most,
            Some(text) => {
                let plain = text.bytes().all(|byte| byte.is_ascii_digit());
                let canonical = plain && (text == "0" || !text.starts_with('0'));
                let bits = text.parse().ok().filter(|bits| canonical && *bits <= most);
                bits.ok_or_else(|| format!("`{text}` is no prefix length from 0 to {most}"))?
            }
        };
        Ok(Self::new(parsed, bits))
    }

    /// True for one address only.
    pub(super) const fn is_single(self) -> bool {
        self.bits == if self.family == family::V4 { 32 } else { 128 }
    }

    /// True for the address that means "this host" as a destination.
    pub(super) const fn is_unspecified(self) -> bool {
        self.is_single() && self.address == 0
    }

    /// The IPv4 range that an IPv4-mapped IPv6 range stands for.
    pub(super) fn unmapped(self) -> Option<Self> {
        Self::MAPPED.holds(self).then(|| Self {
            family: family::V4,
            address: self.address << 96,
            bits: self.bits - 96,
        })
    }

    pub(super) fn holds(self, other: Self) -> bool {
        self.family == other.family
            && self.bits <= other.bits
            && other.address & mask(self.bits) == self.address
    }

    /// What both hold.
    pub(super) fn intersection(self, other: Self) -> Option<Self> {
        if self.holds(other) { Some(other) } else { other.holds(self).then_some(self) }
    }
}

impl std::fmt::Display for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.family == family::V4 {
            let [a, b, c, d, ..] = self.address.to_be_bytes();
            write!(f, "{a}.{b}.{c}.{d}")?;
        } else {
            write!(f, "{}", std::net::Ipv6Addr::from(self.address))?;
        }
        if self.is_single() { Ok(()) } else { write!(f, "/{}", self.bits) }
    }
}

const fn mask(bits: u8) -> u128 {
    match bits {
        0 => 0,
        1..=127 => u128::MAX << (128 - bits),
        _ => u128::MAX,
    }
}

/// What is made of the rules about peers.
#[derive(Default)]
pub(super) struct Peers {
    pub(super) cells: BTreeMap<PeerKey, PeerCell>,
    pub(super) joins: BTreeMap<JoinKey, Pair>,
    pub(super) hosts: Hosts,
}

pub(super) fn peers(pieces: &Pieces<'_>) -> Result<Peers, TooManyJoins> {
    let mut made = Peers::default();
    if pieces.is_empty() {
        return Ok(made);
    }
    let first = by_address(pieces, &mut made.cells);
    let second = by_port(pieces, &mut made.cells);
    let (hosts, nameless, third) = by_name(pieces);
    made.hosts = hosts;
    made.cells.extend(nameless.map(|cell| (PeerKey::NAMELESS, cell)));
    made.joins = joins(pieces, [&first, &second, &third], true)?;
    Ok(made)
}

pub(super) fn cell(fold: &mut Fold<'_>) -> PeerCell {
    PeerCell { pairs: fold.pairs::<PEER_FACETS>(), class: fold.class(), pad: 0 }
}

/// Folds addresses. In their order a range comes right before all that lie within it, so the ones
/// that hold the present one form a stack.
fn by_address(pieces: &Pieces<'_>, cells: &mut BTreeMap<PeerKey, PeerCell>) -> Classes {
    let mut nets: BTreeMap<Net, Option<AtomId>> =
        BTreeMap::from([(Net::ALL_V4, None), (Net::ALL_V6, None)]);
    for (id, atom) in pieces.atoms().iter() {
        if let Atom::Address(net) = atom {
            nets.insert(*net, Some(id));
        }
    }
    let mut fold = Fold::new(pieces, Dimension::First, PEER_FACETS);
    let mut around: Vec<(Net, Option<AtomId>)> = Vec::new();
    for (net, atom) in &nets {
        while let Some((outer, atom)) = around.last()
            && !outer.holds(*net)
        {
            atom.iter().for_each(|atom| fold.set(*atom, false));
            around.pop();
        }
        atom.iter().for_each(|atom| fold.set(*atom, true));
        around.push((*net, *atom));
        let key = PeerKey {
            prefix_len: PeerKey::ADDRESS + u32::from(net.bits),
            kind: PeerKind::Address as u8,
            of: net.family,
            port: [0, 0],
            address: net.address.to_be_bytes(),
        };
        cells.insert(key, cell(&mut fold));
    }
    fold.end()
}

/// Folds protocols and ports. Protocols of which rules say the same are folded once; the largest such
/// group stands under [`PeerKind::OtherPort`].
fn by_port(pieces: &Pieces<'_>, cells: &mut BTreeMap<PeerKey, PeerCell>) -> Classes {
    let mut fold = Fold::new(pieces, Dimension::Second, PEER_FACETS);
    if fold.is_idle() {
        return fold.end();
    }
    let mut protocols: Vec<(AtomId, Protocols)> = Vec::new();
    // By port: the atoms that begin to hold there, and those that cease to.
    let mut edges: BTreeMap<u32, Vec<(AtomId, bool)>> = BTreeMap::new();
    for (id, atom) in pieces.atoms().iter() {
        match atom {
            Atom::Protocol(set) => protocols.push((id, *set)),
            Atom::Port(first, last) => {
                edges.entry(u32::from(*first)).or_default().push((id, true));
                edges.entry(u32::from(*last) + 1).or_default().push((id, false));
            }
            _ => {}
        }
    }
    let mut groups: BTreeMap<Vec<AtomId>, Vec<u8>> = BTreeMap::new();
    for number in 0..=u8::MAX {
        let held = protocols.iter().filter(|(_, set)| set.contains(number));
        groups.entry(held.map(|(id, _)| *id).collect()).or_default().push(number);
    }
    let largest = groups.values().map(Vec::len).max().unwrap_or_default();
    let mut others = false;
    for (held, members) in &groups {
        held.iter().for_each(|atom| fold.set(*atom, true));
        let segments = segments(&mut fold, &edges);
        held.iter().for_each(|atom| fold.set(*atom, false));
        let kinds: Vec<(PeerKind, u8)> = if members.len() == largest && !others {
            others = true;
            vec![(PeerKind::OtherPort, 0)]
        } else {
            members.iter().map(|number| (PeerKind::Port, *number)).collect()
        };
        for (kind, of) in kinds {
            for (first, last, cell) in &segments {
                each_prefix(*first, *last, &mut |port, bits| {
                    let key = PeerKey {
                        prefix_len: PeerKey::PORT + bits,
                        kind: kind as u8,
                        of,
                        port: port.to_be_bytes(),
                        address: [0; 16],
                    };
                    cells.insert(key, *cell);
                });
            }
        }
    }
    fold.end()
}

/// The ports from 0 on in runs of which the same is said: first, last, what.
fn segments(
    fold: &mut Fold<'_>,
    edges: &BTreeMap<u32, Vec<(AtomId, bool)>>,
) -> Vec<(u16, u16, PeerCell)> {
    let mut found: Vec<(u16, u16, PeerCell)> = Vec::new();
    let starts: BTreeSet<u32> = edges.keys().copied().chain([0]).collect();
    for start in starts {
        for (atom, holds) in edges.get(&start).into_iter().flatten() {
            fold.set(*atom, *holds);
        }
        let Ok(first) = u16::try_from(start) else {
            continue; // past the last port, where everything ceases to hold
        };
        let cell = cell(fold);
        match found.last_mut() {
            Some((_, last, before)) => {
                *last = first - 1;
                if *before != cell {
                    found.push((first, u16::MAX, cell));
                }
            }
            None => found.push((first, u16::MAX, cell)),
        }
        if let Some((_, last, _)) = found.last_mut() {
            *last = u16::MAX;
        }
    }
    found
}

/// Covers a run of ports with prefixes: the first port of each, and how many bits count.
fn each_prefix(first: u16, last: u16, call: &mut impl FnMut(u16, u32)) {
    let (mut at, end) = (u32::from(first), u32::from(last) + 1);
    while at < end {
        let aligned = if at == 0 { 16 } else { at.trailing_zeros().min(16) };
        let fits = (end - at).ilog2();
        let free = aligned.min(fits);
        // Below 65,536, because it is before `end`.
        call(at as u16, 16 - free);
        at += 1 << free;
    }
}
