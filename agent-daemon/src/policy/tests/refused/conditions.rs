//! Conditions that are refused.

use super::{check, problems, refused, underlined};

/// A condition on `connect` is refused for one reason.
#[track_caller]
fn refused_when(condition: &str, at: &str, message: &str, remedy: &str) {
    let text = format!(
        "permit(principal, action == Action::\"connect\", resource is Peer)\nwhen {{ {condition} }};"
    );
    refused(&text, at, message, remedy);
}

#[test]
fn conditions() {
    for (condition, at, message, remedy) in [
        (
            "resource.port == 80 || resource.port + 1 == 443",
            "resource.port + 1 == 443",
            "cannot be kept",
            "resource.port < 1024",
        ),
        ("resource.ip < 3", "resource.ip < 3", "`ip` has no order", "are for ports"),
        (
            "resource.port like \"4*\"",
            "resource.port like \"4*\"",
            "`port` is no text",
            "isInRange",
        ),
        ("resource.prot like \"t*\"", "prot", "no resource has an attribute `prot`", "a Peer has"),
        ("resource has prot", "prot", "no resource has an attribute `prot`", "a Peer has"),
        (
            "resource.host == \"example.com\"",
            "resource.host",
            "optional attribute `host`",
            "has host &&",
        ),
        (
            "resource has host && resource.host == \"API.example.com\"",
            "\"API.example.com\"",
            "no host is called \"API.example.com\"",
            "write `api.example.com`",
        ),
        (
            "resource has host && resource.host == \"example.com.\"",
            "\"example.com.\"",
            "no host is called",
            "without the dot at its end",
        ),
        (
            "resource has host && resource.host == \"bücher.example\"",
            "\"bücher.example\"",
            "no host is called",
            "xn--",
        ),
        (
            "resource has host && resource.host == resource.protocol",
            "resource.host == resource.protocol",
            "cannot be kept",
            "resource.host like",
        ),
        (
            "resource has host && resource.host like \"api.*.com\"",
            "\"api.*.com\"",
            "has its `*` at the beginning",
            "*.example.com",
        ),
        (
            "resource has host && resource.host like \"*.Example.com\"",
            "\"*.Example.com\"",
            "no host's name ends like this",
            "lower-case",
        ),
        (
            "resource has host && resource.host < 3",
            "resource.host < 3",
            "`host` has no order",
            "are for ports",
        ),
        ("resource.label == \"secret\"", "label", "no resource has an attribute", "`labels`?"),
        (
            "resource.labels == [\"a\"]",
            "resource.labels == [\"a\"]",
            "`labels` is a set",
            "resource.labels.contains",
        ),
        (
            "resource.labels like \"a*\"",
            "resource.labels like \"a*\"",
            "`labels` is a set",
            "resource.labels.contains",
        ),
        ("resource.labels.contains(3)", "3", "a label is a string", "resource.labels.contains"),
        ("resource in Label::\"\"", "\"\"", "a label without a name", "in Label::\"secret\""),
        (
            "resource == Label::\"a\"",
            "Label::\"a\"",
            "a label is no resource",
            "resource in Label::\"a\"",
        ),
        (
            "resource in [Label::\"a\", Dir::\"/x\"]",
            "[Label::\"a\", Dir::\"/x\"]",
            "a list has entities of one type",
            "`resource in Dir::\"/x\" || resource in Label::\"a\"`",
        ),
        ("principal in Label::\"a\"", "Label", "`Label` cannot stand here", "Agent, AgentGroup"),
        (
            "resource has sha256 && resource.sha256 == \"00\"",
            "\"00\"",
            "`00` is no SHA-256 digest",
            "64 hexadecimal digits in lower case",
        ),
        (
            "resource has sha256 && resource.sha256 == 3",
            "3",
            "a digest is compared with a string",
            "sha256sum",
        ),
        (
            "resource has sha256 && resource.sha256 like \"0*\"",
            "resource.sha256 like \"0*\"",
            "`sha256` is no text",
            "`like` is for paths",
        ),
        ("resource.hash == \"00\"", "hash", "no resource has an attribute `hash`", "`sha256`"),
        (
            "principal.nam == \"coder\"",
            "nam",
            "no agent has an attribute `nam`",
            "did you mean `name`?",
        ),
        ("principal has colour", "colour", "no agent has an attribute `colour`", "`namespace`"),
        ("principal.name == 3", "3", "`name` is compared with a string", "principal.name =="),
        (
            "principal.labels == [\"a\"]",
            "principal.labels == [\"a\"]",
            "`labels` is a set",
            "contains",
        ),
        ("principal.labels.contains(3)", "3", "a label is a string", "contains(\"…\")"),
        ("principal == Agent::\"a b\"", "\"a b\"", "cannot name an agent", "Agent::\"coder\""),
        (
            "principal == AgentGroup::\"x\"",
            "principal == AgentGroup::\"x\"",
            "a group is no agent",
            "principal in AgentGroup",
        ),
        ("principal in Dir::\"/x\"", "Dir", "`Dir` cannot stand here", "Agent, AgentGroup"),
        (
            "action == Action::\"conect\"",
            "Action::\"conect\"",
            "no action `conect`",
            "did you mean `connect`?",
        ),
        ("resource is Per", "Per", "nothing here is a `Per`", "did you mean `Peer`?"),
        ("resource in File::\"/x\"", "File::\"/x\"", "nothing is in a File", "resource == File"),
        ("resource in Dir::\"x\"", "\"x\"", "not an absolute path", "Dir::\"/srv/x\""),
        ("resource == Peer::\"x\"", "Peer::\"x\"", "a peer has no name", "resource.ip =="),
        ("resource == Agent::\"x\"", "Agent", "`Agent` cannot stand here", "File"),
        (
            "context.task == 1",
            "context.task",
            "`context` in a condition",
            "no action has a context",
        ),
        ("context has task", "context", "`context` in a condition", "no action has a context"),
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
        ("resource.protocol == \"icmp\"", "\"icmp\"", "no peer's protocol", "decimal"),
        ("resource.protocol == 6", "6", "compared with a string", "\"tcp\""),
    ] {
        refused_when(condition, at, message, remedy);
    }
}

#[test]
fn every_term_is_judged() {
    let found = problems(
        "permit(principal, action == Action::\"connect\", resource is Peer)
         when { resource.port != 1 && context.x || !(resource.port == 70000) }
         unless { if 1 < 2 then true else resource.pory == 2 };",
    );
    let at: Vec<String> = found.iter().map(underlined).collect();
    assert_eq!(at, ["context.x", "70000", "1 < 2", "pory"]);
}

#[test]
fn attributes_of_what_has_none() {
    for head in [
        "principal, action, resource",
        "principal, action in [Action::\"connect\", Action::\"read\"], resource",
        "principal, action == Action::\"read\", resource in Dir::\"/x\"",
        "principal, action == Action::\"connect\", resource",
        "principal, action == Action::\"privilege\", resource",
    ] {
        refused(
            &format!("permit({head})\nwhen {{ resource.port == 443 }};"),
            "resource.port",
            "no such attribute",
            "write `resource is Peer` in the head",
        );
    }
    refused(
        "permit(principal, action, resource) when { principal.model == \"m1\" };",
        "principal.model",
        "optional attribute `model`",
        "has model",
    );
}

#[test]
fn patterns_and_paths_that_never_match() {
    let of = |condition: &str, at: &str, message: &str, remedy: &str| {
        let head = "principal, action == Action::\"read\", resource";
        refused(&format!("permit({head}) when {{ {condition} }};"), at, message, remedy);
    };
    of(
        "resource.path like \"etc/*\"",
        "\"etc/*\"",
        "no path begins like this",
        "paths are absolute",
    );
    of(
        "resource.path == \"etc\"",
        "\"etc\"",
        "not an absolute path",
        "write the path from the root",
    );
    of("resource.path == \"/etc/\"", "\"/etc/\"", "does not end with `/`", "write `\"/etc\"`");
    of("resource.path == 3", "3", "a path is compared with a string", "resource.path ==");
    of("resource.path", "resource.path", "cannot be kept", "a condition is made of");
}

#[test]
fn more_than_there_is_room_for() {
    // Each pattern may or may not have matched so far, and both make a difference, so every one doubles
    // the states.
    let patterns: Vec<String> = (0..16)
        .map(|n| format!("@id(\"p{n}\") permit(principal, action == Action::\"read\", resource) unless {{ resource.path like \"*word{n}*\" }};\n"))
        .collect();
    let policies = check(&patterns.concat()).unwrap();
    let error = policies.lower(&super::super::coder(), &[]).unwrap_err().to_string();
    assert!(error.contains("more than 16384 states"), "{error}");
    assert!(error.contains("--> /etc/ambit/coder.cedar:16:1"), "{error}");
    assert!(error.contains("one `*` at the beginning or the end"), "{error}");
    check(&patterns[..8].concat()).unwrap().lower(&super::super::coder(), &[]).unwrap();
}
