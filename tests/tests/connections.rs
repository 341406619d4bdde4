//! Connections that are held through a node without a replica while services change ten times a second. `MESH_CONNECTIONS` and
//! `MESH_CONNECTION_SECONDS` change how many there are, and for how long (`scripts/soak connections`).

use std::env;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_api::{Client, EndpointSettings};
use mesh_tests::{Cluster, Container, Crowd, Lab, Replica, ReplicaSpec, scenario};
use serde::de::DeserializeOwned;
use serde_json::{Value, from_value, json};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// How many there are, and for how many seconds, unless told.
const SHORT: (u64, u64) = (500, 10);
/// From one change to the next.
const PACE: Duration = Duration::from_millis(100);
/// Each connection talks at least as often.
const SILENT: Duration = Duration::from_secs(20);
/// What a change may take. The cluster is to keep up with them.
const CHANGE: Duration = Duration::from_secs(5);
const REPLICAS: usize = 4;

/// Replicas on vm1 and vm2 of the service `web`, at port 80 of every node, and a container that is to come and go.
fn web(lab: &Lab, cluster: &Cluster) -> Result<(Vec<Replica>, Container)> {
    let vm1 = cluster.vm1();
    vm1.meshctl(&["network", "create", "--subnet", "192.168.100.0/24", "blue"]).ok()?;
    vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"]).ok()?;
    let mut replicas = Vec::new();
    for number in 0..REPLICAS {
        let (host, name) = ([vm1, cluster.vm2()][number % 2], format!("web{number}"));
        let spec = ReplicaSpec { name: &name, network: Some("blue"), service: Some("web"), port: 80 };
        replicas.push(Replica::start(host, spec)?);
    }
    cluster.endpoints("web", &format!("{REPLICAS}/{REPLICAS}"))?;
    Ok((replicas, lab.container("guest")?))
}

/// Changes of every kind, in turn.
#[derive(Debug)]
struct Changes {
    client: Client,
    /// Where the namespace is of what comes and goes.
    guest: String,
    /// Of two that belong together, the second waits for the first.
    turns: [Mutex<()>; 4],
}

impl Changes {
    async fn change(&self, number: usize) -> Result<()> {
        let (round, kind) = (number / 8, number % 8);
        let _turn = self.turns[kind % 4].lock().await;
        match kind {
            0 | 4 => self.weigh(number / 4 % REPLICAS, [1, 256, 3, 0][round % 4]).await,
            1 => {
                let balance = if round.is_multiple_of(2) { "random" } else { "roundrobin" };
                self.update("web", json!({ "balance": balance })).await
            }
            2 => {
                let (name, published) = (format!("other{}", round % 4), 9000 + round % 4);
                let spec = json!({ "name": name, "networks": ["blue"], "ports": [port(published)], "drain_timeout_ms": 0 });
                self.client.service_create(&typed(spec)?).await?;
                Ok(())
            }
            3 => self.update("web", json!({ "publish_add": [port(8080)] })).await,
            5 if round.is_multiple_of(2) => {
                let spec = json!({ "network": "blue", "service": "web", "name": "guest", "target": { "netns": self.guest }, "ifname": "eth0" });
                self.client.connect(&typed(spec)?).await?;
                Ok(())
            }
            5 => {
                let request = json!({ "network": "blue", "endpoint": "guest", "force": false });
                self.client.disconnect(&typed(request)?).await?;
                Ok(())
            }
            6 => {
                self.client.service_rm(&format!("other{}", round % 4)).await?;
                Ok(())
            }
            _ => self.update("web", json!({ "publish_rm": ["8080"] })).await,
        }
    }

    async fn weigh(&self, replica: usize, weight: u16) -> Result<()> {
        let settings: EndpointSettings = typed(json!({ "weight": weight }))?;
        self.client.endpoint_update(&format!("web{replica}"), &settings).await?;
        Ok(())
    }

    async fn update(&self, service: &str, update: Value) -> Result<()> {
        self.client.service_update(service, &typed(update)?).await?;
        Ok(())
    }
}

fn port(published: usize) -> Value {
    json!({ "published": published, "target": 80, "protocol": "tcp" })
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T> {
    from_value(value.clone()).with_context(|| value.to_string())
}

/// Changes for so long, each at its time whether or not the one before is everywhere. How many there were, and what the slowest took.
async fn change_for(changes: Arc<Changes>, time: Duration) -> Result<(usize, Duration)> {
    let (mut under_way, mut slowest) = (JoinSet::new(), Duration::ZERO);
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let began = Instant::now();
    let mut number = 0;
    while began.elapsed() < time {
        pace.tick().await;
        let changes = Arc::clone(&changes);
        under_way.spawn(async move {
            let began = Instant::now();
            changes.change(number).await.with_context(|| format!("change {number}"))?;
            anyhow::Ok(began.elapsed())
        });
        number += 1;
        while let Some(done) = under_way.try_join_next() {
            slowest = slowest.max(done??);
        }
    }
    while let Some(done) = under_way.join_next().await {
        slowest = slowest.max(done??);
    }
    Ok((number, slowest))
}

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

#[test]
fn held_while_services_change() {
    scenario("connections", |lab| {
        let count = usize::try_from(number("MESH_CONNECTIONS").unwrap_or(SHORT.0))?;
        let time = Duration::from_secs(number("MESH_CONNECTION_SECONDS").unwrap_or(SHORT.1));
        let (cluster, client) = (Cluster::three(lab)?, lab.client("client")?);
        let (_replicas, guest) = web(lab, &cluster)?;
        let began = Instant::now();
        let every = (time / 5).min(SILENT / 2);
        let crowd = Crowd::start(&client, (cluster.vm3().ip(), 80).into(), count, every)?;
        println!("{count} connections after {:.1?}", began.elapsed());

        let vm1 = cluster.vm1();
        let (client, path) = (Client::new(vm1.file(vm1.socket())), format!("/run/netns/{}", guest.name()));
        let changes = Changes { client, guest: path, turns: Default::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let began = Instant::now();
        let (changed, slowest) = runtime.block_on(change_for(Arc::new(changes), time))?;
        let rate = changed as f64 / began.elapsed().as_secs_f64();
        let seen = crowd.stop()?;
        println!(
            "{} connections, {} talks, {} broken, at most {:.1?} without one; {changed} changes, {rate:.1} a second, the slowest took {slowest:.1?}",
            seen.open,
            seen.talks,
            seen.broken.len(),
            seen.silent
        );
        ensure!(
            seen.broken.is_empty(),
            "{} broke: {:#?}",
            seen.broken.len(),
            &seen.broken[..seen.broken.len().min(5)]
        );
        ensure!(seen.open == count && seen.silent < SILENT, "silent for {:?}", seen.silent);
        ensure!(rate > 9.0 && slowest < CHANGE, "{rate} changes a second, the slowest took {slowest:?}");
        Ok(())
    });
}
