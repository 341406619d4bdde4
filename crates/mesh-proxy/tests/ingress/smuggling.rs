//! Requests that two readers may read differently never reach a replica in a form that can be.

use crate::clients::Wire;
use crate::rig::Rig;
use crate::upstream::Replica;
use mesh_proxy::Settings;

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_requests_are_refused_and_the_connection_closed() {
    let replica = Replica::named("1").await;
    let rig = Rig::start(&[replica.addr], Settings::default());
    for lines in [
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5,6",
        "Content-Length: ",
        "Content-Length: +5",
        "Content-Length: -0",
        "Content-Length: 0x5",
        "Content-Length: 5_0",
        "Content-Length: 1 0",
        "Content-Length: 99999999999999999999",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunked,identity",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding : chunked",
        "Host: b",
        "no colon",
        ": empty",
        " leading: space",
        "X: a\x00b",
    ] {
        let mut wire = Wire::connect(rig.addr).await;
        wire.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n0\r\n\r\n")).await;
        let status = wire.message(true).await.unwrap_or_else(|| panic!("{lines:?}: no response")).status();
        assert_eq!(status, 400, "{lines:?}");
        assert_eq!(wire.rest().await, b"", "{lines:?}");
    }
    for head in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        "GET / \r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
    ] {
        let mut wire = Wire::connect(rig.addr).await;
        wire.send(head).await;
        let status = wire.message(true).await.unwrap_or_else(|| panic!("{head:?}: no response")).status();
        assert!(matches!(status, 400 | 405), "{head:?}: {status}");
        assert_eq!(wire.rest().await, b"", "{head:?}");
    }
    assert!(replica.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_beside_an_encoding_goes_no_further_and_nothing_after_it_is_read() {
    for lines in
        ["Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"]
    {
        let replica = Replica::named("1").await;
        let rig = Rig::start(&[replica.addr], Settings::default());
        let mut wire = Wire::connect(rig.addr).await;
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
        wire.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n0\r\n\r\n{smuggled}")).await;
        wire.message(true).await.unwrap();
        assert_eq!(wire.rest().await, b"", "{lines:?}");
        let seen = replica.seen();
        assert!(seen.len() <= 1, "{seen:?}");
        assert!(seen.iter().all(|request| request.fields("content-length").is_empty()), "{seen:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_on_a_get_is_no_second_request() {
    let replica = Replica::named("1").await;
    let rig = Rig::start(&[replica.addr], Settings::default());
    let inner = "GET /inner HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut wire = Wire::connect(rig.addr).await;
    wire.ask(&format!("GET /outer HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{inner}", inner.len()))
        .await;
    let seen = replica.seen();
    let [request] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!(request.text(), inner);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_chunks_never_look_like_a_whole_body() {
    for chunks in [
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5_\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
    ] {
        let replica = Replica::named("1").await;
        let rig = Rig::start(&[replica.addr], Settings::default());
        let mut wire = Wire::connect(rig.addr).await;
        wire.send(format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}")).await;
        wire.rest().await;
        rig.stop().await.unwrap();
        assert!(replica.seen().is_empty(), "{chunks:?}: {:?}", replica.seen());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_that_can_be_read_in_two_ways_are_502() {
    for head in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 6",
        "Transfer-Encoding: gzip",
        "Content-Length: -1",
    ] {
        let replica = Replica::scripted(move |mut wire, _| async move {
            wire.head().await;
            wire.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n0\r\n\r\n")).await;
            wire.rest().await;
        })
        .await;
        let rig = Rig::start(&[replica.addr], Settings::default());
        assert_eq!(crate::clients::get(rig.addr, "/").await.status(), 502, "{head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_after_a_response_are_nobodys_response() {
    let replica = Replica::scripted(|mut wire, _| async move {
        while wire.head().await.is_some() {
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
                .await;
        }
    })
    .await;
    let rig = Rig::start(&[replica.addr], Settings::default());
    let mut wire = Wire::connect(rig.addr).await;
    for _ in 0..20 {
        let response = wire.get("/").await;
        assert!(response.status() == 502 || response.text() == "ok", "{response:?}");
    }
}
