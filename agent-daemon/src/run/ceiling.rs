//! The ceiling: what a process and all that it ever starts may change of the file tree at most, kept by
//! Landlock, whoever else lives or dies.
//!
//! Only what the fanotify backend cannot see is in it: removing, renaming, linking, truncating by
//! path, and making anything but regular files. Opens are left to the backend, because Landlock would
//! refuse them before it, and nobody would be told. Along with it, a process under a ceiling can mount
//! nothing, and can trace nothing that is not.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    AccessFs, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreated,
    RulesetCreatedAttr as _, RulesetError, make_bitflags,
};

use super::RunError;

/// What is denied outside the ceiling.
fn handled() -> BitFlags<AccessFs> {
    make_bitflags!(AccessFs::{
        RemoveFile | RemoveDir | MakeDir | MakeSym | MakeFifo | MakeSock | MakeChar | MakeBlock
        | Refer | Truncate
    })
}

/// What is denied everywhere: device nodes are a way past every file rule.
fn devices() -> BitFlags<AccessFs> {
    make_bitflags!(AccessFs::{MakeChar | MakeBlock})
}

/// A ceiling that can be put on.
#[derive(Debug)]
pub(super) struct Ceiling {
    pub(super) ruleset: OwnedFd,
    /// Folders that do not exist, each with the one above it that stands for it.
    pub(super) widened: Vec<(PathBuf, PathBuf)>,
}

/// Whether this kernel can keep one.
#[must_use]
pub fn available() -> bool {
    create().is_ok_and(|ruleset| Option::<OwnedFd>::from(ruleset).is_some())
}

fn create() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default().handle_access(handled())?.create()
}

impl Ceiling {
    /// A ceiling that lets these folders be changed; `None` where the kernel has no Landlock.
    ///
    /// # Errors
    /// A folder cannot be opened, or the kernel refuses the ceiling.
    pub(super) fn over(folders: &BTreeSet<PathBuf>) -> Result<Option<Self>, RunError> {
        let failed = |error: &dyn std::fmt::Display| RunError::Ceiling(error.to_string());
        let mut ruleset = create().map_err(|error| failed(&error))?;
        let mut widened = Vec::new();
        for folder in folders {
            let existing = folder.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
            if existing != folder {
                widened.push((folder.clone(), existing.to_path_buf()));
            }
            let opened = PathFd::new(existing).map_err(|error| failed(&error))?;
            let rule = PathBeneath::new(opened, handled() & !devices());
            ruleset = ruleset.add_rule(rule).map_err(|error| failed(&error))?;
        }
        let ruleset: Option<OwnedFd> = ruleset.into();
        Ok(ruleset.map(|ruleset| Self { ruleset, widened }))
    }
}
