//! Addresses that a network got back lately.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// How long an address rests after it was given back, in seconds, before somebody else gets it unasked. Whoever still
/// knows its old holder (a cached answer, an open connection, a neighbour entry) must not meet a stranger there.
pub const ADDRESS_REST_S: u64 = 30;
/// How many are remembered a network; when more are given back within that time, the oldest rest for less.
const KEPT: usize = 1024;

/// Addresses that a network got back, and when, in seconds since 1970: the oldest first. It is written with the change
/// that gives them back, and what has rested enough goes then too.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Released(Vec<(IpAddr, u64)>);

impl Released {
    /// Those that rest still, the oldest first.
    pub fn resting(&self, now: u64) -> impl Iterator<Item = IpAddr> + '_ {
        // A clock that was ahead keeps its addresses until the others have caught up.
        let rests = move |since: u64| now.saturating_sub(since) < ADDRESS_REST_S;
        self.0.iter().filter(move |(_, since)| rests(*since)).map(|(address, _)| *address)
    }

    /// The same with more addresses that are given back now.
    #[must_use]
    pub(crate) fn with(&self, addresses: &[IpAddr], now: u64) -> Self {
        let resting: Vec<IpAddr> = self.resting(now).collect();
        let kept =
            self.0.iter().filter(|(address, _)| resting.contains(address) && !addresses.contains(address));
        let mut all: Vec<(IpAddr, u64)> = kept.copied().chain(addresses.iter().map(|a| (*a, now))).collect();
        all.drain(..all.len().saturating_sub(KEPT));
        Self(all)
    }
}
