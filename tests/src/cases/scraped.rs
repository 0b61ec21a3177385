//! A real Prometheus scrapes the daemon, likes its metrics, and finds nothing to alert of.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Case, Skipped, case, shared};
use crate::actor::EPERM;
use crate::metrics::get;
use crate::policy::with_base;
use crate::world::{World, file, ground};

/// Where Prometheus answers.
const ADDRESS: &str = "127.0.0.1:9090";
/// The alerts that Ambit comes with.
const RULES: &str = include_str!("../../../deploy/prometheus/rules.yaml");

pub(super) fn cases() -> Vec<Case> {
    vec![case("prometheus_scrapes_what_its_linter_likes", || shared(scraped))]
}

/// Ended when the test is.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn scraped(world: &World) -> Result<()> {
    let Some(programs) = std::env::var_os("AMBIT_PROMETHEUS").map(PathBuf::from) else {
        return Err(Skipped::because("$AMBIT_PROMETHEUS names no folder with Prometheus"));
    };
    let folder = ground("scraped")?;
    let secret = file(&folder.join("secret"), "text")?;
    let output = world.agent("scraped").policy(&with_base(""))?.act(&["open-read", &secret])?;
    output.expect("open-read", EPERM)?;
    is_liked(&programs, &folder, world.metrics_address())?;

    let config = file(
        &folder.join("prometheus.yaml"),
        &format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [rules.yaml]\n\
             scrape_configs:\n- job_name: ambit\n  static_configs: [{{targets: ['{}']}}]\n",
            world.metrics_address()
        ),
    )?;
    file(&folder.join("rules.yaml"), RULES)?;
    let log = fs::File::create(folder.join("log"))?;
    let _prometheus = Prometheus(
        Command::new(programs.join("prometheus"))
            .arg(format!("--config.file={config}"))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={ADDRESS}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start prometheus")?,
    );
    let denied =
        r#"ambit_actions_total{job="ambit",agent="scraped",action="read",verdict="denied"}"#;
    let told = || fs::read_to_string(folder.join("log")).unwrap_or_default();
    world
        .wait("Prometheus knows of the denial", || {
            Ok(query(denied).is_ok_and(|found| found.first().is_some_and(|one| one.1 >= 1.0)))
        })
        .with_context(told)?;
    for (up, expected) in [(r#"up{job="ambit"}"#, 1.0), ("ambit_build_info", 1.0)] {
        let found = query(up)?;
        ensure!(found.first().map(|one| one.1) == Some(expected), "{up} is {found:?}");
    }
    // The rules have been evaluated, and none has anything to say but of what this backend does not deny.
    world.wait("the rules are evaluated", || Ok(!query("ambit:denied:rate5m")?.is_empty()))?;
    let alerts = query("ALERTS")?;
    ensure!(alerts.is_empty(), "{alerts:?}");
    Ok(())
}

/// The linter has nothing to say of the metrics.
fn is_liked(programs: &Path, folder: &Path, address: &str) -> Result<()> {
    let (status, text) = get(address, "/metrics")?;
    ensure!(status == 200, "/metrics answers {status}");
    let page = file(&folder.join("metrics"), &text)?;
    let linted = Command::new(programs.join("promtool"))
        .args(["check", "metrics"])
        .stdin(fs::File::open(page)?)
        .output()
        .context("cannot run promtool")?;
    let said = String::from_utf8_lossy(&linted.stdout) + String::from_utf8_lossy(&linted.stderr);
    ensure!(linted.status.success() && said.trim().is_empty(), "promtool says: {said}");
    Ok(())
}

/// The series that an expression without characters to escape gives, with their values.
fn query(expression: &str) -> Result<Vec<(Value, f64)>> {
    let escaped: String = expression
        .bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b':' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect();
    let (status, body) = get(ADDRESS, &format!("/api/v1/query?query={escaped}"))?;
    ensure!(status == 200, "Prometheus answers {status}: {body}");
    let answer: Value = serde_json::from_str(&body).context("Prometheus does not answer JSON")?;
    let found = answer["data"]["result"].as_array().context("an answer without a result")?;
    found
        .iter()
        .map(|one| {
            let value = one["value"][1].as_str().context("a series without a value")?;
            Ok((one["metric"].clone(), value.parse()?))
        })
        .collect()
}
