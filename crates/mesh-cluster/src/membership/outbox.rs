//! What foca wants done: datagrams to send, timers to set.

use super::seal::Sealer;
use super::tally::Tally;
use super::timers::{Event, Timers};
use super::wire::Identity;
use super::{Nodes, Timings};
use foca::{Notification, Timer};
use mesh_model::NodeId;
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A datagram to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// The sealed bytes.
    pub datagram: Vec<u8>,
}

/// Foca's runtime: nothing leaves it before it is asked for.
pub(super) struct Outbox {
    pub(super) timings: Timings,
    pub(super) nodes: Arc<Nodes>,
    pub(super) sealer: Sealer,
    pub(super) timers: Timers,
    pub(super) transmits: VecDeque<Transmit>,
    pub(super) tally: Tally,
    /// Suspects with a reminder under way.
    pub(super) reminded: BTreeSet<NodeId>,
    /// Whether the verdicts may differ from those last told.
    pub(super) changed: bool,
    /// The time of the call that is being served.
    pub(super) now: Instant,
}

impl Outbox {
    pub(super) fn set(&mut self, after: Duration, event: Event) {
        self.timers.set(self.now + after, event);
    }
}

impl foca::Runtime<Identity> for Outbox {
    fn notify(&mut self, _: Notification<'_, Identity>) {
        self.changed = true;
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        // A node that left the set while foca still knew it is not spoken to.
        let Some(address) = self.nodes.get(&to.node) else { return };
        let datagram = self.sealer.seal(data);
        self.tally.sent += 1;
        self.tally.sent_bytes += datagram.len() as u64;
        self.transmits.push_back(Transmit { to: *address, datagram });
    }

    fn submit_after(&mut self, timer: Timer<Identity>, after: Duration) {
        if let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = &timer
            && self.reminded.insert(member_id.node)
        {
            self.set(Duration::ZERO, Event::Remind(*member_id, *incarnation));
        }
        self.set(after, Event::Foca(timer));
    }
}
