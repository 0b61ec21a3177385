//! A policy's head: which agents, which actions, which resources, and what is refused of it.

use std::ops::Range;

use agent_ebpf::{Action, Facet, PATH_MAX};
use cedar_policy::{
    ActionConstraint, EntityTypeName, EntityUid, Policy, PrincipalConstraint, ResourceConstraint,
};

use super::diagnostic::{Diagnostic, Text, nearest};
use super::rule::{AgentName, PlaceReach, Who};
use super::syntax::{Shape, Words};

/// The actions that a policy may name.
pub(super) const ACTIONS: [Action; 5] =
    [Action::Exec, Action::Read, Action::Write, Action::Connect, Action::Bind];

/// The kinds of resources, as the schema names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    File,
    Dir,
    Program,
    Peer,
}

impl Type {
    pub(super) const ALL: [Self; 4] = [Self::File, Self::Dir, Self::Program, Self::Peer];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::File => "File",
            Self::Dir => "Dir",
            Self::Program => "Program",
            Self::Peer => "Peer",
        }
    }

    /// The kinds that an action is about.
    const fn of(action: Action) -> &'static [Self] {
        match action {
            Action::Exec => &[Self::Program],
            Action::Read | Action::Write => &[Self::File, Self::Dir],
            Action::Connect | Action::Bind => &[Self::Peer],
            Action::Bpf => &[],
        }
    }

    const fn facet(self, action: Action) -> Option<Facet> {
        match self {
            Self::File => Facet::of(action, false),
            Self::Dir => Facet::of(action, true),
            Self::Program => Facet::of(action, false),
            Self::Peer => None,
        }
    }
}

/// The names of all entity types, for "did you mean".
const TYPES: [&str; 6] = ["Agent", "AgentGroup", "Dir", "File", "Program", "Peer"];

/// What a policy's head says.
pub(super) struct Head {
    pub(super) who: Who,
    pub(super) places: Option<PlaceReach>,
    pub(super) connect: bool,
    pub(super) bind: bool,
    /// Remarks on a head that is taken.
    pub(super) warnings: Vec<Diagnostic>,
}

enum Resource {
    Any,
    Is(Type),
    Exact(Type, String),
    Beneath(Option<Type>, String),
}

impl Resource {
    fn types(&self) -> Vec<Type> {
        match self {
            Self::Any => Type::ALL.to_vec(),
            Self::Is(one) | Self::Exact(one, _) | Self::Beneath(Some(one), _) => vec![*one],
            Self::Beneath(None, _) => vec![Type::File, Type::Dir, Type::Program],
        }
    }
}

/// Reads the head of a policy that Cedar has parsed.
///
/// # Errors
/// Every part of it that cannot be kept.
pub(super) fn head(
    text: &Text<'_>,
    policy: &Policy,
    shape: &Shape<'_>,
) -> Result<Head, Vec<Diagnostic>> {
    let mut problems = Vec::new();
    let who = principal(text, &policy.principal_constraint(), shape.principal, &mut problems);
    let (actions, named) = actions(text, &policy.action_constraint(), shape.action, &mut problems);
    let resource = resource(text, &policy.resource_constraint(), shape.resource, &mut problems);
    let (Some(who), Some(resource), true) = (who, resource, problems.is_empty()) else {
        return Err(problems);
    };

    let types = resource.types();
    let mut facets = Vec::new();
    let (mut connect, mut bind) = (false, false);
    let mut warnings = Vec::new();
    for (index, action) in actions.iter().enumerate() {
        let fitting: Vec<Type> =
            Type::of(*action).iter().copied().filter(|one| types.contains(one)).collect();
        for one in &fitting {
            match one.facet(*action) {
                Some(facet) if !facets.contains(&facet) => facets.push(facet),
                Some(_) => {}
                None => {
                    connect |= *action == Action::Connect;
                    bind |= *action == Action::Bind;
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
    if facets.is_empty() && !connect && !bind {
        // Nothing applies: each remark is now the reason for a refusal.
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
    let (beneath, path) = match resource {
        Resource::Any | Resource::Is(_) => (true, "/".to_owned()),
        Resource::Exact(_, path) => (false, path),
        Resource::Beneath(_, path) => (true, path),
    };
    facets.sort_unstable();
    let places = (!facets.is_empty()).then_some(PlaceReach { path, beneath, facets });
    Ok(Head { who, places, connect, bind, warnings })
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
) -> Option<Who> {
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
        PrincipalConstraint::Any => return Some(Who::Any),
        PrincipalConstraint::Is(name) => return is(name).then_some(Who::Any),
        PrincipalConstraint::IsIn(name, uid) => {
            let fits = is(name);
            let who = named_agent(text, uid, false, words, problems)?;
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
    named_agent(text, uid, equal, words, problems)
}

fn named_agent(
    text: &Text<'_>,
    uid: &EntityUid,
    equal: bool,
    words: Words<'_>,
    problems: &mut Vec<Diagnostic>,
) -> Option<Who> {
    let id = uid.id().unescaped();
    match uid.type_name().to_string().as_str() {
        "Agent" => match AgentName::parse(id) {
            Ok(_) => Some(Who::Agent(id.to_owned())),
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
        "AgentGroup" => Some(Who::Group(id.to_owned())),
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
    problems: &mut Vec<Diagnostic>,
) -> Option<Resource> {
    const FITTING: [&str; 4] = ["File", "Dir", "Program", "Peer"];
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
        ResourceConstraint::Eq(uid) => {
            let kind = kind(uid.type_name(), false, problems)?;
            if kind == Type::Peer {
                problems.push(text.error(words.range(), "a peer has no name", PEER_HELP));
                return None;
            }
            let path = path(text, uid, kind == Type::Dir, words, problems)?;
            Some(Resource::Exact(kind, path))
        }
        ResourceConstraint::In(uid) => {
            let path = folder(text, uid, words, problems)?;
            Some(Resource::Beneath(None, path))
        }
        ResourceConstraint::IsIn(name, uid) => {
            let kind = kind(name, true, problems);
            let path = folder(text, uid, words, problems);
            let (kind, path) = (kind?, path?);
            if kind == Type::Peer {
                problems.push(text.error(words.range(), "a peer is in no folder", PEER_HELP));
                return None;
            }
            Some(Resource::Beneath(Some(kind), path))
        }
    }
}

const PEER_HELP: &str = "write `resource is Peer` here, and after the head what is meant:\n\
    when { resource.ip.isInRange(ip(\"192.0.2.0/24\")) && resource.port == 443 };";

fn folder(
    text: &Text<'_>,
    uid: &EntityUid,
    words: Words<'_>,
    problems: &mut Vec<Diagnostic>,
) -> Option<String> {
    let name = uid.type_name().to_string();
    match name.as_str() {
        "Dir" => path(text, uid, true, words, problems),
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
            problems.push(unknown_type(text, range, &name, &["Dir"]));
            None
        }
    }
}

/// Takes a path that is absolute, in its shortest spelling, and short enough for the kernel half.
fn path(
    text: &Text<'_>,
    uid: &EntityUid,
    is_dir: bool,
    words: Words<'_>,
    problems: &mut Vec<Diagnostic>,
) -> Option<String> {
    let path = uid.id().unescaped();
    let kind = uid.type_name().to_string();
    let mut refuse = |message: String, help: String| {
        problems.push(text.error(id_range(words), message, help));
        None
    };
    let shown = |path: &str| format!("write `{kind}::\"{}\"`", path.escape_debug());
    if path.is_empty() {
        return refuse(
            "an empty path".to_owned(),
            format!("write an absolute path, as in `{kind}::\"/srv/work\"`"),
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
            format!(
                "write the home folder in full, as in `{kind}::\"/home/user{}\"`",
                path.trim_start_matches('~').escape_debug()
            )
        } else {
            format!(
                "write the path from the root folder on, as in `{kind}::\"/srv/{}\"`",
                path.trim_start_matches("./").escape_debug()
            )
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
    Some(path.to_owned())
}
