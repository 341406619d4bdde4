//! Nodes that are updated, drained, removed, and that leave and come back.

use anyhow::{Context, Result, ensure};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use mesh_tests::{
    CONVERGES, Cluster, Host, Load, MemberConnection, Replica, ReplicaSpec, credentials, field, only,
    scenario, within,
};
use mesh_wire::client::request;
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};
use tokio::{task::JoinHandle, time::timeout_at};

fn replica(host: &Host, name: &str) -> Result<Replica> {
    Replica::start(host, ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 })
}

fn service(cluster: &Cluster) -> Result<()> {
    let vm1 = cluster.vm1();
    vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
    vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"]).ok()?;
    Ok(())
}

fn join(cluster: &Cluster, host: &Host) -> Result<()> {
    let token = cluster.vm1().meshctl(&["-q", "cluster", "join-token", "worker"]).ok()?;
    let manager = format!("{}:7443", cluster.vm1().ip());
    host.meshctl(&["cluster", "join", "--token", &token, &manager]).ok().map(drop)
}

fn names(cluster: &Cluster) -> Result<Vec<String>> {
    Ok(cluster.list(&["node", "ls"])?.iter().map(|node| field(node, "name")).collect())
}

/// Drain takes a node's replicas out under requests without an error; pause refuses new ones only.
#[test]
fn availability_and_labels() {
    scenario("availability", |lab| {
        let cluster = Cluster::three(lab)?;
        service(&cluster)?;
        let _replicas = [replica(cluster.vm2(), "web2")?, replica(cluster.vm3(), "web3")?];
        let (vm1, client) = (cluster.vm1(), lab.client("client")?);
        cluster.answer_in_turn(&client, 80, &["web2", "web3"])?;

        let load = Load::start(&client, &cluster.urls(80)[1])?;
        vm1.meshctl(&["node", "update", "--availability", "drain", "--label-add", "zone=a", "vm2"]).ok()?;
        // The answer came when every node had applied it.
        for url in cluster.urls(80) {
            only(&client.answers(&url, 4)?, &["web3"])?;
        }
        cluster.endpoints("web", "1/2")?;
        let target = lab.container("c")?.target();
        let connect = ["network", "connect", "--name", "c", "blue", target.as_str()];
        cluster.vm2().meshctl(&connect).refused("'vm2' is not active")?;
        vm1.meshctl(&["node", "update", "--availability", "pause", "vm2"]).ok()?;
        cluster.answer_in_turn(&client, 80, &["web2", "web3"])?;
        cluster.vm2().meshctl(&connect).refused("'vm2' is not active")?;
        vm1.meshctl(&[
            "node",
            "update",
            "--availability",
            "active",
            "--label-add",
            "disk=ssd",
            "--label-rm",
            "zone",
            "vm2",
        ])
        .ok()?;
        cluster.vm2().meshctl(&connect).ok()?;
        load.go_on(10)?;
        only(&load.stop()?, &["web2", "web3"])?;

        let shown = vm1.meshctl(&["node", "inspect", "vm2"]).ok()?;
        ensure!(shown.contains("disk=ssd") && !shown.contains("zone=a"), "{shown}");
        let on_vm2 = vm1.meshctl(&["node", "ps", "vm2"]).ok()?;
        ensure!(on_vm2.contains("web2") && !on_vm2.contains("web3"), "{on_vm2}");
        vm1.meshctl(&["node", "update", "--label-add", "a=b", "vm9"]).refused("no node is called 'vm9'")?;
        cluster
            .vm3()
            .meshctl(&["node", "update", "--availability", "drain", "vm2"])
            .refused("run the command on a manager")
    });
}

/// A removed node is refused at once, takes its endpoints with it and a membership key out of use.
#[test]
fn removal() {
    scenario("node rm", |lab| {
        let cluster = Cluster::three(lab)?;
        service(&cluster)?;
        let _replicas = [replica(cluster.vm2(), "web2")?, replica(cluster.vm3(), "web3")?];
        let (vm1, client) = (cluster.vm1(), lab.client("client")?);
        cluster.answer_in_turn(&client, 80, &["web2", "web3"])?;
        vm1.meshctl(&["node", "rm", "vm1"]).refused("'vm1' is a manager")?;
        vm1.meshctl(&["node", "rm", "vm3"]).refused("'vm3' is up")?;
        let key = || -> Result<serde_json::Value> {
            Ok(serde_json::from_str(&cluster.vm2().output(&["cat", "/run/lab/vm2/data/gossip.json"]).ok()?)?)
        };
        let before = key()?;

        vm1.meshctl(&["node", "rm", "--force", "vm3"]).ok()?;
        ensure!(names(&cluster)? == ["vm1", "vm2"]);
        cluster.endpoints("web", "1/1")?;
        for url in &cluster.urls(80)[..2] {
            only(&client.answers(url, 3)?, &["web2"])?;
        }
        within(CONVERGES, "the removed node is refused", || {
            let status = cluster.vm3().meshctl(&["status"]);
            ensure!(status.code == Some(1), "{status:?}");
            ensure!(
                status.stderr.contains("removed from the cluster: run 'meshctl cluster leave --force'"),
                "{status:?}"
            );
            Ok(())
        })?;
        within(CONVERGES, "a key that it does not know is in use", || {
            let now = key()?;
            ensure!(now["current"] != before["current"] && now["other"].is_null(), "the keys did not change");
            Ok(())
        })?;
        let nodes = cluster.list(&["node", "ls"])?;
        ensure!(nodes.iter().all(|node| field(node, "status") == "ready"), "{nodes:?}");
        let old = cluster.vm3().output(&["cat", "/run/lab/vm3/data/gossip.json"]).ok()?;
        ensure!(serde_json::from_str::<serde_json::Value>(&old)? == before, "it was given a later key");

        // It is told to go, goes, and is welcome again.
        cluster.vm3().meshctl(&["cluster", "leave", "--force"]).ok()?;
        join(&cluster, cluster.vm3())?;
        ensure!(names(&cluster)? == ["vm1", "vm2", "vm3"]);
        Ok(())
    });
}

/// What a member may hear for as long as it is one, read to its end: the state as it changes, and what happens.
async fn streams(connection: &mut MemberConnection) -> Result<[JoinHandle<()>; 2]> {
    let watch = request(Method::POST, "/v1/agent/watch", b"null".to_vec());
    let events = request(Method::GET, "/v1/agent/events", Vec::new());
    let mut reading = Vec::new();
    for asked in [watch, events] {
        let answer = connection.sender.send_request(asked).await?;
        ensure!(answer.status() == StatusCode::OK, "{answer:?}");
        let mut lines = answer.into_body();
        lines.frame().await.context("it ended at once")??;
        reading.push(tokio::spawn(async move { while let Some(Ok(_)) = lines.frame().await {} }));
    }
    reading.try_into().ok().context("two streams")
}

/// A removed node that goes on listening hears nothing more, whichever manager it listens to.
#[test]
fn a_removed_node_is_deaf() {
    scenario("removed listeners", |lab| {
        let cluster = Cluster::managers(lab)?;
        let (vm1, manager) = (cluster.vm1(), SocketAddr::from((cluster.vm1().ip(), 7443)));
        let removals = [("vm4", vm1, Duration::from_secs(1)), ("vm5", cluster.vm2(), Duration::from_secs(2))];
        for (name, by, patience) in removals {
            let mut daemon = lab.host(name)?.meshd()?;
            join(&cluster, daemon.host())?;
            let credentials = credentials(daemon.host())?;
            // Somebody has taken it over.
            daemon.kill()?;
            daemon.host().inside(|| {
                let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
                runtime.block_on(async {
                    let mut connection = MemberConnection::open(manager, &credentials, 1 << 16).await?;
                    let streams = streams(&mut connection).await?;
                    vm1.meshctl(&["network", "create", &format!("of-{name}")]).ok()?;
                    ensure!(!streams.iter().any(JoinHandle::is_finished), "a member's stream ended");
                    by.meshctl(&["node", "rm", "--force", name]).ok()?;
                    let deadline = Instant::now() + patience;
                    for (stream, what) in streams.into_iter().zip(["state", "events"]) {
                        timeout_at(deadline.into(), stream)
                            .await
                            .with_context(|| format!("{name} goes on to hear the {what}"))??;
                    }
                    Ok(())
                })
            })?;
        }
        Ok(())
    });
}

/// Who leaves is forgotten, leaves nothing behind in its kernel or on its disk, and can join again.
#[test]
fn leaving() {
    scenario("cluster leave", |lab| {
        let cluster = Cluster::three(lab)?;
        let (vm1, vm3) = (cluster.vm1(), cluster.vm3());
        service(&cluster)?;
        let replica3 = replica(vm3, "web3")?;
        vm1.meshctl(&["cluster", "leave"]).refused("the only manager")?;
        vm3.meshctl(&["cluster", "leave"]).refused("this node has 1 endpoints")?;
        drop(replica3);
        within(CONVERGES, "the endpoint is gone", || vm3.meshctl(&["cluster", "leave"]).ok())?;
        ensure!(names(&cluster)? == ["vm1", "vm2"]);
        vm3.meshctl(&["node", "ls"]).refused("no cluster yet")?;
        vm3.meshctl(&["status"]).ok()?;
        let left = vm3.output(&["ls", "/run/lab/vm3/data"]).ok()?;
        ensure!(!left.contains("node") && !left.contains("gossip") && !left.contains("snapshot"), "{left}");
        let now = vm3.kernel_objects()?;
        ensure!(!now.contains("table ") && !now.contains("up4096") && !now.contains("netns"), "{now}");
        join(&cluster, vm3)?;
        ensure!(names(&cluster)? == ["vm1", "vm2", "vm3"]);
        let _web3 = replica(vm3, "web3")?;
        let client = lab.client("client")?;
        cluster.answer_in_turn(&client, 80, &["web3"])
    });
}
