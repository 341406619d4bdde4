//! Answers to queries.

use crate::{
    fixture,
    subject::{self, Became, Client},
    wire::{self, Header, Question, rtype},
};
use hickory_proto::{
    op::Message,
    serialize::binary::{BinDecodable, BinDecoder},
};

/// How long, in seconds, anybody may keep what is said of our names.
const TTL: u32 = 5;
/// The most that is sent over UDP to whoever says that there is room, and what is sent otherwise.
const UDP: usize = 1232;
const PLAIN_UDP: usize = 512;

/// The first octet says from whom the rest, a message, comes, and how.
pub fn answer(input: &[u8]) {
    let Some((how, query)) = input.split_first() else { return };
    let tcp = how & 1 == 1;
    let client = [Client::Container, Client::ContainerOnBoth, Client::Host][usize::from(how >> 1 & 3) % 3];
    let asked = Header::read(query).filter(|header| !header.response);
    match (subject::ask(client, query, tcp, how >> 3), asked) {
        (Became::Dropped, None) => {}
        (Became::Dropped, Some(_)) => panic!("a query is not answered"),
        (_, None) => panic!("what is no query is answered"),
        (Became::Forwarded, Some(header)) => forwarded(client, query, header),
        (Became::Answered(answer), Some(header)) => answered(query, header, &answer, tcp),
    }
}

/// Only whole questions go out, and none about what is ours.
fn forwarded(client: Client, query: &[u8], header: Header) {
    let question = Question::read(query).expect("a question is forwarded that can be read");
    assert_eq!(
        (header.opcode, &header.counts[..3]),
        (0, &[1, 0, 0][..]),
        "what is forwarded is a plain query"
    );
    assert_eq!(question.qclass, 1, "what is forwarded is of the Internet");
    assert!(!matches!(question.qtype, 0 | 41 | 249..=254), "type {} is forwarded", question.qtype);
    let on_both = client != Client::Container;
    let domains_of_both = fixture::DOMAINS_OF_BOTH.iter().filter(|_| on_both);
    for domain in fixture::DOMAINS.iter().chain(domains_of_both) {
        assert!(!question.is_in(domain), "a name below {domain} is forwarded");
    }
    let short = fixture::NAMES.iter().filter(|_| client != Client::Host);
    let short_of_both = fixture::NAMES_OF_BOTH.iter().filter(|_| client == Client::ContainerOnBoth);
    let labels = question.labels();
    for name in short.chain(short_of_both).chain(fixture::WHOLE_NAMES) {
        let known = name.rsplit('.').map(str::as_bytes).eq(labels.iter().map(Vec::as_slice));
        assert!(!known, "{name} is forwarded");
    }
}

fn answered(query: &[u8], asked: Header, answer: &[u8], tcp: bool) {
    let header = Header::read(answer).expect("a header");
    let mirrored = Header { response: true, recursion_available: true, ..asked };
    assert_eq!(header.id, mirrored.id);
    assert!(header.response && header.recursion_available);
    assert_eq!(header.opcode, mirrored.opcode);
    assert_eq!(header.recursion_desired, mirrored.recursion_desired);
    assert_eq!(header.checking_disabled, mirrored.checking_disabled);
    assert!(!header.reserved && !header.authentic, "bits that are not ours to set");

    let mut decoder = BinDecoder::new(answer);
    let message = Message::read(&mut decoder).expect("a well-formed answer");
    assert!(decoder.is_empty(), "something is behind the answer");
    let records = wire::records(answer).expect("records");
    let opt = records.iter().find(|record| record.rtype == rtype::OPT);
    let rcode = header.rcode | opt.map_or(0, |opt| ((opt.ttl >> 24) << 4) as u8);
    question(query, answer, rcode);
    length(query, answer, tcp, rcode);
    assert_eq!(header.authoritative, matches!(rcode, 0 | 3), "code {rcode}");
    assert!(!(header.truncated && tcp), "cut over TCP");

    let records = records.iter().filter(|record| record.rtype != rtype::OPT);
    let of = |section: usize| records.clone().filter(move |record| record.section == section);
    assert!(records.clone().all(|record| record.ttl <= TTL && record.class == 1));
    assert_eq!(message.queries.len(), usize::from(header.counts[0]));
    if let Some(asked) = message.queries.first() {
        assert!(message.answers.iter().all(|record| record.name == *asked.name()), "another owner");
    }
    let soa = of(1).filter(|record| record.rtype == rtype::SOA).count();
    assert_eq!(of(1).count(), soa, "authorities that say nothing of absence");
    match rcode {
        0 if of(0).next().is_some() => assert_eq!(soa, 0),
        3 | 0 => assert!(of(0).next().is_none() && (soa == 1 || header.truncated), "absence without its SOA"),
        1 | 4 | 5 | 16 => assert!(records.clone().next().is_none(), "records with a refusal"),
        other => panic!("code {other}"),
    }
    let qtype = message.queries.first().map_or(0, |query| u16::from(query.query_type()));
    let wanted = if qtype == rtype::ANY { rtype::HINFO } else { qtype };
    assert!(of(0).all(|record| record.rtype == wanted), "records of another type than was asked");
    edns(query, &message, rcode);
}

/// The question is the client's own, to the letter; it is left out only if it could not be read.
fn question(query: &[u8], answer: &[u8], rcode: u8) {
    match answer[5] {
        0 => {
            assert!(matches!(rcode, 1 | 4), "code {rcode} without a question");
            assert_eq!(answer.len(), wire::HEADER);
        }
        _ => {
            let asked = Question::read(query).expect("the query has a question");
            let mirrored = Question::read(answer).expect("the answer has a question");
            assert_eq!(asked.octets, mirrored.octets);
        }
    }
}

/// An answer is no longer than the client has room for, and a refusal no longer than what is refused: nobody whose address is
/// forged gets more than 1232 octets, and of an error none that were not sent.
fn length(query: &[u8], answer: &[u8], tcp: bool, rcode: u8) {
    let said = Message::from_vec(query).ok().map(|query| query.edns.map(|edns| edns.max_payload()));
    let limit = match said {
        _ if tcp => 65535,
        Some(Some(payload)) => usize::from(payload).clamp(PLAIN_UDP, UDP),
        Some(None) => PLAIN_UDP,
        // It is not hickory that was asked: whatever it can't read may say anything.
        None => UDP,
    };
    assert!(answer.len() <= limit, "{} octets, though {limit} is all there is room for", answer.len());
    if !matches!(rcode, 0 | 3) {
        assert!(answer.len() <= query.len(), "a refusal of {} octets for {}", answer.len(), query.len());
    }
    if Question::read(query).is_some_and(|question| question.qtype == rtype::ANY) {
        let one_record = 80;
        assert!(
            answer.len() <= query.len() + one_record,
            "{} octets for ANY of {}",
            answer.len(),
            query.len()
        );
    }
}

/// Who speaks EDNS(0) is answered in it.
fn edns(query: &[u8], answer: &Message, rcode: u8) {
    if let Some(edns) = &answer.edns {
        assert_eq!((edns.version(), edns.max_payload()), (0, 1232));
        assert!(matches!(rcode, 0 | 3 | 16));
    }
    let Ok(asked) = Message::from_vec(query) else { return };
    if matches!(rcode, 0 | 3 | 16) {
        assert_eq!(asked.edns.is_some(), answer.edns.is_some());
        let dnssec_ok = |message: &Message| message.edns.as_ref().map(|edns| edns.flags().dnssec_ok);
        assert_eq!(dnssec_ok(&asked), dnssec_ok(answer));
        let version = asked.edns.as_ref().map_or(0, |edns| edns.version());
        assert_eq!(version != 0, rcode == 16, "version {version}");
    }
}
