//! Name servers of the networks on this node: one for each gateway address, its names swapped with each snapshot.

use super::sockets::Sockets;
use arc_swap::ArcSwap;
use mesh_dns::{Forwarder, ForwarderOptions, Server, Table, parse_resolv_conf};
use mesh_model::{NetworkId, NodeId, Snapshot};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::SystemTime,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const PORT: u16 = 53;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// A name server's place: a gateway address inside a network's namespace. Should the namespace be made anew, so is
/// the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    network: NetworkId,
    namespace: u64,
    gateway: IpAddr,
}

struct Running {
    cancel: CancellationToken,
    table: Arc<ArcSwap<Table>>,
}

/// The name servers.
pub(super) struct Names {
    sockets: Sockets,
    forwarder: Arc<Forwarder>,
    /// When the file with the host's resolvers was last changed, and the gateways that were left out.
    resolvers_of: Option<(SystemTime, Vec<IpAddr>)>,
    running: BTreeMap<Place, Running>,
    servers: JoinSet<(Place, Result<(), mesh_dns::Error>)>,
    cancel: CancellationToken,
}

impl Names {
    pub(super) fn new(sockets: Sockets, cancel: CancellationToken) -> Self {
        Self {
            sockets,
            forwarder: Arc::new(Forwarder::new(Vec::new(), ForwarderOptions::default())),
            resolvers_of: None,
            running: BTreeMap::new(),
            servers: JoinSet::new(),
            cancel,
        }
    }

    /// Runs a server wherever a network of the snapshot is on this node, with the snapshot's names. Returns what can't
    /// be served, a line each; the next pass tries again.
    pub(super) fn apply(&mut self, snapshot: &Snapshot, me: NodeId) -> Vec<String> {
        self.follow_resolvers(snapshot);
        self.reap();
        let wanted = self.wanted(snapshot, me);
        self.running.retain(|place, running| {
            let kept = wanted.contains(place);
            if !kept {
                running.cancel.cancel();
            }
            kept
        });
        let mut tables: BTreeMap<NetworkId, Arc<Table>> = BTreeMap::new();
        let mut problems = Vec::new();
        for place in wanted {
            let Some(table) = table_of(&mut tables, snapshot, place.network) else { continue };
            match self.running.get(&place) {
                Some(running) => running.table.store(table),
                None => problems.extend(self.start(place, table).err()),
            }
        }
        problems
    }

    fn wanted(&self, snapshot: &Snapshot, me: NodeId) -> BTreeSet<Place> {
        let needed = snapshot.networks_on(me);
        let here = snapshot.networks.values().filter(|network| needed.contains(&network.id));
        let placed = here.filter_map(|network| Some((network, self.sockets.namespace(network.id)?)));
        let places = placed.flat_map(|(network, namespace)| {
            network.gateways().map(move |gateway| Place { network: network.id, namespace, gateway })
        });
        places.collect()
    }

    fn start(&mut self, place: Place, table: Arc<Table>) -> Result<(), String> {
        let address = SocketAddr::new(place.gateway, PORT);
        let bound = self.sockets.name_server(place.network, address);
        let (udp, tcp) = bound.map_err(|e| format!("no name server on {address}: {e}"))?;
        let table = Arc::new(ArcSwap::new(table));
        let server = Server { udp, tcp, table: Arc::clone(&table), forwarder: Arc::clone(&self.forwarder) };
        let cancel = self.cancel.child_token();
        let stop = cancel.clone();
        self.servers.spawn(async move { (place, server.run(stop).await) });
        self.running.insert(place, Running { cancel, table });
        Ok(())
    }

    /// Forgets servers that ended; those that failed are started anew.
    fn reap(&mut self) {
        while let Some(ended) = self.servers.try_join_next() {
            let Ok((place, result)) = ended else { continue };
            if let Err(err) = result {
                tracing::error!(network = %place.network, gateway = %place.gateway, %err, "name server failed");
                self.running.remove(&place);
            }
        }
    }

    /// Forwards to the host's resolvers, as they are now.
    fn follow_resolvers(&mut self, snapshot: &Snapshot) {
        let changed = fs::metadata(RESOLV_CONF).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        // Asking ourselves would go round in circles.
        let own: Vec<IpAddr> = snapshot.networks.values().flat_map(|network| network.gateways()).collect();
        let now = Some((changed, own));
        if self.resolvers_of == now {
            return;
        }
        let text = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        let own = now.as_ref().map_or(&[][..], |(_, own)| own);
        self.forwarder.set_upstreams(parse_resolv_conf(&text, own));
        self.resolvers_of = now;
    }
}

fn table_of(
    tables: &mut BTreeMap<NetworkId, Arc<Table>>,
    snapshot: &Snapshot,
    network: NetworkId,
) -> Option<Arc<Table>> {
    if let Some(table) = tables.get(&network) {
        return Some(Arc::clone(table));
    }
    let table = Arc::new(Table::new(snapshot, network)?);
    tables.insert(network, Arc::clone(&table));
    Some(table)
}
