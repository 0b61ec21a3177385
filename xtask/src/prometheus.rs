//! Prometheus and its linter, for tests: unpacked from Debian's package into the cache and not installed, so that
//! no service begins.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::apt::PrivateApt;
use crate::cache::{Cache, stamp};
use crate::process;

/// A suite whose C library every machine has that builds Ambit.
const SUITE: &str = "bookworm";

/// What is kept of the package.
const PROGRAMS: [&str; 2] = ["prometheus", "promtool"];

/// Returns the folder of the programs, fetching them first if the cache lacks them.
pub fn ensure(cache: &Cache) -> Result<PathBuf> {
    let name = stamp(format!("{SUITE}{PROGRAMS:?}").as_bytes());
    let folder = cache.folder("prometheus")?.join(name);
    if folder.exists() {
        return Ok(folder);
    }
    let _lock = cache.lock()?;
    if !folder.exists() {
        process::step("fetching Prometheus", || fetch(cache, &folder))
            .context("cannot fetch Prometheus, which tests scrape with")?;
    }
    Ok(folder)
}

fn fetch(cache: &Cache, folder: &PathBuf) -> Result<()> {
    let new = folder.with_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new)
            .with_context(|| format!("cannot remove the unfinished {}", new.display()))?;
    }
    let apt = PrivateApt::open(cache, SUITE)?;
    let tree = apt.unpack(&["prometheus".to_owned()], &new.join("package"))?;
    for program in PROGRAMS {
        fs::rename(tree.join("usr/bin").join(program), new.join(program))
            .with_context(|| format!("the package of {SUITE} has no /usr/bin/{program}"))?;
    }
    let package = new.join("package");
    fs::remove_dir_all(&package).with_context(|| format!("cannot remove {}", package.display()))?;
    fs::rename(&new, folder).with_context(|| format!("cannot make {}", folder.display()))
}
