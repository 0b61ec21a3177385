//! A new policy while agents run: it holds, or the old one does.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::{Case, case, fresh};
use crate::actor::EPERM;
use crate::policy::{on_path, with_base};
use crate::stage::{USER, make_folder};
use crate::world::{POLICIES, Settings, World, agent_table, file, ground};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("sighup_puts_a_new_policy_in_force", || with_cell(by_signal)),
        case("a_changed_file_puts_a_new_policy_in_force", || with_cell(by_change)),
        case("a_broken_policy_leaves_the_old_one_in_force", || with_cell(broken)).in_subset(),
        case("a_removed_policy_takes_its_permits_along", || with_cell(removed)),
        case("a_reload_reaches_processes_that_already_run", || with_cell(running)),
    ]
}

/// A daemon with one configured agent, a file, and a policy that permits to read it.
fn with_cell(test: impl FnOnce(&mut World, &str) -> Result<()>) -> Result<()> {
    let settings =
        Settings { more: agent_table("cell", "cell-reload", "enforce"), ..Settings::default() };
    fresh(settings, |world| {
        let path = file(&ground("reload")?.join("file"), "text")?;
        world.policy("base", &with_base(""))?;
        world.policy("own", &on_path("own", "permit", "read", "File", &path))?;
        make_folder(&world.attach.join("cell-reload"))?;
        world.start()?;
        reads(world, &path, 0)?;
        test(world, &path)
    })
}

fn reads(world: &World, path: &str, errno: i64) -> Result<()> {
    world
        .in_cgroup(&world.attach.join("cell-reload"), USER, &["open-read", path])?
        .expect("open-read", errno)
}

fn generation(world: &World) -> Result<f64> {
    Ok(world.metrics()?.value("ambit_policy_generation", &[]).unwrap_or(0.0))
}

fn errors(world: &World) -> Result<f64> {
    Ok(world.metrics()?.value("ambit_policy_load_errors_total", &[]).unwrap_or(0.0))
}

fn forbid(world: &World, path: &str) -> Result<()> {
    world.policy("own", &on_path("own", "forbid", "read", "File", path)).map(drop)
}

fn by_signal(world: &mut World, path: &str) -> Result<()> {
    let before = generation(world)?;
    forbid(world, path)?;
    world.signal(Signal::SIGHUP)?;
    world.wait("a new generation", || Ok(generation(world)? > before))?;
    reads(world, path, EPERM)
}

fn by_change(world: &mut World, path: &str) -> Result<()> {
    let before = generation(world)?;
    forbid(world, path)?;
    world.wait("a new generation, without being told", || Ok(generation(world)? > before))?;
    reads(world, path, EPERM)
}

fn broken(world: &mut World, path: &str) -> Result<()> {
    let before = errors(world)?;
    let generation_before = generation(world)?;
    world.policy("own", "permit (principal, action, resource")?;
    world.signal(Signal::SIGHUP)?;
    world.wait("the error is counted", || Ok(errors(world)? > before))?;
    reads(world, path, 0)?;
    // The base still permits what it did, and the default still denies.
    let other = file(&Path::new("/ground/reload").join("other"), "text")?;
    reads(world, &other, EPERM)?;
    ensure!(
        (generation(world)? - generation_before).abs() < 0.5,
        "a broken policy made a new generation"
    );
    ensure!(world.log().contains("own.cedar"), "the log does not name the file");
    // And a good one after it holds.
    forbid(world, path)?;
    world.signal(Signal::SIGHUP)?;
    world.wait("a new generation", || Ok(generation(world)? > generation_before))?;
    reads(world, path, EPERM)
}

fn removed(world: &mut World, path: &str) -> Result<()> {
    let before = generation(world)?;
    std::fs::remove_file(Path::new(POLICIES).join("own.cedar"))?;
    world.signal(Signal::SIGHUP)?;
    world.wait("a new generation", || Ok(generation(world)? > before))?;
    reads(world, path, EPERM)
}

fn running(world: &mut World, path: &str) -> Result<()> {
    let gate = Path::new("/ground/reload").join("go");
    let gate_path = gate.display().to_string();
    let mut command = crate::actor::entering(
        &world.attach.join("cell-reload"),
        USER,
        &["open-read", path, "then", "await", &gate_path, "then", "burst", "1", path],
    );
    let mut taken = std::process::Command::new("true");
    std::mem::swap(&mut taken, &mut command);
    let events = world.events();
    let agent = crate::actor::Running::start(taken, world.stage.patience(Duration::from_secs(60)))?;
    events.wait("its first read", |event| event.path() == path)?;
    let before = generation(world)?;
    forbid(world, path)?;
    world.signal(Signal::SIGHUP)?;
    world.wait("a new generation", || Ok(generation(world)? > before))?;
    file(&gate, "")?;
    let output = agent.finish()?;
    output.expect("open-read", 0)?;
    output.expect("burst", EPERM)
}
