//! Attaching and detaching this node's endpoints.

use super::{Agent, ports::Ports};
use crate::{
    api::Failure,
    wire::{CatchUp, Committed, CommittedEndpoint, Confirm, Confirmed},
};
use mesh_api::Removed;
use mesh_model::{Endpoint, EndpointId, EndpointSpec, EndpointUpdate, Snapshot, admit};
use mesh_net::netns::{TargetNamespace, established, reset};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    select,
    time::{Instant, sleep, timeout},
};

/// How long this node may take to apply a change of its own.
const APPLY: Duration = Duration::from_secs(10);
/// How often a draining endpoint's connections are counted.
const COUNT: Duration = Duration::from_millis(50);

/// Endpoints that this node's users were told had failed, though a manager may have committed them: no answer came.
/// They are removed whenever they show up. Their number is that of such failures, and they end with the daemon.
#[derive(Debug, Default)]
pub(super) struct Disowned(Mutex<BTreeMap<EndpointId, u64>>);

impl Disowned {
    fn add(&self, id: EndpointId, namespace_inode: u64) {
        self.lock().insert(id, namespace_inode);
    }

    /// Those that may be on a namespace.
    fn of(&self, namespace_inode: u64) -> Vec<EndpointId> {
        let known = self.lock();
        known.iter().filter(|(_, inode)| **inode == namespace_inode).map(|(id, _)| *id).collect()
    }

    /// Those that were committed after all.
    pub(super) fn in_snapshot(&self, snapshot: &Snapshot) -> Vec<EndpointId> {
        self.lock().keys().copied().filter(|id| snapshot.endpoints.contains_key(id)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<EndpointId, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Agent {
    /// Attaches a container that is there: allocated and committed by a manager, made by the data plane, seen by every node that
    /// answers.
    pub(crate) async fn connect(&self, spec: EndpointSpec) -> Result<Arc<Endpoint>, Failure> {
        // Drawn here, so that this node knows what to take back when no answer comes.
        self.connect_as(EndpointId::from_bits(rand::random()), spec).await
    }

    /// The same, with an ID that the caller chooses.
    pub(crate) async fn connect_as(
        &self,
        id: EndpointId,
        mut spec: EndpointSpec,
    ) -> Result<Arc<Endpoint>, Failure> {
        let target = spec.target.clone();
        let opened = tokio::task::spawn_blocking(move || TargetNamespace::open(&target)).await;
        let opened = opened.map_err(|e| Failure::internal(e.to_string()))?;
        spec.namespace_inode = opened.map_err(|e| Failure::bad_request(e.to_string()))?.inode();
        // What is gone may have the same ports.
        for id in self.disowned.of(spec.namespace_inode).into_iter().chain(self.superseded_by(&spec).await?) {
            self.forget(id).await?;
        }
        let _held = self.hold_ports(&spec).await?;
        let committed = self.link.put::<CommittedEndpoint>(&format!("/v1/agent/endpoints/{id}"), &spec).await;
        let committed = committed.inspect_err(|failure| {
            if failure.is_unavailable() {
                self.disowned.add(id, spec.namespace_inode);
            }
        })?;
        if let Err(failure) = self.attached(id, committed.revision).await {
            if self.forget(id).await.is_err() {
                self.disowned.add(id, spec.namespace_inode);
            }
            return Err(failure);
        }
        self.confirm(committed.revision).await;
        Ok(committed.value)
    }

    /// Endpoints that are gone, though nobody has noticed yet. Who attaches the same in another namespace says that the one of
    /// before is gone, though its file may be kept. And the kernel gives out the numbers of namespaces again, after a restart
    /// of the host from the first on: the one that has this number now need not be the one that a record means.
    async fn superseded_by(&self, spec: &EndpointSpec) -> Result<Vec<EndpointId>, Failure> {
        let snapshot = self.snapshot();
        let own = snapshot.endpoints.values().filter(|e| e.node == self.identity.node);
        let (same, others): (Vec<_>, Vec<_>) = own.partition(|e| e.namespace_inode == spec.namespace_inode);
        let mut superseded: Vec<EndpointId> =
            others.iter().filter(|e| e.owner.is_some() && e.owner == spec.owner).map(|e| e.id).collect();
        let elsewhere = same.into_iter().filter(|e| e.target != spec.target).cloned();
        let elsewhere: Vec<Arc<Endpoint>> = elsewhere.collect();
        let vanished = tokio::task::spawn_blocking(move || {
            elsewhere.iter().filter(|e| mesh_net::has_vanished(e)).map(|e| e.id).collect::<Vec<_>>()
        });
        superseded.extend(vanished.await.map_err(|e| Failure::internal(e.to_string()))?);
        Ok(superseded)
    }

    /// Holds the ports that an endpoint is to publish until it does. Whoever has one by right is told by its name; what
    /// has it otherwise, by its process.
    async fn hold_ports(&self, spec: &EndpointSpec) -> Result<impl Send + use<>, Failure> {
        let snapshot = self.snapshot();
        let ports = admit::endpoint_ports(&snapshot, self.identity.node, &spec.ports)?;
        let of_service = admit::host_ports_to_come(&snapshot, self.identity.node, spec);
        let owner = spec.owner.clone();
        let held = tokio::task::spawn_blocking(move || {
            Ports::are_free(&of_service)?;
            Ports::try_hold(&ports, owner.as_deref())
        });
        let held = held.await;
        held.map_err(|e| Failure::internal(e.to_string()))?.map_err(Failure::conflict)
    }

    /// Makes an endpoint for a container that is not there yet: its interface waits for the container's engine. The
    /// caller chooses the ID, so that asking again is the same endpoint.
    pub(crate) async fn stage(&self, id: EndpointId, spec: &EndpointSpec) -> Result<Arc<Endpoint>, Failure> {
        let _held = self.hold_ports(spec).await?;
        let committed: CommittedEndpoint = self.link.put(&format!("/v1/agent/endpoints/{id}"), spec).await?;
        if let Err(failure) = self.attached(id, committed.revision).await {
            // What can't be taken back now is found by the engine's next look.
            drop(self.forget(id).await);
            return Err(failure);
        }
        self.confirm(committed.revision).await;
        Ok(committed.value)
    }

    /// Changes an endpoint of this node, and returns when its data plane has followed.
    pub(crate) async fn update(
        &self,
        id: EndpointId,
        update: &EndpointUpdate,
    ) -> Result<CommittedEndpoint, Failure> {
        let committed: CommittedEndpoint =
            self.link.patch(&format!("/v1/agent/endpoints/{id}"), update).await?;
        self.applied(committed.revision, APPLY).await?;
        Ok(committed)
    }

    async fn attached(&self, endpoint: EndpointId, revision: u64) -> Result<(), Failure> {
        let applied = self.applied(revision, APPLY).await?;
        if let Some(text) = applied.failures.get(&endpoint) {
            return Err(Failure::conflict(text.clone()));
        }
        match &applied.ended_early {
            Some(why) => Err(Failure::conflict(format!("this node can attach nothing at present: {why}"))),
            None => Ok(()),
        }
    }

    /// Offers an endpoint of this node no new connections, and returns when no node that answers sends any.
    pub(crate) async fn drain(&self, endpoint: EndpointId) -> Result<Arc<Endpoint>, Failure> {
        let path = format!("/v1/agent/endpoints/{endpoint}/drain");
        let committed: CommittedEndpoint = self.link.post(&path, &()).await?;
        self.applied(committed.revision, APPLY).await?;
        self.confirm(committed.revision).await;
        Ok(committed.value)
    }

    /// Detaches an endpoint of this node. Unless forced, a replica is drained first: connections in flight have
    /// until the service's drain timeout.
    pub(crate) async fn disconnect(&self, endpoint: &Endpoint, force: bool) -> Result<Removed, Failure> {
        let service = endpoint.service.and_then(|id| self.snapshot().services.get(&id).cloned());
        if let (Some(service), false) = (service, force) {
            match self.drain(endpoint.id).await {
                Ok(_) => self.in_flight(endpoint, Duration::from_millis(service.drain_timeout_ms)).await,
                // Somebody else removes it at this moment.
                Err(failure) if failure.is_not_found() => {}
                Err(failure) => return Err(failure),
            }
        }
        let revision = self.forget(endpoint.id).await?;
        self.confirm(revision).await;
        Ok(Removed { removed: true, addresses: endpoint.addresses.clone() })
    }

    /// Removes the record and waits until this node's data plane has followed.
    pub(crate) async fn forget(&self, endpoint: EndpointId) -> Result<u64, Failure> {
        let gone: Committed<()> = self.link.delete(&format!("/v1/agent/endpoints/{endpoint}")).await?;
        self.applied(gone.revision, APPLY).await?;
        Ok(gone.revision)
    }

    /// Waits until the endpoint's last TCP connection has ended; those that are left when the time is up are reset, so that
    /// clients need not wait for answers that won't come.
    async fn in_flight(&self, endpoint: &Endpoint, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let (target, addresses) = (endpoint.target.clone(), endpoint.addresses.clone());
            let count = tokio::task::spawn_blocking(move || {
                let target = TargetNamespace::open(&target)?;
                addresses
                    .iter()
                    .try_fold(0, |sum, a| Ok::<_, mesh_net::Error>(sum + established(&target, *a)?))
            });
            // A target that can't be opened any more has no connections.
            let open = count.await.ok().and_then(Result::ok).unwrap_or(0);
            if open == 0 {
                return;
            }
            if Instant::now() >= deadline {
                return cut(endpoint).await;
            }
            sleep(COUNT).await;
        }
    }

    /// Waits until the other nodes have a revision. Those that lag are logged: what was asked for is committed, and
    /// they will follow.
    pub(crate) async fn confirm(&self, revision: u64) {
        match self.link.post::<Confirmed>("/v1/agent/confirm", &Confirm { revision, except: None }).await {
            Ok(confirmed) if confirmed.lagging.is_empty() => {}
            Ok(confirmed) => tracing::warn!(nodes = ?confirmed.lagging, revision, "nodes lag behind"),
            Err(err) => tracing::warn!(err = err.text(), revision, "other nodes did not confirm"),
        }
    }

    /// Waits until this node's data plane has followed a change.
    pub(crate) async fn applied(
        &self,
        revision: u64,
        limit: Duration,
    ) -> Result<Arc<super::Applied>, Failure> {
        let mut applied = self.applied.subscribe();
        let reached = async {
            select! {
                biased;
                reached = applied.wait_for(|applied| applied.revision >= revision) => reached.map(|a| Arc::clone(&a)).ok(),
                () = self.catch_up(revision) => None,
            }
        };
        timeout(limit, reached).await.ok().flatten().ok_or_else(|| {
            Failure::unavailable(
                "the change is made, but this node is slow to apply it: see its log and 'meshctl status'",
            )
        })
    }

    /// Asks to be told of a revision, each manager that is connected: what concerns this node is on its way, of other
    /// revisions a manager tells only when asked.
    async fn catch_up(&self, revision: u64) {
        let mut connection = self.link.watch();
        loop {
            connection.mark_unchanged();
            let _told = self.link.post::<()>("/v1/agent/catch-up", &CatchUp { revision }).await;
            if connection.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Ends the connections that an endpoint still has.
async fn cut(endpoint: &Endpoint) {
    let (target, addresses) = (endpoint.target.clone(), endpoint.addresses.clone());
    let cut = tokio::task::spawn_blocking(move || {
        let target = TargetNamespace::open(&target)?;
        addresses.iter().try_fold(0, |sum, a| Ok::<_, mesh_net::Error>(sum + reset(&target, *a)?))
    });
    match cut.await {
        Ok(Ok(connections)) => {
            tracing::info!(endpoint = %endpoint.name, connections, "drained as long as it may: the rest is reset");
        }
        Ok(Err(err)) => tracing::warn!(endpoint = %endpoint.name, %err, "connections are left that hang"),
        Err(err) => tracing::warn!(endpoint = %endpoint.name, %err, "connections are left that hang"),
    }
}
