//! What was relayed, by the ports of endpoints that it went to.

use crate::routes::Backend;
use mesh_model::{EndpointId, Transport};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// The counters of a relay.
#[derive(Debug, Clone, Default)]
pub struct Tally(Arc<Mutex<BTreeMap<Target, Arc<Counters>>>>);

/// A port of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// What carries it.
    pub transport: Transport,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Its port.
    pub port: u16,
}

/// What went to a port of an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Volume {
    /// Connections and flows.
    pub connections: u64,
    /// Datagrams and bytes that clients sent. How many packets a connection has a process does not see.
    pub sent: (u64, u64),
    /// Datagrams and bytes that they were sent.
    pub received: (u64, u64),
}

/// The same while it is counted.
#[derive(Debug, Default)]
pub(super) struct Counters {
    connections: AtomicU64,
    pub(super) sent: Amount,
    pub(super) received: Amount,
}

/// What went one way.
#[derive(Debug, Default)]
pub(super) struct Amount {
    datagrams: AtomicU64,
    bytes: AtomicU64,
}

impl Tally {
    /// Counts a connection or flow, and returns where the rest of it is counted.
    pub(super) fn begin(&self, transport: Transport, backend: &Backend) -> Arc<Counters> {
        let target = Target { transport, endpoint: backend.endpoint, port: backend.addr.port() };
        let mut counters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counters = Arc::clone(counters.entry(target).or_default());
        counters.connections.fetch_add(1, Relaxed);
        counters
    }

    /// What was counted. Endpoints that are no more are forgotten.
    pub fn read(&self, exists: impl Fn(EndpointId) -> bool) -> Vec<(Target, Volume)> {
        let mut counters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counters.retain(|target, _| exists(target.endpoint));
        let volume = |counters: &Counters| Volume {
            connections: counters.connections.load(Relaxed),
            sent: counters.sent.read(),
            received: counters.received.read(),
        };
        counters.iter().map(|(target, counters)| (*target, volume(counters))).collect()
    }
}

impl Amount {
    pub(super) fn bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn datagram(&self, bytes: usize) {
        self.datagrams.fetch_add(1, Relaxed);
        self.bytes(bytes);
    }

    fn read(&self) -> (u64, u64) {
        (self.datagrams.load(Relaxed), self.bytes.load(Relaxed))
    }
}
