//! What the tables do to packets.

use super::cluster::{add_replica, add_service, cluster, edit, network_id, node_id, published};
use super::lab::{Lab, Namespace, Plan};
use crate::nft::tests::namespace::load;
use crate::rules::Rules;
use mesh_model::{Balance, Health, Protocol, Snapshot};
use socket2::{Domain, Socket, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

/// Host parts of the VIPs of a service with two replicas and of one without.
const WEB: u8 = 100;
const EMPTY: u8 = 101;

fn state() -> Snapshot {
    let mut snapshot = cluster(2);
    let ports = vec![published(8080, 80, Protocol::Tcp)];
    let web = add_service(&mut snapshot, 1, WEB, Balance::Roundrobin, ports);
    add_replica(&mut snapshot, web, 1, 0x11, Health::Healthy);
    add_replica(&mut snapshot, web, 2, 0x12, Health::Healthy);
    // The lab writes host parts in decimal in both versions.
    for (endpoint, host) in snapshot.endpoints.values_mut().zip([11, 12]) {
        edit(Some(endpoint), |endpoint| endpoint.addresses = both(host));
    }
    let ports = vec![published(5353, 53, Protocol::Udp)];
    add_service(&mut snapshot, 2, EMPTY, Balance::Roundrobin, ports);
    for (service, vip) in snapshot.services.values_mut().zip([WEB, EMPTY]) {
        edit(Some(service), |service| service.networks[0].vips = both(vip.into()));
    }
    snapshot
}

fn both(host: u16) -> Vec<IpAddr> {
    Plan::BOTH.map(|plan| plan.overlay(host)).to_vec()
}

fn apply(lab: &Lab, snapshot: &Snapshot) {
    for (index, overlay) in (1..).zip(&lab.overlays) {
        let rules = Rules::new(snapshot, &snapshot.nodes[&node_id(index)]);
        let tables = rules.overlay(&snapshot.networks[&network_id()]);
        overlay.run(|| load(&tables.each_ref()));
    }
    let closed = BTreeSet::from(["eth0".to_owned()]);
    let tables = Rules::new(snapshot, &snapshot.nodes[&node_id(1)]).host(&closed);
    lab.host.run(|| load(&tables.each_ref()));
}

/// Asks eight times; how often each server answered, and all addresses that servers saw.
#[track_caller]
fn ask(from: &Namespace, to: IpAddr, port: u16) -> (BTreeMap<String, u32>, BTreeSet<IpAddr>) {
    let mut counts = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for _ in 0..8 {
        let (name, address) =
            from.ask(to, port).unwrap_or_else(|error| panic!("[{to}]:{port}: {error}; got {counts:?}"));
        *counts.entry(name).or_default() += 1;
        seen.insert(address);
    }
    (counts, seen)
}

fn evenly() -> BTreeMap<String, u32> {
    BTreeMap::from([("one".to_owned(), 4), ("two".to_owned(), 4)])
}

#[test]
fn published_ports_and_vips_reach_every_replica_in_turn() {
    let lab = Lab::new(&[WEB.into(), EMPTY.into()]);
    apply(&lab, &state());
    for plan in Plan::BOTH {
        let (counts, seen) = ask(&lab.client, plan.lan(1), 8080);
        assert_eq!((counts, seen), (evenly(), [plan.lan(2)].into()), "the client's address is kept");
        let (counts, _) = ask(&lab.host, plan.lan(1), 8080);
        assert_eq!(counts, evenly(), "the host's own clients");
        let (counts, seen) = ask(&lab.replicas[0], plan.overlay(WEB.into()), 80);
        assert_eq!(counts, evenly(), "a replica among the backends of its own VIP");
        assert_eq!(seen, [plan.overlay(1), plan.overlay(11)].into(), "itself it sees as the gateway");
        let (counts, _) = ask(&lab.replicas[0], plan.lan(1), 8080);
        assert_eq!(counts, evenly(), "a container and a published port of its own network");
        let (counts, seen) = ask(&lab.replicas[0], plan.lan(2), 80);
        assert_eq!(counts["client"], 8);
        assert_eq!(seen, [plan.lan(1)].into(), "what leaves the overlay bears the host's address");
    }
}

#[test]
fn a_vip_answers_a_ping_as_long_as_there_is_a_backend() {
    let lab = Lab::new(&[WEB.into(), EMPTY.into()]);
    let mut snapshot = state();
    for balance in [Balance::Roundrobin, Balance::Random] {
        edit(snapshot.services.values_mut().next(), |web| web.balance = balance);
        apply(&lab, &snapshot);
        for (plan, replica) in Plan::BOTH.into_iter().zip(&lab.replicas) {
            assert!((0..4).all(|_| replica.ping(plan.overlay(WEB.into()))), "{balance}");
            assert!(!replica.ping(plan.overlay(EMPTY.into())));
        }
    }
}

/// A segment of no connection, as a replica sends when its connection has been forgotten; whether it reaches the client.
fn strays(lab: &Lab, to: IpAddr) -> bool {
    const PORT: u16 = 80;
    let raw = || {
        let domain = Domain::for_address(SocketAddr::new(to, 0));
        Socket::new(domain, Type::from(libc::SOCK_RAW), Some(socket2::Protocol::TCP))
            .expect("this test needs root")
    };
    let heard = lab.client.run(raw);
    heard.set_read_timeout(Some(Duration::from_millis(700))).expect("a socket");
    // SYN and ACK, a header of five words; the checksum is nobody's care before a socket.
    let segment =
        [&PORT.to_be_bytes()[..], &[0x9c, 0x40, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x12, 1, 0, 0, 0, 0, 0]]
            .concat();
    lab.replicas[0].run(|| raw().send_to(&segment, &SocketAddr::new(to, 0).into())).expect("sent");
    let mut packet = [0; 128];
    while let Ok(len) = (&heard).read(&mut packet) {
        if packet[..len].windows(14).any(|part| *part == segment[..14]) {
            return true;
        }
    }
    false
}

#[test]
fn what_belongs_to_no_connection_does_not_leave_an_overlay() {
    let lab = Lab::new(&[WEB.into(), EMPTY.into()]);
    for plan in Plan::BOTH {
        assert!(strays(&lab, plan.lan(2)), "without rules it does, with an address of the overlay");
    }
    apply(&lab, &state());
    for plan in Plan::BOTH {
        assert!(!strays(&lab, plan.lan(2)));
    }
}

/// Has the first replica send the client a datagram, as the first of a flow; the sender's port as the client sees it.
fn announced(lab: &Lab, plan: Plan, from: u16, client: &UdpSocket) -> u16 {
    let port = client.local_addr().expect("bound").port();
    lab.replicas[0].run(|| {
        let socket = UdpSocket::bind((plan.overlay(11), from)).expect("the port is free");
        socket.send_to(b"late", (plan.lan(2), port)).expect("sent");
    });
    client.recv_from(&mut [0; 8]).expect("it comes").1.port()
}

/// What a replica answers while its flow is forgotten does not bind the client to it.
#[test]
fn a_late_answer_takes_no_published_port() {
    let lab = Lab::new(&[WEB.into(), EMPTY.into()]);
    let mut snapshot = state();
    let first = *snapshot.endpoints.keys().next().expect("two replicas");
    let web = snapshot.endpoints[&first].service.expect("a replica");
    // The published number is the replicas' own: masquerading keeps it if it can.
    edit(snapshot.services.get_mut(&web), |service| service.ports.push(published(53, 53, Protocol::Udp)));
    let bind = |namespace: &Namespace, address: IpAddr, port: u16| {
        let socket = namespace.run(|| UdpSocket::bind((address, port))).expect("the port is free");
        socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
        socket
    };
    for (health, backend) in [(Health::Healthy, true), (Health::Starting, true), (Health::Unhealthy, false)] {
        snapshot.health.insert(first, health);
        apply(&lab, &snapshot);
        for plan in Plan::BOTH {
            let client = bind(&lab.client, plan.lan(2), 0);
            // Also one that was published until lately.
            let port = announced(&lab, plan, 54, &client);
            assert!(port >= 49152, "{port}");
            let port = announced(&lab, plan, 53, &client);
            if backend {
                assert_eq!(port, 53, "a backend keeps its own published port");
                continue;
            }
            assert!(port >= 49152, "{port}");
            let second = bind(&lab.replicas[1], plan.overlay(12), 53);
            client.send_to(b"?", (plan.lan(1), 53)).expect("sent");
            assert_eq!(receive(&second), Ok(1), "the client is led to the backend that there is");
        }
    }
}

#[test]
fn the_host_is_no_door() {
    let lab = Lab::new(&[WEB.into(), EMPTY.into()]);
    let mut snapshot = state();
    for plan in Plan::BOTH {
        assert!(lab.client.ask(plan.overlay(11), 80).is_ok(), "without rules the door is open");
    }
    apply(&lab, &snapshot);
    for plan in Plan::BOTH {
        for host in [1, 11, u16::from(WEB)] {
            let refused = lab.client.ask_in_vain(plan.overlay(host), 80);
            assert_eq!(refused, ErrorKind::TimedOut, "{}", plan.overlay(host));
        }
    }
    for plan in Plan::BOTH {
        assert!(lab.replicas[0].ask(plan.lan(1), 22).is_ok(), "containers reach what the host serves");
    }
    edit(snapshot.networks.get_mut(&network_id()), |network| network.internal = true);
    apply(&lab, &snapshot);
    for plan in Plan::BOTH {
        for (to, port) in [(plan.lan(2), 80), (plan.lan(1), 22)] {
            let refused = lab.replicas[0].ask_in_vain(to, port);
            assert_eq!(refused, ErrorKind::TimedOut, "an internal network has no way out");
        }
        let (counts, _) = ask(&lab.client, plan.lan(1), 8080);
        assert_eq!(counts, evenly(), "its published ports answer all the same");
    }
}

/// A datagram, or why there is none; a signal to the test's process is no reason.
fn receive(socket: &UdpSocket) -> Result<usize, ErrorKind> {
    loop {
        match socket.recv(&mut [0; 8]).map_err(|error| error.kind()) {
            Err(ErrorKind::Interrupted) => {}
            received => return received,
        }
    }
}

#[test]
fn containers_send_nobody_frames() {
    const VXLAN: u16 = 4789;
    let lab = Lab::new(&[WEB.into(), EMPTY.into()]);
    apply(&lab, &state());
    for plan in Plan::BOTH {
        for (receiver, to) in [(&lab.client, plan.lan(2)), (&lab.host, plan.lan(1))] {
            let sent = |port| {
                let socket = receiver.run(|| UdpSocket::bind((to, port))).unwrap();
                socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
                lab.replicas[0]
                    .run(|| UdpSocket::bind((plan.overlay(11), 0))?.send_to(b"frame", (to, port)))
                    .unwrap();
                receive(&socket)
            };
            assert_eq!(sent(VXLAN + 1), Ok(5), "{to}: other ports are fine");
            assert_eq!(sent(VXLAN), Err(ErrorKind::WouldBlock), "{to}");
        }
    }
}

#[test]
fn only_nodes_send_frames() {
    const VXLAN: u16 = 4789;
    let lab = Lab::new(&[WEB.into(), EMPTY.into()]);
    for plan in Plan::BOTH {
        let (from, to) = (plan.lan(2), plan.lan(1));
        // A header for a network of the mesh, and for one that is none.
        let header = |vni: u8| [8, 0, 0, 0, 0, vni, 0, 0];
        let sent = |port, vni| {
            let socket = lab.host.run(|| UdpSocket::bind((to, port))).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
            lab.client.run(|| UdpSocket::bind((from, 0))?.send_to(&header(vni), (to, port))).unwrap();
            receive(&socket)
        };
        let mut snapshot = state();
        apply(&lab, &snapshot);
        assert_eq!(sent(VXLAN + 1, 0x10), Ok(8), "{to}: other ports are fine");
        assert_eq!(sent(VXLAN, 0x20), Ok(8), "{to}: other networks are somebody else's");
        assert_eq!(sent(VXLAN, 0x10), Err(ErrorKind::WouldBlock), "{to}");
        edit(snapshot.nodes.get_mut(&node_id(2)), |node| node.advertise.set_ip(from));
        apply(&lab, &snapshot);
        assert_eq!(sent(VXLAN, 0x10), Ok(8), "{to}: {from} is a node");
    }
}

#[test]
fn without_a_backend_clients_are_told_at_once() {
    let lab = Lab::new(&[WEB.into(), EMPTY.into()]);
    apply(&lab, &state());
    for plan in Plan::BOTH {
        let refused = lab.replicas[0].ask(plan.overlay(EMPTY.into()), 80).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        for (from, to) in [
            (&lab.replicas[0], (plan.overlay(EMPTY.into()), 53)),
            (&lab.client, (plan.lan(1), 5353)),
            (&lab.host, (plan.lan(1), 5353)),
        ] {
            let answer = from.run(|| {
                let unspecified: IpAddr = if to.0.is_ipv6() { [0u16; 8].into() } else { [0u8; 4].into() };
                let socket = UdpSocket::bind((unspecified, 0))?;
                socket.set_read_timeout(Some(Duration::from_secs(10)))?;
                socket.connect(to)?;
                socket.send(b"?")?;
                socket.recv(&mut [0; 1])
            });
            assert_eq!(answer.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to:?}");
        }
    }
}
