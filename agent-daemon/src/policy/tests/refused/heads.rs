//! Heads and annotations that are refused.

use super::{check, problems, refused};

#[test]
fn principals() {
    for (principal, at, message, remedy) in [
        ("principal == Agent::\"a b\"", "\"a b\"", "cannot name an agent", "Agent::\"coder\""),
        ("principal == Agent::\"\"", "\"\"", "cannot name an agent", "Agent::\"coder\""),
        ("principal in Agent::\"ä\"", "\"ä\"", "cannot name an agent", "Agent::\"coder\""),
        (
            "principal == AgentGroup::\"x\"",
            "principal == AgentGroup::\"x\"",
            "a group is no agent",
            "write `principal in AgentGroup::\"x\"`",
        ),
        ("principal is AgentGroup", "AgentGroup", "a group is no agent", "principal in AgentGroup"),
        ("principal in AgentGroup::\"\"", "\"\"", "group without a name", "name of a group"),
        ("principal == Agnet::\"x\"", "Agnet", "no entity type `Agnet`", "did you mean `Agent`?"),
        ("principal is User", "User", "no entity type `User`", "Agent"),
        ("principal == My::Agent::\"x\"", "My::Agent", "no entity type `My::Agent`", "Agent"),
        ("principal == Dir::\"/x\"", "Dir", "Dir cannot stand here", "Agent, AgentGroup"),
        ("principal is Agent in Dir::\"/x\"", "Dir", "Dir cannot stand here", "Agent"),
        ("principal == ?principal", "?principal", "templates", "one policy for each"),
    ] {
        refused(&format!("permit({principal}, action, resource);"), at, message, remedy);
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
        ("action in []", "action in []", "names no action", "`Action::\"exec\"`"),
    ] {
        refused(&format!("permit(principal, {action}, resource);"), at, message, remedy);
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
        ("resource in Dir::\"./src\"", "\"./src\"", "not an absolute path", "Dir::\"/srv/src\""),
        (
            "resource in Dir::\"~/src\"",
            "\"~/src\"",
            "not an absolute path",
            "Dir::\"/home/user/src\"",
        ),
        ("resource in Dir::\"\"", "\"\"", "empty path", "Dir::\"/srv/work\""),
        ("resource in Dir::\"/a/\"", "\"/a/\"", "does not end with `/`", "write `Dir::\"/a\"`"),
        ("resource in Dir::\"//a//b\"", "\"//a//b\"", "`//`", "write `Dir::\"/a/b\"`"),
        (
            "resource in Dir::\"/a/../b/./c\"",
            "\"/a/../b/./c\"",
            "`.` or `..`",
            "write `Dir::\"/b/c\"`",
        ),
        ("resource in Dir::\"/a\\0b\"", "\"/a\\0b\"", "NUL", "without it"),
        ("resource == File::\"/\"", "\"/\"", "the root folder is no File", "Dir::\"/\""),
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
            "resource == Label::\"a\"",
            "resource == Label::\"a\"",
            "a label is no resource",
            "resource in Label::\"a\"",
        ),
        ("resource in Label::\"\"", "\"\"", "a label without a name", "in Label::\"secret\""),
        ("resource is Label", "Label", "Label cannot stand here", "File"),
        ("resource in Lable::\"a\"", "Lable", "no entity type `Lable`", "did you mean `Label`?"),
        (
            "resource == Peer::\"x\"",
            "resource == Peer::\"x\"",
            "a peer has no name",
            "resource is Peer",
        ),
        ("resource in Peer::\"x\"", "Peer::\"x\"", "a peer has no name", "resource is Peer"),
        (
            "resource is Peer in Dir::\"/x\"",
            "resource is Peer in Dir::\"/x\"",
            "in no folder",
            "resource is Peer",
        ),
        ("resource == Folder::\"/x\"", "Folder", "no entity type `Folder`", "Dir"),
        ("resource is Fil", "Fil", "no entity type `Fil`", "did you mean `File`?"),
        ("resource is Fil in Dir::\"/x\"", "Fil", "no entity type `Fil`", "did you mean `File`?"),
        ("resource is File in Dri::\"/x\"", "Dri", "no entity type `Dri`", "did you mean `Dir`?"),
        ("resource in Agent::\"x\"", "Agent", "Agent cannot stand here", "Dir"),
        ("resource == Agent::\"x\"", "Agent", "Agent cannot stand here", "File"),
        ("resource is Agent", "Agent", "Agent cannot stand here", "File"),
        ("resource in ?resource", "?resource", "templates", "one policy for each"),
    ] {
        refused(&format!("permit(principal, action, {resource});"), at, message, remedy);
    }
    let long = format!("permit(principal, action, resource == File::\"/{}\");", "x".repeat(4095));
    let found = problems(&long);
    assert!(
        found[0].message.contains("4096 bytes; the kernel resolves at most 4095"),
        "{}",
        found[0]
    );
    let fits = format!("permit(principal, action, resource == File::\"/{}\");", "x".repeat(4094));
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
            "listen",
            "resource in Dir::\"/x\"",
            "`listen` never applies to a",
            "`listen` is about Peer",
        ),
        (
            "socket",
            "resource == Privilege::\"ptrace\"",
            "`socket` never applies to a Privilege",
            "`Action::\"privilege\"`",
        ),
        (
            "write",
            "resource is Peer",
            "`write` never applies to a Peer",
            "`Action::\"connect\"` or `Action::\"bind\"` or `Action::\"listen\"`",
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
fn names_that_nothing_has() {
    for (action, resource, at, message, remedy) in [
        (
            "socket",
            "SocketFamily::\"netlnk\"",
            "\"netlnk\"",
            "no SocketFamily",
            "did you mean `netlink`",
        ),
        ("socket", "SocketFamily::\"inet\"", "\"inet\"", "no SocketFamily", "`packet`"),
        ("privilege", "Privilege::\"root\"", "\"root\"", "no Privilege", "`ptrace`"),
        ("bind", "UnixSocket::\"run/x\"", "\"run/x\"", "not an absolute path", "/srv/run/x"),
    ] {
        refused(
            &format!("permit(principal, action == Action::\"{action}\", resource == {resource});"),
            at,
            message,
            remedy,
        );
    }
    let long = format!("@{}", "x".repeat(108));
    refused(
        &format!("permit(principal, action, resource == UnixSocket::\"{long}\");"),
        &format!("\"{long}\""),
        "at most 107",
        "resource is UnixSocket",
    );
    refused(
        "permit(principal, action, resource is Privilege in Dir::\"/x\");",
        "resource is Privilege in Dir::\"/x\"",
        "a Privilege is in no folder",
        "resource == Privilege::",
    );
}

#[test]
fn ids() {
    refused(
        "@id(\"a\") permit(principal, action, resource);\n@id(\"a\") forbid(principal, action, resource);",
        "@id(\"a\")",
        "the id `a` is already that of the policy at /etc/ambit/coder.cedar:1:1",
        "its own id",
    );
    refused("@id(\"\") permit(principal, action, resource);", "@id(\"\")", "empty", "@id(");
    refused("@id permit(principal, action, resource);", "@id", "empty", "@id(");
    refused(
        "@id(\"ambit:protected\") permit(principal, action, resource);",
        "@id(\"ambit:protected\")",
        "not free",
        "another name",
    );
}

#[test]
fn annotations_that_events_could_not_tell() {
    let with = |annotation: &str| format!("{annotation} forbid(principal, action, resource);");
    for (annotation, message, remedy) in [
        ("@severity(\"hihg\")", "no severity `hihg`", "did you mean `high`?"),
        ("@severity(\"9\")", "no severity `9`", "informational, low, medium"),
        ("@severity(\"High\")", "no severity `High`", "did you mean `high`?"),
        ("@attack(\"T155\")", "`T155` is no technique", "T1552.001"),
        ("@attack(\"T1552.1\")", "`T1552.1` is no technique", "AML.T0055"),
        ("@attack(\"T1552, \")", "`` is no technique", "several with commas"),
        ("@asi(\"ASI11\")", "`ASI11` is no risk", "ASI01 to ASI10"),
        ("@asi(\"ASI+3\")", "`ASI+3` is no risk", "ASI01 to ASI10"),
        ("@reason(\" \")", "empty `@reason`", "say why"),
    ] {
        refused(&with(annotation), annotation, message, remedy);
    }
    let long = format!("@reason(\"{}\")", "x".repeat(513));
    let found = super::problems(&with(&long));
    assert!(found[0].message.contains("513 bytes"), "{}", found[0]);
}
