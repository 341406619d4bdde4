//! Nodes: name, index and overlay addresses.

use super::Fresh;
use crate::{Availability, Cluster, Node, NodeId, NodeSpec, Refusal, Role, Snapshot, first_free};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// The node that joins with this specification.
pub fn node(snapshot: &Snapshot, spec: &NodeSpec, role: Role, fresh: Fresh) -> Result<Node, Refusal> {
    let cluster = snapshot.cluster.as_ref().ok_or(Refusal::NoCluster)?;
    let address = spec.advertise.ip();
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(Refusal::AdvertiseUnusable(address));
    }
    for other in snapshot.nodes.values() {
        if other.name.same(&spec.name) {
            return Err(Refusal::NameTaken { kind: "node", name: spec.name.to_string() });
        }
        if other.advertise.ip() == address {
            return Err(Refusal::AdvertiseTaken { address, node: other.name.to_string() });
        }
    }
    if let Some((prefix, what)) = overlay_around(snapshot, cluster, address) {
        return Err(Refusal::AdvertiseInside { address, prefix, what });
    }
    let used: BTreeSet<IpAddr> = snapshot.nodes.values().flat_map(|n| n.addresses.iter().copied()).collect();
    let address = |pool: &_| first_free(*pool, &used).ok_or(Refusal::NodePoolExhausted(*pool));
    let indices: BTreeSet<u32> = snapshot.nodes.values().map(|n| n.index).collect();
    Ok(Node {
        id: NodeId::from_bits(fresh.id),
        name: spec.name.clone(),
        role,
        index: (1..).find(|index| !indices.contains(index)).unwrap_or(u32::MAX),
        advertise: spec.advertise,
        addresses: cluster.node_pools.iter().map(address).collect::<Result<_, _>>()?,
        availability: Availability::Active,
        labels: BTreeMap::new(),
        created: fresh.now,
    })
}

/// The overlay prefix that an underlay address lies in: packets to it would never leave the overlay.
fn overlay_around(snapshot: &Snapshot, cluster: &Cluster, address: IpAddr) -> Option<(IpNetwork, String)> {
    let pools = cluster.node_pools.iter().map(|pool| (*pool, "the node address pool".to_owned()));
    let networks = snapshot.networks.values();
    let subnets = networks.flat_map(|n| n.subnets.iter().map(|s| (s.cidr, format!("network '{}'", n.name))));
    pools.chain(subnets).find(|(prefix, _)| prefix.contains(address))
}
