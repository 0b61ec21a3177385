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
            write!(f, "{:width$} | {:indent$}{carets}", "", "", indent = span.indent)?;
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

/// After how many bytes the characters so far are noted, so that no long line is counted twice.
const BLOCK: usize = 256;

/// A source with its lines known, so that a byte range can be shown as a place.
pub(super) struct Text<'a> {
    pub(super) source: &'a Source,
    /// Where each line begins.
    lines: Vec<usize>,
    /// How many characters begin before each block of [`BLOCK`] bytes.
    blocks: Vec<usize>,
}

impl<'a> Text<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        let ends = source.text.match_indices('\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(ends).collect();
        let mut so_far = 0;
        let blocks = source.text.as_bytes().chunks(BLOCK).map(|block| {
            let before = so_far;
            so_far += characters(block);
            before
        });
        let blocks = blocks.collect();
        Self { source, lines, blocks }
    }

    /// How many characters begin before a byte.
    fn before(&self, at: usize) -> usize {
        let at = at.min(self.source.text.len());
        // The text may end where a block does, and then has no block after it.
        let block = (at / BLOCK).min(self.blocks.len().saturating_sub(1));
        let rest = self.source.text.as_bytes().get(block * BLOCK..at);
        self.blocks.get(block).copied().unwrap_or(0) + characters(rest.unwrap_or_default())
    }

    /// Line and column of a byte, both from 1.
    pub(super) fn position(&self, at: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= at).max(1);
        let start = self.lines.get(line - 1).copied().unwrap_or(0);
        (line, self.chars(start..at) + 1)
    }

    /// The byte at a line and column as `serde_json` counts them: bytes, and those read so far.
    pub(super) fn byte(&self, line: usize, column: usize) -> usize {
        let start = self.lines.get(line.saturating_sub(1)).copied().unwrap_or(0);
        let end = self.source.text.len().saturating_sub(1);
        self.source.text.floor_char_boundary((start + column.saturating_sub(1)).min(end))
    }

    fn slice(&self, range: Range<usize>) -> &'a str {
        self.source.text.get(range).unwrap_or_default()
    }

    fn chars(&self, range: Range<usize>) -> usize {
        self.before(range.end).saturating_sub(self.before(range.start))
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
        // Only a window of a very long line is shown, and it begins a little before the place.
        let long = whole.chars().nth(SHOWN).is_some();
        let lead = if long { SHOWN / 4 } else { SHOWN };
        let before = self.slice(line_start..start).chars().rev().take(lead);
        let (indent, bytes) = before.fold((0, 0), |(n, bytes), c| (n + 1, bytes + c.len_utf8()));
        let shown = self.slice(start - bytes..(line_start + whole.len()).max(start));
        let window: String = shown.chars().take(SHOWN).collect();
        let underlined = self.slice(start..on_line).chars().take(SHOWN - indent.min(SHOWN - 1));
        Span {
            line,
            column,
            end_line,
            end_column,
            text: printable(&window),
            indent,
            underlined: underlined.count().max(1),
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

/// How many characters begin in these bytes of UTF-8.
fn characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
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
