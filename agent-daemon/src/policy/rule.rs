//! A policy that was taken, in the form from which tables are made.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use agent_ebpf::{Facet, PeerFacet};
use serde::{Deserialize, Serialize};

use super::formula::{AgentTest, Expr, Test};
use super::notes::Notes;
use super::scope::Type;

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

impl RuleInfo {
    /// What its annotations tell.
    #[must_use]
    pub const fn notes(&self) -> Notes<'_> {
        Notes::new(&self.annotations)
    }
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

/// An agent as policies know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Agent {
    /// Its name.
    pub name: AgentName,
    /// The groups that it is in.
    pub groups: Vec<String>,
    /// What else is known of it.
    pub attributes: Attributes,
}

/// What may be known of an agent besides its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attributes {
    /// The namespace that it belongs to, as in Kubernetes.
    pub namespace: Option<String>,
    /// The model that drives it.
    pub model: Option<String>,
    /// Who answers for it.
    pub operator: Option<String>,
    /// Words that its operator gave it.
    pub labels: Vec<String>,
}

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Attribute {
    Name,
    Namespace,
    Model,
    Operator,
}

impl Agent {
    /// An agent of which no more than the name is known.
    #[must_use]
    pub fn named(name: AgentName) -> Self {
        Self { name, groups: Vec::new(), attributes: Attributes::default() }
    }

    pub(super) fn attribute(&self, which: Attribute) -> Option<&str> {
        match which {
            Attribute::Name => Some(self.name.as_str()),
            Attribute::Namespace => self.attributes.namespace.as_deref(),
            Attribute::Model => self.attributes.model.as_deref(),
            Attribute::Operator => self.attributes.operator.as_deref(),
        }
    }
}

/// A built-in forbid: a place of Ambit's own that no policy can open to an agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Protected {
    /// The absolute path, as an agent would see it.
    pub path: PathBuf,
    /// Whether everything beneath is meant too.
    pub beneath: bool,
    /// What is forbidden there.
    pub facets: &'static [Facet],
}

/// A policy that was taken.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) info: Arc<RuleInfo>,
    /// What its head asks of the agent, if anything.
    pub(super) who: Option<AgentTest>,
    /// What its head says of the resource, besides its type.
    pub(super) resource: Expr,
    /// As what it is about places.
    pub(super) facets: Vec<Facet>,
    /// Under which actions it is about peers.
    pub(super) peers: Vec<PeerFacet>,
    /// Which things with a number it is about.
    pub(super) numbered: Vec<Type>,
    /// Its conditions, all of them.
    pub(super) condition: Expr,
}

impl Rule {
    /// Calls this with everything that it asks of the agent.
    pub(super) fn each_question(&self, call: &mut impl FnMut(&AgentTest)) {
        self.who.iter().for_each(&mut *call);
        self.condition.each_question(call);
    }

    /// Calls this with everything that it asks of the action and the resource.
    pub(super) fn each_test(&self, call: &mut impl FnMut(&Test)) {
        self.resource.each_test(call);
        self.condition.each_test(call);
    }
}
