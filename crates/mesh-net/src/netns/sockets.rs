//! Connections of a replica, counted in its own namespace.

use super::within;
use crate::error::{Error, Result};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
};

/// `TCP_ESTABLISHED` in the `st` column of `/proc/net/tcp`.
const ESTABLISHED: &str = "01";

/// How many established TCP connections a local address has in a namespace.
///
/// # Errors
/// The namespace can't be entered, or `/proc` is not there.
pub fn established(namespace: impl AsFd, address: IpAddr) -> Result<usize> {
    within(namespace, || {
        let mut count = 0;
        for path in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
            match fs::read_to_string(path) {
                Ok(table) => count += count_established(&table, address),
                // A kernel without IPv6 has no table for it.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(Error::File { path: path.into(), source }),
            }
        }
        Ok(count)
    })?
}

fn count_established(table: &str, address: IpAddr) -> usize {
    let of_address = |line: &&str| {
        let mut columns = line.split_ascii_whitespace();
        let local = columns.nth(1).and_then(parse_address);
        local == Some(address) && columns.nth(1) == Some(ESTABLISHED)
    };
    table.lines().skip(1).filter(of_address).count()
}

/// Parses `0100007F:1F90`: 32-bit words in the machine's byte order. An IPv4 address on an IPv6 socket is IPv4.
fn parse_address(text: &str) -> Option<IpAddr> {
    let (hex, _port) = text.split_once(':')?;
    let word = |at: usize| {
        let word = u32::from_str_radix(hex.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut octets = [0; 16];
            for (at, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(octets).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn only_established_connections_of_the_address_count() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let open: Vec<_> = (0..3).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
        let accepted: Vec<_> = (0..3).map(|_| listener.accept().unwrap()).collect();
        let table = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
        let mine: String = table
            .lines()
            .enumerate()
            .filter(|(n, line)| *n == 0 || line.contains(&format!(":{port:04X}")))
            .map(|(_, line)| format!("{line}\n"))
            .collect();
        // Both ends of the three connections are here; the listening socket does not count.
        assert_eq!(count_established(&mine, "127.0.0.1".parse().unwrap()), 6);
        assert_eq!(count_established(&mine, "127.0.0.2".parse().unwrap()), 0);
        drop((open, accepted));
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn addresses_are_read_in_both_widths() {
        assert_eq!(parse_address("0100007F:1F90"), Some("127.0.0.1".parse().unwrap()));
        assert_eq!(parse_address("000000FD000000000000000005000000:0050"), Some("fd00::5".parse().unwrap()));
        assert_eq!(
            parse_address("0000000000000000FFFF00000100007F:0050"),
            Some("127.0.0.1".parse().unwrap())
        );
        for bad in ["", "zz", "0100007F", "01:1", "é100007F:1", "0100007F0100007F:1"] {
            assert_eq!(parse_address(bad), None, "{bad}");
        }
    }
}
