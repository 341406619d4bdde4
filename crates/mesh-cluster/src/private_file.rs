//! Files that hold secrets: read by their owner only, replaced as a whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::Error;

/// Writes `text` to `path` with mode 0600, durably: after a crash the file holds the old text or the new one.
///
/// The directory must exist. Only one process may write a given file at a time.
pub fn write_private(path: &Path, text: &str) -> Result<(), Error> {
    let failed = |reason| Error::File { action: "write", path: path.to_owned(), reason };
    replace(path, text).map_err(failed)
}

/// The text of `path`; `None` if there is no such file.
pub fn read_private(path: &Path) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(reason) => Err(Error::File { action: "read", path: path.to_owned(), reason }),
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    let mut draft_name = name.to_owned();
    draft_name.push(".new");
    let draft = path.with_file_name(draft_name);
    // What a crash left behind may have another mode or owner: it is not written to.
    match fs::remove_file(&draft) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
        _ => {}
    }
    let written = write_new(&draft, text).and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&draft);
    }
    written?;
    sync_folder(path)
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Makes the rename durable.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
