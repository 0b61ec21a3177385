//! A new policy while agents run: it holds, or the old one does.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::{Case, case, fresh};
use crate::actor::EPERM;
use crate::events::DENIED;
use crate::policy::{on_path, with_base};
use crate::stage::{USER, make_folder};
use crate::world::{POLICIES, Settings, World, agent_table, file, ground};

/// How long the agent of [`swapped`] may run.
const PATIENCE: Duration = Duration::from_secs(150);

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("sighup_puts_a_new_policy_in_force", || with_cell(by_signal)),
        case("a_changed_file_puts_a_new_policy_in_force", || with_cell(by_change)),
        case("an_agent_whose_policy_has_no_tables_is_permitted_nothing", no_tables),
        case("a_broken_policy_leaves_the_old_one_in_force", || with_cell(broken)),
        case("a_label_forbids_and_moves_with_its_entities", || with_cell(labelled)),
        case("a_removed_policy_takes_its_permits_along", || with_cell(removed)),
        case("a_reload_reaches_processes_that_already_run", || with_cell(running)),
        case("a_swap_leaves_no_moment_without_policy", || with_cell(swapped))
            .within(Duration::from_secs(180)),
    ]
}

/// The daemon starts with a policy that is sound and has no tables for the agent, which runs already: nothing
/// is permitted to it, and to others everything, until there is a policy that has.
fn no_tables() -> Result<()> {
    let settings =
        Settings { more: agent_table("cell", "cell-reload", "enforce"), ..Settings::default() };
    fresh(settings, |world| {
        let path = file(&ground("reload")?.join("file"), "text")?;
        let own = on_path("own", "permit", "read", "File", &path);
        // Each pattern doubles the states.
        let pattern = |n: usize| {
            format!(
                "permit(principal, action == Action::\"read\", resource) \
                 unless {{ resource.path like \"*word{n}*\" }};\n"
            )
        };
        let patterns: String = (0..16).map(pattern).collect();
        world.policy("base", &with_base(""))?;
        world.policy("own", &(own.clone() + &patterns))?;
        make_folder(&world.attach.join("cell-reload"))?;
        world.start()?;
        world.wait("the agent is bound", || {
            Ok(world.log().contains("nothing is permitted to it"))
        })?;
        ensure!(world.log().contains("more than 16384 states"), "{}", world.log());
        let events = world.events();
        // Not even its first program.
        let output =
            world.in_cgroup(&world.attach.join("cell-reload"), USER, &["open-read", &path])?;
        ensure!(output.code == 126, "{}", output.whole());
        events.wait("the denial", |event| {
            event.agent() == "cell"
                && event.action() == "exec"
                && event.verdict() == DENIED
                && event.text(&["unmapped", "reason"]) == "no_policy"
        })?;
        world.policy("own", &own)?;
        world.reload()?;
        reads(world, &path, 0)
    })
}

/// A daemon with one configured agent, a file, and a policy that permits to read it.
fn with_cell(test: impl FnOnce(&mut World, &str) -> Result<()>) -> Result<()> {
    // Who tries without end fills no disk.
    let events = "max_bytes = 4194304\nkeep = 4\n".to_owned();
    let more = agent_table("cell", "cell-reload", "enforce");
    let settings = Settings { events, more, ..Settings::default() };
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

/// Swaps of the policy under an agent that never stops trying. Each waits for the kernel several times; the
/// environment may ask for more by `AMBIT_E2E_SWAPS`.
const SWAPS: u32 = 200;
/// The same on emulated machines.
const SWAPS_OF_GUESTS: u32 = 50;

fn swapped(world: &mut World, path: &str) -> Result<()> {
    let secret = file(&Path::new("/ground/reload").join("secret"), "text")?;
    let text = |turn: u32| {
        on_path("own", "permit", "read", "File", path)
            + &on_path("secret", "forbid", "read", "File", &secret)
            + &on_path("until", "permit", "read", "Dir", "/ground/reload/until")
            // Another table each time, so that none is shared with the one before.
            + &on_path("turn", "permit", "read", "File", &format!("/ground/turn-{turn}"))
    };
    world.policy("own", &text(0))?;
    world.reload()?;
    let until = "/ground/reload/until";
    let command = crate::actor::entering(
        &world.attach.join("cell-reload"),
        USER,
        &["alternate", path, &secret, until],
    );
    let events = world.events();
    let agent = crate::actor::Running::start(command, world.stage.patience(PATIENCE))?;
    events.wait("its first denial", |event| event.path() == secret)?;
    let before = generation(world)?;
    let usual = if world.stage.guest { SWAPS_OF_GUESTS } else { SWAPS };
    let asked = std::env::var("AMBIT_E2E_SWAPS").ok();
    let swaps = asked.map_or(Ok(usual), |text| text.parse())?;
    for turn in 1..=swaps {
        world.policy("own", &text(turn))?;
        world.reload()?;
    }
    file(Path::new(until), "")?;
    agent.finish()?.expect("alternate", 0)?;
    let swapped = generation(world)? - before;
    ensure!(swapped >= f64::from(swaps), "{swapped} of {swaps} generations");
    Ok(())
}

/// A file of entities that gives a folder the label.
fn labelled_folder(folder: &Path) -> String {
    format!(
        "[{{\"uid\": {{\"type\": \"Dir\", \"id\": {:?}}}, \"attrs\": {{}}, \
         \"parents\": [{{\"type\": \"Label\", \"id\": \"secret\"}}]}}]",
        folder.display().to_string()
    )
}

fn labelled(world: &mut World, _: &str) -> Result<()> {
    let ground = Path::new("/ground/reload");
    let (first, second) = (ground.join("first"), ground.join("second"));
    make_folder(&first)?;
    make_folder(&second)?;
    let one = file(&first.join("file"), "text")?;
    let other = file(&second.join("file"), "text")?;
    let link = ground.join("linked").display().to_string();
    std::fs::hard_link(&one, &link)?;
    let text = on_path("own", "permit", "read", "Dir", "/ground/reload")
        + "@id(\"secret\") forbid (principal, action == Action::\"read\", resource in Label::\"secret\");\n";
    world.policy("own", &text)?;
    world.entities("places", &labelled_folder(&first))?;
    world.reload()?;
    let events = world.events();
    reads(world, &one, EPERM)?;
    let told = events.wait("the denial", |event| event.path() == one)?;
    ensure!(told.policy() == "secret", "{}", told.brief());
    reads(world, &other, 0)?;
    world.bystander(&["open-read", &one])?.expect("open-read", 0)?;
    // What is there is forbidden under its other names, as in a folder that a policy names.
    let by_lsm = world.has_lsm()?;
    reads(world, &link, if by_lsm { EPERM } else { 0 })?;

    let before = generation(world)?;
    world.entities("places", &labelled_folder(&second))?;
    world.wait("a new generation, without being told", || Ok(generation(world)? > before))?;
    reads(world, &one, 0)?;
    reads(world, &link, 0)?;
    reads(world, &other, EPERM)?;
    world.bystander(&["open-read", &other])?.expect("open-read", 0)?;

    let (before, wrong) = (generation(world)?, errors(world)?);
    world.entities("places", "[{\"uid\": {\"type\": \"Dir\", \"id\": \"ground\"}}]")?;
    world.signal(Signal::SIGHUP)?;
    world.wait("the error is counted", || Ok(errors(world)? > wrong))?;
    reads(world, &one, 0)?;
    reads(world, &other, EPERM)?;
    ensure!((generation(world)? - before).abs() < 0.5, "a broken file made a new generation");
    let log = world.log();
    for words in ["places.entities.json:1:2", "an entity without `attrs`", "= help: write as in"] {
        ensure!(log.contains(words), "the log does not say {words:?}");
    }
    Ok(())
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
