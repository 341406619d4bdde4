//! The layout of the file.

use redb::{ReadableTable, StorageError, TableDefinition};

use crate::{Entry, Revision};

/// The layout below. Raised when it changes in a way that older programs would misread.
pub(super) const FORMAT: u64 = 1;

/// (mod_revision, value).
pub(super) type Stored = (Revision, &'static [u8]);

/// (revision, index in the transaction).
pub(super) type Place = (Revision, u32);

/// (key, value; `None`: deleted).
pub(super) type Changed = (&'static str, Option<&'static [u8]>);

/// What each key holds now.
pub(super) const ENTRIES: TableDefinition<'static, &str, Stored> = TableDefinition::new("entries");

/// Every change above [`Mark::Compacted`].
pub(super) const HISTORY: TableDefinition<'static, Place, Changed> = TableDefinition::new("history");

/// [`Mark`] → number.
pub(super) const MARKS: TableDefinition<'static, &str, u64> = TableDefinition::new("marks");

/// The numbers kept beside the data.
#[derive(Clone, Copy)]
pub(super) enum Mark {
    /// [`FORMAT`] of the file.
    Format,
    /// The newest revision.
    Revision,
    /// The oldest revision a watch may continue after: history holds everything above it.
    Compacted,
}

impl Mark {
    pub(super) fn key(self) -> &'static str {
        match self {
            Mark::Format => "format",
            Mark::Revision => "revision",
            Mark::Compacted => "compacted",
        }
    }

    /// A mark of an opened store: `open` made sure that all are there.
    pub(super) fn read(self, marks: &impl ReadableTable<&'static str, u64>) -> Result<u64, StorageError> {
        let value = marks.get(self.key())?.map(|stored| stored.value());
        value.ok_or_else(|| StorageError::Corrupted(format!("no mark {}", self.key())))
    }
}

pub(super) fn entry_of(key: &str, (mod_revision, value): (Revision, &[u8])) -> Entry {
    Entry { key: key.to_owned(), value: value.to_vec(), mod_revision }
}
