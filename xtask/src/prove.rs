//! The long proof: the lowered tables against Cedar's authorizer, on as many pairs as asked for, in
//! the release profile.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Args;

use crate::cache::{self, Cache};
use crate::object;
use crate::process;
use crate::setup;

/// What to prove, and how much of it.
#[derive(Args, Debug)]
pub struct Options {
    /// How many pairs of a policy set and a request
    #[arg(long, value_name = "N", default_value_t = 5_000_000)]
    pairs: u64,
}

/// Compares, and says what 100,000 rules cost to load. A disagreement is an error, printed with the
/// policy and the request.
pub fn run(cache: &Cache, options: &Options) -> Result<ExitCode> {
    let toolchain = setup::all(cache, false)?;
    let object = object::object(&toolchain, object::Options::default())?.into_os_string();
    let started = Instant::now();
    for test in ["scale::hundred_thousand_rules", "differential::prove"] {
        let mut cargo = object::with_object(process::cargo(), &object);
        cargo
            .current_dir(cache::checkout())
            .args(["test", "--quiet", "--release", "-p", "agent-daemon", "--lib", "--"])
            .args(["--ignored", "--nocapture", "--exact", &format!("policy::tests::{test}")])
            .env("AMBIT_PROVE_PAIRS", options.pairs.to_string());
        process::run(&mut cargo)?;
    }
    process::say(&format!("proven in {} s, with building", started.elapsed().as_secs()));
    Ok(ExitCode::SUCCESS)
}
