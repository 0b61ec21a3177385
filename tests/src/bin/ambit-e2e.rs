//! The end-to-end suite, and the demo.
//!
//! `ambit-e2e [--subset] [--part=1/2] [FILTER]… [libtest options]` runs the promises one after the other;
//! `ambit-e2e demo` shows the main job. Both need root, the built `ambit`, `ambitd` and
//! `ambit-actor` beside this program (or in `AMBIT_E2E_PROGRAMS`), and touch nothing of the machine.

use std::path::Path;
use std::process::ExitCode;

use ambit_tests::cases::Skipped;
use ambit_tests::stage::Stage;
use ambit_tests::{bench, cases, demo, watchdog};
use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let ended = match words.get(1).map(String::as_str) {
        Some(watchdog::FLAG) => {
            let owner = words.get(2).and_then(|pid| pid.parse().ok()).unwrap_or(0);
            watchdog::watch(owner).map(|()| ExitCode::SUCCESS)
        }
        Some("demo") => demo::run(),
        Some("bench") => words
            .get(2)
            .context("bench needs the object with the programs that do nothing")
            .and_then(|empty| bench::hooks(Path::new(empty))),
        _ => suite(words),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("ambit-e2e: {error:#}");
        ExitCode::FAILURE
    })
}

fn suite(mut words: Vec<String>) -> Result<ExitCode> {
    let before = words.len();
    words.retain(|word| word != "--subset");
    let subset = words.len() != before;
    let part = words.iter().find_map(|word| word.strip_prefix("--part=")).map(part).transpose()?;
    words.retain(|word| !word.starts_with("--part="));
    let (part, parts) = part.unwrap_or((0, 1));
    // Several filter words: a test is wanted if any of them is in its name.
    let (filters, options): (Vec<String>, Vec<String>) =
        words.drain(1..).partition(|word| !word.starts_with('-'));
    let mut arguments = Arguments::from_iter(words.into_iter().chain(options));
    // Worlds share the machine's one kernel, so they come one after the other.
    arguments.test_threads = Some(1);
    let wanted = |name: &str| {
        filters.is_empty()
            || filters
                .iter()
                .any(|word| if arguments.exact { name == word } else { name.contains(word) })
    };
    let chosen =
        cases::all().into_iter().filter(|case| (!subset || case.subset) && wanted(&case.name));
    let trials = chosen
        .skip(part)
        .step_by(parts)
        .map(|case| {
            let (limit, run) = (case.limit, case.run);
            Trial::ignorable_test(case.name, move || {
                let done = Stage::get().and_then(|stage| stage.limit(limit)).and_then(|()| run());
                match done {
                    Ok(()) => Ok(Completion::Completed),
                    Err(error) => match error.downcast_ref::<Skipped>() {
                        Some(why) => Ok(Completion::ignored_with(why)),
                        None => Err(Failed::from(format!("{error:#}"))),
                    },
                }
            })
        })
        .collect();
    if !arguments.list {
        let stage = Stage::enter()?;
        stage.limit(cases::START)?;
        match cases::backend() {
            Ok(backend) => println!("backend: {backend}"),
            Err(error) => println!("backend: none ({error:#})"),
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    cases::finish();
    cases::ways::report();
    Ok(conclusion.exit_code())
}

/// Which of several parts a word like `1/2` means, from 0, and how many there are.
fn part(word: &str) -> Result<(usize, usize)> {
    let (part, parts) = word.split_once('/').context("--part is like 1/2")?;
    let (part, parts): (usize, usize) = (part.parse()?, parts.parse()?);
    ensure!((1..=parts).contains(&part), "--part={word}: there is no such part");
    Ok((part - 1, parts))
}
