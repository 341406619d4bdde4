//! The agent's one connection to a manager: the watch stream, and requests beside it.
//!
//! When it breaks, the agent goes on with what it has and tries the managers in turn until one answers.

use super::{replica::Replica, trust::Trust};
use crate::{
    api::Failure,
    identity::Identity,
    sockets,
    wire::{
        Claim, Message, PortsTold, Reserved,
        client::{CONNECT, Sender, decode, exchange, open, request},
    },
};
use anyhow::{Context, bail};
use bytes::BytesMut;
use http::{Method, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_cluster::membership::ClusterKeys;
use mesh_model::{Role, ServiceId, Snapshot};
use rand::{Rng, seq::SliceRandom};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// How long a request waits for a connection, and for another when it breaks.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(10);
/// First and longest pause between two rounds through the managers.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Longest pause of a node that was removed: only a restore could make it a member again.
const REMOVED: Duration = Duration::from_secs(60);
/// A longer line is no message of ours.
const LINE: usize = 1 << 30;

/// Sends requests to whichever manager is connected.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    connection: watch::Receiver<Option<Sender>>,
    manager: watch::Receiver<Option<SocketAddr>>,
    removed: watch::Receiver<bool>,
    refusals: watch::Receiver<BTreeMap<SocketAddr, String>>,
}

/// A manager asks whether something can be, and to hold it; to let go of it; or what goes through a service's ports.
#[derive(Debug)]
pub(super) enum PortRequest {
    Reserve { id: u64, claim: Claim },
    Release { id: u64 },
    Tell { id: u64, service: ServiceId },
}

/// Keeps the connection.
pub(super) struct LinkTask {
    identity: Identity,
    /// See [`Follower`](crate::wire::Follower).
    process: u64,
    trust: Arc<Trust>,
    connection: watch::Sender<Option<Sender>>,
    manager: watch::Sender<Option<SocketAddr>>,
    removed: watch::Sender<bool>,
    /// Why each manager could not be followed when it was tried last.
    refusals: watch::Sender<BTreeMap<SocketAddr, String>>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    keys: watch::Sender<Option<ClusterKeys>>,
    ports: mpsc::Sender<PortRequest>,
}

impl Link {
    pub(super) fn new(
        identity: Identity,
        trust: Arc<Trust>,
        snapshot: watch::Sender<Arc<Snapshot>>,
        keys: watch::Sender<Option<ClusterKeys>>,
        ports: mpsc::Sender<PortRequest>,
    ) -> (Self, LinkTask) {
        let (connection, connected) = watch::channel(None);
        let (manager, connected_to) = watch::channel(None);
        let (removed, is_removed) = watch::channel(false);
        let (refusals, refused) = watch::channel(BTreeMap::new());
        let process = rand::random();
        let task = LinkTask {
            identity,
            process,
            trust,
            connection,
            manager,
            removed,
            refusals,
            snapshot,
            keys,
            ports,
        };
        (Self { connection: connected, manager: connected_to, removed: is_removed, refusals: refused }, task)
    }

    /// Whether a manager is connected.
    pub(crate) fn is_connected(&self) -> bool {
        self.connection.borrow().is_some()
    }

    /// Whether the managers say that this node is no member any more.
    pub(crate) fn is_removed(&self) -> bool {
        *self.removed.borrow()
    }

    /// Why no manager is connected, a line each; none if one is.
    pub(crate) fn problems(&self) -> Vec<String> {
        if self.is_connected() || self.is_removed() {
            return Vec::new();
        }
        self.refusals.borrow().iter().map(|(manager, why)| format!("manager {manager}: {why}")).collect()
    }

    /// The manager that is connected.
    pub(super) fn manager(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.manager.clone()
    }

    /// Ticks when the connection comes or goes.
    pub(super) fn watch(&self) -> watch::Receiver<Option<Sender>> {
        self.connection.clone()
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.request(Method::POST, path, body).await
    }

    pub(super) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.request(Method::PUT, path, body).await
    }

    pub(super) async fn patch<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.request(Method::PATCH, path, body).await
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.request(Method::GET, path, &()).await
    }

    pub(super) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.request(Method::DELETE, path, &()).await
    }

    /// Asks whichever manager is connected. When the connection breaks the next one is asked again, as long as there is
    /// patience: every request says what should be, so that it may come twice.
    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let unreachable =
            || Failure::unavailable("no manager answers: changes wait until one does, traffic goes on");
        let mut connection = self.connection.clone();
        let body = serde_json::to_vec(body).map_err(|e| Failure::internal(e.to_string()))?;
        let deadline = Instant::now() + PATIENCE;
        // Whether it may have been done by a manager that did not live to say so. Reading changes nothing.
        let mut sent = false;
        let changes = method != Method::GET;
        let lost = |sent: bool| if sent { Failure::outcome_unknown() } else { unreachable() };
        loop {
            let connected = timeout_at(deadline, connection.wait_for(Option::is_some)).await;
            let sender =
                connected.ok().and_then(Result::ok).and_then(|c| c.clone()).ok_or_else(|| lost(sent))?;
            match timeout(REQUEST, exchange(sender, method.clone(), path, body.clone())).await {
                Ok(Ok(Ok(answer))) => return Ok(answer),
                Ok(Ok(Err(refused))) => {
                    let failure = Failure::from(refused);
                    // What is in its way may be its own doing.
                    return Err(if sent && failure.is_of_state() {
                        Failure::outcome_unknown()
                    } else {
                        failure
                    });
                }
                Ok(Err(err)) => {
                    sent |= changes && !err.is_canceled();
                    let other = timeout_at(deadline, connection.changed()).await;
                    other.ok().and_then(Result::ok).ok_or_else(|| lost(sent))?;
                }
                Err(_) => return Err(lost(changes)),
            }
        }
    }
}

impl LinkTask {
    /// Connects, follows, and starts over until cancelled.
    pub(super) async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        cancel.run_until_cancelled(self.keep_connected()).await;
        Ok(())
    }

    async fn keep_connected(&self) {
        let (mut pause, mut lost) = (BACKOFF.0, None);
        loop {
            let mut removed = false;
            for manager in order(self.managers(), lost) {
                let followed = self.follow(manager).await;
                self.manager.send_replace(None);
                let was_connected = self.connection.send_replace(None).is_some();
                if was_connected {
                    self.refusals.send_modify(|refusals| drop(refusals.remove(&manager)));
                    (pause, lost) = (BACKOFF.0, Some(manager));
                }
                match followed {
                    Ok(()) => pause = BACKOFF.0,
                    Err(err) => {
                        removed |= err.downcast_ref().is_some_and(Failure::is_removed);
                        let err = format!("{err:#}");
                        // Said once, not at every try.
                        if self.refusals.borrow().get(&manager) != Some(&err) {
                            tracing::warn!(%manager, err, "no connection to a manager: trying again");
                            self.refusals.send_modify(|refusals| drop(refusals.insert(manager, err)));
                        }
                    }
                }
                if was_connected {
                    // Others may be managers by now, and all agents of this one ask for the next at this moment.
                    break;
                }
            }
            self.removed.send_replace(removed);
            let jitter = rand::rng().random_range(0.5..1.5);
            sleep(pause.mul_f64(jitter)).await;
            pause = (pause * 2).min(if removed { REMOVED } else { BACKOFF.1 });
        }
    }

    /// Every manager known.
    fn managers(&self) -> BTreeSet<SocketAddr> {
        let snapshot = self.snapshot.borrow();
        let known = snapshot.nodes.values().filter(|n| n.role == Role::Manager).map(|n| n.advertise);
        known.chain(self.identity.managers.iter().copied()).collect()
    }

    /// Follows one manager until the stream ends.
    async fn follow(&self, manager: SocketAddr) -> anyhow::Result<()> {
        let mut replica = Replica::new(Arc::clone(&self.snapshot.borrow()));
        let response = timeout(CONNECT, self.subscribe(manager, &replica)).await.context("no answer")??;
        let mut body = response.into_body();
        let mut buffer = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            let searched = buffer.len();
            buffer.extend_from_slice(&data);
            self.take_lines(&mut replica, &mut buffer, searched).await?;
        }
        bail!("the stream ended")
    }

    async fn subscribe(&self, manager: SocketAddr, replica: &Replica) -> anyhow::Result<Response<Incoming>> {
        let own = self.identity.advertise.ip();
        // Two nodes of one identity would take each other's state away.
        sockets::check_local(own).with_context(|| {
            format!(
                "{own}, the address of this node, is no address of this host: give it back to the host, or, if this is a copy of another host's disk, empty the data directory and join"
            )
        })?;
        self.trust.renew_expired(manager).await?;
        let mut sender = open(manager, &self.trust.connector()?).await?;
        let resume = serde_json::to_vec(&replica.resume(self.identity.node))?;
        let path = format!("/v1/agent/watch?process={}&tells_ports=true", self.process);
        let response = sender.send_request(request(Method::POST, &path, resume)).await?;
        if !response.status().is_success() {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            decode::<()>(status, &body).map_err(Failure::from)?;
            bail!("refused: {status}");
        }
        self.connection.send_replace(Some(sender));
        self.removed.send_replace(false);
        self.manager.send_replace(Some(manager));
        tracing::info!(%manager, "connected to a manager");
        Ok(response)
    }

    /// Handles every whole line; `searched` bytes at the front are known to hold no end of line.
    async fn take_lines(
        &self,
        replica: &mut Replica,
        buffer: &mut BytesMut,
        mut searched: usize,
    ) -> anyhow::Result<()> {
        while let Some(end) = buffer[searched..].iter().position(|b| *b == b'\n') {
            let line = buffer.split_to(searched + end + 1);
            searched = 0;
            let message = serde_json::from_slice(&line).context("a message is not understood")?;
            self.handle(replica, message).await;
        }
        if buffer.len() > LINE { bail!("a message is too long") } else { Ok(()) }
    }

    /// A restored cluster may not know what was attached since: that is withdrawn, which its user did not ask for.
    fn tell_withdrawn(&self, reached: &Snapshot) {
        let before = self.snapshot.borrow();
        if before.epoch == reached.epoch {
            return;
        }
        let own = before.endpoints.values().filter(|endpoint| endpoint.node == self.identity.node);
        for endpoint in own.filter(|endpoint| !reached.endpoints.contains_key(&endpoint.id)) {
            tracing::warn!(endpoint = %endpoint.id, name = %endpoint.name, "the cluster was restored and does not know this endpoint: withdrawn");
        }
    }

    async fn handle(&self, replica: &mut Replica, message: Message) {
        match message {
            // The receiver lives as long as the daemon.
            Message::Reserve { id, claim } => drop(self.ports.send(PortRequest::Reserve { id, claim }).await),
            Message::Keys(keys) => drop(self.keys.send_replace(Some(keys))),
            Message::TellPorts { id, service } => {
                drop(self.ports.send(PortRequest::Tell { id, service }).await);
            }
            Message::Release { id } => drop(self.ports.send(PortRequest::Release { id }).await),
            state => {
                if let Some(reached) = replica.take(state) {
                    self.tell_withdrawn(&reached);
                    self.snapshot.send_replace(reached);
                }
            }
        }
    }
}

impl Link {
    pub(super) async fn answer_reservation(&self, answer: Reserved) {
        // A manager that is gone does not wait for the answer.
        drop(self.post::<()>("/v1/agent/reservations", &answer).await);
    }

    pub(super) async fn tell_ports(&self, told: PortsTold) {
        drop(self.post::<()>("/v1/agent/ports", &told).await);
    }
}

/// An order of chance, so that not all agents of a manager that is lost go to the same next; that one comes last.
fn order(managers: BTreeSet<SocketAddr>, lost: Option<SocketAddr>) -> Vec<SocketAddr> {
    let mut order: Vec<SocketAddr> = managers.into_iter().collect();
    order.shuffle(&mut rand::rng());
    order.sort_by_key(|manager| Some(*manager) == lost);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_that_was_lost_is_tried_last_and_the_others_in_any_order() {
        let managers: BTreeSet<SocketAddr> =
            (1..=5).map(|host| SocketAddr::from(([192, 0, 2, host], 7443))).collect();
        let lost = managers.first().copied();
        let orders: BTreeSet<_> = (0..200).map(|_| order(managers.clone(), lost)).collect();
        assert!(orders.len() > 1, "always the same order");
        for order in orders {
            assert_eq!(order.last().copied(), lost);
            assert_eq!(order.into_iter().collect::<BTreeSet<_>>(), managers);
        }
    }
}
