//! Visitors of web servers, who know of each connection which server it was with, and what became of it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::time::{sleep, timeout};

use crate::namespace::Namespace;
use crate::probe::within;

/// Visitors that keep their connections, of each address; there is one more whose connections have one request each.
const KEEP: usize = 3;
/// The pause between two requests.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a connection, or an answer, may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Visitors of one client, all on one thread.
#[derive(Debug)]
pub struct Visits {
    shared: Arc<Shared>,
    thread: JoinHandle<Result<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    over: Mutex<Vec<Visit>>,
}

/// A connection.
#[derive(Debug, Clone)]
pub struct Visit {
    /// Where to.
    pub to: SocketAddr,
    /// When it was begun.
    pub began: Instant,
    /// How long its first answer took, connecting included.
    pub first: Option<Duration>,
    /// When it ended.
    pub ended: Instant,
    /// The page of its first answer: the server's name, by which it is known.
    pub server: Option<String>,
    /// How many requests were answered.
    pub answers: usize,
    /// Why it ended before either side said that it would.
    pub failed: Option<String>,
}

impl Visits {
    /// Begins them, and waits until there were some at each address.
    pub fn start(client: &Namespace, to: &[SocketAddr]) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (client, of_thread, places) = (client.clone(), Arc::clone(&shared), to.to_vec());
        let thread = thread::spawn(move || {
            client.inside(|| {
                Builder::new_current_thread().enable_all().build()?.block_on(visit_all(&of_thread, &places));
                Ok(())
            })
        });
        let visits = Self { shared, thread };
        within(Duration::from_secs(20), "there are visits", || {
            let over = visits.over();
            ensure!(to.iter().all(|to| over.iter().any(|visit| visit.to == *to)), "{over:?}");
            Ok(())
        })?;
        Ok(visits)
    }

    /// Those that are over by now.
    pub fn over(&self) -> Vec<Visit> {
        self.shared.over.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends them after the answers that are under way; all there were.
    pub fn stop(self) -> Result<VisitCount> {
        self.shared.stop.store(true, Relaxed);
        self.thread.join().map_err(|_| anyhow!("a visitor panicked"))??;
        Ok(VisitCount(std::mem::take(&mut *self.shared.over.lock().unwrap_or_else(PoisonError::into_inner))))
    }
}

/// All [`Visits`] that there were.
#[derive(Debug, Clone)]
pub struct VisitCount(pub Vec<Visit>);

impl VisitCount {
    /// Those that failed.
    pub fn failed(&self) -> impl Iterator<Item = &Visit> {
        self.0.iter().filter(|visit| visit.failed.is_some())
    }

    /// Fails if any did that may not.
    pub fn none_failed_but(&self, may: impl Fn(&Visit) -> bool) -> Result<()> {
        let failed: Vec<_> = self.failed().filter(|visit| !may(visit)).collect();
        ensure!(failed.is_empty(), "{self}, {} may not: {:#?}", failed.len(), &failed[..failed.len().min(5)]);
        Ok(())
    }

    /// The longest time to a first answer of those that were begun at these times.
    pub fn slowest(&self, begun: impl Fn(Instant) -> bool) -> Duration {
        let begun = self.0.iter().filter(|visit| begun(visit.began));
        begun.filter_map(|visit| visit.first).max().unwrap_or_default()
    }
}

impl fmt::Display for VisitCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answers: usize = self.0.iter().map(|visit| visit.answers).sum();
        write!(f, "{} connections with {answers} answers, {} failed", self.0.len(), self.failed().count())
    }
}

/// A server that was killed, not drained.
#[derive(Debug)]
pub struct Killed {
    /// Its name, which is its page.
    pub name: String,
    /// When.
    pub at: Instant,
    /// When the manager said that it is gone.
    pub known: Instant,
}

/// How long nodes may take to follow what the manager knows.
const FOLLOWS: Duration = Duration::from_millis(250);

impl Killed {
    /// Whether a visit was there when it was killed, or was sent there before that was known. Those that never had an answer
    /// can't tell whom they met.
    pub fn was_met_by(&self, visit: &Visit) -> bool {
        let open = visit.ended >= self.at && visit.began <= self.known + FOLLOWS;
        open && visit.server.as_ref().is_none_or(|server| *server == self.name)
    }
}

async fn visit_all(shared: &Arc<Shared>, places: &[SocketAddr]) {
    let mut visitors = tokio::task::JoinSet::new();
    for to in places {
        for number in 0..=KEEP {
            let (shared, to) = (Arc::clone(shared), *to);
            visitors.spawn(async move {
                while !shared.stop.load(Relaxed) {
                    let visit = shared.visit(to, number < KEEP).await;
                    shared.over.lock().unwrap_or_else(PoisonError::into_inner).push(visit);
                    sleep(PAUSE).await;
                }
            });
        }
    }
    visitors.join_all().await;
}

impl Shared {
    async fn visit(&self, to: SocketAddr, keep: bool) -> Visit {
        let began = Instant::now();
        let mut visit =
            Visit { to, began, first: None, ended: began, server: None, answers: 0, failed: None };
        visit.failed = self.stay(&mut visit, keep).await.err().map(|err| format!("{err:#}"));
        visit.ended = Instant::now();
        visit
    }

    async fn stay(&self, visit: &mut Visit, keep: bool) -> Result<()> {
        let connected =
            timeout(PATIENCE, TcpStream::connect(visit.to)).await.context("not connected in time")?;
        let mut stream = BufReader::new(connected.context("connect")?);
        stream.get_ref().set_nodelay(true)?;
        loop {
            let last = !keep || self.stop.load(Relaxed);
            let asked = timeout(PATIENCE, ask(&mut stream, "/", last)).await.context("no answer in time")?;
            let (page, ends) = asked.context("ask")?;
            visit.answers += 1;
            if visit.answers == 1 {
                visit.first = Some(visit.began.elapsed());
                visit.server = Some(page);
            }
            if ends || last {
                return Ok(());
            }
            sleep(PAUSE).await;
        }
    }
}

/// The page, and whether the server says that it is the last one of this connection.
pub(crate) async fn ask(stream: &mut BufReader<TcpStream>, path: &str, last: bool) -> Result<(String, bool)> {
    let connection = if last { "close" } else { "keep-alive" };
    let request = format!("GET {path} HTTP/1.1\r\nHost: visited\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let status = line(stream).await?;
    ensure!(status.contains(" 200 "), "{status}");
    let (mut length, mut ends) = (0, false);
    loop {
        let header = line(stream).await?.to_lowercase();
        match header.split_once(": ") {
            Some(("content-length", value)) => length = value.parse()?,
            Some(("connection", value)) => ends = value == "close",
            None if header.is_empty() => break,
            _ => {}
        }
    }
    let mut page = vec![0; length];
    stream.read_exact(&mut page).await?;
    Ok((String::from_utf8(page)?.trim_end().to_owned(), ends))
}

async fn line(stream: &mut BufReader<TcpStream>) -> Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        bail!("closed");
    }
    Ok(line.trim_end().to_owned())
}
