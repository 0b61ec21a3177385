//! The one room that touches aya: what this kernel can do, programs loaded and pinned, tables written,
//! rings read.

pub mod btf;
mod facts;
pub mod fanotify;
pub mod host;
mod ima;
pub mod lease;
pub mod load;
mod memory;
mod programs;
pub mod rings;
pub mod tables;

pub use host::Host;
pub use load::{Attached, Backend, Coverage, LoadError, Loaded};
pub use memory::memory;
pub use rings::Rings;
pub use tables::{TableError, Tables};
