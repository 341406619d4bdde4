//! Which member is spoken to, and what happens when it does not answer.
//!
//! One connection serves all operations. When a member fails or hangs, the connection is dropped and the next
//! endpoint is dialled, round and round, until the operation's time is up.

use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use etcd_client::{Channel, Client, ConnectOptions, GetOptions};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::fault::{Failure, Fault, chain};
use super::options::{EtcdOptions, EtcdTls, Member};
use super::revision_of;
use crate::{Error, Revision};

/// How long one member may take over a request: then another one is asked if it was a read, and the outcome of a change
/// is unknown. A change that was on its way to a leader that died is never answered before etcd's own limit of 7 s,
/// though there is a new leader after one.
const ATTEMPT: Duration = Duration::from_secs(2);

/// A change is only sent over a connection that answered within this time. So an etcd that died or hung while
/// nobody was asking costs a read that can be repeated, not a change of unknown outcome.
const FRESH: Duration = Duration::from_secs(1);

/// Between attempts: doubled each time, from and to.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// The way to etcd.
pub(super) struct Connections {
    options: EtcdOptions,
    members: RwLock<Arc<[Member]>>,
    /// A key of ours, to see whether etcd answers.
    root: Vec<u8>,
    timeout: Duration,
    attempt: Duration,
    current: Mutex<Current>,
}

struct Current {
    /// The member of `link`, or the one to dial next.
    member: usize,
    link: Option<Link>,
    dialled: u64,
}

/// A connection to one member.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) url: Arc<str>,
    /// Tells it from those before it.
    serial: u64,
    answered: Option<Instant>,
}

impl Connections {
    pub(super) fn new(options: &EtcdOptions, root: &str) -> Result<Self, Error> {
        Ok(Self {
            options: options.clone(),
            members: RwLock::new(options.members()?.into()),
            root: root.into(),
            timeout: options.timeout,
            // Time for a second member even when little is given.
            attempt: ATTEMPT.min(options.timeout / 2),
            current: Mutex::new(Current { member: 0, link: None, dialled: 0 }),
        })
    }

    /// Other certificates for the connections to come.
    pub(super) fn renew(&self, tls: EtcdTls) -> Result<(), Error> {
        let options = EtcdOptions { tls: Some(tls), ..self.options.clone() };
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = options.members()?.into();
        Ok(())
    }

    fn members(&self) -> Arc<[Member]> {
        Arc::clone(&self.members.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The newest revision, confirmed by a quorum.
    pub(super) async fn probe(&self) -> Result<Revision, Error> {
        let options = GetOptions::new().with_keys_only();
        let answer = self.get(&self.root, &options).await?;
        Ok(revision_of(answer.header()))
    }

    /// As [`probe`](Self::probe), if a watch may continue after `revision`.
    pub(super) async fn probe_at(&self, revision: Revision) -> Result<Revision, Failure> {
        let options = GetOptions::new().with_keys_only().with_revision(super::signed(revision));
        let answer = self.get(&self.root, &options).await?;
        Ok(revision_of(answer.header()))
    }

    /// Does what may be done twice, at one member or another.
    pub(super) async fn read<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut reason = "no answer in time".to_owned();
        let deadline = Instant::now() + self.timeout;
        match timeout_at(deadline, self.insist(&call, &mut reason)).await {
            Ok(outcome) => outcome.map(|(answer, _)| answer),
            Err(_) => Err(self.unreachable(reason).into()),
        }
    }

    /// Does what must not be done twice: repeated only when it was surely not done.
    pub(super) async fn write<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let deadline = Instant::now() + self.timeout;
        let mut reason = "no answer in time".to_owned();
        let mut pauses = Pauses::new();
        loop {
            let Ok(link) = timeout_at(deadline, self.answering(&mut reason)).await else {
                return Err(self.unreachable(reason).into());
            };
            let link = link?;
            match self.ask(&link, &call, self.attempt).await {
                Err(Fault::NotNow(why) | Fault::NeverSent(why)) => reason = format!("{}: {why}", link.url),
                Err(Fault::Lost(reason)) => {
                    return Err(Error::Unknown { endpoint: link.url.to_string(), reason }.into());
                }
                other => return other.map_err(|fault| self.failure(fault, &link)),
            }
            if timeout_at(deadline, pauses.wait()).await.is_err() {
                return Err(self.unreachable(reason).into());
            }
        }
    }

    /// A connection of its own to the `nth` member from the one in use: for a watch, which may stall its connection.
    pub(super) async fn dial(&self, nth: usize) -> Result<Link, String> {
        let member = self.current.lock().await.member + nth;
        self.connect(member, 0).await
    }

    /// Gives `work` the time of one operation; `None` when that is over.
    pub(super) async fn in_time<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        timeout(self.timeout, work).await.ok()
    }

    pub(super) fn failure(&self, fault: Fault, link: &Link) -> Failure {
        match fault {
            Fault::Compacted => Failure::Compacted,
            Fault::Future => Failure::Future,
            Fault::Refused(why, reason) => {
                Error::Refused { endpoint: link.url.to_string(), why, reason }.into()
            }
            Fault::NotNow(reason) | Fault::NeverSent(reason) | Fault::Lost(reason) => {
                self.unreachable(reason).into()
            }
        }
    }

    pub(super) fn unreachable(&self, reason: String) -> Error {
        Error::Unreachable { endpoints: self.names(), reason }
    }

    /// All endpoints.
    pub(super) fn names(&self) -> String {
        self.options.endpoints.join(", ")
    }

    /// The connection in use, after it was seen to work.
    async fn answering(&self, reason: &mut String) -> Result<Link, Failure> {
        if let Some(link) = &self.current.lock().await.link
            && link.answered.is_some_and(|at| at.elapsed() < FRESH)
        {
            return Ok(link.clone());
        }
        let (_, link) = self
            .insist(
                &|client| {
                    let (mut client, root) = (client.kv_client(), self.root.clone());
                    async move { client.get(root, Some(GetOptions::new().with_keys_only())).await }
                },
                reason,
            )
            .await?;
        Ok(link)
    }

    /// Asks one member after the other, for as long as it takes. `reason` tells what the last one failed with.
    async fn insist<T, F>(
        &self,
        call: &impl Fn(Client) -> F,
        reason: &mut String,
    ) -> Result<(T, Link), Failure>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut pauses = Pauses::new();
        loop {
            match self.link().await {
                Err(why) => *reason = why,
                Ok(link) => match self.ask(&link, call, self.attempt).await {
                    Ok(answer) => return Ok((answer, link)),
                    Err(Fault::NotNow(why) | Fault::NeverSent(why) | Fault::Lost(why)) => {
                        *reason = format!("{}: {why}", link.url);
                    }
                    Err(fault) => return Err(self.failure(fault, &link)),
                },
            }
            pauses.wait().await;
        }
    }

    /// Sends one request to one member. A connection that brings no answer is not used again; one whose member can't
    /// do it now only makes room for another member's.
    async fn ask<T, F>(
        &self,
        link: &Link,
        call: &impl Fn(Client) -> F,
        patience: Duration,
    ) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let outcome = match timeout(patience, call(link.client.clone())).await {
            Ok(answer) => answer.map_err(Fault::from),
            Err(_) => Err(Fault::Lost(format!("no answer within {patience:?}"))),
        };
        let mut current = self.current.lock().await;
        let used = current.link.as_mut().filter(|used| used.serial == link.serial);
        match (&outcome, used) {
            (Err(Fault::NeverSent(_) | Fault::Lost(_)), Some(_)) => current.leave(),
            (Err(Fault::NotNow(_)), Some(_)) if self.options.endpoints.len() > 1 => current.leave(),
            (_, Some(used)) => used.answered = Some(Instant::now()),
            (_, None) => {}
        }
        outcome
    }

    /// The connection in use, or a new one. The error is the reason why there is none.
    async fn link(&self) -> Result<Link, String> {
        // Held while dialling: who else needs a connection needs this one.
        let mut current = self.current.lock().await;
        if let Some(link) = &current.link {
            return Ok(link.clone());
        }
        current.dialled += 1;
        match self.connect(current.member, current.dialled).await {
            Ok(link) => Ok(current.link.insert(link).clone()),
            Err(why) => {
                current.leave();
                Err(why)
            }
        }
    }

    async fn connect(&self, member: usize, serial: u64) -> Result<Link, String> {
        let members = self.members();
        let Member { url, endpoint } = &members[member % members.len()];
        let failed = |why: String| format!("{url}: {why}");
        // The endpoint's own limit covers TCP alone.
        let channel = match timeout(self.attempt, endpoint.connect()).await {
            Ok(channel) => channel.map_err(|err| failed(chain(&err)))?,
            Err(_) => return Err(failed(format!("no connection within {:?}", self.attempt))),
        };
        // A member without a leader says so, rather than to wait for one or to go on from what it last knew.
        let options = ConnectOptions::new().with_require_leader(true);
        let client = Client::from_channel(Channel::Tonic(channel), Some(options)).await;
        let client = client.map_err(|err| failed(err.to_string()))?;
        Ok(Link { client, url: Arc::clone(url), serial, answered: None })
    }
}

impl Current {
    fn leave(&mut self) {
        self.link = None;
        self.member += 1;
    }
}

/// Growing pauses between attempts.
pub(super) struct Pauses {
    next: Duration,
}

impl Pauses {
    pub(super) fn new() -> Self {
        Self { next: PAUSES.0 }
    }

    pub(super) async fn wait(&mut self) {
        sleep(self.next).await;
        self.next = (self.next * 2).min(PAUSES.1);
    }
}
