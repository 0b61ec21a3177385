//! What a name server's answer tells: addresses, and every name under which they were asked for.

use std::collections::BTreeSet;
use std::net::IpAddr;

use domain::{
    base::{
        Message, ParsedName, Rtype,
        iana::{Class, Rcode},
        name::ToName,
        wire::ParseError,
    },
    rdata::{A, Aaaa, Cname},
};

use crate::policy::hosts;

/// The shortest life of an answer: one that may not be kept at all is for the transaction in progress
/// (RFC 1035, section 3.2.1), which has this long to connect.
const SHORTEST: u32 = 1;

/// The most aliases on the way to an address: name servers themselves follow some 11 to 20.
const ALIASES_MAX: usize = 32;
/// The most names of addresses in one answer, each counted for each address.
const NAMES_MAX: usize = 512;
/// The longest life of an answer, a day: what is asked for as rarely can be asked for again.
const LONGEST: u32 = 86_400;

/// An address, its names and for how many seconds they are good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The address.
    pub address: IpAddr,
    /// Its own name and all that are aliases of it, in lower case.
    pub names: BTreeSet<String>,
    /// The shortest of the lives of the records that lead to it, in seconds.
    pub seconds: u32,
}

/// Why an answer is not passed on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is no DNS message.
    #[error("it is no DNS message: {0}")]
    Malformed(String),
    /// It has more than is asked for, or more than anybody needs.
    #[error("it has {0}")]
    Strange(String),
    /// An address has a name that policies cannot speak of.
    #[error("{0:?} has an address, and is no host's name: {1}")]
    Name(String, String),
}

impl From<ParseError> for Unreadable {
    fn from(error: ParseError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// An alias: its name, what it stands for, and its seconds.
type Alias = (String, String, u32);

/// Reads an answer. An error of the server's, and an answer without addresses, tell nothing.
///
/// # Errors
/// What would be passed on could not be understood here, and may be there.
pub fn told(message: &[u8]) -> Result<Vec<Told>, Unreadable> {
    let message = Message::from_slice(message)
        .map_err(|_| Unreadable::Malformed("its header is cut off".to_owned()))?;
    let header = message.header();
    if !header.qr() || header.rcode() != Rcode::NOERROR {
        return Ok(Vec::new());
    }
    let mut addresses: Vec<(String, IpAddr, u32)> = Vec::new();
    let mut aliases: Vec<Alias> = Vec::new();
    for record in message.answer()? {
        let record = record?;
        if record.class() != Class::IN {
            continue;
        }
        // RFC 2181, section 8: a life with the highest bit set is none.
        let seconds = i32::try_from(record.ttl().as_secs()).map_or(0, i32::unsigned_abs);
        let owner = text(&record.owner());
        match record.rtype() {
            Rtype::A => {
                if let Some(record) = record.to_record::<A>()? {
                    addresses.push((owner, record.data().addr().into(), seconds));
                }
            }
            Rtype::AAAA => {
                if let Some(record) = record.to_record::<Aaaa>()? {
                    addresses.push((owner, record.data().addr().into(), seconds));
                }
            }
            Rtype::CNAME => {
                if let Some(record) = record.to_record::<Cname<ParsedName<&[u8]>>>()? {
                    aliases.push((owner, text(record.data().cname()), seconds));
                }
            }
            _ => {}
        }
    }
    if addresses.is_empty() {
        return Ok(Vec::new());
    }
    let asked = text(message.sole_question()?.qname());
    let way = way(asked, &aliases)?;
    let mut found = Vec::new();
    let mut count = 0;
    for (owner, address, seconds) in addresses {
        let Some(at) = way.iter().position(|(name, _)| *name == owner) else {
            let strange = format!("an address of {owner:?}, to which the question does not lead");
            return Err(Unreadable::Strange(strange));
        };
        let way = way.get(..=at).unwrap_or_default();
        count += way.len();
        if count > NAMES_MAX {
            return Err(Unreadable::Strange(format!("more than {NAMES_MAX} names of addresses")));
        }
        for (name, _) in way {
            hosts::lawful(name).map_err(|why| Unreadable::Name(name.clone(), why))?;
        }
        let shortest = way.iter().map(|(_, life)| *life).fold(seconds, u32::min);
        let names = way.iter().map(|(name, _)| name.clone()).collect();
        found.push(Told { address, names, seconds: shortest.clamp(SHORTEST, LONGEST) });
    }
    Ok(found)
}

/// The names from the one that was asked for to the last that it is an alias of, each with the life of the alias
/// that leads to it.
fn way(asked: String, aliases: &[Alias]) -> Result<Vec<(String, u32)>, Unreadable> {
    let mut way = vec![(asked, u32::MAX)];
    while let Some((last, _)) = way.last()
        && let Some((_, of, life)) = aliases.iter().find(|(alias, ..)| alias == last)
    {
        // In a ring.
        if way.iter().any(|(name, _)| name == of) {
            break;
        }
        if way.len() > ALIASES_MAX {
            return Err(Unreadable::Strange(format!("more than {ALIASES_MAX} aliases in a row")));
        }
        way.push((of.clone(), *life));
    }
    Ok(way)
}

/// A name in lower case, without the dot at its end. A byte that no host's name has stays one.
fn text(name: &impl ToName) -> String {
    let labels = name.iter_labels().filter(|label| !label.is_root());
    let labels: Vec<String> = labels
        .map(|label| {
            // A dot within a label is no dot between labels.
            let byte = |byte: &u8| if *byte == b'.' { '?' } else { char::from(*byte) };
            label.as_slice().iter().map(byte).collect::<String>().to_ascii_lowercase()
        })
        .collect();
    labels.join(".")
}

/// The answer to a question that could not be answered (RFC 1035, section 4.1.1: server failure).
pub fn servfail(question: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_slice(question).ok()?;
    let end = message.question().answer().ok()?.pos();
    let mut answer = question.get(..end)?.to_vec();
    let header = answer.get_mut(..12)?;
    // Kept: opcode and whether recursion was asked for. Set: that it is an answer, that recursion is to be
    // had, the error.
    header[2] = (header[2] & 0b0111_1001) | 0b1000_0000;
    header[3] = 0b1000_0010;
    // No records but the question.
    header[6..].fill(0);
    Some(answer)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use domain::base::{MessageBuilder, Name, Ttl, message_builder::AnswerBuilder};

    use super::*;

    type Answer = AnswerBuilder<Vec<u8>>;

    fn name(text: &str) -> Name<Vec<u8>> {
        Name::from_str(text).unwrap()
    }

    fn message(of: &str, rcode: Rcode, build: impl FnOnce(&mut Answer)) -> Vec<u8> {
        let mut question = MessageBuilder::new_vec().question();
        question.header_mut().set_qr(true);
        question.header_mut().set_rcode(rcode);
        question.push((name(of), Rtype::A)).unwrap();
        let mut answer = question.answer();
        build(&mut answer);
        answer.finish()
    }

    fn seconds(seconds: u32) -> Ttl {
        Ttl::from_secs(seconds)
    }

    fn told_one(address: &str, names: &[&str], seconds: u32) -> Told {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Told { address: address.parse().unwrap(), names, seconds }
    }

    #[test]
    fn an_address_has_every_name_on_the_way_to_it_for_the_shortest_life() {
        let bytes = message("WWW.example.com", Rcode::NOERROR, |answer| {
            // In no particular order, as servers may send them.
            answer
                .push((
                    name("edge.example.net"),
                    seconds(300),
                    A::new("192.0.2.7".parse().unwrap()),
                ))
                .unwrap();
            answer
                .push((name("cdn.example.org"), seconds(20), Cname::new(name("Edge.Example.net"))))
                .unwrap();
            answer
                .push((name("www.example.com"), seconds(60), Cname::new(name("cdn.example.org"))))
                .unwrap();
            answer
                .push((
                    name("edge.example.net"),
                    seconds(10),
                    Aaaa::new("2001:db8::7".parse().unwrap()),
                ))
                .unwrap();
        });
        let all = ["cdn.example.org", "edge.example.net", "www.example.com"];
        assert_eq!(
            told(&bytes).unwrap(),
            [told_one("192.0.2.7", &all, 20), told_one("2001:db8::7", &all, 10),]
        );
    }

    #[test]
    fn aliases_in_a_ring_end_and_lives_have_bounds() {
        let bytes = message("a.example", Rcode::NOERROR, |answer| {
            answer.push((name("a.example"), seconds(5), Cname::new(name("b.example")))).unwrap();
            answer.push((name("b.example"), seconds(5), Cname::new(name("a.example")))).unwrap();
            answer
                .push((name("a.example"), seconds(u32::MAX), A::new("192.0.2.1".parse().unwrap())))
                .unwrap();
        });
        assert_eq!(told(&bytes).unwrap(), [told_one("192.0.2.1", &["a.example"], 1)]);
    }

    #[test]
    fn what_the_question_does_not_lead_to_is_not_taken() {
        let address = || A::new("192.0.2.66".parse().unwrap());
        let bytes = message("a.evil", Rcode::NOERROR, |answer| {
            answer.push((name("a.evil"), seconds(60), address())).unwrap();
            answer.push((name("api.example.com"), seconds(60), address())).unwrap();
        });
        assert!(matches!(told(&bytes), Err(Unreadable::Strange(_))));
        let bytes = message("a.example", Rcode::NOERROR, |answer| {
            for index in 0..=ALIASES_MAX {
                let alias = Cname::new(name(&format!("a{}.example", index + 1)));
                let owner =
                    if index == 0 { "a.example".to_owned() } else { format!("a{index}.example") };
                answer.push((name(&owner), seconds(60), alias)).unwrap();
            }
            answer.push((name("a.example"), seconds(60), address())).unwrap();
        });
        assert!(matches!(told(&bytes), Err(Unreadable::Strange(why)) if why.contains("aliases")));
        let bytes = message("a.example", Rcode::NOERROR, |answer| {
            for _ in 0..=NAMES_MAX {
                answer.push((name("a.example"), seconds(60), address())).unwrap();
            }
        });
        assert!(matches!(told(&bytes), Err(Unreadable::Strange(why)) if why.contains("names")));
        let bytes = message("a.example", Rcode::NOERROR, |answer| {
            answer.push((name("a.example"), seconds(1_000_000), address())).unwrap();
        });
        assert_eq!(told(&bytes).unwrap(), [told_one("192.0.2.66", &["a.example"], LONGEST)]);
    }

    #[test]
    fn errors_and_questions_tell_nothing() {
        let refused = message("a.example", Rcode::REFUSED, |answer| {
            answer
                .push((name("a.example"), seconds(5), A::new("192.0.2.1".parse().unwrap())))
                .unwrap();
        });
        assert_eq!(told(&refused), Ok(Vec::new()));
        let mut question = message("a.example", Rcode::NOERROR, |_| {});
        question[2] &= 0x7f;
        assert_eq!(told(&question), Ok(Vec::new()));
    }

    #[test]
    fn what_is_not_understood_is_not_passed_on() {
        let whole = message("a.example", Rcode::NOERROR, |answer| {
            answer
                .push((name("a.example"), seconds(5), A::new("192.0.2.1".parse().unwrap())))
                .unwrap();
        });
        assert!(matches!(told(&whole[..whole.len() - 1]), Err(Unreadable::Malformed(_))));
        assert!(matches!(told(&whole[..11]), Err(Unreadable::Malformed(_))));
        // A dot within a label, and a byte that no host's name has.
        for odd in ["a\\.b.example", "a\\032b.example"] {
            let bytes = message(odd, Rcode::NOERROR, |answer| {
                answer.push((name(odd), seconds(5), A::new("192.0.2.1".parse().unwrap()))).unwrap();
            });
            assert!(matches!(told(&bytes), Err(Unreadable::Name(..))), "{odd}");
        }
    }

    #[test]
    fn a_failure_has_the_question_and_no_answer() {
        let mut question = MessageBuilder::new_vec();
        question.header_mut().set_id(0x1234);
        question.header_mut().set_rd(true);
        let mut question = question.question();
        question.push((name("a.example"), Rtype::AAAA)).unwrap();
        let bytes = question.finish();
        let failure = servfail(&bytes).unwrap();
        let (failure, question) =
            (Message::from_octets(failure).unwrap(), Message::from_octets(bytes).unwrap());
        assert!(failure.is_answer(&question));
        assert_eq!(failure.header().rcode(), Rcode::SERVFAIL);
        assert!(failure.header().rd() && failure.header().ra());
        assert_eq!(failure.header_counts().ancount(), 0);
        assert_eq!(servfail(&[0; 5]), None);
    }
}
