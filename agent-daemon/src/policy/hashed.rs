//! The tables on the host's side: the same verdicts as the kernel's, for the fanotify backend, for
//! `ambit policy explain` and for tests.

use std::collections::HashMap;

use agent_ebpf::{Config, PEER_FIXED_BITS, PeerCell, PeerKey, PlaceCell, PlaceKey, Reach};

use super::lower::{Collision, Lowered};

/// Protocol, family and port: what a prefix of peers is found under.
type Class = (u8, u8, [u8; 2]);

/// One agent's tables, to be asked by [`agent_ebpf::decide_path`] and [`agent_ebpf::decide_peer`].
#[derive(Clone, Debug, Default)]
pub struct HashedTables {
    places: HashMap<PlaceKey, PlaceCell>,
    peers: HashMap<PeerKey, PeerCell>,
    /// The prefix lengths that occur in a class, longest first.
    lengths: HashMap<Class, Vec<u32>>,
}

impl HashedTables {
    /// Keys the tables with the secrets in `config`; judge with the same.
    ///
    /// # Errors
    /// [`Collision`]: draw new secrets.
    pub fn new(lowered: &Lowered, config: &Config) -> Result<Self, Collision> {
        let mut lengths: HashMap<Class, Vec<u32>> = HashMap::new();
        let mut peers = HashMap::with_capacity(lowered.peers.len());
        for (prefix, cell) in &lowered.peers {
            let key = prefix.key();
            lengths.entry(class(&key)).or_default().push(key.prefix_len);
            peers.insert(key, *cell);
        }
        for found in lengths.values_mut() {
            found.sort_unstable_by(|a, b| b.cmp(a));
            found.dedup();
        }
        Ok(Self { places: lowered.keyed_places(config)?, peers, lengths })
    }
}

const fn class(key: &PeerKey) -> Class {
    (key.protocol, key.family, key.port)
}

impl Reach for HashedTables {
    fn place(&self, key: &PlaceKey) -> Option<&PlaceCell> {
        self.places.get(key)
    }

    fn peer(&self, key: &PeerKey) -> Option<&PeerCell> {
        let address = u128::from_be_bytes(key.address);
        let lengths = self.lengths.get(&class(key))?;
        let fitting = lengths.iter().filter(|length| **length <= key.prefix_len);
        fitting
            .filter_map(|length| {
                let bits = length.saturating_sub(PEER_FIXED_BITS);
                let mask = u128::MAX.checked_shl(128_u32.saturating_sub(bits));
                let shorter = PeerKey {
                    prefix_len: *length,
                    address: (address & mask.unwrap_or(0)).to_be_bytes(),
                    ..*key
                };
                self.peers.get(&shorter)
            })
            .next()
    }
}
