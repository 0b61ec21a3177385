//! The two rings, drained.

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use aya::maps::{MapData, RingBuf};

use super::{load::open_map, tables::TableError};

/// Readers of both lanes. The kernel keeps the read position, so a new daemon goes on where the last
/// one stopped.
pub struct Rings {
    denied: RingBuf<MapData>,
    told: RingBuf<MapData>,
    denied_bytes: u64,
    told_bytes: u64,
}

impl Rings {
    /// Opens the pinned rings in a folder.
    pub fn open(maps: &Path) -> Result<Self, TableError> {
        let ring = |name: &'static str| {
            let map = open_map(maps, name)?;
            RingBuf::try_from(map)
                .map_err(|source| TableError::Map { table: name, source: Box::new(source) })
        };
        let size = |name: &str| {
            aya::maps::MapInfo::from_pin(maps.join(name))
                .map_or(0, |info| u64::from(info.max_entries()))
        };
        Ok(Self {
            denied: ring("DENIED")?,
            told: ring("TOLD")?,
            denied_bytes: size("DENIED"),
            told_bytes: size("TOLD"),
        })
    }

    /// Sizes in bytes: denials, the rest.
    pub fn bytes(&self) -> (u64, u64) {
        (self.denied_bytes, self.told_bytes)
    }

    /// What to poll for readability.
    pub fn fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.denied.as_fd(), self.told.as_fd()]
    }

    /// Hands every waiting denial, then waiting records of the rest, to `take`; at most `limit` of the
    /// latter, so that denials are looked at again. Returns how many records and bytes there were.
    pub fn drain(&mut self, limit: usize, mut take: impl FnMut(&[u8])) -> Drained {
        let mut drained = Drained::default();
        while let Some(record) = self.denied.next() {
            drained.denied_bytes += record.len() as u64;
            drained.records += 1;
            take(&record);
        }
        for _ in 0..limit {
            let Some(record) = self.told.next() else {
                break;
            };
            drained.told_bytes += record.len() as u64;
            drained.records += 1;
            take(&record);
        }
        drained
    }
}

/// What one look at the rings found.
#[derive(Debug, Default, Clone, Copy)]
pub struct Drained {
    /// Records of both lanes.
    pub records: u64,
    /// Bytes that waited in the ring of denials.
    pub denied_bytes: u64,
    /// Bytes that waited in the other.
    pub told_bytes: u64,
}
