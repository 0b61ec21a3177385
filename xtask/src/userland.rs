//! The tools of every day for test guests: Debian's programs in an ext4 image, made on first use and kept in
//! the cache.
//!
//! They are of one fixed suite, so that tests see the same tools on every machine. Nothing of them is
//! installed or configured: the packages are unpacked, and that is enough for programs. 160 packages of
//! 221 MB make an image of 750 MB within 20 to 60 s; an emulated guest builds a small program with cargo in 9 s.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt::PrivateApt;
use crate::cache::{Cache, remove_others, stamp};
use crate::process;

/// Where the tools come from. Its C library is no older than that of the machines that build Ambit's own
/// programs, which run with it.
const SUITE: &str = "trixie";

/// What is asked for; apt adds what these depend on.
const PACKAGES: &[&str] = &[
    "apt",
    "cargo",
    "coreutils",
    "dash",
    "diffutils",
    "dpkg",
    "gcc",
    "git",
    "grep",
    "gzip",
    "libc6-dev",
    "make",
    "openssh-client",
    "python3",
    "sed",
    "tar",
];

/// What nothing needs of the packages, a third of their size.
const LEFT_OUT: &[&str] = &[
    "usr/bin/rustdoc",
    "usr/bin/x86_64-linux-gnu-lto-dump-14",
    "usr/libexec/gcc/x86_64-linux-gnu/14/lto1",
    "usr/share/doc",
    "usr/share/locale",
    "usr/share/man",
];

/// What the packages' scripts would have linked.
const LINKS: &[(&str, &str)] = &[("usr/bin/cc", "gcc")];

/// The image's size in bytes; what is not filled takes no space.
const SIZE: u64 = 1 << 30;

/// Returns the image, making it first if the cache lacks it or has one of other tools.
pub fn ensure(cache: &Cache) -> Result<PathBuf> {
    let ingredients = format!("{SUITE}{PACKAGES:?}{LEFT_OUT:?}{LINKS:?}{SIZE}");
    let path = cache.folder("userland")?.join(format!("{}.img", stamp(ingredients.as_bytes())));
    if path.exists() {
        return Ok(path);
    }
    let _lock = cache.lock()?;
    if !path.exists() {
        process::step("making the guests' tools", || make(cache, &path))
            .context("cannot make the guests' tools, which their suite needs")?;
    }
    Ok(path)
}

fn make(cache: &Cache, path: &Path) -> Result<()> {
    let mke2fs = process::find("mke2fs")
        .context("mke2fs is missing; install the package e2fsprogs (`cargo xtask setup` does)")?;
    let apt = PrivateApt::open(cache, SUITE)?;
    let folder = path.with_extension("new");
    let remove = |what: &Path| {
        if what.is_dir() { fs::remove_dir_all(what) } else { fs::remove_file(what) }
    };
    if folder.exists() {
        remove(&folder).with_context(|| format!("cannot remove the unfinished {folder:?}"))?;
    }
    let tree = apt.unpack_with_dependencies(PACKAGES, &folder)?;
    for left_out in LEFT_OUT {
        let left_out = tree.join(left_out);
        if left_out.exists() {
            remove(&left_out)
                .with_context(|| format!("cannot leave out {}", left_out.display()))?;
        }
    }
    for (link, to) in LINKS {
        let link = tree.join(link);
        symlink(to, &link).with_context(|| format!("cannot make the link {}", link.display()))?;
    }
    let image = folder.join("image");
    File::create(&image)
        .and_then(|file| file.set_len(SIZE))
        .with_context(|| format!("cannot make {}", image.display()))?;
    process::quietly(
        process::command(mke2fs)
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0"])
            .args(["-E", "lazy_itable_init=1", "-d"])
            .arg(&tree)
            .arg(&image),
    )?;
    fs::rename(&image, path).with_context(|| format!("cannot write {}", path.display()))?;
    remove(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    remove_others(path, "");
    Ok(())
}
