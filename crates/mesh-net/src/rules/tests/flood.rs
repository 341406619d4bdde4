//! What a container that asks too much of its name server takes from others: nothing.

use super::cluster::{add_replica, add_service, addresses, cluster, network_id, node_id};
use crate::nft::tests::namespace::{in_namespace, load};
use crate::rules::Rules;
use mesh_model::{Balance, Health};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
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

#[test]
fn a_flood_of_queries_is_cut_and_others_lose_none() {
    let mut snapshot = cluster(1);
    let service = add_service(&mut snapshot, 1, 99, Balance::Roundrobin, Vec::new());
    for host in [10, 11] {
        add_replica(&mut snapshot, service, 1, host, Health::Healthy);
    }
    in_namespace(|| {
        for arguments in
            ["link set lo up", "route add local 10.78.0.0/24 dev lo", "address add fd78::1 dev lo"]
        {
            let ip = Command::new("ip").args(arguments.split_whitespace()).status();
            assert!(ip.expect("this test needs iproute2").success(), "ip {arguments}");
        }
        for host in [10u16, 11] {
            let address =
                format!("address add {} dev lo nodad", Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, host));
            assert!(Command::new("ip").args(address.split_whitespace()).status().expect("ip").success());
        }
        let rules = Rules::new(&snapshot, &snapshot.nodes[&node_id(1)]);
        load(&rules.overlay(&snapshot.networks[&network_id()]).each_ref());
        for ipv6 in [false, true] {
            let gateway: IpAddr = addresses(1)[usize::from(ipv6)];
            let server = UdpSocket::bind(SocketAddr::new(gateway, 53)).expect("nobody serves here");
            server.set_nonblocking(true).expect("a socket");
            let [floods, asks] = [10, 11].map(|host| addresses(host)[usize::from(ipv6)]);
            let begun = Instant::now();
            let arrived = arrive(floods, &server, 5 * LIMIT);
            let most = LIMIT + (begun.elapsed().as_secs_f64() * LIMIT as f64) as usize + 1;
            assert!((LIMIT..=most).contains(&arrived), "{arrived} of at most {most}");
            assert_eq!(arrive(asks, &server, LIMIT / 2), LIMIT / 2, "another's");
        }
    });
}
