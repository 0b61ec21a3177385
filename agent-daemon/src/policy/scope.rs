//! A policy's head: which agents, which actions, which resources, and what is refused of it.

use std::ops::Range;

use agent_ebpf::{Action, Facet, PATH_MAX, PeerFacet, Privilege, SocketKind};
use cedar_policy::{
    ActionConstraint, EntityId, EntityTypeName, EntityUid, Policy, PrincipalConstraint,
    ResourceConstraint,
};

use super::diagnostic::{Diagnostic, Text, nearest};
use super::formula::{AgentTest, Expr, Test};
use super::labels::Labels;
use super::rule::AgentName;
use super::syntax::{Shape, Words};

/// The actions that a policy may name.
pub(super) const ACTIONS: [Action; 8] = [
    Action::Exec,
    Action::Read,
    Action::Write,
    Action::Connect,
    Action::Bind,
    Action::Listen,
    Action::Socket,
    Action::Privilege,
];

/// The most bytes that an abstract unix address may have (`sun_path` of include/uapi/linux/un.h without
/// the NUL at its beginning).
const ABSTRACT_MAX: usize = 107;

/// The kinds of resources, as the schema names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    File,
    Dir,
    Program,
    Peer,
    UnixSocket,
    SocketFamily,
    Privilege,
}

impl Type {
    pub(super) const ALL: [Self; 7] = [
        Self::File,
        Self::Dir,
        Self::Program,
        Self::Peer,
        Self::UnixSocket,
        Self::SocketFamily,
        Self::Privilege,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::File => "File",
            Self::Dir => "Dir",
            Self::Program => "Program",
            Self::Peer => "Peer",
            Self::UnixSocket => "UnixSocket",
            Self::SocketFamily => "SocketFamily",
            Self::Privilege => "Privilege",
        }
    }

    /// The kinds that an action is about.
    const fn of(action: Action) -> &'static [Self] {
        match action {
            Action::Exec => &[Self::Program],
            Action::Read | Action::Write => &[Self::File, Self::Dir],
            Action::Connect | Action::Bind => &[Self::Peer, Self::UnixSocket],
            Action::Listen => &[Self::Peer],
            Action::Socket => &[Self::SocketFamily],
            Action::Privilege => &[Self::Privilege],
        }
    }

    /// True for what has a path.
    pub(super) const fn is_place(self) -> bool {
        match self {
            Self::File | Self::Dir | Self::Program | Self::UnixSocket => true,
            Self::Peer | Self::SocketFamily | Self::Privilege => false,
        }
    }

    /// True for what has one of a few names, each with a number.
    pub(super) const fn is_numbered(self) -> bool {
        match self {
            Self::SocketFamily | Self::Privilege => true,
            Self::File | Self::Dir | Self::Program | Self::Peer | Self::UnixSocket => false,
        }
    }

    /// Those names.
    pub(super) fn names(self) -> Vec<&'static str> {
        match self {
            Self::SocketFamily => SocketKind::ALL.iter().map(|one| one.name()).collect(),
            Self::Privilege => Privilege::ALL.iter().map(|one| one.name()).collect(),
            Self::File | Self::Dir | Self::Program | Self::Peer | Self::UnixSocket => Vec::new(),
        }
    }

    /// The facet under which a place of this kind is judged.
    pub(super) const fn facet(self, action: Action) -> Option<Facet> {
        match self {
            Self::File => Facet::of(action, false),
            Self::Dir => Facet::of(action, true),
            Self::Program => Facet::of(action, false),
            Self::UnixSocket => Facet::of_socket(action),
            Self::Peer | Self::SocketFamily | Self::Privilege => None,
        }
    }
}

/// The names of all entity types, for "did you mean".
pub(super) const TYPES: [&str; 10] = [
    "Agent",
    "AgentGroup",
    "Dir",
    "File",
    "Program",
    "Peer",
    "UnixSocket",
    "SocketFamily",
    "Privilege",
    "Label",
];

/// What a policy's head says.
pub(super) struct Head {
    /// What is asked of the agent, if anything.
    pub(super) who: Option<AgentTest>,
    /// What it says of the resource, besides its type.
    pub(super) resource: Expr,
    pub(super) facets: Vec<Facet>,
    pub(super) peers: Vec<PeerFacet>,
    pub(super) numbered: Vec<Type>,
    /// Remarks on a head that is taken.
    pub(super) warnings: Vec<Diagnostic>,
}

enum Resource {
    Any,
    Is(Type),
    Exact(Type, String),
    Beneath(Option<Type>, Test),
}

impl Resource {
    fn types(&self) -> Vec<Type> {
        match self {
            Self::Any => Type::ALL.to_vec(),
            Self::Is(one) | Self::Exact(one, _) | Self::Beneath(Some(one), _) => vec![*one],
            Self::Beneath(None, _) => vec![Type::File, Type::Dir, Type::Program, Type::UnixSocket],
        }
    }
}

/// An entity with the id that the policy's own words give it; Cedar may have read another of the same
/// form.
fn own(uid: &EntityUid, words: Words<'_>) -> EntityUid {
    match words.plain_text(words.len().saturating_sub(1)) {
        Some(id) => EntityUid::from_type_name_and_id(uid.type_name().clone(), EntityId::new(id)),
        None => uid.clone(),
    }
}

/// Reads the head of a policy that Cedar has parsed, or another of the same form.
///
/// # Errors
/// Every part of it that cannot be kept.
pub(super) fn head(
    text: &Text<'_>,
    policy: &Policy,
    shape: &Shape<'_>,
    labels: &Labels,
) -> Result<Head, Vec<Diagnostic>> {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let who = principal(text, &policy.principal_constraint(), shape.principal, &mut problems);
    let (actions, named) = actions(text, &policy.action_constraint(), shape.action, &mut problems);
    let constraint = policy.resource_constraint();
    let resource =
        resource(text, &constraint, shape.resource, labels, &mut problems, &mut warnings);
    let (Some(who), Some(resource), true) = (who, resource, problems.is_empty()) else {
        return Err(problems);
    };

    let types = resource.types();
    let mut facets = Vec::new();
    let mut peers = Vec::new();
    let mut numbered = Vec::new();
    let remarked = warnings.len();
    for (index, action) in actions.iter().enumerate() {
        let fitting: Vec<Type> =
            Type::of(*action).iter().copied().filter(|one| types.contains(one)).collect();
        for one in &fitting {
            match one.facet(*action) {
                Some(facet) if !facets.contains(&facet) => facets.push(facet),
                Some(_) => {}
                None if one.is_numbered() => numbered.push(*one),
                None => {
                    let facet = PeerFacet::of(*action).filter(|one| !peers.contains(one));
                    peers.extend(facet);
                }
            }
        }
        if fitting.is_empty() && named {
            let about = about(*action);
            let (range, name) = (literal(shape.action, index), action.name());
            let help = format!("`{name}` is about {about}; {}", fitting_actions(&types));
            let is = types_in_words(&types);
            warnings.push(text.warning(range, format!("`{name}` never applies to a {is}"), help));
        }
    }
    if facets.is_empty() && peers.is_empty() && numbered.is_empty() {
        // Nothing applies: each remark is now the reason for a refusal.
        let mut warnings = warnings.split_off(remarked);
        for problem in &mut warnings {
            problem.severity = super::Severity::Error;
        }
        if warnings.is_empty() {
            warnings.push(text.error(
                shape.resource.range(),
                "no action applies to this resource",
                "see `SCHEMA` for the resources of each action",
            ));
        }
        return Err(warnings);
    }
    facets.sort_unstable();
    let resource = match resource {
        Resource::Any | Resource::Is(_) => Expr::Const(true),
        Resource::Exact(kind, name) => Expr::Test(Test::Same(kind, name)),
        Resource::Beneath(_, within) => Expr::Test(within),
    };
    Ok(Head { who, resource, facets, peers, numbered, warnings })
}

fn about(action: Action) -> String {
    types_in_words(Type::of(action))
}

fn types_in_words(types: &[Type]) -> String {
    let names: Vec<&str> = types.iter().map(|one| one.name()).collect();
    names.join(" or ")
}

fn fitting_actions(types: &[Type]) -> String {
    let fits = |action: &&Action| Type::of(**action).iter().any(|one| types.contains(one));
    let found: Vec<String> = ACTIONS
        .iter()
        .filter(fits)
        .map(|action| format!("`Action::\"{}\"`", action.name()))
        .collect();
    format!("a {} is what {} is for", types_in_words(types), found.join(" or "))
}

/// The bytes of the entity literal with this index, or of the whole part.
fn literal(words: Words<'_>, index: usize) -> Range<usize> {
    match words.entities().get(index) {
        Some((kind, id)) => kind.start..id.end,
        None => words.range(),
    }
}

/// The bytes of a literal's type or, in `resource is Type`, of that word.
fn type_range(words: Words<'_>, is: bool) -> Range<usize> {
    if is && let Some(at) = words.find_anywhere(&["is"]) {
        return words.sub(at + 1..at + 2).range();
    }
    match words.entities().first() {
        Some((kind, _)) => kind.clone(),
        None => words.range(),
    }
}

fn id_range(words: Words<'_>) -> Range<usize> {
    match words.entities().first() {
        Some((_, id)) => id.clone(),
        None => words.range(),
    }
}

fn unknown_type(text: &Text<'_>, range: Range<usize>, name: &str, fitting: &[&str]) -> Diagnostic {
    let known = TYPES.contains(&name);
    let message = if known {
        format!("{name} cannot stand here")
    } else {
        format!("there is no entity type `{name}`")
    };
    let near = (!known).then(|| nearest(name, TYPES)).flatten();
    let list = fitting.join(", ");
    let help = match near {
        Some(near) => format!("did you mean `{near}`? Here may stand: {list}"),
        None => format!("here may stand: {list}"),
    };
    text.error(range, message, help)
}

fn principal(
    text: &Text<'_>,
    constraint: &PrincipalConstraint,
    words: Words<'_>,
    problems: &mut Vec<Diagnostic>,
) -> Option<Option<AgentTest>> {
    const FITTING: [&str; 2] = ["Agent", "AgentGroup"];
    let mut is = |name: &EntityTypeName| {
        let name = name.to_string();
        if name == "Agent" {
            return true;
        }
        let range = type_range(words, true);
        problems.push(if name == "AgentGroup" {
            let help = "only agents act; write `principal in AgentGroup::\"…\"`";
            text.error(range, "a group is no agent", help)
        } else {
            unknown_type(text, range, &name, &["Agent"])
        });
        false
    };
    let (uid, equal) = match constraint {
        PrincipalConstraint::Any => return Some(None),
        PrincipalConstraint::Is(name) => return is(name).then_some(None),
        PrincipalConstraint::IsIn(name, uid) => {
            let fits = is(name);
            let who = named_agent(text, &own(uid, words), false, words, problems)?;
            return fits.then_some(who);
        }
        PrincipalConstraint::In(uid) => (uid, false),
        PrincipalConstraint::Eq(uid) => (uid, true),
    };
    let known = FITTING.contains(&uid.type_name().to_string().as_str());
    if !known {
        let name = uid.type_name().to_string();
        problems.push(unknown_type(text, type_range(words, false), &name, &FITTING));
        return None;
    }
    named_agent(text, &own(uid, words), equal, words, problems)
}

fn named_agent(
    text: &Text<'_>,
    uid: &EntityUid,
    equal: bool,
    words: Words<'_>,
    problems: &mut Vec<Diagnostic>,
) -> Option<Option<AgentTest>> {
    let id = uid.id().unescaped();
    match uid.type_name().to_string().as_str() {
        "Agent" => match AgentName::parse(id) {
            Ok(_) => Some(Some(AgentTest::Is(id.to_owned()))),
            Err(error) => {
                problems.push(text.error(
                    id_range(words),
                    error.to_string(),
                    "write the name that the agent is run with, as in `Agent::\"coder\"`",
                ));
                None
            }
        },
        "AgentGroup" if equal => {
            problems.push(text.error(
                words.range(),
                "a group is no agent, so this never matches",
                format!("write `principal in AgentGroup::\"{}\"`", uid.id().escaped()),
            ));
            None
        }
        "AgentGroup" if id.is_empty() => {
            let help = "write the name of a group of agents";
            problems.push(text.error(id_range(words), "a group without a name", help));
            None
        }
        "AgentGroup" => Some(Some(AgentTest::In(id.to_owned()))),
        other => {
            let range = type_range(words, false);
            problems.push(unknown_type(text, range, other, &["Agent", "AgentGroup"]));
            None
        }
    }
}

/// The actions, and whether they were named one by one.
fn actions(
    text: &Text<'_>,
    constraint: &ActionConstraint,
    words: Words<'_>,
    problems: &mut Vec<Diagnostic>,
) -> (Vec<Action>, bool) {
    let uids = match constraint {
        ActionConstraint::Any => return (ACTIONS.to_vec(), false),
        ActionConstraint::Eq(uid) => vec![uid.clone()],
        ActionConstraint::In(uids) => uids.clone(),
    };
    let names = ACTIONS.map(Action::name);
    let list = names.map(|name| format!("`Action::\"{name}\"`")).join(", ");
    if uids.is_empty() {
        problems.push(text.error(
            words.range(),
            "this names no action, so it never matches",
            format!("name actions out of {list}, or write `action` alone for all of them"),
        ));
    }
    let mut found = Vec::new();
    for (index, uid) in uids.iter().enumerate() {
        let id = uid.id().unescaped();
        let known = ACTIONS.iter().find(|action| action.name() == id);
        match known {
            Some(action) if uid.type_name().to_string() == "Action" => found.push(*action),
            _ => {
                let help = match nearest(id, names) {
                    Some(near) => format!("did you mean `{near}`? The actions are {list}"),
                    None => format!("the actions are {list}"),
                };
                let message = format!("there is no action `{id}`");
                problems.push(text.error(literal(words, index), message, help));
            }
        }
    }
    (found, true)
}

fn resource(
    text: &Text<'_>,
    constraint: &ResourceConstraint,
    words: Words<'_>,
    labels: &Labels,
    problems: &mut Vec<Diagnostic>,
    warnings: &mut Vec<Diagnostic>,
) -> Option<Resource> {
    const FITTING: [&str; 7] =
        ["File", "Dir", "Program", "Peer", "UnixSocket", "SocketFamily", "Privilege"];
    let kind = |name: &EntityTypeName, is: bool, problems: &mut Vec<Diagnostic>| {
        let name = name.to_string();
        let found = Type::ALL.into_iter().find(|one| one.name() == name);
        if found.is_none() {
            problems.push(unknown_type(text, type_range(words, is), &name, &FITTING));
        }
        found
    };
    match constraint {
        ResourceConstraint::Any => Some(Resource::Any),
        ResourceConstraint::Is(name) => kind(name, true, problems).map(Resource::Is),
        ResourceConstraint::Eq(uid) if uid.type_name().to_string() == "Label" => {
            let id = own(uid, words).id().escaped();
            problems.push(text.error(
                words.range(),
                "a label is no resource, so this never matches",
                format!("write `resource in Label::\"{id}\"`"),
            ));
            None
        }
        ResourceConstraint::Eq(uid) => {
            let kind = kind(uid.type_name(), false, problems)?;
            if kind == Type::Peer {
                problems.push(text.error(words.range(), "a peer has no name", PEER_HELP));
                return None;
            }
            let uid = own(uid, words);
            let name = match kind {
                Type::SocketFamily | Type::Privilege => {
                    let id = uid.id().unescaped();
                    name(text, kind, id, id_range(words)).map_err(|problem| problems.push(*problem))
                }
                Type::UnixSocket if uid.id().unescaped().starts_with('@') => {
                    let id = uid.id().unescaped();
                    abstract_address(text, id, id_range(words))
                        .map_err(|problem| problems.push(*problem))
                }
                Type::UnixSocket | Type::File | Type::Dir | Type::Program | Type::Peer => {
                    named(text, &uid, kind == Type::Dir, words, problems).ok_or(())
                }
            };
            name.ok().map(|name| Resource::Exact(kind, name))
        }
        ResourceConstraint::In(uid) => {
            let within = within(text, &own(uid, words), words, labels, problems, warnings)?;
            Some(Resource::Beneath(None, within))
        }
        ResourceConstraint::IsIn(name, uid) => {
            let kind = kind(name, true, problems);
            let within = within(text, &own(uid, words), words, labels, problems, warnings);
            let (kind, within) = (kind?, within?);
            if kind == Type::Peer {
                problems.push(text.error(words.range(), "a peer is in no folder", PEER_HELP));
                return None;
            }
            if matches!(kind, Type::SocketFamily | Type::Privilege) {
                let name = kind.name();
                let help = format!("write `resource == {name}::\"…\"`, or `resource is {name}`");
                problems.push(text.error(words.range(), format!("a {name} is in no folder"), help));
                return None;
            }
            Some(Resource::Beneath(Some(kind), within))
        }
    }
}

/// Takes the name of a kind of socket or of a privilege.
///
/// # Errors
/// There is none of this name.
pub(super) fn name(
    text: &Text<'_>,
    kind: Type,
    id: &str,
    range: Range<usize>,
) -> Result<String, Box<Diagnostic>> {
    let names = kind.names();
    if names.contains(&id) {
        return Ok(id.to_owned());
    }
    let list: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    let list = list.join(", ");
    let help = match nearest(id, names) {
        Some(near) => format!("did you mean `{near}`? There are {list}"),
        None => format!("there are {list}"),
    };
    Err(Box::new(text.error(range, format!("there is no {} `{id}`", kind.name()), help)))
}

/// Takes `@` and an abstract unix address.
///
/// # Errors
/// It is longer than any can be.
pub(super) fn abstract_address(
    text: &Text<'_>,
    name: &str,
    range: Range<usize>,
) -> Result<String, Box<Diagnostic>> {
    let bytes = name.len().saturating_sub(1);
    if bytes <= ABSTRACT_MAX {
        return Ok(name.to_owned());
    }
    Err(Box::new(text.error(
        range,
        format!("an abstract address of {bytes} bytes; the kernel takes at most {ABSTRACT_MAX}"),
        "write the address that is meant, or `resource is UnixSocket` for every one",
    )))
}

const PEER_HELP: &str = "write `resource is Peer` here, and after the head what is meant:\n\
    when { resource.ip.isInRange(ip(\"192.0.2.0/24\")) && resource.port == 443 };";

/// What the resource is to be in.
fn within(
    text: &Text<'_>,
    uid: &EntityUid,
    words: Words<'_>,
    labels: &Labels,
    problems: &mut Vec<Diagnostic>,
    warnings: &mut Vec<Diagnostic>,
) -> Option<Test> {
    let name = uid.type_name().to_string();
    match name.as_str() {
        "Dir" => named(text, uid, true, words, problems).map(Test::Within),
        "Label" => {
            let found = labels.test(text, uid.id().unescaped(), id_range(words), warnings);
            found.map_err(|problem| problems.push(*problem)).ok()
        }
        "File" | "Program" => {
            let id = uid.id().escaped();
            problems.push(text.error(
                literal(words, 0),
                format!("nothing is in a {name}"),
                format!(
                    "for the {name} itself write `resource == {name}::\"{id}\"`; \
                     for a folder and everything beneath it `resource in Dir::\"…\"`"
                ),
            ));
            None
        }
        "Peer" => {
            problems.push(text.error(literal(words, 0), "a peer has no name", PEER_HELP));
            None
        }
        _ => {
            let range = type_range(words, false);
            let range = words.entities().first().map_or(range, |(kind, _)| kind.clone());
            problems.push(unknown_type(text, range, &name, &["Dir", "Label"]));
            None
        }
    }
}

fn named(
    text: &Text<'_>,
    uid: &EntityUid,
    is_dir: bool,
    words: Words<'_>,
    problems: &mut Vec<Diagnostic>,
) -> Option<String> {
    let kind = uid.type_name().to_string();
    let checked = path(text, uid.id().unescaped(), &kind, is_dir, id_range(words));
    checked.map_err(|problem| problems.push(*problem)).ok()
}

/// Takes a path that is absolute, in its shortest spelling, and short enough for the kernel half.
/// `kind` is the entity type that it names, or `path`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn path(
    text: &Text<'_>,
    path: &str,
    kind: &str,
    is_dir: bool,
    range: Range<usize>,
) -> Result<String, Box<Diagnostic>> {
    let refuse =
        |message: String, help: String| Err(Box::new(text.error(range.clone(), message, help)));
    let literal = |path: &str| match kind {
        "path" => format!("`\"{}\"`", path.escape_debug()),
        _ => format!("`{kind}::\"{}\"`", path.escape_debug()),
    };
    let shown = |path: &str| format!("write {}", literal(path));
    if path.is_empty() {
        return refuse(
            "an empty path".to_owned(),
            format!("write an absolute path, as in {}", literal("/srv/work")),
        );
    }
    if path.contains('\0') {
        return refuse(
            "a path cannot have a NUL in it".to_owned(),
            "write the path without it".to_owned(),
        );
    }
    if !path.starts_with('/') {
        let help = if path.starts_with('~') {
            let rest = path.trim_start_matches('~');
            let home = literal(&format!("/home/user{rest}"));
            format!("write the home folder in full, as in {home}")
        } else {
            let whole = literal(&format!("/srv/{}", path.trim_start_matches("./")));
            format!("write the path from the root folder on, as in {whole}")
        };
        return refuse(format!("`{path}` is not an absolute path"), help);
    }
    let parts = || path.split('/').filter(|part| !part.is_empty());
    if parts().any(|part| part == "." || part == "..") {
        let mut clean: Vec<&str> = Vec::new();
        for part in parts() {
            match part {
                "." => {}
                ".." => {
                    clean.pop();
                }
                _ => clean.push(part),
            }
        }
        return refuse(
            "a path in a policy cannot have `.` or `..` in it".to_owned(),
            shown(&format!("/{}", clean.join("/"))),
        );
    }
    let clean = format!("/{}", parts().collect::<Vec<_>>().join("/"));
    if clean != path {
        let message = if path.contains("//") {
            "a path in a policy cannot have `//` in it"
        } else {
            "a path in a policy does not end with `/`"
        };
        return refuse(message.to_owned(), shown(&clean));
    }
    if path == "/" && !is_dir {
        return refuse(
            format!("the root folder is no {kind}"),
            "write `resource == Dir::\"/\"`, or `resource in Dir::\"/\"` for everything".to_owned(),
        );
    }
    if path.len() >= PATH_MAX {
        return refuse(
            format!("a path of {} bytes; the kernel resolves at most {}", path.len(), PATH_MAX - 1),
            "name a folder above it with `resource in Dir::\"…\"`".to_owned(),
        );
    }
    Ok(path.to_owned())
}
