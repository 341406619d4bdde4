//! A cluster in virtual time: real detectors, a network that loses, delays and divides.

use mesh_cluster::membership::{
    ClusterKey, ClusterKeys, Detector, Life, Liveness, Nodes, Timings, Transmit, Verdicts,
};
use mesh_model::NodeId;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) type Index = usize;

pub(crate) fn node(index: Index) -> NodeId {
    NodeId::from_bits(0x1000 + index as u64)
}

pub(crate) fn address(index: Index) -> SocketAddr {
    ([10, 0, (index >> 8) as u8, index as u8], 7443).into()
}

pub(crate) fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn index(address: SocketAddr) -> Option<Index> {
    match address {
        SocketAddr::V4(v4) => {
            let [_, _, high, low] = v4.ip().octets();
            Some(usize::from(high) << 8 | usize::from(low))
        }
        SocketAddr::V6(_) => None,
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrive(Index, Vec<u8>),
    Wake(Index),
}

/// One cluster.
pub(crate) struct Sim {
    pub(crate) now: Instant,
    pub(crate) start: Instant,
    /// Share of datagrams lost.
    pub(crate) loss: f64,
    /// One way, in microseconds.
    pub(crate) delay: Range<u64>,
    /// Which side of a partition each node is on.
    pub(crate) side: Vec<u8>,
    pub(crate) live: BTreeMap<Index, Detector>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) keys: ClusterKeys,
    /// All that was sent, if recorded.
    pub(crate) record: Option<Vec<(Index, Vec<u8>)>>,
    /// Verdicts of Down on a node that lived and could be reached: who said it, of whom.
    pub(crate) false_downs: BTreeSet<(Index, Index)>,
    rng: StdRng,
    queue: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    turn: u64,
}

impl Sim {
    pub(crate) fn new(count: usize, seed: u64) -> Self {
        let now = Instant::now();
        let nodes: Nodes = (0..count).map(|index| (node(index), address(index))).collect();
        let mut sim = Self {
            now,
            start: now,
            loss: 0.0,
            delay: 200..2000,
            side: vec![0; count],
            live: BTreeMap::new(),
            nodes: Arc::new(nodes),
            keys: ClusterKeys::only(ClusterKey::new(1, [1; 32])),
            record: None,
            false_downs: BTreeSet::new(),
            rng: StdRng::seed_from_u64(seed),
            queue: BinaryHeap::new(),
            turn: 0,
        };
        for index in 0..count {
            sim.boot(index, 1000 + index as u64);
        }
        sim
    }

    /// Starts a node anew, in a life of this generation.
    pub(crate) fn boot(&mut self, index: Index, generation: u64) {
        let mut session = [0; 16];
        self.rng.fill_bytes(&mut session);
        let life = Life { node: node(index), generation, session, seed: self.rng.random() };
        let mut detector = Detector::new(life, self.keys.clone(), Timings::default(), self.now);
        detector.set_nodes(self.nodes.clone(), self.now);
        self.live.insert(index, detector);
        self.settle(index);
    }

    pub(crate) fn kill(&mut self, index: Index) {
        self.live.remove(&index);
    }

    pub(crate) fn leave(&mut self, index: Index) {
        let now = self.now;
        self.live.get_mut(&index).unwrap().leave(now);
        self.settle(index);
        self.kill(index);
    }

    pub(crate) fn run(&mut self, time: Duration) {
        self.run_until(time, |_| false);
    }

    /// Runs until `done`, asked first and after each event, at most for `time`. Returns how long it took, if it came to be.
    pub(crate) fn run_until(
        &mut self,
        time: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Option<Duration> {
        if done(self) {
            return Some(Duration::ZERO);
        }
        let (from, end) = (self.now, self.now + time);
        while let Some(Reverse((at, ..))) = self.queue.peek()
            && *at <= end
        {
            let Reverse((at, _, event)) = self.queue.pop().unwrap();
            self.now = at;
            let index = match event {
                Event::Arrive(index, datagram) => {
                    self.deliver(index, datagram);
                    index
                }
                Event::Wake(index) => {
                    let due = self.live.get(&index).and_then(Detector::next_wake);
                    if due.is_none_or(|due| due > at) {
                        continue;
                    }
                    self.live.get_mut(&index).unwrap().wake(at);
                    self.settle(index);
                    index
                }
            };
            self.note_false_downs(index);
            if done(self) {
                return Some(self.now - from);
            }
        }
        self.now = end;
        None
    }

    /// Hands a datagram to a node now, wherever it came from.
    pub(crate) fn deliver(&mut self, index: Index, mut datagram: Vec<u8>) {
        let now = self.now;
        if let Some(detector) = self.live.get_mut(&index) {
            detector.receive(&mut datagram, now);
            self.settle(index);
        }
    }

    pub(crate) fn verdicts(&self, of: Index) -> &Verdicts {
        self.live[&of].verdicts()
    }

    /// Whether all live nodes take exactly the live ones for alive, and the others for down.
    pub(crate) fn agreed(&self) -> bool {
        self.live.keys().all(|who| {
            self.verdicts(*who).iter().enumerate().all(|(of, (_, liveness))| {
                *liveness == if self.live.contains_key(&of) { Liveness::Alive } else { Liveness::Down }
            })
        })
    }

    /// Whether `of` is `liveness` to all live nodes.
    pub(crate) fn all_say(&self, of: Index, liveness: Liveness) -> bool {
        self.live.iter().all(|(who, detector)| *who == of || detector.verdicts()[&node(of)] == liveness)
    }

    /// What everybody thinks, for a failed test.
    pub(crate) fn picture(&self) -> String {
        let line = |who: &Index| {
            let verdicts = self.verdicts(*who).values();
            let letters: String = verdicts.map(|v| v.to_string().remove(0)).collect();
            format!("{who:4}: {letters} ({})\n", self.live[who].tally())
        };
        format!("after {:?}\n{}", self.now - self.start, self.live.keys().map(line).collect::<String>())
    }

    fn settle(&mut self, index: Index) {
        let mut sent = Vec::new();
        let detector = self.live.get_mut(&index).unwrap();
        while let Some(transmit) = detector.transmit() {
            sent.push(transmit);
        }
        let wake = detector.next_wake();
        for Transmit { to, datagram } in sent {
            let to = self::index(to).unwrap();
            if let Some(record) = &mut self.record {
                record.push((to, datagram.clone()));
            }
            if self.side[index] == self.side[to] && !self.rng.random_bool(self.loss) {
                let delay = Duration::from_micros(self.rng.random_range(self.delay.clone()));
                self.push(self.now + delay, Event::Arrive(to, datagram));
            }
        }
        if let Some(wake) = wake {
            self.push(wake.max(self.now), Event::Wake(index));
        }
    }

    fn push(&mut self, at: Instant, event: Event) {
        self.turn += 1;
        self.queue.push(Reverse((at, self.turn, event)));
    }

    fn note_false_downs(&mut self, who: Index) {
        let Some(detector) = self.live.get(&who) else { return };
        for (of, (_, liveness)) in detector.verdicts().iter().enumerate() {
            if *liveness == Liveness::Down && self.live.contains_key(&of) && self.side[who] == self.side[of] {
                self.false_downs.insert((who, of));
            }
        }
    }
}
