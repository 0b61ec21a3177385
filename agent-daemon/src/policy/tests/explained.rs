//! What is said of a verdict, of a change and of expectations.

use std::path::Path;

use agent_ebpf::{Action, Facet, PATH_MAX, Reason};

use super::super::ceiling::ceiling;
use super::super::compare::{self, Became, Change, bounds, compare};
use super::super::explain::{ExplainError, Explanation, Judge, describe, explain, parse_target};
use super::super::{Agent, AgentName, Policies, Protected, expect};
use super::generate::{self, AGENTS, GROUPS, Random};
use super::{check, coder, file, folder};
use crate::policy::object::{Object, run_along};

const CODER: &str = include_str!("../../../../deploy/policies/coder.cedar");

fn subject(groups: &[&str]) -> Agent {
    Agent { groups: groups.iter().map(|one| (*one).to_owned()).collect(), ..coder() }
}

fn taken(text: &str) -> Policies {
    check(text).unwrap_or_else(|error| panic!("{error}"))
}

fn explained(text: &str, action: Action, target: &str) -> Explanation {
    let policies = taken(text);
    let judge = Judge::new(&policies, subject(&[]), &[]).unwrap();
    explain(&policies, &judge, action, &parse_target(action, target).unwrap()).unwrap()
}

fn ids(rules: &[super::super::RuleInfo]) -> Vec<&str> {
    rules.iter().map(|rule| rule.id.as_str()).collect()
}

#[test]
fn targets_are_read_as_they_are_shown() {
    for (action, text, shown) in [
        (Action::Read, "/etc//passwd", "/etc/passwd"),
        (Action::Read, "/etc/", "/etc/"),
        (Action::Read, "/", "/"),
        (Action::Exec, "/bin/a b", "/bin/a b"),
        (Action::Connect, "192.0.2.7:443", "192.0.2.7:443/tcp"),
        (Action::Connect, "192.0.2.7:53/udp", "192.0.2.7:53/udp"),
        (Action::Connect, "api.example.com=192.0.2.7:443", "api.example.com=192.0.2.7:443/tcp"),
        (Action::Connect, "[2001:db8::1]:443/132", "[2001:db8::1]:443/132"),
        (Action::Connect, "[::ffff:192.0.2.7]:1", "192.0.2.7:1/tcp"),
        (Action::Connect, "0.0.0.0:1", "127.0.0.1:1/tcp"),
        (Action::Bind, "0.0.0.0:1", "0.0.0.0:1/tcp"),
    ] {
        assert_eq!(describe(&parse_target(action, text).unwrap()), shown, "{text}");
    }
    for (action, text, word) in [
        (Action::Read, "etc/passwd", "absolute"),
        (Action::Read, "/etc/../passwd", "without"),
        (Action::Connect, "192.0.2.7", "address and port"),
        (Action::Connect, "api.example.com:443", "api.example.com=192.0.2.7:443"),
        (Action::Connect, "API.example.com=192.0.2.7:443", "lower case"),
        (Action::Bind, "api.example.com=192.0.2.7:443", "only what is connected to"),
        (Action::Connect, "example.org:443", "address and port"),
        (Action::Connect, "192.0.2.7:443/http", "protocol"),
        (Action::Privilege, "bfp", "there is no `bfp`"),
    ] {
        let error = parse_target(action, text).unwrap_err();
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn a_verdict_names_every_policy_that_gave_it_and_which_is_reported() {
    let text = "@id(\"a\") permit(principal, action == Action::\"read\", resource in Dir::\"/srv\");\n\
        @id(\"b\") permit(principal, action, resource in Dir::\"/srv/data\");\n\
        @id(\"c\") forbid(principal, action == Action::\"read\", resource == File::\"/srv/data/key\");\n\
        @id(\"d\") forbid(principal, action, resource == File::\"/srv/data/key\");";
    let one = explained(text, Action::Read, "/srv/data/x");
    assert!(one.allowed);
    assert_eq!(one.reported.as_deref(), Some("a"));
    assert_eq!(ids(&one.decided), ["a", "b"]);
    let one = explained(text, Action::Read, "/srv/data/key");
    assert!(!one.allowed);
    assert_eq!(one.reported.as_deref(), Some("c"));
    assert_eq!(ids(&one.decided), ["c", "d"]);
    assert_eq!(ids(&one.overruled), ["a", "b"]);
    let shown = one.text();
    assert!(shown.starts_with("DENIED  read /srv/data/key by c\n"), "{shown}");
    assert!(shown.contains("events name it") && shown.contains("beats every permit"), "{shown}");
}

#[test]
fn what_no_permit_matches_is_told_what_comes_near() {
    let near = |action, target| {
        let one = explained(CODER, action, target);
        assert_eq!(one.reason, Reason::NoPermit.name());
        assert!(one.decided.is_empty() && one.reported.is_none());
        let near = one.nearest.iter().map(|near| format!("{}: {}", near.policy.id, near.permits));
        near.collect::<Vec<_>>()
    };
    assert_eq!(near(Action::Write, "/etc/passwd"), ["settings: read of it, not write"]);
    assert_eq!(near(Action::Connect, "127.0.0.1:9090"), ["registry: port 8080, not 9090"]);
    assert_eq!(near(Action::Connect, "127.0.0.1:8080/udp"), ["registry: tcp, not udp"]);
    assert_eq!(near(Action::Connect, "127.0.0.2:8080"), ["registry: it to 127.0.0.1"]);
    assert_eq!(near(Action::Read, "/workshop/plan"), [""; 0]);
    let policies = "permit(principal, action == Action::\"read\", resource in Dir::\"/srv/a/b\");\n\
        permit(principal in AgentGroup::\"g\", action == Action::\"read\", resource in Dir::\"/srv/c\");\n\
        permit(principal == Agent::\"writer\", action == Action::\"read\", resource in Dir::\"/srv/d\");\n\
        permit(principal, action == Action::\"read\", resource == Dir::\"/opt\");";
    let near = |target| {
        let one = explained(policies, Action::Read, target);
        one.nearest.into_iter().map(|near| near.permits).collect::<Vec<_>>()
    };
    assert_eq!(near("/srv/a/x"), ["read of /srv/a/b and beneath"]);
    assert_eq!(near("/srv/c/x"), ["read of /srv/a/b and beneath", "it to agents in the group g"]);
    assert_eq!(near("/srv/d/x"), ["read of /srv/a/b and beneath", "it to the agent writer"]);
    assert_eq!(near("/opt"), ["it when it is a folder"]);
    assert!(explained(CODER, Action::Read, "/workshop/plan").text().contains("none comes near"));
}

#[test]
fn built_in_forbids_are_told() {
    let policies = taken("permit(principal, action, resource);");
    let own = Protected { path: "/run/ambit".into(), beneath: true, facets: Facet::ALL };
    let judge = Judge::new(&policies, subject(&[]), &[own]).unwrap();
    let one = explain(&policies, &judge, Action::Read, &file("/run/ambit/x")).unwrap();
    assert!(!one.allowed && one.decided.is_empty());
    assert_eq!(one.reported.as_deref(), Some("ambit:protected"));
    assert!(one.text().contains("built in"), "{}", one.text());
}

#[test]
fn a_path_longer_than_the_kernel_resolves_is_not_judged() {
    let long = format!("/{}", "a/".repeat(PATH_MAX / 2)) + "x";
    let one = explained("permit(principal, action, resource);", Action::Read, &long);
    assert!(!one.allowed);
    assert_eq!(one.reason, Reason::PathUnresolved.name());
}

#[test]
fn tables_that_do_not_say_what_cedar_says_are_an_internal_error() {
    let policies = taken("permit(principal, action, resource);");
    let others = taken("@id(\"x\") forbid(principal, action, resource);");
    let judge = Judge::new(&others, subject(&[]), &[]).unwrap();
    let error = explain(&policies, &judge, Action::Read, &folder("/srv")).unwrap_err();
    assert!(matches!(error, ExplainError::Disagreement { .. }));
    assert!(error.to_string().contains("internal error"), "{error}");
}

#[test]
fn links_are_followed_to_the_object_that_is_judged() {
    let ground = std::env::temp_dir().join(format!("ambit-object-{}", std::process::id()));
    let ground = {
        std::fs::create_dir_all(&ground).unwrap();
        std::fs::canonicalize(&ground).unwrap()
    };
    let at = |name: &str| ground.join(name);
    std::fs::create_dir(at("real")).unwrap();
    std::fs::write(at("real/file"), "#!/bin/sh\n").unwrap();
    std::fs::hard_link(at("real/file"), at("real/second")).unwrap();
    std::os::unix::fs::symlink("real", at("link")).unwrap();
    std::os::unix::fs::symlink("../link/./file", at("real/chain")).unwrap();
    std::os::unix::fs::symlink("loop", at("loop")).unwrap();
    let found = Object::find(&at("real/chain")).unwrap();
    assert_eq!(found, Object { path: at("real/file"), exists: true, is_dir: false, names: 2 });
    assert_eq!(Object::find(&at("link")).unwrap().path, at("real"));
    assert!(Object::find(&at("link")).unwrap().is_dir);
    let new = Object::find(&at("link/new/er")).unwrap();
    assert_eq!((new.path, new.exists), (at("real/new/er"), false));
    assert!(Object::find(&at("loop")).is_err());
    assert!(Object::find(&at("real/file/x")).is_err());
    let along: Vec<&str> = run_along(&at("real/file")).iter().map(|(what, _)| *what).collect();
    assert_eq!(along.first(), Some(&"interpreter"));
    std::fs::remove_dir_all(&ground).unwrap();
    assert_eq!(run_along(Path::new("/proc/self/exe")).len(), 1);
}

fn diff(old: &str, new: &str) -> String {
    compare::text(&compare(&taken(old), &taken(new), None).unwrap())
}

const NOTHING: &str = "@id(\"nothing\") forbid(principal, action, resource == File::\"/nothing\");";

#[test]
fn equal_policies_have_no_difference() {
    assert_eq!(diff(CODER, CODER), "");
    // Other words for the same.
    let both = "@id(\"a\") permit(principal, action in [Action::\"read\", Action::\"write\"], resource in Dir::\"/srv\");";
    let each = "@id(\"a\") permit(principal, action == Action::\"write\", resource in Dir::\"/srv\");\n\
        @id(\"b\") permit(principal, action == Action::\"read\", resource in Dir::\"/srv\");\n\
        @id(\"c\") permit(principal, action == Action::\"read\", resource == File::\"/srv/x\");";
    assert_eq!(diff(both, each), "");
}

/// Whatever two policies judge differently is told, and nothing else makes a line.
#[test]
fn no_difference_is_left_out() {
    let (mut flips, mut same) = (0, 0);
    for seed in 1..121 {
        let mut random = Random::new(seed);
        let mut policies = || {
            let line = |n: usize, random: &mut Random| {
                let line = format!("@id(\"p{n}\") {}\n", generate::policy(random));
                check(&line).is_ok().then_some(line)
            };
            let count = 1 + random.below(4);
            let lines: String = (0..count).filter_map(|n| line(n, &mut random)).collect();
            let labels = generate::entities(&mut random);
            super::check_with(&format!("{NOTHING}\n{lines}"), &labels).unwrap()
        };
        let (old, new) = (policies(), policies());
        let mut random = Random::new(seed);
        let name = AgentName::parse(AGENTS[random.below(AGENTS.len())]).unwrap();
        let mut groups: Vec<String> = GROUPS.iter().map(|one| (*one).to_owned()).collect();
        groups.retain(|_| random.chance(50));
        let subject = Agent { groups, ..Agent::named(name) };
        let changes: Vec<Change> = compare(&old, &new, Some(&subject))
            .unwrap()
            .into_iter()
            .flat_map(|one| one.changes)
            .collect();
        let judge = |policies| Judge::new(policies, subject.clone(), &[]).unwrap();
        let (mut old, mut new) = (judge(&old), judge(&new));
        for salt in 0..200 {
            let (action, target) = generate::attempt(&mut random);
            let content = generate::content(&target, salt);
            old.set_content(Some(content));
            new.set_content(Some(content));
            let allows = |judge: &Judge| judge.decide(action, &target).reason == Reason::Permitted;
            let became = match (allows(&old), allows(&new)) {
                (false, true) => Became::Reachable,
                (true, false) => Became::Unreachable,
                _ => {
                    same += 1;
                    continue;
                }
            };
            flips += 1;
            assert!(
                changes.iter().any(|one| one.became == became && one.action == action.name()),
                "seed {seed}: {} {} is told nowhere: {changes:#?}",
                action.name(),
                describe(&target)
            );
        }
    }
    assert!(flips > 500 && same > 5000, "{flips} differ, {same} do not");
}

/// Conditions are compared as heads are: by all that they tell apart.
#[test]
fn conditions_and_patterns_are_told_apart() {
    let read = |condition: &str| {
        format!(
            "@id(\"p\") permit(principal, action == Action::\"read\", resource in Dir::\"/srv\") {condition};"
        )
    };
    assert_eq!(
        diff(&read(""), &read("unless { resource.path like \"*.key\" }")),
        "any other agent:\n\
         - read    /srv and beneath where the path is like \"*.key\"  [p -> (no_permit)]\n"
    );
    let bind = |condition: &str| {
        format!(
            "@id(\"p\") permit(principal, action == Action::\"bind\", resource is UnixSocket) when {{ {condition} }};"
        )
    };
    assert_eq!(
        diff(&bind("resource.path like \"@*\""), &bind("resource.path like \"@a*\"")),
        "any other agent:\n\
         - bind    any abstract unix socket where the path is not like \"@a*\"  [p -> (no_permit)]\n"
    );
    let named = read("when { principal.name like \"c*\" }");
    let refused = compare(&taken(&read("")), &taken(&named), None).unwrap_err().to_string();
    assert!(refused.contains("principal.name"), "{refused}");
    assert_eq!(compare(&taken(&read("")), &taken(&named), Some(&subject(&[]))).unwrap(), []);
    let ports = |condition: &str| {
        format!(
            "@id(\"p\") permit(principal, action == Action::\"connect\", resource is Peer) when {{ {condition} }};"
        )
    };
    assert_eq!(
        diff(
            &ports("resource.port < 1024"),
            &ports("resource.port < 1024 || resource.port == 8080")
        ),
        "any other agent:\n\
         + connect any address, port 8080, any protocol  [(no_permit) -> p]\n"
    );
}

#[test]
fn folders_are_told_with_their_exceptions() {
    let new = "@id(\"data\") permit(principal, action == Action::\"read\", resource in Dir::\"/srv/data\");\n\
        @id(\"secret\") forbid(principal, action == Action::\"read\", resource in Dir::\"/srv/data/secret\");\n\
        @id(\"pin\") forbid(principal, action == Action::\"read\", resource == File::\"/srv/data/pin\");";
    assert_eq!(
        diff(NOTHING, new),
        "any other agent:\n\
         + read    /srv/data and beneath, except /srv/data/pin itself (no folders), \
         /srv/data/secret and beneath  [(no_permit) -> data]\n"
    );
    assert_eq!(
        diff(new, NOTHING),
        "any other agent:\n\
         - read    /srv/data and beneath, except /srv/data/pin itself (no folders), \
         /srv/data/secret and beneath  [data -> (no_permit)]\n"
    );
}

#[test]
fn a_place_within_an_exception_is_a_line_of_its_own() {
    let old = "@id(\"a\") permit(principal, action == Action::\"exec\", resource in Dir::\"/a/b\");\n\
        @id(\"c\") forbid(principal, action == Action::\"exec\", resource in Dir::\"/a/b/c\");";
    let new = "@id(\"a\") permit(principal, action == Action::\"exec\", resource in Dir::\"/a\");";
    assert_eq!(
        diff(old, new),
        "any other agent:\n\
         + exec    /a and beneath, except /a/b and beneath  [(no_permit) -> a]\n\
         + exec    /a/b/c and beneath  [c -> a]\n"
    );
    // `/a-b` is not beneath `/a`, though it sorts between `/a` and `/a/b`.
    let new = "@id(\"a\") permit(principal, action == Action::\"exec\", resource in Dir::\"/a\");\n\
        @id(\"d\") permit(principal, action == Action::\"exec\", resource in Dir::\"/a/d\");\n\
        @id(\"e\") permit(principal, action == Action::\"exec\", resource == Program::\"/a-b\");";
    assert_eq!(
        diff(NOTHING, new),
        "any other agent:\n\
         + exec    /a and beneath  [(no_permit) -> a]\n\
         + exec    /a-b itself  [(no_permit) -> e]\n"
    );
}

#[test]
fn everything_and_kinds_of_places() {
    let everything = "@id(\"all\") permit(principal, action, resource);";
    let shown = diff(NOTHING, everything);
    for line in [
        "+ exec    / and beneath  [",
        "+ read    / and beneath, except /nothing itself (no folders)",
        "+ connect any address, any port, any protocol  [(no_permit) -> all]",
        "+ bind    any address, any port, any protocol",
    ] {
        let line = line.replace(", except /nothing itself (no folders)", "");
        assert!(shown.contains(&line), "{line} in {shown}");
    }
    let shown = diff(
        NOTHING,
        "@id(\"f\") permit(principal, action == Action::\"read\", resource is File in Dir::\"/srv\");\n\
         @id(\"d\") permit(principal, action == Action::\"read\", resource == Dir::\"/srv\");",
    );
    assert_eq!(
        shown,
        "any other agent:\n\
         + read    /srv and beneath (no folders)  [(no_permit) -> f]\n\
         + read    /srv itself (folders only)  [(no_permit) -> d]\n"
    );
}

#[test]
fn peers_are_told_as_ranges() {
    let old = "@id(\"web\") permit(principal, action == Action::\"connect\", resource is Peer) when { resource.port == 443 };";
    let new = "@id(\"web\") permit(principal, action == Action::\"connect\", resource is Peer) when { resource.port == 443 && resource.protocol == \"tcp\" };\n\
        @id(\"lan\") permit(principal, action == Action::\"connect\", resource is Peer) when { resource.ip.isInRange(ip(\"10.0.0.0/8\")) };\n\
        @id(\"no\") forbid(principal, action == Action::\"connect\", resource is Peer) when { resource.ip.isInRange(ip(\"10.9.0.0/16\")) };";
    assert_eq!(
        diff(old, new),
        "any other agent:\n\
         + connect 10.0.0.0-10.8.255.255 10.10.0.0-10.255.255.255, ports 0-442 444-65535, any protocol  [(no_permit) -> lan]\n\
         - connect 0.0.0.0-9.255.255.255 11.0.0.0-255.255.255.255 any IPv6 address, port 443, udp any other protocol  [web -> (no_permit)]\n\
         - connect 10.9.0.0/16, port 443, any protocol  [web -> no]\n"
    );
    let mapped = "@id(\"m\") permit(principal, action == Action::\"bind\", resource is Peer) when { resource.ip == ip(\"::ffff:10.0.0.1\") && resource.port == 22 };";
    match check(mapped) {
        Ok(_) => assert_eq!(diff(NOTHING, mapped), ""),
        Err(error) => assert!(error.to_string().contains("10.0.0.1"), "{error}"),
    }
}

#[test]
fn names_are_told_apart_as_policies_do() {
    let old = "@id(\"web\") permit(principal, action == Action::\"connect\", resource is Peer) when { resource has host && resource.host like \"*.example.com\" };";
    let new = "@id(\"web\") permit(principal, action == Action::\"connect\", resource is Peer) when { resource has host && resource.host like \"*.example.com\" && resource.port == 443 };\n\
        @id(\"api\") permit(principal, action == Action::\"connect\", resource is Peer) when { resource has host && [\"api.example.com\", \"example.org\"].contains(resource.host) };";
    assert_eq!(
        diff(old, new),
        "any other agent:\n\
         + connect any address, any port, any protocol, as example.org  [(no_permit) -> api]\n\
         - connect any address, ports 0-442 444-65535, any protocol, as *.example.com  [web -> (no_permit)]\n"
    );
    let all = "@id(\"all\") permit(principal, action == Action::\"connect\", resource is Peer);";
    assert_eq!(
        diff(old, all),
        "any other agent:\n\
         + connect any address, any port, any protocol, where no name is known, as any other name  [(no_permit) -> all]\n"
    );
}

#[test]
fn a_verdict_on_a_name_is_explained() {
    let text = "@id(\"api\") permit(principal, action == Action::\"connect\", resource is Peer) when { resource has host && resource.host == \"api.example.com\" };\n\
        @id(\"no\") forbid(principal, action == Action::\"connect\", resource is Peer) when { resource has host && resource.host like \"*.ads.example\" };";
    let one = explained(text, Action::Connect, "api.example.com=192.0.2.7:443");
    assert_eq!((one.allowed, one.reported.as_deref()), (true, Some("api")));
    let one = explained(text, Action::Connect, "x.ads.example=192.0.2.7:443");
    assert_eq!((one.allowed, one.reported.as_deref()), (false, Some("no")));
    let one = explained(text, Action::Connect, "192.0.2.7:443");
    assert_eq!(one.reason, Reason::NoPermit.name());
    let near: Vec<&str> = one.nearest.iter().map(|near| near.permits.as_str()).collect();
    assert_eq!(near, ["it where its address is known as api.example.com"]);
}

#[test]
fn changes_are_told_for_each_agent_that_can_be_told_from_others() {
    let old = "@id(\"a\") permit(principal == Agent::\"coder\", action == Action::\"exec\", resource in Dir::\"/usr\");\n\
        @id(\"f\") forbid(principal in AgentGroup::\"strict\", action == Action::\"exec\", resource in Dir::\"/usr\");";
    let new = "@id(\"a\") permit(principal == Agent::\"coder\", action == Action::\"exec\", resource in Dir::\"/usr\");\n\
        @id(\"g\") permit(principal in AgentGroup::\"strict\", action == Action::\"exec\", resource in Dir::\"/opt\");";
    assert_eq!(
        diff(old, new),
        "agent coder in strict:\n\
         + exec    /opt and beneath  [(no_permit) -> g]\n\
         + exec    /usr and beneath  [f -> a]\n\
         any other agent in strict:\n\
         + exec    /opt and beneath  [(no_permit) -> g]\n"
    );
    let only = compare(&taken(old), &taken(new), Some(&subject(&[]))).unwrap();
    assert_eq!(compare::text(&only), "");
    let only = compare(&taken(old), &taken(new), Some(&subject(&["strict"]))).unwrap();
    assert!(compare::text(&only).starts_with("agent coder in strict:\n+ exec"));
}

#[test]
fn more_groups_than_can_be_thought_of_are_refused() {
    let line = |n| {
        format!("permit(principal in AgentGroup::\"g{n}\", action, resource in Dir::\"/{n}\");\n")
    };
    let many: String = (0..7).map(line).collect();
    let error = compare(&taken(&many), &taken(NOTHING), None).unwrap_err();
    assert!(error.to_string().contains("--agent"), "{error}");
    assert!(compare(&taken(&many), &taken(NOTHING), Some(&subject(&["g3"]))).is_ok());
}

#[test]
fn the_policy_that_is_shipped_keeps_what_its_expectations_say() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/policies/coder.expect.toml");
    let outcome = expect::run(&file).unwrap_or_else(|error| panic!("{error}"));
    assert!(outcome.failed.is_empty(), "{}", outcome.text());
    assert!(outcome.passed >= 20);
}

#[test]
fn expectations_that_do_not_come_true_are_told_with_their_line() {
    let folder = std::env::temp_dir().join(format!("ambit-expect-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("a.cedar"), CODER).unwrap();
    let file = folder.join("a.toml");
    let run = |text: &str| {
        std::fs::write(&file, text).unwrap();
        expect::run(&file)
    };
    let outcome = run("policy = [\"a.cedar\"]\n[[agent]]\nname = \"coder\"\nallow = [\n  { read = \"/etc/shadow\" },\n  \
        { read = \"/etc/passwd\", by = \"system\" }, { exec = \"/usr/bin/git\" },\n]\n")
    .unwrap();
    assert_eq!(outcome.passed, 1);
    let text = outcome.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "LINE  AGENT  ACTION  TARGET       EXPECTED         GOT",
            "5     coder  read    /etc/shadow  allow            deny by shadow",
            "6     coder  read    /etc/passwd  allow by system  allow by settings",
            "1 passed, 2 failed",
        ]
    );
    for (text, word) in [
        ("policy = \"a.cedar\"\n[[agent]]\nname = \"a b\"", "a.toml:3: `a b` cannot name"),
        (
            "policy = \"a.cedar\"\n[[agent]]\nname = \"a\"\nallow = [{ raed = \"/x\" }]",
            "a.toml:4: `raed` is no action",
        ),
        ("policy = \"a.cedar\"\n[[agent]]\nname = \"a\"\nallow = [{ read = \"x\" }]", "absolute"),
        (
            "policy = \"a.cedar\"\n[[agent]]\nname = \"a\"\nallow = [{ by = \"x\" }]",
            "without an action",
        ),
        ("policy = \"a.cedar\"\n[[agent]]\nname = \"a\"\nalow = []", "alow"),
        ("policy = \"b.cedar\"\n[[agent]]\nname = \"a\"", "no such policy file"),
        ("[[agent]]\nname = \"a\"", "policy"),
    ] {
        let error = run(text).unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(run_missing().contains("cannot read"));
}

fn run_missing() -> String {
    expect::run(Path::new("/nonexistent.toml")).unwrap_err().to_string()
}

#[test]
fn a_ceiling_is_never_narrower_than_the_policy() {
    let folders = |text: &str, groups: &[&str]| {
        let found = ceiling(&taken(text), &subject(groups)).unwrap();
        found.iter().map(|path| path.display().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(folders(CODER, &[]), ["/dev", "/work"]);
    let text = "permit(principal, action == Action::\"write\", resource in Dir::\"/a/b\");\n\
        permit(principal, action, resource is File in Dir::\"/a\");\n\
        permit(principal in AgentGroup::\"g\", action == Action::\"write\", resource in Dir::\"/g\");\n\
        permit(principal == Agent::\"other\", action == Action::\"write\", resource);\n\
        permit(principal, action == Action::\"write\", resource == File::\"/etc/hosts\");\n\
        permit(principal, action == Action::\"write\", resource == Dir::\"/var/log\");\n\
        permit(principal, action == Action::\"read\", resource in Dir::\"/r\");\n\
        permit(principal, action, resource is Peer);\n\
        forbid(principal, action, resource in Dir::\"/f\");";
    assert_eq!(folders(text, &[]), ["/a", "/etc", "/var/log"]);
    assert_eq!(folders(text, &["g"]), ["/a", "/etc", "/g", "/var/log"]);
    // Everything is privileges too, some of which no ceiling lets through.
    assert_eq!(ceiling(&taken("permit(principal, action, resource);"), &subject(&[])), None);
    let mount = "permit(principal, action == Action::\"privilege\", resource) when { resource != Privilege::\"ptrace\" };";
    assert_eq!(ceiling(&taken(mount), &subject(&[])), None);
    let bind = "permit(principal, action == Action::\"bind\", resource is UnixSocket) when { resource.path like \"/run/*\" || resource.path like \"@*\" };";
    assert_eq!(folders(bind, &[]), ["/run"]);
    let of = |condition: &str| {
        folders(
            &format!("permit(principal, action == Action::\"write\", resource) {condition};"),
            &[],
        )
    };
    assert_eq!(of("when { resource in Dir::\"/a\" && resource.path like \"*.log\" }"), ["/a"]);
    assert_eq!(of("when { resource.path like \"/var/log/x-*\" }"), ["/var/log"]);
    assert_eq!(of("when { resource.path like \"/home/*/.cache/*\" }"), ["/home"]);
    assert_eq!(
        of("when { resource.path == \"/b/c\" || resource in Dir::\"/a/b\" }"),
        ["/a/b", "/b"]
    );
    assert_eq!(of("when { resource.path like \"*.log\" }"), ["/"]);
    assert_eq!(of("unless { resource in Dir::\"/a\" }"), ["/"]);
    assert_eq!(of("when { principal.name == \"other\" }"), Vec::<String>::new());
}

/// What an agent's tables have no room for is found by `check`, for the agents that are named and for
/// those that are not.
#[test]
fn bounds_are_tried_for_the_agents_that_policies_name() {
    for who in
        ["principal == Agent::\"coder\"", "principal in AgentGroup::\"builders\"", "principal"]
    {
        let fine = format!("permit({who}, action == Action::\"read\", resource is File);\n");
        assert!(bounds(&taken(&fine)).unwrap() >= 1);
        // Each pattern doubles the states.
        let line = |n: usize| {
            format!(
                "permit({who}, action == Action::\"read\", resource) unless {{ resource.path like \"*word{n}*\" }};\n"
            )
        };
        let error = bounds(&taken(&(0..16).map(line).collect::<String>())).unwrap_err();
        let problem = &error.diagnostics()[0];
        assert!(problem.message.contains("more than 16384 states"), "{problem}");
        assert!(problem.file.starts_with("/etc/ambit/coder.cedar:"), "{problem}");
    }
    // Each combination of the groups, or none and all of them where they are many.
    let groups = |count: usize| -> String {
        (0..count)
            .map(|n| format!("permit(principal in AgentGroup::\"g{n}\", action, resource);\n"))
            .collect()
    };
    assert_eq!(bounds(&taken(&groups(3))).unwrap(), 8);
    assert_eq!(bounds(&taken(&groups(20))).unwrap(), 2);
}
