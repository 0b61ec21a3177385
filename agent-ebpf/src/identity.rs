//! Who acts: the agent that the current process belongs to, if any.

use agent_ebpf::{
    ABSENT, BOUND_BY_HOOKS, Config, Decision, Header, Hook, Kind, MAX_CGROUP_LEVEL, Mode, Task,
    Verdict,
};
use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::{
        bpf_get_current_pid_tgid, bpf_probe_read_kernel,
        generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_task},
    },
};

use crate::{
    atomic, emit,
    maps::{AGENTS, BINDINGS, CGROUPS, CONFIG, STRAYED, STRAYS, TASKS},
    memo::Bystander,
    offsets::{known, offsets},
};

/// The current process, when it belongs to an agent.
pub struct Actor {
    pub config: &'static Config,
    /// Its entry; null when the table of tasks had no room for it.
    task: *mut Task,
    pub tgid: u32,
    pub tid: u32,
    /// The agent's number.
    pub agent: u32,
    /// Its policy set; 0 when the agent is not known, for which no tables exist.
    pub set: u32,
    pub mode: u8,
}

impl Actor {
    /// Its entry in the table of tasks, if that had room for it.
    #[inline(always)]
    pub fn task(&self) -> Option<&'static mut Task> {
        // SAFETY: null, or an entry that is not freed before the program ends (RCU); those who race
        // for a field write the same value.
        unsafe { self.task.as_mut() }
    }

    /// Its `start_boottime`, or 0 when not known.
    #[inline(always)]
    pub fn start(&self) -> u64 {
        self.task().map_or(0, |task| task.start)
    }

    /// What a decision comes to for this actor.
    #[inline(always)]
    pub fn verdict(&self, decision: Decision) -> Verdict {
        decision.verdict(self.mode)
    }
}

/// The agent's process that runs now, or `None` for a bystander; for programs that may know the task by its type, where
/// a bystander that was seen before costs next to nothing.
#[inline(always)]
pub fn acting() -> Option<Actor> {
    let config = CONFIG.get(0)?;
    if config.levels == 0 {
        return None; // there never was an agent
    }
    if !Bystander::is_known() {
        return current();
    }
    let bystander = Bystander::current(config);
    if bystander.is_kept() {
        return None;
    }
    let actor = current();
    if actor.is_none() {
        bystander.keep();
    }
    actor
}

/// The agent's process that runs now, or `None` for a bystander.
///
/// A process belongs to its agent from the moment it was enrolled or forked until it dies, whatever
/// became of its cgroup since. One without an entry is asked for its cgroup's ancestors first.
#[inline(always)]
pub fn current() -> Option<Actor> {
    let ids = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    let config = CONFIG.get(0)?;
    if let Some(task) = TASKS.get_ptr_mut(&tgid) {
        return Some(actor(config, task, tgid, tid));
    }
    if config.levels == 0 {
        return None;
    }
    let Some(agent) = by_cgroup(config.levels) else {
        return Some(unbound(config, stray(tgid)?, tgid, tid));
    };
    enrol(agent, tgid, tid);
    match TASKS.get_ptr_mut(&tgid) {
        Some(task) => Some(actor(config, task, tgid, tid)),
        // No room: the agent is known, and has no policy for what cannot be bound to it.
        None => Some(unbound(config, agent, tgid, tid)),
    }
}

/// The agent's process that runs now, for what is asked too often to look for a bystander's cgroup: one that was
/// moved into an agent's cgroup is known from the first program, file or connection that it opens.
#[inline(always)]
pub fn settled() -> Option<Actor> {
    let ids = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    let config = CONFIG.get(0)?;
    if let Some(task) = TASKS.get_ptr_mut(&tgid) {
        return Some(actor(config, task, tgid, tid));
    }
    // One that there was no room for has its agent's policy here, where that only forbids.
    let agent = stray(tgid)?;
    let (set, mode) = policy(agent);
    Some(Actor { set, mode, ..unbound(config, agent, tgid, tid) })
}

/// The process with this thread group id, if it is already known as an agent's.
#[inline(always)]
pub fn already(tgid: u32, tid: u32) -> Option<Actor> {
    let config = CONFIG.get(0)?;
    match TASKS.get_ptr_mut(&tgid) {
        Some(task) => Some(actor(config, task, tgid, tid)),
        None => Some(unbound(config, stray(tgid)?, tgid, tid)),
    }
}

/// Writes down whose process this is; false when there was no room and it became a stray, and there was
/// no room for that either.
#[inline(always)]
pub fn bind(tgid: u32, task: &Task) -> bool {
    if TASKS.insert(&tgid, task, BPF_ANY as u64).is_ok() {
        return true;
    }
    let _ = STRAYED.set(0, &1, 0);
    STRAYS.insert(&tgid, &task.agent, BPF_ANY as u64).is_ok()
}

/// Forgets a process; false when somebody else did so before.
#[inline(always)]
pub fn forget(tgid: u32) -> bool {
    TASKS.remove(&tgid).is_ok() || (stray(tgid).is_some() && STRAYS.remove(&tgid).is_ok())
}

/// The agent of a process that [`TASKS`] had no room for.
#[inline(always)]
fn stray(tgid: u32) -> Option<u32> {
    if *STRAYED.get(0)? == 0 {
        return None;
    }
    // SAFETY: the value is one word.
    unsafe { STRAYS.get(&tgid) }.copied()
}

#[inline(always)]
fn actor(config: &'static Config, task: *mut Task, tgid: u32, tid: u32) -> Actor {
    // SAFETY: a live entry of `TASKS`; entries are not freed before the program ends (RCU).
    let agent = unsafe { (*task).agent };
    let (set, mode) = policy(agent);
    Actor { config, task, tgid, tid, agent, set, mode }
}

/// An agent's policy set and mode. One that is not in the table has no policy: set 0, enforced.
#[inline(always)]
fn policy(agent: u32) -> (u32, u8) {
    // SAFETY: the daemon replaces entries whole; a stale one is as good for this action.
    unsafe { AGENTS.get(&agent) }.map_or((0, Mode::Enforce as u8), |a| (a.set, a.mode))
}

/// The agent bound to the deepest of the current cgroup's ancestors.
#[inline(never)]
fn by_cgroup(levels: u64) -> Option<u32> {
    let group = if known_offset(&offsets().cgroup_ancestor_ids) { own_group()? } else { 0 };
    let mut left = levels;
    for _ in 0..=MAX_CGROUP_LEVEL {
        if left == 0 {
            break;
        }
        let (level, shallower) = Config::deepest(left);
        left = shallower;
        let id = ancestor(group, level);
        if id == 0 {
            continue; // it is not that deep
        }
        // SAFETY: the value is one word.
        if let Some(agent) = unsafe { CGROUPS.get(&id) } {
            return Some(*agent);
        }
    }
    None
}

/// The id of the current cgroup's ancestor at a level; 0 when it is not that deep.
#[inline(always)]
fn ancestor(group: u64, level: u32) -> u64 {
    if !known_offset(&offsets().cgroup_ancestor_ids) {
        // SAFETY: a plain helper call.
        return unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
    }
    let depth: i32 = read(group, &offsets().cgroup_level).unwrap_or(-1);
    if level as i32 > depth {
        return 0;
    }
    read(group + 8 * u64::from(level), &offsets().cgroup_ancestor_ids).unwrap_or(0)
}

/// The address of the current task's cgroup.
#[inline(always)]
fn own_group() -> Option<u64> {
    // SAFETY: a plain helper call.
    let task = unsafe { bpf_get_current_task() };
    read(read(task, &offsets().task_cgroups)?, &offsets().css_set_group)
}

/// Reads a member of a kernel object; the helper checks the address.
#[inline(always)]
pub fn read<T: Copy>(base: u64, offset: &'static u32) -> Option<T> {
    read_at(base.wrapping_add(known(offset) as u64))
}

/// Reads from an address in the kernel; the helper checks it.
#[inline(always)]
pub fn read_at<T: Copy>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(address as *const T).ok() }
}

#[inline(always)]
fn known_offset(offset: &'static u32) -> bool {
    known(offset) != ABSENT as usize
}

#[inline(always)]
fn unbound(config: &'static Config, agent: u32, tgid: u32, tid: u32) -> Actor {
    let mode = Mode::Enforce as u8;
    Actor { config, task: core::ptr::null_mut(), tgid, tid, agent, set: 0, mode }
}

/// Notes the current task's root folder, mount namespace and start.
#[inline(always)]
fn place(entry: &mut Task) -> Option<()> {
    // SAFETY: a plain helper call.
    let task = unsafe { bpf_get_current_task() };
    let fs: u64 = read(task, &offsets().task_fs)?;
    let root = fs + known(&offsets().fs_root) as u64;
    entry.root_mount = read(root, &offsets().path_mount)?;
    entry.root_dentry = read(root, &offsets().path_dentry)?;
    let proxy: u64 = read(task, &offsets().task_nsproxy)?;
    entry.mount_ns = read(proxy, &offsets().nsproxy_mount)?;
    let leader: u64 = read(task, &offsets().task_leader)?;
    entry.start = read(leader, &offsets().task_start)?;
    Some(())
}

/// Makes the current process the agent's for good, and tells it.
#[inline(never)]
fn enrol(agent: u32, tgid: u32, tid: u32) {
    let mut task = Task { agent, ..Task::default() };
    // What cannot be read stays zero, which no later root equals.
    let _ = place(&mut task);
    if !bind(tgid, &task) {
        return; // still found by its cgroup
    }
    // Its other threads may have been seen as bystanders, in cgroups of their own.
    if let Some(bindings) = BINDINGS.get_ptr_mut(BOUND_BY_HOOKS) {
        // SAFETY: a live element.
        unsafe { atomic::increment(bindings) };
    }
    let Some(config) = CONFIG.get(0) else { return };
    let mut header = Header::default();
    emit::fill(&mut header, &unbound(config, agent, tgid, tid), Kind::Enrol, Hook::SchedFork);
    header.start = task.start;
    emit::happened(&mut header);
    emit::send(&mut header);
}
