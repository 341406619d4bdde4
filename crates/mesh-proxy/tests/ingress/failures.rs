//! What fails, what is tried again, and what the client is told.

use crate::clients::{Wire, get};
use crate::rig::{Rig, eventually, one_service, refusing};
use crate::upstream::Replica;
use mesh_proxy::Settings;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

fn quick() -> Settings {
    let short = Duration::from_millis(300);
    Settings {
        connect_timeout: short,
        head_timeout: short,
        response_timeout: short,
        body_timeout: short,
        ..Settings::default()
    }
}

const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connect_goes_to_the_next_replica_also_with_a_body() {
    let (one, two) = (Replica::named("1").await, Replica::named("2").await);
    let rig = Rig::start(&[refusing(), one.addr, refusing(), two.addr], Settings::default());
    let mut wire = Wire::connect(rig.addr).await;
    let mut names = String::new();
    for _ in 0..4 {
        names += wire.get("/").await.text();
        names += wire.ask(POST).await.text();
    }
    assert_eq!(names, "12121212");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_503_and_a_replica_that_comes_is_found() {
    let rig = Rig::start(&[refusing(), refusing()], Settings::default());
    let mut wire = Wire::connect(rig.addr).await;
    assert_eq!(wire.get("/").await.status(), 503);
    rig.set(&one_service(rig.addr.port(), 0));
    assert_eq!(wire.get("/").await.status(), 503);
    let replica = Replica::named("1").await;
    rig.places.put(crate::rig::overlay(1), replica.addr);
    rig.set(&one_service(rig.addr.port(), 1));
    eventually(|| async { get(rig.addr, "/").await.status() }, |status| *status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_connection_that_died_costs_nobody_a_request() {
    // Answers one request a connection and closes it without saying so.
    let replica = Replica::scripted(|mut wire, _| async move {
        wire.message(true).await;
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    })
    .await;
    let rig = Rig::start(&[replica.addr], Settings::default());
    let mut wire = Wire::connect(rig.addr).await;
    for _ in 0..200 {
        assert_eq!(wire.get("/").await.status(), 200);
    }
    assert_eq!(replica.connections(), 200);
}

/// A replica that reads a second request on a connection and hangs up on it, counting what it saw.
async fn hangs_up_on_the_second(seen: Arc<AtomicUsize>) -> Replica {
    Replica::scripted(move |mut wire, _| {
        let seen = seen.clone();
        async move {
            wire.message(true).await;
            seen.fetch_add(1, Ordering::SeqCst);
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            if wire.message(true).await.is_some() {
                seen.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_safe_to_repeat_is_sent_again() {
    let seen = Arc::new(AtomicUsize::new(0));
    let replica = hangs_up_on_the_second(seen.clone()).await;
    let rig = Rig::start(&[replica.addr], Settings::default());
    let mut wire = Wire::connect(rig.addr).await;
    assert_eq!(wire.get("/").await.status(), 200);
    assert_eq!(wire.get("/").await.status(), 200, "replayed on a fresh connection");
    assert_eq!(seen.load(Ordering::SeqCst), 3);
    assert_eq!(wire.ask(POST).await.status(), 502, "a POST that arrived is never sent twice");
    assert_eq!(seen.load(Ordering::SeqCst), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_replayed_after_a_byte_of_a_response_nor_for_ever() {
    let partial = Replica::scripted(|mut wire, _| async move {
        wire.head().await;
        wire.send("HTTP/1.1 2").await;
    })
    .await;
    let rig = Rig::start(&[partial.addr], Settings::default());
    assert_eq!(get(rig.addr, "/").await.status(), 502);
    assert_eq!(partial.connections(), 1);

    let poisoned = || Replica::scripted(|mut wire, _| async move { drop(wire.head().await) });
    let all = [poisoned().await, poisoned().await, poisoned().await];
    let rig = Rig::start(&all.each_ref().map(|r| r.addr), Settings::default());
    assert_eq!(get(rig.addr, "/").await.status(), 502);
    assert_eq!(all.iter().map(Replica::connections).sum::<usize>(), 2, "one may have been unlucky, not all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_says_nothing_is_504() {
    let mute = Replica::scripted(|mut wire, _| async move { drop(wire.rest().await) }).await;
    let rig = Rig::start(&[mute.addr], quick());
    let mut wire = Wire::connect(rig.addr).await;
    assert_eq!(wire.get("/").await.status(), 504);
    assert_eq!(wire.ask(POST).await.status(), 504);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stops_in_its_body_is_told_so() {
    let replica = Replica::named("1").await;
    let rig = Rig::start(&[replica.addr], quick());
    let mut wire = Wire::connect(rig.addr).await;
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhi").await;
    assert_eq!(wire.message(true).await.unwrap().status(), 408);
    assert!(replica.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_response_never_looks_complete() {
    for response in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let replica = Replica::scripted(move |mut wire, _| async move {
            wire.head().await;
            wire.send(response).await;
        })
        .await;
        let rig = Rig::start(&[replica.addr], Settings::default());
        let mut wire = Wire::connect(rig.addr).await;
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let all = String::from_utf8(wire.rest().await).unwrap();
        assert!(!all.contains("0\r\n\r\n") && !all.contains("502"), "{all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_takes_its_upstream_request_with_it() {
    let closed = Arc::new(AtomicUsize::new(0));
    let counter = closed.clone();
    let replica = Replica::scripted(move |mut wire, _| {
        let counter = counter.clone();
        async move {
            wire.head().await;
            wire.rest().await;
            counter.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let rig = Rig::start(&[replica.addr], Settings::default());
    let mut wire = Wire::connect(rig.addr).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    eventually(|| async { replica.connections() }, |count| *count == 1).await;
    drop(wire);
    eventually(|| async { closed.load(Ordering::SeqCst) }, |count| *count == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_comes_too_slowly_ends_the_connection() {
    let replica = Replica::named("1").await;
    let rig = Rig::start(&[replica.addr], quick());
    let mut slow = Wire::connect(rig.addr).await;
    slow.send("GET / HTTP/1.1\r\nX: ").await;
    let mut idle = Wire::connect(rig.addr).await;
    assert_eq!(get(rig.addr, "/").await.status(), 200, "others are served meanwhile");
    slow.rest().await;
    assert_eq!(idle.rest().await, b"");
    assert_eq!(replica.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_cuts_what_outlives_its_deadline() {
    let mute = Replica::scripted(|mut wire, _| async move { drop(wire.rest().await) }).await;
    let rig = Rig::start(&[mute.addr], Settings { drain: Duration::from_millis(200), ..Settings::default() });
    let mut wire = Wire::connect(rig.addr).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    eventually(|| async { mute.connections() }, |count| *count == 1).await;
    rig.stop().await.unwrap();
    assert_eq!(wire.rest().await, b"");
}
