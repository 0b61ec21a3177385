//! What Ambit costs: the same actions without it, beside it and under it, in one run.
//!
//! Run in a guest whose time counts instructions (`cargo xtask bench hooks`), a nanosecond of CPU is an
//! instruction. Each line on stdout is a figure, as JSON.

mod empty;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::actor::{EPERM, entering, run_limited};
use crate::policy::with_base;
use crate::stage::{Stage, USER};
use crate::world::{Settings, World, agent_table, file, ground, tool};

/// How long one measurement may take.
const LIMIT: Duration = Duration::from_secs(600);
/// The rules of the agents with few of them and with many.
const RULES: [(&str, usize); 2] = [("10", 10), ("100,000", 100_000)];

/// One action: its name, how often it is done, and what stands for its target.
struct Action {
    name: &'static str,
    count: u32,
}

const ACTIONS: [Action; 6] = [
    Action { name: "call", count: 20_000 },
    Action { name: "open", count: 20_000 },
    Action { name: "read", count: 20_000 },
    Action { name: "exec", count: 300 },
    Action { name: "connect", count: 2_000 },
    Action { name: "send", count: 10_000 },
];

/// What the actions are done to.
struct Ground {
    file: String,
    secret: String,
    program: String,
    forbidden: String,
}

/// Where nobody listens and nobody may connect.
const CLOSED: &str = "127.0.0.1:9";

impl Ground {
    fn make() -> Result<Self> {
        let base = ground("bench")?;
        let path = |name: &str| base.join(name);
        Ok(Self {
            file: file(&path("work/folder/file"), &"text ".repeat(1000))?,
            secret: file(&path("work/secret"), "hidden")?,
            program: still(&path("tools/true"))?,
            forbidden: still(&path("tools/forbidden"))?,
        })
    }

    fn target(&self, action: &str, denied: bool) -> &str {
        match (action, denied) {
            ("open" | "read", false) => &self.file,
            ("open" | "read", true) => &self.secret,
            ("exec", false) => &self.program,
            ("exec", true) => &self.forbidden,
            (_, false) => "",
            (_, true) => CLOSED,
        }
    }

    /// So many rules for an agent, of which the first ten are those that its actions meet.
    fn policy(&self, agent: &str, rules: usize) -> String {
        let mut text = String::new();
        let who = format!("principal == Agent::{agent:?}");
        let first = [
            format!(
                "permit ({who}, action == Action::\"read\", resource in Dir::\"/ground/bench\");"
            ),
            format!(
                "permit ({who}, action == Action::\"exec\", resource in Dir::\"/ground/bench\");"
            ),
            format!(
                "permit ({who}, action == Action::\"connect\", resource is Peer) when {{ resource.ip.isLoopback() }};"
            ),
            format!(
                "permit ({who}, action == Action::\"bind\", resource is Peer) when {{ resource.ip.isLoopback() }};"
            ),
            format!(
                "permit ({who}, action == Action::\"listen\", resource is Peer) when {{ resource.ip.isLoopback() }};"
            ),
            format!(
                "forbid ({who}, action == Action::\"read\", resource == File::{:?});",
                self.secret
            ),
            format!(
                "forbid ({who}, action == Action::\"exec\", resource == Program::{:?});",
                self.forbidden
            ),
            format!(
                "forbid ({who}, action == Action::\"connect\", resource is Peer) when {{ resource.port == 9 }};"
            ),
            format!("permit ({who}, action == Action::\"read\", resource in Dir::\"/srv\");"),
            format!("permit ({who}, action == Action::\"write\", resource in Dir::\"/srv\");"),
        ];
        for rule in first {
            // Writing to a `String` cannot fail.
            let _ = writeln!(text, "{rule}");
        }
        for rule in 10..rules {
            let _ = match rule % 2 {
                0 => writeln!(
                    text,
                    "permit ({who}, action == Action::\"read\", resource == File::\"/srv/{}/{rule}\");",
                    rule % 100
                ),
                _ => writeln!(
                    text,
                    "permit ({who}, action == Action::\"connect\", resource is Peer) when {{ \
                     resource.ip.isInRange(ip(\"10.{}.{}.0/24\")) }};",
                    rule / 512,
                    rule / 2 % 256
                ),
            };
        }
        text
    }
}

/// A program that ends at once and needs no library where there is a busybox; else the actor.
fn still(at: &Path) -> Result<String> {
    let busybox = Path::new("/bin/busybox");
    let path = tool(at)?;
    if busybox.exists() {
        fs::copy(busybox, at).with_context(|| format!("cannot write {path}"))?;
    }
    Ok(path)
}

/// Runs it; `empty` is the object with the programs that do nothing.
pub fn hooks(empty: &Path) -> Result<ExitCode> {
    let stage = Stage::enter()?;
    stage.limit(Duration::from_secs(7200))?;
    let tables: String =
        RULES.iter().map(|(name, _)| agent_table(&agent(name), &cell(name), "enforce")).collect();
    let mut world = World::empty(Settings { more: tables, ..Settings::default() })?;
    let ground = Ground::make()?;
    for name in ["bystanders".to_owned()].into_iter().chain(RULES.map(|(name, _)| cell(name))) {
        crate::stage::make_folder(&world.attach.join(name))?;
    }
    let beside = world.attach.join("bystanders");
    // Until the guest's clock and caches have settled, figures are of no use.
    measure(&ground, &beside, &ACTIONS[1], false)?;
    all(&ground, "none", &beside, false)?;
    {
        let _programs = empty::Programs::attach(empty, &world.attach)?;
        all(&ground, "empty", &beside, false)?;
    }
    world.policy("base", &with_base(""))?;
    for (name, rules) in RULES {
        world.policy(&cell(name), &ground.policy(&agent(name), rules))?;
    }
    world.start()?;
    all(&ground, "bystander", &beside, false)?;
    for (name, _) in RULES {
        let cell = world.attach.join(cell(name));
        let before = lost(&world)?;
        all(&ground, &format!("allowed, {name} rules"), &cell, false)?;
        all(&ground, &format!("denied, {name} rules"), &cell, true)?;
        say("lost", name, lost(&world)? - before);
    }
    say("daemon", "open", daemon(&world, &ground)?);
    world.stop()?;
    // With agents that are configured, what is pinned goes on.
    world.ambit(&["detach", "--all"])?.expect_code(0)?;
    // The kernel takes them off their hooks one after the other, each when nobody can be in it any more.
    while aya::programs::loaded_programs().count() > 0 {
        std::thread::sleep(Duration::from_secs(1));
    }
    all(&ground, "none, again", &beside, false)?;
    Ok(ExitCode::SUCCESS)
}

fn agent(rules: &str) -> String {
    format!("bench-{}", rules.replace(',', ""))
}

fn cell(rules: &str) -> String {
    format!("cell-{}", agent(rules))
}

/// Measures every action in a cgroup.
fn all(ground: &Ground, setup: &str, cgroup: &Path, denied: bool) -> Result<()> {
    for action in &ACTIONS {
        if !denied || action.name != "call" {
            say(setup, action.name, measure(ground, cgroup, action, denied)?);
        }
    }
    Ok(())
}

/// Nanoseconds of CPU for one action.
fn measure(ground: &Ground, cgroup: &Path, action: &Action, denied: bool) -> Result<f64> {
    let (name, count) = (action.name, action.count.to_string());
    let steps = ["measure", name, &count, ground.target(name, denied)];
    let output = run_limited(&mut entering(cgroup, USER, &steps), LIMIT)?;
    let told = output.steps();
    let told = told
        .iter()
        .find(|told| told["nanoseconds"].is_f64())
        .with_context(|| format!("{name} was not measured: {}", output.whole()))?;
    let expected = if denied { EPERM } else { 0 };
    ensure!(told["outcome"] == expected, "{name} ended otherwise than expected: {told}");
    told["nanoseconds"].as_f64().context("no figure")
}

fn say(setup: &str, action: &str, figure: f64) {
    println!("figure {}", json!({ "setup": setup, "action": action, "figure": figure }));
}

/// Events that the kernel had no room for.
fn lost(world: &World) -> Result<f64> {
    Ok(world.metrics()?.value("ambit_events_lost_total", &[]).unwrap_or(0.0))
}

/// Nanoseconds of the daemon's CPU for one event, what it does anyhow apart.
fn daemon(world: &World, ground: &Ground) -> Result<f64> {
    const IDLE: Duration = Duration::from_secs(5);
    let events = || -> Result<f64> {
        let metrics = world.metrics()?;
        metrics.value("ambit_events_emitted_total", &[]).context("no ambit_events_emitted_total")
    };
    let (before, begun) = (used(world)?, now()?);
    std::thread::sleep(IDLE);
    let idle = (used(world)? - before).as_secs_f64() / (now()? - begun).as_secs_f64();
    let (before, begun, told) = (used(world)?, now()?, events()?);
    let cell = world.attach.join(cell(RULES[0].0));
    measure(ground, &cell, &ACTIONS[1], false)?;
    // Until the last of them is told.
    let mut seen = events()?;
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let next = events()?;
        if next - seen < 10.0 {
            break;
        }
        seen = next;
    }
    let spent = (used(world)? - before).as_secs_f64() - idle * (now()? - begun).as_secs_f64();
    let told = events()? - told;
    ensure!(told > 1000.0, "only {told} events were told");
    Ok(spent * 1e9 / told)
}

fn now() -> Result<Duration> {
    Ok(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?.into())
}

/// What all of the daemon's threads have used of the CPU (Documentation/scheduler/sched-stats.rst).
fn used(world: &World) -> Result<Duration> {
    let threads = PathBuf::from(format!("/proc/{}/task", world.daemon_pid()?));
    let mut nanoseconds = 0;
    for thread in
        fs::read_dir(&threads).with_context(|| format!("cannot list {}", threads.display()))?
    {
        let path = thread?.path().join("schedstat");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let own = text.split(' ').next().and_then(|number| number.parse::<u64>().ok());
        nanoseconds += own.unwrap_or(0);
    }
    if nanoseconds == 0 {
        bail!("this kernel does not say in {} what the daemon used", threads.display());
    }
    Ok(Duration::from_nanos(nanoseconds))
}
