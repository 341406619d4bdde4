//! Names and their addresses, as every contender has them.

use std::{fmt::Write, net::Ipv4Addr};

/// Where the addresses' names are. All addresses are of 10.0.0.0/8.
pub(super) const REVERSE: &str = "10.in-addr.arpa";

/// The names of one network.
pub(super) struct Zone {
    /// Such as `bench.mesh.internal`.
    pub(super) domain: String,
    /// Names without the domain; what an address is called in reverse comes before other names of it.
    pub(super) names: Vec<(String, Ipv4Addr)>,
}

impl Zone {
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Whole names with their addresses.
    pub(super) fn records(&self) -> impl Iterator<Item = (String, Ipv4Addr)> {
        self.names.iter().map(|(name, address)| (format!("{name}.{}", self.domain), *address))
    }

    /// One line for each record.
    pub(super) fn lines(&self, line: impl Fn(&str, Ipv4Addr) -> String) -> String {
        self.records().fold(String::new(), |mut text, (name, address)| {
            let _ = writeln!(text, "{}", line(&name, address));
            text
        })
    }
}

/// The name that an address is asked by.
pub(super) fn reverse(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("{d}.{c}.{b}.{a}.in-addr.arpa")
}
