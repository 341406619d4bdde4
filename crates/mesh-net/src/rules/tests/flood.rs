//! What a container that asks too much of its name server takes from others: nothing.

use super::cluster::{add_replica, add_service, addresses, cluster, edit, network_id, node_id};
use crate::nft::tests::namespace::{in_namespace, ip, load};
use crate::rules::{Local, Rules};
use mesh_model::{Balance, Container, EndpointId, Health, Target};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::time::Instant;

/// Queries a second of one address, and at once.
const LIMIT: usize = 20_000;
/// What is sent before the server's queue is full.
const QUEUE: usize = 100;

/// How many queries of this address arrive at the name server.
fn arrive(from: IpAddr, server: &UdpSocket, count: usize) -> usize {
    let client = UdpSocket::bind((from, 0)).expect("a port is free");
    client.connect(server.local_addr().expect("bound")).expect("a route");
    let mut arrived = 0;
    for sent in 0..count {
        client.send(b"query").expect("sent");
        if sent % QUEUE == 0 || sent + 1 == count {
            while server.recv(&mut [0; 8]).is_ok() {
                arrived += 1;
            }
        }
    }
    arrived
}

/// Whoever floods has only a share arrive there, and others lose nothing.
fn is_cut(floods: IpAddr, asks: IpAddr, server: IpAddr) {
    let server = UdpSocket::bind(SocketAddr::new(server, 53)).expect("nobody serves here");
    server.set_nonblocking(true).expect("a socket");
    let begun = Instant::now();
    let arrived = arrive(floods, &server, 5 * LIMIT);
    let most = LIMIT + (begun.elapsed().as_secs_f64() * LIMIT as f64) as usize + 1;
    assert!((LIMIT..=most).contains(&arrived), "{arrived} of at most {most}");
    assert_eq!(arrive(asks, &server, LIMIT / 2), LIMIT / 2, "another's");
}

#[test]
fn a_flood_of_queries_is_cut_and_others_lose_none() {
    let mut snapshot = cluster(1);
    let service = add_service(&mut snapshot, 1, 99, Balance::Roundrobin, Vec::new());
    for host in [10, 11, 12] {
        add_replica(&mut snapshot, service, 1, host, Health::Healthy);
    }
    // Docker's resolver asks the host's, out of the network, and is answered by the network's.
    let outside: [IpAddr; 2] = [[192, 0, 2, 53].into(), [0xfd77, 0, 0, 0, 0, 0, 0, 53].into()];
    edit(snapshot.endpoints.get_mut(&EndpointId::from_bits(12)), |endpoint| {
        endpoint.target = Target::Docker(Container { name: "c".into(), netns: None });
    });
    in_namespace(|| {
        ip("link set lo up");
        let own = [1, 10, 11, 12].map(|host| addresses(host)[1]);
        ip("route add local 10.78.0.0/24 dev lo");
        ip("route add local 192.0.2.0/24 dev lo");
        own.iter()
            .chain(&outside[1..])
            .for_each(|address| ip(&format!("address add {address} dev lo nodad")));
        let rules = Rules::new(&snapshot, &snapshot.nodes[&node_id(1)]);
        let rules = rules.with(Local { queries: NonZeroU32::new(LIMIT as u32), ..Local::default() });
        load(&rules.overlay(&snapshot.networks[&network_id()]).each_ref());
        for (version, outside) in outside.into_iter().enumerate() {
            let [gateway, floods, asks, dockers] = [1, 10, 11, 12].map(|host| addresses(host)[version]);
            is_cut(floods, asks, gateway);
            is_cut(dockers, asks, outside);
        }
    });
}
