//! One path for every kind of path that policies tell apart: by the named place that it is, or lies
//! beneath, and by the patterns that it matches.
//!
//! With patterns these are found by walking all paths at once, as an automaton does: a state is how far a
//! path has come along the named places and in each pattern, and paths that lead to the same state go
//! on alike. There are finitely many states, so every kind of path is met, and no other.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use super::super::atoms::Pattern;
use super::CompareError;

/// The most states that are looked at.
const STATES_MAX: usize = 400_000;
/// The longest pattern, in elements: a set of positions in it is one number.
const PATTERN_MAX: usize = 127;
/// The most patterns: a set of them is one number.
const PATTERNS_MAX: usize = 64;

/// A set of patterns, by bits.
pub(super) type Patterns = u64;

/// A path that stands for all that policies cannot tell from it.
pub(super) struct Region {
    /// The named place that it is or lies beneath, the deepest; 0 is the root folder.
    pub(super) place: usize,
    /// Whether it lies beneath.
    pub(super) beneath: bool,
    /// The patterns that it matches.
    pub(super) like: Patterns,
    /// The path.
    pub(super) path: String,
}

/// Every kind of path; `places` are named places, the first of them the root folder.
pub(super) fn regions(places: &[&str], patterns: &[Pattern]) -> Result<Vec<Region>, CompareError> {
    if patterns.is_empty() {
        return Ok(without_patterns(places));
    }
    check(patterns)?;
    Walk::new('/', places, patterns).all()
}

/// The same of abstract unix addresses; the first name is `@` alone, which all others lie beneath.
pub(super) fn abstracts(names: &[&str], patterns: &[Pattern]) -> Result<Vec<Region>, CompareError> {
    if patterns.is_empty() {
        return Ok(without_patterns(names));
    }
    check(patterns)?;
    Walk::new('@', names, patterns).all()
}

fn check(patterns: &[Pattern]) -> Result<(), CompareError> {
    if patterns.len() > PATTERNS_MAX || patterns.iter().any(|one| one.0.len() > PATTERN_MAX) {
        return Err(CompareError::Patterns(STATES_MAX));
    }
    Ok(())
}

fn without_patterns(places: &[&str]) -> Vec<Region> {
    let mut unnamed = "other".to_owned();
    while places.iter().any(|path| path.contains(&unnamed)) {
        unnamed.push('-');
    }
    let both = |(place, path): (usize, &&str)| {
        let beneath = format!("{}/{unnamed}", path.trim_end_matches('/'));
        [
            Region { place, beneath: false, like: 0, path: (*path).to_owned() },
            Region { place, beneath: true, like: 0, path: beneath },
        ]
    };
    places.iter().enumerate().flat_map(both).collect()
}

/// The named places by their characters; the first step is the slash of the root folder.
struct Step {
    next: BTreeMap<char, usize>,
    place: Option<usize>,
    /// The deepest named place that paths through here lie beneath.
    within: usize,
}

/// How far a path has come.
#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    /// A step along the named places; or, off them, the place that all further lies beneath.
    at: Result<usize, usize>,
    /// What the last component is so far: nothing, `.`, `..`, or a name.
    component: u8,
    /// For each pattern the positions that may be next, its end among them, by bits.
    positions: Vec<u128>,
}

const NOTHING: u8 = 0;
const NAME: u8 = 3;

struct Walk<'a> {
    /// What every name begins with: the slash of the root folder, or the `@` of abstract addresses, in
    /// which anything may follow.
    first: char,
    patterns: &'a [Pattern],
    steps: Vec<Step>,
    /// Characters that patterns name, the slash, and one that is named nowhere.
    letters: BTreeSet<char>,
}

impl<'a> Walk<'a> {
    fn new(first: char, places: &[&str], patterns: &'a [Pattern]) -> Self {
        let mut steps = vec![Step { next: BTreeMap::new(), place: Some(0), within: 0 }];
        for (place, path) in places.iter().enumerate().skip(1) {
            let mut at = 0;
            // The root folder's slash is the first step itself.
            for letter in path.chars().skip(1) {
                let known = steps.get(at).and_then(|step| step.next.get(&letter).copied());
                at = known.unwrap_or_else(|| {
                    let own = steps.len();
                    steps.push(Step { next: BTreeMap::new(), place: None, within: 0 });
                    if let Some(step) = steps.get_mut(at) {
                        step.next.insert(letter, own);
                    }
                    own
                });
            }
            if let Some(step) = steps.get_mut(at) {
                step.place = Some(place);
            }
        }
        let mut todo = vec![0];
        while let Some(at) = todo.pop() {
            let Some(step) = steps.get(at) else { continue };
            let (within, place) = (step.within, step.place);
            let next: Vec<(char, usize)> = step.next.iter().map(|(c, at)| (*c, *at)).collect();
            for (letter, at) in next {
                if let Some(step) = steps.get_mut(at) {
                    step.within = if letter == '/' { place.unwrap_or(within) } else { within };
                }
                todo.push(at);
            }
        }
        let mut letters: BTreeSet<char> =
            patterns.iter().flat_map(|pattern| pattern.0.iter().flatten().copied()).collect();
        letters.insert('/');
        let named: BTreeSet<char> =
            places.iter().flat_map(|path| path.chars()).chain(letters.iter().copied()).collect();
        letters.extend(('a'..=char::MAX).find(|letter| !named.contains(letter)));
        letters.remove(&'\0');
        Self { first, patterns, steps, letters }
    }

    fn all(&self) -> Result<Vec<Region>, CompareError> {
        let mut found: BTreeMap<(usize, bool, Patterns), String> = BTreeMap::new();
        let begun = |one: &Pattern| taken(one, closed(one, 1), self.first);
        let start = State {
            at: Ok(0),
            component: NOTHING,
            positions: self.patterns.iter().map(begun).collect(),
        };
        let first = self.first.to_string();
        found.insert((0, false, self.like(&start)), first.clone());
        let mut seen = HashSet::from([start.clone()]);
        let mut todo = VecDeque::from([(start, first)]);
        while let Some((state, path)) = todo.pop_front() {
            let along = state.at.ok().and_then(|at| self.steps.get(at));
            let named = along.into_iter().flat_map(|step| step.next.keys());
            for letter in self.letters.iter().chain(named) {
                let Some(next) = self.next(&state, *letter) else { continue };
                if !seen.insert(next.clone()) {
                    continue;
                }
                if seen.len() > STATES_MAX {
                    return Err(CompareError::Patterns(STATES_MAX));
                }
                let mut path = path.clone();
                path.push(*letter);
                if next.component == NAME {
                    let (place, beneath) = match next.at {
                        Err(place) => (place, true),
                        Ok(at) => match self.steps.get(at) {
                            Some(Step { place: Some(place), .. }) => (*place, false),
                            step => (step.map_or(0, |step| step.within), true),
                        },
                    };
                    let kind = (place, beneath, self.like(&next));
                    found.entry(kind).or_insert_with(|| path.clone());
                }
                todo.push_back((next, path));
            }
        }
        let region = |((place, beneath, like), path)| Region { place, beneath, like, path };
        Ok(found.into_iter().map(region).collect())
    }

    /// The state after one more character; nothing when no path goes on so.
    fn next(&self, state: &State, letter: char) -> Option<State> {
        let component = match (state.component, letter) {
            _ if self.first == '@' => NAME,
            (NAME, '/') => NOTHING,
            (_, '/') => return None,
            (known, '.') if known < NAME => known + 1,
            _ => NAME,
        };
        let at = match state.at {
            Err(place) => Err(place),
            Ok(at) => {
                let step = self.steps.get(at)?;
                match step.next.get(&letter) {
                    Some(next) => Ok(*next),
                    None if letter == '/' => Err(step.place.unwrap_or(step.within)),
                    None => Err(step.within),
                }
            }
        };
        let each = self.patterns.iter().zip(&state.positions);
        let positions = each.map(|(pattern, at)| taken(pattern, *at, letter)).collect();
        Some(State { at, component, positions })
    }

    fn like(&self, state: &State) -> Patterns {
        let each = self.patterns.iter().zip(&state.positions).enumerate();
        each.fold(0, |like, (index, (pattern, positions))| {
            like | ((positions >> pattern.0.len() & 1) as Patterns) << index
        })
    }
}

/// The positions after a character.
fn taken(pattern: &Pattern, positions: u128, letter: char) -> u128 {
    let mut next = 0;
    for (position, element) in pattern.0.iter().enumerate() {
        if positions >> position & 1 == 1 {
            match element {
                None => next |= 1 << position,
                Some(wanted) if *wanted == letter => next |= 1 << (position + 1),
                Some(_) => {}
            }
        }
    }
    closed(pattern, next)
}

/// The positions, and those that a `*` which matches nothing leads to.
fn closed(pattern: &Pattern, mut positions: u128) -> u128 {
    for (position, element) in pattern.0.iter().enumerate() {
        if element.is_none() && positions >> position & 1 == 1 {
            positions |= 1 << (position + 1);
        }
    }
    positions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern(text.chars().map(|letter| (letter != '*').then_some(letter)).collect())
    }

    /// Cedar's own meaning of `like`, for comparison.
    fn matches(pattern: &[Option<char>], text: &[char]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            ([None, rest @ ..], _) => {
                matches(rest, text) || (!text.is_empty() && matches(pattern, &text[1..]))
            }
            ([Some(wanted), rest @ ..], [letter, more @ ..]) => {
                wanted == letter && matches(rest, more)
            }
            _ => false,
        }
    }

    #[test]
    fn every_kind_of_path_is_met_once_with_a_path_of_that_kind() {
        let places = ["/", "/a", "/a/b.rs", "/ab"];
        let patterns = ["*.rs", "/a/*", "*b*", "/x"].map(pattern);
        let found = regions(&places, &patterns).unwrap();
        let mut kinds = BTreeSet::new();
        for region in &found {
            assert!(kinds.insert((region.place, region.beneath, region.like)));
            let letters: Vec<char> = region.path.chars().collect();
            for (index, pattern) in patterns.iter().enumerate() {
                let said = region.like >> index & 1 == 1;
                assert_eq!(said, matches(&pattern.0, &letters), "{} {pattern}", region.path);
            }
            let deepest = (0..places.len()).filter(|index| {
                let place = places[*index];
                region.path == place
                    || place == "/"
                    || region.path.strip_prefix(place).is_some_and(|rest| rest.starts_with('/'))
            });
            let deepest = deepest.max_by_key(|index| places[*index].len()).unwrap();
            assert_eq!(region.place, deepest, "{}", region.path);
            assert_eq!(region.beneath, region.path != places[deepest], "{}", region.path);
        }
        // Beneath `/`: none, `*.rs`, `*b*`, both, and `/x`; beneath `/a` always `/a/*`, with the
        // other two or not; beneath `/a/b.rs` both `/a/*` and `*b*`, `*.rs` or not.
        let beneath = |place| found.iter().filter(|one| one.place == place && one.beneath).count();
        assert_eq!([0, 1, 2, 3].map(beneath), [5, 4, 2, 2]);
        assert_eq!(found.iter().filter(|one| !one.beneath).count(), places.len());
    }
}
