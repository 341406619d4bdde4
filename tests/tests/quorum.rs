//! Three managers, of which some are lost: a majority goes on taking changes, and what is left of them says why not.

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    CONVERGES, Cluster, Host, Lab, Meshd, Outcome, Partition, Replica, ReplicaSpec, field, scenario, within,
};
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// How soon changes are taken again when a manager is lost.
const RESUMES: Duration = Duration::from_secs(5);

/// A manager that leads, or one that does not.
fn manager(cluster: &Cluster, leads: bool) -> Result<usize> {
    let nodes = cluster.list(&["node", "ls"])?;
    let node = nodes.iter().find(|node| node["leader"] == leads).context("no such manager")?;
    let name = field(node, "name");
    cluster.daemons.iter().position(|daemon| daemon.host().name() == name).context("no such host")
}

/// Creates a network, again and again until it is taken: each time one of another name, for what a try that failed
/// did is not known.
fn create(host: &Host, base: &str, deadline: Duration) -> Result<String> {
    let mut number = 0;
    within(deadline, &format!("{} takes a change", host.name()), || {
        number += 1;
        let name = format!("{base}-{number}");
        host.meshctl(&["network", "create", &name]).ok()?;
        Ok(name)
    })
}

fn networks(host: &Host) -> Result<Vec<String>> {
    let listed = host.meshctl(&["-o", "json", "network", "ls"]).json()?;
    Ok(listed.as_array().into_iter().flatten().map(|network| field(network, "name")).collect())
}

/// Every node knows these networks: nothing that was acknowledged is lost.
fn known_to_all(cluster: &Cluster, acknowledged: &[String]) -> Result<()> {
    for daemon in &cluster.daemons {
        within(CONVERGES, &format!("{} knows them all", daemon.host().name()), || {
            let there = networks(daemon.host())?;
            let lost: Vec<_> = acknowledged.iter().filter(|name| !there.contains(name)).collect();
            ensure!(lost.is_empty(), "{lost:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// A worker beside the managers.
fn worker(lab: &Lab, cluster: &Cluster) -> Result<Meshd> {
    let token = cluster.vm1().meshctl(&["-q", "cluster", "join-token", "worker"]).ok()?;
    let (daemon, manager) = (lab.host("vm4")?.meshd()?, format!("{}:7443", cluster.vm1().ip()));
    daemon.host().meshctl(&["cluster", "join", "--token", &token, &manager]).ok()?;
    Ok(daemon)
}

/// How often the managers sent a node all of the state, rather than what it missed.
fn sent_whole(cluster: &Cluster, node: &str) -> Result<usize> {
    let mut count = 0;
    for daemon in &cluster.daemons {
        let log = fs::read_to_string(daemon.host().file(daemon.host().log_path()))?;
        count += log.lines().filter(|l| l.contains("is sent the whole state") && l.contains(node)).count();
    }
    Ok(count)
}

#[test]
fn changes_go_on_when_a_manager_is_killed_the_leader_too() {
    scenario("killed managers", |lab| {
        let mut cluster = Cluster::managers(lab)?;
        let worker = worker(lab, &cluster)?;
        let id = field(&worker.host().meshctl(&["-o", "json", "status"]).json()?["node"], "id");
        let mut acknowledged = vec![create(cluster.vm1(), "first", CONVERGES)?];
        for (round, leads) in [true, false, true].into_iter().enumerate() {
            let victim = within(CONVERGES, "the leader is known", || manager(&cluster, leads))?;
            known_to_all(&cluster, &acknowledged)?;
            cluster.daemons[victim].kill()?;
            let killed = Instant::now();
            let survivors: Vec<Host> = (0..3)
                .filter(|other| *other != victim)
                .map(|other| cluster.daemons[other].host().clone())
                .collect();
            for host in &survivors {
                ensure!(networks(host)?.contains(&acknowledged[0]), "reads go on");
            }
            for host in &survivors {
                acknowledged.push(create(host, &format!("r{round}-{}", host.name()), CONVERGES)?);
                let away = killed.elapsed();
                let who = if leads { "leader" } else { "follower" };
                eprintln!("{who} killed: {} takes changes after {} ms", host.name(), away.as_millis());
                ensure!(away < RESUMES, "no changes for {away:?}");
            }
            // Whichever manager it followed: one of the others does as well, and tells it only what it missed.
            within(CONVERGES, "the worker follows a manager that is left", || {
                let known = networks(worker.host())?;
                ensure!(acknowledged.iter().all(|name| known.contains(name)), "{known:?}");
                worker.host().meshctl(&["status"]).ok()
            })?;
            cluster.daemons[victim].start()?;
            let host = cluster.daemons[victim].host().clone();
            acknowledged.push(create(&host, &format!("back{round}"), CONVERGES)?);
            known_to_all(&cluster, &acknowledged)?;
        }
        let whole = sent_whole(&cluster, &id)?;
        ensure!(
            whole == 1,
            "the worker was sent the whole state {whole} times, at first and when it moved on"
        );
        Ok(())
    });
}

#[test]
fn without_a_majority_changes_are_refused_until_it_is_back() {
    scenario("no majority", |lab| {
        let mut cluster = Cluster::managers(lab)?;
        let known = create(cluster.vm1(), "known", CONVERGES)?;
        known_to_all(&cluster, std::slice::from_ref(&known))?;
        let vm1 = cluster.vm1().clone();
        vm1.meshctl(&["service", "create", "--name", "web", "--network", &known, "--publish", "80:80"])
            .ok()?;
        let spec = ReplicaSpec { name: "web1", network: Some(&known), service: Some("web"), port: 80 };
        let _replica = Replica::start(cluster.vm1(), spec)?;
        let client = lab.client("client")?;
        cluster.answer_in_turn(&client, 80, &["web1"])?;
        cluster.daemons[1].kill()?;
        cluster.daemons[2].kill()?;
        within(CONVERGES, "changes are refused", || {
            vm1.meshctl(&["network", "create", "refused"]).refused("manager").map(|_| ())
        })?;
        ensure!(networks(&vm1)?.contains(&known), "reads go on");
        cluster.answer_in_turn(&client, 80, &["web1"])?;
        cluster.daemons[1].start()?;
        let vm2 = cluster.vm2().clone();
        for host in [&vm1, &vm2] {
            let name = create(host, &format!("again-{}", host.name()), CONVERGES)?;
            within(CONVERGES, "both know it", || {
                ensure!(networks(&vm1)?.contains(&name) && networks(&vm2)?.contains(&name));
                Ok(())
            })?;
        }
        Ok(())
    });
}

/// A manager that is cut off in the middle of its changes: what it acknowledged is there, what it refused is not, and of
/// anything else it says that it does not know.
#[test]
fn what_is_refused_was_not_made() {
    scenario("refused", |lab| {
        let cluster = Cluster::managers(lab)?;
        let (mut made, mut unknown, mut refused) = (0, 0, 0);
        // Longer than a change is tried for, and about as long as etcd takes to choose another leader.
        for (round, (leads, apart)) in [(true, 10_000), (false, 10_000), (true, 1800)].into_iter().enumerate()
        {
            let victim = within(CONVERGES, "the leader is known", || manager(&cluster, leads))?;
            let hosts: Vec<&Host> = cluster.daemons.iter().map(Meshd::host).collect();
            let others: Vec<&Host> = (0..3).filter(|n| *n != victim).map(|n| hosts[n]).collect();
            let victim = hosts[victim];
            create(victim, &format!("before{round}"), CONVERGES)?;
            let stop = AtomicBool::new(false);
            let outcomes = thread::scope(|scope| {
                let changing = scope.spawn(|| changes(victim, round, &stop));
                thread::sleep(Duration::from_millis(300));
                let partition = Partition::isolate(victim, &others)?;
                thread::sleep(Duration::from_millis(apart));
                partition.heal()?;
                thread::sleep(Duration::from_millis(500));
                stop.store(true, Relaxed);
                anyhow::Ok(changing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            })?;
            create(victim, &format!("after{round}"), CONVERGES)?;
            let acknowledged = outcomes.iter().filter(|(_, outcome)| outcome.code == Some(0));
            let acknowledged: Vec<String> = acknowledged.map(|(name, _)| name.clone()).collect();
            known_to_all(&cluster, &acknowledged)?;
            made += acknowledged.len();
            let there = networks(victim)?;
            for (name, outcome) in outcomes.iter().filter(|(_, outcome)| outcome.code != Some(0)) {
                if outcome.stderr.contains("the change is made, but") {
                    ensure!(there.contains(name), "told as made, and not there: {outcome:?}");
                    continue;
                }
                outcome.refused("manager")?;
                if outcome.stderr.contains("look before you repeat it") {
                    unknown += 1;
                } else {
                    refused += 1;
                    ensure!(!there.contains(name), "refused, and there: {outcome:?}");
                }
            }
        }
        eprintln!("{made} changes made, {unknown} of unknown outcome, {refused} refused");
        Ok(())
    });
}

/// Creates networks, one after the other, each with a name of its own.
fn changes(host: &Host, round: usize, stop: &AtomicBool) -> Vec<(String, Outcome)> {
    let mut outcomes = Vec::new();
    while !stop.load(Relaxed) {
        let name = format!("c{round}-{}", outcomes.len());
        let outcome = host.meshctl(&["network", "create", &name]);
        outcomes.push((name, outcome));
    }
    outcomes
}
