//! Requests to a manager by who has no connection to it yet.

use crate::{
    api::Failure,
    wire::client::{CONNECT, exchange, open},
};
use http::Method;
use serde::{Serialize, de::DeserializeOwned};
use std::net::SocketAddr;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// One request over a connection of its own.
pub(crate) async fn ask_once<T: DeserializeOwned>(
    manager: SocketAddr,
    connector: &TlsConnector,
    path: &str,
    body: &impl Serialize,
) -> Result<T, Failure> {
    let cannot = |e: anyhow::Error| Failure::unavailable(format!("cannot join at {manager}: {e:#}"));
    let opened = timeout(CONNECT, open(manager, connector)).await;
    let sender = opened.map_err(|_| cannot(anyhow::anyhow!("no answer")))?.map_err(|e| cannot(e.into()))?;
    let body = serde_json::to_vec(body).map_err(|e| Failure::internal(e.to_string()))?;
    Ok(exchange(sender, Method::POST, path, body).await.map_err(|e| cannot(e.into()))??)
}
