//! JSON Lines in a file that only root reads, bounded in size.
//!
//! The path is walked folder by folder without following a link, so that nobody who may write in a
//! parent can aim the daemon's writes elsewhere. The file is a regular file of the daemon's own
//! user, mode 0600, or it is refused. At the size bound `events.jsonl` becomes `events.jsonl.1`,
//! that one `.2`, and so on; the oldest goes. A line is never split between two files.
//!
//! When a write fails (a full disk), lines are held in memory up to a bound and tried again; beyond
//! it the newest are dropped, whole, and counted.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::{Options, Sink, SinkError};

/// Bytes that are gathered before they are written.
const GATHER: usize = 256 << 10;

/// Bytes that are held while writing fails.
const HOLD: usize = 4 << 20;

/// A file of events.
#[derive(Debug)]
pub struct FileSink {
    path: PathBuf,
    folder: OwnedFd,
    file: File,
    name: OsString,
    size: u64,
    limit: u64,
    keep: u32,
    buffer: Vec<u8>,
    /// Bytes at the start of `buffer` that are in the file already: a write was cut short.
    written: usize,
    held: u64,
    lost: u64,
    exposed: Vec<PathBuf>,
}

fn refused(path: &Path, what: impl Into<String>, advice: &'static str) -> SinkError {
    SinkError::Refused { path: path.to_owned(), what: what.into(), advice }
}

fn failed(path: &Path, what: &'static str, errno: Errno) -> SinkError {
    SinkError::Open { path: path.to_owned(), what, source: errno.into() }
}

/// Opens the folder that holds `path`, and lists the folders on the way that others own.
fn walk(path: &Path) -> Result<(OwnedFd, OsString, Vec<PathBuf>), SinkError> {
    let absolute = std::path::absolute(path).map_err(|source| SinkError::Open {
        path: path.to_owned(),
        what: "make it absolute",
        source,
    })?;
    let Some(name) = absolute.file_name().map(OsStr::to_owned) else {
        return Err(refused(path, "it names no file", "name a file in a folder"));
    };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut at = PathBuf::from("/");
    let mut folder =
        nix::fcntl::open("/", flags, Mode::empty()).map_err(|e| failed(&at, "open", e))?;
    let mut exposed = Vec::new();
    let parents = absolute.parent().unwrap_or(Path::new("/"));
    for part in parents.components() {
        let part = match part {
            Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            // Lexical: no folder on the way is a link, so this is what the kernel would do too.
            Component::ParentDir => OsStr::new(".."),
            Component::Normal(part) => part,
        };
        at.push(part);
        folder = openat(&folder, part, flags, Mode::empty()).map_err(|e| match e {
            Errno::ELOOP | Errno::ENOTDIR => refused(
                &at,
                "it is a link or no folder, and event files are opened without following links",
                "name the real folder (readlink -f shows it)",
            ),
            e => failed(&at, "open the folder", e),
        })?;
        let stat = nix::sys::stat::fstat(&folder).map_err(|e| failed(&at, "stat", e))?;
        let sticky = stat.st_mode & 0o1000 != 0;
        if stat.st_mode & 0o002 != 0 && !sticky {
            return Err(refused(
                &at,
                "anybody may replace what is in this folder",
                "use a folder that only root may write, or chmod o-w it",
            ));
        }
        let own = stat.st_uid == 0 || stat.st_uid == geteuid().as_raw();
        if !own || (stat.st_mode & 0o020 != 0 && !sticky) {
            exposed.push(at.clone());
        }
    }
    Ok((folder, name, exposed))
}

/// Opens or creates the file and refuses one that is not the daemon's alone.
fn open(folder: &OwnedFd, name: &OsStr, path: &Path) -> Result<File, SinkError> {
    // Without blocking, so that a FIFO in its place is refused rather than waited for.
    let flags = OFlag::O_RDWR
        | OFlag::O_APPEND
        | OFlag::O_CREAT
        | OFlag::O_NOFOLLOW
        | OFlag::O_NONBLOCK
        | OFlag::O_NOCTTY
        | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let fd = openat(folder, name, flags, mode).map_err(|e| match e {
        Errno::ELOOP => refused(
            path,
            "it is a link, and event files are opened without following links",
            "remove the link, or name the file itself",
        ),
        Errno::EISDIR => refused(path, "it is a folder", "name a file in it"),
        e => failed(path, "open", e),
    })?;
    let file = File::from(fd);
    let about = file.metadata().map_err(|source| SinkError::Open {
        path: path.to_owned(),
        what: "stat",
        source,
    })?;
    let kind = about.file_type();
    if !kind.is_file() {
        let what = if kind.is_fifo() { "a FIFO" } else { "not a regular file" };
        return Err(refused(path, format!("it is {what}"), "move it away; the file is made anew"));
    }
    if about.uid() != geteuid().as_raw() {
        return Err(refused(
            path,
            format!("it belongs to user {}", about.uid()),
            "move it away, or chown it to root",
        ));
    }
    if about.nlink() > 1 {
        return Err(refused(
            path,
            format!("it has {} names", about.nlink()),
            "move it away; the file is made anew with one name",
        ));
    }
    let mode = about.permissions().mode() & 0o7777;
    if mode & !0o600 != 0 {
        return Err(refused(
            path,
            format!("its mode is {mode:04o}, so that others may use it"),
            "chmod it to 0600",
        ));
    }
    Ok(file)
}

impl FileSink {
    /// Opens the file, creating it when it is not there, and appends to it.
    ///
    /// # Errors
    /// [`SinkError::Refused`] when a part of the path is a link, a folder on the way may be written
    /// by anybody, or the file is not a regular one of the daemon's own with mode 0600;
    /// [`SinkError::Open`] when a system call fails.
    pub fn open(path: &Path, limit: u64, keep: u32) -> Result<Self, SinkError> {
        let (folder, name, exposed) = walk(path)?;
        let mut file = open(&folder, &name, path)?;
        let size = mend(&mut file).map_err(|source| SinkError::Open {
            path: path.to_owned(),
            what: "read its end",
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            folder,
            file,
            name,
            size,
            limit: limit.max(1),
            keep: keep.max(1),
            buffer: Vec::with_capacity(GATHER),
            written: 0,
            held: 0,
            lost: 0,
            exposed,
        })
    }

    /// Opens it for the registry.
    ///
    /// # Errors
    /// As [`FileSink::open`], and when no target is named.
    pub fn boxed(options: &Options) -> Result<Box<dyn Sink>, SinkError> {
        let Some(path) = &options.target else {
            return Err(SinkError::Options { sink: "file", what: "needs a path" });
        };
        Ok(Box::new(Self::open(path, options.limit, options.keep)?))
    }

    /// Folders on the way whose owner or group could move the file away, though not read or change
    /// it. Worth a warning: the default folder has none.
    #[must_use]
    pub fn exposed(&self) -> &[PathBuf] {
        &self.exposed
    }

    /// Every name that the sink may write, for the list of what agents must not touch.
    #[must_use]
    pub fn names(&self) -> Vec<PathBuf> {
        (0..self.keep).map(|number| self.path.with_file_name(rotated(&self.name, number))).collect()
    }

    fn rotate(&mut self) -> Result<(), (&'static str, io::Error)> {
        if self.keep == 1 {
            match unlinkat(&self.folder, &*self.name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(e) => return Err(("remove the full file", e.into())),
            }
        }
        for number in (1..self.keep).rev() {
            let from = rotated(&self.name, number - 1);
            let to = rotated(&self.name, number);
            let folder = self.folder.as_fd();
            match renameat(folder, &*from, folder, &*to) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(e) => return Err(("rotate", e.into())),
            }
        }
        match open(&self.folder, &self.name, &self.path) {
            Ok(file) => {
                self.file = file;
                self.size = 0;
                Ok(())
            }
            Err(SinkError::Open { source, .. }) => Err(("make the next file", source)),
            Err(error) => Err(("make the next file", io::Error::other(error))),
        }
    }

    /// Writes what is in the buffer; on an error the rest stays there.
    fn drain(&mut self) -> Result<(), (&'static str, io::Error)> {
        while self.written < self.buffer.len() {
            // A file gets whole lines: as many as fit, but at least one.
            let rest = &self.buffer[self.written..];
            let room = usize::try_from(self.limit.saturating_sub(self.size)).unwrap_or(usize::MAX);
            let at_line = self.written == 0 || self.buffer[self.written - 1] == b'\n';
            let take = if rest.len() <= room {
                rest.len()
            } else if let Some(end) = rest[..room].iter().rposition(|&b| b == b'\n') {
                end + 1
            } else if at_line && self.size > 0 {
                self.rotate()?;
                continue;
            } else {
                rest.iter().position(|&b| b == b'\n').map_or(rest.len(), |end| end + 1)
            };
            match self.file.write(&rest[..take]) {
                Ok(0) => return Err(("write", io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.written += count;
                    self.size += count as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(("write", e)),
            }
        }
        self.buffer.clear();
        self.written = 0;
        self.held = 0;
        Ok(())
    }

    fn report(&self, (what, source): (&'static str, io::Error), lost: u64) -> SinkError {
        SinkError::Write {
            sink: self.path.display().to_string(),
            what,
            source,
            lost,
            held: self.held,
        }
    }
}

/// The name of a rotated file; number 0 is the current one.
pub(crate) fn rotated(name: &OsStr, number: u32) -> OsString {
    let mut name = name.to_owned();
    if number > 0 {
        name.push(format!(".{number}"));
    }
    name
}

/// Ends a last line that a crash has cut, so that the next one starts a line, and says the size.
fn mend(file: &mut File) -> io::Result<u64> {
    let size = file.metadata()?.len();
    if size == 0 {
        return Ok(0);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    if last == *b"\n" {
        return Ok(size);
    }
    file.write_all(b"\n")?;
    Ok(size + 1)
}

impl Sink for FileSink {
    fn name(&self) -> &str {
        "file"
    }

    fn write(&mut self, lines: &[u8], events: u64) -> Result<(), SinkError> {
        let mut earlier = None;
        if self.buffer.len() + lines.len() > HOLD {
            // Room first: what is held may be writable again.
            earlier = self.drain().err();
        }
        if earlier.is_some() && self.buffer.len() - self.written + lines.len() > HOLD {
            self.lost += events;
            let error = earlier.unwrap_or(("write", io::ErrorKind::StorageFull.into()));
            return Err(self.report(error, events));
        }
        self.buffer.extend_from_slice(lines);
        self.held += events;
        if self.buffer.len() - self.written < GATHER {
            return Ok(());
        }
        self.drain().map_err(|error| self.report(error, 0))
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        self.drain().map_err(|error| self.report(error, 0))
    }

    fn lost(&self) -> u64 {
        self.lost
    }
}

impl Drop for FileSink {
    fn drop(&mut self) {
        // The last chance; an error has nobody left to go to.
        let _ = self.drain();
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
