//! One query to one upstream.

use super::{Sockets, Upstream, reply};
use crate::{
    query::Query,
    wire::{DNSSEC_OK, EDNS_UDP_LEN, HEADER_LEN, flag, rtype},
};
use rand::Rng;
use std::{io, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UdpSocket,
    time::timeout,
};

/// Why an upstream gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// It is silent.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// It can't be reached.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A query as it goes to upstreams: with a random ID, and letters of random case if that is wanted (draft-vixie-dnsext-dns0x20).
struct Question {
    id: u16,
    message: Vec<u8>,
    /// Its end within the message.
    end: usize,
    exact: bool,
}

/// Asks one upstream over UDP, and again over TCP if the answer was cut. The answer is to the client's question; its ID is
/// not the client's.
pub(crate) async fn exchange(
    upstream: Upstream,
    query: &Query<'_>,
    sockets: &dyn Sockets,
    random_case: bool,
    limit: Duration,
) -> Result<Vec<u8>, Failure> {
    let question = Question::new(query, random_case);
    let late = |_| Failure::Timeout(limit);
    let mut reply = timeout(limit, over_udp(upstream, &question, sockets)).await.map_err(late)??;
    if reply::is_truncated(&reply) {
        // Where TCP is blocked, what there was room for is better than nothing.
        if let Ok(Ok(whole)) = timeout(limit, over_tcp(upstream, &question, sockets)).await {
            reply = whole;
        }
    }
    Ok(reply)
}

/// Asks one upstream over TCP alone.
pub(crate) async fn exchange_over_tcp(
    upstream: Upstream,
    query: &Query<'_>,
    sockets: &dyn Sockets,
    limit: Duration,
) -> Result<Vec<u8>, Failure> {
    let question = Question::new(query, false);
    let reply = timeout(limit, over_tcp(upstream, &question, sockets)).await;
    Ok(reply.map_err(|_| Failure::Timeout(limit))??)
}

impl Question {
    /// The client's question, with EDNS(0) if the client has it, so that the reply suits it as it is. EDNS options are between
    /// two neighbours and not passed on.
    fn new(query: &Query<'_>, random_case: bool) -> Self {
        let id = rand::random();
        let flags =
            query.header.flags & (flag::RECURSION_DESIRED | flag::AUTHENTIC_DATA | flag::CHECKING_DISABLED);
        let additionals = u16::from(query.edns.is_some());
        let mut message = Vec::with_capacity(512);
        for word in [id, flags, 1, 0, 0, additionals] {
            message.extend(word.to_be_bytes());
        }
        message.extend_from_slice(query.question);
        let end = message.len();
        if random_case {
            let mut rng = rand::rng();
            // Behind the name are its root, type and class. A length is below any letter, and stays as it is.
            for octet in message[HEADER_LEN..end - 5].iter_mut().filter(|octet| octet.is_ascii_alphabetic()) {
                *octet ^= if rng.random() { b'a' ^ b'A' } else { 0 };
            }
        }
        if let Some(edns) = query.edns {
            let extended = if edns.dnssec_ok { DNSSEC_OK } else { 0 };
            message.push(0);
            message.extend(rtype::OPT.to_be_bytes());
            message.extend((EDNS_UDP_LEN as u16).to_be_bytes());
            message.extend(extended.to_be_bytes());
            message.extend([0, 0]);
        }
        Self { id, message, end, exact: random_case }
    }

    fn is_answered_by(&self, reply: &[u8]) -> bool {
        reply::answers(reply, self.id, &self.message[HEADER_LEN..self.end], self.exact)
    }
}

/// A socket of its own, and so a random port, for each query; connected, so that the kernel drops what comes from
/// elsewhere and reports a closed port at once.
async fn over_udp(upstream: Upstream, question: &Question, sockets: &dyn Sockets) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::from_std(sockets.udp(&upstream)?)?;
    socket.connect(upstream.address).await?;
    socket.send(&question.message).await?;
    // Some send more than they were allowed to: better to take it than to lose it.
    let mut reply = vec![0; 4096];
    loop {
        let len = socket.recv(&mut reply).await?;
        if question.is_answered_by(&reply[..len]) {
            reply.truncate(len);
            return Ok(reply);
        }
    }
}

async fn over_tcp(upstream: Upstream, question: &Question, sockets: &dyn Sockets) -> io::Result<Vec<u8>> {
    let mut stream = sockets.tcp(&upstream)?.connect(upstream.address).await?;
    let length = (question.message.len() as u16).to_be_bytes();
    stream.write_all(&[&length, &question.message[..]].concat()).await?;
    let mut reply = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut reply).await?;
    if question.is_answered_by(&reply) {
        return Ok(reply);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the answer over TCP is to another question"))
}
