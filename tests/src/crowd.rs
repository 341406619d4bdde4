//! Thousands of connections to a service of [`Nginx`](crate::Nginx) that are held, and talk in turn.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::resource::{Resource, getrlimit};
use tokio::io::BufReader;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use crate::namespace::Namespace;
use crate::probe::within;
use crate::visits::ask;

/// How many connect at once: no more than a listener keeps waiting.
const AT_ONCE: usize = 64;
/// How long one may take to connect, and an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Open files for all else than the connections.
const FILES: u64 = 256;

/// Connections of one client, all on one thread.
#[derive(Debug)]
pub struct Crowd {
    seen: Arc<Mutex<CrowdCount>>,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

/// What became of a [`Crowd`].
#[derive(Debug, Clone, Default)]
pub struct CrowdCount {
    /// Connections that were made.
    pub open: usize,
    /// Answers that were heard.
    pub talks: usize,
    /// The longest that any of them was without one.
    pub silent: Duration,
    /// Those that broke, or were never made.
    pub broken: Vec<String>,
}

impl Crowd {
    /// Opens so many connections to one place, waits until all are there, and lets each ask for the page once in `every`.
    pub fn start(client: &Namespace, to: SocketAddr, count: usize, every: Duration) -> Result<Self> {
        let (files, (limit, _)) = (u64::try_from(count)? + FILES, getrlimit(Resource::RLIMIT_NOFILE)?);
        ensure!(limit >= files, "{files} open files are needed, and {limit} allowed: raise it by ulimit -n");
        let (seen, (stop, stopped)) = (Arc::new(Mutex::new(CrowdCount::default())), watch::channel(false));
        let (client, of_thread) = (client.clone(), Arc::clone(&seen));
        let thread = thread::spawn(move || {
            let held = client.inside(|| {
                Builder::new_current_thread()
                    .enable_all()
                    .build()?
                    .block_on(hold(to, count, every, &of_thread, stopped));
                Ok(())
            });
            if let Err(err) = held {
                lock(&of_thread).broken.push(format!("{err:#}"));
            }
        });
        let crowd = Self { seen, stop, thread };
        within(Duration::from_secs(120), "all connections are there", || {
            let seen = crowd.seen();
            if let Some(broken) = seen.broken.first() {
                return Ok(Err(anyhow!("{broken}; {} are there", seen.open)));
            }
            ensure!(seen.open == count, "{} of {count}", seen.open);
            Ok(Ok(()))
        })??;
        Ok(crowd)
    }

    /// What is known by now.
    pub fn seen(&self) -> CrowdCount {
        lock(&self.seen).clone()
    }

    /// Lets each talk once more, and ends them.
    pub fn stop(self) -> Result<CrowdCount> {
        self.stop.send_replace(true);
        self.thread.join().map_err(|_| anyhow!("the crowd panicked"))?;
        Ok(lock(&self.seen).clone())
    }
}

fn lock(seen: &Mutex<CrowdCount>) -> MutexGuard<'_, CrowdCount> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn hold(
    to: SocketAddr,
    count: usize,
    every: Duration,
    seen: &Arc<Mutex<CrowdCount>>,
    stopped: watch::Receiver<bool>,
) {
    let connecting = Arc::new(Semaphore::new(AT_ONCE));
    let one = |number| {
        let (seen, connecting, stopped) = (Arc::clone(seen), Arc::clone(&connecting), stopped.clone());
        async move {
            let member = Member { to, every, seen: &seen, stopped };
            if let Err(err) = member.hold(&connecting).await {
                lock(&seen).broken.push(format!("connection {number}: {err:#}"));
            }
        }
    };
    let mut members = tokio::task::JoinSet::new();
    (0..count).for_each(|number| drop(members.spawn(one(number))));
    members.join_all().await;
}

struct Member<'a> {
    to: SocketAddr,
    every: Duration,
    seen: &'a Mutex<CrowdCount>,
    stopped: watch::Receiver<bool>,
}

impl Member<'_> {
    async fn hold(mut self, connecting: &Semaphore) -> Result<()> {
        let permit = connecting.acquire().await?;
        let connected =
            timeout(PATIENCE, TcpStream::connect(self.to)).await.context("not connected in time")??;
        connected.set_nodelay(true)?;
        let port = connected.local_addr()?.port();
        let mut stream = BufReader::with_capacity(512, connected);
        let mut heard = Instant::now();
        talk(&mut stream).await.with_context(|| format!("port {port}, at once"))?;
        drop(permit);
        lock(self.seen).open += 1;
        loop {
            let stopped = tokio::select! {
                () = sleep(self.every) => false,
                _ = self.stopped.wait_for(|stopped| *stopped) => true,
            };
            talk(&mut stream).await.with_context(|| format!("port {port}"))?;
            let mut seen = lock(self.seen);
            seen.talks += 1;
            seen.silent = seen.silent.max(heard.elapsed());
            heard = Instant::now();
            if stopped {
                return Ok(());
            }
        }
    }
}

/// Asks for the page.
async fn talk(stream: &mut BufReader<TcpStream>) -> Result<()> {
    let (_page, ends) =
        timeout(PATIENCE, ask(stream, "/held", false)).await.context("no answer in time")??;
    ensure!(!ends, "the server ends it");
    Ok(())
}
