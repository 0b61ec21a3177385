//! What holds on this machine: per kind of action, enforced by what, observed by what, or not covered.

use std::fmt::Write as _;

use agent_ebpf::Hook;
use serde::{Deserialize, Serialize};

const MIB: f64 = (1 << 20) as f64;

/// The whole report.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// Kernel release.
    pub kernel: String,
    /// True when a daemon answered; else the programs were only tried.
    pub running: bool,
    /// True when the daemon took over programs that were pinned.
    pub adopted: bool,
    /// Why LSM programs do not judge files, where they do not.
    pub no_lsm: Option<String>,
    /// Why the kernel's IMA is not asked for the content of programs, where it is not.
    pub no_ima: Option<String>,
    /// Per kind of action.
    pub actions: Vec<Row>,
    /// Every program.
    pub programs: Vec<Program>,
    /// Address of `/metrics`.
    pub metrics: Option<String>,
    /// Where the network programs are attached.
    pub attach: Option<String>,
    /// File systems that the fanotify backend has marked.
    pub marked: Vec<String>,
    /// What keeps agents of `ambit run` from changes that the fanotify backend cannot see.
    pub ceiling: Option<String>,
    /// Bytes of kernel memory that all tables have; absent where no daemon runs.
    pub kernel_memory_bytes: Option<u64>,
}

/// One kind of action.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub action: String,
    /// Who denies it; nobody when empty.
    pub enforced_by: Option<String>,
    /// Who tells of it.
    pub observed_by: Option<String>,
    /// Why, and what to know about it.
    pub why: String,
}

/// One program.
#[derive(Debug, Serialize, Deserialize)]
pub struct Program {
    /// Its hook.
    pub hook: String,
    /// Attached, or, where nothing runs, accepted by the kernel.
    pub attached: bool,
    /// Instructions that the verifier walked; absent before 5.16.
    pub verified_instructions: Option<u32>,
    /// Why not.
    pub refused: Option<String>,
}

/// The coverage as a daemon or a trial found it.
#[derive(Debug, Deserialize)]
pub struct Facts {
    coverage: FactCoverage,
    #[serde(default)]
    marked: Vec<String>,
    attach: Option<String>,
    metrics: Option<String>,
    landlock: bool,
    #[serde(default)]
    kernel_memory: Option<u64>,
}

impl Facts {
    /// What a daemon knows of itself, as it tells it to others.
    ///
    /// # Errors
    /// It cannot be told.
    pub fn of(summary: &impl Serialize) -> serde_json::Result<Self> {
        serde_json::from_value(serde_json::to_value(summary)?)
    }
}

#[derive(Debug, Deserialize)]
struct FactCoverage {
    kernel: String,
    files: Option<String>,
    no_lsm: Option<String>,
    no_ima: Option<String>,
    programs: Vec<FactProgram>,
    adopted: bool,
}

#[derive(Debug, Deserialize)]
struct FactProgram {
    hook: String,
    verified_instructions: Option<u32>,
    refused: Option<String>,
}

/// Programs by what they contain, where a policy asks for it.
fn contents(files: Option<&str>, no_lsm: &str, no_ima: Option<&str>) -> Row {
    let by = files.map(|files| match files {
        "lsm" => "lsm/bprm_check_security, lsm/file_open, lsm/mmap_file".to_owned(),
        other => other.to_owned(),
    });
    let why = match (&by, no_ima) {
        (Some(_), None) => {
            "a program whose content nobody knows yet is read by the kernel's IMA, as long as no IMA policy is \
             loaded; on ext4, xfs, f2fs, tmpfs, ramfs, overlayfs, btrfs, squashfs and erofs, and denied on \
             all others"
                .to_owned()
        }
        (Some(_), Some(_)) => {
            "a program whose content nobody knows yet is denied, then read by the daemon, so that \
                    the next try is judged; on ext4, xfs and f2fs, and denied on all others"
                .to_owned()
        }
        (None, _) => no_lsm.to_owned(),
    };
    Row { action: "programs by content".to_owned(), enforced_by: by.clone(), observed_by: by, why }
}

/// Changes by name: a kernel that has no hook for one of them says so.
fn change(files: Option<&str>, no_lsm: &str, refused: impl Fn(Hook) -> Option<String>) -> Row {
    const HOOKS: [Hook; 10] = [
        Hook::PathMknod,
        Hook::PathMkdir,
        Hook::PathSymlink,
        Hook::PathUnlink,
        Hook::PathRmdir,
        Hook::PathRename,
        Hook::PathLink,
        Hook::PathTruncate,
        Hook::PathChmod,
        Hook::PathChown,
    ];
    let action = "change".to_owned();
    let missing: Vec<&str> =
        HOOKS.into_iter().filter(|hook| refused(*hook).is_some()).map(Hook::name).collect();
    match (files, missing.as_slice()) {
        (Some("lsm"), []) => Row {
            action,
            enforced_by: Some("lsm/path_*, lsm/inode_*".to_owned()),
            observed_by: Some("lsm/path_*, lsm/inode_*".to_owned()),
            why: "create, mkdir, symlink, unlink, rmdir, rename, link, truncate, chmod and chown are write \
                  on every name that they change; times, attributes and access lists of what is forbidden"
                .to_owned(),
        },
        (Some("lsm"), missing) => Row {
            action,
            enforced_by: None,
            observed_by: None,
            why: format!("not covered whole: this kernel refuses {}", missing.join(", ")),
        },
        (Some(_), _) => Row {
            action,
            enforced_by: None,
            observed_by: None,
            why: "not covered: fanotify asks before opens only; create, unlink, rename, link, truncate, \
                  chmod, chown and the like are not seen; what the ceiling keeps is said above"
                .to_owned(),
        },
        (None, _) => {
            Row { action, enforced_by: None, observed_by: None, why: no_lsm.to_owned() }
        }
    }
}

/// A kind of action that LSM programs judge, each on its own.
struct Named {
    action: &'static str,
    hooks: &'static [Hook],
    /// A hook that judges a part of it on every kernel, and which part.
    always: Option<(Hook, &'static str)>,
    /// What holds where none of `hooks` is there.
    without: &'static str,
}

const NAMED: [Named; 13] = [
    Named {
        action: "code of libraries",
        hooks: &[Hook::MmapFile, Hook::FileMprotect],
        always: None,
        without: "not covered without LSM; a loader that may read a program may run it",
    },
    Named {
        action: "received files",
        hooks: &[Hook::FileReceive],
        always: None,
        without: "not covered without LSM; what another process opened and hands over is not judged",
    },
    Named {
        action: "open files",
        hooks: &[Hook::FilePermission],
        always: None,
        without: "not covered without LSM; a descriptor from before the policy, or inherited, goes on to work",
    },
    Named {
        action: "open connections",
        hooks: &[Hook::SocketSendmsg, Hook::SocketRecvmsg, Hook::SockGraft],
        always: None,
        without: "not covered without LSM; what was connected before the policy, or inherited, goes on to work",
    },
    Named {
        action: "listen",
        hooks: &[Hook::SocketListen],
        always: None,
        without: "not covered without LSM; the address that it listens at is judged by bind",
    },
    Named {
        action: "unix sockets",
        hooks: &[Hook::UnixStreamConnect, Hook::UnixMaySend, Hook::SocketBind],
        always: None,
        without: "not covered without LSM",
    },
    Named {
        action: "socket",
        hooks: &[Hook::SocketCreate],
        always: Some((Hook::SockCreate, "IPv4 and IPv6 only; other families need LSM")),
        without: "not covered",
    },
    Named {
        action: "ptrace, signal",
        hooks: &[Hook::PtraceAccessCheck, Hook::TaskKill],
        always: None,
        without: "not covered without LSM; only the kernel's own rules on users hold",
    },
    Named {
        action: "mount, namespace",
        hooks: &[
            Hook::SbMount,
            Hook::MoveMount,
            Hook::SbUmount,
            Hook::SbPivotroot,
            Hook::UsernsCreate,
            Hook::Capable,
        ],
        always: None,
        without: "not covered without LSM; user namespaces give any user mounts of his own",
    },
    Named {
        action: "capability, module, kexec",
        hooks: &[Hook::Capable],
        always: None,
        without: "not covered without LSM; an agent that is not root has none",
    },
    Named {
        action: "setuid",
        hooks: &[Hook::BprmCredsFromFile],
        always: None,
        without: "not covered without LSM; `ambit run` starts agents without new privileges",
    },
    Named {
        action: "execmem",
        hooks: &[Hook::MmapFile, Hook::FileMprotect],
        always: None,
        without: "not covered without LSM",
    },
    Named {
        action: "bpf",
        hooks: &[Hook::Bpf],
        always: None,
        without: "not covered without LSM; an agent without CAP_BPF or CAP_SYS_ADMIN cannot use it",
    },
];

fn named(one: &Named, refused: impl Fn(Hook) -> Option<String>) -> Row {
    let (there, missing): (Vec<Hook>, Vec<Hook>) =
        one.hooks.iter().copied().partition(|hook| refused(*hook).is_none());
    let always = one.always.filter(|(hook, _)| refused(*hook).is_none());
    let names =
        |hooks: &[Hook]| hooks.iter().map(|hook| hook.name()).collect::<Vec<_>>().join(", ");
    let mut by = there.clone();
    by.extend(always.map(|(hook, _)| hook));
    let why = match (there.is_empty(), missing.is_empty(), always) {
        (_, true, _) => "in the kernel; goes on without the daemon".to_owned(),
        (true, false, Some((_, part))) => part.to_owned(),
        (true, false, None) => one.without.to_owned(),
        (false, false, _) => {
            format!("in the kernel, in part: this kernel lacks {}", names(&missing))
        }
    };
    let by = (!by.is_empty()).then(|| names(&by));
    Row { action: one.action.to_owned(), enforced_by: by.clone(), observed_by: by, why }
}

impl Report {
    /// Draws the conclusions.
    pub fn of(facts: Facts, running: bool) -> Self {
        let Facts { coverage, marked, attach, metrics, landlock, kernel_memory } = facts;
        let refused = |hook: Hook| {
            coverage.programs.iter().find(|p| p.hook == hook.name()).map_or_else(
                || Some("there is no such program".to_owned()),
                |program| program.refused.clone(),
            )
        };
        let mut actions = Vec::new();
        let lsm_why = coverage.no_lsm.clone().unwrap_or_default();
        for (name, hooks) in [
            ("exec", "lsm/bprm_check_security, lsm/file_open"),
            ("read", "lsm/file_open"),
            ("write", "lsm/file_open"),
        ] {
            actions.push(match coverage.files.as_deref() {
                Some("lsm") => Row {
                    action: name.to_owned(),
                    enforced_by: Some(hooks.to_owned()),
                    observed_by: Some(hooks.to_owned()),
                    why: "in the kernel; goes on without the daemon".to_owned(),
                },
                Some(_) => Row {
                    action: name.to_owned(),
                    enforced_by: Some("fanotify".to_owned()),
                    observed_by: Some("fanotify".to_owned()),
                    why: "answered by the daemon, and ends with it; opens on marked file systems only \
                          (never /proc, /sys, FUSE)"
                        .to_owned(),
                },
                None => Row {
                    action: name.to_owned(),
                    enforced_by: None,
                    observed_by: None,
                    why: lsm_why.clone(),
                },
            });
        }
        actions.push(contents(coverage.files.as_deref(), &lsm_why, coverage.no_ima.as_deref()));
        actions.push(change(coverage.files.as_deref(), &lsm_why, refused));
        for (name, v4, v6) in [
            ("connect", Hook::Connect4, Hook::Connect6),
            ("send", Hook::Sendmsg4, Hook::Sendmsg6),
            ("bind", Hook::Bind4, Hook::Bind6),
        ] {
            let both = format!("{}, {}", v4.name(), v6.name());
            actions.push(match (refused(v4), refused(v6)) {
                (None, None) => Row {
                    action: name.to_owned(),
                    enforced_by: Some(both.clone()),
                    observed_by: Some(both),
                    why:
                        "in the kernel; goes on without the daemon; sockets of cgroups beneath the \
                          attachment point"
                            .to_owned(),
                },
                (a, b) => Row {
                    action: name.to_owned(),
                    enforced_by: None,
                    observed_by: None,
                    why: a.or(b).unwrap_or_default(),
                },
            });
        }
        let missing = [Hook::Connect4, Hook::Connect6, Hook::Recvmsg4, Hook::Recvmsg6]
            .into_iter()
            .find_map(refused);
        let by = missing.is_none().then(|| "cgroup/connect*, cgroup/sendmsg*".to_owned());
        actions.push(Row {
            action: "host names".to_owned(),
            enforced_by: by.clone(),
            observed_by: by,
            why: missing.unwrap_or_else(|| {
                "in the kernel; what is known goes on without the daemon, new names are learnt with it; in its \
                 own network namespace only"
                    .to_owned()
            }),
        });
        actions.extend(NAMED.iter().map(|one| named(one, refused)));
        let ceiling = (coverage.files.as_deref() != Some("lsm")).then(|| match landlock {
            true => "Landlock: an agent of `ambit run` removes, renames, links and truncates only beneath \
                     folders in which it may write, and mounts nothing; other agents are not kept from it"
                .to_owned(),
            false => "none: the kernel has no Landlock, so removing, renaming, linking and truncating are \
                      not kept within bounds; boot Linux 5.19 or later with `landlock` in `lsm=`"
                .to_owned(),
        });
        let programs = coverage
            .programs
            .into_iter()
            .map(|program| Program {
                attached: program.refused.is_none(),
                hook: program.hook,
                verified_instructions: program.verified_instructions,
                refused: program.refused,
            })
            .collect();
        Self {
            kernel: coverage.kernel,
            running,
            adopted: coverage.adopted,
            no_lsm: coverage.no_lsm,
            no_ima: coverage.no_ima,
            actions,
            programs,
            metrics,
            attach,
            marked,
            ceiling,
            kernel_memory_bytes: kernel_memory,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let state = match (self.running, self.adopted) {
            (true, true) => "ambitd runs and has taken over pinned programs",
            (true, false) => "ambitd runs",
            (false, _) => "no ambitd runs; the programs were tried and put away",
        };
        let _ = writeln!(text, "kernel   {}\ndaemon   {state}", self.kernel);
        for (name, value) in [("attach", &self.attach), ("metrics", &self.metrics)] {
            if let Some(value) = value {
                let _ = writeln!(text, "{name:<8} {value}");
            }
        }
        if let Some(bytes) = self.kernel_memory_bytes {
            let _ =
                writeln!(text, "memory   {:.1} MiB of the kernel's, in tables", bytes as f64 / MIB);
        }
        if let Some(why) = &self.no_lsm {
            let _ = writeln!(text, "no lsm   {}", why.lines().next().unwrap_or_default());
        }
        if let Some(why) = self.no_ima.as_ref().filter(|why| self.no_lsm.as_ref() != Some(*why)) {
            let _ = writeln!(text, "no ima   {}", why.lines().next().unwrap_or_default());
        }
        if let Some(ceiling) = &self.ceiling {
            let _ = writeln!(text, "ceiling  {ceiling}");
        }
        if !self.marked.is_empty() {
            let _ = writeln!(text, "marked   {}", self.marked.join(" "));
        }
        let width = |f: fn(&Row) -> &Option<String>| {
            self.actions
                .iter()
                .map(|row| f(row).as_deref().unwrap_or("nobody").len())
                .max()
                .unwrap_or(0)
        };
        let enforced = width(|row| &row.enforced_by).max("enforced by".len());
        let action = self.actions.iter().map(|row| row.action.len()).max().unwrap_or(0);
        let _ = writeln!(text, "\n{:<action$}  {:<enforced$}  why", "action", "enforced by");
        for row in &self.actions {
            let by = row.enforced_by.as_deref().unwrap_or("nobody");
            let why = row.why.lines().next().unwrap_or_default();
            let _ = writeln!(text, "{:<action$}  {by:<enforced$}  {why}", row.action);
        }
        let hook = self.programs.iter().map(|p| p.hook.len()).max().unwrap_or(0);
        let _ = writeln!(text, "\n{:<hook$}  {:>12}  state", "program", "instructions");
        for program in &self.programs {
            let count = program.verified_instructions.map_or("-".to_owned(), |n| n.to_string());
            let state = match &program.refused {
                None if self.running => "attached",
                None => "accepted",
                Some(why) if self.no_lsm.as_ref() == Some(why) => "no lsm",
                Some(why) => why.lines().next().unwrap_or_default(),
            };
            let _ = writeln!(text, "{:<hook$}  {count:>12}  {state}", program.hook);
        }
        text
    }
}
