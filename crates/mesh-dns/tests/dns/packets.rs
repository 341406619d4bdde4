//! The packet path, whatever comes in; hickory judges what goes out.

use crate::fixture::{Mesh, ip, outcome, query};
use hickory_proto::{
    op::{Edns, Message, OpCode, ResponseCode},
    rr::{DNSClass, RecordType},
};
use mesh_dns::{Names, Outcome, Table, Transport, answer};
use proptest::prelude::*;
use rand::{SeedableRng, rngs::SmallRng};
use std::sync::LazyLock;

static TABLE: LazyLock<Table> = LazyLock::new(|| Mesh::with_web().table());

fn reply(message: &Message, transport: Transport) -> Message {
    let (_, octets) = outcome(&TABLE, &message.to_vec().unwrap(), transport);
    Message::from_vec(&octets).expect("a well-formed answer")
}

/// What is refused with this code.
fn refused(octets: &[u8]) -> Option<u16> {
    match outcome(&TABLE, octets, Transport::Udp) {
        (Outcome::Answer(_) | Outcome::Refuse(_), out) => Some(u16::from_be_bytes([out[2], out[3]]) & 0xf),
        _ => None,
    }
}

#[test]
fn the_header_mirrors_the_query() {
    let mut asked = query("NGINX_service.", RecordType::A);
    for (desired, disabled) in [(true, false), (false, true)] {
        asked.metadata.recursion_desired = desired;
        asked.metadata.checking_disabled = disabled;
        let got = reply(&asked, Transport::Udp);
        assert_eq!(got.metadata.id, asked.metadata.id);
        assert!(got.metadata.authoritative && got.metadata.recursion_available);
        assert_eq!(got.metadata.recursion_desired, desired);
        assert_eq!(got.metadata.checking_disabled, disabled);
        assert!(!got.metadata.authentic_data && !got.metadata.truncation);
        assert_eq!(got.queries[0].name().to_ascii(), "NGINX_service.", "the case is kept");
        assert!(got.answers.iter().all(|record| record.ttl <= 5));
        let name = &got.answers[0].name;
        assert!(name.eq_case(asked.queries[0].name()), "{name}");
    }
}

#[test]
fn edns_is_answered_if_asked_and_other_versions_are_not_spoken() {
    let mut asked = query("www.", RecordType::A);
    let edns = asked.edns.as_mut().unwrap();
    edns.set_dnssec_ok(true);
    let got = reply(&asked, Transport::Udp).edns.expect("EDNS in the answer");
    assert_eq!((got.version(), got.max_payload(), got.flags().dnssec_ok), (0, 1232, true));
    asked.edns.as_mut().unwrap().set_version(1);
    let got = reply(&asked, Transport::Udp);
    // BADVERS; hickory takes the number for BADSIG, which shares it.
    assert_eq!(u16::from(got.metadata.response_code), 16);
    assert!(got.answers.is_empty());
    asked.edns = None;
    assert!(reply(&asked, Transport::Udp).edns.is_none());
}

#[test]
fn what_is_no_standard_query_is_refused() {
    let plain = query("www.", RecordType::A);
    let with = |change: &dyn Fn(&mut Message)| {
        let mut changed = plain.clone();
        change(&mut changed);
        changed.to_vec().unwrap()
    };
    let code = |code: ResponseCode| Some(u16::from(code));
    assert_eq!(refused(&with(&|m| m.metadata.op_code = OpCode::Update)), code(ResponseCode::NotImp));
    assert_eq!(refused(&with(&|m| m.queries.clear())), code(ResponseCode::FormErr));
    assert_eq!(refused(&with(&|m| m.queries.push(m.queries[0].clone()))), code(ResponseCode::FormErr));
    assert_eq!(refused(&with(&|m| m.queries[0].query_class = DNSClass::CH)), code(ResponseCode::Refused));
    assert_eq!(refused(&with(&|m| m.queries[0].query_type = RecordType::AXFR)), code(ResponseCode::Refused));
    let whole = plain.to_vec().unwrap();
    assert_eq!(refused(&[&whole[..], &[0]].concat()), code(ResponseCode::FormErr), "something behind it");
    for len in 12..whole.len() {
        assert_eq!(refused(&whole[..len]), code(ResponseCode::FormErr), "cut at {len}");
    }
    assert_eq!(refused(&whole[..11]), None);
    let mut answer = whole.clone();
    answer[2] |= 0x80;
    assert_eq!(refused(&answer), None, "an answer is not answered");
    let mut twice = whole.clone();
    twice.extend_from_slice(&whole[whole.len() - 11..]);
    twice[11] = 2;
    assert_eq!(refused(&twice), code(ResponseCode::FormErr), "two OPT records");
}

#[test]
fn an_answer_that_does_not_fit_is_cut_between_records() {
    let mut mesh = Mesh::new();
    let service = mesh
        .service("big", |service| service.ports = vec![crate::fixture::port(80, mesh_model::Protocol::Tcp)]);
    for index in 0..300u16 {
        let address = ip(&format!("10.0.{}.{}", index / 250, index % 250 + 1));
        mesh.endpoint_at(&format!("big.{index}"), vec![address], |endpoint| endpoint.service = Some(service));
    }
    let table = mesh.table();
    for (edns, limit) in [(None, 512), (Some(100), 512), (Some(900), 900), (Some(4096), 1232)] {
        let mut asked = query("tasks.big.", RecordType::A);
        asked.edns = edns.map(|size| {
            let mut edns = Edns::new();
            edns.set_max_payload(size);
            edns
        });
        let (_, octets) = outcome(&table, &asked.to_vec().unwrap(), Transport::Udp);
        assert!(octets.len() <= limit && octets.len() > limit - 16, "{}", octets.len());
        let got = Message::from_vec(&octets).unwrap();
        assert!(got.metadata.truncation && got.edns.is_some() == edns.is_some());
    }
    let whole = outcome(&table, &query("tasks.big.", RecordType::A).to_vec().unwrap(), Transport::Tcp).1;
    let whole = Message::from_vec(&whole).unwrap();
    assert!(!whole.metadata.truncation);
    assert_eq!(whole.answers.len(), 300);
    let srv = outcome(&table, &query("_80._tcp.big.", RecordType::SRV).to_vec().unwrap(), Transport::Tcp).1;
    let srv = Message::from_vec(&srv).unwrap();
    assert_eq!((srv.answers.len(), srv.additionals.len()), (300, 300));
}

/// Questions about names that are there, nearly there, or not.
fn question() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        "(_8080\\._tcp\\.|tasks\\.)?(nginx_service|WWW|web\\.[1-3]|lonely|x)(\\.self-network(\\.mesh\\.internal)?)?",
        "([0-9]{1,3}\\.){0,5}in-addr\\.arpa",
        "([0-9a-f]\\.){0,33}ip6\\.arpa",
        "[a-z_]{1,12}(\\.mesh)?(\\.internal)?",
    ];
    let rtype = prop_oneof![
        Just(RecordType::A),
        Just(RecordType::AAAA),
        Just(RecordType::PTR),
        Just(RecordType::SRV),
        Just(RecordType::ANY),
        any::<u16>().prop_map(RecordType::from),
    ];
    (name, rtype).prop_map(|(name, rtype)| query(&name, rtype).to_vec().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_octets_are_survived(octets in prop::collection::vec(any::<u8>(), 0..600), tcp: bool, room in 0usize..700) {
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        let mut out = vec![0; room];
        let outcome = answer(Names::OfContainer(&TABLE, &[]), &octets, transport, &mut SmallRng::seed_from_u64(1), &mut out);
        if let Outcome::Answer(len) | Outcome::Refuse(len) = outcome {
            prop_assert!(len <= room);
        }
    }

    #[test]
    fn a_damaged_query_is_survived(
        mut octets in question(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for (index, octet) in damage {
            let at = index.index(octets.len());
            octets[at] = octet;
        }
        if let (Outcome::Answer(_) | Outcome::Refuse(_), out) = outcome(&TABLE, &octets, Transport::Udp) {
            prop_assert!(out.len() <= 1232);
            prop_assert_eq!(&out[..2], &octets[..2]);
            prop_assert!(Message::from_vec(&out).is_ok(), "{:?}", out);
        }
    }

    #[test]
    fn every_answer_is_well_formed_and_mirrors_its_question(octets in question(), tcp: bool) {
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        let asked = Message::from_vec(&octets).unwrap();
        match outcome(&TABLE, &octets, transport) {
            (Outcome::Answer(_) | Outcome::Refuse(_), out) => {
                let got = Message::from_vec(&out).unwrap();
                prop_assert_eq!(got.metadata.id, asked.metadata.id);
                prop_assert_eq!(&got.queries, &asked.queries);
                prop_assert!(got.queries[0].name().eq_case(asked.queries[0].name()));
                for record in got.all_sections().filter(|r| r.record_type() != RecordType::OPT) {
                    prop_assert!(record.ttl <= 5);
                }
                if got.metadata.response_code == ResponseCode::NXDomain {
                    prop_assert!(got.answers.is_empty() && got.authorities.len() == 1);
                }
            }
            (Outcome::Forward, _) => {
                let name = asked.queries[0].name().to_ascii().to_ascii_lowercase();
                prop_assert!(!name.trim_end_matches('.').ends_with(".mesh.internal"), "{name} is forwarded");
            }
            (Outcome::Drop, _) => prop_assert!(false, "dropped"),
        }
    }
}
