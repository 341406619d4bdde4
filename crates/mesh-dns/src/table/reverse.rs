//! Names that stand for addresses: `in-addr.arpa` (RFC 1035, 3.5) and `ip6.arpa` (RFC 3596, 2.5).

use crate::name::{labels, strip_suffix};
use ipnetwork::IpNetwork;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const IN_ADDR: &[u8] = b"\x07in-addr\x04arpa";
const IP6: &[u8] = b"\x03ip6\x04arpa";

/// The address, or the beginning of one, that a name stands for.
#[derive(Debug)]
pub(super) struct Prefix {
    v6: bool,
    /// The address's leading bits, the rest 0.
    bits: u128,
    /// How many octets or nibbles of it the name gives.
    parts: usize,
    /// Where the labels of those parts start, the leading part first.
    starts: [u8; NIBBLES],
    /// Whether the name has nothing in front of them.
    whole: bool,
}

const NIBBLES: usize = 32;

impl Prefix {
    /// None if the name belongs to neither domain.
    pub(super) fn parse(name: &[u8]) -> Option<Self> {
        if let Some(rest) = strip_suffix(name, IN_ADDR) {
            return Some(Self::read(rest, false, octet));
        }
        strip_suffix(name, IP6).map(|rest| Self::read(rest, true, nibble))
    }

    /// Reads labels from the right until one is no part of an address.
    fn read(rest: &[u8], v6: bool, part: fn(&[u8]) -> Option<u8>) -> Self {
        let (total, width) = if v6 { (NIBBLES, 4) } else { (4, 8) };
        let mut places = [0u8; 128];
        let mut count = 0;
        for (place, (at, _)) in places.iter_mut().zip(labels(rest)) {
            *place = at as u8;
            count += 1;
        }
        let mut prefix = Self { v6, bits: 0, parts: 0, starts: [0; NIBBLES], whole: count == 0 };
        let mut end = rest.len();
        for at in places[..count].iter().rev().take(total) {
            let start = usize::from(*at);
            let Some(value) = part(&rest[start + 1..end]) else { break };
            prefix.starts[prefix.parts] = *at;
            prefix.parts += 1;
            prefix.bits |= u128::from(value) << (width * (total - prefix.parts));
            prefix.whole = *at == 0;
            end = start;
        }
        prefix
    }

    /// The address, if all of it is given and nothing more.
    pub(super) fn address(&self) -> Option<IpAddr> {
        let complete = self.whole && self.parts == if self.v6 { NIBBLES } else { 4 };
        complete.then(|| self.first())
    }

    /// Whether the name is nothing but the beginning of an address.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Where the zone's name starts that all of a subnet's addresses of this beginning are in: the shortest that
    /// has no foreign addresses. None if no subnet covers it.
    pub(super) fn apex(&self, subnets: &[IpNetwork]) -> Option<usize> {
        let width = if self.v6 { 4 } else { 8 };
        let subnet = subnets.iter().find(|subnet| subnet.contains(self.first()))?;
        // One part at least: a zone can't start before the first label.
        let parts = usize::from(subnet.prefix()).div_ceil(width).max(1);
        (parts <= self.parts).then(|| usize::from(self.starts[parts - 1]))
    }

    fn first(&self) -> IpAddr {
        if self.v6 {
            Ipv6Addr::from_bits(self.bits).into()
        } else {
            Ipv4Addr::from_bits(self.bits as u32).into()
        }
    }
}

/// A decimal octet, as written in its one way.
fn octet(label: &[u8]) -> Option<u8> {
    let plain = label.iter().all(u8::is_ascii_digit) && (label.len() == 1 || label.first() != Some(&b'0'));
    std::str::from_utf8(label).ok().filter(|_| plain)?.parse().ok()
}

/// One hexadecimal digit; the case was lowered before.
fn nibble(label: &[u8]) -> Option<u8> {
    match label {
        [digit @ b'0'..=b'9'] => Some(digit - b'0'),
        [letter @ b'a'..=b'f'] => Some(letter - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::encode;

    fn prefix(text: &str) -> Prefix {
        Prefix::parse(&encode(text).unwrap()).unwrap()
    }

    fn subnets(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_are_read_and_nothing_else_is_one() {
        let v4 = prefix("7.100.168.192.in-addr.arpa");
        assert_eq!(v4.address(), Some("192.168.100.7".parse().unwrap()));
        let v6 = prefix(&format!("1{}.d.f.ip6.arpa", ".0".repeat(29)));
        assert_eq!(v6.address(), Some("fd00::1".parse().unwrap()));
        for no_address in [
            "in-addr.arpa",
            "168.192.in-addr.arpa",
            "07.100.168.192.in-addr.arpa",
            "a.7.100.168.192.in-addr.arpa",
            "256.1.1.1.in-addr.arpa",
            "5.4.3.2.1.in-addr.arpa",
            "f.ip6.arpa",
            "10.0.ip6.arpa",
        ] {
            assert_eq!(prefix(no_address).address(), None, "{no_address}");
        }
        assert!(Prefix::parse(&encode("7.100.168.192.arpa").unwrap()).is_none());
    }

    #[test]
    fn the_zone_holds_no_address_of_others() {
        let ours = subnets(&["192.168.100.0/24", "10.4.0.0/14", "10.1.1.64/26", "fd00:1::/64"]);
        let apex = |text: &str| prefix(text).apex(&ours).map(|at| text[at..].to_owned());
        assert_eq!(apex("7.100.168.192.in-addr.arpa").as_deref(), Some("100.168.192.in-addr.arpa"));
        assert_eq!(apex("100.168.192.in-addr.arpa").as_deref(), Some("100.168.192.in-addr.arpa"));
        assert_eq!(apex("x.7.100.168.192.in-addr.arpa").as_deref(), Some("100.168.192.in-addr.arpa"));
        assert_eq!(apex("168.192.in-addr.arpa"), None);
        assert_eq!(apex("1.101.168.192.in-addr.arpa"), None);
        assert_eq!(apex("1.1.7.10.in-addr.arpa").as_deref(), Some("7.10.in-addr.arpa"));
        assert_eq!(apex("1.1.8.10.in-addr.arpa"), None);
        assert_eq!(apex("65.1.1.10.in-addr.arpa").as_deref(), Some("65.1.1.10.in-addr.arpa"));
        assert_eq!(apex("63.1.1.10.in-addr.arpa"), None);
        assert_eq!(apex("in-addr.arpa"), None);
        assert_eq!(
            apex("0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa").as_deref(),
            Some("0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa")
        );
    }
}
