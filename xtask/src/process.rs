//! The one way in which xtask runs other programs: environment cleaned, output streamed or
//! captured, time bounded, and every error saying which command it was.

use std::env;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Variables that `cargo run` and rustup's proxies set for xtask itself, and that would make a
/// child pick the wrong compiler or the wrong libraries.
const INHERITED: &[&str] = &[
    "CARGO",
    "CARGO_CRATE_NAME",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_PATH",
    "CARGO_PRIMARY_PACKAGE",
    "LD_LIBRARY_PATH",
    "RUST_RECURSION_COUNT",
];

/// A program to run, without what `cargo run` left in the environment.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for name in INHERITED {
        command.env_remove(name);
    }
    for (name, _) in env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"CARGO_PKG_")
            || name.as_encoded_bytes().starts_with(b"CARGO_BIN_")
        {
            command.env_remove(name);
        }
    }
    command
}

/// Also forgets which toolchain and which compiler flags the caller chose: the eBPF object has a
/// toolchain and flags of its own.
pub fn without_toolchain(command: &mut Command) -> &mut Command {
    for name in [
        "RUSTUP_TOOLCHAIN",
        "RUSTUP_TOOLCHAIN_SOURCE",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "CARGO_BUILD_RUSTC",
        "CARGO_BUILD_TARGET",
        "CARGO_BUILD_RUSTFLAGS",
    ] {
        command.env_remove(name);
    }
    command
}

/// The cargo that started xtask (so `cargo +1.95 xtask` stays with 1.95), else the first on PATH.
pub fn cargo() -> Command {
    command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// How a command reads in messages: program and arguments, quoted as in a shell.
pub fn shown(command: &Command) -> String {
    let program = command.get_program();
    // rustup's folder in front of cargo says nothing.
    let program = match Path::new(program).file_name() {
        Some(name) if name == "cargo" && program != "/usr/bin/cargo" => name,
        _ => program,
    };
    std::iter::once(program)
        .chain(command.get_args())
        .map(|word| shell_quote(&word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Quotes one word for a POSIX shell, leaving plain words as they are.
pub fn shell_quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs a command with xtask's own stdin and output; fails if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    check(command, status, "")
}

/// Runs a command and returns what it wrote to stdout; stderr goes into the error if it fails.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    check(command, output.status, &String::from_utf8_lossy(&output.stderr))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command without showing its output unless it fails.
pub fn quietly(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    check(command, output.status, &said)
}

fn check(command: &Command, status: ExitStatus, said: &str) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let said = said.trim_end();
    let separator = if said.is_empty() { "" } else { ":\n" };
    bail!("`{}` ended with {status}{separator}{said}", shown(command))
}

/// How a watched command ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; `None` if a signal or the time limit ended it.
    pub code: Option<i32>,
    /// Whether the time limit ended it.
    pub timed_out: bool,
    /// Everything it wrote to stdout and stderr, in order.
    pub output: String,
    /// How long it ran.
    pub took: Duration,
}

impl Ended {
    /// Whether it ended by itself with exit code 0.
    pub fn success(&self) -> bool {
        self.code == Some(0) && !self.timed_out
    }
}

/// Runs a command with stdout and stderr joined, hands each line to `line` as it comes, and kills
/// the command if it is not done after `limit`.
pub fn watch(
    command: &mut Command,
    limit: Option<Duration>,
    mut line: impl FnMut(&str),
) -> Result<Ended> {
    let started = Instant::now();
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let errors = writer.try_clone().context("cannot copy a pipe's end")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    // The command holds the pipe's write ends; while it does, the reader below would not end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(reader);
        let mut bytes = Vec::new();
        while let Ok(1..) = reader.by_ref().read_until(b'\n', &mut bytes) {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            bytes.clear();
            if sender.send(text).is_err() {
                return;
            }
        }
    });

    let mut output = String::new();
    let mut timed_out = false;
    let mut ended: Option<(ExitStatus, Instant)> = None;
    loop {
        match lines.recv_timeout(Duration::from_millis(50)) {
            Ok(text) => {
                line(text.trim_end_matches(['\n', '\r']));
                output.push_str(&text);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if ended.is_none() {
            ended = child
                .try_wait()
                .context("cannot wait for a child")?
                .map(|status| (status, Instant::now()));
        }
        // A grandchild that outlives the command may keep the pipe open: do not wait for it.
        if ended.is_some_and(|(_, at)| at.elapsed() > Duration::from_secs(1)) {
            break;
        }
        if ended.is_none() && limit.is_some_and(|limit| started.elapsed() > limit) {
            timed_out = true;
            child.kill().context("cannot kill a child that overran")?;
        }
    }
    let status = match ended {
        Some((status, _)) => status,
        None => child.wait().context("cannot wait for a child")?,
    };
    Ok(Ended { code: status.code(), timed_out, output, took: started.elapsed() })
}

/// Where a program is: PATH first, then the folders for administrators that a user's PATH lacks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// PATH with `folders` put first.
pub fn path_with(folders: &[&Path]) -> Result<std::ffi::OsString> {
    let old = env::var_os("PATH").unwrap_or_default();
    let folders = folders.iter().map(|folder| folder.to_path_buf());
    env::join_paths(folders.chain(env::split_paths(&old)))
        .context("a folder's name contains a colon and cannot be on PATH")
}

/// Whether xtask runs as root, which installing packages and loading eBPF need.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Says on stderr what is going on, in one line.
pub fn say(text: &str) {
    eprintln!("{} {text}", paint(Paint::Bold, "xtask:"));
}

/// Does one named step, saying when it starts and how long it took.
pub fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    say(&format!("{name} ..."));
    let started = Instant::now();
    let result = work();
    let seconds = started.elapsed().as_secs_f64();
    match &result {
        Ok(_) => say(&format!("{name}: done in {seconds:.1} s")),
        Err(_) => say(&format!("{name}: failed after {seconds:.1} s")),
    }
    result
}

/// Colours that carry a meaning.
#[derive(Clone, Copy, Debug)]
pub enum Paint {
    /// Headings.
    Bold,
    /// What went well.
    Good,
    /// What failed.
    Bad,
}

/// Colours text if stderr is a terminal and the user did not object (`NO_COLOR`).
pub fn paint(paint: Paint, text: &str) -> String {
    if !std::io::stderr().is_terminal() || env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) {
        return text.to_owned();
    }
    let code = match paint {
        Paint::Bold => "1",
        Paint::Good => "32",
        Paint::Bad => "31",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_only_what_a_shell_would_touch() {
        assert_eq!(shell_quote("a/b-c.d=1"), "a/b-c.d=1");
        assert_eq!(shell_quote(""), "''");
        assert_eq!(shell_quote("it's $HOME"), r"'it'\''s $HOME'");
    }

    #[test]
    fn watched_command_ends_at_its_limit_and_keeps_what_it_said() {
        let mut command = command("sh");
        command.args(["-c", "echo early; exec sleep 60"]);
        let ended = watch(&mut command, Some(Duration::from_millis(300)), |_| ()).unwrap();
        assert!(ended.timed_out && !ended.success());
        assert_eq!(ended.output, "early\n");
    }

    #[test]
    fn watched_command_joins_stdout_and_stderr_in_order() {
        let mut command = command("sh");
        command.args(["-c", "echo one; echo two >&2; printf three; exit 7"]);
        let mut lines = Vec::new();
        let ended = watch(&mut command, None, |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines, ["one", "two", "three"]);
        assert_eq!(ended.code, Some(7));
    }
}
