//! Records as they are shown: with the names of what they refer to.

use mesh_api::{AddressesView, EndpointView, NetworkUse, NetworkView, NodeView, ServiceView, SourceNatView};
use mesh_model::{Endpoint, Network, NetworkId, Node, NodeId, Protocol, Service, Snapshot};
use std::sync::Arc;

pub(super) fn node(snapshot: &Snapshot, node: &Node, local: NodeId) -> NodeView {
    NodeView {
        id: node.id,
        name: node.name.to_string(),
        role: node.role,
        status: snapshot.status_of(node.id),
        availability: node.availability,
        leader: snapshot.leader == Some(node.id),
        local: node.id == local,
        address: node.advertise,
        overlay_addresses: node.addresses.clone(),
        labels: node.labels.clone(),
        created: node.created,
    }
}

pub(super) fn network(snapshot: &Snapshot, network: &Network) -> NetworkView {
    let endpoints = snapshot.endpoints.values().filter(|e| e.network == network.id);
    let services = snapshot.services.values().filter(|s| s.is_on(network.id));
    NetworkView {
        id: network.id,
        name: network.name.to_string(),
        vni: network.vni,
        subnets: network.subnets.clone(),
        internal: network.internal,
        mtu: network.mtu,
        dns: network.dns.clone(),
        labels: network.labels.clone(),
        endpoints: endpoints
            .map(|e| NetworkUse {
                id: e.id.to_string(),
                name: e.name.to_string(),
                addresses: e.addresses.clone(),
                node: Some(node_name(snapshot, e.node)),
            })
            .collect(),
        services: services
            .map(|s| NetworkUse {
                id: s.id.to_string(),
                name: s.name.to_string(),
                addresses: s.vips(network.id).to_vec(),
                node: None,
            })
            .collect(),
        created: network.created,
    }
}

pub(super) fn service(snapshot: &Snapshot, service: &Service) -> ServiceView {
    // A replica on two networks has two endpoints; ingress counts one.
    let replicas: Vec<_> =
        service.networks.iter().flat_map(|on| snapshot.replicas(service.id, on.network)).collect();
    ServiceView {
        id: service.id,
        name: service.name.to_string(),
        endpoint_mode: service.endpoint_mode,
        networks: service
            .networks
            .iter()
            .map(|on| AddressesView {
                network: network_name(snapshot, on.network),
                addresses: on.vips.clone(),
            })
            .collect(),
        aliases: service.aliases.iter().map(ToString::to_string).collect(),
        ports: service.ports.clone(),
        health: service.health.clone(),
        balance: service.balance,
        drain_timeout_ms: service.drain_timeout_ms,
        prefer_local: service.prefer_local,
        healthy: replicas.iter().filter(|e| snapshot.takes_traffic(e)).count(),
        total: replicas.len(),
        source_nat: source_nat(snapshot, service, &replicas),
        traffic: Vec::new(),
        degraded: Vec::new(),
        silent: Vec::new(),
        created: service.created,
    }
}

/// Of interest to those who publish UDP: TCP needs no translation.
fn source_nat(snapshot: &Snapshot, service: &Service, replicas: &[&Arc<Endpoint>]) -> Vec<SourceNatView> {
    if !service.ports.iter().any(|port| port.protocol == Protocol::Udp) {
        return Vec::new();
    }
    let on_ingress = replicas.iter().filter(|replica| Some(replica.network) == service.ingress_network());
    let translated = on_ingress.filter(|replica| !replica.source_nat.is_empty());
    let view = |replica: &&Arc<Endpoint>| SourceNatView {
        endpoint: replica.name.to_string(),
        node: node_name(snapshot, replica.node),
        addresses: replica.source_nat.clone(),
    };
    translated.map(view).collect()
}

pub(super) fn endpoint(snapshot: &Snapshot, endpoint: &Endpoint) -> EndpointView {
    let service = endpoint.service.and_then(|id| snapshot.services.get(&id));
    let network = snapshot.networks.get(&endpoint.network);
    EndpointView {
        id: endpoint.id,
        name: endpoint.name.to_string(),
        network: network_name(snapshot, endpoint.network),
        service: service.map(|s| s.name.to_string()),
        node: node_name(snapshot, endpoint.node),
        addresses: endpoint.addresses.clone(),
        mac: endpoint.mac,
        aliases: endpoint.aliases.iter().map(ToString::to_string).collect(),
        health: snapshot.health_of(endpoint),
        weight: endpoint.weight,
        draining: endpoint.draining,
        target: endpoint.target.clone(),
        ifname: endpoint.ifname.clone(),
        ports: endpoint.ports.clone(),
        owner: endpoint.owner.clone(),
        source_nat: endpoint.source_nat.clone(),
        nameservers: network.map(|n| n.gateways().collect()).unwrap_or_default(),
        created: endpoint.created,
    }
}

pub(super) fn node_name(snapshot: &Snapshot, id: NodeId) -> String {
    snapshot.nodes.get(&id).map_or_else(|| id.to_string(), |node| node.name.to_string())
}

fn network_name(snapshot: &Snapshot, id: NetworkId) -> String {
    snapshot.networks.get(&id).map_or_else(|| id.to_string(), |network| network.name.to_string())
}
