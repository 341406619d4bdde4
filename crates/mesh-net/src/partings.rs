//! Backends that leave: what connection tracking still holds for them goes when they do.
//!
//! The same of ports that are published no longer, or lead to something else: a flow to one goes where that leads now.
//!
//! An entry outlives the rules that made it: a flow that has one never looks at the map of backends again. UDP would be
//! sent to a backend that is gone for as long as the client asks, and a SYN until the client gives up.

use crate::{
    conntrack::{At, Conntrack, Parting},
    kernel::Kernel,
    object::Space,
    ports::HostPort,
    scope::Scope,
};
use mesh_model::{
    Availability, Endpoint, EndpointId, NetworkId, NodeId, NodeStatus, Protocol, PublishedPort, ServiceId,
    Snapshot, Transport,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
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
    /// Where published ports for datagrams led last.
    ports: BTreeMap<HostPort, Led>,
    /// Those that lead nowhere any more, or elsewhere.
    moved: BTreeSet<HostPort>,
    /// Those that are new: who asked at one before has an entry that leads to this host itself. To a daemon that starts all are.
    new: BTreeSet<HostPort>,
}

/// What a published port leads to, and which port of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Led {
    Service(ServiceId, u16),
    Endpoint(EndpointId, u16),
}

impl Partings {
    /// Takes note of replicas that have left, or have gone further on their way out, since it was last called, and of this
    /// node's ports that lead elsewhere than they did.
    pub(crate) fn follow(
        &mut self,
        kernel: &mut Kernel,
        me: NodeId,
        (snapshot, confirmed): (&Snapshot, bool),
        scope: &Scope,
    ) {
        self.note_ports(datagram_ports(snapshot, me, scope), scope);
        self.note(snapshot, scope);
        if confirmed && !std::mem::replace(&mut self.looked_back, true) {
            for (network, gone) in left_before(kernel, snapshot) {
                let gone = gone.into_iter().map(|address| (address, Parting::Gone));
                self.leaving.entry(network).or_default().extend(gone);
            }
            self.moved.extend(led_elsewhere(kernel, snapshot, &self.ports));
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
        let mut all_forgotten = true;
        let networks = leaving.iter().map(|(network, some)| (Space::Overlay(*network), some));
        for (space, leaving) in networks.chain([(Space::Host, &all)]) {
            if leaving.is_empty() || !kernel.is_open(space) {
                continue;
            }
            match kernel.conntrack(space).map(|conntrack| conntrack.forget(leaving)) {
                Ok(Ok(0)) => continue,
                Ok(Ok(entries)) => {
                    tracing::debug!(%space, entries, "connections to backends that left are forgotten");
                    continue;
                }
                Ok(Err(err)) => {
                    tracing::warn!(%space, %err, "connections to backends that left are not forgotten yet");
                }
                Err(err) => tracing::warn!(%space, %err, "connection tracking is out of reach"),
            }
            all_forgotten = false;
        }
        if !all_forgotten {
            // Tried again after the next pass; what was forgotten is found no more.
            for (network, some) in leaving {
                let again = some.into_iter();
                again.for_each(|(address, parting)| leave(&mut self.leaving, network, address, parting));
            }
        }
    }

    /// What cannot be done is tried again after the next pass.
    fn settle_ports(&mut self, kernel: &mut Kernel) {
        for (ports, only_untranslated) in [(&mut self.moved, false), (&mut self.new, true)] {
            if ports.is_empty() || !kernel.is_open(Space::Host) {
                continue;
            }
            match forget_flows(kernel, ports, only_untranslated) {
                Ok(entries) => {
                    ports.clear();
                    tracing::debug!(entries, "flows to ports that lead elsewhere now are forgotten");
                }
                Err(err) => {
                    tracing::warn!(%err, "flows to ports that lead elsewhere now are not forgotten yet");
                }
            }
        }
    }

    /// `now` are the ports of what is looked at.
    fn note_ports(&mut self, now: BTreeMap<HostPort, Led>, scope: &Scope) {
        let is_looked_at = |led: &Led| match led {
            Led::Service(service, _) => scope.has_service(*service),
            Led::Endpoint(endpoint, _) => scope.has_endpoint(*endpoint),
        };
        let before: BTreeMap<_, _> = self.ports.extract_if(.., |_, led| is_looked_at(led)).collect();
        let moved = before.iter().filter(|(port, led)| now.get(port) != Some(led));
        self.moved.extend(moved.map(|(port, _)| port));
        self.new.extend(now.keys().filter(|port| !before.contains_key(port)));
        self.ports.extend(now);
    }

    fn note(&mut self, snapshot: &Snapshot, scope: &Scope) {
        let Self { begun, seen, leaving, .. } = self;
        let mut leaves = |endpoint: &Endpoint, parting: Parting| {
            for address in &endpoint.addresses {
                leave(leaving, endpoint.network, *address, parting);
            }
        };
        // Containers that publish ports themselves are backends of these.
        let replicas = scope
            .endpoints(snapshot)
            .filter(|endpoint| endpoint.service.is_some() || !endpoint.ports.is_empty());
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

fn leave(leaving: &mut BTreeMap<NetworkId, Leaving>, network: NetworkId, address: IpAddr, parting: Parting) {
    let known = leaving.entry(network).or_default().entry(address).or_insert(parting);
    *known = parting.max(*known);
}

/// Where the ports that these services, and these endpoints of a node, publish for datagrams there lead.
fn datagram_ports(snapshot: &Snapshot, me: NodeId, scope: &Scope) -> BTreeMap<HostPort, Led> {
    let is_of_datagrams = |port: &&PublishedPort| port.protocol == Protocol::Udp;
    let of_services = scope.services(snapshot).flat_map(|service| {
        let ports = snapshot.published_on(service, me).filter(is_of_datagrams);
        ports.map(|port| (HostPort::from(port), Led::Service(service.id, port.target)))
    });
    let own = scope.endpoints(snapshot).filter(|endpoint| endpoint.node == me);
    let of_endpoints = own.flat_map(|endpoint| {
        let ports = endpoint.ports.iter().filter(is_of_datagrams);
        ports.map(|port| (HostPort::from(port), Led::Endpoint(endpoint.id, port.target)))
    });
    of_services.chain(of_endpoints).collect()
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

/// Forgets flows to ports of this host; how many. What the host forwards to others' ports of the number is none of them.
fn forget_flows(
    kernel: &mut Kernel,
    ports: &BTreeSet<HostPort>,
    only_untranslated: bool,
) -> io::Result<usize> {
    let asked = kernel.conntrack(Space::Host).map_err(io::Error::other)?.asked_at(ports)?;
    let mut own = BTreeSet::new();
    for address in asked {
        if kernel.is_local(Space::Host, address).map_err(io::Error::other)? {
            own.insert(address);
        }
    }
    if own.is_empty() {
        return Ok(0);
    }
    let conntrack = kernel.conntrack(Space::Host).map_err(io::Error::other)?;
    conntrack.forget_datagrams(ports, &own, only_untranslated)
}

/// Ports of datagrams that are led into a network still, but not where the port leads: it was moved while no daemon ran.
fn led_elsewhere(
    kernel: &mut Kernel,
    snapshot: &Snapshot,
    ports: &BTreeMap<HostPort, Led>,
) -> BTreeSet<HostPort> {
    let found = kernel.conntrack(Space::Host).map(Conntrack::led_datagrams);
    let found = found.ok().and_then(std::result::Result::ok).unwrap_or_default();
    let has = |endpoint: &Endpoint, address| endpoint.addresses.contains(&address);
    let is_led_there = |led: &Led, (address, port): At| match led {
        Led::Service(service, target) => {
            let mut of_service = snapshot.endpoints.values().filter(|of| of.service == Some(*service));
            port == *target && of_service.any(|endpoint| has(endpoint, address))
        }
        Led::Endpoint(endpoint, target) => {
            port == *target && snapshot.endpoints.get(endpoint).is_some_and(|of| has(of, address))
        }
    };
    let elsewhere = |((ip, port), answering): &(At, At)| {
        let at = |ip| HostPort { ip, port: *port, transport: Transport::Udp };
        let is_ours = snapshot.networks.values().any(|network| network.subnet_of(answering.0).is_some());
        let led = ports.get(&at(Some(*ip))).or_else(|| ports.get(&at(None)));
        (is_ours && !led.is_some_and(|led| is_led_there(led, *answering))).then(|| at(Some(*ip)))
    };
    found.iter().filter_map(elsewhere).collect()
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
