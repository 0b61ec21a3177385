//! Who: cgroups and the agents that they hold.

pub mod cgroups;

use std::{
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use crate::config::AgentConfig;

/// A cgroup in which a configured agent was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Index of the agent in the configuration.
    pub agent: usize,
    /// The cgroup's folder.
    pub folder: PathBuf,
}

/// How deep beneath the attachment point cgroups are looked at.
const MAX_DEPTH: usize = 16;

/// Every cgroup beneath `attach` that a configured agent names. Groups beneath a match belong to it.
pub fn find(attach: &Path, agents: &[AgentConfig]) -> Vec<Found> {
    let mut found = Vec::new();
    if agents.is_empty() {
        return found;
    }
    let mut folders = vec![(attach.to_path_buf(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.filter_map(Result::ok) {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let folder = entry.path();
            let Ok(beneath) = folder.strip_prefix(attach) else {
                continue;
            };
            match agents.iter().position(|agent| names(agent, beneath)) {
                Some(agent) => found.push(Found { agent, folder }),
                None if depth < MAX_DEPTH => folders.push((folder, depth + 1)),
                None => {}
            }
        }
    }
    found.sort_by(|a, b| a.folder.cmp(&b.folder));
    found
}

fn names(agent: &AgentConfig, beneath: &Path) -> bool {
    if let Some(unit) = &agent.unit {
        return beneath.file_name().is_some_and(|name| name.as_bytes() == unit.as_bytes());
    }
    let Some(pattern) = &agent.cgroup else {
        return false;
    };
    let mut wanted = Path::new(pattern.trim_start_matches('/')).components();
    let mut given = beneath.components();
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some(pattern), Some(name))
                if matches(pattern.as_os_str().as_bytes(), name.as_os_str().as_bytes()) => {}
            _ => return false,
        }
    }
}

/// A pattern with `*` and `?` against one name.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            matches(rest, name)
                || name.split_first().is_some_and(|(_, name)| matches(pattern, name))
        }
        (Some((b'?', pattern)), Some((_, name))) => matches(pattern, name),
        (Some((wanted, pattern)), Some((given, name))) if wanted == given => matches(pattern, name),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModeChoice;

    fn agent(cgroup: Option<&str>, unit: Option<&str>) -> AgentConfig {
        AgentConfig {
            name: "a".to_owned(),
            groups: Vec::new(),
            attributes: Default::default(),
            cgroup: cgroup.map(str::to_owned),
            unit: unit.map(str::to_owned),
            mode: ModeChoice::Enforce,
        }
    }

    #[test]
    fn patterns_match_component_by_component() {
        let one = agent(Some("/agents/coder-*"), None);
        assert!(names(&one, Path::new("agents/coder-1")));
        assert!(!names(&one, Path::new("agents/coder")));
        assert!(!names(&one, Path::new("agents/coder-1/child")));
        assert!(!names(&one, Path::new("coder-1")));
        assert!(matches(b"a?c*", b"abcdef"));
        assert!(!matches(b"a?c", b"ac"));
    }

    #[test]
    fn units_match_by_name_wherever_they_are() {
        let one = agent(None, Some("coder.service"));
        assert!(names(&one, Path::new("system.slice/coder.service")));
        assert!(!names(&one, Path::new("system.slice/coder.service.d")));
    }
}
