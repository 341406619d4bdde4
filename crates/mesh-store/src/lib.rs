//! The manager's state: revisioned keys, compare-and-set transactions and gapless watches.
//!
//! [`Store`] is the seam between the manager and what keeps its records. Its model is etcd's, so that both
//! drivers mean the same: string keys, opaque values, one revision for the whole store that grows by each
//! transaction that changes something, and with each key the revision that last wrote it.
//!
//! The way to follow the state without a gap:
//!
//! ```
//! # use mesh_store::{Change, Error, Store};
//! # async fn follow(store: &dyn Store) -> Result<(), Error> {
//! let (entries, revision) = store.range("network/").await?;
//! let mut watch = store.watch("network/", revision).await?;
//! loop {
//!     let event = watch.next().await?; // one whole transaction
//!     for change in event.changes { /* Change::Put(entry) or Change::Delete { key } */ }
//! }
//! # }
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `store` | the traits [`Store`] and [`Watch`] |
//! | `txn` | [`Txn`]: what a commit expects and changes |
//! | `record` | [`Entry`], [`Change`], [`Event`] |
//! | `embedded` | [`RedbStore`], the driver for one manager: redb, a single file |
//! | `etcd` | [`EtcdStore`], the driver for several managers: an etcd cluster |
//!
//! No driver starts a task of its own: blocking work runs on the runtime's blocking pool, a watch does its work
//! when polled. (The client library under the etcd driver has a task for each connection.)

mod embedded;
mod error;
mod etcd;
mod record;
mod store;
mod txn;

pub use embedded::{Options, RedbStore};
pub use error::Error;
pub use etcd::{
    EtcdClientCertificate, EtcdMember, EtcdMembersChange, EtcdOptions, EtcdRefusal, EtcdStore, EtcdTls,
};
pub use record::{Change, Entry, Event, Revision};
pub use store::{Reply, Store, Watch};
pub use txn::{Compare, Expected, Op, Txn};
