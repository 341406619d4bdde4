//! Hosts whose clocks disagree.

use anyhow::{Context, Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Meshd, Replica, ReplicaSpec, scenario, within};
use std::path::Path;

/// Debian's package faketime has it in the directory of the architecture.
fn libfaketime() -> Result<String> {
    let path = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
    ensure!(Path::new(&path).is_file(), "{path} is missing: install the package faketime");
    Ok(path)
}

/// The manager's clock is right, one worker's ten minutes fast, the other's ten minutes slow: they join, find each
/// other, and come back after a restart.
#[test]
fn ten_minutes_apart() {
    scenario("clocks", |lab| {
        let preload = format!("LD_PRELOAD={}", libfaketime()?);
        let mut daemons: Vec<Meshd> = Vec::new();
        for (name, offset) in [("vm1", "+0"), ("vm2", "+600"), ("vm3", "-600")] {
            let offset = format!("FAKETIME={offset}");
            // Time that passes is nobody's to change: only what the calendar says differs.
            let faked = ["env", "FAKETIME_DONT_FAKE_MONOTONIC=1", &preload, &offset];
            daemons.push(lab.host(name)?.meshd_under(&faked)?);
        }
        let mut cluster = Cluster::of(daemons)?;
        let vm1 = cluster.vm1();
        vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"])
            .ok()?;
        let spec = |name| ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 };
        let _replicas =
            [Replica::start(cluster.vm2(), spec("web2"))?, Replica::start(cluster.vm3(), spec("web3"))?];
        let client = lab.client("client")?;
        cluster.answer_in_turn(&client, 80, &["web2", "web3"])?;
        let fast = cluster.endpoint("web2")?["created"].as_u64().context("no time of creation")?;
        let slow = cluster.endpoint("web3")?["created"].as_u64().context("no time of creation")?;
        ensure!(fast.abs_diff(slow) < 300, "records bear the manager's time: {fast}, {slow}");

        for daemon in &mut cluster.daemons {
            daemon.restart()?;
        }
        for daemon in &cluster.daemons {
            within(CONVERGES, "the node is up to date", || daemon.host().meshctl(&["status"]).ok())?;
        }
        cluster.answer_in_turn(&client, 80, &["web2", "web3"])
    });
}
