//! A connection to a manager: HTTP/2 over TLS, JSON bodies.

use crate::api::Failure;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_api::ErrorBody;
use serde::{Serialize, de::DeserializeOwned};
use std::{net::SocketAddr, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

/// A manager that does not answer within this is passed over.
pub(crate) const CONNECT: Duration = Duration::from_secs(3);
/// A manager that vanished without a word is noticed after this and as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Sends requests on a connection; cheap to clone.
pub(crate) type Sender = http2::SendRequest<Full<Bytes>>;

/// One request and its answer on an open connection.
pub(crate) async fn exchange<T: DeserializeOwned>(
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

/// The value, or the refusal, that a body holds.
pub(crate) fn decode<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<T, Failure> {
    if status.is_success() {
        serde_json::from_slice(body)
            .map_err(|e| Failure::internal(format!("the manager's answer is not understood: {e}")))
    } else {
        let text = serde_json::from_slice::<ErrorBody>(body).map(|e| e.error);
        Err(Failure::new(status, text.unwrap_or_else(|_| format!("the manager answered {status}"))))
    }
}

/// A request to whichever manager is at the other end.
pub(crate) fn request(method: Method, path: &str, body: Vec<u8>) -> Request<Full<Bytes>> {
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

/// Connects, proves who we are, and makes sure that a manager of the cluster answers.
pub(crate) async fn open(manager: SocketAddr, connector: &TlsConnector) -> anyhow::Result<Sender> {
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
