//! Which network of the cluster each of Docker's networks is. Kept on disk: Docker restarts containers before its API
//! answers, and a restarted daemon must know them then.

use ipnetwork::IpNetwork;
use mesh_cluster::write_private;
use mesh_model::NetworkId;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

const FILE: &str = "docker.json";

/// What is known of a network of Docker's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Binding {
    /// The cluster's network, once it is found.
    #[serde(default)]
    pub(super) network: Option<NetworkId>,
    /// Its name, if the user gave it; else it is that of Docker's network, which Docker tells only afterwards.
    #[serde(default)]
    pub(super) name: Option<String>,
    /// Subnets that the user asked for.
    #[serde(default)]
    pub(super) subnets: Vec<IpNetwork>,
    /// Gateways that go with them.
    #[serde(default)]
    pub(super) gateways: Vec<IpAddr>,
    /// `--internal`.
    #[serde(default)]
    pub(super) internal: bool,
}

/// All of them, by the IDs of Docker's networks.
pub(super) struct Bindings {
    file: PathBuf,
    known: Mutex<BTreeMap<String, Binding>>,
}

impl Bindings {
    /// Those of an earlier life. A file that can't be read is no loss: Docker's API knows the networks too.
    pub(super) fn load(data_dir: &Path) -> Self {
        let file = data_dir.join(FILE);
        let known = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|err| {
                tracing::warn!(file = %file.display(), %err, "what was known of Docker's networks is lost");
                BTreeMap::new()
            }),
            Err(_) => BTreeMap::new(),
        };
        Self { file, known: Mutex::new(known) }
    }

    pub(super) fn get(&self, id: &str) -> Option<Binding> {
        self.lock().get(id).cloned()
    }

    pub(super) fn put(&self, id: &str, binding: Binding) {
        let mut known = self.lock();
        if known.insert(id.to_owned(), binding.clone()) != Some(binding) {
            self.write(&known);
        }
    }

    pub(super) fn remove(&self, id: &str) {
        let mut known = self.lock();
        if known.remove(id).is_some() {
            self.write(&known);
        }
    }

    fn write(&self, known: &BTreeMap<String, Binding>) {
        let text = serde_json::to_string(known).unwrap_or_default();
        if let Err(err) = write_private(&self.file, &text) {
            tracing::warn!(file = %self.file.display(), %err, "cannot write what is known of Docker's networks");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Binding>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_outlives_the_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let bindings = Bindings::load(directory.path());
        let binding = Binding { network: Some(NetworkId::from_bits(7)), ..Binding::default() };
        bindings.put("a", binding.clone());
        bindings.put("b", Binding { internal: true, ..Binding::default() });
        bindings.remove("b");
        let again = Bindings::load(directory.path());
        assert_eq!((again.get("a"), again.get("b")), (Some(binding), None));
    }
}
