//! `cluster migrate --to etcd`: the state moves, traffic does not notice, and it is in one place or the other whole.

use anyhow::{Context, Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Host, Load, Ping, Replica, ReplicaSpec, field, only, scenario, within};
use std::{fs, os::unix::fs::PermissionsExt, process::Stdio, time::Duration};

const MIGRATE: [&str; 4] = ["cluster", "migrate", "--to", "etcd"];

/// Which store `node.json` names.
fn store(host: &Host) -> Result<String> {
    let text = fs::read_to_string(host.file(format!("{}/node.json", host.data_dir())))?;
    let node: serde_json::Value = serde_json::from_str(&text)?;
    let store = &node["store"];
    Ok(store.as_str().map_or_else(|| store.to_string(), str::to_owned))
}

fn there(host: &Host, directory: &str) -> bool {
    host.file(format!("{}/{directory}", host.data_dir())).exists()
}

/// Waits until a change is taken.
fn changes(host: &Host, network: &str) -> Result<()> {
    within(CONVERGES, "changes are taken", || {
        let made = host.meshctl(&["network", "create", network]);
        if made.stderr.contains("exists") { Ok(()) } else { made.ok().map(drop) }
    })
}

/// What `events` tells of so far, without the revisions, which are the store's.
fn history(host: &Host) -> Result<Vec<String>> {
    let output = "/run/lab/history";
    let log = fs::File::create(host.file(output))?;
    let line = [mesh_tests::host::binary("meshctl")?, "--socket".to_owned(), host.socket()];
    let mut line: Vec<&str> = line.iter().map(String::as_str).collect();
    line.extend(["-o", "json", "events", "--since", "1"]);
    let _events = host.spawn_into(&line, log.into(), Stdio::null())?;
    let marker = "the-end";
    host.meshctl(&["network", "rm", marker]);
    host.meshctl(&["network", "create", marker]).ok()?;
    within(CONVERGES, "the history is told", || {
        let told = fs::read_to_string(host.file(output))?;
        let events = told.lines().map(serde_json::from_str).collect::<Result<Vec<serde_json::Value>, _>>()?;
        let last = events.iter().rposition(|event| field(event, "name") == marker).context("not all")?;
        // Nodes also come and go in what is told, as the one that tells it sees them.
        let events = &events[..last];
        let events =
            events.iter().filter(|event| field(event, "name") != marker && field(event, "kind") != "node");
        Ok(events.map(|event| format!("{} {} {}", event["action"], event["kind"], event["name"])).collect())
    })
}

#[test]
fn a_cluster_moves_to_etcd_under_load() {
    scenario("migrate", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let (vm1, vm2, vm3) = (cluster.vm1().clone(), cluster.vm2().clone(), cluster.vm3().clone());
        vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"])
            .ok()?;
        let spec = |name| ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 };
        let _web2 = Replica::start(&vm2, spec("web2"))?;
        let _web3 = Replica::start(&vm3, spec("web3"))?;
        let waiting = vm2.run(&["--network", "blue", "--name", "c"], &["sleep", "infinity"])?;
        let container = vm2.of_process("c", waiting.child()?);
        let client = lab.client("client")?;
        cluster.answer_in_turn(&client, 80, &["web2", "web3"])?;
        let (vip, url) = (cluster.vip("web")?, cluster.urls(80)[2].clone());

        vm1.meshctl(&["cluster", "join-token", "manager"]).refused("cluster migrate --to etcd")?;
        vm1.meshctl(&["cluster", "migrate", "--to", "redb"]).refused("--to etcd")?;
        vm2.meshctl(&MIGRATE).refused("run the command on a manager")?;
        let before = history(&vm1)?;
        ensure!(before.len() >= 5, "{before:?}");

        let (pings, load) = (Ping::start(&container, &vip)?, Load::start(&client, &url)?);
        let names = Load::repeat(&container, "dig", "dig +short +tries=1 +time=2 web")?;
        let said = vm1.meshctl(&MIGRATE).ok()?;
        ensure!(said.contains("store.before-etcd"), "{said}");
        changes(&vm1, "red")?;
        load.go_on(20)?;
        names.go_on(20)?;
        let (pings, names) = (pings.stop()?, names.stop()?);
        only(&load.stop()?, &["web2", "web3"])?;
        only(&names, &[&vip])?;
        ensure!(pings.lost == 0, "{pings:?}");

        ensure!(store(&vm1)? == "etcd" && !there(&vm1, "store") && there(&vm1, "etcd"));
        let old = vm1.file(format!("{}/store.before-etcd", vm1.data_dir()));
        let mode = |path| -> Result<u32> { Ok(fs::metadata(path)?.permissions().mode() & 0o777) };
        ensure!(mode(old.clone())? == 0o700);
        for file in fs::read_dir(old)? {
            ensure!(mode(file?.path())? == 0o600);
        }
        vm1.meshctl(&MIGRATE).refused("already")?;
        let after = history(&vm1)?;
        ensure!(after.starts_with(&before), "{before:?}, then {after:?}");
        ensure!(after.len() >= before.len() + 2, "the migration and 'red': {after:?}");

        // Managers can be added now, and the first is one of several.
        let token = vm1.meshctl(&["-q", "cluster", "join-token", "manager"]).ok()?;
        ensure!(token.starts_with("MESH-"), "{token}");
        vm1.meshctl(&["node", "promote", "vm2", "vm3"]).ok()?;
        changes(&vm3, "green")?;
        cluster.daemons[0].kill()?;
        changes(&vm2, "yellow")?;
        cluster.daemons[0].start()?;
        changes(&vm1, "white")?;
        cluster.answer_in_turn(&client, 80, &["web2", "web3"])
    });
}

#[test]
fn what_keeps_a_cluster_from_moving_leaves_it_as_it_was() {
    scenario("no migration", |lab| {
        let host = lab.host("vm1")?;
        let mut meshd = host.meshd()?;
        let address = host.ip().to_string();
        host.meshctl(&["cluster", "init", "--advertise-addr", &address]).ok()?;
        changes(&host, "blue")?;
        let unmoved = |network: &str| -> Result<()> {
            ensure!(store(&host)? == "redb" && !there(&host, "etcd") && !there(&host, "store.before-etcd"));
            changes(&host, network)
        };

        // The port of the child's clients is somebody else's; then nobody answers at the URL.
        let mut taken = host.spawn(&[
            "etcd",
            "--data-dir=/run/lab/vm1/other",
            "--listen-client-urls=http://127.0.0.1:7444",
            "--advertise-client-urls=http://127.0.0.1:7444",
        ])?;
        within(CONVERGES, "the port is taken", || {
            ensure!(!host.output(&["ss", "-Htln", "sport = :7444"]).ok()?.is_empty());
            Ok(())
        })?;
        host.meshctl(&MIGRATE).refused("7444")?;
        unmoved("red")?;
        taken.kill()?;
        let endpoints = |url| [&MIGRATE[..], &["--etcd-endpoints", url]].concat();
        host.meshctl(&endpoints("http://127.0.0.1:9")).refused("http://127.0.0.1:9")?;
        unmoved("green")?;

        // The site's etcd has keys of this cluster that no migration left.
        let url = "http://127.0.0.1:2379";
        let _site =
            host.spawn(&["etcd", "--data-dir=/run/lab/vm1/site", "--logger=zap", "--log-outputs=stderr"])?;
        let status = host.meshctl(&["-o", "json", "status"]).json()?;
        let root = format!("/meshd/{}/", field(&status, "cluster"));
        // Keys are base64 in etcd's JSON.
        let base64 = |text: &str| host.shell(&format!("printf %s '{text}' | base64 --wrap=0")).ok();
        let etcd = |action: &str, body: String| {
            host.output(&["curl", "-fsS", "-d", &body, &format!("{url}/v3/kv/{action}")]).ok()
        };
        let key = base64(&format!("{root}cluster"))?;
        let put = || etcd("put", format!(r#"{{"key":"{key}","value":"e30="}}"#));
        within(CONVERGES, "the site's etcd is there", put)?;
        host.meshctl(&endpoints(url)).refused("already")?;
        unmoved("yellow")?;
        let one = format!(r#"{{"key":"{key}"}}"#);
        ensure!(etcd("range", one.clone())?.contains("e30="));
        etcd("deleterange", one)?;

        host.meshctl(&endpoints(url)).ok()?;
        ensure!(store(&host)?.contains(url) && there(&host, "store.before-etcd"));
        changes(&host, "black")?;
        let marker = format!(r#"{{"key":"{}"}}"#, base64(&format!("{root}migration"))?);
        ensure!(!etcd("range", marker)?.contains("kvs"), "the mark of an unfinished migration is left");
        meshd.restart()?;
        changes(&host, "white")?;
        let networks = host.meshctl(&["network", "ls"]).ok()?;
        ensure!(["blue", "red", "green", "yellow", "black"].iter().all(|name| networks.contains(name)));
        Ok(())
    });
}

/// Killed at any moment, a daemon comes back with one store or the other, and all that was acknowledged.
#[test]
fn a_daemon_that_is_killed_while_it_moves_has_one_store_whole() {
    scenario("killed migration", |lab| {
        let host = lab.host("vm1")?;
        let mut meshd = host.meshd()?;
        let address = host.ip().to_string();
        host.meshctl(&["cluster", "init", "--advertise-addr", &address]).ok()?;
        for number in 0..10 {
            host.meshctl(&["network", "create", &format!("net{number}")]).ok()?;
        }
        let meshctl = mesh_tests::host::binary("meshctl")?;
        let socket = host.socket();
        // It stays when meshctl ends, however soon that is.
        let line = format!("{meshctl} --socket {socket} {}; exec sleep infinity", MIGRATE.join(" "));
        let said = host.file("/run/lab/said");
        let mut pause = Duration::from_millis(20);
        // Later each time, until one had got through when it was killed.
        for attempt in 0.. {
            let log = fs::File::create(&said)?;
            let migrating = host.spawn_into(&["bash", "-c", &line], log.try_clone()?.into(), log.into())?;
            std::thread::sleep(pause);
            meshd.kill()?;
            drop(migrating);
            let said = fs::read_to_string(&said)?;
            // The etcd that was killed with the last daemon may take a moment to let go of its port.
            let refused = said.contains("cannot move") && !said.contains("can't listen");
            ensure!(!refused, "attempt {attempt}: {said}");
            let moved = store(&host)? == "etcd";
            meshd.start()?;
            changes(&host, &format!("after{attempt}"))?;
            let networks = host.meshctl(&["-q", "network", "ls"]).ok()?;
            ensure!(networks.lines().count() == 11 + attempt, "{networks}");
            ensure!((store(&host)? == "etcd") == moved && there(&host, "etcd") == moved);
            ensure!(there(&host, "store") != moved && there(&host, "store.before-etcd") == moved);
            if moved {
                return Ok(());
            }
            pause = pause * 3 / 2;
        }
        Ok(())
    });
}
