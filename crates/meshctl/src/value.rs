//! Values on the command line, and what is said of malformed ones.

use anyhow::Context;
use ipnetwork::IpNetwork;
use mesh_model::{DomainName, ParseDomainError, ParseResolverError, Resolver, VNI_MAX};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

/// The port that managers listen at unless another is given.
pub(crate) const API_PORT: u16 = 7443;

/// `ADDRESS/PREFIX`.
pub(crate) fn cidr(text: &str) -> Result<IpNetwork, String> {
    let bad = || format!("'{text}' is no subnet: write ADDRESS/PREFIX, such as 10.1.0.0/16");
    if text.contains('/') { text.parse().map_err(|_| bad()) } else { Err(bad()) }
}

/// An address of either family.
pub(crate) fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("'{text}' is no IP address"))
}

/// `IP` or `IP:PORT`; IPv6 bare without a port, or in brackets.
pub(crate) fn advertise(text: &str) -> Result<SocketAddr, String> {
    let bad = || format!("'{text}' is no address: write IP or IP:PORT, IPv6 in brackets");
    let (host, port) = split_port(text).ok_or_else(bad)?;
    let address: IpAddr = host.parse().map_err(|_| bad())?;
    Ok(SocketAddr::new(address, port.unwrap_or(API_PORT)))
}

/// Where to join: a host by name or address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    host: String,
    port: u16,
}

/// `HOST:PORT` or `HOST`; IPv6 bare without a port, or in brackets.
pub(crate) fn peer(text: &str) -> Result<Peer, String> {
    match split_port(text) {
        Some((host, port)) if !host.is_empty() => {
            Ok(Peer { host: host.to_owned(), port: port.unwrap_or(API_PORT) })
        }
        _ => Err(format!("'{text}' is no HOST:PORT (IPv6 in brackets)")),
    }
}

impl Peer {
    /// The address to join at: of the same family as the one advertised, if there is a choice.
    pub(crate) async fn resolve(&self, advertised: Option<SocketAddr>) -> anyhow::Result<SocketAddr> {
        let found = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let found: Vec<SocketAddr> =
            found.with_context(|| format!("cannot resolve '{}'", self.host))?.collect();
        let same_family = |peer: &&SocketAddr| advertised.is_none_or(|own| own.is_ipv4() == peer.is_ipv4());
        let chosen = found.iter().find(same_family).or(found.first());
        chosen.copied().with_context(|| format!("'{}' has no address", self.host))
    }
}

/// The host without brackets, and the port if there is one.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let port = |text: &str| text.parse().ok().filter(|port| *port != 0 && !text.starts_with('+'));
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        host.parse::<Ipv6Addr>().ok()?;
        return match rest.strip_prefix(':') {
            Some(digits) => Some((host, Some(port(digits)?))),
            None => rest.is_empty().then_some((host, None)),
        };
    }
    match text.split_once(':') {
        None => Some((text, None)),
        Some(_) if text.parse::<Ipv6Addr>().is_ok() => Some((text, None)),
        Some((host, digits)) => Some((host, Some(port(digits)?))),
    }
}

/// A port, 1 to 65535.
pub(crate) fn port(text: &str) -> Result<u16, String> {
    let bad = || format!("'{text}' is no port: ports go from 1 to 65535");
    number(text).and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0).ok_or_else(bad)
}

/// A VXLAN network identifier (RFC 7348).
pub(crate) fn vni(text: &str) -> Result<u32, String> {
    let bad = || format!("'{text}' is no VNI: choose one from 1 to {VNI_MAX}");
    number(text).filter(|vni| (1..=VNI_MAX).contains(vni)).ok_or_else(bad)
}

/// A number of bytes. Which ones are of use is the manager's to say.
pub(crate) fn mtu(text: &str) -> Result<u32, String> {
    number(text).ok_or_else(|| format!("'{text}' is no MTU: write a number of bytes"))
}

/// Checks in a row.
pub(crate) fn count(text: &str) -> Result<u32, String> {
    number(text).filter(|count| *count > 0).ok_or_else(|| format!("'{text}' is no count: give 1 or more"))
}

/// Digits alone.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|_| !text.starts_with('+'))
}

/// `KEY=VALUE`.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("'{text}' is no label: write KEY=VALUE")),
    }
}

/// `DOMAIN=RESOLVER[,RESOLVER…]`.
pub(crate) fn dns_domain(text: &str) -> Result<(DomainName, Vec<Resolver>), String> {
    let bad = || format!("'{text}' is no domain with its resolvers: write DOMAIN=ADDR[:PORT][,ADDR…]");
    let (domain, resolvers) = text.split_once('=').ok_or_else(bad)?;
    let domain = domain.parse().map_err(|e: ParseDomainError| e.to_string())?;
    if resolvers.is_empty() {
        return Err(bad());
    }
    let resolvers = resolvers.split(',').map(str::parse).collect::<Result<_, ParseResolverError>>();
    Ok((domain, resolvers.map_err(|e| e.to_string())?))
}

/// What is given of each domain; one that is given twice has the resolvers of both.
pub(crate) fn by_domain(given: Vec<(DomainName, Vec<Resolver>)>) -> BTreeMap<DomainName, Vec<Resolver>> {
    let mut domains: BTreeMap<DomainName, Vec<Resolver>> = BTreeMap::new();
    for (domain, resolvers) in given {
        domains.entry(domain).or_default().extend(resolvers);
    }
    domains
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_and_without_a_port() {
        for (text, expected) in [
            ("10.0.0.1", "10.0.0.1:7443"),
            ("10.0.0.1:8000", "10.0.0.1:8000"),
            ("fd00::1", "[fd00::1]:7443"),
            ("[fd00::1]", "[fd00::1]:7443"),
            ("[fd00::1]:8000", "[fd00::1]:8000"),
        ] {
            assert_eq!(advertise(text).map(|a| a.to_string()), Ok(expected.to_owned()), "{text}");
        }
        for bad in [
            "",
            "banana",
            "10.0.0",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:70000",
            "10.0.0.1:+1",
            "[10.0.0.1]:1",
            "[fd00::1",
            "[fd00::1]8000",
            "[fd00::1]:",
        ] {
            assert!(advertise(bad).is_err_and(|e| e.contains(bad)), "{bad}");
        }
    }

    #[test]
    fn peers_are_names_too() {
        let of = |host: &str, port| Ok(Peer { host: host.to_owned(), port });
        assert_eq!(peer("vm1.example.com:8000"), of("vm1.example.com", 8000));
        assert_eq!(peer("vm1"), of("vm1", 7443));
        assert_eq!(peer("[fd00::1]:8000"), of("fd00::1", 8000));
        for bad in ["", ":7443", "vm1:", "vm1:port", "vm1:1:2"] {
            assert!(peer(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn subnets_have_a_prefix() {
        assert!(cidr("10.1.0.0/16").is_ok() && cidr("fd00::/48").is_ok());
        for bad in ["10.1.0.0", "10.1.0.0/33", "banana", "/8", "10.1.0.0/"] {
            assert!(cidr(bad).is_err_and(|e| e.contains(bad)), "{bad}");
        }
    }

    #[test]
    fn numbers_have_a_range() {
        assert_eq!((port("1"), port("65535")), (Ok(1), Ok(65_535)));
        assert_eq!(
            (vni("1"), vni("16777215"), mtu("1450"), count("3")),
            (Ok(1), Ok(VNI_MAX), Ok(1450), Ok(3))
        );
        for bad in ["0", "65536", "-1", "+1", "99999999999", "banana", ""] {
            assert!(
                port(bad).is_err_and(|e| e.contains(&format!("'{bad}'")) && e.contains("65535")),
                "{bad}"
            );
        }
        for bad in ["0", "16777216", "-1", "+1", "99999999999", "banana", ""] {
            assert!(
                vni(bad).is_err_and(|e| e.contains(&format!("'{bad}'")) && e.contains("16777215")),
                "{bad}"
            );
        }
        assert!(mtu("-5").is_err() && count("0").is_err() && count("-1").is_err());
    }

    #[test]
    fn a_domain_has_its_resolvers() {
        let (domain, resolvers) = dns_domain("Corp.example.=10.0.0.1,[fd00::1]:5353").unwrap();
        assert_eq!((&*domain, resolvers.len()), ("corp.example", 2));
        let given = ["a.example=10.0.0.1", "b.example=10.0.0.2", "A.example=10.0.0.3"];
        let domains = by_domain(given.map(|text| dns_domain(text).unwrap()).to_vec());
        let expected = ["10.0.0.1", "10.0.0.3"].map(|text| text.parse().unwrap());
        assert_eq!((domains.len(), &domains["a.example"][..]), (2, &expected[..]));
        for (bad, text) in [
            ("corp.example", "write DOMAIN="),
            ("corp.example=", "write DOMAIN="),
            ("=10.0.0.1", "is no domain"),
            ("a..b=10.0.0.1", "'a..b' is no domain"),
            ("blue.mesh.internal=10.0.0.1", "the mesh's own"),
            ("corp.example=10.0.0.1,", "'' is no resolver"),
            ("corp.example=10.0.0.1,banana", "'banana' is no resolver"),
            ("corp.example=10.0.0.1:0", "1 to 65535"),
        ] {
            assert!(dns_domain(bad).is_err_and(|e| e.contains(text)), "{bad}: {:?}", dns_domain(bad));
        }
    }

    #[test]
    fn labels_have_a_key() {
        assert_eq!(label("tier=web=1"), Ok(("tier".to_owned(), "web=1".to_owned())));
        assert_eq!(label("tier="), Ok(("tier".to_owned(), String::new())));
        assert!(label("tier").is_err() && label("=web").is_err());
    }
}
