//! Which networks exist on which nodes, and so who needs to know what.
//!
//! A network exists on a node from the node's first endpoint on it, or when a published port leads into it from every
//! node. There the data planes make it, and there alone its endpoints and their health are known.

use crate::{Change, Key, NetworkId, NodeId, Object, Service, Snapshot};
use std::collections::{BTreeMap, BTreeSet};

impl Snapshot {
    /// The networks that exist on a node.
    pub fn networks_on(&self, node: NodeId) -> BTreeSet<NetworkId> {
        let of_endpoints = self.endpoints.values().filter(|e| e.node == node).map(|e| e.network);
        of_endpoints.chain(self.services.values().filter_map(|s| s.everywhere())).collect()
    }

    /// Whether one network is among [`Snapshot::networks_on`].
    pub fn is_on(&self, network: NetworkId, node: NodeId) -> bool {
        self.services.values().any(|s| s.everywhere() == Some(network))
            || self.endpoints.values().any(|e| e.node == node && e.network == network)
    }

    /// Who needs to know of a change that is about to be applied to this state.
    pub fn audience(&self, change: &Change) -> Audience {
        let of_endpoint = |id| self.endpoints.get(id).map_or(Audience::Nobody, |e| Audience::On(e.network));
        match change {
            Change::Put(Object::Endpoint(endpoint)) => Audience::On(endpoint.network),
            Change::Put(Object::Health(id, _)) => of_endpoint(id),
            Change::Delete(Key::Endpoint(id) | Key::Health(id)) => of_endpoint(id),
            Change::Put(Object::Released(..)) | Change::Delete(Key::Released(_)) => Audience::Nobody,
            _ => Audience::Everyone,
        }
    }
}

impl Service {
    /// The network that a published port leads into from every node.
    pub fn everywhere(&self) -> Option<NetworkId> {
        if self.ports.is_empty() { None } else { self.ingress_network() }
    }
}

/// Who needs to know of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Every node.
    Everyone,
    /// The nodes that the network exists on.
    On(NetworkId),
    /// No node: it is of something that is not there, or that managers alone need.
    Nobody,
}

/// [`Snapshot::networks_on`] of every node, kept up to date change by change: what a manager of many nodes asks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Placement {
    /// How many endpoints a node has on a network.
    endpoints: BTreeMap<(NodeId, NetworkId), usize>,
    /// The same places by network.
    nodes: BTreeSet<(NetworkId, NodeId)>,
    /// How many services lead into a network from every node.
    everywhere: BTreeMap<NetworkId, usize>,
}

impl Placement {
    /// The placement in a state.
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut placement = Self::default();
        snapshot.endpoints.values().for_each(|e| placement.place(e.node, e.network));
        snapshot.services.values().for_each(|s| placement.lead(s));
        placement
    }

    /// Follows a change that is about to be applied to `before`.
    pub fn apply(&mut self, before: &Snapshot, change: &Change) {
        let key = match change {
            Change::Put(object) => object.key(),
            Change::Delete(key) => *key,
        };
        match key {
            Key::Endpoint(id) => {
                if let Some(endpoint) = before.endpoints.get(&id) {
                    self.displace(endpoint.node, endpoint.network);
                }
            }
            Key::Service(id) => {
                if let Some(service) = before.services.get(&id) {
                    self.lead_no_more(service);
                }
            }
            _ => {}
        }
        match change {
            Change::Put(Object::Endpoint(endpoint)) => self.place(endpoint.node, endpoint.network),
            Change::Put(Object::Service(service)) => self.lead(service),
            _ => {}
        }
    }

    /// The networks that exist on a node.
    pub fn networks_on(&self, node: NodeId) -> BTreeSet<NetworkId> {
        let own = self.endpoints.range((node, NetworkId::MIN)..=(node, NetworkId::MAX));
        own.map(|((_, network), _)| *network).chain(self.everywhere.keys().copied()).collect()
    }

    /// Whether a network exists on every node.
    pub fn is_everywhere(&self, network: NetworkId) -> bool {
        self.everywhere.contains_key(&network)
    }

    /// The nodes with endpoints on a network.
    pub fn nodes_on(&self, network: NetworkId) -> impl Iterator<Item = NodeId> {
        self.nodes.range((network, NodeId::MIN)..=(network, NodeId::MAX)).map(|(_, node)| *node)
    }

    fn place(&mut self, node: NodeId, network: NetworkId) {
        *self.endpoints.entry((node, network)).or_default() += 1;
        self.nodes.insert((network, node));
    }

    fn displace(&mut self, node: NodeId, network: NetworkId) {
        if fewer(&mut self.endpoints, (node, network)) {
            self.nodes.remove(&(network, node));
        }
    }

    fn lead(&mut self, service: &Service) {
        if let Some(network) = service.everywhere() {
            *self.everywhere.entry(network).or_default() += 1;
        }
    }

    fn lead_no_more(&mut self, service: &Service) {
        if let Some(network) = service.everywhere() {
            fewer(&mut self.everywhere, network);
        }
    }
}

/// Counts one down; true if that was the last.
fn fewer<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) -> bool {
    match counts.get_mut(&key) {
        Some(count) if *count > 1 => {
            *count -= 1;
            false
        }
        Some(_) => counts.remove(&key).is_some(),
        None => false,
    }
}
