//! The L7 ingress: HTTP on the listeners of published `protocol=http` ports.

use crate::{
    Error,
    connect::Connect,
    engine::Engine,
    listening::{Listeners, Listening},
    routes::Routes,
    settings::Settings,
};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The L7 ingress of one node.
pub struct Ingress(Listening<Engine>);

impl Ingress {
    /// An ingress that follows these listeners and routes, and reaches backends through `connect`.
    pub fn new(
        listeners: watch::Receiver<Listeners>,
        routes: watch::Receiver<Arc<Routes>>,
        connect: Arc<dyn Connect>,
        settings: Settings,
    ) -> Self {
        let limit = settings.max_connections;
        Self(Listening::new(listeners, routes, Engine::new(connect, settings), limit))
    }

    /// Serves until cancelled, then lets what is in flight finish within [`Settings::drain`].
    ///
    /// Told to retire, because another process accepts on the same sockets, it accepts no more, and serves its
    /// connections to their natural end: the next response on each is its last, a tunnel lasts as long as both ends
    /// want. Then it returns.
    ///
    /// # Errors
    /// [`Error::Closed`] if the listeners or the routes have no sender any more.
    pub async fn run(self, retire: CancellationToken, cancel: CancellationToken) -> Result<(), Error> {
        self.0.run(retire, cancel).await
    }
}
