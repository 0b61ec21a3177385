//! Programs by content: what runs and what does not, under whatever name, and never by what it was before.
//!
//! They lie on an ext4 of the tests' own, since only there, on xfs and on f2fs is it told when a file changes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use sha2::{Digest, Sha256};

use super::{Case, case, fresh};
use crate::actor::EPERM;
use crate::events::DENIED;
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

/// A copy of the actor with a few bytes more, by its name on the disk: its path, and its digest.
pub(super) fn program(name: &str, more: &str) -> Result<(String, String)> {
    let path = tool(&Path::new(DISK).join(name))?;
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
    on_path("disk-read", "permit", "read", "Dir", DISK)
        + &on_path("disk-write", "permit", "write", "Dir", DISK)
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
    let events = world.events();
    let output = world.agent("contents").policy(&policy)?.act(&[
        "run", &good, "must", "nothing", "then", // nobody knows it yet
        "run-soon", &good, "must", "nothing", "then", "copy", &good, &copy, "then", "run-soon",
        &copy, "must", "nothing", "then", "run-soon", &script,
    ])?;
    output.expect(&format!("run {good}"), EPERM)?;
    output.expect(&format!("run-soon {good}"), 0)?;
    output.expect("copy", 0)?;
    output.expect(&format!("run-soon {copy}"), 0)?;
    output.expect("run-soon /ground/disk/script", 0)?;
    events.wait("that nobody knew it", |event| {
        event.path() == good
            && event.verdict() == DENIED
            && event.text(&["unmapped", "reason"]) == "hash_unknown"
    })?;
    // One byte differs: first it is not known, then it is known and not permitted.
    let output =
        world.agent("contents").policy(&policy)?.act(&["run-soon", &other, "must", "nothing"])?;
    output.expect("run-soon", EPERM)?;
    events.wait("that the other one is known and not permitted", |event| {
        event.path() == other
            && event.verdict() == DENIED
            && event.text(&["unmapped", "reason"]) == "no_permit"
    })?;
    world.bystander(&["run", &other, "must", "nothing"])?.expect("run", 0)?;
    let metrics = world.metrics()?;
    ensure!(
        metrics.value("ambit_program_hashes", &[]).unwrap_or_default() >= 3.0,
        "too few are known"
    );
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
    // Where nobody can tell when a file changes, its content stays unknown.
    output.expect(&format!("run-soon {beyond}"), EPERM)?;
    events.wait("that its content is not known", |event| {
        event.path() == beyond && event.text(&["unmapped", "reason"]) == "hash_unknown"
    })?;
    world
        .wait("the daemon says why", || Ok(world.log().contains("stays unknown: only on ext4")))?;
    world.bystander(&["run", &beyond, "must", "nothing"])?.expect("run", 0)
}
