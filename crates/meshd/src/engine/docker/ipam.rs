//! The IPAM driver: addresses of the cluster, asked for before there is an endpoint.
//!
//! With the address, the cluster's record of the endpoint is made; its MAC address, which Docker draws beforehand, leads
//! from the one to the other.
//!
//! A pool that the user leaves open is `0.0.0.0/0`: libnetwork asks again and again for one that overlaps no route of the
//! host, and the cluster's subnets are routes of the host.

use super::{
    Docker,
    driver::staged,
    protocol::{GATEWAY, MESH_NETWORK, OfAddress, PoolGiven, RequestPool, check_options},
};
use crate::api::Failure;
use ipnetwork::IpNetwork;
use mesh_model::{Endpoint, EndpointId, MacAddr, Network, Snapshot, first_free};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// Begins the ID of a pool that was left open; the ID of its network follows. Each family has its own.
const OPEN: &str = "network:";
const OPEN_IPV6: &str = "network6:";
/// Begins the ID of a pool that the user gave; the subnet follows.
const GIVEN: &str = "subnet:";

/// What the endpoint of an address is owned by, until Docker tells of the endpoint.
pub(super) fn owner(mac: MacAddr) -> String {
    format!("docker-address:{mac}")
}

impl Docker {
    pub(super) fn request_pool(&self, request: &RequestPool) -> Result<PoolGiven, Failure> {
        let snapshot = self.daemon.member()?.agent.snapshot();
        if !request.sub_pool.is_empty() {
            return Err(Failure::bad_request(
                "--ip-range is the cluster's to keep: give it to 'meshctl network create'",
            ));
        }
        let options = request.options.as_ref();
        check_options(options.into_iter().flat_map(BTreeMap::keys)).map_err(Failure::bad_request)?;
        if !request.pool.is_empty() {
            let pool: IpNetwork = request.pool.parse().map_err(|e| Failure::bad_request(format!("{e}")))?;
            return Ok(PoolGiven { pool_id: format!("{GIVEN}{pool}"), pool, data: BTreeMap::new() });
        }
        let wanted = options.and_then(|options| options.get(MESH_NETWORK)).ok_or_else(|| {
            Failure::bad_request(
                "--ipam-driver meshd needs to know whose addresses: give --ipam-opt mesh.network=NAME or --subnet",
            )
        })?;
        let network = snapshot.find_network(wanted).ok_or_else(|| {
            Failure::from(mesh_model::Refusal::NotFound { kind: "network", wanted: wanted.clone() })
        })?;
        let subnet = network.subnets.iter().find(|subnet| subnet.cidr.is_ipv6() == request.v6);
        let subnet = subnet.ok_or_else(|| {
            Failure::bad_request(format!("network '{wanted}' has no subnet of that family: leave out --ipv6"))
        })?;
        let (everything, open) = if request.v6 { ("::/0", OPEN_IPV6) } else { ("0.0.0.0/0", OPEN) };
        let pool = everything.parse().map_err(|e| Failure::internal(format!("{e}")))?;
        let gateway = format!("{}/{}", subnet.gateway, subnet.cidr.prefix());
        let data = BTreeMap::from([(GATEWAY.to_owned(), gateway)]);
        Ok(PoolGiven { pool_id: format!("{open}{}", network.id), pool, data })
    }

    pub(super) async fn request_address(&self, request: &OfAddress) -> Result<IpNetwork, Failure> {
        let member = self.daemon.member()?;
        let snapshot = member.agent.snapshot();
        let wanted = match request.address.as_str() {
            "" => None,
            text => Some(text.parse::<IpAddr>().map_err(|e| Failure::bad_request(format!("{e}")))?),
        };
        let Some(mac) = request.mac().filter(|_| !request.is_gateway()) else {
            return gateway(&snapshot, &request.pool_id, wanted);
        };
        let network = network_of(&snapshot, &request.pool_id)?;
        let none = || Failure::conflict(format!("network '{}' has no address of that family", network.name));
        let ipv6 = is_ipv6(&request.pool_id);
        let mut spec = staged(network, "address");
        (spec.mac, spec.owner) = (Some(mac), Some(owner(mac)));
        spec.addresses.extend(wanted);
        // What the other family was asked for before.
        let known = snapshot.endpoints.values().find(|endpoint| endpoint.owner == spec.owner);
        if let Some(known) = known {
            if wanted.is_none_or(|wanted| known.addresses.contains(&wanted)) {
                return address_of(known, network, ipv6).ok_or_else(none);
            }
            spec.addresses.extend(known.addresses.iter().filter(|address| address.is_ipv6() != ipv6));
            spec.addresses.sort_unstable();
            member.agent.forget(known.id).await?;
        }
        let endpoint = member.agent.stage(EndpointId::from_bits(rand::random()), &spec).await?;
        address_of(&endpoint, network, ipv6).ok_or_else(none)
    }

    /// Takes back the address of an endpoint that Docker gave up before it told of it; others go with their endpoints.
    pub(super) async fn release_address(&self, request: &OfAddress) -> Result<(), Failure> {
        let member = self.daemon.member()?;
        let snapshot = member.agent.snapshot();
        let Ok(address) = request.address.parse::<IpAddr>() else { return Ok(()) };
        let Ok(network) = network_of(&snapshot, &request.pool_id) else { return Ok(()) };
        let mut own = snapshot.endpoints.values().filter(|e| e.node == member.identity.node);
        let reserved = own.find(|endpoint| {
            endpoint.network == network.id
                && endpoint.addresses.contains(&address)
                && endpoint.owner.as_ref() == Some(&owner(endpoint.mac))
        });
        match reserved {
            Some(endpoint) => member.agent.forget(endpoint.id).await.map(drop),
            None => Ok(()),
        }
    }
}

/// The gateway is the cluster's choice unless the user has one; a network that is not made yet gets the first address.
fn gateway(snapshot: &Snapshot, pool: &str, wanted: Option<IpAddr>) -> Result<IpNetwork, Failure> {
    let pool: IpNetwork = pool
        .strip_prefix(GIVEN)
        .and_then(|pool| pool.parse().ok())
        .ok_or_else(|| Failure::bad_request("--gateway goes with --subnet"))?;
    let of_network = || {
        let mut subnets = snapshot.networks.values().flat_map(|network| network.subnets.iter());
        subnets.find(|subnet| subnet.cidr == pool).map(|subnet| subnet.gateway)
    };
    let address = wanted.or_else(of_network).or_else(|| first_free(pool, &BTreeSet::new()));
    let address = address.filter(|address| pool.contains(*address));
    address
        .and_then(|address| IpNetwork::new(address, pool.prefix()).ok())
        .ok_or_else(|| Failure::bad_request(format!("{pool} has no such address")))
}

fn network_of<'a>(snapshot: &'a Snapshot, pool: &str) -> Result<&'a Arc<Network>, Failure> {
    let gone = || Failure::conflict(format!("no network of the cluster has the addresses of {pool}"));
    if let Some(id) = pool.strip_prefix(OPEN).or_else(|| pool.strip_prefix(OPEN_IPV6)) {
        return id.parse().ok().and_then(|id| snapshot.networks.get(&id)).ok_or_else(gone);
    }
    let subnet: IpNetwork = pool.strip_prefix(GIVEN).and_then(|pool| pool.parse().ok()).ok_or_else(gone)?;
    let has = |network: &&Arc<Network>| network.subnets.iter().any(|own| own.cidr == subnet);
    snapshot.networks.values().find(has).ok_or_else(gone)
}

fn is_ipv6(pool: &str) -> bool {
    pool.starts_with(OPEN_IPV6) || pool.strip_prefix(GIVEN).is_some_and(|subnet| subnet.contains(':'))
}

fn address_of(endpoint: &Endpoint, network: &Network, ipv6: bool) -> Option<IpNetwork> {
    let address = endpoint.addresses.iter().find(|address| address.is_ipv6() == ipv6)?;
    IpNetwork::new(*address, network.subnet_of(*address)?.cidr.prefix()).ok()
}
