//! `dns`: what the name servers of a node do, and what they answer.

use mesh_model::NetworkId;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// `dns status`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct DnsView {
    /// The name servers on this node.
    pub servers: Vec<NameServerView>,
    /// Whom they ask for names that are not the mesh's.
    pub upstreams: Vec<UpstreamView>,
}

/// The name servers of one network on one node, or the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameServerView {
    /// Name of the network; none: for processes of the host.
    pub network: Option<String>,
    /// Where they answer.
    pub addresses: Vec<SocketAddr>,
    /// What was asked.
    pub counts: DnsCounts,
}

/// What name servers count, since the process that they run in started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsCounts {
    /// Messages that came over UDP.
    pub udp: u64,
    /// Messages that came over TCP.
    pub tcp: u64,
    /// Answered from the names of the mesh.
    pub answered: u64,
    /// Told why not: malformed, of a kind that is not known, or about names that nobody may be asked for.
    #[serde(default)]
    pub refused: u64,
    /// Answered from what upstream resolvers said before.
    pub cached: u64,
    /// Asked of upstream resolvers.
    pub forwarded: u64,
    /// Answered with SERVFAIL as no upstream resolver had an answer.
    pub failed: u64,
    /// Turned away as too many were under way, of all clients or of this one.
    pub limited: u64,
    /// Not answered: no DNS query.
    pub dropped: u64,
}

/// An upstream resolver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamView {
    /// Where it is asked.
    pub address: SocketAddr,
    /// ID of the network that it is in; none: it is asked from the host.
    #[serde(default)]
    pub network: Option<NetworkId>,
    /// How it does.
    pub state: UpstreamState,
}

/// How an upstream resolver does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamState {
    /// Nothing is wrong with it, as far as is known.
    Good,
    /// It did not answer lately: it is asked after the others.
    Silent,
    /// It asks this node in turn: it is not asked.
    Loops,
}

/// `dns resolve`: what to ask.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resolve {
    /// The name; an address for a reverse look-up.
    pub name: String,
    /// The type of the records: A and AAAA unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtype: Option<String>,
    /// As its containers see it: name, ID or prefix of the ID. None: of all networks of this node, those that have the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
}

/// `dns resolve`: what was answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resolved {
    /// The networks that have it.
    pub answers: Vec<ResolvedView>,
}

/// What the containers of one network are answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedView {
    /// Name of the network.
    pub network: String,
    /// Whether it is a name of the mesh.
    pub authoritative: bool,
    /// The records.
    pub records: Vec<RecordView>,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordView {
    /// Whose it is.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub rtype: String,
    /// How long it may be kept, in seconds.
    pub ttl: u32,
    /// What it says, as in a zone file.
    pub data: String,
}
