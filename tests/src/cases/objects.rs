//! Objects: what is forbidden stays so under every name. Under fanotify a rule is about a path, and that
//! is checked too.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Case, case, shared};
use crate::actor::EPERM;
use crate::events::DENIED;
use crate::policy::{on_path, with_base};
use crate::world::{World, file, ground};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("denies_open_through_hard_link_made_before_policy", || shared(old_link)).in_subset(),
        case("denies_open_through_hard_link_out_of_a_forbidden_folder", || shared(link_out)),
        case("denies_links_to_what_may_not_be_read", || shared(new_link)),
        case("denies_open_after_the_folder_above_was_renamed", || shared(renamed)),
        case("denies_open_through_a_bind_mount", || shared(bound)),
        case("denies_open_beneath_a_folder_inside_the_forbidden_one", || shared(bound_inside)),
        case("denies_open_before_and_after_copy_up", || shared(copied_up)),
        case("follows_atomic_replacement", || shared(replaced)),
        case("follows_symlinks_that_rotate", || shared(rotated)),
        case("lets_go_of_an_object_that_left_its_place", || shared(left)),
    ]
}

/// What is forbidden, where it lies.
struct Secret {
    base: PathBuf,
    folder: String,
    key: String,
}

/// `BASE/closed/key`, in a folder of which everything else may be read and written.
fn secret(name: &str) -> Result<Secret> {
    let base = ground(name)?;
    let key = file(&base.join("closed/key"), "hidden")?;
    file(&base.join("open/file"), "text")?;
    let folder = base.join("closed").display().to_string();
    Ok(Secret { base, folder, key })
}

impl Secret {
    fn at(&self, path: &str) -> String {
        self.base.join(path).display().to_string()
    }

    /// Everything here but one rule's place.
    fn policy(&self, kind: &str, place: &str) -> String {
        let base = self.base.display().to_string();
        with_base(
            &(on_path("all-read", "permit", "read", "Dir", &base)
                + &on_path("all-write", "permit", "write", "Dir", &base)
                + &on_path("secret", "forbid", "read", kind, place)),
        )
    }
}

/// Opens a path as an agent, and asserts what comes of it on each backend.
fn opens(world: &World, name: &str, policy: &str, path: &str) -> Result<()> {
    let events = world.events();
    let output = world.agent(name).policy(policy)?.act(&["open-read", path])?;
    if !world.has_lsm()? {
        return output.expect("open-read", 0);
    }
    output.expect("open-read", EPERM)?;
    let event = events.wait("that it was denied under that name", |event| {
        event.agent() == name && event.path() == path && event.verdict() == DENIED
    })?;
    ensure!(event.policy() == "secret", "another rule decided: {}", event.brief());
    world.bystander(&["open-read", path])?.expect("open-read", 0)
}

fn old_link(world: &World) -> Result<()> {
    let secret = secret("old-link")?;
    let link = secret.at("open/link");
    std::fs::hard_link(&secret.key, &link)?;
    opens(world, "old-link", &secret.policy("File", &secret.key), &link)
}

fn link_out(world: &World) -> Result<()> {
    let secret = secret("link-out")?;
    let link = secret.at("open/link");
    std::fs::hard_link(&secret.key, &link)?;
    opens(world, "link-out", &secret.policy("Dir", &secret.folder), &link)
}

fn new_link(world: &World) -> Result<()> {
    let secret = secret("new-link")?;
    let link = secret.at("open/link");
    let agent = world.agent("new-link").policy(&secret.policy("File", &secret.key))?;
    let output = agent.act(&["link", &secret.key, &link, "then", "open-read", &link])?;
    if world.has_lsm()? {
        output.expect("link", EPERM)?;
        ensure!(output.errno("open-read")? != 0, "{}", output.whole());
    } else {
        output.expect("link", 0)?;
        output.expect("open-read", 0)?;
    }
    Ok(())
}

fn renamed(world: &World) -> Result<()> {
    let secret = secret("renamed")?;
    let (from, to) = (secret.at("above"), secret.at("moved"));
    let key = file(&secret.base.join("above/deep/key"), "hidden")?;
    let there = secret.at("moved/deep/key");
    let agent = world.agent("renamed").policy(&secret.policy("File", &key))?;
    let output = agent.act(&["rename", &from, &to, "then", "open-read", &there])?;
    output.expect("rename", 0)?;
    output.expect("open-read", if world.has_lsm()? { EPERM } else { 0 })?;
    // An exchange of the folder itself with another is a write on both names, which is permitted here.
    let exchanged = self::secret("exchanged")?;
    let (folder, open) = (&exchanged.folder, exchanged.at("open"));
    let there = exchanged.at("open/key");
    let agent = world.agent("exchanged").policy(&exchanged.policy("Dir", folder))?;
    let output = agent.act(&["exchange", folder, &open, "then", "open-read", &there])?;
    if world.has_lsm()? {
        // The folder may not be read, so it may not move.
        output.expect("exchange", EPERM)?;
        ensure!(output.errno("open-read")? != 0, "{}", output.whole());
    }
    Ok(())
}

/// A mount that is gone when this is dropped.
pub(super) struct Mounted(PathBuf);

impl Mounted {
    pub(super) fn new(
        from: &Path,
        at: &Path,
        kind: Option<&str>,
        options: Option<&str>,
    ) -> Result<Self> {
        crate::stage::make_folder(at)?;
        let flags = if kind.is_none() { MsFlags::MS_BIND } else { MsFlags::empty() };
        mount(Some(from), at, kind, flags, options)
            .with_context(|| format!("cannot mount at {}", at.display()))?;
        Ok(Self(at.to_path_buf()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

/// An overlay of a folder's `lower` and `upper`, at its `merged`.
pub(super) fn overlay(base: &Path) -> Result<Mounted> {
    let parts = ["lower", "upper", "work"].map(|part| base.join(part));
    for part in &parts {
        crate::stage::make_folder(part)?;
    }
    let [lower, upper, work] = parts.map(|part| part.display().to_string());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let (from, kind) = (Path::new("overlay"), Some("overlay"));
    Mounted::new(from, &base.join("merged"), kind, Some(options.as_str()))
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn bound(world: &World) -> Result<()> {
    let secret = secret("bound")?;
    let _mounted = Mounted::new(Path::new(&secret.folder), &secret.base.join("other"), None, None)?;
    let there = secret.at("other/key");
    opens(world, "bound", &secret.policy("Dir", &secret.folder), &there)?;
    opens(world, "bound-file", &secret.policy("File", &secret.key), &there)
}

fn bound_inside(world: &World) -> Result<()> {
    let secret = secret("bound-inside")?;
    file(&secret.base.join("closed/deep/er/key"), "hidden")?;
    let inside = secret.base.join("closed/deep/er");
    let _mounted = Mounted::new(&inside, &secret.base.join("other"), None, None)?;
    let policy = secret.policy("Dir", &secret.folder);
    opens(world, "bound-inside", &policy, &secret.at("other/key"))
}

fn copied_up(world: &World) -> Result<()> {
    if !world.has_lsm()? {
        // Marks are on the file systems that the configuration names, and this is none.
        return Ok(());
    }
    let secret = secret("copied-up")?;
    let (lower, upper) = (secret.base.join("lower"), secret.base.join("upper"));
    file(&lower.join("key"), "hidden")?;
    let overlay = overlay(&secret.base)?;
    let merged = overlay.path();
    let _bound = Mounted::new(merged, &secret.base.join("other"), None, None)?;
    let policy = secret.policy("File", &secret.at("merged/key"));
    let there = secret.at("other/key");
    opens(world, "copied-up", &policy, &there)?;
    // A bystander writes: the file is copied up.
    world.bystander(&["append", &there])?.expect("append", 0)?;
    ensure!(upper.join("key").exists(), "nothing was copied up");
    opens(world, "copied-up", &policy, &there)?;
    // What it is made of are other objects, on another file system, and mean the same.
    opens(world, "copied-up", &policy, &lower.join("key").display().to_string())?;
    opens(world, "copied-up", &policy, &upper.join("key").display().to_string())?;
    // Its times are set through the overlay, whose layers are not the agent's business.
    let policy = secret.policy("File", &secret.at("none"));
    world.agent("touches").policy(&policy)?.act(&["utimes", &there])?.expect("utimes", 0)
}

fn replaced(world: &World) -> Result<()> {
    let secret = secret("replaced")?;
    let _mounted = Mounted::new(Path::new(&secret.folder), &secret.base.join("other"), None, None)?;
    let (there, go) = (secret.at("other/key"), secret.at("go"));
    let (key, again) = (secret.key.as_str(), secret.at("again"));
    let agent = world.agent("replaced").policy(&secret.policy("File", key))?.start(&[
        "await",
        &go,
        "then",
        "open-read",
        key,
        "then",
        "await",
        &again,
        "then",
        "open-read",
        &there,
    ])?;
    let new = secret.at("closed/.new");
    file(Path::new(&new), "rotated")?;
    std::fs::rename(&new, key)?;
    // At once under its own name.
    file(Path::new(&go), "")?;
    // And soon under every other.
    std::thread::sleep(world.stage.patience(Duration::from_secs(4)));
    file(Path::new(&again), "")?;
    let output = agent.finish()?;
    output.expect(&format!("open-read {key}"), EPERM)?;
    output.expect(&format!("open-read {there}"), if world.has_lsm()? { EPERM } else { 0 })
}

/// As Kubernetes does it: `key` leads through `..data` into a folder that is replaced whole.
fn rotated(world: &World) -> Result<()> {
    let base = ground("rotated")?;
    let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, base.join(at));
    file(&base.join("..1/key"), "first")?;
    link("..1", "..data")?;
    link("..data/key", "key")?;
    let secret = Secret { folder: String::new(), key: String::new(), base: base.clone() };
    let (key, again) = (secret.at("key"), secret.at("again"));
    let agent = world.agent("rotated").policy(&secret.policy("File", &key))?.start(&[
        "open-read",
        &key,
        "then",
        "await",
        &again,
        "then",
        "list",
        &secret.at("..2"),
        "then",
        "read-all",
        &key,
    ])?;
    file(&base.join("..2/key"), "second")?;
    link("..2", "..new")?;
    std::fs::rename(base.join("..new"), base.join("..data"))?;
    std::thread::sleep(world.stage.patience(Duration::from_secs(4)));
    file(Path::new(&again), "")?;
    let output = agent.finish()?;
    let denied = if world.has_lsm()? { EPERM } else { 0 };
    output.expect("open-read", denied)?;
    output.expect("list", 0)?;
    output.expect("read-all", denied)
}

fn left(world: &World) -> Result<()> {
    let secret = secret("left")?;
    let (away, go) = (secret.at("open/away"), secret.at("go"));
    let agent = world.agent("left").policy(&secret.policy("File", &secret.key))?.start(&[
        "await",
        &go,
        "then",
        "open-read",
        &away,
    ])?;
    // Whoever may do so takes it out of its place: the rule is about what lies there.
    std::fs::rename(&secret.key, &away)?;
    std::thread::sleep(world.stage.patience(Duration::from_secs(4)));
    file(Path::new(&go), "")?;
    agent.finish()?.expect("open-read", 0)
}
