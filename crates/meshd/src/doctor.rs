//! `meshctl doctor`: finds and names what is wrong with this node and with its links to the others.
//!
//! ```text
//! examine ─► look, probe (effects) ─► evidence (plain data) ─► checks (pure) ─► diagnosis
//!
//! prober ──── over each network, from this node's address to the others' ────► responder (there)
//! underlay ── TCP and UDP at the nodes' own addresses: a blocked port or a dead host
//! ```
//!
//! Each node looks at itself and asks all others; nothing here is told to a manager. The whole takes five seconds at most,
//! whatever does not answer.

mod checks;
mod checksum;
mod datagram;
mod evidence;
mod gather;
mod names;
mod prober;
mod responder;
mod underlay;

pub(crate) use prober::is_there;
pub(crate) use responder::Responder;

use crate::{
    api::Failure,
    daemon::{Daemon, Member},
};
use evidence::Evidence;
use gather::Gather;
use mesh_api::{Diagnosis, Examine};
use mesh_model::{NetworkId, NodeId, Refusal, Snapshot};
use std::{path::Path, sync::Arc};

/// What the user wants to know about.
#[derive(Debug, Clone, Copy, Default)]
struct Scope {
    network: Option<NetworkId>,
    node: Option<NodeId>,
}

/// Looks and asks, and says what was found.
pub(crate) async fn examine(daemon: &Daemon, what: &Examine) -> Result<Diagnosis, Failure> {
    let evidence = match daemon.member() {
        Ok(member) => of_member(&member, daemon.run_dir(), what).await?,
        // What has a member's eyes only can't be asked for.
        Err(failure) if what.network.is_some() || what.node.is_some() => return Err(failure),
        Err(_) => gather::of_host(daemon.run_dir()).await,
    };
    Ok(checks::diagnose(&evidence))
}

async fn of_member(member: &Arc<Member>, run_dir: &Path, what: &Examine) -> Result<Evidence, Failure> {
    let snapshot = member.agent.snapshot();
    let scope = scope(&snapshot, member.identity.node, what)?;
    Ok(Gather::new(member, snapshot, run_dir, scope).evidence().await)
}

fn scope(snapshot: &Snapshot, me: NodeId, what: &Examine) -> Result<Scope, Failure> {
    let not_found = |kind, wanted: &String| Failure::from(Refusal::NotFound { kind, wanted: wanted.clone() });
    let network = match &what.network {
        None => None,
        Some(wanted) => {
            let found = snapshot.find_network(wanted).ok_or_else(|| not_found("network", wanted))?;
            if !snapshot.networks_on(me).contains(&found.id) {
                return Err(Failure::conflict(format!(
                    "network '{}' is not on this node: run it on a node with an endpoint there ('meshctl network inspect {}')",
                    found.name, found.name
                )));
            }
            Some(found.id)
        }
    };
    let node = match what.node.as_deref() {
        None => None,
        Some("self") => Some(me),
        Some(wanted) => {
            Some(snapshot.find_node(wanted).ok_or_else(|| not_found("node", &wanted.to_owned()))?.id)
        }
    };
    Ok(Scope { network, node })
}
