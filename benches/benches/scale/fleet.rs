//! Agents as a manager sees them.

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use http::{Method, Response};
use http_body_util::BodyExt;
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_cluster::{AuthorityCertificate, Credentials, JoinToken, NodeKey, pinned_client_config};
use mesh_model::{Change, EndpointId, EndpointSpec, Key, NodeSpec, Object, Target};
use mesh_wire::{
    Applied, JoinReply, JoinRequest, Message, Resume,
    client::{CONNECT, Sender, exchange, open, request},
};
use rand::Rng;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;

/// As real agents: see `meshd/src/agent/link.rs`.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Less than what an agent is sent while it does not read.
const NARROW: u32 = 16 << 10;

const JOINS: usize = 32;
const ATTACHMENTS: usize = 64;
/// Nothing that is waited for may take longer.
const LIMIT: Duration = Duration::from_secs(120);

/// The agents.
pub(crate) struct Fleet {
    agents: Vec<Arc<Agent>>,
    shared: Arc<Shared>,
}

/// What they count, and what they are told to do.
struct Shared {
    manager: SocketAddr,
    start: Instant,
    bytes: AtomicU64,
    services: AtomicUsize,
    endpoints: AtomicUsize,
    /// When the last line of interest came, in nanoseconds since `start`.
    last: AtomicU64,
    back: AtomicUsize,
    failures: AtomicUsize,
    resume: AtomicBool,
    narrow: AtomicBool,
    cut: watch::Sender<u64>,
    paused: watch::Sender<bool>,
}

struct Agent {
    number: usize,
    connector: TlsConnector,
    sender: watch::Sender<Option<Sender>>,
    has: Mutex<Resume>,
    extra: Mutex<Option<EndpointId>>,
}

/// What a change is of.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Service,
    Endpoint,
}

/// The counters at one moment.
pub(crate) struct Mark {
    pub(crate) at: Instant,
    pub(crate) bytes: u64,
    services: usize,
    endpoints: usize,
}

/// How a change reached the agents.
pub(crate) struct Told {
    /// Until the last one had it.
    pub(crate) last: Duration,
    pub(crate) bytes: u64,
}

/// The name of a network, and of the service on it.
pub(crate) fn network(number: usize) -> String {
    format!("net{number}")
}

impl Fleet {
    pub(crate) async fn join(manager: SocketAddr, token: &str, count: usize) -> Result<Self> {
        let authority = token.parse::<JoinToken>()?.authority();
        let pinned = TlsConnector::from(Arc::new(pinned_client_config(authority)?));
        let slots = Arc::new(Semaphore::new(JOINS));
        let mut joins = JoinSet::new();
        for number in 0..count {
            let (pinned, token, slots) = (pinned.clone(), token.to_owned(), Arc::clone(&slots));
            joins.spawn(async move {
                let _slot = slots.acquire_owned().await?;
                Agent::join(number, manager, &pinned, token).await
            });
        }
        let mut agents = Vec::new();
        while let Some(joined) = joins.join_next().await {
            agents.push(Arc::new(joined??));
        }
        agents.sort_by_key(|agent| agent.number);
        let shared = Shared {
            manager,
            start: Instant::now(),
            bytes: AtomicU64::new(0),
            services: AtomicUsize::new(0),
            endpoints: AtomicUsize::new(0),
            last: AtomicU64::new(0),
            back: AtomicUsize::new(0),
            failures: AtomicUsize::new(0),
            resume: AtomicBool::new(true),
            narrow: AtomicBool::new(false),
            cut: watch::Sender::new(0),
            paused: watch::Sender::new(false),
        };
        Ok(Self { agents, shared: Arc::new(shared) })
    }

    /// Starts every agent.
    pub(crate) fn begin(&self) {
        for agent in &self.agents {
            tokio::spawn(Arc::clone(agent).run(Arc::clone(&self.shared)));
        }
    }

    /// Attaches endpoints on every node.
    pub(crate) async fn attach(&self, networks: usize, each: usize) -> Result<()> {
        let slots = Arc::new(Semaphore::new(ATTACHMENTS));
        let mut attachments = JoinSet::new();
        for agent in self.agents.iter().flat_map(|agent| (0..each).map(move |_| Arc::clone(agent))) {
            let slots = Arc::clone(&slots);
            attachments.spawn(async move {
                let _slot = slots.acquire_owned().await?;
                agent.attach(agent.number % networks).await
            });
        }
        while let Some(attached) = attachments.join_next().await {
            attached??;
        }
        Ok(())
    }

    /// One endpoint more on a node, or one less.
    pub(crate) async fn toggle_endpoint(&self, agent: usize, networks: usize) -> Result<()> {
        let agent = &self.agents[agent];
        let extra = agent.lock_extra().take();
        match extra {
            Some(id) => agent
                .ask::<_, serde_json::Value>(Method::DELETE, &format!("/v1/agent/endpoints/{id}"), &())
                .await
                .map(drop),
            None => {
                let id = agent.attach(agent.number % networks).await?;
                *agent.lock_extra() = Some(id);
                Ok(())
            }
        }
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark {
            at: Instant::now(),
            bytes: self.shared.bytes.load(Relaxed),
            services: self.shared.services.load(Relaxed),
            endpoints: self.shared.endpoints.load(Relaxed),
        }
    }

    /// What they were sent so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.bytes.load(Relaxed)
    }

    /// Waits until so many agents were told of one change of a kind since the mark.
    pub(crate) async fn told(&self, mark: &Mark, kind: Kind, agents: usize) -> Result<Told> {
        let count = || match kind {
            Kind::Service => self.shared.services.load(Relaxed) - mark.services,
            Kind::Endpoint => self.shared.endpoints.load(Relaxed) - mark.endpoints,
        };
        until("every agent has the change", || count() >= agents).await?;
        ensure!(count() == agents, "{} agents were told, of {agents} that need it", count());
        let last = self.shared.start + Duration::from_nanos(self.shared.last.load(Relaxed));
        Ok(Told { last: last - mark.at, bytes: self.shared.bytes.load(Relaxed) - mark.bytes })
    }

    /// Whether agents say what they have when they come back.
    pub(crate) fn resume(&self, resume: bool) {
        self.shared.resume.store(resume, Relaxed);
    }

    /// Whether agents have room for [`NARROW`] bytes that they have not read, instead of megabytes.
    pub(crate) fn narrow(&self, narrow: bool) {
        self.shared.narrow.store(narrow, Relaxed);
    }

    /// From here on agents are counted that come back.
    pub(crate) fn expect_return(&self) {
        self.shared.back.store(0, Relaxed);
    }

    /// Breaks every connection.
    pub(crate) fn cut(&self) {
        self.expect_return();
        self.shared.cut.send_modify(|cut| *cut += 1);
    }

    /// Waits until so many agents are connected and up to date.
    pub(crate) async fn all_back(&self) -> Result<()> {
        until("every agent is back", || self.shared.back.load(Relaxed) >= self.agents.len()).await
    }

    /// Makes agents leave what comes unread, or read on.
    pub(crate) fn pause(&self, paused: bool) {
        self.shared.paused.send_replace(paused);
    }

    pub(crate) fn failures(&self) -> usize {
        self.shared.failures.load(Relaxed)
    }
}

async fn until(what: &str, done: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        ensure!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

impl Agent {
    async fn join(number: usize, manager: SocketAddr, pinned: &TlsConnector, token: String) -> Result<Self> {
        let key = NodeKey::generate()?;
        let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 99, 0, 1).to_bits() + number as u32);
        let node = NodeSpec { name: format!("node{number}").parse()?, advertise: (address, 7443).into() };
        let request = JoinRequest { token, node, csr: key.request()? };
        let sender = open(manager, pinned).await?;
        let reply: JoinReply = ask(sender, Method::POST, "/v1/join", &request).await?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let authority = AuthorityCertificate::from_pem(&reply.ca)?;
        let credentials = Credentials::new(authority, &reply.certificate, key, now)?;
        Ok(Self {
            number,
            connector: TlsConnector::from(Arc::new(credentials.client_config()?)),
            sender: watch::Sender::new(None),
            has: Mutex::new(Resume { epoch: 0, revision: 0, networks: BTreeSet::new() }),
            extra: Mutex::new(None),
        })
    }

    async fn run(self: Arc<Self>, shared: Arc<Shared>) {
        let mut pause = BACKOFF.0;
        loop {
            let mut cut = shared.cut.subscribe();
            let followed = tokio::select! {
                followed = self.follow(&shared) => followed,
                _ = cut.changed() => Ok(()),
            };
            if followed.is_err() {
                shared.failures.fetch_add(1, Relaxed);
            }
            if self.sender.send_replace(None).is_some() {
                pause = BACKOFF.0;
            }
            let jitter = rand::rng().random_range(0.5..1.5);
            sleep(pause.mul_f64(jitter)).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    async fn follow(&self, shared: &Shared) -> Result<()> {
        let response = timeout(CONNECT, self.subscribe(shared)).await??;
        let mut body = response.into_body();
        let mut buffer = BytesMut::new();
        let mut paused = shared.paused.subscribe();
        let (reached, reports) = watch::channel(0);
        let report = tokio::spawn(report(self.sender.subscribe(), reports));
        let _report = Aborts(report.abort_handle());
        let mut first = true;
        loop {
            paused.wait_for(|paused| !paused).await?;
            let frame = body.frame().await.context("the stream ended")??;
            let Ok(data) = frame.into_data() else { continue };
            shared.bytes.fetch_add(data.len() as u64, Relaxed);
            let searched = buffer.len();
            buffer.extend_from_slice(&data);
            let Some(end) = buffer[searched..].iter().rposition(|b| *b == b'\n') else { continue };
            let lines = buffer.split_to(searched + end + 1);
            for line in lines.as_ref().split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
                if let Some(revision) = self.take(shared, serde_json::from_slice(line)?) {
                    reached.send_replace(revision);
                    if std::mem::take(&mut first) {
                        shared.back.fetch_add(1, Relaxed);
                    }
                }
            }
        }
    }

    async fn subscribe(&self, shared: &Shared) -> Result<Response<Incoming>> {
        let mut sender = if shared.narrow.load(Relaxed) {
            open_narrow(shared.manager, &self.connector).await?
        } else {
            open(shared.manager, &self.connector).await?
        };
        let resume = self.lock_has().clone();
        let resume = (shared.resume.load(Relaxed) && resume.epoch != 0).then_some(resume);
        let resume = serde_json::to_vec(&resume)?;
        let response = sender.send_request(request(Method::POST, "/v1/agent/watch", resume)).await?;
        if !response.status().is_success() {
            bail!("refused: {}", response.status());
        }
        self.sender.send_replace(Some(sender));
        Ok(response)
    }

    /// Counts what comes, and remembers what the agent has; returns a revision that is reached.
    fn take(&self, shared: &Shared, message: Message) -> Option<u64> {
        let mut has = self.lock_has();
        match message {
            Message::Base(base) => {
                (has.epoch, has.networks) = (base.epoch, BTreeSet::new());
            }
            Message::Network(state) => drop(has.networks.insert(state.network)),
            Message::Forget(network) => drop(has.networks.remove(&network)),
            Message::Changes(changes) => {
                for change in &changes {
                    match change {
                        Change::Put(Object::Service(_)) => shared.services.fetch_add(1, Relaxed),
                        Change::Put(Object::Endpoint(_)) | Change::Delete(Key::Endpoint(_)) => {
                            shared.endpoints.fetch_add(1, Relaxed)
                        }
                        _ => continue,
                    };
                    shared.last.fetch_max(shared.start.elapsed().as_nanos() as u64, Relaxed);
                }
            }
            Message::Reached { revision } => {
                has.revision = revision;
                return Some(revision);
            }
            Message::Reserve { .. }
            | Message::Release { .. }
            | Message::TellPorts { .. }
            | Message::Keys(_) => {}
        }
        None
    }

    async fn attach(&self, of: usize) -> Result<EndpointId> {
        let id = EndpointId::from_bits(rand::random());
        let target = Target::Netns(format!("/run/netns/{id}").into());
        let spec = EndpointSpec {
            service: Some(network(of)),
            namespace_inode: id.bits(),
            ..EndpointSpec::new(network(of), target, "eth0")
        };
        self.ask::<_, serde_json::Value>(Method::PUT, &format!("/v1/agent/endpoints/{id}"), &spec).await?;
        Ok(id)
    }

    async fn ask<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &B,
    ) -> Result<T> {
        let mut connection = self.sender.subscribe();
        let sender = connection.wait_for(Option::is_some).await?.clone().context("no connection")?;
        ask(sender, method, path, body).await
    }

    fn lock_has(&self) -> std::sync::MutexGuard<'_, Resume> {
        self.has.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_extra(&self) -> std::sync::MutexGuard<'_, Option<EndpointId>> {
        self.extra.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the manager which revision is applied: the newest, when the last report was answered.
async fn report(
    mut connection: watch::Receiver<Option<Sender>>,
    mut reached: watch::Receiver<u64>,
) -> Result<()> {
    loop {
        reached.changed().await?;
        let revision = *reached.borrow_and_update();
        let sender = connection.wait_for(Option::is_some).await?.clone().context("no connection")?;
        ask::<_, ()>(sender, Method::POST, "/v1/agent/applied", &Applied { revision }).await?;
    }
}

/// As [`open`], with room for little.
async fn open_narrow(manager: SocketAddr, connector: &TlsConnector) -> Result<Sender> {
    let stream = TcpStream::connect(manager).await?;
    stream.set_nodelay(true)?;
    let tls = connector.connect(mesh_cluster::server_name(), stream).await?;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(NARROW)
        .handshake(TokioIo::new(tls))
        .await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// A task that ends with this.
struct Aborts(AbortHandle);

impl Drop for Aborts {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn ask<B: Serialize, T: DeserializeOwned>(
    sender: Sender,
    method: Method,
    path: &str,
    body: &B,
) -> Result<T> {
    Ok(exchange(sender, method, path, serde_json::to_vec(body)?).await??)
}
