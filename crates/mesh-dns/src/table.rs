//! The names of one network, as its containers see them.

mod build;
mod reverse;

use crate::name::{encode, labels, split_first, strip_suffix};
use ipnetwork::IpNetwork;
use mesh_model::{NetworkId, Snapshot};
use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

/// The domain above every network's own. Names below it are nobody else's: none is ever forwarded.
const DOMAIN: &[u8] = b"\x04mesh\x08internal";

/// The names of one network. Never changed: what changed is a new table, in place of this one.
///
/// Known are a service and its aliases (its VIPs, or the addresses of its backends with `dnsrr`), `tasks.SERVICE`
/// (its backends), `_PORT._tcp.SERVICE` and `_PORT._udp.SERVICE` (its backends at one of its target ports), and
/// endpoints with their aliases, each also with `.NETWORK` and `.NETWORK.mesh.internal` behind it; and, in reverse,
/// the addresses of all these. A service's own name stands for it alone; an alias that services share stands for all of them,
/// and so does a name that endpoints share, unless a service has it. A replica that its service's
/// check calls out is withheld, and its aliases are while it drains, but its name remains known, so that it is
/// not asked elsewhere. A name that DNS can't express (`a..b`) is left out; a network of such a name goes by its ID.
#[derive(Debug)]
pub struct Table {
    /// By key (see [`crate::name`]), without the network's suffix.
    names: HashMap<Box<[u8]>, Records>,
    /// Names that are not there but have others below them (RFC 8020): keys, without the network's suffix.
    empty: HashSet<Box<[u8]>>,
    /// The one name that each address has, in wire form.
    pointers: HashMap<IpAddr, Box<[u8]>>,
    /// The network's name as a key.
    network: Box<[u8]>,
    subnets: Vec<IpNetwork>,
    /// Data of the SOA record in negative answers.
    soa: Box<[u8]>,
}

/// What a name stands for.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) v4: Box<[Ipv4Addr]>,
    pub(crate) v6: Box<[Ipv6Addr]>,
    /// The target ports of the services of this name.
    ports: Box<[Port]>,
}

#[derive(Debug, Clone)]
struct Port {
    udp: bool,
    number: u16,
    tasks: Arc<[Task]>,
}

/// A backend of a service.
#[derive(Debug)]
pub(crate) struct Task {
    /// Its whole name, in wire form.
    pub(crate) name: Box<[u8]>,
    pub(crate) addresses: Vec<IpAddr>,
}

/// What is known of a name for which we are the authority.
#[derive(Clone, Copy)]
pub(crate) struct Lookup<'t> {
    pub(crate) found: Found<'t>,
    /// Where, within the name, the name of its zone starts.
    pub(crate) apex: usize,
}

/// What is at a name.
#[derive(Clone, Copy)]
pub(crate) enum Found<'t> {
    /// A service or endpoint.
    Records(&'t Records),
    /// A port of a service, and who serves it.
    Tasks(u16, &'t [Task]),
    /// An address of this whole name.
    Pointer(&'t [u8]),
    /// Nothing, but there are names below it.
    Empty,
    /// There is no such name.
    Missing,
}

impl Table {
    /// The names of a network; none if the snapshot has no such network.
    pub fn new(snapshot: &Snapshot, network: NetworkId) -> Option<Self> {
        snapshot.networks.get(&network).map(|network| build::table(snapshot, network))
    }

    pub(crate) fn soa(&self) -> &[u8] {
        &self.soa
    }

    /// What is known of a name; none if it is not for us to say.
    pub(crate) fn find(&self, name: &[u8]) -> Option<Lookup<'_>> {
        if let Some(rest) = strip_suffix(name, DOMAIN) {
            return Some(Lookup { found: self.find_in_domain(rest), apex: rest.len() });
        }
        if let Some(found) = self.find_local(name) {
            return Some(Lookup { found, apex: 0 });
        }
        if let Some(found) = strip_suffix(name, &self.network).and_then(|local| self.find_local(local)) {
            return Some(Lookup { found, apex: 0 });
        }
        self.find_reverse(name)
    }

    /// `rest` is what stands before `.mesh.internal`.
    fn find_in_domain(&self, rest: &[u8]) -> Found<'_> {
        match strip_suffix(rest, &self.network) {
            Some(local) if !local.is_empty() => match self.find_local(local) {
                Some(found) => found,
                None if self.empty.contains(local) => Found::Empty,
                None => Found::Missing,
            },
            // The domain, the network, or what is between them if its name has dots.
            _ if strip_suffix(&self.network, rest).is_some() => Found::Empty,
            _ => Found::Missing,
        }
    }

    /// `name` has no suffix of ours any more.
    fn find_local(&self, name: &[u8]) -> Option<Found<'_>> {
        match self.names.get(name) {
            Some(records) => Some(Found::Records(records)),
            None if name.get(1) == Some(&b'_') => self.find_port(name),
            None => None,
        }
    }

    /// `_PORT._tcp.SERVICE`, `_PORT._udp.SERVICE` and what is between them and the service.
    fn find_port(&self, name: &[u8]) -> Option<Found<'_>> {
        let (first, rest) = split_first(name)?;
        if let Some(udp) = transport(first) {
            let ports = &self.names.get(rest)?.ports;
            let any = ports.iter().any(|port| port.udp == udp);
            return Some(if any { Found::Empty } else { Found::Missing });
        }
        let (second, owner) = split_first(rest)?;
        let udp = transport(second)?;
        let ports = &self.names.get(owner)?.ports;
        // Anything else below a name of ours does not exist; it is nothing to ask others for.
        let wanted = port_number(first);
        let port = ports.iter().find(|port| port.udp == udp && Some(port.number) == wanted);
        Some(port.map_or(Found::Missing, |port| Found::Tasks(port.number, &port.tasks)))
    }

    /// Names of our own subnets' addresses (`in-addr.arpa`, `ip6.arpa`).
    fn find_reverse(&self, name: &[u8]) -> Option<Lookup<'_>> {
        let prefix = reverse::Prefix::parse(name)?;
        let apex = prefix.apex(&self.subnets)?;
        let found = match prefix.address() {
            Some(address) => self.pointers.get(&address).map_or(Found::Missing, |name| Found::Pointer(name)),
            None if prefix.is_whole() => Found::Empty,
            None => Found::Missing,
        };
        Some(Lookup { found, apex })
    }
}

/// Whether a label says `_udp` rather than `_tcp`, if it is either.
fn transport(label: &[u8]) -> Option<bool> {
    match label {
        b"_tcp" => Some(false),
        b"_udp" => Some(true),
        _ => None,
    }
}

/// The number in `_80`, as written in its one way.
fn port_number(label: &[u8]) -> Option<u16> {
    let digits = label.strip_prefix(b"_")?;
    let plain = digits.first().is_some_and(|b| matches!(b, b'1'..=b'9'));
    let text = std::str::from_utf8(digits).ok().filter(|_| plain)?;
    text.parse().ok()
}

/// A dotted text as a key.
fn key(text: &str) -> Option<Vec<u8>> {
    encode(&text.to_ascii_lowercase())
}

/// The names above a name, the root aside.
fn parents(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    labels(name).skip(1).map(|(at, _)| &name[at..])
}
