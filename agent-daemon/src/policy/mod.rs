//! What: Cedar, checked and lowered to the tables that `decide` asks.
//!
//! The way of a rule: [`read_source`] or [`read_folder`], then [`Policies::check`], then for each
//! agent [`Policies::lower`]. What cannot be kept exactly in the kernel is refused on the way, with
//! its place and what to write instead; nothing is dropped, cut, widened or narrowed.
//!
//! `resource in Dir::"/x"` is whatever is found at `/x` and everything beneath it, by whole path
//! components; so in Cedar's terms every object is `in` the `Dir` of its own path and of each folder
//! above ([`model`] builds exactly these entities). Labels come from files of entities beside the
//! policies, and are those of the places that they are given to ([`Labels`]).

mod atoms;
pub mod ceiling;
mod check;
pub mod compare;
mod condition;
pub mod content;
mod diagnostic;
pub mod expect;
pub mod explain;
mod expression;
mod fold;
mod formula;
mod hashed;
pub mod hosts;
mod labels;
mod lower;
pub mod model;
mod notes;
pub mod object;
mod parse;
mod pattern;
mod peers;
mod places;
mod rule;
mod scope;
mod source;
mod suggest;
mod syntax;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde::Serialize;

pub use check::{SCHEMA, schema};
pub use diagnostic::{Diagnostic, PolicyError, Severity, Span};
pub use hashed::{HashedTables, WithContent};
pub use hosts::{Hosts, KnownBy};
pub use labels::{Held, Labels};
pub use lower::{Collision, Lowered, PROTECTED_ID};
pub use model::Target;
pub use notes::{Notes, technique};
pub use places::Place;
pub use rule::{Agent, AgentName, Attributes, BadAgentName, Effect, Protected, RuleInfo};
pub use source::{MAX_FILE_BYTES, Source, read_folder, read_source};
pub use suggest::{Attempt, suggest};

/// Policies that were taken, for all agents.
#[derive(Clone, Debug)]
pub struct Policies {
    rules: Vec<rule::Rule>,
    warnings: HashMap<String, Vec<Diagnostic>>,
    /// Each rule's text.
    texts: Arc<Vec<String>>,
    /// Everything that the rules ask of an agent.
    questions: Arc<HashSet<formula::AgentTest>>,
    /// The labels of places.
    labels: Arc<Labels>,
    remarks: Vec<Diagnostic>,
    known: Known,
}

/// Tables that are in use, by the questions that the agent answers with yes and by what is built in:
/// agents that answer alike are bound alike.
type Known = Arc<Mutex<HashMap<(Vec<bool>, Vec<Protected>), Weak<Lowered>>>>;

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
    /// Takes the policies in these files, with the entities in those whose names end with
    /// `.entities.json`, all or none.
    ///
    /// # Errors
    /// Everything wrong with any of them: a file without a policy, Cedar's syntax errors, what does
    /// not fit [`SCHEMA`], what cannot be kept exactly, an `@id` given twice.
    pub fn check(sources: &[Source]) -> Result<Self, PolicyError> {
        let check::Checked { rules, warnings, texts, labels, remarks } = check::check(sources)?;
        let mut questions = HashSet::new();
        for rule in &rules {
            rule.each_question(&mut |question| {
                if !questions.contains(question) {
                    questions.insert(question.clone());
                }
            });
        }
        let (questions, texts) = (Arc::new(questions), Arc::new(texts));
        let labels = Arc::new(labels);
        Ok(Self { rules, warnings, texts, questions, labels, remarks, known: Known::default() })
    }

    /// Each policy, in the order of files and lines.
    #[must_use]
    pub fn report(&self) -> Vec<Kept> {
        let kept = |rule: &rule::Rule| {
            let inert = lower::never(rule);
            Kept {
                rule: rule.info.as_ref().clone(),
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

    /// What the author of the entities should look at.
    #[must_use]
    pub fn remarks(&self) -> &[Diagnostic] {
        &self.remarks
    }

    /// One agent's tables, with the built-in forbids. An agent that no policy is for gets tables
    /// that permit nothing.
    ///
    /// # Errors
    /// The policies that are for this agent need more room than there is, with place and count.
    pub fn lower(
        &self,
        agent: &Agent,
        protected: &[Protected],
    ) -> Result<Arc<Lowered>, PolicyError> {
        let answers = self.questions.iter().map(|question| question.holds(agent)).collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key: (Vec<bool>, _) = (answers, protected.to_vec());
        if let Some(lowered) = known.get(&key).and_then(Weak::upgrade) {
            return Ok(lowered);
        }
        known.retain(|_, lowered| lowered.strong_count() > 0);
        let lowered = Arc::new(lower::lower(&self.rules, agent, protected)?);
        known.insert(key, Arc::downgrade(&lowered));
        Ok(lowered)
    }

    /// The same policies as Cedar's authorizer takes them, under the same ids; made for each call.
    ///
    /// # Errors
    /// Cedar refuses what it took before, which is a fault in Ambit.
    pub fn cedar(&self) -> Result<cedar_policy::PolicySet, String> {
        let policies = self.rules.iter().zip(self.texts.iter()).map(|(rule, text)| {
            let id = cedar_policy::PolicyId::new(&rule.info.id);
            cedar_policy::Policy::parse(Some(id), text).map_err(|error| error.to_string())
        });
        let policies = policies.collect::<Result<Vec<_>, _>>()?;
        cedar_policy::PolicySet::from_policies(policies).map_err(|error| error.to_string())
    }
}
