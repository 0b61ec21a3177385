//! The same questions put to Cedar's own authorizer: entities and requests as Ambit's policies
//! understand them. Tests compare the kernel's verdict with Cedar's through this.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use agent_ebpf::{Action, Peer, family, protocol};
use cedar_policy::{
    Context, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression,
};

use super::rule::AgentName;

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
    Peer(Peer),
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

fn uid(kind: &str, id: &str) -> Result<EntityUid, ModelError> {
    let name: EntityTypeName = kind
        .parse()
        .map_err(|error: cedar_policy::ParseErrors| refused(kind)(error.to_string()))?;
    Ok(EntityUid::from_type_name_and_id(name, EntityId::new(id)))
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
pub fn agent(name: &AgentName, groups: &[String]) -> Result<Vec<Entity>, ModelError> {
    let mut found = Vec::new();
    let mut parents = HashSet::new();
    for group in groups {
        let group = uid("AgentGroup", group)?;
        found.push(Entity::new_no_attrs(group.clone(), HashSet::new()));
        parents.insert(group);
    }
    let text = RestrictedExpression::new_string(name.as_str().to_owned());
    let attributes = HashMap::from([("name".to_owned(), text)]);
    let agent = Entity::new(uid("Agent", name.as_str())?, attributes, parents);
    found.push(agent.map_err(|error| refused(name.as_str())(error.to_string()))?);
    Ok(found)
}

/// The entity of a target under an action, then those that it is `in`.
///
/// # Errors
/// The path is not UTF-8, or Cedar refuses an entity.
pub fn resource(action: Action, target: &Target) -> Result<Vec<Entity>, ModelError> {
    match target {
        Target::File { path, is_dir } => {
            let Some(path) = path.to_str() else {
                return Err(ModelError::NotUtf8(path.clone()));
            };
            let mut found = Vec::new();
            let own = uid("Dir", path)?;
            if action == Action::Exec || !is_dir {
                let kind = if action == Action::Exec {
                    "Program"
                } else {
                    "File"
                };
                found.push(Entity::new_no_attrs(uid(kind, path)?, HashSet::from([own])));
            }
            let mut path = path;
            loop {
                let above = (path != "/").then(|| match path.rsplit_once('/') {
                    None | Some(("", _)) => "/",
                    Some((above, _)) => above,
                });
                let parents = above.map(|above| uid("Dir", above)).transpose()?;
                found.push(Entity::new_no_attrs(
                    uid("Dir", path)?,
                    parents.into_iter().collect(),
                ));
                match above {
                    Some(above) => path = above,
                    None => return Ok(found),
                }
            }
        }
        Target::Peer(peer) => {
            let ip = address(peer).to_string();
            let port = u16::from_be_bytes(peer.port);
            let transport = protocol_name(peer.protocol);
            let id = format!("{transport} {ip} {port}");
            let attributes = HashMap::from([
                ("ip".to_owned(), RestrictedExpression::new_ip(ip)),
                (
                    "port".to_owned(),
                    RestrictedExpression::new_long(port.into()),
                ),
                (
                    "protocol".to_owned(),
                    RestrictedExpression::new_string(transport),
                ),
            ]);
            let peer = Entity::new(uid("Peer", &id)?, attributes, HashSet::new());
            Ok(vec![peer.map_err(|error| refused(&id)(error.to_string()))?])
        }
    }
}

/// The request "may this agent do this to that"; the entities come from [`agent`] and [`resource`].
///
/// # Errors
/// The path is not UTF-8, or the request does not fit the schema: an action on a target that it is
/// not about.
pub fn request(name: &AgentName, action: Action, target: &Target) -> Result<Request, ModelError> {
    let resource = resource(action, target)?;
    let resource = resource.first().map(Entity::uid);
    let resource = resource.ok_or_else(|| refused("the target")("no entity".to_owned()))?;
    let schema = super::schema().map_err(|error| refused("the schema")(error.to_string()))?;
    Request::new(
        uid("Agent", name.as_str())?,
        uid("Action", action.name())?,
        resource,
        Context::empty(),
        Some(schema),
    )
    .map_err(|error| refused("the request")(error.to_string()))
}
