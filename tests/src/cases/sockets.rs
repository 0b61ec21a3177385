//! Sockets beyond connect and bind of internet peers: listening, unix sockets, and kinds of sockets that
//! only a policy that names them lets an agent make.
//!
//! Where LSM programs do not load, what the doctor says is not covered goes on as before: the tests assert
//! that too.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};

use super::{Case, case, shared};
use crate::actor::EPERM;
use crate::events::{ALLOWED, DENIED, Event, Events, OBSERVED};
use crate::policy::{on_peer, with_base};
use crate::world::{World, find_action, ground, listener};

/// What a test does, and the resource that it does it to.
#[derive(Clone, Copy)]
struct Deed {
    name: &'static str,
    action: &'static str,
    /// The row of the doctor's that says whether it is covered.
    row: &'static str,
    /// What of the row has to be there: `lsm`, or `cgroup` where every kernel judges it.
    by: &'static str,
    subset: bool,
    /// The step, and the resource as a policy's head says it.
    of: fn() -> Result<(Vec<String>, String)>,
    /// What of the event names the resource.
    told: fn(&Event) -> String,
    /// What the kernel answers to those who may, when that is no success.
    else_errno: &'static [i64],
}

fn endpoint(event: &Event) -> String {
    let side = if event.0["dst_endpoint"].is_object() { "dst_endpoint" } else { "src_endpoint" };
    event.text(&[side, "name"]).to_owned()
}

fn kernel_name(event: &Event) -> String {
    event.text(&["kernel", "name"]).to_owned()
}

fn words(step: &[&str]) -> Vec<String> {
    step.iter().map(ToString::to_string).collect()
}

/// A name that no other run has taken: abstract addresses are the whole network namespace's.
fn abstract_name(of: &str) -> String {
    format!("@ambit-{of}-{}", std::process::id())
}

/// A number that was not given before.
fn next() -> u32 {
    static AT: AtomicU32 = AtomicU32::new(0);
    AT.fetch_add(1, Ordering::Relaxed)
}

/// An abstract address that nothing has taken.
fn unused_name(of: &str) -> String {
    abstract_name(&format!("{of}-{}", next()))
}

/// A place for a socket that nothing has taken.
fn place(of: &str) -> Result<String> {
    Ok(ground(&format!("socket-{}", next()))?.join(of).display().to_string())
}

fn open_to_all(path: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?)
}

const fn family(
    name: &'static str,
    by: &'static str,
    of: fn() -> Result<(Vec<String>, String)>,
) -> Deed {
    Deed {
        name,
        action: "socket",
        row: "socket",
        by,
        subset: false,
        of,
        told: kernel_name,
        // EPERM of the kernel's own is told apart by the event; these kernels lack the family.
        else_errno: &[1, 93, 94, 97],
    }
}

fn made(family: i32, kind: i32, protocol: i32, name: &str) -> Result<(Vec<String>, String)> {
    let numbers = [family, kind, protocol].map(|number| number.to_string());
    let step = words(&["make", &numbers[0], &numbers[1], &numbers[2]]);
    Ok((step, format!("resource == SocketFamily::\"{name}\"")))
}

const DEEDS: &[Deed] = &[
    Deed {
        name: "abstract_unix_connect",
        action: "connect",
        row: "unix sockets",
        by: "lsm",
        subset: false,
        of: || {
            use std::os::linux::net::SocketAddrExt as _;
            use std::os::unix::net::{SocketAddr, UnixListener};
            let name = unused_name("server");
            let address = SocketAddr::from_abstract_name(&name[1..])?;
            let listener = UnixListener::bind_addr(&address)?;
            std::thread::spawn(move || listener.incoming().for_each(drop));
            Ok((words(&["unix-connect", &name]), format!("resource == UnixSocket::\"{name}\"")))
        },
        told: endpoint,
        else_errno: &[],
    },
    Deed {
        name: "abstract_unix_send",
        action: "connect",
        row: "unix sockets",
        by: "lsm",
        subset: false,
        of: || {
            use std::os::linux::net::SocketAddrExt as _;
            use std::os::unix::net::{SocketAddr, UnixDatagram};
            let name = unused_name("sink");
            let sink = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name[1..])?)?;
            std::thread::spawn(move || while sink.recv(&mut [0; 8]).is_ok() {});
            Ok((words(&["unix-send", &name]), format!("resource == UnixSocket::\"{name}\"")))
        },
        told: endpoint,
        else_errno: &[],
    },
    Deed {
        name: "abstract_unix_bind",
        action: "bind",
        row: "unix sockets",
        by: "lsm",
        subset: false,
        of: || {
            let name = abstract_name("own");
            Ok((words(&["unix-bind", &name]), format!("resource == UnixSocket::\"{name}\"")))
        },
        told: endpoint,
        else_errno: &[],
    },
    Deed {
        name: "unix_connect",
        action: "connect",
        row: "unix sockets",
        by: "lsm",
        subset: true,
        of: || {
            let name = place("server")?;
            let listener = std::os::unix::net::UnixListener::bind(&name)?;
            open_to_all(&name)?;
            std::thread::spawn(move || listener.incoming().for_each(drop));
            Ok((words(&["unix-connect", &name]), format!("resource == UnixSocket::\"{name}\"")))
        },
        told: endpoint,
        else_errno: &[],
    },
    Deed {
        name: "unix_send",
        action: "connect",
        row: "unix sockets",
        by: "lsm",
        subset: false,
        of: || {
            let name = place("sink")?;
            let sink = std::os::unix::net::UnixDatagram::bind(&name)?;
            open_to_all(&name)?;
            std::thread::spawn(move || while sink.recv(&mut [0; 8]).is_ok() {});
            Ok((words(&["unix-send", &name]), format!("resource == UnixSocket::\"{name}\"")))
        },
        told: endpoint,
        else_errno: &[],
    },
    Deed {
        name: "unix_bind",
        action: "bind",
        row: "unix sockets",
        by: "lsm",
        subset: false,
        of: || {
            let name = place("own")?;
            Ok((words(&["unix-bind", &name]), format!("resource == UnixSocket::\"{name}\"")))
        },
        told: endpoint,
        else_errno: &[],
    },
    family("netlink_socket", "lsm", || made(16, 3, 0, "netlink")),
    family("packet_socket", "lsm", || made(17, 3, 0, "packet")),
    family("vsock_socket", "lsm", || made(40, 1, 0, "vsock")),
    family("alg_socket", "lsm", || made(38, 5, 0, "alg")),
    family("bluetooth_socket", "lsm", || made(31, 3, 1, "bluetooth")),
    family("xdp_socket", "lsm", || made(44, 3, 0, "xdp")),
    family("raw_socket", "lsm", || made(2, 3, 1, "inet-raw")),
    family("raw6_socket", "lsm", || made(10, 3, 58, "inet-raw")),
    family("sctp_socket", "lsm", || made(2, 1, 132, "inet-sctp")),
    family("dccp_socket", "lsm", || made(2, 6, 33, "inet-dccp")),
    family("udplite_socket", "cgroup", || made(2, 2, 136, "inet-udplite")),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for deed in DEEDS {
        for (promise, test) in [
            ("allows_permitted", allows as fn(&Deed, &World) -> Result<()>),
            ("denies_forbidden", denies),
            ("audit_mode_lets_go_and_tells_forbidden", observes),
            ("leaves_bystanders_alone_in", leaves_bystanders),
        ] {
            // One family is like another: all promises for some, the denial for each.
            let one_of_many = deed.action == "socket"
                && !["netlink_socket", "raw_socket", "udplite_socket"].contains(&deed.name);
            if one_of_many && promise != "denies_forbidden" {
                continue;
            }
            let name = format!("{promise}_{}", deed.name);
            let mut case = case(&name, move || shared(|world| test(deed, world)));
            case.subset = deed.subset && promise == "denies_forbidden"
                || deed.name == "netlink_socket" && promise == "allows_permitted";
            cases.push(case);
        }
    }
    cases.push(case("denies_sockets_that_no_policy_names", || shared(default_deny)).in_subset());
    cases.push(case("denies_listening_without_a_permit", || shared(listening)).in_subset());
    cases.push(case("listening_unbound_is_judged_too", || shared(listening_unbound)));
    cases.push(case("names_resolve_without_netlink", || shared(names_without_netlink)));
    cases.push(case("a_socket_pair_asks_nobody", || shared(pair)).in_subset());
    cases.push(case("a_socket_is_judged_by_its_place_and_not_by_its_address", || shared(moved)));
    cases.push(case("mptcp_is_judged_as_tcp", || shared(mptcp)).in_subset());
    cases
}

/// Whether a deed is covered on this kernel.
fn covered(deed: &Deed, world: &World) -> Result<bool> {
    let doctor = world.doctor()?;
    let row = find_action(&doctor, deed.row)?;
    let by = row["enforced_by"].as_str().unwrap_or_default();
    let covered = by.contains(deed.by);
    if !covered {
        ensure!(
            row["why"].as_str().is_some_and(|why| why.contains("LSM") || why.contains("lacks")),
            "the doctor does not say that {} is not covered: {row}",
            deed.name
        );
    }
    Ok(covered)
}

fn policy(deed: &Deed, id: &str, how: &str, resource: &str) -> String {
    format!("@id({id:?}) {how} (principal, action == Action::{:?}, {resource});\n", deed.action)
}

fn is_told(deed: &Deed, event: &Event, agent: &str, resource: &str) -> bool {
    let told = (deed.told)(event);
    event.agent() == agent
        && event.action() == deed.action
        && !told.is_empty()
        && resource.contains(&format!("\"{told}\""))
}

/// Asserts that the kernel let it go: that it worked, or failed for a reason that is no denial.
fn went(deed: &Deed, output: &crate::actor::Output, step: &str) -> Result<()> {
    let errno = output.errno(step)?;
    let fine = errno == 0 || deed.else_errno.contains(&errno);
    ensure!(fine, "`{step}` ended with errno {errno}: {}", output.whole());
    Ok(())
}

fn allows(deed: &Deed, world: &World) -> Result<()> {
    let name = format!("allows-{}", deed.name.replace('_', "-"));
    let (step, resource) = (deed.of)()?;
    let step: Vec<&str> = step.iter().map(String::as_str).collect();
    let events = world.events();
    let text = with_base(&policy(deed, "granted", "permit", &resource));
    let output = world.agent(&name).policy(&text)?.act(&step)?;
    went(deed, &output, step[0])?;
    // What the kernel itself refuses, to this user or for want of a module, does not come to be told.
    if !covered(deed, world)? || output.errno(step[0])? != 0 {
        return Ok(());
    }
    told(world, &events, deed, (&name, &resource), (ALLOWED, "granted", "allowed"))
}

/// Waits for the event of an agent's deed, with this verdict of this policy, and for its count.
fn told(
    world: &World,
    events: &Events,
    deed: &Deed,
    (agent, resource): (&str, &str),
    (verdict, policy, counter): (u64, &str, &str),
) -> Result<()> {
    let what = format!("{} of {resource}, {counter}", deed.action);
    let event = events.wait(&what, |event| is_told(deed, event, agent, resource))?;
    ensure!(
        event.verdict() == verdict && event.policy() == policy,
        "the event says otherwise: {}",
        event.brief()
    );
    world.wait("the metric counts it", || counted(world, agent, deed.action, counter))
}

fn denies(deed: &Deed, world: &World) -> Result<()> {
    let name = format!("denies-{}", deed.name.replace('_', "-"));
    let (step, resource) = (deed.of)()?;
    let step: Vec<&str> = step.iter().map(String::as_str).collect();
    let events = world.events();
    let text = with_base(
        &(policy(deed, "granted", "permit", &resource)
            + &policy(deed, "refused", "forbid", &resource)),
    );
    let output = world.agent(&name).policy(&text)?.act(&step)?;
    if !covered(deed, world)? {
        return went(deed, &output, step[0]);
    }
    output.expect(step[0], EPERM)?;
    told(world, &events, deed, (&name, &resource), (DENIED, "refused", "denied"))
}

fn observes(deed: &Deed, world: &World) -> Result<()> {
    if !covered(deed, world)? {
        return Ok(());
    }
    let name = format!("audits-{}", deed.name.replace('_', "-"));
    let (step, resource) = (deed.of)()?;
    let step: Vec<&str> = step.iter().map(String::as_str).collect();
    let events = world.events();
    let text = with_base(&policy(deed, "refused", "forbid", &resource));
    let output = world.agent(&name).policy(&text)?.option("--audit").act(&step)?;
    went(deed, &output, step[0])?;
    if output.errno(step[0])? != 0 {
        return Ok(());
    }
    told(world, &events, deed, (&name, &resource), (OBSERVED, "refused", "audit"))
}

fn leaves_bystanders(deed: &Deed, world: &World) -> Result<()> {
    let (step, resource) = (deed.of)()?;
    let step: Vec<&str> = step.iter().map(String::as_str).collect();
    let name = format!("beside-{}", deed.name.replace('_', "-"));
    let text = with_base(&policy(deed, "refused", "forbid", &resource));
    let events = world.events();
    let agent = world.agent(&name).policy(&text)?.start(&["sleep", "300"])?;
    events.wait("that the agent started", |event| event.agent() == name)?;
    let output = world.bystander(&step)?;
    went(deed, &output, step[0])?;
    agent.finish()?.expect_code(0)?;
    let stray = events.so_far()?.into_iter().find(|event| {
        let told = (deed.told)(event);
        !told.is_empty() && resource.contains(&format!("\"{told}\""))
    });
    ensure!(
        stray.is_none(),
        "the bystander left an event: {}",
        stray.map(|event| event.brief()).unwrap_or_default()
    );
    Ok(())
}

fn default_deny(world: &World) -> Result<()> {
    let name = "socket-default";
    let doctor = world.doctor()?;
    let by = find_action(&doctor, "socket")?["enforced_by"].as_str().unwrap_or_default().to_owned();
    let events = world.events();
    let output = world.agent(name).policy(&with_base(""))?.act(&[
        "make", "16", "3", "0", "then", "make", "2", "2", "136", "then", "make", "10", "2", "136",
    ])?;
    ensure!(by.contains("cgroup"), "internet sockets are not covered: {by}");
    for step in ["make 2 2 136", "make 10 2 136"] {
        output.expect(step, EPERM)?;
    }
    if by.contains("lsm") {
        output.expect("make 16", EPERM)?;
    }
    events
        .wait("that the default denied it", |event| {
            event.agent() == name
                && event.action() == "socket"
                && event.verdict() == DENIED
                && event.policy().is_empty()
        })
        .map(drop)
}

fn listening(world: &World) -> Result<()> {
    let own = "127.0.0.1:5351";
    let bind = on_peer("bound", "permit", "bind", "tcp", own);
    let listen = on_peer("served", "permit", "listen", "tcp", own);
    let lsm = covers_listen(world)?;
    let events = world.events();
    let output = world.agent("mute").policy(&with_base(&bind))?.act(&["listen", own])?;
    if !lsm {
        return output.expect("listen", 0);
    }
    output.expect("listen", EPERM)?;
    events.wait("the denial", |event| {
        event.agent() == "mute"
            && event.action() == "listen"
            && event.verdict() == DENIED
            && event.activity() == 7
            && event.peer() == own
    })?;
    let output =
        world.agent("server").policy(&with_base(&(bind + &listen)))?.act(&["listen", own])?;
    output.expect("listen", 0)?;
    let event = events.wait("that it listens", |event| {
        event.agent() == "server" && event.action() == "listen" && event.peer() == own
    })?;
    ensure!(event.policy() == "served", "another policy decided: {}", event.brief());
    world.wait("the metric counts it", || counted(world, "server", "listen", "allowed"))
}

fn listening_unbound(world: &World) -> Result<()> {
    let output = world.agent("open").policy(&with_base(""))?.act(&["listen-unbound"])?;
    output.expect("listen-unbound", if covers_listen(world)? { EPERM } else { 0 })
}

fn covers_listen(world: &World) -> Result<bool> {
    let doctor = world.doctor()?;
    let row = find_action(&doctor, "listen")?;
    let by = row["enforced_by"].as_str().unwrap_or_default();
    if !by.contains("lsm") {
        ensure!(row["why"].as_str().is_some_and(|why| why.contains("not covered")), "{row}");
    }
    Ok(by.contains("lsm"))
}

/// What asks netlink for the host's addresses first goes on without.
fn names_without_netlink(world: &World) -> Result<()> {
    let name = "nameless";
    let output = world.agent(name).policy(&with_base(""))?.act(&["addresses-of", "localhost"])?;
    output.expect("addresses-of", 0)?;
    let found = output.steps()[0]["found"].as_u64().unwrap_or(0);
    ensure!(found > 0, "localhost has no address: {}", output.whole());
    Ok(())
}

fn pair(world: &World) -> Result<()> {
    let output = world.agent("pair").policy(&with_base(""))?.act(&["unix-pair"])?;
    output.expect("unix-pair", 0)
}

/// The address that a socket was bound to stays what it was when the socket is moved or linked to.
fn moved(world: &World) -> Result<()> {
    let folder = ground("moved")?;
    let (first, then) = (folder.join("first"), folder.join("then"));
    let alias = folder.join("alias").display().to_string();
    let listener = std::os::unix::net::UnixListener::bind(&first)?;
    std::fs::rename(&first, &then)?;
    std::os::unix::fs::symlink(&then, &alias)?;
    let (first, then) = (first.display().to_string(), then.display().to_string());
    open_to_all(&then)?;
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let policy = with_base(&format!(
        "permit (principal, action == Action::\"connect\", resource == UnixSocket::\"{first}\");\n\
         permit (principal, action == Action::\"connect\", resource == UnixSocket::\"{alias}\");\n"
    ));
    let output = world.agent("mover").policy(&policy)?.act(&[
        "unix-connect",
        &then,
        "then",
        "unix-connect",
        &alias,
    ])?;
    let doctor = world.doctor()?;
    let lsm = find_action(&doctor, "unix sockets")?["enforced_by"].is_string();
    let expected = if lsm { EPERM } else { 0 };
    output.expect(&format!("unix-connect {then}"), expected)?;
    output.expect(&format!("unix-connect {alias}"), expected)
}

fn mptcp(world: &World) -> Result<()> {
    let peer = listener("127.0.0.1:0")?;
    let events = world.events();
    let denied = world.agent("mp-denied").policy(&with_base(""))?.act(&["connect-mptcp", &peer])?;
    // A kernel without MPTCP has no such protocol to offer.
    if [92, 93].contains(&denied.errno("connect-mptcp")?) {
        return Ok(());
    }
    denied.expect("connect-mptcp", EPERM)?;
    events.wait("the denial", |event| {
        event.agent() == "mp-denied" && event.verdict() == DENIED && event.peer() == peer
    })?;
    let permit = with_base(&on_peer("mp", "permit", "connect", "tcp", &peer));
    let allowed = world.agent("mp-allowed").policy(&permit)?.act(&["connect-mptcp", &peer])?;
    allowed.expect("connect-mptcp", 0)
}

fn counted(world: &World, agent: &str, action: &str, verdict: &str) -> Result<bool> {
    let labels = [("agent", agent), ("action", action), ("verdict", verdict)];
    Ok(world.metrics()?.value("ambit_actions_total", &labels).unwrap_or(0.0) > 0.0)
}
