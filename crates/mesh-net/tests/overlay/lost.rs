//! Hosts that are gone without a word: who is connected to what was on them is told, and what they were asked is asked elsewhere.

use crate::lab::{Lab, Space, echo_streams, wait_until};
use mesh_model::{EndpointId, NodeStatus};
use mesh_net::{
    Pass,
    netns::{Namespace, within},
};
use socket2::{Domain, Socket, Type};
use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    thread::{self, JoinHandle},
    time::Duration,
};

/// Ways to a service of a replica on each of two hosts, all by the first host, for a client on the LAN and one in the network.
const PUBLISHED: [&str; 2] = ["10.77.0.11:8080", "[fd77::11]:8080"];
const VIPS: [&str; 2] = ["10.1.0.100:80", "[fd1::100]:80"];

struct Scene {
    lab: Lab,
    outside: Space,
    inside: EndpointId,
}

impl Scene {
    fn new() -> Self {
        let mut lab = Lab::new(2, false);
        lab.network(1);
        let replicas = [lab.container(0, 1, 11), lab.container(1, 1, 12)];
        let inside = lab.container(0, 1, 20);
        lab.service(1, &replicas, Some(8080));
        lab.reconcile(Pass::Changed);
        lab.watch_for_leaks();
        replicas.iter().for_each(|replica| echo_streams(lab.in_container(*replica)));
        let outside = lab.plug("outside", 100);
        Self { lab, outside, inside }
    }

    /// A connection as the relay and the proxy make them: from inside the network's namespace to the replica on the second host.
    fn own(&self, to: &str) -> TcpStream {
        let host = &self.lab.hosts[0];
        let network = *self.lab.snapshot.networks.keys().next().expect("a network");
        let to: SocketAddr = to.parse().expect("an address and a port");
        // From the node's own address: the gateway's is every node's.
        let own = host.node.addresses.iter().find(|own| own.is_ipv4() == to.is_ipv4()).expect("an address");
        let connect = || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.bind(&SocketAddr::new(*own, 0).into())?;
            socket.connect_timeout(&to.into(), Duration::from_secs(10))?;
            io::Result::Ok(TcpStream::from(socket))
        };
        let stream = host.overlay(network).within(connect).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        stream
    }

    fn ways(&self) -> Vec<(&Space, &'static str)> {
        let inside = self.lab.in_container(self.inside);
        let published = PUBLISHED.map(|to| (&self.outside, to));
        published.into_iter().chain(VIPS.map(|vip| (inside, vip))).collect()
    }

    /// By turns, so that each replica has one by each way.
    fn connect(&self) -> Vec<TcpStream> {
        let ways = self.ways().into_iter().flat_map(|way| [way, way]);
        let streams = ways.map(|(from, to)| {
            let stream = from.within(|| TcpStream::connect(to)).expect("a connection");
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
            stream
        });
        let mut streams: Vec<TcpStream> = streams.collect();
        streams.iter_mut().for_each(|stream| echoes(stream).expect("it answers"));
        streams
    }

    /// What the first host thinks of the second from now on.
    fn judge(&mut self, status: NodeStatus, is_lost: bool) {
        let Lab { hosts, snapshot, .. } = &mut self.lab;
        let node = hosts[1].node.id;
        snapshot.status.insert(node, status);
        snapshot.lost = is_lost.then_some(node).into_iter().collect();
        hosts[0].reconcile(snapshot, Pass::Changed);
        assert_eq!(hosts[0].reconcile(snapshot, Pass::Full).firewalls, 0, "a full pass finds other rules");
    }
}

/// A connection that is made by a thread of its own, with half a minute of patience.
fn connecting((from, to): (&Space, &'static str)) -> JoinHandle<io::Result<TcpStream>> {
    let to: SocketAddr = to.parse().expect("an address and a port");
    let namespace = Namespace::open(&from.path()).expect("it is there");
    thread::spawn(move || {
        let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(30));
        within(&namespace, connect).expect("it can be entered")
    })
}

fn echoes(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"?").and_then(|()| stream.read_exact(&mut [0]))
}

#[test]
fn connections_to_a_lost_host_meet_a_reset_when_the_client_sends() {
    let mut scene = Scene::new();
    let mut streams = scene.connect();
    let mut own = ["10.1.0.12:80", "[fd1::12]:80"].map(|to| scene.own(to));
    own.iter_mut().for_each(|stream| echoes(stream).expect("it answers"));
    // Its daemon alone has ended.
    scene.judge(NodeStatus::Down, false);
    streams.iter_mut().for_each(|stream| echoes(stream).expect("it goes on"));
    scene.lab.hosts[1].space.ip("link set eth0 down");
    scene.judge(NodeStatus::Down, true);
    let ended: Vec<_> =
        streams.iter_mut().map(|stream| echoes(stream).err().map(|error| error.kind())).collect();
    let reset = ended.iter().filter(|kind| **kind == Some(io::ErrorKind::ConnectionReset)).count();
    assert_eq!(reset, 4, "{ended:?}");
    assert_eq!(ended.iter().filter(|kind| kind.is_none()).count(), 4, "{ended:?}");
    scene.lab.leaks_nothing();
    // Each way has one of each.
    assert!(ended.chunks(2).all(|pair| pair[0].is_none() != pair[1].is_none()), "{ended:?}");
    // The first thing sent meets it; a read may be told before the write has returned.
    let own = own.iter_mut().map(|stream| echoes(stream).expect_err("its host is lost").kind());
    let told = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
    own.for_each(|kind| assert!(told.contains(&kind), "{kind}"));
}

#[test]
fn connections_to_a_host_that_returns_before_the_client_sends_go_on() {
    let mut scene = Scene::new();
    let mut streams = scene.connect();
    let host = |scene: &Scene, state: &str| {
        scene.lab.hosts[1].space.ip(&format!("link set eth0 {state}"));
    };
    host(&scene, "down");
    scene.judge(NodeStatus::Down, true);
    host(&scene, "up");
    scene.judge(NodeStatus::Ready, false);
    streams.iter_mut().for_each(|stream| echoes(stream).expect("it goes on"));
    scene.connect();
    scene.lab.leaks_nothing();
}

/// A SYN is sent again by its client, and then goes to a replica that lives.
#[test]
fn what_a_lost_host_does_not_answer_is_asked_elsewhere() {
    let mut scene = Scene::new();
    scene.connect();
    scene.lab.hosts[1].space.ip("link set eth0 down");
    let connects: Vec<_> = scene.ways().into_iter().flat_map(|way| [way, way]).map(connecting).collect();
    let waits = |space: &Space| space.ok("ss -Htn state syn-sent").lines().count() == 2;
    wait_until("half of the connections are not answered", || {
        waits(&scene.outside) && waits(scene.lab.in_container(scene.inside))
    });
    scene.judge(NodeStatus::Down, false);
    for connecting in connects {
        let mut stream = connecting.join().expect("no panic").expect("the replica that lives answers");
        echoes(&mut stream).expect("it answers");
    }
}
