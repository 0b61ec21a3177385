//! Who: cgroups and the agents that they hold.

pub mod cgroups;

use std::{
    collections::HashMap,
    ffi::OsStr,
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
    let declared = Declared::new(agents);
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
            match declared.of(beneath) {
                Some(agent) => found.push(Found { agent, folder }),
                None if depth < MAX_DEPTH => folders.push((folder, depth + 1)),
                None => {}
            }
        }
    }
    found.sort_by(|a, b| a.folder.cmp(&b.folder));
    found
}

/// Configured agents by what names their cgroups, so that a thousand of them are found in one walk.
struct Declared<'a> {
    /// Without `*` and `?`.
    cgroups: HashMap<&'a Path, usize>,
    units: HashMap<&'a OsStr, usize>,
    patterns: Vec<(&'a Path, usize)>,
}

impl<'a> Declared<'a> {
    fn new(agents: &'a [AgentConfig]) -> Self {
        let (mut cgroups, mut units) = (HashMap::new(), HashMap::new());
        let mut patterns = Vec::new();
        for (index, agent) in agents.iter().enumerate() {
            if let Some(unit) = &agent.unit {
                units.entry(OsStr::new(unit)).or_insert(index);
            } else if let Some(cgroup) = &agent.cgroup {
                let cgroup = Path::new(cgroup.trim_start_matches('/'));
                if cgroup.as_os_str().as_bytes().iter().any(|byte| b"*?".contains(byte)) {
                    patterns.push((cgroup, index));
                } else {
                    cgroups.entry(cgroup).or_insert(index);
                }
            }
        }
        Self { cgroups, units, patterns }
    }

    /// The first agent that names this cgroup.
    fn of(&self, beneath: &Path) -> Option<usize> {
        let by_pattern = self.patterns.iter().find(|(pattern, _)| fits(pattern, beneath));
        let by_unit = beneath.file_name().and_then(|name| self.units.get(name)).copied();
        let found =
            [self.cgroups.get(beneath).copied(), by_unit, by_pattern.map(|(_, index)| *index)];
        found.into_iter().flatten().min()
    }
}

/// Whether a cgroup is one of a pattern's, component by component.
fn fits(pattern: &Path, beneath: &Path) -> bool {
    let (mut wanted, mut given) = (pattern.components(), beneath.components());
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
        let all = [agent(Some("/agents/coder-*"), None)];
        let names = |beneath: &str| Declared::new(&all).of(Path::new(beneath)).is_some();
        assert!(names("agents/coder-1"));
        assert!(!names("agents/coder"));
        assert!(!names("agents/coder-1/child"));
        assert!(!names("coder-1"));
        assert!(matches(b"a?c*", b"abcdef"));
        assert!(!matches(b"a?c", b"ac"));
    }

    #[test]
    fn units_match_by_name_wherever_they_are() {
        let all = [agent(None, Some("coder.service"))];
        let names = |beneath: &str| Declared::new(&all).of(Path::new(beneath)).is_some();
        assert!(names("system.slice/coder.service"));
        assert!(!names("system.slice/coder.service.d"));
    }

    #[test]
    fn the_first_of_several_that_name_a_cgroup_has_it() {
        let all = [
            agent(Some("/x/b*"), None),
            agent(Some("/x/bc"), None),
            agent(Some("x/c"), None),
            agent(None, Some("c")),
            agent(Some("/x/c"), None),
        ];
        let of = |beneath: &str| Declared::new(&all).of(Path::new(beneath));
        assert_eq!(of("x/bc"), Some(0));
        assert_eq!(of("x/c"), Some(2));
        assert_eq!(of("y/c"), Some(3));
        assert_eq!(of("x/d"), None);
    }
}
