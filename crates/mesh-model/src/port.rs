//! Published ports and the text they are written as.

use serde::{Deserialize, Serialize};
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Transport and, for [`Protocol::Http`], what is understood of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// In the kernel.
    Tcp,
    /// In the kernel.
    Udp,
    /// Through the L7 proxy.
    Http,
}

/// What carries it: a port of each has its own number space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Its number in IP headers (`IPPROTO_*`).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl Protocol {
    /// What carries it.
    pub const fn transport(self) -> Transport {
        match self {
            Self::Tcp | Self::Http => Transport::Tcp,
            Self::Udp => Transport::Udp,
        }
    }
}

/// What is spoken over it, as far as that is known.
impl From<Transport> for Protocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
        }
    }
}

/// Where a port is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishMode {
    /// On every node, leading to every replica.
    #[default]
    Ingress,
    /// On nodes with a replica, leading to those.
    Host,
}

/// Version of the PROXY protocol header that replicas are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// Text.
    V1,
    /// Binary.
    V2,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// Port on the nodes; 0 in a specification means any free one.
    pub published: u16,
    /// Port of the replicas.
    pub target: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Where it is published.
    #[serde(default)]
    pub mode: PublishMode,
    /// The only address of the nodes it is published on, if not on all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// The PROXY protocol header sent to replicas, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// A text that publishes no port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParsePortError {
    /// Not a port number.
    #[error("'{0}' is no port: ports go from 1 to 65535")]
    Port(String),
    /// Not a range, or an empty one.
    #[error("'{0}' is no range of ports: write FIRST-LAST")]
    Range(String),
    /// Two ranges of different lengths.
    #[error("'{0}': the published and the target range differ in length")]
    RangeLength(String),
    /// Not an address.
    #[error("'{0}' is no IP address (IPv6 is written in brackets)")]
    Address(String),
    /// Not a protocol.
    #[error("'{0}' is no protocol that can be published: tcp, udp and http are")]
    Protocol(String),
    /// Not a key, or a wrong value for it.
    #[error(
        "'{0}': write published=PORT,target=PORT,protocol=tcp|udp|http,mode=ingress|host,ip=IP,proxy-protocol=v1|v2"
    )]
    Key(String),
    /// No target.
    #[error("'{0}' has no target port")]
    NoTarget(String),
}

/// Parses one `--publish` specification, which may stand for a range of ports.
///
/// Short: `[IP:]PUBLISHED:TARGET[/tcp|udp]` or `TARGET[/tcp|udp]`, each port possibly a range. Long: pairs of
/// `key=value` separated by commas.
pub fn parse_publish(text: &str) -> Result<Vec<PublishedPort>, ParsePortError> {
    if text.contains('=') { parse_long(text) } else { parse_short(text) }
}

/// A published port as `--publish-rm` names it: what is not said may be anything.
pub(crate) struct NamedPort {
    published: u16,
    target: Option<u16>,
    ip: Option<IpAddr>,
    protocol: Option<Protocol>,
}

impl NamedPort {
    /// Those of one text: published ports, `80`, `80/tcp` or `9090-9091`, or what [`parse_publish`] takes.
    pub(crate) fn parse(text: &str) -> Result<Vec<Self>, ParsePortError> {
        let (numbers, protocol) = match text.split_once('/') {
            Some((numbers, protocol)) => (numbers, Some(parse_protocol(protocol)?)),
            None => (text, None),
        };
        if !numbers.contains([':', '=']) {
            let (first, last) = parse_range(numbers)?;
            let named = |published| Self { published, target: None, ip: None, protocol };
            return Ok((first..=last).map(named).collect());
        }
        let whole = |port: PublishedPort| Self {
            published: port.published,
            target: Some(port.target),
            ip: port.ip,
            protocol: if text.contains('=') { Some(port.protocol) } else { protocol },
        };
        Ok(parse_publish(numbers)?.into_iter().map(whole).collect())
    }

    /// Whether it is this one.
    pub(crate) fn is(&self, port: &PublishedPort) -> bool {
        self.published == port.published
            && self.target.is_none_or(|target| target == port.target)
            && (self.ip.is_none() || self.ip == port.ip)
            && self.protocol.is_none_or(|protocol| protocol == port.protocol)
    }
}

fn parse_short(text: &str) -> Result<Vec<PublishedPort>, ParsePortError> {
    let (ports, protocol) = match text.split_once('/') {
        Some((ports, protocol)) => (ports, parse_protocol(protocol)?),
        None => (text, Protocol::Tcp),
    };
    if protocol == Protocol::Http {
        return Err(ParsePortError::Protocol("http, in the short form (write protocol=http)".into()));
    }
    let (rest, target) = match ports.rsplit_once(':') {
        Some((rest, target)) => (Some(rest), target),
        None => (None, ports),
    };
    let (ip, published) = match rest {
        None => (None, None),
        Some(rest) => match rest.rsplit_once(':') {
            Some((ip, published)) => (Some(parse_address(ip)?), Some(published)),
            None => (None, Some(rest)),
        },
    };
    let target = parse_range(target)?;
    let published = published.map(parse_range).transpose()?;
    let template = PublishedPort {
        published: 0,
        target: 0,
        protocol,
        mode: PublishMode::Ingress,
        ip: ip.filter(|ip| !ip.is_unspecified()),
        proxy_protocol: None,
    };
    expand(text, published, target, &template)
}

fn parse_long(text: &str) -> Result<Vec<PublishedPort>, ParsePortError> {
    let bad = |pair: &str| ParsePortError::Key(pair.to_owned());
    let (mut published, mut target) = (None, None);
    let mut port = PublishedPort {
        published: 0,
        target: 0,
        protocol: Protocol::Tcp,
        mode: PublishMode::Ingress,
        ip: None,
        proxy_protocol: None,
    };
    for pair in text.split(',') {
        match pair.split_once('=').ok_or_else(|| bad(pair))? {
            ("published", value) => published = Some(parse_range(value)?),
            ("target", value) => target = Some(parse_range(value)?),
            ("protocol", value) => port.protocol = parse_protocol(value)?,
            ("mode", "ingress") => port.mode = PublishMode::Ingress,
            ("mode", "host") => port.mode = PublishMode::Host,
            ("ip", value) => port.ip = Some(parse_address(value)?).filter(|ip| !ip.is_unspecified()),
            ("proxy-protocol", "v1") => port.proxy_protocol = Some(ProxyProtocol::V1),
            ("proxy-protocol", "v2") => port.proxy_protocol = Some(ProxyProtocol::V2),
            _ => return Err(bad(pair)),
        }
    }
    let target = target.ok_or_else(|| ParsePortError::NoTarget(text.to_owned()))?;
    expand(text, published, target, &port)
}

fn expand(
    text: &str,
    published: Option<(u16, u16)>,
    (first, last): (u16, u16),
    template: &PublishedPort,
) -> Result<Vec<PublishedPort>, ParsePortError> {
    let publish_first = match published {
        Some((from, to)) if to - from != last - first => {
            return Err(ParsePortError::RangeLength(text.to_owned()));
        }
        Some((from, _)) => Some(from),
        None => None,
    };
    let port = |target: u16| PublishedPort {
        published: publish_first.map_or(0, |from| from + (target - first)),
        target,
        ..template.clone()
    };
    Ok((first..=last).map(port).collect())
}

fn parse_range(text: &str) -> Result<(u16, u16), ParsePortError> {
    match text.split_once('-') {
        None => parse_port(text).map(|port| (port, port)),
        Some((first, last)) => {
            let (first, last) = (parse_port(first)?, parse_port(last)?);
            if first <= last { Ok((first, last)) } else { Err(ParsePortError::Range(text.to_owned())) }
        }
    }
}

fn parse_port(text: &str) -> Result<u16, ParsePortError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = if digits { text.parse().ok() } else { None };
    port.filter(|port| *port != 0).ok_or_else(|| ParsePortError::Port(text.to_owned()))
}

fn parse_protocol(text: &str) -> Result<Protocol, ParsePortError> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "http" => Ok(Protocol::Http),
        _ => Err(ParsePortError::Protocol(text.to_owned())),
    }
}

fn parse_address(text: &str) -> Result<IpAddr, ParsePortError> {
    let bad = || ParsePortError::Address(text.to_owned());
    match text.strip_prefix('[') {
        Some(rest) => {
            let inner = rest.strip_suffix(']').ok_or_else(bad)?;
            inner.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| bad())
        }
        None => text.parse::<Ipv4Addr>().map(IpAddr::V4).or_else(|_| {
            // The long form has no other colons to tell it from.
            text.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| bad())
        }),
    }
}

impl PublishedPort {
    /// Whether two ports can't be held on one node: the same number and transport on a common address. Several
    /// services may share an L7 port.
    pub fn clashes(&self, other: &Self) -> bool {
        let address = match (self.ip, other.ip) {
            (Some(one), Some(two)) => one == two,
            _ => true,
        };
        let both_http = self.protocol == Protocol::Http && other.protocol == Protocol::Http;
        self.published == other.published
            && self.protocol.transport() == other.protocol.transport()
            && address
            && !both_http
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Http => "http",
        })
    }
}

/// As `docker service ls` shows it: `*:80->80/tcp`.
impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            None => f.write_str("*")?,
            Some(IpAddr::V4(ip)) => write!(f, "{ip}")?,
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]")?,
        }
        write!(f, ":{}->{}/{}", self.published, self.target, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(text: &str) -> PublishedPort {
        let mut ports = parse_publish(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(ports.len(), 1, "{text}");
        ports.remove(0)
    }

    #[test]
    fn the_short_forms() {
        assert_eq!(one("8080:80").to_string(), "*:8080->80/tcp");
        assert_eq!(one("53:5353/udp").to_string(), "*:53->5353/udp");
        assert_eq!(one("80").published, 0);
        assert_eq!(one("10.0.0.1:80:81").to_string(), "10.0.0.1:80->81/tcp");
        assert_eq!(one("[fd00::1]:80:81").to_string(), "[fd00::1]:80->81/tcp");
        assert_eq!(one("0.0.0.0:80:80").ip, None);
        let range = parse_publish("9090-9091:8080-8081").unwrap();
        assert_eq!(
            range.iter().map(|p| (p.published, p.target)).collect::<Vec<_>>(),
            [(9090, 8080), (9091, 8081)]
        );
    }

    #[test]
    fn the_long_form() {
        let port = one("published=80,target=8080,protocol=http,mode=host,ip=::1,proxy-protocol=v2");
        assert_eq!((port.published, port.target, port.protocol), (80, 8080, Protocol::Http));
        assert_eq!((port.mode, port.proxy_protocol), (PublishMode::Host, Some(ProxyProtocol::V2)));
        assert_eq!(port.ip, Some(IpAddr::V6(Ipv6Addr::LOCALHOST)));
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for bad in [
            "",
            ":",
            "80:",
            ":80",
            "0:80",
            "80:0",
            "65536:80",
            "-1:80",
            "+80:80",
            "80:80/sctp",
            "80:80/",
            "80/http",
            "1-2:3",
            "2-1:2-1",
            "a:80:80",
            "[::1:80:80",
            "published=80",
            "target=80,protocol=sctp",
            "target=x",
            "target=80,mode=any",
            "target=80,foo=1",
            "target=80,",
            "1.2.3:80:80",
            "80:80:80:80",
        ] {
            assert!(parse_publish(bad).is_err(), "{bad}: {:?}", parse_publish(bad));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "[0-9a-z:=,/\\[\\]. -]{0,40}") {
            for port in parse_publish(&text).unwrap_or_default() {
                prop_assert_ne!(port.target, 0);
            }
        }

        #[test]
        fn short_forms_round_trip(published in 1u16.., target in 1u16.., udp: bool) {
            let protocol = if udp { "udp" } else { "tcp" };
            let port = one(&format!("{published}:{target}/{protocol}"));
            prop_assert_eq!(port.to_string(), format!("*:{published}->{target}/{protocol}"));
        }
    }
}
