//! What an agent must not touch, whatever its policy says, root or not.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{Case, case, shared};
use crate::actor::EPERM;
use crate::events::DENIED;
use crate::policy::{on_path, with_base};
use crate::world::{CONFIG, EVENTS, RUN, World, find_action, listener};

/// What the kernel says of writing to a program that runs.
const ETXTBSY: i64 = 26;

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("root_agents_cannot_write_ambits_own_files", || shared(own_files)).in_subset(),
        case("root_agents_cannot_read_events_and_socket_folder", || shared(own_secrets)),
        case("the_control_socket_refuses_agents", || shared(control_socket)).in_subset(),
        case("agents_cannot_call_bpf_where_lsm_judges", || shared(bpf)).in_subset(),
        case("agents_run_with_less_than_they_had", || shared(less_power)),
        case("agents_without_root_unless_asked_for", || shared(no_root)),
    ]
}

/// A policy that permits everything in the file tree.
fn everything() -> String {
    with_base(
        &(on_path("all-read", "permit", "read", "Dir", "/")
            + &on_path("all-write", "permit", "write", "Dir", "/")
            + &on_path("all-exec", "permit", "exec", "Dir", "/")),
    )
}

fn own_files(world: &World) -> Result<()> {
    let agent = world.agent("vandal").policy(&everything())?.as_root();
    let own = "/etc/ambit/runs/vandal.cedar";
    let events = world.events();
    let places = [own, CONFIG, EVENTS, "/usr/bin/ambit", "/usr/bin/ambitd"];
    let mut steps = vec!["nothing"];
    for place in places {
        steps.extend(["then", "open-write", place]);
    }
    steps.extend(["then", "create", "/etc/ambit/policy/mine.cedar"]);
    let output = agent.act(&steps)?;
    for place in places {
        let errno = output.errno(&format!("open-write {place}"))?;
        if errno == ETXTBSY {
            // The kernel's own refusal to write to a program that runs comes before all others.
            continue;
        }
        ensure!(errno == EPERM, "writing {place} ended with errno {errno}: {}", output.whole());
        events.wait("the denial, by the built-in rule", |event| {
            event.agent() == "vandal"
                && event.path() == place
                && event.verdict() == DENIED
                && event.policy() == "ambit:protected"
        })?;
    }
    output.expect("create", EPERM)
}

fn own_secrets(world: &World) -> Result<()> {
    let agent = world.agent("snoop").policy(&everything())?.as_root();
    let output = agent.act(&["open-read", EVENTS, "then", "list", RUN])?;
    output.expect("open-read", EPERM)?;
    output.expect("list", EPERM)
}

fn control_socket(world: &World) -> Result<()> {
    let agent = world.agent("caller").policy(&everything())?.as_root();
    let output = agent.run(&["/usr/bin/ambit", "agents"])?;
    ensure!(output.code != 0, "an agent may ask the daemon: {}", output.whole());
    let said = format!("{}{}", output.stdout, output.stderr);
    ensure!(!said.contains("panicked"), "{said}");
    // Not by a client of its own either: the socket itself asks who calls.
    let socket = format!("{RUN}/ambit.sock");
    let asked = agent.act(&["ask", &socket, "\"agents\""])?;
    let answer = asked.steps()[0]["answer"].as_str().unwrap_or_default().to_owned();
    ensure!(
        asked.errno("ask")? != 0 || answer.contains("a process of an agent may not"),
        "the socket answers an agent: {}",
        asked.whole()
    );
    // Who is no agent may ask.
    world.ambit(&["agents"])?.expect_code(0)
}

fn bpf(world: &World) -> Result<()> {
    let agent = world.agent("hacker").policy(&everything())?.as_root();
    let output = agent.act(&["bpf"])?;
    if world.enforced_by("bpf")?.contains("lsm") {
        output.expect("bpf", EPERM)?;
        world
            .all_events()
            .wait("the denied call", |event| {
                event.agent() == "hacker"
                    && event.text(&["unmapped", "privilege"]) == "bpf"
                    && event.verdict() == DENIED
            })
            .map(drop)
    } else {
        let doctor = world.doctor()?;
        let by = &find_action(&doctor, "bpf")
            .context("the doctor does not say that bpf(2) is not covered here")?["enforced_by"];
        ensure!(by.is_null() || by == "nothing" || by == "none", "the doctor claims bpf: {by}");
        Ok(())
    }
}

fn less_power(world: &World) -> Result<()> {
    let script = "while read -r key value; do case $key in NoNewPrivs:|Groups:|Uid:) \
                  echo \"$key $value\";; esac; done </proc/self/status";
    let output = world.agent("lesser").policy(&with_base(""))?.run(&["/bin/sh", "-c", script])?;
    for line in ["NoNewPrivs: 1", "Uid: 1000"] {
        ensure!(output.stdout.contains(line), "there is no `{line}`: {}", output.whole());
    }
    Ok(())
}

fn no_root(world: &World) -> Result<()> {
    let peer = listener("127.0.0.1:0")?;
    let output = world.agent("plain").policy(&with_base(""))?.option("--user").option("0").run(&[
        "/usr/bin/ambit-actor",
        "connect",
        "tcp",
        &peer,
    ]);
    // `--user` twice is an error too; the last word has to be about root either way.
    let output = match output {
        Ok(output)
            if output.stderr.contains("more than once") || output.stderr.contains("multiple") =>
        {
            let mut command = std::process::Command::new("/usr/bin/ambit");
            command
                .args(["run", "--agent", "plain", "--user", "0", "--policy"])
                .arg(Path::new("/etc/ambit/runs/plain.cedar"))
                .args(["--", "/usr/bin/ambit-actor", "nothing"]);
            crate::actor::run_limited(
                &mut command,
                world.stage.patience(std::time::Duration::from_secs(20)),
            )?
        }
        other => other?,
    };
    output.expect_refusal(&["root", "--allow-root"])
}
