//! What differs between IPv4 and IPv6.

use crate::nft::{Datum, Family, Field, Rule, Type};
use mesh_model::Endpoint;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A version of the Internet Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IpVersion {
    V4,
    V6,
}

impl IpVersion {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    pub(super) fn family(self) -> Family {
        match self {
            Self::V4 => Family::Ip,
            Self::V6 => Family::Ip6,
        }
    }

    pub(super) fn address(self) -> Type {
        match self {
            Self::V4 => Type::Ipv4,
            Self::V6 => Type::Ipv6,
        }
    }

    pub(super) fn saddr(self) -> Field {
        match self {
            Self::V4 => Field::IpSaddr,
            Self::V6 => Field::Ip6Saddr,
        }
    }

    pub(super) fn daddr(self) -> Field {
        match self {
            Self::V4 => Field::IpDaddr,
            Self::V6 => Field::Ip6Daddr,
        }
    }

    pub(super) fn is_of(self, address: &IpAddr) -> bool {
        address.is_ipv6() == (self == Self::V6)
    }

    /// An endpoint's address of this version.
    pub(super) fn address_of(self, endpoint: &Endpoint) -> Option<Datum> {
        endpoint.addresses.iter().find(|address| self.is_of(address)).map(|address| Datum::from(*address))
    }

    /// The condition that a packet is not for a loopback address.
    pub(super) fn not_loopback(self) -> Rule {
        match self {
            Self::V4 => {
                Rule::new().outside(Field::IpDaddr, Ipv4Addr::new(127, 0, 0, 0), Ipv4Addr::new(255, 0, 0, 0))
            }
            Self::V6 => Rule::new().ne(Field::Ip6Daddr, Ipv6Addr::LOCALHOST),
        }
    }
}
