//! The host as it was found: its underlay, and the forwarding that ingress needs.

use crate::{
    error::{Error, Result},
    kernel::Kernel,
    netlink::RawLink,
    object::{Object, Space},
    sysctl,
};
use std::{
    collections::BTreeSet,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

/// Bytes that VXLAN adds: outer Ethernet payload of IP, UDP, VXLAN and the inner Ethernet header (RFC 7348).
const OVERHEAD_IPV4: u32 = 50;
const OVERHEAD_IPV6: u32 = 70;
/// The smallest MTU that IPv6 works with (RFC 8200). Overlays of IPv4 need it too: the kernel takes IPv6 away from a link with
/// less, and next hops are IPv6 link-local.
pub(crate) const MTU_MIN: u32 = 1280;
/// Where it is remembered which interfaces the host had when meshd made it forward.
const FILE: &str = "forwarding";

/// What the underlay leaves to overlays, in bytes: the interface with the advertise address and the ways to all other nodes
/// take no more. Call it in the host's namespace.
pub(crate) fn room_for_overlays(
    kernel: &mut Kernel,
    advertise: IpAddr,
    others: impl Iterator<Item = IpAddr>,
) -> Result<u32> {
    let host = kernel.read(Space::Host)?;
    let carrier = host.objects.iter().find_map(|object| match object {
        Object::Address(link, address) if address.ip() == advertise => Some(*link),
        _ => None,
    });
    let carrier = carrier.and_then(|name| host.links.values().find(|link| link.name == name));
    let mut underlay = link_mtu(carrier.ok_or(Error::NoUnderlay(advertise))?, advertise.is_ipv6());
    for other in others.filter(|other| other.is_ipv6() == advertise.is_ipv6()) {
        let Some((index, of_route)) = kernel.way_to(other)? else { continue };
        let of_link = host.links.get(&index).map(|link| link_mtu(link, advertise.is_ipv6()));
        underlay = of_link.into_iter().chain(of_route).fold(underlay, u32::min);
    }
    let overhead = if advertise.is_ipv6() { OVERHEAD_IPV6 } else { OVERHEAD_IPV4 };
    Ok(underlay.saturating_sub(overhead))
}

/// What an interface takes. Router advertisements may have lowered that for IPv6.
fn link_mtu(link: &RawLink, ipv6: bool) -> u32 {
    let advertised = sysctl::get(&format!("ipv6/conf/{}/mtu", link.name)).and_then(|mtu| mtu.parse().ok());
    advertised.filter(|_| ipv6).map_or(link.link.mtu, |mtu: u32| mtu.min(link.link.mtu))
}

/// Interfaces between which the host did not forward before meshd came, family by family: it must not begin to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) ipv4: BTreeSet<String>,
    pub(crate) ipv6: BTreeSet<String>,
}

impl Closed {
    /// What is remembered; and what must be from now on, if forwarding is about to be turned on. Call it in the host's
    /// namespace.
    pub(crate) fn load(run_dir: &Path, about_to_forward: bool) -> Result<Self> {
        let path = file(run_dir);
        let failed = |source| Error::File { path: path.clone(), source };
        let mut closed = match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(source) => return Err(failed(source)),
        };
        if !about_to_forward {
            return Ok(closed);
        }
        let before = closed.clone();
        let interfaces = || interfaces().map_err(failed);
        if closed.ipv4.is_empty() && !forwards_ipv4() {
            closed.ipv4 = interfaces()?;
        }
        if closed.ipv6.is_empty() && !forwards_ipv6() {
            closed.ipv6 = interfaces()?;
        }
        if closed != before {
            // Written before forwarding is turned on: a crash in between must not make the host look like a router.
            fs::write(&path, closed.to_text()).map_err(failed)?;
        }
        Ok(closed)
    }

    /// Ends the forwarding that meshd turned on. Call it in the host's namespace.
    pub(crate) fn stop_forwarding(&self, run_dir: &Path) -> Result<()> {
        if !self.ipv4.is_empty() {
            sysctl::put("ipv4/ip_forward", "0")?;
        }
        if !self.ipv6.is_empty() {
            sysctl::put("ipv6/conf/all/forwarding", "0")?;
        }
        let path = file(run_dir);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(Error::File { path, source }),
            _ => Ok(()),
        }
    }

    fn parse(text: &str) -> Self {
        let of = |family: &str| {
            text.lines()
                .filter_map(|line| line.strip_prefix(family)?.strip_prefix(' '))
                .map(str::to_owned)
                .collect()
        };
        Self { ipv4: of("ipv4"), ipv6: of("ipv6") }
    }

    fn to_text(&self) -> String {
        let lines = |family: &'static str, names: &BTreeSet<String>| {
            names.iter().map(|name| format!("{family} {name}\n")).collect::<String>()
        };
        lines("ipv4", &self.ipv4) + &lines("ipv6", &self.ipv6)
    }
}

/// Lets the host forward. Interfaces that live by router advertisements go on accepting them, which a router does
/// with `accept_ra=2` only. Call it in the host's namespace, when the firewall is in place.
pub(crate) fn forward() -> Result<()> {
    if !forwards_ipv4() {
        sysctl::put("ipv4/ip_forward", "1")?;
    }
    if !forwards_ipv6() {
        for interface in interfaces().unwrap_or_default() {
            let name = format!("ipv6/conf/{interface}/accept_ra");
            if sysctl::get(&name).as_deref() == Some("1") {
                sysctl::put(&name, "2")?;
            }
        }
        sysctl::put("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

fn forwards_ipv4() -> bool {
    sysctl::get("ipv4/ip_forward").as_deref() == Some("1")
}

/// A kernel without IPv6 needs no door closed for it.
fn forwards_ipv6() -> bool {
    sysctl::get("ipv6/conf/all/forwarding").is_none_or(|value| value == "1")
}

/// Names of this namespace's interfaces: every one has its directory here, whatever families it speaks.
pub(crate) fn interfaces() -> io::Result<BTreeSet<String>> {
    let entries = fs::read_dir("/proc/sys/net/ipv4/conf")?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| !matches!(name.as_str(), "all" | "default" | "lo") && !is_uplink(name)).collect())
}

/// Uplinks are there already if somebody turned forwarding off below a running mesh.
fn is_uplink(name: &str) -> bool {
    name.strip_prefix("up").is_some_and(|vni| !vni.is_empty() && vni.bytes().all(|b| b.is_ascii_digit()))
}

fn file(run_dir: &Path) -> PathBuf {
    run_dir.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_read_back() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let closed = Closed { ipv4: names(&["eth0", "wg 0"]), ipv6: names(&["eth1"]) };
        assert_eq!(Closed::parse(&closed.to_text()), closed);
        assert_eq!(Closed::parse(""), Closed::default());
    }
}
