//! The client: one connection to the local socket for each request.

use crate::{
    AuthorityView, Created, Diagnosis, Disconnect, DnsView, EndpointFilter, EndpointSettings, EndpointView,
    ErrorBody, EventLine, EventView, EventsQuery, Examine, Init, Initialized, Join, JoinTokenRequest,
    JoinTokenView, Joined, Leave, Migrated, NetworkView, NodeView, Pruned, Removed, Resolve, Resolved,
    Restored, RoleChanged, RotateAuthority, ServiceView, StatusView, StoreSpec,
};
use bytes::{Bytes, BytesMut};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use mesh_model::{EndpointSpec, NetworkSpec, NetworkUpdate, NodeUpdate, ServiceSpec, ServiceUpdate};
use serde::{Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::{net::UnixStream, task::JoinSet};

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// meshd said no; the text is its own.
    #[error("{0}")]
    Refused(String),
    /// meshd knows nothing of what was named; the text is its own.
    #[error("{0}")]
    NotFound(String),
    /// meshd can't tell or do it now: no manager answers; the text is its own.
    #[error("{0}")]
    Unavailable(String),
    /// Nobody listens.
    #[error("meshd does not answer at {socket}: is it running? ({source})", socket = socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The user may not talk to it.
    #[error("no permission for {socket}: run as root or as a member of its group", socket = .0.display())]
    Permission(PathBuf),
    /// The connection broke.
    #[error("the connection to meshd broke: {0}")]
    Broken(#[from] hyper::Error),
    /// The daemon ended what it was sending.
    #[error("meshd ended: what happens since is not told")]
    Ended,
    /// What came back is no JSON of this version.
    #[error("meshd's answer is not understood (another version?): {0}")]
    Answer(#[from] serde_json::Error),
}

/// A client of one daemon.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    warnings: Arc<Mutex<Vec<String>>>,
}

impl Client {
    /// A client of the daemon that listens at this path.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), warnings: Arc::default() }
    }

    /// What the user should know of the answers since the last call, a line each.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The path of the socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `status`.
    pub async fn status(&self) -> Result<StatusView, Error> {
        self.get("/v1/status").await
    }

    /// `doctor`: takes a few seconds.
    pub async fn doctor(&self, what: &Examine) -> Result<Diagnosis, Error> {
        self.send(Method::POST, "/v1/doctor", Some(what)).await
    }

    /// `metrics`: Prometheus' text.
    pub async fn metrics(&self) -> Result<Bytes, Error> {
        self.exchange(Method::GET, "/v1/metrics", Bytes::new()).await?.whole().await
    }

    /// `dns status`.
    pub async fn dns(&self) -> Result<DnsView, Error> {
        self.get("/v1/dns").await
    }

    /// `dns resolve`.
    pub async fn dns_resolve(&self, what: &Resolve) -> Result<Resolved, Error> {
        self.send(Method::POST, "/v1/dns/resolve", Some(what)).await
    }

    /// `cluster init`.
    pub async fn cluster_init(&self, init: &Init) -> Result<Initialized, Error> {
        self.send(Method::POST, "/v1/cluster/init", Some(init)).await
    }

    /// `cluster join`.
    pub async fn cluster_join(&self, join: &Join) -> Result<Joined, Error> {
        self.send(Method::POST, "/v1/cluster/join", Some(join)).await
    }

    /// `cluster leave`.
    pub async fn cluster_leave(&self, leave: &Leave) -> Result<(), Error> {
        self.send(Method::POST, "/v1/cluster/leave", Some(leave)).await
    }

    /// `cluster join-token`.
    pub async fn join_token(&self, request: &JoinTokenRequest) -> Result<JoinTokenView, Error> {
        self.send(Method::POST, "/v1/cluster/join-token", Some(request)).await
    }

    /// `cluster backup`: a secret.
    pub async fn cluster_backup(&self) -> Result<Bytes, Error> {
        self.exchange(Method::GET, "/v1/cluster/backup", Bytes::new()).await?.whole().await
    }

    /// `cluster restore`.
    pub async fn cluster_restore(&self, backup: Bytes) -> Result<Restored, Error> {
        let answer = self.exchange(Method::POST, "/v1/cluster/restore", backup).await?;
        Ok(serde_json::from_slice(&answer.whole().await?)?)
    }

    /// `cluster migrate`.
    pub async fn cluster_migrate(&self, to: &StoreSpec) -> Result<Migrated, Error> {
        self.send(Method::POST, "/v1/cluster/migrate", Some(to)).await
    }

    /// `events`.
    pub async fn events(&self, query: &EventsQuery) -> Result<Events, Error> {
        let since = query.since.map(|revision| format!("?since={revision}")).unwrap_or_default();
        let answer = self.exchange(Method::GET, &format!("/v1/events{since}"), Bytes::new()).await?;
        Ok(Events { answer, buffer: BytesMut::new() })
    }

    /// `cluster ca`.
    pub async fn authority(&self) -> Result<AuthorityView, Error> {
        self.get("/v1/cluster/ca").await
    }

    /// `cluster ca --rotate`.
    pub async fn rotate_authority(&self, request: &RotateAuthority) -> Result<AuthorityView, Error> {
        self.send(Method::POST, "/v1/cluster/ca/rotate", Some(request)).await
    }

    /// `node ls`.
    pub async fn nodes(&self) -> Result<Vec<NodeView>, Error> {
        self.get("/v1/nodes").await
    }

    /// `node update`.
    pub async fn node_update(&self, name: &str, update: &NodeUpdate) -> Result<NodeView, Error> {
        self.send(Method::PATCH, &format!("/v1/nodes/{}", segment(name)), Some(update)).await
    }

    /// `node rm`.
    pub async fn node_rm(&self, name: &str, force: bool) -> Result<Removed, Error> {
        self.delete(&format!("/v1/nodes/{}?force={force}", segment(name))).await
    }

    /// `network ls`.
    pub async fn networks(&self) -> Result<Vec<NetworkView>, Error> {
        self.get("/v1/networks").await
    }

    /// `network inspect`.
    pub async fn network(&self, name: &str) -> Result<NetworkView, Error> {
        self.get(&format!("/v1/networks/{}", segment(name))).await
    }

    /// `network create`.
    pub async fn network_create(&self, spec: &NetworkSpec) -> Result<Created, Error> {
        self.send(Method::POST, "/v1/networks", Some(spec)).await
    }

    /// `network update`.
    pub async fn network_update(&self, name: &str, update: &NetworkUpdate) -> Result<Created, Error> {
        self.send(Method::PATCH, &format!("/v1/networks/{}", segment(name)), Some(update)).await
    }

    /// `network prune`.
    pub async fn network_prune(&self) -> Result<Pruned, Error> {
        self.delete("/v1/networks").await
    }

    /// `network rm`.
    pub async fn network_rm(&self, name: &str) -> Result<Removed, Error> {
        self.delete(&format!("/v1/networks/{}", segment(name))).await
    }

    /// `network connect`.
    pub async fn connect(&self, spec: &EndpointSpec) -> Result<EndpointView, Error> {
        self.send(Method::POST, "/v1/endpoints", Some(spec)).await
    }

    /// `network disconnect`.
    pub async fn disconnect(&self, request: &Disconnect) -> Result<Removed, Error> {
        self.send(Method::POST, "/v1/endpoints/disconnect", Some(request)).await
    }

    /// `endpoint ls`.
    pub async fn endpoints(&self, filter: &EndpointFilter) -> Result<Vec<EndpointView>, Error> {
        let pairs = [
            ("network", &filter.network),
            ("service", &filter.service),
            ("node", &filter.node),
            ("owner", &filter.owner),
        ];
        let query: Vec<String> = pairs
            .into_iter()
            .filter_map(|(key, value)| value.as_ref().map(|value| format!("{key}={}", segment(value))))
            .collect();
        self.get(&format!("/v1/endpoints?{}", query.join("&"))).await
    }

    /// `endpoint inspect`.
    pub async fn endpoint(&self, id: &str) -> Result<EndpointView, Error> {
        self.get(&format!("/v1/endpoints/{}", segment(id))).await
    }

    /// `endpoint drain`: returns when no new connection is sent there by any node that answers.
    pub async fn endpoint_drain(&self, id: &str) -> Result<EndpointView, Error> {
        self.send(Method::POST, &format!("/v1/endpoints/{}/drain", segment(id)), None::<&()>).await
    }

    /// `endpoint update`: returns when every node that answers does as it says.
    pub async fn endpoint_update(
        &self,
        id: &str,
        settings: &EndpointSettings,
    ) -> Result<EndpointView, Error> {
        self.send(Method::PATCH, &format!("/v1/endpoints/{}", segment(id)), Some(settings)).await
    }

    /// `endpoint rm`.
    pub async fn endpoint_rm(&self, id: &str) -> Result<Removed, Error> {
        self.delete(&format!("/v1/endpoints/{}", segment(id))).await
    }

    /// `service ls`.
    pub async fn services(&self) -> Result<Vec<ServiceView>, Error> {
        self.get("/v1/services").await
    }

    /// `service inspect`.
    pub async fn service(&self, name: &str) -> Result<ServiceView, Error> {
        self.get(&format!("/v1/services/{}", segment(name))).await
    }

    /// `service create`.
    pub async fn service_create(&self, spec: &ServiceSpec) -> Result<Created, Error> {
        self.send(Method::POST, "/v1/services", Some(spec)).await
    }

    /// `service update`.
    pub async fn service_update(&self, name: &str, update: &ServiceUpdate) -> Result<Created, Error> {
        self.send(Method::PATCH, &format!("/v1/services/{}", segment(name)), Some(update)).await
    }

    /// `service rm`.
    pub async fn service_rm(&self, name: &str) -> Result<Removed, Error> {
        self.delete(&format!("/v1/services/{}", segment(name))).await
    }

    /// Makes a worker a manager; answers when it is one. Safe to repeat.
    pub async fn node_promote(&self, node: &str) -> Result<RoleChanged, Error> {
        self.send(Method::POST, &format!("/v1/nodes/{}/promote", segment(node)), Some(&())).await
    }

    /// Makes a manager a worker. Safe to repeat.
    pub async fn node_demote(&self, node: &str) -> Result<RoleChanged, Error> {
        self.send(Method::POST, &format!("/v1/nodes/{}/demote", segment(node)), Some(&())).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.send(Method::GET, path, None::<&()>).await
    }

    async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.send(Method::DELETE, path, None::<&()>).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Error> {
        let body = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        let answer = self.exchange(method, path, body.into()).await?;
        Ok(serde_json::from_slice(&answer.whole().await?)?)
    }

    /// A request and the beginning of its answer, which is no refusal.
    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Answer, Error> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "meshd")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .unwrap_or_else(|error| unreachable!("paths are built from escaped segments: {error}"));

        let (mut sender, connection) = http1::handshake(TokioIo::new(self.connect_socket().await?)).await?;
        let mut task = JoinSet::new();
        task.spawn(connection);
        let response = sender.send_request(request).await?;
        let status = response.status();
        let warning = response.headers().get(crate::WARNING).and_then(|text| text.to_str().ok());
        let warning = warning.map(str::to_owned);
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).extend(warning);
        let answer = Answer { body: response.into_body(), _connection: task };
        if status.is_success() {
            return Ok(answer);
        }
        let body = answer.whole().await?;
        let text = || format!("meshd answered {status}: {}", String::from_utf8_lossy(&body));
        let text = serde_json::from_slice(&body).map_or_else(|_| text(), |e: ErrorBody| e.error);
        Err(match status {
            StatusCode::NOT_FOUND => Error::NotFound(text),
            StatusCode::SERVICE_UNAVAILABLE => Error::Unavailable(text),
            _ => Error::Refused(text),
        })
    }

    async fn connect_socket(&self) -> Result<UnixStream, Error> {
        UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
            std::io::ErrorKind::PermissionDenied => Error::Permission(self.socket.clone()),
            _ => Error::Unreachable { socket: self.socket.clone(), source },
        })
    }
}

/// What the daemon answers, with the connection that it comes on.
#[derive(Debug)]
struct Answer {
    body: Incoming,
    /// Ends when this is dropped.
    _connection: JoinSet<Result<(), hyper::Error>>,
}

impl Answer {
    async fn whole(self) -> Result<Bytes, Error> {
        Ok(self.body.collect().await?.to_bytes())
    }
}

/// What happens, as it happens.
#[derive(Debug)]
pub struct Events {
    answer: Answer,
    buffer: BytesMut,
}

impl Events {
    /// The next event: waits until there is one. Every error is the last.
    pub async fn next(&mut self) -> Result<EventView, Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                return match serde_json::from_slice(&self.buffer.split_to(end + 1))? {
                    EventLine::Event(event) => Ok(event),
                    EventLine::Error(text) => Err(Error::Refused(text)),
                };
            }
            let frame = self.answer.body.frame().await.ok_or(Error::Ended)?;
            if let Ok(data) = frame?.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }
}

/// Escapes what is not unreserved (RFC 3986, 2.3), so that any text is one path segment or query value.
fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
