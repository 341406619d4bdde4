//! The choice of a backend by the kernel.

use super::IpVersion;
use crate::nft::{Data, Datum, Field, Set, Source, SourceHash};
use mesh_model::{Balance, Endpoint, Snapshot, slots};
use std::sync::Arc;

/// Turns of one round at most, unless there are more backends: each is a slot in the kernel, in every chain of the service.
const TURNS: u32 = 1024;

/// The backends' addresses in the order of their turns: each as often in a round as its share says, and its turns as far from
/// each other as they can be. By `source` they have slots instead, in number [`slots::SLOTS`]: whether a node may be lost is
/// seen by each of the others at another moment, and must not move any.
pub(super) fn turns(
    snapshot: &Snapshot,
    balance: Balance,
    backends: Vec<(&Arc<Endpoint>, Datum)>,
) -> Vec<Datum> {
    let addresses = || backends.iter().map(|(_, address)| address.clone());
    let order = match balance {
        _ if backends.len() < 2 => return addresses().collect(),
        Balance::Source => {
            let weighed = backends.iter().map(|(backend, _)| (backend.id, backend.weight));
            slots::owners(&weighed.collect::<Vec<_>>())
        }
        Balance::Roundrobin | Balance::Random => {
            let shares: Vec<u32> = backends.iter().map(|(backend, _)| snapshot.share_of(backend)).collect();
            if shares.windows(2).all(|pair| pair[0] == pair[1]) {
                return addresses().collect();
            }
            round(&reduced(&shares))
        }
    };
    order.into_iter().filter_map(|index| backends.get(index).map(|(_, address)| address.clone())).collect()
}

/// What yields the slot of a client.
pub(super) fn slot(version: IpVersion) -> Field {
    let hash = SourceHash { modulus: slots::SLOTS, seed: slots::SEED };
    match version {
        IpVersion::V4 => Field::IpSaddrHash(hash),
        IpVersion::V6 => Field::Ip6SaddrHash(hash),
    }
}

/// The same shares in smaller numbers: exactly, or as nearly as [`TURNS`] allow.
fn reduced(shares: &[u32]) -> Vec<u32> {
    let common = shares.iter().copied().fold(0, gcd).max(1);
    let sum: u32 = shares.iter().map(|share| share / common).sum();
    let scaled = |share: u32| (u64::from(share) * u64::from(TURNS) / u64::from(sum.max(1))) as u32;
    let reduced = shares.iter().map(|share| share / common);
    if sum <= TURNS { reduced.collect() } else { reduced.map(|share| scaled(share).max(1)).collect() }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Whose turn is when: one with `n` turns has them at `1/2n`, `3/2n`, … of the round.
fn round(shares: &[u32]) -> Vec<usize> {
    let turns_of = |(index, share): (usize, &u32)| {
        let share = u64::from(*share);
        (0..share).map(move |turn| (2 * turn + 1, share, index))
    };
    let mut turns: Vec<(u64, u64, usize)> = shares.iter().enumerate().flat_map(turns_of).collect();
    turns.sort_by(|(a, of_a, _), (b, of_b, _)| (a * of_b).cmp(&(b * of_a)));
    turns.into_iter().map(|(_, _, index)| index).collect()
}

/// The choice among backends for one chain, which has its own counter; nothing if there are no backends.
///
/// The second choice is for packets that meet a change of the chain: they are still in the rules of before, whose own
/// map has nothing for them any more once the change is committed. A constant has no such moment; without it they would
/// not be translated, and the host would refuse the connection.
pub(super) fn choices(version: IpVersion, balance: Balance, backends: Vec<Data>) -> Vec<Source> {
    let count = backends.len() as u32;
    let first = backends.first().cloned().map(Source::Constant);
    let key = match balance {
        _ if count <= 1 => return first.into_iter().collect(),
        Balance::Roundrobin => Field::NumgenInc(count),
        Balance::Random => Field::NumgenRandom(count),
        Balance::Source => slot(version),
    };
    [Source::Inline { key, map: Set::slots(backends) }].into_iter().chain(first).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn turns_of_one_backend_are_spread_over_the_round() {
        assert_eq!(round(&reduced(&[4, 4, 4])), [0, 1, 2]);
        assert_eq!(round(&reduced(&[12, 4])), [0, 0, 1, 0]);
        assert_eq!(round(&reduced(&[4, 1])), [0, 0, 1, 0, 0]);
        assert_eq!(round(&reduced(&[8, 4, 4])), [0, 1, 2, 0]);
        assert_eq!(round(&reduced(&[])), [] as [usize; 0]);
    }

    proptest! {
        #[test]
        fn each_backend_has_its_share_of_a_round(shares in prop::collection::vec(1u32..=1024, 1..40)) {
            let turns = round(&reduced(&shares));
            let sum: u32 = shares.iter().sum();
            prop_assert!(turns.len() <= TURNS as usize + shares.len());
            for (index, share) in shares.iter().enumerate() {
                let got = turns.iter().filter(|turn| **turn == index).count() as f64 / turns.len() as f64;
                let wanted = f64::from(*share) / f64::from(sum);
                // One turn of the longest round, or of this one if it is a short one that is exact.
                prop_assert!((got - wanted).abs() <= 40.0 / f64::from(TURNS), "{got} for {wanted}");
                prop_assert!(got > 0.0);
            }
        }
    }
}
