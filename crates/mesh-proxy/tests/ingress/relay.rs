//! TCP through the relay: headers, both directions, and what either end does to the other.

use crate::{
    model::{self, ME},
    rig::{DEADLINE, Places, TARGET, overlay, refusing},
};
use mesh_model::{EndpointId, Protocol, ProxyProtocol, PublishedPort, Snapshot, Transport};
use mesh_proxy::{Error, Listeners, Relay, Routes, Settings, Tally};
use socket2::SockRef;
use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener as Replica, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// A relay on a port of the loopback, in front of replicas.
struct Rig {
    addr: SocketAddr,
    tally: Tally,
    retire: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
    routes: watch::Sender<Arc<Routes>>,
    _listeners: watch::Sender<Listeners>,
}

impl Rig {
    fn start(replicas: &[SocketAddr], header: Option<ProxyProtocol>) -> Self {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = socket.local_addr().unwrap();
        let places = Places::default();
        for (number, replica) in (1..).zip(replicas) {
            places.put(overlay(number), *replica);
        }
        let snapshot = published(addr.port(), replicas.len() as u64, header);
        let (routes, of_routes) = watch::channel(Arc::new(Routes::new(&snapshot, ME)));
        let (listeners, of_listeners) = watch::channel(Listeners::from([(addr, Arc::new(socket))]));
        let tally = Tally::default();
        let relay = Relay::new(of_listeners, of_routes, Arc::new(places), tally.clone(), Settings::default());
        let retire = CancellationToken::new();
        let task = tokio::spawn(relay.run(retire.clone(), CancellationToken::new()));
        Self { addr, tally, retire, task, routes, _listeners: listeners }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }
}

fn published(port: u16, replicas: u64, proxy_protocol: Option<ProxyProtocol>) -> Snapshot {
    let port = PublishedPort { protocol: Protocol::Tcp, proxy_protocol, ..model::port(port, TARGET) };
    let endpoints = (1..=replicas).map(|id| model::endpoint(id, 1, ME, overlay(id))).collect();
    model::snapshot(vec![model::service(1, vec![port])], endpoints)
}

async fn replica() -> (Replica, SocketAddr) {
    let replica = Replica::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = replica.local_addr().unwrap();
    (replica, addr)
}

/// A client and what the replica has of it.
async fn pair(replica: &Replica, rig: &Rig) -> (TcpStream, TcpStream) {
    let client = rig.connect().await;
    let (server, _) = soon(replica.accept()).await.unwrap();
    (client, server)
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(DEADLINE, what).await.expect("it takes too long")
}

async fn ended(stream: &mut TcpStream) -> io::Result<usize> {
    soon(stream.read(&mut [0; 16])).await
}

fn is_reset(ended: &io::Result<usize>) -> bool {
    matches!(ended, Err(e) if e.kind() == ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn the_header_comes_first_and_names_the_client() {
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let (replica, addr) = replica().await;
        let rig = Rig::start(&[addr], Some(version));
        let (mut client, mut server) = pair(&replica, &rig).await;
        let (from, to) = (client.local_addr().unwrap(), rig.addr);
        client.write_all(b"hello").await.unwrap();
        let expected = match version {
            ProxyProtocol::V1 => {
                format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\nhello", from.port(), to.port()).into_bytes()
            }
            ProxyProtocol::V2 => {
                let start = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c\x7f\x00\x00\x01\x7f\x00\x00\x01";
                let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
                [&start[..], &ports, b"hello"].concat()
            }
        };
        let mut read = vec![0; expected.len()];
        soon(server.read_exact(&mut read)).await.unwrap();
        assert_eq!(read, expected);
        server.write_all(b"hi").await.unwrap();
        let mut answer = [0; 2];
        soon(client.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"hi", "the client gets no header");
    }
}

#[tokio::test]
async fn an_end_that_has_sent_all_still_hears() {
    let (replica, addr) = replica().await;
    let rig = Rig::start(&[addr], None);
    let (mut client, mut server) = pair(&replica, &rig).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = Vec::new();
    soon(server.read_to_end(&mut question)).await.unwrap();
    assert_eq!(question, b"question");
    server.write_all(b"answer").await.unwrap();
    drop(server);
    let mut answer = Vec::new();
    soon(client.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"answer");
}

#[tokio::test]
async fn a_reset_of_one_end_is_met_by_the_other() {
    let (replica, addr) = replica().await;
    let rig = Rig::start(&[addr], None);
    let (mut client, server) = pair(&replica, &rig).await;
    SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    let met = ended(&mut client).await;
    assert!(is_reset(&met), "{met:?}");
    let (client, mut server) = pair(&replica, &rig).await;
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let met = ended(&mut server).await;
    assert!(is_reset(&met), "{met:?}");
}

/// The replica's reset is not held up by a client that reads nothing.
#[tokio::test]
async fn a_reset_is_met_behind_data_that_nobody_reads() {
    let (replica, addr) = replica().await;
    let rig = Rig::start(&[addr], None);
    let (mut client, mut server) = pair(&replica, &rig).await;
    let chunk = vec![7; 1 << 20];
    while timeout(Duration::from_millis(500), server.write_all(&chunk)).await.is_ok() {}
    SockRef::from(&server).set_linger(Some(Duration::ZERO)).unwrap();
    drop(server);
    let mut read = vec![0; 1 << 20];
    let met = loop {
        match soon(client.read(&mut read)).await {
            Ok(0) => break Ok(0),
            Ok(_) => {}
            Err(e) => break Err(e),
        }
    };
    assert!(is_reset(&met), "{met:?}");
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_its_replica_back() {
    let (replica, addr) = replica().await;
    let rig = Rig::start(&[addr], None);
    let (mut client, mut server) = pair(&replica, &rig).await;
    let sent = Arc::new(AtomicUsize::new(0));
    let (counter, total) = (Arc::clone(&sent), 64 << 20);
    let sending = tokio::spawn(async move {
        let chunk: Vec<u8> = (0..=255).cycle().take(1 << 16).collect();
        while counter.load(SeqCst) < total {
            server.write_all(&chunk).await.unwrap();
            counter.fetch_add(chunk.len(), SeqCst);
        }
    });
    // Until nothing moves any more.
    let mut before = usize::MAX;
    while before != sent.load(SeqCst) {
        before = sent.load(SeqCst);
        sleep(Duration::from_millis(300)).await;
    }
    assert!(before < 32 << 20, "{before} bytes are somewhere between");
    let mut read = vec![0; 1 << 20];
    let mut at = 0usize;
    loop {
        let got = soon(client.read(&mut read)).await.unwrap();
        if got == 0 {
            break;
        }
        assert!(read[..got].iter().enumerate().all(|(i, byte)| *byte == (at + i) as u8));
        at += got;
    }
    assert_eq!(at, total);
    sending.await.unwrap();
}

#[tokio::test]
async fn a_backend_that_refuses_is_passed_over_and_without_any_the_client_is_reset() {
    let (replica, addr) = replica().await;
    let rig = Rig::start(&[refusing(), addr, refusing()], None);
    for _ in 0..6 {
        let (mut client, mut server) = pair(&replica, &rig).await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(soon(server.read_u8()).await.unwrap(), b'x');
    }
    let rig = Rig::start(&[refusing(), refusing()], None);
    let met = ended(&mut rig.connect().await).await;
    assert!(is_reset(&met), "{met:?}");
}

#[tokio::test]
async fn a_retired_relay_serves_its_connections_to_their_end() {
    let (replica, addr) = replica().await;
    let rig = Rig::start(&[addr], None);
    let (mut client, mut server) = pair(&replica, &rig).await;
    rig.retire.cancel();
    sleep(Duration::from_millis(100)).await;
    client.write_all(b"x").await.unwrap();
    assert_eq!(soon(server.read_u8()).await.unwrap(), b'x');
    assert!(!rig.task.is_finished());
    drop((client, server));
    soon(rig.task).await.unwrap().unwrap();
}

/// A port of the first replica: connections, and bytes both ways.
fn counted(tally: &Tally) -> Vec<(u64, u64, u64)> {
    let counted = tally.read(|endpoint| endpoint == EndpointId::from_bits(1)).into_iter();
    counted
        .map(|(target, volume)| {
            assert_eq!((target.transport, target.port), (Transport::Tcp, TARGET));
            (volume.connections, volume.sent.1, volume.received.1)
        })
        .collect()
}

#[tokio::test]
async fn what_is_relayed_is_counted_while_it_goes_on() {
    let (replica, addr) = replica().await;
    let rig = Rig::start(&[addr], Some(ProxyProtocol::V1));
    let (mut client, mut server) = pair(&replica, &rig).await;
    client.write_all(b"hello").await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"hello") {
        soon(server.read_buf(&mut heard)).await.unwrap();
    }
    server.write_all(b"hi").await.unwrap();
    soon(client.read_exact(&mut [0; 2])).await.unwrap();
    // The other end may hear of it before it is counted.
    let become_so = async |expected| {
        let wait = async {
            while counted(&rig.tally) != [expected] {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{:?}", counted(&rig.tally)));
    };
    become_so((1, 5, 2)).await;
    let (_again, _) = pair(&replica, &rig).await;
    become_so((2, 5, 2)).await;
    assert!(rig.tally.read(|_| false).is_empty(), "an endpoint that is no more is forgotten");
    assert!(counted(&rig.tally).is_empty());
}

#[tokio::test]
async fn a_replica_that_is_gone_without_a_word_is_the_end_of_its_connections() {
    let (replica, addr) = replica().await;
    let rig = Rig::start(&[addr], None);
    let (mut client, _server) = pair(&replica, &rig).await;
    // One that takes no traffic any more keeps those that it has.
    let mut drained = published(rig.addr.port(), 1, None);
    drained.endpoints.values_mut().for_each(|endpoint| Arc::make_mut(endpoint).draining = true);
    rig.routes.send_replace(Arc::new(Routes::new(&drained, ME)));
    sleep(Duration::from_millis(100)).await;
    client.write_all(b"hello").await.unwrap();
    assert!(timeout(Duration::from_millis(100), client.read(&mut [0; 1])).await.is_err(), "it goes on");
    rig.routes.send_replace(Arc::new(Routes::new(&published(rig.addr.port(), 0, None), ME)));
    assert!(is_reset(&ended(&mut client).await));
}
