//! The names of one network, as its containers see them.

mod records;
mod reverse;
mod shards;

pub(crate) use records::{Port, Records, Task};

use crate::{
    name::{labels, split_first, strip_suffix},
    zone::{Zone, soa},
};
use ipnetwork::IpNetwork;
use mesh_model::{NetworkId, Snapshot};
use shards::Shards;
use std::{net::IpAddr, sync::Arc};

/// The domain above every network's own. Names below it are nobody else's: none is ever forwarded.
pub(crate) const DOMAIN: &[u8] = b"\x04mesh\x08internal";

/// The names of one network. Never changed while it is asked: what changed is a new table, in place of this one, which
/// shares with it what did not ([`Zone`]).
///
/// Known are a service and its aliases (its VIPs, or the addresses of its backends with `dnsrr`), `tasks.SERVICE`
/// (its backends), `_PORT._tcp.SERVICE` and `_PORT._udp.SERVICE` (its backends at one of its target ports), and
/// endpoints with their aliases, each also with `.NETWORK` and `.NETWORK.mesh.internal` behind it; and, in reverse,
/// the addresses of all these. A service's own name stands for it alone; an alias that services share stands for all of them,
/// and so does a name that endpoints share, unless a service has it. A replica that its service's
/// check calls out is withheld, and its aliases are while it drains, but its name remains known, so that it is
/// not asked elsewhere. A name that DNS can't express (`a..b`) is left out; a network of such a name goes by its ID.
#[derive(Debug, Clone)]
pub struct Table {
    /// By key (see [`crate::name`]), without the network's suffix.
    names: Shards<Arc<[u8]>, Arc<Records>>,
    /// Names that have others below them (RFC 8020), and how many: keys, without the network's suffix.
    parents: Shards<Arc<[u8]>, u32>,
    /// The one name that each address has, in wire form.
    pointers: Shards<IpAddr, Arc<[u8]>>,
    /// The network's name as a key.
    network: Arc<[u8]>,
    subnets: Arc<[IpNetwork]>,
    /// Data of the SOA record in negative answers.
    soa: Arc<[u8]>,
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

impl Found<'_> {
    /// Whether there is such a name.
    pub(crate) fn is_something(&self) -> bool {
        !matches!(self, Self::Empty | Self::Missing)
    }
}

impl Table {
    /// The names of a network; none if the snapshot has no such network.
    pub fn new(snapshot: &Snapshot, network: NetworkId) -> Option<Self> {
        Zone::new(snapshot, network).map(|zone| zone.table())
    }

    /// No names yet, of a network whose name is this key.
    pub(crate) fn empty(network: &[u8]) -> Self {
        Self {
            names: Shards::default(),
            parents: Shards::default(),
            pointers: Shards::default(),
            network: network.into(),
            subnets: [].into(),
            soa: soa(0),
        }
    }

    pub(crate) fn set_subnets(&mut self, subnets: Arc<[IpNetwork]>) {
        self.subnets = subnets;
    }

    pub(crate) fn set_soa(&mut self, data: Arc<[u8]>) {
        self.soa = data;
    }

    /// Has a name, given as a key without the network's suffix, stand for something; none: it is no name any more.
    pub(crate) fn set(&mut self, name: Arc<[u8]>, records: Option<Records>) {
        let was_there = self.names.get(&*name).is_some();
        match (records, was_there) {
            (Some(records), _) => {
                if !was_there {
                    self.count_below(&name, |count| count + 1);
                }
                self.names.insert(name, Arc::new(records));
            }
            (None, true) => {
                self.count_below(&name, |count| count - 1);
                self.names.remove(&*name);
            }
            (None, false) => {}
        }
    }

    fn count_below(&mut self, name: &[u8], change: impl Fn(u32) -> u32) {
        for above in parents(name) {
            match change(self.parents.get(above).copied().unwrap_or_default()) {
                0 => self.parents.remove(above),
                count => self.parents.insert(above.into(), count),
            }
        }
    }

    /// Gives an address its name, in wire form; none: it has none any more.
    pub(crate) fn point(&mut self, address: IpAddr, name: Option<Arc<[u8]>>) {
        match name {
            Some(name) => self.pointers.insert(address, name),
            None => self.pointers.remove(&address),
        }
    }

    pub(crate) fn soa(&self) -> &[u8] {
        &self.soa
    }

    /// What is known of a name; none if it is not for us to say.
    pub(crate) fn find(&self, name: &[u8]) -> Option<Lookup<'_>> {
        if strip_suffix(name, DOMAIN).is_some() {
            return self.find_whole(name);
        }
        if let Some(found) = self.find_local(name) {
            return Some(Lookup { found, apex: 0 });
        }
        if let Some(found) = strip_suffix(name, &self.network).and_then(|local| self.find_local(local)) {
            return Some(Lookup { found, apex: 0 });
        }
        self.find_reverse(name)
    }

    /// The same of whole names alone, and of addresses.
    pub(crate) fn find_whole(&self, name: &[u8]) -> Option<Lookup<'_>> {
        match strip_suffix(name, DOMAIN) {
            Some(rest) => Some(Lookup { found: self.find_in_domain(rest), apex: rest.len() }),
            None => self.find_reverse(name),
        }
    }

    /// `rest` is what stands before `.mesh.internal`.
    fn find_in_domain(&self, rest: &[u8]) -> Found<'_> {
        match strip_suffix(rest, &self.network) {
            Some(local) if !local.is_empty() => match self.find_local(local) {
                Some(found) => found,
                None if self.parents.get(local).is_some() => Found::Empty,
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

/// The names above a name, the root aside.
fn parents(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    labels(name).skip(1).map(|(at, _)| &name[at..])
}
