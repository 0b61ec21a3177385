//! Conditions that are refused.

use super::{problems, refused, underlined};

/// A condition on `connect` is refused for one reason.
#[track_caller]
fn refused_when(condition: &str, at: &str, message: &str, remedy: &str) {
    let text = format!(
        "permit(principal, action == Action::\"connect\", resource)\nwhen {{ {condition} }};"
    );
    refused(&text, at, message, remedy);
}

#[test]
fn conditions() {
    for (condition, at, message, remedy) in [
        (
            "resource.port == 80 || resource.port == 443",
            "||",
            "`||` cannot be kept",
            "one policy for each",
        ),
        (
            "resource.port == 1 && (resource.port == 80 || resource.port == 443)",
            "||",
            "`||`",
            "one policy for each",
        ),
        ("!(resource.port == 80)", "!", "`!`", "opposite effect"),
        ("resource.port != 80", "!=", "`!=`", "opposite effect"),
        ("resource.port < 80", "<", "`<`", "one policy for each port"),
        ("resource.port <= 80", "<=", "`<=`", "one policy for each port"),
        ("resource.port > 80", ">", "`>`", "one policy for each port"),
        ("resource.port >= 80", ">=", "`>=`", "one policy for each port"),
        ("resource.protocol like \"t*\"", "like", "`like`", "isInRange"),
        ("if resource.port == 80 then true else false", "if", "`if`", "each branch"),
        ("[80, 443].contains(resource.port)", "contains", "`contains`", "one policy for each"),
        ("resource has port", "has", "`has`", "leave it out"),
        ("resource.ip.isLoopback()", "isLoopback", "`isLoopback`", "127.0.0.0/8"),
        ("resource.ip.isMulticast()", "isMulticast", "`isMulticast`", "224.0.0.0/4"),
        ("resource.ip.isIpv4()", "isIpv4", "`isIpv4`", "0.0.0.0/0"),
        ("resource.ip.isIpv6()", "isIpv6", "`isIpv6`", "::/0"),
        (
            "principal.name == \"coder\"",
            "principal.name",
            "`principal` in a condition",
            "in the head",
        ),
        ("principal has name", "principal", "`principal` in a condition", "in the head"),
        (
            "principal in AgentGroup::\"x\"",
            "principal",
            "`principal` in a condition",
            "in the head",
        ),
        ("action == Action::\"connect\"", "action", "`action` in a condition", "in the head"),
        (
            "context.task == 1",
            "context.task",
            "`context` in a condition",
            "no action has a context",
        ),
        ("context has task", "context", "`context` in a condition", "no action has a context"),
        ("resource is Peer", "is", "`is` in a condition", "in the head"),
        ("resource in Dir::\"/x\"", "in", "`in` in a condition", "in the head"),
        ("resource == Peer::\"x\"", "==", "`resource ==` in a condition", "in the head"),
        ("true", "true", "always the same", "leave it out"),
        ("false", "false", "always the same", "leave it out"),
        (
            "resource.port == resource.port",
            "resource.port == resource.port",
            "cannot be kept",
            "resource.port == 443",
        ),
        (
            "resource.port + 1 == 80",
            "resource.port + 1 == 80",
            "cannot be kept",
            "resource.port == 443",
        ),
        ("1 == 1", "1 == 1", "cannot be kept", "resource.port == 443"),
        (
            "resource.ip.isInRange(resource.ip)",
            "resource.ip.isInRange(resource.ip)",
            "cannot be kept",
            "isInRange(ip(",
        ),
        ("resource.prot == \"tcp\"", "prot", "no resource has an attribute `prot`", "a Peer has"),
        (
            "resource.pory == 1",
            "pory",
            "no resource has an attribute `pory`",
            "did you mean `port`?",
        ),
        (
            "resource.port.isInRange(ip(\"10.0.0.0/8\"))",
            "port",
            "`port` is no address",
            "isInRange",
        ),
        ("resource.port == \"80\"", "\"80\"", "compared with a number", "resource.port == 443"),
        ("resource.port == 0", "0", "port 0", "leave the port out"),
        ("resource.port == 65536", "65536", "there is no port 65536", "1 to 65535"),
        ("resource.port == -1", "1", "there is no port -1", "1 to 65535"),
        (
            "resource.ip == \"10.0.0.1\"",
            "\"10.0.0.1\"",
            "compared with an address",
            "ip(\"192.0.2.7\")",
        ),
        (
            "resource.ip == ip(\"10.1.2.3/8\")",
            "\"10.1.2.3/8\"",
            "whole ranges",
            "resource.ip.isInRange(ip(\"10.0.0.0/8\"))",
        ),
        ("resource.ip == ip(\"10.0.0\")", "\"10.0.0\"", "no IPv4 or IPv6 address", "192.0.2.7"),
        (
            "resource.ip.isInRange(ip(\"10.0.0.0/33\"))",
            "\"10.0.0.0/33\"",
            "no prefix length from 0 to 32",
            "192.0.2.0/24",
        ),
        (
            "resource.ip.isInRange(ip(\"10.0.0.0/08\"))",
            "\"10.0.0.0/08\"",
            "no prefix length",
            "192.0.2.0/24",
        ),
        (
            "resource.ip == ip(\"::ffff:1.2.3.4\")",
            "\"::ffff:1.2.3.4\"",
            "IPv4 in IPv6 clothes",
            "ip(\"1.2.3.4\")",
        ),
        (
            "resource.ip == ip(\"::ffff:102:304\")",
            "\"::ffff:102:304\"",
            "IPv4 in IPv6 clothes",
            "ip(\"1.2.3.4\")",
        ),
        (
            "resource.ip.isInRange(ip(\"::ffff:0:0/96\"))",
            "\"::ffff:0:0/96\"",
            "IPv4 in IPv6 clothes",
            "ip(\"0.0.0.0/0\")",
        ),
        (
            "resource.ip.isInRange(ip(\"::ffff:a00:0/104\"))",
            "\"::ffff:a00:0/104\"",
            "IPv4 in IPv6 clothes",
            "ip(\"10.0.0.0/8\")",
        ),
        ("resource.protocol == \"TCP\"", "\"TCP\"", "no peer's protocol", "did you mean \"tcp\"?"),
        ("resource.protocol == \"6\"", "\"6\"", "no peer's protocol", "\"tcp\""),
        ("resource.protocol == \"0\"", "\"0\"", "no peer's protocol", "decimal"),
        ("resource.protocol == \"icmp\"", "\"icmp\"", "no peer's protocol", "decimal"),
        ("resource.protocol == 6", "6", "compared with a string", "\"tcp\""),
    ] {
        refused_when(condition, at, message, remedy);
    }
}

#[test]
fn every_term_is_judged() {
    let found = problems(
        "permit(principal, action == Action::\"connect\", resource)
         when { resource.port != 1 && context.x && resource.port == 70000 }
         unless { resource.port == 2 };",
    );
    let at: Vec<String> = found.iter().map(underlined).collect();
    assert_eq!(at, ["!=", "context.x", "70000", "unless"]);
}

#[test]
fn conditions_on_what_has_no_attributes() {
    for head in [
        "principal, action, resource",
        "principal, action in [Action::\"connect\", Action::\"read\"], resource",
        "principal, action == Action::\"read\", resource in Dir::\"/x\"",
    ] {
        refused(
            &format!("permit({head})\nwhen {{ resource.port == 443 }};"),
            "when { resource.port == 443",
            "have no attributes",
            "write `resource is Peer` in the head",
        );
    }
}
