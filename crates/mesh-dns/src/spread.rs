//! The order of an answer's addresses, so that clients spread.

use rand::Rng;

/// Visits each of `0..len` once, from a random start by a random stride that has no divisor in common with `len`.
/// Any two may be first and second, so that the load of one that fails is not all its neighbour's.
#[derive(Clone)]
pub(crate) struct Spread {
    at: usize,
    stride: usize,
    len: usize,
    left: usize,
}

impl Spread {
    pub(crate) fn new(len: usize, rng: &mut impl Rng) -> Self {
        if len < 2 {
            return Self { at: 0, stride: 1, len, left: len };
        }
        let at = rng.random_range(0..len);
        let mut stride = rng.random_range(1..len);
        while gcd(stride, len) != 1 {
            stride = rng.random_range(1..len);
        }
        Self { at, stride, len, left: len }
    }
}

impl Iterator for Spread {
    type Item = usize;
    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let at = self.at;
        self.at += self.stride;
        if self.at >= self.len {
            self.at -= self.len;
        }
        Some(at)
    }
}

fn gcd(mut one: usize, mut two: usize) -> usize {
    while two != 0 {
        (one, two) = (two, one % two);
    }
    one
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::SmallRng};

    proptest! {
        #[test]
        fn each_comes_once(len in 0usize..400, seed: u64) {
            let mut order: Vec<_> = Spread::new(len, &mut SmallRng::seed_from_u64(seed)).collect();
            order.sort_unstable();
            prop_assert!(order.into_iter().eq(0..len));
        }
    }

    #[test]
    fn each_is_first_about_as_often() {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut first = [0; 3];
        for _ in 0..3000 {
            first[Spread::new(3, &mut rng).next().unwrap()] += 1;
        }
        assert!(first.iter().all(|count| (900..1100).contains(count)), "{first:?}");
    }
}
