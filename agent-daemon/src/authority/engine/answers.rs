//! What is asked of the engine, what it answers, and why it may not.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    authority::{contents::StartError, names::ForwarderError, stream::StreamError},
    config::ConfigError,
    kernel::{Coverage, LoadError, TableError, fanotify::FanotifyError, host::HostError},
    policy::{self, PolicyError},
};

/// What a daemon answers that is about to end.
pub const CLOSING: &str = "ambitd is about to end; ask again";

/// Why the engine could not do something. What ran before goes on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The host lacks something.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The kernel half could not be put in place.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A kernel table could not be used.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Nobody can judge files as the configuration asks.
    #[error("files cannot be judged: {0}")]
    Backend(String),
    /// The fanotify backend could not start.
    #[error(transparent)]
    Fanotify(#[from] FanotifyError),
    /// The event stream could not start.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Host names cannot be kept.
    #[error("a policy asks for host names: {0}")]
    Names(#[from] ForwarderError),
    /// Programs cannot be read.
    #[error(transparent)]
    Contents(#[from] StartError),
    /// The policy was refused.
    #[error("{0}")]
    Policy(#[from] PolicyError),
    /// The configuration was refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another daemon is there.
    #[error("another ambitd runs already (it holds {lock}); stop it first")]
    Running {
        /// The lock.
        lock: PathBuf,
    },
    /// The daemon is about to end; another may be started.
    #[error("{CLOSING}")]
    Closing,
    /// A request makes no sense.
    #[error("{0}")]
    Request(String),
    /// A file could not be used.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Names the call and the path in an error.
pub(super) fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EngineError {
    let path = path.to_path_buf();
    move |source| EngineError::Io { what, path, source }
}

/// What `ambit run` asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunRequest {
    /// The agent's name.
    pub name: String,
    /// The policy file, for messages and so that the agent cannot touch it.
    pub policy: PathBuf,
    /// Its text, read by the caller.
    pub text: String,
    /// More files of policies, and those of entities, in the same way.
    #[serde(default)]
    pub more: Vec<policy::Source>,
    /// Deny nothing, mark everything.
    pub audit: bool,
    /// A file of its own for its events.
    pub events: Option<PathBuf>,
    /// Bound on its processes.
    pub pids_max: u64,
}

/// Where the agent's first process goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Started {
    /// The agent's number.
    pub number: u32,
    /// This run of it.
    pub instance: String,
    /// `cgroup.procs` files to join, in this order.
    pub procs: Vec<PathBuf>,
    /// Where its events go.
    pub events: PathBuf,
    /// Whether its files are judged by who cannot see all that changes them, so that a ceiling is to keep
    /// what it changes within bounds.
    pub ceiling: bool,
    /// Whether the number of its processes is bounded; some hosts have no pids controller.
    pub pids_bounded: bool,
}

/// What came of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finished {
    /// Actions that were let go.
    pub allowed: u64,
    /// Actions that were denied.
    pub denied: u64,
    /// Actions that would have been denied.
    pub audited: u64,
    /// Cedar lines that would have permitted these.
    pub suggestion: String,
}

/// An agent that runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// This run of it.
    pub instance: String,
    /// `enforce` or `audit`.
    pub mode: String,
    /// Its cgroup's folder.
    pub cgroup: PathBuf,
    /// Its processes.
    pub pids: Vec<u32>,
    /// Seconds since 1970.
    pub since: u64,
    /// Actions that were let go.
    pub allowed: u64,
    /// Actions that were denied.
    pub denied: u64,
    /// Actions that would have been denied.
    pub audited: u64,
}

/// What `ambit doctor` asks a running daemon.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Programs and backends.
    pub coverage: Coverage,
    /// File systems that the fanotify backend has marked.
    pub marked: Vec<PathBuf>,
    /// Where the network programs are attached.
    pub attach: PathBuf,
    /// Address of `/metrics`, when it is served.
    pub metrics: Option<String>,
    /// Where events go.
    pub events: PathBuf,
    /// Policy generation.
    pub generation: u64,
    /// Whether the kernel has Landlock.
    pub landlock: bool,
    /// Bytes of kernel memory that the tables have.
    pub kernel_memory: Option<u64>,
    /// Agents that run.
    pub agents: usize,
}
