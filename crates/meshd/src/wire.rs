//! What agents and managers say to each other: HTTP/2 over mutual TLS, JSON bodies.
//!
//! An agent holds one connection. `GET /v1/agent/watch` answers with a stream of [`Message`]s, one a line; what the
//! agent reports are ordinary requests beside it.

use mesh_model::{Change, Cluster, Endpoint, EndpointId, Health, Node, NodeSpec, PublishedPort, Snapshot};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// From the manager, on the watch stream.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Message {
    /// The whole state; first on every stream, and again when an agent fell behind.
    Snapshot(Arc<Snapshot>),
    /// What one transaction changed. Liveness of nodes has no transaction: its deltas repeat the last revision.
    Delta { revision: u64, changes: Vec<Change> },
    /// Hold these ports for a moment: a service is about to publish them.
    Reserve { id: u64, ports: Vec<PublishedPort> },
    /// They are not needed after all.
    Release { id: u64 },
}

/// `POST /v1/join`, the only request without a client certificate.
#[derive(Serialize, Deserialize)]
pub(crate) struct JoinRequest {
    pub(crate) token: String,
    pub(crate) node: NodeSpec,
    pub(crate) csr: String,
}

/// What a node needs to be a member.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct JoinReply {
    pub(crate) node: Node,
    pub(crate) cluster: Cluster,
    pub(crate) certificate: String,
    pub(crate) ca: String,
}

/// `POST /v1/agent/applied`: the data planes run from this revision.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Applied {
    pub(crate) revision: u64,
}

/// `POST /v1/agent/health`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HealthReport {
    pub(crate) endpoints: Vec<(EndpointId, Health)>,
}

/// `POST /v1/agent/reservations`: the answer to [`Message::Reserve`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reserved {
    pub(crate) id: u64,
    pub(crate) refusal: Option<String>,
}

/// `POST /v1/agent/endpoints` and what changes one: the record and the revision it is committed at.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Committed<T> {
    pub(crate) value: T,
    pub(crate) revision: u64,
}

/// `POST /v1/agent/confirm`: wait until the other nodes have this revision.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Confirm {
    pub(crate) revision: u64,
}

/// Names of connected nodes that had not applied the revision in time.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Confirmed {
    pub(crate) lagging: Vec<String>,
}

/// An endpoint's record, committed.
pub(crate) type CommittedEndpoint = Committed<Arc<Endpoint>>;
