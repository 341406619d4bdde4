//! The host's `/etc/resolv.conf` (resolv.conf(5)).

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
};

const DNS_PORT: u16 = 53;

/// The name servers of a `resolv.conf`, in its order and each once. Those in `skip` are left out: forwarding to
/// an address that we answer on ourselves would loop. So are lines that name no address. `index_of` says which interface
/// goes by a name, for an IPv6 link-local address (`fe80::1%eth0`, RFC 4007).
pub fn parse_resolv_conf(
    text: &str,
    skip: &BTreeSet<IpAddr>,
    index_of: impl Fn(&str) -> Option<u32>,
) -> Vec<SocketAddr> {
    let mut upstreams = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some("nameserver"), Some(address)) = (words.next(), words.next()) else { continue };
        match parse_address(address, &index_of) {
            Some(upstream) if !skip.contains(&upstream.ip()) && !upstreams.contains(&upstream) => {
                upstreams.push(upstream);
            }
            _ => {}
        }
    }
    upstreams
}

fn parse_address(text: &str, index_of: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    if let Some((address, scope)) = text.split_once('%') {
        let address: Ipv6Addr = address.parse().ok()?;
        let scope = scope.parse().ok().or_else(|| index_of(scope))?;
        return Some(SocketAddrV6::new(address, DNS_PORT, 0, scope).into());
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
                    nameserver fe80::1%3\nnameserver fe80::1%eth0\nnameserver fe80::1%gone\nnameserver\nnameserver nonsense\n\
                    nameservers 8.8.8.8\nnameserver 192.168.100.1\n";
        let upstreams =
            parse_resolv_conf(text, &BTreeSet::from(["192.168.100.1".parse().unwrap()]), |name| {
                (name == "eth0").then_some(7)
            });
        let texts: Vec<_> = upstreams.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.1:53", "9.9.9.9:53", "[fd00::53]:53", "[fe80::1%3]:53", "[fe80::1%7]:53"]);
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(nameserver|[ \t\n#;%.:0-9a-f]){0,60}") {
            for upstream in parse_resolv_conf(&text, &BTreeSet::new(), |_| None) {
                prop_assert_eq!(upstream.port(), DNS_PORT);
            }
        }
    }
}
