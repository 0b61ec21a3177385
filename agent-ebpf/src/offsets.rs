//! Where the running kernel keeps things, written by the daemon before load.
//!
//! The verifier sees these globals as constants, so `pointer + offset` keeps its BTF type.

use agent_ebpf::{Kernel, Offsets};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets::UNKNOWN;

#[unsafe(no_mangle)]
static KERNEL: Kernel = Kernel {
    backing_mode: 0,
    bpf_verdict: 3,
    setattr_dentry: 0,
    sends_pages: 0,
    types_tasks: 0,
    namespace_calls: [u32::MAX; 4],
    mount_calls: [u32::MAX; 10],
};

/// The offsets.
#[inline(always)]
pub fn offsets() -> &'static Offsets {
    &OFFSETS
}

/// The other facts.
#[inline(always)]
pub fn kernel() -> &'static Kernel {
    &KERNEL
}

/// Reads one of the globals, without the compiler knowing the value that it had at build time.
#[inline(always)]
pub fn known(value: &'static u32) -> usize {
    // SAFETY: a reference to a live static; volatile because the loader changes it before load.
    unsafe { core::ptr::read_volatile(value) as usize }
}

/// Loads a member of a kernel object at an offset from [`OFFSETS`].
///
/// # Safety
/// `base` is a pointer that the verifier knows (BTF-typed), and `T` is no larger than the member.
#[inline(always)]
pub unsafe fn member<T: Copy>(base: *const u8, offset: &'static u32) -> T {
    // SAFETY: the verifier refuses the program when the load is not of such a member; a pointer that
    // went stale reads as zero (BPF_PROBE_MEM).
    unsafe { core::ptr::read_volatile(base.add(known(offset)).cast::<T>()) }
}

/// The address of an embedded member.
#[inline(always)]
pub fn within(base: *const u8, offset: &'static u32) -> *const u8 {
    base.wrapping_add(known(offset))
}
