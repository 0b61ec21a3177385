//! The room's front door: records of one drain go in, lines come out.
//!
//! # How to drain
//! Read the kernel's counters, then the denied lane, then the told lane, pushing each record into
//! one [`Batch`]; records of the daemon's own making (the fanotify backend) are pushed before they
//! are answered, so that they are there before the exec that follows. [`Pipeline::take`] puts the
//! batch in the order of the kernel's clock, so that a denial comes after the exec that it belongs
//! to, and [`Pipeline::settle`] then states what the counters say was lost. Settling after a drain
//! that did not empty the rings states the same counts, with looser bounds.

use agent_ebpf::{Action, Header, Kind, Lane, Mode, NamedKey, RULE_NONE, RuleId, Stream, Verdict};
use zerocopy::FromBytes as _;

use super::clock::Clock;
use super::gap::Gaps;
use super::heartbeat::Heartbeat;
use super::hooks::{Operation, Sees, sees};
use super::host::Host;
use super::launches::Launches;
use super::ocsf::{Ocsf, Outcome, Program, Story};
use super::processes::{ExeFrom, Handle, Launch, Processes};
use super::record::{Body, Record, decode, lane_of};
use crate::policy::Notes;

/// An agent as events name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentInfo<'a> {
    /// Its name in policies and metrics.
    pub name: &'a str,
    /// Its stable identity; a SPIFFE ID where there is one.
    pub uid: &'a str,
    /// This run of it.
    pub instance_uid: &'a str,
    /// What it is for, where somebody said so.
    pub charter: Option<&'a str>,
    /// Whether it is enforced or only watched.
    pub mode: Mode,
}

/// Names for the numbers in records. It is lent for one batch, so its owner may lock once for all.
pub trait Names {
    /// The agent with this number.
    fn agent(&self, id: u32) -> Option<AgentInfo<'_>>;
    /// The `@id` of a rule of a policy set.
    fn rule(&self, set: u32, rule: RuleId) -> Option<&str>;
    /// What that rule's annotations tell; nothing for rules that are built in.
    fn notes(&self, set: u32, rule: RuleId) -> Option<Notes<'_>>;
    /// The names that an agent knows an address by, the one that lives longest first.
    fn hosts(&self, key: &NamedKey) -> Vec<&str>;
    /// The generation of the policy that a set was made from.
    fn generation(&self, set: u32) -> Option<u64>;
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    time: u64,
    order: u32,
    offset: usize,
    len: usize,
}

/// The records of one drain. Its buffers are reused from drain to drain.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    spare: Vec<u8>,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one record as it came from its ring.
    pub fn push(&mut self, record: &[u8]) {
        let time = Header::read_from_prefix(record).map_or(0, |(header, _)| header.time);
        self.entries.push(Entry {
            time,
            // Only orders records of the same nanosecond.
            order: self.entries.len() as u32,
            offset: self.bytes.len(),
            len: record.len(),
        });
        self.bytes.extend_from_slice(record);
    }

    /// How many records it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of records that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Every record in it.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        self.entries.iter().map(|entry| &self.bytes[entry.offset..entry.offset + entry.len])
    }

    /// Puts the records in order and says how many are not later than `until`.
    fn sort(&mut self, until: u64) -> usize {
        let key = |entry: &Entry| (entry.time, entry.order);
        if !self.entries.is_sorted_by_key(key) {
            self.entries.sort_unstable_by_key(key);
        }
        self.entries.partition_point(|entry| entry.time <= until)
    }

    /// Drops the first `taken` records and keeps the rest.
    fn drop_first(&mut self, taken: usize) {
        if taken == self.entries.len() {
            self.entries.clear();
            self.bytes.clear();
            return;
        }
        self.entries.drain(..taken);
        self.spare.clear();
        for (order, entry) in self.entries.iter_mut().enumerate() {
            let from = self.spare.len();
            self.spare.extend_from_slice(&self.bytes[entry.offset..entry.offset + entry.len]);
            entry.offset = from;
            entry.order = order as u32;
        }
        std::mem::swap(&mut self.bytes, &mut self.spare);
    }
}

/// How often something was decided, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// The agent's number.
    pub agent: u32,
    /// What was tried.
    pub action: Action,
    /// What came of it.
    pub verdict: Verdict,
    /// How often, in this batch.
    pub count: u64,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Taken<'p> {
    /// Lines written.
    pub events: u64,
    /// Records that could not be read; an event says so too.
    pub undecodable: u64,
    /// Decisions by agent, action and verdict. An exec that is let go counts once, when its program
    /// runs.
    pub counts: &'p [Count],
}

/// Everything between the rings and the sinks.
pub struct Pipeline {
    processes: Processes,
    gaps: Gaps,
    launches: Launches,
    ocsf: Ocsf,
    counts: Vec<Count>,
}

impl Pipeline {
    /// A pipeline for this machine; `processes` may already know some.
    #[must_use]
    pub fn new(host: &Host, processes: Processes) -> Self {
        Self::with_clock(host, processes, Clock::measure())
    }

    /// A pipeline with a clock of one's own, for tests and replays.
    #[must_use]
    pub fn with_clock(host: &Host, processes: Processes, clock: Clock) -> Self {
        Self {
            processes,
            gaps: Gaps::new(),
            launches: Launches::default(),
            ocsf: Ocsf::new(host, clock),
            counts: Vec::new(),
        }
    }

    /// Measures the clock again; wall-clock time may have been set.
    pub fn refresh_clock(&mut self) {
        self.ocsf.set_clock(Clock::measure());
    }

    /// The process table.
    #[must_use]
    pub const fn processes(&self) -> &Processes {
        &self.processes
    }

    /// The process table, to adopt what runs already.
    pub const fn processes_mut(&mut self) -> &mut Processes {
        &mut self.processes
    }

    /// The account of losses.
    #[must_use]
    pub const fn gaps(&self) -> &Gaps {
        &self.gaps
    }

    /// The account of losses, to assume what was stated already.
    pub const fn gaps_mut(&mut self) -> &mut Gaps {
        &mut self.gaps
    }

    /// Tells every record of the batch, appending lines to `out`, and empties the batch.
    pub fn take(
        &mut self,
        batch: &mut Batch,
        names: &(impl Names + ?Sized),
        out: &mut Vec<u8>,
    ) -> Taken<'_> {
        self.take_until(batch, u64::MAX, names, out)
    }

    /// Tells the records that are not later than `until` (nanoseconds since boot) and keeps the
    /// rest in the batch: with the time at which the drain began, nothing is told before something
    /// earlier from the other lane.
    pub fn take_until(
        &mut self,
        batch: &mut Batch,
        until: u64,
        names: &(impl Names + ?Sized),
        out: &mut Vec<u8>,
    ) -> Taken<'_> {
        self.counts.clear();
        let (mut events, mut undecodable) = (0, 0);
        let mut why = String::new();
        let taken = batch.sort(until);
        for entry in &batch.entries[..taken] {
            let bytes = &batch.bytes[entry.offset..entry.offset + entry.len];
            if let Ok((header, _)) = Header::read_from_prefix(bytes) {
                self.gaps.saw(header.cpu, lane_of(&header), header.sequence, header.time);
            }
            match decode(bytes) {
                Ok(record) => events += u64::from(self.tell(&record, names, out)),
                Err(error) => {
                    undecodable += 1;
                    if undecodable == 1 {
                        why = error.to_string();
                    }
                }
            }
        }
        batch.drop_first(taken);
        if undecodable > 0 {
            self.ocsf.undecodable(out, undecodable, &why);
            events += 1;
        }
        Taken { events, undecodable, counts: &self.counts }
    }

    /// States what the kernel's counters say was lost; they are as read before the last drain.
    /// Returns the events written and the records lost.
    pub fn settle(
        &mut self,
        counters: impl IntoIterator<Item = (u32, Lane, Stream)>,
        out: &mut Vec<u8>,
    ) -> Settled {
        let mut settled = Settled::default();
        for (cpu, lane, stream) in counters {
            if let Some(gap) = self.gaps.check(cpu, lane, &stream) {
                settled.events += 1;
                for (kind, lost) in gap.by_kind() {
                    settled.lost[kind as usize] += lost;
                }
                self.ocsf.gap(out, &gap);
            }
        }
        settled
    }

    /// Tells that the daemon is alive, and how far the stream has come. To be called after
    /// [`Pipeline::settle`], so that what is missing has been stated.
    pub fn beat(&mut self, beat: &Heartbeat, out: &mut Vec<u8>) {
        self.ocsf.heartbeat(out, beat, self.gaps.positions());
    }

    fn count(&mut self, header: &Header, action: Action, verdict: Verdict) {
        let agent = header.agent;
        let same = |c: &&mut Count| (c.agent, c.action, c.verdict) == (agent, action, verdict);
        if let Some(count) = self.counts.iter_mut().find(same) {
            count.count += 1;
        } else {
            self.counts.push(Count { agent, action, verdict, count: 1 });
        }
    }

    /// Tells one record; true when it is an event.
    fn tell(
        &mut self,
        record: &Record<'_>,
        names: &(impl Names + ?Sized),
        out: &mut Vec<u8>,
    ) -> bool {
        let header = &record.header;
        match &record.body {
            Body::File { body, path, result } => {
                let actor = self.processes.actor(header);
                if matches!(record.action, Action::Connect | Action::Bind) {
                    self.count(header, record.action, record.verdict);
                    let story = story(&self.processes, record, actor, names);
                    self.ocsf.unix_socket(out, &story, body, path);
                    return true;
                }
                // A library that becomes code is no launch.
                let is_mapped = sees(record.hook) == Sees::File(Operation::Map);
                if is_mapped && record.verdict == Verdict::Allowed && body.is_unread != 0 {
                    return false;
                }
                if record.action != Action::Exec || is_mapped {
                    self.count(header, record.action, record.verdict);
                    let story = story(&self.processes, record, actor, names);
                    self.ocsf.file(out, &story, body, path, result);
                    return true;
                }
                match record.verdict {
                    Verdict::Allowed => {
                        self.launches.saw(record, path);
                        return false;
                    }
                    Verdict::WouldDeny => {
                        self.launches.saw(record, path);
                    }
                    Verdict::Denied => self.launches.refused(header),
                }
                self.count(header, record.action, record.verdict);
                let program = Program {
                    path: (!path.is_empty()).then_some(path),
                    from: ExeFrom::Hook,
                    script: None,
                    command_line: None,
                    object: Some(body),
                };
                let story = story(&self.processes, record, actor, names);
                self.ocsf.launch(out, &story, Outcome::Judged, None, &program);
            }
            Body::Peer(body) => {
                let actor = self.processes.actor(header);
                self.count(header, record.action, record.verdict);
                let story = story(&self.processes, record, actor, names);
                // What is bound has no name.
                let hosts = if record.action == Action::Connect {
                    let family = u32::from(body.family);
                    names.hosts(&NamedKey { address: body.address, agent: header.agent, family })
                } else {
                    Vec::new()
                };
                self.ocsf.peer(out, &story, body, &hosts);
            }
            Body::Privilege(body) => {
                let actor = self.processes.actor(header);
                self.count(header, record.action, record.verdict);
                let story = story(&self.processes, record, actor, names);
                self.ocsf.privilege(out, &story, body);
            }
            Body::Socket(body) => {
                let actor = self.processes.actor(header);
                self.count(header, record.action, record.verdict);
                let story = story(&self.processes, record, actor, names);
                self.ocsf.socket(out, &story, body);
            }
            Body::Fork(body) => {
                self.processes.on_fork(header, body);
                return false;
            }
            Body::Exec { .. } => self.tell_exec(record, names, out),
            Body::Exit(body) => {
                self.launches.forget(header.tgid);
                let actor = self.processes.on_exit(header);
                let story = story(&self.processes, record, actor, names);
                self.ocsf.exit(out, &story, body.code);
            }
            Body::Enrol => {
                let actor = self.processes.on_enrol(header);
                let story = story(&self.processes, record, actor, names);
                self.ocsf.enrol(out, &story);
            }
        }
        true
    }

    fn tell_exec(&mut self, record: &Record<'_>, names: &(impl Names + ?Sized), out: &mut Vec<u8>) {
        let Body::Exec { body, filename, argv } = &record.body else {
            return;
        };
        let header = &record.header;
        let chosen = self.launches.take(header, filename, body.is_script != 0);
        let script = chosen.as_ref().and_then(|c| c.script.as_ref());
        let launch = Launch {
            body,
            filename,
            argv,
            exe: chosen.as_ref().map(|c| &*c.exe.path).filter(|path| !path.is_empty()),
            script: script.map(|script| &*script.path),
        };
        let (actor, before) = self.processes.on_exec(header, &launch);
        let audit = chosen.as_ref().is_some_and(|c| c.would_deny);
        if !audit {
            self.count(header, Action::Exec, Verdict::Allowed);
        }
        // The rule that let the program go is in the record of the hook that judged it.
        let mut judged = record.clone();
        judged.action = Action::Exec;
        if let Some(chosen) = &chosen
            && header.rule == RULE_NONE
        {
            judged.header.rule = chosen.exe.rule;
            judged.header.set = chosen.exe.set;
            judged.reason = chosen.exe.reason;
        }
        let story = story(&self.processes, &judged, actor, names);
        let Some(now) = self.processes.get(actor).map(|p| p.image.clone()) else {
            return;
        };
        let program = Program {
            path: now.exe.as_deref(),
            from: now.exe_from,
            script: script.map(|s| (&*s.path, names.rule(s.set, s.rule))),
            command_line: Some(&now.command_line),
            object: None,
        };
        let outcome = if audit { Outcome::Logged } else { Outcome::Judged };
        self.ocsf.launch(out, &story, outcome, Some(&before), &program);
    }
}

/// What [`Pipeline::settle`] stated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Lines written.
    pub events: u64,
    /// Records lost, by [`Kind`].
    pub lost: [u64; agent_ebpf::KINDS],
}

impl Settled {
    /// Records lost of this kind.
    #[must_use]
    pub const fn lost(&self, kind: Kind) -> u64 {
        self.lost[kind as usize]
    }
}

fn story<'a>(
    processes: &'a Processes,
    record: &'a Record<'a>,
    actor: Handle,
    names: &'a (impl Names + ?Sized),
) -> Story<'a> {
    let header = &record.header;
    let rule = match header.rule {
        RULE_NONE => None,
        rule => names.rule(header.set, rule),
    };
    Story {
        record,
        processes,
        actor,
        agent: names.agent(header.agent),
        rule,
        notes: names.notes(header.set, header.rule),
        generation: names.generation(header.set),
    }
}

#[cfg(test)]
#[path = "pipeline_tests.rs"]
mod tests;
