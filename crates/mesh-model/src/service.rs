//! Services: a name, a VIP a network, published ports and a health check over a set of endpoints.

use crate::{Name, NetworkId, Protocol, PublishedPort, ServiceId};
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr};

/// What the service's name resolves to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointMode {
    /// One virtual address a network and family, balanced in the kernel.
    #[default]
    Vip,
    /// Every endpoint's own address.
    Dnsrr,
}

/// How a backend is chosen for a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Balance {
    /// In turn; exact for each service and node.
    #[default]
    Roundrobin,
    /// At random; for those with thousands of services.
    Random,
    /// By the client's address: the same backend from every node, as long as it is there.
    Source,
}

/// What a check does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthKind {
    /// `GET` of this path answers 2xx or 3xx.
    Http(String),
    /// A connection is accepted.
    Tcp,
}

/// The active check that a node runs against the service's endpoints on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What it does.
    pub kind: HealthKind,
    /// Port; the first TCP or HTTP target of the service if absent.
    #[serde(default)]
    pub port: Option<u16>,
    /// Milliseconds from one check to the next.
    pub interval_ms: u64,
    /// Milliseconds that one check may take.
    pub timeout_ms: u64,
    /// Successes in a row that bring an endpoint in.
    pub rise: u32,
    /// Failures in a row that take it out.
    pub fall: u32,
}

/// A service's place on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceNetwork {
    /// The network.
    pub network: NetworkId,
    /// One VIP for each family of the network. With [`EndpointMode::Dnsrr`] there are none, unless the service had another
    /// mode before: then its VIPs are no longer told, and go on for those who know them.
    pub vips: Vec<IpAddr>,
}

/// A service, as committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its identity.
    pub id: ServiceId,
    /// Its name, unique in the cluster.
    pub name: Name,
    /// Its networks; the first is the one that ingress reaches it by.
    pub networks: Vec<ServiceNetwork>,
    /// More names for it on each of its networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<Name>,
    /// What its name resolves to.
    #[serde(default)]
    pub endpoint_mode: EndpointMode,
    /// Published ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PublishedPort>,
    /// The check, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// How backends are chosen.
    #[serde(default)]
    pub balance: Balance,
    /// Whether each node leads to replicas of its own as long as there are any that take traffic.
    #[serde(default, skip_serializing_if = "is_false")]
    pub prefer_local: bool,
    /// Milliseconds that connections may go on after their endpoint was withdrawn.
    pub drain_timeout_ms: u64,
    /// When it was made, in seconds since 1970.
    pub created: u64,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Service {
    /// What goes through ports that kernels lead is counted by port and replica, of services that have no more of them.
    pub const COUNTED_PORTS: usize = 1024;

    /// The network that ingress reaches the service by.
    pub fn ingress_network(&self) -> Option<NetworkId> {
        self.networks.first().map(|on| on.network)
    }

    /// Whether a network is one of its own.
    pub fn is_on(&self, network: NetworkId) -> bool {
        self.networks.iter().any(|on| on.network == network)
    }

    /// The VIPs on one network.
    pub fn vips(&self, network: NetworkId) -> &[IpAddr] {
        self.networks.iter().find(|on| on.network == network).map_or(&[], |on| &on.vips)
    }

    /// The port that checks go to.
    pub fn health_port(&self) -> Option<u16> {
        let check = self.health.as_ref()?;
        check.port.or_else(|| first_tcp_target(&self.ports))
    }
}

pub(crate) fn first_tcp_target(ports: &[PublishedPort]) -> Option<u16> {
    ports.iter().find(|port| port.protocol != Protocol::Udp).map(|port| port.target)
}

/// What a user asks of `service create`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// The name.
    pub name: Name,
    /// Names or IDs of networks; none: the network `default`, made on first use.
    #[serde(default)]
    pub networks: Vec<String>,
    /// More names.
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// What the name resolves to.
    #[serde(default)]
    pub endpoint_mode: EndpointMode,
    /// Ports; a published port of 0 takes a free one.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// The check.
    #[serde(default)]
    pub health: Option<HealthCheck>,
    /// How backends are chosen.
    #[serde(default)]
    pub balance: Balance,
    /// See [`Service::prefer_local`].
    #[serde(default)]
    pub prefer_local: bool,
    /// See [`Service::drain_timeout_ms`].
    pub drain_timeout_ms: u64,
}

/// What a user asks of `service update`: only what is given changes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ServiceUpdate {
    /// Ports to add.
    #[serde(default)]
    pub publish_add: Vec<PublishedPort>,
    /// Whether ports to add that other services have are taken from them, in the same change.
    #[serde(default)]
    pub take: bool,
    /// Ports to remove: the published port or a range of them, with a protocol or without, or a whole specification.
    #[serde(default)]
    pub publish_rm: Vec<String>,
    /// The aliases from now on.
    #[serde(default)]
    pub aliases: Option<Vec<Name>>,
    /// The endpoint mode from now on.
    #[serde(default)]
    pub endpoint_mode: Option<EndpointMode>,
    /// The check from now on; `Some(None)` ends it.
    #[serde(default, with = "double_option")]
    pub health: Option<Option<HealthCheck>>,
    /// The choice from now on.
    #[serde(default)]
    pub balance: Option<Balance>,
    /// Whether local replicas are preferred from now on.
    #[serde(default)]
    pub prefer_local: Option<bool>,
    /// The drain timeout from now on.
    #[serde(default)]
    pub drain_timeout_ms: Option<u64>,
}

/// Tells an absent field from one that is `null`.
mod double_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &Option<Option<T>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        // The absent and the ended check both end up as null unless wrapped: one element, or none.
        value.as_ref().map(|inner| [inner]).serialize(to)
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Option<T>>, D::Error> {
        Ok(Option::<[Option<T>; 1]>::deserialize(from)?.map(|[inner]| inner))
    }
}

impl fmt::Display for EndpointMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vip => "vip",
            Self::Dnsrr => "dnsrr",
        })
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Roundrobin => "roundrobin",
            Self::Random => "random",
            Self::Source => "source",
        })
    }
}
