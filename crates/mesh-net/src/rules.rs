//! The nftables rules of a node, derived from the cluster's state. Pure.
//!
//! The host's namespace has the tables `ip meshd` and `ip6 meshd`: published ports, the way out of the
//! overlays, and the door that is shut to everything else. Each network's own namespace has `ip mesh`,
//! `ip6 mesh` and `bridge mesh`: VIPs, and the way back for connections that another node took.
//!
//! The tables name interfaces that need not exist yet. Commit the host's before the links of a new
//! network are made, so that there is no moment in which the host forwards into it unasked.

mod balance;
mod bridge;
mod counters;
mod host;
mod overlay;
mod resolver;
mod version;

pub(crate) use counters::{COUNTED, key_of};
pub(crate) use host::host_key;

#[cfg(test)]
mod tests;

use crate::{
    desired::Attachment,
    nft::{Datum, Table},
    ports::HostPort,
    scope::Scope,
};
use mesh_model::{Endpoint, EndpointId, Network, NetworkId, Node, Service, ServiceId, Snapshot, Target};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use version::IpVersion;

/// Name of the tables in the host's namespace.
pub const HOST_TABLE: &str = "meshd";
/// Name of the tables in the namespace of each network.
pub const OVERLAY_TABLE: &str = "mesh";
/// UDP port at which each node answers probes of the others, on its own address inside each network.
pub const PROBE_PORT: u16 = 7443;

/// What the rules of one node are derived from.
pub struct Rules<'a> {
    snapshot: &'a Snapshot,
    me: &'a Node,
    scope: &'a Scope,
    /// Also those that get no new connections.
    replicas: BTreeMap<(ServiceId, NetworkId), Vec<&'a Arc<Endpoint>>>,
    /// Networks that Docker has containers of this node on.
    dockers: BTreeSet<NetworkId>,
    local: Local,
}

/// What only this host knows.
#[derive(Debug, Clone, Default)]
pub struct Local {
    /// Containers of these addresses get no new connections.
    pub limited: BTreeSet<IpAddr>,
    /// Queries a second that each address may ask a name server here, if they are limited.
    pub queries: Option<NonZeroU32>,
    /// Published ports that are left to whoever has them.
    pub others: BTreeSet<HostPort>,
    /// Whether the host has rules of its own that choose routes by source addresses.
    pub routes_by_source: bool,
    /// What is known of the targets of this node's endpoints.
    pub attachments: BTreeMap<EndpointId, Attachment>,
}

impl<'a> Rules<'a> {
    /// What the rules are.
    pub fn new(snapshot: &'a Snapshot, me: &'a Node) -> Self {
        Self::of(snapshot, me, &Scope::All)
    }

    /// What the rules are as far as these records go: all chains that hooks enter, and of the others, and of the elements of
    /// sets and maps, those that are made of these records.
    pub fn of(snapshot: &'a Snapshot, me: &'a Node, scope: &'a Scope) -> Self {
        let replicas = snapshot.replicas_by_service(|service| scope.has_service(service));
        let own = snapshot.endpoints.values().filter(|endpoint| endpoint.node == me.id);
        let dockers = own.filter(|endpoint| matches!(endpoint.target, Target::Docker(_)));
        let dockers = dockers.map(|endpoint| endpoint.network).collect();
        Rules { snapshot, me, scope, replicas, dockers, local: Local::default() }
    }

    /// The same on a host of which this is known.
    #[must_use]
    pub fn with(self, local: Local) -> Self {
        Rules { local, ..self }
    }

    /// The same of all records.
    pub(crate) fn whole(&self) -> Self {
        Self::new(self.snapshot, self.me).with(self.local.clone())
    }

    /// The tables of the host's namespace.
    ///
    /// `closed` are the names of the interfaces that were there when meshd turned forwarding on: the
    /// host does not become a router between them.
    pub fn host(&self, closed: &BTreeSet<String>) -> [Table; 2] {
        IpVersion::BOTH.map(|version| host::table(self, version, closed))
    }

    /// The tables of one network's namespace.
    pub fn overlay(&self, network: &Network) -> [Table; 3] {
        let [ip, ip6] = IpVersion::BOTH.map(|version| overlay::table(self, version, network));
        [ip, ip6, bridge::table(self, network)]
    }

    /// The services that rules are made of.
    fn services(&self) -> impl Iterator<Item = &'a Arc<Service>> {
        self.scope.services(self.snapshot)
    }

    /// The endpoints on a network that rules are made of.
    fn endpoints(&self, network: NetworkId) -> impl Iterator<Item = &'a Arc<Endpoint>> {
        self.scope.endpoints(self.snapshot).filter(move |endpoint| endpoint.network == network)
    }

    /// Those of this node.
    fn endpoints_here(&self, network: NetworkId) -> impl Iterator<Item = &'a Arc<Endpoint>> {
        self.own_endpoints().filter(move |endpoint| endpoint.network == network)
    }

    /// The endpoints of this node that rules are made of, on any network.
    fn own_endpoints(&self) -> impl Iterator<Item = &'a Arc<Endpoint>> {
        let here = self.me.id;
        self.scope.endpoints(self.snapshot).filter(move |endpoint| endpoint.node == here)
    }

    /// The addresses that new connections to a service may go to, in the order of their turns or by slot; of its
    /// endpoints on this node only, if so wanted.
    fn backends(&self, service: &Service, network: NetworkId, version: IpVersion, here: bool) -> Vec<Datum> {
        let all = self.replicas.get(&(service.id, network)).into_iter().flatten().copied();
        let some = all.filter(|backend| !here || backend.node == self.me.id);
        let some = some.filter(|backend| self.snapshot.takes_traffic(backend));
        let some = some.filter_map(|backend| Some((backend, version.address_of(backend)?)));
        let mut some: Vec<_> = some.collect();
        if service.prefer_local && some.iter().any(|(backend, _)| backend.node == self.me.id) {
            some.retain(|(backend, _)| backend.node == self.me.id);
        }
        balance::turns(self.snapshot, service.balance, some)
    }
}
