//! The walk-through of a user: three hosts, a published service, discovery by name.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Host, Lab, Load, Replica, ReplicaSpec, field, only, scenario, within};

fn replica(host: &Host, name: &str) -> Result<Replica> {
    let service = Some("nginx_service");
    Replica::start(host, ReplicaSpec { name, network: Some("self-network"), service, port: 80 })
}

/// A cluster with `self-network` and `nginx_service` on it, published on port 80, without replicas.
fn cluster_with_service(lab: &Lab) -> Result<Cluster> {
    let cluster = Cluster::three(lab)?;
    let vm1 = cluster.vm1();
    vm1.meshctl(&["network", "create", "--subnet", "192.168.100.0/24", "self-network"]).ok()?;
    let service =
        ["service", "create", "--name", "nginx_service", "--network", "self-network", "--publish", "80:80"];
    vm1.meshctl(&service).ok()?;
    Ok(cluster)
}

/// Step 1: the command that `init` prints joins the others.
#[test]
fn the_printed_command_joins() {
    scenario("join", |lab| {
        let daemons = [lab.host("vm1")?.meshd()?, lab.host("vm2")?.meshd()?, lab.host("vm3")?.meshd()?];
        let vm1 = daemons[0].host();
        let init = vm1.meshctl(&["cluster", "init", "--advertise-addr", &vm1.ip().to_string()]).ok()?;
        let join = init.lines().find_map(|line| line.split_once("meshctl ").map(|(_, command)| command));
        let join = join.with_context(|| format!("no join command in {init}"))?;
        let command: Vec<&str> = join.split_whitespace().collect();
        ensure!(command[..2] == ["cluster", "join"], "{join}");
        for daemon in &daemons[1..] {
            let said = daemon.host().meshctl(&command).ok()?;
            ensure!(said.to_lowercase().contains("joined"), "{said}");
        }
        within(CONVERGES, "three nodes are listed", || {
            let table = vm1.meshctl(&["node", "ls"]).ok()?;
            let count = |word: &str| table.lines().filter(|line| line.contains(word)).count();
            ensure!(count("Ready") == 3 && count("Active") == 3, "{table}");
            let leader = table.lines().filter(|line| line.contains("Leader")).collect::<Vec<_>>();
            ensure!(leader.len() == 1 && leader[0].contains("vm1"), "{table}");
            Ok(())
        })?;
        for daemon in &daemons {
            within(CONVERGES, "the node is up to date", || {
                daemon.host().meshctl(&["status"]).ok().map(|_| ())
            })?;
        }
        Ok(())
    });
}

/// Steps 2 and 3: every node answers with every replica, also one that holds none.
#[test]
fn a_published_port_answers_everywhere() {
    scenario("published", |lab| {
        let (cluster, client) = (cluster_with_service(lab)?, lab.client("client")?);
        let replicas = [replica(cluster.vm1(), "web1")?, replica(cluster.vm2(), "web2")?];
        cluster.endpoints("nginx_service", "2/2")?;
        let table = cluster.vm1().meshctl(&["service", "ls"]).ok()?;
        ensure!(table.contains("*:80->80/tcp"), "{table}");
        let table = cluster.vm1().meshctl(&["service", "ps", "nginx_service"]).ok()?;
        for (name, node) in [("web1", "vm1"), ("web2", "vm2")] {
            ensure!(table.lines().any(|line| line.contains(name) && line.contains(node)), "{table}");
        }

        cluster.answer_in_turn(&client, 80, &["web1", "web2"])?;
        for replica in &replicas {
            let logged = replica.nginx.requests()?;
            let others: Vec<_> =
                logged.iter().filter(|line| line.client != client.ip().to_string()).collect();
            ensure!(!logged.is_empty() && others.is_empty(), "not from the client's own address: {others:?}");
        }
        Ok(())
    });
}

/// Step 4: replicas join and are taken out under load; no request fails.
#[test]
fn replicas_come_and_go_without_a_failed_request() {
    scenario("come and go", |lab| {
        let (cluster, client) = (cluster_with_service(lab)?, lab.client("client")?);
        // Without a check a replica gets requests before its nginx listens, as with Docker.
        let check = ["--health-http", "/health", "--health-interval", "100ms"];
        cluster.vm1().meshctl(&[&["service", "update"], &check[..], &["nginx_service"]].concat()).ok()?;
        let (_web1, mut web2) = (replica(cluster.vm1(), "web1")?, replica(cluster.vm2(), "web2")?);
        cluster.answer_in_turn(&client, 80, &["web1", "web2"])?;

        let load = Load::start(&client, &cluster.urls(80)[2])?;
        let mut web3 = replica(cluster.vm3(), "web3")?;
        cluster.answer_in_turn(&client, 80, &["web1", "web2", "web3"])?;
        for (host, replica, name) in [(cluster.vm3(), &mut web3, "web3"), (cluster.vm2(), &mut web2, "web2")]
        {
            host.meshctl(&["network", "disconnect", "self-network", name]).ok()?;
            replica.terminate()?;
        }
        cluster.endpoints("nginx_service", "1/1")?;
        cluster.answer_in_turn(&client, 80, &["web1"])?;
        load.go_on(10)?;
        only(&load.stop()?, &["web1", "web2", "web3"])
    });
}

/// Step 5: a killed replica is left out; it comes back and gets its share.
#[test]
fn a_killed_replica_is_left_out_and_returns() {
    scenario("killed", |lab| {
        let (cluster, client) = (cluster_with_service(lab)?, lab.client("client")?);
        let (_web1, mut web2) = (replica(cluster.vm1(), "web1")?, replica(cluster.vm2(), "web2")?);
        let _web3 = replica(cluster.vm3(), "web3")?;
        cluster.answer_in_turn(&client, 80, &["web1", "web2", "web3"])?;

        web2.kill()?;
        cluster.endpoints("nginx_service", "2/2")?;
        cluster.answer_in_turn(&client, 80, &["web1", "web3"])?;
        web2.restart()?;
        cluster.endpoints("nginx_service", "3/3")?;
        cluster.answer_in_turn(&client, 80, &["web1", "web2", "web3"])
    });
}

/// Step 8: a container finds the service by name and keeps finding it.
#[test]
fn a_container_finds_the_service_by_name() {
    scenario("discovery", |lab| {
        let cluster = cluster_with_service(lab)?;
        let (web1, mut web2) = (replica(cluster.vm1(), "web1")?, replica(cluster.vm2(), "web2")?);
        let _web3 = replica(cluster.vm3(), "web3")?;
        let waiting =
            cluster.vm2().run(&["--network", "self-network", "--name", "test"], &["sleep", "infinity"])?;
        let test = cluster.vm2().of_process("test", waiting.child()?);
        let vip = cluster.vip("nginx_service")?;
        let addresses = ["web1", "web2", "web3"].map(|name| cluster.address(name));
        let mut addresses = addresses.into_iter().collect::<Result<Vec<_>>>()?;
        addresses.sort();
        ensure!(vip.starts_with("192.168.100.") && !addresses.contains(&vip), "{vip}, {addresses:?}");

        let name_leads_everywhere = |replicas: &[&str]| {
            within(CONVERGES, "the name leads to every replica", || {
                let said = test.output(&["ping", "-c", "2", "nginx_service"]).ok()?;
                ensure!(said.contains(&format!("({vip})")) && said.contains(" 0% packet loss"), "{said}");
                let expected: Vec<_> = replicas.iter().map(|replica| (*replica, 2)).collect();
                mesh_tests::shares(&test.answers("http://nginx_service/", 2 * replicas.len())?, &expected)
            })
        };
        name_leads_everywhere(&["web1", "web2", "web3"])?;
        let said = test.output(&["wget", "-q", "-O", "-", "http://nginx_service/"]).ok()?;
        ensure!(said.starts_with("web"), "{said}");
        let looked_up = test.output(&["nslookup", "tasks.nginx_service"]).ok()?;
        ensure!(addresses.iter().all(|address| looked_up.contains(address)), "{looked_up}");

        web2.kill()?;
        name_leads_everywhere(&["web1", "web3"])?;
        web2.restart()?;
        name_leads_everywhere(&["web1", "web2", "web3"])?;
        ensure!(cluster.vip("nginx_service")? == vip);
        // A replica that asks for its own service is balanced over all of them, itself included.
        let inside = web1.namespace()?;
        within(CONVERGES, "a replica reaches its own service", || {
            let answers = inside.answers("http://nginx_service/", 6)?;
            mesh_tests::shares(&answers, &[("web1", 2), ("web2", 2), ("web3", 2)])
        })
    });
}

fn ensure_file(path: &Path) -> Result<()> {
    ensure!(path.exists(), "{} is missing", path.display());
    Ok(())
}

/// What `meshctl run` promises: the exit code is kept, and the endpoint ends with the command.
#[test]
fn run_keeps_the_exit_code_and_leaves_nothing() {
    scenario("run", |lab| {
        let cluster = cluster_with_service(lab)?;
        let vm2 = cluster.vm2();
        let ended = vm2.meshctl(&[
            "run",
            "--network",
            "self-network",
            "--name",
            "brief",
            "--",
            "sh",
            "-c",
            "exit 42",
        ]);
        ensure!(ended.code == Some(42), "{ended:?}");
        let place = ["run", "--network", "self-network", "--ip", "192.168.100.77", "--"];
        let look = ["sh", "-c", "getent hosts nginx_service; ip -4 -o address show dev eth0"];
        let seen = vm2.meshctl(&[&place[..], &look].concat()).ok()?;
        ensure!(
            seen.contains(&cluster.vip("nginx_service")?) && seen.contains("192.168.100.77/24"),
            "{seen}"
        );
        let gone = || {
            within(Duration::from_secs(10), "no endpoint is left", || {
                let left = cluster.list(&["endpoint", "ls"])?;
                ensure!(left.is_empty(), "{left:?}");
                Ok(())
            })
        };
        gone()?;

        let mut running =
            vm2.run(&["--network", "self-network", "--name", "killed"], &["sleep", "infinity"])?;
        let command = running.child()?;
        within(CONVERGES, "the endpoint is listed", || {
            ensure!(field(&cluster.endpoint("killed")?, "node") == "vm2");
            Ok(())
        })?;
        running.kill()?;
        gone()?;
        // Signals are the command's.
        let catch = ["sh", "-c", "trap 'exit 7' TERM; touch /run/lab/ready; while :; do sleep 0.1; done"];
        let mut asked = vm2.run(&["--network", "self-network", "--name", "asked"], &catch)?;
        within(CONVERGES, "the command waits", || ensure_file(&vm2.file("/run/lab/ready")))?;
        ensure!(asked.terminate(CONVERGES)?.code() == Some(7));
        gone()?;
        within(Duration::from_secs(10), "the command is gone with meshctl", || {
            ensure!(!std::fs::exists(format!("/proc/{command}"))?, "process {command} is left");
            Ok(())
        })
    });
}
