//! Liveness: each node finds out for itself which others are there, and its data planes go by it.

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Host, Replica, ReplicaSpec, field, only, scenario, within};
use serde_json::Value;
use std::time::Instant;

/// Waits until `node ls` on a host says this of each node.
fn sees(host: &Host, expected: &[(&str, &str)]) -> Result<()> {
    let start = Instant::now();
    within(CONVERGES, &format!("{} sees {expected:?}", host.name()), || {
        let nodes = host.meshctl(&["-o", "json", "node", "ls"]).json()?;
        let status = |name: &str| {
            nodes.as_array()?.iter().find(|node| node["name"] == name).map(|n| field(n, "status"))
        };
        let other = expected.iter().find(|(name, expected)| status(name).as_deref() != Some(expected));
        ensure!(other.is_none(), "{nodes}");
        Ok(())
    })?;
    eprintln!("{}: {expected:?} after {:?}", host.name(), start.elapsed());
    Ok(())
}

fn all_ready(cluster: &Cluster) -> Result<()> {
    let hosts = [cluster.vm1(), cluster.vm2(), cluster.vm3()];
    hosts.iter().try_for_each(|host| sees(host, &[("vm1", "ready"), ("vm2", "ready"), ("vm3", "ready")]))
}

/// Waits until `status` on a host has a problem that says this; none if nothing is expected.
fn complains(host: &Host, of: Option<&str>) -> Result<()> {
    within(CONVERGES, &format!("{} complains of {of:?}", host.name()), || {
        let status: Value = serde_json::from_str(&host.meshctl(&["-o", "json", "status"]).stdout)?;
        let problems = status["problems"].to_string();
        ensure!(of.map_or(problems == "[]", |text| problems.contains(text)), "{problems}");
        Ok(())
    })
}

/// Drops what a host hears on a port from the LAN, or everything.
fn block(host: &Host, what: &str) -> Result<()> {
    let rule = format!(
        "nft 'add table inet lab; add chain inet lab in {{ type filter hook input priority -300; }}; \
         add rule inet lab in iifname eth0 {what} drop'"
    );
    host.shell(&rule).ok().map(drop)
}

fn unblock(host: &Host) -> Result<()> {
    host.output(&["nft", "delete", "table", "inet", "lab"]).ok().map(drop)
}

fn service(cluster: &Cluster) -> Result<()> {
    let vm1 = cluster.vm1();
    vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
    vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"]).ok()?;
    Ok(())
}

fn replica(host: &Host, name: &str) -> Result<Replica> {
    Replica::start(host, ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 })
}

/// A worker dies, the only manager dies: whoever is left knows, goes by it, and takes back who returns.
#[test]
fn nodes_that_die_are_out_everywhere_and_return() {
    scenario("lost nodes", |lab| {
        let mut cluster = Cluster::three(lab)?;
        service(&cluster)?;
        let _replicas = [
            replica(cluster.vm1(), "web1")?,
            replica(cluster.vm2(), "web2")?,
            replica(cluster.vm3(), "web3")?,
        ];
        let client = lab.client("client")?;
        cluster.answer_in_turn(&client, 80, &["web1", "web2", "web3"])?;

        cluster.daemons[2].kill()?;
        for host in [cluster.vm1(), cluster.vm2()] {
            sees(host, &[("vm1", "ready"), ("vm2", "ready"), ("vm3", "down")])?;
            let url = format!("http://{}/", host.ip());
            within(CONVERGES, "nothing is sent to the lost node", || {
                only(&client.answers(&url, 9)?, &["web1", "web2"])
            })?;
            ensure!(cluster.address("web3").is_ok(), "its endpoint keeps its address");
        }
        cluster.endpoints("web", "2/3")?;

        // Without any manager the truth is told as well.
        cluster.daemons[0].kill()?;
        sees(cluster.vm2(), &[("vm1", "down"), ("vm2", "ready"), ("vm3", "down")])?;
        only(&client.answers(&format!("http://{}/", cluster.vm2().ip()), 3)?, &["web2"])?;
        cluster.daemons[2].start()?;
        sees(cluster.vm2(), &[("vm1", "down"), ("vm3", "ready")])?;
        sees(cluster.vm3(), &[("vm1", "down"), ("vm2", "ready")])?;
        cluster.daemons[0].start()?;
        all_ready(&cluster)?;
        cluster.answer_in_turn(&client, 80, &["web1", "web2", "web3"])
    });
}

/// A node that nobody answers over UDP, though a manager does over TCP, does not lose its backends by it.
#[test]
fn blocked_udp_is_told_from_a_cut() {
    scenario("blocked UDP", |lab| {
        let cluster = Cluster::three(lab)?;
        service(&cluster)?;
        let _replicas = [replica(cluster.vm1(), "web1")?, replica(cluster.vm2(), "web2")?];
        let client = lab.client("client")?;
        cluster.answer_in_turn(&client, 80, &["web1", "web2"])?;

        let vm2 = cluster.vm2();
        block(vm2, "udp dport 7443")?;
        sees(vm2, &[("vm1", "suspect"), ("vm2", "ready"), ("vm3", "suspect")])?;
        sees(cluster.vm3(), &[("vm1", "ready"), ("vm2", "down")])?;
        sees(cluster.vm1(), &[("vm2", "down"), ("vm3", "ready")])?;
        complains(vm2, Some("no node answers on UDP port 7443"))?;
        complains(cluster.vm1(), Some("node 'vm2' is connected, but does not answer on UDP port 7443"))?;
        // Here the suspect's replica gets a quarter of the share of its own.
        within(CONVERGES, "the suspect's replica is lowered", || {
            let answers = client.answers(&cluster.urls(80)[1], 10)?;
            ensure!(answers.get("web1") == Some(&2) && answers.get("web2") == Some(&8), "{answers:?}");
            Ok(())
        })?;
        unblock(vm2)?;
        all_ready(&cluster)?;
        [vm2, cluster.vm1()].into_iter().try_for_each(|host| complains(host, None))?;

        // Cut off altogether: remote replicas are out here, the own one stays.
        block(vm2, "ip saddr { 10.77.0.11, 10.77.0.13 }")?;
        sees(vm2, &[("vm1", "down"), ("vm2", "ready"), ("vm3", "down")])?;
        sees(cluster.vm1(), &[("vm2", "down"), ("vm3", "ready")])?;
        within(CONVERGES, "the own replica alone answers", || {
            only(&client.answers(&cluster.urls(80)[1], 4)?, &["web2"])?;
            only(&client.answers(&cluster.urls(80)[2], 4)?, &["web1"])
        })?;
        unblock(vm2)?;
        all_ready(&cluster)?;
        cluster.answer_in_turn(&client, 80, &["web1", "web2"])
    });
}
