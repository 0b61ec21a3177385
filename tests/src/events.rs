//! Events as the daemon writes them: the one place that knows where an OCSF event has what.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Process Activity.
pub const PROCESS: u64 = 1007;
/// File System Activity.
pub const FILE: u64 = 1001;
/// Kernel Activity.
pub const KERNEL: u64 = 1003;
/// Event Log Activity: what was lost.
pub const LOG: u64 = 1008;
/// Network Activity.
pub const NETWORK: u64 = 4001;

/// The activity of a launch, in Process Activity.
pub const LAUNCH: u64 = 1;
/// The activity of an end, in Process Activity.
pub const EXIT: u64 = 2;

/// `action_id` Allowed.
pub const ALLOWED: u64 = 1;
/// `action_id` Denied.
pub const DENIED: u64 = 2;
/// `action_id` Observed: audit mode let it go.
pub const OBSERVED: u64 = 3;

/// One event.
#[derive(Clone, Debug)]
pub struct Event(pub Value);

impl Event {
    /// The class, as its uid.
    #[must_use]
    pub fn class(&self) -> u64 {
        self.0["class_uid"].as_u64().unwrap_or(0)
    }

    /// The activity within the class.
    #[must_use]
    pub fn activity(&self) -> u64 {
        self.0["activity_id"].as_u64().unwrap_or(0)
    }

    /// The verdict: [`ALLOWED`], [`DENIED`], [`OBSERVED`], or 0 where nothing was judged.
    #[must_use]
    pub fn verdict(&self) -> u64 {
        self.0["action_id"].as_u64().unwrap_or(0)
    }

    /// The agent's name.
    #[must_use]
    pub fn agent(&self) -> &str {
        self.text(&["unmapped", "ai_agent", "name"])
    }

    /// The kind of action: exec, read, write, connect, bind, bpf.
    #[must_use]
    pub fn action(&self) -> &str {
        self.text(&["unmapped", "action"])
    }

    /// The `@id` of the policy that decided.
    #[must_use]
    pub fn policy(&self) -> &str {
        self.text(&["policy", "uid"])
    }

    /// The file that was opened, or the program that was or would have been run.
    #[must_use]
    pub fn path(&self) -> &str {
        match self.class() {
            PROCESS => self.text(&["process", "file", "path"]),
            _ => self.text(&["file", "path"]),
        }
    }

    /// A launched script: its own path, where [`Event::path`] is its interpreter's.
    #[must_use]
    pub fn script(&self) -> &str {
        self.text(&["unmapped", "script", "path"])
    }

    /// The command line of what was launched, else of the actor.
    #[must_use]
    pub fn command_line(&self) -> &str {
        match self.text(&["process", "cmd_line"]) {
            "" => self.text(&["actor", "process", "cmd_line"]),
            line => line,
        }
    }

    /// The process that acted.
    #[must_use]
    pub fn pid(&self) -> u64 {
        self.0["actor"]["process"]["pid"].as_u64().unwrap_or(0)
    }

    /// The peer as `address:port`, with brackets around IPv6.
    #[must_use]
    pub fn peer(&self) -> String {
        let side = ["dst_endpoint", "src_endpoint"]
            .into_iter()
            .map(|side| &self.0[side])
            .find(|side| side.is_object())
            .unwrap_or(&Value::Null);
        let port = side["port"].as_u64().unwrap_or(0);
        match side["ip"].as_str().unwrap_or_default() {
            ip if ip.contains(':') => format!("[{ip}]:{port}"),
            ip => format!("{ip}:{port}"),
        }
    }

    /// tcp, udp, or nothing.
    #[must_use]
    pub fn protocol(&self) -> &str {
        self.text(&["connection_info", "protocol_name"])
    }

    /// The text at a place, or nothing.
    #[must_use]
    pub fn text(&self, path: &[&str]) -> &str {
        path.iter()
            .try_fold(&self.0, |value, key| value.get(key))
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// One short line, for messages of failed tests.
    #[must_use]
    pub fn brief(&self) -> String {
        let what = match self.class() {
            NETWORK => format!("{} {}", self.protocol(), self.peer()),
            _ => self.path().to_owned(),
        };
        format!(
            "{} {}.{} {} {what} action_id={} policy={:?}",
            self.agent(),
            self.class(),
            self.activity(),
            self.action(),
            self.verdict(),
            self.policy(),
        )
    }
}

/// A reader of an events file, from where it was made on.
#[derive(Clone, Debug)]
pub struct Events {
    file: PathBuf,
    from: usize,
    limit: Duration,
}

impl Events {
    /// A reader of what will be written from now on; the file need not exist yet.
    #[must_use]
    pub fn from_now(file: &Path, limit: Duration) -> Self {
        // At a line's beginning: the last one may be in the middle of being written.
        let written = fs::read(file).unwrap_or_default();
        let from = written.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        Self { file: file.to_path_buf(), from, limit }
    }

    /// A reader of the whole file.
    #[must_use]
    pub fn whole(file: &Path, limit: Duration) -> Self {
        Self { file: file.to_path_buf(), from: 0, limit }
    }

    /// What has been written so far. An error is a line that is not JSON.
    pub fn so_far(&self) -> Result<Vec<Event>> {
        let Ok(bytes) = fs::read(&self.file) else {
            return Ok(Vec::new());
        };
        let new = bytes.get(self.from..).unwrap_or_default();
        let whole = new.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let text = std::str::from_utf8(&new[..whole]).context("the events are not UTF-8")?;
        text.lines()
            .map(|line| match serde_json::from_str(line) {
                Ok(value) => Ok(Event(value)),
                Err(error) => bail!("an event is not JSON ({error}): {line}"),
            })
            .collect()
    }

    /// Waits for an event that is told of. The error lists what came instead.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        let end = Instant::now() + self.limit;
        loop {
            let seen = self.so_far()?;
            if let Some(event) = seen.iter().find(|event| wanted(event)) {
                return Ok(event.clone());
            }
            if Instant::now() > end {
                let last: Vec<String> =
                    seen.iter().rev().take(25).rev().map(Event::brief).collect();
                bail!(
                    "no event came within {:?}: {what}\n  the last of {} that came:\n    {}",
                    self.limit,
                    seen.len(),
                    last.join("\n    ")
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
