//! Runs of the actor: as an agent by `ambit run`, or as a bystander; and what they said.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::stage::{ACTOR, Stage, USER};

/// `EPERM`, which every denial is.
pub const EPERM: i64 = 1;

/// What a program left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit code, with 128 and the number for a signal.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// All of it, for messages of failed tests.
    #[must_use]
    pub fn whole(&self) -> String {
        let cut = |text: &str| -> String {
            let text = text.trim_end();
            match text.char_indices().nth(2000) {
                Some((at, _)) => format!("{} …", &text[..at]),
                None => text.to_owned(),
            }
        };
        format!(
            "exit code {}\n  stdout: {}\n  stderr: {}",
            self.code,
            cut(&self.stdout),
            cut(&self.stderr)
        )
    }

    /// What the actor told of its steps, in order.
    #[must_use]
    pub fn steps(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .filter_map(|line| serde_json::from_str(line.trim()).ok())
            .filter(|value: &Value| value["errno"].is_i64())
            .collect()
    }

    /// The errno of the first step that begins so; 0 is success. The error is that it was not told.
    pub fn errno(&self, step: &str) -> Result<i64> {
        self.steps()
            .iter()
            .find(|told| told["step"].as_str().is_some_and(|own| own.starts_with(step)))
            .and_then(|told| told["errno"].as_i64())
            .with_context(|| format!("the actor told of no step `{step}`: {}", self.whole()))
    }

    /// Asserts the errno of a step.
    pub fn expect(&self, step: &str, errno: i64) -> Result<()> {
        let found = self.errno(step)?;
        ensure!(found == errno, "`{step}` ended with errno {found}, not {errno}: {}", self.whole());
        Ok(())
    }

    /// Asserts the exit code.
    pub fn expect_code(&self, code: i32) -> Result<()> {
        ensure!(self.code == code, "the exit code is not {code}: {}", self.whole());
        Ok(())
    }

    /// Asserts a failure with a message that has all these words, on one line of its own.
    pub fn expect_refusal(&self, words: &[&str]) -> Result<()> {
        ensure!(self.code != 0, "it did not fail: {}", self.whole());
        for word in words {
            ensure!(
                self.stderr.to_lowercase().contains(&word.to_lowercase()),
                "the message does not say `{word}`: {}",
                self.whole()
            );
        }
        ensure!(
            !self.stderr.contains("panicked") && !self.stderr.contains("RUST_BACKTRACE"),
            "that is no message for a person: {}",
            self.whole()
        );
        Ok(())
    }
}

/// A run of `ambit run`.
#[derive(Clone, Debug)]
pub struct AgentRun {
    stage: &'static Stage,
    name: String,
    policy: Option<PathBuf>,
    options: Vec<String>,
    user: Option<u32>,
}

impl AgentRun {
    /// A run of an agent with this name, as the agents' user.
    #[must_use]
    pub fn new(stage: &'static Stage, name: &str) -> Self {
        Self { stage, name: name.to_owned(), policy: None, options: Vec::new(), user: Some(USER) }
    }

    /// With a policy of this text, in a file that no agent may write.
    pub fn policy(mut self, text: &str) -> Result<Self> {
        let folder = Path::new("/etc/ambit/runs");
        crate::stage::make_folder(folder)?;
        let path = folder.join(format!("{}.cedar", self.name));
        fs::write(&path, text)?;
        self.policy = Some(path);
        Ok(self)
    }

    /// With a policy file that exists already, or does not.
    #[must_use]
    pub fn policy_file(mut self, path: &Path) -> Self {
        self.policy = Some(path.to_path_buf());
        self
    }

    /// With one more option.
    #[must_use]
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }

    /// As root, which has to be asked for.
    #[must_use]
    pub fn as_root(mut self) -> Self {
        self.user = None;
        self.options.push("--allow-root".to_owned());
        self.options.push("--user".to_owned());
        self.options.push("0".to_owned());
        self
    }

    /// As a user with this name.
    #[must_use]
    pub fn as_user(mut self, name: &str) -> Self {
        self.user = None;
        self.option("--user").option(name)
    }

    /// The command that runs `words` as the agent.
    #[must_use]
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("/usr/bin/ambit");
        command.args(["run", "--agent", &self.name]);
        if let Some(policy) = &self.policy {
            command.arg("--policy").arg(policy);
        }
        if let Some(user) = self.user {
            command.args(["--user", &user.to_string()]);
        }
        command.args(&self.options).arg("--").args(words);
        command.current_dir("/");
        command
    }

    /// Runs a program as the agent and waits for it.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        run_limited(&mut self.command(words), self.patience())
    }

    /// Runs the actor as the agent and waits for it. The error is a run that told of no step.
    pub fn act(&self, steps: &[&str]) -> Result<Output> {
        let output = self.run(&actor(steps))?;
        ensure!(
            !output.steps().is_empty(),
            "the actor did not run as agent {}: {}",
            self.name,
            output.whole()
        );
        Ok(output)
    }

    /// Starts the actor as the agent.
    pub fn start(&self, steps: &[&str]) -> Result<Running> {
        Running::start(self.command(&actor(steps)), self.patience())
    }

    fn patience(&self) -> Duration {
        self.stage.patience(Duration::from_secs(180))
    }
}

fn actor<'a>(steps: &[&'a str]) -> Vec<&'a str> {
    std::iter::once(ACTOR).chain(steps.iter().copied()).collect()
}

/// The actor as a user, from a shell that has first moved itself into a cgroup.
#[must_use]
pub fn entering(cgroup: &Path, uid: u32, steps: &[&str]) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "echo 0 >\"$0\" && exec \"$@\""]).arg(cgroup.join("cgroup.procs"));
    if uid == 0 {
        command.arg(ACTOR);
    } else {
        // The actor changes its user itself, so that no other program is needed.
        command.args([ACTOR, "user", &uid.to_string(), "then"]);
    }
    command.args(steps).current_dir("/");
    command
}

/// A program that runs in the background; it is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Option<Child>,
    readers: Vec<std::thread::JoinHandle<String>>,
    limit: Duration,
}

impl Running {
    /// Starts a command, reading all that it says.
    pub fn start(mut command: Command, limit: Duration) -> Result<Self> {
        let shown = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {shown}"))?;
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|stream| Box::new(stream) as _),
            child.stderr.take().map(|stream| Box::new(stream) as _),
        ];
        let readers = streams
            .into_iter()
            .flatten()
            .map(|mut stream| {
                std::thread::spawn(move || {
                    let mut bytes = Vec::new();
                    let _ = stream.read_to_end(&mut bytes);
                    String::from_utf8_lossy(&bytes).into_owned()
                })
            })
            .collect();
        Ok(Self { child: Some(child), readers, limit })
    }

    /// The pid of what was started.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> Result<bool> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?.is_some()),
            None => Ok(true),
        }
    }

    /// Waits for its end. The error is a run over its time limit, which is killed.
    pub fn finish(mut self) -> Result<Output> {
        use std::os::unix::process::ExitStatusExt;
        let mut child = self.child.take().context("it was waited for before")?;
        let end = Instant::now() + self.limit;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if Instant::now() > end {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        if status.is_none() {
            bail!("it did not end within {:?}", self.limit);
        }
        let mut texts = self.readers.drain(..).map(|reader| reader.join().unwrap_or_default());
        let stdout = texts.next().unwrap_or_default();
        let stderr = texts.next().unwrap_or_default();
        let code = status.map_or(255, |status| {
            status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
        });
        Ok(Output { code, stdout, stderr })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs a command to its end. The error is one that cannot be started or overruns.
pub fn run_limited(command: &mut Command, limit: Duration) -> Result<Output> {
    let taken = std::mem::replace(command, Command::new("true"));
    let shown = format!("{taken:?}");
    Running::start(taken, limit)?.finish().with_context(|| format!("in {shown}"))
}
