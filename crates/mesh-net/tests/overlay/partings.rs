//! Backends that leave: what has a connection to them goes on, goes elsewhere, or is told.

use crate::lab::{Host, Lab, Space, echo_streams, wait_until};
use mesh_model::{EndpointId, NodeStatus, Protocol, PublishMode, PublishedPort};
use mesh_net::Pass;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

/// Answers every datagram to port 80 in a namespace with its name, until the test ends.
fn name_itself(space: &Space) {
    let socket = space.within(|| UdpSocket::bind("[::]:80")).expect("port 80 is free in a container");
    let name = space.name.clone();
    thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
            let _ = socket.send_to(name.as_bytes(), from);
        }
    });
}

fn flow(from: &Space, own: &str) -> UdpSocket {
    let socket = from.within(|| UdpSocket::bind(own)).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    socket
}

/// Asks until somebody answers.
fn answered_by(socket: &UdpSocket, to: SocketAddr) -> String {
    let mut answer = [0; 64];
    let mut name = String::new();
    wait_until(&format!("{to} answers"), || {
        match socket.send_to(b"?", to).and_then(|_| socket.recv(&mut answer)) {
            Ok(length) => {
                name = String::from_utf8_lossy(&answer[..length]).into_owned();
                true
            }
            Err(_) => false,
        }
    });
    name
}

fn two_replicas(protocol: Protocol) -> (Lab, [EndpointId; 2], Space) {
    let mut lab = Lab::new(2, false);
    lab.network(1);
    let replicas = [lab.container(0, 1, 11), lab.container(1, 1, 12)];
    let service = lab.service(1, &replicas, Some(8080));
    Arc::make_mut(lab.snapshot.services.get_mut(&service).expect("a service")).ports[0].protocol = protocol;
    let client = lab.plug("client", 100);
    (lab, replicas, client)
}

/// A flow has no end that anybody sees: it would stay with a backend for as long as its client asks.
#[test]
fn datagrams_go_to_another_backend_when_theirs_leaves() {
    let (mut lab, replicas, client) = two_replicas(Protocol::Udp);
    let inside = lab.container(0, 1, 20);
    lab.reconcile(Pass::Changed);
    replicas.iter().for_each(|replica| name_itself(lab.in_container(*replica)));
    let flows: Vec<(UdpSocket, SocketAddr)> = [
        (&client, "0.0.0.0:0", "10.77.0.11:8080"),
        (&client, "[::]:0", "[fd77::12]:8080"),
        (lab.in_container(inside), "0.0.0.0:0", "10.1.0.100:80"),
        (lab.in_container(inside), "[::]:0", "[fd1::100]:80"),
    ]
    .into_iter()
    .map(|(from, own, to)| (flow(from, own), to.parse().expect("an address")))
    .collect();
    for leaving in [0, 1, 0] {
        let name = |at: usize| lab.snapshot.endpoints[&replicas[at]].name.to_string();
        let (stays, leaves) = (name(1 - leaving), name(leaving));
        flows.iter().for_each(|(socket, to)| drop(answered_by(socket, *to)));
        lab.change(replicas[leaving], |endpoint| endpoint.draining = true);
        lab.reconcile(Pass::Changed);
        for (socket, to) in &flows {
            // An answer of before may still be on its way.
            wait_until(&format!("{to} is not answered by {leaves}"), || answered_by(socket, *to) == stays);
            assert!((0..3).all(|_| answered_by(socket, *to) == stays), "{to}");
        }
        lab.change(replicas[leaving], |endpoint| endpoint.draining = false);
        lab.reconcile(Pass::Changed);
    }
}

/// So is one to a port that leads to something else, or nowhere: its client would be served for as long as it asks.
#[test]
fn datagrams_follow_the_port_that_they_are_sent_to() {
    let (mut lab, replicas, client) = two_replicas(Protocol::Udp);
    lab.reconcile(Pass::Changed);
    replicas.iter().for_each(|replica| name_itself(lab.in_container(*replica)));
    let service = lab.snapshot.endpoints[&replicas[0]].service.expect("a replica");
    let flows: Vec<(UdpSocket, SocketAddr)> =
        [("0.0.0.0:0", "10.77.0.11:8080"), ("[::]:0", "[fd77::12]:8080")]
            .map(|(own, to)| (flow(&client, own), to.parse().expect("an address")))
            .into();
    let answers = |(socket, to): &(UdpSocket, SocketAddr)| {
        socket.send_to(b"?", to).and_then(|_| socket.recv(&mut [0; 64])).is_ok()
    };
    let ports = lab.snapshot.services[&service].ports.clone();
    // Also when all is looked at, and by a daemon that was not there when it changed.
    for (pass, restarts) in [(Pass::Changed, false), (Pass::Full, false), (Pass::Changed, true)] {
        let target = |lab: &mut Lab, target: Option<u16>| {
            let service = Arc::make_mut(lab.snapshot.services.get_mut(&service).expect("a service"));
            service.ports = target.iter().flat_map(|_| ports.clone()).collect();
            service.ports.iter_mut().for_each(|port| port.target = target.unwrap_or_default());
            if restarts {
                lab.hosts.iter_mut().for_each(Host::forget);
            }
            lab.reconcile(pass);
        };
        target(&mut lab, Some(80));
        let by = || flows.iter().map(|(socket, to)| answered_by(socket, *to)).collect::<Vec<_>>();
        let before = by();
        // Nothing changes, so that nobody moves: in turn, it would be to the other replica.
        target(&mut lab, Some(80));
        assert_eq!(by(), before);
        // Nobody is at that one.
        target(&mut lab, Some(81));
        for flow in &flows {
            wait_until("nobody answers", || (0..3).all(|_| !answers(flow)));
        }
        target(&mut lab, Some(80));
        flows.iter().for_each(|(socket, to)| drop(answered_by(socket, *to)));
        target(&mut lab, None);
        for flow in &flows {
            wait_until("it is published no longer", || (0..3).all(|_| !answers(flow)));
        }
    }
}

/// A container that publishes a port of its own, of no service.
#[test]
fn nothing_is_left_of_flows_to_a_container_that_is_gone() {
    let mut lab = Lab::new(1, false);
    lab.network(1);
    let container = lab.container(0, 1, 11);
    let port = PublishedPort {
        published: 9090,
        target: 80,
        protocol: Protocol::Udp,
        mode: PublishMode::Host,
        ip: None,
        proxy_protocol: None,
    };
    lab.change(container, |endpoint| endpoint.ports = vec![port.clone()]);
    lab.reconcile(Pass::Changed);
    name_itself(lab.in_container(container));
    let client = lab.plug("client", 100);
    let to = "10.77.0.11:9090".parse().expect("an address");
    answered_by(&flow(&client, "0.0.0.0:0"), to);
    let entries =
        |lab: &Lab| lab.hosts[0].space.ok("cat /proc/net/nf_conntrack").matches("dport=9090").count();
    assert_eq!(entries(&lab), 1);
    lab.snapshot.endpoints.remove(&container);
    lab.reconcile(Pass::Changed);
    assert_eq!(entries(&lab), 0);
}

#[test]
fn connections_outlive_a_drain_and_meet_a_reset_when_their_backend_is_gone() {
    let (mut lab, replicas, outside) = two_replicas(Protocol::Tcp);
    let inside = [lab.container(0, 1, 20), lab.container(1, 1, 21)];
    lab.reconcile(Pass::Changed);
    lab.watch_for_leaks();
    replicas.iter().for_each(|replica| echo_streams(lab.in_container(*replica)));
    let echoes = |stream: &mut TcpStream| stream.write_all(b"?").and_then(|()| stream.read_exact(&mut [0]));
    let connect = |client: &Space, to: &str| {
        let stream = client.within(|| TcpStream::connect(to)).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        stream
    };
    // By turns, so that each replica has some by each way: by ports of both hosts, by the VIP on both.
    let published = ["10.77.0.11:8080", "10.77.0.12:8080", "[fd77::11]:8080", "[fd77::12]:8080"];
    let vips = ["10.1.0.100:80", "[fd1::100]:80"];
    let within = inside.iter().flat_map(|client| vips.map(|vip| (lab.in_container(*client), vip)));
    let ways = published.into_iter().map(|to| (&outside, to)).chain(within);
    let mut streams: Vec<TcpStream> =
        ways.flat_map(|(client, to)| [connect(client, to), connect(client, to)]).collect();
    streams.iter_mut().for_each(|stream| echoes(stream).expect("it answers"));
    lab.change(replicas[1], |endpoint| endpoint.draining = true);
    lab.reconcile(Pass::Changed);
    streams.iter_mut().for_each(|stream| echoes(stream).expect("it goes on while it is drained"));
    lab.snapshot.endpoints.remove(&replicas[1]);
    lab.reconcile(Pass::Changed);
    let ended = streams.iter_mut().filter_map(|stream| echoes(stream).err()).map(|error| error.kind());
    let ended: Vec<_> = ended.collect();
    assert_eq!(ended, [std::io::ErrorKind::ConnectionReset; 8]);
    lab.leaks_nothing();
}

/// Nobody on the dead host says anything: flows go elsewhere, and so does what was asked and not answered.
#[test]
fn what_a_dead_host_does_not_answer_is_asked_elsewhere() {
    let (mut lab, replicas, client) = two_replicas(Protocol::Udp);
    let inside = lab.container(0, 1, 20);
    lab.reconcile(Pass::Changed);
    for replica in replicas {
        name_itself(lab.in_container(replica));
        echo_streams(lab.in_container(replica));
    }
    let [stays, dies] = replicas.map(|replica| lab.snapshot.endpoints[&replica].name.to_string());
    let ways = [
        (&client, "0.0.0.0:0", "10.77.0.11:8080"),
        (&client, "[::]:0", "[fd77::11]:8080"),
        (lab.in_container(inside), "0.0.0.0:0", "10.1.0.100:80"),
        (lab.in_container(inside), "[::]:0", "[fd1::100]:80"),
    ];
    let flows: Vec<(UdpSocket, SocketAddr)> = ways
        .iter()
        .flat_map(|(from, own, to)| (0..2).map(|_| (flow(from, own), to.parse().expect("an address"))))
        .collect();
    let names: Vec<String> = flows.iter().map(|(socket, to)| answered_by(socket, *to)).collect();
    assert_eq!(names.iter().filter(|name| **name == dies).count(), 4, "{names:?}");
    lab.hosts[1].space.ip("link set eth0 down");
    thread::scope(|scope| {
        // Two of these are for the dead replica.
        let Lab { hosts, containers, snapshot, .. } = &mut lab;
        let from = &containers[&inside];
        let connects = ["10.1.0.100:80", "10.1.0.100:80", "[fd1::100]:80", "[fd1::100]:80"].map(|vip| {
            let vip = vip.parse().expect("an address");
            scope.spawn(move || from.within(|| TcpStream::connect_timeout(&vip, Duration::from_secs(30))))
        });
        let asked = || from.ok("ss -Htn state syn-sent").lines().count() == 2;
        wait_until("two connections are not answered", asked);
        snapshot.status.insert(hosts[1].node.id, NodeStatus::Down);
        hosts[0].reconcile(snapshot, Pass::Changed);
        for connect in connects {
            connect.join().expect("no panic").expect("the replica that lives answers");
        }
    });
    for (socket, to) in &flows {
        wait_until(&format!("{to} is answered"), || answered_by(socket, *to) == stays);
    }
}

/// A daemon that starts forgets what is left to backends that went while it was away.
#[test]
fn who_left_while_no_daemon_ran_is_forgotten() {
    let (mut lab, replicas, client) = two_replicas(Protocol::Udp);
    lab.reconcile(Pass::Changed);
    replicas.iter().for_each(|replica| name_itself(lab.in_container(*replica)));
    let sockets = [(); 2].map(|()| flow(&client, "0.0.0.0:0"));
    let to = "10.77.0.11:8080".parse().expect("an address");
    let names: Vec<String> = sockets.iter().map(|socket| answered_by(socket, to)).collect();
    assert_ne!(names[0], names[1], "each has a backend of its own");
    lab.hosts.iter_mut().for_each(|host| host.forget());
    let stays = lab.snapshot.endpoints[&replicas[0]].name.to_string();
    lab.snapshot.endpoints.remove(&replicas[1]);
    lab.reconcile(Pass::Full);
    for socket in &sockets {
        wait_until("the flow has moved", || answered_by(socket, to) == stays);
    }
}
