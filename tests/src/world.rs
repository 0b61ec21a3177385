//! A world: a daemon with its own configuration, folders and cgroup, gone without a trace when it is
//! dropped.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::actor::{AgentRun, Output, run_limited};
use crate::events::Events;
use crate::metrics::{self, Metrics};
use crate::stage::{GROUND, Stage, USER, make_folder};
use crate::watchdog::remove_cgroup;

/// The configuration file of every world: also the default one, so that no command can fall back on
/// settings that a test did not choose.
pub const CONFIG: &str = "/etc/ambit/ambit.toml";
/// Where the daemon has its socket.
pub const RUN: &str = "/run/ambit";
/// Where the daemon writes its events.
pub const EVENTS: &str = "/var/log/ambit/events.jsonl";
/// Where its policies lie.
pub const POLICIES: &str = "/etc/ambit/policy";
/// Where its pins are.
pub const PINS: &str = "/sys/fs/bpf/ambit";
/// Where the pins of a second daemon would be.
pub const SECOND_PINS: &str = "/sys/fs/bpf/ambit-second";

const SECOND_CONFIG: &str = "/etc/ambit/second.toml";
const SECOND_RUN: &str = "/run/ambit-second";

const LOG: &str = "/ground/.log/ambitd";

/// How long anything that a test waits for may take: long, since on a busy machine the start of an
/// engine alone takes seconds.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What differs from world to world.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where pins go.
    pub pins: String,
    /// The metrics address.
    pub metrics: String,
    /// File systems that a backend by marks covers, besides the stage's.
    pub filesystems: Vec<String>,
    /// More lines of `[kernel]`.
    pub kernel: String,
    /// More lines of `[events]`.
    pub events: String,
    /// Lines appended to the configuration, such as `[[agent]]` tables.
    pub more: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pins: PINS.to_owned(),
            metrics: "127.0.0.1:9464".to_owned(),
            filesystems: Vec::new(),
            kernel: String::new(),
            events: String::new(),
            more: String::new(),
        }
    }
}

/// A daemon and what belongs to it.
#[derive(Debug)]
pub struct World {
    /// The stage that it is on.
    pub stage: &'static Stage,
    /// The cgroup that programs are attached to.
    pub attach: PathBuf,
    settings: Settings,
    daemon: Option<Child>,
}

/// A daemon that is stopped; it goes on when this is dropped.
#[derive(Debug)]
pub struct Paused(Pid);

impl Drop for Paused {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

impl World {
    /// An empty world with a configuration and no daemon. An error is something left over from the
    /// world before, or a place that cannot be made.
    pub fn empty(settings: Settings) -> Result<Self> {
        let stage = Stage::get()?;
        stage.check_is_safe()?;
        let attach = stage.attach()?;
        let mut world = Self { stage, attach, settings, daemon: None };
        world.clear();
        for folder in ["/ground/.log", "/etc/ambit/policy", "/var/log/ambit"] {
            make_folder(Path::new(folder))?;
        }
        fs::set_permissions(GROUND, fs::Permissions::from_mode(0o755))?;
        make_folder(&world.attach.join("bystanders"))?;
        world.configure(&world.settings.more.clone())?;
        Ok(world)
    }

    /// A world whose daemon answers.
    pub fn with_daemon(settings: Settings) -> Result<Self> {
        let mut world = Self::empty(settings)?;
        world.start()?;
        Ok(world)
    }

    /// A world with a daemon and agents that the configuration names.
    pub fn with_agents(tables: &str) -> Result<Self> {
        Self::with_daemon(Settings { more: tables.to_owned(), ..Settings::default() })
    }

    /// Writes the configuration, with `more` at its end.
    pub fn configure(&mut self, more: &str) -> Result<()> {
        more.clone_into(&mut self.settings.more);
        make_folder(Path::new("/etc/ambit"))?;
        fs::write(CONFIG, self.configuration(&self.settings, RUN))
            .context("cannot write the configuration")
    }

    fn configuration(&self, settings: &Settings, run: &str) -> String {
        let Settings { pins, metrics, filesystems, kernel, events, more } = settings;
        let marked: Vec<&str> = self
            .stage
            .filesystems()
            .into_iter()
            .chain(filesystems.iter().map(String::as_str))
            .collect();
        format!(
            "[kernel]\npins = {pins:?}\nattach = {:?}\nagents = {:?}\nbackend = \"auto\"\n\
             filesystems = {marked:?}\n{kernel}\n[daemon]\nrun = {run:?}\nmetrics = {metrics:?}\n\n\
             [events]\nfile = {EVENTS:?}\n{events}\n[policy]\nfolder = {POLICIES:?}\n\n{more}",
            self.attach,
            self.stage.agents(),
        )
    }

    /// Writes the configuration of a second daemon, which shares no folder with the first one but as
    /// `settings` has it, and returns where it is.
    pub fn second(&self, settings: &Settings) -> Result<&'static str> {
        fs::write(SECOND_CONFIG, self.configuration(settings, SECOND_RUN))
            .context("cannot write the second configuration")?;
        Ok(SECOND_CONFIG)
    }

    /// Writes a policy into the daemon's policy folder.
    pub fn policy(&self, name: &str, text: &str) -> Result<PathBuf> {
        Self::put(&format!("{name}.cedar"), text)
    }

    /// Writes a file of entities into the daemon's policy folder.
    pub fn entities(&self, name: &str, text: &str) -> Result<PathBuf> {
        Self::put(&format!("{name}.entities.json"), text)
    }

    fn put(name: &str, text: &str) -> Result<PathBuf> {
        let path = Path::new(POLICIES).join(name);
        // As an editor does it: never a moment with half a policy.
        let temporary = Path::new("/etc/ambit").join(format!(".{name}.new"));
        fs::write(&temporary, text)?;
        fs::rename(&temporary, &path)?;
        Ok(path)
    }

    /// Starts the daemon and waits until it answers. The error has what it said.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the daemon runs already");
        self.stage.check_is_safe()?;
        let log = File::options().create(true).append(true).open(LOG)?;
        let child = Command::new("/usr/bin/ambitd")
            .args(["--config", CONFIG])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start ambitd")?;
        self.daemon = Some(child);
        let end = Instant::now() + self.stage.patience(PATIENCE);
        loop {
            if let Some(child) = &mut self.daemon
                && let Some(status) = child.try_wait()?
            {
                self.daemon = None;
                bail!("ambitd ended at once ({status}):\n{}", self.log());
            }
            if self.answers() {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("ambitd does not answer; it said:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn answers(&self) -> bool {
        let healthy = self.settings.metrics.is_empty()
            || metrics::get(&self.settings.metrics, "/healthz")
                .is_ok_and(|(status, _)| status == 200);
        UnixStream::connect(Path::new(RUN).join("ambit.sock")).is_ok() && healthy
    }

    /// The daemon's pid.
    pub fn daemon_pid(&self) -> Result<i32> {
        let child = self.daemon.as_ref().context("no daemon runs")?;
        Ok(i32::try_from(child.id())?)
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.daemon_pid()?), signal).context("cannot signal ambitd")
    }

    /// Stops the daemon until what is returned is dropped. Where it answers opens, whoever opens a file
    /// waits for it meanwhile, this process too.
    pub fn pause(&self) -> Result<Paused> {
        let pid = self.daemon_pid()?;
        let paused = Paused(Pid::from_raw(pid));
        self.signal(Signal::SIGSTOP)?;
        let stat = format!("/proc/{pid}/stat");
        self.wait("the daemon has stopped", || {
            let text = fs::read_to_string(&stat)?;
            Ok(text.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')))
        })?;
        Ok(paused)
    }

    /// Kills the daemon so that it can do nothing any more.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        if let Some(mut child) = self.daemon.take() {
            child.wait()?;
        }
        Ok(())
    }

    /// Asks the daemon to end and returns its exit code. An error is a daemon that does not end.
    pub fn stop(&mut self) -> Result<Option<i32>> {
        self.signal(Signal::SIGTERM)?;
        self.wait_end(Duration::from_secs(10))
    }

    fn wait_end(&mut self, limit: Duration) -> Result<Option<i32>> {
        let end = Instant::now() + self.stage.patience(limit);
        let mut child = self.daemon.take().context("no daemon runs")?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.code());
            }
            if Instant::now() > end {
                let _ = child.kill();
                let _ = child.wait();
                bail!("ambitd did not end within {limit:?} of SIGTERM:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What daemons of this world have said.
    #[must_use]
    pub fn log(&self) -> String {
        let text = fs::read(LOG).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// A reader of the events from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        Events::from_now(Path::new(EVENTS), self.stage.patience(PATIENCE))
    }

    /// A reader of all events of this world.
    #[must_use]
    pub fn all_events(&self) -> Events {
        Events::whole(Path::new(EVENTS), self.stage.patience(PATIENCE))
    }

    /// The metrics as they are now.
    pub fn metrics(&self) -> Result<Metrics> {
        Metrics::read(&self.settings.metrics)
    }

    /// Where metrics are served.
    #[must_use]
    pub fn metrics_address(&self) -> &str {
        &self.settings.metrics
    }

    /// Has the daemon take the policy folder anew, at its control socket. The error is what it answers.
    pub fn reload(&self) -> Result<()> {
        let socket = format!("{RUN}/ambit.sock");
        let mut stream =
            UnixStream::connect(&socket).with_context(|| format!("nobody listens at {socket}"))?;
        stream.set_read_timeout(Some(self.stage.patience(Duration::from_secs(20))))?;
        stream.write_all(b"\"reload\"\n")?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        let answer: Value = serde_json::from_str(&answer)?;
        ensure!(answer.get("Ok").is_some(), "the daemon refuses to reload: {answer}");
        Ok(())
    }

    /// Waits until something holds. The error says what did not.
    pub fn wait(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let limit = self.stage.patience(PATIENCE);
        let end = Instant::now() + limit;
        while !holds()? {
            if Instant::now() > end {
                bail!("not within {limit:?}: {what}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// A run of `ambit run`, to be filled in.
    #[must_use]
    pub fn agent(&self, name: &str) -> AgentRun {
        AgentRun::new(self.stage, name)
    }

    /// Runs `ambit` with arguments; the configuration is this world's.
    pub fn ambit(&self, arguments: &[&str]) -> Result<Output> {
        run_limited(
            Command::new("/usr/bin/ambit").args(arguments),
            self.stage.patience(Duration::from_secs(20)),
        )
    }

    /// What `ambit doctor --json` says.
    pub fn doctor(&self) -> Result<Value> {
        let output = self.ambit(&["doctor", "--json"])?;
        serde_json::from_str(&output.stdout)
            .with_context(|| format!("`ambit doctor --json` is no JSON: {}", output.whole()))
    }

    /// The backend that judges a kind of action, as `ambit doctor` has it.
    pub fn enforced_by(&self, action: &str) -> Result<String> {
        let doctor = self.doctor()?;
        let by = &find_action(&doctor, action)?["enforced_by"];
        Ok(match by {
            Value::String(text) => text.clone(),
            Value::Null => "nothing".to_owned(),
            other => other.to_string(),
        })
    }

    /// Whether LSM programs judge files here.
    pub fn has_lsm(&self) -> Result<bool> {
        Ok(self.enforced_by("read")?.contains("lsm"))
    }

    /// Whether the hooks ask the kernel's IMA for what programs contain; where they do not, that is said.
    pub fn has_ima(&self) -> Result<bool> {
        match &self.doctor()?["no_ima"] {
            Value::Null => Ok(true),
            Value::String(why) if !why.is_empty() => Ok(false),
            other => bail!("`ambit doctor` says no reason why IMA is not asked, but {other}"),
        }
    }

    /// The actor as no agent's process, in a cgroup beneath the place of attachment.
    pub fn bystander(&self, steps: &[&str]) -> Result<Output> {
        self.in_cgroup(&self.attach.join("bystanders"), USER, steps)
    }

    /// The actor in a cgroup of choice, started there by a shell as the given user.
    pub fn in_cgroup(&self, cgroup: &Path, uid: u32, steps: &[&str]) -> Result<Output> {
        run_limited(
            &mut crate::actor::entering(cgroup, uid, steps),
            self.stage.patience(Duration::from_secs(30)),
        )
    }

    /// The actor in a cgroup of choice, as the agents' user, with a descriptor where
    /// [`crate::verbs::HELD`] says.
    pub fn holding(&self, fd: &impl AsRawFd, cgroup: &Path, steps: &[&str]) -> Result<Output> {
        use std::os::unix::process::CommandExt as _;
        let fd = fd.as_raw_fd();
        let mut command = crate::actor::entering(cgroup, USER, steps);
        // SAFETY: dup2 is all that the child calls, and it may be called there.
        unsafe {
            command.pre_exec(move || {
                nix::errno::Errno::result(nix::libc::dup2(fd, crate::verbs::HELD))?;
                Ok(())
            });
        }
        run_limited(&mut command, self.stage.patience(Duration::from_secs(30)))
    }

    /// Ends the daemon and removes what it and the tests left: processes, cgroups, pins, files.
    fn clear(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for folder in fs::read_dir(&self.attach).into_iter().flatten().flatten() {
            let name = folder.file_name().to_string_lossy().into_owned();
            let ours =
                ["bystanders", "cell-", "system.slice"].iter().any(|own| name.starts_with(own));
            if (ours || name == self.stage.agents()) && folder.path().is_dir() {
                remove_cgroup(&folder.path(), self.stage.patience(Duration::from_secs(5)));
            }
        }
        let _ = self.stage.sweep();
        // A process that ends leaves its cgroup before it lets go of its port.
        let end = Instant::now() + self.stage.patience(Duration::from_secs(5));
        while !self.settings.metrics.is_empty()
            && TcpListener::bind(&self.settings.metrics).is_err()
            && Instant::now() < end
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        for folder in self.stage.pids_v1_children() {
            // Only an empty one goes: its processes were ended above.
            let _ = fs::remove_dir(folder);
        }
        for folder in [PINS, RUN, SECOND_PINS, SECOND_RUN, "/etc/ambit", "/var/log/ambit", GROUND] {
            remove_tree(Path::new(folder));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.clear();
    }
}

/// One kind of action in what `ambit doctor --json` says.
pub fn find_action<'a>(doctor: &'a Value, action: &str) -> Result<&'a Value> {
    let all = doctor["actions"].as_array();
    let found = all.and_then(|all| all.iter().find(|each| each["action"] == action));
    found.with_context(|| format!("`ambit doctor --json` has no action {action}: {doctor}"))
}

/// Removes a folder with all that is in it, and takes off first what tests have mounted there: what a
/// bind mount shows is not theirs.
fn remove_tree(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // The last mounted come last.
    for place in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(place).starts_with(folder) {
            let _ = nix::mount::umount2(place, nix::mount::MntFlags::MNT_DETACH);
        }
    }
    remove_beneath(folder);
}

fn remove_beneath(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_beneath(&entry.path());
        } else {
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_dir(folder);
}

/// A fresh folder for what one test acts upon, owned by the agents' user.
pub fn ground(name: &str) -> Result<PathBuf> {
    let folder = Path::new(GROUND).join(name);
    remove_tree(&folder);
    make_folder(&folder)?;
    chown(&folder, Some(USER), Some(USER))?;
    Ok(folder)
}

/// A file with a text, owned by the agents' user.
pub fn file(path: &Path, text: &str) -> Result<String> {
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
        chown(folder, Some(USER), Some(USER))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    chown(path, Some(USER), Some(USER))?;
    Ok(path.display().to_string())
}

/// A copy of the actor, as a tool that a policy can name.
pub fn tool(path: &Path) -> Result<String> {
    if let Some(folder) = path.parent() {
        make_folder(folder)?;
    }
    fs::copy(crate::stage::ACTOR, path).with_context(|| format!("cannot copy to {path:?}"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(path.display().to_string())
}

/// A listener on a loopback address that accepts and drops whatever comes.
pub fn listener(address: &str) -> Result<String> {
    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let own = listener.local_addr()?.to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            drop(stream);
        }
    });
    Ok(own)
}

/// A `[[agent]]` table for a cgroup beneath the place of attachment.
#[must_use]
pub fn agent_table(name: &str, cgroup: &str, mode: &str) -> String {
    let mut text = String::new();
    // Writing to a `String` cannot fail.
    let _ = writeln!(text, "[[agent]]\nname = {name:?}\ncgroup = \"/{cgroup}\"\nmode = {mode:?}\n");
    text
}
