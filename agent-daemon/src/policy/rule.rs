//! A policy that was taken, in the form from which tables are made.

use std::collections::BTreeMap;
use std::path::PathBuf;

use agent_ebpf::Facet;
use serde::Serialize;

use super::peers::Net;

/// What a policy does to what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Allows it, unless something forbids it.
    Permit,
    /// Denies it, whatever permits it.
    Forbid,
}

/// A policy by name, for those who explain a verdict.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RuleInfo {
    /// The policy's `@id`, or its file and line.
    pub id: String,
    /// Permit or forbid.
    pub effect: Effect,
    /// `file:line:column` of the policy's first character.
    pub place: String,
    /// All of its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Letters, digits, `.`, `_` and `-`, at most 63: what may name an agent, here and everywhere else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct AgentName(String);

/// Why something cannot name an agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` cannot name an agent: a name has 1 to {max} letters, digits, `.`, `_` and `-`",
    max = AgentName::MAX_LEN
)]
pub struct BadAgentName {
    /// What was given.
    pub name: String,
}

impl AgentName {
    /// The longest name.
    pub const MAX_LEN: usize = 63;

    /// Takes a name.
    ///
    /// # Errors
    /// It is empty, too long, or has a character that names may not have.
    pub fn parse(name: &str) -> Result<Self, BadAgentName> {
        let lawful = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=Self::MAX_LEN).contains(&name.len()) && name.bytes().all(lawful) {
            Ok(Self(name.to_owned()))
        } else {
            Err(BadAgentName { name: name.to_owned() })
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for AgentName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for AgentName {
    type Err = BadAgentName;
    fn from_str(name: &str) -> Result<Self, BadAgentName> {
        Self::parse(name)
    }
}

/// A built-in forbid: a place of Ambit's own that no policy can open to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protected {
    /// The absolute path, as an agent would see it.
    pub path: PathBuf,
    /// Whether everything beneath is meant too.
    pub beneath: bool,
    /// What is forbidden there.
    pub facets: &'static [Facet],
}

/// Which agents a policy is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Any,
    Agent(String),
    Group(String),
}

impl Who {
    pub(super) fn is(&self, agent: &AgentName, groups: &[String]) -> bool {
        match self {
            Self::Any => true,
            Self::Agent(name) => name == agent.as_str(),
            Self::Group(name) => groups.contains(name),
        }
    }
}

/// Which places of the file tree a policy is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PlaceReach {
    pub(super) path: String,
    pub(super) beneath: bool,
    pub(super) facets: Vec<Facet>,
}

/// Which peers a policy is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PeerReach {
    pub(super) connect: bool,
    pub(super) bind: bool,
    pub(super) nets: Vec<Net>,
    pub(super) port: Option<u16>,
    pub(super) protocol: Option<u8>,
}

/// A policy that was taken.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) info: RuleInfo,
    pub(super) who: Who,
    pub(super) places: Option<PlaceReach>,
    pub(super) peers: Option<PeerReach>,
}
