//! What is Ambit's own, and so out of every agent's reach whatever its policy says: forbidden by name when
//! tables are made, and guarded as objects against being removed or renamed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use agent_ebpf::{Facet, GUARD_CHILDREN, GUARD_SELF};

use crate::{config::Config, kernel::host, policy::Protected};

/// The places that an agent may not touch: `file` is the configuration's, `events` and `policies` are an
/// agent's own files, where it has any.
pub fn protected(
    config: &Config,
    file: Option<&Path>,
    events: Option<&Path>,
    policies: &[&Path],
) -> Vec<Protected> {
    const BINARY: &[Facet] = &[Facet::WriteFile, Facet::ExecProgram];
    let whole =
        |path: &Path| Protected { path: path.to_path_buf(), beneath: true, facets: Facet::ALL };
    let mut paths = vec![
        whole(&config.daemon.run),
        whole(&config.kernel.pins),
        whole(&config.policy.folder),
        whole(file.unwrap_or(Path::new(crate::config::DEFAULT_PATH))),
    ];
    if let Ok(own) = std::env::current_exe() {
        for name in ["ambit", "ambitd"] {
            let path = own.with_file_name(name);
            paths.push(Protected { path, beneath: false, facets: BINARY });
        }
    }
    let events = [Some(config.events.file.as_path()), events];
    for file in events.into_iter().flatten() {
        paths.push(whole(file));
        for number in 1..config.events.keep {
            let mut name = file.as_os_str().to_owned();
            name.push(format!(".{number}"));
            paths.push(whole(Path::new(&name)));
        }
    }
    paths.extend(policies.iter().copied().map(whole));
    // The name that was given and what it leads to.
    let meant: Vec<Protected> = paths
        .iter()
        .filter_map(|one| {
            let path = real(&one.path).filter(|path| *path != one.path)?;
            Some(Protected { path, ..one.clone() })
        })
        .collect();
    paths.extend(meant);
    paths.retain(|one| one.path.is_absolute());
    paths
}

/// What a path leads to; of one that does not exist yet, what its folder leads to.
fn real(path: &Path) -> Option<PathBuf> {
    match fs::canonicalize(path) {
        Ok(real) => Some(real),
        Err(_) => Some(fs::canonicalize(path.parent()?).ok()?.join(path.file_name()?)),
    }
}

/// The objects behind these places and the folders that lead to them, by device and inode number: what
/// agents may not remove or rename.
pub fn guarded(config: &Config, paths: &BTreeSet<PathBuf>) -> BTreeMap<(u32, u64), u32> {
    let mut objects = BTreeMap::new();
    let mut guard = |path: &Path, how: u32| {
        if let Ok(stat) = fs::symlink_metadata(path) {
            *objects.entry(host::object(&stat)).or_insert(0) |= how;
        }
    };
    let own = [&config.daemon.run, &config.kernel.pins, &config.policy.folder];
    for path in paths {
        let inside = if own.contains(&path) { GUARD_CHILDREN } else { 0 };
        guard(path, GUARD_SELF | inside);
        for parent in path.ancestors().skip(1) {
            // A folder that only root may enter holds nothing but what is Ambit's.
            let private = fs::metadata(parent)
                .is_ok_and(|stat| stat.uid() == 0 && stat.mode() & 0o7777 == 0o700);
            let inside = if private && path.parent() == Some(parent) && parent != Path::new("/root")
            {
                GUARD_CHILDREN
            } else {
                0
            };
            guard(parent, GUARD_SELF | inside);
        }
    }
    for folder in ["maps", "links"] {
        guard(&config.kernel.pins.join(folder), GUARD_SELF | GUARD_CHILDREN);
    }
    objects
}
