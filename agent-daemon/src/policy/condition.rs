//! A policy's conditions: what is kept of `when { … }`, and what is refused and why.

use std::cell::LazyCell;
use std::ops::Range;

use agent_ebpf::protocol;
use cedar_policy::Policy;
use serde_json::Value;

use super::diagnostic::{Diagnostic, Text, nearest};
use super::peers::Net;
use super::rule::PeerReach;
use super::scope::Head;
use super::syntax::{Kind, Shape, Words};

/// What the kernel half can tell of a peer.
const FORMS: &str = "a condition is made of these, joined by `&&`:\n\
    resource.ip == ip(\"192.0.2.7\")\n\
    resource.ip.isInRange(ip(\"192.0.2.0/24\"))\n\
    resource.port == 443\n\
    resource.protocol == \"tcp\"";

/// The attributes of a peer.
const ATTRIBUTES: [&str; 3] = ["ip", "port", "protocol"];

/// One term of a condition.
enum Term {
    Range(Net),
    Port(u16),
    Protocol(u8),
}

/// Reads the conditions of a policy that Cedar has parsed; remarks go to `warnings`.
///
/// Returns the peers that the policy is about: `None` when it is about none.
///
/// # Errors
/// Every term that cannot be kept.
pub(super) fn peers(
    text: &Text<'_>,
    policy: &Policy,
    shape: &Shape<'_>,
    head: Option<&Head>,
    warnings: &mut Vec<Diagnostic>,
) -> Result<Option<PeerReach>, Vec<Diagnostic>> {
    let mut problems = Vec::new();
    let mut terms = Vec::new();
    // Cedar's JSON form of the policy costs another parse, so it is asked only for what the words
    // themselves do not show to be one of the forms that are kept.
    let json = LazyCell::new(|| policy.to_json().unwrap_or_default());
    for (index, (keyword, words)) in shape.clauses.iter().enumerate() {
        if keyword.text(0) == "unless" {
            problems.push(text.error(
                keyword.range(),
                "`unless` cannot be kept in the kernel",
                "write the exception as a policy of its own with the opposite effect: \
                 what a `forbid` policy forbids, no `permit` can allow",
            ));
            continue;
        }
        let places = words.conjuncts();
        let plain: Option<Vec<Form>> = places.iter().map(|words| plain(*words)).collect();
        if let Some(plain) = plain {
            for (form, words) in plain.iter().zip(places) {
                match form.term(text, words) {
                    Ok(term) => terms.push((term, words)),
                    Err(problem) => problems.push(*problem),
                }
            }
            continue;
        }
        let bodies = json.get("conditions").and_then(Value::as_array);
        let body = bodies.and_then(|bodies| bodies.get(index)?.get("body"));
        let values = body.map(conjuncts).unwrap_or_default();
        if values.len() != places.len() {
            problems.push(text.error(words.range(), "this condition cannot be kept", FORMS));
            continue;
        }
        for (value, place) in values.into_iter().zip(places) {
            match term(text, value, place) {
                Ok(term) => terms.push((term, place)),
                Err(problem) => problems.push(*problem),
            }
        }
    }
    let Some(head) = head else {
        return Err(problems);
    };
    if let (Some(places), Some((keyword, body))) = (&head.places, shape.clauses.first())
        && problems.is_empty()
    {
        let what = if places.beneath { "folders, files and programs" } else { "a place" };
        problems.push(text.error(
            keyword.range().start..body.range().end.max(keyword.range().end),
            format!("this policy is also about {what}, which have no attributes to ask for"),
            "write `resource is Peer` in the head, or only `Action::\"connect\"` and `Action::\"bind\"`; \
             and a policy of its own for places",
        ));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    if !head.connect && !head.bind {
        return Ok(None);
    }
    Ok(combine(text, head, &terms, warnings))
}

/// All terms together; `None`, with a warning, when nothing can fulfil them all.
fn combine(
    text: &Text<'_>,
    head: &Head,
    terms: &[(Term, Words<'_>)],
    warnings: &mut Vec<Diagnostic>,
) -> Option<PeerReach> {
    let mut net: Option<Net> = None;
    let mut port: Option<u16> = None;
    let mut transport: Option<u8> = None;
    let mut impossible = None;
    for (term, words) in terms {
        let fits = match term {
            Term::Range(new) => {
                let kept = net.map_or(Some(*new), |old| old.intersection(*new));
                net = kept.or(net);
                if new.is_unspecified() && head.connect && !head.bind {
                    warnings.push(text.warning(
                        words.range(),
                        format!("no connection goes to `{new}`: as a destination it is this host"),
                        "write `127.0.0.1` or `::1`, as which it is judged",
                    ));
                }
                kept.is_some()
            }
            Term::Port(new) => *port.get_or_insert(*new) == *new,
            Term::Protocol(new) => *transport.get_or_insert(*new) == *new,
        };
        if !fits {
            impossible = impossible.or(Some(words.range()));
        }
    }
    if let Some(range) = impossible {
        warnings.push(text.warning(
            range,
            "this contradicts what stands before it, so the policy never matches",
            "one peer has one address, one port and one protocol: \
             write one policy for each that is meant",
        ));
        return None;
    }
    Some(PeerReach {
        connect: head.connect,
        bind: head.bind,
        nets: net.map_or_else(|| vec![Net::ALL_V4, Net::ALL_V6], |net| vec![net]),
        port,
        protocol: transport,
    })
}

/// The terms that `&&` joins, in order.
fn conjuncts(body: &Value) -> Vec<&Value> {
    let mut found = Vec::new();
    let mut todo = vec![body];
    while let Some(value) = todo.pop() {
        match value.get("&&") {
            Some(both) => {
                todo.extend(both.get("right"));
                todo.extend(both.get("left"));
            }
            None => found.push(value),
        }
    }
    found
}

/// The attribute in `resource.attribute`.
fn resource_attribute(value: &Value) -> Option<&str> {
    let access = value.get(".")?;
    let of = access.get("left")?.get("Var")?.as_str()?;
    (of == "resource").then_some(access.get("attr")?.as_str()?)
}

/// The text in `ip("text")`.
fn ip_text(value: &Value) -> Option<&str> {
    match value.get("ip")?.as_array()?.as_slice() {
        [text] => text.get("Value")?.as_str(),
        _ => None,
    }
}

type Refusal = Box<Diagnostic>;

/// What an attribute of a peer is compared with.
enum Literal {
    Number(i64),
    Text(String),
    Address(String),
    Other,
}

/// A term that has the form of one that is kept.
enum Form {
    /// `resource.attribute == literal`, or the other way round.
    Equals(String, Literal),
    /// `resource.attribute.isInRange(ip("text"))`.
    InRange(String, String),
}

/// Reads a term from its words, when they are written in the usual way.
fn plain(words: Words<'_>) -> Option<Form> {
    let attribute = |at: usize| {
        let is = words.text(at) == "resource" && words.text(at + 1) == ".";
        (is && words.kind(at + 2) == Some(Kind::Ident)).then(|| words.text(at + 2).to_owned())
    };
    // Without escapes, what stands in the quotes is what is meant.
    let string = |at: usize| {
        let inside = words.text(at).strip_prefix('"')?.strip_suffix('"')?;
        (!inside.contains('\\')).then(|| inside.to_owned())
    };
    let address = |at: usize| {
        let is = words.text(at) == "ip" && words.text(at + 1) == "(" && words.text(at + 3) == ")";
        is.then(|| string(at + 2)).flatten()
    };
    let literal = |at: usize, len: usize| match (len, words.kind(at)?) {
        (1, Kind::Number) => Some(Literal::Number(words.text(at).parse().ok()?)),
        (1, Kind::Str) => Some(Literal::Text(string(at)?)),
        (4, Kind::Ident) => Some(Literal::Address(address(at)?)),
        _ => None,
    };
    let len = words.len();
    if len > 4 && words.text(3) == "==" {
        return Some(Form::Equals(attribute(0)?, literal(4, len - 4)?));
    }
    if len > 4 && words.text(len - 4) == "==" {
        return Some(Form::Equals(attribute(len - 3)?, literal(0, len - 4)?));
    }
    let call = (words.text(3), words.text(4), words.text(5), words.text(10));
    if len == 11 && call == (".", "isInRange", "(", ")") {
        return Some(Form::InRange(attribute(0)?, address(6)?));
    }
    None
}

/// Reads a term from Cedar's JSON form of it, whatever way it is written in.
fn parsed(value: &Value) -> Option<Form> {
    if let Some(both) = value.get("==") {
        let (left, right) = (both.get("left")?, both.get("right")?);
        for (attribute, literal) in [(left, right), (right, left)] {
            let Some(name) = resource_attribute(attribute) else {
                continue;
            };
            let plain = literal.get("Value");
            let number = plain.and_then(Value::as_i64).map(Literal::Number);
            let text = || plain.and_then(Value::as_str).map(|text| Literal::Text(text.to_owned()));
            let address = || ip_text(literal).map(|text| Literal::Address(text.to_owned()));
            let other = || plain.is_some().then_some(Literal::Other);
            if let Some(literal) = number.or_else(text).or_else(address).or_else(other) {
                return Some(Form::Equals(name.to_owned(), literal));
            }
        }
        return None;
    }
    match value.get("isInRange")?.as_array()?.as_slice() {
        [of, range] => {
            Some(Form::InRange(resource_attribute(of)?.to_owned(), ip_text(range)?.to_owned()))
        }
        _ => None,
    }
}

fn term(text: &Text<'_>, value: &Value, words: Words<'_>) -> Result<Term, Refusal> {
    match parsed(value) {
        Some(form) => form.term(text, words),
        None => Err(Box::new(refusal(text, value, words))),
    }
}

impl Form {
    fn term(&self, text: &Text<'_>, words: Words<'_>) -> Result<Term, Refusal> {
        match self {
            Self::Equals(name, literal) => equals(text, name, literal, words),
            Self::InRange(name, range) if name == "ip" => Ok(Term::Range(net(text, range, words)?)),
            Self::InRange(name, _) => Err(unknown_attribute(text, name, words)),
        }
    }
}

fn equals(
    text: &Text<'_>,
    name: &str,
    literal: &Literal,
    words: Words<'_>,
) -> Result<Term, Refusal> {
    let refuse = |message: String, help: &str| {
        Err(Box::new(text.error(literal_range(words), message, help)))
    };
    match (name, literal) {
        ("ip", Literal::Address(written)) => {
            let net = net(text, written, words)?;
            if net.is_single() {
                return Ok(Term::Range(net));
            }
            refuse(
                "`==` compares whole ranges, and no peer is a range".to_owned(),
                &format!("write `resource.ip.isInRange(ip(\"{net}\"))`"),
            )
        }
        ("ip", _) => refuse(
            "an address is compared with an address".to_owned(),
            "write `resource.ip == ip(\"192.0.2.7\")`",
        ),
        ("port", Literal::Number(0)) => refuse(
            "port 0 means that the kernel chooses one, and cannot be asked for".to_owned(),
            "leave the port out: the policy then holds for every port, 0 included",
        ),
        ("port", Literal::Number(number)) => match u16::try_from(*number) {
            Ok(port) => Ok(Term::Port(port)),
            Err(_) => refuse(format!("there is no port {number}"), "ports go from 1 to 65535"),
        },
        ("port", _) => {
            refuse("a port is compared with a number".to_owned(), "write `resource.port == 443`")
        }
        ("protocol", Literal::Text(written)) => {
            if let Some(number) = protocol_number(written) {
                return Ok(Term::Protocol(number));
            }
            let help = match (written.as_str(), nearest(written, ["tcp", "udp"])) {
                ("6", _) => "write `resource.protocol == \"tcp\"`".to_owned(),
                ("17", _) => "write `resource.protocol == \"udp\"`".to_owned(),
                (_, Some(near)) => format!("did you mean \"{near}\"?"),
                (_, None) => "write \"tcp\", \"udp\", or the IP protocol number in decimal, \
                              as in \"132\" for SCTP"
                    .to_owned(),
            };
            refuse(format!("no peer's protocol is called \"{written}\""), &help)
        }
        ("protocol", _) => refuse(
            "a protocol is compared with a string".to_owned(),
            "write `resource.protocol == \"tcp\"`",
        ),
        _ => Err(unknown_attribute(text, name, words)),
    }
}

/// The IP protocol number of a name, as requests give it: tcp, udp, else the number in decimal.
fn protocol_number(name: &str) -> Option<u8> {
    match name {
        "tcp" => Some(protocol::TCP),
        "udp" => Some(protocol::UDP),
        _ => {
            let number: u8 = name.parse().ok()?;
            let named = matches!(number, protocol::ANY | protocol::TCP | protocol::UDP);
            (!named && number.to_string() == name).then_some(number)
        }
    }
}

fn net(text: &Text<'_>, written: &str, words: Words<'_>) -> Result<Net, Refusal> {
    let refuse = |message: String, help: String| {
        Err(Box::new(text.error(literal_range(words), message, help)))
    };
    let net = match Net::parse(written) {
        Ok(net) => net,
        Err(message) => {
            return refuse(
                message,
                "write an address as in ip(\"192.0.2.7\") or a range as in ip(\"192.0.2.0/24\")"
                    .to_owned(),
            );
        }
    };
    match net.unmapped() {
        Some(v4) => refuse(
            format!("`{written}` is IPv4 in IPv6 clothes, which is judged as IPv4"),
            format!("write ip(\"{v4}\")"),
        ),
        None => Ok(net),
    }
}

/// The bytes of the term's literal: its string or number, or all of it.
fn literal_range(words: Words<'_>) -> Range<usize> {
    let literal = |index: &usize| matches!(words.kind(*index), Some(Kind::Str | Kind::Number));
    match (0..words.len()).find(literal) {
        Some(at) => words.sub(at..at + 1).range(),
        None => words.range(),
    }
}

fn unknown_attribute(text: &Text<'_>, name: &str, words: Words<'_>) -> Refusal {
    let range = words.find_anywhere(&[name]).map(|at| words.sub(at..at + 1).range());
    let list = "a Peer has `ip`, `port` and `protocol`; other resources have no attributes";
    let (message, help) = if ATTRIBUTES.contains(&name) {
        (format!("`{name}` is no address"), FORMS.to_owned())
    } else {
        let message = format!("no resource has an attribute `{name}`");
        match nearest(name, ATTRIBUTES) {
            Some(near) => (message, format!("did you mean `{near}`? {list}")),
            None => (message, list.to_owned()),
        }
    };
    Box::new(text.error(range.unwrap_or_else(|| words.range()), message, help))
}

/// What to say of a term that cannot be kept.
fn refusal(text: &Text<'_>, value: &Value, words: Words<'_>) -> Diagnostic {
    let operator = value.as_object().and_then(|map| map.keys().next());
    let operator = operator.map(String::as_str).unwrap_or_default();
    let one_each = "write one policy for each: where any permit matches, the action is permitted";
    let at = |marks: &[&str]| {
        let found = words.find(marks).or_else(|| words.find_anywhere(marks));
        found.map_or_else(|| words.range(), |at| words.sub(at..at + 1).range())
    };
    let refused = |marks: &[&str], what: &str, help: &str| {
        text.error(at(marks), format!("{what} cannot be kept in the kernel"), help)
    };
    match operator {
        "||" => return refused(&["||"], "`||`", one_each),
        "if-then-else" => return refused(&["if"], "`if`", "write one policy for each branch"),
        _ => {}
    }
    for (variable, help) in [
        (
            "context",
            "no action has a context: what is known of an action is its agent, its kind and its resource",
        ),
        (
            "principal",
            "name the agent in the head: `principal == Agent::\"…\"` or `principal in AgentGroup::\"…\"`",
        ),
        (
            "action",
            "name the actions in the head: `action in [Action::\"read\", Action::\"write\"]`",
        ),
    ] {
        if let Some(start) = words.find_anywhere(&[variable]) {
            let mut end = start + 1;
            while words.text(end) == "." {
                end += 2;
            }
            let range = words.sub(start..end.min(words.len())).range();
            let message = format!("`{variable}` in a condition cannot be kept in the kernel");
            return text.error(range, message, help);
        }
    }
    match operator {
        "!" => refused(
            &["!"],
            "`!`",
            "write what is excepted as a policy of its own with the opposite effect",
        ),
        "!=" => refused(
            &["!="],
            "`!=`",
            "write what is excepted as a policy of its own with the opposite effect",
        ),
        "<" | "<=" | ">" | ">=" => refused(
            &["<", "<=", ">", ">="],
            &format!("`{operator}`"),
            "write one policy for each port: `resource.port == 443`",
        ),
        "like" => refused(
            &["like"],
            "`like`",
            "name folders with `resource in Dir::\"…\"`, and addresses with `isInRange`",
        ),
        "has" => refused(
            &["has"],
            "`has`",
            "leave it out: every Peer has `ip`, `port` and `protocol`, and nothing else has attributes",
        ),
        "contains" | "containsAll" | "containsAny" | "isEmpty" => {
            refused(&[operator], &format!("`{operator}`"), one_each)
        }
        "isLoopback" => refused(
            &["isLoopback"],
            "`isLoopback`",
            "write one policy with `resource.ip.isInRange(ip(\"127.0.0.0/8\"))`, and one with `resource.ip == ip(\"::1\")`",
        ),
        "isMulticast" => refused(
            &["isMulticast"],
            "`isMulticast`",
            "write one policy with `resource.ip.isInRange(ip(\"224.0.0.0/4\"))`, and one with `resource.ip.isInRange(ip(\"ff00::/8\"))`",
        ),
        "isIpv4" => {
            refused(&["isIpv4"], "`isIpv4`", "write `resource.ip.isInRange(ip(\"0.0.0.0/0\"))`")
        }
        "isIpv6" => refused(&["isIpv6"], "`isIpv6`", "write `resource.ip.isInRange(ip(\"::/0\"))`"),
        "in" | "is" => refused(
            &[operator],
            &format!("`{operator}` in a condition"),
            "write it in the head: `resource in Dir::\"…\"`, `resource is Peer`",
        ),
        "Value" if value.get("Value").is_some_and(Value::is_boolean) => text.error(
            words.range(),
            "a condition that is always the same says nothing",
            "leave it out; to switch a policy off, take it out of the file",
        ),
        "==" if words
            .find(&["=="])
            .is_some_and(|at| words.text(at + 1) == "resource" && words.text(at + 2) != ".")
            || words.text(0) == "resource" && words.text(1) == "==" =>
        {
            refused(
                &["=="],
                "`resource ==` in a condition",
                "write it in the head: `permit(principal, action, resource == File::\"…\")`",
            )
        }
        _ => text.error(words.range(), "this condition cannot be kept in the kernel", FORMS),
    }
}
