//! What Docker's API tells, over its socket.
//!
//! Inspecting a container waits for whatever Docker does with it, so it must not be asked for while Docker waits for an
//! answer of the driver about the same container. Networks and the list of containers can be read at any time.

use crate::api::Failure;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, de::DeserializeOwned};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};
use tokio::{net::UnixStream, time::timeout};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);
/// How long the start of a container may take.
const START: Duration = Duration::from_secs(60);
/// A list of thousands of containers is smaller.
const BODY: usize = 64 << 20;

/// A client of one Docker.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    socket: PathBuf,
}

/// A network.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Network {
    pub(super) id: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) options: Option<BTreeMap<String, String>>,
    /// The endpoints on it; only if the network was asked for by itself.
    #[serde(default)]
    pub(super) containers: Option<BTreeMap<String, Attached>>,
}

/// A container's endpoint on a network.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Attached {
    /// The container's name.
    pub(super) name: String,
    #[serde(rename = "EndpointID")]
    pub(super) endpoint_id: String,
}

/// A container, as lists tell of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    pub(super) id: String,
    #[serde(default)]
    pub(super) labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(super) network_settings: NetworkSettings,
}

/// A container.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Inspected {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) state: ContainerState,
    pub(super) config: ContainerConfig,
    pub(super) host_config: HostConfig,
    pub(super) network_settings: NetworkSettings,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ContainerState {
    pub(super) running: bool,
    pub(super) pid: i32,
    /// Why its last start failed.
    #[serde(default)]
    pub(super) error: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ContainerConfig {
    #[serde(default)]
    pub(super) labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HostConfig {
    #[serde(default)]
    pub(super) restart_policy: RestartPolicy,
}

/// When Docker starts a container again.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RestartPolicy {
    #[serde(default)]
    name: String,
}

impl RestartPolicy {
    /// Whether there is one.
    pub(super) fn is_some(&self) -> bool {
        !matches!(self.name.as_str(), "" | "no")
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NetworkSettings {
    #[serde(default)]
    pub(super) sandbox_key: String,
    #[serde(default)]
    networks: Option<BTreeMap<String, EndpointSettings>>,
}

impl NetworkSettings {
    /// The container's places on its networks, in the order of Docker's names.
    pub(super) fn places(&self) -> impl Iterator<Item = &EndpointSettings> {
        self.networks.iter().flat_map(BTreeMap::values)
    }
}

/// A container's place on a network.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct EndpointSettings {
    #[serde(rename = "NetworkID", default)]
    pub(super) network_id: String,
    #[serde(rename = "EndpointID", default)]
    pub(super) endpoint_id: String,
    #[serde(default)]
    pub(super) aliases: Option<Vec<String>>,
    #[serde(rename = "IPAddress", default)]
    pub(super) ip_address: String,
    #[serde(default)]
    pub(super) mac_address: String,
}

#[derive(Deserialize)]
struct Message {
    message: String,
}

impl Api {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Whether somebody listens at its socket, as Docker does from its start on.
    pub(super) async fn is_there(&self) -> bool {
        UnixStream::connect(&self.socket).await.is_ok()
    }

    /// A network with its endpoints.
    pub(super) async fn network(&self, id: &str) -> Result<Network, Failure> {
        self.ask(Method::GET, &format!("/networks/{}", encode(id)), None).await
    }

    /// The networks of this driver, without their endpoints.
    pub(super) async fn networks(&self) -> Result<Vec<Network>, Failure> {
        let filter = encode(r#"{"driver":["meshd"]}"#);
        self.ask(Method::GET, &format!("/networks?filters={filter}"), None).await
    }

    /// A container by its whole name, running or not, without waiting for what Docker does with it.
    pub(super) async fn listed(&self, name: &str) -> Result<Option<Listed>, Failure> {
        let filter = serde_json::json!({ "name": [format!("^/{}$", name.replace('.', "\\."))] }).to_string();
        let path = format!("/containers/json?all=1&filters={}", encode(&filter));
        let found: Vec<Listed> = self.ask(Method::GET, &path, None).await?;
        Ok(found.into_iter().next())
    }

    /// The containers on any of these networks that have run and do not any more.
    pub(super) async fn exited(&self, networks: impl Iterator<Item = &str>) -> Result<Vec<Listed>, Failure> {
        let networks: Vec<_> = networks.collect();
        let filter = serde_json::json!({ "status": ["exited"], "network": networks }).to_string();
        self.ask(Method::GET, &format!("/containers/json?all=1&filters={}", encode(&filter)), None).await
    }

    /// Starts a container, unless it runs.
    pub(super) async fn start(&self, container: &str) -> Result<(), Failure> {
        let path = format!("/containers/{}/start", encode(container));
        self.request_within(START, Method::POST, &path, None).await.map(drop)
    }

    /// A container by name or ID. Waits for what Docker does with it.
    pub(super) async fn inspect(&self, container: &str) -> Result<Inspected, Failure> {
        self.ask(Method::GET, &format!("/containers/{}/json", encode(container)), None).await
    }

    /// Takes a container off a network.
    pub(crate) async fn disconnect(&self, network: &str, container: &str) -> Result<(), Failure> {
        let body = serde_json::json!({ "Container": container, "Force": false }).to_string();
        let path = format!("/networks/{}/disconnect", encode(network));
        self.request(Method::POST, &path, Some(body)).await.map(drop)
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<T, Failure> {
        let answer = self.request(method, path, body).await?;
        serde_json::from_slice(&answer)
            .map_err(|e| Failure::unavailable(format!("Docker's answer is not understood: {e}")))
    }

    async fn request(&self, method: Method, path: &str, body: Option<String>) -> Result<Bytes, Failure> {
        self.request_within(ANSWER, method, path, body).await
    }

    async fn request_within(
        &self,
        limit: Duration,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<Bytes, Failure> {
        match timeout(limit, self.exchange(method, path, body)).await {
            // Some requests are answered so if there is nothing to do.
            Ok(Ok((status, answer))) if status.is_success() || status == StatusCode::NOT_MODIFIED => {
                Ok(answer)
            }
            Ok(Ok((status, answer))) => {
                let said = serde_json::from_slice(&answer).map(|Message { message }| message);
                Err(Failure::new(status, format!("Docker: {}", said.unwrap_or_else(|_| status.to_string()))))
            }
            Ok(Err(e)) => Err(self.silent(&format!("{e:#}"))),
            Err(_) => Err(self.silent("no answer in time")),
        }
    }

    fn silent(&self, why: &str) -> Failure {
        Failure::unavailable(format!(
            "Docker does not answer at {}: {why}: is it running, and --docker-socket right?",
            self.socket.display()
        ))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let stream = UnixStream::connect(&self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "docker")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY).collect().await;
            let body = body.map_err(|e| anyhow::anyhow!("{e}"))?.to_bytes();
            anyhow::Ok((status, body))
        };
        // The connection ends when its sender is gone, at the latest.
        tokio::select! {
            answer = exchange => answer,
            Err(e) = connection => Err(e.into()),
        }
    }
}

/// As a part of a path or a query (RFC 3986).
fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_word_is_escaped() {
        assert_eq!(encode(r#"{"name":["^/a.b$"]}"#), "%7B%22name%22%3A%5B%22%5E%2Fa.b%24%22%5D%7D");
    }
}
