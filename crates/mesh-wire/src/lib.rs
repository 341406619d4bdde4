//! What agents and managers say to each other: HTTP/2 over mutual TLS, JSON bodies.
//!
//! An agent holds one connection. `POST /v1/agent/watch` answers with a stream of [`Message`]s, one a line; what the
//! agent reports are ordinary requests beside it.

pub mod client;

use ipnetwork::IpNetwork;
use mesh_api::CountView;
use mesh_cluster::{Fingerprint, membership::ClusterKeys};
use mesh_model::{
    Change, Cluster, Endpoint, EndpointId, Happened, Health, NetworkId, Node, NodeId, NodeSpec, Protocol,
    PublishedPort, ServiceId, Snapshot,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// `POST /v1/agent/watch`: what the agent has already, to be told only what changed since; `null` if nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resume {
    /// [`Snapshot::epoch`] of the agent's copy.
    pub epoch: u64,
    /// Its revision.
    pub revision: u64,
    /// The networks that it has the endpoints of.
    pub networks: BTreeSet<NetworkId>,
}

/// The query of `POST /v1/agent/watch`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Follower {
    /// Drawn by each process when it starts: two hosts of one identity are told apart by it.
    #[serde(default)]
    pub process: Option<u64>,
    /// Whether it understands [`Message::TellPorts`].
    #[serde(default)]
    pub tells_ports: bool,
}

/// From the manager, on the watch stream.
///
/// A node is told of endpoints and their health only on networks that exist there ([`Snapshot::networks_on`]), and of
/// everything else. The agent makes one state of what comes, and uses it from each [`Message::Reached`] on.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// Everything but endpoints and their health. Replaces all that the agent has; its networks follow.
    Base(Arc<Snapshot>),
    /// Replaces what the agent has of one network's endpoints.
    Network(NetworkState),
    /// The network does not exist on the node any more: its endpoints are not told from here on.
    Forget(NetworkId),
    /// Records that changed.
    Changes(Vec<Change>),
    /// The state is whole, and of this revision. Revisions without anything for the node are left out.
    Reached {
        /// The store's revision.
        revision: u64,
    },
    /// Say whether this can be, and keep it free for a moment: it is about to be committed.
    Reserve {
        /// Names the reservation in the answer and the release.
        id: u64,
        /// What is wanted.
        #[serde(flatten)]
        claim: Claim,
    },
    /// Say what goes through a service's published ports. Only to those who [ask for it](Follower::tells_ports).
    TellPorts {
        /// Names the question in the answer.
        id: u64,
        /// Whose ports.
        service: ServiceId,
    },
    /// They are not needed after all.
    Release {
        /// Of the reservation.
        id: u64,
    },
    /// The keys that membership is sealed with: near the start of every stream, and when they change. Secret, and no
    /// part of any snapshot.
    Keys(ClusterKeys),
}

/// What a change wants of every node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Ports that a service is to publish there.
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// Subnets of a network, that the node's host must not be on.
    #[serde(default)]
    pub subnets: Vec<IpNetwork>,
}

impl Claim {
    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.subnets.is_empty()
    }
}

/// All endpoints of one network.
#[derive(Debug, Serialize, Deserialize)]
pub struct NetworkState {
    /// The network.
    pub network: NetworkId,
    /// Its endpoints.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// The verdicts on them, as far as there are any.
    pub health: Vec<(EndpointId, Health)>,
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

/// `POST /v1/agent/renew`: the only request that an expired certificate is good for.
#[derive(Debug, Serialize, Deserialize)]
pub struct RenewRequest {
    /// Request (PKCS #10, as PEM) for a certificate of the node's next key.
    pub csr: String,
}

/// The node's next certificate.
#[derive(Debug, Serialize, Deserialize)]
pub struct RenewReply {
    /// The certificate, as PEM.
    pub certificate: String,
    /// The CA that signed it, as PEM.
    pub ca: String,
    /// All CAs to trust, as PEM.
    pub authorities: Vec<String>,
}

/// `POST /v1/agent/certificate`: what the node has on its disk.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateHeld {
    /// Of the CA that signed it.
    pub authority: Fingerprint,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
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

/// `POST /v1/agent/attached`: what the node has found in the targets of its endpoints.
#[derive(Debug, Serialize, Deserialize)]
pub struct AttachedReport {
    /// [`Endpoint::source_nat`] of those whose records say otherwise.
    pub source_nat: Vec<(EndpointId, Vec<IpAddr>)>,
}

/// `POST /v1/agent/reservations`: the answer to [`Message::Reserve`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Reserved {
    /// Of the reservation.
    pub id: u64,
    /// Why it can't be; none if it can.
    pub refusal: Option<String>,
    /// Addresses that ports are wanted on and the node does not have.
    #[serde(default)]
    pub elsewhere: BTreeSet<IpAddr>,
}

/// `POST /v1/agent/ports`: the answer to [`Message::TellPorts`].
#[derive(Debug, Serialize, Deserialize)]
pub struct PortsTold {
    /// Of the question.
    pub id: u64,
    /// What is told.
    pub report: PortsReport,
}

/// What one node tells of a service's published ports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortsReport {
    /// What went through them.
    pub counted: Vec<Counted>,
    /// Why it can't serve some, a line each.
    pub degraded: Vec<String>,
}

/// What went to an endpoint by the published ports that lead to one of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// `tcp` or `udp`.
    pub protocol: Protocol,
    /// The endpoint's port.
    pub target: u16,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Connections and flows.
    pub connections: u64,
    /// What clients sent.
    pub sent: CountView,
    /// What they were sent.
    pub received: CountView,
}

/// The answer to `GET /v1/agent/ports/SERVICE` and, between managers, `POST /v1/manager/ports`: of nodes that answered in
/// time.
pub type PortsReports = BTreeMap<NodeId, PortsReport>;

/// `PUT /v1/agent/endpoints/ID` and what changes one: the record and the revision it is committed at.
#[derive(Debug, Serialize, Deserialize)]
pub struct Committed<T> {
    /// The record.
    pub value: T,
    /// The store's revision.
    pub revision: u64,
}

/// `POST /v1/agent/catch-up`: answer once the revision is there, and tell the node of it even if nothing concerns it.
#[derive(Debug, Serialize, Deserialize)]
pub struct CatchUp {
    /// The revision.
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

/// The answer to `POST /v1/manager/hold`, by which a manager has another ask its agents for a [`Claim`]; and the body of
/// `POST /v1/manager/release`.
#[derive(Debug, Serialize, Deserialize)]
pub struct HoldId {
    /// Of the reservation at that manager.
    pub id: u64,
    /// Addresses that ports are wanted on and none of its agents' nodes has; none if it has no agent.
    #[serde(default)]
    pub elsewhere: Option<BTreeSet<IpAddr>>,
    /// Names of nodes that follow it and did not answer in time.
    #[serde(default)]
    pub silent: Vec<String>,
}

/// Names of connected nodes that had not applied the revision in time.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Confirmed {
    /// The names.
    pub lagging: Vec<String>,
}

/// An endpoint's record, committed.
pub type CommittedEndpoint = Committed<Arc<Endpoint>>;

/// A line of `GET /v1/agent/events?since=REVISION`: what one transaction after that revision changed. The first line
/// has no events: it says which revision the stream begins after, and so from where to go on when it breaks.
#[derive(Debug, Serialize, Deserialize)]
pub struct Told {
    /// Revision of the transaction.
    pub revision: u64,
    /// What it did.
    pub happened: Happened,
}
