//! What an etcd needs from time to time: its history shortened, certificates renewed.

use super::{Manager, store::external_options};
use mesh_api::StoreSpec;
use mesh_store::Store;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// How often it is looked after.
const EVERY: Duration = Duration::from_secs(5 * 60);
/// Revisions that stay, for managers and agents that were away.
const HISTORY: u64 = 10_000;
/// After this long the child's certificate is replaced, far from its end; sooner where nodes' own live for less than three
/// times as long.
const RENEW: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Looks after the etcd until cancelled; nothing to do for another store.
pub(super) async fn run(manager: Arc<Manager>, cancel: CancellationToken) -> anyhow::Result<()> {
    let work = async {
        // What is just opened needs nothing.
        let mut renewed = Instant::now();
        loop {
            let renew = manager.renewal_of_etcd();
            sleep(renew.min(EVERY)).await;
            if renewed.elapsed() >= renew || manager.local.is_none() {
                match manager.renew_etcd() {
                    Ok(()) => renewed = Instant::now(),
                    Err(err) => tracing::warn!(err = format!("{err:#}"), "no new certificate for etcd"),
                }
            }
            manager.compact().await;
        }
    };
    cancel.run_until_cancelled(work).await;
    cancel.cancelled().await;
    Ok(())
}

impl Manager {
    /// How long the child's certificate is used.
    fn renewal_of_etcd(&self) -> Duration {
        let snapshot = self.state.snapshot();
        let of_nodes = snapshot.cluster.as_ref().map(|cluster| Duration::from_secs(cluster.cert_expiry_s));
        of_nodes.map_or(RENEW, |of_nodes| RENEW.min(of_nodes / 3))
    }

    /// Gives the connections to etcd, and the etcd of this manager, their newest certificates.
    pub(super) fn renew_etcd(&self) -> anyhow::Result<()> {
        match (&self.etcd, &self.local, &self.identity.store) {
            (Some(etcd), Some(local), _) => local.renew(etcd, &self.trust.authority(), &self.trust.trusted()),
            (Some(etcd), None, StoreSpec::External(external)) => {
                match external_options(external, &self.identity)?.tls {
                    Some(tls) => Ok(etcd.renew(tls)?),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// One manager forgets old revisions for all. An etcd of somebody else is compacted by whom it belongs to.
    async fn compact(&self) {
        let leads = self.state.snapshot().leader == Some(self.identity.node);
        let Some(etcd) = self.etcd.as_ref().filter(|_| self.local.is_some() && leads) else { return };
        if let Err(err) = etcd.compact(HISTORY).await {
            tracing::warn!(%err, "etcd keeps more history than it needs");
        }
    }
}
