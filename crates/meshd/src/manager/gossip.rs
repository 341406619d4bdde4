//! The membership keys: made with the cluster, changed when a node is removed.
//!
//! The cluster's record says which key should be in use ([`mesh_model::Cluster::gossip_key`]); the record `gossip`, sealed,
//! holds those that are. It follows in steps: the new key is handed out as the other one, then all seal with it, then the old
//! one is dropped. Between two steps lies [`STEP`], longer than a dead connection of an agent goes unnoticed: whoever is
//! connected has a key before anybody seals with it. Who is away gets the keys on its return.
//!
//! Every manager does this; the store's compare-and-set lets one of them take each step.

use super::{secrets::StoreKey, state::State};
use anyhow::Context;
use mesh_cluster::membership::{ClusterKey, ClusterKeys};
use mesh_store::{Error as StoreError, Revision, Store, Txn};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

/// Name of the record.
const RECORD: &str = "gossip";
/// Pause between two steps of a change.
const STEP: Duration = Duration::from_secs(3);
/// Pause before a store that failed is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps the keys up to date.
pub(super) struct Rotation {
    store: Arc<dyn Store>,
    key: StoreKey,
    state: Arc<State>,
    keys: watch::Sender<ClusterKeys>,
}

impl Rotation {
    /// Reads the keys; makes them if this cluster has none yet.
    pub(super) async fn load(
        store: Arc<dyn Store>,
        key: StoreKey,
        state: Arc<State>,
    ) -> anyhow::Result<Self> {
        if read(store.as_ref(), &key).await?.is_none() {
            let first = ClusterKeys::only(ClusterKey::generate(wanted(&state))?);
            match store.commit(Txn::new().expect_absent(RECORD).put(RECORD, encode(&first, &key))).await {
                // Another manager was faster.
                Ok(_) | Err(StoreError::Conflict { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let (keys, _) = read(store.as_ref(), &key).await?.context("the store lost the membership keys")?;
        Ok(Self { store, key, state, keys: watch::Sender::new(keys) })
    }

    /// The keys, as they change.
    pub(super) fn keys(&self) -> watch::Receiver<ClusterKeys> {
        self.keys.subscribe()
    }

    pub(super) async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        let keep = async {
            loop {
                let Err(err) = self.keep().await;
                tracing::warn!(err = format!("{err:#}"), "cannot follow the membership keys: trying again");
                sleep(RETRY).await;
            }
        };
        cancel.run_until_cancelled(keep).await;
        Ok(())
    }

    /// Follows the record and takes the steps that are due, until the store fails.
    async fn keep(&self) -> anyhow::Result<std::convert::Infallible> {
        let mut state = self.state.watch();
        loop {
            let (keys, revision) =
                read(self.store.as_ref(), &self.key).await?.context("the store lost the membership keys")?;
            self.keys.send_if_modified(|told| {
                let news = *told != keys;
                told.clone_from(&keys);
                news
            });
            let mut watch = self.store.watch(RECORD, revision).await?;
            let in_use = keys.clone();
            let due = async {
                let reached =
                    |keys: &ClusterKeys| keys.other.is_none() && keys.current.id() == wanted(&self.state);
                while reached(&in_use) {
                    state.changed().await?;
                }
                if in_use.other.is_some() {
                    sleep(STEP).await;
                }
                anyhow::Ok(())
            };
            tokio::select! {
                changed = watch.next() => drop(changed?),
                due = due => {
                    due?;
                    self.step(keys, revision).await?;
                }
            }
        }
    }

    async fn step(&self, keys: ClusterKeys, revision: Revision) -> anyhow::Result<()> {
        let next = next(keys, wanted(&self.state), ClusterKey::generate)?;
        tracing::info!(
            current = next.current.id(),
            other = next.other.as_ref().map(ClusterKey::id),
            "membership keys"
        );
        match self
            .store
            .commit(Txn::new().expect_revision(RECORD, revision).put(RECORD, encode(&next, &self.key)))
            .await
        {
            Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// The keys one step closer to `wanted` being the only one.
fn next<E>(
    keys: ClusterKeys,
    wanted: u32,
    generate: impl FnOnce(u32) -> Result<ClusterKey, E>,
) -> Result<ClusterKeys, E> {
    Ok(match keys.other {
        None => ClusterKeys { current: keys.current, other: Some(generate(wanted)?) },
        Some(new) if new.id() > keys.current.id() => ClusterKeys { current: new, other: Some(keys.current) },
        Some(_old) => ClusterKeys::only(keys.current),
    })
}

/// The number of the key that should be in use.
fn wanted(state: &State) -> u32 {
    state.snapshot().cluster.as_ref().map_or(0, |cluster| cluster.gossip_key)
}

async fn read(store: &dyn Store, key: &StoreKey) -> anyhow::Result<Option<(ClusterKeys, Revision)>> {
    let Some(entry) = store.get(RECORD).await? else { return Ok(None) };
    let keys = serde_json::from_slice(&key.open(RECORD, &entry.value)?)
        .context("the membership keys in the store are damaged")?;
    Ok(Some((keys, entry.mod_revision)))
}

fn encode(keys: &ClusterKeys, key: &StoreKey) -> Vec<u8> {
    let text = serde_json::to_vec(keys).unwrap_or_else(|e| unreachable!("keys are plain data: {e}"));
    key.seal(RECORD, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At each step, who is one step behind still opens what others seal, and the other way round.
    #[test]
    fn a_change_that_nobody_misses_has_three_steps() {
        let key = |id| Ok::<_, std::convert::Infallible>(ClusterKey::new(id, [id as u8; 32]));
        let ids = |keys: &ClusterKeys| (keys.current.id(), keys.other.as_ref().map(ClusterKey::id));
        let mut keys = ClusterKeys::only(ClusterKey::new(4, [4; 32]));
        for expected in [(4, Some(7)), (7, Some(4)), (7, None)] {
            let opens = |keys: &ClusterKeys, id| keys.current.id() == id || ids(keys).1 == Some(id);
            let later = next(keys.clone(), 7, key).unwrap();
            assert_eq!(ids(&later), expected);
            assert!(
                opens(&later, keys.current.id()) && opens(&keys, later.current.id()),
                "{keys:?} {later:?}"
            );
            keys = later;
        }
    }
}
