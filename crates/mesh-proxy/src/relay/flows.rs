//! Who of a port's clients is led to which replica.

use super::{packet::Between, tally::Counters};
use crate::routes::Backend;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::net::UdpSocket;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Flows of one port; one more takes the place of the one that was silent for longest.
const MOST: usize = 4096;
/// How long a flow may be silent: one that was never answered, and one that was. As connection tracking has it.
const SILENCE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(120));

/// The flows of one port.
#[derive(Default)]
pub(super) struct Flows {
    flows: HashMap<Between, Flow>,
}

/// One client's datagrams to one address of the host.
pub(super) struct Flow {
    pub(super) backend: Backend,
    pub(super) upstream: Arc<UdpSocket>,
    pub(super) pulse: Arc<Pulse>,
    pub(super) counters: Arc<Counters>,
    /// Dropped, answers are soon no longer passed on.
    _answers: DropGuard,
    /// Ends that at once.
    cut: CancellationToken,
}

/// When answers are no longer passed on.
pub(super) struct Ends {
    /// The flow has ended, and what is on its way may come still.
    pub(super) soon: CancellationToken,
    /// Its place is needed.
    pub(super) now: CancellationToken,
}

/// When something last passed.
#[derive(Debug)]
pub(super) struct Pulse {
    start: Instant,
    /// Milliseconds after that.
    last: AtomicU64,
    answered: AtomicBool,
}

impl Pulse {
    fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0), answered: AtomicBool::new(false) }
    }

    pub(super) fn beat(&self, now: Instant, answer: bool) {
        self.last.store(now.duration_since(self.start).as_millis() as u64, Relaxed);
        if answer {
            self.answered.store(true, Relaxed);
        }
    }

    fn silence(&self, now: Instant) -> Duration {
        now.duration_since(self.start).saturating_sub(Duration::from_millis(self.last.load(Relaxed)))
    }

    fn is_over(&self, now: Instant) -> bool {
        let (unanswered, answered) = SILENCE;
        self.silence(now) > if self.answered.load(Relaxed) { answered } else { unanswered }
    }
}

impl Flow {
    /// With what ends the passing on of answers.
    pub(super) fn new(backend: Backend, upstream: UdpSocket, counters: Arc<Counters>) -> (Self, Ends) {
        let ends = Ends { soon: CancellationToken::new(), now: CancellationToken::new() };
        let (upstream, pulse) = (Arc::new(upstream), Arc::new(Pulse::new()));
        let (answers, cut) = (ends.soon.clone().drop_guard(), ends.now.clone());
        (Self { backend, upstream, pulse, counters, _answers: answers, cut }, ends)
    }
}

impl Flows {
    pub(super) fn get(&self, between: &Between) -> Option<&Flow> {
        self.flows.get(between)
    }

    pub(super) fn insert(&mut self, between: Between, flow: Flow) {
        if self.flows.len() >= MOST && !self.flows.contains_key(&between) {
            let now = Instant::now();
            let silent = self.flows.iter().max_by_key(|(_, flow)| flow.pulse.silence(now));
            if let Some(silent) = silent.map(|(between, _)| *between)
                && let Some(flow) = self.flows.remove(&silent)
            {
                flow.cut.cancel();
            }
        }
        self.flows.insert(between, flow);
    }

    pub(super) fn remove(&mut self, between: &Between) {
        self.flows.remove(between);
    }

    /// Ends those that are over, and those whose backend is no more.
    pub(super) fn retain(&mut self, is_left: impl Fn(&Between, &Backend) -> bool) {
        let now = Instant::now();
        self.flows.retain(|between, flow| !flow.pulse.is_over(now) && is_left(between, &flow.backend));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_ends_a_flow_sooner_if_nobody_ever_answered() {
        let (asked, served) = (Pulse::new(), Pulse::new());
        let start = Instant::now();
        served.beat(start, true);
        let later = start + SILENCE.0 + Duration::from_secs(1);
        assert!(asked.is_over(later) && !served.is_over(later));
        let last = start + SILENCE.1 + Duration::from_secs(1);
        assert!(served.is_over(last));
        served.beat(last, false);
        assert!(!served.is_over(last));
    }
}
