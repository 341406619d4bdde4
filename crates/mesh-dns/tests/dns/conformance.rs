//! What the RFCs ask of a server, a test a rule, named after its document and section.

use crate::fixture::{Mesh, ask, ip, negative, outcome, port, query};
use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata::opt::EdnsOption},
};
use mesh_dns::{Outcome, Table, Transport};
use mesh_model::{EndpointMode, Protocol};
use std::{collections::HashSet, sync::LazyLock};

static TABLE: LazyLock<Table> = LazyLock::new(|| Mesh::with_web().table());

/// A service `many` of 1,000 endpoints.
pub(crate) static MANY: LazyLock<Table> = LazyLock::new(|| {
    let mut mesh = Mesh::new();
    let service = mesh.service("many", |service| service.ports = vec![port(80, Protocol::Tcp)]);
    for index in 0..1000u16 {
        let address = ip(&format!("10.0.{}.{}", index / 250, index % 250 + 1));
        mesh.endpoint_at(&format!("many.{index}"), vec![address], |endpoint| {
            endpoint.service = Some(service)
        });
    }
    mesh.table()
});

fn of(table: &Table, message: &Message, transport: Transport) -> Message {
    let (_, octets) = outcome(table, &message.to_vec().unwrap(), transport);
    Message::from_vec(&octets).expect("a well-formed answer")
}

fn over_udp(message: &Message) -> Message {
    of(&TABLE, message, Transport::Udp)
}

/// A question without EDNS(0).
fn plain(name: &str, rtype: RecordType) -> Message {
    let mut message = query(name, rtype);
    message.edns = None;
    message
}

fn with_size(name: &str, rtype: RecordType, size: u16) -> Message {
    let mut message = query(name, rtype);
    message.edns.as_mut().unwrap().set_max_payload(size);
    message
}

#[test]
fn rfc1034_3_1_names_compare_without_regard_to_case() {
    for name in ["nginx_service.", "NGINX_SERVICE.", "nGiNx_SeRvIcE.", "Www.Self-NETWORK.Mesh.INTERNAL."] {
        assert_eq!(over_udp(&query(name, RecordType::A)).answers.len(), 1, "{name}");
    }
}

#[test]
fn rfc1035_4_1_1_the_header_mirrors_id_opcode_and_rd() {
    for desired in [true, false] {
        let mut asked = query("www.", RecordType::A);
        asked.metadata.recursion_desired = desired;
        let got = over_udp(&asked);
        assert_eq!(got.metadata.id, asked.metadata.id);
        assert_eq!(got.metadata.message_type, MessageType::Response);
        assert_eq!(got.metadata.op_code, OpCode::Query);
        assert_eq!(got.metadata.recursion_desired, desired);
        assert!(got.metadata.authoritative && got.metadata.recursion_available);
    }
}

#[test]
fn rfc1035_4_1_1_an_opcode_that_is_not_known_is_not_implemented() {
    for op_code in [OpCode::Status, OpCode::Notify, OpCode::Update] {
        let mut asked = query("www.", RecordType::A);
        asked.metadata.op_code = op_code;
        let got = over_udp(&asked);
        assert_eq!((got.metadata.response_code, got.metadata.op_code), (ResponseCode::NotImp, op_code));
    }
}

#[test]
fn rfc1035_4_1_4_owners_are_compressed() {
    let (_, octets) = outcome(&TABLE, &plain("www.", RecordType::A).to_vec().unwrap(), Transport::Udp);
    // Header, question, and a record whose owner is a pointer to the question.
    assert_eq!(octets.len(), 12 + 9 + 16);
    assert_eq!(octets[21..23], [0xc0, 12]);
}

#[test]
fn rfc1035_4_2_1_an_answer_over_udp_without_edns_has_512_octets_at_most() {
    let (_, octets) = outcome(&MANY, &plain("tasks.many.", RecordType::A).to_vec().unwrap(), Transport::Udp);
    let got = Message::from_vec(&octets).unwrap();
    assert!(octets.len() <= 512 && got.metadata.truncation);
    assert!(got.answers.len() >= 28, "as many as there is room for: {}", got.answers.len());
}

#[test]
fn rfc1035_4_2_2_an_answer_over_tcp_is_whole() {
    let got = of(&MANY, &plain("tasks.many.", RecordType::A), Transport::Tcp);
    assert!(!got.metadata.truncation);
    let mut addresses: Vec<String> = got.answers.iter().map(|record| record.data.to_string()).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 1000);
}

/// A message has 65,535 octets, and RFC 2782 has targets written out: with names this long there is room for 600 of 1,000.
#[test]
fn rfc2181_9_what_tcp_has_no_room_for_is_left_out_and_nobody_is_sent_to_ask_again() {
    let mut mesh = Mesh::new();
    let service = mesh.service("many", |service| service.ports = vec![port(80, Protocol::Tcp)]);
    for index in 0..1000u16 {
        let address = ip(&format!("10.0.{}.{}", index / 250, index % 250 + 1));
        let name = format!("{}.{index}", "a".repeat(59));
        mesh.endpoint_at(&name, vec![address], |endpoint| endpoint.service = Some(service));
    }
    let table = mesh.table();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..100 {
        let got = of(&table, &plain("_80._tcp.many.", RecordType::SRV), Transport::Tcp);
        assert!(!got.metadata.truncation, "there is nothing beyond TCP");
        assert!((500..1000).contains(&got.answers.len()), "{}", got.answers.len());
        seen.extend(got.answers.iter().map(|record| record.data.to_string()));
    }
    assert_eq!(seen.len(), 1000, "those left out come another time");
}

#[test]
fn what_a_cut_answer_leaves_out_comes_another_time() {
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..1000 {
        let got = of(&MANY, &plain("tasks.many.", RecordType::A), Transport::Udp);
        seen.extend(got.answers.iter().map(|record| record.data.to_string()));
    }
    assert_eq!(seen.len(), 1000);
}

#[test]
fn rfc1035_3_2_4_other_classes_are_refused() {
    for class in [DNSClass::CH, DNSClass::HS, DNSClass::NONE, DNSClass::ANY] {
        let mut asked = query("www.", RecordType::A);
        asked.queries[0].query_class = class;
        assert_eq!(over_udp(&asked).metadata.response_code, ResponseCode::Refused, "{class}");
    }
}

#[test]
fn rfc1035_7_3_an_answer_is_never_answered() {
    let mut octets = query("www.", RecordType::A).to_vec().unwrap();
    octets[2] |= 0x80;
    assert_eq!(outcome(&TABLE, &octets, Transport::Udp).0, Outcome::Drop);
}

#[test]
fn rfc1123_6_1_4_2_answers_of_one_name_rotate() {
    let mut mesh = Mesh::new();
    let service = mesh.service("web", |service| {
        service.endpoint_mode = EndpointMode::Dnsrr;
        service.ports = vec![port(80, Protocol::Tcp)];
    });
    for last in 10..20 {
        mesh.endpoint(&format!("web.{last}"), last, |endpoint| endpoint.service = Some(service));
    }
    let table = mesh.table();
    for (name, rtype) in
        [("web.", RecordType::A), ("web.", RecordType::AAAA), ("_80._tcp.web.", RecordType::SRV)]
    {
        let firsts: HashSet<String> =
            (0..500).map(|_| ask(&table, name, rtype).unwrap().answers[0].data.to_string()).collect();
        assert_eq!(firsts.len(), 10, "{rtype}: each is first now and then");
    }
}

#[test]
fn rfc2181_9_tc_is_set_only_if_an_answer_is_cut_and_not_for_what_is_added() {
    // SRV records fit, the addresses of their targets do not.
    let mut mesh = Mesh::new();
    let service = mesh.service("web", |service| service.ports = vec![port(80, Protocol::Tcp)]);
    for last in 10..16 {
        mesh.endpoint(&format!("web.{last}"), last, |endpoint| endpoint.service = Some(service));
    }
    let got = of(&mesh.table(), &plain("_80._tcp.web.", RecordType::SRV), Transport::Udp);
    assert!(!got.metadata.truncation);
    assert_eq!(got.answers.len(), 6);
    assert!(got.additionals.len() < 12);
}

#[test]
fn rfc2181_5_2_records_of_one_name_and_type_have_one_ttl() {
    let got = ask(&MANY, "tasks.many.", RecordType::A).unwrap();
    assert!(got.answers.iter().all(|record| record.ttl == got.answers[0].ttl && record.ttl <= 5));
}

#[test]
fn rfc2308_2_1_a_name_that_is_not_there_is_nxdomain_with_the_soa_of_its_zone() {
    let name = "nothing.self-network.mesh.internal.";
    assert_eq!(negative(&TABLE, name, RecordType::A), ResponseCode::NXDomain);
    let message = ask(&TABLE, name, RecordType::A).unwrap();
    assert!(message.metadata.authoritative);
    assert_eq!(message.authorities[0].name.to_ascii(), "mesh.internal.");
}

#[test]
fn rfc2308_2_2_a_name_without_such_data_is_no_error_with_an_soa() {
    for rtype in [RecordType::MX, RecordType::TXT, RecordType::SRV, RecordType::HTTPS, RecordType::CNAME] {
        assert_eq!(negative(&TABLE, "www.", rtype), ResponseCode::NoError, "{rtype}");
    }
}

#[test]
fn rfc2308_5_the_soa_says_how_long_absence_may_be_kept() {
    let message = ask(&TABLE, "nothing.mesh.internal.", RecordType::A).unwrap();
    let RData::SOA(soa) = &message.authorities[0].data else { panic!("{message}") };
    assert!(message.authorities[0].ttl <= 5 && soa.minimum <= 5);
}

#[test]
fn rfc2782_a_service_names_port_and_target_of_each_task() {
    let message = ask(&TABLE, "_8080._tcp.nginx_service.", RecordType::SRV).unwrap();
    assert_eq!(message.answers.len(), 2);
    for record in &message.answers {
        let RData::SRV(srv) = &record.data else { panic!("{record}") };
        assert_eq!(srv.port, 8080);
        assert!(ask(&TABLE, &srv.target.to_ascii(), RecordType::A).unwrap().answers.len() == 1);
    }
}

#[test]
fn rfc3596_2_5_addresses_of_ipv6_are_named_nibble_by_nibble() {
    let name = Name::from(ip("fd00:64::11")).to_ascii();
    let message = ask(&TABLE, &name, RecordType::PTR).unwrap();
    assert_eq!(message.answers[0].data.to_string(), "web.1.Self-Network.mesh.internal.");
}

#[test]
fn rfc4343_4_1_the_case_of_the_question_is_kept() {
    let asked = query("wWw.SELF-network.Mesh.internal.", RecordType::A);
    let got = over_udp(&asked);
    assert!(got.queries[0].name().eq_case(asked.queries[0].name()));
    assert!(got.answers[0].name.eq_case(asked.queries[0].name()));
}

#[test]
fn rfc6761_6_4_nothing_below_our_domain_is_asked_elsewhere() {
    for name in ["x.mesh.internal.", "mesh.internal.", "a.b.c.mesh.internal.", "www.other.MESH.internal."] {
        assert!(ask(&TABLE, name, RecordType::A).is_some(), "{name}");
    }
    assert!(ask(&TABLE, "internal.", RecordType::A).is_none(), "but what is above is not ours");
}

#[test]
fn rfc6891_6_1_1_opt_is_answered_if_it_came_and_only_then() {
    assert!(over_udp(&query("www.", RecordType::A)).edns.is_some());
    assert!(over_udp(&plain("www.", RecordType::A)).edns.is_none());
}

#[test]
fn rfc6891_6_1_1_two_opts_are_a_format_error() {
    let mut octets = query("www.", RecordType::A).to_vec().unwrap();
    octets.extend_from_within(octets.len() - 11..);
    octets[11] = 2;
    let got = outcome(&TABLE, &octets, Transport::Udp).1;
    assert_eq!(got[3] & 0xf, 1);
}

#[test]
fn rfc6891_6_1_2_options_that_are_not_known_are_ignored() {
    let mut asked = query("www.", RecordType::A);
    let options = asked.edns.as_mut().unwrap().options_mut();
    options.insert(EdnsOption::Unknown(65_001, vec![1, 2, 3]));
    let got = over_udp(&asked);
    assert_eq!(got.answers.len(), 1);
    assert!(got.edns.unwrap().options().as_ref().is_empty());
}

#[test]
fn rfc6891_6_1_3_another_version_is_badvers_and_told_ours() {
    let mut asked = query("www.", RecordType::A);
    asked.edns.as_mut().unwrap().set_version(1);
    let got = over_udp(&asked);
    assert_eq!(u16::from(got.metadata.response_code), 16);
    assert!(got.answers.is_empty());
    assert_eq!(got.edns.unwrap().version(), 0);
}

#[test]
fn rfc6891_6_2_3_less_than_512_octets_is_512() {
    for (size, least, most) in [(0, 497, 512), (511, 497, 512), (512, 497, 512), (700, 685, 700)] {
        let asked = with_size("tasks.many.", RecordType::A, size);
        let (_, octets) = outcome(&MANY, &asked.to_vec().unwrap(), Transport::Udp);
        assert!((least..=most).contains(&octets.len()), "{size}: {}", octets.len());
    }
}

#[test]
fn rfc6891_6_2_5_no_more_is_sent_than_passes_without_fragments() {
    let asked = with_size("tasks.many.", RecordType::A, 65_535);
    let (_, octets) = outcome(&MANY, &asked.to_vec().unwrap(), Transport::Udp);
    assert!(octets.len() <= 1232);
    assert!(Message::from_vec(&octets).unwrap().metadata.truncation);
}

#[test]
fn rfc4035_3_2_do_and_cd_are_copied_and_ad_is_not_claimed() {
    let mut asked = query("www.", RecordType::A);
    asked.edns.as_mut().unwrap().set_dnssec_ok(true);
    asked.metadata.checking_disabled = true;
    asked.metadata.authentic_data = true;
    let got = over_udp(&asked);
    assert!(got.edns.unwrap().flags().dnssec_ok && got.metadata.checking_disabled);
    assert!(!got.metadata.authentic_data);
}

#[test]
fn rfc5936_transfers_are_refused() {
    for rtype in [RecordType::AXFR, RecordType::IXFR] {
        for transport in [Transport::Udp, Transport::Tcp] {
            let got = of(&TABLE, &query("mesh.internal.", rtype), transport);
            assert_eq!(got.metadata.response_code, ResponseCode::Refused, "{rtype}");
        }
    }
}

#[test]
fn rfc8020_a_name_with_others_below_it_is_there() {
    for name in
        ["self-network.mesh.internal.", "_tcp.www.", "mesh.internal.", "1.self-network.mesh.internal."]
    {
        assert_eq!(negative(&TABLE, name, RecordType::A), ResponseCode::NoError, "{name}");
    }
}

#[test]
fn rfc8482_4_2_any_is_a_record_that_says_so() {
    let message = ask(&TABLE, "www.", RecordType::ANY).unwrap();
    assert_eq!(message.answers.len(), 1);
    assert_eq!(message.answers[0].record_type(), RecordType::HINFO);
    assert!(message.answers[0].data.to_string().contains("RFC8482"));
}

#[test]
fn rfc9619_one_question_a_message() {
    let mut asked = query("www.", RecordType::A);
    asked.queries.push(asked.queries[0].clone());
    assert_eq!(over_udp(&asked).metadata.response_code, ResponseCode::FormErr);
    asked.queries.clear();
    assert_eq!(over_udp(&asked).metadata.response_code, ResponseCode::FormErr);
}

#[test]
fn rfc1035_3_1_names_have_255_octets_and_labels_63() {
    let label = "a".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}.", "a".repeat(61));
    assert_eq!(
        outcome(&TABLE, &query(&longest, RecordType::A).to_vec().unwrap(), Transport::Udp).0,
        Outcome::Forward
    );
    // One octet more, by hand: no library makes it.
    let mut octets = query(&longest, RecordType::A).to_vec().unwrap();
    octets[12 + 3 * 64] = 62;
    octets.insert(12 + 3 * 64 + 1, b'a');
    assert_eq!(outcome(&TABLE, &octets, Transport::Udp).1[3] & 0xf, 1);
}

#[test]
fn records_that_a_query_brings_along_are_no_part_of_it() {
    let mut asked = query("www.", RecordType::A);
    let own = Record::from_rdata(
        Name::from_ascii("www.").unwrap(),
        60,
        RData::A(hickory_proto::rr::rdata::A::new(6, 6, 6, 6)),
    );
    asked.add_answer(own);
    assert_eq!(over_udp(&asked).metadata.response_code, ResponseCode::FormErr);
}
