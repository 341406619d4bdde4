//! Places of the name servers on this node: sockets on each gateway address, and on those of the host that it is told, which
//! the front process serves.

use crate::{
    front::{Descriptors, Held, NameServer, Place},
    sockets::{self, Sockets},
};
use mesh_model::{NetworkId, NodeId, Snapshot};
use std::{collections::BTreeSet, io, net::SocketAddr, sync::Arc};

const PORT: u16 = 53;

/// The sockets of the name servers.
pub(super) struct Names {
    sockets: Sockets,
    /// Where processes of the host are answered.
    listen: Vec<SocketAddr>,
    held: Held,
}

impl Names {
    pub(super) fn new(sockets: Sockets, listen: Vec<SocketAddr>, adopted: &Held) -> Self {
        let ours = adopted.iter().filter(|(place, _)| place.is_of_names());
        let held: Held = ours.map(|(place, descriptors)| (*place, Arc::clone(descriptors))).collect();
        // Of a daemon that did not do so yet.
        held.values().filter_map(|descriptors| descriptors.first()).for_each(sockets::lengthen_queue);
        Self { sockets, listen, held }
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
            match self.open(&at) {
                Ok(opened) => drop(self.held.insert(at, opened)),
                Err(e) => problems.push(format!("no name server on {}: {e}", address(&at))),
            }
        }
        problems
    }

    /// What is held, for the front process.
    pub(super) fn held(&self) -> impl Iterator<Item = (Place, Descriptors)> {
        self.held.iter().map(|(at, sockets)| (*at, Arc::clone(sockets)))
    }

    /// Where there is a name server, and of which network.
    pub(super) fn places(&self) -> Vec<(Option<NetworkId>, SocketAddr)> {
        self.held.keys().map(|place| (place.network(), address(place))).collect()
    }

    /// Lets go of sockets that do not work.
    pub(super) fn forget(&mut self, place: &Place) {
        self.held.remove(place);
    }

    fn open(&self, at: &Place) -> io::Result<Descriptors> {
        let (udp, tcp) = match at.network() {
            Some(network) => self.sockets.name_server(network, address(at))?,
            None => sockets::host_name_server(address(at))?,
        };
        Ok(Arc::new(vec![udp.into(), tcp.into()]))
    }

    fn wanted(&self, snapshot: &Snapshot, me: NodeId) -> BTreeSet<Place> {
        let needed = snapshot.networks_on(me);
        let here = snapshot.networks.values().filter(|network| needed.contains(&network.id));
        let placed = here.filter_map(|network| Some((network, self.sockets.namespace(network.id)?)));
        let of_networks = placed.flat_map(|(network, namespace)| {
            network
                .gateways()
                .map(move |gateway| Place::Names(NameServer { network: network.id, namespace, gateway }))
        });
        of_networks.chain(self.listen.iter().copied().map(Place::HostNames)).collect()
    }
}

fn address(place: &Place) -> SocketAddr {
    match place {
        Place::Names(at) => SocketAddr::new(at.gateway, PORT),
        Place::Http(address)
        | Place::Stream(address)
        | Place::Datagrams(address)
        | Place::HostNames(address) => *address,
    }
}
