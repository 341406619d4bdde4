//! What is passed on, and how.

use crate::clients::{Message, Wire, get};
use crate::rig::{Rig, eventually};
use crate::upstream::Replica;
use mesh_proxy::Settings;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const BIG: usize = 100 << 20;
/// What kernels of both hops and the proxy may hold of a body while its reader sleeps.
const IN_BETWEEN: usize = 48 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn heads_arrive_rewritten_and_bodies_untouched() {
    let replica = Replica::answering(|_| {
        b"HTTP/1.1 201 Created\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-End: 1\r\n\
          Set-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok"
            .to_vec()
    })
    .await;
    let rig = Rig::start(&[replica.addr], Settings::default());
    let response = Wire::connect(rig.addr)
        .await
        .ask(
            "POST /a/../b?c=%20d HTTP/1.1\r\nHost: shop.example\r\nX-Forwarded-For: 192.0.2.1\r\n\
             Connection: X-Secret\r\nX-Secret: 1\r\nContent-Length: 5\r\n\r\nhello",
        )
        .await;
    assert_eq!((response.status(), response.text()), (201, "ok"));
    assert_eq!(response.fields("set-cookie"), ["a", "b"]);
    assert_eq!(response.fields("x-end"), ["1"]);
    assert!(response.fields("x-hop").is_empty() && response.fields("keep-alive").is_empty());

    let seen = replica.seen();
    let [request] = &seen[..] else { panic!("{seen:?}") };
    assert!(request.head.starts_with("POST /a/../b?c=%20d HTTP/1.1\r\n"), "{}", request.head);
    assert_eq!(request.text(), "hello");
    assert_eq!(request.fields("host"), ["shop.example"]);
    assert_eq!(request.fields("x-forwarded-for"), ["192.0.2.1, 127.0.0.1"]);
    assert_eq!(request.fields("x-forwarded-host"), ["shop.example"]);
    assert_eq!(request.fields("x-forwarded-proto"), ["http"]);
    assert!(request.fields("x-secret").is_empty() && request.fields("connection").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_go_both_ways_and_trailers_go_nowhere() {
    let replica = Replica::answering(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: host\r\n\r\n\
          3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
            .to_vec()
    })
    .await;
    let rig = Rig::start(&[replica.addr], Settings::default());
    let mut wire = Wire::connect(rig.addr).await;
    let request =
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwxyz\r\n0\r\nHost: b\r\n\r\n";
    let response = wire.ask(request).await;
    assert_eq!((response.text(), response.fields("transfer-encoding")), ("abcde", vec!["chunked"]));
    let seen = replica.seen();
    assert_eq!((seen[0].text(), seen[0].fields("host")), ("wxyz", vec!["a"]));
    assert_eq!(wire.rest().await, b"", "closed: what was chunked may have had a length as well");
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_without_a_body_leave_the_connections_usable() {
    let replica = Replica::answering(|request: &Message| {
        let status = request.head.split('/').nth(1).unwrap().split(' ').next().unwrap();
        match status {
            "204" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
            "304" => b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 9\r\n\r\n".to_vec(),
            _ => b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
                .to_vec(),
        }
    })
    .await;
    let rig = Rig::start(&[replica.addr], Settings::default());
    let mut wire = Wire::connect(rig.addr).await;
    for _ in 0..3 {
        let head = wire.ask("HEAD /200 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!((head.status(), head.fields("content-length")), (200, vec!["9"]));
        for status in [204, 304] {
            wire.send(format!("GET /{status} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            assert_eq!(wire.message(false).await.unwrap().status(), status);
        }
    }
    assert_eq!(replica.connections(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() {
    let replica = Replica::answering(|request: &Message| {
        let path = request.head.split(' ').nth(1).unwrap();
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{path}", path.len()).into_bytes()
    })
    .await;
    let rig = Rig::start(&[replica.addr], Settings::default());
    let mut wire = Wire::connect(rig.addr).await;
    let all: String = (0..50).map(|i| format!("GET /{i} HTTP/1.1\r\nHost: a\r\n\r\n")).collect();
    wire.send(all).await;
    for i in 0..50 {
        assert_eq!(wire.message(true).await.unwrap().text(), format!("/{i}"));
    }
}

/// Writes zeros until it is done or nothing moved for a while; returns how many went.
async fn pour(stream: &mut tokio::net::TcpStream, total: usize, stall: Duration) -> usize {
    let zeros = vec![0; 64 * 1024];
    let mut poured = 0;
    while poured < total {
        let piece = &zeros[..zeros.len().min(total - poured)];
        match tokio::time::timeout(stall, stream.write(piece)).await {
            Ok(written) => poured += written.unwrap(),
            Err(_) => break,
        }
    }
    poured
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_slows_the_replica_and_gets_all_100_mib() {
    let poured = Arc::new(AtomicUsize::new(0));
    let counter = poured.clone();
    let replica = Replica::scripted(move |mut wire, _| {
        let counter = counter.clone();
        async move {
            wire.head().await.unwrap();
            wire.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n")).await;
            let first = pour(&mut wire.stream, BIG, Duration::from_millis(500)).await;
            counter.store(first, Ordering::SeqCst);
            pour(&mut wire.stream, BIG - first, Duration::from_secs(20)).await;
            wire.rest().await;
        }
    })
    .await;
    let rig = Rig::start(&[replica.addr], Settings::default());
    let mut wire = Wire::connect_narrow(rig.addr).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    wire.head().await.unwrap();
    let stuck = eventually(|| async { poured.load(Ordering::SeqCst) }, |poured| *poured > 0).await;
    assert!(stuck < IN_BETWEEN, "{stuck} bytes were taken while nobody read");
    let mut left = BIG;
    while left > 0 {
        let piece = left.min(1 << 20);
        left -= wire.exactly(piece).await.len();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_replica_slows_the_client_and_gets_all_100_mib() {
    let (read, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Notify::new()));
    let (counter, start) = (read.clone(), go.clone());
    let replica = Replica::scripted(move |mut wire, _| {
        let (counter, start) = (counter.clone(), start.clone());
        async move {
            wire.head().await.unwrap();
            start.notified().await;
            let mut buffer = vec![0; 1 << 20];
            // What came with the head is a few bytes of the body: the rest is told by the response.
            while counter.load(Ordering::SeqCst) < BIG - IN_BETWEEN {
                let piece = wire.stream.read(&mut buffer).await.unwrap();
                counter.fetch_add(piece, Ordering::SeqCst);
            }
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
            wire.rest().await;
        }
    })
    .await;
    let rig = Rig::start(&[replica.addr], Settings::default());
    let mut wire = Wire::connect(rig.addr).await;
    wire.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {BIG}\r\n\r\n")).await;
    let first = pour(&mut wire.stream, BIG, Duration::from_millis(500)).await;
    assert!(first < IN_BETWEEN, "{first} bytes were taken while nobody read");
    go.notify_one();
    assert_eq!(first + pour(&mut wire.stream, BIG - first, Duration::from_secs(20)).await, BIG);
    assert_eq!(wire.message(true).await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_becomes_a_tunnel_once_the_replica_agrees() {
    let replica = Replica::scripted(|mut wire, _| async move {
        let head = wire.head().await.unwrap().to_lowercase();
        assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
        wire.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhi")
            .await;
        loop {
            let word = wire.exactly(4).await;
            wire.send(word.to_ascii_uppercase()).await;
        }
    })
    .await;
    let rig =
        Rig::start(&[replica.addr], Settings { drain: Duration::from_millis(200), ..Settings::default() });
    let mut wire = Wire::connect(rig.addr).await;
    wire.send("GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    let head = wire.head().await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert_eq!(wire.exactly(2).await, b"hi");
    for word in ["ping", "pong"] {
        wire.send(word).await;
        assert_eq!(wire.exactly(4).await, word.to_ascii_uppercase().as_bytes());
    }
    rig.stop().await.unwrap();
    assert_eq!(wire.rest().await, b"", "the tunnel ends with the drain");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_upgrade_is_an_ordinary_response() {
    let replica = Replica::named("no").await;
    let rig = Rig::start(&[replica.addr], Settings::default());
    let mut wire = Wire::connect(rig.addr).await;
    let asked =
        wire.ask("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    assert_eq!((asked.status(), asked.text()), (200, "no"));
    assert_eq!(get(rig.addr, "/").await.text(), "no");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_0_is_served_and_its_connection_closed() {
    let replica = Replica::answering(|_| {
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n".to_vec()
    })
    .await;
    let rig = Rig::start(&[replica.addr], Settings::default());
    let mut wire = Wire::connect(rig.addr).await;
    wire.send("GET / HTTP/1.0\r\n\r\n").await;
    let all = String::from_utf8(wire.rest().await).unwrap();
    assert!(all.ends_with("\r\n\r\nok") && !all.to_lowercase().contains("transfer-encoding"), "{all}");
    assert_eq!(replica.seen()[0].fields("host"), ["service_1"]);
}
