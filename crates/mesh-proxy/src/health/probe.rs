//! One check, once.

use super::plan::{Check, Probe};
use crate::{Error, connect::Connect, proxy_protocol};
use bytes::Bytes;
use http::{
    Request,
    header::{CONNECTION, HOST, USER_AGENT},
};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt, net::TcpStream, select, time::timeout};

/// Runs a check; the error says why the endpoint failed it.
pub(super) async fn probe(check: &Check, connect: &dyn Connect) -> Result<(), Error> {
    let once = async {
        let mut socket = connect.connect(check.network, check.addr).await?;
        if let Some(version) = check.proxy_protocol {
            socket.write_all(&proxy_protocol::own(version)).await?;
        }
        match &check.probe {
            Probe::Tcp => Ok(()),
            Probe::Http { path, host } => get(socket, path, host).await,
        }
    };
    timeout(check.timeout, once).await.map_err(|_| Error::Timeout(check.timeout))?
}

/// Only the head is awaited: a body is the replica's to send and nobody's to read.
async fn get(socket: TcpStream, path: &str, host: &str) -> Result<(), Error> {
    let request = Request::get(path)
        .header(HOST, host)
        .header(USER_AGENT, "meshd-health")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    let response = sender.send_request(request);
    tokio::pin!(connection, response);
    let response = select! {
        biased;
        response = response.as_mut() => response?,
        ended = connection => {
            ended?;
            // The connection may end with the response that it brought.
            response.await?
        }
    };
    let status = response.status();
    if status.is_success() || status.is_redirection() { Ok(()) } else { Err(Error::Status(status.as_u16())) }
}
