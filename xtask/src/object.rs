//! Builds the eBPF object, and with it the programs that embed it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache;
use crate::process;
use crate::toolchain::Toolchain;

/// The variable that tells agent-daemon's build script where the object is.
pub const OBJECT: &str = "AMBIT_BPF_OBJECT";

/// How to build.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Whether the kernel half logs what it does, which costs time in every hook.
    pub debug_log: bool,
    /// Whether a warning in the kernel half is an error.
    pub strict: bool,
}

/// Builds the eBPF object and returns where it is.
pub fn object(toolchain: &Toolchain, options: Options) -> Result<PathBuf> {
    process::step("building the eBPF object", || {
        compiled(toolchain, options, "ambit-bpf", "ambit.bpf.o")
    })
}

/// Builds the object with the programs that do nothing, and returns where it is.
pub fn empty(toolchain: &Toolchain) -> Result<PathBuf> {
    compiled(toolchain, Options::default(), "ambit-bpf-empty", "empty.bpf.o")
}

/// Builds one of the kernel half's objects. A file that would not change is left alone, so that nothing which
/// embeds it is rebuilt.
fn compiled(toolchain: &Toolchain, options: Options, bin: &str, name: &str) -> Result<PathBuf> {
    let folder = cache::target().join("bpf");
    let mut features = "kernel".to_owned();
    if options.debug_log {
        features.push_str(",debug-log");
    }
    let mut cargo = toolchain.cargo("rustc")?;
    cargo
        .current_dir(cache::checkout())
        .args(["--quiet", "--profile", "bpf", "-p", "agent-ebpf", "--bin", bin])
        .args(["--features", &features])
        .arg("--target-dir")
        .arg(&folder);
    cargo.arg("--");
    if options.strict {
        cargo.args(["-D", "warnings"]);
    }
    // aya's macros make public functions without documentation of what we documented.
    cargo.args(["-A", "missing-docs"]);
    process::run(&mut cargo)?;
    let built = folder.join("bpfel-unknown-none/bpf").join(bin);
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let object = cache::target().join(name);
    if fs::read(&object).ok().as_deref() != Some(&bytes) {
        cache::write_whole(&object, &bytes)?;
    }
    Ok(object)
}

/// Builds the programs of the host half, release profile, with the object embedded; returns them.
pub fn programs(object: &OsString, options: Options) -> Result<Vec<PathBuf>> {
    let mut cargo = with_object(process::cargo(), object);
    cargo.current_dir(cache::checkout()).args([
        "build",
        "--quiet",
        "--release",
        "-p",
        "agent-daemon",
        "-p",
        "ambit-tests",
        "--bins",
    ]);
    if options.debug_log {
        cargo.args(["--features", "agent-daemon/debug-log"]);
    }
    process::step("building ambit, ambitd and the tests", || process::run(&mut cargo))?;
    let folder = cache::target().join("release");
    Ok(["ambit", "ambitd", "ambit-e2e", "ambit-actor"]
        .iter()
        .map(|program| folder.join(program))
        .filter(|program| program.exists())
        .collect())
}

/// Builds everything and says where it is.
pub fn all(toolchain: &Toolchain, options: Options) -> Result<OsString> {
    let object = object(toolchain, options)?.into_os_string();
    process::say(&format!("object: {}", object.display()));
    for program in programs(&object, options)? {
        process::say(&format!("program: {}", program.display()));
    }
    Ok(object)
}

/// A command that compiles the daemon, told where the object is.
pub fn with_object(mut command: Command, object: &OsString) -> Command {
    command.env(OBJECT, object);
    // A folder that the caller chose stays chosen, whatever folder the child runs in.
    if env::var_os("CARGO_TARGET_DIR").is_some() {
        command.env("CARGO_TARGET_DIR", cache::target());
    }
    command
}
