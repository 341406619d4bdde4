//! What went through this node's published ports, by the endpoints that they lead to.

use crate::wire::Counted;
use mesh_api::CountView;
use mesh_model::{Endpoint, EndpointId, Protocol, Service, Snapshot, Transport};
use mesh_net::{Led, Traffic, nft::Count};
use std::collections::{BTreeMap, BTreeSet};

/// Of one service's ports, in the order of its replicas' names.
pub(crate) fn of_service(
    snapshot: &Snapshot,
    service: &Service,
    counted: &BTreeMap<Led, Traffic>,
) -> Vec<Counted> {
    let Some(network) = service.ingress_network() else { return Vec::new() };
    let mut replicas: Vec<_> = snapshot.replicas(service.id, network).collect();
    replicas.sort_by(|a, b| a.name.cmp(&b.name));
    let targets = targets(service);
    let of_target = |target: (Transport, u16)| {
        replicas.iter().filter_map(move |replica| of_replica(counted, target, replica))
    };
    targets.into_iter().flat_map(of_target).collect()
}

/// The ports of replicas that published ones lead to.
fn targets(service: &Service) -> BTreeSet<(Transport, u16)> {
    let ports = service.ports.iter().filter(|port| port.protocol != Protocol::Http);
    ports.map(|port| (port.protocol.transport(), port.target)).collect()
}

/// None if nothing is counted of it here.
fn of_replica(
    counted: &BTreeMap<Led, Traffic>,
    (transport, target): (Transport, u16),
    replica: &Endpoint,
) -> Option<Counted> {
    let of_both = replica.addresses.iter().filter_map(|ip| counted.get(&(transport, target, *ip)));
    let sum = of_both.copied().reduce(|mut sum, of_one| {
        sum.connections += of_one.connections;
        sum.sent += of_one.sent;
        sum.received += of_one.received;
        sum
    })?;
    let protocol = if transport == Transport::Udp { Protocol::Udp } else { Protocol::Tcp };
    let Traffic { connections, sent, received } = sum;
    let endpoint: EndpointId = replica.id;
    Some(Counted { protocol, target, endpoint, connections, sent: view(sent), received: view(received) })
}

fn view(Count { packets, bytes }: Count) -> CountView {
    CountView { packets, bytes }
}
