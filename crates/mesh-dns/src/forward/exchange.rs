//! One query to one upstream.

use super::reply;
use crate::{
    query::Query,
    wire::{DNSSEC_OK, EDNS_UDP_LEN, flag, rtype},
};
use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

/// Why an upstream gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It is silent.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// It can't be reached.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Asks one upstream over UDP, and again over TCP if the answer was cut. The answer is addressed to the client.
pub(super) async fn exchange(
    upstream: SocketAddr,
    query: &Query<'_>,
    limit: Duration,
) -> Result<Vec<u8>, Failure> {
    let id = rand::random();
    let message = question_to_upstream(id, query);
    let late = |_| Failure::Timeout(limit);
    let mut reply = timeout(limit, over_udp(upstream, id, &message, query)).await.map_err(late)??;
    if reply::is_truncated(&reply) {
        // Where TCP is blocked, what there was room for is better than nothing.
        if let Ok(Ok(whole)) = timeout(limit, over_tcp(upstream, id, &message, query)).await {
            reply = whole;
        }
    }
    reply::address_to(&mut reply, query.header, query.question);
    Ok(reply)
}

/// The client's question under another ID, with EDNS(0) if the client has it, so that the reply suits it as it is.
/// EDNS options are between two neighbours and not passed on.
fn question_to_upstream(id: u16, query: &Query<'_>) -> Vec<u8> {
    let flags =
        query.header.flags & (flag::RECURSION_DESIRED | flag::AUTHENTIC_DATA | flag::CHECKING_DISABLED);
    let additionals = u16::from(query.edns.is_some());
    let mut message = Vec::with_capacity(512);
    for word in [id, flags, 1, 0, 0, additionals] {
        message.extend(word.to_be_bytes());
    }
    message.extend_from_slice(query.question);
    if let Some(edns) = query.edns {
        let extended = if edns.dnssec_ok { DNSSEC_OK } else { 0 };
        message.push(0);
        message.extend(rtype::OPT.to_be_bytes());
        message.extend((EDNS_UDP_LEN as u16).to_be_bytes());
        message.extend(extended.to_be_bytes());
        message.extend([0, 0]);
    }
    message
}

/// A socket of its own, and so a random port, for each query; connected, so that the kernel drops what comes from
/// elsewhere and reports a closed port at once.
async fn over_udp(upstream: SocketAddr, id: u16, message: &[u8], query: &Query<'_>) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(message).await?;
    // Some send more than they were allowed to: better to take it than to lose it.
    let mut reply = vec![0; 4096];
    loop {
        let len = socket.recv(&mut reply).await?;
        if reply::answers(&reply[..len], id, query) {
            reply.truncate(len);
            return Ok(reply);
        }
    }
}

async fn over_tcp(upstream: SocketAddr, id: u16, message: &[u8], query: &Query<'_>) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    stream.write_all(&[&(message.len() as u16).to_be_bytes(), message].concat()).await?;
    let mut reply = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut reply).await?;
    if reply::answers(&reply, id, query) {
        return Ok(reply);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the answer over TCP is to another question"))
}
