//! Host names: which there are, and what rules say of them.
//!
//! The kernel half knows a name by its number only: what a policy set says of it is found here when an
//! agent is told it, and written beside it.

use std::collections::{BTreeMap, HashMap};

use agent_ebpf::{HOST_MAX, NamedKey, Names, Peer, PeerCell, PeerFacet, PeerName, PeerNames};

use super::fold::{Classes, Fold, Pieces};
use super::formula::{Atom, AtomId, Dimension};

/// The longest label (RFC 1035, section 2.3.4).
const LABEL_MAX: usize = 63;

/// Whether a host can be called so: as names are compared, in lower case and without a dot at the end.
///
/// # Errors
/// What is wrong with it, and what to write.
pub fn lawful(name: &str) -> Result<(), String> {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(format!("names are compared in lower case: write `{}`", name.to_lowercase()));
    }
    if let Some(short) = name.strip_suffix('.') {
        return Err(format!("write it without the dot at its end: `{short}`"));
    }
    let label = |label: &str| (1..=LABEL_MAX).contains(&label.len()) && is_of_letters(label);
    if name.len() <= HOST_MAX && name.split('.').all(label) {
        return Ok(());
    }
    Err(format!(
        "a host's name has labels of 1 to {LABEL_MAX} letters, digits, `-` and `_`, with dots between them, \
         and at most {HOST_MAX} bytes; names in other alphabets are written as they are asked for, as in \
         `xn--bcher-kva.example`"
    ))
}

/// Whether a name can end so.
pub(super) fn is_lawful_end(end: &str) -> bool {
    is_of_letters(&end.replace('.', ""))
        && end.len() <= HOST_MAX
        && !end.ends_with('.')
        && !end.contains("..")
}

fn is_of_letters(text: &str) -> bool {
    let lawful = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
    text.bytes().all(lawful)
}

/// What rules say of names. Nothing, when none asks for one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hosts {
    /// Of a name.
    is: BTreeMap<Vec<u8>, PeerCell>,
    /// Of names that end so and that nothing longer is said of.
    ends: BTreeMap<Vec<u8>, PeerCell>,
}

impl Hosts {
    /// True when no rule asks for names.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many names and ends of names rules speak of.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.is.len() + self.ends.len()
    }

    /// What is said of the peers with this name.
    #[must_use]
    pub fn cell(&self, name: &str) -> PeerCell {
        let name = name.as_bytes();
        let by_end = || (0..=name.len()).find_map(|at| self.ends.get(name.get(at..)?));
        self.is.get(name).or_else(by_end).copied().unwrap_or_default()
    }
}

/// Folds names, from their ends on. In that order an end comes right before all names that end so, so those
/// that hold the present one form a stack. `nameless` is what is said of peers without a name.
pub(super) fn by_name(pieces: &Pieces<'_>) -> (Hosts, Option<PeerCell>, Classes) {
    let mut fold = Fold::new(pieces, Dimension::Third, PeerFacet::ALL.len());
    if fold.is_idle() {
        return (Hosts::default(), None, fold.end());
    }
    let nameless = super::peers::cell(&mut fold);
    // By what they end with, backwards; then whether that is the whole name.
    let mut places: BTreeMap<(Vec<u8>, bool), Option<AtomId>> =
        BTreeMap::from([((Vec::new(), false), None)]);
    for (id, atom) in pieces.atoms().iter() {
        let (bytes, whole) = match atom {
            Atom::HasHost => {
                fold.set(id, true);
                continue;
            }
            Atom::Host(bytes) => (bytes, true),
            Atom::HostEnds(bytes) => (bytes, false),
            _ => continue,
        };
        places.insert((bytes.iter().rev().copied().collect(), whole), Some(id));
    }
    let mut hosts = Hosts::default();
    let mut around: Vec<(&[u8], Option<AtomId>)> = Vec::new();
    for ((backwards, whole), atom) in &places {
        while let Some((outer, atom)) = around.last()
            && !backwards.starts_with(outer)
        {
            atom.iter().for_each(|atom| fold.set(*atom, false));
            around.pop();
        }
        atom.iter().for_each(|atom| fold.set(*atom, true));
        let cell = super::peers::cell(&mut fold);
        let bytes = backwards.iter().rev().copied().collect();
        if *whole {
            hosts.is.insert(bytes, cell);
            atom.iter().for_each(|atom| fold.set(*atom, false));
        } else {
            hosts.ends.insert(bytes, cell);
            around.push((backwards, *atom));
        }
    }
    (hosts, Some(nameless), fold.end())
}

/// An address that is known by some names for as long as somebody asks, to judge outside the kernel.
#[derive(Debug, Default)]
pub struct KnownBy {
    names: PeerNames,
    cells: HashMap<u32, PeerCell>,
}

impl KnownBy {
    /// These names, as a policy's rules take them. There are at most [`agent_ebpf::NAMES_PER_PEER`].
    #[must_use]
    pub fn new<'a>(
        hosts: &Hosts,
        peer: &Peer,
        names: impl IntoIterator<Item = &'a String>,
    ) -> Self {
        let key = NamedKey::of(0, peer);
        let mut known = Self {
            names: PeerNames { first: key, last: key, ..PeerNames::default() },
            cells: HashMap::new(),
        };
        for ((slot, number), name) in known.names.names.iter_mut().zip(1..).zip(names) {
            *slot = PeerName { expires: u64::MAX, name: number, pad: 0 };
            known.cells.insert(number, hosts.cell(name));
        }
        known
    }
}

impl Names for KnownBy {
    fn agent(&self) -> u32 {
        0
    }

    fn named(&self, _: &NamedKey) -> Option<&PeerNames> {
        Some(&self.names)
    }

    fn name(&self, number: u32) -> Option<&PeerCell> {
        self.cells.get(&number)
    }

    fn now(&self) -> u64 {
        0
    }

    fn zero(&self) -> u32 {
        0
    }
}
