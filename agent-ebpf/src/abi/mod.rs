//! The words that the kernel half and the daemon exchange: map keys and values, and event records.
//!
//! Everything is `#[repr(C)]`, integers only, padding explicit and size asserted, so that both
//! halves, whatever compiled them, mean the same bytes. The daemon reads records by a checked parse
//! (`zerocopy`), never by a cast.

macro_rules! codes {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $value:literal, $text:literal;)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $($(#[$vmeta])* $variant = $value,)* }
        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// The value with this code, or `None` when no such code exists.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($value => Some(Self::$variant),)* _ => None }
            }
            /// The name used in policies, events and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

mod kernel;
mod names;
mod records;
mod tables;

pub use kernel::*;
pub use names::*;
pub use records::*;
pub use tables::*;

/// Changes whenever a map's or a record's layout does; a daemon refuses pinned maps of another one.
pub const ABI_VERSION: u32 = 1;

/// The longest path that a hook resolves, in bytes with its final NUL (`PATH_MAX` of
/// include/uapi/linux/limits.h). What is longer is [`Reason::PathUnresolved`].
pub const PATH_MAX: usize = 4096;

/// How many bytes of a command line an exec record carries; what is cut off is counted in
/// [`ExecBody::argv_total`].
pub const ARGV_MAX: usize = 4096;

/// Slots of scratch space for each CPU: how many hooks may resolve a path there at once, one preempting
/// another.
pub const SLOTS_PER_CPU: u32 = 8;

/// The element of map `BINDINGS` in which the hooks count.
pub const BOUND_BY_HOOKS: u32 = 0;
/// The one in which the daemon does.
pub const BOUND_BY_DAEMON: u32 = 1;

/// Deepest cgroup level (root is 0) at which an agent may be bound.
pub const MAX_CGROUP_LEVEL: u32 = 31;

/// A rule's number within its policy set; 0 is "none". The daemon keeps the names.
pub type RuleId = u32;

/// No rule.
pub const RULE_NONE: RuleId = 0;
/// The built-in forbid that keeps agents away from Ambit's own files. Policy rules start above it.
pub const RULE_PROTECTED: RuleId = 1;
/// First number that a policy's rules may have.
pub const RULE_FIRST: RuleId = 2;
