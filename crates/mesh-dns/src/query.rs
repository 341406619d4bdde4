//! Reading a query.

use crate::{
    name::QueryName,
    wire::{CLASS_IN, DNSSEC_OK, HEADER_LEN, Rcode, flag, rtype, skip_name, u16_at, u32_at},
};

/// The first two words of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Tells an answer's query.
    pub(crate) id: u16,
    /// See [`flag`].
    pub(crate) flags: u16,
}

/// What an OPT record says (RFC 6891).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edns {
    /// Octets that the client takes over UDP.
    pub(crate) udp_len: u16,
    /// The version that the client speaks.
    pub(crate) version: u8,
    /// The client wants DNSSEC records.
    pub(crate) dnssec_ok: bool,
}

/// A query that can be answered.
pub(crate) struct Query<'a> {
    pub(crate) header: Header,
    /// Name, type and class as the client wrote them.
    pub(crate) question: &'a [u8],
    pub(crate) name: QueryName,
    pub(crate) qtype: u16,
    pub(crate) edns: Option<Edns>,
}

/// A message that is no query that can be answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Rejection<'a> {
    /// Not to be answered at all: no header, or an answer itself (two servers must not talk for ever).
    Ignore,
    /// Answered with an error; the question is empty if there is none that can be read.
    Reply { header: Header, question: &'a [u8], rcode: Rcode },
}

impl<'a> Query<'a> {
    pub(crate) fn parse(message: &'a [u8]) -> Result<Self, Rejection<'a>> {
        let header = match (u16_at(message, 0), u16_at(message, 2)) {
            (Some(id), Some(flags)) if message.len() >= HEADER_LEN => Header { id, flags },
            _ => return Err(Rejection::Ignore),
        };
        if header.flags & flag::RESPONSE != 0 {
            return Err(Rejection::Ignore);
        }
        let reject = |question, rcode| Rejection::Reply { header, question, rcode };
        if header.flags & flag::OPCODE != 0 {
            return Err(reject(&[], Rcode::NotImp));
        }
        let count = |at| u16_at(message, at).unwrap_or(0);
        if (count(4), count(6), count(8)) != (1, 0, 0) {
            return Err(reject(&[], Rcode::FormErr));
        }
        let (name, question, qtype, qclass) =
            parse_question(message).ok_or_else(|| reject(&[], Rcode::FormErr))?;
        let edns = parse_additional(message, HEADER_LEN + question.len(), count(10))
            .ok_or_else(|| reject(question, Rcode::FormErr))?;
        match qtype {
            0 | rtype::OPT => return Err(reject(question, Rcode::FormErr)),
            qtype if rtype::META.contains(&qtype) => return Err(reject(question, Rcode::Refused)),
            _ if qclass != CLASS_IN => return Err(reject(question, Rcode::Refused)),
            _ => {}
        }
        Ok(Self { header, question, name, qtype, edns })
    }
}

fn parse_question(message: &[u8]) -> Option<(QueryName, &[u8], u16, u16)> {
    let (name, end) = QueryName::parse(message, HEADER_LEN)?;
    let question = message.get(HEADER_LEN..end + 4)?;
    Some((name, question, u16_at(message, end)?, u16_at(message, end + 2)?))
}

/// Looks through the additional section for an OPT record. None if it is malformed, has two of them, or if
/// something follows it.
fn parse_additional(message: &[u8], mut at: usize, count: u16) -> Option<Option<Edns>> {
    let mut edns = None;
    for _ in 0..count {
        let fixed = skip_name(message, at)?;
        let end = fixed + 10 + usize::from(u16_at(message, fixed + 8)?);
        if end > message.len() {
            return None;
        }
        if u16_at(message, fixed)? == rtype::OPT {
            let ttl = u32_at(message, fixed + 4)?;
            let found = Edns {
                udp_len: u16_at(message, fixed + 2)?,
                version: (ttl >> 16) as u8,
                dnssec_ok: ttl & DNSSEC_OK != 0,
            };
            // Its owner is the root (RFC 6891, 6.1.2).
            if message[at] != 0 || edns.replace(found).is_some() {
                return None;
            }
        }
        at = end;
    }
    (at == message.len()).then_some(edns)
}
