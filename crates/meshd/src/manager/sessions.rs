//! Connected agents: what each has applied, the ports they are asked to hold, and what they tell of ports.

use super::{
    Error,
    log::{Cursor, Subscription, line},
    state::State,
};
use crate::wire::{Claim, Confirmed, Message, PortsReports, PortsTold, Reserved, Resume};
use bytes::{Bytes, BytesMut};
use mesh_cluster::membership::ClusterKeys;
use mesh_model::{NodeId, ServiceId};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{Instant, timeout_at},
};

/// How long nodes may take to apply a change before the answer goes out without them.
const CONFIRM: Duration = Duration::from_secs(3);
/// How long nodes may take to say whether a port is free there.
const HOLD: Duration = Duration::from_secs(2);
/// How long nodes may take to tell what goes through ports.
const TELL: Duration = Duration::from_secs(2);
/// How many may ask that at once; more wait.
const QUESTIONS: usize = 8;
/// How long a session waits for the one before it to end, of a process that is gone: longer than the server needs to
/// notice that nobody is at the other end, and shorter than an agent's patience.
const SUCCEED: Duration = Duration::from_millis(2200);
/// Requests that wait for one session.
const QUEUE: usize = 64;
/// Lines are sent in chunks of up to this many bytes: one TLS record.
const CHUNK: usize = 16 << 10;

/// The connected agents.
#[derive(Debug)]
pub(super) struct Sessions {
    state: Arc<State>,
    table: Mutex<Table>,
    /// Whose agents are connected.
    connected: watch::Sender<BTreeSet<NodeId>>,
    /// The membership keys.
    keys: watch::Receiver<ClusterKeys>,
    /// Ticks whenever the table changed in a way that somebody may wait for.
    changed: watch::Sender<()>,
    /// Questions about ports under way.
    asking: Semaphore,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    sessions: BTreeMap<NodeId, Session>,
    holds: BTreeMap<u64, Hold>,
    questions: BTreeMap<u64, Asked>,
}

#[derive(Debug)]
struct Session {
    /// Tells a session from a later one of the same node.
    number: u64,
    caller: Caller,
    /// Another process wanted to be this node meanwhile.
    contested: bool,
    applied: u64,
    subscription: Arc<Subscription>,
    requests: mpsc::Sender<Bytes>,
}

/// The process that holds a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Caller {
    /// Drawn by each process when it starts; none from one that does not tell.
    pub(super) process: Option<u64>,
    /// Where it connects from.
    pub(super) address: IpAddr,
    /// See [`Follower`](crate::wire::Follower).
    pub(super) tells_ports: bool,
}

#[derive(Debug)]
struct Hold {
    waiting: BTreeSet<NodeId>,
    refusals: Vec<(NodeId, String)>,
    elsewhere: Option<BTreeSet<IpAddr>>,
}

/// What nodes are asked about a service's ports, and have told.
#[derive(Debug)]
struct Asked {
    waiting: BTreeSet<NodeId>,
    told: PortsReports,
}

/// What one session is sent; dropping it ends the session.
#[derive(Debug)]
pub(super) struct Stream {
    sessions: Arc<Sessions>,
    node: NodeId,
    number: u64,
    subscription: Arc<Subscription>,
    cursor: Cursor,
    lines: VecDeque<Bytes>,
    /// Told at the start, and as they change.
    keys: watch::Receiver<ClusterKeys>,
    requests: mpsc::Receiver<Bytes>,
}

impl Sessions {
    pub(super) fn new(
        state: Arc<State>,
        keys: watch::Receiver<ClusterKeys>,
        connected: watch::Sender<BTreeSet<NodeId>>,
    ) -> Self {
        // Agents move between managers: reservations of two must not have one number.
        let table = Table { next: u64::from(rand::random::<u32>()) << 16, ..Table::default() };
        Self {
            state,
            table: Mutex::new(table),
            connected,
            keys,
            changed: watch::channel(()).0,
            asking: Semaphore::new(QUESTIONS),
        }
    }

    /// Begins a session, when there is none of another process: two hosts of one identity would take each other's state
    /// away. An older one of the same process is forgotten, and its stream ends.
    pub(super) async fn begin(
        self: &Arc<Self>,
        node: NodeId,
        caller: Caller,
        resume: Option<Resume>,
    ) -> Result<Stream, Error> {
        let other = || self.with(|table| table.other(node, caller).map(|session| session.caller));
        self.until(Instant::now() + SUCCEED, || other().is_none()).await;
        let Some(stream) = self.try_begin(node, caller, resume) else {
            let name = self.name(node);
            let holder = other().unwrap_or(caller).address;
            if self.with(|table| table.contest(node)) {
                tracing::warn!(%node, name, %holder, other = %caller.address, "two hosts say that they are one node");
            }
            return Err(Error::TwoOfOneNode { node: name, holder });
        };
        Ok(stream)
    }

    /// None if another process has the node's session.
    fn try_begin(self: &Arc<Self>, node: NodeId, caller: Caller, resume: Option<Resume>) -> Option<Stream> {
        let (requests, receiver) = mpsc::channel(QUEUE);
        // Under one lock, so that of two that begin at once the same one is the later for both tables.
        let (number, subscription, cursor) = self.with(|table| {
            if table.other(node, caller).is_some() {
                return None;
            }
            let (subscription, cursor) = self.state.subscribe(node, resume);
            table.next += 1;
            let session = Session {
                number: table.next,
                caller,
                contested: false,
                applied: 0,
                subscription: Arc::clone(&subscription),
                requests,
            };
            table.sessions.insert(node, session);
            self.connected.send_if_modified(|connected| connected.insert(node));
            Some((table.next, subscription, cursor))
        })?;
        let mut keys = self.keys.clone();
        keys.mark_changed();
        Some(Stream {
            sessions: Arc::clone(self),
            node,
            number,
            subscription,
            cursor,
            lines: VecDeque::new(),
            keys,
            requests: receiver,
        })
    }

    pub(super) fn applied(&self, node: NodeId, revision: u64) {
        self.with(|table| {
            if let Some(session) = table.sessions.get_mut(&node) {
                session.applied = revision;
            }
        });
        self.changed.send_replace(());
    }

    /// Waits until every connected node but `except` has applied what a revision changed for it, or the time is up.
    pub(super) async fn confirm(&self, revision: u64, except: Option<NodeId>) -> Confirmed {
        let deadline = Instant::now() + CONFIRM;
        // Who needs it is known once the state has it; another manager may have committed it.
        let late = timeout_at(deadline, self.state.reached(revision)).await.is_err();
        let behind = || {
            self.with(|table| {
                let behind = table.sessions.iter().filter(|(id, session)| {
                    let due = if late { revision } else { session.subscription.due(revision) };
                    session.applied < due && Some(**id) != except
                });
                behind.map(|(id, _)| *id).collect::<Vec<_>>()
            })
        };
        self.until(deadline, || behind().is_empty()).await;
        Confirmed { lagging: behind().into_iter().map(|id| self.name(id)).collect() }
    }

    /// Asks every connected node for what a change wants; refused as soon as the answers are in if any says no.
    pub(super) async fn hold(&self, claim: Claim) -> Result<Held, Error> {
        let id = self.with(|table| {
            table.next += 1;
            let id = table.next;
            let waiting = table.send_all(&Message::Reserve { id, claim });
            table.holds.insert(id, Hold { waiting, refusals: Vec::new(), elsewhere: None });
            id
        });
        // Whoever asked may not live to see the answers.
        let _forgets = Forgets(|| self.with(|table| drop(table.holds.remove(&id))));
        let done = || self.with(|table| table.holds.get(&id).is_none_or(|hold| hold.waiting.is_empty()));
        self.until(Instant::now() + HOLD, done).await;

        let hold = self.with(|table| table.holds.remove(&id));
        let Some(Hold { waiting, refusals, elsewhere }) = hold else { return Ok(Held::of(id)) };
        match refusals.first() {
            None => {
                let silent = waiting.into_iter().map(|node| self.name(node)).collect();
                Ok(Held { elsewhere, silent, ..Held::of(id) })
            }
            Some((node, refusal)) => {
                self.release(id);
                Err(Error::Objection(format!("node '{}': {refusal}", self.name(*node))))
            }
        }
    }

    /// Tells agents to let go of what they hold.
    pub(super) fn release(&self, id: u64) {
        self.with(|table| table.send_all(&Message::Release { id }));
    }

    pub(super) fn reserved(&self, node: NodeId, answer: Reserved) {
        self.with(|table| {
            if let Some(hold) = table.holds.get_mut(&answer.id) {
                hold.waiting.remove(&node);
                hold.refusals.extend(answer.refusal.map(|refusal| (node, refusal)));
                hold.elsewhere = everywhere_else(hold.elsewhere.take(), Some(answer.elsewhere));
            }
        });
        self.changed.send_replace(());
    }

    /// Asks every connected node what goes through a service's ports.
    pub(super) async fn ports(&self, service: ServiceId) -> PortsReports {
        // Nobody keeps all nodes busy with it.
        let Ok(_turn) = self.asking.acquire().await else { return PortsReports::new() };
        let id = self.with(|table| {
            table.next += 1;
            let id = table.next;
            let waiting = table.send(&Message::TellPorts { id, service }, |of| of.caller.tells_ports);
            table.questions.insert(id, Asked { waiting, told: PortsReports::new() });
            id
        });
        let _forgets = Forgets(|| self.with(|table| drop(table.questions.remove(&id))));
        let done =
            || self.with(|table| table.questions.get(&id).is_none_or(|asked| asked.waiting.is_empty()));
        self.until(Instant::now() + TELL, done).await;
        self.with(|table| table.questions.remove(&id)).map(|asked| asked.told).unwrap_or_default()
    }

    pub(super) fn told(&self, node: NodeId, told: PortsTold) {
        self.with(|table| {
            if let Some(asked) = table.questions.get_mut(&told.id)
                && asked.waiting.remove(&node)
            {
                asked.told.insert(node, told.report);
            }
        });
        self.changed.send_replace(());
    }

    async fn until(&self, deadline: Instant, done: impl Fn() -> bool) {
        let mut changed = self.changed.subscribe();
        while !done() {
            if timeout_at(deadline, changed.changed()).await.is_err() {
                return;
            }
        }
    }

    fn name(&self, node: NodeId) -> String {
        let snapshot = self.state.snapshot();
        snapshot.nodes.get(&node).map_or_else(|| node.to_string(), |node| node.name.to_string())
    }

    fn with<T>(&self, work: impl FnOnce(&mut Table) -> T) -> T {
        work(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Does it when dropped: at the end, or when nobody waits any more.
struct Forgets<F: Fn()>(F);

impl<F: Fn()> Drop for Forgets<F> {
    fn drop(&mut self) {
        self.0();
    }
}

impl Table {
    /// The session of a node, if another process than the caller's has it.
    fn other(&self, node: NodeId, caller: Caller) -> Option<&Session> {
        let differs = |session: &&Session| {
            let of_both = session.caller.process.zip(caller.process);
            of_both.is_some_and(|(holder, caller)| holder != caller)
        };
        self.sessions.get(&node).filter(differs)
    }

    /// Notes that another process wanted a node's session; whether that is news.
    fn contest(&mut self, node: NodeId) -> bool {
        let session = self.sessions.get_mut(&node);
        session.is_some_and(|session| !std::mem::replace(&mut session.contested, true))
    }

    /// Sends to every session that can take it; returns whose could.
    fn send_all(&self, message: &Message) -> BTreeSet<NodeId> {
        self.send(message, |_| true)
    }

    /// The same of some.
    fn send(&self, message: &Message, to: impl Fn(&Session) -> bool) -> BTreeSet<NodeId> {
        let line = line(message);
        let sessions = self.sessions.iter().filter(|(_, session)| to(session));
        let reached = sessions.filter(|(_, s)| s.requests.try_send(line.clone()).is_ok());
        reached.map(|(id, _)| *id).collect()
    }
}

impl Stream {
    /// The next lines; none once a newer session of the same node took over.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(lines) = self.take() {
                return Some(lines);
            }
            tokio::select! {
                // Its sender is gone, and so should this stream be.
                request = self.requests.recv() => return request,
                changed = self.keys.changed() => {
                    changed.ok()?;
                    // A node that was removed never gets the key that its removal brought about.
                    let known = self.sessions.state.snapshot().nodes.contains_key(&self.node);
                    let keys = self.keys.borrow_and_update().clone();
                    return known.then(|| line(&Message::Keys(keys)));
                }
                () = self.subscription.woken() => {
                    // Who was removed hears nothing more.
                    if !self.sessions.state.snapshot().nodes.contains_key(&self.node) {
                        return None;
                    }
                    self.lines = self.sessions.state.advance(self.node, &self.subscription, &mut self.cursor);
                }
            }
        }
    }

    /// Lines that are ready: small ones together, a large one as it is, shared with all who are sent it.
    fn take(&mut self) -> Option<Bytes> {
        let first = self.lines.pop_front()?;
        let mut together = BytesMut::new();
        while let Some(next) =
            self.lines.front().filter(|next| first.len() + together.len() + next.len() <= CHUNK)
        {
            if together.is_empty() {
                together.extend_from_slice(&first);
            }
            together.extend_from_slice(next);
            self.lines.pop_front();
        }
        Some(if together.is_empty() { first } else { together.freeze() })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.sessions.state.unsubscribe(self.node, &self.subscription);
        let (sessions, node) = (&self.sessions, self.node);
        sessions.with(|table| {
            if table.sessions.get(&node).is_some_and(|s| s.number == self.number) {
                table.sessions.remove(&node);
                sessions.connected.send_if_modified(|connected| connected.remove(&node));
                // Its answers will not come any more.
                for hold in table.holds.values_mut() {
                    hold.waiting.remove(&node);
                }
                for asked in table.questions.values_mut() {
                    asked.waiting.remove(&node);
                }
            }
        });
        sessions.changed.send_replace(());
    }
}

/// What this manager's agents hold for a change under way.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) id: u64,
    /// Addresses that ports are wanted on and no node that answered has; none if no node answered.
    pub(super) elsewhere: Option<BTreeSet<IpAddr>>,
    /// Names of connected nodes that did not answer in time.
    pub(super) silent: Vec<String>,
}

impl Held {
    fn of(id: u64) -> Self {
        Self { id, elsewhere: None, silent: Vec::new() }
    }
}

/// What is elsewhere for both, if both were asked.
pub(super) fn everywhere_else(
    one: Option<BTreeSet<IpAddr>>,
    other: Option<BTreeSet<IpAddr>>,
) -> Option<BTreeSet<IpAddr>> {
    match (one, other) {
        (Some(one), Some(other)) => Some(&one & &other),
        (one, other) => one.or(other),
    }
}
