//! What the kernel data plane costs a node as the cluster grows: the first pass of a daemon that finds nothing, one
//! backend that leaves and what follows that pass, a pass that repairs what others changed, and memory. In network and mount namespaces of this
//! process; needs root.
//!
//! `cargo bench --package mesh-benches --bench kernel`

mod passes;

use anyhow::{Result, ensure};
use mesh_benches::{Size, grown, measure::Samples};
use mesh_model::{Balance, NodeId, Snapshot};
use mesh_net::{DataPlane, Pass};
use mesh_tests::process::resident;
use passes::{apart, backends_leave, config, timed};
use std::{env, process::Command};

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

fn row(balance: Balance, services: u32, replicas: u32) -> Result<String> {
    let size = Size { networks: 1, services, replicas, on_all_nodes: false };
    let (snapshot, me) = grown(size, balance);
    let mut first = Samples::default();
    for _ in 1..REPEATED {
        first.push(apart(|| {
            let mut plane = DataPlane::new(config(me)?)?;
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
    let mut plane = DataPlane::new(config(me)?)?;
    first.push(timed(&mut plane, &snapshot, Pass::Full)?[0]);
    let [changed, forgotten] = backends_leave(&mut plane, &mut snapshot, CHANGES)?;
    let mut full = Samples::default();
    for _ in 0..REPEATED {
        full.push(timed(&mut plane, &snapshot, Pass::Full)?[0]);
    }
    let [first, changed, forgotten, full] =
        [first, changed, forgotten, full].map(|samples| samples.to_string());
    let (endpoints, memory) = (snapshot.endpoints.len(), resident("self")?);
    Ok(format!(
        "| {balance} | {services} | {endpoints} | {first:<22} | {changed:<22} | {forgotten:<22} | {full:<22} | {:.0} MB |",
        memory as f64 / 1024.0
    ))
}
