//! Messages of upstreams.

use crate::{
    seeds, subject,
    wire::{self, Header, Question, Record, rtype},
};
use std::sync::LazyLock;

/// Under which the upstream was asked.
const ID: u16 = 0x4d53;

static QUERIES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(seeds::queries_of_others);

/// The longest that anything is remembered, how long it is good for after that, and the TTLs that it has then; in seconds.
const MAX_LIFETIME: u32 = 3600;
const STALE: u32 = 3600;
const STALE_TTL: u32 = 30;
/// The longest message that is remembered.
const MAX_LEN: usize = 4096;

/// The first octet says to which query the rest, a message, comes in; the next two how many seconds later it is asked for again.
pub fn reply(input: &[u8]) {
    let [how, s1, s0, message @ ..] = input else { return };
    let (any_id, exact) = (how & 0x80 != 0, how & 0x40 != 0);
    let query = &QUERIES[usize::from(how & 0x3f) % QUERIES.len()];
    let later = u16::from_be_bytes([*s1, *s0]);
    let mut message = message.to_vec();
    // Two octets are not worth guessing, most of the time.
    if let Some(id) = message.first_chunk_mut().filter(|_| !any_id) {
        *id = ID.to_be_bytes();
    }
    let asked = Question::read(query).expect("a query of ours");
    let relayed = subject::relayed(query, ID, &message, exact, later);
    assert_eq!(relayed.is_some(), is_answer(&message, asked, exact), "whether it is believed");
    let Some(relayed) = relayed else { return };

    // All that is changed is the client's own.
    let [header, of_client, fresh] =
        [&message, query, &relayed.fresh].map(|message| Header::read(message).expect("a header"));
    assert_eq!(fresh, Header { id: of_client.id, recursion_available: true, ..header });
    let end = wire::HEADER + asked.octets.len();
    assert_eq!(&relayed.fresh[wire::HEADER..end], asked.octets);
    assert_eq!(relayed.fresh[end..], message[end..]);

    let records = wire::records(&message);
    let lifetime =
        relayed.lifetime.filter(|_| message.len() <= MAX_LEN).map(|seconds| seconds.min(MAX_LIFETIME));
    let until = |more: u32| lifetime.is_some_and(|seconds| u32::from(later) < seconds + more);
    assert_eq!(relayed.remembered.is_some(), until(0), "whether it is remembered");
    assert_eq!(relayed.stale.is_some(), until(STALE), "whether it is better than nothing");
    let Some(records) = records else {
        assert_eq!(relayed.lifetime, None, "what can't be read is remembered");
        return;
    };
    if let Some(seconds) = relayed.lifetime {
        longest(&message, header, &records, seconds);
    }
    let with_ttls = |ttl: &dyn Fn(u32) -> u32| {
        let mut with = relayed.fresh.clone();
        for record in records.iter().filter(|record| record.rtype != rtype::OPT) {
            let ttl = ttl(effective(record.ttl));
            with[record.ttl_at..record.ttl_at + 4].copy_from_slice(&ttl.to_be_bytes());
        }
        with
    };
    if let Some(remembered) = &relayed.remembered {
        assert_eq!(*remembered, with_ttls(&|ttl| ttl.saturating_sub(later.into())), "after {later} s");
    }
    if let Some(stale) = &relayed.stale {
        assert_eq!(*stale, with_ttls(&|_| STALE_TTL));
    }
}

/// Whether a message is the answer to what was asked: a response of that ID to that question, in its letters or in whatever.
fn is_answer(message: &[u8], asked: Question<'_>, exact: bool) -> bool {
    let Some(header) = Header::read(message) else { return false };
    let same = |question: &[u8]| {
        let (name, kind) = question.split_at(question.len() - 4);
        let (of_name, of_kind) = asked.octets.split_at(question.len() - 4);
        kind == of_kind && if exact { name == of_name } else { name.eq_ignore_ascii_case(of_name) }
    };
    let question = message.get(wire::HEADER..wire::HEADER + asked.octets.len());
    let addressed = header.id == ID && header.response && header.opcode == 0 && header.counts[0] == 1;
    addressed && question.is_some_and(same)
}

/// Nothing is remembered for longer than anybody said.
fn longest(message: &[u8], header: Header, records: &[Record], seconds: u32) {
    assert!(seconds > 0 && !header.truncated && matches!(header.rcode, 0 | 3));
    let mut timed = records.iter().filter(|record| record.rtype != rtype::OPT);
    if header.rcode == 0 && header.counts[1] > 0 {
        assert!(timed.all(|record| effective(record.ttl) >= seconds), "longer than a record");
        return;
    }
    let minimum = |soa: &Record| {
        let data = &message[soa.data.clone()];
        data.last_chunk().map_or(0, |octets| effective(u32::from_be_bytes(*octets)))
    };
    let said = timed.any(|record| {
        let is_soa = record.rtype == rtype::SOA && record.section == 1;
        is_soa && effective(record.ttl).min(minimum(record)) >= seconds
    });
    assert!(said, "absence for longer than its SOA says");
}

/// A TTL with its highest bit set is 0 (RFC 2181, 8).
fn effective(ttl: u32) -> u32 {
    if ttl >> 31 == 0 { ttl } else { 0 }
}
