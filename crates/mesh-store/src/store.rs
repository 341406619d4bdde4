//! The seam between the manager and a driver.

use std::future::Future;
use std::pin::Pin;

use crate::{Entry, Error, Event, Revision, Txn};

/// A driver's answer, boxed so that the traits can be used as `dyn`.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Revisioned keys. Held as `Arc<dyn Store>`.
///
/// Reads are linearizable: they see every commit that was acknowledged before they were called.
pub trait Store: Send + Sync + 'static {
    /// The key as it is now, if it exists.
    fn get<'a>(&'a self, key: &'a str) -> Reply<'a, Option<Entry>>;

    /// All keys that start with `prefix` (`""`: all there are) in byte order, as of the returned revision.
    ///
    /// The prefix is compared as text: end it with the separator (`network/`) to mean a folder.
    fn range<'a>(&'a self, prefix: &'a str) -> Reply<'a, (Vec<Entry>, Revision)>;

    /// Does all of `txn` or nothing, and returns once it is durable.
    ///
    /// Returns the transaction's revision. A transaction that changes nothing (no operation, or only deletions of
    /// absent keys) takes no revision: the current one is returned. Dropping the future does not undo a commit
    /// that has begun.
    ///
    /// Errors: [`Error::Conflict`] when a compare does not hold, [`Error::InvalidTxn`] when it contradicts itself,
    /// [`Error::Unknown`] when a driver over a network can't tell whether it was done.
    fn commit(&self, txn: Txn) -> Reply<'_, Revision>;

    /// Follows `prefix`: every transaction with a revision greater than `after` that touches it, in order and
    /// without a gap. To continue from what [`range`](Store::range) returned, pass its revision.
    ///
    /// Errors: [`Error::Compacted`] when the history no longer reaches back to `after`: read anew;
    /// [`Error::FutureRevision`] when `after` is yet to come: it belongs to another store.
    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> Reply<'a, Box<dyn Watch>>;

    /// Forgets all history but the last `keep` revisions, whoever wrote them, and returns the oldest revision that a
    /// watch may now continue after. The keys themselves are not touched.
    fn compact(&self, keep: u64) -> Reply<'_, Revision>;
}

/// A stream of transactions, from [`Store::watch`].
pub trait Watch: Send {
    /// The next transaction that touches the prefix. Waits for as long as there is none.
    ///
    /// Cancel-safe: an event is either returned or comes again. Memory is bounded however slow the caller is: one
    /// that falls behind the history kept gets [`Error::Compacted`] and has to read anew. [`Error::Closed`] once
    /// the store is gone.
    fn next(&mut self) -> Reply<'_, Event>;
}
