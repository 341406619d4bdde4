//! The header of the PROXY protocol, by which a replica learns who its client is (HAProxy's `proxy-protocol.txt`).

use mesh_model::ProxyProtocol;
use std::net::{IpAddr, SocketAddr};

/// What a header of version 2 begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2 with its command.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
/// No family; TCP over IPv4; TCP over IPv6.
const UNSPEC: u8 = 0x00;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;

/// The header of a client's TCP connection to a published address. Both are of one family.
pub(crate) fn header(version: ProxyProtocol, client: SocketAddr, published: SocketAddr) -> Vec<u8> {
    let ports = [client.port(), published.port()];
    match (version, client.ip(), published.ip()) {
        (ProxyProtocol::V1, IpAddr::V4(_), IpAddr::V4(_)) => text("TCP4", client, published),
        (ProxyProtocol::V1, IpAddr::V6(_), IpAddr::V6(_)) => text("TCP6", client, published),
        (ProxyProtocol::V2, IpAddr::V4(from), IpAddr::V4(to)) => {
            binary(PROXY, TCP4, &[from.octets(), to.octets()].concat(), &ports)
        }
        (ProxyProtocol::V2, IpAddr::V6(from), IpAddr::V6(to)) => {
            binary(PROXY, TCP6, &[from.octets(), to.octets()].concat(), &ports)
        }
        _ => own(version),
    }
}

/// The header of a connection that is nobody's but this node's own, as of a health check.
pub(crate) fn own(version: ProxyProtocol) -> Vec<u8> {
    match version {
        ProxyProtocol::V1 => b"PROXY UNKNOWN\r\n".to_vec(),
        ProxyProtocol::V2 => binary(LOCAL, UNSPEC, &[], &[]),
    }
}

fn text(family: &str, client: SocketAddr, published: SocketAddr) -> Vec<u8> {
    let (from, to) = (client.ip(), published.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), published.port()).into_bytes()
}

fn binary(command: u8, family: u8, addresses: &[u8], ports: &[u16]) -> Vec<u8> {
    let len = (addresses.len() + 2 * ports.len()) as u16;
    let mut header = SIGNATURE.to_vec();
    header.extend([command, family]);
    header.extend(len.to_be_bytes());
    header.extend(addresses);
    header.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(version: ProxyProtocol, client: &str, published: &str) -> Vec<u8> {
        header(version, client.parse().unwrap(), published.parse().unwrap())
    }

    #[test]
    fn version_1_is_a_line() {
        let four = of(ProxyProtocol::V1, "192.0.2.9:40000", "198.51.100.1:80");
        assert_eq!(four, b"PROXY TCP4 192.0.2.9 198.51.100.1 40000 80\r\n");
        let six = of(ProxyProtocol::V1, "[2001:db8::9]:40000", "[::1]:80");
        assert_eq!(six, b"PROXY TCP6 2001:db8::9 ::1 40000 80\r\n");
        assert_eq!(own(ProxyProtocol::V1), b"PROXY UNKNOWN\r\n");
    }

    #[test]
    fn version_2_is_binary() {
        let four = of(ProxyProtocol::V2, "192.0.2.9:40000", "198.51.100.1:80");
        let start = b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A";
        assert_eq!(four[..12], *start);
        assert_eq!(four[12..], *b"\x21\x11\x00\x0C\xC0\x00\x02\x09\xC6\x33\x64\x01\x9C\x40\x00\x50");
        let six = of(ProxyProtocol::V2, "[2001:db8::9]:40000", "[::1]:80");
        assert_eq!(six[12..16], *b"\x21\x21\x00\x24");
        assert_eq!(six.len(), 16 + 36);
        assert_eq!(own(ProxyProtocol::V2), [&start[..], b"\x20\x00\x00\x00"].concat());
    }
}
