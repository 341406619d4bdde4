//! What a node is told: only what it needs, only what it missed, and everything when it asks.

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Host, scenario, within};
use std::fs;

/// How often a line of a host's log says something.
fn said(host: &Host, text: &str) -> Result<usize> {
    let log = fs::read_to_string(host.file(host.log_path()))?;
    Ok(log.lines().filter(|line| line.contains(text)).count())
}

/// What a node keeps of the state on disk.
fn kept(host: &Host) -> Result<String> {
    Ok(fs::read_to_string(host.file(format!("/run/lab/{}/data/snapshot.json", host.name())))?)
}

#[test]
fn endpoints_are_told_where_their_network_is_and_to_who_asks() {
    scenario("interest", |lab| {
        let mut cluster = Cluster::three(lab)?;
        cluster.vm1().meshctl(&["network", "create", "blue"]).ok()?;
        let container = lab.container("c2")?;
        cluster
            .vm2()
            .meshctl(&["network", "connect", "--name", "lonely", "blue", &container.target()])
            .ok()?;
        within(CONVERGES, "vm2 keeps its endpoint", || {
            ensure!(kept(cluster.vm2())?.contains("lonely"));
            Ok(())
        })?;
        for host in [cluster.vm1(), cluster.vm3()] {
            let kept = within(CONVERGES, "every node keeps what all need", || kept(host))?;
            ensure!(!kept.contains("lonely"), "{} was told of what it does not need", host.name());
            ensure!(host.meshctl(&["endpoint", "ls"]).ok()?.contains("lonely"));
            ensure!(host.meshctl(&["network", "inspect", "blue"]).ok()?.contains("lonely"));
        }

        let other = lab.container("c3")?;
        cluster.vm3().meshctl(&["network", "connect", "--name", "other", "blue", &other.target()]).ok()?;
        within(CONVERGES, "vm3 keeps the endpoints of its new network", || {
            let kept = kept(cluster.vm3())?;
            ensure!(kept.contains("lonely") && kept.contains("other"));
            Ok(())
        })?;
        cluster.vm3().meshctl(&["network", "disconnect", "blue", "other"]).ok()?;
        within(CONVERGES, "vm3 forgets them with the network", || {
            ensure!(!kept(cluster.vm3())?.contains("lonely"));
            Ok(())
        })?;

        cluster.daemons[0].kill()?;
        let alone = cluster.vm3().meshctl(&["endpoint", "ls"]);
        ensure!(!alone.ok()?.contains("lonely") && alone.stderr.contains("no manager answers"), "{alone:?}");
        let alone = cluster.vm2().meshctl(&["endpoint", "ls"]);
        ensure!(alone.ok()?.contains("lonely") && alone.stderr.contains("no manager answers"), "{alone:?}");
        Ok(())
    });
}

#[test]
fn a_node_that_was_away_is_told_what_it_missed() {
    scenario("resume", |lab| {
        let mut cluster = Cluster::three(lab)?;
        cluster.vm1().meshctl(&["network", "create", "blue"]).ok()?;
        within(CONVERGES, "vm3 keeps what every node needs", || {
            ensure!(kept(cluster.vm3())?.contains("blue"));
            Ok(())
        })?;
        let whole = said(cluster.vm1(), "is sent the whole state")?;
        cluster.daemons[2].kill()?;
        cluster.vm1().meshctl(&["network", "create", "green"]).ok()?;
        let resumed = said(cluster.vm1(), "goes on where it was")?;
        cluster.daemons[2].start()?;
        within(CONVERGES, "vm3 knows the new network, by what it kept on disk and what it missed", || {
            ensure!(cluster.vm3().meshctl(&["network", "ls"]).ok()?.contains("green"));
            ensure!(kept(cluster.vm3())?.contains("green"));
            ensure!(said(cluster.vm1(), "goes on where it was")? == resumed + 1);
            Ok(())
        })?;
        ensure!(said(cluster.vm1(), "is sent the whole state")? == whole, "the whole state was sent again");
        Ok(())
    });
}
