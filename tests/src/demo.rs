//! Demo.
use anyhow::Result;
use std::process::ExitCode;
/// Runs it.
pub fn run() -> Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
