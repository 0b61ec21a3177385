use agent_ebpf::{
    ExecBody, ExitBody, FileBody, ForkBody, Hook, NamedKey, PeerBody, Privilege, PrivilegeBody,
    RULE_PROTECTED, Reason, SocketBody, SocketKind, family, protocol,
};
use std::sync::LazyLock;

use serde_json::Value;
use zerocopy::IntoBytes as _;

use super::super::ocsf::tests::violations;
use super::super::proc::{NoProc, ProcInfo, ProcSource};
use super::super::record::{encode_exec, encode_file, encode_fixed};
use super::*;
use crate::policy::{Effect, RuleInfo};

struct Fixed;

impl Names for Fixed {
    fn agent(&self, id: u32) -> Option<AgentInfo<'_>> {
        (id == 5).then_some(AgentInfo {
            name: "coder",
            uid: "spiffe://example.org/agent/coder",
            instance_uid: "run-1",
            charter: Some("fixes bugs"),
            mode: Mode::Enforce,
        })
    }
    fn rule(&self, set: u32, rule: RuleId) -> Option<&str> {
        match (set, rule) {
            (1, 2) => Some("read-src"),
            (1, 3) => Some("tools"),
            (1, 4) => Some("scripts"),
            (1, 5) => Some("keys"),
            _ => None,
        }
    }
    fn hosts(&self, key: &NamedKey) -> Vec<&str> {
        match (key.agent, key.address) {
            (5, [192, 0, 2, 7, ..]) => vec!["api.example.com", "edge.example.net"],
            _ => Vec::new(),
        }
    }
    fn notes(&self, set: u32, rule: RuleId) -> Option<Notes<'_>> {
        static TOLD: LazyLock<RuleInfo> = LazyLock::new(|| RuleInfo {
            id: "scripts".to_owned(),
            effect: Effect::Forbid,
            place: "coder.cedar:1:1".to_owned(),
            annotations: [
                ("reason", "Keys are not for \"agents\""),
                ("severity", "critical"),
                ("asi", "ASI03, ASI02"),
                ("attack", "T1552.001,AML.T0055"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        });
        ((set, rule) == (1, 5)).then(|| TOLD.notes())
    }
    fn generation(&self, set: u32) -> Option<u64> {
        (set == 1).then_some(12)
    }
}

/// The kernel's side: makes records with the right numbers.
struct Kernel {
    batch: Batch,
    record: Vec<u8>,
    sequence: [u64; 2],
    time: u64,
}

const BOOT: u64 = 1_000_000_000;

impl Kernel {
    fn new() -> Self {
        Self { batch: Batch::new(), record: Vec::new(), sequence: [0; 2], time: 60 * BOOT }
    }

    fn header(&mut self, tgid: u32, action: Action, verdict: Verdict, hook: Hook) -> Header {
        let lane = usize::from(verdict == Verdict::Allowed);
        self.sequence[lane] += 1;
        self.time += 1_000_001;
        Header {
            action: action as u8,
            verdict: verdict as u8,
            reason: match verdict {
                Verdict::Allowed => Reason::Permitted,
                Verdict::Denied | Verdict::WouldDeny => Reason::NoPermit,
            } as u8,
            hook: hook as u8,
            sequence: self.sequence[lane],
            time: self.time,
            start: u64::from(tgid) * BOOT + 7,
            cpu: 1,
            tgid,
            tid: tgid,
            uid: 1000,
            agent: 5,
            rule: if verdict == Verdict::Allowed { 2 } else { 0 },
            set: 1,
            comm: *b"worker\0\0\0\0\0\0\0\0\0\0",
            ..Header::default()
        }
    }

    fn push(&mut self) {
        self.batch.push(&self.record);
    }

    fn file(&mut self, tgid: u32, action: Action, verdict: Verdict, path: &[u8]) -> Header {
        let hook = if action == Action::Exec { Hook::BprmCheck } else { Hook::FileOpen };
        let header = self.header(tgid, action, verdict, hook);
        self.file_with(&header, path);
        header
    }

    fn file_with(&mut self, header: &Header, path: &[u8]) {
        let body = FileBody {
            inode: 42,
            device: (8 << 20) | 1,
            flags: 0x8000,
            is_dir: u8::from(path.ends_with(b"/")),
            ..FileBody::default()
        };
        encode_file(&mut self.record, header, &body, path);
        self.push();
    }

    fn peer(&mut self, tgid: u32, action: Action, verdict: Verdict, hook: Hook, body: PeerBody) {
        let header = self.header(tgid, action, verdict, hook);
        encode_fixed(&mut self.record, &header, Kind::Peer, body.as_bytes());
        self.push();
    }

    fn fixed(&mut self, tgid: u32, kind: Kind, hook: Hook, body: &[u8]) {
        let mut header = self.header(tgid, Action::Exec, Verdict::Allowed, hook);
        header.rule = 0;
        header.reason = 0;
        encode_fixed(&mut self.record, &header, kind, body);
        self.push();
    }

    fn fork(&mut self, parent: u32, child: u32) {
        let body = ForkBody { child_start: u64::from(child) * BOOT + 7, child, pad: 0 };
        self.fixed(parent, Kind::Fork, Hook::SchedFork, body.as_bytes());
    }

    fn exec(&mut self, tgid: u32, filename: &str, argv: &[&str], script: bool) {
        let mut header = self.header(tgid, Action::Exec, Verdict::Allowed, Hook::SchedExec);
        header.rule = 0;
        header.reason = 0;
        let body = ExecBody { is_script: u8::from(script), ..ExecBody::default() };
        let argv: Vec<u8> = argv.iter().flat_map(|a| a.bytes().chain(std::iter::once(0))).collect();
        encode_exec(&mut self.record, &header, &body, filename.as_bytes(), &argv);
        self.push();
    }

    fn exit(&mut self, tgid: u32, code: u32) {
        let body = ExitBody { code, pad: 0 };
        self.fixed(tgid, Kind::Exit, Hook::SchedExit, body.as_bytes());
    }

    fn enrol(&mut self, tgid: u32) {
        self.fixed(tgid, Kind::Enrol, Hook::FileOpen, &[]);
    }
}

fn host() -> Host {
    Host {
        hostname: "node-1".into(),
        machine_id: Some("0f3c".into()),
        boot_id: "b007".into(),
        kernel_release: "6.12.0".into(),
    }
}

fn pipeline() -> Pipeline {
    let processes = Processes::new(Box::new(NoProc));
    Pipeline::with_clock(&host(), processes, Clock::with_offset(1_700_000_000_000_000_000))
}

fn lines(out: &[u8]) -> Vec<Value> {
    assert!(out.is_empty() || out.ends_with(b"\n"));
    out.split(|&b| b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            let event: Value = serde_json::from_slice(line).unwrap();
            assert_eq!(violations(&event), Vec::<String>::new(), "{event:#}");
            event
        })
        .collect()
}

fn told(pipeline: &mut Pipeline, kernel: &mut Kernel) -> Vec<Value> {
    let mut out = Vec::new();
    let taken = pipeline.take(&mut kernel.batch, &Fixed, &mut out);
    let events = taken.events;
    assert_eq!(taken.undecodable, 0);
    let lines = lines(&out);
    assert_eq!(lines.len() as u64, events);
    lines
}

fn v4(address: [u8; 4], port: u16, protocol: u8) -> PeerBody {
    let mut body =
        PeerBody { port: port.to_be_bytes(), family: family::V4, protocol, ..PeerBody::default() };
    body.address[..4].copy_from_slice(&address);
    body
}

/// A library that becomes code is a file event, and no part of the launch that follows.
#[test]
fn what_is_mapped_as_code_is_no_launch() {
    let (mut kernel, mut pipeline) = (Kernel::new(), pipeline());
    kernel.enrol(10);
    let header = kernel.header(10, Action::Exec, Verdict::WouldDeny, Hook::MmapFile);
    kernel.file_with(&header, b"/opt/library.so");
    kernel.file(10, Action::Exec, Verdict::Allowed, b"/usr/bin/tool");
    kernel.exec(10, "/usr/bin/tool", &["tool"], false);
    let events = told(&mut pipeline, &mut kernel);
    let mapped = events.iter().find(|event| event["class_uid"] == 1001).unwrap();
    assert_eq!(mapped["file"]["path"], "/opt/library.so");
    assert_eq!(mapped["unmapped"]["operation"], "map");
    assert_eq!(mapped["action_id"], 3);
    let launches: Vec<_> = events.iter().filter(|event| event["type_uid"] == 100_701).collect();
    assert_eq!(launches.len(), 1, "{events:?}");
    assert_eq!(launches[0]["process"]["file"]["path"], "/usr/bin/tool");
    assert_eq!(launches[0]["action_id"], 1);
}

#[test]
fn a_destination_is_told_with_the_names_that_its_agent_knows() {
    let (mut kernel, mut pipeline) = (Kernel::new(), pipeline());
    kernel.enrol(10);
    let named = v4([192, 0, 2, 7], 443, protocol::TCP);
    kernel.peer(10, Action::Connect, Verdict::Allowed, Hook::Connect4, named);
    kernel.peer(10, Action::Bind, Verdict::Allowed, Hook::Bind4, named);
    let events = told(&mut pipeline, &mut kernel);
    let network: Vec<_> = events.iter().filter(|event| event["class_uid"] == 4001).collect();
    assert_eq!(network[0]["dst_endpoint"]["hostname"], "api.example.com");
    assert_eq!(network[0]["dst_endpoint"]["ip"], "192.0.2.7");
    let all = serde_json::json!(["api.example.com", "edge.example.net"]);
    assert_eq!(network[0]["unmapped"]["hostnames"], all);
    assert!(network[1]["src_endpoint"].get("hostname").is_none());
}

#[test]
fn every_kind_of_event_is_valid_ocsf() {
    let (mut pipeline, mut kernel) = (pipeline(), Kernel::new());
    kernel.enrol(10);
    kernel.file(10, Action::Exec, Verdict::Allowed, b"/bin/sh");
    kernel.exec(10, "/bin/sh", &["sh", "-c", "x"], false);
    kernel.fork(10, 11);
    for verdict in Verdict::ALL {
        for action in [Action::Exec, Action::Read, Action::Write] {
            kernel.file(11, action, *verdict, b"/srv/x");
            kernel.file(11, action, *verdict, b"/srv/dir/");
            kernel.file(11, action, *verdict, b"/srv/\xff\xfe%");
            kernel.file(11, action, *verdict, b"/");
            kernel.file(11, action, *verdict, b"");
        }
        let v6 = PeerBody {
            address: [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            port: 443_u16.to_be_bytes(),
            family: family::V6,
            protocol: protocol::UDP,
            ..PeerBody::default()
        };
        let tcp = v4([127, 0, 0, 1], 80, protocol::TCP);
        kernel.peer(11, Action::Connect, *verdict, Hook::Connect4, tcp);
        let named = v4([192, 0, 2, 7], 443, protocol::TCP);
        kernel.peer(11, Action::Connect, *verdict, Hook::Connect4, named);
        kernel.peer(11, Action::Connect, *verdict, Hook::Sendmsg6, v6);
        kernel.peer(11, Action::Bind, *verdict, Hook::Bind4, tcp);
        kernel.peer(11, Action::Connect, *verdict, Hook::SocketConnect, PeerBody::default());
        kernel.peer(11, Action::Listen, *verdict, Hook::Bind4, tcp);
        for name in [&b"/run/x"[..], b"@x", b"@\xff\x00", b""] {
            kernel.file(11, Action::Connect, *verdict, name);
            kernel.file(11, Action::Bind, *verdict, name);
        }
        let header = kernel.header(11, Action::Privilege, *verdict, Hook::Bpf);
        for privilege in Privilege::ALL {
            for detail in [0, 9, 21, 9999] {
                let body =
                    PrivilegeBody { privilege: *privilege as u32, detail, target: 7, pad: 0 };
                encode_fixed(&mut kernel.record, &header, Kind::Privilege, body.as_bytes());
                kernel.push();
            }
        }
        let header = kernel.header(11, Action::Socket, *verdict, Hook::Bpf);
        for kind in SocketKind::ALL {
            let body = SocketBody { kind: *kind as u32, family: 16, socket_type: 3, protocol: 0 };
            encode_fixed(&mut kernel.record, &header, Kind::Socket, body.as_bytes());
            kernel.push();
        }
    }
    kernel.exec(11, "run", &["run"], true);
    kernel.exec(12, "", &[], false);
    kernel.exit(11, 3 << 8);
    kernel.exit(12, 9);
    let events = told(&mut pipeline, &mut kernel);
    let classes: std::collections::BTreeSet<_> =
        events.iter().map(|e| e["class_uid"].as_u64()).collect();
    assert_eq!(classes.len(), 4);

    let mut out = Vec::new();
    kernel.batch.push(b"short");
    let taken = pipeline.take(&mut kernel.batch, &Fixed, &mut out);
    assert_eq!((taken.events, taken.undecodable), (1, 1));
    let mut counters = Stream { sequence: kernel.sequence[1] + 3, ..Stream::default() };
    counters.lost[Kind::Peer as usize] = 3;
    let settled = pipeline.settle([(1, Lane::Told, counters)], &mut out);
    assert_eq!((settled.events, settled.lost(Kind::Peer)), (1, 3));
    let beat = Heartbeat {
        number: 4,
        interval: std::time::Duration::from_secs(60),
        generation: 12,
        agents: 3,
    };
    pipeline.beat(&beat, &mut out);
    let events = lines(&out);
    assert_eq!(events[2]["activity_name"], "Heartbeat");
    assert_eq!((&events[2]["severity_id"], &events[2]["status_id"]), (&1.into(), &1.into()));
    let last = counters.sequence;
    assert_eq!(
        events[2]["unmapped"]["heartbeat"],
        serde_json::json!({
            "number": 4, "interval_seconds": 60, "policy_generation": 12, "agents": 3,
            "positions": [
                {"cpu": 1, "lane": "denied", "sequence": kernel.sequence[0], "lost": 0},
                {"cpu": 1, "lane": "told", "sequence": last, "lost": 3},
            ],
        })
    );
    assert_eq!(events[0]["activity_name"], "Discard");
    assert_eq!(events[1]["unmapped"]["gap"]["lost"]["peer"], 3);
    assert_eq!(events[1]["count"], 3);
}

#[test]
fn annotations_of_the_deciding_policy_are_told() {
    let (mut pipeline, mut kernel) = (pipeline(), Kernel::new());
    let mut header = kernel.header(70, Action::Read, Verdict::Denied, Hook::FileOpen);
    header.rule = 5;
    header.reason = Reason::Forbidden as u8;
    kernel.file_with(&header, b"/work/.secrets/key");
    let events = told(&mut pipeline, &mut kernel);
    let event = &events[0];
    assert_eq!(event["severity_id"], 5);
    assert_eq!(event["policy"]["uid"], "keys");
    assert_eq!(event["policy"]["desc"], "Keys are not for \"agents\"");
    assert_eq!(
        event["attacks"],
        serde_json::json!([
            {"technique": {"uid": "T1552"}, "sub_technique": {"uid": "T1552.001"}},
            {"technique": {"uid": "AML.T0055"}},
        ])
    );
    assert_eq!(event["unmapped"]["asi"], serde_json::json!(["ASI03", "ASI02"]));
}

#[test]
fn a_denied_read_tells_who_what_and_why() {
    let (mut pipeline, mut kernel) = (pipeline(), Kernel::new());
    kernel.enrol(10);
    kernel.file(10, Action::Exec, Verdict::Allowed, b"/bin/bash");
    kernel.exec(10, "/bin/bash", &["bash", "--token", "hunter2"], false);
    kernel.fork(10, 11);
    kernel.file(11, Action::Exec, Verdict::Allowed, b"/usr/bin/cat");
    kernel.exec(11, "cat", &["cat", "/home/u/.ssh/id"], false);
    let header = kernel.file(11, Action::Read, Verdict::Denied, b"/home/u/.ssh/id");
    let events = told(&mut pipeline, &mut kernel);
    let event = events.last().unwrap();
    let at = |pointer: &str| event.pointer(pointer).cloned().unwrap_or_default();
    let expected = [
        ("/type_uid", Value::from(100_102)),
        ("/action_id", 2.into()),
        ("/disposition_id", 2.into()),
        ("/status_code", "EPERM".into()),
        ("/file/path", "/home/u/.ssh/id".into()),
        ("/file/uid", "8:1:42".into()),
        ("/time", (1_700_000_000_000 + header.time / 1_000_000).into()),
        ("/actor/process/pid", 11.into()),
        ("/actor/process/created_time", (1_700_000_011_000_i64).into()),
        ("/actor/process/user/uid", "1000".into()),
        ("/actor/process/cmd_line", "cat /home/u/.ssh/id".into()),
        ("/actor/process/file/path", "/usr/bin/cat".into()),
        ("/actor/process/parent_process/pid", 10.into()),
        ("/actor/process/parent_process/cmd_line", "bash --token [redacted]".into()),
        ("/unmapped/ai_agent/name", "coder".into()),
        ("/unmapped/ai_agent/instance_uid", "run-1".into()),
        ("/unmapped/reason", "no_permit".into()),
        ("/unmapped/hook", "lsm/file_open".into()),
        ("/unmapped/policy_generation", 12.into()),
        ("/unmapped/chain_cut", Value::Null),
        ("/policy", Value::Null),
    ];
    for (pointer, value) in expected {
        assert_eq!(at(pointer), value, "{pointer} of {event:#}");
    }
    let nanoseconds = at("/time_dt");
    assert!(
        nanoseconds.as_str().unwrap().ends_with(&format!(".{:09}Z", header.time % 1_000_000_000))
    );
    assert!(at("/actor/process/parent_process/parent_process").is_null());
}

#[test]
fn an_exec_is_told_once_with_its_path_rule_and_both_processes() {
    let (mut pipeline, mut kernel) = (pipeline(), Kernel::new());
    kernel.enrol(10);
    kernel.exec(10, "/bin/bash", &["bash"], false);
    kernel.fork(10, 11);
    let mut header = kernel.header(11, Action::Exec, Verdict::Allowed, Hook::BprmCheck);
    header.rule = 4;
    kernel.file_with(&header, b"/src/run.py");
    header.rule = 3;
    header.time += 1;
    kernel.file_with(&header, b"/usr/bin/python3.11");
    kernel.exec(11, "./run.py", &["python3", "./run.py"], true);
    let events = told(&mut pipeline, &mut kernel);
    assert_eq!(events.len(), 3);
    let event = &events[2];
    assert_eq!(event["type_uid"], 100_701);
    assert_eq!(event["process"]["file"]["path"], "/usr/bin/python3.11");
    assert_eq!(event["process"]["cmd_line"], "python3 ./run.py");
    assert_eq!(event["actor"]["process"]["cmd_line"], "bash");
    assert_eq!(event["policy"]["uid"], "tools");
    assert_eq!(event["unmapped"]["script"]["path"], "/src/run.py");
    assert_eq!(event["unmapped"]["script"]["policy_uid"], "scripts");
}

#[test]
fn a_refused_exec_is_an_event_and_not_the_next_ones_path() {
    let (mut pipeline, mut kernel) = (pipeline(), Kernel::new());
    kernel.file(11, Action::Exec, Verdict::Denied, b"/usr/bin/nc");
    kernel.file(11, Action::Exec, Verdict::WouldDeny, b"/usr/bin/ssh");
    kernel.exec(11, "ssh", &["ssh", "h"], false);
    let mut out = Vec::new();
    let taken = pipeline.take(&mut kernel.batch, &Fixed, &mut out);
    let count = |verdict| Count { agent: 5, action: Action::Exec, verdict, count: 1 };
    assert_eq!(taken.counts, [count(Verdict::Denied), count(Verdict::WouldDeny)]);
    let events = lines(&out);
    let verdicts: Vec<_> =
        events.iter().map(|e| (e["action_id"].clone(), e["disposition_id"].clone())).collect();
    assert_eq!(verdicts, [(2.into(), 2.into()), (3.into(), 15.into()), (3.into(), 17.into())]);
    assert_eq!(events[0]["process"]["file"]["path"], "/usr/bin/nc");
    assert_eq!(events[2]["process"]["file"]["path"], "/usr/bin/ssh");
}

#[test]
fn a_denial_read_before_the_exec_that_it_follows_is_told_after_it() {
    let (mut pipeline, mut kernel) = (pipeline(), Kernel::new());
    kernel.exec(11, "/bin/cat", &["cat", "key"], false);
    kernel.file(11, Action::Read, Verdict::Denied, b"/key");
    // As the lanes are drained: the denied one first.
    let mut swapped = Batch::new();
    for entry in kernel.batch.entries.iter().rev() {
        let bytes = &kernel.batch.bytes[entry.offset..entry.offset + entry.len];
        swapped.push(bytes);
    }
    kernel.batch = swapped;
    let events = told(&mut pipeline, &mut kernel);
    assert_eq!(events[0]["class_uid"], 1007);
    assert_eq!(events[1]["actor"]["process"]["cmd_line"], "cat key");
}

#[test]
fn records_later_than_the_drain_wait_for_the_next_one() {
    let (mut pipeline, mut kernel) = (pipeline(), Kernel::new());
    let first = kernel.file(11, Action::Read, Verdict::Allowed, b"/a");
    kernel.file(11, Action::Read, Verdict::Allowed, b"/b");
    let mut out = Vec::new();
    let taken = pipeline.take_until(&mut kernel.batch, first.time, &Fixed, &mut out);
    assert_eq!(taken.events, 1);
    assert_eq!(kernel.batch.len(), 1);
    let events = told(&mut pipeline, &mut kernel);
    assert_eq!(events[0]["file"]["path"], "/b");
    assert!(kernel.batch.is_empty());
}

#[test]
fn a_path_that_is_not_utf8_keeps_its_bytes_in_a_valid_line() {
    let (mut pipeline, mut kernel) = (pipeline(), Kernel::new());
    kernel.file(11, Action::Write, Verdict::Allowed, b"/a b/\xff\n\"x\xc3\xa9");
    let events = told(&mut pipeline, &mut kernel);
    let file = &events[0]["file"];
    assert_eq!(file["path"], "/a b/\u{fffd}\n\"xé");
    assert_eq!(file["uri"], "file:///a%20b/%FF%0A%22x%C3%A9");
}

#[test]
fn changes_say_what_was_done_and_to_which_names() {
    let (mut pipeline, mut kernel) = (pipeline(), Kernel::new());
    let hooks = [
        (Hook::PathMknod, 1, "create"),
        (Hook::PathMkdir, 1, "mkdir"),
        (Hook::PathSymlink, 1, "symlink"),
        (Hook::PathTruncate, 3, "truncate"),
        (Hook::PathUnlink, 4, "unlink"),
        (Hook::PathRmdir, 4, "rmdir"),
        (Hook::PathRename, 5, "rename"),
        (Hook::InodeSetattr, 6, "utimes"),
        (Hook::InodeSetxattr, 6, "setxattr"),
        (Hook::InodeRemovexattr, 6, "removexattr"),
        (Hook::PathChmod, 7, "chmod"),
        (Hook::PathChown, 7, "chown"),
        (Hook::InodeSetAcl, 7, "setfacl"),
        (Hook::InodeRemoveAcl, 7, "removefacl"),
        (Hook::PathLink, 99, "link"),
    ];
    for (hook, ..) in hooks {
        let header = kernel.header(11, Action::Write, Verdict::Denied, hook);
        let result = matches!(hook, Hook::PathRename | Hook::PathLink);
        let result: &[u8] = if result { b"/to" } else { b"" };
        let body = FileBody {
            inode: 42,
            path_len: 5,
            result_len: result.len() as u32,
            ..FileBody::default()
        };
        let bytes = [body.as_bytes(), b"/from", result].concat();
        encode_fixed(&mut kernel.record, &header, Kind::File, &bytes);
        kernel.push();
    }
    let events = told(&mut pipeline, &mut kernel);
    for (event, (hook, activity, operation)) in events.iter().zip(hooks) {
        assert_eq!(event["activity_id"], activity, "{operation}");
        assert_eq!(event["unmapped"]["operation"], operation);
        assert_eq!(event["file"]["path"], "/from");
        let moves = matches!(hook, Hook::PathRename | Hook::PathLink);
        assert_eq!(event["file_result"]["path"] == "/to", moves);
    }
}

#[test]
fn the_built_in_rule_has_a_name_and_weighs_more() {
    let (mut pipeline, mut kernel) = (pipeline(), Kernel::new());
    let mut header = kernel.header(11, Action::Write, Verdict::Denied, Hook::FileOpen);
    header.rule = RULE_PROTECTED;
    kernel.file_with(&header, b"/etc/ambit/ambit.toml");
    let events = told(&mut pipeline, &mut kernel);
    assert_eq!(events[0]["policy"]["uid"], "ambit:protected");
    assert_eq!(events[0]["severity_id"], 4);
}

#[test]
fn counts_are_by_agent_action_and_verdict_and_an_exec_counts_once() {
    let (mut pipeline, mut kernel) = (pipeline(), Kernel::new());
    kernel.file(11, Action::Exec, Verdict::Allowed, b"/bin/x");
    kernel.file(11, Action::Exec, Verdict::Allowed, b"/lib/ld.so");
    kernel.exec(11, "/bin/x", &["x"], false);
    for _ in 0..3 {
        kernel.file(11, Action::Read, Verdict::Allowed, b"/a");
    }
    kernel.file(11, Action::Read, Verdict::Denied, b"/b");
    let mut out = Vec::new();
    let taken = pipeline.take(&mut kernel.batch, &Fixed, &mut out);
    let counts: Vec<_> = taken.counts.iter().map(|c| (c.action, c.verdict, c.count)).collect();
    assert_eq!(
        counts,
        [
            (Action::Exec, Verdict::Allowed, 1),
            (Action::Read, Verdict::Allowed, 3),
            (Action::Read, Verdict::Denied, 1),
        ]
    );
}

#[test]
fn event_ids_are_unique() {
    let (mut pipeline, mut kernel) = (pipeline(), Kernel::new());
    for _ in 0..50 {
        kernel.file(11, Action::Read, Verdict::Allowed, b"/a");
        kernel.file(11, Action::Read, Verdict::Denied, b"/a");
    }
    let mut header = kernel.header(11, Action::Read, Verdict::Allowed, Hook::Fanotify);
    header.sequence = 0;
    kernel.file_with(&header, b"/a");
    kernel.file_with(&header, b"/a");
    let events = told(&mut pipeline, &mut kernel);
    let ids: std::collections::HashSet<_> =
        events.iter().map(|e| e["metadata"]["uid"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 102);
}

struct OneProc;

impl ProcSource for OneProc {
    fn read(&mut self, tgid: u32) -> Option<ProcInfo> {
        (tgid == 11).then(|| ProcInfo {
            start: 11 * BOOT,
            parent: 1,
            uid: 1000,
            comm: b"cat".to_vec(),
            exe: Some(b"/usr/bin/cat".to_vec()),
            argv: b"cat\0x\0".to_vec(),
        })
    }
}

#[test]
fn a_process_whose_birth_was_not_seen_is_read_from_proc_and_its_chain_says_that_it_is_cut() {
    let processes = Processes::new(Box::new(OneProc));
    let mut pipeline = Pipeline::with_clock(&host(), processes, Clock::with_offset(0));
    let mut kernel = Kernel::new();
    kernel.file(11, Action::Read, Verdict::Allowed, b"/x");
    kernel.exec(12, "/bin/ls", &["ls"], false);
    let events = told(&mut pipeline, &mut kernel);
    assert_eq!(events[0]["actor"]["process"]["file"]["path"], "/usr/bin/cat");
    assert_eq!(events[0]["unmapped"]["chain_cut"], true);
    assert_eq!(events[1]["process"]["file"]["path"], "/bin/ls");
    assert_eq!(events[1]["unmapped"]["exe_from"], "name");
}

#[test]
#[ignore = "prints examples for the documentation"]
fn samples() {
    let (mut pipeline, mut kernel) = (pipeline(), Kernel::new());
    kernel.enrol(10);
    kernel.file(10, Action::Exec, Verdict::Allowed, b"/usr/bin/bash");
    kernel.exec(10, "/usr/bin/bash", &["bash", "-c", "curl -u me:pw h"], false);
    kernel.fork(10, 11);
    kernel.file(11, Action::Exec, Verdict::Allowed, b"/usr/bin/cat");
    kernel.exec(11, "cat", &["cat", "/home/u/.ssh/id"], false);
    kernel.file(11, Action::Read, Verdict::Denied, b"/home/u/.ssh/id");
    let tcp = v4([10, 1, 2, 3], 443, protocol::TCP);
    kernel.peer(11, Action::Connect, Verdict::WouldDeny, Hook::Connect4, tcp);
    kernel.exit(11, 256);
    let mut out = Vec::new();
    pipeline.take(&mut kernel.batch, &Fixed, &mut out);
    let mut renderer = super::super::render::Renderer::new(Default::default(), false);
    for line in out.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
        println!("{}", String::from_utf8_lossy(line));
        println!("{}", renderer.line(line).unwrap());
    }
}
