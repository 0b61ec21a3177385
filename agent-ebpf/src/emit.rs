//! The one place that writes events: number it, try the ring, count it when there is no room.

use agent_ebpf::{Action, Decision, Header, Hook, KINDS, Kind, Lane, Reason, Stream, Verdict};
use aya_ebpf::helpers::{
    bpf_get_current_uid_gid, bpf_get_smp_processor_id,
    generated::{bpf_get_current_comm, bpf_ktime_get_boot_ns, bpf_ringbuf_output},
};

use crate::{
    atomic,
    identity::Actor,
    maps::{DENIED, STREAM, TOLD},
};

/// Fills a record's header, all but its size, sequence and what was decided. In place: a program has
/// 512 bytes of stack for everything.
#[inline(always)]
pub fn fill(header: &mut Header, actor: &Actor, kind: Kind, hook: Hook) {
    header.kind = kind as u8;
    // SAFETY: plain helper calls.
    unsafe {
        header.time = bpf_ktime_get_boot_ns();
        header.cpu = bpf_get_smp_processor_id();
        bpf_get_current_comm(header.comm.as_mut_ptr().cast(), header.comm.len() as u32);
    }
    header.start = actor.start();
    header.tgid = actor.tgid;
    header.tid = actor.tid;
    header.uid = bpf_get_current_uid_gid() as u32;
    header.agent = actor.agent;
    header.set = actor.set;
    header.hook = hook as u8;
    header.pad = [0; 3];
}

/// Writes what was decided into a header.
#[inline(always)]
pub fn decided(header: &mut Header, action: Action, decision: Decision, verdict: Verdict) {
    header.action = action as u8;
    header.verdict = verdict as u8;
    header.reason = decision.reason as u8;
    header.rule = decision.rule;
}

/// Marks a record that only tells, and was never a question.
#[inline(always)]
pub fn happened(header: &mut Header) {
    decided(header, Action::Exec, Decision::because(Reason::Permitted), Verdict::Allowed);
}

/// Sends a record of fixed size, which begins with its header.
#[inline(always)]
pub fn send<T>(record: &mut T) {
    // SAFETY: `T` begins with a `Header` and is whole.
    unsafe { send_bytes(core::ptr::from_mut(record).cast(), size_of::<T>() as u32) }
}

/// Sends `size` bytes that begin with a header.
///
/// # Safety
/// `size` readable bytes at `record`, of which the first are a [`Header`].
#[inline(always)]
pub unsafe fn send_bytes(record: *mut Header, size: u32) {
    // SAFETY: the caller's promise.
    let header = unsafe { &mut *record };
    header.size = size;
    let lane = lane(header.verdict);
    let Some(stream) = STREAM.get_ptr_mut(lane as u32) else {
        return;
    };
    header.sequence = next(stream);
    let ring = match lane {
        Lane::Denied => &raw const DENIED as *mut core::ffi::c_void,
        Lane::Told => &raw const TOLD as *mut core::ffi::c_void,
    };
    // SAFETY: a ring buffer map and memory of that size.
    if unsafe { bpf_ringbuf_output(ring, record.cast(), u64::from(size), 0) } != 0 {
        count(stream, header.kind);
    }
}

/// Counts a record that could not even be made.
#[inline(always)]
pub fn lost(verdict: Verdict, kind: Kind) {
    let Some(stream) = STREAM.get_ptr_mut(lane(verdict as u8) as u32) else {
        return;
    };
    next(stream);
    count(stream, kind as u8);
}

#[inline(always)]
const fn lane(verdict: u8) -> Lane {
    if verdict == Verdict::Allowed as u8 { Lane::Told } else { Lane::Denied }
}

/// The next number of a lane on this CPU. The add is atomic for programs that are preempted within it;
/// the read after it may then see a neighbour's number, never a smaller one.
#[inline(always)]
fn next(stream: *mut Stream) -> u64 {
    // SAFETY: a live per-CPU element.
    unsafe {
        atomic::increment(&raw mut (*stream).sequence);
        core::ptr::read_volatile(&raw const (*stream).sequence)
    }
}

#[inline(always)]
fn count(stream: *mut Stream, kind: u8) {
    if (kind as usize) < KINDS {
        // SAFETY: a live per-CPU element, in bounds.
        unsafe {
            atomic::increment((&raw mut (*stream).lost).cast::<u64>().add(kind as usize));
        }
    }
}
