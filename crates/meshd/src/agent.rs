//! The agent of this node: follows a manager, and drives the three data planes from what it says.
//!
//! ```text
//! link (watch stream) ──► snapshot ──┬─► cache (disk)
//!                                    └─► liveness ──► planes: net (kernel) · fronts (DNS, L7 ingress) · checks
//!      members (SWIM) ──► verdicts ──────┘               └─► applied ──► manager, targets, the local API
//! ```

mod cache;
pub(crate) mod counted;
mod endpoints;
mod events;
mod fronts;
mod link;
mod liveness;
mod lost;
mod members;
mod names;
mod pidfd;
mod planes;
mod ports;
mod problem;
pub(crate) mod replica;
mod report;
mod targets;
mod trust;

pub(crate) use fronts::Fronts;
pub(crate) use link::Link;
pub(crate) use planes::{Counts, Look};

use crate::api::Failure;
use crate::{
    config::Config, doctor::Responder, front::NamesReport, identity::Identity, sockets::Sockets,
    supervisor::Spawner, wire::PortsReport,
};
use liveness::Liveness;
use members::{Farewell, Members};
use mesh_api::FrontView;
use mesh_model::{EndpointId, NetworkId, NodeId, ServiceId, Snapshot};
use mesh_net::{Inspection, ports::HostPort};
use problem::Problem;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// Requests about ports that wait for the planes.
const PORT_REQUESTS: usize = 64;
/// Looks that wait for the planes, and are taken together.
const LOOKS: usize = 64;
/// How long a farewell may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the data planes of this node run from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Applied {
    /// Revision of the snapshot.
    pub(crate) revision: u64,
    /// Endpoints of this node that could not be made, and why.
    pub(crate) failures: BTreeMap<EndpointId, String>,
    /// Why the kernel's part ended early: no endpoint is known to be made.
    pub(crate) ended_early: Option<String>,
    /// Endpoints of this node whose namespace is gone.
    pub(crate) vanished: BTreeSet<EndpointId>,
    /// The processes that serve names and the L7 ingress.
    pub(crate) fronts: Vec<FrontView>,
    /// What the name servers do.
    pub(crate) names: Arc<NamesReport>,
    /// Where they are: their networks, none for the host's.
    pub(crate) name_servers: Vec<(Option<NetworkId>, SocketAddr)>,
    /// What [`mesh_model::Endpoint::source_nat`] is to say of this node's endpoints.
    pub(crate) source_nat: BTreeMap<EndpointId, Vec<IpAddr>>,
    /// Everything that does not work, a line each.
    pub(crate) problems: Vec<String>,
    /// Of these, what the kernel could not be brought to.
    pub(crate) kernel: Vec<String>,
    /// Of these, those about published ports that can't be served.
    pub(crate) ports: Vec<(HostPort, String)>,
}

/// The agent.
pub(crate) struct Agent {
    pub(crate) identity: Identity,
    pub(crate) link: Link,
    /// Whose agents are connected to the manager in this process; it says so itself. Nobody's if there is none.
    pub(crate) connected: watch::Sender<BTreeSet<NodeId>>,
    /// As the managers tell it, with the liveness that this node finds out.
    snapshot: watch::Receiver<Arc<Snapshot>>,
    /// What is wrong between the nodes, a line each.
    peer_problems: watch::Receiver<Vec<String>>,
    /// Why the state can't be kept on disk.
    unwritten: Problem,
    farewell: Farewell,
    trust: Arc<trust::Trust>,
    /// The verdicts of this node's checks.
    health: watch::Sender<Arc<report::OwnHealth>>,
    pub(crate) applied: watch::Sender<Arc<Applied>>,
    /// To the planes.
    looks: mpsc::Sender<Look>,
    /// Cancelled before the agent is, it ends with what it serves.
    pub(crate) end_fronts: CancellationToken,
    disowned: endpoints::Disowned,
    run_dir: PathBuf,
}

impl Agent {
    /// Starts from the last snapshot on disk; the managers' comes when one answers.
    pub(crate) async fn start(
        config: &Config,
        identity: &Identity,
        connected: watch::Sender<BTreeSet<NodeId>>,
        end_fronts: CancellationToken,
        spawner: &Spawner,
    ) -> anyhow::Result<Arc<Self>> {
        let cached = cache::load(&config.data_dir);
        let first = Arc::new(cached.clone().unwrap_or_default());
        let (to_told, told) = watch::channel(Arc::clone(&first));
        let (to_seen, seen) = watch::channel(first);
        let (to_keys, keys) = watch::channel(members::load_keys(&config.data_dir));
        let (to_ports, ports) = mpsc::channel(PORT_REQUESTS);
        let (looks, to_look) = mpsc::channel(LOOKS);
        let trust = Arc::new(trust::Trust::load(&config.data_dir)?);
        let (link, link_task) = Link::new(identity.clone(), Arc::clone(&trust), to_told, to_keys, to_ports);
        let (to_nodes, nodes) = watch::channel(Arc::default());
        let (to_verdicts, verdicts) = watch::channel(Arc::default());
        let (to_problems, peer_problems) = watch::channel(Vec::new());
        let unwritten = Problem::new(
            "the snapshot can't be written, and a restart without a manager would start from an older one",
        );
        let (health, own_health) = watch::channel(Arc::default());
        let (to_lost, lost) = watch::channel(BTreeSet::new());
        let (applied, _) = watch::channel(Arc::default());
        let farewell = Farewell::default();
        let members = Members {
            me: identity.node,
            socket: members::bind(identity.advertise)?,
            nodes,
            keys: keys.clone(),
            verdicts: to_verdicts,
            farewell: farewell.clone(),
        };
        let mut liveness = Liveness {
            me: identity.node,
            told: told.clone(),
            verdicts,
            manager: link.manager(),
            connected: connected.subscribe(),
            health: own_health,
            lost,
            nodes: to_nodes,
            seen: to_seen,
            problems: to_problems,
        };
        // The planes start from the snapshot on the disk.
        liveness.told.mark_changed();
        let agent = Arc::new(Self {
            identity: identity.clone(),
            link,
            connected,
            snapshot: seen,
            peer_problems,
            unwritten: unwritten.clone(),
            farewell,
            trust: Arc::clone(&trust),
            health,
            applied,
            looks,
            end_fronts,
            disowned: endpoints::Disowned::default(),
            run_dir: config.run_dir.clone(),
        });

        let cancel = &spawner.cancel;
        spawner.spawn("link to the managers", link_task.run(cancel.clone()));
        let renewal = trust.run(Arc::clone(&agent), told.clone(), cancel.clone());
        spawner.spawn("renewal of the certificate", renewal);
        let cache = cache::keep(config.data_dir.clone(), told, unwritten, cancel.clone());
        spawner.spawn("snapshot cache", cache);
        spawner.spawn("membership keys", members::keep_keys(config.data_dir.clone(), keys, cancel.clone()));
        spawner.spawn("membership", members.run(cancel.clone()));
        spawner.spawn("liveness", liveness.run(cancel.clone()));
        let lost = lost::Lost {
            me: identity.node,
            sockets: agent.sockets(),
            snapshot: agent.snapshot.clone(),
            lost: to_lost,
        };
        spawner.spawn("search for lost hosts", lost.run(cancel.clone()));
        spawner.spawn("watch of targets", targets::Targets::new(Arc::clone(&agent)).run(cancel.clone()));
        spawner.spawn("reports of what is applied", report::applied(Arc::clone(&agent), cancel.clone()));
        spawner.spawn("reports of targets", report::attached(Arc::clone(&agent), cancel.clone()));
        let responder = Responder {
            me: identity.node,
            sockets: agent.sockets(),
            snapshot: agent.snapshot.clone(),
            applied: agent.applied.subscribe(),
        };
        spawner.spawn("answers to probes", responder.run(cancel.clone()));
        let planes = planes::Planes::start(config, &agent, spawner).await?;
        spawner.spawn("data planes", planes.run(ports, to_look, cached.is_some(), cancel.clone()));
        Ok(agent)
    }

    /// What of the kernel is not as the state says; none before there is a state.
    pub(crate) async fn inspect(&self) -> Option<mesh_net::Result<Inspection>> {
        let (reply, answer) = oneshot::channel();
        self.looks.send(Look::Inspect(reply)).await.ok()?;
        answer.await.ok()?
    }

    /// What went through this node's published ports; none when the daemon ends.
    pub(crate) async fn traffic(&self) -> Option<Arc<Counts>> {
        let (reply, answer) = oneshot::channel();
        self.looks.send(Look::Traffic(reply)).await.ok()?;
        answer.await.ok()
    }

    /// What this node tells of a service's published ports; none when the daemon ends.
    pub(crate) async fn ports_report(&self, service: ServiceId) -> Option<PortsReport> {
        let counts = self.traffic().await?;
        let snapshot = self.snapshot();
        let Some(service) = snapshot.services.get(&service) else { return Some(PortsReport::default()) };
        let applied = self.applied.borrow();
        let is_its = |port: &HostPort| service.ports.iter().any(|of| HostPort::from(of) == *port);
        let degraded = applied.ports.iter().filter(|(port, _)| is_its(port));
        let mut degraded: Vec<String> = degraded.map(|(_, problem)| problem.clone()).collect();
        if let Err(err) = &counts.led {
            degraded.push(format!("what the kernel led through ports is not known: {err}"));
        }
        let mut counted = counted::of_service(&snapshot, service, &counts);
        // Of many ports and replicas most have seen nobody.
        counted.retain(|of| of.connections > 0 || of.sent.packets > 0 || of.received.packets > 0);
        Some(PortsReport { counted, degraded })
    }

    /// Repairs what others changed in the kernel, now.
    pub(crate) async fn repair(&self) {
        let (reply, answer) = oneshot::channel();
        if self.looks.send(Look::Repair(reply)).await.is_ok() {
            // It fails with the daemon only.
            let _ = answer.await;
        }
    }

    /// Asks whichever manager is connected.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.link.post(path, body).await
    }

    /// The state, to be watched.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    /// The state as this node knows it.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    /// Asks a manager to take this node out.
    pub(crate) async fn withdraw(&self) -> Result<(), Failure> {
        self.link.post("/v1/agent/withdraw", &()).await
    }

    /// Tells the other nodes that this one leaves for good.
    pub(crate) async fn farewell(&self) {
        self.farewell.say.cancel();
        // Who does not hear it finds out.
        let _ = timeout(FAREWELL, self.farewell.said.cancelled()).await;
    }

    /// Opens sockets inside networks, as their containers do.
    pub(crate) fn sockets(&self) -> Sockets {
        Sockets::new(self.run_dir.clone(), self.identity.node, self.snapshot.clone())
    }

    /// The processes that serve names and the L7 ingress of this node.
    pub(crate) fn fronts(&self) -> Vec<FrontView> {
        self.applied.borrow().fronts.clone()
    }

    /// How this node proves to a manager who it is; none if its credentials are of no use.
    pub(crate) fn connector(&self) -> Option<TlsConnector> {
        self.trust.connector().ok()
    }

    /// What does not work on this node, a line each.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = self.applied.borrow().problems.clone();
        problems.extend_from_slice(&self.peer_problems.borrow());
        problems.extend(self.unwritten.line());
        problems.extend(self.link.problems());
        problems.extend(self.trust.problem());
        problems
    }
}

impl Agent {
    /// Returns once a manager is connected and this node runs from its snapshot.
    pub(crate) async fn ready(&self) {
        let mut connection = self.link.watch();
        let mut applied = self.applied.subscribe();
        // Both senders live as long as the daemon.
        let _ = connection.wait_for(Option::is_some).await;
        let _ = applied.wait_for(|applied| applied.revision > 0).await;
    }
}
