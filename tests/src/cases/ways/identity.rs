//! I: ways to be somebody else, and to have somebody else act.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;

use anyhow::Result;

use super::{Place, Setup, Victim, Way, Who, attempt, way};
use crate::policy::on_path;
use crate::stage::{USER, make_folder};
use crate::world::{World, file, tool};

pub(super) fn ways() -> Vec<Way> {
    vec![
        way("I1", "another cgroup and threads", Who::Root, cgroups),
        way("I2", "other parents and programs", Who::User, parents),
        way("I3", "work left for others", Who::User, later),
        way("I4", "injecting into a bystander", Who::User, inject),
    ]
}

fn cgroups(world: &World, at: &Place) -> Result<Setup> {
    let other = world.stage.outside().unwrap_or_else(|| world.attach.join("bystanders"));
    make_folder(&other)?;
    let [moved, cloned, thread, left] =
        ["moved", "cloned", "thread", "left"].map(|name| at.key(name));
    let (moved, cloned, thread, left) = (moved?, cloned?, thread?, left?);
    let procs = other.join("cgroup.procs").display().to_string();
    let folder = other.display().to_string();
    // What is tested is who it is afterwards, so it may write there.
    let policy = on_path("cgroups", "permit", "write", "Dir", "/sys");
    Ok(Setup::of(vec![
        attempt("cgroup.procs")
            .step(&["join", &procs])
            .step(&["steal", &moved])
            .told_by(&[&moved, &procs]),
        attempt("CLONE_INTO_CGROUP")
            .step(&["into-cgroup", &folder, &cloned])
            .told_by(&[&cloned, &folder]),
        attempt("a thread").step(&["thread"]).step(&["steal", &thread]).told_by(&[&thread]),
        attempt("a child that moves")
            .step(&["doublefork"])
            .step(&["join", &procs])
            .step(&["steal", &left])
            .told_by(&[&left, &procs]),
    ])
    .policy(policy))
}

fn parents(_: &World, at: &Place) -> Result<Setup> {
    let [orphan, session, adopted, suid] =
        ["orphan", "session", "adopted", "suid"].map(|name| at.key(name));
    let (orphan, session, adopted, suid) = (orphan?, session?, adopted?, suid?);
    let program = tool(&at.base.join("open/suid"))?;
    chown(&program, Some(0), Some(0))?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755))?;
    Ok(Setup::of(vec![
        attempt("double fork").step(&["doublefork"]).step(&["steal", &orphan]).told_by(&[&orphan]),
        attempt("setsid")
            .step(&["fork"])
            .step(&["setsid"])
            .step(&["steal", &session])
            .told_by(&[&session]),
        attempt("subreaper")
            .step(&["subreaper"])
            .step(&["doublefork"])
            .step(&["steal", &adopted])
            .told_by(&[&adopted]),
        attempt("a set-uid program")
            .step(&["run", &program, "must", "steal", &suid])
            .told_by(&[&suid]),
    ]))
}

/// The places from which others run something later, forbidden one by one in a home that may be written.
fn later(_: &World, at: &Place) -> Result<Setup> {
    let mut policy = String::new();
    let mut place = |id: &str, kind: &str, path: &str| -> String {
        let path = at.at(&format!("home/{path}"));
        policy += &on_path(id, "forbid", "write", kind, &path);
        path
    };
    let shell = place("shell", "File", ".bashrc");
    let profile = place("profile", "File", ".profile");
    let keys = format!("{}/authorized_keys", place("keys", "Dir", ".ssh"));
    let hook = format!("{}/post-commit", place("hooks", "Dir", "work/.git/hooks"));
    let tasks = place("tasks", "File", "work/.vscode/tasks.json");
    let agents = place("agents", "File", ".agent/settings.json");
    let cron = format!("{}/agent", place("cron", "Dir", "cron"));
    for path in [&shell, &profile, &keys, &hook, &tasks, &agents] {
        file(std::path::Path::new(path), "text")?;
    }
    fs::remove_file(&hook)?;
    make_folder(&at.base.join("home/cron"))?;
    for folder in ["home", "home/work", "home/work/.git", "home/cron"] {
        chown(at.at(folder), Some(USER), Some(USER))?;
    }
    let bus = at.at("open/bus");
    let listening = UnixListener::bind(&bus)?;
    fs::set_permissions(&bus, fs::Permissions::from_mode(0o777))?;
    std::thread::spawn(move || listening.incoming().for_each(drop));
    let made = at.open("made", "evil")?;
    let other = at.at("home/.other");
    let write = |what, path: &str| attempt(what).step(&["write", path, "evil"]).told_by(&[path]);
    Ok(Setup::of(vec![
        attempt("systemd's bus").step(&["unix-connect", &bus]).told_by(&[&bus]),
        write(".bashrc", &shell),
        attempt(".profile, replaced")
            .step(&["rename", &made, &profile])
            .told_by(&[&profile, &made]),
        write("authorized_keys", &keys),
        write("a git hook", &hook),
        attempt("tasks.json, its folder replaced")
            .step(&["rename", &at.at("home/work/.vscode"), &other])
            .step(&["mkdir", &at.at("home/work/.vscode")])
            .step(&["write", &tasks, "evil"])
            .told_by(&[&tasks, &at.at("home/work/.vscode"), &other]),
        write("agent settings", &agents),
        write("cron", &cron),
    ])
    .policy(policy))
}

fn inject(_: &World, at: &Place) -> Result<Setup> {
    let victim = Victim::start(at)?;
    let pid = victim.pid();
    let memory = format!("/proc/{pid}/mem");
    let policy = on_path("proc", "permit", "write", "Dir", "/proc");
    let preload = at.key("ld.so.preload")?;
    Ok(Setup::of(vec![
        // Yama lets only root do so, where it is.
        attempt("ptrace").step(&["trace", &pid]).told_by(&["ptrace"]).optional(),
        attempt("/proc/PID/mem")
            .step(&["open-write", &memory])
            .told_by(&["ptrace", &memory])
            .optional(),
        attempt("LD_PRELOAD in a shared file")
            .step(&["write", &preload, "evil"])
            .told_by(&[&preload]),
        attempt("signals").step(&["kill", "15", &pid]).told_by(&["signal"]),
    ])
    .policy(policy)
    .keep(victim))
}
