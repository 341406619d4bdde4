//! Owns every long-lived task. One that ends unasked ends the daemon: half a daemon is worse than a restart.

use std::{future::Future, pin::Pin};
use tokio::{
    sync::mpsc,
    task::{Id, JoinSet},
};
use tokio_util::sync::CancellationToken;

type Task = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// Hands tasks to the supervisor.
#[derive(Debug, Clone)]
pub(crate) struct Spawner {
    tasks: mpsc::UnboundedSender<Named>,
    /// Tells every task to end.
    pub(crate) cancel: CancellationToken,
}

struct Named {
    name: &'static str,
    task: Task,
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
        // Without a receiver the daemon is about to end, and the task with it.
        drop(self.tasks.send(Named { name, task: Box::pin(task) }));
    }
}

/// The owner of the tasks.
#[derive(Debug)]
pub(crate) struct Supervisor {
    incoming: mpsc::UnboundedReceiver<Named>,
    running: JoinSet<anyhow::Result<()>>,
    names: Vec<(Id, &'static str)>,
    cancel: CancellationToken,
}

impl Supervisor {
    pub(crate) fn new() -> (Self, Spawner) {
        let (tasks, incoming) = mpsc::unbounded_channel();
        let cancel = CancellationToken::new();
        let supervisor =
            Self { incoming, running: JoinSet::new(), names: Vec::new(), cancel: cancel.clone() };
        (supervisor, Spawner { tasks, cancel })
    }

    /// Runs until the token is cancelled, then waits for every task; or until a task ends before that.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let ended_early = loop {
            tokio::select! {
                // A task that ends because it was told to is no failure, whichever is seen first.
                biased;
                () = self.cancel.cancelled() => break None,
                Some(named) = self.incoming.recv() => {
                    let handle = self.running.spawn(named.task);
                    self.names.push((handle.id(), named.name));
                }
                Some(ended) = self.running.join_next_with_id() => break Some(ended),
            }
        };
        self.cancel.cancel();
        let failure = ended_early.map(|ended| self.describe(ended));
        while self.running.join_next().await.is_some() {}
        match failure {
            None => Ok(()),
            Some(failure) => Err(failure),
        }
    }

    fn describe(&self, ended: Result<(Id, anyhow::Result<()>), tokio::task::JoinError>) -> anyhow::Error {
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(e) => e.id(),
        };
        let name = self.names.iter().find(|(known, _)| *known == id).map_or("a task", |(_, name)| name);
        match ended {
            Ok((_, Ok(()))) => anyhow::anyhow!("{name} ended unasked"),
            Ok((_, Err(e))) => e.context(name),
            Err(e) => anyhow::anyhow!("{name}: {e}"),
        }
    }
}
