//! Taking policy files: Cedar's parser, then what can be kept, then Cedar's validator, and every
//! problem of every file in one answer.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::str::FromStr;
use std::sync::OnceLock;

use cedar_policy::{Policy, PolicyId, PolicySet, Schema, ValidationMode, Validator};
use miette::Diagnostic as _;

use super::diagnostic::{Diagnostic, PolicyError, Severity, Text};
use super::parse::{self, Found, foreign};
use super::rule::{Effect, Rule, RuleInfo};
use super::syntax::{Kind, Shape, Words, tokens};
use super::{Source, condition, scope};

/// The stack on which files are read: Cedar's parser and validator recurse, and a thread's usual
/// 2 MiB hold 30 nested brackets or 100 chained operators of an unoptimized build.
const STACK_BYTES: usize = 32 << 20;
/// The most words that one policy may have, so that no policy can exhaust that stack.
pub(super) const MAX_WORDS: usize = 1000;
/// The deepest nesting of brackets in one policy.
pub(super) const MAX_DEPTH: usize = 64;

/// The most policies that one file may have: no file of [`super::MAX_FILE_BYTES`] has many more.
const MAX_POLICIES: usize = 100_000;

/// The vocabulary of Ambit's policies, in Cedar's schema language.
pub const SCHEMA: &str = include_str!("policy.cedarschema");

/// [`SCHEMA`], parsed.
///
/// # Errors
/// The text above is no schema; a test sees to it that it is one.
pub fn schema() -> Result<&'static Schema, PolicyError> {
    static PARSED: OnceLock<Result<Schema, String>> = OnceLock::new();
    let parsed = PARSED.get_or_init(|| Schema::from_str(SCHEMA).map_err(|e| e.to_string()));
    parsed.as_ref().map_err(|error| {
        let file = "policy.cedarschema";
        Diagnostic::of_file(file, error.clone(), "this is a fault in Ambit: please report it")
            .into()
    })
}

/// What was taken, and what was remarked on the way.
pub(super) struct Checked {
    pub(super) rules: Vec<Rule>,
    pub(super) warnings: HashMap<String, Vec<Diagnostic>>,
    pub(super) cedar: PolicySet,
}

/// A policy that is taken so far, and where it stands.
struct Taken {
    rule: Rule,
    policy: Policy,
    source: usize,
    range: Range<usize>,
    /// Where in the file the text began that Cedar's places count from.
    offset: usize,
    warnings: Vec<Diagnostic>,
}

pub(super) fn check(sources: &[Source]) -> Result<Checked, PolicyError> {
    let failed = |what: &str| {
        let help = "free some memory and try again; if it happens again, please report it";
        PolicyError::from(Diagnostic::of_file("policy", what, help))
    };
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("policy-check".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || read(sources))
            .map_err(|error| failed(&format!("no thread to read policies on: {error}")))?
            .join()
            .unwrap_or_else(|_| Err(failed("Cedar's parser failed on this policy")))
    })
}

fn read(sources: &[Source]) -> Result<Checked, PolicyError> {
    let schema = schema()?;
    let texts: Vec<Text<'_>> = sources.iter().map(Text::new).collect();
    let mut problems: Vec<(usize, usize, Diagnostic)> = Vec::new();
    let mut taken: Vec<Taken> = Vec::new();
    let mut ids = Ids::default();
    for (index, text) in texts.iter().enumerate() {
        if text.source.text.starts_with('\u{feff}') {
            let help = "save the file as UTF-8 without a byte order mark";
            let found = text.error(0..1, "the file begins with a byte order mark", help);
            problems.push((index, 0, found));
            continue;
        }
        let found = tokens(&text.source.text);
        let words = Words::new(&text.source.text, &found);
        if words.is_empty() {
            problems.push((index, 0, no_policy(&text.source.name)));
        }
        let mut fault = |start, found: Problems| {
            problems.extend(found.into_iter().map(|one| (index, start, one)));
        };
        if let Some(first) = words.policies().nth(MAX_POLICIES) {
            let message = format!("more than {MAX_POLICIES} policies in one file");
            let help = "split it into several `.cedar` files in one folder";
            fault(0, vec![text.error(first.range(), message, help)]);
            continue;
        }
        let mut bearable = Vec::new();
        for words in words.policies() {
            match bearable_to_the_parser(text, words) {
                Ok(()) => bearable.push(words),
                Err(found) => fault(words.range().start, found),
            }
        }
        let ranges: Vec<Range<usize>> = bearable.iter().map(|words| words.range()).collect();
        let parsed = parse::policies(text, &ranges);
        for ((words, range), parsed) in bearable.into_iter().zip(ranges).zip(parsed) {
            let (start, offset) = (range.start, parsed.as_ref().map_or(0, |found| found.offset));
            match parsed.and_then(|found| one(text, words, found, &mut ids)) {
                Ok((rule, policy, warnings)) => {
                    taken.push(Taken { rule, policy, source: index, range, offset, warnings })
                }
                Err(found) => fault(start, found),
            }
        }
    }
    if sources.is_empty() {
        problems.push((0, 0, no_policy("policy")));
    }
    let mut cedar = PolicySet::new();
    for one in &taken {
        if let Err(error) = cedar.add(one.policy.clone())
            && let Some(text) = texts.get(one.source)
        {
            let help = "give every policy an `@id(\"…\")` of its own";
            let found = text.error(one.range.clone(), error.to_string(), help);
            problems.push((one.source, one.range.start, found));
        }
    }
    validate(schema, &cedar, &texts, &mut taken, &mut problems);
    if problems.is_empty() {
        let mut rules = Vec::with_capacity(taken.len());
        let mut warnings = HashMap::new();
        for one in taken {
            if !one.warnings.is_empty() {
                warnings.insert(one.rule.info.id.clone(), one.warnings);
            }
            rules.push(one.rule);
        }
        return Ok(Checked { rules, warnings, cedar });
    }
    for one in taken {
        let found = one.warnings.into_iter();
        problems.extend(found.map(|warning| (one.source, one.range.start, warning)));
    }
    problems.sort_by_key(|(source, start, one)| {
        let span = one.span.as_ref();
        (*source, span.map(|span| (span.line, span.column)), *start)
    });
    let all = problems.into_iter().map(|(_, _, one)| one).collect();
    Err(PolicyError::new(all))
}

fn no_policy(name: &str) -> Diagnostic {
    Diagnostic::of_file(
        name,
        "there is no policy in it, so it would leave every action of every agent denied",
        "write a policy; to deny everything on purpose, write `forbid(principal, action, resource);`",
    )
}

type Problems = Vec<Diagnostic>;

/// Refuses what Cedar's parser cannot be given: too much of it, and templates.
fn bearable_to_the_parser(text: &Text<'_>, words: Words<'_>) -> Result<(), Problems> {
    let start = words.range().start;
    if words.len() > MAX_WORDS || words.depth() > MAX_DEPTH {
        return Err(vec![text.error(
            start..start + 1,
            format!(
                "a policy of more than {MAX_WORDS} words, or of brackets more than {MAX_DEPTH} deep"
            ),
            "split it into several policies, and see that each ends with `;`",
        )]);
    }
    let slots: Problems = (0..words.len())
        .filter(|index| words.kind(*index) == Some(Kind::Slot))
        .map(|index| {
            text.error(
                words.sub(index..index + 1).range(),
                format!("`{}`: templates cannot be kept", words.text(index)),
                "write the agent or the resource that is meant, one policy for each",
            )
        })
        .collect();
    if slots.is_empty() { Ok(()) } else { Err(slots) }
}

/// Takes one policy, up to what only all policies together can show.
fn one(
    text: &Text<'_>,
    words: Words<'_>,
    Found { policy, .. }: Found,
    ids: &mut Ids,
) -> Result<(Rule, Policy, Problems), Problems> {
    let range = words.range();
    let Some(shape) = Shape::of(words) else {
        return Err(vec![text.error(
            range,
            "this policy's form is not understood",
            "write `permit(principal, action, resource);`, with `when { … }` before the semicolon",
        )]);
    };
    let mut problems = Vec::new();
    let id =
        ids.name(text, &policy, &shape, range.start).map_err(|problem| problems.push(*problem));
    let head = scope::head(text, &policy, &shape).map_err(|found| problems.extend(found));
    let mut head = head.ok();
    let mut warnings =
        head.as_mut().map(|head| std::mem::take(&mut head.warnings)).unwrap_or_default();
    let peers = condition::peers(text, &policy, &shape, head.as_ref(), &mut warnings)
        .map_err(|found| problems.extend(found));
    let (Ok(id), Some(head), Ok(peers)) = (id, head, peers) else {
        return Err(problems);
    };
    let annotations: BTreeMap<String, String> =
        policy.annotations().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let info = RuleInfo {
        id,
        effect: match policy.effect() {
            cedar_policy::Effect::Permit => Effect::Permit,
            cedar_policy::Effect::Forbid => Effect::Forbid,
        },
        place: text.place(range.start),
        annotations,
    };
    let policy = policy.new_id(PolicyId::new(&info.id));
    let rule = Rule { info, who: head.who, places: head.places, peers };
    Ok((rule, policy, warnings))
}

/// The names of policies, each given once.
#[derive(Default)]
struct Ids {
    given: HashMap<String, String>,
}

impl Ids {
    /// A policy's id: its `@id`, else its file and line, and its column too when two share a line.
    fn name(
        &mut self,
        text: &Text<'_>,
        policy: &Policy,
        shape: &Shape<'_>,
        start: usize,
    ) -> Result<String, Box<Diagnostic>> {
        let place = text.place(start);
        if let Some(id) = policy.annotation("id") {
            let at = shape.annotations.iter().find(|(name, _)| *name == "id");
            let range = at.map_or_else(|| shape.effect.range(), |(_, words)| words.range());
            let refuse = |message: String, help: &str| {
                Err(Box::new(text.error(range.clone(), message, help)))
            };
            if id.is_empty() {
                return refuse(
                    "an empty `@id`".to_owned(),
                    "write a name, as in `@id(\"read-sources\")`",
                );
            }
            if id.starts_with("ambit:") {
                let help = "choose another name: those that begin with `ambit:` are built in";
                return refuse(format!("the id `{id}` is not free"), help);
            }
            if let Some(other) = self.given.get(id) {
                let message = format!("the id `{id}` is already that of the policy at {other}");
                return refuse(
                    message,
                    "events name the policy that decided: give each its own id",
                );
            }
            self.given.insert(id.to_owned(), place);
            return Ok(id.to_owned());
        }
        let (line, column) = text.position(start);
        let name = text.source.name.as_str();
        let file = name.rsplit('/').next().unwrap_or(name);
        let candidates = [
            format!("{file}:{line}"),
            format!("{file}:{line}:{column}"),
            format!("{name}:{line}:{column}"),
        ];
        for id in candidates {
            if !self.given.contains_key(&id) {
                self.given.insert(id.clone(), place);
                return Ok(id);
            }
        }
        Err(Box::new(text.error(
            shape.effect.range(),
            "no id can be made for this policy: another has its file and line as `@id`",
            "write an `@id(\"…\")` before it",
        )))
    }
}

/// Cedar's own check against [`SCHEMA`].
fn validate(
    schema: &Schema,
    cedar: &PolicySet,
    texts: &[Text<'_>],
    taken: &mut [Taken],
    problems: &mut Vec<(usize, usize, Diagnostic)>,
) {
    static VALIDATOR: OnceLock<Validator> = OnceLock::new();
    let validator = VALIDATOR.get_or_init(|| Validator::new(schema.clone()));
    let result = validator.validate(cedar, ValidationMode::Strict);
    let found = || {
        let errors = result.validation_errors();
        errors.map(|error| (error.policy_id().to_string(), error))
    };
    let mut by_id: HashMap<String, &mut Taken> =
        taken.iter_mut().map(|one| (one.rule.info.id.clone(), one)).collect();
    for (id, error) in found() {
        if let Some(one) = by_id.get(&id)
            && let Some(text) = texts.get(one.source)
        {
            let said = foreign(text, one.offset, &one.range, error);
            problems.push((one.source, one.range.start, said));
        }
    }
    for warning in result.validation_warnings() {
        if let Some(one) = by_id.get_mut(&warning.policy_id().to_string())
            && let Some(text) = texts.get(one.source)
        {
            let mut said = foreign(text, one.offset, &one.range, warning);
            said.severity = Severity::Warning;
            if warning.help().is_none() {
                said.help = None;
            }
            one.warnings.push(said);
        }
    }
}
