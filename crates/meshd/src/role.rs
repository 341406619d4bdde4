//! Makes this process what its node's record says: starts the manager of a manager, ends that of a worker.
//!
//! The agent does not wait for that: a manager whose store is damaged, or without a majority, is a node all the same,
//! with traffic to carry.

use crate::{
    api::Failure,
    config::Config,
    daemon::Member,
    identity::{Identity, OLD_STORE},
    manager::{Declined, Manager, Migration, Promotion, Start},
    supervisor::Spawner,
};
use mesh_api::{Migrated, StoreSpec};
use mesh_model::Role;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// First and longest pause between two tries.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// How often a manager that is to be a worker looks whether it may end.
const LOOK: Duration = Duration::from_millis(50);
/// How long its etcd stays after its removal: as long as one that is left to itself, and some more.
const LINGER: Duration = Duration::from_millis(1500);
/// How often in a row its etcd may fail to answer, each time for some seconds, before it is taken for gone.
const SILENT: u32 = 3;

/// `cluster migrate`.
pub(crate) struct Migrate {
    pub(crate) to: StoreSpec,
    pub(crate) reply: oneshot::Sender<Result<Migrated, Failure>>,
}

/// Why a manager ends that has not begun yet.
#[derive(Debug, thiserror::Error)]
#[error("it was demoted while it was starting")]
struct Demoted;

/// What follows the role.
pub(crate) struct Roles {
    pub(crate) config: Config,
    pub(crate) spawner: Spawner,
    pub(crate) member: Arc<Member>,
    /// As on disk.
    pub(crate) identity: Identity,
    pub(crate) orders: mpsc::Receiver<Migrate>,
}

impl Roles {
    /// Runs until cancelled.
    pub(crate) async fn run(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        cancel.run_until_cancelled(self.follow()).await;
        Ok(())
    }

    async fn follow(&mut self) {
        let mut pause = BACKOFF.0;
        let mut snapshot = self.member.agent.subscribe();
        loop {
            if let Err(err) = self.settle().await {
                self.member.set_manager(Err(format!("{err:#}")));
                pause = (pause * 2).min(BACKOFF.1);
            } else {
                pause = BACKOFF.0;
            }
            // A change that is missed here is seen after the pause.
            tokio::select! {
                _ = timeout(pause, snapshot.changed()) => {}
                Some(Migrate { to, reply }) = self.orders.recv() => {
                    // Who asked may be gone.
                    let _ = reply.send(self.migrate(to).await);
                }
            }
        }
    }

    /// One step towards what the record says.
    async fn settle(&mut self) -> anyhow::Result<()> {
        let wanted = self.record();
        match (self.identity.role, wanted, self.member.manager()) {
            (Role::Manager, Some(Role::Worker), _) => self.lay_down().await,
            (Role::Manager, _, None) => self.start_again().await,
            (Role::Worker, Some(Role::Manager), _) => self.take_up().await,
            _ => Ok(()),
        }
    }

    /// The role in the node's record, as a manager says it: one on disk may be old.
    fn record(&self) -> Option<Role> {
        let agent = &self.member.agent;
        let snapshot = agent.snapshot();
        snapshot.nodes.get(&self.identity.node).filter(|_| agent.link.is_connected()).map(|node| node.role)
    }

    /// Returns once the record says that this node is a worker. Its store may wait for managers that are none any more.
    async fn is_demoted(&self) {
        let mut snapshot = self.member.agent.subscribe();
        while self.record() != Some(Role::Worker) {
            // Whether a manager says so is not told by the snapshot.
            drop(timeout(BACKOFF.0, snapshot.changed()).await);
        }
    }

    async fn start_again(&mut self) -> anyhow::Result<()> {
        self.identity.tidy(&self.config.data_dir)?;
        let tasks = self.spawner.group();
        let Err(err) = self.start(Start::Again, &tasks).await else { return Ok(()) };
        if !self.was_demoted(&err) {
            tasks.stop().await;
            return Err(err);
        }
        self.decline_for_good("it is a worker", true).await;
        tasks.stop().await;
        self.become_worker()
    }

    /// Starts the manager, with its tasks in a group of their own, which the caller ends if this fails.
    async fn start(&self, start: Start, tasks: &Spawner) -> anyhow::Result<()> {
        let connected = self.member.agent.connected.clone();
        let waiting = |why: String| self.member.announce(&why);
        let manager = tokio::select! {
            started = Manager::start(&self.config, &self.identity, start, connected, tasks, &waiting) => started?,
            () = self.is_demoted() => return Err(Demoted.into()),
        };
        self.member.set_manager(Ok(manager));
        Ok(())
    }

    /// Moves the state to an etcd; or says why not, and nothing has changed.
    async fn migrate(&mut self, to: StoreSpec) -> Result<Migrated, Failure> {
        if self.identity.store != StoreSpec::Redb {
            return Err(Failure::conflict("the state of this cluster is in etcd already"));
        }
        let Some(manager) = self.member.manager() else {
            return Err(Failure::unavailable("this node's manager does not run: see 'meshctl status'"));
        };
        let unchanged =
            |e: &anyhow::Error| Failure::conflict(format!("cannot move the cluster to etcd: {e:#}"));
        let moved = Identity { store: to, ..self.identity.clone() };
        let begun = Migration::begin(&self.config, &manager, &moved).await;
        let mut migration = begun.map_err(|e| unchanged(&e))?;

        self.member.announce("its state is being moved to etcd");
        manager.stop().await;
        let copied = migration.copy(&manager).await;
        drop(manager);
        let committed = copied.and_then(|records| {
            moved.save_alone(&self.config.data_dir)?;
            Ok(records)
        });
        let records = match committed {
            Ok(records) => records,
            Err(e) => {
                // It may be written and not known to be on the disk: the next start would put the store away that counts.
                if let Err(err) = self.identity.save_alone(&self.config.data_dir) {
                    tracing::error!(err = format!("{err:#}"), "node.json may name the etcd that is given up");
                }
                migration.undo(&self.config).await;
                self.resume().await;
                return Err(unchanged(&e));
            }
        };
        self.identity = moved;
        migration.close().await;
        tracing::info!(records, "the cluster's state is in etcd now");
        if let Some(why) = self.resume().await {
            return Err(Failure::unavailable(format!(
                "the state is in etcd now, but the manager does not run yet: {why}: see 'meshctl status'"
            )));
        }
        Ok(Migrated { records, old_store: self.config.data_dir.join(OLD_STORE) })
    }

    /// Starts the manager after a migration; says why that fails. It is tried again.
    async fn resume(&mut self) -> Option<String> {
        let why = format!("{:#}", self.start_again().await.err()?);
        self.member.set_manager(Err(why.clone()));
        Some(why)
    }

    /// Becomes a manager; or says that it can't, and is a worker as before.
    async fn take_up(&mut self) -> anyhow::Result<()> {
        let tasks = self.spawner.group();
        let Err(err) = self.try_take_up(&tasks).await else { return Ok(()) };
        let reason = format!("{err:#}");
        tracing::warn!(reason, "no manager: a worker as before");
        self.decline_for_good(&reason, self.was_demoted(&err)).await;
        tasks.stop().await;
        self.become_worker()
    }

    /// Declines until the managers go on without this node's etcd. One that was a worker meanwhile may be promoted again by
    /// now: that is not declined.
    async fn decline_for_good(&self, reason: &str, mut was_worker: bool) {
        while let Err(err) = self.decline(if was_worker { "" } else { reason }).await {
            self.member
                .set_manager(Err(format!("{reason}; its etcd stays until a manager removes it: {err}")));
            sleep(BACKOFF.1).await;
            was_worker |= self.record() == Some(Role::Worker);
        }
    }

    /// Whether a start failed because the node is to be a worker.
    fn was_demoted(&self, err: &anyhow::Error) -> bool {
        err.is::<Demoted>() || self.record() == Some(Role::Worker)
    }

    /// Tells the managers that this node is none, and why unless they know. Once this returns they go on without its etcd,
    /// which may have had a vote: of two voters that end before they are removed, the other one could never remove them.
    async fn decline(&self, reason: &str) -> Result<(), Failure> {
        let declined = Declined { reason: reason.to_owned() };
        self.member.agent.ask("/v1/agent/declined", &declined).await
    }

    /// Waits until the others are a majority without this node's etcd: of two members that end before they are removed,
    /// the other one could never remove them. False if the node is to be a manager after all.
    async fn is_dispensable(&self, manager: &Manager) -> bool {
        // A store of before a restore has members of its own, which nobody removes any more.
        let is_of_the_cluster = || self.member.agent.snapshot().epoch == manager.snapshot().epoch;
        let (mut silent, mut manager_again) = (0, None);
        while is_of_the_cluster() && silent < SILENT {
            if self.record() == Some(Role::Manager) {
                manager_again.get_or_insert_with(Instant::now);
            } else {
                manager_again = None;
            }
            match manager.is_member_of_etcd().await {
                // Its own etcd may not know yet that it was removed before that.
                Ok(true) if manager_again.is_some_and(|since| since.elapsed() > 2 * LINGER) => return false,
                Ok(true) => silent = 0,
                Ok(false) => {
                    // The others may learn only from this member, if it led, that they go on without it.
                    sleep(LINGER).await;
                    return true;
                }
                Err(_) => silent += 1,
            }
            sleep(LOOK).await;
        }
        true
    }

    async fn try_take_up(&mut self, tasks: &Spawner) -> anyhow::Result<()> {
        let promotion: Promotion = self.member.agent.ask("/v1/agent/promotion", &()).await?;
        let (identity, start) = promotion.keep(&self.config, &self.identity)?;
        self.identity = identity;
        self.start(start, tasks).await
    }

    /// Ends the manager.
    async fn lay_down(&mut self) -> anyhow::Result<()> {
        match self.member.manager() {
            Some(manager) if !self.is_dispensable(&manager).await => return Ok(()),
            Some(manager) => manager.stop().await,
            None => self.decline("").await?,
        }
        self.become_worker()
    }

    /// Is a worker from now on; nothing of the store and its secrets stays.
    fn become_worker(&mut self) -> anyhow::Result<()> {
        self.member.announce("");
        // The secrets go first, whatever becomes of the rest; and there is room then on a disk that was full.
        Identity::discard_state(&self.config.data_dir)?;
        let worker = Identity { role: Role::Worker, store: StoreSpec::default(), ..self.identity.clone() };
        worker.save_alone(&self.config.data_dir)?;
        self.identity = worker;
        tracing::info!("this node is a worker now");
        Ok(())
    }
}
