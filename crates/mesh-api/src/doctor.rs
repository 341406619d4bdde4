//! `doctor`: what a node finds wrong with itself and with its links to the others.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What to look at.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Examine {
    /// Only this network: its name, its ID or a unique prefix of that.
    #[serde(default)]
    pub network: Option<String>,
    /// Only the links to this node, by name, ID or a unique prefix of that; of the node that looks, only itself.
    #[serde(default)]
    pub node: Option<String>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Name of the node that looked; empty if it belongs to no cluster.
    pub node: String,
    /// Nothing failed. Warnings are no failures.
    pub healthy: bool,
    /// By group. Every check that was made is there, at least once.
    pub findings: Vec<Finding>,
}

/// One line of a diagnosis.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about.
    pub group: Group,
    /// The check, a stable name such as `vxlan-port`.
    pub check: String,
    /// How it came out.
    pub outcome: Outcome,
    /// Where, for people.
    pub place: String,
    /// Name of the other node, if it is about a link or another node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Name of the network, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// What was found.
    pub result: String,
    /// What to do; empty if nothing is to be done.
    #[serde(default)]
    pub remedy: String,
}

/// What a check is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Group {
    /// The host that looks.
    Host,
    /// The other nodes, and who manages them.
    Cluster,
    /// What passes between the hosts.
    Links,
    /// The networks on this node.
    Networks,
    /// Published ports.
    Ingress,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Something does not work.
    Failed,
    /// Something may stop working, or did for a moment.
    Warning,
    /// As it should be.
    Ok,
    /// It could not be looked at.
    Skipped,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Host => "host",
            Self::Cluster => "cluster",
            Self::Links => "links",
            Self::Networks => "networks",
            Self::Ingress => "ingress",
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Failed => "FAILED",
            Self::Warning => "warning",
            Self::Ok => "ok",
            Self::Skipped => "skipped",
        })
    }
}
