//! Host names: what agents were told by name servers, for as long as the answers live.
//!
//! The kernel half has names by number, and for each policy set what its rules say of them; this is the other
//! half of that memory, from which names are numbered, forgotten and told.

mod answer;
mod forwarder;

pub(super) use answer::{Told, Unreadable, servfail, told};
pub use forwarder::ForwarderError;
pub(super) use forwarder::{Forwarder, netns_cookie};

use std::collections::{BTreeMap, BTreeSet, HashMap};

use agent_ebpf::{HostName, NAMES_PER_PEER, NamedKey, PeerName, PeerNames};

/// How many names an agent may know addresses by; each is counted once for each address.
pub(super) const NAMES_PER_AGENT: usize = 16_384;
/// How long a name is kept after the answer that told it ended, for events and programs on their way.
const GRACE: u64 = 10_000_000_000;

/// The names that agents know addresses by.
#[derive(Debug, Default)]
pub struct KnownNames {
    numbers: HashMap<String, u32>,
    texts: HashMap<u32, String>,
    next: u32,
    /// By agent and address: the names' numbers, and when each ends (`CLOCK_BOOTTIME` nanoseconds).
    known: HashMap<NamedKey, BTreeMap<u32, u64>>,
    /// How many each agent knows.
    counts: HashMap<u32, usize>,
    /// The policy sets for which a name has a cell.
    cells: HashMap<u32, BTreeSet<u32>>,
    /// Addresses that had more names than there is room for when this daemon came, and until when.
    more: HashMap<NamedKey, u64>,
}

/// What nobody knows any more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Forgotten {
    pub(super) addresses: Vec<NamedKey>,
    /// Names' numbers, with the sets for which they had cells.
    pub(super) names: Vec<(u32, BTreeSet<u32>)>,
}

impl KnownNames {
    /// What the kernel half knew when this daemon came.
    pub(super) fn restored(
        texts: impl IntoIterator<Item = (u32, HostName)>,
        hosts: impl IntoIterator<Item = (NamedKey, PeerNames)>,
        cells: impl IntoIterator<Item = (u32, u32)>,
    ) -> Self {
        let mut found = Self::default();
        for (number, host) in texts {
            let bytes = host.bytes.get(..usize::from(host.len)).unwrap_or_default();
            let text = String::from_utf8_lossy(bytes).into_owned();
            found.next = found.next.max(number);
            found.numbers.insert(text.clone(), number);
            found.texts.insert(number, text);
        }
        for (key, names) in hosts {
            for name in names.names.iter().filter(|name| name.expires != 0) {
                found.tell(key, name.name, name.expires);
                found.next = found.next.max(name.name);
            }
            if names.more_until != 0 {
                found.more.insert(key, names.more_until);
            }
        }
        for (set, number) in cells {
            found.note_cell(number, set);
            found.next = found.next.max(number);
        }
        found
    }

    /// A name's number, if it has one.
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// The next number, which no name has had; `None` when all 2^32 have been given out.
    pub(super) fn next(&self) -> Option<u32> {
        self.next.checked_add(1)
    }

    /// Gives a name its number.
    pub(super) fn note(&mut self, number: u32, name: &str) {
        self.next = self.next.max(number);
        self.numbers.insert(name.to_owned(), number);
        self.texts.insert(number, name.to_owned());
    }

    /// Whether an agent knows an address by a name.
    pub(super) fn knows(&self, key: &NamedKey, number: u32) -> bool {
        self.known.get(key).is_some_and(|names| names.contains_key(&number))
    }

    /// The name with this number.
    pub(super) fn text(&self, number: u32) -> Option<&str> {
        self.texts.get(&number).map(String::as_str)
    }

    /// Whether the kernel half knows what this set says of a name.
    pub(super) fn has_cell(&self, number: u32, set: u32) -> bool {
        self.cells.get(&number).is_some_and(|sets| sets.contains(&set))
    }

    /// Takes note that it does.
    pub(super) fn note_cell(&mut self, number: u32, set: u32) {
        self.cells.entry(number).or_default().insert(set);
    }

    /// Takes note that an agent knows an address by a name until then, if not longer already.
    pub(super) fn tell(&mut self, key: NamedKey, number: u32, expires: u64) {
        let until = self.known.entry(key).or_default().entry(number).or_insert_with(|| {
            *self.counts.entry(key.agent).or_default() += 1;
            0
        });
        *until = expires.max(*until);
    }

    /// How many names an agent knows.
    pub(super) fn count(&self, agent: u32) -> usize {
        self.counts.get(&agent).copied().unwrap_or_default()
    }

    /// What the kernel half is to know of an address: the names that live longest.
    pub(super) fn value(&self, key: NamedKey) -> PeerNames {
        let mut value = PeerNames { first: key, last: key, ..PeerNames::default() };
        let mut names: Vec<(u32, u64)> = self
            .known
            .get(&key)
            .map(|names| names.iter().map(|(name, expires)| (*name, *expires)).collect())
            .unwrap_or_default();
        names.sort_by_key(|(_, expires)| std::cmp::Reverse(*expires));
        for (slot, (name, expires)) in value.names.iter_mut().zip(&names) {
            *slot = PeerName { expires: *expires, name: *name, pad: 0 };
        }
        let more = names.get(NAMES_PER_PEER).map_or(0, |(_, expires)| *expires);
        value.more_until = more.max(self.more.get(&key).copied().unwrap_or_default());
        value
    }

    /// The numbers of all names that an agent knows.
    pub(super) fn of_agent(&self, agent: u32) -> BTreeSet<u32> {
        let own = self.known.iter().filter(|(key, _)| key.agent == agent);
        own.flat_map(|(_, names)| names.keys().copied()).collect()
    }

    /// The names of an address, the one that lives longest first.
    pub(super) fn of(&self, key: &NamedKey) -> Vec<&str> {
        let Some(names) = self.known.get(key) else { return Vec::new() };
        let mut names: Vec<(&u32, &u64)> = names.iter().collect();
        names.sort_by_key(|(number, expires)| (std::cmp::Reverse(**expires), **number));
        names.into_iter().filter_map(|(number, _)| self.text(*number)).collect()
    }

    /// Forgets what ended a while ago.
    pub(super) fn expire(&mut self, now: u64) -> Forgotten {
        self.more.retain(|_, until| *until >= now);
        self.forget(|_, expires| expires.saturating_add(GRACE) < now)
    }

    /// Forgets all that an agent knows.
    pub(super) fn forget_agent(&mut self, agent: u32) -> Forgotten {
        self.forget(|key, _| key.agent == agent)
    }

    fn forget(&mut self, is_over: impl Fn(&NamedKey, u64) -> bool) -> Forgotten {
        let mut forgotten = Forgotten::default();
        for (key, names) in &mut self.known {
            let before = names.len();
            names.retain(|_, expires| !is_over(key, *expires));
            if let Some(count) = self.counts.get_mut(&key.agent) {
                *count = count.saturating_sub(before - names.len());
            }
            if names.is_empty() {
                forgotten.addresses.push(*key);
            }
        }
        self.known.retain(|_, names| !names.is_empty());
        self.counts.retain(|_, count| *count > 0);
        let used: BTreeSet<u32> =
            self.known.values().flat_map(|names| names.keys().copied()).collect();
        let gone: Vec<u32> =
            self.texts.keys().copied().filter(|number| !used.contains(number)).collect();
        for number in gone {
            if let Some(text) = self.texts.remove(&number) {
                self.numbers.remove(&text);
            }
            forgotten.names.push((number, self.cells.remove(&number).unwrap_or_default()));
        }
        forgotten
    }

    /// Takes note that a set is no more; returns the names that had cells for it.
    pub(super) fn retire(&mut self, set: u32) -> Vec<u32> {
        let had = |(number, sets): (&u32, &mut BTreeSet<u32>)| sets.remove(&set).then_some(*number);
        self.cells.iter_mut().filter_map(had).collect()
    }

    /// How many names are known.
    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(agent: u32, last: u8) -> NamedKey {
        let mut address = [0; 16];
        address[3] = last;
        NamedKey { address, agent, family: 4 }
    }

    #[test]
    fn a_name_lives_as_long_as_its_longest_answer_and_is_then_forgotten() {
        let mut known = KnownNames::default();
        let mut number = |name: &str| {
            let number = known.next().unwrap();
            known.note(number, name);
            assert_eq!(known.number(name), Some(number));
            number
        };
        let (api, web) = (number("api.example.com"), number("web.example.com"));
        assert!(!known.has_cell(api, 7));
        known.note_cell(api, 7);
        assert!(known.has_cell(api, 7) && !known.has_cell(api, 8) && !known.has_cell(web, 7));
        known.tell(key(1, 1), api, 100);
        known.tell(key(1, 1), api, 50);
        known.tell(key(1, 1), web, 200);
        known.tell(key(2, 1), web, 10);
        assert_eq!(known.of(&key(1, 1)), ["web.example.com", "api.example.com"]);
        assert_eq!((known.count(1), known.count(2)), (2, 1));
        let value = known.value(key(1, 1));
        assert_eq!(value.names[1], PeerName { expires: 100, name: api, pad: 0 });
        assert_eq!((value.first, value.last, value.more_until), (key(1, 1), key(1, 1), 0));

        assert_eq!(
            known.expire(100 + GRACE),
            Forgotten { addresses: vec![key(2, 1)], ..Default::default() }
        );
        let forgotten = known.expire(101 + GRACE);
        assert_eq!(forgotten.names, [(api, BTreeSet::from([7]))]);
        assert!(forgotten.addresses.is_empty());
        let forgotten = known.forget_agent(1);
        assert_eq!(forgotten.addresses, [key(1, 1)]);
        assert_eq!((known.len(), known.count(1)), (0, 0));
        // A number stands for one name for good.
        assert_eq!(known.number("web.example.com"), None);
        assert_eq!(known.next(), Some(web + 1));
    }

    #[test]
    fn more_names_than_there_is_room_for_are_not_let_go_in_silence() {
        let mut known = KnownNames::default();
        for index in 0..=NAMES_PER_PEER {
            let number = known.next().unwrap();
            known.note(number, &format!("n{index}.example.com"));
            known.tell(key(1, 1), number, 1000 + index as u64);
        }
        let value = known.value(key(1, 1));
        assert!(value.names.iter().all(|name| name.expires > 1000));
        assert_eq!(value.more_until, 1000);
    }

    #[test]
    fn what_the_kernel_half_knew_is_known_again() {
        let mut known = KnownNames::default();
        let number = known.next().unwrap();
        known.note(number, "api.example.com");
        known.tell(key(1, 1), number, 100);
        let mut bytes = [0; 255];
        bytes[..15].copy_from_slice(b"api.example.com");
        let texts = [(number, HostName { len: 15, bytes })];
        let hosts = [(key(1, 1), PeerNames { more_until: 90, ..known.value(key(1, 1)) })];
        let mut again = KnownNames::restored(texts, hosts, [(7, number), (7, 40)]);
        assert_eq!(again.of(&key(1, 1)), ["api.example.com"]);
        assert_eq!(again.number("api.example.com"), Some(number));
        assert!(again.has_cell(number, 7));
        // What there was no room for is not let go by a restart; nor is a number of which only a cell is left.
        assert_eq!(again.value(key(1, 1)).more_until, 90);
        assert_eq!(again.next(), Some(41));
        again.expire(91);
        assert_eq!(again.value(key(1, 1)).more_until, 0);
        assert_eq!(again.retire(7).len(), 2);
    }
}
