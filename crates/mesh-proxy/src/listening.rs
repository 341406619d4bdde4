//! Listeners that come and go, the routes they serve, and how all of it ends: for whatever is spoken on them.

mod accept;

use crate::{Error, routes::Routes};
use accept::accept;
use std::{
    collections::BTreeMap, future::Future, net::SocketAddr, net::TcpListener, sync::Arc, time::Duration,
};
use tokio::{
    net::TcpStream,
    select,
    sync::{Semaphore, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// The sockets that should be served, by the address they are bound to. The caller binds them and makes them
/// listen; the same socket under the same address is served on, another one takes its place.
pub type Listeners = BTreeMap<SocketAddr, Arc<TcpListener>>;

/// What serves the connections of listeners.
pub(crate) trait Serving: Send + Sync + 'static {
    /// For the log.
    const NAME: &str;

    /// Serves one client until it goes, or until `stop` and what is in flight then has ended, at most
    /// [`Serving::drain`] later.
    fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        ends: Ends,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static;

    /// Every task of a connection, to either side.
    fn tasks(&self) -> &TaskTracker;

    /// Puts other routes in force.
    fn set_routes(&self, routes: &Routes);

    /// From now on connections are only finished.
    fn retire(&self) {}

    /// Looks after what is kept between connections, every second.
    fn sweep(&self) {}

    /// Lets go of what is kept between connections: nothing more comes.
    fn let_go(&self) {}

    /// How long what is in flight may go on once its listener was removed.
    fn drain(&self) -> Duration;
}

/// The two ends of a client's connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    /// The client.
    pub(crate) peer: SocketAddr,
    /// The published address that it reached.
    pub(crate) local: SocketAddr,
}

/// Listeners, and what serves their connections.
pub(crate) struct Listening<S> {
    listeners: watch::Receiver<Listeners>,
    routes: watch::Receiver<Arc<Routes>>,
    serving: Arc<S>,
    permits: Arc<Semaphore>,
    /// What is served now.
    served: BTreeMap<SocketAddr, Served>,
    /// What keeps the connections of a retired ingress.
    retired: Vec<DropGuard>,
}

struct Served {
    socket: Arc<TcpListener>,
    /// Dropped, it stops accepting.
    _accepting: DropGuard,
    /// Dropped, connections finish what is in flight.
    stop: DropGuard,
}

impl<S: Serving> Listening<S> {
    pub(crate) fn new(
        listeners: watch::Receiver<Listeners>,
        routes: watch::Receiver<Arc<Routes>>,
        serving: S,
        max_connections: usize,
    ) -> Self {
        let (permits, serving) = (Arc::new(Semaphore::new(max_connections)), Arc::new(serving));
        Self { listeners, routes, serving, permits, served: BTreeMap::new(), retired: Vec::new() }
    }

    /// Serves until cancelled, then lets what is in flight finish within [`Serving::drain`].
    ///
    /// Told to retire, because another process accepts on the same sockets, it accepts no more, and serves its
    /// connections to their natural end. Then it returns.
    pub(crate) async fn run(
        mut self,
        retire: CancellationToken,
        cancel: CancellationToken,
    ) -> Result<(), Error> {
        self.listeners.mark_changed();
        self.routes.mark_changed();
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let tasks = self.serving.tasks().clone();
        let mut retired = false;
        let ended = loop {
            select! {
                biased;
                () = cancel.cancelled() => break Ok(()),
                () = retire.cancelled(), if !retired => {
                    retired = true;
                    self.retire();
                }
                () = tasks.wait(), if retired => break Ok(()),
                // Before the listeners, so that the first request finds its route.
                changed = self.routes.changed() => {
                    if changed.is_err() {
                        break Err(Error::Closed("routes"));
                    }
                    let routes = self.routes.borrow_and_update().clone();
                    self.serving.set_routes(&routes);
                }
                changed = self.listeners.changed(), if !retired => {
                    if changed.is_err() {
                        break Err(Error::Closed("listeners"));
                    }
                    let wanted = self.listeners.borrow_and_update().clone();
                    self.serve(&wanted);
                }
                _ = sweep.tick() => self.serving.sweep(),
            }
        };
        self.drain().await;
        ended
    }

    /// Makes what is served what is wanted.
    fn serve(&mut self, wanted: &Listeners) {
        self.served.retain(|addr, served| {
            let keep = wanted.get(addr).is_some_and(|socket| Arc::ptr_eq(socket, &served.socket));
            if !keep {
                tracing::info!(%addr, "{}: stops listening", S::NAME);
            }
            keep
        });
        for (addr, socket) in wanted {
            if self.served.contains_key(addr) {
                continue;
            }
            match self.start(socket) {
                Ok(served) => {
                    tracing::info!(%addr, "{}: listens", S::NAME);
                    self.served.insert(*addr, served);
                }
                Err(err) => tracing::error!(%addr, %err, "{}: can't listen", S::NAME),
            }
        }
    }

    fn start(&self, socket: &Arc<TcpListener>) -> std::io::Result<Served> {
        let listener = socket.try_clone()?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let stop = CancellationToken::new();
        let until = CancellationToken::new();
        let accepting =
            accept(listener, self.serving.clone(), self.permits.clone(), until.clone(), stop.clone());
        self.serving.tasks().spawn(accepting);
        Ok(Served { socket: socket.clone(), _accepting: until.drop_guard(), stop: stop.drop_guard() })
    }

    fn retire(&mut self) {
        self.serving.retire();
        self.retired = std::mem::take(&mut self.served).into_values().map(|served| served.stop).collect();
        self.serving.tasks().close();
    }

    async fn drain(&mut self) {
        self.served.clear();
        self.retired.clear();
        let tasks = self.serving.tasks();
        tasks.close();
        self.serving.let_go();
        // Every connection has this deadline of its own; the second is for those that just began.
        let limit = self.serving.drain() + Duration::from_secs(1);
        if timeout(limit, tasks.wait()).await.is_err() {
            tracing::warn!(left = tasks.len(), "{}: connections outlived the drain", S::NAME);
        }
    }
}

/// How often what is kept between connections is looked after.
const SWEEP: Duration = Duration::from_secs(1);
