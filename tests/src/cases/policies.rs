//! What is said of policies before the kernel keeps them, and what the kernel then does.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{Case, case, shared};
use crate::actor::EPERM;
use crate::policy::with_base;
use crate::stage::{ACTOR, make_folder};
use crate::world::{World, file, ground};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("explain_says_what_the_kernel_then_does", || shared(explain)).in_subset(),
        case("a_label_holds_for_ambit_run_and_is_explained", || shared(labelled)),
        case("explain_follows_links_and_judges_what_runs_along", || shared(follows)),
        case("explain_refuses_what_has_no_answer", || shared(no_answer)),
        case("diff_lists_what_becomes_reachable_and_what_ceases", || shared(diff)),
        case("policy_test_runs_the_expectations_that_are_shipped", || shared(expectations)),
        case("events_tell_the_deciding_policys_annotations", || shared(annotations)).in_subset(),
        case("refuses_a_malformed_annotation_with_its_place", || shared(malformed)),
    ]
}

fn written(name: &str, text: &str) -> Result<String> {
    let folder = Path::new("/etc/ambit/runs");
    make_folder(folder)?;
    let path = folder.join(name);
    fs::write(&path, text)?;
    Ok(path.display().to_string())
}

fn explain(world: &World) -> Result<()> {
    let folder = ground("explained")?;
    let (open, shut) = (file(&folder.join("open"), "text")?, file(&folder.join("shut"), "text")?);
    let text = with_base(&format!(
        "@id(\"all\") permit (principal, action == Action::\"read\", resource in Dir::{:?});\n\
         @id(\"shut\") forbid (principal, action, resource == File::{shut:?});\n",
        folder.display().to_string()
    ));
    let policy = written("explained.cedar", &text)?;
    let agent = world.agent("explained").policy(&text)?;
    for (action, step, path, allowed, by) in [
        ("read", "open-read", &open, true, "all"),
        ("read", "open-read", &shut, false, "shut"),
        ("write", "open-write", &open, false, ""),
    ] {
        let words = ["policy", "explain", "--agent", "explained", "--policy", &policy, "--json"];
        let said = world.ambit(&[&words[..], &[action, path]].concat())?;
        said.expect_code(if allowed { 0 } else { 1 })?;
        let value: Value = serde_json::from_str(&said.stdout)?;
        ensure!(value["allowed"] == json!(allowed), "{}", said.whole());
        let reported = value["judged"][0]["reported"].as_str().unwrap_or_default();
        ensure!(reported == by, "{}", said.whole());
        let done = agent.act(&[step, path])?;
        done.expect(step, if allowed { 0 } else { EPERM })?;
    }
    let words = ["policy", "explain", "--agent", "explained", "--policy", &policy];
    let said = world.ambit(&[&words[..], &["write", &open]].concat())?;
    ensure!(said.stdout.contains("no permit matches; the nearest:"), "{}", said.whole());
    ensure!(said.stdout.contains("all (") && said.stdout.contains("not write"), "{}", said.whole());
    // Nothing of Ambit's own can be opened by any policy.
    let said = world.ambit(&[&words[..], &["read", "/run/ambit/state"]].concat())?;
    said.expect_code(1)?;
    ensure!(said.stdout.contains("ambit:protected"), "{}", said.whole());
    Ok(())
}

fn labelled(world: &World) -> Result<()> {
    let folder = ground("labelled")?;
    let (open, shut) = (file(&folder.join("open"), "text")?, file(&folder.join("shut"), "text")?);
    let policy = written(
        "labelled.cedar",
        &with_base(&format!(
            "@id(\"all\") permit (principal, action, resource in Dir::{:?});\n\
             @id(\"shut\") forbid (principal, action, resource in Label::\"sensitive\");\n",
            folder.display().to_string()
        )),
    )?;
    let label = |kind: &str, id: &str, label: &str| {
        json!({
            "uid": {"type": kind, "id": id}, "attrs": {}, "parents": [{"type": "Label", "id": label}],
        })
    };
    let places =
        json!([label("File", &shut, "secret"), label("Label", "secret", "sensitive")]).to_string();
    let places = written("labelled.entities.json", &places)?;
    let both = ["--policy", &policy, "--policy", &places];
    let events = world.events();
    let agent = world.agent("labelled").option(both[0]).option(both[1]);
    let agent = agent.option(both[2]).option(both[3]);
    for (step, path, errno) in [
        ("open-read", &open, 0),
        ("open-read", &shut, EPERM),
        ("open-write", &open, 0),
        ("open-write", &shut, EPERM),
    ] {
        agent.act(&[step, path])?.expect(step, errno)?;
    }
    let told = events.wait("the denial", |event| event.path() == shut)?;
    ensure!(told.policy() == "shut", "{}", told.brief());
    world.bystander(&["open-read", &shut])?.expect("open-read", 0)?;
    // Without its entities nothing has the label, which is said.
    let said = world.ambit(&["policy", "check", &policy])?;
    said.expect_code(0)?;
    ensure!(said.stdout.contains("no place has the label `sensitive`"), "{}", said.whole());
    let said = world.ambit(&["policy", "check", &policy, &places])?;
    said.expect_code(0)?;
    ensure!(!said.whole().contains("no place has"), "{}", said.whole());
    let words = ["policy", "explain", "--agent", "labelled"];
    let said = world.ambit(&[&words[..], &both, &["read", &shut]].concat())?;
    said.expect_code(1)?;
    let wanted = format!("it is in the label secret in sensitive, given to File::{shut:?}");
    ensure!(said.stdout.contains(&wanted), "{}", said.whole());
    Ok(())
}

fn follows(world: &World) -> Result<()> {
    let folder = ground("followed-links")?;
    let target = file(&folder.join("target"), "text")?;
    let link = folder.join("link").display().to_string();
    std::os::unix::fs::symlink("target", &link)?;
    fs::hard_link(&target, folder.join("second"))?;
    let script = file(&folder.join("script"), "#!/bin/sh\n")?;
    let text = format!(
        "@id(\"it\") permit (principal, action == Action::\"read\", resource == File::{target:?});\n\
         @id(\"run\") permit (principal, action == Action::\"exec\", resource == Program::{script:?});\n"
    );
    let policy = written("links.cedar", &text)?;
    let words = ["policy", "explain", "--agent", "a", "--policy", &policy];
    let said = world.ambit(&[&words[..], &["read", &link]].concat())?;
    said.expect_code(0)?;
    ensure!(said.stdout.contains(&format!("{link} leads to {target}")), "{}", said.whole());
    ensure!(said.stdout.contains("2 names"), "{}", said.whole());
    // The script is permitted, the shell that runs it is not.
    let said = world.ambit(&[&words[..], &["exec", &script]].concat())?;
    said.expect_code(1)?;
    ensure!(said.stdout.contains("interpreter"), "{}", said.whole());
    let missing = folder.join("missing").display().to_string();
    let said = world.ambit(&[&words[..], &["read", &missing]].concat())?;
    said.expect_code(1)?;
    ensure!(said.stdout.contains("there is no"), "{}", said.whole());
    Ok(())
}

fn no_answer(world: &World) -> Result<()> {
    let policy = written("fine.cedar", &with_base(""))?;
    let broken = written("broken-too.cedar", "permit(principal, action resource);\n")?;
    let given = ["policy", "explain", "--agent", "a", "--policy"];
    for (words, said) in [
        ([&policy, "raed", "/x"], "raed"),
        ([&policy, "read", "x"], "absolute"),
        ([&policy, "connect", "127.0.0.1"], "address and port"),
        ([&broken, "read", "/x"], "broken-too.cedar:1:"),
        (["/etc/ambit/runs/none.cedar", "read", "/x"], "none.cedar"),
    ] {
        let output = world.ambit(&[&given[..], &words].concat())?;
        output.expect_code(2)?;
        ensure!(output.stderr.contains(said), "{}", output.whole());
    }
    let output = world.ambit(&["policy", "diff", &policy, &broken])?;
    output.expect_code(2)
}

fn diff(world: &World) -> Result<()> {
    let old = written(
        "old.cedar",
        "@id(\"data\") permit (principal, action == Action::\"read\", resource in Dir::\"/srv/data\");\n",
    )?;
    let new = written(
        "new.cedar",
        "@id(\"srv\") permit (principal, action == Action::\"read\", resource in Dir::\"/srv\");\n\
         @id(\"key\") forbid (principal, action, resource in Dir::\"/srv/data/key\");\n",
    )?;
    let same = world.ambit(&["policy", "diff", &old, &old])?;
    same.expect_code(0)?;
    ensure!(same.stdout.is_empty(), "{}", same.whole());
    let differ = world.ambit(&["policy", "diff", &old, &new])?;
    differ.expect_code(1)?;
    let wanted = "any other agent:\n\
        + read    /srv and beneath, except /srv/data and beneath  [(no_permit) -> srv]\n\
        - read    /srv/data/key and beneath  [data -> key]\n";
    ensure!(differ.stdout == wanted, "{}", differ.whole());
    let json = world.ambit(&["policy", "diff", "--agent", "a", "--json", &old, &new])?;
    json.expect_code(1)?;
    let value: Value = serde_json::from_str(&json.stdout)?;
    ensure!(value[0]["agents"][0] == "agent a", "{}", json.whole());
    ensure!(value[0]["changes"][1]["became"] == "unreachable", "{}", json.whole());
    Ok(())
}

fn expectations(world: &World) -> Result<()> {
    written("coder.cedar", include_str!("../../../deploy/policies/coder.cedar"))?;
    let kept =
        written("coder.expect.toml", include_str!("../../../deploy/policies/coder.expect.toml"))?;
    let said = world.ambit(&["policy", "test", &kept])?;
    said.expect_code(0)?;
    ensure!(said.stdout.ends_with(" 0 failed\n"), "{}", said.whole());
    let broken = written(
        "broken.expect.toml",
        "policy = \"coder.cedar\"\n[[agent]]\nname = \"coder\"\nallow = [{ read = \"/etc/shadow\" }]\n",
    )?;
    let said = world.ambit(&["policy", "test", &broken])?;
    said.expect_code(1)?;
    ensure!(said.stdout.contains("deny by shadow"), "{}", said.whole());
    let said = world.ambit(&["policy", "test", "--json", &broken])?;
    let value: Value = serde_json::from_str(&said.stdout)?;
    ensure!(value["failed"][0]["line"] == 4, "{}", said.whole());
    world.ambit(&["policy", "test", "/nowhere.toml"])?.expect_code(2)
}

fn annotations(world: &World) -> Result<()> {
    let path = file(&ground("annotated")?.join("key"), "text")?;
    let events = world.events();
    let text = with_base(&format!(
        "@id(\"keys\") @reason(\"Keys are not for agents\") @severity(\"critical\") \
         @asi(\"ASI03\") @attack(\"T1552.001\")\n\
         forbid (principal, action == Action::\"read\", resource == File::{path:?});\n"
    ));
    world
        .agent("annotated")
        .policy(&text)?
        .act(&["open-read", &path])?
        .expect("open-read", EPERM)?;
    let event =
        events.wait("the denial", |event| event.agent() == "annotated" && event.path() == path)?;
    let value = &event.0;
    ensure!(event.policy() == "keys", "{value}");
    ensure!(value["policy"]["desc"] == "Keys are not for agents", "{value}");
    ensure!(value["severity_id"] == 5, "{value}");
    let attacks =
        json!([{ "technique": { "uid": "T1552" }, "sub_technique": { "uid": "T1552.001" } }]);
    ensure!(value["attacks"] == attacks, "{value}");
    ensure!(value["unmapped"]["asi"] == json!(["ASI03"]), "{value}");
    Ok(())
}

fn malformed(world: &World) -> Result<()> {
    let path = written(
        "malformed.cedar",
        "@id(\"x\")\n@severity(\"hgih\")\npermit (principal, action, resource);\n",
    )?;
    let words = ["malformed.cedar:2:1", "did you mean `high`?"];
    world
        .agent("malformed")
        .policy_file(Path::new(&path))
        .run(&[ACTOR, "nothing"])?
        .expect_refusal(&words)?;
    world.ambit(&["policy", "check", &path])?.expect_refusal(&words)
}
