//! What can be changed, each a decision on the state.

use super::{Error, Manager};
use crate::{
    lan,
    wire::{Claim, Committed, CommittedEndpoint},
};
use ipnetwork::IpNetwork;
use mesh_model::{
    Change, Endpoint, EndpointId, EndpointSpec, EndpointUpdate, Health, Key, Name, Network, NetworkSpec,
    NetworkUpdate, Node, NodeId, NodeStatus, NodeUpdate, Object, Refusal, Service, ServiceSpec,
    ServiceUpdate, Snapshot, admit,
};
use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, sync::Arc};

/// The network of services that name none.
const DEFAULT_NETWORK: &str = "default";

/// Subnets of the pool that nodes may object to before one has to be given.
const POOL_TRIES: usize = 8;

impl Manager {
    pub(crate) async fn update_node(
        &self,
        wanted: &str,
        update: &NodeUpdate,
    ) -> Result<Committed<Arc<Node>>, Error> {
        self.change(|snapshot, _| {
            let node = find_node(snapshot, wanted)?;
            let updated = Arc::new(admit::node_update(node, update));
            let put = Change::Put(Object::Node(Arc::clone(&updated)));
            Ok((if updated == *node { Vec::new() } else { vec![put] }, updated))
        })
        .await
    }

    /// Removes a node and its endpoints. `status` is the liveness of nodes as this node sees it.
    pub(crate) async fn remove_node(
        &self,
        wanted: &str,
        status: &BTreeMap<NodeId, NodeStatus>,
        force: bool,
    ) -> Result<Committed<()>, Error> {
        self.change(|snapshot, _| {
            let node = find_node(snapshot, wanted)?;
            let status = status.get(&node.id).copied().unwrap_or_default();
            Ok((admit::node_removal(snapshot, node, status, force)?, ()))
        })
        .await
    }

    pub(crate) async fn create_network(&self, spec: &NetworkSpec) -> Result<Committed<Arc<Network>>, Error> {
        let mut lans = lan::prefixes();
        let mut tries = 0..POOL_TRIES;
        let held = loop {
            // Decided once without committing: what is wrong in itself is told before nodes are asked, and a subnet of the
            // pool is known only then.
            let draft = admit::network(&self.state.snapshot(), spec, &lans, draft())?;
            let subnets: Vec<IpNetwork> = draft.prefixes().collect();
            match self.claim(Claim { subnets: subnets.clone(), ..Claim::default() }).await {
                // Some node's host is on it: the pool has others.
                Err(Error::Objection(_)) if spec.subnets.is_empty() && tries.next().is_some() => {
                    lans.extend(subnets)
                }
                held => break held?,
            }
        };
        let committed = self
            .change(|snapshot, fresh| {
                let network = Arc::new(admit::network(snapshot, spec, &lans, fresh)?);
                Ok((vec![Change::Put(Object::Network(Arc::clone(&network)))], network))
            })
            .await;
        self.settle(held, committed.is_ok()).await;
        committed
    }

    pub(crate) async fn update_network(
        &self,
        wanted: &str,
        update: &NetworkUpdate,
    ) -> Result<Committed<Arc<Network>>, Error> {
        let snapshot = self.state.snapshot();
        admit::network_update(&snapshot, find_network(&snapshot, wanted)?, update)?;
        let held = self.claim(Claim { subnets: update.subnet_add.clone(), ..Claim::default() }).await?;
        let committed = self
            .change(|snapshot, _| {
                let network = find_network(snapshot, wanted)?;
                let updated = Arc::new(admit::network_update(snapshot, network, update)?);
                let put = Change::Put(Object::Network(Arc::clone(&updated)));
                Ok((if updated == *network { Vec::new() } else { vec![put] }, updated))
            })
            .await;
        self.settle(held, committed.is_ok()).await;
        committed
    }

    /// Removes the networks that nothing uses.
    pub(crate) async fn prune_networks(&self) -> Result<Committed<Vec<Arc<Network>>>, Error> {
        self.change(|snapshot, _| {
            let unused = admit::unused_networks(snapshot);
            Ok((unused.iter().map(|network| Change::Delete(Key::Network(network.id))).collect(), unused))
        })
        .await
    }

    pub(crate) async fn remove_network(&self, wanted: &str) -> Result<Committed<()>, Error> {
        self.change(|snapshot, _| {
            let network = find_network(snapshot, wanted)?;
            admit::network_removal(snapshot, network)?;
            Ok((vec![Change::Delete(Key::Network(network.id))], ()))
        })
        .await
    }

    /// Creates a service. Its ports are held on every node that answers before they are committed. Returns what is odd
    /// about it as well.
    pub(crate) async fn create_service(
        &self,
        spec: &ServiceSpec,
    ) -> Result<(Committed<Arc<Service>>, Vec<String>), Error> {
        let (mut spec, lans) = (spec.clone(), lan::prefixes());
        // Decided once without committing: the ports that a specification leaves open are known only then.
        let (network, draft) = service_with_network(&self.state.snapshot(), &spec, &lans, draft())?;
        spec.ports.clone_from(&draft.ports);
        let subnets = network.iter().flat_map(|network| network.prefixes()).collect();
        let held = self.claim(Claim { ports: self.new_ports(&draft.ports, &[]), subnets }).await?;
        let warnings = held.warnings();
        let committed = self
            .change(|snapshot, fresh| {
                let (network, service) = service_with_network(snapshot, &spec, &lans, fresh)?;
                let network = network.map(|network| Change::Put(Object::Network(network)));
                let put = Change::Put(Object::Service(Arc::clone(&service)));
                Ok((network.into_iter().chain([put]).collect(), service))
            })
            .await;
        self.settle(held, committed.is_ok()).await;
        Ok((committed?, warnings))
    }

    pub(crate) async fn update_service(
        &self,
        wanted: &str,
        update: &ServiceUpdate,
    ) -> Result<(Committed<Arc<Service>>, Vec<String>), Error> {
        let mut update = update.clone();
        let snapshot = self.state.snapshot();
        let before = find_service(&snapshot, wanted)?;
        let (draft, _) = admit::service_update(&snapshot, before, &update, draft().now)?;
        // Ports that were left open are now known; those that stay are held already.
        let kept = admit::remove_ports(&before.ports, &update.publish_rm)?;
        update.publish_add = draft.ports.iter().filter(|port| !kept.contains(port)).cloned().collect();
        let ports = self.new_ports(&draft.ports, &before.ports);
        let held = self.claim(Claim { ports, ..Claim::default() }).await?;
        let warnings = held.warnings();
        let committed = self
            .change(|snapshot, fresh| {
                let service = find_service(snapshot, wanted)?;
                let (updated, robbed) = admit::service_update(snapshot, service, &update, fresh.now)?;
                let updated = Arc::new(updated);
                let own = (*updated != **service).then(|| Arc::clone(&updated));
                let changed = robbed.into_iter().map(Arc::new).chain(own);
                Ok((changed.map(|service| Change::Put(Object::Service(service))).collect(), updated))
            })
            .await;
        self.settle(held, committed.is_ok()).await;
        Ok((committed?, warnings))
    }

    pub(crate) async fn remove_service(&self, wanted: &str) -> Result<Committed<()>, Error> {
        self.change(|snapshot, _| {
            let service = find_service(snapshot, wanted)?;
            admit::service_removal(snapshot, service)?;
            Ok((vec![Change::Delete(Key::Service(service.id))], ()))
        })
        .await
    }

    /// Creates an endpoint with the ID that its node has drawn for it. Asked again, because the answer was lost, it is
    /// the same endpoint.
    pub(crate) async fn create_endpoint(
        &self,
        node: NodeId,
        id: EndpointId,
        spec: &EndpointSpec,
    ) -> Result<CommittedEndpoint, Error> {
        self.change(|snapshot, fresh| {
            check_owner(snapshot, id, Some(node))?;
            if let Some(known) = snapshot.endpoints.get(&id) {
                return Ok((Vec::new(), Arc::clone(known)));
            }
            let fresh = admit::Fresh { id: id.bits(), ..fresh };
            let endpoint = Arc::new(admit::endpoint(snapshot, node, spec, fresh)?);
            Ok((vec![Change::Put(Object::Endpoint(Arc::clone(&endpoint)))], endpoint))
        })
        .await
    }

    /// Takes what a user wants otherwise, or a node has learnt of its endpoint. Told twice, it changes nothing. `only`
    /// restricts it to a node's own.
    pub(crate) async fn update_endpoint(
        &self,
        id: EndpointId,
        update: &EndpointUpdate,
        only: Option<NodeId>,
    ) -> Result<CommittedEndpoint, Error> {
        self.change(|snapshot, _| {
            check_owner(snapshot, id, only)?;
            let endpoint = find_endpoint(snapshot, id)?;
            let updated = Arc::new(admit::endpoint_update(snapshot, endpoint, update)?);
            let put = Change::Put(Object::Endpoint(Arc::clone(&updated)));
            Ok((if updated == *endpoint { Vec::new() } else { vec![put] }, updated))
        })
        .await
    }

    /// Removes an endpoint; one that is gone already is fine. `only` restricts it to a node's own.
    pub(crate) async fn remove_endpoint(
        &self,
        id: EndpointId,
        only: Option<NodeId>,
    ) -> Result<Committed<()>, Error> {
        self.change(|snapshot, _| {
            check_owner(snapshot, id, only)?;
            let mut changes = Vec::new();
            if snapshot.endpoints.contains_key(&id) {
                changes.push(Change::Delete(Key::Endpoint(id)));
            }
            if snapshot.health.contains_key(&id) {
                changes.push(Change::Delete(Key::Health(id)));
            }
            Ok((changes, ()))
        })
        .await
    }

    /// Offers an endpoint no new connections.
    pub(crate) async fn drain_endpoint(
        &self,
        id: EndpointId,
        only: Option<NodeId>,
    ) -> Result<CommittedEndpoint, Error> {
        self.change(|snapshot, _| {
            check_owner(snapshot, id, only)?;
            let endpoint = find_endpoint(snapshot, id)?;
            let drained = Arc::new(Endpoint { draining: true, ..Endpoint::clone(endpoint) });
            let put = Change::Put(Object::Endpoint(Arc::clone(&drained)));
            Ok((if endpoint.draining { Vec::new() } else { vec![put] }, drained))
        })
        .await
    }

    /// Takes a node's verdicts on its own endpoints; those on others, or on ones that are gone, are left out.
    pub(super) async fn report_health(
        &self,
        node: NodeId,
        verdicts: &[(EndpointId, Health)],
    ) -> Result<Committed<()>, Error> {
        self.change(|snapshot, _| {
            let news = verdicts.iter().filter(|(id, health)| {
                snapshot.endpoints.get(id).is_some_and(|e| e.node == node)
                    && snapshot.health.get(id) != Some(health)
            });
            Ok((news.map(|(id, health)| Change::Put(Object::Health(*id, *health))).collect(), ()))
        })
        .await
    }

    /// Notes what a node has found in its endpoints' targets.
    pub(super) async fn report_attached(
        &self,
        node: NodeId,
        source_nat: &[(EndpointId, Vec<IpAddr>)],
    ) -> Result<Committed<()>, Error> {
        self.change(|snapshot, _| {
            let news = source_nat.iter().filter_map(|(id, addresses)| {
                let endpoint = snapshot.endpoints.get(id).filter(|endpoint| endpoint.node == node)?;
                let differs = endpoint.source_nat != *addresses;
                differs.then(|| Endpoint { source_nat: addresses.clone(), ..Endpoint::clone(endpoint) })
            });
            Ok((news.map(|endpoint| Change::Put(Object::Endpoint(Arc::new(endpoint)))).collect(), ()))
        })
        .await
    }
}

/// Refuses what is another's. Part of the decision: this manager may not have heard of the endpoint a moment before.
fn check_owner(snapshot: &Snapshot, id: EndpointId, only: Option<NodeId>) -> Result<(), Refusal> {
    match (snapshot.endpoints.get(&id), only) {
        (Some(endpoint), Some(node)) if endpoint.node != node => Err(Refusal::NotYours),
        _ => Ok(()),
    }
}

/// The service that is asked for and, if it names no network and is the first of that kind, the default network.
fn service_with_network(
    snapshot: &Snapshot,
    spec: &ServiceSpec,
    lans: &[IpNetwork],
    fresh: admit::Fresh,
) -> Result<(Option<Arc<Network>>, Arc<Service>), Refusal> {
    let mut snapshot = Cow::Borrowed(snapshot);
    let mut spec = Cow::Borrowed(spec);
    let mut made = None;
    if spec.networks.is_empty() {
        if snapshot.find_network(DEFAULT_NETWORK).is_none() {
            let name: Name = DEFAULT_NETWORK.parse().unwrap_or_else(|e| unreachable!("a valid name: {e}"));
            // IDs are told apart by what they are of: service and network may have the same bits.
            let network = Arc::new(admit::network(&snapshot, &NetworkSpec::named(name), lans, fresh)?);
            snapshot.to_mut().apply(Change::Put(Object::Network(Arc::clone(&network))));
            made = Some(network);
        }
        spec.to_mut().networks.push(DEFAULT_NETWORK.to_owned());
    }
    Ok((made, Arc::new(admit::service(&snapshot, &spec, fresh)?)))
}

/// For a decision that is not committed: nothing of it is kept.
fn draft() -> admit::Fresh {
    admit::Fresh { id: 0, mac: 0, now: 0 }
}

pub(super) fn find_node<'a>(snapshot: &'a Snapshot, wanted: &str) -> Result<&'a Arc<Node>, Refusal> {
    let not_found = || Refusal::NotFound { kind: "node", wanted: wanted.to_owned() };
    snapshot.find_node(wanted).ok_or_else(not_found)
}

fn find_endpoint(snapshot: &Snapshot, id: EndpointId) -> Result<&Arc<Endpoint>, Refusal> {
    let not_found = || Refusal::NotFound { kind: "endpoint", wanted: id.to_string() };
    snapshot.endpoints.get(&id).ok_or_else(not_found)
}

fn find_network<'a>(snapshot: &'a Snapshot, wanted: &str) -> Result<&'a Arc<Network>, Refusal> {
    let not_found = || Refusal::NotFound { kind: "network", wanted: wanted.to_owned() };
    snapshot.find_network(wanted).ok_or_else(not_found)
}

fn find_service<'a>(snapshot: &'a Snapshot, wanted: &str) -> Result<&'a Arc<Service>, Refusal> {
    let not_found = || Refusal::NotFound { kind: "service", wanted: wanted.to_owned() };
    snapshot.find_service(wanted).ok_or_else(not_found)
}
