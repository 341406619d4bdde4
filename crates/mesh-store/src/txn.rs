//! What a commit expects and changes.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Bound;

use crate::{Error, Revision};

/// A transaction: if every compare holds, every operation is done, under one revision.
///
/// ```
/// # use mesh_store::Txn;
/// let txn = Txn::new()
///     .expect_absent("service/web")
///     .expect_revision("network/blue", 41)
///     .put("service/web", b"{}".to_vec())
///     .delete_prefix("pending/web/");
/// ```
///
/// As in etcd a key is written at most once: no two puts of a key, no put of a key that is also deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    compares: Vec<Compare>,
    ops: Vec<Op>,
}

/// A condition on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// What must be true of it.
    pub expected: Expected,
}

/// What a compare expects of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The key does not exist.
    Absent,
    /// The key exists, and this revision wrote it last.
    Revision(Revision),
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Absent => f.write_str("no such key"),
            Expected::Revision(revision) => write!(f, "revision {revision}"),
        }
    }
}

/// A change to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Creates or overwrites a key.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Vec<u8>,
    },
    /// Removes a key; nothing happens if it does not exist.
    Delete {
        /// The key.
        key: String,
    },
    /// Removes all keys that start with a prefix.
    DeletePrefix {
        /// The prefix, not empty.
        prefix: String,
    },
}

impl Txn {
    /// A transaction that expects and changes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only if `key` does not exist.
    #[must_use]
    pub fn expect_absent(self, key: impl Into<String>) -> Self {
        self.expect(key, Expected::Absent)
    }

    /// Only if `key` exists and was last written by `mod_revision`.
    #[must_use]
    pub fn expect_revision(self, key: impl Into<String>, mod_revision: Revision) -> Self {
        self.expect(key, Expected::Revision(mod_revision))
    }

    /// Only if `expected` is true of `key`.
    #[must_use]
    pub fn expect(mut self, key: impl Into<String>, expected: Expected) -> Self {
        self.compares.push(Compare { key: key.into(), expected });
        self
    }

    /// Creates or overwrites `key`.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into() });
        self
    }

    /// Removes `key`, if it exists.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }

    /// Removes every key that starts with `prefix`, which must not be empty.
    #[must_use]
    pub fn delete_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.ops.push(Op::DeletePrefix { prefix: prefix.into() });
        self
    }

    /// The conditions, in the order they are checked.
    pub fn compares(&self) -> &[Compare] {
        &self.compares
    }

    /// The changes, in order.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// Whether there is no operation in it (there may be compares).
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Refuses what drivers could not agree on. Every driver calls this before it begins.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        if self.compares.iter().any(|compare| compare.key.is_empty()) {
            return Err(Error::InvalidTxn("a compare of an empty key".to_owned()));
        }
        let mut put = BTreeSet::new();
        for op in &self.ops {
            match op {
                Op::Put { key, .. } | Op::Delete { key } if key.is_empty() => {
                    return Err(Error::InvalidTxn("an empty key".to_owned()));
                }
                Op::DeletePrefix { prefix } if prefix.is_empty() => {
                    return Err(Error::InvalidTxn("deletion of an empty prefix".to_owned()));
                }
                Op::Put { key, .. } if !put.insert(key.as_str()) => {
                    return Err(Error::InvalidTxn(format!("{key} is put twice")));
                }
                _ => {}
            }
        }
        match self.ops.iter().find_map(|op| put_and_deleted(op, &put)) {
            Some(key) => Err(Error::InvalidTxn(format!("{key} is both put and deleted"))),
            None => Ok(()),
        }
    }
}

/// A key of `put` that `op` deletes.
fn put_and_deleted<'a>(op: &Op, put: &BTreeSet<&'a str>) -> Option<&'a str> {
    match op {
        Op::Put { .. } => None,
        Op::Delete { key } => put.get(key.as_str()).copied(),
        Op::DeletePrefix { prefix } => {
            let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
            put.range::<str, _>(from).next().copied().filter(|key| key.starts_with(prefix.as_str()))
        }
    }
}
