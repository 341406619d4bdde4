//! Version 1 of the API that meshd serves on its local socket, and the client of it.
//!
//! HTTP/1.1 with JSON bodies over a unix socket (`RUN_DIR/meshd.sock`, mode 0660). A refusal is a status of 4xx or
//! 5xx with an [`ErrorBody`]: one line that says what is wrong and what to do.

mod client;
mod dns;
mod doctor;
mod event;
mod request;
mod traffic;
mod view;

pub use client::{Client, Error, Events};
pub use dns::{
    DnsCounts, DnsView, NameServerView, RecordView, Resolve, Resolved, ResolvedView, UpstreamState,
    UpstreamView,
};
pub use doctor::{Diagnosis, Examine, Finding, Group, Outcome};
pub use event::{EventLine, EventView, EventsQuery, json_line};
pub use request::{
    Disconnect, EndpointFilter, EndpointSettings, ExternalEtcd, Init, Initialized, Join, JoinTokenRequest,
    JoinTokenView, Joined, Leave, Migrated, NodeRemoval, Pruned, Removed, Restored, RotateAuthority,
    StoreSpec,
};
pub use traffic::{CountView, TrafficView};
pub use view::{
    AddressesView, AuthorityView, Created, DegradedView, EndpointView, ErrorBody, FrontState, FrontView,
    NetworkUse, NetworkView, NodeView, RoleChanged, RotationView, ServiceView, SourceNatView, State,
    StatusView,
};

/// Header of an answer that is not all that was asked for: one line for the user.
pub const WARNING: &str = "x-meshd-warning";
