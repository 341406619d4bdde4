//! What the kernel of one node should hold, derived from the cluster's state. Pure.

mod endpoint;
mod network;

use crate::object::{Ifname, NextHop, Object, Objects, Space};
use crate::scope::Scope;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use mesh_model::{Endpoint, EndpointId, MacAddr, NetworkId, Node, Snapshot};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The main routing table (`RT_TABLE_MAIN`).
pub(crate) const MAIN_TABLE: u32 = 254;
/// First number of meshd's own routing tables.
const TABLES: u32 = 0x6d00_0000;

/// The bridge of each overlay namespace.
pub fn bridge() -> Ifname {
    Ifname::derived("br0", "")
}

/// The end of the uplink inside each overlay namespace.
pub fn inner_uplink() -> Ifname {
    Ifname::derived("up0", "")
}

/// The end of a network's uplink in the host namespace.
pub fn uplink(vni: u32) -> Ifname {
    Ifname::derived("up", vni)
}

/// The VXLAN link of a network, in its overlay namespace.
pub fn vxlan(vni: u32) -> Ifname {
    Ifname::derived("vx", vni)
}

/// The bridge port of an endpoint: `p` and the first 14 digits of its ID.
pub fn port(endpoint: EndpointId) -> Ifname {
    Ifname::derived("p", format_args!("{:014x}", endpoint.bits() >> 8))
}

/// The interface of an endpoint that waits in the host's namespace for its container's engine to fetch it: `m` and the
/// first 14 digits of its ID.
pub fn staged(endpoint: EndpointId) -> Ifname {
    Ifname::derived("m", format_args!("{:014x}", endpoint.bits() >> 8))
}

/// The MAC address of a network's uplink in the host: it tells that the link is meshd's. The first octet differs from
/// those of endpoints (02) and bridges (06:6d).
pub(crate) fn uplink_mac(vni: u32) -> MacAddr {
    uplink_side(vni, 0)
}

fn uplink_side(vni: u32, side: u8) -> MacAddr {
    let [_, a, b, c] = vni.to_be_bytes();
    MacAddr([0x06, 0x6e, side, a, b, c])
}

const ALL_IPV4: Ipv4Network = match Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0) {
    Some(all) => all,
    None => panic!("0.0.0.0/0 is a network"),
};
const ALL_IPV6: Ipv6Network = match Ipv6Network::new_checked(Ipv6Addr::UNSPECIFIED, 0) {
    Some(all) => all,
    None => panic!("::/0 is a network"),
};

/// The destination of a default route.
fn everything(ipv6: bool) -> IpNetwork {
    if ipv6 { ALL_IPV6.into() } else { ALL_IPV4.into() }
}

/// What is known of this host and of the targets on it, besides the cluster's state.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// MTU of overlays that have none of their own, in bytes.
    pub mtu: u32,
    /// Endpoints whose targets are there.
    pub attachments: BTreeMap<EndpointId, Attachment>,
    /// Endpoints that wait for their containers ([`Endpoint::is_staged`]).
    pub staged: BTreeSet<EndpointId>,
    /// The host has rules of its own that choose routes by source addresses.
    pub routes_by_source: bool,
}

/// What is known of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attachment {
    /// The endpoint's interface is to have the target's IPv4 default route.
    pub default_ipv4: bool,
    /// Likewise for IPv6.
    pub default_ipv6: bool,
    /// The target's IPv4 default route, if there is one, is another interface's.
    pub elsewhere_ipv4: bool,
    /// Likewise for IPv6.
    pub elsewhere_ipv6: bool,
}

impl Attachment {
    /// Whether what the target sends to somebody outside its networks, and from no address in particular, does not leave by the
    /// endpoint's interface.
    pub fn is_elsewhere(&self, ipv6: bool) -> bool {
        if ipv6 { self.elsewhere_ipv6 } else { self.elsewhere_ipv4 }
    }
}

/// Who a set of objects is for: what fails is said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// The host as a whole.
    Host,
    /// A network on this node.
    Network(NetworkId),
    /// An endpoint on this node.
    Endpoint(EndpointId),
}

/// One end of a veth pair.
pub type PairEnd = (Space, Ifname);

/// The objects of one owner.
#[derive(Debug, Clone)]
pub struct Part {
    /// The owner.
    pub owner: Owner,
    /// The objects.
    pub objects: Objects,
    /// Which two of its links are a veth pair. The first end is made in its own space, the other by it.
    pub pair: [PairEnd; 2],
}

impl Part {
    fn new(owner: Owner, pair: [PairEnd; 2]) -> Self {
        Self { owner, objects: Objects::default(), pair }
    }

    fn put(&mut self, space: Space, object: Object) {
        self.objects.put(space, object);
    }

    /// An address, and the route to its subnet: whoever flushes routes takes it along, and a container may.
    fn put_address(&mut self, space: Space, link: Ifname, address: IpNetwork) {
        let source = match address.ip() {
            IpAddr::V4(source) => Some(source),
            IpAddr::V6(_) => None,
        };
        self.put(space, Object::Address(link, address));
        if let Ok(subnet) = IpNetwork::new(address.network(), address.prefix()) {
            let hop = NextHop { source, ..NextHop::on(link) };
            self.put(space, Object::Route(MAIN_TABLE, subnet, hop));
        }
    }
}

/// Everything this node should hold: networks, then endpoints on them.
#[derive(Debug, Clone, Default)]
pub struct Desired {
    /// The parts, in the order in which they can be made.
    pub parts: Vec<Part>,
}

impl Desired {
    /// The networks among them.
    pub fn networks(&self) -> impl Iterator<Item = NetworkId> + '_ {
        self.parts.iter().filter_map(|part| match part.owner {
            Owner::Network(network) => Some(network),
            Owner::Host | Owner::Endpoint(_) => None,
        })
    }
}

/// Derives what a node should hold.
///
/// Networks are those of [`Snapshot::networks_on`].
/// Records that refer to what the snapshot lacks are left out. So are those outside the scope: of a network with something
/// in it all is there that is not of a service or an endpoint.
pub fn desired(snapshot: &Snapshot, me: &Node, facts: &Facts, scope: &Scope) -> Desired {
    let port = data_path_port(snapshot);
    let mut on_network: BTreeMap<NetworkId, Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in scope.endpoints(snapshot) {
        on_network.entry(endpoint.network).or_default().push(endpoint);
    }
    let mut parts = Vec::new();
    for id in scope.networks_on(snapshot, me.id) {
        let Some(network) = snapshot.networks.get(&id) else { continue };
        let endpoints = on_network.get(&id).map_or(&[][..], Vec::as_slice);
        parts.push(network::Builder { snapshot, me, network, endpoints, port, facts, scope }.build());
    }
    for (id, attachment) in facts.attachments.iter().filter(|(id, _)| scope.has_endpoint(**id)) {
        let Some(endpoint) = snapshot.endpoints.get(id) else { continue };
        let Some(network) = snapshot.networks.get(&endpoint.network) else { continue };
        parts.extend(endpoint::part(endpoint, network, facts.mtu, *attachment));
    }
    for endpoint in facts.staged.iter().filter_map(|id| snapshot.endpoints.get(id)) {
        let Some(network) = snapshot.networks.get(&endpoint.network) else { continue };
        parts.push(endpoint::staged_part(endpoint, network, facts.mtu));
    }
    Desired { parts }
}

/// The UDP port of VXLAN on every node.
pub(crate) fn data_path_port(snapshot: &Snapshot) -> u16 {
    snapshot.cluster.as_ref().map_or(4789, |cluster| cluster.data_path_port)
}
