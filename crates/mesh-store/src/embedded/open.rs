//! Opening the file: permissions, lock, verification, layout.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, RwLock};

use redb::{Database, DatabaseError, ReadableTable, StorageError, TableHandle};
use tokio::sync::{Mutex, watch};

use super::tables::{ENTRIES, FORMAT, HISTORY, MARKS, Mark};
use super::{OpenDatabase, Options, RedbStore};
use crate::{Error, Revision};

/// As in etcd, so that a store has a revision before its first commit.
const FIRST_REVISION: Revision = 1;

pub(super) fn open(dir: &Path, options: Options) -> Result<OpenDatabase, Error> {
    let (redb, revision) = database(dir, options)?;
    Ok(OpenDatabase {
        dir: dir.to_owned(),
        redb: RwLock::new(Some(redb)),
        options,
        writer: Arc::new(Mutex::new(())),
        committed: watch::Sender::new(revision),
    })
}

/// The database itself, and its revision.
pub(super) fn database(dir: &Path, options: Options) -> Result<(Database, Revision), Error> {
    let path = RedbStore::path(dir);
    own(dir, &path)?;
    let redb = Database::builder()
        .set_cache_size(options.cache_size)
        // A plain open trusts the file and may panic later on; the manager's state is small enough to read it all.
        .set_check_integrity_on_open(true)
        .create(&path)
        .map_err(|err| refused(&path, err))?;
    let revision = lay_out(&redb, &path)?;
    Ok((redb, revision))
}

/// Makes directory and file where they are missing, and takes them from everybody else: the state holds keys.
fn own(dir: &Path, path: &Path) -> Result<(), Error> {
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |reason| Error::Io { action, path, reason }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("create", dir))?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(io("open", path))?;
    // Modes at creation don't reach what existed before.
    file.set_permissions(Permissions::from_mode(0o600)).map_err(io("protect", path))?;
    let folder = File::open(dir).map_err(io("open", dir))?;
    folder.set_permissions(Permissions::from_mode(0o700)).map_err(io("protect", dir))?;
    // The file's name has to be as durable as the commits in it.
    folder.sync_all().map_err(io("sync", dir))
}

fn refused(path: &Path, err: DatabaseError) -> Error {
    let path = path.to_owned();
    match err {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => Error::InUse { path },
        DatabaseError::Storage(StorageError::Io(reason)) if !tells_damage(&reason) => {
            Error::Io { action: "open", path, reason }
        }
        other => Error::Damaged { path, reason: other.to_string() },
    }
}

/// redb reports a file of another kind as invalid data, a cut one as an early end.
fn tells_damage(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

/// Makes the tables of a new file, or checks that an old one has them. Returns the current revision.
fn lay_out(redb: &Database, path: &Path) -> Result<Revision, Error> {
    let damaged = |reason: String| Error::Damaged { path: path.to_owned(), reason };
    let write = redb.begin_write()?;
    let fresh = write.list_tables()?.next().is_none();
    if !fresh && !write.list_tables()?.any(|table| table.name() == MARKS.name()) {
        return Err(damaged("another program's database".to_owned()));
    }
    let revision = {
        let open = |err: redb::TableError| damaged(err.to_string());
        write.open_table(ENTRIES).map_err(open)?;
        write.open_table(HISTORY).map_err(open)?;
        let mut marks = write.open_table(MARKS).map_err(open)?;
        if fresh {
            marks.insert(Mark::Format.key(), FORMAT)?;
            marks.insert(Mark::Revision.key(), FIRST_REVISION)?;
            marks.insert(Mark::Compacted.key(), FIRST_REVISION)?;
        }
        let found = marks.get(Mark::Format.key())?.map(|stored| stored.value());
        match found {
            Some(FORMAT) => {}
            Some(found) => return Err(Error::Format { path: path.to_owned(), found, known: FORMAT }),
            None => return Err(damaged("another program's database".to_owned())),
        }
        Mark::Compacted.read(&marks).map_err(|err| damaged(err.to_string()))?;
        Mark::Revision.read(&marks).map_err(|err| damaged(err.to_string()))?
    };
    if fresh {
        write.commit()?
    } else {
        write.abort()?
    }
    Ok(revision)
}
