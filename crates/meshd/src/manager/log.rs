//! What changed lately, as the lines that agents are sent: each is serialized once, however many agents get it, and an
//! agent is woken only for what its node needs.
//!
//! A manager that starts fills it with what its store remembers: see [`recall`].

use crate::wire::{Message, NetworkState, Resume};
use bytes::Bytes;
use mesh_model::{Audience, Change, Key, NetworkId, NodeId, Object, Placement, Snapshot};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::Notify;

mod recall;
#[cfg(test)]
mod tests;

/// Changes kept for agents that are slow or come back; who falls further behind gets the whole state.
pub(super) const ENTRIES: usize = 4096;
/// Bytes of lines kept for them.
const BYTES: usize = 16 << 20;

/// The last changes, and who is to be told.
#[derive(Debug, Default)]
pub(super) struct Log {
    placement: Placement,
    entries: VecDeque<Entry>,
    /// Number of the first entry; they are counted from the start of the process.
    first: u64,
    /// Revision of the state that the first entry follows.
    base: u64,
    bytes: usize,
    parts: Parts,
    subscribers: BTreeMap<NodeId, Arc<Subscription>>,
}

/// What one transaction changed, by who needs it.
#[derive(Debug)]
struct Entry {
    revision: u64,
    everyone: Option<Bytes>,
    networks: BTreeMap<NetworkId, Bytes>,
}

/// The whole state as lines: made when first asked for, and again after a change.
#[derive(Debug, Default)]
struct Parts {
    base: Option<Bytes>,
    networks: BTreeMap<NetworkId, Bytes>,
    /// All of it in one, for who asks, and the revision that it is of.
    whole: Option<(u64, Bytes)>,
}

/// Wakes the stream of one agent.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    /// The last revision that the node is to be told of.
    due: AtomicU64,
    wake: Notify,
}

/// How far one agent's stream has come.
#[derive(Debug)]
pub(super) struct Cursor {
    /// Number of the entry to go on with; none if the agent needs the whole state.
    next: Option<u64>,
    /// Networks that the agent has the endpoints of.
    held: BTreeSet<NetworkId>,
    /// The last revision sent as reached.
    sent: u64,
    /// An agent that comes back is told once of what has no revision.
    resumed: bool,
}

impl Log {
    pub(super) fn new(snapshot: &Snapshot) -> Self {
        Self { placement: Placement::of(snapshot), base: snapshot.revision, ..Self::default() }
    }

    /// Starts anew from a state that does not follow the last one: every agent gets all of it.
    pub(super) fn restart(&mut self, snapshot: &Snapshot) {
        // No cursor points to an entry that will be: they end where the next one begins.
        let first = self.first + self.entries.len() as u64 + 1;
        let subscribers = std::mem::take(&mut self.subscribers);
        *self = Self { first, subscribers, ..Self::new(snapshot) };
        for subscription in self.subscribers.values() {
            subscription.due.store(snapshot.revision, Ordering::Relaxed);
            subscription.wake.notify_one();
        }
    }

    /// Applies what one transaction changed, and wakes the agents that need it.
    pub(super) fn apply(&mut self, snapshot: &mut Snapshot, changes: Vec<Change>, revision: u64) {
        let mut everyone = Vec::new();
        let mut networks: BTreeMap<NetworkId, Vec<Change>> = BTreeMap::new();
        let mut nodes = BTreeSet::new();
        for change in changes {
            self.placement.apply(snapshot, &change);
            match snapshot.audience(&change) {
                Audience::Nobody => {}
                Audience::Everyone => everyone.push(change.clone()),
                Audience::On(network) => {
                    nodes.extend(node_of(snapshot, &change));
                    let on = networks.entry(network).or_default();
                    on.push(change.clone());
                    on.extend(with_it(snapshot, &change));
                }
            }
            snapshot.apply(change);
        }
        snapshot.revision = snapshot.revision.max(revision);
        if everyone.is_empty() && networks.is_empty() {
            return;
        }
        self.parts.forget(!everyone.is_empty(), networks.keys());
        let all = !everyone.is_empty() || networks.keys().any(|n| self.placement.is_everywhere(*n));
        nodes.extend(networks.keys().flat_map(|network| self.placement.nodes_on(*network)));
        self.push(Entry::new(snapshot.revision, everyone, networks));
        if all {
            self.subscribers.values().for_each(|s| s.tell(snapshot.revision));
        } else {
            let concerned = nodes.iter().filter_map(|node| self.subscribers.get(node));
            concerned.for_each(|s| s.tell(snapshot.revision));
        }
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += entry.size();
        self.entries.push_back(entry);
        while self.entries.len() > ENTRIES || self.bytes > BYTES {
            let Some(oldest) = self.entries.pop_front() else { break };
            self.bytes -= oldest.size();
            self.base = oldest.revision;
            self.first += 1;
        }
    }

    /// Begins to tell a node; one told before is not from now on.
    pub(super) fn subscribe(
        &mut self,
        node: NodeId,
        snapshot: &Snapshot,
        resume: Option<Resume>,
    ) -> (Arc<Subscription>, Cursor) {
        let known = self.base..=snapshot.revision;
        let resume = resume.filter(|r| r.epoch == snapshot.epoch && known.contains(&r.revision));
        let cursor = match resume {
            None => Cursor { next: None, held: BTreeSet::new(), sent: 0, resumed: false },
            Some(Resume { revision, networks: held, .. }) => {
                let seen = self.entries.partition_point(|entry| entry.revision <= revision) as u64;
                Cursor { next: Some(self.first + seen), held, sent: 0, resumed: true }
            }
        };
        let subscription = Arc::new(Subscription::default());
        // Even if nothing changed: the agent learns that it is up to date.
        subscription.tell(snapshot.revision);
        self.subscribers.insert(node, Arc::clone(&subscription));
        (subscription, cursor)
    }

    pub(super) fn unsubscribe(&mut self, node: NodeId, subscription: &Arc<Subscription>) {
        if self.subscribers.get(&node).is_some_and(|s| Arc::ptr_eq(s, subscription)) {
            self.subscribers.remove(&node);
        }
    }

    /// Tells a node of a revision that the state has reached, even if nothing of it concerns the node.
    pub(super) fn tell(&self, node: NodeId, revision: u64) {
        if let Some(subscription) = self.subscribers.get(&node) {
            subscription.tell(revision);
        }
    }

    /// The whole state for who asks for it, however many do.
    pub(super) fn whole(&mut self, snapshot: &Snapshot) -> Bytes {
        self.parts.whole(snapshot)
    }

    /// The lines that bring an agent from its cursor to the present state, which the cursor then stands for.
    pub(super) fn advance(
        &mut self,
        node: NodeId,
        subscription: &Subscription,
        cursor: &mut Cursor,
        snapshot: &Snapshot,
    ) -> VecDeque<Bytes> {
        let wanted = self.placement.networks_on(node);
        let known = cursor.next.filter(|next| *next >= self.first);
        let mut lines = VecDeque::new();
        match known {
            None => {
                tracing::debug!(%node, revision = snapshot.revision, "is sent the whole state");
                cursor.held.clear();
                lines.push_back(self.parts.base(snapshot));
            }
            Some(next) => {
                let new = self.entries.range((next - self.first) as usize..);
                if cursor.resumed {
                    tracing::debug!(%node, changes = new.len(), revision = snapshot.revision, "goes on where it was");
                    // No revision tells whether it is another.
                    let leader = snapshot
                        .leader
                        .map_or(Change::Delete(Key::Leader), |leader| Change::Put(Object::Leader(leader)));
                    lines.push_back(line(&Message::Changes(vec![leader])));
                }
                for entry in new {
                    lines.extend(entry.everyone.clone());
                    let on =
                        entry.networks.iter().filter(|(n, _)| cursor.held.contains(n) && wanted.contains(n));
                    lines.extend(on.map(|(_, line)| line.clone()));
                }
            }
        }
        for network in cursor.held.difference(&wanted) {
            lines.push_back(line(&Message::Forget(*network)));
        }
        for network in wanted.difference(&cursor.held) {
            lines.push_back(self.parts.network(*network, snapshot));
        }
        if !lines.is_empty() || subscription.due.load(Ordering::Relaxed) > cursor.sent {
            lines.push_back(line(&Message::Reached { revision: snapshot.revision }));
            cursor.sent = snapshot.revision;
        }
        cursor.next = Some(self.first + self.entries.len() as u64);
        cursor.held = wanted;
        cursor.resumed = false;
        lines
    }
}

impl Entry {
    fn new(revision: u64, everyone: Vec<Change>, networks: BTreeMap<NetworkId, Vec<Change>>) -> Self {
        let networks = networks.into_iter().map(|(n, changes)| (n, line(&Message::Changes(changes))));
        Self {
            revision,
            everyone: (!everyone.is_empty()).then(|| line(&Message::Changes(everyone))),
            networks: networks.collect(),
        }
    }

    fn size(&self) -> usize {
        self.everyone.iter().chain(self.networks.values()).map(Bytes::len).sum()
    }
}

impl Subscription {
    /// What the node must have applied before a revision counts as confirmed by it.
    pub(super) fn due(&self, revision: u64) -> u64 {
        self.due.load(Ordering::Relaxed).min(revision)
    }

    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    fn tell(&self, revision: u64) {
        self.due.fetch_max(revision, Ordering::Relaxed);
        self.wake.notify_one();
    }
}

impl Parts {
    fn forget<'a>(&mut self, base: bool, networks: impl Iterator<Item = &'a NetworkId>) {
        if base {
            self.base = None;
        }
        self.whole = None;
        networks.for_each(|network| drop(self.networks.remove(network)));
    }

    fn base(&mut self, snapshot: &Snapshot) -> Bytes {
        let make = || {
            let mut base = snapshot.clone();
            base.endpoints.clear();
            base.health.clear();
            base.released.clear();
            line(&Message::Base(Arc::new(base)))
        };
        self.base.get_or_insert_with(make).clone()
    }

    fn whole(&mut self, snapshot: &Snapshot) -> Bytes {
        match &self.whole {
            Some((revision, whole)) if *revision == snapshot.revision => whole.clone(),
            _ => {
                let whole = Bytes::from(json(snapshot));
                self.whole = Some((snapshot.revision, whole.clone()));
                whole
            }
        }
    }

    fn network(&mut self, network: NetworkId, snapshot: &Snapshot) -> Bytes {
        let make = || {
            let endpoints = snapshot.endpoints.values().filter(|e| e.network == network);
            let endpoints: Vec<_> = endpoints.cloned().collect();
            let health =
                endpoints.iter().filter_map(|e| Some((e.id, *snapshot.health.get(&e.id)?))).collect();
            line(&Message::Network(NetworkState { network, endpoints, health }))
        };
        self.networks.entry(network).or_insert_with(make).clone()
    }
}

/// The node that an endpoint comes to or goes from: the network may begin or cease to exist there.
fn node_of(before: &Snapshot, change: &Change) -> Option<NodeId> {
    match change {
        Change::Put(Object::Endpoint(endpoint)) => Some(endpoint.node),
        Change::Delete(Key::Endpoint(id)) => before.endpoints.get(id).map(|e| e.node),
        _ => None,
    }
}

/// The verdict on an endpoint comes and goes with it in the eyes of those who are not told of strangers.
fn with_it(before: &Snapshot, change: &Change) -> Option<Change> {
    match change {
        Change::Put(Object::Endpoint(endpoint)) if !before.endpoints.contains_key(&endpoint.id) => {
            let verdict = before.health.get(&endpoint.id)?;
            Some(Change::Put(Object::Health(endpoint.id, *verdict)))
        }
        Change::Delete(Key::Endpoint(id)) if before.health.contains_key(id) => {
            Some(Change::Delete(Key::Health(*id)))
        }
        _ => None,
    }
}

/// A message as it is sent.
pub(super) fn line(message: &Message) -> Bytes {
    let mut text = json(message);
    text.push(b'\n');
    text.into()
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|e| unreachable!("states and messages are plain data: {e}"))
}
