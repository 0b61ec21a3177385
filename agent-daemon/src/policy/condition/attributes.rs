//! What conditions ask of a resource's attributes, and what of it is refused and why.

use agent_ebpf::protocol;

use super::{Expr, FORMS, Form, Found, Node, Reader, asks, is, literal_range, name_range};
use crate::policy::{
    content::Digest,
    diagnostic::{Diagnostic, nearest},
    formula::{Protocols, Test, Text as Asked},
    hosts::{is_lawful_end, lawful},
    model::protocol_name,
    pattern::{Pattern, Simple},
    peers::Net,
    scope::{abstract_address, path},
};

/// The attributes of resources, and what has them.
pub(super) const ATTRIBUTES: [&str; 7] =
    ["ip", "port", "protocol", "host", "path", "labels", "sha256"];

impl Reader<'_> {
    pub(super) fn attribute_equals(
        &mut self,
        asked: &Node<'_>,
        name: &str,
        literal: &Node<'_>,
    ) -> Found {
        let text = self.text;
        let refuse = |message: String, help: &str| {
            Err(Box::new(text.error(literal_range(literal), message, help)))
        };
        match (name, &literal.kind) {
            ("ip", Form::Call("ip", arguments)) => {
                let net = self.net(arguments, literal)?;
                if net.is_unspecified() && self.connects {
                    self.warnings.push(self.text.warning(
                        literal.words.range(),
                        format!("no connection goes to `{net}`: as a destination it is this host"),
                        "write `127.0.0.1` or `::1`, as which it is judged",
                    ));
                }
                if net.is_single() {
                    return Ok(Expr::Test(Test::Address(net)));
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
            ("port", _) => {
                let port = self.port(literal)?;
                Ok(Expr::Test(Test::Port(port, port)))
            }
            ("protocol", Form::Text(written)) => {
                if let Some(number) = protocol_number(written) {
                    return Ok(Expr::Test(Test::Protocol(Protocols::of(|one| one == number))));
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
            ("host", Form::Text(written)) => match lawful(written) {
                Ok(()) => Ok(Expr::Test(Test::Host(Asked::Equals(written.clone())))),
                Err(help) => refuse(format!("no host is called \"{written}\""), &help),
            },
            ("host", _) => refuse(
                "a host's name is compared with a string".to_owned(),
                "write `resource.host == \"api.example.com\"`",
            ),
            ("path", Form::Text(written)) => {
                let range = literal.words.range();
                let checked = match written.starts_with('@') {
                    true => abstract_address(self.text, written, range)?,
                    false => path(self.text, written, "path", true, range)?,
                };
                Ok(Expr::Test(Test::Path(Asked::Equals(checked))))
            }
            ("sha256", Form::Text(written)) => match Digest::parse(written) {
                Some(digest) => Ok(Expr::Test(Test::Content(digest))),
                None => refuse(
                    format!("`{written}` is no SHA-256 digest"),
                    "write its 64 hexadecimal digits in lower case, as `sha256sum` prints them",
                ),
            },
            ("sha256", _) => refuse(
                "a digest is compared with a string".to_owned(),
                "write `resource has sha256 && resource.sha256 == \"…\"`, with the 64 digits that \
                 `sha256sum` prints",
            ),
            ("path", _) => refuse(
                "a path is compared with a string".to_owned(),
                "write `resource.path == \"/srv/work/a\"`",
            ),
            _ => self.unknown_attribute(asked, name),
        }
    }

    fn port(&self, literal: &Node<'_>) -> Result<u16, Box<Diagnostic>> {
        match &literal.kind {
            Form::Number(number) => match u16::try_from(*number) {
                Ok(port) => Ok(port),
                Err(_) => self.refuse(
                    literal_range(literal),
                    format!("there is no port {number}"),
                    "ports go from 1 to 65535; 0 asks the kernel to choose one",
                ),
            },
            _ => self.refuse(
                literal_range(literal),
                "a port is compared with a number",
                "write `resource.port == 443`",
            ),
        }
    }

    /// `<`, `<=`, `>`, `>=`.
    pub(super) fn compare(
        &self,
        node: &Node<'_>,
        operator: &str,
        left: &Node<'_>,
        right: &Node<'_>,
    ) -> Found {
        let (asked, literal, turned) =
            if asks(left) { (left, right, false) } else { (right, left, true) };
        let Form::Attribute(of, name) = &asked.kind else {
            return self.cannot(node);
        };
        if !is(of, "resource") || asks(literal) {
            return self.cannot(node);
        }
        if name != "port" {
            if !ATTRIBUTES.contains(&name.as_str()) {
                return self.unknown_attribute(asked, name);
            }
            return self.refuse(
                node.words.range(),
                format!("`{name}` has no order"),
                "`<`, `<=`, `>` and `>=` are for ports",
            );
        }
        let port = self.port(literal)?;
        let (first, last) = match (operator, turned) {
            ("<", false) | (">", true) => (Some(0), port.checked_sub(1)),
            ("<=", false) | (">=", true) => (Some(0), Some(port)),
            (">", false) | ("<", true) => (port.checked_add(1), Some(u16::MAX)),
            _ => (Some(port), Some(u16::MAX)),
        };
        Ok(match (first, last) {
            (Some(first), Some(last)) => Expr::Test(Test::Port(first, last)),
            _ => Expr::Const(false),
        })
    }

    /// A pattern of host names: a star at its beginning, or none.
    pub(super) fn host_like(&mut self, pattern: &Pattern, written: &Node<'_>) -> Found {
        let range = written.words.range();
        let end = match pattern.simple() {
            Some(Simple::Anything) => None,
            Some(Simple::Exactly(name) | Simple::Ends(name)) => Some(name),
            Some(Simple::Begins(_) | Simple::BeginsAndEnds(..)) | None => {
                return self.refuse(
                    range,
                    "a pattern of host names has its `*` at the beginning, and there only",
                    "write as in `resource.host like \"*.example.com\"`",
                );
            }
        };
        if let Some(end) = end.map(|end| String::from_utf8_lossy(&end).into_owned()) {
            if !is_lawful_end(&end) {
                return self.refuse(
                    range,
                    "no host's name ends like this, so it never matches",
                    "names have lower-case letters, digits, `-` and `_`, with dots between them and none at the end",
                );
            }
            if !end.starts_with('.') && matches!(pattern.simple(), Some(Simple::Ends(_))) {
                self.warnings.push(self.text.warning(
                    range,
                    format!(
                        "`*{end}` is also every name that merely ends so, as `evil-{end}` does"
                    ),
                    format!("write `*.{end}` for the names beneath it, and `{end}` for itself"),
                ));
            }
        }
        Ok(Expr::Test(Test::Host(Asked::Like(pattern.clone()))))
    }

    pub(super) fn net(
        &self,
        arguments: &[Node<'_>],
        whole: &Node<'_>,
    ) -> Result<Net, Box<Diagnostic>> {
        let [Node { kind: Form::Text(written), words }] = arguments else {
            return self.cannot(whole);
        };
        let net = match Net::parse(written) {
            Ok(net) => net,
            Err(message) => {
                return self.refuse(
                    words.range(),
                    message,
                    "write an address as in ip(\"192.0.2.7\") or a range as in ip(\"192.0.2.0/24\")",
                );
            }
        };
        match net.unmapped() {
            Some(v4) => self.refuse(
                words.range(),
                format!("`{written}` is IPv4 in IPv6 clothes, which is judged as IPv4"),
                format!("write ip(\"{v4}\")"),
            ),
            None => Ok(net),
        }
    }

    pub(super) fn unknown_attribute<T>(
        &self,
        node: &Node<'_>,
        name: &str,
    ) -> Result<T, Box<Diagnostic>> {
        let list = "a Peer has `ip`, `port`, `protocol` and perhaps `host`; a File, Dir, Program or UnixSocket has `path` and `labels`; \
             a Program has `sha256`";
        let (message, help) = match name {
            _ if ATTRIBUTES.contains(&name) => {
                (format!("`{name}` is no address"), FORMS.to_owned())
            }
            _ => {
                let message = format!("no resource has an attribute `{name}`");
                match nearest(name, ATTRIBUTES) {
                    Some(near) => (message, format!("did you mean `{near}`? {list}")),
                    None => (message, list.to_owned()),
                }
            }
        };
        self.refuse(name_range(node, name), message, help)
    }
}

/// The IP protocol number of a name, as requests give it: tcp, udp, else the number in decimal.
fn protocol_number(name: &str) -> Option<u8> {
    match name {
        "tcp" => Some(protocol::TCP),
        "udp" => Some(protocol::UDP),
        _ => {
            let number: u8 = name.parse().ok()?;
            (protocol_name(number) == name).then_some(number)
        }
    }
}
