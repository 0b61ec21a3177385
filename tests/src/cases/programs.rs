//! Programs by content: what runs and what does not, under whatever name, and never by what it was before.
//!
//! They lie on an ext4 of the tests' own, since only there, on xfs and on f2fs is it told when a file changes. Where
//! the kernel's IMA is asked, every first try is judged, on tmpfs and overlays too.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use sha2::{Digest, Sha256};

use super::objects::{Mounted, overlay};
use super::{Case, case, fresh};
use crate::actor::EPERM;
use crate::events::{DENIED, Events};
use crate::policy::{on_path, with_base};
use crate::stage::{GROUND, USER, make_folder};
use crate::world::{Settings, World, ground, tool};

/// Where the ext4 is mounted.
const DISK: &str = "/ground/disk";
/// Where a test guest has one.
const GUEST_DISK: &str = "/mnt/ext4";
/// What a test may take that waits until change times are past.
const LONG: Duration = Duration::from_secs(120);

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("runs_a_program_by_its_content", || on_disk(permitted)).alone().within(LONG),
        case("runs_at_once_what_is_named_by_path_and_content", || on_disk(ahead))
            .alone()
            .within(LONG),
        case("forbids_a_content_under_every_name", || on_disk(forbidden))
            .alone()
            .within(LONG)
            .in_subset(),
        case("never_runs_a_content_that_was_rewritten", || on_disk(rewritten)).alone().within(LONG),
        case("asks_for_content_only_where_it_matters", || on_disk(elsewhere)).alone().within(LONG),
        case("permits_a_content_at_the_first_try", || without_disk("first", permitted_at_once))
            .alone()
            .in_subset(),
        case("never_runs_on_tmpfs_what_was_rewritten", || {
            without_disk("memory", rewritten_in_memory)
        })
        .alone()
        .within(LONG),
        case("forbids_a_content_on_an_overlay_at_the_first_try", || {
            without_disk("layers", forbidden_on_overlay)
        })
        .alone()
        .in_subset(),
        case("maps_as_code_by_content_at_the_first_try", || without_disk("mapped", mapped)).alone(),
    ]
}

/// Gives a test a world with an ext4 at [`DISK`].
pub(super) fn on_disk(test: impl FnOnce(&World) -> Result<()>) -> Result<()> {
    let settings = Settings { filesystems: vec![DISK.to_owned()], ..Settings::default() };
    fresh(settings, |world| {
        make_folder(Path::new(DISK))?;
        const NONE: Option<&str> = None;
        if world.stage.is_guest() {
            let place = Path::new(GUEST_DISK).join("programs");
            let _ = fs::remove_dir_all(&place);
            make_folder(&place)?;
            mount(Some(&place), DISK, NONE, MsFlags::MS_BIND, NONE).context("cannot bind it")?;
        } else {
            let image = format!("{GROUND}/.image");
            fs::File::create(&image)?.set_len(128 << 20)?;
            for words in [
                &["mke2fs", "-q", "-F", "-t", "ext4", &image][..],
                &["mount", "-o", "loop", &image, DISK],
            ] {
                let done = Command::new(words[0]).args(&words[1..]).output();
                let done = done.with_context(|| format!("cannot start {}", words[0]))?;
                let said = String::from_utf8_lossy(&done.stderr).into_owned();
                ensure!(done.status.success(), "{words:?}: {said}");
            }
        }
        std::os::unix::fs::chown(DISK, Some(USER), Some(USER))?;
        world.start()?;
        test(world)
    })
}

/// Gives a test a world with a folder of its own that is a tmpfs, where the kernel's IMA is asked; elsewhere nothing
/// is to be seen there.
fn without_disk(name: &str, test: impl FnOnce(&World, &Path) -> Result<()>) -> Result<()> {
    fresh(Settings::default(), |world| {
        let base = ground(name)?;
        let tmpfs = Mounted::new(Path::new("none"), &base, Some("tmpfs"), None)?;
        std::os::unix::fs::chown(tmpfs.path(), Some(USER), Some(USER))?;
        world.start()?;
        if world.has_ima()? { test(world, tmpfs.path()) } else { Ok(()) }
    })
}

/// A copy of the actor with a few bytes more, by its name on the disk: its path, and its digest.
pub(super) fn program(name: &str, more: &str) -> Result<(String, String)> {
    program_at(&Path::new(DISK).join(name), more)
}

/// The same anywhere.
fn program_at(path: &Path, more: &str) -> Result<(String, String)> {
    let path = tool(path)?;
    let mut bytes = fs::read(&path)?;
    bytes.extend(more.as_bytes());
    fs::write(&path, &bytes)?;
    std::os::unix::fs::chown(&path, Some(USER), Some(USER))?;
    Ok((path, digest(&bytes)))
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn by_content(id: &str, how: &str, resource: &str, digest: &str) -> String {
    format!(
        "@id({id:?}) {how} (principal, action == Action::\"exec\", {resource}) \
         when {{ resource has sha256 && resource.sha256 == {digest:?} }};\n"
    )
}

/// Everything in [`DISK`] may be read and written.
fn open() -> String {
    open_in(DISK)
}

/// The same of any folder.
fn open_in(folder: &str) -> String {
    on_path("disk-read", "permit", "read", "Dir", folder)
        + &on_path("disk-write", "permit", "write", "Dir", folder)
}

/// Writes a byte over the last one of a program, as somebody who is no agent.
fn end_with(path: &str, byte: u8) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::options().write(true).open(path)?;
    let last = file.metadata()?.len() - 1;
    Ok(file.write_all_at(&[byte], last)?)
}

/// Waits for the denial of a program, which must have this reason and this rule.
fn denied(events: &Events, path: &str, reason: &str, rule: &str) -> Result<()> {
    let event = events.wait("the denial", |event| {
        event.path() == path && event.verdict() == DENIED && event.action() == "exec"
    })?;
    let told = event.text(&["unmapped", "reason"]);
    ensure!(told == reason && event.policy() == rule, "{}", event.brief());
    Ok(())
}

fn permitted_at_once(world: &World, base: &Path) -> Result<()> {
    let (good, digest) = program_at(&base.join("good"), "good")?;
    let (other, _) = program_at(&base.join("other"), "goad")?;
    let [copy, moved] = ["copy", "moved"].map(|name| base.join(name).display().to_string());
    let base = base.display().to_string();
    let policy = with_base(&(open_in(&base) + &by_content("good", "permit", "resource", &digest)));
    let events = world.events();
    let output = world.agent("first").policy(&policy)?.act(&[
        "run", &good, "must", "nothing", "then", "copy", &good, &copy, "then", "run", &copy,
        "must", "nothing", "then", "rename", &good, &moved, "then", "run", &moved, "must",
        "nothing", "then", "run", &other, "must", "nothing",
    ])?;
    for step in ["copy".to_owned(), "rename".to_owned()] {
        output.expect(&step, 0)?;
    }
    for path in [&good, &copy, &moved] {
        output.expect(&format!("run {path}"), 0)?;
    }
    // One byte differs.
    output.expect(&format!("run {other}"), EPERM)?;
    denied(&events, &other, "no_permit", "")?;
    let labels = [("agent", "first"), ("action", "exec"), ("verdict", "denied")];
    let counted = world.metrics()?.value("ambit_actions_total", &labels);
    ensure!(counted == Some(1.0), "{counted:?} denials are counted");
    world.bystander(&["run", &other, "must", "nothing"])?.expect("run", 0)
}

fn rewritten_in_memory(world: &World, base: &Path) -> Result<()> {
    let (good, digest) = program_at(&base.join("good"), "A")?;
    let base = base.display().to_string();
    let policy = with_base(&(open_in(&base) + &by_content("good", "permit", "resource", &digest)));
    let agent = world.agent("memory").policy(&policy)?;
    for _ in 0..3 {
        let events = world.events();
        agent.act(&["run", &good, "must", "nothing"])?.expect("run", 0)?;
        end_with(&good, b'B')?;
        agent.act(&["run", &good, "must", "nothing"])?.expect("run", EPERM)?;
        denied(&events, &good, "no_permit", "")?;
        end_with(&good, b'A')?;
    }
    // The agent itself, at its own pace, and through a mapping, which leaves no trace on a tmpfs.
    let output = agent.act(&[
        "rewrite-and-run",
        &good,
        "AB",
        "30",
        "then",
        "map-and-run",
        &good,
        "AB",
        "then",
        "run",
        &good,
        "must",
        "nothing",
    ])?;
    output.expect("rewrite-and-run", 0)?;
    output.expect("map-and-run", 0)?;
    output.expect(&format!("run {good}"), 0)
}

fn forbidden_on_overlay(world: &World, base: &Path) -> Result<()> {
    let (lower, digest) = program_at(&base.join("lower/bad"), "bad")?;
    program_at(&base.join("lower/good"), "good")?;
    let overlay = overlay(base)?;
    let merged = overlay.path().display().to_string();
    std::os::unix::fs::chown(overlay.path(), Some(USER), Some(USER))?;
    let [bad, good, copy] = ["bad", "good", "copy"].map(|name| format!("{merged}/{name}"));
    let policy = with_base(
        &(open_in(&merged)
            + &on_path("layers-exec", "permit", "exec", "Dir", &merged)
            + &by_content("bad", "forbid", &format!("resource in Dir::{merged:?}"), &digest)),
    );
    let agent = world.agent("layers").policy(&policy)?;
    let events = world.events();
    let output = agent.act(&[
        "run", &bad, "must", "nothing", "then", "copy", &bad, &copy, "then", "run", &copy, "must",
        "nothing", "then", "run", &good, "must", "nothing",
    ])?;
    output.expect("copy", 0)?;
    for path in [&bad, &copy] {
        output.expect(&format!("run {path}"), EPERM)?;
        denied(&events, path, "forbidden", "bad")?;
    }
    output.expect(&format!("run {good}"), 0)?;
    // Copied up it is another file; then it has the other content.
    end_with(&good, b'D')?;
    agent.act(&["run", &good, "must", "nothing"])?.expect("run", 0)?;
    fs::write(&good, fs::read(&lower)?)?;
    agent.act(&["run", &good, "must", "nothing"])?.expect("run", EPERM)?;
    denied(&events, &good, "forbidden", "bad")?;
    world.bystander(&["run", &bad, "must", "nothing"])?.expect("run", 0)
}

fn mapped(world: &World, base: &Path) -> Result<()> {
    let (bad, digest) = program_at(&base.join("bad.so"), "bad")?;
    let (good, _) = program_at(&base.join("good.so"), "good")?;
    let base = base.display().to_string();
    let policy = with_base(
        &(open_in(&base)
            + &on_path("mapped-exec", "permit", "exec", "Dir", &base)
            + &by_content("bad", "forbid", &format!("resource in Dir::{base:?}"), &digest)),
    );
    let events = world.events();
    let output = world.agent("mapped").policy(&policy)?.act(&[
        "map-exec",
        &bad,
        "then",
        "map-exec",
        &good,
        "then",
        "protect-exec",
        &good,
    ])?;
    output.expect(&format!("map-exec {bad}"), EPERM)?;
    denied(&events, &bad, "forbidden", "bad")?;
    output.expect(&format!("map-exec {good}"), 0)?;
    // What is mapped already is not read in the middle of the call, so nobody knows it.
    output.expect("protect-exec", EPERM)?;
    denied(&events, &good, "hash_unknown", "")
}

fn permitted(world: &World) -> Result<()> {
    let (good, digest) = program("good", "good")?;
    let (other, _) = program("other", "goad")?;
    let copy = format!("{DISK}/copy");
    let script = format!("{DISK}/script");
    fs::write(&script, "#!/bin/sh\nexit 0\n")?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    let of_script = self::digest(&fs::read(&script)?);
    let policy = with_base(
        &(open()
            + &by_content("good", "permit", "resource", &digest)
            + &by_content("script", "permit", "resource", &of_script)),
    );
    let has_ima = world.has_ima()?;
    let events = world.events();
    let output = world.agent("contents").policy(&policy)?.act(&[
        "run", &good, "must", "nothing", "then", // nobody knows it yet, unless IMA is asked
        "run-soon", &good, "must", "nothing", "then", "copy", &good, &copy, "then", "run-soon",
        &copy, "must", "nothing", "then", "run-soon", &script,
    ])?;
    output.expect(&format!("run {good}"), if has_ima { 0 } else { EPERM })?;
    output.expect(&format!("run-soon {good}"), 0)?;
    output.expect("copy", 0)?;
    output.expect(&format!("run-soon {copy}"), 0)?;
    output.expect("run-soon /ground/disk/script", 0)?;
    if !has_ima {
        events.wait("that nobody knew it", |event| {
            event.path() == good
                && event.verdict() == DENIED
                && event.text(&["unmapped", "reason"]) == "hash_unknown"
        })?;
    }
    // One byte differs: it may not be known at first, then it is known and not permitted.
    let output =
        world.agent("contents").policy(&policy)?.act(&["run-soon", &other, "must", "nothing"])?;
    output.expect("run-soon", EPERM)?;
    events.wait("that the other one is known and not permitted", |event| {
        event.path() == other
            && event.verdict() == DENIED
            && event.text(&["unmapped", "reason"]) == "no_permit"
    })?;
    world.bystander(&["run", &other, "must", "nothing"])?.expect("run", 0)?;
    // What IMA read, the daemon reads too, so that it need not be read at every run.
    world.wait("they are known", || {
        Ok(world.metrics()?.value("ambit_program_hashes", &[]).unwrap_or_default() >= 4.0)
    })?;
    let explained = world.ambit(&[
        "policy",
        "explain",
        "--agent",
        "contents",
        "--policy",
        "/etc/ambit/runs/contents.cedar",
        "exec",
        &good,
    ])?;
    ensure!(
        explained.stdout.contains(&format!("its SHA-256 is {digest}, which a policy names")),
        "{}",
        explained.whole()
    );
    Ok(())
}

fn ahead(world: &World) -> Result<()> {
    let (good, digest) = program("good", "good")?;
    // Its change time is past by then, as that of an installed program is.
    std::thread::sleep(Duration::from_millis(300));
    let named = format!("resource == Program::{good:?}");
    let policy = with_base(&(open() + &by_content("good", "permit", &named, &digest)));
    let output = world.agent("ahead").policy(&policy)?.act(&["run", &good, "must", "nothing"])?;
    output.expect("run", 0)?;
    world.bystander(&["run", &good, "must", "nothing"])?.expect("run", 0)
}

fn forbidden(world: &World) -> Result<()> {
    let (bad, digest) = program("bad", "bad")?;
    let (good, _) = program("good", "good")?;
    let [moved, link, copy] = ["moved", "link", "copy"].map(|name| format!("{DISK}/{name}"));
    let policy = with_base(
        &(open()
            + &on_path("disk-exec", "permit", "exec", "Dir", DISK)
            + &by_content("bad", "forbid", "resource in Dir::\"/ground\"", &digest)),
    );
    let agent = world.agent("forbidden").policy(&policy)?;
    let events = world.events();
    let output = agent.act(&[
        "run-soon", &bad, "must", "nothing", "then", "copy", &bad, &copy, "then", "run-soon",
        &copy, "must", "nothing", "then", "link", &bad, &link, "then", "run-soon", &link, "must",
        "nothing", "then", "rename", &bad, &moved, "then", "run-soon", &moved, "must", "nothing",
        "then", "run-soon", &good, "must", "nothing",
    ])?;
    for path in [&bad, &copy, &link, &moved] {
        output.expect(&format!("run-soon {path}"), EPERM)?;
        events.wait("that the content is forbidden under this name", |event| {
            event.path() == *path && event.verdict() == DENIED && event.policy() == "bad"
        })?;
    }
    output.expect(&format!("run-soon {good}"), 0)?;
    world.bystander(&["run", &moved, "must", "nothing"])?.expect("run", 0)
}

fn rewritten(world: &World) -> Result<()> {
    let (good, digest) = program("good", "A")?;
    let policy = with_base(&(open() + &by_content("good", "permit", "resource", &digest)));
    // Its last byte is changed and changed back, and it never runs while it is another.
    let soon = ["run-soon", &good, "must", "nothing", "then"];
    let mut steps = soon.to_vec();
    let rounds = if world.stage.guest { "60" } else { "300" };
    steps.extend(["rewrite-and-run", &good, "AB", rounds, "then"]);
    steps.extend(soon);
    // The same through a mapping that is held while the daemon is asked to read it.
    steps.extend(["map-and-run", &good, "AB", "then"]);
    steps.extend(&soon[..4]);
    let output = world.agent("rewritten").policy(&policy)?.act(&steps)?;
    output.expect("rewrite-and-run", 0)?;
    output.expect("map-and-run", 0)?;
    let all = output.steps();
    let runs = all.iter().filter(|step| {
        step["step"].as_str().is_some_and(|step| step.starts_with("run-soon")) && step["errno"] == 0
    });
    ensure!(runs.count() == 3, "{}", output.whole());
    world.bystander(&["run", &good, "must", "nothing"])?.expect("run", 0)
}

fn elsewhere(world: &World) -> Result<()> {
    let base = ground("contents")?;
    let (good, digest) = program("good", "good")?;
    let plain = tool(&base.join("plain"))?;
    let beyond = base.join("beyond").display().to_string();
    fs::copy(&good, &beyond)?;
    let policy = with_base(
        &(open()
            + &on_path("plain", "permit", "exec", "Program", &plain)
            + &by_content("good", "permit", "resource", &digest)),
    );
    let events = world.events();
    let output = world
        .agent("elsewhere")
        .policy(&policy)?
        .act(&["run", &plain, "must", "nothing", "then", "run-soon", &beyond, "must", "nothing"])?;
    // What is permitted anyway is not asked for its content.
    output.expect(&format!("run {plain}"), 0)?;
    if world.has_ima()? {
        return output.expect(&format!("run-soon {beyond}"), 0);
    }
    // Where nobody can tell when a file changes, its content stays unknown.
    output.expect(&format!("run-soon {beyond}"), EPERM)?;
    events.wait("that its content is not known", |event| {
        event.path() == beyond && event.text(&["unmapped", "reason"]) == "hash_unknown"
    })?;
    world
        .wait("the daemon says why", || Ok(world.log().contains("stays unknown: only on ext4")))?;
    world.bystander(&["run", &beyond, "must", "nothing"])?.expect("run", 0)
}
