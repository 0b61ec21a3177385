//! The daemon's life and death, and what goes on without it.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{Case, case, fresh};
use crate::actor::{EPERM, run_limited};
use crate::events::DENIED;
use crate::policy::{on_path, on_peer, with_base};
use crate::stage::ACTOR;
use crate::world::{PATIENCE, PINS, RUN, Settings, World, file, ground, listener};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("kill_9_leaves_enforcement_and_restart_adopts_it", killed).in_subset(),
        case("a_stopped_daemon_ends_cleanly_and_starts_again", restarted),
        case("detach_leaves_nothing", detach).in_subset(),
        case("run_starts_an_engine_that_ends_with_the_last_agent", on_demand),
        case("runs_join_the_engine_that_is_there", joined),
        case("a_refused_run_leaves_no_engine", refused_engine),
    ]
}

fn fresh_started(test: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
    fresh(Settings::default(), |world| {
        world.start()?;
        test(world)
    })
}

/// Files are judged by LSM programs without the daemon; where the daemon answers for them by
/// fanotify they are open while it is away. Peers are judged in the kernel on both.
fn killed() -> Result<()> {
    fresh_started(|world| {
        let base = ground("killed")?;
        let path = file(&base.join("key"), "hidden")?;
        let after = file(&base.join("after"), "hidden")?;
        let gates = ["dead", "back"].map(|gate| base.join(gate));
        let [dead, back] = gates.clone().map(|gate| gate.display().to_string());
        let done = base.join("done").display().to_string();
        let peer = listener("127.0.0.1:0")?;
        let policy = with_base(
            &(on_path("key", "forbid", "read", "Dir", &base.display().to_string())
                + &on_path("signs", "permit", "write", "Dir", &base.display().to_string())
                + &on_peer("site", "forbid", "connect", "tcp", &peer)),
        );
        let lsm = world.has_lsm()?;
        let agent = world.agent("orphan").policy(&policy)?.start(&[
            "open-read",
            &path,
            "then",
            "await",
            &dead,
            "then",
            "list",
            "/ground/killed",
            "then",
            "connect",
            "tcp",
            &peer,
            "then",
            "mkdir",
            &done,
            "then",
            "await",
            &back,
            "then",
            "open-read",
            &after,
            "then",
            "send",
            "udp",
            &peer,
        ])?;
        world
            .all_events()
            .wait("the first denial", |event| event.path() == path && event.verdict() == DENIED)?;
        world.kill()?;
        ensure!(pins() > 0, "nothing is pinned");
        file(&gates[0], "")?;
        world.wait("the agent tried without the daemon", || Ok(Path::new(&done).exists()))?;
        world.start()?;
        let doctor = world.doctor()?;
        ensure!(doctor["adopted"] == true, "the doctor does not say that it adopted: {doctor}");
        file(&gates[1], "")?;
        let output = agent.finish()?;
        output.expect("open-read", EPERM)?;
        output.expect("list", if lsm { EPERM } else { 0 })?;
        output.expect("connect", EPERM)?;
        output.expect(&format!("open-read {after}"), EPERM)?;
        output.expect("send", EPERM)?;
        let events = world.all_events();
        events.wait("the connect that was denied in between", |event| {
            event.agent() == "orphan"
                && event.peer() == peer
                && event.protocol() == "tcp"
                && event.verdict() == DENIED
                && event.policy() == "site"
        })?;
        events.wait("the denial after the return", |event| {
            event.agent() == "orphan" && event.path() == after && event.verdict() == DENIED
        })?;
        Ok(())
    })
}

fn pins() -> usize {
    std::fs::read_dir(PINS).map_or(0, Iterator::count)
}

fn restarted() -> Result<()> {
    fresh_started(|world| {
        let code = world.stop()?;
        ensure!(code == Some(0), "the daemon ended with {code:?}: {}", world.log());
        ensure!(!Path::new(RUN).join("ambit.sock").exists(), "its socket is left");
        world.start()?;
        let path = file(&ground("again")?.join("file"), "text")?;
        world
            .agent("again")
            .policy(&with_base(""))?
            .act(&["open-read", &path])?
            .expect("open-read", EPERM)
    })
}

fn detach() -> Result<()> {
    fresh_started(|world| {
        let base = ground("detached")?;
        let path = file(&base.join("file"), "text")?;
        let never = base.join("never").display().to_string();
        let agent = world.agent("detached").policy(&with_base(""))?.start(&[
            "open-read",
            &path,
            "then",
            "await",
            &never,
        ])?;
        world.all_events().wait("the denial", |event| event.path() == path)?;
        let output = world.ambit(&["detach", "--all"])?;
        output.expect_code(0)?;
        ensure!(!Path::new(PINS).exists() || pins() == 0, "pins are left");
        let agents = world.attach.join(world.stage.agents());
        ensure!(
            crate::watchdog::pids_beneath(&agents).is_empty() && !agents.exists(),
            "the agents' cgroup is left: {}",
            agents.display()
        );
        drop(agent);
        ensure!(world.metrics().is_err(), "the daemon still answers");
        // And a second time there is nothing to do, and nothing to complain of.
        world.ambit(&["detach", "--all"])?.expect_code(0)?;
        world.bystander(&["open-read", &path])?.expect("open-read", 0)
    })
}

fn engine_runs() -> bool {
    std::os::unix::net::UnixStream::connect(Path::new(RUN).join("ambit.sock")).is_ok()
}

fn on_demand() -> Result<()> {
    fresh(Settings::default(), |world| {
        let path = file(&ground("alone")?.join("file"), "text")?;
        let output = world.agent("alone").policy(&with_base(""))?.act(&["open-read", &path])?;
        output.expect("open-read", EPERM)?;
        world.all_events().wait("the denial, in the default file", |event| event.path() == path)?;
        world.wait("the engine has ended", || Ok(!engine_runs()))?;
        world.wait("its pins are gone", || Ok(pins() == 0))
    })
}

fn joined() -> Result<()> {
    fresh(Settings::default(), |world| {
        let base = ground("joined")?;
        let path = file(&base.join("file"), "text")?;
        let gate = base.join("go");
        let first = world.agent("first").policy(&with_base(""))?.start(&[
            "nothing",
            "then",
            "await",
            &gate.display().to_string(),
            "then",
            "open-read",
            &path,
        ])?;
        world.all_events().wait("the first agent", |event| event.agent() == "first")?;
        let permit = with_base(&on_path("own", "permit", "read", "File", &path));
        world
            .agent("second")
            .policy(&permit)?
            .act(&["open-read", &path])?
            .expect("open-read", 0)?;
        ensure!(engine_runs(), "the engine ended while an agent lives");
        file(&gate, "")?;
        first.finish()?.expect("open-read", EPERM)?;
        world.wait("the engine has ended", || Ok(!engine_runs()))
    })
}

fn refused_engine() -> Result<()> {
    fresh(Settings::default(), |world| {
        let output = world
            .agent("refused")
            .policy("permit (principal, action, resource")?
            .run(&[ACTOR, "nothing"])?;
        output.expect_refusal(&["refused.cedar"])?;
        world.wait("no engine is left", || Ok(!engine_runs()))?;
        ensure!(pins() == 0, "pins are left");
        // A command that asks a daemon says so when there is none.
        let limit = world.stage.patience(PATIENCE);
        let mut command = std::process::Command::new("/usr/bin/ambit");
        command.args(["stop", "refused"]);
        run_limited(&mut command, limit)?.expect_refusal(&["no ambitd runs"])
    })
}
