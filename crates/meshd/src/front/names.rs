//! Name servers, one for each gateway address. Names follow the state, and the upstream resolvers the host's file.

use super::messages::{Descriptors, Held, NamesReport, Place};
use crate::{
    config::{DnsConfig, DnsMode},
    sockets::Sockets,
};
use arc_swap::ArcSwap;
use ipnetwork::IpNetwork;
use mesh_api::{DnsCounts, UpstreamState, UpstreamView};
use mesh_dns::{
    Condition, Counts, Forwarder, ForwarderOptions, Manner, Neighbours, Order, OtherNetworks, Published,
    Routes, Server, Source, Upstream, View, Zone, parse_resolv_conf,
};
use mesh_model::{Key, Network, NetworkId, NodeId, Resolver, Snapshot};
use nix::net::if_::if_nametoindex;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

const PORT: u16 = 53;
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How often it is seen whether an upstream asks this node in turn, if none has changed.
const LOOK_FOR_LOOPS: Duration = Duration::from_secs(60);

/// One server.
struct Running {
    /// What it serves on; others take another server.
    sockets: Descriptors,
    cancel: CancellationToken,
}

/// The names of one network.
struct Served {
    zone: Zone,
    published: Published,
    view: Arc<View>,
}

/// The name servers.
pub(super) struct Names {
    node: NodeId,
    forwarder: Arc<Forwarder>,
    /// In place of the host's own resolvers, if there are any.
    upstreams: Vec<Resolver>,
    /// The file with the host's resolvers as it was last read, and whom it was not to name.
    resolvers_of: Option<(String, BTreeSet<IpAddr>)>,
    served: BTreeMap<NetworkId, Served>,
    /// For the host's own processes.
    host: Arc<View>,
    neighbours: Neighbours,
    /// Whether it is to be told again who may ask what.
    views_are_old: bool,
    running: BTreeMap<Place, Running>,
    servers: JoinSet<(Place, Descriptors, Result<(), mesh_dns::Error>)>,
    loops: Option<(Instant, JoinHandle<()>)>,
    look_is_due: bool,
}

impl Names {
    pub(super) fn new(node: NodeId, sockets: Sockets) -> Self {
        Self {
            node,
            forwarder: Arc::new(Forwarder::new(sockets, ForwarderOptions::default())),
            upstreams: Vec::new(),
            resolvers_of: None,
            served: BTreeMap::new(),
            host: Arc::new(View::of_host()),
            neighbours: Neighbours::default(),
            views_are_old: true,
            running: BTreeMap::new(),
            servers: JoinSet::new(),
            loops: None,
            look_is_due: true,
        }
    }

    /// Forwards in this way from now on.
    pub(super) fn set_forwarding(&mut self, config: DnsConfig) {
        let order = match config.mode {
            DnsMode::Ordered => Order::Preferred,
            DnsMode::Parallel => Order::Parallel,
        };
        self.forwarder.set_manner(Manner { order, random_case: config.random_case });
        self.upstreams = config.upstreams;
        self.resolvers_of = None;
    }

    /// What is done here.
    pub(super) fn report(&self) -> NamesReport {
        let routes = self.routes_now();
        let routes: Vec<&Routes> = routes.iter().map(AsRef::as_ref).collect();
        let of_networks = self.served.iter().map(|(network, served)| (Some(*network), &served.view));
        let counts = of_networks.chain([(None, &self.host)]);
        NamesReport {
            counts: counts.map(|(network, view)| (network, shown(view.counters.counts()))).collect(),
            upstreams: self.forwarder.conditions(&routes).into_iter().map(upstream_view).collect(),
        }
    }

    /// Follows to another state, given the records that may differ; none: all may.
    pub(super) fn follow(&mut self, snapshot: &Snapshot, changed: Option<&[Key]>) {
        if let Some(changed) = changed {
            self.views_are_old |= self.neighbours.update(snapshot, self.node, changed);
            self.views_are_old |= changed.iter().any(|key| matches!(key, Key::Network(_)));
            self.served.retain(|_, served| served.zone.update(snapshot, changed));
        } else {
            self.neighbours = Neighbours::default();
            let endpoints: Vec<Key> = snapshot.endpoints.keys().copied().map(Key::Endpoint).collect();
            self.neighbours.update(snapshot, self.node, &endpoints);
            self.views_are_old = true;
            self.served.retain(|network, served| {
                Zone::new(snapshot, *network).map(|zone| served.zone = zone).is_some()
            });
        }
        self.served.values_mut().for_each(Served::publish);
    }

    /// Runs a server on each of these sockets. Returns the places whose sockets don't work.
    pub(super) fn serve(&mut self, snapshot: &Snapshot, held: &Held) -> Vec<Place> {
        let mut failed = self.reap();
        self.running.retain(|at, running| {
            let kept = held.get(at).is_some_and(|sockets| Arc::ptr_eq(sockets, &running.sockets));
            if !kept {
                running.cancel.cancel();
            }
            kept
        });
        let is_new = |place: &Place| place.is_of_names() && !self.running.contains_key(place);
        // First: who asks already is not to be told that there is nobody to ask.
        if self.resolvers_of.is_none() || held.keys().any(is_new) {
            self.look_at_host(snapshot, held);
        }
        self.open_zones(snapshot, held);
        if std::mem::take(&mut self.views_are_old) {
            self.tell_views(snapshot);
            self.look_is_due = true;
        }
        self.look_for_loops();
        for (place, sockets) in held {
            let view = match place {
                Place::Names(at) => self.served.get(&at.network).map(|served| &served.view),
                Place::HostNames(_) => Some(&self.host),
                Place::Http(_) | Place::Stream(_) | Place::Datagrams(_) => None,
            };
            let Some(view) = view.filter(|_| !self.running.contains_key(place)).cloned() else { continue };
            if let Err(err) = self.start(*place, sockets, view) {
                tracing::error!(?place, %err, "no name server");
                failed.push(*place);
            }
        }
        failed
    }

    /// Sees what the host's files and devices say now: too much work for each change of state.
    pub(super) fn look_at_host(&mut self, snapshot: &Snapshot, held: &Held) {
        self.follow_resolvers(snapshot, held);
        self.follow_addresses(held);
    }

    /// Takes no more queries; returns once those under way are answered.
    pub(super) async fn finish(&mut self) {
        self.running.values().for_each(|running| running.cancel.cancel());
        self.running.clear();
        while self.servers.join_next().await.is_some() {}
    }

    /// Names for each network that has sockets here, and for no other.
    fn open_zones(&mut self, snapshot: &Snapshot, held: &Held) {
        let wanted: BTreeSet<NetworkId> = held.keys().filter_map(Place::network).collect();
        let before = self.served.len();
        self.served.retain(|network, _| wanted.contains(network));
        self.views_are_old |= self.served.len() != before;
        for network in wanted {
            if self.served.contains_key(&network) {
                continue;
            }
            let Some(zone) = Zone::new(snapshot, network) else { continue };
            let published = Arc::new(ArcSwap::from_pointee(zone.table()));
            let view = Arc::new(View::of_network(Arc::clone(&published)));
            self.served.insert(network, Served { zone, published, view });
            self.views_are_old = true;
        }
    }

    /// Tells who asks from where what else is to be found, and by whom.
    fn tell_views(&self, snapshot: &Snapshot) {
        if let Source::Host { all: told, .. } = &self.host.names {
            told.store(Arc::new(self.served.values().map(|served| Arc::clone(&served.published)).collect()));
        }
        let withheld = Routes::withheld(subnets(snapshot));
        self.host.routes.store(Arc::new(Routes::default().withholding(&withheld)));
        let others = self.neighbours.other_networks();
        for (id, served) in &self.served {
            let Some(network) = snapshot.networks.get(id) else { continue };
            let routes = self.routes(network, snapshot, &others).withholding(&withheld);
            served.view.routes.store(Arc::new(routes));
            let Source::Network { others: told, .. } = &served.view.names else { continue };
            let published = |networks: &BTreeSet<NetworkId>| -> Vec<Published> {
                let served = networks.iter().filter_map(|network| self.served.get(network));
                served.map(|served| Arc::clone(&served.published)).collect()
            };
            let by_address = others.get(id).into_iter().flatten();
            let by_address: HashMap<IpAddr, Vec<Published>> =
                by_address.map(|(address, networks)| (*address, published(networks))).collect();
            told.store(Arc::new(by_address));
        }
    }

    /// An internal network has no way out, nor have names: nobody's but of those who have one by another network.
    fn routes(&self, network: &Network, snapshot: &Snapshot, others: &OtherNetworks) -> Routes {
        let leads_out = |networks: &BTreeSet<NetworkId>| {
            networks.iter().any(|id| snapshot.networks.get(id).is_some_and(|network| !network.internal))
        };
        let only = network.internal.then(|| {
            let on_others = others.get(&network.id).into_iter().flatten();
            let on_others =
                on_others.filter(|(_, networks)| leads_out(networks)).map(|(address, _)| *address);
            on_others.chain(self.neighbours.of_docker(network.id)).collect()
        });
        let upstreams = |resolvers: &[Resolver]| -> Vec<Upstream> {
            resolvers.iter().map(|resolver| upstream(network, *resolver)).collect()
        };
        let domains = network.dns.domains.iter();
        let domains: Vec<_> =
            domains.map(|(domain, resolvers)| (domain.to_string(), upstreams(resolvers))).collect();
        // A resolver is asked in one network, and may ask in any of its own, by either family.
        let addresses = |upstream: &Upstream| {
            let network = upstream.network.into_iter();
            network.flat_map(|id| self.neighbours.addresses_beside(id, upstream.address.ip())).collect()
        };
        Routes::new(&domains, &upstreams(&network.dns.upstreams), only, addresses)
    }

    fn routes_now(&self) -> Vec<Arc<Routes>> {
        self.served.values().map(|served| served.view.routes.load_full()).collect()
    }

    fn start(&mut self, at: Place, sockets: &Descriptors, view: Arc<View>) -> io::Result<()> {
        let [udp, tcp] = &sockets[..] else { return Err(io::Error::other("two sockets are needed")) };
        let (udp, tcp) = (UdpSocket::from(udp.try_clone()?), TcpListener::from(tcp.try_clone()?));
        let server = Server { udp, tcp, view, forwarder: Arc::clone(&self.forwarder), idle: Server::IDLE };
        let cancel = CancellationToken::new();
        let (stop, of) = (cancel.clone(), Arc::clone(sockets));
        self.servers.spawn(async move { (at, of, server.run(stop).await) });
        self.running.insert(at, Running { sockets: Arc::clone(sockets), cancel });
        Ok(())
    }

    /// Forgets servers that ended; those that failed need other sockets.
    fn reap(&mut self) -> Vec<Place> {
        let mut failed = Vec::new();
        while let Some(ended) = self.servers.try_join_next() {
            let Ok((at, sockets, Err(err))) = ended else { continue };
            tracing::error!(place = ?at, %err, "name server failed");
            if self.running.get(&at).is_some_and(|running| Arc::ptr_eq(&running.sockets, &sockets)) {
                self.running.remove(&at);
                failed.push(at);
            }
        }
        failed
    }

    /// Forwards to the host's resolvers, as they are now. While the file is gone or names none, as it may be for a moment when
    /// somebody writes it, those that it named are asked.
    fn follow_resolvers(&mut self, snapshot: &Snapshot, held: &Held) {
        let text = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        // Asking ourselves would go round in circles.
        let gateways = snapshot.networks.values().flat_map(|network| network.gateways());
        let host = held.keys().filter_map(|place| match place {
            Place::HostNames(address) if address.port() == PORT => Some(address.ip()),
            _ => None,
        });
        let now = (text, gateways.chain(host).collect());
        if self.resolvers_of.as_ref() != Some(&now) {
            let resolvers: Vec<SocketAddr> = match &self.upstreams[..] {
                [] => parse_resolv_conf(&now.0, &now.1, |name| if_nametoindex(name).ok()),
                given => given.iter().map(|resolver| resolver.address()).collect(),
            };
            if !resolvers.is_empty() {
                self.look_is_due |= self.forwarder.set_host(&resolvers);
            }
            self.resolvers_of = Some(now);
        }
    }

    /// Who asks from which addresses is one of the host's own processes.
    fn follow_addresses(&self, held: &Held) {
        let Source::Host { addresses: told, .. } = &self.host.names else { return };
        if !held.keys().any(|place| matches!(place, Place::HostNames(_))) {
            return;
        }
        match nix::ifaddrs::getifaddrs() {
            Ok(found) => {
                let addresses = found.filter_map(|interface| address_of(interface.address.as_ref()?));
                told.store(Arc::new(addresses.collect()));
            }
            Err(err) => tracing::warn!(%err, "the host's addresses can't be read"),
        }
    }

    fn look_for_loops(&mut self) {
        let now = self.look_is_due;
        let due = |(at, looking): &(Instant, JoinHandle<()>)| {
            looking.is_finished() && (now || at.elapsed() >= LOOK_FOR_LOOPS)
        };
        if self.running.is_empty() || !self.loops.as_ref().is_none_or(due) {
            return;
        }
        self.look_is_due = false;
        let forwarder = Arc::clone(&self.forwarder);
        let routes = self.routes_now();
        let looking = tokio::spawn(async move {
            let routes: Vec<&Routes> = routes.iter().map(AsRef::as_ref).collect();
            forwarder.look_for_loops(&routes).await;
        });
        self.loops = Some((Instant::now(), looking));
    }
}

impl Served {
    fn publish(&mut self) {
        if let Some(table) = self.zone.news() {
            self.published.store(Arc::new(table));
        }
    }
}

fn address_of(address: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

/// Of all networks, here or not.
fn subnets(snapshot: &Snapshot) -> impl Iterator<Item = IpNetwork> {
    snapshot.networks.values().flat_map(|network| network.prefixes())
}

/// A resolver with an address of the network is asked there, any other from the host.
fn upstream(network: &Network, resolver: Resolver) -> Upstream {
    let address = resolver.address();
    Upstream { address, network: network.subnet_of(address.ip()).map(|_| network.id) }
}

fn upstream_view((upstream, condition): (Upstream, Condition)) -> UpstreamView {
    let state = match condition {
        Condition::Good => UpstreamState::Good,
        Condition::Silent => UpstreamState::Silent,
        Condition::Loops => UpstreamState::Loops,
    };
    UpstreamView { address: upstream.address, network: upstream.network, state }
}

fn shown(counts: Counts) -> DnsCounts {
    let Counts { udp, tcp, answered, refused, cached, forwarded, failed, limited, dropped } = counts;
    DnsCounts { udp, tcp, answered, refused, cached, forwarded, failed, limited, dropped }
}
