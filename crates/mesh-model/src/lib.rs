//! Pure types and rules of a mesh: no I/O, no clock, no randomness, no async.
//!
//! - [`Snapshot`] is the whole desired state at one revision; managers commit [`Change`]s to it, agents
//!   receive them, and the three data planes are derived from it.
//! - [`admit`] turns what a user asks for (a spec) into a record, or into a [`Refusal`] that says what is wrong
//!   and what to do. Everything that is allocated (VNI, subnet, VIP, address, port) is allocated there.

pub mod admit;
mod dns;
mod duration;
mod endpoint;
mod event;
mod id;
mod ipam;
pub mod labels;
mod mac;
mod name;
mod network;
mod node;
mod placement;
mod port;
mod refusal;
mod released;
mod service;
pub mod slots;
mod snapshot;
mod weight;

pub use dns::{
    DNS_DOMAIN_RESOLVERS, DNS_DOMAINS, DNS_UPSTREAMS, DomainName, NetworkDns, ParseDomainError,
    ParseResolverError, Resolver,
};
pub use duration::{ParseDurationError, parse_millis};
pub use endpoint::{Container, DOCKER, Endpoint, EndpointSpec, EndpointUpdate, Health, Target};
pub use event::{Action, Event, Happened};
pub use id::{ClusterId, EndpointId, NetworkId, NodeId, ParseIdError, ServiceId};
pub use ipam::{Pool, first_free, first_free_in};
pub use labels::Labels;
pub use mac::{MacAddr, ParseMacError};
pub use name::{Name, ParseNameError};
pub use network::{Network, NetworkSpec, NetworkUpdate, Subnet, VNI_FIRST, VNI_MAX};
pub use node::{Availability, Cluster, Node, NodeSpec, NodeStatus, NodeUpdate, Role};
pub use placement::{Audience, Placement};
pub use port::{
    ParsePortError, Protocol, ProxyProtocol, PublishMode, PublishedPort, Transport, parse_publish,
};
pub use refusal::Refusal;
pub use released::{ADDRESS_REST_S, Released};
pub use service::{
    Balance, EndpointMode, HealthCheck, HealthKind, Service, ServiceNetwork, ServiceSpec, ServiceUpdate,
};
pub use snapshot::{Change, ID_PREFIX, Key, Object, Snapshot};
pub use weight::Weight;
