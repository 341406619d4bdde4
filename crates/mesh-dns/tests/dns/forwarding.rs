//! Names of others: real and false upstreams.

use crate::{
    dig::{Running, bind, dig, short},
    fixture::{Mesh, ip, query},
    serving::big,
};
use hickory_proto::{
    op::{Message, MessageType, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use mesh_dns::ForwarderOptions;
use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    net::UdpSocket,
    process::{Child, Command},
    time::timeout,
};

/// A server that knows `www.example.com`.
fn example(address: &str) -> Running {
    let mut mesh = Mesh::new();
    mesh.endpoint_at("www.example.com", vec![ip(address)], |_| {});
    Running::start(mesh.table(), &[])
}

/// A port where datagrams are taken and nothing is ever said.
async fn silent() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.unwrap()
}

/// A port where nobody listens.
fn closed() -> SocketAddr {
    bind().0.local_addr().unwrap()
}

async fn exchange(server: SocketAddr, message: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&message.to_vec().unwrap(), server).await.unwrap();
    let mut reply = [0; 4096];
    let len = timeout(Duration::from_secs(3), socket.recv(&mut reply)).await.expect("an answer").unwrap();
    Message::from_vec(&reply[..len]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_names_are_asked_upstream_and_remembered() {
    let upstream = example("203.0.113.7");
    let server = Running::start(Mesh::with_web().table(), &[upstream.address]);
    for transport in ["+notcp", "+tcp", "+noedns"] {
        assert_eq!(short(server.address, &format!("{transport} www.EXAMPLE.com")).await, ["203.0.113.7"]);
    }
    let mut asked = query("Www.eXample.com.", RecordType::A);
    asked.metadata.id = 4711;
    // As dig sets it; it may make the answer another one.
    asked.metadata.authentic_data = true;
    upstream.stop().await;
    let remembered = exchange(server.address, &asked).await;
    assert_eq!(remembered.metadata.id, 4711);
    assert!(remembered.queries[0].name().eq_case(asked.queries[0].name()));
    assert_eq!(remembered.answers[0].data.to_string(), "203.0.113.7");
    // Our own names do not need it.
    assert_eq!(short(server.address, "www").await, ["192.168.100.2"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_answer_the_client_hears_so_in_time() {
    let silent = silent().await;
    let server = Running::start(Mesh::new().table(), &[silent.local_addr().unwrap()]);
    let begun = Instant::now();
    let failed = dig(server.address, "www.example.com").await;
    assert!(failed.contains("status: SERVFAIL"), "{failed}");
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    server.forwarder.set_host(&[closed()]);
    let begun = Instant::now();
    let failed = dig(server.address, "+tcp www.example.com").await;
    assert!(failed.contains("status: SERVFAIL"), "{failed}");
    assert!(begun.elapsed() < Duration::from_millis(350), "a closed port says so: {:?}", begun.elapsed());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_upstream_is_asked_and_then_preferred() {
    let (silent, upstream) = (silent().await, example("203.0.113.8"));
    let server = Running::start(Mesh::new().table(), &[silent.local_addr().unwrap(), upstream.address]);
    assert_eq!(short(server.address, "www.example.com").await, ["203.0.113.8"]);
    let begun = Instant::now();
    assert_eq!(short(server.address, "+noedns www.example.com").await, ["203.0.113.8"]);
    assert!(begun.elapsed() < Duration::from_millis(350), "the silent one was asked again");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_upstreams_take_over_at_once() {
    let (old, new) = (example("203.0.113.1"), example("203.0.113.2"));
    let server = Running::start(Mesh::new().table(), &[old.address]);
    assert_eq!(short(server.address, "www.example.com").await, ["203.0.113.1"]);
    server.forwarder.set_host(&[new.address]);
    assert_eq!(short(server.address, "www.example.com").await, ["203.0.113.2"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_answer_is_fetched_over_tcp() {
    let upstream = Running::start(big(), &[]);
    let server = Running::start(Mesh::new().table(), &[upstream.address]);
    let cut = dig(server.address, "+ignore +notcp big.example").await;
    assert!(cut.contains("flags: qr tc rd ra;"), "{cut}");
    assert_eq!(short(server.address, "big.example").await.len(), 300);
    assert_eq!(short(server.address, "+tcp big.example").await.len(), 300);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_answers_the_question_is_believed() {
    let forger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = forger.local_addr().unwrap();
    let forging = tokio::spawn(async move {
        let mut octets = [0; 1232];
        let (len, from) = forger.recv_from(&mut octets).await.unwrap();
        let asked = Message::from_vec(&octets[..len]).unwrap();
        assert_ne!(asked.metadata.id, 4711, "the client's ID is not used again");
        let answer = |address: [u8; 4]| {
            let mut reply = asked.clone();
            reply.metadata.message_type = MessageType::Response;
            let name = asked.queries[0].name().clone();
            reply.add_answer(Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::from(address)))));
            reply
        };
        let mut other_id = answer([6, 6, 6, 1]);
        other_id.metadata.id ^= 1;
        let mut other_name = answer([6, 6, 6, 2]);
        other_name.queries = vec![Query::query(Name::from_ascii("xww.example.com.").unwrap(), RecordType::A)];
        let mut other_type = answer([6, 6, 6, 3]);
        other_type.queries[0].set_query_type(RecordType::TXT);
        let mut query = answer([6, 6, 6, 4]);
        query.metadata.message_type = MessageType::Query;
        // From another port: the kernel keeps it from a connected socket.
        let elsewhere = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        elsewhere.send_to(&answer([6, 6, 6, 5]).to_vec().unwrap(), from).await.unwrap();
        for forged in [other_id, other_name, other_type, query] {
            forger.send_to(&forged.to_vec().unwrap(), from).await.unwrap();
        }
        forger.send_to(b"noise", from).await.unwrap();
        forger.send_to(&answer([203, 0, 113, 9]).to_vec().unwrap(), from).await.unwrap();
    });
    let server = Running::start(Mesh::new().table(), &[address]);
    let mut asked = query("www.example.com.", RecordType::A);
    asked.metadata.id = 4711;
    let reply = exchange(server.address, &asked).await;
    assert_eq!(reply.answers[0].data.to_string(), "203.0.113.9");
    forging.await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_under_way_are_bounded() {
    let silent = silent().await;
    let options = ForwarderOptions { in_flight: 1, ..ForwarderOptions::default() };
    let server = Running::with(Mesh::with_web().table(), &[silent.local_addr().unwrap()], options);
    let waiting = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    waiting.send_to(&query("one.example.", RecordType::A).to_vec().unwrap(), server.address).await.unwrap();
    // Once the first one is upstream, there is room for no other.
    timeout(Duration::from_secs(3), silent.recv(&mut [0; 1232])).await.expect("it is forwarded").unwrap();
    let refused = exchange(server.address, &query("two.example.", RecordType::A)).await;
    assert_eq!(refused.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(short(server.address, "www").await, ["192.168.100.2"], "our own names have room");
    server.stop().await;
}

/// A dnsmasq on loopback that knows `host.lan`, until it is dropped.
async fn dnsmasq() -> (Child, SocketAddr) {
    let address = closed();
    let child = Command::new("dnsmasq")
        .args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--pid-file="])
        .args(["--listen-address=127.0.0.1", "--bind-interfaces", "--log-facility=-", "--user=", "--group="])
        .args(["--local-ttl=60", "--host-record=host.lan,198.51.100.4", "--local=/lan/"])
        .arg(format!("--port={}", address.port()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("dnsmasq runs (Debian: dnsmasq-base)");
    let deadline = Instant::now() + Duration::from_secs(10);
    while short(address, "host.lan").await.is_empty() {
        assert!(Instant::now() < deadline, "dnsmasq does not answer");
    }
    (child, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_resolver_is_understood() {
    let (_dnsmasq, upstream) = dnsmasq().await;
    let server = Running::start(Mesh::new().table(), &[upstream]);
    for transport in ["+notcp", "+tcp", "+noedns", "+dnssec"] {
        assert_eq!(short(server.address, &format!("{transport} host.lan")).await, ["198.51.100.4"]);
        let absent = dig(server.address, &format!("{transport} nobody.lan")).await;
        assert!(absent.contains("status: NXDOMAIN"), "{absent}");
        let nodata = dig(server.address, &format!("{transport} host.lan MX")).await;
        assert!(nodata.contains("status: NOERROR") && nodata.contains("ANSWER: 0"), "{nodata}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_tcp_is_blocked_the_cut_answer_is_passed_on() {
    let upstream = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = upstream.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        let mut octets = [0; 1232];
        let (len, from) = upstream.recv_from(&mut octets).await.unwrap();
        let mut reply = Message::from_vec(&octets[..len]).unwrap();
        reply.metadata.message_type = MessageType::Response;
        reply.metadata.truncation = true;
        upstream.send_to(&reply.to_vec().unwrap(), from).await.unwrap();
    });
    let server = Running::start(Mesh::new().table(), &[address]);
    let reply = exchange(server.address, &query("big.example.", RecordType::A)).await;
    assert!(reply.metadata.truncation);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    answering.await.unwrap();
    server.stop().await;
}
