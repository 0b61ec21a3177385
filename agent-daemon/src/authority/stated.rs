//! How far the stream has come, kept for the daemon after this one: what was stated as lost is not stated
//! twice, and what is lost while no daemon runs is stated by the next.
//!
//! It is written after the events that it speaks of, so that a daemon that is killed in between has the next
//! one state a loss once more, and never not at all.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use agent_ebpf::{KINDS, Lane};
use serde::{Deserialize, Serialize};

use crate::events::gap::{Gaps, Position};

/// The file in `daemon.run`.
const FILE: &str = "stated.json";

/// The file and what stands in it.
#[derive(Debug)]
pub struct Stated {
    folder: PathBuf,
    written: Vec<Row>,
    warned: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    cpu: u32,
    lane: String,
    sequence: u64,
    lost: [u64; KINDS],
}

impl Row {
    fn of(position: Position) -> Self {
        let Position { cpu, lane, sequence, lost } = position;
        Self { cpu, lane: lane.name().to_owned(), sequence, lost }
    }

    fn position(&self) -> Option<Position> {
        let lane = Lane::ALL.iter().find(|lane| lane.name() == self.lane)?;
        Some(Position { cpu: self.cpu, lane: *lane, sequence: self.sequence, lost: self.lost })
    }
}

impl Stated {
    /// Goes on with what the file in this folder says, where the kernel's counters are the same as then.
    /// What cannot be read is nothing stated yet.
    pub fn resume(folder: &Path, adopted: bool, gaps: &mut Gaps) -> Self {
        let mut own = Self { folder: folder.to_owned(), written: Vec::new(), warned: false };
        if adopted {
            own.written = own.read().unwrap_or_else(|error| {
                own.warn(&error);
                Vec::new()
            });
            own.written.iter().filter_map(Row::position).for_each(|row| gaps.assume(&row));
        }
        own
    }

    fn read(&self) -> io::Result<Vec<Row>> {
        match fs::read(self.folder.join(FILE)) {
            Ok(text) => serde_json::from_slice(&text).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file whole, if there is anything new.
    pub fn keep(&mut self, gaps: &Gaps) {
        if gaps.positions().map(Row::of).eq(self.written.iter().cloned()) {
            return;
        }
        self.written = gaps.positions().map(Row::of).collect();
        match self.write() {
            Ok(()) => self.warned = false,
            Err(error) => self.warn(&error),
        }
    }

    fn write(&self) -> io::Result<()> {
        let new = self.folder.join("stated.json.new");
        let text = serde_json::to_vec(&self.written).map_err(io::Error::other)?;
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        io::Write::write_all(&mut file, &text)?;
        fs::rename(new, self.folder.join(FILE))
    }

    fn warn(&mut self, error: &io::Error) {
        if !self.warned {
            let file = self.folder.join(FILE);
            eprintln!(
                "ambitd: {}: {error}; the next daemon may state losses again",
                file.display()
            );
        }
        self.warned = true;
    }

    /// Removes it from a folder: with the programs go their counters.
    pub fn forget(folder: &Path) {
        let _ = fs::remove_file(folder.join(FILE));
    }
}

#[cfg(test)]
mod tests {
    use agent_ebpf::Stream;

    use super::*;

    #[test]
    fn a_loss_is_stated_by_one_daemon_only() {
        let folder = std::env::temp_dir().join(format!("ambit-stated-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let mut counters = Stream { sequence: 9, ..Stream::default() };
        counters.lost[0] = 4;
        let mut first = Gaps::new();
        let mut stated = Stated::resume(&folder, true, &mut first);
        first.saw(2, Lane::Denied, 5, 1);
        assert_eq!(first.check(2, Lane::Denied, &counters).unwrap().total(), 4);
        stated.keep(&first);

        let mut second = Gaps::new();
        Stated::resume(&folder, true, &mut second);
        assert_eq!(second.check(2, Lane::Denied, &counters), None);
        // What was lost while nobody ran.
        counters.lost[0] = 6;
        counters.sequence = 11;
        let gap = second.check(2, Lane::Denied, &counters).unwrap();
        assert_eq!((gap.total(), gap.before, gap.after), (2, 9, 12));

        // Other programs count anew.
        let mut other = Gaps::new();
        Stated::resume(&folder, false, &mut other);
        assert_eq!(other.check(2, Lane::Denied, &counters).unwrap().total(), 6);
        Stated::forget(&folder);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        fs::remove_dir(&folder).unwrap();
    }
}
