//! What is asked, where the model's own specifications don't say it already.

use ipnetwork::IpNetwork;
use mesh_model::{NodeId, Role, Weight};
use serde::{Deserialize, Serialize};
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

/// `cluster init`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Init {
    /// Underlay address and API port of this node.
    pub advertise: SocketAddr,
    /// Pools for networks without a subnet of their own; empty: the defaults.
    #[serde(default)]
    pub address_pools: Vec<IpNetwork>,
    /// Pools for the nodes' own overlay addresses; empty: the defaults.
    #[serde(default)]
    pub node_pools: Vec<IpNetwork>,
    /// UDP port of VXLAN.
    pub data_path_port: u16,
    /// How long nodes' certificates are valid, in seconds; each renews its own long before.
    pub cert_expiry_s: u64,
    /// Where the managers keep the state.
    #[serde(default)]
    pub store: StoreSpec,
}

/// What keeps the cluster's state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreSpec {
    /// A file of the only manager.
    #[default]
    Redb,
    /// An etcd that every manager runs, all of them one cluster.
    Etcd,
    /// An etcd that somebody else runs.
    External(ExternalEtcd),
}

/// How managers reach an etcd that somebody else runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExternalEtcd {
    /// Client URLs of its members.
    pub endpoints: Vec<String>,
    /// PEM file on each manager: the CA of its certificates, for `https://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// PEM file on each manager: the certificate to show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// PEM file on each manager: the certificate's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// The answer to [`Init`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Initialized {
    /// This node.
    pub node: NodeId,
    /// Token for workers.
    pub join_token: String,
    /// Address that others join at.
    pub manager: SocketAddr,
}

/// `cluster join`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Join {
    /// The token; a secret.
    pub token: String,
    /// A manager.
    pub manager: SocketAddr,
    /// Underlay address of this node; the one that leads to the manager if absent.
    #[serde(default)]
    pub advertise: Option<SocketAddr>,
}

impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Join").field("manager", &self.manager).finish_non_exhaustive()
    }
}

/// The answer to [`Join`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Joined {
    /// This node.
    pub node: NodeId,
    /// As what it joined.
    pub role: Role,
}

/// `cluster leave`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Leave {
    /// Take the node's endpoints with it; leave though no manager answers; end the cluster with its last manager.
    #[serde(default)]
    pub force: bool,
}

/// `node rm`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct NodeRemoval {
    /// Also if it is up.
    #[serde(default)]
    pub force: bool,
}

/// The answer to `cluster restore`, whose body is the backup as `cluster backup` gave it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Restored {
    /// This node, as which it was in the backup.
    pub node: NodeId,
    /// Its name there.
    pub name: String,
    /// Revision of the backup.
    pub revision: u64,
    /// When the backup was made, in seconds since 1970.
    pub time: u64,
    /// Names of nodes that were managers as well: they are workers now.
    pub demoted: Vec<String>,
}

/// The answer to `cluster migrate`, whose body is the [`StoreSpec`] to move to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Migrated {
    /// How many records moved.
    pub records: usize,
    /// Where the state as it was is kept, on the manager.
    pub old_store: PathBuf,
}

/// `cluster join-token`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinTokenRequest {
    /// Role of nodes that join with it.
    pub role: Role,
    /// Make a new one; the old one ends.
    #[serde(default)]
    pub rotate: bool,
    /// Milliseconds until a new one expires; absent: never.
    #[serde(default)]
    pub ttl_ms: Option<u64>,
}

/// The answer to [`JoinTokenRequest`].
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinTokenView {
    /// The token; a secret.
    pub token: String,
    /// Address that others join at.
    pub manager: SocketAddr,
}

/// `cluster ca --rotate`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RotateAuthority {
    /// End a replacement that waits for nodes: they have to join again.
    #[serde(default)]
    pub force: bool,
}

/// `network disconnect`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Disconnect {
    /// The network's name or ID.
    pub network: String,
    /// A target (`netns:/path`, `pid:N`), or an endpoint's name, ID or owner.
    pub endpoint: String,
    /// Do not wait for connections in flight.
    #[serde(default)]
    pub force: bool,
}

/// `endpoint update`: only what is given changes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointSettings {
    /// Share of its service's new connections, relative to the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<Weight>,
}

/// What an endpoint list is narrowed to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct EndpointFilter {
    /// Name or ID of a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Name or ID of a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Name or ID of a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Beginning of the owner, which narrows it to endpoints of the node that is asked: it needs no manager then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

/// The answer to `network prune`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pruned {
    /// Names of the networks that were removed.
    pub removed: Vec<String>,
}

/// The answer to a removal; idempotent ones say whether anything was there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Removed {
    /// Something was removed.
    pub removed: bool,
    /// Addresses that are free again.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}
