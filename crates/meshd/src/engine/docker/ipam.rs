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
    protocol::{GATEWAY, MESH_NETWORK, OfAddress, PoolGiven, RequestPool},
};
use crate::api::Failure;
use ipnetwork::IpNetwork;
use mesh_model::{Endpoint, EndpointId, MacAddr, Network, Snapshot, first_free};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// Begins the ID of a pool that was left open; the name of its network follows.
const OPEN: &str = "network:";
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
        if !request.pool.is_empty() {
            let pool: IpNetwork = request.pool.parse().map_err(|e| Failure::bad_request(format!("{e}")))?;
            return Ok(PoolGiven { pool_id: format!("{GIVEN}{pool}"), pool, data: BTreeMap::new() });
        }
        let wanted = request.options.as_ref().and_then(|options| options.get(MESH_NETWORK)).ok_or_else(|| {
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
        let everything = if request.v6 { "::/0" } else { "0.0.0.0/0" };
        let pool = everything.parse().map_err(|e| Failure::internal(format!("{e}")))?;
        let gateway = format!("{}/{}", subnet.gateway, subnet.cidr.prefix());
        let data = BTreeMap::from([(GATEWAY.to_owned(), gateway)]);
        Ok(PoolGiven { pool_id: format!("{OPEN}{}", network.id), pool, data })
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
        let ipv6 = request.pool_id.strip_prefix(GIVEN).is_some_and(|pool| pool.contains(':'));
        let known = snapshot.endpoints.values().find(|endpoint| endpoint.owner == Some(owner(mac)));
        let endpoint = match known {
            Some(known) => Arc::clone(known),
            None => {
                let mut spec = staged(network, "address");
                spec.addresses.extend(wanted);
                (spec.mac, spec.owner) = (Some(mac), Some(owner(mac)));
                member.agent.stage(EndpointId::from_bits(rand::random()), &spec).await?
            }
        };
        address_of(&endpoint, network, ipv6)
            .filter(|given| wanted.is_none_or(|wanted| given.ip() == wanted))
            .ok_or_else(|| {
                Failure::conflict("that address can't be had beside the other family's: leave out --ip6")
            })
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
    if let Some(id) = pool.strip_prefix(OPEN) {
        return id.parse().ok().and_then(|id| snapshot.networks.get(&id)).ok_or_else(gone);
    }
    let subnet: IpNetwork = pool.strip_prefix(GIVEN).and_then(|pool| pool.parse().ok()).ok_or_else(gone)?;
    let has = |network: &&Arc<Network>| network.subnets.iter().any(|own| own.cidr == subnet);
    snapshot.networks.values().find(has).ok_or_else(gone)
}

fn address_of(endpoint: &Endpoint, network: &Network, ipv6: bool) -> Option<IpNetwork> {
    let address = endpoint.addresses.iter().find(|address| address.is_ipv6() == ipv6)?;
    IpNetwork::new(*address, network.subnet_of(*address)?.cidr.prefix()).ok()
}
