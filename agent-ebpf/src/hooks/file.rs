//! Files: every open, judged as the object that was opened, by its path in the agent's own view.

use agent_ebpf::{
    Action, Decision, FACETS, Facet, Found, Hook, JoinKey, Kind, PATH_MAX, Pair, PathWalk,
    PatternRow, PeerCell, PeerKey, PlaceCell, PlaceKey, RULE_NONE, Reach, Reason, RuleId,
    SLOTS_PER_CPU, Verdict,
};
use aya_ebpf::{
    cty::c_long,
    helpers::{
        bpf_get_smp_processor_id, bpf_probe_read_kernel_buf,
        generated::{bpf_loop, bpf_map_lookup_elem},
    },
    programs::LsmContext,
};
use core::{arch::asm, ffi::c_void};

use super::{
    DENY, content,
    held::{self, Held},
    path::{self, Spot},
    privilege,
};
use crate::{
    atomic, emit,
    identity::{self, Actor},
    maps::{FileRecord, JOINS, PATTERNS, PLACES, SCRATCH, Scratch},
    offsets::{kernel, known, member, offsets, within},
};

// include/linux/fs.h
const FMODE_READ: u32 = 1;
const FMODE_WRITE: u32 = 2;
const FMODE_PATH: u32 = 1 << 14;
const FMODE_CREATED: u32 = 1 << 20;
const FMODE_NONOTIFY: usize = 1 << 26;
/// In `f_flags`: the open is for running the file.
pub const FMODE_EXEC: u32 = 0x20;
/// include/uapi/asm-generic/mman-common.h
const PROT_WRITE: u64 = 2;
const PROT_EXEC: u64 = 4;
const MAP_SHARED: u64 = 1;
/// include/linux/mm.h
const VM_SHARED: u64 = 8;
// include/uapi/asm-generic/fcntl.h, include/uapi/linux/stat.h
const O_TRUNC: u32 = 0o1000;
const S_IFMT: u16 = 0o170_000;
const S_IFDIR: u16 = 0o040_000;
const S_IFREG: u16 = 0o100_000;

/// The tables of one policy set that paths are judged by.
#[derive(Clone, Copy)]
pub struct Places {
    /// Its number.
    pub set: u32,
    /// Its inner map of `PLACES`.
    pub places: *mut c_void,
    /// Its inner map of `PATTERNS`; when it has none, any other map, which is then not asked.
    pub patterns: *mut c_void,
    /// The inode of the program that is judged; 0 where none is.
    pub program: u64,
}

impl Reach for Places {
    #[inline(always)]
    fn place(&self, key: &PlaceKey) -> Option<&PlaceCell> {
        // SAFETY: an inner map of `PLACES`, whose key is a `PlaceKey` and value a `PlaceCell`; inner
        // maps are never written after they are published.
        unsafe {
            let cell = bpf_map_lookup_elem(self.places, core::ptr::from_ref(key).cast());
            cell.cast::<PlaceCell>().as_ref()
        }
    }

    #[inline(always)]
    fn row(&self, state: u32) -> Option<&PatternRow> {
        // SAFETY: as above, an inner map of `PATTERNS`: `step_pattern` is only called with one.
        unsafe {
            let row = bpf_map_lookup_elem(self.patterns, core::ptr::from_ref(&state).cast());
            row.cast::<PatternRow>().as_ref()
        }
    }

    #[inline(always)]
    fn peer(&self, _: &PeerKey) -> Option<&PeerCell> {
        None
    }

    #[inline(always)]
    fn join(&self, key: &JoinKey) -> Option<&Pair> {
        joined(self.set, key)
    }

    #[inline(always)]
    fn content(&self) -> Option<PlaceKey> {
        content::known(self.program)
    }
}

/// What a policy set's rules that join dimensions say, if it has any.
#[inline(always)]
pub fn joined(set: u32, key: &JoinKey) -> Option<&'static Pair> {
    // SAFETY: a lookup; an inner map of `JOINS`, whose key is a `JoinKey` and value a `Pair`, never
    // written after it is published, and alive until the program ends.
    unsafe {
        let joins: *const _ = JOINS.get(&set)?;
        let pair = bpf_map_lookup_elem(joins.cast_mut().cast(), core::ptr::from_ref(key).cast());
        pair.cast::<Pair>().as_ref()
    }
}

/// LSM `file_open(file)`.
#[inline(always)]
pub fn open(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(1);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else {
        return 0;
    };
    let file: *const u8 = ctx.arg(0);
    // SAFETY: members of the file that is being opened.
    let (mode, flags) = unsafe {
        (member::<u32>(file, &offsets().file_mode), member::<u32>(file, &offsets().file_flags))
    };
    if mode & known(&kernel().backing_mode) as u32 != 0 && is_backing(file) {
        return 0; // beneath an overlay, whose own file was judged just before
    }
    let wanted = if flags & FMODE_EXEC != 0 {
        Wanted { first: Action::Exec, then: None }
    } else if mode & (FMODE_WRITE | FMODE_CREATED) == 0 && flags & O_TRUNC == 0 {
        Wanted { first: Action::Read, then: None }
    } else {
        let then = if mode & FMODE_READ != 0 { Some(Action::Read) } else { None };
        Wanted { first: Action::Write, then }
    };
    let is_new = mode & FMODE_CREATED != 0;
    let opened = Opened { file: file as u64, flags, is_new, with_ima: false };
    judge(&actor, &opened, wanted, Hook::FileOpen)
}

/// LSM `file_receive(file)`: a descriptor that another process passes, or that is taken from it, is opened
/// once more, for what it is open for.
#[inline(always)]
pub fn receive(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(1);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::acting() else { return 0 };
    let file: u64 = ctx.arg(0);
    let mode: u32 = path::read(file, &offsets().file_mode);
    let reads = mode & (FMODE_READ | FMODE_PATH) != 0;
    let wanted = match (reads, mode & FMODE_WRITE != 0) {
        // Of one for neither (`O_PATH`), only what is known of the file may be used.
        (true, false) => Wanted { first: Action::Read, then: None },
        (false, true) => Wanted { first: Action::Write, then: None },
        // For both; or nobody can say.
        (true, true) | (false, false) => Wanted { first: Action::Write, then: Some(Action::Read) },
    };
    judge(&actor, &Opened::held(file), wanted, Hook::FileReceive)
}

/// LSM `mmap_file(file, reqprot, prot, flags)`: a file whose bytes become code is run; what is mapped is read,
/// and written if others see it.
#[inline(always)]
pub fn map(ctx: &LsmContext, with_ima: bool) -> i32 {
    let prior: i32 = ctx.arg(4);
    if prior != 0 {
        return prior;
    }
    let (file, protection, flags): (u64, u64, u64) = (ctx.arg(0), ctx.arg(2), ctx.arg(3));
    let mapped = Mapped {
        file,
        protection,
        shared: flags & MAP_SHARED,
        is_mapped: false,
        part: 0,
        with_ima,
    };
    mapped.judge(Hook::MmapFile)
}

/// LSM `file_mprotect(vma, reqprot, prot)`: the same, of a part that is mapped already, and so was read.
#[inline(always)]
pub fn protect(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(3);
    if prior != 0 {
        return prior;
    }
    let (part, protection): (u64, u64) = (ctx.arg(0), ctx.arg(2));
    if protection & (PROT_EXEC | PROT_WRITE) == 0 {
        return 0;
    }
    // What cannot be read is a file without a place, which is denied.
    let mut file = identity::read(part, &offsets().vma_file).unwrap_or(u64::MAX);
    // So is the file beneath an overlay, which stands here for the overlay's own and has its path nowhere.
    let beneath = known(&kernel().backing_mode);
    if file != 0
        && beneath != FMODE_NONOTIFY
        && path::read::<u32>(file, &offsets().file_mode) & beneath as u32 != 0
    {
        file = u64::MAX;
    }
    let shared = path::read::<u64>(part, &offsets().vma_flags) & VM_SHARED;
    // Here the address space is locked, which IMA may want too, to read.
    let mapped = Mapped { file, protection, shared, is_mapped: true, part, with_ima: false };
    mapped.judge(Hook::FileMprotect)
}

/// What is to be mapped, and how.
struct Mapped {
    /// The file; 0 is memory without one.
    file: u64,
    /// `PROT_*`.
    protection: u64,
    /// Not 0 when others see what is written.
    shared: u64,
    /// Whether it is mapped already, and so was read.
    is_mapped: bool,
    /// The part of the address space that it is mapped at.
    part: u64,
    with_ima: bool,
}

impl Mapped {
    /// Judges what becomes code: a file as one that is run, by name, and as `execmem` what may hold bytes that no such
    /// file has, which is memory without one, a device's (`/dev/zero`), and a file's in pages of the process's own.
    /// What is mapped as data is judged by what is forbidden of it. What is not needed at first is found out late:
    /// the verifier follows all that comes after it once for each answer.
    #[inline(always)]
    fn judge(&self, hook: Hook) -> i32 {
        let Some(actor) = identity::acting() else { return 0 };
        let file = self.file;
        // Of a hook's file some verifiers know that there is one, where there may be none, and leave out the first
        // look; others want it.
        if opaque(file) == 0 {
            return self.memory(&actor, hook);
        }
        let held = Held::read(file);
        if !self.is_mapped && held.inode == 0 {
            return self.memory(&actor, hook);
        }
        if opaque(self.protection) & PROT_EXEC != 0 {
            let opened = Opened { with_ima: self.with_ima, ..Opened::held(file) };
            let wanted = Wanted { first: Action::Exec, then: None };
            let code = judge(&actor, &opened, wanted, hook);
            if code != 0 {
                return code;
            }
        }
        let writes = opaque(self.protection) & PROT_WRITE != 0;
        let (reads, changes) = (!self.is_mapped, writes && self.shared != 0);
        if reads || changes {
            let data = outcome(held::judge(&actor, &held, reads, changes, hook));
            if data != 0 {
                return data;
            }
        }
        if opaque(self.protection) & PROT_EXEC == 0 {
            return 0;
        }
        let is_file = path::read::<u16>(held.inode, &offsets().inode_mode) & S_IFMT == S_IFREG;
        // Pages of its own it may get, or has.
        let own_pages = writes && self.shared == 0
            || self.is_mapped && identity::read(self.part, &offsets().vma_anon) != Some(0_u64);
        if own_pages || !is_file { privilege::execmem(&actor, hook) } else { 0 }
    }

    /// Judges memory without a file.
    #[inline(always)]
    fn memory(&self, actor: &Actor, hook: Hook) -> i32 {
        let is_code = self.protection & PROT_EXEC != 0;
        if is_code { privilege::execmem(actor, hook) } else { 0 }
    }
}

/// The same, without the compiler knowing so: it would make one comparison of a pointer and a number, which the
/// verifier refuses.
#[inline(always)]
fn opaque(value: u64) -> u64 {
    let same;
    // SAFETY: a copy.
    unsafe { asm!("{0} = {1}", out(reg) same, in(reg) value, options(nomem, nostack)) };
    same
}

/// Whether a file with the mode of a backing file is one. Before 6.5 that mode is `FMODE_NONOTIFY`, which
/// descriptors of fanotify events carry too; an overlay's backing file has the overlay's path and another
/// inode (`open_with_fake_path` of fs/open.c).
#[inline(always)]
pub fn is_backing(file: *const u8) -> bool {
    if known(&kernel().backing_mode) != FMODE_NONOTIFY {
        return true;
    }
    // SAFETY: members of the file that is being opened.
    unsafe {
        let opened: *const u8 = member(file, &offsets().file_inode);
        let path = within(file, &offsets().file_path);
        let dentry: *const u8 = member(path, &offsets().path_dentry);
        let named: *const u8 = member(dentry, &offsets().dentry_inode);
        opened != named
    }
}

/// What a file is wanted for. The first action is the one told, unless the second is denied.
pub struct Wanted {
    pub first: Action,
    pub then: Option<Action>,
}

/// A file that is open, or about to be run.
pub struct Opened {
    /// The `file`.
    pub file: u64,
    pub flags: u32,
    pub is_new: bool,
    /// IMA may be asked for its content: the program may sleep, and the verifier knows the file.
    pub with_ima: bool,
}

impl Opened {
    /// One that somebody has open already.
    #[inline(always)]
    fn held(file: u64) -> Self {
        let flags = path::read(file, &offsets().file_flags);
        Self { file, flags, is_new: false, with_ima: false }
    }
}

/// Judges a file by name and tells it. Of what is allowed to run, only the program is told, at
/// `bprm_check_security`: its loader and libraries are parts of it.
#[inline(always)]
pub fn judge(actor: &Actor, opened: &Opened, wanted: Wanted, hook: Hook) -> i32 {
    let Some(mut slot) = claim() else {
        return unjudged(actor);
    };
    let at = opened.file.wrapping_add(known(&offsets().file_path) as u64);
    let spot = Spot::of_path(at as *const u8);
    let object = Object::of(path::read(opened.file, &offsets().file_inode));

    let mut action = wanted.first;
    let mut decision = match path::resolve(actor, &spot, slot) {
        // A memfd, or memory that processes share.
        Err(Reason::Anonymous) if matches!(hook, Hook::MmapFile | Hook::FileMprotect) => {
            release(slot);
            return privilege::execmem(actor, hook);
        }
        Err(Reason::Anonymous) if matches!(action, Action::Exec) => {
            Decision::because(Reason::NoName)
        }
        Err(reason) => Decision::because(reason),
        Ok(name) if name.is_deleted && matches!(action, Action::Exec) => {
            Decision::because(Reason::NoName)
        }
        Ok(name) => match walk(actor, slot, name.len) {
            Err(reason) => Decision::because(reason),
            Ok(mut tables) => {
                tables.program = object.inode;
                let facet = Facet::of(action, object.is_dir);
                let decision = match facet {
                    Some(facet) if opened.with_ima => {
                        slot.found = slot.walk.found(facet, &tables);
                        decide_found(slot, slot.found, &tables, facet)
                    }
                    Some(_) | None => decide(slot, &tables, facet),
                };
                match wanted.then {
                    Some(then) if decision.allows() => {
                        let second = decide(slot, &tables, Facet::of(then, object.is_dir));
                        if second.allows() {
                            decision
                        } else {
                            action = then;
                            second
                        }
                    }
                    Some(_) | None => decision,
                }
            }
        },
    };
    if (opened.with_ima || matches!(hook, Hook::FileOpen))
        && matches!(decision.reason, Reason::HashUnknown)
        && content::is_for_ima(actor.config, object.inode)
    {
        // SAFETY: a reference to read from; volatile, so that the verifier knows nothing of what is there and follows
        // it once.
        let found = unsafe { core::ptr::read_volatile(&raw const slot.found) };
        // While it is read, others may need the scratch space, and the tables may be retired.
        release(slot);
        if matches!(hook, Hook::FileOpen) {
            // It cannot be read yet. What runs of it is judged when it is checked or mapped.
            return 0;
        }
        let content = content::by_ima(actor.config, opened.file as *const c_void);
        slot = match claim() {
            Some(slot) => slot,
            None => return unjudged(actor),
        };
        // For its name alone.
        let _ = path::resolve(actor, &spot, slot);
        if let (Some(content), Some(tables)) = (content, tables_of(actor)) {
            decision = found.decide_content(&content, &tables);
        }
        slot.record.body.is_unread = u8::from(content::is_for_daemon(object.inode));
    }
    let verdict = actor.verdict(decision);
    if matches!(wanted.first, Action::Write) && !matches!(verdict, Verdict::Denied) {
        content::forget(actor, object.inode);
    }
    let is_part = !matches!(hook, Hook::BprmCheck) && matches!(action, Action::Exec);
    // SAFETY: as above.
    let is_unread = unsafe { core::ptr::read_volatile(&raw const slot.record.body.is_unread) } != 0;
    if !is_part || is_unread || !matches!(verdict, Verdict::Allowed) {
        slot.record.body.flags = opened.flags;
        slot.record.body.is_new = u8::from(opened.is_new);
        tell(actor, slot, &object, &Judged { hook, action, decision, verdict });
    }
    release(slot);
    outcome(verdict)
}

/// What stands behind a directory entry.
pub struct Object {
    pub inode: u64,
    pub is_dir: bool,
}

impl Object {
    /// The object with this inode.
    #[inline(always)]
    pub fn of(inode: u64) -> Self {
        let mode: u16 = path::read(inode, &offsets().inode_mode);
        Self { inode, is_dir: mode & S_IFMT == S_IFDIR }
    }
}

/// What was asked and what came of it.
pub struct Judged {
    pub hook: Hook,
    pub action: Action,
    pub decision: Decision,
    pub verdict: Verdict,
}

/// What is to be said, after a walk, of the path in the slot and of the object that was found under it. No
/// facet is an action that is not judged by path.
#[inline(always)]
pub fn decide(slot: &Scratch, tables: &Places, facet: Option<Facet>) -> Decision {
    match facet {
        Some(facet) => decide_found(slot, slot.walk.found(facet, tables), tables, facet),
        None => Decision::because(Reason::PathUnresolved),
    }
}

/// The same, of what the walk came to.
#[inline(always)]
fn decide_found(slot: &Scratch, found: Found, tables: &Places, facet: Facet) -> Decision {
    let object = slot.climb.forbidden[facet as usize & (FACETS - 1)];
    found.decide(facet, tables).or_forbidden(object)
}

/// The rule that forbids an action on the object that was found, whatever it is called.
#[inline(always)]
pub fn forbidden(slot: &Scratch, action: Action, is_dir: bool) -> RuleId {
    let facet = Facet::of(action, is_dir).map_or(FACETS, |facet| facet as usize);
    slot.climb.forbidden.get(facet).copied().unwrap_or(RULE_NONE)
}

/// Not judged for want of scratch space, so denied; and not told, which is counted.
#[inline(always)]
pub fn unjudged(actor: &Actor) -> i32 {
    outcome(unjudged_verdict(actor))
}

/// The same, before it is returned.
#[inline(always)]
pub fn unjudged_verdict(actor: &Actor) -> Verdict {
    let verdict = actor.verdict(Decision::because(Reason::NoScratch));
    emit::lost(verdict, Kind::File);
    verdict
}

/// Tells what was judged, with the path in the slot and, if the record says how long it is, the one
/// beside it.
#[inline(always)]
pub fn tell(actor: &Actor, slot: &mut Scratch, object: &Object, judged: &Judged) {
    let record = &mut slot.record;
    emit::fill(&mut record.header, actor, Kind::File, judged.hook);
    emit::decided(&mut record.header, judged.action, judged.decision, judged.verdict);
    record.body.is_dir = u8::from(object.is_dir);
    record.body.inode = path::read(object.inode, &offsets().inode_number);
    record.body.device = path::device(object.inode);
    let first = record.body.path_len & (PATH_MAX as u32 - 1);
    let mut size = (size_of::<FileRecord>() - 2 * PATH_MAX) as u32 + first;
    let second = record.body.result_len & (PATH_MAX as u32 - 1);
    if second != 0 {
        // SAFETY: `path` and `more` lie together, and each path is shorter than one of them.
        let copied = unsafe {
            let room = (&raw mut record.path).cast::<u8>().add(first as usize);
            let room = core::slice::from_raw_parts_mut(room, second as usize);
            bpf_probe_read_kernel_buf((&raw const slot.result).cast(), room)
        };
        match copied {
            Ok(()) => size += second,
            Err(_) => record.body.result_len = 0,
        }
    }
    // SAFETY: the slot is larger than that and begins with its header.
    unsafe { emit::send_bytes(core::ptr::from_mut(record).cast(), size) };
}

/// What an LSM program returns for a verdict.
#[inline(always)]
pub const fn outcome(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Allowed | Verdict::WouldDeny => 0,
        Verdict::Denied => DENY,
    }
}

/// What a walk's steps need; all that changes lives in the slot, where the verifier does not follow
/// it, so that it checks one step and not four thousand.
struct Steps {
    slot: *mut Scratch,
    tables: Places,
    len: u32,
}

/// The tables of the actor's policy set, but for its patterns.
#[inline(always)]
fn tables_of(actor: &Actor) -> Option<Places> {
    // SAFETY: a lookup; the inner map lives until the program ends.
    let places = unsafe { PLACES.get(&actor.set) }?;
    let places: *mut c_void = core::ptr::from_ref(places).cast_mut().cast();
    Some(Places { set: actor.set, places, patterns: places, program: 0 })
}

/// Walks `len` bytes of the slot's path. What comes back is what the walk is to be asked with.
#[inline(always)]
pub fn walk(actor: &Actor, slot: &mut Scratch, len: u32) -> Result<Places, Reason> {
    let Some(mut tables) = tables_of(actor) else {
        return Err(Reason::NoPolicy);
    };
    // SAFETY: a lookup; the inner map lives until the program ends.
    let patterns = unsafe { PATTERNS.get(&actor.set) };
    slot.walk = PathWalk::new(actor.config);
    let walked = if let Some(patterns) = patterns {
        tables.patterns = core::ptr::from_ref(patterns).cast_mut().cast();
        each(len, step_with_patterns, &mut Steps { slot, tables, len })
    } else {
        each(len, step, &mut Steps { slot, tables, len })
    };
    if !walked {
        return Err(Reason::PathUnresolved);
    }
    let mut steps = Steps { slot, tables, len };
    // SAFETY: still ours.
    let longest = unsafe { (*steps.slot).walk.turn(actor.config, &tables) };
    let back = if longest < len { longest } else { len };
    if back > 0 && !each(back, step_back, &mut steps) {
        return Err(Reason::PathUnresolved);
    }
    Ok(tables)
}

/// What `bpf_loop` calls.
type Step = extern "C" fn(u64, *mut Steps) -> c_long;

/// Calls it so many times; false when the kernel did not.
#[inline(always)]
fn each(count: u32, step: Step, steps: &mut Steps) -> bool {
    // SAFETY: the callback has the helper's signature, and `steps` outlives the call.
    let done =
        unsafe { bpf_loop(count, step as *mut c_void, core::ptr::from_mut(steps).cast(), 0) };
    done == c_long::from(count)
}

/// One byte of the path, forth.
extern "C" fn step(index: u64, steps: *mut Steps) -> c_long {
    // SAFETY: `walk` passed it; the slot is ours, and the index within its path.
    unsafe {
        let (slot, tables) = ((*steps).slot, (*steps).tables);
        let byte = (*slot).record.path[index as usize & (PATH_MAX - 1)];
        (*slot).walk.step(byte, &tables);
    }
    0
}

/// One byte of the path, forth, in a set that has patterns.
extern "C" fn step_with_patterns(index: u64, steps: *mut Steps) -> c_long {
    // SAFETY: as above.
    unsafe {
        let (slot, tables) = ((*steps).slot, (*steps).tables);
        let byte = (*slot).record.path[index as usize & (PATH_MAX - 1)];
        (*slot).walk.step(byte, &tables);
        (*slot).walk.step_pattern(byte, &tables);
    }
    0
}

/// One byte of the path, back from its end.
extern "C" fn step_back(index: u64, steps: *mut Steps) -> c_long {
    // SAFETY: as above.
    unsafe {
        let (slot, tables) = ((*steps).slot, (*steps).tables);
        let at = ((*steps).len as usize).wrapping_sub(1 + index as usize);
        let byte = (*slot).record.path[at & (PATH_MAX - 1)];
        (*slot).walk.step_back(byte, &tables);
    }
    0
}

/// Takes a free slot of scratch space, until [`release`].
#[inline(always)]
pub fn claim() -> Option<&'static mut Scratch> {
    // SAFETY: a plain helper call.
    let first = unsafe { bpf_get_smp_processor_id() } * SLOTS_PER_CPU;
    for attempt in 0..SLOTS_PER_CPU {
        let slot = SCRATCH.get_ptr_mut(first + attempt)?;
        // SAFETY: a live element; it is ours when it was free.
        unsafe {
            if atomic::swap(&raw mut (*slot).busy, 1) == 0 {
                let body = &mut (*slot).record.body;
                (body.flags, body.path_len, body.result_len) = (0, 0, 0);
                (body.is_new, body.is_unread, body.pad) = (0, 0, [0; 5]);
                return slot.as_mut();
            }
        }
    }
    None
}

/// Gives a slot back.
#[inline(always)]
pub fn release(slot: &mut Scratch) {
    // SAFETY: ours until now.
    unsafe { atomic::swap(&raw mut slot.busy, 0) };
}
