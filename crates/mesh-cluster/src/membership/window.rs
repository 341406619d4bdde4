//! Which counters of a sender were seen, as in RFC 4303, section 3.4.3.

/// Admits each counter once: those within 128 of the highest seen are remembered, older ones are refused.
#[derive(Debug, Default)]
pub(super) struct Window {
    highest: u64,
    /// Bit n: `highest - n` was seen.
    seen: u128,
}

impl Window {
    /// Whether `counter` is new. Counters begin at 1.
    pub(super) fn admit(&mut self, counter: u64) -> bool {
        if counter > self.highest {
            let ahead = counter - self.highest;
            let kept = u32::try_from(ahead).ok().and_then(|by| self.seen.checked_shl(by));
            self.seen = kept.unwrap_or(0) | 1;
            self.highest = counter;
            return true;
        }
        let behind = self.highest - counter;
        if counter == 0 || behind >= u64::from(u128::BITS) {
            return false;
        }
        let bit = 1 << behind;
        let new = self.seen & bit == 0;
        self.seen |= bit;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::Window;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_counter_passes_once(counters in prop::collection::vec(0u64..400, 0..400)) {
            let (mut window, mut passed, mut highest) = (Window::default(), BTreeSet::new(), 0);
            for counter in counters {
                let fresh = counter > 0 && !passed.contains(&counter) && counter + 128 > highest;
                prop_assert_eq!(window.admit(counter), fresh, "{} after {}", counter, highest);
                if fresh {
                    passed.insert(counter);
                }
                highest = highest.max(counter);
            }
        }
    }

    #[test]
    fn the_ends_of_the_range() {
        let mut window = Window::default();
        assert!(window.admit(u64::MAX));
        assert!(!window.admit(u64::MAX));
        assert!(window.admit(u64::MAX - 127));
        assert!(!window.admit(u64::MAX - 128));
        assert!(!window.admit(0));
    }
}
