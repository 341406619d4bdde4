//! Small clusters for tests.

use mesh_model::{
    Balance, Endpoint, EndpointId, EndpointMode, Health, HealthCheck, HealthKind, MacAddr, Name, Network,
    NetworkId, Node, NodeId, Protocol, PublishMode, PublishedPort, Role, Service, ServiceId, ServiceNetwork,
    Snapshot, Subnet, Target,
};
use std::net::IpAddr;
use std::sync::Arc;

/// A cluster with `nodes` nodes, number 1 to be looked at, and one network, 10.78.0.0/24 and fd78::/64.
pub(super) fn cluster(nodes: u32) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for index in 1..=nodes {
        let node = Node {
            id: node_id(index),
            name: name(&format!("node{index}")),
            role: Role::Worker,
            index,
            advertise: ([192, 0, 2, index as u8], 7443).into(),
            addresses: Vec::new(),
            availability: Default::default(),
            labels: Default::default(),
            created: 0,
        };
        snapshot.nodes.insert(node.id, Arc::new(node));
    }
    snapshot.networks.insert(network_id(), Arc::new(network()));
    snapshot
}

pub(super) fn node_id(index: u32) -> NodeId {
    NodeId::from_bits(index.into())
}

pub(super) fn network_id() -> NetworkId {
    NetworkId::from_bits(1)
}

pub(super) fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn network() -> Network {
    let subnet = |cidr: &str, gateway: &str| Subnet {
        cidr: cidr.parse().expect("a prefix"),
        gateway: gateway.parse().expect("an address"),
        range: None,
    };
    Network {
        id: network_id(),
        name: name("net"),
        vni: 4096,
        subnets: vec![subnet("10.78.0.0/24", "10.78.0.1"), subnet("fd78::/64", "fd78::1")],
        internal: false,
        mtu: None,
        dns: Default::default(),
        labels: Default::default(),
        created: 0,
    }
}

/// Addresses in both subnets.
pub(super) fn addresses(host: u8) -> Vec<IpAddr> {
    vec![
        format!("10.78.0.{host}").parse().expect("an address"),
        format!("fd78::{host:x}").parse().expect("an address"),
    ]
}

/// Adds service number `number` with the VIPs of host part `vip`.
pub(super) fn add_service(
    snapshot: &mut Snapshot,
    number: u64,
    vip: u8,
    balance: Balance,
    ports: Vec<PublishedPort>,
) -> ServiceId {
    let id = ServiceId::from_bits(number);
    let service = Service {
        id,
        name: name(&format!("service{number}")),
        networks: vec![ServiceNetwork { network: network_id(), vips: addresses(vip) }],
        aliases: Vec::new(),
        endpoint_mode: EndpointMode::Vip,
        ports,
        health: Some(HealthCheck {
            kind: HealthKind::Tcp,
            port: None,
            interval_ms: 2000,
            timeout_ms: 1000,
            rise: 1,
            fall: 1,
        }),
        balance,
        drain_timeout_ms: 0,
        prefer_local: false,
        created: 0,
    };
    snapshot.services.insert(id, Arc::new(service));
    id
}

/// A port published in the kernel on every node.
pub(super) fn published(published: u16, target: u16, protocol: Protocol) -> PublishedPort {
    PublishedPort { published, target, protocol, mode: PublishMode::Ingress, ip: None, proxy_protocol: None }
}

/// Adds a replica with the addresses of host part `host`.
pub(super) fn add_replica(snapshot: &mut Snapshot, service: ServiceId, node: u32, host: u8, health: Health) {
    let id = EndpointId::from_bits(host.into());
    let endpoint = Endpoint {
        id,
        name: name(&format!("replica{host}")),
        network: network_id(),
        node: node_id(node),
        addresses: addresses(host),
        mac: MacAddr::endpoint(host.into()),
        service: Some(service),
        aliases: Vec::new(),
        target: Target::Pid(1),
        namespace_inode: 0,
        ifname: "eth0".into(),
        ports: Vec::new(),
        owner: None,
        local_addresses: Vec::new(),
        source_nat: Vec::new(),
        weight: mesh_model::Weight::default(),
        draining: false,
        created: 0,
    };
    snapshot.endpoints.insert(id, Arc::new(endpoint));
    snapshot.health.insert(id, health);
}

/// Changes one record.
pub(super) fn edit<T: Clone>(record: Option<&mut Arc<T>>, change: impl FnOnce(&mut T)) {
    change(Arc::make_mut(record.expect("the record is there")));
}
