//! The kernel objects that this crate owns, as plain data: what `desired` says, `actual` reads, `plan` compares.

use ipnetwork::IpNetwork;
use mesh_model::{EndpointId, MacAddr, NetworkId};
use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
};

/// The network namespace that an object is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// The host's own.
    Host,
    /// The one of an overlay network.
    Overlay(NetworkId),
    /// The one that an endpoint is attached to.
    Target(EndpointId),
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("the host"),
            Self::Overlay(network) => write!(f, "network {network}"),
            Self::Target(endpoint) => write!(f, "the target of endpoint {endpoint}"),
        }
    }
}

/// An interface name: at most 15 bytes (IFNAMSIZ with its final zero is 16).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ifname {
    bytes: [u8; 15],
    len: u8,
}

impl Ifname {
    /// The name, if the kernel would take it (`dev_valid_name`).
    pub fn new(name: &str) -> Option<Self> {
        let valid = !matches!(name, "" | "." | "..")
            && name.len() <= 15
            && !name.bytes().any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace() || b == 0);
        if !valid {
            return None;
        }
        let mut bytes = [0; 15];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Some(Self { bytes, len: name.len() as u8 })
    }

    /// A name made of a short prefix and a number that fits by construction.
    pub(crate) fn derived(prefix: &str, suffix: impl fmt::Display) -> Self {
        let name = format!("{prefix}{suffix}");
        Self::new(&name).unwrap_or_else(|| unreachable!("{name} is too long for an interface"))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.len.into()]).unwrap_or_default()
    }
}

impl fmt::Display for Ifname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Ifname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What tells a link from one that would have to be made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LinkKind {
    /// A bridge that floods multicast to all ports (neighbour discovery must reach every one).
    Bridge,
    /// VXLAN (RFC 7348) that learns nothing and answers ARP and ND itself. Its UDP socket is in the host namespace.
    Vxlan {
        /// Network identifier.
        vni: u32,
        /// Underlay address of this node.
        local: IpAddr,
        /// UDP port on every node.
        port: u16,
    },
    /// One end of a veth pair.
    Veth,
    /// Of no kind that is made here; never desired, so that one in our place is replaced.
    Foreign,
}

/// A network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    /// What it is.
    pub kind: LinkKind,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The switches that can be turned while it lives are as they should be: a bridge without STP and without multicast
    /// snooping, a VXLAN that learns nothing.
    pub switches: bool,
}

impl Link {
    /// A link as it should be.
    pub fn new(kind: LinkKind, mac: MacAddr, mtu: u32) -> Self {
        Self { kind, mac, mtu, switches: true }
    }
}

/// How a port of a bridge works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMode {
    /// Frames may go back out by where they came in.
    pub hairpin: bool,
    /// The senders of frames are taken to be behind the port.
    pub learning: bool,
    /// Frames for a MAC address that the bridge does not know go out here.
    pub flood: bool,
    /// Frames for all and for groups go out here: what is asked by ARP and neighbour discovery.
    pub groups: bool,
    /// The bridge answers ARP and neighbour discovery itself, and such frames do not go out here.
    pub suppress: bool,
    /// No frames go from here to other ports that are isolated.
    pub isolated: bool,
}

impl PortMode {
    /// The port of a container: it gets its own frames and says nothing about where others are.
    pub const CONTAINER: Self = Self {
        hairpin: false,
        learning: false,
        flood: false,
        groups: true,
        suppress: false,
        isolated: false,
    };
    /// The port of the VXLAN link, which knows who is on other nodes.
    pub const TUNNEL: Self = Self { flood: true, ..Self::CONTAINER };
}

/// Where packets of a route go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The router; none: the destination is on the link itself. An IPv4 route may have an IPv6 one (RTA_VIA).
    pub via: Option<IpAddr>,
    /// The interface.
    pub link: Ifname,
    /// The IPv4 address that packets bear which have none yet; none: the kernel chooses one of the interface.
    pub source: Option<Ipv4Addr>,
}

impl NextHop {
    /// The link itself.
    pub(crate) fn on(link: Ifname) -> Self {
        Self { via: None, link, source: None }
    }

    /// A router behind a link.
    pub(crate) fn via(router: impl Into<IpAddr>, link: Ifname) -> Self {
        Self { via: Some(router.into()), ..Self::on(link) }
    }
}

/// What a policy routing rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// The firewall mark, in one family.
    Mark {
        /// IPv6, or else IPv4.
        ipv6: bool,
        /// The mark.
        mark: u32,
    },
    /// The source address.
    From(IpAddr),
    /// The prefix of the destination.
    To(IpNetwork),
}

impl Selector {
    /// The family of the packets it looks at.
    pub fn is_ipv6(&self) -> bool {
        match self {
            Self::Mark { ipv6, .. } => *ipv6,
            Self::From(address) => address.is_ipv6(),
            Self::To(prefix) => prefix.is_ipv6(),
        }
    }

    /// Whether it is looked at before others, to save most packets from being compared with those.
    pub fn is_first(&self) -> bool {
        matches!(self, Self::Mark { mark: 0, .. })
    }
}

/// One object, within its space. The order of the variants is the order in which they can be made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// The namespace itself, kept by its bind mount.
    Namespace,
    /// A sysctl below `net.` that holds before any link is made: its path with `/`, and the value.
    Sysctl(String, &'static str),
    /// A link.
    Link(Ifname, Link),
    /// A sysctl of one link: directory (`ipv4/conf`), link, name, value.
    LinkSysctl(&'static str, Ifname, &'static str, &'static str),
    /// A link is up, and a port of a bridge if one is given.
    Up(Ifname, Option<Ifname>),
    /// How a port of a bridge works.
    Port(Ifname, Ifname, PortMode),
    /// A static entry of a bridge: the MAC address that is behind a port, and the bridge. Ports learn none.
    Station(Ifname, Ifname, MacAddr),
    /// An address on a link; IPv6 ones without duplicate address detection. The kernel makes no route of its prefix.
    Address(Ifname, IpNetwork),
    /// A static forwarding entry of a VXLAN link: MAC address to VTEP.
    Fdb(Ifname, MacAddr, IpAddr),
    /// A static neighbour.
    Neighbour(Ifname, IpAddr, MacAddr),
    /// A route: table, destination, next hop.
    Route(u32, IpNetwork, NextHop),
    /// A policy routing rule and the table that it leads to.
    Rule(Selector, u32),
}

/// What identifies an object within its space.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// See [`Object::Namespace`].
    Namespace,
    /// The path.
    Sysctl(String),
    /// The interface.
    Link(Ifname),
    /// Directory, link, name.
    LinkSysctl(&'static str, Ifname, &'static str),
    /// The interface.
    Up(Ifname),
    /// The port.
    Port(Ifname),
    /// Port and MAC address.
    Station(Ifname, MacAddr),
    /// Interface and address.
    Address(Ifname, IpNetwork),
    /// Interface and MAC address.
    Fdb(Ifname, MacAddr),
    /// Interface and address.
    Neighbour(Ifname, IpAddr),
    /// Table and destination.
    Route(u32, IpNetwork),
    /// What is looked at.
    Rule(Selector),
}

impl Object {
    /// What identifies it.
    pub fn name(&self) -> Name {
        match self {
            Self::Namespace => Name::Namespace,
            Self::Sysctl(path, _) => Name::Sysctl(path.clone()),
            Self::Link(link, _) => Name::Link(*link),
            Self::LinkSysctl(directory, link, name, _) => Name::LinkSysctl(directory, *link, name),
            Self::Up(link, _) => Name::Up(*link),
            Self::Port(port, ..) => Name::Port(*port),
            Self::Station(port, _, mac) => Name::Station(*port, *mac),
            Self::Address(link, address) => Name::Address(*link, *address),
            Self::Fdb(link, mac, _) => Name::Fdb(*link, *mac),
            Self::Neighbour(link, address, _) => Name::Neighbour(*link, *address),
            Self::Route(table, destination, _) => Name::Route(*table, *destination),
            Self::Rule(selector, _) => Name::Rule(*selector),
        }
    }

    /// The bridge that it is lost with, though its link is not.
    pub fn bridge(&self) -> Option<Ifname> {
        match self {
            Self::Up(_, bridge) => *bridge,
            Self::Port(_, bridge, _) | Self::Station(_, bridge, _) => Some(*bridge),
            _ => None,
        }
    }

    /// The link that it vanishes with.
    pub fn link(&self) -> Option<Ifname> {
        match self {
            Self::Namespace | Self::Sysctl(..) | Self::Rule(..) => None,
            Self::Link(link, _)
            | Self::LinkSysctl(_, link, ..)
            | Self::Up(link, _)
            | Self::Port(link, ..)
            | Self::Station(link, ..)
            | Self::Address(link, _)
            | Self::Fdb(link, ..)
            | Self::Neighbour(link, ..)
            | Self::Route(_, _, NextHop { link, .. }) => Some(*link),
        }
    }
}

/// An object's place and name.
pub type Key = (Space, Name);

/// Objects of all spaces, each name once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Objects(BTreeMap<Key, Object>);

impl Objects {
    /// Puts an object in its place, whatever was there.
    pub fn put(&mut self, space: Space, object: Object) {
        self.0.insert((space, object.name()), object);
    }

    /// What is at a key.
    pub fn get(&self, key: &Key) -> Option<&Object> {
        self.0.get(key)
    }

    /// Whether there is anything at a key.
    pub fn contains(&self, key: &Key) -> bool {
        self.0.contains_key(key)
    }

    /// All objects in the order in which they can be made, space by space.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Object)> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes an object away, and with a link all that lives on it; with a namespace everything.
    pub fn remove(&mut self, key: &Key) {
        match key {
            (space, Name::Namespace) => self.0.retain(|(at, _), _| at != space),
            (space, Name::Link(link)) => {
                // A port without its bridge is a link without its setting, so that it is set anew.
                let goes = |object: &Object| object.link() == Some(*link) || object.bridge() == Some(*link);
                let inside = self.0.range((*space, Name::Namespace)..).take_while(|((at, _), _)| at == space);
                let gone = inside.filter(|(_, object)| goes(object)).map(|(key, _)| key.clone());
                for key in gone.collect::<Vec<_>>() {
                    self.0.remove(&key);
                }
            }
            other => drop(self.0.remove(other)),
        }
    }

    /// Those of these that are at the keys of others.
    pub fn at<'a>(&self, others: impl Iterator<Item = &'a Objects>) -> Objects {
        let keys = others.flat_map(|others| others.0.keys());
        let found = keys.filter_map(|key| self.0.get_key_value(key));
        Self(found.map(|(key, object)| (key.clone(), object.clone())).collect())
    }

    /// Adds all objects of another set.
    pub fn extend(&mut self, others: Objects) {
        self.0.extend(others.0);
    }

    /// Keeps those that a test holds for.
    pub fn retain(&mut self, mut keep: impl FnMut(&Key, &Object) -> bool) {
        self.0.retain(|key, object| keep(key, object));
    }
}
