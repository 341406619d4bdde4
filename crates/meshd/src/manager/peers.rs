//! The other managers: what one is asked, it asks of their agents too.
//!
//! A connection to each is kept open, so that one that is gone costs a change nothing: it is left out.

use super::{Manager, sessions::everywhere_else};
use crate::{
    api::Failure,
    wire::{
        Claim, Confirm, Confirmed, HoldId, PortsReports,
        client::{CONNECT, Sender, exchange, open},
    },
};
use futures_util::future::join_all;
use http::Method;
use mesh_model::{Node, NodeId, Role, ServiceId, Snapshot};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

/// How often lost connections are tried anew.
const RETRY: Duration = Duration::from_secs(1);
/// How long another manager may take: longer than it waits for its own agents.
const ANSWER: Duration = Duration::from_secs(4);

/// Connections to the other managers.
#[derive(Default)]
pub(super) struct Peers {
    connections: Mutex<HashMap<NodeId, Peer>>,
    /// Somebody waits for a manager that is not connected yet.
    awaited: Notify,
}

#[derive(Clone)]
struct Peer {
    address: SocketAddr,
    sender: Sender,
}

/// Reservations at other managers' agents.
#[derive(Debug, Default)]
pub(super) struct HeldElsewhere {
    reservations: Vec<(NodeId, u64)>,
    /// As [`Held::elsewhere`](super::sessions::Held::elsewhere).
    pub(super) elsewhere: Option<BTreeSet<IpAddr>>,
    /// Names of nodes that did not answer in time.
    pub(super) silent: Vec<String>,
}

impl Peers {
    /// Keeps a connection to each other manager until cancelled.
    pub(super) async fn keep(manager: Arc<Manager>, cancel: CancellationToken) -> anyhow::Result<()> {
        let keep = async {
            loop {
                manager.peers.connect_missing(&manager).await;
                drop(timeout(RETRY, manager.peers.awaited.notified()).await);
            }
        };
        cancel.run_until_cancelled(keep).await;
        Ok(())
    }

    async fn connect_missing(&self, manager: &Manager) {
        let snapshot = manager.state.snapshot();
        let others: BTreeMap<NodeId, SocketAddr> =
            others(&snapshot, manager.identity.node).map(|node| (node.id, node.advertise)).collect();
        let missing: Vec<(NodeId, SocketAddr)> = self.with(|connections| {
            connections.retain(|id, peer| others.get(id) == Some(&peer.address) && !peer.sender.is_closed());
            others.into_iter().filter(|(id, _)| !connections.contains_key(id)).collect()
        });
        let opened = missing.into_iter().map(async |(id, address)| {
            let sender = timeout(CONNECT, open(address, &manager.trust.connector())).await;
            let sender = sender.map_err(anyhow::Error::from).and_then(|opened| Ok(opened?));
            let opened =
                sender.inspect_err(|err| tracing::debug!(%address, %err, "no connection to a manager"));
            opened.ok().map(|sender| (id, Peer { address, sender }))
        });
        let opened: Vec<_> = join_all(opened).await.into_iter().flatten().collect();
        self.with(|connections| connections.extend(opened));
    }

    /// Looks for managers that are missing at once, rather than a little later.
    pub(super) fn hurry(&self) {
        self.awaited.notify_one();
    }

    /// The managers whose store answers them.
    pub(super) async fn whose_store_answers(&self) -> BTreeSet<NodeId> {
        let answers = self.ask_all::<bool>("/v1/manager/store", &()).await;
        answers.into_iter().filter(|(_, answer)| matches!(answer, Ok(true))).map(|(id, _)| id).collect()
    }

    /// Whether a manager serves, as seen from here.
    pub(super) fn is_connected(&self, manager: NodeId) -> bool {
        self.with(|connections| connections.get(&manager).is_some_and(|peer| !peer.sender.is_closed()))
    }

    /// Waits until the agents of the other managers have applied a revision; names those that had not in time.
    pub(super) async fn confirm(&self, revision: u64, except: Option<NodeId>) -> Vec<String> {
        let body = Confirm { revision, except };
        let answers = self.ask_all::<Confirmed>("/v1/manager/confirm", &body).await;
        // One that does not answer is down with its agents' streams: they follow from another.
        answers.into_iter().filter_map(|(_, answer)| answer.ok()).flat_map(|c| c.lagging).collect()
    }

    /// Asks the agents of the other managers for what a change wants; refused if any says no.
    pub(super) async fn hold(&self, claim: &Claim) -> Result<HeldElsewhere, Failure> {
        let (mut held, mut refusal) = (HeldElsewhere::default(), None);
        for (peer, answer) in self.ask_all::<HoldId>("/v1/manager/hold", claim).await {
            match answer {
                Ok(HoldId { id, elsewhere, silent }) => {
                    held.reservations.push((peer, id));
                    held.silent.extend(silent);
                    held.elsewhere = everywhere_else(held.elsewhere.take(), elsewhere);
                }
                Err(failure) if failure.is_conflict() => refusal = Some(failure),
                // It can't be asked; a port that is taken there shows as degraded.
                Err(err) => {
                    tracing::warn!(%peer, err = err.text(), "the nodes that follow a manager were not asked")
                }
            }
        }
        match refusal {
            None => Ok(held),
            Some(refusal) => {
                self.release(held).await;
                Err(refusal)
            }
        }
    }

    /// Lets go of what is held.
    pub(super) async fn release(&self, held: HeldElsewhere) {
        let asked = held.reservations.into_iter().map(async |(peer, id)| {
            let sender = self.with(|connections| connections.get(&peer).map(|peer| peer.sender.clone()));
            let Some(sender) = sender else { return };
            let release = HoldId { id, elsewhere: None, silent: Vec::new() };
            if let Err(err) = ask::<()>(sender, "/v1/manager/release", &release).await {
                tracing::warn!(%peer, err = err.text(), "a manager was not told to let go of what its nodes hold");
            }
        });
        join_all(asked).await;
    }

    /// What the agents of the other managers tell of a service's ports.
    pub(super) async fn ports(&self, service: ServiceId) -> PortsReports {
        let answers = self.ask_all::<PortsReports>("/v1/manager/ports", &service).await;
        // Those of a manager that does not answer follow another.
        answers.into_iter().filter_map(|(_, answer)| answer.ok()).flatten().collect()
    }

    async fn ask_all<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Vec<(NodeId, Result<T, Failure>)> {
        let peers: Vec<(NodeId, Peer)> =
            self.with(|connections| connections.iter().map(|(id, peer)| (*id, peer.clone())).collect());
        join_all(peers.into_iter().map(async |(id, peer)| (id, ask(peer.sender, path, body).await))).await
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<NodeId, Peer>) -> T) -> T {
        work(&mut self.connections.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn ask<T: DeserializeOwned>(sender: Sender, path: &str, body: &impl Serialize) -> Result<T, Failure> {
    let gone = |why: String| Failure::unavailable(format!("a manager does not answer: {why}"));
    let body = serde_json::to_vec(body).map_err(|e| Failure::internal(e.to_string()))?;
    let asked = timeout(ANSWER, exchange(sender, Method::POST, path, body)).await;
    Ok(asked.map_err(|e| gone(e.to_string()))?.map_err(|e| gone(e.to_string()))??)
}

/// The managers but this one.
pub(super) fn others(snapshot: &Snapshot, me: NodeId) -> impl Iterator<Item = &Arc<Node>> {
    snapshot.nodes.values().filter(move |node| node.role == Role::Manager && node.id != me)
}
