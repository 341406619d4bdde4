//! Datagrams: a thread that does nothing else, and answers by itself whatever needs no waiting, a batch at a time.
//!
//! It waits in the call that reads. Waiting for readiness first, as runtimes do, costs a query more than the answer does
//! (docs/measured.md).

use super::{Reaction, Shared, mmsg::Batch};
use crate::{Error, Transport, counters::Counts};
use rand::{SeedableRng, rngs::SmallRng};
use socket2::SockRef;
use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::{runtime::Handle, sync::oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

/// Errors in a row after which a socket is taken for broken.
const MAX_ERRORS: usize = 100;
/// How long the thread waits for a query before it sees whether it is to end, should the datagram that wakes it be lost.
const LOOK: Duration = Duration::from_secs(1);
/// How long it sleeps between batches when many queries come, so that they come together; the kernel adds 50 µs (timer slack,
/// prctl(2)).
const NAP: Duration = Duration::from_micros(80);
/// What a query may have to wait for that.
const NAP_AT_MOST: Duration = Duration::from_micros(130);
/// Queries that have to be expected meanwhile: fewer are not worth it.
const WORTH_A_NAP: u32 = 5;
/// Stack of the thread, in octets: its buffers are on the heap.
const STACK: usize = 256 << 10;

/// Answers datagrams until cancelled, and then those that wait for an upstream.
pub(super) async fn serve(socket: UdpSocket, shared: Shared, cancel: CancellationToken) -> Result<(), Error> {
    socket.set_nonblocking(false).map_err(Error::Socket)?;
    socket.set_read_timeout(Some(LOOK)).map_err(Error::Socket)?;
    let socket = Arc::new(socket);
    let forwarded = TaskTracker::new();
    let ended = Ended::default();
    let serving = Serving {
        socket: Arc::clone(&socket),
        shared,
        forwarded: forwarded.clone(),
        runtime: Handle::current(),
        rng: SmallRng::from_os_rng(),
        ended: Arc::clone(&ended.0),
    };
    let (done, mut outcome) = oneshot::channel();
    thread::Builder::new()
        .name("names".to_owned())
        .stack_size(STACK)
        .spawn(move || drop(done.send(serving.run())))
        .map_err(Error::Socket)?;
    let outcome = tokio::select! {
        outcome = &mut outcome => outcome,
        () = cancel.cancelled() => {
            drop(ended);
            wake(&socket);
            outcome.await
        }
    };
    forwarded.close();
    forwarded.wait().await;
    outcome.unwrap_or_else(|_| Err(Error::Receive(io::Error::other("the thread panicked"))))
}

/// Has the thread end when it is dropped, as it is with the future that waits for it.
#[derive(Default)]
struct Ended(Arc<AtomicBool>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends the socket an empty datagram of its own.
fn wake(socket: &UdpSocket) {
    if let Ok(own) = socket.local_addr() {
        drop(send(socket, &[], own));
    }
}

fn send(socket: &UdpSocket, message: &[u8], client: SocketAddr) -> io::Result<()> {
    SockRef::from(socket).send_to_with_flags(message, &client.into(), libc::MSG_DONTWAIT).map(drop)
}

/// How fast queries come.
struct Pace {
    last: Instant,
    /// Nanoseconds between two queries, of late.
    between: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { last: Instant::now(), between: u64::MAX / 8 }
    }
}

impl Pace {
    /// Notes a batch of so many.
    fn is_worth_a_nap(&mut self, queries: usize) -> bool {
        let now = Instant::now();
        let since = now.duration_since(self.last).as_nanos().min(u128::from(u32::MAX)) as u64;
        self.last = now;
        self.between = (self.between * 7 + since / queries.max(1) as u64) / 8;
        self.between * u64::from(WORTH_A_NAP) < NAP_AT_MOST.as_nanos() as u64
    }
}

struct Serving {
    socket: Arc<UdpSocket>,
    shared: Shared,
    /// Queries that wait for an upstream; the forwarder bounds their number.
    forwarded: TaskTracker,
    runtime: Handle,
    rng: SmallRng,
    ended: Arc<AtomicBool>,
}

impl Serving {
    fn run(mut self) -> Result<(), Error> {
        let mut batch = Batch::new();
        let mut errors = 0;
        let mut pace = Pace::default();
        while !self.ended.load(Ordering::Relaxed) {
            match batch.receive(self.socket.as_fd()) {
                Ok(()) => {
                    errors = 0;
                    self.answer(&mut batch);
                    batch.send(self.socket.as_fd());
                    if pace.is_worth_a_nap(batch.len()) {
                        thread::sleep(NAP);
                    }
                }
                Err(err) if matches!(err.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(err) if errors >= MAX_ERRORS => return Err(Error::Receive(err)),
                Err(err) => {
                    debug!(%err, "datagrams could not be read");
                    errors += 1;
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, batch: &mut Batch) {
        let mut counts = Counts::default();
        batch.each(|message, client, out| {
            // Of our own: see [`wake`].
            if message.is_empty() {
                return 0;
            }
            counts.udp += 1;
            self.answer_one(message, client, &mut counts, out)
        });
        self.shared.view.counters.add(&counts);
    }

    fn answer_one(
        &mut self,
        message: &[u8],
        client: SocketAddr,
        counts: &mut Counts,
        out: &mut [u8],
    ) -> usize {
        let (shared, rng) = (&self.shared, &mut self.rng);
        if !shared.view.is_for(client.ip()) {
            counts.dropped += 1;
            return 0;
        }
        match shared.react(message, Transport::Udp, client.ip(), rng, counts, out) {
            Reaction::Answer(len) => len,
            Reaction::Nothing => 0,
            Reaction::Ask(group, permit) => {
                let (shared, socket) = (self.shared.clone(), Arc::clone(&self.socket));
                let message = Box::<[u8]>::from(message);
                let asking = async move {
                    let _permit = permit;
                    let reply = shared.ask(group, &message, Transport::Udp).await;
                    if let Err(err) = send(&socket, &reply, client) {
                        debug!(%client, %err, "an answer could not be sent");
                    }
                };
                self.forwarded.spawn_on(asking, &self.runtime);
                0
            }
        }
    }
}
