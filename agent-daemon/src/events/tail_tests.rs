use super::*;
use crate::sinks::{FileSink, Sink as _};

/// A folder of the test's own, gone when it ends.
pub(crate) struct Folder(pub PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let path = fs::canonicalize(std::env::temp_dir())
            .unwrap()
            .join(format!("ambit-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn rest(tail: &mut Tail) -> String {
    let mut out = Vec::new();
    while tail.read(&mut out).unwrap() {}
    String::from_utf8(out).unwrap()
}

#[test]
fn a_line_is_given_when_its_end_is_there() {
    let folder = Folder::new("tail-partial");
    let path = folder.0.join("e");
    fs::write(&path, "one\ntw").unwrap();
    let mut tail = Tail::open(&path, From::Start).unwrap();
    assert_eq!(rest(&mut tail), "one\n");
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    io::Write::write_all(&mut file, b"o\n").unwrap();
    assert_eq!(rest(&mut tail), "two\n");
    let mut end = Tail::open(&path, From::End).unwrap();
    assert_eq!(rest(&mut end), "");
}

#[test]
fn no_line_is_missed_or_repeated_across_rotations() {
    let folder = Folder::new("tail-rotate");
    let path = folder.0.join("events.jsonl");
    let mut sink = FileSink::open(&path, 100, 50).unwrap();
    let mut tail = Tail::open(&path, From::Start).unwrap();
    let (mut given, mut expected) = (String::new(), String::new());
    for n in 0..200 {
        let line = format!("{{\"n\":{n}}}\n");
        expected += &line;
        sink.write(line.as_bytes(), 1).unwrap();
        sink.flush().unwrap();
        // Several rotations between two looks, now and then.
        if n % 37 == 0 {
            given += &rest(&mut tail);
        }
    }
    given += &rest(&mut tail);
    assert_eq!(given, expected);
    let mut all = Tail::open(&path, From::Oldest).unwrap();
    assert_eq!(rest(&mut all), expected);
}

#[test]
fn a_file_emptied_in_place_is_read_from_its_beginning() {
    let folder = Folder::new("tail-truncate");
    let path = folder.0.join("e");
    fs::write(&path, "a long first line\n").unwrap();
    let mut tail = Tail::open(&path, From::Start).unwrap();
    assert_eq!(rest(&mut tail), "a long first line\n");
    fs::OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut f| io::Write::write_all(&mut f, b"new\n"))
        .unwrap();
    assert_eq!(rest(&mut tail), "new\n");
}
