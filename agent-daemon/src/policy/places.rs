//! The table of places: rules about paths, folded by the beginning of the path, by its end, and by
//! pattern.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use agent_ebpf::{FACETS, JoinKey, Pair, PlaceCell, PlaceKind, STATE_DEAD, STATE_START};

use super::content;
use super::fold::{Classes, Fold, Pieces, TooManyJoins, joins};
use super::formula::{Atom, AtomId, Dimension};
use super::pattern::{Automaton, Pattern, STATES_MAX, TooManyStates};

/// Where a cell of the table of places stands, before it is hashed: its kind and its bytes; for
/// [`PlaceKind::State`] the state's number, big-endian.
pub type Place = (PlaceKind, Vec<u8>);

/// What is made of the rules about paths.
#[derive(Default)]
pub(super) struct Places {
    pub(super) cells: BTreeMap<Place, PlaceCell>,
    pub(super) patterns: BTreeMap<u32, [u16; 256]>,
    pub(super) joins: BTreeMap<JoinKey, Pair>,
}

/// Why the rules about paths cannot be tables.
#[derive(Debug)]
pub(super) enum TooMuch {
    /// Rules that join dimensions.
    Joins,
    /// Patterns, of which this is one.
    Patterns(AtomId),
    /// Digests, of which this is one.
    Contents(AtomId),
}

impl From<TooManyJoins> for TooMuch {
    fn from(TooManyJoins: TooManyJoins) -> Self {
        Self::Joins
    }
}

pub(super) fn places(pieces: &Pieces<'_>) -> Result<Places, TooMuch> {
    let mut made = Places::default();
    if pieces.is_empty() {
        return Ok(made);
    }
    let first = by_beginning(pieces, &mut made.cells);
    let second = by_end(pieces, &mut made.cells);
    let third = by_pattern(pieces, &mut made)?;
    made.joins = joins(pieces, [&first, &second, &third], false)?;
    content::join(pieces, [&first, &second, &third], &mut made)?;
    Ok(made)
}

fn cell(fold: &mut Fold<'_>) -> PlaceCell {
    PlaceCell { pairs: fold.pairs::<FACETS>(), class: fold.class(), ..PlaceCell::default() }
}

/// Bit n of [`PlaceCell::lengths`] stands for n + 1 bytes more, the highest for all that are longer.
fn length_bit(more: usize) -> u64 {
    1 << more.saturating_sub(1).min(63)
}

/// Folds what paths begin with. A region is a string that begins all paths in it: a folder's name with
/// its slash, or a prefix. Sorted by bytes, a region stands right before what lies in it.
fn by_beginning(pieces: &Pieces<'_>, cells: &mut BTreeMap<Place, PlaceCell>) -> Classes {
    // By string: the region's atom, and that of the object which is called so.
    #[derive(Default)]
    struct Point {
        region: Option<Option<AtomId>>,
        object: Option<Option<AtomId>>,
        lengths: u64,
        /// Labels that everything in the region has, and those that the object has.
        labels: Vec<AtomId>,
        own_labels: Vec<AtomId>,
    }
    let mut points: BTreeMap<Vec<u8>, Point> = BTreeMap::new();
    let root = points.entry(b"/".to_vec()).or_default();
    root.region = Some(None);
    root.object = Some(None);
    // All abstract addresses.
    points.entry(b"@".to_vec()).or_default().region = Some(None);
    for (id, atom) in pieces.atoms().iter() {
        match atom {
            Atom::Object(path) => {
                points.entry(path.clone()).or_default().object = Some(Some(id));
            }
            Atom::Beneath(folder) => {
                let mut region = folder.clone();
                region.push(b'/');
                points.entry(region).or_default().region = Some(Some(id));
            }
            Atom::Labelled(label, objects) => {
                for (path, is_dir) in label.places(*objects) {
                    if path != "/" {
                        let point = points.entry(path.as_bytes().to_vec()).or_default();
                        point.object.get_or_insert_default();
                        point.own_labels.push(id);
                    }
                    if is_dir {
                        let region = format!("{}/", path.trim_end_matches('/')).into_bytes();
                        let point = points.entry(region).or_default();
                        point.region.get_or_insert_default();
                        point.labels.push(id);
                    }
                }
            }
            Atom::Prefix(bytes) => {
                points.entry(bytes.clone()).or_default().region = Some(Some(id));
                // Without a slash it is of an abstract address, whose first byte is `@`.
                let slash = bytes.iter().rposition(|byte| *byte == b'/').unwrap_or_default();
                let more = bytes.len() - slash - 1;
                if more > 0 {
                    let folder = bytes.get(..=slash).unwrap_or_default().to_vec();
                    let folder = points.entry(folder).or_default();
                    folder.region.get_or_insert_default();
                    folder.lengths |= length_bit(more);
                }
            }
            Atom::Suffix(_)
            | Atom::Like(_)
            | Atom::Content(_)
            | Atom::Address(_)
            | Atom::Port(..)
            | Atom::Protocol(_)
            | Atom::HasHost
            | Atom::Host(_)
            | Atom::HostEnds(_)
            | Atom::Agent(_) => {}
        }
    }
    let mut fold = Fold::new(pieces, Dimension::First, FACETS);
    let mut labels = Held::default();
    let mut around: Vec<(&[u8], Option<AtomId>, &[AtomId])> = Vec::new();
    for (name, point) in &points {
        while let Some((region, atom, held)) = around.last()
            && !name.starts_with(region)
        {
            atom.iter().for_each(|atom| fold.set(*atom, false));
            labels.leave(held, &mut fold);
            around.pop();
        }
        if let Some(atom) = point.region {
            atom.iter().for_each(|atom| fold.set(*atom, true));
            labels.enter(&point.labels, &mut fold);
            around.push((name, atom, &point.labels));
            let cell = PlaceCell { lengths: point.lengths, ..cell(&mut fold) };
            let place = match name.strip_suffix(b"/") {
                Some(folder) => (PlaceKind::Beneath, folder.to_vec()),
                None => (PlaceKind::Prefix, name.clone()),
            };
            cells.insert(place, cell);
        }
        if let Some(atom) = point.object {
            atom.iter().for_each(|atom| fold.set(*atom, true));
            labels.enter(&point.own_labels, &mut fold);
            cells.insert((PlaceKind::Object, name.clone()), cell(&mut fold));
            labels.leave(&point.own_labels, &mut fold);
            atom.iter().for_each(|atom| fold.set(*atom, false));
        }
    }
    fold.end()
}

/// How many of the places around a point give each label, which holds while any does.
#[derive(Default)]
struct Held(HashMap<AtomId, usize>);

impl Held {
    fn enter(&mut self, labels: &[AtomId], fold: &mut Fold<'_>) {
        for label in labels {
            let count = self.0.entry(*label).or_default();
            *count += 1;
            if *count == 1 {
                fold.set(*label, true);
            }
        }
    }

    fn leave(&mut self, labels: &[AtomId], fold: &mut Fold<'_>) {
        for label in labels {
            let count = self.0.entry(*label).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                fold.set(*label, false);
            }
        }
    }
}

/// Folds what paths end with: as above, with every name from its last byte on.
fn by_end(pieces: &Pieces<'_>, cells: &mut BTreeMap<Place, PlaceCell>) -> Classes {
    let mut fold = Fold::new(pieces, Dimension::Second, FACETS);
    if fold.is_idle() {
        return fold.end();
    }
    let mut points: BTreeMap<Vec<u8>, AtomId> = BTreeMap::new();
    let mut whole = cell(&mut fold);
    for (id, atom) in pieces.atoms().iter() {
        if let Atom::Suffix(bytes) = atom {
            points.insert(bytes.iter().rev().copied().collect(), id);
            whole.lengths |= length_bit(bytes.len());
            whole.longest = whole.longest.max(bytes.len() as u32);
        }
    }
    cells.insert((PlaceKind::Suffix, Vec::new()), whole);
    let mut around: Vec<(&[u8], AtomId)> = Vec::new();
    for (name, atom) in &points {
        while let Some((region, atom)) = around.last()
            && !name.starts_with(region)
        {
            fold.set(*atom, false);
            around.pop();
        }
        fold.set(*atom, true);
        around.push((name, *atom));
        let bytes = name.iter().rev().copied().collect();
        cells.insert((PlaceKind::Suffix, bytes), cell(&mut fold));
    }
    fold.end()
}

/// Folds patterns: the automaton's states that say anything.
fn by_pattern(pieces: &Pieces<'_>, made: &mut Places) -> Result<Classes, TooMuch> {
    let mut fold = Fold::new(pieces, Dimension::Third, FACETS);
    if fold.is_idle() {
        return Ok(fold.end());
    }
    let mut atoms: Vec<AtomId> = Vec::new();
    let mut patterns: Vec<Pattern> = Vec::new();
    for (id, atom) in pieces.atoms().iter() {
        if let Atom::Like(pattern) = atom {
            atoms.push(id);
            patterns.push(pattern.clone());
        }
    }
    let last = atoms.last().copied().unwrap_or_default();
    let only: Vec<_> = atoms.iter().map(|atom| pieces.only(*atom)).collect();
    // Of rules that match, the first is told: one pattern outdoes another when it stands first in rules
    // of the same effect for all that the other is for.
    let outdoes = |one: usize, other: usize| {
        let (Some(Some(these)), Some(Some(those))) = (only.get(one), only.get(other)) else {
            return false;
        };
        one != other
            && those.iter().all(|that| {
                these.iter().any(|this| {
                    this.effect == that.effect
                        && this.facets & that.facets == that.facets
                        && (this.rule, one) < (that.rule, other)
                })
            })
    };
    let automaton =
        Automaton::new(&patterns, outdoes).map_err(|TooManyStates| TooMuch::Patterns(last))?;
    debug_assert!(automaton.rows.len() <= STATES_MAX);
    let mut known: HashMap<&[usize], PlaceCell> = HashMap::new();
    let mut held: BTreeSet<AtomId> = BTreeSet::new();
    for (state, matched) in &automaton.matched {
        let said = match known.get(matched.as_slice()) {
            Some(cell) => *cell,
            None => {
                let now: BTreeSet<AtomId> =
                    matched.iter().filter_map(|index| atoms.get(*index).copied()).collect();
                held.difference(&now).for_each(|atom| fold.set(*atom, false));
                now.difference(&held).for_each(|atom| fold.set(*atom, true));
                held = now;
                let cell = cell(&mut fold);
                known.insert(matched, cell);
                cell
            }
        };
        if said != PlaceCell::default() && *state != STATE_START {
            made.cells.insert((PlaceKind::State, state.to_be_bytes().to_vec()), said);
        }
    }
    debug_assert!(automaton.rows.iter().all(|(state, _)| *state != STATE_DEAD));
    made.patterns = automaton.rows.into_iter().collect();
    Ok(fold.end())
}
