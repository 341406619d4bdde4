//! This node's part in finding out who is alive: [`mesh_cluster::membership`] on UDP, at the advertised address and port.
//!
//! The keys come from a manager and are kept in `gossip.json`, mode 0600, for a start without one. Until the first keys
//! have come nobody is probed, and all count as alive.

use anyhow::Context;
use mesh_cluster::{
    membership::{ClusterKeys, Config, Membership, Nodes, Timings, Verdicts},
    read_private, write_private,
};
use mesh_model::NodeId;
use socket2::{Domain, Socket, Type};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::{net::UdpSocket, sync::watch};
use tokio_util::sync::CancellationToken;

const FILE: &str = "gossip.json";

/// Membership, not yet running.
pub(super) struct Members {
    pub(super) me: NodeId,
    pub(super) socket: UdpSocket,
    pub(super) nodes: watch::Receiver<Arc<Nodes>>,
    pub(super) keys: watch::Receiver<Option<ClusterKeys>>,
    pub(super) verdicts: watch::Sender<Arc<Verdicts>>,
    pub(super) farewell: Farewell,
}

/// How a node says that it leaves for good.
#[derive(Debug, Clone, Default)]
pub(super) struct Farewell {
    /// Cancelled to say it.
    pub(super) say: CancellationToken,
    /// Cancelled when it is said, or when there is nobody to say it.
    pub(super) said: CancellationToken,
}

impl Members {
    /// Runs until cancelled.
    pub(super) async fn run(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        let farewell = self.farewell.clone();
        // Held until the end: liveness listens to it, and must not end before it is told to.
        let _verdicts = self.verdicts.clone();
        let first = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            first = self.first_keys() => first?,
        };
        if let Some(first) = first {
            self.follow(first, cancel.clone()).await?;
        }
        farewell.said.cancel();
        // After a farewell, which others have heard, the daemon goes on.
        cancel.cancelled().await;
        Ok(())
    }

    /// The first keys; none if this node leaves before they have come.
    async fn first_keys(&mut self) -> anyhow::Result<Option<ClusterKeys>> {
        tokio::select! {
            () = self.farewell.say.cancelled() => Ok(None),
            keys = self.keys.wait_for(Option::is_some) => Ok(keys?.clone()),
        }
    }

    async fn follow(mut self, first: ClusterKeys, cancel: CancellationToken) -> anyhow::Result<()> {
        let (to_keys, keys) = watch::channel(first);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (membership, mut findings) = Membership::new(Config {
            me: self.me,
            generation: u64::try_from(now.as_millis()).unwrap_or_default(),
            socket: self.socket,
            nodes: self.nodes.clone(),
            keys,
            timings: Timings::default(),
            leave: self.farewell.say.clone(),
        })?;
        let mut running = pin!(membership.run(cancel));
        loop {
            tokio::select! {
                // Its verdicts end with it: that is no failure.
                biased;
                ended = &mut running => return Ok(ended?),
                changed = self.keys.changed() => {
                    changed?;
                    if let Some(keys) = self.keys.borrow_and_update().clone() {
                        to_keys.send_replace(keys);
                    }
                }
                changed = findings.verdicts.changed() => {
                    changed?;
                    self.verdicts.send_replace(Arc::clone(&findings.verdicts.borrow_and_update()));
                }
            }
        }
    }
}

/// The socket. An address that this host does not have yet, early in its boot, is bound all the same.
pub(super) fn bind(address: SocketAddr) -> anyhow::Result<UdpSocket> {
    let bound = || {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
        match address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => socket.set_freebind_v6(true)?,
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        UdpSocket::from_std(socket.into())
    };
    bound()
        .with_context(|| format!("cannot use UDP port {} of {}: is it free?", address.port(), address.ip()))
}

/// The keys of an earlier life.
pub(super) fn load_keys(data_dir: &Path) -> Option<ClusterKeys> {
    let path = data_dir.join(FILE);
    let read = read_private(&path).map_err(anyhow::Error::from);
    let keys = read.and_then(|text| Ok(text.map(|text| serde_json::from_str(&text)).transpose()?));
    keys.unwrap_or_else(|err: anyhow::Error| {
        // The reason may quote what is a secret.
        tracing::error!(path = %path.display(), "the membership keys can't be read: waiting for a manager");
        drop(err);
        None
    })
}

/// Writes each new pair of keys.
pub(super) async fn keep_keys(
    data_dir: PathBuf,
    mut keys: watch::Receiver<Option<ClusterKeys>>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let path = data_dir.join(FILE);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            changed = keys.changed() => changed?,
        }
        let Some(latest) = keys.borrow_and_update().clone() else { continue };
        let text = serde_json::to_string(&latest)?;
        let path = path.clone();
        if let Err(err) = tokio::task::spawn_blocking(move || write_private(&path, &text)).await? {
            tracing::error!(%err, "cannot write the membership keys: a restart without a manager would hear nobody");
        }
    }
}
