//! `cluster migrate`: the state moves from the file of the only manager to an etcd.
//!
//! ```text
//! the manager serves ─ etcd starts, the history is copied ─┤ the rest is copied and read back ├─ node.json ─ serves from etcd
//!                                                          └ nobody can change anything      ┘
//! ```
//!
//! `node.json` decides: until it is written the file is the store, from then on etcd. What a migration that was cut off
//! left in a data directory is cleared by the next start ([`Identity::tidy`]); what it left in an etcd of somebody
//! else is told by [`MARKER`] and cleared by the next migration. etcd's history keeps what was cleared: that of the
//! cluster begins at the marker of the migration that succeeds ([`HISTORY`]).
//!
//! No other node is needed: those that are away find the new store's epoch when they are back, and are sent the state anew.

use super::{
    Manager,
    etcd::{self, Bootstrap, ETCD, LocalEtcd},
    journal,
    state::{EPOCH, GUARD, HISTORY, with_epoch},
    store::external_options,
};
use crate::{config::Config, identity::Identity};
use anyhow::{Context, bail, ensure};
use mesh_api::StoreSpec;
use mesh_model::{Action, Event, NodeId};
use mesh_store::{Change, Entry, Error as StoreError, EtcdStore, Revision, Store, Txn};
use std::{fs, io::ErrorKind, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Written first and removed by the manager that starts: as long as it is there, nobody uses the copy.
const MARKER: &str = "migration";

/// Largest transaction of the copy: etcd takes 128 operations and 1.5 MiB unless it is told otherwise.
const TXN: (usize, usize) = (64, 512 << 10);

/// How long changes that were begun may take to end: some wait for nodes to confirm them.
const LAST_CHANGES: Duration = Duration::from_secs(30);
/// Between two looks whether they have.
const LOOK: Duration = Duration::from_millis(20);

/// An etcd that is about to become the store.
pub(crate) struct Migration {
    target: EtcdStore,
    /// The same, if this node runs it.
    local: Option<LocalEtcd>,
    node: NodeId,
    /// Revision of the old store that the history is copied up to.
    copied: Revision,
    /// Revision of the new store that nothing of the copy is older than.
    begun: Revision,
}

impl Migration {
    /// Starts the etcd of `moved`, which is this node with its new store, and copies the history that is there. Nothing
    /// stays when that fails.
    pub(crate) async fn begin(config: &Config, manager: &Manager, moved: &Identity) -> anyhow::Result<Self> {
        let begun = Self::open(config, manager, moved).await;
        if begun.is_err() {
            remove_directory(config)?;
        }
        let mut migration = begun?;
        match migration.prepare(manager).await {
            Ok(()) => Ok(migration),
            Err(e) => {
                migration.undo(config).await;
                Err(e)
            }
        }
    }

    async fn open(config: &Config, manager: &Manager, moved: &Identity) -> anyhow::Result<Self> {
        let (target, local) = match &moved.store {
            StoreSpec::Etcd => {
                remove_directory(config)?;
                etcd::prepare(config, moved, &manager.trust.authority())?;
                let local = LocalEtcd::start(config, moved, &Bootstrap::New)?;
                (local.open(&|_| {}).await?, Some(local))
            }
            StoreSpec::External(external) => {
                let target = EtcdStore::open(external_options(external, moved)?).await?;
                claim(&target, moved)
                    .await
                    .with_context(|| format!("the etcd at {} is not used", external.endpoints.join(", ")))?;
                (target, None)
            }
            StoreSpec::Redb => bail!("a cluster can be moved to etcd only: give '--to etcd'"),
        };
        Ok(Self { target, local, node: moved.node, copied: 0, begun: 0 })
    }

    async fn prepare(&mut self, manager: &Manager) -> anyhow::Result<()> {
        self.begun = self.target.commit(Txn::new().put(MARKER, self.node.to_string())).await?;
        self.copy_history(manager.store.as_ref()).await
    }

    /// Copies all that `manager` has, which was stopped and is nobody else's any more, and reads it back. How many records
    /// there are.
    pub(crate) async fn copy(&mut self, manager: &Arc<Manager>) -> anyhow::Result<usize> {
        let deadline = Instant::now() + LAST_CHANGES;
        while Arc::strong_count(manager) > 1 {
            ensure!(Instant::now() < deadline, "changes that were begun don't end: try again");
            sleep(LOOK).await;
        }
        let source = manager.store.as_ref();
        self.copy_history(source).await?;
        let records = records(source).await?;
        for txn in transactions(&records) {
            self.target.commit(txn).await?;
        }
        let told = journal::written(vec![event(manager)]);
        let last = Txn::new().put(GUARD, told).put(HISTORY, self.begun.to_string());
        self.target.commit(with_epoch(last)).await?;
        ensure!(self::records(&self.target).await? == records, "etcd does not hold what was written to it");
        Ok(records.len())
    }

    /// What happened so far, change by change: `events` tells it from the guard's history.
    async fn copy_history(&mut self, source: &dyn Store) -> anyhow::Result<()> {
        let until = source.get(GUARD).await?.map_or(0, |guard| guard.mod_revision);
        let mut watch = match source.watch(GUARD, self.copied).await {
            Err(StoreError::Compacted { oldest }) => {
                self.copied = oldest;
                source.watch(GUARD, oldest).await?
            }
            watch => watch?,
        };
        while self.copied < until {
            let event = watch.next().await?;
            for change in event.changes {
                if let Change::Put(Entry { value, .. }) = change {
                    self.target.commit(Txn::new().put(GUARD, value)).await?;
                }
            }
            self.copied = event.revision;
        }
        Ok(())
    }

    /// Ends the child: the manager that starts next has its own.
    pub(crate) async fn close(self) {
        if let Some(local) = &self.local {
            let ended = CancellationToken::new();
            ended.cancel();
            local.run(ended).await;
        }
    }

    /// Leaves nothing of the copy.
    pub(crate) async fn undo(self, config: &Config) {
        let cleared = if self.local.is_some() {
            self.close().await;
            remove_directory(config)
        } else {
            clear(&self.target).await
        };
        if let Err(err) = cleared {
            tracing::warn!(
                err = format!("{err:#}"),
                "something of a failed migration is left: the next one clears it"
            );
        }
    }
}

/// The copy is used from now on.
pub(super) async fn finish(store: &EtcdStore) -> Result<(), StoreError> {
    if store.get(MARKER).await?.is_some() {
        store.commit(Txn::new().delete(MARKER)).await?;
    }
    Ok(())
}

fn event(manager: &Manager) -> Event {
    let id = manager.identity.cluster.to_string();
    let detail = "moved to etcd".to_owned();
    Event { action: Action::Updated, kind: "cluster".to_owned(), name: id.clone(), id, detail }
}

/// Refuses an etcd that has keys of this cluster, unless this node left them there in a migration that was cut off.
async fn claim(target: &EtcdStore, moved: &Identity) -> anyhow::Result<()> {
    let marker = target.get(MARKER).await?;
    if marker.is_some_and(|marker| marker.value == moved.node.to_string().as_bytes()) {
        return clear(target).await;
    }
    let (entries, _) = target.range("").await?;
    ensure!(
        entries.is_empty(),
        "it holds {} keys under /meshd/{}/ already: remove them if no manager uses them",
        entries.len(),
        moved.cluster
    );
    Ok(())
}

async fn clear(target: &EtcdStore) -> anyhow::Result<()> {
    let (entries, _) = target.range("").await?;
    // The marker last: until then all that is left is known as left over.
    let (marker, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.key == MARKER);
    for some in others.chunks(TXN.0).chain([&marker[..]]) {
        let txn = some.iter().fold(Txn::new(), |txn, entry| txn.delete(entry.key.clone()));
        target.commit(txn).await?;
    }
    Ok(())
}

/// Keys and values of a store, but for those that each store has of its own.
async fn records(store: &dyn Store) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let (entries, _) = store.range("").await?;
    let own = [GUARD, EPOCH, HISTORY, MARKER];
    let records = entries.into_iter().filter(|entry| !own.contains(&entry.key.as_str()));
    Ok(records.map(|entry| (entry.key, entry.value)).collect())
}

/// Puts of all records, each transaction small enough for an etcd of its default size.
fn transactions(records: &[(String, Vec<u8>)]) -> Vec<Txn> {
    let (mut done, mut txn, mut bytes) = (Vec::new(), Txn::new(), 0);
    for (key, value) in records {
        let size = key.len() + value.len();
        if !txn.is_empty() && (txn.ops().len() == TXN.0 || bytes + size > TXN.1) {
            done.push(std::mem::take(&mut txn));
            bytes = 0;
        }
        txn = txn.put(key.clone(), value.clone());
        bytes += size;
    }
    if !txn.is_empty() {
        done.push(txn);
    }
    done
}

fn remove_directory(config: &Config) -> anyhow::Result<()> {
    let path = config.data_dir.join(ETCD);
    match fs::remove_dir_all(&path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_hold_every_record_once_and_are_small() {
        let small = (0..200).map(|number| (format!("small/{number:03}"), vec![1; 10]));
        let large = (0..5).map(|number| (format!("large/{number}"), vec![2; 300 << 10]));
        let records: Vec<_> = large.chain(small).collect();
        let made = transactions(&records);
        assert!(made.iter().all(|txn| !txn.is_empty() && txn.ops().len() <= TXN.0));
        // Five of 300 KiB don't share one; 200 small ones take four, of which the first has room beside a large one.
        assert_eq!(made.len(), 4 + 4);
        assert_eq!(made.iter().map(|txn| txn.ops().len()).sum::<usize>(), records.len());
        assert!(transactions(&[]).is_empty());
    }
}
