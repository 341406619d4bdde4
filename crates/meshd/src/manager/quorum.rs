//! Whether the store answers, which takes a majority of the managers, and who leads them.
//!
//! A manager that was cut off from the others lets its agents go, so that they follow one that was not.

use super::{Manager, state::GUARD};
use mesh_model::NodeId;
use std::{future, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

/// Between two questions.
const EVERY: Duration = Duration::from_secs(1);
/// How long the store may take to answer one.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How long it may be silent: an etcd that elects a leader, or starts again, is back sooner.
const LOST: Duration = Duration::from_secs(3);

/// Whether the store answers.
#[derive(Debug)]
pub(super) struct Quorum(watch::Sender<bool>);

impl Quorum {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(true))
    }

    pub(super) fn is_there(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when it is lost.
    pub(super) async fn lost(&self) {
        // The sender lives in `self`.
        drop(self.0.subscribe().wait_for(|there| !there).await);
    }

    fn set(&self, there: bool) {
        if self.0.send_if_modified(|known| std::mem::replace(known, there) != there) {
            if there {
                tracing::info!("the store answers again: changes are taken");
            } else {
                tracing::warn!("the store has no quorum: changes wait until a majority of managers is back");
            }
        }
    }
}

/// Asks until cancelled.
pub(super) async fn watch(manager: Arc<Manager>, cancel: CancellationToken) -> anyhow::Result<()> {
    let watch = async {
        match &manager.local {
            Some(etcd) => tokio::select! {
                () = ask(&manager) => {}
                () = etcd.ended() => {}
            },
            None => ask(&manager).await,
        }
        // An etcd that was removed from its cluster does not come back.
        manager.quorum.set(false);
        future::pending::<()>().await;
    };
    cancel.run_until_cancelled(watch).await;
    Ok(())
}

async fn ask(manager: &Manager) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut answered = Instant::now();
    loop {
        ticks.tick().await;
        if let Ok(Ok(_)) = timeout(PATIENCE, manager.store.get(GUARD)).await {
            answered = Instant::now();
            manager.state.set_leader(leader(manager).await);
        }
        manager.quorum.set(answered.elapsed() < LOST);
    }
}

/// The manager that leads: whose etcd does, or the only one. With an etcd of somebody else, nobody does.
async fn leader(manager: &Manager) -> Option<NodeId> {
    match (&manager.etcd, &manager.local) {
        (Some(etcd), Some(_)) => {
            let leader = timeout(PATIENCE, etcd.leader()).await.ok()?.ok()??;
            leader.name.parse().ok()
        }
        (Some(_), None) => None,
        (None, _) => Some(manager.identity.node),
    }
}
