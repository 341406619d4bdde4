//! How fast, how often, how patient.

use super::seal::{MAX_DATAGRAM, OVERHEAD};
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

/// The pace of failure detection. The default is what the figures of [`membership`](super) are for; all nodes of a
/// cluster should use the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timings {
    /// A node probes one other in each such period; without any answer by its end the other is suspect.
    pub probe_period: Duration,
    /// How long a direct answer may take before other nodes are asked to probe too.
    pub probe_timeout: Duration,
    /// How long a suspect may take to refute before it is down.
    pub suspicion: Duration,
    /// How often whoever suspects a node tells it so, that it may refute.
    pub reminder: Duration,
    /// How often news is passed on, while there is any.
    pub gossip: Duration,
    /// How often nodes that are down or were never heard of are tried.
    pub announce: Duration,
    /// How long a node that was never heard of counts as alive, after this daemon or that node came.
    pub grace: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            probe_period: Duration::from_millis(200),
            probe_timeout: Duration::from_millis(80),
            suspicion: Duration::from_millis(1000),
            reminder: Duration::from_millis(80),
            gossip: Duration::from_millis(100),
            announce: Duration::from_millis(500),
            grace: Duration::from_secs(3),
        }
    }
}

impl Timings {
    pub(super) fn foca(&self) -> foca::Config {
        let count = |n| NonZeroUsize::new(n).expect("not zero");
        foca::Config {
            probe_period: self.probe_period,
            probe_rtt: self.probe_timeout,
            num_indirect_probes: count(4),
            // Enough for 1,000 nodes; spent in a second, so small clusters need no fewer.
            max_transmissions: NonZeroU8::new(12).expect("not zero"),
            suspect_to_down_after: self.suspicion,
            remove_down_after: Some(Duration::from_secs(3600)),
            max_packet_size: count(MAX_DATAGRAM - OVERHEAD),
            notify_down_members: true,
            periodic_announce: Some(foca::PeriodicParams {
                frequency: Duration::from_secs(10),
                num_members: count(1),
            }),
            // foca stops this one when nobody is left, which is when it is needed most: see `Detector::announce`.
            periodic_announce_to_down_members: None,
            periodic_gossip: Some(foca::PeriodicParams { frequency: self.gossip, num_members: count(4) }),
        }
    }
}
