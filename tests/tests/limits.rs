//! What one member can take of a manager: bounded memory for a bounded time, and no other member's place.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use http::{Method, Response};
use hyper::body::Incoming;
use mesh_cluster::Credentials;
use mesh_tests::{CONVERGES, Cluster, Host, MemberConnection, Meshd, credentials, scenario, within};
use mesh_wire::client::request;

/// What a member that does not read has room for, in bytes.
const WINDOW: u32 = 1000;
/// Connections that it opens: as many as a node may have, and two more.
const CONNECTIONS: usize = 10;
/// What it asks for on each. The state is about a megabyte.
const ANSWERS: usize = 60;
/// The manager bears it for ten seconds; the rest is for a machine with other things to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much memory all of it may cost, in kilobytes. Each answer buffered whole would make 480 MB.
const MEMORY: u64 = 150 << 10;

/// How often a line of a host's log says something.
fn said(host: &Host, text: &str) -> Result<usize> {
    let log = fs::read_to_string(host.file(host.log_path()))?;
    Ok(log.lines().filter(|line| line.contains(text)).count())
}

/// A connection that answers pings, and whose answers are not read.
struct Unread {
    connection: MemberConnection,
    _answers: Vec<Response<Incoming>>,
}

impl Unread {
    async fn open(manager: SocketAddr, credentials: &Credentials) -> Result<Self> {
        let mut connection = MemberConnection::open(manager, credentials, WINDOW).await?;
        let watch = request(Method::POST, "/v1/agent/watch", b"null".to_vec());
        let mut answers = vec![connection.sender.send_request(watch).await?];
        for _ in 1..ANSWERS {
            let state = request(Method::GET, "/v1/agent/state", Vec::new());
            answers.push(connection.sender.send_request(state).await?);
        }
        Ok(Self { connection, _answers: answers })
    }

    fn is_open(&self) -> bool {
        !self.connection.served.is_finished()
    }
}

/// Opens them all, and waits until the manager ends them; returns the most memory that it had meanwhile.
async fn unread(manager: SocketAddr, credentials: &Credentials, daemon: &Meshd) -> Result<u64> {
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS {
        open.push(Unread::open(manager, credentials).await?);
    }
    let (start, mut most) = (Instant::now(), 0);
    while open.iter().any(Unread::is_open) {
        let left = open.iter().filter(|unread| unread.is_open()).count();
        ensure!(start.elapsed() < PATIENCE, "{left} connections are left");
        most = most.max(daemon.resident()?);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eprintln!("all ended after {:?}, {most} kB at most", start.elapsed());
    Ok(most)
}

#[test]
fn a_member_that_does_not_read_costs_little() {
    scenario("unread answers", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let vm1 = cluster.vm1().clone();
        for number in 0..10 {
            let label = format!("text={}", "x".repeat(100_000));
            vm1.meshctl(&["network", "create", "--label", &label, &format!("net{number}")]).ok()?;
        }
        // Somebody has taken vm3 over.
        cluster.daemons[2].kill()?;
        let vm3 = cluster.vm3().clone();
        let credentials = credentials(&vm3)?;
        let connected = |host: &Host| said(host, "connected to a manager");
        let before = (cluster.daemons[0].resident()?, connected(&vm1)?, connected(cluster.vm2())?);

        let manager = SocketAddr::from((vm1.ip(), 7443));
        let most = vm3.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(unread(manager, &credentials, &cluster.daemons[0]))
        })?;
        let grown = most.saturating_sub(before.0);
        ensure!(grown < MEMORY, "{grown} kB more than before");
        ensure!(said(&vm1, "does not read what it asked for")? == CONNECTIONS - 2);
        ensure!(said(&vm1, "too many connections")? == 2);

        // The others have noticed nothing.
        vm1.meshctl(&["network", "create", "after"]).ok()?;
        cluster.vm2().meshctl(&["network", "inspect", "after"]).ok()?;
        let after = (connected(&vm1)?, connected(cluster.vm2())?);
        ensure!(after == (before.1, before.2), "connected {after:?} times, {before:?} before");

        // And the node is welcome once it reads again.
        cluster.daemons[2].start()?;
        within(CONVERGES, "vm3 is up to date", || vm3.meshctl(&["network", "inspect", "after"]).ok())?;
        Ok(())
    });
}
