//! The local API: a unix socket, HTTP/1.1 and JSON; what `meshctl` talks to.
//!
//! Reads are answered from this node's snapshot, or a manager's if they need endpoints of other nodes; changes go to the manager in this process, or, for the node's own
//! endpoints, through the agent to whichever manager is connected. A change is answered once this node has applied
//! it and the other nodes have confirmed it or were given time to.

mod failure;
mod handlers;
pub(crate) mod json;
pub(crate) mod metrics;
mod traffic;
mod views;
mod whole;

pub(crate) use failure::Failure;
pub(crate) use handlers::make_network;

use crate::daemon::Daemon;
use anyhow::Context;
use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{get, patch, post},
};
use std::{os::unix::fs::PermissionsExt, path::Path, sync::Arc, time::Duration};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// A larger backup is none: 10,000 endpoints take 10 MiB.
const BACKUP: usize = 1 << 30;
/// How long requests under way may take when the daemon ends.
const GRACE: Duration = Duration::from_secs(2);

/// Binds the socket of the API.
pub(crate) fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    bind_socket(path, 0o660, "--run-dir")
}

/// Binds a socket. One that an earlier life left behind is replaced; one that somebody listens at is refused, with the
/// option that gives this daemon another.
pub(crate) fn bind_socket(path: &Path, mode: u32, option: &str) -> anyhow::Result<UnixListener> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        anyhow::bail!("another meshd runs at {}: end it, or give this one its own {option}", path.display());
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    Ok(listener)
}

/// Serves until cancelled.
pub(crate) async fn serve(
    listener: UnixListener,
    daemon: Arc<Daemon>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let stop = cancel.clone();
    let server =
        axum::serve(listener, router(daemon)).with_graceful_shutdown(async move { stop.cancelled().await });
    let late = async {
        cancel.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = server => served.context("the local API failed"),
        () = late => Ok(()),
    }
}

fn router(daemon: Arc<Daemon>) -> Router {
    use handlers::{self as h, endpoints as e};
    Router::new()
        .route("/v1/status", get(h::status))
        .route("/v1/doctor", post(h::doctor))
        .route("/v1/metrics", get(metrics::metrics))
        .route("/v1/dns", get(h::dns::status))
        .route("/v1/dns/resolve", post(h::dns::resolve))
        .route("/v1/cluster/init", post(h::cluster_init))
        .route("/v1/cluster/join", post(h::cluster_join))
        .route("/v1/cluster/join-token", post(h::join_token))
        .route("/v1/cluster/leave", post(h::cluster_leave))
        .route("/v1/cluster/backup", get(h::cluster_backup))
        .route("/v1/cluster/restore", post(h::cluster_restore).layer(DefaultBodyLimit::max(BACKUP)))
        .route("/v1/cluster/migrate", post(h::cluster_migrate))
        .route("/v1/events", get(h::events))
        .route("/v1/cluster/ca", get(h::authority))
        .route("/v1/cluster/ca/rotate", post(h::rotate_authority))
        .route("/v1/nodes", get(h::nodes))
        .route("/v1/nodes/{name}", patch(h::update_node).delete(h::remove_node))
        .route("/v1/nodes/{node}/promote", post(h::promote))
        .route("/v1/nodes/{node}/demote", post(h::demote))
        .route("/v1/networks", get(h::networks).post(h::create_network).delete(h::prune_networks))
        .route("/v1/networks/{name}", get(h::network).patch(h::update_network).delete(h::remove_network))
        .route("/v1/services", get(h::services).post(h::create_service))
        .route("/v1/services/{name}", get(h::service).patch(h::update_service).delete(h::remove_service))
        .route("/v1/endpoints", get(e::list).post(e::connect))
        .route("/v1/endpoints/disconnect", post(e::disconnect))
        .route("/v1/endpoints/{id}", get(e::show).patch(e::update).delete(e::remove))
        .route("/v1/endpoints/{id}/drain", post(e::drain))
        .fallback(h::unknown)
        .with_state(daemon)
}
