//! A container joins: what it is, and how Docker is to set it up.

use super::{
    Docker,
    api::{EndpointSettings, NetworkSettings},
    driver::{SHORT, own},
    identity::identity,
    protocol::{InterfaceName, Join, Joined, StaticRoute},
};
use crate::{api::Failure, daemon::Member};
use ipnetwork::IpNetwork;
use mesh_dns::parse_resolv_conf;
use mesh_model::{Container, Endpoint, EndpointUpdate, Network, NetworkId, Snapshot, Target};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

/// What interfaces are called in a container; Docker appends a number.
const PREFIX: &str = "eth";
/// Route types of the protocol.
const NEXT_HOP: u8 = 0;
const CONNECTED: u8 = 1;
/// Where a host says whom to ask, and where it does behind systemd's own resolver.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const SYSTEMD_STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));
const BEHIND_SYSTEMD_STUB: &str = "/run/systemd/resolve/resolv.conf";

impl Docker {
    pub(super) async fn join(&self, request: Join) -> Result<Joined, Failure> {
        let member = self.daemon.member()?;
        let endpoint = own(&member, &request.endpoint_id)
            .ok_or_else(|| Failure::conflict("this endpoint is not known: start the container again"))?;
        let (container, settings, update) = self.introduce(&request).await?;
        let mut update = self.on_network(&member, &settings, endpoint.network, update);
        let netns = Some(PathBuf::from(&request.sandbox_key));
        update.target = Some(Target::Docker(Container { name: container, netns }));
        let endpoint = member.agent.update(endpoint.id, &update).await?.value;
        self.joined.notify_one();
        let snapshot = member.agent.snapshot();
        let network = snapshot
            .networks
            .get(&endpoint.network)
            .ok_or_else(|| Failure::conflict("its network of the cluster was removed"))?;
        let names = self.has_the_names(&request, &settings, &endpoint, &snapshot);
        let resolvers = if names { host_resolvers() } else { BTreeSet::new() };
        Ok(joined(&endpoint, network, &resolvers))
    }

    /// Whether it is this network of its container's that has the routes to the resolvers: one has them, for Docker makes no
    /// route twice. A container that starts joins its networks in any order; then it is that which Docker would take for the
    /// default route.
    fn has_the_names(
        &self,
        request: &Join,
        container: &NetworkSettings,
        endpoint: &Endpoint,
        snapshot: &Snapshot,
    ) -> bool {
        let bound =
            |place: &EndpointSettings| snapshot.networks.get(&self.bindings.get(&place.network_id)?.network?);
        let ours = container.places().filter_map(|place| Some((place, bound(place)?)));
        match ours.min_by_key(|(_, network)| network.internal) {
            Some((first, _)) if !Path::new(&request.sandbox_key).exists() => {
                first.network_id == request.network_id
            }
            _ => !has_others(snapshot, endpoint),
        }
    }

    /// The container's name, and what it wants to be. Where Docker does not tell, that is made up for later.
    async fn introduce(&self, request: &Join) -> Result<(String, NetworkSettings, EndpointUpdate), Failure> {
        let short = request.endpoint_id.get(..SHORT).unwrap_or(&request.endpoint_id).to_owned();
        let told = async {
            let network = self.api.network(&request.network_id).await?;
            let mut attached = network.containers.unwrap_or_default().into_values();
            let found = attached.find(|attached| attached.endpoint_id == request.endpoint_id);
            let found = found.ok_or_else(|| Failure::unavailable("Docker does not show the endpoint"))?;
            Ok::<_, Failure>((self.api.listed(&found.name).await?, found.name))
        };
        match told.await {
            Ok((listed, name)) => {
                let (labels, settings) =
                    listed.map(|listed| (listed.labels, listed.network_settings)).unwrap_or_default();
                let update =
                    identity(&name, &labels.unwrap_or_default(), &[]).map_err(Failure::bad_request)?;
                Ok((name, settings, update))
            }
            Err(failure) => {
                tracing::warn!(err = failure.text(), "a container joins, and Docker does not say which");
                Ok((short, NetworkSettings::default(), EndpointUpdate::default()))
            }
        }
    }

    /// What a container is told to be, on one of its networks: its service is on some of them, and it is a replica there.
    pub(super) fn on_network(
        &self,
        member: &Member,
        container: &NetworkSettings,
        here: NetworkId,
        mut update: EndpointUpdate,
    ) -> EndpointUpdate {
        let snapshot = member.agent.snapshot();
        let Some(service) = update.service.as_deref().and_then(|wanted| snapshot.find_service(wanted)) else {
            return update;
        };
        let bound = |place: &EndpointSettings| self.bindings.get(&place.network_id)?.network;
        let elsewhere = || container.places().filter_map(bound).any(|network| service.is_on(network));
        if !service.is_on(here) && elsewhere() {
            update.service = None;
        }
        update
    }
}

/// Whether its container is on another network of the cluster's.
fn has_others(snapshot: &Snapshot, endpoint: &Endpoint) -> bool {
    let same = |other: &Arc<Endpoint>| {
        other.id != endpoint.id
            && other.is_dockers()
            && other.node == endpoint.node
            && other.target.namespace_path() == endpoint.target.namespace_path()
    };
    snapshot.endpoints.values().any(same)
}

/// How Docker is to set up the container. The route to the gateway is for containers whose address is Docker's own: it
/// would be out of their reach. Those to the resolvers bring what Docker's resolver asks to the network's names, also if the
/// network is internal, or the default route is another network's.
fn joined(endpoint: &Endpoint, network: &Network, resolvers: &BTreeSet<IpAddr>) -> Joined {
    let src_name = mesh_net::desired::staged(endpoint.id).to_string();
    let mut joined = Joined {
        interface_name: InterfaceName { src_name, dst_prefix: PREFIX.to_owned() },
        disable_gateway_service: true,
        ..Joined::default()
    };
    for address in &endpoint.addresses {
        let Some(subnet) = network.subnet_of(*address) else { continue };
        if address.is_ipv4() {
            let (route_type, next_hop) = (CONNECTED, String::new());
            let destination = IpNetwork::from(subnet.gateway);
            joined.static_routes.push(StaticRoute { destination, route_type, next_hop });
        }
        let gateway = subnet.gateway.to_string();
        for resolver in resolvers.iter().filter(|resolver| resolver.is_ipv4() == address.is_ipv4()) {
            let (destination, next_hop) = (IpNetwork::from(*resolver), gateway.clone());
            joined.static_routes.push(StaticRoute { destination, route_type: NEXT_HOP, next_hop });
        }
        match address {
            _ if network.internal => {}
            IpAddr::V4(_) => joined.gateway = gateway,
            IpAddr::V6(_) => joined.gateway_ipv6 = gateway,
        }
    }
    joined
}

/// Whom Docker's resolver asks from inside a container; who is on this host's loopback it asks from the host. Docker looks
/// behind systemd's stub.
fn host_resolvers() -> BTreeSet<IpAddr> {
    let of_file = |path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        parse_resolv_conf(&text, &BTreeSet::new(), |_| None)
            .iter()
            .map(SocketAddr::ip)
            .collect::<BTreeSet<_>>()
    };
    let mut resolvers = of_file(RESOLV_CONF);
    if resolvers.iter().all(|address| *address == SYSTEMD_STUB) {
        resolvers = of_file(BEHIND_SYSTEMD_STUB);
    }
    let link_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    resolvers.retain(|address| !address.is_loopback() && !link_local(address));
    resolvers
}
