//! What went through this node's published ports, by the endpoints that they lead to.

use super::Counts;
use crate::wire::Counted;
use mesh_api::CountView;
use mesh_model::{Endpoint, Protocol, Service, Snapshot, Transport};
use mesh_net::{Traffic, nft::Count};
use std::collections::BTreeSet;

/// Of one service's ports, in the order of its replicas' names: what the kernel led there, and what was relayed.
pub(crate) fn of_service(snapshot: &Snapshot, service: &Service, counts: &Counts) -> Vec<Counted> {
    each(snapshot, service, |target, replica| {
        led(counts, target, replica).into_iter().chain(relayed(counts, target, replica)).reduce(sum)
    })
}

/// What the kernel led there: from nothing since the daemon started.
pub(crate) fn led_of_service(snapshot: &Snapshot, service: &Service, counts: &Counts) -> Vec<Counted> {
    each(snapshot, service, |target, replica| led(counts, target, replica))
}

/// What was relayed: from nothing since the front process started.
pub(crate) fn relayed_of_service(snapshot: &Snapshot, service: &Service, counts: &Counts) -> Vec<Counted> {
    each(snapshot, service, |target, replica| relayed(counts, target, replica))
}

fn each(
    snapshot: &Snapshot,
    service: &Service,
    counted: impl Fn((Transport, u16), &Endpoint) -> Option<Counted>,
) -> Vec<Counted> {
    let Some(network) = service.ingress_network() else { return Vec::new() };
    let mut replicas: Vec<_> = snapshot.replicas(service.id, network).collect();
    replicas.sort_by(|a, b| a.name.cmp(&b.name));
    let of_target =
        |target| replicas.iter().filter_map(|replica| counted(target, replica)).collect::<Vec<_>>();
    targets(service).into_iter().flat_map(of_target).collect()
}

/// The ports of replicas that published ones lead to.
fn targets(service: &Service) -> BTreeSet<(Transport, u16)> {
    let ports = service.ports.iter().filter(|port| port.protocol != Protocol::Http);
    ports.map(|port| (port.protocol.transport(), port.target)).collect()
}

/// None if nothing is counted of it here.
fn led(counts: &Counts, (transport, target): (Transport, u16), replica: &Endpoint) -> Option<Counted> {
    let led = counts.led.as_ref().ok()?;
    let of_address = |Traffic { connections, sent, received }: Traffic| Counted {
        protocol: transport.into(),
        target,
        endpoint: replica.id,
        connections,
        sent: view(sent),
        received: view(received),
    };
    let of_both = replica.addresses.iter().filter_map(|ip| led.get(&(transport, target, *ip)));
    of_both.copied().map(of_address).reduce(sum)
}

fn relayed(counts: &Counts, (transport, target): (Transport, u16), replica: &Endpoint) -> Option<Counted> {
    let is_it = |of: &&Counted| {
        of.endpoint == replica.id && (of.protocol.transport(), of.target) == (transport, target)
    };
    counts.relayed.iter().find(is_it).cloned()
}

fn sum(one: Counted, other: Counted) -> Counted {
    Counted {
        connections: one.connections + other.connections,
        sent: one.sent + other.sent,
        received: one.received + other.received,
        ..one
    }
}

fn view(Count { packets, bytes }: Count) -> CountView {
    CountView { packets, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_model::EndpointId;

    #[test]
    fn what_is_led_and_what_is_relayed_make_one() {
        let counted = |connections, packets| Counted {
            protocol: Protocol::Tcp,
            target: 80,
            endpoint: EndpointId::from_bits(1),
            connections,
            sent: CountView { packets, bytes: 100 },
            received: CountView { packets: 1, bytes: 10 },
        };
        let both = sum(counted(3, 7), counted(2, 0));
        assert_eq!((both.connections, both.sent), (5, CountView { packets: 7, bytes: 200 }));
    }
}
