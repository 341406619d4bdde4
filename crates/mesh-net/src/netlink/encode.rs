//! Objects as requests.

use super::Request;
use crate::object::{Ifname, Link, LinkKind, NextHop, Object, PortMode, Selector};
use ipnetwork::IpNetwork;
use mesh_model::MacAddr;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth,
        InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{
        RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType, RouteVia,
    },
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use std::{
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Routes and rules of meshd bear this protocol number: what bears another is somebody else's.
pub(super) const PROTOCOL: u8 = 109;
/// Of routes to an address's own subnet, by IPv4. By IPv6 the kernel's are 256, and others 1024.
const CONNECTED_METRIC: u32 = 1;
/// Before the main table (32766), so that a mark or a source address decides first.
const RULE_PRIORITY: u32 = 1000;
/// Frames to the addresses that bridges keep for themselves (01:80:c2:00:00:00 to 0f, a bit each) are bridged like others,
/// by the rules of the bridge: left to itself it would hand some of them to the IP stack past all rules. The first three
/// can't be had; they pass the input hook.
pub(super) const GROUPS_FORWARDED: u16 = 0xfff8;
/// `NUD_NOARP | NUD_PERMANENT`: a forwarding entry that neither ages nor is learned over.
const FDB_STATE: u16 = 0xc0;

/// Where a new link is born: the namespace that the request is sent from, or another.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    Here,
    In(BorrowedFd<'a>),
}

/// A request that makes an object, or gives one that is there its new content if `replace`.
/// `index` is that of the object's link, `bridge` that of the bridge it is to be a port of.
/// Objects that are not made by netlink give nothing.
pub(crate) fn make(
    object: &Object,
    index: u32,
    bridge: Option<u32>,
    replace: bool,
    place: Place,
) -> Option<Request> {
    let exclusive = NLM_F_CREATE | if replace { NLM_F_REPLACE } else { NLM_F_EXCL };
    let (message, flags) = match object {
        Object::Namespace | Object::Sysctl(..) | Object::LinkSysctl(..) => return None,
        Object::Link(name, link) => {
            (Message::NewLink(new_link(*name, link, place)), NLM_F_CREATE | NLM_F_EXCL)
        }
        Object::Up(..) => (Message::NewLink(up(index, bridge)), 0),
        Object::Port(_, _, mode) => (Message::NewLink(port(index, *mode)), 0),
        // Entries in state only: whatever the kernel has learned meanwhile must not stand in the way.
        Object::Address(_, address) => {
            (Message::NewAddress(address_of(index, *address)), NLM_F_CREATE | NLM_F_REPLACE)
        }
        Object::Fdb(_, mac, vtep) => {
            (Message::NewNeighbour(forwarding(index, *mac, *vtep)), NLM_F_CREATE | NLM_F_REPLACE)
        }
        Object::Station(_, _, mac) => {
            (Message::NewNeighbour(station(index, *mac)), NLM_F_CREATE | NLM_F_REPLACE)
        }
        Object::Neighbour(_, address, mac) => {
            (Message::NewNeighbour(neighbour(index, *address, *mac)), NLM_F_CREATE | NLM_F_REPLACE)
        }
        // A route of somebody else to the same place is not ours to replace.
        Object::Route(table, destination, hop) => {
            let mut route = route(*table, *destination, *hop, index);
            // Beside the one that the kernel has made of the prefix of an address which was there before.
            route.attributes.extend(hop.source.map(|_| RouteAttribute::Priority(CONNECTED_METRIC)));
            (Message::NewRoute(route), exclusive)
        }
        Object::Rule(selector, table) => {
            (Message::NewRule(rule(*selector, *table)), NLM_F_CREATE | NLM_F_EXCL)
        }
    };
    Some(Request { message, flags })
}

/// A request that deletes an object; settings can't be deleted.
pub(crate) fn delete(object: &Object, index: u32) -> Option<Request> {
    let message = match object {
        Object::Namespace
        | Object::Sysctl(..)
        | Object::LinkSysctl(..)
        | Object::Up(..)
        | Object::Port(..) => return None,
        Object::Link(..) => {
            let mut message = LinkMessage::default();
            message.header.index = index;
            Message::DelLink(message)
        }
        Object::Address(_, address) => Message::DelAddress(address_of(index, *address)),
        Object::Fdb(_, mac, vtep) => Message::DelNeighbour(forwarding(index, *mac, *vtep)),
        Object::Station(_, _, mac) => Message::DelNeighbour(station(index, *mac)),
        Object::Neighbour(_, address, mac) => Message::DelNeighbour(neighbour(index, *address, *mac)),
        Object::Route(table, destination, hop) => Message::DelRoute(route(*table, *destination, *hop, index)),
        Object::Rule(selector, table) => Message::DelRule(rule(*selector, *table)),
    };
    Some(Request { message, flags: 0 })
}

/// Gives a link that is there another MTU and, if asked, MAC address: that costs the link its neighbours, also when it is
/// the one that it has.
pub(crate) fn change_link(index: u32, link: &Link, mac: bool) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::Mtu(link.mtu)];
    message.attributes.extend(mac.then(|| LinkAttribute::Address(link.mac.0.to_vec())));
    Request { message: Message::NewLink(message), flags: 0 }
}

/// Turns the switches of a link that is there. Nothing else can go along: a VXLAN link refuses a new MTU then.
pub(crate) fn turn_switches(index: u32, link: &Link) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::LinkInfo(switches(link.kind))];
    Request { message: Message::NewLink(message), flags: 0 }
}

/// Makes a veth pair: the first end here, the other directly in its own namespace under its final name.
pub(crate) fn add_pair(near: (Ifname, &Link), far: (Ifname, &Link), far_in: BorrowedFd) -> Request {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(far.0.to_string()),
        LinkAttribute::Address(far.1.mac.0.to_vec()),
        LinkAttribute::Mtu(far.1.mtu),
        LinkAttribute::NetNsFd(far_in.as_raw_fd()),
    ];
    let mut message = new_link(near.0, near.1, Place::Here);
    if let Some(LinkAttribute::LinkInfo(info)) = message.attributes.last_mut() {
        info.push(LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))));
    }
    Request { message: Message::NewLink(message), flags: NLM_F_CREATE | NLM_F_EXCL }
}

/// Asks for a link by its name.
pub(super) fn get_link(name: Ifname) -> Message {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::IfName(name.to_string())];
    Message::GetLink(message)
}

/// Asks for a link by its index.
pub(super) fn get_link_at(index: u32) -> Message {
    let mut message = LinkMessage::default();
    message.header.index = index;
    Message::GetLink(message)
}

/// Asks for the addresses of a link.
pub(super) fn addresses_on(index: u32) -> Message {
    let mut message = AddressMessage::default();
    message.header.index = index;
    Message::GetAddress(message)
}

/// Asks for meshd's routes over a link.
pub(super) fn own_routes_over(index: u32, family: AddressFamily) -> Message {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.attributes = vec![RouteAttribute::Oif(index)];
    Message::GetRoute(message)
}

/// Asks for the routes that lead to a router or a link.
pub(super) fn unicast_routes(family: AddressFamily) -> Message {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.kind = RouteType::Unicast;
    Message::GetRoute(message)
}

/// Asks for the route to an address as it was configured, without what the kernel has found out about the path.
pub(crate) fn get_configured_route(to: IpAddr) -> Message {
    let mut message = route_to(to);
    message.header.flags = RouteFlags::FibMatch;
    Message::GetRoute(message)
}

/// Asks which route a packet to an address would take.
pub(crate) fn get_route(to: IpAddr) -> Message {
    Message::GetRoute(route_to(to))
}

fn route_to(to: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to.is_ipv6());
    message.header.destination_prefix_length = if to.is_ipv6() { 128 } else { 32 };
    message.attributes = vec![RouteAttribute::Destination(to.into())];
    message
}

fn new_link(name: Ifname, link: &Link, place: Place) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_string()),
        LinkAttribute::Address(link.mac.0.to_vec()),
        LinkAttribute::Mtu(link.mtu),
    ];
    if let Place::In(namespace) = place {
        message.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
    }
    let mut info = switches(link.kind);
    if let (LinkKind::Vxlan { vni, local, port }, Some(LinkInfo::Data(InfoData::Vxlan(data)))) =
        (link.kind, info.last_mut())
    {
        data.extend([
            InfoVxlan::Id(vni),
            match local {
                IpAddr::V4(local) => InfoVxlan::Local(local),
                IpAddr::V6(local) => InfoVxlan::Local6(local),
            },
            InfoVxlan::Port(port),
            InfoVxlan::Proxy(true),
        ]);
    }
    message.attributes.push(LinkAttribute::LinkInfo(info));
    message
}

/// A kind, with what can be turned while a link of it lives.
fn switches(kind: LinkKind) -> Vec<LinkInfo> {
    match kind {
        LinkKind::Bridge => vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![
                InfoBridge::StpState(BridgeStpState::Disabled),
                InfoBridge::MulticastSnooping(false),
                InfoBridge::GroupFwdMask(GROUPS_FORWARDED),
            ])),
        ],
        LinkKind::Vxlan { .. } => vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![InfoVxlan::Learning(false)])),
        ],
        LinkKind::Veth | LinkKind::Foreign => vec![LinkInfo::Kind(InfoKind::Veth)],
    }
}

fn up(index: u32, bridge: Option<u32>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes.extend(bridge.map(LinkAttribute::Controller));
    message
}

fn port(index: u32, mode: PortMode) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![
            InfoBridgePort::HairpinMode(mode.hairpin),
            InfoBridgePort::Learning(mode.learning),
            InfoBridgePort::UnicastFlood(mode.flood),
            InfoBridgePort::BroadcastFlood(mode.groups),
            InfoBridgePort::MulticastFlood(mode.groups),
            InfoBridgePort::NeighSupress(mode.suppress),
            InfoBridgePort::Isolated(mode.isolated),
        ])),
    ])];
    message
}

fn address_of(index: u32, address: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.is_ipv6());
    message.header.prefix_len = address.prefix();
    message.header.index = index;
    if is_link_local(address.ip()) {
        message.header.scope = AddressScope::Link;
    }
    message.attributes = vec![AddressAttribute::Local(address.ip()), AddressAttribute::Address(address.ip())];
    let mut flags = AddressFlags::empty();
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        flags |= AddressFlags::Nodad;
    }
    // What the kernel makes by itself, and only now, nobody could bring back. Next hops that are link-local are on their
    // link whatever the routes say.
    if !is_link_local(address.ip()) {
        flags |= AddressFlags::Noprefixroute;
    }
    message.attributes.push(AddressAttribute::Flags(flags));
    message
}

fn forwarding(index: u32, mac: MacAddr, vtep: IpAddr) -> NeighbourMessage {
    let mut message = neighbour(index, vtep, mac);
    message.header.family = AddressFamily::Bridge;
    message.header.state = NeighbourState::Other(FDB_STATE);
    message.header.flags = NeighbourFlags::Own;
    message
}

/// An entry of the bridge that the link is a port of, which neither ages nor moves.
fn station(index: u32, mac: MacAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
    message
}

fn neighbour(index: u32, address: IpAddr, mac: MacAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address.is_ipv6());
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(address.into()),
        NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()),
    ];
    message
}

fn route(table: u32, destination: IpNetwork, hop: NextHop, index: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(destination.is_ipv6());
    message.header.destination_prefix_length = destination.prefix();
    // Numbers above a byte go into the attribute alone.
    message.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.header.scope = match hop.via {
        None if destination.is_ipv4() => RouteScope::Link,
        _ => RouteScope::Universe,
    };
    message.attributes = vec![RouteAttribute::Table(table), RouteAttribute::Oif(index)];
    if destination.prefix() > 0 {
        message.attributes.push(RouteAttribute::Destination(destination.ip().into()));
    }
    match hop.via {
        Some(IpAddr::V6(via)) if destination.is_ipv4() => {
            message.attributes.push(RouteAttribute::Via(RouteVia::Inet6(via)));
        }
        Some(via) => message.attributes.push(RouteAttribute::Gateway(via.into())),
        None => {}
    }
    if let Some(source) = hop.source {
        message.attributes.push(RouteAttribute::PrefSource(IpAddr::from(source).into()));
    }
    if hop.via.is_some_and(is_link_local) {
        message.header.flags = RouteFlags::Onlink;
    }
    message
}

fn rule(selector: Selector, table: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family(selector.is_ipv6());
    message.header.action = RuleAction::ToTable;
    message.header.table = u8::try_from(table).unwrap_or_default();
    let priority = RULE_PRIORITY - u32::from(selector.is_first());
    message.attributes = vec![
        RuleAttribute::Priority(priority),
        RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
        RuleAttribute::Table(table),
    ];
    match selector {
        Selector::Mark { mark, .. } => {
            // Without a mask, none would mean any.
            message.attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(u32::MAX)]);
        }
        Selector::From(address) => {
            message.header.src_len = if address.is_ipv6() { 128 } else { 32 };
            message.attributes.push(RuleAttribute::Source(address));
        }
        Selector::To(prefix) => {
            message.header.dst_len = prefix.prefix();
            message.attributes.push(RuleAttribute::Destination(prefix.network()));
        }
    }
    message
}

fn family(ipv6: bool) -> AddressFamily {
    if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
