//! The etcds of the managers learn of another CA one after the other: each reads whom to trust at its start only, and
//! two of three that start at once are no majority.
//!
//! Each manager's record `etcd-trust/NODE` says which CAs its etcd runs with. A manager starts its own again once those
//! before it that run, by node ID, have, or have had their time. The old CA is not forgotten before all have.

use crate::manager::{Error, Manager};
use mesh_cluster::Fingerprint;
use mesh_model::{NodeId, Role, Snapshot};
use mesh_store::Txn;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// Where it is kept which CAs each manager's etcd trusts.
const TRUST: &str = "etcd-trust/";
/// How long one that does not come back keeps those behind it waiting: an etcd is back after a second or two.
const TURN: Duration = Duration::from_secs(10);

/// Name of the record of a manager.
pub(in crate::manager) fn trust_of(node: NodeId) -> String {
    format!("{TRUST}{node}")
}

/// What this manager waits for before it starts its etcd again.
#[derive(Debug, Default)]
pub(in crate::manager) struct Turn {
    /// When the etcd was first seen to trust others than it should.
    since: Option<Instant>,
    /// What was told last of what it trusts.
    told: Option<String>,
}

fn managers(snapshot: &Snapshot) -> impl Iterator<Item = NodeId> {
    snapshot.nodes.values().filter(|node| node.role == Role::Manager).map(|node| node.id)
}

impl Manager {
    /// Starts the etcd of this manager again if it trusts others than it should and its turn has come; tells the other
    /// managers what it trusts.
    pub(in crate::manager) async fn tend_etcd(&self, turn: &mut Turn) -> anyhow::Result<()> {
        let Some(local) = &self.local else { return Ok(()) };
        let trusted = self.trust.trusted();
        let mark = Fingerprint::of(trusted.as_bytes()).to_string();
        if !local.trusts(&trusted) {
            let since = *turn.since.get_or_insert_with(Instant::now);
            if !self.quorum.is_there() || !self.turn_has_come(&mark, since).await? {
                return Ok(());
            }
            self.renew_etcd()?;
            tracing::info!("etcd starts again: it is to trust other CAs");
            local.restart()?;
        }
        turn.since = None;
        if turn.told.as_deref() != Some(&*mark) {
            let record = trust_of(self.identity.node);
            let known = self.store.get(&record).await?;
            if known.is_none_or(|entry| entry.value != mark.as_bytes()) {
                // Once this is done, the etcd is back.
                self.store.commit(Txn::new().put(record, mark.clone().into_bytes())).await?;
            }
            turn.told = Some(mark);
        }
        Ok(())
    }

    async fn turn_has_come(&self, mark: &str, since: Instant) -> Result<bool, Error> {
        let (told, me) = (self.etcds_told().await?, self.identity.node);
        let before: Vec<NodeId> = managers(&self.state.snapshot()).take_while(|node| *node != me).collect();
        let before: Vec<NodeId> = before.into_iter().filter(|node| self.peers.is_connected(*node)).collect();
        let all = before.iter().all(|node| told.get(&node.to_string()).is_some_and(|told| told == mark));
        let patience = TURN * u32::try_from(before.len()).unwrap_or(u32::MAX);
        Ok(all || since.elapsed() >= patience)
    }

    /// The managers whose etcd does not trust the CAs of now; none if they have no etcd of their own.
    pub(in crate::manager) async fn etcds_behind(&self, snapshot: &Snapshot) -> Result<Vec<NodeId>, Error> {
        if self.local.is_none() {
            return Ok(Vec::new());
        }
        let (told, mark) = (self.etcds_told().await?, Fingerprint::of(self.trust.trusted().as_bytes()));
        let mark = mark.to_string();
        Ok(managers(snapshot).filter(|node| told.get(&node.to_string()) != Some(&mark)).collect())
    }

    async fn etcds_told(&self) -> Result<BTreeMap<String, String>, Error> {
        let (entries, _) = self.store.range(TRUST).await?;
        let told = |entry: mesh_store::Entry| {
            Some((entry.key.strip_prefix(TRUST)?.to_owned(), String::from_utf8(entry.value).ok()?))
        };
        Ok(entries.into_iter().filter_map(told).collect())
    }
}
