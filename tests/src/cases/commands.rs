//! Exit codes, and bad input: one clear message, a failure, and nothing disturbed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Case, case, fresh, shared};
use crate::actor::{Output, run_limited};
use crate::policy::with_base;
use crate::stage::ACTOR;
use crate::world::{CONFIG, PINS, Settings, World, file, ground};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("exit_codes_pass_through", || shared(exit_codes)).in_subset(),
        case("output_and_input_pass_through", || shared(streams)),
        case("refuses_without_root", || shared(without_root)),
        case("refuses_a_missing_policy", || shared(missing_policy)),
        case("refuses_an_empty_policy", || shared(empty_policy)),
        case("refuses_an_unreadable_policy", || shared(unreadable_policy)),
        case("refuses_a_huge_policy", || shared(huge_policy)),
        case("refuses_a_syntax_error_with_its_place", || shared(syntax_error)),
        case("refuses_an_unknown_action_with_a_guess", || shared(unknown_action)),
        case("refuses_a_relative_path", || shared(relative_path)),
        case("refuses_bad_agent_names", || shared(bad_names)),
        case("refuses_to_stop_an_unknown_agent", || shared(unknown_agent)),
        case("refuses_a_second_daemon", || shared(second_daemon)),
        case("policy_check_and_schema", || shared(check_and_schema)),
        case("refuses_an_unknown_config_key", || bad_config("colour = 1\n", &["colour"])),
        case("refuses_a_bad_mode", || {
            let table = "[[agent]]\nname = \"a\"\ncgroup = \"/cell-a\"\nmode = \"maybe\"\n";
            bad_config(table, &["maybe"])
        }),
        case("refuses_a_taken_metrics_port", taken_port),
        case("refuses_without_bpffs", no_bpffs),
    ]
}

fn exit_codes(world: &World) -> Result<()> {
    let agent = world.agent("coder").policy(&with_base(""))?;
    for code in ["0", "3", "200"] {
        agent.run(&[ACTOR, "exit", code])?.expect_code(code.parse()?)?;
    }
    agent.run(&["/bin/sh", "-c", "kill -TERM $$"])?.expect_code(143)?;
    let missing = agent.run(&["/usr/bin/no-such-program"])?;
    missing.expect_code(127)?;
    missing.expect_refusal(&["no-such-program"])?;
    let plain = file(&ground("coder")?.join("plain"), "no program")?;
    agent.run(&[&plain])?.expect_code(126)
}

fn streams(world: &World) -> Result<()> {
    let output = world.agent("streams").policy(&with_base(""))?.run(&[
        "/bin/sh",
        "-c",
        "echo to-out; echo to-err >&2",
    ])?;
    output.expect_code(0)?;
    ensure!(output.stdout.trim_end() == "to-out", "{}", output.whole());
    ensure!(output.stderr.contains("to-err"), "{}", output.whole());
    Ok(())
}

/// Runs a program as a user without power.
fn as_nobody(world: &World, words: &[&str]) -> Result<Output> {
    let mut command = Command::new(ACTOR);
    command.args(["user", "65534", "then", "become"]).args(words);
    run_limited(&mut command, world.stage.patience(Duration::from_secs(20)))
}

fn without_root(world: &World) -> Result<()> {
    let policy = fs::canonicalize(policy_file("rootless", &with_base(""))?)?;
    let policy = policy.display().to_string();
    for words in [
        &["/usr/bin/ambitd", "--config", CONFIG][..],
        &["/usr/bin/ambit", "run", "--agent", "a", "--policy", &policy, "--", "/bin/true"],
        &["/usr/bin/ambit", "stop", "a"],
        &["/usr/bin/ambit", "detach", "--all"],
    ] {
        as_nobody(world, words)?.expect_refusal(&["root"])?;
    }
    undisturbed(world)
}

fn undisturbed(world: &World) -> Result<()> {
    ensure!(world.metrics().is_ok(), "the daemon that ran before does not answer any more");
    world.ambit(&["agents"])?.expect_code(0)
}

fn policy_file(name: &str, text: &str) -> Result<String> {
    let folder = Path::new("/etc/ambit/runs");
    crate::stage::make_folder(folder)?;
    let path = folder.join(format!("{name}.cedar"));
    fs::write(&path, text)?;
    Ok(path.display().to_string())
}

/// That a run with this policy is refused before anything runs.
fn refused(world: &World, name: &str, path: &str, words: &[&str]) -> Result<()> {
    let output = world.agent(name).policy_file(Path::new(path)).run(&[ACTOR, "nothing"])?;
    output.expect_refusal(words)?;
    ensure!(output.steps().is_empty(), "the agent ran all the same: {}", output.whole());
    undisturbed(world)
}

fn missing_policy(world: &World) -> Result<()> {
    refused(world, "missing", "/etc/ambit/runs/none.cedar", &["/etc/ambit/runs/none.cedar"])
}

fn empty_policy(world: &World) -> Result<()> {
    let path = policy_file("empty", "\n// nothing\n")?;
    refused(world, "empty", &path, &["empty.cedar"])
}

fn unreadable_policy(world: &World) -> Result<()> {
    // Root reads every file, so a folder stands for one that cannot be read.
    let folder = "/etc/ambit/runs/folder.cedar";
    fs::create_dir_all(folder)?;
    refused(world, "unreadable", folder, &["folder.cedar"])
}

fn huge_policy(world: &World) -> Result<()> {
    let path = "/etc/ambit/runs/huge.cedar";
    let file = fs::File::create(path)?;
    file.set_len(64 * 1024 * 1024)?;
    let result = refused(world, "huge", path, &["huge.cedar"]);
    fs::remove_file(path)?;
    result
}

fn syntax_error(world: &World) -> Result<()> {
    let path = policy_file("broken", "@id(\"x\")\npermit (principal, action resource);\n")?;
    refused(world, "broken", &path, &["broken.cedar:2:"])?;
    let checked = world.ambit(&["policy", "check", &path])?;
    checked.expect_refusal(&["broken.cedar:2:"])
}

fn unknown_action(world: &World) -> Result<()> {
    let text =
        "@id(\"x\") permit (principal, action == Action::\"wriet\", resource in Dir::\"/x\");\n";
    let path = policy_file("unknown", text)?;
    refused(world, "unknown", &path, &["wriet", "did you mean", "write", "unknown.cedar:1:"])
}

fn relative_path(world: &World) -> Result<()> {
    let text =
        "@id(\"x\") permit (principal, action == Action::\"read\", resource in Dir::\"src\");\n";
    let path = policy_file("relative", text)?;
    refused(world, "relative", &path, &["src", "absolute", "relative.cedar:1:"])
}

fn bad_names(world: &World) -> Result<()> {
    let path = policy_file("names", &with_base(""))?;
    let long = "n".repeat(64);
    for name in ["", "a/b", "a b", "a:b", "ä", &long] {
        refused(world, name, &path, &["name"]).with_context(|| format!("the name {name:?}"))?;
    }
    Ok(())
}

fn unknown_agent(world: &World) -> Result<()> {
    world.ambit(&["stop", "never-was"])?.expect_refusal(&["never-was"])?;
    undisturbed(world)
}

fn second_daemon(world: &World) -> Result<()> {
    let mut command = Command::new("/usr/bin/ambitd");
    command.args(["--config", CONFIG]);
    let output = run_limited(&mut command, world.stage.patience(Duration::from_secs(20)))?;
    output.expect_refusal(&["already"])?;
    undisturbed(world)
}

fn check_and_schema(world: &World) -> Result<()> {
    let good = policy_file("good", &with_base(""))?;
    world.ambit(&["policy", "check", &good])?.expect_code(0)?;
    let schema = world.ambit(&["policy", "schema"])?;
    schema.expect_code(0)?;
    for word in ["entity Agent", "Peer", "exec", "bind"] {
        ensure!(schema.stdout.contains(word), "no {word}: {}", schema.whole());
    }
    Ok(())
}

fn bad_config(more: &str, words: &[&str]) -> Result<()> {
    let settings = Settings { more: more.to_owned(), ..Settings::default() };
    let mut words = words.to_vec();
    words.push("ambit.toml");
    fresh(settings, move |world| daemon_refuses(world, &words))
}

/// That the daemon says no and leaves nothing behind.
fn daemon_refuses(world: &World, words: &[&str]) -> Result<()> {
    let mut command = Command::new("/usr/bin/ambitd");
    command.args(["--config", CONFIG]);
    let output = run_limited(&mut command, world.stage.patience(Duration::from_secs(20)))?;
    output.expect_refusal(words)?;
    ensure!(
        fs::read_dir(PINS).map_or(0, Iterator::count) == 0,
        "a daemon that refused to start left pins"
    );
    Ok(())
}

fn taken_port() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let settings = Settings { metrics: taken.local_addr()?.to_string(), ..Settings::default() };
    let port = taken.local_addr()?.port().to_string();
    fresh(settings, |world| daemon_refuses(world, &[&port, "metrics"]))
}

fn no_bpffs() -> Result<()> {
    let settings = Settings { pins: "/tmp/no-bpffs/ambit".to_owned(), ..Settings::default() };
    let result = fresh(settings, |world| {
        fs::create_dir_all("/tmp/no-bpffs")?;
        fs::set_permissions("/tmp/no-bpffs", fs::Permissions::from_mode(0o700))?;
        daemon_refuses(world, &["/tmp/no-bpffs/ambit", "mount -t bpf"])
    });
    let _ = fs::remove_dir_all("/tmp/no-bpffs");
    result
}
