//! Endpoints: addresses, MAC, name and ports.

use super::{Fresh, aliases, service::port_taken};
use crate::{
    Availability, Endpoint, EndpointId, EndpointSpec, MacAddr, Name, Network, NodeId, Protocol, PublishMode,
    PublishedPort, Refusal, Service, ServiceId, Snapshot, Subnet, ipam,
};
use std::{collections::BTreeSet, net::IpAddr};

/// The endpoint that `node` attaches with this specification.
pub fn endpoint(
    snapshot: &Snapshot,
    node: NodeId,
    spec: &EndpointSpec,
    fresh: Fresh,
) -> Result<Endpoint, Refusal> {
    check_node(snapshot, node)?;
    check_ifname(&spec.ifname)?;
    let network = snapshot
        .find_network(&spec.network)
        .ok_or_else(|| Refusal::NotFound { kind: "network", wanted: spec.network.clone() })?;
    let service = spec.service.as_deref().map(|wanted| service_on(snapshot, wanted, network)).transpose()?;
    check_not_connected(snapshot, node, spec, network)?;
    let (name, given) = names(snapshot, network, spec, service, fresh)?;
    Ok(Endpoint {
        id: EndpointId::from_bits(fresh.id),
        name,
        network: network.id,
        node,
        addresses: addresses(snapshot, network, &spec.addresses, fresh.now)?,
        mac: mac(snapshot, network, spec.mac, fresh)?,
        service: service.map(|s| s.id),
        aliases: aliases(&given)?,
        target: spec.target.clone(),
        namespace_inode: spec.namespace_inode,
        ifname: spec.ifname.clone(),
        ports: endpoint_ports(snapshot, node, &spec.ports)?,
        owner: spec.owner.clone(),
        local_addresses: spec.local_addresses.clone(),
        source_nat: Vec::new(),
        weight: spec.weight,
        draining: false,
        created: fresh.now,
    })
}

fn check_node(snapshot: &Snapshot, node: NodeId) -> Result<(), Refusal> {
    let not_found = || Refusal::NotFound { kind: "node", wanted: node.to_string() };
    let node = snapshot.nodes.get(&node).ok_or_else(not_found)?;
    match node.availability {
        Availability::Active => Ok(()),
        Availability::Pause | Availability::Drain => Err(Refusal::NodeInactive(node.name.to_string())),
    }
}

/// As the kernel's `dev_valid_name`.
pub(super) fn check_ifname(name: &str) -> Result<(), Refusal> {
    let valid = (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
    if valid { Ok(()) } else { Err(Refusal::Ifname(name.to_owned())) }
}

pub(super) fn service_on<'a>(
    snapshot: &'a Snapshot,
    wanted: &str,
    network: &Network,
) -> Result<&'a Service, Refusal> {
    let service = snapshot
        .find_service(wanted)
        .ok_or_else(|| Refusal::NotFound { kind: "service", wanted: wanted.to_owned() })?;
    if service.is_on(network.id) {
        return Ok(service);
    }
    let names = service.networks.iter().filter_map(|on| snapshot.networks.get(&on.network));
    Err(Refusal::ServiceElsewhere {
        service: service.name.to_string(),
        network: network.name.to_string(),
        networks: names.map(|n| n.name.to_string()).collect::<Vec<_>>().join(", "),
    })
}

fn check_not_connected(
    snapshot: &Snapshot,
    node: NodeId,
    spec: &EndpointSpec,
    network: &Network,
) -> Result<(), Refusal> {
    let same = |e: &&std::sync::Arc<Endpoint>| {
        e.node == node
            && e.network == network.id
            && e.namespace_inode == spec.namespace_inode
            // What waits for its container is on none yet.
            && !e.is_staged()
    };
    match snapshot.endpoints.values().find(same) {
        Some(other) => Err(Refusal::AlreadyConnected {
            target: spec.target.to_string(),
            network: network.name.to_string(),
            endpoint: other.name.to_string(),
        }),
        None => Ok(()),
    }
}

/// The ports that a new endpoint publishes on its node: given, not the proxy's, and nobody else's there.
pub fn endpoint_ports(
    snapshot: &Snapshot,
    node: NodeId,
    wanted: &[PublishedPort],
) -> Result<Vec<PublishedPort>, Refusal> {
    let mut ports: Vec<PublishedPort> = Vec::new();
    for port in wanted {
        if port.published == 0 || port.target == 0 || port.protocol == Protocol::Http {
            return Err(Refusal::EndpointPort(port.to_string()));
        }
        if port.proxy_protocol.is_some() {
            return Err(Refusal::EndpointProxyProtocol);
        }
        if port.ip.is_some_and(|ip| ip.is_loopback()) {
            return Err(Refusal::PortOnLoopback(port.to_string()));
        }
        let port = PublishedPort { mode: PublishMode::Host, ..port.clone() };
        if ports.iter().any(|p| p.clashes(&port)) {
            return Err(Refusal::PortTwice(format!("{}/{}", port.published, port.protocol)));
        }
        port_taken(snapshot, &port, None, Some(node))?;
        ports.push(port);
    }
    Ok(ports)
}

/// The ports of the endpoint's service that only nodes with a replica publish, if this is the node's first.
pub fn host_ports_to_come(snapshot: &Snapshot, node: NodeId, spec: &EndpointSpec) -> Vec<PublishedPort> {
    let service = spec.service.as_deref().and_then(|wanted| snapshot.find_service(wanted));
    let network = snapshot.find_network(&spec.network).map(|network| network.id);
    let Some((service, network)) = service.zip(network) else { return Vec::new() };
    let first = !snapshot.replicas(service.id, network).any(|replica| replica.node == node);
    let ports = service.ports.iter().filter(|port| port.mode == PublishMode::Host);
    ports.filter(|_| first && service.ingress_network() == Some(network)).cloned().collect()
}

/// The address that is wanted, if nobody has it, else one that is drawn.
fn mac(
    snapshot: &Snapshot,
    network: &Network,
    wanted: Option<MacAddr>,
    fresh: Fresh,
) -> Result<MacAddr, Refusal> {
    let Some(mac) = wanted else { return Ok(MacAddr::endpoint(fresh.mac)) };
    if !mac.is_for_endpoints() {
        return Err(Refusal::Mac(mac));
    }
    let mut endpoints = snapshot.endpoints.values().filter(|e| e.network == network.id);
    match endpoints.find(|e| e.mac == mac || e.mac.peer() == mac) {
        None => Ok(mac),
        Some(by) => {
            let (network, by) = (network.name.to_string(), by.name.to_string());
            Err(Refusal::MacTaken { mac, network, by })
        }
    }
}

/// Its name and its aliases.
fn names(
    snapshot: &Snapshot,
    network: &Network,
    spec: &EndpointSpec,
    service: Option<&Service>,
    fresh: Fresh,
) -> Result<(Name, Vec<Name>), Refusal> {
    let mut aliases = spec.aliases.clone();
    if let (None, Some(preferred)) = (&spec.name, &spec.preferred_name) {
        if taken(snapshot, network, preferred, service.map(|s| s.id), None).is_none() {
            return Ok((preferred.clone(), aliases));
        }
        if !aliases.iter().any(|alias| alias.same(preferred)) {
            aliases.push(preferred.clone());
        }
    }
    Ok((name(snapshot, network, spec, service, fresh)?, aliases))
}

fn name(
    snapshot: &Snapshot,
    network: &Network,
    spec: &EndpointSpec,
    service: Option<&Service>,
    fresh: Fresh,
) -> Result<Name, Refusal> {
    let Some(name) = &spec.name else {
        let suffix = format!("{:016x}", fresh.id);
        let prefix = service.map_or("endpoint", |s| &s.name);
        // The suffix alone is a valid name, should the prefix leave no room.
        let made_up = format!("{}.{}", &prefix[..prefix.len().min(50)], &suffix[..8]);
        return made_up
            .parse()
            .or_else(|_| suffix.parse())
            .map_err(|_| Refusal::NameTaken { kind: "endpoint", name: suffix.clone() });
    };
    match taken(snapshot, network, name, service.map(|s| s.id), None) {
        Some(kind) => Err(Refusal::NameTaken { kind, name: name.to_string() }),
        None => Ok(name.clone()),
    }
}

/// What has a name on a network already, apart from the endpoint itself and its own service: a replica that is called as its
/// service is found by the service, but nobody would find one that is called as another.
pub(super) fn taken(
    snapshot: &Snapshot,
    network: &Network,
    name: &Name,
    service: Option<ServiceId>,
    endpoint: Option<EndpointId>,
) -> Option<&'static str> {
    let mut endpoints =
        snapshot.endpoints.values().filter(|e| e.network == network.id && Some(e.id) != endpoint);
    if endpoints.any(|e| e.name.same(name)) {
        return Some("endpoint");
    }
    let mut others = snapshot.services.values().filter(|s| Some(s.id) != service && s.is_on(network.id));
    others.any(|s| s.name.same(name)).then_some("service")
}

/// One address for each family of the network: those wanted, checked, else the first free ones.
fn addresses(
    snapshot: &Snapshot,
    network: &Network,
    wanted: &[IpAddr],
    now: u64,
) -> Result<Vec<IpAddr>, Refusal> {
    let used = used(snapshot, network);
    for address in wanted {
        check_address(snapshot, network, *address, &used)?;
    }
    let mut addresses = Vec::new();
    for v6 in [false, true] {
        let mut of_family = wanted.iter().filter(|a| a.is_ipv6() == v6);
        match (of_family.next(), of_family.next()) {
            (Some(_), Some(second)) => return Err(Refusal::AddressTwice(*second)),
            (Some(only), None) => addresses.push(*only),
            (None, _) => addresses.extend(free(snapshot, network, v6, &used, now)?),
        }
    }
    Ok(addresses)
}

/// A free address of one family; none if the network has no subnet of it. Those that rest come last: when nothing else
/// is free, the one that has rested longest.
pub(super) fn free(
    snapshot: &Snapshot,
    network: &Network,
    v6: bool,
    used: &BTreeSet<IpAddr>,
    now: u64,
) -> Result<Option<IpAddr>, Refusal> {
    let of_family: Vec<&Subnet> = network.subnets.iter().filter(|s| s.cidr.is_ipv6() == v6).collect();
    if of_family.is_empty() {
        return Ok(None);
    }
    let resting: Vec<IpAddr> = match snapshot.released.get(&network.id) {
        Some(released) => released.resting(now).collect(),
        None => Vec::new(),
    };
    let first_but = |avoided: &BTreeSet<IpAddr>| {
        of_family.iter().find_map(|s| ipam::first_free_in(s.cidr, s.range.unwrap_or(s.cidr), avoided))
    };
    let avoided: BTreeSet<IpAddr> = used.iter().copied().chain(resting.iter().copied()).collect();
    let given_out = |address: &IpAddr| {
        let inside = |s: &&Subnet| s.range.unwrap_or(s.cidr).contains(*address);
        of_family.iter().copied().any(|s| inside(&s) && ipam::is_usable(s.cidr, *address))
    };
    let rested = || resting.iter().copied().find(|address| !used.contains(address) && given_out(address));
    let place = |s: &&Subnet| match s.range {
        Some(range) => format!("{range} of {}", s.cidr),
        None => s.cidr.to_string(),
    };
    let exhausted = || Refusal::AddressesExhausted {
        network: network.name.to_string(),
        subnets: of_family.iter().map(place).collect::<Vec<_>>().join(", "),
    };
    first_but(&avoided).or_else(rested).map(Some).ok_or_else(exhausted)
}

/// Every address of a network that something has: gateways, VIPs and endpoints.
pub(super) fn used(snapshot: &Snapshot, network: &Network) -> BTreeSet<IpAddr> {
    let endpoints = snapshot.endpoints.values().filter(|e| e.network == network.id);
    let vips = snapshot.services.values().flat_map(|s| s.vips(network.id).iter().copied());
    endpoints.flat_map(|e| e.addresses.iter().copied()).chain(vips).chain(network.gateways()).collect()
}

fn check_address(
    snapshot: &Snapshot,
    network: &Network,
    address: IpAddr,
    used: &BTreeSet<IpAddr>,
) -> Result<(), Refusal> {
    if !network.subnets.iter().any(|s| ipam::is_usable(s.cidr, address)) {
        let subnets = network.subnets.iter().map(|s| s.cidr.to_string()).collect::<Vec<_>>().join(", ");
        return Err(Refusal::AddressOutside { address, network: network.name.to_string(), subnets });
    }
    if !used.contains(&address) {
        return Ok(());
    }
    let mut endpoints = snapshot.endpoints.values().filter(|e| e.network == network.id);
    let by = if network.gateways().any(|gateway| gateway == address) {
        "the gateway".to_owned()
    } else if let Some(endpoint) = endpoints.find(|e| e.addresses.contains(&address)) {
        format!("endpoint '{}'", endpoint.name)
    } else {
        "the VIP of a service".to_owned()
    };
    Err(Refusal::AddressTaken { address, network: network.name.to_string(), by })
}
