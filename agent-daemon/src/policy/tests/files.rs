//! Policy files and folders that are not as they should be.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::super::{MAX_FILE_BYTES, Policies, read_folder, read_source};

/// A folder of this test's own, gone when it ends.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ambit-policy-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn missing_file_and_folder() {
    let error = read_source("/nonexistent/x.cedar".as_ref()).unwrap_err().to_string();
    assert!(
        error.contains("no such policy file") && error.contains("/nonexistent/x.cedar"),
        "{error}"
    );
    let error = read_folder("/nonexistent".as_ref()).unwrap_err().to_string();
    assert!(error.contains("no such policy folder"), "{error}");
}

#[test]
fn folder_where_a_file_is_expected_and_the_reverse() {
    let folder = Folder::new("kinds");
    let error = read_source(&folder.0).unwrap_err().to_string();
    assert!(error.contains("this is a folder"), "{error}");
    let file = folder.write("a.cedar", b"");
    let error = read_folder(&file).unwrap_err().to_string();
    assert!(error.contains("not a folder"), "{error}");
    let error = read_source("/dev/zero".as_ref()).unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
}

#[test]
fn empty_file_is_told_what_it_would_mean() {
    let folder = Folder::new("empty");
    for text in ["", " \n", "// only a comment\n"] {
        let source = read_source(&folder.write("a.cedar", text.as_bytes())).unwrap();
        let error = Policies::check(&[source]).unwrap_err().to_string();
        assert!(error.contains("leave every action of every agent denied"), "{error}");
        assert!(error.contains("write `forbid(principal, action, resource);`"), "{error}");
    }
    assert!(Policies::check(&[]).is_err());
}

#[test]
fn not_utf8_is_refused_with_the_place_of_the_byte() {
    let folder = Folder::new("utf8");
    let path =
        folder.write("a.cedar", b"// fine\n// caf\xe9\npermit(principal, action, resource);");
    let error = read_source(&path).unwrap_err().to_string();
    assert!(error.contains("byte 0xe9 is at offset 14"), "{error}");
    assert!(error.contains("a.cedar:2:7"), "{error}");
}

#[test]
fn huge_file_is_refused_without_reading_it() {
    let folder = Folder::new("huge");
    let path = folder.write("a.cedar", b"");
    for bytes in [64 << 20, MAX_FILE_BYTES + 1] {
        File::options().write(true).open(&path).unwrap().set_len(bytes).unwrap();
        let start = Instant::now();
        let error = read_source(&path).unwrap_err().to_string();
        assert!(start.elapsed() < Duration::from_secs(1));
        assert!(
            error.contains(&format!("{bytes} bytes exceeds the bound of 16777216 bytes")),
            "{error}"
        );
    }
    File::options().write(true).open(&path).unwrap().set_len(MAX_FILE_BYTES).unwrap();
    assert!(read_source(&path).is_ok());
}

#[test]
fn folder_gives_its_cedar_files_sorted_by_name() {
    let folder = Folder::new("sorted");
    let error = read_folder(&folder.0).unwrap_err().to_string();
    assert!(error.contains("no `.cedar` file"), "{error}");
    for name in ["b.cedar", "a.cedar", "c.txt", "10.cedar"] {
        folder.write(name, b"permit(principal, action, resource);");
    }
    let sources = read_folder(&folder.0).unwrap();
    let names: Vec<&str> = sources.iter().map(|one| one.name.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["10.cedar", "a.cedar", "b.cedar"]);
    assert_eq!(Policies::check(&sources).unwrap().report().len(), 3);
    folder.write("d.cedar", b"\xff");
    folder.write("e.cedar", b"\xfe");
    let error = read_folder(&folder.0).unwrap_err();
    assert_eq!(error.diagnostics().len(), 2);
}
