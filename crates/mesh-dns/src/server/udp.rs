//! Datagrams: one loop, which answers by itself whatever needs no waiting, a batch at a time.

use super::{
    Beyond, Shared,
    mmsg::{BATCH, Batch},
};
use crate::{Error, Outcome, Transport, answer, counters::Counts, query::Query};
use rand::{SeedableRng, rngs::SmallRng};
use std::{cell::RefCell, io, net::SocketAddr, os::fd::AsFd, sync::Arc};
use tokio::{io::Interest, net::UdpSocket, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

/// Errors in a row after which a socket is taken for broken.
const MAX_ERRORS: usize = 100;

thread_local! {
    /// Of whichever server is at work on the thread: a batch is handled without a pause.
    static BUFFERS: RefCell<Batch> = RefCell::new(Batch::new());
}

/// Answers datagrams until cancelled, and then those that wait for an upstream.
pub(super) async fn serve(socket: UdpSocket, shared: Shared, cancel: CancellationToken) -> Result<(), Error> {
    let mut serving = Serving {
        socket: Arc::new(socket),
        shared,
        forwarded: JoinSet::new(),
        rng: SmallRng::from_os_rng(),
        errors: 0,
    };
    while let Some(readable) = cancel.run_until_cancelled(serving.socket.readable()).await {
        readable.map_err(Error::Receive)?;
        serving.batch()?;
        serving.reap();
        tokio::task::yield_now().await;
    }
    while serving.forwarded.join_next().await.is_some() {}
    Ok(())
}

struct Serving {
    socket: Arc<UdpSocket>,
    shared: Shared,
    /// Queries that wait for an upstream; the forwarder bounds their number.
    forwarded: JoinSet<()>,
    rng: SmallRng,
    errors: usize,
}

impl Serving {
    /// Handles what is there, up to a batch.
    fn batch(&mut self) -> Result<(), Error> {
        BUFFERS.with_borrow_mut(|batch| match self.receive(batch) {
            Ok(0) => Ok(()),
            Ok(_) => {
                self.errors = 0;
                self.answer(batch);
                batch.send(self.socket.as_fd());
                Ok(())
            }
            Err(err) if self.errors >= MAX_ERRORS => Err(Error::Receive(err)),
            Err(err) => {
                debug!(%err, "datagrams could not be read");
                self.errors += 1;
                Ok(())
            }
        })
    }

    fn receive(&self, batch: &mut Batch) -> io::Result<usize> {
        let mut count = 0;
        let received = self.socket.try_io(Interest::READABLE, || {
            count = batch.receive(self.socket.as_fd())?;
            // Fewer than there was room for: there are no more, and the next call would do nothing but say so. What comes from
            // now on is a new event, which tokio does not take for this one.
            if count < BATCH { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match received {
            Err(err) if err.kind() != io::ErrorKind::WouldBlock => Err(err),
            _ => Ok(count),
        }
    }

    fn answer(&mut self, batch: &mut Batch) {
        let mut counts = Counts::default();
        let (view, rng) = (Arc::clone(&self.shared.view), &mut self.rng);
        let (shared, forwarded, socket) = (&self.shared, &mut self.forwarded, &self.socket);
        batch.each(|message, client, out| {
            counts.udp += 1;
            if shared.forwarder.has_come_back(message) {
                debug!(%client, "a question of ours has come back");
            }
            // Its names are loaded for each: whoever asks after a change must not be told what was before it.
            let outcome =
                view.with_names(client.ip(), |names| answer(names, message, Transport::Udp, rng, out));
            match outcome {
                Outcome::Answer(len) => {
                    counts.answered += 1;
                    len
                }
                Outcome::Forward => forward(shared, forwarded, socket, message, client, &mut counts, out),
                Outcome::Drop => {
                    counts.dropped += 1;
                    0
                }
            }
        });
        view.counters.add(&counts);
    }

    fn reap(&mut self) {
        while let Some(ended) = self.forwarded.try_join_next() {
            if let Err(err) = ended {
                error!(%err, "forwarding a query failed");
            }
        }
    }
}

fn forward(
    shared: &Shared,
    forwarded: &mut JoinSet<()>,
    socket: &Arc<UdpSocket>,
    message: &[u8],
    client: SocketAddr,
    counts: &mut Counts,
    out: &mut [u8],
) -> usize {
    let Ok(query) = Query::parse(message) else { return 0 };
    match shared.beyond(&query, Transport::Udp, client.ip(), counts, out) {
        Beyond::Answer(len) => len,
        Beyond::Ask(group, permit) => {
            let (shared, socket) = (shared.clone(), Arc::clone(socket));
            let message = Box::<[u8]>::from(message);
            forwarded.spawn(async move {
                let _permit = permit;
                let reply = shared.ask(group, &message, Transport::Udp).await;
                if let Err(err) = socket.try_send_to(&reply, client) {
                    debug!(%client, %err, "an answer could not be sent");
                }
            });
            0
        }
    }
}
