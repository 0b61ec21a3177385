//! The story: nothing lost, nothing secret told, readable.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Case, case, shared};
use crate::actor::EPERM;
use crate::events::{ALLOWED, Event, LAUNCH, LOG, PROCESS};
use crate::policy::with_base;
use crate::stage::ACTOR;
use crate::world::{EVENTS, PATIENCE, World, file, ground};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("tells_every_one_of_many_short_processes", || shared(short_processes))
            .within(Duration::from_secs(150)),
        case("takes_secrets_out_of_command_lines", || shared(redaction)).in_subset(),
        case("events_are_readable_lines", || shared(readable)),
        case("events_follow_shows_what_comes", || shared(follow)),
        case("audit_ends_with_the_lines_that_would_permit", || shared(suggestions)),
        case("events_of_a_run_go_where_it_asks", || shared(own_events_file)),
        case("the_events_file_is_for_root_only", || shared(file_mode)),
        case("every_event_has_its_common_fields", || shared(common_fields)),
        case("metrics_have_the_stated_names", || shared(metric_names)),
        case("doctor_says_what_holds", || shared(doctor)).in_subset(),
    ]
}

/// Short processes, each of which is told of. An emulated machine starts some fifteen a second.
const SHORT: usize = 2000;
const SHORT_OF_GUESTS: usize = 500;

fn short_processes(world: &World) -> Result<()> {
    let count = if world.stage.guest { SHORT_OF_GUESTS } else { SHORT };
    let events = world.events();
    let lost = world.metrics()?.value("ambit_events_lost_total", &[]).unwrap_or(0.0);
    let output = world.agent("busy").policy(&with_base(""))?.act(&[
        "spawn",
        &count.to_string(),
        ACTOR,
        "nothing",
    ])?;
    output.expect("spawn", 0)?;
    ensure!(output.steps()[0]["started"] == count, "{}", output.whole());
    let told = || -> Result<std::collections::HashSet<u64>> {
        Ok(events
            .so_far()?
            .iter()
            .filter(|event| {
                event.agent() == "busy"
                    && event.class() == PROCESS
                    && event.activity() == LAUNCH
                    && event.verdict() == ALLOWED
            })
            .filter_map(|event| {
                let line = event.command_line();
                line.strip_prefix(ACTOR)?.strip_prefix(" nothing ")?.parse().ok()
            })
            .collect())
    };
    let result = world.wait("each launch is told", || Ok(told()?.len() == count));
    result.with_context(|| {
        format!("{} of {count} launches were told", told().map_or(0, |told| told.len()))
    })?;
    let is_gap = |event: &Event| !event.0["unmapped"]["gap"].is_null();
    let gaps = events.so_far()?.iter().filter(|event| is_gap(event)).count();
    ensure!(gaps == 0, "{gaps} gaps were told");
    let now = world.metrics()?.value("ambit_events_lost_total", &[]).unwrap_or(0.0);
    ensure!((now - lost).abs() < 0.5, "{} events were lost", now - lost);
    Ok(())
}

fn redaction(world: &World) -> Result<()> {
    let secrets = [
        "ghp_0123456789abcdefghijABCDEFGHIJ012345",
        "AKIAIOSFODNN7EXAMPLE",
        "hunter2hunter2",
        "sw0rdf1sh",
    ];
    let [token, key, password, in_url] = secrets;
    let events = world.events();
    let password = format!("--password={password}");
    let url = format!("https://me:{in_url}@example.org/");
    let header = format!("Authorization: Bearer {token}");
    world.agent("talker").policy(&with_base(""))?.act(&[
        "exec",
        ACTOR,
        "nothing",
        "-H",
        &header,
        key,
        &password,
        &url,
        "end-of-line",
    ])?;
    // Of who started it, whose own command line has them too, and of what was started.
    world.wait("both launches are told", || {
        let launches = events.so_far()?.into_iter().filter(|event| {
            event.agent() == "talker"
                && event.class() == PROCESS
                && event.activity() == LAUNCH
                && event.command_line().ends_with("end-of-line")
        });
        Ok(launches.count() == 2)
    })?;
    let text = std::fs::read_to_string(EVENTS)?;
    for secret in secrets {
        ensure!(!text.contains(secret), "`{secret}` stands in the events");
    }
    Ok(())
}

/// One denied read by an agent of this name.
fn one_denial(world: &World, name: &str) -> Result<String> {
    let path = file(&ground(name)?.join("file"), "text")?;
    let events = world.events();
    let output = world.agent(name).policy(&with_base(""))?.act(&["open-read", &path])?;
    output.expect("open-read", EPERM)?;
    events.wait("the denial", |event| event.agent() == name && event.path() == path)?;
    Ok(path)
}

fn readable(world: &World) -> Result<()> {
    let path = one_denial(world, "readable")?;
    let all = world.ambit(&["events", "--agent", "readable", EVENTS])?;
    all.expect_code(0)?;
    let denied = world.ambit(&["events", "--denied", "--agent", "readable", EVENTS])?;
    let lines: Vec<&str> = denied.stdout.lines().filter(|line| line.contains(&path)).collect();
    ensure!(
        lines.len() == 1 && lines[0].contains("readable") && !lines[0].starts_with('{'),
        "one denial is shown as {lines:?}"
    );
    ensure!(
        all.stdout.lines().count() > denied.stdout.lines().count(),
        "--denied leaves nothing out: {}",
        all.whole()
    );
    let none = world.ambit(&["events", "--agent", "nobody-of-that-name", EVENTS])?;
    ensure!(none.stdout.is_empty(), "{}", none.whole());
    Ok(())
}

fn follow(world: &World) -> Result<()> {
    let shown = ground("followed-by")?.join("shown");
    let mut command = std::process::Command::new("/bin/sh");
    command.args(["-c", "exec /usr/bin/ambit events --follow --agent followed >\"$0\""]);
    command.arg(&shown);
    let _following = crate::actor::Running::start(command, world.stage.patience(PATIENCE))?;
    // One is there when it has begun, the other comes while it follows.
    for count in 1..=2 {
        let path = one_denial(world, "followed")?;
        world.wait("the denial is shown", || {
            let text = std::fs::read_to_string(&shown).unwrap_or_default();
            let denied = |line: &&str| line.contains("DENIED") && line.contains(&path);
            Ok(text.lines().filter(denied).count() == count)
        })?;
    }
    Ok(())
}

fn suggestions(world: &World) -> Result<()> {
    let path = file(&ground("learner")?.join("file"), "text")?;
    let output = world
        .agent("learner")
        .policy(&with_base(""))?
        .option("--audit")
        .act(&["open-read", &path])?;
    output.expect("open-read", 0)?;
    let said = format!("{}{}", output.stdout, output.stderr);
    let line = said
        .lines()
        .find(|line| line.contains("permit") && line.contains(&path))
        .with_context(|| format!("no line would permit {path}: {}", output.whole()))?;
    let line = line.trim().to_owned();
    // What it proposes is policy, and enough.
    let second = world.agent("learner").policy(&with_base(&line))?.act(&["open-read", &path])?;
    second.expect("open-read", 0)
}

fn own_events_file(world: &World) -> Result<()> {
    let path = file(&ground("aside")?.join("file"), "text")?;
    let own = "/var/log/ambit/aside.jsonl";
    world
        .agent("aside")
        .policy(&with_base(""))?
        .option("--events")
        .option(own)
        .act(&["open-read", &path])?
        .expect("open-read", EPERM)?;
    let events =
        crate::events::Events::whole(std::path::Path::new(own), world.stage.patience(PATIENCE));
    events.wait("the denial in a file of its own", |event| event.path() == path)?;
    // Not through a link: who may make one must not choose the file.
    std::os::unix::fs::symlink("/var/log/ambit/target", "/var/log/ambit/link.jsonl")?;
    let refused = world
        .agent("linked")
        .policy(&with_base(""))?
        .option("--events")
        .option("/var/log/ambit/link.jsonl")
        .run(&[ACTOR, "nothing"])?;
    refused.expect_refusal(&["link"])?;
    ensure!(!std::path::Path::new("/var/log/ambit/target").exists(), "the link was followed");
    Ok(())
}

fn file_mode(world: &World) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    one_denial(world, "mode")?;
    let data = std::fs::metadata(EVENTS)?;
    ensure!(
        data.mode() & 0o7777 == 0o600 && data.uid() == 0,
        "the events file has mode {:o} and owner {}",
        data.mode() & 0o7777,
        data.uid()
    );
    Ok(())
}

fn common_fields(world: &World) -> Result<()> {
    one_denial(world, "fields")?;
    for event in world.all_events().so_far()? {
        let value = &event.0;
        ensure!(value["metadata"]["version"] == "1.8.0", "{value}");
        ensure!(value["time"].is_u64() && value["time_dt"].is_string(), "{value}");
        ensure!(
            value["type_uid"].as_u64() == Some(event.class() * 100 + event.activity()),
            "{value}"
        );
        if event.class() != LOG {
            ensure!(event.pid() > 0 && !event.agent().is_empty(), "{value}");
            ensure!(value["actor"]["process"]["user"]["uid"].is_string(), "{value}");
            ensure!(value["actor"]["process"]["created_time"].is_i64(), "{value}");
        }
    }
    Ok(())
}

fn metric_names(world: &World) -> Result<()> {
    one_denial(world, "named")?;
    let metrics = world.metrics()?;
    for name in [
        "ambit_actions_total",
        "ambit_events_emitted_total",
        "ambit_events_lost_total",
        "ambit_policy_generation",
        "ambit_policy_load_errors_total",
        "ambit_hook_attached",
        "ambit_build_info",
        "ambit_kernel_memory_bytes",
        "ambit_table_entries",
        "ambit_table_max_entries",
        "ambit_action_enforced",
        "ambit_heartbeat_time_seconds",
        "ambit_heartbeat_interval_seconds",
        "ambit_policy_last_load_successful",
        "ambit_sink_stalled",
    ] {
        ensure!(metrics.value(name, &[]).is_some(), "there is no metric {name}");
    }
    Ok(())
}

fn doctor(world: &World) -> Result<()> {
    let doctor = world.doctor()?;
    for action in ["exec", "read", "write", "connect", "send", "bind"] {
        let said = crate::world::find_action(&doctor, action)?;
        ensure!(said.get("enforced_by").is_some(), "{action}: {said}");
        ensure!(said.get("observed_by").is_some(), "{action}: {said}");
        ensure!(said["why"].is_string(), "{action}: {said}");
        ensure!(world.enforced_by(action)? != "nothing", "{action} is not enforced: {said}");
    }
    let memory = doctor["kernel_memory_bytes"].as_u64().unwrap_or(0);
    ensure!(memory > 1 << 20, "the tables have {memory} bytes: {doctor}");
    let programs = doctor["programs"].as_array().cloned().unwrap_or_default();
    ensure!(!programs.is_empty(), "no programs are listed: {doctor}");
    let text = world.ambit(&["doctor"])?;
    text.expect_code(0)?;
    for word in ["exec", "read", "write", "connect", "bind"] {
        ensure!(text.stdout.contains(word), "no word of {word}: {}", text.whole());
    }
    Ok(())
}
