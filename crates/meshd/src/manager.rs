//! The manager: validates, allocates and commits; tells agents.
//!
//! ```text
//! local API, agents ──► Manager::change ──► store ──► State (watch) ──► snapshot, log of changes ──► sessions ──► agents
//! ```

mod authority;
mod backup;
mod change;
mod error;
mod etcd;
mod gossip;
mod join;
mod journal;
mod log;
mod migrate;
mod operations;
mod peers;
mod quorum;
mod reserve;
mod roles;
mod secrets;
mod server;
mod sessions;
mod state;
mod store;
mod trust;
mod upkeep;

pub(crate) use backup::Backup;
pub(crate) use error::Error;
pub(crate) use etcd::ETCD;
pub(crate) use join::FirstNode;
pub(crate) use migrate::Migration;
pub(crate) use roles::{Declined, Promotion};

use crate::{
    config::Config,
    identity::Identity,
    supervisor::Spawner,
    wire::{Confirmed, PortsReports},
};
use anyhow::Context;
use etcd::{Bootstrap, Waiting};
use mesh_model::{NodeId, ServiceId, Snapshot};
use mesh_store::{EtcdStore, Store};
use peers::Peers;
use secrets::StoreKey;
use sessions::Sessions;
use state::State;
use std::{collections::BTreeSet, sync::Arc};
use tokio::sync::{Mutex, Notify, watch};
use trust::Trust;

/// What a manager starts from.
pub(crate) enum Start {
    /// A new cluster.
    First(FirstNode),
    /// A promotion; the members of etcd that expect this one, by name and peer URL.
    Promoted(Vec<(String, String)>),
    /// What it kept of an earlier life.
    Again,
}

/// One manager of the cluster.
pub(crate) struct Manager {
    store: Arc<dyn Store>,
    /// The store, if it is an etcd.
    etcd: Option<EtcdStore>,
    /// The etcd that this manager runs.
    local: Option<Arc<etcd::LocalEtcd>>,
    quorum: quorum::Quorum,
    state: Arc<State>,
    sessions: Arc<Sessions>,
    peers: Peers,
    /// A member of etcd was added that has no vote yet.
    newcomer: Notify,
    trust: Trust,
    key: StoreKey,
    identity: Identity,
    /// Its tasks, which end when the node is no manager any more.
    tasks: Spawner,
    /// Queues this manager's own changes, so that they don't spoil each other's transactions.
    turn: Mutex<()>,
}

impl Manager {
    /// Opens the store, reads the state and serves agents. `connected` is told whose agents are, `waiting` what
    /// the store waits for. What it has started when it fails, or is given up, is of the group `tasks`: whoever calls
    /// this ends those. A promoted node's etcd may have a vote by then, and must not end before it is removed.
    pub(crate) async fn start(
        config: &Config,
        identity: &Identity,
        start: Start,
        connected: watch::Sender<BTreeSet<NodeId>>,
        tasks: &Spawner,
        waiting: Waiting<'_>,
    ) -> anyhow::Result<Arc<Self>> {
        // Before the store, whose etcd has a vote once it answers: a port that is taken fails the command and costs nothing.
        let port = server::take_port(identity.advertise)?;
        let key = StoreKey::load(&config.data_dir)?;
        let (bootstrap, first) = match start {
            Start::First(first) => (Bootstrap::New, Some(first)),
            Start::Promoted(members) => (Bootstrap::Existing(members), None),
            Start::Again => (Bootstrap::Again, None),
        };
        let opened = store::open(config, identity, &bootstrap, tasks, waiting).await?;
        let store = opened.store;
        if let Some(etcd) = &opened.etcd {
            migrate::finish(etcd).await?;
        }
        if let Some(first) = first {
            first.commit(store.as_ref()).await?;
        }
        let (state, feed) = State::load(Arc::clone(&store)).await.context("cannot read the store")?;
        // An empty store that is served would tell every node that it was removed.
        anyhow::ensure!(
            state.snapshot().cluster.as_ref().is_some_and(|cluster| cluster.id == identity.cluster),
            "{} holds nothing of this node's cluster {}: restore it from a backup, or empty the data directory to start anew",
            opened.name,
            identity.cluster,
        );
        let trust = Trust::load(store.as_ref(), &key, &state.snapshot(), identity.node).await?;
        let gossip = gossip::Rotation::load(Arc::clone(&store), key.clone(), Arc::clone(&state)).await?;
        let manager = Arc::new(Self {
            sessions: Arc::new(Sessions::new(Arc::clone(&state), gossip.keys(), connected)),
            peers: Peers::default(),
            newcomer: Notify::new(),
            store,
            etcd: opened.etcd,
            local: opened.local,
            quorum: quorum::Quorum::new(),
            state,
            trust,
            key,
            identity: identity.clone(),
            tasks: tasks.clone(),
            turn: Mutex::new(()),
        });
        manager.renew_etcd()?;
        let cancel = tasks.cancel.clone();
        // Not in its task: one that ends would end the daemon.
        let server = server::Server::listen(port, Arc::clone(&manager))?;
        tasks.spawn("manager state", feed.run(cancel.clone()));
        tasks.spawn("membership keys", gossip.run(cancel.clone()));
        tasks.spawn("manager server", server.run(cancel.clone()));
        tasks.spawn("trust", Trust::keep(Arc::clone(&manager), cancel.clone()));
        tasks.spawn("watch of the quorum", quorum::watch(Arc::clone(&manager), cancel.clone()));
        tasks.spawn("members of etcd", Arc::clone(&manager).keep_members(cancel.clone()));
        tasks.spawn("upkeep of the store", upkeep::run(Arc::clone(&manager), cancel.clone()));
        tasks.spawn("connections to the other managers", Peers::keep(Arc::clone(&manager), cancel));
        Ok(manager)
    }

    /// The whole state.
    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.state.snapshot()
    }

    /// What every connected node tells of a service's ports.
    pub(crate) async fn ports(&self, service: ServiceId) -> PortsReports {
        let (mut told, elsewhere) = tokio::join!(self.sessions.ports(service), self.peers.ports(service));
        told.extend(elsewhere);
        told
    }

    /// Waits until the other nodes have applied a revision; names those that had not in time.
    pub(crate) async fn confirm(&self, revision: u64) -> Confirmed {
        self.confirm_everywhere(revision, self.identity.node).await
    }

    /// The same for a change that another node asked for: it has applied it already.
    async fn confirm_everywhere(&self, revision: u64, except: NodeId) -> Confirmed {
        let (mut here, elsewhere) = tokio::join!(
            self.sessions.confirm(revision, Some(except)),
            self.peers.confirm(revision, Some(except))
        );
        here.lagging.extend(elsewhere);
        here
    }

    /// Ends the manager while the daemon goes on: its agents' streams end, its port is closed when this returns.
    pub(crate) async fn stop(&self) {
        self.tasks.stop().await;
    }
}
