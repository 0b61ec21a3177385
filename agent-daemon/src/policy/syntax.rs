//! Where things stand in a policy's text. Cedar's own parser says what a policy means; this finds
//! the policies in a file, and the words within one, so that a refusal can underline them.

use std::ops::Range;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A word.
    Ident,
    /// A number.
    Number,
    /// A string in quotes.
    Str,
    /// `?principal` and the like.
    Slot,
    /// An operator, a bracket, or anything that Cedar has no use for.
    Punct,
}

/// A token and the bytes it covers.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) range: Range<usize>,
}

/// A file's tokens. Never fails: what is no token of Cedar's becomes one that Cedar will refuse.
pub(super) fn tokens(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    let run = |from: usize, keep: fn(u8) -> bool| {
        let rest = bytes.get(from..).unwrap_or_default();
        from + rest.iter().take_while(|byte| keep(**byte)).count()
    };
    while let Some(&byte) = bytes.get(at) {
        let next = bytes.get(at + 1).copied();
        let (kind, end) = match byte {
            b'/' if next == Some(b'/') => {
                at = run(at, |byte| byte != b'\n' && byte != b'\r');
                continue;
            }
            b'"' => (Kind::Str, string_end(bytes, at)),
            b'0'..=b'9' => (Kind::Number, run(at, |byte| byte.is_ascii_digit())),
            b'_' | b'a'..=b'z' | b'A'..=b'Z' => (Kind::Ident, run(at, is_word)),
            b'?' => (Kind::Slot, run(at + 1, is_word)),
            _ if byte.is_ascii() => {
                let pair = matches!(
                    (byte, next),
                    (b'=' | b'!' | b'<' | b'>', Some(b'='))
                        | (b'&', Some(b'&'))
                        | (b'|', Some(b'|'))
                        | (b':', Some(b':'))
                );
                (Kind::Punct, at + 1 + usize::from(pair))
            }
            _ => {
                let rest = text.get(at..).unwrap_or_default();
                let first = rest.chars().next().unwrap_or(' ');
                (Kind::Punct, at + first.len_utf8())
            }
        };
        let token = text.get(at..end).unwrap_or_default();
        if !token.chars().all(char::is_whitespace) {
            found.push(Token { kind, range: at..end });
        }
        at = end;
    }
    found
}

fn is_word(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric()
}

fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// A run of tokens of one text.
#[derive(Clone, Copy)]
pub(super) struct Words<'a> {
    text: &'a str,
    tokens: &'a [Token],
}

impl<'a> Words<'a> {
    pub(super) fn new(text: &'a str, tokens: &'a [Token]) -> Self {
        Self { text, tokens }
    }

    pub(super) fn len(self) -> usize {
        self.tokens.len()
    }

    pub(super) fn is_empty(self) -> bool {
        self.tokens.is_empty()
    }

    pub(super) fn get(self, index: usize) -> Option<&'a Token> {
        self.tokens.get(index)
    }

    pub(super) fn kind(self, index: usize) -> Option<Kind> {
        self.get(index).map(|token| token.kind)
    }

    pub(super) fn text(self, index: usize) -> &'a str {
        let range = self.get(index).map(|token| token.range.clone());
        range.and_then(|range| self.text.get(range)).unwrap_or_default()
    }

    /// What stands within the quotes of a string that has no escapes in it.
    pub(super) fn plain_text(self, index: usize) -> Option<&'a str> {
        let inside = self.text(index).strip_prefix('"')?.strip_suffix('"')?;
        (!inside.contains('\\')).then_some(inside)
    }

    /// The bytes from the first token to the last.
    pub(super) fn range(self) -> Range<usize> {
        match (self.tokens.first(), self.tokens.last()) {
            (Some(first), Some(last)) => first.range.start..last.range.end,
            _ => 0..0,
        }
    }

    pub(super) fn sub(self, range: Range<usize>) -> Self {
        Self { text: self.text, tokens: self.tokens.get(range).unwrap_or_default() }
    }

    /// The policies of a file: each ends with its semicolon, the last one perhaps without.
    pub(super) fn policies(self) -> impl Iterator<Item = Self> {
        let semicolon = move |token: &Token| self.text.get(token.range.clone()) == Some(";");
        self.tokens.split_inclusive(semicolon).map(move |tokens| Self { text: self.text, tokens })
    }

    /// Index of the bracket that closes the one at `open`.
    pub(super) fn closing(self, open: usize) -> Option<usize> {
        let mut depth = 0usize;
        for index in open..self.len() {
            match self.text(index) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => {
                    depth = depth.checked_sub(1)?;
                    if depth == 0 {
                        return Some(index);
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// The deepest nesting of brackets.
    pub(super) fn depth(self) -> usize {
        let (mut depth, mut deepest) = (0usize, 0usize);
        for index in 0..self.len() {
            match self.text(index) {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth = depth.saturating_sub(1),
                _ => {}
            }
            deepest = deepest.max(depth);
        }
        deepest
    }

    /// Index of the first of these words outside all brackets.
    pub(super) fn find(self, words: &[&str]) -> Option<usize> {
        let mut index = 0;
        while index < self.len() {
            if words.contains(&self.text(index)) {
                return Some(index);
            }
            index = match self.text(index) {
                "(" | "[" | "{" => self.closing(index)? + 1,
                _ => index + 1,
            };
        }
        None
    }

    /// Index of the first of these words, inside brackets or not.
    pub(super) fn find_anywhere(self, words: &[&str]) -> Option<usize> {
        (0..self.len()).find(|index| words.contains(&self.text(*index)))
    }

    /// The parts between a separator outside all brackets.
    pub(super) fn split(self, separator: &str) -> Vec<Self> {
        let mut parts = Vec::new();
        let mut rest = self;
        while let Some(at) = rest.find(&[separator]) {
            parts.push(rest.sub(0..at));
            rest = rest.sub(at + 1..rest.len());
        }
        parts.push(rest);
        parts
    }

    /// The entity literals `Type::"id"`: the bytes of type, of the quoted id.
    pub(super) fn entities(self) -> Vec<(Range<usize>, Range<usize>)> {
        let mut found = Vec::new();
        for index in 2..self.len() {
            let is_id = self.kind(index) == Some(Kind::Str) && self.text(index - 1) == "::";
            if !is_id {
                continue;
            }
            let mut first = index - 2;
            while first >= 2 && self.text(first - 1) == "::" {
                first -= 2;
            }
            found.push((self.sub(first..index - 1).range(), self.sub(index..index + 1).range()));
        }
        found
    }
}

/// A policy taken apart.
pub(super) struct Shape<'a> {
    /// Each annotation's name, and its value when it has one.
    pub(super) annotations: Vec<(&'a str, Words<'a>)>,
    /// `permit` or `forbid`.
    pub(super) effect: Words<'a>,
    /// The three parts of the head.
    pub(super) principal: Words<'a>,
    pub(super) action: Words<'a>,
    pub(super) resource: Words<'a>,
    /// Each `when` or `unless`, and what stands in its braces.
    pub(super) clauses: Vec<(Words<'a>, Words<'a>)>,
}

impl<'a> Shape<'a> {
    /// Takes one policy apart; `None` when it does not have the form of one.
    pub(super) fn of(policy: Words<'a>) -> Option<Self> {
        let mut annotations = Vec::new();
        let mut at = 0;
        while policy.text(at) == "@" {
            let name = policy.text(at + 1);
            let first = at;
            at += 2;
            if policy.text(at) == "(" {
                at = policy.closing(at)? + 1;
            }
            annotations.push((name, policy.sub(first..at)));
        }
        let effect = policy.sub(at..at + 1);
        let close = policy.closing(at + 1)?;
        let head = policy.sub(at + 2..close).split(",");
        let [principal, action, resource, ..] = head.as_slice() else {
            return None;
        };
        let mut clauses = Vec::new();
        at = close + 1;
        while at < policy.len() && policy.text(at) != ";" {
            let keyword = policy.sub(at..at + 1);
            let close = policy.closing(at + 1)?;
            clauses.push((keyword, policy.sub(at + 2..close)));
            at = close + 1;
        }
        Some(Self {
            annotations,
            effect,
            principal: *principal,
            action: *action,
            resource: *resource,
            clauses,
        })
    }
}
