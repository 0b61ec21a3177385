//! Programs: loaded or adopted, attached, pinned; and what they then cover.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use agent_ebpf::{ABI_VERSION, Config, SLOTS_PER_CPU};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData},
    programs::ProgramError,
};
use serde::Serialize;

use super::{
    btf::{Btf, BtfError},
    facts,
    host::{self, Host, HostError},
    ima,
    programs::{Attacher, Kind, PROGRAMS, asking, explain, verified},
    tables::{TableError, Tables},
};

/// The kernel half, as it was built with this daemon.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("AMBIT_BPF_OBJECT"));

/// What every map is called, in the object and in the pin folder.
pub(super) const MAPS: [&str; 29] = [
    "CONFIG",
    "AGENTS",
    "CGROUPS",
    "TASKS",
    "STRAYS",
    "STRAYED",
    "PLACES",
    "PEERS",
    "PATTERNS",
    "JOINS",
    "OBJECTS",
    "HOSTS",
    "NAMES",
    "TEXTS",
    "ROUTES",
    "RESOLVERS",
    "SERVERS",
    "FREE_PORTS",
    "MEMOS",
    "BYSTANDERS",
    "BINDINGS",
    "ACCEPTED",
    "GUARDED",
    "CONTENTS",
    "DENIED",
    "TOLD",
    "STREAM",
    "SCRATCH",
    "EXEC_SCRATCH",
];

/// Where things attach and how large they are.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder on bpffs that holds the pins.
    pub pins: PathBuf,
    /// Cgroup at or above all agents, to which the network programs attach.
    pub attach: PathBuf,
    /// Bytes of the ring for denials; a power of two of pages.
    pub denied_bytes: u32,
    /// Bytes of the ring for the rest; a power of two of pages.
    pub told_bytes: u32,
    /// How many processes of agents there may be at once.
    pub processes: u32,
    /// Whether LSM programs may be used where the kernel has them.
    pub lsm: bool,
}

/// Why the kernel half could not be put in place.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The host lacks something.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The kernel's types could not be read.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// A member that every supported kernel has was not found.
    #[error("this kernel's type information has no {0}; Ambit cannot read what it needs")]
    Offsets(String),
    /// The object was refused as a whole.
    #[error("cannot load the kernel half on {release}: {source}")]
    Object {
        /// Kernel release.
        release: String,
        /// What aya or the kernel said.
        source: Box<aya::EbpfError>,
    },
    /// A program without which nothing can be promised was refused.
    #[error("cannot attach {program} on {release}: {source}")]
    Program {
        /// Which.
        program: String,
        /// Kernel release.
        release: String,
        /// What aya or the kernel said.
        source: Box<ProgramError>,
    },
    /// A pin could not be made or opened.
    #[error("cannot pin {path}: {what}")]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// Pins of another build are in the way.
    #[error(
        "{path} holds programs of another build of Ambit ({found}), which are still enforcing; stop \
         its agents and run `ambit detach --all` before this build ({ours}) is started"
    )]
    OtherBuild {
        /// The pin folder.
        path: PathBuf,
        /// Which build.
        found: String,
        /// This build.
        ours: String,
    },
    /// A table could not be opened.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Who enforces a kind of action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// BPF programs on LSM hooks.
    Lsm,
    /// BPF programs on cgroup hooks.
    Cgroup,
    /// fanotify permission events, answered by the daemon.
    Fanotify,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lsm => "lsm",
            Self::Cgroup => "cgroup",
            Self::Fanotify => "fanotify",
        })
    }
}

/// One program and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Attached {
    /// Its hook, as in [`agent_ebpf::Hook::name`].
    pub hook: &'static str,
    /// Instructions that the verifier walked (`bpf_prog_info.verified_insns`, 5.16 and later).
    pub verified_instructions: Option<u32>,
    /// Why it is not attached.
    pub refused: Option<String>,
}

/// What is enforced by what.
#[derive(Debug, Clone, Serialize)]
pub struct Coverage {
    /// Kernel release.
    pub kernel: String,
    /// Who judges exec, read and write; `None` when nobody can.
    pub files: Option<Backend>,
    /// Why files are not judged by LSM programs, when they are not.
    pub no_lsm: Option<String>,
    /// Why the hooks do not ask IMA for the content of a program that nobody has read, when they do not.
    pub no_ima: Option<String>,
    /// Every program.
    pub programs: Vec<Attached>,
    /// True when the programs were found pinned and taken over.
    pub adopted: bool,
}

impl Coverage {
    /// True when the program on this hook is attached.
    pub fn has(&self, hook: agent_ebpf::Hook) -> bool {
        self.programs.iter().any(|p| p.hook == hook.name() && p.refused.is_none())
    }
}

/// The kernel half in place.
pub struct Loaded {
    /// Tables to write.
    pub tables: Tables,
    /// What is covered.
    pub coverage: Coverage,
    /// Secrets and levels as the kernel half has them.
    pub config: Config,
}

/// Loads the kernel half, or takes over what is pinned.
pub fn load(host: &Host, settings: &Settings) -> Result<Loaded, LoadError> {
    host::require_bpffs(&settings.pins)?;
    let build = build_id();
    match pinned_build(&settings.pins) {
        Some(found) if found == build => adopt(host, settings),
        Some(found) => {
            Err(LoadError::OtherBuild { path: settings.pins.clone(), found, ours: build })
        }
        None => fresh(host, settings, &build),
    }
}

/// Names this build of the kernel half: its ABI and a hash of the object.
fn build_id() -> String {
    // FNV-1a: a name, not a promise.
    let hash = OBJECT.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("abi{ABI_VERSION}-{hash:016x}")
}

/// The build whose pins are complete: its name is the folder that is made last.
fn pinned_build(pins: &Path) -> Option<String> {
    let entries = fs::read_dir(pins).ok()?;
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().into_string().ok())
        .find(|name| name.starts_with("abi"))
}

/// Tries every program on this kernel and puts it away again: what a daemon would find.
pub fn probe(host: &Host, settings: &Settings) -> Result<Coverage, LoadError> {
    let btf = Btf::of_kernel()?;
    let aya_btf = aya::Btf::from_sys_fs().map_err(|error| LoadError::Offsets(error.to_string()))?;
    let mut ebpf = object(host, settings, &btf, &aya_btf, None)?;
    let mut no_lsm = why_no_lsm(host, settings);
    let ima = ima_of(host, &mut ebpf, &aya_btf, no_lsm.as_deref());
    let mut attacher = Attacher { host, settings, btf: &aya_btf, links: &settings.pins, ima };
    let mut programs = Vec::new();
    for (name, hook, kind) in &PROGRAMS {
        let outcome = match (kind, &no_lsm) {
            (Kind::Lsm(_), Some(why)) => Err(why.clone()),
            _ => attacher.check(&mut ebpf, name, kind).map_err(|error| explain(host, &error)),
        };
        if let (Err(why), agent_ebpf::Hook::FileOpen | agent_ebpf::Hook::BprmCheck) =
            (&outcome, hook)
        {
            no_lsm = Some(why.clone());
        }
        programs.push(Attached {
            hook: hook.name(),
            verified_instructions: outcome.as_ref().ok().copied().flatten(),
            refused: outcome.err(),
        });
    }
    let files = if no_lsm.is_none() {
        Some(Backend::Lsm)
    } else {
        super::fanotify::available().is_ok().then_some(Backend::Fanotify)
    };
    let kernel = host.release.clone();
    let mut coverage = Coverage { kernel, files, no_lsm, no_ima: None, programs, adopted: false };
    settle_ima(&mut coverage, attacher.ima);
    Ok(coverage)
}

/// Whether IMA may be asked for contents, and where its flag is.
fn ima_of(
    host: &Host,
    ebpf: &mut Ebpf,
    btf: &aya::Btf,
    no_lsm: Option<&str>,
) -> Result<u64, String> {
    match no_lsm {
        Some(why) => Err(why.to_owned()),
        None => ima::try_out(host, ebpf, btf),
    }
}

/// IMA is asked when a program is checked and when its parts are mapped, and then not when it is opened, so both of
/// these have to be there. Returns where its flag is, or 0.
fn settle_ima(coverage: &mut Coverage, ima: Result<u64, String>) -> u64 {
    let missing = || {
        let hook = agent_ebpf::Hook::MmapFile;
        let is_there = coverage.files == Some(Backend::Lsm) && coverage.has(hook);
        (!is_there).then(|| format!("{} is not there", hook.name()))
    };
    match ima.and_then(|flag| missing().map_or(Ok(flag), Err)) {
        Ok(flag) => flag,
        Err(why) => {
            coverage.no_ima = Some(why);
            0
        }
    }
}

fn why_no_lsm(host: &Host, settings: &Settings) -> Option<String> {
    match (&host.lsm, settings.lsm) {
        (_, false) => Some("LSM programs are switched off in the configuration".to_owned()),
        _ if host.skips_preempted_programs() => Some(format!(
            "{} preempts kernel code at any point, and before 6.2 the kernel then skips an LSM program \
             that another task is in; boot with `preempt=voluntary`",
            host.release
        )),
        (Ok(_), true) if host.lsm_runs_bpf() => None,
        (Ok(list), true) => Some(format!(
            "`bpf` is not in the kernel's LSM list ({}); boot with `lsm={},bpf`",
            list.join(","),
            list.join(",")
        )),
        (Err(why), true) => Some(why.clone()),
    }
}

/// The object with this kernel's offsets and this machine's sizes; its maps are made, nothing runs.
///
/// With `pinned`, it works on the maps pinned in that folder.
fn object(
    host: &Host,
    settings: &Settings,
    btf: &Btf,
    aya_btf: &aya::Btf,
    pinned: Option<&Path>,
) -> Result<Ebpf, LoadError> {
    let offsets = facts::offsets(btf)?;
    let kernel = facts::facts(host, btf);
    let mut loader = EbpfLoader::new();
    loader
        .btf(Some(aya_btf))
        .override_global("OFFSETS", &offsets, true)
        .override_global("KERNEL", &kernel, true)
        .map_max_entries("TASKS", settings.processes)
        .map_max_entries("SCRATCH", SLOTS_PER_CPU * facts::cpus())
        .map_max_entries("DENIED", settings.denied_bytes)
        .map_max_entries("TOLD", settings.told_bytes);
    if let Some(folder) = pinned {
        for name in MAPS {
            loader.map_pin_path(name, folder.join(name));
        }
    }
    loader.load(OBJECT).map_err(|source| LoadError::Object {
        release: host.release.clone(),
        source: Box::new(source),
    })
}

fn fresh(host: &Host, settings: &Settings, build: &str) -> Result<Loaded, LoadError> {
    // What an interrupted start left behind is nobody's.
    clear_pins(&settings.pins)
        .map_err(|source| LoadError::Io { path: settings.pins.clone(), source })?;
    let btf = Btf::of_kernel()?;
    let aya_btf = aya::Btf::from_sys_fs().map_err(|error| LoadError::Offsets(error.to_string()))?;
    let mut ebpf = object(host, settings, &btf, &aya_btf, None)?;
    #[cfg(feature = "debug-log")]
    start_log(&mut ebpf);

    let (maps, links) = (settings.pins.join("maps"), settings.pins.join("links"));
    for folder in [&settings.pins, &maps, &links] {
        fs::create_dir_all(folder)
            .map_err(|source| LoadError::Io { path: folder.clone(), source })?;
    }
    for name in MAPS {
        let path = maps.join(name);
        let pin = |what: String| LoadError::Pin { path: path.clone(), what };
        ebpf.map(name)
            .ok_or_else(|| pin("the object has no such map".to_owned()))?
            .pin(&path)
            .map_err(|error| pin(error.to_string()))?;
    }
    let mut tables = Tables::open(&maps)?;
    let config = Config {
        levels: 0,
        hash_seed: random()?,
        hash_factor: random()? | 1,
        netns: 0,
        zero: 0,
        abi: ABI_VERSION,
        contents: 0,
        ima: 0,
    };
    tables.set_config(&config)?;

    let mut programs = Vec::new();
    let mut no_lsm = why_no_lsm(host, settings);
    let ima = ima_of(host, &mut ebpf, &aya_btf, no_lsm.as_deref());
    let mut attacher = Attacher { host, settings, btf: &aya_btf, links: &links, ima };
    for (name, hook, kind) in &PROGRAMS {
        let is_lsm = matches!(kind, Kind::Lsm(_));
        if is_lsm && let Some(why) = &no_lsm {
            programs.push(Attached {
                hook: hook.name(),
                verified_instructions: None,
                refused: Some(why.clone()),
            });
            continue;
        }
        match attacher.attach(&mut ebpf, name, kind) {
            Ok(verified_instructions) => {
                programs.push(Attached { hook: hook.name(), verified_instructions, refused: None });
            }
            Err(error) if is_lsm => {
                let refused = explain(host, &error);
                if matches!(hook, agent_ebpf::Hook::FileOpen | agent_ebpf::Hook::BprmCheck) {
                    no_lsm = Some(refused.clone());
                }
                programs.push(Attached {
                    hook: hook.name(),
                    verified_instructions: None,
                    refused: Some(refused),
                });
            }
            Err(source) => {
                let _ = remove_pins(&settings.pins);
                return Err(LoadError::Program {
                    program: hook.name().to_owned(),
                    release: host.release.clone(),
                    source: Box::new(source),
                });
            }
        }
    }
    let kernel = host.release.clone();
    let mut coverage =
        Coverage { kernel, files: None, no_lsm, no_ima: None, programs, adopted: false };
    settle_files(&mut coverage, &links);
    let config = Config { ima: settle_ima(&mut coverage, attacher.ima), ..config };
    tables.set_config(&config)?;
    // Complete from here on: the next start may adopt it.
    let done = settings.pins.join(build);
    fs::create_dir(&done).map_err(|source| LoadError::Io { path: done, source })?;
    Ok(Loaded { tables, coverage, config })
}

/// LSM judges files when both of its programs are there; a half is withdrawn, so that nothing is
/// judged twice.
fn settle_files(coverage: &mut Coverage, links: &Path) {
    use agent_ebpf::Hook;
    if coverage.has(Hook::FileOpen) && coverage.has(Hook::BprmCheck) {
        coverage.files = Some(Backend::Lsm);
        return;
    }
    for (name, hook, _) in &PROGRAMS {
        if matches!(hook, Hook::FileOpen | Hook::BprmCheck) && coverage.has(*hook) {
            let _ = fs::remove_file(links.join(name));
            for program in &mut coverage.programs {
                if program.hook == hook.name() {
                    program.refused = Some("its companion hook could not be attached".to_owned());
                }
            }
        }
    }
}

fn adopt(host: &Host, settings: &Settings) -> Result<Loaded, LoadError> {
    let mut tables = Tables::open(&settings.pins.join("maps"))?;
    let config = tables.config()?;
    let mut ima = match config.ima {
        0 => Err("it could not be asked when the programs were put there".to_owned()),
        flag => Ok(flag),
    };
    let links = settings.pins.join("links");
    let mut no_lsm = why_no_lsm(host, settings);
    let mut refused = BTreeMap::new();
    if PROGRAMS.iter().any(|(name, ..)| !links.join(name).exists()) {
        // Programs that were taken away, or that could not be attached then: tried again, on the maps
        // that are pinned.
        let btf = Btf::of_kernel()?;
        let aya_btf =
            aya::Btf::from_sys_fs().map_err(|error| LoadError::Offsets(error.to_string()))?;
        let mut ebpf = object(host, settings, &btf, &aya_btf, Some(&settings.pins.join("maps")))?;
        let mut attacher = Attacher { host, settings, btf: &aya_btf, links: &links, ima };
        for (name, hook, kind) in &PROGRAMS {
            if links.join(name).exists() {
                continue;
            }
            let is_lsm = matches!(kind, Kind::Lsm(_));
            if is_lsm && let Some(why) = &no_lsm {
                refused.insert(*name, why.clone());
                continue;
            }
            match attacher.attach(&mut ebpf, name, kind) {
                Ok(_) => {}
                Err(error) if is_lsm => {
                    let why = explain(host, &error);
                    if matches!(hook, agent_ebpf::Hook::FileOpen | agent_ebpf::Hook::BprmCheck) {
                        no_lsm = Some(why.clone());
                    }
                    refused.insert(*name, why);
                }
                Err(source) => {
                    return Err(LoadError::Program {
                        program: hook.name().to_owned(),
                        release: host.release.clone(),
                        source: Box::new(source),
                    });
                }
            }
        }
        ima = attacher.ima;
    }
    let mut names = BTreeMap::new();
    for info in aya::programs::loaded_programs().filter_map(Result::ok) {
        names.insert(info.name_as_str().unwrap_or_default().to_owned(), verified(&info));
    }
    let programs: Vec<Attached> = PROGRAMS
        .iter()
        .map(|(name, hook, _)| Attached {
            hook: hook.name(),
            verified_instructions: asking(name)
                .and_then(|asking| names.get(asking))
                .or_else(|| names.get(*name))
                .copied()
                .flatten(),
            refused: refused.get(name).cloned(),
        })
        .collect();
    let kernel = host.release.clone();
    let mut coverage =
        Coverage { kernel, files: None, no_lsm, no_ima: None, programs, adopted: true };
    settle_files(&mut coverage, &links);
    let config = Config { ima: settle_ima(&mut coverage, ima), ..config };
    tables.set_config(&config)?;
    Ok(Loaded { tables, coverage, config })
}

fn random() -> Result<u64, LoadError> {
    host::random().map_err(|source| LoadError::Io { path: PathBuf::from("/dev/urandom"), source })
}

/// Prints the kernel half's own log lines, for its developers.
#[cfg(feature = "debug-log")]
fn start_log(ebpf: &mut Ebpf) {
    struct Stderr;
    impl log::Log for Stderr {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            eprintln!("kernel half: {} {}", record.level(), record.args());
        }
        fn flush(&self) {}
    }
    match aya_log::EbpfLogger::init_with_logger(ebpf, Stderr) {
        Ok(mut logger) => {
            let _ = std::thread::Builder::new().name("kernel-log".to_owned()).spawn(move || {
                loop {
                    logger.flush();
                    std::thread::sleep(std::time::Duration::from_millis(100));
                }
            });
        }
        Err(error) => eprintln!("no log from the kernel half: {error}"),
    }
}

/// Opens one pinned map.
pub(super) fn open_map(maps: &Path, name: &str) -> Result<Map, TableError> {
    let path = maps.join(name);
    let data = MapData::from_pin(&path)
        .map_err(|source| TableError::Open { path: path.clone(), source: Box::new(source) })?;
    Map::from_map_data(data).map_err(|source| TableError::Open { path, source: Box::new(source) })
}

/// Opens the table that holds the one [`Config`].
pub(super) fn config_of(map: Map) -> Result<Array<MapData, Config>, TableError> {
    Array::try_from(map)
        .map_err(|source| TableError::Map { table: "CONFIG", source: Box::new(source) })
}

/// Removes Ambit's pins. Programs end when their links' pins go.
///
/// The mark of completeness goes first, so that what is left half-way is not taken for whole. Only what
/// Ambit makes is touched; a folder that does not exist is done.
pub fn remove_pins(pins: &Path) -> io::Result<()> {
    clear_pins(pins)?;
    missing_is_done(fs::remove_dir(pins))
}

/// As [`remove_pins`], but leaves the folder, which its owner has locked.
fn clear_pins(pins: &Path) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(pins) else { return Ok(()) };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_name().as_encoded_bytes().starts_with(b"abi") {
            fs::remove_dir(entry.path())?;
        }
    }
    let links = PROGRAMS.iter().map(|(name, ..)| pins.join("links").join(name));
    let maps = MAPS.iter().map(|name| pins.join("maps").join(name));
    for pin in links.chain(maps) {
        missing_is_done(fs::remove_file(pin))?;
    }
    for folder in [pins.join("links"), pins.join("maps")] {
        missing_is_done(fs::remove_dir(folder))?;
    }
    Ok(())
}

fn missing_is_done(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
