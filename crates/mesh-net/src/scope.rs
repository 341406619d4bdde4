//! Which records a pass looks at. A change of one service in a cluster of thousands costs a look at that one: what should
//! be is derived from the records that changed, as they were and as they are, and the difference of the two is applied.

use crate::desired::{Attachment, Facts};
use mesh_model::{Endpoint, EndpointId, Key, NetworkId, NodeId, Service, ServiceId, Snapshot};
use std::{collections::BTreeSet, sync::Arc};

/// More changes than this are no change of a few records.
const MOST_CHANGES: usize = 1000;

/// The records that a pass looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    All,
    /// A few.
    Some(Few),
}

/// A few services and endpoints, and the networks that they are on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Few {
    services: BTreeSet<ServiceId>,
    endpoints: BTreeSet<EndpointId>,
    networks: BTreeSet<NetworkId>,
}

impl Scope {
    /// What a pass has to look at that comes from one state to the next, each with what is known of the host: the records that
    /// differ, and this node's endpoints of whose targets something else is known.
    pub fn of_pass(me: NodeId, before: (&Snapshot, &Facts), after: (&Snapshot, &Facts)) -> Self {
        // Engines fetch what is staged when they like.
        let staged = before.1.staged.iter().chain(&after.1.staged).next();
        let (one, other) = (before.1, after.1);
        if one.mtu != other.mtu || one.routes_by_source != other.routes_by_source || staged.is_some() {
            return Self::All;
        }
        let mut scope = Self::between(before.0, after.0);
        let states = [before.0, after.0];
        // An engine may have given an address of its own to another container already.
        let borrowed = |endpoint: &Arc<Endpoint>| endpoint.node == me && !endpoint.local_addresses.is_empty();
        if states.into_iter().any(|state| scope.endpoints(state).any(borrowed)) {
            return Self::All;
        }
        if states.into_iter().any(|state| scope.may_place(state, me))
            && before.0.networks_on(me) != after.0.networks_on(me)
        {
            return Self::All;
        }
        for (these, others) in [(before.1, after.1), (after.1, before.1)] {
            let differs = |(id, of): &(&EndpointId, &Attachment)| others.attachments.get(id) != Some(of);
            for (id, _) in these.attachments.iter().filter(differs) {
                [before.0, after.0].into_iter().for_each(|state| scope.and(state, *id));
            }
        }
        scope
    }

    /// The same, and all that is made of these networks on this node, and of this node's endpoints on any.
    #[must_use]
    pub fn with_overlays(
        mut self,
        me: NodeId,
        states: [&Snapshot; 2],
        overlays: &BTreeSet<NetworkId>,
    ) -> Self {
        let Self::Some(few) = &mut self else { return self };
        for state in states {
            few.networks.extend(state.networks_on(me));
            let services = state.services.values();
            let of_overlays =
                services.filter(|service| service.networks.iter().any(|on| overlays.contains(&on.network)));
            few.services.extend(of_overlays.map(|service| service.id));
            let endpoints = state.endpoints.values();
            let looked_at =
                endpoints.filter(|endpoint| endpoint.node == me || overlays.contains(&endpoint.network));
            few.endpoints.extend(looked_at.map(|endpoint| endpoint.id));
        }
        self
    }

    /// What differs between two states. Nodes, their liveness and networks concern everything.
    pub fn between(before: &Snapshot, after: &Snapshot) -> Self {
        let changes = after.changes_since(before);
        let same_nodes = before.status == after.status && before.lost == after.lost;
        if before.epoch != after.epoch || !same_nodes || changes.len() > MOST_CHANGES {
            return Self::All;
        }
        let mut few = Few::default();
        for change in changes {
            match change.key() {
                Key::Cluster | Key::Node(_) | Key::Network(_) => return Self::All,
                Key::Service(id) => [before, after].into_iter().for_each(|state| few.service(state, id)),
                Key::Endpoint(id) | Key::Health(id) => {
                    [before, after].into_iter().for_each(|state| few.endpoint(state, id));
                }
                Key::Released(_) | Key::Leader => {}
            }
        }
        Self::Some(few)
    }

    /// Whether something is looked at that networks exist on a node for.
    fn may_place(&self, snapshot: &Snapshot, node: NodeId) -> bool {
        self.services(snapshot).any(|service| service.everywhere().is_some())
            || self.endpoints(snapshot).any(|endpoint| endpoint.node == node)
    }

    /// The same and an endpoint, whose record may be as it was.
    fn and(&mut self, snapshot: &Snapshot, endpoint: EndpointId) {
        if let Self::Some(few) = self {
            few.endpoint(snapshot, endpoint);
        }
    }

    /// Those services of a state that are looked at.
    pub fn services<'a>(&'a self, snapshot: &'a Snapshot) -> Box<dyn Iterator<Item = &'a Arc<Service>> + 'a> {
        match self {
            Self::All => Box::new(snapshot.services.values()),
            Self::Some(few) => Box::new(few.services.iter().filter_map(|id| snapshot.services.get(id))),
        }
    }

    /// Those endpoints of a state that are looked at.
    pub fn endpoints<'a>(
        &'a self,
        snapshot: &'a Snapshot,
    ) -> Box<dyn Iterator<Item = &'a Arc<Endpoint>> + 'a> {
        match self {
            Self::All => Box::new(snapshot.endpoints.values()),
            Self::Some(few) => Box::new(few.endpoints.iter().filter_map(|id| snapshot.endpoints.get(id))),
        }
    }

    /// Those networks on a node that something is looked at on.
    pub fn networks_on(&self, snapshot: &Snapshot, node: NodeId) -> BTreeSet<NetworkId> {
        match self {
            Self::All => snapshot.networks_on(node),
            Self::Some(few) => few.networks.iter().copied().filter(|id| snapshot.is_on(*id, node)).collect(),
        }
    }

    /// Whether a service is looked at.
    pub fn has_service(&self, id: ServiceId) -> bool {
        match self {
            Self::All => true,
            Self::Some(few) => few.services.contains(&id),
        }
    }

    /// Whether an endpoint is looked at.
    pub fn has_endpoint(&self, id: EndpointId) -> bool {
        match self {
            Self::All => true,
            Self::Some(few) => few.endpoints.contains(&id),
        }
    }
}

impl Few {
    /// A service that changes concerns its endpoints.
    fn service(&mut self, snapshot: &Snapshot, id: ServiceId) {
        self.services.insert(id);
        let service = snapshot.services.get(&id);
        self.networks.extend(service.iter().flat_map(|service| &service.networks).map(|on| on.network));
        let own = snapshot.endpoints.values().filter(|endpoint| endpoint.service == Some(id));
        self.endpoints.extend(own.map(|endpoint| endpoint.id));
    }

    /// An endpoint that changes concerns its service, of which the others stay as they are.
    fn endpoint(&mut self, snapshot: &Snapshot, id: EndpointId) {
        self.endpoints.insert(id);
        if let Some(endpoint) = snapshot.endpoints.get(&id) {
            self.networks.insert(endpoint.network);
            self.services.extend(endpoint.service);
        }
    }
}
