//! The host's `/etc/resolv.conf` (resolv.conf(5)).

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
};

const DNS_PORT: u16 = 53;

/// The name servers of a `resolv.conf`, in its order and each once. Those in `skip` are left out: forwarding to
/// an address that we answer on ourselves would loop. So are lines that name no address; an IPv6 link-local one
/// needs a numeric scope (`fe80::1%2`), since names of interfaces can't be looked up in a text.
pub fn parse_resolv_conf(text: &str, skip: &BTreeSet<IpAddr>) -> Vec<SocketAddr> {
    let mut upstreams = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some("nameserver"), Some(address)) = (words.next(), words.next()) else { continue };
        match parse_address(address) {
            Some(upstream) if !skip.contains(&upstream.ip()) && !upstreams.contains(&upstream) => {
                upstreams.push(upstream);
            }
            _ => {}
        }
    }
    upstreams
}

fn parse_address(text: &str) -> Option<SocketAddr> {
    if let Some((address, scope)) = text.split_once('%') {
        let address: Ipv6Addr = address.parse().ok()?;
        return Some(SocketAddrV6::new(address, DNS_PORT, 0, scope.parse().ok()?).into());
    }
    text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, DNS_PORT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn servers_come_in_order_once_and_without_ourselves() {
        let text = "# nameserver 1.1.1.1\n; nameserver 2.2.2.2\nsearch example.com\noptions ndots:2\n\
                    nameserver 10.0.0.1\n  nameserver\t9.9.9.9 # quad\nnameserver 10.0.0.1\nnameserver fd00::53\n\
                    nameserver fe80::1%3\nnameserver fe80::1%eth0\nnameserver\nnameserver nonsense\n\
                    nameservers 8.8.8.8\nnameserver 192.168.100.1\n";
        let upstreams = parse_resolv_conf(text, &BTreeSet::from(["192.168.100.1".parse().unwrap()]));
        let texts: Vec<_> = upstreams.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.1:53", "9.9.9.9:53", "[fd00::53]:53", "[fe80::1%3]:53"]);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(nameserver|[ \t\n#;%.:0-9a-f]){0,60}") {
            for upstream in parse_resolv_conf(&text, &BTreeSet::new()) {
                prop_assert_eq!(upstream.port(), DNS_PORT);
            }
        }
    }
}
