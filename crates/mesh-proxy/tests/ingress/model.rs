//! Snapshots as tests need them: one network, one node, services with replicas on the loopback.

use mesh_model::{
    Balance, Endpoint, EndpointId, EndpointMode, Health, HealthCheck, HealthKind, MacAddr, NetworkId, Node,
    NodeId, Protocol, PublishMode, PublishedPort, Role, Service, ServiceId, ServiceNetwork, Snapshot, Target,
};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

pub(crate) const ME: NodeId = NodeId::from_bits(1);
pub(crate) const OTHER: NodeId = NodeId::from_bits(2);
pub(crate) const NETWORK: NetworkId = NetworkId::from_bits(7);

pub(crate) fn port(published: u16, target: u16) -> PublishedPort {
    PublishedPort {
        published,
        target,
        protocol: Protocol::Http,
        mode: PublishMode::Ingress,
        ip: None,
        proxy_protocol: None,
    }
}

pub(crate) fn service(id: u64, ports: Vec<PublishedPort>) -> Service {
    Service {
        id: ServiceId::from_bits(id),
        name: format!("service_{id}").parse().unwrap(),
        networks: vec![ServiceNetwork { network: NETWORK, vips: Vec::new() }],
        aliases: Vec::new(),
        endpoint_mode: EndpointMode::Vip,
        ports,
        health: None,
        balance: Balance::Roundrobin,
        drain_timeout_ms: 1000,
        prefer_local: false,
        created: 0,
    }
}

pub(crate) fn check(kind: HealthKind, interval_ms: u64) -> HealthCheck {
    HealthCheck { kind, port: None, interval_ms, timeout_ms: 1000, rise: 2, fall: 3 }
}

pub(crate) fn endpoint(id: u64, service: u64, node: NodeId, address: IpAddr) -> Endpoint {
    Endpoint {
        id: EndpointId::from_bits(id),
        name: format!("endpoint-{id}").parse().unwrap(),
        network: NETWORK,
        node,
        addresses: vec![address],
        mac: MacAddr::bridge(1),
        service: Some(ServiceId::from_bits(service)),
        aliases: Vec::new(),
        target: Target::Pid(1),
        namespace_inode: 1,
        ifname: "eth0".into(),
        ports: Vec::new(),
        owner: None,
        local_addresses: Vec::new(),
        source_nat: Vec::new(),
        weight: mesh_model::Weight::default(),
        draining: false,
        created: 0,
    }
}

pub(crate) fn node(id: NodeId) -> Node {
    Node {
        id,
        name: format!("node-{id}").parse().unwrap(),
        role: Role::Worker,
        index: id.bits() as u32,
        advertise: ([127, 0, 0, 1], 7443).into(),
        addresses: vec![IpAddr::from([127, 0, 0, 1])],
        availability: mesh_model::Availability::Active,
        labels: BTreeMap::new(),
        created: 0,
    }
}

pub(crate) fn snapshot(services: Vec<Service>, endpoints: Vec<Endpoint>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for id in [ME, OTHER] {
        snapshot.nodes.insert(id, Arc::new(node(id)));
    }
    snapshot.services.extend(services.into_iter().map(|s| (s.id, Arc::new(s))));
    snapshot.endpoints.extend(endpoints.into_iter().map(|e| (e.id, Arc::new(e))));
    snapshot
}

pub(crate) fn set_health(snapshot: &mut Snapshot, endpoint: u64, health: Health) {
    snapshot.health.insert(EndpointId::from_bits(endpoint), health);
}
