//! Backends that leave: what connection tracking still holds for them goes when they do.
//!
//! An entry outlives the rules that made it: a flow that has one never looks at the map of backends again. UDP would be
//! sent to a backend that is gone for as long as the client asks, and a SYN until the client gives up.

use crate::{conntrack::Parting, kernel::Kernel, object::Space};
use mesh_model::{Availability, Endpoint, EndpointId, NetworkId, NodeStatus, Snapshot};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// The replicas that were seen last, and why those that take no new connections don't.
#[derive(Default)]
pub(crate) struct Partings {
    /// Whether it is known who has left while nobody looked.
    begun: bool,
    seen: BTreeMap<EndpointId, (Arc<Endpoint>, Option<Parting>)>,
}

impl Partings {
    /// Forgets connections to replicas that have left, or have gone further on their way out, since it was last called.
    /// Call it when the rules are as the snapshot says.
    pub(crate) fn follow(&mut self, kernel: &mut Kernel, snapshot: &Snapshot) {
        let mut news = self.news(snapshot);
        if !std::mem::replace(&mut self.begun, true) {
            for (network, gone) in left_before(kernel, snapshot) {
                news.entry((network, Parting::Gone)).or_default().extend(gone);
            }
        }
        for ((network, parting), addresses) in news {
            for space in [Space::Host, Space::Overlay(network)] {
                if !kernel.is_open(space) {
                    continue;
                }
                match kernel.conntrack(space).map(|conntrack| conntrack.forget(&addresses, parting)) {
                    Ok(Ok(0)) => {}
                    Ok(Ok(entries)) => {
                        tracing::debug!(%space, entries, ?parting, "connections to backends that left are forgotten")
                    }
                    Ok(Err(err)) => {
                        tracing::warn!(%space, %err, "connections to backends that left are not forgotten: they hang until they time out")
                    }
                    Err(err) => tracing::warn!(%space, %err, "connection tracking is out of reach"),
                }
            }
        }
    }

    /// The addresses of those that have left further, by network and reason.
    fn news(&mut self, snapshot: &Snapshot) -> BTreeMap<(NetworkId, Parting), BTreeSet<IpAddr>> {
        let replicas = snapshot.endpoints.values().filter(|endpoint| endpoint.service.is_some());
        let now: BTreeMap<_, _> = replicas
            .map(|endpoint| (endpoint.id, (Arc::clone(endpoint), parting(snapshot, endpoint))))
            .collect();
        let mut news: BTreeMap<_, BTreeSet<IpAddr>> = BTreeMap::new();
        for (id, (endpoint, before)) in &self.seen {
            let after = now.get(id).map_or(Some(Parting::Gone), |(_, parting)| *parting);
            if let Some(parting) = after.filter(|_| after > *before) {
                news.entry((endpoint.network, parting)).or_default().extend(&endpoint.addresses);
            }
        }
        if !self.begun {
            for (endpoint, parting) in now.values() {
                if let Some(parting) = parting {
                    news.entry((endpoint.network, *parting)).or_default().extend(&endpoint.addresses);
                }
            }
        }
        self.seen = now;
        news
    }
}

/// Backends that connections are left to, and that are none any more: they left while no daemon ran.
fn left_before(kernel: &mut Kernel, snapshot: &Snapshot) -> BTreeMap<NetworkId, BTreeSet<IpAddr>> {
    let mut left = BTreeMap::new();
    for network in snapshot.networks.values() {
        let endpoints = snapshot.endpoints.values().filter(|endpoint| endpoint.network == network.id);
        let living: BTreeSet<IpAddr> =
            endpoints.flat_map(|e| e.addresses.iter().copied()).chain(network.gateways()).collect();
        for space in [Space::Host, Space::Overlay(network.id)] {
            if !kernel.is_open(space) {
                continue;
            }
            // Out of reach: whoever forgets says so.
            let Ok(Ok(backends)) = kernel.conntrack(space).map(|conntrack| conntrack.backends()) else {
                continue;
            };
            let gone = backends
                .into_iter()
                .filter(|backend| network.subnet_of(*backend).is_some() && !living.contains(backend));
            left.entry(network.id).or_insert_with(BTreeSet::new).extend(gone);
        }
    }
    left.retain(|_, gone| !gone.is_empty());
    left
}

/// Why a replica is offered no new connections, if it isn't.
fn parting(snapshot: &Snapshot, endpoint: &Endpoint) -> Option<Parting> {
    if snapshot.takes_traffic(endpoint) {
        return None;
    }
    let node = snapshot.nodes.get(&endpoint.node);
    let drains = endpoint.is_withdrawn() || node.is_some_and(|node| node.availability == Availability::Drain);
    Some(match snapshot.status_of(endpoint.node) {
        _ if node.is_none() => Parting::Gone,
        // Its daemon may be all that ended, or a machine too busy to answer: what is connected stays connected.
        NodeStatus::Down => Parting::Failing,
        _ if drains => Parting::Draining,
        _ => Parting::Failing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_model::{Health, MacAddr, ServiceId, Target};

    fn endpoint(draining: bool) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            id: EndpointId::from_bits(1),
            name: "web1".parse().expect("a name"),
            network: NetworkId::from_bits(1),
            node: mesh_model::NodeId::from_bits(1),
            addresses: vec!["10.50.0.2".parse().expect("an address")],
            mac: MacAddr::endpoint(1),
            service: Some(ServiceId::from_bits(1)),
            aliases: vec![],
            target: Target::Pid(1),
            namespace_inode: 0,
            ifname: "eth0".into(),
            ports: vec![],
            owner: None,
            local_addresses: Vec::new(),
            weight: mesh_model::Weight::default(),
            draining,
            created: 0,
        })
    }

    fn node() -> mesh_model::Node {
        mesh_model::Node {
            id: mesh_model::NodeId::from_bits(1),
            name: "vm1".parse().expect("a name"),
            role: mesh_model::Role::Worker,
            index: 1,
            advertise: ([192, 0, 2, 1], 7443).into(),
            addresses: vec![],
            availability: Availability::Active,
            labels: BTreeMap::new(),
            created: 0,
        }
    }

    /// Each step of a way out is taken once; nobody is taken for gone who was never there.
    #[test]
    fn a_way_out() {
        let mut snapshot = Snapshot::default();
        let mut partings = Partings { begun: true, ..Partings::default() };
        let mut next = |snapshot: &Snapshot| -> Vec<Parting> {
            partings.news(snapshot).into_keys().map(|(_, parting)| parting).collect()
        };
        let id = EndpointId::from_bits(1);
        assert_eq!(next(&snapshot), []);
        snapshot.nodes.insert(node().id, Arc::new(node()));
        snapshot.endpoints.insert(id, endpoint(false));
        assert_eq!(next(&snapshot), []);
        snapshot.endpoints.insert(id, endpoint(true));
        assert_eq!(next(&snapshot), [Parting::Draining]);
        assert_eq!(next(&snapshot), []);
        snapshot.status.insert(node().id, NodeStatus::Down);
        assert_eq!(next(&snapshot), [Parting::Failing]);
        snapshot.status.clear();
        snapshot.endpoints.insert(id, endpoint(false));
        assert_eq!(next(&snapshot), []);
        snapshot.endpoints.clear();
        snapshot.health.insert(id, Health::Unhealthy);
        assert_eq!(next(&snapshot), [Parting::Gone]);
        assert_eq!(next(&snapshot), []);
    }
}
