//! The kernel's main routing tables, as `/proc/net/route` and `/proc/net/ipv6_route` show them.

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A route that has a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) to: IpNetwork,
    pub(crate) via: IpAddr,
}

/// `RTF_UP` and `RTF_GATEWAY`.
const UP: u32 = 1;
const GATEWAY: u32 = 2;

/// Routes through an interface: `Iface Destination Gateway Flags RefCnt Use Metric Mask …`, addresses in the byte order
/// of the machine.
pub(crate) fn ipv4(table: &str, ifname: &str) -> Vec<Route> {
    let route = |line: &str| {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        let [name, to, via, flags, _, _, _, mask, ..] = columns.as_slice() else { return None };
        let number = |text: &str| u32::from_str_radix(text, 16).ok();
        let address = |text: &str| number(text).map(|bits| Ipv4Addr::from(bits.to_ne_bytes()));
        let to = Ipv4Network::with_netmask(address(to)?, address(mask)?).ok()?;
        let usable = number(flags)? & (UP | GATEWAY) == UP | GATEWAY;
        (usable && *name == ifname).then_some(Route { to: to.into(), via: address(via)?.into() })
    };
    table.lines().filter_map(route).collect()
}

/// Likewise: `destination length source length next-hop metric references use flags interface`. The kernel shows all tables
/// here, and meshd makes one for each address, with a default route for what comes from it: one of those is not told.
pub(crate) fn ipv6(table: &str, ifname: &str) -> Vec<Route> {
    let route = |line: &str| {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        let [to, length, _, _, via, _, _, _, flags, name] = columns.as_slice() else { return None };
        let address = |text: &str| u128::from_str_radix(text, 16).ok().map(Ipv6Addr::from);
        let to = Ipv6Network::new(address(to)?, u8::from_str_radix(length, 16).ok()?).ok()?;
        let usable = u32::from_str_radix(flags, 16).ok()? & (UP | GATEWAY) == UP | GATEWAY;
        (usable && *name == ifname).then_some(Route { to: to.into(), via: address(via)?.into() })
    };
    let mut routes: Vec<Route> = table.lines().filter_map(route).collect();
    if let Some(of_address) = routes.iter().position(|route| route.to.prefix() == 0) {
        routes.remove(of_address);
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn routes_by_a_gateway_are_found() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0132320A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth1\t00000000\t0133330A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t0032320A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\nbroken\n";
        let found = ipv4(table, "eth0");
        let expected = Route { to: "0.0.0.0/0".parse().unwrap(), via: "10.50.50.1".parse().unwrap() };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn routes_of_ipv6_are_found() {
        let zero = "0".repeat(32);
        let default = format!(
            "{zero} 00 {zero} 00 fd000050000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n"
        );
        let table = format!(
            "{default}\
             fd000050000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth0\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n"
        );
        let expected = Route { to: "::/0".parse().unwrap(), via: "fd00:50::1".parse().unwrap() };
        assert!(ipv6(&table, "eth0").is_empty(), "that of the address's own table");
        assert_eq!(ipv6(&format!("{default}{table}"), "eth0"), [expected]);
    }
}
