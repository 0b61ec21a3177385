//! Files of entities: what a label means, how it is explained, and every refusal with its place.

use agent_ebpf::{Action, Facet};

use super::super::ceiling::ceiling;
use super::super::compare::{self, compare};
use super::super::explain::{Explanation, Judge, explain, parse_target};
use super::super::{Diagnostic, Policies, Severity, Source, Target, read_folder, read_source};
use super::{check, check_with, coder, entities, file, folder, generate, says, source};

const ETC: &str = r#"[
  {"uid": {"type": "Dir", "id": "/etc/ssh"}, "attrs": {}, "parents": [{"type": "Label", "id": "keys"}]},
  {"uid": {"type": "File", "id": "/etc/shadow"}, "attrs": {}, "parents": [{"type": "Label", "id": "secret"}]},
  {"uid": {"type": "Program", "id": "/usr/bin/gpg"}, "attrs": {}, "parents": [{"type": "Label", "id": "keys"}]},
  {"uid": {"type": "UnixSocket", "id": "@agent"}, "attrs": {}, "parents": [{"type": "Label", "id": "keys"}]},
  {"uid": {"type": "Label", "id": "keys"}, "attrs": {}, "parents": [{"type": "Label", "id": "secret"}]}
]"#;

fn says_of(text: &str, labels: &str, action: Action, target: &Target) -> String {
    let policies = check_with(text, labels).unwrap_or_else(|error| panic!("{error}"));
    says(&policies.lower(&coder(), &[]).unwrap(), action, target)
}

/// An entity of this type and id, in this label.
fn entity(kind: &str, id: &str, label: &str) -> String {
    format!(
        r#"{{"uid": {{"type": "{kind}", "id": "{id}"}}, "attrs": {{}}, "parents": [{{"type": "Label", "id": "{label}"}}]}}"#
    )
}

#[test]
fn a_label_is_every_place_that_has_it_whatever_it_is_asked_for_as() {
    for condition in [
        "resource in Label::\"secret\")",
        "resource) when { resource in Label::\"secret\" }",
        "resource) when { resource in [Label::\"none\", Label::\"secret\"] }",
        "resource) when { resource has labels && resource.labels.contains(\"secret\") }",
        "resource) when { resource has labels && resource.labels.containsAny([\"none\", \"secret\"]) }",
        "resource) when { resource has labels && resource.labels.containsAll([\"secret\"]) }",
    ] {
        let text = format!("@id(\"p\") permit(principal, action, {condition};");
        for (action, target, is) in [
            (Action::Read, file("/etc/shadow"), true),
            (Action::Write, file("/etc/shadow"), true),
            (Action::Exec, file("/etc/shadow"), true),
            (Action::Connect, Target::UnixSocket("/etc/shadow".into()), true),
            (Action::Read, folder("/etc/shadow"), false),
            (Action::Read, file("/etc/shadow/x"), false),
            (Action::Read, file("/etc/shadow-"), false),
            (Action::Read, folder("/etc/ssh"), true),
            (Action::Read, file("/etc/ssh"), true),
            (Action::Read, file("/etc/ssh/a/b"), true),
            (Action::Exec, file("/etc/ssh/a/b"), true),
            (Action::Bind, Target::UnixSocket("/etc/ssh/s".into()), true),
            (Action::Read, file("/etc/sshd"), false),
            (Action::Read, folder("/etc"), false),
            (Action::Read, file("/usr/bin/gpg"), true),
            (Action::Exec, file("/usr/bin/gpg"), true),
            (Action::Connect, Target::UnixSocket("@agent".into()), true),
            (Action::Connect, Target::UnixSocket("@agents".into()), false),
        ] {
            let said = says_of(&text, ETC, action, &target);
            assert_eq!(said, if is { "+p" } else { "no_permit" }, "{text} {action:?} {target:?}");
        }
    }
    // A label within another is not the other.
    let keys = "@id(\"p\") permit(principal, action, resource in Label::\"keys\");";
    assert_eq!(says_of(keys, ETC, Action::Read, &file("/etc/ssh/a")), "+p");
    assert_eq!(says_of(keys, ETC, Action::Read, &file("/etc/shadow")), "no_permit");
    let files = "@id(\"p\") permit(principal, action, resource is File in Label::\"secret\");";
    assert_eq!(says_of(files, ETC, Action::Read, &file("/etc/ssh/a")), "+p");
    assert_eq!(says_of(files, ETC, Action::Read, &folder("/etc/ssh")), "no_permit");
    assert_eq!(says_of(files, ETC, Action::Exec, &file("/etc/ssh/a")), "no_permit");
}

/// The places of a forbidden label are looked up as those that a policy names itself.
#[test]
fn what_a_label_forbids_is_forbidden_of_the_objects_too() {
    let lowered = |text: &str, labels: &str| {
        check_with(text, labels).unwrap().lower(&coder(), &[]).unwrap().forbidden.clone()
    };
    let all = "permit(principal, action, resource);\n";
    let labelled =
        lowered(&format!("{all}forbid(principal, action, resource in Label::\"secret\");"), ETC);
    let paths: Vec<&[u8]> = labelled.keys().map(Vec::as_slice).collect();
    assert_eq!(paths, [b"/etc/shadow".as_slice(), b"/etc/ssh", b"/usr/bin/gpg"]);
    let named = lowered(
        &format!(
            "{all}forbid(principal, action, resource) when {{ resource in Dir::\"/etc/ssh\" || \
             resource == File::\"/etc/shadow\" || resource == Program::\"/etc/shadow\" || \
             resource == UnixSocket::\"/etc/shadow\" || resource == File::\"/usr/bin/gpg\" || \
             resource == Program::\"/usr/bin/gpg\" || resource == UnixSocket::\"/usr/bin/gpg\" }};"
        ),
        "",
    );
    assert_eq!(labelled, named);
    let cell = &labelled[b"/etc/shadow".as_slice()];
    assert_ne!(cell.exact[Facet::ReadFile as usize], 0);
    assert_ne!(cell.exact[Facet::ExecProgram as usize], 0);
    assert_eq!(cell.exact[Facet::ReadDir as usize], 0);
    assert!(cell.beneath.iter().all(|rule| *rule == 0));
    assert_ne!(labelled[b"/etc/ssh".as_slice()].beneath[Facet::ReadDir as usize], 0);
}

#[test]
fn a_label_of_the_root_folder_is_everything_that_has_a_path() {
    let text = "@id(\"p\") permit(principal, action, resource in Label::\"all\");";
    let labels = format!("[{}]", entity("Dir", "/", "all"));
    assert_eq!(says_of(text, &labels, Action::Read, &file("/x/y")), "+p");
    assert_eq!(says_of(text, &labels, Action::Read, &folder("/")), "+p");
    let socket = |name: &str| Target::UnixSocket(name.into());
    assert_eq!(says_of(text, &labels, Action::Connect, &socket("/x")), "+p");
    assert_eq!(says_of(text, &labels, Action::Connect, &socket("@x")), "no_permit");
}

#[test]
fn an_empty_file_is_an_empty_list() {
    for empty in ["", " \n\t", "[]", " [ ]\n"] {
        check_with("permit(principal, action, resource);", empty).unwrap();
    }
}

fn warnings(text: &str, labels: &str) -> Vec<Diagnostic> {
    let policies = check_with(text, labels).unwrap();
    policies.report().into_iter().flat_map(|kept| kept.warnings).collect()
}

#[test]
fn a_label_that_nothing_has_is_remarked_and_never_matches() {
    let text = "@id(\"p\") permit(principal, action, resource in Label::\"secrte\");";
    let found = warnings(text, ETC);
    assert_eq!(
        found.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["warning: no place has the label `secrte`, so nothing is ever in it
 --> /etc/ambit/coder.cedar:1:55
  |
1 | @id(\"p\") permit(principal, action, resource in Label::\"secrte\");
  |                                                       ^^^^^^^^
  = help: did you mean `secret`?"]
    );
    assert_eq!(says_of(text, ETC, Action::Read, &file("/etc/shadow")), "no_permit");
    let kept = check_with(text, ETC).unwrap().report();
    assert_eq!(kept[0].kept, "kept exactly: it never matches");
    // Without any file, and with a label that is declared but given to nothing.
    let found = check(text).unwrap().report().remove(0).warnings;
    assert!(found[0].help.as_deref().unwrap().contains(".entities.json"), "{}", found[0]);
    let declared = r#"[{"uid": {"type": "Label", "id": "secrte"}, "attrs": {}, "parents": []}]"#;
    assert_eq!(warnings(text, declared).len(), 1);
    // In a condition too; what does not hold for its absence is kept.
    let text = "@id(\"p\") permit(principal, action == Action::\"read\", resource) unless { resource.labels.contains(\"nothing\") };";
    let found = warnings(text, ETC);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].message.contains("`nothing`"), "{}", found[0]);
    assert_eq!(says_of(text, ETC, Action::Read, &file("/x")), "+p");
}

#[test]
fn a_label_of_which_no_policy_speaks_is_remarked() {
    let remarks = |text: &str, labels: &str| {
        let policies = check_with(text, labels).unwrap();
        policies.remarks().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let text = "forbid(principal, action, resource in Label::\"secret\");";
    // `keys` is in `secret`, so it is spoken of.
    assert_eq!(remarks(text, ETC), [] as [&str; 0]);
    let labels =
        format!("[{},\n {}]", entity("Dir", "/a", "secret"), entity("Dir", "/b", "secrte"));
    assert_eq!(
        remarks(text, &labels),
        ["warning: no policy speaks of the label `secrte`
 --> /etc/ambit/places.entities.json:2:64
  |
2 |  {\"uid\": {\"type\": \"Dir\", \"id\": \"/b\"}, \"attrs\": {}, \"parents\": [{\"type\": \"Label\", \"id\": \"secrte\"}]}]
  |                                                                ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  = help: did you mean `secret`?"]
    );
}

fn problems(labels: &str) -> Vec<Diagnostic> {
    match check_with("permit(principal, action, resource);", labels) {
        Ok(_) => panic!("this was taken: {labels}"),
        Err(error) => error.diagnostics().to_vec(),
    }
}

/// A file of entities is refused for one reason, shown at this text, with words in message and remedy.
#[track_caller]
fn refused(labels: &str, at: &str, message: &str, remedy: &str) {
    let found = problems(labels);
    let [problem] = found.as_slice() else {
        panic!("one problem expected in {labels}: {found:#?}");
    };
    assert_eq!(problem.severity, Severity::Error);
    assert_eq!(problem.file, "/etc/ambit/places.entities.json");
    let span = problem.span.as_ref().unwrap();
    let shown: String = span.text.chars().skip(span.indent).take(span.underlined).collect();
    assert_eq!(shown, at, "{problem}");
    assert!(problem.message.contains(message), "{problem}");
    assert!(problem.help.as_deref().unwrap_or_default().contains(remedy), "{problem}");
}

#[test]
fn what_is_no_list_of_entities() {
    refused("{}", "{}", "the entities are not a list", "[{\"uid\":");
    refused("7", "7", "the entities are not a list", "[{\"uid\":");
    refused("[7]", "7", "an entity is an object", "\"uid\":");
    refused("\u{feff}[]", "\u{feff}", "byte order mark", "without");
    refused("[{\"uid\": 3]", "]", "this is not JSON: expected `,` or `}`", "\"uid\":");
    refused("[", "[", "this is not JSON: EOF", "\"uid\":");
    refused("[] []", "[", "this is not JSON: trailing characters", "\"uid\":");
    refused("[\n  // no\n]", "/", "this is not JSON", "\"uid\":");
    let deep = format!("[{}{}]", "[".repeat(200_000), "]".repeat(200_000));
    assert_eq!(problems(&deep).len(), 1);
}

#[test]
fn an_entity_that_is_not_as_it_should_be() {
    let uid = r#""uid": {"type": "Dir", "id": "/x"}"#;
    for (members, at, message, remedy) in [
        (format!(r#"{uid}, "attrs": {{}}"#), None, "without `parents`", "\"parents\":"),
        (format!(r#"{uid}, "parents": []"#), None, "without `attrs`", "\"attrs\": {}"),
        (r#""attrs": {}, "parents": []"#.to_owned(), None, "without `uid`", "\"uid\":"),
        (
            format!(r#"{uid}, "attrs": {{}}, "parnets": []"#),
            Some("\"parnets\""),
            "an entity has no `parnets`",
            "did you mean `parents`?",
        ),
        (
            format!(r#"{uid}, "attrs": {{}}, "parents": [], "parents": []"#),
            Some("\"parents\""),
            "`parents` is given twice",
            "once",
        ),
        (
            format!(r#"{uid}, "attrs": {{"owner": "me"}}, "parents": []"#),
            Some("{\"owner\": \"me\"}"),
            "`attrs` of an entity are not for policies",
            "\"attrs\": {}",
        ),
        (
            format!(r#"{uid}, "attrs": {{}}, "parents": [], "tags": {{"a": 1}}"#),
            Some("{\"a\": 1}"),
            "`tags` of an entity",
            "\"tags\": {}",
        ),
        (
            format!(r#"{uid}, "attrs": [], "parents": []"#),
            Some("[]"),
            "`attrs` of an entity",
            "\"attrs\": {}",
        ),
        (
            format!(r#"{uid}, "attrs": {{}}, "parents": {{}}"#),
            Some("{}"),
            "`parents` are not a list",
            "\"parents\": [",
        ),
        (
            format!(r#"{uid}, "attrs": {{}}, "parents": ["secret"]"#),
            Some("\"secret\""),
            "an entity's name is an object",
            "\"type\": \"Label\"",
        ),
        (
            format!(r#"{uid}, "attrs": {{}}, "parents": [{{"type": "Dir", "id": "/"}}]"#),
            Some("{\"type\": \"Dir\", \"id\": \"/\"}"),
            "here no Dir is in a Dir",
            "leave it out",
        ),
        (
            format!(r#"{uid}, "attrs": {{}}, "parents": [{{"type": "Label", "id": ""}}]"#),
            Some("\"\""),
            "a label without a name",
            "name",
        ),
        (
            r#""uid": {"type": "Dir"}, "attrs": {}, "parents": []"#.to_owned(),
            Some("{\"type\": \"Dir\"}"),
            "without `id`",
            "\"id\":",
        ),
        (
            r#""uid": {"type": "Dir", "id": 3}, "attrs": {}, "parents": []"#.to_owned(),
            Some("3"),
            "this is no string",
            "\"id\":",
        ),
        (
            r#""uid": {"type": "Dir", "id": "/\ud800"}, "attrs": {}, "parents": []"#.to_owned(),
            Some(r#""/\ud800""#),
            "this is no string",
            "\"id\":",
        ),
        (
            r#""uid": {"type": "Dir", "id": "/x", "name": "x"}, "attrs": {}, "parents": []"#
                .to_owned(),
            Some("\"name\""),
            "an entity's name has no `name`",
            "`type`, `id`",
        ),
    ] {
        let whole = format!("{{{members}}}");
        refused(&format!("[{whole}]"), at.unwrap_or(&whole), message, remedy);
    }
}

#[test]
fn types_and_names_that_have_no_labels() {
    for (kind, id, at, message, remedy) in [
        ("Agent", "coder", "\"Agent\"", "no Agent stands", "`[[agent]]`"),
        ("AgentGroup", "b", "\"AgentGroup\"", "no AgentGroup stands", "`[[agent]]`"),
        ("Peer", "192.0.2.1", "\"Peer\"", "a Peer has no labels", "File"),
        ("Privilege", "bpf", "\"Privilege\"", "a Privilege has no labels", "File"),
        ("Dri", "/x", "\"Dri\"", "no entity type `Dri`", "did you mean `Dir`?"),
        ("Dir", "etc", "\"etc\"", "not an absolute path", "`\"/srv/etc\"`"),
        ("Dir", "/a/../b", "\"/a/../b\"", "`.` or `..`", "`\"/b\"`"),
        ("File", "/a/", "\"/a/\"", "does not end with `/`", "`\"/a\"`"),
        ("Dir", "//a", "\"//a\"", "cannot have `//`", "`\"/a\"`"),
        ("File", "/", "\"/\"", "the root folder is no File", "Dir"),
        ("Program", "", "\"\"", "an empty path", "`\"/srv/work\"`"),
        ("Dir", "/a\\u0000", "\"/a\\u0000\"", "NUL", "without"),
        ("Label", "", "\"\"", "a label without a name", "name"),
    ] {
        refused(&format!("[{}]", entity(kind, id, "x")), at, message, remedy);
    }
    let long = format!("@{}", "a".repeat(108));
    refused(
        &format!("[{}]", entity("UnixSocket", &long, "x")),
        &format!("\"{long}\""),
        "abstract address of 108 bytes",
        "meant",
    );
}

#[test]
fn entities_that_contradict_each_other() {
    let (a, b) = (entity("Dir", "/x", "a"), entity("Dir", "/x", "b"));
    check_with("permit(principal, action, resource);", &format!("[{a}, {a}]")).unwrap();
    let found = problems(&format!("[{a},\n{b}]"));
    assert_eq!(
        found.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["error: Dir::\"/x\" has other parents at /etc/ambit/places.entities.json:1:2
 --> /etc/ambit/places.entities.json:2:9
  |
2 | {\"uid\": {\"type\": \"Dir\", \"id\": \"/x\"}, \"attrs\": {}, \"parents\": [{\"type\": \"Label\", \"id\": \"b\"}]}]
  |         ^^^^^^^^^^^^^^^^^^^^^^^^^^^
  = help: write it once, with all of its parents"]
    );
    // In another file too. A file and a program may be the same object.
    let second = Source { name: "b.entities.json".to_owned(), text: format!("[{b}]") };
    let first = entities(&format!("[{a}]"));
    let text = source("permit(principal, action, resource);");
    let error = Policies::check(&[text.clone(), first, second]).unwrap_err();
    assert_eq!(error.diagnostics()[0].place(), "b.entities.json:1:10");
    let both = format!("[{}, {}]", entity("File", "/x", "a"), entity("Program", "/x", "b"));
    let text = "@id(\"p\") permit(principal, action, resource) when { resource has labels && resource.labels.containsAll([\"a\", \"b\"]) };";
    assert_eq!(says_of(text, &both, Action::Read, &file("/x")), "+p");
}

#[test]
fn labels_in_themselves() {
    let circle = format!(
        "[{},\n{},\n{},\n{}]",
        entity("Label", "o", "a"),
        entity("Label", "a", "b"),
        entity("Label", "b", "c"),
        entity("Label", "c", "a")
    );
    let found = problems(&circle);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].message, "the label `a` is in itself: a in b in c in a");
    assert_eq!(found[0].place(), "/etc/ambit/places.entities.json:4:64");
    let own = format!("[{}]", entity("Label", "a", "a"));
    assert_eq!(problems(&own)[0].message, "the label `a` is in itself: a in a");
    // Two ways to one label are no circle.
    let diamond = r#"[{"uid": {"type": "Label", "id": "a"}, "attrs": {}, "parents": [{"type": "Label", "id": "b"}, {"type": "Label", "id": "c"}]},
        {"uid": {"type": "Label", "id": "b"}, "attrs": {}, "parents": [{"type": "Label", "id": "d"}]},
        {"uid": {"type": "Label", "id": "c"}, "attrs": {}, "parents": [{"type": "Label", "id": "d"}]},
        {"uid": {"type": "Dir", "id": "/x"}, "attrs": {}, "parents": [{"type": "Label", "id": "a"}]}]"#;
    let text = "@id(\"p\") permit(principal, action, resource in Label::\"d\");";
    assert_eq!(says_of(text, diamond, Action::Read, &file("/x")), "+p");
    // A long way is no deep recursion.
    let chain: Vec<String> =
        (0..50_000).map(|n| entity("Label", &format!("l{n}"), &format!("l{}", n + 1))).collect();
    let chain = format!("[{},{}]", entity("Dir", "/x", "l0"), chain.join(","));
    let text = "@id(\"p\") permit(principal, action, resource in Label::\"l50000\");";
    assert_eq!(says_of(text, &chain, Action::Read, &file("/x")), "+p");
}

#[test]
fn labels_with_too_many_places() {
    let places: Vec<String> =
        (0..60_000).map(|n| entity("File", &format!("/x/{n}"), &format!("l{}", n % 2))).collect();
    let mut labels: Vec<String> =
        (0..40).map(|n| entity("Label", &format!("l{}", n % 2), &format!("m{n}"))).collect();
    labels = vec![
        format!(
            r#"{{"uid": {{"type": "Label", "id": "l0"}}, "attrs": {{}}, "parents": [{}]}}"#,
            (0..40)
                .map(|n| format!(r#"{{"type": "Label", "id": "m{n}"}}"#))
                .collect::<Vec<_>>()
                .join(",")
        ),
        labels.remove(1),
    ];
    let labels = format!("[{},{}]", places.join(","), labels.join(","));
    let text: String = (0..40)
        .map(|n| format!("permit(principal, action, resource in Label::\"m{n}\");\n"))
        .collect();
    let error = check_with(&text, &labels).unwrap_err();
    assert!(error.diagnostics()[0].message.contains("more than 1000000 places"), "{error}");
}

/// Cedar itself takes what is taken here, and knows the same parents.
#[test]
fn cedar_takes_the_same_files() {
    let mut random = generate::Random::new(3);
    for _ in 0..50 {
        let text = generate::entities(&mut random);
        check_with("permit(principal, action, resource);", &text).unwrap();
        cedar_policy::Entities::from_json_str(&text, None).unwrap();
    }
    cedar_policy::Entities::from_json_str(ETC, None).unwrap();
    let explicit = r#"[{"uid": {"__entity": {"type": "Dir", "id": "/x"}}, "attrs": {}, "tags": {},
        "parents": [{"__entity": {"type": "Label", "id": "a"}}]}]"#;
    cedar_policy::Entities::from_json_str(explicit, None).unwrap();
    let text = "@id(\"p\") permit(principal, action, resource in Label::\"a\");";
    assert_eq!(says_of(text, explicit, Action::Read, &file("/x")), "+p");
}

#[test]
fn the_ceiling_is_that_of_a_labels_places() {
    let text = "permit(principal, action, resource in Label::\"secret\");";
    let folders = ceiling(&check_with(text, ETC).unwrap(), &coder()).unwrap();
    let folders: Vec<&str> = folders.iter().filter_map(|folder| folder.to_str()).collect();
    assert_eq!(folders, ["/etc", "/usr/bin"]);
}

fn explained(text: &str, labels: &str, action: Action, target: &str) -> Explanation {
    let policies = check_with(text, labels).unwrap();
    let judge = Judge::new(&policies, coder(), &[]).unwrap();
    explain(&policies, &judge, action, &parse_target(action, target).unwrap()).unwrap()
}

#[test]
fn an_explanation_says_through_which_label() {
    let text = "@id(\"all\") permit(principal, action == Action::\"read\", resource);\n\
        @id(\"shut\") forbid(principal, action, resource in Label::\"secret\");";
    let said = explained(text, ETC, Action::Read, "/etc/ssh/key");
    assert_eq!(
        said.text(),
        "DENIED  read /etc/ssh/key by shut\n  \
         forbid shut (/etc/ambit/coder.cedar:2:1)\n  \
         permit all (/etc/ambit/coder.cedar:1:1): of no use, a forbid beats every permit\n  \
         it is in the label keys in secret, given to Dir::\"/etc/ssh\" \
         (/etc/ambit/places.entities.json:2:71)\n"
    );
    let said = explained(text, ETC, Action::Read, "/etc/passwd");
    assert!(said.allowed && said.labels.is_empty());
    // What comes near is found among the places of labels.
    let text = "@id(\"open\") permit(principal, action == Action::\"read\", resource in Label::\"secret\");";
    let said = explained(text, ETC, Action::Read, "/etc/ssl");
    assert_eq!(said.nearest.len(), 1, "{}", said.text());
}

#[test]
fn a_label_that_moves_is_a_change_of_policy() {
    let text = "@id(\"all\") permit(principal, action == Action::\"read\", resource in Dir::\"/srv\");\n\
        @id(\"shut\") forbid(principal, action, resource in Label::\"secret\");";
    let of =
        |path: &str| check_with(text, &format!("[{}]", entity("Dir", path, "secret"))).unwrap();
    let changes = compare(&of("/srv/a"), &of("/srv/b"), None).unwrap();
    assert_eq!(
        compare::text(&changes),
        "any other agent:\n\
         + read    /srv/a and beneath  [shut -> all]\n\
         - read    /srv/b and beneath  [all -> shut]\n"
    );
    assert!(compare(&of("/srv/a"), &of("/srv/a"), None).unwrap().is_empty());
}

#[test]
fn files_of_entities_are_found_by_their_names() {
    let folder = std::env::temp_dir().join(format!("ambit-labels-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    write("places.entities.json", ETC);
    write("other.json", "not read");
    let error = read_folder(&folder).unwrap_err().to_string();
    assert!(error.contains("no `.cedar` file"), "{error}");
    write("a.cedar", "@id(\"p\") permit(principal, action, resource in Label::\"secret\");");
    let sources = read_folder(&folder).unwrap();
    assert_eq!(sources.iter().map(Source::is_entities).collect::<Vec<_>>(), [false, true]);
    let policies = Policies::check(&sources).unwrap();
    assert_eq!(
        says(&policies.lower(&coder(), &[]).unwrap(), Action::Read, &file("/etc/shadow")),
        "+p"
    );
    // Entities alone are no policy.
    let single = read_source(&folder.join("places.entities.json")).unwrap();
    let error = Policies::check(std::slice::from_ref(&single)).unwrap_err().to_string();
    assert!(error.contains("there is no policy in it"), "{error}");
    let huge = std::fs::File::options().write(true).open(folder.join("places.entities.json"));
    huge.unwrap().set_len(super::super::MAX_FILE_BYTES + 1).unwrap();
    let error = read_folder(&folder).unwrap_err().to_string();
    assert!(error.contains("several `.entities.json` files"), "{error}");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn problems_of_policies_and_entities_are_told_together() {
    let error = check_with(
        "permit(principal, action == Action::\"raed\", resource);",
        "[{\"uid\": {\"type\": \"Dir\", \"id\": \"x\"}, \"attrs\": {}, \"parents\": []},\n {}]",
    )
    .unwrap_err();
    let places: Vec<String> = error.diagnostics().iter().map(Diagnostic::place).collect();
    assert_eq!(
        places,
        [
            "/etc/ambit/coder.cedar:1:29",
            "/etc/ambit/places.entities.json:1:32",
            "/etc/ambit/places.entities.json:2:2"
        ]
    );
}

/// A label with many places is read and lowered in good time, also where it is not asked for alone.
#[test]
fn a_label_with_many_places_is_lowered_in_good_time() {
    let places: Vec<String> = (0..50_000)
        .map(|n| entity(if n % 2 == 0 { "File" } else { "Dir" }, &format!("/x/{n}"), "many"))
        .collect();
    let labels = format!("[{}]", places.join(","));
    let text = "@id(\"p\") permit(principal, action, resource in Dir::\"/x\") unless { resource in Label::\"many\" };\n\
        @id(\"q\") permit(principal, action == Action::\"read\", resource in Label::\"many\") when { resource.path like \"*.pub\" };\n\
        @id(\"f\") forbid(principal, action == Action::\"write\", resource in Label::\"many\");";
    let begun = std::time::Instant::now();
    assert_eq!(says_of(text, &labels, Action::Read, &file("/x/y")), "+p");
    assert_eq!(says_of(text, &labels, Action::Read, &file("/x/3/a.pub")), "+q");
    assert_eq!(says_of(text, &labels, Action::Read, &file("/x/3/a")), "no_permit");
    // The test's machine may be slow; were it the square of the places, it would take hours.
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
    println!("{:?}", begun.elapsed());
}
