//! One file for each kind of action.

pub mod exec;
pub mod file;
pub mod guard;
pub mod lifecycle;
pub mod net;
pub mod privilege;

/// What a denying LSM program returns: `EPERM` (include/uapi/asm-generic/errno-base.h).
pub const DENY: i32 = -1;
