//! Judging and patching what an upstream sent.

use crate::{
    query::Header,
    wire::{HEADER_LEN, Rcode, flag, rtype, skip_name, u16_at, u32_at},
};

/// The shortest data of an SOA record: two names and five numbers (RFC 1035, 3.3.13).
const SOA_LEN: usize = 22;

/// Whether a message answers a query with this ID and question: an error may come without the question (RFC 1035 does not say;
/// servers that can't read a query do so). The name's letters may differ in case, unless `exact`.
pub(super) fn answers(reply: &[u8], id: u16, asked: &[u8], exact: bool) -> bool {
    let Some(flags) = u16_at(reply, 2).filter(|_| reply.len() >= HEADER_LEN) else { return false };
    if u16_at(reply, 0) != Some(id) || flags & flag::RESPONSE == 0 || flags & flag::OPCODE != 0 {
        return false;
    }
    match u16_at(reply, 4) {
        // Only the name's letters may differ in case; type and class are numbers.
        Some(1) => reply.get(HEADER_LEN..HEADER_LEN + asked.len()).is_some_and(|question| {
            let (name, kind) = question.split_at(question.len() - 4);
            let (asked_name, asked_kind) = asked.split_at(question.len() - 4);
            (name == asked_name || !exact && name.eq_ignore_ascii_case(asked_name)) && kind == asked_kind
        }),
        Some(0) => reply.len() == HEADER_LEN && !is_conclusive(reply),
        _ => false,
    }
}

/// Whether the upstream had an answer, rather than a failure of its own that another may not share.
pub(super) fn is_conclusive(reply: &[u8]) -> bool {
    let rcode = u16_at(reply, 2).unwrap_or(0) & flag::RCODE;
    rcode == Rcode::NoError as u16 || rcode == Rcode::NxDomain as u16
}

/// Whether the upstream knows no such name.
pub(super) fn is_absence(reply: &[u8]) -> bool {
    u16_at(reply, 2).unwrap_or(0) & flag::RCODE == Rcode::NxDomain as u16
}

/// Whether that name is the one that was asked for: behind aliases it is another (RFC 6604, 2.1), and the alias is there.
pub(super) fn is_absence_of_all_types(reply: &[u8]) -> bool {
    is_absence(reply) && u16_at(reply, 6) == Some(0)
}

/// Whether there are records of what was asked for, or an alias.
pub(super) fn has_answers(reply: &[u8]) -> bool {
    u16_at(reply, 6).is_some_and(|answers| answers > 0)
}

/// Whether there is more of it over TCP.
pub(super) fn is_truncated(reply: &[u8]) -> bool {
    u16_at(reply, 2).is_some_and(|flags| flags & flag::TRUNCATED != 0)
}

/// Makes a reply the client's own: its ID, its spelling of the question, and that recursion is to be had here.
pub(super) fn address_to(reply: &mut [u8], header: Header, question: &[u8]) {
    let flags = u16_at(reply, 2).unwrap_or(0) | flag::RECURSION_AVAILABLE;
    reply[..2].copy_from_slice(&header.id.to_be_bytes());
    reply[2..4].copy_from_slice(&flags.to_be_bytes());
    if let Some(place) = reply.get_mut(HEADER_LEN..HEADER_LEN + question.len()) {
        place.copy_from_slice(question);
    }
}

/// For how many seconds a reply may be remembered: the lowest TTL of its records, or what its SOA says if there
/// is no such data or name (RFC 2308, 5). None if not at all.
pub(super) fn lifetime(reply: &[u8]) -> Option<u32> {
    if !is_conclusive(reply) || is_truncated(reply) {
        return None;
    }
    let mut lowest = None;
    let mut soa = None;
    let complete = walk(reply, |record, is_authority| {
        let ttl = effective(record.ttl);
        lowest = Some(lowest.map_or(ttl, |lowest: u32| lowest.min(ttl)));
        if record.rtype == rtype::SOA && is_authority && record.end - record.data_at >= SOA_LEN {
            let minimum = u32_at(reply, record.end - 4).unwrap_or(0);
            soa = Some(ttl.min(effective(minimum)));
        }
    });
    complete?;
    let answered = u16_at(reply, 6)? > 0 && u16_at(reply, 2)? & flag::RCODE == Rcode::NoError as u16;
    // Without an SOA nobody said that the data is not there: it may be a referral.
    if answered { lowest } else { soa }.filter(|seconds| *seconds > 0)
}

/// Has every TTL be another.
pub(super) fn change_ttls(reply: &mut [u8], change: impl Fn(u32) -> u32) {
    let Some(mut at) = first_record(reply) else { return };
    for _ in 0..counts(reply).into_iter().sum() {
        let Some(record) = Record::read(reply, at) else { return };
        if record.rtype != rtype::OPT {
            let ttl = change(effective(record.ttl));
            reply[record.ttl_at..record.ttl_at + 4].copy_from_slice(&ttl.to_be_bytes());
        }
        at = record.end;
    }
}

/// A TTL with its highest bit set is 0 (RFC 2181, 8).
fn effective(ttl: u32) -> u32 {
    if ttl >> 31 == 0 { ttl } else { 0 }
}

struct Record {
    rtype: u16,
    ttl: u32,
    ttl_at: usize,
    /// Where its data starts and ends.
    data_at: usize,
    end: usize,
}

impl Record {
    /// The record that starts at `at`; none if it is cut off.
    fn read(reply: &[u8], at: usize) -> Option<Self> {
        let fixed = skip_name(reply, at)?;
        let end = fixed + 10 + usize::from(u16_at(reply, fixed + 8)?);
        reply.get(fixed..end)?;
        Some(Self {
            rtype: u16_at(reply, fixed)?,
            ttl: u32_at(reply, fixed + 4)?,
            ttl_at: fixed + 4,
            data_at: fixed + 10,
            end,
        })
    }
}

/// Where the first record starts.
fn first_record(reply: &[u8]) -> Option<usize> {
    if u16_at(reply, 4)? == 1 { Some(skip_name(reply, HEADER_LEN)? + 4) } else { Some(HEADER_LEN) }
}

/// Answers, authorities, additional records.
fn counts(reply: &[u8]) -> [u32; 3] {
    [6, 8, 10].map(|at| u32::from(u16_at(reply, at).unwrap_or(0)))
}

/// Visits the records that have a TTL (OPT has none), and says which are in the authority section. None if the message is
/// malformed.
fn walk(reply: &[u8], mut visit: impl FnMut(Record, bool)) -> Option<()> {
    let mut at = first_record(reply)?;
    let [answers, authorities, additionals] = counts(reply);
    for index in 0..answers + authorities + additionals {
        let record = Record::read(reply, at)?;
        at = record.end;
        if record.rtype != rtype::OPT {
            visit(record, (answers..answers + authorities).contains(&index));
        }
    }
    Some(())
}
