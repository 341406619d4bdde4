//! Connections to [`Echo`](crate::Echo) servers that are held while something happens.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, ensure};

use crate::namespace::Namespace;
use crate::probe::within;

/// How long an answer may take. Generous: two cores build and test at once.
const ANSWER: Duration = Duration::from_secs(20);
/// The pause between two rounds.
const PAUSE: Duration = Duration::from_millis(20);

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Lines, through a port of the kernel.
    Kernel,
    /// Lines, through a port of the proxy, after an upgrade.
    Tunnel,
    /// Requests one after the other. Only an answer that says so may be the connection's last one: then comes another.
    KeepAlive,
}

/// Connections of one client, each used again and again by a thread of its own for all.
#[derive(Debug)]
pub struct Conversations {
    rounds: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    broken: Arc<Mutex<Option<Error>>>,
    thread: JoinHandle<()>,
}

impl Conversations {
    /// Opens connections to these places and goes on with all of them until told to stop.
    pub fn start(client: &Namespace, places: &[(Kind, Ipv4Addr, u16)]) -> Result<Self> {
        let client = client.clone();
        let open = |&(kind, ip, port): &(Kind, Ipv4Addr, u16)| Conversation::open(&client, kind, ip, port);
        let mut open = places.iter().map(open).collect::<Result<Vec<_>>>()?;
        let (rounds, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, until) = (Arc::clone(&rounds), Arc::clone(&stop));
        let broken = Arc::<Mutex<_>>::default();
        let tell = Arc::clone(&broken);
        let thread = thread::spawn(move || {
            while !until.load(Relaxed) {
                let round = count.fetch_add(1, Relaxed);
                for conversation in &mut open {
                    if let Err(err) = conversation.exchange(&client, round) {
                        let place = format!("{:?} to {}", conversation.kind, conversation.ip);
                        let err = err.context(format!("{place} broke in round {round}"));
                        return *tell.lock().unwrap_or_else(PoisonError::into_inner) = Some(err);
                    }
                }
                thread::sleep(PAUSE);
            }
        });
        Ok(Self { rounds, stop, broken, thread })
    }

    /// Lets every connection be used at least `count` more times.
    pub fn go_on(&self, count: usize) -> Result<()> {
        let from = self.rounds.load(Relaxed);
        within(Duration::from_secs(60), "conversations go on", || {
            if let Some(broken) = self.broken.lock().map_err(|_| anyhow!("panicked"))?.take() {
                return Ok(Err(broken));
            }
            let rounds = self.rounds.load(Relaxed) - from;
            ensure!(rounds > count, "{rounds} of {count}");
            Ok(Ok(()))
        })?
    }

    /// Ends them; fails with the first that broke.
    pub fn stop(self) -> Result<()> {
        self.stop.store(true, Relaxed);
        ensure!(self.thread.join().is_ok(), "the conversations panicked");
        self.broken.lock().map_err(|_| anyhow!("panicked"))?.take().map_or(Ok(()), Err)
    }
}

#[derive(Debug)]
struct Conversation {
    kind: Kind,
    ip: Ipv4Addr,
    port: u16,
    stream: BufReader<TcpStream>,
}

impl Conversation {
    fn open(client: &Namespace, kind: Kind, ip: Ipv4Addr, port: u16) -> Result<Self> {
        let stream = client.inside(|| Ok(TcpStream::connect((ip, port))?)).context("connect")?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.set_nodelay(true)?;
        let mut conversation = Self { kind, ip, port, stream: BufReader::new(stream) };
        if kind == Kind::Tunnel {
            conversation
                .say("GET / HTTP/1.1\r\nHost: echo\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")?;
            let (status, _) = conversation.head()?;
            ensure!(status.contains(" 101 "), "{status}");
        }
        Ok(conversation)
    }

    /// Says something, and hears it.
    fn exchange(&mut self, client: &Namespace, round: usize) -> Result<()> {
        if self.kind == Kind::KeepAlive {
            return self.request(client, round);
        }
        let said = format!("round {round}\n");
        self.say(&said)?;
        ensure!(self.line()? == said, "another answer");
        Ok(())
    }

    fn request(&mut self, client: &Namespace, round: usize) -> Result<()> {
        let path = format!("/{round}");
        self.say(&format!("GET {path} HTTP/1.1\r\nHost: echo\r\n\r\n"))?;
        let (status, headers) = self.head()?;
        ensure!(status.contains(" 200 "), "{status}");
        ensure!(self.line()?.trim_end() == path, "another answer");
        if headers.iter().any(|header| header == "connection: close") {
            *self = Self::open(client, self.kind, self.ip, self.port)?;
        }
        Ok(())
    }

    fn say(&mut self, text: &str) -> Result<()> {
        Ok(self.stream.get_mut().write_all(text.as_bytes())?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "closed");
        Ok(line)
    }

    /// The first line of an answer, and its headers in lower case.
    fn head(&mut self) -> Result<(String, Vec<String>)> {
        let status = self.line()?;
        let mut headers = Vec::new();
        loop {
            match self.line()?.trim_end() {
                "" => return Ok((status, headers)),
                header => headers.push(header.to_lowercase()),
            }
        }
    }
}
