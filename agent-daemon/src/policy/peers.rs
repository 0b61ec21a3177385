//! Ranges of addresses, and the table of peers: for each class of protocol and port, longest prefixes
//! with everything that shorter ones say folded in.
//!
//! The kernel finds only the longest prefix that holds an address. What a shorter prefix of the same
//! class says must therefore stand in the longer one's cell too. Of different classes it asks each.

use std::collections::BTreeMap;
use std::net::IpAddr;

use agent_ebpf::{PEER_FIXED_BITS, PeerCell, PeerKey, family, protocol};
use serde::Serialize;

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

/// One entry of the table of peers: [`PeerKey`] with an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PeerPrefix {
    /// IP protocol number, or [`protocol::ANY`].
    pub protocol: u8,
    /// [`family::V4`] or [`family::V6`].
    pub family: u8,
    /// Port, or 0 for any.
    pub port: u16,
    /// The address in network byte order, from the first byte; bits beyond the prefix are zero.
    pub address: [u8; 16],
    /// How many bits of the address count.
    pub bits: u8,
}

impl PeerPrefix {
    /// The key under which the kernel half finds it.
    #[must_use]
    pub fn key(&self) -> PeerKey {
        PeerKey {
            prefix_len: PEER_FIXED_BITS + u32::from(self.bits),
            protocol: self.protocol,
            family: self.family,
            port: self.port.to_be_bytes(),
            address: self.address,
        }
    }

    fn net(&self) -> Net {
        Net { family: self.family, address: u128::from_be_bytes(self.address), bits: self.bits }
    }
}

/// Gathers what rules say of peers, then folds shorter prefixes into longer ones.
#[derive(Default)]
pub(super) struct PeerTable {
    cells: BTreeMap<PeerPrefix, PeerCell>,
}

impl PeerTable {
    pub(super) fn add(
        &mut self,
        net: Net,
        port: Option<u16>,
        protocol: Option<u8>,
        cell: PeerCell,
    ) {
        let prefix = PeerPrefix {
            protocol: protocol.unwrap_or(protocol::ANY),
            family: net.family,
            port: port.unwrap_or(0),
            address: net.address.to_be_bytes(),
            bits: net.bits,
        };
        let found = self.cells.entry(prefix).or_default();
        *found = both(*found, cell);
    }

    /// The table, each cell with all that shorter prefixes of its class say.
    pub(super) fn fold(mut self) -> BTreeMap<PeerPrefix, PeerCell> {
        // In the map's order a prefix comes right before all that lie within it, so the ones that
        // hold the present one form a stack.
        let mut around: Vec<(PeerPrefix, PeerCell)> = Vec::new();
        for (prefix, cell) in &mut self.cells {
            let same_class =
                |outer: &PeerPrefix| (outer.protocol, outer.port) == (prefix.protocol, prefix.port);
            while let Some((outer, _)) = around.last()
                && !(same_class(outer) && outer.net().holds(prefix.net()))
            {
                around.pop();
            }
            if let Some((_, outer)) = around.last() {
                *cell = both(*cell, *outer);
            }
            around.push((*prefix, *cell));
        }
        self.cells
    }
}

fn both(one: PeerCell, other: PeerCell) -> PeerCell {
    PeerCell { connect: one.connect.and(other.connect), bind: one.bind.and(other.bind) }
}
