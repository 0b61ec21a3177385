//! The process table: who did it, with what program, started by whom.
//!
//! It is fed by fork, exec, exit and enrol records and kept for as long as an event may need it: a
//! dead process stays while it has living descendants, so that the chain from any process to its
//! agent's root is whole, whoever the kernel has made its parent since. A fork is not told as an
//! event; it is an entry here, and the child's chain tells it with everything that the child does.
//!
//! Memory is bounded by [`Limits`]: at most so many processes, and so many bytes of paths and
//! command lines. Beyond the first bound the longest dead go first, then the longest known; a
//! process that is seen again after that is read from `/proc` and its chain says that it is cut.
//! Beyond the second, command lines are kept at 256 bytes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use agent_ebpf::{ForkBody, Header, Task};

use super::proc::{ProcInfo, ProcSource, TICK_NS};
use super::process::shortened;
use super::redact;

pub use super::process::{Born, ExeFrom, Image, Launch};

/// How much the table may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Processes, living and dead.
    pub processes: usize,
    /// Bytes of paths and command lines.
    pub text: usize,
    /// Dead processes that are kept although no living one descends from them: a record of theirs
    /// may still be on its way.
    pub graves: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { processes: 65_536, text: 32 << 20, graves: 1_024 }
    }
}

/// Bytes of a command line that are kept once [`Limits::text`] is used up.
const SHORT_COMMAND_LINE: usize = 256;

/// A process, living or dead.
#[derive(Clone, Debug)]
pub struct Process {
    /// Thread group id.
    pub tgid: u32,
    /// `start_boottime` in nanoseconds; 0 when unknown.
    pub start: u64,
    /// Thread group id of the process that forked it; 0 when unknown.
    pub parent: u32,
    /// Real user id.
    pub uid: u32,
    /// The name that it chose for itself.
    pub comm: [u8; 16],
    /// The agent's number.
    pub agent: u32,
    /// What it runs.
    pub image: Arc<Image>,
    /// How it came to be known.
    pub born: Born,
    /// When it ended, in nanoseconds since boot.
    pub ended: Option<u64>,
    link: Link,
}

/// Where a process's parent is in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// It is the agent's root, or its parent was never known.
    None,
    /// There it is, or was: the table may have forgotten it for want of room.
    To(Handle),
}

/// A process's place in the table; it stays valid until the table is next fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    slot: u32,
    generation: u32,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    /// Entries whose parent this is.
    children: u32,
    /// It is in the graveyard.
    buried: bool,
    process: Option<Process>,
}

/// The table.
pub struct Processes {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_tgid: HashMap<u32, u32>,
    graveyard: VecDeque<Handle>,
    hand: u32,
    text: usize,
    evicted: u64,
    limits: Limits,
    source: Box<dyn ProcSource>,
    nothing: Arc<Image>,
}

impl Processes {
    /// An empty table with the default [`Limits`].
    #[must_use]
    pub fn new(source: Box<dyn ProcSource>) -> Self {
        Self::with_limits(source, Limits::default())
    }

    /// An empty table.
    #[must_use]
    pub fn with_limits(source: Box<dyn ProcSource>, limits: Limits) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_tgid: HashMap::new(),
            graveyard: VecDeque::new(),
            hand: 0,
            text: 0,
            evicted: 0,
            limits,
            source,
            nothing: Arc::new(Image {
                exe: None,
                exe_from: ExeFrom::Nothing,
                script: None,
                command_line: "".into(),
            }),
        }
    }

    /// The process at a handle, unless the table has forgotten it.
    #[must_use]
    pub fn get(&self, handle: Handle) -> Option<&Process> {
        let slot = self.slots.get(handle.slot as usize)?;
        (slot.generation == handle.generation).then_some(slot.process.as_ref())?
    }

    /// The process's ancestors, nearest first, up to the agent's root.
    pub fn ancestors(&self, handle: Handle) -> Ancestors<'_> {
        Ancestors {
            table: self,
            next: self.get(handle).map_or(Link::None, |p| p.link),
            agent: self.get(handle).map_or(0, |p| p.agent),
            cut: false,
        }
    }

    /// Every living process, in no order.
    pub fn living(&self) -> impl Iterator<Item = &Process> {
        self.slots
            .iter()
            .filter_map(|slot| slot.process.as_ref())
            .filter(|process| process.ended.is_none())
    }

    /// Processes forgotten for want of room since the start.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Processes held, living and dead.
    #[must_use]
    pub fn held(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Bytes of paths and command lines held.
    #[must_use]
    pub const fn text(&self) -> usize {
        self.text
    }

    /// The process that a record's header names; entered from `/proc`, once, when it is not known.
    pub fn actor(&mut self, header: &Header) -> Handle {
        if let Some(handle) = self.find(header.tgid, header.start) {
            if let Some(process) = self.get_mut(handle) {
                if process.start == 0 {
                    process.start = header.start;
                }
                process.uid = header.uid;
                process.comm = header.comm;
                // An agent's number outranks what was guessed before it was known.
                process.agent = header.agent;
            }
            return handle;
        }
        self.enter_unseen(header, Born::Unknown)
    }

    /// A process began; the header is the parent's.
    pub fn on_fork(&mut self, header: &Header, body: &ForkBody) -> Handle {
        let parent = self.actor(header);
        let image = self.get(parent).map_or_else(|| self.nothing.clone(), |p| p.image.clone());
        self.enter(Process {
            tgid: body.child,
            start: body.child_start,
            parent: header.tgid,
            uid: header.uid,
            comm: header.comm,
            agent: header.agent,
            image,
            born: Born::Fork,
            ended: None,
            link: Link::To(parent),
        })
    }

    /// A process was found in an agent's cgroup: it is a root of the agent, and what came before it
    /// is no part of the agent's story.
    pub fn on_enrol(&mut self, header: &Header) -> Handle {
        if let Some(handle) = self.find(header.tgid, header.start)
            && let Some(process) = self.get_mut(handle)
        {
            let link = std::mem::replace(&mut process.link, Link::None);
            process.born = Born::Enrol;
            process.agent = header.agent;
            self.drop_child(link);
            return handle;
        }
        let handle = self.enter_unseen(header, Born::Enrol);
        if let Some(process) = self.get_mut(handle) {
            let link = std::mem::replace(&mut process.link, Link::None);
            process.born = Born::Enrol;
            self.drop_child(link);
        }
        handle
    }

    /// A process that the kernel's pinned table names; for the daemon's start, the oldest first, so
    /// that parents are known before their children.
    pub fn adopt(&mut self, tgid: u32, task: &Task) -> Handle {
        if let Some(handle) = self.find(tgid, task.start) {
            return handle;
        }
        let header = Header { tgid, start: task.start, agent: task.agent, ..Header::default() };
        let info = self.look_up(&header);
        let handle = self.enter_from(&header, info, Born::Adopted);
        let link = self.link_to(task.parent, task.agent);
        if let Some(process) = self.get_mut(handle) {
            process.parent = task.parent;
            if process.link == Link::None {
                process.link = link;
                self.add_child(link);
            }
        }
        handle
    }

    /// A program now runs. Returns the process and what it ran before.
    pub fn on_exec(&mut self, header: &Header, launch: &Launch<'_>) -> (Handle, Arc<Image>) {
        let handle = self.actor(header);
        let (exe, exe_from) = match launch.exe {
            Some(exe) => (Some(exe.into()), ExeFrom::Hook),
            None => match self.exe_from_proc(header) {
                Some(exe) => (Some(exe.into_boxed_slice()), ExeFrom::Proc),
                None if launch.filename.is_empty() => (None, ExeFrom::Nothing),
                None => (Some(launch.filename.into()), ExeFrom::Name),
            },
        };
        let cut = launch.body.argv_total > launch.body.argv_len;
        let image = self.admit(Image {
            exe,
            exe_from,
            script: launch.script.map(Into::into),
            command_line: redact::command_line(launch.argv, cut).into(),
        });
        let before = match self.get_mut(handle) {
            Some(process) => std::mem::replace(&mut process.image, image),
            None => self.nothing.clone(),
        };
        self.forget_image(&before);
        (handle, before)
    }

    /// A process ended. It stays known while it has living descendants, and a while longer.
    pub fn on_exit(&mut self, header: &Header) -> Handle {
        let handle = self.actor(header);
        let Some(slot) = self.slots.get_mut(handle.slot as usize) else {
            return handle;
        };
        if let Some(process) = slot.process.as_mut() {
            process.ended = Some(header.time);
        }
        if !slot.buried {
            slot.buried = true;
            self.graveyard.push_back(handle);
            if self.graveyard.len() > self.limits.graves {
                self.exhume();
            }
        }
        handle
    }

    fn exe_from_proc(&mut self, header: &Header) -> Option<Vec<u8>> {
        self.look_up(header)?.exe
    }

    /// What `/proc` knows, unless the number has passed to another process since.
    fn look_up(&mut self, header: &Header) -> Option<ProcInfo> {
        let info = self.source.read(header.tgid)?;
        let same = header.start == 0 || header.start.abs_diff(info.start) < TICK_NS;
        same.then_some(info)
    }

    fn find(&self, tgid: u32, start: u64) -> Option<Handle> {
        let &slot = self.by_tgid.get(&tgid)?;
        let entry = self.slots.get(slot as usize)?;
        let process = entry.process.as_ref()?;
        // Start times from `/proc` are rounded; those from the kernel are exact.
        let same = start == 0
            || process.start == 0
            || process.start == start
            || (process.start.is_multiple_of(TICK_NS) && start.abs_diff(process.start) < TICK_NS);
        same.then_some(Handle { slot, generation: entry.generation })
    }

    fn get_mut(&mut self, handle: Handle) -> Option<&mut Process> {
        let slot = self.slots.get_mut(handle.slot as usize)?;
        if slot.generation != handle.generation {
            return None;
        }
        slot.process.as_mut()
    }

    fn enter_unseen(&mut self, header: &Header, born: Born) -> Handle {
        let info = self.look_up(header);
        self.enter_from(header, info, born)
    }

    fn enter_from(&mut self, header: &Header, info: Option<ProcInfo>, born: Born) -> Handle {
        let mut process = Process {
            tgid: header.tgid,
            start: header.start,
            parent: 0,
            uid: header.uid,
            comm: header.comm,
            agent: header.agent,
            image: self.nothing.clone(),
            born,
            ended: None,
            link: Link::None,
        };
        if let Some(info) = info {
            if born == Born::Unknown {
                process.born = Born::Proc;
            }
            if process.start == 0 {
                process.start = info.start;
            }
            if born == Born::Adopted {
                process.uid = info.uid;
                let len = info.comm.len().min(15);
                process.comm[..len].copy_from_slice(&info.comm[..len]);
            }
            process.parent = info.parent;
            process.link = self.link_to(info.parent, header.agent);
            let cut = info.argv.len() >= agent_ebpf::ARGV_MAX;
            process.image = self.admit(Image {
                exe_from: match info.exe {
                    Some(_) => ExeFrom::Proc,
                    None => ExeFrom::Nothing,
                },
                exe: info.exe.map(Vec::into_boxed_slice),
                script: None,
                command_line: redact::command_line(&info.argv, cut).into(),
            });
        }
        self.enter(process)
    }

    /// The living process with this number, if it belongs to the same agent: a chain goes no
    /// further than the agent's root.
    fn link_to(&self, tgid: u32, agent: u32) -> Link {
        match self.find(tgid, 0) {
            Some(handle) if self.get(handle).is_some_and(|p| p.agent == agent) => Link::To(handle),
            Some(_) | None => Link::None,
        }
    }

    fn enter(&mut self, process: Process) -> Handle {
        // The parent must outlive the making of room for its child.
        self.add_child(process.link);
        if self.held() >= self.limits.processes {
            self.make_room(process.link);
        }
        let (tgid, link) = (process.tgid, process.link);
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.slots.push(Slot { generation: 0, children: 0, buried: false, process: None });
                // Bounded by `Limits::processes`.
                (self.slots.len() - 1) as u32
            }
        };
        let entry = &mut self.slots[slot as usize];
        entry.process = Some(process);
        let handle = Handle { slot, generation: entry.generation };
        debug_assert!(link != Link::To(handle));
        // A number that is in use again: the exit of the one before it was not seen.
        if let Some(old) = self.by_tgid.insert(tgid, slot) {
            self.supersede(old);
        }
        handle
    }

    /// Ends an entry whose number another process has now.
    fn supersede(&mut self, slot: u32) {
        let Some(entry) = self.slots.get_mut(slot as usize) else {
            return;
        };
        let handle = Handle { slot, generation: entry.generation };
        if let Some(process) = entry.process.as_mut() {
            process.ended.get_or_insert(process.start);
            if !entry.buried {
                entry.buried = true;
                self.graveyard.push_back(handle);
            }
        }
    }

    /// Takes the longest dead out of the graveyard, and out of the table unless it has children.
    fn exhume(&mut self) -> bool {
        let Some(handle) = self.graveyard.pop_front() else {
            return false;
        };
        if let Some(slot) = self.slots.get_mut(handle.slot as usize)
            && slot.generation == handle.generation
        {
            slot.buried = false;
        }
        self.release_if_done(handle);
        true
    }

    /// Frees a dead entry that nothing needs, and then its parent if that was its last need.
    fn release_if_done(&mut self, handle: Handle) {
        let mut next = Some(handle);
        while let Some(handle) = next.take() {
            let Some(slot) = self.slots.get(handle.slot as usize) else {
                return;
            };
            let done = slot.generation == handle.generation
                && slot.children == 0
                && !slot.buried
                && slot.process.as_ref().is_some_and(|p| p.ended.is_some());
            if done && let Link::To(parent) = self.forget(handle.slot) {
                next = Some(parent);
            }
        }
    }

    /// Frees an entry, whatever needs it, and returns its link after uncounting it there.
    fn forget(&mut self, slot: u32) -> Link {
        let Some(entry) = self.slots.get_mut(slot as usize) else {
            return Link::None;
        };
        let Some(process) = entry.process.take() else {
            return Link::None;
        };
        entry.generation = entry.generation.wrapping_add(1);
        entry.children = 0;
        entry.buried = false;
        self.free.push(slot);
        if self.by_tgid.get(&process.tgid) == Some(&slot) {
            self.by_tgid.remove(&process.tgid);
        }
        let link = process.link;
        let image = process.image.clone();
        drop(process);
        self.forget_image(&image);
        if let Link::To(parent) = link
            && let Some(entry) = self.slots.get_mut(parent.slot as usize)
            && entry.generation == parent.generation
        {
            entry.children = entry.children.saturating_sub(1);
        }
        link
    }

    fn drop_child(&mut self, link: Link) {
        if let Link::To(parent) = link {
            if let Some(entry) = self.slots.get_mut(parent.slot as usize)
                && entry.generation == parent.generation
            {
                entry.children = entry.children.saturating_sub(1);
            }
            self.release_if_done(parent);
        }
    }

    fn add_child(&mut self, link: Link) {
        if let Link::To(parent) = link
            && let Some(entry) = self.slots.get_mut(parent.slot as usize)
            && entry.generation == parent.generation
        {
            entry.children += 1;
        }
    }

    fn make_room(&mut self, keep: Link) {
        while self.held() >= self.limits.processes {
            if self.exhume() {
                continue;
            }
            // All are living, or dead with living descendants: the hand goes round and takes the
            // next one.
            let slot = self.hand;
            self.hand = (self.hand + 1) % (self.slots.len().max(1) as u32);
            let kept = matches!(keep, Link::To(handle) if handle.slot == slot);
            let held = self.slots.get(slot as usize).is_some_and(|entry| entry.process.is_some());
            if held && (!kept || self.held() == 1) {
                self.evicted += 1;
                self.forget(slot);
            }
        }
    }

    fn admit(&mut self, mut image: Image) -> Arc<Image> {
        if self.text + image.text() > self.limits.text
            && image.command_line.len() > SHORT_COMMAND_LINE
        {
            image.command_line = shortened(&image.command_line, SHORT_COMMAND_LINE).into();
        }
        self.text += image.text();
        Arc::new(image)
    }

    /// Uncounts an image when the caller's is its last use.
    fn forget_image(&mut self, image: &Arc<Image>) {
        if Arc::strong_count(image) == 1 {
            self.text = self.text.saturating_sub(image.text());
        }
    }
}

/// A process's ancestors, nearest first; see [`Processes::ancestors`].
pub struct Ancestors<'a> {
    table: &'a Processes,
    next: Link,
    agent: u32,
    cut: bool,
}

impl Ancestors<'_> {
    /// True when the walk ended at a process that was forgotten, not at the agent's root.
    #[must_use]
    pub const fn is_cut(&self) -> bool {
        self.cut
    }
}

impl<'a> Iterator for Ancestors<'a> {
    type Item = &'a Process;

    fn next(&mut self) -> Option<&'a Process> {
        match self.next {
            Link::None => None,
            Link::To(handle) => {
                let Some(process) = self.table.get(handle) else {
                    self.cut = true;
                    self.next = Link::None;
                    return None;
                };
                if process.agent != self.agent {
                    self.next = Link::None;
                    return None;
                }
                self.next = process.link;
                Some(process)
            }
        }
    }
}

#[cfg(test)]
#[path = "processes_tests.rs"]
mod tests;
