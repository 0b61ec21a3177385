//! The verdict, on the host.

use super::*;
extern crate std;
use std::collections::HashMap;

const CONFIG: Config = Config {
    levels: 0,
    hash_seed: 0x1234_5678,
    hash_factor: 0x9e37_79b9_7f4a_7c15,
    abi: 1,
    pad: 0,
};

#[derive(Default)]
struct Tables {
    places: HashMap<PlaceKey, PlaceCell>,
    peers: HashMap<PeerKey, PeerCell>,
}

impl Reach for Tables {
    fn place(&self, key: &PlaceKey) -> Option<&PlaceCell> {
        self.places.get(key)
    }

    fn peer(&self, key: &PeerKey) -> Option<&PeerCell> {
        (0..=key.prefix_len).rev().find_map(|bits| {
            let mut prefix = *key;
            prefix.prefix_len = bits;
            let kept = bits.saturating_sub(PEER_FIXED_BITS) as usize;
            for (index, byte) in prefix.address.iter_mut().enumerate() {
                let here = kept.saturating_sub(index * 8).min(8) as u32;
                *byte &= (0xff_u32 << (8 - here)) as u8;
            }
            self.peers.get(&prefix)
        })
    }
}

impl Tables {
    fn beneath(&mut self, path: &str, facet: Facet, pair: Pair) {
        let cell = self.places.entry(PathHash::of(&CONFIG, path.as_bytes())).or_default();
        cell.beneath[facet as usize] = pair;
    }

    fn exact(&mut self, path: &str, facet: Facet, pair: Pair) {
        let cell = self.places.entry(PathHash::of(&CONFIG, path.as_bytes())).or_default();
        cell.exact[facet as usize] = pair;
    }

    fn read(&self, path: &str) -> Decision {
        decide_path(&CONFIG, Facet::ReadFile, path.as_bytes(), self)
    }
}

const fn permit(rule: RuleId) -> Pair {
    Pair { permit: rule, forbid: RULE_NONE }
}

const fn forbid(rule: RuleId) -> Pair {
    Pair { permit: RULE_NONE, forbid: rule }
}

#[test]
fn nothing_is_permitted_by_default() {
    assert_eq!(Tables::default().read("/etc/passwd"), Decision::because(Reason::NoPermit));
}

#[test]
fn forbid_on_a_parent_beats_a_deeper_permit() {
    let mut tables = Tables::default();
    tables.beneath("/a", Facet::ReadFile, forbid(7));
    tables.exact("/a/b/c", Facet::ReadFile, permit(3));
    assert_eq!(tables.read("/a/b/c"), Decision { reason: Reason::Forbidden, rule: 7 });
}

#[test]
fn folders_match_by_whole_components() {
    let mut tables = Tables::default();
    tables.beneath("/etc/app", Facet::ReadFile, permit(2));
    assert_eq!(tables.read("/etc/app/x").reason, Reason::Permitted);
    assert_eq!(tables.read("/etc/app").reason, Reason::Permitted);
    assert_eq!(tables.read("/etc/app-x").reason, Reason::NoPermit);
    assert_eq!(tables.read("/etc/ap").reason, Reason::NoPermit);
}

#[test]
fn root_folder_holds_everything() {
    let mut tables = Tables::default();
    tables.beneath("/", Facet::ReadFile, permit(2));
    assert_eq!(tables.read("/").reason, Reason::Permitted);
    assert_eq!(tables.read("/x").reason, Reason::Permitted);
    assert_eq!(tables.read("relative").reason, Reason::PathUnresolved);
}

#[test]
fn exact_does_not_reach_beneath_and_facets_are_apart() {
    let mut tables = Tables::default();
    tables.exact("/d", Facet::ReadFile, permit(2));
    assert_eq!(tables.read("/d").reason, Reason::Permitted);
    assert_eq!(tables.read("/d/x").reason, Reason::NoPermit);
    let dir = decide_path(&CONFIG, Facet::ReadDir, b"/d", &tables);
    assert_eq!(dir.reason, Reason::NoPermit);
}

#[test]
fn the_lowest_rule_is_reported() {
    let mut tables = Tables::default();
    tables.beneath("/", Facet::ReadFile, permit(9));
    tables.beneath("/a", Facet::ReadFile, permit(4));
    tables.exact("/a/b", Facet::ReadFile, permit(6));
    assert_eq!(tables.read("/a/b").rule, 4);
}

#[test]
fn peers_are_judged_in_one_form() {
    let mapped =
        Peer::v6(protocol::TCP, [0, 0, 0xffff_u32.to_be(), 0x0102_0304_u32.to_be()], [0, 80], true);
    assert_eq!(mapped, Peer::v4(protocol::TCP, [1, 2, 3, 4], [0, 80], true));
    assert_eq!(Peer::v4(6, [0; 4], [0, 80], true).address[..4], [127, 0, 0, 1]);
    assert_eq!(Peer::v4(6, [0; 4], [0, 80], false).address[..4], [0; 4]);
    assert_eq!(Peer::v6(6, [0; 4], [0, 80], true).address[15], 1);
}

#[test]
fn forbid_of_any_port_beats_permit_of_one() {
    let mut tables = Tables::default();
    let mut key = Peer::v4(protocol::ANY, [10, 0, 0, 0], [0, 0], true).key(protocol::ANY, [0, 0]);
    key.prefix_len = PEER_FIXED_BITS + 8;
    tables.peers.insert(key, PeerCell { connect: forbid(5), bind: Pair::default() });
    let peer = Peer::v4(protocol::TCP, [10, 1, 2, 3], [1, 187], true);
    let exact = peer.key(protocol::TCP, [1, 187]);
    tables.peers.insert(exact, PeerCell { connect: permit(2), bind: permit(2) });
    assert_eq!(decide_peer(Action::Connect, &peer, &tables).rule, 5);
    assert_eq!(decide_peer(Action::Bind, &peer, &tables).reason, Reason::Permitted);
}

#[test]
fn audit_denies_nothing_and_an_unknown_mode_enforces() {
    let denied = Decision::because(Reason::PathUnresolved);
    assert_eq!(denied.verdict(Mode::Audit as u8), Verdict::WouldDeny);
    assert_eq!(denied.verdict(Mode::Enforce as u8), Verdict::Denied);
    assert_eq!(denied.verdict(200), Verdict::Denied);
}
