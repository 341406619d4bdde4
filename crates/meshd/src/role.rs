//! Makes this process what its node is: starts the manager of a manager node, and tries again until it runs.
//!
//! The agent does not wait for that: a manager whose store is damaged, or without a majority, is a node all the same,
//! with traffic to carry.

use crate::{config::Config, daemon::Member, manager::Manager, supervisor::Spawner};
use mesh_model::Role;
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// First and longest pause between two tries to start the manager.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// What follows the role.
pub(crate) struct Roles {
    pub(crate) config: Config,
    pub(crate) spawner: Spawner,
    pub(crate) member: Arc<Member>,
}

impl Roles {
    /// Runs until cancelled.
    pub(crate) async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        cancel.run_until_cancelled(self.start_manager()).await;
        cancel.cancelled().await;
        Ok(())
    }

    async fn start_manager(&self) {
        let mut pause = BACKOFF.0;
        while self.member.identity.role == Role::Manager && self.member.manager().is_none() {
            let connected = self.member.agent.connected.clone();
            let started =
                Manager::start(&self.config, &self.member.identity, None, connected, &self.spawner).await;
            match started {
                Ok(manager) => self.member.set_manager(Ok(manager)),
                Err(err) => {
                    self.member.set_manager(Err(format!("{err:#}")));
                    sleep(pause).await;
                    pause = (pause * 2).min(BACKOFF.1);
                }
            }
        }
    }
}
