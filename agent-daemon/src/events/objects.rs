//! The objects that events are made of: processes, files, peers, verdicts.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_ebpf::{
    FileBody, Header, PeerBody, Privilege, RULE_NONE, RULE_PROTECTED, Verdict, family,
};

use super::clock::Clock;
use super::json::Object;
use super::ocsf::{ANCESTOR_COMMAND_LINE, ANCESTORS_MAX, Outcome, PROTECTED_ID, Story};
use super::process::shortened;
use super::processes::{Ancestors, Born, Image, Process};
use crate::policy::{Notes, technique};

fn printer() -> jiff::fmt::temporal::DateTimePrinter {
    jiff::fmt::temporal::DateTimePrinter::new().precision(Some(9))
}

/// Writes a time in milliseconds, and in nanoseconds beside it.
pub(super) fn write_time(o: &mut Object<'_>, key: &str, key_dt: &str, wall: i64) {
    o.int(key, wall.div_euclid(1_000_000));
    if let Ok(stamp) = jiff::Timestamp::from_nanosecond(i128::from(wall)) {
        o.plain(key_dt, |out| {
            let text = jiff::fmt::StdIoWrite(out);
            // Writing to a `Vec` cannot fail.
            let _ = printer().print_timestamp(&stamp, text);
        });
    }
}

pub(super) fn verdict(o: &mut Object<'_>, story: &Story<'_>, outcome: Outcome) {
    let record = story.record;
    let (action, disposition, denied) = match (outcome, record.verdict) {
        (Outcome::Unjudged, _) => return,
        (Outcome::Logged, _) => (3, 17, false),
        (Outcome::Judged, Verdict::Allowed) => (1, 1, false),
        (Outcome::Judged, Verdict::Denied) => (2, 2, true),
        (Outcome::Judged, Verdict::WouldDeny) => (3, 15, false),
    };
    o.uint("action_id", action);
    o.uint("disposition_id", disposition);
    o.uint("status_id", if denied { 2 } else { 1 });
    if denied {
        o.str("status_code", "EPERM");
    }
    let id = match (story.rule, record.header.rule) {
        (Some(id), _) => Some(id),
        (None, RULE_PROTECTED) => Some(PROTECTED_ID),
        (None, _) => None,
    };
    if let Some(id) = id {
        o.object("policy", |o| {
            o.str("uid", id);
            if let Some(reason) = story.notes.and_then(Notes::reason) {
                o.str("desc", reason);
            }
            if let Some(generation) = story.generation {
                o.display("version", format_args!("{generation}"));
            }
            o.bool("is_applied", action != 3);
        });
        if let Some(attacks) = story.notes.map(Notes::attacks)
            && attacks.clone().next().is_some()
        {
            o.array("attacks", |a| {
                for id in attacks {
                    let (technique, sub) = technique(id);
                    a.object(|o| {
                        o.object("technique", |o| o.str("uid", technique));
                        if let Some(sub) = sub {
                            o.object("sub_technique", |o| o.str("uid", sub));
                        }
                    });
                }
            });
        }
    } else if record.header.rule != RULE_NONE {
        // A rule whose name is not known: its number is better than silence.
        o.object("policy", |o| {
            let header = &record.header;
            o.display("uid", format_args!("#{}:{}", header.set, header.rule));
            o.bool("is_applied", action != 3);
        });
    }
}

pub(super) fn agent(o: &mut Object<'_>, story: &Story<'_>) {
    let Some(agent) = &story.agent else {
        o.display("uid", format_args!("#{}", story.record.header.agent));
        return;
    };
    o.str("uid", agent.uid);
    o.str("instance_uid", agent.instance_uid);
    o.str("name", agent.name);
    if let Some(charter) = agent.charter {
        o.str("charter", charter);
    }
}

/// The part of a process that never changes.
pub(super) fn identity(
    o: &mut Object<'_>,
    process: Option<&Process>,
    header: &Header,
    clock: &Clock,
) {
    let start = process.map_or(header.start, |p| p.start);
    o.uint("pid", u64::from(header.tgid));
    born(o, header.tgid, start, clock);
    o.object("user", |o| o.display("uid", format_args!("{}", header.uid)));
}

fn born(o: &mut Object<'_>, tgid: u32, start: u64, clock: &Clock) {
    if start != 0 {
        o.display("uid", format_args!("{start}-{tgid}"));
        o.int("created_time", clock.wall(start).div_euclid(1_000_000));
    }
}

/// A process with what it runs.
pub(super) fn running(
    o: &mut Object<'_>,
    process: Option<&Process>,
    story: &Story<'_>,
    clock: &Clock,
) {
    identity(o, process, &story.record.header, clock);
    if let Some(process) = process {
        program(o, &process.image, usize::MAX);
    }
}

pub(super) fn program(o: &mut Object<'_>, image: &Image, limit: usize) {
    if !image.command_line.is_empty() {
        if image.command_line.len() > limit {
            o.str("cmd_line", &shortened(&image.command_line, limit));
        } else {
            o.str("cmd_line", &image.command_line);
        }
    }
    if let Some(exe) = &image.exe {
        o.lossy("name", base(exe));
        o.object("file", |o| file(o, exe, None, false, 1));
    }
}

pub(super) const fn is_root(born: Born) -> bool {
    match born {
        Born::Enrol | Born::Adopted => true,
        Born::Fork | Born::Proc | Born::Unknown => false,
    }
}

/// Nests the ancestors; false when the chain does not reach the agent's root.
pub(super) fn parents(
    o: &mut Object<'_>,
    chain: &mut Ancestors<'_>,
    rooted: bool,
    depth: usize,
    clock: &Clock,
) -> bool {
    let Some(process) = chain.next() else {
        return rooted;
    };
    if depth == ANCESTORS_MAX {
        return false;
    }
    let mut whole = false;
    o.object("parent_process", |o| {
        o.uint("pid", u64::from(process.tgid));
        born(o, process.tgid, process.start, clock);
        program(o, &process.image, ANCESTOR_COMMAND_LINE);
        whole = parents(o, chain, is_root(process.born), depth + 1, clock);
    });
    whole
}

pub(super) fn base(path: &[u8]) -> &[u8] {
    match path.rsplit(|&b| b == b'/').next() {
        Some(b"") if !path.is_empty() => b"/",
        Some(b"") | None => b"(unresolved)",
        Some(name) => name,
    }
}

pub(super) fn comm(comm: &[u8; 16]) -> &[u8] {
    comm.split(|&b| b == 0).next().unwrap_or_default()
}

/// A file object; `kind` is its type when it is no folder.
pub(super) fn file(
    o: &mut Object<'_>,
    path: &[u8],
    body: Option<&FileBody>,
    is_dir: bool,
    kind: u64,
) {
    o.lossy("name", base(path));
    o.uint("type_id", if is_dir { 2 } else { kind });
    if !path.is_empty() {
        o.lossy("path", path);
        if std::str::from_utf8(path).is_err() {
            o.plain("uri", |out| uri(out, path));
        }
    }
    if let Some(body) = body.filter(|body| body.inode != 0) {
        let (major, minor) = (body.device >> 20, body.device & 0xf_ffff);
        o.display("uid", format_args!("{major}:{minor}:{}", body.inode));
    }
}

pub(super) fn uri(out: &mut Vec<u8>, path: &[u8]) {
    out.extend_from_slice(b"file://");
    for &byte in path {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            out.push(byte);
        } else {
            // Writing to a `Vec` cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

pub(super) fn address(body: &PeerBody) -> Option<IpAddr> {
    let [a, b, c, d, ..] = body.address;
    match body.family {
        family::V4 => Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
        family::V6 => Some(IpAddr::V6(Ipv6Addr::from(body.address))),
        _ => None,
    }
}

/// What of a privilege was asked for, as the kernel calls it.
pub(super) fn privilege_name(privilege: Option<Privilege>, detail: u32) -> &'static str {
    match privilege {
        Some(Privilege::Bpf) => bpf_command(detail),
        Some(Privilege::Signal) => i32::try_from(detail)
            .ok()
            .and_then(|number| nix::sys::signal::Signal::try_from(number).ok())
            .map_or("signal", nix::sys::signal::Signal::as_str),
        Some(
            Privilege::Mount
            | Privilege::Namespace
            | Privilege::Capability
            | Privilege::Module
            | Privilege::Kexec,
        ) if detail != 0 => capability(detail),
        Some(
            one @ (Privilege::Ptrace
            | Privilege::Mount
            | Privilege::Namespace
            | Privilege::Setuid
            | Privilege::Capability
            | Privilege::Module
            | Privilege::Kexec
            | Privilege::Execmem),
        ) => one.name(),
        None => "privilege",
    }
}

/// The name of one of the capabilities that are judged (include/uapi/linux/capability.h).
fn capability(number: u32) -> &'static str {
    match number {
        12 => "CAP_NET_ADMIN",
        16 => "CAP_SYS_MODULE",
        17 => "CAP_SYS_RAWIO",
        21 => "CAP_SYS_ADMIN",
        22 => "CAP_SYS_BOOT",
        25 => "CAP_SYS_TIME",
        27 => "CAP_MKNOD",
        38 => "CAP_PERFMON",
        _ => "capability",
    }
}

/// The name of an `enum bpf_cmd` value of include/uapi/linux/bpf.h.
fn bpf_command(command: u32) -> &'static str {
    const NAMES: [&str; 37] = [
        "BPF_MAP_CREATE",
        "BPF_MAP_LOOKUP_ELEM",
        "BPF_MAP_UPDATE_ELEM",
        "BPF_MAP_DELETE_ELEM",
        "BPF_MAP_GET_NEXT_KEY",
        "BPF_PROG_LOAD",
        "BPF_OBJ_PIN",
        "BPF_OBJ_GET",
        "BPF_PROG_ATTACH",
        "BPF_PROG_DETACH",
        "BPF_PROG_TEST_RUN",
        "BPF_PROG_GET_NEXT_ID",
        "BPF_MAP_GET_NEXT_ID",
        "BPF_PROG_GET_FD_BY_ID",
        "BPF_MAP_GET_FD_BY_ID",
        "BPF_OBJ_GET_INFO_BY_FD",
        "BPF_PROG_QUERY",
        "BPF_RAW_TRACEPOINT_OPEN",
        "BPF_BTF_LOAD",
        "BPF_BTF_GET_FD_BY_ID",
        "BPF_TASK_FD_QUERY",
        "BPF_MAP_LOOKUP_AND_DELETE_ELEM",
        "BPF_MAP_FREEZE",
        "BPF_BTF_GET_NEXT_ID",
        "BPF_MAP_LOOKUP_BATCH",
        "BPF_MAP_LOOKUP_AND_DELETE_BATCH",
        "BPF_MAP_UPDATE_BATCH",
        "BPF_MAP_DELETE_BATCH",
        "BPF_LINK_CREATE",
        "BPF_LINK_UPDATE",
        "BPF_LINK_GET_FD_BY_ID",
        "BPF_LINK_GET_NEXT_ID",
        "BPF_ENABLE_STATS",
        "BPF_ITER_CREATE",
        "BPF_LINK_DETACH",
        "BPF_PROG_BIND_MAP",
        "BPF_TOKEN_CREATE",
    ];
    NAMES.get(command as usize).copied().unwrap_or("bpf")
}
