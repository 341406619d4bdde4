//! The network driver: Docker's networks are bound to the cluster's, its endpoints are the cluster's endpoints.

use super::{
    Docker,
    bindings::Binding,
    protocol::{
        ADDRESS_SPACE, CreateEndpoint, CreateNetwork, Interface, MESH_NETWORK, OfEndpoint, OfNetwork, Pool,
        PortBinding,
    },
};
use crate::{
    api::{Failure, make_network},
    daemon::Member,
};
use ipnetwork::IpNetwork;
use mesh_model::{
    Container, DOCKER, Endpoint, EndpointId, EndpointSpec, EndpointUpdate, MacAddr, Name, Network,
    NetworkSpec, Protocol, PublishMode, PublishedPort, Snapshot, Target,
};
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

/// Digits of Docker's IDs that people use.
pub(super) const SHORT: usize = 12;
/// `IPPROTO_TCP` and `IPPROTO_UDP`.
const TCP: u8 = 6;
const UDP: u8 = 17;

impl Docker {
    pub(super) async fn create_network(self: &Arc<Self>, request: CreateNetwork) -> Result<(), Failure> {
        let member = self.daemon.member()?;
        let snapshot = member.agent.snapshot();
        let name = request.mesh_network().map_err(Failure::bad_request)?.map(str::to_owned);
        let mut binding = Binding { name, internal: request.internal(), ..Binding::default() };
        for pool in request.pools().filter(|pool| pool.pool.prefix() > 0) {
            if pool.address_space == ADDRESS_SPACE {
                binding.subnets.push(pool.pool);
                binding.gateways.extend(pool.gateway.map(|gateway| gateway.ip()));
            } else {
                check_dockers_own(&snapshot, pool)?;
            }
        }
        let by_subnet = || binding.subnets.first().and_then(|subnet| network_with_subnet(&snapshot, *subnet));
        if binding.name.is_none() {
            let found = by_subnet().or_else(|| network_with_gateway(&snapshot, &request));
            binding.network =
                found.map(|network| suits(network, &binding).map(|()| network.id)).transpose()?;
        }
        if binding.name.is_some() {
            binding.network = Some(self.find_or_make(&member, &binding, None).await?.id);
        }
        let named = binding.network.is_some();
        self.bindings.put(&request.network_id, binding);
        if !named {
            // Docker tells the network's name when this is answered, not before.
            let (docker, id) = (Arc::clone(self), request.network_id);
            tokio::spawn(async move { docker.name_network(&id).await });
        }
        Ok(())
    }

    /// Forgets the binding. The cluster's network stays: other nodes may use it.
    pub(super) fn delete_network(&self, request: &OfNetwork) {
        self.bindings.remove(&request.network_id);
    }

    /// Makes the network of the cluster that bears the name of a new one of Docker's, as soon as that is told.
    async fn name_network(&self, id: &str) {
        for pause in [5, 20, 100, 500, 2000] {
            tokio::time::sleep(std::time::Duration::from_millis(pause)).await;
            if self.bindings.get(id).is_none_or(|binding| binding.network.is_some()) {
                return;
            }
            let Ok(member) = self.daemon.member() else { return };
            match self.mesh_network(&member, id).await {
                Ok(network) => return tracing::info!(network = %network.name, "network of Docker's"),
                Err(failure) => tracing::debug!(err = failure.text(), "no network for Docker's yet"),
            }
        }
    }

    /// The cluster's network behind one of Docker's.
    pub(super) async fn mesh_network(&self, member: &Member, id: &str) -> Result<Arc<Network>, Failure> {
        let snapshot = member.agent.snapshot();
        let mut binding = self.bindings.get(id).unwrap_or_default();
        if let Some(bound) = binding.network {
            return snapshot.networks.get(&bound).cloned().ok_or_else(|| {
                Failure::conflict(
                    "its network of the cluster was removed: remove Docker's network too, and create it again",
                )
            });
        }
        let told = self.api.network(id).await?;
        if binding.name.is_none() {
            binding.name = told.options.as_ref().and_then(|options| options.get(MESH_NETWORK)).cloned();
        }
        let network = self.find_or_make(member, &binding, Some(&told.name)).await?;
        self.bindings.put(id, Binding { network: Some(network.id), ..binding });
        Ok(network)
    }

    /// The network of that name; a manager makes it if there is none.
    async fn find_or_make(
        &self,
        member: &Member,
        binding: &Binding,
        dockers_name: Option<&str>,
    ) -> Result<Arc<Network>, Failure> {
        let wanted = binding.name.as_deref().or(dockers_name).unwrap_or_default();
        let snapshot = member.agent.snapshot();
        if let Some(network) = snapshot.find_network(wanted) {
            return suits(network, binding).map(|()| Arc::clone(network));
        }
        let name: Name = wanted.parse().map_err(|e| Failure::bad_request(format!("{e}")))?;
        let spec = NetworkSpec {
            subnets: binding.subnets.clone(),
            gateways: binding.gateways.clone(),
            internal: binding.internal,
            ..NetworkSpec::named(name)
        };
        make_network(member, &spec).await.map_err(|failure| {
            Failure::conflict(format!("the cluster has no network '{wanted}': {}", failure.text()))
        })
    }

    pub(super) async fn create_endpoint(
        &self,
        request: CreateEndpoint,
    ) -> Result<serde_json::Value, Failure> {
        let member = self.daemon.member()?;
        let asked = request.interface.clone().unwrap_or_default();
        let ports = request.ports().map_err(Failure::bad_request)?;
        let ports = ports.iter().map(published).collect::<Result<Vec<_>, _>>()?;
        let owner = owner(&request.network_id, &request.endpoint_id);
        let wanted_mac = parse_mac(&asked)?;
        if let Some(known) = own(&member, &request.endpoint_id) {
            // Docker repeats what had no answer.
            return match wanted_mac {
                Some(mac) if mac != known.mac => Err(Failure::conflict("there is such an endpoint already")),
                _ => Ok(interface(&member, &asked, &known)),
            };
        }
        let endpoint = match reserved(&member, wanted_mac) {
            Some(reserved) => {
                if !ports.is_empty() {
                    return Err(Failure::bad_request(
                        "-p does not go with --ipam-driver meshd: publish a port of a service, or leave one of them out",
                    ));
                }
                let update = EndpointUpdate { owner: Some(owner), ..EndpointUpdate::default() };
                member.agent.update(reserved.id, &update).await?.value
            }
            None => {
                let network = self.mesh_network(&member, &request.network_id).await?;
                let mut spec = staged(&network, &request.endpoint_id);
                (spec.mac, spec.owner, spec.ports) = (wanted_mac, Some(owner), ports);
                spec.local_addresses = given(&asked)?;
                member.agent.stage(endpoint_id(&request.endpoint_id)?, &spec).await?
            }
        };
        Ok(interface(&member, &asked, &endpoint))
    }

    /// The container leaves the network, or has ended.
    pub(super) async fn leave(&self, request: &OfEndpoint) -> Result<(), Failure> {
        self.left.note(&request.endpoint_id);
        let member = self.daemon.member()?;
        match own(&member, &request.endpoint_id) {
            Some(endpoint) => member.agent.disconnect(&endpoint, false).await.map(drop),
            None => Ok(()),
        }
    }

    pub(super) async fn delete_endpoint(&self, request: &OfEndpoint) -> Result<(), Failure> {
        let member = self.daemon.member()?;
        match own(&member, &request.endpoint_id) {
            Some(endpoint) => member.agent.forget(endpoint.id).await.map(drop),
            None => Ok(()),
        }
    }
}

/// What an endpoint of this driver is owned by.
pub(super) fn owner(network: &str, endpoint: &str) -> String {
    format!("{DOCKER}{network}/{endpoint}")
}

/// The IDs of Docker's network and endpoint.
pub(super) fn owned(endpoint: &Endpoint) -> Option<(&str, &str)> {
    endpoint.owner.as_deref()?.strip_prefix(DOCKER)?.split_once('/')
}

/// This node's endpoint with one of Docker's IDs.
pub(super) fn own(member: &Member, id: &str) -> Option<Arc<Endpoint>> {
    let snapshot = member.agent.snapshot();
    let mut own = snapshot.endpoints.values().filter(|e| e.node == member.identity.node);
    own.find(|endpoint| owned(endpoint).is_some_and(|(_, owned)| owned == id)).cloned()
}

/// Docker's IDs are random: so are their first digits.
pub(super) fn endpoint_id(id: &str) -> Result<EndpointId, Failure> {
    let bits = id.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    bits.map(EndpointId::from_bits)
        .ok_or_else(|| Failure::bad_request(format!("'{id}' is no ID of Docker's")))
}

/// An endpoint for a container that is not there yet.
pub(super) fn staged(network: &Network, endpoint: &str) -> EndpointSpec {
    let name = endpoint.get(..SHORT).unwrap_or(endpoint).to_owned();
    EndpointSpec::new(network.id.to_string(), Target::Docker(Container { name, netns: None }), "eth0")
}

/// The endpoint that an address was asked for before, by its MAC address.
fn reserved(member: &Member, mac: Option<MacAddr>) -> Option<Arc<Endpoint>> {
    let owner = super::ipam::owner(mac?);
    let snapshot = member.agent.snapshot();
    let mut own = snapshot.endpoints.values().filter(|e| e.node == member.identity.node);
    own.find(|endpoint| endpoint.owner.as_ref() == Some(&owner)).cloned()
}

/// The addresses that Docker has given it already.
fn given(asked: &Interface) -> Result<Vec<IpAddr>, Failure> {
    let texts = [&asked.address, &asked.address_ipv6].into_iter().filter(|text| !text.is_empty());
    let parsed = texts.map(|text| text.parse::<IpNetwork>().map(|address| address.ip()));
    parsed.collect::<Result<_, _>>().map_err(|e| Failure::bad_request(format!("address: {e}")))
}

fn parse_mac(asked: &Interface) -> Result<Option<MacAddr>, Failure> {
    if asked.mac_address.is_empty() {
        return Ok(None);
    }
    asked.mac_address.parse().map(Some).map_err(|e| Failure::bad_request(format!("{e}")))
}

/// The answer to a request for an endpoint.
fn interface(member: &Member, asked: &Interface, endpoint: &Endpoint) -> serde_json::Value {
    let snapshot = member.agent.snapshot();
    let interface = missing(asked, endpoint, snapshot.networks.get(&endpoint.network));
    serde_json::json!({ "Interface": interface })
}

/// What Docker does not know of the interface yet. It refuses to be told what it knows.
fn missing(asked: &Interface, endpoint: &Endpoint, network: Option<&Arc<Network>>) -> Interface {
    let address = |ipv6: bool| {
        let address = endpoint.addresses.iter().find(|address| address.is_ipv6() == ipv6)?;
        let prefix = network?.subnet_of(*address)?.cidr.prefix();
        Some(format!("{address}/{prefix}"))
    };
    let unless = |known: &str, value: Option<String>| {
        if known.is_empty() { value.unwrap_or_default() } else { String::new() }
    };
    Interface {
        address: unless(&asked.address, address(false)),
        address_ipv6: unless(&asked.address_ipv6, address(true)),
        mac_address: unless(&asked.mac_address, Some(endpoint.mac.to_string())),
    }
}

/// Whether a network of the cluster's is what the user asks of Docker's.
fn suits(network: &Network, binding: &Binding) -> Result<(), Failure> {
    let refused = |why: String| Failure::conflict(format!("network '{}' of the cluster {why}", network.name));
    if let Some(subnet) = binding.subnets.iter().find(|s| network.subnets.iter().all(|own| own.cidr != **s)) {
        return Err(refused(format!("has no subnet {subnet}: leave out --subnet")));
    }
    if let Some(gateway) = binding.gateways.iter().find(|g| network.gateways().all(|own| own != **g)) {
        return Err(refused(format!("has another gateway than {gateway}: leave out --gateway")));
    }
    if binding.internal && !network.internal {
        return Err(refused("is not internal: leave out --internal".to_owned()));
    }
    Ok(())
}

fn published(port: &PortBinding) -> Result<PublishedPort, Failure> {
    let protocol = match port.proto {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        other => return Err(Failure::bad_request(format!("-p: protocol {other} can't be published"))),
    };
    let ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty());
    let ip =
        ip.map(str::parse::<IpAddr>).transpose().map_err(|e| Failure::bad_request(format!("-p: {e}")))?;
    Ok(PublishedPort {
        ip: ip.filter(|ip| !ip.is_unspecified()),
        published: port.host_port,
        target: port.port,
        protocol,
        mode: PublishMode::Host,
        proxy_protocol: None,
    })
}

fn network_with_subnet(snapshot: &Snapshot, subnet: IpNetwork) -> Option<&Arc<Network>> {
    snapshot.networks.values().find(|network| network.subnets.iter().any(|own| own.cidr == subnet))
}

/// A pool that this driver left open (see [`super::ipam`]) has the gateway of the network that it is for.
fn network_with_gateway<'a>(snapshot: &'a Snapshot, request: &CreateNetwork) -> Option<&'a Arc<Network>> {
    let mut open =
        request.pools().filter(|pool| pool.address_space == ADDRESS_SPACE && pool.pool.prefix() == 0);
    let gateway = open.find_map(|pool| pool.gateway)?;
    snapshot.networks.values().find(|network| network.gateways().any(|own| own == gateway.ip()))
}

/// Addresses of Docker's own are fine where they are of no other use. If the user asked for the subnet, it is the
/// cluster's that should have it: Docker would give the same addresses on several hosts.
fn check_dockers_own(snapshot: &Snapshot, pool: &Pool) -> Result<(), Failure> {
    let overlaps =
        |other: IpNetwork| other.contains(pool.pool.network()) || pool.pool.contains(other.network());
    let mut subnets = snapshot.networks.values().flat_map(|network| network.subnets.iter());
    if is_dockers_choice(pool.pool) && !subnets.any(|subnet| overlaps(subnet.cidr)) {
        return Ok(());
    }
    Err(Failure::bad_request(format!(
        "Docker would give out addresses of {} on each host alike: let the cluster do it with --ipam-driver meshd",
        pool.pool
    )))
}

/// Whether Docker takes such a subnet when none is asked for, unless it is configured otherwise: a /16 from 172.17.0.0
/// to 172.31.0.0, then a /20 of 192.168.0.0/16.
fn is_dockers_choice(pool: IpNetwork) -> bool {
    let IpAddr::V4(network) = pool.network() else { return false };
    let [a, b, ..] = network.octets();
    match pool.prefix() {
        16 => a == 172 && (17..=31).contains(&b),
        20 => network & Ipv4Addr::new(255, 255, 0, 0) == Ipv4Addr::new(192, 168, 0, 0),
        _ => false,
    }
}
