//! The detector on a socket and a clock.

use super::seal::MAX_DATAGRAM;
use super::{ClusterKeys, Detector, Life, Nodes, Tally, Timings, Verdicts};
use crate::Error;
use mesh_model::NodeId;
use rand::{TryRngCore, rngs::OsRng};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// At most one log line on dropped datagrams in this time.
const LOG_EVERY: Duration = Duration::from_secs(30);
/// How often the counts are told.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Datagrams taken in a row before timers get their turn.
const BATCH: usize = 64;

/// What membership needs to run.
#[derive(Debug)]
pub struct Config {
    /// This node.
    pub me: NodeId,
    /// Milliseconds since 1970 at the start, or any number that is higher than at the last start; see
    /// [`Life::generation`].
    pub generation: u64,
    /// Bound by the caller, on the port of the addresses in `nodes`: by default the API's, 7443/udp.
    pub socket: UdpSocket,
    /// The nodes of the newest snapshot and where they listen, this one among them.
    pub nodes: watch::Receiver<Arc<Nodes>>,
    /// The keys that hold now.
    pub keys: watch::Receiver<ClusterKeys>,
    /// The pace.
    pub timings: Timings,
    /// Cancelled when this node leaves for good: says farewell, then [`Membership::run`] returns. A restart does not
    /// cancel it, so that it goes unnoticed.
    pub leave: CancellationToken,
}

/// Membership as a task.
pub struct Membership {
    detector: Detector,
    socket: UdpSocket,
    nodes: watch::Receiver<Arc<Nodes>>,
    keys: watch::Receiver<ClusterKeys>,
    leave: CancellationToken,
    verdicts: watch::Sender<Arc<Verdicts>>,
    tally: watch::Sender<Tally>,
    reported: Instant,
    logged: Option<Instant>,
    log_due: bool,
}

/// What membership finds out, to be watched.
#[derive(Debug, Clone)]
pub struct Findings {
    /// What is known of each node. A node that was not heard of yet is alive for [`Timings::grace`], so a daemon that
    /// has just started takes nobody out.
    pub verdicts: watch::Receiver<Arc<Verdicts>>,
    /// Datagrams taken, sent and dropped, brought up to date every second.
    pub tally: watch::Receiver<Tally>,
}

impl Membership {
    /// Prepares membership; nothing is sent before [`run`](Self::run).
    ///
    /// # Errors
    /// [`Error::Random`] if the system gives no random numbers.
    pub fn new(mut config: Config) -> Result<(Self, Findings), Error> {
        let (mut session, mut seed, mut low) = ([0; 16], [0; 8], [0; 2]);
        OsRng.try_fill_bytes(&mut session)?;
        OsRng.try_fill_bytes(&mut seed)?;
        OsRng.try_fill_bytes(&mut low)?;
        // Two lives that begin within one tick of a clock still differ.
        let generation = config.generation << 16 | u64::from(u16::from_be_bytes(low));
        let life = Life { node: config.me, generation, session, seed: u64::from_be_bytes(seed) };
        let now = Instant::now();
        let keys = config.keys.borrow_and_update().clone();
        let mut detector = Detector::new(life, keys, config.timings, now);
        detector.set_nodes(config.nodes.borrow_and_update().clone(), now);
        let (verdicts, verdicts_seen) = watch::channel(Arc::clone(detector.verdicts()));
        let (tally, tally_seen) = watch::channel(Tally::default());
        let membership = Self {
            detector,
            socket: config.socket,
            nodes: config.nodes,
            keys: config.keys,
            leave: config.leave,
            verdicts,
            tally,
            reported: now,
            logged: None,
            log_due: false,
        };
        Ok((membership, Findings { verdicts: verdicts_seen, tally: tally_seen }))
    }

    /// Runs until `cancel`, silently, or until [`Config::leave`], with a farewell.
    ///
    /// # Errors
    /// [`Error::MembershipSocket`] if the socket can't be used at all. What the network does to single datagrams is no
    /// error.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), Error> {
        self.socket.local_addr().map_err(Error::MembershipSocket)?;
        // One byte more than taken, so that a longer datagram is seen to be one.
        let mut buffer = [0; MAX_DATAGRAM + 1];
        let mut second = tokio::time::interval(REPORT_EVERY);
        let (mut nodes_open, mut keys_open) = (true, true);
        loop {
            self.flush().await;
            let wake = self.detector.next_wake().map(tokio::time::Instant::from_std);
            tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                () = self.leave.cancelled() => {
                    self.detector.leave(Instant::now());
                    self.flush().await;
                    return Ok(());
                }
                changed = self.nodes.changed(), if nodes_open => {
                    nodes_open = changed.is_ok();
                    let nodes = self.nodes.borrow_and_update().clone();
                    self.detector.set_nodes(nodes, Instant::now());
                }
                changed = self.keys.changed(), if keys_open => {
                    keys_open = changed.is_ok();
                    let keys = self.keys.borrow_and_update().clone();
                    self.detector.set_keys(keys);
                }
                readable = self.socket.readable() => match readable {
                    Ok(()) => self.take(&mut buffer),
                    Err(error) => return Err(Error::MembershipSocket(error)),
                },
                () = tokio::time::sleep_until(wake.unwrap_or_else(tokio::time::Instant::now)), if wake.is_some() => {}
                _ = second.tick() => {}
            }
            // After whatever it was, so that a flood can hold up neither timers nor report.
            self.detector.wake(Instant::now());
            self.report();
        }
    }

    /// Takes what waits in the socket, before timers draw conclusions from what is missing.
    fn take(&mut self, buffer: &mut [u8; MAX_DATAGRAM + 1]) {
        for _ in 0..BATCH {
            // An error here is about something sent earlier (ICMP) or says that nothing is left.
            let Ok((length, _)) = self.socket.try_recv_from(buffer) else { return };
            self.detector.receive(&mut buffer[..length], Instant::now());
        }
    }

    /// Sends what is due and tells what changed.
    async fn flush(&mut self) {
        while let Some(transmit) = self.detector.transmit() {
            // Lost as any datagram may be: the protocol expects it.
            if let Err(error) = self.socket.send_to(&transmit.datagram, transmit.to).await {
                tracing::trace!(to = %transmit.to, err = %error, "membership datagram not sent");
            }
        }
        self.verdicts.send_if_modified(|told| {
            let changed = !Arc::ptr_eq(told, self.detector.verdicts());
            if changed {
                log_changes(told, self.detector.verdicts());
                *told = Arc::clone(self.detector.verdicts());
            }
            changed
        });
    }

    /// Once a second: the counts, and a line if datagrams were dropped.
    fn report(&mut self) {
        if self.reported.elapsed() < REPORT_EVERY {
            return;
        }
        self.reported = Instant::now();
        let tally = self.detector.tally();
        self.log_due |= tally.dropped() > self.tally.borrow().dropped();
        let quiet = self.logged.is_none_or(|at| at.elapsed() >= LOG_EVERY);
        if self.log_due && quiet {
            tracing::warn!(dropped = tally.dropped(), reasons = %tally, "membership datagrams dropped since the start");
            self.logged = Some(Instant::now());
            self.log_due = false;
        }
        self.tally.send_replace(tally.clone());
    }
}

fn log_changes(before: &Verdicts, now: &Verdicts) {
    for (node, liveness) in now {
        if before.get(node).is_some_and(|was| was != liveness) {
            tracing::info!(node = %node, %liveness, "membership");
        }
    }
}
