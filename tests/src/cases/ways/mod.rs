//! Every way around: what bounded agents try, and what came of it here.
//!
//! Nothing is expected of a way but that it was measured: a bystander who does the same succeeds, and an
//! attempt of the agent got through or did not, and was told of or was not. What came of it is printed at
//! the end of a run, one line each, and the table `docs/coverage.md` is what it is compared with.

mod enforcer;
mod files;
mod identity;
mod network;
mod programs;

use std::any::Any;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Case, case, fresh, shared};
use crate::actor::Output;
use crate::events::{DENIED, EXIT, Event, Events, PROCESS};
use crate::policy::{on_path, with_base};
use crate::stage::{USER, make_folder};
use crate::verbs::SECRET;
use crate::world::{Settings, World, agent_table, file};

/// What runs a way and says what came of each attempt.
type Measure = Box<dyn FnOnce(&str) -> Result<Vec<Attempt>> + Send>;

/// One way around: a row of the table.
struct Way {
    id: &'static str,
    title: &'static str,
    /// Whether it has a daemon of its own.
    alone: bool,
    measure: Measure,
}

/// A way that needs no more than one run of an agent.
fn way(
    id: &'static str,
    title: &'static str,
    who: Who,
    prepare: fn(&World, &Place) -> Result<Setup>,
) -> Way {
    let measure =
        move |id: &str| with_shared(|world| measure(world, id, who, |place| prepare(world, place)));
    Way { id, title, alone: false, measure: Box::new(measure) }
}

/// A way that is measured by a function of its own, with a daemon of its own.
fn own_way(
    id: &'static str,
    title: &'static str,
    measure: impl FnOnce(&str) -> Result<Vec<Attempt>> + Send + 'static,
) -> Way {
    Way { id, title, alone: true, measure: Box::new(measure) }
}

fn with_shared(work: impl FnOnce(&World) -> Result<Vec<Attempt>>) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    shared(|world| {
        attempts = work(world)?;
        Ok(())
    })?;
    Ok(attempts)
}

/// What has been measured, by the place of the way.
static REPORT: Mutex<BTreeMap<usize, String>> = Mutex::new(BTreeMap::new());

pub(super) fn cases() -> Vec<Case> {
    let mut ways = files::ways();
    ways.extend(programs::ways());
    ways.extend(network::ways());
    ways.extend(identity::ways());
    ways.extend(enforcer::ways());
    ways.into_iter()
        .enumerate()
        .map(|(place, Way { id, title, alone, measure })| {
            let name = format!("way_{}_{}", id.to_lowercase(), plain(title));
            let line = format!("way {id} {title}");
            let mut case = case(&name, move || {
                let outcome = outcome(&measure(id)?);
                let mut report = REPORT.lock().unwrap_or_else(PoisonError::into_inner);
                report.insert(place, format!("{line} | {outcome}"));
                Ok(())
            });
            case.alone = alone;
            case.in_subset().within(Duration::from_secs(90))
        })
        .collect()
}

/// A title as a part of a function's name.
fn plain(title: &str) -> String {
    title
        .split(|each: char| !each.is_alphanumeric())
        .collect::<Vec<_>>()
        .join("_")
        .replace("__", "_")
}

/// Prints what has been measured.
pub fn report() {
    let mut report = REPORT.lock().unwrap_or_else(PoisonError::into_inner);
    for line in std::mem::take(&mut *report).into_values() {
        println!("{line}");
    }
}

/// Who tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    User,
    Root,
}

/// What an attempt of the agent came to.
#[derive(Clone, Debug)]
struct Attempt {
    what: &'static str,
    /// Whether what is forbidden was done.
    through: bool,
    /// Whether an event tells of it: of a denial, if it did not get through.
    told: bool,
}

/// The cell of the table.
fn outcome(attempts: &[Attempt]) -> String {
    let names = |wanted: &dyn Fn(&Attempt) -> bool| -> Vec<&str> {
        attempts.iter().filter(|each| wanted(each)).map(|each| each.what).collect()
    };
    let open = names(&|each| each.through && !each.told);
    let observed = names(&|each| each.through && each.told);
    let silent = names(&|each| !each.through && !each.told);
    let denied = attempts.len() - open.len() - observed.len();
    if attempts.is_empty() {
        return "cannot be tried".to_owned();
    }
    let mut parts = Vec::new();
    match (denied, observed.len(), open.len()) {
        (0, _, 0) => return "observed only".to_owned(),
        (0, 0, _) => return "not covered".to_owned(),
        (_, 0, 0) if silent.len() == denied => return "denied, not told".to_owned(),
        (_, 0, 0) => parts.push("denied".to_owned()),
        _ => parts.push("partly".to_owned()),
    }
    for (title, names) in
        [("not covered", open), ("observed only", observed), ("denied but not told", silent)]
    {
        if !names.is_empty() {
            parts.push(format!("{title}: {}", names.join(", ")));
        }
    }
    parts.join("; ")
}

/// Where a way is tried: a folder of which everything is permitted but `secret` and `above/secret`. The
/// agent has one, and the bystander who does the same has another.
struct Place {
    base: PathBuf,
    user: u32,
}

impl Place {
    fn new(id: &str, side: &str, who: Who) -> Result<Self> {
        // In /tmp, which is a plain tmpfs of the suite's: more can be done there than on an overlay.
        let base = PathBuf::from(format!("/tmp/ways/{}/{side}", id.to_lowercase()));
        let _ = std::fs::remove_dir_all(&base);
        file(&base.join("open/file"), "text")?;
        for folder in ["secret", "above/secret"] {
            file(&base.join(folder).join("key"), SECRET)?;
        }
        let own = |path: &Path| std::os::unix::fs::chown(path, Some(USER), Some(USER));
        own(&base)?;
        own(&base.join("above"))?;
        let user = if who == Who::Root { 0 } else { USER };
        Ok(Self { base, user })
    }

    /// Whether it is the agent's, and not the bystander's.
    fn is_agents(&self) -> bool {
        self.base.ends_with("agent")
    }

    fn at(&self, path: &str) -> String {
        self.base.join(path).display().to_string()
    }

    /// A secret file of this name.
    fn key(&self, name: &str) -> Result<String> {
        file(&self.base.join("secret").join(name), SECRET)
    }

    /// A file of this name that may be read and written.
    fn open(&self, name: &str, text: &str) -> Result<String> {
        file(&self.base.join("open").join(name), text)
    }

    fn policy(&self) -> String {
        let mut text = String::new();
        for action in ["read", "write", "exec"] {
            text += &on_path(
                &format!("all-{action}"),
                "permit",
                action,
                "Dir",
                &self.base.display().to_string(),
            );
            for (id, folder) in [("secret", "secret"), ("above", "above/secret")] {
                let id = format!("{id}-{action}");
                text += &on_path(&id, "forbid", action, "Dir", &self.at(folder));
            }
        }
        with_base(&text)
    }
}

/// What is tried at a place.
#[derive(Default)]
struct Setup {
    tries: Vec<Try>,
    /// More policies than the place's own.
    policy: String,
    /// Done once the agent runs and before it tries anything.
    meanwhile: Option<Box<dyn FnOnce() -> Result<()>>>,
    /// What has to live as long as it is tried.
    kept: Vec<Box<dyn Any>>,
}

impl Setup {
    fn of(tries: Vec<Try>) -> Self {
        Self { tries, ..Self::default() }
    }

    fn policy(mut self, text: String) -> Self {
        self.policy = text;
        self
    }

    fn keep(mut self, what: impl Any) -> Self {
        self.kept.push(Box::new(what));
        self
    }
}

/// One attempt: steps of the actor, of which the last ends well only if what is forbidden was done.
struct Try {
    what: &'static str,
    steps: Vec<Vec<String>>,
    named: Vec<String>,
    optional: bool,
}

fn attempt(what: &'static str) -> Try {
    Try { what, steps: Vec::new(), named: Vec::new(), optional: false }
}

/// What kernels answer that lack what is tried: no such call, family, protocol, operation, device.
const LACKS: [i64; 11] = [6, 19, 22, 38, 92, 93, 94, 95, 97, 123, 525];

impl Try {
    fn step(mut self, words: &[&str]) -> Self {
        self.steps.push(words.iter().map(ToString::to_string).collect());
        self
    }

    /// What an event names that tells of it: a path, a peer as `:port`, a privilege, a kind of socket.
    fn told_by(mut self, names: &[&str]) -> Self {
        self.named.extend(names.iter().map(ToString::to_string));
        self
    }

    /// Not every machine lets even a bystander do it.
    fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    fn is_told(&self, seen: &[Event], agent: &str, through: bool) -> bool {
        seen.iter().any(|event| {
            event.agent() == agent
                && (through || event.verdict() == DENIED)
                && self.named.iter().any(|name| is_named(event, name))
        })
    }

    /// How many of its steps the actor tells of.
    fn told_steps(&self) -> usize {
        let silent = ["fork", "doublefork", "thread", "strict"];
        self.steps.iter().filter(|step| !silent.contains(&step[0].as_str())).count()
    }
}

/// Whether an event is about something: by its path, peer, name, or kind of action.
fn is_named(event: &Event, name: &str) -> bool {
    if name.starts_with(':') {
        return event.peer().ends_with(name);
    }
    let texts = [
        event.path(),
        event.script(),
        event.action(),
        event.text(&["file", "uri"]),
        event.text(&["file_result", "path"]),
        event.text(&["kernel", "name"]),
        event.text(&["dst_endpoint", "name"]),
        event.text(&["src_endpoint", "name"]),
        event.text(&["unmapped", "privilege"]),
    ];
    texts.contains(&name)
}

fn words(tries: &[Try]) -> Vec<&str> {
    let mut words = Vec::new();
    for each in tries {
        words.extend(["try", each.what]);
        for (at, step) in each.steps.iter().enumerate() {
            if at > 0 {
                words.push("then");
            }
            words.extend(step.iter().map(String::as_str));
        }
    }
    words
}

/// The errno of the last step of each try; `None` is one that never got there.
fn answers(output: &Output, tries: &[Try]) -> Vec<Option<i64>> {
    let told = output.steps();
    tries
        .iter()
        .map(|each| {
            let name = format!("try {}", each.what);
            let from = told.iter().position(|step| step["step"] == name.as_str())? + 1;
            let own: Vec<_> = told[from..]
                .iter()
                .take_while(|step| {
                    !step["step"].as_str().is_some_and(|text| text.starts_with("try "))
                })
                .collect();
            if own.len() < each.told_steps() {
                return None;
            }
            own.last()?["errno"].as_i64()
        })
        .collect()
}

/// Has an agent and a bystander try, each at a place of its own.
fn measure(
    world: &World,
    id: &str,
    who: Who,
    prepare: impl Fn(&Place) -> Result<Setup>,
) -> Result<Vec<Attempt>> {
    let place = Place::new(id, "agent", who)?;
    let mut setup = prepare(&place)?;
    let name = format!("way-{}", id.to_lowercase());
    let mut agent = world.agent(&name).policy(&format!("{}{}", place.policy(), setup.policy))?;
    if who == Who::Root {
        agent = agent.as_root();
    }
    let events = world.events();
    let tried = words(&setup.tries);
    let output = match setup.meanwhile.take() {
        None => agent.act(&tried)?,
        Some(meanwhile) => {
            let (ready, go) = (place.at("open/ready"), place.at("open/go"));
            let mut steps = vec!["mkdir", ready.as_str(), "then", "await", go.as_str()];
            steps.extend(tried);
            let running = agent.start(&steps)?;
            world.wait("the agent runs", || Ok(Path::new(&ready).exists()))?;
            meanwhile()?;
            make_folder(Path::new(&go))?;
            running.finish()?
        }
    };
    drop(setup.kept);
    let able = bystander(world, id, who, prepare)?;
    judge(world, &name, &setup.tries, &output, &able, &events)
}

/// Which tries a bystander succeeds with. The error is one that fails though it should not.
fn bystander(
    world: &World,
    id: &str,
    who: Who,
    prepare: impl Fn(&Place) -> Result<Setup>,
) -> Result<Vec<bool>> {
    let place = Place::new(id, "beside", who)?;
    let mut setup = prepare(&place)?;
    if let Some(meanwhile) = setup.meanwhile.take() {
        meanwhile()?;
    }
    let cgroup = world.attach.join("bystanders");
    make_folder(&cgroup)?;
    let output = world.in_cgroup(&cgroup, place.user, &words(&setup.tries))?;
    able(&setup.tries, &output)
}

/// The tries that could be made. The error is one that fails for no reason that a kernel may have.
fn able(tries: &[Try], output: &Output) -> Result<Vec<bool>> {
    tries
        .iter()
        .zip(answers(output, tries))
        .map(|(each, answer)| {
            let lacks = answer.is_some_and(|errno| LACKS.contains(&errno));
            ensure!(
                answer == Some(0) || each.optional || lacks,
                "a bystander cannot do it either ({}: {answer:?}): {}",
                each.what,
                output.whole()
            );
            Ok(answer == Some(0))
        })
        .collect()
}

/// What came of the tries that a bystander is able to, and which of them events tell of.
fn judge(
    world: &World,
    agent: &str,
    tries: &[Try],
    output: &Output,
    able: &[bool],
    events: &Events,
) -> Result<Vec<Attempt>> {
    let own: Vec<(&Try, bool)> = tries
        .iter()
        .zip(answers(output, tries))
        .zip(able)
        .filter(|(_, able)| **able)
        .map(|((each, answer), _)| (each, answer == Some(0)))
        .collect();
    let told = |seen: &[Event]| -> Vec<bool> {
        own.iter().map(|(each, through)| each.is_told(seen, agent, *through)).collect()
    };
    // What an agent did is told before its end is, but for what another channel brings.
    let steps = output.steps();
    let pid = steps.iter().find_map(|step| step["pid"].as_u64()).context("no try was begun")?;
    let limit = Instant::now() + world.stage.patience(Duration::from_secs(5));
    let grace = world.stage.patience(Duration::from_millis(300));
    let mut ended: Option<Instant> = None;
    let found = loop {
        let seen = events.so_far()?;
        let found = told(&seen);
        let over = |event: &Event| {
            event.class() == PROCESS && event.activity() == EXIT && event.pid() == pid
        };
        if ended.is_none() && seen.iter().any(over) {
            ended = Some(Instant::now());
        }
        let waited = ended.is_some_and(|at| at.elapsed() > grace);
        if found.iter().all(|told| *told) || waited || Instant::now() > limit {
            break found;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    if std::env::var_os("AMBIT_E2E_TRIES").is_some() {
        println!("\n{agent}: {}", output.whole());
        for event in events.so_far()?.iter().filter(|event| event.agent() == agent) {
            println!("  {}", event.brief());
        }
    }
    Ok(own
        .into_iter()
        .zip(found)
        .map(|((each, through), told)| Attempt { what: each.what, through, told })
        .collect())
}

/// What an agent of the configuration tries that is started with a descriptor from before it was one, with
/// more policies than the place's own.
fn inherited(
    id: &str,
    policy: &str,
    prepare: impl Fn(&Place) -> Result<(OwnedFd, Vec<Try>)>,
) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    let name = format!("way-{}-held", id.to_lowercase());
    let cgroup = format!("cell-{name}");
    let more = agent_table(&name, &cgroup, "enforce");
    fresh(Settings { more, ..Settings::default() }, |world| {
        let at = Place::new(id, "agent", Who::User)?;
        let cell = world.attach.join(&cgroup);
        make_folder(&cell)?;
        world.policy("way", &(at.policy() + policy))?;
        world.start()?;
        let (fd, tries) = prepare(&at)?;
        let events = world.events();
        let output = world.holding(&fd, &cell, &words(&tries))?;
        let (fd, own) = prepare(&Place::new(id, "beside", Who::User)?)?;
        let beside = world.attach.join("bystanders");
        let able = able(&own, &world.holding(&fd, &beside, &words(&own))?)?;
        attempts = judge(world, &name, &tries, &output, &able, &events)?;
        Ok(())
    })?;
    Ok(attempts)
}

/// A process that no agent has, as the agents' user, in the forbidden folder and with a forbidden file as
/// its standard input; it is ended when this is dropped.
struct Victim(Child);

impl Victim {
    fn start(place: &Place) -> Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let child = Command::new("/bin/sleep")
            .arg("600")
            .current_dir(place.at("secret"))
            .stdin(std::fs::File::open(place.at("secret/key"))?)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .uid(USER)
            .gid(USER)
            .spawn()
            .context("no process to be attacked")?;
        Ok(Self(child))
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The port of an address, as events are searched for it.
fn port(address: &str) -> Result<String> {
    match address.rsplit_once(':') {
        Some((_, port)) => Ok(format!(":{port}")),
        None => bail!("`{address}` has no port"),
    }
}
