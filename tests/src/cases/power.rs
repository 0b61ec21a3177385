//! An agent has less power than who started it: what a command of `ambit run` finds of itself.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::pty::openpty;
use nix::sys::stat::fstat;
use nix::unistd::{Uid, fchown, ttyname};
use serde_json::Value;

use super::{Case, case, shared};
use crate::actor::{EPERM, Output, Running};
use crate::events::{DENIED, LAUNCH, PROCESS};
use crate::policy::{on_path, with_base};
use crate::stage::{ACTOR, USER};
use crate::world::{World, ground};

/// `EIO`: the answer of a kernel that lets nobody type for others.
const EIO: i64 = Errno::EIO as i64;
/// `ENXIO`: there is no controlling terminal.
const ENXIO: i64 = Errno::ENXIO as i64;
/// `EAGAIN`: no more processes.
const EAGAIN: i64 = Errno::EAGAIN as i64;

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("agents_lose_groups_that_give_power", || shared(groups)),
        case("a_fork_bomb_ends_at_its_bound", || shared(fork_bomb)),
        case("agents_have_a_session_of_their_own", || shared(session)),
        case("agents_cannot_type_into_the_callers_terminal", || shared(terminal)).in_subset(),
        case("codes_of_what_cannot_run_tell_why", || shared(codes)),
    ]
}

/// The user of these tests, and the groups that it is in.
const MEMBER: &str = "ambit-member";
const MEMBER_ID: u32 = 4201;
const HARMLESS: (&str, u32) = ("ambit-crew", 4202);
const POWERFUL: [(&str, u32); 2] = [("docker", 4203), ("disk", 4204)];

/// Runs a test with the user in the system's lists, which are as they were after it.
fn with_member(test: impl FnOnce() -> Result<()>) -> Result<()> {
    let [passwd, group] = ["/etc/passwd", "/etc/group"];
    let before = [fs::read_to_string(passwd)?, fs::read_to_string(group)?];
    let [users, groups] = &before;
    let mut groups: Vec<String> = groups.lines().map(str::to_owned).collect();
    for (name, id) in [HARMLESS].into_iter().chain(POWERFUL) {
        match groups.iter_mut().find(|line| line.starts_with(&format!("{name}:"))) {
            Some(line) if line.ends_with(':') => line.push_str(MEMBER),
            Some(line) => line.push_str(&format!(",{MEMBER}")),
            None => groups.push(format!("{name}:x:{id}:{MEMBER}")),
        }
    }
    groups.push(format!("{MEMBER}:x:{MEMBER_ID}:\n"));
    let result =
        fs::write(passwd, format!("{users}{MEMBER}:x:{MEMBER_ID}:{MEMBER_ID}::/:/bin/sh\n"))
            .and_then(|()| fs::write(group, groups.join("\n")))
            .context("cannot write the lists of users and groups")
            .and_then(|()| test());
    fs::write(passwd, &before[0])?;
    fs::write(group, &before[1])?;
    result
}

/// The number that a group has here.
fn group_id(name: &str) -> Result<String> {
    let groups = fs::read_to_string("/etc/group")?;
    let line = groups.lines().find(|line| line.starts_with(&format!("{name}:")));
    let id = line.and_then(|line| line.split(':').nth(2));
    id.map(str::to_owned).with_context(|| format!("there is no group {name}"))
}

/// What a command of `ambit run` reads of itself.
const STATUS: &str = "while read -r key value; do echo \"$key $value\"; done </proc/self/status";

fn groups(world: &World) -> Result<()> {
    with_member(|| {
        let member = world.agent("member").policy(&with_base(""))?.as_user(MEMBER);
        let [docker, disk] = POWERFUL.map(|(name, _)| name);
        let own = vec![MEMBER_ID.to_string(), HARMLESS.1.to_string()];

        let output = member.run(&["/bin/sh", "-c", STATUS])?;
        ensure!(sorted(&output)? == own, "it has other groups than {own:?}: {}", output.whole());
        for word in ["without the groups", docker, disk] {
            ensure!(output.stderr.contains(word), "no word of `{word}`: {}", output.whole());
        }

        // One that was asked for is kept, and no other.
        let asked = member.option("--group").option(docker);
        let output = asked.run(&["/bin/sh", "-c", STATUS])?;
        let mut own = [own, vec![group_id(docker)?]].concat();
        own.sort();
        ensure!(sorted(&output)? == own, "it has other groups than {own:?}: {}", output.whole());
        Ok(())
    })
}

fn sorted(output: &Output) -> Result<Vec<String>> {
    let line = output.stdout.lines().find_map(|line| line.strip_prefix("Groups:"));
    let line = line.with_context(|| format!("no groups are told: {}", output.whole()))?;
    let mut groups: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    groups.sort();
    Ok(groups)
}

fn fork_bomb(world: &World) -> Result<()> {
    for bound in [6_u32, 9] {
        let output = world
            .agent("bomb")
            .policy(&with_base(""))?
            .option("--pids-max")
            .option(&bound.to_string())
            .act(&["forks", "50"])?;
        let told: Value = output.steps().into_iter().next().unwrap_or_default();
        // The actor itself is one of them.
        ensure!(
            told["forked"] == bound - 1 && told["refused"] == EAGAIN,
            "with {bound} processes: {}",
            output.whole()
        );
    }
    // Who is no agent is not bounded.
    let free = world.bystander(&["forks", "50"])?;
    let forked = free.steps().into_iter().find_map(|step| step["forked"].as_u64());
    ensure!(forked == Some(50), "{}", free.whole());
    Ok(())
}

/// Its own session, the first process of which it is, and no way to more by executing.
fn session(world: &World) -> Result<()> {
    let script = "read -r pid comm state parent group session tty rest </proc/self/stat; \
                  echo \"ids $pid $group $session tty $tty\"; ";
    let output = world.agent("session").policy(&with_base(""))?.run(&[
        "/bin/sh",
        "-c",
        &format!("{script}{STATUS}"),
    ])?;
    let ids = output.stdout.lines().find_map(|line| line.strip_prefix("ids "));
    let ids: Vec<&str> = ids.unwrap_or_default().split(' ').collect();
    ensure!(
        matches!(ids[..], [pid, group, session, "tty", "0"] if pid == group && pid == session),
        "it leads no session of its own: {}",
        output.whole()
    );
    for line in ["NoNewPrivs: 1", "CapEff: 0000000000000000", "CapPrm: 0000000000000000"] {
        ensure!(output.stdout.contains(line), "there is no `{line}`: {}", output.whole());
    }
    Ok(())
}

/// The caller's terminal, and what is shown there.
struct Caller {
    slave: OwnedFd,
    name: String,
    reader: std::thread::JoinHandle<String>,
}

impl Caller {
    fn new() -> Result<Self> {
        let pair = openpty(None, None).context("cannot make a pseudo-terminal")?;
        let name = ttyname(&pair.slave)?.display().to_string();
        // Even whom it belongs to may not type there from another session.
        fchown(&pair.slave, Some(Uid::from_raw(USER)), None)?;
        ensure!(fstat(&pair.slave)?.st_uid == USER, "the terminal has another owner");
        let mut master = File::from(pair.master);
        let reader = std::thread::spawn(move || {
            let mut shown = Vec::new();
            // Ends with EIO when nothing has the other side open any more.
            let _ = std::io::Read::read_to_end(&mut master, &mut shown);
            String::from_utf8_lossy(&shown).into_owned()
        });
        Ok(Self { slave: pair.slave, name, reader })
    }

    /// Has a command lead a session with this as its terminal.
    fn leads(&self, command: &mut Command) {
        let slave = self.slave.as_raw_fd();
        // SAFETY: only system calls between fork and exec.
        unsafe {
            command.pre_exec(move || {
                nix::unistd::setsid()?;
                Errno::result(nix::libc::ioctl(slave, nix::libc::TIOCSCTTY, 0))?;
                Ok(())
            });
        }
    }

    /// Bytes that wait to be read as typed.
    fn waiting(&self) -> Result<i32> {
        let mut count = 0;
        // SAFETY: `FIONREAD` writes one `int`, which outlives the call.
        let answer =
            unsafe { nix::libc::ioctl(self.slave.as_raw_fd(), nix::libc::FIONREAD, &mut count) };
        Errno::result(answer)?;
        Ok(count)
    }

    /// What was shown, once nobody has the terminal any more.
    fn shown(self) -> String {
        drop(self.slave);
        self.reader.join().unwrap_or_default()
    }
}

/// The errno of a step, as the actor shows it on a terminal, where it may stand after an echo.
fn shown_errno(shown: &str, step: &str) -> Result<i64> {
    shown
        .lines()
        .filter_map(|line| serde_json::from_str(line.get(line.find('{')?..)?.trim()).ok())
        .find(|told: &Value| told["step"] == step)
        .and_then(|told| told["errno"].as_i64())
        .with_context(|| format!("the actor told of no step `{step}`: {shown}"))
}

fn terminal(world: &World) -> Result<()> {
    let sysctl = fs::read_to_string("/proc/sys/dev/tty/legacy_tiocsti").unwrap_or_default();
    let nobody_types = sysctl.trim() == "0";
    let agent = world.agent("typist").policy(&with_base(""))?;
    let limit = world.stage.patience(crate::world::PATIENCE);

    // On a terminal: it has one of its own in its place.
    let caller = Caller::new()?;
    let outer = format!("type {} outer\n", caller.name);
    let mut command = agent.command(&[
        ACTOR,
        "type",
        &caller.name,
        "outer\n",
        "then",
        "type",
        "/dev/tty",
        "inner\n",
        "then",
        "exit",
        "9",
    ]);
    command.stdin(caller.slave.try_clone()?);
    command.stdout(caller.slave.try_clone()?).stderr(caller.slave.try_clone()?);
    caller.leads(&mut command);
    let mut child = command.spawn().context("cannot start ambit run")?;
    drop(command);
    let end = std::time::Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if std::time::Instant::now() > end {
            child.kill()?;
            child.wait()?;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    let waiting = caller.waiting()?;
    let shown = caller.shown();
    ensure!(status.code() == Some(9), "it ended with {status}: {shown}");
    ensure!(waiting == 0, "{waiting} bytes were typed into the caller's terminal: {shown}");
    let expected = if nobody_types { EIO } else { EPERM };
    let found = shown_errno(&shown, &outer)?;
    ensure!(found == expected, "typing there ended with errno {found}: {shown}");
    let found = shown_errno(&shown, "type /dev/tty inner\n")?;
    let expected = if nobody_types { EIO } else { 0 };
    ensure!(found == expected, "typing into its own ended with errno {found}: {shown}");

    // With its streams elsewhere: it has none, though who started it has.
    let caller = Caller::new()?;
    let mut command =
        agent.command(&[ACTOR, "open-read", "/dev/tty", "then", "type", &caller.name, "outer\n"]);
    caller.leads(&mut command);
    let output = Running::start(command, limit)?.finish()?;
    output.expect("open-read", ENXIO)?;
    output.expect("type", if nobody_types { EIO } else { EPERM })?;
    ensure!(caller.waiting()? == 0, "something was typed: {}", output.whole());
    caller.shown();
    Ok(())
}

/// 126 for what is there and may not run, by its mode or by policy; 127 for what is not there; 128 and
/// the number for a signal, even one that cannot be caught.
fn codes(world: &World) -> Result<()> {
    let agent = world.agent("codes").policy(&with_base(""))?;
    let killed = agent.run(&["/bin/sh", "-c", "kill -KILL $$"])?;
    killed.expect_code(137)?;
    agent.run(&["no-such-program-in-path"])?.expect_code(127)?;
    agent.run(&["/tmp"])?.expect_code(126)?;

    let forbidden = crate::world::tool(&ground("codes")?.join("tool"))?;
    let policy = with_base(&on_path("no-tool", "forbid", "exec", "Program", &forbidden));
    let events = world.events();
    let output = world.agent("codes").policy(&policy)?.run(&[&forbidden, "exit", "0"])?;
    output.expect_code(126)?;
    output.expect_refusal(&[&forbidden])?;
    events.wait("the denial", |event| {
        event.agent() == "codes"
            && event.class() == PROCESS
            && event.activity() == LAUNCH
            && event.verdict() == DENIED
            && event.path() == forbidden
            && event.policy() == "no-tool"
    })?;
    Ok(())
}
