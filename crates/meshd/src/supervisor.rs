//! Owns every long-lived task. One that ends unasked ends the daemon: half a daemon is worse than a restart.

use std::{collections::HashMap, future::Future, pin::Pin};
use tokio::{
    sync::mpsc,
    task::{Id, JoinSet},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

type Task = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// Hands tasks to the supervisor: those of the daemon, or of a group in it that can end earlier.
#[derive(Debug, Clone)]
pub(crate) struct Spawner {
    tasks: mpsc::UnboundedSender<Named>,
    /// Counts the tasks of the group, and of the groups in it.
    tracker: TaskTracker,
    /// Those of the groups that it is in.
    around: Vec<TaskTracker>,
    /// Tells every task of the group to end.
    pub(crate) cancel: CancellationToken,
}

struct Named {
    name: &'static str,
    task: Task,
    /// That of its group.
    cancel: CancellationToken,
}

impl std::fmt::Debug for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Spawner {
    /// Runs a task until it ends or the daemon does. The number of tasks is small and fixed by the code, so the
    /// channel needs no bound.
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let cancel = self.cancel.clone();
        // They count it until it has ended, or is dropped.
        let counted: Vec<_> = self.around.iter().chain([&self.tracker]).map(TaskTracker::token).collect();
        let task = Box::pin(async move {
            let _counted = counted;
            task.await
        });
        // Without a receiver the daemon is about to end, and the task with it.
        drop(self.tasks.send(Named { name, task, cancel }));
    }

    /// A group of tasks that end with those of this one, or before them by [`stop`](Self::stop).
    pub(crate) fn group(&self) -> Self {
        let (tasks, cancel) = (self.tasks.clone(), self.cancel.child_token());
        let around = self.around.iter().chain([&self.tracker]).cloned().collect();
        Self { tasks, tracker: TaskTracker::new(), around, cancel }
    }

    /// Ends the tasks of a group and of those in it; returns when all have ended.
    pub(crate) async fn stop(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// The owner of the tasks.
#[derive(Debug)]
pub(crate) struct Supervisor {
    incoming: mpsc::UnboundedReceiver<Named>,
    running: JoinSet<anyhow::Result<()>>,
    known: HashMap<Id, (&'static str, CancellationToken)>,
    cancel: CancellationToken,
}

impl Supervisor {
    pub(crate) fn new() -> (Self, Spawner) {
        let (tasks, incoming) = mpsc::unbounded_channel();
        let cancel = CancellationToken::new();
        let supervisor =
            Self { incoming, running: JoinSet::new(), known: HashMap::new(), cancel: cancel.clone() };
        (supervisor, Spawner { tasks, tracker: TaskTracker::new(), around: Vec::new(), cancel })
    }

    /// Runs until the token is cancelled, then waits for every task; or until a task ends before that.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let failure = loop {
            tokio::select! {
                // A task that ends because it was told to is no failure, whichever is seen first.
                biased;
                () = self.cancel.cancelled() => break None,
                Some(named) = self.incoming.recv() => {
                    let handle = self.running.spawn(named.task);
                    self.known.insert(handle.id(), (named.name, named.cancel));
                }
                Some(ended) = self.running.join_next_with_id() => {
                    if let Some(failure) = self.unasked(ended) {
                        break Some(failure);
                    }
                }
            }
        };
        self.cancel.cancel();
        while self.running.join_next().await.is_some() {}
        match failure {
            None => Ok(()),
            Some(failure) => Err(failure),
        }
    }

    /// Why a task ended, unless its group was told to end.
    fn unasked(
        &mut self,
        ended: Result<(Id, anyhow::Result<()>), tokio::task::JoinError>,
    ) -> Option<anyhow::Error> {
        let (id, ended) = match ended {
            Ok((id, ended)) => (id, ended),
            Err(e) => (e.id(), Err(e.into())),
        };
        let (name, cancel) = self.known.remove(&id).unwrap_or(("a task", CancellationToken::new()));
        match ended {
            Ok(()) if cancel.is_cancelled() => None,
            Ok(()) => Some(anyhow::anyhow!("{name} ended unasked")),
            // Its group ends: that what it listened to went first is no failure.
            Err(e) if cancel.is_cancelled() => {
                tracing::debug!(err = format!("{e:#}"), "{name} ended with its group");
                None
            }
            Err(e) => Some(e.context(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends when told to.
    async fn obedient(cancel: CancellationToken) -> anyhow::Result<()> {
        cancel.cancelled().await;
        Ok(())
    }

    #[tokio::test]
    async fn a_group_ends_alone_and_the_daemon_goes_on() {
        let (supervisor, spawner) = Supervisor::new();
        let group = spawner.group();
        group.spawn("of the group", obedient(group.cancel.clone()));
        spawner.spawn("of the daemon", obedient(spawner.cancel.clone()));
        let running = tokio::spawn(supervisor.run());
        group.stop().await;
        assert!(!spawner.cancel.is_cancelled());
        spawner.cancel.cancel();
        running.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_group_ends_with_the_one_around_it_which_waits() {
        let (supervisor, spawner) = Supervisor::new();
        let running = tokio::spawn(supervisor.run());
        let group = spawner.group();
        let (inner, ended) = (group.group(), CancellationToken::new());
        let (cancel, done) = (inner.cancel.clone(), ended.clone());
        inner.spawn("slow to end", async move {
            cancel.cancelled().await;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            done.cancel();
            Ok(())
        });
        drop(inner);
        group.stop().await;
        assert!(ended.is_cancelled());
        spawner.cancel.cancel();
        running.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_task_of_a_group_that_ends_unasked_ends_the_daemon() {
        let (supervisor, spawner) = Supervisor::new();
        let group = spawner.group();
        group.spawn("hasty", async { Ok(()) });
        let error = supervisor.run().await.unwrap_err();
        assert_eq!(error.to_string(), "hasty ended unasked");
        assert!(group.cancel.is_cancelled(), "a group ends with the daemon");
    }
}
