//! A look at the namespace of the calling thread: what of the host concerns the mesh, whoever set it up.

pub use crate::conntrack::Losses;
use crate::{
    conntrack::Conntrack,
    error::{Error, Result},
    netlink::{Netlink, RawLink, RawSpace},
    nft::{ForwardChain, Nft},
    object::Object,
    ports::HostPort,
    sysctl,
};
use ipnetwork::IpNetwork;
use std::{collections::BTreeMap, net::IpAddr};

mod legacy;

/// An address of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddress {
    /// The interface that has it.
    pub link: String,
    /// MTU of that interface, in bytes.
    pub mtu: u32,
    /// The address, with the prefix that is on the link.
    pub address: IpNetwork,
}

/// How full a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Entries.
    pub used: u64,
    /// Entries that fit.
    pub max: u64,
    /// Who has asked for most of them, and for how many; looked for only where they are more than half of what fits.
    pub most: Option<(IpAddr, u64)>,
    /// What there was no room for; nothing if the kernel does not say.
    pub losses: Losses,
}

/// What of the host concerns the mesh.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// Its addresses, those of uplinks and of loopback aside.
    pub addresses: Vec<HostAddress>,
    /// Uplinks of networks, also of those that a meshd with other directories made.
    pub uplinks: Vec<String>,
    /// Connections that are tracked.
    pub conntrack: Option<Usage>,
    /// Whether it forwards IPv4.
    pub forwards_ipv4: bool,
    /// Whether it forwards IPv6.
    pub forwards_ipv6: bool,
    /// Uplinks at which answers of published ports are dropped by a strict reverse path filter.
    pub strict_uplinks: Vec<String>,
    /// Base chains of others at the forward hook, those of iptables of the old kind too.
    pub forward_chains: Vec<ForwardChain>,
}

/// Looks at the calling thread's namespace as the host's. A few milliseconds; blocks.
///
/// # Errors
/// Netlink is out of reach.
pub fn survey() -> Result<Survey> {
    let raw = RawSpace::read_links_and_addresses(&mut Netlink::open()?)?;
    let is_uplink = |name: &str| raw.links.values().any(|link| link.name.as_str() == name && uplink(link));
    let address = |object: &Object| match object {
        Object::Address(link, address) if !is_uplink(link.as_str()) && !address.ip().is_loopback() => {
            let mtu = raw.links.values().find(|raw| raw.name == *link).map_or(0, |raw| raw.link.mtu);
            Some(HostAddress { link: link.to_string(), mtu, address: *address })
        }
        _ => None,
    };
    let uplinks = raw.links.values().filter(|link| uplink(link)).map(|link| link.name.to_string());
    let uplinks: Vec<String> = uplinks.collect();
    let chains = Nft::open().and_then(|mut nft| nft.forward_chains());
    let chains =
        chains.map_err(|source| Error::Firewall { place: "the host".into(), source: Box::new(source) })?;
    Ok(Survey {
        addresses: raw.objects.iter().filter_map(address).collect(),
        conntrack: conntrack(),
        forwards_ipv4: sysctl::get("ipv4/ip_forward").as_deref() == Some("1"),
        forwards_ipv6: sysctl::get("ipv6/conf/all/forwarding").is_none_or(|value| value != "0"),
        strict_uplinks: uplinks.iter().filter(|name| is_strict(name)).cloned().collect(),
        uplinks,
        forward_chains: chains.into_iter().chain(legacy::forward_chains()).collect(),
    })
}

/// Which of these ports of the host somebody else's rules translate, and where: as nft names the chain, or as iptables does
/// for tables of the old kind. Blocks, for a few milliseconds.
///
/// # Errors
/// Netlink is out of reach.
pub fn translators(ports: &[HostPort]) -> Result<BTreeMap<HostPort, String>> {
    let found = Nft::open().and_then(|mut nft| nft.translators(ports));
    let mut found =
        found.map_err(|source| Error::Firewall { place: "the host".into(), source: Box::new(source) })?;
    for (port, by) in legacy::translators(ports) {
        found.entry(port).or_insert(by);
    }
    Ok(found)
}

/// The kernel's count of changes to nftables in the calling thread's namespace, by anybody; none if it does not say.
pub fn generation() -> Option<u32> {
    Nft::open().and_then(|mut nft| nft.generation()).ok()
}

/// How many connections are tracked in the calling thread's namespace; none if the kernel does not say. Blocks, for a
/// second where they are hundreds of thousands.
pub fn conntrack() -> Option<Usage> {
    let number = |name: &str| sysctl::get(&format!("netfilter/{name}"))?.parse().ok();
    let (used, max): (u64, u64) = (number("nf_conntrack_count")?, number("nf_conntrack_max")?);
    let most = || {
        let askers = Conntrack::open().and_then(|mut conntrack| conntrack.askers()).ok()?;
        askers.into_iter().map(|(asker, count)| (asker, count.into())).max_by_key(|(_, count)| *count)
    };
    let losses = Conntrack::open().and_then(|mut conntrack| conntrack.losses()).unwrap_or_default();
    Some(Usage { used, max, most: (used > max / 2).then(most).flatten(), losses })
}

/// The interface that has an address, of those of a host.
pub fn interface_of(addresses: &[HostAddress], address: IpAddr) -> Option<&HostAddress> {
    addresses.iter().find(|host| host.address.ip() == address)
}

fn uplink(link: &RawLink) -> bool {
    crate::actual::is_uplink(link)
}

/// The stricter one of the settings for all and for the link counts (`ip-sysctl`, rp_filter), 2 being loose.
fn is_strict(link: &str) -> bool {
    let of = |name: &str| -> Option<u8> { sysctl::get(&format!("ipv4/conf/{name}/rp_filter"))?.parse().ok() };
    of("all").unwrap_or(0).max(of(link).unwrap_or(0)) == 1
}
