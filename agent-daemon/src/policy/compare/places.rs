//! What changes of the file tree.

use std::collections::{BTreeMap, BTreeSet};

use agent_ebpf::{Action, Facet};

use super::super::atoms::{Atoms, Pattern};
use super::super::content::Digest;
use super::super::model::Target;
use super::regions::{Patterns, Region, regions};
use super::{Became, Both, Change, CompareError, Flip, QUESTIONS_MAX};

/// The named places as a tree; the first is the root folder.
pub(super) struct Places {
    nodes: Vec<Node>,
    patterns: Vec<Pattern>,
    regions: Vec<Region>,
    /// The contents of programs, with how to speak of each.
    contents: Vec<(Digest, String)>,
}

struct Node {
    path: String,
    within: Vec<usize>,
}

/// The place itself, or what lies beneath it and beneath no other named place.
const OWN: usize = 0;
const BENEATH: usize = 1;

/// What is found at a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Folder,
    Socket,
}

/// For each part of a place, the kinds of paths in it, and what changes for them.
type Judged = Vec<[Vec<(Patterns, Option<Flip>)>; 2]>;

/// Which paths of a part change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Which {
    All,
    Like(usize),
    Unlike(usize),
    /// Those that match just one of these sets of patterns.
    Sets(BTreeSet<Patterns>),
}

impl Which {
    fn holds(&self, like: Patterns) -> bool {
        match self {
            Self::All => true,
            Self::Like(index) => like >> index & 1 == 1,
            Self::Unlike(index) => like >> index & 1 == 0,
            Self::Sets(sets) => sets.contains(&like),
        }
    }
}

/// What one line is to say of a part of a place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// It changed.
    Yes,
    /// It did not.
    No,
    /// There is nothing in it, or another line says it.
    Either,
}

impl Places {
    pub(super) fn new(atoms: &Atoms) -> Result<Self, CompareError> {
        let mut paths: Vec<&str> = atoms.places.iter().map(String::as_str).collect();
        paths.retain(|path| *path != "/");
        // By components, so that a place stands right before all that lies beneath it.
        paths.sort_by_cached_key(|path| path.split('/').map(str::to_owned).collect::<Vec<_>>());
        let mut nodes = vec![Node { path: "/".to_owned(), within: Vec::new() }];
        let mut above = vec![0];
        for path in paths {
            while let [_, .., last] = above.as_slice()
                && let Some(node) = nodes.get(*last)
                && !path.strip_prefix(node.path.as_str()).is_some_and(|rest| rest.starts_with('/'))
            {
                above.pop();
            }
            let own = nodes.len();
            if let Some(node) = above.last().and_then(|last| nodes.get_mut(*last)) {
                node.within.push(own);
            }
            nodes.push(Node { path: path.to_owned(), within: Vec::new() });
            above.push(own);
        }
        let named: Vec<&str> = nodes.iter().map(|node| node.path.as_str()).collect();
        let patterns: Vec<Pattern> = atoms.patterns.iter().cloned().collect();
        let regions = regions(&named, &patterns)?;
        let contents = atoms.contents();
        if contents.len().saturating_mul(regions.len()) > QUESTIONS_MAX {
            let (contents, places) = (contents.len(), regions.len());
            return Err(CompareError::Contents { contents, places });
        }
        Ok(Self { nodes, patterns, regions, contents })
    }

    pub(super) fn changes(&self, both: &mut Both) -> Vec<Change> {
        let mut changes = Vec::new();
        for action in Action::ALL.iter().copied() {
            changes.append(&mut if matches!(action, Action::Exec) && !self.contents.is_empty() {
                self.by_content(both, action)
            } else {
                self.of_action(both, action)
            });
        }
        changes
    }

    /// The same for each content; what changes for every one is told once.
    fn by_content(&self, both: &mut Both, action: Action) -> Vec<Change> {
        let mut of: BTreeMap<Change, Vec<&str>> = BTreeMap::new();
        for (digest, shown) in &self.contents {
            both.set_content(Some(*digest));
            for change in self.of_action(both, action) {
                of.entry(change).or_default().push(shown);
            }
        }
        both.set_content(None);
        let told = |(mut change, contents): (Change, Vec<&str>)| {
            if contents.len() < self.contents.len() {
                change.what = format!("{}, with {}", change.what, contents.join(" or "));
            }
            change
        };
        of.into_iter().map(told).collect()
    }

    fn of_action(&self, both: &Both, action: Action) -> Vec<Change> {
        let mut changes = Vec::new();
        if Facet::of_socket(action).is_some() {
            changes = self.of_kind(both, action, Kind::Socket);
            for change in &mut changes {
                change.what.insert_str(0, "unix sockets: ");
            }
        }
        let kinds: &[Kind] = match (Facet::of(action, false), Facet::of(action, true)) {
            (None, _) | (_, None) => return changes,
            (file, folder) if file == folder => &[Kind::File],
            _ => &[Kind::File, Kind::Folder],
        };
        let mut of_kinds: Vec<Vec<Change>> = Vec::new();
        for kind in kinds {
            of_kinds.push(self.of_kind(both, action, *kind));
        }
        let folders = if of_kinds.len() > 1 { of_kinds.pop() } else { None };
        let mut files = of_kinds.pop().unwrap_or_default();
        if let Some(folders) = folders {
            together(&mut files, folders);
        }
        changes.append(&mut files);
        changes
    }

    fn of_kind(&self, both: &Both, action: Action, kind: Kind) -> Vec<Change> {
        let mut judged: Judged = self.nodes.iter().map(|_| [Vec::new(), Vec::new()]).collect();
        for region in &self.regions {
            // Nothing but a folder is at `/`.
            if kind != Kind::Folder && region.place == 0 && !region.beneath {
                continue;
            }
            let path = region.path.as_str().into();
            let target = match kind {
                Kind::File => Target::File { path, is_dir: false },
                Kind::Folder => Target::File { path, is_dir: true },
                Kind::Socket => Target::UnixSocket(path),
            };
            let parts = judged.get_mut(region.place);
            if let Some([own, beneath]) = parts {
                let part = if region.beneath { beneath } else { own };
                part.push((region.like, both.flip(action, &target)));
            }
        }
        let mut changes = Vec::new();
        for became in [Became::Reachable, Became::Unreachable] {
            let changed =
                |flip: &Option<Flip>| flip.as_ref().is_some_and(|flip| flip.became == became);
            let which: Vec<[Option<Which>; 2]> = judged
                .iter()
                .map(|parts| {
                    parts.each_ref().map(|part| {
                        let kinds = part.iter().map(|(like, flip)| (*like, changed(flip)));
                        self.which(&kinds.collect::<Vec<_>>())
                    })
                })
                .collect();
            let lines: BTreeSet<&Which> = which.iter().flatten().flatten().collect();
            for line in lines {
                let said = |node: usize, part: usize| {
                    let kinds = judged.get(node).and_then(|parts| parts.get(part));
                    let own = which.get(node).and_then(|parts| parts.get(part));
                    let mut held = kinds
                        .into_iter()
                        .flatten()
                        .filter(|(like, _)| line.holds(*like))
                        .peekable();
                    if held.peek().is_none() {
                        Part::Either
                    } else if own.and_then(Option::as_ref) == Some(line) {
                        Part::Yes
                    } else if held.all(|(_, flip)| changed(flip)) {
                        Part::Either
                    } else {
                        Part::No
                    }
                };
                let parts: Vec<[Part; 2]> = (0..self.nodes.len())
                    .map(|node| [said(node, OWN), said(node, BENEATH)])
                    .collect();
                for told in self.lines(&parts) {
                    let flips = || {
                        let of = |(node, part): &(usize, usize)| judged.get(*node)?.get(*part);
                        let held = told.covered.iter().filter_map(of).flatten();
                        let held = held.filter(|(like, _)| line.holds(*like));
                        held.filter_map(|(_, flip)| flip.as_ref())
                    };
                    changes.push(Change {
                        became,
                        action: action.name(),
                        what: format!("{}{}", told.what, self.condition(line)),
                        except: told.except.clone(),
                        before: flips().map(|flip| flip.before.clone()).collect(),
                        after: flips().map(|flip| flip.after.clone()).collect(),
                    });
                }
            }
        }
        changes
    }

    /// Which of the kinds of paths in a part changed, as shortly as it can be said; nothing when none did.
    fn which(&self, kinds: &[(Patterns, bool)]) -> Option<Which> {
        let says =
            |which: &Which| kinds.iter().all(|(like, changed)| which.holds(*like) == *changed);
        if kinds.iter().all(|(_, changed)| !changed) {
            return None;
        }
        let patterns = 0..self.patterns.len();
        let short = std::iter::once(Which::All)
            .chain(patterns.clone().map(Which::Like))
            .chain(patterns.map(Which::Unlike));
        let sets = || kinds.iter().filter(|(_, changed)| *changed).map(|(like, _)| *like).collect();
        Some(short.into_iter().find(says).unwrap_or_else(|| Which::Sets(sets())))
    }

    fn condition(&self, which: &Which) -> String {
        let shown = |index: usize| match self.patterns.get(index) {
            Some(pattern) => format!("like \"{pattern}\""),
            None => String::new(),
        };
        match which {
            Which::All => String::new(),
            Which::Like(index) => format!(" where the path is {}", shown(*index)),
            Which::Unlike(index) => format!(" where the path is not {}", shown(*index)),
            Which::Sets(sets) => {
                let one = |set: &Patterns| {
                    let each = (0..self.patterns.len()).map(|index| {
                        let not = if set >> index & 1 == 1 { "" } else { "not " };
                        format!("{not}{}", shown(index))
                    });
                    each.collect::<Vec<_>>().join(" and ")
                };
                let sets: Vec<String> = sets.iter().map(one).collect();
                format!(" where the path is {}", sets.join(", or "))
            }
        }
    }

    /// The lines that say which parts changed, each with its exceptions.
    fn lines(&self, parts: &[[Part; 2]]) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut todo = vec![0];
        while let Some(at) = todo.pop() {
            let mut line = Line::default();
            match parts.get(at) {
                Some([own, Part::Yes]) => {
                    line.covered.push((at, BENEATH));
                    line.what = self.part(at, *own != Part::No, true);
                    if *own == Part::Yes {
                        line.covered.push((at, OWN));
                    }
                    self.within(at, parts, &mut line, &mut todo);
                }
                Some([own, Part::No | Part::Either]) => {
                    if *own == Part::Yes {
                        line.covered.push((at, OWN));
                        line.what = self.part(at, true, false);
                    }
                    todo.extend(self.node_within(at));
                }
                None => {}
            }
            if !line.covered.is_empty() {
                lines.push(line);
            }
        }
        lines
    }

    fn node_within(&self, at: usize) -> &[usize] {
        self.nodes.get(at).map(|node| node.within.as_slice()).unwrap_or_default()
    }

    /// Takes the places beneath one whose unnamed contents changed into its line, as far as they
    /// changed too; others are exceptions, and looked at by themselves.
    fn within(&self, at: usize, parts: &[[Part; 2]], line: &mut Line, todo: &mut Vec<usize>) {
        let mut left: Vec<usize> = self.node_within(at).iter().rev().copied().collect();
        while let Some(node) = left.pop() {
            let Some(said @ [own, beneath]) = parts.get(node).copied() else {
                continue;
            };
            let changed = [OWN, BENEATH].into_iter().zip(said);
            let changed = changed.filter(|(_, part)| *part == Part::Yes);
            line.covered.extend(changed.map(|(part, _)| (node, part)));
            if own == Part::No || beneath == Part::No {
                line.except.push(self.part(node, own == Part::No, beneath == Part::No));
            }
            if beneath == Part::No {
                todo.extend(self.node_within(node));
            } else {
                left.extend(self.node_within(node).iter().rev());
            }
        }
    }

    fn part(&self, at: usize, own: bool, beneath: bool) -> String {
        let path = self.nodes.get(at).map(|node| node.path.as_str()).unwrap_or_default();
        match (own, beneath) {
            (true, true) => format!("{path} and beneath"),
            (false, true) => format!("all beneath {path}"),
            (true | false, false) => format!("{path} itself"),
        }
    }
}

/// Joins what changes for folders to what changes for all else.
fn together(files: &mut Vec<Change>, folders: Vec<Change>) {
    const FILES: &str = " (no folders)";
    const FOLDERS: &str = " (folders only)";
    let count = files.len();
    let mut joined = vec![false; count];
    for mut folder in folders {
        let same = |file: &Change| (file.became, &file.what) == (folder.became, &folder.what);
        let Some(at) = files.iter().take(count).position(same) else {
            folder.what.push_str(FOLDERS);
            files.push(folder);
            continue;
        };
        if let (Some(file), Some(joined)) = (files.get_mut(at), joined.get_mut(at)) {
            *joined = true;
            for part in &mut file.except {
                if !folder.except.contains(part) {
                    part.push_str(FILES);
                }
            }
            folder.except.retain(|part| !file.except.contains(part));
            file.except.extend(folder.except.iter().map(|part| format!("{part}{FOLDERS}")));
            file.before.append(&mut folder.before);
            file.after.append(&mut folder.after);
        }
    }
    for (file, joined) in files.iter_mut().zip(joined) {
        if !joined {
            file.what.push_str(FILES);
        }
    }
}

/// A line in the making.
#[derive(Default)]
struct Line {
    what: String,
    except: Vec<String>,
    /// The parts of places that it speaks of.
    covered: Vec<(usize, usize)>,
}
