//! Containers that Docker has given up on because meshd could not help just then.
//!
//! Docker waits fifteen seconds for a driver that is not there, and for an answer of the managers a few. Then a container
//! with a restart policy is no better off than any other: Docker logs why it did not start, and never tries again. That is
//! what a host meets whose Docker starts before its meshd does, and every worker that boots sooner than the managers. So
//! once this node can attach containers, those are started in Docker's stead.

use super::{
    Docker,
    api::{Api, Inspected},
};
use crate::api::Failure;
use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

/// What a refusal tells people, and by which it is known again in what Docker keeps of it.
pub(super) const LATER: &str =
    "containers that have run before, with a restart policy, are started again then";
/// What Docker says of a driver that it did not find, or that did not answer.
const NO_DRIVER: [&str; 2] = ["plugin \"meshd\" not found", "meshd.sock"];
/// How often it is looked, and for how long after Docker may have given up on something: it is about to note it.
const LOOK: Duration = Duration::from_secs(2);
const AFTERMATH: Duration = Duration::from_secs(30);
/// The longest pause before a container that did not start is tried again; less than [`AFTERMATH`].
const PAUSE: Duration = Duration::from_secs(20);
/// How many are started at once.
const AT_ONCE: usize = 8;

/// Runs as long as the daemon.
pub(super) async fn run(docker: &Docker) {
    let mut attempts = Attempts::default();
    // What Docker tried before this daemon ran has failed.
    let mut until = Instant::now() + AFTERMATH;
    loop {
        let connected = docker.daemon.member().is_ok_and(|member| member.agent.link.is_connected());
        if !connected || docker.refused.swap(false, Ordering::Relaxed) {
            until = Instant::now() + AFTERMATH;
        }
        if connected && Instant::now() < until {
            match docker.given_up_on().await {
                Ok(containers) => {
                    let due = attempts.due(containers, Instant::now());
                    if !due.is_empty() {
                        start(&docker.api, due).await;
                        // What failed again is tried again.
                        until = Instant::now() + AFTERMATH;
                    }
                }
                // It starts its containers before it answers.
                Err(_) => until = Instant::now() + AFTERMATH,
            }
        }
        sleep(LOOK).await;
    }
}

/// When each container may be tried again: what fails is tried less and less often.
#[derive(Default)]
struct Attempts(BTreeMap<String, (Instant, Duration)>);

impl Attempts {
    /// Those that are to be tried now, a few at a time: a start waits for the managers and for this node.
    fn due(&mut self, containers: Vec<Inspected>, now: Instant) -> Vec<Inspected> {
        self.0.retain(|id, _| containers.iter().any(|container| container.id == *id));
        let is_due = |container: &Inspected| self.0.get(&container.id).is_none_or(|(next, _)| *next <= now);
        let due: Vec<Inspected> = containers.into_iter().filter(is_due).take(AT_ONCE).collect();
        for container in &due {
            let pause = self.0.get(&container.id).map_or(LOOK, |(_, pause)| (*pause * 2).min(PAUSE));
            self.0.insert(container.id.clone(), (now + pause, pause));
        }
        due
    }
}

impl Docker {
    async fn given_up_on(&self) -> Result<Vec<Inspected>, Failure> {
        let networks = self.api.networks().await?;
        let mut containers = Vec::new();
        if networks.is_empty() {
            return Ok(containers);
        }
        for listed in self.api.exited(networks.iter().map(|network| network.id.as_str())).await? {
            match self.api.inspect(&listed.id).await {
                Ok(container) if is_given_up_on(&container) => containers.push(container),
                // One that Docker is at work on keeps nobody else waiting.
                _ => {}
            }
        }
        Ok(containers)
    }
}

/// Whether it is meshd's doing that a container which is to run does not. Who stops one by hand leaves no error.
fn is_given_up_on(container: &Inspected) -> bool {
    let error = &container.state.error;
    let ours = error.contains(LATER) || NO_DRIVER.iter().any(|no_driver| error.contains(no_driver));
    ours && container.host_config.restart_policy.is_some() && !container.state.running
}

async fn start(api: &Api, containers: Vec<Inspected>) {
    let mut starting = JoinSet::new();
    for container in containers {
        let api = api.clone();
        starting.spawn(async move {
            let name = container.name.trim_start_matches('/');
            match api.start(&container.id).await {
                Ok(()) => tracing::info!(container = name, "started: Docker had given up on it"),
                Err(failure) => {
                    tracing::warn!(
                        container = name,
                        err = failure.text(),
                        "Docker can't start it now either"
                    );
                }
            }
        });
    }
    while starting.join_next().await.is_some() {}
}
