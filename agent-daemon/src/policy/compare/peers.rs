//! What changes of peers: addresses, ports, protocols and names, split wherever the policies do.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::{Action, Peer, family, protocol};

use super::super::atoms::{Addresses, Atoms};
use super::super::model::{Target, protocol_name};
use super::{Became, Both, Change, CompareError, Flip, QUESTIONS_MAX};

/// Addresses, ports, protocols and names, split wherever the policies do.
pub(super) struct Peers {
    ranges: Vec<Addresses>,
    ports: Vec<(u16, u16)>,
    /// The last stands for all that are not named.
    protocols: Vec<u8>,
    /// Names, and how to speak of them. The first is none, the last stands for all that nobody asks for.
    hosts: Vec<(Option<String>, String)>,
}

/// A direction, ports and protocols, by their places in [`Peers`].
type Key = (Became, Vec<usize>, Vec<usize>);
/// The addresses that changed so, and who decided before and after.
type Reached = (Vec<Addresses>, BTreeSet<String>, BTreeSet<String>);

/// IPv4 in IPv6 clothes, which is judged as IPv4: no addresses of their own.
const MAPPED: (u128, u128) = (0xffff_0000_0000, 0xffff_ffff_ffff);

impl Peers {
    pub(super) fn new(atoms: &Atoms) -> Result<Self, CompareError> {
        let mut ranges = Vec::new();
        for of in [family::V4, family::V6] {
            let all = Addresses::all(of);
            let mut starts = BTreeSet::from([all.first]);
            let mut split = |first: u128, last: u128| {
                starts.insert(first);
                starts.extend(last.checked_add(1).filter(|next| *next <= all.last));
            };
            if of == family::V6 {
                split(MAPPED.0, MAPPED.1);
            }
            for net in &atoms.nets {
                let unmapped = net.unmapped().unwrap_or(*net);
                if unmapped.family == of {
                    let range = Addresses::of(unmapped);
                    split(range.first, range.last);
                }
            }
            let starts: Vec<u128> = starts.into_iter().collect();
            for (index, first) in starts.iter().enumerate() {
                let last = starts.get(index + 1).map_or(all.last, |next| next - 1);
                if of == family::V4 || (*first, last) != MAPPED {
                    ranges.push(Addresses { family: of, first: *first, last });
                }
            }
        }
        let mut starts = BTreeSet::from([0_u16]);
        for port in &atoms.ports {
            starts.insert(*port);
            starts.extend(port.checked_add(1));
        }
        let starts: Vec<u16> = starts.into_iter().collect();
        let last = |index: usize| starts.get(index + 1).map_or(u16::MAX, |next| next - 1);
        let ports: Vec<(u16, u16)> =
            starts.iter().enumerate().map(|(index, first)| (*first, last(index))).collect();
        let mut named = atoms.protocols.clone();
        named.extend([protocol::TCP, protocol::UDP]);
        let mut protocols: Vec<u8> = named.iter().copied().collect();
        protocols.extend((0..=u8::MAX).rev().find(|number| !named.contains(number)));
        let mut hosts = vec![(None, "where no name is known".to_owned())];
        if atoms.ask_for_hosts() {
            let named = atoms.host_witnesses().into_iter();
            hosts.extend(named.map(|(name, shown)| (Some(name), format!("as {shown}"))));
            hosts.push((Some("?".to_owned()), "as any other name".to_owned()));
        }
        let questions = [ranges.len(), ports.len(), protocols.len(), hosts.len()];
        let questions = questions.into_iter().fold(1, usize::saturating_mul);
        if questions > QUESTIONS_MAX {
            return Err(CompareError::Questions(questions));
        }
        Ok(Self { ranges, ports, protocols, hosts })
    }

    pub(super) fn changes(&self, both: &Both) -> Vec<Change> {
        let mut changes = Vec::new();
        for action in [Action::Connect, Action::Bind, Action::Listen] {
            let mut alike: BTreeMap<(Key, Reached), Vec<usize>> = BTreeMap::new();
            for (index, (host, _)) in self.hosts.iter().enumerate() {
                // Only a destination has a name.
                if host.is_none() || action == Action::Connect {
                    for line in self.lines(both, action, host.as_ref()) {
                        alike.entry(line).or_default().push(index);
                    }
                }
            }
            for (((became, ports, protocols), (spans, before, after)), hosts) in alike {
                let what = format!(
                    "{}, {}, {}{}",
                    addresses(&spans),
                    self.ports_text(&ports),
                    self.protocols_text(&protocols),
                    if action == Action::Connect { self.hosts_text(&hosts) } else { String::new() }
                );
                let except = Vec::new();
                changes.push(Change { became, action: action.name(), what, except, before, after });
            }
        }
        changes
    }

    /// What changes of addresses that are known by this name, or by none.
    fn lines(&self, both: &Both, action: Action, host: Option<&String>) -> BTreeMap<Key, Reached> {
        let mut lines: BTreeMap<Key, Reached> = BTreeMap::new();
        for range in &self.ranges {
            // As a destination, the address of all zeros is this host's own.
            if action == Action::Connect && range.last == 0 {
                continue;
            }
            for became in [Became::Reachable, Became::Unreachable] {
                // For each port the protocols, then for each set of protocols the ports.
                let mut by_protocols: BTreeMap<Vec<usize>, (Vec<usize>, Vec<Flip>)> =
                    BTreeMap::new();
                for (port, (_, last)) in self.ports.iter().enumerate() {
                    let (mut changed, mut flips) = (Vec::new(), Vec::new());
                    for (index, number) in self.protocols.iter().enumerate() {
                        let peer = Peer {
                            protocol: *number,
                            family: range.family,
                            port: last.to_be_bytes(),
                            address: range.witness(),
                        };
                        let target = Target::Peer { peer, host: host.cloned() };
                        if let Some(flip) = both.flip(action, &target)
                            && flip.became == became
                        {
                            changed.push(index);
                            flips.push(flip);
                        }
                    }
                    if !changed.is_empty() {
                        let entry = by_protocols.entry(changed).or_default();
                        entry.0.push(port);
                        entry.1.append(&mut flips);
                    }
                }
                for (protocols, (ports, flips)) in by_protocols {
                    let line = lines.entry((became, ports, protocols)).or_default();
                    join(&mut line.0, *range, action);
                    for flip in flips {
                        line.1.insert(flip.before);
                        line.2.insert(flip.after);
                    }
                }
            }
        }
        lines
    }

    fn hosts_text(&self, chosen: &[usize]) -> String {
        if chosen.len() == self.hosts.len() {
            return String::new();
        }
        let shown = chosen.iter().filter_map(|index| self.hosts.get(*index));
        shown.map(|(_, shown)| format!(", {shown}")).collect()
    }

    fn ports_text(&self, chosen: &[usize]) -> String {
        let mut spans: Vec<(u16, u16)> = Vec::new();
        for (first, last) in chosen.iter().filter_map(|index| self.ports.get(*index)) {
            match spans.last_mut() {
                Some((_, before)) if before.checked_add(1) == Some(*first) => *before = *last,
                _ => spans.push((*first, *last)),
            }
        }
        if spans == [(0, u16::MAX)] {
            return "any port".to_owned();
        }
        let shown = spans.iter().map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        });
        let several = spans.len() > 1 || spans.first().is_some_and(|(first, last)| first != last);
        let list: Vec<String> = shown.collect();
        format!("port{} {}", if several { "s" } else { "" }, list.join(" "))
    }

    fn protocols_text(&self, chosen: &[usize]) -> String {
        if chosen.len() == self.protocols.len() {
            return "any protocol".to_owned();
        }
        let name = |index: &usize| match self.protocols.get(*index) {
            Some(_) if index + 1 == self.protocols.len() => "any other protocol".to_owned(),
            Some(number) => protocol_name(*number),
            None => String::new(),
        };
        chosen.iter().map(name).collect::<Vec<_>>().join(" ")
    }
}

/// Adds a range to others, which it comes after; neighbours become one. Addresses that nothing is ever
/// judged as do not separate neighbours.
fn join(spans: &mut Vec<Addresses>, mut range: Addresses, action: Action) {
    if action == Action::Connect && range.first == 1 {
        range.first = 0;
    }
    let neighbours = |before: &Addresses| {
        before.family == range.family
            && before.last.checked_add(1).is_some_and(|next| {
                next == range.first || (next, range.first) == (MAPPED.0, MAPPED.1 + 1)
            })
    };
    match spans.last_mut() {
        Some(before) if neighbours(before) => before.last = range.last,
        _ => spans.push(range),
    }
}

fn addresses(spans: &[Addresses]) -> String {
    if spans == [Addresses::all(family::V4), Addresses::all(family::V6)] {
        return "any address".to_owned();
    }
    spans.iter().map(Addresses::to_string).collect::<Vec<_>>().join(" ")
}
