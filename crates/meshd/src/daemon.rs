//! The daemon: belongs to no cluster and waits, or is a member.

use crate::{
    agent::{Agent, Fronts},
    api::Failure,
    client::ask_once,
    clock,
    config::Config,
    engine::docker,
    identity::Identity,
    manager::{Error, FirstNode, Manager, Start},
    role::{Migrate, Roles},
    supervisor::Spawner,
    wire::{JoinReply, JoinRequest},
};
use mesh_api::{
    Init, Initialized, Join, JoinTokenRequest, Joined, Migrated, NodeView, State, StatusView, StoreSpec,
};
use mesh_cluster::{AuthorityCertificate, Credentials, JoinToken, NodeKey, pinned_client_config};
use mesh_model::{Endpoint, EndpointSpec, Node, NodeId, NodeSpec, Role, Snapshot};
use mesh_net::DataPlane;
use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

mod restore;

/// Said in the log at start.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Port of the manager API unless another is given.
const API_PORT: u16 = 7443;
/// Shortest life of certificates: below an hour, clocks that differ by minutes are in the way of renewals.
const MIN_CERT_EXPIRY_S: u64 = 20;
/// How long a new member may take to hear from its manager.
const FIRST_CONTACT: Duration = Duration::from_secs(10);

/// How long a node that joins as a manager may take to become one.
const PROMOTION: Duration = Duration::from_secs(90);
/// How long a command waits for a manager that is starting.
const START: Duration = Duration::from_secs(5);

/// The daemon, whatever it is part of.
pub(crate) struct Daemon {
    config: Config,
    spawner: Spawner,
    member: RwLock<Option<Arc<Member>>>,
    /// One becomes a member once, not twice at a time.
    entering: Mutex<()>,
    docker: docker::Api,
    /// Cancelled before the daemon ends, names and the L7 ingress end with it.
    end_fronts: CancellationToken,
}

/// The daemon as a member of a cluster.
pub(crate) struct Member {
    pub(crate) identity: Identity,
    pub(crate) agent: Arc<Agent>,
    manager: watch::Sender<ManagerState>,
    /// To what follows its role, which starts and ends the manager.
    orders: mpsc::Sender<Migrate>,
    /// Its agent, what follows its role, and in a group of its own the manager, also one that is on its way.
    tasks: Spawner,
}

/// The manager in this process; or why there is none, empty if there is nothing to say.
type ManagerState = Result<Arc<Manager>, String>;

impl Member {
    /// The manager in this process, if the node is one and it runs.
    pub(crate) fn manager(&self) -> Option<Arc<Manager>> {
        self.manager.borrow().as_ref().ok().cloned()
    }

    /// The same, after waiting a moment for one that is starting.
    pub(crate) async fn manager_soon(&self) -> ManagerState {
        let mut manager = self.manager.subscribe();
        let up = timeout(START, manager.wait_for(Result::is_ok)).await;
        up.ok().and_then(Result::ok).map_or_else(|| self.manager.borrow().clone(), |up| up.clone())
    }

    /// Waits until the manager of a node that joined as one runs.
    async fn becomes_manager(&self) -> Result<(), Failure> {
        let (mut manager, mut snapshot) = (self.manager.subscribe(), self.agent.subscribe());
        let name = &self.identity.name;
        let no_manager = |why: &str| {
            Failure::conflict(format!(
                "this node joined as a worker, but it is no manager: {why}; when that is mended: 'meshctl node promote {name}'"
            ))
        };
        let declined = snapshot.wait_for(|snapshot| {
            snapshot.nodes.get(&self.identity.node).is_some_and(|node| node.role == Role::Worker)
        });
        tokio::select! {
            // Both senders live as long as the daemon.
            _ = manager.wait_for(Result::is_ok) => Ok(()),
            _ = declined => Err(no_manager("see its log")),
            () = sleep(PROMOTION) => Err(no_manager("it takes too long: see its log")),
        }
    }

    pub(crate) fn set_manager(&self, manager: ManagerState) {
        self.manager.send_if_modified(|current| {
            if let Err(problem) = &manager
                && current.as_ref().err() != Some(problem)
            {
                tracing::error!(problem, "the manager does not run: trying again");
            }
            *current = manager;
            true
        });
    }

    /// Says why there is no manager for a moment, which is no failure.
    pub(crate) fn announce(&self, why: &str) {
        self.manager.send_modify(|manager| *manager = Err(why.to_owned()));
    }

    /// `cluster migrate`.
    pub(crate) async fn migrate(&self, to: StoreSpec) -> Result<Migrated, Failure> {
        let (reply, answer) = oneshot::channel();
        let ending = || Failure::unavailable("the daemon is ending");
        self.orders.send(Migrate { to, reply }).await.map_err(|_| ending())?;
        answer.await.map_err(|_| ending())?
    }

    /// What does not work on this node, a line each.
    fn problems(&self) -> Vec<String> {
        self.manager_problems().into_iter().chain(self.agent.problems()).collect()
    }

    /// What does not work of the manager in this process, a line each.
    pub(crate) fn manager_problems(&self) -> Vec<String> {
        let manager = self.manager.borrow().as_ref().err().filter(|problem| !problem.is_empty()).cloned();
        let manager = manager.map(|problem| format!("the manager does not run: {problem}"));
        let managed = self.manager().map(|manager| manager.problems()).unwrap_or_default();
        manager.into_iter().chain(managed).collect()
    }
}

impl Daemon {
    /// Picks up where an earlier life left off.
    pub(crate) async fn start(
        config: Config,
        spawner: Spawner,
        end_fronts: CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let identity = Identity::load(&config.data_dir)?;
        let (member, entering) = (RwLock::default(), Mutex::default());
        let docker = docker::Api::new(config.docker_socket.clone());
        let daemon = Arc::new(Self { config, spawner, member, entering, docker, end_fronts });
        match identity {
            Some(identity) => daemon.enter(identity, None).await.map(drop)?,
            None => {
                Fronts::end_strays(&daemon.config.run_dir).await;
                tracing::info!(
                    version = VERSION,
                    socket = %daemon.config.socket().display(),
                    "no member of a cluster: waiting for 'meshctl cluster init' or 'meshctl cluster join'"
                );
            }
        }
        Ok(daemon)
    }

    /// This node as a member; refused as long as it is none.
    pub(crate) fn member(&self) -> Result<Arc<Member>, Failure> {
        self.current().ok_or_else(|| Failure::from(mesh_model::Refusal::NoCluster))
    }

    fn current(&self) -> Option<Arc<Member>> {
        self.member.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs as a member from now on.
    async fn enter(&self, identity: Identity, first: Option<FirstNode>) -> anyhow::Result<Arc<Member>> {
        let connected = watch::Sender::default();
        let tasks = self.spawner.group();
        // A first manager that can't start fails the command. Later, nothing that has to do with managers may keep the
        // agent from its work.
        let manager = match first {
            Some(first) => {
                let (start, connected) = (Start::First(first), connected.clone());
                let group = tasks.group();
                let started =
                    Manager::start(&self.config, &identity, start, connected, &group, &|_| {}).await;
                if started.is_err() {
                    tasks.stop().await;
                }
                Ok(started?)
            }
            None => Err(String::new()),
        };
        let end_fronts = self.end_fronts.child_token();
        let agent = match Agent::start(&self.config, &identity, connected, end_fronts, &tasks).await {
            Ok(agent) => agent,
            Err(e) => {
                tasks.stop().await;
                return Err(e);
            }
        };
        tracing::info!(
            version = VERSION,
            node = %identity.node,
            name = %identity.name,
            role = %identity.role,
            cluster = %identity.cluster,
            "member of a cluster"
        );
        let manager = watch::Sender::new(manager);
        // One migration waits for another.
        let (orders, ordered) = mpsc::channel(1);
        let member = Arc::new(Member { identity, agent, manager, orders, tasks: tasks.clone() });
        let (config, identity) = (self.config.clone(), member.identity.clone());
        let (spawner, to_member) = (tasks.clone(), Arc::clone(&member));
        let roles = Roles { config, spawner, identity, member: to_member, orders: ordered };
        tasks.spawn("role of this node", roles.run(tasks.cancel.clone()));
        *self.member.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&member));
        Ok(member)
    }

    /// `cluster init`.
    pub(crate) async fn init(&self, init: Init) -> Result<Initialized, Failure> {
        let _entering = self.entering.lock().await;
        self.check_free()?;
        check_own_address(init.advertise.ip())?;
        if init.data_path_port == 0 {
            return Err(Failure::bad_request(
                "--data-path-port 0 is out of range: choose a port from 1 to 65535",
            ));
        }
        if init.data_path_port == init.advertise.port() {
            return Err(Failure::bad_request(format!(
                "--data-path-port {} is the port that nodes find each other at: choose another, such as 4789",
                init.data_path_port
            )));
        }
        if init.cert_expiry_s < MIN_CERT_EXPIRY_S {
            return Err(Failure::bad_request(format!(
                "--cert-expiry is too short: give {MIN_CERT_EXPIRY_S}s or more, such as 90d"
            )));
        }
        let entered = match FirstNode::prepare(&self.config, &init) {
            Ok((identity, first)) => self.enter(identity, Some(first)).await,
            // What was refused wrote nothing.
            Err(e @ Error::Files(_)) => Err(e.into()),
            Err(e) => return Err(e.into()),
        };
        let member = entered.map_err(|e| self.undo(&e))?;
        self.first_contact(&member).await?;
        let manager = member.manager().ok_or_else(|| Failure::internal("no manager after init"))?;
        let request = JoinTokenRequest { role: Role::Worker, rotate: false, ttl_ms: None };
        let token = manager.join_token(&request).await?;
        Ok(Initialized { node: member.identity.node, join_token: token.token, manager: init.advertise })
    }

    /// `cluster join`.
    pub(crate) async fn join(&self, join: Join) -> Result<Joined, Failure> {
        let _entering = self.entering.lock().await;
        self.check_free()?;
        let token: JoinToken = join.token.parse().map_err(refuse)?;
        let advertise = match join.advertise {
            Some(advertise) => advertise,
            None => SocketAddr::new(address_towards(join.manager)?, API_PORT),
        };
        check_own_address(advertise.ip())?;

        let key = NodeKey::generate().map_err(refuse)?;
        let request = JoinRequest {
            token: join.token.clone(),
            node: NodeSpec { name: self.config.name.clone(), advertise },
            csr: key.request().map_err(refuse)?,
        };
        let connector = pinned_client_config(token.authority()).map_err(refuse)?;
        let connector = TlsConnector::from(Arc::new(connector));
        let reply: JoinReply = ask_once(join.manager, &connector, "/v1/join", &request).await?;
        let authority = AuthorityCertificate::from_pem(&reply.ca).map_err(refuse)?;
        let now = clock::unix_seconds();
        let credentials = Credentials::new(authority, &reply.certificate, key, now).map_err(refuse)?;
        let trusted = reply.cluster.authorities.iter().map(|pem| AuthorityCertificate::from_pem(pem));
        let credentials = credentials.trusting(trusted.collect::<Result<_, _>>().map_err(refuse)?);
        let identity = Identity::joined(&reply, join.manager);
        let entered = match identity.save(&self.config.data_dir, &credentials) {
            Ok(()) => self.enter(identity, None).await,
            Err(e) => Err(e),
        };
        let member = match entered {
            Ok(member) => member,
            Err(e) => {
                withdraw(join.manager, &credentials).await;
                return Err(self.undo(&e));
            }
        };
        self.first_contact(&member).await?;
        if reply.node.role == Role::Manager {
            member.becomes_manager().await?;
        }
        Ok(Joined { node: member.identity.node, role: reply.node.role })
    }

    /// `cluster leave`: nothing of the membership stays, and the daemon waits as before it.
    pub(crate) async fn leave(&self, force: bool) -> Result<(), Failure> {
        let _entering = self.entering.lock().await;
        let member = self.member()?;
        let (snapshot, link) = (member.agent.snapshot(), &member.agent.link);
        let me = snapshot.nodes.get(&member.identity.node);
        if link.is_removed() {
            // What it was is for the managers to say, and they have.
            check_unused(&snapshot, &member.identity, force)?;
        } else if me.map_or(member.identity.role, |node| node.role) == Role::Manager {
            check_manager(&snapshot, &member.identity, link.is_connected(), force)?;
        } else {
            check_unused(&snapshot, &member.identity, force)?;
            match member.agent.withdraw().await {
                Err(failure) if !force => return Err(failure),
                Err(failure) => tracing::warn!(
                    err = failure.text(),
                    "left without a manager's knowledge: 'meshctl node rm' there removes this node's record"
                ),
                Ok(()) => {}
            }
        }
        member.agent.farewell().await;
        member.agent.end_fronts.cancel();
        *self.member.write().unwrap_or_else(PoisonError::into_inner) = None;
        member.tasks.stop().await;
        let plane = self.config.data_plane(member.identity.node);
        let cleared =
            tokio::task::spawn_blocking(move || DataPlane::new(plane).map(|mut plane| plane.clear()));
        let cleared = cleared.await.map_err(|e| Failure::internal(e.to_string()))?;
        Identity::discard(&self.config.data_dir).map_err(|e| Failure::internal(format!("{e:#}")))?;
        tracing::info!(cluster = %member.identity.cluster, "left the cluster");
        match cleared.map(|report| report.failures.into_iter().next().map(|failure| failure.error)) {
            Ok(None) => Ok(()),
            Ok(Some(e)) | Err(e) => Err(Failure::internal(format!(
                "this node left the cluster, but something of its networks is left in the kernel: {e}"
            ))),
        }
    }

    /// Where this daemon keeps what must outlive it, but not a reboot.
    pub(crate) fn run_dir(&self) -> &std::path::Path {
        &self.config.run_dir
    }

    /// Finds the container that an endpoint is to be attached to.
    pub(crate) async fn locate(&self, spec: EndpointSpec) -> Result<EndpointSpec, Failure> {
        docker::locate(&self.docker, spec).await
    }

    /// Has the engine take an endpoint's container off the network, if the engine put it there; whether it did.
    pub(crate) async fn detach(&self, member: &Member, endpoint: &Endpoint) -> Result<bool, Failure> {
        if endpoint.node != member.identity.node {
            return Ok(false);
        }
        docker::detach(&self.docker, endpoint).await
    }

    /// Resolves when the daemon ends.
    pub(crate) fn ending(&self) -> WaitForCancellationFutureOwned {
        self.spawner.cancel.clone().cancelled_owned()
    }

    fn check_free(&self) -> Result<(), Failure> {
        match self.current() {
            Some(_) => Err(Failure::conflict(
                "this node is a member of a cluster already: 'meshctl status' shows which; to leave it, run 'meshctl cluster leave'",
            )),
            None => {
                Identity::check_unused(&self.config.data_dir).map_err(|e| Failure::conflict(e.to_string()))
            }
        }
    }

    /// Entering failed: nothing of it stays.
    fn undo(&self, error: &anyhow::Error) -> Failure {
        if let Err(err) = Identity::discard(&self.config.data_dir) {
            tracing::error!(err = format!("{err:#}"), "cannot remove what a failed start left behind");
        }
        Failure::conflict(format!("{error:#}"))
    }

    async fn first_contact(&self, member: &Member) -> Result<(), Failure> {
        let late = || {
            Failure::unavailable(
                "the node is a member, but its manager does not answer yet: see 'meshctl status'",
            )
        };
        timeout(FIRST_CONTACT, member.agent.ready()).await.map_err(|_| late())
    }

    /// `status`.
    pub(crate) fn status(&self, view: impl Fn(&Snapshot, &Node, NodeId) -> NodeView) -> StatusView {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let Some(member) = self.current() else {
            return StatusView {
                version,
                state: State::Unclustered,
                node: None,
                cluster: None,
                managers: Vec::new(),
                revision: 0,
                fronts: Vec::new(),
                problems: Vec::new(),
            };
        };
        let snapshot = member.agent.snapshot();
        let local = member.identity.node;
        let link = &member.agent.link;
        let state = match (link.is_connected(), link.is_removed()) {
            (true, _) => State::Ready,
            (false, true) => State::Removed,
            (false, false) => State::Detached,
        };
        let node = snapshot.nodes.get(&local).map(|node| view(&snapshot, node, local));
        let mut managers: Vec<SocketAddr> =
            snapshot.nodes.values().filter(|n| n.role == Role::Manager).map(|n| n.advertise).collect();
        // Before the first snapshot it knows whom it joined.
        if managers.is_empty() {
            managers.clone_from(&member.identity.managers);
        }
        StatusView {
            version,
            state,
            node,
            cluster: Some(member.identity.cluster.to_string()),
            managers,
            revision: snapshot.revision,
            fronts: member.agent.fronts(),
            problems: member.problems(),
        }
    }
}

/// Takes back a join that failed on this side: the name and the address are free again.
async fn withdraw(manager: SocketAddr, credentials: &Credentials) {
    let withdrawn = async {
        let config = credentials.client_config().map_err(refuse)?;
        ask_once::<()>(manager, &TlsConnector::from(Arc::new(config)), "/v1/agent/withdraw", &()).await
    };
    if let Err(err) = withdrawn.await {
        tracing::error!(err = err.text(), "the manager keeps a record of this node, though it did not join");
    }
}

/// The last manager leaves as one, and the cluster ends with it; so does one that nobody can demote, since no manager
/// takes changes (`answers`).
fn check_manager(
    snapshot: &Snapshot,
    identity: &Identity,
    answers: bool,
    force: bool,
) -> Result<(), Failure> {
    if snapshot.nodes.values().any(|node| node.role == Role::Manager && node.id != identity.node) {
        return match (answers, force) {
            (true, _) => Err(mesh_model::Refusal::NodeIsManager(identity.name.to_string()).into()),
            (false, true) => Ok(()),
            (false, false) => Err(Failure::conflict(
                "this node is a manager, and no majority of them answers: bring the others back, or give --force to lose what this one holds (a backup can be restored then)",
            )),
        };
    }
    if force {
        return Ok(());
    }
    Err(Failure::conflict(
        "this node is the only manager: the cluster's state would be gone: give --force to end the cluster",
    ))
}

fn check_unused(snapshot: &Snapshot, identity: &Identity, force: bool) -> Result<(), Failure> {
    match snapshot.endpoints.values().filter(|endpoint| endpoint.node == identity.node).count() {
        count if count > 0 && !force => Err(Failure::conflict(format!(
            "this node has {count} endpoints: disconnect them first ('meshctl node ps' shows them), or give --force"
        ))),
        _ => Ok(()),
    }
}

fn refuse(error: mesh_cluster::Error) -> Failure {
    Failure::bad_request(error.to_string())
}

fn check_own_address(address: IpAddr) -> Result<(), Failure> {
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(Failure::bad_request(mesh_model::Refusal::AdvertiseUnusable(address).to_string()));
    }
    crate::sockets::check_local(address).map_err(|e| {
        Failure::bad_request(format!(
            "{address} can't be advertised: it is no address of this host ({e}); 'ip address' shows those"
        ))
    })
}

/// The address that this host reaches a manager from. No packet is sent.
fn address_towards(manager: SocketAddr) -> Result<IpAddr, Failure> {
    let any: SocketAddr = if manager.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let local = UdpSocket::bind(any).and_then(|socket| {
        socket.connect(manager)?;
        socket.local_addr()
    });
    local.map(|local| local.ip()).map_err(|e| Failure::unavailable(format!("no route to {manager}: {e}")))
}
