//! What a policy's annotations tell of it, checked when it is taken, so that every event that it
//! decides can say why: `@reason`, `@severity`, `@asi` and `@attack`, beside its `@id`.

use std::collections::BTreeMap;

use super::diagnostic::{Diagnostic, Text, nearest};
use super::syntax::Shape;

/// The longest `@reason`, in bytes: it stands in every event.
const REASON_MAX: usize = 512;

/// The severities of OCSF, each at the place of its number less one.
const SEVERITIES: [&str; 6] = ["informational", "low", "medium", "high", "critical", "fatal"];

/// The annotations that mean something.
const KNOWN: [&str; 5] = ["id", "reason", "severity", "asi", "attack"];

/// A policy's annotations, as events take them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notes<'a>(&'a BTreeMap<String, String>);

impl<'a> Notes<'a> {
    pub(super) const fn new(annotations: &'a BTreeMap<String, String>) -> Self {
        Self(annotations)
    }

    fn get(self, key: &str) -> Option<&'a str> {
        self.0.get(key).map(String::as_str)
    }

    fn list(self, key: &str) -> impl Iterator<Item = &'a str> + Clone {
        let items = self.get(key).map(|text| text.split(',')).into_iter().flatten();
        items.map(str::trim)
    }

    /// Why the policy is there, in its author's words.
    #[must_use]
    pub fn reason(self) -> Option<&'a str> {
        self.get("reason")
    }

    /// How grave it is, as OCSF numbers it: 1 informational to 6 fatal.
    #[must_use]
    pub fn severity(self) -> Option<u64> {
        let name = self.get("severity")?;
        (1..).zip(SEVERITIES).find(|(_, known)| *known == name).map(|(number, _)| number)
    }

    /// Risks of the OWASP Top 10 for Agentic Applications, such as `ASI03`.
    pub fn asi(self) -> impl Iterator<Item = &'a str> + Clone {
        self.list("asi")
    }

    /// Techniques of MITRE ATT&CK and ATLAS, such as `T1552.001` and `AML.T0055`.
    pub fn attacks(self) -> impl Iterator<Item = &'a str> + Clone {
        self.list("attack")
    }
}

/// Looks at a policy's annotations; what is probably a slip of the pen goes to `warnings`.
///
/// # Errors
/// Every annotation that events could not tell.
pub(super) fn check(
    text: &Text<'_>,
    annotations: &BTreeMap<String, String>,
    shape: &Shape<'_>,
    warnings: &mut Vec<Diagnostic>,
) -> Result<(), Vec<Diagnostic>> {
    let mut problems = Vec::new();
    for (key, value) in annotations {
        let at = shape.annotations.iter().find(|(name, _)| *name == key);
        let range = at.map_or_else(|| shape.effect.range(), |(_, words)| words.range());
        let mut refuse = |message: String, help: String| {
            problems.push(text.error(range.clone(), message, help));
        };
        match key.as_str() {
            "reason" if value.trim().is_empty() => {
                refuse("an empty `@reason`".to_owned(), "say why the policy is there".to_owned());
            }
            "reason" if value.len() > REASON_MAX => refuse(
                format!(
                    "a `@reason` of {} bytes; at most {REASON_MAX} fit into events",
                    value.len()
                ),
                "say it in a sentence".to_owned(),
            ),
            "severity" if !SEVERITIES.contains(&value.as_str()) => {
                let list = SEVERITIES.join(", ");
                let help = match nearest(value, SEVERITIES) {
                    Some(near) => format!("did you mean `{near}`? The severities are {list}"),
                    None => format!("the severities are {list}"),
                };
                refuse(format!("there is no severity `{value}`"), help);
            }
            "asi" => {
                for one in value.split(',').map(str::trim).filter(|one| !is_asi(one)) {
                    refuse(
                        format!("`{one}` is no risk of the OWASP Top 10 for Agentic Applications"),
                        "write ASI01 to ASI10, as in `@asi(\"ASI03\")`; several with commas"
                            .to_owned(),
                    );
                }
            }
            "attack" => {
                for one in value.split(',').map(str::trim).filter(|one| !is_technique(one)) {
                    refuse(
                        format!("`{one}` is no technique of MITRE ATT&CK or ATLAS"),
                        "write its id, as in `@attack(\"T1552.001\")` or `@attack(\"AML.T0055\")`; \
                         several with commas"
                            .to_owned(),
                    );
                }
            }
            other if !KNOWN.contains(&other) => {
                if let Some(near) = nearest(other, KNOWN) {
                    warnings.push(text.warning(
                        range,
                        format!("`@{other}` means nothing to Ambit"),
                        format!("did you mean `@{near}`?"),
                    ));
                }
            }
            _ => {}
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

fn is_asi(text: &str) -> bool {
    let number = text.strip_prefix("ASI").filter(|digits| digits.len() == 2);
    number.and_then(|digits| digits.parse().ok()).is_some_and(|number: u8| {
        (1..=10).contains(&number) && text.bytes().skip(3).all(|byte| byte.is_ascii_digit())
    })
}

/// `T` and four digits, perhaps `.` and three; ATLAS begins with `AML.`.
fn is_technique(text: &str) -> bool {
    let digits =
        |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.strip_prefix("AML.").unwrap_or(text).strip_prefix('T');
    number.is_some_and(|number| match number.split_once('.') {
        Some((technique, sub)) => digits(technique, 4) && digits(sub, 3),
        None => digits(number, 4),
    })
}

/// The technique that a sub-technique belongs to, and the sub-technique where it is one.
#[must_use]
pub fn technique(id: &str) -> (&str, Option<&str>) {
    let digits = |part: &str| part.len() == 3 && part.bytes().all(|byte| byte.is_ascii_digit());
    match id.rsplit_once('.') {
        Some((technique, sub)) if digits(sub) => (technique, Some(id)),
        _ => (id, None),
    }
}
