//! The same questions put to Cedar's own authorizer: entities and requests as Ambit's policies
//! understand them. Tests compare the kernel's verdict with Cedar's through this.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::OnceLock;

use agent_ebpf::{Action, Peer, Privilege, SocketKind, family, protocol};
use cedar_policy::{
    Context, Entity, EntityId, EntityTypeName, EntityUid, ParseErrors, Request,
    RestrictedExpression,
};

use super::content::Digest;
use super::labels::Labels;
use super::rule::{Agent, AgentName, Attributes};

/// What an action is done to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A file, program or folder, by its absolute path in the agent's own view.
    File {
        /// The path.
        path: PathBuf,
        /// Whether it is a folder.
        is_dir: bool,
    },
    /// An internet peer or local address.
    Peer {
        /// Its address, port and protocol.
        peer: Peer,
        /// A name that its address is known by.
        host: Option<String>,
    },
    /// A unix socket, by its absolute path or by `@` and its abstract address.
    UnixSocket(PathBuf),
    /// A kind of socket.
    Socket(SocketKind),
    /// A privilege.
    Privilege(Privilege),
}

/// Why there is no such question in Cedar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// Cedar's strings are UTF-8.
    #[error("{0:?} is not UTF-8, so Cedar cannot name it")]
    NotUtf8(PathBuf),
    /// Cedar refused what was made.
    #[error("Cedar refused {what}: {error}")]
    Refused {
        /// What it refused.
        what: String,
        /// What it said.
        error: String,
    },
}

fn refused(what: &str) -> impl FnOnce(String) -> ModelError {
    let what = what.to_owned();
    move |error| ModelError::Refused { what, error }
}

/// The entity types of requests, each parsed once: Cedar's parser takes longer to start than a
/// request to be judged.
fn type_name(kind: &str) -> Result<EntityTypeName, ModelError> {
    static PARSED: OnceLock<HashMap<&str, Result<EntityTypeName, String>>> = OnceLock::new();
    const KINDS: [&str; 11] = [
        "Action",
        "Agent",
        "AgentGroup",
        "Dir",
        "File",
        "Label",
        "Peer",
        "Privilege",
        "Program",
        "SocketFamily",
        "UnixSocket",
    ];
    let parsed = PARSED.get_or_init(|| {
        let parse = |kind: &str| kind.parse().map_err(|error: ParseErrors| error.to_string());
        KINDS.iter().map(|kind| (*kind, parse(kind))).collect()
    });
    let found = parsed.get(kind).cloned();
    let found = found.unwrap_or_else(|| Err("no such entity type".to_owned()));
    found.map_err(refused(kind))
}

fn uid(kind: &str, id: &str) -> Result<EntityUid, ModelError> {
    let id = EntityId::new(id);
    Ok(EntityUid::from_type_name_and_id(type_name(kind)?, id))
}

fn is_program(name: &EntityUid) -> bool {
    name.type_name().basename() == "Program"
}

/// A peer's address.
#[must_use]
pub fn address(peer: &Peer) -> IpAddr {
    let [a, b, c, d, ..] = peer.address;
    if peer.family == family::V4 {
        Ipv4Addr::new(a, b, c, d).into()
    } else {
        Ipv6Addr::from(peer.address).into()
    }
}

/// A protocol as policies name it: `tcp`, `udp`, else the IP protocol number in decimal.
#[must_use]
pub fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "tcp".to_owned(),
        protocol::UDP => "udp".to_owned(),
        other => other.to_string(),
    }
}

/// The entity of an agent, and of its groups.
///
/// # Errors
/// Cedar refuses an entity.
pub fn agent(agent: &Agent) -> Result<Vec<Entity>, ModelError> {
    let mut found = Vec::new();
    let mut parents = HashSet::new();
    for group in &agent.groups {
        let group = uid("AgentGroup", group)?;
        found.push(Entity::new_no_attrs(group.clone(), HashSet::new()));
        parents.insert(group);
    }
    let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let labels = agent.attributes.labels.iter().map(|label| text(label));
    let mut attributes = HashMap::from([
        ("name".to_owned(), text(agent.name.as_str())),
        ("labels".to_owned(), RestrictedExpression::new_set(labels)),
    ]);
    let Attributes { namespace, model, operator, labels: _ } = &agent.attributes;
    for (name, known) in [("namespace", namespace), ("model", model), ("operator", operator)] {
        attributes.extend(known.iter().map(|known| (name.to_owned(), text(known))));
    }
    let name = agent.name.as_str();
    let entity = Entity::new(uid("Agent", name)?, attributes, parents);
    found.push(entity.map_err(|error| refused(name)(error.to_string()))?);
    Ok(found)
}

/// The name of a target's entity under an action: a file that is run is a `Program`.
///
/// # Errors
/// The path is not UTF-8.
pub fn resource_uid(action: Action, target: &Target) -> Result<EntityUid, ModelError> {
    match target {
        Target::File { path, is_dir } => {
            let Some(text) = path.to_str() else {
                return Err(ModelError::NotUtf8(path.clone()));
            };
            let kind = match (action, is_dir) {
                (Action::Exec, _) => "Program",
                (_, true) => "Dir",
                (_, false) => "File",
            };
            uid(kind, text)
        }
        Target::Peer { peer, host } => {
            let (ip, port) = (address(peer), u16::from_be_bytes(peer.port));
            let name = host.as_deref().unwrap_or_default();
            uid("Peer", &format!("{} {ip} {port} {name}", protocol_name(peer.protocol)))
        }
        Target::UnixSocket(name) => match name.to_str() {
            Some(text) => uid("UnixSocket", text),
            None => Err(ModelError::NotUtf8(name.clone())),
        },
        Target::Socket(kind) => uid("SocketFamily", kind.name()),
        Target::Privilege(privilege) => uid("Privilege", privilege.name()),
    }
}

/// The labels that something is given, as its parents, and the names of all that it is in.
fn labels_of(
    labels: &Labels,
    name: &str,
    is_dir: bool,
) -> Result<(HashSet<EntityUid>, RestrictedExpression), ModelError> {
    let parents = labels.parents(name, is_dir).into_iter().map(|label| uid("Label", label));
    let all = labels.of(name, is_dir).into_iter();
    let all = all.map(|held| RestrictedExpression::new_string(held.label));
    Ok((parents.collect::<Result<_, _>>()?, RestrictedExpression::new_set(all)))
}

/// The entities of labels, each in those that it is given.
///
/// # Errors
/// Cedar refuses an entity.
pub fn labels(labels: &Labels) -> Result<Vec<Entity>, ModelError> {
    let entity = |(label, above): (&str, Vec<&str>)| {
        let above = above.into_iter().map(|label| uid("Label", label));
        Ok(Entity::new_no_attrs(uid("Label", label)?, above.collect::<Result<_, _>>()?))
    };
    labels.hierarchy().map(entity).collect()
}

/// The entity of a target under an action, and those that it is `in` but for labels in labels, which
/// [`labels`] gives. Of a program the content is not known.
///
/// # Errors
/// The path is not UTF-8, or Cedar refuses an entity.
pub fn resource(
    action: Action,
    target: &Target,
    labels: &Labels,
) -> Result<Vec<Entity>, ModelError> {
    resource_with(action, target, labels, None)
}

/// The same, of a program with this content.
///
/// # Errors
/// As [`resource`].
pub fn resource_with(
    action: Action,
    target: &Target,
    labels: &Labels,
    content: Option<Digest>,
) -> Result<Vec<Entity>, ModelError> {
    let name = resource_uid(action, target)?;
    match target {
        Target::Socket(_) | Target::Privilege(_) => {
            Ok(vec![Entity::new_no_attrs(name, HashSet::new())])
        }
        Target::UnixSocket(address) if address.as_os_str().as_encoded_bytes().starts_with(b"@") => {
            let address = address.to_str().unwrap_or_default();
            let path = RestrictedExpression::new_string(address.to_owned());
            let (parents, labels) = labels_of(labels, address, false)?;
            let attributes =
                HashMap::from([("path".to_owned(), path), ("labels".to_owned(), labels)]);
            let entity = Entity::new(name, attributes, parents);
            Ok(vec![entity.map_err(|error| refused("a unix socket")(error.to_string()))?])
        }
        Target::File { path, .. } | Target::UnixSocket(path) => {
            let mut place = path.to_str().unwrap_or_default();
            let mut found = Vec::new();
            let entity = |name: EntityUid, place: &str, is_dir: bool, parent: Option<EntityUid>| {
                let path = RestrictedExpression::new_string(place.to_owned());
                let (mut parents, labels) = labels_of(labels, place, is_dir)?;
                parents.extend(parent);
                let mut attributes =
                    HashMap::from([("path".to_owned(), path), ("labels".to_owned(), labels)]);
                if let Some(digest) = content.filter(|_| is_program(&name)) {
                    let text = RestrictedExpression::new_string(digest.to_string());
                    attributes.insert("sha256".to_owned(), text);
                }
                let entity = Entity::new(name, attributes, parents);
                entity.map_err(|error| refused("a place")(error.to_string()))
            };
            let own = uid("Dir", place)?;
            if own != name {
                found.push(entity(name, place, false, Some(own))?);
            }
            loop {
                let above = (place != "/").then(|| match place.rsplit_once('/') {
                    None | Some(("", _)) => "/",
                    Some((above, _)) => above,
                });
                let parent = above.map(|above| uid("Dir", above)).transpose()?;
                found.push(entity(uid("Dir", place)?, place, true, parent)?);
                match above {
                    Some(above) => place = above,
                    None => return Ok(found),
                }
            }
        }
        Target::Peer { peer, host } => {
            let ip = address(peer).to_string();
            let port = u16::from_be_bytes(peer.port);
            let transport = protocol_name(peer.protocol);
            let mut attributes = HashMap::from([
                ("ip".to_owned(), RestrictedExpression::new_ip(ip)),
                ("port".to_owned(), RestrictedExpression::new_long(port.into())),
                ("protocol".to_owned(), RestrictedExpression::new_string(transport)),
            ]);
            let host = host.clone().map(RestrictedExpression::new_string);
            attributes.extend(host.map(|host| ("host".to_owned(), host)));
            let entity = Entity::new(name, attributes, HashSet::new());
            Ok(vec![entity.map_err(|error| refused("a peer")(error.to_string()))?])
        }
    }
}

/// The request "may this agent do this to that"; the entities come from [`agent`] and [`resource`].
///
/// # Errors
/// The path is not UTF-8, or the request does not fit the schema: an action on a target that it is
/// not about.
pub fn request(name: &AgentName, action: Action, target: &Target) -> Result<Request, ModelError> {
    let schema = super::schema().map_err(|error| refused("the schema")(error.to_string()))?;
    Request::new(
        uid("Agent", name.as_str())?,
        uid("Action", action.name())?,
        resource_uid(action, target)?,
        Context::empty(),
        Some(schema),
    )
    .map_err(|error| refused("the request")(error.to_string()))
}
