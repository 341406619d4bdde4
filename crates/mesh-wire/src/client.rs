//! A connection to a manager: HTTP/2 over TLS, JSON bodies.

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use mesh_api::ErrorBody;
use serde::de::DeserializeOwned;
use std::{io, net::SocketAddr, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A manager that does not answer within this is passed over.
pub const CONNECT: Duration = Duration::from_secs(3);
/// A manager that vanished without a word is noticed after this and as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Sends requests on a connection; cheap to clone.
pub type Sender = http2::SendRequest<Full<Bytes>>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The manager is not reached, or breaks off.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// This side or the other refused the handshake, and why.
    #[error("{0}")]
    Handshake(String),
    /// It speaks no HTTP/2.
    #[error(transparent)]
    Http(#[from] hyper::Error),
}

/// A manager's answer that is no success.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Refused {
    /// For programs.
    pub status: StatusCode,
    /// For people.
    pub text: String,
}

/// Connects, proves who we are, and makes sure that a manager of the cluster answers.
///
/// # Errors
/// [`Error`]: whatever keeps it from that.
pub async fn open(manager: SocketAddr, connector: &TlsConnector) -> Result<Sender, Error> {
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
fn explain(error: io::Error) -> Error {
    let refusal = mesh_cluster::handshake_refusal(&error).map(ToString::to_string);
    refusal.map_or_else(|| error.into(), Error::Handshake)
}

/// One request and its answer on an open connection.
///
/// # Errors
/// The connection broke, and it is not known what became of the request. Inside: it was refused.
pub async fn exchange<T: DeserializeOwned>(
    mut sender: Sender,
    method: Method,
    path: &str,
    body: Vec<u8>,
) -> Result<Result<T, Refused>, hyper::Error> {
    let response = sender.send_request(request(method, path, body)).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok(decode(status, &body))
}

/// The value that a body holds.
///
/// # Errors
/// The refusal that it holds, or that it is not understood.
pub fn decode<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<T, Refused> {
    if status.is_success() {
        serde_json::from_slice(body).map_err(|e| Refused {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            text: format!("the manager's answer is not understood: {e}"),
        })
    } else {
        let text = serde_json::from_slice::<ErrorBody>(body).map(|e| e.error);
        let text = text.unwrap_or_else(|_| format!("the manager answered {status}"));
        Err(Refused { status, text })
    }
}

/// A request to whichever manager is at the other end.
pub fn request(method: Method, path: &str, body: Vec<u8>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(format!("https://manager{path}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body.into()))
        .unwrap_or_else(|e| unreachable!("paths are the code's own: {e}"))
}
