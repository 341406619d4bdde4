//! Docker: its network driver `meshd`, its address driver of the same name, and what its API tells of containers.
//!
//! ```text
//! dockerd ──► plugin socket ──► driver (networks, endpoints) ──► agent ──► manager: record, address
//!    │                          ipam   (addresses)                └─────► mesh-net: the pair's end in the host
//!    │  fetches that end into the container's namespace
//!    ├──► settle: finds it there, and tells the record where it is; removes and adopts what Docker and the cluster
//!    │    disagree on
//!    └──► revive: starts containers that Docker has given up on because meshd could not help
//! ```
//!
//! Docker asks for an endpoint first and makes the container's namespace later. So an endpoint is *staged*
//! ([`mesh_model::Endpoint::is_staged`]): its interface waits in the host's namespace. Docker moves it, names it and gives it its
//! address and routes, all before the container's process starts, and from then on it is the reconciler's like any other.
//!
//! The address is the cluster's. `docker network create -d meshd` without `--ipam-driver` has Docker's own address
//! management give the container another one, which every host gives out alike: it stays on the interface beside the
//! cluster's, and is of use between containers of that network on the same host only.

mod api;
mod bindings;
mod driver;
mod identity;
mod ipam;
mod join;
mod locate;
mod protocol;
mod revive;
mod settle;
mod socket;

pub(crate) use api::Api;
pub(crate) use locate::{detach, locate};

use crate::{config::Config, daemon::Daemon};
use bindings::Bindings;
use std::sync::{Arc, atomic::AtomicBool};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What the driver and those who tidy up after it share.
struct Docker {
    daemon: Arc<Daemon>,
    api: Api,
    bindings: Bindings,
    /// An endpoint waits for its container.
    joined: Notify,
    /// Something was refused that may be done later.
    refused: AtomicBool,
    left: settle::Left,
}

/// Serves Docker for as long as the daemon runs, whenever there is one.
pub(crate) async fn run(
    config: Config,
    daemon: Arc<Daemon>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    if config.docker_plugin.as_os_str().is_empty() {
        cancel.cancelled().await;
        return Ok(());
    }
    let docker = Arc::new(Docker {
        daemon,
        api: Api::new(config.docker_socket),
        bindings: Bindings::load(&config.data_dir),
        joined: Notify::new(),
        refused: AtomicBool::new(false),
        left: settle::Left::default(),
    });
    let settle = settle::run(Arc::clone(&docker));
    let reviving = Arc::clone(&docker);
    let revive = revive::run(&reviving);
    let serve = socket::serve(config.docker_plugin, docker, cancel.clone());
    tokio::select! {
        () = cancel.cancelled() => {}
        () = settle => {}
        () = revive => {}
        () = serve => {}
    }
    Ok(())
}
