//! From single results to a verdict: a state machine without a clock.

use mesh_model::Health;

/// What the results so far say of an endpoint.
///
/// ```text
///            success                     fall failures
/// starting ───────────► healthy ◄──────────────────────► unhealthy
///     └────────────────── fall failures ──────────────────►┘   rise successes bring it back
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    health: Health,
    /// Results in a row that speak against `health`.
    against: u32,
    rise: u32,
    fall: u32,
}

impl Verdict {
    /// A verdict that starts from what was known before; a `rise` or `fall` of 0 is one of 1.
    pub fn resume(known: Health, rise: u32, fall: u32) -> Self {
        // Unchecked so far: it is in, and has yet to show that it can answer.
        let health = if known == Health::Unchecked { Health::Starting } else { known };
        Self { health, against: 0, rise: rise.max(1), fall: fall.max(1) }
    }

    /// Takes in a result; returns the verdict if it changed.
    pub fn observe(&mut self, success: bool) -> Option<Health> {
        let (agrees, needed, next) = match self.health {
            Health::Healthy => (success, self.fall, Health::Unhealthy),
            Health::Unhealthy => (!success, self.rise, Health::Healthy),
            Health::Starting | Health::Unchecked if success => (false, 1, Health::Healthy),
            Health::Starting | Health::Unchecked => (false, self.fall, Health::Unhealthy),
        };
        self.against = if agrees { 0 } else { self.against + 1 };
        if self.against < needed {
            return None;
        }
        self.against = 0;
        self.health = next;
        Some(next)
    }

    /// The verdict.
    pub const fn health(&self) -> Health {
        self.health
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn changes(verdict: &mut Verdict, results: &str) -> Vec<Option<Health>> {
        results.chars().map(|c| verdict.observe(c == '+')).collect()
    }

    #[test]
    fn the_first_success_brings_a_starting_endpoint_in() {
        let mut verdict = Verdict::resume(Health::Starting, 2, 3);
        assert_eq!(changes(&mut verdict, "--+"), [None, None, Some(Health::Healthy)]);
    }

    #[test]
    fn a_starting_endpoint_that_keeps_failing_is_unhealthy_and_then_has_to_rise() {
        let mut verdict = Verdict::resume(Health::Starting, 2, 3);
        let seen = changes(&mut verdict, "---+-++");
        assert_eq!(seen[2], Some(Health::Unhealthy));
        assert_eq!(seen[6], Some(Health::Healthy));
        assert_eq!(seen.iter().flatten().count(), 2);
    }

    #[test]
    fn only_failures_in_a_row_take_an_endpoint_out() {
        let mut verdict = Verdict::resume(Health::Healthy, 2, 3);
        assert!(changes(&mut verdict, "--+--+--").iter().all(Option::is_none));
        assert_eq!(verdict.observe(false), Some(Health::Unhealthy));
    }

    fn known() -> impl Strategy<Value = Health> {
        prop_oneof![
            Just(Health::Starting),
            Just(Health::Healthy),
            Just(Health::Unhealthy),
            Just(Health::Unchecked)
        ]
    }

    proptest! {
        /// Judged by the run of equal results at the end alone, which needs no state.
        #[test]
        fn a_verdict_follows_the_last_run_of_results(
            known in known(), rise in 0u32..5, fall in 0u32..5, results: Vec<bool>,
        ) {
            let mut verdict = Verdict::resume(known, rise, fall);
            let (rise, fall) = (rise.max(1) as usize, fall.max(1) as usize);
            for end in 1..=results.len() {
                let before = verdict.health();
                let changed = verdict.observe(results[end - 1]);
                prop_assert_eq!(changed.is_some(), before != verdict.health());
                prop_assert!(changed.is_none_or(|to| to == verdict.health()));
                let last = results[end - 1];
                let run = results[..end].iter().rev().take_while(|r| **r == last).count();
                if last && (run >= rise || before == Health::Starting) {
                    prop_assert_eq!(verdict.health(), Health::Healthy);
                } else if !last && run >= fall {
                    prop_assert_eq!(verdict.health(), Health::Unhealthy);
                } else {
                    prop_assert_eq!(verdict.health(), before);
                }
            }
        }
    }
}
