//! Identity sticks: a process belongs to its agent from its enrolment to its end.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{Case, case, fresh, shared};
use crate::actor::{EPERM, Output};
use crate::events::{ALLOWED, DENIED, PROCESS};
use crate::policy::{on_path, on_peer, with_base};
use crate::stage::{Stage, USER, make_folder};
use crate::world::{Settings, World, agent_table, file, ground, listener};

/// Agents at once.
const CROWD: usize = 1000;

/// Policies that differ among them.
const CIRCLES: usize = CROWD;
/// The same on emulated machines.
const CIRCLES_OF_GUESTS: usize = 100;

/// A thousand agents, of which each is in a group and may read its group's file: so many policy sets.
fn crowd() -> Result<()> {
    let circles = if Stage::get()?.guest { CIRCLES_OF_GUESTS } else { CIRCLES };
    let group = |index: usize| format!("circle-{}", index % circles);
    let mut tables = String::new();
    for index in 0..CROWD {
        let table = agent_table(&format!("one-{index}"), &format!("cell-{index}"), "enforce");
        tables += table.trim_end();
        tables += &format!("\ngroups = [{:?}]\n\n", group(index));
    }
    fresh(Settings { more: tables, ..Settings::default() }, |world| {
        let folder = ground("crowd")?;
        let mut policy = with_base("");
        let mut files = Vec::new();
        for index in 0..circles {
            let path = file(&folder.join(index.to_string()), "text")?;
            policy += &format!(
                "permit (principal in AgentGroup::{:?}, action == Action::\"read\", resource == File::{path:?});\n",
                group(index)
            );
            files.push(path);
        }
        world.policy("crowd", &policy)?;
        for index in 0..CROWD {
            make_folder(&world.attach.join(format!("cell-{index}")))?;
        }
        world.start()?;
        world.wait("all are known", || {
            let agents = world.ambit(&["agents", "--json"])?;
            let agents: serde_json::Value = serde_json::from_str(&agents.stdout)?;
            Ok(agents.as_array().is_some_and(|agents| agents.len() == CROWD))
        })?;
        let events = world.events();
        for index in [0, 1, CROWD / 2, CROWD - 1] {
            let cell = world.attach.join(format!("cell-{index}"));
            let (own, other) = (&files[index % circles], &files[(index + 1) % circles]);
            let output =
                world.in_cgroup(&cell, USER, &["open-read", own, "then", "open-read", other])?;
            output.expect(&format!("open-read {own}"), 0)?;
            output.expect(&format!("open-read {other}"), EPERM)?;
            let name = format!("one-{index}");
            events.wait("the denial, told of the right agent", |event| {
                event.agent() == name && event.path() == other && event.verdict() == DENIED
            })?;
        }
        Ok(())
    })
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("a_thousand_agents_are_bounded_at_once", crowd)
            .alone()
            .within(Duration::from_secs(180)),
        case("identity_survives_fork_and_threads", || shared(fork_and_threads)),
        case("identity_survives_double_fork_and_setsid", || shared(double_fork)).in_subset(),
        case("identity_survives_a_move_to_another_cgroup", || shared(moved)).in_subset(),
        case("identity_beyond_the_place_of_attachment", || shared(moved_outside)).in_subset(),
        case("a_socket_made_before_the_move_is_still_judged", || shared(held_socket)),
        case("chroot_does_not_forge_a_permitted_name", || shared(chroot)).in_subset(),
        case("two_agents_with_opposite_policies_at_once", || shared(opposite)).in_subset(),
        case("a_configured_cgroup_makes_an_agent", configured_cgroup).alone(),
        case("a_bystander_that_was_seen_is_judged_once_its_cgroup_is_bound", bystander_no_more)
            .alone()
            .in_subset(),
        case("a_process_beyond_the_table_may_do_nothing", beyond_the_table).alone(),
        case("a_configured_unit_makes_an_agent", configured_unit).alone(),
        case("stop_ends_the_whole_tree", || shared(stop_ends_the_tree)),
        case("agents_are_listed_with_their_counts", || shared(listed)),
        case("an_agent_tells_its_chain_of_parents", || shared(parents)),
    ]
}

struct Secret {
    path: String,
    peer: String,
    policy: String,
}

/// A file and a peer that are forbidden where all else around them is permitted.
fn secret(name: &str) -> Result<Secret> {
    let base = ground(name)?;
    let path = file(&base.join("secret/key"), "hidden")?;
    let peer = listener("127.0.0.1:0")?;
    let policy = with_base(
        &(on_path("all", "permit", "read", "Dir", &base.display().to_string())
            + &on_path("cgroups", "permit", "write", "Dir", "/sys/fs/cgroup")
            + &on_path("key", "forbid", "read", "File", &path)
            + &on_peer("site", "forbid", "connect", "tcp", &peer)),
    );
    Ok(Secret { path, peer, policy })
}

impl Secret {
    /// The forbidden steps, to be put at the end.
    fn steps(&self) -> Vec<&str> {
        vec!["then", "open-read", &self.path, "then", "connect", "tcp", &self.peer]
    }

    fn is_denied(&self, world: &World, name: &str, output: &Output) -> Result<()> {
        output.expect("open-read", EPERM)?;
        output.expect("connect", EPERM)?;
        world
            .all_events()
            .wait("the denial as the agent's", |event| {
                event.agent() == name && event.path() == self.path && event.verdict() == DENIED
            })
            .map(drop)
    }
}

fn fork_and_threads(world: &World) -> Result<()> {
    for (name, way) in [("forked", "fork"), ("threaded", "thread")] {
        let secret = secret(name)?;
        let output = world
            .agent(name)
            .policy(&secret.policy)?
            .act(&[&["nothing", "then", way], secret.steps().as_slice()].concat())?;
        secret.is_denied(world, name, &output)?;
    }
    Ok(())
}

/// The table of processes is full, and the maker of the last one has left its cgroup: the child is nobody
/// that a table or a cgroup knows, and still the agent's.
fn beyond_the_table() -> Result<()> {
    let kernel = "processes = 2\n".to_owned();
    fresh(Settings { kernel, ..Settings::default() }, |world| {
        world.start()?;
        let path = file(&ground("beyond")?.join("file"), "text")?;
        let peer = listener("127.0.0.1:0")?;
        let procs = world.attach.join("bystanders/cgroup.procs").display().to_string();
        let policy = with_base(
            &(on_path("own", "permit", "read", "File", &path)
                + &on_path("cgroups", "permit", "write", "Dir", "/sys/fs/cgroup")
                + &on_peer("site", "permit", "connect", "tcp", &peer)),
        );
        let agent = world.agent("beyond").policy(&policy)?.as_root();
        let first = ["open-read", &path, "then", "join", &procs, "then", "fork"];
        let second = ["then", "connect", "tcp", &peer, "then", "fork"];
        let third = ["then", "open-read", &path, "then", "connect", "tcp", &peer];
        let output = agent.act(&[&first[..], &second[..], &third[..]].concat())?;
        let told: Vec<(String, i64)> = output
            .steps()
            .iter()
            .map(|step| {
                let name = step["step"].as_str().unwrap_or_default();
                let verb = name.split(' ').next().unwrap_or_default();
                (verb.to_owned(), step["errno"].as_i64().unwrap_or(-1))
            })
            .collect();
        let wanted = [
            ("open-read", 0),
            ("join", 0),
            ("connect", 0),
            ("open-read", EPERM),
            ("connect", EPERM),
        ];
        ensure!(
            told.iter().map(|(verb, errno)| (verb.as_str(), *errno)).eq(wanted),
            "{told:?} is not {wanted:?}"
        );
        world.all_events().wait("the denial, as the agent's", |event| {
            // Of a process that nobody knows the root of, LSM tells the last name alone.
            event.agent() == "beyond"
                && [path.as_str(), "file"].contains(&event.path())
                && event.verdict() == DENIED
        })?;
        // What ended has made room.
        let output =
            agent.act(&["open-read", &path, "then", "fork", "then", "open-read", &path])?;
        ensure!(output.steps().iter().all(|step| step["errno"] == 0), "{}", output.whole());
        Ok(())
    })
}

fn double_fork(world: &World) -> Result<()> {
    let secret = secret("daemonised")?;
    let output = world.agent("daemonised").policy(&secret.policy)?.act(
        &[&["nothing", "then", "doublefork", "then", "setsid"], secret.steps().as_slice()].concat(),
    )?;
    output.expect("setsid", 0)?;
    secret.is_denied(world, "daemonised", &output)
}

fn moved(world: &World) -> Result<()> {
    let secret = secret("moved")?;
    let elsewhere = world.attach.join("cell-elsewhere");
    make_folder(&elsewhere)?;
    let procs = elsewhere.join("cgroup.procs").display().to_string();
    // Its own move, then a fork, so that the child is born where no agent is.
    let output = world.agent("moved").policy(&secret.policy)?.as_root().act(
        &[&["join", procs.as_str(), "then", "fork", "then", "setsid"], secret.steps().as_slice()]
            .concat(),
    )?;
    output.expect("join", 0)?;
    secret.is_denied(world, "moved", &output)
}

/// Programs run for sockets whose cgroup is beneath the place of attachment. An agent that left it
/// makes sockets that no program sees; with the root as the place, as on every real host, there is
/// no such cgroup. Files are judged all the same.
fn moved_outside(world: &World) -> Result<()> {
    let secret = secret("outside")?;
    let (place, sees_sockets) = match world.stage.outside() {
        Some(outside) => (outside, false),
        None => (world.attach.clone(), true),
    };
    let sees_sockets = sees_sockets || world.enforced_by("connect")?.contains("lsm");
    let procs = place.join("cgroup.procs").display().to_string();
    let output = world
        .agent("outside")
        .policy(&secret.policy)?
        .as_root()
        .act(&[&["join", procs.as_str()], secret.steps().as_slice()].concat())?;
    output.expect("join", 0)?;
    output.expect("open-read", EPERM)?;
    output.expect("connect", if sees_sockets { EPERM } else { 0 })
}

fn held_socket(world: &World) -> Result<()> {
    let secret = secret("held")?;
    let place = world.stage.outside().unwrap_or_else(|| world.attach.clone());
    let procs = place.join("cgroup.procs").display().to_string();
    let output = world.agent("held").policy(&secret.policy)?.as_root().act(&[
        "socket",
        "tcp",
        &secret.peer,
        "then",
        "join",
        &procs,
        "then",
        "connect-held",
        &secret.peer,
    ])?;
    output.expect("join", 0)?;
    output.expect("connect-held", EPERM)
}

/// The agent may read `/ground/forge/open/…`; inside `/ground/forge/jail` it makes a tree in which
/// the secret has that very name.
fn chroot(world: &World) -> Result<()> {
    let base = ground("forge")?;
    let open = base.join("open");
    let jail = base.join("jail");
    file(&open.join("file"), "text")?;
    let forged =
        file(&jail.join(format!("{}/file", open.display()).trim_start_matches('/')), "hidden")?;
    let policy = with_base(&on_path("open", "permit", "read", "Dir", &open.display().to_string()));
    let name = format!("{}/file", open.display());
    let events = world.events();
    let output = world.agent("forge").policy(&policy)?.as_root().act(&[
        "open-read",
        &name,
        "then",
        "chroot",
        &jail.display().to_string(),
        "then",
        "open-read",
        &name,
    ])?;
    let answers: Vec<i64> = output
        .steps()
        .iter()
        .filter(|step| step["step"].as_str().is_some_and(|step| step.starts_with("open-read")))
        .filter_map(|step| step["errno"].as_i64())
        .collect();
    ensure!(
        output.errno("chroot")? != 0 || answers == [0, EPERM],
        "a forged name was taken for the true one ({forged}): {}",
        output.whole()
    );
    ensure!(answers.first() == Some(&0), "{}", output.whole());
    events.wait("that the forged name was denied", |event| {
        event.agent() == "forge" && event.verdict() == DENIED
    })?;
    Ok(())
}

fn opposite(world: &World) -> Result<()> {
    let base = ground("opposite")?;
    let [left, right] = ["left", "right"].map(|part| base.join(part).join("file"));
    let left = file(&left, "text")?;
    let right = file(&right, "text")?;
    let gate = base.join("go").display().to_string();
    let steps = [
        "await",
        &gate,
        "then",
        "open-read",
        &left,
        "then",
        "open-read",
        &right,
        "then",
        "burst",
        "500",
        &left,
        "then",
        "burst",
        "500",
        &right,
    ];
    let mut running = Vec::new();
    for (name, own, other) in [("left", &left, &right), ("right", &right, &left)] {
        let policy = with_base(
            &(on_path("own", "permit", "read", "File", own)
                + &on_path("other", "forbid", "read", "File", other)),
        );
        let events = world.events();
        running.push((own, other, world.agent(name).policy(&policy)?.start(&steps)?));
        events.wait("that both run", |event| event.agent() == name)?;
    }
    file(std::path::Path::new(&gate), "")?;
    for (own, other, agent) in running {
        let output = agent.finish()?;
        output.expect(&format!("open-read {own}"), 0)?;
        output.expect(&format!("open-read {other}"), EPERM)?;
        output.expect(&format!("burst 500 {own}"), 0)?;
        output.expect(&format!("burst 500 {other}"), EPERM)?;
    }
    Ok(())
}

fn configured_cgroup() -> Result<()> {
    let settings = Settings {
        more: agent_table("indexer", "cell-index-*", "enforce")
            + &agent_table("watched", "cell-watch-*", "audit"),
        ..Settings::default()
    };
    fresh(settings, |world| {
        let base = ground("configured")?;
        let path = file(&base.join("file"), "text")?;
        world.policy("base", &with_base(""))?;
        let index = world.attach.join("cell-index-1");
        let watch = world.attach.join("cell-watch-1");
        let beside = world.attach.join("cell-other");
        make_folder(&index)?;
        make_folder(&beside)?;
        world.start()?;
        // One cgroup was there before the daemon, the other comes after it.
        make_folder(&watch)?;
        is_known(world, "indexer")?;
        is_known(world, "watched")?;
        let events = world.events();
        let uid = crate::stage::USER;
        let read = ["open-read", path.as_str()];
        world.in_cgroup(&index, uid, &read)?.expect("open-read", EPERM)?;
        world.in_cgroup(&watch, uid, &read)?.expect("open-read", 0)?;
        world.in_cgroup(&beside, uid, &read)?.expect("open-read", 0)?;
        events.wait("the denial of one", |event| {
            event.agent() == "indexer" && event.verdict() == DENIED && event.path() == path
        })?;
        events.wait("the audit of the other", |event| {
            event.agent() == "watched" && event.verdict() == 3 && event.path() == path
        })?;
        Ok(())
    })
}

/// A process that was nobody's, and was seen as such, is judged from the moment at which its cgroup is bound.
fn bystander_no_more() -> Result<()> {
    let settings =
        Settings { more: agent_table("other", "cell-other", "enforce"), ..Settings::default() };
    fresh(settings, |world| {
        let base = ground("no-more")?;
        let path = file(&base.join("file"), "text")?;
        let gate = base.join("gate");
        let gate_path = gate.display().to_string();
        world.policy("base", &with_base(""))?;
        for cell in ["cell-other", "cell-late"] {
            make_folder(&world.attach.join(cell))?;
        }
        world.start()?;
        is_known(world, "other")?;
        let read = ["open-read", path.as_str()];
        let steps =
            [&read[..], &["then"], &read, &["then", "await", &gate_path, "then"], &read].concat();
        let late = world.attach.join("cell-late");
        let command = crate::actor::entering(&late, USER, &steps);
        let limit = world.stage.patience(Duration::from_secs(60));
        let running = crate::actor::Running::start(command, limit)?;
        // So that it has been seen.
        std::thread::sleep(world.stage.patience(Duration::from_millis(200)));
        let both = agent_table("other", "cell-other", "enforce")
            + &agent_table("late", "cell-late", "enforce");
        world.configure(&both)?;
        world.reload()?;
        is_known(world, "late")?;
        let events = world.events();
        fs::write(&gate, "")?;
        let output = running.finish()?;
        let errnos: Vec<_> = output
            .steps()
            .iter()
            .filter(|told| told["step"].as_str().is_some_and(|step| step.starts_with("open-read")))
            .map(|told| told["errno"].as_i64().unwrap_or(-1))
            .collect();
        ensure!(errnos == [0, 0, EPERM], "its opens ended with {errnos:?}: {}", output.whole());
        events.wait("the denial", |event| {
            event.agent() == "late" && event.verdict() == DENIED && event.path() == path
        })?;
        Ok(())
    })
}

/// Waits until the daemon has found a configured agent.
fn is_known(world: &World, name: &str) -> Result<()> {
    world.wait(&format!("`ambit agents` lists {name}"), || {
        let output = world.ambit(&["agents", "--json"])?;
        let agents: serde_json::Value = serde_json::from_str(&output.stdout)?;
        Ok(agents.as_array().is_some_and(|all| all.iter().any(|agent| agent["name"] == name)))
    })
}

/// The cgroup of a unit is where systemd makes it; what lies beneath it belongs to it, what has a
/// name like it does not.
fn configured_unit() -> Result<()> {
    let more = "[[agent]]\nname = \"coder\"\nunit = \"coder.service\"\n".to_owned();
    fresh(Settings { more, ..Settings::default() }, |world| {
        let base = ground("unit")?;
        let open = file(&base.join("open"), "text")?;
        let path = file(&base.join("key"), "hidden")?;
        let peer = listener("127.0.0.1:0")?;
        let granted = "permit (principal == Agent::\"coder\", action == Action::\"read\", ";
        world.policy(
            "coder",
            &with_base(&format!("@id(\"open\") {granted} resource == File::{open:?});\n")),
        )?;
        world.start()?;
        // As systemd does it: the unit starts when the daemon runs already.
        let slice = world.attach.join("system.slice");
        let unit = slice.join("coder.service");
        make_folder(&unit)?;
        is_known(world, "coder")?;
        let [within, beside] = [unit.join("payload"), slice.join("coder.service.d")];
        make_folder(&within)?;
        make_folder(&beside)?;
        let events = world.events();
        let steps =
            ["open-read", &open, "then", "open-read", &path, "then", "connect", "tcp", &peer];
        for cgroup in [&unit, &within] {
            let output = world.in_cgroup(cgroup, crate::stage::USER, &steps)?;
            output.expect(&format!("open-read {open}"), 0)?;
            output.expect(&format!("open-read {path}"), EPERM)?;
            output.expect("connect", EPERM)?;
        }
        let free = world.in_cgroup(&beside, crate::stage::USER, &steps)?;
        free.expect(&format!("open-read {path}"), 0)?;
        free.expect("connect", 0)?;
        events.wait("what it may do", |event| {
            event.agent() == "coder" && event.verdict() == ALLOWED && event.policy() == "open"
        })?;
        for action in ["read", "connect"] {
            let labels = [("agent", "coder"), ("action", action), ("verdict", "denied")];
            world.wait("the metric counts both denials", || {
                Ok(world.metrics()?.value("ambit_actions_total", &labels) == Some(2.0))
            })?;
            // Counted before it is written.
            world.wait(&format!("each of two denied {action}s is told"), || {
                let told = events.so_far()?.into_iter().filter(|event| {
                    event.agent() == "coder"
                        && event.verdict() == DENIED
                        && event.action() == action
                        && (event.path() == path || event.peer() == peer)
                });
                Ok(told.count() == 2)
            })?;
        }
        Ok(())
    })
}

fn stop_ends_the_tree(world: &World) -> Result<()> {
    let base = ground("tree")?;
    let policy = with_base(&on_path("all", "permit", "read", "Dir", &base.display().to_string()));
    let never = base.join("never").display().to_string();
    // A child that left the session, who made it, and one that waits in the foreground (some shells become
    // that one).
    let shell = format!(
        "/usr/bin/ambit-actor doublefork then setsid then await {never} & \
         /usr/bin/ambit-actor await {never}"
    );
    let command = world.agent("tree").policy(&policy)?.command(&["/bin/sh", "-c", &shell]);
    let running =
        crate::actor::Running::start(command, world.stage.patience(Duration::from_secs(30)))?;
    let agents = world.attach.join(world.stage.agents());
    world.wait("the tree stands", || Ok(crate::watchdog::pids_beneath(&agents).len() >= 3))?;
    let started = Instant::now();
    world.ambit(&["stop", "tree"])?.expect_code(0)?;
    let output = running.finish()?;
    ensure!(output.code != 0, "a stopped agent looks like one that ended well: {}", output.whole());
    world.wait("the tree is gone", || Ok(crate::watchdog::pids_beneath(&agents).is_empty()))?;
    ensure!(
        started.elapsed() < world.stage.patience(Duration::from_secs(15)),
        "it took {:?}",
        started.elapsed()
    );
    Ok(())
}

fn listed(world: &World) -> Result<()> {
    let base = ground("listed")?;
    let path = file(&base.join("file"), "text")?;
    let gate = base.join("go");
    let policy = with_base("");
    let running = world.agent("listed").policy(&policy)?.start(&[
        "open-read",
        &path,
        "then",
        "await",
        &gate.display().to_string(),
    ])?;
    let mut last = String::new();
    let result = world.wait("`ambit agents --json` lists it with a denial", || {
        let output = world.ambit(&["agents", "--json"])?;
        last = output.whole();
        let value: serde_json::Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        let all = value.as_array().or_else(|| value["agents"].as_array()).cloned();
        Ok(all.unwrap_or_default().iter().any(|agent| {
            agent["name"] == "listed"
                && agent["denied"].as_u64() >= Some(1)
                && agent["allowed"].as_u64() >= Some(1)
                && agent["mode"] == "enforce"
        }))
    });
    result.map_err(|error| error.context(last))?;
    let text = world.ambit(&["agents"])?;
    ensure!(text.stdout.contains("listed"), "{}", text.whole());
    file(&gate, "")?;
    running.finish()?.expect("open-read", EPERM)
}

fn parents(world: &World) -> Result<()> {
    let events = world.events();
    let shell = "/usr/bin/ambit-actor exec /usr/bin/ambit-actor nothing inner; exit 0";
    world.agent("chain").policy(&with_base(""))?.run(&["/bin/sh", "-c", shell])?.expect_code(0)?;
    let event = events.wait("the inner launch", |event| {
        event.agent() == "chain"
            && event.class() == PROCESS
            && event.verdict() == ALLOWED
            && event.command_line().ends_with("nothing inner")
    })?;
    let mut chain = Vec::new();
    let mut process = &event.0["actor"]["process"];
    while process.is_object() {
        chain.push(process["cmd_line"].as_str().unwrap_or_default().to_owned());
        process = &process["parent_process"];
    }
    ensure!(
        chain.iter().any(|line| line.starts_with("/bin/sh -c")),
        "the chain does not reach the shell: {chain:?}"
    );
    Ok(())
}
