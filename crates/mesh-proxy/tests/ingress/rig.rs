//! An ingress on the loopback in front of replicas that tests script, and a client that speaks raw bytes.

use crate::model::{self, ME};
use mesh_model::{NetworkId, Snapshot};
use mesh_proxy::{Connect, Connecting, Error, Ingress, Listeners, Routes, Settings};
use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// What a test waits for at most.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Target port of every service in these tests; where it really leads is told by [`Places`].
pub(crate) const TARGET: u16 = 8080;

/// Overlay address of a replica → where it really listens. This stands in for the network namespaces.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    real: Arc<Mutex<HashMap<IpAddr, SocketAddr>>>,
    connects: Arc<AtomicUsize>,
}

impl Places {
    pub(crate) fn put(&self, overlay: IpAddr, real: SocketAddr) {
        self.real.lock().unwrap().insert(overlay, real);
    }

    /// How many connections were asked for.
    pub(crate) fn connects(&self) -> usize {
        self.connects.load(Ordering::SeqCst)
    }
}

impl Connect for Places {
    fn connect(&self, network: NetworkId, addr: SocketAddr) -> Connecting<'_> {
        assert_eq!(network, model::NETWORK);
        self.connects.fetch_add(1, Ordering::SeqCst);
        let real = self.real.lock().unwrap().get(&addr.ip()).copied();
        Box::pin(
            async move { TcpStream::connect(real.ok_or_else(|| io::Error::other("no such replica"))?).await },
        )
    }
}

pub(crate) fn overlay(replica: u64) -> IpAddr {
    Ipv4Addr::new(10, 1, 0, replica as u8).into()
}

pub(crate) struct Rig {
    pub(crate) addr: SocketAddr,
    pub(crate) places: Places,
    listeners: watch::Sender<Listeners>,
    routes: watch::Sender<Arc<Routes>>,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

impl Rig {
    /// An ingress for one service with these replicas; replica `i` has endpoint ID and overlay address `i + 1`.
    pub(crate) fn start(replicas: &[SocketAddr], settings: Settings) -> Self {
        let socket = bind();
        let addr = socket.local_addr().unwrap();
        let places = Places::default();
        for (i, real) in (1..).zip(replicas) {
            places.put(overlay(i), *real);
        }
        let snapshot = one_service(addr.port(), replicas.len() as u64);
        let (listeners, listeners_rx) = watch::channel(Listeners::from([(addr, Arc::new(socket))]));
        let (routes, routes_rx) = watch::channel(Arc::new(Routes::new(&snapshot, ME)));
        let cancel = CancellationToken::new();
        let ingress = Ingress::new(listeners_rx, routes_rx, Arc::new(places.clone()), settings);
        let task = tokio::spawn(ingress.run(CancellationToken::new(), cancel.clone()));
        Self { addr, places, listeners, routes, cancel, task }
    }

    pub(crate) fn set(&self, snapshot: &Snapshot) {
        self.routes.send_replace(Arc::new(Routes::new(snapshot, ME)));
    }

    /// Listens on one more port of the loopback.
    pub(crate) fn listen(&self) -> SocketAddr {
        let socket = bind();
        let addr = socket.local_addr().unwrap();
        self.listeners.send_modify(|listeners| drop(listeners.insert(addr, Arc::new(socket))));
        addr
    }

    pub(crate) fn unlisten(&self, addr: SocketAddr) {
        self.listeners.send_modify(|listeners| drop(listeners.remove(&addr)));
    }

    /// Cancels the ingress and waits for its end.
    pub(crate) async fn stop(self) -> Result<(), Error> {
        self.cancel.cancel();
        timeout(DEADLINE, self.task).await.expect("the ingress doesn't end").unwrap()
    }
}

pub(crate) fn one_service(published: u16, replicas: u64) -> Snapshot {
    let endpoints = (1..=replicas).map(|id| model::endpoint(id, 1, ME, overlay(id))).collect();
    model::snapshot(vec![model::service(1, vec![model::port(published, TARGET)])], endpoints)
}

fn bind() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

/// An address that refuses connections, and is nobody else's for as long as the tests run: bound, not listened on.
pub(crate) fn refusing() -> SocketAddr {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    addr
}

/// Tries until it holds; panics with the last state when the deadline has passed.
pub(crate) async fn eventually<T: std::fmt::Debug, F: Future<Output = T>>(
    mut state: impl FnMut() -> F,
    mut holds: impl FnMut(&T) -> bool,
) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let now = state().await;
        if holds(&now) {
            return now;
        }
        assert!(Instant::now() < deadline, "still {now:?} after {DEADLINE:?}");
        sleep(Duration::from_millis(5)).await;
    }
}
