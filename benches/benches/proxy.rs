//! The L7 ingress over the loopback: one client connection, one small request after the other, through the proxy and
//! straight to the same upstream for comparison.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mesh_model::{
    Endpoint, EndpointId, EndpointMode, MacAddr, NetworkId, NodeId, Protocol, PublishMode, PublishedPort,
    Service, ServiceId, ServiceNetwork, Snapshot, Target,
};
use mesh_proxy::{Connect, Connecting, Ingress, Listeners, Routes, Settings};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
};
use tokio::{runtime::Runtime, sync::watch};
use tokio_util::sync::CancellationToken;

const ME: NodeId = NodeId::from_bits(1);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 64\r\n\r\n";
const BODY: [u8; 64] = [b'x'; 64];

/// Answers every read with a response: it sees one whole request at a time.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap();
    let response = [HEAD, &BODY].concat();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, response) = (stream.unwrap(), response.clone());
            thread::spawn(move || {
                stream.set_nodelay(true).unwrap();
                let mut request = [0; 4096];
                while stream.read(&mut request).is_ok_and(|read| read > 0) {
                    stream.write_all(&response).unwrap();
                }
            });
        }
    });
    addr
}

fn snapshot(published: u16, upstream: SocketAddr) -> Snapshot {
    let network = NetworkId::from_bits(1);
    let service = Service {
        id: ServiceId::from_bits(1),
        name: "bench".parse().unwrap(),
        networks: vec![ServiceNetwork { network, vips: Vec::new() }],
        aliases: Vec::new(),
        endpoint_mode: EndpointMode::Vip,
        ports: vec![PublishedPort {
            published,
            target: upstream.port(),
            protocol: Protocol::Http,
            mode: PublishMode::Ingress,
            ip: None,
            proxy_protocol: None,
        }],
        health: None,
        balance: mesh_model::Balance::Roundrobin,
        drain_timeout_ms: 0,
        prefer_local: false,
        created: 0,
    };
    let endpoint = Endpoint {
        id: EndpointId::from_bits(1),
        name: "bench-1".parse().unwrap(),
        network,
        node: ME,
        addresses: vec![upstream.ip()],
        mac: MacAddr::bridge(1),
        service: Some(service.id),
        aliases: Vec::new(),
        target: Target::Pid(1),
        namespace_inode: 0,
        ifname: "eth0".into(),
        ports: Vec::new(),
        owner: None,
        local_addresses: Vec::new(),
        source_nat: Vec::new(),
        weight: mesh_model::Weight::default(),
        draining: false,
        created: 0,
    };
    let mut snapshot = Snapshot::default();
    snapshot.services.insert(service.id, Arc::new(service));
    snapshot.endpoints.insert(endpoint.id, Arc::new(endpoint));
    snapshot
}

struct Loopback;

impl Connect for Loopback {
    fn connect(&self, _: NetworkId, addr: SocketAddr) -> Connecting<'_> {
        Box::pin(tokio::net::TcpStream::connect(addr))
    }
}

/// A proxy in a runtime of its own; what it returns keeps it running.
fn proxy(upstream: SocketAddr) -> (SocketAddr, impl Drop) {
    let runtime = Runtime::new().unwrap();
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = socket.local_addr().unwrap();
    let routes = Routes::new(&snapshot(addr.port(), upstream), ME);
    runtime.spawn(async move {
        let (_routes, routes) = watch::channel(Arc::new(routes));
        let (_listeners, listeners) = watch::channel(Listeners::from([(addr, Arc::new(socket))]));
        let ingress = Ingress::new(listeners, routes, Arc::new(Loopback), Settings::default());
        ingress.run(CancellationToken::new(), CancellationToken::new()).await
    });
    (addr, StopAtEnd(Some(runtime)))
}

struct StopAtEnd(Option<Runtime>);

impl Drop for StopAtEnd {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// One request and its whole response.
fn exchange(stream: &mut TcpStream) {
    stream.write_all(REQUEST).unwrap();
    let mut response = [0; 4096];
    let mut read = 0;
    while read < BODY.len() || response[read - BODY.len()..read] != BODY {
        let more = stream.read(&mut response[read..]).unwrap();
        assert!(more > 0, "closed after {read} bytes");
        read += more;
    }
    assert!(response.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&response[..read]));
}

fn keep_alive(c: &mut Criterion) {
    let upstream = upstream();
    let (proxied, _running) = proxy(upstream);
    let mut group = c.benchmark_group("http1 keep-alive");
    group.throughput(Throughput::Elements(1));
    for (name, addr) in [("direct", upstream), ("proxied", proxied)] {
        let mut stream = TcpStream::connect(addr).unwrap();
        stream.set_nodelay(true).unwrap();
        group.bench_function(name, |b| b.iter(|| exchange(&mut stream)));
    }
    group.finish();
}

criterion_group!(benches, keep_alive);
criterion_main!(benches);
