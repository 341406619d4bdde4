//! A network with something of everything.

use mesh_model::{
    Endpoint, EndpointId, EndpointMode, Health, HealthCheck, HealthKind, MacAddr, Name, Network, NetworkId,
    NodeId, Protocol, PublishMode, PublishedPort, Service, ServiceId, ServiceNetwork, Snapshot, Subnet,
    Target, first_free,
};
use std::{collections::BTreeSet, net::IpAddr};

/// The network whose gateway is asked.
pub(crate) const OURS: NetworkId = NetworkId::from_bits(1);

/// One that the host and some containers are on as well.
pub(crate) const OTHER: NetworkId = NetworkId::from_bits(2);

/// Names that have an answer for whoever is on the network, in lower case.
pub(crate) const NAMES: &[&str] = &[
    "nginx_service",
    "www",
    "tasks.nginx_service",
    "_8080._tcp.nginx_service",
    "_53._udp.nginx_service",
    "web.1",
    "web.2",
    "replica",
    "lonely",
    "big",
    "tasks.big",
    "_80._tcp.big",
    "web.1.self-network",
    "lonely.self-network",
];

/// The same of who is on the other network as well.
pub(crate) const NAMES_OF_BOTH: &[&str] = &["elsewhere", "elsewhere.other"];

/// Those that have one for the host, too.
pub(crate) const WHOLE_NAMES: &[&str] = &[
    "lonely.self-network.mesh.internal",
    "elsewhere.other.mesh.internal",
    "_8080._tcp.nginx_service.self-network.mesh.internal",
];

/// Domains that are nobody else's, in lower case.
pub(crate) const DOMAINS: &[&str] =
    &["mesh.internal", "100.168.192.in-addr.arpa", "0.0.0.0.0.0.0.0.4.6.0.0.0.0.d.f.ip6.arpa"];

/// Domains that are the same of the other network.
pub(crate) const DOMAINS_OF_BOTH: &[&str] = &["7.10.in-addr.arpa"];

/// A checked service of three replicas of which one is out, one with more tasks than an answer has room for, and an endpoint of
/// its own; and another network with one endpoint.
pub(crate) fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    let networks = [
        network(OURS, "Self-Network", &["192.168.100.0/24", "fd00:64::/64"]),
        network(OTHER, "other", &["10.7.0.0/16"]),
    ];
    for network in networks {
        snapshot.networks.insert(network.id, network.into());
    }
    let web = Service {
        aliases: vec![name("www")],
        ports: vec![port(8080, Protocol::Http), port(53, Protocol::Udp)],
        health: Some(HealthCheck {
            kind: HealthKind::Tcp,
            port: Some(80),
            interval_ms: 2000,
            timeout_ms: 1000,
            rise: 2,
            fall: 3,
        }),
        ..service(1, "nginx_service")
    };
    let big = Service { ports: vec![port(80, Protocol::Tcp)], ..service(2, "big") };
    for service in [web, big] {
        snapshot.services.insert(service.id, service.into());
    }
    for (number, health) in (1..).zip([Health::Healthy, Health::Unhealthy, Health::Healthy]) {
        let mut replica = endpoint(number, &format!("web.{number}"), Some(1));
        replica.aliases.push(name("replica"));
        snapshot.health.insert(replica.id, health);
        snapshot.endpoints.insert(replica.id, replica.into());
    }
    let tasks = (10..90).map(|number| endpoint(number, &format!("big.{number}"), Some(2)));
    let elsewhere = Endpoint {
        network: OTHER,
        addresses: vec!["10.7.0.9".parse().expect("an address")],
        ..endpoint(5, "Elsewhere", None)
    };
    for other in tasks.chain([endpoint(4, "Lonely", None), elsewhere]) {
        snapshot.endpoints.insert(other.id, other.into());
    }
    snapshot
}

fn network(id: NetworkId, called: &str, prefixes: &[&str]) -> Network {
    let subnet = |text: &&str| {
        let cidr: ipnetwork::IpNetwork = text.parse().expect("a prefix");
        Subnet { cidr, gateway: first_free(cidr, &BTreeSet::new()).expect("a gateway"), range: None }
    };
    Network {
        id,
        name: name(called),
        vni: 4096 + id.bits() as u32,
        subnets: prefixes.iter().map(subnet).collect(),
        internal: false,
        mtu: None,
        dns: Default::default(),
        labels: Default::default(),
        created: 0,
    }
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// The addresses of the network that end so, one of each family.
fn addresses(last: u64) -> Vec<IpAddr> {
    [format!("192.168.100.{last}"), format!("fd00:64::{last}")]
        .map(|text| text.parse().expect("an address"))
        .to_vec()
}

fn service(number: u64, called: &str) -> Service {
    Service {
        id: ServiceId::from_bits(number),
        name: name(called),
        networks: vec![ServiceNetwork { network: OURS, vips: addresses(200 + number) }],
        aliases: Vec::new(),
        endpoint_mode: EndpointMode::Vip,
        ports: Vec::new(),
        health: None,
        balance: Default::default(),
        drain_timeout_ms: 0,
        prefer_local: false,
        created: 0,
    }
}

fn endpoint(number: u64, called: &str, service: Option<u64>) -> Endpoint {
    Endpoint {
        id: EndpointId::from_bits(number),
        name: name(called),
        network: OURS,
        node: NodeId::from_bits(1),
        addresses: addresses(10 + number),
        mac: MacAddr::endpoint(number),
        service: service.map(ServiceId::from_bits),
        aliases: Vec::new(),
        target: Target::Pid(1),
        namespace_inode: number,
        ifname: "eth0".to_owned(),
        ports: Vec::new(),
        owner: None,
        local_addresses: Vec::new(),
        source_nat: Vec::new(),
        weight: Default::default(),
        draining: false,
        created: 0,
    }
}

fn port(target: u16, protocol: Protocol) -> PublishedPort {
    PublishedPort {
        published: 80,
        target,
        protocol,
        mode: PublishMode::Ingress,
        ip: None,
        proxy_protocol: None,
    }
}
