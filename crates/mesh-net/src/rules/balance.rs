//! The choice of a backend by the kernel.

use crate::nft::{Data, Field, Set, Source};
use mesh_model::{Balance, Endpoint, Snapshot};
use std::sync::Arc;

/// Turns that a backend gets for each one of a backend whose node is suspect.
const TURNS: usize = 4;

/// The backends in the order of their turns: each once, unless only some are lowered. Then the others come again until
/// each has had [`TURNS`].
pub(super) fn turns<'a>(snapshot: &Snapshot, backends: Vec<&'a Arc<Endpoint>>) -> Vec<&'a Arc<Endpoint>> {
    let (lowered, others): (Vec<_>, Vec<_>) = backends.iter().partition(|e| snapshot.is_lowered(e));
    if lowered.is_empty() || others.is_empty() {
        return backends;
    }
    backends.into_iter().chain(others.repeat(TURNS - 1)).collect()
}

/// The choice among backends for one chain, which has its own counter; nothing if there are no backends.
///
/// The second choice is for packets that meet a change of the chain: they are still in the rules of before, whose own
/// map has nothing for them any more once the change is committed. A constant has no such moment; without it they would
/// not be translated, and the host would refuse the connection.
pub(super) fn choices(balance: Balance, backends: Vec<Data>) -> Vec<Source> {
    let count = backends.len() as u32;
    let first = backends.first().cloned().map(Source::Constant);
    let key = match balance {
        _ if count <= 1 => return first.into_iter().collect(),
        Balance::Roundrobin => Field::NumgenInc(count),
        Balance::Random => Field::NumgenRandom(count),
    };
    [Source::Inline { key, map: Set::slots(backends) }].into_iter().chain(first).collect()
}
