//! Boots a test kernel in QEMU, runs one command in it as root, and ends with its exit code.
//!
//! The guest has two serial ports: the kernel's console, which goes to a log file, and the command's
//! output, which is passed on line by line. The exit code goes to a disk, where a write is known to
//! have arrived. So the output is clean without any guessing, and a guest that dies cannot be taken
//! for one that succeeded.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Cache, make_folder};
use crate::initramfs::{self, Tree};
use crate::kernels::{self, Kernel, Row};
use crate::process::{self, Ended};
use crate::userland;

/// The exit code for a guest that the time limit ended, as `timeout` has it.
pub const TIMED_OUT: i32 = 124;
/// The exit code for a guest that died (a panic, say) before the command was done.
pub const DIED: i32 = 125;

/// Ambit's programs that are in every guest, if they are built.
const PROGRAMS: &[&str] = &["ambit", "ambitd", "ambit-e2e", "ambit-actor"];

const DISK_MIB: u64 = 256;

/// How often a guest is booted that dies before its command says a word.
const BOOTS: u32 = 3;

/// A run of one command in a guest.
#[derive(Debug)]
pub struct Guest {
    /// The kernel to boot.
    pub kernel: &'static Row,
    /// Host files and folders to put into the guest, with their places there.
    pub add: Vec<(PathBuf, PathBuf)>,
    /// Whether it has the tools of every day, at `/mnt/debian`.
    pub userland: bool,
    /// Environment variables of the command, beside a plain set.
    pub environment: Vec<String>,
    /// Words appended to the kernel's command line; they win over the usual ones.
    pub append: Vec<String>,
    /// The guest's memory in MiB.
    pub memory_mib: u32,
    /// Whether guest time counts instructions, for figures that repeat.
    pub icount: bool,
    /// QEMU's accelerator.
    pub accelerator: String,
    /// How long it may take from power-on to power-off.
    pub limit: Duration,
    /// The command and its arguments.
    pub command: Vec<OsString>,
}

impl Guest {
    /// A run with the usual settings.
    pub fn new(kernel: &'static Row, command: impl IntoIterator<Item = OsString>) -> Self {
        Self {
            kernel,
            add: Vec::new(),
            userland: false,
            environment: Vec::new(),
            append: Vec::new(),
            memory_mib: 1024,
            icount: false,
            accelerator: "tcg".to_owned(),
            limit: Duration::from_secs(300),
            command: command.into_iter().collect(),
        }
    }

    /// Boots, runs and ends the guest, handing over each line of the command's output as it comes.
    /// A guest that overran or died is said so on stderr and has the code for it, not an error.
    pub fn run(&self, cache: &Cache, mut line: impl FnMut(&str)) -> Result<Ended> {
        let qemu = process::find("qemu-system-x86_64").context(
            "qemu-system-x86_64 is missing; install the package qemu-system-x86 \
             (`cargo xtask setup` does)",
        )?;
        let kernel = kernels::ensure(cache, self.kernel)?;
        let workshop = Workshop::new(self.kernel.line)?;
        let archive = workshop.folder.join("initramfs");
        initramfs::write(cache, &kernel, &self.tree()?, &archive)?;
        let mut disks = vec![disk(cache)?];
        if self.userland {
            disks.push(userland::ensure(cache)?);
        }

        // Emulated CPUs that patch code under each other may oops while they boot; a guest that died
        // before its command said a word is booted again.
        let mut boots = 1;
        let mut ended = loop {
            workshop.clear_status()?;
            let mut machine = self.machine(&qemu, &kernel, &workshop, &archive, &disks);
            let mut spoke = false;
            let ended = process::watch(&mut machine, Some(self.limit), |text| {
                spoke = true;
                line(text);
            })?;
            if spoke || ended.timed_out || workshop.code()?.is_some() || boots == BOOTS {
                break ended;
            }
            boots += 1;
            process::say(&format!(
                "the guest with kernel {} died while it booted; booting it again; {}",
                kernel.release,
                workshop.keep_console()?
            ));
        };
        if ended.timed_out {
            process::say(&format!(
                "the guest with kernel {} was not done after {} s and was ended; {}",
                kernel.release,
                self.limit.as_secs(),
                workshop.keep_console()?
            ));
            ended.code = Some(TIMED_OUT);
        } else if let Some(code) = workshop.code()? {
            ended.code = Some(code);
        } else {
            process::say(&format!(
                "the guest with kernel {} ended before the command did; {}",
                kernel.release,
                workshop.keep_console()?
            ));
            ended.code = Some(DIED);
        }
        Ok(ended)
    }

    fn tree(&self) -> Result<Tree> {
        let mut tree = Tree::default();
        for program in PROGRAMS {
            let built = cache::target().join("release").join(program);
            if built.is_file() {
                tree.add(&built, &Path::new("/usr/bin").join(program))?;
            }
        }
        for (host, guest) in &self.add {
            tree.add(host, guest)?;
        }
        let mut script = Vec::new();
        for assignment in &self.environment {
            if !assignment.contains('=') {
                bail!("`--env {assignment}` is not NAME=VALUE");
            }
            script.extend_from_slice(b"export ");
            quote(&mut script, assignment.as_bytes());
            script.push(b'\n');
        }
        if self.command.is_empty() {
            bail!("there is no command to run in the guest; give one after `--`");
        }
        script.extend_from_slice(b"exec");
        for word in &self.command {
            script.push(b' ');
            quote(&mut script, word.as_bytes());
        }
        script.push(b'\n');
        tree.text("/usr/lib/ambit-vm/command", script, 0o644)?;
        Ok(tree)
    }

    fn machine(
        &self,
        qemu: &Path,
        kernel: &Kernel,
        workshop: &Workshop,
        archive: &Path,
        disks: &[PathBuf],
    ) -> Command {
        // Whatever ends xtask ends the guest too.
        let mut machine = match process::find("setpriv") {
            Some(setpriv) => {
                let mut command = process::command(setpriv);
                command.args(["--pdeathsig", "KILL"]).arg(qemu);
                command
            }
            None => process::command(qemu),
        };
        let mut words = vec![
            "console=ttyS0".to_owned(),
            // Under load the emulated timer may miss the boot-time check.
            "no_timer_check".to_owned(),
            "panic=-1".to_owned(),
            "quiet".to_owned(),
            "cryptomgr.notests".to_owned(),
            format!("lsm={}", self.kernel.lsm),
        ];
        // `rep movsb` is emulated byte by byte, which takes a kernel that clears and copies with it half of
        // its time; and would be counted so, which no real machine does.
        machine.args(["-cpu", "max,-erms,-fsrm"]);
        if self.icount {
            machine.args(["-accel", "tcg", "-icount", "shift=0,sleep=off", "-smp", "1"]);
            words.push("tsc=reliable".to_owned());
        } else {
            let accelerator = match self.accelerator.as_str() {
                // CPUs in turn: emulated at once, one of them may run into code that the kernel is patching
                // for the other (an oops at an `int3`), and they wait for each other's locks.
                "tcg" => "tcg,thread=single",
                other => other,
            };
            machine.args(["-accel", accelerator, "-smp", "2"]);
        }
        words.extend_from_slice(&self.append);
        machine
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-monitor", "none"])
            .args(["-m", &self.memory_mib.to_string()])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(archive)
            .args(["-append", &words.join(" ")])
            .arg("-serial")
            .arg(file_chardev(&workshop.console()))
            .args(["-serial", "stdio"]);
        let mut status = OsString::from("if=virtio,format=raw,file=");
        status.push(workshop.status());
        machine.arg("-drive").arg(status);
        for disk in disks {
            // A snapshot: what a guest writes is gone with it.
            let mut drive = OsString::from("if=virtio,format=raw,snapshot=on,file=");
            drive.push(disk);
            machine.arg("-drive").arg(drive);
        }
        machine
    }
}

fn file_chardev(path: &Path) -> OsString {
    let mut device = OsString::from("file:");
    device.push(path);
    device
}

/// Quotes a word for the guest's shell, whatever bytes it has.
fn quote(script: &mut Vec<u8>, word: &[u8]) {
    script.push(b'\'');
    for byte in word {
        match byte {
            b'\'' => script.extend_from_slice(br"'\''"),
            byte => script.push(*byte),
        }
    }
    script.push(b'\'');
}

/// An empty ext4 file system for the guest's `/mnt/ext4`.
fn disk(cache: &Cache) -> Result<PathBuf> {
    let path = cache.root().join(format!("ext4-{DISK_MIB}.img"));
    if path.exists() {
        return Ok(path);
    }
    let mke2fs = process::find("mke2fs")
        .context("mke2fs is missing; install the package e2fsprogs (`cargo xtask setup` does)")?;
    let temporary = cache.root().join(format!("ext4.{}", std::process::id()));
    process::quietly(
        process::command(mke2fs)
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1"])
            .arg(&temporary)
            .arg(format!("{DISK_MIB}M")),
    )?;
    fs::rename(&temporary, &path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The folder of one run, removed at its end.
struct Workshop {
    line: &'static str,
    folder: PathBuf,
}

impl Workshop {
    fn new(line: &'static str) -> Result<Self> {
        let all = cache::target().join("vm");
        make_folder(&all)?;
        remove_abandoned(&all);
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let folder = all.join(format!("{line}-{}-{run}", std::process::id()));
        make_folder(&folder)?;
        Ok(Self { line, folder })
    }

    fn console(&self) -> PathBuf {
        self.folder.join("console")
    }

    fn status(&self) -> PathBuf {
        self.folder.join("status")
    }

    /// Makes the disk for the exit code anew: one sector of zeros.
    fn clear_status(&self) -> Result<()> {
        let path = self.status();
        fs::write(&path, [0; 512]).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The exit code that the guest wrote, if it did.
    fn code(&self) -> Result<Option<i32>> {
        let path = self.status();
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.trim_end_matches('\0').trim_end().parse().ok())
    }

    /// Keeps the kernel's console for the reader; returns its last lines and where the rest is.
    fn keep_console(&self) -> Result<String> {
        let kept = cache::target().join("vm").join(format!("{}.console.log", self.line));
        fs::copy(self.console(), &kept)
            .with_context(|| format!("cannot keep the guest's console as {}", kept.display()))?;
        let bytes = fs::read(&kept).with_context(|| format!("cannot read {}", kept.display()))?;
        let text = String::from_utf8_lossy(&bytes).replace('\r', "");
        Ok(format!("its console said\n{}\n(all of it: {})", telling_lines(&text), kept.display()))
    }
}

/// Removes what runs left that were killed; failing to costs only space.
fn remove_abandoned(all: &Path) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.split('-').nth(1)?.parse::<u32>().ok());
        // Not `/proc/PID` itself: a process that nobody has waited for still has that.
        let alive = |pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok();
        if owner.is_some_and(|pid| !alive(pid)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// What a reader wants of a dead guest's console: the beginning of the first complaint, else the
/// last lines.
fn telling_lines(console: &str) -> String {
    const SHOWN: usize = 25;
    let lines: Vec<_> = console.lines().collect();
    let complaint = lines.iter().position(|line| {
        ["Kernel panic", "BUG:", "Oops", "Call Trace", "ambit-vm:"]
            .iter()
            .any(|sign| line.contains(sign))
    });
    let from = complaint.map_or(lines.len().saturating_sub(SHOWN), |at| at.saturating_sub(2));
    let shown: Vec<_> = lines.iter().skip(from).take(SHOWN).copied().collect();
    shown.join("\n")
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_any_bytes_for_the_guests_shell() {
        let mut script = Vec::new();
        quote(&mut script, b"it's \"$x\"\n\xff");
        assert_eq!(script, b"'it'\\''s \"$x\"\n\xff'");
    }
}
