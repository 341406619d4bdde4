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

/// A choice among backends for one chain, which has its own counter; none if there are no backends.
pub(super) fn choice(balance: Balance, mut backends: Vec<Data>) -> Option<Source> {
    let count = backends.len() as u32;
    if count <= 1 {
        return backends.pop().map(Source::Constant);
    }
    let key = match balance {
        Balance::Roundrobin => Field::NumgenInc(count),
        Balance::Random => Field::NumgenRandom(count),
    };
    Some(Source::Inline { key, map: Set::slots(backends) })
}
