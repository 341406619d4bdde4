//! Why a change is refused: what is wrong and what to do, in one line each.

use crate::{DomainName, MacAddr, Protocol, Resolver};
use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// A change that the rules don't allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The messages say it.
pub enum Refusal {
    #[error("no {kind} is called '{wanted}': 'meshctl {kind} ls' shows what there is")]
    NotFound { kind: &'static str, wanted: String },
    #[error("{kind} '{name}' exists already: choose another name")]
    NameTaken { kind: &'static str, name: String },

    #[error("subnet {subnet} has host bits set: did you mean {network}/{prefix}?", prefix = subnet.prefix())]
    HostBits { subnet: IpNetwork, network: IpAddr },
    #[error("subnet {0} can't be used: choose a unicast range that is neither loopback nor link-local")]
    SubnetUnusable(IpNetwork),
    #[error(
        "subnet {0} is too small: it needs room for a gateway, a VIP and endpoints (/29 or larger, IPv6 /125)"
    )]
    SubnetSmall(IpNetwork),
    #[error("subnet {subnet} overlaps {other}, which is {what}: choose another")]
    Overlap { subnet: IpNetwork, other: IpNetwork, what: String },
    #[error("no free subnet is left in the address pool: give one with --subnet")]
    PoolExhausted,
    #[error(
        "gateway {0} is no usable address of any of the network's subnets: choose one, or leave out --gateway"
    )]
    Gateway(IpAddr),
    #[error("gateway {0} is the second one of its subnet: give one for each")]
    GatewayTwice(IpAddr),
    #[error("--ip-range {0} is not inside any of the network's subnets: choose a part of one")]
    Range(IpNetwork),
    #[error("--ip-range {0} is the second one of its subnet: give one for each")]
    RangeTwice(IpNetwork),
    #[error("VNI {0} is out of range: choose one from 1 to 16777215")]
    VniRange(u32),
    #[error("VNI {vni} is taken by network '{network}': choose another")]
    VniTaken { vni: u32, network: String },
    #[error("no VNI is left: remove a network that is not used")]
    VniExhausted,
    #[error("{0} aliases are too many: give {most} or fewer", most = crate::admit::ALIASES)]
    Aliases(usize),
    #[error(
        "MTU {0} is out of range: choose one from 1280 to 65535 (next hops in networks are IPv6, which needs 1280)"
    )]
    Mtu(u32),
    #[error("encrypted networks are not available yet: create the network without --encrypted")]
    Encrypted,
    #[error("{0} upstream resolvers are too many: give {most} or fewer", most = crate::DNS_UPSTREAMS)]
    DnsUpstreams(usize),
    #[error("{0} domains with their own resolvers are too many: give {most} or fewer", most = crate::DNS_DOMAINS)]
    DnsDomains(usize),
    #[error("domain '{0}' has no resolver: give it one, or leave it out")]
    DnsDomainEmpty(DomainName),
    #[error(
        "{count} resolvers of domain '{domain}' are too many: give {most} or fewer",
        most = crate::DNS_DOMAIN_RESOLVERS
    )]
    DnsDomainResolvers { domain: DomainName, count: usize },
    #[error(
        "{resolver} is a gateway of network '{network}', which would ask itself: choose another resolver, or another --gateway"
    )]
    DnsItself { resolver: Resolver, network: String },
    #[error("network '{network}' is in use by {by}: remove that first")]
    NetworkInUse { network: String, by: String },

    #[error("{address} is outside the subnets of network '{network}': choose one from {subnets}")]
    AddressOutside { address: IpAddr, network: String, subnets: String },
    #[error("{address} is taken on network '{network}' by {by}: choose another address, or leave out --ip")]
    AddressTaken { address: IpAddr, network: String, by: String },
    #[error("{0} is the second address of its family: give one of each at most")]
    AddressTwice(IpAddr),
    #[error(
        "network '{network}' has no free address left in {subnets}: add a subnet (meshctl network update --subnet-add CIDR {network}), or remove what is not used"
    )]
    AddressesExhausted { network: String, subnets: String },
    #[error("{target} is already on network '{network}' as endpoint '{endpoint}': disconnect it first")]
    AlreadyConnected { target: String, network: String, endpoint: String },
    #[error("{0} can't be the address of an endpoint: choose a unicast MAC address")]
    Mac(MacAddr),
    #[error("{mac} is taken on network '{network}' by endpoint '{by}': choose another, or none")]
    MacTaken { mac: MacAddr, network: String, by: String },
    #[error("an endpoint can't publish {0}: give a published and a target port, tcp or udp")]
    EndpointPort(String),
    #[error(
        "{0} can't be published: a loopback address leads nowhere else; give another address of the host, or none"
    )]
    PortOnLoopback(String),
    #[error("'{0}' is no interface name: up to 15 characters without '/', ':' and blanks")]
    Ifname(String),
    #[error("this node may only change its own endpoints")]
    NotYours,
    #[error("service '{service}' is not on network '{network}': its networks are {networks}")]
    ServiceElsewhere { service: String, network: String, networks: String },
    #[error("node '{0}' is not active: 'meshctl node update --availability active' lets it take endpoints")]
    NodeInactive(String),

    #[error("port {port} is published already by service '{service}': choose another, or remove it there")]
    PortTaken { port: String, service: String },
    #[error("port {0}/udp is the cluster's own, for VXLAN: choose another published port")]
    PortOfVxlan(u16),
    #[error(
        "port {port} is published already by endpoint '{endpoint}' on node '{node}': choose another, or disconnect it"
    )]
    PortOfEndpoint { port: String, endpoint: String, node: String },
    #[error("port {0} is given twice: leave one out")]
    PortTwice(String),
    #[error("no free port is left from 30000 to 32767: give a published port")]
    PortsExhausted,
    #[error("'{0}' is not published by this service: 'meshctl service inspect' shows what is")]
    PortNotPublished(String),
    #[error("no PROXY header can be sent over {0}: publish the port as tcp, or without proxy-protocol")]
    ProxyProtocol(Protocol),
    #[error("an endpoint's port has no proxy-protocol: publish it by a service, or without")]
    EndpointProxyProtocol,
    #[error(
        "service '{0}' would have no port for its health check: give it one first (service update --health-port PORT {0})"
    )]
    LeftWithoutCheck(String),
    #[error("a health check needs a port: publish a TCP port or give --health-port")]
    HealthPort,
    #[error("health check: {0}")]
    Health(String),
    #[error(
        "service '{service}' has {count} endpoints: disconnect or stop them first (meshctl service ps {service})"
    )]
    ServiceInUse { service: String, count: usize },

    #[error("address {address} is the one of node '{node}': choose another --advertise-addr")]
    AdvertiseTaken { address: IpAddr, node: String },
    #[error(
        "{address} can't be advertised: it is inside {prefix}, which is {what}: give the cluster other ranges than the hosts'"
    )]
    AdvertiseInside { address: IpAddr, prefix: IpNetwork, what: String },
    #[error("{0} can't be advertised: choose an address at which other hosts reach this one")]
    AdvertiseUnusable(IpAddr),
    #[error(
        "the node address pool {0} has no free address left: only a new cluster can have a larger --node-addr-pool"
    )]
    NodePoolExhausted(IpNetwork),
    #[error(
        "node '{0}' is up: run 'meshctl cluster leave' on it, stop its meshd, or remove it as it is with --force"
    )]
    NodeUp(String),
    #[error("node '{0}' is a manager: 'meshctl node demote {0}' comes first")]
    NodeIsManager(String),
    #[error("the CA is being replaced already: 'meshctl cluster ca' shows what that waits for")]
    RotationOpen,
    #[error(
        "the CA is not being replaced: there is nothing to end ('meshctl cluster ca --rotate' replaces it)"
    )]
    RotationNone,
    #[error("the etcd of manager '{0}' does not trust the new CA yet: try again in a few seconds")]
    RotationEtcd(String),
    #[error("node '{0}' is down: a manager must be up to become one")]
    PromoteLost(String),
    #[error("node '{0}' is the last manager: 'meshctl node promote' another one first")]
    LastManager(String),
    #[error("no cluster yet: 'meshctl cluster init' or 'meshctl cluster join' comes first")]
    NoCluster,
}
