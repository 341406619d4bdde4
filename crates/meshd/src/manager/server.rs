//! The manager's port: HTTP/2 over TLS 1.3. Agents show a certificate of the cluster; who joins has none yet.

mod connections;
mod pace;
mod places;

use super::{Declined, Error, Manager, Promotion, sessions::Caller};
use crate::{
    api::{
        Failure,
        json::{Json, Path},
    },
    wire::{
        Applied, AttachedReport, CatchUp, CertificateHeld, Claim, Committed, CommittedEndpoint, Confirm,
        Confirmed, Follower, HealthReport, HoldId, JoinReply, JoinRequest, PortsReports, PortsTold,
        RenewReply, RenewRequest, Reserved, Resume,
    },
};
use anyhow::Context;
use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, Query, State},
    routing::{get, post, put},
};
use futures_util::{StreamExt, stream};
use http::StatusCode;
use mesh_api::{EventsQuery, json_line};
use mesh_cluster::PeerIdentity;
use mesh_model::{EndpointId, EndpointSpec, EndpointUpdate, NodeId, Role, ServiceId};
use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpSocket},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How long an agent that knows more than this manager waits for the manager to catch up.
const AHEAD: Duration = Duration::from_secs(2);
/// How long an agent that asks to be told of a revision may wait for it.
const CATCH_UP: Duration = Duration::from_secs(10);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Requests are small; a larger body is refused.
const BODY: usize = 1 << 20;
/// But what a node tells of the ports of a service: up to 1,024 of them, of hundreds of replicas.
const TOLD: usize = 64 << 20;
/// Who has no certificate can only join: a request of a few kilobytes.
const STRANGER_BODY: usize = 16 << 10;

/// The listening port.
pub(super) struct Server {
    listener: TcpListener,
    manager: Arc<Manager>,
    routes: Routes,
}

/// What is answered, and to whom.
#[derive(Clone)]
struct Routes {
    members: Router,
    lapsed: Router,
    strangers: Router,
}

type Shared = State<Arc<Manager>>;
/// Who asks; none if it showed no certificate.
type Peer = Extension<Option<PeerIdentity>>;

impl Server {
    /// Listens on the port that was [taken](take_port) for it.
    pub(super) fn listen(port: TcpSocket, manager: Arc<Manager>) -> anyhow::Result<Self> {
        let listener = port.listen(BACKLOG).with_context(|| unusable(manager.identity.advertise))?;
        let members = Router::new()
            .route("/v1/agent/withdraw", post(withdraw))
            .route("/v1/agent/renew", post(renew))
            .route("/v1/agent/certificate", post(certificate))
            .route("/v1/agent/watch", post(watch))
            .route("/v1/agent/state", get(state))
            .route("/v1/agent/catch-up", post(catch_up))
            .route("/v1/agent/events", get(events))
            .route("/v1/agent/applied", post(applied))
            .route("/v1/agent/health", post(health))
            .route("/v1/agent/attached", post(attached))
            .route("/v1/agent/reservations", post(reservations))
            .route("/v1/agent/ports", post(ports_told).layer(DefaultBodyLimit::max(TOLD)))
            .route("/v1/agent/ports/{service}", get(ports))
            .route("/v1/agent/confirm", post(confirm))
            .route(
                "/v1/agent/endpoints/{id}",
                put(create_endpoint).patch(update_endpoint).delete(remove_endpoint),
            )
            .route("/v1/agent/endpoints/{id}/drain", post(drain_endpoint))
            .route("/v1/agent/promotion", post(promotion))
            .route("/v1/agent/declined", post(declined))
            .route("/v1/manager/confirm", post(confirm_agents))
            .route("/v1/manager/hold", post(hold))
            .route("/v1/manager/release", post(release))
            .route("/v1/manager/ports", post(ports_of_agents))
            .route("/v1/manager/store", post(store_answers))
            .fallback(async || Failure::new(StatusCode::NOT_FOUND, "this manager does not know that request"))
            .method_not_allowed_fallback(async || Failure::new(StatusCode::METHOD_NOT_ALLOWED, "not so"))
            .layer(DefaultBodyLimit::max(BODY))
            .with_state(Arc::clone(&manager));
        let lapsed = Router::new()
            .route("/v1/agent/renew", post(renew))
            .fallback(async || {
                Failure::forbidden("this node's certificate has expired: it can be renewed, nothing else")
            })
            .layer(DefaultBodyLimit::max(STRANGER_BODY))
            .with_state(Arc::clone(&manager));
        let strangers = Router::new()
            .route("/v1/join", post(join))
            .fallback(async || no_certificate())
            .layer(DefaultBodyLimit::max(STRANGER_BODY))
            .with_state(Arc::clone(&manager));
        Ok(Self { listener, manager, routes: Routes { members, lapsed, strangers } })
    }

    /// Serves until cancelled.
    pub(super) async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        let disowned = self.manager.trust.disowned();
        let acceptor = move || self.manager.trust.acceptor();
        connections::run(self.listener, acceptor, disowned, self.routes, cancel).await;
        Ok(())
    }
}

/// Takes the managers' port before anything depends on it; nobody is answered yet.
pub(super) fn take_port(address: SocketAddr) -> anyhow::Result<TcpSocket> {
    let taken = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // Connections of an earlier life may still be in TIME_WAIT.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        io::Result::Ok(socket)
    };
    taken().with_context(|| unusable(address))
}

fn unusable(address: SocketAddr) -> String {
    format!("cannot listen on {address}: is it an address of this host, and the port free?")
}

fn no_certificate() -> Failure {
    Failure::forbidden("a certificate of this cluster is needed")
}

/// The node that asks, as long as it is a member.
fn member(manager: &Manager, peer: Option<PeerIdentity>) -> Result<NodeId, Failure> {
    let node = peer.map(|peer| peer.node).ok_or_else(no_certificate)?;
    let known = manager.state.snapshot().nodes.contains_key(&node);
    if known { Ok(node) } else { Err(Failure::removed()) }
}

/// The manager that asks: as its certificate says, and as the state says still.
fn fellow(manager: &Manager, peer: Option<PeerIdentity>) -> Result<NodeId, Failure> {
    let role = peer.map(|peer| peer.role);
    let node = member(manager, peer)?;
    let role_now = manager.state.snapshot().nodes.get(&node).map(|node| node.role);
    if role == Some(Role::Manager) && role_now == Some(Role::Manager) {
        Ok(node)
    } else {
        Err(Failure::forbidden("only managers may ask this"))
    }
}

async fn join(State(manager): Shared, Json(request): Json<JoinRequest>) -> Result<Json<JoinReply>, Failure> {
    Ok(Json(manager.join(request).await?))
}

async fn withdraw(State(manager): Shared, Extension(peer): Peer) -> Result<Json<()>, Failure> {
    let node = member(&manager, peer)?;
    manager.withdraw(node).await?;
    Ok(Json(()))
}

async fn renew(
    State(manager): Shared,
    Extension(peer): Peer,
    Json(body): Json<RenewRequest>,
) -> Result<Json<RenewReply>, Failure> {
    let node = member(&manager, peer)?;
    Ok(Json(manager.renew(node, &body.csr).await?))
}

async fn certificate(
    State(manager): Shared,
    Extension(peer): Peer,
    Json(body): Json<CertificateHeld>,
) -> Result<Json<()>, Failure> {
    let node = member(&manager, peer)?;
    manager.certificate_held(node, &body).await?;
    Ok(Json(()))
}

async fn watch(
    State(manager): Shared,
    Extension(peer): Peer,
    Extension(address): Extension<IpAddr>,
    Query(Follower { process, tells_ports }): Query<Follower>,
    Json(resume): Json<Option<Resume>>,
) -> Result<Body, Failure> {
    let node = member(&manager, peer)?;
    manager.check_quorum()?;
    if let Some(resume) = resume.as_ref().filter(|r| r.epoch == manager.state.snapshot().epoch) {
        // Another manager may be ahead of this one. If the state never comes so far, the agent is sent it as it is.
        let _ = timeout(AHEAD, manager.state.reached(resume.revision)).await;
    }
    let lines = manager.sessions.begin(node, Caller { process, address, tells_ports }, resume).await?;
    Ok(Body::from_stream(stream::unfold((manager, lines), move |(manager, mut lines)| async move {
        let line = tokio::select! {
            line = lines.next() => line?,
            // Another manager may know more than this one.
            () = manager.quorum.lost() => return None,
        };
        // A node that was removed meanwhile hears nothing more, not even that.
        member(&manager, peer).ok()?;
        Some((Ok::<Bytes, Infallible>(line), (manager, lines)))
    })))
}

async fn state(State(manager): Shared, Extension(peer): Peer) -> Result<Body, Failure> {
    member(&manager, peer)?;
    Ok(Body::from(manager.state.json()))
}

async fn catch_up(
    State(manager): Shared,
    Extension(peer): Peer,
    Json(body): Json<CatchUp>,
) -> Result<Json<()>, Failure> {
    let node = member(&manager, peer)?;
    // A revision that never comes is nothing to wait for.
    let _ = timeout(CATCH_UP, manager.state.catch_up(node, body.revision)).await;
    Ok(Json(()))
}

async fn events(
    State(manager): Shared,
    Extension(peer): Peer,
    Query(EventsQuery { since }): Query<EventsQuery>,
) -> Result<Body, Failure> {
    let node = member(&manager, peer)?;
    let mut state = manager.state.watch();
    let told = manager.events(since).await?.take_until(async move {
        // Who was removed hears nothing more.
        drop(state.wait_for(|current| !current.snapshot.nodes.contains_key(&node)).await);
    });
    Ok(Body::from_stream(told.map(|told| Ok::<Bytes, Infallible>(json_line(&told)))))
}

async fn applied(
    State(manager): Shared,
    Extension(peer): Peer,
    Json(body): Json<Applied>,
) -> Result<Json<()>, Failure> {
    let node = member(&manager, peer)?;
    manager.sessions.applied(node, body.revision);
    Ok(Json(()))
}

async fn health(
    State(manager): Shared,
    Extension(peer): Peer,
    Json(body): Json<HealthReport>,
) -> Result<Json<Committed<()>>, Failure> {
    let node = member(&manager, peer)?;
    Ok(Json(manager.report_health(node, &body.endpoints).await?))
}

async fn attached(
    State(manager): Shared,
    Extension(peer): Peer,
    Json(body): Json<AttachedReport>,
) -> Result<Json<Committed<()>>, Failure> {
    let node = member(&manager, peer)?;
    Ok(Json(manager.report_attached(node, &body.source_nat).await?))
}

async fn reservations(
    State(manager): Shared,
    Extension(peer): Peer,
    Json(body): Json<Reserved>,
) -> Result<Json<()>, Failure> {
    let node = member(&manager, peer)?;
    manager.sessions.reserved(node, body);
    Ok(Json(()))
}

async fn confirm(
    State(manager): Shared,
    Extension(peer): Peer,
    Json(body): Json<Confirm>,
) -> Result<Json<Confirmed>, Failure> {
    let node = member(&manager, peer)?;
    Ok(Json(manager.confirm_everywhere(body.revision, node).await))
}

async fn promotion(State(manager): Shared, Extension(peer): Peer) -> Result<Json<Promotion>, Failure> {
    let node = member(&manager, peer)?;
    Ok(Json(manager.invite(node).await?))
}

async fn declined(
    State(manager): Shared,
    Extension(peer): Peer,
    Json(body): Json<Declined>,
) -> Result<Json<()>, Failure> {
    let node = member(&manager, peer)?;
    if !body.reason.is_empty() {
        manager.decline(node, &body.reason).await?;
    }
    Ok(Json(manager.dismiss(node).await?))
}

async fn confirm_agents(
    State(manager): Shared,
    Extension(peer): Peer,
    Json(body): Json<Confirm>,
) -> Result<Json<Confirmed>, Failure> {
    fellow(&manager, peer)?;
    // It may have heard of the change before this manager: agents are told of it first.
    manager.state.reached(body.revision).await;
    Ok(Json(manager.sessions.confirm(body.revision, body.except).await))
}

async fn ports_told(
    State(manager): Shared,
    Extension(peer): Peer,
    Json(body): Json<PortsTold>,
) -> Result<Json<()>, Failure> {
    let node = member(&manager, peer)?;
    manager.sessions.told(node, body);
    Ok(Json(()))
}

async fn ports(
    State(manager): Shared,
    Extension(peer): Peer,
    Path(service): Path<ServiceId>,
) -> Result<Json<PortsReports>, Failure> {
    member(&manager, peer)?;
    Ok(Json(manager.ports(service).await))
}

async fn ports_of_agents(
    State(manager): Shared,
    Extension(peer): Peer,
    Json(service): Json<ServiceId>,
) -> Result<Json<PortsReports>, Failure> {
    fellow(&manager, peer)?;
    Ok(Json(manager.sessions.ports(service).await))
}

async fn hold(
    State(manager): Shared,
    Extension(peer): Peer,
    Json(claim): Json<Claim>,
) -> Result<Json<HoldId>, Failure> {
    fellow(&manager, peer)?;
    let held = manager.sessions.hold(claim).await?;
    Ok(Json(HoldId { id: held.id, elsewhere: held.elsewhere, silent: held.silent }))
}

async fn release(
    State(manager): Shared,
    Extension(peer): Peer,
    Json(body): Json<HoldId>,
) -> Result<Json<()>, Failure> {
    fellow(&manager, peer)?;
    manager.sessions.release(body.id);
    Ok(Json(()))
}

/// Whether this manager's own way into the store works.
async fn store_answers(State(manager): Shared, Extension(peer): Peer) -> Result<Json<bool>, Failure> {
    fellow(&manager, peer)?;
    Ok(Json(manager.quorum.is_there()))
}

async fn create_endpoint(
    State(manager): Shared,
    Extension(peer): Peer,
    Path(id): Path<EndpointId>,
    Json(spec): Json<EndpointSpec>,
) -> Result<Json<CommittedEndpoint>, Failure> {
    let node = member(&manager, peer)?;
    Ok(Json(manager.create_endpoint(node, id, &spec).await?))
}

async fn update_endpoint(
    State(manager): Shared,
    Extension(peer): Peer,
    Path(id): Path<EndpointId>,
    Json(update): Json<EndpointUpdate>,
) -> Result<Json<CommittedEndpoint>, Failure> {
    let node = member(&manager, peer)?;
    Ok(Json(manager.update_endpoint(id, &update, Some(node)).await?))
}

async fn remove_endpoint(
    State(manager): Shared,
    Extension(peer): Peer,
    Path(id): Path<EndpointId>,
) -> Result<Json<Committed<()>>, Failure> {
    let node = member(&manager, peer)?;
    Ok(Json(manager.remove_endpoint(id, Some(node)).await?))
}

async fn drain_endpoint(
    State(manager): Shared,
    Extension(peer): Peer,
    Path(id): Path<EndpointId>,
) -> Result<Json<CommittedEndpoint>, Failure> {
    let node = member(&manager, peer)?;
    Ok(Json(manager.drain_endpoint(id, Some(node)).await?))
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match &error {
            Error::Refused(refusal) => Failure::from(refusal.clone()),
            Error::Objection(_) => Failure::conflict(error.to_string()),
            Error::NotPromoted { .. } | Error::LosesQuorum { .. } | Error::TwoOfOneNode { .. } => {
                Failure::conflict(error.to_string())
            }
            Error::OneManager | Error::NoManager | Error::Trust(_) => Failure::forbidden(error.to_string()),
            Error::History { .. } | Error::Future { .. } => Failure::bad_request(error.to_string()),
            Error::OutcomeUnknown => Failure::outcome_unknown(),
            Error::Contention | Error::NoQuorum | Error::EtcdAils(_) => {
                Failure::unavailable(error.to_string())
            }
            Error::Store(_) | Error::Files(_) | Error::Sealed(_) | Error::Authority(_) => {
                Failure::internal(error.to_string())
            }
        }
    }
}
