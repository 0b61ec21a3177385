//! Expectations kept beside a policy: what each agent must be allowed and denied, in a TOML file.
//!
//! ```toml
//! policy = "coder.cedar"           # beside this file; a folder, or a list, where there are several
//!
//! [[agent]]
//! name = "coder"
//! groups = []                      # its groups, where the policies name any
//! attributes = { model = "m1" }    # and what else they ask of it
//! allow = [
//!     { read = "/etc/passwd" },
//!     { connect = "127.0.0.1:8080/tcp", by = "registry" },
//! ]
//! deny = [
//!     { read = "/work/.secrets/", by = "keys" },     # a path that ends with `/` is a folder
//!     { write = "/etc/passwd", by = "(no_permit)" },
//! ]
//! ```
//!
//! A row names one action with its target, and may say which policy is to decide, by the name that
//! events give to it. Paths are those of the objects themselves: no link of this machine is followed,
//! so that the file says the same everywhere.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use agent_ebpf::{Action, Reason};
use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::explain::{Judge, JudgeError, describe, parse_target};
use super::model::Target;
use super::rule::{self, AgentName, Attributes};
use super::{Policies, PolicyError, read_folder, read_source};

/// Why expectations were not run.
#[derive(Debug, thiserror::Error)]
pub enum ExpectError {
    /// The file could not be read.
    #[error("cannot read the expectations {path}: {error}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// It is no such file.
    #[error("the expectations {path} are refused:\n{error}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and why.
        error: Box<toml::de::Error>,
    },
    /// A row makes no sense.
    #[error("the expectations are refused: {path}:{line}: {what}")]
    Row {
        /// Which file.
        path: PathBuf,
        /// On which line.
        line: usize,
        /// What is wrong, and what to write.
        what: String,
    },
    /// The policies that they are about are refused.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// They are not lowered for an agent.
    #[error(transparent)]
    Judge(#[from] JudgeError),
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    policy: OneOrMore,
    #[serde(rename = "agent")]
    agents: Vec<Agent>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(PathBuf),
    More(Vec<PathBuf>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Agent {
    name: Spanned<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    attributes: Attributes,
    #[serde(default)]
    allow: Vec<Spanned<BTreeMap<String, String>>>,
    #[serde(default)]
    deny: Vec<Spanned<BTreeMap<String, String>>>,
}

/// What came of a file.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// How many rows came true.
    pub passed: usize,
    /// Those that did not.
    pub failed: Vec<Failure>,
}

/// A row that did not come true.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The row's line in the file.
    pub line: usize,
    /// Who.
    pub agent: AgentName,
    /// What.
    pub action: &'static str,
    /// To what.
    pub target: String,
    /// What was to come of it.
    pub expected: String,
    /// What did.
    pub got: String,
}

/// A row, understood.
struct Row {
    line: usize,
    action: Action,
    target: Target,
    allow: bool,
    by: Option<String>,
}

/// Runs the expectations in a file against the policies that it names.
///
/// # Errors
/// The file or a policy cannot be read or is refused.
pub fn run(path: &Path) -> Result<Outcome, ExpectError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ExpectError::Read { path: path.to_path_buf(), error })?;
    let written: Written = toml::from_str(&text)
        .map_err(|error| ExpectError::Parse { path: path.to_path_buf(), error: Box::new(error) })?;
    let beside = path.parent().unwrap_or(Path::new(""));
    let mut sources = Vec::new();
    let named = match &written.policy {
        OneOrMore::One(one) => std::slice::from_ref(one),
        OneOrMore::More(more) => more.as_slice(),
    };
    for name in named.iter().map(|name| beside.join(name)) {
        if name.is_dir() {
            sources.extend(read_folder(&name)?);
        } else {
            sources.push(read_source(&name)?);
        }
    }
    let policies = Policies::check(&sources)?;
    let at = |offset: usize| text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
    let refused = |offset: usize, what: String| ExpectError::Row {
        path: path.to_path_buf(),
        line: at(offset),
        what,
    };
    let mut outcome = Outcome { passed: 0, failed: Vec::new() };
    for agent in written.agents {
        let start = agent.name.span().start;
        let name = AgentName::parse(agent.name.get_ref())
            .map_err(|error| refused(start, error.to_string()))?;
        let subject =
            rule::Agent { name: name.clone(), groups: agent.groups, attributes: agent.attributes };
        let judge = Judge::new(&policies, subject, &[])?;
        let rows = agent.allow.into_iter().map(|row| (true, row));
        for (allow, row) in rows.chain(agent.deny.into_iter().map(|row| (false, row))) {
            let start = row.span().start;
            let row = understood(at(start), allow, row.into_inner())
                .map_err(|what| refused(start, what))?;
            match row.failure(&judge, &name) {
                None => outcome.passed += 1,
                Some(failure) => outcome.failed.push(failure),
            }
        }
    }
    Ok(outcome)
}

fn understood(line: usize, allow: bool, row: BTreeMap<String, String>) -> Result<Row, String> {
    let mut action = None;
    let mut by = None;
    for (key, value) in row {
        if key == "by" {
            by = Some(value);
            continue;
        }
        let known = Action::ALL.iter().find(|action| action.name() == key);
        let Some(known) = known else {
            let names: Vec<&str> = Action::ALL.iter().map(|action| action.name()).collect();
            return Err(format!(
                "`{key}` is no action: write one of {}, and perhaps `by`",
                names.join(", ")
            ));
        };
        if action.is_some() {
            return Err("a row has one action: write another row for the second".to_owned());
        }
        action = Some((*known, parse_target(*known, &value)?));
    }
    let (action, target) = action.ok_or_else(|| {
        "a row without an action: write as in `{ read = \"/etc/passwd\" }`".to_owned()
    })?;
    Ok(Row { line, action, target, allow, by })
}

impl Row {
    fn failure(&self, judge: &Judge, agent: &AgentName) -> Option<Failure> {
        let decision = judge.decide(self.action, &self.target);
        let allowed = decision.reason == Reason::Permitted;
        let by = judge.decider(decision);
        if allowed == self.allow && self.by.as_ref().is_none_or(|wanted| *wanted == by) {
            return None;
        }
        let verdict = |allow| if allow { "allow" } else { "deny" };
        let expected = match &self.by {
            Some(by) => format!("{} by {by}", verdict(self.allow)),
            None => verdict(self.allow).to_owned(),
        };
        Some(Failure {
            line: self.line,
            agent: agent.clone(),
            action: self.action.name(),
            target: describe(&self.target),
            expected,
            got: format!("{} by {by}", verdict(allowed)),
        })
    }
}

impl Outcome {
    /// The outcome for people: a table of what failed, and the counts.
    #[must_use]
    pub fn text(&self) -> String {
        let heads = ["LINE", "AGENT", "ACTION", "TARGET", "EXPECTED", "GOT"].map(str::to_owned);
        let rows: Vec<[String; 6]> = std::iter::once(heads)
            .chain(self.failed.iter().map(|one| {
                [
                    one.line.to_string(),
                    one.agent.to_string(),
                    one.action.to_owned(),
                    one.target.clone(),
                    one.expected.clone(),
                    one.got.clone(),
                ]
            }))
            .collect();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let mut text = String::new();
        // Writing to a `String` cannot fail.
        if !self.failed.is_empty() {
            for row in &rows {
                let mut line = String::new();
                for (column, cell) in row.iter().enumerate() {
                    let _ = write!(line, "{cell:<width$}  ", width = width(column));
                }
                let _ = writeln!(text, "{}", line.trim_end());
            }
        }
        let _ = writeln!(text, "{} passed, {} failed", self.passed, self.failed.len());
        text
    }
}
