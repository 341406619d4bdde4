//! Nodes: name, index and overlay addresses; what becomes of them.

use super::Fresh;
use crate::{
    Availability, Change, Cluster, Key, Node, NodeId, NodeSpec, NodeStatus, NodeUpdate, Object, Refusal,
    Role, Snapshot, first_free,
};
use ipnetwork::IpNetwork;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
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

/// The node after an update.
pub fn node_update(node: &Node, update: &NodeUpdate) -> Node {
    let mut updated = node.clone();
    updated.availability = update.availability.unwrap_or(node.availability);
    updated.labels.retain(|key, _| !update.label_rm.contains(key));
    updated.labels.extend(update.label_add.clone());
    updated
}

/// What removes a node, its endpoints with it, in one transaction. A membership key that it does not know comes into
/// use. Unless forced, a node that is up is left alone.
pub fn node_removal(
    snapshot: &Snapshot,
    node: &Node,
    status: NodeStatus,
    force: bool,
) -> Result<Vec<Change>, Refusal> {
    if node.role == Role::Manager {
        return Err(Refusal::NodeIsManager(node.name.to_string()));
    }
    if status != NodeStatus::Down && !force {
        return Err(Refusal::NodeUp(node.name.to_string()));
    }
    let endpoints = || snapshot.endpoints.values().filter(|e| e.node == node.id).map(|e| e.id);
    let verdicts = endpoints().filter(|id| snapshot.health.contains_key(id)).map(Key::Health);
    let gone = endpoints().map(Key::Endpoint).chain(verdicts).chain([Key::Node(node.id)]);
    let cluster = snapshot.cluster.as_deref().ok_or(Refusal::NoCluster)?;
    let rekeyed = Cluster { gossip_key: cluster.gossip_key.wrapping_add(1), ..cluster.clone() };
    Ok(gone.map(Change::Delete).chain([Change::Put(Object::Cluster(Arc::new(rekeyed)))]).collect())
}

/// The overlay prefix that an underlay address lies in: packets to it would never leave the overlay.
fn overlay_around(snapshot: &Snapshot, cluster: &Cluster, address: IpAddr) -> Option<(IpNetwork, String)> {
    let pools = cluster.node_pools.iter().map(|pool| (*pool, "the node address pool".to_owned()));
    let networks = snapshot.networks.values();
    let subnets = networks.flat_map(|n| n.subnets.iter().map(|s| (s.cidr, format!("network '{}'", n.name))));
    pools.chain(subnets).find(|(prefix, _)| prefix.contains(address))
}
