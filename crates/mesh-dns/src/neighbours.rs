//! Containers on several networks. Some resolvers, Docker's among them, ask in one of them for all names.

use mesh_model::{Endpoint, EndpointId, Key, NetworkId, NodeId, Snapshot, Target};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

/// The endpoints of one node, and which of them are one container's.
#[derive(Debug, Default)]
pub struct Neighbours {
    here: BTreeMap<EndpointId, Arc<Endpoint>>,
}

/// Of each network, the other networks of who asks from an address.
pub type OtherNetworks = BTreeMap<NetworkId, HashMap<IpAddr, BTreeSet<NetworkId>>>;

/// Tells one container of a node from another.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Mark {
    /// The namespace's inode.
    Inode(u64),
    /// Where its engine keeps it, for endpoints that are made before.
    Path(PathBuf),
}

impl Neighbours {
    /// Follows to another state, given the records that may differ. Returns whether an endpoint of this node does.
    pub fn update<'k>(
        &mut self,
        snapshot: &Snapshot,
        node: NodeId,
        changed: impl IntoIterator<Item = &'k Key>,
    ) -> bool {
        let mut differs = false;
        for key in changed {
            let Key::Endpoint(id) = key else { continue };
            differs |= match snapshot.endpoints.get(id).filter(|endpoint| endpoint.node == node) {
                Some(endpoint) => self.here.insert(*id, Arc::clone(endpoint)).as_ref() != Some(endpoint),
                None => self.here.remove(id).is_some(),
            };
        }
        differs
    }

    /// The addresses in a network of containers that Docker put there: they may have ways that only Docker knows of.
    pub fn of_docker(&self, network: NetworkId) -> impl Iterator<Item = IpAddr> {
        let here =
            self.here.values().filter(move |endpoint| endpoint.network == network && endpoint.is_dockers());
        here.flat_map(|endpoint| endpoint.addresses.iter().copied())
    }

    /// The addresses, on all its networks, of the container of this node that has one in a network.
    pub fn addresses_beside(&self, network: NetworkId, address: IpAddr) -> Vec<IpAddr> {
        let has_it = |e: &&Arc<Endpoint>| e.network == network && e.addresses.contains(&address);
        let Some(endpoint) = self.here.values().find(has_it) else { return Vec::new() };
        let same = |other: &&Arc<Endpoint>| {
            other.id == endpoint.id || marks(endpoint).any(|mark| marks(other).any(|other| other == mark))
        };
        self.here.values().filter(same).flat_map(|other| other.addresses.iter().copied()).collect()
    }

    /// The containers on several networks.
    pub fn other_networks(&self) -> OtherNetworks {
        let mut networks: HashMap<Mark, BTreeSet<NetworkId>> = HashMap::new();
        for endpoint in self.here.values() {
            for mark in marks(endpoint) {
                networks.entry(mark).or_default().insert(endpoint.network);
            }
        }
        let mut found = OtherNetworks::new();
        for endpoint in self.here.values() {
            let mut others: BTreeSet<NetworkId> =
                marks(endpoint).filter_map(|mark| networks.get(&mark)).flatten().copied().collect();
            others.remove(&endpoint.network);
            if !others.is_empty() {
                let by_address = found.entry(endpoint.network).or_default();
                by_address.extend(endpoint.addresses.iter().map(|address| (*address, others.clone())));
            }
        }
        found
    }
}

fn marks(endpoint: &Endpoint) -> impl Iterator<Item = Mark> {
    let inode = Some(endpoint.namespace_inode).filter(|inode| *inode != 0).map(Mark::Inode);
    let path = match &endpoint.target {
        Target::Docker(container) => container.netns.clone().map(Mark::Path),
        Target::Netns(path) => Some(Mark::Path(path.clone())),
        Target::Pid(_) => None,
    };
    inode.into_iter().chain(path)
}
