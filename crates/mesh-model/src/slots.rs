//! Which backend a client gets by `source`: the client's address leads to one of so many slots, and each slot to a backend.
//!
//! The owner of a slot is the backend with the lowest cost there, drawn from a hash of both (rendezvous hashing, Thaler and
//! Ravishankar 1998). Every node comes to the same owners by itself; of one that leaves only the slots move, and they
//! come back with it. That is exact, which the tables of Maglev are not; shares are as even as chance makes them.

use crate::{EndpointId, Weight};
use std::{cmp::Ordering, collections::HashSet, net::IpAddr};

/// Slots of a service: what a change of its backends costs at most, and how finely weights count.
pub const SLOTS: u32 = 1024;
/// What clients' addresses are hashed with, on every node: `mesh`.
pub const SEED: u32 = 0x6d65_7368;

/// Bits behind the point of a cost.
const FRACTION: u32 = 24;

/// A backend's chance at one slot.
struct Draw {
    index: usize,
    id: EndpointId,
    drawn: u64,
    weight: Weight,
    /// Of no use where all weights are alike.
    cost: u64,
}

/// For each slot, which of these backends has it; none without backends. Those of weight 0 have none.
pub fn owners(backends: &[(EndpointId, Weight)]) -> Vec<usize> {
    let weighed = || backends.iter().enumerate().filter(|(_, (_, weight))| *weight != Weight::ZERO);
    let alike = weighed().map(|(_, (_, weight))| weight).collect::<HashSet<_>>().len() <= 1;
    let owner = |slot| {
        let draws = weighed().map(|(index, (id, weight))| {
            let drawn = draw(*id, slot);
            Draw { index, id: *id, drawn, weight: *weight, cost: if alike { 0 } else { cost(drawn) } }
        });
        draws.min_by(Draw::compare).map(|draw| draw.index)
    };
    (0..u64::from(SLOTS)).filter_map(owner).collect()
}

impl Draw {
    /// By `-log(drawn) / weight`, without a division. Logarithms that are rounded to the same are told apart by what was drawn.
    fn compare(&self, other: &Self) -> Ordering {
        let times = |cost: u64, weight: Weight| cost * u64::from(weight.get());
        times(self.cost, other.weight)
            .cmp(&times(other.cost, self.weight))
            .then_with(|| other.drawn.cmp(&self.drawn))
            .then_with(|| self.id.cmp(&other.id))
    }
}

/// The slot of a client's address, as the kernel's `jhash` has it.
pub fn slot_of(client: IpAddr) -> usize {
    let words = |octets: &[u8]| -> Vec<u32> {
        octets.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]])).collect()
    };
    let hash = match client.to_canonical() {
        IpAddr::V4(v4) => jhash(&words(&v4.octets()), SEED),
        IpAddr::V6(v6) => jhash(&words(&v6.octets()), SEED),
    };
    // `reciprocal_scale` of linux/kernel.h.
    ((u64::from(hash) * u64::from(SLOTS)) >> 32) as usize
}

fn draw(backend: EndpointId, slot: u64) -> u64 {
    mix(mix(backend.bits()).wrapping_add(slot.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// The finaliser of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `-log2(drawn / 2^64)`. In whole numbers: floating-point logarithms differ between machines, and owners must not.
fn cost(drawn: u64) -> u64 {
    let drawn = drawn.max(1);
    let mut mantissa = (drawn << drawn.leading_zeros()) >> 32;
    let mut log = 0u64;
    for _ in 0..FRACTION {
        // The mantissa is between 1 and 2, with 31 bits behind the point.
        mantissa = (mantissa * mantissa) >> 31;
        log <<= 1;
        if mantissa >> 32 != 0 {
            mantissa >>= 1;
            log |= 1;
        }
    }
    (u64::from(drawn.leading_zeros() + 1) << FRACTION) - log
}

/// Jenkins' lookup3 as Linux has it (`linux/jhash.h`), which reads words in the machine's own order.
fn jhash(mut words: &[u32], seed: u32) -> u32 {
    let [mut a, mut b, mut c] = [0xdead_beef_u32.wrapping_add(words.len() as u32 * 4).wrapping_add(seed); 3];
    let word = |words: &[u32], at: usize| words.get(at).copied().unwrap_or_default();
    loop {
        a = a.wrapping_add(word(words, 0));
        b = b.wrapping_add(word(words, 1));
        c = c.wrapping_add(word(words, 2));
        if words.len() <= 3 {
            break;
        }
        words = &words[3..];
        (a, c) = (a.wrapping_sub(c) ^ c.rotate_left(4), c.wrapping_add(b));
        (b, a) = (b.wrapping_sub(a) ^ a.rotate_left(6), a.wrapping_add(c));
        (c, b) = (c.wrapping_sub(b) ^ b.rotate_left(8), b.wrapping_add(a));
        (a, c) = (a.wrapping_sub(c) ^ c.rotate_left(16), c.wrapping_add(b));
        (b, a) = (b.wrapping_sub(a) ^ a.rotate_left(19), a.wrapping_add(c));
        (c, b) = (c.wrapping_sub(b) ^ b.rotate_left(4), b.wrapping_add(a));
    }
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn backends(of: &BTreeMap<u64, u32>) -> Vec<(EndpointId, Weight)> {
        of.iter().map(|(id, weight)| (EndpointId::from_bits(*id), (*weight).try_into().unwrap())).collect()
    }

    fn ids(of: &BTreeMap<u64, u32>) -> Vec<EndpointId> {
        let backends = backends(of);
        owners(&backends).into_iter().map(|index| backends[index].0).collect()
    }

    fn some(weights: std::ops::RangeInclusive<u32>) -> impl Strategy<Value = BTreeMap<u64, u32>> {
        prop::collection::btree_map(any::<u64>(), weights, 2..20)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn of_one_that_leaves_only_its_slots_move(
            of in prop_oneof![some(1..=1), some(1..=256)],
            which: prop::sample::Index,
        ) {
            let leaves = *of.keys().nth(which.index(of.len())).unwrap();
            let mut others = of.clone();
            others.remove(&leaves);
            for (before, after) in ids(&of).into_iter().zip(ids(&others)) {
                prop_assert!(before == after || before == EndpointId::from_bits(leaves));
                prop_assert!(after != EndpointId::from_bits(leaves));
            }
        }

        /// What one backend gains or loses with its weight is the others' loss or gain; nothing moves between these.
        #[test]
        fn a_weight_moves_slots_of_its_backend_alone(of in some(1..=256), which: prop::sample::Index, weight in 1u32..=256) {
            let changes = *of.keys().nth(which.index(of.len())).unwrap();
            let mut after = of.clone();
            after.insert(changes, weight);
            for (before, after) in ids(&of).into_iter().zip(ids(&after)) {
                prop_assert!(before == after || [before, after].contains(&EndpointId::from_bits(changes)));
            }
        }

        #[test]
        fn shares_are_those_of_the_weights(seeds in prop::collection::btree_set(any::<u64>(), 4)) {
            let of: BTreeMap<u64, u32> = seeds.into_iter().zip([1, 2, 4, 9]).collect();
            let owned = ids(&of);
            for (id, weight) in &of {
                let slots = owned.iter().filter(|owner| **owner == EndpointId::from_bits(*id)).count() as f64;
                let share = f64::from(*weight) / 16.0;
                let deviation = (f64::from(SLOTS) * share * (1.0 - share)).sqrt();
                prop_assert!((slots - f64::from(SLOTS) * share).abs() < 6.0 * deviation, "{slots} of weight {weight}");
            }
        }
    }

    #[test]
    fn none_own_nothing_and_weight_0_owns_nothing() {
        assert!(owners(&[]).is_empty());
        let only = BTreeMap::from([(1, 0), (2, 3)]);
        assert_eq!(ids(&only), vec![EndpointId::from_bits(2); SLOTS as usize]);
        assert!(ids(&BTreeMap::from([(1, 0)])).is_empty());
    }

    #[test]
    fn costs_are_logarithms() {
        for drawn in [1, 2, 3, 1 << 32, u64::MAX / 3, u64::MAX / 2, u64::MAX - 1] {
            let exact = 64.0 - (drawn as f64).log2();
            let found = cost(drawn) as f64 / f64::from(1u32 << FRACTION);
            assert!((exact - found).abs() < 1e-5, "{drawn}: {exact} {found}");
        }
    }
}
