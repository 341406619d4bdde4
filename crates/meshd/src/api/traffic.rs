//! What went through this node's published ports: for `service inspect`, and as metrics.

use super::Failure;
use crate::daemon::Member;
use mesh_api::{CountView, TrafficView};
use mesh_model::{Endpoint, Protocol, PublishedPort, Service, Snapshot, Transport};
use mesh_net::{Led, Traffic, nft::Count};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Of all services, or of one.
pub(super) async fn of(
    member: &Member,
    snapshot: &Snapshot,
    only: Option<&Service>,
) -> Result<Vec<TrafficView>, Failure> {
    let counted =
        member.agent.traffic().await.ok_or_else(|| Failure::unavailable("meshd is ending".to_owned()))?;
    let counted = counted.map_err(|e| Failure::internal(e.to_string()))?;
    let node = member.identity.name.to_string();
    let mut views = Vec::new();
    for service in snapshot.services.values().filter(|service| only.is_none_or(|only| only.id == service.id))
    {
        let Some(network) = service.ingress_network() else { continue };
        let mut replicas: Vec<&Arc<Endpoint>> = snapshot.replicas(service.id, network).collect();
        replicas.sort_by(|a, b| a.name.cmp(&b.name));
        for (transport, target) in targets(service) {
            for replica in &replicas {
                views.extend(view(&counted, &node, service, (transport, target), replica));
            }
        }
    }
    Ok(views)
}

/// The ports of replicas that published ones lead to.
fn targets(service: &Service) -> BTreeSet<(Transport, u16)> {
    let ports = service.ports.iter().filter(|port| port.protocol != Protocol::Http);
    ports.map(|port| (port.protocol.transport(), port.target)).collect()
}

/// None if nothing is counted of it here.
fn view(
    counted: &BTreeMap<Led, Traffic>,
    node: &str,
    service: &Service,
    (transport, target): (Transport, u16),
    replica: &Endpoint,
) -> Option<TrafficView> {
    let of_both = replica.addresses.iter().filter_map(|ip| counted.get(&(transport, target, *ip)));
    let sum = of_both.copied().reduce(|mut sum, of_one| {
        sum.connections += of_one.connections;
        sum.sent += of_one.sent;
        sum.received += of_one.received;
        sum
    })?;
    let leads_there = |port: &&PublishedPort| {
        port.protocol != Protocol::Http && port.protocol.transport() == transport && port.target == target
    };
    Some(TrafficView {
        node: node.to_owned(),
        service: service.name.to_string(),
        protocol: if transport == Transport::Udp { Protocol::Udp } else { Protocol::Tcp },
        published: service.ports.iter().filter(leads_there).map(|port| port.published).collect(),
        target,
        endpoint: replica.name.to_string(),
        connections: sum.connections,
        sent: count(sum.sent),
        received: count(sum.received),
    })
}

fn count(Count { packets, bytes }: Count) -> CountView {
    CountView { packets, bytes }
}
