//! The story: records decoded, enriched and written as OCSF.
//!
//! The front door is [`Pipeline`]: bytes of both lanes go in, lines of JSON come out. On the way a
//! record is parsed ([`decode`]), joined to its process ([`Processes`]) and written ([`ocsf`]);
//! what the kernel could not send is stated ([`Gaps`]). [`render`] and [`tail`] are the way back,
//! from lines to people.

pub mod clock;
pub mod gap;
pub mod heartbeat;
mod hooks;
pub mod host;
pub mod json;
mod launches;
mod objects;
pub mod ocsf;
pub mod pipeline;
pub mod proc;
pub mod process;
pub mod processes;
pub mod record;
pub mod redact;
pub mod render;
pub mod tail;

pub use clock::Clock;
pub use gap::{Gap, Gaps};
pub use heartbeat::Heartbeat;
pub use host::Host;
pub use pipeline::{AgentInfo, Batch, Count, Names, Pipeline, Taken};
pub use processes::Processes;
pub use record::{Body, DecodeError, Record, decode, encode_exec, encode_file};
