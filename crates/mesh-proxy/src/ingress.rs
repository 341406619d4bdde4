//! The ingress: listeners that come and go, and the routes they serve.

mod accept;

use crate::{Error, connect::Connect, engine::Engine, routes::Routes, settings::Settings};
use accept::accept;
use std::{collections::BTreeMap, net::SocketAddr, net::TcpListener, sync::Arc, time::Duration};
use tokio::{
    select,
    sync::{Semaphore, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The sockets that should be served, by the address they are bound to. The caller binds them and makes them
/// listen; the same socket under the same address is served on, another one takes its place.
pub type Listeners = BTreeMap<SocketAddr, Arc<TcpListener>>;

/// The L7 ingress of one node.
pub struct Ingress {
    listeners: watch::Receiver<Listeners>,
    routes: watch::Receiver<Arc<Routes>>,
    engine: Arc<Engine>,
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

impl Ingress {
    /// An ingress that follows these listeners and routes, and reaches backends through `connect`.
    pub fn new(
        listeners: watch::Receiver<Listeners>,
        routes: watch::Receiver<Arc<Routes>>,
        connect: Arc<dyn Connect>,
        settings: Settings,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(settings.max_connections));
        let engine = Arc::new(Engine::new(connect, settings));
        Self { listeners, routes, engine, permits, served: BTreeMap::new(), retired: Vec::new() }
    }

    /// Serves until cancelled, then lets what is in flight finish within [`Settings::drain`].
    ///
    /// Told to retire, because another process accepts on the same sockets, it accepts no more, and serves its
    /// connections to their natural end: the next response on each is its last, a tunnel lasts as long as both ends
    /// want. Then it returns.
    ///
    /// # Errors
    /// [`Error::Closed`] if the listeners or the routes have no sender any more.
    pub async fn run(mut self, retire: CancellationToken, cancel: CancellationToken) -> Result<(), Error> {
        self.listeners.mark_changed();
        self.routes.mark_changed();
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let tasks = self.engine.tasks().clone();
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
                    self.engine.set_routes(&routes);
                }
                changed = self.listeners.changed(), if !retired => {
                    if changed.is_err() {
                        break Err(Error::Closed("listeners"));
                    }
                    let wanted = self.listeners.borrow_and_update().clone();
                    self.serve(&wanted);
                }
                _ = sweep.tick() => self.engine.close_idle(),
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
                tracing::info!(%addr, "http ingress: stops listening");
            }
            keep
        });
        for (addr, socket) in wanted {
            if self.served.contains_key(addr) {
                continue;
            }
            match self.start(socket) {
                Ok(served) => {
                    tracing::info!(%addr, "http ingress: listens");
                    self.served.insert(*addr, served);
                }
                Err(err) => tracing::error!(%addr, %err, "http ingress: can't listen"),
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
            accept(listener, self.engine.clone(), self.permits.clone(), until.clone(), stop.clone());
        self.engine.tasks().spawn(accepting);
        Ok(Served { socket: socket.clone(), _accepting: until.drop_guard(), stop: stop.drop_guard() })
    }

    fn retire(&mut self) {
        self.engine.retire();
        self.retired = std::mem::take(&mut self.served).into_values().map(|served| served.stop).collect();
        self.engine.tasks().close();
    }

    async fn drain(&mut self) {
        self.served.clear();
        self.retired.clear();
        let tasks = self.engine.tasks();
        tasks.close();
        self.engine.close_all_idle();
        // Every connection has this deadline of its own; the second is for those that just began.
        let limit = self.engine.settings().drain + Duration::from_secs(1);
        if timeout(limit, tasks.wait()).await.is_err() {
            tracing::warn!(left = tasks.len(), "http ingress: connections outlived the drain");
        }
    }
}

/// How often connections to backends are looked through for those unused for too long.
const SWEEP: Duration = Duration::from_secs(1);
