//! Connections to backends, kept for the next request.

use super::{body::Upload, link::Link};
use crate::{Error, connect::Connect, routes::Backend, settings::Settings};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// A connection to a backend, for one request at a time.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: SendRequest<Upload>,
    pub(super) link: Link,
    pub(super) backend: Backend,
    /// It has served a request before: the backend may close it at any time.
    pub(super) reused: bool,
}

/// The connections that are not in use, and how new ones are made.
#[derive(Clone)]
pub(super) struct Pool(Arc<Inner>);

struct Inner {
    connect: Arc<dyn Connect>,
    connect_timeout: Duration,
    idle_timeout: Duration,
    idle_per_backend: usize,
    tasks: TaskTracker,
    idle: Mutex<HashMap<Backend, Vec<Idle>>>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

impl Pool {
    pub(super) fn new(connect: Arc<dyn Connect>, settings: &Settings, tasks: TaskTracker) -> Self {
        Self(Arc::new(Inner {
            connect,
            connect_timeout: settings.connect_timeout,
            idle_timeout: settings.idle_timeout,
            idle_per_backend: settings.idle_per_backend,
            tasks,
            idle: Mutex::default(),
        }))
    }

    /// A connection to a backend: the one used last, or a new one.
    pub(super) async fn lease(&self, backend: Backend, fresh: bool) -> Result<Connection, Error> {
        if !fresh && let Some(connection) = self.take(&backend) {
            return Ok(connection);
        }
        self.open(backend).await
    }

    fn take(&self, backend: &Backend) -> Option<Connection> {
        let mut idle = self.idle();
        let kept = idle.get_mut(backend)?;
        kept.retain(|idle| !idle.connection.sender.is_closed());
        // One whose last exchange is only just ending may not be ready yet.
        let at = kept.iter().rposition(|idle| idle.connection.sender.is_ready())?;
        Some(kept.swap_remove(at).connection)
    }

    async fn open(&self, backend: Backend) -> Result<Connection, Error> {
        let limit = self.0.connect_timeout;
        let connecting = self.0.connect.connect(backend.network, backend.addr);
        let socket = timeout(limit, connecting).await.map_err(|_| Error::Timeout(limit))??;
        socket.set_nodelay(true)?;
        let link = Link::new(socket);
        let mut protocol = http1::Builder::new();
        protocol.max_buf_size(READ_BUFFER);
        let (sender, driver) = protocol.handshake(TokioIo::new(link.clone())).await?;
        self.0.tasks.spawn(async move {
            if let Err(err) = driver.with_upgrades().await {
                tracing::debug!(addr = %backend.addr, %err, "upstream connection ended");
            }
        });
        Ok(Connection { sender, link, backend, reused: false })
    }

    /// Keeps a connection whose exchange is over.
    pub(super) fn put(&self, mut connection: Connection) {
        if connection.sender.is_closed() || self.0.tasks.is_closed() {
            return;
        }
        connection.reused = true;
        let mut idle = self.idle();
        let kept = idle.entry(connection.backend).or_default();
        if kept.len() < self.0.idle_per_backend {
            kept.push(Idle { connection, since: Instant::now() });
        }
    }

    /// Closes unused connections to other backends than these.
    pub(super) fn retain(&self, wanted: impl Fn(&Backend) -> bool) {
        self.idle().retain(|backend, _| wanted(backend));
    }

    /// Closes connections that were unused for too long, or that the backend has closed.
    pub(super) fn close_idle(&self) {
        let limit = self.0.idle_timeout;
        self.idle().retain(|_, kept| {
            kept.retain(|idle| idle.since.elapsed() < limit && !idle.connection.sender.is_closed());
            !kept.is_empty()
        });
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<Backend, Vec<Idle>>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

/// The most that is read ahead of a slow client, in bytes a connection.
const READ_BUFFER: usize = 64 * 1024;
