//! What this node finds out by itself: the managers' snapshot with the liveness of nodes and the verdicts of this node's
//! health checks, as the data planes see it.
//!
//! ```text
//! link ────► snapshot ──┬──► with liveness ──► planes, names, proxy, local API
//! membership ► verdicts ┤
//! link, sessions ───────┤ (who is reached over TCP)
//! health checks ────────┤ (of the endpoints on this node)
//! lost ─────────────────┘ (hosts that say nothing, of the nodes that are down)
//! ```
//!
//! The node's own checks are the only source of its endpoints' health. Here they count at once: with a manager, sooner
//! than its answer; without one, all the same.
//!
//! Liveness is membership's verdict, which comes over UDP, with one exception. A node that has *every* other down is
//! either cut off or the only one whose UDP is blocked; TCP tells which:
//!
//! - It reaches a manager on another node, or, being the only manager, holds the session of the node in question: UDP is
//!   what fails, and the verdict is worth nothing. Down counts as suspect, and `status` says what to open.
//! - Nothing answers: it is cut off. Remote backends are out, its own stay.
//!
//! A node that others hear and only some don't, or that is connected to this manager while membership has it down
//! (firewalls that let one direction through), stays down here: its overlay runs over UDP as well and most likely fails
//! too. Leaving it out costs capacity; offering it costs requests. `status` names it on the managers it is connected to.

use super::report::OwnHealth;
use anyhow::Context;
use mesh_cluster::membership::{Liveness as Verdict, Nodes, Verdicts};
use mesh_model::{NodeId, NodeStatus, Role, Snapshot};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What liveness is made of, and where it goes.
pub(super) struct Liveness {
    pub(super) me: NodeId,
    /// As the managers tell it.
    pub(super) told: watch::Receiver<Arc<Snapshot>>,
    pub(super) verdicts: watch::Receiver<Arc<Verdicts>>,
    /// The manager that this node's agent is connected to.
    pub(super) manager: watch::Receiver<Option<SocketAddr>>,
    /// Whose agents are connected to the manager in this process.
    pub(super) connected: watch::Receiver<BTreeSet<NodeId>>,
    /// Of the endpoints on this node.
    pub(super) health: watch::Receiver<Arc<OwnHealth>>,
    /// Of the nodes that are down, those whose hosts say nothing either.
    pub(super) lost: watch::Receiver<BTreeSet<NodeId>>,
    /// For membership: the nodes there are.
    pub(super) nodes: watch::Sender<Arc<Nodes>>,
    /// The snapshot with liveness.
    pub(super) seen: watch::Sender<Arc<Snapshot>>,
    /// What is wrong between the nodes, a line each.
    pub(super) problems: watch::Sender<Vec<String>>,
}

impl Liveness {
    pub(super) async fn run(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        loop {
            let changed = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                // Marked again: whatever wakes this first, a snapshot that is new is told.
                changed = self.told.changed() => changed.map(|()| self.told.mark_changed()),
                changed = self.verdicts.changed() => changed,
                changed = self.manager.changed() => changed,
                changed = self.connected.changed() => changed,
                changed = self.health.changed() => changed,
                changed = self.lost.changed() => changed,
            };
            changed.context("what liveness is made of ended")?;
            let told = self.told.has_changed().context("no snapshots any more")?;
            self.tell(told);
        }
    }

    /// Tells what follows from what is known now; `told`: the managers' part of it changed.
    fn tell(&mut self, told: bool) {
        let snapshot = Arc::clone(&self.told.borrow_and_update());
        if told {
            let nodes: Nodes = snapshot.nodes.iter().map(|(id, node)| (*id, node.advertise)).collect();
            self.nodes.send_if_modified(|known| {
                let changed = **known != nodes;
                if changed {
                    *known = Arc::new(nodes);
                }
                changed
            });
        }
        let (status, problems) = judge(&Evidence {
            me: self.me,
            snapshot: &snapshot,
            verdicts: &self.verdicts.borrow_and_update(),
            manager: *self.manager.borrow_and_update(),
            connected: &self.connected.borrow_and_update(),
        });
        self.problems.send_replace(problems);
        let health = with_own(self.me, &snapshot, &self.health.borrow_and_update());
        let is_down = |node: &&NodeId| status.get(node) == Some(&NodeStatus::Down);
        let lost: BTreeSet<NodeId> = self.lost.borrow_and_update().iter().filter(is_down).copied().collect();
        let changed = |seen: &Snapshot| seen.status != status || seen.health != health || seen.lost != lost;
        if told || changed(&self.seen.borrow()) {
            let seen = Snapshot { status, health, lost, ..Snapshot::clone(&snapshot) };
            self.seen.send_replace(Arc::new(seen));
        }
    }
}

/// The managers' verdicts, with the node's own on its own endpoints.
fn with_own(me: NodeId, snapshot: &Snapshot, own: &OwnHealth) -> OwnHealth {
    let is_mine = |endpoint| snapshot.endpoints.get(endpoint).is_some_and(|endpoint| endpoint.node == me);
    let mut health = snapshot.health.clone();
    health.extend(own.iter().filter(|(endpoint, _)| is_mine(endpoint)));
    health
}

/// What a node has to go by.
struct Evidence<'a> {
    me: NodeId,
    snapshot: &'a Snapshot,
    verdicts: &'a Verdicts,
    manager: Option<SocketAddr>,
    connected: &'a BTreeSet<NodeId>,
}

/// The liveness of each node, and what is wrong, a line each.
fn judge(evidence: &Evidence<'_>) -> (BTreeMap<NodeId, NodeStatus>, Vec<String>) {
    let nodes = &evidence.snapshot.nodes;
    let others = || nodes.values().filter(|node| node.id != evidence.me);
    let down = |node: NodeId| evidence.verdicts.get(&node) == Some(&Verdict::Down);
    let none_answers = others().next().is_some() && others().all(|node| down(node.id));

    let own = nodes.get(&evidence.me).map(|node| node.advertise);
    let elsewhere = evidence.manager.is_some() && evidence.manager != own;
    let connected = || others().filter(|node| evidence.connected.contains(&node.id));
    // With more managers, a node that is not connected to this one may be to another.
    let alone = nodes.values().filter(|node| node.role == Role::Manager).count() == 1;
    let reached =
        |node| elsewhere || evidence.connected.contains(&node) || (!alone && connected().next().is_some());

    let status = |node| match evidence.verdicts.get(&node) {
        _ if node == evidence.me => NodeStatus::Ready,
        Some(Verdict::Down) if none_answers && reached(node) => NodeStatus::Suspect,
        Some(Verdict::Down) => NodeStatus::Down,
        Some(Verdict::Suspect) => NodeStatus::Suspect,
        Some(Verdict::Alive) | None => NodeStatus::Ready,
    };
    let port = own.map_or(0, |own| own.port());
    let problems = if none_answers && others().any(|node| reached(node.id)) {
        vec![format!(
            "no node answers on UDP port {port}, though managers or agents do on TCP: open it between the nodes"
        )]
    } else {
        let missed = connected().filter(|node| down(node.id));
        missed
            .map(|node| {
                format!("node '{}' is connected, but does not answer on UDP port {port}: open it between the nodes", node.name)
            })
            .collect()
    };
    (nodes.keys().map(|node| (*node, status(*node))).collect(), problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_model::{Availability, Node};
    use std::time::Duration;

    const ME: u64 = 1;

    fn id(bits: u64) -> NodeId {
        NodeId::from_bits(bits)
    }

    fn address(bits: u64) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, bits as u8], 7443))
    }

    /// Nodes 1 to 3; the first `managers` of them are managers.
    fn snapshot(managers: u64) -> Snapshot {
        let node = |bits| Node {
            id: id(bits),
            name: format!("vm{bits}").parse().unwrap(),
            role: if bits <= managers { Role::Manager } else { Role::Worker },
            index: bits as u32,
            advertise: address(bits),
            addresses: Vec::new(),
            availability: Availability::Active,
            labels: BTreeMap::new(),
            created: 0,
        };
        let nodes = (1..=3).map(|bits| (id(bits), Arc::new(node(bits)))).collect();
        Snapshot { nodes, ..Snapshot::default() }
    }

    /// A snapshot that comes together with something else is told, whichever is seen first.
    #[tokio::test]
    async fn no_snapshot_is_lost() {
        for _ in 0..50 {
            let (told, verdicts) = (watch::Sender::<Arc<Snapshot>>::default(), watch::Sender::default());
            let (manager, connected) = (watch::Sender::default(), watch::Sender::default());
            let (health, lost) = (watch::Sender::default(), watch::Sender::default());
            let (nodes, seen) = (watch::Sender::default(), watch::Sender::<Arc<Snapshot>>::default());
            let (mut to_see, to_probe) = (seen.subscribe(), nodes.subscribe());
            let liveness = Liveness {
                me: id(1),
                told: told.subscribe(),
                verdicts: verdicts.subscribe(),
                manager: manager.subscribe(),
                connected: connected.subscribe(),
                health: health.subscribe(),
                lost: lost.subscribe(),
                nodes,
                seen,
                problems: watch::Sender::default(),
            };
            told.send_replace(Arc::new(snapshot(1)));
            manager.send_replace(Some(SocketAddr::from(([10, 77, 0, 1], 7443))));
            connected.send_replace(BTreeSet::from([id(2)]));
            let cancel = CancellationToken::new();
            let running = tokio::spawn(liveness.run(cancel.clone()));
            let told = to_see.wait_for(|seen| seen.nodes.len() == 3);
            drop(tokio::time::timeout(Duration::from_secs(10), told).await.expect("told").unwrap());
            assert_eq!(to_probe.borrow().len(), 3);
            cancel.cancel();
            running.await.unwrap().unwrap();
            drop(verdicts);
        }
    }

    /// What node `me` makes of these verdicts on nodes 1 to 3.
    fn seen(
        me: u64,
        managers: u64,
        verdicts: [Verdict; 3],
        manager: Option<u64>,
        connected: &[u64],
    ) -> ([NodeStatus; 3], Vec<String>) {
        let verdicts = (1..=3).zip(verdicts).map(|(bits, verdict)| (id(bits), verdict)).collect();
        let (status, problems) = judge(&Evidence {
            me: id(me),
            snapshot: &snapshot(managers),
            verdicts: &verdicts,
            manager: manager.map(address),
            connected: &connected.iter().copied().map(id).collect(),
        });
        ([1, 2, 3].map(|bits| status[&id(bits)]), problems)
    }

    use NodeStatus::{Down, Ready, Suspect};
    const ALONE: [Verdict; 3] = [Verdict::Alive, Verdict::Down, Verdict::Down];

    #[test]
    fn verdicts_hold_as_long_as_anybody_answers() {
        let verdicts = [Verdict::Alive, Verdict::Suspect, Verdict::Down];
        assert_eq!(seen(ME, 1, verdicts, Some(1), &[1, 2]), ([Ready, Suspect, Down], vec![]));
        // Connected, yet out: and said.
        let (status, problems) = seen(ME, 1, verdicts, Some(1), &[1, 2, 3]);
        assert_eq!(status, [Ready, Suspect, Down]);
        assert!(
            problems.len() == 1 && problems[0].contains("'vm3'") && problems[0].contains("UDP port 7443")
        );
        // Not yet judged.
        let nothing = judge(&Evidence {
            me: id(ME),
            snapshot: &snapshot(1),
            verdicts: &Verdicts::new(),
            manager: None,
            connected: &BTreeSet::new(),
        });
        assert!(nothing.0.values().all(|status| *status == Ready) && nothing.1.is_empty());
    }

    #[test]
    fn who_is_cut_off_has_the_others_down() {
        assert_eq!(seen(ME, 1, ALONE, Some(1), &[1]), ([Ready, Down, Down], vec![]), "a manager");
        let worker = [Verdict::Down, Verdict::Alive, Verdict::Down];
        assert_eq!(seen(2, 1, worker, None, &[]), ([Down, Ready, Down], vec![]), "a worker");
    }

    #[test]
    fn blocked_udp_is_told_from_a_cut() {
        let worker = [Verdict::Down, Verdict::Alive, Verdict::Down];
        let (status, problems) = seen(2, 1, worker, Some(1), &[]);
        assert_eq!(status, [Suspect, Ready, Suspect]);
        assert!(problems.len() == 1 && problems[0].starts_with("no node answers on UDP port 7443"));
        // The only manager knows who is there; one of several does not.
        assert_eq!(seen(ME, 1, ALONE, Some(1), &[1, 2]).0, [Ready, Suspect, Down]);
        assert_eq!(seen(ME, 3, ALONE, Some(1), &[1, 2]).0, [Ready, Suspect, Suspect]);
        assert_eq!(seen(ME, 3, ALONE, Some(2), &[]).0, [Ready, Suspect, Suspect]);
    }
}
