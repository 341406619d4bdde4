//! A server on real sockets.

use crate::{
    dig::{Running, dig, options, short},
    fixture::{Mesh, OTHER, ip, query},
};
use arc_swap::ArcSwap;
use hickory_proto::{op::Message, rr::RecordType};
use mesh_dns::{Published, Source, Table, View};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UdpSocket},
    time::timeout,
};

/// A service `big` of 300 endpoints, also known as `big.example`.
pub(crate) fn big() -> Table {
    let mut mesh = Mesh::new();
    let service = mesh.service("big", |service| {
        service.endpoint_mode = mesh_model::EndpointMode::Dnsrr;
        service.aliases = vec!["big.example".parse().unwrap()];
    });
    for index in 0..300u16 {
        let address = ip(&format!("10.0.{}.{}", index / 250, index % 250 + 1));
        mesh.endpoint_at(&format!("big.{index}"), vec![address], |endpoint| endpoint.service = Some(service));
    }
    mesh.table()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dig_gets_every_kind_of_answer_over_udp_and_tcp() {
    let server = Running::start(Mesh::with_web().table(), &[]);
    for transport in ["+notcp", "+tcp"] {
        for (asked, expected) in [
            ("nginx_service A", &["192.168.100.2"][..]),
            ("WWW.self-network AAAA", &["fd00:64::2"]),
            ("tasks.nginx_service.self-network.mesh.internal", &["192.168.100.11", "192.168.100.13"]),
            ("-x 192.168.100.11", &["web.1.Self-Network.mesh.internal."]),
            ("-x fd00:64::20", &["Lonely.Self-Network.mesh.internal."]),
            (
                "_8080._tcp.www SRV",
                &["0 0 8080 web.1.Self-Network.mesh.internal.", "0 0 8080 web.3.Self-Network.mesh.internal."],
            ),
            ("www ANY +notcp", &["\"RFC8482\" \"\""]),
            ("web.2", &[]),
        ] {
            assert_eq!(short(server.address, &format!("{transport} {asked}")).await, expected, "{asked}");
        }
        let absent = dig(server.address, &format!("{transport} nothing.mesh.internal")).await;
        assert!(absent.contains("status: NXDOMAIN") && absent.contains("flags: qr aa rd ra;"), "{absent}");
        let nodata = dig(server.address, &format!("{transport} www MX")).await;
        assert!(nodata.contains("status: NOERROR") && nodata.contains("SOA"), "{nodata}");
        let unanswered = dig(server.address, &format!("{transport} example.com")).await;
        assert!(unanswered.contains("status: SERVFAIL"), "no upstream: {unanswered}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_addresses_are_cut_over_udp_and_whole_over_tcp() {
    let server = Running::start(big(), &[]);
    let cut = dig(server.address, "+ignore +notcp tasks.big").await;
    assert!(cut.contains("flags: qr aa tc rd ra;"), "{cut}");
    // Without +ignore, dig comes back over TCP by itself.
    assert_eq!(short(server.address, "tasks.big").await.len(), 300);
    assert_eq!(short(server.address, "+tcp big").await.len(), 300);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_table_is_seen_by_the_next_query() {
    let server = Running::start(Mesh::new().table(), &[]);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for number in 1..=100u8 {
        let mut mesh = Mesh::new();
        mesh.endpoint_at("moving", vec![ip(&format!("192.168.100.{number}"))], |_| {});
        server.table.store(Arc::new(mesh.table()));
        let asked = query("moving.", RecordType::A).to_vec().unwrap();
        socket.send_to(&asked, server.address).await.unwrap();
        let mut reply = [0; 1232];
        let len = timeout(Duration::from_secs(3), socket.recv(&mut reply)).await.expect("an answer").unwrap();
        let reply = Message::from_vec(&reply[..len]).unwrap();
        assert_eq!(reply.answers[0].data.to_string(), format!("192.168.100.{number}"));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_takes_several_queries_in_one_piece_or_in_many() {
    let server = Running::start(Mesh::with_web().table(), &[]);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let mut octets = Vec::new();
    for name in ["www.", "lonely.", "web.1."] {
        let message = query(name, RecordType::A).to_vec().unwrap();
        octets.extend((message.len() as u16).to_be_bytes());
        octets.extend(message);
    }
    let (first, rest) = octets.split_at(1);
    stream.write_all(first).await.unwrap();
    stream.flush().await.unwrap();
    stream.write_all(rest).await.unwrap();
    for expected in ["192.168.100.2", "192.168.100.20", "192.168.100.11"] {
        let mut reply = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut reply).await.unwrap();
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!(reply.answers[0].data.to_string(), expected);
    }
    server.stop().await;
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0, "connections end with the server");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_does_not_disturb_the_next_client() {
    let server = Running::start(Mesh::with_web().table(), &[]);
    let noise = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for len in 0..200 {
        noise.send_to(&vec![0x5a; len], server.address).await.unwrap();
    }
    // The sender of these is gone before its answer comes.
    for _ in 0..50 {
        let gone = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        gone.send_to(&query("www.", RecordType::A).to_vec().unwrap(), server.address).await.unwrap();
    }
    assert_eq!(short(server.address, "www").await, ["192.168.100.2"]);
    // What has no whole header gets no answer, and is counted: an empty one is not, as it may be the server's own.
    let counts = server.view.counters.counts();
    assert_eq!(counts.dropped, 11);
    assert_eq!(counts.refused, 188, "the others are told that there is no such operation");
    server.stop().await;
}

/// The table of `other`, where `web.1` is somebody else, and `db` nobody's but its own.
fn other() -> Published {
    let mut mesh = Mesh::new();
    for (name, last) in [("web.1", 1), ("db", 2)] {
        mesh.endpoint_at(name, vec![ip(&format!("10.7.0.{last}"))], |endpoint| endpoint.network = OTHER);
    }
    Arc::new(ArcSwap::from_pointee(Table::new(&mesh.snapshot, OTHER).unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_on_two_networks_finds_the_names_of_both() {
    let own = Arc::new(ArcSwap::from_pointee(Mesh::with_web().table()));
    let view = View::of_network(own);
    let Source::Network { others, .. } = &view.names else { panic!("a network's") };
    let second = other();
    others.store(Arc::new([(ip("127.0.0.5"), vec![second.clone()])].into()));
    let server = Running::of(view, &[], options());
    for transport in ["+notcp", "+tcp"] {
        let both = async |question: &str| {
            short(server.address, &format!("{transport} -b 127.0.0.5 {question}")).await
        };
        assert_eq!(both("db").await, ["10.7.0.2"]);
        assert_eq!(both("db.other.mesh.internal").await, ["10.7.0.2"]);
        assert_eq!(both("-x 10.7.0.2").await, ["db.other.mesh.internal."]);
        assert_eq!(
            both("web.1").await,
            ["192.168.100.11"],
            "the names of the network that it asks in come first"
        );
        assert_eq!(both("web.1.other").await, ["10.7.0.1"]);
        let absent =
            dig(server.address, &format!("{transport} -b 127.0.0.5 nobody.other.mesh.internal")).await;
        assert!(absent.contains("status: NXDOMAIN"), "{absent}");
        // Everybody else sees their own network alone.
        for question in ["db.other.mesh.internal", "-x 10.7.0.2", "db.other"] {
            assert!(short(server.address, &format!("{transport} {question}")).await.is_empty(), "{question}");
        }
    }
    // What changes there is seen here.
    second.store(Arc::new(Mesh::new().table()));
    assert!(short(server.address, "-b 127.0.0.5 db.other.mesh.internal").await.is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_finds_whole_names_of_all_networks_and_no_short_ones() {
    // Without any network, it is well-formed what is said of none.
    let none = Running::of(View::of_host(), &[], options());
    let absent = dig(none.address, "nobody.mesh.internal").await;
    assert!(absent.contains("status: NXDOMAIN") && absent.contains("hostmaster.mesh.internal."), "{absent}");
    let view = View::of_host();
    let Source::Host { all, .. } = &view.names else { panic!("the host's") };
    let own = Arc::new(ArcSwap::from_pointee(Mesh::with_web().table()));
    all.store(Arc::new(vec![own, other()]));
    let server = Running::of(view, &[], options());
    assert_eq!(short(server.address, "www.self-network.mesh.internal").await, ["192.168.100.2"]);
    assert_eq!(short(server.address, "db.other.mesh.internal").await, ["10.7.0.2"]);
    assert_eq!(short(server.address, "-x 10.7.0.2").await, ["db.other.mesh.internal."]);
    let absent = dig(server.address, "nobody.mesh.internal").await;
    assert!(absent.contains("status: NXDOMAIN") && absent.contains("SOA"), "{absent}");
    for short_name in ["www", "db.other"] {
        let forwarded = dig(server.address, short_name).await;
        assert!(forwarded.contains("status: SERVFAIL"), "nobody to ask: {forwarded}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_bounded_and_room_comes_back() {
    let server = Running::start(Mesh::with_web().table(), &[]);
    let connect = async |last: u8| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, last], 0).into()).unwrap();
        socket.connect(server.address).await.unwrap()
    };
    let is_closed = async |mut stream: TcpStream| {
        let read = timeout(Duration::from_secs(3), stream.read(&mut [0; 1])).await;
        assert_eq!(read.expect("it is closed").unwrap_or(0), 0);
    };
    let mut held = Vec::new();
    for _ in 0..64 {
        held.push(connect(1).await);
    }
    is_closed(connect(1).await).await;
    assert_eq!(short(server.address, "+tcp -b 127.0.0.2 www").await, ["192.168.100.2"], "others have room");
    for last in 2..9 {
        for _ in 0..64 {
            held.push(connect(last).await);
        }
    }
    is_closed(connect(100).await).await;
    assert_eq!(short(server.address, "+notcp www").await, ["192.168.100.2"]);
    held.clear();
    let deadline = Instant::now() + Duration::from_secs(5);
    while short(server.address, "+tcp www").await != ["192.168.100.2"] {
        assert!(Instant::now() < deadline, "closed connections are still counted");
    }
    server.stop().await;
}
