//! Finds what compiles the eBPF object, and installs what is missing.
//!
//! Two toolchains can: Debian's own (`rustc-web` with a ready-made `core` for the BPF target), and
//! a rustup nightly with `rust-src`. Debian's is preferred, because it is one release and not a
//! moving one. Either needs `bpf-linker`, built against the LLVM major version that its rustc has.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt;
use crate::cache::Cache;
use crate::process;

/// The version of bpf-linker that objects are built with.
const LINKER_VERSION: &str = "0.13.0";
/// LLVM versions that this bpf-linker can be built for.
const LINKER_LLVMS: std::ops::RangeInclusive<u32> = 21..=23;

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";
const DEBIAN_TOOLCHAIN: &[&str] = &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

/// Forces a toolchain: `debian` or `nightly`.
const CHOICE: &str = "AMBIT_BPF_TOOLCHAIN";

/// A compiler that can build for `bpfel-unknown-none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// Debian's packages, whose `core` for the target is ready-made.
    Debian,
    /// A rustup nightly that builds `core` from `rust-src`.
    Nightly,
}

impl Compiler {
    fn name(self) -> &'static str {
        match self {
            Self::Debian => "Debian's rustc-web",
            Self::Nightly => "rustup's nightly with rust-src",
        }
    }

    fn is_there(self) -> bool {
        match self {
            Self::Debian => {
                Path::new(DEBIAN_RUSTC).exists()
                    && Path::new(DEBIAN_CARGO).exists()
                    && has_core(Path::new(DEBIAN_CORE))
            }
            Self::Nightly => {
                let mut rustc = Self::Nightly.rustc();
                process::capture(rustc.args(["--print", "sysroot"])).is_ok_and(|sysroot| {
                    Path::new(sysroot.trim())
                        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
                        .exists()
                })
            }
        }
    }

    fn rustc(self) -> Command {
        let mut command = match self {
            Self::Debian => process::command(DEBIAN_RUSTC),
            Self::Nightly => {
                let mut command = process::command("rustup");
                command.args(["run", "nightly", "rustc"]);
                command
            }
        };
        process::without_toolchain(&mut command);
        command
    }

    /// The major version of the LLVM inside.
    fn llvm(self) -> Result<u32> {
        let about = process::capture(self.rustc().arg("-vV"))?;
        about
            .lines()
            .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next()?.parse().ok())
            .with_context(|| format!("{} does not say which LLVM it has", self.name()))
    }
}

fn has_core(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

/// A compiler with the linker that fits it.
#[derive(Clone, Debug)]
pub struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

impl Toolchain {
    /// Finds a toolchain, installing it first if there is none.
    pub fn ensure(cache: &Cache) -> Result<Self> {
        let compiler = match find()? {
            Some(compiler) => compiler,
            None => {
                let _lock = cache.lock()?;
                install()?
            }
        };
        let llvm = compiler.llvm()?;
        let root = cache.root().join(format!("tools/bpf-linker-{LINKER_VERSION}-llvm-{llvm}"));
        let linker = root.join("bin/bpf-linker");
        if !linker.exists() {
            let _lock = cache.lock()?;
            if !linker.exists() {
                build_linker(llvm, &root, compiler)?;
            }
        }
        Ok(Self { compiler, linker })
    }

    /// One line that says what was picked.
    pub fn describe(&self) -> String {
        format!("{}, {}", self.compiler.name(), self.linker.display())
    }

    /// A `cargo` that builds for the BPF target, with compiler and linker set.
    pub fn cargo(&self, subcommand: &str) -> Result<Command> {
        let mut cargo = match self.compiler {
            Compiler::Debian => process::command(DEBIAN_CARGO),
            Compiler::Nightly => {
                let mut command = process::command("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
        };
        process::without_toolchain(&mut cargo);
        cargo.arg(subcommand);
        match self.compiler {
            // The target has no stable support, though Debian ships its `core`.
            Compiler::Debian => {
                cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
            }
            Compiler::Nightly => {
                cargo.args(["-Z", "build-std=core"]);
            }
        }
        let folder = self.linker.parent().unwrap_or(Path::new("/"));
        cargo.env("PATH", process::path_with(&[folder])?);
        cargo.env(
            "RUSTFLAGS",
            format!(
                "-C linker={} -C debuginfo=2 -C link-arg=--btf -C link-arg=--disable-expand-memcpy-in-order --cfg bpf_target_arch=\"{}\"",
                self.linker.display(),
                env::consts::ARCH
            ),
        );
        // Whatever the user's configuration says: built in pieces, functions are not inlined as the
        // verifier wants them.
        cargo.env("CARGO_INCREMENTAL", "0");
        cargo.args(["--target", "bpfel-unknown-none"]);
        Ok(cargo)
    }
}

/// The compiler that is there: the one asked for, else Debian's, else a nightly.
fn find() -> Result<Option<Compiler>> {
    let candidates = match forced()? {
        Some(compiler) => vec![compiler],
        None => vec![Compiler::Debian, Compiler::Nightly],
    };
    Ok(candidates.into_iter().find(|compiler| compiler.is_there()))
}

fn forced() -> Result<Option<Compiler>> {
    match env::var(CHOICE).ok().as_deref() {
        None | Some("") => Ok(None),
        Some("debian") => Ok(Some(Compiler::Debian)),
        Some("nightly") => Ok(Some(Compiler::Nightly)),
        Some(other) => bail!("{CHOICE}={other}: it can be `debian` or `nightly`, or unset"),
    }
}

fn install() -> Result<Compiler> {
    let forced = forced()?;
    let mut tried = Vec::new();
    if forced != Some(Compiler::Nightly) {
        if apt::can_install() {
            match apt::install(DEBIAN_TOOLCHAIN) {
                Ok(()) if Compiler::Debian.is_there() => return Ok(Compiler::Debian),
                Ok(()) => tried.push(format!(
                    "installed {}, but {DEBIAN_CORE} has no core",
                    DEBIAN_TOOLCHAIN.join(" ")
                )),
                Err(error) => tried.push(format!("{error:#}")),
            }
        } else {
            tried.push("installing Debian's packages needs apt-get and root".to_owned());
        }
    }
    if forced != Some(Compiler::Debian) {
        let mut rustup = process::command("rustup");
        process::without_toolchain(&mut rustup);
        rustup.args(["component", "add", "rust-src", "--toolchain", "nightly"]);
        match process::step("adding rust-src to rustup's nightly", || process::quietly(&mut rustup))
        {
            Ok(()) => return Ok(Compiler::Nightly),
            Err(error) => tried.push(format!("{error:#}")),
        }
    }
    bail!(
        "no toolchain for the BPF target. Install one of:\n\
         - on Debian 12 or later, as root: apt-get install {}\n\
         - elsewhere: rustup toolchain install nightly --component rust-src\n\
         What was tried:\n{}",
        DEBIAN_TOOLCHAIN.join(" "),
        tried.join("\n")
    )
}

/// Where an LLVM of this major version is, with its headers and libraries.
fn llvm_prefix(llvm: u32) -> Option<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if debian.join("bin/llvm-config").exists() {
        return Some(debian);
    }
    [format!("llvm-config-{llvm}"), "llvm-config".to_owned()].iter().find_map(|config| {
        let version = process::capture(process::command(config).arg("--version")).ok()?;
        let prefix = process::capture(process::command(config).arg("--prefix")).ok()?;
        let fits = version.split('.').next()?.parse() == Ok(llvm);
        fits.then(|| PathBuf::from(prefix.trim()))
    })
}

fn build_linker(llvm: u32, root: &Path, compiler: Compiler) -> Result<()> {
    if !LINKER_LLVMS.contains(&llvm) {
        bail!(
            "{} has LLVM {llvm}, and bpf-linker {LINKER_VERSION} knows {} to {}; use a toolchain \
             in that range ({CHOICE}=debian, or an older nightly)",
            compiler.name(),
            LINKER_LLVMS.start(),
            LINKER_LLVMS.end()
        );
    }
    let packages =
        [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev"), format!("clang-{llvm}")];
    let mut packages: Vec<_> = packages.iter().map(String::as_str).collect();
    packages.extend(["zlib1g-dev", "libzstd-dev"]);
    let headers = ["/usr/include/zlib.h", "/usr/include/zstd.h"];
    let ready = llvm_prefix(llvm).is_some() && headers.iter().all(|file| Path::new(file).exists());
    if !ready && apt::can_install() {
        apt::install(&packages)?;
    }
    let prefix = llvm_prefix(llvm).with_context(|| {
        format!(
            "bpf-linker must be built against LLVM {llvm}, which is not here; on Debian, as root: \
             apt-get install {}",
            packages.join(" ")
        )
    })?;
    let title = format!("building bpf-linker {LINKER_VERSION} against {}", prefix.display());
    process::step(&title, || {
        let mut cargo = process::cargo();
        cargo
            .args(["install", "bpf-linker", "--locked", "--version", LINKER_VERSION])
            .args(["--no-default-features", "--features", &format!("llvm-{llvm}")])
            .arg("--root")
            .arg(root)
            .env("LLVM_PREFIX", &prefix)
            .env("PATH", process::path_with(&[&prefix.join("bin")])?)
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("RUSTFLAGS");
        process::quietly(&mut cargo)
    })
}

/// Adds rustfmt and clippy to the toolchain in use, if they are missing.
pub fn ensure_lints() -> Result<()> {
    let works = |tool: &str| process::quietly(process::cargo().args([tool, "--version"])).is_ok();
    let missing: Vec<_> = [("fmt", "rustfmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(tool, _)| !works(tool))
        .map(|(_, component)| component)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    process::step(&format!("adding {}", missing.join(" and ")), || {
        process::quietly(process::command("rustup").args(["component", "add"]).args(&missing))
            .with_context(|| format!("install {} for your Rust toolchain", missing.join(" and ")))
    })
}
