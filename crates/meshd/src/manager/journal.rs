//! What each change was, in words, kept where the change is: in [`GUARD`], which every allocation
//! writes. So the store's history tells it to whoever asks, in order and whole, as far back as it reaches; also of
//! records that are gone. Secrets have no place here: they are no records of the snapshot.

use super::{
    Error, Manager,
    state::{GUARD, HISTORY},
};
use crate::{clock, wire::Told};
use futures_util::{Stream, stream};
use mesh_model::{Action, Change, Event, Happened, Key, Object, Snapshot};
use mesh_store::{Change as StoreChange, Entry, Error as StoreError, Revision, Watch};
use serde_json::Value;

/// The value of the guard for changes that are decided on `before`.
pub(super) fn encode(before: &Snapshot, changes: &[Change]) -> Vec<u8> {
    let events = changes.iter().filter_map(|change| event(before, change)).collect();
    written(events)
}

/// The same for what is no change of records.
pub(super) fn written(events: Vec<Event>) -> Vec<u8> {
    let happened = Happened { time_ms: clock::unix_millis(), events };
    serde_json::to_vec(&happened).unwrap_or_else(|e| unreachable!("events are plain data: {e}"))
}

fn event(before: &Snapshot, change: &Change) -> Option<Event> {
    match change {
        // They go with the records of the same transaction that are told.
        Change::Delete(Key::Health(_) | Key::Released(_)) | Change::Put(Object::Released(..)) => None,
        // Not stored.
        Change::Put(Object::Leader(_)) | Change::Delete(Key::Leader) => None,
        Change::Delete(key) => {
            let gone = before.object(*key)?;
            Some(told(before, Action::Removed, &gone, String::new()))
        }
        Change::Put(object @ Object::Health(endpoint, health)) => {
            let known = before.health.get(endpoint);
            let was = known.map(|known| format!(" (was {known})")).unwrap_or_default();
            Some(told(before, Action::Updated, object, format!("health={health}{was}")))
        }
        Change::Put(object) => Some(match before.object(object.key()) {
            None => told(before, Action::Created, object, introduction(before, object)),
            Some(known) => {
                told(before, Action::Updated, object, difference(&fields(&known), &fields(object)))
            }
        }),
    }
}

fn told(before: &Snapshot, action: Action, object: &Object, detail: String) -> Event {
    let (kind, name, id) = match object {
        Object::Cluster(cluster) => ("cluster", cluster.id.to_string(), cluster.id.to_string()),
        Object::Node(node) => ("node", node.name.to_string(), node.id.to_string()),
        Object::Network(network) => ("network", network.name.to_string(), network.id.to_string()),
        Object::Service(service) => ("service", service.name.to_string(), service.id.to_string()),
        Object::Endpoint(endpoint) => ("endpoint", endpoint.name.to_string(), endpoint.id.to_string()),
        Object::Health(id, _) => {
            let name = before.endpoints.get(id).map(|endpoint| endpoint.name.to_string());
            ("endpoint", name.unwrap_or_default(), id.to_string())
        }
        Object::Released(id, _) => ("network", id.to_string(), id.to_string()),
        Object::Leader(id) => ("leader", id.to_string(), id.to_string()),
    };
    Event { action, kind: kind.to_owned(), name, id, detail }
}

/// What one wants to know first of a new record.
fn introduction(before: &Snapshot, object: &Object) -> String {
    match object {
        Object::Node(node) => format!("{} at {}", node.role, node.advertise.ip()),
        Object::Network(network) => list(network.prefixes()),
        Object::Service(service) => list(&service.ports),
        Object::Endpoint(endpoint) => {
            let node = before.nodes.get(&endpoint.node).map(|node| format!(" on {}", node.name));
            list(&endpoint.addresses) + &node.unwrap_or_default()
        }
        Object::Cluster(_) | Object::Health(..) | Object::Released(..) | Object::Leader(_) => String::new(),
    }
}

fn list<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    values.into_iter().map(|value| value.to_string()).collect::<Vec<_>>().join(", ")
}

/// The record's fields, as the store has them.
fn fields(object: &Object) -> Value {
    serde_json::from_slice(&super::state::encode(object)).unwrap_or_default()
}

/// The fields that differ: short ones with both values, others by their names.
fn difference(before: &Value, after: &Value) -> String {
    let (Value::Object(before), Value::Object(after)) = (before, after) else { return String::new() };
    let removed = before.keys().filter(|name| !after.contains_key(*name));
    let names = after.keys().filter(|name| before.get(*name) != after.get(*name)).chain(removed);
    list(names.map(|name| match (short(before.get(name)), short(after.get(name))) {
        (Some(before), Some(after)) => format!("{name}={after} (was {before})"),
        _ => name.clone(),
    }))
}

fn short(value: Option<&Value>) -> Option<String> {
    match value {
        None | Some(Value::Null) => Some("none".to_owned()),
        Some(Value::String(text)) if text.len() <= 40 => Some(text.clone()),
        Some(value @ (Value::Bool(_) | Value::Number(_))) => Some(value.to_string()),
        Some(_) => None,
    }
}

impl Manager {
    /// What happened after a revision (unless given: from now on), a transaction an item; see [`Told`].
    pub(super) async fn events(
        &self,
        after: Option<Revision>,
    ) -> Result<impl Stream<Item = Told> + use<>, Error> {
        let after = match after {
            Some(after) => after.max(self.history_begins().await?),
            None => self.state.snapshot().revision,
        };
        let watch = match self.store.watch(GUARD, after).await {
            Err(StoreError::Compacted { oldest }) => return Err(Error::History { after, oldest }),
            Err(StoreError::FutureRevision { current, .. }) => return Err(Error::Future { after, current }),
            watch => watch?,
        };
        let first = Told {
            revision: after,
            happened: Happened { time_ms: clock::unix_millis(), events: Vec::new() },
        };
        Ok(stream::unfold((Some(first), watch), |(first, mut watch)| async move {
            let told = match first {
                Some(first) => first,
                None => next(watch.as_mut()).await?,
            };
            Some((told, (None, watch)))
        }))
    }

    /// The revision before the first that is told of.
    async fn history_begins(&self) -> Result<Revision, Error> {
        let entry = self.store.get(HISTORY).await?;
        let text = entry.as_ref().and_then(|entry| std::str::from_utf8(&entry.value).ok());
        Ok(text.and_then(|text| text.parse().ok()).unwrap_or_default())
    }
}

/// The next one; none when the history can't be followed any further, which a new request explains.
async fn next(watch: &mut dyn Watch) -> Option<Told> {
    loop {
        let event = watch.next().await.ok()?;
        let value = event.changes.into_iter().find_map(|change| match change {
            StoreChange::Put(Entry { key, value, .. }) if key == GUARD => Some(value),
            _ => None,
        });
        let happened = value.and_then(|value| serde_json::from_slice::<Happened>(&value).ok());
        if let Some(happened) = happened.filter(|happened| !happened.events.is_empty()) {
            return Some(Told { revision: event.revision, happened });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_model::{Endpoint, EndpointId, Health, MacAddr, NetworkId, NodeId, Target};
    use std::sync::Arc;

    fn endpoint(draining: bool) -> Endpoint {
        Endpoint {
            id: EndpointId::from_bits(1),
            name: "web1".parse().unwrap(),
            network: NetworkId::from_bits(2),
            node: NodeId::from_bits(3),
            addresses: vec!["10.50.0.2".parse().unwrap()],
            mac: "02:00:00:00:00:01".parse::<MacAddr>().unwrap(),
            service: None,
            aliases: Vec::new(),
            target: Target::Pid(7),
            namespace_inode: 1,
            ifname: "eth0".to_owned(),
            ports: Vec::new(),
            owner: None,
            local_addresses: Vec::new(),
            source_nat: Vec::new(),
            weight: mesh_model::Weight::default(),
            draining,
            created: 0,
        }
    }

    fn told_of(before: &Snapshot, change: Change) -> String {
        let event = event(before, &change).unwrap();
        format!("{} {} {}: {}", event.action, event.kind, event.name, event.detail)
    }

    #[test]
    fn a_life() {
        let put = |draining| Change::Put(Object::Endpoint(Arc::new(endpoint(draining))));
        let verdict = |health| Change::Put(Object::Health(EndpointId::from_bits(1), health));
        let mut snapshot = Snapshot::default();
        for (change, expected) in [
            (put(false), "created endpoint web1: 10.50.0.2"),
            (verdict(Health::Healthy), "updated endpoint web1: health=healthy"),
            (verdict(Health::Unhealthy), "updated endpoint web1: health=unhealthy (was healthy)"),
            (put(true), "updated endpoint web1: draining=true (was false)"),
            (Change::Delete(Key::Endpoint(EndpointId::from_bits(1))), "removed endpoint web1: "),
        ] {
            assert_eq!(told_of(&snapshot, change.clone()), expected);
            snapshot.apply(change);
        }
    }
}
