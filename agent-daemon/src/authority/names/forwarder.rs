//! The forwarder of names: what a bounded agent asks of a name server comes here, is asked of that server,
//! and is answered when the kernel half knows what the answer tells.
//!
//! Each agent and server has a port of its own, which is how a question says whose it is and for whom. The
//! hooks give ports away ([`agent_ebpf`]'s `ROUTES`); some are always free.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Weak},
    time::Duration,
};

use domain::base::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    runtime::Runtime,
    sync::Semaphore,
    time::timeout,
};

use super::servfail;
use crate::{authority::Engine, kernel::host};

/// How many ports are kept free.
const FREE: usize = 32;
/// Tries to find a port that is free for both protocols and families.
const TRIES: usize = 64;
/// How long a name server has for an answer, and a connection to it for whatever comes next.
const PATIENCE: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(60);
/// How many questions of one agent to one server are on their way at once; more are not taken, and asked
/// again by whoever asked.
const AT_ONCE: usize = 32;
/// The largest message (RFC 1035, section 4.2.2).
const MESSAGE_MAX: usize = 65_535;

/// Why names cannot be forwarded.
#[derive(Debug, thiserror::Error)]
pub enum ForwarderError {
    /// No thread, or none of its instruments.
    #[error("cannot start the forwarder of names: {0}")]
    Start(io::Error),
    /// No port.
    #[error("cannot listen on a port of 127.0.0.1 to forward questions for names: {0}")]
    Port(io::Error),
    /// Where the ports are cannot be told to the kernel half.
    #[error("cannot find out which network namespace this is: {0}")]
    Netns(io::Error),
}

/// The forwarder, for as long as it is kept.
pub struct Forwarder {
    runtime: Option<Runtime>,
    engine: Weak<Engine>,
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A port, on both loopback addresses where there are both.
struct Port {
    number: u16,
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Port {
    async fn open() -> io::Result<Self> {
        let mut last = io::Error::other("nothing was tried");
        for _ in 0..TRIES {
            match Self::try_open().await {
                Ok(port) => return Ok(port),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn try_open() -> io::Result<Self> {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let number = first.local_addr()?.port();
        let mut udp = vec![UdpSocket::bind((Ipv4Addr::LOCALHOST, number)).await?];
        let mut tcp = vec![first];
        match UdpSocket::bind((Ipv6Addr::LOCALHOST, number)).await {
            Ok(socket) => {
                udp.push(socket);
                tcp.push(TcpListener::bind((Ipv6Addr::LOCALHOST, number)).await?);
            }
            // A host without IPv6 has no such name servers.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {}
            Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => {}
            Err(error) => return Err(error),
        }
        Ok(Self { number, udp, tcp })
    }
}

impl Forwarder {
    /// Starts it, with no port yet.
    pub fn start(engine: Weak<Engine>) -> Result<Self, ForwarderError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("names")
            .enable_all()
            .build()
            .map_err(ForwarderError::Start)?;
        Ok(Self { runtime: Some(runtime), engine })
    }

    /// Opens ports until there are enough besides those in use; returns the new ones.
    pub fn open(&self, free: usize) -> Result<Vec<u16>, ForwarderError> {
        let Some(runtime) = &self.runtime else { return Ok(Vec::new()) };
        let wanted = FREE.saturating_sub(free);
        let mut opened = Vec::with_capacity(wanted);
        for _ in 0..wanted {
            let port = wait(runtime, Port::open())?.map_err(ForwarderError::Port)?;
            opened.push(port.number);
            serve(runtime, port, &self.engine);
        }
        Ok(opened)
    }
}

/// Runs something on the forwarder's own thread and waits for it, whatever thread this is.
fn wait<T: Send + 'static>(
    runtime: &Runtime,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, ForwarderError> {
    let (done, result) = std::sync::mpsc::sync_channel(1);
    runtime.spawn(async move {
        let _ = done.send(work.await);
    });
    result.recv().map_err(|error| ForwarderError::Start(io::Error::other(error)))
}

fn serve(runtime: &Runtime, port: Port, engine: &Weak<Engine>) {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    for socket in port.udp {
        let (engine, turns) = (engine.clone(), turns.clone());
        runtime.spawn(datagrams(Arc::new(socket), port.number, engine, turns));
    }
    for listener in port.tcp {
        let (engine, turns) = (engine.clone(), turns.clone());
        runtime.spawn(connections(listener, port.number, engine, turns));
    }
}

/// What the kernel half was not told is not passed on either: a server failure takes its place.
async fn passed_on(
    engine: &Weak<Engine>,
    agent: u32,
    question: &[u8],
    answer: Vec<u8>,
) -> Option<Vec<u8>> {
    let engine = engine.upgrade()?;
    let learnt = tokio::task::spawn_blocking(move || {
        let result = engine.learn(agent, &answer);
        result.map(|()| answer)
    });
    match learnt.await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(_)) | Err(_) => servfail(question),
    }
}

/// The agent that a port is for, and its name server.
async fn server(engine: &Weak<Engine>, port: u16) -> Option<(u32, SocketAddr)> {
    let engine = engine.upgrade()?;
    let found = tokio::task::spawn_blocking(move || engine.name_server(port)).await.ok()??;
    Some((found.0, SocketAddr::new(found.1, agent_ebpf::DNS_PORT)))
}

async fn datagrams(socket: Arc<UdpSocket>, port: u16, engine: Weak<Engine>, turns: Arc<Semaphore>) {
    let mut buffer = vec![0; MESSAGE_MAX];
    while engine.strong_count() > 0 {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            // An error of an earlier answer (ICMP): nobody waits for it any more.
            tokio::time::sleep(Duration::from_millis(1)).await;
            continue;
        };
        let Ok(turn) = turns.clone().try_acquire_owned() else { continue };
        let question = buffer.get(..length).unwrap_or_default().to_vec();
        let (socket, engine) = (socket.clone(), engine.clone());
        tokio::spawn(async move {
            let Some((agent, server)) = server(&engine, port).await else { return };
            let Ok(Ok(answer)) = timeout(PATIENCE, ask(server, &question)).await else { return };
            if let Some(answer) = passed_on(&engine, agent, &question, answer).await {
                let _ = socket.send_to(&answer, from).await;
            }
            drop(turn);
        });
    }
}

/// Asks a name server by datagram, under a number and from a port that nobody else knows.
async fn ask(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let from: IpAddr = match server.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((from, 0)).await?;
    socket.connect(server).await?;
    let [own, asked] = renumbered(question)?;
    let asked = Message::from_octets(asked).map_err(io::Error::other)?;
    socket.send(asked.as_slice()).await?;
    let mut buffer = vec![0; MESSAGE_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let bytes = buffer.get(..length).unwrap_or_default();
        let Ok(answer) = Message::from_slice(bytes) else { continue };
        if answer.is_answer(&asked) {
            let mut answer = bytes.to_vec();
            answer.splice(..2, own);
            return Ok(answer);
        }
    }
}

/// The number of a question, and the question under a random one.
fn renumbered(question: &[u8]) -> io::Result<[Vec<u8>; 2]> {
    let Some((own, rest)) = question.split_at_checked(2) else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    let [first, second, ..] = host::random()?.to_ne_bytes();
    Ok([own.to_vec(), [&[first, second], rest].concat()])
}

async fn connections(
    listener: TcpListener,
    port: u16,
    engine: Weak<Engine>,
    turns: Arc<Semaphore>,
) {
    while engine.strong_count() > 0 {
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(turn) = turns.clone().try_acquire_owned() else { continue };
        let engine = engine.clone();
        tokio::spawn(async move {
            let _ = relay(client, port, &engine).await;
            drop(turn);
        });
    }
}

/// Passes questions on as they come, and answers one by one.
async fn relay(client: TcpStream, port: u16, engine: &Weak<Engine>) -> io::Result<()> {
    let Some((agent, server)) = server(engine, port).await else { return Ok(()) };
    let upstream = timeout(PATIENCE, TcpStream::connect(server)).await??;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = upstream.into_split();
    let questions = async {
        tokio::io::copy(&mut from_client, &mut to_server).await?;
        to_server.shutdown().await
    };
    let answers = async {
        loop {
            let Ok(length) = timeout(IDLE, from_server.read_u16()).await? else { return Ok(()) };
            let mut answer = vec![0; usize::from(length)];
            from_server.read_exact(&mut answer).await?;
            // What the answer itself repeats of the question is enough for a failure.
            let question = answer.clone();
            let Some(answer) = passed_on(engine, agent, &question, answer).await else {
                return Ok(());
            };
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let answer = [&length.to_be_bytes()[..], &answer].concat();
            timeout(IDLE, to_client.write_all(&answer)).await??;
        }
    };
    tokio::pin!(questions, answers);
    tokio::select! {
        done = &mut answers => done,
        // Who has asked everything may still wait for answers.
        asked = &mut questions => match asked {
            Ok(()) => answers.await,
            Err(error) => Err(error),
        },
    }
}

/// The cookie of this process's network namespace (`SO_NETNS_COOKIE`, include/uapi/asm-generic/socket.h).
/// Before 5.14 nobody tells it; [`agent_ebpf::NETNS_INITIAL`] then, which is right where the initial one is
/// also that of the first process.
pub fn netns_cookie() -> Result<u64, ForwarderError> {
    match host::netns_cookie() {
        Ok(Some(cookie)) => Ok(cookie),
        Ok(None) => {
            let of = |path: &str| std::fs::read_link(path).map_err(ForwarderError::Netns);
            if of("/proc/1/ns/net")? == of("/proc/self/ns/net")? {
                Ok(agent_ebpf::NETNS_INITIAL)
            } else {
                Err(ForwarderError::Netns(io::Error::other(
                    "before Linux 5.14 that can be told of the host's own only; run ambitd there",
                )))
            }
        }
        Err(error) => Err(ForwarderError::Netns(error)),
    }
}
