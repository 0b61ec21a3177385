//! N: ways to a peer.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::Path;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};

use super::{
    Place, Setup, Try, Way, Who, attempt, inherited, measure, own_way, port, way, with_shared,
};
use crate::policy::on_peer;
use crate::stage::loopback_up;
use crate::world::{World, listener};

pub(super) fn ways() -> Vec<Way> {
    vec![
        way("N1", "forms of an address", Who::User, forms),
        way("N2", "datagrams", Who::User, datagrams),
        way("N3", "other transports", Who::User, transports),
        way("N4", "other families", Who::Root, families),
        way("N5", "unix sockets", Who::User, unix_sockets),
        own_way("N6", "io_uring and sockets from before", |id| {
            let mut attempts =
                with_shared(|world| measure(world, id, Who::User, |at| rings(world, at)))?;
            // Nothing is permitted to be connected to anyway; what is connected already is asked for forbids.
            let here = "@id(\"here\") forbid (principal, action == Action::\"connect\", resource is Peer) \
                        when { resource.ip.isInRange(ip(\"127.0.0.0/8\")) };\n";
            attempts.extend(inherited(id, here, from_before)?);
            Ok(attempts)
        }),
        way("N7", "listening", Who::User, listening),
        way("N8", "another resolver", Who::User, resolvers),
        way("N9", "another network namespace", Who::Root, namespaces),
    ]
}

/// A datagram socket of the suite's, which reads nothing.
fn sink() -> Result<(UdpSocket, String)> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?.to_string();
    Ok((socket, address))
}

/// Every peer may be reached but this host, which is what each form means.
fn forms(_: &World, _: &Place) -> Result<Setup> {
    let to = |what: &'static str, host: &str| -> Result<Try> {
        let own = port(&listener("[::]:0")?)?;
        let address = format!("{host}{own}");
        Ok(attempt(what).step(&["connect", "tcp", &address]).told_by(&[&own]))
    };
    let policy = "@id(\"all\") permit (principal, action == Action::\"connect\", resource is Peer) \
                  when { resource.protocol == \"tcp\" };\n\
                  @id(\"here\") forbid (principal, action == Action::\"connect\", resource is Peer) \
                  when { resource.ip.isInRange(ip(\"127.0.0.0/8\")) };\n\
                  @id(\"here6\") forbid (principal, action == Action::\"connect\", resource is Peer) \
                  when { resource.ip == ip(\"::1\") };\n";
    Ok(Setup::of(vec![
        to("127.0.0.1", "127.0.0.1")?,
        to("127.9.9.9", "127.9.9.9")?,
        to("::1", "[::1]")?,
        to("mapped", "[::ffff:127.0.0.1]")?,
        to("0.0.0.0", "0.0.0.0")?,
        to("::", "[::]")?,
        to("mapped 0.0.0.0", "[::ffff:0.0.0.0]")?,
    ])
    .policy(policy.to_owned()))
}

fn datagrams(_: &World, _: &Place) -> Result<Setup> {
    let mut setup = Setup::default();
    let (first, permitted) = sink()?;
    setup.policy = on_peer("first", "permit", "connect", "udp", &permitted);
    setup = setup.keep(first);
    for (what, step) in [
        ("sendto", vec!["send", "udp"]),
        ("sendmsg", vec!["sendmsg"]),
        ("sendmmsg", vec!["sendmmsg"]),
        ("connected", vec!["connect", "udp"]),
        ("another peer per datagram", vec!["send-elsewhere", &permitted]),
        ("connected anew", vec!["reconnect", &permitted]),
    ] {
        let (socket, address) = sink()?;
        let step = [step, vec![address.as_str()]].concat();
        setup.tries.push(attempt(what).step(&step).told_by(&[&port(&address)?]));
        setup = setup.keep(socket);
    }
    Ok(setup)
}

fn transports(_: &World, _: &Place) -> Result<Setup> {
    let mut tries = Vec::new();
    let fast = listener("127.0.0.1:0")?;
    tries.push(attempt("TCP Fast Open").step(&["fastopen", &fast]).told_by(&[&port(&fast)?]));
    let many = listener("127.0.0.1:0")?;
    tries.push(
        attempt("MPTCP").step(&["connect-mptcp", &many]).told_by(&[&port(&many)?]).optional(),
    );
    for (what, kind, protocol, name) in [
        ("SCTP", "1", "132", "inet-sctp"),
        ("DCCP", "6", "33", "inet-dccp"),
        ("UDP-Lite", "2", "136", "inet-udplite"),
    ] {
        let address = listener("127.0.0.1:0")?;
        tries.push(
            attempt(what)
                .step(&["reach", kind, protocol, &address])
                .told_by(&[name, &port(&address)?])
                .optional(),
        );
    }
    Ok(Setup::of(tries))
}

fn families(_: &World, _: &Place) -> Result<Setup> {
    let make = |what, numbers: [&str; 3], name: &str| {
        let [family, kind, protocol] = numbers;
        attempt(what).step(&["make", family, kind, protocol]).told_by(&[name])
    };
    Ok(Setup::of(vec![
        make("raw", ["2", "3", "1"], "inet-raw"),
        make("raw IPv6", ["10", "3", "58"], "inet-raw"),
        make("packet", ["17", "3", "0"], "packet"),
        make("netlink", ["16", "3", "0"], "netlink"),
        make("vsock", ["40", "1", "0"], "vsock").optional(),
        make("AF_ALG", ["38", "5", "0"], "alg").optional(),
        make("AF_XDP", ["44", "3", "0"], "xdp").optional(),
        make("Bluetooth", ["31", "3", "1"], "bluetooth").optional(),
    ]))
}

fn unix_sockets(_: &World, at: &Place) -> Result<Setup> {
    use std::os::unix::fs::PermissionsExt as _;
    let stream = at.at("open/docker.sock");
    let listening = UnixListener::bind(&stream)?;
    std::thread::spawn(move || listening.incoming().for_each(drop));
    let datagram = at.at("open/log.sock");
    let log = UnixDatagram::bind(&datagram)?;
    for path in [&stream, &datagram] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
    }
    let side =
        at.base.file_name().and_then(|name| name.to_str()).context("the place has no name")?;
    let hidden = format!("@ambit-way-{}-{side}", std::process::id());
    let address = SocketAddr::from_abstract_name(&hidden[1..])?;
    let listening = UnixListener::bind_addr(&address)?;
    std::thread::spawn(move || listening.incoming().for_each(drop));
    let quiet = format!("{hidden}-log");
    let sink = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&quiet[1..])?)?;
    Ok(Setup::of(vec![
        attempt("a stream by path").step(&["unix-connect", &stream]).told_by(&[&stream]),
        attempt("a datagram by path").step(&["unix-send", &datagram]).told_by(&[&datagram]),
        attempt("an abstract stream").step(&["unix-connect", &hidden]).told_by(&[&hidden]),
        attempt("an abstract datagram").step(&["unix-send", &quiet]).told_by(&[&quiet]),
    ])
    .keep((log, sink)))
}

fn rings(_: &World, _: &Place) -> Result<Setup> {
    let stream = listener("127.0.0.1:0")?;
    let (socket, datagram) = sink()?;
    Ok(Setup::of(vec![
        attempt("connect").step(&["ring-connect", &stream]).told_by(&[&port(&stream)?]),
        attempt("send").step(&["ring-send", &datagram]).told_by(&[&port(&datagram)?]),
    ])
    .keep(socket))
}

/// A socket that was connected before its holder was anybody's agent.
fn from_before(at: &Place) -> Result<(OwnedFd, Vec<Try>)> {
    let listening = TcpListener::bind("127.0.0.1:0")?;
    let address = listening.local_addr()?.to_string();
    std::thread::spawn(move || {
        // Says something, and takes whatever comes.
        let mut kept = Vec::new();
        for mut stream in listening.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut stream, b"hello");
            kept.push(stream);
        }
    });
    let own = TcpStream::connect(&address)?;
    let file = at.at("open/file");
    let tries = [
        ("a connected one from before", vec!["held-send"]),
        ("the same by io_uring", vec!["held-ring-send"]),
        ("the same by sendfile", vec!["held-send-file", file.as_str()]),
        ("received on it", vec!["held-receive"]),
    ];
    let told = port(&address)?;
    let tries = tries.into_iter().map(|(what, step)| attempt(what).step(&step).told_by(&[&told]));
    Ok((own.into(), tries.collect()))
}

fn listening(_: &World, at: &Place) -> Result<Setup> {
    // Each side has a port of its own, as the other may not have given its up yet.
    let own = if at.is_agents() { "127.0.0.1:47001" } else { "127.0.0.1:47002" };
    Ok(Setup::of(vec![
        attempt("bind and listen").step(&["listen", own]).told_by(&[&port(own)?]),
        attempt("listen without bind").step(&["listen-unbound"]).told_by(&["listen"]),
    ]))
}

fn resolvers(_: &World, at: &Place) -> Result<Setup> {
    let host = if at.is_agents() { "127.0.53.1" } else { "127.0.53.2" };
    let address = format!("{host}:53");
    let socket = UdpSocket::bind(&address)?;
    listener(&address)?;
    Ok(Setup::of(vec![
        attempt("by UDP").step(&["send", "udp", &address]).told_by(&[":53"]),
        attempt("by TCP").step(&["connect", "tcp", &address]).told_by(&[":53"]),
    ])
    .keep(socket))
}

fn namespaces(_: &World, at: &Place) -> Result<Setup> {
    // A network with a listener of its own, which lives as long as the thread that is in it.
    let (tell, told) = std::sync::mpsc::channel();
    let (keep, until) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let made = || -> Result<(TcpListener, String, nix::unistd::Pid)> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            loopback_up()?;
            let listening = TcpListener::bind("127.0.0.1:0")?;
            let address = listening.local_addr()?.to_string();
            Ok((listening, address, nix::unistd::gettid()))
        };
        match made() {
            Ok((listening, address, own)) => {
                let _ = tell.send(Ok((address, own)));
                let _ = until.recv();
                drop(listening);
            }
            Err(error) => drop(tell.send(Err(error))),
        }
    });
    let (address, thread) = told.recv()??;
    let namespace = format!("/proc/{thread}/ns/net");
    let own = if at.is_agents() { "127.0.0.1:47003" } else { "127.0.0.1:47004" };
    let tunnel = Path::new("/dev/net/tun").exists();
    let mut tries = vec![
        attempt("setns")
            .step(&["enter", &namespace])
            .step(&["connect", "tcp", &address])
            .told_by(&["namespace", "ptrace", &namespace, &port(&address)?]),
        attempt("a new one").step(&["own-network", own]).told_by(&["namespace", &port(own)?]),
    ];
    if tunnel {
        tries.push(
            attempt("a tun device")
                .step(&["make-tunnel"])
                .told_by(&["capability", "/dev/net/tun"])
                .optional(),
        );
    }
    Ok(Setup::of(tries).keep(keep))
}
