//! That there is nothing, remembered (RFC 2308): what counts is how often the upstream was asked.

use crate::{
    dig::Running,
    fixture::{Mesh, query},
    upstreams::{Fake, exchange, until},
};
use hickory_proto::{
    op::ResponseCode,
    rr::{
        Name, RData, Record, RecordType,
        rdata::{CNAME, SOA},
    },
};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// An upstream that has nothing, with the TTL and the minimum of an SOA if it has one.
async fn absent(code: ResponseCode, soa: Option<(u32, u32)>) -> Fake {
    Fake::with("203.0.113.1", move |_, mut reply| {
        reply.answers.clear();
        reply.metadata.response_code = code;
        if let Some((ttl, minimum)) = soa {
            let data = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, minimum);
            reply.add_authority(Record::from_rdata(Name::root(), ttl, RData::SOA(data)));
        }
        Some(reply)
    })
    .await
}

async fn code(server: SocketAddr, name: &str, rtype: RecordType) -> ResponseCode {
    let told = exchange(server, &query(name, rtype)).await;
    assert_eq!(told.queries[0].query_type(), rtype, "the question is the client's own");
    told.metadata.response_code
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc2308_5_no_such_name_holds_for_every_type() {
    let fake = absent(ResponseCode::NXDomain, Some((900, 900))).await;
    let server = Running::start(Mesh::new().table(), &[fake.address]);
    for rtype in [RecordType::A, RecordType::AAAA, RecordType::MX, RecordType::ANY, RecordType::A] {
        assert_eq!(code(server.address, "nobody.example.", rtype).await, ResponseCode::NXDomain);
    }
    assert_eq!(fake.count(), 1);
    // Nor for names below it or beside it (RFC 8020 is about those below, and may be left out).
    code(server.address, "x.nobody.example.", RecordType::A).await;
    code(server.address, "nobody2.example.", RecordType::A).await;
    assert_eq!(fake.count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc2308_5_no_such_data_holds_for_its_type_alone() {
    let fake = absent(ResponseCode::NoError, Some((900, 900))).await;
    let server = Running::start(Mesh::new().table(), &[fake.address]);
    for (rtype, asked) in
        [(RecordType::A, 1), (RecordType::A, 1), (RecordType::AAAA, 2), (RecordType::AAAA, 2)]
    {
        let told = exchange(server.address, &query("www.example.", rtype)).await;
        assert_eq!((told.metadata.response_code, told.answers.len()), (ResponseCode::NoError, 0));
        assert_eq!(told.authorities.len(), 1, "the SOA comes along");
        assert_eq!(fake.count(), asked, "{rtype}");
    }
}

/// RFC 6604, 2.1: the code is of the last name, so that the first one, which is there, keeps its types.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc6604_2_1_behind_an_alias_no_such_name_is_of_another() {
    let fake = Fake::with("203.0.113.1", |_, mut reply| {
        let name = reply.queries[0].name().clone();
        reply.answers.clear();
        reply.add_answer(Record::from_rdata(
            name,
            900,
            RData::CNAME(CNAME(Name::from_ascii("gone.").unwrap())),
        ));
        reply.metadata.response_code = ResponseCode::NXDomain;
        let data = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, 900);
        reply.add_authority(Record::from_rdata(Name::root(), 900, RData::SOA(data)));
        Some(reply)
    })
    .await;
    let server = Running::start(Mesh::new().table(), &[fake.address]);
    for (rtype, asked) in [(RecordType::A, 1), (RecordType::A, 1), (RecordType::CNAME, 2)] {
        code(server.address, "alias.example.", rtype).await;
        assert_eq!(fake.count(), asked, "{rtype}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc2308_5_without_an_soa_nothing_is_remembered() {
    for missing in [ResponseCode::NXDomain, ResponseCode::NoError] {
        let fake = absent(missing, None).await;
        let server = Running::start(Mesh::new().table(), &[fake.address]);
        for asked in 1..=3 {
            assert_eq!(code(server.address, "www.example.", RecordType::A).await, missing);
            assert_eq!(fake.count(), asked, "{missing}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc2308_5_it_is_kept_for_the_lower_of_the_soas_ttl_and_minimum() {
    for missing in [ResponseCode::NXDomain, ResponseCode::NoError] {
        for soa in [(1, 900), (900, 1)] {
            let fake = absent(missing, Some(soa)).await;
            let server = Running::start(Mesh::new().table(), &[fake.address]);
            let deadline = Instant::now() + Duration::from_secs(10);
            while fake.count() < 2 {
                assert_eq!(code(server.address, "www.example.", RecordType::A).await, missing);
                assert!(Instant::now() < deadline, "{missing} is kept, with {soa:?}");
            }
        }
    }
}

/// RFC 2308, 7.1 and RFC 9520, 3.2: a failure is remembered, for a second here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc9520_a_failure_is_remembered_and_not_for_long() {
    let fake = absent(ResponseCode::ServFail, Some((900, 900))).await;
    let server = Running::start(Mesh::new().table(), &[fake.address]);
    assert_eq!(code(server.address, "www.example.", RecordType::A).await, ResponseCode::ServFail);
    let (failed, begun) = (fake.count(), Instant::now());
    while fake.count() == failed {
        assert_eq!(code(server.address, "www.example.", RecordType::A).await, ResponseCode::ServFail);
        assert!(begun.elapsed() < Duration::from_secs(5), "it is kept");
    }
    // A failure of one type is none of another.
    until("the other type is asked for", || fake.count() > failed).await;
    let before = fake.count();
    code(server.address, "www.example.", RecordType::AAAA).await;
    assert!(fake.count() > before);
}
