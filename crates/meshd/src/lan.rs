//! The prefixes that this host is on itself. A network inside one would be the narrower route: the host's neighbours there
//! would be out of its reach.

use ipnetwork::IpNetwork;
use mesh_model::Refusal;
use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    sys::socket::SockaddrStorage,
};
use std::net::IpAddr;

/// A prefix of this host.
#[derive(Debug)]
struct Lan {
    prefix: IpNetwork,
    interface: String,
}

/// Refuses subnets that overlap a prefix of this host's interfaces.
pub(crate) fn check(subnets: &[IpNetwork]) -> Result<(), String> {
    if subnets.is_empty() {
        return Ok(());
    }
    apart(subnets, &own()).map_err(|refusal| refusal.to_string())
}

/// The prefixes of this host's interfaces.
pub(crate) fn prefixes() -> Vec<IpNetwork> {
    own().into_iter().map(|lan| lan.prefix).collect()
}

/// A host that does not tell its addresses can't be checked: that is no reason to refuse.
fn own() -> Vec<Lan> {
    let addresses = getifaddrs().into_iter().flatten();
    let lan = |own: InterfaceAddress| {
        let (address, mask) = (ip(own.address?)?, ip(own.netmask?)?);
        let prefix = IpNetwork::with_netmask(address, mask).ok()?;
        Some(Lan { prefix, interface: own.interface_name })
    };
    addresses.filter_map(lan).collect()
}

fn ip(address: SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}

fn apart(subnets: &[IpNetwork], own: &[Lan]) -> Result<(), Refusal> {
    for subnet in subnets {
        let meets =
            |lan: &&Lan| lan.prefix.contains(subnet.network()) || subnet.contains(lan.prefix.network());
        if let Some(Lan { prefix, interface }) = own.iter().find(meets) {
            let other = IpNetwork::new(prefix.network(), prefix.prefix()).unwrap_or(*prefix);
            let what = format!("the network of this host's {interface}");
            return Err(Refusal::Overlap { subnet: *subnet, other, what });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_and_a_lan_meet_whichever_is_wider() {
        let prefix = |text: &str| text.parse::<IpNetwork>().unwrap();
        let lan = |text| Lan { prefix: prefix(text), interface: "eth0".to_owned() };
        let own = [lan("10.77.0.11/24"), lan("fd77::11/64")];
        let said = |subnet| apart(&[prefix(subnet)], &own).map_err(|refusal| refusal.to_string());
        for subnet in ["10.77.0.96/27", "10.77.0.0/24", "10.64.0.0/10", "fd77::a:0:0/96", "fd00::/8"] {
            assert!(said(subnet).is_err_and(|said| said.contains("this host's eth0: choose")), "{subnet}");
        }
        let meets = said("10.77.0.96/27").unwrap_err();
        assert!(meets.starts_with("subnet 10.77.0.96/27 overlaps 10.77.0.0/24, which is"), "{meets}");
        assert_eq!((said("10.77.1.0/24"), said("fd78::/64")), (Ok(()), Ok(())));
    }

    #[test]
    fn this_host_is_on_its_loopback() {
        assert!(check(&["127.0.0.0/24".parse().unwrap()]).is_err());
    }
}
