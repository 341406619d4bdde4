//! The last snapshot on disk: what a node starts from when no manager answers.

use anyhow::Context;
use mesh_model::Snapshot;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Changes that come close together are written once.
const SETTLE: Duration = Duration::from_millis(300);

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("snapshot.json")
}

/// The snapshot of an earlier life; an empty one if there is none or it can't be read: a manager will send it anew,
/// and until then nothing of the kernel's state is touched.
pub(super) fn load(data_dir: &Path) -> Option<Snapshot> {
    let path = path(data_dir);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
        Err(err) => {
            tracing::error!(path = %path.display(), %err, "cannot read the last snapshot");
            return None;
        }
    };
    match serde_json::from_slice(&text) {
        Ok(snapshot) => Some(snapshot),
        Err(err) => {
            tracing::error!(path = %path.display(), %err, "the last snapshot is damaged: waiting for a manager");
            None
        }
    }
}

/// Writes each new snapshot, with a pause so that a burst of changes costs one write.
pub(super) async fn keep(
    data_dir: PathBuf,
    mut snapshot: watch::Receiver<Arc<Snapshot>>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let path = path(&data_dir);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            changed = snapshot.changed() => changed.context("no snapshots any more")?,
        }
        tokio::select! {
            // The last one is written even when the daemon ends in between.
            () = cancel.cancelled() => {}
            () = tokio::time::sleep(SETTLE) => {}
        }
        let latest = Arc::clone(&snapshot.borrow_and_update());
        let path = path.clone();
        let written = tokio::task::spawn_blocking(move || {
            let text = serde_json::to_string(&*latest)?;
            mesh_cluster::write_private(&path, &text).map_err(std::io::Error::other)
        });
        if let Err(err) = written.await? {
            tracing::error!(%err, "cannot write the snapshot: a restart without a manager would start from an older one");
        }
    }
}
