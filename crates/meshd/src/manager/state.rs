//! The state in memory: follows the store, and tells sessions what changed.

use crate::wire::Message;
use anyhow::Context;
use bytes::Bytes;
use mesh_model::{
    Change, Cluster, Endpoint, Health, Key, Network, Node, NodeId, NodeStatus, Object, Service, Snapshot,
};
use mesh_store::{Change as StoreChange, Entry, Revision, Store, Watch};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

/// Written by every allocation, expected unchanged by the next: two managers can't allocate from one state.
pub(super) const GUARD: &str = "guard";

/// Deltas kept for slow sessions; one that falls further behind gets a whole snapshot.
const BACKLOG: usize = 1024;

/// What a session sends: serialized once, however many sessions there are.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub(super) bytes: Bytes,
}

/// The state at one moment.
#[derive(Debug, Clone)]
pub(super) struct Current {
    pub(super) snapshot: Arc<Snapshot>,
    /// Revision that last wrote [`GUARD`]; none if nothing was allocated yet.
    pub(super) guard: Option<Revision>,
}

/// Follows the store.
#[derive(Debug)]
pub(super) struct State {
    current: watch::Sender<Current>,
    lines: broadcast::Sender<Line>,
    /// Orders changes of `current` with what is sent about them.
    publish: Mutex<()>,
}

/// The task that feeds the state from the store.
pub(super) struct Feed {
    state: Arc<State>,
    watch: Box<dyn Watch>,
}

impl State {
    /// Reads the whole state and prepares to follow it.
    pub(super) async fn load(store: Arc<dyn Store>) -> anyhow::Result<(Arc<Self>, Feed)> {
        let (entries, revision) = store.range("").await?;
        let watch = store.watch("", revision).await?;
        let mut current =
            Current { snapshot: Arc::new(Snapshot { revision, ..Snapshot::default() }), guard: None };
        let snapshot = Arc::make_mut(&mut current.snapshot);
        for entry in entries {
            if entry.key == GUARD {
                current.guard = Some(entry.mod_revision);
            } else if let Some(change) = decode(StoreChange::Put(entry))? {
                snapshot.apply(change);
            }
        }
        let (current, _) = watch::channel(current);
        let (lines, _) = broadcast::channel(BACKLOG);
        let state = Arc::new(Self { current, lines, publish: Mutex::new(()) });
        Ok((Arc::clone(&state), Feed { state, watch }))
    }

    pub(super) fn current(&self) -> Current {
        self.current.borrow().clone()
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.borrow().snapshot)
    }

    /// Waits until the state includes a revision.
    pub(super) async fn reached(&self, revision: Revision) {
        let mut current = self.current.subscribe();
        // The sender lives in `self`: it can't be gone.
        let _ = current.wait_for(|current| current.snapshot.revision >= revision).await;
    }

    /// The whole state as a line, and the lines that come after it.
    pub(super) fn subscribe(&self) -> (Line, broadcast::Receiver<Line>) {
        let _publish = self.publish.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = self.lines.subscribe();
        (line(&Message::Snapshot(self.snapshot())), lines)
    }

    /// Sets the liveness of a node: told to agents, never stored.
    pub(super) fn set_status(&self, node: NodeId, status: NodeStatus) {
        let snapshot = self.snapshot();
        let known = snapshot.status.get(&node).copied().unwrap_or_default();
        if known != status {
            let name = snapshot.nodes.get(&node).map(|node| node.name.to_string());
            tracing::info!(%node, name, "node is {status}");
            self.publish(snapshot.revision, vec![Change::Put(Object::Status(node, status))], None);
        }
    }

    fn publish(&self, revision: Revision, changes: Vec<Change>, guard: Option<Revision>) {
        let _publish = self.publish.lock().unwrap_or_else(PoisonError::into_inner);
        self.current.send_modify(|current| {
            let snapshot = Arc::make_mut(&mut current.snapshot);
            changes.iter().cloned().for_each(|change| snapshot.apply(change));
            snapshot.revision = snapshot.revision.max(revision);
            current.guard = guard.or(current.guard);
        });
        let revision = self.current.borrow().snapshot.revision;
        // No session listens: nobody to tell.
        drop(self.lines.send(line(&Message::Delta { revision, changes })));
    }
}

impl Feed {
    /// Follows the store until it ends.
    pub(super) async fn run(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        loop {
            let event = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                event = self.watch.next() => event.context("the store's watch ended")?,
            };
            let guard = event.changes.iter().any(|change| change.key() == GUARD).then_some(event.revision);
            let changes: Vec<Change> = event
                .changes
                .into_iter()
                .map(decode)
                .collect::<Result<Vec<_>, _>>()?
                .into_iter()
                .flatten()
                .collect();
            self.state.publish(event.revision, changes, guard);
        }
    }
}

pub(super) fn line(message: &Message) -> Line {
    let mut text =
        serde_json::to_vec(message).unwrap_or_else(|e| unreachable!("messages are plain data: {e}"));
    text.push(b'\n');
    Line { bytes: text.into() }
}

/// A change of the store as one of the state; none if it is of something else, such as a token.
fn decode(change: StoreChange) -> anyhow::Result<Option<Change>> {
    let Ok(key) = change.key().parse::<Key>() else { return Ok(None) };
    match change {
        StoreChange::Delete { .. } => Ok(Some(Change::Delete(key))),
        StoreChange::Put(Entry { value, .. }) => {
            let object = decode_object(key, &value).with_context(|| format!("record {key} is damaged"))?;
            Ok(object.map(Change::Put))
        }
    }
}

fn decode_object(key: Key, value: &[u8]) -> serde_json::Result<Option<Object>> {
    Ok(Some(match key {
        Key::Cluster => Object::Cluster(Arc::new(serde_json::from_slice::<Cluster>(value)?)),
        Key::Node(_) => Object::Node(Arc::new(serde_json::from_slice::<Node>(value)?)),
        Key::Network(_) => Object::Network(Arc::new(serde_json::from_slice::<Network>(value)?)),
        Key::Service(_) => Object::Service(Arc::new(serde_json::from_slice::<Service>(value)?)),
        Key::Endpoint(_) => Object::Endpoint(Arc::new(serde_json::from_slice::<Endpoint>(value)?)),
        Key::Health(endpoint) => Object::Health(endpoint, serde_json::from_slice::<Health>(value)?),
        Key::Status(_) => return Ok(None),
    }))
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
        Object::Status(_, status) => serde_json::to_vec(status),
    };
    text.unwrap_or_else(|e| unreachable!("records are plain data: {e}"))
}
