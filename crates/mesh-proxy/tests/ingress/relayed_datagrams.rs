//! Datagrams through the relay.

use crate::{
    model::{self, ME},
    rig::{DEADLINE, TARGET, overlay},
};
use mesh_model::{NetworkId, Protocol, PublishedPort, Snapshot};
use mesh_proxy::{Datagrams, OpenDatagrams, Routes, Tally, UdpSockets};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
};
use tokio::{
    net::UdpSocket as Client,
    sync::watch,
    time::{Duration, timeout},
};
use tokio_util::sync::CancellationToken;

/// Replicas by the last number of their overlay address.
struct Replicas(Vec<SocketAddr>);

impl OpenDatagrams for Replicas {
    fn open(&self, _: NetworkId, address: SocketAddr) -> io::Result<UdpSocket> {
        let IpAddr::V4(ip) = address.ip() else { return Err(io::ErrorKind::AddrNotAvailable.into()) };
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_nonblocking(true)?;
        socket.connect(self.0[usize::from(ip.octets()[3]) - 1])?;
        Ok(socket)
    }
}

/// One that answers with its number.
async fn replica(number: u8) -> SocketAddr {
    let socket = Client::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut buffer).await {
            socket.send_to(&[number], client).await.unwrap();
        }
    });
    addr
}

fn published(port: u16, replicas: &[u64]) -> Snapshot {
    let port = PublishedPort { protocol: Protocol::Udp, ..model::port(port, TARGET) };
    let endpoints = replicas.iter().map(|id| model::endpoint(*id, 1, ME, overlay(*id))).collect();
    model::snapshot(vec![model::service(1, vec![port])], endpoints)
}

async fn client(to: SocketAddr) -> Client {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = Client::bind(any).await.unwrap();
    client.connect(to).await.unwrap();
    client
}

async fn ask(client: &Client) -> u8 {
    let mut answer = [0; 1];
    client.send(b"?").await.unwrap();
    timeout(DEADLINE, client.recv(&mut answer)).await.expect("no answer").unwrap();
    answer[0]
}

#[tokio::test]
async fn flows_stay_with_their_replica_until_it_leaves() {
    let replicas = Replicas(vec![replica(1).await, replica(2).await]);
    let socket = UdpSocket::bind("[::]:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let routes = |ids: &[u64]| Arc::new(Routes::new(&published(port, ids), ME));
    let (to_routes, of_routes) = watch::channel(routes(&[1, 2]));
    let at = socket.local_addr().unwrap();
    let (_to_sockets, of_sockets) = watch::channel(UdpSockets::from([(at, Arc::new(socket))]));
    let (retire, cancel) = (CancellationToken::new(), CancellationToken::new());
    let tally = Tally::default();
    let relay = Datagrams::new(of_sockets, of_routes, Arc::new(replicas), tally.clone());
    let running = tokio::spawn(relay.run(retire, cancel.clone()));

    let mut flows = Vec::new();
    for to in ["127.0.0.1", "127.0.0.2", "::1"] {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        for _ in 0..2 {
            flows.push(client(to).await);
        }
    }
    let mut first = Vec::new();
    for flow in &flows {
        first.push(ask(flow).await);
    }
    assert_eq!(first.iter().filter(|number| **number == 1).count(), 3, "in turn: {first:?}");
    for (flow, before) in flows.iter().zip(&first) {
        assert_eq!(ask(flow).await, *before, "a flow stays");
    }
    let counted = tally.read(|_| true);
    let sums = counted.iter().map(|(_, volume)| (volume.connections, volume.sent, volume.received));
    assert!(sums.eq([(3, (6, 6), (6, 6)); 2]), "{counted:?}");
    to_routes.send_replace(routes(&[2]));
    let moved = async {
        for flow in &flows {
            while ask(flow).await != 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    };
    timeout(DEADLINE, moved).await.expect("flows of one that left move");
    cancel.cancel();
    running.await.unwrap().unwrap();
}
