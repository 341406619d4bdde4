//! What agents and managers say to each other: HTTP/2 over mutual TLS, JSON bodies.
//!
//! An agent holds one connection. `GET /v1/agent/watch` answers with a stream of [`Message`]s, one a line; what the
//! agent reports are ordinary requests beside it.

use mesh_model::{
    Change, Cluster, Endpoint, EndpointId, Health, Node, NodeId, NodeSpec, PublishedPort, Snapshot,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// From the manager, on the watch stream.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// The whole state; first on every stream, and again when an agent fell behind.
    Snapshot(Arc<Snapshot>),
    /// What one transaction changed. Liveness of nodes has no transaction: its deltas repeat the last revision.
    Delta {
        /// Revision that the state has with these changes.
        revision: u64,
        /// The changes.
        changes: Vec<Change>,
    },
    /// Hold these ports for a moment: a service is about to publish them.
    Reserve {
        /// Names the reservation in the answer and the release.
        id: u64,
        /// The ports.
        ports: Vec<PublishedPort>,
    },
    /// They are not needed after all.
    Release {
        /// Of the reservation.
        id: u64,
    },
}

/// `POST /v1/join`, the only request without a client certificate.
#[derive(Serialize, Deserialize)]
pub struct JoinRequest {
    /// The join token, a secret.
    pub token: String,
    /// Name and address of the node.
    pub node: NodeSpec,
    /// Request (PKCS #10, as PEM) for a certificate of the node's key.
    pub csr: String,
}

/// What a node needs to be a member.
#[derive(Debug, Serialize, Deserialize)]
pub struct JoinReply {
    /// Its record.
    pub node: Node,
    /// What holds for the whole cluster.
    pub cluster: Cluster,
    /// Its certificate, as PEM.
    pub certificate: String,
    /// The CA's certificate, as PEM.
    pub ca: String,
}

/// `POST /v1/agent/applied`: the data planes run from this revision.
#[derive(Debug, Serialize, Deserialize)]
pub struct Applied {
    /// The revision.
    pub revision: u64,
}

/// `POST /v1/agent/health`.
#[derive(Debug, Serialize, Deserialize)]
pub struct HealthReport {
    /// Verdicts on endpoints of the node that reports.
    pub endpoints: Vec<(EndpointId, Health)>,
}

/// `POST /v1/agent/reservations`: the answer to [`Message::Reserve`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Reserved {
    /// Of the reservation.
    pub id: u64,
    /// Why the ports can't be held; none if they are.
    pub refusal: Option<String>,
}

/// `PUT /v1/agent/endpoints/ID` and what changes one: the record and the revision it is committed at.
#[derive(Debug, Serialize, Deserialize)]
pub struct Committed<T> {
    /// The record.
    pub value: T,
    /// The store's revision.
    pub revision: u64,
}

/// `POST /v1/agent/confirm`, and between managers `/v1/manager/confirm`: wait until the other nodes have this revision.
#[derive(Debug, Serialize, Deserialize)]
pub struct Confirm {
    /// The revision.
    pub revision: u64,
    /// Who has it already; of an agent's request, always the agent.
    #[serde(default)]
    pub except: Option<NodeId>,
}

/// `POST /v1/manager/hold`, between managers: ask your agents to hold these ports.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hold {
    /// The ports.
    pub ports: Vec<PublishedPort>,
}

/// The answer, and the body of `POST /v1/manager/release`.
#[derive(Debug, Serialize, Deserialize)]
pub struct HoldId {
    /// Of the reservation at that manager.
    pub id: u64,
}

/// Names of connected nodes that had not applied the revision in time.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Confirmed {
    /// The names.
    pub lagging: Vec<String>,
}

/// An endpoint's record, committed.
pub type CommittedEndpoint = Committed<Arc<Endpoint>>;
