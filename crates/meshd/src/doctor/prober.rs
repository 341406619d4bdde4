//! Asks other nodes over the overlay itself: from this node's own address in a network to theirs, through VXLAN.
//!
//! Five questions tell what fails: with a checksum or without, large or small, there or back. Each is repeated until it is
//! answered or the time is up; one datagram that is lost says nothing.

use super::{
    checksum,
    datagram::{Answer, Question, SMALL},
    responder::open,
};
use crate::{clock, sockets::Sockets};
use mesh_model::NetworkId;
use mesh_net::PROBE_PORT;
use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use tokio::{
    net::UdpSocket,
    time::{Instant, sleep, timeout_at},
};

/// How long answers are waited for after each round of questions.
const ROUNDS: [Duration; 4] = [
    Duration::from_millis(150),
    Duration::from_millis(250),
    Duration::from_millis(400),
    Duration::from_millis(600),
];
/// Lengths that are tried when full packets are lost, and how long answers are waited for then.
const STEPS: usize = 32;
const MEASURE: Duration = Duration::from_millis(300);
/// How long the other host is waited for before it is asked again whether it is there.
const AGAIN: Duration = Duration::from_millis(500);
/// IP and UDP headers, in bytes.
const HEADERS_IPV4: u32 = 28;
const HEADERS_IPV6: u32 = 48;

/// Where to ask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) network: NetworkId,
    /// This node's address there, and the other's.
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    /// MTU of the network on this node, in bytes, if it is known.
    pub(super) mtu: Option<u32>,
}

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Reply {
    /// Not asked.
    #[default]
    Unasked,
    /// Not answered.
    Silent,
    /// Answered as it should be.
    Answered,
    /// Answered: what should come back is more than the other node sends.
    TooLong,
}

/// What was heard from another node over one network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Small, without checksums.
    pub(super) plain: Reply,
    /// Small, the question with a checksum.
    pub(super) summed_there: Reply,
    /// Small, both with a checksum.
    pub(super) summed: Reply,
    /// The question as long as the network's MTU allows, without checksums.
    pub(super) full_there: Reply,
    /// Both as long as that.
    pub(super) full: Reply,
    /// The other host's kernel says that nobody listens there.
    pub(super) refused: bool,
    /// How far the other clock is ahead, in milliseconds, and half the time the answer took.
    pub(super) clock: Option<(i64, u64)>,
    /// If what is full is lost: the longest IP packet in the network, in bytes, that is not.
    pub(super) longest: Option<u32>,
    /// Why nothing could be sent.
    pub(super) unsent: Option<String>,
}

impl Heard {
    /// The other node's daemon answered something.
    pub(super) fn answered(&self) -> bool {
        let all = [self.plain, self.summed_there, self.summed, self.full_there, self.full];
        all.iter().any(|reply| matches!(reply, Reply::Answered | Reply::TooLong))
    }

    /// The other host was reached, whether or not its daemon runs.
    pub(super) fn reached(&self) -> bool {
        self.refused || self.answered()
    }
}

/// One question: where its reply goes, and what it is like.
struct Ask {
    reply: fn(&mut Heard) -> &mut Reply,
    /// The question has a checksum.
    summed: bool,
    /// The question is as long as it can be.
    full: bool,
    /// What the answer is to be like.
    answer_summed: bool,
    answer_full: bool,
}

const ASKS: [Ask; 5] = [
    Ask { reply: |h| &mut h.plain, summed: false, full: false, answer_summed: false, answer_full: false },
    Ask {
        reply: |h| &mut h.summed_there,
        summed: true,
        full: false,
        answer_summed: false,
        answer_full: false,
    },
    Ask { reply: |h| &mut h.summed, summed: true, full: false, answer_summed: true, answer_full: false },
    Ask { reply: |h| &mut h.full_there, summed: false, full: true, answer_summed: false, answer_full: false },
    Ask { reply: |h| &mut h.full, summed: false, full: true, answer_summed: false, answer_full: true },
];

/// Asks everything, for a second and a half at most.
pub(super) async fn probe(sockets: &Sockets, way: Way) -> Heard {
    let mut heard = Heard::default();
    if let Err(error) = ask_all(sockets, way, &mut heard).await {
        heard.unsent = Some(error.to_string());
    }
    heard
}

/// Whether another host says anything within a time: its daemon, or its kernel that nobody listens.
///
/// # Errors
/// There is no way to ask.
pub(crate) async fn is_there(
    sockets: &Sockets,
    network: NetworkId,
    [from, to]: [IpAddr; 2],
    patience: Duration,
) -> io::Result<bool> {
    let socket = open(sockets, network, SocketAddr::new(from, 0))?;
    socket.connect(SocketAddr::new(to, PROBE_PORT)).await?;
    let question = Question { nonce: rand::random(), summed: false, full: false }.encode(SMALL);
    let (deadline, mut buffer) = (Instant::now() + patience, [0; SMALL]);
    while Instant::now() < deadline {
        // An error may be of the question before.
        let sent = socket.send(&question).await.map(drop);
        let heard = timeout_at(deadline.min(Instant::now() + AGAIN), socket.recv(&mut buffer)).await;
        match (sent, heard) {
            (Err(error), _) | (_, Ok(Err(error))) if is_refusal(&error) => return Ok(true),
            (_, Ok(Ok(_))) => return Ok(true),
            (_, Err(_)) => {}
            // Unreachable, says somebody on the way: perhaps only for the moment.
            (_, Ok(Err(_))) => sleep(AGAIN).await,
        }
    }
    Ok(false)
}

async fn ask_all(sockets: &Sockets, way: Way, heard: &mut Heard) -> io::Result<()> {
    let socket = open(sockets, way.network, SocketAddr::new(way.from, 0))?;
    socket.connect(SocketAddr::new(way.to, PROBE_PORT)).await?;
    let headers = if way.to.is_ipv4() { HEADERS_IPV4 } else { HEADERS_IPV6 };
    let full = way.mtu.and_then(|mtu| usize::try_from(mtu.checked_sub(headers)?).ok());
    let first: u64 = rand::random();
    let mut sent_at = [None; ASKS.len()];
    for wait in ROUNDS {
        for (at, ask) in ASKS.iter().enumerate() {
            let length = if ask.full { full } else { Some(SMALL) };
            let Some(length) =
                length.filter(|_| matches!((ask.reply)(heard), Reply::Unasked | Reply::Silent))
            else {
                continue;
            };
            let (summed, full) = (ask.answer_summed, ask.answer_full);
            let question = Question { nonce: first.wrapping_add(at as u64), summed, full };
            checksum::send_summed(&socket, way.to.is_ipv6(), ask.summed)?;
            // Read before, so that what the kernel says of the last one is not taken for this one's failure.
            sent_at[at] = Some((Instant::now(), clock::unix_millis()));
            match socket.send(&question.encode(length)).await {
                Ok(_) => *(ask.reply)(heard) = Reply::Silent,
                Err(error) if is_refusal(&error) => heard.refused = true,
                Err(error) => heard.unsent = Some(error.to_string()),
            }
        }
        listen(&socket, Instant::now() + wait, first, &sent_at, heard).await;
        if heard.refused || ASKS.iter().all(|ask| *(ask.reply)(heard) != Reply::Silent) {
            break;
        }
    }
    let way_back = heard.full_there == Reply::Answered;
    let lost = heard.full_there == Reply::Silent || (way_back && heard.full == Reply::Silent);
    if let (true, true, Some(full)) = (lost, heard.answered(), full) {
        checksum::send_summed(&socket, way.to.is_ipv6(), false)?;
        let longest = measure(&socket, full, way_back).await;
        heard.longest =
            longest.map(|length| u32::try_from(length).unwrap_or(u32::MAX).saturating_add(headers));
    }
    Ok(())
}

/// The longest datagram that comes through, of lengths up to one that does not: there, or there and back.
async fn measure(socket: &UdpSocket, full: usize, way_back: bool) -> Option<usize> {
    let step = full.saturating_sub(SMALL).div_ceil(STEPS).max(1);
    let lengths: Vec<usize> = (SMALL..full).step_by(step).collect();
    let first: u64 = rand::random();
    for (at, length) in lengths.iter().enumerate() {
        let question = Question { nonce: first.wrapping_add(at as u64), summed: false, full: way_back };
        // What is lost here looks as if it did not pass: a step less.
        let _ = socket.send(&question.encode(*length)).await;
    }
    let deadline = Instant::now() + MEASURE;
    let (mut longest, mut buffer) = (None, vec![0; 1 << 16]);
    while let Ok(Ok(length)) = timeout_at(deadline, socket.recv(&mut buffer)).await {
        let answer = Answer::decode(&buffer[..length]).filter(|answer| !answer.too_long);
        let at = answer.and_then(|answer| usize::try_from(answer.nonce.wrapping_sub(first)).ok());
        longest = longest.max(at.and_then(|at| lengths.get(at).copied()));
    }
    longest
}

/// Takes answers until all have come, or the time is up.
async fn listen(
    socket: &UdpSocket,
    deadline: Instant,
    first: u64,
    sent_at: &[Option<(Instant, u64)>],
    heard: &mut Heard,
) {
    let mut buffer = vec![0; 1 << 16];
    while ASKS.iter().any(|ask| *(ask.reply)(heard) == Reply::Silent) {
        let answer = match timeout_at(deadline, socket.recv(&mut buffer)).await {
            Err(_) => return,
            Ok(Err(error)) if is_refusal(&error) => {
                heard.refused = true;
                return;
            }
            // Unreachable, says somebody on the way: perhaps only for the moment.
            Ok(Err(error)) => {
                heard.unsent = Some(error.to_string());
                return;
            }
            Ok(Ok(length)) => Answer::decode(&buffer[..length]),
        };
        let Some(answer) = answer else { continue };
        let at = usize::try_from(answer.nonce.wrapping_sub(first)).unwrap_or(usize::MAX);
        let (Some(ask), Some(Some((sent, then)))) = (ASKS.get(at), sent_at.get(at)) else { continue };
        *(ask.reply)(heard) = if answer.too_long { Reply::TooLong } else { Reply::Answered };
        note_clock(heard, answer.clock, *then, sent.elapsed());
    }
}

/// The answer that took the shortest time tells the other clock best.
fn note_clock(heard: &mut Heard, theirs: u64, sent: u64, took: Duration) {
    let half = u64::try_from(took.as_millis() / 2).unwrap_or(u64::MAX);
    if heard.clock.is_none_or(|(_, known)| half < known) {
        let ours = i64::try_from(sent.saturating_add(half)).unwrap_or(i64::MAX);
        heard.clock = Some((i64::try_from(theirs).unwrap_or(i64::MAX).saturating_sub(ours), half));
    }
}

fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}
