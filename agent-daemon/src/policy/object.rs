//! What a path stands for on this machine: the object at its end, and what else is run with it.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use serde::Serialize;

/// The most links that the kernel follows (`MAXSYMLINKS` of include/linux/namei.h).
const LINKS_MAX: usize = 40;
/// The most interpreters of interpreters that the kernel follows (fs/exec.c).
const INTERPRETERS_MAX: usize = 5;
/// What the kernel reads of a program to tell what it is (`BINPRM_BUF_SIZE`).
const HEAD_BYTES: usize = 256;

/// The object that a path leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Object {
    /// Its own path: no link in it.
    pub path: PathBuf,
    /// Whether it is there.
    pub exists: bool,
    /// Whether it is a folder.
    pub is_dir: bool,
    /// How many names it has; more than one for a file with hard links.
    pub names: u64,
}

impl Object {
    /// Follows an absolute path as an open would; what does not exist yet is where it would be made.
    ///
    /// # Errors
    /// A folder on the way may not be looked into, is no folder, or there are too many links.
    pub fn find(asked: &Path) -> io::Result<Self> {
        let path = follow(asked)?;
        match fs::symlink_metadata(&path) {
            Ok(data) => {
                let names = if data.is_dir() { 1 } else { data.nlink() };
                Ok(Self { path, exists: true, is_dir: data.is_dir(), names })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let is_dir = asked.as_os_str().as_bytes().ends_with(b"/");
                Ok(Self { path, exists: false, is_dir, names: 0 })
            }
            Err(error) => Err(error),
        }
    }
}

/// The path with every link in it followed.
fn follow(asked: &Path) -> io::Result<PathBuf> {
    let parts = |path: &Path| -> Vec<OsString> {
        let named = |part: Component<'_>| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        };
        path.components().filter_map(named).collect()
    };
    let mut left: VecDeque<OsString> = parts(asked).into();
    let mut done = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = left.pop_front() {
        if part == ".." {
            done.pop();
            continue;
        }
        let next = done.join(&part);
        match fs::symlink_metadata(&next) {
            Ok(data) if data.is_symlink() => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(io::Error::other("too many symbolic links"));
                }
                let target = fs::read_link(&next)?;
                if target.is_absolute() {
                    done = PathBuf::from("/");
                }
                for part in parts(&target).into_iter().rev() {
                    left.push_front(part);
                }
            }
            Ok(_) => done = next,
            Err(error) if error.kind() == io::ErrorKind::NotFound => done = next,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// What is run along with a program, and judged as well: the interpreters of a script, one after the
/// other, and the loader of the last; each with what it is. What cannot be read is left out.
#[must_use]
pub fn run_along(program: &Path) -> Vec<(&'static str, PathBuf)> {
    let mut found = Vec::new();
    let mut at = program.to_path_buf();
    while found.len() < INTERPRETERS_MAX {
        let Some((what, named)) = next(&at).ok().flatten() else {
            break;
        };
        let Ok(object) = Object::find(&named) else {
            break;
        };
        at = object.path.clone();
        found.push((what, object.path));
    }
    found
}

fn next(program: &Path) -> io::Result<Option<(&'static str, PathBuf)>> {
    let mut file = File::open(program)?;
    let mut head = Vec::new();
    file.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let words = line.split(|byte| matches!(byte, b' ' | b'\t'));
        let word = words.filter(|word| !word.is_empty()).map(OsStr::from_bytes).next();
        return Ok(word.map(|word| ("interpreter", PathBuf::from(word))));
    }
    Ok(loader(&mut file, &head)?.map(|path| ("loader", path)))
}

/// The loader that a 64-bit ELF program of this machine names.
fn loader(file: &mut File, head: &[u8]) -> io::Result<Option<PathBuf>> {
    const CLASS_64: u8 = 2;
    const PT_INTERP: u64 = 3;
    const PROGRAM_HEADER: usize = 56;
    const PATH_BYTES: u64 = 4096;
    let number = |bytes: &[u8], at: usize, size: usize| {
        let mut value = [0; 8];
        let found = bytes.get(at..at + size)?;
        value.get_mut(..size)?.copy_from_slice(found);
        Some(u64::from_le_bytes(value))
    };
    if !head.starts_with(b"\x7fELF") || head.get(4) != Some(&CLASS_64) {
        return Ok(None);
    }
    let (Some(table), Some(count)) = (number(head, 32, 8), number(head, 56, 2)) else {
        return Ok(None);
    };
    file.seek(SeekFrom::Start(table))?;
    let mut headers = Vec::new();
    file.by_ref().take(count * PROGRAM_HEADER as u64).read_to_end(&mut headers)?;
    for header in headers.chunks_exact(PROGRAM_HEADER) {
        if number(header, 0, 4) == Some(PT_INTERP)
            && let (Some(at), Some(size)) = (number(header, 8, 8), number(header, 32, 8))
        {
            file.seek(SeekFrom::Start(at))?;
            let mut path = Vec::new();
            file.by_ref().take(size.min(PATH_BYTES)).read_to_end(&mut path)?;
            path.retain(|byte| *byte != 0);
            return Ok(Some(OsString::from_vec(path).into()));
        }
    }
    Ok(None)
}
