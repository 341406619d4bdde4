//! Under what answers are remembered.

use crate::{
    subject,
    wire::{self, Header, Question, rtype},
};

const TAG: u64 = 7;

/// Whatever may make one answer differ from another.
#[derive(Debug, PartialEq, Eq)]
struct Meant {
    labels: Vec<Vec<u8>>,
    qtype: u16,
    /// RD, AD and CD.
    flags: [bool; 3],
    /// DO, if there is EDNS.
    dnssec_ok: Option<bool>,
}

fn meant(query: &[u8]) -> Option<Meant> {
    let (header, question) = (Header::read(query)?, Question::read(query)?);
    let records = wire::records(query)?;
    let opt = records.iter().find(|record| record.rtype == rtype::OPT);
    let flags = [header.recursion_desired, header.authentic, header.checking_disabled];
    let dnssec_ok = opt.map(|opt| opt.ttl & 1 << 15 != 0);
    Some(Meant { labels: question.labels(), qtype: question.qtype, flags, dnssec_ok })
}

/// The first two octets say what of the rest, a query, is another in a second one.
pub fn key(input: &[u8]) {
    let [at, change, query @ ..] = input else { return };
    let Some(key) = subject::key(query, TAG) else { return };
    assert_ne!(subject::key(query, TAG + 1).as_ref(), Some(&key), "of other resolvers");
    let mut other = query.to_vec();
    let at = usize::from(*at) % other.len();
    other[at] ^= change;
    let Some(of_other) = subject::key(&other, TAG) else { return };
    let (one, two) = (meant(query).expect("a query"), meant(&other).expect("a query"));
    assert_eq!(key == of_other, one == two, "{one:?} and {two:?}");
}
