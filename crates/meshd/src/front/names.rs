//! Name servers, one for each gateway address: its names are swapped with each state.

use super::messages::{Descriptors, Held, NameServer, Place};
use arc_swap::ArcSwap;
use mesh_dns::{Forwarder, ForwarderOptions, Server, Table, parse_resolv_conf};
use mesh_model::{NetworkId, Snapshot};
use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, TcpListener, UdpSocket},
    sync::Arc,
    time::SystemTime,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// One server.
struct Running {
    /// What it serves on; others take another server.
    sockets: Descriptors,
    cancel: CancellationToken,
    table: Arc<ArcSwap<Table>>,
}

/// The name servers.
pub(super) struct Names {
    forwarder: Arc<Forwarder>,
    /// When the file with the host's resolvers was last changed, and the gateways that were left out.
    resolvers_of: Option<(SystemTime, Vec<IpAddr>)>,
    running: BTreeMap<NameServer, Running>,
    servers: JoinSet<(NameServer, Descriptors, Result<(), mesh_dns::Error>)>,
}

impl Names {
    pub(super) fn new() -> Self {
        Self {
            forwarder: Arc::new(Forwarder::new(Vec::new(), ForwarderOptions::default())),
            resolvers_of: None,
            running: BTreeMap::new(),
            servers: JoinSet::new(),
        }
    }

    /// Runs a server on each of these sockets, with the state's names. Returns the places whose sockets don't work.
    pub(super) fn apply(&mut self, snapshot: &Snapshot, held: &Held) -> Vec<Place> {
        self.follow_resolvers(snapshot);
        let mut failed = self.reap();
        self.running.retain(|at, running| {
            let kept =
                held.get(&Place::Names(*at)).is_some_and(|sockets| Arc::ptr_eq(sockets, &running.sockets));
            if !kept {
                running.cancel.cancel();
            }
            kept
        });
        let mut tables: BTreeMap<NetworkId, Arc<Table>> = BTreeMap::new();
        for (place, sockets) in held {
            let Place::Names(at) = place else { continue };
            let Some(table) = table_of(&mut tables, snapshot, at.network) else { continue };
            if let Some(running) = self.running.get(at) {
                running.table.store(table);
            } else if let Err(err) = self.start(*at, sockets, table) {
                tracing::error!(network = %at.network, gateway = %at.gateway, %err, "no name server");
                failed.push(*place);
            }
        }
        failed
    }

    /// Takes no more queries; returns once those under way are answered.
    pub(super) async fn finish(&mut self) {
        self.running.values().for_each(|running| running.cancel.cancel());
        self.running.clear();
        while self.servers.join_next().await.is_some() {}
    }

    fn start(&mut self, at: NameServer, sockets: &Descriptors, table: Arc<Table>) -> io::Result<()> {
        let [udp, tcp] = &sockets[..] else { return Err(io::Error::other("two sockets are needed")) };
        let (udp, tcp) = (UdpSocket::from(udp.try_clone()?), TcpListener::from(tcp.try_clone()?));
        let table = Arc::new(ArcSwap::new(table));
        let server = Server { udp, tcp, table: Arc::clone(&table), forwarder: Arc::clone(&self.forwarder) };
        let cancel = CancellationToken::new();
        let (stop, of) = (cancel.clone(), Arc::clone(sockets));
        self.servers.spawn(async move { (at, of, server.run(stop).await) });
        self.running.insert(at, Running { sockets: Arc::clone(sockets), cancel, table });
        Ok(())
    }

    /// Forgets servers that ended; those that failed need other sockets.
    fn reap(&mut self) -> Vec<Place> {
        let mut failed = Vec::new();
        while let Some(ended) = self.servers.try_join_next() {
            let Ok((at, sockets, Err(err))) = ended else { continue };
            tracing::error!(network = %at.network, gateway = %at.gateway, %err, "name server failed");
            if self.running.get(&at).is_some_and(|running| Arc::ptr_eq(&running.sockets, &sockets)) {
                self.running.remove(&at);
                failed.push(Place::Names(at));
            }
        }
        failed
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
