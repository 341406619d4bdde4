//! Networks: VNI, subnets and gateways.

use super::{Fresh, dns::dns};
use crate::{
    Network, NetworkId, NetworkSpec, NetworkUpdate, Pool, Refusal, Snapshot, Subnet, VNI_FIRST, VNI_MAX,
    ipam::{self, overlaps},
};
use ipnetwork::IpNetwork;
use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

/// The network that a specification stands for. Subnets that are left to the cluster overlap none of `avoided`.
pub fn network(
    snapshot: &Snapshot,
    spec: &NetworkSpec,
    avoided: &[IpNetwork],
    fresh: Fresh,
) -> Result<Network, Refusal> {
    if snapshot.networks.values().any(|n| n.name.same(&spec.name)) {
        return Err(Refusal::NameTaken { kind: "network", name: spec.name.to_string() });
    }
    if spec.encrypted {
        return Err(Refusal::Encrypted);
    }
    if let Some(mtu) = spec.mtu.filter(|mtu| !(1280..=65535).contains(mtu)) {
        return Err(Refusal::Mtu(mtu));
    }
    let vni = vni(snapshot, spec.vni)?;
    let prefixes = prefixes(snapshot, spec, avoided)?;
    let subnets = subnets(&prefixes, &spec.gateways, &spec.ranges)?;
    let mut network = Network {
        id: NetworkId::from_bits(fresh.id),
        name: spec.name.clone(),
        vni,
        subnets,
        internal: spec.internal,
        mtu: spec.mtu,
        dns: spec.dns.clone(),
        labels: spec.labels.clone(),
        created: fresh.now,
    };
    network.dns = dns(&network)?;
    Ok(network)
}

/// The network after an update. What it has stays as it is: so do the addresses of endpoints and VIPs, also when there is
/// now a family that they have none of.
pub fn network_update(
    snapshot: &Snapshot,
    network: &Network,
    update: &NetworkUpdate,
) -> Result<Network, Refusal> {
    let mut updated = network.clone();
    let prefixes = apart(snapshot, &update.subnet_add)?;
    updated.subnets.extend(subnets(&prefixes, &update.gateways, &update.ranges)?);
    updated.dns.upstreams.retain(|resolver| !update.dns_rm.contains(resolver));
    updated.dns.upstreams.extend(&update.dns_add);
    updated.dns.domains.retain(|domain, _| !update.dns_domain_rm.contains(domain));
    updated.dns.domains.extend(update.dns_domain_add.clone());
    // Also when it is only the subnets that change: a new gateway may be what it asks.
    updated.dns = dns(&updated)?;
    updated.labels.retain(|key, _| !update.label_rm.contains(key));
    updated.labels.extend(update.label_add.clone());
    Ok(updated)
}

/// The networks that nothing uses, by name.
pub fn unused_networks(snapshot: &Snapshot) -> Vec<Arc<Network>> {
    let unused = snapshot.networks.values().filter(|network| network_removal(snapshot, network).is_ok());
    let mut unused: Vec<Arc<Network>> = unused.cloned().collect();
    unused.sort_by(|a, b| a.name.cmp(&b.name));
    unused
}

/// Whether a network may be removed.
pub fn network_removal(snapshot: &Snapshot, network: &Network) -> Result<(), Refusal> {
    let by = snapshot
        .endpoints
        .values()
        .find(|e| e.network == network.id)
        .map(|e| format!("endpoint '{}'", e.name))
        .or_else(|| {
            let mut services = snapshot.services.values();
            services.find(|s| s.is_on(network.id)).map(|s| format!("service '{}'", s.name))
        });
    match by {
        Some(by) => Err(Refusal::NetworkInUse { network: network.name.to_string(), by }),
        None => Ok(()),
    }
}

fn vni(snapshot: &Snapshot, wanted: Option<u32>) -> Result<u32, Refusal> {
    match wanted {
        Some(vni) if !(1..=VNI_MAX).contains(&vni) => Err(Refusal::VniRange(vni)),
        Some(vni) => match snapshot.networks.values().find(|n| n.vni == vni) {
            Some(other) => Err(Refusal::VniTaken { vni, network: other.name.to_string() }),
            None => Ok(vni),
        },
        None => {
            let taken: BTreeSet<u32> = snapshot.networks.values().map(|n| n.vni).collect();
            (VNI_FIRST..=VNI_MAX).find(|vni| !taken.contains(vni)).ok_or(Refusal::VniExhausted)
        }
    }
}

/// The network's prefixes: those asked for, checked, or free ones from the pools.
fn prefixes(
    snapshot: &Snapshot,
    spec: &NetworkSpec,
    avoided: &[IpNetwork],
) -> Result<Vec<IpNetwork>, Refusal> {
    let mut prefixes = apart(snapshot, &spec.subnets)?;
    if prefixes.is_empty() {
        prefixes.push(from_pool(snapshot, avoided, IpNetwork::is_ipv4)?);
    }
    if spec.ipv6 && !prefixes.iter().any(IpNetwork::is_ipv6) {
        prefixes.push(from_pool(snapshot, avoided, IpNetwork::is_ipv6)?);
    }
    Ok(prefixes)
}

/// Prefixes that a user chose, checked: apart from each other and from everything that is there.
fn apart(snapshot: &Snapshot, wanted: &[IpNetwork]) -> Result<Vec<IpNetwork>, Refusal> {
    let mut prefixes = Vec::new();
    for subnet in wanted {
        check_prefix(*subnet)?;
        for other in taken(snapshot) {
            if overlaps(*subnet, other.prefix) {
                return Err(Refusal::Overlap { subnet: *subnet, other: other.prefix, what: other.what });
            }
        }
        if let Some(other) = prefixes.iter().find(|other| overlaps(*subnet, **other)) {
            let what = "given as well".to_owned();
            return Err(Refusal::Overlap { subnet: *subnet, other: *other, what });
        }
        prefixes.push(*subnet);
    }
    Ok(prefixes)
}

fn check_prefix(subnet: IpNetwork) -> Result<(), Refusal> {
    if subnet.ip() != subnet.network() {
        return Err(Refusal::HostBits { subnet, network: subnet.network() });
    }
    if reserved().into_iter().any(|reserved| overlaps(subnet, reserved)) {
        return Err(Refusal::SubnetUnusable(subnet));
    }
    let longest = if subnet.is_ipv4() { 29 } else { 125 };
    if subnet.prefix() > longest { Err(Refusal::SubnetSmall(subnet)) } else { Ok(()) }
}

/// What no subnet may hold (RFC 6890): this host, loopback, link-local, multicast and beyond.
fn reserved() -> [IpNetwork; 7] {
    let v4 = |a, b, prefix| IpNetwork::new(IpAddr::from([a, b, 0, 0]), prefix);
    let v6 = |first, prefix| IpNetwork::new(IpAddr::from([first, 0, 0, 0, 0, 0, 0, 0]), prefix);
    [v4(0, 0, 8), v4(127, 0, 8), v4(169, 254, 16), v4(224, 0, 3), v6(0u16, 8), v6(0xfe80, 10), v6(0xff00, 8)]
        .map(|prefix| prefix.unwrap_or_else(|e| unreachable!("prefixes of fixed lengths: {e}")))
}

struct Taken {
    prefix: IpNetwork,
    what: String,
}

/// Prefixes that no network may overlap: those of networks, the nodes' own addresses and their underlay.
fn taken(snapshot: &Snapshot) -> impl Iterator<Item = Taken> + '_ {
    let networks = snapshot.networks.values().flat_map(|n| {
        n.subnets.iter().map(|s| Taken { prefix: s.cidr, what: format!("network '{}'", n.name) })
    });
    let pools = snapshot.cluster.iter().flat_map(|c| {
        c.node_pools.iter().map(|p| Taken { prefix: *p, what: "the node address pool".to_owned() })
    });
    let nodes = snapshot.nodes.values().map(|n| Taken {
        prefix: IpNetwork::from(n.advertise.ip()),
        what: format!("the address of node '{}'", n.name),
    });
    networks.chain(pools).chain(nodes)
}

fn from_pool(
    snapshot: &Snapshot,
    avoided: &[IpNetwork],
    family: impl Fn(&IpNetwork) -> bool,
) -> Result<IpNetwork, Refusal> {
    let cluster = snapshot.cluster.as_ref().ok_or(Refusal::NoCluster)?;
    let avoided = avoided.iter().copied().filter(&family);
    let taken: Vec<IpNetwork> = taken(snapshot).map(|t| t.prefix).chain(avoided).collect();
    let mut pools = cluster.address_pools.iter().filter(|pool| family(pool));
    pools.find_map(|pool| Pool::of(*pool).first_free(&taken)).ok_or(Refusal::PoolExhausted)
}

fn subnets(
    prefixes: &[IpNetwork],
    gateways: &[IpAddr],
    ranges: &[IpNetwork],
) -> Result<Vec<Subnet>, Refusal> {
    for gateway in gateways {
        if !prefixes.iter().any(|prefix| ipam::is_usable(*prefix, *gateway)) {
            return Err(Refusal::Gateway(*gateway));
        }
    }
    if let Some(second) = second_of_a_prefix(prefixes, gateways, |gateway| *gateway) {
        return Err(Refusal::GatewayTwice(*second));
    }
    for range in ranges {
        let inside = |p: &IpNetwork| p.contains(range.network()) && p.prefix() <= range.prefix();
        if range.ip() != range.network() || !prefixes.iter().any(inside) {
            return Err(Refusal::Range(*range));
        }
    }
    if let Some(second) = second_of_a_prefix(prefixes, ranges, IpNetwork::network) {
        return Err(Refusal::RangeTwice(*second));
    }
    let subnet = |cidr: &IpNetwork| {
        let given = gateways.iter().copied().find(|gateway| cidr.contains(*gateway));
        let gateway = given.or_else(|| ipam::first_free(*cidr, &BTreeSet::new()));
        let range = ranges.iter().copied().find(|range| cidr.contains(range.network()));
        gateway.map(|gateway| Subnet { cidr: *cidr, gateway, range }).ok_or(Refusal::SubnetSmall(*cidr))
    };
    prefixes.iter().map(subnet).collect()
}

/// One that is inside the same prefix as one before it.
fn second_of_a_prefix<'a, T>(
    prefixes: &[IpNetwork],
    given: &'a [T],
    address: impl Fn(&T) -> IpAddr,
) -> Option<&'a T> {
    prefixes.iter().find_map(|prefix| given.iter().filter(|one| prefix.contains(address(one))).nth(1))
}

/// Checks prefixes that are to be the pools of networks and of the nodes' own addresses: usable, and apart from others of
/// the kind. No network overlaps the nodes' pools, which may be a part of the networks', as long as something is left.
pub fn pools(networks: &[IpNetwork], nodes: &[IpNetwork]) -> Result<(), Refusal> {
    for pool in networks {
        let around = |other: &&IpNetwork| overlaps(*pool, **other) && other.prefix() <= pool.prefix();
        if let Some(other) = nodes.iter().find(around) {
            let what = "the pool of the nodes' own addresses (--node-addr-pool)".to_owned();
            return Err(Refusal::Overlap { subnet: *pool, other: *other, what });
        }
    }
    apart_in_itself(networks)?;
    apart_in_itself(nodes)
}

fn apart_in_itself(prefixes: &[IpNetwork]) -> Result<(), Refusal> {
    for (at, pool) in prefixes.iter().enumerate() {
        check_prefix(*pool)?;
        if let Some(other) = prefixes[..at].iter().find(|other| overlaps(*pool, **other)) {
            let what = "given as well".to_owned();
            return Err(Refusal::Overlap { subnet: *pool, other: *other, what });
        }
    }
    Ok(())
}
