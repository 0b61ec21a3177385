//! Ambit's build, test and virtual machine commands: `cargo xtask --help`.

mod apt;
mod bench;
mod cache;
mod coverage;
mod initramfs;
mod kernels;
mod object;
mod process;
mod prometheus;
mod prove;
mod setup;
mod test;
mod toolchain;
mod userland;
mod vm;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::cache::Cache;
use crate::kernels::Row;
use crate::process::{Paint, paint};
use crate::vm::Guest;

/// Ambit's build, test and virtual machine commands.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    after_help = "Environment:
  AMBIT_CACHE            where tools and kernels are kept [default: ~/.cache/ambit]
  AMBIT_BPF_TOOLCHAIN    debian or nightly: which compiler builds the eBPF object
  AMBIT_DEBIAN_MIRROR, AMBIT_DEBIAN_SECURITY_MIRROR
                         where test kernels come from [default: the machine's apt sources]"
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Find or install everything that building and testing need
    #[command(after_help = "Examples:
  cargo xtask setup              all of it; the second time it only looks
  cargo xtask setup --no-vms     no QEMU and no test kernels")]
    Setup {
        /// Leave out QEMU and the test kernels
        #[arg(long)]
        no_vms: bool,
    },
    /// Build the eBPF object and the programs that embed it
    #[command(after_help = "Examples:
  cargo xtask build
  cargo xtask build --debug-log     the kernel half logs every fork of an agent")]
    Build(Build),
    /// Run a command in a virtual machine with a test kernel, and end with its exit code
    #[command(after_help = "Examples:
  cargo xtask vm --kernel 6.12 -- ambit doctor
  cargo xtask vm --kernel 5.10 -- sh -c 'uname -r; cat /sys/kernel/security/lsm'
  cargo xtask vm --userland -- ambit-e2e leaves_git_alone
  cargo xtask vm --kernel 7.3 --add /usr/bin/strace:/usr/bin/strace -- strace -f ambit doctor

The guest is busybox on a tmpfs, with /mnt/ext4 on a disk of its own, the user `agent` (uid 1000),
and ambit, ambitd, ambit-e2e and ambit-actor as `cargo xtask build` last built them. Its exit code
is 124 if the guest overran, and 125 if it died before the command was done.")]
    Vm(Vm),
    /// Check, build and test everything: unit tests, then end to end on this kernel and on others
    #[command(after_help = "Examples:
  cargo xtask test                       everything, in minutes
  cargo xtask test --all                 every test on every kernel
  cargo xtask test --kernel 5.10 exec    tests with `exec` in their names; of the guests only 5.10
  cargo xtask test --write-coverage way  docs/coverage.md as it is measured

The last line says `N passed, N failed`, summed over all suites.")]
    Test(test::Options),
    /// Compare the lowered policies with Cedar's authorizer, for millions of requests
    #[command(after_help = "Examples:
  cargo xtask prove                    5,000,000 pairs of a policy set and a request
  cargo xtask prove --pairs 200000

The last lines say how many pairs were compared, what came of them, and how long it took; a
disagreement is printed with its policies and its request, and ends with a non-zero exit code.")]
    Prove(prove::Options),
    /// Measure what Ambit costs
    #[command(after_help = "Examples:
  cargo xtask bench hooks                 instructions for each action, in a guest with 6.12
  cargo xtask bench hooks --kernel 6.1
  cargo xtask bench hooks --json          the figures, for programs
  cargo xtask bench hooks --write         docs/cost.md as it is measured
  cargo xtask bench --check               fails where a figure is 5 % from docs/cost.md")]
    Bench(bench::Options),
    /// Show what Ambit does, on this machine or in a virtual machine
    #[command(after_help = "Examples:
  sudo cargo xtask demo
  cargo xtask demo --vm 6.12")]
    Demo {
        /// Run inside a virtual machine with this kernel
        #[arg(long, value_name = "KERNEL", value_parser = kernel)]
        vm: Option<&'static Row>,
    },
    /// Check format, lints and documentation
    Lint,
}

#[derive(Args, Clone, Copy, Debug)]
struct Build {
    /// Let the kernel half log every fork of an agent
    #[arg(long)]
    debug_log: bool,
    /// Take a warning in the kernel half for an error
    #[arg(long)]
    strict: bool,
}

#[derive(Args, Debug)]
struct Vm {
    /// The kernel line: 5.10, 6.1, 6.12, 6.18 or 7.3
    #[arg(long, value_parser = kernel, default_value = kernels::DEFAULT)]
    kernel: &'static Row,
    /// Put a host file or folder into the guest, with the libraries of programs; may be repeated
    #[arg(long, value_name = "HOST_PATH:GUEST_PATH", value_parser = pair)]
    add: Vec<(PathBuf, PathBuf)>,
    /// Give the guest the tools of every day (Debian's git, cargo, python3 and others) at /mnt/debian
    #[arg(long)]
    userland: bool,
    /// Set an environment variable for the command; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Append a word to the kernel's command line; may be repeated
    #[arg(long, value_name = "WORD")]
    append: Vec<String>,
    /// The guest's memory, in MiB
    #[arg(long, value_name = "MiB", default_value_t = 1024)]
    memory: u32,
    /// Let guest time count instructions (one CPU, about 1 ns each), for figures that repeat
    #[arg(long)]
    icount: bool,
    /// QEMU's accelerator; `kvm` is quicker where stock kernels boot on it
    #[arg(long, value_name = "NAME", default_value = "tcg", conflicts_with = "icount")]
    accel: String,
    /// End the guest after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// The command and its arguments
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

fn kernel(line: &str) -> Result<&'static Row> {
    kernels::row(line)
}

fn pair(text: &str) -> Result<(PathBuf, PathBuf)> {
    let (host, guest) = text
        .split_once(':')
        .filter(|(host, guest)| !host.is_empty() && guest.starts_with('/'))
        .with_context(|| {
            format!("`{text}` is not HOST_PATH:GUEST_PATH, with / before the latter")
        })?;
    Ok((PathBuf::from(host), PathBuf::from(guest)))
}

fn main() -> ExitCode {
    match perform(Arguments::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{} {error:#}", paint(Paint::Bad, "error:"));
            ExitCode::FAILURE
        }
    }
}

fn perform(task: Task) -> Result<ExitCode> {
    let cache = Cache::open()?;
    match task {
        Task::Setup { no_vms } => {
            setup::all(&cache, !no_vms)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Build(build) => {
            let toolchain = setup::all(&cache, false)?;
            let options = object::Options { debug_log: build.debug_log, strict: build.strict };
            object::all(&toolchain, options)?;
            Ok(ExitCode::SUCCESS)
        }
        Task::Vm(arguments) => {
            setup::for_vms(&cache)?;
            let mut guest = Guest::new(arguments.kernel, arguments.command);
            guest.add = arguments.add;
            guest.userland = arguments.userland;
            guest.environment = arguments.env;
            guest.append = arguments.append;
            guest.memory_mib = arguments.memory;
            guest.icount = arguments.icount;
            guest.accelerator = arguments.accel;
            guest.limit = Duration::from_secs(arguments.timeout);
            show(&cache, &guest)
        }
        Task::Test(options) => test::run(&cache, &options),
        Task::Prove(options) => prove::run(&cache, &options),
        Task::Bench(options) => bench::run(&cache, &options),
        Task::Demo { vm } => demo(&cache, vm),
        Task::Lint => test::lint(&cache),
    }
}

/// Runs a guest with its output on stdout, and ends with its exit code.
fn show(cache: &Cache, guest: &Guest) -> Result<ExitCode> {
    let ended = guest.run(cache, |line| println!("{line}"))?;
    let code = ended.code.unwrap_or(vm::DIED);
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn demo(cache: &Cache, kernel: Option<&'static Row>) -> Result<ExitCode> {
    let toolchain = setup::all(cache, false)?;
    object::all(&toolchain, object::Options::default())?;
    if let Some(kernel) = kernel {
        setup::for_vms(cache)?;
        let command = ["ambit-e2e", "demo"].map(OsString::from);
        return show(cache, &Guest::new(kernel, command));
    }
    if !process::is_root() {
        bail!("the demo loads eBPF programs, which needs root: run it with sudo, or use --vm 6.12");
    }
    let demo = cache::target().join(Path::new("release/ambit-e2e"));
    process::run(process::command(demo).arg("demo"))?;
    Ok(ExitCode::SUCCESS)
}
