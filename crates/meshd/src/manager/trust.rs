//! The CA as managers keep it, what they sign with it, and how it is replaced.
//!
//! The CA with its key is one record of the store, sealed; its certificate is in the cluster's record, for all nodes.
//! Both change in one transaction. A manager's own certificate is issued by itself, lives in memory only and is issued
//! anew long before it ends: a manager never waits for another to be believed.
//!
//! `cluster ca --rotate` makes the [successor](Authority::successor) of the CA. From then on it signs, and every node
//! trusts both. Nodes renew their certificates at once and report what they hold on disk (record `certificate/NODE`). When
//! each member has reported the new CA, and each manager's etcd [trusts it](super::etcd::turns), the old one is
//! forgotten. A node that is away keeps the replacement open, until
//! it returns, is removed, or the user ends it with `--force`: then it has to join again.

use super::{Error, Manager, authority as ca, etcd::turns::Turn, secrets::StoreKey};
use crate::{
    clock,
    wire::{CertificateHeld, RenewReply},
};
use anyhow::Context;
use arc_swap::ArcSwap;
use mesh_api::{AuthorityView, RotationView};
use mesh_cluster::{Authority, AuthorityCertificate, Credentials, Fingerprint};
use mesh_model::{Change, Cluster, NodeId, Object, Refusal, Role, Snapshot};
use mesh_store::{Revision, Store, Txn};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::sleep};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

/// Where it is kept which CA each node's certificate is of.
const HELD: &str = "certificate/";
/// How often it is seen whether anything is due.
const TICK: Duration = Duration::from_secs(1);

/// Name of the record of what a node reported.
pub(super) fn held_by(node: NodeId) -> String {
    format!("{HELD}{node}")
}

/// What a manager signs and proves itself with.
pub(super) struct Trust {
    node: NodeId,
    current: ArcSwap<Keys>,
    /// Nodes that the replacement of the CA waits for.
    waiting: Mutex<Vec<String>>,
    /// Nodes that have no certificate of a CA that is trusted still, when one was forgotten last.
    disowned: watch::Sender<BTreeSet<NodeId>>,
}

struct Keys {
    authority: Arc<Authority>,
    /// Revision of its record.
    revision: Revision,
    /// The cluster's record that this was made with.
    cluster: Arc<Cluster>,
    acceptor: TlsAcceptor,
    connector: TlsConnector,
    /// When the manager's own certificate is to be issued anew.
    renewal: u64,
}

impl Keys {
    async fn load(
        store: &dyn Store,
        key: &StoreKey,
        cluster: Arc<Cluster>,
        node: NodeId,
    ) -> anyhow::Result<Self> {
        let entry = store.get(ca::RECORD).await?;
        let entry = entry.context("the store has no CA: restore the cluster from a backup")?;
        let authority = Arc::new(ca::open(key, &entry.value)?);
        let now = clock::unix_seconds();
        let own = Credentials::issue(&authority, node, Role::Manager, now, cluster.cert_expiry_s)?;
        let own = own.trusting(certificates(&cluster)?);
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(own.server_config()?)),
            connector: TlsConnector::from(Arc::new(own.client_config()?)),
            renewal: own.validity().renewal(0.0),
            revision: entry.mod_revision,
            authority,
            cluster,
        })
    }
}

fn certificates(cluster: &Cluster) -> Result<Vec<AuthorityCertificate>, mesh_cluster::Error> {
    cluster.authorities.iter().map(|pem| AuthorityCertificate::from_pem(pem)).collect()
}

fn cluster_of(snapshot: &Snapshot) -> Result<Arc<Cluster>, Refusal> {
    snapshot.cluster.clone().ok_or(Refusal::NoCluster)
}

/// Names of the members that have not reported a certificate of a CA, or whose etcd is behind.
fn waiting_for(
    snapshot: &Snapshot,
    held: &BTreeMap<String, CertificateHeld>,
    etcds: &[NodeId],
    authority: Fingerprint,
) -> Vec<String> {
    let others = snapshot.nodes.values().filter(|node| {
        etcds.contains(&node.id)
            || held.get(&node.id.to_string()).is_none_or(|held| held.authority != authority)
    });
    others.map(|node| node.name.to_string()).collect()
}

impl Trust {
    pub(super) async fn load(
        store: &dyn Store,
        key: &StoreKey,
        snapshot: &Snapshot,
        node: NodeId,
    ) -> anyhow::Result<Self> {
        let keys = Keys::load(store, key, cluster_of(snapshot)?, node).await?;
        Ok(Self {
            node,
            current: ArcSwap::from_pointee(keys),
            waiting: Mutex::default(),
            disowned: watch::Sender::default(),
        })
    }

    /// The CA that signs.
    pub(super) fn authority(&self) -> Arc<Authority> {
        Arc::clone(&self.current.load().authority)
    }

    /// The certificates of all CAs that are trusted, as PEM.
    pub(super) fn trusted(&self) -> String {
        self.current.load().cluster.authorities.concat()
    }

    /// For the next connection that comes in.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.current.load().acceptor.clone()
    }

    /// For the next connection to another manager.
    pub(super) fn connector(&self) -> TlsConnector {
        self.current.load().connector.clone()
    }

    /// Told of nodes whose connections are to end: they would not be believed if they came now.
    pub(super) fn disowned(&self) -> watch::Receiver<BTreeSet<NodeId>> {
        self.disowned.subscribe()
    }

    /// Follows what the store says of the CA, renews the manager's certificate, and ends a replacement of the CA when
    /// it is done.
    pub(super) async fn keep(manager: Arc<Manager>, cancel: CancellationToken) -> anyhow::Result<()> {
        let keep = async {
            let mut turn = Turn::default();
            loop {
                sleep(TICK).await;
                let tended = async {
                    manager.tend_trust().await?;
                    manager.tend_etcd(&mut turn).await
                };
                if let Err(err) = tended.await {
                    tracing::warn!(err = format!("{err:#}"), "certificates can't be tended: trying again");
                }
            }
        };
        cancel.run_until_cancelled(keep).await;
        Ok(())
    }
}

impl Manager {
    async fn tend_trust(&self) -> anyhow::Result<()> {
        let cluster = cluster_of(&self.state.snapshot())?;
        let current = self.trust.current.load_full();
        if clock::unix_seconds() >= current.renewal || *cluster != *current.cluster {
            self.reload_trust().await?;
        }
        let waiting =
            if cluster.authorities.len() > 1 { self.settle_authority(false).await? } else { Vec::new() };
        *self.trust.waiting.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
        Ok(())
    }

    async fn reload_trust(&self) -> anyhow::Result<()> {
        let cluster = cluster_of(&self.state.snapshot())?;
        let keys = Keys::load(self.store.as_ref(), &self.key, cluster, self.trust.node).await?;
        let (trusted, before) = (keys.cluster.authorities.clone(), self.trust.current.swap(Arc::new(keys)));
        if before.cluster.authorities == trusted {
            return Ok(());
        }
        if before.cluster.authorities.iter().any(|authority| !trusted.contains(authority)) {
            self.disown().await?;
        }
        self.renew_etcd()
    }

    /// Ends the connections of nodes that were given up on when the CA was replaced.
    async fn disown(&self) -> anyhow::Result<()> {
        let (held, authority) = (self.held().await?, self.trust.authority().certificate().fingerprint());
        let snapshot = self.state.snapshot();
        let disowned = snapshot
            .nodes
            .keys()
            .copied()
            .filter(|node| held.get(&node.to_string()).is_none_or(|held| held.authority != authority));
        self.trust.disowned.send_replace(disowned.collect());
        Ok(())
    }

    /// Signs a node's key with the CA that the store has at this moment: another manager may just have replaced it, and
    /// a certificate of the old one would be good for nothing soon.
    pub(super) async fn issue(
        &self,
        csr: &str,
        node: NodeId,
        role: Role,
    ) -> Result<(String, Arc<Authority>), Error> {
        let revision = self.store.get(ca::RECORD).await?.map(|entry| entry.mod_revision);
        if revision != Some(self.trust.current.load().revision) {
            self.state.reached(revision.unwrap_or_default()).await;
            self.reload_trust().await.map_err(|err| Error::Authority(format!("{err:#}")))?;
        }
        let current = self.trust.current.load_full();
        let lifetime = current.cluster.cert_expiry_s;
        let certificate = current.authority.issue(csr, node, role, clock::unix_seconds(), lifetime)?;
        Ok((certificate, Arc::clone(&current.authority)))
    }

    /// The next certificate of a node, in the role that it has now.
    pub(super) async fn renew(&self, node: NodeId, csr: &str) -> Result<RenewReply, Error> {
        let snapshot = self.state.snapshot();
        let role = snapshot.nodes.get(&node).map_or(Role::Worker, |node| node.role);
        let (certificate, authority) = self.issue(csr, node, role).await?;
        let authorities = cluster_of(&self.state.snapshot())?.authorities.clone();
        tracing::info!(%node, ca = %authority.certificate().fingerprint(), "certificate renewed");
        Ok(RenewReply { certificate, ca: authority.certificate().to_pem(), authorities })
    }

    /// Takes note of the certificate that a node has on its disk.
    pub(super) async fn certificate_held(&self, node: NodeId, held: &CertificateHeld) -> Result<(), Error> {
        let record = held_by(node);
        let known = self.store.get(&record).await?;
        if known.and_then(|entry| serde_json::from_slice(&entry.value).ok()).as_ref() != Some(held) {
            let value = serde_json::to_vec(held).unwrap_or_else(|e| unreachable!("plain data: {e}"));
            self.store.commit(Txn::new().put(record, value)).await?;
        }
        Ok(())
    }

    async fn held(&self) -> Result<BTreeMap<String, CertificateHeld>, Error> {
        let (entries, _) = self.store.range(HELD).await?;
        let held = |entry: mesh_store::Entry| {
            let node = entry.key.strip_prefix(HELD)?.to_owned();
            Some((node, serde_json::from_slice(&entry.value).ok()?))
        };
        Ok(entries.into_iter().filter_map(held).collect())
    }

    /// `cluster ca --rotate`: a new CA signs from now on.
    pub(crate) async fn rotate_authority(&self) -> Result<(), Error> {
        let current = self.trust.current.load_full();
        let next = current.authority.successor(current.cluster.id, clock::unix_seconds())?;
        let (old, new) = (current.authority.certificate().to_pem(), next.certificate().to_pem());
        // Tokens pin the CA: those of the old one are worth nothing.
        let beside = |txn: Txn| txn.put(ca::RECORD, ca::seal(&self.key, &next)).delete_prefix("token/");
        self.change_with(beside, |snapshot, _| {
            let mut cluster = Cluster::clone(&*cluster_of(snapshot)?);
            if cluster.authorities != [old.clone()] {
                return Err(Refusal::RotationOpen);
            }
            cluster.authorities.insert(0, new.clone());
            Ok((vec![Change::Put(Object::Cluster(Arc::new(cluster)))], ()))
        })
        .await?;
        tracing::info!(ca = %next.certificate().fingerprint(), "a new CA signs");
        self.reload_trust().await.map_err(|err| Error::Authority(format!("{err:#}")))
    }

    /// `cluster ca --rotate --force`: ends a replacement without the nodes that it waits for.
    pub(crate) async fn force_authority(&self) -> Result<(), Error> {
        if cluster_of(&self.state.snapshot())?.authorities.len() < 2 {
            return Err(Refusal::RotationNone.into());
        }
        self.settle_authority(true).await.map(drop)
    }

    /// Forgets the old CA if every node has a certificate of the new one; else names those that have not.
    async fn settle_authority(&self, force: bool) -> Result<Vec<String>, Error> {
        let (held, authority) = (self.held().await?, self.trust.authority());
        let behind = self.etcds_behind(&self.state.snapshot()).await?;
        if let Some(etcd) = behind.iter().find(|node| force && self.is_reached(**node)) {
            let snapshot = self.state.snapshot();
            let name =
                snapshot.nodes.get(etcd).map_or_else(|| etcd.to_string(), |node| node.name.to_string());
            return Err(Refusal::RotationEtcd(name).into());
        }
        let (new, fingerprint) = (authority.certificate().to_pem(), authority.certificate().fingerprint());
        let waiting = |snapshot: &Snapshot| waiting_for(snapshot, &held, &behind, fingerprint);
        let left = waiting(&self.state.snapshot());
        if !left.is_empty() && !force {
            return Ok(left);
        }
        let settled = authority.without_bridge()?;
        let beside = |txn: Txn| txn.put(ca::RECORD, ca::seal(&self.key, &settled));
        let committed = self
            .change_with(beside, |snapshot, _| {
                let mut cluster = Cluster::clone(&*cluster_of(snapshot)?);
                // Somebody may have joined, or another manager have been faster.
                let open = cluster.authorities.len() > 1 && cluster.authorities.first() == Some(&new);
                if !open || !force && !waiting(snapshot).is_empty() {
                    return Ok((Vec::new(), false));
                }
                cluster.authorities.truncate(1);
                Ok((vec![Change::Put(Object::Cluster(Arc::new(cluster)))], true))
            })
            .await?;
        if committed.value {
            tracing::info!(ca = %fingerprint, without = ?left, "the CA before this one is forgotten");
            self.reload_trust().await.map_err(|err| Error::Authority(format!("{err:#}")))?;
        }
        Ok(Vec::new())
    }

    /// Whether a manager is this one, or one that answers it.
    fn is_reached(&self, manager: NodeId) -> bool {
        manager == self.identity.node || self.peers.is_connected(manager)
    }

    /// `cluster ca`.
    pub(crate) async fn authority_view(&self) -> Result<AuthorityView, Error> {
        let cluster = cluster_of(&self.state.snapshot())?;
        let all = certificates(&cluster)?;
        let current = all.first().ok_or_else(|| Error::Authority("the cluster has no CA".to_owned()))?;
        let (held, snapshot) = (self.held().await?, self.state.snapshot());
        let behind = self.etcds_behind(&snapshot).await?;
        let rotation = all.get(1).map(|old| RotationView {
            old_fingerprint: old.fingerprint().to_string(),
            waiting_for: waiting_for(&snapshot, &held, &behind, current.fingerprint()),
        });
        Ok(AuthorityView {
            fingerprint: current.fingerprint().to_string(),
            expires: current.expires()?,
            cert_expiry_s: cluster.cert_expiry_s,
            certificate: current.to_pem(),
            rotation,
        })
    }

    /// What the user should know of the manager, a line each.
    pub(crate) fn problems(&self) -> Vec<String> {
        let waiting = self.trust.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.is_empty() {
            return Vec::new();
        }
        vec![format!(
            "the CA is being replaced, which waits for {}: see 'meshctl cluster ca'",
            waiting.join(", ")
        )]
    }
}
