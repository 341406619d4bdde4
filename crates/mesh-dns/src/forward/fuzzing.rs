//! For fuzz targets: what the rest of the world sees only from behind sockets. No part of the interface.

use super::{
    Party, Remembered, Upstream,
    cache::{Cache, CacheKey},
    loops::{Loops, Probed, is_probe},
    reply,
};
use crate::{query::Query, server::tcp, wire::HEADER_LEN};
use futures_util::FutureExt;
use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};
use tokio::io::BufReader;

/// What becomes of an upstream's message.
#[derive(Debug)]
pub struct Relayed {
    /// As the client gets it at once, if it has room for it.
    pub fresh: Vec<u8>,
    /// For how many seconds it may be remembered, if at all.
    pub lifetime: Option<u32>,
    /// As a client gets it later, if it is remembered then.
    pub remembered: Option<Vec<u8>>,
    /// As a client gets it later if nobody else has an answer then.
    pub stale: Option<Vec<u8>>,
}

/// Judges a message of an upstream that was asked this query under this ID; none if it is not believed, or says nothing.
/// `later` is after so many seconds.
pub fn relayed(query: &[u8], id: u16, message: &[u8], exact: bool, later: u64) -> Option<Relayed> {
    let query = Query::parse(query).ok()?;
    if !reply::answers(message, id, query.question, exact) || message.len() <= HEADER_LEN {
        return None;
    }
    let addressed = |mut message: Vec<u8>| {
        reply::address_to(&mut message, query.header, query.question);
        message
    };
    let (cache, key, now) = (Cache::new(2), CacheKey::new(&query, 0), Instant::now());
    cache.put(Party::new(), &key, message, now);
    let later = now + Duration::from_secs(later);
    let mut out = vec![0; message.len()];
    let remembered = match cache.get(&key, &query, later, &mut out) {
        Some(Remembered::Answer(len)) => out.get(..len).map(<[u8]>::to_vec),
        Some(Remembered::Failure) | None => None,
    };
    Some(Relayed {
        fresh: addressed(message.to_vec()),
        lifetime: reply::lifetime(message),
        remembered,
        stale: cache.stale(&key, later).map(addressed),
    })
}

/// The messages of a connection whose octets come in pieces of this length, up to one that is not whole.
pub fn framed(octets: &[u8], piece: usize) -> Vec<Vec<u8>> {
    let mut stream = BufReader::with_capacity(piece, octets);
    let (mut messages, mut message) = (Vec::new(), Vec::new());
    while let Some(Ok(())) = tcp::read(&mut stream, &mut message).now_or_never() {
        messages.push(message.clone());
    }
    messages
}

/// Whether a message looks like a question that tells a loop, and whether it is the one of this number.
pub fn probe(message: &[u8], number: u128) -> (bool, bool) {
    let loops = Loops::default();
    let client = Ipv4Addr::LOCALHOST.into();
    let upstream = Upstream { address: (client, 53).into(), network: None };
    loops.expect(std::iter::once((number, Probed { upstream, asking: Vec::new() })));
    (is_probe(message), loops.note(message, client))
}

/// Under what the answer to a query to the resolvers of a tag is remembered; none if it is no query.
pub fn key(query: &[u8], tag: u64) -> Option<Vec<u8>> {
    Query::parse(query).ok().map(|query| CacheKey::new(&query, tag).octets().to_vec())
}
