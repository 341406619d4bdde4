//! The choice of a backend by the kernel.

use crate::nft::{Data, Field, Set, Source};
use mesh_model::Balance;

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
