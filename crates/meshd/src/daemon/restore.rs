//! `cluster restore`: this host becomes the manager again that it was in a backup.
//!
//! The other nodes find it where it always was, know its CA, and take its state for theirs: what they hold and the
//! backup does not know is withdrawn; what the backup knows and is gone is removed by its node. Nodes that joined later
//! are strangers to it, and have to join anew.

use super::{Daemon, check_own_address};
use crate::{
    api::Failure,
    manager::Backup,
    wire::client::{CONNECT, open},
};
use futures_util::future::join_all;
use mesh_api::Restored;
use mesh_cluster::Credentials;
use mesh_model::Node;
use std::sync::Arc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

impl Daemon {
    /// Checks everything first; nothing is written, or nothing of it stays, when anything is wrong.
    pub(crate) async fn restore(&self, backup: &[u8]) -> Result<Restored, Failure> {
        let _entering = self.entering.lock().await;
        self.check_free()?;
        let bad = |e: anyhow::Error| Failure::bad_request(format!("cannot restore: {e:#}"));
        let backup = Backup::parse(backup).map_err(bad)?;
        let header = backup.header.clone();
        let restoration = backup.restore(|address| check_own_address(address).is_ok()).map_err(bad)?;
        check_alone(&restoration.credentials, &restoration.others).await?;
        let entered = match restoration.save(&self.config) {
            Ok(()) => self.enter(restoration.identity, Some(restoration.first)).await,
            Err(e) => Err(e),
        };
        let member = entered.map_err(|e| self.undo(&e))?;
        tracing::info!(revision = header.revision, made_by = %header.node, "restored from a backup");
        self.first_contact(&member).await?;
        Ok(Restored {
            node: member.identity.node,
            name: member.identity.name.to_string(),
            revision: header.revision,
            time: header.time,
            demoted: restoration.demoted.iter().map(|node| node.name.to_string()).collect(),
        })
    }
}

/// A cluster that still has a manager must not get a second history. Who was a worker when the backup was made may be a
/// manager now.
async fn check_alone(credentials: &Credentials, others: &[Arc<Node>]) -> Result<(), Failure> {
    let config = credentials.client_config().map_err(super::refuse)?;
    let connector = TlsConnector::from(Arc::new(config));
    let connector = &connector;
    let alive = join_all(others.iter().map(|node| async move {
        let answered = timeout(CONNECT, open(node.advertise, connector)).await;
        answered.is_ok_and(|opened| opened.is_ok()).then_some(node)
    }));
    match alive.await.into_iter().flatten().next() {
        None => Ok(()),
        Some(node) => Err(Failure::conflict(format!(
            "{} ({}) is a manager of this cluster and answers: join that instead, or stop meshd there to restore here",
            node.name,
            node.advertise.ip()
        ))),
    }
}
