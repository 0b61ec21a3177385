//! One file for each kind of action.

pub mod change;
pub mod content;
pub mod exec;
pub mod file;
pub mod held;
pub mod lifecycle;
pub mod names;
pub mod net;
pub mod path;
pub mod privilege;
pub mod send;
pub mod socket;
pub mod unix;

/// What a denying LSM program returns: `EPERM` (include/uapi/asm-generic/errno-base.h).
pub const DENY: i32 = -1;
