//! The data directory: one daemon's at a time, and one that can be written to.

use anyhow::{Context, bail};
use nix::unistd::{AccessFlags, access};
use std::{
    fs::{File, TryLockError},
    path::Path,
};

/// Takes the directory for as long as the returned file is open; the kernel gives it back however the daemon ends.
///
/// The directory itself is locked: a lock in a file of its own could not be made on a full disk, and a daemon must be
/// able to start there.
pub(crate) fn claim(path: &Path) -> anyhow::Result<File> {
    let directory = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    match directory.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!(
            "another meshd uses {}: end it, or give this one its own --data-dir and --run-dir",
            path.display()
        ),
        Err(TryLockError::Error(e)) => {
            return Err(e).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    access(path, AccessFlags::W_OK | AccessFlags::X_OK)
        .with_context(|| format!("cannot write to {}: choose another --data-dir", path.display()))?;
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner() {
        let directory = tempfile::tempdir().unwrap();
        let first = claim(directory.path()).unwrap();
        let error = format!("{:#}", claim(directory.path()).unwrap_err());
        assert!(error.starts_with("another meshd uses ") && error.contains("--data-dir"), "{error}");
        drop(first);
        claim(directory.path()).unwrap();
    }
}
