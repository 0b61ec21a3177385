//! Taking policy files: Cedar's parser, then what can be kept, then Cedar's validator, and every
//! problem of every file in one answer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use cedar_policy::{
    Policy, PolicyId, PolicySet, Schema, ValidationError, ValidationMode, Validator,
};
use miette::Diagnostic as _;

use super::diagnostic::{Diagnostic, PolicyError, Severity, Text};
use super::formula::Test;
use super::labels::Labels;
use super::parse::{self, Found, foreign};
use super::peers::Net;
use super::rule::{Effect, Rule, RuleInfo};
use super::scope::Type;
use super::syntax::{Kind, Shape, Words, tokens};
use super::{Source, condition, lower, notes, scope};

/// The stack on which files are read: Cedar's parser and validator recurse, and a thread's usual
/// 2 MiB hold 30 nested brackets or 100 chained operators of an unoptimized build.
const STACK_BYTES: usize = 32 << 20;
/// The most words that one policy may have, so that no policy can exhaust that stack.
pub(super) const MAX_WORDS: usize = 1000;
/// The deepest nesting of brackets in one policy.
pub(super) const MAX_DEPTH: usize = 64;

/// The most policies that one file may have: no file of [`super::MAX_FILE_BYTES`] has many more.
const MAX_POLICIES: usize = 250_000;

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

/// From this many policies on, Cedar is given one of each form, and the rest are read like it: its
/// parser and validator take 50 microseconds for each.
const MANY: usize = 1_000;

/// What was taken, and what was remarked on the way.
pub(super) struct Checked {
    pub(super) rules: Vec<Rule>,
    pub(super) warnings: HashMap<String, Vec<Diagnostic>>,
    /// Each rule's text.
    pub(super) texts: Vec<String>,
    pub(super) labels: Labels,
    /// What was remarked of no policy.
    pub(super) remarks: Vec<Diagnostic>,
}

/// A policy that is taken so far, and where it stands.
struct Taken {
    rule: Rule,
    /// As Cedar knows it; `None` for one that was read like another of the same form.
    policy: Option<Policy>,
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
            .spawn_scoped(scope, || {
                let many = |source: &Source| source.text.bytes().filter(|one| *one == b';').count();
                // Whatever is remarked is remarked on each.
                let policies = sources.iter().filter(|source| !source.is_entities());
                let alike = policies.map(many).sum::<usize>() >= MANY;
                let read_alike = alike.then(|| read(sources, true).ok()).flatten();
                match read_alike.filter(|checked| checked.warnings.is_empty()) {
                    Some(checked) => Ok(checked),
                    None => read(sources, false),
                }
            })
            .map_err(|error| failed(&format!("no thread to read policies on: {error}")))?
            .join()
            .unwrap_or_else(|_| Err(failed("Cedar's parser failed on this policy")))
    })
}

pub(super) fn read(sources: &[Source], alike: bool) -> Result<Checked, PolicyError> {
    let schema = schema()?;
    let texts: Vec<Text<'_>> = sources.iter().map(Text::new).collect();
    let mut problems: Vec<(usize, usize, Diagnostic)> = Vec::new();
    let mut taken: Vec<Taken> = Vec::new();
    let mut ids = Ids::default();
    let labels = Labels::read(&texts, &mut problems);
    for (index, text) in texts.iter().enumerate().filter(|(_, text)| !text.source.is_entities()) {
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
        // The first policy of each form, and which of them each policy is like.
        let mut forms: HashMap<String, usize> = HashMap::new();
        let mut firsts: Vec<Range<usize>> = Vec::new();
        let like: Vec<(usize, bool)> = bearable
            .iter()
            .map(|words| {
                let known = if alike { forms.get(&form(*words)).copied() } else { None };
                let number = known.unwrap_or(firsts.len());
                if known.is_none() {
                    firsts.push(words.range());
                    if alike {
                        forms.insert(form(*words), number);
                    }
                }
                (number, known.is_none())
            })
            .collect();
        let parsed = parse::policies(text, &firsts);
        for (words, (number, first)) in bearable.into_iter().zip(like) {
            let range = words.range();
            let Some(parsed) = parsed.get(number).cloned() else {
                continue;
            };
            let (start, offset) = (range.start, parsed.as_ref().map_or(0, |found| found.offset));
            match parsed.and_then(|found| one(text, words, &found, &labels, &mut ids)) {
                Ok((rule, policy, warnings)) => {
                    let policy = first.then_some(policy);
                    taken.push(Taken { rule, policy, source: index, range, offset, warnings })
                }
                Err(found) => fault(start, found),
            }
        }
    }
    if sources.iter().all(Source::is_entities) {
        problems.push((0, 0, no_policy("policy")));
    }
    let mut cedar = PolicySet::new();
    for one in &taken {
        if let Some(policy) = &one.policy
            && let Err(error) = cedar.add(policy.clone())
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
        let mut written = Vec::with_capacity(taken.len());
        for one in taken {
            if !one.warnings.is_empty() {
                warnings.insert(one.rule.info.id.clone(), one.warnings);
            }
            let text = sources.get(one.source).and_then(|source| source.text.get(one.range));
            written.push(text.unwrap_or_default().to_owned());
            rules.push(one.rule);
        }
        let mut spoken = BTreeSet::new();
        for rule in &rules {
            rule.each_test(&mut |test| {
                if let Test::Labelled(label) = test {
                    spoken.insert(label.label.clone());
                }
            });
        }
        let remarks = labels.unspoken(&texts, &spoken);
        return Ok(Checked { rules, warnings, texts: written, labels, remarks });
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

/// A policy's words with a mark for each literal that has no part in whether Cedar takes it: the ids of
/// agents, groups and places, addresses, ports, paths, patterns and annotations. Of two policies of one
/// form Cedar takes both or none, and says the same of both.
fn form(words: Words<'_>) -> String {
    // Cedar remarks on letters that look like others, and this does not read escapes.
    let plain =
        |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'\\');
    let mut found = String::with_capacity(128);
    for at in 0..words.len() {
        let text = words.text(at);
        let free = match words.kind(at) {
            Some(Kind::Str) if plain(text) => {
                let before = |back: usize| at.checked_sub(back).map_or("", |at| words.text(at));
                match (before(2), before(1)) {
                    ("Action", "::") => false,
                    // Cedar does not take every spelling of an address that the standard does.
                    ("ip", "(") => {
                        let parsed = Net::parse(text.trim_matches('"'));
                        parsed.is_ok() && !(text.contains(':') && text.contains('.'))
                    }
                    (_, "::" | "like") | ("path" | "host", "==" | "!=") => true,
                    (_, "(") => before(3) == "@",
                    _ => false,
                }
            }
            Some(Kind::Number) => text.len() < 6,
            _ => false,
        };
        found.push_str(match (free, words.kind(at)) {
            (false, _) => text,
            (true, Some(Kind::Number)) => "0",
            (true, _) => "\"\"",
        });
        found.push(' ');
    }
    found
}

/// Takes one policy, up to what only all policies together can show. What Cedar found may be of another
/// policy of the same form: literals are read from the words.
fn one(
    text: &Text<'_>,
    words: Words<'_>,
    Found { policy, .. }: &Found,
    labels: &Labels,
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
    let annotations = annotations(policy, &shape);
    let id = ids
        .name(text, &annotations, &shape, range.start)
        .map_err(|problem| problems.push(*problem));
    let head = scope::head(text, policy, &shape, labels).map_err(|found| problems.extend(found));
    let mut head = head.ok();
    let mut warnings =
        head.as_mut().map(|head| std::mem::take(&mut head.warnings)).unwrap_or_default();
    let condition = condition::conditions(text, &shape, head.as_ref(), labels, &mut warnings)
        .map_err(|found| problems.extend(found));
    if let Err(found) = notes::check(text, &annotations, &shape, &mut warnings) {
        problems.extend(found);
    }
    let (Ok(id), Some(head), Ok(condition), true) = (id, head, condition, problems.is_empty())
    else {
        return Err(problems);
    };
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
    let info = Arc::new(info);
    let rule = Rule {
        info,
        who: head.who,
        resource: head.resource,
        facets: head.facets,
        peers: head.peers,
        numbered: head.numbered,
        condition,
    };
    if rule.info.effect == Effect::Forbid && lower::only_named(&rule) {
        warnings.push(text.warning(
            range.clone(),
            "this forbids an address only while the agent knows it by that name; one that it has from elsewhere \
             has no name",
            "permit the names that are meant, and nothing else: what no policy permits is denied",
        ));
    }
    let mut unlabelled = false;
    rule.each_test(&mut |test| {
        unlabelled |= matches!(test, Test::Labelled(label) if label.is_empty());
    });
    // Of a label that nothing has it is said already.
    if lower::never(&rule) && !unlabelled {
        let range = match (shape.clauses.first(), shape.clauses.last()) {
            (Some((first, _)), Some((_, last))) => first.range().start..last.range().end,
            _ => range,
        };
        warnings.push(text.warning(
            range,
            "nothing can fulfil this, so the policy never matches",
            "one peer has one address, one port and one protocol, and one file one path: \
             write one policy for each that is meant, or join them with `||`",
        ));
    }
    Ok((rule, policy, warnings))
}

/// A policy's annotations, with the values that its own words have.
fn annotations(policy: &Policy, shape: &Shape<'_>) -> BTreeMap<String, String> {
    let own = |name: &str| {
        let (_, words) = shape.annotations.iter().find(|(other, _)| *other == name)?;
        words.plain_text(3)
    };
    let value =
        |(name, value): (&str, &str)| (name.to_owned(), own(name).unwrap_or(value).to_owned());
    policy.annotations().map(value).collect()
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
        annotations: &BTreeMap<String, String>,
        shape: &Shape<'_>,
        start: usize,
    ) -> Result<String, Box<Diagnostic>> {
        let place = text.place(start);
        if let Some(id) = annotations.get("id") {
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
        if let Some(one) = by_id.get_mut(&id)
            && let Some(text) = texts.get(one.source)
        {
            let mut said = foreign(text, one.offset, &one.range, error);
            // What was remarked on a policy that means nothing may be wrong.
            one.warnings.clear();
            if let ValidationError::UnsafeAttributeAccess(_) = error
                && let Some(span) = &said.span
            {
                let asked: String =
                    span.text.chars().skip(span.indent).take(span.underlined).collect();
                said.message = format!("`{asked}` is asked of what has no such attribute too");
                said.help = Some(format!(
                    "only a Peer has `ip`, `port` and `protocol`, and only a File, Dir, Program or \
                     UnixSocket has `path` and `labels`:\nwrite `resource is Peer` in the head, or `resource has port && …` \
                     before `{asked}`"
                ));
            }
            // Cedar says it once for each type of resource.
            let again = |(_, _, other): &(usize, usize, Diagnostic)| *other == said;
            if !problems.iter().rev().take(Type::ALL.len()).any(again) {
                problems.push((one.source, one.range.start, said));
            }
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
