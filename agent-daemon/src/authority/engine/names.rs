//! What agents are told of names: written where the kernel half sees it, and forgotten in time.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use agent_ebpf::{NamedKey, Peer, family};

use super::{Engine, EngineError, Inner};
use crate::{
    authority::{
        directory,
        names::{self, Forgotten, Forwarder, KnownNames, NAMES_PER_AGENT, Told, Unreadable, told},
    },
    events::Clock,
    kernel::TableError,
    policy::Lowered,
};

/// How often names that ended are looked for.
const EXPIRE: Duration = Duration::from_secs(1);

/// Why an answer is not passed on.
#[derive(Debug, thiserror::Error)]
pub(in crate::authority) enum Unlearnt {
    /// It could not be understood.
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    /// There is no room for more.
    #[error("an agent may know {NAMES_PER_AGENT} names of addresses at once, and would know more")]
    TooMany,
    /// Nobody knows by which policy its names are judged.
    #[error("the agent, number {0}, is not known here; it keeps a policy from before")]
    NoAgent(u32),
    /// The kernel half could not be told.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// The forwarder, and what is known of its ports.
pub(super) struct Forwarding {
    forwarder: Forwarder,
    /// How many there are.
    opened: usize,
}

impl Unlearnt {
    /// Its name in metrics.
    const fn name(&self) -> &'static str {
        match self {
            Self::Unreadable(Unreadable::Malformed(_)) => "malformed",
            Self::Unreadable(Unreadable::Strange(_)) => "strange",
            Self::Unreadable(Unreadable::Name(..)) => "name",
            Self::TooMany => "too_many",
            Self::NoAgent(_) => "no_agent",
            Self::Table(_) => "table",
        }
    }
}

impl Engine {
    /// Takes what a name server answered an agent. When this returns, the agent may reach what it was told.
    pub(in crate::authority) fn learn(&self, agent: u32, answer: &[u8]) -> Result<(), Unlearnt> {
        let result = told(answer).map_err(Unlearnt::from).and_then(|told| self.write(agent, &told));
        match &result {
            Ok(()) => self.metrics.answer_passed_on(),
            Err(why) => {
                self.metrics.answer_refused(why.name());
                static SAID: AtomicUsize = AtomicUsize::new(0);
                // The first few say what is wrong; the metric counts on.
                if SAID.fetch_add(1, Ordering::Relaxed) < 10 {
                    eprintln!(
                        "ambitd: an answer to a question for a name was not passed on: {why}"
                    );
                }
            }
        }
        result
    }

    fn write(&self, agent: u32, told: &[Told]) -> Result<(), Unlearnt> {
        let mut inner = self.inner();
        let mut names = self.directory.write();
        let directory::Inner { agents, sets, names: known, .. } = &mut *names;
        let set = agents.get(&agent).filter(|entry| !entry.ended).map(|entry| entry.set);
        let of_set = |set: u32| Some((set, sets.get(&set)?.lowered.clone()));
        let Some((set, lowered)) = set.and_then(of_set) else {
            return Err(Unlearnt::NoAgent(agent));
        };
        // Its policy asks for no names any more.
        if lowered.hosts.is_empty() {
            return Ok(());
        }
        let key = |one: &Told| NamedKey::of(agent, &destination(one.address));
        let is_new = |one: &Told, name: &String| {
            known.number(name).is_none_or(|number| !known.knows(&key(one), number))
        };
        let more: usize =
            told.iter().map(|one| one.names.iter().filter(|name| is_new(one, name)).count()).sum();
        if known.count(agent) + more > NAMES_PER_AGENT {
            return Err(Unlearnt::TooMany);
        }
        let now = Clock::boot_now();
        for one in told {
            let key = key(one);
            let expires = now.saturating_add(u64::from(one.seconds) * 1_000_000_000);
            for name in &one.names {
                let number = match known.number(name) {
                    Some(number) => number,
                    None => {
                        let number = known.next().ok_or(Unlearnt::TooMany)?;
                        inner.tables.name(number, name)?;
                        known.note(number, name);
                        number
                    }
                };
                say(&mut inner, known, set, &lowered, number)?;
                known.tell(key, number, expires);
            }
            inner.tables.know_host(&known.value(key))?;
        }
        self.metrics.names(known.len());
        Ok(())
    }

    /// Lets a new set say what it says of all names that an agent knows, before the agent is given it.
    pub(super) fn say_names(
        inner: &mut Inner,
        names: &mut directory::Inner,
        agent: u32,
        set: u32,
        lowered: &Lowered,
    ) {
        if lowered.hosts.is_empty() {
            return;
        }
        for number in names.names.of_agent(agent) {
            if let Err(error) = say(inner, &mut names.names, set, lowered, number) {
                // What nothing is said of is denied, and a policy is not kept from being swapped by names.
                eprintln!("ambitd: agent {agent} has to ask for its names again: {error}");
                return;
            }
        }
    }

    /// Says why no names are learnt, and what comes of it.
    pub(super) fn say_unlearnt(error: &EngineError) {
        eprintln!("ambitd: questions for names are denied, and tried again: {error}");
    }

    /// Starts the forwarder, unless it runs.
    pub(super) fn forward_names(&self, inner: &mut Inner) -> Result<(), EngineError> {
        if inner.forwarder.is_some() {
            return Ok(());
        }
        let netns = names::netns_cookie()?;
        let forwarder = Forwarder::start(self.me.clone())?;
        inner.tables.forward(netns)?;
        inner.forwarder = Some(Forwarding { forwarder, opened: 0 });
        self.open_ports(inner)
    }

    /// Sees to it that there are free ports.
    fn open_ports(&self, inner: &mut Inner) -> Result<(), EngineError> {
        let used = inner.tables.name_servers().len();
        if let Some(forwarding) = &mut inner.forwarder {
            for port in forwarding.forwarder.open(forwarding.opened.saturating_sub(used))? {
                forwarding.opened += 1;
                inner.tables.free_port(port)?;
            }
        }
        Ok(())
    }

    /// The agent and name server that a port of the forwarder is for.
    pub(in crate::authority) fn name_server(&self, port: u16) -> Option<(u32, IpAddr)> {
        let server = self.inner().tables.name_server(port)?;
        let [a, b, c, d, ..] = server.address;
        let address = if server.family == u32::from(family::V4) {
            IpAddr::from([a, b, c, d])
        } else {
            IpAddr::from(server.address)
        };
        Some((server.agent, address))
    }

    /// Opens ports for those that are in use by now, and forgets names whose answers have ended.
    pub(super) fn tend_names(&self) {
        let mut inner = self.inner();
        let opened = if inner.closing { Ok(()) } else { self.open_ports(&mut inner) };
        if inner.expired.elapsed() < EXPIRE {
            return;
        }
        inner.expired = std::time::Instant::now();
        let is_asked = |set: &directory::SetEntry| !set.retired && !set.lowered.hosts.is_empty();
        let opened = match opened {
            Ok(()) if !inner.closing && self.directory.read().sets.values().any(is_asked) => {
                self.forward_names(&mut inner)
            }
            other => other,
        };
        if let Err(error) = opened {
            Self::say_unlearnt(&error);
        }
        let mut names = self.directory.write();
        let forgotten = names.names.expire(Clock::boot_now());
        self.metrics.names(names.names.len());
        drop(names);
        forget(&mut inner, forgotten);
    }

    /// Forgets what an agent that ended knew.
    pub(super) fn forget_names(inner: &mut Inner, names: &mut directory::Inner, agent: u32) {
        forget(inner, names.names.forget_agent(agent));
        if let Err(error) = inner.tables.forget_name_servers(agent) {
            eprintln!("ambitd: {error}");
        }
    }

    /// Takes up the names that the kernel half knows; the ports of the daemon before are nobody's.
    pub(super) fn restore_names(&self) -> Result<(), TableError> {
        let mut inner = self.inner();
        let tables = &inner.tables;
        let cells = tables.said().into_iter().map(|key| (key.set, key.name));
        let known = KnownNames::restored(tables.host_names(), tables.known_hosts(), cells);
        self.directory.write().names = known;
        inner.tables.forget_ports()
    }

    /// Ends the forwarder. What is known lives on in the kernel half; nothing new is learnt.
    pub(super) fn stop_forwarding(&self) {
        let mut inner = self.inner();
        if inner.forwarder.take().is_some()
            && let Err(error) = inner.tables.forget_ports()
        {
            eprintln!("ambitd: {error}");
        }
    }
}

/// Writes what a set says of a name, unless that is there.
fn say(
    inner: &mut Inner,
    known: &mut KnownNames,
    set: u32,
    lowered: &Lowered,
    number: u32,
) -> Result<(), TableError> {
    let Some(cell) = known.text(number).map(|name| lowered.hosts.cell(name)) else {
        return Ok(());
    };
    if !known.has_cell(number, set) {
        inner.tables.say(set, number, &cell)?;
        known.note_cell(number, set);
    }
    Ok(())
}

fn forget(inner: &mut Inner, forgotten: Forgotten) {
    let addresses = forgotten.addresses.iter().map(|key| inner.tables.unknow_host(key));
    let mut failed: Vec<TableError> = addresses.filter_map(Result::err).collect();
    for (number, sets) in &forgotten.names {
        for set in sets {
            failed.extend(inner.tables.unsay(*set, *number).err());
        }
        failed.extend(inner.tables.unname(*number).err());
    }
    // They ended all the same: what is left there only takes room.
    if let Some(error) = failed.first() {
        eprintln!("ambitd: forgetting names: {error}");
    }
}

/// An address as it is judged when somebody connects to it.
fn destination(address: IpAddr) -> Peer {
    match address {
        IpAddr::V4(v4) => Peer::v4(0, v4.octets(), [0; 2], true),
        IpAddr::V6(v6) => {
            let bits = u128::from(v6);
            let words =
                [bits >> 96, bits >> 64, bits >> 32, bits].map(|word| (word as u32).to_be());
            Peer::v6(0, words, [0; 2], true)
        }
    }
}
