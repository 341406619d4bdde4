//! What a store holds and what it reports.

/// The store's logical clock: grows with each transaction that changes something, as in etcd. By one in a store of
/// our own; where an etcd is shared, what others write counts as well.
///
/// A store that nothing was ever written to is at revision 1; 0 is before every revision.
pub type Revision = u64;

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Never empty. By habit a path, `network/<id>`.
    pub key: String,
    /// Opaque to the store.
    pub value: Vec<u8>,
    /// The revision of the transaction that last wrote this key.
    pub mod_revision: Revision,
}

/// What a transaction did to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key was created or written anew.
    Put(Entry),
    /// The key, which existed, is gone.
    Delete {
        /// The key.
        key: String,
    },
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Change::Put(entry) => &entry.key,
            Change::Delete { key } => key,
        }
    }
}

/// One transaction as a watch shows it: all its changes under the watched prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The transaction's revision.
    pub revision: Revision,
    /// Never empty; in the order of the transaction's operations.
    pub changes: Vec<Change>,
}
