//! What Docker and the cluster know of each other's endpoints, brought in line: an interface that Docker has fetched is
//! found in the container, an endpoint that Docker knows nothing of is removed, a container that the cluster knows nothing
//! of is adopted.

use super::{
    Docker,
    api::{Inspected, Network},
    driver::{endpoint_id, owned, owner},
    identity::identity,
};
use crate::{api::Failure, daemon::Member};
use mesh_model::{Container, Endpoint, EndpointId, EndpointSpec, EndpointUpdate, Target};
use mesh_net::netns::TargetNamespace;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};

/// How often it is looked for an interface that Docker is about to fetch: its container's process starts some tens of
/// milliseconds later.
const FETCH: Duration = Duration::from_millis(2);
/// How long it is looked for so closely.
const CLOSELY: Duration = Duration::from_secs(30);
/// How often both sides are compared.
const COMPARE: Duration = Duration::from_secs(5);
/// How often, and how soon again, Docker is asked for a container's names. It does not answer while it starts.
const NAME_TRIES: usize = 30;
const NAME_PAUSE: Duration = Duration::from_secs(2);
/// How long an endpoint may wait for its container before Docker is asked about it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs as long as the daemon. Docker's API may be slow: what waits for it is in nobody's way.
pub(super) async fn run(docker: Arc<Docker>) {
    tokio::join!(settle(&docker), compare(&docker));
}

async fn settle(docker: &Arc<Docker>) {
    let mut closely_until = Instant::now();
    loop {
        let waiting = match docker.daemon.member() {
            Ok(member) => docker.settle(&member).await,
            Err(_) => false,
        };
        if waiting && Instant::now() < closely_until {
            sleep(FETCH).await;
        } else if timeout(COMPARE, docker.joined.notified()).await.is_ok() {
            // A container joins; else nothing happens, or it takes long.
            closely_until = Instant::now() + CLOSELY;
        }
    }
}

async fn compare(docker: &Docker) {
    let mut sightings = Sightings::default();
    loop {
        if let Ok(member) = docker.daemon.member() {
            docker.compare(&member, &mut sightings).await;
        }
        sleep(COMPARE).await;
    }
}

/// When each endpoint of this node was first seen here. Records are dated by the manager's clock, which is not this node's.
#[derive(Default)]
struct Sightings(BTreeMap<EndpointId, Instant>);

impl Sightings {
    fn note(&mut self, there: BTreeSet<EndpointId>, now: Instant) {
        self.0.retain(|id, _| there.contains(id));
        for id in there {
            self.0.entry(id).or_insert(now);
        }
    }

    /// Whether an endpoint has been there for longer than it may wait for its container.
    fn is_old(&self, id: EndpointId, now: Instant) -> bool {
        self.0.get(&id).is_some_and(|first| now.duration_since(*first) > PATIENCE)
    }
}

/// Endpoints that Docker has had taken off: their records are gone, but Docker shows them until it has heard so. By its IDs,
/// which are never used again.
#[derive(Default)]
pub(super) struct Left(Mutex<BTreeSet<String>>);

impl Left {
    pub(super) fn note(&self, id: &str) {
        self.lock().insert(id.to_owned());
    }

    fn contains(&self, id: &str) -> bool {
        self.lock().contains(id)
    }

    /// Forgets those that Docker does not show any more.
    fn keep(&self, shown: &BTreeSet<String>) {
        self.lock().retain(|id| shown.contains(id));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Docker {
    /// Finds interfaces that Docker has fetched; whether some still wait.
    async fn settle(self: &Arc<Self>, member: &Member) -> bool {
        let snapshot = member.agent.snapshot();
        let staged = snapshot.endpoints.values().filter(|e| e.node == member.identity.node && e.is_staged());
        let mut waiting = false;
        for endpoint in staged {
            let Target::Docker(Container { netns: Some(_), .. }) = &endpoint.target else { continue };
            let looked_for = Arc::clone(endpoint);
            let found = tokio::task::spawn_blocking(move || fetched(&looked_for)).await.ok().flatten();
            let Some((namespace_inode, ifname)) = found else {
                waiting = true;
                continue;
            };
            let update = EndpointUpdate {
                namespace_inode: Some(namespace_inode),
                ifname: Some(ifname),
                ..EndpointUpdate::default()
            };
            match member.agent.update(endpoint.id, &update).await {
                Ok(settled) => drop(tokio::spawn(Arc::clone(self).name(settled.value))),
                Err(failure) => {
                    tracing::warn!(endpoint = %endpoint.id, err = failure.text(), "cannot tell where the container is");
                    waiting = true;
                }
            }
        }
        waiting
    }

    /// Gives an endpoint the names that Docker tells only once the container runs.
    async fn name(self: Arc<Self>, endpoint: Arc<Endpoint>) {
        for _ in 0..NAME_TRIES {
            match self.try_name(&endpoint).await {
                Ok(()) => return,
                Err(failure) if failure.is_unavailable() => sleep(NAME_PAUSE).await,
                Err(failure) => {
                    let err = failure.text();
                    return tracing::warn!(endpoint = %endpoint.name, err, "a container is without its further names");
                }
            }
        }
    }

    async fn try_name(&self, endpoint: &Endpoint) -> Result<(), Failure> {
        let (Some((network, id)), Target::Docker(place)) = (owned(endpoint), &endpoint.target) else {
            return Ok(());
        };
        // A Docker that starts has its containers join before it says which they are.
        let attached = self.api.network(network).await?.containers.unwrap_or_default();
        let mut attached = attached.into_iter().filter(|(container, _)| has_joined(container));
        let found = attached.find(|(_, attached)| attached.endpoint_id == id);
        let (container, _) =
            found.ok_or_else(|| Failure::unavailable("Docker does not show the endpoint"))?;
        let container = self.api.inspect(&container).await?;
        let name = container.name.trim_start_matches('/').to_owned();
        let target = Target::Docker(Container { name, netns: place.netns.clone() });
        let member = self.daemon.member()?;
        let update =
            self.on_network(&member, &container.network_settings, endpoint.network, told(&container, id)?);
        let update = EndpointUpdate { target: Some(target), ..update };
        member.agent.update(endpoint.id, &update).await.map(drop)
    }

    async fn compare(&self, member: &Member, sightings: &mut Sightings) {
        let (networks, there) = match self.networks().await {
            Ok(networks) => (networks, true),
            Err(_) if self.api.is_there().await => return,
            // Containers run on without Docker, but none comes any more.
            Err(_) => (Vec::new(), false),
        };
        // Not before: what Docker shows has a record, unless it is leaving.
        let snapshot = member.agent.snapshot();
        let own = || snapshot.endpoints.values().filter(|e| e.node == member.identity.node);
        sightings.note(own().map(|e| e.id).collect(), Instant::now());
        let of_docker: BTreeMap<&str, &Arc<Endpoint>> =
            own().filter_map(|e| Some((owned(e)?.1, e))).collect();
        let mut known = BTreeSet::new();
        for network in &networks {
            for (container, attached) in network.containers.iter().flatten() {
                known.insert(attached.endpoint_id.clone());
                match of_docker.get(attached.endpoint_id.as_str()) {
                    _ if !has_joined(container) => {}
                    None => self.adopt(member, network, container, &attached.endpoint_id).await,
                    Some(endpoint) if is_renamed(endpoint, &attached.name) => {
                        if let Err(failure) = self.try_name(endpoint).await {
                            tracing::warn!(
                                container,
                                err = failure.text(),
                                "a container keeps its earlier name"
                            );
                        }
                    }
                    Some(_) => {}
                }
            }
        }
        if there {
            self.left.keep(&known);
        }
        let unknown = own().filter(|endpoint| {
            let of_docker = owned(endpoint).map(|(_, id)| !known.contains(id));
            let forgotten = endpoint.owner.as_ref().is_some_and(|owner| owner.starts_with("docker-address:"));
            let old = sightings.is_old(endpoint.id, Instant::now());
            old && (there || endpoint.is_staged()) && of_docker.unwrap_or(forgotten)
        });
        for endpoint in unknown {
            match member.agent.forget(endpoint.id).await {
                Ok(_) => {
                    tracing::info!(endpoint = %endpoint.name, "Docker knows nothing of this endpoint: removed")
                }
                Err(failure) => {
                    tracing::warn!(endpoint = %endpoint.name, err = failure.text(), "cannot remove the endpoint now");
                }
            }
        }
    }

    /// The networks of this driver, with their endpoints. Docker that is not there knows none, but says so.
    async fn networks(&self) -> Result<Vec<Network>, Failure> {
        let mut networks = Vec::new();
        for network in self.api.networks().await? {
            networks.push(self.api.network(&network.id).await?);
        }
        Ok(networks)
    }

    /// A container that runs, on a network of this driver, without a record: the cluster's state was lost, or this node
    /// is in another cluster now.
    async fn adopt(&self, member: &Member, network: &Network, container: &str, id: &str) {
        let adopted = async {
            let bound = self.mesh_network(member, &network.id).await?;
            let container = self.api.inspect(container).await?;
            let update =
                self.on_network(member, &container.network_settings, bound.id, told(&container, id)?);
            let place = container.network_settings.places().find(|place| place.endpoint_id == id);
            let name = container.name.trim_start_matches('/').to_owned();
            let netns = Some(container.network_settings.sandbox_key.clone().into());
            let target = Target::Docker(Container { name, netns });
            let mac = place.and_then(|place| place.mac_address.parse().ok());
            let mut spec = EndpointSpec::new(bound.id.to_string(), target.clone(), "eth0");
            (spec.mac, spec.owner) = (mac, Some(owner(&network.id, id)));
            (spec.service, spec.name, spec.preferred_name) =
                (update.service, update.name, update.preferred_name);
            spec.aliases = update.aliases.unwrap_or_default();
            spec.weight = update.weight.unwrap_or_default();
            let address = place.and_then(|place| place.ip_address.parse::<IpAddr>().ok());
            let (own, local): (Vec<_>, _) =
                address.into_iter().partition(|address| bound.subnet_of(*address).is_some());
            (spec.addresses, spec.local_addresses) = (own, local);
            let found = tokio::task::spawn_blocking(move || -> mesh_net::Result<_> {
                let namespace = TargetNamespace::open(&target)?;
                let ifname = mac.map(|mac| namespace.interface(mac)).transpose()?.flatten();
                Ok(match ifname {
                    Some(ifname) => ifname,
                    None => namespace.free_name("eth")?,
                })
            });
            let found = found.await.map_err(|e| Failure::internal(e.to_string()))?;
            spec.ifname = found.map_err(|e| Failure::conflict(e.to_string()))?;
            if self.left.contains(id) {
                return Ok(None);
            }
            let endpoint = member.agent.connect_as(endpoint_id(id)?, spec).await?;
            if self.left.contains(id) {
                return member.agent.forget(endpoint.id).await.map(|_| None);
            }
            Ok(Some(endpoint))
        };
        match adopted.await {
            Ok(None) => {}
            Ok(Some(endpoint)) => {
                tracing::info!(endpoint = %endpoint.name, "adopted a container of Docker's")
            }
            Err(failure) => {
                tracing::warn!(container, err = failure.text(), "cannot adopt a container of Docker's")
            }
        }
    }
}

/// Whether Docker names the container by its ID: while it joins, that is its endpoint's, `ep-…`, which leads to no container.
fn has_joined(container: &str) -> bool {
    !container.starts_with("ep-")
}

/// Whether Docker calls a container otherwise than the cluster does.
fn is_renamed(endpoint: &Endpoint, name: &str) -> bool {
    matches!(&endpoint.target, Target::Docker(container) if container.name != name) && !endpoint.is_staged()
}

/// The namespace and the name of an interface that Docker has fetched, once it is up: named, and with its addresses.
fn fetched(endpoint: &Endpoint) -> Option<(u64, String)> {
    let namespace = TargetNamespace::open(&endpoint.target).ok()?;
    let ifname = namespace.interface(endpoint.mac).ok()??;
    Some((namespace.inode(), ifname))
}

/// What Docker tells of a container's endpoint.
fn told(container: &Inspected, endpoint: &str) -> Result<EndpointUpdate, Failure> {
    let labels = container.config.labels.clone().unwrap_or_default();
    let place = container.network_settings.places().find(|place| place.endpoint_id == endpoint);
    let aliases = place.and_then(|place| place.aliases.clone()).unwrap_or_default();
    identity(&container.name, &labels, &aliases).map_err(Failure::bad_request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_as_old_as_it_has_been_seen_here() {
        let [one, two] = [1, 2].map(EndpointId::from_bits);
        let (mut sightings, start) = (Sightings::default(), Instant::now());
        let later = |seconds| start + Duration::from_secs(seconds);
        sightings.note(BTreeSet::from([one]), start);
        sightings.note(BTreeSet::from([one, two]), later(20));
        assert!(!sightings.is_old(one, later(30)) && sightings.is_old(one, later(31)));
        assert!(!sightings.is_old(two, later(31)) && sightings.is_old(two, later(51)));
        // Gone and there again: it is another one.
        sightings.note(BTreeSet::from([two]), later(52));
        sightings.note(BTreeSet::from([one, two]), later(53));
        assert!(!sightings.is_old(one, later(60)) && sightings.is_old(two, later(60)));
    }
}
