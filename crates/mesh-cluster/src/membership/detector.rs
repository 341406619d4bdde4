//! The failure detector: foca, what it may hear, and what is made of it. No socket and no clock.

use super::outbox::{Outbox, Transmit};
use super::seal::{Opener, Sealer, Session};
use super::tally::{Refusal, Tally};
use super::timers::{Event, Timers};
use super::window::Window;
use super::wire::{Codec, Identity, MAX_HEADER, news_of_known, third_party};
use super::{ClusterKeys, Liveness, Nodes, Timings, Verdicts};
use foca::{Codec as _, Foca, Header, Incarnation, Member, Message, NoCustomBroadcast, State, Timer};
use mesh_model::NodeId;
use rand_foca::{RngExt as _, SeedableRng, rngs::SmallRng};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many absent nodes are tried at once.
const ANNOUNCED_AT_ONCE: usize = 32;
/// How many nodes try an absent one in each [`Timings::announce`], about, whatever the size of the cluster.
const ANNOUNCERS: f64 = 4.0;

/// What makes one life of a node.
#[derive(Debug, Clone)]
pub struct Life {
    /// This node.
    pub node: NodeId,
    /// Tells lives apart; a later life should have a higher one, such as milliseconds since 1970. If a clock went
    /// back and it has not, this node catches up as soon as it hears from a peer.
    pub generation: u64,
    /// 16 random bytes that no life of any node had before: nonces depend on it.
    pub session: [u8; 16],
    /// What random choices are drawn from; need not be secret.
    pub seed: u64,
}

/// SWIM as a state machine: time, datagrams and settings go in; datagrams, the next wake-up and verdicts come out.
pub struct Detector {
    foca: Foca<Identity, Codec, SmallRng, NoCustomBroadcast>,
    out: Outbox,
    opener: Opener,
    rng: SmallRng,
    senders: BTreeMap<NodeId, Sender>,
    /// Until when each node counts as alive without having been heard of.
    grace: BTreeMap<NodeId, Instant>,
    /// The node after which the next round of announcements begins.
    announced: NodeId,
    verdicts: Arc<Verdicts>,
    left: bool,
}

/// The life of a node from which datagrams are taken.
struct Sender {
    generation: u64,
    session: Session,
    window: Window,
}

impl Detector {
    /// A node that knows of nobody yet: [`set_nodes`](Self::set_nodes) comes next.
    pub fn new(life: Life, keys: ClusterKeys, timings: Timings, now: Instant) -> Self {
        let mut rng = SmallRng::seed_from_u64(life.seed);
        let identity = Identity { node: life.node, generation: life.generation };
        let foca = Foca::new(identity, timings.foca(), SmallRng::seed_from_u64(rng.random()), Codec);
        let out = Outbox {
            nodes: Arc::default(),
            sealer: Sealer::new(life.session, &keys.current),
            timers: Timers::default(),
            transmits: VecDeque::new(),
            tally: Tally::default(),
            reminded: Default::default(),
            changed: true,
            now,
            timings,
        };
        let mut detector = Self {
            foca,
            out,
            opener: Opener::new(keys),
            rng,
            senders: BTreeMap::new(),
            grace: BTreeMap::new(),
            announced: life.node,
            verdicts: Arc::default(),
            left: false,
        };
        detector.out.set(Duration::ZERO, Event::Announce);
        detector
    }

    /// The nodes of the cluster and where they listen. Who is not among them is neither heard nor spoken of.
    pub fn set_nodes(&mut self, nodes: Arc<Nodes>, now: Instant) {
        self.out.now = now;
        let gone: Vec<_> = self.foca.iter_members().map(|member| *member.id()).collect();
        for identity in gone.into_iter().filter(|identity| !nodes.contains_key(&identity.node)) {
            // Not broadcast: the others have this from the manager, too.
            let down = std::iter::once(Member::down(identity));
            log_bug(self.foca.apply_many(down, false, &mut self.out));
        }
        let opener = &mut self.opener;
        self.senders.retain(|node, sender| {
            let stays = nodes.contains_key(node);
            if !stays {
                opener.forget(&sender.session);
            }
            stays
        });
        self.grace.retain(|node, _| nodes.contains_key(node));
        let until = now + self.out.timings.grace;
        for node in nodes.keys() {
            self.grace.entry(*node).or_insert(until);
        }
        self.out.timers.set(until, Event::Grace);
        self.out.nodes = nodes;
        self.out.changed = true;
        self.tell();
    }

    /// The keys that hold from now on.
    pub fn set_keys(&mut self, keys: ClusterKeys) {
        self.out.sealer.rekey(&keys.current);
        self.opener.rekey(keys);
    }

    /// A datagram came in; it is opened in place.
    pub fn receive(&mut self, datagram: &mut [u8], now: Instant) {
        if self.left {
            return;
        }
        self.out.now = now;
        match self.admit(datagram) {
            Ok((from, message)) => {
                self.out.tally.taken += 1;
                let news = self.verdicts.get(&from) != Some(&Liveness::Alive);
                // News may also be of members that change no foca notification, suspects above all.
                self.out.changed |= news || message.len() > SILENT;
                if let Err(error) = self.foca.handle_data(&message, &mut self.out) {
                    tracing::debug!(node = %from, err = %error, "membership message not taken");
                }
            }
            Err(why) => self.out.tally.refuse(why),
        }
        self.tell();
    }

    /// When [`wake`](Self::wake) is due next.
    pub fn next_wake(&self) -> Option<Instant> {
        if self.left { None } else { self.out.timers.next() }
    }

    /// Does what is due at `now`.
    pub fn wake(&mut self, now: Instant) {
        self.out.now = now;
        while let Some((event, late)) = self.out.timers.pop(now) {
            match event {
                Event::Foca(timer) => self.foca_timer(timer, late),
                Event::Remind(suspect, incarnation) => self.remind(suspect, incarnation),
                Event::Announce => self.announce(),
                Event::Grace => self.out.changed = true,
            }
        }
        self.tell();
    }

    /// Says farewell: the others know at once. Nothing is heard or sent afterwards but what is still in the queue.
    pub fn leave(&mut self, now: Instant) {
        self.out.now = now;
        log_bug(self.foca.leave_cluster(&mut self.out));
        // Twice more, to others by chance: one datagram may get lost.
        for _ in 0..2 {
            log_bug(self.foca.gossip(&mut self.out));
        }
        self.left = true;
    }

    /// The next datagram to send.
    pub fn transmit(&mut self) -> Option<Transmit> {
        self.out.transmits.pop_front()
    }

    /// What is known of each node of the set; this node itself is alive. The same `Arc` while nothing changes.
    pub fn verdicts(&self) -> &Arc<Verdicts> {
        &self.verdicts
    }

    /// What came in and went out.
    pub fn tally(&self) -> &Tally {
        &self.out.tally
    }

    /// Opens a datagram and decides whether foca may see it; what it says of strangers is cut out.
    fn admit(&mut self, datagram: &mut [u8]) -> Result<(NodeId, Vec<u8>), Refusal> {
        let opened = self.opener.open(datagram)?;
        let mut rest = opened.plain;
        let header = Codec.decode_header(&mut rest).map_err(|_| Refusal::Malformed)?;
        let me = self.foca.identity().node;
        if header.dst.node != me || header.src.node == me {
            return Err(Refusal::Misdirected);
        }
        let known = |node| self.out.nodes.contains_key(&node);
        if !known(header.src.node) || !third_party(&header.message).is_none_or(known) {
            return Err(Refusal::Foreign);
        }
        let news = news_of_known(rest, known).ok_or(Refusal::Malformed)?;
        let head = opened.plain.len() - rest.len();
        let mut message = opened.plain[..head].to_vec();
        message.extend_from_slice(&news);
        let (session, counter) = (opened.session, opened.counter);
        self.admit_once(header.src, session, counter)?;
        self.catch_up(&header);
        let mine = header.dst == *self.foca.identity() || header.message == Message::Announce;
        if mine { Ok((header.src.node, message)) } else { Err(Refusal::Misdirected) }
    }

    /// Takes each datagram of a sender's newest life once.
    fn admit_once(&mut self, from: Identity, session: Session, counter: u64) -> Result<(), Refusal> {
        if let Some(sender) = self.senders.get_mut(&from.node) {
            if sender.session == session {
                sender.generation = sender.generation.max(from.generation);
                return if sender.window.admit(counter) { Ok(()) } else { Err(Refusal::Replayed) };
            }
            if from.generation <= sender.generation {
                // A new life with a lower number catches up by what is sent to it; one with the same number is told.
                if from.generation == sender.generation {
                    self.write(from, Message::TurnUndead, None);
                }
                return Err(Refusal::Stale);
            }
            self.opener.forget(&sender.session);
        }
        let mut window = Window::default();
        if !window.admit(counter) {
            return Err(Refusal::Replayed);
        }
        self.opener.remember(session);
        self.senders.insert(from.node, Sender { generation: from.generation, session, window });
        Ok(())
    }

    /// A peer knows a later life of this node than this one: its clock went back. Lives on as a later one still.
    fn catch_up(&mut self, header: &Header<Identity>) {
        let me = *self.foca.identity();
        if header.dst.generation > me.generation {
            let later = Identity { generation: header.dst.generation.saturating_add(1), ..me };
            log_bug(self.foca.change_identity(later, &mut self.out));
        }
    }

    fn foca_timer(&mut self, timer: Timer<Identity>, late: Duration) {
        match &timer {
            Timer::ChangeSuspectToDown { member_id, incarnation, .. } => {
                // foca would tell a member that has refuted in time that it is down, and make it begin a new life.
                if !self.is_suspect(*member_id, *incarnation) {
                    return;
                }
                // This node itself was not running: the suspect's answer may still wait in the socket.
                if late > self.out.timings.probe_period {
                    let suspicion = self.out.timings.suspicion;
                    self.out.set(suspicion, Event::Foca(timer));
                    return;
                }
                self.out.changed = true;
            }
            Timer::ProbeRandomMember(_) => self.out.changed = true,
            _ => {}
        }
        if let Err(error) = self.foca.handle_timer(timer, &mut self.out) {
            tracing::debug!(err = %error, "membership timer");
        }
    }

    /// Tells a suspect of the suspicion, in a ping: its answer refutes it. Gossip alone would take several rounds to
    /// the suspect and back, longer than anyone wants to wait for a verdict.
    fn remind(&mut self, suspect: Identity, incarnation: Incarnation) {
        if !self.is_suspect(suspect, incarnation) {
            self.out.reminded.remove(&suspect.node);
            return;
        }
        let member = Member::new(suspect, incarnation, State::Suspect);
        self.write(suspect, Message::Ping(0), Some(member));
        let reminder = self.out.timings.reminder;
        self.out.set(reminder, Event::Remind(suspect, incarnation));
    }

    /// Knocks at nodes that are down or were never heard of: how two halves of a partition find each other again, and
    /// how the first contact is made. The more nodes there are to do so, the less each does.
    fn announce(&mut self) {
        let share = ANNOUNCERS / (self.foca.num_members() as f64 + 1.0);
        let heard: BTreeMap<_, _> =
            self.foca.iter_membership_state().map(|member| (member.id().node, member.clone())).collect();
        let me = self.foca.identity().node;
        let is_absent =
            |node: &NodeId| *node != me && heard.get(node).is_none_or(|member| member.state() == State::Down);
        let nodes = Arc::clone(&self.out.nodes);
        let after = nodes.range((Bound::Excluded(self.announced), Bound::Unbounded));
        let round = after.chain(nodes.range(..=self.announced)).map(|(node, _)| *node);
        let mut tried = 0;
        for node in round.filter(is_absent) {
            if tried == ANNOUNCED_AT_ONCE {
                break;
            }
            if share >= 1.0 || self.rng.random_bool(share) {
                tried += 1;
                self.announced = node;
                let never = Identity { node, generation: 0 };
                let to = heard.get(&node).map_or(never, |member| *member.id());
                log_bug(self.foca.announce(to, &mut self.out));
            }
        }
        let announce = self.out.timings.announce;
        self.out.set(announce, Event::Announce);
    }

    /// Sends a message that foca has no call for.
    fn write(&mut self, to: Identity, message: Message<Identity>, about: Option<Member<Identity>>) {
        // 0 claims nothing: the receiver keeps the highest it has heard.
        let header = Header { src: *self.foca.identity(), src_incarnation: 0, dst: to, message };
        let mut bytes = Vec::new();
        let written = Codec.encode_header(&header, &mut bytes).and_then(|()| {
            bytes.extend_from_slice(&u16::from(about.is_some()).to_be_bytes());
            about.iter().try_for_each(|member| Codec.encode_member(member, &mut bytes))
        });
        if written.is_ok() {
            foca::Runtime::send_to(&mut self.out, to, &bytes);
        }
    }

    fn is_suspect(&self, identity: Identity, incarnation: Incarnation) -> bool {
        self.foca.iter_members().any(|member| {
            *member.id() == identity
                && member.incarnation() == incarnation
                && member.state() == State::Suspect
        })
    }

    /// Ends each call: brings the verdicts up to date.
    fn tell(&mut self) {
        // foca that took a new identity probes nobody until it hears from somebody, who may have died just now.
        // An empty update makes it look whom it knows.
        log_bug(self.foca.apply_many(std::iter::empty(), false, &mut self.out));
        if !std::mem::take(&mut self.out.changed) {
            return;
        }
        let heard: BTreeMap<_, _> =
            self.foca.iter_membership_state().map(|member| (member.id().node, member.state())).collect();
        let me = self.foca.identity().node;
        let verdict = |node: &NodeId| match heard.get(node) {
            _ if *node == me => Liveness::Alive,
            Some(State::Alive) => Liveness::Alive,
            Some(State::Suspect) => Liveness::Suspect,
            Some(State::Down) => Liveness::Down,
            None if self.grace.get(node).is_some_and(|until| self.out.now < *until) => Liveness::Alive,
            None => Liveness::Down,
        };
        let verdicts: Verdicts = self.out.nodes.keys().map(|node| (*node, verdict(node))).collect();
        if verdicts != *self.verdicts {
            self.verdicts = Arc::new(verdicts);
        }
    }
}

/// The longest message without news: a header and a count of 0.
const SILENT: usize = MAX_HEADER + 2;

/// None of foca's errors can come from these calls unless this module is wrong; the protocol goes on regardless.
fn log_bug(result: Result<(), foca::Error>) {
    if let Err(error) = result {
        tracing::warn!(err = %error, "membership: foca refused a call");
    }
}

#[cfg(test)]
mod tests;
