//! What the host is: kernel version, mounts, the LSM list.

use std::{
    collections::HashMap,
    fs, io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use agent_ebpf::Version;

/// Facts about the host that decide what can be enforced.
#[derive(Debug, Clone)]
pub struct Host {
    /// Kernel release as `uname -r` prints it.
    pub release: String,
    /// Its first two numbers.
    pub version: (u32, u32),
    /// Names in the kernel's LSM list, or why it could not be read.
    pub lsm: Result<Vec<String>, String>,
}

/// Why the host cannot carry Ambit.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Not root.
    #[error("{program} needs root (it loads programs into the kernel); run it with sudo")]
    NotRoot {
        /// Who asks.
        program: &'static str,
    },
    /// In a container of its own.
    #[error(
        "ambitd must run in the host's pid namespace, or it cannot tell processes apart; in a \
         container, give it the host's (hostPID: true, --pid=host)"
    )]
    PidNamespace,
    /// Older than what Ambit supports.
    #[error("this kernel is {release}; Ambit needs Linux 5.10 or later")]
    TooOld {
        /// Kernel release.
        release: String,
    },
    /// No cgroup2 file system.
    #[error(
        "no cgroup2 file system is mounted; mount one, e.g. `mount -t cgroup2 none /sys/fs/cgroup`"
    )]
    NoCgroup2,
    /// No bpffs where pins should go.
    #[error("{path} is not on a BPF file system; mount one: `mount -t bpf bpf {mount}`")]
    NoBpffs {
        /// Where the pins should go.
        path: PathBuf,
        /// What to mount.
        mount: PathBuf,
    },
    /// A file of the host could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Eight bytes that nobody can guess.
pub fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// The cookie of this process's network namespace; `None` before 5.14, which does not tell it.
pub fn netns_cookie() -> io::Result<Option<u64>> {
    /// include/uapi/asm-generic/socket.h
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as nix::libc::socklen_t;
    // SAFETY: a live socket, and room for as many bytes as `length` says.
    let result = unsafe {
        nix::libc::getsockopt(
            socket.as_raw_fd(),
            nix::libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        return Ok(Some(cookie));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(nix::libc::ENOPROTOOPT) => Ok(None),
        error => Err(error),
    }
}

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Device as `major:minor`.
    pub device: String,
    /// Where it is mounted.
    pub at: PathBuf,
    /// File system type.
    pub kind: String,
}

impl Host {
    /// Reads the host's facts.
    pub fn read() -> Result<Self, HostError> {
        let path = PathBuf::from("/proc/sys/kernel/osrelease");
        let release = fs::read_to_string(&path)
            .map_err(|source| HostError::Read { path, source })?
            .trim()
            .to_owned();
        let mut numbers =
            release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if version < (5, 10) {
            return Err(HostError::TooOld { release });
        }
        Ok(Self { release, version, lsm: lsm_list() })
    }

    /// True when BPF programs on LSM hooks would run: one attaches even where they do not.
    pub fn lsm_runs_bpf(&self) -> bool {
        self.lsm.as_ref().is_ok_and(|names| names.iter().any(|name| name == "bpf"))
    }

    /// True when a program that is preempted keeps others from running on that CPU: before 6.2
    /// (`__bpf_prog_enter` of kernel/bpf/trampoline.c) such a call goes unjudged, and kernels that
    /// preempt themselves let it happen.
    pub fn skips_preempted_programs(&self) -> bool {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let build = read("/proc/sys/kernel/version");
        let words: Vec<&str> = build.split_whitespace().collect();
        let by_build = words.contains(&"PREEMPT") || words.contains(&"PREEMPT_RT");
        let by_choice = words.contains(&"PREEMPT_DYNAMIC")
            && (read("/proc/cmdline").split_whitespace().any(|word| word == "preempt=full")
                || read("/sys/kernel/debug/sched/preempt").contains("(full)"));
        self.version < (6, 2) && (by_build || by_choice)
    }
}

fn lsm_list() -> Result<Vec<String>, String> {
    let path = "/sys/kernel/security/lsm";
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().split(',').map(str::to_owned).collect()),
        Err(error) => Err(format!(
            "cannot read {path}: {error}; mount it: `mount -t securityfs none /sys/kernel/security`"
        )),
    }
}

/// Refuses to go on without root.
pub fn require_root(program: &'static str) -> Result<(), HostError> {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err(HostError::NotRoot { program }) }
}

/// `PROC_PID_INIT_INO` (include/linux/proc_ns.h): the namespace in which the kernel half counts.
const INITIAL_PID_NAMESPACE: u64 = 0xefff_fffc;

/// Refuses a pid namespace in which processes have other numbers than the kernel half sees.
pub fn require_initial_pid_namespace() -> Result<(), HostError> {
    let path = PathBuf::from("/proc/self/ns/pid");
    let found = fs::metadata(&path).map_err(|source| HostError::Read { path, source })?;
    if found.ino() == INITIAL_PID_NAMESPACE { Ok(()) } else { Err(HostError::PidNamespace) }
}

/// All mounts in this process's namespace.
pub fn mounts() -> Result<Vec<Mount>, HostError> {
    let path = PathBuf::from("/proc/self/mountinfo");
    let text = fs::read_to_string(&path).map_err(|source| HostError::Read { path, source })?;
    Ok(text.lines().filter_map(parse_mount).collect())
}

fn parse_mount(line: &str) -> Option<Mount> {
    // proc(5): id parent major:minor root mount-point options [optional]... - type source options
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ');
    let device = left.nth(2)?.to_owned();
    let at = PathBuf::from(unescape(left.nth(1)?));
    Some(Mount { device, at, kind: right.split(' ').next()?.to_owned() })
}

/// Octal escapes of mountinfo: space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The folder on which cgroup2 is mounted, in the unified or the hybrid layout.
pub fn cgroup2() -> Result<PathBuf, HostError> {
    mounts()?
        .into_iter()
        .find(|mount| mount.kind == "cgroup2")
        .map(|mount| mount.at)
        .ok_or(HostError::NoCgroup2)
}

/// The folder of the version 1 pids controller, where the hybrid layout keeps it.
pub fn pids_v1() -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    text.lines()
        .filter(|line| {
            line.split_once(" - ").is_some_and(|(_, right)| {
                right.starts_with("cgroup ") && right.rsplit(',').any(|o| o == "pids")
                    || right.ends_with(" pids")
            })
        })
        .find_map(|line| parse_mount(line).map(|mount| mount.at))
}

/// The kernel's id of a cgroup: its inode number (include/linux/kernfs.h, on 64 bits).
pub fn cgroup_id(folder: &Path) -> io::Result<u64> {
    Ok(fs::metadata(folder)?.ino())
}

/// An object's device and inode number as the hooks read them: `s_dev` has the major number in its upper
/// 12 bits. (`stat` of btrfs and of some overlays says otherwise.)
pub fn object(stat: &fs::Metadata) -> (u32, u64) {
    let (major, minor) = (nix::sys::stat::major(stat.dev()), nix::sys::stat::minor(stat.dev()));
    ((major << 20 | minor) as u32, stat.ino())
}

/// The version of a file as the hooks read it.
pub fn version(stat: &fs::Metadata) -> Version {
    Version {
        seconds: stat.ctime() as u64,
        nanoseconds: stat.ctime_nsec() as u64,
        size: stat.size(),
    }
}

/// The mounts of a process's namespace, to know objects by as the hooks do.
#[derive(Debug, Default)]
pub struct Objects {
    /// Device of the file system by mount id, and whether `stat` tells of its objects what the hooks read.
    mounts: HashMap<u64, (u32, bool)>,
}

/// File systems of which `stat` gives the device and inode number that the kernel keeps.
const PLAIN: [&str; 6] = ["ext2", "ext3", "ext4", "xfs", "f2fs", "tmpfs"];

impl Objects {
    /// Reads the mounts of `/proc/PROCESS`; the error is that it is gone.
    pub fn of_process(process: &str) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{process}/mountinfo"))?;
        let mounts = text.lines().filter_map(|line| {
            let id = line.split(' ').next()?.parse().ok()?;
            let mount = parse_mount(line)?;
            let (major, minor) = mount.device.split_once(':')?;
            let device = major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?;
            Some((id, (device, PLAIN.contains(&mount.kind.as_str()))))
        });
        Ok(Self { mounts: mounts.collect() })
    }

    /// Device and inode number of an open object, as the hooks read them; `None` when the kernel does not
    /// say (before 5.14, or a mount that is in no list).
    pub fn key(&self, file: &impl AsRawFd, stat: &fs::Metadata) -> Option<(u32, u64)> {
        let key = object(stat);
        if self.mounts.values().any(|mount| *mount == (key.0, true)) {
            return Some(key);
        }
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
        };
        Some((self.mounts.get(&field("mnt_id:")?)?.0, field("ino:")?))
    }
}

/// How deep a cgroup lies beneath the root, which is level 0.
pub fn cgroup_level(root: &Path, folder: &Path) -> Option<u32> {
    let beneath = folder.strip_prefix(root).ok()?;
    u32::try_from(beneath.components().count()).ok()
}

/// Refuses a pin folder that is not on bpffs.
pub fn require_bpffs(pins: &Path) -> Result<(), HostError> {
    let existing = pins.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let on_bpffs = nix::sys::statfs::statfs(existing)
        .is_ok_and(|stat| stat.filesystem_type().0 == BPF_FS_MAGIC);
    if on_bpffs {
        return Ok(());
    }
    let mount = if existing == Path::new("/") || existing == Path::new("/sys/fs") {
        PathBuf::from("/sys/fs/bpf")
    } else {
        existing.to_path_buf()
    };
    Err(HostError::NoBpffs { path: pins.to_path_buf(), mount })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_mountinfo_lines() {
        let line =
            "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let mount = parse_mount(line).unwrap();
        assert_eq!((mount.device.as_str(), mount.kind.as_str()), ("98:0", "ext3"));
        assert_eq!(mount.at, Path::new("/mnt 2"));
        assert_eq!(parse_mount("nonsense"), None);
    }

    #[test]
    fn levels_count_from_the_root() {
        let root = Path::new("/sys/fs/cgroup");
        assert_eq!(cgroup_level(root, root), Some(0));
        assert_eq!(cgroup_level(root, Path::new("/sys/fs/cgroup/a/b")), Some(2));
        assert_eq!(cgroup_level(root, Path::new("/elsewhere")), None);
    }
}
