//! What lies at the places that a policy forbids: the objects, which stay forbidden whatever they are
//! called.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs, io,
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::{Path, PathBuf},
};

use agent_ebpf::{FACETS, ObjectCell, Pair, RULE_NONE, RuleId};
use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::Mode,
};

use super::layers::{self, Overlay};
use crate::kernel::{fanotify::Root, fanotify::root_of, host, tables::Objects};

/// Entries that one look for hard links visits in all forbidden folders together.
pub const ENTRIES: usize = 20_000;

/// Hard links and objects of layers that one look takes up.
pub const LINKS: usize = 2_048;

/// The file tree in which a policy's paths are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// The daemon's own.
    Own,
    /// That of an agent's processes.
    Of(Root),
}

impl View {
    /// The view of an agent that was enrolled with this root; without one, the host's.
    pub fn of(root: Option<&Root>) -> Self {
        match root {
            Some(root) if root_of(std::process::id()).as_ref() != Some(root) => {
                Self::Of(root.clone())
            }
            Some(_) | None => Self::Own,
        }
    }

    /// The process among these through which the view can be looked into.
    fn process(&self, processes: &[u32]) -> Option<String> {
        match self {
            Self::Own => Some("self".to_owned()),
            Self::Of(root) => processes
                .iter()
                .find(|pid| root_of(**pid).as_ref() == Some(root))
                .map(ToString::to_string),
        }
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// The objects.
    pub objects: Objects,
    /// The first forbidden place of which not every hard link, or not every layer, was looked for.
    pub cut: Option<PathBuf>,
    /// The first forbidden place at which something lies that could not be looked at, and why.
    pub unseen: Option<(PathBuf, io::Error)>,
}

/// Looks up the objects at these places. `None` when no process is there through which to look; what was
/// known stays.
pub fn look<'a>(
    view: &View,
    processes: &[u32],
    places: impl Iterator<Item = (&'a Vec<u8>, &'a ObjectCell)>,
) -> Option<Found> {
    let process = view.process(processes)?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = format!("/proc/{process}/root");
    let root = fs::File::from(nix::fcntl::open(root.as_str(), flags, Mode::empty()).ok()?);
    // Between the two looks the process may have gone, and its number to another.
    let mounts = host::Objects::of_process(&process).ok()?;
    let overlays = layers::overlays(&process).ok()?;
    let own = host::Objects::of_process("self").ok()?;
    view.process(processes).filter(|again| *again == process)?;
    let found = Found::default();
    let (left, links) = (ENTRIES, LINKS);
    let mut looker = Looker { root, mounts, overlays, own, found, left, links };
    for (path, cell) in places {
        looker.place(Path::new(OsStr::from_bytes(path)), cell);
    }
    Some(looker.found)
}

struct Looker {
    root: fs::File,
    mounts: host::Objects,
    /// The overlays among the mounts.
    overlays: Vec<Overlay>,
    /// The daemon's own mounts, where layers are seen.
    own: host::Objects,
    found: Found,
    left: usize,
    links: usize,
}

impl Looker {
    /// The object that a path leads to, through links, in the view.
    fn open(&self, path: &Path, flags: OFlag, resolve: ResolveFlag) -> io::Result<fs::File> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | resolve);
        Ok(fs::File::from(openat2(self.root.as_fd(), path, how)?))
    }

    fn place(&mut self, path: &Path, cell: &ObjectCell) {
        match self.object(path, OFlag::O_PATH, ResolveFlag::empty()) {
            Ok((key, stat)) => {
                add(&mut self.found.objects, key, cell);
                self.layers(path, cell);
                if stat.is_dir() && cell.beneath.iter().any(|rule| *rule != RULE_NONE) {
                    self.hard_links(path, stat.dev(), cell.beneath);
                }
            }
            Err(error) => self.unseen(path, error),
        }
    }

    /// Adds what a merged object is made of: the same place in each layer of its overlay.
    fn layers(&mut self, path: &Path, cell: &ObjectCell) {
        if self.overlays.is_empty() {
            return;
        }
        let open = |path: &Path| self.open(path, OFlag::O_PATH, ResolveFlag::empty()).ok();
        let Some(object) = open(path) else { return };
        let mount = layers::mount_of(&object);
        let Some(overlay) = self.overlays.iter().find(|one| Some(one.mount) == mount) else {
            return;
        };
        let Some(top) = open(&overlay.at).filter(|top| layers::mount_of(top) == mount) else {
            return;
        };
        for (file, stat) in overlay.beneath(&top, &object) {
            if self.links == 0 {
                self.found.cut.get_or_insert(path.to_path_buf());
                return;
            }
            if let Some(key) = self.own.key(&file, &stat) {
                add(&mut self.found.objects, key, cell);
                self.links -= 1;
            }
        }
    }

    /// Notes what could not be looked at. What is not there now has no object; its name is forbidden all the
    /// same.
    fn unseen(&mut self, path: &Path, error: io::Error) {
        if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
            self.found.unseen.get_or_insert((path.to_path_buf(), error));
        }
    }

    /// The object that a path leads to, as the hooks know it.
    fn object(
        &self,
        path: &Path,
        flags: OFlag,
        resolve: ResolveFlag,
    ) -> io::Result<((u32, u64), fs::Metadata)> {
        let file = self.open(path, flags, resolve)?;
        let stat = file.metadata()?;
        let key = self.mounts.key(&file, &stat).ok_or_else(|| {
            io::Error::other("the kernel does not say on which file system it lies")
        })?;
        Ok((key, stat))
    }

    /// Files beneath a folder that have other names, which may lie elsewhere.
    fn hard_links(&mut self, folder: &Path, device: u64, beneath: [RuleId; FACETS]) {
        let cell = ObjectCell { exact: beneath, ..ObjectCell::default() };
        let mut folders = vec![folder.to_path_buf()];
        let mut seen = BTreeSet::new();
        while let Some(folder) = folders.pop() {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NONBLOCK;
            let entries = self
                .open(&folder, flags, ResolveFlag::empty())
                .and_then(|open| fs::read_dir(format!("/proc/self/fd/{}", fd(&open))));
            let entries = match entries {
                Ok(entries) => entries,
                Err(error) => {
                    self.unseen(&folder, error);
                    continue;
                }
            };
            for entry in entries {
                if self.left == 0 || self.links == 0 {
                    self.found.cut.get_or_insert(folder);
                    return;
                }
                self.left -= 1;
                let looked = entry.and_then(|entry| Ok((entry.file_name(), entry.metadata()?)));
                let (name, stat) = match looked {
                    Ok(looked) => looked,
                    Err(error) => {
                        self.unseen(&folder, error);
                        continue;
                    }
                };
                let path = folder.join(name);
                if stat.dev() != device {
                    continue;
                }
                if stat.is_dir() {
                    folders.push(path);
                } else if stat.nlink() > 1 && seen.insert(stat.ino()) {
                    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
                    match self.object(&path, flags, ResolveFlag::RESOLVE_NO_SYMLINKS) {
                        Ok((key, _)) => {
                            add(&mut self.found.objects, key, &cell);
                            self.links -= 1;
                        }
                        Err(error) => self.unseen(&path, error),
                    }
                }
            }
        }
    }
}

fn fd(file: &fs::File) -> i32 {
    std::os::fd::AsRawFd::as_raw_fd(file)
}

/// Adds what is forbidden of an object to what is forbidden of it already.
fn add(objects: &mut Objects, key: (u32, u64), cell: &ObjectCell) {
    let known = objects.entry(key).or_default();
    let merge = |to: &mut [RuleId; FACETS], from: &[RuleId; FACETS]| {
        for (to, from) in to.iter_mut().zip(from) {
            let pair = |forbid| Pair { permit: RULE_NONE, forbid };
            *to = pair(*to).and(pair(*from)).forbid;
        }
    };
    merge(&mut known.exact, &cell.exact);
    merge(&mut known.beneath, &cell.beneath);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forbids(path: &Path, beneath: bool) -> (Vec<u8>, ObjectCell) {
        let mut cell = ObjectCell::default();
        if beneath {
            cell.beneath[0] = 7
        } else {
            cell.exact[0] = 7
        }
        (path.as_os_str().as_bytes().to_vec(), cell)
    }

    fn found(places: &[(Vec<u8>, ObjectCell)]) -> Objects {
        let places = places.iter().map(|(path, cell)| (path, cell));
        look(&View::Own, &[], places).unwrap().objects
    }

    #[test]
    fn finds_objects_through_links_and_their_other_names() {
        let folder = std::env::temp_dir().join(format!("ambit-objects-{}", std::process::id()));
        fs::create_dir_all(folder.join("secret/deep")).unwrap();
        let key = folder.join("secret/deep/key");
        fs::write(&key, "hidden").unwrap();
        fs::hard_link(&key, folder.join("elsewhere")).unwrap();
        fs::write(folder.join("secret/only"), "hidden").unwrap();
        std::os::unix::fs::symlink(&key, folder.join("link")).unwrap();
        let number = |path: &Path| fs::metadata(path).unwrap().ino();
        let inodes = |objects: &Objects| objects.keys().map(|key| key.1).collect::<BTreeSet<_>>();

        let exact = found(&[forbids(&folder.join("link"), false)]);
        assert_eq!(inodes(&exact), [number(&key)].into());
        assert_eq!(exact.values().next().unwrap().exact[0], 7);

        let deep = found(&[forbids(&folder.join("secret"), true)]);
        assert_eq!(inodes(&deep), [number(&folder.join("secret")), number(&key)].into());

        assert!(found(&[forbids(&folder.join("absent"), false)]).is_empty());
        fs::remove_dir_all(&folder).unwrap();
    }
}
