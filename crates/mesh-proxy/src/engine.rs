//! HTTP/1.1 on hyper: one client connection from its first byte to its last.
//!
//! ```text
//! client ── serve ── exchange ─┬─ head      what is refused, what is rewritten (pure)
//!                              ├─ upstream  pooled connections, retries, timeouts
//!                              ├─ body      streams with progress, both ways
//!                              └─ tunnel    after 101
//! ```

mod access;
mod body;
mod exchange;
mod head;
mod link;
mod pool;
mod retry;
mod tunnel;

use crate::{
    balance::Balancer,
    connect::Connect,
    listening::{Ends, Serving},
    routes::Routes,
    settings::Settings,
};
use exchange::Exchange;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use link::Link;
use pool::Pool;
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    pin, select,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What all connections of an ingress share.
pub(crate) struct Engine {
    balancer: Balancer,
    pool: Pool,
    settings: Settings,
    /// Every task of a connection: clients, backends and tunnels.
    tasks: TaskTracker,
    retired: AtomicBool,
}

impl Engine {
    pub(crate) fn new(connect: Arc<dyn Connect>, settings: Settings) -> Self {
        let tasks = TaskTracker::new();
        let pool = Pool::new(connect, &settings, tasks.clone());
        Self { balancer: Balancer::default(), pool, settings, tasks, retired: AtomicBool::new(false) }
    }

    /// All exchanges of one connection.
    async fn exchanges(
        self: &Arc<Self>,
        link: Link,
        ends: Ends,
        stop: CancellationToken,
    ) -> hyper::Result<()> {
        let mut protocol = http1::Builder::new();
        protocol
            .timer(TokioTimer::new())
            .header_read_timeout(self.settings.head_timeout)
            .max_header_size(self.settings.max_head)
            .max_buf_size(self.settings.max_head.max(MIN_BUFFER));
        let (engine, tunnel_stop) = (self.clone(), stop.clone());
        let service = service_fn(move |request| {
            let exchange = Exchange::new(engine.clone(), ends, tunnel_stop.clone());
            async move { Ok::<_, Infallible>(exchange.answer(request).await) }
        });
        let connection = protocol.serve_connection(TokioIo::new(link), service).with_upgrades();
        pin!(connection);
        let grace = GRACE.min(self.settings.drain / 4);
        let stopped = async {
            stop.cancelled().await;
            sleep(grace).await;
        };
        select! {
            ended = connection.as_mut() => return ended,
            () = stopped => connection.as_mut().graceful_shutdown(),
        }
        match timeout(self.settings.drain - grace, connection).await {
            Ok(ended) => ended,
            Err(_) => {
                tracing::debug!(client = %ends.peer, "connection cut: it outlived its listener's drain");
                Ok(())
            }
        }
    }
}

impl Serving for Engine {
    const NAME: &str = "http ingress";

    async fn serve(self: Arc<Self>, stream: TcpStream, ends: Ends, stop: CancellationToken) {
        let link = Link::new(stream);
        match self.exchanges(link.clone(), ends, stop).await {
            Ok(()) => {}
            Err(err) if err.is_incomplete_message() || err.is_timeout() => {
                tracing::trace!(client = %ends.peer, %err, "client connection ended");
            }
            Err(err) => tracing::debug!(client = %ends.peer, %err, "client connection ended"),
        }
        link.linger().await;
    }

    fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Also lets go of connections to backends that are no more.
    fn set_routes(&self, routes: &Routes) {
        self.balancer.replace(routes);
        let backends = routes.backends();
        self.pool.retain(|backend| backends.contains(backend));
    }

    /// Each response is the last one of its connection, and a tunnel lasts as long as both ends want.
    fn retire(&self) {
        self.retired.store(true, Relaxed);
        self.let_go();
    }

    fn sweep(&self) {
        self.pool.close_idle();
    }

    fn let_go(&self) {
        self.pool.retain(|_| false);
    }

    fn drain(&self) -> Duration {
        self.settings.drain
    }
}

/// hyper needs a buffer of this size at least.
const MIN_BUFFER: usize = 8192;

/// How long after a stop connections are kept that wait for a request, and are told with its response that it is their last: a
/// client that sends one just when its connection is closed can't know what became of it.
const GRACE: Duration = Duration::from_secs(1);
