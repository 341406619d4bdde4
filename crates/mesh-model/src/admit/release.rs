//! What is given back by changes: addresses of endpoints and VIPs, which rest before they are given out again.

use crate::{Change, Key, NetworkId, Object, Snapshot};
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

/// The changes that go with `changes`, in the same transaction: the record of what they give back.
pub fn release(before: &Snapshot, changes: &[Change], now: u64) -> Vec<Change> {
    let mut given_back: BTreeMap<NetworkId, Vec<IpAddr>> = BTreeMap::new();
    for change in changes {
        let (key, after) = match change {
            Change::Put(object) => (object.key(), held(object)),
            Change::Delete(key) => (*key, Vec::new()),
        };
        for (network, address) in held_at(before, key) {
            if !after.contains(&(network, address)) {
                given_back.entry(network).or_default().push(address);
            }
        }
    }
    let removed = |network: NetworkId| changes.contains(&Change::Delete(Key::Network(network)));
    let forgotten = before.released.keys().copied().filter(|network| removed(*network));
    let forgotten = forgotten.map(|network| Change::Delete(Key::Released(network)));
    let recorded = given_back.into_iter().filter(|(network, _)| !removed(*network));
    let recorded = recorded.map(|(network, addresses)| {
        let known = before.released.get(&network).map(Arc::as_ref).cloned().unwrap_or_default();
        Change::Put(Object::Released(network, Arc::new(known.with(&addresses, now))))
    });
    forgotten.chain(recorded).collect()
}

fn held_at(snapshot: &Snapshot, key: Key) -> Vec<(NetworkId, IpAddr)> {
    let object = match key {
        Key::Endpoint(id) => snapshot.endpoints.get(&id).cloned().map(Object::Endpoint),
        Key::Service(id) => snapshot.services.get(&id).cloned().map(Object::Service),
        _ => None,
    };
    object.as_ref().map_or_else(Vec::new, held)
}

/// The addresses that a record has on networks.
fn held(object: &Object) -> Vec<(NetworkId, IpAddr)> {
    match object {
        Object::Endpoint(endpoint) => endpoint.addresses.iter().map(|a| (endpoint.network, *a)).collect(),
        Object::Service(service) => {
            let on = service.networks.iter();
            on.flat_map(|on| on.vips.iter().map(|vip| (on.network, *vip))).collect()
        }
        _ => Vec::new(),
    }
}
