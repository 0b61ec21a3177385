//! Names: how an object is called in the agent's own view, and what is forbidden of it whatever it is
//! called.
//!
//! `bpf_d_path` is kept from most hooks, and knows nothing of objects, so the way from a directory entry
//! up to the root is climbed here, over `d_parent` and from mount to mount. All that changes on the way
//! lives in the slot, where the verifier does not follow it.

use agent_ebpf::{FACETS, ObjectCell, ObjectKey, PATH_MAX, RULE_NONE, Reason, lowest};
use aya_ebpf::{
    cty::c_long,
    helpers::{
        bpf_probe_read_kernel_buf,
        generated::{
            bpf_get_current_task, bpf_loop, bpf_map_lookup_elem, bpf_probe_read_kernel,
            bpf_probe_read_kernel_str,
        },
    },
};
use core::ffi::c_void;

use crate::{
    identity::Actor,
    maps::{OBJECTS, Scratch},
    offsets::{known, offsets},
};

/// Where the names end in [`Scratch::names`]: their final NUL falls here.
const END: u32 = PATH_MAX as u32 - 1;

/// More steps than the longest path has names, for the mounts on the way.
const STEPS: u32 = PATH_MAX as u32;

/// Longest name of a directory entry (include/uapi/linux/limits.h: `NAME_MAX`).
const NAME_MAX: u32 = 255;

/// `MNT_NS_INTERNAL` (fs/mount.h), an error pointer: the mounts of pipes, memfds and their like, and an overlay's
/// own of its layers.
const INTERNAL: i64 = -22;

/// Where a climb ended, in [`crate::maps::Climb::arrived`]: at the root, or where nothing is above it.
const ROOT: u32 = 1;
const ELSEWHERE: u32 = 2;

/// A directory entry in a mount; addresses in the kernel.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Spot {
    /// The `vfsmount`.
    pub mount: u64,
    pub dentry: u64,
}

impl Spot {
    /// Where a `struct path` points.
    #[inline(always)]
    pub fn of_path(path: *const u8) -> Self {
        let path = path as u64;
        Self {
            mount: read(path, &offsets().path_mount),
            dentry: read(path, &offsets().path_dentry),
        }
    }
}

/// How an object is called in the agent's own view.
pub struct Name {
    /// Bytes of `record.path`.
    pub len: u32,
    /// No folder holds it any more.
    pub is_deleted: bool,
}

/// Reads a member of a kernel object; zero where it cannot be read. The helper checks the address, and writes
/// zeroes when it refuses it, so there is one way on and not two for the verifier to follow.
#[inline(always)]
pub fn read<T: Copy + Default>(base: u64, offset: &'static u32) -> T {
    let mut value = T::default();
    let from = base.wrapping_add(known(offset) as u64) as *const c_void;
    // SAFETY: room for a `T`; any bytes are one, as all that is read are integers.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, from) };
    value
}

/// `super_block.s_dev` of an inode's file system.
#[inline(always)]
pub fn device(inode: u64) -> u32 {
    read(read(inode, &offsets().inode_super), &offsets().super_device)
}

/// The object behind an inode, as the tables of objects are keyed; zeroes, which are in no table, where
/// there is none.
#[inline(always)]
pub fn key(inode: u64) -> ObjectKey {
    ObjectKey { inode: read(inode, &offsets().inode_number), device: device(inode), pad: 0 }
}

/// Writes the absolute path of a spot into the slot's record, and notes what is forbidden of the object
/// there. An error says why it has no such path; the record then has its last name alone, as evidence.
#[inline(always)]
pub fn resolve(actor: &Actor, spot: &Spot, slot: &mut Scratch) -> Result<Name, Reason> {
    let (root_mount, root_dentry, own_ns) = own_view();
    if !actor.task().is_some_and(|task| {
        task.root_mount == root_mount && task.root_dentry == root_dentry && task.mount_ns == own_ns
    }) {
        note_last(spot.dentry, slot);
        return Err(Reason::RootChanged);
    }
    let mount_ns = namespace_of(spot.mount);
    if mount_ns != own_ns {
        note_last(spot.dentry, slot);
        // A mount of another namespace, or of none, has names that would be forged here.
        let internal = mount_ns as i64 == INTERNAL;
        return Err(if internal { Reason::Anonymous } else { Reason::PathUnresolved });
    }
    slot.climb.mount = spot.mount;
    (slot.climb.root_mount, slot.climb.root_dentry) = (root_mount, root_dentry);
    (slot.climb.beside, slot.climb.nameless) = (0, 0);
    let slot = match rise(actor, spot.dentry, slot) {
        Ok(slot) => slot,
        Err((reason, slot)) => {
            note_last(spot.dentry, slot);
            return Err(reason);
        }
    };
    let at = slot.climb.at & END;
    let len = END - at;
    if slot.climb.arrived != ROOT {
        note_last(spot.dentry, slot);
        return Err(Reason::PathUnresolved);
    }
    if len == 0 {
        slot.record.path[0] = b'/';
        slot.record.body.path_len = 1;
        return Ok(Name { len: 1, is_deleted: false });
    }
    // SAFETY: `names` is longer than `END`, of which `at` is at most the end; `path` than `len`.
    let copied = unsafe {
        let from = (&raw const slot.names).cast::<u8>().add(at as usize);
        let room =
            core::slice::from_raw_parts_mut((&raw mut slot.record.path).cast(), len as usize);
        bpf_probe_read_kernel_buf(from, room)
    };
    if copied.is_err() {
        return Err(Reason::PathUnresolved);
    }
    slot.record.body.path_len = len;
    Ok(Name { len, is_deleted: is_deleted(spot.dentry) })
}

/// The mount namespace that a mount belongs to.
#[inline(always)]
fn namespace_of(mount: u64) -> u64 {
    let holder = mount.wrapping_sub(known(&offsets().mount_vfs) as u64);
    read(holder, &offsets().mount_ns)
}

/// Whether a mount is the kernel's own, in which nobody can look anything up.
#[inline(always)]
pub fn is_internal(mount: u64) -> bool {
    namespace_of(mount) as i64 == INTERNAL
}

/// Notes what is forbidden of the object behind an entry, in its own file system, whatever it is called. The
/// record has its last name alone.
#[inline(always)]
pub fn forbidden(actor: &Actor, dentry: u64, slot: &mut Scratch) -> Result<(), Reason> {
    // No mount is known, so none is ever met: it climbs to the root of the file system and ends there.
    (slot.climb.mount, slot.climb.beside) = (0, 1);
    match rise(actor, dentry, slot) {
        Ok(slot) => {
            note_last(dentry, slot);
            if slot.climb.arrived == 0 {
                return Err(Reason::PathUnresolved);
            }
            Ok(())
        }
        Err((reason, slot)) => {
            note_last(dentry, slot);
            Err(reason)
        }
    }
}

/// Notes what is forbidden of an object that is open already, whatever it is called and in whose view it was
/// opened: of itself and of every folder above it, up to the root that the task was enrolled with or to where
/// mounts end.
#[inline(always)]
pub fn held(actor: &Actor, spot: &Spot, slot: &mut Scratch) -> Result<(), Reason> {
    slot.climb.mount = spot.mount;
    let root = actor.task().map_or((0, 0), |task| (task.root_mount, task.root_dentry));
    (slot.climb.root_mount, slot.climb.root_dentry) = root;
    (slot.climb.beside, slot.climb.nameless) = (0, 1);
    match rise(actor, spot.dentry, slot) {
        Ok(slot) if slot.climb.arrived == 0 => Err(Reason::PathUnresolved),
        Ok(_) => Ok(()),
        Err((reason, _)) => Err(reason),
    }
}

/// Climbs from an entry as far as it goes.
#[inline(always)]
fn rise<'a>(
    actor: &Actor,
    dentry: u64,
    slot: &'a mut Scratch,
) -> Result<&'a mut Scratch, (Reason, &'a mut Scratch)> {
    // SAFETY: a lookup; the inner map lives until the program ends.
    let Some(objects) = (unsafe { OBJECTS.get(&actor.set) }) else {
        return Err((Reason::NoPolicy, slot));
    };
    slot.climb.dentry = dentry;
    slot.climb.at = END;
    slot.climb.device = device_of(dentry);
    slot.climb.arrived = 0;
    slot.climb.forbidden = [RULE_NONE; FACETS];
    let mut steps = Steps { slot, objects: core::ptr::from_ref(objects).cast_mut().cast() };
    // SAFETY: the callback has the helper's signature, and `steps` outlives the call.
    unsafe { bpf_loop(STEPS, step as *const () as *mut c_void, (&raw mut steps).cast(), 0) };
    // SAFETY: still ours.
    Ok(unsafe { &mut *steps.slot })
}

/// The task's root folder and mount namespace.
#[inline(always)]
fn own_view() -> (u64, u64, u64) {
    // SAFETY: a plain helper call.
    let task = unsafe { bpf_get_current_task() };
    let fs: u64 = read(task, &offsets().task_fs);
    let root = fs + known(&offsets().fs_root) as u64;
    let proxy: u64 = read(task, &offsets().task_nsproxy);
    (
        read(root, &offsets().path_mount),
        read(root, &offsets().path_dentry),
        read(proxy, &offsets().nsproxy_mount),
    )
}

/// As `d_unlinked` of include/linux/dcache.h: a file system's root is never hashed.
#[inline(always)]
fn is_deleted(dentry: u64) -> bool {
    // `hlist_bl_node.pprev`, the second word: zero when unhashed.
    let chain: u64 = read(dentry + 8, &offsets().dentry_hash);
    let parent: u64 = read(dentry, &offsets().dentry_parent);
    chain == 0 && parent != dentry
}

#[inline(always)]
fn device_of(dentry: u64) -> u32 {
    read(read(dentry, &offsets().dentry_super), &offsets().super_device)
}

/// Writes the last name of an entry into the record: evidence, where there is no path to judge.
#[inline(always)]
fn note_last(dentry: u64, slot: &mut Scratch) {
    let qstr = dentry + known(&offsets().dentry_name) as u64;
    let name: u64 = read(qstr, &offsets().qstr_name);
    let room = (&raw mut slot.record.path).cast();
    // SAFETY: the record's path has room for the longest name; the helper checks the address.
    let len = unsafe { bpf_probe_read_kernel_str(room, NAME_MAX + 1, name as *const c_void) };
    slot.record.body.path_len = if len > 0 { (len as u32 - 1) & NAME_MAX } else { 0 };
}

/// What the steps of a climb need.
struct Steps {
    slot: *mut Scratch,
    /// The table of forbidden objects.
    objects: *mut c_void,
}

/// One step of a climb; called by `bpf_loop`, which ends when it gives 1.
extern "C" fn step(index: u64, steps: *mut Steps) -> c_long {
    // SAFETY: `resolve` passed it.
    let (slot, objects) = unsafe { (&mut *(*steps).slot, (*steps).objects) };
    match climb(slot, objects, index == 0) {
        Some(true) => 0,
        Some(false) | None => 1,
    }
}

/// True to go on, false at the end; `None` when something could not be read, or leads nowhere.
#[inline(always)]
fn climb(slot: &mut Scratch, objects: *mut c_void, is_object: bool) -> Option<bool> {
    let here = slot.climb.dentry;
    let parent: u64 = read(here, &offsets().dentry_parent);
    if parent == 0 {
        return None;
    }
    let inode: u64 = read(here, &offsets().dentry_inode);
    let number = read(inode, &offsets().inode_number);
    let key = ObjectKey { inode: number, device: slot.climb.device, pad: 0 };
    // SAFETY: an inner map of `OBJECTS`, whose key is an `ObjectKey` and value an `ObjectCell`.
    let cell = unsafe {
        bpf_map_lookup_elem(objects, (&raw const key).cast()).cast::<ObjectCell>().as_ref()
    };
    if let Some(cell) = cell {
        for facet in 0..FACETS {
            let forbidden = &mut slot.climb.forbidden[facet];
            *forbidden = lowest(*forbidden, cell.beneath[facet]);
            if is_object {
                *forbidden = lowest(*forbidden, cell.exact[facet]);
            }
        }
    }
    if slot.climb.beside != 0 {
        if parent == here {
            return cross(slot);
        }
        slot.climb.dentry = parent;
        return Some(true);
    }
    if here == slot.climb.root_dentry && slot.climb.mount == slot.climb.root_mount {
        slot.climb.arrived = ROOT;
        return Some(false);
    }
    if here == read(slot.climb.mount, &offsets().vfs_root) {
        if parent == here {
            return cross(slot);
        }
        // A part of a file system is mounted here. The folders above it are no part of this name, and
        // may be forbidden all the same.
        slot.climb.beside = 1;
        slot.climb.dentry = parent;
        return Some(true);
    }
    if parent == here {
        // Moved out of the part that is mounted, or no part of any file tree, as pipes are.
        slot.climb.arrived = ELSEWHERE;
        return Some(false);
    }
    if slot.climb.nameless != 0 {
        slot.climb.dentry = parent;
        return Some(true);
    }
    let qstr = here + known(&offsets().dentry_name) as u64;
    let len: u32 = read(qstr, &offsets().qstr_len);
    let name: u64 = read(qstr, &offsets().qstr_name);
    let end = slot.climb.at & END;
    if len == 0 || len > NAME_MAX || len >= end {
        return None;
    }
    let at = (end - len - 1) & END;
    // SAFETY: `names` goes on for more than the longest name after `END`.
    unsafe {
        let names = (&raw mut slot.names).cast::<u8>();
        let room = names.add(at as usize + 1);
        let whole = bpf_probe_read_kernel_str(room.cast(), len + 1, name as *const c_void);
        // Another length: it was renamed between the two reads.
        if whole != c_long::from(len) + 1 {
            return None;
        }
        // Its NUL fell on the slash of the name below.
        *names.add(end as usize) = b'/';
        *names.add(at as usize) = b'/';
    }
    slot.climb.at = at;
    slot.climb.dentry = parent;
    Some(true)
}

/// Goes on where the mount lies. One that lies on nothing is not beneath the root. Where no mount is known,
/// the root of the file system is the end.
#[inline(always)]
fn cross(slot: &mut Scratch) -> Option<bool> {
    if slot.climb.mount == 0 {
        slot.climb.arrived = ROOT;
        return Some(false);
    }
    let vfs = known(&offsets().mount_vfs) as u64;
    let holder = slot.climb.mount.wrapping_sub(vfs);
    let below: u64 = read(holder, &offsets().mount_parent);
    if below == holder {
        slot.climb.arrived = ELSEWHERE;
        return Some(false);
    }
    if below == 0 {
        return None;
    }
    let point: u64 = read(holder, &offsets().mount_point);
    slot.climb.device = device_of(point);
    slot.climb.mount = below + vfs;
    slot.climb.dentry = point;
    slot.climb.beside = 0;
    Some(true)
}
