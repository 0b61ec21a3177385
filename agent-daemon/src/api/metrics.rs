//! Counters for Prometheus. Labels are bounded: agents, actions, verdicts, reasons, hooks.

use std::time::{Duration, SystemTime};

use agent_ebpf::{Action, Hook, Verdict};
use prometheus::{
    Encoder, Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::doctor::Row;
use crate::kernel::Coverage;

/// All of them.
pub struct Metrics {
    registry: Registry,
    actions: IntCounterVec,
    emitted: IntCounter,
    lost: IntCounterVec,
    ring_fill: GaugeVec,
    ring_bytes: IntGaugeVec,
    generation: IntGauge,
    load_errors: IntCounter,
    load_succeeded: IntGauge,
    heartbeat: Gauge,
    heartbeat_interval: IntGauge,
    stalled: IntGaugeVec,
    enforced: IntGaugeVec,
    kernel_memory: IntGaugeVec,
    entries: IntGaugeVec,
    max_entries: IntGaugeVec,
    names: IntGauge,
    answers: IntCounterVec,
    hashes: IntGauge,
    hashed: IntCounterVec,
}

/// What becomes of an answer that is understood.
const PASSED_ON: &str = "passed_on";

/// A metric's name and help, or the closest that can be registered: names here are constants, so the
/// library's checks of them cannot fail.
fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    let made = IntCounterVec::new(Opts::new(name, help), labels);
    registered(registry, made)
}

fn registered<T: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    made: prometheus::Result<T>,
) -> T {
    match made.and_then(|metric| registry.register(Box::new(metric.clone())).map(|()| metric)) {
        Ok(metric) => metric,
        // Constant and distinct names and labels: `Metrics::new` is run by a test.
        Err(error) => unreachable!("a metric's name or labels: {error}"),
    }
}

impl Metrics {
    /// All at zero, so that a scrape shows what can be counted.
    pub fn new(coverage: &Coverage) -> Self {
        let registry = Registry::new();
        let r = &registry;
        let actions = counters(
            r,
            "ambit_actions_total",
            "Actions of agents, by verdict; an exec that is let go counts when its program runs",
            &["agent", "action", "verdict"],
        );
        let lost = counters(
            r,
            "ambit_events_lost_total",
            "Events that could not be delivered, by reason",
            &["reason"],
        );
        let emitted =
            registered(r, IntCounter::new("ambit_events_emitted_total", "Events handed to sinks"));
        let ring_fill = registered(
            r,
            GaugeVec::new(
                Opts::new(
                    "ambit_ring_fill_ratio",
                    "Share of a ring that waited when it was last drained",
                ),
                &["lane"],
            ),
        );
        let ring_bytes = registered(
            r,
            IntGaugeVec::new(Opts::new("ambit_ring_size_bytes", "Size of a ring"), &["lane"]),
        );
        let generation = registered(
            r,
            IntGauge::new("ambit_policy_generation", "How often a policy folder was taken"),
        );
        let load_errors = registered(
            r,
            IntCounter::new(
                "ambit_policy_load_errors_total",
                "Reloads that were refused; the policy before stayed in force",
            ),
        );
        let load_succeeded = registered(
            r,
            IntGauge::new(
                "ambit_policy_last_load_successful",
                "1 when the policy that was loaded last is in force, 0 when it was refused",
            ),
        );
        load_succeeded.set(1);
        let heartbeat = registered(
            r,
            Gauge::new(
                "ambit_heartbeat_time_seconds",
                "When the last heartbeat event was made, in seconds since 1970",
            ),
        );
        let heartbeat_interval = registered(
            r,
            IntGauge::new(
                "ambit_heartbeat_interval_seconds",
                "Seconds from one heartbeat event to the next",
            ),
        );
        let stalled = registered(
            r,
            IntGaugeVec::new(
                Opts::new(
                    "ambit_sink_stalled",
                    "1 while a sink holds events that it could not deliver, 0 otherwise",
                ),
                &["sink"],
            ),
        );
        stalled.with_label_values(&["file"]).set(0);
        let kernel_memory = registered(
            r,
            IntGaugeVec::new(
                Opts::new("ambit_kernel_memory_bytes", "Kernel memory of a table"),
                &["table"],
            ),
        );
        let of_table =
            |name, help| registered(r, IntGaugeVec::new(Opts::new(name, help), &["table"]));
        let entries = of_table("ambit_table_entries", "Entries of a table that agents fill");
        let max_entries =
            of_table("ambit_table_max_entries", "Room for entries in a table that agents fill");
        let enforced = registered(
            r,
            IntGaugeVec::new(
                Opts::new(
                    "ambit_action_enforced",
                    "1 when an action that is not permitted is denied, 0 when it is at most observed",
                ),
                &["action"],
            ),
        );
        let names =
            registered(r, IntGauge::new("ambit_names", "Host names that agents know addresses by"));
        let answers = counters(
            r,
            "ambit_name_answers_total",
            "Answers of name servers to agents, by what became of them; all but those that were passed on \
             became server failures",
            &["outcome"],
        );
        for outcome in [PASSED_ON, "malformed", "strange", "name", "too_many", "no_agent", "table"]
        {
            answers.with_label_values(&[outcome]);
        }
        let hashes = registered(
            r,
            IntGauge::new("ambit_program_hashes", "Programs of which the content is known"),
        );
        let hashed = counters(
            r,
            "ambit_program_hashes_total",
            "Programs of which the content was asked for, by what came of it",
            &["outcome"],
        );
        for outcome in crate::authority::OUTCOMES {
            hashed.with_label_values(&[outcome]);
        }
        let start = registered(
            r,
            Gauge::new(
                "ambit_start_time_seconds",
                "When the daemon started, in seconds since 1970",
            ),
        );
        let info = registered(
            r,
            IntGaugeVec::new(
                Opts::new(
                    "ambit_build_info",
                    "Always 1; version, kernel and file backend as labels",
                ),
                &["version", "kernel", "backend"],
            ),
        );
        let hooks = registered(
            r,
            IntGaugeVec::new(
                Opts::new(
                    "ambit_hook_attached",
                    "1 when the hook is attached, 0 when it is missing",
                ),
                &["hook"],
            ),
        );
        let backend = coverage.files.map_or("none".to_owned(), |backend| backend.to_string());
        info.with_label_values(&[
            env!("CARGO_PKG_VERSION"),
            coverage.kernel.as_str(),
            backend.as_str(),
        ])
        .set(1);
        for program in &coverage.programs {
            hooks.with_label_values(&[program.hook]).set(i64::from(program.refused.is_none()));
        }
        let by_fanotify = coverage.files == Some(crate::kernel::Backend::Fanotify);
        hooks.with_label_values(&[Hook::Fanotify.name()]).set(i64::from(by_fanotify));
        for reason in ["undecodable", "sink_file"] {
            lost.with_label_values(&[reason]);
        }
        for kind in agent_ebpf::Kind::ALL {
            lost.with_label_values(&[ring(kind.name()).as_str()]);
        }
        start.set(now());
        Self {
            registry,
            actions,
            emitted,
            lost,
            ring_fill,
            ring_bytes,
            generation,
            load_errors,
            load_succeeded,
            heartbeat,
            heartbeat_interval,
            stalled,
            enforced,
            kernel_memory,
            entries,
            max_entries,
            names,
            answers,
            hashes,
            hashed,
        }
    }

    /// How many names agents know addresses by.
    pub fn names(&self, names: usize) {
        self.names.set(i64::try_from(names).unwrap_or(i64::MAX));
    }

    /// An answer of a name server was passed on.
    pub fn answer_passed_on(&self) {
        self.answers.with_label_values(&[PASSED_ON]).inc();
    }

    /// One was not, and why.
    pub fn answer_refused(&self, why: &'static str) {
        self.answers.with_label_values(&[why]).inc();
    }

    /// Actions that were decided.
    pub fn action(&self, agent: &str, action: Action, verdict: Verdict, count: u64) {
        self.actions.with_label_values(&[agent, action.name(), verdict.name()]).inc_by(count);
    }

    /// Events handed to sinks.
    pub fn emitted(&self, events: u64) {
        self.emitted.inc_by(events);
    }

    /// Records of a kind that found no room in a ring.
    pub fn lost_in_ring(&self, kind: &str, count: u64) {
        if count > 0 {
            self.lost.with_label_values(&[ring(kind).as_str()]).inc_by(count);
        }
    }

    /// Records that could not be read.
    pub fn undecodable(&self, count: u64) {
        self.lost.with_label_values(&["undecodable"]).inc_by(count);
    }

    /// Events that a sink could not keep.
    pub fn lost_in_sink(&self, sink: &str, count: u64) {
        self.lost.with_label_values(&[format!("sink_{sink}").as_str()]).inc_by(count);
    }

    /// How full the rings were.
    pub fn ring_fill(&self, denied: u64, told: u64, (denied_bytes, told_bytes): (u64, u64)) {
        for (lane, fill, bytes) in [("denied", denied, denied_bytes), ("told", told, told_bytes)] {
            self.ring_fill.with_label_values(&[lane]).set(fill as f64 / bytes.max(1) as f64);
            self.ring_bytes
                .with_label_values(&[lane])
                .set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    /// The policy folder's generation.
    pub fn generation(&self, generation: u64) {
        self.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
    }

    /// The policy was taken anew, or refused.
    pub fn loaded(&self, well: bool) {
        self.load_succeeded.set(i64::from(well));
        if !well {
            self.load_errors.inc();
        }
    }

    /// A heartbeat was told; the next is due after this.
    pub fn heartbeat(&self, interval: Duration) {
        self.heartbeat.set(now());
        self.heartbeat_interval.set(i64::try_from(interval.as_secs()).unwrap_or(i64::MAX));
    }

    /// Whether a sink holds what it could not deliver.
    pub fn sink_stalled(&self, sink: &str, is_stalled: bool) {
        self.stalled.with_label_values(&[sink]).set(i64::from(is_stalled));
    }

    /// What the tables cost, as `kernel::memory` has it.
    pub fn kernel_memory(&self, tables: &[(&'static str, u64)]) {
        for (table, bytes) in tables {
            let bytes = i64::try_from(*bytes).unwrap_or(i64::MAX);
            self.kernel_memory.with_label_values(&[&table.to_lowercase()]).set(bytes);
        }
    }

    /// How full the tables are, as `kernel::tables` has it.
    pub fn fill(&self, tables: &[(&'static str, usize, u32)]) {
        for (table, entries, room) in tables {
            let table = table.to_lowercase();
            let entries = i64::try_from(*entries).unwrap_or(i64::MAX);
            self.entries.with_label_values(&[&table]).set(entries);
            self.max_entries.with_label_values(&[&table]).set(i64::from(*room));
        }
    }

    /// What `ambit doctor` says of each action.
    pub fn enforced(&self, actions: &[Row]) {
        for row in actions {
            let enforced = i64::from(row.enforced_by.is_some());
            self.enforced.with_label_values(&[&row.action]).set(enforced);
        }
    }

    /// A program's content was asked for, and this came of it.
    pub fn hashed(&self, outcome: &str) {
        self.hashed.with_label_values(&[outcome]).inc();
    }

    /// How many programs are known by content.
    pub fn hashes(&self, known: usize) {
        self.hashes.set(i64::try_from(known).unwrap_or(i64::MAX));
    }

    /// Everything in the text exposition format.
    pub fn text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        // Writing to memory; what has been registered can be encoded.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        text
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0.0, |now| now.as_secs_f64())
}

fn ring(kind: &str) -> String {
    format!("ring_{kind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_registers_and_shows() {
        let coverage = Coverage {
            kernel: "6.12".to_owned(),
            files: None,
            no_lsm: None,
            no_ima: None,
            programs: Vec::new(),
            adopted: false,
        };
        let metrics = Metrics::new(&coverage);
        metrics.action("coder", Action::Read, Verdict::Denied, 2);
        metrics.lost_in_ring("file", 3);
        let text = String::from_utf8(metrics.text()).unwrap();
        for line in [
            "ambit_actions_total{action=\"read\",agent=\"coder\",verdict=\"denied\"} 2",
            "ambit_events_lost_total{reason=\"ring_file\"} 3",
            "ambit_events_lost_total{reason=\"undecodable\"} 0",
            "ambit_policy_load_errors_total 0",
            "ambit_policy_last_load_successful 1",
            "ambit_sink_stalled{sink=\"file\"} 0",
            "ambit_program_hashes 0",
            "ambit_program_hashes_total{outcome=\"refused\"} 0",
            "ambit_hook_attached{hook=\"fanotify\"} 0",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
