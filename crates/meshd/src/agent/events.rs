//! What happens in the cluster, for this node's users: told by whichever manager is connected, and, of nodes that come
//! and go, which is nowhere stored, by what this node sees.

use super::{Agent, Link};
use crate::{
    api::Failure,
    clock,
    wire::{
        Told,
        client::{Sender, decode, request},
    },
};
use bytes::BytesMut;
use futures_util::{Stream, stream};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_api::EventView;
use mesh_model::{Action, Event, NodeId, NodeStatus, Snapshot};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

/// How long a user waits for the first manager.
const PATIENCE: Duration = Duration::from_secs(5);
/// Pause before a manager is asked again that broke off.
const RETRY: Duration = Duration::from_millis(200);

impl Agent {
    /// Everything that happens after a revision (unless given: from now on), until something goes wrong that another
    /// manager would not mend. A manager that is lost is none of that: the next one goes on where it stopped.
    pub(crate) async fn events(
        &self,
        since: Option<u64>,
    ) -> Result<impl Stream<Item = Result<EventView, Failure>> + use<>, Failure> {
        let mut journal = Journal::new(&self.link, since);
        let begun = timeout(PATIENCE, journal.begin()).await;
        begun.map_err(|_| Failure::unavailable("no manager answers: nobody can tell what happens"))??;
        let follower = Follower::new(journal, self.snapshot.clone());
        Ok(stream::unfold(Some(follower), |follower| async move {
            let mut follower = follower?;
            match follower.next().await {
                Ok(event) => Some((Ok(event), Some(follower))),
                Err(failure) => Some((Err(failure), None)),
            }
        }))
    }
}

/// What managers tell, one after the other, without a gap between them.
struct Journal {
    connection: watch::Receiver<Option<Sender>>,
    lines: Option<Lines>,
    /// Everything up to this revision was told.
    after: Option<u64>,
}

impl Journal {
    fn new(link: &Link, after: Option<u64>) -> Self {
        Self { connection: link.watch(), lines: None, after }
    }

    /// Asks the manager that is connected, or the next one that is.
    async fn begin(&mut self) -> Result<(), Failure> {
        self.lines = None;
        loop {
            let sender =
                self.connection.wait_for(Option::is_some).await.ok().and_then(|sender| sender.clone());
            let mut sender = sender.ok_or_else(|| Failure::unavailable("this meshd ends"))?;
            self.connection.mark_unchanged();
            let since = self.after.map(|revision| format!("?since={revision}")).unwrap_or_default();
            let asked = request(Method::GET, &format!("/v1/agent/events{since}"), Vec::new());
            if let Ok(answer) = sender.send_request(asked).await {
                let status = answer.status();
                if status.is_success() {
                    self.lines = Some(Lines { body: answer.into_body(), buffer: BytesMut::new() });
                    return Ok(());
                }
                if status != StatusCode::SERVICE_UNAVAILABLE
                    && let Ok(body) = answer.into_body().collect().await
                {
                    return Ok(decode(status, &body.to_bytes())?);
                }
            }
            sleep(RETRY).await;
        }
    }

    /// Cancel-safe: what was not returned comes again.
    async fn next(&mut self) -> Result<Told, Failure> {
        loop {
            let Some(lines) = &mut self.lines else {
                self.begin().await?;
                continue;
            };
            let told = tokio::select! {
                told = lines.next() => told,
                // The agent has moved on to another manager, for a reason.
                _ = self.connection.changed() => None,
            };
            match told {
                Some(told) => {
                    self.after = Some(told.revision);
                    return Ok(told);
                }
                None => {
                    self.lines = None;
                    sleep(RETRY).await;
                }
            }
        }
    }
}

/// A manager's answer, line by line.
struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    /// The next line; none when the answer ends, breaks or makes no sense.
    async fn next(&mut self) -> Option<Told> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return serde_json::from_slice(&self.buffer.split_to(end + 1)).ok();
            }
            if let Ok(data) = self.body.frame().await?.ok()?.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

/// Both sources, an event at a time.
struct Follower {
    journal: Journal,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    statuses: BTreeMap<NodeId, NodeStatus>,
    /// Not yet told.
    ready: VecDeque<EventView>,
}

impl Follower {
    fn new(journal: Journal, mut snapshot: watch::Receiver<Arc<Snapshot>>) -> Self {
        let statuses = snapshot.borrow_and_update().status.clone();
        Self { journal, snapshot, statuses, ready: VecDeque::new() }
    }

    async fn next(&mut self) -> Result<EventView, Failure> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            tokio::select! {
                told = self.journal.next() => {
                    let Told { revision, happened } = told?;
                    let time_ms = happened.time_ms;
                    self.ready.extend(happened.events.into_iter().map(|event| EventView { revision, time_ms, event }));
                }
                changed = self.snapshot.changed() => {
                    changed.map_err(|_| Failure::unavailable("this meshd ends"))?;
                    self.see();
                }
            }
        }
    }

    /// Nodes whose liveness is another than before. Those that join or leave are told by the journal.
    fn see(&mut self) {
        let snapshot = Arc::clone(&self.snapshot.borrow_and_update());
        for (id, node) in &snapshot.nodes {
            let status = snapshot.status.get(id).copied().unwrap_or_default();
            let before = self.statuses.insert(*id, status).unwrap_or_default();
            if before != status {
                let event = Event {
                    action: Action::Updated,
                    kind: "node".to_owned(),
                    name: node.name.to_string(),
                    id: id.to_string(),
                    detail: format!("status={status} (was {before})"),
                };
                let (revision, time_ms) = (snapshot.revision, clock::unix_millis());
                self.ready.push_back(EventView { revision, time_ms, event });
            }
        }
    }
}
