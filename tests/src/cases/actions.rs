//! Every kind of action: permitted, forbidden, in audit mode, and by a bystander. Each is checked by
//! the errno that the program saw, by the event, and by the metric.

use anyhow::{Result, ensure};

use super::{Case, case, shared};
use crate::actor::EPERM;
use crate::events::{ALLOWED, DENIED, Event, FILE, NETWORK, OBSERVED, PROCESS};
use crate::policy::{on_path, on_peer, with_base};
use crate::world::{World, file, ground, listener, tool};

/// One kind of action, as a test does it.
#[derive(Clone, Copy)]
struct Deed {
    name: &'static str,
    action: &'static str,
    class: u64,
    subset: bool,
    prepare: fn(&str) -> Result<Prepared>,
}

/// A deed in one place: the steps of the actor, what the policy says, and what the event says.
struct Prepared {
    steps: Vec<String>,
    /// The place that the policy names and the event tells.
    place: Place,
}

enum Place {
    Path(&'static str, String),
    Peer(&'static str, String),
}

impl Prepared {
    fn path(kind: &'static str, path: &str, steps: &[&str]) -> Self {
        Self {
            steps: steps.iter().map(ToString::to_string).collect(),
            place: Place::Path(kind, path.to_owned()),
        }
    }

    fn peer(protocol: &'static str, judged: &str, steps: &[&str]) -> Self {
        Self {
            steps: steps.iter().map(ToString::to_string).collect(),
            place: Place::Peer(protocol, judged.to_owned()),
        }
    }

    fn words(&self) -> Vec<&str> {
        self.steps.iter().map(String::as_str).collect()
    }

    fn policy(&self, id: &str, how: &str, action: &str) -> String {
        match &self.place {
            Place::Path(kind, path) => on_path(id, how, action, kind, path),
            Place::Peer(protocol, peer) => on_peer(id, how, action, protocol, peer),
        }
    }

    fn is_told_by(&self, event: &Event) -> bool {
        match &self.place {
            Place::Path(_, path) => event.path() == path || event.script() == path,
            Place::Peer(protocol, peer) => event.peer() == *peer && event.protocol() == *protocol,
        }
    }
}

const DEEDS: &[Deed] = &[
    deed("exec", "exec", PROCESS, true, |name| {
        let path = tool(&ground(name)?.join("tool"))?;
        Ok(Prepared::path("Program", &path, &["exec", &path, "nothing"]))
    }),
    deed("read", "read", FILE, true, |name| {
        let path = file(&ground(name)?.join("file"), "text")?;
        Ok(Prepared::path("File", &path, &["open-read", &path]))
    }),
    deed("listing", "read", FILE, false, |name| {
        let folder = ground(name)?.join("folder");
        file(&folder.join("file"), "text")?;
        let path = folder.display().to_string();
        Ok(Prepared::path("Dir", &path, &["list", &path]))
    }),
    deed("write", "write", FILE, true, |name| {
        let path = file(&ground(name)?.join("file"), "text")?;
        Ok(Prepared::path("File", &path, &["open-write", &path]))
    }),
    deed("truncation", "write", FILE, false, |name| {
        let path = file(&ground(name)?.join("file"), "text")?;
        Ok(Prepared::path("File", &path, &["truncate", &path]))
    }),
    deed("creation", "write", FILE, false, |name| {
        let path = ground(name)?.join("new").display().to_string();
        Ok(Prepared::path("File", &path, &["create", &path]))
    }),
    deed("tcp4_connect", "connect", NETWORK, true, |_| {
        let peer = listener("127.0.0.1:0")?;
        Ok(Prepared::peer("tcp", &peer, &["connect", "tcp", &peer]))
    }),
    deed("tcp6_connect", "connect", NETWORK, true, |_| {
        let peer = listener("[::1]:0")?;
        Ok(Prepared::peer("tcp", &peer, &["connect", "tcp", &peer]))
    }),
    deed("mapped_tcp_connect", "connect", NETWORK, true, |_| {
        let peer = listener("127.0.0.1:0")?;
        let mapped = peer.replace("127.0.0.1", "[::ffff:127.0.0.1]");
        Ok(Prepared::peer("tcp", &peer, &["connect", "tcp", &mapped]))
    }),
    deed("tcp4_fastopen", "connect", NETWORK, false, |_| {
        let peer = listener("127.0.0.1:0")?;
        Ok(Prepared::peer("tcp", &peer, &["fastopen", &peer]))
    }),
    deed("tcp6_fastopen", "connect", NETWORK, true, |_| {
        let peer = listener("[::1]:0")?;
        Ok(Prepared::peer("tcp", &peer, &["fastopen", &peer]))
    }),
    deed("udp4_connect", "connect", NETWORK, false, |_| {
        let peer = "127.0.0.1:5301";
        Ok(Prepared::peer("udp", peer, &["connect", "udp", peer]))
    }),
    deed("udp4_send", "connect", NETWORK, true, |_| {
        let peer = "127.0.0.1:5302";
        Ok(Prepared::peer("udp", peer, &["send", "udp", peer]))
    }),
    deed("udp6_send", "connect", NETWORK, false, |_| {
        let peer = "[::1]:5303";
        Ok(Prepared::peer("udp", peer, &["send", "udp", peer]))
    }),
    deed("mapped_udp_send", "connect", NETWORK, false, |_| {
        let (peer, mapped) = ("127.0.0.1:5304", "[::ffff:127.0.0.1]:5304");
        Ok(Prepared::peer("udp", peer, &["send", "udp", mapped]))
    }),
    deed("tcp4_bind", "bind", NETWORK, true, |_| {
        let own = "127.0.0.1:5311";
        Ok(Prepared::peer("tcp", own, &["bind", "tcp", own]))
    }),
    deed("tcp6_bind", "bind", NETWORK, false, |_| {
        let own = "[::1]:5312";
        Ok(Prepared::peer("tcp", own, &["bind", "tcp", own]))
    }),
    deed("udp4_bind", "bind", NETWORK, false, |_| {
        let own = "127.0.0.1:5313";
        Ok(Prepared::peer("udp", own, &["bind", "udp", own]))
    }),
];

const fn deed(
    name: &'static str,
    action: &'static str,
    class: u64,
    subset: bool,
    prepare: fn(&str) -> Result<Prepared>,
) -> Deed {
    Deed { name, action, class, subset, prepare }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for deed in DEEDS {
        for (promise, test) in [
            ("allows_permitted", allows as fn(&Deed, &World) -> Result<()>),
            ("denies_forbidden", denies),
            ("audit_mode_lets_go_and_tells_forbidden", observes),
            ("leaves_bystanders_alone_in", leaves_bystanders),
        ] {
            let name = format!("{promise}_{}", deed.name);
            let mut case = case(&name, move || shared(|world| test(deed, world)));
            // Every way to deny, and of the rest what differs between backends.
            case.subset = deed.subset && promise == "denies_forbidden"
                || ["exec", "read", "tcp4_connect"].contains(&deed.name)
                    && promise == "allows_permitted"
                || deed.name == "read";
            cases.push(case);
        }
    }
    cases.push(case("denies_what_no_policy_permits", || shared(default_deny)).in_subset());
    cases.push(case("forbid_wins_whatever_the_order", || shared(forbid_wins)));
    cases
}

fn allows(deed: &Deed, world: &World) -> Result<()> {
    let name = format!("allows-{}", deed.name.replace('_', "-"));
    let prepared = (deed.prepare)(&name)?;
    let policy = with_base(&prepared.policy("granted", "permit", deed.action));
    let events = world.events();
    let before = count(world, &name, deed.action, "allowed")?;
    let output = world.agent(&name).policy(&policy)?.act(&prepared.words())?;
    output.expect(prepared.words()[0], 0)?;
    let event = events.wait("that it was allowed", |event| {
        event.agent() == name && event.class() == deed.class && prepared.is_told_by(event)
    })?;
    ensure!(
        event.verdict() == ALLOWED && event.policy() == "granted" && event.action() == deed.action,
        "the event says otherwise: {}",
        event.brief()
    );
    world.wait("the metric counts it", || Ok(count(world, &name, deed.action, "allowed")? > before))
}

fn denies(deed: &Deed, world: &World) -> Result<()> {
    let name = format!("denies-{}", deed.name.replace('_', "-"));
    let prepared = (deed.prepare)(&name)?;
    // The permit is there too: it is the forbid that has to stop it, by its own name.
    let policy = with_base(
        &(prepared.policy("granted", "permit", deed.action)
            + &prepared.policy("refused", "forbid", deed.action)),
    );
    let events = world.events();
    let before = count(world, &name, deed.action, "denied")?;
    let output = world.agent(&name).policy(&policy)?.act(&prepared.words())?;
    output.expect(prepared.words()[0], EPERM)?;
    let event = events.wait("that it was denied", |event| {
        event.agent() == name && event.verdict() == DENIED && prepared.is_told_by(event)
    })?;
    ensure!(
        event.class() == deed.class && event.policy() == "refused" && event.action() == deed.action,
        "the event says otherwise: {}",
        event.brief()
    );
    world.wait("the metric counts it", || {
        Ok(count(world, &name, deed.action, "denied")? > before)
    })?;
    let allowed = events.so_far()?.into_iter().find(|event| {
        event.agent() == name && event.verdict() == ALLOWED && prepared.is_told_by(event)
    });
    ensure!(
        allowed.is_none(),
        "it is told as allowed too: {}",
        allowed.map(|event| event.brief()).unwrap_or_default()
    );
    Ok(())
}

fn observes(deed: &Deed, world: &World) -> Result<()> {
    let name = format!("audits-{}", deed.name.replace('_', "-"));
    let prepared = (deed.prepare)(&name)?;
    let policy = with_base(&prepared.policy("refused", "forbid", deed.action));
    let events = world.events();
    let before = count(world, &name, deed.action, "audit")?;
    let output = world.agent(&name).policy(&policy)?.option("--audit").act(&prepared.words())?;
    output.expect(prepared.words()[0], 0)?;
    let event = events.wait("that it would have been denied", |event| {
        event.agent() == name && event.verdict() == OBSERVED && prepared.is_told_by(event)
    })?;
    ensure!(
        event.class() == deed.class && event.policy() == "refused" && event.action() == deed.action,
        "the event says otherwise: {}",
        event.brief()
    );
    world.wait("the metric counts it", || Ok(count(world, &name, deed.action, "audit")? > before))
}

fn leaves_bystanders(deed: &Deed, world: &World) -> Result<()> {
    let name = format!("beside-{}", deed.name.replace('_', "-"));
    let prepared = (deed.prepare)(&name)?;
    let policy = with_base(&prepared.policy("refused", "forbid", deed.action));
    let events = world.events();
    // While an agent lives that must not do it.
    let flag = ground(&format!("{name}-flag"))?.join("go");
    let gate = flag.display().to_string();
    let agent = world
        .agent(&name)
        .policy(&policy)?
        .start(&[&["await", &gate, "then"], prepared.words().as_slice()].concat())?;
    events.wait("that the agent started", |event| event.agent() == name)?;
    let output = world.bystander(&prepared.words())?;
    output.expect(prepared.words()[0], 0)?;
    file(&flag, "")?;
    agent.finish()?.expect(prepared.words()[0], EPERM)?;
    // The agent's own event comes after all that a bystander could have caused.
    events.wait("that the agent was denied", |event| {
        event.agent() == name && event.verdict() == DENIED && prepared.is_told_by(event)
    })?;
    let stray = events.so_far()?.into_iter().find(|event| {
        event.agent() != name && prepared.is_told_by(event)
            || event.verdict() != DENIED && prepared.is_told_by(event)
    });
    ensure!(
        stray.is_none(),
        "the bystander left an event: {}",
        stray.map(|event| event.0.to_string()).unwrap_or_default()
    );
    Ok(())
}

fn default_deny(world: &World) -> Result<()> {
    let name = "default-deny";
    let path = file(&ground(name)?.join("file"), "text")?;
    let peer = listener("127.0.0.1:0")?;
    let events = world.events();
    let output = world.agent(name).policy(&with_base(""))?.act(&[
        "open-read",
        &path,
        "then",
        "open-write",
        &path,
        "then",
        "exec",
        &path,
        "then",
        "connect",
        "tcp",
        &peer,
        "then",
        "send",
        "udp",
        "127.0.0.1:5305",
        "then",
        "bind",
        "tcp",
        "127.0.0.1:5306",
    ])?;
    for step in ["open-read", "open-write", "connect", "send", "bind"] {
        output.expect(step, EPERM)?;
    }
    ensure!(output.errno("exec")? != 0, "a program without a permit ran");
    for class in [FILE, NETWORK] {
        events.wait("that the default denied it", |event| {
            event.agent() == name
                && event.class() == class
                && event.verdict() == DENIED
                && event.policy().is_empty()
        })?;
    }
    Ok(())
}

fn forbid_wins(world: &World) -> Result<()> {
    let base = ground("order")?;
    let path = file(&base.join("deep/er/file"), "text")?;
    let all = on_path("wide", "permit", "read", "Dir", &base.display().to_string());
    let one = on_path("narrow", "permit", "read", "File", &path);
    let no = on_path("no", "forbid", "read", "Dir", &base.join("deep").display().to_string());
    for (at, text) in [
        [&all, &one, &no].map(String::as_str).concat(),
        [&no, &one, &all].map(String::as_str).concat(),
        [&one, &no, &all].map(String::as_str).concat(),
    ]
    .iter()
    .enumerate()
    {
        let name = format!("order-{at}");
        let events = world.events();
        let output = world.agent(&name).policy(&with_base(text))?.act(&["open-read", &path])?;
        output.expect("open-read", EPERM)?;
        let event = events.wait("the denial", |event| {
            event.agent() == name && event.path() == path && event.verdict() == DENIED
        })?;
        ensure!(event.policy() == "no", "not the forbid decided: {}", event.brief());
    }
    Ok(())
}

fn count(world: &World, agent: &str, action: &str, verdict: &str) -> Result<f64> {
    let labels = [("agent", agent), ("action", action), ("verdict", verdict)];
    Ok(world.metrics()?.value("ambit_actions_total", &labels).unwrap_or(0.0))
}
