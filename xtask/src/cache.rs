//! Where things live: the checkout, its build folder, and the cache outside it that survives a
//! `git clean`.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process;

/// The folder outside the checkout that holds what is costly to fetch or build: tools, kernels,
/// package lists, unchanging parts of an initramfs.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache: `$AMBIT_CACHE`, else `$XDG_CACHE_HOME/ambit`, else `~/.cache/ambit`, else
    /// (no home folder) `/var/cache/ambit`.
    pub fn open() -> Result<Self> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty());
        let root = if let Some(folder) = set("AMBIT_CACHE") {
            PathBuf::from(folder)
        } else if let Some(folder) = set("XDG_CACHE_HOME") {
            Path::new(&folder).join("ambit")
        } else if let Some(home) = set("HOME") {
            Path::new(&home).join(".cache/ambit")
        } else {
            PathBuf::from("/var/cache/ambit")
        };
        let root = std::path::absolute(root).context("cannot make the cache's path absolute")?;
        fs::create_dir_all(&root).with_context(|| {
            format!(
                "cannot make the cache folder {}; set AMBIT_CACHE to one that you can write",
                root.display()
            )
        })?;
        Ok(Self { root })
    }

    /// The cache's own folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A folder in the cache, made if need be.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.root.join(name);
        make_folder(&folder)?;
        Ok(folder)
    }

    /// Holds the cache for this process until the result is dropped, so that two set-ups at once
    /// do not fetch or build the same thing.
    pub fn lock(&self) -> Result<File> {
        let path = self.root.join("lock");
        let file = File::create(&path)
            .with_context(|| format!("cannot make the lock file {}", path.display()))?;
        if file.try_lock().is_err() {
            process::say(&format!("waiting for another xtask that holds {}", path.display()));
            file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(file)
    }
}

/// The checkout's root folder.
pub fn checkout() -> PathBuf {
    let own = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().map_or(own.clone(), Path::to_path_buf)
}

/// Cargo's build folder of this checkout.
pub fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => checkout().join(folder),
        None => checkout().join("target"),
    }
}

/// Makes a folder with its parents.
pub fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))
}

/// Writes a file whole or not at all: under another name first, then renamed.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(name);
    fs::write(&temporary, bytes)
        .with_context(|| format!("cannot write {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("cannot write {}", path.display()))
}

/// Names what the cache holds by its ingredients: FNV-1a, against accidents and not against people.
pub fn stamp(ingredients: &[u8]) -> String {
    let hash = ingredients.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Removes the files beside this one whose names begin so too, which other ingredients made; failing to
/// costs only space.
pub fn remove_others(own: &Path, prefix: &str) {
    for entry in own.parent().and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten() {
        let Ok(entry) = entry else { continue };
        if entry.path() != own && entry.file_name().to_string_lossy().starts_with(prefix) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
