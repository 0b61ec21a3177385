//! What holds on this machine: per kind of action, enforced by what, observed by what, or not covered.

use std::fmt::Write as _;

use agent_ebpf::Hook;
use serde::{Deserialize, Serialize};

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
}

#[derive(Debug, Deserialize)]
struct FactCoverage {
    kernel: String,
    files: Option<String>,
    no_lsm: Option<String>,
    programs: Vec<FactProgram>,
    adopted: bool,
}

#[derive(Debug, Deserialize)]
struct FactProgram {
    hook: String,
    verified_instructions: Option<u32>,
    refused: Option<String>,
}

impl Report {
    /// Draws the conclusions.
    pub fn of(facts: Facts, running: bool) -> Self {
        let Facts { coverage, marked, attach, metrics } = facts;
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
        actions.push(match refused(Hook::Bpf) {
            None => Row {
                action: "bpf".to_owned(),
                enforced_by: Some(Hook::Bpf.name().to_owned()),
                observed_by: Some(Hook::Bpf.name().to_owned()),
                why: "no agent may call bpf(2)".to_owned(),
            },
            Some(_) => Row {
                action: "bpf".to_owned(),
                enforced_by: None,
                observed_by: None,
                why: "not covered without LSM; an agent without CAP_BPF or CAP_SYS_ADMIN cannot use it"
                    .to_owned(),
            },
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
            actions,
            programs,
            metrics,
            attach,
            marked,
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
        if let Some(why) = &self.no_lsm {
            let _ = writeln!(text, "no lsm   {}", why.lines().next().unwrap_or_default());
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
        let _ = writeln!(text, "\n{:<8} {:<enforced$}  why", "action", "enforced by");
        for row in &self.actions {
            let by = row.enforced_by.as_deref().unwrap_or("nobody");
            let why = row.why.lines().next().unwrap_or_default();
            let _ = writeln!(text, "{:<8} {by:<enforced$}  {why}", row.action);
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
