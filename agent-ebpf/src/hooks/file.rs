//! Files: every open, judged as the object that was opened, by its path in the agent's own view.

use agent_ebpf::{
    Action, Decision, Facet, Hook, Kind, PATH_MAX, PathWalk, PeerCell, PeerKey, PlaceCell,
    PlaceKey, Reach, Reason, Verdict,
};
use aya_ebpf::{
    cty::c_long,
    helpers::{
        bpf_get_current_task_btf, bpf_get_smp_processor_id, bpf_probe_read_kernel,
        generated::{bpf_d_path, bpf_loop, bpf_map_lookup_elem},
    },
    programs::LsmContext,
};
use core::ffi::c_void;

use super::DENY;
use crate::{
    atomic, emit,
    identity::{self, Actor},
    maps::{FileRecord, PLACES, SCRATCH, SLOTS, Scratch},
    offsets::{kernel, known, member, offsets, within},
};

// include/linux/fs.h
const FMODE_READ: u32 = 1;
const FMODE_WRITE: u32 = 2;
const FMODE_CREATED: u32 = 1 << 20;
/// In `f_flags`: the open is for running the file.
const FMODE_EXEC: u32 = 0x20;
// include/uapi/asm-generic/fcntl.h, include/uapi/linux/stat.h
const O_TRUNC: u32 = 0o1000;
const S_IFMT: u16 = 0o170_000;
const S_IFDIR: u16 = 0o040_000;

/// What `d_path` adds to the name of an object that no folder holds any more (fs/d_path.c).
const DELETED: u32 = " (deleted)".len() as u32;

const TRIES: u32 = 8;

/// The table of places of one policy set.
struct Places(*mut c_void);

impl Reach for Places {
    #[inline(always)]
    fn place(&self, key: &PlaceKey) -> Option<&PlaceCell> {
        // SAFETY: an inner map of `PLACES`, whose key is a `PlaceKey` and value a `PlaceCell`; inner
        // maps are never written after they are published.
        unsafe {
            let cell = bpf_map_lookup_elem(self.0, core::ptr::from_ref(key).cast());
            cell.cast::<PlaceCell>().as_ref()
        }
    }

    #[inline(always)]
    fn peer(&self, _: &PeerKey) -> Option<&PeerCell> {
        None
    }
}

/// LSM `file_open(file)`.
#[inline(always)]
pub fn open(ctx: &LsmContext) -> i32 {
    let prior: i32 = ctx.arg(1);
    if prior != 0 {
        return prior;
    }
    let Some(actor) = identity::current() else {
        return 0;
    };
    let file: *const u8 = ctx.arg(0);
    // SAFETY: members of the file that is being opened.
    let (mode, flags) = unsafe {
        (member::<u32>(file, &offsets().file_mode), member::<u32>(file, &offsets().file_flags))
    };
    if mode & known(&kernel().backing_mode) as u32 != 0 {
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
    judge(&actor, file, flags, wanted, Hook::FileOpen)
}

/// What a file is wanted for. The first action is the one told, unless the second is denied.
pub struct Wanted {
    pub first: Action,
    pub then: Option<Action>,
}

/// Judges a file by name and tells it. An allowed open for exec is not told here:
/// `bprm_check_security` follows for programs, and the ELF loader is part of its program.
#[inline(always)]
pub fn judge(actor: &Actor, file: *const u8, flags: u32, wanted: Wanted, hook: Hook) -> i32 {
    let Some(scratch) = claim() else {
        // Not judged, so denied; and not told, which is counted.
        let verdict = actor.verdict(Decision::because(Reason::NoScratch));
        emit::lost(verdict, Kind::File);
        return outcome(verdict);
    };
    // SAFETY: this slot is ours until `release`.
    let slot = unsafe { &mut *scratch };
    // SAFETY: members of a live file.
    let (inode, kind) = unsafe {
        let inode: *const u8 = member(file, &offsets().file_inode);
        (inode, member::<u16>(inode, &offsets().inode_mode))
    };
    let is_dir = kind & S_IFMT == S_IFDIR;

    let mut action = wanted.first;
    let decision = match resolve(actor, file, &mut slot.record) {
        Err(Reason::Anonymous) if matches!(action, Action::Exec) => {
            Decision::because(Reason::NoName)
        }
        Err(reason) => Decision::because(reason),
        Ok(name) if name.deleted && matches!(action, Action::Exec) => {
            Decision::because(Reason::NoName)
        }
        Ok(name) => {
            let decision = walk(actor, slot, name.len, action, is_dir);
            match wanted.then {
                Some(then) if decision.allows() => {
                    let second = walk(actor, slot, name.len, then, is_dir);
                    if second.allows() {
                        decision
                    } else {
                        action = then;
                        second
                    }
                }
                _ => decision,
            }
        }
    };
    let verdict = actor.verdict(decision);
    let opened_to_run = matches!(hook, Hook::FileOpen) && matches!(action, Action::Exec);
    if !opened_to_run || !matches!(verdict, Verdict::Allowed) {
        let record = &mut slot.record;
        emit::fill(&mut record.header, actor, Kind::File, hook);
        emit::decided(&mut record.header, action, decision, verdict);
        record.body.flags = flags;
        record.body.is_dir = u8::from(is_dir);
        // SAFETY: members of a live inode.
        unsafe {
            record.body.inode = member(inode, &offsets().inode_number);
            let fs: *const u8 = member(inode, &offsets().inode_super);
            record.body.device = member(fs, &offsets().super_device);
        }
        let size = (size_of::<FileRecord>() - PATH_MAX) as u32
            + (record.body.path_len & (PATH_MAX as u32 - 1));
        // SAFETY: the slot is larger than that and begins with its header.
        unsafe { emit::send_bytes(core::ptr::from_mut(record).cast(), size) };
    }
    release(scratch);
    outcome(verdict)
}

/// What an LSM program returns for a verdict.
#[inline(always)]
pub const fn outcome(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Allowed | Verdict::WouldDeny => 0,
        Verdict::Denied => DENY,
    }
}

/// How an object is called in the agent's own view.
struct Name {
    /// Bytes of `record.path` to judge.
    len: u32,
    /// No folder holds it any more.
    deleted: bool,
}

/// Writes the object's path into the record, and says how much of it to judge, or why it cannot be.
#[inline(always)]
fn resolve(actor: &Actor, file: *const u8, record: &mut FileRecord) -> Result<Name, Reason> {
    let path = within(file, &offsets().file_path);
    record.body.path_len = 0;
    // SAFETY: the path of a live file and a buffer of that size.
    let written = unsafe {
        bpf_d_path(path.cast_mut().cast(), record.path.as_mut_ptr().cast(), PATH_MAX as u32)
    };
    // The count includes the final NUL.
    if written < 2 || written > PATH_MAX as c_long {
        return Err(Reason::PathUnresolved);
    }
    let len = written as u32 - 1;
    record.body.path_len = len;

    // SAFETY: members of the task and of the path that the verifier typed.
    let (mount, unlinked, root, own_ns) = unsafe {
        let dentry: *const u8 = member(path, &offsets().path_dentry);
        let mount: *const u8 = member(path, &offsets().path_mount);
        // `hlist_bl_node.pprev`, the second word: zero when unhashed.
        let chain = within(dentry, &offsets().dentry_hash).cast::<u64>().add(1);
        // As `d_unlinked` of include/linux/dcache.h: a file system's root is never hashed.
        let parent: *const u8 = member(dentry, &offsets().dentry_parent);
        let unlinked = core::ptr::read_volatile(chain) == 0 && parent != dentry;
        let task = bpf_get_current_task_btf().cast::<u8>().cast_const();
        let fs: *const u8 = member(task, &offsets().task_fs);
        let root = within(fs, &offsets().fs_root);
        let root_mount: u64 = member(root, &offsets().path_mount);
        let root_dentry: u64 = member(root, &offsets().path_dentry);
        let proxy: *const u8 = member(task, &offsets().task_nsproxy);
        let own_ns: u64 = member(proxy, &offsets().nsproxy_mount);
        (mount, unlinked, (root_mount, root_dentry), own_ns)
    };
    if !same_root(actor, root, own_ns) {
        return Err(Reason::RootChanged);
    }
    // The mount that holds the object; `mount` is not a type that programs may walk from its middle.
    let mount_ns = mount.wrapping_sub(known(&offsets().mount_vfs));
    let mount_ns = within(mount_ns, &offsets().mount_ns);
    // SAFETY: the helper checks the address.
    let Ok(mount_ns) = (unsafe { bpf_probe_read_kernel(mount_ns.cast::<u64>()) }) else {
        return Err(Reason::PathUnresolved);
    };
    if mount_ns != own_ns {
        // `MNT_NS_INTERNAL` (fs/mount.h), an error pointer: pipes, memfds and their like. Everything
        // else is a mount of another namespace, or of none, whose names would be forged here.
        let internal = mount_ns as i64 == -22;
        return Err(if internal { Reason::Anonymous } else { Reason::PathUnresolved });
    }
    if record.path[0] != b'/' {
        return Err(Reason::PathUnresolved);
    }
    if unlinked && len > DELETED {
        return Ok(Name { len: len - DELETED, deleted: true });
    }
    Ok(Name { len, deleted: false })
}

/// True when the task still has the root folder and mount namespace that it was enrolled with.
#[inline(always)]
fn same_root(actor: &Actor, root: (u64, u64), mount_ns: u64) -> bool {
    let Some(task) = actor.task() else {
        return false;
    };
    task.root_mount == root.0 && task.root_dentry == root.1 && task.mount_ns == mount_ns
}

/// What a walk's steps need; all that changes lives in the slot, where the verifier does not follow
/// it, so that it checks one step and not four thousand.
struct Steps {
    slot: *mut Scratch,
    places: *mut c_void,
}

/// Judges `len` bytes of the slot's path.
#[inline(always)]
fn walk(actor: &Actor, slot: &mut Scratch, len: u32, action: Action, is_dir: bool) -> Decision {
    let Some(facet) = Facet::of(action, is_dir) else {
        return Decision::because(Reason::PathUnresolved);
    };
    // SAFETY: a lookup; the inner map lives until the program ends.
    let Some(places) = (unsafe { PLACES.get(&actor.set) }) else {
        return Decision::because(Reason::NoPolicy);
    };
    let places: *mut c_void = core::ptr::from_ref(places).cast_mut().cast();
    slot.walk = PathWalk::new(actor.config, facet);
    let mut steps = Steps { slot, places };
    // The root folder is walked as no bytes at all.
    if len > 1 {
        // SAFETY: the callback has the helper's signature, and `steps` outlives the call.
        let done =
            unsafe { bpf_loop(len, step as *const () as *mut c_void, (&raw mut steps).cast(), 0) };
        if done != c_long::from(len) {
            return Decision::because(Reason::PathUnresolved);
        }
    }
    // SAFETY: still ours.
    unsafe { (*steps.slot).walk.finish(&Places(places)) }
}

/// One byte of the path; called by `bpf_loop`.
extern "C" fn step(index: u64, steps: *mut Steps) -> c_long {
    // SAFETY: `walk` passed it.
    let (slot, places) = unsafe { ((*steps).slot, (*steps).places) };
    let index = index as usize & (PATH_MAX - 1);
    // SAFETY: the slot is ours, and the index within its path.
    unsafe {
        let byte = (*slot).record.path[index];
        (*slot).walk.step(byte, &Places(places));
    }
    0
}

/// Takes a free slot of scratch space, until [`release`].
#[inline(always)]
pub fn claim() -> Option<*mut Scratch> {
    // SAFETY: a plain helper call.
    let first = unsafe { bpf_get_smp_processor_id() } * TRIES;
    for attempt in 0..TRIES {
        let slot = SCRATCH.get_ptr_mut((first + attempt) % SLOTS)?;
        // SAFETY: a live element.
        if unsafe { atomic::swap(&raw mut (*slot).busy, 1) } == 0 {
            return Some(slot);
        }
    }
    None
}

/// Gives a slot back.
#[inline(always)]
pub fn release(slot: *mut Scratch) {
    // SAFETY: ours until now.
    unsafe { atomic::swap(&raw mut (*slot).busy, 0) };
}
