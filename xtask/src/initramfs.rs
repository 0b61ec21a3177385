//! What the guest boots from: an archive with a static busybox, a two-stage init, the modules that
//! tests need, Ambit's programs and whatever the caller adds.
//!
//! The archive holds the guest's system below `/guest`. The first init copies it to a tmpfs and
//! switches to that, because the kernel's own first root refuses `pivot_root` and is a poor layer
//! for overlayfs. The kernel unpacks archives one after the other, so the part that is the same
//! every time is made once and kept in the cache.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use cpio::newc;

use crate::cache::{Cache, remove_others, stamp, write_whole};
use crate::kernels::Kernel;
use crate::process;

/// The first init, which runs from the kernel's own root.
const FIRST: &str = include_str!("guest/first.sh");
/// The second init, which runs from the guest's root and runs the command.
const SECOND: &str = include_str!("guest/second.sh");

/// Modules loaded at boot, where the kernel has not built them in.
const LOADED: &[&str] = &["virtio_pci", "virtio_blk", "ext4", "overlay", "fuse", "veth"];
/// Modules that are there for `modprobe`, and for the kernel to load when a program asks.
const CARRIED: &[&str] = &[
    "binfmt_misc",
    "bridge",
    "crc32c_generic",
    "dummy",
    "erofs",
    "ipvlan",
    "isofs",
    "loop",
    "macvlan",
    "mptcp_diag",
    "sctp",
    "squashfs",
    "tcp_diag",
    "tls",
    "tun",
    "udp_diag",
    "unix_diag",
    "vsock",
    "vsock_loopback",
    "xfs",
];

/// Folders that every guest has, with their modes; `agent` owns its home.
const FOLDERS: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("home/agent", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/lib64", 0o755),
    ("usr/local/bin", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];

/// The guest has merged folders, as today's distributions do.
const LINKS: &[(&str, &str)] = &[
    ("bin", "usr/bin"),
    ("sbin", "usr/bin"),
    ("usr/sbin", "bin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("var/run", "../run"),
    ("etc/mtab", "../proc/self/mounts"),
];

const FILES: &[(&str, &str)] = &[
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\n\
         agent:x:1000:1000:agent:/home/agent:/bin/sh\n\
         nobody:x:65534:65534:nobody:/:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\ntty:x:5:\nagent:x:1000:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost ambit-vm\n::1 localhost\n"),
    ("etc/hostname", "ambit-vm\n"),
    ("etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n"),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\n",
    ),
    ("etc/services", "domain 53/tcp\ndomain 53/udp\nhttp 80/tcp\nhttps 443/tcp\n"),
    ("etc/os-release", "ID=ambit-vm\nNAME=\"Ambit test guest\"\n"),
    ("etc/machine-id", "00000000000000000000000000000001\n"),
];

/// Uid and gid of the guest's user `agent`.
const AGENT: u32 = 1000;

#[derive(Clone, Debug)]
enum Node {
    Folder { mode: u32, owner: u32 },
    Text { text: Vec<u8>, mode: u32 },
    Copy { from: PathBuf, mode: u32 },
    Link { to: PathBuf },
}

/// A tree of files on its way into an archive.
#[derive(Debug, Default)]
pub struct Tree {
    nodes: BTreeMap<PathBuf, Node>,
}

impl Tree {
    /// Puts a host file or a folder with all that is in it at a path of the guest, together with
    /// the loader and the libraries of every ELF program among them.
    pub fn add(&mut self, host: &Path, guest: &Path) -> Result<()> {
        let meta = fs::metadata(host)
            .with_context(|| format!("cannot add {} to the guest", host.display()))?;
        let mode = meta.permissions().mode() & 0o7777;
        let at = guest_path(guest)?;
        if meta.is_dir() {
            self.put(at, Node::Folder { mode, owner: 0 });
            let entries =
                fs::read_dir(host).with_context(|| format!("cannot list {}", host.display()))?;
            for entry in entries {
                let entry = entry.with_context(|| format!("cannot list {}", host.display()))?;
                let inner = guest.join(entry.file_name());
                let kind = entry
                    .file_type()
                    .with_context(|| format!("cannot tell what {} is", entry.path().display()))?;
                if kind.is_symlink() {
                    let to = fs::read_link(entry.path()).with_context(|| {
                        format!("cannot read the link {}", entry.path().display())
                    })?;
                    self.put(guest_path(&inner)?, Node::Link { to });
                } else {
                    self.add(&entry.path(), &inner)?;
                }
            }
            return Ok(());
        }
        if !meta.is_file() {
            bail!("cannot add {}: neither file nor folder", host.display());
        }
        self.put(at, Node::Copy { from: host.to_owned(), mode });
        for library in libraries(host)? {
            let from = library.clone();
            self.put(guest_path(&library)?, Node::Copy { from, mode: 0o755 });
        }
        Ok(())
    }

    /// Puts a small file at a path of the guest.
    pub fn text(&mut self, guest: &str, text: impl Into<Vec<u8>>, mode: u32) -> Result<()> {
        let text = text.into();
        self.put(guest_path(Path::new(guest))?, Node::Text { text, mode });
        Ok(())
    }

    fn put(&mut self, path: PathBuf, node: Node) {
        for parent in path.ancestors().skip(1) {
            if parent != Path::new("") && !self.nodes.contains_key(parent) {
                let folder = Node::Folder { mode: 0o755, owner: 0 };
                self.nodes.insert(parent.to_owned(), folder);
            }
        }
        self.nodes.insert(path, node);
    }

    /// Writes the tree as one newc archive, padded so that another may follow.
    pub fn write(&self, out: &mut impl Write, first_inode: u32) -> Result<()> {
        let mut out = Counted { out, written: 0 };
        let mut inode = first_inode;
        for (path, node) in &self.nodes {
            inode += 1;
            write_node(&mut out, path, node, inode)
                .with_context(|| format!("cannot pack {} for the guest", path.display()))?;
        }
        newc::trailer(&mut out).context("cannot end the guest's archive")?;
        let rest = out.written.next_multiple_of(512) - out.written;
        out.write_all(&vec![0; rest]).context("cannot pad the guest's archive")
    }
}

struct Counted<W> {
    out: W,
    written: usize,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.written += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;

fn write_node(out: &mut impl Write, path: &Path, node: &Node, inode: u32) -> Result<()> {
    let name = path.to_str().context("its name is not UTF-8")?;
    let header = newc::Builder::new(name).ino(inode).nlink(1);
    let mut put = |header: newc::Builder, bytes: &[u8]| -> Result<()> {
        let size = u32::try_from(bytes.len()).context("it is larger than 4 GiB")?;
        let mut writer = header.write(&mut *out, size);
        writer.write_all(bytes)?;
        writer.finish()?;
        Ok(())
    };
    match node {
        Node::Folder { mode, owner } => {
            put(header.mode(S_IFDIR | mode).uid(*owner).gid(*owner), &[])
        }
        Node::Text { text, mode } => put(header.mode(S_IFREG | mode), text),
        Node::Link { to } => put(header.mode(S_IFLNK | 0o777), to.as_os_str().as_bytes()),
        Node::Copy { from, mode } => {
            let bytes =
                fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
            put(header.mode(S_IFREG | mode), &bytes)
        }
    }
}

/// Where a path of the guest is in the archive, with the guest's merged folders resolved.
fn guest_path(path: &Path) -> Result<PathBuf> {
    let mut parts: Vec<&OsStr> = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(part) => parts.push(part),
            Component::ParentDir if !parts.is_empty() => {
                parts.pop();
            }
            _ => bail!("{} is no path inside the guest", path.display()),
        }
    }
    let merged = |first: &OsStr| match first.to_str() {
        Some("bin" | "sbin") => Some("usr/bin"),
        Some("lib") => Some("usr/lib"),
        Some("lib64") => Some("usr/lib64"),
        _ => None,
    };
    let mut resolved = PathBuf::from("guest");
    let rest = match parts.split_first() {
        None => bail!("{} is the guest's root, which cannot be replaced", path.display()),
        Some((first, rest)) if first.as_bytes() == b"usr" => {
            resolved.push("usr");
            match rest.split_first() {
                Some((second, rest)) if second.as_bytes() == b"sbin" => {
                    resolved.push("bin");
                    rest
                }
                _ => rest,
            }
        }
        Some((first, rest)) => {
            resolved.push(merged(first).map_or(*first, OsStr::new));
            rest
        }
    };
    resolved.extend(rest);
    Ok(resolved)
}

/// The loader and libraries that a program needs; none for what is not a dynamic ELF file.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut magic = [0_u8; 4];
    let elf = File::open(program)
        .and_then(|mut file| io::Read::read_exact(&mut file, &mut magic))
        .is_ok()
        && magic == *b"\x7fELF";
    if !elf {
        return Ok(BTreeSet::new());
    }
    let output = process::command("ldd")
        .arg(program)
        .output()
        .context("cannot start ldd, which finds the libraries of programs for the guest")?;
    let listed = String::from_utf8_lossy(&output.stdout);
    parse_ldd(&listed).with_context(|| format!("cannot put {} into the guest", program.display()))
}

fn parse_ldd(listed: &str) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for line in listed.lines().map(str::trim) {
        // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)` or `/lib64/ld-... (0x...)`
        let (name, path) = line.split_once(" => ").unwrap_or((line, line));
        if path.starts_with("not found") {
            bail!("its library {name} is not on this machine");
        }
        let path = path.split(" (").next().unwrap_or(path);
        if path.starts_with('/') {
            found.insert(PathBuf::from(path));
        }
    }
    Ok(found)
}

/// Writes the guest's whole archive: the unchanging part, then `tree`.
pub fn write(cache: &Cache, kernel: &Kernel, tree: &Tree, path: &Path) -> Result<()> {
    let base = base(cache, kernel)?;
    let mut out = BufWriter::new(
        File::create(path).with_context(|| format!("cannot write {}", path.display()))?,
    );
    let mut part = File::open(&base).with_context(|| format!("cannot read {}", base.display()))?;
    io::copy(&mut part, &mut out).with_context(|| format!("cannot copy {}", base.display()))?;
    tree.write(&mut out, 1_000_000)?;
    out.flush().with_context(|| format!("cannot write {}", path.display()))
}

/// The unchanging part for a kernel, made on first use and whenever what it holds changes.
fn base(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    let busybox = process::find("busybox").context(
        "busybox is missing; install the package busybox-static (`cargo xtask setup` does)",
    )?;
    let meta =
        fs::metadata(&busybox).with_context(|| format!("cannot look at {}", busybox.display()))?;
    let ingredients = format!(
        "{FIRST}\0{SECOND}\0{LOADED:?}{CARRIED:?}{FOLDERS:?}{LINKS:?}{FILES:?}\0{}\0{}\0{:?}",
        kernel.release,
        meta.size(),
        meta.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()),
    );
    let name = format!("{}-{}.cpio", kernel.row.line, stamp(ingredients.as_bytes()));
    let path = cache.folder("initramfs")?.join(&name);
    if path.exists() {
        return Ok(path);
    }
    let tree = base_tree(kernel, &busybox)?;
    let mut bytes = Vec::new();
    tree.write(&mut bytes, 0)?;
    write_whole(&path, &bytes)?;
    remove_others(&path, &format!("{}-", kernel.row.line));
    Ok(path)
}

fn base_tree(kernel: &Kernel, busybox: &Path) -> Result<Tree> {
    let mut tree = Tree::default();
    for (path, mode) in FOLDERS {
        let owner = if *path == "home/agent" { AGENT } else { 0 };
        tree.put(Path::new("guest").join(path), Node::Folder { mode: *mode, owner });
    }
    for (path, to) in LINKS {
        let to = PathBuf::from(to);
        tree.put(Path::new("guest").join(path), Node::Link { to });
    }
    for (path, text) in FILES {
        tree.text(path, *text, 0o644)?;
    }
    // The first init runs before the guest's root exists, so it has a busybox of its own.
    if !libraries(busybox)?.is_empty() {
        bail!("{} is dynamically linked; install the package busybox-static", busybox.display());
    }
    let own = |from: &Path| Node::Copy { from: from.to_owned(), mode: 0o755 };
    tree.put("bin/busybox".into(), own(busybox));
    tree.put("init".into(), Node::Text { text: FIRST.into(), mode: 0o755 });
    for folder in ["dev", "proc", "sys", "new"] {
        tree.put(folder.into(), Node::Folder { mode: 0o755, owner: 0 });
    }
    tree.add(busybox, Path::new("/usr/bin/busybox"))?;
    for applet in process::capture(process::command(busybox).arg("--list"))?.lines() {
        if applet != "busybox" {
            let to = PathBuf::from("busybox");
            tree.put(Path::new("guest/usr/bin").join(applet), Node::Link { to });
        }
    }
    tree.text("/usr/lib/ambit-vm/init", SECOND, 0o755)?;
    modules(&mut tree, kernel)?;
    Ok(tree)
}

/// Adds the modules that tests need, uncompressed, and the order in which the first init loads
/// those that must be there from the start.
fn modules(tree: &mut Tree, kernel: &Kernel) -> Result<()> {
    let list = kernel.modules.join("modules.dep");
    let text =
        fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let known = Dependencies::parse(&text);
    let home = Path::new("/usr/lib/modules").join(&kernel.release);
    let loaded = known.in_load_order(LOADED);
    let all = known.in_load_order(&[LOADED, CARRIED].concat());
    let mut dependencies = String::new();
    for path in &all {
        let bytes = uncompressed(&kernel.modules.join(path))?;
        let at = home.join(plain_name(path));
        tree.put(guest_path(&at)?, Node::Text { text: bytes, mode: 0o644 });
        let needs: Vec<_> = known.direct(path).iter().map(|need| plain_name(need)).collect();
        dependencies.push_str(&format!("{}: {}\n", plain_name(path), needs.join(" ")));
    }
    let at = |name: &str| home.join(name).display().to_string();
    tree.text(&at("modules.dep"), dependencies, 0o644)?;
    let aliases = kernel.modules.join("modules.alias");
    let aliases = fs::read_to_string(&aliases)
        .with_context(|| format!("cannot read {}", aliases.display()))?;
    let there: BTreeSet<_> = all.iter().map(|path| module_name(path)).collect();
    let kept: String = aliases
        .lines()
        .filter(|line| {
            line.rsplit(' ').next().is_some_and(|name| there.contains(&name.replace('-', "_")))
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    tree.text(&at("modules.alias"), kept, 0o644)?;
    let order: String = loaded
        .iter()
        .flat_map(|path| [home.join(plain_name(path)).display().to_string(), "\n".to_owned()])
        .collect();
    tree.put("modules".into(), Node::Text { text: order.into_bytes(), mode: 0o644 });
    Ok(())
}

/// `modules.dep`, as depmod writes it: each module with all that must be loaded before it.
struct Dependencies<'a>(BTreeMap<&'a str, Vec<&'a str>>);

impl<'a> Dependencies<'a> {
    fn parse(text: &'a str) -> Self {
        Self(
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .map(|(path, needs)| (path, needs.split_whitespace().collect()))
                .collect(),
        )
    }

    fn direct(&self, path: &str) -> &[&'a str] {
        self.0.get(path).map_or(&[], Vec::as_slice)
    }

    /// Paths of the named modules and of all that they need, each after what it needs. A module
    /// that is not listed is built into the kernel, or the kernel has no such thing.
    fn in_load_order(&self, names: &[&str]) -> Vec<&'a str> {
        let mut order = Vec::new();
        for name in names {
            let Some((path, needs)) = self.0.iter().find(|(path, _)| module_name(path) == *name)
            else {
                continue;
            };
            // depmod lists the nearest dependency first.
            for path in needs.iter().rev().chain([path]) {
                if !order.contains(path) {
                    order.push(path);
                }
            }
        }
        order
    }
}

/// `overlay` of `kernel/fs/overlayfs/overlay.ko.xz`, with the kernel's underscores.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

fn plain_name(path: &str) -> &str {
    path.trim_end_matches(".xz").trim_end_matches(".zst").trim_end_matches(".gz")
}

fn uncompressed(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(OsStr::to_str) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => {
            return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        }
    };
    let output = process::command(tool)
        .arg("-dc")
        .arg(path)
        .output()
        .with_context(|| format!("cannot start {tool} to unpack {}", path.display()))?;
    if !output.status.success() {
        bail!("{tool} cannot unpack {}", path.display());
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_each_module_after_what_it_needs_and_skips_built_in_ones() {
        let known = Dependencies::parse(
            "kernel/a/virtio-blk.ko.xz: kernel/a/virtio_ring.ko.xz kernel/a/virtio.ko.xz\n\
             kernel/a/virtio_ring.ko.xz: kernel/a/virtio.ko.xz\n\
             kernel/a/virtio.ko.xz:\nkernel/fs/other.ko.xz:\n",
        );
        assert_eq!(
            known.in_load_order(&["virtio_blk", "virtio_ring", "ext4"]),
            ["kernel/a/virtio.ko.xz", "kernel/a/virtio_ring.ko.xz", "kernel/a/virtio-blk.ko.xz"]
        );
    }

    #[test]
    fn puts_files_where_the_guests_merged_folders_lead() {
        let at = |path: &str| guest_path(Path::new(path)).unwrap();
        assert_eq!(at("/lib64/ld.so"), Path::new("guest/usr/lib64/ld.so"));
        assert_eq!(at("/usr/sbin/x"), Path::new("guest/usr/bin/x"));
        assert_eq!(at("/opt/../etc/x"), Path::new("guest/etc/x"));
        assert!(guest_path(Path::new("../x")).is_err());
        assert!(guest_path(Path::new("/")).is_err());
    }

    #[test]
    fn reads_what_ldd_prints_and_refuses_a_missing_library() {
        let listed = "\tlinux-vdso.so.1 (0x7f)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let found: Vec<_> = parse_ldd(listed).unwrap().into_iter().collect();
        assert_eq!(
            found,
            [
                Path::new("/lib/x86_64-linux-gnu/libc.so.6"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
        assert!(parse_ldd("\tstatically linked\n").unwrap().is_empty());
        assert!(parse_ldd("\tlibz.so => not found\n").is_err());
    }

    #[test]
    fn archive_is_padded_and_holds_parents_before_children() {
        let mut tree = Tree::default();
        tree.text("/opt/a/b", "text", 0o644).unwrap();
        let mut bytes = Vec::new();
        tree.write(&mut bytes, 0).unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.find("guest/opt/a\0").unwrap() < text.find("guest/opt/a/b\0").unwrap());
    }
}
