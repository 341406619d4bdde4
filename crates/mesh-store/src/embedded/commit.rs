//! One transaction: compares, then entries, history and revision together.

use redb::{ReadableTable, StorageError, Table, WriteTransaction};

use super::OpenDatabase;
use super::tables::{Changed, ENTRIES, HISTORY, MARKS, Mark, Place, Stored};
use crate::{Compare, Error, Expected, Op, Revision, Txn};

impl OpenDatabase {
    /// Applies `txn` durably. The caller is the only writer.
    pub(super) fn commit(&self, txn: &Txn) -> Result<Revision, Error> {
        let write = self.with(|redb| Ok(redb.begin_write()?))?;
        let current = Mark::Revision.read(&write.open_table(MARKS)?)?;
        // A dropped write transaction is rolled back: every early return leaves all as it was.
        let revision = current + 1;
        if apply(txn, &write, revision)? == 0 {
            return Ok(current);
        }
        write.open_table(MARKS)?.insert(Mark::Revision.key(), revision)?;
        forget(&write, revision.saturating_sub(self.options.history))?;
        write.commit()?;
        self.committed.send_replace(revision);
        Ok(revision)
    }

    /// Drops all history but the last `keep` revisions; returns the oldest revision a watch may continue after.
    pub(super) fn compact(&self, keep: u64) -> Result<Revision, Error> {
        let write = self.with(|redb| Ok(redb.begin_write()?))?;
        let current = Mark::Revision.read(&write.open_table(MARKS)?)?;
        let oldest = forget(&write, current.saturating_sub(keep))?;
        write.commit()?;
        Ok(oldest)
    }
}

/// Writes what `txn` changes, if its compares hold. Returns the number of keys changed.
fn apply(txn: &Txn, write: &WriteTransaction, revision: Revision) -> Result<u32, Error> {
    let mut entries = write.open_table(ENTRIES)?;
    for compare in txn.compares() {
        check(compare, &entries)?;
    }
    let mut history = Recorder { table: write.open_table(HISTORY)?, revision, count: 0 };
    for op in txn.ops() {
        history.apply(op, &mut entries)?;
    }
    Ok(history.count)
}

fn check(compare: &Compare, entries: &impl ReadableTable<&'static str, Stored>) -> Result<(), Error> {
    let found = entries.get(compare.key.as_str())?.map(|stored| stored.value().0);
    let holds = match compare.expected {
        Expected::Absent => found.is_none(),
        Expected::Revision(revision) => found == Some(revision),
    };
    if holds {
        return Ok(());
    }
    Err(Error::Conflict { key: compare.key.clone(), expected: compare.expected, found })
}

/// Drops the history up to and including `horizon`, unless more is gone already. Returns what is then the oldest
/// revision a watch may continue after.
fn forget(write: &WriteTransaction, horizon: Revision) -> Result<Revision, Error> {
    let mut marks = write.open_table(MARKS)?;
    let compacted = Mark::Compacted.read(&marks)?;
    if horizon <= compacted {
        return Ok(compacted);
    }
    write.open_table(HISTORY)?.retain_in((0, 0)..=(horizon, u32::MAX), |_, _| false)?;
    marks.insert(Mark::Compacted.key(), horizon)?;
    Ok(horizon)
}

/// Applies operations and notes each key they change in the history.
struct Recorder<'txn> {
    table: Table<'txn, Place, Changed>,
    revision: Revision,
    count: u32,
}

type Entries<'txn> = Table<'txn, &'static str, Stored>;

impl Recorder<'_> {
    fn apply(&mut self, op: &Op, entries: &mut Entries<'_>) -> Result<(), Error> {
        match op {
            Op::Put { key, value } => {
                entries.insert(key.as_str(), (self.revision, value.as_slice()))?;
                self.record(key, Some(value))
            }
            Op::Delete { key } => {
                if entries.remove(key.as_str())?.is_none() {
                    return Ok(());
                }
                self.record(key, None)
            }
            Op::DeletePrefix { prefix } => {
                for key in keys_under(prefix, entries)? {
                    entries.remove(key.as_str())?;
                    self.record(&key, None)?;
                }
                Ok(())
            }
        }
    }

    fn record(&mut self, key: &str, value: Option<&[u8]>) -> Result<(), Error> {
        self.table.insert((self.revision, self.count), (key, value))?;
        self.count += 1;
        Ok(())
    }
}

fn keys_under(prefix: &str, entries: &Entries<'_>) -> Result<Vec<String>, StorageError> {
    let mut keys = Vec::new();
    for item in entries.range(prefix..)? {
        let (key, _) = item?;
        if !key.value().starts_with(prefix) {
            break;
        }
        keys.push(key.value().to_owned());
    }
    Ok(keys)
}
