//! Files: one object, however it is spelled or reached.

use anyhow::{Result, ensure};

use super::{Case, case, shared};
use crate::actor::EPERM;
use crate::events::{ALLOWED, DENIED, FILE};
use crate::policy::{on_path, with_base};
use crate::world::{World, file, ground};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("matches_whole_path_components", || shared(components)).in_subset(),
        case("denies_the_secret_through_a_symlink", || shared(symlink)).in_subset(),
        case("denies_the_secret_in_every_spelling", || shared(spellings)),
        case("denies_the_secret_through_proc", || shared(through_proc)),
        case("denies_the_secret_through_io_uring", || shared(rings)).in_subset(),
        case("judges_descriptors_that_fanotify_hands_over", || shared(handed_over)).in_subset(),
        case("denied_truncation_leaves_the_text", || shared(truncation)),
        case("tells_an_overlay_file_once", || shared(told_once)).in_subset(),
        case("judges_long_and_deep_paths", || shared(long_paths)),
        case("events_survive_strange_names", || shared(strange_names)),
        case("judges_each_open_of_a_burst", || shared(burst)),
    ]
}

/// A folder that may be read, with a secret beneath it that may not.
fn with_secret(name: &str) -> Result<(String, String, String)> {
    let base = ground(name)?;
    let secret = file(&base.join("secret/key"), "hidden")?;
    file(&base.join("open/file"), "text")?;
    let folder = base.display().to_string();
    let policy = with_base(
        &(on_path("all", "permit", "read", "Dir", &folder)
            + &on_path("all-write", "permit", "write", "Dir", &folder)
            + &on_path("key", "forbid", "read", "Dir", &format!("{folder}/secret"))
            + &on_path("key-write", "forbid", "write", "Dir", &format!("{folder}/secret"))),
    );
    Ok((folder, secret, policy))
}

fn components(world: &World) -> Result<()> {
    let base = ground("components")?;
    let inside = file(&base.join("app/file"), "text")?;
    let beside = file(&base.join("app-x/file"), "text")?;
    let same = file(&base.join("apps"), "text")?;
    let app = base.join("app").display().to_string();
    let policy = with_base(&on_path("app", "permit", "read", "Dir", &app));
    let output = world.agent("components").policy(&policy)?.act(&[
        "open-read",
        &inside,
        "then",
        "open-read",
        &beside,
        "then",
        "open-read",
        &same,
    ])?;
    output.expect(&format!("open-read {inside}"), 0)?;
    output.expect(&format!("open-read {beside}"), EPERM)?;
    output.expect(&format!("open-read {same}"), EPERM)
}

fn symlink(world: &World) -> Result<()> {
    let (folder, secret, policy) = with_secret("symlink")?;
    let link = format!("{folder}/open/link");
    let events = world.events();
    let output = world.agent("symlink").policy(&policy)?.act(&[
        "symlink",
        &secret,
        &link,
        "then",
        "open-read",
        &link,
        "then",
        "open-write",
        &link,
    ])?;
    output.expect("symlink", 0)?;
    output.expect("open-read", EPERM)?;
    output.expect("open-write", EPERM)?;
    let event = events.wait("the denial, by the name of the file", |event| {
        event.agent() == "symlink" && event.verdict() == DENIED && event.path() == secret
    })?;
    ensure!(event.class() == FILE, "{}", event.brief());
    world.bystander(&["open-read", &link])?.expect("open-read", 0)
}

fn spellings(world: &World) -> Result<()> {
    let (folder, secret, policy) = with_secret("spellings")?;
    let spelled = [
        format!("{folder}/open/../secret/key"),
        format!("/{folder}//secret/./key"),
        format!("/proc/../{folder}/secret/../secret/key"),
        "../secret/key".to_owned(),
        "./../secret/.//key".to_owned(),
    ];
    let inside = format!("{folder}/open");
    let mut steps = vec!["chdir", inside.as_str()];
    for path in &spelled {
        steps.extend(["then", "open-read", path.as_str()]);
    }
    let events = world.events();
    let output = world.agent("spellings").policy(&policy)?.act(&steps)?;
    for path in &spelled {
        output.expect(&format!("open-read {path}"), EPERM)?;
    }
    let denials = || -> Result<usize> {
        let seen = events.so_far()?;
        Ok(seen.iter().filter(|event| event.verdict() == DENIED && event.path() == secret).count())
    };
    world.wait("each denial is told, under the one true name", || Ok(denials()? == spelled.len()))
}

fn through_proc(world: &World) -> Result<()> {
    let (_, secret, policy) = with_secret("through-proc")?;
    let path = format!("/proc/self/root{secret}");
    let output = world.agent("through-proc").policy(&policy)?.act(&["open-read", &path])?;
    output.expect("open-read", EPERM)?;
    world.bystander(&["open-read", &path])?.expect("open-read", 0)
}

/// Opened by the submitter, by a worker of the ring, and by the thread that polls its queue (as root, whom
/// every kernel allows to ask for one). What is permitted may also be written: under fanotify nobody can
/// tell what a ring opens for.
fn rings(world: &World) -> Result<()> {
    let (folder, secret, policy) = with_secret("rings")?;
    let open = format!("{folder}/open/file");
    for (way, name) in
        [("inline", "ring-inline"), ("worker", "ring-worker"), ("polled", "ring-polled")]
    {
        let steps = ["ring-read", way, open.as_str(), "then", "ring-read", way, secret.as_str()];
        let mut agent = world.agent(name).policy(&policy)?;
        if way == "polled" {
            agent = agent.as_root();
        }
        let events = world.events();
        let output = agent.act(&steps)?;
        output.expect(&format!("ring-read {way} {open}"), 0)?;
        output.expect(&format!("ring-read {way} {secret}"), EPERM)?;
        events.wait("the denial, as the agent's", |event| {
            event.agent() == name && event.path() == secret && event.verdict() == DENIED
        })?;
        if way != "polled" {
            world.bystander(&["ring-read", way, &secret])?.expect("ring-read", 0)?;
        }
    }
    Ok(())
}

/// A root agent that watches the secret would be given a descriptor of it when somebody else opens it.
/// fanotify does not ask about its own descriptors, so as a backend it cannot stop this.
fn handed_over(world: &World) -> Result<()> {
    let (folder, secret, policy) = with_secret("handed-over")?;
    let gate = format!("{folder}/open/gate");
    // To watch at all is a capability.
    let power = "permit (principal, action == Action::\"privilege\", \
                 resource == Privilege::\"capability\");\n";
    let agent = world.agent("handed-over").policy(&(policy + power))?.as_root();
    let running = agent.start(&["watch", &secret, &gate])?;
    world.wait("it watches", || Ok(std::path::Path::new(&gate).exists()))?;
    world.bystander(&["open-read", &secret])?.expect("open-read", 0)?;
    let denied = if world.has_lsm()? { EPERM } else { 0 };
    running.finish()?.expect("watch", denied)
}

fn truncation(world: &World) -> Result<()> {
    let (_, secret, policy) = with_secret("keeps-text")?;
    let output = world
        .agent("keeps-text")
        .policy(&policy)?
        .act(&["truncate", &secret, "then", "append", &secret])?;
    output.expect("append", EPERM)?;
    ensure!(output.errno("truncate")? == EPERM, "{}", output.whole());
    let text = std::fs::read_to_string(&secret)?;
    ensure!(text == "hidden", "the secret's text is gone: {text:?}");
    Ok(())
}

fn told_once(world: &World) -> Result<()> {
    let base = ground("overlay")?;
    let mut place = base.clone();
    if world.stage.is_guest() {
        // The guest's root is no overlay, so one is mounted.
        let [lower, upper, work, merged] =
            ["lower", "upper", "work", "merged"].map(|part| base.join(part));
        for folder in [&lower, &upper, &work, &merged] {
            crate::stage::make_folder(folder)?;
        }
        file(&lower.join("file"), "text")?;
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        nix::mount::mount(
            Some("overlay"),
            &merged,
            Some("overlay"),
            nix::mount::MsFlags::empty(),
            Some(options.as_str()),
        )?;
        place = merged;
    }
    let result = (|| {
        let path = place.join("file");
        if !path.exists() {
            file(&path, "text")?;
        }
        let path = path.display().to_string();
        let done = file(&base.join("done"), "")?;
        let policy =
            with_base(&on_path("all", "permit", "read", "Dir", &base.display().to_string()));
        let events = world.events();
        world
            .agent("overlay")
            .policy(&policy)?
            .act(&["open-read", &path, "then", "open-read", &done])?
            .expect("open-read", 0)?;
        if world.stage.is_guest() && !world.has_lsm()? {
            // Marks are on the file systems that the configuration names, and this is none.
            std::thread::sleep(std::time::Duration::from_secs(1));
            let told = events.so_far()?;
            let told = told.iter().filter(|event| event.path() == path).count();
            ensure!(told == 0, "a file system without a mark is told of {told} times");
            return Ok(());
        }
        events.wait("the open after it", |event| event.path() == done)?;
        let told: Vec<_> = events
            .so_far()?
            .into_iter()
            .filter(|event| {
                event.agent() == "overlay"
                    && event.class() == FILE
                    && event.path().ends_with("/file")
                    && event.path().starts_with("/ground")
            })
            .collect();
        ensure!(
            told.len() == 1 && told.iter().all(|event| event.verdict() == ALLOWED),
            "one open of a file on an overlay is told as {:?}",
            told.iter().map(crate::events::Event::brief).collect::<Vec<_>>()
        );
        Ok(())
    })();
    if world.stage.is_guest() {
        let _ = nix::mount::umount2(&place, nix::mount::MntFlags::MNT_DETACH);
    }
    result
}

fn long_paths(world: &World) -> Result<()> {
    let base = ground("long")?;
    let name = "n".repeat(255);
    let flat = file(&base.join(&name), "text")?;
    let mut deep = base.join("deep");
    for _ in 0..40 {
        deep = deep.join("folder");
    }
    let deep = file(&deep.join("file"), "text")?;
    let folder = base.display().to_string();
    let permit = with_base(&on_path("all", "permit", "read", "Dir", &folder));
    let output = world.agent("long-permit").policy(&permit)?.act(&[
        "open-read",
        &flat,
        "then",
        "open-read",
        &deep,
    ])?;
    output.expect(&format!("open-read {flat}"), 0)?;
    output.expect(&format!("open-read {deep}"), 0)?;
    let forbid = with_base(
        &(on_path("all", "permit", "read", "Dir", &folder)
            + &on_path("flat", "forbid", "read", "File", &flat)
            + &on_path("deep", "forbid", "read", "File", &deep)),
    );
    let events = world.events();
    let output = world.agent("long-forbid").policy(&forbid)?.act(&[
        "open-read",
        &flat,
        "then",
        "open-read",
        &deep,
    ])?;
    output.expect(&format!("open-read {flat}"), EPERM)?;
    output.expect(&format!("open-read {deep}"), EPERM)?;
    for (path, id) in [(&flat, "flat"), (&deep, "deep")] {
        events.wait("the denial with the whole path", |event| {
            event.path() == path && event.policy() == id && event.verdict() == DENIED
        })?;
    }
    Ok(())
}

fn strange_names(world: &World) -> Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let base = ground("strange")?;
    let folder = base.display().to_string();
    let quoted = file(&base.join("a \"quoted\"\nname\t\u{7f}"), "text")?;
    // Not UTF-8: the folder is listed by name, so that the bytes need not pass through arguments.
    let broken = base.join(std::ffi::OsStr::from_bytes(b"broken-\xff-name"));
    std::fs::write(&broken, "text")?;
    let policy = with_base(&on_path("all", "permit", "read", "Dir", &folder));
    let events = world.events();
    let agent = world.agent("strange").policy(&policy)?;
    agent.act(&["open-read", &quoted])?.expect("open-read", 0)?;
    events.wait("the quoted name, exactly", |event| event.path() == quoted)?;
    let shell = format!("for each in {folder}/broken-*; do read line <\"$each\"; done");
    agent.run(&["/bin/sh", "-c", &shell])?;
    events.wait("the name that is not UTF-8, with its bytes kept", |event| {
        event.text(&["file", "uri"]).ends_with("/broken-%FF-name")
    })?;
    Ok(())
}

fn burst(world: &World) -> Result<()> {
    let (folder, secret, policy) = with_secret("burst")?;
    let open = format!("{folder}/open/file");
    let output = world.agent("burst").policy(&policy)?.act(&[
        "burst",
        "20000",
        &open,
        "then",
        "open-read",
        &secret,
    ])?;
    output.expect("burst", 0)?;
    output.expect("open-read", EPERM)
}
