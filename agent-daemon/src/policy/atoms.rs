//! Everything that policies tell apart: the agents, places, addresses, ports and protocols that they
//! name. What lies between two names is the same to every policy, so one request for each is enough
//! to know what a policy permits ([`super::compare`]) and what it would take to be permitted
//! ([`super::explain`]).

use std::collections::BTreeSet;

use agent_ebpf::{family, protocol};
use cedar_policy::PolicySet;
use serde_json::Value;

use super::content::Digest;
use super::labels::Labels;
use super::model::protocol_name;
use super::peers::Net;

/// The names in some policies.
#[derive(Clone, Debug, Default)]
pub(super) struct Atoms {
    pub(super) agents: BTreeSet<String>,
    pub(super) groups: BTreeSet<String>,
    /// Absolute paths, whatever is meant there.
    pub(super) places: BTreeSet<String>,
    /// Abstract addresses of unix sockets, with their `@`.
    pub(super) abstracts: BTreeSet<String>,
    pub(super) nets: BTreeSet<Net>,
    /// Every number from 0 to 65535: it is a port, or nobody asks for it.
    pub(super) ports: BTreeSet<u16>,
    pub(super) protocols: BTreeSet<u8>,
    /// Host names.
    pub(super) hosts: BTreeSet<String>,
    /// What host names are asked to end with; empty when any will do.
    pub(super) host_ends: BTreeSet<String>,
    /// Contents of programs.
    pub(super) digests: BTreeSet<Digest>,
    /// What paths are compared with by `like`.
    pub(super) patterns: BTreeSet<Pattern>,
    /// What is asked of agents besides who they are and their groups.
    pub(super) of_agents: BTreeSet<String>,
    /// Whether they ask for labels: all places that have one are then among the above.
    labels: bool,
    /// What is asked for and is none of the above, such as `context.task`.
    pub(super) others: BTreeSet<String>,
}

impl Atoms {
    /// The names in these policies.
    pub(super) fn of(policies: &PolicySet, labels: &Labels) -> Self {
        let mut found = Self::default();
        for policy in policies.policies() {
            match policy.to_json() {
                Ok(json) => {
                    for part in ["principal", "resource", "conditions"] {
                        found.gather(json.get(part).unwrap_or(&Value::Null));
                    }
                }
                Err(error) => {
                    found.others.insert(format!("policy {}: {error}", policy.id()));
                }
            }
        }
        if found.labels {
            for name in labels.places() {
                let of =
                    if name.starts_with('@') { &mut found.abstracts } else { &mut found.places };
                of.insert(name.to_owned());
            }
        }
        found
    }

    /// Adds another's names.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.agents.extend(other.agents);
        self.groups.extend(other.groups);
        self.places.extend(other.places);
        self.abstracts.extend(other.abstracts);
        self.nets.extend(other.nets);
        self.ports.extend(other.ports);
        self.protocols.extend(other.protocols);
        self.hosts.extend(other.hosts);
        self.host_ends.extend(other.host_ends);
        self.digests.extend(other.digests);
        self.patterns.extend(other.patterns);
        self.of_agents.extend(other.of_agents);
        self.others.extend(other.others);
        self
    }

    /// Takes what a part of a policy in Cedar's JSON form names.
    fn gather(&mut self, json: &Value) {
        match json {
            Value::Array(items) => items.iter().for_each(|item| self.gather(item)),
            Value::Object(members) => {
                let text = |key: &str| members.get(key).and_then(Value::as_str);
                if let (Some(kind), Some(id)) = (text("type"), text("id")) {
                    self.entity(kind, id);
                }
                for (key, member) in members {
                    match key.as_str() {
                        "Value" => self.literal(member),
                        "." | "has" => self.attribute(key, member),
                        "like" => self.like(member),
                        "==" | "!=" | "contains" => self.compared(member),
                        "isLoopback" => self.named(&["127.0.0.0/8", "::1/128"]),
                        "isMulticast" => self.named(&["224.0.0.0/4", "ff00::/8"]),
                        _ => {}
                    }
                    self.gather(member);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn entity(&mut self, kind: &str, id: &str) {
        match kind {
            "Agent" => self.agents.insert(id.to_owned()),
            "AgentGroup" => self.groups.insert(id.to_owned()),
            "UnixSocket" if id.starts_with('@') => self.abstracts.insert(id.to_owned()),
            "Dir" | "File" | "Program" | "UnixSocket" => self.places.insert(id.to_owned()),
            "Label" => std::mem::replace(&mut self.labels, true),
            // Of these every one there is is looked at.
            "Action" | "Peer" | "Privilege" | "SocketFamily" => false,
            other => self.others.insert(format!("{other}::\"{id}\"")),
        };
    }

    fn literal(&mut self, value: &Value) {
        if let Some(port) = value.as_u64().and_then(|number| u16::try_from(number).ok()) {
            self.ports.insert(port);
        }
        match value.as_str() {
            Some("tcp") => drop(self.protocols.insert(protocol::TCP)),
            Some("udp") => drop(self.protocols.insert(protocol::UDP)),
            Some(text) => {
                if text.starts_with('/') {
                    self.places.insert(text.to_owned());
                } else if text.starts_with('@') {
                    self.abstracts.insert(text.to_owned());
                }
                if let Ok(number) = text.parse() {
                    self.protocols.insert(number);
                }
                if let Ok(net) = Net::parse(text) {
                    self.nets.insert(net);
                }
            }
            None => {}
        }
    }

    /// Takes what hosts and contents are compared with.
    fn compared(&mut self, json: &Value) {
        let sides = [json.get("left"), json.get("right")];
        let is = |attribute: &str| {
            sides.iter().flatten().any(|side| {
                side.pointer("/./attr").and_then(Value::as_str) == Some(attribute)
                    && side.pointer("/./left/Var").and_then(Value::as_str) == Some("resource")
            })
        };
        let (hosts, contents) = (is("host"), is("sha256"));
        for side in sides.into_iter().flatten() {
            let each = side
                .get("Set")
                .and_then(Value::as_array)
                .map_or(std::slice::from_ref(side), Vec::as_slice);
            for text in each.iter().filter_map(|one| one.get("Value")?.as_str()) {
                if hosts {
                    self.hosts.insert(text.to_owned());
                }
                if contents {
                    self.digests.extend(Digest::parse(text));
                }
            }
        }
    }

    /// The contents that are named, and one that stands for all others; none where nothing is asked of contents.
    pub(super) fn contents(&self) -> Vec<(Digest, String)> {
        let Some(mut other) = self.digests.first().copied() else { return Vec::new() };
        // One of so many numbers is not among the others.
        for number in 0..=self.digests.len() as u64 {
            other = Digest([0; 32]);
            other.0[..8].copy_from_slice(&number.to_be_bytes());
            if !self.digests.contains(&other) {
                break;
            }
        }
        let named = self.digests.iter().map(|digest| (*digest, format!("sha256 {digest}")));
        named.chain([(other, "any other content".to_owned())]).collect()
    }

    /// A name that stands for each kind of them, and how to speak of it: those that are named, then one that
    /// ends as is asked for. A `?` is in no name, so nothing else is asked of it.
    pub(super) fn host_witnesses(&self) -> Vec<(String, String)> {
        let named = self.hosts.iter().map(|name| (name.clone(), name.clone()));
        let ends = self.host_ends.iter().filter(|end| !end.is_empty());
        named.chain(ends.map(|end| (format!("?{end}"), format!("*{end}")))).collect()
    }

    /// True when something is asked of host names.
    pub(super) fn ask_for_hosts(&self) -> bool {
        !(self.hosts.is_empty() && self.host_ends.is_empty())
    }

    fn like(&mut self, json: &Value) {
        let of = json.get("left").and_then(|left| left.get("."));
        if of.and_then(|of| of.pointer("/left/Var")?.as_str()) == Some("principal") {
            return; // told with the attribute
        }
        let is_path = of.is_some_and(|of| {
            of.get("attr").and_then(Value::as_str) == Some("path")
                && of.pointer("/left/Var").and_then(Value::as_str) == Some("resource")
        });
        let elements = json.get("pattern").and_then(Value::as_array);
        let is_protocol = of.is_some_and(|of| {
            of.get("attr").and_then(Value::as_str) == Some("protocol")
                && of.pointer("/left/Var").and_then(Value::as_str) == Some("resource")
        });
        let is_host = of.is_some_and(|of| {
            of.get("attr").and_then(Value::as_str) == Some("host")
                && of.pointer("/left/Var").and_then(Value::as_str) == Some("resource")
        });
        match elements.and_then(|elements| Pattern::of(elements)) {
            Some(Pattern(letters)) if is_host => {
                let is_star = letters.first().is_none_or(Option::is_none);
                let text: String = letters.into_iter().flatten().collect();
                let kind = if is_star { &mut self.host_ends } else { &mut self.hosts };
                kind.insert(text);
            }
            Some(pattern) if is_path => {
                self.patterns.insert(pattern);
            }
            Some(pattern) if is_protocol => {
                let matching =
                    (0..=u8::MAX).filter(|number| pattern.matches(&protocol_name(*number)));
                self.protocols.extend(matching);
            }
            _ => {
                self.others.insert("a `like` of something that is no path".to_owned());
            }
        }
    }

    fn attribute(&mut self, operator: &str, access: &Value) {
        let of = access.get("left").and_then(|left| left.get("Var")).and_then(Value::as_str);
        let name = access.get("attr").and_then(Value::as_str);
        match (of, name) {
            (Some("resource"), Some("ip" | "port" | "protocol" | "path" | "sha256")) => {}
            (Some("resource"), Some("host")) => drop(self.host_ends.insert(String::new())),
            (Some("resource"), Some("labels")) => self.labels = true,
            (Some("principal"), Some(name)) => {
                self.of_agents.insert(format!("principal.{name}"));
            }
            (of, name) => {
                let (of, name) = (of.unwrap_or("…"), name.unwrap_or("…"));
                self.others.insert(if operator == "has" {
                    format!("{of} has {name}")
                } else {
                    format!("{of}.{name}")
                });
            }
        }
    }

    fn named(&mut self, ranges: &[&str]) {
        self.nets.extend(ranges.iter().filter_map(|text| Net::parse(text).ok()));
    }
}

/// What `like` compares with: each element a character, or nothing for `*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Pattern(pub(super) Vec<Option<char>>);

impl Pattern {
    /// Takes one in Cedar's JSON form.
    fn of(elements: &[Value]) -> Option<Self> {
        let mut found = Vec::new();
        for element in elements {
            match (element.as_str(), element.get("Literal").and_then(Value::as_str)) {
                (Some("Wildcard"), _) => found.push(None),
                (_, Some(text)) => found.extend(text.chars().map(Some)),
                _ => return None,
            }
        }
        Some(Self(found))
    }

    fn matches(&self, text: &str) -> bool {
        let mut parts = vec![String::new()];
        for element in &self.0 {
            match (element, parts.last_mut()) {
                (Some(letter), Some(part)) => part.push(*letter),
                (None, _) | (_, None) => parts.push(String::new()),
            }
        }
        super::pattern::Pattern::new(&parts).matches(text.as_bytes())
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|element| match element {
            Some('*') => f.write_str("\\*"),
            Some(character) => write!(f, "{character}"),
            None => f.write_str("*"),
        })
    }
}

/// Addresses from one to another of a family, both included; IPv4 counts from 0 to 2^32 - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Addresses {
    pub(super) family: u8,
    pub(super) first: u128,
    pub(super) last: u128,
}

impl Addresses {
    /// All of a family.
    pub(super) fn all(of: u8) -> Self {
        let last = if of == family::V4 { u128::from(u32::MAX) } else { u128::MAX };
        Self { family: of, first: 0, last }
    }

    /// The addresses of a prefix.
    pub(super) fn of(net: Net) -> Self {
        let (shift, width) = if net.family == family::V4 { (96, 32) } else { (0, 128) };
        let first = net.address >> shift;
        let host = width - u32::from(net.bits).min(width);
        let rest = if host == 128 { u128::MAX } else { (1 << host) - 1 };
        Self { family: net.family, first, last: first | rest }
    }

    /// The last address, as a peer's.
    pub(super) fn witness(self) -> [u8; 16] {
        let shift = if self.family == family::V4 { 96 } else { 0 };
        (self.last << shift).to_be_bytes()
    }
}

impl std::fmt::Display for Addresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let v4 = self.family == family::V4;
        let shown = |address: u128| -> std::net::IpAddr {
            // An IPv4 address has 32 bits.
            if v4 {
                std::net::Ipv4Addr::from(address as u32).into()
            } else {
                std::net::Ipv6Addr::from(address).into()
            }
        };
        if *self == Self::all(self.family) {
            return f.write_str(if v4 { "any IPv4 address" } else { "any IPv6 address" });
        }
        let size = self.last - self.first;
        let first = shown(self.first);
        if size == 0 {
            write!(f, "{first}")
        } else if size & (size + 1) == 0 && self.first & size == 0 {
            let width = if v4 { 32 } else { 128 };
            write!(f, "{first}/{}", width - size.count_ones())
        } else {
            write!(f, "{first}-{}", shown(self.last))
        }
    }
}
