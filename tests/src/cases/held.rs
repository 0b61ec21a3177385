//! What is open or connected already when a policy comes: what is forbidden is refused, and nothing else.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Case, case, fresh, shared};
use crate::actor::{EPERM, Output, Running, entering};
use crate::events::{DENIED, OBSERVED};
use crate::policy::{on_path, on_peer, with_base};
use crate::stage::{USER, make_folder};
use crate::verbs::SECRET;
use crate::world::{Settings, World, agent_table, file, ground};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("a_reload_that_forbids_reading_reaches_descriptors_that_are_open", reading)
            .alone()
            .in_subset(),
        case("a_reload_that_forbids_writing_reaches_descriptors_that_are_open", writing).alone(),
        case("a_reload_that_forbids_a_folder_reaches_its_descriptors", listing).alone(),
        case("a_reload_that_forbids_a_peer_reaches_connections", peers).alone(),
        case("a_descriptor_that_the_user_hands_over_stays_usable", handed_over).alone(),
        case("audit_mode_tells_of_descriptors_from_before_and_lets_them_go_on", audited).alone(),
        case("an_accepted_connection_can_answer_whom_the_agent_may_not_call", || shared(answers))
            .in_subset(),
        case("a_program_runs_whose_text_may_not_be_read", || shared(unreadable)).in_subset(),
        case("what_may_be_written_and_not_read_is_copied_up_by_an_overlay", || shared(copied_up))
            .in_subset(),
    ]
}

const AGENT: &str = "cell";
const CGROUP: &str = "cell-held";

/// A world with one configured agent, and what it may do at first.
fn with_cell(
    mode: &str,
    name: &str,
    test: impl FnOnce(&mut World, &Path) -> Result<()>,
) -> Result<()> {
    let more = agent_table(AGENT, CGROUP, mode);
    fresh(Settings { more, ..Settings::default() }, |world| {
        let base = ground(name)?;
        make_folder(&world.attach.join(CGROUP))?;
        test(world, &base)
    })
}

/// Everything in a folder.
fn all(base: &Path) -> String {
    let base = base.display().to_string();
    with_base(
        &(on_path("all-read", "permit", "read", "Dir", &base)
            + &on_path("all-write", "permit", "write", "Dir", &base)),
    )
}

/// The agent takes hold of something, the policy gets more words, and it goes on.
fn through_a_reload(
    world: &mut World,
    base: &Path,
    first: &str,
    hold: &[&str],
    then: &[&str],
    tight: &str,
) -> Result<Output> {
    let loose = all(base) + first;
    world.policy("own", &loose)?;
    world.start()?;
    let at = |name: &str| base.join(name).display().to_string();
    let (ready, go) = (at("ready"), at("go"));
    let steps = [hold, &["then", "mkdir", &ready, "then", "await", &go, "then"], then].concat();
    let limit = world.stage.patience(Duration::from_secs(40));
    let agent = Running::start(entering(&world.attach.join(CGROUP), USER, &steps), limit)?;
    world.wait("the agent holds it", || Ok(Path::new(&ready).exists()))?;
    world.policy("own", &(loose + tight))?;
    world.reload()?;
    make_folder(Path::new(&go))?;
    let output = agent.finish()?;
    // To a bystander nothing is different.
    std::fs::remove_dir(&ready)?;
    let beside = world.bystander(&steps)?;
    for step in beside.steps() {
        ensure!(step["errno"] == 0, "a bystander cannot do it either: {}", beside.whole());
    }
    Ok(output)
}

fn expect_each(world: &World, output: &Output, wanted: &[(&str, i64)]) -> Result<()> {
    let lsm = world.has_lsm()?;
    for (step, errno) in wanted {
        output.expect(step, if lsm { *errno } else { 0 })?;
    }
    Ok(())
}

fn reading() -> Result<()> {
    with_cell("enforce", "held-reading", |world, base| {
        let key = file(&base.join("key"), SECRET)?;
        let output = through_a_reload(
            world,
            base,
            "",
            &["hold-write", &key],
            &["held-read", "then", "held-map", "then", "held-ring-read", "then", "held-write"],
            &on_path("tight", "forbid", "read", "File", &key),
        )?;
        let wanted = [
            ("held-read", EPERM),
            ("held-map", EPERM),
            ("held-ring-read", EPERM),
            ("held-write", 0),
        ];
        expect_each(world, &output, &wanted)?;
        if !world.has_lsm()? {
            return Ok(());
        }
        let event = world.all_events().wait("that reading was denied", |event| {
            event.agent() == AGENT
                && event.verdict() == DENIED
                && event.text(&["unmapped", "operation"]) == "use"
        })?;
        ensure!(event.path() == key && event.policy() == "tight", "{}", event.brief());
        Ok(())
    })
}

fn writing() -> Result<()> {
    with_cell("enforce", "held-writing", |world, base| {
        let key = file(&base.join("key"), SECRET)?;
        let steps = [
            "held-read",
            "then",
            "held-map",
            "then",
            "held-write",
            "then",
            "held-cut",
            "then",
            "held-map-writable",
        ];
        let tight = on_path("tight", "forbid", "write", "File", &key);
        let output = through_a_reload(world, base, "", &["hold-write", &key], &steps, &tight)?;
        let wanted = [
            ("held-read", 0),
            ("held-map", 0),
            ("held-write", EPERM),
            ("held-cut", EPERM),
            ("held-map-writable", EPERM),
        ];
        expect_each(world, &output, &wanted)
    })
}

fn listing() -> Result<()> {
    with_cell("enforce", "held-listing", |world, base| {
        file(&base.join("folder/key"), SECRET)?;
        let folder = base.join("folder").display().to_string();
        let tight = on_path("tight", "forbid", "read", "Dir", &folder);
        let output = through_a_reload(world, base, "", &["hold", &folder], &["held-list"], &tight)?;
        expect_each(world, &output, &[("held-list", EPERM)])
    })
}

fn peers() -> Result<()> {
    with_cell("enforce", "held-peers", |world, base| {
        let listening = TcpListener::bind("127.0.0.1:0")?;
        let peer = listening.local_addr()?.to_string();
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for mut stream in listening.incoming().flatten() {
                let _ = stream.write_all(b"hello");
                kept.push(stream);
            }
        });
        let text = file(&base.join("text"), "text")?;
        let output = through_a_reload(
            world,
            base,
            &on_peer("first", "permit", "connect", "tcp", &peer),
            &["hold-connect", &peer, "then", "held-send"],
            &["held-ring-send", "then", "held-send-file", &text, "then", "held-receive"],
            &on_peer("tight", "forbid", "connect", "tcp", &peer),
        )?;
        output.expect("held-send", 0)?;
        let wanted =
            [("held-ring-send", EPERM), ("held-send-file", EPERM), ("held-receive", EPERM)];
        expect_each(world, &output, &wanted)?;
        if !world.has_lsm()? {
            return Ok(());
        }
        let event = world.all_events().wait("that sending was denied", |event| {
            event.agent() == AGENT && event.verdict() == DENIED && event.peer() == peer
        })?;
        ensure!(event.policy() == "tight", "another policy decided: {}", event.brief());
        Ok(())
    })
}

fn handed_over() -> Result<()> {
    with_cell("enforce", "held-handed", |world, base| {
        // Outside of all that is permitted, and of all that is forbidden.
        let text = file(&ground("held-outside")?.join("text"), SECRET)?;
        let closed = base.join("closed").display().to_string();
        file(&base.join("closed/key"), SECRET)?;
        world.policy("own", &(all(base) + &on_path("other", "forbid", "read", "Dir", &closed)))?;
        world.start()?;
        let cell = world.attach.join(CGROUP);
        let open = std::fs::File::options().read(true).write(true).open(&text)?;
        let steps = ["open-read", &text, "then", "held-read", "then", "held-write"];
        let output = world.holding(&open, &cell, &steps)?;
        output.expect("open-read", EPERM)?;
        output.expect("held-read", 0)?;
        output.expect("held-write", 0)
    })
}

fn audited() -> Result<()> {
    with_cell("audit", "held-audited", |world, base| {
        let key = file(&base.join("key"), SECRET)?;
        world.policy("own", &(all(base) + &on_path("tight", "forbid", "read", "File", &key)))?;
        world.start()?;
        let events = world.events();
        let open = std::fs::File::open(&key)?;
        let output = world.holding(&open, &world.attach.join(CGROUP), &["held-read"])?;
        output.expect("held-read", 0)?;
        if !world.has_lsm()? {
            return Ok(());
        }
        let event = events.wait("that it would have been denied", |event| {
            event.agent() == AGENT && event.path() == key && event.verdict() == OBSERVED
        })?;
        ensure!(event.policy() == "tight", "another policy decided: {}", event.brief());
        Ok(())
    })
}

fn answers(world: &World) -> Result<()> {
    let own = "127.0.0.1:5352";
    let policy = with_base(
        &(on_peer("bound", "permit", "bind", "tcp", own)
            + &on_peer("served", "permit", "listen", "tcp", own)
            + "@id(\"here\") forbid (principal, action == Action::\"connect\", resource is Peer) \
               when { resource.ip.isInRange(ip(\"127.0.0.0/8\")) };\n"),
    );
    let agent = world.agent("answers").policy(&policy)?.start(&["serve", own])?;
    let limit = world.stage.patience(Duration::from_secs(20));
    let end = std::time::Instant::now() + limit;
    let mut stream = loop {
        match TcpStream::connect(own) {
            Ok(stream) => break stream,
            Err(error) if std::time::Instant::now() > end => {
                return Err(error).context("the agent serves nothing");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"asked")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let output = agent.finish()?;
    output.expect("serve", 0)?;
    ensure!(
        answer.starts_with("asked") && answer.len() == 9,
        "the agent answered {answer:?}: {}",
        output.whole()
    );
    Ok(())
}

/// The kernel reads a program that it runs; that is not the agent's reading.
fn unreadable(world: &World) -> Result<()> {
    if !world.has_lsm()? {
        // fanotify does not tell them apart.
        return Ok(());
    }
    let program = crate::world::tool(&ground("unreadable")?.join("tool"))?;
    let policy = with_base(
        &(on_path("runs", "permit", "exec", "Program", &program)
            + &on_path("unread", "forbid", "read", "File", &program)),
    );
    let output = world.agent("unreadable").policy(&policy)?.act(&["exec", &program, "nothing"])?;
    output.expect("exec", 0)
}

/// The kernel reads the layer beneath to copy it up; that is not the agent's reading either.
fn copied_up(world: &World) -> Result<()> {
    if !world.has_lsm()? {
        // fanotify sees an open beneath the overlay like any other.
        return Ok(());
    }
    let base = ground("held-copied-up")?;
    let key = file(&base.join("lower/key"), SECRET)?;
    let merged = super::objects::overlay(&base)?;
    let there = merged.path().join("key").display().to_string();
    let policy = all(&base)
        + &on_path("merged", "forbid", "read", "File", &there)
        + &on_path("lower", "forbid", "read", "File", &key);
    let output = world.agent("copies-up").policy(&policy)?.act(&["append", &there])?;
    output.expect("append", 0)?;
    ensure!(base.join("upper/key").exists(), "nothing was copied up");
    Ok(())
}
