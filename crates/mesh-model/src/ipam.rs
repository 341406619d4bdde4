//! Address arithmetic: the next free address of a prefix, the next free prefix of a pool.

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The first address of `prefix` that is usable by a host and not in `used`.
///
/// IPv4 leaves out the network and the broadcast address (not in a /31 or /32, RFC 3021); IPv6 leaves out the
/// subnet-router anycast address (RFC 4291, 2.6.1).
pub fn first_free(prefix: IpNetwork, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    first_free_in(prefix, prefix, used)
}

/// The first address of `range` that is usable by a host of `prefix` and not in `used`. The ends of a range are
/// addresses like any other.
pub fn first_free_in(prefix: IpNetwork, range: IpNetwork, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    match (prefix, range) {
        (IpNetwork::V4(prefix), IpNetwork::V4(range)) => {
            let (first, last) = usable_v4(prefix);
            let (first, last) = (first.max(range.network().to_bits()), last.min(range.broadcast().to_bits()));
            (first..=last).map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits))).find(|a| !used.contains(a))
        }
        (IpNetwork::V6(prefix), IpNetwork::V6(range)) => {
            let (first, last) = usable_v6(prefix);
            let (first, last) = (first.max(range.network().to_bits()), last.min(range.broadcast().to_bits()));
            // One more than are used suffices; a /64 is never walked to its end.
            let last = last.min(first.saturating_add(used.len() as u128));
            (first..=last).map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits))).find(|a| !used.contains(a))
        }
        _ => None,
    }
}

fn usable_v4(prefix: Ipv4Network) -> (u32, u32) {
    let (first, last) = (prefix.network().to_bits(), prefix.broadcast().to_bits());
    if prefix.prefix() >= 31 { (first, last) } else { (first + 1, last - 1) }
}

fn usable_v6(prefix: Ipv6Network) -> (u128, u128) {
    (prefix.network().to_bits() + u128::from(prefix.prefix() < 127), prefix.broadcast().to_bits())
}

/// Whether a host may have this address within its prefix.
pub(crate) fn is_usable(prefix: IpNetwork, address: IpAddr) -> bool {
    match (prefix, address) {
        (IpNetwork::V4(prefix), IpAddr::V4(address)) => {
            let (first, last) = usable_v4(prefix);
            (first..=last).contains(&address.to_bits())
        }
        (IpNetwork::V6(prefix), IpAddr::V6(address)) => {
            let (first, last) = usable_v6(prefix);
            (first..=last).contains(&address.to_bits())
        }
        _ => false,
    }
}

/// Whether two prefixes have an address in common.
pub(crate) fn overlaps(one: IpNetwork, two: IpNetwork) -> bool {
    one.contains(two.network()) || two.contains(one.network())
}

/// A prefix from which subnets of one size are taken.
#[derive(Debug, Clone, Copy)]
pub struct Pool {
    /// The whole.
    pub prefix: IpNetwork,
    /// Prefix length of what is taken from it.
    pub subnet: u8,
}

impl Pool {
    /// The pool of IPv4 /24s or IPv6 /64s in a prefix; the whole prefix if it is no larger.
    pub fn of(prefix: IpNetwork) -> Self {
        let subnet = if prefix.is_ipv4() { 24 } else { 64 };
        Self { prefix, subnet: subnet.max(prefix.prefix()) }
    }

    /// The first subnet that overlaps none of `taken`.
    pub fn first_free(&self, taken: &[IpNetwork]) -> Option<IpNetwork> {
        let count = 1u128.checked_shl(u32::from(self.subnet - self.prefix.prefix())).unwrap_or(u128::MAX);
        // A taken prefix may be larger than a subnet: step over it whole rather than through it.
        let mut at = 0;
        while at < count {
            let candidate = self.subnet_at(at)?;
            match taken.iter().find(|t| overlaps(**t, candidate)) {
                None => return Some(candidate),
                Some(t) => {
                    at += 1u128.checked_shl(u32::from(self.subnet.saturating_sub(t.prefix()))).unwrap_or(1)
                }
            }
        }
        None
    }

    fn subnet_at(&self, at: u128) -> Option<IpNetwork> {
        match self.prefix {
            IpNetwork::V4(prefix) => {
                let offset = u32::try_from(at).ok()?.checked_shl(u32::from(32 - self.subnet))?;
                let address = Ipv4Addr::from_bits(prefix.network().to_bits().checked_add(offset)?);
                Ipv4Network::new(address, self.subnet).ok().map(IpNetwork::V4)
            }
            IpNetwork::V6(prefix) => {
                let offset = at.checked_shl(u32::from(128 - self.subnet))?;
                let address = Ipv6Addr::from_bits(prefix.network().to_bits().checked_add(offset)?);
                Ipv6Network::new(address, self.subnet).ok().map(IpNetwork::V6)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_that_no_host_may_have_are_left_out() {
        let mut used = BTreeSet::new();
        assert_eq!(first_free(net("10.0.0.0/30"), &used), Some("10.0.0.1".parse().unwrap()));
        used.insert("10.0.0.1".parse().unwrap());
        used.insert("10.0.0.2".parse().unwrap());
        assert_eq!(first_free(net("10.0.0.0/30"), &used), None);
        assert_eq!(first_free(net("fd00::/64"), &used), Some("fd00::1".parse().unwrap()));
        assert_eq!(first_free(net("10.0.0.8/32"), &used), Some("10.0.0.8".parse().unwrap()));
    }

    #[test]
    fn a_pool_steps_over_what_is_taken() {
        let pool = Pool::of(net("10.0.0.0/8"));
        assert_eq!(pool.first_free(&[net("10.0.0.0/16")]), Some(net("10.1.0.0/24")));
        assert_eq!(pool.first_free(&[net("10.0.0.0/24"), net("10.0.1.128/25")]), Some(net("10.0.2.0/24")));
        assert_eq!(pool.first_free(&[net("0.0.0.0/0")]), None);
        assert_eq!(Pool::of(net("10.9.9.0/28")).first_free(&[]), Some(net("10.9.9.0/28")));
        assert_eq!(Pool::of(net("fd00::/48")).first_free(&[net("fd00::/64")]), Some(net("fd00:0:0:1::/64")));
    }

    proptest! {
        #[test]
        fn what_is_found_is_free_and_inside(bits: u32, len in 20u8..=32, taken in prop::collection::btree_set(0u32..4096, 0..64)) {
            let prefix = Ipv4Network::new(Ipv4Addr::from_bits(bits), len).unwrap();
            let prefix = IpNetwork::V4(Ipv4Network::new(prefix.network(), len).unwrap());
            let IpAddr::V4(start) = prefix.network() else { unreachable!() };
            let used: BTreeSet<IpAddr> =
                taken.iter().filter_map(|n| start.to_bits().checked_add(*n)).map(|b| IpAddr::V4(b.into())).collect();
            if let Some(found) = first_free(prefix, &used) {
                prop_assert!(is_usable(prefix, found) && !used.contains(&found));
            }
        }

        #[test]
        fn a_subnet_found_overlaps_nothing(taken in prop::collection::vec((any::<u32>(), 8u8..=30), 0..12)) {
            let taken: Vec<IpNetwork> = taken.into_iter().map(|(bits, len)| {
                let address = Ipv4Addr::from_bits(0x0a00_0000 | (bits & 0x00ff_ffff));
                let network = Ipv4Network::new(address, len).unwrap();
                IpNetwork::V4(Ipv4Network::new(network.network(), len).unwrap())
            }).collect();
            if let Some(found) = Pool::of(net("10.0.0.0/8")).first_free(&taken) {
                prop_assert!(taken.iter().all(|t| !overlaps(*t, found)));
            }
        }
    }
}
