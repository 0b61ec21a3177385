//! Where the story goes: every sink takes whole lines and says what it could not deliver.
//!
//! Adding a sink is one file here and one line in [`SINKS`].

use std::io;
use std::path::PathBuf;

pub mod file;
pub mod stdout;

pub use file::FileSink;
pub use stdout::StdoutSink;

/// Takes lines of events.
pub trait Sink: Send {
    /// The name by which metrics and messages know it.
    fn name(&self) -> &str;

    /// Takes whole lines, which hold `events` events.
    ///
    /// # Errors
    /// Every error says how many events this call lost. What is not lost is held and tried again
    /// with the next call.
    fn write(&mut self, lines: &[u8], events: u64) -> Result<(), SinkError>;

    /// Delivers what is held.
    ///
    /// # Errors
    /// As [`Sink::write`]; nothing is lost by a flush that fails.
    fn flush(&mut self) -> Result<(), SinkError>;

    /// Events lost since the sink was opened.
    fn lost(&self) -> u64;
}

/// Why events could not be delivered.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The sink cannot be opened as asked.
    #[error("{path}: {what}; {advice}", path = .path.display())]
    Refused {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What the reader can do.
        advice: &'static str,
    },
    /// A system call failed when the sink was opened.
    #[error("{path}: cannot {what}: {source}", path = .path.display())]
    Open {
        /// Where.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
    /// Events could not be written now.
    #[error(
        "{sink}: cannot {what}: {source}; {lost} events lost now, {held} held for the next try"
    )]
    Write {
        /// The sink's name.
        sink: String,
        /// What was tried.
        what: &'static str,
        /// The error.
        source: io::Error,
        /// Events that this call lost.
        lost: u64,
        /// Events that are held and tried again.
        held: u64,
    },
    /// A sink without a target was asked for one, or the other way round.
    #[error("sink {sink}: {what}")]
    Options {
        /// The sink's name.
        sink: &'static str,
        /// What is wrong.
        what: &'static str,
    },
}

/// What a sink is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to, for sinks that go somewhere.
    pub target: Option<PathBuf>,
    /// Bytes after which a file is rotated.
    pub limit: u64,
    /// Files that are kept, the current one included.
    pub keep: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { target: None, limit: 64 << 20, keep: 8 }
    }
}

/// A kind of sink.
pub struct SinkKind {
    /// Its name in the config.
    pub name: &'static str,
    /// Opens one.
    pub open: fn(&Options) -> Result<Box<dyn Sink>, SinkError>,
}

/// Every kind of sink.
pub const SINKS: &[SinkKind] = &[
    SinkKind { name: "file", open: FileSink::boxed },
    SinkKind { name: "stdout", open: StdoutSink::boxed },
];

/// The kind of sink with this name.
#[must_use]
pub fn kind(name: &str) -> Option<&'static SinkKind> {
    SINKS.iter().find(|kind| kind.name == name)
}
