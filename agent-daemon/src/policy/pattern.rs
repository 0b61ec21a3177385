//! `like`: what a pattern is, and the automaton that follows many of them at once.

use std::collections::HashMap;

use agent_ebpf::{STATE_DEAD, STATE_START};

/// The most states that the automaton of one agent's patterns may have: 512 bytes each.
pub(super) const STATES_MAX: usize = 16_384;

/// The text of a pattern: parts between stars, of which one stands for any text, or none. Without a
/// star there is one part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Pattern {
    parts: Vec<Vec<u8>>,
}

/// What a pattern asks of a text, where that can be asked without an automaton.
pub(super) enum Simple {
    Anything,
    Exactly(Vec<u8>),
    Begins(Vec<u8>),
    Ends(Vec<u8>),
    /// Both: no text is so short that the two would overlap.
    BeginsAndEnds(Vec<u8>, Vec<u8>),
}

impl Pattern {
    pub(super) fn new(parts: &[String]) -> Self {
        let last = parts.len().saturating_sub(1);
        let mut kept: Vec<Vec<u8>> = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            // Stars next to each other are one.
            if !part.is_empty() || index == 0 || index == last {
                kept.push(part.as_bytes().to_vec());
            }
        }
        Self { parts: kept }
    }

    /// True when the whole text is of this form.
    pub(super) fn matches(&self, text: &[u8]) -> bool {
        let Some((first, rest)) = self.parts.split_first() else {
            return false;
        };
        let Some((last, middle)) = rest.split_last() else {
            return text == first;
        };
        let Some(mut text) = text.strip_prefix(first.as_slice()) else {
            return false;
        };
        for part in middle {
            let found = text.windows(part.len()).position(|window| window == part);
            match found.and_then(|at| text.get(at + part.len()..)) {
                Some(after) => text = after,
                None => return false,
            }
        }
        text.ends_with(last)
    }

    /// The pattern, where it needs no automaton.
    pub(super) fn simple(&self) -> Option<Simple> {
        match self.parts.as_slice() {
            [whole] => Some(Simple::Exactly(whole.clone())),
            [first, last] => match (first.is_empty(), last.is_empty()) {
                (true, true) => Some(Simple::Anything),
                (false, true) => Some(Simple::Begins(first.clone())),
                (true, false) => Some(Simple::Ends(last.clone())),
                (false, false) => {
                    let shorter = first.len().min(last.len());
                    let overlap = (1..=shorter).any(|len| first.ends_with(&last[..len]));
                    (!overlap).then(|| Simple::BeginsAndEnds(first.clone(), last.clone()))
                }
            },
            _ => None,
        }
    }

    /// What every text of this form begins with.
    pub(super) fn beginning(&self) -> &[u8] {
        self.parts.first().map(Vec::as_slice).unwrap_or_default()
    }

    fn bytes(&self) -> impl Iterator<Item = u8> {
        self.parts.iter().flatten().copied()
    }

    /// Before which bytes of [`Pattern::bytes`], its end included, a star stands.
    fn stars(&self) -> Vec<usize> {
        let ends = self.parts.iter().scan(0, |so_far, part| {
            *so_far += part.len();
            Some(*so_far)
        });
        ends.take(self.parts.len().saturating_sub(1)).collect()
    }
}

/// A deterministic automaton that follows all patterns at once, with states as the kernel half
/// numbers them.
pub(super) struct Automaton {
    /// Where each state goes to, by byte; [`STATE_DEAD`] has no row.
    pub(super) rows: Vec<(u32, [u16; 256])>,
    /// Which patterns, by their number, match a text that ends in a state.
    pub(super) matched: Vec<(u32, Vec<usize>)>,
}

/// The automaton would have more than [`STATES_MAX`] states.
#[derive(Debug)]
pub(super) struct TooManyStates;

/// One pattern as a chain of bytes to be met, some places of which hold on to any byte.
struct Chain {
    bytes: Vec<u8>,
    holds: Vec<bool>,
    /// Its first place among those of all patterns.
    first: usize,
}

impl Automaton {
    /// Builds it. Once a pattern has matched whatever follows, those that it `outdoes`, by their
    /// number, are not followed any more: whether they match makes no difference then.
    ///
    /// # Errors
    /// It would have more than [`STATES_MAX`] states.
    pub(super) fn new(
        patterns: &[Pattern],
        outdoes: impl Fn(usize, usize) -> bool,
    ) -> Result<Self, TooManyStates> {
        let mut chains: Vec<Chain> = Vec::new();
        let mut first = 0;
        for pattern in patterns {
            let bytes: Vec<u8> = pattern.bytes().collect();
            let mut holds = vec![false; bytes.len() + 1];
            for at in pattern.stars() {
                if let Some(hold) = holds.get_mut(at) {
                    *hold = true;
                }
            }
            let len = holds.len();
            chains.push(Chain { bytes, holds, first });
            first += len;
        }
        let owner: Vec<usize> = chains
            .iter()
            .enumerate()
            .flat_map(|(index, chain)| std::iter::repeat_n(index, chain.holds.len()))
            .collect();
        // Bytes that no pattern names all lead the same way.
        let mut named: Vec<u8> = chains.iter().flat_map(|chain| chain.bytes.clone()).collect();
        named.sort_unstable();
        named.dedup();
        let unnamed = (0..=u8::MAX).find(|byte| named.binary_search(byte).is_err());

        let start: Vec<usize> = chains.iter().map(|chain| chain.first).collect();
        let mut found = Self { rows: Vec::new(), matched: Vec::new() };
        // The state in which a path begins is entered by none, so its set may occur once more.
        let mut known: HashMap<Vec<usize>, u32> = HashMap::new();
        let mut todo: Vec<(u32, Vec<usize>)> = vec![(STATE_START, start)];
        let mut next_state = STATE_START + 1;
        while let Some((state, places)) = todo.pop() {
            let ends = places.iter().filter_map(|place| {
                let chain = owner.get(*place).copied()?;
                (place - chains.get(chain)?.first == chains.get(chain)?.bytes.len())
                    .then_some(chain)
            });
            found.matched.push((state, ends.collect()));
            let mut row = [STATE_DEAD as u16; 256];
            let mut lead = |byte: u8| -> Result<u16, TooManyStates> {
                let mut after = after(&chains, &owner, &places, byte);
                let won = |place: &usize| {
                    let index = owner.get(*place).copied()?;
                    let chain = chains.get(index)?;
                    let ends = place - chain.first == chain.bytes.len();
                    (ends && chain.holds.last() == Some(&true)).then_some(index)
                };
                let winners: Vec<usize> = after.iter().filter_map(won).collect();
                after.retain(|place| {
                    let index = owner.get(*place).copied().unwrap_or_default();
                    !winners.iter().any(|winner| outdoes(*winner, index))
                });
                if after.is_empty() {
                    return Ok(STATE_DEAD as u16);
                }
                let number = match known.get(&after) {
                    Some(number) => *number,
                    None => {
                        if next_state as usize >= STATES_MAX {
                            return Err(TooManyStates);
                        }
                        known.insert(after.clone(), next_state);
                        todo.push((next_state, after));
                        next_state += 1;
                        next_state - 1
                    }
                };
                // Below `STATES_MAX`, which fits.
                Ok(number as u16)
            };
            if let Some(byte) = unnamed {
                row.fill(lead(byte)?);
            }
            for byte in &named {
                row[usize::from(*byte)] = lead(*byte)?;
            }
            found.rows.push((state, row));
        }
        found.matched.push((STATE_DEAD, Vec::new()));
        Ok(found)
    }
}

/// The places after a byte, in order. What a star has been reached for is forgotten: whatever an
/// earlier place could come to, that star can too.
fn after(chains: &[Chain], owner: &[usize], places: &[usize], byte: u8) -> Vec<usize> {
    let mut found: Vec<usize> = Vec::new();
    for place in places {
        let Some(chain) = owner.get(*place).and_then(|owner| chains.get(*owner)) else {
            continue;
        };
        let at = place - chain.first;
        if chain.holds.get(at) == Some(&true) {
            found.push(*place);
        }
        if chain.bytes.get(at) == Some(&byte) {
            found.push(place + 1);
        }
    }
    found.sort_unstable();
    found.dedup();
    let mut kept: Vec<usize> = Vec::with_capacity(found.len());
    let mut within: Option<(usize, usize)> = None; // the chain, and its last star so far
    for place in found.into_iter().rev() {
        let Some(index) = owner.get(place).copied() else {
            continue;
        };
        if within.is_some_and(|(chain, star)| chain == index && place < star) {
            continue;
        }
        if let Some(chain) = chains.get(index)
            && chain.holds.get(place - chain.first) == Some(&true)
        {
            within = Some((index, place));
        }
        kept.push(place);
    }
    kept.reverse();
    kept
}
