//! The kernels that tests run on, one row each, fetched from Debian into the cache on first use.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::apt::PrivateApt;
use crate::cache::{Cache, make_folder, write_whole};
use crate::process;

/// One line of kernels that Ambit is tested on.
#[derive(Debug)]
pub struct Row {
    /// The line, as users name it: `6.12`.
    pub line: &'static str,
    /// Debian suites that have it, best first.
    pub suites: &'static [&'static str],
    /// The `lsm=` list to boot with: the usual one of that time, and `bpf`.
    pub lsm: &'static str,
}

/// Every test kernel, oldest first.
pub const KERNELS: &[Row] = &[
    // `bpf` is not in this line's default list, and capability must be named.
    Row { line: "5.10", suites: &["bullseye-security"], lsm: "lockdown,capability,yama,bpf" },
    Row {
        line: "6.1",
        suites: &["bookworm-security", "bookworm"],
        lsm: "landlock,lockdown,yama,bpf",
    },
    Row { line: "6.12", suites: &["trixie-security", "trixie"], lsm: "landlock,lockdown,yama,bpf" },
    Row { line: "6.18", suites: &["trixie-backports"], lsm: "landlock,lockdown,yama,bpf" },
    Row { line: "7.3", suites: &["trixie-backports"], lsm: "landlock,lockdown,yama,bpf" },
];

/// The kernel for quick runs: a long-term line that has everything Ambit uses.
pub const DEFAULT: &str = "6.12";

const FLAVOUR: &str = "-cloud-amd64";

/// Finds a kernel's row by its line; usable as a command line parser.
pub fn row(line: &str) -> Result<&'static Row> {
    KERNELS.iter().find(|row| row.line == line).with_context(|| {
        let lines: Vec<_> = KERNELS.iter().map(|row| row.line).collect();
        format!("there is no test kernel {line}; choose one of {}", lines.join(", "))
    })
}

/// A kernel that is in the cache.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What it is.
    pub row: &'static Row,
    /// Its release, as `uname -r` prints it.
    pub release: String,
    /// The image to boot.
    pub image: PathBuf,
    /// Its module folder, with `modules.dep`.
    pub modules: PathBuf,
}

/// Returns a kernel, fetching it first if the cache lacks it.
pub fn ensure(cache: &Cache, row: &'static Row) -> Result<Kernel> {
    if let Some(kernel) = cached(cache, row) {
        return Ok(kernel);
    }
    let _lock = cache.lock()?;
    if let Some(kernel) = cached(cache, row) {
        return Ok(kernel);
    }
    process::step(&format!("fetching kernel {}", row.line), || fetch(cache, row))
}

fn cached(cache: &Cache, row: &'static Row) -> Option<Kernel> {
    let folder = cache.root().join("kernels").join(row.line);
    // Written last, so that its presence means that all the rest is there.
    let release = fs::read_to_string(folder.join("release")).ok()?;
    Some(Kernel {
        row,
        image: folder.join("vmlinuz"),
        modules: folder.join("lib/modules").join(&release),
        release,
    })
}

fn fetch(cache: &Cache, row: &'static Row) -> Result<Kernel> {
    let mut refusals = Vec::new();
    for suite in row.suites {
        match fetch_from(cache, row, suite) {
            Ok(kernel) => return Ok(kernel),
            Err(error) => refusals.push(format!("{suite}: {error:#}")),
        }
    }
    bail!("cannot fetch kernel {}:\n{}", row.line, refusals.join("\n"))
}

fn fetch_from(cache: &Cache, row: &'static Row, suite: &str) -> Result<Kernel> {
    let apt = PrivateApt::open(cache, suite)?;
    let names = apt.names(&format!("^linux-(image|binary|modules)-.*{FLAVOUR}$"))?;
    let packages = choose(&names, row.line).with_context(|| {
        format!("no linux-image-{}.*{FLAVOUR} there; it has {}", row.line, names.join(" "))
    })?;
    let folder = cache.folder("kernels")?.join(row.line);
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove the unfinished {}", folder.display()))?;
    }
    make_folder(&folder)?;
    let tree = apt.unpack(&packages, &folder)?;
    let modules = ["usr/lib/modules", "lib/modules"]
        .map(|place| tree.join(place))
        .into_iter()
        .find(|place| place.is_dir())
        .with_context(|| format!("{} hold no modules", packages.join(" ")))?;
    let release = only_entry(&modules)?;
    let image = [
        tree.join("boot").join(format!("vmlinuz-{release}")),
        modules.join(&release).join("vmlinuz"),
    ]
    .into_iter()
    .find(|file| file.is_file())
    .with_context(|| format!("{} hold no kernel image", packages.join(" ")))?;
    fs::rename(&image, folder.join("vmlinuz")).context("cannot move the kernel image")?;
    make_folder(&folder.join("lib"))?;
    fs::rename(&modules, folder.join("lib/modules")).context("cannot move the modules")?;
    fs::remove_dir_all(&tree).context("cannot remove what is not needed of the kernel package")?;
    let depmod = process::find("depmod")
        .context("depmod is missing; install the package kmod (`cargo xtask setup` does)")?;
    process::quietly(process::command(depmod).arg("-b").arg(&folder).arg(&release))?;
    write_whole(&folder.join("release"), release.as_bytes())?;
    cached(cache, row).context("the kernel vanished from the cache while it was being fetched")
}

fn only_entry(folder: &Path) -> Result<String> {
    let mut entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let first = entries
        .next()
        .with_context(|| format!("{} is empty", folder.display()))?
        .with_context(|| format!("cannot list {}", folder.display()))?;
    Ok(first.file_name().to_string_lossy().into_owned())
}

/// Picks the packages that hold the newest kernel of a line. From 6.19 on `linux-image` is an
/// empty stub, and the image and the modules are in `linux-binary` and `linux-modules`.
fn choose(names: &[String], line: &str) -> Option<Vec<String>> {
    let version = |name: &str, kind: &str| -> Option<String> {
        let version = name.strip_prefix(kind)?.strip_suffix(FLAVOUR)?;
        let ours = version.strip_prefix(line)?.starts_with('.');
        ours.then(|| version.to_owned())
    };
    let newest = |kind: &str| {
        names
            .iter()
            .filter_map(|name| version(name, kind))
            .filter(|version| !version.starts_with("unsigned"))
            .max_by(|a, b| compare(a, b))
    };
    let named = |kind: &str, version: &str| format!("{kind}{version}{FLAVOUR}");
    if let Some(version) = newest("linux-binary-") {
        let binary = named("linux-binary-", &version);
        let modules = named("linux-modules-", &version);
        return Some(if names.contains(&modules) { vec![binary, modules] } else { vec![binary] });
    }
    newest("linux-image-").map(|version| vec![named("linux-image-", &version)])
}

/// Compares versions by the numbers in them, left to right.
fn compare(a: &str, b: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
    };
    numbers(a).cmp(&numbers(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn picks_the_newest_of_its_own_line() {
        let all = names(&[
            "linux-image-6.1-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.12.96+deb13-cloud-amd64",
            "linux-image-6.12.117+deb13-cloud-amd64",
        ]);
        assert_eq!(choose(&all, "6.1").unwrap(), ["linux-image-6.1.0-56-cloud-amd64"]);
        assert_eq!(choose(&all, "6.12").unwrap(), ["linux-image-6.12.117+deb13-cloud-amd64"]);
        assert_eq!(choose(&all, "6.18"), None);
    }

    #[test]
    fn takes_binary_and_modules_where_the_image_is_a_stub() {
        let all = names(&[
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-binary-unsigned-7.3.4+deb13-cloud-amd64",
            "linux-modules-7.3.4+deb13-cloud-amd64",
        ]);
        assert_eq!(
            choose(&all, "7.3").unwrap(),
            ["linux-binary-7.3.4+deb13-cloud-amd64", "linux-modules-7.3.4+deb13-cloud-amd64"]
        );
    }
}
