//! Changes other than by opening: each is a write on every name that it changes. Under fanotify they are
//! not judged, and that is checked too.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{Case, case, shared};
use crate::actor::EPERM;
use crate::events::{ALLOWED, DENIED, Event, FILE, OBSERVED};
use crate::policy::{on_path, with_base};
use crate::world::{World, file, ground};

/// One kind of change, and which of its names the policy speaks of.
#[derive(Clone, Copy)]
struct Change {
    name: &'static str,
    /// What events call it.
    operation: &'static str,
    /// `activity_id` of its events.
    activity: u64,
    /// The step of the actor: its words, of which those with a slash are beneath the test's folder.
    step: &'static [&'static str],
    /// The name that is forbidden, and its kind.
    target: (&'static str, &'static str),
    /// Whether the hook knows names, and so tells what is allowed.
    named: bool,
    subset: bool,
}

const fn change(
    name: &'static str,
    operation: &'static str,
    activity: u64,
    step: &'static [&'static str],
    target: (&'static str, &'static str),
) -> Change {
    Change { name, operation, activity, step, target, named: true, subset: false }
}

impl Change {
    const fn in_subset(mut self) -> Self {
        self.subset = true;
        self
    }

    /// Judged by the object alone.
    const fn unnamed(mut self) -> Self {
        self.named = false;
        self
    }
}

const CHANGES: &[Change] = &[
    change("mkdir", "mkdir", 1, &["mkdir", "/new"], ("Dir", "/new")),
    change("mkfifo", "create", 1, &["mkfifo", "/new"], ("File", "/new")),
    change("symlink", "symlink", 1, &["symlink", "target", "/new"], ("File", "/new")),
    change("unlink", "unlink", 4, &["unlink", "/file"], ("File", "/file")).in_subset(),
    change("rmdir", "rmdir", 4, &["rmdir", "/empty"], ("Dir", "/empty")),
    change("rename_from", "rename", 5, &["rename", "/file", "/new"], ("File", "/file")),
    change("rename_to", "rename", 5, &["rename", "/file", "/new"], ("File", "/new")).in_subset(),
    change("rename_over", "rename", 5, &["rename", "/file", "/other"], ("File", "/other")),
    change("rename_folder", "rename", 5, &["rename", "/empty", "/new"], ("Dir", "/empty")),
    change("exchange_one", "rename", 5, &["exchange", "/file", "/other"], ("File", "/file")),
    change("exchange_other", "rename", 5, &["exchange", "/file", "/other"], ("File", "/other")),
    change("link_from", "link", 99, &["link", "/file", "/new"], ("File", "/file")),
    change("link_to", "link", 99, &["link", "/file", "/new"], ("File", "/new")),
    change("truncate", "truncate", 3, &["cut", "/file"], ("File", "/file")),
    change("chmod", "chmod", 7, &["chmod", "/file"], ("File", "/file")),
    change("chown", "chown", 7, &["chown", "/file"], ("File", "/file")),
    change("utimes", "utimes", 6, &["utimes", "/file"], ("File", "/file")).unnamed(),
    change("setxattr", "setxattr", 6, &["setxattr", "/file"], ("File", "/file")).unnamed(),
    change("removexattr", "removexattr", 6, &["removexattr", "/file"], ("File", "/file")).unnamed(),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for change in CHANGES {
        let name = format!("judges_{}", change.name);
        let mut case = case(&name, move || shared(|world| judges(change, world)));
        case.subset = change.subset;
        cases.push(case);
    }
    cases.push(case("a_move_needs_read_of_what_it_moves", || shared(moves)).in_subset());
    cases.push(case("a_creation_that_is_denied_leaves_no_file", || shared(leaves_nothing)));
    cases
}

/// A folder with the files that changes act upon.
fn place(name: &str) -> Result<String> {
    let base = ground(name)?;
    for each in ["file", "other"] {
        file(&base.join(each), "text")?;
    }
    file(&base.join("empty/gone"), "")?;
    std::fs::remove_file(base.join("empty/gone"))?;
    Ok(base.display().to_string())
}

fn words(change: &Change, base: &str) -> Vec<String> {
    let whole = |word: &&str| {
        if word.starts_with('/') { format!("{base}{word}") } else { (*word).to_owned() }
    };
    change.step.iter().map(whole).collect()
}

/// What lies in a folder, with lengths, modes and times: what a change would alter.
fn look(base: &str) -> Result<Vec<String>> {
    use std::os::unix::fs::MetadataExt;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(base)? {
        let entry = entry?;
        let stat = entry.path().symlink_metadata()?;
        let (name, inode) = (entry.file_name().to_string_lossy().into_owned(), stat.ino());
        let what = (stat.len(), stat.mode(), stat.nlink(), stat.mtime());
        found.push(if stat.is_dir() { name } else { format!("{name} {inode} {what:?}") });
    }
    found.sort();
    Ok(found)
}

fn is_told(event: &Event, agent: &str, change: &Change, target: &str) -> bool {
    let named = event.path() == target || event.text(&["file_result", "path"]) == target;
    let unnamed = Path::new(target).file_name().is_some_and(|name| event.path() == name);
    event.agent() == agent
        && event.class() == FILE
        && event.text(&["unmapped", "operation"]) == change.operation
        && (named || !change.named && unnamed)
}

fn judges(change: &Change, world: &World) -> Result<()> {
    let lsm = world.has_lsm()?;
    let (kind, target) = change.target;
    let agent = |how: &str| format!("{how}-{}", change.name.replace('_', "-"));
    let everything = |base: &str| {
        on_path("granted", "permit", "write", "Dir", base)
            + &on_path("readable", "permit", "read", "Dir", base)
    };
    // Where the file system has no such attributes, or they were not there, the kernel says so itself.
    let lawful = |errno: i64| match change.operation {
        "setxattr" | "removexattr" => [0, 61, 95].contains(&errno),
        _ => errno == 0,
    };

    // Permitted: it happens, and is told.
    let name = agent("may");
    let base = place(&name)?;
    let target_there = format!("{base}{target}");
    let steps = words(change, &base);
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    let events = world.events();
    let output = world.agent(&name).policy(&with_base(&everything(&base)))?.act(&steps)?;
    ensure!(lawful(output.errno(steps[0])?), "it is permitted: {}", output.whole());
    if lsm && change.named {
        let event = events
            .wait("that it was allowed", |event| is_told(event, &name, change, &target_there))?;
        ensure!(
            event.verdict() == ALLOWED
                && event.policy() == "granted"
                && event.action() == "write"
                && event.activity() == change.activity,
            "the event says otherwise: {}",
            event.brief()
        );
    }

    // Forbidden: it does not happen, and is told.
    let name = agent("may-not");
    let base = place(&name)?;
    let target_there = format!("{base}{target}");
    let steps = words(change, &base);
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    let forbid = on_path("refused", "forbid", "write", kind, &target_there);
    let policy = with_base(&(everything(&base) + &forbid));
    let events = world.events();
    let before = look(&base)?;
    let output = world.agent(&name).policy(&policy)?.act(&steps)?;
    if !lsm {
        ensure!(lawful(output.errno(steps[0])?), "fanotify sees no changes: {}", output.whole());
        let told = events.so_far()?;
        let told = told.iter().find(|event| is_told(event, &name, change, &target_there));
        ensure!(told.is_none(), "fanotify tells of a change: {}", told.map_or("", Event::action));
        return Ok(());
    }
    output.expect(steps[0], EPERM)?;
    let after = look(&base)?;
    ensure!(before == after, "it was changed: {before:?} to {after:?}");
    let event =
        events.wait("that it was denied", |event| is_told(event, &name, change, &target_there))?;
    ensure!(
        event.verdict() == DENIED
            && event.policy() == "refused"
            && event.action() == "write"
            && event.activity() == change.activity,
        "the event says otherwise: {}",
        event.brief()
    );

    // A bystander may, and is not told of.
    let events = world.events();
    let output = world.bystander(&steps)?;
    ensure!(lawful(output.errno(steps[0])?), "a bystander may not: {}", output.whole());

    // In audit mode it happens, and is told.
    let name = agent("might-not");
    let base = place(&name)?;
    let target_there = format!("{base}{target}");
    let steps = words(change, &base);
    let steps: Vec<&str> = steps.iter().map(String::as_str).collect();
    let forbid = on_path("refused", "forbid", "write", kind, &target_there);
    let policy = with_base(&(everything(&base) + &forbid));
    let output = world.agent(&name).policy(&policy)?.option("--audit").act(&steps)?;
    ensure!(lawful(output.errno(steps[0])?), "audit denies: {}", output.whole());
    let event = events.wait("that it would have been denied", |event| {
        is_told(event, &name, change, &target_there)
    })?;
    ensure!(
        event.verdict() == OBSERVED && event.policy() == "refused",
        "the event says otherwise: {}",
        event.brief()
    );
    let stray = events.so_far()?.into_iter().find(|event| {
        event.agent() != name && event.text(&["unmapped", "operation"]) == change.operation
    });
    ensure!(stray.is_none(), "the bystander is told of: {:?}", stray.map(|event| event.brief()));
    Ok(())
}

fn moves(world: &World) -> Result<()> {
    let base = ground("dropbox")?;
    let closed = file(&base.join("closed/file"), "text")?;
    file(&base.join("open/other"), "text")?;
    let base = base.display().to_string();
    let policy = with_base(
        &(on_path("drop", "permit", "write", "Dir", &base)
            + &on_path("open", "permit", "read", "Dir", &format!("{base}/open"))),
    );
    let there = format!("{base}/open/mine");
    let output = world.agent("dropbox").policy(&policy)?.act(&[
        "link",
        &closed,
        &there,
        "then",
        "rename",
        &closed,
        &there,
        "then",
        "open-read",
        &there,
    ])?;
    if !world.has_lsm()? {
        // Not judged; where the kernel has Landlock, the ceiling lets nothing move to where it may be read.
        return Ok(());
    }
    output.expect("link", EPERM)?;
    output.expect("rename", EPERM)?;
    ensure!(output.errno("open-read")? != 0, "it was moved: {}", output.whole());
    world
        .all_events()
        .wait("that it may not be read", |event| {
            event.agent() == "dropbox"
                && event.action() == "read"
                && event.verdict() == DENIED
                && event.path() == closed
                && event.text(&["file_result", "path"]) == there
        })
        .map(drop)
}

fn leaves_nothing(world: &World) -> Result<()> {
    let base = ground("nothing")?;
    let path = base.join("new");
    let new = path.display().to_string();
    let events = world.events();
    let output = world.agent("nothing").policy(&with_base(""))?.act(&["create", &new])?;
    ensure!(output.errno("create")? != 0, "it was made: {}", output.whole());
    if world.has_lsm()? {
        output.expect("create", EPERM)?;
        events.wait("the denial", |event| event.path() == new && event.verdict() == DENIED)?;
        ensure!(!path.exists(), "a denied creation leaves a file");
    }
    Ok(())
}
