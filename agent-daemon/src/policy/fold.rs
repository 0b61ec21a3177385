//! From formulas to cells: for one dimension at a time, what holds at each of its points, kept up to
//! date while the points are walked in an order in which little changes from one to the next.
//!
//! A piece is one alternative of a rule. Pieces that ask for one dimension alone are folded into that
//! dimension's cells. Those that join dimensions give each point a class (of points at which the same
//! of them is left), and what they say of classes together stands in the table of joins.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use agent_ebpf::{JoinKey, Pair, PlaceCell, RULE_NONE, RuleId};

use super::formula::{Atom, AtomId, Atoms, Dimension, Formula};
use super::rule::Effect;

/// The most entries that the table of joins of one agent may have.
pub(super) const JOINS_MAX: usize = 1 << 20;
/// The most steps that making it may take: the classes to try what is left of each rule on, and those on which
/// it holds.
pub(super) const STEPS_MAX: usize = 1 << 26;

/// One alternative of a rule.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) rule: RuleId,
    pub(super) effect: Effect,
    /// Under which facets, one bit for each.
    pub(super) facets: u32,
    pub(super) formula: Formula,
}

impl Piece {
    /// Adds what it says of these classes together, under each of its facets.
    fn says(&self, peers: bool, classes: [u32; 3], found: &mut BTreeMap<JoinKey, Pair>) {
        let said = match self.effect {
            Effect::Permit => Pair { permit: self.rule, forbid: RULE_NONE },
            Effect::Forbid => Pair { permit: RULE_NONE, forbid: self.rule },
        };
        for facet in (0..u32::BITS).filter(|facet| self.facets & 1 << facet != 0) {
            let facet = if peers { JoinKey::PEERS | facet } else { facet };
            let pair = found.entry(JoinKey { facet, classes }).or_default();
            *pair = pair.and(said);
        }
    }
}

/// What a piece asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    /// This dimension alone.
    One(Dimension),
    /// Several, or the content.
    Several,
    /// Several, but not the address; and it holds of nothing that has no name. What it says of names stands
    /// in the table of joins once, for every address.
    Names,
}

impl Asks {
    fn of(formula: &Formula, atoms: &Atoms) -> Self {
        let dimension = |id| atoms.get(id).map(Atom::dimension);
        let mut found: Option<Dimension> = None;
        let (mut joins, mut elsewhere) = (false, false);
        formula.each_atom(&mut |id| {
            let one = dimension(id);
            joins |= found.is_some() && one != found || one == Some(Dimension::Content);
            elsewhere |= matches!(one, Some(Dimension::First | Dimension::Content));
            found = one;
        });
        if !joins {
            // What always holds is told with the first dimension, whose table always has a cell.
            return Self::One(found.unwrap_or(Dimension::First));
        }
        let nameless = |id| atoms.get(id).is_some_and(Atom::is_of_name).then_some(false);
        if !elsewhere && formula.rest(&nameless) == Formula::Const(false) {
            Self::Names
        } else {
            Self::Several
        }
    }
}

/// The pieces of one agent's rules on places, or on peers.
pub(super) struct Pieces<'a> {
    pub(super) all: Vec<Piece>,
    asks: Vec<Asks>,
    atoms: &'a Atoms,
}

impl<'a> Pieces<'a> {
    pub(super) fn new(all: Vec<Piece>, atoms: &'a Atoms) -> Self {
        let asks = all.iter().map(|piece| Asks::of(&piece.formula, atoms)).collect();
        Self { all, asks, atoms }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn atoms(&self) -> &'a Atoms {
        self.atoms
    }

    /// The first rule that joins dimensions, to speak of when there are too many.
    pub(super) fn first_joining(&self) -> Option<RuleId> {
        let joining = self.all.iter().zip(&self.asks);
        let joining = joining.filter(|(_, asks)| !matches!(asks, Asks::One(_)));
        joining.map(|(piece, _)| piece.rule).min()
    }

    /// The pieces that are this atom and no more; `None` when others ask for it too.
    pub(super) fn only(&self, atom: AtomId) -> Option<Vec<&Piece>> {
        let mut found = Vec::new();
        for piece in &self.all {
            if piece.formula == Formula::Atom(atom) {
                found.push(piece);
                continue;
            }
            let mut asks = false;
            piece.formula.each_atom(&mut |id| asks |= id == atom);
            if asks {
                return None;
            }
        }
        Some(found)
    }

    /// The first rule that asks for this atom.
    pub(super) fn first_with(&self, atom: AtomId) -> Option<RuleId> {
        let asks = |piece: &&Piece| {
            let mut found = false;
            piece.formula.each_atom(&mut |id| found |= id == atom);
            found
        };
        self.all.iter().filter(asks).map(|piece| piece.rule).min()
    }
}

/// What is left of pieces at a point of the first dimension: the piece, and the number of what is left.
pub(super) type Left = Vec<(usize, usize)>;

/// The classes of a dimension's points.
pub(super) struct Classes {
    /// First dimension: what is left of the pieces that join. Class 0 is where nothing is. Where that asks
    /// for contents, the class has [`PlaceCell::BY_CONTENT`].
    pub(super) left: HashMap<Left, u32>,
    /// What can be left, by number.
    pub(super) rests: Vec<Formula>,
    /// Whether that asks for contents.
    asked: Vec<bool>,
    numbers: HashMap<Formula, usize>,
    /// The others: the atoms that hold, of those that joining pieces ask for. Class 0 is where none does.
    pub(super) held: HashMap<Vec<AtomId>, u32>,
}

impl Default for Classes {
    /// Those of a dimension that nobody asks for: one, where nothing holds.
    fn default() -> Self {
        Self {
            left: HashMap::new(),
            rests: Vec::new(),
            asked: Vec::new(),
            numbers: HashMap::new(),
            held: HashMap::from([(Vec::new(), 0)]),
        }
    }
}

/// The walk along one dimension.
pub(super) struct Fold<'a> {
    pieces: &'a Pieces<'a>,
    dimension: Dimension,
    held: Vec<bool>,
    /// The pieces that ask for an atom.
    asking: HashMap<AtomId, Vec<usize>>,
    /// For pieces of this dimension alone, whether they hold.
    holding: Vec<bool>,
    /// By facet, the rules that hold with how many of their pieces.
    permits: Vec<BTreeMap<RuleId, u32>>,
    forbids: Vec<BTreeMap<RuleId, u32>>,
    /// What is left of joining pieces.
    left: BTreeMap<usize, usize>,
    /// The atoms that hold of those that joining pieces ask for.
    joining: BTreeSet<AtomId>,
    /// The atoms that joining pieces ask for.
    joins: BTreeSet<AtomId>,
    classes: Classes,
    class: Option<u32>,
}

impl<'a> Fold<'a> {
    /// Begins where no atom holds.
    pub(super) fn new(pieces: &'a Pieces<'a>, dimension: Dimension, facets: usize) -> Self {
        let mut fold = Self {
            pieces,
            dimension,
            held: vec![false; pieces.atoms.len()],
            asking: HashMap::new(),
            holding: vec![false; pieces.all.len()],
            permits: vec![BTreeMap::new(); facets],
            forbids: vec![BTreeMap::new(); facets],
            left: BTreeMap::new(),
            joining: BTreeSet::new(),
            joins: BTreeSet::new(),
            classes: Classes::default(),
            class: None,
        };
        for (index, piece) in pieces.all.iter().enumerate() {
            let asks = pieces.asks.get(index).copied();
            let joins = match asks {
                Some(Asks::One(of)) if of == dimension => false,
                Some(Asks::Several | Asks::Names) => true,
                Some(Asks::One(_)) | None => continue,
            };
            piece.formula.each_atom(&mut |id| {
                if pieces.atoms.get(id).map(Atom::dimension) == Some(dimension) {
                    let asking = fold.asking.entry(id).or_default();
                    if asking.last() != Some(&index) {
                        asking.push(index);
                    }
                    if joins {
                        fold.joins.insert(id);
                    }
                }
            });
            fold.reconsider(index);
        }
        // The class where nothing holds is 0.
        fold.class();
        fold
    }

    /// True when no piece asks for this dimension; the first has a table all the same.
    pub(super) fn is_idle(&self) -> bool {
        self.asking.is_empty() && self.dimension != Dimension::First
    }

    /// Makes an atom hold, or not.
    pub(super) fn set(&mut self, atom: AtomId, holds: bool) {
        let Some(held) = self.held.get_mut(atom as usize) else {
            return;
        };
        if std::mem::replace(held, holds) == holds {
            return;
        }
        if self.joins.contains(&atom) {
            self.class = None;
            if holds {
                self.joining.insert(atom);
            } else {
                self.joining.remove(&atom);
            }
        }
        let asking = self.asking.remove(&atom).unwrap_or_default();
        for index in &asking {
            self.reconsider(*index);
        }
        self.asking.insert(atom, asking);
    }

    fn reconsider(&mut self, index: usize) {
        let (Some(piece), Some(asks)) = (self.pieces.all.get(index), self.pieces.asks.get(index))
        else {
            return;
        };
        let held = |id: AtomId| self.held.get(id as usize).copied().unwrap_or(false);
        if !matches!(asks, Asks::One(_)) {
            if self.dimension != Dimension::First || *asks == Asks::Names {
                return;
            }
            let atoms = self.pieces.atoms;
            let known = |id: AtomId| {
                let dimension = atoms.get(id).map(Atom::dimension);
                (dimension == Some(Dimension::First)).then(|| held(id))
            };
            let rest = piece.formula.rest(&known);
            self.class = None;
            if rest == Formula::Const(false) {
                self.left.remove(&index);
            } else {
                let (rests, asked) = (&mut self.classes.rests, &mut self.classes.asked);
                let number = *self.classes.numbers.entry(rest).or_insert_with_key(|rest| {
                    asked.push(super::content::is_asked(rest, atoms));
                    rests.push(rest.clone());
                    rests.len() - 1
                });
                self.left.insert(index, number);
            }
            return;
        }
        let holds = piece.formula.holds(&held);
        let Some(held) = self.holding.get_mut(index) else {
            return;
        };
        if std::mem::replace(held, holds) == holds {
            return;
        }
        let rules = match piece.effect {
            Effect::Permit => &mut self.permits,
            Effect::Forbid => &mut self.forbids,
        };
        for (facet, rules) in rules.iter_mut().enumerate() {
            if piece.facets & 1 << facet == 0 {
                continue;
            }
            let count = rules.entry(piece.rule).or_default();
            *count = if holds { *count + 1 } else { count.saturating_sub(1) };
            if *count == 0 {
                rules.remove(&piece.rule);
            }
        }
    }

    /// What the pieces of this dimension alone say here, by facet.
    pub(super) fn pairs<const FACETS: usize>(&self) -> [Pair; FACETS] {
        let lowest = |rules: &[BTreeMap<RuleId, u32>], facet: usize| {
            let first = rules.get(facet).and_then(|rules| rules.first_key_value());
            first.map_or(RULE_NONE, |(rule, _)| *rule)
        };
        std::array::from_fn(|facet| Pair {
            permit: lowest(&self.permits, facet),
            forbid: lowest(&self.forbids, facet),
        })
    }

    /// The class of this point.
    pub(super) fn class(&mut self) -> u32 {
        if let Some(class) = self.class {
            return class;
        }
        let class = if self.dimension == Dimension::First {
            let left: Left = self.left.iter().map(|(piece, rest)| (*piece, *rest)).collect();
            if left.is_empty() {
                0
            } else {
                let mut next = self.classes.left.len() as u32 + 1;
                let asked = &self.classes.asked;
                if left.iter().any(|(_, rest)| asked.get(*rest) == Some(&true)) {
                    next |= PlaceCell::BY_CONTENT;
                }
                *self.classes.left.entry(left).or_insert(next)
            }
        } else {
            let held: Vec<AtomId> = self.joining.iter().copied().collect();
            let next = self.classes.held.len() as u32;
            *self.classes.held.entry(held).or_insert(next)
        };
        self.class = Some(class);
        class
    }

    /// Ends the walk.
    pub(super) fn end(self) -> Classes {
        self.classes
    }
}

/// Why there is no table of joins: it would have too many entries, or take too long to make.
#[derive(Debug)]
pub(super) struct TooManyJoins;

/// The classes of the second dimension or the third, to be found by what holds at them.
struct ByAtom<'a> {
    classes: &'a Classes,
    having: HashMap<AtomId, Vec<u32>>,
}

/// The classes of a dimension in groups that a formula cannot tell apart.
struct Groups<'a> {
    /// The atoms of it that hold in a group, where any does; and the group.
    met: Vec<(Vec<AtomId>, Vec<u32>)>,
    /// Where none does: found when asked for, since they are many and most formulas hold at none.
    others: OnceCell<Vec<u32>>,
    classes: &'a Classes,
}

impl<'a> ByAtom<'a> {
    fn new(classes: &'a Classes) -> Self {
        let mut having: HashMap<AtomId, Vec<u32>> = HashMap::new();
        for (held, class) in &classes.held {
            for id in held {
                having.entry(*id).or_default().push(*class);
            }
        }
        Self { classes, having }
    }

    fn groups(&self, asked: &BTreeSet<AtomId>) -> Groups<'a> {
        let mut met: HashMap<u32, Vec<AtomId>> = HashMap::new();
        for id in asked {
            for class in self.having.get(id).into_iter().flatten() {
                met.entry(*class).or_default().push(*id);
            }
        }
        let mut alike: HashMap<Vec<AtomId>, Vec<u32>> = HashMap::new();
        for (class, held) in met {
            alike.entry(held).or_default().push(class);
        }
        let met = alike.into_iter().collect();
        Groups { met, others: OnceCell::new(), classes: self.classes }
    }
}

impl Groups<'_> {
    /// The atoms that hold in each group: in the last, none.
    fn each(&self) -> impl Iterator<Item = (usize, &[AtomId])> {
        self.met.iter().map(|(held, _)| held.as_slice()).chain([[].as_slice()]).enumerate()
    }

    fn classes(&self, group: usize) -> &[u32] {
        match self.met.get(group) {
            Some((_, classes)) => classes,
            None => self.others.get_or_init(|| {
                let met = self.met.iter().flat_map(|(_, classes)| classes);
                let met: HashSet<u32> = met.copied().collect();
                self.classes.held.values().filter(|class| !met.contains(class)).copied().collect()
            }),
        }
    }
}

/// What the pieces that join dimensions say of the classes that can meet.
///
/// # Errors
/// More than [`JOINS_MAX`] entries, or [`STEPS_MAX`] steps.
pub(super) fn joins(
    pieces: &Pieces<'_>,
    [first, second, third]: [&Classes; 3],
    peers: bool,
) -> Result<BTreeMap<JoinKey, Pair>, TooManyJoins> {
    // By what is left: the classes of the first dimension where it is, with the pieces. Many leave the same.
    let mut left: Vec<Vec<(u32, usize)>> = vec![Vec::new(); first.rests.len()];
    for (pieces, class) in &first.left {
        for (piece, rest) in pieces {
            left.get_mut(*rest).into_iter().for_each(|left| left.push((*class, *piece)));
        }
    }
    // What asks for content is joined on its own.
    let left = first.rests.iter().zip(&first.asked).zip(left).filter(|((_, asked), _)| !**asked);
    let left = left.map(|((rest, _), left)| (rest, left));
    let named = pieces.all.iter().zip(&pieces.asks).enumerate();
    let named = named.filter(|(_, (_, asks))| **asks == Asks::Names);
    let named = named.map(|(index, (piece, _))| (&piece.formula, vec![(JoinKey::ANY, index)]));
    let dimensions = [ByAtom::new(second), ByAtom::new(third)];
    let mut found: BTreeMap<JoinKey, Pair> = BTreeMap::new();
    let mut steps = 0usize;
    for (rest, left) in left.chain(named) {
        let mut asked = BTreeSet::new();
        let mut names = !peers;
        rest.each_atom(&mut |id| {
            asked.insert(id);
            names |= pieces.atoms.get(id).is_some_and(Atom::is_of_name);
        });
        let [second, third] = dimensions.each_ref().map(|dimension| dimension.groups(&asked));
        for (seconds, in_second) in second.each() {
            for (thirds, in_third) in third.each() {
                steps += 1;
                if !rest.holds(&|id| in_second.contains(&id) || in_third.contains(&id)) {
                    continue;
                }
                let seconds = second.classes(seconds);
                let thirds = if names { third.classes(thirds) } else { &[JoinKey::ANY] };
                let entries = seconds.len().saturating_mul(thirds.len()).saturating_mul(left.len());
                steps = steps.saturating_add(entries);
                if steps > STEPS_MAX {
                    return Err(TooManyJoins);
                }
                for (class, index) in &left {
                    let Some(piece) = pieces.all.get(*index) else { continue };
                    for second in seconds {
                        for third in thirds {
                            piece.says(peers, [*class, *second, *third], &mut found);
                        }
                        if found.len() > JOINS_MAX {
                            return Err(TooManyJoins);
                        }
                    }
                }
            }
        }
    }
    Ok(found)
}
