//! What a node is told: only what it needs, only what it missed, and everything when it asks.

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Host, Meshd, scenario, within};
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

/// No change of the whole cluster's is needed for that: each node is as far as the last change that concerned it.
#[test]
fn a_manager_that_starts_again_knows_what_its_nodes_have() {
    scenario("recall", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let vm1 = cluster.vm1().clone();
        for network in ["blue", "green"] {
            vm1.meshctl(&["network", "create", network]).ok()?;
        }
        let containers = [lab.container("c1")?, lab.container("c2")?, lab.container("c3")?];
        let attach = |host: &Host, name: &str, network: &str, container: usize| {
            let target = containers[container].target();
            host.meshctl(&["network", "connect", "--name", name, network, &target]).ok()
        };
        attach(&vm1, "short", "blue", 0)?;
        attach(cluster.vm2(), "stays", "blue", 1)?;
        attach(cluster.vm3(), "other", "green", 2)?;
        within(CONVERGES, "vm2 keeps what it needs", || {
            ensure!(kept(cluster.vm2())?.contains("short"));
            Ok(())
        })?;
        let whole = said(&vm1, "is sent the whole state")?;
        // What vm3 has is of before the last changes, which are of a network that it is not on. vm2 misses them.
        cluster.daemons[1].kill()?;
        vm1.meshctl(&["network", "disconnect", "blue", "short"]).ok()?;
        attach(&vm1, "late", "blue", 0)?;
        let resumed = said(&vm1, "goes on where it was")?;
        cluster.daemons[0].restart()?;
        cluster.daemons[1].start()?;
        within(CONVERGES, "every node goes on where it was", || {
            let kept = kept(cluster.vm2())?;
            ensure!(kept.contains("late") && kept.contains("stays") && !kept.contains("short"), "{kept}");
            let resumed = said(&vm1, "goes on where it was")? - resumed;
            ensure!(resumed >= 3, "{resumed} of 3 nodes");
            Ok(())
        })?;
        ensure!(said(&vm1, "is sent the whole state")? == whole, "the whole state was sent again");
        Ok(())
    });
}

/// With several managers each remembers what all of them did.
#[test]
fn managers_that_start_again_know_what_their_nodes_have() {
    scenario("recall from etcd", |lab| {
        let mut cluster = Cluster::managers(lab)?;
        let hosts = [cluster.vm1().clone(), cluster.vm2().clone(), cluster.vm3().clone()];
        let told = |text: &str| hosts.iter().map(|host| said(host, text)).sum::<Result<usize>>();
        for (number, host) in hosts.iter().enumerate() {
            let (container, network) = (lab.container(&format!("c{number}"))?, format!("net{number}"));
            host.meshctl(&["network", "create", &network]).ok()?;
            host.meshctl(&["network", "connect", &network, &container.target()]).ok()?;
        }
        within(CONVERGES, "every node keeps what all need", || {
            hosts.iter().try_for_each(|host| {
                ensure!(kept(host)?.contains("net2"));
                Ok(())
            })
        })?;
        let (whole, resumed) = (told("is sent the whole state")?, told("goes on where it was")?);
        // All at once: whichever manager a node finds, it has just started.
        cluster.daemons.iter_mut().try_for_each(Meshd::kill)?;
        cluster.daemons.iter_mut().try_for_each(Meshd::start)?;
        within(CONVERGES * 2, "every node goes on where it was", || {
            hosts.iter().try_for_each(|host| host.meshctl(&["status"]).ok().map(drop))?;
            let resumed = told("goes on where it was")? - resumed;
            ensure!(resumed >= 3, "{resumed} of 3 nodes");
            Ok(())
        })?;
        ensure!(told("is sent the whole state")? == whole, "the whole state was sent again");
        Ok(())
    });
}
