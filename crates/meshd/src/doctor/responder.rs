//! Answers probes of other nodes inside each network, on this node's own address there.
//!
//! It is no amplifier and no help to anybody else: only the addresses of nodes are answered, never with more bytes than were
//! asked with, and only so many a second. Containers don't get here at all: the network's nftables let in only what came from
//! another node's bridge.

use super::{
    checksum,
    datagram::{Answer, Question, SMALL},
};
use crate::{agent::Applied, clock, sockets::Sockets};
use anyhow::Context;
use mesh_model::{NetworkId, NodeId, Snapshot};
use mesh_net::PROBE_PORT;
use rustix::net::sockopt;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::UdpSocket,
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// Answers at once, and a second. A node that looks asks some ten times a network.
const BURST: f64 = 256.0;
const RATE: f64 = 256.0;
/// The largest datagram there is.
const LARGEST: usize = 1 << 16;
/// The pause after an error of a socket that does not go away.
const PAUSE: Duration = Duration::from_millis(100);

/// Where a socket is: the network, the inode of its namespace, and this node's address.
type Place = (NetworkId, u64, IpAddr);

/// The sockets of all networks.
pub(crate) struct Responder {
    pub(crate) me: NodeId,
    pub(crate) sockets: Sockets,
    pub(crate) snapshot: watch::Receiver<Arc<Snapshot>>,
    /// Networks are there once it tells.
    pub(crate) applied: watch::Receiver<Arc<Applied>>,
}

impl Responder {
    /// Runs until cancelled.
    pub(crate) async fn run(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        let mut serving = JoinSet::new();
        let mut places: BTreeMap<Place, tokio::task::AbortHandle> = BTreeMap::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                changed = self.applied.changed() => changed.context("nothing is applied any more")?,
            }
            self.applied.mark_unchanged();
            let wanted = self.places();
            places.retain(|place, task| {
                let keep = wanted.contains(place) && !task.is_finished();
                if !keep {
                    task.abort();
                }
                keep
            });
            // What ended is forgotten.
            while serving.try_join_next().is_some() {}
            for place in wanted {
                if let std::collections::btree_map::Entry::Vacant(free) = places.entry(place) {
                    match open(&self.sockets, place.0, SocketAddr::new(place.2, PROBE_PORT)) {
                        Ok(socket) => {
                            let task = serving.spawn(serve(socket, self.snapshot.clone()));
                            free.insert(task);
                        }
                        // A network on its way in or out; if it stays, a doctor elsewhere says so.
                        Err(err) => tracing::debug!(%err, network = %place.0, "no answers to probes here"),
                    }
                }
            }
        }
    }

    fn places(&self) -> BTreeSet<Place> {
        let snapshot = self.snapshot.borrow();
        let Some(me) = snapshot.nodes.get(&self.me) else { return BTreeSet::new() };
        let here = snapshot.networks_on(self.me).into_iter();
        let placed = here.filter_map(|network| Some((network, self.sockets.namespace(network)?)));
        placed
            .flat_map(|(network, inode)| me.addresses.iter().map(move |address| (network, inode, *address)))
            .collect()
    }
}

/// A socket for probes inside a network: not fragmented, whatever the path is thought to take, and with a checksum or
/// without.
pub(super) fn open(sockets: &Sockets, network: NetworkId, address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = sockets.within(network, || std::net::UdpSocket::bind(address))?;
    if address.is_ipv4() {
        sockopt::set_ip_mtu_discover(&socket, sockopt::Ipv4PathMtuDiscovery::PROBE)?;
    } else {
        sockopt::set_ipv6_mtu_discover(&socket, sockopt::Ipv6PathMtuDiscovery::PROBE)?;
    }
    checksum::take_unsummed(&socket, address.is_ipv6())?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

async fn serve(socket: UdpSocket, snapshot: watch::Receiver<Arc<Snapshot>>) {
    let mut buffer = vec![0; LARGEST];
    let mut budget = Budget::new(Instant::now());
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(err) => {
                tracing::debug!(%err, "probes can't be received");
                sleep(PAUSE).await;
                continue;
            }
        };
        let datagram = &buffer[..length];
        if !is_node(&snapshot.borrow(), from.ip()) || !budget.take(Instant::now()) {
            continue;
        }
        if let Some(question) = Question::decode(datagram) {
            // What can't be sent now is lost, as it might have been on the way.
            let _ = answer(&socket, from, question, length);
        }
    }
}

fn answer(socket: &UdpSocket, to: SocketAddr, question: Question, asked: usize) -> io::Result<()> {
    checksum::send_summed(socket, to.is_ipv6(), question.summed)?;
    let answer = Answer { nonce: question.nonce, clock: clock::unix_millis(), too_long: false };
    let length = if question.full { asked } else { SMALL };
    match socket.try_send_to(&answer.encode(length), to) {
        Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => {
            let short = Answer { too_long: true, ..answer };
            socket.try_send_to(&short.encode(SMALL), to).map(drop)
        }
        sent => sent.map(drop),
    }
}

fn is_node(snapshot: &Snapshot, address: IpAddr) -> bool {
    snapshot.nodes.values().any(|node| node.addresses.contains(&address))
}

/// How many more answers may be given: a bucket that fills as time passes.
#[derive(Debug)]
struct Budget {
    left: f64,
    at: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { left: BURST, at: now }
    }

    /// Whether one more may be given now.
    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * RATE).min(BURST);
        self.at = now;
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn a_flood_is_answered_at_the_rate() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let given = |budget: &mut Budget, at| (0..10_000).filter(|_| budget.take(at)).count();
        assert_eq!(given(&mut budget, start), 256);
        assert_eq!(given(&mut budget, start + Duration::from_millis(500)), 128);
        assert_eq!(given(&mut budget, start + Duration::from_secs(3600)), 256);
    }

    async fn pair() -> (UdpSocket, UdpSocket) {
        let any = (Ipv4Addr::LOCALHOST, 0);
        (UdpSocket::bind(any).await.unwrap(), UdpSocket::bind(any).await.unwrap())
    }

    #[tokio::test]
    async fn an_answer_is_never_longer_than_its_question() {
        let (here, there) = pair().await;
        let to = there.local_addr().unwrap();
        for (full, asked, expected) in
            [(false, SMALL, SMALL), (false, 1422, SMALL), (true, SMALL, SMALL), (true, 1422, 1422)]
        {
            let question = Question { nonce: 7, summed: true, full };
            // A new socket is taken for full until the runtime has looked.
            here.writable().await.unwrap();
            answer(&here, to, question, asked).unwrap();
            let mut buffer = [0; 2000];
            let length = there.recv(&mut buffer).await.unwrap();
            assert_eq!(length, expected);
            assert_eq!(Answer::decode(&buffer[..length]).unwrap().nonce, 7);
        }
    }

    #[tokio::test]
    async fn strangers_are_not_answered() {
        let (here, there) = pair().await;
        let to = here.local_addr().unwrap();
        // 127.0.0.1 is the address of no node.
        let serving = tokio::spawn(serve(here, watch::channel(Arc::default()).1));
        there.send_to(&Question { nonce: 1, summed: true, full: false }.encode(SMALL), to).await.unwrap();
        let mut buffer = [0; 100];
        let heard = tokio::time::timeout(Duration::from_millis(300), there.recv(&mut buffer)).await;
        assert!(heard.is_err(), "answered");
        serving.abort();
    }
}
