//! The whole state at one revision, and the changes that lead from one revision to the next.

use crate::{
    Availability, Cluster, Endpoint, EndpointId, Health, Network, NetworkId, Node, NodeId, NodeStatus,
    PublishMode, PublishedPort, Released, Service, ServiceId,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    sync::Arc,
};

/// Shortest prefix of an ID that stands for it. With fewer digits, a name like `c` that is not there would often be
/// taken for another record.
pub const ID_PREFIX: usize = 4;

/// The whole state at one revision. Records are shared: a copy costs a pointer a record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Drawn anew whenever the store's revisions start anew: revisions of two epochs can't be compared. 0: not known.
    #[serde(default)]
    pub epoch: u64,
    /// The store's revision that this state is of.
    pub revision: u64,
    /// What holds for the whole cluster; absent only before `init`.
    pub cluster: Option<Arc<Cluster>>,
    /// Members.
    pub nodes: BTreeMap<NodeId, Arc<Node>>,
    /// Networks.
    pub networks: BTreeMap<NetworkId, Arc<Network>>,
    /// Services.
    pub services: BTreeMap<ServiceId, Arc<Service>>,
    /// Endpoints.
    pub endpoints: BTreeMap<EndpointId, Arc<Endpoint>>,
    /// Verdicts of health checks; see [`Snapshot::health_of`].
    pub health: BTreeMap<EndpointId, Health>,
    /// Addresses that were given back lately. Managers alone need to know.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub released: BTreeMap<NetworkId, Arc<Released>>,
    /// Liveness of nodes, as the node that holds this snapshot sees it; see [`Snapshot::status_of`]. Part of no store
    /// and no message.
    #[serde(skip)]
    pub status: BTreeMap<NodeId, NodeStatus>,
    /// Of the nodes that are down, those whose host says nothing either, as the node that holds this snapshot sees it: what
    /// is connected to their endpoints is reset. Part of no store and no message.
    #[serde(skip)]
    pub lost: BTreeSet<NodeId>,
    /// The manager that leads the others, as long as it is known. Not part of the store.
    #[serde(default)]
    pub leader: Option<NodeId>,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Object {
    /// The cluster.
    Cluster(Arc<Cluster>),
    /// A node.
    Node(Arc<Node>),
    /// A network.
    Network(Arc<Network>),
    /// A service.
    Service(Arc<Service>),
    /// An endpoint.
    Endpoint(Arc<Endpoint>),
    /// The verdict on an endpoint.
    Health(EndpointId, Health),
    /// Addresses that a network got back lately.
    Released(NetworkId, Arc<Released>),
    /// The manager that leads; never stored.
    Leader(NodeId),
}

/// Names a record; its text is the key in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Key {
    /// The cluster.
    Cluster,
    /// A node.
    Node(NodeId),
    /// A network.
    Network(NetworkId),
    /// A service.
    Service(ServiceId),
    /// An endpoint.
    Endpoint(EndpointId),
    /// The verdict on an endpoint.
    Health(EndpointId),
    /// Addresses that a network got back lately.
    Released(NetworkId),
    /// The manager that leads.
    Leader,
}

/// One change of state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// A record is there, new or with other content.
    Put(Object),
    /// A record is gone.
    Delete(Key),
}

impl Object {
    /// The key of this record.
    pub fn key(&self) -> Key {
        match self {
            Self::Cluster(_) => Key::Cluster,
            Self::Node(node) => Key::Node(node.id),
            Self::Network(network) => Key::Network(network.id),
            Self::Service(service) => Key::Service(service.id),
            Self::Endpoint(endpoint) => Key::Endpoint(endpoint.id),
            Self::Health(endpoint, _) => Key::Health(*endpoint),
            Self::Released(network, _) => Key::Released(*network),
            Self::Leader(_) => Key::Leader,
        }
    }
}

impl Change {
    /// The key of the record that changes.
    pub fn key(&self) -> Key {
        match self {
            Self::Put(object) => object.key(),
            Self::Delete(key) => *key,
        }
    }
}

impl Snapshot {
    /// Applies one change. Changes are idempotent: applying one twice is applying it once.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Put(object) => self.put(object),
            Change::Delete(key) => self.delete(key),
        }
    }

    fn put(&mut self, object: Object) {
        match object {
            Object::Cluster(cluster) => self.cluster = Some(cluster),
            Object::Node(node) => drop(self.nodes.insert(node.id, node)),
            Object::Network(network) => drop(self.networks.insert(network.id, network)),
            Object::Service(service) => drop(self.services.insert(service.id, service)),
            Object::Endpoint(endpoint) => drop(self.endpoints.insert(endpoint.id, endpoint)),
            Object::Health(endpoint, health) => drop(self.health.insert(endpoint, health)),
            Object::Released(network, released) => drop(self.released.insert(network, released)),
            Object::Leader(node) => self.leader = Some(node),
        }
    }

    fn delete(&mut self, key: Key) {
        match key {
            Key::Cluster => self.cluster = None,
            Key::Node(id) => drop(self.nodes.remove(&id)),
            Key::Network(id) => drop(self.networks.remove(&id)),
            Key::Service(id) => drop(self.services.remove(&id)),
            Key::Endpoint(id) => drop(self.endpoints.remove(&id)),
            Key::Health(id) => drop(self.health.remove(&id)),
            Key::Released(id) => drop(self.released.remove(&id)),
            Key::Leader => self.leader = None,
        }
    }

    /// The changes that lead from an earlier state to this one. Records that both share are told apart by their
    /// address, so the cost is that of a look at each.
    pub fn changes_since(&self, earlier: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.cluster != earlier.cluster {
            let put = self.cluster.clone().map(|cluster| Change::Put(Object::Cluster(cluster)));
            changes.push(put.unwrap_or(Change::Delete(Key::Cluster)));
        }
        differ(&earlier.nodes, &self.nodes, |_, new| Object::Node(new), Key::Node, &mut changes);
        differ(&earlier.networks, &self.networks, |_, new| Object::Network(new), Key::Network, &mut changes);
        differ(&earlier.services, &self.services, |_, new| Object::Service(new), Key::Service, &mut changes);
        differ(
            &earlier.endpoints,
            &self.endpoints,
            |_, new| Object::Endpoint(new),
            Key::Endpoint,
            &mut changes,
        );
        differ(&earlier.health, &self.health, Object::Health, Key::Health, &mut changes);
        differ(&earlier.released, &self.released, Object::Released, Key::Released, &mut changes);
        if self.leader != earlier.leader {
            changes.push(
                self.leader.map_or(Change::Delete(Key::Leader), |node| Change::Put(Object::Leader(node))),
            );
        }
        changes
    }

    /// A record as it is now.
    pub fn object(&self, key: Key) -> Option<Object> {
        match key {
            Key::Cluster => self.cluster.clone().map(Object::Cluster),
            Key::Node(id) => self.nodes.get(&id).cloned().map(Object::Node),
            Key::Network(id) => self.networks.get(&id).cloned().map(Object::Network),
            Key::Service(id) => self.services.get(&id).cloned().map(Object::Service),
            Key::Endpoint(id) => self.endpoints.get(&id).cloned().map(Object::Endpoint),
            Key::Health(id) => self.health.get(&id).map(|health| Object::Health(id, *health)),
            Key::Released(id) => self.released.get(&id).cloned().map(|found| Object::Released(id, found)),
            Key::Leader => self.leader.map(Object::Leader),
        }
    }

    /// Whether the state is as a change makes it.
    pub fn holds(&self, change: &Change) -> bool {
        let mut changed = self.clone();
        changed.apply(change.clone());
        changed == *self
    }

    /// What is known of an endpoint's health.
    pub fn health_of(&self, endpoint: &Endpoint) -> Health {
        let service = endpoint.service.and_then(|id| self.services.get(&id));
        match service {
            Some(service) if service.health.is_some() => {
                self.health.get(&endpoint.id).copied().unwrap_or_default()
            }
            _ => Health::Unchecked,
        }
    }

    /// A service's endpoints on one network, in the order of their IDs.
    pub fn replicas(&self, service: ServiceId, network: NetworkId) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.endpoints.values().filter(move |e| e.service == Some(service) && e.network == network)
    }

    /// Those of [`Snapshot::replicas`] that are offered new connections.
    pub fn backends(&self, service: ServiceId, network: NetworkId) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.replicas(service, network).filter(|e| self.takes_traffic(e))
    }

    /// The ports of a service that a node is to serve: in host mode only where there is a replica.
    pub fn published_on<'s>(
        &'s self,
        service: &'s Service,
        node: NodeId,
    ) -> impl Iterator<Item = &'s PublishedPort> {
        let mut here = None;
        let mut has_replica = move || {
            *here.get_or_insert_with(|| {
                let network = service.ingress_network();
                network.is_some_and(|network| self.replicas(service.id, network).any(|e| e.node == node))
            })
        };
        service.ports.iter().filter(move |port| port.mode == PublishMode::Ingress || has_replica())
    }

    /// Whether an endpoint is offered new connections: all data planes go by this. It is healthy, neither it nor its node
    /// is withdrawn, and its node is not down. Its address stays its own meanwhile.
    pub fn takes_traffic(&self, endpoint: &Endpoint) -> bool {
        let drained =
            || self.nodes.get(&endpoint.node).is_some_and(|n| n.availability == Availability::Drain);
        !endpoint.is_withdrawn()
            && self.health_of(endpoint).is_in()
            && self.status_of(endpoint.node) != NodeStatus::Down
            && !drained()
    }

    /// How many new connections an endpoint that takes traffic is offered, relative to the others of its service: a quarter
    /// of what its weight says if its node may be lost.
    pub fn share_of(&self, endpoint: &Endpoint) -> u32 {
        let lowered = self.status_of(endpoint.node) == NodeStatus::Suspect;
        endpoint.weight.get() * if lowered { 1 } else { 4 }
    }

    /// The liveness of a node. One that nothing is known of has not been missed yet.
    pub fn status_of(&self, node: NodeId) -> NodeStatus {
        self.status.get(&node).copied().unwrap_or_default()
    }

    /// Replicas of these services on every network in one pass.
    pub fn replicas_by_service(
        &self,
        wanted: impl Fn(ServiceId) -> bool,
    ) -> BTreeMap<(ServiceId, NetworkId), Vec<&Arc<Endpoint>>> {
        let mut replicas: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for endpoint in self.endpoints.values() {
            if let Some(service) = endpoint.service.filter(|service| wanted(*service)) {
                replicas.entry((service, endpoint.network)).or_default().push(endpoint);
            }
        }
        replicas
    }

    /// Those that are offered new connections: what data planes start from.
    pub fn backends_by_service(
        &self,
        wanted: impl Fn(ServiceId) -> bool,
    ) -> BTreeMap<(ServiceId, NetworkId), Vec<&Arc<Endpoint>>> {
        let mut backends = self.replicas_by_service(wanted);
        backends.values_mut().for_each(|of_one| of_one.retain(|endpoint| self.takes_traffic(endpoint)));
        backends
    }

    /// A network by name, ID or a prefix of its ID that no other has, of at least [`ID_PREFIX`] digits.
    pub fn find_network(&self, wanted: &str) -> Option<&Arc<Network>> {
        find(&self.networks, wanted, |n| &n.name)
    }

    /// A service, likewise.
    pub fn find_service(&self, wanted: &str) -> Option<&Arc<Service>> {
        find(&self.services, wanted, |s| &s.name)
    }

    /// A node, likewise.
    pub fn find_node(&self, wanted: &str) -> Option<&Arc<Node>> {
        find(&self.nodes, wanted, |n| &n.name)
    }

    /// An endpoint by ID, a prefix of its ID that no other has, or its name if no other network has that too.
    pub fn find_endpoint(&self, wanted: &str) -> Option<&Arc<Endpoint>> {
        let mut named = self.endpoints.values().filter(|e| *e.name == *wanted);
        match (named.next(), named.next()) {
            (Some(only), None) => Some(only),
            (Some(_), Some(_)) => None,
            _ => find(&self.endpoints, wanted, |e| &e.name),
        }
    }
}

/// What was put into, and what was taken out of, one kind of records.
fn differ<I: Ord + Copy, T: PartialEq + Clone>(
    earlier: &BTreeMap<I, T>,
    now: &BTreeMap<I, T>,
    object: impl Fn(I, T) -> Object,
    key: impl Fn(I) -> Key,
    changes: &mut Vec<Change>,
) {
    let put = now.iter().filter(|(id, new)| earlier.get(id) != Some(new));
    changes.extend(put.map(|(id, new)| Change::Put(object(*id, new.clone()))));
    let gone = earlier.keys().filter(|id| !now.contains_key(id));
    changes.extend(gone.map(|id| Change::Delete(key(*id))));
}

fn find<'a, I: fmt::Display, T>(
    records: &'a BTreeMap<I, Arc<T>>,
    wanted: &str,
    name: impl Fn(&T) -> &str,
) -> Option<&'a Arc<T>> {
    if let Some(record) = records.values().find(|record| name(record) == wanted) {
        return Some(record);
    }
    let mut matching =
        records.iter().filter(|(id, _)| wanted.len() >= ID_PREFIX && id.to_string().starts_with(wanted));
    match (matching.next(), matching.next()) {
        (Some((_, only)), None) => Some(only),
        _ => None,
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster => f.write_str("cluster"),
            Self::Node(id) => write!(f, "node/{id}"),
            Self::Network(id) => write!(f, "network/{id}"),
            Self::Service(id) => write!(f, "service/{id}"),
            Self::Endpoint(id) => write!(f, "endpoint/{id}"),
            Self::Health(id) => write!(f, "health/{id}"),
            Self::Released(id) => write!(f, "released/{id}"),
            Self::Leader => f.write_str("leader"),
        }
    }
}

impl FromStr for Key {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |_| format!("'{text}' names no record");
        let (kind, id) = text.split_once('/').unwrap_or((text, ""));
        Ok(match kind {
            "cluster" if id.is_empty() => Self::Cluster,
            "leader" if id.is_empty() => Self::Leader,
            "node" => Self::Node(id.parse().map_err(bad)?),
            "network" => Self::Network(id.parse().map_err(bad)?),
            "service" => Self::Service(id.parse().map_err(bad)?),
            "endpoint" => Self::Endpoint(id.parse().map_err(bad)?),
            "health" => Self::Health(id.parse().map_err(bad)?),
            "released" => Self::Released(id.parse().map_err(bad)?),
            _ => return Err(format!("'{text}' names no record")),
        })
    }
}

impl TryFrom<String> for Key {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.to_string()
    }
}
