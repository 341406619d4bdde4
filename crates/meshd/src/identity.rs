//! Who this node is: what it keeps of its membership between two lives.
//!
//! | file in the data directory | what it holds |
//! |---|---|
//! | `node.json` | [`Identity`]; written last: without it the node is no member |
//! | `node.pem` | key, certificate and the certificates of the CAs it trusts, mode 0600 |
//! | `store.key` | what opens the secrets in the store, mode 0600; managers only |
//! | `store/` | the cluster's state, with redb; managers only |
//! | `etcd/` | the same with etcd, see `manager/etcd.rs` |
//! | `store.before-etcd/` | the store as it was before `cluster migrate --to etcd`; of no use to meshd |
//! | `gossip.json` | the membership keys, mode 0600 |
//! | `snapshot.json`, `snapshot.json.copy` | the last snapshot, twice |

use crate::{manager::ETCD, wire::JoinReply};
use anyhow::Context;
use mesh_api::StoreSpec;
use mesh_cluster::{Credentials, read_private, write_private};
use mesh_model::{ClusterId, Name, NodeId, Role};
use serde::{Deserialize, Serialize};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// Directory of the store.
pub(crate) const STORE: &str = "store";

/// The same after the state moved to etcd.
pub(crate) const OLD_STORE: &str = "store.before-etcd";

/// What holds a cluster's state.
const DIRECTORIES: [&str; 3] = [STORE, ETCD, OLD_STORE];

const FILES: [&str; 6] =
    ["node.json", "node.pem", "store.key", "gossip.json", "snapshot.json", "snapshot.json.copy"];

/// This node's place in its cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    pub(crate) name: Name,
    pub(crate) role: Role,
    /// Underlay address and API port.
    pub(crate) advertise: SocketAddr,
    /// Where managers were when the node joined; the snapshot knows better once there is one.
    pub(crate) managers: Vec<SocketAddr>,
    /// Where the state is, on a manager.
    #[serde(default)]
    pub(crate) store: StoreSpec,
}

impl Identity {
    /// The identity of an earlier life; none if the node is no member.
    pub(crate) fn load(data_dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = data_dir.join("node.json");
        let Some(text) = read_private(&path)? else {
            return Self::check_unused(data_dir).map(|()| None);
        };
        let identity = serde_json::from_str(&text).with_context(|| {
            format!("{} is damaged: restore it, or empty the data directory to start anew", path.display())
        })?;
        Ok(Some(identity))
    }

    /// Refuses a directory whose store lost its `node.json`: becoming a member of another cluster would replace the CA
    /// and the store of this one.
    pub(crate) fn check_unused(data_dir: &Path) -> anyhow::Result<()> {
        for store in DIRECTORIES.map(|directory| data_dir.join(directory)) {
            anyhow::ensure!(
                !store.exists(),
                "{} holds a cluster, but node.json beside it is missing: restore it, or empty the data directory to start anew",
                store.display()
            );
        }
        Ok(())
    }

    /// The identity that a manager gave.
    pub(crate) fn joined(reply: &JoinReply, manager: SocketAddr) -> Self {
        Self {
            cluster: reply.cluster.id,
            node: reply.node.id,
            name: reply.node.name.clone(),
            role: Role::Worker,
            advertise: reply.node.advertise,
            managers: vec![manager],
            store: StoreSpec::default(),
        }
    }

    /// Makes the node a member: its credentials first, its identity last.
    pub(crate) fn save(&self, data_dir: &Path, credentials: &Credentials) -> anyhow::Result<()> {
        credentials.save(&credentials_path(data_dir))?;
        self.save_alone(data_dir)
    }

    /// The same with the credentials that it has.
    pub(crate) fn save_alone(&self, data_dir: &Path) -> anyhow::Result<()> {
        Ok(write_private(&data_dir.join("node.json"), &serde_json::to_string_pretty(self)?)?)
    }

    /// Brings the stores in line with `node.json`, which a migration that was cut off may have left undone: of two there
    /// is one in use.
    pub(crate) fn tidy(&self, data_dir: &Path) -> anyhow::Result<()> {
        let store = data_dir.join(STORE);
        match self.store {
            StoreSpec::Redb => remove([data_dir.join(ETCD)].into_iter()),
            StoreSpec::Etcd | StoreSpec::External(_) if store.exists() => {
                let old = data_dir.join(OLD_STORE);
                std::fs::rename(&store, &old)
                    .with_context(|| format!("cannot rename {} to {}", store.display(), old.display()))
            }
            StoreSpec::Etcd | StoreSpec::External(_) => Ok(()),
        }
    }

    /// Removes the cluster's state and the key to its secrets: the node is no manager any more.
    pub(crate) fn discard_state(data_dir: &Path) -> anyhow::Result<()> {
        remove(["store.key"].iter().chain(&DIRECTORIES).map(|name| data_dir.join(name)))
    }

    /// Removes every trace of a membership.
    pub(crate) fn discard(data_dir: &Path) -> anyhow::Result<()> {
        remove(FILES.iter().chain(&DIRECTORIES).map(|name| data_dir.join(name)))
    }

    /// What this node proves itself with.
    pub(crate) fn credentials(data_dir: &Path) -> anyhow::Result<Credentials> {
        let path = credentials_path(data_dir);
        Credentials::load(&path).with_context(|| unusable(&path))?.with_context(|| {
            format!("{} is missing: restore it, or empty the data directory to start anew", path.display())
        })
    }

    /// Keeps the next ones.
    pub(crate) fn save_credentials(data_dir: &Path, credentials: &Credentials) -> anyhow::Result<()> {
        Ok(credentials.save(&credentials_path(data_dir))?)
    }
}

/// Removes files and directories that may be there.
fn remove(paths: impl Iterator<Item = PathBuf>) -> anyhow::Result<()> {
    for path in paths {
        let removed =
            if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

fn unusable(path: &Path) -> String {
    format!("cannot use {}: restore it, or empty the data directory to start anew", path.display())
}

fn credentials_path(data_dir: &Path) -> PathBuf {
    data_dir.join("node.pem")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_without_node_json_is_refused_rather_than_replaced() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Identity::load(directory.path()).unwrap().is_none());
        std::fs::create_dir(directory.path().join(STORE)).unwrap();
        let error = format!("{:#}", Identity::load(directory.path()).unwrap_err());
        assert!(error.contains("node.json beside it is missing"), "{error}");
    }

    #[test]
    fn damaged_keys_are_named() {
        let directory = tempfile::tempdir().unwrap();
        write_private(&credentials_path(directory.path()), "").unwrap();
        let error = format!("{:#}", Identity::credentials(directory.path()).unwrap_err());
        assert!(error.contains("node.pem") && error.contains("restore it"), "{error}");
    }
}
