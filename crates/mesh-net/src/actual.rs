//! What the kernel holds of ours, read anew.

use crate::{
    desired::{Desired, Part, bridge, inner_uplink, uplink, uplink_mac},
    error::Result,
    kernel::Kernel,
    netlink::{RawLink, RawSpace},
    object::{Ifname, Name, Object, Objects, Selector, Space},
    sysctl, targets,
};
use mesh_model::{Endpoint, EndpointId, NetworkId, Snapshot};
use std::{collections::BTreeMap, net::IpAddr};

/// Reads every space that is kept or desired. Objects of others are left out; of settings, only those that are as
/// desired are there.
pub(crate) fn read(kernel: &mut Kernel, snapshot: &Snapshot, desired: &Desired) -> Result<Objects> {
    let mut objects = Objects::default();
    host(&kernel.read(Space::Host)?, &mut objects);
    for network in kernel.open_overlays() {
        let raw = kernel.read(Space::Overlay(network))?;
        objects.put(Space::Overlay(network), Object::Namespace);
        overlay(&raw, network, &mut objects);
    }
    for part in &desired.parts {
        match part.pair[1] {
            (Space::Host, _) => fetched(part, &mut objects),
            (Space::Target(id), _) => attached(kernel, snapshot, part, id, &mut objects)?,
            (Space::Overlay(_), _) => settings(kernel, part, &mut objects)?,
        }
    }
    Ok(objects)
}

/// Reads what an endpoint's target holds.
pub(crate) fn attached(
    kernel: &mut Kernel,
    snapshot: &Snapshot,
    part: &Part,
    id: EndpointId,
    objects: &mut Objects,
) -> Result<()> {
    let Some(endpoint) = snapshot.endpoints.get(&id) else { return Ok(()) };
    // A target that ended meanwhile holds nothing; the next pass says that it vanished.
    if targets::open(kernel, endpoint).is_ok() {
        let raw = kernel.read(Space::Target(id))?;
        target(&raw, endpoint, &part.objects, objects);
    }
    settings(kernel, part, objects)?;
    kernel.close_target(id);
    Ok(())
}

/// An endpoint that waits for its container: the other end of its pair is where its engine has it by now. It is there as
/// long as the port is, for the ends of a pair live and die together.
fn fetched(part: &Part, objects: &mut Objects) {
    let [(overlay, port), (space, name)] = part.pair;
    let far = part.objects.get(&(space, Name::Link(name)));
    if let (true, Some(far)) = (objects.contains(&(overlay, Name::Link(port))), far) {
        objects.put(space, far.clone());
    }
}

/// In the host, uplinks are told from others by name and MAC address, both of which follow from the VNI.
fn host(raw: &RawSpace, objects: &mut Objects) {
    collect(raw, Space::Host, is_uplink, objects);
    for object in &raw.objects {
        if matches!(object, Object::Rule(..)) {
            continue;
        }
        let on_ours = object.link().is_some_and(|link| objects.contains(&(Space::Host, Name::Link(link))));
        if on_ours {
            objects.put(Space::Host, object.clone());
        }
    }
}

/// Whether a link in the host is the end of a network's uplink.
pub(crate) fn is_uplink(link: &RawLink) -> bool {
    let vni = link.name.as_str().strip_prefix("up").and_then(|vni| vni.parse().ok());
    vni.is_some_and(|vni| uplink(vni) == link.name && uplink_mac(vni) == link.link.mac)
}

/// The overlay's namespace is ours as a whole; only links that somebody put there by other names are left alone.
fn overlay(raw: &RawSpace, network: NetworkId, objects: &mut Objects) {
    let space = Space::Overlay(network);
    let ours = |link: &RawLink| {
        let name = link.name.as_str();
        let port = name.len() == 15 && name.starts_with('p');
        link.name == bridge() || link.name == inner_uplink() || name.starts_with("vx") || port
    };
    collect(raw, space, ours, objects);
    let lo = loopback();
    if raw.links.values().any(|link| link.name == lo && link.up) {
        objects.put(space, Object::Up(lo, None));
    }
    for object in &raw.objects {
        let keep = match object {
            Object::Rule(..) => true,
            Object::Address(link, address) if *link == lo => !address.ip().is_loopback(),
            other => other.link().is_some_and(|link| objects.contains(&(space, Name::Link(link)))),
        };
        if keep {
            objects.put(space, object.clone());
        }
    }
}

/// A target is somebody else's: only what an endpoint is to have there counts, and routes and rules of ours.
fn target(raw: &RawSpace, endpoint: &Endpoint, wanted: &Objects, objects: &mut Objects) {
    let space = Space::Target(endpoint.id);
    let ours = |link: &RawLink| link.name.as_str() == endpoint.ifname && link.link.mac == endpoint.mac;
    collect(raw, space, ours, objects);
    let lo = loopback();
    if raw.links.values().any(|link| link.name == lo && link.up) {
        objects.put(space, Object::Up(lo, None));
    }
    let is_ours = |address: &IpAddr| endpoint.addresses.contains(address);
    for object in &raw.objects {
        let keep = match object {
            Object::Rule(Selector::From(address), _) => is_ours(address),
            Object::Route(..) => {
                object.link().is_some_and(|link| objects.contains(&(space, Name::Link(link))))
            }
            other => wanted.contains(&(space, other.name())),
        };
        if keep {
            objects.put(space, object.clone());
        }
    }
}

fn collect(raw: &RawSpace, space: Space, ours: impl Fn(&RawLink) -> bool, objects: &mut Objects) {
    for link in raw.links.values().filter(|link| ours(link)) {
        objects.put(space, Object::Link(link.name, link.link));
        if link.up {
            let bridge = link.bridge.and_then(|index| raw.links.get(&index)).map(|bridge| bridge.name);
            objects.put(space, Object::Up(link.name, bridge));
            if let (Some(bridge), Some(mode)) = (bridge, link.port) {
                objects.put(space, Object::Port(link.name, bridge, mode));
            }
        }
    }
}

fn settings(kernel: &Kernel, part: &Part, objects: &mut Objects) -> Result<()> {
    let mut by_space: BTreeMap<Space, Vec<&Object>> = BTreeMap::new();
    for (key, object) in part.objects.iter().filter(|(_, object)| sysctl::path(object).is_some()) {
        by_space.entry(key.0).or_default().push(object);
    }
    for (space, wanted) in by_space {
        let holding = || wanted.into_iter().filter(|object| sysctl::holds(object)).collect::<Vec<_>>();
        for object in kernel.within(space, holding)?.unwrap_or_default() {
            objects.put(space, object.clone());
        }
    }
    Ok(())
}

pub(crate) fn loopback() -> Ifname {
    Ifname::derived("lo", "")
}
