//! The bridge of a network's own namespace: who a frame is from.
//!
//! Frames from another node are marked with that node. Frames from a container pass only if they are what that container
//! may send, whatever it has made of its interface: its own MAC address, its own addresses (also in what ARP and neighbour
//! discovery say), no routers and no address servers. All this before priority 0, at which a bridge hands packets to the
//! IP hooks, and before it would learn anything.

use super::{OVERLAY_TABLE, Rules, overlay::ICMPV6};
use crate::{
    desired::port,
    nft::{Base, ChainKind, Datum, Family, Field, Hook, Rule, Set, Source, Table, Type, ether_type, icmpv6},
};
use mesh_model::{MacAddr, Network};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `IPPROTO_UDP`.
const UDP: u8 = 17;
/// Source ports of address servers: DHCP (RFC 2131) and DHCPv6 (RFC 8415).
const DHCP_SERVER: u16 = 67;
const DHCPV6_SERVER: u16 = 547;

/// The whole table.
pub(super) fn table(rules: &Rules<'_>, network: &Network) -> Table {
    let mut table = Table::new(Family::Bridge, OVERLAY_TABLE);
    let mut nodes = Set::map(&[Type::Ether], &[Type::Number]);
    for node in rules.snapshot.nodes.values().filter(|node| node.id != rules.me.id) {
        nodes.insert(vec![Datum::Ether(node.bridge_mac().0)], vec![Datum::Number(node.mark())]);
    }
    table.set("nodes", nodes);
    containers(&mut table, rules, network);
    let mark = Source::Map { key: vec![Field::EtherSaddr], map: "nodes".into() };
    let of_container = || Rule::new().begins(Field::Iifname, "p");
    table.hook(
        "prerouting",
        Base::new(ChainKind::Filter, Hook::Prerouting, -300),
        vec![Rule::new().begins(Field::Iifname, "vx").set_mark(mark), of_container().goto("from_container")],
    );
    // Frames to some of the reserved multicast addresses (IEEE 802.1D) come here without passing prerouting.
    table.hook(
        "input",
        Base::new(ChainKind::Filter, Hook::Input, -300),
        vec![of_container().goto("from_container")],
    );
    table.chain("from_container", from_container());
    table.chain("arp_from_container", arp());
    table.chain("ip_from_container", ip());
    table.chain("ip6_from_container", ip6());
    table
}

/// What the containers of this node may say they are, port by port.
fn containers(table: &mut Table, rules: &Rules<'_>, network: &Network) {
    let mut stations = Set::plain(&[Type::Ifname, Type::Ether]);
    let mut addresses = Set::plain(&[Type::Ifname, Type::Ipv4]);
    let mut addresses6 = Set::plain(&[Type::Ifname, Type::Ipv6]);
    let here = rules.snapshot.endpoints.values().filter(|e| e.network == network.id && e.node == rules.me.id);
    for endpoint in here {
        let port = Datum::Ifname(port(endpoint.id).to_string());
        stations.add(vec![port.clone(), Datum::Ether(endpoint.mac.0)]);
        addresses6.add(vec![port.clone(), link_local(endpoint.mac).into()]);
        for address in endpoint.addresses.iter().chain(&endpoint.local_addresses) {
            let of_version = match address {
                IpAddr::V4(_) => &mut addresses,
                IpAddr::V6(_) => &mut addresses6,
            };
            of_version.add(vec![port.clone(), (*address).into()]);
        }
    }
    table.set("stations", stations);
    table.set("addresses", addresses);
    table.set("addresses6", addresses6);
}

/// The address that an interface gives itself (RFC 4291, appendix A).
fn link_local(MacAddr([a, b, c, d, e, f]): MacAddr) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// Tagged frames, spanning tree and all else that is neither IP nor ARP ends here.
fn from_container() -> Vec<Rule> {
    let of_type = |number| Rule::new().eq(Field::EtherType, Datum::EtherType(number));
    vec![
        Rule::new().not_in(&[Field::Iifname, Field::EtherSaddr], "stations").drop(),
        of_type(ether_type::IPV4).goto("ip_from_container"),
        of_type(ether_type::IPV6).goto("ip6_from_container"),
        of_type(ether_type::ARP).goto("arp_from_container"),
        Rule::new().drop(),
    ]
}

/// A probe (RFC 5227) says nothing of the sender's address.
fn arp() -> Vec<Rule> {
    vec![
        Rule::new().not_in(&[Field::Iifname, Field::ArpSaddrEther], "stations").drop(),
        Rule::new().is_in(&[Field::Iifname, Field::ArpSaddrIp], "addresses").accept(),
        Rule::new().eq(Field::ArpSaddrIp, Ipv4Addr::UNSPECIFIED).accept(),
        Rule::new().drop(),
    ]
}

fn ip() -> Vec<Rule> {
    vec![
        Rule::new().protocol(UDP).eq(Field::ThSport, Datum::Port(DHCP_SERVER)).drop(),
        Rule::new().is_in(&[Field::Iifname, Field::IpSaddr], "addresses").accept(),
        Rule::new().drop(),
    ]
}

fn ip6() -> Vec<Rule> {
    let message = |kind| Rule::new().protocol(ICMPV6).eq(Field::Icmpv6Type, Datum::Proto(kind));
    // Before it has an address, a host looks whether somebody else has it, and says what it listens to.
    let nameless = |kind| message(kind).eq(Field::Ip6Saddr, Ipv6Addr::UNSPECIFIED).accept();
    vec![
        message(icmpv6::ND_ROUTER_ADVERT).drop(),
        message(icmpv6::ND_REDIRECT).drop(),
        message(icmpv6::MLD_QUERY).drop(),
        message(icmpv6::ND_NEIGHBOUR_ADVERT).not_in(&[Field::Iifname, Field::NdTarget], "addresses6").drop(),
        Rule::new().protocol(UDP).eq(Field::ThSport, Datum::Port(DHCPV6_SERVER)).drop(),
        Rule::new().is_in(&[Field::Iifname, Field::Ip6Saddr], "addresses6").accept(),
        nameless(icmpv6::ND_NEIGHBOUR_SOLICIT),
        nameless(icmpv6::MLD_REPORT),
        nameless(icmpv6::MLD2_REPORT),
        Rule::new().drop(),
    ]
}
