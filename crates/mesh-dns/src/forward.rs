//! Asking other resolvers what is none of our names.
//!
//! [`Routes`] say whom, the [`Cache`](cache::Cache) what they said before; equal questions that are under way are asked once
//! ([`Shared`]), which leaves nobody a second chance to guess an answer (RFC 5452, 5) and no loop a second turn.

mod cache;
mod clients;
mod exchange;
pub mod fuzzing;
mod loops;
mod reply;
mod routes;

pub(crate) use cache::Remembered;
pub(crate) use clients::Permit;
pub(crate) use exchange::{Failure, exchange, exchange_over_tcp};
pub(crate) use routes::Group;
pub use routes::{Routes, Upstream};

use crate::{
    query::Query,
    response::{Response, Transport},
    wire::{HEADER_LEN, PLAIN_UDP_LEN, Rcode, flag},
};
use arc_swap::ArcSwap;
use cache::{Cache, CacheKey};
use clients::Clients;
use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared, WeakShared},
    stream::FuturesUnordered,
};
use loops::Probed;
use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    net::TcpSocket,
    time::{sleep, timeout},
};
use tracing::{debug, info};

/// How long one that did not answer is asked only after the others.
const SUSPECT_FOR: Duration = Duration::from_secs(10);
/// How often in a row one is overtaken by another before it counts as one that does not answer: names are slow, too.
const OVERTAKEN: u32 = 3;

/// Opens the sockets by which upstreams are asked.
pub trait Sockets: Send + Sync {
    /// A socket for datagrams to it, on a port of chance.
    fn udp(&self, upstream: &Upstream) -> io::Result<UdpSocket>;
    /// A socket for a connection to it.
    fn tcp(&self, upstream: &Upstream) -> io::Result<TcpSocket>;
}

/// Sockets in the network namespace of the thread: there are no upstreams but the host's.
#[derive(Debug)]
pub struct HostSockets;

impl Sockets for HostSockets {
    fn udp(&self, upstream: &Upstream) -> io::Result<UdpSocket> {
        let any: IpAddr = match upstream.address {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    fn tcp(&self, upstream: &Upstream) -> io::Result<TcpSocket> {
        if upstream.address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
    }
}

/// In which order upstreams are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// One after the other: the next when one fails, or says nothing for [`ForwarderOptions::patience`].
    Preferred,
    /// All at once; the first answer counts.
    Parallel,
}

/// How upstreams are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Manner {
    /// See [`Order`].
    pub order: Order,
    /// Letters of a question have random case, which an answer must repeat (draft-vixie-dnsext-dns0x20).
    pub random_case: bool,
}

/// Limits of a [`Forwarder`].
#[derive(Debug, Clone)]
pub struct ForwarderOptions {
    /// How long one upstream may be silent before the next is asked as well.
    pub patience: Duration,
    /// How long one upstream may take before it counts as failed.
    pub timeout: Duration,
    /// How long all of them together may take: less than a client waits (5 s with glibc), so that it hears of the
    /// failure.
    pub deadline: Duration,
    /// Queries that may be under way at once; more are answered with SERVFAIL. One network has three quarters of what the others
    /// leave, at most.
    pub in_flight: usize,
    /// The same of one client.
    pub in_flight_of_one: usize,
    /// Answers that are remembered, of all networks together.
    pub cache_entries: usize,
}

impl Default for ForwarderOptions {
    fn default() -> Self {
        Self {
            patience: Duration::from_millis(300),
            timeout: Duration::from_millis(1500),
            deadline: Duration::from_millis(4500),
            in_flight: 4096,
            in_flight_of_one: 1024,
            cache_entries: 8192,
        }
    }
}

/// Whose clients share what there is room for: those of a network, or the host's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Party(u64);

impl Party {
    /// One that nobody else is.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What upstreams said to a question, if anything: for whoever asks it, under any ID.
type Asked = Shared<BoxFuture<'static, Option<Arc<[u8]>>>>;
type WeakAsked = WeakShared<BoxFuture<'static, Option<Arc<[u8]>>>>;

/// The way to other resolvers, with the cache. One serves all networks of a node.
pub struct Forwarder {
    sockets: Box<dyn Sockets>,
    manner: ArcSwap<Manner>,
    /// The host's resolvers.
    host: ArcSwap<Group>,
    /// Upstreams that did not answer.
    suspects: Mutex<HashMap<Upstream, Suspicion>>,
    cache: Cache,
    /// Questions that somebody waits for.
    under_way: Mutex<HashMap<Box<[u8]>, WeakAsked>>,
    clients: Arc<Clients>,
    loops: loops::Loops,
    options: ForwarderOptions,
}

impl fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarder").field("host", &self.host).field("options", &self.options).finish()
    }
}

/// What speaks against an upstream, since it answered last.
#[derive(Debug, Default)]
struct Suspicion {
    overtaken: u32,
    /// When it failed, or was tried again.
    failed: Option<Instant>,
}

/// How an upstream does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Nothing is wrong with it, as far as is known.
    Good,
    /// It did not answer lately.
    Silent,
    /// What it is asked comes back here: it is not asked.
    Loops,
}

impl Forwarder {
    /// A forwarder that asks by these sockets. The host has no resolvers yet.
    pub fn new(sockets: impl Sockets + 'static, options: ForwarderOptions) -> Self {
        Self {
            sockets: Box::new(sockets),
            manner: ArcSwap::from_pointee(Manner { order: Order::Preferred, random_case: false }),
            host: ArcSwap::from_pointee(Group::new(&[])),
            suspects: Mutex::default(),
            cache: Cache::new(options.cache_entries),
            under_way: Mutex::default(),
            clients: Clients::new(options.in_flight, options.in_flight_of_one),
            loops: loops::Loops::default(),
            options,
        }
    }

    /// Asks in this way from now on.
    pub fn set_manner(&self, manner: Manner) {
        self.manner.store(Arc::new(manner));
    }

    /// Takes these for the host's resolvers from now on, in this order of preference. What others said is not asked for any
    /// more. Returns whether they differ.
    pub fn set_host(&self, upstreams: &[SocketAddr]) -> bool {
        let upstreams: Vec<Upstream> =
            upstreams.iter().map(|address| Upstream { address: *address, network: None }).collect();
        let group = Group::new(&upstreams);
        let differs = **self.host.load() != group;
        if differs {
            self.host.store(Arc::new(group));
            lock(&self.suspects).clear();
        }
        differs
    }

    /// The host's resolvers and those of these routes, and how they do.
    pub fn conditions(&self, routes: &[&Routes]) -> Vec<(Upstream, Condition)> {
        let host = self.host.load();
        let mut upstreams: Vec<Upstream> = host.upstreams.clone();
        for upstream in routes.iter().flat_map(|routes| routes.upstreams()) {
            if !upstreams.contains(&upstream) {
                upstreams.push(upstream);
            }
        }
        upstreams.into_iter().map(|upstream| (upstream, self.condition(&upstream))).collect()
    }

    /// Finds out which of these upstreams ask us in turn: a question that nobody else would ask goes to each, and it is seen
    /// whether it arrives. To be called now and then, and when upstreams have changed.
    pub async fn look_for_loops(&self, routes: &[&Routes]) {
        let probed = self.conditions(routes).into_iter().map(|(upstream, _)| {
            let asking = routes.iter().flat_map(|routes| routes.asking(&upstream)).copied().collect();
            Probed { upstream, asking }
        });
        self.loops.look(probed.collect(), &*self.sockets).await;
    }

    /// Whether a message is a question of [`Forwarder::look_for_loops`], which has come back. That is noted, and it goes no
    /// further.
    pub(crate) fn has_come_back(&self, message: &[u8], client: IpAddr) -> bool {
        loops::is_probe(message) && self.loops.note(message, client)
    }

    /// The right to have one more query of a client's under way; none if there are too many.
    pub(crate) fn admit(&self, party: Party, client: IpAddr) -> Option<Permit> {
        self.clients.admit(party, client)
    }

    /// Whom a query goes to; nobody if the client may have none asked.
    pub(crate) fn group(&self, routes: &Routes, query: &Query<'_>, client: IpAddr) -> Option<Arc<Group>> {
        routes.group(query.name.key(), client, &self.host.load())
    }

    /// Writes the answer to a query to `out`, if it is remembered, and says how long it is; cut to the question if it is too
    /// long for the client, so that it comes again over TCP.
    pub(crate) fn remembered(
        &self,
        group: &Group,
        query: &Query<'_>,
        transport: Transport,
        out: &mut [u8],
    ) -> Option<Remembered> {
        let key = CacheKey::new(query, group.tag);
        match self.cache.get(&key, query, Instant::now(), out)? {
            Remembered::Answer(len) if len > transport.limit(query.edns) => {
                Some(Remembered::Answer(without_records(query, flag::TRUNCATED, Rcode::NoError, out)))
            }
            remembered => Some(remembered),
        }
    }

    /// The answer to a query, from the first upstream that has one, else one that has expired lately; none if there is none in
    /// time.
    pub(crate) async fn resolve(
        self: &Arc<Self>,
        party: Party,
        group: Arc<Group>,
        message: &[u8],
        transport: Transport,
    ) -> Option<Vec<u8>> {
        let query = Query::parse(message).ok()?;
        let key = CacheKey::new(&query, group.tag);
        let said = self.ask_once(party, group, &key, message).await;
        let mut reply = match &said {
            Some(reply) if reply::is_conclusive(reply) => reply.to_vec(),
            failure => {
                let (stale, failure) = (self.cache.stale(&key, Instant::now()), failure.as_deref());
                self.cache.put_failure(party, &key, failure.unwrap_or_default(), Instant::now());
                stale.or(failure.map(<[u8]>::to_vec))?
            }
        };
        if reply.len() > transport.limit(query.edns) {
            let len = without_records(&query, flag::TRUNCATED, Rcode::NoError, &mut reply);
            reply.truncate(len);
        } else {
            reply::address_to(&mut reply, query.header, query.question);
        }
        Some(reply)
    }

    /// Asks, or waits with whoever has asked already.
    fn ask_once(self: &Arc<Self>, party: Party, group: Arc<Group>, key: &CacheKey, message: &[u8]) -> Asked {
        let mut under_way = lock(&self.under_way);
        if let Some(asked) = under_way.get(key.octets()).and_then(WeakShared::upgrade) {
            return asked;
        }
        let (forwarder, message, key) = (Arc::clone(self), Box::<[u8]>::from(message), *key);
        let end = End { forwarder: Arc::clone(self), key };
        let asked = async move {
            let _end = end;
            let query = Query::parse(&message).ok()?;
            let asked = timeout(forwarder.options.deadline, forwarder.ask(&group, &query)).await;
            let reply = asked.ok().flatten()?;
            forwarder.cache.put(party, &key, &reply, Instant::now());
            Some(Arc::from(reply))
        };
        let asked = asked.boxed().shared();
        under_way.extend(asked.downgrade().map(|weak| (key.octets().into(), weak)));
        asked
    }

    /// Asks the upstreams in their order, twice around. A failure that one reports is passed on only if none does better, and
    /// that there is no such name only when those before it have had their time: they may know others.
    async fn ask(&self, group: &Group, query: &Query<'_>) -> Option<Vec<u8>> {
        let in_order = self.in_order(group);
        let turns: Vec<Upstream> = in_order.iter().chain(&in_order).copied().collect();
        let order = self.manner.load().order;
        let mut next = match order {
            Order::Preferred => 1.min(turns.len()),
            Order::Parallel => in_order.len(),
        };
        let mut under_way: FuturesUnordered<_> =
            turns[..next].iter().map(|upstream| self.ask_one(*upstream, query)).collect();
        let (mut silent, mut ended) = (Vec::new(), Vec::new());
        let waits = |upstream: Upstream, ended: &[Upstream]| {
            let mut before = in_order.iter().take_while(|other| **other != upstream);
            order == Order::Preferred && before.any(|other| !ended.contains(other))
        };
        let (mut failure, mut absence) = (None, None);
        loop {
            // Those that were asked once already get all the time that there is.
            let pause = if next < in_order.len() { self.options.patience } else { self.options.timeout };
            tokio::select! {
                Some((upstream, exchanged)) = under_way.next() => {
                    self.note(upstream, exchanged.as_ref().err());
                    ended.push(upstream);
                    match exchanged {
                        Ok(reply) if reply::is_absence(&reply) && waits(upstream, &ended) => {
                            absence = absence.or(Some((upstream, reply)));
                        }
                        Ok(reply) if reply::is_conclusive(&reply) => {
                            silent.iter().filter(|other| **other != upstream).for_each(|other| self.overtake(*other));
                            return Some(reply);
                        }
                        Ok(reply) => failure = failure.or(Some(reply)),
                        Err(_) => {}
                    }
                    if absence.as_ref().is_some_and(|(upstream, _)| !waits(*upstream, &ended)) {
                        break;
                    }
                }
                () = sleep(pause), if next < turns.len() => silent.push(turns[next - 1]),
                else => break,
            }
            if let Some(upstream) = turns.get(next).filter(|_| absence.is_none()) {
                under_way.push(self.ask_one(*upstream, query));
                next += 1;
            }
        }
        // A header alone mirrors no question: that the client gets from us.
        absence.map(|(_, reply)| reply).or(failure.filter(|reply| reply.len() > HEADER_LEN))
    }

    async fn ask_one(&self, upstream: Upstream, query: &Query<'_>) -> (Upstream, Result<Vec<u8>, Failure>) {
        let (random_case, timeout) = (self.manner.load().random_case, self.options.timeout);
        (upstream, exchange(upstream, query, &*self.sockets, random_case, timeout).await)
    }

    /// The upstreams in order of preference, those that failed lately behind the others. Now and then one query tries such a
    /// one first, which costs it no more than [`ForwarderOptions::patience`].
    fn in_order(&self, group: &Group) -> Vec<Upstream> {
        let (mut good, mut suspect) = (Vec::new(), Vec::new());
        let mut suspects = lock(&self.suspects);
        for upstream in group.upstreams.iter().filter(|upstream| !self.loops.has(upstream)) {
            match suspects.get_mut(upstream) {
                Some(Suspicion { failed: Some(at), .. }) if at.elapsed() < SUSPECT_FOR => {
                    suspect.push(*upstream)
                }
                Some(Suspicion { failed: Some(at), .. }) => {
                    *at = Instant::now();
                    good.push(*upstream);
                }
                _ => good.push(*upstream),
            }
        }
        good.extend(suspect);
        good
    }

    fn condition(&self, upstream: &Upstream) -> Condition {
        if self.loops.has(upstream) {
            Condition::Loops
        } else if lock(&self.suspects).get(upstream).is_some_and(|suspicion| suspicion.failed.is_some()) {
            Condition::Silent
        } else {
            Condition::Good
        }
    }

    /// Notes that another one answered while this was silent.
    fn overtake(&self, upstream: Upstream) {
        let mut suspects = lock(&self.suspects);
        let suspicion = suspects.entry(upstream).or_default();
        suspicion.overtaken += 1;
        let enough = suspicion.overtaken >= OVERTAKEN;
        drop(suspects);
        if enough {
            self.note(upstream, Some(&Failure::Timeout(self.options.patience)));
        }
    }

    fn note(&self, upstream: Upstream, failure: Option<&Failure>) {
        let mut suspects = lock(&self.suspects);
        let address = upstream.address;
        match failure {
            Some(err) => match suspects.entry(upstream).or_default().failed.replace(Instant::now()) {
                None => info!(upstream = %address, %err, "upstream resolver does not answer"),
                Some(_) => debug!(upstream = %address, %err, "upstream resolver still does not answer"),
            },
            None => {
                if suspects.remove(&upstream).is_some_and(|suspicion| suspicion.failed.is_some()) {
                    info!(upstream = %address, "upstream resolver answers again");
                }
            }
        }
    }
}

/// Forgets a question that is no longer under way, also if all who waited gave up.
struct End {
    forwarder: Arc<Forwarder>,
    key: CacheKey,
}

impl Drop for End {
    fn drop(&mut self) {
        lock(&self.forwarder.under_way).remove(self.key.octets());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes an answer that says no more than how the query fared; returns its length. The question of a query is at most 259
/// octets.
pub(crate) fn without_records(query: &Query<'_>, flags: u16, rcode: Rcode, out: &mut [u8]) -> usize {
    Response::to(query, PLAIN_UDP_LEN, out).map_or(0, |mut response| {
        response.set(flags);
        response.finish(rcode)
    })
}
