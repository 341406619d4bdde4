//! A network's own namespace: bridge, VXLAN, uplink, and what leads to its other nodes and endpoints.

use super::{
    Facts, Owner, Part, TABLES, bridge, everything, inner_uplink, uplink, uplink_mac, uplink_side, vxlan,
};
use crate::object::{Ifname, Link, LinkKind, NextHop, Object, PortMode, Selector, Space};
use crate::scope::Scope;
use ipnetwork::IpNetwork;
use mesh_model::{Endpoint, Network, Node, Snapshot};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Link-local addresses of the two ends of every uplink.
const HOST_SIDE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const INNER_SIDE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// An IPv4 address of uplinks that need one, and that nobody sends to or from (link-local, RFC 3927).
const UPLINK_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);

/// What holds in an overlay namespace before its links are made, so that they are born with it.
const SYSCTLS: [(&str, &str); 22] = [
    // What is bridged passes no IP hooks. What needs them, the bridge's own rules hand to them.
    ("bridge/bridge-nf-call-ip6tables", "0"),
    ("bridge/bridge-nf-call-iptables", "0"),
    // Replies may leave by another way than requests came.
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    // What goes back through another node must not teach containers a shortcut.
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    // Those of IPv4 are taken over from the machine's own namespace, which may have other ideas.
    ("ipv4/conf/all/accept_source_route", "0"),
    ("ipv4/conf/default/accept_source_route", "0"),
    ("ipv4/conf/all/proxy_arp", "0"),
    ("ipv4/conf/default/proxy_arp", "0"),
    ("ipv4/ip_forward", "1"),
    // The host may have switched IPv6 off for what is made later; next hops here are IPv6 link-local.
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    // Addresses are usable at once and only those given: they come from the cluster's state, nobody else has them.
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/autoconf", "0"),
];

pub(super) struct Builder<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) me: &'a Node,
    pub(super) network: &'a Network,
    pub(super) endpoints: &'a [&'a Endpoint],
    /// UDP port of VXLAN.
    pub(super) port: u16,
    pub(super) facts: &'a Facts,
    pub(super) scope: &'a Scope,
}

impl Builder<'_> {
    pub(super) fn build(&self) -> Part {
        let inside = Space::Overlay(self.network.id);
        let pair = [(Space::Host, uplink(self.network.vni)), (inside, inner_uplink())];
        let mut part = Part::new(Owner::Network(self.network.id), pair);
        part.put(inside, Object::Namespace);
        for (path, value) in SYSCTLS {
            part.put(inside, Object::Sysctl(path.into(), value));
        }
        self.links(&mut part, inside);
        self.uplink(&mut part, inside);
        self.addresses(&mut part, inside);
        for node in self.snapshot.nodes.values().filter(|node| node.id != self.me.id && self.reaches(node)) {
            self.peer(&mut part, inside, node);
        }
        for endpoint in self.endpoints {
            self.endpoint(&mut part, inside, endpoint);
        }
        part
    }

    fn vxlan(&self) -> Ifname {
        vxlan(self.network.vni)
    }

    /// A VXLAN device has an underlay of one family.
    fn reaches(&self, node: &Node) -> bool {
        node.advertise.is_ipv6() == self.me.advertise.is_ipv6()
    }

    fn links(&self, part: &mut Part, inside: Space) {
        let mtu = self.network.mtu.unwrap_or(self.facts.mtu);
        let vni = self.network.vni;
        let kind = LinkKind::Vxlan { vni, local: self.me.advertise.ip(), port: self.port };
        let bridge_link = Link::new(LinkKind::Bridge, self.me.bridge_mac(), mtu);
        part.put(inside, Object::Link(bridge(), bridge_link));
        part.put(inside, Object::Up(bridge(), None));
        part.put(inside, Object::Link(self.vxlan(), Link::new(kind, uplink_side(vni, 2), mtu)));
        part.put(inside, Object::Up(self.vxlan(), Some(bridge())));
        part.put(inside, Object::Port(self.vxlan(), bridge(), PortMode::TUNNEL));
        // Everybody on the bridge is known. Who is asked for all the same is not looked for: a container that goes through
        // the addresses of its network would fill the neighbour table, which all namespaces of the host share.
        for family in ["ipv4/neigh", "ipv6/neigh"] {
            part.put(inside, Object::LinkSysctl(family, bridge(), "mcast_solicit", "0"));
        }
        let lo = Ifname::derived("lo", "");
        part.put(inside, Object::Up(lo, None));
        // The node's own addresses: sources of meshd's connections, since replies to the gateway address, which every
        // node has, would end at the replica's node.
        for address in &self.me.addresses {
            part.put(inside, Object::Address(lo, IpNetwork::from(*address)));
        }
    }

    /// The veth pair between host and namespace, addressed by link-local IPv6 for both families: an IPv4 link-local
    /// net there would shadow 169.254.169.254.
    fn uplink(&self, part: &mut Part, inside: Space) {
        let mtu = self.network.mtu.unwrap_or(self.facts.mtu);
        let vni = self.network.vni;
        let ends = [
            (Space::Host, uplink(vni), uplink_mac(vni), HOST_SIDE),
            (inside, inner_uplink(), uplink_side(vni, 1), INNER_SIDE),
        ];
        for (here, there) in [(ends[0], ends[1]), (ends[1], ends[0])] {
            let (space, name, mac, address) = here;
            part.put(space, Object::Link(name, Link::new(LinkKind::Veth, mac, mtu)));
            part.put(space, Object::Up(name, None));
            part.put(space, Object::Address(name, link_local(address)));
            part.put(space, Object::Neighbour(name, there.3.into(), there.2));
        }
        let host_end = uplink(vni);
        for (name, value) in [
            ("accept_dad", "0"),
            ("accept_ra", "0"),
            ("addr_gen_mode", "1"),
            ("disable_ipv6", "0"),
            ("forwarding", "1"),
        ] {
            part.put(Space::Host, Object::LinkSysctl("ipv6/conf", host_end, name, value));
        }
        // 2 (loose) wins over a stricter setting for all: replies of published ports come in here.
        part.put(Space::Host, Object::LinkSysctl("ipv4/conf", host_end, "rp_filter", "2"));
        if self.facts.routes_by_source {
            // These have an address of the host by the time they are routed (`rules/host.rs`, chain `as_asked`). The kernel
            // takes none such in, but where that is allowed, by an interface that has an address itself.
            part.put(Space::Host, Object::LinkSysctl("ipv4/conf", host_end, "accept_local", "1"));
            part.put(Space::Host, Object::Address(host_end, IpAddr::from(UPLINK_IPV4).into()));
            // The host's own clients, from whatever address of its.
            for subnet in &self.network.subnets {
                let prefix = IpNetwork::new(subnet.cidr.network(), subnet.cidr.prefix());
                let rule = prefix.map(|prefix| Object::Rule(Selector::To(prefix), super::MAIN_TABLE));
                rule.into_iter().for_each(|rule| part.put(Space::Host, rule));
            }
        }
        for subnet in &self.network.subnets {
            part.put(
                Space::Host,
                Object::Route(super::MAIN_TABLE, subnet.cidr, NextHop::via(INNER_SIDE, host_end)),
            );
        }
        for everything in everywhere() {
            part.put(
                inside,
                Object::Route(super::MAIN_TABLE, everything, NextHop::via(HOST_SIDE, inner_uplink())),
            );
            // Most packets bear no node's mark, and are not compared with that of each.
            let unmarked = Selector::Mark { ipv6: everything.is_ipv6(), mark: 0 };
            part.put(inside, Object::Rule(unmarked, super::MAIN_TABLE));
        }
    }

    /// Gateways, VIPs and the next hop for peers, all on the bridge.
    fn addresses(&self, part: &mut Part, inside: Space) {
        part.put(inside, Object::Address(bridge(), link_local(self.me.bridge_link_local())));
        for subnet in &self.network.subnets {
            if let Ok(gateway) = IpNetwork::new(subnet.gateway, subnet.cidr.prefix()) {
                part.put_address(inside, bridge(), gateway);
            }
        }
        for service in self.scope.services(self.snapshot) {
            for vip in service.vips(self.network.id) {
                part.put(inside, Object::Address(bridge(), IpNetwork::from(*vip)));
            }
        }
    }

    /// The way to another node's bridge, to that node's own addresses, and back through it for connections that its
    /// ingress took, which bear its mark.
    fn peer(&self, part: &mut Part, inside: Space, node: &Node) {
        let next = node.bridge_link_local();
        part.put(inside, Object::Fdb(self.vxlan(), node.bridge_mac(), node.advertise.ip()));
        part.put(inside, Object::Neighbour(bridge(), next.into(), node.bridge_mac()));
        for address in &node.addresses {
            part.put(
                inside,
                Object::Route(super::MAIN_TABLE, IpNetwork::from(*address), NextHop::via(next, bridge())),
            );
        }
        let table = TABLES + node.index;
        for everything in everywhere() {
            part.put(inside, Object::Route(table, everything, NextHop::via(next, bridge())));
            let selector = Selector::Mark { ipv6: everything.is_ipv6(), mark: node.mark() };
            part.put(inside, Object::Rule(selector, table));
        }
    }

    /// What every node knows of an endpoint. The entries on the VXLAN link are what it answers ARP and ND from.
    fn endpoint(&self, part: &mut Part, inside: Space, endpoint: &Endpoint) {
        let vtep = self.vtep(endpoint);
        if let Some(vtep) = vtep {
            part.put(inside, Object::Fdb(self.vxlan(), endpoint.mac, vtep));
        }
        if endpoint.node == self.me.id {
            // Addresses that an engine has given it are outside the subnets, and are answered by what is routed here.
            for address in &endpoint.local_addresses {
                part.put(inside, Object::Neighbour(bridge(), *address, endpoint.mac));
                let way = NextHop::on(bridge());
                part.put(inside, Object::Route(super::MAIN_TABLE, IpNetwork::from(*address), way));
            }
        }
        for address in &endpoint.addresses {
            // Static here too: learned neighbours of all namespaces share one small limit (gc_thresh3).
            part.put(inside, Object::Neighbour(bridge(), *address, endpoint.mac));
            if vtep.is_some() {
                part.put(inside, Object::Neighbour(self.vxlan(), *address, endpoint.mac));
            }
        }
    }

    /// The underlay address of a remote endpoint's node.
    fn vtep(&self, endpoint: &Endpoint) -> Option<IpAddr> {
        let node = self.snapshot.nodes.get(&endpoint.node)?;
        (node.id != self.me.id && self.reaches(node)).then(|| node.advertise.ip())
    }
}

fn everywhere() -> [IpNetwork; 2] {
    [everything(false), everything(true)]
}

fn link_local(address: Ipv6Addr) -> IpNetwork {
    IpNetwork::new(address.into(), 64).unwrap_or_else(|_| IpAddr::from(address).into())
}
