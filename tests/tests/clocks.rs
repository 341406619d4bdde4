//! Hosts whose clocks disagree.

use anyhow::{Context, Result, ensure};
use mesh_tests::{CONVERGES, Clock, Cluster, Meshd, Replica, ReplicaSpec, scenario, within};

/// The first host's clock is right, one ten minutes fast, one ten minutes slow: they join, find each other, and come back
/// after a restart.
#[test]
fn ten_minutes_apart() {
    apart("clocks", Cluster::of);
}

/// The same when all of them are managers, each with its etcd.
#[test]
fn managers_ten_minutes_apart() {
    apart("clocks of managers", Cluster::managers_of);
}

fn apart(name: &str, cluster: fn(Vec<Meshd>) -> Result<Cluster>) {
    scenario(name, |lab| {
        let preload = format!("LD_PRELOAD={}", mesh_tests::clock::libfaketime()?);
        let mut daemons: Vec<Meshd> = Vec::new();
        for (name, offset) in [("vm1", "+0"), ("vm2", "+600"), ("vm3", "-600")] {
            let offset = format!("FAKETIME={offset}");
            // Time that passes is nobody's to change: only what the calendar says differs.
            let faked = ["env", "FAKETIME_DONT_FAKE_MONOTONIC=1", &preload, &offset];
            daemons.push(lab.host(name)?.meshd_under(&faked)?);
        }
        let mut cluster = cluster(daemons)?;
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
        cluster.answer_in_turn(&client, 80, &["web2", "web3"])?;
        within(CONVERGES, "changes are taken", || {
            cluster.vm1().meshctl(&["network", "create", "after"]).ok().map(drop)
        })
    });
}

/// A node whose clock jumps further than certificates live says so, and is back when the clock is.
#[test]
fn a_clock_beyond_certificates_is_named() {
    scenario("clock ahead", |lab| {
        let (vm1, vm2) = (lab.host("vm1")?, lab.host("vm2")?);
        let clock = Clock::of(&vm2, "+0")?;
        let (_first, mut second) = (vm1.meshd()?, clock.meshd()?);
        let address = vm1.ip().to_string();
        vm1.meshctl(&["cluster", "init", "--advertise-addr", &address, "--cert-expiry", "120s"]).ok()?;
        let token = vm1.meshctl(&["-q", "cluster", "join-token", "worker"]).ok()?;
        vm2.meshctl(&["cluster", "join", "--token", &token, &format!("{address}:7443")]).ok()?;
        for offset in ["+600", "-2d"] {
            second.kill()?;
            clock.set(offset)?;
            let known = std::fs::read_to_string(vm2.file(vm2.log_path()))?.len();
            second.start()?;
            within(CONVERGES, "the log says that the clocks differ", || {
                let log = std::fs::read_to_string(vm2.file(vm2.log_path()))?;
                let new = log.get(known..).unwrap_or(&log);
                ensure!(new.contains("set the clocks"), "{offset}: {new}");
                Ok(())
            })?;
            within(CONVERGES, "so does status", || {
                let status = vm2.meshctl(&["status"]);
                ensure!(status.code == Some(1) && status.stdout.contains("set the clocks"), "{status:?}");
                Ok(())
            })?;
            clock.set("+0")?;
            within(CONVERGES, "the node is back", || vm2.meshctl(&["status"]).ok().map(drop))?;
        }

        // A clock that jumps while the stream is open: it stays open, and each new certificate is refused.
        clock.set("+600")?;
        let known = std::fs::read_to_string(vm2.file(vm2.log_path()))?.len();
        vm1.meshctl(&["network", "create", "blue"]).ok()?;
        let names_the_clocks = |wanted: bool| {
            within(CONVERGES, "status says what is wrong with the certificate, as long as it is", || {
                let said = vm2.meshctl(&["status"]).ok()?;
                ensure!(said.contains("set the clocks") == wanted, "{said}");
                Ok(())
            })
        };
        names_the_clocks(true)?;
        vm1.meshctl(&["network", "create", "red"]).ok()?;
        within(CONVERGES, "the stream goes on", || {
            let networks = vm2.meshctl(&["-q", "network", "ls"]).ok()?;
            ensure!(networks.lines().count() == 2, "{networks}");
            Ok(())
        })?;
        clock.set("+0")?;
        names_the_clocks(false)?;
        let log = std::fs::read_to_string(vm2.file(vm2.log_path()))?;
        let tells = |line: &&str| {
            line.contains("ERROR") && line.contains("certificate of this node is not up to date")
        };
        let told = log[known..].lines().filter(tells).count();
        ensure!(told == 1, "said once, not at every try: {told}");
        Ok(())
    });
}
