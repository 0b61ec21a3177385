//! The two atomic operations that the programs need. The BPF target of rustc offers neither, so they
//! are the instructions themselves.

use core::arch::asm;

/// Adds one to a counter that other CPUs, or a program that preempts this one, may add to. This is
/// `BPF_XADD`, which every kernel has; an add that returns the old value needs 5.12.
///
/// # Safety
/// `counter` points into a live map value, aligned to 8.
#[inline(always)]
pub unsafe fn increment(counter: *mut u64) {
    // SAFETY: the caller's promise.
    unsafe { asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) 1_u64) };
}

/// Stores a value and returns the one before. Needs 5.12.
///
/// # Safety
/// `cell` points into a live map value, aligned to 8.
#[inline(always)]
pub unsafe fn swap(cell: *mut u64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: the caller's promise.
    unsafe { asm!("{0} = xchg_64({1} + 0, {0})", inout(reg) value, in(reg) cell) };
    value
}
