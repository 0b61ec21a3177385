//! The control socket: one line of JSON asks, one line answers.
//!
//! The kernel says who calls (`SO_PEERCRED`): only root, and no process of an agent, root or not.

use std::{
    fs, io,
    io::{BufRead, BufReader, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt},
    net::UnixListener,
    sync::mpsc,
};

use crate::authority::{Engine, EngineError, RunRequest};

/// Longest request in bytes: a policy of the largest size, in JSON.
const MAX_REQUEST: usize = 32 << 20;

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Are you there?
    Ping,
    /// Begin an agent; it is held until the connection closes.
    Run(RunRequest),
    /// What came of an agent.
    Finish {
        /// Its number.
        number: u32,
    },
    /// End an agent's processes.
    Stop {
        /// Its name.
        agent: String,
    },
    /// Who runs.
    Agents,
    /// What is covered.
    Doctor,
    /// Take the policy anew.
    Reload,
    /// Remove everything and end.
    Detach,
}

/// Why a question found no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error(
        "no ambitd runs (nobody listens at {socket}); `ambit run` starts one, or `ambitd` does"
    )]
    Absent {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket could not be used.
    #[error("cannot talk to ambitd at {socket}: {source}")]
    Io {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The daemon refused.
    #[error("{0}")]
    Refused(String),
    /// The answer was not understood.
    #[error("ambitd answered something that this build does not know: {0}")]
    Unknown(String),
}

/// A connection to the daemon.
pub struct Client {
    socket: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects.
    pub fn connect(socket: &Path) -> Result<Self, ControlError> {
        match UnixStream::connect(socket) {
            Ok(stream) => Ok(Self { socket: socket.to_path_buf(), stream: BufReader::new(stream) }),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Err(ControlError::Absent { socket: socket.to_path_buf() })
            }
            Err(source) => Err(ControlError::Io { socket: socket.to_path_buf(), source }),
        }
    }

    /// Asks one question.
    pub fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T, ControlError> {
        let socket = self.socket.clone();
        let failed = move |source| ControlError::Io { socket: socket.clone(), source };
        let mut line = serde_json::to_vec(request).map_err(io::Error::other).map_err(&failed)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(&failed)?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer).map_err(&failed)?;
        if answer.is_empty() {
            return Err(failed(io::Error::other("it closed the connection without an answer")));
        }
        let answer: Result<serde_json::Value, String> = serde_json::from_str(&answer)
            .map_err(|error| ControlError::Unknown(error.to_string()))?;
        let value = answer.map_err(ControlError::Refused)?;
        serde_json::from_value(value).map_err(|error| ControlError::Unknown(error.to_string()))
    }
}

/// What a caller may make the daemon do to itself.
#[derive(Debug, PartialEq, Eq)]
pub enum Order {
    /// Remove everything and end.
    Detach,
}

/// Opens the socket, only for root. A stale one is replaced: the daemon's lock says that it is alone.
pub fn listen(socket: &Path) -> io::Result<UnixListener> {
    let _ = fs::remove_file(socket);
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until the task is dropped.
pub async fn serve(listener: UnixListener, engine: Arc<Engine>, orders: mpsc::Sender<Order>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (engine, orders) = (engine.clone(), orders.clone());
                tokio::spawn(async move { answer(stream, engine, orders).await });
            }
            // Out of descriptors, say: it passes.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn answer(stream: tokio::net::UnixStream, engine: Arc<Engine>, orders: mpsc::Sender<Order>) {
    let caller = stream.peer_cred().ok().map(|peer| (peer.uid(), peer.pid()));
    let pid = caller.and_then(|(_, pid)| pid).map_or(0, i32::unsigned_abs);
    let (reader, mut writer) = stream.into_split();
    let mut reader = tokio::io::BufReader::new(reader);
    let mut held = Vec::new();
    let allowed = match caller {
        Some((0, Some(_))) => {
            let engine = engine.clone();
            tokio::task::spawn_blocking(move || engine.is_agent(pid)).await.ok()
        }
        _ => None,
    };
    let refusal = match allowed {
        Some(Ok(false)) => None,
        Some(Ok(true)) => Some("a process of an agent may not use the control socket"),
        Some(Err(_)) | None => Some("only root may use the control socket"),
    };
    let mut line = Vec::new();
    loop {
        line.clear();
        match read_line(&mut reader, &mut line).await {
            Ok(true) => {}
            Ok(false) | Err(_) => break,
        }
        let answer: Result<serde_json::Value, String> = match refusal {
            Some(why) => Err(why.to_owned()),
            None => match serde_json::from_slice::<Request>(&line) {
                Ok(request) => {
                    let detach = matches!(request, Request::Detach);
                    let engine = engine.clone();
                    let done =
                        tokio::task::spawn_blocking(move || perform(&engine, request, pid)).await;
                    if detach {
                        let _ = orders.send(Order::Detach).await;
                    }
                    match done {
                        Ok(Ok((value, number))) => {
                            held.extend(number);
                            Ok(value)
                        }
                        Ok(Err(error)) => Err(error.to_string()),
                        Err(error) => Err(error.to_string()),
                    }
                }
                Err(error) => Err(format!("not a request that this build knows: {error}")),
            },
        };
        let mut bytes = serde_json::to_vec(&answer).unwrap_or_default();
        bytes.push(b'\n');
        if writer.write_all(&bytes).await.is_err() || refusal.is_some() {
            break;
        }
    }
    for number in held {
        engine.release(number);
    }
}

/// Reads a line of bounded length; false at the end.
async fn read_line(
    reader: &mut tokio::io::BufReader<tokio::net::unix::OwnedReadHalf>,
    line: &mut Vec<u8>,
) -> io::Result<bool> {
    loop {
        let (found, used) = {
            let bytes = reader.fill_buf().await?;
            if bytes.is_empty() {
                return Ok(false);
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let used = end.map_or(bytes.len(), |end| end + 1);
            line.extend_from_slice(&bytes[..used]);
            (end.is_some(), used)
        };
        reader.consume(used);
        if found {
            return Ok(true);
        }
        if line.len() > MAX_REQUEST {
            return Err(io::Error::other("the request is too long"));
        }
    }
}

type Performed = (serde_json::Value, Option<u32>);

fn perform(engine: &Engine, request: Request, caller: u32) -> Result<Performed, EngineError> {
    fn json(value: impl Serialize) -> Result<serde_json::Value, EngineError> {
        serde_json::to_value(value).map_err(|error| EngineError::Request(error.to_string()))
    }
    let value = match request {
        Request::Ping | Request::Detach => json(std::process::id())?,
        Request::Run(run) => {
            let started = engine.run(run, caller)?;
            return Ok((json(&started)?, Some(started.number)));
        }
        Request::Finish { number } => json(engine.finish(number))?,
        Request::Stop { agent } => json(engine.stop_agent(&agent)?)?,
        Request::Agents => json(engine.running())?,
        Request::Doctor => json(engine.summary())?,
        Request::Reload => json(engine.reload()?)?,
    };
    Ok((value, None))
}
