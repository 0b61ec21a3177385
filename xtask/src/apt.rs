//! Debian's package tool, in two roles: installing what is missing, and fetching packages of other
//! suites through a private configuration that never touches the system's own.
//!
//! Mirrors are those that the machine's own sources name.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, make_folder};
use crate::process;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Whether packages can be installed here: Debian's tools, and root to use them.
pub fn can_install() -> bool {
    process::find("apt-get").is_some() && process::is_root()
}

/// Installs packages from the machine's own sources.
pub fn install(packages: &[&str]) -> Result<()> {
    let title = format!("installing {}", packages.join(" "));
    process::step(&title, || {
        let attempt = || process::quietly(system_apt().arg("install").args(packages));
        // The lists may be there and fresh; only if they are not is `update` worth its seconds.
        if attempt().is_ok() {
            return Ok(());
        }
        process::quietly(system_apt().arg("update"))
            .context("cannot refresh the package lists; check the machine's apt sources")?;
        attempt().with_context(|| {
            format!(
                "cannot install {}; check that the machine's apt sources offer them",
                packages.join(" ")
            )
        })
    })
}

fn system_apt() -> Command {
    let mut apt = process::command("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").args([
        "-q",
        "-y",
        "--no-install-recommends",
        "-o",
        "DPkg::Lock::Timeout=300",
        "-o",
        "Acquire::Retries=3",
    ]);
    apt
}

/// The part of Debian's archive that a suite is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Archive {
    /// Releases, their updates and backports.
    Main,
    /// Security updates (suites named `*-security`).
    Security,
}

impl Archive {
    fn of(suite: &str) -> Self {
        if suite.ends_with("-security") || suite.ends_with("/updates") {
            Self::Security
        } else {
            Self::Main
        }
    }
}

/// A private apt for one suite: lists, cache and sources of its own, in the cache folder.
#[derive(Debug)]
pub struct PrivateApt {
    folder: PathBuf,
    suite: String,
}

impl PrivateApt {
    /// Sets up the suite and fetches its package list.
    pub fn open(cache: &Cache, suite: &str) -> Result<Self> {
        let mirror = mirror(Archive::of(suite))?;
        let folder = cache.folder("apt")?.join(suite);
        make_folder(&folder.join("lists/partial"))?;
        make_folder(&folder.join("cache/archives/partial"))?;
        let signed_by = if Path::new(KEYRING).exists() {
            format!(" signed-by={KEYRING}")
        } else {
            String::new()
        };
        make_folder(&folder.join("state"))?;
        // Nothing is installed there, so that what a package needs does not depend on the machine.
        let status = folder.join("state/status");
        fs::write(&status, "").with_context(|| format!("cannot write {}", status.display()))?;
        let sources = folder.join("sources.list");
        let line = format!("deb [arch=amd64{signed_by}] {mirror} {suite} main\n");
        fs::write(&sources, line).with_context(|| format!("cannot write {}", sources.display()))?;
        let apt = Self { folder, suite: suite.to_owned() };
        process::quietly(apt.command("apt-get").arg("update"))
            .with_context(|| format!("cannot fetch the package list of {suite} from {mirror}"))?;
        Ok(apt)
    }

    /// Names of packages that the suite has and that match a regular expression.
    pub fn names(&self, expression: &str) -> Result<Vec<String>> {
        let listed = process::capture(self.command("apt-cache").args([
            "search",
            "--names-only",
            expression,
        ]))
        .with_context(|| format!("cannot search the packages of {}", self.suite))?;
        Ok(listed
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect())
    }

    /// Downloads packages into a folder and unpacks them there into `tree`, installing nothing.
    pub fn unpack(&self, packages: &[String], into: &Path) -> Result<PathBuf> {
        let tree = into.join("tree");
        make_folder(&tree)?;
        process::quietly(self.command("apt-get").arg("download").args(packages).current_dir(into))
            .with_context(|| format!("cannot download {} of {}", packages.join(" "), self.suite))?;
        unpack_all(into, &tree)?;
        Ok(tree)
    }

    /// The same with all that the packages depend on.
    pub fn unpack_with_dependencies(&self, packages: &[&str], into: &Path) -> Result<PathBuf> {
        let (tree, archives) = (into.join("tree"), into.join("archives"));
        make_folder(&tree)?;
        make_folder(&archives.join("partial"))?;
        process::quietly(
            self.command("apt-get")
                .args(["-y", "--no-install-recommends", "--download-only", "-o"])
                .arg(format!("Dir::Cache::archives={}", archives.display()))
                .arg("install")
                .args(packages),
        )
        .with_context(|| {
            format!(
                "cannot download {} of {} with what they depend on",
                packages.join(" "),
                self.suite
            )
        })?;
        unpack_all(&archives, &tree)?;
        Ok(tree)
    }

    fn command(&self, program: &str) -> Command {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let mut apt = process::command(program);
        apt.env("DEBIAN_FRONTEND", "noninteractive");
        for option in [
            format!("Dir::Etc::sourcelist={}", at("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "Dir::Etc::preferences=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            format!("Dir::State={}", at("state")),
            format!("Dir::State::status={}", at("state/status")),
            format!("Dir::State::lists={}", at("lists")),
            format!("Dir::Cache={}", at("cache")),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            "Acquire::Retries=3".to_owned(),
            // The cache may be where apt's unprivileged helper cannot look.
            "APT::Sandbox::User=".to_owned(),
            "APT::Architecture=amd64".to_owned(),
        ] {
            apt.arg("-o").arg(option);
        }
        apt
    }
}

/// Unpacks and removes every package in a folder.
fn unpack_all(folder: &Path, tree: &Path) -> Result<()> {
    let files = fs::read_dir(folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("cannot list {}", folder.display()))?;
    for file in files.into_iter().map(|entry| entry.path()) {
        if file.extension().is_some_and(|end| end == "deb") {
            process::quietly(process::command("dpkg").arg("-x").arg(&file).arg(tree))
                .with_context(|| format!("cannot unpack {}", file.display()))?;
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
    }
    Ok(())
}

/// The mirror for an archive, from `$AMBIT_DEBIAN_MIRROR` and `$AMBIT_DEBIAN_SECURITY_MIRROR` or,
/// on Debian, from the machine's own apt sources.
fn mirror(archive: Archive) -> Result<String> {
    let name = match archive {
        Archive::Main => "AMBIT_DEBIAN_MIRROR",
        Archive::Security => "AMBIT_DEBIAN_SECURITY_MIRROR",
    };
    if let Some(url) = env::var(name).ok().filter(|url| !url.is_empty()) {
        return Ok(url);
    }
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        system
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    if field("ID").as_deref() != Some("debian") {
        bail!(
            "the test kernels are Debian packages, and this is not Debian, so there is no mirror \
             to take from its own sources; set {name} to the URL of a Debian mirror"
        );
    }
    let codename = field("VERSION_CODENAME").unwrap_or_else(|| "stable".to_owned());
    let targets = process::capture(process::command("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE)",
        "Created-By: Packages",
    ]))
    .context("cannot read the machine's apt sources")?;
    choose_mirror(&targets, &codename, archive).with_context(|| {
        format!("the machine's apt sources name no Debian mirror for {archive:?}; set {name}")
    })
}

/// Picks from lines of `URI SUITE` the mirror that serves an archive.
fn choose_mirror(targets: &str, codename: &str, archive: Archive) -> Option<String> {
    let rolling = ["stable", "testing", "unstable", "sid", "oldstable"];
    let served = |wanted: Archive| {
        targets
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(_, suite)| {
                let base = suite.trim_end_matches("/updates").trim_end_matches("-security");
                (base == codename || rolling.contains(&base)) && Archive::of(suite) == wanted
            })
            .map(|(uri, _)| uri.trim_end_matches('/').to_owned())
    };
    served(archive).or_else(|| match archive {
        Archive::Main => None,
        // By convention a mirror has the two side by side.
        Archive::Security => served(Archive::Main)?
            .strip_suffix("/debian")
            .map(|base| format!("{base}/debian-security")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: &str = "https://tools.example/apt bookworm-tools\n\
        https://m.example/debian/ bookworm-updates\n\
        https://m.example/debian/ bookworm\n\
        https://m.example/debian-security/ bookworm-security\n";

    #[test]
    fn takes_mirrors_from_the_machines_own_sources() {
        let choose = |archive| choose_mirror(TARGETS, "bookworm", archive);
        assert_eq!(choose(Archive::Main).unwrap(), "https://m.example/debian");
        assert_eq!(choose(Archive::Security).unwrap(), "https://m.example/debian-security");
    }

    #[test]
    fn derives_the_security_mirror_where_none_is_named() {
        let targets = "https://m.example/debian bookworm\n";
        assert_eq!(
            choose_mirror(targets, "bookworm", Archive::Security).unwrap(),
            "https://m.example/debian-security"
        );
        assert_eq!(choose_mirror("", "bookworm", Archive::Security), None);
    }
}
