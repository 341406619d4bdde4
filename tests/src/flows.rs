//! Datagrams that are to come back, again and again: of flows that last, and of ever new ones.

use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use crate::namespace::Namespace;
use crate::probe::within;

/// When a datagram is sent again.
const AGAIN: Duration = Duration::from_millis(300);
/// How often, before the exchange has failed. Its time covers until a host that is lost is known to be.
const TRIES: u32 = 20;
/// The pause between two exchanges of a flow.
const PAUSE: Duration = Duration::from_millis(10);

/// Clients of an [`Echo`](crate::Echo) of datagrams; for each address one whose flow lasts and one that begins a new one for each
/// exchange.
#[derive(Debug)]
pub struct Flows {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    exchanged: AtomicUsize,
    retries: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

/// What became of all [`Flows`].
#[derive(Debug, Clone)]
pub struct FlowCount {
    /// Exchanges that were answered.
    pub exchanged: usize,
    /// Datagrams that were sent again, as no answer had come.
    pub retries: usize,
    /// Exchanges that were never answered.
    pub failed: Vec<String>,
}

impl Flows {
    /// Starts them, and waits until each has had an answer.
    pub fn start(from: &Namespace, to: &[SocketAddr]) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for to in to {
            for lasts in [true, false] {
                let (shared, from, to) = (Arc::clone(&shared), from.clone(), *to);
                threads.push(thread::spawn(move || from.inside(|| shared.run(to, lasts))));
            }
        }
        let flows = Self { shared, threads };
        flows.go_on(flows.threads.len())?;
        Ok(flows)
    }

    /// Lets at least `count` more be exchanged.
    pub fn go_on(&self, count: usize) -> Result<()> {
        let from = self.shared.exchanged.load(Relaxed);
        within(Duration::from_secs(60), "datagrams go on", || {
            let exchanged = self.shared.exchanged.load(Relaxed) - from;
            ensure!(exchanged >= count, "{exchanged} of {count}");
            Ok(())
        })
    }

    /// Ends them after what is under way.
    pub fn stop(self) -> Result<FlowCount> {
        self.shared.stop.store(true, Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| anyhow!("a flow panicked"))??;
        }
        let failed = std::mem::take(&mut *self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner));
        let [exchanged, retries] =
            [&self.shared.exchanged, &self.shared.retries].map(|count| count.load(Relaxed));
        Ok(FlowCount { exchanged, retries, failed })
    }
}

impl Shared {
    fn run(&self, to: SocketAddr, lasts: bool) -> Result<()> {
        let open = || -> Result<UdpSocket> {
            let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(AGAIN))?;
            Ok(socket)
        };
        let mut socket = open()?;
        for number in 0u32.. {
            if self.stop.load(Relaxed) {
                break;
            }
            if !lasts {
                socket = open()?;
            }
            self.exchange(&socket, to, number, lasts);
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn exchange(&self, socket: &UdpSocket, to: SocketAddr, number: u32, lasts: bool) {
        let (began, said) = (Instant::now(), number.to_be_bytes());
        for attempt in 0..TRIES {
            self.retries.fetch_add(usize::from(attempt > 0), Relaxed);
            let _ = socket.send_to(&said, to);
            let mut heard = [0; 8];
            // What comes late answers an earlier attempt, and is passed over.
            while let Ok((length, from)) = socket.recv_from(&mut heard) {
                if from == to && heard[..length] == said {
                    self.exchanged.fetch_add(1, Relaxed);
                    return;
                }
            }
        }
        let what = if lasts { "lasting" } else { "new" };
        let failed = format!("{to}, {what} flow, number {number}: no answer in {:?}", began.elapsed());
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).push(failed);
    }
}

impl FlowCount {
    /// Fails if any exchange did.
    pub fn none_failed(&self) -> Result<()> {
        ensure!(self.failed.is_empty(), "{self}: {:#?}", self.failed);
        Ok(())
    }
}

impl fmt::Display for FlowCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { exchanged, retries, failed } = self;
        write!(f, "{exchanged} datagrams answered, {retries} sent again, {} failed", failed.len())
    }
}
