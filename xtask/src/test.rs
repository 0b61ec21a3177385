//! Every check and every test, stage after stage, with one table and one line at the end.
//!
//! A failed build ends the run; after any other failure the remaining stages still run, so that
//! one run shows all that is wrong.

use std::ffi::OsString;
use std::process::{Command, ExitCode};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use crate::cache::{self, Cache};
use crate::coverage::Measured;
use crate::kernels::{self, Row};
use crate::object;
use crate::process::{self, Ended, Paint, paint};
use crate::prometheus;
use crate::setup;
use crate::vm::Guest;

/// One run of the end-to-end suite.
struct Suite {
    /// The test kernel, or none for the kernel of this machine.
    kernel: Option<&'static str>,
    /// Arguments of the usual run; with `--all`, or when tests are named, there are none.
    arguments: &'static [&'static str],
    /// How many guests share its cases.
    guests: u32,
    /// How long the usual run may take, with the boot.
    budget: Duration,
    /// How long the whole suite may take.
    whole_budget: Duration,
}

/// Where the end-to-end suite runs. One kernel gets all of it every time; the others get what may
/// differ between kernels.
const SUITES: &[Suite] = &[
    suite(None, &[], 1, 400, 400),
    suite(Some("5.10"), &["--subset"], 1, 1500, 2400),
    suite(Some("6.1"), &["--subset"], 1, 1500, 2400),
    suite(Some("6.12"), &[], 2, 2400, 2400),
    suite(Some("6.18"), &["--subset"], 1, 1500, 2400),
    suite(Some("7.3"), &["--subset"], 1, 1500, 2400),
];

/// How many guests run at once: each uses one core, and waits four tenths of its time.
fn at_once() -> usize {
    thread::available_parallelism().map_or(2, |cores| cores.get() * 2)
}

/// How long the unit tests may take, with compiling them.
const UNIT_BUDGET: Duration = Duration::from_secs(1800);

const fn suite(
    kernel: Option<&'static str>,
    arguments: &'static [&'static str],
    guests: u32,
    seconds: u64,
    whole_seconds: u64,
) -> Suite {
    Suite {
        kernel,
        arguments,
        guests,
        budget: Duration::from_secs(seconds),
        whole_budget: Duration::from_secs(whole_seconds),
    }
}

/// What to test.
#[derive(Args, Debug)]
pub struct Options {
    /// Run every end-to-end test on every kernel
    #[arg(long)]
    all: bool,
    /// Of the virtual machines, run only this kernel; may be repeated
    #[arg(long, value_name = "KERNEL", value_parser = kernels::row)]
    kernel: Vec<&'static Row>,
    /// Run only the end-to-end tests on this machine's kernel
    #[arg(long, conflicts_with_all = ["kernel", "skip_vm"])]
    native_only: bool,
    /// Run everything but the virtual machines
    #[arg(long, conflicts_with = "kernel")]
    skip_vm: bool,
    /// Write what came of every way around into docs/coverage.md, for the kernels that ran
    #[arg(long)]
    write_coverage: bool,
    /// Run only tests whose names contain one of these, and no lints
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
}

impl Options {
    fn lints(&self) -> bool {
        !self.native_only && self.filter.is_empty()
    }

    fn wants(&self, suite: &Suite) -> bool {
        match suite.kernel {
            None => true,
            Some(line) => {
                !self.native_only
                    && !self.skip_vm
                    && (self.kernel.is_empty() || self.kernel.iter().any(|row| row.line == line))
            }
        }
    }

    fn suite_arguments(&self, suite: &Suite) -> Vec<OsString> {
        let usual = if self.all || !self.filter.is_empty() { &[] } else { suite.arguments };
        let filter = self.filter.iter().map(OsString::from);
        usual.iter().map(OsString::from).chain(filter).collect()
    }

    /// How many guests share a suite: to start one for a few tests that were named takes longer than they do.
    fn guests(&self, suite: &Suite) -> u32 {
        if self.filter.is_empty() { suite.guests } else { 1 }
    }

    fn budget(&self, suite: &Suite) -> Duration {
        if self.all { suite.whole_budget } else { suite.budget }
    }
}

/// Runs every stage that the options ask for. An error is a failure to set up or to build; a
/// failed check or test is the exit code.
pub fn run(cache: &Cache, options: &Options) -> Result<ExitCode> {
    let mut report = Report::default();
    let object = process::step("stage: set up and build", || {
        let toolchain = setup::all(cache, false)?;
        if SUITES.iter().any(|suite| suite.kernel.is_some() && options.wants(suite)) {
            setup::for_vms(cache)?;
        }
        let strict = object::Options { debug_log: false, strict: options.lints() };
        object::all(&toolchain, strict)
    })?;
    if options.lints() {
        checks(cache, &mut report, &object)?;
    }
    if !options.native_only {
        let mut cargo = object::with_object(process::cargo(), &object);
        cargo
            .current_dir(cache::checkout())
            .args(["test", "--workspace", "--no-fail-fast", "--"])
            .args(&options.filter);
        let ended = stage("unit tests", |line| process::watch(&mut cargo, Some(UNIT_BUDGET), line));
        report.add("unit tests", "host", ended, options);
    }
    let mut measured = Measured::default();
    let (own, guests): (Vec<&Suite>, Vec<&Suite>) = SUITES
        .iter()
        .filter(|suite| options.wants(suite))
        .partition(|suite| suite.kernel.is_none());
    for suite in own {
        if !process::is_root() {
            process::say("end to end on this kernel: skipped, it needs root");
            report.skipped.push("native (needs root)".to_owned());
            continue;
        }
        let ended = natively(cache, suite, options);
        settle(&mut report, &mut measured, suite, ended, options);
    }
    for (suite, ended) in all_guests(cache, &guests, options) {
        settle(&mut report, &mut measured, suite, ended, options);
    }
    report.failed_checks.extend(measured.settle(options.write_coverage)?);
    report.print();
    Ok(report.exit_code())
}

/// Checks format, lints and documentation.
pub fn lint(cache: &Cache) -> Result<ExitCode> {
    let toolchain = setup::all(cache, false)?;
    let strict = object::Options { debug_log: false, strict: true };
    let object = object::object(&toolchain, strict)?.into_os_string();
    let mut report = Report::default();
    checks(cache, &mut report, &object)?;
    for failed in &report.failed_checks {
        println!("failed: {failed}");
    }
    Ok(report.exit_code())
}

fn checks(cache: &Cache, report: &mut Report, object: &OsString) -> Result<()> {
    let cargo = |arguments: &[&str]| -> Command {
        let mut cargo = object::with_object(process::cargo(), object);
        cargo.current_dir(cache::checkout()).args(arguments);
        cargo
    };
    let mut docs = cargo(&["doc", "--quiet", "--no-deps", "--workspace"]);
    docs.env("RUSTDOCFLAGS", "-D warnings");
    let clippy = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
    let mut alerts = process::command(prometheus::ensure(cache)?.join("promtool"));
    alerts.current_dir(cache::checkout().join("deploy/prometheus"));
    alerts.args(["test", "rules", "rules.test.yaml"]);
    for (name, mut command) in [
        ("format", cargo(&["fmt", "--all", "--check", "--", "--color=never"])),
        ("lints", cargo(&clippy)),
        ("documentation", docs),
        ("alerts", alerts),
    ] {
        let ended = stage(name, |line| process::watch(&mut command, None, line))?;
        if !ended.success() {
            report.failed_checks.push(format!("{name} (`{}`)", process::shown(&command)));
        }
    }
    Ok(())
}

/// Runs the guests' suites, [`at_once`] at a time, and gives what came of each in their order.
fn all_guests<'a>(
    cache: &Cache,
    suites: &[&'a Suite],
    options: &Options,
) -> Vec<(&'a Suite, Result<Ended>)> {
    let parts = |suite: &'a Suite| {
        let of = options.guests(suite);
        (1..=of).map(move |part| (suite, Part { part, of }))
    };
    let mut waiting: Vec<_> = suites.iter().flat_map(|suite| parts(suite)).enumerate().collect();
    // The longest first, so that it does not run alone at the end.
    waiting.sort_by_key(|(_, (suite, _))| options.budget(suite));
    let waiting = Mutex::new(waiting);
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..at_once() {
            scope.spawn(|| {
                let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
                while let Some((index, (suite, part))) = next() {
                    let ended = in_guest(cache, suite, part, options);
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    done.push((index, suite, ended));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(index, ..)| *index);
    let mut whole: Vec<(&Suite, Result<Ended>)> = Vec::new();
    for (_, suite, ended) in done {
        match whole.last_mut() {
            Some((last, before)) if last.kernel == suite.kernel => together(before, ended),
            _ => whole.push((suite, ended)),
        }
    }
    whole
}

/// One of the guests that share a suite.
#[derive(Clone, Copy, Debug)]
struct Part {
    part: u32,
    of: u32,
}

/// Adds what came of another part of a suite.
fn together(whole: &mut Result<Ended>, part: Result<Ended>) {
    match (whole, part) {
        (Ok(whole), Ok(part)) => {
            if whole.success() {
                whole.code = part.code;
            }
            whole.timed_out |= part.timed_out;
            whole.output += &part.output;
            whole.took = whole.took.max(part.took);
        }
        (whole @ Ok(_), Err(error)) => *whole = Err(error),
        (Err(_), _) => {}
    }
}

/// Runs a suite on this machine's own kernel.
fn natively(cache: &Cache, suite: &Suite, options: &Options) -> Result<Ended> {
    let mut command = process::command(cache::target().join("release/ambit-e2e"));
    command.args(options.suite_arguments(suite));
    command.env("AMBIT_PROMETHEUS", prometheus::ensure(cache)?);
    stage("native", |line| process::watch(&mut command, Some(options.budget(suite)), line))
}

fn in_guest(cache: &Cache, suite: &Suite, part: Part, options: &Options) -> Result<Ended> {
    let line = suite.kernel.unwrap_or(kernels::DEFAULT);
    let mut arguments = options.suite_arguments(suite);
    let subset = arguments.iter().any(|word| word == "--subset");
    let mut name = line.to_owned();
    if part.of > 1 {
        let part = format!("{}/{}", part.part, part.of);
        name = format!("{line} ({part})");
        arguments.push(format!("--part={part}").into());
    }
    let command = std::iter::once(OsString::from("ambit-e2e")).chain(arguments);
    let mut guest = Guest::new(kernels::row(line)?, command);
    guest.limit = options.budget(suite);
    // What is told of every day's tools is no part of the subset.
    guest.userland = !subset;
    stage(&name, |each| guest.run(cache, each))
}

fn settle(
    report: &mut Report,
    measured: &mut Measured,
    suite: &Suite,
    ended: Result<Ended>,
    options: &Options,
) {
    if let Ok(ended) = &ended {
        let whole = options.filter.is_empty() && ended.success();
        measured.add(suite.kernel, &ended.output, whole);
    }
    report.add(suite.kernel.unwrap_or("native"), "-", ended, options);
}

/// Runs one stage, passing on its output with the stage's name before each line.
fn stage(name: &str, work: impl FnOnce(&mut dyn FnMut(&str)) -> Result<Ended>) -> Result<Ended> {
    let started = Instant::now();
    process::say(&format!("stage: {name} ..."));
    let prefix = paint(Paint::Bold, &format!("{name} |"));
    let ended = work(&mut |line| println!("{prefix} {line}"));
    let verdict = match &ended {
        Ok(ended) if ended.success() => paint(Paint::Good, "passed"),
        _ => paint(Paint::Bad, "failed"),
    };
    let seconds = started.elapsed().as_secs_f64();
    process::say(&format!("stage: {name}: {verdict} in {seconds:.1} s"));
    ended
}

/// What the stages brought.
#[derive(Debug, Default)]
struct Report {
    rows: Vec<Counts>,
    failed_checks: Vec<String>,
    failed_tests: Vec<String>,
    skipped: Vec<String>,
}

/// The results of one suite with one backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counts {
    suite: String,
    backend: String,
    passed: u64,
    failed: u64,
    skipped: u64,
    took: Duration,
}

impl Report {
    /// Adds a suite. One that could not run, overran, or ended badly without naming a failed test
    /// counts as one failure, and so does one that ran no test though none was asked for by name.
    fn add(&mut self, suite: &str, backend: &str, ended: Result<Ended>, options: &Options) {
        let mut own = Counts { suite: suite.into(), backend: backend.into(), ..Counts::default() };
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => {
                self.failed_tests.push(format!("{suite}: {error:#}"));
                own.failed = 1;
                self.rows.push(own);
                return;
            }
        };
        let mut rows = parse(suite, backend, &ended.output);
        for line in ended.output.lines() {
            if let Some((test, why)) = line
                .strip_prefix("test ")
                .and_then(|rest| rest.trim_end().split_once("... ignored"))
            {
                self.skipped.push(format!("{suite}: {}{why}", test.trim_end()));
            }
            if let Some(test) =
                line.strip_prefix("test ").and_then(|rest| rest.trim_end().strip_suffix("FAILED"))
            {
                let name = test.trim_end().trim_end_matches("...").trim_end();
                self.failed_tests.push(format!("{suite}: {name}"));
            }
        }
        let failed: u64 = rows.iter().map(|row| row.failed).sum();
        let complaint = if ended.timed_out {
            Some(format!("over its budget, ended after {:.0} s", ended.took.as_secs_f64()))
        } else if !ended.success() && failed == 0 {
            Some(match ended.code {
                Some(code) => format!("ended with exit code {code}"),
                None => "ended by a signal".to_owned(),
            })
        } else if rows.is_empty() && options.filter.is_empty() {
            Some("ran no test".to_owned())
        } else {
            None
        };
        if rows.is_empty() {
            rows.push(own);
        }
        // The time is the whole suite's; backends of one suite are not timed apart.
        if let Some(first) = rows.first_mut() {
            first.took = ended.took;
            first.failed += u64::from(complaint.is_some());
        }
        if let Some(complaint) = complaint {
            self.failed_tests.push(format!("{suite}: {complaint}"));
        }
        self.rows.extend(rows);
    }

    fn passed(&self) -> u64 {
        self.rows.iter().map(|row| row.passed).sum()
    }

    fn failed(&self) -> u64 {
        let tests: u64 = self.rows.iter().map(|row| row.failed).sum();
        tests + self.failed_checks.len() as u64
    }

    fn exit_code(&self) -> ExitCode {
        if self.failed() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn print(&self) {
        println!();
        println!(
            "{:12} {:10} {:>7} {:>7} {:>7} {:>8}",
            "kernel", "backend", "passed", "failed", "skipped", "seconds"
        );
        for row in &self.rows {
            println!(
                "{:12} {:10} {:>7} {:>7} {:>7} {:>8.1}",
                row.suite,
                row.backend,
                row.passed,
                row.failed,
                row.skipped,
                row.took.as_secs_f64()
            );
        }
        for name in &self.skipped {
            println!("not run: {name}");
        }
        for name in self.failed_checks.iter().chain(&self.failed_tests) {
            println!("failed: {name}");
        }
        println!();
        println!("{} passed, {} failed", self.passed(), self.failed());
    }
}

/// Sums the `test result:` lines of a suite's output, by backend. A line `backend: NAME` says
/// which backend the results after it are for.
fn parse(suite: &str, backend: &str, output: &str) -> Vec<Counts> {
    let mut rows: Vec<Counts> = Vec::new();
    let mut backend = backend;
    for line in output.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("backend: ") {
            backend = name;
        }
        let Some(result) = line.strip_prefix("test result: ") else {
            continue;
        };
        let count = |what: &str| -> u64 {
            result
                .split(['.', ';'])
                .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
                .unwrap_or(0)
        };
        let at = rows.iter().position(|row| row.backend == backend).unwrap_or_else(|| {
            rows.push(Counts { suite: suite.into(), backend: backend.into(), ..Counts::default() });
            rows.len() - 1
        });
        if let Some(row) = rows.get_mut(at) {
            row.passed += count("passed");
            row.failed += count("failed");
            row.skipped += count("ignored");
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32, output: &str) -> Result<Ended> {
        Ok(Ended {
            code: Some(code),
            timed_out: false,
            output: output.into(),
            took: Duration::from_secs(1),
        })
    }

    #[test]
    fn a_part_that_failed_fails_the_suite() {
        let mut whole = ended(0, "test result: ok. 2 passed; 0 failed\n");
        together(&mut whole, ended(101, "test result: FAILED. 1 passed; 1 failed\n"));
        together(&mut whole, ended(0, "test result: ok. 4 passed; 0 failed\n"));
        assert!(!whole.as_ref().unwrap().success());
        let rows = parse("6.12", "lsm", &whole.as_ref().unwrap().output);
        assert_eq!((rows[0].passed, rows[0].failed), (7, 1));
        together(&mut whole, Err(anyhow::anyhow!("no guest")));
        assert!(whole.is_err());
    }

    fn options() -> Options {
        Options {
            all: false,
            kernel: Vec::new(),
            native_only: false,
            skip_vm: false,
            write_coverage: false,
            filter: Vec::new(),
        }
    }

    #[test]
    fn sums_results_by_backend() {
        let output = "backend: lsm\ntest result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; \
            0 filtered out; finished in 0.10s\nbackend: fanotify\n\
            test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n\
            test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let rows = parse("6.12", "-", output);
        let counts: Vec<_> = rows
            .iter()
            .map(|row| (row.backend.as_str(), row.passed, row.failed, row.skipped))
            .collect();
        assert_eq!(counts, [("lsm", 12, 0, 1), ("fanotify", 7, 2, 0)]);
    }

    #[test]
    fn a_suite_that_dies_or_runs_nothing_is_a_failure() {
        let mut report = Report::default();
        let good = "test result: ok. 2 passed; 0 failed; 0 ignored";
        report.add("a", "-", ended(0, good), &options());
        assert_eq!((report.passed(), report.failed()), (2, 0));
        report.add("b", "-", ended(0, ""), &options());
        assert_eq!(report.failed(), 1);
        report.add("c", "-", ended(101, good), &options());
        assert_eq!(report.failed(), 2);
        report.add("d", "-", Err(anyhow::anyhow!("no such program")), &options());
        assert_eq!((report.passed(), report.failed()), (4, 3));
    }

    #[test]
    fn names_failed_tests_once_and_counts_them_once() {
        let mut report = Report::default();
        let output = "test denies_open ... FAILED\ntest allows_read ... ok\n\
            test result: FAILED. 1 passed; 1 failed; 0 ignored";
        report.add("6.12", "-", ended(101, output), &options());
        assert_eq!((report.passed(), report.failed()), (1, 1));
        assert_eq!(report.failed_tests, ["6.12: denies_open"]);
    }

    #[test]
    fn says_what_was_skipped_and_why() {
        let mut report = Report::default();
        let output = "test leaves_git_alone   ... ignored (no git)\ntest result: ok. 0 passed; \
            0 failed; 1 ignored";
        report.add("native", "-", ended(0, output), &options());
        assert_eq!(report.skipped, ["native: leaves_git_alone (no git)"]);
        assert_eq!(report.rows[0].skipped, 1);
    }

    #[test]
    fn every_kernel_has_its_suite() {
        for row in kernels::KERNELS {
            assert!(SUITES.iter().any(|suite| suite.kernel == Some(row.line)), "{}", row.line);
        }
    }
}
