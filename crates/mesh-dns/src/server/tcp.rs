//! Connections (RFC 7766): a task each, several queries on one, answered in their order.

use super::Shared;
use crate::{
    Error, Outcome, Transport, answer,
    forward::without_records,
    query::Query,
    wire::{MAX_MESSAGE, Rcode},
};
use rand::{SeedableRng, rngs::SmallRng};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

/// Connections at once; one more is closed as soon as it is accepted.
const MAX_CONNECTIONS: usize = 256;
/// How long a client may take for its next query, or to read an answer.
const IDLE: Duration = Duration::from_secs(10);
/// How long a client that has just connected may take for its query when the server is told to end: it does not expect to be
/// closed before an answer.
const LAST_QUERY: Duration = Duration::from_secs(1);
/// How long no connection is accepted after one could not be, for want of file descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers on connections until cancelled, and then what was asked on them.
pub(super) async fn serve(
    listener: TcpListener,
    shared: Shared,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let mut connections = JoinSet::new();
    while let Some(accepted) = cancel.run_until_cancelled(listener.accept()).await {
        while let Some(ended) = connections.try_join_next() {
            if let Err(err) = ended {
                error!(%err, "a connection's task failed");
            }
        }
        match accepted {
            Ok((_, client)) if connections.len() >= MAX_CONNECTIONS => {
                debug!(%client, "too many connections: closed");
            }
            Ok((stream, client)) => {
                let (shared, cancel) = (shared.clone(), cancel.clone());
                connections.spawn(async move {
                    if let Err(err) = converse(stream, &shared, &cancel).await {
                        debug!(%client, %err, "connection ended");
                    }
                });
            }
            Err(err) => {
                warn!(%err, "no connection can be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
    Ok(())
}

/// Answers queries until the client closes, is idle or sends what can't be answered. Cancelled, it ends where a client
/// must expect it to: between an answer and the next query (RFC 7766, 6.2.3), not before its first.
async fn converse(stream: TcpStream, shared: &Shared, cancel: &CancellationToken) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let mut rng = SmallRng::from_os_rng();
    let mut query = Vec::new();
    let mut out = vec![0; 2 + MAX_MESSAGE];
    let mut answered_before = false;
    loop {
        if cancel.run_until_cancelled(timeout(IDLE, stream.fill_buf())).await.is_none() {
            let last = !answered_before && timeout(LAST_QUERY, stream.fill_buf()).await.is_ok();
            if !last {
                return Ok(());
            }
        }
        match timeout(IDLE, read(&mut stream, &mut query)).await {
            Ok(Ok(())) => {}
            Ok(Err(err)) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(err)) => return Err(err),
            Err(_) => return Ok(()),
        }
        let answered = answer(&shared.table.load(), &query, Transport::Tcp, &mut rng, &mut out[2..]);
        let len = match answered {
            Outcome::Answer(len) => len,
            Outcome::Forward => forward(&query, shared, &mut out[2..]).await,
            Outcome::Drop => return Ok(()),
        };
        out[..2].copy_from_slice(&(len as u16).to_be_bytes());
        timeout(IDLE, stream.get_mut().write_all(&out[..2 + len])).await??;
        answered_before = true;
    }
}

async fn read(stream: &mut BufReader<TcpStream>, query: &mut Vec<u8>) -> io::Result<()> {
    let len = stream.read_u16().await?;
    query.resize(len.into(), 0);
    stream.read_exact(query).await.map(drop)
}

async fn forward(message: &[u8], shared: &Shared, out: &mut [u8]) -> usize {
    let Ok(query) = Query::parse(message) else { return 0 };
    let forwarder = &shared.forwarder;
    let reply = match (forwarder.remembered(&query, Transport::Tcp), forwarder.admit()) {
        (Some(reply), _) => reply,
        (None, Some(_permit)) => forwarder.resolve(&query, Transport::Tcp).await,
        (None, None) => without_records(&query, 0, Rcode::ServFail),
    };
    out[..reply.len()].copy_from_slice(&reply);
    reply.len()
}
