//! The plugin socket: where Docker looks for a driver called `meshd`. It is there whenever Docker's directory is.

use super::{
    Docker,
    protocol::{ADDRESS_SPACE, OfEndpoint},
    revive::LATER,
};
use crate::api::{self, Failure};
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State, rejection::BytesRejection},
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{net::UnixListener, time::sleep};
use tokio_util::sync::CancellationToken;

/// How often it is looked whether Docker's directory has come, or the socket has gone. Docker itself waits for a driver
/// for half a minute.
const LOOK: Duration = Duration::from_millis(500);
/// Requests are small.
const BODY: usize = 1 << 20;
/// What Docker's plugin protocol calls its JSON.
const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// Serves for as long as it is not cancelled.
pub(super) async fn serve(path: PathBuf, docker: Arc<Docker>, cancel: CancellationToken) {
    let router = Router::new().fallback(call).layer(DefaultBodyLimit::max(BODY)).with_state(docker);
    let mut said = None;
    while !cancel.is_cancelled() {
        match bind(&path) {
            Ok(Some(listener)) => {
                tracing::info!(socket = %path.display(), "network driver of Docker");
                said = None;
                tokio::select! {
                    // It ends by being dropped only.
                    _ = axum::serve(listener, router.clone()).into_future() => {}
                    () = replaced(&path) => {}
                }
            }
            Ok(None) => {}
            Err(err) => {
                let err = format!("{err:#}");
                // Said once, not at every look.
                if said.as_ref() != Some(&err) {
                    tracing::warn!(err, "not Docker's network driver");
                    said = Some(err);
                }
            }
        }
        sleep(LOOK).await;
    }
}

/// Binds the socket if its directory is there. One that somebody listens at is another daemon's.
fn bind(path: &Path) -> anyhow::Result<Option<UnixListener>> {
    if !path.parent().is_some_and(Path::is_dir) {
        return Ok(None);
    }
    api::bind_socket(path, 0o600, "--docker-plugin").map(Some)
}

/// Returns when the socket's file is gone or is another's.
async fn replaced(path: &Path) {
    let inode = || std::fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    let bound = inode();
    while bound.is_some() && inode() == bound {
        sleep(LOOK).await;
    }
}

/// Answers a call, which goes on to its end also when Docker hangs up.
async fn call(State(docker): State<Arc<Docker>>, uri: Uri, body: Result<Bytes, BytesRejection>) -> Response {
    let method = uri.path().trim_start_matches('/').to_owned();
    let (name, refused) = (method.clone(), Arc::clone(&docker));
    let answered = tokio::spawn(async move {
        match body {
            Ok(body) => answer(&docker, &method, &body).await,
            Err(why) => Err(Unanswered::Unread(why)),
        }
    });
    let (status, value) = match answered.await {
        Ok(Ok(value)) => (StatusCode::OK, value),
        Ok(Err(Unanswered::Unknown)) => {
            (StatusCode::NOT_FOUND, refusal(&format!("meshd does not know {name}")))
        }
        Ok(Err(Unanswered::Unread(why))) => (why.status(), refusal(&format!("{name}: {}", why.body_text()))),
        Ok(Err(Unanswered::Malformed(why))) => (StatusCode::BAD_REQUEST, refusal(&format!("{name}: {why}"))),
        Ok(Err(Unanswered::Failed(failure))) => {
            tracing::warn!(call = name, err = failure.text(), "refused to Docker");
            let later = failure.is_unavailable();
            refused.refused.fetch_or(later, Ordering::Relaxed);
            let text = if later { format!("{}; {LATER}", failure.text()) } else { failure.text().to_owned() };
            (StatusCode::OK, refusal(&text))
        }
        Err(err) => (StatusCode::INTERNAL_SERVER_ERROR, refusal(&format!("{name} failed: {err}"))),
    };
    (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], value.to_string()).into_response()
}

/// Docker looks for `Err` in answers of network drivers, for `Error` in those of address drivers.
fn refusal(why: &str) -> Value {
    json!({ "Err": why, "Error": why })
}

/// Why a call has no answer.
enum Unanswered {
    /// Docker takes it for a method that this driver need not have.
    Unknown,
    /// The body is too long, or never came.
    Unread(BytesRejection),
    /// The body can't be understood.
    Malformed(String),
    /// It can't be done.
    Failed(Failure),
}

impl From<Failure> for Unanswered {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

async fn answer(docker: &Arc<Docker>, method: &str, body: &[u8]) -> Result<Value, Unanswered> {
    Ok(match method {
        "Plugin.Activate" => json!({ "Implements": ["NetworkDriver", "IpamDriver"] }),
        "NetworkDriver.GetCapabilities" => json!({ "Scope": "local", "ConnectivityScope": "global" }),
        "NetworkDriver.CreateNetwork" => {
            docker.create_network(parse(body)?).await?;
            done()
        }
        "NetworkDriver.DeleteNetwork" => {
            docker.delete_network(&parse(body)?);
            done()
        }
        "NetworkDriver.CreateEndpoint" => say(docker.create_endpoint(parse(body)?).await?)?,
        "NetworkDriver.DeleteEndpoint" => {
            docker.delete_endpoint(&parse(body)?).await?;
            done()
        }
        "NetworkDriver.Join" => say(docker.join(parse(body)?).await?)?,
        "NetworkDriver.Leave" => {
            docker.leave(&parse(body)?).await?;
            done()
        }
        "NetworkDriver.EndpointOperInfo" => parse::<OfEndpoint>(body).map(|_| json!({ "Value": {} }))?,
        // Ports are published with the endpoint, and the cluster knows its own nodes.
        "NetworkDriver.ProgramExternalConnectivity"
        | "NetworkDriver.RevokeExternalConnectivity"
        | "NetworkDriver.DiscoverNew"
        | "NetworkDriver.DiscoverDelete"
        | "IpamDriver.ReleasePool" => done(),
        // By the MAC address an endpoint is known before it has an ID.
        "IpamDriver.GetCapabilities" => json!({ "RequiresMACAddress": true, "RequiresRequestReplay": false }),
        "IpamDriver.GetDefaultAddressSpaces" => json!({
            "LocalDefaultAddressSpace": ADDRESS_SPACE,
            "GlobalDefaultAddressSpace": ADDRESS_SPACE,
        }),
        "IpamDriver.RequestPool" => say(docker.request_pool(&parse(body)?)?)?,
        "IpamDriver.RequestAddress" => {
            let address = docker.request_address(&parse(body)?).await?;
            json!({ "Address": address.to_string(), "Data": {} })
        }
        "IpamDriver.ReleaseAddress" => {
            docker.release_address(&parse(body)?).await?;
            done()
        }
        _ => return Err(Unanswered::Unknown),
    })
}

fn done() -> Value {
    json!({})
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Unanswered> {
    serde_json::from_slice(body).map_err(|e| Unanswered::Malformed(e.to_string()))
}

fn say(answer: impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(answer).map_err(|e| Failure::internal(e.to_string()))
}
