//! Asking name servers, and going where they say.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use domain::base::{Message, MessageBuilder, Name, Rtype, iana::Rcode};
use domain::rdata::{A, Aaaa};
use nix::errno::Errno;
use serde_json::{Value, json};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(8);

pub(super) fn step(words: &[&str]) -> Result<Option<Value>> {
    Ok(Some(match *words {
        // How: `udp` and `tcp` connect, `sendto` does not.
        ["ask", how, server, name] => told(&ask(how, server, name, Rtype::A)?),
        ["ask6", how, server, name] => told(&ask(how, server, name, Rtype::AAAA)?),
        // Nothing stands between the answer and what is made of it.
        ["ask-connect", how, server, name, port] => {
            let found = ask(how, server, name, Rtype::A)?;
            let address = *found.first().context("no address")?;
            let connected = TcpStream::connect(SocketAddr::new(address, port.parse()?));
            connected?;
            told(&found)
        }
        // Where a question goes in truth, noted in a file.
        ["server-of", server, note] => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(server)?;
            std::fs::write(note, socket.peer_addr()?.to_string())?;
            Value::Null
        }
        // Who asks once more, as real resolvers do, when the first answer did not fit.
        ["resolve", server, name] => match ask("udp", server, name, Rtype::A) {
            Ok(found) if !found.is_empty() => told(&found),
            Ok(_) => told(&ask("tcp", server, name, Rtype::A)?),
            Err(error) => return Err(error),
        },
        _ => return Ok(None),
    }))
}

fn told(found: &[IpAddr]) -> Value {
    json!({ "found": found.iter().map(ToString::to_string).collect::<Vec<_>>() })
}

/// The addresses of a name. A server failure is `EREMOTEIO`, an answer from elsewhere `EPROTO`.
fn ask(how: &str, server: &str, name: &str, kind: Rtype) -> Result<Vec<IpAddr>> {
    let server: SocketAddr = server.parse()?;
    let mut question = MessageBuilder::new_vec();
    question.header_mut().set_id(0x4d42);
    question.header_mut().set_rd(true);
    let mut question = question.question();
    question.push((Name::<Vec<u8>>::from_str(name)?, kind))?;
    let question = question.finish();
    let answer = if how == "tcp" {
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = u16::try_from(question.len())?;
        stream.write_all(&[&length.to_be_bytes()[..], &question].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer)?;
        answer
    } else {
        let own: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((own, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        if how == "udp" {
            socket.connect(server)?;
            socket.send(&question)?;
        } else {
            socket.send_to(&question, server)?;
        }
        let mut answer = vec![0; 4096];
        let (length, from) = socket.recv_from(&mut answer)?;
        if from != server {
            return Err(Errno::EPROTO.into());
        }
        answer.truncate(length);
        answer
    };
    let answer = Message::from_octets(answer).map_err(|_| Errno::EBADMSG)?;
    if answer.header().rcode() == Rcode::SERVFAIL {
        return Err(Errno::EREMOTEIO.into());
    }
    let mut found = Vec::new();
    for record in answer.answer()? {
        let record = record?;
        if let Some(record) = record.to_record::<A>()? {
            found.push(record.data().addr().into());
        }
        if let Some(record) = record.to_record::<Aaaa>()? {
            found.push(record.data().addr().into());
        }
    }
    Ok(found)
}
