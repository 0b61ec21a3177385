//! F: ways to a forbidden file.

use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::super::fresh;
use super::{
    Attempt, Place, Setup, Try, Victim, Way, Who, able, attempt, inherited, judge, measure,
    own_way, way, with_shared, words,
};
use crate::actor::{Running, entering};
use crate::policy::on_path;
use crate::stage::{USER, make_folder};
use crate::verbs::SECRET;
use crate::world::{Settings, World, agent_table, file};

pub(super) fn ways() -> Vec<Way> {
    vec![
        way("F1", "links and spellings", Who::User, spellings),
        way("F2", "hard links", Who::User, hard_links),
        way("F3", "rename and exchange", Who::User, renames),
        way("F4", "mounts", Who::Root, mounts),
        way("F5", "user namespace", Who::User, user_namespace),
        way("F6", "proc and reopening", Who::User, through_proc),
        way("F7", "openat2, handles, O_TMPFILE", Who::Root, special_opens),
        way("F8", "io_uring", Who::Root, rings),
        own_way("F9", "descriptors of others", |id| {
            let mut attempts =
                with_shared(|world| measure(world, id, Who::Root, |at| descriptors(world, at)))?;
            attempts.extend(inherited(id, "", handed_on)?);
            Ok(attempts)
        }),
        way("F10", "overlay", Who::Root, overlay),
        way("F11", "changes without opening", Who::User, changes),
        own_way("F12", "descriptors from before", before),
        way("F13", "long and strange names", Who::User, strange),
        way("F14", "replaced and rotated files", Who::User, rotated),
        way("F15", "device nodes", Who::Root, devices),
        way("F16", "memory of who may read", Who::User, memory),
    ]
}

fn steal(what: &'static str, key: &str) -> Try {
    attempt(what).step(&["steal", key]).told_by(&[key])
}

fn spellings(_: &World, at: &Place) -> Result<Setup> {
    let [link, chain, spelled, dots] =
        ["link", "chain", "spelled", "dots"].map(|name| at.key(name));
    let (link, chain, spelled, dots) = (link?, chain?, spelled?, dots?);
    let slashes = format!("/{}//secret/.//../secret/spelled", at.at(""));
    Ok(Setup::of(vec![
        attempt("symlink")
            .step(&["symlink", &link, &at.at("open/one")])
            .step(&["steal", &at.at("open/one")])
            .told_by(&[&link]),
        attempt("chain of symlinks")
            .step(&["symlink", "../secret", &at.at("open/folder")])
            .step(&["symlink", "folder/chain", &at.at("open/two")])
            .step(&["steal", &at.at("open/two")])
            .told_by(&[&chain]),
        attempt("slashes").step(&["steal", &slashes]).told_by(&[&spelled]),
        attempt("relative")
            .step(&["chdir", &at.at("open")])
            .step(&["steal", "../open/./../secret/dots"])
            .told_by(&[&dots]),
    ]))
}

fn hard_links(_: &World, at: &Place) -> Result<Setup> {
    let (new, old) = (at.key("new")?, at.key("old")?);
    let (new_link, old_link) = (at.at("open/new"), at.at("open/old"));
    fs::hard_link(&old, &old_link)?;
    Ok(Setup::of(vec![
        attempt("a new link")
            .step(&["link", &new, &new_link])
            .step(&["steal", &new_link])
            .told_by(&[&new, &new_link]),
        steal("an old link", &old_link).told_by(&[&old]),
    ]))
}

fn renames(_: &World, at: &Place) -> Result<Setup> {
    let (moved, exchanged) = (at.key("moved")?, at.key("exchanged")?);
    let (there, other) = (at.at("open/moved"), at.open("other", "text")?);
    let inner = at.at("open/folder/key");
    let (parent, above) = (at.at("parent/secret/key"), at.at("above"));
    Ok(Setup::of(vec![
        attempt("rename of the file")
            .step(&["rename", &moved, &there])
            .step(&["steal", &there])
            .told_by(&[&moved, &there]),
        attempt("exchange of the file")
            .step(&["exchange", &exchanged, &other])
            .step(&["steal", &other])
            .told_by(&[&exchanged, &other]),
        attempt("rename of the folder above")
            .step(&["rename", &above, &at.at("parent")])
            .step(&["steal", &parent])
            .told_by(&[&above, &at.at("parent"), &parent, &at.at("above/secret/key")]),
        attempt("rename of the folder")
            .step(&["rename", &at.at("secret"), &at.at("open/folder")])
            .step(&["steal", &inner])
            .told_by(&[&at.at("secret"), &at.at("open/folder"), &inner]),
    ]))
}

fn mounts(_: &World, at: &Place) -> Result<Setup> {
    let secret = at.at("secret");
    for folder in ["open/bound", "open/cloned", "open/merged", "open/none", "open/old"] {
        make_folder(&at.base.join(folder))?;
    }
    let (bound, cloned, merged) = (at.at("open/bound"), at.at("open/cloned"), at.at("open/merged"));
    let judged = ["mount", "namespace"];
    Ok(Setup::of(vec![
        attempt("bind mount")
            .step(&["unshare"])
            .step(&["bind-mount", &secret, &bound])
            .step(&["steal", &format!("{bound}/key")])
            .told_by(&judged)
            .told_by(&[&format!("{bound}/key"), &at.at("secret/key")]),
        attempt("move_mount")
            .step(&["unshare"])
            .step(&["move-mount", &secret, &cloned])
            .step(&["steal", &format!("{cloned}/key")])
            .told_by(&judged)
            .told_by(&[&format!("{cloned}/key"), &at.at("secret/key")]),
        attempt("overlay mount")
            .step(&["unshare"])
            .step(&["overlay", &secret, &at.at("open/none"), &merged])
            .step(&["steal", &format!("{merged}/key")])
            .told_by(&judged)
            .told_by(&[&format!("{merged}/key"), &at.at("secret/key")]),
        attempt("pivot_root")
            .step(&["unshare"])
            .step(&["pivot", &at.at(""), &at.at("open/old")])
            .step(&["steal", "/secret/key"])
            .told_by(&judged)
            .told_by(&["/secret/key", &at.at("secret/key")]),
        // In another root it has no name but its last part.
        attempt("chroot").step(&["chroot", &at.at("")]).step(&["steal", "/secret/key"]).told_by(&[
            "/secret/key",
            &at.at("secret/key"),
            "key",
        ]),
        attempt("tmpfs over the folder above")
            .step(&["unshare"])
            .step(&["chdir", &at.at("above/secret")])
            .step(&["mount-tmpfs", &at.at("above")])
            .step(&["steal", "key"])
            .told_by(&judged)
            .told_by(&[&at.at("above/secret/key")]),
    ]))
}

fn user_namespace(_: &World, at: &Place) -> Result<Setup> {
    make_folder(&at.base.join("open/bound"))?;
    let there = at.at("open/bound/key");
    Ok(Setup::of(vec![
        attempt("bind mount in it")
            .step(&["user-namespace"])
            .step(&["bind-mount", &at.at("secret"), &at.at("open/bound")])
            .step(&["steal", &there])
            .told_by(&["namespace", "mount", &there, &at.at("secret/key")])
            .optional(),
        attempt("chroot in it")
            .step(&["user-namespace"])
            .step(&["chroot", &at.at("")])
            .step(&["steal", "/secret/key"])
            .told_by(&["namespace", "/secret/key", &at.at("secret/key"), "(unresolved)"])
            .optional(),
    ]))
}

fn through_proc(_: &World, at: &Place) -> Result<Setup> {
    let [own, other, folder, path, dev] =
        ["own", "other", "folder", "path", "dev"].map(|name| at.key(name));
    let (own, other, folder, path, dev) = (own?, other?, folder?, path?, dev?);
    let victim = Victim::start(at)?;
    let pid = victim.pid();
    Ok(Setup::of(vec![
        attempt("/proc/self/root")
            .step(&["steal", &format!("/proc/self/root{own}")])
            .told_by(&[&own]),
        attempt("/proc/PID/root")
            .step(&["steal", &format!("/proc/{pid}/root{other}")])
            .told_by(&[&other, "ptrace"]),
        attempt("/proc/PID/cwd")
            .step(&["steal", &format!("/proc/{pid}/cwd/folder")])
            .told_by(&[&folder, "ptrace"]),
        attempt("/proc/PID/fd")
            .step(&["steal", &format!("/proc/{pid}/fd/0")])
            .told_by(&[&at.at("secret/key"), "ptrace"]),
        attempt("O_PATH and /proc/self/fd")
            .step(&["reopen", "/proc/self/fd", &path])
            .told_by(&[&path]),
        attempt("O_PATH and /dev/fd")
            .step(&["reopen", "/dev/fd", &dev])
            .told_by(&[&dev])
            .optional(),
    ])
    .keep(victim))
}

fn special_opens(_: &World, at: &Place) -> Result<Setup> {
    let (openat2, handle) = (at.key("openat2")?, at.key("handle")?);
    let made = at.at("secret/made");
    Ok(Setup::of(vec![
        attempt("openat2").step(&["openat2", &at.at(""), "secret/openat2"]).told_by(&[&openat2]),
        attempt("open_by_handle_at")
            .step(&["by-handle", &handle])
            .told_by(&[&handle, "capability", "(unresolved)"])
            .optional(),
        attempt("O_TMPFILE and linkat")
            .step(&["tmpfile-link", &at.at("open"), &made])
            .told_by(&[&made])
            .optional(),
    ]))
}

fn rings(_: &World, at: &Place) -> Result<Setup> {
    let [inline, worker, polled, fixed, openat2] =
        ["inline", "worker", "polled", "fixed", "openat2"].map(|name| at.key(name));
    let (inline, worker, polled, fixed, openat2) = (inline?, worker?, polled?, fixed?, openat2?);
    let read = |what, way, key: &str| attempt(what).step(&["ring-read", way, key]).told_by(&[key]);
    Ok(Setup::of(vec![
        read("OPENAT", "inline", &inline),
        read("OPENAT by a worker", "worker", &worker),
        read("SQPOLL", "polled", &polled),
        attempt("a fixed file").step(&["ring-fixed", &fixed]).told_by(&[&fixed]).optional(),
        attempt("OPENAT2").step(&["ring-openat2", &openat2]).told_by(&[&openat2]),
    ]))
}

fn descriptors(_: &World, at: &Place) -> Result<Setup> {
    let passed = at.key("passed")?;
    let socket = at.at("open/socket");
    let listener = UnixListener::bind(&socket)?;
    let secret = fs::File::open(&passed)?;
    std::thread::spawn(move || {
        use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
        for stream in listener.incoming().flatten() {
            let (fds, part) = ([secret.as_raw_fd()], [IoSlice::new(b"f")]);
            let rights = [ControlMessage::ScmRights(&fds)];
            let _ = sendmsg::<()>(stream.as_raw_fd(), &part, &rights, MsgFlags::empty(), None);
        }
    });
    let victim = Victim::start(at)?;
    Ok(Setup::of(vec![
        attempt("received over a unix socket")
            .step(&["receive", &socket])
            .told_by(&[&passed, &socket]),
        attempt("pidfd_getfd")
            .step(&["steal-descriptor", &victim.pid(), "0"])
            .told_by(&[&at.at("secret/key"), "ptrace"]),
    ])
    .policy(on_path("serves", "permit", "connect", "UnixSocket", &socket))
    .keep(victim))
}

/// What whoever starts the agent has open.
fn handed_on(at: &Place) -> Result<(OwnedFd, Vec<Try>)> {
    let key = at.key("inherited")?;
    let own = fs::File::open(&key)?;
    Ok((own.into(), vec![attempt("inherited").step(&["held-read"]).told_by(&[&key])]))
}

/// A mount that is gone when this is dropped.
struct Mounted(String);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(self.0.as_str(), MntFlags::MNT_DETACH);
    }
}

fn overlay(_: &World, at: &Place) -> Result<Setup> {
    for name in ["lower/secret/plain", "lower/secret/up", "lower/secret/again", "lower/open/file"] {
        file(&at.base.join(name), SECRET)?;
    }
    for folder in ["upper", "work", "merged"] {
        make_folder(&at.base.join(folder))?;
    }
    let (lower, upper, work, merged) =
        (at.at("lower"), at.at("upper"), at.at("work"), at.at("merged"));
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let kind = Some("overlay");
    mount(kind, merged.as_str(), kind, MsFlags::empty(), Some(options.as_str()))?;
    let mounted = Mounted(merged.clone());
    let in_merged = |name: &str| format!("{merged}/secret/{name}");
    // Copied up, and made anew over a whiteout, by somebody else.
    fs::write(in_merged("up"), SECRET)?;
    ensure!(at.base.join("upper/secret/up").exists(), "nothing was copied up");
    fs::remove_file(in_merged("again"))?;
    fs::write(in_merged("again"), SECRET)?;
    let policy = on_path("overlay", "forbid", "read", "Dir", &format!("{merged}/secret"))
        + &on_path("overlay-write", "forbid", "write", "Dir", &format!("{merged}/secret"));
    let in_overlay = |what, name: &str| {
        // Where the overlay's own file system is not looked at, what is beneath it is, by another name.
        steal(what, &in_merged(name)).told_by(&[&format!("/secret/{name}")])
    };
    let below = at.at("lower/secret/plain");
    let above = at.at("upper/secret/up");
    Ok(Setup::of(vec![
        in_overlay("the merged file", "plain"),
        in_overlay("after copy-up", "up"),
        in_overlay("over a whiteout", "again"),
        attempt("copy-up by the agent")
            .step(&["open-write", &in_merged("plain")])
            .told_by(&[&in_merged("plain"), "/ (deleted)"]),
        steal("the lower file", &below),
        steal("the upper file", &above),
    ])
    .policy(policy)
    .keep(mounted))
}

fn changes(_: &World, at: &Place) -> Result<Setup> {
    let verbs = ["cut", "unlink", "chmod", "chown", "setxattr", "utimes"];
    let mut tries = Vec::new();
    for verb in verbs {
        let key = at.key(verb)?;
        let title = if verb == "cut" { "truncate" } else { verb };
        // Where the kernel is asked about an object alone, its name is all that can be told.
        tries.push(attempt(title).step(&[verb, &key]).told_by(&[&key, verb]));
    }
    let made = at.at("secret/made");
    tries.push(attempt("mkdir").step(&["mkdir", &made]).told_by(&[&made]));
    Ok(Setup::of(tries))
}

/// A descriptor that was opened while a policy permitted it, and one that the agent was started with.
fn before(id: &str) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    let cgroup = "cell-way-f12";
    let settings =
        Settings { more: agent_table("way-f12", cgroup, "enforce"), ..Settings::default() };
    fresh(settings, |world| {
        let at = Place::new(id, "agent", Who::User)?;
        let cell = world.attach.join(cgroup);
        make_folder(&cell)?;
        let open = at.policy().replace("forbid", "permit");
        let tight = at.policy();
        world.policy("way", &open)?;
        world.start()?;
        let (key, ready, go) = (at.at("secret/key"), at.at("open/ready"), at.at("open/go"));
        let held = [
            ("read", vec!["held-read"], false),
            ("write", vec!["held-write"], false),
            ("ftruncate", vec!["held-cut"], false),
            ("io_uring", vec!["held-ring-read"], false),
            ("mmap", vec!["held-map"], false),
            ("sendfile", vec!["held-sendfile"], false),
            ("splice", vec!["held-splice"], false),
            ("copy_file_range", vec!["held-copy", "open/copy"], false),
            ("FICLONE", vec!["held-clone", "open/clone"], true),
        ];
        let tries: Vec<Try> = held
            .iter()
            .map(|(what, step, optional)| {
                let step: Vec<String> = step
                    .iter()
                    .map(|word| if word.contains('/') { at.at(word) } else { (*word).to_owned() })
                    .collect();
                let step: Vec<&str> = step.iter().map(String::as_str).collect();
                let each = attempt(what).step(&step).told_by(&[&key]);
                if *optional { each.optional() } else { each }
            })
            .collect();
        let mut steps = vec!["hold-write", &key, "then", "mkdir", &ready, "then", "await", &go];
        steps.extend(words(&tries));
        let before = world.metrics()?.value("ambit_policy_generation", &[]).unwrap_or(0.0);
        let early = world.events();
        let agent = Running::start(
            entering(&cell, USER, &steps),
            world.stage.patience(Duration::from_secs(30)),
        )?;
        world.wait("the agent holds it", || Ok(Path::new(&ready).exists()))?;
        world.policy("way", &tight)?;
        world.signal(nix::sys::signal::Signal::SIGHUP)?;
        world.wait("the policy is tighter", || {
            Ok(world.metrics()?.value("ambit_policy_generation", &[]).unwrap_or(0.0) > before)
        })?;
        early.wait("that it was opened", |event| event.path() == key)?;
        let events = world.events();
        make_folder(Path::new(&go))?;
        let output = agent.finish()?;
        fs::remove_dir(&go)?;
        fs::remove_dir(&ready)?;
        make_folder(Path::new(&go))?;
        let beside = world.bystander(&steps)?;
        attempts = judge(world, "way-f12", &tries, &output, &able(&tries, &beside)?, &events)?;
        Ok(())
    })?;
    Ok(attempts)
}

fn strange(_: &World, at: &Place) -> Result<Setup> {
    let mut tries = Vec::new();
    let component = at.key(&"n".repeat(255))?;
    tries.push(steal("a name of 255 bytes", &component));
    for (what, length) in
        [("a path of 255", 255), ("of 256", 256), ("of 257", 257), ("of 4095 bytes", 4095)]
    {
        tries.push(steal(what, &long(at, length)?));
    }
    let mut deep = at.base.join("secret/deep");
    for _ in 0..200 {
        deep = deep.join("d");
    }
    tries.push(steal("200 folders deep", &file(&deep.join("key"), SECRET)?));
    let top = beyond(&at.base.join("secret/beyond"))?;
    tries.push(
        attempt("beyond 4096 bytes")
            .step(&["steal-beneath", &top, &"b".repeat(250), "20"])
            .told_by(&["(unresolved)", &top])
            .told_by(&[""]),
    );
    tries.push(steal("a newline and quotes", &at.key("a \"b\"\n'c'\t")?));
    let broken = {
        use std::os::unix::ffi::OsStrExt as _;
        at.base.join("secret").join(std::ffi::OsStr::from_bytes(b"not-\xff-text"))
    };
    fs::write(&broken, SECRET)?;
    let digits: String = {
        use std::os::unix::ffi::OsStrExt as _;
        broken.as_os_str().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let uri = format!("file://{}/not-%FF-text", at.at("secret"));
    tries.push(attempt("invalid UTF-8").step(&["steal-hex", &digits]).told_by(&[&uri]));
    Ok(Setup::of(tries))
}

/// A secret file whose whole path has that many bytes.
fn long(at: &Place, length: usize) -> Result<String> {
    let mut path = at.at("secret");
    while length - path.len() > 202 {
        path = format!("{path}/{}", "l".repeat(200));
    }
    let rest = length.checked_sub(path.len() + 1).context("the place's own path is too long")?;
    file(Path::new(&format!("{path}/{}", "k".repeat(rest))), SECRET)
}

/// Twenty folders of 250 bytes, one in the other, with a key in the last.
fn beyond(top: &Path) -> Result<String> {
    use nix::fcntl::{OFlag, openat};
    use nix::sys::stat::{Mode, mkdirat};
    make_folder(top)?;
    let name = "b".repeat(250);
    let mut folder: std::os::fd::OwnedFd = fs::File::open(top)?.into();
    let own = |fd: &std::os::fd::OwnedFd| nix::unistd::fchown(fd, Some(USER.into()), None);
    for _ in 0..20 {
        mkdirat(&folder, name.as_str(), Mode::from_bits_truncate(0o755))?;
        folder = openat(&folder, name.as_str(), OFlag::O_DIRECTORY, Mode::empty())?;
        own(&folder)?;
    }
    let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
    let key = openat(&folder, "key", flags, Mode::from_bits_truncate(0o644))?;
    nix::unistd::write(&key, SECRET.as_bytes())?;
    own(&key)?;
    Ok(top.display().to_string())
}

fn rotated(world: &World, at: &Place) -> Result<Setup> {
    let (again, renamed) = (at.key("again")?, at.key("renamed")?);
    let link = |to: &str, from: &str| std::os::unix::fs::symlink(to, at.base.join(from));
    file(&at.base.join("rotating/..1/key"), SECRET)?;
    link("..1", "rotating/..data")?;
    link("..data/key", "rotating/key")?;
    let leads = at.at("rotating/key");
    let second = at.at("rotating/..2/key");
    let policy = on_path("rotating", "forbid", "read", "File", &leads);
    let setup = Setup::of(vec![
        steal("recreated", &again),
        steal("replaced by rename", &renamed),
        steal("a link that rotates", &leads).told_by(&[&second]),
    ])
    .policy(policy);
    // What a place is now is looked up every two seconds.
    let settled = world.stage.patience(Duration::from_secs(3));
    let base = at.base.clone();
    let meanwhile = move || -> Result<()> {
        fs::remove_file(&again)?;
        file(Path::new(&again), SECRET)?;
        let new = base.join("secret/.new");
        file(&new, SECRET)?;
        fs::rename(&new, &renamed)?;
        file(Path::new(&second), SECRET)?;
        std::os::unix::fs::symlink("..2", base.join("rotating/..new"))?;
        fs::rename(base.join("rotating/..new"), base.join("rotating/..data"))?;
        std::thread::sleep(settled);
        Ok(())
    };
    Ok(Setup { meanwhile: Some(Box::new(meanwhile)), ..setup })
}

fn devices(_: &World, at: &Place) -> Result<Setup> {
    let mut tries = vec![
        attempt("/dev/mem").step(&["read-some", "/dev/mem"]).told_by(&["/dev/mem"]).optional(),
        attempt("/proc/kcore")
            .step(&["read-some", "/proc/kcore"])
            .told_by(&["/proc/kcore"])
            .optional(),
        attempt("a node of one's own")
            .step(&["make-node", &at.at("open/zero"), "c", "1", "5"])
            .step(&["read-some", &at.at("open/zero")])
            .told_by(&["capability", &at.at("open/zero")])
            .optional(),
    ];
    let mut policy = String::new();
    for (id, place) in [("mem", "/dev/mem"), ("kcore", "/proc/kcore"), ("zero", "/dev/zero")] {
        policy += &on_path(id, "forbid", "read", "File", place);
    }
    // The first disk that there is.
    let disk = fs::read_dir("/sys/block")?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| Path::new("/dev").join(name).exists())
        .min();
    if let Some(disk) = disk {
        let path = format!("/dev/{disk}");
        policy += &on_path("disk", "forbid", "read", "File", &path);
        tries.push(
            attempt("the block device").step(&["read-some", &path]).told_by(&[&path]).optional(),
        );
    }
    Ok(Setup::of(tries).policy(policy))
}

fn memory(_: &World, at: &Place) -> Result<Setup> {
    let victim = Victim::start(at)?;
    let pid = victim.pid();
    let memory = format!("/proc/{pid}/mem");
    Ok(Setup::of(vec![
        attempt("/proc/PID/mem")
            .step(&["open-read", &memory])
            .told_by(&["ptrace", &memory])
            .optional(),
        attempt("process_vm_readv").step(&["peek", &pid]).told_by(&["ptrace"]).optional(),
        attempt("ptrace").step(&["trace", &pid]).told_by(&["ptrace"]).optional(),
        // SIGABRT: the kernel writes a core where limits let it.
        attempt("a core dump").step(&["kill", "6", &pid]).told_by(&["signal"]),
    ])
    .keep(victim))
}
