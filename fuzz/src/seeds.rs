//! What inputs grow from: a few of what really comes in.

use crate::{checks::loops, fixture};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, CNAME, SOA},
    },
};
use std::net::Ipv4Addr;

/// Seeds by the name of their target.
pub fn all() -> [(&'static str, Vec<Vec<u8>>); 6] {
    [
        ("dns_answer", queries()),
        ("dns_reply", replies()),
        ("dns_framing", connections()),
        ("dns_loops", probes()),
        ("dns_key", pairs()),
        ("resolv_conf", texts()),
    ]
}

fn query(name: &str, rtype: RecordType, payload: Option<u16>) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), rtype));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message
}

fn octets(message: &Message) -> Vec<u8> {
    message.to_vec().expect("a message")
}

/// Queries, each with the octet in front that says how it comes in.
fn queries() -> Vec<Vec<u8>> {
    let types =
        [RecordType::A, RecordType::AAAA, RecordType::SRV, RecordType::PTR, RecordType::ANY, RecordType::SOA];
    let reverse = [
        "3.100.168.192.in-addr.arpa",
        "100.168.192.in-addr.arpa",
        "3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.6.0.0.0.0.d.f.ip6.arpa",
    ];
    let absent = ["example.com", "x.mesh.internal", "mesh.internal", "_81._tcp.big", "9.9.9.9.in-addr.arpa"];
    let names = fixture::NAMES
        .iter()
        .chain(fixture::NAMES_OF_BOTH)
        .chain(fixture::WHOLE_NAMES)
        .chain(&reverse)
        .chain(&absent)
        .enumerate();
    let mut messages: Vec<Message> = names
        .map(|(number, name)| {
            query(name, types[number % types.len()], [None, Some(1232), Some(600)][number % 3])
        })
        .collect();
    // Those that have more to say than there is room for.
    for payload in [None, Some(600), Some(1200), Some(4096)] {
        messages.push(query("tasks.big", RecordType::A, payload));
        messages.push(query("tasks.big.self-network.mesh.internal", RecordType::AAAA, payload));
        messages.push(query("_80._tcp.big", RecordType::SRV, payload));
    }
    let plain = || query("www", RecordType::A, Some(1232));
    let changes: [fn(&mut Message); 5] = [
        |message| message.metadata.op_code = OpCode::Update,
        |message| message.metadata.message_type = MessageType::Response,
        |message| message.queries[0].query_class = DNSClass::CH,
        |message| message.queries[0].query_type = RecordType::AXFR,
        |message| {
            message.edns.as_mut().expect("it has EDNS").set_version(1).set_dnssec_ok(true);
        },
    ];
    messages.extend(changes.map(|change| {
        let mut message = plain();
        change(&mut message);
        message
    }));
    (0u8..).zip(&messages).map(|(how, message)| [&[how % 6][..], &octets(message)].concat()).collect()
}

/// Questions that go to upstreams.
pub(crate) fn queries_of_others() -> Vec<Vec<u8>> {
    let asked = [
        query("www.example.com", RecordType::A, None),
        query("a.Very-Long.name_of.somebody.ELSE.example", RecordType::AAAA, Some(1232)),
        query(".", RecordType::NS, Some(512)),
    ];
    asked.iter().map(octets).collect()
}

/// Replies to these, each with the octets in front that say to which, and how much later it is asked for again.
fn replies() -> Vec<Vec<u8>> {
    let mut replies = Vec::new();
    for (how, query) in (0u8..).zip(queries_of_others()) {
        let mut reply = Message::from_vec(&query).expect("a query of ours");
        reply.metadata.message_type = MessageType::Response;
        let mut put = |reply: &Message, later: u16| {
            let [s1, s0] = later.to_be_bytes();
            replies.push([&[how, s1, s0][..], &octets(reply)].concat());
        };
        put(&reply, 30);
        let name = reply.queries[0].name().clone();
        let record = |ttl, data| Record::from_rdata(name.clone(), ttl, data);
        let address = || RData::A(A(Ipv4Addr::new(203, 0, 113, 7)));
        let mut long = reply.clone();
        long.add_answer(record(86400, address()));
        // When it is forgotten, and when it is good for nothing any more.
        [3599, 3600, 7199, 7200].into_iter().for_each(|later| put(&long, later));
        let mut answered = reply.clone();
        answered.add_answer(record(60, RData::CNAME(CNAME(name.clone()))));
        answered.add_answer(record(300, address()));
        put(&answered, 30);
        answered.add_answer(record(u32::MAX, address()));
        put(&answered, 30);
        answered.metadata.truncation = true;
        put(&answered, 30);
        let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, 20);
        reply.add_authority(Record::from_rdata(Name::root(), 900, RData::SOA(soa)));
        for code in [ResponseCode::NoError, ResponseCode::NXDomain, ResponseCode::ServFail] {
            reply.metadata.response_code = code;
            put(&reply, 10);
        }
    }
    replies
}

/// Octets of connections, each with the one in front that says in how long pieces they come.
fn connections() -> Vec<Vec<u8>> {
    let queries = queries_of_others();
    let framed = |message: &Vec<u8>| [&(message.len() as u16).to_be_bytes()[..], message].concat();
    let whole: Vec<u8> = queries.iter().flat_map(framed).collect();
    let cut = &whole[..whole.len() - 1];
    [0, 1, 4, 255]
        .iter()
        .flat_map(|piece| [&whole[..], cut].map(|octets| [&[*piece], octets].concat()))
        .collect()
}

/// The question that is awaited, one like it, and others.
fn probes() -> Vec<Vec<u8>> {
    let probe = |number: u128| {
        let label = format!("\x20{number:032x}").into_bytes();
        [&[0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &label, loops::REST, &[0, 1, 0, 1]].concat()
    };
    [probe(loops::NUMBER), probe(loops::NUMBER + 1)].into_iter().chain(queries_of_others()).collect()
}

/// Queries, each with the octets in front that say what is another in a second one: its ID, flags, letters, type, DO.
fn pairs() -> Vec<Vec<u8>> {
    let changes = [[0, 1], [2, 1], [3, 0x20], [3, 0x10], [14, 0x20], [14, 1]];
    let pairs = queries_of_others();
    pairs.iter().flat_map(|query| changes.map(|change| [&change[..], query].concat())).collect()
}

fn texts() -> Vec<Vec<u8>> {
    [
        "# Generated\nnameserver 10.0.0.1\nnameserver 10.0.0.1\nnameserver 192.168.100.1\nsearch example.com\noptions ndots:2\n",
        "nameserver fd00::53\nnameserver fe80::1%3\nnameserver fe80::1%eth0\n  nameserver\t127.0.0.53 # stub\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
