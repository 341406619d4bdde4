//! What changes of an endpoint after it was made: its weight; names, service and where the container is, as its engine tells.

use super::endpoint::{check_ifname, service_on, taken};
use crate::{Endpoint, EndpointUpdate, Name, Network, Refusal, Snapshot};

/// The endpoint as it is after an update.
pub fn endpoint_update(
    snapshot: &Snapshot,
    endpoint: &Endpoint,
    update: &EndpointUpdate,
) -> Result<Endpoint, Refusal> {
    let network = snapshot
        .networks
        .get(&endpoint.network)
        .ok_or_else(|| Refusal::NotFound { kind: "network", wanted: endpoint.network.to_string() })?;
    let mut updated = endpoint.clone();
    if let Some(wanted) = &update.service {
        updated.service = Some(service_on(snapshot, wanted, network)?.id);
    }
    if let Some(aliases) = &update.aliases {
        updated.aliases.clone_from(aliases);
    }
    updated.weight = update.weight.unwrap_or(endpoint.weight);
    if let Some(target) = &update.target {
        updated.target = target.clone();
    }
    updated.namespace_inode = update.namespace_inode.unwrap_or(endpoint.namespace_inode);
    if let Some(ifname) = &update.ifname {
        check_ifname(ifname)?;
        updated.ifname.clone_from(ifname);
    }
    if let Some(owner) = &update.owner {
        updated.owner = Some(owner.clone());
    }
    rename(snapshot, network, &mut updated, update)?;
    Ok(updated)
}

fn rename(
    snapshot: &Snapshot,
    network: &Network,
    endpoint: &mut Endpoint,
    update: &EndpointUpdate,
) -> Result<(), Refusal> {
    let (id, service) = (endpoint.id, endpoint.service);
    let taken = |name: &Name| taken(snapshot, network, name, service, Some(id));
    match (&update.name, &update.preferred_name) {
        (Some(name), _) => match taken(name) {
            Some(kind) => return Err(Refusal::NameTaken { kind, name: name.to_string() }),
            None => endpoint.name = name.clone(),
        },
        (None, Some(name)) if taken(name).is_none() => endpoint.name = name.clone(),
        (None, Some(name)) if !endpoint.aliases.iter().any(|alias| alias.same(name)) => {
            endpoint.aliases.push(name.clone());
        }
        (None, _) => {}
    }
    Ok(())
}
