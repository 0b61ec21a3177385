//! Checked policies become one agent's tables: what the kernel half is to find of each place and of
//! each peer.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use agent_ebpf::{
    Action, Config, Facet, JoinKey, NUMBERED, ObjectCell, Pair, PathHash, PatternRow, PeerCell,
    PeerFacet, PeerKey, PlaceCell, PlaceKey, PlaceKind, Privilege, RULE_FIRST, RULE_NONE,
    RULE_PROTECTED, RuleId, SocketKind,
};
use zerocopy::IntoBytes;

use super::diagnostic::{Diagnostic, PolicyError};
use super::fold::{JOINS_MAX, Piece, Pieces};
use super::formula::{AgentTest, Atom, AtomId, Atoms, Expr, Formula, Test};
use super::hosts::Hosts;
use super::pattern::STATES_MAX;
use super::peers;
use super::places::{self, Place, TooMuch};
use super::rule::{Agent, Effect, Protected, Rule, RuleInfo};
use super::scope::Type;

/// The id under which the built-in forbids are reported.
pub const PROTECTED_ID: &str = "ambit:protected";

/// One agent's policy as tables. Agents whose tables are equal may share them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lowered {
    /// What is said of places, of kinds of sockets and of privileges.
    pub places: BTreeMap<Place, PlaceCell>,
    /// What is forbidden at places, for the objects that are found there.
    pub forbidden: Arc<BTreeMap<Vec<u8>, ObjectCell>>,
    /// Paths of programs of which rules ask for the content.
    pub programs: Arc<BTreeSet<Vec<u8>>>,
    /// The automaton of patterns, by state.
    pub patterns: BTreeMap<u32, [u16; 256]>,
    /// What is said of peers.
    pub peers: BTreeMap<PeerKey, PeerCell>,
    /// What rules that join dimensions say.
    pub joins: BTreeMap<JoinKey, Pair>,
    /// What is said of host names.
    pub hosts: Hosts,
    /// The rules, by number: the first is [`RULE_FIRST`].
    pub rules: Vec<Arc<RuleInfo>>,
}

/// Two places have the same key under these secrets, so neither could be told from the other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "two of the policy's paths share one key under this boot's secrets; draw new secrets and load again"
)]
pub struct Collision;

impl Lowered {
    /// The id of the policy with this number; `None` for [`RULE_NONE`] and numbers not in use.
    #[must_use]
    pub fn rule_name(&self, rule: RuleId) -> Option<&str> {
        match rule {
            RULE_NONE => None,
            RULE_PROTECTED => Some(PROTECTED_ID),
            _ => self.rule(rule).map(|info| info.id.as_str()),
        }
    }

    /// The policy with this number; `None` for built-in rules and numbers not in use.
    #[must_use]
    pub fn rule(&self, rule: RuleId) -> Option<&RuleInfo> {
        let index = rule.checked_sub(RULE_FIRST)?;
        self.rules.get(usize::try_from(index).ok()?).map(AsRef::as_ref)
    }

    /// The table of places as the kernel half keys it.
    ///
    /// # Errors
    /// [`Collision`], which is as likely as guessing a 64-bit number: draw new secrets.
    pub fn keyed_places(&self, config: &Config) -> Result<HashMap<PlaceKey, PlaceCell>, Collision> {
        let mut keyed = HashMap::with_capacity(self.places.len());
        for ((kind, bytes), cell) in &self.places {
            let key = match (kind, bytes.as_slice()) {
                (PlaceKind::State, [a, b, c, d]) => {
                    PlaceKey::state(u32::from_be_bytes([*a, *b, *c, *d]))
                }
                (PlaceKind::Socket | PlaceKind::Privilege, [code]) => {
                    PlaceKey { hash: u64::from(*code), len: 0, kind: *kind as u32 }
                }
                _ => PathHash::of(config, *kind, bytes),
            };
            if keyed.insert(key, *cell).is_some() {
                return Err(Collision);
            }
        }
        Ok(keyed)
    }

    /// Whether rules ask for the content of programs.
    #[must_use]
    pub fn asks_contents(&self) -> bool {
        let first = (PlaceKind::Content, Vec::new());
        self.places.range(first..).next().is_some_and(|((kind, _), _)| *kind == PlaceKind::Content)
    }

    /// The automaton as the kernel half has it.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = (u32, PatternRow)> {
        self.patterns.iter().map(|(state, next)| (*state, PatternRow { next: *next }))
    }
}

impl Hash for Lowered {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for (place, cell) in &self.places {
            (place.0 as u8, &place.1).hash(state);
            cell.as_bytes().hash(state);
        }
        self.patterns.hash(state);
        for (key, cell) in &self.peers {
            key.hash(state);
            cell.as_bytes().hash(state);
        }
        for (key, pair) in &self.joins {
            key.hash(state);
            pair.hash(state);
        }
        self.hosts.hash(state);
        self.rules.hash(state);
    }
}

/// What rules on places, and on peers, are judged as.
const PLACES: [(Action, Type, Facet); Facet::ALL.len()] = [
    (Action::Read, Type::File, Facet::ReadFile),
    (Action::Read, Type::Dir, Facet::ReadDir),
    (Action::Write, Type::File, Facet::WriteFile),
    (Action::Write, Type::Dir, Facet::WriteDir),
    (Action::Exec, Type::Program, Facet::ExecProgram),
    (Action::Connect, Type::UnixSocket, Facet::ConnectSocket),
    (Action::Bind, Type::UnixSocket, Facet::BindSocket),
];
const PEERS: [(Action, PeerFacet); PeerFacet::ALL.len()] = [
    (Action::Connect, PeerFacet::Connect),
    (Action::Bind, PeerFacet::Bind),
    (Action::Listen, PeerFacet::Listen),
];
/// What has a number and no path, and where its cells are. Its place here is its bit in [`Rests`].
const NUMBERS: [(Action, Type, PlaceKind); 2] = [
    (Action::Socket, Type::SocketFamily, PlaceKind::Socket),
    (Action::Privilege, Type::Privilege, PlaceKind::Privilege),
];

/// What is left of a rule, each with the facets under which it is, one bit for each.
type Rests = Vec<(Formula, u32)>;

/// The same of one rule, or all atoms that rules ask for: on places, on peers, and on what has a number.
#[derive(Default)]
struct Each<T> {
    places: T,
    peers: T,
    numbers: T,
}

/// What is left of a rule.
fn rests(
    rule: &Rule,
    known: &impl Fn(&AgentTest) -> Option<bool>,
    atoms: &mut Each<Atoms>,
) -> Each<Rests> {
    let mut found = Each::<Rests>::default();
    let add = |found: &mut Rests, formula: Formula, bit: u32| {
        if formula == Formula::Const(false) {
            return;
        }
        match found.iter_mut().find(|(other, _)| *other == formula) {
            Some((_, bits)) => *bits |= 1 << bit,
            None => found.push((formula, 1 << bit)),
        }
    };
    // Of the places of a label some are no folders.
    let plain = matches!(&rule.condition, Expr::All(parts) if parts.is_empty())
        && !matches!(rule.resource, Expr::Test(Test::Labelled(_)));
    let whole = Expr::All(vec![rule.resource.clone(), rule.condition.clone()]);
    for (action, kind, facet) in PLACES {
        if !rule.facets.contains(&facet) {
            continue;
        }
        // Only of unix sockets some lie outside of the root folder.
        if plain
            && kind != Type::UnixSocket
            && let Some((_, bits)) = found.places.first_mut()
        {
            *bits |= 1 << facet as u32;
            continue;
        }
        let formula = whole.rest(known, action, kind, &mut atoms.places);
        add(&mut found.places, formula, facet as u32);
    }
    for (action, facet) in PEERS {
        if rule.peers.contains(&facet) {
            let formula = whole.rest(known, action, Type::Peer, &mut atoms.peers);
            add(&mut found.peers, formula, facet as u32);
        }
    }
    for (bit, (action, kind, _)) in (0..).zip(NUMBERS) {
        if rule.numbered.contains(&kind) {
            let formula = whole.rest(known, action, kind, &mut atoms.numbers);
            add(&mut found.numbers, formula, bit);
        }
    }
    found
}

/// What is left of a rule for this agent, action and type of resource.
pub(super) fn rest(
    rule: &Rule,
    agent: &Agent,
    action: Action,
    kind: Type,
    atoms: &mut Atoms,
) -> Formula {
    let meant = match kind.facet(action) {
        Some(facet) => rule.facets.contains(&facet),
        None if kind.is_numbered() => rule.numbered.contains(&kind),
        None => PeerFacet::of(action).is_some_and(|facet| rule.peers.contains(&facet)),
    };
    if !meant || rule.who.as_ref().is_some_and(|who| !who.holds(agent)) {
        return Formula::Const(false);
    }
    let whole = Expr::All(vec![rule.resource.clone(), rule.condition.clone()]);
    whole.rest(&|test| Some(test.holds(agent)), action, kind, atoms)
}

/// True when a rule can hold of destinations whose address has a name, and of no other.
pub(super) fn only_named(rule: &Rule) -> bool {
    let mut atoms = Atoms::default();
    let whole = Expr::All(vec![rule.resource.clone(), rule.condition.clone()]);
    let left = whole.rest(&|_| None, Action::Connect, Type::Peer, &mut atoms);
    let asks = |id: AtomId| {
        matches!(atoms.get(id), Some(Atom::HasHost | Atom::Host(_) | Atom::HostEnds(_)))
    };
    let nameless = left.rest(&|id| asks(id).then_some(false));
    rule.peers.contains(&PeerFacet::Connect)
        && left != Formula::Const(false)
        && nameless == Formula::Const(false)
}

/// True when nothing can ever be left of a rule, whoever the agent.
pub(super) fn never(rule: &Rule) -> bool {
    let found = rests(rule, &|_| None, &mut Each::default());
    found.places.is_empty() && found.peers.is_empty() && found.numbers.is_empty()
}

/// Adds the objects that a rule forbids whatever they are called: those at each place that one
/// alternative of it is, and is no more than that.
fn forbid(
    objects: &mut BTreeMap<Vec<u8>, ObjectCell>,
    atoms: &Atoms,
    formula: &Formula,
    facets: u32,
    rule: RuleId,
) {
    let mut add = |path: &[u8], beneath: bool| {
        let cell = objects.entry(path.to_vec()).or_default();
        let rules = if beneath { &mut cell.beneath } else { &mut cell.exact };
        for (facet, known) in rules.iter_mut().enumerate() {
            if facets & 1 << facet != 0 {
                let pair = |forbid| Pair { permit: RULE_NONE, forbid };
                *known = pair(*known).and(pair(rule)).forbid;
            }
        }
    };
    let alternatives = formula.clone().alternatives();
    let places: HashSet<&Atom> = alternatives
        .iter()
        .filter_map(|one| match one {
            Formula::Atom(id) => atoms.get(*id),
            _ => None,
        })
        .collect();
    if alternatives.contains(&Formula::Const(true)) {
        add(b"/", true);
    }
    for place in &places {
        match place {
            Atom::Object(path) if path.starts_with(b"/") => add(path, false),
            Atom::Beneath(folder) if folder.is_empty() => add(b"/", true),
            Atom::Labelled(label, objects) => {
                for (path, beneath) in
                    label.places(*objects).filter(|(path, _)| path.starts_with('/'))
                {
                    if path != "/" {
                        add(path.as_bytes(), false);
                    }
                    if beneath {
                        add(path.as_bytes(), true);
                    }
                }
            }
            // What is forbidden of objects beneath a folder is forbidden of the folder too.
            Atom::Beneath(folder) if places.contains(&Atom::Object(folder.clone())) => {
                add(folder, true);
            }
            _ => {}
        }
    }
}

/// The cells of what has a number: each says all that holds of it.
fn numbered(pieces: &[Piece], atoms: &Atoms, cells: &mut BTreeMap<Place, PlaceCell>) {
    let sockets = SocketKind::ALL.iter().map(|one| (0, one.name(), *one as u8));
    let privileges = Privilege::ALL.iter().map(|one| (1, one.name(), *one as u8));
    for (bit, name, code) in sockets.chain(privileges) {
        let Some((_, _, kind)) = NUMBERS.get(bit) else { continue };
        let is = |id| atoms.get(id) == Some(&Atom::Object(name.as_bytes().to_vec()));
        let holding = pieces
            .iter()
            .filter(|piece| piece.facets & 1 << bit != 0 && piece.formula.holds(&is))
            .map(|piece| match piece.effect {
                Effect::Permit => Pair { permit: piece.rule, forbid: RULE_NONE },
                Effect::Forbid => Pair { permit: RULE_NONE, forbid: piece.rule },
            });
        let said = holding.fold(Pair::default(), Pair::and);
        if said != Pair::default() {
            let mut cell = PlaceCell::default();
            cell.pairs[NUMBERED] = said;
            cells.insert((*kind, vec![code]), cell);
        }
    }
}

/// The tables of one agent. Rules for other agents, and rules that nothing can match, leave no trace.
///
/// # Errors
/// The rules need more room than there is: too many patterns, or too many that join what is told
/// apart in different ways.
pub(super) fn lower(
    rules: &[Rule],
    agent: &Agent,
    protected: &[Protected],
) -> Result<Lowered, PolicyError> {
    let mut atoms = Each::<Atoms>::default();
    let mut pieces = Each::<Vec<Piece>>::default();
    let mut forbidden = BTreeMap::new();
    for own in protected {
        let path = match own.path.as_os_str().as_bytes() {
            [rest @ .., b'/'] if !rest.is_empty() => rest,
            path => path,
        };
        let facets = own.facets.iter().fold(0, |bits, facet| bits | 1 << *facet as u32);
        let whole = Formula::Any(atoms.places.own(path, own.beneath, Type::File));
        forbid(&mut forbidden, &atoms.places, &whole, facets, RULE_PROTECTED);
        for formula in whole.alternatives() {
            let effect = Effect::Forbid;
            pieces.places.push(Piece { rule: RULE_PROTECTED, effect, facets, formula });
        }
    }
    let mut names: Vec<Arc<RuleInfo>> = Vec::new();
    let mut number = RULE_FIRST;
    let known = |test: &AgentTest| Some(test.holds(agent));
    for rule in rules.iter().filter(|rule| rule.who.as_ref().is_none_or(|who| who.holds(agent))) {
        let rests = rests(rule, &known, &mut atoms);
        if rests.places.is_empty() && rests.peers.is_empty() && rests.numbers.is_empty() {
            continue;
        }
        let effect = rule.info.effect;
        if effect == Effect::Forbid {
            for (formula, facets) in &rests.places {
                forbid(&mut forbidden, &atoms.places, formula, *facets, number);
            }
        }
        for (found, pieces) in [
            (rests.places, &mut pieces.places),
            (rests.peers, &mut pieces.peers),
            (rests.numbers, &mut pieces.numbers),
        ] {
            for (formula, facets) in found {
                let each = formula.alternatives().into_iter();
                pieces.extend(each.map(|formula| Piece { rule: number, effect, facets, formula }));
            }
        }
        names.push(rule.info.clone());
        number += 1;
    }
    let info = |rule: Option<RuleId>| {
        let index = rule.and_then(|rule| rule.checked_sub(RULE_FIRST));
        index.and_then(|index| names.get(index as usize))
    };
    let joins = |pieces: &Pieces<'_>| {
        too_much(
            info(pieces.first_joining()),
            agent,
            format!(
                "rules that join a place with a pattern, or an address with a port or a name, in more than {JOINS_MAX} ways"
            ),
            "let fewer rules join them: write the folder or the address in one policy, and what is \
             excepted from it as a `forbid` of its own",
        )
    };
    let programs = super::content::programs(&pieces.places, &atoms.places);
    let on_places = Pieces::new(pieces.places, &atoms.places);
    let mut places = places::places(&on_places).map_err(|error| match error {
        TooMuch::Joins => joins(&on_places),
        TooMuch::Contents(atom) => too_much(
            info(on_places.first_with(atom)),
            agent,
            format!("more than {} different digests", super::content::DIGESTS_MAX),
            "name the folder of the programs instead of each of them by its content",
        ),
        TooMuch::Patterns(atom) => too_much(
            info(on_places.first_with(atom)),
            agent,
            format!("patterns with `*` inside that together need more than {STATES_MAX} states"),
            "write fewer of them: patterns with one `*` at the beginning or the end, and folders, \
             have no such bound",
        ),
    })?;
    let on_peers = Pieces::new(pieces.peers, &atoms.peers);
    let peers = peers::peers(&on_peers).map_err(|_| joins(&on_peers))?;
    numbered(&pieces.numbers, &atoms.numbers, &mut places.cells);
    let mut joins = places.joins;
    joins.extend(peers.joins);
    Ok(Lowered {
        places: places.cells,
        forbidden: Arc::new(forbidden),
        programs: Arc::new(programs),
        patterns: places.patterns,
        peers: peers.cells,
        joins,
        hosts: peers.hosts,
        rules: names,
    })
}

fn too_much(
    rule: Option<&Arc<RuleInfo>>,
    agent: &Agent,
    message: String,
    help: &str,
) -> PolicyError {
    let place = rule.map_or("policy", |rule| rule.place.as_str());
    Diagnostic::of_file(place, format!("for agent `{}`: {message}", agent.name), help).into()
}
