//! The userspace relay: TCP connections and datagrams that the kernel can't lead to replicas, byte for byte.
//!
//! They come from the loopback of the host, are of a family that no replica has, or want a PROXY header sent.

mod buffers;
mod datagrams;
mod flows;
mod packet;
mod stream;
mod tally;

pub use datagrams::{Datagrams, OpenDatagrams, UdpSockets};
pub use tally::{Tally, Target, Volume};

use crate::{
    Error,
    balance::{Balanced, Balancer},
    connect::Connect,
    listening::{Ends, Listeners, Listening, Serving},
    proxy_protocol,
    routes::{Backend, Routes},
    settings::Settings,
};
use mesh_model::{EndpointId, Transport};
use socket2::{SockRef, TcpKeepalive};
use std::{collections::BTreeSet, io, sync::Arc, time::Duration};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    select,
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The relay of TCP connections of one node.
pub struct Relay(Listening<Streams>);

impl Relay {
    /// A relay that follows these listeners and routes, reaches backends through `connect`, and counts what it relays.
    pub fn new(
        listeners: watch::Receiver<Listeners>,
        routes: watch::Receiver<Arc<Routes>>,
        connect: Arc<dyn Connect>,
        tally: Tally,
        settings: Settings,
    ) -> Self {
        let limit = settings.max_connections;
        let (balancer, tasks, replicas) = (Balancer::default(), TaskTracker::new(), watch::Sender::default());
        let streams = Streams { balancer, connect, tally, settings, tasks, replicas };
        Self(Listening::new(listeners, routes, streams, limit))
    }

    /// Serves until cancelled, then lets connections finish within [`Settings::drain`].
    ///
    /// Told to retire, because another process accepts on the same sockets, it accepts no more, serves its connections
    /// for as long as both ends want, and returns.
    ///
    /// # Errors
    /// [`Error::Closed`] if the listeners or the routes have no sender any more.
    pub async fn run(self, retire: CancellationToken, cancel: CancellationToken) -> Result<(), Error> {
        self.0.run(retire, cancel).await
    }
}

struct Streams {
    balancer: Balancer,
    connect: Arc<dyn Connect>,
    tally: Tally,
    settings: Settings,
    tasks: TaskTracker,
    /// The replicas that there are, whether they take connections or not.
    replicas: watch::Sender<Arc<BTreeSet<EndpointId>>>,
}

impl Serving for Streams {
    const NAME: &str = "relay";

    async fn serve(self: Arc<Self>, client: TcpStream, ends: Ends, stop: CancellationToken) {
        let Some((backend, upstream)) = self.upstream(ends).await else { return reset(&client) };
        let cut = async {
            stop.cancelled().await;
            sleep(self.settings.drain).await;
        };
        let mut replicas = self.replicas.subscribe();
        // Killed, it sends no reset.
        let gone = replicas.wait_for(|replicas| !replicas.contains(&backend.endpoint));
        let counters = self.tally.begin(Transport::Tcp, &backend);
        let ended = select! {
            ended = stream::relay(&client, &upstream, &counters) => ended,
            _ = gone => Err(io::Error::other("its replica is gone")),
            () = cut => Err(io::Error::other("it outlived its listener's drain")),
        };
        if let Err(err) = ended {
            tracing::debug!(client = %ends.peer, backend = %backend.addr, %err, "relayed connection reset");
            // What one end did is what the other meets.
            reset(&client);
            reset(&upstream);
        }
    }

    fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    fn set_routes(&self, routes: &Routes) {
        // Before anybody is led to one that is new.
        self.replicas.send_replace(Arc::clone(routes.replicas()));
        self.balancer.replace(routes);
    }

    fn drain(&self) -> Duration {
        self.settings.drain
    }
}

impl Streams {
    /// A connection to a backend, each tried once, with the header sent if there is to be one.
    async fn upstream(&self, ends: Ends) -> Option<(Backend, TcpStream)> {
        let service = self.balancer.resolve(Transport::Tcp, ends.local)?;
        let mut tried = Vec::new();
        loop {
            let backend = service.next(ends.peer.ip(), &tried)?;
            match timeout(self.settings.connect_timeout, self.connect(&service, backend, ends)).await {
                Ok(Ok(upstream)) => return Some((backend, upstream)),
                Ok(Err(err)) => {
                    tracing::debug!(service = service.name(), addr = %backend.addr, %err, "backend unreachable");
                }
                Err(_) => tracing::debug!(service = service.name(), addr = %backend.addr, "backend silent"),
            }
            tried.push(backend.endpoint);
        }
    }

    async fn connect(&self, service: &Balanced, backend: Backend, ends: Ends) -> io::Result<TcpStream> {
        let mut upstream = self.connect.connect(backend.network, backend.addr).await?;
        let socket = SockRef::from(&upstream);
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE.0).with_interval(KEEPALIVE.1))?;
        socket.set_tcp_user_timeout(Some(UNANSWERED))?;
        if let Some(version) = service.proxy_protocol() {
            upstream.write_all(&proxy_protocol::header(version, ends.peer, ends.local)).await?;
        }
        Ok(upstream)
    }
}

/// Once it is dropped, the other end meets a reset.
fn reset(stream: &TcpStream) {
    // It may be gone already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// An idle connection is looked after that late, and then that often: the replica's host may be no more.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(15));
/// How long a replica may leave what it was sent without any answer, be it that it has no room: `TCP_USER_TIMEOUT` counts
/// that, too. Replicas that are gone and hosts that are lost are known before.
const UNANSWERED: Duration = Duration::from_secs(60);
