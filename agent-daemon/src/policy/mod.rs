//! What: Cedar, checked and lowered to the tables that `decide` asks.
//!
//! The way of a rule: [`read_source`] or [`read_folder`], then [`Policies::check`], then for each
//! agent [`Policies::lower`]. What cannot be kept exactly in the kernel is refused on the way, with
//! its place and what to write instead; nothing is dropped, cut, widened or narrowed.
//!
//! `resource in Dir::"/x"` is whatever is found at `/x` and everything beneath it, by whole path
//! components; so in Cedar's terms every object is `in` the `Dir` of its own path and of each folder
//! above ([`model`] builds exactly these entities).

mod check;
mod condition;
mod diagnostic;
mod hashed;
mod lower;
pub mod model;
mod parse;
mod peers;
mod rule;
mod scope;
mod source;
mod suggest;
mod syntax;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use serde::Serialize;

pub use check::{SCHEMA, schema};
pub use diagnostic::{Diagnostic, PolicyError, Severity, Span};
pub use hashed::HashedTables;
pub use lower::{Collision, Lowered, PROTECTED_ID};
pub use model::Target;
pub use peers::PeerPrefix;
pub use rule::{AgentName, BadAgentName, Effect, Protected, RuleInfo};
pub use source::{MAX_FILE_BYTES, Source, read_folder, read_source};
pub use suggest::{Attempt, suggest};

/// Policies that were taken, for all agents.
#[derive(Clone, Debug)]
pub struct Policies {
    rules: Vec<rule::Rule>,
    warnings: HashMap<String, Vec<Diagnostic>>,
    cedar: cedar_policy::PolicySet,
}

/// One policy of those that were taken, for `ambit policy check`.
#[derive(Clone, Debug, Serialize)]
pub struct Kept {
    /// Its id, effect, place and annotations.
    #[serde(flatten)]
    pub rule: RuleInfo,
    /// How it is kept.
    pub kept: &'static str,
    /// What its author should look at.
    pub warnings: Vec<Diagnostic>,
}

impl Policies {
    /// Takes the policies in these files, all or none.
    ///
    /// # Errors
    /// Everything wrong with any of them: a file without a policy, Cedar's syntax errors, what does
    /// not fit [`SCHEMA`], what cannot be kept exactly, an `@id` given twice.
    pub fn check(sources: &[Source]) -> Result<Self, PolicyError> {
        let check::Checked { rules, warnings, cedar } = check::check(sources)?;
        Ok(Self { rules, warnings, cedar })
    }

    /// Each policy, in the order of files and lines.
    #[must_use]
    pub fn report(&self) -> Vec<Kept> {
        let kept = |rule: &rule::Rule| {
            let inert = rule.places.is_none() && rule.peers.is_none();
            Kept {
                rule: rule.info.clone(),
                kept: if inert {
                    "kept exactly: it never matches"
                } else {
                    "kept in the kernel exactly"
                },
                warnings: self.warnings.get(&rule.info.id).cloned().unwrap_or_default(),
            }
        };
        self.rules.iter().map(kept).collect()
    }

    /// One agent's tables, with the built-in forbids. An agent that no policy is for gets tables
    /// that permit nothing.
    #[must_use]
    pub fn lower(&self, agent: &AgentName, groups: &[String], protected: &[Protected]) -> Lowered {
        lower::lower(&self.rules, agent, groups, protected)
    }

    /// The same policies as Cedar's authorizer takes them, under the same ids.
    #[must_use]
    pub fn cedar(&self) -> &cedar_policy::PolicySet {
        &self.cedar
    }
}
