//! A watch: a reader of the history that waits at its end.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use redb::ReadableDatabase;
use tokio::sync::watch as signal;

use super::tables::{HISTORY, MARKS, Mark};
use super::{OpenDatabase, blocking};
use crate::{Change, Entry, Error, Event, Reply, Revision, Watch};

/// How many bytes of keys and values a watch reads ahead. One transaction is read whole, however large.
const PAGE_BYTES: usize = 256 << 10;

/// How many changes are looked at in one read, so that one over a busy history stays short.
const PAGE_CHANGES: usize = 4096;

pub(super) struct HistoryWatch {
    database: Weak<OpenDatabase>,
    committed: signal::Receiver<Revision>,
    prefix: Arc<str>,
    /// Everything up to this revision has been read.
    position: Revision,
    /// Read and not yet handed out.
    page: VecDeque<Event>,
}

struct Page {
    events: VecDeque<Event>,
    /// The last revision looked at, whether or not it touched the prefix.
    position: Revision,
}

impl HistoryWatch {
    pub(super) fn new(database: &Arc<OpenDatabase>, prefix: &str, after: Revision) -> Self {
        Self {
            database: Arc::downgrade(database),
            committed: database.committed.subscribe(),
            prefix: prefix.into(),
            position: after,
            page: VecDeque::new(),
        }
    }

    /// Reads the next page. Does nothing to `self` unless it succeeds.
    pub(super) async fn fill(&mut self) -> Result<(), Error> {
        let database = self.database.upgrade().ok_or(Error::Closed)?;
        let (prefix, after) = (Arc::clone(&self.prefix), self.position);
        let page = blocking(move || database.page(&prefix, after)).await?;
        self.position = page.position;
        self.page = page.events;
        Ok(())
    }
}

impl Watch for HistoryWatch {
    fn next(&mut self) -> Reply<'_, Event> {
        Box::pin(async move {
            loop {
                if let Some(event) = self.page.pop_front() {
                    return Ok(event);
                }
                let position = self.position;
                self.committed.wait_for(|newest| *newest > position).await.map_err(|_| Error::Closed)?;
                self.fill().await?;
            }
        })
    }
}

impl OpenDatabase {
    /// A bounded stretch of the history after `after`, reduced to what touches `prefix`.
    fn page(&self, prefix: &str, after: Revision) -> Result<Page, Error> {
        self.with(|redb| {
            let read = redb.begin_read()?;
            let marks = read.open_table(MARKS)?;
            let (current, oldest) = (Mark::Revision.read(&marks)?, Mark::Compacted.read(&marks)?);
            if after > current {
                return Err(Error::FutureRevision { after, current });
            }
            if after < oldest {
                return Err(Error::Compacted { oldest });
            }
            let mut page = Page { events: VecDeque::new(), position: current };
            let (mut bytes, mut seen, mut last) = (0, 0, after);
            for item in read.open_table(HISTORY)?.range((after + 1, 0)..)? {
                let (place, stored) = item?;
                let (revision, (key, value)) = (place.value().0, stored.value());
                let full = bytes >= PAGE_BYTES || seen >= PAGE_CHANGES;
                if full && revision != last {
                    page.position = last;
                    break;
                }
                last = revision;
                seen += 1;
                if key.starts_with(prefix) {
                    bytes += key.len() + value.map_or(0, <[u8]>::len);
                    page.add(revision, key, value);
                }
            }
            Ok(page)
        })
    }
}

impl Page {
    fn add(&mut self, revision: Revision, key: &str, value: Option<&[u8]>) {
        let key = key.to_owned();
        let change = match value {
            Some(value) => Change::Put(Entry { key, value: value.to_vec(), mod_revision: revision }),
            None => Change::Delete { key },
        };
        match self.events.back_mut() {
            Some(event) if event.revision == revision => event.changes.push(change),
            _ => self.events.push_back(Event { revision, changes: vec![change] }),
        }
    }
}
