use std::path::PathBuf;

use crate::{EtcdRefusal, Expected, Revision};

/// Why a store refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A compare of the transaction does not hold; nothing was changed. Read anew, decide anew, try again.
    #[error("{key} was changed meanwhile: expected {expected}, found {}", found_text(.found))]
    Conflict {
        /// The first compare that failed.
        key: String,
        /// What the transaction expected.
        expected: Expected,
        /// The key's `mod_revision`; `None`: it does not exist.
        found: Option<Revision>,
    },

    /// The transaction contradicts itself: an error of the caller, which trying again does not mend.
    #[error("malformed transaction: {0}")]
    InvalidTxn(String),

    /// The history a watch needs is gone: read the prefix anew and watch from there.
    #[error("history before revision {oldest} is compacted: read the state anew")]
    Compacted {
        /// The oldest revision a watch may continue after.
        oldest: Revision,
    },

    /// A watch was to continue after a revision that this store has not reached: it comes from another store,
    /// or this one was restored from a backup.
    #[error("revision {after} is from another store: this one is at {current}; read the state anew")]
    FutureRevision {
        /// What was asked for.
        after: Revision,
        /// Where the store is.
        current: Revision,
    },

    /// Another process has the store open.
    #[error("{} is in use by another process: is a meshd with this data directory running?", .path.display())]
    InUse {
        /// The store's file.
        path: PathBuf,
    },

    /// The file is not a store, or not a whole one.
    #[error("{} is damaged or no meshd store ({reason}): restore it from a backup", .path.display())]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },

    /// The file was written by a meshd whose layout this one does not know.
    #[error("{} has format {found}, this meshd knows format {known}: use a newer meshd", .path.display())]
    Format {
        /// The store's file.
        path: PathBuf,
        /// The format of the file.
        found: u64,
        /// The format of this program.
        known: u64,
    },

    /// The file or its directory can't be reached.
    #[error("cannot {action} {}: {reason}", .path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        reason: std::io::Error,
    },

    /// The database failed while in use (a full disk, say). After a failed write it has to be opened anew.
    #[error("the store failed: {0}")]
    Storage(Box<redb::Error>),

    /// The database gave up in a way that only damage explains.
    #[error("the store failed: {0}; its file may be damaged")]
    Crashed(String),

    /// No etcd member did what was asked in the time given. Nothing was changed.
    #[error("no etcd answers at {endpoints} ({reason}): is it running, and reachable from here?")]
    Unreachable {
        /// All that were tried.
        endpoints: String,
        /// What the last one failed with.
        reason: String,
    },

    /// A change was sent and its answer lost: it may or may not have been made, or may yet be.
    #[error(
        "etcd at {endpoint} took a change and did not say whether it made it ({reason}): look before you repeat it"
    )]
    Unknown {
        /// Where it was sent.
        endpoint: String,
        /// What happened to the answer.
        reason: String,
    },

    /// etcd answered, and will not do it.
    #[error("etcd at {endpoint} refused: {reason}")]
    Refused {
        /// Who answered.
        endpoint: String,
        /// What it means, as far as a caller can do something about it.
        why: EtcdRefusal,
        /// etcd's words.
        reason: String,
    },

    /// Something that is no meshd put a key among ours.
    #[error("{key} in etcd is not one of ours: what else writes there?")]
    Foreign {
        /// The key, as text as far as it is.
        key: String,
    },

    /// The options for a store make no sense.
    #[error("{0}")]
    Options(String),

    /// The store was closed, or the program is ending.
    #[error("the store is closed")]
    Closed,
}

fn found_text(found: &Option<Revision>) -> String {
    found.map_or_else(|| "no such key".to_owned(), |revision| format!("revision {revision}"))
}

impl From<redb::Error> for Error {
    fn from(err: redb::Error) -> Self {
        Error::Storage(Box::new(err))
    }
}

/// redb has an error type for each kind of call; a caller of the store can do nothing with the difference.
macro_rules! from_redb {
    ($($kind:ident),*) => {$(
        impl From<redb::$kind> for Error {
            fn from(err: redb::$kind) -> Self {
                redb::Error::from(err).into()
            }
        }
    )*};
}
from_redb!(StorageError, TableError, TransactionError, CommitError);
