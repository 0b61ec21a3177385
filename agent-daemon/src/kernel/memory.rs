//! What the tables cost: kernel memory that is held as long as Ambit is in place, daemon or not.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use aya::maps::{HashOfMaps, Map, MapData, MapError};

use super::{
    load::{MAPS, open_map},
    tables::{TableError, failed, is_missing},
};

/// Bytes of every table, by its name; an outer table's are with those of all its inner ones. As the kernel
/// has it in `memlock` of `/proc/PID/fdinfo` (kernel/bpf/syscall.c: `bpf_map_show_fdinfo`): from 6.4 what is
/// allocated, before it what the table was made for.
pub fn memory(maps: &Path) -> Result<Vec<(&'static str, u64)>, TableError> {
    MAPS.iter().map(|name| Ok((*name, of_table(maps, name)?))).collect()
}

fn of_table(maps: &Path, name: &'static str) -> Result<u64, TableError> {
    let map = open_map(maps, name)?;
    let is_outer = matches!(map, Map::HashOfMaps(_));
    let own = memlock(&MapData::from_pin(maps.join(name)).map_err(failed(name))?)
        .map_err(failed(name))?;
    if !is_outer {
        return Ok(own);
    }
    let outer: HashOfMaps<MapData, u32, MapData> = map.try_into().map_err(failed(name))?;
    let mut all = own;
    for set in outer.keys() {
        match outer.get(&set.map_err(failed(name))?, 0) {
            Ok(inner) => all += memlock(&inner).map_err(failed(name))?,
            // Retired meanwhile.
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(failed(name)(error)),
        }
    }
    Ok(all)
}

fn memlock(map: &MapData) -> Result<u64, MapError> {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(path)?;
    text.lines()
        .find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::other("the kernel does not say what a table costs").into())
}
