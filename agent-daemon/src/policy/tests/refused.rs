//! Every form that is refused: the place, the text underlined, and what to write instead.

use super::super::{Diagnostic, Severity};
use super::{check, source};

/// The problems in a policy text, in order.
fn problems(text: &str) -> Vec<Diagnostic> {
    match check(text) {
        Ok(_) => panic!("this was taken: {text}"),
        Err(error) => error.diagnostics().to_vec(),
    }
}

/// The text that a problem underlines.
fn underlined(problem: &Diagnostic) -> String {
    let span = problem.span.as_ref().unwrap();
    let shown = span.text.chars().skip(span.indent);
    shown.take(span.underlined).collect()
}

/// A policy text is refused for one reason, shown at this text, with words in message and remedy.
#[track_caller]
fn refused(text: &str, at: &str, message: &str, remedy: &str) {
    let found = problems(text);
    let [problem] = found.as_slice() else {
        panic!("one problem expected in {text}: {found:#?}");
    };
    assert_eq!(problem.severity, Severity::Error);
    assert_eq!(underlined(problem), at, "{problem}");
    assert!(problem.message.contains(message), "{problem}");
    let help = problem.help.as_deref().unwrap_or_default();
    assert!(help.contains(remedy), "{problem}");
    let span = problem.span.as_ref().unwrap();
    let place = format!("--> /etc/ambit/coder.cedar:{}:{}", span.line, span.column);
    assert!(problem.to_string().contains(&place), "{problem}");
}

/// A condition on `connect` is refused for one reason.
#[track_caller]
fn refused_when(condition: &str, at: &str, message: &str, remedy: &str) {
    let text = format!(
        "permit(principal, action == Action::\"connect\", resource)\nwhen {{ {condition} }};"
    );
    refused(&text, at, message, remedy);
}

#[test]
fn a_refusal_looks_like_a_compilers() {
    let found = problems("permit(principal, action, resource)\n  unless { true };\n");
    assert_eq!(
        found[0].to_string(),
        "error: `unless` cannot be kept in the kernel
 --> /etc/ambit/coder.cedar:2:3
  |
2 |   unless { true };
  |   ^^^^^^
  = help: write the exception as a policy of its own with the opposite effect: what a `forbid` policy forbids, no `permit` can allow"
    );
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
        (
            "resource.port <= 80",
            "<=",
            "`<=`",
            "one policy for each port",
        ),
        ("resource.port > 80", ">", "`>`", "one policy for each port"),
        (
            "resource.port >= 80",
            ">=",
            "`>=`",
            "one policy for each port",
        ),
        (
            "resource.protocol like \"t*\"",
            "like",
            "`like`",
            "isInRange",
        ),
        (
            "if resource.port == 80 then true else false",
            "if",
            "`if`",
            "each branch",
        ),
        (
            "[80, 443].contains(resource.port)",
            "contains",
            "`contains`",
            "one policy for each",
        ),
        ("resource has port", "has", "`has`", "leave it out"),
        (
            "resource.ip.isLoopback()",
            "isLoopback",
            "`isLoopback`",
            "127.0.0.0/8",
        ),
        (
            "resource.ip.isMulticast()",
            "isMulticast",
            "`isMulticast`",
            "224.0.0.0/4",
        ),
        ("resource.ip.isIpv4()", "isIpv4", "`isIpv4`", "0.0.0.0/0"),
        ("resource.ip.isIpv6()", "isIpv6", "`isIpv6`", "::/0"),
        (
            "principal.name == \"coder\"",
            "principal.name",
            "`principal` in a condition",
            "in the head",
        ),
        (
            "principal has name",
            "principal",
            "`principal` in a condition",
            "in the head",
        ),
        (
            "principal in AgentGroup::\"x\"",
            "principal",
            "`principal` in a condition",
            "in the head",
        ),
        (
            "action == Action::\"connect\"",
            "action",
            "`action` in a condition",
            "in the head",
        ),
        (
            "context.task == 1",
            "context.task",
            "`context` in a condition",
            "no action has a context",
        ),
        (
            "context has task",
            "context",
            "`context` in a condition",
            "no action has a context",
        ),
        (
            "resource is Peer",
            "is",
            "`is` in a condition",
            "in the head",
        ),
        (
            "resource in Dir::\"/x\"",
            "in",
            "`in` in a condition",
            "in the head",
        ),
        (
            "resource == Peer::\"x\"",
            "==",
            "`resource ==` in a condition",
            "in the head",
        ),
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
        (
            "resource.prot == \"tcp\"",
            "prot",
            "no resource has an attribute `prot`",
            "a Peer has",
        ),
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
        (
            "resource.port == \"80\"",
            "\"80\"",
            "compared with a number",
            "resource.port == 443",
        ),
        ("resource.port == 0", "0", "port 0", "leave the port out"),
        (
            "resource.port == 65536",
            "65536",
            "there is no port 65536",
            "1 to 65535",
        ),
        (
            "resource.port == -1",
            "1",
            "there is no port -1",
            "1 to 65535",
        ),
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
        (
            "resource.ip == ip(\"10.0.0\")",
            "\"10.0.0\"",
            "no IPv4 or IPv6 address",
            "192.0.2.7",
        ),
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
        (
            "resource.protocol == \"TCP\"",
            "\"TCP\"",
            "no peer's protocol",
            "did you mean \"tcp\"?",
        ),
        (
            "resource.protocol == \"6\"",
            "\"6\"",
            "no peer's protocol",
            "\"tcp\"",
        ),
        (
            "resource.protocol == \"0\"",
            "\"0\"",
            "no peer's protocol",
            "decimal",
        ),
        (
            "resource.protocol == \"icmp\"",
            "\"icmp\"",
            "no peer's protocol",
            "decimal",
        ),
        (
            "resource.protocol == 6",
            "6",
            "compared with a string",
            "\"tcp\"",
        ),
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

#[test]
fn principals() {
    for (principal, at, message, remedy) in [
        (
            "principal == Agent::\"a b\"",
            "\"a b\"",
            "cannot name an agent",
            "Agent::\"coder\"",
        ),
        (
            "principal == Agent::\"\"",
            "\"\"",
            "cannot name an agent",
            "Agent::\"coder\"",
        ),
        (
            "principal in Agent::\"ä\"",
            "\"ä\"",
            "cannot name an agent",
            "Agent::\"coder\"",
        ),
        (
            "principal == AgentGroup::\"x\"",
            "principal == AgentGroup::\"x\"",
            "a group is no agent",
            "write `principal in AgentGroup::\"x\"`",
        ),
        (
            "principal is AgentGroup",
            "AgentGroup",
            "a group is no agent",
            "principal in AgentGroup",
        ),
        (
            "principal in AgentGroup::\"\"",
            "\"\"",
            "group without a name",
            "name of a group",
        ),
        (
            "principal == Agnet::\"x\"",
            "Agnet",
            "no entity type `Agnet`",
            "did you mean `Agent`?",
        ),
        (
            "principal is User",
            "User",
            "no entity type `User`",
            "Agent",
        ),
        (
            "principal == My::Agent::\"x\"",
            "My::Agent",
            "no entity type `My::Agent`",
            "Agent",
        ),
        (
            "principal == Dir::\"/x\"",
            "Dir",
            "Dir cannot stand here",
            "Agent, AgentGroup",
        ),
        (
            "principal is Agent in Dir::\"/x\"",
            "Dir",
            "Dir cannot stand here",
            "Agent",
        ),
        (
            "principal == ?principal",
            "?principal",
            "templates",
            "one policy for each",
        ),
    ] {
        refused(
            &format!("permit({principal}, action, resource);"),
            at,
            message,
            remedy,
        );
    }
}

#[test]
fn actions() {
    for (action, at, message, remedy) in [
        (
            "action == Action::\"raed\"",
            "Action::\"raed\"",
            "no action `raed`",
            "did you mean `read`?",
        ),
        (
            "action == Action::\"open\"",
            "Action::\"open\"",
            "no action `open`",
            "`Action::\"read\"`",
        ),
        (
            "action in [Action::\"read\", Action::\"Write\"]",
            "Action::\"Write\"",
            "no action `Write`",
            "did you mean `write`?",
        ),
        (
            "action in []",
            "action in []",
            "names no action",
            "`Action::\"exec\"`",
        ),
    ] {
        refused(
            &format!("permit(principal, {action}, resource);"),
            at,
            message,
            remedy,
        );
    }
    let found =
        problems("permit(principal, action in [Action::\"red\", Action::\"exe\"], resource);");
    assert_eq!(found.len(), 2);
}

#[test]
fn resources() {
    for (resource, at, message, remedy) in [
        (
            "resource == File::\"etc/passwd\"",
            "\"etc/passwd\"",
            "not an absolute path",
            "File::\"/srv/etc/passwd\"",
        ),
        (
            "resource in Dir::\"./src\"",
            "\"./src\"",
            "not an absolute path",
            "Dir::\"/srv/src\"",
        ),
        (
            "resource in Dir::\"~/src\"",
            "\"~/src\"",
            "not an absolute path",
            "Dir::\"/home/user/src\"",
        ),
        (
            "resource in Dir::\"\"",
            "\"\"",
            "empty path",
            "Dir::\"/srv/work\"",
        ),
        (
            "resource in Dir::\"/a/\"",
            "\"/a/\"",
            "does not end with `/`",
            "write `Dir::\"/a\"`",
        ),
        (
            "resource in Dir::\"//a//b\"",
            "\"//a//b\"",
            "`//`",
            "write `Dir::\"/a/b\"`",
        ),
        (
            "resource in Dir::\"/a/../b/./c\"",
            "\"/a/../b/./c\"",
            "`.` or `..`",
            "write `Dir::\"/b/c\"`",
        ),
        (
            "resource in Dir::\"/a\\0b\"",
            "\"/a\\0b\"",
            "NUL",
            "without it",
        ),
        (
            "resource == File::\"/\"",
            "\"/\"",
            "the root folder is no File",
            "Dir::\"/\"",
        ),
        (
            "resource in File::\"/a\"",
            "File::\"/a\"",
            "nothing is in a File",
            "resource == File::\"/a\"",
        ),
        (
            "resource in Program::\"/a\"",
            "Program::\"/a\"",
            "nothing is in a Program",
            "resource == Program::\"/a\"",
        ),
        (
            "resource == Peer::\"x\"",
            "resource == Peer::\"x\"",
            "a peer has no name",
            "resource is Peer",
        ),
        (
            "resource in Peer::\"x\"",
            "Peer::\"x\"",
            "a peer has no name",
            "resource is Peer",
        ),
        (
            "resource is Peer in Dir::\"/x\"",
            "resource is Peer in Dir::\"/x\"",
            "in no folder",
            "resource is Peer",
        ),
        (
            "resource == Folder::\"/x\"",
            "Folder",
            "no entity type `Folder`",
            "Dir",
        ),
        (
            "resource is Fil",
            "Fil",
            "no entity type `Fil`",
            "did you mean `File`?",
        ),
        (
            "resource is Fil in Dir::\"/x\"",
            "Fil",
            "no entity type `Fil`",
            "did you mean `File`?",
        ),
        (
            "resource is File in Dri::\"/x\"",
            "Dri",
            "no entity type `Dri`",
            "did you mean `Dir`?",
        ),
        (
            "resource in Agent::\"x\"",
            "Agent",
            "Agent cannot stand here",
            "Dir",
        ),
        (
            "resource == Agent::\"x\"",
            "Agent",
            "Agent cannot stand here",
            "File",
        ),
        (
            "resource is Agent",
            "Agent",
            "Agent cannot stand here",
            "File",
        ),
        (
            "resource in ?resource",
            "?resource",
            "templates",
            "one policy for each",
        ),
    ] {
        refused(
            &format!("permit(principal, action, {resource});"),
            at,
            message,
            remedy,
        );
    }
    let long = format!(
        "permit(principal, action, resource == File::\"/{}\");",
        "x".repeat(4095)
    );
    let found = problems(&long);
    assert!(
        found[0]
            .message
            .contains("4096 bytes; the kernel resolves at most 4095"),
        "{}",
        found[0]
    );
    let fits = format!(
        "permit(principal, action, resource == File::\"/{}\");",
        "x".repeat(4094)
    );
    assert!(check(&fits).is_ok());
}

#[test]
fn resources_that_an_action_is_not_about() {
    for (action, resource, message, remedy) in [
        (
            "read",
            "resource == Program::\"/bin/sh\"",
            "`read` never applies to a Program",
            "a Program is what `Action::\"exec\"` is for",
        ),
        (
            "exec",
            "resource == File::\"/bin/sh\"",
            "`exec` never applies to a File",
            "`Action::\"read\"` or `Action::\"write\"`",
        ),
        (
            "connect",
            "resource in Dir::\"/x\"",
            "`connect` never applies to a",
            "`connect` is about Peer",
        ),
        (
            "write",
            "resource is Peer",
            "`write` never applies to a Peer",
            "`Action::\"connect\"` or `Action::\"bind\"`",
        ),
    ] {
        refused(
            &format!("permit(principal, action == Action::\"{action}\", {resource});"),
            &format!("Action::\"{action}\""),
            message,
            remedy,
        );
    }
}

#[test]
fn ids() {
    refused(
        "@id(\"a\") permit(principal, action, resource);\n@id(\"a\") forbid(principal, action, resource);",
        "@id(\"a\")",
        "the id `a` is already that of the policy at /etc/ambit/coder.cedar:1:1",
        "its own id",
    );
    refused(
        "@id(\"\") permit(principal, action, resource);",
        "@id(\"\")",
        "empty",
        "@id(",
    );
    refused(
        "@id permit(principal, action, resource);",
        "@id",
        "empty",
        "@id(",
    );
    refused(
        "@id(\"ambit:protected\") permit(principal, action, resource);",
        "@id(\"ambit:protected\")",
        "not free",
        "another name",
    );
}

#[test]
fn syntax_errors_have_a_place() {
    for (text, at) in [
        ("permit(principal, action, resource)", None),
        ("allow(principal, action, resource);", Some("allow")),
        ("permit(principal action, resource);", Some("action")),
        (
            "permit(principal, action, resource) when { resource.port = 443 };",
            None,
        ),
        (
            "permit(principal, action, resource) when { resource.port == };",
            Some("}"),
        ),
        ("permit(principal, action, resource) when {};", None),
        ("permit(principal, action, resource) where { true };", None),
        ("permit(principal, resource);", None),
        ("permit(principal, action, resource) when { foo(1) };", None),
        ("permit(principal, action, resource == File::\"/x);", None),
        (";", Some(";")),
        ("\u{feff}permit(principal, action, resource);", None),
        (
            "permit(principal, action, resource) when { \"\\q\" == 1 };",
            None,
        ),
        (
            "@id(\"x\") @id(\"y\") permit(principal, action, resource);",
            None,
        ),
        ("permit(principal == User, action, resource);", None),
    ] {
        for problem in problems(text) {
            assert!(
                problem.span.is_some() && problem.help.is_some(),
                "{problem}"
            );
            if let Some(at) = at {
                assert_eq!(underlined(&problem), at, "{problem}");
            }
        }
    }
}

#[test]
fn what_the_parser_could_not_bear_is_refused_before_it() {
    let deep = format!("{}true{}", "(".repeat(100_000), ")".repeat(100_000));
    let long = vec!["resource.port == 1"; 100_000].join(" && ");
    let brackets = format!("{}true{}", "(".repeat(100), ")".repeat(100));
    for condition in [deep, long, brackets] {
        let text = format!("permit(principal, action, resource) when {{ {condition} }};");
        let found = problems(&text);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].message.contains("more than 1000 words"),
            "{}",
            found[0]
        );
    }
    // As deep and as long as is allowed, the parser bears it.
    let deep = format!("{}resource.port == 1{}", "(".repeat(60), ")".repeat(60));
    let long = vec!["resource.port == 1"; 160].join(" && ");
    for condition in [deep, long] {
        let head = "permit(principal, action == Action::\"connect\", resource)";
        check(&format!("{head} when {{ {condition} }};")).unwrap();
    }
    let sum = vec!["1"; 420].join(" + ");
    let sets = format!("{}{sum}{} == 1", "[".repeat(60), "]".repeat(60));
    let either = vec!["1 == 1"; 240].join(" || ");
    let fields = format!("{} == 1", vec!["resource"; 480].join("."));
    let branches = format!("{}true", "if true then true else ".repeat(190));
    for condition in [sets, either, fields, branches] {
        let text = format!("permit(principal, action, resource) when {{ {condition} }};");
        let found = problems(&text);
        assert!(!found[0].message.contains("more than"), "{}", found[0]);
    }
}

#[test]
fn all_problems_of_all_files_are_reported_in_order() {
    let first = source(
        "permit(principal, action, resource)\nunless { true };\npermit(principal, action, resource;\npermit(principal, action == Action::\"raed\", resource == File::\"x\");\npermit(principal, action == Action::\"connect\", resource) when { resource.port == 1 && resource.port == 2 };",
    );
    let second = super::Source {
        name: "b.cedar".to_owned(),
        text: "forbid(principal, action, resource is Fil);".to_owned(),
    };
    let empty = super::Source {
        name: "c.cedar".to_owned(),
        text: "// nothing\n".to_owned(),
    };
    let error = super::Policies::check(&[first, second, empty]).unwrap_err();
    let places: Vec<String> = error.diagnostics().iter().map(Diagnostic::place).collect();
    assert_eq!(
        places,
        [
            "/etc/ambit/coder.cedar:2:1",
            "/etc/ambit/coder.cedar:3:35",
            "/etc/ambit/coder.cedar:4:29",
            "/etc/ambit/coder.cedar:4:63",
            "/etc/ambit/coder.cedar:5:87",
            "b.cedar:1:39",
            "c.cedar"
        ]
    );
    assert!(
        error
            .to_string()
            .ends_with("policy refused: 6 errors, 1 warning"),
        "{error}"
    );
}

#[test]
fn a_message_carries_no_control_characters() {
    let found = problems("permit(principal, action, resource == File::\"\u{1b}[31mx\");");
    assert!(!found[0].to_string().contains('\u{1b}'));
}

#[test]
fn a_place_in_a_very_long_line_is_shown_in_part() {
    let text = format!(
        "{}permit(principal, action, resource == File::\"x\");",
        " ".repeat(100_000)
    );
    let found = problems(&text);
    assert_eq!(underlined(&found[0]), "\"x\"");
    assert!(found[0].to_string().len() < 1000);
    assert_eq!(found[0].span.as_ref().unwrap().column, 100_045);
}
