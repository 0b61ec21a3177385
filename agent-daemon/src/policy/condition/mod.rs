//! A policy's conditions: what `when { … }` and `unless { … }` ask, and what of it is refused and why. The
//! attributes of resources are [`attributes`]'.

mod attributes;

use std::ops::Range;

use agent_ebpf::PeerFacet;

use super::diagnostic::{Diagnostic, Text, nearest};
use super::expression::{Form, Node, parse};
use super::formula::{AgentTest, Expr, Protocols, Test, Text as Asked};
use super::labels::Labels;
use super::model::protocol_name;
use super::pattern::Pattern;
use super::peers::Net;
use super::rule::{AgentName, Attribute};
use super::scope::{ACTIONS, Head, Type, abstract_address, name, path};
use super::syntax::Shape;
use attributes::ATTRIBUTES;

/// What a condition can be made of.
const FORMS: &str = "a condition is made of these, joined by `&&`, `||` and `!`:\n\
    resource.ip == ip(\"192.0.2.7\"), resource.ip.isInRange(ip(\"192.0.2.0/24\")), resource.ip.isLoopback()\n\
    resource.port == 443, resource.port < 1024, [80, 443].contains(resource.port)\n\
    resource.protocol == \"tcp\"\n\
    resource has host && resource.host == \"api.example.com\", … && resource.host like \"*.example.com\"\n\
    resource has sha256 && resource.sha256 == \"…\", resource.path like \"*.pem\"\n\
    resource in Dir::\"/srv\", resource == File::\"/srv/x\", resource is Peer\n\
    resource in Label::\"secret\", resource.labels.contains(\"secret\")\n\
    principal in AgentGroup::\"builders\", principal.name like \"ci-*\", action == Action::\"read\"";

/// The attributes of agents.
const OF_AGENTS: [&str; 5] = ["name", "namespace", "model", "operator", "labels"];

type Found = Result<Expr, Box<Diagnostic>>;

/// Reads the conditions of a policy that Cedar has parsed; remarks go to `warnings`.
///
/// # Errors
/// Everything in them that cannot be kept.
pub(super) fn conditions(
    text: &Text<'_>,
    shape: &Shape<'_>,
    head: Option<&Head>,
    labels: &Labels,
    warnings: &mut Vec<Diagnostic>,
) -> Result<Expr, Vec<Diagnostic>> {
    let mut problems = Vec::new();
    let mut all = Vec::new();
    let connects = head.is_some_and(|head| head.peers == [PeerFacet::Connect]);
    let mut reader = Reader { text, connects, labels, problems: &mut problems, warnings };
    for (keyword, words) in &shape.clauses {
        let Some(node) = parse(*words) else {
            let found = text.error(words.range(), "this condition is not understood", FORMS);
            reader.problems.push(found);
            continue;
        };
        let body = reader.boolean(&node);
        all.push(if keyword.text(0) == "unless" { body.not() } else { body });
    }
    if problems.is_empty() { Ok(Expr::All(all)) } else { Err(problems) }
}

struct Reader<'a> {
    text: &'a Text<'a>,
    /// The policy is about destinations, of all that has an address.
    connects: bool,
    labels: &'a Labels,
    problems: &'a mut Vec<Diagnostic>,
    warnings: &'a mut Vec<Diagnostic>,
}

impl Reader<'_> {
    /// A part of a condition; what cannot be kept is noted, and its neighbours are read all the same.
    fn boolean(&mut self, node: &Node<'_>) -> Expr {
        match &node.kind {
            Form::Bool(is) => Expr::Const(*is),
            Form::Not(of) => self.boolean(of).not(),
            Form::All(parts) => Expr::All(parts.iter().map(|part| self.boolean(part)).collect()),
            Form::Any(parts) => Expr::Any(parts.iter().map(|part| self.boolean(part)).collect()),
            Form::If(condition, then, other) => Expr::If(Box::new([
                self.boolean(condition),
                self.boolean(then),
                self.boolean(other),
            ])),
            _ => {
                let found = match &node.kind {
                    Form::Relation("in", left, right) => self.within(node, left, right),
                    Form::Relation("like", left, right) => self.like(node, left, right),
                    Form::Relation("==", left, right) => self.equals(node, left, right),
                    Form::Relation("!=", left, right) => {
                        self.equals(node, left, right).map(Expr::not)
                    }
                    Form::Relation(operator, left, right) => {
                        self.compare(node, operator, left, right)
                    }
                    Form::Has(of, name) => self.has(node, of, name),
                    Form::Is(of, name, within) => self.is(node, of, name, within.as_deref()),
                    Form::Call(name, arguments) => self.call(node, name, arguments),
                    _ => self.cannot(node),
                };
                found.unwrap_or_else(|problem| {
                    self.problems.push(*problem);
                    Expr::Const(false)
                })
            }
        }
    }

    fn refuse<T>(
        &self,
        range: Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> Result<T, Box<Diagnostic>> {
        Err(Box::new(self.text.error(range, message, help)))
    }

    /// What has no form that is kept.
    fn cannot<T>(&self, node: &Node<'_>) -> Result<T, Box<Diagnostic>> {
        if let Some(range) = context(node) {
            return self.refuse(
                range,
                "`context` in a condition cannot be kept in the kernel",
                "no action has a context: what is known of an action is its agent, its kind and its resource",
            );
        }
        self.refuse(node.words.range(), "this condition cannot be kept in the kernel", FORMS)
    }

    fn equals(&mut self, node: &Node<'_>, left: &Node<'_>, right: &Node<'_>) -> Found {
        // A literal may stand on either side.
        let (asked, literal) = if asks(left) { (left, right) } else { (right, left) };
        if context(left).is_some() || context(right).is_some() || asks(literal) {
            return self.cannot(node);
        }
        match (&asked.kind, &literal.kind) {
            (Form::Variable("action"), Form::Entity(kind, id)) => self.action(literal, kind, id),
            (Form::Variable("principal"), Form::Entity(kind, id)) if kind == "Agent" => {
                self.agent(literal, id)
            }
            (Form::Variable("principal"), Form::Entity(kind, id)) if kind == "AgentGroup" => self
                .refuse(
                    node.words.range(),
                    "a group is no agent, so this never matches",
                    format!("write `principal in AgentGroup::\"{}\"`", id.escape_debug()),
                ),
            (Form::Variable("resource"), Form::Entity(kind, id)) => self.place(literal, kind, id),
            (Form::Attribute(of, name), _) if is(of, "resource") && name == "labels" => {
                self.labels(node, "resource")
            }
            (Form::Attribute(of, name), _) if is(of, "resource") => {
                self.attribute_equals(asked, name, literal)
            }
            (Form::Attribute(of, name), _) if is(of, "principal") => {
                let attribute = self.of_agent(asked, name)?;
                match (attribute, &literal.kind) {
                    (Some(attribute), Form::Text(text)) => {
                        Ok(agent(AgentTest::Attribute(attribute, Asked::Equals(text.clone()))))
                    }
                    (Some(_), _) => self.refuse(
                        literal.words.range(),
                        format!("`{name}` is compared with a string"),
                        format!("write `principal.{name} == \"…\"`"),
                    ),
                    (None, _) => self.labels(node, "principal"),
                }
            }
            _ => self.cannot(node),
        }
    }

    fn labels<T>(&self, node: &Node<'_>, of: &str) -> Result<T, Box<Diagnostic>> {
        self.refuse(
            node.words.range(),
            "`labels` is a set, which cannot be compared as a whole",
            format!("write `{of}.labels.contains(\"…\")`"),
        )
    }

    /// The attribute of an agent that this is; `None` for its labels.
    fn of_agent(&self, node: &Node<'_>, name: &str) -> Result<Option<Attribute>, Box<Diagnostic>> {
        let found = match name {
            "name" => Attribute::Name,
            "namespace" => Attribute::Namespace,
            "model" => Attribute::Model,
            "operator" => Attribute::Operator,
            "labels" => return Ok(None),
            _ => {
                let list = "an Agent has `name` and `labels`, and perhaps `namespace`, `model` and `operator`";
                let help = match nearest(name, OF_AGENTS) {
                    Some(near) => format!("did you mean `{near}`? {list}"),
                    None => list.to_owned(),
                };
                let message = format!("no agent has an attribute `{name}`");
                return self.refuse(name_range(node, name), message, help);
            }
        };
        Ok(Some(found))
    }

    fn like(&mut self, node: &Node<'_>, left: &Node<'_>, right: &Node<'_>) -> Found {
        let (Form::Attribute(of, name), Form::Pattern(parts)) = (&left.kind, &right.kind) else {
            return self.cannot(node);
        };
        let pattern = Pattern::new(parts);
        if is(of, "principal") {
            return match self.of_agent(left, name)? {
                Some(attribute) => Ok(agent(AgentTest::Attribute(attribute, Asked::Like(pattern)))),
                None => self.labels(node, "principal"),
            };
        }
        if !is(of, "resource") {
            return self.cannot(node);
        }
        match name.as_str() {
            "path" => {
                if !matches!(pattern.beginning(), [] | [b'/' | b'@', ..]) {
                    return self.refuse(
                        right.words.range(),
                        "no path begins like this, so it never matches",
                        "begin the pattern with `/` or `*`: paths are absolute, and abstract unix addresses begin with `@`",
                    );
                }
                Ok(Expr::Test(Test::Path(Asked::Like(pattern))))
            }
            "host" => self.host_like(&pattern, right),
            "protocol" => {
                let fits = |number| pattern.matches(protocol_name(number).as_bytes());
                Ok(Expr::Test(Test::Protocol(Protocols::of(fits))))
            }
            "labels" => self.labels(node, "resource"),
            name if ATTRIBUTES.contains(&name) => self.refuse(
                node.words.range(),
                format!("`{name}` is no text"),
                "`like` is for paths and hosts; for addresses write `isInRange`, for ports `<` and `>`",
            ),
            name => self.unknown_attribute(left, name),
        }
    }

    fn has(&self, node: &Node<'_>, of: &Node<'_>, name: &str) -> Found {
        if is(of, "principal") {
            return Ok(match self.of_agent(node, name)? {
                Some(attribute) => agent(AgentTest::Has(attribute)),
                None => Expr::Const(true),
            });
        }
        if !is(of, "resource") {
            return self.cannot(node);
        }
        if name == "host" {
            return Ok(Expr::Test(Test::HasHost));
        }
        let with = |kind: &Type| match name {
            "path" | "labels" => kind.is_place(),
            "sha256" => *kind == Type::Program,
            _ => *kind == Type::Peer,
        };
        if ATTRIBUTES.contains(&name) {
            return Ok(Expr::any(Type::ALL.into_iter().filter(with).map(Test::Type)));
        }
        self.unknown_attribute(node, name)
    }

    fn is(
        &mut self,
        node: &Node<'_>,
        of: &Node<'_>,
        name: &str,
        within: Option<&Node<'_>>,
    ) -> Found {
        let found = if is(of, "principal") && name == "Agent" {
            Expr::Const(true)
        } else if is(of, "resource")
            && let Some(kind) = Type::ALL.into_iter().find(|kind| kind.name() == name)
        {
            Expr::Test(Test::Type(kind))
        } else if is(of, "principal") || is(of, "resource") {
            let range = name_range(node, name);
            let kinds = Type::ALL.map(Type::name);
            let help = match nearest(name, kinds) {
                Some(near) if near != name => format!("did you mean `{near}`?"),
                _ => format!("a resource is one of {}; a principal is an Agent", kinds.join(", ")),
            };
            return self.refuse(range, format!("nothing here is a `{name}`"), help);
        } else {
            return self.cannot(node);
        };
        match within {
            Some(within) => Ok(Expr::All(vec![found, self.within(node, of, within)?])),
            None => Ok(found),
        }
    }

    fn within(&mut self, node: &Node<'_>, left: &Node<'_>, right: &Node<'_>) -> Found {
        let each: &[Node<'_>] = match &right.kind {
            Form::Set(each) => each,
            _ => std::slice::from_ref(right),
        };
        let of = |kind: &str| {
            each.iter().find_map(|one| match &one.kind {
                Form::Entity(of, id) if of == kind => {
                    Some(format!("resource in {of}::\"{}\"", id.escape_debug()))
                }
                _ => None,
            })
        };
        if let (Some(dir), Some(label)) = (of("Dir"), of("Label")) {
            return self.refuse(
                right.words.range(),
                "a list has entities of one type",
                format!("join them: `{dir} || {label}`"),
            );
        }
        let mut found = Vec::new();
        for one in each {
            let Form::Entity(kind, id) = &one.kind else {
                return self.cannot(node);
            };
            found.push(match &left.kind {
                Form::Variable("action") => self.action(one, kind, id)?,
                Form::Variable("principal") => match kind.as_str() {
                    "Agent" => self.agent(one, id)?,
                    "AgentGroup" => agent(AgentTest::In(id.clone())),
                    _ => return self.wrong_kind(one, kind, &["Agent", "AgentGroup"]),
                },
                Form::Variable("resource") => match kind.as_str() {
                    "Dir" => {
                        let range = id_range(one);
                        let folder = path(self.text, id, "Dir", true, range)?;
                        Expr::Test(Test::Within(folder))
                    }
                    "Label" => {
                        let (text, range) = (self.text, id_range(one));
                        Expr::Test(self.labels.test(text, id, range, self.warnings)?)
                    }
                    "File" | "Program" => {
                        let id = id.escape_debug();
                        return self.refuse(
                            one.words.range(),
                            format!("nothing is in a {kind}"),
                            format!(
                                "for the {kind} itself write `resource == {kind}::\"{id}\"`; \
                                 for a folder and everything beneath it `resource in Dir::\"…\"`"
                            ),
                        );
                    }
                    _ => return self.wrong_kind(one, kind, &["Dir", "Label"]),
                },
                _ => return self.cannot(node),
            });
        }
        Ok(Expr::Any(found))
    }

    fn call(&mut self, node: &Node<'_>, name: &str, arguments: &[Node<'_>]) -> Found {
        let Some((of, arguments)) = arguments.split_first() else {
            return self.cannot(node);
        };
        match (&of.kind, name) {
            (
                Form::Attribute(on, attribute),
                "isInRange" | "isLoopback" | "isMulticast" | "isIpv4" | "isIpv6",
            ) if is(on, "resource") => {
                if attribute != "ip" {
                    return self.unknown_attribute(of, attribute);
                }
                let nets = match (name, arguments) {
                    ("isInRange", [range]) => match &range.kind {
                        Form::Call("ip", text) => vec![self.net(text, range)?],
                        _ => return self.cannot(node),
                    },
                    ("isLoopback", []) => Net::LOOPBACK.to_vec(),
                    ("isMulticast", []) => Net::MULTICAST.to_vec(),
                    ("isIpv4", []) => vec![Net::ALL_V4],
                    ("isIpv6", []) => vec![Net::ALL_V6],
                    _ => return self.cannot(node),
                };
                Ok(Expr::any(nets.into_iter().map(Test::Address)))
            }
            (Form::Set(each), "contains") => {
                let [asked] = arguments else {
                    return self.cannot(node);
                };
                if !asks(asked) {
                    return self.cannot(node);
                }
                let mut found = Vec::with_capacity(each.len());
                for one in each {
                    found.push(self.equals(node, asked, one)?);
                }
                Ok(Expr::Any(found))
            }
            (Form::Attribute(on, attribute), "contains" | "containsAll" | "containsAny")
                if attribute == "labels" && (is(on, "principal") || is(on, "resource")) =>
            {
                let of_agent = is(on, "principal");
                let labels: &[Node<'_>] = match (name, arguments) {
                    ("contains", labels) => labels,
                    (_, [Node { kind: Form::Set(labels), .. }]) => labels,
                    _ => return self.cannot(node),
                };
                let mut found = Vec::new();
                for label in labels {
                    let range = label.words.range();
                    let Form::Text(name) = &label.kind else {
                        let of = if of_agent { "principal" } else { "resource" };
                        let help = format!("write `{of}.labels.contains(\"…\")`");
                        return self.refuse(range, "a label is a string", help);
                    };
                    found.push(if of_agent {
                        agent(AgentTest::Label(name.clone()))
                    } else {
                        Expr::Test(self.labels.test(self.text, name, range, self.warnings)?)
                    });
                }
                Ok(if name == "containsAll" { Expr::All(found) } else { Expr::Any(found) })
            }
            _ => self.cannot(node),
        }
    }

    fn action(&self, literal: &Node<'_>, kind: &str, id: &str) -> Found {
        let known = ACTIONS.into_iter().find(|action| kind == "Action" && action.name() == id);
        if let Some(action) = known {
            return Ok(Expr::Test(Test::Action(action)));
        }
        let names = ACTIONS.map(agent_ebpf::Action::name);
        let list = names.map(|name| format!("`Action::\"{name}\"`")).join(", ");
        let help = match nearest(id, names) {
            Some(near) => format!("did you mean `{near}`? The actions are {list}"),
            None => format!("the actions are {list}"),
        };
        self.refuse(literal.words.range(), format!("there is no action `{id}`"), help)
    }

    fn agent(&self, literal: &Node<'_>, id: &str) -> Found {
        match AgentName::parse(id) {
            Ok(_) => Ok(agent(AgentTest::Is(id.to_owned()))),
            Err(error) => self.refuse(
                id_range(literal),
                error.to_string(),
                "write the name that the agent is run with, as in `Agent::\"coder\"`",
            ),
        }
    }

    /// `resource == Type::"path"`.
    fn place(&self, literal: &Node<'_>, kind: &str, id: &str) -> Found {
        let found = Type::ALL.into_iter().find(|one| one.name() == kind);
        match found {
            Some(one) if one.is_place() => {
                let range = id_range(literal);
                let checked = match one == Type::UnixSocket && id.starts_with('@') {
                    true => abstract_address(self.text, id, range),
                    false => path(self.text, id, kind, one == Type::Dir, range),
                };
                Ok(Expr::Test(Test::Same(one, checked?)))
            }
            Some(one) if one.is_numbered() => {
                let checked = name(self.text, one, id, id_range(literal));
                Ok(Expr::Test(Test::Same(one, checked?)))
            }
            None if kind == "Label" => self.refuse(
                literal.words.range(),
                "a label is no resource, so this never matches",
                format!("write `resource in Label::\"{}\"`", id.escape_debug()),
            ),
            Some(_) => self.refuse(
                literal.words.range(),
                "a peer has no name",
                "write what is meant: `resource.ip == ip(\"192.0.2.7\") && resource.port == 443`",
            ),
            None => self.wrong_kind(literal, kind, &Type::ALL.map(Type::name)),
        }
    }

    fn wrong_kind(&self, literal: &Node<'_>, kind: &str, fitting: &[&str]) -> Found {
        let list = fitting.join(", ");
        let help = match nearest(kind, fitting.iter().copied()) {
            Some(near) if near != kind => format!("did you mean `{near}`? Here may stand: {list}"),
            _ => format!("here may stand: {list}"),
        };
        self.refuse(name_range(literal, kind), format!("`{kind}` cannot stand here"), help)
    }
}

fn agent(test: AgentTest) -> Expr {
    Expr::Test(Test::Agent(test))
}

/// Whether this is that variable.
fn is(node: &Node<'_>, variable: &str) -> bool {
    matches!(node.kind, Form::Variable(name) if name == variable)
}

/// Whether this asks for the agent, the action or the resource, or for something of theirs.
fn asks(node: &Node<'_>) -> bool {
    match &node.kind {
        Form::Variable(_) => true,
        Form::Attribute(of, _) => asks(of),
        _ => false,
    }
}

/// Where `context`, with what is asked of it, stands in this.
fn context(node: &Node<'_>) -> Option<Range<usize>> {
    let words = node.words;
    let start = words.find_anywhere(&["context"])?;
    let mut end = start + 1;
    while words.text(end) == "." {
        end += 2;
    }
    Some(words.sub(start..end.min(words.len())).range())
}

/// The bytes of a name within a node, or all of it.
fn name_range(node: &Node<'_>, name: &str) -> Range<usize> {
    let at = node.words.find_anywhere(&[name]);
    at.map_or_else(|| node.words.range(), |at| node.words.sub(at..at + 1).range())
}

/// The bytes of a literal's string or number, or all of it.
fn literal_range(node: &Node<'_>) -> Range<usize> {
    use super::syntax::Kind;
    let words = node.words;
    let literal = |at: &usize| matches!(words.kind(*at), Some(Kind::Str | Kind::Number));
    let at = (0..words.len()).find(literal);
    at.map_or_else(|| words.range(), |at| words.sub(at..at + 1).range())
}

/// The bytes of an entity's id.
fn id_range(node: &Node<'_>) -> Range<usize> {
    let words = node.words;
    words.sub(words.len().saturating_sub(1)..words.len()).range()
}
