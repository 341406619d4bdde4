//! Limits of the ingress and of the relay.

use std::time::Duration;

/// Limits of the ingress, and of the relay as far as they are about connections. The defaults are meant to be right.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a connection to a backend may take to come about.
    pub connect_timeout: Duration,
    /// How long a client may take from one request to the end of the next one's head.
    pub head_timeout: Duration,
    /// How long the head of a response may take, counted from the last byte of the request.
    pub response_timeout: Duration,
    /// How long a body may stand still because the one who sends it sends nothing.
    pub body_timeout: Duration,
    /// How long an unused connection to a backend is kept.
    pub idle_timeout: Duration,
    /// How many unused connections are kept, for each backend.
    pub idle_per_backend: usize,
    /// How many client connections may be open at once; more wait in the kernel's backlog.
    pub max_connections: usize,
    /// The largest request head, in bytes (RFC 6585: 431 beyond).
    pub max_head: usize,
    /// How long requests, tunnels and relayed connections in flight may go on once their listener was removed.
    pub drain: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            idle_timeout: Duration::from_secs(30),
            idle_per_backend: 64,
            max_connections: 65_536,
            max_head: 64 * 1024,
            drain: Duration::from_secs(10),
        }
    }
}
