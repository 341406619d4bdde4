//! Nodes and the cluster they form.

use crate::{ClusterId, MacAddr, Name, NodeId};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

/// What a node may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs the API, allocates and stores.
    Manager,
    /// Runs endpoints and ingress only.
    Worker,
}

/// Whether a node is offered new traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// In use.
    #[default]
    Active,
    /// Keeps what it has, takes no new endpoints.
    Pause,
    /// Its endpoints are withdrawn.
    Drain,
}

/// Whether a node is there, as another sees it. Each node finds out for itself: neither stored nor sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeStatus {
    /// It answers, or has not been missed yet.
    #[default]
    Ready,
    /// It did not answer, which may be a mishap: it is offered less.
    Suspect,
    /// It does not answer.
    Down,
}

macro_rules! display {
    ($type:ty { $($variant:ident => $text:literal),+ $(,)? }) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$variant => $text),+ })
            }
        }
    };
}
display!(Role { Manager => "manager", Worker => "worker" });
display!(Availability { Active => "Active", Pause => "Pause", Drain => "Drain" });
display!(NodeStatus { Ready => "Ready", Suspect => "Suspect", Down => "Down" });

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its identity.
    pub id: NodeId,
    /// Its name, unique in the cluster.
    pub name: Name,
    /// What it may do.
    pub role: Role,
    /// A small number, unique in the cluster and from 1: the bridge MAC, the link-local address and the firewall
    /// mark of the node are derived from it.
    pub index: u32,
    /// Underlay address (the VTEP) and API port.
    pub advertise: SocketAddr,
    /// The node's own addresses inside every overlay, one a family of the node pool.
    pub addresses: Vec<IpAddr>,
    /// Whether it is offered new traffic.
    #[serde(default)]
    pub availability: Availability,
    /// Labels of the user.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When it joined, in seconds since 1970.
    pub created: u64,
}

impl Node {
    /// MAC address of the node's bridge in every overlay.
    pub const fn bridge_mac(&self) -> MacAddr {
        MacAddr::bridge(self.index)
    }

    /// Link-local address of the node's bridge in every overlay: the next hop for what returns through it.
    pub const fn bridge_link_local(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x6d, (self.index >> 16) as u16, self.index as u16)
    }

    /// Firewall mark of connections that this node's ingress took.
    pub const fn mark(&self) -> u32 {
        self.index
    }
}

/// What a node says of itself when it joins.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeSpec {
    /// The name it wants.
    pub name: Name,
    /// Underlay address and API port.
    pub advertise: SocketAddr,
}

/// A change of a node that its user asks for; what is absent stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct NodeUpdate {
    /// Whether it is offered new traffic.
    #[serde(default)]
    pub availability: Option<Availability>,
    /// Labels to set.
    #[serde(default)]
    pub label_add: BTreeMap<String, String>,
    /// Keys of labels to remove; those that are not there are fine.
    #[serde(default)]
    pub label_rm: Vec<String>,
}

/// What holds for the cluster as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its identity.
    pub id: ClusterId,
    /// UDP port of VXLAN on every node.
    pub data_path_port: u16,
    /// Where subnets are taken from if the user gives none: IPv4 in /24s, IPv6 in /64s.
    pub address_pools: Vec<IpNetwork>,
    /// Where the nodes' own overlay addresses are taken from.
    pub node_pools: Vec<IpNetwork>,
    /// Number of the membership key that should be in use: one more with each node that is removed.
    #[serde(default)]
    pub gossip_key: u32,
    /// Certificates (PEM) of the CAs that nodes trust: the one that signs, and while it takes the place of another,
    /// that one.
    #[serde(default)]
    pub authorities: Vec<String>,
    /// How long the certificates of nodes are valid, in seconds.
    #[serde(default = "ninety_days")]
    pub cert_expiry_s: u64,
}

const fn ninety_days() -> u64 {
    90 * 24 * 60 * 60
}
