//! What policies mean, what is refused, and that the tables say what Cedar says.

mod accepted;
mod contents;
mod differential;
mod explained;
mod files;
mod generate;
mod labels;
mod refused;
mod scale;
mod suggested;

use agent_ebpf::{
    Action, Config, Decision, Facet, PathHash, Peer, PlaceKey, PlaceKind, decide_numbered,
    decide_path, decide_peer, decide_socket,
};

use super::content::Digest;
use super::{
    Agent, AgentName, HashedTables, KnownBy, Lowered, Policies, PolicyError, Source, Target,
    WithContent,
};

const CONFIG: Config = Config {
    levels: 0,
    hash_seed: 0x1234_5678_9abc_def1,
    hash_factor: 0x9e37_79b9_7f4a_7c15,
    netns: 0,
    zero: 0,
    abi: agent_ebpf::ABI_VERSION,
    contents: 0,
    ima: 0,
};

fn source(text: &str) -> Source {
    Source { name: "/etc/ambit/coder.cedar".to_owned(), text: text.to_owned() }
}

fn check(text: &str) -> Result<Policies, PolicyError> {
    Policies::check(&[source(text)])
}

fn entities(text: &str) -> Source {
    Source { name: "/etc/ambit/places.entities.json".to_owned(), text: text.to_owned() }
}

fn check_with(text: &str, labels: &str) -> Result<Policies, PolicyError> {
    Policies::check(&[source(text), entities(labels)])
}

fn coder() -> Agent {
    Agent::named(AgentName::parse("coder").unwrap())
}

/// The tables that a policy text gives to the agent `coder` of group `builders`.
fn lowered(text: &str) -> Lowered {
    let policies = check(text).unwrap_or_else(|error| panic!("{error}"));
    let agent = Agent { groups: vec!["builders".to_owned()], ..coder() };
    policies.lower(&agent, &[]).unwrap().as_ref().clone()
}

/// The verdict on a peer whose address has these names.
fn decide_known<'a>(
    tables: &HashedTables,
    lowered: &Lowered,
    action: Action,
    peer: &Peer,
    names: impl Iterator<Item = &'a String>,
) -> Decision {
    decide_peer(action, peer, tables, &KnownBy::new(&lowered.hosts, peer, names))
}

/// The verdict; on a program, with this content.
fn decide(
    tables: &HashedTables,
    lowered: &Lowered,
    action: Action,
    target: &Target,
    content: Option<Digest>,
) -> Decision {
    let content = content.map(|digest| PathHash::of(&CONFIG, PlaceKind::Content, &digest.0));
    let with = &WithContent { tables, content };
    match target {
        Target::File { path, is_dir } => {
            let path = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
            decide_path(&CONFIG, Facet::of(action, *is_dir).unwrap(), path, with)
        }
        Target::Peer { peer, host } => {
            decide_known(tables, lowered, action, peer, host.as_ref().into_iter())
        }
        Target::UnixSocket(name) => {
            let name = name.as_os_str().as_encoded_bytes();
            decide_socket(&CONFIG, Facet::of_socket(action).unwrap(), name, tables)
        }
        Target::Socket(kind) => decide_numbered(&PlaceKey::socket(*kind), tables),
        Target::Privilege(one) => decide_numbered(&PlaceKey::privilege(*one), tables),
    }
}

fn file(path: &str) -> Target {
    Target::File { path: path.into(), is_dir: false }
}

fn folder(path: &str) -> Target {
    Target::File { path: path.into(), is_dir: true }
}

fn v4(protocol: u8, address: [u8; 4], port: u16) -> Target {
    let peer = Peer::v4(protocol, address, port.to_be_bytes(), true);
    Target::Peer { peer, host: None }
}

fn v6(protocol: u8, address: &str, port: u16) -> Target {
    let address: std::net::Ipv6Addr = address.parse().unwrap();
    let mut words = [0_u32; 4];
    for (word, bytes) in words.iter_mut().zip(address.octets().chunks_exact(4)) {
        *word = u32::from_ne_bytes(bytes.try_into().unwrap());
    }
    let peer = Peer::v6(protocol, words, port.to_be_bytes(), true);
    Target::Peer { peer, host: None }
}

/// A peer whose address has a name.
fn known_as(name: &str, target: Target) -> Target {
    let Target::Peer { peer, .. } = target else { panic!("only peers have names") };
    Target::Peer { peer, host: Some(name.to_owned()) }
}

/// The id of the policy that decided, or why none did: `+id` permitted, `-id` forbade, `no_permit`.
fn says(tables: &Lowered, action: Action, target: &Target) -> String {
    says_with(tables, action, target, None)
}

/// The same of a program with this content.
fn says_with(tables: &Lowered, action: Action, target: &Target, content: Option<Digest>) -> String {
    let hashed = HashedTables::new(tables, &CONFIG).unwrap();
    let decision = decide(&hashed, tables, action, target, content);
    let name = tables.rule_name(decision.rule);
    match decision.reason {
        agent_ebpf::Reason::Permitted => format!("+{}", name.unwrap()),
        agent_ebpf::Reason::Forbidden => format!("-{}", name.unwrap()),
        other => {
            assert_eq!(name, None);
            other.name().to_owned()
        }
    }
}
