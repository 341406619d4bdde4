//! Backends that leave: what connection tracking still holds for them goes when they do.
//!
//! The same of ports that are published no longer, or lead to something else: a flow to one goes where that leads now.
//!
//! An entry outlives the rules that made it: a flow that has one never looks at the map of backends again. UDP would be
//! sent to a backend that is gone for as long as the client asks, and a SYN until the client gives up.

use crate::{conntrack::Parting, kernel::Kernel, object::Space, ports::HostPort, scope::Scope};
use mesh_model::{
    Availability, Endpoint, EndpointId, NetworkId, NodeId, NodeStatus, Protocol, ServiceId, Snapshot,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// Addresses of one network that connections are to be forgotten of, and why.
type Leaving = BTreeMap<IpAddr, Parting>;

/// The replicas that were seen last, and why those that take no new connections don't.
#[derive(Default)]
pub(crate) struct Partings {
    /// Whether it is known who has left while nobody looked.
    begun: bool,
    /// What left while no daemon ran was looked for.
    looked_back: bool,
    seen: BTreeMap<EndpointId, (Arc<Endpoint>, Option<Parting>)>,
    /// Who has left further and still has connections.
    leaving: BTreeMap<NetworkId, Leaving>,
    /// Published ports for datagrams that lead nowhere any more, or elsewhere.
    moved: BTreeSet<HostPort>,
}

impl Partings {
    /// Takes note of replicas that have left, or have gone further on their way out, since it was last called, and of this
    /// node's ports that lead elsewhere than they did in the state before.
    pub(crate) fn follow(
        &mut self,
        kernel: &mut Kernel,
        me: NodeId,
        before: Option<&Snapshot>,
        (snapshot, confirmed): (&Snapshot, bool),
        scope: &Scope,
    ) {
        if let Some(before) = before {
            let now = datagram_ports(snapshot, me, scope);
            let moved = datagram_ports(before, me, scope).into_iter();
            self.moved.extend(moved.filter(|(port, to)| now.get(port) != Some(to)).map(|(port, _)| port));
        }
        self.note(snapshot, scope);
        if confirmed && !std::mem::replace(&mut self.looked_back, true) {
            for (network, gone) in left_before(kernel, snapshot) {
                let gone = gone.into_iter().map(|address| (address, Parting::Gone));
                self.leaving.entry(network).or_default().extend(gone);
            }
        }
    }

    /// Forgets their connections, but on networks whose rules are not as they should be yet: they would be made anew.
    pub(crate) fn settle(&mut self, kernel: &mut Kernel, unready: &BTreeSet<NetworkId>) {
        self.settle_ports(kernel);
        let all = std::mem::take(&mut self.leaving).into_iter();
        let (later, leaving): (BTreeMap<_, _>, BTreeMap<_, Leaving>) =
            all.partition(|(network, _)| unready.contains(network));
        self.leaving = later;
        let all: Leaving =
            leaving.values().flatten().map(|(address, parting)| (*address, *parting)).collect();
        let networks = leaving.into_iter().map(|(network, some)| (Space::Overlay(network), some));
        for (space, leaving) in networks.chain([(Space::Host, all)]) {
            if leaving.is_empty() || !kernel.is_open(space) {
                continue;
            }
            match kernel.conntrack(space).map(|conntrack| conntrack.forget(&leaving)) {
                Ok(Ok(0)) => {}
                Ok(Ok(entries)) => {
                    tracing::debug!(%space, entries, "connections to backends that left are forgotten")
                }
                Ok(Err(err)) => {
                    tracing::warn!(%space, %err, "connections to backends that left are not forgotten: they hang until they time out")
                }
                Err(err) => tracing::warn!(%space, %err, "connection tracking is out of reach"),
            }
        }
    }

    fn settle_ports(&mut self, kernel: &mut Kernel) {
        let moved = std::mem::take(&mut self.moved);
        if moved.is_empty() || !kernel.is_open(Space::Host) {
            return;
        }
        let forgotten = kernel.conntrack(Space::Host).map(|conntrack| conntrack.forget_datagrams(&moved));
        match forgotten {
            Ok(Ok(entries)) => {
                tracing::debug!(entries, "flows to ports that lead elsewhere now are forgotten")
            }
            Ok(Err(err)) => tracing::warn!(%err, "flows to ports that lead elsewhere now are not forgotten"),
            Err(err) => tracing::warn!(%err, "connection tracking is out of reach"),
        }
    }

    fn note(&mut self, snapshot: &Snapshot, scope: &Scope) {
        let Self { begun, seen, leaving, .. } = self;
        let mut leaves = |endpoint: &Endpoint, parting: Parting| {
            let of_network = leaving.entry(endpoint.network).or_default();
            for address in &endpoint.addresses {
                let known = of_network.entry(*address).or_insert(parting);
                *known = parting.max(*known);
            }
        };
        let replicas = scope.endpoints(snapshot).filter(|endpoint| endpoint.service.is_some());
        let mut now: BTreeMap<_, _> = replicas
            .map(|endpoint| (endpoint.id, (Arc::clone(endpoint), parting(snapshot, endpoint))))
            .collect();
        seen.retain(|id, seen| {
            if !scope.has_endpoint(*id) {
                return true;
            }
            let after = now.remove(id);
            let parting = after.as_ref().map_or(Some(Parting::Gone), |(_, parting)| *parting);
            if let Some(further) = parting.filter(|_| parting > seen.1) {
                leaves(&seen.0, further);
            }
            after.map(|after| *seen = after).is_some()
        });
        if !std::mem::replace(begun, true) {
            let leaving = now.values().filter_map(|(endpoint, parting)| Some((endpoint, (*parting)?)));
            leaving.for_each(|(endpoint, parting)| leaves(endpoint, parting));
        }
        seen.append(&mut now);
    }
}

/// Where the ports that these services publish for datagrams on a node lead.
fn datagram_ports(snapshot: &Snapshot, me: NodeId, scope: &Scope) -> BTreeMap<HostPort, (ServiceId, u16)> {
    let ports = scope.services(snapshot).flat_map(|service| {
        let ports = snapshot.published_on(service, me).filter(|port| port.protocol == Protocol::Udp);
        ports.map(|port| (HostPort::from(port), (service.id, port.target)))
    });
    ports.collect()
}

/// Backends that connections are left to, and that are none any more: they left while no daemon ran.
fn left_before(kernel: &mut Kernel, snapshot: &Snapshot) -> BTreeMap<NetworkId, BTreeSet<IpAddr>> {
    let of_host = backends(kernel, Space::Host);
    let mut living: BTreeMap<NetworkId, BTreeSet<IpAddr>> = BTreeMap::new();
    for endpoint in snapshot.endpoints.values() {
        living.entry(endpoint.network).or_default().extend(&endpoint.addresses);
    }
    let mut left = BTreeMap::new();
    for network in snapshot.networks.values() {
        let living = living.remove(&network.id).unwrap_or_default();
        let is_gone = |backend: &IpAddr| {
            let one_of_ours =
                network.gateways().any(|gateway| gateway == *backend) || living.contains(backend);
            network.subnet_of(*backend).is_some() && !one_of_ours
        };
        let inside = backends(kernel, Space::Overlay(network.id));
        let gone: BTreeSet<IpAddr> = of_host.iter().copied().chain(inside).filter(is_gone).collect();
        if !gone.is_empty() {
            left.insert(network.id, gone);
        }
    }
    left
}

/// Who answers translated connections in a space. Out of reach: whoever forgets them says so.
fn backends(kernel: &mut Kernel, space: Space) -> BTreeSet<IpAddr> {
    if !kernel.is_open(space) {
        return BTreeSet::new();
    }
    let found = kernel.conntrack(space).map(|conntrack| conntrack.backends());
    found.ok().and_then(std::result::Result::ok).unwrap_or_default()
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
    use mesh_model::{Health, MacAddr, Target};

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
            source_nat: Vec::new(),
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
            partings.note(snapshot, &Scope::All);
            std::mem::take(&mut partings.leaving).into_values().flat_map(Leaving::into_values).collect()
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
