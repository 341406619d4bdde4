//! The checks that run, and the verdicts on their way to the manager.

use super::{
    plan::{Check, plan_checks},
    probe::probe,
    verdict::Verdict,
};
use crate::{Error, connect::Connect};
use mesh_model::{EndpointId, Health, NodeId, Snapshot};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    select,
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// A verdict on an endpoint of this node.
pub type Report = (EndpointId, Health);

/// Runs the checks of one node's endpoints.
///
/// One task a check; a check that changes or goes in the snapshot has its task, and no other, replaced or ended.
/// Only the newest verdict on an endpoint is kept until `reports` has room for it.
pub struct HealthChecks {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    me: NodeId,
    connect: Arc<dyn Connect>,
    reports: mpsc::Sender<Report>,
    resend: Arc<Notify>,
    running: BTreeMap<EndpointId, Running>,
    tasks: JoinSet<()>,
    /// Endpoints whose verdict has yet to be reported.
    due: BTreeSet<EndpointId>,
    /// Tells a task's verdicts from those of the one before it.
    generation: u64,
}

struct Running {
    check: Check,
    generation: u64,
    /// What its own results say, once they say something.
    verdict: Option<Health>,
    _stop: DropGuard,
}

struct Found {
    endpoint: EndpointId,
    generation: u64,
    health: Health,
}

impl HealthChecks {
    /// Checks for the endpoints of `me`. Verdicts go to `reports` when they change, and all of them again each time
    /// `resend` is notified (a manager may have missed some).
    pub fn new(
        snapshots: watch::Receiver<Arc<Snapshot>>,
        me: NodeId,
        connect: Arc<dyn Connect>,
        reports: mpsc::Sender<Report>,
        resend: Arc<Notify>,
    ) -> Self {
        Self {
            snapshots,
            me,
            connect,
            reports,
            resend,
            running: BTreeMap::new(),
            tasks: JoinSet::new(),
            due: BTreeSet::new(),
            generation: 0,
        }
    }

    /// Runs until cancelled.
    ///
    /// # Errors
    /// [`Error::Closed`] if the snapshots have no sender or the reports no receiver any more.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), Error> {
        let (found, mut results) = mpsc::channel(RESULTS);
        let reports = self.reports.clone();
        self.snapshots.mark_changed();
        loop {
            select! {
                () = cancel.cancelled() => return Ok(()),
                changed = self.snapshots.changed() => {
                    changed.map_err(|_| Error::Closed("snapshots"))?;
                    let snapshot = self.snapshots.borrow_and_update().clone();
                    self.apply(&snapshot, &found);
                }
                Some(found) = results.recv() => self.note(&found),
                () = self.resend.notified() => {
                    let known = self.running.iter().filter(|(_, running)| running.verdict.is_some());
                    self.due.extend(known.map(|(endpoint, _)| *endpoint));
                }
                permit = reports.reserve(), if !self.due.is_empty() => {
                    let permit = permit.map_err(|_| Error::Closed("health reports"))?;
                    let verdict = |endpoint| Some((endpoint, self.running.get(&endpoint)?.verdict?));
                    if let Some(report) = self.due.pop_first().and_then(verdict) {
                        permit.send(report);
                    }
                }
                Some(_) = self.tasks.join_next() => {}
            }
        }
    }

    /// Makes the checks that run those that should.
    fn apply(&mut self, snapshot: &Snapshot, found: &mpsc::Sender<Found>) {
        let wanted = plan_checks(snapshot, self.me);
        self.running.retain(|endpoint, running| wanted.get(endpoint) == Some(&running.check));
        for (endpoint, check) in wanted {
            if !self.running.contains_key(&endpoint) {
                let known = snapshot.health.get(&endpoint).copied().unwrap_or_default();
                self.start(endpoint, check, known, found.clone());
            }
        }
    }

    fn start(&mut self, endpoint: EndpointId, check: Check, known: Health, found: mpsc::Sender<Found>) {
        self.generation += 1;
        let generation = self.generation;
        let stop = CancellationToken::new();
        let watch = Watch {
            endpoint,
            generation,
            verdict: Verdict::resume(known, check.rise, check.fall),
            check: check.clone(),
            connect: self.connect.clone(),
            found,
        };
        let stopped = stop.clone();
        self.tasks.spawn(async move {
            stopped.run_until_cancelled_owned(watch.run()).await;
        });
        let running = Running { check, generation, verdict: None, _stop: stop.drop_guard() };
        self.running.insert(endpoint, running);
    }

    fn note(&mut self, found: &Found) {
        let running = self.running.get_mut(&found.endpoint);
        let Some(running) = running.filter(|running| running.generation == found.generation) else { return };
        if running.verdict != Some(found.health) {
            running.verdict = Some(found.health);
            self.due.insert(found.endpoint);
        }
    }
}

/// The task of one check.
struct Watch {
    endpoint: EndpointId,
    generation: u64,
    check: Check,
    verdict: Verdict,
    connect: Arc<dyn Connect>,
    found: mpsc::Sender<Found>,
}

impl Watch {
    /// Checks at once, then every interval, until the one who listens has gone.
    async fn run(mut self) {
        loop {
            let started = Instant::now();
            let result = probe(&self.check, self.connect.as_ref()).await;
            let success = result.is_ok();
            let changed = self.verdict.observe(success);
            self.log(changed, result.err());
            // What was known before is reported too, but only once a result agrees with it.
            let health = self.verdict.health();
            if health == (if success { Health::Healthy } else { Health::Unhealthy }) {
                let found = Found { endpoint: self.endpoint, generation: self.generation, health };
                if self.found.send(found).await.is_err() {
                    return;
                }
            }
            sleep_until(started + jittered(self.check.interval)).await;
        }
    }

    fn log(&self, changed: Option<Health>, err: Option<Error>) {
        let (endpoint, addr) = (self.endpoint, self.check.addr);
        match (changed, err) {
            (Some(Health::Unhealthy), Some(err)) => {
                tracing::warn!(%endpoint, %addr, %err, "endpoint is unhealthy");
            }
            (Some(health), _) => tracing::info!(%endpoint, %addr, "endpoint is {health}"),
            (None, Some(err)) => tracing::debug!(%endpoint, %addr, %err, "check failed"),
            (None, None) => {}
        }
    }
}

/// Up to a tenth less, so that the checks of many endpoints made at once drift apart.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(1.0 - rand::random_range(0.0..0.1))
}

/// Results on their way from the tasks: a slow report slows the checks rather than pile up.
const RESULTS: usize = 64;
