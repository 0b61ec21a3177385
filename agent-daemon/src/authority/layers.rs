//! The layers of overlays: where the files lie that a merged one is made of.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{FileTypeExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::Mode,
};

/// An overlay that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// Its mount id.
    pub mount: u64,
    /// Which part of it is mounted.
    part: PathBuf,
    /// Where.
    pub at: PathBuf,
    /// The folders of its layers, as whoever mounted it called them.
    layers: Vec<PathBuf>,
}

/// The overlays among the mounts of `/proc/PROCESS`, with those of their layers that are named from the root.
pub fn overlays(process: &str) -> io::Result<Vec<Overlay>> {
    let text = fs::read(format!("/proc/{process}/mountinfo"))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(overlay).collect())
}

/// One line of mountinfo, if it is an overlay's.
fn overlay(line: &[u8]) -> Option<Overlay> {
    // proc(5): id parent major:minor root mount-point options [optional]... - type source options
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = words.iter().position(|word| *word == b"-")?;
    let [kind, _, options] = words.get(dash + 1..dash + 4)? else { return None };
    if *kind != b"overlay" {
        return None;
    }
    let path = |word: &[u8]| PathBuf::from(OsString::from_vec(plain(word)));
    let mut layers = Vec::new();
    for option in options.split(|byte| *byte == b',') {
        let mut parts = option.splitn(2, |byte| *byte == b'=');
        let (name, value) = (parts.next()?, parts.next().unwrap_or_default());
        match name {
            b"lowerdir" => layers.extend(value.split(|byte| *byte == b':')),
            b"lowerdir+" | b"datadir+" | b"upperdir" => layers.push(value),
            _ => {}
        }
    }
    // A backslash is one of its name or one that older kernels keep before a colon: nobody can tell.
    let is_clear =
        |layer: &PathBuf| layer.is_absolute() && !layer.as_os_str().as_bytes().contains(&b'\\');
    Some(Overlay {
        mount: std::str::from_utf8(words.first()?).ok()?.parse().ok()?,
        part: path(words.get(3)?),
        at: path(words.get(4)?),
        layers: layers.into_iter().map(path).filter(is_clear).collect(),
    })
}

/// A word of mountinfo without its octal escapes.
fn plain(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let digits =
            after.get(..3).filter(|digits| digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        match (first, digits) {
            (b'\\', Some(digits)) => {
                let value =
                    digits.iter().fold(0_u32, |sum, digit| sum * 8 + u32::from(digit - b'0'));
                bytes.push(u8::try_from(value).unwrap_or(b'\\'));
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// The mount that an open object is in.
pub fn mount_of(file: &impl AsRawFd) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

impl Overlay {
    /// What lies in the layers at the place of an open object of this overlay, of which `top` is the root of what
    /// is mounted. A layer that cannot be seen from here has none.
    pub fn beneath(&self, top: &fs::File, object: &fs::File) -> Vec<(fs::File, fs::Metadata)> {
        let path = |file: &fs::File| fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let (Ok(top), Ok(object)) = (path(top), path(object)) else { return Vec::new() };
        let Ok(inside) = object.strip_prefix(&top) else { return Vec::new() };
        let part = self.part.strip_prefix("/").unwrap_or(&self.part);
        let inside = part.join(inside);
        self.layers.iter().filter_map(|layer| in_layer(layer, &inside).ok()).collect()
    }
}

/// What lies in a layer at a path; a whiteout is nothing.
fn in_layer(layer: &Path, inside: &Path) -> io::Result<(fs::File, fs::Metadata)> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let top = open(layer, flags | OFlag::O_DIRECTORY, Mode::empty())?;
    let how = OpenHow::new()
        .flags(flags | OFlag::O_NOFOLLOW)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let inside = if inside.as_os_str().is_empty() { OsStr::new(".") } else { inside.as_os_str() };
    let file = fs::File::from(openat2(top.as_fd(), inside, how)?);
    let stat = file.metadata()?;
    if stat.file_type().is_char_device() && stat.rdev() == 0 {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok((file, stat))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_layers_from_mountinfo() {
        let line = b"61 28 0:45 /part /mnt/a\\040b rw - overlay overlay \
                     rw,lowerdir=/one:/two\\072x::/three:l/short,upperdir=/up\\054per,workdir=/work";
        let found = overlay(line).unwrap();
        assert_eq!((found.mount, found.at.as_path()), (61, Path::new("/mnt/a b")));
        assert_eq!(found.part, Path::new("/part"));
        let layers = ["/one", "/two:x", "/three", "/up,per"].map(PathBuf::from);
        assert_eq!(found.layers, layers);
        let line = b"7 1 0:9 / / ro,relatime shared:1 - overlay x ro,lowerdir+=/a,lowerdir+=/b,datadir+=/c";
        assert_eq!(overlay(line).unwrap().layers, ["/a", "/b", "/c"].map(PathBuf::from));
        let line = b"7 1 0:9 / / ro - overlay x ro,lowerdir=/a\\134:b:/c";
        assert_eq!(overlay(line).unwrap().layers, [Path::new("/c")]);
        assert_eq!(overlay(b"7 1 0:9 / / ro - ext4 /dev/sda ro"), None);
        assert_eq!(overlay(b""), None);
    }

    #[test]
    fn finds_what_lies_in_a_layer() {
        let folder = std::env::temp_dir().join(format!("ambit-layers-{}", std::process::id()));
        fs::create_dir_all(folder.join("lower/deep")).unwrap();
        fs::write(folder.join("lower/deep/key"), "hidden").unwrap();
        std::os::unix::fs::symlink("deep", folder.join("lower/link")).unwrap();
        let number = |path: &str| fs::metadata(folder.join(path)).unwrap().ino();
        let found = |inside: &str| {
            in_layer(&folder.join("lower"), Path::new(inside)).map(|(_, stat)| stat.ino())
        };
        assert_eq!(found("deep/key").unwrap(), number("lower/deep/key"));
        assert_eq!(found("").unwrap(), number("lower"));
        assert!(found("link/key").is_err(), "a layer has no links to follow");
        assert!(found("../lower").is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
