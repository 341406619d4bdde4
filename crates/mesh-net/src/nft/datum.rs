//! Typed values of set keys, map data and comparisons, as they lie in nf_tables registers.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The size of an interface name in the kernel (`IFNAMSIZ`).
const IFNAME: usize = 16;

/// EtherTypes (IEEE 802 numbers).
pub mod ether_type {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// The type of a [`Datum`]. The numbers are those of the `nft` program, which needs them to list a
/// set; the kernel only looks at the length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
    /// A MAC address.
    Ether,
    /// An IP protocol number.
    Proto,
    /// A TCP or UDP port.
    Port,
    /// A mark, or another 32-bit number in host order.
    Number,
    /// A 32-bit number in host order as a generator makes it. nft has no named set of these.
    Slot,
    /// An interface name.
    Ifname,
    /// A VXLAN network identifier of 24 bits. nft has no named set of these.
    Vni,
    /// An EtherType.
    EtherType,
}

impl Type {
    /// The type's name in nft's syntax.
    pub fn name(self) -> &'static str {
        match self {
            Type::Ipv4 => "ipv4_addr",
            Type::Ipv6 => "ipv6_addr",
            Type::Ether => "ether_addr",
            Type::Proto => "inet_proto",
            Type::Port => "inet_service",
            Type::Number => "mark",
            Type::Slot => "integer",
            Type::Ifname => "ifname",
            Type::Vni => "integer",
            Type::EtherType => "ether_type",
        }
    }

    pub(super) fn id(self) -> u32 {
        match self {
            Type::Ipv4 => 7,
            Type::Ipv6 => 8,
            Type::Ether => 9,
            Type::Proto => 12,
            Type::Port => 13,
            Type::Number => 19,
            Type::Slot | Type::Vni => 4,
            Type::Ifname => 41,
            Type::EtherType => 10,
        }
    }

    /// Length in bytes.
    pub(super) fn len(self) -> usize {
        match self {
            Type::Ipv4 | Type::Number | Type::Slot => 4,
            Type::Ipv6 | Type::Ifname => IFNAME,
            Type::Ether => 6,
            Type::Proto => 1,
            Type::Port | Type::EtherType => 2,
            Type::Vni => 3,
        }
    }
}

/// The type number of a concatenation: six bits for each part.
pub(super) fn concatenated_id(types: &[Type]) -> u32 {
    types.iter().fold(0, |id, kind| id << 6 | kind.id())
}

/// The length of a concatenation in bytes: more than one part, and each fills whole registers.
pub(super) fn concatenated_len(types: &[Type]) -> usize {
    match types {
        [one] => one.len(),
        parts => parts.iter().map(|kind| kind.len().next_multiple_of(4)).sum(),
    }
}

/// One value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Datum {
    /// An IPv4 address.
    Ipv4(Ipv4Addr),
    /// An IPv6 address.
    Ipv6(Ipv6Addr),
    /// A MAC address.
    Ether([u8; 6]),
    /// An IP protocol number, or any other 8-bit number.
    Proto(u8),
    /// A TCP or UDP port.
    Port(u16),
    /// A 32-bit number in host order.
    Number(u32),
    /// An interface name of at most 15 bytes (a longer one is cut).
    Ifname(String),
    /// A VXLAN network identifier; its lower 24 bits count.
    Vni(u32),
    /// An EtherType.
    EtherType(u16),
}

/// A value or a concatenation of values (`10.0.0.1 . 80`).
pub type Data = Vec<Datum>;

impl Datum {
    /// The type of this value.
    pub fn kind(&self) -> Type {
        match self {
            Datum::Ipv4(_) => Type::Ipv4,
            Datum::Ipv6(_) => Type::Ipv6,
            Datum::Ether(_) => Type::Ether,
            Datum::Proto(_) => Type::Proto,
            Datum::Port(_) => Type::Port,
            Datum::Number(_) => Type::Number,
            Datum::Ifname(_) => Type::Ifname,
            Datum::Vni(_) => Type::Vni,
            Datum::EtherType(_) => Type::EtherType,
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Datum::Ipv4(address) => address.octets().to_vec(),
            Datum::Ipv6(address) => address.octets().to_vec(),
            Datum::Ether(address) => address.to_vec(),
            Datum::Proto(number) => vec![*number],
            Datum::Port(port) => port.to_be_bytes().to_vec(),
            Datum::EtherType(number) => number.to_be_bytes().to_vec(),
            Datum::Vni(vni) => vni.to_be_bytes()[1..].to_vec(),
            Datum::Number(number) => number.to_ne_bytes().to_vec(),
            Datum::Ifname(name) => {
                let mut bytes = name.as_bytes()[..name.len().min(IFNAME - 1)].to_vec();
                bytes.resize(IFNAME, 0);
                bytes
            }
        }
    }
}

/// A concatenation as the kernel has it: see [`concatenated_len`].
pub(super) fn concatenated_bytes(data: &[Datum]) -> Vec<u8> {
    match data {
        [one] => one.bytes(),
        parts => {
            let mut all = Vec::with_capacity(parts.len() * 8);
            for part in parts {
                all.extend_from_slice(&part.bytes());
                all.resize(all.len().next_multiple_of(4), 0);
            }
            all
        }
    }
}

impl From<IpAddr> for Datum {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Datum::Ipv4(address),
            IpAddr::V6(address) => Datum::Ipv6(address),
        }
    }
}

impl From<Ipv4Addr> for Datum {
    fn from(address: Ipv4Addr) -> Self {
        Datum::Ipv4(address)
    }
}

impl From<Ipv6Addr> for Datum {
    fn from(address: Ipv6Addr) -> Self {
        Datum::Ipv6(address)
    }
}

impl fmt::Display for Datum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Datum::Ipv4(address) => address.fmt(f),
            Datum::Ipv6(address) => address.fmt(f),
            Datum::Ether([a, b, c, d, e, g]) => {
                write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
            }
            Datum::Proto(6) => f.write_str("tcp"),
            Datum::Proto(17) => f.write_str("udp"),
            Datum::Proto(58) => f.write_str("ipv6-icmp"),
            Datum::Proto(number) => number.fmt(f),
            Datum::Port(port) => port.fmt(f),
            Datum::Number(number) => number.fmt(f),
            Datum::Ifname(name) => write!(f, "\"{name}\""),
            Datum::Vni(vni) => vni.fmt(f),
            Datum::EtherType(ether_type::IPV4) => f.write_str("ip"),
            Datum::EtherType(ether_type::ARP) => f.write_str("arp"),
            Datum::EtherType(ether_type::IPV6) => f.write_str("ip6"),
            Datum::EtherType(number) => write!(f, "{number:#06x}"),
        }
    }
}
