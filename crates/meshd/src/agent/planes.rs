//! One loop drives the data planes: for each snapshot, and again every few seconds, it brings all of them to what
//! the snapshot says. Level-triggered: an event that is lost costs a delay, never a wrong state.

use super::{Agent, Applied, LOOKS, fronts::Fronts, link::PortRequest, names::Names, ports::Ports, report};
use crate::{
    config::Config,
    identity::Identity,
    lan,
    supervisor::Spawner,
    wire::{Counted, PortsTold, Reserved},
};
use anyhow::Context;
use mesh_model::Snapshot;
use mesh_net::{DataPlane, Inspection, Led, Pass, Report, Traffic, desired::Owner, ports::HostPort};
use mesh_proxy::HealthChecks;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    thread,
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// How often the kernel is read anew to repair what others changed: within 5 s, the pass and its work included.
const FULL_PASS: Duration = Duration::from_secs(3);
/// Verdicts of checks that wait to be reported.
const VERDICTS: usize = 1024;

/// What is known besides the snapshot.
struct Known {
    /// Ports that somebody else has.
    taken: BTreeSet<HostPort>,
    /// Whether a manager stands by it.
    confirmed: bool,
}

/// To the thread that owns the kernel's state.
enum Request {
    Pass(Arc<Snapshot>, Pass, Known, oneshot::Sender<Report>),
    Inspect(Arc<Snapshot>, oneshot::Sender<mesh_net::Result<Inspection>>),
    Traffic(oneshot::Sender<mesh_net::Result<BTreeMap<Led, Traffic>>>),
}

/// What went through published ports.
pub(crate) struct Counts {
    /// Led by the kernel, or why that can't be told.
    pub(crate) led: mesh_net::Result<BTreeMap<Led, Traffic>>,
    /// Relayed by a process.
    pub(crate) relayed: Arc<Vec<Counted>>,
}

/// What is asked of the planes.
pub(crate) enum Look {
    /// Compare the kernel with the state that was applied last; none before the first.
    Inspect(oneshot::Sender<Option<mesh_net::Result<Inspection>>>),
    /// Repair what others changed, now.
    Repair(oneshot::Sender<()>),
    /// What went through published ports.
    Traffic(oneshot::Sender<Arc<Counts>>),
}

/// The data planes.
pub(super) struct Planes {
    identity: Identity,
    agent: Arc<Agent>,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    net: mpsc::Sender<Request>,
    names: Names,
    ports: Ports,
    fronts: Fronts,
    /// What they run from.
    running: Option<Arc<Snapshot>>,
    /// What the front processes end with; the daemon may end earlier.
    end: CancellationToken,
}

impl Planes {
    /// Opens the kernel and starts the parts that run by themselves.
    pub(super) async fn start(
        config: &Config,
        agent: &Arc<Agent>,
        spawner: &Spawner,
    ) -> anyhow::Result<Self> {
        let identity = agent.identity.clone();
        let snapshot = agent.snapshot.clone();
        let net = start_net(config.data_plane(identity.node)).await?;
        let sockets = agent.sockets();

        let (to_verdicts, verdicts) = mpsc::channel(VERDICTS);
        let resend = Arc::new(Notify::new());
        let reach = Arc::new(sockets.clone());
        let checks =
            HealthChecks::new(snapshot.clone(), identity.node, reach, to_verdicts, Arc::clone(&resend));
        let cancel = spawner.cancel.clone();
        spawner.spawn("health checks", async move { Ok(checks.run(cancel).await?) });
        spawner.spawn(
            "reports of health",
            report::health(Arc::clone(agent), verdicts, agent.health.clone(), resend, spawner.cancel.clone()),
        );

        let (fronts, adopted) = Fronts::adopt(config, identity.node).await;
        let (names, ports) = (Names::new(sockets, config.dns.listen.clone(), &adopted), Ports::new(&adopted));
        Ok(Self {
            identity,
            agent: Arc::clone(agent),
            snapshot,
            net,
            names,
            ports,
            fronts,
            running: None,
            end: agent.end_fronts.clone(),
        })
    }

    /// Runs until cancelled. With a snapshot of an earlier life the planes are up before any manager answers.
    pub(super) async fn run(
        mut self,
        mut requests: mpsc::Receiver<PortRequest>,
        mut looks: mpsc::Receiver<Look>,
        cached: bool,
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        let mut full = interval(FULL_PASS);
        full.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if cached {
            self.snapshot.mark_changed();
        }
        loop {
            let pass = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                request = requests.recv() => {
                    self.answer(request.context("no port requests any more")?);
                    continue;
                }
                changed = self.snapshot.changed() => {
                    changed?;
                    Pass::Changed
                }
                () = self.fronts.lost() => Pass::Changed,
                _ = full.tick() => Pass::Full,
                // Last: whoever asks again and again does not keep changes waiting.
                look = looks.recv() => {
                    let first = look.context("nobody can look any more")?;
                    let all = std::iter::once(first).chain(std::iter::from_fn(|| looks.try_recv().ok()));
                    self.look(all.take(LOOKS).collect()).await?;
                    continue;
                }
            };
            let snapshot = Arc::clone(&self.snapshot.borrow_and_update());
            // Before the first snapshot nothing is known, and what exists is left alone.
            if snapshot.nodes.contains_key(&self.identity.node) {
                self.apply(snapshot, pass).await?;
            }
        }
        if self.end.is_cancelled() {
            self.fronts.end().await;
        }
        Ok(())
    }

    fn answer(&mut self, request: PortRequest) {
        match request {
            PortRequest::Release { id } => self.ports.release(id),
            PortRequest::Tell { id, service } => {
                let agent = Arc::clone(&self.agent);
                tokio::spawn(async move {
                    // Without one the daemon ends.
                    let Some(report) = agent.ports_report(service).await else { return };
                    agent.link.tell_ports(PortsTold { id, report }).await;
                });
            }
            PortRequest::Reserve { id, claim } => {
                let held = lan::check(&claim.subnets).and_then(|()| self.ports.reserve(id, &claim.ports));
                let answer = match held {
                    Ok(elsewhere) => Reserved { id, refusal: None, elsewhere },
                    Err(refusal) => Reserved { id, refusal: Some(refusal), elsewhere: BTreeSet::new() },
                };
                let link = self.agent.link.clone();
                tokio::spawn(async move { link.answer_reservation(answer).await });
            }
        }
    }

    /// Who asked may have given up meanwhile. Of all who ask what was counted one look at the kernel is enough.
    async fn look(&mut self, looks: Vec<Look>) -> anyhow::Result<()> {
        let mut of_traffic = Vec::new();
        for look in looks {
            match (look, self.running.clone()) {
                (Look::Inspect(reply), None) => drop(reply.send(None)),
                (Look::Inspect(reply), Some(snapshot)) => {
                    let (to_inspection, inspection) = oneshot::channel();
                    let request = Request::Inspect(snapshot, to_inspection);
                    self.net.send(request).await.context("the kernel data plane ended")?;
                    drop(reply.send(Some(inspection.await.context("the kernel data plane ended")?)));
                }
                (Look::Traffic(reply), _) => of_traffic.push(reply),
                (Look::Repair(reply), running) => {
                    if let Some(snapshot) = running {
                        self.apply(snapshot, Pass::Full).await?;
                    }
                    let _ = reply.send(());
                }
            }
        }
        if !of_traffic.is_empty() {
            let (to_led, led) = oneshot::channel();
            let asked = self.net.send(Request::Traffic(to_led)).await;
            asked.ok().context("the kernel data plane ended")?;
            let led = led.await.context("the kernel data plane ended")?;
            let counts = Arc::new(Counts { led, relayed: self.fronts.relayed() });
            of_traffic.into_iter().for_each(|reply| drop(reply.send(Arc::clone(&counts))));
        }
        Ok(())
    }

    async fn apply(&mut self, snapshot: Arc<Snapshot>, pass: Pass) -> anyhow::Result<()> {
        let degraded = self.ports.apply(&snapshot, self.identity.node);
        let taken = degraded.keys().copied().collect();
        if pass == Pass::Full {
            self.ports.look_at_rules();
        }
        let ports: Vec<(HostPort, String)> =
            degraded.into_iter().chain(self.ports.translated().iter().cloned()).collect();
        let mut problems: Vec<String> = ports.iter().map(|(_, problem)| problem.clone()).collect();
        self.running = Some(Arc::clone(&snapshot));
        let (reply, report) = oneshot::channel();
        // What a manager has to say has come by the time of a full pass.
        let confirmed = pass == Pass::Full && self.agent.link.is_connected();
        let request = Request::Pass(Arc::clone(&snapshot), pass, Known { taken, confirmed }, reply);
        self.net.send(request).await.context("the kernel data plane ended")?;
        let report = report.await.context("the kernel data plane ended")?;
        problems.extend(self.names.apply(&snapshot, self.identity.node));
        let places = self.ports.places().chain(self.names.held()).collect();
        problems.extend(self.fronts.apply(&snapshot, &places).await);
        self.fronts.failed().iter().for_each(|place| self.names.forget(place));
        self.publish(&snapshot, &report, problems, ports);
        Ok(())
    }

    fn publish(
        &self,
        snapshot: &Snapshot,
        report: &Report,
        problems: Vec<String>,
        ports: Vec<(HostPort, String)>,
    ) {
        let mut applied = Applied {
            revision: snapshot.revision,
            fronts: self.fronts.view(),
            names: self.fronts.names(),
            name_servers: self.names.places(),
            source_nat: report.source_nat.clone(),
            problems,
            ports,
            ..Applied::default()
        };
        for failure in &report.failures {
            let text = failure.error.to_string();
            let owner = match failure.owner {
                Owner::Host => "host".to_owned(),
                Owner::Network(id) => {
                    format!("network '{}'", snapshot.networks.get(&id).map_or("?", |network| &network.name))
                }
                Owner::Endpoint(id) => {
                    applied.failures.insert(id, text.clone());
                    format!(
                        "endpoint '{}'",
                        snapshot.endpoints.get(&id).map_or("?", |endpoint| &endpoint.name)
                    )
                }
            };
            applied.kernel.push(format!("{owner}: {text}"));
        }
        applied.ended_early = applied.kernel.last().filter(|_| report.ended_early).cloned();
        applied.problems.extend_from_slice(&applied.kernel);
        applied.vanished.extend(&report.vanished);
        let before = self.agent.applied.borrow().problems.clone();
        for problem in applied.problems.iter().filter(|problem| !before.contains(problem)) {
            tracing::error!(%problem, "degraded");
        }
        self.agent.applied.send_replace(Arc::new(applied));
    }
}

/// The kernel's data plane blocks, and stays in this namespace: it has a thread of its own.
async fn start_net(config: mesh_net::Config) -> anyhow::Result<mpsc::Sender<Request>> {
    let (requests, mut receiver) = mpsc::channel::<Request>(1);
    let (started, start) = oneshot::channel();
    thread::Builder::new().name("kernel".to_owned()).spawn(move || {
        let mut plane = match DataPlane::new(config) {
            Ok(plane) => {
                drop(started.send(Ok(())));
                plane
            }
            Err(e) => return drop(started.send(Err(e))),
        };
        while let Some(request) = receiver.blocking_recv() {
            // Who asked has ended with the daemon, if it does not take the answer.
            match request {
                Request::Pass(snapshot, pass, Known { taken, confirmed }, reply) => {
                    plane.leave_to_others(taken);
                    plane.confirm(confirmed);
                    drop(reply.send(plane.reconcile(&snapshot, pass)));
                    plane.settle();
                }
                Request::Inspect(snapshot, reply) => drop(reply.send(plane.inspect(&snapshot))),
                Request::Traffic(reply) => drop(reply.send(plane.traffic())),
            }
        }
    })?;
    start.await.context("the kernel data plane did not start")??;
    Ok(requests)
}
