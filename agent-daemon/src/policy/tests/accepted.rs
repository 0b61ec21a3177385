//! Every form that is kept, and what it means.

use agent_ebpf::{Action, Facet, RULE_PROTECTED};

use super::super::{
    Agent, AgentName, Attributes, Effect, PROTECTED_ID, Policies, Protected, schema, technique,
};
use super::{check, coder, file, folder, known_as, lowered, says, source, v4, v6};

const READ: Action = Action::Read;
const WRITE: Action = Action::Write;
const EXEC: Action = Action::Exec;
const CONNECT: Action = Action::Connect;
const BIND: Action = Action::Bind;

#[test]
fn schema_is_a_schema() {
    schema().unwrap();
}

#[test]
fn every_form_of_principal() {
    let of = |principal: &str| {
        let text = format!("@id(\"p\") permit({principal}, action, resource);");
        says(&lowered(&text), READ, &file("/x"))
    };
    for mine in [
        "principal",
        "principal == Agent::\"coder\"",
        "principal in Agent::\"coder\"",
        "principal in AgentGroup::\"builders\"",
        "principal is Agent",
        "principal is Agent in AgentGroup::\"builders\"",
        "principal is Agent in Agent::\"coder\"",
    ] {
        assert_eq!(of(mine), "+p", "{mine}");
    }
    for others in [
        "principal == Agent::\"code\"",
        "principal == Agent::\"builders\"",
        "principal in Agent::\"reviewer\"",
        "principal in AgentGroup::\"coder\"",
        "principal is Agent in AgentGroup::\"reviewers\"",
    ] {
        assert_eq!(of(others), "no_permit", "{others}");
    }
}

#[test]
fn every_form_of_action() {
    let of = |action: &str| {
        let text = format!("@id(\"p\") permit(principal, {action}, resource);");
        let tables = lowered(&text);
        [
            (READ, file("/x")),
            (WRITE, file("/x")),
            (EXEC, file("/x")),
            (CONNECT, v4(6, [192, 0, 2, 1], 443)),
            (BIND, v6(17, "2001:db8::1", 53)),
        ]
        .map(|(action, target)| says(&tables, action, &target) == "+p")
    };
    assert_eq!(of("action"), [true; 5]);
    assert_eq!(of("action == Action::\"read\""), [true, false, false, false, false]);
    assert_eq!(of("action == Action::\"bind\""), [false, false, false, false, true]);
    assert_eq!(of("action in Action::\"exec\""), [false, false, true, false, false]);
    assert_eq!(
        of("action in [Action::\"write\", Action::\"connect\"]"),
        [false, true, false, true, false]
    );
}

#[test]
fn every_form_of_resource() {
    let of =
        |resource: &str| lowered(&format!("@id(\"p\") permit(principal, action, {resource});"));
    let is = |resource: &str| {
        let tables = of(resource);
        [
            (READ, file("/w/a")),
            (READ, folder("/w")),
            (READ, folder("/w/d")),
            (EXEC, file("/w/a")),
            (READ, file("/wide/a")),
            (CONNECT, v4(6, [192, 0, 2, 1], 443)),
        ]
        .map(|(action, target)| says(&tables, action, &target) == "+p")
    };
    assert_eq!(is("resource"), [true; 6]);
    assert_eq!(is("resource == File::\"/w/a\""), [true, false, false, false, false, false]);
    assert_eq!(is("resource == Dir::\"/w\""), [false, true, false, false, false, false]);
    assert_eq!(is("resource == Program::\"/w/a\""), [false, false, false, true, false, false]);
    assert_eq!(is("resource in Dir::\"/w\""), [true, true, true, true, false, false]);
    assert_eq!(is("resource in Dir::\"/\""), [true, true, true, true, true, false]);
    assert_eq!(is("resource is File"), [true, false, false, false, true, false]);
    assert_eq!(is("resource is Dir"), [false, true, true, false, false, false]);
    assert_eq!(is("resource is Program"), [false, false, false, true, false, false]);
    assert_eq!(is("resource is Peer"), [false, false, false, false, false, true]);
    assert_eq!(is("resource is File in Dir::\"/w\""), [true, false, false, false, false, false]);
    assert_eq!(is("resource is Dir in Dir::\"/w\""), [false, true, true, false, false, false]);
}

#[test]
fn root_folder_is_a_place_like_any_other() {
    let tables = lowered("@id(\"p\") permit(principal, action, resource == Dir::\"/\");");
    assert_eq!(says(&tables, READ, &folder("/")), "+p");
    assert_eq!(says(&tables, READ, &folder("/etc")), "no_permit");
}

#[test]
fn names_are_compared_by_whole_components_and_bytes() {
    let tables = lowered(
        "@id(\"p\") permit(principal, action, resource in Dir::\"/srv/wörk\\u{20}\\\"x\\\"\");",
    );
    assert_eq!(says(&tables, READ, &file("/srv/wörk \"x\"/a")), "+p");
    assert_eq!(says(&tables, READ, &file("/srv/wörk \"x\"y")), "no_permit");
}

#[test]
fn every_condition_on_peers() {
    let of = |when: &str| {
        let text = format!(
            "@id(\"p\") permit(principal, action == Action::\"connect\", resource is Peer) {when};"
        );
        let tables = lowered(&text);
        [
            v4(6, [192, 0, 2, 7], 443),
            v4(17, [192, 0, 2, 9], 53),
            v6(6, "2001:db8::7", 443),
            v6(132, "::ffff:192.0.2.7", 80),
        ]
        .map(|target| says(&tables, CONNECT, &target) == "+p")
    };
    assert_eq!(of(""), [true; 4]);
    assert_eq!(of("when { resource.ip == ip(\"192.0.2.7\") }"), [true, false, false, true]);
    assert_eq!(of("when { ip(\"192.0.2.7/32\") == resource.ip }"), [true, false, false, true]);
    assert_eq!(
        of("when { resource[\"ip\"].isInRange(ip(\"192.0.2.5/29\")) }"),
        [true, false, false, true]
    );
    assert_eq!(
        of("when { resource.ip.isInRange(ip(\"192.0.2.0/24\")) }"),
        [true, true, false, true]
    );
    assert_eq!(of("when { resource.ip.isInRange(ip(\"::/0\")) }"), [false, false, true, false]);
    assert_eq!(of("when { resource.ip.isInRange(ip(\"0.0.0.0/0\")) }"), [true, true, false, true]);
    assert_eq!(of("when { resource.port == 443 }"), [true, false, true, false]);
    assert_eq!(of("when { 53 == resource.port }"), [false, true, false, false]);
    assert_eq!(of("when { resource.protocol == \"tcp\" }"), [true, false, true, false]);
    assert_eq!(of("when { resource.protocol == \"udp\" }"), [false, true, false, false]);
    assert_eq!(of("when { resource.protocol == \"132\" }"), [false, false, false, true]);
    assert_eq!(
        of(
            "when { (resource.port == 443 && (resource.protocol == \"tcp\")) && resource.ip.isInRange(ip(\"2001:db8::/32\")) }"
        ),
        [false, false, true, false]
    );
    assert_eq!(
        of(
            "when { resource.port == 443 } when { resource.ip.isInRange(ip(\"192.0.0.0/16\")) && resource.ip.isInRange(ip(\"192.0.2.0/24\")) }"
        ),
        [true, false, false, false]
    );
}

#[test]
fn conditions_are_kept_with_any_action_on_peers_only() {
    let tables = lowered(
        "@id(\"p\") permit(principal, action, resource is Peer) when { resource.port == 443 };",
    );
    assert_eq!(says(&tables, CONNECT, &v4(6, [192, 0, 2, 7], 443)), "+p");
    assert_eq!(says(&tables, BIND, &v4(6, [192, 0, 2, 7], 443)), "+p");
    assert_eq!(says(&tables, READ, &file("/x")), "no_permit");
    assert!(tables.places.is_empty());
}

#[test]
fn every_condition_on_names() {
    let of = |when: &str| {
        let text = format!(
            "@id(\"p\") permit(principal, action == Action::\"connect\", resource is Peer) {when};"
        );
        let tables = lowered(&text);
        let peer = || v4(6, [192, 0, 2, 7], 443);
        [
            peer(),
            known_as("example.com", peer()),
            known_as("api.example.com", peer()),
            known_as("evil-example.com", peer()),
            known_as("a.api.example.com", v4(6, [192, 0, 2, 7], 80)),
        ]
        .map(|target| says(&tables, CONNECT, &target) == "+p")
    };
    assert_eq!(of("when { resource has host }"), [false, true, true, true, true]);
    assert_eq!(of("unless { resource has host }"), [true, false, false, false, false]);
    assert_eq!(
        of("when { resource has host && resource.host == \"api.example.com\" }"),
        [false, false, true, false, false]
    );
    assert_eq!(
        of("when { resource has host && [\"example.com\", \"x.org\"].contains(resource.host) }"),
        [false, true, false, false, false]
    );
    assert_eq!(
        of("when { resource has host && resource.host like \"*.example.com\" }"),
        [false, false, true, false, true]
    );
    assert_eq!(
        of(
            "when { resource has host && resource.host like \"*.example.com\" && resource.port == 443 }"
        ),
        [false, false, true, false, false]
    );
    assert_eq!(
        of(
            "when { resource has host } unless { resource has host && resource.host like \"*.api.example.com\" }"
        ),
        [false, true, true, true, false]
    );
    assert_eq!(
        of("when { resource has host && resource.host like \"*\" }"),
        of("when { resource has host }")
    );
}

#[test]
fn local_addresses_have_no_name_and_other_things_neither() {
    let tables = lowered(
        "@id(\"p\") permit(principal, action, resource) when { resource has host };
         @id(\"q\") permit(principal, action == Action::\"bind\", resource is Peer) unless { resource has host };",
    );
    assert_eq!(says(&tables, BIND, &v4(6, [192, 0, 2, 7], 443)), "+q");
    assert_eq!(says(&tables, READ, &file("/x")), "no_permit");
    assert_eq!(says(&tables, CONNECT, &known_as("a.example", v4(6, [192, 0, 2, 7], 443))), "+p");
}

#[test]
fn a_name_that_merely_ends_so_is_warned_of() {
    let policy = |pattern| {
        format!(
            "permit(principal, action, resource is Peer) when {{ resource has host && resource.host like \"{pattern}\" }};"
        )
    };
    let report = check(&policy("*example.com")).unwrap().report();
    let warning = report[0].warnings[0].to_string();
    assert!(warning.contains("`evil-example.com`"), "{warning}");
    assert!(check(&policy("*.example.com")).unwrap().report()[0].warnings.is_empty());
}

#[test]
fn a_forbid_that_holds_of_named_addresses_only_is_warned_of() {
    let warnings = |text: &str| {
        let report = check(text).unwrap().report();
        report[0].warnings.iter().map(ToString::to_string).collect::<String>()
    };
    let named = "forbid(principal, action == Action::\"connect\", resource is Peer) when { resource has host && resource.host like \"*.ads.example\" };";
    assert!(warnings(named).contains("has no name"), "{}", warnings(named));
    for holds_of_others in [
        named.replace("when", "unless"),
        named.replace("forbid", "permit"),
        named.replace("when { ", "when { resource.port == 25 || "),
    ] {
        assert_eq!(warnings(&holds_of_others), "", "{holds_of_others}");
    }
}

#[test]
fn contradiction_is_taken_with_a_warning_and_matches_nothing() {
    for when in [
        "resource.port == 443 && resource.port == 80",
        "resource.protocol == \"tcp\" && resource.protocol == \"udp\"",
        "resource.ip == ip(\"192.0.2.7\") && resource.ip == ip(\"192.0.2.8\")",
        "resource.ip == ip(\"192.0.2.7\") && resource.ip.isInRange(ip(\"::/0\"))",
    ] {
        let text = format!(
            "permit(principal, action == Action::\"connect\", resource is Peer) when {{ {when} }};"
        );
        let policies = check(&text).unwrap();
        let report = policies.report();
        let [kept] = report.as_slice() else { panic!("one policy") };
        let [warning] = kept.warnings.as_slice() else { panic!("one warning for {when}") };
        assert!(warning.to_string().contains("never matches"), "{warning}");
        let tables = policies.lower(&coder(), &[]).unwrap();
        assert_eq!(*tables, super::Lowered::default());
    }
}

#[test]
fn connecting_to_the_unspecified_address_is_warned_of() {
    let text = "permit(principal, action == Action::\"connect\", resource is Peer) when { resource.ip == ip(\"0.0.0.0\") };";
    let report = check(text).unwrap().report();
    assert!(report[0].warnings[0].to_string().contains("write `127.0.0.1`"));
    let text = text.replace("connect", "bind");
    assert!(check(&text).unwrap().report()[0].warnings.is_empty());
}

#[test]
fn action_that_never_applies_is_warned_of() {
    let text = "permit(principal, action in [Action::\"read\", Action::\"exec\"], resource == Program::\"/bin/sh\");";
    let report = check(text).unwrap().report();
    let warning = report[0].warnings[0].to_string();
    assert!(warning.contains("`read` never applies to a Program"), "{warning}");
    assert!(warning.contains("coder.cedar:1:30"), "{warning}");
}

#[test]
fn forbid_wins_whatever_the_order_or_depth() {
    let tables = lowered(
        "@id(\"wide\") permit(principal, action, resource in Dir::\"/w\");
         @id(\"not\") forbid(principal, action, resource in Dir::\"/w/secret\");
         @id(\"again\") permit(principal, action, resource == File::\"/w/secret/a\");",
    );
    assert_eq!(says(&tables, READ, &file("/w/secret/a")), "-not");
    assert_eq!(says(&tables, READ, &file("/w/secrets/a")), "+wide");
    let tables = lowered(
        "@id(\"one\") permit(principal, action == Action::\"connect\", resource is Peer) when { resource.ip == ip(\"192.0.2.7\") && resource.port == 443 };
         @id(\"not\") forbid(principal, action, resource is Peer) when { resource.ip.isInRange(ip(\"192.0.0.0/8\")) };
         @id(\"all\") permit(principal, action, resource is Peer) when { resource.ip.isInRange(ip(\"192.0.2.0/24\")) };",
    );
    assert_eq!(says(&tables, CONNECT, &v4(6, [192, 0, 2, 7], 443)), "-not");
    assert_eq!(says(&tables, CONNECT, &v4(6, [193, 0, 2, 7], 443)), "no_permit");
}

#[test]
fn first_of_several_matching_rules_is_reported() {
    let tables = lowered(
        "@id(\"second\") permit(principal, action, resource in Dir::\"/w/a\");
         @id(\"third\") permit(principal, action, resource in Dir::\"/w\");",
    );
    assert_eq!(says(&tables, READ, &file("/w/a/b")), "+second");
}

#[test]
fn ids_are_given_or_made_from_the_place() {
    let policies = check(
        "@id(\"mine\")\n@reason(\"because\")\npermit(principal, action, resource);\npermit(principal, action, resource); forbid(principal, action, resource);\n",
    )
    .unwrap();
    let ids: Vec<_> = policies.report().into_iter().map(|kept| kept.rule).collect();
    assert_eq!(ids[0].id, "mine");
    assert_eq!(ids[0].place, "/etc/ambit/coder.cedar:1:1");
    assert_eq!(ids[0].annotations["reason"], "because");
    assert_eq!(ids[1].id, "coder.cedar:4");
    assert_eq!(ids[2].id, "coder.cedar:4:38");
    assert_eq!(ids[2].effect, Effect::Forbid);
    let same_name = |folder: &str| super::Source {
        name: format!("{folder}/a.cedar"),
        text: "permit(principal, action, resource);".to_owned(),
    };
    let policies = Policies::check(&[same_name("/x"), same_name("/y")]).unwrap();
    let ids: Vec<_> = policies.report().into_iter().map(|kept| kept.rule.id).collect();
    assert_eq!(ids, ["a.cedar:1", "a.cedar:1:1"]);
}

#[test]
fn annotations_are_there_for_events() {
    let policies = check(
        "@reason(\"Keys stay\") @severity(\"high\") @asi(\"ASI03, ASI10\") @attack(\"T1552.001,T1048,AML.T0055,AML.T0011.000\") @owner(\"x\") @sevrity(\"low\")\n\
         forbid(principal, action, resource);",
    )
    .unwrap();
    let report = policies.report();
    let notes = report[0].rule.notes();
    assert_eq!(notes.reason(), Some("Keys stay"));
    assert_eq!(notes.severity(), Some(4));
    assert_eq!(notes.asi().collect::<Vec<_>>(), ["ASI03", "ASI10"]);
    assert_eq!(
        notes.attacks().map(technique).collect::<Vec<_>>(),
        [
            ("T1552", Some("T1552.001")),
            ("T1048", None),
            ("AML.T0055", None),
            ("AML.T0011", Some("AML.T0011.000"))
        ]
    );
    let warnings = &report[0].warnings;
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].to_string().contains("did you mean `@severity`?"), "{}", warnings[0]);
}

#[test]
fn built_in_forbids_hold_above_every_policy() {
    let policies = check("permit(principal, action, resource);").unwrap();
    let protected = [
        Protected { path: "/run/ambit/".into(), beneath: true, facets: Facet::ALL },
        Protected { path: "/usr/bin/ambitd".into(), beneath: false, facets: &[Facet::WriteFile] },
    ];
    let tables = policies.lower(&coder(), &protected).unwrap();
    assert_eq!(tables.rule_name(RULE_PROTECTED), Some(PROTECTED_ID));
    assert_eq!(says(&tables, READ, &file("/run/ambit/sock")), "-ambit:protected");
    assert_eq!(says(&tables, READ, &folder("/run/ambit")), "-ambit:protected");
    assert_eq!(says(&tables, WRITE, &file("/usr/bin/ambitd")), "-ambit:protected");
    assert_eq!(says(&tables, READ, &file("/usr/bin/ambitd")), "+coder.cedar:1");
}

#[test]
fn agents_with_the_same_rules_get_equal_tables() {
    use std::hash::{BuildHasher, RandomState};
    let policies = check(
        "permit(principal == Agent::\"odd\", action, resource);
         permit(principal in AgentGroup::\"builders\", action, resource in Dir::\"/w\");
         permit(principal is Agent, action == Action::\"connect\", resource is Peer);",
    )
    .unwrap();
    let of = |name: &str| {
        let groups = vec!["builders".to_owned()];
        let agent = Agent { groups, ..Agent::named(AgentName::parse(name).unwrap()) };
        policies.lower(&agent, &[]).unwrap()
    };
    let state = RandomState::new();
    assert_eq!(of("a"), of("b"));
    assert_eq!(state.hash_one(of("a")), state.hash_one(of("b")));
    assert_ne!(of("a"), of("odd"));
}

#[test]
fn comments_and_strings_do_not_end_a_policy() {
    let policies = check(
        "// permit(principal, action, resource);\r\n@id(\"a;b // \\\" c\") // ; \"\n permit(principal, action, resource == File::\"/a;b//c\".id);",
    );
    assert!(policies.is_err());
    let tables = lowered(
        "// permit(principal, action, resource);\r\n@id(\"a;b // \\\" c\") // ; \"\n permit(principal, action, resource == File::\"/a;b\"); // the end",
    );
    assert_eq!(tables.rules.len(), 1);
    assert_eq!(says(&tables, READ, &file("/a;b")), "+a;b // \" c");
}

#[test]
fn agent_names() {
    let longest = "a".repeat(63);
    for good in ["a", "coder-2.x_Y", longest.as_str()] {
        assert_eq!(AgentName::parse(good).unwrap().as_str(), good);
    }
    let too_long = "a".repeat(64);
    for bad in ["", "a b", "a/b", "ä", "a\n", too_long.as_str()] {
        let error = AgentName::parse(bad).unwrap_err();
        assert!(error.to_string().contains("1 to 63 letters"), "{error}");
    }
}

#[test]
fn thousands_of_rules_are_lowered_completely() {
    let mut text = String::new();
    for n in 0..2_000 {
        text += &format!("permit(principal, action, resource == File::\"/w/{n}\");\n");
        text += &format!(
            "permit(principal, action == Action::\"connect\", resource is Peer) when {{ resource.ip == ip(\"10.0.{}.{}\") }};\n",
            n / 250,
            n % 250
        );
    }
    let policies = Policies::check(&[source(&text)]).unwrap();
    let tables = policies.lower(&coder(), &[]).unwrap();
    // The root folder and all that lies in it, abstract addresses, and the whole of IPv4 and of IPv6, come first.
    assert_eq!(tables.places.len(), 2_000 + 3);
    assert_eq!(tables.peers.len(), 2_000 + 2);
    assert_eq!(tables.rules.len(), 4_000);
}

/// How the whole of a pattern's form is told apart.
#[test]
fn every_form_of_pattern() {
    let of = |pattern: &str| {
        let when = format!("when {{ resource.path like \"{pattern}\" }}");
        let tables = lowered(&format!(
            "@id(\"p\") permit(principal, action == Action::\"read\", resource) {when};"
        ));
        ["/a/b.pem", "/a/.ssh/id", "/a*b", "/b/a/b.pem"]
            .map(|path| says(&tables, READ, &file(path)) == "+p")
    };
    assert_eq!(of("*"), [true; 4]);
    assert_eq!(of("/a*"), [true, true, true, false]);
    assert_eq!(of("/a/*"), [true, true, false, false]);
    assert_eq!(of("*.pem"), [true, false, false, true]);
    assert_eq!(of("/a/*.pem"), [true, false, false, false]);
    assert_eq!(of("*/.ssh/*"), [false, true, false, false]);
    assert_eq!(of("*a*b*"), [true, false, true, true]);
    assert_eq!(of("/a\\*b"), [false, false, true, false]);
    assert_eq!(of("/a/b.pem"), [true, false, false, false]);
}

#[test]
fn exceptions_hold_at_any_depth() {
    let tables = lowered(
        "@id(\"p\") permit(principal, action == Action::\"read\", resource in Dir::\"/w\")
         unless { resource in Dir::\"/w/secret\" && !(resource in Dir::\"/w/secret/open\") || resource.path like \"*.key\" };",
    );
    for (path, says_so) in [
        ("/w/a", "+p"),
        ("/w/secret/a", "no_permit"),
        ("/w/secret/open/a", "+p"),
        ("/w/secret/open/a.key", "no_permit"),
        ("/w/a.key", "no_permit"),
        ("/v/a", "no_permit"),
    ] {
        assert_eq!(says(&tables, READ, &file(path)), says_so, "{path}");
    }
}

#[test]
fn ports_of_every_order() {
    let of = |when: &str| {
        let text = format!(
            "@id(\"p\") permit(principal, action == Action::\"connect\", resource is Peer) when {{ {when} }};"
        );
        let tables = lowered(&text);
        [0, 79, 80, 443, 65535]
            .map(|port| says(&tables, CONNECT, &v4(6, [192, 0, 2, 7], port)) == "+p")
    };
    assert_eq!(of("resource.port < 80"), [true, true, false, false, false]);
    assert_eq!(of("resource.port <= 80"), [true, true, true, false, false]);
    assert_eq!(of("resource.port > 80"), [false, false, false, true, true]);
    assert_eq!(of("80 < resource.port"), [false, false, false, true, true]);
    assert_eq!(of("80 >= resource.port"), [true, true, true, false, false]);
    assert_eq!(of("resource.port >= 0"), [true; 5]);
    assert_eq!(of("resource.port != 80"), [true, true, false, true, true]);
    assert_eq!(of("[80, 443].contains(resource.port)"), [false, false, true, true, false]);
    assert_eq!(of("resource.port == 0"), [true, false, false, false, false]);
    assert_eq!(
        of("resource.port > 1 && resource.port < 443 && resource.ip.isIpv4()"),
        [false, true, true, false, false]
    );
}

#[test]
fn agents_are_told_apart_when_the_policy_is_loaded() {
    let text = "@id(\"p\") permit(principal, action, resource)
        when { principal has namespace && principal.namespace like \"prod-*\" && principal.labels.contains(\"eu\")
            || principal.name == \"root-of-all\" };";
    let policies = check(text).unwrap();
    let of = |name: &str, namespace: Option<&str>, labels: &[&str]| {
        let attributes = Attributes {
            namespace: namespace.map(str::to_owned),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            ..Attributes::default()
        };
        let agent = Agent { attributes, ..Agent::named(AgentName::parse(name).unwrap()) };
        policies.lower(&agent, &[]).unwrap()
    };
    assert_eq!(of("a", Some("prod-1"), &["eu"]), of("b", Some("prod-2"), &["eu", "x"]));
    assert_eq!(says(&of("a", Some("prod-1"), &["eu"]), READ, &file("/x")), "+p");
    assert_eq!(says(&of("root-of-all", None, &[]), READ, &file("/x")), "+p");
    for others in
        [of("a", None, &["eu"]), of("a", Some("prod-1"), &[]), of("a", Some("test"), &["eu"])]
    {
        assert_eq!(*others, super::Lowered::default());
    }
}

#[test]
fn sockets_and_privileges_by_name() {
    use super::super::Target;
    use agent_ebpf::{Privilege, SocketKind};
    let tables = lowered(
        "@id(\"nl\") permit(principal, action == Action::\"socket\", resource == SocketFamily::\"netlink\");
         @id(\"bus\") permit(principal, action == Action::\"connect\", resource == UnixSocket::\"@/tmp/bus\");
         @id(\"run\") permit(principal, action == Action::\"connect\", resource in Dir::\"/run\");
         @id(\"docker\") forbid(principal, action, resource == UnixSocket::\"/run/docker.sock\");
         @id(\"own\") permit(principal, action == Action::\"bind\", resource is UnixSocket);
         @id(\"kill\") permit(principal, action == Action::\"privilege\", resource == Privilege::\"signal\");",
    );
    let unix = |name: &str| Target::UnixSocket(name.into());
    for (action, target, expected) in [
        (Action::Socket, Target::Socket(SocketKind::Netlink), "+nl"),
        (Action::Socket, Target::Socket(SocketKind::Packet), "no_permit"),
        (Action::Connect, unix("@/tmp/bus"), "+bus"),
        (Action::Connect, unix("@/tmp/bu"), "no_permit"),
        (Action::Connect, unix("/tmp/bus"), "no_permit"),
        (Action::Connect, unix("/run/x/y"), "+run"),
        (Action::Connect, unix("/run/docker.sock"), "-docker"),
        (Action::Bind, unix("@anything"), "+own"),
        (Action::Bind, unix("/anything"), "+own"),
        (Action::Bind, unix("/run/docker.sock"), "-docker"),
        (Action::Privilege, Target::Privilege(Privilege::Signal), "+kill"),
        (Action::Privilege, Target::Privilege(Privilege::Ptrace), "no_permit"),
    ] {
        assert_eq!(says(&tables, action, &target), expected, "{action:?} {target:?}");
    }
    // Everything is everything: privileges too.
    let all = lowered("@id(\"all\") permit(principal, action, resource);");
    for privilege in Privilege::ALL {
        assert_eq!(says(&all, Action::Privilege, &Target::Privilege(*privilege)), "+all");
    }
    assert_eq!(says(&all, Action::Connect, &unix("@x")), "+all");
    // A folder, be it the root folder, holds no abstract address.
    let root = lowered("permit(principal, action, resource in Dir::\"/\");");
    assert_eq!(says(&root, Action::Connect, &unix("@x")), "no_permit");
}
