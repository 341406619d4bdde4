//! What is published and where it leads, for the ports that processes serve: a pure function of the snapshot.

use mesh_model::{
    Balance, Endpoint, EndpointId, Name, NetworkId, Node, NodeId, Protocol, ProxyProtocol, PublishMode,
    PublishedPort, Service, ServiceId, Snapshot, slots,
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// Where a node must listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenAddr {
    /// The only address; all addresses of the node if absent.
    pub ip: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

/// One replica that takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The network that it is reached by.
    pub network: NetworkId,
    /// Its address and the target port.
    pub addr: SocketAddr,
}

/// One service on one published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where it is published.
    pub listen: ListenAddr,
    /// What is spoken there.
    pub protocol: Protocol,
    /// The header that replicas are sent first, if any.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The service.
    pub service: ServiceId,
    /// Its name.
    pub name: Name,
    /// Port of the replicas.
    pub target: u16,
    /// How backends are chosen.
    pub balance: Balance,
    /// Replicas that take traffic, in the order of their endpoints' IDs.
    pub backends: Vec<Backend>,
    /// How many requests each of them is to have, relative to the others; empty if all are alike.
    pub shares: Vec<u32>,
    /// By `source`: which of them a client's slot leads to.
    pub slots: Vec<usize>,
}

/// Every published port of one node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes {
    routes: Vec<Arc<Route>>,
    replicas: Arc<BTreeSet<EndpointId>>,
}

impl Routes {
    /// The routes of node `me`.
    pub fn new(snapshot: &Snapshot, me: NodeId) -> Self {
        let node = snapshot.nodes.get(&me).map(Arc::as_ref);
        let replicas = snapshot.backends_by_service(|_| true);
        let mut routes = Vec::new();
        for service in snapshot.services.values() {
            let Some(network) = service.ingress_network() else { continue };
            let healthy = replicas.get(&(service.id, network)).map_or(&[][..], Vec::as_slice);
            let published = snapshot.published_on(service, me);
            for port in published {
                let local = port.mode == PublishMode::Host
                    || service.prefer_local && healthy.iter().any(|endpoint| endpoint.node == me);
                let healthy = healthy.iter().filter(|e| !local || e.node == me);
                let reachable = healthy.filter_map(|e| Some((*e, backend(e, port, node)?)));
                let (endpoints, backends): (Vec<&Arc<Endpoint>>, Vec<_>) = reachable.unzip();
                let mut shares: Vec<u32> = endpoints.iter().map(|e| snapshot.share_of(e)).collect();
                let mut owners = Vec::new();
                if service.balance == Balance::Source {
                    let weighed: Vec<_> = endpoints.iter().map(|e| (e.id, e.weight)).collect();
                    owners = slots::owners(&weighed);
                }
                if service.balance == Balance::Source || shares.windows(2).all(|pair| pair[0] == pair[1]) {
                    shares.clear();
                }
                routes.push(Arc::new(Route { backends, shares, slots: owners, ..route(service, port) }));
            }
        }
        let replicas = snapshot.endpoints.values().filter(|endpoint| endpoint.service.is_some());
        Self { routes, replicas: Arc::new(replicas.map(|replica| replica.id).collect()) }
    }

    /// Every service on every port.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.routes.iter()
    }

    /// Every replica that there is, whether it takes traffic or not.
    pub fn replicas(&self) -> &Arc<BTreeSet<EndpointId>> {
        &self.replicas
    }

    /// Every backend, once.
    pub fn backends(&self) -> BTreeSet<Backend> {
        self.routes.iter().flat_map(|route| route.backends.iter().copied()).collect()
    }
}

/// Without backends.
fn route(service: &Service, port: &PublishedPort) -> Route {
    Route {
        listen: ListenAddr { ip: port.ip, port: port.published },
        protocol: port.protocol,
        proxy_protocol: port.proxy_protocol,
        service: service.id,
        name: service.name.clone(),
        target: port.target,
        balance: service.balance,
        backends: Vec::new(),
        shares: Vec::new(),
        slots: Vec::new(),
    }
}

fn backend(endpoint: &Endpoint, port: &PublishedPort, node: Option<&Node>) -> Option<Backend> {
    let ip = reachable_address(endpoint, node)?;
    let addr = SocketAddr::new(ip, port.target);
    Some(Backend { endpoint: endpoint.id, network: endpoint.network, addr })
}

/// The first address of a family that the node itself has an overlay address of, which its sockets start from.
pub(crate) fn reachable_address(endpoint: &Endpoint, node: Option<&Node>) -> Option<IpAddr> {
    let own = node.map_or(&[][..], |node| &node.addresses);
    let same_family = |ip: &&IpAddr| own.iter().any(|own| own.is_ipv4() == ip.is_ipv4());
    endpoint.addresses.iter().find(same_family).or_else(|| endpoint.addresses.first()).copied()
}
