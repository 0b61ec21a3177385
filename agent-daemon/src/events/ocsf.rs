//! Events as OCSF 1.8.0: one JSON object a line, written straight into a reused buffer.
//!
//! # Choices
//! - **Files** are class 1001: an open for reading is Read, one for writing is Update, and Create where it
//!   made the file. `access_mask` holds the `open(2)` flags and `file.uid` is `major:minor:inode`. What is no
//!   folder has type Unknown: the record does not tell devices and pipes from regular files.
//! - **Changes** of files are class 1001 too: Create, Delete, Rename, Update for truncating, Set Security for
//!   mode, owner and access lists, Set Attributes for times and other attributes, and Other with the name "Link". What was done is in `unmapped.operation`; `file_result`
//!   is the path that a rename or a link gives.
//! - **Programs** are class 1007, Launch, with `launch_type_id` Exec: `actor.process` is the process
//!   as it was before, `process` is what runs now (or would have run). An exec that is let go is
//!   told once, when the program runs, with the rule that permitted it. A fork is not told: it does
//!   nothing by itself, and each event of the child carries its chain.
//! - **Peers** are class 4001: connect is Open, a datagram sent without a connection is Traffic, listen is
//!   Listen, and bind is Other with the name "Bind", because Listen would claim more than was done. The name
//!   that the agent knows the peer's address by is its `hostname`; where there are several, all are in
//!   `unmapped.hostnames`. A unix
//!   socket is an endpoint with a name: its path, or `@` and its abstract address.
//! - **Kinds of sockets** are class 1003, Create: `kernel.name` is the kind.
//! - **Privileges** are class 1003, Invoke: `kernel.name` says what was asked for, `unmapped.privilege` is
//!   the privilege as policies name it.
//! - **Losses** are class 1008 Event Log Activity, Other with the name "Lose": it is what the schema
//!   has for the event log itself, and Application Lifecycle would say that Ambit stopped.
//! - **Heartbeats** are class 1008 too, Other with the name "Heartbeat": how far the stream has come stands in
//!   `unmapped.heartbeat`.
//! - **The verdict** is in the `security_control` profile: `action_id`, `disposition_id`, and
//!   `policy` with the deciding policy's `@id` as `uid` (`is_applied` is false where audit mode let
//!   it go). Events that judge nothing do not declare that profile.
//! - **The deciding policy's annotations**: `@severity` is `severity_id`, `@attack` becomes `attacks`,
//!   `@reason` is `policy.desc`, and `@asi`, for which the schema has no place, is `unmapped.asi`.
//! - **Time** is in milliseconds in `time` and in nanoseconds in `time_dt` (profile `datetime`).
//! - **The agent** is in `unmapped.ai_agent`, in the shape that OCSF 1.9 drafts.
//! - **Paths that are not UTF-8** are written with U+FFFD in `path` and `name`; the exact bytes are
//!   in `uri` of the same file object, as a percent-encoded `file:` URI.
//! - **Ids**: `metadata.uid` is `boot:time:cpu:lane:sequence`; `process.uid` is `start-pid`, in
//!   nanoseconds since boot, and stays the same from event to event.

use std::io::Write as _;
use std::net::IpAddr;

use agent_ebpf::{
    Action, FileBody, Hook, Lane, PeerBody, Privilege, PrivilegeBody, RULE_PROTECTED, SocketBody,
    SocketKind, Verdict, protocol,
};

use super::clock::Clock;
use super::gap::{Gap, Position};
use super::heartbeat::Heartbeat;
use super::hooks::{Operation, Sees, sees};
use super::host::Host;
use super::json::{self, Object};
use super::objects::{
    address, agent, base, comm, file, identity, is_root, parents, privilege_name, program, running,
    uri, verdict, write_time,
};
use super::pipeline::AgentInfo;
use super::processes::{ExeFrom, Handle, Image, Processes};
use super::record::{Record, lane_of};
use crate::policy::Notes;

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
    /// What its annotations tell.
    pub notes: Option<Notes<'a>>,
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

/// What a record of a file says was done.
const fn file_activity(hook: Hook, action: Action, body: &FileBody) -> Activity {
    let opened = match action {
        Action::Write if body.is_new != 0 => Activity(1, None),
        Action::Write => Activity(3, None),
        Action::Read
        | Action::Exec
        | Action::Connect
        | Action::Bind
        | Action::Listen
        | Action::Socket
        | Action::Privilege => Activity(2, None),
    };
    let Sees::File(operation) = sees(hook) else { return opened };
    match operation {
        Operation::Open
        | Operation::Receive
        | Operation::Map
        | Operation::Use
        | Operation::Exec => opened,
        Operation::Create | Operation::Mkdir | Operation::Symlink => Activity(1, None),
        Operation::Truncate => Activity(3, None),
        Operation::Unlink | Operation::Rmdir => Activity(4, None),
        Operation::Rename => Activity(5, None),
        Operation::Utimes | Operation::Setxattr | Operation::Removexattr => Activity(6, None),
        Operation::Chmod | Operation::Chown | Operation::Setfacl | Operation::Removefacl => {
            Activity(7, None)
        }
        Operation::Link => Activity(OTHER, Some("Link")),
    }
}

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

/// What an event about the event log means for who reads it.
#[derive(Clone, Copy)]
enum Means {
    Loss,
    Life,
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

    /// A file was opened or changed, or would have been.
    pub fn file(
        &mut self,
        out: &mut Vec<u8>,
        story: &Story<'_>,
        body: &FileBody,
        path: &[u8],
        result: &[u8],
    ) {
        let hook = story.record.hook;
        let activity = file_activity(hook, story.record.action, body);
        self.event(
            out,
            story,
            What::new(FILE_SYSTEM_ACTIVITY, activity, Outcome::Judged),
            |o| {
                o.object("file", |o| file(o, path, Some(body), body.is_dir != 0, 0));
                if !result.is_empty() {
                    o.object("file_result", |o| file(o, result, None, body.is_dir != 0, 0));
                }
                if matches!(
                    hook,
                    Hook::FileOpen | Hook::FileReceive | Hook::FilePermission | Hook::Fanotify
                ) {
                    o.uint("access_mask", u64::from(body.flags));
                }
            },
            |o| {
                if let Sees::File(operation) = sees(hook) {
                    o.str("operation", operation.name());
                }
            },
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
    ///
    /// `hosts` are the names that the agent knows its address by, the one that lives longest first.
    pub fn peer(&mut self, out: &mut Vec<u8>, story: &Story<'_>, body: &PeerBody, hosts: &[&str]) {
        let (activity, bind) = networking(story.record);
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
                    if let Some(host) = hosts.first() {
                        o.str("hostname", host);
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
            |o| {
                if hosts.len() > 1 {
                    o.array("hostnames", |a| hosts.iter().for_each(|host| a.str(host)));
                }
            },
        );
    }

    /// A unix socket was connected, sent to or bound, or would have been.
    pub fn unix_socket(
        &mut self,
        out: &mut Vec<u8>,
        story: &Story<'_>,
        body: &FileBody,
        name: &[u8],
    ) {
        let (activity, bind) = networking(story.record);
        self.event(
            out,
            story,
            What::new(NETWORK_ACTIVITY, activity, Outcome::Judged),
            |o| {
                o.object(if bind { "src_endpoint" } else { "dst_endpoint" }, |o| {
                    o.lossy("name", if name.is_empty() { b"unresolved" } else { name });
                });
                o.object("connection_info", |o| {
                    o.uint("direction_id", 4);
                    o.str("protocol_name", "unix");
                });
            },
            |o| {
                if std::str::from_utf8(name).is_err() {
                    o.plain("socket_uri", |out| uri(out, name));
                }
                if body.inode != 0 {
                    let (major, minor) = (body.device >> 20, body.device & 0xf_ffff);
                    o.display("socket_uid", format_args!("{major}:{minor}:{}", body.inode));
                }
            },
        );
    }

    /// A socket was made of a kind whose use is not judged, or would have been.
    pub fn socket(&mut self, out: &mut Vec<u8>, story: &Story<'_>, body: &SocketBody) {
        let kind = u8::try_from(body.kind).ok().and_then(SocketKind::from_code);
        self.event(
            out,
            story,
            What::new(KERNEL_ACTIVITY, Activity(1, None), Outcome::Judged),
            |o| {
                o.object("kernel", |o| {
                    o.str("name", kind.map_or("socket", SocketKind::name));
                    o.uint("type_id", 2);
                    o.str("system_call", "socket");
                });
            },
            |o| {
                o.uint("family", u64::from(body.family));
                o.uint("socket_type", u64::from(body.socket_type));
                o.uint("protocol", u64::from(body.protocol));
            },
        );
    }

    /// A privilege was asked for.
    pub fn privilege(&mut self, out: &mut Vec<u8>, story: &Story<'_>, body: &PrivilegeBody) {
        let privilege = u8::try_from(body.privilege).ok().and_then(Privilege::from_code);
        self.event(
            out,
            story,
            What::new(KERNEL_ACTIVITY, Activity(4, None), Outcome::Judged),
            |o| {
                o.object("kernel", |o| {
                    o.str("name", privilege_name(privilege, body.detail));
                    o.uint("type_id", 2);
                    if privilege == Some(Privilege::Bpf) {
                        o.str("system_call", "bpf");
                    }
                });
            },
            |o| {
                o.str("privilege", privilege.map_or("privilege", Privilege::name));
                o.uint("detail", u64::from(body.detail));
                if body.target != 0 {
                    o.uint("target_pid", u64::from(body.target));
                }
            },
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
        self.log(out, "Lose", Means::Loss, |o| {
            o.uint("count", gap.total());
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
        self.log(out, "Discard", Means::Loss, |o| {
            o.uint("count", count);
            o.str("status_detail", why);
        });
    }

    /// The daemon is alive, and this is how far the stream has come.
    pub fn heartbeat(
        &mut self,
        out: &mut Vec<u8>,
        beat: &Heartbeat,
        positions: impl Iterator<Item = Position>,
    ) {
        self.log(out, "Heartbeat", Means::Life, |o| {
            o.object("unmapped", |o| {
                o.object("heartbeat", |o| {
                    o.uint("number", beat.number);
                    o.uint("interval_seconds", beat.interval.as_secs());
                    o.uint("policy_generation", beat.generation);
                    o.uint("agents", beat.agents as u64);
                    o.array("positions", |a| {
                        for position in positions {
                            a.object(|o| {
                                o.uint("cpu", u64::from(position.cpu));
                                o.str("lane", position.lane.name());
                                o.uint("sequence", position.sequence);
                                o.uint("lost", position.lost.iter().sum());
                            });
                        }
                    });
                });
            });
        });
    }

    /// An event about the event log itself.
    fn log(
        &mut self,
        out: &mut Vec<u8>,
        name: &'static str,
        means: Means,
        rest: impl FnOnce(&mut Object<'_>),
    ) {
        let when = When { time: Clock::boot_now(), cpu: 0, lane: Lane::Told, sequence: 0 };
        json::object(out, |o| {
            let activity = Activity(OTHER, Some(name));
            // High and Failure, or Informational and Success.
            let (severity, status) = match means {
                Means::Loss => (4, 2),
                Means::Life => (1, 1),
            };
            self.head(o, EVENT_LOG_ACTIVITY, activity, when, severity, false);
            o.str("log_name", "ambit");
            o.str("log_provider", "Ambit");
            o.uint("log_type_id", 2);
            o.uint("status_id", status);
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
        let protected = header.rule == RULE_PROTECTED || record.action == Action::Privilege;
        let severity = match (outcome, record.verdict) {
            (Outcome::Unjudged, _) | (_, Verdict::Allowed) => 1,
            (_, Verdict::WouldDeny) => 2,
            (_, Verdict::Denied) if protected => 4,
            (_, Verdict::Denied) => 3,
        };
        let notes = story.notes.filter(|_| outcome != Outcome::Unjudged);
        let severity = notes.and_then(Notes::severity).unwrap_or(severity);
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
                if let Some(asi) = notes.map(Notes::asi)
                    && asi.clone().next().is_some()
                {
                    o.array("asi", |a| asi.for_each(|one| a.str(one)));
                }
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

/// What a record of class 4001 did, and whether it did it to an address of its own.
const fn networking(record: &Record<'_>) -> (Activity, bool) {
    match record.action {
        Action::Bind => (Activity(OTHER, Some("Bind")), true),
        Action::Listen => (Activity(7, None), true),
        Action::Connect
        | Action::Exec
        | Action::Read
        | Action::Write
        | Action::Socket
        | Action::Privilege => {
            let activity = if matches!(sees(record.hook), Sees::Datagram) { 6 } else { 1 };
            (Activity(activity, None), false)
        }
    }
}

#[cfg(test)]
#[path = "ocsf_tests.rs"]
pub(crate) mod tests;
