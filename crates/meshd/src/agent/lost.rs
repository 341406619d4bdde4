//! Which hosts are lost: a node is down when its daemon does not answer, and that may be all that ended. What is connected to
//! its endpoints goes on then. Of a host that is gone nobody tells its clients; so they are to be told here.
//!
//! Each node that is down is asked in the networks that it shares with this one, the way that connections to its endpoints
//! take: its daemon answers, or its kernel says that nobody listens. One that says nothing for a while is lost until it does.

use crate::{doctor::is_there, sockets::Sockets};
use anyhow::Context;
use mesh_model::{NetworkId, Node, NodeId, NodeStatus, Snapshot};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// How long a host says nothing that is lost.
const SILENCE: Duration = Duration::from_secs(3);
/// The pause before it is asked again. Kernels say once a second at most that nobody listens.
const PAUSE: Duration = Duration::from_secs(2);
/// Networks that it is asked in, as one may not be there any more.
const NETWORKS: usize = 3;

/// The search.
pub(super) struct Lost {
    pub(super) me: NodeId,
    pub(super) sockets: Sockets,
    /// With the liveness that this node finds out.
    pub(super) snapshot: watch::Receiver<Arc<Snapshot>>,
    pub(super) lost: watch::Sender<BTreeSet<NodeId>>,
}

impl Lost {
    /// Runs until cancelled.
    pub(super) async fn run(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        let mut searches = JoinSet::new();
        let mut sought: BTreeMap<NodeId, AbortHandle> = BTreeMap::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                changed = self.snapshot.changed() => changed.context("no snapshots any more")?,
            }
            let down = self.down();
            sought.retain(|node, search| {
                let stays = down.contains(node);
                if !stays {
                    search.abort();
                }
                stays
            });
            // What ended is forgotten.
            while searches.try_join_next().is_some() {}
            self.lost.send_if_modified(|lost| {
                let before = lost.len();
                lost.retain(|node| down.contains(node));
                lost.len() != before
            });
            for node in down {
                sought.entry(node).or_insert_with(|| {
                    let (sockets, snapshot) = (self.sockets.clone(), self.snapshot.clone());
                    searches.spawn(search(self.me, node, sockets, snapshot, self.lost.clone()))
                });
            }
        }
    }

    fn down(&mut self) -> BTreeSet<NodeId> {
        let snapshot = self.snapshot.borrow_and_update();
        let others = snapshot.nodes.keys().filter(|node| **node != self.me);
        others.filter(|node| snapshot.status_of(**node) == NodeStatus::Down).copied().collect()
    }
}

/// Asks one node again and again.
async fn search(
    me: NodeId,
    node: NodeId,
    sockets: Sockets,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    lost: watch::Sender<BTreeSet<NodeId>>,
) {
    loop {
        let ways = ways(me, node, &snapshot.borrow());
        let mut asked = JoinSet::new();
        for (network, ends) in ways {
            let sockets = sockets.clone();
            asked.spawn(async move { is_there(&sockets, network, ends, SILENCE).await });
        }
        // Who can't be asked is not known to be lost.
        let (mut is_silent, mut is_heard) = (false, false);
        while let Some(answer) = asked.join_next().await {
            match answer {
                Ok(Ok(true)) => {
                    is_heard = true;
                    break;
                }
                Ok(Ok(false)) => is_silent = true,
                Ok(Err(_)) | Err(_) => {}
            }
        }
        let is_lost = is_silent && !is_heard;
        let changed = lost.send_if_modified(|lost| match is_lost {
            true => lost.insert(node),
            false => lost.remove(&node),
        });
        if changed {
            tracing::info!(%node, is_lost, "the host of a node that is down was asked whether it is there");
        }
        sleep(PAUSE).await;
    }
}

/// Where to ask: in some of the networks that the node has endpoints on, from this node's address there to its.
fn ways(me: NodeId, node: NodeId, snapshot: &Snapshot) -> Vec<(NetworkId, [IpAddr; 2])> {
    let here = snapshot.networks_on(me);
    let own = snapshot.endpoints.values().filter(|endpoint| endpoint.node == node);
    let shared: BTreeSet<NetworkId> =
        own.map(|endpoint| endpoint.network).filter(|network| here.contains(network)).collect();
    let address = |node: &Node, ipv6| node.addresses.iter().copied().find(|own| own.is_ipv6() == ipv6);
    let ends = |ipv6| {
        let end = |id| snapshot.nodes.get(&id).and_then(|node| address(node, ipv6));
        Some([end(me)?, end(node)?])
    };
    let Some(ends) = ends(false).or_else(|| ends(true)) else { return Vec::new() };
    shared.into_iter().take(NETWORKS).map(|network| (network, ends)).collect()
}
