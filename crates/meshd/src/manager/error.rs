//! Why a manager did not do what it was asked.

use mesh_model::Refusal;

/// Each text is one line for the user.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A node can't have what is about to be committed.
    #[error("{0}")]
    Objection(String),
    #[error("cannot save this node's keys: {0}")]
    Files(String),
    #[error(
        "this cluster's store serves one manager: 'meshctl cluster migrate --to etcd' moves it to one that serves several"
    )]
    OneManager,
    #[error("node '{node}' is no manager: {reason}; it is a worker as before")]
    NotPromoted { node: String, reason: String },
    #[error(
        "without node '{node}' the managers that answer are no majority: bring the others back, or demote those that are lost, first"
    )]
    LosesQuorum { node: String },
    #[error(
        "another host, at {holder}, is connected as node '{node}': if this is a copy of its disk, empty the data directory and join"
    )]
    TwoOfOneNode { node: String, holder: std::net::IpAddr },
    #[error("this node is to be no manager")]
    NoManager,
    #[error("too many changes at once: try again")]
    Contention,
    #[error("the outcome of a change is not known")]
    OutcomeUnknown,
    #[error("the store has no quorum: changes wait until a majority of managers is back, traffic goes on")]
    NoQuorum,
    #[error(
        "this manager's etcd ends again and again: {0}: changes wait until that is mended, traffic goes on"
    )]
    EtcdAils(String),
    #[error("the history reaches back to revision {oldest}, not to {after}: give --since {oldest} or later")]
    History { after: u64, oldest: u64 },
    #[error("revision {after} is yet to come: the cluster is at {current}")]
    Future { after: u64, current: u64 },
    #[error("the state could not be saved: {0}")]
    Store(mesh_store::Error),
    #[error(transparent)]
    Sealed(#[from] super::secrets::Sealed),
    #[error("the CA can't be used: {0}")]
    Authority(String),
    #[error(transparent)]
    Trust(#[from] mesh_cluster::Error),
}

impl From<mesh_store::Error> for Error {
    fn from(error: mesh_store::Error) -> Self {
        match error {
            mesh_store::Error::Unreachable { .. } => {
                tracing::warn!(%error, "a change is refused");
                Self::NoQuorum
            }
            other => Self::Store(other),
        }
    }
}
