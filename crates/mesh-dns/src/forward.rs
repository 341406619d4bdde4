//! Asking the host's resolvers what is none of our names.

mod cache;
mod exchange;
mod reply;

use crate::{
    query::Query,
    response::{Response, Transport},
    wire::{HEADER_LEN, PLAIN_UDP_LEN, Rcode, flag},
};
use arc_swap::ArcSwap;
use cache::Cache;
use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, info};

/// How long one that did not answer is asked only after the others.
const SUSPECT_FOR: Duration = Duration::from_secs(10);

/// Limits of a [`Forwarder`].
#[derive(Debug, Clone)]
pub struct ForwarderOptions {
    /// How long one upstream may take before the next is asked.
    pub timeout: Duration,
    /// How long all of them together may take: less than a client waits (5 s with glibc), so that it hears of the
    /// failure.
    pub deadline: Duration,
    /// Queries that may be under way at once; more are answered with SERVFAIL.
    pub in_flight: usize,
    /// Answers that are remembered.
    pub cache_entries: usize,
}

impl Default for ForwarderOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_millis(1500),
            deadline: Duration::from_millis(4500),
            in_flight: 512,
            cache_entries: 4096,
        }
    }
}

/// The way to the host's resolvers, with the cache. One serves all networks of a node: its sockets are opened in
/// the network namespace of the threads that it is called on.
#[derive(Debug)]
pub struct Forwarder {
    upstreams: ArcSwap<Vec<SocketAddr>>,
    /// Upstreams that did not answer, and when.
    suspects: Mutex<HashMap<SocketAddr, Instant>>,
    cache: Cache,
    in_flight: Arc<Semaphore>,
    options: ForwarderOptions,
}

impl Forwarder {
    /// A forwarder to these upstreams, in order of preference.
    pub fn new(upstreams: Vec<SocketAddr>, options: ForwarderOptions) -> Self {
        Self {
            upstreams: ArcSwap::from_pointee(upstreams),
            suspects: Mutex::default(),
            cache: Cache::new(options.cache_entries),
            in_flight: Arc::new(Semaphore::new(options.in_flight)),
            options,
        }
    }

    /// Uses other upstreams from now on, and forgets what the former ones said if they differ.
    pub fn set_upstreams(&self, upstreams: Vec<SocketAddr>) {
        if *self.upstreams.load_full() != upstreams {
            self.upstreams.store(Arc::new(upstreams));
            self.suspects.lock().unwrap_or_else(PoisonError::into_inner).clear();
            self.cache.clear();
        }
    }

    /// The right to have one more query under way; none if there are too many.
    pub(crate) fn admit(&self) -> Option<OwnedSemaphorePermit> {
        self.in_flight.clone().try_acquire_owned().ok()
    }

    /// The answer to a query, if it is remembered.
    pub(crate) fn remembered(&self, query: &Query<'_>, transport: Transport) -> Option<Vec<u8>> {
        self.cache.get(query, Instant::now()).map(|reply| fit(reply, query, transport))
    }

    /// The answer to a query, from the first upstream that has one; SERVFAIL if none does in time.
    pub(crate) async fn resolve(&self, query: &Query<'_>, transport: Transport) -> Vec<u8> {
        let upstreams = self.upstreams.load_full();
        let in_order = self.in_order(&upstreams);
        let asked = tokio::time::timeout(self.options.deadline, self.ask(&in_order, query));
        let reply = match asked.await {
            Ok(Some(reply)) => reply,
            Ok(None) | Err(_) => return without_records(query, 0, Rcode::ServFail),
        };
        // What was asked of upstreams that are no longer in use is not worth remembering.
        if Arc::ptr_eq(&upstreams, &self.upstreams.load()) {
            self.cache.put(query, &reply, Instant::now());
        }
        fit(reply, query, transport)
    }

    /// Asks one upstream after the other. A failure that one reports is passed on only if none does better.
    async fn ask(&self, upstreams: &[SocketAddr], query: &Query<'_>) -> Option<Vec<u8>> {
        let mut failure = None;
        for upstream in upstreams {
            let exchanged = exchange::exchange(*upstream, query, self.options.timeout).await;
            self.note(*upstream, exchanged.as_ref().err());
            match exchanged {
                Ok(reply) if reply::is_conclusive(&reply) => return Some(reply),
                Ok(reply) => failure = failure.or(Some(reply)),
                Err(_) => {}
            }
        }
        // A header alone mirrors no question: that the client gets from us.
        failure.filter(|reply| reply.len() > HEADER_LEN)
    }

    /// The upstreams in order of preference, those that failed lately behind the others.
    fn in_order(&self, upstreams: &[SocketAddr]) -> Vec<SocketAddr> {
        let suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        let is_suspect =
            |upstream: &SocketAddr| suspects.get(upstream).is_some_and(|since| since.elapsed() < SUSPECT_FOR);
        let (last, mut first): (Vec<_>, Vec<_>) = upstreams.iter().copied().partition(is_suspect);
        first.extend(last);
        first
    }

    fn note(&self, upstream: SocketAddr, failure: Option<&exchange::Failure>) {
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        match failure {
            Some(err) => match suspects.insert(upstream, Instant::now()) {
                None => info!(%upstream, %err, "upstream resolver does not answer"),
                Some(_) => debug!(%upstream, %err, "upstream resolver still does not answer"),
            },
            None => {
                if suspects.remove(&upstream).is_some() {
                    info!(%upstream, "upstream resolver answers again");
                }
            }
        }
    }
}

/// The reply as the client gets it: whole, or cut to the question if it is too long, so that it comes again over
/// TCP.
fn fit(reply: Vec<u8>, query: &Query<'_>, transport: Transport) -> Vec<u8> {
    if reply.len() <= transport.limit(query.edns) {
        return reply;
    }
    without_records(query, flag::TRUNCATED, Rcode::NoError)
}

/// An answer that says no more than how the query fared.
pub(crate) fn without_records(query: &Query<'_>, flags: u16, rcode: Rcode) -> Vec<u8> {
    // The question of a query is at most 259 octets: this has room for it.
    let mut out = vec![0; PLAIN_UDP_LEN];
    let len = Response::to(query, PLAIN_UDP_LEN, &mut out).map_or(0, |mut response| {
        response.set(flags);
        response.finish(rcode)
    });
    out.truncate(len);
    out
}
