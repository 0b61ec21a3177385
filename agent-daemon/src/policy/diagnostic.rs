//! What is said when a policy cannot be taken: the place, the text with a line under it, and what to
//! write instead, for all problems at once.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

use super::Source;

/// How many characters of a source line are shown at most; a longer line is shown around the place.
const SHOWN: usize = 160;

/// Whether the policy is refused, or taken with a remark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The policy set is refused.
    Error,
    /// The policy set is taken; this is probably not what its author means.
    Warning,
}

/// A place in a policy file. Lines and columns count from 1; columns count characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Span {
    /// First line.
    pub line: usize,
    /// First column.
    pub column: usize,
    /// Line of the last character.
    pub end_line: usize,
    /// The column after the last character.
    pub end_column: usize,
    /// The first line's text, cut around the place when it is very long.
    pub text: String,
    /// How many characters of `text` stand before the place.
    pub indent: usize,
    /// How many characters of `text` the place covers; at least 1.
    pub underlined: usize,
}

/// One problem: what is wrong, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The file, as the user named it.
    pub file: String,
    /// Where in the file; `None` when it is about the file as a whole.
    pub span: Option<Span>,
    /// What is wrong.
    pub message: String,
    /// What to write or do instead.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error about a file as a whole.
    #[must_use]
    pub fn of_file(
        file: impl Into<String>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Error,
            file: file.into(),
            span: None,
            message: message.into(),
            help: Some(help.into()),
        }
    }

    /// `file:line:column`, or the file alone.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.span {
            Some(span) => format!("{}:{}:{}", self.file, span.line, span.column),
            None => self.file.clone(),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        writeln!(f, "{severity}: {}", printable(&self.message))?;
        let width = match &self.span {
            Some(span) => span.line.to_string().len(),
            None => 1,
        };
        write!(f, "{:width$}--> {}", "", printable(&self.place()))?;
        if let Some(span) = &self.span {
            writeln!(f, "\n{:width$} |", "")?;
            writeln!(f, "{} | {}", span.line, span.text)?;
            let carets = "^".repeat(span.underlined);
            write!(
                f,
                "{:width$} | {:indent$}{carets}",
                "",
                "",
                indent = span.indent
            )?;
            if span.end_line > span.line {
                write!(f, " (to line {})", span.end_line)?;
            }
        }
        if let Some(help) = &self.help {
            let mut lines = help.lines();
            let first = lines.next().unwrap_or_default();
            write!(f, "\n{:width$} = help: {}", "", printable(first))?;
            for line in lines {
                write!(f, "\n{:width$}         {}", "", printable(line))?;
            }
        }
        Ok(())
    }
}

/// Why a policy set was not taken: every problem found, in the order of files and lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    diagnostics: Vec<Diagnostic>,
}

impl PolicyError {
    /// All problems, at least one of them an error.
    #[must_use]
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    pub(super) fn new(diagnostics: Vec<Diagnostic>) -> Self {
        Self { diagnostics }
    }
}

impl From<Diagnostic> for PolicyError {
    fn from(diagnostic: Diagnostic) -> Self {
        Self::new(vec![diagnostic])
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diagnostic in &self.diagnostics {
            write!(f, "{diagnostic}\n\n")?;
        }
        let count = |severity| {
            let found = self.diagnostics.iter();
            found.filter(|one| one.severity == severity).count()
        };
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        write!(f, "policy refused: {}", counted(errors, "error"))?;
        if warnings > 0 {
            write!(f, ", {}", counted(warnings, "warning"))?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyError {}

fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Text without control characters, so that no policy file can steer a terminal.
fn printable(text: &str) -> String {
    let plain = |c: char| match c {
        '\t' => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(plain).collect()
}

/// A source with its lines known, so that a byte range can be shown as a place.
pub(super) struct Text<'a> {
    pub(super) source: &'a Source,
    lines: Vec<usize>,
}

impl<'a> Text<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        let ends = source.text.match_indices('\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(ends).collect();
        Self { source, lines }
    }

    /// Line and column of a byte, both from 1.
    pub(super) fn position(&self, at: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= at).max(1);
        let start = self.lines.get(line - 1).copied().unwrap_or(0);
        (line, self.chars(start..at) + 1)
    }

    fn slice(&self, range: Range<usize>) -> &'a str {
        self.source.text.get(range).unwrap_or_default()
    }

    fn chars(&self, range: Range<usize>) -> usize {
        self.slice(range).chars().count()
    }

    /// The place of a byte range; what lies outside the text or between characters is moved inside.
    pub(super) fn span(&self, range: Range<usize>) -> Span {
        let text = self.source.text.as_str();
        let start = text.floor_char_boundary(range.start.min(text.len()));
        let end = text.ceil_char_boundary(range.end.clamp(start, text.len()));
        let (line, column) = self.position(start);
        let (end_line, end_column) = self.position(end);
        let line_start = self.lines.get(line - 1).copied().unwrap_or(0);
        let line_end = self.lines.get(line).copied().unwrap_or(text.len());
        let whole = self.slice(line_start..line_end).trim_end();
        let on_line = end.min(line_start + whole.len()).max(start);
        let underlined = self.chars(start..on_line).max(1);
        // Only a window of a very long line is shown, and it begins a little before the place.
        let long = whole.chars().nth(SHOWN).is_some();
        let skipped = if long {
            (column - 1).saturating_sub(SHOWN / 4)
        } else {
            0
        };
        let window: String = whole.chars().skip(skipped).take(SHOWN).collect();
        let indent = column - 1 - skipped;
        Span {
            line,
            column,
            end_line,
            end_column,
            text: printable(&window),
            indent,
            underlined: underlined.min(SHOWN.saturating_sub(indent).max(1)),
        }
    }

    /// `file:line:column` of a byte.
    pub(super) fn place(&self, at: usize) -> String {
        let (line, column) = self.position(at);
        format!("{}:{line}:{column}", self.source.name)
    }

    pub(super) fn error(
        &self,
        range: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Diagnostic {
        let mut found = Diagnostic::of_file(&self.source.name, message, help);
        found.span = Some(self.span(range));
        found
    }

    pub(super) fn warning(
        &self,
        range: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Diagnostic {
        let mut found = self.error(range, message, help);
        found.severity = Severity::Warning;
        found
    }
}

/// The candidate that is close to what was written, for "did you mean".
pub(super) fn nearest<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let lower = written.to_lowercase();
    let scored = candidates.into_iter().map(|candidate| {
        let distance = strsim::damerau_levenshtein(&lower, &candidate.to_lowercase());
        (distance, candidate)
    });
    let (distance, candidate) = scored.min_by_key(|(distance, _)| *distance)?;
    (distance <= candidate.len().div_ceil(3).max(1)).then_some(candidate)
}
