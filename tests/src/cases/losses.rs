//! What finds no room is counted: what is told and what is stated as lost is together what was done,
//! and a lost record never was a lost verdict.

use std::collections::BTreeMap;
use std::fs;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Case, case, fresh};
use crate::actor::EPERM;
use crate::events::{ALLOWED, DENIED, EXIT, Event, LOG, PROCESS};
use crate::policy::{on_path, on_peer, with_base};
use crate::world::{Settings, World, file, ground};

/// Rounds of the actor's flood.
const ROUNDS: u64 = 200;
/// Connects to a permitted peer in each of them.
const EACH: u64 = 10;

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("an_overflow_is_stated_and_denials_come_through", common_lane).in_subset(),
        case("an_overflow_of_denials_is_stated_and_all_stay_denied", denied_lane),
        case("what_is_lost_without_a_daemon_is_stated_by_the_next", without_a_daemon),
    ]
}

/// What the story says of one flood.
#[derive(Debug, Default)]
struct Account {
    allowed: u64,
    denied: u64,
    exits: u64,
    /// Stated as lost, by lane and kind.
    lost: BTreeMap<(String, String), u64>,
}

impl Account {
    fn of(events: &[Event]) -> Self {
        let mut account = Self::default();
        for event in events.iter().filter(|event| event.agent() == "flooder") {
            match (event.class(), event.action(), event.verdict()) {
                (PROCESS, ..) if event.activity() == EXIT => account.exits += 1,
                (_, "connect", ALLOWED) => account.allowed += 1,
                (_, "connect", DENIED) => account.denied += 1,
                _ => {}
            }
        }
        for gap in gaps(events) {
            let lane = gap["lane"].as_str().unwrap_or_default();
            for (kind, lost) in gap["lost"].as_object().into_iter().flatten() {
                let key = (lane.to_owned(), kind.clone());
                *account.lost.entry(key).or_default() += lost.as_u64().unwrap_or(0);
            }
        }
        account
    }

    fn lost(&self, lane: &str, kind: &str) -> u64 {
        self.lost.get(&(lane.to_owned(), kind.to_owned())).copied().unwrap_or(0)
    }

    /// Whether it holds as much as was done. More is never right.
    fn is_whole(&self) -> bool {
        self.allowed + self.lost("told", "peer") >= ROUNDS * EACH
            && self.denied + self.lost("denied", "peer") >= ROUNDS
            && self.exits + self.lost("told", "exit") > ROUNDS
    }
}

fn gaps(events: &[Event]) -> impl Iterator<Item = &Value> {
    events
        .iter()
        .filter(|event| event.class() == LOG)
        .map(|event| &event.0["unmapped"]["gap"])
        .filter(|gap| gap.is_object())
}

/// Where the daemon is during a flood.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Daemon {
    /// It is stopped, and goes on.
    Stopped,
    /// It is killed, and another one takes over.
    Killed,
}

/// Has an agent do more than the rings hold while the daemon is away, lets the daemon go on, and gives what
/// it tells then. That the sums are exact is checked here.
fn flood(world: &mut World, daemon: Daemon) -> Result<Account> {
    let [permitted, forbidden] = ["127.0.0.1:5321", "127.0.0.1:5322"];
    let base = ground("flood")?;
    let policy = with_base(
        &(on_peer("granted", "permit", "connect", "udp", permitted)
            + &on_peer("refused", "forbid", "connect", "udp", forbidden)
            + &on_path("signs", "permit", "write", "Dir", &base.display().to_string())),
    );
    let [ready, go, done, end] = ["ready", "go", "done", "end"].map(|name| base.join(name));
    let names = [&ready, &go, &done, &end].map(|path| path.display().to_string());
    let [ready_name, go_name, done_name, end_name] = &names;
    world.start()?;
    let agent = world.agent("flooder").policy(&policy)?.start(&[
        "mkdir",
        ready_name,
        "then",
        "await",
        go_name,
        "then",
        "flood",
        &ROUNDS.to_string(),
        permitted,
        forbidden,
        "then",
        "mkdir",
        done_name,
        "then",
        "await",
        end_name,
    ])?;
    let events = world.all_events();
    // Its program is loaded: from here on it opens nothing, so it waits for no answer.
    world.wait("the agent is ready", || Ok(ready.exists()))?;
    let flooded = |world: &World| -> Result<()> {
        fs::create_dir(&go)?;
        world.wait("the agent has done it all", || Ok(done.exists()))
    };
    match daemon {
        Daemon::Stopped => {
            let _paused = world.pause()?;
            flooded(world)?;
        }
        Daemon::Killed => {
            // What was told up to here has been settled.
            let heartbeat = events.so_far()?.len();
            world
                .wait("two heartbeats", || Ok(beats(&events.so_far()?[heartbeat..]).count() > 1))?;
            world.kill()?;
            flooded(world)?;
            world.start()?;
        }
    }
    file(&end, "")?;
    let output = agent.finish()?;
    output.expect("flood", 0)?;
    output.expect("mkdir", 0)?;
    let step = output
        .steps()
        .into_iter()
        .find(|step| step["step"].as_str().is_some_and(|step| step.starts_with("flood")))
        .context("the actor did not tell of its flood")?;
    // Each denial was one, whatever became of its record.
    ensure!(
        step["made"] == ROUNDS * EACH && step["refused"] == ROUNDS && step["forked"] == ROUNDS,
        "{}",
        output.whole()
    );
    let mut last = Account::default();
    let settled = world.wait("the account is whole", || {
        last = Account::of(&events.so_far()?);
        Ok(last.is_whole())
    });
    settled.with_context(|| format!("{last:?}"))?;
    // One more look, after all that could still come has come.
    let after = world.agent("after").policy(&with_base(""))?.act(&["connect", "udp", forbidden])?;
    after.expect("connect", EPERM)?;
    events.wait("what another agent did after it", |event| event.agent() == "after")?;
    let all = events.so_far()?;
    let account = Account::of(&all);
    let sums = [
        ("permitted connects", account.allowed + account.lost("told", "peer"), ROUNDS * EACH),
        ("denied connects", account.denied + account.lost("denied", "peer"), ROUNDS),
        // Those of the flood, and the actor's own.
        ("exits", account.exits + account.lost("told", "exit"), ROUNDS + 1),
    ];
    for (what, sum, done) in sums {
        ensure!(sum == done, "{what}: {done} were done, {sum} told or stated as lost: {account:?}");
    }
    for gap in gaps(&all) {
        has_exact_bounds(gap, &all)?;
    }
    metrics_agree(world, &account)?;
    Ok(account)
}

fn beats(events: &[Event]) -> impl Iterator<Item = &Value> {
    let beats = events.iter().map(|event| &event.0["unmapped"]["heartbeat"]);
    beats.filter(|beat| beat.is_object())
}

/// Between the numbers that a gap names lies what it counts, and nothing that was told.
fn has_exact_bounds(gap: &Value, events: &[Event]) -> Result<()> {
    let number = |key: &str| gap[key].as_u64().with_context(|| format!("no {key} in {gap}"));
    let (before, after) = (number("last_before")?, number("first_after")?);
    let lost: u64 =
        gap["lost"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum();
    ensure!(after.checked_sub(before + 1) == Some(lost), "the bounds and the counts differ: {gap}");
    let lane = if gap["lane"] == "denied" { 0 } else { 1 };
    for event in events {
        // boot:time:cpu:lane:sequence
        let uid = event.text(&["metadata", "uid"]);
        let numbers: Vec<u64> = uid.split(':').skip(2).filter_map(|n| n.parse().ok()).collect();
        let [cpu, own_lane, sequence] = numbers[..] else {
            continue;
        };
        let same = gap["cpu"] == cpu && own_lane == lane;
        ensure!(
            !same || sequence <= before || sequence >= after,
            "{} was told, and stands within {gap}",
            event.brief()
        );
    }
    Ok(())
}

fn metrics_agree(world: &World, account: &Account) -> Result<()> {
    let metrics = world.metrics()?;
    let value = |name: &str, labels: &[(&str, &str)]| metrics.value(name, labels).unwrap_or(0.0);
    let lost = "ambit_events_lost_total";
    let actions = |verdict| [("agent", "flooder"), ("action", "connect"), ("verdict", verdict)];
    for (what, found, told) in [
        ("all that was lost", value(lost, &[]), account.lost.values().sum::<u64>()),
        (
            "lost peers",
            value(lost, &[("reason", "ring_peer")]),
            account.lost("told", "peer") + account.lost("denied", "peer"),
        ),
        ("lost exits", value(lost, &[("reason", "ring_exit")]), account.lost("told", "exit")),
        ("allowed", value("ambit_actions_total", &actions("allowed")), account.allowed),
        ("denied", value("ambit_actions_total", &actions("denied")), account.denied),
    ] {
        ensure!(
            (found - told as f64).abs() < 0.5,
            "{what}: the metric says {found}, the story {told}: {account:?}"
        );
    }
    Ok(())
}

fn with_rings(lines: &str, test: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
    fresh(Settings { kernel: format!("{lines}\n"), ..Settings::default() }, test)
}

fn common_lane() -> Result<()> {
    with_rings("told_ring_bytes = 65536", |world| {
        let account = flood(world, Daemon::Stopped)?;
        ensure!(account.denied == ROUNDS, "a denial was lost: {account:?}");
        for kind in ["peer", "fork", "exit"] {
            ensure!(account.lost("told", kind) > 0, "no {kind} was lost, so nothing was tried");
        }
        ensure!(
            account.lost.keys().all(|(lane, _)| lane == "told"),
            "the denied lane lost something: {account:?}"
        );
        Ok(())
    })
}

fn denied_lane() -> Result<()> {
    with_rings("denied_ring_bytes = 4096", |world| {
        let account = flood(world, Daemon::Stopped)?;
        ensure!(account.lost("denied", "peer") > 0, "nothing was lost, so nothing was tried");
        ensure!(
            account.lost.keys().all(|(lane, _)| lane == "denied"),
            "the common lane lost something: {account:?}"
        );
        ensure!(account.allowed == ROUNDS * EACH, "{account:?}");
        Ok(())
    })
}

fn without_a_daemon() -> Result<()> {
    let settings = Settings {
        kernel: "told_ring_bytes = 65536\n".to_owned(),
        events: "heartbeat_seconds = 1\n".to_owned(),
        ..Settings::default()
    };
    fresh(settings, |world| {
        let account = flood(world, Daemon::Killed)?;
        ensure!(account.lost("told", "peer") > 0, "nothing was lost, so nothing was tried");
        let stated: u64 = account.lost.values().sum();
        // A third daemon has nothing to state again, and its heartbeats say what was lost before it.
        world.kill()?;
        world.start()?;
        let events = world.all_events();
        let from = events.so_far()?.len();
        let mut last = Value::Null;
        world.wait("two heartbeats of the third daemon", || {
            let all = events.so_far()?;
            let own: Vec<&Value> = beats(&all[from..]).collect();
            let is_second = own.len() > 1;
            last = own.last().map_or(Value::Null, |beat| (*beat).clone());
            Ok(is_second)
        })?;
        ensure!(last["interval_seconds"] == 1 && last["agents"] == 0, "{last}");
        let positions = last["positions"].as_array().context("a heartbeat without positions")?;
        let lost: u64 = positions.iter().filter_map(|position| position["lost"].as_u64()).sum();
        ensure!(lost == stated, "the gaps say that {stated} were lost, the heartbeat says {lost}");
        let again = Account::of(&events.so_far()?).lost.values().sum::<u64>();
        ensure!(again == stated, "{stated} were stated as lost, and then {again}");
        let metrics = world.metrics()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
        let beat = metrics.value("ambit_heartbeat_time_seconds", &[]).unwrap_or(0.0);
        let age = now - beat;
        ensure!((-0.5..10.0).contains(&age), "the last heartbeat is {age} s old");
        ensure!(
            metrics.value("ambit_heartbeat_interval_seconds", &[]) == Some(1.0),
            "the interval"
        );
        Ok(())
    })
}
