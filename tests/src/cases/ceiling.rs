//! The Landlock ceiling: what fanotify cannot see, and `ambit run` keeps within bounds all the same.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Case, case, fresh, shared};
use crate::actor::{Output, Running};
use crate::policy::{on_path, with_base};
use crate::stage::USER;
use crate::world::{Settings, World, file, ground};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("changes_that_fanotify_cannot_see_stay_beneath_the_ceiling", || shared(changes)),
        case("a_root_agent_is_under_the_ceiling_too", || shared(root)),
        case("audit_puts_nothing_under_a_ceiling", || shared(audit)),
        case("the_ceiling_outlives_the_daemon", || fresh(Settings::default(), outlives)).alone(),
    ]
}

/// Every change that opens nothing, each with what is told when it was made.
const DEEDS: &str = "cd \"$0\"; for deed in 'mkdir made' 'ln -s x symlink' 'mkfifo fifo' \
    'ln file folder/linked' 'mv file folder/moved' 'mv other renamed' 'rm last' 'rmdir empty'; \
    do $deed 2>/dev/null && echo \"did $deed\"; done; true";
const COUNT: usize = 8;

/// Whether there is a ceiling here; and that the doctor says what there is.
fn has_ceiling(world: &World) -> Result<bool> {
    let doctor = world.doctor()?;
    let said = doctor["ceiling"].as_str().unwrap_or_default();
    ensure!(said.is_empty() == world.has_lsm()?, "{doctor}");
    Ok(said.starts_with("Landlock"))
}

/// Two folders alike, of the agents' user: one to be permitted, one not.
fn folders(name: &str) -> Result<[String; 2]> {
    let base = ground(name)?;
    let make = |folder: PathBuf| -> Result<String> {
        for part in ["", "folder", "empty"] {
            let path = folder.join(part);
            fs::create_dir_all(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        }
        for part in ["file", "other", "last"] {
            let path = file(&folder.join(part), "text")?;
            chown(&path, Some(USER), None)?;
        }
        Ok(folder.display().to_string())
    };
    Ok([make(base.join("in"))?, make(base.join("out"))?])
}

fn policy(inside: &str) -> String {
    with_base(&on_path("inside", "permit", "write", "Dir", inside))
}

fn done(output: &Output) -> usize {
    output.stdout.lines().filter(|line| line.starts_with("did ")).count()
}

fn changes(world: &World) -> Result<()> {
    if !has_ceiling(world)? {
        return Ok(());
    }
    let [inside, outside] = folders("ceiling")?;
    let agent = world.agent("builder").policy(&policy(&inside))?;
    let kept = agent.run(&["/bin/sh", "-c", DEEDS, &outside])?;
    kept.expect_code(0)?;
    ensure!(done(&kept) == 0, "changes were made outside: {}", kept.whole());
    for name in ["file", "other", "last", "empty"] {
        ensure!(Path::new(&outside).join(name).exists(), "{name} is gone: {}", kept.whole());
    }
    let free = agent.run(&["/bin/sh", "-c", DEEDS, &inside])?;
    ensure!(done(&free) == COUNT, "not all could be done inside: {}", free.whole());
    // Landlock says EACCES.
    let said =
        agent.run(&["/bin/sh", "-c", "LC_ALL=C rm -f \"$0\"", &format!("{outside}/last")])?;
    ensure!(said.stderr.contains("Permission denied"), "{}", said.whole());
    Ok(())
}

fn root(world: &World) -> Result<()> {
    if !has_ceiling(world)? {
        return Ok(());
    }
    let [inside, outside] = folders("ceiling-root")?;
    let agent = world.agent("chief").policy(&policy(&inside))?.as_root();
    let kept = agent.run(&["/bin/sh", "-c", DEEDS, &outside])?;
    ensure!(done(&kept) == 0, "changes were made outside: {}", kept.whole());
    let script = "cd \"$0\"; mount -t tmpfs none folder && echo did mount; \
        mknod device c 1 5 && echo did mknod; true";
    let kept = agent.run(&["/bin/sh", "-c", script, &inside])?;
    ensure!(done(&kept) == 0, "{}", kept.whole());
    Ok(())
}

fn audit(world: &World) -> Result<()> {
    let [inside, outside] = folders("ceiling-audit")?;
    let agent = world.agent("watched").policy(&policy(&inside))?.option("--audit");
    let free = agent.run(&["/bin/sh", "-c", DEEDS, &outside])?;
    ensure!(done(&free) == COUNT, "audit mode kept something: {}", free.whole());
    Ok(())
}

fn outlives(world: &mut World) -> Result<()> {
    world.start()?;
    if !has_ceiling(world)? {
        return Ok(());
    }
    let [inside, outside] = folders("ceiling-orphan")?;
    let ready = Path::new(&inside).join("folder/ready");
    let dead = ground("ceiling-gate")?.join("dead");
    let script = format!(
        "mkdir {}; until test -e {}; do sleep 0.1; done; {DEEDS}",
        ready.display(),
        dead.display()
    );
    let agent = world.agent("orphan").policy(&policy(&inside))?;
    let command = agent.command(&["/bin/sh", "-c", &script, &outside]);
    let running = Running::start(command, Duration::from_secs(50))?;
    world.wait("the agent is ready", || Ok(ready.exists()))?;
    world.kill()?;
    file(&dead, "")?;
    let output = running.finish()?;
    ensure!(done(&output) == 0, "changes were made outside: {}", output.whole());
    fs::metadata(Path::new(&outside).join("last")).context("what was outside is gone")?;
    Ok(())
}
