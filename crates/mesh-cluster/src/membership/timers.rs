//! What is due when.

use super::wire::Identity;
use foca::Incarnation;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// What a timer does.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// One of foca's own.
    Foca(foca::Timer<Identity>),
    /// Tell this suspect that it is one.
    Remind(Identity, Incarnation),
    /// Try nodes that are not there.
    Announce,
    /// Somebody's grace ended.
    Grace,
}

struct Due {
    at: Instant,
    /// Keeps events of one instant in the order they were set.
    turn: u64,
    event: Event,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.turn).cmp(&(other.at, other.turn))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

/// Events, earliest first.
#[derive(Default)]
pub(super) struct Timers {
    queue: BinaryHeap<Reverse<Due>>,
    turn: u64,
}

impl Timers {
    pub(super) fn set(&mut self, at: Instant, event: Event) {
        self.turn += 1;
        self.queue.push(Reverse(Due { at, turn: self.turn, event }));
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse(due)| due.at)
    }

    /// The earliest event that is due at `now`, and how late it is.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(Event, Duration)> {
        if self.next()? > now {
            return None;
        }
        self.queue.pop().map(|Reverse(due)| (due.event, now.duration_since(due.at)))
    }
}
