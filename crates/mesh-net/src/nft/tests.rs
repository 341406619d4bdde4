//! Tests against the kernel: each in a network namespace of its own, seen through the `nft` program.

mod listing;
pub(crate) mod namespace;
mod random;
mod transactions;
