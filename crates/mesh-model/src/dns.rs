//! Where a network's questions about names of others go.

use serde::{Deserialize, Serialize};
use std::{
    borrow::Borrow,
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    ops::Deref,
    str::FromStr,
};

/// The most upstreams of a network or of a host.
pub const DNS_UPSTREAMS: usize = 8;
/// The most domains of a network that have resolvers of their own.
pub const DNS_DOMAINS: usize = 64;
/// The most resolvers of one domain.
pub const DNS_DOMAIN_RESOLVERS: usize = 8;

/// Where DNS servers listen (RFC 1035, 4.2).
const PORT: u16 = 53;
/// Octets of a name in text (RFC 1035, 3.1: 255 with the lengths of its labels and the root).
const MAX_NAME: usize = 253;
/// Octets of a label.
const MAX_LABEL: usize = 63;
/// What is the mesh's own: never forwarded.
const OURS: &str = "mesh.internal";

/// The resolvers that a network's containers are answered by, as far as the mesh does not know a name itself.
///
/// A name that is one of `domains`, or below it, goes to that domain's resolvers; the longest one counts. All others go to
/// `upstreams`, or to those of the host that the container runs on if there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkDns {
    /// In place of the host's own resolvers, in order of preference.
    #[serde(default)]
    pub upstreams: Vec<Resolver>,
    /// Resolvers of single domains, in order of preference.
    #[serde(default)]
    pub domains: BTreeMap<DomainName, Vec<Resolver>>,
}

impl NetworkDns {
    /// Whether everything is left to the hosts.
    pub fn is_empty(&self) -> bool {
        self.upstreams.is_empty() && self.domains.is_empty()
    }

    /// All resolvers, those of domains last.
    pub fn resolvers(&self) -> impl Iterator<Item = Resolver> + '_ {
        self.upstreams.iter().chain(self.domains.values().flatten()).copied()
    }
}

/// A text that names no DNS server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The messages say it.
pub enum ParseResolverError {
    #[error("'{0}' is no resolver: write ADDR or ADDR:PORT, IPv6 with a port in brackets")]
    Malformed(String),
    #[error("'{0}' is no resolver: ports go from 1 to 65535")]
    Port(String),
    #[error("'{0}' is no resolver: that is the address of no single host")]
    NoHost(String),
    #[error("'{0}' is no resolver: a link-local address is another host on each link")]
    LinkLocal(String),
}

/// A DNS server: `ADDR`, `ADDR:PORT` or `[IPV6]:PORT`; port 53 unless another is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Resolver(SocketAddr);

impl Resolver {
    /// Where it is asked.
    pub fn address(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for Resolver {
    type Err = ParseResolverError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, port) = split(text).ok_or_else(|| ParseResolverError::Malformed(text.to_owned()))?;
        if port == 0 {
            return Err(ParseResolverError::Port(text.to_owned()));
        }
        // So that one host has one text.
        let address = address.to_canonical();
        let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
        if address.is_unspecified() || address.is_multicast() || broadcast {
            return Err(ParseResolverError::NoHost(text.to_owned()));
        }
        // Those of IPv4 are fine: there is one link that they are on, and clouds have their resolvers there.
        if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            return Err(ParseResolverError::LinkLocal(text.to_owned()));
        }
        Ok(Self(SocketAddr::new(address, port)))
    }
}

fn split(text: &str) -> Option<(IpAddr, u16)> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).filter(|v6| v6.contains(':'));
    if let Ok(address) = bare.unwrap_or(text).parse::<IpAddr>() {
        return Some((address, PORT));
    }
    // A scope would be a number of one host's interfaces.
    let address: SocketAddr = text.parse().ok().filter(|_| !text.contains('%'))?;
    Some((address.ip(), address.port()))
}

impl fmt::Display for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.port() == PORT { self.0.ip().fmt(f) } else { self.0.fmt(f) }
    }
}

impl TryFrom<String> for Resolver {
    type Error = ParseResolverError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Resolver> for String {
    fn from(resolver: Resolver) -> Self {
        resolver.to_string()
    }
}

/// A text that is no domain to forward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // The messages say it.
pub enum ParseDomainError {
    #[error(
        "'{0}' is no domain: write labels of up to 63 letters, digits, '-' and '_' with dots between them, 253 characters at most"
    )]
    Malformed(String),
    #[error("'{0}' is the mesh's own: names below mesh.internal are never forwarded")]
    Ours(String),
}

/// A DNS domain, in lower case and without the dot at its end: `corp.example`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(String);

impl FromStr for DomainName {
    type Err = ParseDomainError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let octet = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        let label = |label: &str| (1..=MAX_LABEL).contains(&label.len()) && label.bytes().all(octet);
        if name.len() > MAX_NAME || !name.split('.').all(label) {
            return Err(ParseDomainError::Malformed(text.to_owned()));
        }
        if name.strip_suffix(OURS).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')) {
            return Err(ParseDomainError::Ours(text.to_owned()));
        }
        Ok(Self(name))
    }
}

impl TryFrom<String> for DomainName {
    type Error = ParseDomainError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DomainName> for String {
    fn from(domain: DomainName) -> Self {
        domain.0
    }
}

impl Deref for DomainName {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for DomainName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn resolver(text: &str) -> Result<Resolver, ParseResolverError> {
        text.parse()
    }

    fn domain(text: &str) -> Result<DomainName, ParseDomainError> {
        text.parse()
    }

    #[test]
    fn resolvers_have_a_port_that_is_told_unless_it_is_53() {
        for (text, address, shown) in [
            ("10.0.0.1", "10.0.0.1:53", "10.0.0.1"),
            ("10.0.0.1:53", "10.0.0.1:53", "10.0.0.1"),
            ("10.0.0.1:5353", "10.0.0.1:5353", "10.0.0.1:5353"),
            ("fd00::1", "[fd00::1]:53", "fd00::1"),
            ("[fd00::1]", "[fd00::1]:53", "fd00::1"),
            ("[fd00::1]:53", "[fd00::1]:53", "fd00::1"),
            ("[FD00::1]:5353", "[fd00::1]:5353", "[fd00::1]:5353"),
            ("fd00::1:5353", "[fd00::1:5353]:53", "fd00::1:5353"),
            ("::ffff:10.0.0.1", "10.0.0.1:53", "10.0.0.1"),
            ("127.0.0.53", "127.0.0.53:53", "127.0.0.53"),
            ("169.254.169.253", "169.254.169.253:53", "169.254.169.253"),
        ] {
            let parsed = resolver(text).unwrap();
            assert_eq!((parsed.address(), &*parsed.to_string()), (address.parse().unwrap(), shown), "{text}");
        }
    }

    #[test]
    fn what_no_resolver_can_be_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", "write ADDR"),
            ("ns1.example", "write ADDR"),
            ("10.0.0", "write ADDR"),
            ("10.0.0.1:", "write ADDR"),
            ("10.0.0.1:+1", "write ADDR"),
            ("10.0.0.1:65536", "write ADDR"),
            ("[10.0.0.1]", "write ADDR"),
            ("[fd00::1", "write ADDR"),
            ("[fd00::1]53", "write ADDR"),
            ("10.0.0.1,10.0.0.2", "write ADDR"),
            ("fe80::1%2", "write ADDR"),
            ("[fd00::1%2]:53", "write ADDR"),
            ("10.0.0.1:0", "1 to 65535"),
            ("[fd00::1]:0", "1 to 65535"),
            ("0.0.0.0", "no single host"),
            ("::", "no single host"),
            ("::ffff:0.0.0.0", "no single host"),
            ("224.0.0.251:5353", "no single host"),
            ("ff02::fb", "no single host"),
            ("255.255.255.255", "no single host"),
            ("fe80::1", "link-local"),
        ] {
            let refusal = resolver(text).unwrap_err().to_string();
            assert!(refusal.contains(reason) && refusal.contains(&format!("'{text}'")), "{text}: {refusal}");
            assert!(!refusal.contains('\n'));
        }
    }

    #[test]
    fn domains_are_in_lower_case_and_without_the_root() {
        let longest = [&"x".repeat(63)[..]; 4].join(".")[2..].to_owned();
        assert_eq!(longest.len(), 253);
        for (text, expected) in [
            ("corp", "corp"),
            ("Corp.Example.", "corp.example"),
            ("_tcp.xn--bcher-kva.example", "_tcp.xn--bcher-kva.example"),
            ("10.in-addr.arpa", "10.in-addr.arpa"),
            ("internal", "internal"),
            ("xmesh.internal", "xmesh.internal"),
            ("mesh.internal.example", "mesh.internal.example"),
            (&longest, &longest),
        ] {
            assert_eq!(domain(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_domain_or_ours_is_refused() {
        let (label, name) = ("x".repeat(64), ["x"; 128].join("."));
        for text in ["", ".", "..", "a..b", ".a", "a..", "a b", "a*b", "bücher", "a/b", "a=b", &label, &name]
        {
            assert_eq!(domain(text), Err(ParseDomainError::Malformed(text.to_owned())), "{text}");
        }
        for text in ["mesh.internal", "MESH.Internal.", "blue.mesh.internal", "web.blue.mesh.internal"] {
            assert_eq!(domain(text), Err(ParseDomainError::Ours(text.to_owned())), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_resolver_or_refused(text in "[0-9a-f:.%\\[\\]+-]{0,24}") {
            if let Ok(parsed) = resolver(&text) {
                prop_assert_eq!(resolver(&parsed.to_string()), Ok(parsed));
            }
        }

        #[test]
        fn resolvers_survive_their_text(address: IpAddr, port in prop_oneof![Just(53u16), any::<u16>()]) {
            let Ok(parsed) = resolver(&SocketAddr::new(address, port).to_string()) else { return Ok(()) };
            prop_assert_eq!(parsed.address(), SocketAddr::new(address.to_canonical(), port));
            prop_assert_eq!(resolver(&parsed.to_string()), Ok(parsed));
            let json = serde_json::to_string(&parsed).unwrap();
            prop_assert_eq!(&json, &format!("\"{parsed}\""));
            prop_assert_eq!(serde_json::from_str::<Resolver>(&json).unwrap(), parsed);
        }

        #[test]
        fn domains_survive_their_text(text in "[A-Za-z0-9_.-]{0,80}(mesh|internal|\\.){0,4}") {
            let Ok(parsed) = domain(&text) else { return Ok(()) };
            prop_assert!(parsed.len() <= MAX_NAME && !parsed.ends_with('.'));
            prop_assert_eq!(domain(&parsed), Ok(parsed.clone()));
            let json = serde_json::to_string(&parsed).unwrap();
            prop_assert_eq!(serde_json::from_str::<DomainName>(&json).unwrap(), parsed);
        }
    }
}
