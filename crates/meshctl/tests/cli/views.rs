//! What the daemon says.

use mesh_api::{Created, EndpointView, NodeView, Removed, ServiceView, State, StatusView};
use mesh_model::{
    Availability, Balance, EndpointId, EndpointMode, Health, HealthCheck, HealthKind, MacAddr, NodeId,
    NodeStatus, Role, ServiceId, Target,
};
use std::collections::BTreeMap;

pub(crate) fn created() -> Created {
    Created { id: "00000000000000aa".to_owned(), warnings: Vec::new() }
}

pub(crate) fn removed(removed: bool) -> Removed {
    Removed { removed, addresses: Vec::new() }
}

pub(crate) fn status(state: State) -> StatusView {
    StatusView {
        version: "9.8.7".to_owned(),
        state,
        node: None,
        cluster: None,
        managers: vec!["10.0.0.1:7443".parse().unwrap()],
        revision: 3,
        fronts: Vec::new(),
        problems: Vec::new(),
    }
}

pub(crate) fn node(name: &str, bits: u64) -> NodeView {
    NodeView {
        id: NodeId::from_bits(bits),
        name: name.to_owned(),
        role: Role::Worker,
        status: NodeStatus::Ready,
        availability: Availability::Active,
        leader: false,
        local: name == "vm1",
        address: "10.0.0.1:7443".parse().unwrap(),
        overlay_addresses: Vec::new(),
        labels: BTreeMap::new(),
        created: 0,
    }
}

pub(crate) fn service() -> ServiceView {
    ServiceView {
        id: ServiceId::from_bits(0xbb),
        name: "web".to_owned(),
        endpoint_mode: EndpointMode::Vip,
        networks: Vec::new(),
        aliases: Vec::new(),
        ports: Vec::new(),
        health: Some(HealthCheck {
            kind: HealthKind::Http("/up".to_owned()),
            port: Some(81),
            interval_ms: 2_000,
            timeout_ms: 250,
            rise: 1,
            fall: 7,
        }),
        balance: Balance::Roundrobin,
        drain_timeout_ms: 10_000,
        prefer_local: false,
        traffic: Vec::new(),
        degraded: Vec::new(),
        silent: Vec::new(),
        healthy: 0,
        total: 0,
        source_nat: Vec::new(),
        created: 0,
    }
}

pub(crate) fn endpoint() -> EndpointView {
    EndpointView {
        id: EndpointId::from_bits(0x1234_5678_9abc_def0),
        name: "web1".to_owned(),
        network: "blue".to_owned(),
        service: None,
        node: "vm1".to_owned(),
        addresses: vec!["192.0.2.9".parse().unwrap()],
        mac: MacAddr::endpoint(1),
        aliases: Vec::new(),
        health: Health::Unchecked,
        weight: mesh_model::Weight::default(),
        draining: false,
        target: Target::Pid(1),
        ifname: "eth0".to_owned(),
        ports: Vec::new(),
        owner: None,
        source_nat: Vec::new(),
        nameservers: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        created: 0,
    }
}
