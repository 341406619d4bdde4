//! The last snapshot on disk: what a node starts from when no manager answers.
//!
//! Two files hold it, each the snapshot and the SHA-256 of it on a line of its own: `snapshot.json` and, written after
//! it, `snapshot.json.copy`. A disk that tears one of them costs nothing. Both hold the same state, rather than one an
//! older: starting from an older one would take back what was right in the kernel.

use super::problem::Problem;
use anyhow::Context;
use mesh_cluster::{Fingerprint, write_private};
use mesh_model::Snapshot;
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Changes that come close together are written once.
const SETTLE: Duration = Duration::from_millis(300);

/// Pause before a snapshot that could not be written is written again.
const RETRY: Duration = Duration::from_secs(5);

/// The newest first.
const FILES: [&str; 2] = ["snapshot.json", "snapshot.json.copy"];

/// The snapshot of an earlier life; none if there is none or it can't be read: a manager will send it anew, and until
/// then nothing of the kernel's state is touched.
pub(super) fn load(data_dir: &Path) -> Option<Snapshot> {
    let mut damaged = false;
    for path in FILES.map(|file| data_dir.join(file)) {
        match std::fs::read(&path).map(|text| parse(&text)) {
            Ok(Ok(snapshot)) => {
                if damaged {
                    tracing::warn!(path = %path.display(), revision = snapshot.revision, "using the copy of the last snapshot");
                }
                return Some(snapshot);
            }
            Ok(Err(err)) => {
                tracing::error!(path = %path.display(), err = format!("{err:#}"), "this file of the last snapshot is damaged");
            }
            Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
            Err(err) => tracing::error!(path = %path.display(), %err, "cannot read the last snapshot"),
        }
        damaged = true;
    }
    if damaged {
        tracing::error!(
            "no snapshot on disk is whole: the kernel's state stays as it is until a manager answers"
        );
    }
    None
}

fn parse(text: &[u8]) -> anyhow::Result<Snapshot> {
    let text = std::str::from_utf8(text)?;
    let (snapshot, sum) = text.trim_end().rsplit_once('\n').context("its last line is missing")?;
    anyhow::ensure!(sum == Fingerprint::of(snapshot.as_bytes()).to_string(), "its checksum is another");
    Ok(serde_json::from_str(snapshot)?)
}

fn format(snapshot: &Snapshot) -> serde_json::Result<String> {
    let text = serde_json::to_string(snapshot)?;
    let sum = Fingerprint::of(text.as_bytes());
    Ok(format!("{text}\n{sum}\n"))
}

fn write(data_dir: &Path, snapshot: &Snapshot) -> anyhow::Result<()> {
    let text = format(snapshot)?;
    FILES.iter().try_for_each(|file| write_private(&data_dir.join(file), &text))?;
    Ok(())
}

/// Writes each new snapshot, with a pause so that a burst of changes costs one write. What can't be written is tried
/// again until it can: there may be room later. `unwritten` says why it can't, as long as it is so.
pub(super) async fn keep(
    data_dir: PathBuf,
    mut snapshot: watch::Receiver<Arc<Snapshot>>,
    unwritten: Problem,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let mut failed = false;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            changed = snapshot.changed() => changed.context("no snapshots any more")?,
            () = tokio::time::sleep(RETRY), if failed => {}
        }
        tokio::select! {
            // The last one is written even when the daemon ends in between.
            () = cancel.cancelled() => {}
            () = tokio::time::sleep(SETTLE) => {}
        }
        let latest = Arc::clone(&snapshot.borrow_and_update());
        let data_dir = data_dir.clone();
        failed = unwritten.note(tokio::task::spawn_blocking(move || write(&data_dir, &latest)).await?);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(revision: u64) -> Snapshot {
        Snapshot { revision, ..Snapshot::default() }
    }

    #[test]
    fn either_file_is_enough() {
        let directory = tempfile::tempdir().unwrap();
        let paths = FILES.map(|file| directory.path().join(file));
        assert_eq!(load(directory.path()), None);
        for torn in &paths {
            write(directory.path(), &snapshot(7)).unwrap();
            std::fs::write(torn, "{\"revision\":").unwrap();
            assert_eq!(load(directory.path()), Some(snapshot(7)));
        }
        paths.iter().for_each(|path| std::fs::write(path, "").unwrap());
        assert_eq!(load(directory.path()), None);
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_noticed() {
        let text = format(&snapshot(7)).unwrap();
        assert_eq!(parse(text.as_bytes()).unwrap(), snapshot(7));
        // All but the last line end, which holds nothing.
        for place in 0..text.len() - 1 {
            assert!(parse(&text.as_bytes()[..place]).is_err(), "cut at {place}");
            let mut changed = text.clone().into_bytes();
            changed[place] ^= 0x01;
            assert!(parse(&changed).is_err(), "changed at {place}");
        }
    }
}
