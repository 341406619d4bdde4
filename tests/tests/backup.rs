//! A cluster that lost its manager's disk is back with a backup; what is no such backup changes nothing.

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Host, Meshd, field, scenario, within};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Ends a daemon and loses its data directory.
fn lose(daemon: &mut Meshd) -> Result<()> {
    daemon.kill()?;
    Ok(fs::remove_dir_all(daemon.host().file(daemon.host().data_dir()))?)
}

fn networks(host: &Host) -> Result<String> {
    host.meshctl(&["-q", "network", "ls"]).ok()
}

#[test]
fn a_lost_manager_is_restored() {
    scenario("restore", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let (vm1, vm2) = (cluster.vm1().clone(), cluster.vm2().clone());
        vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        let run = |host: &Host, name: &str| {
            host.run(&["--network", "blue", "--name", name], &["sleep", "infinity"])
        };
        let (kept, mut gone) = (run(cluster.vm2(), "kept")?, run(cluster.vm3(), "gone")?);
        let container = vm2.of_process("kept", kept.child()?);
        within(CONVERGES, "both are attached", || cluster.address("kept").and(cluster.address("gone")))?;

        let backup = "/run/lab/mesh.backup";
        vm2.meshctl(&["cluster", "backup", backup]).refused(&vm1.ip().to_string())?;
        vm1.meshctl(&["cluster", "backup", backup]).ok()?;
        let file = vm1.file(backup);
        ensure!(fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600);
        vm1.meshctl(&["cluster", "backup", backup]).refused("--force")?;
        vm1.meshctl(&["cluster", "backup", "--force", backup]).ok()?;
        vm1.meshctl(&["cluster", "restore", backup]).refused("member of a cluster already")?;

        // What the backup does not know: an endpoint more, one less, a network more.
        let _later = run(cluster.vm3(), "later")?;
        within(CONVERGES, "it is attached", || cluster.address("later"))?;
        gone.kill()?;
        within(CONVERGES, "it is removed", || {
            ensure!(cluster.endpoint("gone").is_err());
            Ok(())
        })?;
        vm1.meshctl(&["network", "create", "red"]).ok()?;

        lose(&mut cluster.daemons[0])?;
        cluster.daemons[0].start()?;
        // Altered, cut short, of another format, no backup at all, on a host of another address.
        let whole = fs::read_to_string(&file)?;
        for (name, text, why) in [
            ("altered", whole.replacen("vm1", "vm9", 1), "checksum"),
            ("cut", whole[..whole.len() / 2].to_owned(), "cut short"),
            ("newer", whole.replacen("backup 1", "backup 7", 1), "newer meshd"),
            ("other", "banana".to_owned(), "no backup"),
        ] {
            let path = format!("/run/lab/{name}.backup");
            fs::write(vm1.file(&path), text)?;
            vm1.meshctl(&["cluster", "restore", &path]).refused(why)?;
        }
        vm1.meshctl(&["cluster", "restore", "/run/lab/nothing"]).refused("/run/lab/nothing")?;
        let stranger = lab.host("vm4")?.meshd()?;
        stranger.host().meshctl(&["cluster", "restore", backup]).refused(&vm1.ip().to_string())?;
        for host in [&vm1, stranger.host()] {
            host.meshctl(&["node", "ls"]).refused("cluster init")?;
            let left = fs::read_dir(host.file(host.data_dir()))?.count();
            ensure!(left == 0, "a refused restore left {left} files on {}", host.name());
        }

        vm1.meshctl(&["cluster", "restore", backup]).ok()?;
        within(CONVERGES, "all nodes are back", || {
            let nodes = cluster.list(&["node", "ls"])?;
            let ready = nodes.iter().filter(|node| field(node, "status") == "ready").count();
            ensure!(ready == 3, "{nodes:?}");
            Ok(())
        })?;
        within(CONVERGES, "every node has the state of the backup", || {
            let names = |host: &Host| -> Result<Vec<String>> {
                let listed = host.meshctl(&["-o", "json", "endpoint", "ls"]).json()?;
                Ok(listed.as_array().into_iter().flatten().map(|e| field(e, "name")).collect())
            };
            for host in [&vm1, &vm2, cluster.vm3()] {
                ensure!(names(host)? == ["kept"], "{:?} on {}", names(host)?, host.name());
                ensure!(networks(host)?.lines().count() == 1);
            }
            Ok(())
        })?;
        let status = vm1.meshctl(&["-o", "json", "status"]).json()?;
        ensure!(status["problems"].as_array().is_some_and(Vec::is_empty), "{status}");

        // It is a cluster that works: new endpoints, on the addresses that are free again, and new members.
        let _new = run(cluster.vm3(), "new")?;
        within(CONVERGES, "it is attached", || cluster.address("new"))?;
        within(CONVERGES, "they talk", || {
            container.output(&["ping", "-c1", "-W1", &cluster.address("new")?]).ok()
        })?;
        let token = vm1.meshctl(&["-q", "cluster", "join-token", "worker"]).ok()?;
        let join = ["cluster", "join", "--token", &token, &format!("{}:7443", vm1.ip())];
        stranger.host().meshctl(&join).ok()?;
        // And survives a restart.
        cluster.daemons[0].restart()?;
        within(CONVERGES, "the manager is back", || vm1.meshctl(&["network", "create", "green"]).ok())?;
        Ok(())
    });
}

/// A backup of before others became managers: they have gone on since, and no second history begins beside theirs.
#[test]
fn managers_of_after_the_backup_are_asked_too() {
    scenario("restore beside managers", |lab| {
        let mut cluster = Cluster::three_with(lab, &["--store", "etcd"])?;
        let (vm1, vm2) = (cluster.vm1().clone(), cluster.vm2().clone());
        let backup = "/run/lab/mesh.backup";
        vm1.meshctl(&["cluster", "backup", backup]).ok()?;
        vm1.meshctl(&["node", "promote", "vm2", "vm3"]).ok()?;
        lose(&mut cluster.daemons[0])?;
        cluster.daemons[0].start()?;
        vm1.meshctl(&["cluster", "restore", backup]).refused("is a manager of this cluster and answers")?;
        vm1.meshctl(&["node", "ls"]).refused("cluster init")?;
        within(CONVERGES, "they go on", || vm2.meshctl(&["network", "create", "blue"]).ok().map(drop))
    });
}

/// Three managers, of which two lost their disks: no majority is left, and a backup on one makes the cluster whole, which
/// can have three managers again.
#[test]
fn of_three_managers_one_is_restored() {
    scenario("restore of three", |lab| {
        let mut cluster = Cluster::managers(lab)?;
        let hosts: Vec<Host> = cluster.daemons.iter().map(|daemon| daemon.host().clone()).collect();
        hosts[0].meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        let kept = hosts[2].run(&["--network", "blue", "--name", "kept"], &["sleep", "infinity"])?;
        let container = hosts[2].of_process("kept", kept.child()?);
        within(CONVERGES, "it is attached", || cluster.address("kept"))?;
        let backup = "/run/lab/mesh.backup";
        hosts[1].meshctl(&["cluster", "backup", backup]).ok()?;
        lose(&mut cluster.daemons[0])?;
        lose(&mut cluster.daemons[1])?;
        within(CONVERGES, "the last manager takes no changes", || {
            hosts[2].meshctl(&["network", "create", "red"]).refused("manager").map(|_| ())
        })?;

        cluster.daemons[0].start()?;
        // Two histories would be two clusters.
        hosts[0].meshctl(&["cluster", "restore", backup]).refused("vm3")?;
        cluster.daemons[2].kill()?;
        hosts[0].meshctl(&["cluster", "restore", backup]).ok()?;
        cluster.daemons[2].start()?;
        let ready = |host: &Host| {
            within(CONVERGES, "the node is up to date", || host.meshctl(&["status"]).ok().map(drop))
        };
        ready(&hosts[2])?;
        let roles = |cluster: &Cluster, expected: &[&str]| {
            within(CONVERGES, "the roles are known", || {
                let nodes = cluster.list(&["node", "ls"])?;
                let mut found: Vec<String> =
                    nodes.iter().map(|n| field(n, "name") + " " + &field(n, "role")).collect();
                found.sort();
                ensure!(found == expected, "{found:?}");
                Ok(())
            })
        };
        roles(&cluster, &["vm1 manager", "vm2 worker", "vm3 worker"])?;
        within(CONVERGES, "what ran goes on", || {
            cluster.address("kept")?;
            container.output(&["ping", "-c1", "-W1", "10.50.0.1"]).ok()
        })?;
        // vm2 lost what proves who it was: it joins anew, in the place of the old one.
        hosts[0].meshctl(&["node", "rm", "--force", "vm2"]).ok()?;
        cluster.daemons[1].start()?;
        let token = hosts[0].meshctl(&["-q", "cluster", "join-token", "worker"]).ok()?;
        hosts[1].meshctl(&["cluster", "join", "--token", &token, &format!("{}:7443", hosts[0].ip())]).ok()?;
        hosts[0].meshctl(&["cluster", "migrate", "--to", "etcd"]).ok()?;
        for name in ["vm2", "vm3"] {
            within(CONVERGES * 2, "it becomes a manager", || {
                hosts[0].meshctl(&["node", "promote", name]).ok()
            })?;
        }
        roles(&cluster, &["vm1 manager", "vm2 manager", "vm3 manager"])?;
        hosts.iter().enumerate().try_for_each(|(number, host)| {
            let name = format!("by{number}");
            within(CONVERGES, "each takes changes", || {
                host.meshctl(&["network", "create", &name]).ok().map(drop)
            })
        })
    });
}
