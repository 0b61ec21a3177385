//! Lines to standard output, for containers and pipes.

use std::io::{self, Write as _};

use super::{Options, Sink, SinkError};

/// Standard output.
#[derive(Debug, Default)]
pub struct StdoutSink {
    lost: u64,
}

impl StdoutSink {
    /// Standard output as it is.
    #[must_use]
    pub const fn new() -> Self {
        Self { lost: 0 }
    }

    /// Opens it for the registry.
    ///
    /// # Errors
    /// When a target is named.
    pub fn boxed(options: &Options) -> Result<Box<dyn Sink>, SinkError> {
        if options.target.is_some() {
            return Err(SinkError::Options {
                sink: "stdout",
                what: "takes no path; use the sink `file` for one",
            });
        }
        Ok(Box::new(Self::new()))
    }

    fn failed(&mut self, what: &'static str, lost: u64, source: io::Error) -> SinkError {
        self.lost += lost;
        SinkError::Write { sink: "stdout".to_owned(), what, source, lost, held: 0 }
    }
}

impl Sink for StdoutSink {
    fn name(&self) -> &str {
        "stdout"
    }

    fn write(&mut self, lines: &[u8], events: u64) -> Result<(), SinkError> {
        // Nothing is held: whoever reads the pipe sees an event when it happened.
        let mut out = io::stdout().lock();
        match out.write_all(lines).and_then(|()| out.flush()) {
            Ok(()) => Ok(()),
            Err(source) => Err(self.failed("write", events, source)),
        }
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        match io::stdout().lock().flush() {
            Ok(()) => Ok(()),
            Err(source) => Err(self.failed("flush", 0, source)),
        }
    }

    fn lost(&self) -> u64 {
        self.lost
    }
}
