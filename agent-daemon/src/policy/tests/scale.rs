//! As many rules as a policy may well have, and how long each step takes.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::{HashedTables, Lowered, Policies, Source, check};
use super::{CONFIG, coder};

/// Where the time went.
struct Took {
    check: Duration,
    lower: Duration,
    hash: Duration,
}

fn load(rules: usize, rule: impl Fn(usize) -> String) -> (Arc<Lowered>, Took) {
    let mut text = String::new();
    for n in 0..rules {
        let _ = writeln!(text, "{}", rule(n));
    }
    let sources = [Source { name: "big.cedar".to_owned(), text }];
    let start = Instant::now();
    let policies = Policies::check(&sources).unwrap();
    let check = start.elapsed();
    let start = Instant::now();
    let lowered = policies.lower(&coder(), &[]).unwrap();
    let lower = start.elapsed();
    let start = Instant::now();
    HashedTables::new(&lowered, &CONFIG).unwrap();
    (lowered, Took { check, lower, hash: start.elapsed() })
}

/// A kind of rule that may be had by the hundred thousand, and the one with this number.
type Rules = (&'static str, fn(usize) -> String);

fn kinds() -> [Rules; 8] {
    const READ: &str = "action == Action::\"read\"";
    const CONNECT: &str = "action == Action::\"connect\"";
    [
        ("files", |n| {
            format!("permit(principal, {READ}, resource == File::\"/srv/data/{}/{n}\");", n % 100)
        }),
        ("folders", |n| {
            format!("permit(principal, {READ}, resource in Dir::\"/srv/data/{}/{n}\");", n % 100)
        }),
        ("prefixes", |n| {
            format!(
                "permit(principal, {READ}, resource) when {{ resource.path like \"/srv/{n}-*\" }};"
            )
        }),
        ("suffixes", |n| {
            format!("forbid(principal, {READ}, resource) when {{ resource.path like \"*.{n}\" }};")
        }),
        ("ranges", |n| {
            let (a, b, c) = (n >> 14 & 127, n >> 6 & 255, n << 2 & 255);
            format!(
                "permit(principal, {CONNECT}, resource is Peer) when {{ resource.ip.isInRange(ip(\"{}.{b}.{c}.0/22\")) }};",
                a + 1
            )
        }),
        ("names", |n| {
            format!(
                "permit(principal, {CONNECT}, resource is Peer) when {{ resource has host && resource.host == \"h{n}.example\" }};"
            )
        }),
        ("names with a port", named_with_port),
        ("addresses with a port", |n| {
            let (a, b, c) = (n >> 16 & 255, n >> 8 & 255, n & 255);
            let port = 1 + n % 50;
            format!(
                "permit(principal, {CONNECT}, resource is Peer) when {{ resource.ip == ip(\"10.{a}.{b}.{c}\") && resource.port == {port} }};"
            )
        }),
    ]
}

fn named_with_port(n: usize) -> String {
    let port = 1 + n % 50;
    format!(
        "permit(principal, action == Action::\"connect\", resource is Peer) when {{ resource has host && resource.host == \"h{n}.example\" && resource.port == {port} }};"
    )
}

#[test]
fn every_rule_of_many_leaves_its_trace() {
    for (kind, rule) in kinds() {
        let (lowered, _) = load(2_000, rule);
        assert_eq!(lowered.rules.len(), 2_000, "{kind}");
        let cells = lowered.places.len() + lowered.peers.len() + lowered.joins.len();
        let cells = cells + lowered.hosts.len();
        assert!(cells >= 2_000, "{kind}: {cells}");
    }
}

/// Each name stands once, however many addresses are told apart.
#[test]
fn names_with_a_port_stand_beside_ranges_with_a_port() {
    let (lowered, _) = load(10_500, |n| match n {
        0..10_000 => named_with_port(n),
        _ => format!(
            "permit(principal, action == Action::\"connect\", resource is Peer) when {{ resource.ip.isInRange(ip(\"10.{}.{}.0/24\")) && resource.port == 443 }};",
            n / 256,
            n % 256
        ),
    });
    assert_eq!(lowered.rules.len(), 10_500);
    assert_eq!(lowered.joins.len(), 10_500);
}

/// Prints what 100,000 rules cost; means something only in the release profile.
#[test]
#[ignore = "takes a while; cargo xtask prove runs it"]
fn hundred_thousand_rules() {
    for (kind, rule) in kinds() {
        let (lowered, Took { check, lower, hash }) = load(100_000, rule);
        println!(
            "100,000 {kind}: checked in {check:.2?}, lowered in {lower:.2?}, hashed in {hash:.2?}; \
             {} places, {} peers, {} joins",
            lowered.places.len(),
            lowered.peers.len(),
            lowered.joins.len()
        );
    }
}

/// What is read like another of its form means what it would mean alone, and what cannot be taken is
/// refused at its own place.
#[test]
fn policies_of_one_form_are_read_each_by_its_own_words() {
    let mut random = super::generate::Random::new(7);
    let mut taken = Vec::new();
    while taken.len() < 300 {
        let policy =
            format!("@id(\"p{}\") {}\n", taken.len(), super::generate::policy(&mut random));
        if super::check(&policy).is_ok() {
            taken.push(policy);
        }
    }
    // The same once more, so that every form has more than one policy.
    let again = taken.iter().map(|policy| policy.replacen("@id(\"p", "@id(\"q", 1));
    let text = taken.iter().cloned().chain(again).collect::<String>();
    let sources = [super::source(&text), super::entities(&super::generate::entities(&mut random))];
    let alike = check::read(&sources, true).unwrap();
    let each = check::read(&sources, false).unwrap();
    let lowered = |checked: check::Checked| {
        super::super::lower::lower(&checked.rules, &coder(), &[]).unwrap()
    };
    assert_eq!(lowered(alike), lowered(each));
    let mut many: String = (0..1_500).map(|n| kinds()[0].1(n) + "\n").collect();
    many += "permit(principal, action == Action::\"read\", resource == File::\"x\");\n";
    let error = super::check(&many).unwrap_err();
    assert_eq!(error.diagnostics()[0].place(), "/etc/ambit/coder.cedar:1501:63");
}
