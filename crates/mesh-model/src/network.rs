//! Networks: an overlay with its VNI and subnets.

use crate::{DomainName, Name, NetworkDns, NetworkId, Resolver};
use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};

/// The first VNI that is given out unasked; lower ones are left to those who choose their own.
pub const VNI_FIRST: u32 = 4096;
/// The largest VNI (RFC 7348: 24 bits).
pub const VNI_MAX: u32 = (1 << 24) - 1;

/// One subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The prefix, without host bits.
    pub cidr: IpNetwork,
    /// The gateway, the same address on every node: the default route and the name server of containers.
    pub gateway: IpAddr,
    /// The part of the prefix that addresses are given out from, if not all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<IpNetwork>,
}

/// A network, as committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Its identity.
    pub id: NetworkId,
    /// Its name, unique in the cluster.
    pub name: Name,
    /// VXLAN network identifier (RFC 7348).
    pub vni: u32,
    /// One or more subnets, IPv4, IPv6 or both.
    pub subnets: Vec<Subnet>,
    /// No way out: containers reach this network only.
    #[serde(default)]
    pub internal: bool,
    /// MTU of the overlay in bytes; derived from the underlay on each node if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Who answers what the mesh does not know.
    #[serde(default, skip_serializing_if = "NetworkDns::is_empty")]
    pub dns: NetworkDns,
    /// Labels of the user.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
}

impl Network {
    /// The prefixes of its subnets.
    pub fn prefixes(&self) -> impl Iterator<Item = IpNetwork> {
        self.subnets.iter().map(|subnet| subnet.cidr)
    }

    /// The subnet that an address belongs to.
    pub fn subnet_of(&self, address: IpAddr) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.cidr.contains(address))
    }

    /// The gateway addresses, one a subnet.
    pub fn gateways(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.subnets.iter().map(|subnet| subnet.gateway)
    }
}

/// What a user asks of `network create`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// The name.
    pub name: Name,
    /// Subnets; none: one is taken from the cluster's pool.
    #[serde(default)]
    pub subnets: Vec<IpNetwork>,
    /// Gateways, each inside one of the subnets; the first usable address of a subnet that has none here.
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Ranges to give out addresses from, each inside one of the subnets.
    #[serde(default)]
    pub ranges: Vec<IpNetwork>,
    /// Take an IPv6 subnet from the pool, if none is given.
    #[serde(default)]
    pub ipv6: bool,
    /// See [`Network::internal`].
    #[serde(default)]
    pub internal: bool,
    /// Ask for encryption.
    #[serde(default)]
    pub encrypted: bool,
    /// See [`Network::mtu`].
    #[serde(default)]
    pub mtu: Option<u32>,
    /// A VNI of the user's own choice.
    #[serde(default)]
    pub vni: Option<u32>,
    /// See [`Network::dns`].
    #[serde(default)]
    pub dns: NetworkDns,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// What a user asks of `network update`: only what is given changes.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct NetworkUpdate {
    /// Subnets to add.
    #[serde(default)]
    pub subnet_add: Vec<IpNetwork>,
    /// Gateways, each inside one of the subnets added; see [`NetworkSpec::gateways`].
    #[serde(default)]
    pub gateways: Vec<IpAddr>,
    /// Ranges, each inside one of the subnets added; see [`NetworkSpec::ranges`].
    #[serde(default)]
    pub ranges: Vec<IpNetwork>,
    /// Upstreams to add, behind those that are there.
    #[serde(default)]
    pub dns_add: Vec<Resolver>,
    /// Upstreams to remove; those that are not there are fine.
    #[serde(default)]
    pub dns_rm: Vec<Resolver>,
    /// Domains that get these resolvers, in place of those that they have.
    #[serde(default)]
    pub dns_domain_add: BTreeMap<DomainName, Vec<Resolver>>,
    /// Domains that are to have no resolvers of their own; those that have none are fine.
    #[serde(default)]
    pub dns_domain_rm: Vec<DomainName>,
    /// Labels to set.
    #[serde(default)]
    pub label_add: BTreeMap<String, String>,
    /// Keys of labels to remove; those that are not there are fine.
    #[serde(default)]
    pub label_rm: Vec<String>,
}

impl NetworkSpec {
    /// A network of this name with everything left to the cluster.
    pub fn named(name: Name) -> Self {
        Self {
            name,
            subnets: Vec::new(),
            gateways: Vec::new(),
            ranges: Vec::new(),
            ipv6: false,
            internal: false,
            encrypted: false,
            mtu: None,
            vni: None,
            dns: NetworkDns::default(),
            labels: BTreeMap::new(),
        }
    }
}
