//! Host names: an address may be reached under a name when a permitted name server answered so, for as long as
//! the answer lives, and not a moment later than the answer arrives.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Case, case, fresh, shared};
use crate::actor::{EPERM, Output};
use crate::events::{ALLOWED, DENIED, NETWORK};
use crate::name_server::{FORGED, Zone};
use crate::policy::{on_path, on_peer, with_base};
use crate::stage::{USER, make_folder};
use crate::world::{Settings, World, agent_table, listener};

/// Where the name servers are.
const SERVER: &str = "127.77.0.53";
const SERVER_V6: &str = "::1";
const UNTRUSTED: &str = "127.77.0.54";
/// What names lead to.
const GOOD: &str = "127.77.1.1";
const BAD: &str = "127.77.1.2";
const BOTH: &str = "127.77.1.3";
/// How long an answer lives that is asked for its end.
const SHORT: u32 = 3;

/// `ECONNREFUSED`, and `EREMOTEIO`, as which the actor tells of a server failure.
const REFUSED: i64 = 111;
const FAILED: i64 = 121;

pub(super) fn cases() -> Vec<Case> {
    vec![
        case("a_name_is_reachable_in_the_instruction_after_its_answer", || shared(at_once))
            .in_subset(),
        case("a_name_is_learnt_however_it_is_asked_for", || shared(every_way)).in_subset(),
        case("an_address_has_every_alias_and_any_forbid_denies", || shared(aliases)),
        case("a_name_ends_with_its_answer", || shared(ends)).in_subset(),
        case("a_server_that_is_not_permitted_or_not_at_its_port_teaches_nothing", || {
            shared(elsewhere)
        }),
        case("an_answer_that_is_not_understood_is_a_server_failure", || shared(malformed)),
        case("a_forged_answer_is_not_taken", || shared(forged)),
        case("names_are_learnt_for_the_agent_that_asked", || shared(others)),
        case("an_agent_may_ask_eight_name_servers_at_once", || shared(many_servers)),
        case("an_audited_agent_is_told_which_names_it_would_need", || shared(audited)),
        case("names_outlive_the_daemon_and_follow_a_reload", outlive)
            .alone()
            .within(Duration::from_secs(120)),
    ]
}

/// The name server, and where what it names listens: on one port everywhere.
struct Place {
    server: String,
    server_v6: Option<String>,
    untrusted: String,
    port: String,
}

fn zone() -> Result<Zone> {
    let zone = Zone::default()
        .address("good.test", 300, GOOD)?
        .address("good.test", 300, "::ffff:127.77.1.1")?
        .address("bad.test", 300, BAD)?
        .address("short.test", SHORT, GOOD)?
        .address("none.test", 0, GOOD)?
        .address("large.test", 300, GOOD)?
        .address("cut.test", 300, GOOD)?
        .address("forged.test", 300, GOOD)?
        .address("edge.cdn.test", 300, BOTH)?
        .alias("www.shop.test", 300, "shop.cdn.test")
        .alias("shop.cdn.test", 300, "edge.cdn.test")
        .alias("www.ads.test", 300, "edge.cdn.test");
    Ok(zone)
}

fn place() -> Result<&'static Place> {
    static PLACE: OnceLock<Place> = OnceLock::new();
    if let Some(place) = PLACE.get() {
        return Ok(place);
    }
    let good = listener(&format!("{GOOD}:0"))?;
    let (_, port) = good.rsplit_once(':').context("a listener has a port")?;
    for other in [BAD, BOTH, FORGED] {
        listener(&format!("{other}:{port}"))?;
    }
    let place = Place {
        server: zone()?.serve(SERVER)?,
        // Somebody else may answer there.
        server_v6: zone()?.serve(SERVER_V6).ok(),
        untrusted: zone()?.serve(UNTRUSTED)?,
        port: port.to_owned(),
    };
    Ok(PLACE.get_or_init(|| place))
}

/// What came of each step.
fn errnos(output: &Output) -> Vec<i64> {
    output.steps().iter().filter_map(|step| step["errno"].as_i64()).collect()
}

/// Permits to ask these servers.
fn asking(servers: &[&str]) -> String {
    let each = |server: &&str| {
        on_peer("ask-udp", "permit", "connect", "udp", server)
            .replace("ask-udp", &format!("udp {server}"))
            + &on_peer("ask-tcp", "permit", "connect", "tcp", server)
                .replace("ask-tcp", &format!("tcp {server}"))
    };
    servers.iter().map(each).collect::<String>()
        + "permit (principal, action == Action::\"bind\", resource is Peer) when { resource.port == 0 };\n"
}

/// A policy on a name; one that begins with a star is a pattern.
fn on_host(id: &str, how: &str, host: &str) -> String {
    let relation = if host.starts_with('*') { "like" } else { "==" };
    format!(
        "@id({id:?}) {how} (principal, action == Action::\"connect\", resource is Peer) when {{ \
         resource has host && resource.host {relation} {host:?} }};\n"
    )
}

fn policy(more: &[String]) -> Result<String> {
    let place = place()?;
    let mut servers = vec![place.server.as_str()];
    servers.extend(place.server_v6.as_deref());
    Ok(with_base(&(asking(&servers) + &more.concat())))
}

fn at_once(world: &World) -> Result<()> {
    let Place { server, port, .. } = place()?;
    let (good, bad) = (format!("{GOOD}:{port}"), format!("{BAD}:{port}"));
    let events = world.events();
    let agent = world.agent("namer").policy(&policy(&[on_host("good", "permit", "good.test")])?)?;
    let output = agent.act(&[
        "connect",
        "tcp",
        &good,
        "then",
        "ask-connect",
        "udp",
        server,
        "good.test",
        port,
        "then",
        "connect",
        "tcp",
        &good,
        "then",
        "ask-connect",
        "udp",
        server,
        "bad.test",
        port,
        "then",
        "connect",
        "tcp",
        &bad,
    ])?;
    ensure!(errnos(&output) == [EPERM, 0, 0, EPERM, EPERM], "{}", output.whole());
    let asked = events.wait("the question", |event| {
        event.agent() == "namer" && event.peer() == *server && event.verdict() == ALLOWED
    })?;
    ensure!(asked.policy() == format!("udp {server}"), "{}", asked.brief());
    let reached = events.wait("what was reached under its name", |event| {
        event.agent() == "namer" && event.peer() == good && event.verdict() == ALLOWED
    })?;
    ensure!(reached.policy() == "good", "{}", reached.brief());
    ensure!(reached.text(&["dst_endpoint", "hostname"]) == "good.test", "{}", reached.0);
    let denied = events.wait("what was not", |event| {
        event.agent() == "namer" && event.peer() == bad && event.verdict() == DENIED
    })?;
    ensure!(denied.text(&["dst_endpoint", "hostname"]) == "bad.test", "{}", denied.0);
    let shown = world.ambit(&["events", "--agent", "namer"])?;
    let line = format!("tcp good.test ({good})");
    ensure!(
        shown.stdout.contains(&line),
        "`ambit events` does not show `{line}`: {}",
        shown.whole()
    );
    world.wait("answers are counted", || {
        let passed = [("outcome", "passed_on")];
        Ok(world.metrics()?.value("ambit_name_answers_total", &passed).unwrap_or(0.0) >= 2.0)
    })?;
    world.bystander(&["ask-connect", "udp", server, "bad.test", port])?.expect("ask-connect", 0)
}

fn every_way(world: &World) -> Result<()> {
    let Place { server, server_v6, port, .. } = place()?;
    let rule = policy(&[
        on_host("good", "permit", "good.test"),
        on_host("large", "permit", "large.test"),
    ])?;
    let mapped = format!("[::ffff:{SERVER}]:53");
    let mut ways = vec![
        ("udp", server.as_str()),
        ("sendto", server),
        ("tcp", server),
        ("udp", &mapped),
        ("tcp", &mapped),
    ];
    if let Some(server) = server_v6 {
        ways.extend([("udp", server.as_str()), ("sendto", server), ("tcp", server)]);
    }
    for (index, (how, server)) in ways.into_iter().enumerate() {
        // Each way as an agent of its own, who knows nothing yet.
        let agent = world.agent(&format!("asker-{index}")).policy(&rule)?;
        let output = agent.act(&["ask-connect", how, server, "Good.TEST", port])?;
        output.expect("ask-connect", 0).with_context(|| format!("by {how} from {server}"))?;
    }
    let good = format!("{GOOD}:{port}");
    let agent = world.agent("asker-six").policy(&rule)?;
    let output =
        agent.act(&["ask6", "udp", server, "good.test", "then", "connect", "tcp", &good])?;
    output.expect("ask6", 0)?;
    output.expect("connect", 0)?;
    let agent = world.agent("asker-large").policy(&rule)?;
    let output = agent.act(&["resolve", server, "large.test", "then", "connect", "tcp", &good])?;
    output.expect("resolve", 0)?;
    output.expect("connect", 0)
}

fn aliases(world: &World) -> Result<()> {
    let Place { server, port, .. } = place()?;
    let both = format!("{BOTH}:{port}");
    let rules = [on_host("cdn", "permit", "*.cdn.test"), on_host("ads", "forbid", "*.ads.test")];
    let agent = world.agent("alias").policy(&policy(&rules)?)?;
    let events = world.events();
    let output = agent.act(&[
        "ask-connect",
        "udp",
        server,
        "www.shop.test",
        port,
        "then",
        "ask-connect",
        "udp",
        server,
        "www.ads.test",
        port,
        "then",
        "connect",
        "tcp",
        &both,
    ])?;
    // Once it is known as an advertiser's, too, it stays denied.
    ensure!(errnos(&output) == [0, EPERM, EPERM], "{}", output.whole());
    let event = events.wait("the denial", |event| {
        event.agent() == "alias" && event.class() == NETWORK && event.verdict() == DENIED
    })?;
    ensure!(event.policy() == "ads", "{}", event.brief());
    let names = event.0["unmapped"]["hostnames"].to_string();
    for name in ["www.shop.test", "shop.cdn.test", "edge.cdn.test", "www.ads.test"] {
        ensure!(names.contains(name), "{name} is not among {names}");
    }
    Ok(())
}

fn ends(world: &World) -> Result<()> {
    let Place { server, port, .. } = place()?;
    let good = format!("{GOOD}:{port}");
    let rules = [on_host("short", "permit", "short.test"), on_host("none", "permit", "none.test")];
    let agent = world.agent("mayfly").policy(&policy(&rules)?)?;
    let wait = (SHORT * 1000 + 500).to_string();
    let output = agent.act(&[
        "ask-connect",
        "udp",
        server,
        "short.test",
        port,
        "then",
        "sleep",
        &wait,
        "then",
        "connect",
        "tcp",
        &good,
        "then",
        "ask-connect",
        "udp",
        server,
        "none.test",
        port,
    ])?;
    // An answer that may not be kept is good for the connection at hand.
    ensure!(errnos(&output) == [0, 0, EPERM, 0], "{}", output.whole());
    Ok(())
}

fn elsewhere(world: &World) -> Result<()> {
    let Place { server, untrusted, port, .. } = place()?;
    let good = format!("{GOOD}:{port}");
    let rule = on_host("good", "permit", "good.test");
    let agent = world.agent("stray").policy(&policy(std::slice::from_ref(&rule))?)?;
    let output =
        agent.act(&["ask", "udp", untrusted, "good.test", "then", "connect", "tcp", &good])?;
    output.expect("ask", EPERM)?;
    output.expect("connect", EPERM)?;
    // The agent knows the address, and whence it has it makes the difference.
    let off = format!("{SERVER}:5353");
    let at = std::net::UdpSocket::bind(&off)?;
    let relay = std::net::UdpSocket::bind("127.0.0.1:0")?;
    relay.connect(server)?;
    std::thread::spawn(move || -> Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = at.recv_from(&mut buffer)?;
            relay.send(&buffer[..length])?;
            let length = relay.recv(&mut buffer)?;
            at.send_to(&buffer[..length], from)?;
        }
    });
    let permits = with_base(&(asking(&[&off]) + &rule));
    let output = world.agent("stray-port").policy(&permits)?.act(&[
        "ask",
        "udp",
        &off,
        "good.test",
        "then",
        "connect",
        "tcp",
        &good,
    ])?;
    output.expect("ask", 0)?;
    output.expect("connect", EPERM)
}

fn malformed(world: &World) -> Result<()> {
    let Place { server, port, .. } = place()?;
    let good = format!("{GOOD}:{port}");
    let refused = |why| {
        let labels = [("outcome", why)];
        Ok::<f64, anyhow::Error>(
            world.metrics()?.value("ambit_name_answers_total", &labels).unwrap_or(0.0),
        )
    };
    let before = refused("malformed")?;
    let agent = world.agent("cutter").policy(&policy(&[on_host("all", "permit", "*.test")])?)?;
    let output = agent.act(&[
        "ask", "udp", server, "cut.test", "then", "connect", "tcp", &good, "then", "ask", "tcp",
        server, "cut.test",
    ])?;
    ensure!(errnos(&output) == [FAILED, EPERM, FAILED], "{}", output.whole());
    world.wait("both are counted", || Ok(refused("malformed")? >= before + 2.0))
}

fn forged(world: &World) -> Result<()> {
    let Place { server, port, .. } = place()?;
    let false_one = format!("{FORGED}:{port}");
    let agent = world.agent("dupe").policy(&policy(&[on_host("all", "permit", "*.test")])?)?;
    let output = agent.act(&[
        "ask-connect",
        "udp",
        server,
        "forged.test",
        port,
        "then",
        "connect",
        "tcp",
        &false_one,
    ])?;
    output.expect("ask-connect", 0)?;
    output.expect("connect", EPERM)
}

fn others(world: &World) -> Result<()> {
    let Place { server, port, .. } = place()?;
    let good = format!("{GOOD}:{port}");
    let rule = policy(&[
        on_host("good", "permit", "good.test"),
        // So that only what is Ambit's own stands between an agent and another's port.
        "@id(\"local\") permit (principal, action == Action::\"connect\", resource is Peer) when { \
         resource.ip == ip(\"127.0.0.1\") };\n"
            .to_owned(),
    ])?;
    let note = crate::world::ground("names")?.join("port").display().to_string();
    let may_note = on_path("note", "permit", "write", "File", &note);
    let first = world.agent("knows").policy(&(rule.clone() + &may_note))?;
    let asks = [
        "ask",
        "udp",
        server,
        "good.test",
        "then",
        "server-of",
        server,
        &note,
        "then",
        "sleep",
        "60000",
    ];
    let running = first.start(&asks)?;
    let read = || std::fs::read_to_string(&note).unwrap_or_default();
    world.wait("the first agent knows its port", || Ok(!read().is_empty()))?;
    let others_port = read();
    ensure!(
        others_port.starts_with("127.0.0.1:"),
        "a question does not come to the daemon: {others_port}"
    );
    let output = world.agent("asks").policy(&rule)?.act(&["connect", "tcp", &good])?;
    output.expect("connect", EPERM)?;
    // Another agent's port is Ambit's.
    let events = world.events();
    let intruder = world.agent("intruder").policy(&rule)?;
    intruder.act(&["connect", "udp", &others_port])?.expect("connect", EPERM)?;
    let event = events.wait("the denial", |event| {
        event.agent() == "intruder" && event.peer() == others_port && event.verdict() == DENIED
    })?;
    ensure!(event.policy() == "ambit:protected", "{}", event.brief());
    drop(running);
    Ok(())
}

/// Each has a port of the daemon, and nobody may take all of these.
fn many_servers(world: &World) -> Result<()> {
    let rule = with_base(
        &("@id(\"any\") permit (principal, action == Action::\"connect\", resource is Peer) when { \
           resource.ip.isInRange(ip(\"127.77.0.0/24\")) && resource.port == 53 };\n"
            .to_owned() + &on_host("good", "permit", "good.test")),
    );
    let servers: Vec<String> = (100..109).map(|last| format!("127.77.0.{last}:53")).collect();
    let mut steps = Vec::new();
    for server in servers.iter().chain(&servers[..1]) {
        steps.extend(["connect", "udp", server, "then"]);
    }
    steps.pop();
    let events = world.events();
    let output = world.agent("curious").policy(&rule)?.act(&steps)?;
    // The ninth is one too many; the first is still known.
    ensure!(errnos(&output) == [0, 0, 0, 0, 0, 0, 0, 0, EPERM, 0], "{}", output.whole());
    let event = events.wait("the denial", |event| {
        event.agent() == "curious" && event.peer() == servers[8] && event.verdict() == DENIED
    })?;
    ensure!(event.text(&["unmapped", "reason"]) == "peer_unresolved", "{}", event.0);
    Ok(())
}

fn audited(world: &World) -> Result<()> {
    let Place { server, port, .. } = place()?;
    let agent =
        world.agent("watched").policy(&policy(&[on_host("good", "permit", "good.test")])?)?;
    let output = agent.option("--audit").act(&["ask-connect", "udp", server, "bad.test", port])?;
    output.expect("ask-connect", 0)?;
    let line = "resource has host && resource.host == \"bad.test\"";
    ensure!(output.stderr.contains(line), "no line permits the name: {}", output.whole());
    Ok(())
}

fn outlive() -> Result<()> {
    let Place { server, port, .. } = place()?;
    let (good, bad) = (format!("{GOOD}:{port}"), format!("{BAD}:{port}"));
    let settings =
        Settings { more: agent_table("cell", "cell-names", "enforce"), ..Settings::default() };
    fresh(settings, |world| {
        let may = |hosts: &[&str]| {
            let rules: Vec<String> =
                hosts.iter().map(|host| on_host(host, "permit", host)).collect();
            policy(&rules)
        };
        let cell = world.attach.join("cell-names");
        make_folder(&cell)?;
        world.policy("own", &may(&["good.test"])?)?;
        world.start()?;
        let act = |world: &World, steps: &[&str]| world.in_cgroup(&cell, USER, steps);
        let connect = |world: &World, to: &str, errno| -> Result<()> {
            act(world, &["connect", "tcp", to])?.expect("connect", errno)
        };
        let asks = [
            "ask-connect",
            "udp",
            server,
            "good.test",
            port,
            "then",
            "ask",
            "udp",
            server,
            "bad.test",
        ];
        let output = act(world, &asks)?;
        output.expect("ask-connect", 0)?;
        output.expect("ask", 0)?;
        connect(world, &bad, EPERM)?;

        world.policy("own", &may(&["good.test", "bad.test"])?)?;
        world.reload()?;
        // Both are still known, and the new policy says what it says of them.
        connect(world, &good, 0)?;
        connect(world, &bad, 0)?;

        world.kill()?;
        connect(world, &good, 0)?;
        let ask = ["ask", "udp", server, "good.test"];
        act(world, &ask)?.expect("ask", REFUSED).context("with the daemon gone")?;

        world.start()?;
        connect(world, &good, 0)?;
        act(world, &ask)?.expect("ask", 0)?;
        world.policy("own", &may(&["bad.test"])?)?;
        world.reload()?;
        connect(world, &good, EPERM)
    })
}
