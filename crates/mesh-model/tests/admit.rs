//! What is admitted, what is allocated for it, and what is refused with which words.

#[path = "admit/cluster.rs"]
mod cluster;
#[path = "admit/dns.rs"]
mod dns;
#[path = "admit/endpoint.rs"]
mod endpoint;
#[path = "admit/network.rs"]
mod network;
#[path = "admit/node.rs"]
mod node;
#[path = "admit/service.rs"]
mod service;
#[path = "admit/snapshot.rs"]
mod snapshot;
