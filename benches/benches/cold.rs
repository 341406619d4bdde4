//! A daemon that starts in a cluster of 1,000 services with 10,000 endpoints: how long until the command line works, the kernel
//! holds everything and names are answered, and what that costs. After a crash, when the kernel still has all; and with
//! nothing there, as after a reboot. One real `meshd`, manager and agent; the other nodes are records only. Needs root.
//!
//! `cargo build --release --workspace --bins && cargo bench --package mesh-benches --bench cold`

use anyhow::{Context, Result, bail};
use mesh_benches::{Size, grown, measure::Samples};
use mesh_model::{Balance, Object, Snapshot};
use mesh_store::{Options, RedbStore, Store, Txn};
use mesh_tests::{Container, Host, Lab, Meshd, within};
use std::{
    fs,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

const SIZE: Size = Size { networks: 1, services: 1000, replicas: 10, on_all_nodes: false };
const ROUNDS: usize = 5;
const LIMIT: Duration = Duration::from_secs(60);
/// What a start costs is counted for so long.
const COUNTED: Duration = Duration::from_secs(5);
/// Records in one transaction.
const CHUNK: usize = 1000;
/// Milliseconds of processor time in the ticks of `/proc/PID/stat` (`USER_HZ`, 100 on Linux's own ABI).
const TICK_MS: f64 = 10.0;

/// Takes away what a reboot would, but the containers: they are to be connected again.
const REBOOT: &str = r#"
for front in "$0"/front.*.sock; do front=${front%.sock}; kill -9 ${front##*.}; done
for net in "$0"/netns/*; do umount --lazy "$net"; done
rm -rf "$0"/*
ip -brief link show type veth | grep -o '^up[0-9]*' | xargs -rn1 ip link delete
nft flush ruleset
"#;

fn main() -> Result<()> {
    let lab = Lab::new("cold")?;
    let host = lab.host("vm1")?;
    let mut daemon = host.meshd()?;
    host.meshctl(&["cluster", "init", "--advertise-addr", &host.ip().to_string()]).ok()?;
    daemon.terminate()?;
    let (snapshot, _) = grown(SIZE, Balance::Roundrobin);
    tokio::runtime::Runtime::new()?.block_on(fill(&host, &snapshot))?;
    daemon.start()?;
    let container = lab.container("c")?;
    host.meshctl(&["network", "connect", "--name", "c", "network0", &container.target()]).ok()?;
    println!("{} endpoints, {ROUNDS} starts each: median (least–most)", snapshot.endpoints.len());
    println!("| start | command line, ms | names, ms | processor, ms | memory, MB | of names and L7, MB |");
    println!("|---|---:|---:|---:|---:|---:|");
    for (what, reboot) in [("after a crash", false), ("after a reboot", true)] {
        let mut columns = [(); 5].map(|()| Samples::default());
        for _ in 0..ROUNDS {
            daemon.kill()?;
            if reboot {
                host.output(&["bash", "-c", REBOOT, &host.run_dir()]).ok()?;
            }
            let figures = start(&host, &mut daemon, &container)?;
            columns.iter_mut().zip(figures).for_each(|(column, figure)| column.push(figure));
        }
        let columns: Vec<String> = columns.iter().map(Samples::to_string).collect();
        println!("| {what} | {} |", columns.join(" | "));
    }
    Ok(())
}

/// Puts a cluster's records into the store of a manager that does not run: those of `benches/src/grown.rs`, which has the
/// manager for its first node.
async fn fill(host: &Host, snapshot: &Snapshot) -> Result<()> {
    let store = RedbStore::open(host.file(host.data_dir()).join("store"), Options::default()).await?;
    let nodes = snapshot.nodes.values().filter(|node| node.index > 1).cloned().map(Object::Node);
    let networks = snapshot.networks.values().cloned().map(Object::Network);
    let services = snapshot.services.values().cloned().map(Object::Service);
    let endpoints = snapshot.endpoints.values().cloned().map(Object::Endpoint);
    let all = nodes.chain(networks).chain(services).chain(endpoints);
    let records = all.map(|object| record(&object)).collect::<Result<Vec<_>>>()?;
    for chunk in records.chunks(CHUNK) {
        let txn = chunk.iter().fold(Txn::new(), |txn, (key, value)| txn.put(key.clone(), value.clone()));
        store.commit(txn).await?;
    }
    Ok(())
}

/// As the manager keeps it.
fn record(object: &Object) -> Result<(String, Vec<u8>)> {
    let value = match object {
        Object::Node(node) => serde_json::to_vec(node),
        Object::Network(network) => serde_json::to_vec(network),
        Object::Service(service) => serde_json::to_vec(service),
        Object::Endpoint(endpoint) => serde_json::to_vec(endpoint),
        other => bail!("{} is not of this cluster", other.key()),
    };
    Ok((object.key().to_string(), value?))
}

/// Milliseconds until the command line works, and until a container is told the address of the last service: in a network
/// that was gone the pass over it is done by then. Processor time in milliseconds, memory in megabytes.
fn start(host: &Host, daemon: &mut Meshd, container: &Container) -> Result<[f64; 5]> {
    let began = Instant::now();
    let ms = |at: Instant| (at - began).as_secs_f64() * 1e3;
    let answered = Arc::new(container.clone());
    let names = thread::spawn(move || -> Result<Instant> {
        within(LIMIT, "a name has an address", || {
            let found = answered.dig(&["@10.128.0.1", "+tries=1", "+time=1", "service1000"])?;
            anyhow::ensure!(found.len() == 1, "{found:?}");
            Ok(Instant::now())
        })
    });
    daemon.start()?;
    within(LIMIT, "the command line works", || host.meshctl(&["status"]).ok())?;
    let command_line = ms(Instant::now());
    let names = ms(names.join().ok().context("the look-ups panicked")??);
    thread::sleep((began + COUNTED).saturating_duration_since(Instant::now()));
    let process = daemon.pid().context("meshd runs")?;
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields = stat.rsplit_once(") ").context("a process")?.1.split(' ');
    // proc_stat(5): after the name in parentheses come field 3 and so on; user and system time are 14 and 15.
    let ticks: u64 = fields.skip(11).take(2).flat_map(str::parse::<u64>).sum();
    let mut of_fronts = 0;
    for front in daemon.fronts()? {
        let status = host.output(&["grep", "VmRSS", &format!("/proc/{front}/status")]).ok()?;
        of_fronts += status.split_whitespace().flat_map(str::parse::<u64>).sum::<u64>();
    }
    let megabytes = |kilobytes: u64| kilobytes as f64 / 1024.0;
    Ok([command_line, names, ticks as f64 * TICK_MS, megabytes(daemon.resident()?), megabytes(of_fronts)])
}
