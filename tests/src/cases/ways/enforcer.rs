//! T: ways to the enforcer itself, and to make it look elsewhere.

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::super::fresh;
use super::{
    Attempt, Place, Setup, Victim, Way, Who, attempt, bystander, judge, measure, own_way, port,
    way, words,
};
use crate::policy::{on_path, on_peer};
use crate::stage::make_folder;
use crate::world::{CONFIG, EVENTS, PINS, RUN, Settings, World, listener};

pub(super) fn ways() -> Vec<Way> {
    vec![
        own_way("T1", "the enforcer's own", enforcer),
        way("T2", "floods", Who::User, floods),
        own_way("T3", "full tables", tables),
        way("T4", "buffers that change", Who::User, buffers),
        own_way("T5", "a dead daemon", dead),
    ]
}

/// The first pin that there is.
fn pin(folder: &Path) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        if !path.is_dir() {
            return Ok(Some(path));
        }
        if let Some(found) = pin(&path)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// What is Ambit's; for a bystander, what is like it.
struct Own {
    process: String,
    pin: String,
    socket: String,
    config: String,
    events: String,
    rotated: String,
}

impl Own {
    fn ambits(world: &World) -> Result<Self> {
        let rotated = format!("{EVENTS}.1");
        fs::write(&rotated, "")?;
        let pin = pin(Path::new(PINS))?.context("the daemon has no pin")?;
        Ok(Self {
            process: world.daemon_pid()?.to_string(),
            pin: pin.display().to_string(),
            socket: format!("{RUN}/ambit.sock"),
            config: CONFIG.to_owned(),
            events: EVENTS.to_owned(),
            rotated,
        })
    }

    fn like(at: &Place, victim: &Victim) -> Result<Self> {
        let [pin, socket, config, events, rotated] =
            ["pin", "socket", "config", "events", "rotated"].map(|name| at.open(name, "text"));
        Ok(Self {
            process: victim.pid(),
            pin: pin?,
            socket: socket?,
            config: config?,
            events: events?,
            rotated: rotated?,
        })
    }

    fn setup(&self) -> Setup {
        let pid = &self.process;
        let memory = format!("/proc/{pid}/mem");
        let moved = format!("{}-moved", self.config);
        // Everything is permitted, so that only what is always forbidden stands between.
        let policy = on_path("everything-read", "permit", "read", "Dir", "/")
            + &on_path("everything-write", "permit", "write", "Dir", "/")
            + &on_path("everything-exec", "permit", "exec", "Dir", "/");
        Setup::of(vec![
            attempt("bpf").step(&["bpf"]).told_by(&["bpf"]),
            attempt("signals").step(&["kill", "18", pid]).told_by(&["signal"]),
            attempt("ptrace").step(&["trace", pid]).told_by(&["ptrace"]),
            attempt("process_vm_readv").step(&["peek", pid]).told_by(&["ptrace"]),
            attempt("/proc/PID/mem").step(&["open-read", &memory]).told_by(&["ptrace", &memory]),
            attempt("its log").step(&["chmod", &self.events]).told_by(&[&self.events]),
            attempt("its rotated log").step(&["unlink", &self.rotated]).told_by(&[&self.rotated]),
            attempt("its configuration")
                .step(&["rename", &self.config, &moved])
                .told_by(&[&self.config, &moved]),
            attempt("its socket").step(&["unlink", &self.socket]).told_by(&[&self.socket]),
            attempt("its pins").step(&["unlink", &self.pin]).told_by(&[&self.pin]),
        ])
        .policy(policy)
    }
}

fn enforcer(id: &str) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    fresh(Settings::default(), |world| {
        world.start()?;
        attempts = measure(world, id, Who::Root, |at| {
            if at.is_agents() {
                return Ok(Own::ambits(world)?.setup());
            }
            let victim = Victim::start(at)?;
            Ok(Own::like(at, &victim)?.setup().keep(victim))
        })?;
        Ok(())
    })?;
    Ok(attempts)
}

fn floods(_: &World, at: &Place) -> Result<Setup> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let permitted = socket.local_addr()?.to_string();
    let forbidden = listener("127.0.0.1:0")?;
    let (opened, connected, forked) = (at.key("opens")?, at.key("connects")?, at.key("forks")?);
    let steal = |what, flood: &[&str], key: &str| {
        attempt(what).step(flood).step(&["steal", key]).told_by(&[key])
    };
    Ok(Setup::of(vec![
        steal("opens", &["burst", "3000", &at.at("open/file")], &opened),
        steal("connects and forks", &["flood", "60", &permitted, &forbidden], &connected),
        steal("processes", &["forks", "60"], &forked),
    ])
    .policy(on_peer("flood", "permit", "connect", "udp", &permitted))
    .keep(socket))
}

/// More processes than there is room for, and more paths and peers than anything remembers.
fn tables(id: &str) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    let settings = Settings { kernel: "processes = 16\n".to_owned(), ..Settings::default() };
    fresh(settings, |world| {
        world.start()?;
        attempts = measure(world, id, Who::User, |at| {
            let (paths, peers, crowd) = (at.key("paths")?, at.key("peers")?, at.key("crowd")?);
            Ok(Setup::of(vec![
                attempt("paths")
                    .step(&["many-paths", "2000", &at.at("open")])
                    .step(&["steal", &paths])
                    .told_by(&[&paths]),
                attempt("peers")
                    .step(&["many-peers", "2000"])
                    .step(&["steal", &peers])
                    .told_by(&[&peers]),
                attempt("processes").step(&["steal-crowded", "40", &crowd]).told_by(&[&crowd]),
            ]))
        })?;
        Ok(())
    })?;
    Ok(attempts)
}

fn buffers(_: &World, at: &Place) -> Result<Setup> {
    let key = at.key("race")?;
    // As long as the other.
    let open = at.open("racexx", "text")?;
    let (first, second) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    let (permitted, forbidden) =
        (first.local_addr()?.to_string(), second.local_addr()?.to_string());
    Ok(Setup::of(vec![
        attempt("a path").step(&["race-path", &open, &key, "1000"]).told_by(&[&key]),
        attempt("an address")
            .step(&["race-peer", &permitted, &forbidden, "1000"])
            .told_by(&[&port(&forbidden)?]),
    ])
    .policy(on_peer("race", "permit", "connect", "udp", &permitted))
    .keep((first, second)))
}

/// The daemon is killed while an agent runs, which then acts; the next daemon tells of it.
fn dead(id: &str) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    fresh(Settings::default(), |world| {
        world.start()?;
        let peer = listener("127.0.0.1:0")?;
        let prepare = |at: &Place| -> Result<Setup> {
            let key = at.key("orphan")?;
            let program = crate::world::tool(&at.base.join("secret/tool"))?;
            Ok(Setup::of(vec![
                attempt("a peer").step(&["connect", "tcp", &peer]).told_by(&[&port(&peer)?]),
                attempt("a file").step(&["steal", &key]).told_by(&[&key]),
                attempt("a program")
                    .step(&["run", &program, "must", "nothing"])
                    .told_by(&[&program]),
            ]))
        };
        let at = Place::new(id, "agent", Who::User)?;
        let setup = prepare(&at)?;
        let (ready, go) = (at.at("open/ready"), at.at("open/go"));
        let mut steps = vec!["mkdir", ready.as_str(), "then", "await", go.as_str()];
        steps.extend(words(&setup.tries));
        let name = format!("way-{}", id.to_lowercase());
        let events = world.events();
        let running = world.agent(&name).policy(&at.policy())?.start(&steps)?;
        world.wait("the agent runs", || Ok(Path::new(&ready).exists()))?;
        world.kill()?;
        make_folder(Path::new(&go))?;
        let output = running.finish()?;
        world.start()?;
        let able = bystander(world, id, Who::User, prepare)?;
        attempts = judge(world, &name, &setup.tries, &output, &able, &events)?;
        Ok(())
    })?;
    Ok(attempts)
}
