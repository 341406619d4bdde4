//! One function a request.

pub(super) mod dns;
pub(super) mod endpoints;

use super::{
    Failure,
    json::{Json, Path},
    traffic, views,
    whole::{Shown, Whole},
};
use crate::{
    daemon::{Daemon, Member},
    manager::Manager,
    wire::Committed,
};
use axum::{
    body::Bytes,
    extract::{Query, State},
    http::{StatusCode, Uri},
};
use futures_util::{StreamExt, stream};
use mesh_api::{
    AuthorityView, Created, Diagnosis, EventLine, EventsQuery, Examine, Init, Initialized, Join,
    JoinTokenRequest, JoinTokenView, Joined, Leave, Migrated, NetworkView, NodeRemoval, NodeView, Pruned,
    Removed, Restored, RoleChanged, RotateAuthority, ServiceView, StatusView, StoreSpec, json_line,
};
use mesh_model::{
    Network, NetworkSpec, NetworkUpdate, Node, NodeUpdate, Refusal, Role, ServiceSpec, ServiceUpdate,
    Snapshot,
};
use std::{sync::Arc, time::Duration};

type Shared = State<Arc<Daemon>>;
type Answer<T> = Result<Json<T>, Failure>;
type Read<T> = Result<Shown<T>, Failure>;

/// How long this node may take to apply what its own user changed.
const APPLY: Duration = Duration::from_secs(10);

pub(super) async fn unknown(uri: Uri) -> Failure {
    Failure::new(StatusCode::NOT_FOUND, format!("this meshd does not know {}: is meshctl newer?", uri.path()))
}

pub(super) async fn status(State(daemon): Shared) -> Json<StatusView> {
    Json(daemon.status(views::node))
}

pub(super) async fn doctor(State(daemon): Shared, Json(what): Json<Examine>) -> Answer<Diagnosis> {
    Ok(Json(crate::doctor::examine(&daemon, &what).await?))
}

pub(super) async fn cluster_init(State(daemon): Shared, Json(init): Json<Init>) -> Answer<Initialized> {
    Ok(Json(carry_through(async move { daemon.init(init).await }).await?))
}

pub(super) async fn cluster_join(State(daemon): Shared, Json(join): Json<Join>) -> Answer<Joined> {
    Ok(Json(carry_through(async move { daemon.join(join).await }).await?))
}

pub(super) async fn cluster_leave(State(daemon): Shared, Json(leave): Json<Leave>) -> Answer<()> {
    Ok(Json(carry_through(async move { daemon.leave(leave.force).await }).await?))
}

pub(super) async fn cluster_backup(State(daemon): Shared) -> Result<Bytes, Failure> {
    Ok(manager(&*daemon.member()?).await?.backup().await?.into())
}

pub(super) async fn cluster_restore(State(daemon): Shared, backup: Bytes) -> Answer<Restored> {
    Ok(Json(carry_through(async move { daemon.restore(&backup).await }).await?))
}

pub(super) async fn cluster_migrate(State(daemon): Shared, Json(to): Json<StoreSpec>) -> Answer<Migrated> {
    let member = daemon.member()?;
    // Not kept: the manager ends on the way.
    drop(manager(&member).await?);
    Ok(Json(carry_through(async move { member.migrate(to).await }).await?))
}

pub(super) async fn join_token(
    State(daemon): Shared,
    Json(request): Json<JoinTokenRequest>,
) -> Answer<JoinTokenView> {
    let member = daemon.member()?;
    // Records count in seconds: less is a token that nobody can use.
    if request.ttl_ms.is_some_and(|ttl| ttl < 1000) {
        return Err(Failure::bad_request("--ttl is too short: give 1s or more, such as 1h"));
    }
    Ok(Json(manager(&member).await?.join_token(&request).await?))
}

pub(super) async fn authority(State(daemon): Shared) -> Answer<AuthorityView> {
    let member = daemon.member()?;
    Ok(Json(manager(&member).await?.authority_view().await?))
}

pub(super) async fn rotate_authority(
    State(daemon): Shared,
    Json(request): Json<RotateAuthority>,
) -> Answer<AuthorityView> {
    let member = daemon.member()?;
    carry_through(async move {
        let manager = manager(&member).await?;
        if request.force {
            manager.force_authority().await?;
        } else {
            manager.rotate_authority().await?;
        }
        Ok(Json(manager.authority_view().await?))
    })
    .await
}

pub(super) async fn nodes(State(daemon): Shared) -> Answer<Vec<NodeView>> {
    let member = daemon.member()?;
    let snapshot = member.agent.snapshot();
    let local = member.identity.node;
    let mut nodes: Vec<NodeView> =
        snapshot.nodes.values().map(|n| views::node(&snapshot, n, local)).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(nodes))
}

/// Follows what happens until the client goes, or the daemon ends. What goes wrong on the way is the last line.
pub(super) async fn events(
    State(daemon): Shared,
    Query(query): Query<EventsQuery>,
) -> Result<axum::body::Body, Failure> {
    let ended = daemon.ending();
    let events = daemon.member()?.agent.events(query.since).await?;
    let ending = stream::once(async {
        Err(Failure::unavailable("this meshd ends: follow another's, or this one's when it is back"))
    });
    let lines = events.take_until(ended).chain(ending).map(|event| match event {
        Ok(event) => (true, EventLine::Event(event)),
        Err(failure) => (false, EventLine::Error(failure.text().to_owned())),
    });
    // One line after the failure would be one too many.
    let lines = lines.scan(true, |go_on, (fine, line)| {
        let go_on = std::mem::replace(go_on, fine);
        async move { go_on.then_some(line) }
    });
    Ok(axum::body::Body::from_stream(lines.map(|line| Ok::<_, std::convert::Infallible>(json_line(&line)))))
}

pub(super) async fn update_node(
    State(daemon): Shared,
    Path(name): Path<String>,
    Json(update): Json<NodeUpdate>,
) -> Answer<NodeView> {
    let member = daemon.member()?;
    carry_through(async move {
        let committed = manager(&member).await?.update_node(&name, &update).await?;
        everywhere(&member, &committed).await?;
        Ok(Json(views::node(&member.agent.snapshot(), &committed.value, member.identity.node)))
    })
    .await
}

pub(super) async fn remove_node(
    State(daemon): Shared,
    Path(name): Path<String>,
    Query(removal): Query<NodeRemoval>,
) -> Answer<Removed> {
    let member = daemon.member()?;
    carry_through(async move {
        let status = &member.agent.snapshot().status;
        let committed = manager(&member).await?.remove_node(&name, status, removal.force).await?;
        everywhere(&member, &committed).await?;
        Ok(Json(Removed { removed: true, addresses: Vec::new() }))
    })
    .await
}

pub(super) async fn promote(State(daemon): Shared, Path(wanted): Path<String>) -> Answer<RoleChanged> {
    let member = daemon.member()?;
    carry_through(async move {
        let seen = member.agent.snapshot();
        let status = |node| seen.status_of(node);
        Ok(Json(role_changed(manager(&member).await?.promote(&wanted, status).await?, Role::Manager)))
    })
    .await
}

pub(super) async fn demote(State(daemon): Shared, Path(wanted): Path<String>) -> Answer<RoleChanged> {
    let member = daemon.member()?;
    carry_through(async move {
        Ok(Json(role_changed(manager(&member).await?.demote(&wanted).await?, Role::Worker)))
    })
    .await
}

fn role_changed((node, unchanged): (Arc<Node>, bool), role: Role) -> RoleChanged {
    RoleChanged { id: node.id, name: node.name.to_string(), role, unchanged }
}

pub(super) async fn networks(State(daemon): Shared) -> Read<Vec<NetworkView>> {
    let whole = Whole::of(&*daemon.member()?).await;
    let snapshot = &whole.snapshot;
    let mut networks: Vec<NetworkView> =
        snapshot.networks.values().map(|n| views::network(snapshot, n)).collect();
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(whole.shows(networks))
}

pub(super) async fn network(State(daemon): Shared, Path(name): Path<String>) -> Read<NetworkView> {
    let whole = Whole::of(&*daemon.member()?).await;
    let snapshot = &whole.snapshot;
    let network = snapshot.find_network(&name).ok_or_else(|| not_found("network", &name))?;
    Ok(whole.shows(views::network(snapshot, network)))
}

pub(super) async fn create_network(State(daemon): Shared, Json(spec): Json<NetworkSpec>) -> Answer<Created> {
    let member = daemon.member()?;
    carry_through(async move {
        let network = make_network(&member, &spec).await?;
        Ok(Json(Created { id: network.id.to_string(), warnings: Vec::new() }))
    })
    .await
}

pub(super) async fn update_network(
    State(daemon): Shared,
    Path(name): Path<String>,
    Json(update): Json<NetworkUpdate>,
) -> Answer<Created> {
    let member = daemon.member()?;
    carry_through(async move {
        let committed = manager(&member).await?.update_network(&name, &update).await?;
        let warnings = everywhere(&member, &committed).await?;
        Ok(Json(Created { id: committed.value.id.to_string(), warnings }))
    })
    .await
}

pub(super) async fn prune_networks(State(daemon): Shared) -> Answer<Pruned> {
    let member = daemon.member()?;
    carry_through(async move {
        let committed = manager(&member).await?.prune_networks().await?;
        everywhere(&member, &committed).await?;
        Ok(Json(Pruned { removed: committed.value.iter().map(|network| network.name.to_string()).collect() }))
    })
    .await
}

/// Makes a network, which only a manager can.
pub(crate) async fn make_network(member: &Member, spec: &NetworkSpec) -> Result<Arc<Network>, Failure> {
    let committed = manager(member).await?.create_network(spec).await?;
    everywhere(member, &committed).await?;
    Ok(committed.value)
}

pub(super) async fn remove_network(State(daemon): Shared, Path(name): Path<String>) -> Answer<Removed> {
    let member = daemon.member()?;
    carry_through(async move {
        let committed = manager(&member).await?.remove_network(&name).await?;
        everywhere(&member, &committed).await?;
        Ok(Json(Removed { removed: true, addresses: Vec::new() }))
    })
    .await
}

pub(super) async fn services(State(daemon): Shared) -> Read<Vec<ServiceView>> {
    let whole = Whole::of(&*daemon.member()?).await;
    let snapshot = &whole.snapshot;
    let mut services: Vec<ServiceView> =
        snapshot.services.values().map(|s| views::service(snapshot, s)).collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(whole.shows(services))
}

pub(super) async fn service(State(daemon): Shared, Path(name): Path<String>) -> Read<ServiceView> {
    let member = daemon.member()?;
    let whole = Whole::of(&member).await;
    let snapshot = &whole.snapshot;
    let service = snapshot.find_service(&name).ok_or_else(|| not_found("service", &name))?;
    let view = views::service(snapshot, service);
    Ok(whole.shows(traffic::of_service(&member, &whole, service, view).await?))
}

pub(super) async fn create_service(State(daemon): Shared, Json(spec): Json<ServiceSpec>) -> Answer<Created> {
    let member = daemon.member()?;
    carry_through(async move {
        let (committed, mut warnings) = manager(&member).await?.create_service(&spec).await?;
        warnings.extend(everywhere(&member, &committed).await?);
        Ok(Json(Created { id: committed.value.id.to_string(), warnings }))
    })
    .await
}

pub(super) async fn update_service(
    State(daemon): Shared,
    Path(name): Path<String>,
    Json(update): Json<ServiceUpdate>,
) -> Answer<Created> {
    let member = daemon.member()?;
    carry_through(async move {
        let (committed, mut warnings) = manager(&member).await?.update_service(&name, &update).await?;
        warnings.extend(everywhere(&member, &committed).await?);
        Ok(Json(Created { id: committed.value.id.to_string(), warnings }))
    })
    .await
}

pub(super) async fn remove_service(State(daemon): Shared, Path(name): Path<String>) -> Answer<Removed> {
    let member = daemon.member()?;
    carry_through(async move {
        let committed = manager(&member).await?.remove_service(&name).await?;
        everywhere(&member, &committed).await?;
        Ok(Json(Removed { removed: true, addresses: Vec::new() }))
    })
    .await
}

/// The manager in this process; a worker says where managers are.
async fn manager(member: &Member) -> Result<Arc<Manager>, Failure> {
    let snapshot: Arc<Snapshot> = member.agent.snapshot();
    let local = member.identity.node;
    let managers: Vec<&Arc<Node>> = snapshot.nodes.values().filter(|n| n.role == Role::Manager).collect();
    let record = snapshot.nodes.get(&local).map(|node| node.role);
    // What is on disk may be old, or nothing: then it is what it was. A manager that is ending takes no more changes.
    let worker = match record {
        Some(role) if member.agent.link.is_connected() || member.manager().is_none() => role == Role::Worker,
        _ => member.identity.role == Role::Worker && member.manager().is_none(),
    };
    if !worker {
        return member.manager_soon().await.map_err(|problem| {
            let reason = if problem.is_empty() { "it is starting".to_owned() } else { problem };
            Failure::unavailable(format!("this node's manager does not run: {reason}"))
        });
    }
    let names: Vec<String> = managers.iter().map(|n| format!("{} ({})", n.name, n.advertise.ip())).collect();
    Err(Failure::forbidden(format!(
        "this node is a worker: run the command on a manager: {}",
        names.join(", ")
    )))
}

/// Waits until this node has applied a change and the others have confirmed it; names those that lag.
async fn everywhere<T>(member: &Member, committed: &Committed<T>) -> Result<Vec<String>, Failure> {
    let applied = member.agent.applied(committed.revision, APPLY).await?;
    let confirmed = manager(member).await?.confirm(committed.revision).await;
    let lagging = confirmed.lagging.iter().map(|node| format!("node '{node}' has not applied this yet"));
    Ok(lagging.chain(applied.problems.iter().cloned()).collect())
}

/// Runs a change to its end even when the client hangs up in the middle.
async fn carry_through<T: Send + 'static>(
    change: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    tokio::spawn(change).await.unwrap_or_else(|e| Err(Failure::internal(format!("the request failed: {e}"))))
}

fn not_found(kind: &'static str, wanted: &str) -> Failure {
    Refusal::NotFound { kind, wanted: wanted.to_owned() }.into()
}
