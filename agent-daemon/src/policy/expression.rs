//! Cedar's expressions as trees, each node with the words it covers, so that a refusal can underline
//! exactly what it is about.
//!
//! Cedar's own parser has taken the text before this reads it, and judges it in the end: the tests
//! compare the tables with Cedar's authorizer. Cedar's JSON form of a policy has no places in it and
//! costs another parse, which 100,000 policies cannot afford.

use super::syntax::{Kind, Words};

/// A node and the words that it covers.
pub(super) struct Node<'a> {
    pub(super) words: Words<'a>,
    pub(super) kind: Form<'a>,
}

/// What a node is.
pub(super) enum Form<'a> {
    Bool(bool),
    Number(i64),
    Text(String),
    /// The text of a `like` pattern: parts between stars.
    Pattern(Vec<String>),
    /// `principal`, `action`, `resource`, `context`.
    Variable(&'a str),
    /// `Type::"id"`.
    Entity(String, String),
    Set(Vec<Node<'a>>),
    /// `ip("…")`, or a method's call with its receiver first.
    Call(&'a str, Vec<Node<'a>>),
    /// `receiver.attribute` or `receiver["attribute"]`.
    Attribute(Box<Node<'a>>, String),
    Not(Box<Node<'a>>),
    /// What `&&` joins, and what `||` does.
    All(Vec<Node<'a>>),
    Any(Vec<Node<'a>>),
    /// `==`, `!=`, `<`, `<=`, `>`, `>=`, `in`, `like`.
    Relation(&'a str, Box<Node<'a>>, Box<Node<'a>>),
    /// `receiver has attribute`.
    Has(Box<Node<'a>>, String),
    /// `entity is Type`, perhaps `in` an entity.
    Is(Box<Node<'a>>, String, Option<Box<Node<'a>>>),
    If(Box<Node<'a>>, Box<Node<'a>>, Box<Node<'a>>),
    /// What no condition here can have: arithmetic, records, long `has` paths.
    Other,
}

/// Reads a whole expression; `None` when it has a form that is not understood.
pub(super) fn parse(words: Words<'_>) -> Option<Node<'_>> {
    let mut parser = Parser { words, at: 0 };
    let node = parser.expression()?;
    (parser.at == words.len()).then_some(node)
}

struct Parser<'a> {
    words: Words<'a>,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> &'a str {
        self.words.text(self.at)
    }

    /// Takes the next word when it is this one.
    fn takes(&mut self, word: &str) -> bool {
        let is = self.peek() == word && self.at < self.words.len();
        self.at += usize::from(is);
        is
    }

    fn expect(&mut self, word: &str) -> Option<()> {
        self.takes(word).then_some(())
    }

    fn node(&self, from: usize, kind: Form<'a>) -> Node<'a> {
        Node { words: self.words.sub(from..self.at), kind }
    }

    fn expression(&mut self) -> Option<Node<'a>> {
        let from = self.at;
        if !self.takes("if") {
            return self.either();
        }
        let condition = Box::new(self.expression()?);
        self.expect("then")?;
        let then = Box::new(self.expression()?);
        self.expect("else")?;
        let other = Box::new(self.expression()?);
        Some(self.node(from, Form::If(condition, then, other)))
    }

    fn either(&mut self) -> Option<Node<'a>> {
        let from = self.at;
        let first = self.both()?;
        if self.peek() != "||" {
            return Some(first);
        }
        let mut parts = vec![first];
        while self.takes("||") {
            parts.push(self.both()?);
        }
        Some(self.node(from, Form::Any(parts)))
    }

    fn both(&mut self) -> Option<Node<'a>> {
        let from = self.at;
        let first = self.relation()?;
        if self.peek() != "&&" {
            return Some(first);
        }
        let mut parts = vec![first];
        while self.takes("&&") {
            parts.push(self.relation()?);
        }
        Some(self.node(from, Form::All(parts)))
    }

    fn relation(&mut self) -> Option<Node<'a>> {
        let from = self.at;
        let left = self.sum()?;
        let operator = self.peek();
        match operator {
            "==" | "!=" | "<" | "<=" | ">" | ">=" | "in" => {
                self.at += 1;
                let right = Box::new(self.sum()?);
                Some(self.node(from, Form::Relation(operator, Box::new(left), right)))
            }
            "like" => {
                self.at += 1;
                let pattern = pattern(self.peek())?;
                let start = self.at;
                self.at += 1;
                let right = Box::new(self.node(start, Form::Pattern(pattern)));
                Some(self.node(from, Form::Relation(operator, Box::new(left), right)))
            }
            "has" => {
                self.at += 1;
                let name = match self.words.kind(self.at)? {
                    Kind::Ident => self.peek().to_owned(),
                    Kind::Str => unescaped(self.peek())?,
                    _ => return None,
                };
                self.at += 1;
                let mut long = false;
                while self.takes(".") {
                    self.at += 1;
                    long = true;
                }
                let form = if long { Form::Other } else { Form::Has(Box::new(left), name) };
                Some(self.node(from, form))
            }
            "is" => {
                self.at += 1;
                let name = self.path()?;
                let within = if self.takes("in") { Some(Box::new(self.sum()?)) } else { None };
                Some(self.node(from, Form::Is(Box::new(left), name, within)))
            }
            _ => Some(left),
        }
    }

    /// Sums and products, which no condition can have.
    fn sum(&mut self) -> Option<Node<'a>> {
        let from = self.at;
        let mut found = self.unary()?;
        while matches!(self.peek(), "+" | "-" | "*") {
            self.at += 1;
            self.unary()?;
            found = self.node(from, Form::Other);
        }
        Some(found)
    }

    fn unary(&mut self) -> Option<Node<'a>> {
        let from = self.at;
        if self.takes("!") {
            let of = Box::new(self.unary()?);
            return Some(self.node(from, Form::Not(of)));
        }
        if self.takes("-") {
            let of = self.unary()?;
            let form = match of.kind {
                Form::Number(number) => Form::Number(number.checked_neg()?),
                _ => Form::Other,
            };
            return Some(self.node(from, form));
        }
        self.member()
    }

    fn member(&mut self) -> Option<Node<'a>> {
        let from = self.at;
        let mut of = self.primary()?;
        loop {
            if self.takes(".") {
                let name = self.peek();
                self.at += 1;
                let form = if self.takes("(") {
                    let mut arguments = vec![of];
                    arguments.extend(self.list(")")?);
                    Form::Call(name, arguments)
                } else {
                    Form::Attribute(Box::new(of), name.to_owned())
                };
                of = self.node(from, form);
            } else if self.takes("[") {
                let name = unescaped(self.peek())?;
                self.at += 1;
                self.expect("]")?;
                of = self.node(from, Form::Attribute(Box::new(of), name));
            } else {
                return Some(of);
            }
        }
    }

    fn list(&mut self, end: &str) -> Option<Vec<Node<'a>>> {
        let mut found = Vec::new();
        while !self.takes(end) {
            found.push(self.expression()?);
            if !self.takes(",") {
                self.expect(end)?;
                break;
            }
        }
        Some(found)
    }

    /// `Name` or `Name::Name`.
    fn path(&mut self) -> Option<String> {
        let mut name = String::new();
        loop {
            if self.words.kind(self.at)? != Kind::Ident {
                return None;
            }
            name.push_str(self.peek());
            self.at += 1;
            if self.peek() != "::" || self.words.kind(self.at + 1) != Some(Kind::Ident) {
                return Some(name);
            }
            name.push_str("::");
            self.at += 1;
        }
    }

    fn primary(&mut self) -> Option<Node<'a>> {
        let from = self.at;
        let word = self.peek();
        let form = match self.words.kind(self.at)? {
            Kind::Number => {
                self.at += 1;
                Form::Number(word.parse().ok()?)
            }
            Kind::Str => {
                self.at += 1;
                Form::Text(unescaped(word)?)
            }
            Kind::Ident if matches!(word, "true" | "false") => {
                self.at += 1;
                Form::Bool(word == "true")
            }
            Kind::Ident => {
                let name = self.path()?;
                if self.takes("::") {
                    let id = unescaped(self.peek())?;
                    self.at += 1;
                    Form::Entity(name, id)
                } else if self.takes("(") {
                    Form::Call(word, self.list(")")?)
                } else {
                    Form::Variable(word)
                }
            }
            Kind::Punct if word == "(" => {
                self.at += 1;
                let inner = self.expression()?;
                self.expect(")")?;
                // The brackets are not part of what a refusal underlines.
                return Some(inner);
            }
            Kind::Punct if word == "[" => {
                self.at += 1;
                Form::Set(self.list("]")?)
            }
            Kind::Punct if word == "{" => {
                self.at = self.words.closing(self.at)? + 1;
                Form::Other
            }
            Kind::Punct | Kind::Slot => return None,
        };
        Some(self.node(from, form))
    }
}

/// What a string in quotes means; `None` for what is no string, or has an escape that is not known.
fn unescaped(token: &str) -> Option<String> {
    let mut text = String::new();
    for one in characters(token)? {
        text.push(one?.0);
    }
    Some(text)
}

/// The parts of a pattern between its stars; `\*` is a star itself.
fn pattern(token: &str) -> Option<Vec<String>> {
    let mut parts = vec![String::new()];
    for one in characters(token)? {
        match one? {
            ('*', false) => parts.push(String::new()),
            (character, _) => parts.last_mut()?.push(character),
        }
    }
    Some(parts)
}

/// The characters within the quotes, and whether each was escaped.
fn characters(token: &str) -> Option<impl Iterator<Item = Option<(char, bool)>>> {
    let inside = token.strip_prefix('"')?.strip_suffix('"')?;
    let mut rest = inside.chars();
    Some(std::iter::from_fn(move || {
        let first = rest.next()?;
        if first != '\\' {
            return Some(Some((first, false)));
        }
        let mut escaped = || {
            Some(match rest.next()? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                '0' => '\0',
                same @ ('\\' | '\'' | '"' | '*') => same,
                'x' => {
                    let digits: String = rest.by_ref().take(2).collect();
                    char::from(u8::from_str_radix(&digits, 16).ok().filter(u8::is_ascii)?)
                }
                'u' => {
                    let digits: String = rest.by_ref().take_while(|c| *c != '}').collect();
                    let digits = digits.strip_prefix('{')?.replace('_', "");
                    char::from_u32(u32::from_str_radix(&digits, 16).ok()?)?
                }
                _ => return None,
            })
        };
        Some(escaped().map(|character| (character, true)))
    }))
}
