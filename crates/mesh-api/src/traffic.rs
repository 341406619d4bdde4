//! What went through published ports.

use mesh_model::Protocol;
use serde::{Deserialize, Serialize};

/// What went through published ports of one node to one endpoint, since that is one there or the node's daemon started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficView {
    /// Name of the node that clients asked.
    pub node: String,
    /// Name of the service.
    pub service: String,
    /// `tcp` or `udp`.
    pub protocol: Protocol,
    /// The ports that are published; several if they lead to one.
    pub published: Vec<u16>,
    /// The port of the endpoint.
    pub target: u16,
    /// Name of the endpoint.
    pub endpoint: String,
    /// Connections and flows that were led there.
    pub connections: u64,
    /// What clients sent.
    pub sent: CountView,
    /// What they were sent.
    pub received: CountView,
}

impl std::ops::Add for CountView {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

/// Packets and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountView {
    /// Packets; what the kernel handles together counts as one. Those of TCP connections that a process relays are not known.
    pub packets: u64,
    /// Bytes, with their IP headers where the kernel forwards.
    pub bytes: u64,
}
