//! Building a table from a snapshot.

use super::{DOMAIN, Port, Records, Table, Task, key, parents};
use crate::name::encode;
use mesh_model::{Endpoint, EndpointMode, Name, Network, Protocol, Service, ServiceId, Snapshot};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

/// Seconds in the SOA's timers; the last of them bounds how long a negative answer is kept.
const SOA_TIMERS: [u32; 4] = [5; 4];

pub(super) fn table(snapshot: &Snapshot, network: &Network) -> Table {
    let services = snapshot.services.values().map(AsRef::as_ref);
    let services: Vec<&Service> = services.filter(|s: &&Service| s.is_on(network.id)).collect();
    let mut builder = Builder {
        network,
        suffix: [&label(network), DOMAIN, &[0]].concat(),
        drafts: HashMap::new(),
        pointers: HashMap::new(),
        names: services.iter().flat_map(|s| [key(&s.name), key(&tasks(s))]).flatten().collect(),
        aliases: services.iter().flat_map(|s| s.aliases.iter().filter_map(|alias| key(alias))).collect(),
    };
    let mut backends: HashMap<ServiceId, Vec<&Endpoint>> = HashMap::new();
    for endpoint in snapshot.endpoints.values().filter(|e| e.network == network.id) {
        builder.endpoint(snapshot, endpoint);
        if let Some(service) = endpoint.service.filter(|_| snapshot.takes_traffic(endpoint)) {
            backends.entry(service).or_default().push(endpoint);
        }
    }
    for service in services {
        builder.service(service, backends.get(&service.id).map_or(&[], Vec::as_slice));
    }
    builder.finish(snapshot.revision)
}

/// The name that stands for a service's backends.
fn tasks(service: &Service) -> String {
    format!("tasks.{}", service.name)
}

/// The network's name in wire form, or its ID if DNS can't express the name.
fn label(network: &Network) -> Vec<u8> {
    encode(&network.name).or_else(|| encode(&network.id.to_string())).unwrap_or_default()
}

struct Builder<'s> {
    network: &'s Network,
    /// `.NETWORK.mesh.internal` in wire form, with the root.
    suffix: Vec<u8>,
    drafts: HashMap<Vec<u8>, Draft>,
    pointers: HashMap<IpAddr, Box<[u8]>>,
    /// What services are called, as keys: nobody else's addresses are found there.
    names: HashSet<Vec<u8>>,
    /// What they are called as well: no endpoint is found there.
    aliases: HashSet<Vec<u8>>,
}

/// Records in the making: several owners may add to them.
#[derive(Default)]
struct Draft {
    addresses: BTreeSet<IpAddr>,
    ports: Vec<Port>,
}

impl Builder<'_> {
    fn endpoint(&mut self, snapshot: &Snapshot, endpoint: &Endpoint) {
        let stands_alone = endpoint.service.is_none_or(|id| !snapshot.services.contains_key(&id));
        self.endpoint_name(endpoint, &endpoint.name, snapshot.health_of(endpoint).is_in());
        for alias in &endpoint.aliases {
            self.endpoint_name(endpoint, alias, stands_alone || snapshot.takes_traffic(endpoint));
        }
        self.pointer(&endpoint.addresses, &endpoint.name);
    }

    /// One that goes by a service's name must not take clients past that service's balancing and checks.
    fn endpoint_name(&mut self, endpoint: &Endpoint, name: &Name, answers: bool) {
        let Some(name) = key(name) else { return };
        let answers = answers && !self.names.contains(&name) && !self.aliases.contains(&name);
        let draft = self.drafts.entry(name).or_default();
        draft.addresses.extend(endpoint.addresses.iter().filter(|_| answers));
    }

    fn service(&mut self, service: &Service, backends: &[&Endpoint]) {
        let vips = service.vips(self.network.id);
        let own: Vec<IpAddr> = backends.iter().flat_map(|e| e.addresses.iter().copied()).collect();
        let ports = self.ports(service, backends);
        // An alias does not add to another service's own name.
        let aliases = service.aliases.iter().filter_map(|alias| key(alias));
        let aliases: Vec<Vec<u8>> = aliases.filter(|alias| !self.names.contains(alias)).collect();
        for name in key(&service.name).into_iter().chain(aliases) {
            let draft = self.drafts.entry(name).or_default();
            draft.addresses.extend(match service.endpoint_mode {
                EndpointMode::Vip => vips,
                EndpointMode::Dnsrr => &own,
            });
            merge(&mut draft.ports, &ports);
        }
        if let Some(name) = key(&tasks(service)) {
            self.drafts.entry(name).or_default().addresses.extend(own);
        }
        self.pointer(vips, &service.name);
    }

    /// The service's target ports, each with its backends.
    fn ports(&self, service: &Service, backends: &[&Endpoint]) -> Vec<Port> {
        let task = |endpoint: &&Endpoint| {
            Some(Task { name: self.whole(&endpoint.name)?, addresses: endpoint.addresses.clone() })
        };
        let tasks: Arc<[Task]> = backends.iter().filter_map(task).collect();
        let numbers: BTreeSet<_> =
            service.ports.iter().map(|port| (port.protocol == Protocol::Udp, port.target)).collect();
        numbers.into_iter().map(|(udp, number)| Port { udp, number, tasks: tasks.clone() }).collect()
    }

    fn pointer(&mut self, addresses: &[IpAddr], name: &str) {
        if let Some(name) = self.whole(name) {
            self.pointers.extend(addresses.iter().map(|address| (*address, name.clone())));
        }
    }

    fn whole(&self, name: &str) -> Option<Box<[u8]>> {
        Some([&encode(name)?, &self.suffix[..]].concat().into())
    }

    fn finish(self, revision: u64) -> Table {
        let drafts = &self.drafts;
        let above = drafts.keys().flat_map(|name| parents(name)).filter(|above| !drafts.contains_key(*above));
        let empty: HashSet<Box<[u8]>> = above.map(Box::from).collect();
        Table {
            empty,
            network: label(self.network).to_ascii_lowercase().into(),
            subnets: self.network.prefixes().collect(),
            soa: soa(revision),
            names: self.drafts.into_iter().map(|(name, draft)| (name.into(), draft.records())).collect(),
            pointers: self.pointers,
        }
    }
}

/// Adds a service's ports to those of others with the same name.
fn merge(ports: &mut Vec<Port>, added: &[Port]) {
    for port in added {
        match ports.iter_mut().find(|p| p.udp == port.udp && p.number == port.number) {
            Some(same) => {
                let both = same.tasks.iter().chain(port.tasks.iter());
                let copy = |t: &Task| Task { name: t.name.clone(), addresses: t.addresses.clone() };
                same.tasks = both.map(copy).collect();
            }
            None => ports.push(port.clone()),
        }
    }
}

impl Draft {
    fn records(self) -> Records {
        let v4 = |address: &IpAddr| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        };
        let v6 = |address: &IpAddr| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(v6) => Some(*v6),
        };
        Records {
            v4: self.addresses.iter().filter_map(v4).collect(),
            v6: self.addresses.iter().filter_map(v6).collect(),
            ports: self.ports.into(),
        }
    }
}

/// Data of an SOA record (RFC 1035, 3.3.13): primary server, mailbox, serial, refresh, retry, expire, minimum.
fn soa(revision: u64) -> Box<[u8]> {
    let mut data = [DOMAIN, b"\x00\x0ahostmaster", DOMAIN, b"\x00"].concat();
    data.extend((revision as u32).to_be_bytes());
    data.extend(SOA_TIMERS.into_iter().flat_map(u32::to_be_bytes));
    data.into()
}
