//! How the kernel shares new flows among backends. One namespace is the host, its clients and all replicas at once.

use super::cluster::{add_replica, add_service, addresses, cluster, edit, node_id, published};
use crate::nft::tests::namespace::{in_namespace, ip, load};
use crate::rules::Rules;
use mesh_model::{Balance, EndpointId, Health, Protocol, Snapshot, Weight, slots};
use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};

/// Host parts of the replicas' addresses are those behind it.
const FIRST: u8 = 100;
const PORT: u16 = 8080;
/// Datagrams that a replica's queue has room for.
const QUEUE: usize = 100;

fn service(balance: Balance, weights: &[u32]) -> Snapshot {
    let mut snapshot = cluster(1);
    let service = add_service(&mut snapshot, 1, 99, balance, vec![published(PORT, 80, Protocol::Udp)]);
    for (host, weight) in (FIRST..).zip(weights) {
        add_replica(&mut snapshot, service, 1, host, Health::Healthy);
        let endpoint = snapshot.endpoints.get_mut(&EndpointId::from_bits(host.into()));
        edit(endpoint, |endpoint| endpoint.weight = (*weight).try_into().expect("a weight"));
    }
    snapshot
}

/// A host in a namespace of its own.
struct Host {
    ipv6: bool,
    replicas: Vec<UdpSocket>,
}

impl Host {
    /// All of these prefixes are addresses of the namespace's.
    fn new(snapshot: &Snapshot, ipv6: bool, replicas: usize) -> Self {
        ip("link set lo up");
        for prefix in ["192.0.2.0/24", "198.51.0.0/16", "10.78.0.0/24", "2001:db8::/32", "fd78::/64"] {
            ip(&format!("route add local {prefix} dev lo"));
        }
        fs::write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1").expect("proc is mounted");
        let rules = Rules::new(snapshot, &snapshot.nodes[&node_id(1)]);
        load(&rules.host(&BTreeSet::new()).each_ref());
        let replicas = (FIRST..).take(replicas).map(|host| {
            let socket = UdpSocket::bind((addresses(host)[usize::from(ipv6)], 80)).expect("bound");
            socket.set_nonblocking(true).expect("a socket");
            socket
        });
        Self { ipv6, replicas: replicas.collect() }
    }

    fn client(&self, number: u16) -> IpAddr {
        if self.ipv6 {
            [0x2001, 0xdb8, number, 0, 0, 0, 0, 7].into()
        } else {
            let [high, low] = number.to_be_bytes();
            [198, 51, high, low].into()
        }
    }

    /// Sends one datagram for each of these clients, each from a port of its own; which replica has got it.
    fn ask(&self, clients: impl Iterator<Item = u16>) -> Vec<usize> {
        let to: SocketAddr = if self.ipv6 {
            ([0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1], PORT).into()
        } else {
            ([192, 0, 2, 1], PORT).into()
        };
        let mut chosen = Vec::new();
        for (sent, client) in clients.enumerate() {
            let socket = UdpSocket::bind((self.client(client), 0)).expect("a port is free");
            socket.send_to(&(sent as u32).to_be_bytes(), to).expect("sent");
            chosen.push(usize::MAX);
            if sent % QUEUE == 0 {
                self.collect(&mut chosen);
            }
        }
        self.collect(&mut chosen);
        assert!(!chosen.contains(&usize::MAX), "every datagram arrives");
        chosen
    }

    fn collect(&self, chosen: &mut [usize]) {
        for (index, replica) in self.replicas.iter().enumerate() {
            let mut number = [0; 4];
            while replica.recv(&mut number).is_ok() {
                chosen[u32::from_be_bytes(number) as usize] = index;
            }
        }
    }
}

fn counts(chosen: &[usize], replicas: usize) -> Vec<usize> {
    (0..replicas).map(|index| chosen.iter().filter(|one| **one == index).count()).collect()
}

#[test]
fn roundrobin_is_exact_with_1_to_100_replicas() {
    for ipv6 in [false, true] {
        for replicas in [1, 2, 3, 7, 10, 31, 64, 100] {
            let snapshot = service(Balance::Roundrobin, &vec![1; replicas]);
            let chosen = in_namespace(|| Host::new(&snapshot, ipv6, replicas).ask((0..).take(3 * replicas)));
            assert_eq!(counts(&chosen, replicas), vec![3; replicas], "of {replicas}");
        }
        let snapshot = service(Balance::Roundrobin, &[1, 2, 5]);
        let chosen = in_namespace(|| Host::new(&snapshot, ipv6, 3).ask(0..80));
        assert_eq!(counts(&chosen, 3), [10, 20, 50], "weights");
    }
}

/// Within 4 standard deviations of the binomial distribution. That one of ten is beyond them by chance happens once in 1,600
/// runs, and twice in a row never.
#[test]
fn random_is_within_4_sigma_over_10000_flows() {
    for weights in [vec![1; 10], vec![1, 2, 3, 10]] {
        let snapshot = service(Balance::Random, &weights);
        let all = f64::from(weights.iter().sum::<u32>());
        let is_fair = || {
            let chosen = in_namespace(|| {
                Host::new(&snapshot, false, weights.len()).ask((0..10_000).map(|number| number % 5000))
            });
            let counts = counts(&chosen, weights.len());
            let off = weights.iter().zip(&counts).find(|(weight, count)| {
                let share = f64::from(**weight) / all;
                let sigma = (10_000.0 * share * (1.0 - share)).sqrt();
                (**count as f64 - 10_000.0 * share).abs() > 4.0 * sigma
            });
            off.map_or(Ok(()), |off| Err(format!("{off:?} of {counts:?}")))
        };
        is_fair().or_else(|_| is_fair()).expect("fair");
    }
}

/// What the kernel hashes, [`slots::slot_of`] does too: other nodes and the proxy come to the same backends.
#[test]
fn source_is_as_the_slots_say_and_the_same_however_often() {
    let weights = [1, 1, 2, 5, 1];
    let snapshot = service(Balance::Source, &weights);
    let weighed: Vec<(EndpointId, Weight)> = (FIRST..)
        .zip(weights)
        .map(|(host, weight)| (EndpointId::from_bits(host.into()), weight.try_into().expect("a weight")))
        .collect();
    let owners = slots::owners(&weighed);
    for ipv6 in [false, true] {
        in_namespace(|| {
            let host = Host::new(&snapshot, ipv6, weights.len());
            let clients = || (0..600u16).map(|number| number * 97);
            let expected: Vec<usize> =
                clients().map(|client| owners[slots::slot_of(host.client(client))]).collect();
            assert_eq!(host.ask(clients()), expected);
            assert_eq!(host.ask(clients()), expected, "again");
        });
    }
}

/// Of a backend that leaves only its own clients go elsewhere, and they come back with it.
#[test]
fn source_moves_the_lost_share_alone() {
    let whole = service(Balance::Source, &[1; 5]);
    let mut without = whole.clone();
    without.health.insert(EndpointId::from_bits(u64::from(FIRST) + 2), Health::Unhealthy);
    let chosen = |snapshot: &Snapshot| in_namespace(|| Host::new(snapshot, false, 5).ask(0..500));
    let (before, after) = (chosen(&whole), chosen(&without));
    assert_eq!(counts(&after, 5)[2], 0);
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    assert_eq!(moved, counts(&before, 5)[2], "its clients and nobody else");
    assert!(moved > 50, "{moved}");
    assert_eq!(chosen(&whole), before);
}
