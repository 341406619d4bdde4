//! The log of a manager that starts. Agents are as far as the last change that concerned each of them: none of them is to
//! be sent the whole state because the manager does not remember what came after.
//!
//! The store remembers which records changed, not what they were before. That is enough: whoever is told goes on to the
//! present state at once, so that each record that changed is told as it is now, or that it is gone.

use super::{Entry, Log};
use crate::manager::state::Changed;
use mesh_model::{Audience, Change, Key, NetworkId, Snapshot};
use std::collections::BTreeMap;

impl Log {
    /// The log that ends with a state, of what changed before.
    pub(in crate::manager) fn recalled(snapshot: &Snapshot, changed: Changed) -> Self {
        let mut log = Self { base: changed.since, ..Self::new(snapshot) };
        let mut revisions: BTreeMap<u64, Vec<Key>> = BTreeMap::new();
        for (key, revision) in changed.last {
            revisions.entry(revision).or_default().push(key);
        }
        for (revision, keys) in revisions {
            let mut everyone = Vec::new();
            let mut networks: BTreeMap<NetworkId, Vec<Change>> = BTreeMap::new();
            for (audience, change) in keys.into_iter().flat_map(|key| as_it_is(snapshot, key)) {
                match audience {
                    Audience::Nobody => {}
                    Audience::Everyone => everyone.push(change),
                    Audience::On(network) => networks.entry(network).or_default().push(change),
                }
            }
            log.push(Entry::new(revision, everyone, networks));
        }
        log
    }
}

/// What makes a record, in any state it may have been in, what it is now; and who needs to know.
fn as_it_is(snapshot: &Snapshot, key: Key) -> Vec<(Audience, Change)> {
    let now = |key| snapshot.object(key).map_or(Change::Delete(key), Change::Put);
    let told = |key| (snapshot.audience(&now(key)), now(key));
    match key {
        // Nobody remembers which network it was on. It says nothing of it to those who were not there.
        Key::Endpoint(id) if !snapshot.endpoints.contains_key(&id) => {
            [key, Key::Health(id)].map(|gone| (Audience::Everyone, Change::Delete(gone))).to_vec()
        }
        // The verdict may be older than the endpoint, in the eyes of those who were told of neither.
        Key::Endpoint(id) => [key, Key::Health(id)].map(told).to_vec(),
        // Not stored.
        Key::Leader => Vec::new(),
        key => vec![told(key)],
    }
}
