//! DNS queries at a steady rate, running while something happens.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hickory_proto::op::{Message, Query as Question};
use hickory_proto::rr::{Name, RData, RecordType};
use nix::sys::socket::{setsockopt, sockopt};

use crate::namespace::Namespace;
use crate::probe::within;

/// What has no answer by then is lost: that is how long glibc waits.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// A sender that was kept from its pace for longer than this does not catch up: the server is not to meet bursts that
/// come of the test machine.
const CATCH_UP: Duration = Duration::from_millis(20);
/// Room for the answers of some seconds, in octets: none is to be lost on the side of the test.
const RECEIVE_BUFFER: usize = 8 << 20;
/// How often the receiver looks whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// Queries for IPv4 addresses, from one socket, at a steady rate. They end with [`Queries::stop`].
#[derive(Debug)]
pub struct Queries {
    shared: Arc<Shared>,
    sender: JoinHandle<Result<()>>,
    receiver: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    asked: Mutex<Vec<Asked>>,
    answered: AtomicUsize,
    strays: AtomicUsize,
    stop: AtomicBool,
    /// All were sent that will be, and there was time for the answers.
    end: AtomicBool,
}

/// One query.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The name, as it was asked for.
    pub name: String,
    /// When.
    pub at: Instant,
    /// What came back, if anything did.
    pub answer: Option<Answer>,
}

/// What was answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// When it came.
    pub at: Instant,
    /// How the query fared: 0 is NOERROR, 2 is SERVFAIL.
    pub rcode: u8,
    /// The addresses, in order.
    pub addresses: Vec<IpAddr>,
}

impl Asked {
    /// How long the answer took.
    pub fn took(&self) -> Option<Duration> {
        self.answer.as_ref().map(|answer| answer.at - self.at)
    }

    /// No answer came in time.
    pub fn is_lost(&self) -> bool {
        self.took().is_none_or(|took| took > PATIENCE)
    }

    /// The answer was these addresses, in any order.
    pub fn found(&self, addresses: &[IpAddr]) -> bool {
        self.answer.as_ref().is_some_and(|answer| {
            let mut found = answer.addresses.clone();
            found.sort_unstable();
            answer.rcode == 0 && found == addresses
        })
    }
}

impl Queries {
    /// Sends so many queries a second to a name server, for these names in turn, and waits for the first answer. `{}` in a
    /// name becomes the number of the query.
    pub fn start(from: &Namespace, server: IpAddr, rate: u32, names: &[&str]) -> Result<Self> {
        let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
        // Not connected: whatever ICMP says of the server, the next query is sent, and the socket takes its answer.
        let socket = from.inside(|| Ok(UdpSocket::bind((any, 0))?))?;
        socket.set_read_timeout(Some(LOOK))?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        let (shared, server) = (Arc::new(Shared::default()), SocketAddr::new(server, 53));
        let (of_sender, sending) = (Arc::clone(&shared), socket.try_clone()?);
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let sender = thread::spawn(move || of_sender.send(&sending, server, rate, &names));
        let of_receiver = Arc::clone(&shared);
        let receiver = thread::spawn(move || of_receiver.receive(&socket, server));
        let queries = Self { shared, sender, receiver };
        within(Duration::from_secs(10), "the first query is answered", || {
            ensure!(queries.shared.answered.load(Relaxed) > 0, "no answer yet");
            Ok(())
        })?;
        Ok(queries)
    }

    /// Lets at least `count` more be answered.
    pub fn go_on(&self, count: usize) -> Result<()> {
        let from = self.shared.answered.load(Relaxed);
        within(Duration::from_secs(60), "queries go on", || {
            let answered = self.shared.answered.load(Relaxed) - from;
            ensure!(answered >= count, "{answered} of {count}");
            Ok(())
        })
    }

    /// How many were sent so far.
    pub fn asked(&self) -> usize {
        self.shared.asked().len()
    }

    /// Ends them, and waits for what is under way.
    pub fn stop(self) -> Result<Tally> {
        let Self { shared, sender, receiver } = self;
        shared.stop.store(true, Relaxed);
        sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        let last = Instant::now();
        // Those that are not answered by then are lost, which is for the caller to judge.
        while last.elapsed() < PATIENCE && shared.asked().iter().any(|asked| asked.answer.is_none()) {
            thread::sleep(LOOK);
        }
        shared.end.store(true, Relaxed);
        ensure!(receiver.join().is_ok(), "the receiver panicked");
        let asked = std::mem::take(&mut *shared.asked());
        Ok(Tally { asked, strays: shared.strays.load(Relaxed) })
    }
}

impl Shared {
    fn asked(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, socket: &UdpSocket, server: SocketAddr, rate: u32, names: &[String]) -> Result<()> {
        let pause = Duration::from_secs(1) / rate;
        let mut due = Instant::now();
        for number in 0.. {
            if self.stop.load(Relaxed) {
                break;
            }
            let name = names[number % names.len()].replace("{}", &number.to_string());
            let message = question(number as u16, &name)?;
            // There before its answer can be. One that can't be sent is as lost as any.
            self.asked().push(Asked { name, at: Instant::now(), answer: None });
            let _ = socket.send_to(&message, server);
            due = (due + pause).max(Instant::now().checked_sub(CATCH_UP).context("no such time")?);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(())
    }

    fn receive(&self, socket: &UdpSocket, server: SocketAddr) {
        let mut datagram = [0; 4096];
        while !self.end.load(Relaxed) {
            let Ok((length, from)) = socket.recv_from(&mut datagram) else { continue };
            let taken = from == server && self.take(&datagram[..length], Instant::now()).is_some();
            let count = if taken { &self.answered } else { &self.strays };
            count.fetch_add(1, Relaxed);
        }
    }

    /// Puts an answer to its query; none if there is no such query that waits.
    fn take(&self, datagram: &[u8], at: Instant) -> Option<()> {
        let message = Message::from_vec(datagram).ok()?;
        let mut asked = self.asked();
        // The ID is the number's lower half.
        let last = asked.len().checked_sub(1)?;
        let before = usize::from((last as u16).wrapping_sub(message.metadata.id));
        let asked = asked.get_mut(last.checked_sub(before)?)?;
        let question = message.queries.first()?.name().to_ascii();
        if asked.answer.is_some() || question.trim_end_matches('.') != asked.name {
            return None;
        }
        let addresses = message.answers.iter().filter_map(|record| match &record.data {
            RData::A(address) => Some(address.0.into()),
            _ => None,
        });
        let rcode = message.metadata.response_code.low();
        asked.answer = Some(Answer { at, rcode, addresses: addresses.collect() });
        Some(())
    }
}

fn question(id: u16, name: &str) -> Result<Vec<u8>> {
    let mut message = Message::query();
    message.metadata.id = id;
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name)?;
    name.set_fqdn(true);
    message.add_query(Question::query(name, RecordType::A));
    Ok(message.to_vec()?)
}

/// What became of all [`Queries`].
#[derive(Debug)]
pub struct Tally {
    /// All of them, in order.
    pub asked: Vec<Asked>,
    /// Datagrams that answered none of them, or one a second time.
    pub strays: usize,
}

impl Tally {
    /// Those that have no answer in time.
    pub fn lost(&self) -> Vec<&Asked> {
        self.asked.iter().filter(|asked| asked.is_lost()).collect()
    }

    /// The answers by code: 0 is NOERROR, 2 is SERVFAIL.
    pub fn rcodes(&self) -> BTreeMap<u8, usize> {
        let mut counts = BTreeMap::new();
        for answer in self.asked.iter().filter_map(|asked| asked.answer.as_ref()) {
            *counts.entry(answer.rcode).or_default() += 1;
        }
        counts
    }

    /// The longest time to an answer.
    pub fn slowest(&self) -> Duration {
        self.asked.iter().filter_map(Asked::took).max().unwrap_or_default()
    }

    /// How many answers took longer.
    pub fn slower_than(&self, limit: Duration) -> usize {
        self.asked.iter().filter_map(Asked::took).filter(|took| *took > limit).count()
    }

    /// Fails with the first answers that are not right. What is lost is none.
    pub fn all_right(&self, right: impl Fn(&Asked) -> bool) -> Result<()> {
        let wrong: Vec<_> =
            self.asked.iter().filter(|asked| asked.answer.is_some() && !right(asked)).collect();
        ensure!(wrong.is_empty(), "{} wrong: {:#?}; {self}", wrong.len(), &wrong[..wrong.len().min(3)]);
        ensure!(self.strays == 0, "{} answers to no query; {self}", self.strays);
        Ok(())
    }

    /// Fails if any was lost.
    pub fn none_lost(&self) -> Result<()> {
        let lost = self.lost();
        let start = self.asked.first().map(|asked| asked.at).context("nothing was asked")?;
        let places: Vec<_> = lost.iter().map(|asked| (&asked.name, asked.at - start, asked.took())).collect();
        ensure!(lost.is_empty(), "{self}; lost, and when: {:?}", &places[..places.len().min(20)]);
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sent, lost) = (self.asked.len(), self.lost().len());
        write!(f, "{sent} asked, {lost} lost, codes {:?}, longest {:?}", self.rcodes(), self.slowest())
    }
}
