//! Brings a machine to where everything else works: programs, toolchain, linker, test kernels.
//! Whatever is there already costs a look and no more.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::apt;
use crate::cache::Cache;
use crate::kernels::{self, KERNELS};
use crate::process::{self, say};
use crate::prometheus;
use crate::toolchain::{self, Toolchain};
use crate::userland;

/// A program that must be there: its name, Debian's package for it, and why.
const PROGRAMS: &[(&str, &[&str], &str)] = &[
    ("cc", &["gcc", "libc6-dev"], "links Rust programs"),
    ("git", &["git"], "tells which commit is built"),
    ("ldd", &["libc-bin"], "finds the libraries of programs for test guests"),
];

/// What booting test kernels needs beside that.
const VM_PROGRAMS: &[(&str, &[&str], &str)] = &[
    ("qemu-system-x86_64", &["qemu-system-x86"], "boots the test kernels"),
    ("busybox", &["busybox-static"], "is the test guests' system"),
    ("depmod", &["kmod"], "orders the test kernels' modules"),
    ("xz", &["xz-utils"], "unpacks the test kernels' modules"),
    ("mke2fs", &["e2fsprogs"], "makes the test guests' disks"),
    ("setpriv", &["util-linux"], "ends a guest together with its starter"),
];

/// Sets everything up; with `vms`, also what booting test kernels needs, all the kernels,
/// the guests' tools, and Prometheus.
pub fn all(cache: &Cache, vms: bool) -> Result<Toolchain> {
    let started = Instant::now();
    programs(cache, PROGRAMS)?;
    toolchain::ensure_lints()?;
    let toolchain = Toolchain::ensure(cache)?;
    say(&format!("eBPF toolchain: {}", toolchain.describe()));
    if vms {
        programs(cache, VM_PROGRAMS)?;
        for row in KERNELS {
            let kernel = kernels::ensure(cache, row)?;
            say(&format!("kernel {:5} is {}", row.line, kernel.release));
        }
        userland::ensure(cache)?;
        prometheus::ensure(cache)?;
    }
    say(&format!(
        "ready after {:.1} s; cache: {}",
        started.elapsed().as_secs_f64(),
        cache.root().display()
    ));
    Ok(toolchain)
}

/// Sets up what booting a test kernel needs; the kernel itself is fetched when it is booted.
pub fn for_vms(cache: &Cache) -> Result<()> {
    programs(cache, VM_PROGRAMS)
}

fn programs(cache: &Cache, wanted: &[(&str, &[&str], &str)]) -> Result<()> {
    let missing = || wanted.iter().filter(|(program, ..)| process::find(program).is_none());
    if missing().next().is_none() {
        return Ok(());
    }
    let _lock = cache.lock()?;
    let mut packages = Vec::new();
    for (program, names, why) in missing() {
        say(&format!("{program} is missing; it {why}"));
        packages.extend_from_slice(names);
    }
    if packages.is_empty() {
        return Ok(());
    }
    if !apt::can_install() {
        bail!(
            "install these, which needs root and your system's package manager (Debian's names): {}",
            packages.join(" ")
        );
    }
    apt::install(&packages)
}
