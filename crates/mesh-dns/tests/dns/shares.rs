//! Networks of one node share what the forwarder has room for: none takes it from the others.

use crate::{
    dig::{Running, options, unhurried},
    fixture::{Mesh, query},
    upstreams::{Fake, exchange, until},
};
use hickory_proto::{op::ResponseCode, rr::RecordType};
use mesh_dns::ForwarderOptions;
use std::{net::SocketAddr, sync::atomic::Ordering::Relaxed};
use tokio::net::UdpSocket;

/// Has many clients of a network ask for as many names each.
async fn flood(server: &Running, clients: u8, names: usize) {
    for last in 1..=clients {
        let client = UdpSocket::bind(SocketAddr::from(([127, 0, 1, last], 0))).await.unwrap();
        for index in 0..names {
            let asked = query(&format!("n{index}.of{last}.example."), RecordType::A).to_vec().unwrap();
            client.send_to(&asked, server.address).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_whose_resolver_is_silent_leaves_the_others_theirs() {
    let (silent, good) = (Fake::start("203.0.113.1").await, Fake::start("203.0.113.2").await);
    silent.silent.store(true, Relaxed);
    let slow = ForwarderOptions { in_flight: 64, in_flight_of_one: 16, ..unhurried() };
    let greedy = Running::with(Mesh::new().table(), &[silent.address], slow);
    let other = greedy.beside(Mesh::new().table());
    flood(&greedy, 4, 30).await;
    until("it is at its limit", || greedy.view.counters.counts().limited > 0).await;
    until("one alone has most of the room", || greedy.view.counters.counts().forwarded >= 40).await;
    greedy.forwarder.set_host(&[good.address]);
    for index in 0..8 {
        let told = exchange(other.address, &query(&format!("n{index}.example."), RecordType::A)).await;
        assert_eq!(told.answers.len(), 1, "{index}: {told}");
    }
    let told = exchange(greedy.address, &query("another.example.", RecordType::A)).await;
    assert_eq!(told.metadata.response_code, ResponseCode::ServFail, "its own are still under way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_names_leaves_the_others_what_they_remember() {
    let fake = Fake::start("203.0.113.1").await;
    let small = ForwarderOptions { cache_entries: 64, ..options() };
    let greedy = Running::with(Mesh::new().table(), &[fake.address], small);
    let other = greedy.beside(Mesh::new().table());
    let names = || (0..16).map(|index| query(&format!("kept{index}.example."), RecordType::A));
    for asked in names() {
        exchange(other.address, &asked).await;
    }
    for index in 0..300 {
        exchange(greedy.address, &query(&format!("n{index}.example."), RecordType::A)).await;
    }
    let before = fake.count();
    for asked in names() {
        assert_eq!(exchange(other.address, &asked).await.answers.len(), 1);
    }
    assert_eq!(fake.count(), before, "asked again");
    // What one has asked for is there for all.
    assert_eq!(exchange(greedy.address, &query("kept1.example.", RecordType::A)).await.answers.len(), 1);
    assert_eq!(fake.count(), before);
}
