//! The bridge of a network's own namespace: who a frame is from.
//!
//! What another node itself sends, or its ingress took, is marked with that node. Frames from a container pass only if they
//! are what that container may send, whatever it has made of its interface: its own MAC address, its own addresses (also in
//! what ARP and neighbour discovery say), no routers and no address servers. All this before the bridge would learn
//! anything.
//!
//! What goes between containers is bridged and meets no connection tracking, but for what that has to see: on a container's
//! node, whatever it exchanges with replicas, as that may go through a VIP; on a replica's node, connections that another
//! node's ingress took. Such frames are handed up to the namespace's own interface, as if they had been for the gateway.

use super::{IpVersion, OVERLAY_TABLE, Rules, overlay::ICMPV6};
use crate::{
    desired::port,
    nft::{Base, ChainKind, Datum, Family, Field, Hook, Rule, Set, Source, Table, Type, ether_type, icmpv6},
};
use mesh_model::{Endpoint, MacAddr, Network};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `IPPROTO_UDP`.
const UDP: u8 = 17;
/// Source ports of address servers: DHCP (RFC 2131) and DHCPv6 (RFC 8415).
const DHCP_SERVER: u16 = 67;
const DHCPV6_SERVER: u16 = 547;

/// Group addresses that bridges keep for themselves (IEEE 802.1D, 802.1Q), and the bits that tell them.
const RESERVED: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0];
const RESERVED_BITS: [u8; 6] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xf0];

/// The whole table.
pub(super) fn table(rules: &Rules<'_>, network: &Network) -> Table {
    let mut table = Table::new(Family::Bridge, OVERLAY_TABLE);
    let mut nodes = Set::map(&[Type::Ether], &[Type::Number]);
    for node in rules.snapshot.nodes.values().filter(|node| node.id != rules.me.id) {
        nodes.insert(vec![Datum::Ether(node.bridge_mac().0)], vec![Datum::Number(node.mark())]);
    }
    table.set("nodes", nodes);
    containers(&mut table, rules, network);
    replicas(&mut table, rules, network);
    let of_container = || Rule::new().begins(Field::Iifname, "p");
    let of_node = || Rule::new().begins(Field::Iifname, "vx");
    table.hook(
        "prerouting",
        Base::new(ChainKind::Filter, Hook::Prerouting, -300),
        vec![of_container().goto("from_container"), of_node().goto("from_node")],
    );
    // Frames to some of the reserved group addresses come here without passing prerouting.
    let reserved =
        of_container().within(Field::EtherDaddr, Datum::Ether(RESERVED), Datum::Ether(RESERVED_BITS));
    table.hook("input", Base::new(ChainKind::Filter, Hook::Input, -300), vec![reserved.drop()]);
    table.chain("from_container", from_container());
    table.chain("arp_from_container", arp());
    table.chain("ip_from_container", ip());
    table.chain("ip6_from_container", ip6());
    table.chain("nameless", nameless());
    table.chain(
        "from_node",
        IpVersion::BOTH.map(|version| of_version(version).goto(ip_from_node(version))).into(),
    );
    for version in IpVersion::BOTH {
        table.chain(ip_from_node(version), from_node(network, version));
    }
    table.chain("hand_up", hand_up(rules));
    table
}

fn of_version(version: IpVersion) -> Rule {
    let ether_type = match version {
        IpVersion::V4 => ether_type::IPV4,
        IpVersion::V6 => ether_type::IPV6,
    };
    Rule::new().eq(Field::EtherType, Datum::EtherType(ether_type))
}

fn ip_from_node(version: IpVersion) -> &'static str {
    match version {
        IpVersion::V4 => "ip_from_node",
        IpVersion::V6 => "ip6_from_node",
    }
}

/// The names of the sets of replicas, of whatever node, and of this node's containers.
fn ends(version: IpVersion) -> [&'static str; 2] {
    match version {
        IpVersion::V4 => ["replicas", "here"],
        IpVersion::V6 => ["replicas6", "here6"],
    }
}

/// The endpoints that a VIP of the network may be balanced to, and the endpoints of this node.
fn replicas(table: &mut Table, rules: &Rules<'_>, network: &Network) {
    for version in IpVersion::BOTH {
        let [mut replicas, mut here] = [(); 2].map(|()| Set::plain(&[version.address()]));
        for endpoint in rules.endpoints(network.id) {
            let own = endpoint.addresses.iter();
            if endpoint.service.is_some() {
                own.clone().filter(|ip| version.is_of(ip)).for_each(|ip| replicas.add(vec![(*ip).into()]));
            }
            if endpoint.node == rules.me.id {
                let all = own.chain(&endpoint.local_addresses);
                all.filter(|ip| version.is_of(ip)).for_each(|ip| here.add(vec![(*ip).into()]));
            }
        }
        let [of_replicas, of_here] = ends(version);
        table.set(of_replicas, replicas);
        table.set(of_here, here);
    }
}

/// A container may talk to a replica through a VIP and directly, from one port: to the replica both would be one connection,
/// if connection tracking did not see the second and give it another port.
fn to_replica(version: IpVersion) -> Rule {
    let [replicas, _] = ends(version);
    Rule::new().is_in(&[version.daddr()], replicas).goto("hand_up")
}

/// A replica's packets for containers of this node may be answers of a VIP.
fn from_replica(version: IpVersion) -> Rule {
    let [replicas, here] = ends(version);
    Rule::new().is_in(&[version.saddr()], replicas).is_in(&[version.daddr()], here).goto("hand_up")
}

/// A packet that another node's bridge sends is one that it routed. If it is from no container, that node itself sent it, or
/// its ingress took the connection: it is marked with that node. A container's packets bear no mark: whether they are
/// bridged or routed on their way depends on what they go to, and must make no difference to connection tracking.
fn from_node(network: &Network, version: IpVersion) -> Vec<Rule> {
    let subnets = network.prefixes().filter(|cidr| version.is_of(&cidr.ip()));
    let from_outside =
        subnets.fold(Rule::new(), |rule, cidr| rule.outside(version.saddr(), cidr.network(), cidr.mask()));
    let node = Source::Map { key: vec![Field::EtherSaddr], map: "nodes".into() };
    let [_, here] = ends(version);
    vec![
        from_replica(version),
        from_outside.set_mark(node),
        Rule::new().ne(Field::Mark, Datum::Number(0)).is_in(&[version.daddr()], here).goto("hand_up"),
    ]
}

/// Neighbour discovery goes its own way: routed, it is not believed (RFC 4861, hop limit 255).
fn hand_up(rules: &Rules<'_>) -> Vec<Rule> {
    let neighbours = [icmpv6::ND_NEIGHBOUR_SOLICIT, icmpv6::ND_NEIGHBOUR_ADVERT].map(message);
    neighbours.map(Rule::accept).into_iter().chain([Rule::new().hand_up(rules.me.bridge_mac().0)]).collect()
}

/// What the containers of this node may say they are, port by port.
fn containers(table: &mut Table, rules: &Rules<'_>, network: &Network) {
    let mut stations = Set::plain(&[Type::Ifname, Type::Ether]);
    let mut senders = Set::plain(&[Type::Ifname, Type::Ether, Type::Ipv4]);
    let mut senders6 = Set::plain(&[Type::Ifname, Type::Ether, Type::Ipv6]);
    for endpoint in rules.endpoints_here(network.id) {
        let station = vec![Datum::Ifname(port(endpoint.id).to_string()), Datum::Ether(endpoint.mac.0)];
        let sender = |address: Datum| [&station[..], &[address]].concat();
        for address in sources(endpoint) {
            let of_version = match address {
                IpAddr::V4(_) => &mut senders,
                IpAddr::V6(_) => &mut senders6,
            };
            of_version.add(sender(address.into()));
        }
        stations.add(station);
    }
    table.set("stations", stations);
    table.set("senders", senders);
    table.set("senders6", senders6);
}

/// The addresses that a container may send from.
pub(super) fn sources(endpoint: &Endpoint) -> impl Iterator<Item = IpAddr> {
    let given = endpoint.addresses.iter().chain(&endpoint.local_addresses).copied();
    given.chain([link_local(endpoint.mac).into()])
}

/// The address that an interface gives itself (RFC 4291, appendix A).
fn link_local(MacAddr([a, b, c, d, e, f]): MacAddr) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// Tagged frames, spanning tree and all else that is neither IP nor ARP ends here.
fn from_container() -> Vec<Rule> {
    vec![
        of_version(IpVersion::V4).goto("ip_from_container"),
        of_version(IpVersion::V6).goto("ip6_from_container"),
        Rule::new().eq(Field::EtherType, Datum::EtherType(ether_type::ARP)).goto("arp_from_container"),
        Rule::new().drop(),
    ]
}

/// A probe (RFC 5227) says nothing of the sender's address.
fn arp() -> Vec<Rule> {
    let says = |address| [Field::Iifname, Field::ArpSaddrEther, address];
    vec![
        Rule::new().not_in(&STATION, "stations").drop(),
        Rule::new().is_in(&says(Field::ArpSaddrIp), "senders").accept(),
        Rule::new().not_in(&[Field::Iifname, Field::ArpSaddrEther], "stations").drop(),
        Rule::new().eq(Field::ArpSaddrIp, Ipv4Addr::UNSPECIFIED).accept(),
        Rule::new().drop(),
    ]
}

fn ip() -> Vec<Rule> {
    vec![
        Rule::new().not_in(&sender(IpVersion::V4), "senders").drop(),
        Rule::new().protocol(UDP).eq(Field::ThSport, Datum::Port(DHCP_SERVER)).drop(),
        to_replica(IpVersion::V4),
        from_replica(IpVersion::V4),
    ]
}

fn ip6() -> Vec<Rule> {
    let says_of = [Field::Iifname, Field::EtherSaddr, Field::NdTarget];
    vec![
        Rule::new().eq(Field::Ip6Saddr, Ipv6Addr::UNSPECIFIED).goto("nameless"),
        Rule::new().not_in(&sender(IpVersion::V6), "senders6").drop(),
        message(icmpv6::ND_ROUTER_ADVERT).drop(),
        message(icmpv6::ND_REDIRECT).drop(),
        message(icmpv6::MLD_QUERY).drop(),
        message(icmpv6::ND_NEIGHBOUR_ADVERT).not_in(&says_of, "senders6").drop(),
        Rule::new().protocol(UDP).eq(Field::ThSport, Datum::Port(DHCPV6_SERVER)).drop(),
        to_replica(IpVersion::V6),
        from_replica(IpVersion::V6),
    ]
}

/// The port and the MAC address that a frame comes by.
const STATION: [Field; 2] = [Field::Iifname, Field::EtherSaddr];

/// The same, and whose packet it is.
fn sender(version: IpVersion) -> [Field; 3] {
    let [port, mac] = STATION;
    [port, mac, version.saddr()]
}

/// Before it has an address, a host looks whether somebody else has it, and says what it listens to.
fn nameless() -> Vec<Rule> {
    let allowed = [icmpv6::ND_NEIGHBOUR_SOLICIT, icmpv6::MLD_REPORT, icmpv6::MLD2_REPORT].map(message);
    let stranger = Rule::new().not_in(&STATION, "stations").drop();
    [stranger].into_iter().chain(allowed.map(Rule::accept)).chain([Rule::new().drop()]).collect()
}

fn message(kind: u8) -> Rule {
    Rule::new().protocol(ICMPV6).eq(Field::Icmpv6Type, Datum::Proto(kind))
}
