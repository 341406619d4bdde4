//! A node's connection to a manager, held by a test in the place of a daemon that is dead.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_cluster::{Credentials, server_name};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use crate::host::Host;

/// One connection. It answers the manager's pings.
#[derive(Debug)]
pub struct MemberConnection {
    /// For requests. Without it the connection would end by itself.
    pub sender: http2::SendRequest<Full<Bytes>>,
    /// Ends with the connection.
    pub served: JoinHandle<hyper::Result<()>>,
}

impl MemberConnection {
    /// Connects as the node that the credentials are of; call it [inside](crate::Namespace::inside) a host. `window` is how many bytes
    /// of an answer that is not read it has room for.
    pub async fn open(manager: SocketAddr, credentials: &Credentials, window: u32) -> Result<Self> {
        let stream = TcpStream::connect(manager).await?;
        let connector = TlsConnector::from(Arc::new(credentials.client_config()?));
        let tls = connector.connect(server_name(), stream).await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(window)
            .handshake::<_, Full<Bytes>>(TokioIo::new(tls))
            .await?;
        Ok(Self { sender, served: tokio::spawn(connection) })
    }
}

/// What a host's daemon proves itself with.
pub fn credentials(host: &Host) -> Result<Credentials> {
    let path = host.file(format!("{}/node.pem", host.data_dir()));
    Credentials::load(&path)?.context("no certificate")
}
