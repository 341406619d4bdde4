//! The driver for one manager: redb, a single file, written durably before a commit returns.
//!
//! ```text
//! commit ─► write lock ─► blocking pool: check compares, entries + history + revision, fsync ─► committed
//!                                                                                               │ revision
//! watch ◄── a page of history, read when polled ◄───────────────────────────────────────────────┘
//! ```
//!
//! A watch has no queue: it reads the history at its own pace and is only told that there is more. So it can miss
//! nothing, and a slow one costs no memory.

mod commit;
mod open;
mod tables;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use redb::{Database, ReadableDatabase};
use tokio::sync::{Mutex, watch as signal};
use tokio::task;

use crate::embedded::tables::{ENTRIES, Mark, entry_of};
use crate::embedded::watch::HistoryWatch;
use crate::{Entry, Error, Reply, Revision, Store, Txn, Watch};

/// How a [`RedbStore`] behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How many revisions of history each commit leaves behind for watches.
    pub history: u64,
    /// How much of the file is cached in memory, in bytes.
    pub cache_size: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { history: 10_000, cache_size: 32 << 20 }
    }
}

/// The embedded store. Cheap to clone; the file is closed with the last clone.
#[derive(Clone)]
pub struct RedbStore {
    database: Arc<OpenDatabase>,
}

/// What clones of a store share. Watches hold it weakly: they end when it goes.
struct OpenDatabase {
    dir: PathBuf,
    /// None as long as it can't be opened anew after a failure.
    redb: RwLock<Option<Database>>,
    options: Options,
    /// Makes writers wait here, in order, rather than each on a blocking thread of its own.
    writer: Arc<Mutex<()>>,
    /// The newest durable revision. Only the holder of `writer` sends.
    committed: signal::Sender<Revision>,
}

impl RedbStore {
    /// The store's file inside its directory.
    pub const FILE: &str = "state.redb";

    /// Opens the store in `dir`, a directory of its own; both are made if they don't exist, and only their owner
    /// is left access (0700, 0600).
    ///
    /// The whole file is verified first. Errors: [`Error::InUse`], [`Error::Damaged`], [`Error::Format`],
    /// [`Error::Io`].
    pub async fn open(dir: impl Into<PathBuf>, options: Options) -> Result<Self, Error> {
        let dir = dir.into();
        let path = dir.join(Self::FILE);
        match task::spawn_blocking(move || open::open(&dir, options)).await {
            Ok(database) => Ok(Self { database: Arc::new(database?) }),
            // redb asserts on some kinds of damage.
            Err(err) if err.is_panic() => {
                Err(Error::Damaged { path, reason: "its structure makes no sense".to_owned() })
            }
            Err(_) => Err(Error::Closed),
        }
    }

    /// The file in `dir` that [`open`](Self::open) uses.
    pub fn path(dir: &Path) -> PathBuf {
        dir.join(Self::FILE)
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&OpenDatabase) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let database = Arc::clone(&self.database);
        blocking(move || work(&database)).await
    }

    /// Runs `work` as the only writer. Once begun it runs to its end, whether or not the caller still waits.
    async fn write(
        &self,
        work: impl FnOnce(&OpenDatabase) -> Result<Revision, Error> + Send + 'static,
    ) -> Result<Revision, Error> {
        let turn = Arc::clone(&self.database.writer).lock_owned().await;
        let database = Arc::clone(&self.database);
        blocking(move || {
            let _turn = turn;
            database.recover()?;
            work(&database).inspect_err(|err| database.suspect(err))
        })
        .await
    }
}

impl Store for RedbStore {
    fn get<'a>(&'a self, key: &'a str) -> Reply<'a, Option<Entry>> {
        let key = key.to_owned();
        Box::pin(self.read(move |database| database.get(&key)))
    }

    fn range<'a>(&'a self, prefix: &'a str) -> Reply<'a, (Vec<Entry>, Revision)> {
        let prefix = prefix.to_owned();
        Box::pin(self.read(move |database| database.range(&prefix)))
    }

    fn commit(&self, txn: Txn) -> Reply<'_, Revision> {
        Box::pin(async move {
            txn.validate()?;
            self.write(move |database| database.commit(&txn)).await
        })
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: Revision) -> Reply<'a, Box<dyn Watch>> {
        Box::pin(async move {
            let mut watch = HistoryWatch::new(&self.database, prefix, after);
            watch.fill().await?;
            Ok(Box::new(watch) as Box<dyn Watch>)
        })
    }

    fn compact(&self, keep: u64) -> Reply<'_, Revision> {
        Box::pin(self.write(move |database| database.compact(keep)))
    }
}

impl OpenDatabase {
    /// Works with the database. Nobody closes it meanwhile.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, Error>) -> Result<T, Error> {
        work(self.redb.read().unwrap_or_else(PoisonError::into_inner).as_ref().ok_or(Error::Closed)?)
    }

    /// After a failed write, on a full disk say, redb refuses everything until it is opened anew. Readers wait
    /// meanwhile.
    fn suspect(&self, err: &Error) {
        if matches!(err, Error::Storage(_)) {
            let mut redb = self.redb.write().unwrap_or_else(PoisonError::into_inner);
            // redb locks its file: it is closed before it is opened.
            redb.take();
            // If that fails too, the next write tries again, and says why.
            let _ = self.reopen(&mut redb);
        }
    }

    /// Opens the database anew if it had to be closed. The caller is the only writer.
    fn recover(&self) -> Result<(), Error> {
        let mut redb = self.redb.write().unwrap_or_else(PoisonError::into_inner);
        if redb.is_none() { self.reopen(&mut redb) } else { Ok(()) }
    }

    fn reopen(&self, redb: &mut Option<Database>) -> Result<(), Error> {
        let (opened, revision) = open::database(&self.dir, self.options)?;
        *redb = Some(opened);
        // The write that failed may have reached the disk all the same: watches tell.
        self.committed.send_replace(revision);
        Ok(())
    }

    fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        self.with(|redb| {
            let entries = redb.begin_read()?.open_table(ENTRIES)?;
            Ok(entries.get(key)?.map(|stored| entry_of(key, stored.value())))
        })
    }

    fn range(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), Error> {
        self.with(|redb| range(redb, prefix))
    }
}

fn range(redb: &Database, prefix: &str) -> Result<(Vec<Entry>, Revision), Error> {
    let read = redb.begin_read()?;
    let mut found = Vec::new();
    for item in read.open_table(ENTRIES)?.range(prefix..)? {
        let (key, stored) = item?;
        if !key.value().starts_with(prefix) {
            break;
        }
        found.push(entry_of(key.value(), stored.value()));
    }
    let revision = Mark::Revision.read(&read.open_table(tables::MARKS)?)?;
    Ok((found, revision))
}

/// Runs file work where it holds up no other task.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(err) if err.is_panic() => Err(Error::Crashed(panic_text(err.into_panic().as_ref()))),
        Err(_) => Err(Error::Closed),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it gave up").to_owned()
}
