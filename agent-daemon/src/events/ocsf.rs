//! Events as OCSF 1.8.0: one JSON object a line, written straight into a reused buffer.
//!
//! # Choices
//! - **Files** are class 1001: an open for reading is Read, one for writing is Update. `access_mask`
//!   holds the `open(2)` flags and `file.uid` is `major:minor:inode`. What is no folder has type
//!   Unknown: the record does not tell devices and pipes from regular files.
//! - **Programs** are class 1007, Launch, with `launch_type_id` Exec: `actor.process` is the process
//!   as it was before, `process` is what runs now (or would have run). An exec that is let go is
//!   told once, when the program runs, with the rule that permitted it. A fork is not told: it does
//!   nothing by itself, and each event of the child carries its chain.
//! - **Peers** are class 4001: connect is Open, a datagram sent without a connection is Traffic, and
//!   bind is Other with the name "Bind", because Listen would claim more than was done.
//! - **`bpf(2)`** is class 1003, Invoke.
//! - **Losses** are class 1008 Event Log Activity, Other with the name "Lose": it is what the schema
//!   has for the event log itself, and Application Lifecycle would say that Ambit stopped.
//! - **The verdict** is in the `security_control` profile: `action_id`, `disposition_id`, and
//!   `policy` with the deciding policy's `@id` as `uid` (`is_applied` is false where audit mode let
//!   it go). Events that judge nothing do not declare that profile.
//! - **Time** is in milliseconds in `time` and in nanoseconds in `time_dt` (profile `datetime`).
//! - **The agent** is in `unmapped.ai_agent`, in the shape that OCSF 1.9 drafts.
//! - **Paths that are not UTF-8** are written with U+FFFD in `path` and `name`; the exact bytes are
//!   in `uri` of the same file object, as a percent-encoded `file:` URI.
//! - **Ids**: `metadata.uid` is `boot:time:cpu:lane:sequence`; `process.uid` is `start-pid`, in
//!   nanoseconds since boot, and stays the same from event to event.

use std::io::Write as _;
use std::net::IpAddr;

use agent_ebpf::{Action, BpfBody, FileBody, Lane, PeerBody, RULE_PROTECTED, Verdict, protocol};

use super::clock::Clock;
use super::gap::Gap;
use super::host::Host;
use super::json::{self, Object};
use super::objects::{
    address, agent, base, bpf_command, comm, file, identity, is_datagram, is_root, parents,
    program, running, verdict, write_time,
};
use super::pipeline::AgentInfo;
use super::processes::{ExeFrom, Handle, Image, Processes};
use super::record::{Record, lane_of};

/// The version of the schema that every event names.
pub const VERSION: &str = "1.8.0";

/// Bytes of an ancestor's command line that a chain repeats; the whole stands in that process's own
/// Launch event.
pub const ANCESTOR_COMMAND_LINE: usize = 256;

/// Ancestors that a chain names; `unmapped.chain_cut` is true where there are more.
pub const ANCESTORS_MAX: usize = 64;

/// The id that events give to the built-in rule which keeps agents away from Ambit's own files.
pub const PROTECTED_ID: &str = "ambit:protected";

/// Writes events.
pub struct Ocsf {
    device: Vec<u8>,
    product: Vec<u8>,
    boot_id: String,
    clock: Clock,
    own: u64,
}

/// A record with everything that an event says beside it.
pub struct Story<'a> {
    /// The record.
    pub record: &'a Record<'a>,
    /// Where the actor is.
    pub processes: &'a Processes,
    /// The actor.
    pub actor: Handle,
    /// The agent, when its number has a name.
    pub agent: Option<AgentInfo<'a>>,
    /// The `@id` of the rule that decided.
    pub rule: Option<&'a str>,
    /// The generation of the policy that it belongs to.
    pub generation: Option<u64>,
}

/// A program as a Launch event tells it.
pub struct Program<'a> {
    /// The path, or nothing when it could not be resolved.
    pub path: Option<&'a [u8]>,
    /// How the path is known.
    pub from: ExeFrom,
    /// The script, with the id of the rule that permitted it, when the program is its interpreter.
    pub script: Option<(&'a [u8], Option<&'a str>)>,
    /// Its command line, when it runs.
    pub command_line: Option<&'a str>,
    /// What it is on disk, when the record says so.
    pub object: Option<&'a FileBody>,
}

#[derive(Clone, Copy)]
struct Class {
    uid: u64,
    category: u64,
}

impl Class {
    const fn new(uid: u64, category: u64) -> Self {
        Self { uid, category }
    }
}

const FILE_SYSTEM_ACTIVITY: Class = Class::new(1001, 1);
const KERNEL_ACTIVITY: Class = Class::new(1003, 1);
const PROCESS_ACTIVITY: Class = Class::new(1007, 1);
const EVENT_LOG_ACTIVITY: Class = Class::new(1008, 1);
const NETWORK_ACTIVITY: Class = Class::new(4001, 4);

#[derive(Clone, Copy)]
struct Activity(u64, Option<&'static str>);

const OTHER: u64 = 99;

/// What an event says of the verdict.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The record's verdict.
    Judged,
    /// It went ahead in audit mode, and the event that says so was written before.
    Logged,
    /// Nothing was judged.
    Unjudged,
}

/// Which event it is, apart from what it is about.
#[derive(Clone, Copy)]
struct What<'a> {
    class: Class,
    activity: Activity,
    outcome: Outcome,
    /// What the actor ran when it acted, where that is not what it runs now.
    image: Option<&'a Image>,
}

impl<'a> What<'a> {
    const fn new(class: Class, activity: Activity, outcome: Outcome) -> Self {
        Self { class, activity, outcome, image: None }
    }

    const fn before(self, image: Option<&'a Image>) -> Self {
        Self { image, ..self }
    }
}

#[derive(Clone, Copy)]
struct When {
    time: u64,
    cpu: u32,
    lane: Lane,
    sequence: u64,
}

impl Ocsf {
    /// A writer for events of this machine.
    #[must_use]
    pub fn new(host: &Host, clock: Clock) -> Self {
        let mut device = Vec::new();
        json::object(&mut device, |o| {
            o.str("hostname", &host.hostname);
            o.uint("type_id", 0);
            if let Some(id) = &host.machine_id {
                o.str("uid", id);
            }
            o.str("boot_uid", &host.boot_id);
            o.object("os", |o| {
                o.str("name", "Linux");
                o.uint("type_id", 200);
                o.str("kernel_release", &host.kernel_release);
            });
        });
        let mut product = Vec::new();
        json::object(&mut product, |o| {
            o.str("name", "Ambit");
            o.str("vendor_name", "Ambit");
            o.str("version", env!("CARGO_PKG_VERSION"));
        });
        Self { device, product, boot_id: host.boot_id.clone(), clock, own: 0 }
    }

    /// Takes a newly measured clock.
    pub const fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// A file was opened, or would have been.
    pub fn file(&mut self, out: &mut Vec<u8>, story: &Story<'_>, body: &FileBody, path: &[u8]) {
        let activity = match story.record.action {
            Action::Write => Activity(3, None),
            Action::Read | Action::Exec | Action::Connect | Action::Bind | Action::Bpf => {
                Activity(2, None)
            }
        };
        self.event(
            out,
            story,
            What::new(FILE_SYSTEM_ACTIVITY, activity, Outcome::Judged),
            |o| {
                o.object("file", |o| file(o, path, Some(body), body.is_dir != 0, 0));
                o.uint("access_mask", u64::from(body.flags));
            },
            |_| {},
        );
    }

    /// A program runs, or was refused.
    pub fn launch(
        &mut self,
        out: &mut Vec<u8>,
        story: &Story<'_>,
        outcome: Outcome,
        before: Option<&Image>,
        program: &Program<'_>,
    ) {
        let clock = self.clock;
        let actor = story.processes.get(story.actor);
        self.event(
            out,
            story,
            What::new(PROCESS_ACTIVITY, Activity(1, None), outcome).before(before),
            |o| {
                o.uint("launch_type_id", 3);
                o.object("process", |o| {
                    identity(o, actor, &story.record.header, &clock);
                    let path = program.path.unwrap_or_default();
                    o.lossy("name", base(path));
                    if let Some(line) = program.command_line {
                        o.str("cmd_line", line);
                    }
                    o.object("file", |o| file(o, path, program.object, false, 1));
                });
            },
            |o| {
                if let Some((path, rule)) = program.script {
                    o.object("script", |o| {
                        file(o, path, None, false, 1);
                        if let Some(rule) = rule {
                            o.str("policy_uid", rule);
                        }
                    });
                }
                match program.from {
                    ExeFrom::Hook | ExeFrom::Nothing => {}
                    ExeFrom::Proc => o.str("exe_from", "proc"),
                    ExeFrom::Name => o.str("exe_from", "name"),
                }
            },
        );
    }

    /// A peer was connected, sent to or bound, or would have been.
    pub fn peer(&mut self, out: &mut Vec<u8>, story: &Story<'_>, body: &PeerBody) {
        let bind = match story.record.action {
            Action::Bind => true,
            Action::Connect | Action::Exec | Action::Read | Action::Write | Action::Bpf => false,
        };
        let activity = if bind {
            Activity(OTHER, Some("Bind"))
        } else if is_datagram(story.record.hook) {
            Activity(6, None)
        } else {
            Activity(1, None)
        };
        let address = address(body);
        self.event(
            out,
            story,
            What::new(NETWORK_ACTIVITY, activity, Outcome::Judged),
            |o| {
                let side = if bind { "src_endpoint" } else { "dst_endpoint" };
                o.object(side, |o| {
                    match address {
                        Some(address) => o.display("ip", format_args!("{address}")),
                        None => o.str("name", "unresolved"),
                    }
                    o.uint("port", u64::from(u16::from_be_bytes(body.port)));
                });
                o.object("connection_info", |o| {
                    let local = address.is_some_and(|address| address.is_loopback());
                    // Local, Outbound, and Unknown for an address of one's own.
                    o.uint(
                        "direction_id",
                        match (local, bind) {
                            (true, _) => 4,
                            (false, false) => 2,
                            (false, true) => 0,
                        },
                    );
                    o.uint("protocol_num", u64::from(body.protocol));
                    match body.protocol {
                        protocol::TCP => o.str("protocol_name", "tcp"),
                        protocol::UDP => o.str("protocol_name", "udp"),
                        _ => {}
                    }
                    match address {
                        Some(IpAddr::V4(_)) => o.uint("protocol_ver_id", 4),
                        Some(IpAddr::V6(_)) => o.uint("protocol_ver_id", 6),
                        None => {}
                    }
                });
            },
            |_| {},
        );
    }

    /// A `bpf(2)` call.
    pub fn bpf(&mut self, out: &mut Vec<u8>, story: &Story<'_>, body: &BpfBody) {
        self.event(
            out,
            story,
            What::new(KERNEL_ACTIVITY, Activity(4, None), Outcome::Judged),
            |o| {
                o.object("kernel", |o| {
                    o.str("name", bpf_command(body.command));
                    o.uint("type_id", 2);
                    o.str("system_call", "bpf");
                });
            },
            |o| o.uint("bpf_command", u64::from(body.command)),
        );
    }

    /// A process was found in an agent's cgroup.
    pub fn enrol(&mut self, out: &mut Vec<u8>, story: &Story<'_>) {
        let clock = self.clock;
        let actor = story.processes.get(story.actor);
        self.event(
            out,
            story,
            What::new(PROCESS_ACTIVITY, Activity(OTHER, Some("Enrol")), Outcome::Unjudged),
            |o| o.object("process", |o| running(o, actor, story, &clock)),
            |_| {},
        );
    }

    /// A process ended.
    pub fn exit(&mut self, out: &mut Vec<u8>, story: &Story<'_>, code: u32) {
        let clock = self.clock;
        let actor = story.processes.get(story.actor);
        let (status, signal) = ((code >> 8) & 0xff, code & 0x7f);
        self.event(
            out,
            story,
            What::new(PROCESS_ACTIVITY, Activity(2, None), Outcome::Unjudged),
            |o| {
                o.uint("exit_code", u64::from(status));
                o.object("process", |o| {
                    running(o, actor, story, &clock);
                    write_time(
                        o,
                        "terminated_time",
                        "terminated_time_dt",
                        clock.wall(story.record.header.time),
                    );
                });
            },
            |o| {
                if signal != 0 {
                    o.uint("signal", u64::from(signal));
                }
            },
        );
    }

    /// Records that the kernel had no room for.
    pub fn gap(&mut self, out: &mut Vec<u8>, gap: &Gap) {
        let clock = self.clock;
        self.log(out, "Lose", gap.total(), |o| {
            if gap.since != 0 {
                write_time(o, "start_time", "start_time_dt", clock.wall(gap.since));
            }
            if gap.until != 0 {
                write_time(o, "end_time", "end_time_dt", clock.wall(gap.until));
            }
            o.object("unmapped", |o| {
                o.object("gap", |o| {
                    o.uint("cpu", u64::from(gap.cpu));
                    o.str("lane", gap.lane.name());
                    o.object("lost", |o| {
                        for (kind, lost) in gap.by_kind() {
                            o.uint(kind.name(), lost);
                        }
                    });
                    o.uint("last_before", gap.before);
                    o.uint("first_after", gap.after);
                });
            });
        });
    }

    /// Records that could not be read; `why` is of the first of them.
    pub fn undecodable(&mut self, out: &mut Vec<u8>, count: u64, why: &str) {
        self.log(out, "Discard", count, |o| {
            o.str("status_detail", why);
        });
    }

    /// An event about the event log itself.
    fn log(
        &mut self,
        out: &mut Vec<u8>,
        name: &'static str,
        count: u64,
        rest: impl FnOnce(&mut Object<'_>),
    ) {
        let when = When { time: Clock::boot_now(), cpu: 0, lane: Lane::Told, sequence: 0 };
        json::object(out, |o| {
            let activity = Activity(OTHER, Some(name));
            self.head(o, EVENT_LOG_ACTIVITY, activity, when, 4, false);
            o.str("log_name", "ambit");
            o.str("log_provider", "Ambit");
            o.uint("log_type_id", 2);
            o.uint("count", count);
            o.uint("status_id", 2);
            rest(o);
        });
        out.push(b'\n');
    }

    fn head(
        &mut self,
        o: &mut Object<'_>,
        class: Class,
        activity: Activity,
        when: When,
        severity: u64,
        judged: bool,
    ) {
        write_time(o, "time", "time_dt", self.clock.wall(when.time));
        o.uint("class_uid", class.uid);
        o.uint("category_uid", class.category);
        o.uint("activity_id", activity.0);
        if let Some(name) = activity.1 {
            o.str("activity_name", name);
        }
        o.uint("type_uid", class.uid * 100 + activity.0);
        o.uint("severity_id", severity);
        o.object("metadata", |o| {
            o.str("version", VERSION);
            o.raw("product", &self.product);
            o.array("profiles", |a| {
                a.str("datetime");
                a.str("host");
                if judged {
                    a.str("security_control");
                }
            });
            o.str("log_name", "ambit");
            o.plain("uid", |out| {
                // Writing to a `Vec` cannot fail.
                let _ = if when.sequence == 0 {
                    self.own += 1;
                    write!(out, "{}:{}:own:{}", self.boot_id, when.time, self.own)
                } else {
                    let lane = when.lane as u8;
                    let (cpu, sequence) = (when.cpu, when.sequence);
                    write!(out, "{}:{}:{cpu}:{lane}:{sequence}", self.boot_id, when.time)
                };
            });
            if when.sequence != 0 {
                o.uint("sequence", when.sequence);
            }
        });
        o.raw("device", &self.device);
    }

    fn event(
        &mut self,
        out: &mut Vec<u8>,
        story: &Story<'_>,
        what: What<'_>,
        rest: impl FnOnce(&mut Object<'_>),
        unmapped: impl FnOnce(&mut Object<'_>),
    ) {
        let What { class, activity, outcome, image } = what;
        let record = story.record;
        let header = &record.header;
        let when = When {
            time: header.time,
            cpu: header.cpu,
            lane: lane_of(header),
            sequence: header.sequence,
        };
        let protected = header.rule == RULE_PROTECTED || record.action == Action::Bpf;
        let severity = match (outcome, record.verdict) {
            (Outcome::Unjudged, _) | (_, Verdict::Allowed) => 1,
            (_, Verdict::WouldDeny) => 2,
            (_, Verdict::Denied) if protected => 4,
            (_, Verdict::Denied) => 3,
        };
        let clock = self.clock;
        json::object(out, |o| {
            let judged = outcome != Outcome::Unjudged;
            self.head(o, class, activity, when, severity, judged);
            verdict(o, story, outcome);
            let mut chain = story.processes.ancestors(story.actor);
            let mut whole = true;
            o.object("actor", |o| {
                o.object("process", |o| {
                    let actor = story.processes.get(story.actor);
                    identity(o, actor, header, &clock);
                    o.uint("ptid", u64::from(header.tid));
                    if let Some(image) = image.or(actor.map(|p| &*p.image)) {
                        program(o, image, usize::MAX);
                    }
                    let rooted = actor.is_some_and(|p| is_root(p.born));
                    whole = parents(o, &mut chain, rooted, 0, &clock);
                });
            });
            rest(o);
            o.object("unmapped", |o| {
                o.object("ai_agent", |o| agent(o, story));
                if judged {
                    o.str("action", record.action.name());
                    let audit = outcome == Outcome::Logged;
                    let verdict = if audit { Verdict::WouldDeny } else { record.verdict };
                    o.str("verdict", verdict.name());
                }
                if let Some(reason) = record.reason {
                    o.str("reason", reason.name());
                }
                o.str("hook", record.hook.name());
                if header.set != 0 {
                    o.uint("policy_set", u64::from(header.set));
                }
                if let Some(generation) = story.generation {
                    o.uint("policy_generation", generation);
                }
                o.lossy("comm", comm(&header.comm));
                if !whole || chain.is_cut() {
                    o.bool("chain_cut", true);
                }
                unmapped(o);
            });
        });
        out.push(b'\n');
    }
}

#[cfg(test)]
#[path = "ocsf_tests.rs"]
pub(crate) mod tests;
