use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::events::tail::tests::Folder;

fn open_default(path: &Path) -> Result<FileSink, SinkError> {
    FileSink::open(path, 1 << 20, 3)
}

fn refusal(path: &Path) -> String {
    match open_default(path) {
        Err(error @ SinkError::Refused { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_file_is_made_for_its_owner_alone_and_appended_to() {
    let folder = Folder::new("sink-make");
    let path = folder.0.join("events.jsonl");
    for line in ["a\n", "b\n"] {
        let mut sink = open_default(&path).unwrap();
        sink.write(line.as_bytes(), 1).unwrap();
        sink.flush().unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "a\nb\n");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn no_link_is_followed_anywhere_on_the_path() {
    let folder = Folder::new("sink-link");
    let victim = folder.0.join("victim");
    fs::write(&victim, "").unwrap();
    let link = folder.0.join("events.jsonl");
    symlink(&victim, &link).unwrap();
    assert!(refusal(&link).contains("it is a link"));
    let real = folder.0.join("real");
    fs::create_dir(&real).unwrap();
    symlink(&real, folder.0.join("alias")).unwrap();
    let text = refusal(&folder.0.join("alias/events.jsonl"));
    assert!(text.contains("alias: it is a link"), "{text}");
    assert!(text.contains("readlink -f"), "{text}");
    assert_eq!(fs::read_dir(&real).unwrap().count(), 0);
    assert_eq!(fs::read(&victim).unwrap(), b"");
}

#[test]
fn what_others_may_use_is_refused_with_what_to_do() {
    let folder = Folder::new("sink-refuse");
    let path = folder.0.join("e");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(
        refusal(&path).ends_with("its mode is 0644, so that others may use it; chmod it to 0600")
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(&path, folder.0.join("second")).unwrap();
    assert!(refusal(&path).contains("2 names"));
    let open = folder.0.join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(refusal(&open.join("e")).contains("anybody may replace"));
    nix::unistd::mkfifo(&folder.0.join("fifo"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    assert!(refusal(&folder.0.join("fifo")).contains("a FIFO"));
    assert!(refusal(&folder.0).contains("it is a folder"));
    if geteuid().is_root() {
        let path = folder.0.join("theirs");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
        assert!(refusal(&path).contains("belongs to user 65534"));
    }
}

#[test]
fn a_missing_folder_is_an_error_that_names_it() {
    let folder = Folder::new("sink-missing");
    let error = open_default(&folder.0.join("no/e")).unwrap_err().to_string();
    assert!(error.contains("/no: cannot open the folder"), "{error}");
}

#[test]
fn size_is_bounded_lines_are_whole_and_none_is_lost_before_its_time() {
    let folder = Folder::new("sink-rotate");
    let path = folder.0.join("e");
    let mut sink = FileSink::open(&path, 64, 3).unwrap();
    for n in 0..100 {
        sink.write(format!("{n:09}\n").as_bytes(), 1).unwrap();
    }
    sink.flush().unwrap();
    let read = |name: &str| fs::read_to_string(folder.0.join(name)).unwrap();
    let all = read("e.2") + &read("e.1") + &read("e");
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 3);
    for name in ["e", "e.1", "e.2"] {
        assert!(read(name).len() <= 64 && read(name).ends_with('\n'));
    }
    let first = 100 - all.lines().count();
    let expected: String = (first..100).map(|n| format!("{n:09}\n")).collect();
    assert_eq!(all, expected);
    let names: Vec<_> = ["e", "e.1", "e.2"].map(|n| folder.0.join(n)).into();
    assert_eq!(sink.names(), names);
}

#[test]
fn one_kept_file_starts_over() {
    let folder = Folder::new("sink-one");
    let path = folder.0.join("e");
    let mut sink = FileSink::open(&path, 10, 1).unwrap();
    sink.write(b"12345678\n12345679\n", 2).unwrap();
    sink.flush().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "12345679\n");
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1);
}

#[test]
fn a_line_that_a_crash_cut_does_not_swallow_the_next() {
    let folder = Folder::new("sink-mend");
    let path = folder.0.join("e");
    drop(open_default(&path).unwrap());
    fs::write(&path, "{\"half").unwrap();
    let mut sink = open_default(&path).unwrap();
    sink.write(b"{}\n", 1).unwrap();
    sink.flush().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"half\n{}\n");
}

#[test]
fn a_full_disk_holds_then_counts_then_recovers() {
    let folder = Folder::new("sink-full");
    let path = folder.0.join("e");
    let mut sink = FileSink::open(&path, 1 << 30, 3).unwrap();
    // Every write to it fails with ENOSPC, as on a full disk.
    let good = std::mem::replace(
        &mut sink.file,
        fs::OpenOptions::new().write(true).open("/dev/full").unwrap(),
    );
    let line = [b'x'; 1023].iter().chain(b"\n").copied().collect::<Vec<u8>>();
    let (mut given, mut lost) = (0, 0);
    for _ in 0..2 * HOLD / line.len() {
        given += 1;
        if let Err(SinkError::Write { lost: now, source, .. }) = sink.write(&line, 1) {
            assert_eq!(source.raw_os_error(), Some(Errno::ENOSPC as i32));
            lost += now;
        }
    }
    assert!(lost > 0 && sink.lost() == lost);
    let error = sink.flush().unwrap_err().to_string();
    assert!(error.contains("0 events lost now"), "{error}");
    sink.file = good;
    sink.flush().unwrap();
    let written = fs::read(&path).unwrap();
    assert_eq!(written.len() as u64, (given - lost) * line.len() as u64);
    assert!(written.chunks(line.len()).all(|chunk| chunk == line));
}

#[test]
fn the_registry_opens_every_kind_and_checks_its_options() {
    let folder = Folder::new("sink-registry");
    let options = Options { target: Some(folder.0.join("e")), ..Options::default() };
    let file = super::super::kind("file").unwrap();
    let stdout = super::super::kind("stdout").unwrap();
    assert!((file.open)(&options).is_ok() && (file.open)(&Options::default()).is_err());
    assert!((stdout.open)(&options).is_err() && (stdout.open)(&Options::default()).is_ok());
    assert!(super::super::kind("nonsense").is_none());
}
