//! Ethernet addresses.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A text that is no MAC address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no MAC address: six hexadecimal octets separated by ':' are expected")]
pub struct ParseMacError(pub String);

/// An EUI-48 address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// A locally administered unicast address for an endpoint from 40 random bits. It is never derived from the
    /// IP address: a reused IP address must not inherit what peers remember of the old one.
    pub const fn endpoint(bits: u64) -> Self {
        let b = bits.to_be_bytes();
        Self([0x02, b[3], b[4], b[5], b[6], b[7]])
    }

    /// The address of the other end of an endpoint's veth pair, told from the endpoint's by one bit.
    pub const fn peer(self) -> Self {
        let [first, a, b, c, d, e] = self.0;
        Self([first ^ 0x08, a, b, c, d, e])
    }

    /// Whether an endpoint may have this address: a unicast one, and none of a node's bridge.
    pub const fn is_for_endpoints(self) -> bool {
        let [a, b, c, d, e, f] = self.0;
        let zero = a | b | c | d | e | f == 0;
        a & 1 == 0 && !zero && !(a == Self::BRIDGE[0] && b == Self::BRIDGE[1])
    }

    /// What the addresses of nodes' bridges begin with.
    const BRIDGE: [u8; 2] = [0x06, 0x6d];

    /// The address of a node's bridge, the same in each of its networks. The prefix keeps it apart from endpoints'.
    pub const fn bridge(node_index: u32) -> Self {
        let b = node_index.to_be_bytes();
        Self([Self::BRIDGE[0], Self::BRIDGE[1], b[0], b[1], b[2], b[3]])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for MacAddr {
    type Err = ParseMacError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseMacError(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *octet = part.and_then(|p| u8::from_str_radix(p, 16).ok()).ok_or_else(bad)?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(octets)) }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = ParseMacError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_prefixes_differ() {
        let mac = MacAddr::endpoint(0x1234_5678_9abc);
        assert_eq!(mac.to_string(), "02:34:56:78:9a:bc");
        assert_eq!(mac.to_string().parse(), Ok(mac));
        assert_eq!(MacAddr::bridge(7).to_string(), "06:6d:00:00:00:07");
        for bad in ["", "02:34", "02:34:56:78:9a:bc:de", "02:34:56:78:9a:+c", "2:34:56:78:9a:bc"] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }
}
