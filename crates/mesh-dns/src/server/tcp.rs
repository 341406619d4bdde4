//! Connections (RFC 7766): a task each. Queries that follow each other do not wait for each other: what has to be asked
//! elsewhere is answered when the answer is there.

use super::{Reaction, Shared};
use crate::{Transport, counters::Counts, wire::MAX_MESSAGE};
use rand::{SeedableRng, rngs::SmallRng};
use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

/// Connections at once, and of one client; one more is closed as soon as it is accepted.
const MAX_CONNECTIONS: usize = 512;
const MAX_OF_ONE: usize = 64;
/// Queries of one connection that are under way, or whose answers wait to be taken, before more are read.
const MAX_PIPELINED: usize = 64;
/// Octets of answers of one connection that wait to be taken, at most: any answer has room.
const MAX_WAITING: usize = 2 * MAX_MESSAGE;
/// How long a client that has just connected may take for its query when the server is told to end: it does not expect to be
/// closed before an answer. For as long at most, queries that have come meanwhile are answered.
const LAST_QUERY: Duration = Duration::from_secs(1);
/// How long it may take until what has come is seen.
const ALREADY_HERE: Duration = Duration::from_millis(5);
/// How long a client may take to close in turn, and how many octets it may send. What it sends until then is not read; were it left in the queue, the kernel
/// would reset the connection, and answers on their way to the client would be lost.
const LINGER: Duration = Duration::from_secs(1);
const LINGERING: u64 = 128 << 10;
/// How long no connection is accepted after one could not be, for want of file descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

thread_local! {
    /// Of whichever connection is at work on the thread: an answer is made without a pause.
    static ROOM: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_MESSAGE]);
}

/// Answers on connections until cancelled, and then what was asked on them.
pub(super) async fn serve(
    listener: TcpListener,
    shared: Shared,
    cancel: CancellationToken,
) -> Result<(), crate::Error> {
    let mut connections = Connections::default();
    while let Some(accepted) = cancel.run_until_cancelled(listener.accept()).await {
        connections.reap();
        match accepted {
            Ok((_, client)) if connections.is_full(client.ip()) => {
                shared.view.counters.add(&Counts { limited: 1, ..Counts::default() });
                debug!(%client, "too many connections: closed");
            }
            Ok((_, client)) if !shared.view.is_for(client.ip()) => {
                shared.view.counters.add(&Counts { dropped: 1, ..Counts::default() });
            }
            Ok((stream, client)) => connections.start(stream, client, &shared, &cancel),
            Err(err) => {
                warn!(%err, "no connection can be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    while connections.tasks.join_next().await.is_some() {}
    Ok(())
}

/// Connections, and how many each client has.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<IpAddr>,
    of_one: HashMap<IpAddr, usize>,
}

impl Connections {
    fn is_full(&self, client: IpAddr) -> bool {
        self.tasks.len() >= MAX_CONNECTIONS
            || self.of_one.get(&client).is_some_and(|count| *count >= MAX_OF_ONE)
    }

    fn start(&mut self, stream: TcpStream, client: SocketAddr, shared: &Shared, cancel: &CancellationToken) {
        *self.of_one.entry(client.ip()).or_default() += 1;
        let (shared, cancel) = (shared.clone(), cancel.clone());
        self.tasks.spawn(async move {
            if let Err(err) = converse(stream, client.ip(), &shared, &cancel).await {
                debug!(%client, %err, "connection ended");
            }
            client.ip()
        });
    }

    fn reap(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            match ended {
                Ok(client) => {
                    if let Some(count) = self.of_one.get_mut(&client) {
                        *count -= 1;
                        if *count == 0 {
                            self.of_one.remove(&client);
                        }
                    }
                }
                Err(err) => error!(%err, "a connection's task failed"),
            }
        }
    }
}

async fn converse(
    stream: TcpStream,
    client: IpAddr,
    shared: &Shared,
    cancel: &CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let (answers, to_send) = mpsc::channel(MAX_PIPELINED);
    let answers = Answers { answers, room: Arc::new(Semaphore::new(MAX_WAITING)) };
    let mut conversation = Conversation { client, shared, answers, forwarded: JoinSet::new() };
    let reading = async {
        let read = conversation.read(&mut reader, cancel).await;
        // What is under way is answered still.
        while conversation.forwarded.join_next().await.is_some() {}
        drop(conversation);
        read
    };
    // A client that takes no answers is not waited for.
    tokio::try_join!(reading, send(writer, to_send, shared.idle))?;
    let mut unread = tokio::io::sink();
    timeout(LINGER, tokio::io::copy(&mut reader.take(LINGERING), &mut unread))
        .await
        .unwrap_or(Ok(0))
        .map(drop)
}

/// What a client has asked.
struct Conversation<'s> {
    client: IpAddr,
    shared: &'s Shared,
    answers: Answers,
    forwarded: JoinSet<()>,
}

/// Answers on their way to a client, no more than there is room for.
#[derive(Clone)]
struct Answers {
    answers: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
}

/// An answer, and the room that it takes until it is sent.
type Waiting = (Vec<u8>, OwnedSemaphorePermit);

impl Answers {
    /// False if the client is gone.
    async fn send(&self, answer: Vec<u8>) -> bool {
        let room = Arc::clone(&self.room).acquire_many_owned(answer.len() as u32).await;
        let Ok(room) = room else { return false };
        self.answers.send((answer, room)).await.is_ok()
    }
}

impl Conversation<'_> {
    /// Reads queries until the client closes, is idle or sends what can't be answered. Cancelled, it ends where a client
    /// must expect it to: between an answer and the next query (RFC 7766, 6.2.3), not before its first, and not before what
    /// has come is answered.
    async fn read(
        &mut self,
        stream: &mut BufReader<OwnedReadHalf>,
        cancel: &CancellationToken,
    ) -> io::Result<()> {
        let mut rng = SmallRng::from_os_rng();
        let mut query = Vec::new();
        let mut asked_before = false;
        let mut end = None;
        loop {
            if cancel.run_until_cancelled(self.next(stream)).await.is_none() {
                let end = *end.get_or_insert_with(|| Instant::now() + LAST_QUERY);
                let patience = if asked_before { end.min(Instant::now() + ALREADY_HERE) } else { end };
                if Instant::now() > end || timeout_at(patience, stream.fill_buf()).await.is_err() {
                    return Ok(());
                }
            }
            let idle = Instant::now() + self.shared.idle;
            match timeout_at(end.map_or(idle, |end| idle.min(end)), read(stream, &mut query)).await {
                Ok(Ok(())) => {}
                Ok(Err(err)) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Ok(Err(err)) => return Err(err),
                Err(_) => return Ok(()),
            }
            asked_before = true;
            if !self.answer(&query, &mut rng).await {
                return Ok(());
            }
        }
    }

    /// Waits for a query, and for longer than a client may be idle if it waits for answers itself.
    async fn next(&mut self, stream: &mut BufReader<OwnedReadHalf>) {
        while timeout(self.shared.idle, stream.fill_buf()).await.is_err() {
            while self.forwarded.try_join_next().is_some() {}
            if self.forwarded.is_empty() {
                return;
            }
        }
    }

    /// Answers a query, or has it asked elsewhere; false if it can't be answered.
    async fn answer(&mut self, message: &[u8], rng: &mut SmallRng) -> bool {
        let mut counts = Counts { tcp: 1, ..Counts::default() };
        let (shared, client) = (self.shared, self.client);
        let (reaction, reply) = ROOM.with_borrow_mut(|room| {
            let reaction = shared.react(message, Transport::Tcp, client, rng, &mut counts, room);
            let len = if let Reaction::Answer(len) = reaction { len } else { 0 };
            (reaction, room[..len].to_vec())
        });
        shared.view.counters.add(&counts);
        match reaction {
            Reaction::Nothing => false,
            Reaction::Answer(_) => self.answers.send(reply).await,
            Reaction::Ask(group, permit) => {
                while self.forwarded.len() >= MAX_PIPELINED {
                    self.forwarded.join_next().await;
                }
                let (shared, answers) = (shared.clone(), self.answers.clone());
                let message = Box::<[u8]>::from(message);
                self.forwarded.spawn(async move {
                    let _permit = permit;
                    let reply = shared.ask(group, &message, Transport::Tcp).await;
                    // The client may be gone.
                    answers.send(reply).await;
                });
                true
            }
        }
    }
}

/// Reads a message behind its length (RFC 7766, 8).
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin), query: &mut Vec<u8>) -> io::Result<()> {
    let len = stream.read_u16().await?;
    query.resize(len.into(), 0);
    stream.read_exact(query).await.map(drop)
}

/// Sends answers, those that are ready in one piece (RFC 7766, 8: the length goes along with its message).
async fn send(
    mut stream: OwnedWriteHalf,
    mut answers: mpsc::Receiver<Waiting>,
    idle: Duration,
) -> io::Result<()> {
    let mut octets = Vec::new();
    while let Some(first) = answers.recv().await {
        octets.clear();
        let mut next = Some(first);
        while let Some((answer, _room)) = next {
            octets.extend((answer.len() as u16).to_be_bytes());
            octets.extend(answer);
            next = if octets.len() < MAX_MESSAGE { answers.try_recv().ok() } else { None };
        }
        timeout(idle, stream.write_all(&octets)).await??;
    }
    Ok(())
}
