//! An endpoint on this node: a veth pair from the overlay's bridge into the target, and the target's routes.

use super::{Attachment, MAIN_TABLE, Owner, Part, TABLES, bridge, everything, port, staged};
use crate::object::{Ifname, Link, LinkKind, NextHop, Object, PortMode, Selector, Space};
use ipnetwork::IpNetwork;
use mesh_model::{Endpoint, EndpointId, Network, Subnet};

/// The objects of one endpoint; `None` if its interface name is none that the kernel takes.
pub(super) fn part(endpoint: &Endpoint, network: &Network, mtu: u32, attachment: Attachment) -> Option<Part> {
    let name = Ifname::new(&endpoint.ifname)?;
    let (overlay, target) = (Space::Overlay(network.id), Space::Target(endpoint.id));
    let mut part = Part::new(Owner::Endpoint(endpoint.id), [(overlay, port(endpoint.id)), (target, name)]);
    let mtu = network.mtu.unwrap_or(mtu);
    bridge_port(&mut part, overlay, endpoint, mtu);
    part.put(target, Object::Link(name, Link::new(LinkKind::Veth, endpoint.mac, mtu)));
    part.put(target, Object::Up(name, None));
    part.put(target, Object::Up(Ifname::derived("lo", ""), None));
    // Loose, for the client's address of a published port may be routed elsewhere.
    part.put(target, Object::LinkSysctl("ipv4/conf", name, "rp_filter", "2"));
    if endpoint.addresses.iter().any(|address| address.is_ipv6()) {
        // The link-local address is made of the MAC address: no other gets past the bridge.
        let settings =
            [("accept_dad", "0"), ("accept_ra", "0"), ("addr_gen_mode", "0"), ("disable_ipv6", "0")];
        for (sysctl, value) in settings {
            part.put(target, Object::LinkSysctl("ipv6/conf", name, sysctl, value));
        }
    }
    for address in &endpoint.addresses {
        let Some(subnet) = network.subnet_of(*address) else { continue };
        if let Ok(with_prefix) = IpNetwork::new(*address, subnet.cidr.prefix()) {
            part.put_address(target, name, with_prefix);
        }
        let gateway = NextHop::via(subnet.gateway, name);
        let everything = everything(address.is_ipv6());
        let has_default = if address.is_ipv6() { attachment.default_ipv6 } else { attachment.default_ipv4 };
        // Whatever other routes there are, or will be: what comes from this address goes back the way it came.
        let table = source_table(endpoint.id);
        part.put(target, Object::Route(table, everything, gateway));
        part.put(target, Object::Route(table, subnet.cidr, NextHop::on(name)));
        part.put(target, Object::Rule(Selector::From(*address), table));
        if has_default {
            part.put(target, Object::Route(MAIN_TABLE, everything, gateway));
        } else {
            for other in others(network, subnet) {
                part.put(target, Object::Route(MAIN_TABLE, other, gateway));
            }
        }
    }
    Some(part)
}

/// The network's other subnets of the same family, which the gateway leads to.
fn others<'a>(network: &'a Network, own: &'a Subnet) -> impl Iterator<Item = IpNetwork> + 'a {
    network.prefixes().filter(|cidr| *cidr != own.cidr && cidr.is_ipv6() == own.cidr.is_ipv6())
}

/// The objects of an endpoint that waits for its container: the pair's other end is in the host's namespace, for the
/// container's engine to move it from there, name it and give it its addresses.
pub(super) fn staged_part(endpoint: &Endpoint, network: &Network, mtu: u32) -> Part {
    let overlay = Space::Overlay(network.id);
    let pair = [(overlay, port(endpoint.id)), (Space::Host, staged(endpoint.id))];
    let mut part = Part::new(Owner::Endpoint(endpoint.id), pair);
    let mtu = network.mtu.unwrap_or(mtu);
    bridge_port(&mut part, overlay, endpoint, mtu);
    let far = Link::new(LinkKind::Veth, endpoint.mac, mtu);
    part.put(Space::Host, Object::Link(staged(endpoint.id), far));
    part
}

fn bridge_port(part: &mut Part, overlay: Space, endpoint: &Endpoint, mtu: u32) {
    let near = Link::new(LinkKind::Veth, endpoint.mac.peer(), mtu);
    part.put(overlay, Object::Link(port(endpoint.id), near));
    part.put(overlay, Object::Up(port(endpoint.id), Some(bridge())));
    part.put(overlay, Object::Port(port(endpoint.id), bridge(), PortMode::CONTAINER));
    part.put(overlay, Object::Station(port(endpoint.id), bridge(), endpoint.mac));
}

/// A table of the endpoint's own in its target, where endpoints of other networks may have theirs.
fn source_table(endpoint: EndpointId) -> u32 {
    TABLES + (endpoint.bits() >> 40) as u32
}
