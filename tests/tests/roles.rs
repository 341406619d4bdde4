//! Managers that come and go, on real etcd members, while containers talk.

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Host, Nginx, field, scenario, within};
use std::{
    thread,
    time::{Duration, Instant},
};

/// `node ls` of every node calls exactly these managers.
fn managers(cluster: &Cluster, expected: &[&str]) -> Result<()> {
    for daemon in &cluster.daemons {
        let host = daemon.host();
        within(CONVERGES, &format!("managers as {} knows them", host.name()), || {
            let nodes = host.meshctl(&["-o", "json", "node", "ls"]).json()?;
            let nodes = nodes.as_array().cloned().unwrap_or_default();
            let mut found: Vec<String> = Vec::new();
            for node in nodes.iter().filter(|node| field(node, "role") == "manager") {
                found.push(field(node, "name"));
            }
            found.sort();
            ensure!(found == expected, "{found:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Three managers: each takes changes, and what one allocates no other gives away; a port is asked for at the agents
/// of all.
#[test]
fn three_managers_are_one() {
    scenario("three managers", |lab| {
        let cluster = Cluster::managers(lab)?;
        managers(&cluster, &["vm1", "vm2", "vm3"])?;
        let table = cluster.vm2().meshctl(&["node", "ls"]).ok()?;
        ensure!(table.matches("Leader").count() == 1 && table.matches("Reachable").count() == 2, "{table}");

        let hosts = [cluster.vm1(), cluster.vm2(), cluster.vm3()];
        std::thread::scope(|scope| {
            let workers: Vec<_> = hosts
                .iter()
                .map(|host| {
                    scope.spawn(move || -> Result<()> {
                        for number in 0..8 {
                            let name = format!("{}-{number}", host.name());
                            host.meshctl(&["network", "create", &name]).ok()?;
                        }
                        Ok(())
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("no panic"))
        })?;
        let networks = cluster.list(&["network", "ls"])?;
        let mut vnis: Vec<u64> = networks.iter().filter_map(|network| network["vni"].as_u64()).collect();
        vnis.sort_unstable();
        vnis.dedup();
        ensure!(vnis.len() == 24, "24 networks have VNIs of their own: {vnis:?}");

        let taken = Nginx::new(cluster.vm3(), "own", 8080, "of the host")?.start(cluster.vm3())?;
        let publish = ["service", "create", "--name", "web", "--publish", "8080:80"];
        for host in hosts {
            host.meshctl(&publish).refused("vm3")?;
        }
        drop(taken);
        Ok(())
    });
}

/// Nothing of the store and its secrets stays behind on a host.
fn keeps_nothing(host: &Host) -> Result<()> {
    within(CONVERGES, "nothing of the store and its secrets stays behind", || {
        let left =
            ["etcd", "store.key"].map(|name| host.file(format!("{}/{name}", host.data_dir())).exists());
        ensure!(left == [false, false], "{left:?}");
        Ok(())
    })
}

/// A worker becomes a manager and a manager a worker, and nobody is lost on the way.
#[test]
fn managers_come_and_go() {
    scenario("roles", |lab| {
        let cluster = Cluster::three_with(lab, &["--store", "etcd"])?;
        let (vm1, vm2, vm3) = (cluster.vm1(), cluster.vm2(), cluster.vm3());
        vm1.meshctl(&["node", "demote", "vm1"]).refused("last manager")?;
        vm2.meshctl(&["node", "promote", "vm2"]).refused("run the command on a manager")?;
        // Of two, the one that goes must not end before it was removed, however short it was there: the other would be alone
        // without a majority for ever.
        for number in 0..3 {
            vm1.meshctl(&["node", "promote", "vm2"]).ok()?;
            vm1.meshctl(&["node", "demote", "vm2"]).ok()?;
            vm1.meshctl(&["network", "create", &format!("alone{number}")]).ok()?;
        }
        vm1.meshctl(&["node", "promote", "vm2", "vm3"]).ok()?;
        managers(&cluster, &["vm1", "vm2", "vm3"])?;
        vm3.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;

        vm1.meshctl(&["node", "demote", "vm1"]).ok()?;
        managers(&cluster, &["vm2", "vm3"])?;
        within(CONVERGES, "vm1 is a worker", || {
            vm1.meshctl(&["network", "create", "green"]).refused("run the command on a manager")
        })?;
        keeps_nothing(vm1)?;
        // The one that went led the others: they elect another first.
        within(CONVERGES, "changes are taken", || {
            let made = vm2.meshctl(&["network", "create", "green"]);
            if made.stderr.contains("exists") { Ok(()) } else { made.ok().map(drop) }
        })?;
        vm1.meshctl(&["network", "ls"]).ok()?;

        vm3.meshctl(&["node", "promote", "vm1"]).ok()?;
        managers(&cluster, &["vm1", "vm2", "vm3"])?;
        vm1.meshctl(&["network", "create", "red"]).ok().map(drop)
    });
}

/// The managers' port of a node is somebody else's: it is no manager, which it says at once, and the one that there is goes
/// on alone. Once the port is free it becomes one.
#[test]
fn a_promotion_that_fails_costs_nothing() {
    scenario("failed promotions", |lab| {
        let cluster = Cluster::three_with(lab, &["--store", "etcd"])?;
        let vm4 = lab.host("vm4")?.meshd()?;
        let (vm1, vm2, vm4) = (cluster.vm1(), cluster.vm2(), vm4.host());
        let taken = [vm2, vm4].map(|host| Nginx::new(host, host.name(), 7443, "of the host")?.start(host));
        let taken = taken.into_iter().collect::<Result<Vec<_>>>()?;
        let changes = |name: &str| vm1.meshctl(&["network", "create", name]).ok();
        for round in 0..2 {
            vm1.meshctl(&["node", "promote", "vm2"])
                .refused("is it an address of this host, and the port free?")?;
            changes(&format!("alone{round}"))?;
        }
        let token = vm1.meshctl(&["-q", "cluster", "join-token", "manager"]).ok()?;
        let manager = format!("{}:7443", vm1.ip());
        vm4.meshctl(&["cluster", "join", "--token", &token, &manager])
            .refused("'meshctl node promote vm4'")?;
        changes("joined")?;
        [vm2, vm4].into_iter().try_for_each(keeps_nothing)?;
        managers(&cluster, &["vm1"])?;

        drop(taken);
        vm1.meshctl(&["node", "promote", "vm2", "vm4"]).ok()?;
        managers(&cluster, &["vm1", "vm2", "vm4"])?;
        vm4.meshctl(&["network", "create", "three"]).ok().map(drop)
    });
}

/// A demotion that comes while a node becomes a manager, at whatever moment of it: the one that is left goes on.
#[test]
fn a_demotion_meets_a_promotion() {
    scenario("demoted on the way", |lab| {
        let cluster = Cluster::three_with(lab, &["--store", "etcd"])?;
        let (vm1, vm2) = (cluster.vm1(), cluster.vm2());
        let is_manager = || {
            let node = cluster.list(&["node", "inspect", "vm2"])?;
            ensure!(field(&node[0], "role") == "manager", "{node:?}");
            Ok(())
        };
        for round in 0..10u32 {
            let promoted = thread::scope(|scope| {
                let promoting = scope.spawn(|| vm1.meshctl(&["node", "promote", "vm2"]));
                within(CONVERGES, "the promotion is under way", is_manager)?;
                thread::sleep(Duration::from_millis(100) * round);
                vm1.meshctl(&["node", "demote", "vm2"]).ok()?;
                Ok(promoting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            });
            let promoted: Result<_> = promoted;
            eprintln!("round {round}: {:?}", promoted?);
            vm1.meshctl(&["network", "create", &format!("alone{round}")]).ok()?;
            keeps_nothing(vm2)?;
        }
        vm1.meshctl(&["node", "promote", "vm2"]).ok()?;
        vm2.meshctl(&["network", "create", "two"]).ok().map(drop)
    });
}

/// Nothing of a membership is left: no file, and no etcd that runs on.
fn left(host: &Host) -> Result<()> {
    host.meshctl(&["node", "ls"]).refused("no cluster yet")?;
    let files = host.output(&["ls", &host.data_dir()]).ok()?;
    let listening = host.output(&["ss", "-Htln", "sport = :7444 or sport = :7445"]).ok()?;
    ensure!(files.is_empty() && listening.is_empty(), "{files} {listening}");
    Ok(())
}

/// A manager whose etcd will never answer again can leave: one that was removed while it was away, and one that lost the
/// others for good. The former joins again, the latter is restored.
#[test]
fn a_manager_that_nobody_can_demote_leaves() {
    scenario("managers without others", |lab| {
        let mut cluster = Cluster::managers(lab)?;
        let (vm1, vm3) = (cluster.vm1().clone(), cluster.vm3().clone());
        vm3.meshctl(&["cluster", "leave", "--force"]).refused("'meshctl node demote vm3' comes first")?;
        cluster.daemons[2].kill()?;
        within(CONVERGES, "vm3 is removed", || {
            vm1.meshctl(&["node", "demote", "vm3"]).ok()?;
            vm1.meshctl(&["node", "rm", "vm3"]).ok()
        })?;
        cluster.daemons[2].start()?;
        within(CONVERGES, "it is told what to do", || {
            let status = vm3.meshctl(&["status"]);
            ensure!(status.stderr.contains("run 'meshctl cluster leave --force'"), "{status:?}");
            Ok(())
        })?;
        vm3.meshctl(&["cluster", "leave", "--force"]).ok()?;
        left(&vm3)?;
        let token = vm1.meshctl(&["-q", "cluster", "join-token", "manager"]).ok()?;
        vm3.meshctl(&["cluster", "join", "--token", &token, &format!("{}:7443", vm1.ip())]).ok()?;
        managers(&cluster, &["vm1", "vm2", "vm3"])?;

        let backup = "/run/lab/mesh.backup";
        vm1.meshctl(&["network", "create", "blue"]).ok()?;
        vm1.meshctl(&["cluster", "backup", backup]).ok()?;
        cluster.daemons[1].kill()?;
        cluster.daemons[2].kill()?;
        within(CONVERGES, "it says what it would cost", || {
            vm1.meshctl(&["cluster", "leave"]).refused("no majority").map(drop)
        })?;
        vm1.meshctl(&["cluster", "leave", "--force"]).ok()?;
        left(&vm1)?;
        vm1.meshctl(&["cluster", "restore", backup]).ok()?;
        ensure!(vm1.meshctl(&["network", "ls"]).ok()?.contains("blue"));
        Ok(())
    });
}

/// What would cost the majority is refused: a demotion while others are away, a promotion of a lost node.
#[test]
fn no_majority_is_given_away() {
    scenario("majority", |lab| {
        let mut cluster = Cluster::managers(lab)?;
        cluster.daemons[2].kill()?;
        within(CONVERGES, "vm3 is down", || {
            let node = cluster.list(&["node", "inspect", "vm3"])?;
            ensure!(field(&node[0], "status") == "down", "{node:?}");
            Ok(())
        })?;
        let (vm1, vm2) = (cluster.vm1(), cluster.vm2());
        vm1.meshctl(&["node", "demote", "vm2"]).refused("majority")?;
        vm2.meshctl(&["node", "demote", "vm3"]).ok()?;
        vm1.meshctl(&["node", "promote", "vm3"]).refused("is down")?;
        vm1.meshctl(&["network", "create", "blue"]).ok()?;

        // A manager that starts without a majority says what it waits for.
        cluster.daemons[1].kill()?;
        cluster.daemons[0].restart()?;
        let status = |host: &Host, waits: bool| {
            within(CONVERGES, "status tells what the manager waits for", || {
                let said = host.meshctl(&["-o", "json", "status"]).stdout;
                ensure!(!said.is_empty() && said.contains("waiting for etcd") == waits, "{said}");
                Ok(())
            })
        };
        status(cluster.vm1(), true)?;
        cluster.daemons[1].start()?;
        status(cluster.vm1(), false)?;
        within(CONVERGES, "changes are taken", || {
            let made = cluster.vm1().meshctl(&["network", "create", "red"]);
            if made.stderr.contains("exists") { Ok(()) } else { made.ok().map(drop) }
        })
    });
}

/// How long a promotion takes, and a demotion: medians of five, as second and as third manager.
#[test]
#[ignore = "a measurement"]
fn how_long_roles_take() {
    scenario("roles measured", |lab| {
        let cluster = Cluster::three_with(lab, &["--store", "etcd"])?;
        let steps = [["promote", "vm2"], ["promote", "vm3"], ["demote", "vm3"], ["demote", "vm2"]];
        let mut taken = vec![Vec::new(); steps.len()];
        for _ in 0..5 {
            for (step, taken) in steps.iter().zip(&mut taken) {
                let begun = Instant::now();
                cluster.vm1().meshctl(&[&["node"], &step[..]].concat()).ok()?;
                taken.push(begun.elapsed().as_millis());
            }
        }
        for (step, mut taken) in steps.iter().zip(taken) {
            taken.sort_unstable();
            println!("{}: median {} ms of {taken:?}", step.join(" "), taken[2]);
        }
        Ok(())
    });
}
