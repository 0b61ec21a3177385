//! Machines that cannot carry Ambit: refused with one clear message, and an agent that is bounded
//! already stays so. The machine is changed in a mount namespace of its own, for one command alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Case, case, shared};
use crate::actor::{EPERM, Output, Running, run_limited};
use crate::policy::{on_path, on_peer, with_base};
use crate::stage::{ACTOR, USER, cgroup2};
use crate::world::{PATIENCE, PINS, SECOND_PINS, Settings, World, file, ground, listener};

/// What `ambit run` exits with when Ambit itself failed.
const OWN_FAILURE: i32 = 125;

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("refuses_a_kernel_without_type_information", || shared(no_btf)),
        case("refuses_a_kernel_that_is_too_old", || shared(too_old)),
        case("refuses_a_machine_without_cgroup2", || shared(no_cgroup2)),
        case("refuses_a_machine_without_bpffs", || shared(no_bpffs)),
        case("refuses_pins_of_a_running_daemon", || shared(taken_pins)),
        case("refuses_the_port_of_a_running_daemon", || shared(running_port)),
        case("refuses_users_and_leaves_agents_bounded", || shared(no_root)),
    ]
}

fn no_btf(world: &World) -> Result<()> {
    let change = ["bind-mount", "/dev/null", "/sys/kernel/btf/vmlinux"];
    refused(world, "no-btf", &change, &["/sys/kernel/btf/vmlinux", "BTF"])
}

fn too_old(world: &World) -> Result<()> {
    let release = file(&ground("release")?.join("osrelease"), "4.19.0-ambit\n")?;
    let change = ["bind-mount", &release, "/proc/sys/kernel/osrelease"];
    refused(world, "too-old", &change, &["4.19.0-ambit", "needs Linux 5.10 or later"])
}

fn no_cgroup2(world: &World) -> Result<()> {
    let mounted = cgroup2()?.display().to_string();
    refused(world, "no-cgroup2", &["unmount", &mounted], &["cgroup2", "mount -t cgroup2"])
}

/// The daemon mounts nothing: it says what to mount.
fn no_bpffs(world: &World) -> Result<()> {
    let change = ["unmount", "/sys/fs/bpf"];
    refused(world, "no-bpffs", &change, &[SECOND_PINS, "mount -t bpf bpf /sys/fs/bpf"])
}

/// A change of the machine after which nothing of a second Ambit starts.
fn refused(world: &World, name: &str, change: &[&str], words: &[&str]) -> Result<()> {
    let settings =
        Settings { pins: SECOND_PINS.to_owned(), metrics: String::new(), ..Settings::default() };
    beside_an_agent(world, name, |world, policy| {
        let config = world.second(&settings)?;
        for (program, code) in second_programs(config, policy) {
            let output = changed(world, change, &program)?;
            is_one_refusal(&output, code, words)?;
        }
        Ok(())
    })
}

/// A daemon of its own, and a run that would start one, with their exit codes.
fn second_programs<'a>(config: &'a str, policy: &'a str) -> [(Vec<&'a str>, i32); 2] {
    let daemon = vec!["/usr/bin/ambitd", "--config", config];
    let run = ["run", "--agent", "second", "--policy", policy, "--user", "1000", "--", "/bin/true"];
    let run = [&["/usr/bin/ambit", "--config", config], run.as_slice()].concat();
    [(daemon, 1), (run, OWN_FAILURE)]
}

/// Runs a program in a mount namespace of its own, after a change there.
fn changed(world: &World, change: &[&str], program: &[&str]) -> Result<Output> {
    let mut command = Command::new(ACTOR);
    command.args(["strict", "then", "unshare", "then"]).args(change);
    command.args(["then", "become"]).args(program);
    let output = run_limited(&mut command, world.stage.patience(PATIENCE))?;
    // The change was made, and the program ran.
    output.expect("unshare", 0)?;
    output.expect(change[0], 0)?;
    ensure!(output.errno("become").is_err(), "{}", output.whole());
    Ok(output)
}

/// One line, for a person, and the exit code of a failure.
fn is_one_refusal(output: &Output, code: i32, words: &[&str]) -> Result<()> {
    output.expect_code(code)?;
    output.expect_refusal(words)?;
    let lines = output.stderr.lines().filter(|line| !line.trim().is_empty()).count();
    ensure!(lines == 1, "the refusal has {lines} lines: {}", output.whole());
    Ok(())
}

/// Tries something while an agent lives that a daemon bounds, and sees that it is bounded as before.
/// The test gets the path of a policy, too.
fn beside_an_agent(
    world: &World,
    name: &str,
    test: impl FnOnce(&World, &str) -> Result<()>,
) -> Result<()> {
    let base = ground(name)?;
    let path = file(&base.join("key"), "hidden")?;
    let gate = base.join("go");
    let peer = listener("127.0.0.1:0")?;
    let policy = with_base(
        &(on_path("key", "forbid", "read", "File", &path)
            + &on_peer("site", "forbid", "connect", "tcp", &peer)),
    );
    let gate_path = gate.display().to_string();
    let steps = ["await", &gate_path, "then", "open-read", &path, "then", "connect", "tcp", &peer];
    let events = world.events();
    let agent: Running = world.agent(name).policy(&policy)?.start(&steps)?;
    events.wait("that the agent runs", |event| event.agent() == name)?;
    let pins = pins(PINS);

    test(world, &format!("/etc/ambit/runs/{name}.cedar"))?;

    ensure!(self::pins(PINS) == pins, "what refused to start changed the pins of what runs");
    ensure!(self::pins(SECOND_PINS).is_empty(), "what refused to start left pins");
    world.ambit(&["agents"])?.expect_code(0)?;
    file(&gate, "")?;
    let output = agent.finish()?;
    output.expect("open-read", EPERM)?;
    output.expect("connect", EPERM)?;
    events.wait("that its denial was told", |event| {
        event.agent() == name && event.path() == path && event.policy() == "key"
    })?;
    let labels = [("agent", name), ("action", "connect"), ("verdict", "denied")];
    world.wait("the metric counts its other one", || {
        Ok(world.metrics()?.value("ambit_actions_total", &labels) == Some(1.0))
    })
}

fn pins(folder: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Another folder for its socket does not make a daemon alone: its pins are taken.
fn taken_pins(world: &World) -> Result<()> {
    let settings = Settings { metrics: String::new(), ..Settings::default() };
    beside_an_agent(world, "taken-pins", |world, policy| {
        let config = world.second(&settings)?;
        for (program, code) in second_programs(config, policy) {
            is_one_refusal(&plain(world, &program)?, code, &["another ambitd runs", PINS])?;
        }
        Ok(())
    })
}

fn running_port(world: &World) -> Result<()> {
    let settings = Settings { pins: SECOND_PINS.to_owned(), ..Settings::default() };
    let port = settings.metrics.clone();
    beside_an_agent(world, "running-port", |world, policy| {
        let config = world.second(&settings)?;
        for (program, code) in second_programs(config, policy) {
            is_one_refusal(&plain(world, &program)?, code, &[&port, "daemon.metrics"])?;
        }
        Ok(())
    })
}

fn plain(world: &World, program: &[&str]) -> Result<Output> {
    let (first, rest) = program.split_first().context("no program")?;
    run_limited(Command::new(first).args(rest), world.stage.patience(PATIENCE))
}

fn no_root(world: &World) -> Result<()> {
    beside_an_agent(world, "no-root", |world, policy| {
        // Where the user can read both, so that root is all that is missing.
        let folder = Path::new("/etc/ambit");
        for (path, mode) in [(folder, 0o755), (&folder.join("runs"), 0o755)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        let user = USER.to_string();
        let config = world.second(&Settings::default())?;
        let programs = second_programs(config, policy);
        let detach = (vec!["/usr/bin/ambit", "detach", "--all"], 1);
        for (program, code) in programs.into_iter().chain([detach]) {
            let mut command = Command::new(ACTOR);
            command.args(["strict", "then", "user", &user, "then", "become"]).args(program);
            let output = run_limited(&mut command, world.stage.patience(Duration::from_secs(20)))?;
            is_one_refusal(&output, code, &["needs root", "sudo"])?;
        }
        Ok(())
    })
}
