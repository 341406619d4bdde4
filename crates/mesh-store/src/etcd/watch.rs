//! A watch: a stream of one member, begun anew at another one when it breaks or falls silent.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::proto::{PbEvent, PbKeyValue};
use etcd_client::{EventType, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};
use tokio::sync::watch as signal;
use tokio::time::{Instant, timeout, timeout_at};

use super::assemble::Assembler;
use super::connections::{Connections, Link, Pauses};
use super::fault::{Failure, Fault};
use super::keyspace::Keyspace;
use super::{revision_of, signed, unsigned};
use crate::{Change, Entry, Error, Event, Reply, Revision, Watch};

/// How long a stream may be silent before its member is asked whether it is there.
const QUIET: Duration = Duration::from_secs(2);

/// How long a member may take to answer that, or to begin a stream.
const PATIENCE: Duration = Duration::from_secs(2);

/// What etcd sends in a response at most: fragments of its `--max-request-bytes`, which may be raised from 1.5 MiB.
const RESPONSE_BYTES: usize = 256 << 20;

/// The first revision there is.
const FIRST: Revision = 1;

pub(super) struct EtcdWatch {
    etcd: Arc<Connections>,
    keyspace: Keyspace,
    prefix: String,
    /// Ends with the store.
    alive: signal::Receiver<()>,
    assembler: Assembler,
    /// Whole transactions not yet handed out: those of one response.
    ready: VecDeque<Event>,
    stream: Option<Stream>,
    /// Streams begun since one brought something: chooses the member to try next.
    begun: usize,
    /// Before each of them but the first.
    pauses: Pauses,
}

/// A stream that a member has begun.
struct Stream {
    requests: WatchRequestSender,
    responses: WatchResponseStream,
    /// When it last said something.
    heard: Instant,
    /// When it was asked to say something, if it has not since.
    asked: Option<Instant>,
}

impl EtcdWatch {
    /// Begins to follow `prefix`. Ends with an error rather than to wait for an etcd that is away.
    pub(super) async fn open(
        etcd: Arc<Connections>,
        keyspace: Keyspace,
        alive: signal::Receiver<()>,
        prefix: &str,
        after: Revision,
    ) -> Result<Self, Error> {
        let mut watch = Self {
            etcd,
            keyspace,
            prefix: prefix.to_owned(),
            alive,
            assembler: Assembler::new(after),
            ready: VecDeque::new(),
            stream: None,
            begun: 0,
            pauses: Pauses::new(),
        };
        watch.check().await?;
        let etcd = Arc::clone(&watch.etcd);
        let mut reason = "no member begins a watch in time".to_owned();
        let begun = async {
            while let Err(fault) = watch.begin().await {
                reason = watch.bearable(fault).await?;
                watch.pauses.wait().await;
            }
            Ok(())
        };
        match etcd.in_time(begun).await {
            Some(begun) => begun.map(|()| watch),
            None => Err(etcd.unreachable(reason)),
        }
    }

    /// Whether the history still reaches back to where this watch is, by the word of a quorum: a member that lags
    /// behind can't tell a revision to come from one it has not heard of.
    async fn check(&self) -> Result<(), Error> {
        let after = self.assembler.position();
        if after < FIRST {
            return Err(Error::Compacted { oldest: oldest(&self.etcd, &self.keyspace).await? });
        }
        match self.etcd.probe_at(after).await {
            Ok(_) => Ok(()),
            Err(Failure::Final(err)) => Err(err),
            Err(Failure::Compacted) => {
                Err(Error::Compacted { oldest: oldest(&self.etcd, &self.keyspace).await? })
            }
            Err(Failure::Future) => Err(Error::FutureRevision { after, current: self.etcd.probe().await? }),
        }
    }

    /// Has the next member begin a stream from where this watch is.
    async fn begin(&mut self) -> Result<(), Fault> {
        self.begun += 1;
        let link = self.etcd.dial(self.begun - 1).await.map_err(Fault::NeverSent)?;
        let key = self.keyspace.key(&self.prefix);
        let options = WatchOptions::new().with_range(self.keyspace.end(&self.prefix));
        // From the position itself, which was seen: from the one after it, etcd would not notice that a deletion
        // there is compacted.
        let stream = begin(&link, key, options, self.assembler.position()).await?;
        self.assembler.restart();
        self.stream = Some(stream);
        Ok(())
    }

    /// One step towards the next event. Safe to cancel.
    async fn step(&mut self) -> Result<(), Error> {
        let Some(stream) = &mut self.stream else { return self.resume().await };
        let response = match stream.response().await {
            Ok(Some(response)) => response,
            Ok(None) => return Ok(()),
            Err(fault) => {
                self.stream = None;
                return self.bearable(fault).await.map(drop);
            }
        };
        // What can't be read can't be skipped either: it comes again.
        self.take(response).inspect_err(|_| self.stream = None)
    }

    /// Tries until etcd is there again: an outage, however long, is no reason to give up what was seen so far.
    async fn resume(&mut self) -> Result<(), Error> {
        loop {
            if self.begun > 0 {
                self.pauses.wait().await;
            }
            // The check finds a member that answers; the stream is tried there first.
            match self.check().await {
                Err(Error::Unreachable { .. }) => continue,
                checked => checked?,
            }
            match self.begin().await {
                Ok(()) => return Ok(()),
                Err(fault) => drop(self.bearable(fault).await?),
            }
        }
    }

    fn take(&mut self, mut response: WatchResponse) -> Result<(), Error> {
        let revision = revision_of(response.header());
        let events = std::mem::take(&mut response.0.events);
        if events.is_empty() {
            // Only what is sent for this watch comes after its events; answers to our questions overtake them
            // (etcd before 3.4.25 and 3.5.8).
            if response.watch_id() >= 0 && !response.created() {
                self.assembler.advance(revision);
            }
            return Ok(());
        }
        (self.begun, self.pauses) = (0, Pauses::new());
        let changes = events.into_iter().filter_map(|event| change(event, &self.keyspace).transpose());
        let changes = changes.collect::<Result<Vec<_>, _>>()?;
        self.ready.extend(self.assembler.add(changes, response.0.fragment));
        Ok(())
    }

    /// What another member may mend is only a reason to ask it; everything else ends the watch.
    async fn bearable(&self, fault: Fault) -> Result<String, Error> {
        match fault {
            Fault::NotNow(reason) | Fault::NeverSent(reason) | Fault::Lost(reason) => Ok(reason),
            Fault::Refused(why, reason) => Err(Error::Refused { endpoint: self.etcd.names(), why, reason }),
            Fault::Compacted | Fault::Future => {
                Err(Error::Compacted { oldest: oldest(&self.etcd, &self.keyspace).await? })
            }
        }
    }
}

impl Watch for EtcdWatch {
    fn next(&mut self) -> Reply<'_, Event> {
        Box::pin(async move {
            let mut alive = self.alive.clone();
            loop {
                if let Some(event) = self.ready.pop_front() {
                    return Ok(event);
                }
                tokio::select! {
                    // Nothing is ever sent: it ends when the store does.
                    _ = alive.changed() => return Err(Error::Closed),
                    step = self.step() => step?,
                }
            }
        })
    }
}

impl Stream {
    /// The next response; `None` when the member was asked for a sign of life instead. Safe to cancel.
    async fn response(&mut self) -> Result<Option<WatchResponse>, Fault> {
        let patient_until = self.asked.map_or(self.heard + QUIET, |asked| asked + PATIENCE);
        match timeout_at(patient_until, self.responses.message()).await {
            Ok(Ok(Some(response))) => {
                (self.heard, self.asked) = (Instant::now(), None);
                if response.canceled() {
                    return Err(canceled(&response));
                }
                Ok(Some(response))
            }
            Ok(Ok(None)) => Err(Fault::Lost("the stream ended".to_owned())),
            Ok(Err(err)) => Err(err.into()),
            Err(_) if self.asked.is_some() => Err(Fault::Lost(format!("no answer within {PATIENCE:?}"))),
            Err(_) => {
                self.requests.request_progress().await?;
                self.asked = Some(Instant::now());
                Ok(None)
            }
        }
    }
}

async fn begin(link: &Link, key: Vec<u8>, options: WatchOptions, from: Revision) -> Result<Stream, Fault> {
    let options = options.with_start_revision(signed(from)).with_fragment().with_progress_notify();
    let mut client = link.client.watch_client().max_decoding_message_size(RESPONSE_BYTES);
    let begun = async {
        let (requests, responses) = client.watch(key, Some(options)).await?.split();
        let mut stream = Stream { requests, responses, heard: Instant::now(), asked: None };
        // The first response says that it was created, or why not.
        stream.response().await?;
        Ok(stream)
    };
    timeout(PATIENCE, begun)
        .await
        .unwrap_or_else(|_| Err(Fault::Lost(format!("no answer within {PATIENCE:?}"))))
}

fn canceled(response: &WatchResponse) -> Fault {
    if response.compact_revision() > 0 {
        return Fault::Compacted;
    }
    Fault::of_canceled_watch(response.cancel_reason())
}

/// A change of ours; `None` for an event without a key, which etcd does not send.
fn change(event: PbEvent, keyspace: &Keyspace) -> Result<Option<(Revision, Change)>, Error> {
    let deleted = event.r#type == EventType::Delete as i32;
    let Some(PbKeyValue { key, value, mod_revision, .. }) = event.kv else { return Ok(None) };
    let (key, mod_revision) = (keyspace.name(&key)?, unsigned(mod_revision));
    let change =
        if deleted { Change::Delete { key } } else { Change::Put(Entry { key, value, mod_revision }) };
    Ok(Some((mod_revision, change)))
}

/// The oldest revision that a watch may continue after. etcd tells it only by refusing a watch from before it.
pub(super) async fn oldest(etcd: &Connections, keyspace: &Keyspace) -> Result<Revision, Error> {
    let search = async {
        let (mut pauses, mut nth) = (Pauses::new(), 0);
        loop {
            match etcd.probe_at(FIRST).await {
                Ok(_) => return Ok(FIRST),
                Err(Failure::Compacted) => {}
                Err(other) => return Err(other.into()),
            }
            if let Some(oldest) = refused_from(etcd, nth, keyspace).await {
                return Ok(oldest);
            }
            nth += 1;
            pauses.wait().await;
        }
    };
    let unanswered = || etcd.unreachable("no member tells how far its history goes back".to_owned());
    etcd.in_time(search).await.unwrap_or_else(|| Err(unanswered()))
}

/// What a member says of its history when asked for a watch from the beginning.
async fn refused_from(etcd: &Connections, nth: usize, keyspace: &Keyspace) -> Option<Revision> {
    let link = etcd.dial(nth).await.ok()?;
    let options = WatchOptions::new().with_start_revision(signed(FIRST));
    let mut client = link.client.watch_client().max_decoding_message_size(RESPONSE_BYTES);
    let refusal = async {
        let (_requests, mut responses) = client.watch(keyspace.root(), Some(options)).await.ok()?.split();
        loop {
            let response = responses.message().await.ok()??;
            if response.compact_revision() > 0 {
                return Some(unsigned(response.compact_revision()));
            }
        }
    };
    timeout(PATIENCE, refusal).await.ok().flatten()
}
