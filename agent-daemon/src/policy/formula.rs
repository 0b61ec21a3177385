//! What a policy asks, as a boolean formula; and what is left of it for one agent, one action and one
//! type of resource: a formula over atoms that the kernel half can tell.

use std::collections::HashMap;
use std::sync::Arc;

use agent_ebpf::Action;

use super::content::Digest;
use super::labels::Labelled;
use super::pattern::{Pattern, Simple};
use super::peers::Net;
use super::rule::{Agent, Attribute};
use super::scope::Type;

/// A policy's scope and conditions.
#[derive(Clone, Debug)]
pub(super) enum Expr {
    Const(bool),
    Test(Test),
    Not(Box<Expr>),
    All(Vec<Expr>),
    Any(Vec<Expr>),
    /// Condition, then, else.
    If(Box<[Expr; 3]>),
}

/// One question, about the agent, the action or the resource.
#[derive(Clone, Debug)]
pub(super) enum Test {
    Agent(AgentTest),
    Action(Action),
    Type(Type),
    /// The resource is this very place.
    Same(Type, String),
    /// The resource is this folder or lies beneath it.
    Within(String),
    /// The resource has this label.
    Labelled(Arc<Labelled>),
    Path(Text),
    /// The program's content has this digest.
    Content(Digest),
    Address(Net),
    /// First and last port.
    Port(u16, u16),
    Protocol(Protocols),
    /// The peer's address is known by a name.
    HasHost,
    Host(Text),
}

/// One question about an agent, answered when the policy is loaded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum AgentTest {
    Is(String),
    In(String),
    Has(Attribute),
    Attribute(Attribute, Text),
    Label(String),
}

impl AgentTest {
    pub(super) fn holds(&self, agent: &Agent) -> bool {
        match self {
            Self::Is(name) => name == agent.name.as_str(),
            Self::In(group) => agent.groups.contains(group),
            Self::Has(attribute) => agent.attribute(*attribute).is_some(),
            Self::Attribute(attribute, text) => {
                agent.attribute(*attribute).is_some_and(|is| text.holds(is.as_bytes()))
            }
            Self::Label(label) => agent.attributes.labels.contains(label),
        }
    }
}

/// A question about a text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Text {
    Equals(String),
    Like(Pattern),
}

impl Text {
    pub(super) fn holds(&self, text: &[u8]) -> bool {
        match self {
            Self::Equals(is) => is.as_bytes() == text,
            Self::Like(pattern) => pattern.matches(text),
        }
    }
}

/// A set of IP protocol numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Protocols([u64; 4]);

impl Protocols {
    /// Those for which this holds.
    pub(super) fn of(holds: impl Fn(u8) -> bool) -> Self {
        let mut words = [0; 4];
        for number in (0..=u8::MAX).filter(|number| holds(*number)) {
            words[usize::from(number / 64)] |= 1 << (number % 64);
        }
        Self(words)
    }

    pub(super) fn contains(self, number: u8) -> bool {
        self.0[usize::from(number / 64)] & 1 << (number % 64) != 0
    }

    fn and(self, other: Self) -> Self {
        Self::of(|number| self.contains(number) && other.contains(number))
    }
}

impl Expr {
    pub(super) fn not(self) -> Self {
        Self::Not(Box::new(self))
    }

    pub(super) fn any(tests: impl IntoIterator<Item = Test>) -> Self {
        Self::Any(tests.into_iter().map(Self::Test).collect())
    }

    /// Calls this with everything that it asks of the agent.
    pub(super) fn each_question(&self, call: &mut impl FnMut(&AgentTest)) {
        self.each_test(&mut |test| {
            if let Test::Agent(test) = test {
                call(test);
            }
        });
    }

    /// Calls this with everything that it asks.
    pub(super) fn each_test(&self, call: &mut impl FnMut(&Test)) {
        match self {
            Self::Test(test) => call(test),
            Self::Const(_) => {}
            Self::Not(of) => of.each_test(call),
            Self::All(parts) | Self::Any(parts) => {
                parts.iter().for_each(|part| part.each_test(call));
            }
            Self::If(parts) => parts.iter().for_each(|part| part.each_test(call)),
        }
    }

    /// What is left of it for a resource of this type under this action, once it is known what holds
    /// of the agent (`None` when it is not). The parts of `&&` and `||` are taken in order, as Cedar does.
    pub(super) fn rest(
        &self,
        known: &impl Fn(&AgentTest) -> Option<bool>,
        action: Action,
        kind: Type,
        atoms: &mut Atoms,
    ) -> Formula {
        match self {
            Self::Const(is) => Formula::Const(*is),
            Self::Test(test) => test.rest(known, action, kind, atoms),
            Self::Not(of) => of.rest(known, action, kind, atoms).not(),
            Self::All(parts) => {
                let mut kept = Vec::with_capacity(parts.len());
                for part in parts {
                    match part.rest(known, action, kind, atoms) {
                        Formula::Const(true) => {}
                        Formula::Const(false) => return Formula::Const(false),
                        Formula::All(inner) => kept.extend(inner),
                        other => kept.push(other),
                    }
                }
                atoms.all(kept)
            }
            Self::Any(parts) => {
                let mut kept = Vec::with_capacity(parts.len());
                for part in parts {
                    match part.rest(known, action, kind, atoms) {
                        Formula::Const(false) => {}
                        Formula::Const(true) => return Formula::Const(true),
                        Formula::Any(inner) => kept.extend(inner),
                        other => kept.push(other),
                    }
                }
                Formula::any(kept)
            }
            Self::If(parts) => {
                let [condition, then, other] = &**parts;
                match condition.rest(known, action, kind, atoms) {
                    Formula::Const(true) => then.rest(known, action, kind, atoms),
                    Formula::Const(false) => other.rest(known, action, kind, atoms),
                    condition => {
                        let then = then.rest(known, action, kind, atoms);
                        Formula::If(Box::new([
                            condition,
                            then,
                            other.rest(known, action, kind, atoms),
                        ]))
                    }
                }
            }
        }
    }
}

impl Test {
    fn rest(
        &self,
        known: &impl Fn(&AgentTest) -> Option<bool>,
        action: Action,
        kind: Type,
        atoms: &mut Atoms,
    ) -> Formula {
        let (on_places, on_peers) = (kind.is_place(), kind == Type::Peer);
        match self {
            Self::Agent(test) => match known(test) {
                Some(holds) => Formula::Const(holds),
                None => atoms.atom(Atom::Agent(test.clone())),
            },
            Self::Action(one) => Formula::Const(*one == action),
            Self::Type(one) => Formula::Const(*one == kind),
            Self::Same(one, path) => {
                if *one != kind {
                    return Formula::Const(false);
                }
                atoms.atom(Atom::Object(path.clone().into_bytes()))
            }
            Self::Within(path) if on_places => Formula::any(atoms.own(path.as_bytes(), true, kind)),
            Self::Labelled(label) if on_places => atoms.labelled(label, kind),
            Self::Path(text) if on_places => atoms.path(text, kind),
            Self::Content(digest) if kind == Type::Program => atoms.atom(Atom::Content(*digest)),
            Self::Address(net) if on_peers => atoms.atom(Atom::Address(*net)),
            Self::Port(0, u16::MAX) if on_peers => Formula::Const(true),
            Self::Port(first, last) if on_peers => atoms.atom(Atom::Port(*first, *last)),
            Self::Protocol(set) if on_peers => atoms.protocol(*set),
            Self::HasHost if on_peers => atoms.atom(Atom::HasHost),
            Self::Host(text) if on_peers => atoms.host(text),
            // Cedar's validator lets nobody ask for an attribute of what has none, unless it is never
            // asked; and what is in no folder is within none.
            Self::Within(_)
            | Self::Labelled(_)
            | Self::Path(_)
            | Self::Content(_)
            | Self::Address(_)
            | Self::Port(..)
            | Self::Protocol(_)
            | Self::HasHost
            | Self::Host(_) => Formula::Const(false),
        }
    }
}

/// One thing that the kernel half can tell of a resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Atom {
    /// It is the object at this path, or what has this name.
    Object(Vec<u8>),
    /// It lies beneath this folder; the empty path is the root folder's, of which only unix sockets are
    /// asked: all else lies beneath it.
    Beneath(Vec<u8>),
    /// It is in one of this label's folders; or, where that is meant too, one of its objects.
    Labelled(Arc<Labelled>, bool),
    /// Its path begins so.
    Prefix(Vec<u8>),
    /// Its path ends so.
    Suffix(Vec<u8>),
    /// Its path is of this form.
    Like(Pattern),
    /// Its content has this digest.
    Content(Digest),
    /// Its address is in this range.
    Address(Net),
    /// Its port is one of these.
    Port(u16, u16),
    /// Its protocol is one of these.
    Protocol(Protocols),
    /// Its address is known by a name.
    HasHost,
    /// By this one.
    Host(Vec<u8>),
    /// By one that ends so.
    HostEnds(Vec<u8>),
    /// Not of a resource: what stands here while the agent is not known.
    Agent(AgentTest),
}

/// What decides whether an atom holds: each is asked in a table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dimension {
    /// The path from its beginning, or the address.
    First,
    /// The path from its end, or protocol and port.
    Second,
    /// Patterns, or names.
    Third,
    /// The content of a program. What asks for it is never folded alone: it is asked last, and only where it
    /// makes a difference.
    Content,
}

impl Atom {
    /// Whether it asks for the name that a peer's address is known by. None holds of what has no name.
    pub(super) const fn is_of_name(&self) -> bool {
        matches!(self, Self::HasHost | Self::Host(_) | Self::HostEnds(_))
    }

    pub(super) const fn dimension(&self) -> Dimension {
        match self {
            Self::Object(_)
            | Self::Beneath(_)
            | Self::Labelled(..)
            | Self::Prefix(_)
            | Self::Address(_)
            | Self::Agent(_) => Dimension::First,
            Self::Suffix(_) | Self::Port(..) | Self::Protocol(_) => Dimension::Second,
            Self::Like(_) | Self::HasHost | Self::Host(_) | Self::HostEnds(_) => Dimension::Third,
            Self::Content(_) => Dimension::Content,
        }
    }
}

/// An atom's number in [`Atoms`].
pub(super) type AtomId = u32;

/// Every atom, once.
#[derive(Default)]
pub(super) struct Atoms {
    all: Vec<Atom>,
    numbers: HashMap<Atom, AtomId>,
}

impl Atoms {
    pub(super) fn get(&self, id: AtomId) -> Option<&Atom> {
        self.all.get(id as usize)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (AtomId, &Atom)> {
        (0..).zip(&self.all)
    }

    fn atom(&mut self, atom: Atom) -> Formula {
        let next = self.all.len() as AtomId;
        let id = *self.numbers.entry(atom).or_insert_with_key(|atom| {
            self.all.push(atom.clone());
            next
        });
        Formula::Atom(id)
    }

    /// The alternatives of being at this path or, where that is meant, beneath it.
    pub(super) fn own(&mut self, path: &[u8], beneath: bool, kind: Type) -> Vec<Formula> {
        if beneath && path == b"/" {
            return vec![self.in_root(kind)];
        }
        let mut found = vec![self.atom(Atom::Object(path.to_vec()))];
        if beneath {
            found.push(self.atom(Atom::Beneath(path.to_vec())));
        }
        found
    }

    /// Being where a label is. It is one atom, however many places have it.
    fn labelled(&mut self, label: &Arc<Labelled>, kind: Type) -> Formula {
        if label.dirs.contains("/") && kind != Type::UnixSocket {
            return Formula::Const(true);
        }
        // What is said of an object is not said of a folder.
        let objects = kind != Type::Dir && !label.objects.is_empty();
        if label.dirs.is_empty() && !objects {
            return Formula::Const(false);
        }
        self.atom(Atom::Labelled(label.clone(), objects))
    }

    /// Everything that has an absolute path: abstract unix addresses have none.
    fn in_root(&mut self, kind: Type) -> Formula {
        match kind {
            Type::UnixSocket => self.atom(Atom::Beneath(Vec::new())),
            _ => Formula::Const(true),
        }
    }

    fn path(&mut self, text: &Text, kind: Type) -> Formula {
        let pattern = match text {
            Text::Equals(path) => return self.atom(Atom::Object(path.clone().into_bytes())),
            Text::Like(pattern) => pattern,
        };
        match pattern.simple() {
            Some(Simple::Anything) => Formula::Const(true),
            Some(Simple::Exactly(path)) => self.atom(Atom::Object(path)),
            Some(Simple::Begins(bytes)) => self.begins(bytes, kind),
            Some(Simple::Ends(bytes)) => self.atom(Atom::Suffix(bytes)),
            Some(Simple::BeginsAndEnds(first, last)) => {
                let parts = vec![self.begins(first, kind), self.atom(Atom::Suffix(last))];
                Formula::all(parts)
            }
            None => self.atom(Atom::Like(pattern.clone())),
        }
    }

    fn begins(&mut self, bytes: Vec<u8>, kind: Type) -> Formula {
        match bytes.as_slice() {
            b"/" => self.in_root(kind),
            [b'/', folder @ .., b'/'] if !folder.is_empty() => {
                let folder = bytes[..bytes.len() - 1].to_vec();
                self.atom(Atom::Beneath(folder))
            }
            [b'/', ..] => self.atom(Atom::Prefix(bytes)),
            [b'@', ..] if kind == Type::UnixSocket => self.atom(Atom::Prefix(bytes)),
            _ => Formula::Const(false),
        }
    }

    /// Whoever asks has asked before whether there is a name: without one, none of these holds.
    fn host(&mut self, text: &Text) -> Formula {
        let pattern = match text {
            Text::Equals(name) => return self.atom(Atom::Host(name.clone().into_bytes())),
            Text::Like(pattern) => pattern,
        };
        match pattern.simple() {
            Some(Simple::Anything) => self.atom(Atom::HasHost),
            Some(Simple::Exactly(name)) => self.atom(Atom::Host(name)),
            Some(Simple::Ends(bytes)) => self.atom(Atom::HostEnds(bytes)),
            // Refused where it is read.
            Some(Simple::Begins(_) | Simple::BeginsAndEnds(..)) | None => Formula::Const(false),
        }
    }

    fn protocol(&mut self, set: Protocols) -> Formula {
        if set == Protocols::of(|_| true) {
            return Formula::Const(true);
        }
        if set == Protocols::default() {
            return Formula::Const(false);
        }
        self.atom(Atom::Protocol(set))
    }

    /// The atom that a formula is.
    fn of(&self, formula: &Formula) -> Option<(AtomId, Atom)> {
        match formula {
            Formula::Atom(id) => self.get(*id).cloned().map(|atom| (*id, atom)),
            _ => None,
        }
    }

    /// All of them; ports, protocols and ranges that are asked for more than once become one.
    fn all(&mut self, parts: Vec<Formula>) -> Formula {
        if parts.len() < 2 {
            return Formula::all(parts);
        }
        let mut port: Option<(u16, u16)> = None;
        let mut protocol: Option<Protocols> = None;
        let mut net: Option<Net> = None;
        let mut object: Option<AtomId> = None;
        let mut content: Option<AtomId> = None;
        let mut kept = Vec::with_capacity(parts.len());
        let atoms = parts.iter().filter_map(|part| self.of(part));
        let named =
            atoms.map(|(_, atom)| atom).any(|atom| atom.is_of_name() && atom != Atom::HasHost);
        for part in parts {
            match self.of(&part) {
                // What has one of some names has a name.
                Some((_, Atom::HasHost)) if named => {}
                Some((_, Atom::Port(first, last))) => {
                    let (low, high) = port.unwrap_or((0, u16::MAX));
                    port = Some((low.max(first), high.min(last)));
                }
                Some((_, Atom::Protocol(set))) => {
                    protocol = Some(protocol.map_or(set, |old| old.and(set)));
                }
                Some((_, Atom::Address(new))) => {
                    match net.map_or(Some(new), |old| old.intersection(new)) {
                        Some(both) => net = Some(both),
                        None => return Formula::Const(false),
                    }
                }
                Some((id, Atom::Object(_))) => {
                    if object.is_some_and(|other| other != id) {
                        return Formula::Const(false);
                    }
                    object = Some(id);
                }
                Some((id, Atom::Content(_))) => {
                    if content.is_some_and(|other| other != id) {
                        return Formula::Const(false);
                    }
                    content = Some(id);
                }
                _ if kept.contains(&part) => {}
                _ => kept.push(part),
            }
        }
        kept.extend(object.map(Formula::Atom));
        kept.extend(content.map(Formula::Atom));
        if let Some(net) = net {
            kept.push(self.atom(Atom::Address(net)));
        }
        if let Some((first, last)) = port {
            if first > last {
                return Formula::Const(false);
            }
            kept.push(self.atom(Atom::Port(first, last)));
        }
        if let Some(set) = protocol {
            match self.protocol(set) {
                Formula::Const(false) => return Formula::Const(false),
                Formula::Const(true) => {}
                other => kept.push(other),
            }
        }
        Formula::all(kept)
    }
}

/// What is left of an [`Expr`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Formula {
    Const(bool),
    Atom(AtomId),
    Not(Box<Formula>),
    All(Vec<Formula>),
    Any(Vec<Formula>),
    /// Condition, then, else.
    If(Box<[Formula; 3]>),
}

impl Formula {
    fn not(self) -> Self {
        match self {
            Self::Const(is) => Self::Const(!is),
            Self::Not(of) => *of,
            other => Self::Not(Box::new(other)),
        }
    }

    fn all(parts: Vec<Self>) -> Self {
        Self::join(parts, false)
    }

    fn any(parts: Vec<Self>) -> Self {
        Self::join(parts, true)
    }

    /// All or any of the parts, of which one that is `decisive` decides for the others.
    fn join(mut parts: Vec<Self>, decisive: bool) -> Self {
        if parts.contains(&Self::Const(decisive)) {
            return Self::Const(decisive);
        }
        parts.retain(|part| *part != Self::Const(!decisive));
        match parts.len() {
            0 => Self::Const(!decisive),
            1 => parts.remove(0),
            _ if decisive => Self::Any(parts),
            _ => Self::All(parts),
        }
    }

    /// What is left once some atoms are known.
    pub(super) fn rest(&self, known: &impl Fn(AtomId) -> Option<bool>) -> Self {
        match self {
            Self::Const(_) => self.clone(),
            Self::Atom(id) => known(*id).map_or_else(|| self.clone(), Self::Const),
            Self::Not(of) => of.rest(known).not(),
            Self::All(parts) => Self::all(parts.iter().map(|part| part.rest(known)).collect()),
            Self::Any(parts) => Self::any(parts.iter().map(|part| part.rest(known)).collect()),
            Self::If(parts) => {
                let [condition, then, other] = &**parts;
                match condition.rest(known) {
                    Self::Const(true) => then.rest(known),
                    Self::Const(false) => other.rest(known),
                    condition => {
                        Self::If(Box::new([condition, then.rest(known), other.rest(known)]))
                    }
                }
            }
        }
    }

    /// Whether it holds, when every atom is known.
    pub(super) fn holds(&self, known: &impl Fn(AtomId) -> bool) -> bool {
        match self {
            Self::Const(is) => *is,
            Self::Atom(id) => known(*id),
            Self::Not(of) => !of.holds(known),
            Self::All(parts) => parts.iter().all(|part| part.holds(known)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(known)),
            Self::If(parts) => {
                let [condition, then, other] = &**parts;
                if condition.holds(known) { then.holds(known) } else { other.holds(known) }
            }
        }
    }

    /// Calls this with every atom in it, some perhaps more than once.
    pub(super) fn each_atom(&self, call: &mut impl FnMut(AtomId)) {
        match self {
            Self::Const(_) => {}
            Self::Atom(id) => call(*id),
            Self::Not(of) => of.each_atom(call),
            Self::All(parts) | Self::Any(parts) => {
                parts.iter().for_each(|part| part.each_atom(call));
            }
            Self::If(parts) => parts.iter().for_each(|part| part.each_atom(call)),
        }
    }

    /// The parts of which any is enough.
    pub(super) fn alternatives(self) -> Vec<Self> {
        match self {
            Self::Any(parts) => parts,
            Self::Const(false) => Vec::new(),
            other => vec![other],
        }
    }
}
