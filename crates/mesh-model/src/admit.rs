//! From what is asked to what is committed: validation and allocation, each a pure function of the snapshot.
//!
//! A manager calls these inside its transaction, so that two requests never get the same thing.

mod dns;
mod endpoint;
mod endpoint_update;
mod network;
mod node;
mod release;
mod role;
mod service;

pub use endpoint::{endpoint, endpoint_ports, host_ports_to_come};
pub use endpoint_update::endpoint_update;
pub use network::{network, network_removal, network_update, pools, unused_networks};
pub use node::{node, node_removal, node_update};
pub use release::release;
pub use role::{demotion, promotion};
pub use service::{remove_ports, service, service_removal, service_update};

use crate::{Name, Refusal};

/// The most aliases of a service or an endpoint: they are told to every node of the network.
pub const ALIASES: usize = 64;

fn aliases(given: &[Name]) -> Result<Vec<Name>, Refusal> {
    if given.len() > ALIASES { Err(Refusal::Aliases(given.len())) } else { Ok(given.to_vec()) }
}

/// What the rules can't make themselves: fresh random bits and the time.
#[derive(Debug, Clone, Copy)]
pub struct Fresh {
    /// Random bits for an identity.
    pub id: u64,
    /// Random bits for a MAC address.
    pub mac: u64,
    /// Seconds since 1970.
    pub now: u64,
}
