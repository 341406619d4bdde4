//! Places of the name servers on this node: sockets on each gateway address, which the front process serves.

use crate::{
    front::{Descriptors, Held, NameServer, Place},
    sockets::Sockets,
};
use mesh_model::{NodeId, Snapshot};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

const PORT: u16 = 53;

/// The sockets of the name servers.
pub(super) struct Names {
    sockets: Sockets,
    held: BTreeMap<NameServer, Descriptors>,
}

impl Names {
    pub(super) fn new(sockets: Sockets, adopted: &Held) -> Self {
        let held = adopted.iter().filter_map(|(place, descriptors)| match place {
            Place::Names(at) => Some((*at, Arc::clone(descriptors))),
            Place::Http(_) => None,
        });
        Self { sockets, held: held.collect() }
    }

    /// Opens sockets wherever a network of the snapshot is on this node. Returns what can't be served, a line each; the
    /// next pass tries again.
    pub(super) fn apply(&mut self, snapshot: &Snapshot, me: NodeId) -> Vec<String> {
        let wanted = self.wanted(snapshot, me);
        self.held.retain(|at, _| wanted.contains(at));
        let mut problems = Vec::new();
        for at in wanted {
            if self.held.contains_key(&at) {
                continue;
            }
            let address = SocketAddr::new(at.gateway, PORT);
            match self.sockets.name_server(at.network, address) {
                Ok((udp, tcp)) => drop(self.held.insert(at, Arc::new(vec![udp.into(), tcp.into()]))),
                Err(e) => problems.push(format!("no name server on {address}: {e}")),
            }
        }
        problems
    }

    /// What is held, for the front process.
    pub(super) fn held(&self) -> impl Iterator<Item = (Place, Descriptors)> {
        self.held.iter().map(|(at, sockets)| (Place::Names(*at), Arc::clone(sockets)))
    }

    /// Lets go of sockets that do not work.
    pub(super) fn forget(&mut self, place: &Place) {
        if let Place::Names(at) = place {
            self.held.remove(at);
        }
    }

    fn wanted(&self, snapshot: &Snapshot, me: NodeId) -> BTreeSet<NameServer> {
        let needed = snapshot.networks_on(me);
        let here = snapshot.networks.values().filter(|network| needed.contains(&network.id));
        let placed = here.filter_map(|network| Some((network, self.sockets.namespace(network.id)?)));
        let places = placed.flat_map(|(network, namespace)| {
            network.gateways().map(move |gateway| NameServer { network: network.id, namespace, gateway })
        });
        places.collect()
    }
}
