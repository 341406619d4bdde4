//! What is shown: records with the names of what they refer to.

use crate::TrafficView;
use mesh_model::{
    Availability, Balance, EndpointId, EndpointMode, Health, HealthCheck, MacAddr, NetworkDns, NetworkId,
    NodeId, NodeStatus, PublishedPort, Role, ServiceId, Subnet, Target, Weight,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

/// Body of a refusal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    /// One line: what is wrong and what to do.
    pub error: String,
}

/// The answer to a creation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Created {
    /// ID of what was made.
    pub id: String,
    /// What the user should know though it was done, a line each.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// `cluster ca`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AuthorityView {
    /// SHA-256 of the CA's certificate: what join tokens pin.
    pub fingerprint: String,
    /// When the CA ends, in seconds since 1970.
    pub expires: u64,
    /// How long nodes' certificates are valid, in seconds.
    pub cert_expiry_s: u64,
    /// The CA's certificate, as PEM.
    pub certificate: String,
    /// As long as it takes the place of another.
    #[serde(default)]
    pub rotation: Option<RotationView>,
}

/// A CA that takes the place of another.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RotationView {
    /// SHA-256 of the certificate of the CA before it, which is still trusted.
    pub old_fingerprint: String,
    /// Names of the nodes that have no certificate of the new CA yet.
    pub waiting_for: Vec<String>,
}

/// The answer to a promotion or demotion.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RoleChanged {
    /// ID of the node.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// What it is now.
    pub role: Role,
    /// Whether it was that before.
    pub unchanged: bool,
}

/// Where a daemon stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Waits for `cluster init` or `cluster join`.
    Unclustered,
    /// Runs from the last snapshot; no manager answers.
    Detached,
    /// No member any more, the managers say; runs from the last snapshot until it leaves.
    Removed,
    /// Up to date.
    Ready,
}

/// A process that serves names and the L7 ingress of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontView {
    /// Its number.
    pub pid: u32,
    /// What it does.
    pub state: FrontState,
    /// Version of its program; absent: it does not say.
    #[serde(default)]
    pub version: Option<String>,
}

/// What a front process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FrontState {
    /// It takes connections and questions.
    Serving,
    /// Another one does; it ends with its last connection.
    Finishing,
}

/// `status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusView {
    /// Version of the daemon.
    pub version: String,
    /// Where it stands.
    pub state: State,
    /// This node.
    #[serde(default)]
    pub node: Option<NodeView>,
    /// ID of the cluster.
    #[serde(default)]
    pub cluster: Option<String>,
    /// Managers' API addresses.
    #[serde(default)]
    pub managers: Vec<SocketAddr>,
    /// Revision of the state that the data planes run from.
    pub revision: u64,
    /// The processes that serve names and the L7 ingress: one, unless earlier ones finish what they began; none as long as
    /// there is nothing to serve.
    #[serde(default)]
    pub fronts: Vec<FrontView>,
    /// What does not work, a line each.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// A node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeView {
    /// ID.
    pub id: NodeId,
    /// Name.
    pub name: String,
    /// Role.
    pub role: Role,
    /// Liveness.
    pub status: NodeStatus,
    /// Availability.
    pub availability: Availability,
    /// Whether it leads the managers.
    pub leader: bool,
    /// Whether this is the node that answers.
    pub local: bool,
    /// Underlay address and API port.
    pub address: SocketAddr,
    /// Its own addresses in every overlay.
    pub overlay_addresses: Vec<IpAddr>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Seconds since 1970.
    pub created: u64,
}

/// A network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkView {
    /// ID.
    pub id: NetworkId,
    /// Name.
    pub name: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// Subnets with their gateways.
    pub subnets: Vec<Subnet>,
    /// No way out.
    pub internal: bool,
    /// MTU asked for, in bytes; absent: derived on each node.
    pub mtu: Option<u32>,
    /// Resolvers of its own; the hosts' where there are none.
    #[serde(default)]
    pub dns: NetworkDns,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Endpoints on it.
    pub endpoints: Vec<NetworkUse>,
    /// Services on it.
    pub services: Vec<NetworkUse>,
    /// Seconds since 1970.
    pub created: u64,
}

/// Something on a network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkUse {
    /// ID.
    pub id: String,
    /// Name.
    pub name: String,
    /// Its addresses on this network: an endpoint's own, a service's VIPs.
    pub addresses: Vec<IpAddr>,
    /// Name of the node, for an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// A service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceView {
    /// ID.
    pub id: ServiceId,
    /// Name.
    pub name: String,
    /// What its name resolves to.
    pub endpoint_mode: EndpointMode,
    /// VIPs by the name of the network.
    pub networks: Vec<AddressesView>,
    /// More names.
    pub aliases: Vec<String>,
    /// Published ports.
    pub ports: Vec<PublishedPort>,
    /// The check.
    pub health: Option<HealthCheck>,
    /// How backends are chosen.
    pub balance: Balance,
    /// Milliseconds.
    pub drain_timeout_ms: u64,
    /// Whether each node leads to replicas of its own as long as there are any that take traffic.
    #[serde(default)]
    pub prefer_local: bool,
    /// Endpoints that take traffic.
    pub healthy: usize,
    /// Endpoints.
    pub total: usize,
    /// Endpoints that clients of its UDP ports reach without their own address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_nat: Vec<SourceNatView>,
    /// What went through its published ports, as far as nodes' kernels forward them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficView>,
    /// Published ports that nodes can't serve.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub degraded: Vec<DegradedView>,
    /// Names of nodes that did not tell what goes through its ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<String>,
    /// Seconds since 1970.
    pub created: u64,
}

/// An endpoint that datagrams from outside its network reach with the gateway's address for the sender's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceNatView {
    /// Its name.
    pub endpoint: String,
    /// Name of its node, which translates.
    pub node: String,
    /// Those of its addresses that it holds for.
    pub addresses: Vec<IpAddr>,
}

/// A published port that a node can't serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DegradedView {
    /// Name of the node.
    pub node: String,
    /// What is in its way.
    pub problem: String,
}

/// Addresses on one network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AddressesView {
    /// Name of the network.
    pub network: String,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
}

/// An endpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EndpointView {
    /// ID.
    pub id: EndpointId,
    /// Name.
    pub name: String,
    /// Name of the network.
    pub network: String,
    /// Name of the service.
    pub service: Option<String>,
    /// Name of the node.
    pub node: String,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// MAC address.
    pub mac: MacAddr,
    /// More names.
    pub aliases: Vec<String>,
    /// What its check says.
    pub health: Health,
    /// Share of its service's new connections, relative to the others.
    #[serde(default)]
    pub weight: Weight,
    /// Offered no new connections.
    pub draining: bool,
    /// What it is attached to.
    pub target: Target,
    /// Interface inside the target.
    pub ifname: String,
    /// Ports of its node that lead to it alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PublishedPort>,
    /// What the program that attached it calls the attachment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Those of its addresses that datagrams from outside the network reach with the gateway's address for the sender's, as
    /// what it is attached to has its default route elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source_nat: Vec<IpAddr>,
    /// Name servers for whoever is attached: the gateways of the network.
    pub nameservers: Vec<IpAddr>,
    /// Seconds since 1970.
    pub created: u64,
}
