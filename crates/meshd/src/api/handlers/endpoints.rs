//! Endpoints: who attaches and detaches, and what is told of them.

use super::{Answer, Read, Shared, carry_through, everywhere, manager, not_found};
use crate::{
    api::{
        Failure,
        json::{Json, Path},
        views,
        whole::Whole,
    },
    daemon::{Daemon, Member},
};
use axum::extract::{Query, State};
use mesh_api::{Disconnect, EndpointFilter, EndpointSettings, EndpointView, Removed};
use mesh_model::{Endpoint, EndpointSpec, EndpointUpdate, Snapshot, Target};
use std::sync::Arc;

pub(in crate::api) async fn list(
    State(daemon): Shared,
    Query(filter): Query<EndpointFilter>,
) -> Read<Vec<EndpointView>> {
    let member = daemon.member()?;
    let whole = if filter.owner.is_some() { Whole::of_node(&member) } else { Whole::of(&member).await };
    let snapshot = &whole.snapshot;
    let owned = |endpoint: &Endpoint, beginning: &String| {
        endpoint.node == member.identity.node
            && endpoint.owner.as_ref().is_some_and(|owner| owner.starts_with(beginning))
    };
    let network = match &filter.network {
        None => None,
        Some(name) => Some(snapshot.find_network(name).ok_or_else(|| not_found("network", name))?.id),
    };
    let service = match &filter.service {
        None => None,
        Some(name) => Some(snapshot.find_service(name).ok_or_else(|| not_found("service", name))?.id),
    };
    let node = match &filter.node {
        None => None,
        Some(name) => Some(snapshot.find_node(name).ok_or_else(|| not_found("node", name))?.id),
    };
    let wanted = snapshot
        .endpoints
        .values()
        .filter(|e| filter.owner.as_ref().is_none_or(|beginning| owned(e, beginning)))
        .filter(|e| node.is_none_or(|id| e.node == id))
        .filter(|e| network.is_none_or(|id| e.network == id))
        .filter(|e| service.is_none_or(|id| e.service == Some(id)));
    let mut endpoints: Vec<EndpointView> = wanted.map(|e| views::endpoint(snapshot, e)).collect();
    endpoints.sort_by(|a, b| (&a.network, &a.name).cmp(&(&b.network, &b.name)));
    Ok(whole.shows(endpoints))
}

pub(in crate::api) async fn show(State(daemon): Shared, Path(id): Path<String>) -> Read<EndpointView> {
    let whole = Whole::of(&*daemon.member()?).await;
    let snapshot = &whole.snapshot;
    let endpoint = snapshot.find_endpoint(&id).ok_or_else(|| not_found("endpoint", &id))?;
    Ok(whole.shows(views::endpoint(snapshot, endpoint)))
}

pub(in crate::api) async fn connect(
    State(daemon): Shared,
    Json(spec): Json<EndpointSpec>,
) -> Answer<EndpointView> {
    let member = daemon.member()?;
    carry_through(async move {
        let spec = daemon.locate(spec).await?;
        let endpoint = member.agent.connect(spec).await?;
        Ok(Json(views::endpoint(&member.agent.snapshot(), &endpoint)))
    })
    .await
}

pub(in crate::api) async fn disconnect(
    State(daemon): Shared,
    Json(request): Json<Disconnect>,
) -> Answer<Removed> {
    let member = daemon.member()?;
    carry_through(async move {
        // Endpoints of this node are known here, whether a manager answers or not.
        let mut found = endpoint_on(&member, &member.agent.snapshot(), &request)?;
        if found.as_ref().is_none_or(|endpoint| endpoint.node != member.identity.node) {
            found = endpoint_on(&member, &Whole::of(&member).await.snapshot, &request)?;
        }
        match found {
            // What Docker has attached Docker takes off, and has the endpoint removed on its way.
            Some(endpoint) if daemon.detach(&member, &endpoint).await? => {
                Ok(Json(Removed { removed: true, addresses: endpoint.addresses.clone() }))
            }
            Some(endpoint) => take_off(&member, &endpoint, request.force).await,
            None => Ok(Json(Removed { removed: false, addresses: Vec::new() })),
        }
    })
    .await
}

fn endpoint_on(
    member: &Member,
    snapshot: &Snapshot,
    request: &Disconnect,
) -> Result<Option<Arc<Endpoint>>, Failure> {
    let wanted = &request.network;
    let network = snapshot.find_network(wanted).ok_or_else(|| not_found("network", wanted))?.id;
    let mut on_network = snapshot.endpoints.values().filter(|e| e.network == network);
    // By its whole ID only: what is gone already is named here, and must not be taken for another.
    let found = match request.endpoint.parse::<Target>() {
        Ok(target) => on_network.find(|e| e.node == member.identity.node && e.target.is_named_as(&target)),
        Err(_) => {
            let wanted = request.endpoint.as_str();
            let owned = |e: &Endpoint| e.node == member.identity.node && e.owner.as_deref() == Some(wanted);
            on_network.find(|e| *e.name == *wanted || e.id.to_string() == wanted || owned(e))
        }
    };
    Ok(found.cloned())
}

pub(in crate::api) async fn remove(State(daemon): Shared, Path(id): Path<String>) -> Answer<Removed> {
    let member = daemon.member()?;
    carry_through(async move {
        let snapshot = Whole::of(&member).await.snapshot;
        let endpoint = snapshot.find_endpoint(&id).ok_or_else(|| not_found("endpoint", &id))?;
        take_off(&member, endpoint, false).await
    })
    .await
}

/// What becomes of an endpoint that stays.
enum Change {
    Set(EndpointSettings),
    Drain,
}

pub(in crate::api) async fn update(
    State(daemon): Shared,
    Path(id): Path<String>,
    Json(settings): Json<EndpointSettings>,
) -> Answer<EndpointView> {
    change(&daemon, id, Change::Set(settings)).await
}

pub(in crate::api) async fn drain(State(daemon): Shared, Path(id): Path<String>) -> Answer<EndpointView> {
    change(&daemon, id, Change::Drain).await
}

/// By way of this node's agent, if the endpoint is its own, or of the manager here. Returns when every node that answers
/// does as it says.
async fn change(daemon: &Daemon, id: String, change: Change) -> Answer<EndpointView> {
    let member = daemon.member()?;
    carry_through(async move {
        let snapshot = Whole::of(&member).await.snapshot;
        let endpoint = snapshot.find_endpoint(&id).ok_or_else(|| not_found("endpoint", &id))?;
        let changed = if endpoint.node == member.identity.node {
            match change {
                Change::Drain => member.agent.drain(endpoint.id).await?,
                Change::Set(settings) => {
                    let committed = member.agent.update(endpoint.id, &as_update(&settings)).await?;
                    member.agent.confirm(committed.revision).await;
                    committed.value
                }
            }
        } else {
            let manager = manager(&member).await?;
            let committed = match change {
                Change::Drain => manager.drain_endpoint(endpoint.id, None).await?,
                Change::Set(settings) => {
                    manager.update_endpoint(endpoint.id, &as_update(&settings), None).await?
                }
            };
            everywhere(&member, &committed).await?;
            committed.value
        };
        Ok(Json(views::endpoint(&member.agent.snapshot(), &changed)))
    })
    .await
}

fn as_update(settings: &EndpointSettings) -> EndpointUpdate {
    EndpointUpdate { weight: settings.weight, ..EndpointUpdate::default() }
}

async fn take_off(member: &Member, endpoint: &Arc<Endpoint>, force: bool) -> Answer<Removed> {
    if endpoint.node == member.identity.node {
        return Ok(Json(member.agent.disconnect(endpoint, force).await?));
    }
    // Its own node alone can see which connections are in flight: from here it is withdrawn, then removed.
    let manager = manager(member).await?;
    if !force {
        match manager.drain_endpoint(endpoint.id, None).await.map_err(Failure::from) {
            Ok(drained) => drop(everywhere(member, &drained).await?),
            // Somebody else removes it at this moment.
            Err(failure) if failure.is_not_found() => {}
            Err(failure) => return Err(failure),
        }
    }
    everywhere(member, &manager.remove_endpoint(endpoint.id, None).await?).await?;
    Ok(Json(Removed { removed: true, addresses: endpoint.addresses.clone() }))
}
