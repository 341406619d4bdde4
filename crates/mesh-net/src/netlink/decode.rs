//! What a namespace holds, as the kernel dumps it, in terms of [`Object`].

use super::{Netlink, encode::PROTOCOL};
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
        InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo,
        LinkMessage, State,
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
    /// The default routes of the main table, whoever made them.
    pub(crate) defaults: Vec<DefaultRoute>,
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
        space.read_routing(netlink)?;
        Ok(space)
    }

    /// Reads links and addresses only.
    pub(crate) fn read_links_and_addresses(netlink: &mut Netlink) -> Result<Self> {
        let mut space = Self { links: read_links(netlink)?, ..Self::default() };
        for message in netlink.dump(&Message::GetAddress(AddressMessage::default()))? {
            if let Message::NewAddress(address) = message {
                space.objects.extend(space.address(&address));
            }
        }
        Ok(space)
    }

    /// Reads links and default routes only.
    pub(crate) fn read_routing_only(netlink: &mut Netlink) -> Result<Self> {
        let mut space = Self { links: read_links(netlink)?, ..Self::default() };
        space.read_routing(netlink)?;
        Ok(space)
    }

    fn read_routing(&mut self, netlink: &mut Netlink) -> Result<()> {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut ask = RouteMessage::default();
            ask.header.address_family = family;
            for message in netlink.dump(&Message::GetRoute(ask))? {
                if let Message::NewRoute(route) = message {
                    self.route(&route);
                }
            }
            let mut ask = RuleMessage::default();
            ask.header.family = family;
            for message in netlink.dump(&Message::GetRule(ask))? {
                if let Message::NewRule(message) = message {
                    self.objects.extend(rule(&message));
                }
            }
        }
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

    fn route(&mut self, message: &RouteMessage) {
        if message.header.kind != RouteType::Unicast {
            return;
        }
        let ipv6 = message.header.address_family == AddressFamily::Inet6;
        let (mut table, mut link, mut via, mut to) = (u32::from(message.header.table), None, None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Table(number) => table = *number,
                RouteAttribute::Oif(index) => link = self.name(*index),
                RouteAttribute::Gateway(address) => via = route_address(address),
                RouteAttribute::Via(RouteVia::Inet6(address)) => via = Some((*address).into()),
                RouteAttribute::Destination(address) => to = route_address(address),
                _ => {}
            }
        }
        let everything = if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let to = IpNetwork::new(to.unwrap_or(everything), message.header.destination_prefix_length);
        let (Ok(to), Some(link)) = (to, link) else { return };
        let ours = message.header.protocol == RouteProtocol::Other(PROTOCOL);
        if table == MAIN && to.prefix() == 0 {
            self.defaults.push(DefaultRoute { ipv6, link, ours });
        }
        if ours {
            self.objects.push(Object::Route(table, to, NextHop { via, link }));
        }
    }
}

fn read_links(netlink: &mut Netlink) -> Result<BTreeMap<u32, RawLink>> {
    let links = netlink.dump(&Message::GetLink(LinkMessage::default()))?;
    let decoded = links.iter().filter_map(|message| match message {
        Message::NewLink(link) => Some((link.header.index, RawLink::decode(link)?)),
        _ => None,
    });
    Ok(decoded.collect())
}

impl RawLink {
    pub(crate) fn decode(message: &LinkMessage) -> Option<Self> {
        let (mut name, mut mac, mut mtu, mut bridge) = (None, None, 0, None);
        let (mut kind, mut port, mut operational) = (LinkKind::Foreign, None, false);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name = Ifname::new(text),
                LinkAttribute::Address(bytes) => mac = mac_of(bytes),
                LinkAttribute::Mtu(bytes) => mtu = *bytes,
                LinkAttribute::Controller(index) => bridge = Some(*index),
                LinkAttribute::LinkInfo(info) => (kind, port) = (kind_of(info), port_of(info)),
                LinkAttribute::OperState(state) => operational = matches!(state, State::Up | State::Unknown),
                _ => {}
            }
        }
        let link = Link { kind, mac: mac.unwrap_or(MacAddr([0; 6])), mtu };
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

fn port_of(info: &[LinkInfo]) -> Option<PortMode> {
    info.iter().find_map(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(port)) => Some(PortMode {
            hairpin: port.contains(&InfoBridgePort::HairpinMode(true)),
            learning: port.contains(&InfoBridgePort::Learning(true)),
            flood: port.contains(&InfoBridgePort::UnicastFlood(true)),
        }),
        _ => None,
    })
}

fn vxlan_of(data: &[InfoVxlan]) -> Option<LinkKind> {
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

fn rule(message: &RuleMessage) -> Option<Object> {
    let ipv6 = message.header.family == AddressFamily::Inet6;
    let (mut table, mut selector, mut ours) = (u32::from(message.header.table), None, false);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::FwMark(mark) => selector = Some(Selector::Mark { ipv6, mark: *mark }),
            RuleAttribute::Source(address) => selector = Some(Selector::From(*address)),
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
