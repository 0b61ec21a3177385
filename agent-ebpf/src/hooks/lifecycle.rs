//! Processes that begin and end: how identity sticks, and how it is let go.

use agent_ebpf::{ExitBody, ForkBody, Header, Hook, Kind, Task};
use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, generated::bpf_send_signal},
    programs::BtfTracePointContext,
};

use crate::{
    emit, identity,
    offsets::{member, offsets},
};

const SIGKILL: u32 = 9;

#[repr(C)]
struct ForkRecord {
    header: Header,
    body: ForkBody,
}

#[repr(C)]
struct ExitRecord {
    header: Header,
    body: ExitBody,
}

/// `sched_process_fork(parent, child)`, before the child first runs: it belongs to its parent's agent.
#[inline(always)]
pub fn fork(ctx: &BtfTracePointContext) -> i32 {
    let Some(actor) = identity::acting() else {
        return 0;
    };
    let child: *const u8 = ctx.arg(1);
    // SAFETY: a task that the tracepoint passed, and its members.
    let (tgid, start) = unsafe {
        (member::<u32>(child, &offsets().task_tgid), member::<u64>(child, &offsets().task_start))
    };
    if tgid == actor.tgid {
        return 0; // a thread
    }
    let mut task = Task { agent: actor.agent, ..Task::default() };
    if let Some(parent) = actor.task() {
        task = *parent;
    }
    (task.parent, task.start) = (actor.tgid, start);
    if !identity::bind(tgid, &task) {
        // Neither table has room, which takes thousands of strays: what makes them ends here.
        // SAFETY: a plain helper call.
        unsafe { bpf_send_signal(SIGKILL) };
    }
    let mut record = ForkRecord {
        header: Header::default(),
        body: ForkBody { child_start: start, child: tgid, pad: 0 },
    };
    emit::fill(&mut record.header, &actor, Kind::Fork, Hook::SchedFork);
    emit::happened(&mut record.header);
    emit::send(&mut record);
    #[cfg(feature = "debug-log")]
    aya_log_ebpf::debug!(ctx, "process {} of agent {} forked {}", actor.tgid, actor.agent, tgid);
    0
}

/// `sched_process_exit(task)`: when the last thread of a process ends, its entry goes.
#[inline(always)]
pub fn exit(ctx: &BtfTracePointContext) -> i32 {
    let ids = bpf_get_current_pid_tgid();
    let (tgid, tid) = ((ids >> 32) as u32, ids as u32);
    let Some(actor) = identity::already(tgid, tid) else {
        return 0;
    };
    let task: *const u8 = ctx.arg(0);
    // SAFETY: the exiting task and its members.
    let (live, code) = unsafe {
        let signal: *const u8 = member(task, &offsets().task_signal);
        (
            member::<i32>(signal, &offsets().signal_live),
            member::<u32>(task, &offsets().task_exit_code),
        )
    };
    if live > 0 {
        return 0;
    }
    let mut record = ExitRecord { header: Header::default(), body: ExitBody { code, pad: 0 } };
    emit::fill(&mut record.header, &actor, Kind::Exit, Hook::SchedExit);
    // Two threads may both be the last; only one of them finds the entry.
    if !identity::forget(tgid) {
        return 0;
    }
    emit::happened(&mut record.header);
    emit::send(&mut record);
    0
}
