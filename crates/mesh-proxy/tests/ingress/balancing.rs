//! Who answers.

use crate::clients::{Wire, get};
use crate::model::{self, ME, port, service, snapshot};
use crate::rig::{Rig, TARGET, eventually, one_service, overlay};
use crate::upstream::Replica;
use mesh_proxy::Settings;

async fn three() -> [Replica; 3] {
    [Replica::named("1").await, Replica::named("2").await, Replica::named("3").await]
}

async fn names(wire: &mut Wire, requests: usize) -> String {
    let mut names = String::new();
    for _ in 0..requests {
        names += wire.get("/").await.text();
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_take_turns_exactly_on_one_connection_and_over_many() {
    let replicas = three().await;
    let rig = Rig::start(&replicas.each_ref().map(|r| r.addr), Settings::default());
    assert_eq!(names(&mut Wire::connect(rig.addr).await, 6).await, "123123");
    for expected in ["1", "2", "3", "1"] {
        assert_eq!(get(rig.addr, "/").await.text(), expected);
    }
    let kept: usize = replicas.iter().map(Replica::connections).sum();
    assert!(kept <= 6, "{kept} upstream connections for 10 requests, one at a time");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_routes_do_not_restart_the_rotation() {
    let replicas = three().await;
    let rig = Rig::start(&replicas.each_ref().map(|r| r.addr), Settings::default());
    let mut wire = Wire::connect(rig.addr).await;
    let mut seen = String::new();
    for round in 0..9 {
        seen += wire.get("/").await.text();
        let mut other = one_service(rig.addr.port(), 3);
        let unrelated = service(9, vec![port(1000 + round, 1)]);
        other.services.insert(unrelated.id, unrelated.into());
        rig.set(&other);
    }
    assert_eq!(seen, "123123123");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_comes_and_goes_in_its_place() {
    let replicas = three().await;
    let rig = Rig::start(&replicas.each_ref().map(|r| r.addr), Settings::default());
    let mut wire = Wire::connect(rig.addr).await;
    assert_eq!(names(&mut wire, 2).await, "12");
    rig.set(&one_service(rig.addr.port(), 2));
    let alone = || async { get(rig.addr, "/").await.text().to_owned() };
    eventually(alone, |name| name == "1").await;
    assert_eq!(names(&mut wire, 4).await, "2121");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_services_on_a_port_need_a_route_that_tells_them_apart() {
    let replica = Replica::named("1").await;
    let rig = Rig::start(&[replica.addr], Settings::default());
    assert_eq!(get(rig.addr, "/").await.status(), 200);
    let published = rig.addr.port();
    let both = vec![service(1, vec![port(published, TARGET)]), service(2, vec![port(published, TARGET)])];
    rig.set(&snapshot(both, vec![model::endpoint(1, 1, ME, overlay(1))]));
    let mut wire = Wire::connect(rig.addr).await;
    let mut asked = async || wire.get("/").await.status();
    let deadline = std::time::Instant::now() + crate::rig::DEADLINE;
    while asked().await != 404 {
        assert!(std::time::Instant::now() < deadline, "still answered");
    }
    assert_eq!(asked().await, 404);
    rig.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_come_and_go_while_requests_in_flight_finish() {
    let slow = Replica::scripted(|mut wire, _| async move {
        while wire.head().await.is_some() {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
        }
    })
    .await;
    let rig = Rig::start(&[slow.addr], Settings::default());
    let second = rig.listen();
    let mut both = one_service(rig.addr.port(), 1);
    let twice = service(1, vec![port(rig.addr.port(), TARGET), port(second.port(), TARGET)]);
    both.services.insert(twice.id, twice.into());
    rig.set(&both);
    eventually(|| async { get(second, "/").await.status() }, |status| *status == 200).await;

    let mut idle = Wire::connect(second).await;
    assert_eq!(idle.get("/").await.text(), "done");
    let mut busy = Wire::connect(second).await;
    busy.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut unread = Wire::connect(second).await;
    unread.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    rig.unlisten(second);
    assert_eq!(idle.rest().await, b"", "an idle connection is closed");
    let response = busy.message(true).await.expect("a request in flight is answered");
    assert_eq!((response.text(), response.fields("connection")), ("done", vec!["close"]));
    assert_eq!(unread.message(true).await.expect("so is one in the backlog").text(), "done");
    assert!(busy.head().await.is_none());
    eventually(|| async { tokio::net::TcpStream::connect(second).await.is_err() }, |refused| *refused).await;
    assert_eq!(get(rig.addr, "/").await.text(), "done", "the other listener is untouched");
    rig.stop().await.unwrap();
}
