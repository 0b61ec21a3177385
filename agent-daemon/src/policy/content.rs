//! Rules on the content of programs: their digests, and what they say where the other dimensions meet.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use agent_ebpf::{Facet, JoinKey, Pair, PlaceCell, PlaceKind, RULE_NONE};

use super::fold::{Classes, JOINS_MAX, Piece, Pieces, STEPS_MAX};
use super::formula::{Atom, AtomId, Atoms, Formula};
use super::places::{Places, TooMuch};
use super::rule::Effect;

/// The most different digests that the rules for one agent may name.
pub const DIGESTS_MAX: usize = 1 << 14;

/// A SHA-256 digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Takes 64 hexadecimal digits in lower case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let lawful = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 64 || !text.as_bytes().iter().all(lawful) {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The digest that an atom asks for.
fn digest(atoms: &Atoms, id: AtomId) -> Option<Digest> {
    match atoms.get(id) {
        Some(Atom::Content(digest)) => Some(*digest),
        _ => None,
    }
}

/// Whether this asks for contents.
pub(super) fn is_asked(formula: &Formula, atoms: &Atoms) -> bool {
    let mut found = false;
    formula.each_atom(&mut |id| found |= digest(atoms, id).is_some());
    found
}

/// The paths that rules name together with contents.
pub(super) fn programs(pieces: &[Piece], atoms: &Atoms) -> BTreeSet<Vec<u8>> {
    let asking = pieces.iter().filter(|piece| is_asked(&piece.formula, atoms));
    let mut found = BTreeSet::new();
    for piece in asking {
        piece.formula.each_atom(&mut |id| {
            if let Some(Atom::Object(path)) = atoms.get(id) {
                found.insert(path.clone());
            }
        });
    }
    found
}

/// A rule with what is left of it where it depends on nothing but content.
type Asking<'a> = (&'a Piece, &'a Formula);

/// Adds a class for each content that rules name, and what they say of it wherever they ask for it.
///
/// # Errors
/// There are too many digests, or too many combinations.
pub(super) fn join(
    pieces: &Pieces<'_>,
    [first, second, third]: [&Classes; 3],
    made: &mut Places,
) -> Result<(), TooMuch> {
    let atoms = pieces.atoms();
    let mut classes: HashMap<AtomId, u32> = HashMap::new();
    for (id, _) in atoms.iter() {
        let Some(digest) = digest(atoms, id) else { continue };
        let class = classes.len() as u32 + 1;
        if classes.len() == DIGESTS_MAX {
            return Err(TooMuch::Contents(id));
        }
        classes.insert(id, class);
        let cell = PlaceCell { class, ..PlaceCell::default() };
        made.cells.insert((PlaceKind::Content, digest.0.to_vec()), cell);
    }
    if classes.is_empty() {
        return Ok(());
    }
    // What is left of each where second and third dimension are known, and content is asked for or not.
    let mut steps = 0usize;
    let mut rests: Vec<Vec<((u32, u32), Formula)>> = Vec::with_capacity(first.rests.len());
    for rest in &first.rests {
        let mut found = Vec::new();
        if is_asked(rest, atoms) {
            for (in_second, class) in &second.held {
                for (in_third, other) in &third.held {
                    let known = |id: AtomId| {
                        (!classes.contains_key(&id)).then(|| {
                            in_second.binary_search(&id).is_ok()
                                || in_third.binary_search(&id).is_ok()
                        })
                    };
                    let left = rest.rest(&known);
                    if left != Formula::Const(false) {
                        found.push(((*class, *other), left));
                    }
                    steps += 1;
                }
            }
        }
        if steps > STEPS_MAX {
            return Err(TooMuch::Joins);
        }
        rests.push(found);
    }
    for (left, class) in &first.left {
        let mut asking: BTreeMap<(u32, u32), Vec<Asking<'_>>> = BTreeMap::new();
        for (index, rest) in left {
            let (Some(piece), Some(places)) = (pieces.all.get(*index), rests.get(*rest)) else {
                continue;
            };
            for (place, formula) in places {
                steps += 1;
                if *formula == Formula::Const(true) {
                    let (facet, (second, third)) = (Facet::ExecProgram as u32, *place);
                    let key = JoinKey { facet, classes: [*class, second, third] };
                    let pair = made.joins.entry(key).or_default();
                    *pair = pair.and(says_one(piece));
                } else {
                    asking.entry(*place).or_default().push((piece, formula));
                }
            }
        }
        for ((second, third), asking) in asking {
            let at = |mark: u32| JoinKey {
                facet: Facet::ExecProgram as u32 | mark,
                classes: [*class, second, third],
            };
            let said = says(&asking, atoms);
            steps += said.steps;
            let mut possible = said.other;
            made.joins.insert(at(JoinKey::content(0)), said.other);
            for (atom, pair) in said.named {
                possible = possible.and(pair);
                let class = classes.get(&atom).copied().unwrap_or_default();
                made.joins.insert(at(JoinKey::content(class)), pair);
            }
            made.joins.insert(at(JoinKey::CONTENTS), possible);
            if made.joins.len() > JOINS_MAX || steps > STEPS_MAX {
                return Err(TooMuch::Joins);
            }
        }
    }
    Ok(())
}

/// What rules say of contents.
struct Says {
    /// Of every content that none of them names.
    other: Pair,
    /// Of those that one names.
    named: Vec<(AtomId, Pair)>,
    /// What it took to find out.
    steps: usize,
}

const fn says_one(piece: &Piece) -> Pair {
    match piece.effect {
        Effect::Permit => Pair { permit: piece.rule, forbid: RULE_NONE },
        Effect::Forbid => Pair { permit: RULE_NONE, forbid: piece.rule },
    }
}

fn says(asking: &[Asking<'_>], atoms: &Atoms) -> Says {
    let one = |(piece, _): &Asking<'_>| says_one(piece);
    let mut naming: BTreeMap<AtomId, BTreeSet<usize>> = BTreeMap::new();
    // Those that hold of other contents, the lowest rules first.
    let mut others: Vec<usize> = Vec::new();
    let mut steps = 0usize;
    for (index, (_, formula)) in asking.iter().enumerate() {
        let mut named = 0usize;
        formula.each_atom(&mut |id| {
            named += 1;
            debug_assert!(digest(atoms, id).is_some());
            naming.entry(id).or_default().insert(index);
        });
        steps = steps.saturating_add(named.saturating_mul(named));
        if formula.holds(&|_| false) {
            others.push(index);
        }
    }
    others.sort_by_key(|index| asking.get(*index).map(|(piece, _)| piece.rule));
    let lowest = |effect: Effect, except: Option<&BTreeSet<usize>>| {
        let of = others.iter().filter(|index| except.is_none_or(|except| !except.contains(index)));
        let mut of = of.filter_map(|index| asking.get(*index));
        of.find(|(piece, _)| piece.effect == effect).map_or(Pair::default(), one)
    };
    let both = |except: Option<&BTreeSet<usize>>| {
        lowest(Effect::Permit, except).and(lowest(Effect::Forbid, except))
    };
    let named = naming.iter().map(|(atom, indices)| {
        let holding = indices.iter().filter_map(|index| asking.get(*index));
        let holding = holding.filter(|(_, formula)| formula.holds(&|id| id == *atom));
        (*atom, holding.map(one).fold(both(Some(indices)), Pair::and))
    });
    Says { other: both(None), named: named.collect(), steps }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_sha256sum_prints_and_nothing_else() {
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let digest = Digest::parse(text).unwrap();
        assert_eq!((digest.0[0], digest.0[31]), (0xe3, 0x55));
        assert_eq!(digest.to_string(), text);
        for wrong in
            ["", &text[1..], &format!("{text}0"), &text.to_uppercase(), &text.replace('e', "g")]
        {
            assert_eq!(Digest::parse(wrong), None, "{wrong}");
        }
    }
}
