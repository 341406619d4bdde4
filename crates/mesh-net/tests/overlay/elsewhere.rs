//! Replicas and hosts with other interfaces than the network's: what they answer goes back the way that the question came.

use crate::lab::{Lab, Space, address, ask, prefix, serve, wait_until};
use mesh_model::{EndpointId, Protocol, PublishMode, PublishedPort};
use mesh_net::Pass;
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

/// Answers every datagram to an address and port of a namespace with whom it is from, until the test ends.
fn names_senders(space: &Space, own: &str) {
    let socket = space.within(|| UdpSocket::bind(own)).expect("the address and port are free");
    thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 8]) {
            let _ = socket.send_to(from.ip().to_canonical().to_string().as_bytes(), from);
        }
    });
}

/// Asks until an answer comes from where it was asked: whom the server saw.
fn seen(socket: &UdpSocket, to: &str) -> IpAddr {
    let to: SocketAddr = to.parse().expect("an address and a port");
    let mut answer = [0; 64];
    let mut seen = None;
    wait_until(&format!("{to} answers"), || {
        let answered = socket.send_to(b"?", to).and_then(|_| socket.recv_from(&mut answer));
        let answered = answered.ok().filter(|(_, from)| *from == to);
        seen = answered.map(|(length, _)| address(&String::from_utf8_lossy(&answer[..length])));
        seen.is_some()
    });
    seen.expect("an answer")
}

fn client_socket(client: &Space, own: &str) -> UdpSocket {
    let socket = client.within(|| UdpSocket::bind(own)).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    socket
}

/// A replica on the first of two hosts. TCP and UDP of ports 8080 and 8081 lead to its ports 80 and 81.
fn replica(lab: &mut Lab) -> EndpointId {
    lab.network(1);
    lab.container(1, 1, 12);
    let replica = lab.container(0, 1, 30);
    let service = lab.service(1, &[replica], Some(8080));
    let ports = [8080, 8081].into_iter().flat_map(|published| {
        [Protocol::Tcp, Protocol::Udp].map(|protocol| PublishedPort {
            published,
            target: published - 8000,
            protocol,
            mode: PublishMode::Ingress,
            ip: None,
            proxy_protocol: None,
        })
    });
    Arc::make_mut(lab.snapshot.services.get_mut(&service).expect("a service")).ports = ports.collect();
    replica
}

/// The published ports on both hosts, by both families, and a client's own addresses.
const WAYS: [(&str, [&str; 2], &str, &str); 2] = [
    ("10.77.0.100", ["10.77.0.11", "10.77.0.12"], "10.1.0.1", "10.1.0.30"),
    ("fd77::100", ["[fd77::11]", "[fd77::12]"], "fd1::1", "fd1::30"),
];

#[test]
fn datagrams_past_a_default_route_elsewhere_come_from_the_gateway() {
    let mut lab = Lab::new(2, false);
    let replica = replica(&mut lab);
    let space = lab.in_container(replica);
    space.ip("link add docker0 type bridge");
    space.ip("addr add 172.18.0.2/16 dev docker0");
    space.ip("addr add fd99::2/64 dev docker0 nodad");
    space.ip("link set docker0 up");
    space.ip("route add default via 172.18.0.1");
    space.ip("-6 route add default via fd99::1");
    lab.reconcile(Pass::Changed);
    lab.watch_for_leaks();
    let space = lab.in_container(replica);
    serve(space);
    // One for all addresses, and one for each.
    names_senders(space, "[::]:80");
    names_senders(space, "10.1.0.30:81");
    names_senders(space, "[fd1::30]:81");
    let client = lab.plug("client", 100);
    for (own, hosts, gateway, direct) in WAYS {
        // From one port to both hosts, by turns: to the replica's host it is one client each.
        let from = [("40000", "8080"), ("53", "8081")];
        for (own_port, port) in from {
            let own = SocketAddr::new(address(own), own_port.parse().expect("a port")).to_string();
            let socket = client_socket(&client, &own);
            for host in hosts.into_iter().chain(hosts) {
                assert_eq!(seen(&socket, &format!("{host}:{port}")), address(gateway), "{host} from {own}");
            }
        }
        // TCP needs none of this.
        for host in hosts {
            let (_, seen) = ask(&client, &format!("{host}:8080")).expect("the port answers");
            assert_eq!(seen, address(own));
        }
        // Nor do neighbours on the network, that it has a route to.
        let neighbour = lab.containers.values().find(|space| space.name == "c1-12").expect("a neighbour");
        let any = if address(direct).is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let to = SocketAddr::new(address(direct), 80).to_string();
        let own = address(&direct.replace("30", "12"));
        assert_eq!(seen(&client_socket(neighbour, any), &to), own);
    }
    // Once the default route is gone, the network's takes its place, and there is no need any more.
    space.ip("route del default");
    space.ip("-6 route del default");
    lab.reconcile(Pass::Full);
    for (own, hosts, ..) in WAYS {
        let socket = client_socket(&client, &SocketAddr::new(address(own), 40_001).to_string());
        hosts.iter().for_each(|host| assert_eq!(seen(&socket, &format!("{host}:8080")), address(own)));
    }
    lab.leaks_nothing();
    assert_eq!(lab.reconcile(Pass::Full), 0);
}

/// A network that leads nowhere gives its containers no default route either.
#[test]
fn datagrams_reach_replicas_on_internal_networks() {
    let mut lab = Lab::new(2, false);
    let replica = replica(&mut lab);
    let network = lab.snapshot.endpoints[&replica].network;
    Arc::make_mut(lab.snapshot.networks.get_mut(&network).expect("a network")).internal = true;
    lab.reconcile(Pass::Changed);
    names_senders(lab.in_container(replica), "[::]:80");
    let client = lab.plug("client", 100);
    for (own, hosts, gateway, _) in WAYS {
        let socket = client_socket(&client, &SocketAddr::new(address(own), 40_000).to_string());
        hosts.iter().for_each(|host| assert_eq!(seen(&socket, &format!("{host}:8080")), address(gateway)));
    }
}

/// The client is the replica's neighbour on another interface of it, where an answer would be from nobody whom it has asked.
#[test]
fn answers_do_not_take_the_link_that_client_and_replica_share() {
    let mut lab = Lab::new(2, false);
    let replica = replica(&mut lab);
    let (space, lan) = (lab.in_container(replica), &lab.lan);
    lan.ip(&format!("link add shared type veth peer name eth9 netns {}", space.path().display()));
    lan.ip("link set shared master lan up");
    space.ip("addr add 10.77.0.50/24 dev eth9");
    space.ip("addr add fd77::50/64 dev eth9 nodad");
    space.ip("link set eth9 up");
    lab.reconcile(Pass::Changed);
    let space = lab.in_container(replica);
    serve(space);
    names_senders(space, "10.1.0.30:81");
    names_senders(space, "[fd1::30]:81");
    let client = lab.plug("client", 100);
    wait_until("they share a link", || client.pings("10.77.0.50") && client.pings("fd77::50"));
    for (own, hosts, ..) in WAYS {
        let socket = client_socket(&client, &SocketAddr::new(address(own), 40_000).to_string());
        for host in hosts {
            let (_, by_tcp) = ask(&client, &format!("{host}:8080")).expect("the port answers");
            assert_eq!(by_tcp, address(own), "{host}");
            assert_eq!(seen(&socket, &format!("{host}:8081")), address(own), "{host}");
        }
    }
}

/// Addresses at a second uplink of the first host: its own, that of the router there, and of a client beyond, whom the main
/// table looks for on the LAN.
const SECOND_UPLINK: [(&str, &str, &str, &str); 2] = [
    ("10.9.0.1/24", "10.9.0.2/24", "198.51.100.7/32", "10.77.0.100"),
    ("fd09::1/64", "fd09::2/64", "2001:db8::7/128", "fd77::100"),
];

#[test]
fn a_host_that_chooses_uplinks_by_source_addresses_answers_by_the_one_that_was_asked() {
    let mut lab = Lab::new(2, false);
    lab.network(1);
    let replicas = [lab.container(0, 1, 30), lab.container(1, 1, 31)];
    let service = lab.service(1, &replicas, Some(8080));
    let ports = [Protocol::Tcp, Protocol::Udp].map(|protocol| PublishedPort {
        published: 8080,
        target: 80,
        protocol,
        mode: PublishMode::Ingress,
        ip: None,
        proxy_protocol: None,
    });
    Arc::make_mut(lab.snapshot.services.get_mut(&service).expect("a service")).ports = ports.to_vec();
    let (wrong_way, beyond) = (lab.plug("wrong-way", 100), Space::new("beyond"));
    let host = &lab.hosts[0].space;
    host.ip(&format!("link add wan type veth peer name eth0 netns {}", beyond.path().display()));
    host.ip("link set wan up");
    beyond.ip("link set eth0 up");
    for (own, router, client, wrong) in SECOND_UPLINK {
        host.ip(&format!("addr add {own} dev wan nodad"));
        beyond.ip(&format!("addr add {router} dev eth0 nodad"));
        beyond.ip(&format!("addr add {client} dev lo nodad"));
        host.ip(&format!("route add {client} via {wrong}"));
    }
    lab.reconcile(Pass::Changed);
    for replica in replicas {
        serve(lab.in_container(replica));
        names_senders(lab.in_container(replica), "[::]:80");
    }
    let asked = |(own, client): (&str, &str)| {
        let (own, client) = (prefix(own).ip(), prefix(client).ip());
        let to = SocketAddr::new(own, 8080).to_string();
        // Of that address, not of the link's.
        let hint = if own.is_ipv6() { "-6 " } else { "" };
        beyond.ip(&format!("{hint}route replace {own} dev eth0 src {client}"));
        (to, client)
    };
    let ways = SECOND_UPLINK.map(|(own, _, client, _)| asked((own, client)));
    for (to, _) in &ways {
        ask(&beyond, to).expect_err("by the main table the answer goes elsewhere");
    }
    let host = &lab.hosts[0].space;
    for ((own, router, ..), family) in SECOND_UPLINK.into_iter().zip(["-4", "-6"]) {
        host.ip(&format!("{family} rule add from {} lookup 100", prefix(own).ip()));
        host.ip(&format!("{family} route add default via {} table 100", prefix(router).ip()));
    }
    lab.reconcile(Pass::Full);
    for (to, client) in &ways {
        let mut served = std::collections::BTreeSet::new();
        for _ in 0..4 {
            let (name, seen) = ask(&beyond, to).unwrap_or_else(|err| panic!("{to}: {err}"));
            assert_eq!(seen, *client);
            served.insert(name);
        }
        assert_eq!(served.len(), 2, "the replica here and the one elsewhere: {served:?}");
        let socket = client_socket(&beyond, &SocketAddr::new(*client, 40_000).to_string());
        assert_eq!(seen(&socket, to), *client);
    }
    // The other uplink goes on, and the host's own clients.
    for to in ["10.77.0.11:8080", "[fd77::11]:8080"] {
        ask(&wrong_way, to).expect("the LAN is answered");
        ask(&lab.hosts[0].space, to).unwrap_or_else(|err| panic!("the host at {to}: {err}"));
    }
    for (to, _) in &ways {
        ask(&lab.hosts[0].space, to).unwrap_or_else(|err| panic!("the host at {to}: {err}"));
    }
    assert_eq!(lab.reconcile(Pass::Full), 0);
    let rules = lab.hosts[0].space.ok("nft list ruleset");
    assert!(rules.contains("ip saddr set ct original ip daddr"), "{rules}");
    for (own, ..) in SECOND_UPLINK {
        let family = if prefix(own).ip().is_ipv6() { "-6" } else { "-4" };
        lab.hosts[0].space.ip(&format!("{family} rule del from {}", prefix(own).ip()));
    }
    lab.reconcile(Pass::Full);
    let rules = lab.hosts[0].space.ok("nft list ruleset");
    assert!(!rules.contains("as_asked"), "{rules}");
}
