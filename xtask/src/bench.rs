//! What the hooks cost, in instructions: measured in a guest whose time counts them, shown, and kept in
//! `docs/cost.md`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cache::{self, Cache};
use crate::kernels::{self, Row};
use crate::object;
use crate::process::{self, Paint, paint};
use crate::setup;
use crate::vm::Guest;

/// How far a figure may be from the one that is kept, in percent.
const TOLERANCE: f64 = 5.0;
/// Where the object with the programs that do nothing is in the guest.
const EMPTY: &str = "/usr/lib/ambit-bench/empty.bpf.o";
/// How long it may take: the guest's one CPU is emulated, and loads 100,000 rules.
const LIMIT: Duration = Duration::from_secs(3600);
/// What is measured, and what it is called.
const ACTIONS: [(&str, &str); 6] = [
    ("call", "getppid"),
    ("open", "open, close"),
    ("read", "open, read 4 KiB, close"),
    ("exec", "fork, exec, exit"),
    ("connect", "TCP connect, accept, close"),
    ("send", "UDP send, receive"),
];
/// The bars on agents that are allowed, in percent above no Ambit at all.
const BARS: [(&str, f64); 3] = [("open", 20.0), ("exec", 3.0), ("connect", 5.0)];
/// The bar on bystanders, in instructions above programs that do nothing.
const BYSTANDER: f64 = 60.0;
/// The bar on the growth of the whole action's cost from 10 to 100,000 rules, in percent.
const GROWTH: f64 = 20.0;
/// The bar on the daemon, in instructions for an event.
const DAEMON: f64 = 5000.0;

const NONE: &str = "none";
const LIMIT_ROW: &str = "empty";
const BESIDE: &str = "bystander";
const FEW: &str = "allowed, 10 rules";
const MANY: &str = "allowed, 100,000 rules";

/// What to measure.
#[derive(Args, Debug)]
pub struct Options {
    /// Fail where a figure is more than 5 % from what docs/cost.md has
    #[arg(long, global = true)]
    check: bool,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Instructions for each action: without Ambit, with programs that do nothing, beside it, and under it
    Hooks(Hooks),
}

#[derive(Args, Clone, Debug)]
struct Hooks {
    /// The kernel line: 6.1, 6.12, 6.18 or 7.3
    #[arg(long, value_parser = kernels::row, default_value = kernels::DEFAULT)]
    kernel: &'static Row,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
    /// Write docs/cost.md, for the kernel that it is about
    #[arg(long, conflicts_with = "check")]
    write: bool,
}

/// Measures. The exit code is a failure where `--check` finds another figure than the one that is kept.
pub fn run(cache: &Cache, options: &Options) -> Result<ExitCode> {
    let hooks = match &options.what {
        Some(What::Hooks(hooks)) => hooks.clone(),
        None => Hooks { kernel: kernels::row(kernels::DEFAULT)?, json: false, write: false },
    };
    let figures = Figures::measure(cache, hooks.kernel)?;
    if hooks.json {
        println!("{}", figures.json(hooks.kernel));
    } else {
        print!("{}", figures.table());
        println!();
        for (bar, met) in figures.bars() {
            let verdict = if met { paint(Paint::Good, "met") } else { paint(Paint::Bad, "missed") };
            println!("{verdict}: {bar}");
        }
    }
    let page = cache::checkout().join("docs/cost.md");
    if hooks.write {
        ensure!(
            hooks.kernel.line == kernels::DEFAULT,
            "docs/cost.md is about {}: leave out --kernel",
            kernels::DEFAULT
        );
        fs::write(&page, figures.page())
            .with_context(|| format!("cannot write {}", page.display()))?;
    }
    if !options.check {
        return Ok(ExitCode::SUCCESS);
    }
    let kept = Figures::kept(&page)?;
    let complaints = kept.changes(&figures);
    for complaint in &complaints {
        eprintln!("{} {complaint}", paint(Paint::Bad, "changed:"));
    }
    Ok(if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Figures by setup and action, in the order in which they were measured.
#[derive(Debug, Default, PartialEq)]
struct Figures(Vec<(String, String, f64)>);

impl Figures {
    fn measure(cache: &Cache, kernel: &'static Row) -> Result<Self> {
        let toolchain = setup::all(cache, false)?;
        setup::for_vms(cache)?;
        object::all(&toolchain, object::Options::default())?;
        let empty = object::empty(&toolchain)?;
        let command = ["ambit-e2e", "bench", EMPTY].map(OsString::from);
        let mut guest = Guest::new(kernel, command);
        guest.add.push((empty, PathBuf::from(EMPTY)));
        (guest.icount, guest.memory_mib, guest.limit) = (true, 3072, LIMIT);
        let mut figures = Self::default();
        process::say(&format!(
            "measuring in a guest with {}, which takes minutes ...",
            kernel.line
        ));
        let ended = guest.run(cache, |line| match line.strip_prefix("figure ") {
            Some(figure) => {
                eprintln!("{figure}");
                figures.take(figure);
            }
            None => eprintln!("{line}"),
        })?;
        ensure!(ended.success(), "the guest did not measure to the end; what it said is above");
        Ok(figures)
    }

    fn take(&mut self, line: &str) {
        if let Ok(Value::Object(line)) = serde_json::from_str(line)
            && let (Some(setup), Some(action), Some(figure)) = (
                line.get("setup").and_then(Value::as_str),
                line.get("action").and_then(Value::as_str),
                line.get("figure").and_then(Value::as_f64),
            )
        {
            self.0.push((setup.to_owned(), action.to_owned(), figure));
        }
    }

    fn of(&self, setup: &str, action: &str) -> Option<f64> {
        let found = self.0.iter().find(|(own, of, _)| own == setup && of == action);
        found.map(|(.., figure)| *figure)
    }

    /// Setups that have a figure for an action, in their order.
    fn setups(&self) -> Vec<&str> {
        let mut setups: Vec<&str> = Vec::new();
        for (setup, action, _) in &self.0 {
            if ACTIONS.iter().any(|(own, _)| own == action)
                && setup != "daemon"
                && !setups.contains(&setup.as_str())
            {
                setups.push(setup);
            }
        }
        setups
    }

    /// A line for each setup: instructions for an action, and how many percent that is above none.
    fn table(&self) -> String {
        let mut text = format!("{:24}", "instructions");
        for (_, title) in ACTIONS {
            let _ = write!(text, " {title:>27}");
        }
        text.push('\n');
        for setup in self.setups() {
            let _ = write!(text, "{setup:24}");
            for (action, _) in ACTIONS {
                let _ = write!(text, " {:>27}", self.cell(setup, action));
            }
            text.push('\n');
        }
        text
    }

    fn cell(&self, setup: &str, action: &str) -> String {
        match (self.of(setup, action), self.of(NONE, action)) {
            (Some(figure), Some(_)) if setup == NONE => format!("{figure:.0}"),
            (Some(figure), Some(none)) => {
                format!("{figure:.0} ({:+.1} %)", 100.0 * (figure / none - 1.0))
            }
            _ => String::new(),
        }
    }

    /// Each bar with what was measured, and whether it was met.
    fn bars(&self) -> Vec<(String, bool)> {
        let mut bars = Vec::new();
        let above = |setup: &str, from: &str, action: &str| -> Option<(f64, f64)> {
            let (figure, from) = (self.of(setup, action)?, self.of(from, action)?);
            Some((figure - from, 100.0 * (figure / from - 1.0)))
        };
        for (action, title) in ACTIONS.into_iter().skip(1) {
            if let Some((more, _)) = above(BESIDE, LIMIT_ROW, action) {
                bars.push((
                    format!("bystander, {title}: {more:+.0} instructions on programs that do nothing (at most +{BYSTANDER:.0})"),
                    more <= BYSTANDER,
                ));
            }
        }
        for (action, most) in BARS {
            if let Some((_, percent)) = above(FEW, NONE, action) {
                bars.push((
                    format!(
                        "agent, allowed and told, {action}: {percent:+.1} % (at most +{most:.0} %)"
                    ),
                    percent <= most,
                ));
            }
        }
        for (action, title) in ACTIONS.into_iter().skip(1) {
            if let Some((_, percent)) = above(MANY, FEW, action) {
                bars.push((
                    format!("100,000 rules instead of 10, {title}: {percent:+.1} % (at most +{GROWTH:.0} %)"),
                    percent <= GROWTH,
                ));
            }
        }
        if let Some(figure) = self.of("daemon", "open") {
            bars.push((
                format!("daemon: {figure:.0} instructions for an event, to JSON Lines (at most {DAEMON:.0})"),
                figure <= DAEMON,
            ));
        }
        bars
    }

    fn json(&self, kernel: &Row) -> Value {
        let figures: Vec<Value> = self
            .0
            .iter()
            .map(|(setup, action, figure)| json!({ "setup": setup, "action": action, "instructions": figure }))
            .collect();
        let bars: Vec<Value> =
            self.bars().into_iter().map(|(bar, met)| json!({ "bar": bar, "met": met })).collect();
        json!({ "kernel": kernel.line, "figures": figures, "bars": bars })
    }

    /// `docs/cost.md`.
    fn page(&self) -> String {
        let mut text = format!(
            "# What it costs\n\n\
             Instructions of a guest with kernel {}, whose time counts them (QEMU's `-icount`), for one action and everything that it brings\n\
             about in its own process; percentages are above the row `{NONE}`. `{LIMIT_ROW}` is a program that does nothing on each hook that the action passes\n\
             (a sleepable one on `file_open`): the limit. Agents are told of, allowed or denied. Written by `cargo xtask bench hooks --write`; `cargo xtask bench --check` fails\n\
             where a figure of the second table is {TOLERANCE:.0} % off.\n\n",
            kernels::DEFAULT
        );
        let titles: Vec<&str> = ACTIONS.iter().map(|(_, title)| *title).collect();
        let _ =
            writeln!(text, "| | {} |\n|---|{}", titles.join(" | "), "---:|".repeat(titles.len()));
        for setup in self.setups() {
            let cells: Vec<String> =
                ACTIONS.iter().map(|(action, _)| self.cell(setup, action)).collect();
            let _ = writeln!(text, "| {setup} | {} |", cells.join(" | "));
        }
        text.push_str("\n## Bars\n\n");
        for (bar, met) in self.bars() {
            let _ = writeln!(text, "- {}: {bar}", if met { "met" } else { "**missed**" });
        }
        text.push_str("\n## Figures\n\n| setup | action | figure |\n|---|---|---:|\n");
        for (setup, action, figure) in &self.0 {
            let _ = writeln!(text, "| {setup} | {action} | {figure:.0} |");
        }
        text
    }

    /// What the page has.
    fn kept(page: &Path) -> Result<Self> {
        let text = fs::read_to_string(page).with_context(|| {
            format!("cannot read {}; `cargo xtask bench hooks --write` makes it", page.display())
        })?;
        let (_, figures) = text
            .split_once("\n## Figures\n")
            .with_context(|| format!("{} has no figures", page.display()))?;
        let rows = figures.lines().filter_map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let (setup, action) = (cells.next()?, cells.next()?);
            Some((setup.to_owned(), action.to_owned(), cells.next()?.parse().ok()?))
        });
        Ok(Self(rows.collect()))
    }

    /// Where other figures are too far from these. How many events were lost, and what the daemon took for one, which
    /// depends on how many come at once, is nothing that repeats.
    fn changes(&self, now: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        for (setup, action, before) in
            self.0.iter().filter(|(setup, ..)| setup != "lost" && setup != "daemon")
        {
            match now.of(setup, action) {
                None => changes
                    .push(format!("{setup}, {action}: was {before:.0}, and was not measured")),
                Some(figure) if 100.0 * (figure / before - 1.0).abs() > TOLERANCE => {
                    changes.push(format!("{setup}, {action}: {figure:.0}, and was {before:.0}"));
                }
                Some(_) => {}
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_gives_back_its_figures_and_changes_are_found() {
        let mut figures = Figures::default();
        for (setup, figure) in
            [(NONE, 1000.0), (LIMIT_ROW, 1100.0), (BESIDE, 1150.0), (FEW, 1300.0)]
        {
            figures
                .take(&format!("{{\"setup\":{setup:?},\"action\":\"open\",\"figure\":{figure}}}"));
        }
        let folder = std::env::temp_dir().join(format!("ambit-cost-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let page = folder.join("cost.md");
        fs::write(&page, figures.page()).unwrap();
        let kept = Figures::kept(&page).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(kept, figures);
        assert!(kept.changes(&figures).is_empty());
        figures.0[3].2 = 1366.0;
        assert_eq!(kept.changes(&figures).len(), 1);
        let missed: Vec<_> = figures.bars().into_iter().filter(|(_, met)| !met).collect();
        assert_eq!(missed.len(), 1, "{missed:?}");
    }
}
