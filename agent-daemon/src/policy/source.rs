//! Reading policy files: one file, or every `*.cedar` and `*.entities.json` file of a folder, each within
//! a stated bound.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::diagnostic::{Diagnostic, PolicyError, Text};
use super::labels::SUFFIX;

/// The largest policy file that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 16 << 20;

/// The text of a file of policies, or of entities where its name ends with `.entities.json`; and the name
/// by which messages speak of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The name shown in messages; usually the path as the user gave it.
    pub name: String,
    /// The whole text.
    pub text: String,
}

impl Source {
    /// Whether it is a file of entities, by its name.
    #[must_use]
    pub fn is_entities(&self) -> bool {
        self.name.ends_with(SUFFIX)
    }
}

/// Reads one file of policies or of entities.
///
/// # Errors
/// The file is missing, may not be read, is no regular file, is larger than [`MAX_FILE_BYTES`]
/// (found out without reading it), or is not UTF-8 (with the place of the first wrong byte).
pub fn read_source(path: &Path) -> Result<Source, PolicyError> {
    let name = path.display().to_string();
    let failed = |error: &std::io::Error| match error.kind() {
        ErrorKind::NotFound => Diagnostic::of_file(
            &name,
            "there is no such policy file",
            "check the path; `ambit policy check FILE` shows what a file says",
        ),
        ErrorKind::PermissionDenied => Diagnostic::of_file(
            &name,
            "the policy file may not be read by this user",
            "run as root, or change the file's permissions",
        ),
        _ => Diagnostic::of_file(
            &name,
            format!("the policy file cannot be read: {error}"),
            "check the path and the file system that it is on",
        ),
    };
    let metadata = std::fs::metadata(path).map_err(|error| failed(&error))?;
    if metadata.is_dir() {
        return Err(Diagnostic::of_file(
            &name,
            "this is a folder, where one policy file was expected",
            "name one `.cedar` file in it",
        )
        .into());
    }
    if !metadata.is_file() {
        return Err(Diagnostic::of_file(
            &name,
            "this is not a regular file",
            "write the policy to a file, and name that",
        )
        .into());
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(too_large(&name, Some(metadata.len())));
    }
    let file = File::open(path).map_err(|error| failed(&error))?;
    let mut bytes = Vec::new();
    // One byte more than allowed, because a file may grow while it is read.
    let read = file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| failed(&error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(too_large(&name, None));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Source { name, text }),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            let byte = error.as_bytes().get(at).copied().unwrap_or_default();
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let source = Source { name, text };
            Err(Text::new(&source)
                .error(
                    at..at + 1,
                    format!("the file is not UTF-8: byte 0x{byte:02x} is at offset {at}"),
                    "save the file as UTF-8",
                )
                .into())
        }
    }
}

fn too_large(name: &str, bytes: Option<u64>) -> PolicyError {
    let is = bytes.map_or_else(|| "it".to_owned(), |bytes| format!("{bytes} bytes"));
    Diagnostic::of_file(
        name,
        format!(
            "the policy file is too large: {is} exceeds the bound of {MAX_FILE_BYTES} bytes (16 MiB)"
        ),
        if name.ends_with(SUFFIX) {
            "split it into several `.entities.json` files, or give labels to folders instead of files"
        } else {
            "split it into several `.cedar` files in one folder, or permit folders instead of files"
        },
    )
    .into()
}

/// Reads every `*.cedar` and `*.entities.json` file of a folder, sorted by name.
///
/// # Errors
/// The folder cannot be read or has no `.cedar` file, or any of the files is refused as by
/// [`read_source`]; all refusals are reported together.
pub fn read_folder(path: &Path) -> Result<Vec<Source>, PolicyError> {
    let name = path.display().to_string();
    let failed = |error: std::io::Error| {
        let message = match error.kind() {
            ErrorKind::NotFound => "there is no such policy folder".to_owned(),
            ErrorKind::NotADirectory => "this is not a folder".to_owned(),
            _ => format!("the policy folder cannot be read: {error}"),
        };
        PolicyError::from(Diagnostic::of_file(
            &name,
            message,
            "name a folder that has `.cedar` files in it, and that this user may read",
        ))
    };
    let mut files = Vec::new();
    let mut any = false;
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let name = file.file_name().unwrap_or_default().as_encoded_bytes();
        let policies = file.extension().is_some_and(|extension| extension == "cedar");
        any |= policies;
        if policies || name.ends_with(SUFFIX.as_bytes()) {
            files.push(file);
        }
    }
    if !any {
        return Err(Diagnostic::of_file(
            &name,
            "the folder has no `.cedar` file, so every action of every agent would be denied",
            "put a policy there; to deny everything on purpose, write `forbid(principal, action, resource);`",
        )
        .into());
    }
    files.sort();
    let mut sources = Vec::new();
    let mut problems = Vec::new();
    for file in &files {
        match read_source(file) {
            Ok(source) => sources.push(source),
            Err(error) => problems.extend_from_slice(error.diagnostics()),
        }
    }
    if problems.is_empty() { Ok(sources) } else { Err(PolicyError::new(problems)) }
}
