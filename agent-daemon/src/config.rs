//! The configuration file, checked: what is not understood is refused, never ignored.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::policy::{AgentName, Attributes};

/// Where the file is looked for when nobody names one.
pub const DEFAULT_PATH: &str = "/etc/ambit/ambit.toml";

/// Largest configuration that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Longest time between heartbeats, in seconds: a day.
const HEARTBEAT_MAX: u32 = 86_400;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is larger than a configuration can be.
    #[error("the configuration {path} is {bytes} bytes; at most {MAX_BYTES} are read")]
    Huge {
        /// Which.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// It is not TOML, or has a key that does not exist, or a value of the wrong type.
    #[error("the configuration {path} is refused:\n{source}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value makes no sense.
    #[error("the configuration {path} is refused: {what}")]
    Value {
        /// Which.
        path: PathBuf,
        /// Why, and what to write instead.
        what: String,
    },
}

/// Everything that can be set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The kernel half.
    pub kernel: KernelConfig,
    /// The daemon itself.
    pub daemon: DaemonConfig,
    /// Where events go.
    pub events: EventsConfig,
    /// Where policies are.
    pub policy: PolicyConfig,
    /// Agents known by their cgroup.
    #[serde(rename = "agent")]
    pub agents: Vec<AgentConfig>,
}

/// `[kernel]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KernelConfig {
    /// Folder on a BPF file system for the pins.
    pub pins: PathBuf,
    /// Cgroup at or above all agents; by default the cgroup2 mount.
    pub attach: Option<PathBuf>,
    /// Child of `attach` in which `ambit run` makes its cgroups.
    pub agents: String,
    /// Who judges files.
    pub backend: BackendChoice,
    /// fanotify: mount points whose file systems are marked; by default all that hold files.
    pub filesystems: Vec<PathBuf>,
    /// Bytes of the ring for denials: a power of two, at least a page.
    pub denied_ring_bytes: u32,
    /// Bytes of the ring for everything else: a power of two, at least a page.
    pub told_ring_bytes: u32,
    /// How many processes of agents there may be at once, of all agents together; to one beyond it
    /// nothing is permitted.
    pub processes: u32,
}

impl Default for KernelConfig {
    fn default() -> Self {
        Self {
            pins: PathBuf::from("/sys/fs/bpf/ambit"),
            attach: None,
            agents: "ambit".to_owned(),
            backend: BackendChoice::Auto,
            filesystems: Vec::new(),
            denied_ring_bytes: 4 << 20,
            told_ring_bytes: 16 << 20,
            processes: 1 << 16,
        }
    }
}

/// Who judges files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// LSM programs where they load and run, else fanotify.
    Auto,
    /// LSM programs, or nothing starts.
    Lsm,
    /// fanotify, even where LSM programs would run.
    Fanotify,
}

/// `[daemon]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DaemonConfig {
    /// Folder of the control socket and the state, only for root.
    pub run: PathBuf,
    /// Address for `/metrics` and `/healthz`; empty for none.
    pub metrics: String,
}

impl Default for DaemonConfig {
    fn default() -> Self {
        Self { run: PathBuf::from("/run/ambit"), metrics: "127.0.0.1:9464".to_owned() }
    }
}

/// `[events]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventsConfig {
    /// The file of JSON Lines.
    pub file: PathBuf,
    /// Bytes after which it is rotated.
    pub max_bytes: u64,
    /// Files that are kept, the current one included.
    pub keep: u32,
    /// Seconds from one heartbeat to the next.
    pub heartbeat_seconds: u32,
}

impl Default for EventsConfig {
    fn default() -> Self {
        Self {
            file: PathBuf::from("/var/log/ambit/events.jsonl"),
            max_bytes: 64 << 20,
            keep: 8,
            heartbeat_seconds: 60,
        }
    }
}

/// `[policy]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// Folder of `*.cedar` and `*.entities.json` files for the agents of this file.
    pub folder: PathBuf,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self { folder: PathBuf::from("/etc/ambit/policy") }
    }
}

/// `[[agent]]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// Its name in policies and events.
    pub name: String,
    /// Its groups in policies.
    #[serde(default)]
    pub groups: Vec<String>,
    /// What policies may ask of it.
    #[serde(default)]
    pub attributes: Attributes,
    /// Pattern of cgroup paths beneath `kernel.attach`; `*` and `?` match within a component.
    pub cgroup: Option<String>,
    /// systemd unit, e.g. `coder.service` or `agents.slice`.
    pub unit: Option<String>,
    /// What happens to what is not permitted.
    #[serde(default)]
    pub mode: ModeChoice,
}

/// `mode` of an agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModeChoice {
    /// Denied.
    #[default]
    Enforce,
    /// Let go and marked.
    Audit,
}

impl From<ModeChoice> for agent_ebpf::Mode {
    fn from(mode: ModeChoice) -> Self {
        match mode {
            ModeChoice::Enforce => Self::Enforce,
            ModeChoice::Audit => Self::Audit,
        }
    }
}

impl Config {
    /// Reads the file that was named, or the default one; without either, the defaults.
    pub fn read(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        let failed = |source| ConfigError::Read { path: path.to_path_buf(), source };
        let bytes = match fs::metadata(path) {
            Ok(found) => found.len(),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(source) => return Err(failed(source)),
        };
        if bytes > MAX_BYTES {
            return Err(ConfigError::Huge { path: path.to_path_buf(), bytes });
        }
        Self::parse(path, &fs::read_to_string(path).map_err(failed)?)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: path.to_path_buf(),
            source: Box::new(source),
        })?;
        match config.check() {
            Ok(()) => Ok(config),
            Err(what) => Err(ConfigError::Value { path: path.to_path_buf(), what }),
        }
    }

    fn check(&self) -> Result<(), String> {
        let absolute = [
            ("kernel.pins", Some(&self.kernel.pins)),
            ("kernel.attach", self.kernel.attach.as_ref()),
            ("daemon.run", Some(&self.daemon.run)),
            ("events.file", Some(&self.events.file)),
            ("policy.folder", Some(&self.policy.folder)),
        ];
        for (key, path) in absolute {
            if let Some(path) = path
                && !path.is_absolute()
            {
                return Err(format!("{key} = {path:?}: write an absolute path"));
            }
        }
        if self.kernel.agents.is_empty() || self.kernel.agents.contains('/') {
            return Err(format!(
                "kernel.agents = {:?}: write one name, without slashes",
                self.kernel.agents
            ));
        }
        for (key, bytes) in [
            ("kernel.denied_ring_bytes", self.kernel.denied_ring_bytes),
            ("kernel.told_ring_bytes", self.kernel.told_ring_bytes),
        ] {
            if !bytes.is_power_of_two() || bytes < 4096 {
                return Err(format!("{key} = {bytes}: write a power of two, at least 4096"));
            }
        }
        if self.kernel.processes == 0 {
            return Err("kernel.processes must be at least 1".to_owned());
        }
        if self.events.max_bytes < 4096 || self.events.keep == 0 {
            return Err("events: max_bytes must be at least 4096 and keep at least 1".to_owned());
        }
        if !(1..=HEARTBEAT_MAX).contains(&self.events.heartbeat_seconds) {
            return Err(format!(
                "events.heartbeat_seconds = {}: write 1 to {HEARTBEAT_MAX}",
                self.events.heartbeat_seconds
            ));
        }
        self.metrics()?;
        for agent in &self.agents {
            AgentName::parse(&agent.name).map_err(|error| error.to_string())?;
            match (&agent.cgroup, &agent.unit) {
                (Some(pattern), None) if pattern.starts_with('/') => {}
                (Some(pattern), None) => {
                    return Err(format!(
                        "agent {}: cgroup = {pattern:?}: begin with `/`, which is kernel.attach",
                        agent.name
                    ));
                }
                (None, Some(unit)) if unit.contains('.') && !unit.contains('/') => {}
                (None, Some(unit)) => {
                    return Err(format!(
                        "agent {}: unit = {unit:?}: write the whole name, e.g. `{unit}.service`",
                        agent.name
                    ));
                }
                _ => {
                    return Err(format!(
                        "agent {}: say where it runs, with either `cgroup` or `unit`",
                        agent.name
                    ));
                }
            }
        }
        Ok(())
    }

    /// Where metrics are served.
    pub fn metrics(&self) -> Result<Option<SocketAddr>, String> {
        if self.daemon.metrics.is_empty() {
            return Ok(None);
        }
        self.daemon.metrics.parse().map(Some).map_err(|_| {
            format!(
                "daemon.metrics = {:?}: write an address with a port, e.g. \"127.0.0.1:9464\", or \
                 \"\" for none",
                self.daemon.metrics
            )
        })
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.daemon.run.join("ambit.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("ambit.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        assert_eq!(parse("").unwrap(), Config::default());
    }

    #[test]
    fn unknown_keys_are_refused_with_their_place() {
        let error = parse("[kernel]\nbackned = \"lsm\"\n").unwrap_err();
        assert!(error.contains("line 2") && error.contains("backned"), "{error}");
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        for (text, word) in [
            ("[events]\nfile = \"x\"", "absolute"),
            ("[events]\nheartbeat_seconds = 0", "write 1 to 86400"),
            ("[daemon]\nmetrics = \"9464\"", "address with a port"),
            ("[kernel]\ntold_ring_bytes = 5000", "power of two"),
            ("[[agent]]\nname = \"a b\"\ncgroup = \"/x\"", "cannot name an agent"),
            ("[[agent]]\nname = \"a\"", "say where it runs"),
            ("[[agent]]\nname = \"a\"\nunit = \"coder\"", "coder.service"),
            ("[[agent]]\nname = \"a\"\ncgroup = \"x\"", "begin with"),
            ("[kernel]\nbackend = \"magic\"", "magic"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
