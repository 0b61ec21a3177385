//! Seeded policies, agents and requests over a small world in which much meets.

use agent_ebpf::{Action, Peer, Privilege, SocketKind};

use super::super::content::Digest;
use super::super::{Attributes, Target};

/// xorshift64*: the same seed gives the same world on every machine.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(super) fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    pub(super) fn chance(&mut self, in_hundred: usize) -> bool {
        self.below(100) < in_hundred
    }
}

pub(super) const AGENTS: [&str; 3] = ["coder", "code", "reviewer-2.x"];
pub(super) const GROUPS: [&str; 3] = ["builders", "readers", "coder"];
pub(super) const LABELS: [&str; 3] = ["trusted", "night", "eu"];
/// Labels of places; nothing ever has the last.
const PLACE_LABELS: [&str; 5] = ["secret", "sensitive", "tools \"x\"", "eu", "nothing"];
const WORDS: [&str; 4] = ["ci", "prod", "prod-eu", "m1"];
/// Names that begin like one another, files where other rules see folders, and the root folder.
pub(super) const PATHS: [&str; 22] = [
    "/",
    "/a",
    "/a/b",
    "/a/b/c",
    "/a/b/cd",
    "/a/bc",
    "/a/bc/d",
    "/ab",
    "/ab/c",
    "/b",
    "/b/a",
    "/b/a/b/c/d/e",
    "/b/ä ö",
    "/b/\"q\"",
    "/b/x*y",
    "/a/b/c.pem",
    "/a/c.pem",
    "/ab/c.pem.bak",
    "/home/u/.ssh/id",
    "/home/u/.ssh",
    "/home/v/x/.ssh/id.pem",
    "/home/v/id",
];
/// Patterns of every form, and some that overlap themselves and each other.
const PATTERNS: [&str; 30] = [
    "*",
    "**",
    "/*",
    "/a*",
    "/a/*",
    "/a/b*",
    "/a/b/*",
    "/ab/c",
    "/b/x\\*y",
    "*\\**",
    "*.pem",
    "*m",
    "*/c",
    "*/",
    "*.pem.bak",
    "*ä ö",
    "/a/*.pem",
    "/a*c",
    "/a/b*b/c",
    "/home/*id",
    "*b*",
    "*/.ssh/*",
    "/home/*/.ssh/*",
    "/home/*/*/id*",
    "*a*b*c*",
    "/*b*/c*",
    "*b/c*c",
    "*c*pem*",
    "/a/**/c",
    "*\u{e4}*",
];
/// Digests that rules name; as many other contents there are that none does.
const DIGESTS: [u8; 3] = [0x11, 0x2b, 0xff];
const ADDRESSES: [&str; 13] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.1.1",
    "10.1.0.1",
    "11.0.0.1",
    "127.0.0.1",
    "0.0.0.0",
    "::1",
    "::",
    "2001:db8::1",
    "2001:db8::2",
    "2001:db8:1::1",
    "fe80::1",
];
const RANGES: [&str; 14] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/15",
    "10.0.0.0/16",
    "10.0.0.0/24",
    "10.0.0.0/31",
    "10.0.0.2/31",
    "127.0.0.0/8",
    "::/0",
    "2001:db8::/32",
    "2001:db8::/48",
    "2001:db8::/127",
    "10.0.0.1/32",
    "10.0.0.1",
];
/// Names that end like one another.
const HOSTS: [&str; 6] =
    ["example.com", "api.example.com", "b.example.com", "com", "example.org", "a.b.example.org"];
const HOST_PATTERNS: [&str; 8] = [
    "*",
    "*.com",
    "*example.com",
    "*.example.com",
    "*.b.example.com",
    "*g",
    "*.api.example.com",
    "example.org",
];
const PORTS: [u16; 5] = [22, 53, 80, 443, 65535];
const PROTOCOLS: [(u8, &str); 3] = [(6, "tcp"), (17, "udp"), (132, "132")];
const FILE_ACTIONS: [Action; 3] = [Action::Exec, Action::Read, Action::Write];
const PEER_ACTIONS: [Action; 3] = [Action::Connect, Action::Bind, Action::Listen];
const SOCKET_ACTIONS: [Action; 2] = [Action::Connect, Action::Bind];
/// Abstract addresses, among them one that looks like a path and the empty one.
const ABSTRACT: [&str; 6] = ["@", "@a", "@/a/b", "@ä b", "@/a/b/c.pem", "@ab/c/d"];
/// Patterns that abstract addresses match, or all but them.
const SOCKET_PATTERNS: [&str; 11] =
    ["/*", "@*", "@a*", "@/*", "@/a*", "@ab/*", "@ab/c*", "@*b", "@*/c*d", "@/a/*.pem", "*b/c*"];
const KINDS: [SocketKind; 4] =
    [SocketKind::Netlink, SocketKind::Packet, SocketKind::InetRaw, SocketKind::Other];

fn quoted(text: &str) -> String {
    text.replace('"', "\\\"")
}

fn principal(random: &mut Random) -> String {
    let agent = *random.one(&AGENTS);
    let group = *random.one(&GROUPS);
    match random.below(7) {
        0 => format!("principal == Agent::\"{agent}\""),
        1 => format!("principal in Agent::\"{agent}\""),
        2 => format!("principal in AgentGroup::\"{group}\""),
        3 => format!("principal is Agent in AgentGroup::\"{group}\""),
        4 => "principal is Agent".to_owned(),
        _ => "principal".to_owned(),
    }
}

fn action(random: &mut Random, of: &[Action]) -> String {
    let literal = |action: &Action| format!("Action::\"{}\"", action.name());
    match random.below(4) {
        0 => format!("action == {}", literal(random.one(of))),
        1 => format!("action in {}", literal(random.one(of))),
        _ => {
            let count = 1 + random.below(of.len());
            let some: Vec<String> = (0..count).map(|_| literal(random.one(of))).collect();
            format!("action in [{}]", some.join(", "))
        }
    }
}

fn place(random: &mut Random) -> String {
    let path = quoted(random.one::<&str>(&PATHS));
    let label = quoted(random.one::<&str>(&PLACE_LABELS));
    match random.below(10) {
        8 => format!("resource in Label::\"{label}\""),
        9 => {
            format!("resource is {} in Label::\"{label}\"", random.one(&["File", "Dir", "Program"]))
        }
        0 if path != "/" => format!("resource == File::\"{path}\""),
        1 if path != "/" => format!("resource == Program::\"{path}\""),
        2 => format!("resource == Dir::\"{path}\""),
        3 => format!("resource is {}", random.one(&["File", "Dir", "Program"])),
        4 => format!("resource is {} in Dir::\"{path}\"", random.one(&["File", "Dir", "Program"])),
        5 => "resource".to_owned(),
        _ => format!("resource in Dir::\"{path}\""),
    }
}

/// What a condition may ask of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Places,
    Sockets,
    Peers,
    Numbers,
    Both,
}

/// What is asked of the labels of anything that has a path.
fn label_term(random: &mut Random) -> String {
    let (one, other) = (random.one(&PLACE_LABELS), random.one(&PLACE_LABELS));
    let (one, other) = (quoted(one), quoted(other));
    match random.below(6) {
        0 => format!("resource in Label::\"{one}\""),
        1 => format!("resource in [Label::\"{one}\", Label::\"{other}\"]"),
        2 => format!("resource.labels.containsAny([\"{one}\", \"{other}\"])"),
        3 => format!("resource.labels.containsAll([\"{one}\", \"{other}\"])"),
        4 => format!("(resource has labels && resource.labels.contains(\"{one}\"))"),
        _ => format!("resource.labels.contains(\"{one}\")"),
    }
}

/// Labels of some of the places and abstract addresses that policies name, as Cedar's JSON has them:
/// on folders, on objects of every type, in labels, some of which have nothing or are in others.
pub(super) fn entities(random: &mut Random) -> String {
    let mut found = Vec::new();
    let quoted = |text: &str| serde_json::to_string(text).unwrap();
    let mut entity = |kind: &str, id: &str, labels: Vec<&str>| {
        let parent = |label: &&str| format!("{{\"type\": \"Label\", \"id\": {}}}", quoted(label));
        let parents: Vec<String> = labels.iter().map(parent).collect();
        found.push(format!(
            "{{\"uid\": {{\"type\": \"{kind}\", \"id\": {}}}, \"attrs\": {{}}, \"parents\": [{}]}}",
            quoted(id),
            parents.join(", ")
        ));
    };
    let last = PLACE_LABELS.len() - 1;
    for (index, label) in PLACE_LABELS[..last].iter().enumerate() {
        // Each is only in those after it.
        let mut above = PLACE_LABELS[index + 1..last].to_vec();
        above.retain(|_| random.chance(25));
        entity("Label", label, above);
    }
    for (index, path) in PATHS.iter().chain(&ABSTRACT).enumerate() {
        for kind in ["Dir", "File", "Program", "UnixSocket"] {
            let lawful = match kind {
                "Dir" => index < PATHS.len(),
                "UnixSocket" => *path != "/",
                _ => index > 0 && index < PATHS.len(),
            };
            // The root folder is everything.
            if lawful && random.chance(if index == 0 { 3 } else { 6 }) {
                let mut labels = PLACE_LABELS[..last].to_vec();
                labels.retain(|_| random.chance(50));
                entity(kind, path, labels);
            }
        }
    }
    format!("[{}]", found.join(",\n"))
}

/// What a program's path leads to, in one world.
pub(super) fn content(target: &Target, salt: usize) -> Digest {
    let Target::File { path, .. } = target else { return Digest([0; 32]) };
    let bytes = path.as_os_str().as_encoded_bytes().iter();
    let sum = bytes.fold(salt, |sum, byte| (sum + usize::from(*byte)).wrapping_mul(31));
    let at = sum / 7 % (2 * DIGESTS.len());
    Digest([*DIGESTS.get(at).unwrap_or(&(at as u8)); 32])
}

fn content_term(random: &mut Random) -> String {
    let mut digest = || Digest([*random.one(&DIGESTS); 32]);
    let (one, other) = (digest(), digest());
    match random.below(4) {
        0 => format!("(resource has sha256 && resource.sha256 == \"{one}\")"),
        1 => format!("(resource has sha256 && resource.sha256 != \"{one}\")"),
        2 => format!("(resource has sha256 && [\"{one}\", \"{other}\"].contains(resource.sha256))"),
        _ => format!("!(resource has sha256 && \"{one}\" == resource.sha256)"),
    }
}

fn place_term(random: &mut Random) -> String {
    if random.chance(20) {
        return label_term(random);
    }
    if random.chance(12) {
        return content_term(random);
    }
    let path = quoted(random.one::<&str>(&PATHS));
    let other = quoted(random.one::<&str>(&PATHS));
    let label = quoted(random.one::<&str>(&PLACE_LABELS));
    match random.below(15) {
        14 => format!("resource is {} in Label::\"{label}\"", random.one(&["File", "Dir"])),
        0 => format!("resource.path == \"{path}\""),
        1 => format!("\"{path}\" != resource.path"),
        2 => format!("resource in Dir::\"{path}\""),
        3 => format!("resource in [Dir::\"{path}\", Dir::\"{other}\"]"),
        4 if path != "/" => format!("resource == File::\"{path}\""),
        5 => format!("resource == Dir::\"{path}\""),
        6 if path != "/" => format!("resource != Program::\"{path}\""),
        7 => format!("resource is {}", random.one(&["File", "Dir", "Program"])),
        8 => format!("resource is {} in Dir::\"{path}\"", random.one(&["File", "Dir"])),
        9 => format!("[\"{path}\", \"{other}\"].contains(resource.path)"),
        _ => format!("resource.path like \"{}\"", random.one(&PATTERNS)),
    }
}

fn unix_socket(random: &mut Random) -> String {
    let path = quoted(random.one::<&str>(&PATHS));
    let label = quoted(random.one::<&str>(&PLACE_LABELS));
    match random.below(8) {
        6 => format!("resource is UnixSocket in Label::\"{label}\""),
        7 => format!("resource in Label::\"{label}\""),
        0 => format!("resource == UnixSocket::\"{}\"", random.one(&ABSTRACT)),
        1 => "resource is UnixSocket".to_owned(),
        2 => format!("resource is UnixSocket in Dir::\"{path}\""),
        3 => format!("resource in Dir::\"{path}\""),
        4 => "resource".to_owned(),
        _ if path == "/" => "resource == UnixSocket::\"@a\"".to_owned(),
        _ => format!("resource == UnixSocket::\"{path}\""),
    }
}

fn socket_term(random: &mut Random) -> String {
    if random.chance(20) {
        return label_term(random);
    }
    let either = |random: &mut Random| {
        let of: &[&str] = if random.chance(50) { &ABSTRACT } else { &PATHS[1..] };
        quoted(random.one::<&str>(of))
    };
    let (name, other) = (either(random), either(random));
    let path = quoted(random.one::<&str>(&PATHS));
    match random.below(12) {
        0 => format!("resource.path == \"{name}\""),
        1 => format!("\"{name}\" != resource.path"),
        2 => format!("resource in Dir::\"{path}\""),
        3 => format!("resource == UnixSocket::\"{name}\""),
        4 => format!("resource != UnixSocket::\"{name}\""),
        5 => format!("resource is UnixSocket in Dir::\"{path}\""),
        6 => format!("[\"{name}\", \"{other}\"].contains(resource.path)"),
        7..=9 => format!("resource.path like \"{}\"", random.one(&SOCKET_PATTERNS)),
        _ => format!("resource.path like \"{}\"", random.one(&PATTERNS)),
    }
}

/// An action, a type of what has a name of its own, and one of its names.
fn name(random: &mut Random) -> (&'static str, &'static str, &'static str) {
    if random.chance(50) {
        ("socket", "SocketFamily", random.one(&KINDS).name())
    } else {
        ("privilege", "Privilege", random.one(Privilege::ALL).name())
    }
}

fn name_term(random: &mut Random) -> String {
    let (_, kind, name) = name(random);
    match random.below(3) {
        0 => format!("resource is {kind}"),
        1 => format!("resource == {kind}::\"{name}\""),
        _ => format!("resource != {kind}::\"{name}\""),
    }
}

/// The head of a policy about what has a name of its own.
fn named(random: &mut Random) -> String {
    let (action, kind, name) = name(random);
    let action = match random.below(3) {
        0 => "action".to_owned(),
        1 => format!("action in [Action::\"read\", Action::\"{action}\"]"),
        _ => format!("action == Action::\"{action}\""),
    };
    match random.below(4) {
        0 => format!("{action}, resource is {kind}"),
        1 if action != "action" => format!("{action}, resource"),
        _ => format!("{action}, resource == {kind}::\"{name}\""),
    }
}

fn peer_term(random: &mut Random) -> String {
    let port = *random.one(&PORTS);
    let protocol = random.one(&PROTOCOLS).1;
    let (name, other) = (*random.one(&HOSTS), *random.one(&HOSTS));
    match random.below(28) {
        0 => format!("resource.ip == ip(\"{}\")", random.one(&ADDRESSES)),
        1 => format!("resource.ip != ip(\"{}\")", random.one(&ADDRESSES)),
        2 => "resource.ip.isLoopback()".to_owned(),
        3 => "resource.ip.isMulticast()".to_owned(),
        4 => format!("resource.ip.{}()", random.one(&["isIpv4", "isIpv6"])),
        5 => format!("resource.port == {port}"),
        6 => format!("{port} != resource.port"),
        7 => format!("resource.port < {port}"),
        8 => format!("resource.port <= {port}"),
        9 => format!("resource.port > {port}"),
        10 => format!("{port} <= resource.port"),
        11 => format!("[{port}, {}, 0].contains(resource.port)", random.one(&PORTS)),
        12 => format!("resource.protocol == \"{protocol}\""),
        13 => format!("resource.protocol != \"{protocol}\""),
        14 => format!("resource[\"protocol\"] like \"{}\"", random.one(&["*p", "1*", "*3*"])),
        15 => format!("[\"tcp\", \"{protocol}\"].contains(resource.protocol)"),
        16 => "resource is Peer".to_owned(),
        17 => "resource has host".to_owned(),
        18..=19 => format!("(resource has host && resource.host == \"{name}\")"),
        20 => format!("(resource has host && \"{name}\" != resource.host)"),
        21 => {
            format!("(resource has host && [\"{name}\", \"{other}\"].contains(resource.host))")
        }
        22..=24 => {
            let pattern = random.one(&HOST_PATTERNS);
            format!("(resource has host && resource.host like \"{pattern}\")")
        }
        _ => format!("resource.ip.isInRange(ip(\"{}\"))", random.one(&RANGES)),
    }
}

fn agent_term(random: &mut Random) -> String {
    let (agent, group) = (*random.one(&AGENTS), *random.one(&GROUPS));
    let (label, word) = (*random.one(&LABELS), *random.one(&WORDS));
    let attribute = *random.one(&["namespace", "model", "operator"]);
    let attribute = &attribute;
    match random.below(12) {
        0 => format!("principal == Agent::\"{agent}\""),
        1 => format!("principal in AgentGroup::\"{group}\""),
        2 => format!("principal in [AgentGroup::\"{group}\", AgentGroup::\"readers\"]"),
        3 => "principal.name like \"c*\"".to_owned(),
        4 => format!("principal.name != \"{agent}\""),
        5 => format!("principal has {attribute}"),
        6 => format!("(principal has {attribute} && principal.{attribute} == \"{word}\")"),
        7 => format!("principal has {attribute} && principal.{attribute} like \"prod*\""),
        8 => format!("principal.labels.contains(\"{label}\")"),
        9 => format!("principal.labels.containsAny([\"{label}\", \"eu\"])"),
        10 => format!("principal.labels.containsAll([\"{label}\", \"night\"])"),
        _ => format!("[\"{word}\", \"{agent}\"].contains(principal.name)"),
    }
}

fn action_term(random: &mut Random, about: About) -> String {
    let of: &[Action] = match about {
        About::Places => &FILE_ACTIONS,
        About::Sockets => &SOCKET_ACTIONS,
        About::Peers => &PEER_ACTIONS,
        About::Numbers => &[Action::Socket, Action::Privilege],
        About::Both => &[Action::Read, Action::Connect],
    };
    let (one, other) = (random.one(of).name(), random.one(of).name());
    if random.chance(50) {
        format!("action == Action::\"{one}\"")
    } else {
        format!("action in [Action::\"{one}\", Action::\"{other}\"]")
    }
}

fn term(random: &mut Random, about: About) -> String {
    match (random.below(100), about) {
        (0..20, _) => agent_term(random),
        (20..24, _) => action_term(random, about),
        (24, _) => "true".to_owned(),
        (25, _) => "false".to_owned(),
        (_, About::Places) => place_term(random),
        (_, About::Sockets) => socket_term(random),
        (_, About::Peers) => peer_term(random),
        (_, About::Numbers) => name_term(random),
        (26..60, About::Both) => {
            let guard = *random.one(&["has path", "is File", "is Program", "in Dir::\"/a\""]);
            // What is in a folder has a path, but Cedar's validator does not conclude it.
            let guard =
                if guard.starts_with("in") { "has path && resource in Dir::\"/a\"" } else { guard };
            format!("(resource {guard} && {})", place_term(random))
        }
        (_, About::Both) => {
            let guard = *random.one(&["has port", "is Peer", "has ip"]);
            format!("(resource {guard} && {})", peer_term(random))
        }
    }
}

fn expression(random: &mut Random, about: About, depth: usize) -> String {
    if depth == 0 || random.chance(25) {
        return term(random, about);
    }
    let part = |random: &mut Random| {
        let inner = expression(random, about, depth - 1);
        if random.chance(15) { format!("({inner})") } else { inner }
    };
    match random.below(12) {
        0..5 => {
            let (left, right) = (part(random), part(random));
            let either = |text: String| match text.contains("||") || text.starts_with("if") {
                true => format!("({text})"),
                false => text,
            };
            format!("{} && {}", either(left), either(right))
        }
        5..9 => {
            let (left, right) = (part(random), part(random));
            let branch = |text: String| match text.starts_with("if") {
                true => format!("({text})"),
                false => text,
            };
            format!("{} || {}", branch(left), branch(right))
        }
        9 | 10 => format!("!({})", part(random)),
        _ => format!("if {} then {} else {}", part(random), part(random), part(random)),
    }
}

fn conditions(random: &mut Random, about: About) -> String {
    let mut text = String::new();
    for _ in 0..random.below(3) {
        let keyword = if random.chance(70) { "when" } else { "unless" };
        let depth = random.below(4);
        text += &format!(" {keyword} {{ {} }}", expression(random, about, depth));
    }
    text
}

/// One policy, of the forms that are kept; it may still be refused for speaking of what cannot be.
pub(super) fn policy(random: &mut Random) -> String {
    let effect = if random.chance(65) { "permit" } else { "forbid" };
    let who = principal(random);
    match random.below(20) {
        0 => format!("{effect}({who}, action, resource){};", conditions(random, About::Both)),
        1 => {
            let conditions = conditions(random, About::Peers);
            format!("{effect}({who}, action, resource is Peer){conditions};")
        }
        2..=4 => {
            let action = match random.chance(20) {
                true => "action".to_owned(),
                false => action(random, &SOCKET_ACTIONS),
            };
            let (socket, conditions) = (unix_socket(random), conditions(random, About::Sockets));
            format!("{effect}({who}, {action}, {socket}){conditions};")
        }
        5..=6 => {
            let (head, conditions) = (named(random), conditions(random, About::Numbers));
            format!("{effect}({who}, {head}){conditions};")
        }
        7..=13 => {
            if random.chance(15) {
                let place = *random.one(&["resource", "resource in Dir::\"/a\""]);
                let (term, more) = (content_term(random), conditions(random, About::Places));
                return format!(
                    "{effect}({who}, action == Action::\"exec\", {place}) when {{ {term} }}{more};"
                );
            }
            let action = match random.chance(20) {
                true => "action".to_owned(),
                false => action(random, &FILE_ACTIONS),
            };
            let (place, conditions) = (place(random), conditions(random, About::Places));
            format!("{effect}({who}, {action}, {place}){conditions};")
        }
        _ => {
            let action = action(random, &PEER_ACTIONS);
            let conditions = conditions(random, About::Peers);
            format!("{effect}({who}, {action}, resource is Peer){conditions};")
        }
    }
}

/// An agent's attributes, some of them unknown.
pub(super) fn attributes(random: &mut Random) -> Attributes {
    let mut one = || random.chance(60).then(|| (*random.one(&WORDS)).to_owned());
    let (namespace, model, operator) = (one(), one(), one());
    let mut labels: Vec<String> = LABELS.iter().map(|one| (*one).to_owned()).collect();
    labels.retain(|_| random.chance(50));
    Attributes { namespace, model, operator, labels }
}

/// Something that may be asked for, an action under which, and the same under its other names.
pub(super) fn asked(random: &mut Random) -> (Action, Target, Vec<Target>) {
    let (action, target) = attempt(random);
    let mut more = Vec::new();
    if let Target::Peer { peer, host: Some(first) } = &target
        && random.chance(40)
    {
        for _ in 0..1 + random.below(3) {
            let name = host(random);
            let other = Target::Peer { peer: *peer, host: Some(name.clone()) };
            if name != *first && !more.contains(&other) {
                more.push(other);
            }
        }
    }
    (action, target, more)
}

/// Something that may be asked for, and an action under which.
pub(super) fn attempt(random: &mut Random) -> (Action, Target) {
    match random.below(10) {
        0 => return (Action::Socket, Target::Socket(*random.one(&KINDS))),
        1 => return (Action::Privilege, Target::Privilege(*random.one(Privilege::ALL))),
        2 => {
            let name = if random.chance(40) {
                *random.one(&[ABSTRACT.as_slice(), &["@b", "@/a/bc", "@ab/d", "@ab/c/"]].concat())
            } else {
                *random.one(&PATHS[1..])
            };
            return (*random.one(&SOCKET_ACTIONS), Target::UnixSocket(name.into()));
        }
        _ => {}
    }
    if random.chance(50) {
        let more = [
            "/a/b/c/new",
            "/c",
            "/abc",
            "/b/a/b",
            "/a/b/new.pem",
            "/new.pem",
            "/a/b/b/c",
            "/abbc",
            "/home/w/.ssh/known",
            "/home/w/x/y/id2",
            "/b/xzy",
            "/a.pem.bak",
        ];
        let path = PATHS.get(random.below(PATHS.len() + more.len()));
        let path = path.unwrap_or_else(|| random.one(&more));
        let is_dir = *path == "/" || random.chance(30);
        let actions: &[Action] =
            if is_dir { &[Action::Read, Action::Write] } else { &FILE_ACTIONS };
        let target = Target::File { path: path.into(), is_dir };
        return (*random.one(actions), target);
    }
    let more = ["10.0.0.3", "192.0.2.1", "::2", "::ffff:10.0.0.1", "224.0.0.1", "ff02::1"];
    let address = ADDRESSES.get(random.below(ADDRESSES.len() + more.len()));
    let address = address.unwrap_or_else(|| random.one(&more));
    let port = *random.one(&[0, 1, 21, 22, 23, 53, 54, 80, 443, 444, 8080, 65534, 65535]);
    let protocol = *random.one(&[6, 17, 132, 0, 1, 255]);
    let action = *random.one(&PEER_ACTIONS);
    let destination = action == Action::Connect;
    let host = (destination && random.chance(70)).then(|| host(random));
    let peer = peer(address.parse().unwrap(), port, protocol, destination);
    (action, Target::Peer { peer, host })
}

/// A name that an address may be known by.
pub(super) fn host(random: &mut Random) -> String {
    let more = ["example.net", "c.b.example.com", "evil-example.com", "x.api.example.com"];
    let name = HOSTS.get(random.below(HOSTS.len() + more.len()));
    (*name.unwrap_or_else(|| random.one(&more))).to_owned()
}

fn peer(address: std::net::IpAddr, port: u16, protocol: u8, destination: bool) -> Peer {
    let port = port.to_be_bytes();
    match address {
        std::net::IpAddr::V4(v4) => Peer::v4(protocol, v4.octets(), port, destination),
        std::net::IpAddr::V6(v6) => {
            let bytes = v6.octets();
            let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            Peer::v6(protocol, [word(0), word(4), word(8), word(12)], port, destination)
        }
    }
}
