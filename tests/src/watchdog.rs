//! The process that cleans up, whatever happens to the suite.
//!
//! It is started before anything else is made, reads what was made from a pipe, and works when the
//! pipe closes: the suite may have ended, failed or been killed. It touches no file system that an
//! enforcer under test marks, so it can also free a suite that waits for a dead enforcer.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The first argument that makes the suite's program a watchdog.
pub const FLAG: &str = "--watchdog";

/// The suite's end of the pipe.
#[derive(Debug)]
pub struct Watchdog {
    pipe: File,
}

impl Watchdog {
    /// Starts a watchdog over this process. An error says which step failed.
    pub fn start() -> Result<Self> {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .context("cannot make the watchdog's pipe")?;
        let own = std::env::current_exe().context("cannot find the suite's own program")?;
        let mut command = Command::new(own);
        command
            .arg(FLAG)
            .arg(std::process::id().to_string())
            .stdin(Stdio::from(read))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .current_dir("/");
        command.spawn().context("cannot start the watchdog")?;
        Ok(Self { pipe: write.into() })
    }

    /// Has a cgroup emptied and removed at the end.
    pub fn owns_cgroup(&self, folder: &Path) -> Result<()> {
        self.say(&format!("cgroup {}", folder.display()))
    }

    /// Has everything but the suite itself killed when this much time has passed.
    pub fn limit(&self, limit: Duration) -> Result<()> {
        self.say(&format!("limit {}", limit.as_millis()))
    }

    fn say(&self, line: &str) -> Result<()> {
        writeln!(&self.pipe, "{line}").context("the watchdog is gone")
    }
}

/// The watchdog's own main: reads standard input until it closes, then cleans up.
pub fn watch(owner: i32) -> Result<()> {
    // Out of the suite's session: what ends the suite by its terminal must not end this.
    let _ = nix::unistd::setsid();
    let stdin = std::io::stdin();
    let mut lines = BufReader::new(File::from(stdin.as_fd().try_clone_to_owned()?));
    let mut cgroups: Vec<PathBuf> = Vec::new();
    let mut limit: Option<Instant> = None;
    let mut warned = false;
    loop {
        let wait = limit.map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(Instant::now());
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let ready = if lines.buffer().is_empty() {
            let mut files = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
            match poll(&mut files, wait) {
                Ok(count) => count > 0,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error).context("cannot wait for the suite"),
            }
        } else {
            true
        };
        if ready {
            let mut line = String::new();
            if lines.read_line(&mut line)? == 0 {
                break;
            }
            match line.trim_end().split_once(' ') {
                Some(("cgroup", folder)) => cgroups.push(folder.into()),
                Some(("limit", milliseconds)) => {
                    let limit_is = Duration::from_millis(milliseconds.parse().unwrap_or(0));
                    limit = Some(Instant::now() + limit_is);
                    warned = false;
                }
                _ => {}
            }
        } else if limit.is_some_and(|at| Instant::now() >= at) {
            for folder in &cgroups {
                kill_all(folder, &[owner]);
            }
            if warned {
                let _ = kill(Pid::from_raw(owner), Signal::SIGKILL);
            }
            warned = true;
            limit = Some(Instant::now() + Duration::from_secs(30));
        }
    }
    for folder in &cgroups {
        remove_cgroup(folder, Duration::from_secs(10));
    }
    Ok(())
}

/// Kills every process in a cgroup and beneath it but the spared ones.
pub fn kill_all(folder: &Path, spared: &[i32]) {
    for pid in pids_beneath(folder) {
        if !spared.contains(&pid) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// The processes in a cgroup and beneath it; none when it does not exist.
#[must_use]
pub fn pids_beneath(folder: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = fs::read_to_string(folder.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    for child in children(folder) {
        pids.extend(pids_beneath(&child));
    }
    // 0 stands for a process of another pid namespace; kill(0) would be ourselves.
    pids.retain(|pid| *pid > 0);
    pids
}

/// Empties a cgroup, removes it with all beneath it, and returns whether it is gone.
pub fn remove_cgroup(folder: &Path, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        kill_all(folder, &[]);
        remove_folders(folder);
        if !folder.exists() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn remove_folders(folder: &Path) {
    for child in children(folder) {
        remove_folders(&child);
    }
    let _ = fs::remove_dir(folder);
}

fn children(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
