//! No query over UDP allocates: whatever is asked of names of ours, and by whom. Alone in its program, because all that
//! anybody in it allocates is counted.

#[path = "dns/fixture.rs"]
#[allow(dead_code)]
mod fixture;

use arc_swap::ArcSwap;
use fixture::{Mesh, OTHER, ip, query};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RecordType,
};
use mesh_dns::{Forwarder, ForwarderOptions, HostSockets, Published, Server, Source, Table, View};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// How often each is asked while it is counted.
const TIMES: usize = 100;
/// Clients of the network's server: the second is on other networks too.
const ALONE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ON_THREE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 5);

/// The system's, counted.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does all of it.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: as the caller promised.
        unsafe { System.realloc(place, layout, size) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(place, layout) }
    }
}

/// A question, how it is to fare, and whether there is a record.
type Asked = (&'static str, RecordType, ResponseCode, bool);

const OF_NETWORK: [Asked; 8] = [
    ("nginx_service.", RecordType::A, ResponseCode::NoError, true),
    ("www.self-network.mesh.internal.", RecordType::AAAA, ResponseCode::NoError, true),
    ("tasks.nginx_service.", RecordType::A, ResponseCode::NoError, true),
    ("11.100.168.192.in-addr.arpa.", RecordType::PTR, ResponseCode::NoError, true),
    ("_8080._tcp.www.", RecordType::SRV, ResponseCode::NoError, true),
    ("nobody.self-network.mesh.internal.", RecordType::A, ResponseCode::NXDomain, false),
    ("only4.", RecordType::AAAA, ResponseCode::NoError, false),
    ("www.", RecordType::MX, ResponseCode::NoError, false),
];
const OF_OTHERS: [Asked; 3] = [
    ("db.", RecordType::A, ResponseCode::NoError, true),
    ("db.other.mesh.internal.", RecordType::AAAA, ResponseCode::NoError, false),
    ("2.0.7.10.in-addr.arpa.", RecordType::PTR, ResponseCode::NoError, true),
];
const OF_HOST: [Asked; 4] = [
    ("www.self-network.mesh.internal.", RecordType::A, ResponseCode::NoError, true),
    ("db.other.mesh.internal.", RecordType::A, ResponseCode::NoError, true),
    ("2.0.7.10.in-addr.arpa.", RecordType::PTR, ResponseCode::NoError, true),
    ("nobody.mesh.internal.", RecordType::A, ResponseCode::NXDomain, false),
];

#[test]
fn no_query_over_udp_allocates() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut mesh = Mesh::with_web();
    mesh.endpoint_at("only4", vec![ip("192.168.100.30")], |_| {});
    let own = published(mesh.table());
    let mut mesh = Mesh::new();
    mesh.endpoint_at("db", vec![ip("10.7.0.2")], |endpoint| endpoint.network = OTHER);
    let other = published(Table::new(&mesh.snapshot, OTHER).unwrap());

    let network = View::of_network(own.clone());
    let Source::Network { others, .. } = &network.names else { panic!("a network's") };
    // The one with the names comes last.
    let third = published(Mesh::new().table());
    others.store(Arc::new([(ON_THREE.into(), vec![third, other.clone()])].into()));
    let host = View::of_host();
    let Source::Host { all, .. } = &host.names else { panic!("the host's") };
    all.store(Arc::new(vec![own, other]));

    let cancel = CancellationToken::new();
    let start = |view: View| {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = udp.local_addr().unwrap();
        let forwarder = Arc::new(Forwarder::new(HostSockets, ForwarderOptions::default()));
        let server = Server { idle: Server::IDLE, udp, tcp, view: Arc::new(view), forwarder };
        runtime.spawn(server.run(cancel.clone()));
        address
    };
    let (network, host) = (start(network), start(host));
    ask(network, ALONE, &OF_NETWORK);
    ask(network, ON_THREE, &OF_NETWORK);
    ask(network, ON_THREE, &OF_OTHERS);
    ask(host, ALONE, &OF_HOST);
    cancel.cancel();
}

fn published(table: Table) -> Published {
    Arc::new(ArcSwap::from_pointee(table))
}

/// Asks each alone and all at once: once to see how they fare and have done what is done once, and then counting.
fn ask(server: SocketAddr, client: Ipv4Addr, asked: &[Asked]) {
    let socket = UdpSocket::bind((client, 0)).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let queries: Vec<Vec<u8>> =
        asked.iter().map(|(name, rtype, ..)| query(name, *rtype).to_vec().unwrap()).collect();
    let mut answer = [0; 1232];
    for ((name, rtype, code, has_records), query) in asked.iter().zip(&queries) {
        socket.send(query).unwrap();
        let len = socket.recv(&mut answer).expect("an answer");
        let message = Message::from_vec(&answer[..len]).unwrap();
        assert_eq!(message.metadata.response_code, *code, "{name} {rtype}");
        assert_eq!(!message.answers.is_empty(), *has_records, "{name} {rtype}");
    }
    for batch in std::iter::once(&queries[..]).chain(queries.chunks(1)) {
        let mut go = |times: usize| {
            for _ in 0..times {
                for query in batch {
                    socket.send(query).unwrap();
                }
                for _ in batch {
                    socket.recv(&mut answer).expect("an answer");
                }
            }
        };
        go(TIMES);
        let before = ALLOCATIONS.load(Relaxed);
        go(TIMES);
        let allocations = ALLOCATIONS.load(Relaxed) - before;
        assert_eq!(allocations, 0, "{TIMES} times {} queries of {client}: {asked:?}", batch.len());
    }
}
