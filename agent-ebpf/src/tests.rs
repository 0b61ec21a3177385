//! The verdict, on the host.

use super::*;
extern crate std;
use std::{collections::HashMap, vec::Vec};

const CONFIG: Config = Config {
    levels: 0,
    hash_seed: 0x1234_5678,
    hash_factor: 0x9e37_79b9_7f4a_7c15,
    netns: 0,
    zero: 0,
    abi: 1,
    contents: 0,
    ima: 0,
};

#[derive(Default)]
struct Tables {
    places: HashMap<PlaceKey, PlaceCell>,
    rows: HashMap<u32, PatternRow>,
    peers: HashMap<PeerKey, PeerCell>,
    joins: HashMap<JoinKey, Pair>,
    hosts: HashMap<NamedKey, PeerNames>,
    names: HashMap<u32, PeerCell>,
    content: Option<PlaceKey>,
}

impl Names for Tables {
    fn agent(&self) -> u32 {
        7
    }

    fn named(&self, key: &NamedKey) -> Option<&PeerNames> {
        self.hosts.get(key)
    }

    fn name(&self, number: u32) -> Option<&PeerCell> {
        self.names.get(&number)
    }

    fn now(&self) -> u64 {
        1000
    }

    fn zero(&self) -> u32 {
        0
    }
}

impl Reach for Tables {
    fn place(&self, key: &PlaceKey) -> Option<&PlaceCell> {
        self.places.get(key)
    }

    fn row(&self, state: u32) -> Option<&PatternRow> {
        self.rows.get(&state)
    }

    fn peer(&self, key: &PeerKey) -> Option<&PeerCell> {
        (0..=key.prefix_len).rev().find_map(|bits| {
            let mut bytes = [key.port[0], key.port[1]].to_vec();
            bytes.extend(key.address);
            for (index, byte) in bytes.iter_mut().enumerate() {
                let kept = bits.saturating_sub(16 + index as u32 * 8).min(8);
                *byte &= (0xff_u32 << (8 - kept)) as u8;
            }
            let port = [bytes[0], bytes[1]];
            let address = bytes[2..].try_into().unwrap();
            self.peers.get(&PeerKey { prefix_len: bits, port, address, ..*key })
        })
    }

    fn join(&self, key: &JoinKey) -> Option<&Pair> {
        self.joins.get(key)
    }

    fn content(&self) -> Option<PlaceKey> {
        self.content
    }
}

impl Tables {
    fn cell(&mut self, kind: PlaceKind, bytes: &str) -> &mut PlaceCell {
        self.places.entry(PathHash::of(&CONFIG, kind, bytes.as_bytes())).or_default()
    }

    fn says(&mut self, kind: PlaceKind, bytes: &str, facet: Facet, pair: Pair) {
        self.cell(kind, bytes).pairs[facet as usize] = pair;
    }

    /// What is beneath a folder, and the folder itself.
    fn folder(&mut self, path: &str, facet: Facet, pair: Pair) {
        self.says(PlaceKind::Beneath, path.trim_end_matches('/'), facet, pair);
        self.says(PlaceKind::Object, path, facet, pair);
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
fn levels_come_deepest_first() {
    let mut levels = [0, 3, 4, 17, 31].map(Config::level).iter().fold(0, |all, one| all | one);
    let mut found = Vec::new();
    while levels != 0 {
        let (level, others) = Config::deepest(levels);
        found.push(level);
        levels = others;
    }
    assert_eq!(found, [31, 17, 4, 3, 0]);
    assert!(
        (0..=MAX_CGROUP_LEVEL).all(|level| Config::deepest(Config::level(level)) == (level, 0))
    );
}

#[test]
fn nothing_is_permitted_by_default() {
    assert_eq!(Tables::default().read("/etc/passwd"), Decision::because(Reason::NoPermit));
}

#[test]
fn the_nearest_cell_counts_and_no_other() {
    let mut tables = Tables::default();
    tables.folder("/a", Facet::ReadFile, forbid(7));
    tables.says(PlaceKind::Object, "/a/b/c", Facet::ReadFile, permit(3));
    assert_eq!(tables.read("/a/b/c"), Decision { reason: Reason::Permitted, rule: 3 });
    assert_eq!(tables.read("/a/b/d"), Decision { reason: Reason::Forbidden, rule: 7 });
}

#[test]
fn folders_match_by_whole_components() {
    let mut tables = Tables::default();
    tables.folder("/etc/app", Facet::ReadFile, permit(2));
    assert_eq!(tables.read("/etc/app/x").reason, Reason::Permitted);
    assert_eq!(tables.read("/etc/app").reason, Reason::Permitted);
    assert_eq!(tables.read("/etc/app-x").reason, Reason::NoPermit);
    assert_eq!(tables.read("/etc/ap").reason, Reason::NoPermit);
}

#[test]
fn root_folder_holds_everything() {
    let mut tables = Tables::default();
    tables.folder("/", Facet::ReadFile, permit(2));
    assert_eq!(tables.read("/").reason, Reason::Permitted);
    assert_eq!(tables.read("/x").reason, Reason::Permitted);
    assert_eq!(tables.read("relative").reason, Reason::PathUnresolved);
}

#[test]
fn objects_do_not_reach_beneath_and_facets_are_apart() {
    let mut tables = Tables::default();
    tables.says(PlaceKind::Object, "/d", Facet::ReadFile, permit(2));
    assert_eq!(tables.read("/d").reason, Reason::Permitted);
    assert_eq!(tables.read("/d/x").reason, Reason::NoPermit);
    let dir = decide_path(&CONFIG, Facet::ReadDir, b"/d", &tables);
    assert_eq!(dir.reason, Reason::NoPermit);
}

#[test]
fn prefixes_go_on_where_their_folder_says() {
    let mut tables = Tables::default();
    let long = std::format!("/d/{}", "x".repeat(100));
    tables.cell(PlaceKind::Beneath, "/d").lengths = 1 << 1 | 1 << 63;
    tables.says(PlaceKind::Prefix, "/d/ab", Facet::ReadFile, permit(2));
    tables.says(PlaceKind::Prefix, &long, Facet::ReadFile, permit(3));
    assert_eq!(tables.read("/d/ab").rule, 2);
    assert_eq!(tables.read("/d/abc/d").rule, 2);
    assert_eq!(tables.read("/d/a").reason, Reason::NoPermit);
    assert_eq!(tables.read(&std::format!("{long}y")).rule, 3);
    assert_eq!(tables.read("/e/ab").reason, Reason::NoPermit);
}

#[test]
fn the_longest_suffix_counts() {
    let mut tables = Tables::default();
    let whole = tables.cell(PlaceKind::Suffix, "");
    (whole.lengths, whole.longest) = (1 << 3 | 1 << 5, 6);
    tables.says(PlaceKind::Suffix, ".pem", Facet::ReadFile, permit(2));
    tables.says(PlaceKind::Suffix, "my.pem", Facet::ReadFile, forbid(3));
    assert_eq!(tables.read("/a/x.pem").rule, 2);
    assert_eq!(tables.read("/a/my.pem").rule, 3);
    assert_eq!(tables.read("/a/pem").reason, Reason::NoPermit);
    assert_eq!(tables.read("/").reason, Reason::NoPermit);
}

#[test]
fn patterns_are_followed_to_their_state() {
    // Whatever holds an `x`.
    let mut tables = Tables::default();
    let mut next = [2; 256];
    next[usize::from(b'x')] = 3;
    tables.rows.insert(STATE_START, PatternRow { next });
    tables.rows.insert(2, PatternRow { next });
    tables.rows.insert(3, PatternRow { next: [3; 256] });
    tables.places.entry(PlaceKey::state(3)).or_default().pairs[0] = permit(2);
    assert_eq!(tables.read("/a/x/b").rule, 2);
    assert_eq!(tables.read("/a/b").reason, Reason::NoPermit);
}

#[test]
fn rules_that_join_dimensions_are_found_by_class() {
    let mut tables = Tables::default();
    tables.cell(PlaceKind::Beneath, "/d").class = 4;
    let whole = tables.cell(PlaceKind::Suffix, "");
    (whole.lengths, whole.longest) = (1 << 3, 4);
    tables.cell(PlaceKind::Suffix, ".pem").class = 5;
    tables.joins.insert(JoinKey { facet: 0, classes: [4, 5, 0] }, permit(2));
    assert_eq!(tables.read("/d/x.pem").rule, 2);
    assert_eq!(tables.read("/d/x").reason, Reason::NoPermit);
    assert_eq!(tables.read("/x.pem").reason, Reason::NoPermit);
}

#[test]
fn the_lowest_rule_of_all_dimensions_is_reported() {
    let mut tables = Tables::default();
    tables.folder("/a", Facet::ReadFile, permit(9));
    let whole = tables.cell(PlaceKind::Suffix, "");
    (whole.lengths, whole.longest) = (1, 1);
    tables.says(PlaceKind::Suffix, "b", Facet::ReadFile, permit(4));
    assert_eq!(tables.read("/a/b").rule, 4);
    assert_eq!(tables.read("/a/c").rule, 9);
}

#[test]
fn an_object_stays_forbidden_under_a_permitted_name() {
    let permitted = Decision { reason: Reason::Permitted, rule: 2 };
    let forbidden = |rule| Decision { reason: Reason::Forbidden, rule };
    assert_eq!(permitted.or_forbidden(RULE_NONE), permitted);
    assert_eq!(permitted.or_forbidden(5), forbidden(5));
    assert_eq!(Decision::because(Reason::NoPermit).or_forbidden(5), forbidden(5));
    assert_eq!(forbidden(7).or_forbidden(5), forbidden(5));
    assert_eq!(forbidden(3).or_forbidden(5), forbidden(3));
    let unresolved = Decision::because(Reason::PathUnresolved);
    assert_eq!(unresolved.or_forbidden(5), unresolved);
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
fn a_peer_is_judged_by_address_by_port_and_by_both() {
    let mut tables = Tables::default();
    let peer = |address, port: u16| Peer::v4(protocol::TCP, address, port.to_be_bytes(), true);
    let mut net = peer([10, 0, 0, 0], 0).address_key();
    net.prefix_len = PeerKey::ADDRESS + 8;
    let class = |class| PeerCell { class, ..PeerCell::default() };
    tables.peers.insert(net, class(1));
    let mut low = peer([0; 4], 0).port_key(PeerKind::OtherPort);
    low.prefix_len = PeerKey::PORT + 6; // below 1024
    let pairs = [forbid(5), Pair::default(), permit(6)];
    tables.peers.insert(low, PeerCell { pairs, class: 2, pad: 0 });
    let classes = [1, 2, JoinKey::ANY];
    tables.joins.insert(JoinKey { facet: JoinKey::PEERS | 1, classes }, permit(3));
    let says = |action, address, port| decide_peer(action, &peer(address, port), &tables, &tables);
    assert_eq!(says(Action::Connect, [10, 1, 2, 3], 80).rule, 5);
    assert_eq!(says(Action::Bind, [10, 1, 2, 3], 80).rule, 3);
    assert_eq!(says(Action::Listen, [10, 1, 2, 3], 80).rule, 6);
    assert_eq!(says(Action::Bind, [11, 1, 2, 3], 80).reason, Reason::NoPermit);
    assert_eq!(says(Action::Connect, [10, 1, 2, 3], 1024).reason, Reason::NoPermit);
    assert_eq!(says(Action::Read, [10, 1, 2, 3], 80).reason, Reason::NoPermit);
}

/// Names until a time, by number.
fn known_by(key: NamedKey, names: &[(u32, u64)]) -> PeerNames {
    let mut known = PeerNames { first: key, last: key, ..PeerNames::default() };
    for (slot, (name, expires)) in known.names.iter_mut().zip(names) {
        *slot = PeerName { expires: *expires, name: *name, pad: 0 };
    }
    known
}

#[test]
fn an_address_is_judged_under_each_of_its_names_while_they_live() {
    let peer = |last| Peer::v4(protocol::TCP, [192, 0, 2, last], [1, 187], true);
    let key = |last| NamedKey::of(7, &peer(last));
    let cell = |pair| PeerCell { pairs: [pair; PEER_FACETS], class: 0, pad: 0 };
    let mut tables = Tables::default();
    tables.peers.insert(PeerKey::NAMELESS, cell(Pair::default()));
    tables.names = HashMap::from([(1, cell(permit(3))), (2, cell(forbid(4)))]);
    for (last, names) in [
        (1, &[(1, 2000)][..]),
        (2, &[(1, 2000), (2, 2000)]),
        (3, &[(1, 2000), (2, 1000)]),
        (4, &[(1, 1000)]),
        (5, &[(1, 2000), (9, 2000)]),
    ] {
        tables.hosts.insert(key(last), known_by(key(last), names));
    }
    // One that is being used again for another address, one that belongs to another agent, and one with
    // more names than there is room for.
    tables.hosts.insert(key(6), known_by(key(1), &[(1, 2000)]));
    tables.hosts.insert(key(7), known_by(NamedKey::of(8, &peer(7)), &[(1, 2000)]));
    let more = PeerNames { more_until: 1001, ..known_by(key(8), &[(1, 2000)]) };
    tables.hosts.insert(key(8), more);
    tables.hosts.insert(key(9), PeerNames { more_until: 1000, ..more });
    tables.hosts.get_mut(&key(9)).unwrap().first = key(9);
    tables.hosts.get_mut(&key(9)).unwrap().last = key(9);

    let says = |last| decide_peer(Action::Connect, &peer(last), &tables, &tables);
    assert_eq!(says(0).reason, Reason::NoPermit);
    assert_eq!(says(1), Decision { reason: Reason::Permitted, rule: 3 });
    assert_eq!(says(2), Decision { reason: Reason::Forbidden, rule: 4 });
    assert_eq!(says(3).reason, Reason::Permitted);
    assert_eq!(says(4).reason, Reason::NoPermit);
    for unknown in 5..=8 {
        assert_eq!(says(unknown).reason, Reason::PeerUnresolved, "{unknown}");
    }
    assert_eq!(says(9).reason, Reason::Permitted);
    // What is bound has no name.
    assert_eq!(decide_peer(Action::Bind, &peer(1), &tables, &tables).reason, Reason::NoPermit);
}

#[test]
fn what_is_connected_is_judged_by_its_address_and_port() {
    let peer = Peer::v4(protocol::TCP, [192, 0, 2, 1], [1, 187], true);
    let mut tables = Tables::default();
    let cell = |pair, class| PeerCell { pairs: [pair; PEER_FACETS], class, pad: 0 };
    tables.peers.insert(peer.address_key(), cell(permit(3), 1));
    let join = |third| JoinKey { facet: JoinKey::PEERS, classes: [1, 0, third] };
    tables.joins.insert(join(JoinKey::ANY), forbid(2));
    let says = |tables: &Tables| decide_connected(&peer, tables, 0);
    assert_eq!(says(&tables), Decision { reason: Reason::Forbidden, rule: 2 });
    // What asks for names says nothing of it.
    tables.joins.clear();
    tables.joins.insert(join(0), forbid(2));
    tables.peers.insert(PeerKey::NAMELESS, cell(forbid(5), 0));
    assert_eq!(says(&tables).reason, Reason::Permitted);
    tables.peers.insert(peer.address_key(), cell(forbid(4), 1));
    assert_eq!(says(&tables), Decision { reason: Reason::Forbidden, rule: 4 });
}

#[test]
fn what_has_no_name_is_judged_as_such_and_names_join() {
    let peer = Peer::v4(protocol::TCP, [192, 0, 2, 1], [1, 187], true);
    let key = NamedKey::of(7, &peer);
    let mut tables = Tables::default();
    let all = PeerKey { prefix_len: PeerKey::ADDRESS, address: [0; 16], ..peer.address_key() };
    tables.peers.insert(all, PeerCell { class: 1, ..PeerCell::default() });
    tables.hosts.insert(key, known_by(key, &[(1, 2000)]));
    tables.names.insert(1, PeerCell { class: 5, ..PeerCell::default() });
    let join = |address, name| JoinKey { facet: JoinKey::PEERS, classes: [address, 0, name] };
    tables.joins.insert(join(1, 5), permit(3));
    let says = |tables: &Tables| decide_peer(Action::Connect, &peer, tables, tables).rule;
    // No rule asks for names, so nobody looks.
    assert_eq!(says(&tables), RULE_NONE);
    let class = PeerCell { class: 4, pairs: [permit(9); PEER_FACETS], pad: 0 };
    tables.peers.insert(PeerKey::NAMELESS, class);
    assert_eq!(says(&tables), 3);
    tables.hosts.clear();
    assert_eq!(says(&tables), 9);
    tables.joins.insert(join(1, 4), forbid(2));
    assert_eq!(says(&tables), 2);
    // For a name whatever its address is, and for an address whatever its name is.
    tables.hosts.insert(key, known_by(key, &[(1, 2000)]));
    tables.joins.insert(join(JoinKey::ANY, 5), forbid(6));
    assert_eq!(says(&tables), 6);
    tables.joins.insert(join(1, JoinKey::ANY), forbid(4));
    assert_eq!(says(&tables), 4);
}

#[test]
fn an_abstract_address_is_in_no_folder() {
    let mut tables = Tables::default();
    tables.folder("", Facet::ConnectSocket, permit(2));
    let connect = |name: &[u8], tables: &Tables| {
        decide_socket(&CONFIG, Facet::ConnectSocket, name, tables).reason
    };
    assert_eq!(connect(b"/run/x", &tables), Reason::Permitted);
    assert_eq!(connect(b"@/run/x", &tables), Reason::NoPermit);
    tables.says(PlaceKind::Object, "@/run/x", Facet::ConnectSocket, permit(3));
    assert_eq!(connect(b"@/run/x", &tables), Reason::Permitted);
    tables.says(PlaceKind::Prefix, "@", Facet::ConnectSocket, forbid(4));
    assert_eq!(connect(b"@/run/y", &tables), Reason::Forbidden);
    assert_eq!(connect(b"@", &tables), Reason::Forbidden);
    tables.cell(PlaceKind::Prefix, "@").lengths = 1 << 1;
    tables.says(PlaceKind::Prefix, "@ab", Facet::ConnectSocket, permit(5));
    assert_eq!(connect(b"@abc", &tables), Reason::Permitted);
    assert_eq!(connect(b"@ac", &tables), Reason::Forbidden);
    assert_eq!(connect(b"run/x", &tables), Reason::PathUnresolved);
}

#[test]
fn a_number_is_judged_by_its_own_cell() {
    let mut tables = Tables::default();
    let asked = PlaceKey::privilege(Privilege::Ptrace);
    assert_eq!(decide_numbered(&asked, &tables).reason, Reason::NoPermit);
    tables.places.entry(asked).or_default().pairs[NUMBERED] = permit(2);
    assert_eq!(decide_numbered(&asked, &tables).rule, 2);
    let other = PlaceKey::privilege(Privilege::Signal);
    assert_eq!(decide_numbered(&other, &tables).reason, Reason::NoPermit);
    let socket = PlaceKey::socket(SocketKind::Ax25);
    assert_eq!(decide_numbered(&socket, &tables).reason, Reason::NoPermit);
}

#[test]
fn only_sockets_whose_use_is_judged_are_always_lawful() {
    let tcp_and_udp = [(1, 0), (1, 6), (1, 262), (2, 0), (2, 17)];
    for (kind, protocol) in tcp_and_udp {
        assert_eq!(SocketKind::asked(2, kind, protocol), None);
        assert_eq!(SocketKind::asked(10, kind, protocol), None);
    }
    let cases = [
        ((2, 3, 6), SocketKind::InetRaw),
        ((10, 3, 58), SocketKind::InetRaw),
        ((2, 2, 1), SocketKind::InetIcmp),
        ((2, 1, 132), SocketKind::InetSctp),
        ((2, 5, 0), SocketKind::InetOther),
        ((2, 2, 136), SocketKind::InetUdplite),
        ((2, 1, 256), SocketKind::Smc),
        ((43, 1, 0), SocketKind::Smc),
        ((16, 3, 0), SocketKind::Netlink),
        ((46, 1, 0), SocketKind::Other),
        ((4_000_000_000, 1, 0), SocketKind::Other),
    ];
    for ((family, kind, protocol), expected) in cases {
        assert_eq!(SocketKind::asked(family, kind, protocol), Some(expected));
    }
}

#[test]
fn audit_denies_nothing_and_an_unknown_mode_enforces() {
    let denied = Decision::because(Reason::PathUnresolved);
    assert_eq!(denied.verdict(Mode::Audit as u8), Verdict::WouldDeny);
    assert_eq!(denied.verdict(Mode::Enforce as u8), Verdict::Denied);
    assert_eq!(denied.verdict(200), Verdict::Denied);
}

#[test]
fn content_is_asked_for_last_and_only_where_it_is_marked() {
    let mut tables = Tables::default();
    let class = 3 | PlaceCell::BY_CONTENT;
    tables.cell(PlaceKind::Beneath, "/d").class = class;
    let mut join = |mark, pair| {
        let facet = Facet::ExecProgram as u32 | mark;
        tables.joins.insert(JoinKey { facet, classes: [class, 0, 0] }, pair);
    };
    join(JoinKey::CONTENTS, permit(2).and(forbid(4)));
    join(JoinKey::content(0), NONE);
    join(JoinKey::content(1), permit(2));
    join(JoinKey::content(2), permit(2).and(forbid(4)));
    let digest = |byte| PathHash::of(&CONFIG, PlaceKind::Content, &[byte; 32]);
    for (byte, class) in [(1, 1), (2, 2), (3, 3)] {
        tables.places.entry(digest(byte)).or_default().class = class;
    }
    let mut exec = |content: Option<u8>| {
        tables.content = content.map(digest);
        decide_path(&CONFIG, Facet::ExecProgram, b"/d/x", &tables)
    };
    assert_eq!(exec(None), Decision::because(Reason::HashUnknown));
    assert_eq!(exec(Some(1)), Decision { reason: Reason::Permitted, rule: 2 });
    assert_eq!(exec(Some(2)), Decision { reason: Reason::Forbidden, rule: 4 });
    // A class that is not named here, and a content that is named nowhere.
    assert_eq!(exec(Some(3)).reason, Reason::NoPermit);
    assert_eq!(exec(Some(9)).reason, Reason::NoPermit);
    tables.content = None;
    assert_eq!(tables.read("/d/x").reason, Reason::NoPermit);
    // What is forbidden whatever it contains is not asked for its content.
    tables.cell(PlaceKind::Beneath, "/d").pairs[Facet::ExecProgram as usize] = forbid(7);
    let exec = decide_path(&CONFIG, Facet::ExecProgram, b"/d/x", &tables);
    assert_eq!(exec, Decision { reason: Reason::Forbidden, rule: 7 });
    let unknown = Decision::because(Reason::HashUnknown);
    assert_eq!(unknown.or_forbidden(5), Decision { reason: Reason::Forbidden, rule: 5 });
    assert_eq!(unknown.verdict(Mode::Enforce as u8), Verdict::Denied);
}

#[test]
fn a_content_is_known_by_the_hash_of_its_digest() {
    let key = PathHash::of(&CONFIG, PlaceKind::Content, &[7; 32]);
    let content = Content { hash: key.hash, ..Content::default() };
    assert_eq!(content.key(), key);
}
