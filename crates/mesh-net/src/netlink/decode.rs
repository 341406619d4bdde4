//! What a namespace holds, as the kernel dumps it, in terms of [`Object`].

use super::{
    Netlink,
    encode::{
        GROUPS_FORWARDED, PROTOCOL, addresses_on, get_link, get_link_at, own_routes_over, unicast_routes,
    },
};
use crate::{
    error::Result,
    object::{Ifname, Link, LinkKind, NextHop, Object, PortMode, Selector},
};
use ipnetwork::IpNetwork;
use mesh_model::MacAddr;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::{AddressAttribute, AddressMessage},
    link::{
        BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVxlan,
        LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType, RouteVia},
    rule::{RuleAttribute, RuleMessage},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The main routing table (`RT_TABLE_MAIN`).
const MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];
/// Where a `struct rtmsg` has the length of the destination's prefix.
const PREFIX_AT: usize = 1;

/// A link as the kernel has it.
#[derive(Debug, Clone)]
pub(crate) struct RawLink {
    pub(crate) name: Ifname,
    pub(crate) link: Link,
    pub(crate) up: bool,
    /// Packets pass: the state that follows from the carrier (RFC 2863, `IFLA_OPERSTATE`), a moment after it.
    pub(crate) operational: bool,
    /// Index of the bridge that it is a port of.
    pub(crate) bridge: Option<u32>,
    /// How it works as a port of it.
    pub(crate) port: Option<PortMode>,
}

/// A default route.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DefaultRoute {
    pub(crate) ipv6: bool,
    pub(crate) link: Ifname,
    /// It bears meshd's protocol number.
    pub(crate) ours: bool,
}

/// What a namespace holds.
#[derive(Debug, Default)]
pub(crate) struct RawSpace {
    /// Links by index.
    pub(crate) links: BTreeMap<u32, RawLink>,
    /// Addresses of all links, static neighbours and forwarding entries, and the routes and rules that bear meshd's
    /// protocol number.
    pub(crate) objects: Vec<Object>,
}

impl RawSpace {
    /// Reads it all.
    pub(crate) fn read(netlink: &mut Netlink) -> Result<Self> {
        let mut space = Self::read_links_and_addresses(netlink)?;
        for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
            let mut ask = NeighbourMessage::default();
            ask.header.family = family;
            for message in netlink.dump(&Message::GetNeighbour(ask))? {
                if let Message::NewNeighbour(neighbour) = message {
                    space.objects.extend(space.neighbour(&neighbour));
                }
            }
        }
        for family in FAMILIES {
            let mut ask = RouteMessage::default();
            ask.header.address_family = family;
            space.read_routes(netlink, &Message::GetRoute(ask))?;
        }
        space.read_rules(netlink)?;
        Ok(space)
    }

    /// Reads links and addresses only.
    pub(crate) fn read_links_and_addresses(netlink: &mut Netlink) -> Result<Self> {
        let mut space = Self { links: read_links(netlink)?, ..Self::default() };
        space.read_addresses(netlink, &Message::GetAddress(AddressMessage::default()))?;
        Ok(space)
    }

    /// Reads loopback and one link, with its addresses and the routes and rules that bear meshd's protocol number: the
    /// rest of the namespace is somebody else's, and may be as much as they like.
    pub(crate) fn read_link(netlink: &mut Netlink, name: Ifname) -> Result<Self> {
        let mut space = Self::default();
        space.links.extend(link_named(netlink, Ifname::derived("lo", ""))?);
        let found = link_named(netlink, name)?;
        if let Some((index, link)) = found {
            space.links.insert(index, link);
            space.read_addresses(netlink, &addresses_on(index))?;
            for family in FAMILIES {
                space.read_routes(netlink, &own_routes_over(index, family))?;
            }
        }
        space.read_rules(netlink)?;
        Ok(space)
    }

    fn read_addresses(&mut self, netlink: &mut Netlink, ask: &Message) -> Result<()> {
        for message in netlink.dump(ask)? {
            if let Message::NewAddress(address) = message {
                self.objects.extend(self.address(&address));
            }
        }
        Ok(())
    }

    fn read_routes(&mut self, netlink: &mut Netlink, ask: &Message) -> Result<()> {
        for message in netlink.dump(ask)? {
            if let Message::NewRoute(route) = message {
                self.objects.extend(self.route(&route));
            }
        }
        Ok(())
    }

    /// Whether there are rules of somebody else's that choose by source addresses.
    pub(crate) fn has_source_rules(netlink: &mut Netlink) -> Result<bool> {
        let chooses_by_source = |message: &RuleMessage| {
            let has = |which: fn(&RuleAttribute) -> bool| message.attributes.iter().any(which);
            has(|attribute| matches!(attribute, RuleAttribute::Source(_)))
                && !has(|attribute| {
                    matches!(attribute, RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)))
                })
        };
        Ok(dump_rules(netlink)?.iter().any(chooses_by_source))
    }

    fn read_rules(&mut self, netlink: &mut Netlink) -> Result<()> {
        self.objects.extend(dump_rules(netlink)?.iter().filter_map(rule));
        Ok(())
    }

    fn name(&self, index: u32) -> Option<Ifname> {
        self.links.get(&index).map(|link| link.name)
    }

    fn address(&self, message: &AddressMessage) -> Option<Object> {
        let (mut local, mut peer) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(address) => local = Some(*address),
                AddressAttribute::Address(address) => peer = Some(*address),
                _ => {}
            }
        }
        let address = IpNetwork::new(local.or(peer)?, message.header.prefix_len).ok()?;
        Some(Object::Address(self.name(message.header.index)?, address))
    }

    /// A static neighbour, a static entry of a bridge, or one of a VXLAN link (NTF_SELF).
    fn neighbour(&self, message: &NeighbourMessage) -> Option<Object> {
        let link = self.name(message.header.ifindex)?;
        let (mut address, mut mac, mut bridge) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Controller(index) => bridge = self.name(*index),
                NeighbourAttribute::Destination(destination) => address = neighbour_address(destination),
                NeighbourAttribute::LinkLayerAddress(bytes) => mac = mac_of(bytes),
                _ => {}
            }
        }
        if message.header.family != AddressFamily::Bridge {
            let lasting = message.header.state == NeighbourState::Permanent;
            return lasting.then_some(Object::Neighbour(link, address?, mac?));
        }
        if let (Some(bridge), NeighbourState::Noarp) = (bridge, message.header.state) {
            return Some(Object::Station(link, bridge, mac?));
        }
        let own = message.header.flags.contains(NeighbourFlags::Own);
        own.then_some(Object::Fdb(link, mac?, address?))
    }

    fn route(&self, message: &RouteMessage) -> Option<Object> {
        if !is_ours(message) || message.header.kind != RouteType::Unicast {
            return None;
        }
        let ipv6 = message.header.address_family == AddressFamily::Inet6;
        let (table, link) = table_and_link(message);
        let (mut via, mut to, mut source) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::PrefSource(RouteAddress::Inet(address)) => source = Some(*address),
                RouteAttribute::Gateway(address) => via = route_address(address),
                RouteAttribute::Via(RouteVia::Inet6(address)) => via = Some((*address).into()),
                RouteAttribute::Destination(address) => to = route_address(address),
                _ => {}
            }
        }
        let everything = if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let to = IpNetwork::new(to.unwrap_or(everything), message.header.destination_prefix_length).ok()?;
        Some(Object::Route(table, to, NextHop { via, link: self.name(link?)?, source }))
    }
}

/// The default routes of the main table, whoever made them.
pub(crate) fn read_defaults(netlink: &mut Netlink) -> Result<Vec<DefaultRoute>> {
    let mut defaults = Vec::new();
    for family in FAMILIES {
        let is_default = |route: &[u8]| route.get(PREFIX_AT) == Some(&0);
        for message in netlink.dump_where(&unicast_routes(family), is_default)? {
            let Message::NewRoute(route) = message else { continue };
            let (MAIN, Some(index)) = table_and_link(&route) else { continue };
            if route.header.kind != RouteType::Unicast {
                continue;
            }
            // One that vanished meanwhile has no route either.
            if let Some((_, link)) = link_at(netlink, index)? {
                let ipv6 = family == AddressFamily::Inet6;
                defaults.push(DefaultRoute { ipv6, link: link.name, ours: is_ours(&route) });
            }
        }
    }
    Ok(defaults)
}

/// A link of that name, with its index.
pub(crate) fn link_named(netlink: &mut Netlink, name: Ifname) -> Result<Option<(u32, RawLink)>> {
    let found = netlink.get(get_link(name))?;
    // The kernel finds them by other names, too.
    Ok(found.as_ref().and_then(link_of).filter(|(_, link)| link.name == name))
}

fn link_at(netlink: &mut Netlink, index: u32) -> Result<Option<(u32, RawLink)>> {
    Ok(netlink.get(get_link_at(index))?.as_ref().and_then(link_of))
}

fn link_of(message: &Message) -> Option<(u32, RawLink)> {
    match message {
        Message::NewLink(link) => Some((link.header.index, RawLink::decode(link)?)),
        _ => None,
    }
}

fn is_ours(route: &RouteMessage) -> bool {
    route.header.protocol == RouteProtocol::Other(PROTOCOL)
}

fn table_and_link(route: &RouteMessage) -> (u32, Option<u32>) {
    let (mut table, mut link) = (u32::from(route.header.table), None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    (table, link)
}

/// All links, by index.
pub(crate) fn read_links(netlink: &mut Netlink) -> Result<BTreeMap<u32, RawLink>> {
    Ok(netlink.dump(&Message::GetLink(LinkMessage::default()))?.iter().filter_map(link_of).collect())
}

impl RawLink {
    fn decode(message: &LinkMessage) -> Option<Self> {
        let (mut name, mut mac, mut mtu, mut bridge) = (None, None, 0, None);
        let (mut kind, mut port, mut operational, mut switches) = (LinkKind::Foreign, None, false, true);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Ifname::new(text),
                LinkAttribute::Address(bytes) => mac = mac_of(bytes),
                LinkAttribute::Mtu(bytes) => mtu = *bytes,
                LinkAttribute::Controller(index) => bridge = Some(*index),
                LinkAttribute::LinkInfo(info) => {
                    (kind, port, switches) = (kind_of(info), port_of(info), switches_of(info));
                }
                LinkAttribute::OperState(state) => operational = matches!(state, State::Up | State::Unknown),
                _ => {}
            }
        }
        let link = Link { kind, mac: mac.unwrap_or(MacAddr([0; 6])), mtu, switches };
        let up = message.header.flags.contains(LinkFlags::Up);
        Some(Self { name: name?, link, up, operational, bridge, port })
    }
}

fn kind_of(info: &[LinkInfo]) -> LinkKind {
    let kind = info.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        Some(InfoKind::Bridge) => LinkKind::Bridge,
        Some(InfoKind::Veth) => LinkKind::Veth,
        Some(InfoKind::Vxlan) => info
            .iter()
            .find_map(|info| match info {
                LinkInfo::Data(InfoData::Vxlan(data)) => vxlan_of(data),
                _ => None,
            })
            .unwrap_or(LinkKind::Foreign),
        _ => LinkKind::Foreign,
    }
}

/// Whether what can be turned is as it should be. A kernel that lacks a switch does not have it on.
fn switches_of(info: &[LinkInfo]) -> bool {
    info.iter().all(|info| match info {
        LinkInfo::Data(InfoData::Bridge(data)) => data.iter().all(|switch| match switch {
            InfoBridge::StpState(state) => *state == BridgeStpState::Disabled,
            InfoBridge::MulticastSnooping(on) => !on,
            InfoBridge::GroupFwdMask(mask) => *mask == GROUPS_FORWARDED,
            _ => true,
        }),
        LinkInfo::Data(InfoData::Vxlan(data)) => !data.contains(&InfoVxlan::Learning(true)),
        _ => true,
    })
}

fn port_of(info: &[LinkInfo]) -> Option<PortMode> {
    info.iter().find_map(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(port)) => Some(PortMode {
            hairpin: port.contains(&InfoBridgePort::HairpinMode(true)),
            learning: port.contains(&InfoBridgePort::Learning(true)),
            flood: port.contains(&InfoBridgePort::UnicastFlood(true)),
            groups: port.contains(&InfoBridgePort::BroadcastFlood(true))
                && port.contains(&InfoBridgePort::MulticastFlood(true)),
            suppress: port.contains(&InfoBridgePort::NeighSupress(true)),
            isolated: port.contains(&InfoBridgePort::Isolated(true)),
        }),
        _ => None,
    })
}

/// One that does not answer ARP and ND itself is none that is made here: that can't be turned while it lives.
fn vxlan_of(data: &[InfoVxlan]) -> Option<LinkKind> {
    if !data.contains(&InfoVxlan::Proxy(true)) {
        return None;
    }
    let (mut vni, mut local, mut port) = (None, None, None);
    for attribute in data {
        match attribute {
            InfoVxlan::Id(id) => vni = Some(*id),
            InfoVxlan::Local(address) => local = Some(IpAddr::V4(*address)),
            InfoVxlan::Local6(address) => local = Some(IpAddr::V6(*address)),
            InfoVxlan::Port(number) => port = Some(*number),
            _ => {}
        }
    }
    Some(LinkKind::Vxlan { vni: vni?, local: local?, port: port? })
}

/// The policy routing rules of both families, whosever they are.
fn dump_rules(netlink: &mut Netlink) -> Result<Vec<RuleMessage>> {
    let mut rules = Vec::new();
    for family in FAMILIES {
        let mut ask = RuleMessage::default();
        ask.header.family = family;
        let messages = netlink.dump(&Message::GetRule(ask))?.into_iter();
        rules.extend(messages.filter_map(|message| match message {
            Message::NewRule(rule) => Some(rule),
            _ => None,
        }));
    }
    Ok(rules)
}

fn rule(message: &RuleMessage) -> Option<Object> {
    let ipv6 = message.header.family == AddressFamily::Inet6;
    let (mut table, mut selector, mut ours) = (u32::from(message.header.table), None, false);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(number) => table = *number,
            // The kernel shows no mark of 0, and the mask always.
            RuleAttribute::FwMask(u32::MAX) => {
                selector.get_or_insert(Selector::Mark { ipv6, mark: 0 });
            }
            RuleAttribute::FwMark(mark) => selector = Some(Selector::Mark { ipv6, mark: *mark }),
            RuleAttribute::Source(address) => selector = Some(Selector::From(*address)),
            RuleAttribute::Destination(address) => {
                selector = IpNetwork::new(*address, message.header.dst_len).ok().map(Selector::To);
            }
            RuleAttribute::Protocol(protocol) => ours = *protocol == RouteProtocol::Other(PROTOCOL),
            _ => {}
        }
    }
    ours.then_some(Object::Rule(selector?, table))
}

fn neighbour_address(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some((*address).into()),
        NeighbourAddress::Inet6(address) => Some((*address).into()),
        // Of a bridge's entries the family is not said: the length tells.
        NeighbourAddress::Other(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(&bytes[..]).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(&bytes[..]).ok().map(IpAddr::from),
            _ => None,
        },
        _ => None,
    }
}

fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn mac_of(bytes: &[u8]) -> Option<MacAddr> {
    bytes.try_into().ok().map(MacAddr)
}
