//! nftables over netlink: declarative tables, the difference between two of them, and one
//! atomic transaction that applies it.
//!
//! meshd owns whole tables. A [`Table`] says what should be in one, [`Batch::update`] works out the
//! messages that lead from the table as it was last written to the table as it should be, and
//! [`Nft::commit`] sends them as a single nfnetlink batch: the kernel takes all of it or none.
//! Nothing is ever found again by matching rule text and no `nft` program is run; to see what
//! somebody else did to a table, compare [`Nft::fingerprint`] with the one taken after the last commit.
//!
//! ```text
//! Table ──► Batch::update(current, desired) ──► Nft::commit ──► kernel
//!   └─ Chain ─ Rule ─ Statement ─ Field           └─ fingerprint, generation: drift
//!   └─ Set (set, map, verdict map) ─ Datum
//! ```
//!
//! `Table` and all it contains print themselves in nft's own syntax, for people and for tests.
//! The kernel interface is `linux/netfilter/nf_tables.h`; Linux 5.15 and later is the aim.

pub(crate) mod attr;
mod batch;
mod counts;
mod datum;
mod display;
mod encode;
mod error;
mod fingerprint;
mod forwarding;
mod rule;
mod socket;
mod table;
mod translations;
mod uapi;

#[cfg(test)]
pub(crate) mod tests;

pub use batch::{Batch, diff};
pub use counts::Count;
pub use datum::{Data, Datum, Type, ether_type};
pub use error::NftError;
pub use forwarding::{ForwardChain, Passage};
pub use rule::{
    CtDirection, Field, MarkKind, NatKind, Rule, Source, SourceHash, Statement, Verdict, ct_status, icmpv6,
};
pub use socket::Nft;
pub use table::{
    Base, Chain, ChainKind, Family, Hook, Limit, PerElement, Policy, Set, SetKind, Table, Value,
};
