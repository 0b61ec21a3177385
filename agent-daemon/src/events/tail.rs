//! A file of events read as it grows, across rotation: `ambit events --follow`.
//!
//! The file that is read stays open when it is renamed, so nothing of it is missed; files that came
//! and went between two looks are found by their numbers (`events.jsonl.1`, `.2`, …).

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::sinks::file::rotated;

/// Rotated files that are looked for.
const KEPT_MAX: u32 = 1_000;

/// Bytes read at a time.
const READ: usize = 64 << 10;

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// At the first line of the oldest file that is kept.
    Oldest,
    /// At the first line of the current file.
    Start,
    /// At what comes next.
    End,
}

/// A file that is followed.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    file: Option<File>,
    inode: (u64, u64),
    offset: u64,
    /// Older files still to be read before the current one, oldest last.
    older: Vec<PathBuf>,
    /// The beginning of a line whose end is not there yet.
    partial: Vec<u8>,
}

fn number(path: &Path, number: u32) -> PathBuf {
    match path.file_name() {
        Some(name) => path.with_file_name(rotated(name, number)),
        None => path.to_owned(),
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    let about = file.metadata()?;
    Ok((about.dev(), about.ino()))
}

/// The file and its rotated ones that are there, oldest first.
#[must_use]
pub fn history(path: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = (0..KEPT_MAX)
        .map(|n| number(path, n))
        .enumerate()
        // The current one may be missing for a moment while it is rotated.
        .take_while(|(n, path)| *n < 2 || path.exists())
        .map(|(_, path)| path)
        .filter(|path| path.exists())
        .collect();
    files.reverse();
    files
}

impl Tail {
    /// Opens a file.
    ///
    /// # Errors
    /// When it cannot be opened or read.
    pub fn open(path: &Path, from: From) -> io::Result<Self> {
        let mut tail = Self {
            path: path.to_owned(),
            file: None,
            inode: (0, 0),
            offset: 0,
            older: Vec::new(),
            partial: Vec::new(),
        };
        let first = match from {
            From::Oldest => {
                let mut files = history(path);
                files.reverse();
                let first = files.pop();
                tail.older = files;
                first.unwrap_or_else(|| path.to_owned())
            }
            From::Start | From::End => path.to_owned(),
        };
        tail.switch(&first)?;
        if from == From::End
            && let Some(file) = &mut tail.file
        {
            tail.offset = file.seek(SeekFrom::End(0))?;
        }
        Ok(tail)
    }

    fn switch(&mut self, path: &Path) -> io::Result<()> {
        let file = File::open(path)?;
        self.inode = identity(&file)?;
        self.file = Some(file);
        self.offset = 0;
        Ok(())
    }

    /// Appends the whole lines that are there and not yet read to `out`, at most some 64 KiB of
    /// them; false when there are none for now.
    ///
    /// # Errors
    /// When reading fails; the next call tries again.
    pub fn read(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        loop {
            if self.read_some(out)? {
                return Ok(true);
            }
            if !self.advance()? {
                return Ok(false);
            }
        }
    }

    /// Reads on in the open file; false at its end.
    fn read_some(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let Some(file) = &mut self.file else {
            return Ok(false);
        };
        if file.metadata()?.len() < self.offset {
            // Emptied in place: begin again.
            self.offset = file.seek(SeekFrom::Start(0))?;
            self.partial.clear();
        }
        let mut any = false;
        loop {
            let before = self.partial.len();
            let count = file.take(READ as u64).read_to_end(&mut self.partial)?;
            self.offset += count as u64;
            if count == 0 {
                return Ok(any);
            }
            if let Some(end) = self.partial[before..].iter().rposition(|&b| b == b'\n') {
                out.extend(self.partial.drain(..before + end + 1));
                any = true;
                return Ok(any);
            }
        }
    }

    /// Goes to the next file when the open one has been left behind; false when it has not.
    fn advance(&mut self) -> io::Result<bool> {
        while let Some(next) = self.older.pop() {
            match File::open(&next) {
                Ok(file) if identity(&file)? == self.inode => {}
                Ok(_) => {
                    self.finish();
                    self.switch(&next)?;
                    return Ok(true);
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        let current = match fs::metadata(&self.path) {
            Ok(about) => (about.dev(), about.ino()),
            // Between the two steps of a rotation.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        if current == self.inode {
            return Ok(false);
        }
        // What was written between the last read and the rename; the writer is done with it now.
        if let Some(file) = &self.file
            && file.metadata()?.len() > self.offset
        {
            return Ok(true);
        }
        let at = (1..KEPT_MAX).find(|n| {
            fs::metadata(number(&self.path, *n)).is_ok_and(|m| (m.dev(), m.ino()) == self.inode)
        });
        // Files that were filled meanwhile lie between the one that was read and the current one.
        self.older = (0..at.unwrap_or(1)).map(|n| number(&self.path, n)).collect();
        self.finish();
        let Some(next) = self.older.pop() else {
            return Ok(false);
        };
        match self.switch(&next) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// A file is done: what is left of a line there never gets its end.
    fn finish(&mut self) {
        self.partial.clear();
    }
}

#[cfg(test)]
#[path = "tail_tests.rs"]
pub(crate) mod tests;
