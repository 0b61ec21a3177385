//! The promises, one function each, by theme.

mod actions;
mod carried;
mod ceiling;
mod changes;
mod commands;
mod files;
mod held;
mod identity;
mod lifecycle;
mod losses;
mod machine;
mod names;
mod objects;
mod policies;
mod power;
mod privilege;
mod programs;
mod protection;
mod reload;
mod scraped;
mod sockets;
mod telling;
mod tools;
pub mod ways;

use std::fmt::{Display, Formatter};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;

use crate::world::{Settings, World};

/// One promise.
pub struct Case {
    /// The promise, as a name.
    pub name: String,
    /// Whether it is in the subset for kernels that do not get the whole suite.
    pub subset: bool,
    /// Whether it has a daemon of its own.
    pub alone: bool,
    /// How long it may take before everything that it started is killed.
    pub limit: Duration,
    /// What keeps or breaks it.
    pub run: Box<dyn FnOnce() -> Result<()> + Send>,
}

/// Why a test did not run: what it is about is not here. As the error of a test it is told of, and fails
/// nothing.
#[derive(Debug)]
pub struct Skipped(String);

impl Skipped {
    fn because(why: &str) -> anyhow::Error {
        anyhow::Error::msg(Self(why.to_owned()))
    }
}

impl Display for Skipped {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.0)
    }
}

/// What a test may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What the first start of a daemon may take.
pub const START: Duration = Duration::from_secs(60);

fn case(name: &str, run: impl FnOnce() -> Result<()> + Send + 'static) -> Case {
    Case { name: name.to_owned(), subset: false, alone: false, limit: LIMIT, run: Box::new(run) }
}

impl Case {
    fn in_subset(mut self) -> Self {
        self.subset = true;
        self
    }

    /// It has a daemon of its own, and so runs after those that share one.
    fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }
}

/// All promises. Those that share a daemon come first.
#[must_use]
pub fn all() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(actions::cases());
    cases.extend(files::cases());
    cases.extend(changes::cases());
    cases.extend(objects::cases());
    cases.extend(held::cases());
    cases.extend(identity::cases());
    cases.extend(protection::cases());
    cases.extend(power::cases());
    cases.extend(machine::cases());
    cases.extend(sockets::cases());
    cases.extend(names::cases());
    cases.extend(privilege::cases());
    cases.extend(telling::cases());
    cases.extend(ways::cases());
    cases.extend(scraped::cases());
    cases.extend(tools::cases());
    cases.extend(commands::cases());
    cases.extend(policies::cases());
    cases.extend(carried::cases());
    cases.extend(ceiling::cases());
    cases.extend(programs::cases());
    cases.extend(reload::cases());
    cases.extend(lifecycle::cases());
    cases.extend(losses::cases());
    // To end a daemon and to start another takes an emulated machine a quarter of a minute.
    cases.sort_by_key(|case| case.alone);
    cases
}

static SHARED: Mutex<Option<World>> = Mutex::new(None);

fn lock() -> MutexGuard<'static, Option<World>> {
    // A test that failed has left a world behind; the next one sees whether it still answers.
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives a test the daemon that tests share which do not disturb it.
fn shared(test: impl FnOnce(&World) -> Result<()>) -> Result<()> {
    let mut shared = lock();
    if shared.as_ref().is_some_and(|world| world.metrics().is_err()) {
        *shared = None;
    }
    if shared.is_none() {
        *shared = Some(World::with_daemon(Settings::default())?);
    }
    match shared.as_ref() {
        Some(world) => test(world).map_err(|error| with_log(error, world)),
        None => Ok(()),
    }
}

/// Gives a test a world of its own.
fn fresh(settings: Settings, test: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
    *lock() = None;
    let mut world = World::empty(settings)?;
    test(&mut world).map_err(|error| with_log(error, &world))
}

/// Ends the shared daemon.
pub fn finish() {
    *lock() = None;
}

fn with_log(error: anyhow::Error, world: &World) -> anyhow::Error {
    match world.log() {
        log if log.is_empty() => error,
        log => error.context(format!("the daemon's last words:\n{log}\nthe failure")),
    }
}

/// The backend that judges files here.
pub fn backend() -> Result<String> {
    let mut backend = String::new();
    shared(|world| {
        backend = world.enforced_by("read")?;
        Ok(())
    })?;
    Ok(if backend.contains("lsm") { "lsm".to_owned() } else { backend })
}
