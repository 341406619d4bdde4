//! Notices endpoints of this node whose process or namespace is gone, or which should never have been, and removes
//! them.

use super::{Agent, pidfd::process_end};
use crate::api::Failure;
use mesh_model::{EndpointId, Snapshot, Target};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// Pause before an endpoint that could not be removed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Watches the targets of an agent's endpoints.
pub(super) struct Targets {
    agent: Arc<Agent>,
    /// One task for each endpoint that is attached to a process: it ends with the process.
    processes: JoinSet<EndpointId>,
    watched: BTreeMap<EndpointId, AbortHandle>,
    removals: JoinSet<EndpointId>,
    removing: BTreeSet<EndpointId>,
}

impl Targets {
    pub(super) fn new(agent: Arc<Agent>) -> Self {
        Self {
            agent,
            processes: JoinSet::new(),
            watched: BTreeMap::new(),
            removals: JoinSet::new(),
            removing: BTreeSet::new(),
        }
    }

    pub(super) async fn run(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        let mut applied = self.agent.applied.subscribe();
        loop {
            let latest = Arc::clone(&applied.borrow_and_update());
            for endpoint in &latest.vanished {
                self.remove(*endpoint, "its process or network namespace is gone");
            }
            let snapshot = self.agent.snapshot();
            for endpoint in self.agent.disowned.in_snapshot(&snapshot) {
                self.remove(endpoint, "no manager confirmed it when it was made");
            }
            self.watch_processes(&snapshot);
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                changed = applied.changed() => changed?,
                // An aborted task is of an endpoint that is gone already.
                Some(ended) = self.processes.join_next() => if let Ok(endpoint) = ended {
                    self.watched.remove(&endpoint);
                    self.remove(endpoint, "its process has ended");
                },
                Some(removed) = self.removals.join_next() => {
                    self.removing.remove(&removed?);
                }
            }
        }
    }

    fn remove(&mut self, endpoint: EndpointId, why: &str) {
        if !self.removing.insert(endpoint) {
            return;
        }
        tracing::info!(%endpoint, why, "removing the endpoint");
        let agent = Arc::clone(&self.agent);
        self.removals.spawn(async move {
            if let Err(err) = agent.forget(endpoint).await {
                tracing::warn!(%endpoint, err = Failure::text(&err), "cannot remove the endpoint now");
                sleep(RETRY).await;
            }
            endpoint
        });
    }

    fn watch_processes(&mut self, snapshot: &Snapshot) {
        self.watched.retain(|id, task| {
            let kept = snapshot.endpoints.contains_key(id);
            if !kept {
                task.abort();
            }
            kept
        });
        let own = snapshot.endpoints.values().filter(|e| e.node == self.agent.identity.node);
        for endpoint in own.filter(|e| !self.removing.contains(&e.id)) {
            if let Target::Pid(pid) = endpoint.target {
                let (id, processes) = (endpoint.id, &mut self.processes);
                self.watched.entry(id).or_insert_with(|| {
                    processes.spawn(async move {
                        process_end(pid).await;
                        id
                    })
                });
            }
        }
    }
}
