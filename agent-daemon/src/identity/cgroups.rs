//! Cgroups as folders: what is in them, how they are bounded, ended and removed.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::kernel::host;

/// Bounds the number of processes: by the cgroup2 controller, else by the version 1 hierarchy, where the
/// hybrid layout keeps it. Returns the folder in the latter, which is called as `parent` is.
pub fn bound_pids(parent: &Path, cgroup: &Path, leaf: &str, max: u64) -> Option<PathBuf> {
    let above = parent.parent().unwrap_or(parent);
    for folder in [above, parent] {
        let _ = fs::write(folder.join("cgroup.subtree_control"), "+pids");
    }
    if fs::write(cgroup.join("pids.max"), max.to_string()).is_ok() {
        return None;
    }
    let made = host::pids_v1()?.join(parent.file_name()?).join(leaf);
    fs::create_dir_all(&made).ok()?;
    if fs::write(made.join("pids.max"), max.to_string()).is_err() {
        let _ = fs::remove_dir(&made);
        return None;
    }
    Some(made)
}

/// Processes in a cgroup and beneath it.
pub fn processes(cgroup: &Path) -> Vec<u32> {
    let mut found: Vec<u32> = fs::read_to_string(cgroup.join("cgroup.procs"))
        .map(|text| text.lines().filter_map(|line| line.parse().ok()).collect())
        .unwrap_or_default();
    if let Ok(entries) = fs::read_dir(cgroup) {
        for entry in entries.filter_map(Result::ok).filter(|e| e.path().is_dir()) {
            found.extend(processes(&entry.path()));
        }
    }
    found
}

/// The ids of all cgroups there are.
pub fn ids(folder: &Path) -> HashSet<u64> {
    let mut found = HashSet::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        found.extend(host::cgroup_id(&folder));
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        folders.extend(entries.filter_map(Result::ok).map(|e| e.path()).filter(|p| p.is_dir()));
    }
    found
}

/// True while a process is in the cgroup or beneath it.
pub fn populated(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events"))
        .is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
}

/// True while there is a process with this number.
pub fn lives(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Kills a cgroup's processes and those that left it, until none is left.
pub fn kill_all(cgroup: &Path, others: impl Fn() -> Vec<u32>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        // 5.14 and later; elsewhere one by one, again until forks are outrun.
        let _ = fs::write(cgroup.join("cgroup.kill"), "1");
        let mut left = processes(cgroup);
        left.extend(others());
        left.retain(|pid| lives(*pid));
        if left.is_empty() {
            return;
        }
        for pid in left {
            if let Ok(pid) = i32::try_from(pid) {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes a cgroup with all beneath it, deepest first. What is in them moves to the nearest group above
/// that takes processes (a group that hands controllers down takes none).
pub fn remove_tree(folder: &Path) -> io::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)?.filter_map(Result::ok) {
        if entry.path().is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    let mut last = Ok(());
    for _ in 0..100 {
        for pid in processes(folder) {
            for above in folder.ancestors().skip(1) {
                if fs::write(above.join("cgroup.procs"), pid.to_string()).is_ok() {
                    break;
                }
            }
        }
        last = fs::remove_dir(folder);
        match &last {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    last
}
