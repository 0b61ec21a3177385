//! The tables on the host's side: the same verdicts as the kernel's, for the fanotify backend, for
//! `ambit policy explain` and for tests.

use std::collections::{BTreeMap, HashMap};

use agent_ebpf::{
    Config, JoinKey, Pair, PatternRow, PeerCell, PeerKey, PlaceCell, PlaceKey, Reach,
};

use super::lower::{Collision, Lowered};

/// What a prefix of peers is found under: its kind, its family or protocol.
type Side = (u8, u8);

/// One agent's tables, to be asked by [`agent_ebpf::decide_path`] and [`agent_ebpf::decide_peer`].
#[derive(Clone, Debug, Default)]
pub struct HashedTables {
    places: HashMap<PlaceKey, PlaceCell>,
    rows: HashMap<u32, PatternRow>,
    peers: HashMap<PeerKey, PeerCell>,
    /// The prefix lengths that occur on a side, longest first.
    lengths: BTreeMap<Side, Vec<u32>>,
    joins: HashMap<JoinKey, Pair>,
}

impl HashedTables {
    /// Keys the tables with the secrets in `config`; judge with the same.
    ///
    /// # Errors
    /// [`Collision`]: draw new secrets.
    pub fn new(lowered: &Lowered, config: &Config) -> Result<Self, Collision> {
        let mut lengths: BTreeMap<Side, Vec<u32>> = BTreeMap::new();
        for key in lowered.peers.keys() {
            lengths.entry((key.kind, key.of)).or_default().push(key.prefix_len);
        }
        for found in lengths.values_mut() {
            found.sort_unstable_by(|a, b| b.cmp(a));
            found.dedup();
        }
        Ok(Self {
            places: lowered.keyed_places(config)?,
            rows: lowered.rows().collect(),
            peers: lowered.peers.iter().map(|(key, cell)| (*key, *cell)).collect(),
            lengths,
            joins: lowered.joins.iter().map(|(key, pair)| (*key, *pair)).collect(),
        })
    }

    /// The table of places.
    pub const fn places(&self) -> &HashMap<PlaceKey, PlaceCell> {
        &self.places
    }
}

impl Reach for HashedTables {
    fn place(&self, key: &PlaceKey) -> Option<&PlaceCell> {
        self.places.get(key)
    }

    fn row(&self, state: u32) -> Option<&PatternRow> {
        self.rows.get(&state)
    }

    fn peer(&self, key: &PeerKey) -> Option<&PeerCell> {
        let lengths = self.lengths.get(&(key.kind, key.of))?.iter();
        let fitting = lengths.filter(|length| **length <= key.prefix_len);
        fitting
            .filter_map(|length| {
                let port = u16::from_be_bytes(key.port);
                let address = u128::from_be_bytes(key.address);
                let in_port = length.saturating_sub(PeerKey::PORT).min(16);
                let in_address = length.saturating_sub(PeerKey::ADDRESS);
                let port_mask = u16::MAX.checked_shl(16 - in_port).unwrap_or(0);
                let mask = u128::MAX.checked_shl(128_u32.saturating_sub(in_address)).unwrap_or(0);
                let shorter = PeerKey {
                    prefix_len: *length,
                    port: (port & port_mask).to_be_bytes(),
                    address: (address & mask).to_be_bytes(),
                    ..*key
                };
                self.peers.get(&shorter)
            })
            .next()
    }

    fn join(&self, key: &JoinKey) -> Option<&Pair> {
        self.joins.get(key)
    }
}

/// The same tables, asked about a program of which the content is known, or not.
#[derive(Clone, Copy, Debug)]
pub struct WithContent<'a> {
    /// The tables.
    pub tables: &'a HashedTables,
    /// Where the rules on its content are.
    pub content: Option<PlaceKey>,
}

impl Reach for WithContent<'_> {
    fn place(&self, key: &PlaceKey) -> Option<&PlaceCell> {
        self.tables.place(key)
    }

    fn row(&self, state: u32) -> Option<&PatternRow> {
        self.tables.row(state)
    }

    fn peer(&self, key: &PeerKey) -> Option<&PeerCell> {
        self.tables.peer(key)
    }

    fn join(&self, key: &JoinKey) -> Option<&Pair> {
        self.tables.join(key)
    }

    fn content(&self) -> Option<PlaceKey> {
        self.content
    }
}
