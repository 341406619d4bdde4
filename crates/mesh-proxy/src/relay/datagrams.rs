//! The relay of datagrams: one task a port, one a flow for the answers.

use super::{
    buffers,
    flows::{Ends, Flow, Flows, Pulse},
    packet::{self, Between},
    tally::{Counters, Tally},
};
use crate::{
    Error,
    balance::{Balanced, Balancer},
    routes::{Backend, Routes},
};
use mesh_model::{NetworkId, Transport};
use socket2::SockRef;
use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, UdpSocket as StdUdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    net::UdpSocket,
    select,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::coop::consume_budget,
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How often flows are looked through for those that are over.
const SWEEP: Duration = Duration::from_secs(5);
/// How long answers are still passed on after a flow has ended, as one that moved has: clients ask anew by then.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Flows of all ports: each has a socket, with a port of the node's one address in a network.
const PLACES: usize = 16_384;

/// The UDP sockets that should be served, by the address they are bound to, as [`crate::Listeners`] are.
pub type UdpSockets = BTreeMap<SocketAddr, Arc<StdUdpSocket>>;

/// Opens UDP sockets to endpoints of overlay networks.
pub trait OpenDatagrams: Send + Sync + 'static {
    /// One that is connected to an address of a network, and does not block.
    ///
    /// # Errors
    /// The system's.
    fn open(&self, network: NetworkId, address: SocketAddr) -> io::Result<StdUdpSocket>;
}

/// The relay of datagrams of one node.
pub struct Datagrams {
    sockets: watch::Receiver<UdpSockets>,
    routes: watch::Receiver<Arc<Routes>>,
    shared: Arc<Shared>,
    served: BTreeMap<SocketAddr, (Arc<StdUdpSocket>, DropGuard)>,
}

struct Shared {
    balancer: Balancer,
    /// Raised after each change of routes.
    changes: watch::Sender<()>,
    open: Arc<dyn OpenDatagrams>,
    tally: Tally,
    /// For flows of all ports.
    places: Arc<Semaphore>,
}

impl Datagrams {
    /// A relay that follows these sockets and routes, reaches backends by sockets from `open`, and counts what it relays.
    pub fn new(
        sockets: watch::Receiver<UdpSockets>,
        routes: watch::Receiver<Arc<Routes>>,
        open: Arc<dyn OpenDatagrams>,
        tally: Tally,
    ) -> Self {
        let (balancer, changes) = (Balancer::default(), watch::Sender::new(()));
        let places = Arc::new(Semaphore::new(PLACES));
        let shared = Shared { balancer, changes, open, tally, places };
        Self { sockets, routes, shared: Arc::new(shared), served: BTreeMap::new() }
    }

    /// Serves until cancelled. Told to retire, because another process reads the same sockets, it reads no more, and passes
    /// on what is answered within seconds.
    ///
    /// # Errors
    /// [`Error::Closed`] if the sockets or the routes have no sender any more.
    pub async fn run(mut self, retire: CancellationToken, cancel: CancellationToken) -> Result<(), Error> {
        self.sockets.mark_changed();
        self.routes.mark_changed();
        loop {
            select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = retire.cancelled() => {
                    self.served.clear();
                    sleep(LAST_ANSWERS).await;
                    return Ok(());
                }
                changed = self.routes.changed() => {
                    changed.map_err(|_| Error::Closed("routes"))?;
                    let routes = self.routes.borrow_and_update().clone();
                    self.shared.balancer.replace(&routes);
                    self.shared.changes.send_replace(());
                }
                changed = self.sockets.changed() => {
                    changed.map_err(|_| Error::Closed("sockets"))?;
                    let wanted = self.sockets.borrow_and_update().clone();
                    self.serve(&wanted);
                }
            }
        }
    }

    fn serve(&mut self, wanted: &UdpSockets) {
        self.served.retain(|address, (served, _)| {
            wanted.get(address).is_some_and(|socket| Arc::ptr_eq(socket, served))
        });
        for (address, socket) in wanted {
            if self.served.contains_key(address) {
                continue;
            }
            match Port::new(socket, &self.shared) {
                Ok(port) => {
                    let end = CancellationToken::new();
                    tokio::spawn(port.serve(end.clone()));
                    self.served.insert(*address, (Arc::clone(socket), end.drop_guard()));
                }
                Err(err) => tracing::error!(%address, %err, "relay: can't receive"),
            }
        }
    }
}

/// One socket.
struct Port {
    socket: Arc<UdpSocket>,
    number: u16,
    shared: Arc<Shared>,
    flows: Flows,
}

impl Port {
    fn new(socket: &StdUdpSocket, shared: &Arc<Shared>) -> io::Result<Self> {
        let socket = socket.try_clone()?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from_std(socket)?;
        packet::tell_addresses(&socket)?;
        let number = socket.local_addr()?.port();
        Ok(Self { socket: Arc::new(socket), number, shared: Arc::clone(shared), flows: Flows::default() })
    }

    async fn serve(mut self, end: CancellationToken) {
        let mut changes = self.shared.changes.subscribe();
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            select! {
                biased;
                () = end.cancelled() => return,
                _ = changes.changed() => self.sweep(),
                _ = sweep.tick() => self.sweep(),
                ready = self.socket.readable() => match ready {
                    Ok(()) => self.receive().await,
                    Err(err) => return tracing::error!(port = self.number, %err, "relay: can't receive"),
                }
            }
        }
    }

    /// Reads what is there.
    async fn receive(&mut self) {
        let mut buffer = buffers::take();
        loop {
            consume_budget().await;
            match packet::try_receive(&self.socket, &mut buffer) {
                Ok((read, between)) => self.pass_on(&buffer[..read], between),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // What an answer met (ip(7)), or a datagram without addresses: the next one may do.
                Err(err) => tracing::debug!(port = self.number, %err, "relay: datagram lost"),
            }
        }
        buffers::give(buffer);
    }

    fn pass_on(&mut self, bytes: &[u8], between: Between) {
        let flow = match self.flows.get(&between) {
            Some(flow) => flow,
            None => match self.begin(between) {
                Ok(()) => match self.flows.get(&between) {
                    Some(flow) => flow,
                    None => return,
                },
                Err(err) => return tracing::debug!(client = %between.client, %err, "relay: datagram lost"),
            },
        };
        // At once: the runtime does not know yet that a new socket has room.
        match SockRef::from(&*flow.upstream).send(bytes) {
            Ok(_) => {
                flow.pulse.beat(Instant::now(), false);
                flow.counters.sent.datagram(bytes.len());
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            // What the datagram before met, as a refusal.
            Err(err) => {
                tracing::debug!(client = %between.client, %err, "relay: flow ended");
                self.flows.remove(&between);
            }
        }
    }

    /// A flow to the backend whose turn it is; none if there is no backend.
    fn begin(&mut self, between: Between) -> io::Result<()> {
        let Some(service) = service(&self.shared, self.number, between) else { return Ok(()) };
        let place = Arc::clone(&self.shared.places).try_acquire_owned();
        let place = place.map_err(|_| io::Error::other("too many flows"))?;
        let mut tried = Vec::new();
        let mut last = Ok(());
        while let Some(backend) = service.next(between.client.ip(), &tried) {
            let opened = self.shared.open.open(backend.network, backend.addr);
            match opened.and_then(UdpSocket::from_std) {
                Ok(upstream) => {
                    let counters = self.shared.tally.begin(Transport::Udp, &backend);
                    let (flow, ends) = Flow::new(backend, upstream, counters);
                    tokio::spawn(answers(
                        Arc::clone(&self.socket),
                        Arc::clone(&flow.upstream),
                        Arc::clone(&flow.pulse),
                        Arc::clone(&flow.counters),
                        between,
                        ends,
                        place,
                    ));
                    self.flows.insert(between, flow);
                    return Ok(());
                }
                Err(e) => last = Err(e),
            }
            tried.push(backend.endpoint);
        }
        last
    }

    /// Flows of backends that left move at once.
    fn sweep(&mut self) {
        let (shared, number) = (&self.shared, self.number);
        let leads_to = |between: &Between, backend: &Backend| {
            service(shared, number, *between).is_some_and(|service| service.leads_to(backend))
        };
        self.flows.retain(leads_to);
    }
}

fn service(shared: &Shared, port: u16, between: Between) -> Option<Balanced> {
    shared.balancer.resolve(Transport::Udp, SocketAddr::new(between.local.ip.to_canonical(), port))
}

/// Passes answers on until the flow has ended, and a little longer.
async fn answers(
    socket: Arc<UdpSocket>,
    upstream: Arc<UdpSocket>,
    pulse: Arc<Pulse>,
    counters: Arc<Counters>,
    between: Between,
    ends: Ends,
    _place: OwnedSemaphorePermit,
) {
    let late = async {
        select! {
            () = ends.soon.cancelled() => {}
            () = ends.now.cancelled() => return,
        }
        select! {
            () = sleep(LAST_ANSWERS) => {}
            () = ends.now.cancelled() => {}
        }
    };
    tokio::pin!(late);
    loop {
        select! {
            ready = upstream.readable() => if ready.is_err() { return },
            () = late.as_mut() => return,
        }
        let mut buffer = buffers::take();
        loop {
            consume_budget().await;
            match upstream.try_recv(&mut buffer) {
                Ok(read) => {
                    pulse.beat(Instant::now(), true);
                    counters.received.datagram(read);
                    if let Err(err) = packet::try_send(&socket, &buffer[..read], between) {
                        tracing::debug!(client = %between.client, %err, "relay: answer lost");
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                // A refusal, which the next datagram meets if it lasts.
                Err(err) => tracing::debug!(client = %between.client, %err, "relay: no answer"),
            }
        }
        buffers::give(buffer);
    }
}
