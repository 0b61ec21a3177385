//! A name server of the tests': a small zone, over datagrams and connections.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result};
use domain::base::{Message, MessageBuilder, Name, Rtype, Ttl, iana::Rcode};
use domain::rdata::{A, Aaaa, Cname};

/// Where names are asked for.
pub const PORT: u16 = 53;
/// What a forged answer says.
pub const FORGED: &str = "127.77.9.66";

/// What an owner has.
#[derive(Clone, Debug)]
pub enum Data {
    /// An address.
    Address(IpAddr),
    /// It is an alias of this name.
    Alias(String),
}

/// A zone: owner, seconds to live, data. Some names answer in ways of their own: those that begin with `cut.`
/// with an answer whose end is missing, with `large.` by datagram with the mark that it did not fit, and with
/// `forged.` by datagram with another's answer before the right one.
#[derive(Clone, Debug, Default)]
pub struct Zone(Vec<(String, u32, Data)>);

impl Zone {
    /// With an address.
    pub fn address(mut self, owner: &str, seconds: u32, address: &str) -> Result<Self> {
        self.0.push((owner.to_owned(), seconds, Data::Address(address.parse()?)));
        Ok(self)
    }

    /// With an alias.
    #[must_use]
    pub fn alias(mut self, owner: &str, seconds: u32, of: &str) -> Self {
        self.0.push((owner.to_owned(), seconds, Data::Alias(of.to_owned())));
        self
    }

    /// Answers at an address until the tests end, which is where it is asked.
    pub fn serve(self, ip: &str) -> Result<String> {
        let at = SocketAddr::new(ip.parse()?, PORT);
        let datagrams = UdpSocket::bind(at).with_context(|| format!("cannot answer at {at}"))?;
        let connections = TcpListener::bind(at)?;
        let zone = Arc::new(self);
        let own = zone.clone();
        std::thread::spawn(move || -> Result<()> {
            let mut buffer = [0; 4096];
            loop {
                let (length, from) = datagrams.recv_from(&mut buffer)?;
                for answer in own.by_datagram(&buffer[..length]).unwrap_or_default() {
                    datagrams.send_to(&answer, from)?;
                }
            }
        });
        std::thread::spawn(move || {
            for stream in connections.incoming().flatten() {
                let zone = zone.clone();
                std::thread::spawn(move || zone.by_connection(stream));
            }
        });
        Ok(at.to_string())
    }

    fn by_datagram(&self, question: &[u8]) -> Result<Vec<Vec<u8>>> {
        let name = asked(question)?;
        let mut answers = Vec::new();
        if name.starts_with("forged.") {
            let forged = Self::default().address(&name, 60, FORGED)?;
            let mut answer = forged.answer(question)?;
            answer[0] ^= 0x55;
            answers.push(answer);
        }
        answers.push(if name.starts_with("large.") {
            let mut answer = Self::default().answer(question)?;
            answer[2] |= 0b10; // truncated
            answer
        } else {
            self.answer(question)?
        });
        Ok(answers)
    }

    fn by_connection(&self, mut stream: TcpStream) -> Result<()> {
        loop {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut question)?;
            let answer = self.answer(&question)?;
            let length = u16::try_from(answer.len())?;
            stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())?;
        }
    }

    fn answer(&self, question: &[u8]) -> Result<Vec<u8>> {
        let asked_for = Message::from_octets(question)?;
        let kind = asked_for.sole_question()?.qtype();
        let mut answer = MessageBuilder::new_vec().start_answer(&asked_for, Rcode::NOERROR)?;
        let mut owner = asked(question)?;
        // As far as aliases lead.
        loop {
            let own = self.0.iter().filter(|(of, ..)| *of == owner);
            let mut next = None;
            for (of, seconds, data) in own {
                let (of, seconds) = (Name::<Vec<u8>>::from_str(of)?, Ttl::from_secs(*seconds));
                match data {
                    Data::Alias(name) => {
                        let alias = Cname::new(Name::<Vec<u8>>::from_str(name)?);
                        answer.push((of, seconds, alias))?;
                        next = Some(name.clone());
                    }
                    Data::Address(IpAddr::V4(v4)) if kind == Rtype::A => {
                        answer.push((of, seconds, A::new(*v4)))?;
                    }
                    Data::Address(IpAddr::V6(v6)) if kind == Rtype::AAAA => {
                        answer.push((of, seconds, Aaaa::new(*v6)))?;
                    }
                    Data::Address(_) => {}
                }
            }
            match next {
                Some(name) => owner = name,
                None => break,
            }
        }
        let mut answer = answer.finish();
        if asked(question)?.starts_with("cut.") {
            answer.pop();
        }
        Ok(answer)
    }
}

/// The name that is asked for, in lower case.
fn asked(question: &[u8]) -> Result<String> {
    let question = Message::from_octets(question)?;
    Ok(question.sole_question()?.qname().to_string().to_lowercase())
}
