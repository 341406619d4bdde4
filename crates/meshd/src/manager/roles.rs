//! Managers come and go.
//!
//! ```text
//! promote ─► record: role manager ─► the node asks for what it needs (invite), starts etcd and its manager
//! demote ──► record: role worker ──► the node ends both (crate::role)
//!                └─► every manager: members of etcd in line with the records (keep_members)
//! ```
//!
//! The record comes first and everything follows it, so that whoever fails half-way, the rest goes on from there. A new
//! member of etcd is a learner without a vote until it runs: one that never starts can't cost the majority.

use super::{
    Error, Manager, Start,
    etcd::{self, peer_url},
    operations::find_node,
    secrets::StoreKey,
};
use crate::{config::Config, identity::Identity};
use mesh_api::StoreSpec;
use mesh_cluster::Authority;
use mesh_model::{Change, Node, NodeId, NodeStatus, Object, Role, admit};
use mesh_store::{Error as StoreError, EtcdMember, EtcdMembersChange, EtcdStore, Txn};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// The answer to `POST /v1/agent/promotion`, by which a node whose record says that it is a manager asks for what a
/// manager needs. Whoever reads it rules the cluster.
#[derive(Serialize, Deserialize)]
pub(crate) struct Promotion {
    /// The key that seals the store's secrets.
    pub(crate) store_key: String,
    /// The CA with its key, as PEM: a member of etcd needs a certificate before it can read the store.
    pub(crate) authority: String,
    /// What keeps the state.
    pub(crate) store: StoreSpec,
    /// Members of etcd and their peer URLs, where every manager has one.
    pub(crate) members: Vec<(String, String)>,
}

/// `POST /v1/agent/declined`: the node can't be a manager, or was told to be none before it was one. Its etcd has no vote any
/// more when this is answered, and may end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Declined {
    /// Why, in one line; empty if it was demoted.
    pub(crate) reason: String,
}

/// How long a node may take to become a manager, or to end being one.
const TURN: Duration = Duration::from_secs(90);
/// How often a node that is on its way is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How often the members of etcd are compared with the records.
const COMPARE: Duration = Duration::from_secs(1);
/// How long a member must be without a record: the records that are seen may be a little older than the members.
const CERTAIN: Duration = Duration::from_secs(5);
/// Characters of a reason that are kept.
const REASON: usize = 1000;
/// How long a learner may be waited for: etcd takes one at a time.
const LEARNER: Duration = Duration::from_secs(20);

impl Promotion {
    /// Makes the node a manager on disk: its secrets first, its identity last. What an earlier time as a manager left
    /// behind is older, and goes.
    pub(crate) fn keep(self, config: &Config, worker: &Identity) -> anyhow::Result<(Identity, Start)> {
        let data_dir = &config.data_dir;
        let authority = Authority::from_pem(&self.authority)?;
        let identity = Identity { role: Role::Manager, store: self.store, ..worker.clone() };
        Identity::discard_state(data_dir)?;
        StoreKey::try_from(self.store_key).map_err(anyhow::Error::msg)?.save(data_dir)?;
        if matches!(identity.store, StoreSpec::Etcd) {
            etcd::prepare(config, &identity, &authority)?;
        }
        identity.save_alone(data_dir)?;
        Ok((identity, Start::Promoted(self.members)))
    }
}

impl Manager {
    /// Makes a node a manager; returns when it serves as one. Says whether it was one before.
    pub(crate) async fn promote(
        &self,
        wanted: &str,
        status: impl Fn(NodeId) -> NodeStatus,
    ) -> Result<(Arc<Node>, bool), Error> {
        if self.etcd.is_none() {
            return Err(Error::OneManager);
        }
        let committed = self
            .change(|snapshot, _| {
                let node = find_node(snapshot, wanted)?;
                if node.role == Role::Manager {
                    return Ok((Vec::new(), (Arc::clone(node), true)));
                }
                let node = Arc::new(admit::promotion(node, status(node.id))?);
                Ok((vec![Change::Put(Object::Node(Arc::clone(&node)))], (node, false)))
            })
            .await?;
        let (node, already) = committed.value;
        if !already {
            self.arrival(&node).await?;
        }
        Ok((node, already))
    }

    /// Waits until a promoted node serves; otherwise it is a worker again.
    async fn arrival(&self, node: &Node) -> Result<(), Error> {
        let failed = |reason: String| Error::NotPromoted { node: node.name.to_string(), reason };
        let deadline = Instant::now() + TURN;
        while !self.serves(node).await {
            let role = self.state.snapshot().nodes.get(&node.id).map(|node| node.role);
            if role != Some(Role::Manager) {
                let reason = self.store.get(&declined(node.id)).await?.map(|entry| entry.value);
                let reason = reason.map(|text| String::from_utf8_lossy(&text).into_owned());
                return Err(failed(reason.unwrap_or_else(|| "it was demoted meanwhile".to_owned())));
            }
            if Instant::now() > deadline {
                let reason = format!("it did not serve within {} s: see its log", TURN.as_secs());
                self.decline(node.id, &reason).await?;
                return Err(failed(reason));
            }
            self.peers.hurry();
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Makes a manager a worker, if the others can go on without it. Says whether it was one before.
    pub(crate) async fn demote(&self, wanted: &str) -> Result<(Arc<Node>, bool), Error> {
        let snapshot = self.state.snapshot();
        let node = find_node(&snapshot, wanted)?;
        if node.role == Role::Worker {
            return Ok((Arc::clone(node), true));
        }
        admit::demotion(&snapshot, node)?;
        let etcd = self.own_etcd();
        let member = match etcd {
            Some(etcd) => self.removable(etcd, node).await?,
            None => None,
        };
        let node = self.as_worker(wanted).await?;
        if let (Some(etcd), Some(member)) = (etcd, member) {
            // The record is what counts: if this fails, the comparison does it later.
            if let Err(err) = etcd.remove_member(member.id).await {
                tracing::warn!(%err, name = %node.name, "a member of etcd is removed later");
            }
        }
        let deadline = Instant::now() + TURN;
        while self.peers.is_connected(node.id) && Instant::now() < deadline {
            sleep(LOOK).await;
        }
        Ok((node, false))
    }

    async fn as_worker(&self, wanted: &str) -> Result<Arc<Node>, Error> {
        let committed = self
            .change(|snapshot, _| {
                let node = find_node(snapshot, wanted)?;
                if node.role == Role::Worker {
                    return Ok((Vec::new(), Arc::clone(node)));
                }
                let node = Arc::new(admit::demotion(snapshot, node)?);
                Ok((vec![Change::Put(Object::Node(Arc::clone(&node)))], node))
            })
            .await?;
        Ok(committed.value)
    }

    /// The node's member of etcd, if the others are a majority without it.
    async fn removable(&self, etcd: &EtcdStore, node: &Node) -> Result<Option<EtcdMember>, Error> {
        let members = etcd.members().await?;
        let Some(member) = members.iter().find(|member| is_of(member, node)) else { return Ok(None) };
        let healthy = self.healthy(&members).await;
        if EtcdMembersChange::Remove(member.id).loses_quorum(&members, &healthy) {
            return Err(Error::LosesQuorum { node: node.name.to_string() });
        }
        Ok(Some(member.clone()))
    }

    /// The members of etcd that work now: their managers say that the store answers them. etcd itself would call those
    /// healthy that it has been connected to for five seconds (`--strict-reconfig-check`).
    async fn healthy(&self, members: &[EtcdMember]) -> BTreeSet<u64> {
        let mut managers = self.peers.whose_store_answers().await;
        managers.extend(self.quorum.is_there().then_some(self.identity.node));
        let snapshot = self.state.snapshot();
        let works = |member: &&EtcdMember| {
            let node = snapshot.nodes.values().find(|node| is_of(member, node));
            node.is_some_and(|node| managers.contains(&node.id))
        };
        members.iter().filter(works).map(|member| member.id).collect()
    }

    /// Whether this manager's etcd is still one of the members, as itself knows. One that was removed ends a second later.
    pub(crate) async fn is_member_of_etcd(&self) -> Result<bool, StoreError> {
        let (Some(etcd), Some(local)) = (&self.etcd, &self.local) else { return Ok(false) };
        let me = peer_url(self.identity.advertise.ip());
        tokio::select! {
            () = local.ended() => Ok(false),
            members = etcd.members() => Ok(members?.iter().any(|member| member.peer_urls.contains(&me))),
        }
    }

    /// Whether a promoted node serves: as the manager it is now, for it may be ending an earlier time as one.
    async fn serves(&self, node: &Node) -> bool {
        let Some(etcd) = self.own_etcd() else { return self.peers.is_connected(node.id) };
        let started = |member: &EtcdMember| is_of(member, node) && !member.name.is_empty();
        self.peers.is_connected(node.id)
            && etcd.members().await.is_ok_and(|members| members.iter().any(started))
    }

    /// What a node needs that is to be a manager.
    pub(super) async fn invite(&self, node: NodeId) -> Result<Promotion, Error> {
        let snapshot = self.state.snapshot();
        let record = snapshot.nodes.get(&node).filter(|node| node.role == Role::Manager);
        let record = record.ok_or(Error::NoManager)?;
        let members = match self.own_etcd() {
            Some(etcd) => {
                etcd.add_learner(&peer_url(record.advertise.ip()), LEARNER).await?;
                self.newcomer.notify_one();
                let members = etcd.members().await?;
                let others = members.into_iter().filter(|member| !is_of(member, record));
                others.flat_map(|m| m.peer_urls.into_iter().map(move |url| (m.name.clone(), url))).collect()
            }
            None => Vec::new(),
        };
        let authority = self.trust.authority();
        Ok(Promotion {
            store_key: self.key.clone().into(),
            authority: authority.to_pem(),
            store: self.identity.store.clone(),
            members,
        })
    }

    /// The etcd that has a member on every manager, if it is that.
    fn own_etcd(&self) -> Option<&EtcdStore> {
        self.etcd.as_ref().filter(|_| self.local.is_some())
    }

    /// A node could not become a manager: it is a worker again, and whoever promoted it is told why.
    pub(super) async fn decline(&self, node: NodeId, reason: &str) -> Result<(), Error> {
        let role = self.state.snapshot().nodes.get(&node).map(|node| node.role);
        if role != Some(Role::Manager) {
            // It is a worker already, and whoever promoted it knows.
            return Ok(());
        }
        let reason: String = reason.chars().take(REASON).collect();
        tracing::warn!(%node, reason, "no manager");
        self.store.commit(Txn::new().put(declined(node), reason.into_bytes())).await?;
        self.as_worker(&node.to_string()).await.map(drop)
    }

    /// Takes the etcd of a node that is no manager out of the cluster's, if the others are a majority without it.
    pub(super) async fn dismiss(&self, node: NodeId) -> Result<(), Error> {
        let snapshot = self.state.snapshot();
        let (Some(etcd), Some(node)) = (self.own_etcd(), snapshot.nodes.get(&node)) else { return Ok(()) };
        match self.removable(etcd, node).await? {
            Some(member) => Ok(etcd.remove_member(member.id).await?),
            None => Ok(()),
        }
    }

    /// Keeps the members of etcd in line with the records until cancelled.
    pub(super) async fn keep_members(self: Arc<Self>, cancel: CancellationToken) -> anyhow::Result<()> {
        let keep = async {
            let mut stray = BTreeMap::new();
            let mut pause = COMPARE;
            loop {
                drop(timeout(pause, self.newcomer.notified()).await);
                let Some(etcd) = self.own_etcd() else { continue };
                pause = match self.compare_members(etcd, &mut stray).await {
                    Ok(true) => LOOK,
                    Ok(false) => COMPARE,
                    Err(err) => {
                        tracing::debug!(%err, "members of etcd not compared");
                        COMPARE
                    }
                };
            }
        };
        cancel.run_until_cancelled(keep).await;
        Ok(())
    }

    /// Gives learners their vote once they run; removes members whose node is no manager. `stray` says since when each
    /// was found so. Whether a learner is on its way.
    async fn compare_members(
        &self,
        etcd: &EtcdStore,
        stray: &mut BTreeMap<u64, Instant>,
    ) -> Result<bool, StoreError> {
        let members = etcd.members().await?;
        let snapshot = self.state.snapshot();
        let managers = || snapshot.nodes.values().filter(|node| node.role == Role::Manager);
        stray.retain(|id, _| members.iter().any(|member| member.id == *id));
        let mut expected = false;
        for member in &members {
            if managers().any(|node| is_of(member, node)) {
                stray.remove(&member.id);
                expected |= member.learner;
                if member.learner && !member.name.is_empty() {
                    self.offer_vote(etcd, member, &members).await;
                }
                continue;
            }
            if stray.entry(member.id).or_insert_with(Instant::now).elapsed() < CERTAIN {
                continue;
            }
            let removal = EtcdMembersChange::Remove(member.id);
            if removal.loses_quorum(&members, &self.healthy(&members).await) {
                tracing::debug!(member = %member.name, "a member of etcd is needed as long as others are away");
                continue;
            }
            tracing::info!(member = %member.name, "a member of etcd whose node is no manager is removed");
            etcd.remove_member(member.id).await?;
        }
        Ok(expected)
    }

    /// Gives a learner its vote if it has caught up: one that still lags is offered again by the next comparison.
    async fn offer_vote(&self, etcd: &EtcdStore, learner: &EtcdMember, members: &[EtcdMember]) {
        // Its manager starts with its vote; that it is there is what etcd makes sure of.
        let mut healthy = self.healthy(members).await;
        healthy.insert(learner.id);
        if !EtcdMembersChange::Promote(learner.id).loses_quorum(members, &healthy) {
            let _ = etcd.promote_learner(learner.id, Duration::ZERO).await;
        }
    }
}

/// Whether a member of etcd is that of a node: one that never started has no name yet.
fn is_of(member: &EtcdMember, node: &Node) -> bool {
    member.peer_urls.contains(&peer_url(node.advertise.ip()))
}

/// Where the reason is kept that a node became no manager.
pub(super) fn declined(node: NodeId) -> String {
    format!("declined/{node}")
}
