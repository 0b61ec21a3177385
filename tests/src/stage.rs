//! Where the suite plays: a place of its own, so that no mistake reaches the machine.
//!
//! On a host the suite's process takes a mount namespace whose root is an overlay over the
//! machine's (writes go to a tmpfs), a network namespace with only a loopback, a bpffs of its own,
//! and a cgroup beneath which everything happens. A test guest is already all that, so there the
//! root of the cgroup tree is the place to attach to.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{OVERLAYFS_SUPER_MAGIC, statfs};

use crate::watchdog::{self, Watchdog};

/// The programs under test, and the suite's actor, as they are installed on the stage.
pub const PROGRAMS: [&str; 3] = ["ambit", "ambitd", "ambit-actor"];

/// The actor's place on the stage.
pub const ACTOR: &str = "/usr/bin/ambit-actor";

/// Where the suite puts what tests act upon.
pub const GROUND: &str = "/ground";

/// The user that agents and bystanders run as, unless a test needs root.
pub const USER: u32 = 1000;

static STAGE: OnceLock<Stage> = OnceLock::new();

/// The stage of this process.
#[derive(Debug)]
pub struct Stage {
    /// Whether it is a test guest's, where everything takes longer.
    pub guest: bool,
    cgroup2: PathBuf,
    top: PathBuf,
    watchdog: Watchdog,
}

impl Stage {
    /// Makes the stage and enters it; the second call returns the first one's. An error says what
    /// could not be made, and nothing of the machine has been touched then.
    pub fn enter() -> Result<&'static Self> {
        if let Some(stage) = STAGE.get() {
            return Ok(stage);
        }
        let stage = Self::make()?;
        Ok(STAGE.get_or_init(|| stage))
    }

    /// The stage, if it has been entered.
    pub fn get() -> Result<&'static Self> {
        STAGE.get().context("the stage was not entered")
    }

    fn make() -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the end-to-end suite needs root (namespaces, cgroups, BPF); run it with sudo");
        }
        let guest = Path::new("/usr/lib/ambit-vm/init").exists()
            || std::env::var_os("AMBIT_E2E_VM").is_some();
        let programs = programs()?;
        let cgroup2 = cgroup2()?;
        let top = cgroup2.join(name());
        let watchdog = Watchdog::start()?;
        watchdog.owns_cgroup(&top)?;
        for part in ["suite", "outside"] {
            make_folder(&top.join(part))?;
        }
        join(&top.join("suite"))?;
        let stage = Self { guest, cgroup2, top, watchdog };
        if guest {
            stage.watchdog.owns_cgroup(&stage.cgroup2.join("ambit"))?;
        } else {
            if let Some(pids) = pids_v1() {
                stage.watchdog.owns_cgroup(&pids.join(name()))?;
            }
            overlay_root()?;
            loopback_up()?;
        }
        install(programs)?;
        Ok(stage)
    }

    /// Whether this is a test guest, where the whole system is the suite's.
    #[must_use]
    pub const fn is_guest(&self) -> bool {
        self.guest
    }

    /// The cgroup to attach to, made if need be.
    pub fn attach(&self) -> Result<PathBuf> {
        if self.guest {
            return Ok(self.cgroup2.clone());
        }
        let attach = self.top.join("attach");
        make_folder(&attach)?;
        Ok(attach)
    }

    /// The name of the cgroup, beneath the place of attachment, that holds the runs of agents.
    #[must_use]
    pub fn agents(&self) -> String {
        if self.guest { "ambit".to_owned() } else { name() }
    }

    /// The cgroups that Ambit has made in version 1's pids hierarchy.
    #[must_use]
    pub fn pids_v1_children(&self) -> Vec<PathBuf> {
        let Some(pids) = pids_v1() else {
            return Vec::new();
        };
        fs::read_dir(pids.join(self.agents()))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect()
    }

    /// A cgroup that is not beneath the place of attachment; in a guest none is.
    #[must_use]
    pub fn outside(&self) -> Option<PathBuf> {
        (!self.guest).then(|| self.top.join("outside"))
    }

    /// The file systems that a backend by marks is told to cover: only ones made here.
    #[must_use]
    pub fn filesystems(&self) -> Vec<&'static str> {
        vec!["/", "/tmp", "/run", "/var/log"]
            .into_iter()
            .filter(|path| !self.guest || *path != "/var/log")
            .collect()
    }

    /// Refuses to start anything where a mistake would reach the machine.
    pub fn check_is_safe(&self) -> Result<()> {
        if self.guest {
            return Ok(());
        }
        for path in self.filesystems() {
            let kind = statfs(path).with_context(|| format!("cannot look at {path}"))?;
            let own = match path {
                "/" => kind.filesystem_type() == OVERLAYFS_SUPER_MAGIC,
                _ => kind.filesystem_type() == nix::sys::statfs::TMPFS_MAGIC,
            };
            if !own {
                bail!("{path} is not a file system of the suite's; nothing will be started");
            }
        }
        Ok(())
    }

    /// A time limit: emulated guests get more.
    #[must_use]
    pub fn patience(&self, limit: Duration) -> Duration {
        if self.guest { limit * 4 } else { limit }
    }

    /// Arms the watchdog for one test.
    pub fn limit(&self, limit: Duration) -> Result<()> {
        self.watchdog.limit(self.patience(limit))
    }

    /// Ends everything that was left running, but the suite.
    pub fn sweep(&self) -> Result<()> {
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let end = Instant::now() + self.patience(Duration::from_secs(10));
        // Until they are gone: an engine that is ending holds its locks and its port to the last.
        while watchdog::pids_beneath(&self.top).iter().any(|pid| *pid != own) {
            watchdog::kill_all(&self.top, &[own]);
            if Instant::now() > end {
                bail!("what was left running does not end");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let agents = self.attach()?.join(self.agents());
        if agents.exists() {
            watchdog::remove_cgroup(&agents, self.patience(Duration::from_secs(5)));
        }
        Ok(())
    }
}

fn name() -> String {
    format!("ambit-e2e-{}", std::process::id())
}

/// The programs under test, opened before the stage hides where they are. They lie in this
/// program's own folder, or in that of `AMBIT_E2E_PROGRAMS`.
fn programs() -> Result<Vec<(&'static str, File)>> {
    let own = std::env::current_exe().context("cannot find the suite's own program")?;
    let own = own.parent().unwrap_or(Path::new("/"));
    let folders: Vec<PathBuf> = std::env::var_os("AMBIT_E2E_PROGRAMS")
        .map(PathBuf::from)
        .into_iter()
        .chain([own.to_path_buf()])
        .collect();
    PROGRAMS
        .into_iter()
        .map(|program| {
            let found = folders.iter().find_map(|folder| File::open(folder.join(program)).ok());
            let file = found.with_context(|| {
                format!("{program} is not in {folders:?}; build it with `cargo xtask build`")
            })?;
            Ok((program, file))
        })
        .collect()
}

/// Puts the programs where they would be installed, so that tests look the same everywhere.
fn install(programs: Vec<(&'static str, File)>) -> Result<()> {
    for (program, mut from) in programs {
        let to = Path::new("/usr/bin").join(program);
        let there = fs::metadata(&to).map(|data| (data.dev(), data.ino())).ok();
        let own = from.metadata()?;
        if there != Some((own.dev(), own.ino())) {
            // A new file: what lies there may be running.
            let _ = fs::remove_file(&to);
            let mut file =
                File::create(&to).with_context(|| format!("cannot write {}", to.display()))?;
            std::io::copy(&mut from, &mut file)
                .with_context(|| format!("cannot install {}", to.display()))?;
        }
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Makes an overlay over the machine's root and goes there with a mount namespace of its own.
fn overlay_root() -> Result<()> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context("cannot make a mount and a network namespace")?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .context("cannot make the mounts private")?;
    let base = Path::new("/mnt");
    tmpfs(base, "mode=755")?;
    let [upper, work, root] = ["upper", "work", "root"].map(|part| base.join(part));
    for folder in [&upper, &work, &root] {
        make_folder(folder)?;
    }
    let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), work.display());
    mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .context("cannot mount an overlay over the root file system")?;
    for place in ["proc", "sys", "dev"] {
        let from = Path::new("/").join(place);
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(&from), &root.join(place), NONE, flags, NONE)
            .with_context(|| format!("cannot bind /{place}"))?;
    }
    for (place, options) in [("tmp", "mode=1777"), ("run", "mode=755"), ("var/log", "mode=755")] {
        make_folder(&root.join(place))?;
        tmpfs(&root.join(place), options)?;
    }
    let bpffs = root.join("sys/fs/bpf");
    mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), Some("mode=700"))
        .context("cannot mount a bpffs")?;
    // Only read, to say what the kernel has; a kernel without them is no obstacle.
    for (kind, place) in [("securityfs", "sys/kernel/security"), ("tracefs", "sys/kernel/tracing")]
    {
        let _ = mount(Some(kind), &root.join(place), Some(kind), MsFlags::empty(), NONE);
    }
    let old = root.join("mnt");
    nix::unistd::pivot_root(&root, &old).context("cannot change the root")?;
    umount2("/mnt", MntFlags::MNT_DETACH).context("cannot leave the machine's root")?;
    std::env::set_current_dir("/")?;
    Ok(())
}

fn tmpfs(at: &Path, options: &str) -> Result<()> {
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some(options))
        .with_context(|| format!("cannot mount a tmpfs at {}", at.display()))
}

/// Takes the loopback of a new network namespace up.
pub fn loopback_up() -> Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use std::os::fd::AsRawFd;

    /// `struct ifreq` of include/uapi/linux/if.h, with the flags of its union.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        flags: u16,
        rest: [u8; 22],
    }
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut request = Request {
        name: [0; 16],
        flags: u16::try_from(nix::libc::IFF_UP | nix::libc::IFF_RUNNING)?,
        rest: [0; 22],
    };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: the request is a whole `struct ifreq` (40 bytes), which the call only reads.
    let answer = unsafe { nix::libc::ioctl(any.as_raw_fd(), nix::libc::SIOCSIFFLAGS, &request) };
    Errno::result(answer).context("cannot take the loopback up")?;
    Ok(())
}

/// Where cgroup2 is mounted, in the unified or the hybrid layout.
pub fn cgroup2() -> Result<PathBuf> {
    mounted(|kind, _| kind == "cgroup2").context(
        "no cgroup2 file system is mounted; mount one: `mount -t cgroup2 none /sys/fs/cgroup`",
    )
}

/// Where version 1 has its pids controller, in the hybrid layout.
#[must_use]
pub fn pids_v1() -> Option<PathBuf> {
    mounted(|kind, options| kind == "cgroup" && options.split(',').any(|option| option == "pids"))
}

fn mounted(wanted: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    text.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (kind, _, options) = (right.next()?, right.next()?, right.next()?);
        wanted(kind, options).then(|| PathBuf::from(left.split(' ').nth(4).unwrap_or_default()))
    })
}

/// Makes a folder with its parents.
pub fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}

/// Moves this process into a cgroup.
pub fn join(cgroup: &Path) -> Result<()> {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
        .with_context(|| format!("cannot enter {}", cgroup.display()))
}
