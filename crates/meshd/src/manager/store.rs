//! Opens what keeps the state: a file of redb, the etcd that this manager runs, or one that somebody else runs.

use super::etcd::{Bootstrap, LocalEtcd, Waiting};
use crate::{
    config::Config,
    identity::{self, Identity},
    supervisor::Spawner,
};
use anyhow::Context;
use mesh_api::{ExternalEtcd, StoreSpec};
use mesh_store::{EtcdClientCertificate, EtcdOptions, EtcdStore, EtcdTls, Options, RedbStore, Store};
use std::{path::Path, sync::Arc};

/// The state's keeper.
pub(super) struct Opened {
    pub(super) store: Arc<dyn Store>,
    /// The same, if it is an etcd.
    pub(super) etcd: Option<EtcdStore>,
    /// The etcd that this manager runs.
    pub(super) local: Option<Arc<LocalEtcd>>,
    /// What it is, for messages.
    pub(super) name: String,
}

/// Opens the store of this node. A child process that it needs runs as one of `tasks`.
pub(super) async fn open(
    config: &Config,
    identity: &Identity,
    bootstrap: &Bootstrap,
    tasks: &Spawner,
    waiting: Waiting<'_>,
) -> anyhow::Result<Opened> {
    match &identity.store {
        StoreSpec::Redb => {
            let path = config.data_dir.join(identity::STORE);
            let store = Arc::new(RedbStore::open(&path, Options::default()).await?);
            Ok(Opened { store, etcd: None, local: None, name: path.display().to_string() })
        }
        StoreSpec::Etcd => {
            let local = Arc::new(LocalEtcd::start(config, identity, bootstrap)?);
            let (child, cancel) = (Arc::clone(&local), tasks.cancel.clone());
            tasks.spawn("etcd", async move {
                child.run(cancel).await;
                Ok(())
            });
            let store = local.open(waiting).await?;
            Ok(opened(store, Some(local), "its etcd".to_owned()))
        }
        StoreSpec::External(external) => {
            let store = EtcdStore::open(external_options(external, identity)?).await?;
            Ok(opened(store, None, format!("the etcd at {}", external.endpoints.join(", "))))
        }
    }
}

fn opened(etcd: EtcdStore, local: Option<Arc<LocalEtcd>>, name: String) -> Opened {
    Opened { store: Arc::new(etcd.clone()), etcd: Some(etcd), local, name }
}

/// Connections to an etcd that somebody else runs, with the certificates that its files hold now.
pub(super) fn external_options(external: &ExternalEtcd, identity: &Identity) -> anyhow::Result<EtcdOptions> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {} for etcd", path.display()))
    };
    let client = match (&external.cert, &external.key) {
        (Some(cert), Some(key)) => Some(EtcdClientCertificate { certificate: read(cert)?, key: read(key)? }),
        (None, None) => None,
        _ => anyhow::bail!("--etcd-cert and --etcd-key belong together: give both"),
    };
    let tls = match (&external.ca, client) {
        (Some(ca), client) => Some(EtcdTls { ca: read(ca)?, client }),
        (None, Some(_)) => anyhow::bail!("--etcd-cert needs --etcd-ca: the CA of etcd's own certificate"),
        (None, None) if external.endpoints.iter().any(|url| url.starts_with("https:")) => {
            anyhow::bail!("etcd at https:// needs --etcd-ca: the CA of its certificate")
        }
        (None, None) => None,
    };
    Ok(EtcdOptions { tls, ..EtcdOptions::new(&external.endpoints, identity.cluster.to_string()) })
}
