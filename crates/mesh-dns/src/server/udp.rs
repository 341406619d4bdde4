//! Datagrams: one loop, which answers by itself whatever needs no waiting.

use super::Shared;
use crate::{
    Error, Forwarder, Outcome, Table, Transport, answer,
    forward::without_records,
    query::Query,
    wire::{EDNS_UDP_LEN, Rcode},
};
use arc_swap::ArcSwap;
use rand::{SeedableRng, rngs::SmallRng};
use std::{io, net::SocketAddr, sync::Arc};
use tokio::{net::UdpSocket, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

/// The longest query that is read; EDNS options included, none is nearly as long.
const MAX_QUERY: usize = 4096;
/// Datagrams that are handled before others on the thread get their turn.
const BATCH: usize = 64;
/// Errors in a row after which a socket is taken for broken.
const MAX_ERRORS: usize = 100;

/// Answers datagrams until cancelled, and then those that wait for an upstream.
pub(super) async fn serve(socket: UdpSocket, shared: Shared, cancel: CancellationToken) -> Result<(), Error> {
    let mut serving = Serving {
        socket: Arc::new(socket),
        forwarder: shared.forwarder,
        forwarded: JoinSet::new(),
        rng: SmallRng::from_os_rng(),
        errors: 0,
    };
    let mut query = [0; MAX_QUERY];
    let mut out = [0; EDNS_UDP_LEN];
    while let Some(readable) = cancel.run_until_cancelled(serving.socket.readable()).await {
        readable.map_err(Error::Receive)?;
        let more = serving.batch(&shared.table, &mut query, &mut out)?;
        serving.reap();
        if more {
            tokio::task::yield_now().await;
        }
    }
    while serving.forwarded.join_next().await.is_some() {}
    Ok(())
}

struct Serving {
    socket: Arc<UdpSocket>,
    forwarder: Arc<Forwarder>,
    /// Queries that wait for an upstream; the forwarder bounds their number.
    forwarded: JoinSet<()>,
    rng: SmallRng,
    errors: usize,
}

impl Serving {
    /// Handles what is there, up to a batch; returns whether there may be more.
    fn batch(&mut self, table: &ArcSwap<Table>, query: &mut [u8], out: &mut [u8]) -> Result<bool, Error> {
        for _ in 0..BATCH {
            let (len, client) = match self.socket.try_recv_from(query) {
                Ok(received) => received,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(err) if self.errors >= MAX_ERRORS => return Err(Error::Receive(err)),
                Err(err) => {
                    debug!(%err, "a datagram could not be read");
                    self.errors += 1;
                    continue;
                }
            };
            self.errors = 0;
            // Loaded for each: whoever asks after a change must not be told what was before it.
            match answer(&table.load(), &query[..len], Transport::Udp, &mut self.rng, out) {
                Outcome::Answer(len) => send(&self.socket, &out[..len], client),
                Outcome::Forward => self.forward(&query[..len], client),
                Outcome::Drop => {}
            }
        }
        Ok(true)
    }

    fn forward(&mut self, message: &[u8], client: SocketAddr) {
        let Ok(query) = Query::parse(message) else { return };
        let forwarder = self.forwarder.clone();
        if let Some(reply) = forwarder.remembered(&query, Transport::Udp) {
            return send(&self.socket, &reply, client);
        }
        let Some(permit) = forwarder.admit() else {
            return send(&self.socket, &without_records(&query, 0, Rcode::ServFail), client);
        };
        let (socket, message) = (self.socket.clone(), Box::<[u8]>::from(message));
        self.forwarded.spawn(async move {
            let _permit = permit;
            if let Ok(query) = Query::parse(&message) {
                send(&socket, &forwarder.resolve(&query, Transport::Udp).await, client);
            }
        });
    }

    fn reap(&mut self) {
        while let Some(ended) = self.forwarded.try_join_next() {
            if let Err(err) = ended {
                error!(%err, "forwarding a query failed");
            }
        }
    }
}

/// An answer for which the socket has no room is lost like any datagram: the client asks again.
fn send(socket: &UdpSocket, message: &[u8], client: SocketAddr) {
    if let Err(err) = socket.try_send_to(message, client) {
        debug!(%client, %err, "an answer could not be sent");
    }
}
