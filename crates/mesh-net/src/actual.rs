//! What the kernel holds of ours, read anew.

use crate::{
    desired::{Desired, Part, bridge, inner_uplink, uplink, uplink_mac},
    error::{Error, Result},
    kernel::Kernel,
    netlink::{RawLink, RawSpace},
    object::{Ifname, Name, Object, Objects, Selector, Space},
    sysctl, targets,
};
use mesh_model::{Endpoint, EndpointId, NetworkId, Snapshot};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

/// Endpoints whose targets can't be looked at now, and why. A target is somebody else's, who may keep it changing or in
/// what state they like: that is a failure of this endpoint, and of nobody else.
pub(crate) type Unread = BTreeMap<EndpointId, Error>;

/// Reads every space that is kept or desired. Objects of others are left out; of settings, only those that are as
/// desired are there.
pub(crate) fn read(
    kernel: &mut Kernel,
    snapshot: &Snapshot,
    desired: &Desired,
    unread: &mut Unread,
) -> Result<Objects> {
    let mut objects = Objects::default();
    let overlays = kernel.open_overlays()?;
    reread(kernel, snapshot, desired, &overlays, &mut objects, unread)?;
    Ok(objects)
}

/// Reads some overlays anew, and all else that the kernel says nothing of when it changes: the host, targets and settings.
/// What is desired has to be all of these.
pub(crate) fn reread(
    kernel: &mut Kernel,
    snapshot: &Snapshot,
    desired: &Desired,
    overlays: &BTreeSet<NetworkId>,
    objects: &mut Objects,
    unread: &mut Unread,
) -> Result<()> {
    objects.retain(|(space, _), object| match space {
        Space::Host | Space::Target(_) => false,
        Space::Overlay(network) => !overlays.contains(network) && sysctl::path(object).is_none(),
    });
    host(&kernel.read(Space::Host)?, objects);
    for network in overlays.iter().copied() {
        let raw = kernel.read(Space::Overlay(network))?;
        objects.put(Space::Overlay(network), Object::Namespace);
        overlay(&raw, network, objects);
    }
    for part in &desired.parts {
        match part.pair[1] {
            (Space::Host, _) => assume(part, objects),
            (Space::Target(id), _) => attached(kernel, snapshot, part, id, objects, unread),
            (Space::Overlay(_), _) => settings(kernel, part, objects)?,
        }
    }
    leave_unread(desired, unread, objects);
    Ok(())
}

/// Takes targets that can't be looked at for unchanged.
pub(crate) fn leave_unread(desired: &Desired, unread: &Unread, objects: &mut Objects) {
    let is_unread = |part: &&Part| matches!(part.pair[1].0, Space::Target(id) if unread.contains_key(&id));
    for part in desired.parts.iter().filter(is_unread) {
        let target = part.pair[1].0;
        objects.retain(|(space, _), _| *space != target);
        assume(part, objects);
    }
}

/// Reads what an endpoint's target holds.
pub(crate) fn attached(
    kernel: &mut Kernel,
    snapshot: &Snapshot,
    part: &Part,
    id: EndpointId,
    objects: &mut Objects,
    unread: &mut Unread,
) {
    let Some(endpoint) = snapshot.endpoints.get(&id).filter(|_| !unread.contains_key(&id)) else { return };
    let outcome = match targets::open(kernel, endpoint) {
        Ok(()) => kernel.read_link(Space::Target(id), part.pair[1].1).and_then(|raw| {
            target(&raw, endpoint, &part.objects, objects);
            settings(kernel, part, objects)
        }),
        // It ended meanwhile and holds nothing; the next pass says that it vanished.
        Err(Error::TargetGone { .. } | Error::NotANamespace { .. }) => Ok(()),
        Err(error) => Err(error),
    };
    kernel.close_target(id);
    if let Err(error) = outcome {
        unread.insert(id, targets::unread(endpoint, &error));
    }
}

/// The other end of a pair where nobody looks: the engine of a container that is waited for has it by now, or the target
/// can't be read. It is there as long as the port is, for the ends of a pair live and die together.
fn assume(part: &Part, objects: &mut Objects) {
    let [(overlay, port), (space, _)] = part.pair;
    if objects.contains(&(overlay, Name::Link(port))) {
        let far = part.objects.iter().filter(|(key, _)| key.0 == space);
        far.for_each(|(_, object)| objects.put(space, object.clone()));
    }
}

/// In the host, uplinks are told from others by name and MAC address, both of which follow from the VNI.
fn host(raw: &RawSpace, objects: &mut Objects) {
    collect(raw, Space::Host, is_uplink, objects);
    for object in &raw.objects {
        if let Object::Rule(selector, _) = object {
            if matches!(selector, Selector::To(_)) {
                objects.put(Space::Host, object.clone());
            }
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
