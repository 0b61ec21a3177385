//! When: which agents there are, from when until when, and under which policy.

mod bounds;
mod contents;
mod directory;
mod engine;
mod layers;
mod names;
mod objects;
mod protect;
mod state;
mod stated;
mod stream;

pub use contents::{OUTCOMES, content_of};
pub use directory::{AgentEntry, Directory, Source};
pub use engine::{
    CLOSING, Engine, EngineError, Finished, RunRequest, Running, Started, Summary, remove_all,
};
pub use protect::protected;
pub use stream::Stream;
