//! Every form that is refused: the place, the text underlined, and what to write instead.

mod conditions;
mod heads;

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

#[test]
fn a_refusal_looks_like_a_compilers() {
    let found = problems("permit(principal, action, resource)\n  unless { context.task };\n");
    assert_eq!(
        found[0].to_string(),
        "error: `context` in a condition cannot be kept in the kernel
 --> /etc/ambit/coder.cedar:2:12
  |
2 |   unless { context.task };
  |            ^^^^^^^^^^^^
  = help: no action has a context: what is known of an action is its agent, its kind and its resource"
    );
}

#[test]
fn syntax_errors_have_a_place() {
    for (text, at) in [
        ("permit(principal, action, resource)", None),
        ("allow(principal, action, resource);", Some("allow")),
        ("permit(principal action, resource);", Some("action")),
        ("permit(principal, action, resource) when { resource.port = 443 };", None),
        ("permit(principal, action, resource) when { resource.port == };", Some("}")),
        ("permit(principal, action, resource) when {};", None),
        ("permit(principal, action, resource) where { true };", None),
        ("permit(principal, resource);", None),
        ("permit(principal, action, resource) when { foo(1) };", None),
        ("permit(principal, action, resource == File::\"/x);", None),
        (";", Some(";")),
        ("\u{feff}permit(principal, action, resource);", None),
        ("permit(principal, action, resource) when { \"\\q\" == 1 };", None),
        ("@id(\"x\") @id(\"y\") permit(principal, action, resource);", None),
        ("permit(principal == User, action, resource);", None),
    ] {
        for problem in problems(text) {
            assert!(problem.span.is_some() && problem.help.is_some(), "{problem}");
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
        assert!(found[0].message.contains("more than 1000 words"), "{}", found[0]);
    }
    // As deep and as long as is allowed, the parser bears it.
    let deep = format!("{}resource.port == 1{}", "(".repeat(60), ")".repeat(60));
    let long = vec!["resource.port == 1"; 160].join(" && ");
    for condition in [deep, long] {
        let head = "permit(principal, action == Action::\"connect\", resource is Peer)";
        check(&format!("{head} when {{ {condition} }};")).unwrap();
    }
    let sum = vec!["1"; 420].join(" + ");
    let sets = format!("{}{sum}{} == 1", "[".repeat(60), "]".repeat(60));
    let either = vec!["1 == 1"; 240].join(" || ");
    let fields = format!("{} == 1", vec!["resource"; 480].join("."));
    for condition in [sets, either, fields] {
        let text = format!("permit(principal, action, resource) when {{ {condition} }};");
        let found = problems(&text);
        assert!(!found[0].message.contains("more than"), "{}", found[0]);
    }
    let branches = format!("{}true", "if true then true else ".repeat(190));
    let nested = format!("{}true{}", "if ".repeat(150), " then true else false".repeat(150));
    for condition in [branches, nested] {
        let text = format!("permit(principal, action, resource) when {{ {condition} }};");
        check(&text).unwrap().lower(&super::coder(), &[]).unwrap();
    }
}

#[test]
fn all_problems_of_all_files_are_reported_in_order() {
    let first = source(
        "permit(principal, action, resource)\nunless { context.a };\npermit(principal, action, resource;\npermit(principal, action == Action::\"raed\", resource == File::\"x\");\npermit(principal, action == Action::\"connect\", resource is Peer) when { resource.port == 1 && resource.port == 2 };",
    );
    let second = super::super::Source {
        name: "b.cedar".to_owned(),
        text: "forbid(principal, action, resource is Fil);".to_owned(),
    };
    let empty =
        super::super::Source { name: "c.cedar".to_owned(), text: "// nothing\n".to_owned() };
    let error = super::super::Policies::check(&[first, second, empty]).unwrap_err();
    let places: Vec<String> = error.diagnostics().iter().map(Diagnostic::place).collect();
    assert_eq!(
        places,
        [
            "/etc/ambit/coder.cedar:2:10",
            "/etc/ambit/coder.cedar:3:35",
            "/etc/ambit/coder.cedar:4:29",
            "/etc/ambit/coder.cedar:4:63",
            "/etc/ambit/coder.cedar:5:66",
            "b.cedar:1:39",
            "c.cedar"
        ]
    );
    assert!(error.to_string().ends_with("policy refused: 6 errors, 1 warning"), "{error}");
}

#[test]
fn a_message_carries_no_control_characters() {
    let found = problems("permit(principal, action, resource == File::\"\u{1b}[31mx\");");
    assert!(!found[0].to_string().contains('\u{1b}'));
}

#[test]
fn a_place_in_a_very_long_line_is_shown_in_part() {
    let text =
        format!("{}permit(principal, action, resource == File::\"x\");", " ".repeat(100_000));
    let found = problems(&text);
    assert_eq!(underlined(&found[0]), "\"x\"");
    assert!(found[0].to_string().len() < 1000);
    assert_eq!(found[0].span.as_ref().unwrap().column, 100_045);
}

#[test]
fn a_file_of_faults_only_is_refused_in_good_time() {
    let start = std::time::Instant::now();
    let many = problems(&";".repeat(4 << 20));
    assert_eq!(many.len(), 1);
    assert!(many[0].message.contains("more than 250000 policies"), "{}", many[0]);
    // All on one line, so that finding each place must not mean counting the line.
    let faulty = problems(&"permit(principal, action, resource == File::\"x\"); ä;".repeat(2_000));
    assert_eq!(faulty.len(), 4_000);
    let last = faulty.last().unwrap().span.as_ref().unwrap();
    assert_eq!((last.line, last.column), (1, 2_000 * 52 - 1));
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
}
