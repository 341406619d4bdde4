//! A network's names in the making. A zone knows what each name comes from, so that a change costs what it touches.

use crate::{
    name::encode,
    table::{DOMAIN, Port, Records, Table, Task},
};
use mesh_model::{
    Endpoint, EndpointId, EndpointMode, Key, Network, NetworkId, NodeId, Protocol, Service, ServiceId,
    Snapshot,
};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

/// Seconds in the SOA's timers; the last of them bounds how long a negative answer is kept.
const SOA_TIMERS: [u32; 4] = [5; 4];

/// The names of one network, kept up with the state.
#[derive(Debug)]
pub struct Zone {
    network: Arc<Network>,
    /// `.NETWORK.mesh.internal` in wire form, with the root.
    suffix: Box<[u8]>,
    /// Whose each name is, by key.
    owners: HashMap<Arc<[u8]>, Vec<Owner>>,
    services: HashMap<ServiceId, Arc<Service>>,
    endpoints: HashMap<EndpointId, Arc<Endpoint>>,
    replicas: HashMap<ServiceId, BTreeSet<EndpointId>>,
    table: Table,
    /// Whether the table differs from the one that was last taken.
    has_news: bool,
}

/// Whose a name is, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Service(ServiceId),
    /// It stands for the service's backends.
    Tasks(ServiceId),
    Alias(ServiceId),
    Endpoint(EndpointId),
    EndpointAlias(EndpointId),
}

/// What a change touches.
#[derive(Default)]
struct Touched {
    services: BTreeSet<ServiceId>,
    endpoints: BTreeSet<EndpointId>,
    nodes: BTreeSet<NodeId>,
}

impl Zone {
    /// The names of a network; none if the snapshot has no such network.
    pub fn new(snapshot: &Snapshot, network: NetworkId) -> Option<Self> {
        let network = snapshot.networks.get(&network)?;
        let label = label(network);
        let mut zone = Self {
            network: Arc::clone(network),
            suffix: [&label, DOMAIN, &[0]].concat().into(),
            owners: HashMap::new(),
            services: HashMap::new(),
            endpoints: HashMap::new(),
            replicas: HashMap::new(),
            table: Table::empty(&label.to_ascii_lowercase()),
            has_news: true,
        };
        zone.table.set_soa(soa(snapshot.revision));
        zone.table.set_subnets(network.prefixes().collect());
        let endpoints = snapshot.endpoints.values().filter(|endpoint| endpoint.network == network.id);
        let all = Touched {
            services: snapshot.services.keys().copied().collect(),
            endpoints: endpoints.map(|endpoint| endpoint.id).collect(),
            nodes: BTreeSet::new(),
        };
        zone.follow(snapshot, &all);
        Some(zone)
    }

    /// Follows to another state, given the records that may differ; that of a node stands for its liveness too. False if the
    /// network is gone.
    pub fn update<'k>(&mut self, snapshot: &Snapshot, changed: impl IntoIterator<Item = &'k Key>) -> bool {
        let Some(network) = snapshot.networks.get(&self.network.id) else { return false };
        if network.name != self.network.name {
            return Self::new(snapshot, network.id).map(|zone| *self = zone).is_some();
        }
        if !Arc::ptr_eq(network, &self.network) {
            self.network = Arc::clone(network);
            self.table.set_subnets(network.prefixes().collect());
            self.has_news = true;
        }
        let mut touched = Touched::default();
        for key in changed {
            match key {
                Key::Service(id) => drop(touched.services.insert(*id)),
                Key::Endpoint(id) | Key::Health(id) => drop(touched.endpoints.insert(*id)),
                Key::Node(id) => drop(touched.nodes.insert(*id)),
                Key::Cluster | Key::Network(_) | Key::Released(_) | Key::Leader => {}
            }
        }
        self.follow(snapshot, &touched);
        true
    }

    /// The names as they are now.
    pub fn table(&self) -> Table {
        self.table.clone()
    }

    /// The names, if they may be others than when this was last called.
    pub fn news(&mut self) -> Option<Table> {
        std::mem::take(&mut self.has_news).then(|| self.table())
    }

    fn follow(&mut self, snapshot: &Snapshot, touched: &Touched) {
        let mut names = HashSet::new();
        let mut services = touched.services.clone();
        // What was goes first: a name or an address of it may be another's now.
        for id in &touched.services {
            if let Some(service) = self.services.remove(id) {
                self.point(service.vips(self.network.id), None);
                self.disown(names_of_service(&service), &mut names);
            }
        }
        for id in &touched.endpoints {
            if let Some(endpoint) = self.endpoints.remove(id) {
                self.point(&endpoint.addresses, None);
                self.disown(names_of_endpoint(&endpoint), &mut names);
                services.extend(endpoint.service);
                if let Some(replicas) = endpoint.service.and_then(|id| self.replicas.get_mut(&id)) {
                    replicas.remove(id);
                }
            }
        }
        for id in &touched.services {
            let service = snapshot.services.get(id).filter(|service| service.is_on(self.network.id));
            if let Some(service) = service {
                self.point(service.vips(self.network.id), Some(&service.name));
                self.own(names_of_service(service), &mut names);
                self.services.insert(*id, Arc::clone(service));
            }
            // Whether their service has a check, or is there at all, counts for each.
            for replica in self.replicas.get(id).into_iter().flatten() {
                names.extend(
                    self.endpoints.get(replica).into_iter().flat_map(|of| keys(names_of_endpoint(of))),
                );
            }
        }
        for id in &touched.endpoints {
            let endpoint = snapshot.endpoints.get(id).filter(|endpoint| endpoint.network == self.network.id);
            if let Some(endpoint) = endpoint {
                self.point(&endpoint.addresses, Some(&endpoint.name));
                self.own(names_of_endpoint(endpoint), &mut names);
                self.endpoints.insert(*id, Arc::clone(endpoint));
                services.extend(endpoint.service);
                if let Some(service) = endpoint.service {
                    self.replicas.entry(service).or_default().insert(*id);
                }
            }
        }
        if !touched.nodes.is_empty() {
            for endpoint in self.endpoints.values().filter(|e| touched.nodes.contains(&e.node)) {
                names.extend(keys(names_of_endpoint(endpoint)));
                services.extend(endpoint.service);
            }
        }
        for service in services.iter().filter_map(|id| self.services.get(id)) {
            names.extend(keys(names_of_service(service)));
        }
        self.replicas.retain(|_, replicas| !replicas.is_empty());
        if names.is_empty() {
            return;
        }
        for name in names {
            let records = self.records(snapshot, &name);
            self.table.set(name, records);
        }
        // The serial is that of the zone's last change (RFC 1034, 4.3.5).
        self.table.set_soa(soa(snapshot.revision));
        self.has_news = true;
    }

    fn own(&mut self, owned: impl Iterator<Item = (Arc<[u8]>, Owner)>, names: &mut HashSet<Arc<[u8]>>) {
        for (name, owner) in owned {
            self.owners.entry(Arc::clone(&name)).or_default().push(owner);
            names.insert(name);
        }
    }

    fn disown(&mut self, owned: impl Iterator<Item = (Arc<[u8]>, Owner)>, names: &mut HashSet<Arc<[u8]>>) {
        for (name, owner) in owned {
            if let Some(owners) = self.owners.get_mut(&name) {
                owners.retain(|other| *other != owner);
                if owners.is_empty() {
                    self.owners.remove(&name);
                }
            }
            names.insert(name);
        }
    }

    fn point(&mut self, addresses: &[IpAddr], name: Option<&str>) {
        let name: Option<Arc<[u8]>> = name.and_then(|name| self.whole(name)).map(Arc::from);
        addresses.iter().for_each(|address| self.table.point(*address, name.clone()));
    }

    /// What a name stands for, if it is one.
    fn records(&self, snapshot: &Snapshot, name: &[u8]) -> Option<Records> {
        let owners = self.owners.get(name)?;
        let has = |kind: fn(&Owner) -> bool| owners.iter().any(kind);
        let is_services_own = has(|owner| matches!(owner, Owner::Service(_) | Owner::Tasks(_)));
        let is_services = is_services_own || has(|owner| matches!(owner, Owner::Alias(_)));
        let (mut addresses, mut ports) = (BTreeSet::new(), Vec::new());
        for owner in owners {
            match owner {
                // An alias does not add to another service's own name.
                Owner::Alias(_) if is_services_own => {}
                Owner::Service(id) | Owner::Alias(id) => {
                    let Some(service) = self.services.get(id) else { continue };
                    let backends = self.backends(snapshot, *id);
                    match service.endpoint_mode {
                        EndpointMode::Vip => addresses.extend(service.vips(self.network.id)),
                        EndpointMode::Dnsrr => addresses.extend(addresses_of(&backends)),
                    }
                    merge(&mut ports, self.ports(service, &backends));
                }
                Owner::Tasks(id) => addresses.extend(addresses_of(&self.backends(snapshot, *id))),
                // One that goes by a service's name must not take clients past that service's balancing and checks.
                Owner::Endpoint(_) | Owner::EndpointAlias(_) if is_services => {}
                Owner::Endpoint(id) | Owner::EndpointAlias(id) => {
                    let Some(endpoint) = self.endpoints.get(id) else { continue };
                    let is_alias = matches!(owner, Owner::EndpointAlias(_));
                    if answers(snapshot, endpoint, is_alias) {
                        addresses.extend(&endpoint.addresses);
                    }
                }
            }
        }
        Some(Records::new(&addresses, ports))
    }

    fn backends(&self, snapshot: &Snapshot, service: ServiceId) -> Vec<&Endpoint> {
        let replicas = self.replicas.get(&service).into_iter().flatten();
        let endpoints = replicas.filter_map(|id| self.endpoints.get(id)).map(AsRef::as_ref);
        endpoints.filter(|endpoint| snapshot.takes_traffic(endpoint)).collect()
    }

    /// The service's target ports, each with its backends.
    fn ports(&self, service: &Service, backends: &[&Endpoint]) -> Vec<Port> {
        if service.ports.is_empty() {
            return Vec::new();
        }
        let task = |endpoint: &&Endpoint| {
            Some(Task { name: self.whole(&endpoint.name)?, addresses: endpoint.addresses.clone() })
        };
        let tasks: Arc<[Task]> = backends.iter().filter_map(task).collect();
        let numbers: BTreeSet<_> =
            service.ports.iter().map(|port| (port.protocol == Protocol::Udp, port.target)).collect();
        numbers.into_iter().map(|(udp, number)| Port { udp, number, tasks: tasks.clone() }).collect()
    }

    fn whole(&self, name: &str) -> Option<Box<[u8]>> {
        Some([&encode(name)?, &self.suffix[..]].concat().into())
    }
}

/// Whether an endpoint is found by one of its names.
fn answers(snapshot: &Snapshot, endpoint: &Endpoint, by_alias: bool) -> bool {
    if by_alias {
        let stands_alone = endpoint.service.is_none_or(|id| !snapshot.services.contains_key(&id));
        stands_alone || snapshot.takes_traffic(endpoint)
    } else {
        snapshot.health_of(endpoint).is_in()
    }
}

fn names_of_service(service: &Service) -> impl Iterator<Item = (Arc<[u8]>, Owner)> {
    let own = [(key(&service.name), Owner::Service(service.id))];
    let tasks = [(key(&format!("tasks.{}", service.name)), Owner::Tasks(service.id))];
    let aliases = service.aliases.iter().map(|alias| (key(alias), Owner::Alias(service.id)));
    own.into_iter().chain(tasks).chain(aliases).filter_map(|(name, owner)| Some((name?, owner)))
}

fn names_of_endpoint(endpoint: &Endpoint) -> impl Iterator<Item = (Arc<[u8]>, Owner)> {
    let own = [(key(&endpoint.name), Owner::Endpoint(endpoint.id))];
    let aliases = endpoint.aliases.iter().map(|alias| (key(alias), Owner::EndpointAlias(endpoint.id)));
    own.into_iter().chain(aliases).filter_map(|(name, owner)| Some((name?, owner)))
}

fn keys(owned: impl Iterator<Item = (Arc<[u8]>, Owner)>) -> impl Iterator<Item = Arc<[u8]>> {
    owned.map(|(name, _)| name)
}

fn addresses_of(endpoints: &[&Endpoint]) -> impl Iterator<Item = IpAddr> {
    endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter().copied())
}

/// A dotted text as a key.
fn key(text: &str) -> Option<Arc<[u8]>> {
    encode(&text.to_ascii_lowercase()).map(Arc::from)
}

/// The network's name in wire form, or its ID if DNS can't express the name.
fn label(network: &Network) -> Vec<u8> {
    encode(&network.name).or_else(|| encode(&network.id.to_string())).unwrap_or_default()
}

/// Adds a service's ports to those of others with the same name.
fn merge(ports: &mut Vec<Port>, added: Vec<Port>) {
    for port in added {
        match ports.iter_mut().find(|p| p.udp == port.udp && p.number == port.number) {
            Some(same) => same.tasks = same.tasks.iter().chain(port.tasks.iter()).cloned().collect(),
            None => ports.push(port),
        }
    }
}

/// Data of an SOA record (RFC 1035, 3.3.13): primary server, mailbox, serial, refresh, retry, expire, minimum.
pub(crate) fn soa(revision: u64) -> Arc<[u8]> {
    let mut data = [DOMAIN, b"\x00\x0ahostmaster", DOMAIN, b"\x00"].concat();
    data.extend((revision as u32).to_be_bytes());
    data.extend(SOA_TIMERS.into_iter().flat_map(u32::to_be_bytes));
    data.into()
}
