//! Programs by content: what is said of one whose digest is known, and of one whose digest is not.

use agent_ebpf::{Action, JoinKey, PlaceCell};

use super::super::compare::{self, compare};
use super::super::content::{DIGESTS_MAX, Digest};
use super::super::explain::{Judge, explain};
use super::{check, coder, file, lowered, says, says_with};

const ONE: Digest = Digest([0x11; 32]);
const TWO: Digest = Digest([0x22; 32]);
const OTHER: Digest = Digest([0x33; 32]);

fn is(digest: Digest) -> String {
    format!("resource has sha256 && resource.sha256 == \"{digest}\"")
}

#[test]
fn a_copy_runs_and_a_changed_program_does_not() {
    let tables = lowered(&format!(
        "@id(\"git\") permit(principal, action == Action::\"exec\", resource) when {{ {} }};",
        is(ONE)
    ));
    for path in ["/usr/bin/git", "/tmp/copy"] {
        let exec = |content| says_with(&tables, Action::Exec, &file(path), content);
        assert_eq!(exec(Some(ONE)), "+git");
        assert_eq!(exec(Some(OTHER)), "no_permit");
        assert_eq!(exec(None), "hash_unknown");
    }
    assert_eq!(says(&tables, Action::Read, &file("/usr/bin/git")), "no_permit");
}

#[test]
fn a_forbidden_content_is_forbidden_under_every_name() {
    let tables = lowered(&format!(
        "@id(\"all\") permit(principal, action == Action::\"exec\", resource);\n\
         @id(\"bad\") forbid(principal, action == Action::\"exec\", resource) when {{ {} }};",
        is(ONE)
    ));
    let exec = |content| says_with(&tables, Action::Exec, &file("/tmp/x"), content);
    assert_eq!(exec(Some(ONE)), "-bad");
    assert_eq!(exec(Some(OTHER)), "+all");
    assert_eq!(exec(None), "hash_unknown");
}

#[test]
fn content_is_asked_for_only_where_it_can_make_a_difference() {
    let tables = lowered(&format!(
        "@id(\"git\") permit(principal, action == Action::\"exec\", resource == Program::\"/usr/bin/git\") \
           when {{ {} }};\n\
         @id(\"ls\") permit(principal, action == Action::\"exec\", resource == Program::\"/bin/ls\");\n\
         @id(\"no\") forbid(principal, action == Action::\"exec\", resource in Dir::\"/tmp\");\n\
         @id(\"bad\") forbid(principal, action == Action::\"exec\", resource) when {{ {} && \
           resource.path like \"*.so\" }};",
        is(ONE),
        is(TWO)
    ));
    let exec = |path, content| says_with(&tables, Action::Exec, &file(path), content);
    assert_eq!(exec("/usr/bin/git", None), "hash_unknown");
    assert_eq!(exec("/usr/bin/git", Some(ONE)), "+git");
    assert_eq!(exec("/usr/bin/git", Some(TWO)), "no_permit");
    // Nothing is asked of these: nothing could permit the first, forbid the second, or save the third.
    assert_eq!(exec("/bin/other.so", None), "no_permit");
    assert_eq!(exec("/bin/ls", None), "+ls");
    assert_eq!(exec("/tmp/git", None), "-no");
    assert_eq!(exec("/bin/other.so", Some(TWO)), "-bad");
}

#[test]
fn exceptions_and_lists_are_exact() {
    let tables = lowered(&format!(
        "@id(\"some\") permit(principal, action == Action::\"exec\", resource) \
           when {{ resource has sha256 && [\"{ONE}\", \"{TWO}\"].contains(resource.sha256) }} \
           unless {{ {} && resource in Dir::\"/tmp\" }};\n\
         @id(\"rest\") permit(principal, action == Action::\"exec\", resource in Dir::\"/opt\") \
           unless {{ {} }};",
        is(TWO),
        is(ONE)
    ));
    let exec = |path, content| says_with(&tables, Action::Exec, &file(path), Some(content));
    assert_eq!(exec("/bin/x", ONE), "+some");
    assert_eq!(exec("/bin/x", TWO), "+some");
    assert_eq!(exec("/tmp/x", TWO), "no_permit");
    assert_eq!(exec("/tmp/x", ONE), "+some");
    assert_eq!(exec("/opt/x", OTHER), "+rest");
    assert_eq!(exec("/bin/x", OTHER), "no_permit");
}

#[test]
fn a_policy_without_digests_asks_for_none() {
    let tables = lowered(
        "permit(principal, action, resource in Dir::\"/srv\") when { resource.path like \"*.sh\" };\n\
         permit(principal, action == Action::\"exec\", resource) when { resource has sha256 };",
    );
    assert!(tables.joins.keys().all(|key| key.facet & JoinKey::CONTENTS == 0));
    assert!(tables.places.values().all(|cell| cell.class & PlaceCell::BY_CONTENT == 0));
    assert_eq!(says(&tables, Action::Exec, &file("/bin/ls")), "+coder.cedar:2");
}

#[test]
fn too_many_digests_are_refused_with_place_and_count() {
    let rule = |number: usize| {
        let digest = Digest(std::array::from_fn(|at| (number >> (at % 2 * 8)) as u8));
        format!(
            "permit(principal, action == Action::\"exec\", resource) when {{ {} }};\n",
            is(digest)
        )
    };
    let text: String = (0..=DIGESTS_MAX).map(rule).collect();
    let error = check(&text).unwrap().lower(&coder(), &[]).unwrap_err().to_string();
    assert!(error.contains(&format!("more than {DIGESTS_MAX} different digests")), "{error}");
    assert!(error.contains("coder.cedar:"), "{error}");
    let text: String = (0..DIGESTS_MAX).map(rule).collect();
    let tables = check(&text).unwrap().lower(&coder(), &[]).unwrap();
    assert_eq!(tables.joins.len(), DIGESTS_MAX + 2);
}

#[test]
fn programs_named_by_path_and_content_are_read_ahead() {
    let tables = lowered(&format!(
        "permit(principal, action == Action::\"exec\", resource == Program::\"/usr/bin/git\") when {{ {} }};\n\
         permit(principal, action == Action::\"exec\", resource == Program::\"/bin/ls\");\n\
         permit(principal, action == Action::\"exec\", resource in Dir::\"/opt\") when {{ {} }};",
        is(ONE),
        is(TWO)
    ));
    let paths: Vec<&[u8]> = tables.programs.iter().map(Vec::as_slice).collect();
    assert_eq!(paths, [b"/opt".as_slice(), b"/usr/bin/git"]);
    assert!(tables.asks_contents());
}

#[test]
fn the_explanation_tells_the_content_and_whether_it_is_named() {
    let policies = check(&format!(
        "@id(\"git\") permit(principal, action == Action::\"exec\", resource) when {{ {} }};",
        is(ONE)
    ))
    .unwrap();
    let mut judge = Judge::new(&policies, coder(), &[]).unwrap();
    let mut asked = |content| {
        judge.set_content(content);
        explain(&policies, &judge, Action::Exec, &file("/usr/bin/git")).unwrap()
    };
    let known = asked(Some(ONE));
    assert!(known.allowed && known.content_is_named);
    assert!(known.text().contains(&format!("its SHA-256 is {ONE}, which a policy names")));
    let other = asked(Some(OTHER));
    assert!(!other.allowed && !other.content_is_named);
    assert!(other.text().contains("which no policy names"));
    let unknown = asked(None);
    assert_eq!((unknown.allowed, unknown.reason), (false, "hash_unknown"));
}

#[test]
fn a_difference_is_told_for_the_contents_that_it_is_about() {
    let says = |conditions: &str| {
        check(&format!(
            "@id(\"git\") permit(principal, action == Action::\"exec\", resource == Program::\"/usr/bin/git\") \
             {conditions};"
        ))
        .unwrap()
    };
    let told =
        |old: &str, new: &str| compare::text(&compare(&says(old), &says(new), None).unwrap());
    let (one, two) = (format!("when {{ {} }}", is(ONE)), format!("when {{ {} }}", is(TWO)));
    assert_eq!(told(&one, &one), "");
    assert_eq!(
        told(&one, &two),
        format!(
            "any other agent:\n\
             + exec    /usr/bin/git itself, with sha256 {TWO}  [(no_permit) -> git]\n\
             - exec    /usr/bin/git itself, with sha256 {ONE}  [git -> (no_permit)]\n"
        )
    );
    // What ceases to be for one content and all that is not named.
    let named = told("when { resource has sha256 }", &one);
    assert!(named.contains("with any other content  [git -> (no_permit)]"), "{named}");
    assert!(!named.contains(&format!("sha256 {ONE}")), "{named}");
    // What changes for every content is told as if nobody asked for it.
    let all = compare::text(
        &compare(
            &says(&one),
            &check(&format!("forbid(principal, action, resource) when {{ {} }};", is(ONE)))
                .unwrap(),
            None,
        )
        .unwrap(),
    );
    assert!(all.contains(&format!("- exec    /usr/bin/git itself, with sha256 {ONE}")), "{all}");
}
