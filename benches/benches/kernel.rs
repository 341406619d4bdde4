//! What the kernel data plane costs a node as the cluster grows: the first pass of a daemon that finds nothing, one
//! backend that leaves and what follows that pass, a pass that repairs what others changed, and memory. In network and mount namespaces of this
//! process; needs root.
//!
//! `cargo bench --package mesh-benches --bench kernel`

use anyhow::{Context, Result, ensure};
use mesh_benches::{Size, grown, measure::Samples};
use mesh_model::{Balance, Change, Endpoint, NodeId, Object, Snapshot};
use mesh_net::{Config, DataPlane, Pass};
use mesh_tests::process::resident;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use std::{env, process::Command, sync::Arc, thread, time::Instant};

const BALANCES: [Balance; 2] = [Balance::Roundrobin, Balance::Random];
/// Services, and replicas of each.
const SIZES: [(u32, u32); 4] = [(100, 3), (1_000, 3), (1_000, 10), (10_000, 3)];
const CHANGES: usize = 20;
/// First passes, each in namespaces of its own, and full ones.
const REPEATED: usize = 5;
/// Tells a process of this bench which row is its.
const ROW: &str = "BENCH_ROW";

fn main() -> Result<()> {
    if let Ok(row) = env::var(ROW) {
        let at: usize = row.parse()?;
        let (services, replicas) = SIZES[at % SIZES.len()];
        println!("{}", self::row(BALANCES[at / SIZES.len()], services, replicas)?);
        return Ok(());
    }
    println!("one network, all replicas on other nodes; milliseconds: median (least–most)");
    println!(
        "| balance | services | endpoints | {:<22} | {:<22} | {:<22} | {:<22} | memory of the process |",
        "first pass", "one backend leaves", "it is forgotten", "full pass, no change"
    );
    println!("|---|---|---|---|---|---|---|---|");
    // A process for each, whose memory nobody else has used.
    for at in 0..SIZES.len() * BALANCES.len() {
        let row = Command::new(env::current_exe()?).env(ROW, at.to_string()).status()?;
        ensure!(row.success(), "row {at}: {row}");
    }
    Ok(())
}

/// Runs something in namespaces that end with it.
fn apart<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

fn row(balance: Balance, services: u32, replicas: u32) -> Result<String> {
    let size = Size { networks: 1, services, replicas, on_all_nodes: false };
    let (snapshot, me) = grown(size, balance);
    let mut first = Samples::default();
    for _ in 1..REPEATED {
        first.push(apart(|| {
            let mut plane = DataPlane::new(Config { run_dir: host()?, me, queries: None })?;
            Ok(timed(&mut plane, &snapshot, Pass::Full)?[0])
        })?);
    }
    apart(|| living(balance, services, snapshot, me, first))
}

/// The rest of a row, by one data plane that goes on.
fn living(
    balance: Balance,
    services: u32,
    mut snapshot: Snapshot,
    me: NodeId,
    mut first: Samples,
) -> Result<String> {
    let run_dir = host()?;
    let mut plane = DataPlane::new(Config { run_dir, me, queries: None })?;
    let mut pass = |snapshot: &Snapshot, pass| timed(&mut plane, snapshot, pass);
    first.push(pass(&snapshot, Pass::Full)?[0]);
    let [mut changed, mut forgotten, mut full] = [(); 3].map(|()| Samples::default());
    let backends: Vec<Arc<Endpoint>> = snapshot.endpoints.values().take(CHANGES).cloned().collect();
    for backend in backends {
        let drained = Endpoint { draining: true, ..Endpoint::clone(&backend) };
        snapshot.apply(Change::Put(Object::Endpoint(Arc::new(drained))));
        let [reported, settled] = pass(&snapshot, Pass::Changed)?;
        changed.push(reported);
        forgotten.push(settled);
    }
    for _ in 0..REPEATED {
        full.push(pass(&snapshot, Pass::Full)?[0]);
    }
    let [first, changed, forgotten, full] =
        [first, changed, forgotten, full].map(|samples| samples.to_string());
    let (endpoints, memory) = (snapshot.endpoints.len(), resident("self")?);
    Ok(format!(
        "| {balance} | {services} | {endpoints} | {first:<22} | {changed:<22} | {forgotten:<22} | {full:<22} | {:.0} MB |",
        memory as f64 / 1024.0
    ))
}

/// Milliseconds of a pass, and of what follows it.
fn timed(plane: &mut DataPlane, snapshot: &Snapshot, pass: Pass) -> Result<[f64; 2]> {
    let snapshot = Arc::new(snapshot.clone());
    let start = Instant::now();
    let report = plane.reconcile(&snapshot, pass);
    let reported = start.elapsed();
    ensure!(report.failures.is_empty(), "{:?}", report.failures);
    plane.settle();
    let settled = start.elapsed() - reported;
    Ok([reported, settled].map(|time| time.as_secs_f64() * 1e3))
}

/// Namespaces that stand for a host: an interface with the node's address, and a place for the overlay's namespaces.
fn host() -> Result<std::path::PathBuf> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)
        .context("root is needed")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
    // /proc/sys is that of the network namespace whoever looks is in.
    for line in
        ["link set lo up", "link add eth0 type veth peer name lan", "address add 192.0.2.1/24 dev eth0"]
            .into_iter()
            .chain(["link set eth0 up", "link set lan up"])
    {
        ensure!(Command::new("ip").args(line.split(' ')).status()?.success(), "ip {line}");
    }
    Ok("/run/mesh".into())
}
