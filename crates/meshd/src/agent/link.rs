//! The agent's one connection to a manager: the watch stream, and requests beside it.
//!
//! When it breaks, the agent goes on with what it has and tries the managers in turn until one answers.

use crate::{
    api::Failure,
    identity::Identity,
    wire::{Message, Reserved},
};
use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_api::ErrorBody;
use mesh_model::{PublishedPort, Role, Snapshot};
use rand::{Rng, seq::SliceRandom};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// A manager that does not answer within this is passed over.
const CONNECT: Duration = Duration::from_secs(3);
/// A manager that vanished without a word is noticed after this and as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How long a request waits for a connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(10);
/// First and longest pause between two rounds through the managers.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A longer line is no message of ours.
const LINE: usize = 1 << 30;

type Sender = http2::SendRequest<Full<Bytes>>;

/// Sends requests to whichever manager is connected.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    connection: watch::Receiver<Option<Sender>>,
}

/// A manager asks to hold ports, or to let go of them.
#[derive(Debug)]
pub(super) enum PortRequest {
    Reserve { id: u64, ports: Vec<PublishedPort> },
    Release { id: u64 },
}

/// Keeps the connection.
pub(super) struct LinkTask {
    identity: Identity,
    connector: TlsConnector,
    connection: watch::Sender<Option<Sender>>,
    snapshot: watch::Sender<Arc<Snapshot>>,
    ports: mpsc::Sender<PortRequest>,
}

impl Link {
    pub(super) fn new(
        identity: Identity,
        connector: TlsConnector,
        snapshot: watch::Sender<Arc<Snapshot>>,
        ports: mpsc::Sender<PortRequest>,
    ) -> (Self, LinkTask) {
        let (connection, receiver) = watch::channel(None);
        (Self { connection: receiver }, LinkTask { identity, connector, connection, snapshot, ports })
    }

    /// Whether a manager is connected.
    pub(crate) fn is_connected(&self) -> bool {
        self.connection.borrow().is_some()
    }

    /// Ticks when the connection comes or goes.
    pub(super) fn watch(&self) -> watch::Receiver<Option<Sender>> {
        self.connection.clone()
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.request(Method::POST, path, body).await
    }

    pub(super) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.request(Method::DELETE, path, &()).await
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let unreachable =
            || Failure::unavailable("no manager answers: changes wait until one does, traffic goes on");
        let mut connection = self.connection.clone();
        let connected = timeout(PATIENCE, connection.wait_for(Option::is_some)).await;
        let sender = connected.ok().and_then(Result::ok).and_then(|c| c.clone()).ok_or_else(unreachable)?;
        let body = serde_json::to_vec(body).map_err(|e| Failure::internal(e.to_string()))?;
        let exchange = exchange(sender, method, path, body);
        match timeout(REQUEST, exchange).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => Err(unreachable()),
        }
    }
}

async fn exchange<T: DeserializeOwned>(
    mut sender: Sender,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<Result<T, Failure>, hyper::Error> {
    let response = sender.send_request(request(method, path, body)).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok(decode(status, &body))
}

fn decode<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<T, Failure> {
    if status.is_success() {
        serde_json::from_slice(body)
            .map_err(|e| Failure::internal(format!("the manager's answer is not understood: {e}")))
    } else {
        let text = serde_json::from_slice::<ErrorBody>(body).map(|e| e.error);
        Err(Failure::new(status, text.unwrap_or_else(|_| format!("the manager answered {status}"))))
    }
}

fn request(method: Method, path: &str, body: Vec<u8>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(format!("https://manager{path}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body.into()))
        .unwrap_or_else(|e| unreachable!("paths are the code's own: {e}"))
}

/// One request over a connection of its own, for who is no member yet.
pub(crate) async fn ask_once<T: DeserializeOwned>(
    manager: SocketAddr,
    connector: &TlsConnector,
    path: &str,
    body: &impl Serialize,
) -> Result<T, Failure> {
    let cannot = |e: anyhow::Error| Failure::unavailable(format!("cannot join at {manager}: {e:#}"));
    let sender =
        timeout(CONNECT, open(manager, connector)).await.map_err(|_| cannot(anyhow::anyhow!("no answer")))?;
    let body = serde_json::to_vec(body).map_err(|e| Failure::internal(e.to_string()))?;
    exchange(sender.map_err(cannot)?, Method::POST, path, body).await.map_err(|e| cannot(e.into()))?
}

async fn open(manager: SocketAddr, connector: &TlsConnector) -> anyhow::Result<Sender> {
    let stream = TcpStream::connect(manager).await?;
    stream.set_nodelay(true)?;
    let tls = connector.connect(mesh_cluster::server_name(), stream).await.map_err(explain)?;
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(tls))
        .await?;
    // Ends with the last sender, or when the peer is gone.
    tokio::spawn(connection);
    Ok(sender)
}

/// A handshake that this side refused says why.
fn explain(error: std::io::Error) -> anyhow::Error {
    let refusal = mesh_cluster::handshake_refusal(&error).map(ToString::to_string);
    refusal.map_or_else(|| error.into(), anyhow::Error::msg)
}

impl LinkTask {
    /// Connects, follows, and starts over until cancelled.
    pub(super) async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        cancel.run_until_cancelled(self.keep_connected()).await;
        Ok(())
    }

    async fn keep_connected(&self) {
        let mut pause = BACKOFF.0;
        // Why each manager could not be followed: said once, not at every try.
        let mut reasons = HashMap::new();
        loop {
            for manager in self.managers() {
                let followed = self.follow(manager).await;
                if self.connection.send_replace(None).is_some() {
                    reasons.remove(&manager);
                    pause = BACKOFF.0;
                }
                match followed {
                    Ok(()) => pause = BACKOFF.0,
                    Err(err) => {
                        let err = format!("{err:#}");
                        if reasons.get(&manager) != Some(&err) {
                            tracing::warn!(%manager, err, "no connection to a manager: trying again");
                            reasons.insert(manager, err);
                        }
                    }
                }
            }
            let jitter = rand::rng().random_range(0.5..1.5);
            sleep(pause.mul_f64(jitter)).await;
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    /// Every manager known, in an order of chance: not all agents of a lost one go to the same next.
    fn managers(&self) -> Vec<SocketAddr> {
        let snapshot = self.snapshot.borrow();
        let known = snapshot.nodes.values().filter(|n| n.role == Role::Manager).map(|n| n.advertise);
        let all: BTreeSet<SocketAddr> = known.chain(self.identity.managers.iter().copied()).collect();
        let mut all: Vec<SocketAddr> = all.into_iter().collect();
        all.shuffle(&mut rand::rng());
        all
    }

    /// Follows one manager until the stream ends.
    async fn follow(&self, manager: SocketAddr) -> anyhow::Result<()> {
        let response = timeout(CONNECT, self.subscribe(manager)).await.context("no answer")??;
        let mut body = response.into_body();
        let mut buffer = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            let searched = buffer.len();
            buffer.extend_from_slice(&data);
            self.take_lines(&mut buffer, searched).await?;
        }
        bail!("the stream ended")
    }

    async fn subscribe(&self, manager: SocketAddr) -> anyhow::Result<Response<Incoming>> {
        let mut sender = open(manager, &self.connector).await?;
        let response = sender.send_request(request(Method::GET, "/v1/agent/watch", Vec::new())).await?;
        if !response.status().is_success() {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            let refusal = decode::<()>(status, &body).err();
            bail!("refused: {}", refusal.map_or_else(|| status.to_string(), |f| f.text().to_owned()));
        }
        self.connection.send_replace(Some(sender));
        tracing::info!(%manager, "connected to a manager");
        Ok(response)
    }

    /// Handles every whole line; `searched` bytes at the front are known to hold no end of line.
    async fn take_lines(&self, buffer: &mut BytesMut, mut searched: usize) -> anyhow::Result<()> {
        while let Some(end) = buffer[searched..].iter().position(|b| *b == b'\n') {
            let line = buffer.split_to(searched + end + 1);
            searched = 0;
            self.handle(serde_json::from_slice(&line).context("a message is not understood")?).await;
        }
        if buffer.len() > LINE { bail!("a message is too long") } else { Ok(()) }
    }

    async fn handle(&self, message: Message) {
        match message {
            Message::Snapshot(snapshot) => drop(self.snapshot.send_replace(snapshot)),
            Message::Delta { revision, changes } => self.snapshot.send_modify(|snapshot| {
                let snapshot = Arc::make_mut(snapshot);
                changes.into_iter().for_each(|change| snapshot.apply(change));
                snapshot.revision = revision;
            }),
            // The receiver lives as long as the daemon.
            Message::Reserve { id, ports } => drop(self.ports.send(PortRequest::Reserve { id, ports }).await),
            Message::Release { id } => drop(self.ports.send(PortRequest::Release { id }).await),
        }
    }
}

impl Link {
    pub(super) async fn answer_reservation(&self, id: u64, refusal: Option<String>) {
        // A manager that is gone does not wait for the answer.
        drop(self.post::<()>("/v1/agent/reservations", &Reserved { id, refusal }).await);
    }
}
