//! Seeded policies, agents and requests over a small world in which much meets.

use agent_ebpf::{Action, Peer};

use super::super::Target;

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
/// Names that begin like one another, files where other rules see folders, and the root folder.
pub(super) const PATHS: [&str; 14] = [
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
];
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
const PORTS: [u16; 5] = [22, 53, 80, 443, 65535];
const PROTOCOLS: [(u8, &str); 3] = [(6, "tcp"), (17, "udp"), (132, "132")];
const FILE_ACTIONS: [Action; 3] = [Action::Exec, Action::Read, Action::Write];
const PEER_ACTIONS: [Action; 2] = [Action::Connect, Action::Bind];

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
    match random.below(8) {
        0 if path != "/" => format!("resource == File::\"{path}\""),
        1 if path != "/" => format!("resource == Program::\"{path}\""),
        2 => format!("resource == Dir::\"{path}\""),
        3 => format!("resource is {}", random.one(&["File", "Dir", "Program"])),
        4 => format!("resource is {} in Dir::\"{path}\"", random.one(&["File", "Dir", "Program"])),
        5 => "resource".to_owned(),
        _ => format!("resource in Dir::\"{path}\""),
    }
}

fn term(random: &mut Random) -> String {
    match random.below(6) {
        0 => format!("resource.ip == ip(\"{}\")", random.one(&ADDRESSES)),
        1 => format!("resource.port == {}", random.one(&PORTS)),
        2 => format!("resource.protocol == \"{}\"", random.one(&PROTOCOLS).1),
        3 => format!("{} == resource.port", random.one(&PORTS)),
        _ => format!("resource.ip.isInRange(ip(\"{}\"))", random.one(&RANGES)),
    }
}

fn conditions(random: &mut Random) -> String {
    let mut text = String::new();
    for _ in 0..random.below(3) {
        let terms: Vec<String> = (0..=random.below(3))
            .map(|_| {
                let term = term(random);
                if random.chance(20) { format!("({term})") } else { term }
            })
            .collect();
        text += &format!(" when {{ {} }}", terms.join(" && "));
    }
    text
}

/// One policy, of the forms that are kept; it may still be refused for speaking of what cannot be.
pub(super) fn policy(random: &mut Random) -> String {
    let effect = if random.chance(65) { "permit" } else { "forbid" };
    let who = principal(random);
    match random.below(20) {
        0 => format!("{effect}({who}, action, resource);"),
        1 => {
            let conditions = conditions(random);
            format!("{effect}({who}, action, resource is Peer){conditions};")
        }
        2..=10 => {
            let action =
                if random.chance(20) { "action".to_owned() } else { action(random, &FILE_ACTIONS) };
            format!("{effect}({who}, {action}, {});", place(random))
        }
        _ => {
            let action = action(random, &PEER_ACTIONS);
            let conditions = conditions(random);
            format!("{effect}({who}, {action}, resource){conditions};")
        }
    }
}

/// Something that may be asked for, and an action under which.
pub(super) fn attempt(random: &mut Random) -> (Action, Target) {
    if random.chance(50) {
        let more = ["/a/b/c/new", "/c", "/abc", "/b/a/b"];
        let path = PATHS.get(random.below(PATHS.len() + more.len()));
        let path = path.unwrap_or_else(|| random.one(&more));
        let is_dir = *path == "/" || random.chance(30);
        let actions: &[Action] =
            if is_dir { &[Action::Read, Action::Write] } else { &FILE_ACTIONS };
        let target = Target::File { path: path.into(), is_dir };
        return (*random.one(actions), target);
    }
    let more = ["10.0.0.3", "192.0.2.1", "::2", "::ffff:10.0.0.1"];
    let address = ADDRESSES.get(random.below(ADDRESSES.len() + more.len()));
    let address = address.unwrap_or_else(|| random.one(&more));
    let port = *random.one(&[0, 22, 53, 80, 443, 8080, 65535]);
    let protocol = *random.one(&[6, 17, 132, 0, 1]);
    let action = *random.one(&PEER_ACTIONS);
    let destination = action == Action::Connect;
    (action, peer(address.parse().unwrap(), port, protocol, destination))
}

fn peer(address: std::net::IpAddr, port: u16, protocol: u8, destination: bool) -> Target {
    let port = port.to_be_bytes();
    Target::Peer(match address {
        std::net::IpAddr::V4(v4) => Peer::v4(protocol, v4.octets(), port, destination),
        std::net::IpAddr::V6(v6) => {
            let bytes = v6.octets();
            let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            Peer::v6(protocol, [word(0), word(4), word(8), word(12)], port, destination)
        }
    })
}
