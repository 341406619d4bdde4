//! The state in memory: follows the store, and tells sessions what changed.

use super::log::{self, Cursor, Log, Subscription};
use crate::wire::Resume;
use anyhow::Context;
use bytes::Bytes;
use mesh_model::{
    Change, Cluster, Endpoint, Health, Key, Network, Node, NodeId, Object, Released, Service, Snapshot,
};
use mesh_store::{Change as StoreChange, Entry, Error as StoreError, Revision, Store, Txn, Watch};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Written by every allocation, expected unchanged by the next: two managers can't allocate from one state.
pub(super) const GUARD: &str = "guard";

/// First and longest pause before the store is read anew when it can't be followed.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// How long the store may take to tell what changed lately. Without it every agent is sent the whole state.
const RECALL: Duration = Duration::from_secs(3);

/// Revision after which the history of [`GUARD`] is that of this state, if it has one before: a migration that was cut off
/// may have left its own in an etcd, where deleting it does not make it undone.
pub(super) const HISTORY: &str = "history";

/// Number of the state's history, drawn anew when revisions start anew: see [`Snapshot::epoch`].
pub(super) const EPOCH: &str = "epoch";

/// The state at one moment.
#[derive(Debug, Clone)]
pub(super) struct Current {
    pub(super) snapshot: Arc<Snapshot>,
    /// Revision that last wrote [`GUARD`]; none if nothing was allocated yet.
    pub(super) guard: Option<Revision>,
}

/// What the store remembers of the time before a state.
#[derive(Debug, Default)]
pub(super) struct Changed {
    /// Nothing is missing after this revision.
    pub(super) since: Revision,
    /// The records that changed, each with the last revision that changed it.
    pub(super) last: BTreeMap<Key, Revision>,
}

/// Follows the store.
#[derive(Debug)]
pub(super) struct State {
    current: watch::Sender<Current>,
    /// Locked while `current` changes, so that what is told of it is in the same order.
    log: Mutex<Log>,
}

/// The task that feeds the state from the store.
pub(super) struct Feed {
    state: Arc<State>,
    store: Arc<dyn Store>,
    watch: Box<dyn Watch>,
}

impl State {
    /// Reads the whole state and prepares to follow it.
    pub(super) async fn load(store: Arc<dyn Store>) -> anyhow::Result<(Arc<Self>, Feed)> {
        ensure_epoch(store.as_ref()).await?;
        let (current, watch) = read(store.as_ref()).await?;
        let log = Mutex::new(recall(store.as_ref(), &current).await);
        let (current, _) = watch::channel(current);
        let state = Arc::new(Self { current, log });
        Ok((Arc::clone(&state), Feed { state, store, watch }))
    }

    pub(super) fn current(&self) -> Current {
        self.current.borrow().clone()
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.borrow().snapshot)
    }

    /// The state, as it changes.
    pub(super) fn watch(&self) -> watch::Receiver<Current> {
        self.current.subscribe()
    }

    /// The state as JSON, made once for all who ask for the same.
    pub(super) fn json(&self) -> Bytes {
        let mut log = self.log();
        log.whole(&self.snapshot())
    }

    /// Waits until the state includes a revision.
    pub(super) async fn reached(&self, revision: Revision) {
        let mut current = self.current.subscribe();
        // The sender lives in `self`: it can't be gone.
        let _ = current.wait_for(|current| current.snapshot.revision >= revision).await;
    }

    /// Begins to tell a node what it needs: all of it, or what changed since its copy.
    pub(super) fn subscribe(&self, node: NodeId, resume: Option<Resume>) -> (Arc<Subscription>, Cursor) {
        self.log().subscribe(node, &self.snapshot(), resume)
    }

    pub(super) fn unsubscribe(&self, node: NodeId, subscription: &Arc<Subscription>) {
        self.log().unsubscribe(node, subscription);
    }

    /// What a node has not been told yet.
    pub(super) fn advance(
        &self,
        node: NodeId,
        subscription: &Subscription,
        cursor: &mut Cursor,
    ) -> VecDeque<Bytes> {
        let mut log = self.log();
        log.advance(node, subscription, cursor, &self.snapshot())
    }

    /// Tells a node of a revision once the state has it, even if nothing of it concerns the node.
    pub(super) async fn catch_up(&self, node: NodeId, revision: Revision) {
        self.reached(revision).await;
        self.log().tell(node, revision);
    }

    /// Sets who leads the managers: told to agents, never stored.
    pub(super) fn set_leader(&self, leader: Option<NodeId>) {
        let snapshot = self.snapshot();
        if snapshot.leader != leader {
            let change =
                leader.map_or(Change::Delete(Key::Leader), |leader| Change::Put(Object::Leader(leader)));
            self.publish(snapshot.revision, vec![change], None);
        }
    }

    fn publish(&self, revision: Revision, changes: Vec<Change>, guard: Option<Revision>) {
        let mut log = self.log();
        self.current.send_modify(|current| {
            log.apply(Arc::make_mut(&mut current.snapshot), changes, revision);
            current.guard = guard.or(current.guard);
        });
    }

    /// The state has another history from now on.
    fn set_epoch(&self, epoch: u64) {
        let mut log = self.log();
        self.current.send_modify(|current| Arc::make_mut(&mut current.snapshot).epoch = epoch);
        log.restart(&self.snapshot());
    }

    /// The state was read anew: what lies between is not known, and agents are sent all of it.
    fn replace(&self, read: Current) {
        let mut log = self.log();
        self.current.send_modify(|current| {
            let mut snapshot = Snapshot::clone(&read.snapshot);
            // Not of the store.
            snapshot.leader = current.snapshot.leader;
            *current = Current { snapshot: Arc::new(snapshot), guard: read.guard };
        });
        log.restart(&self.snapshot());
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feed {
    /// Follows the store until cancelled. No failure of the store is a reason to end: what was seen so far stays.
    pub(super) async fn run(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        cancel.run_until_cancelled(self.follow()).await;
        Ok(())
    }

    async fn follow(&mut self) {
        let mut pause = BACKOFF.0;
        loop {
            let err = loop {
                match self.step().await {
                    Ok(()) => pause = BACKOFF.0,
                    Err(err) => break err,
                }
            };
            tracing::warn!(err = format!("{err:#}"), "cannot follow the store: reading it anew");
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF.1);
            match read(self.store.as_ref()).await {
                Ok((current, watch)) => {
                    self.state.replace(current);
                    self.watch = watch;
                }
                Err(err) => tracing::warn!(err = format!("{err:#}"), "cannot read the store"),
            }
        }
    }

    /// Takes one transaction.
    async fn step(&mut self) -> anyhow::Result<()> {
        let event = self.watch.next().await?;
        let epoch = event.changes.iter().rev().find_map(|change| match change {
            StoreChange::Put(entry) if entry.key == EPOCH => Some(decode_epoch(&entry.value)),
            _ => None,
        });
        let guard = event.changes.iter().any(|change| change.key() == GUARD).then_some(event.revision);
        let changes = event.changes.into_iter().map(decode).collect::<Result<Vec<_>, _>>()?;
        self.state.publish(event.revision, changes.into_iter().flatten().collect(), guard);
        if let Some(epoch) = epoch.transpose()? {
            self.state.set_epoch(epoch);
        }
        Ok(())
    }
}

/// The whole state of the store, and what follows it.
async fn read(store: &dyn Store) -> anyhow::Result<(Current, Box<dyn Watch>)> {
    let (entries, revision) = store.range("").await?;
    let watch = store.watch("", revision).await?;
    let mut snapshot = Snapshot { revision, ..Snapshot::default() };
    let mut guard = None;
    for entry in entries {
        if entry.key == GUARD {
            guard = Some(entry.mod_revision);
        } else if entry.key == EPOCH {
            snapshot.epoch = decode_epoch(&entry.value)?;
        } else if let Some(change) = decode(StoreChange::Put(entry))? {
            snapshot.apply(change);
        }
    }
    Ok((Current { snapshot: Arc::new(snapshot), guard }, watch))
}

/// The log of the changes that led to a state; an empty one if the store does not tell.
async fn recall(store: &dyn Store, current: &Current) -> Log {
    let snapshot = &current.snapshot;
    match timeout(RECALL, changed_before(store, current)).await {
        Ok(Ok(changed)) => Log::recalled(snapshot, changed),
        failed => {
            let err = failed.map_or_else(|late| late.to_string(), |err| format!("{:?}", err.err()));
            tracing::warn!(err, "what changed lately is not known: agents are sent the whole state");
            Log::new(snapshot)
        }
    }
}

/// What changed up to a state, as far back as the log would go.
async fn changed_before(store: &dyn Store, current: &Current) -> Result<Changed, StoreError> {
    // Every change of records writes it: after its last revision there was none, and so none to wait for.
    let newest = current.guard.unwrap_or_default();
    let wanted = current.snapshot.revision.saturating_sub(log::ENTRIES as u64);
    let (since, mut watch) = match store.watch("", wanted).await {
        Err(StoreError::Compacted { oldest }) => (oldest, store.watch("", oldest).await?),
        watch => (wanted, watch?),
    };
    let mut changed = Changed { since, last: BTreeMap::new() };
    let mut seen = since;
    while seen < newest {
        let event = watch.next().await?;
        seen = event.revision;
        let records = event.changes.iter().filter_map(|change| change.key().parse::<Key>().ok());
        changed.last.extend(records.map(|key| (key, seen)));
    }
    Ok(changed)
}

/// Adds a new epoch to what a transaction writes.
pub(super) fn with_epoch(txn: Txn) -> Txn {
    txn.put(EPOCH, rand::random_range(1..=u64::MAX).to_string().into_bytes())
}

/// A store that an earlier version made has none.
async fn ensure_epoch(store: &dyn Store) -> Result<(), StoreError> {
    match store.commit(with_epoch(Txn::new().expect_absent(EPOCH))).await {
        Ok(_) | Err(StoreError::Conflict { .. }) => Ok(()),
        Err(e) => Err(e),
    }
}

fn decode_epoch(value: &[u8]) -> anyhow::Result<u64> {
    let text = std::str::from_utf8(value).ok();
    text.and_then(|text| text.parse().ok()).context("record epoch is damaged")
}

/// A change of the store as one of the state; none if it is of something else, such as a token.
pub(super) fn decode(change: StoreChange) -> anyhow::Result<Option<Change>> {
    let Ok(key) = change.key().parse::<Key>() else { return Ok(None) };
    match change {
        StoreChange::Delete { .. } => Ok(Some(Change::Delete(key))),
        StoreChange::Put(Entry { value, .. }) => {
            let object = decode_object(key, &value).with_context(|| format!("record {key} is damaged"))?;
            Ok(Some(Change::Put(object)))
        }
    }
}

fn decode_object(key: Key, value: &[u8]) -> serde_json::Result<Object> {
    Ok(match key {
        Key::Cluster => Object::Cluster(Arc::new(serde_json::from_slice::<Cluster>(value)?)),
        Key::Node(_) => Object::Node(Arc::new(serde_json::from_slice::<Node>(value)?)),
        Key::Network(_) => Object::Network(Arc::new(serde_json::from_slice::<Network>(value)?)),
        Key::Service(_) => Object::Service(Arc::new(serde_json::from_slice::<Service>(value)?)),
        Key::Endpoint(_) => Object::Endpoint(Arc::new(serde_json::from_slice::<Endpoint>(value)?)),
        Key::Health(endpoint) => Object::Health(endpoint, serde_json::from_slice::<Health>(value)?),
        Key::Released(network) => {
            Object::Released(network, Arc::new(serde_json::from_slice::<Released>(value)?))
        }
        Key::Leader => Object::Leader(serde_json::from_slice::<NodeId>(value)?),
    })
}

/// The value of a record in the store.
pub(super) fn encode(object: &Object) -> Vec<u8> {
    let text = match object {
        Object::Cluster(cluster) => serde_json::to_vec(cluster),
        Object::Node(node) => serde_json::to_vec(node),
        Object::Network(network) => serde_json::to_vec(network),
        Object::Service(service) => serde_json::to_vec(service),
        Object::Endpoint(endpoint) => serde_json::to_vec(endpoint),
        Object::Health(_, health) => serde_json::to_vec(health),
        Object::Released(_, released) => serde_json::to_vec(released),
        Object::Leader(leader) => serde_json::to_vec(leader),
    };
    text.unwrap_or_else(|e| unreachable!("records are plain data: {e}"))
}
