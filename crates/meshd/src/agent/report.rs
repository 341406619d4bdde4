//! What the agent tells the managers of itself.

use super::Agent;
use crate::wire;
use mesh_model::{EndpointId, Health, Snapshot};
use mesh_proxy::Report;
use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// Pause before verdicts that could not be sent are sent again.
const RETRY: Duration = Duration::from_secs(1);
/// How long what is found in targets is to be found before it is told: longer than from one full pass to the next.
const SETTLED: Duration = Duration::from_secs(5);

/// Tells the managers which revision this node runs from, after each change and on each new connection.
pub(super) async fn applied(agent: Arc<Agent>, cancel: CancellationToken) -> anyhow::Result<()> {
    let mut applied = agent.applied.subscribe();
    let mut connection = agent.link.watch();
    loop {
        let revision = applied.borrow_and_update().revision;
        if connection.borrow_and_update().is_some()
            && let Err(err) = agent.link.post::<()>("/v1/agent/applied", &wire::Applied { revision }).await
        {
            tracing::debug!(err = err.text(), revision, "the manager was not told what is applied");
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            changed = applied.changed() => changed?,
            changed = connection.changed() => changed?,
        }
    }
}

/// Tells the managers what the targets of this node's endpoints are like, where the records say otherwise.
pub(super) async fn attached(agent: Arc<Agent>, cancel: CancellationToken) -> anyhow::Result<()> {
    let mut applied = agent.applied.subscribe();
    let mut connection = agent.link.watch();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            changed = applied.changed() => changed?,
            changed = connection.changed() => changed?,
        }
        if connection.borrow().is_none() || news(&agent).is_empty() {
            continue;
        }
        // A container's engine may be about to make its routes: what is seen for a moment is nobody's business.
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = sleep(SETTLED) => {}
        }
        applied.mark_unchanged();
        let source_nat = news(&agent);
        if source_nat.is_empty() {
            continue;
        }
        let report = wire::AttachedReport { source_nat };
        if let Err(err) = agent.link.post::<wire::Committed<()>>("/v1/agent/attached", &report).await {
            tracing::debug!(err = err.text(), "the manager was not told what targets are like");
        }
    }
}

/// What is known of targets and not said in the records of their endpoints.
fn news(agent: &Agent) -> Vec<(EndpointId, Vec<IpAddr>)> {
    let (snapshot, applied) = (agent.snapshot(), agent.applied.borrow().clone());
    let differs = |(id, found): &(&EndpointId, &Vec<IpAddr>)| {
        snapshot.endpoints.get(id).is_some_and(|endpoint| endpoint.source_nat != **found)
    };
    applied.source_nat.iter().filter(differs).map(|(id, found)| (*id, found.clone())).collect()
}

/// Verdicts of this node's own checks.
pub(super) type OwnHealth = BTreeMap<EndpointId, Health>;

/// Tells the verdicts of this node's checks: this node at once, the managers each change, and all of them on each new
/// connection.
pub(super) async fn health(
    agent: Arc<Agent>,
    mut verdicts: mpsc::Receiver<Report>,
    own: watch::Sender<Arc<OwnHealth>>,
    resend: Arc<Notify>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let mut connection = agent.link.watch();
    let mut unsent = OwnHealth::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            verdict = verdicts.recv() => {
                let Some((endpoint, health)) = verdict else { anyhow::bail!("no verdicts any more") };
                let mut new = OwnHealth::from([(endpoint, health)]);
                while let Ok((endpoint, health)) = verdicts.try_recv() {
                    new.insert(endpoint, health);
                }
                unsent.extend(&new);
                learn(&own, &new, &agent.snapshot());
            }
            changed = connection.changed() => {
                changed?;
                resend.notify_one();
            }
            () = sleep(RETRY), if !unsent.is_empty() => {}
        }
        if connection.borrow_and_update().is_none() || unsent.is_empty() {
            continue;
        }
        let report = wire::HealthReport { endpoints: unsent.iter().map(|(e, h)| (*e, *h)).collect() };
        match agent.link.post::<wire::Committed<()>>("/v1/agent/health", &report).await {
            Ok(_) => unsent.clear(),
            Err(err) => tracing::warn!(err = err.text(), "the manager was not told of health"),
        }
    }
}

/// Keeps the newest verdict on each endpoint that there is.
fn learn(own: &watch::Sender<Arc<OwnHealth>>, new: &OwnHealth, snapshot: &Snapshot) {
    own.send_modify(|own| {
        let own = Arc::make_mut(own);
        own.extend(new);
        own.retain(|endpoint, _| snapshot.endpoints.contains_key(endpoint));
    });
}
