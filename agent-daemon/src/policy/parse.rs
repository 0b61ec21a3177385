//! A file's policies through Cedar's parser: all at once, because each start of its lexer costs more
//! than a policy does, and again without the faulty ones until the rest is understood.

use std::ops::Range;
use std::str::FromStr;

use cedar_policy::{Policy, PolicyId, PolicySet};

use super::diagnostic::{Diagnostic, Text};

/// How often faulty policies are taken out before those that are left are parsed one by one.
const ROUNDS: usize = 3;

/// What came of one policy's text.
pub(super) type Parsed = Result<Found, Vec<Diagnostic>>;

/// A policy as Cedar understood it.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) policy: Policy,
    /// Where in the file the text began that Cedar's places count from.
    pub(super) offset: usize,
}

/// Parses the policies at these bytes of a file, which are in order and do not overlap.
pub(super) fn policies(text: &Text<'_>, ranges: &[Range<usize>]) -> Vec<Parsed> {
    let mut faults: Vec<Vec<Diagnostic>> = ranges.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        let left = |index: &usize| faults.get(*index).is_some_and(Vec::is_empty);
        let left: Vec<usize> = (0..ranges.len()).filter(left).collect();
        match PolicySet::from_str(&only(text, ranges, &left)) {
            Ok(set) => {
                if let Some(found) = matched(text, &set, ranges, &left) {
                    let mut found = found.into_iter();
                    let each = faults.into_iter().map(|faults| match faults.is_empty() {
                        true => found.next().ok_or(faults),
                        false => Err(faults),
                    });
                    return each.collect();
                }
                break;
            }
            Err(errors) => {
                let mut blamed = false;
                for error in errors.iter() {
                    let at = start(error);
                    // Cedar counts the end of the text as a place too: the last policy's fault.
                    let index = ranges.partition_point(|range| range.start <= at).checked_sub(1);
                    if let Some(index) = index
                        && let (Some(range), Some(faults)) =
                            (ranges.get(index), faults.get_mut(index))
                    {
                        faults.push(foreign(text, 0, range, error));
                        blamed = true;
                    }
                }
                if !blamed {
                    break;
                }
            }
        }
    }
    let one_by_one = ranges.iter().zip(faults).map(|(range, faults)| {
        if !faults.is_empty() {
            return Err(faults);
        }
        let written = text.source.text.get(range.clone()).unwrap_or_default();
        let offset = range.start;
        match Policy::parse(None, written) {
            Ok(policy) => Ok(Found { policy, offset }),
            Err(errors) => {
                Err(errors.iter().map(|one| foreign(text, offset, range, one)).collect())
            }
        }
    });
    one_by_one.collect()
}

/// The file's text with nothing in it but these policies, each where it was.
fn only(text: &Text<'_>, ranges: &[Range<usize>], left: &[usize]) -> String {
    let whole = text.source.text.as_str();
    let mut shown = String::with_capacity(whole.len());
    for range in left.iter().filter_map(|index| ranges.get(*index)) {
        shown.extend(std::iter::repeat_n(' ', range.start.saturating_sub(shown.len())));
        shown.push_str(whole.get(range.clone()).unwrap_or_default());
    }
    shown
}

/// The policies of a set by their place, which their number tells and their text proves.
fn matched(
    text: &Text<'_>,
    set: &PolicySet,
    ranges: &[Range<usize>],
    left: &[usize],
) -> Option<Vec<Found>> {
    let mut found = Vec::with_capacity(left.len());
    for (number, index) in left.iter().enumerate() {
        let policy = set.policy(&PolicyId::new(format!("policy{number}")))?;
        let written = text.source.text.get(ranges.get(*index)?.clone())?;
        if policy.to_cedar()? != written {
            return None;
        }
        found.push(Found { policy: policy.clone(), offset: 0 });
    }
    (set.num_of_policies() == left.len() && set.num_of_templates() == 0).then_some(found)
}

fn start(error: &dyn miette::Diagnostic) -> usize {
    let label = error.labels().and_then(|mut labels| labels.next());
    label.map_or(usize::MAX, |label| label.offset())
}

/// A problem that Cedar found, at its place.
pub(super) fn foreign(
    text: &Text<'_>,
    offset: usize,
    whole: &Range<usize>,
    error: &dyn miette::Diagnostic,
) -> Diagnostic {
    let label = error.labels().and_then(|mut labels| labels.next());
    let range = label.as_ref().map_or_else(
        || whole.clone(),
        |label| {
            let start = offset + label.offset();
            start..start + label.len()
        },
    );
    let mut message = error.to_string();
    if let Some(said) = label.as_ref().and_then(|label| label.label()) {
        message = format!("{message}: {said}");
    }
    let help = error.help().map(|help| help.to_string());
    let help = help.unwrap_or_else(|| {
        "a policy is `permit(principal, action, resource);` or `forbid(…);`, \
         perhaps with `when { … }` before the semicolon"
            .to_owned()
    });
    text.error(range, message, help)
}
