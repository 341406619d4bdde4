//! Five members over loopback UDP, in real time.

use mesh_cluster::membership::{
    ClusterKey, ClusterKeys, Config, Findings, Liveness, Membership, Nodes, Timings,
};
use mesh_model::NodeId;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Member {
    findings: Findings,
    cancel: CancellationToken,
    leave: CancellationToken,
    task: JoinHandle<Result<(), mesh_cluster::Error>>,
}

struct Cluster {
    nodes: watch::Sender<Arc<Nodes>>,
    keys: watch::Sender<ClusterKeys>,
    members: Vec<Option<Member>>,
}

fn node(index: usize) -> NodeId {
    NodeId::from_bits(1 + index as u64)
}

impl Cluster {
    async fn new(count: usize) -> Self {
        let mut sockets = Vec::new();
        for _ in 0..count {
            sockets.push(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        }
        let address = |socket: &UdpSocket| socket.local_addr().unwrap();
        let nodes: Nodes = sockets.iter().enumerate().map(|(i, socket)| (node(i), address(socket))).collect();
        let mut cluster = Self {
            nodes: watch::Sender::new(Arc::new(nodes)),
            keys: watch::Sender::new(ClusterKeys::only(ClusterKey::generate(1).unwrap())),
            members: (0..count).map(|_| None).collect(),
        };
        for (index, socket) in sockets.into_iter().enumerate() {
            cluster.start(index, socket, 1);
        }
        cluster
    }

    fn start(&mut self, index: usize, socket: UdpSocket, generation: u64) {
        let (cancel, leave) = (CancellationToken::new(), CancellationToken::new());
        let config = Config {
            me: node(index),
            generation,
            socket,
            nodes: self.nodes.subscribe(),
            keys: self.keys.subscribe(),
            timings: Timings::default(),
            leave: leave.clone(),
        };
        let (membership, findings) = Membership::new(config).unwrap();
        let task = tokio::spawn(membership.run(cancel.clone()));
        self.members[index] = Some(Member { findings, cancel, leave, task });
    }

    fn address(&self, index: usize) -> SocketAddr {
        self.nodes.borrow()[&node(index)]
    }

    /// Ends a member without a word.
    async fn kill(&mut self, index: usize) {
        let member = self.members[index].take().unwrap();
        member.cancel.cancel();
        member.task.await.unwrap().unwrap();
    }

    async fn leave(&mut self, index: usize) {
        let member = self.members[index].take().unwrap();
        member.leave.cancel();
        member.task.await.unwrap().unwrap();
    }

    /// How long it takes until `of` is `liveness` to all members.
    async fn until(&self, of: usize, liveness: Liveness, within: Duration) -> Duration {
        let start = Instant::now();
        for (who, member) in self.members.iter().enumerate() {
            let Some(member) = member else { continue };
            let mut verdicts = member.findings.verdicts.clone();
            let left = within.saturating_sub(start.elapsed());
            let seen = tokio::time::timeout(left, verdicts.wait_for(|all| all[&node(of)] == liveness)).await;
            assert!(seen.is_ok(), "{of} is not {liveness} to {who} after {within:?}");
        }
        start.elapsed()
    }

    /// Until all members have really heard of each other: being alive may be the grace of the start.
    async fn acquainted(&self) {
        for member in self.members.iter().flatten() {
            let mut tally = member.findings.tally.clone();
            tokio::time::timeout(Duration::from_secs(5), tally.wait_for(|t| t.taken > 10))
                .await
                .unwrap()
                .unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_member_is_down_within_3_seconds_and_back_when_it_returns() {
    let mut cluster = Cluster::new(5).await;
    cluster.acquainted().await;
    cluster.kill(3).await;
    cluster.until(3, Liveness::Down, Duration::from_secs(3)).await;
    let socket = UdpSocket::bind(cluster.address(3)).await.unwrap();
    // It has no memory of its last life, and its clock stood still.
    cluster.start(3, socket, 0);
    cluster.until(3, Liveness::Alive, Duration::from_secs(3)).await;
    for index in 0..5 {
        cluster.until(index, Liveness::Alive, Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_is_down_at_once_and_garbage_is_counted() {
    let mut cluster = Cluster::new(3).await;
    cluster.acquainted().await;
    cluster.leave(2).await;
    cluster.until(2, Liveness::Down, Duration::from_millis(500)).await;

    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for size in [0, 1, 44, 45, 500, 1200, 1201, 9000] {
        for first in [0, 1] {
            stranger.send_to(&vec![first; size], cluster.address(0)).await.unwrap();
        }
    }
    let mut tally = cluster.members[0].as_ref().unwrap().findings.tally.clone();
    let counted = tokio::time::timeout(Duration::from_secs(5), tally.wait_for(|tally| tally.dropped() >= 16));
    counted.await.expect("all are counted").unwrap();
    cluster.until(0, Liveness::Alive, Duration::from_secs(1)).await;
}
