//! A VIP stands for every protocol, and for packets that come in pieces; without a backend it says so.

use crate::lab::{Lab, Space, address, echo_datagrams, echo_streams, tracked, wait_until};
use mesh_model::{EndpointId, Protocol};
use mesh_net::Pass;
use socket2::{Domain, Socket, Type};
use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

const SCTP: i32 = 132;
const GRE: i32 = 47;
const IPV4_HEADER: usize = 20;

/// The checksum of SCTP (RFC 9260, appendix A): without the right one, connection tracking takes no notice.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg()))
    })
}

/// An SCTP packet with one chunk: INIT, or the acknowledgement of one.
fn sctp(chunk: u8, ports: [u16; 2], tag: u32) -> Vec<u8> {
    let mut packet = ports.map(u16::to_be_bytes).concat();
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([chunk, 0, 0, 20]);
    // Its own tag, window, streams out and in, first sequence number.
    packet.extend([0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// A GRE packet (RFC 2784) around a word.
fn gre(word: &[u8]) -> Vec<u8> {
    [&[0, 0, 8, 0], word].concat()
}

fn raw(space: &Space, protocol: i32, ipv6: bool) -> Socket {
    let domain = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = space.within(|| Socket::new(domain, Type::RAW, Some(protocol.into())));
    let socket = socket.expect("root is needed for raw sockets");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    socket
}

/// The payload of the next packet, if one comes in time.
fn received(mut socket: &Socket, ipv6: bool) -> Option<Vec<u8>> {
    let mut packet = [0; 256];
    let length = socket.read(&mut packet).ok()?;
    // A raw socket of IPv4 gives the header as well.
    packet.get(if ipv6 { 0 } else { IPV4_HEADER }..length).map(<[u8]>::to_vec)
}

#[test]
fn protocols_without_ports_of_nat_pass_the_vip() {
    let mut lab = Lab::new(2, false);
    lab.network(1);
    let replicas = [lab.container(0, 1, 11), lab.container(1, 1, 12)];
    let client = lab.container(0, 1, 20);
    lab.service(1, &replicas, None);
    lab.reconcile(Pass::Changed);
    for (vip, own) in [("10.1.0.100", "10.1.0.20"), ("fd1::100", "fd1::20")] {
        let (vip, own) = (address(vip), address(own));
        for (protocol, question, answer) in [
            (SCTP, sctp(1, [4000, 5000], 0), sctp(2, [5000, 4000], 7)),
            (GRE, gre(b"question"), gre(b"answer")),
        ] {
            // Each replica answers the client's address with what it is asked for.
            for replica in replicas {
                let socket = raw(lab.in_container(replica), protocol, vip.is_ipv6());
                socket.set_read_timeout(None).expect("no timeout");
                let (question, answer) = (question.clone(), answer.clone());
                thread::spawn(move || {
                    while let Some(packet) = received(&socket, vip.is_ipv6()) {
                        if packet == question {
                            let _ = socket.send_to(&answer, &SocketAddr::new(own, 0).into());
                        }
                    }
                });
            }
            // A raw socket that is connected takes what comes from that address alone.
            let socket = raw(lab.in_container(client), protocol, vip.is_ipv6());
            socket.connect(&SocketAddr::new(vip, 0).into()).expect("a way");
            wait_until(&format!("{vip} answers protocol {protocol}"), || {
                let _ = socket.send(&question);
                received(&socket, vip.is_ipv6()).is_some_and(|packet| packet == answer)
            });
        }
    }
}

fn unspecified(of: SocketAddr) -> IpAddr {
    match of {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A socket for datagrams to an address.
fn datagrams_to(space: &Space, to: SocketAddr, patience: Duration) -> UdpSocket {
    let socket = space.within(|| UdpSocket::bind((unspecified(to), 0))).expect("a socket");
    socket.set_read_timeout(Some(patience)).expect("a timeout");
    socket
}

/// What a client is told of a datagram that nobody answers. A socket that is connected hears errors about packets to that
/// address only.
fn told_of_a_datagram(space: &Space, to: SocketAddr) -> ErrorKind {
    let socket = datagrams_to(space, to, Duration::from_secs(2));
    let told = socket.connect(to).and_then(|()| socket.send(b"?")).and_then(|_| socket.recv(&mut [0; 8]));
    told.expect_err("nobody is there").kind()
}

/// A client of the service, whose one replica is on the client's host, then on another: network, client, replica.
fn with_a_replica_here_and_there(test: impl Fn(&Lab, &Space, EndpointId)) {
    let mut lab = Lab::new(2, false);
    lab.network(1);
    let [client, near, far] = [lab.container(0, 1, 20), lab.container(0, 1, 11), lab.container(1, 1, 12)];
    for replica in [near, far] {
        lab.change(near, |endpoint| endpoint.service = None);
        lab.service(1, &[replica], None);
        lab.reconcile(Pass::Changed);
        test(&lab, lab.in_container(client), replica);
    }
}

/// Longer than any link on the way takes: in pieces there and back, by the VIP and by published ports.
#[test]
fn datagrams_in_pieces_pass() {
    let mut lab = Lab::new(2, false);
    lab.network(1);
    let replica = lab.container(0, 1, 11);
    let inside = [lab.container(0, 1, 20), lab.container(1, 1, 21)];
    let service = lab.service(1, &[replica], Some(8080));
    let service = lab.snapshot.services.get_mut(&service).map(Arc::make_mut).expect("a service");
    service.ports[0].protocol = Protocol::Udp;
    lab.reconcile(Pass::Changed);
    echo_datagrams(lab.in_container(replica));
    let client = lab.plug("client", 100);
    let [here, there] = inside.map(|container| lab.in_container(container));
    let datagram: Vec<u8> = (0..4000u16).map(|number| number as u8).collect();
    for (from, to) in [
        (here, "10.1.0.100:80"),
        (here, "[fd1::100]:80"),
        (there, "10.1.0.100:80"),
        (there, "[fd1::100]:80"),
        (&client, "10.77.0.11:8080"),
        (&client, "[fd77::11]:8080"),
        (&client, "10.77.0.12:8080"),
        (&client, "[fd77::12]:8080"),
    ] {
        let to: SocketAddr = to.parse().expect("an address");
        let socket = datagrams_to(from, to, Duration::from_millis(200));
        let mut answer = vec![0; 1 << 16];
        wait_until(&format!("{to} sends {} bytes back to {}", datagram.len(), from.name), || {
            let answered = socket.send_to(&datagram, to).and_then(|_| socket.recv_from(&mut answer));
            answered.is_ok_and(|(length, by)| by == to && answer[..length] == datagram)
        });
    }
}

/// What a replica, or the way to it, says of a packet is said by the VIP.
#[test]
fn errors_come_from_the_vip() {
    with_a_replica_here_and_there(|lab, client, replica| {
        for to in ["10.1.0.100:9", "[fd1::100]:9"] {
            let told = told_of_a_datagram(client, to.parse().expect("an address"));
            assert_eq!(told, ErrorKind::ConnectionRefused, "{to} at {}", lab.in_container(replica).name);
        }
    });
}

/// A connection from a port of one's choice, which others may have as well.
fn connect_from(space: &Space, port: u16, to: SocketAddr) -> TcpStream {
    let connect = || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(unspecified(to), port).into())?;
        socket.connect_timeout(&to.into(), Duration::from_secs(5))?;
        Ok::<TcpStream, std::io::Error>(socket.into())
    };
    let stream =
        space.within(connect).unwrap_or_else(|e| panic!("{} from port {port} to {to}: {e}", space.name));
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    stream
}

/// To the replica these would be one connection: one of them gets another port on the way.
#[test]
fn one_port_leads_to_a_vip_and_to_its_replica() {
    with_a_replica_here_and_there(|lab, client, replica| {
        echo_streams(lab.in_container(replica));
        let addresses = &lab.snapshot.endpoints[&replica].addresses;
        for (vip, own) in ["10.1.0.100", "fd1::100"].map(address).into_iter().zip(addresses) {
            let ways = [vip, *own].map(|to| SocketAddr::new(to, 80));
            for ([first, second], port) in [(ways, 5000), ([ways[1], ways[0]], 5001)] {
                let mut streams = [first, second].map(|to| connect_from(client, port, to));
                for word in [b"one", b"two"] {
                    for stream in &mut streams {
                        stream.write_all(word).expect("it is sent");
                        let mut answer = [0; 3];
                        let answered = stream.read_exact(&mut answer);
                        answered.unwrap_or_else(|e| panic!("{first}, then {second}: {e}"));
                        assert_eq!(answer, *word);
                    }
                }
            }
        }
    });
}

/// A packet between containers that have nothing to do with a service costs a bridge and a tunnel.
#[test]
fn what_touches_no_service_is_not_tracked() {
    let mut lab = Lab::new(2, false);
    let network = lab.network(1);
    let [client, plain, replica] =
        [lab.container(0, 1, 20), lab.container(1, 1, 11), lab.container(1, 1, 12)];
    lab.service(1, &[replica], None);
    lab.reconcile(Pass::Changed);
    let overlays = [0, 1].map(|host| lab.hosts[host].overlay(network));
    let counts = || [0, 1].map(|host: usize| tracked(&overlays[host], "count"));
    // As it is where Docker has loaded the module, and in every namespace that is made then.
    for overlay in &overlays {
        let settings =
            overlay.run("sysctl -n net.bridge.bridge-nf-call-iptables net.bridge.bridge-nf-call-ip6tables");
        let text = String::from_utf8_lossy(&settings.stdout).into_owned();
        assert!(!settings.status.success() || text.split_whitespace().all(|value| value == "0"), "{text}");
    }
    let before = counts();
    for port in [plain, replica] {
        echo_streams(lab.in_container(port));
    }
    let answered = |to: &str| {
        let to = to.parse().expect("an address");
        let mut stream = connect_from(lab.in_container(client), 0, to);
        stream.write_all(b"ping").and_then(|()| stream.read_exact(&mut [0; 4])).expect("an answer");
    };
    for plain in ["10.1.0.11:80", "[fd1::11]:80"] {
        answered(plain);
    }
    assert_eq!(counts(), before);
    for (number, of_service) in
        ["10.1.0.12:80", "[fd1::12]:80", "10.1.0.100:80", "[fd1::100]:80"].iter().enumerate()
    {
        answered(of_service);
        let [at_client, at_replica] = counts();
        assert_eq!(at_client, before[0] + number as u32 + 1, "{of_service}");
        assert_eq!(at_replica, before[1], "{of_service}: the client's node does it all");
    }
}

#[test]
fn a_vip_without_a_backend_says_so() {
    let mut lab = Lab::new(1, false);
    lab.network(1);
    let client = lab.container(0, 1, 20);
    lab.service(1, &[], None);
    lab.reconcile(Pass::Changed);
    let client = lab.in_container(client);
    for (vip, said) in [
        ("10.1.0.100", "Destination Port Unreachable"),
        ("fd1::100", "Destination unreachable: Port unreachable"),
    ] {
        wait_until(&format!("a ping of {vip} is told"), || {
            let ping = client.run(&format!("ping -n -c 1 -W 1 {vip}"));
            String::from_utf8_lossy(&ping.stdout).contains(said)
        });
        let to = SocketAddr::new(address(vip), 80);
        let refused = client.within(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)));
        assert_eq!(refused.expect_err("nobody is there").kind(), ErrorKind::ConnectionRefused);
        assert_eq!(told_of_a_datagram(client, to), ErrorKind::ConnectionRefused);
    }
}
