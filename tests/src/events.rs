//! Events as the daemon writes them: the one place that knows where an OCSF event has what.

use std::cell::RefCell;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Process Activity.
pub const PROCESS: u64 = 1007;
/// File System Activity.
pub const FILE: u64 = 1001;
/// Kernel Activity.
pub const KERNEL: u64 = 1003;
/// Event Log Activity: what was lost, and heartbeats.
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
pub struct Event(pub Arc<Value>);

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
            .try_fold(&*self.0, |value, key| value.get(key))
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

/// How many rotated files there may be, as the daemon's default has it.
const KEPT: u32 = 8;

/// A reader of an events file, from where it was made on, through every rotation.
#[derive(Clone, Debug)]
pub struct Events {
    file: PathBuf,
    limit: Duration,
    read: RefCell<Read>,
}

/// What a reader has read.
#[derive(Clone, Debug, Default)]
struct Read {
    /// The file that the next line stands in, and where; none is the oldest there will be.
    next: Option<(Object, u64)>,
    events: Vec<Event>,
}

/// A file, whatever it is called by now: its device and inode.
type Object = (u64, u64);

fn object(file: &File) -> Result<Object> {
    let about = file.metadata()?;
    Ok((about.dev(), about.ino()))
}

/// Where the last line ends that is whole; another may be in the middle of being written.
fn end_of(file: &Path) -> Result<(Object, u64)> {
    let mut open = File::open(file)?;
    let mut written = Vec::new();
    open.read_to_end(&mut written)?;
    Ok((object(&open)?, whole_lines(&written) as u64))
}

fn whole_lines(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

impl Events {
    /// A reader of what will be written from now on; the file need not exist yet.
    #[must_use]
    pub fn from_now(file: &Path, limit: Duration) -> Self {
        let events = Self::whole(file, limit);
        events.read.borrow_mut().next = end_of(file).ok();
        events
    }

    /// A reader of all that is there, and of what will be written.
    #[must_use]
    pub fn whole(file: &Path, limit: Duration) -> Self {
        Self { file: file.to_path_buf(), limit, read: RefCell::default() }
    }

    /// The file and what it was rotated to, oldest first.
    fn files(&self) -> Result<Vec<(Object, File)>> {
        let rotated = (1..=KEPT).map(|number| format!("{}.{number}", self.file.display()).into());
        let mut files: Vec<(Object, File)> = Vec::new();
        for path in std::iter::once(self.file.clone()).chain(rotated) {
            let file = match File::open(&path) {
                Ok(file) => file,
                // There are no more, or a rotation is under way.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error).with_context(|| format!("cannot open {path:?}")),
            };
            let own = object(&file)?;
            // Rotated since the file before it was opened, it comes a second time.
            if files.iter().all(|(other, _)| *other != own) {
                files.push((own, file));
            }
        }
        files.reverse();
        Ok(files)
    }

    /// What has been written so far. An error is a line that is not JSON, or one that is gone.
    pub fn so_far(&self) -> Result<Vec<Event>> {
        let mut read = self.read.borrow_mut();
        let files = self.files()?;
        let first = match read.next {
            None => 0,
            // A rotation stands between two names of one file; the next look finds it.
            Some(_) if files.is_empty() => return Ok(read.events.clone()),
            Some((wanted, _)) => files
                .iter()
                .position(|(own, _)| *own == wanted)
                .with_context(|| format!("{:?} was rotated away unread", self.file))?,
        };
        for (own, mut file) in files.into_iter().skip(first) {
            let from = read.next.filter(|(wanted, _)| *wanted == own).map_or(0, |(_, from)| from);
            file.seek(SeekFrom::Start(from))?;
            let mut new = Vec::new();
            file.read_to_end(&mut new)?;
            let lines = whole_lines(&new);
            let text = std::str::from_utf8(&new[..lines]).context("the events are not UTF-8")?;
            for line in text.lines() {
                match serde_json::from_str(line) {
                    Ok(value) => read.events.push(Event(Arc::new(value))),
                    Err(error) => bail!("an event is not JSON ({error}): {line}"),
                }
            }
            read.next = Some((own, from + lines as u64));
        }
        Ok(read.events.clone())
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
