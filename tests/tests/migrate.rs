//! `cluster migrate --to etcd`: the state moves, traffic does not notice, and it is in one place or the other whole.

use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use mesh_tests::{
    Background, CONVERGES, Cluster, Host, Lab, Load, Namespace, Ping, Replica, ReplicaSpec, SiteEtcd,
    SiteTls, field, lab::Machine, only, scenario, within,
};
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

/// What is put under load: two replicas, a container and a client.
struct Site {
    _replicas: [Replica; 2],
    _waiting: Background,
    container: Namespace,
    client: Machine,
    vip: String,
    url: String,
}

/// Pings, questions and requests that go on.
struct Traffic<'a> {
    site: &'a Site,
    pings: Ping,
    load: Load,
    names: Load,
}

const REPLICAS: [&str; 2] = ["web2", "web3"];

impl Site {
    fn of(lab: &Lab, cluster: &Cluster) -> Result<Self> {
        let (vm1, vm2, vm3) = (cluster.vm1(), cluster.vm2(), cluster.vm3());
        vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"])
            .ok()?;
        let spec = |name| ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 };
        let replicas = [Replica::start(vm2, spec("web2"))?, Replica::start(vm3, spec("web3"))?];
        let waiting = vm2.run(&["--network", "blue", "--name", "c"], &["sleep", "infinity"])?;
        let container = vm2.of_process("c", waiting.child()?);
        let client = lab.client("client")?;
        cluster.answer_in_turn(&client, 80, &REPLICAS)?;
        let (vip, url) = (cluster.vip("web")?, cluster.urls(80)[2].clone());
        Ok(Self { _replicas: replicas, _waiting: waiting, container, client, vip, url })
    }

    fn traffic(&self) -> Result<Traffic<'_>> {
        Ok(Traffic {
            site: self,
            pings: Ping::start(&self.container, &self.vip)?,
            load: Load::start(&self.client, &self.url)?,
            names: Load::repeat(&self.container, "dig", "dig +short +tries=1 +time=2 web")?,
        })
    }
}

impl Traffic<'_> {
    /// Lets it go on for a moment, and sees that nothing failed from the start to now.
    fn was_unharmed(self) -> Result<()> {
        self.load.go_on(20)?;
        self.names.go_on(20)?;
        let (pings, names) = (self.pings.stop()?, self.names.stop()?);
        only(&self.load.stop()?, &REPLICAS)?;
        only(&names, &[&self.site.vip])?;
        ensure!(pings.lost == 0, "{pings:?}");
        Ok(())
    }
}

#[test]
fn a_cluster_moves_to_etcd_under_load() {
    scenario("migrate", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let (vm1, vm2, vm3) = (cluster.vm1().clone(), cluster.vm2().clone(), cluster.vm3().clone());
        let site = Site::of(lab, &cluster)?;

        vm1.meshctl(&["cluster", "join-token", "manager"]).refused("cluster migrate --to etcd")?;
        vm1.meshctl(&["cluster", "migrate", "--to", "redb"]).refused("--to etcd")?;
        vm2.meshctl(&MIGRATE).refused("run the command on a manager")?;
        let before = history(&vm1)?;
        ensure!(before.len() >= 5, "{before:?}");

        let traffic = site.traffic()?;
        let said = vm1.meshctl(&MIGRATE).ok()?;
        ensure!(said.contains("store.before-etcd"), "{said}");
        changes(&vm1, "red")?;
        traffic.was_unharmed()?;

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
        cluster.answer_in_turn(&site.client, 80, &REPLICAS)
    });
}

/// To an etcd of the site, over TLS, while a node is lost: it is not needed, and follows when it is back.
#[test]
fn a_cluster_with_a_lost_node_moves_to_the_etcd_of_the_site() {
    scenario("migrate to a site", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let (vm1, vm2, vm3) = (cluster.vm1().clone(), cluster.vm2().clone(), cluster.vm3().clone());
        let site = Site::of(lab, &cluster)?;
        let etcd = SiteEtcd::tls(&lab.host("etcd")?, 2389)?;
        let SiteTls { ca, cert, key } = etcd.tls.as_ref().context("it speaks TLS")?;

        // Each of the options counts, and one that is wrong changes nothing.
        let bare = [&MIGRATE[..], &["--etcd-endpoints", &etcd.url]].concat();
        vm1.meshctl(&bare).refused("--etcd-ca")?;
        let trusting = |ca| [&bare[..], &["--etcd-ca", ca]].concat();
        let showing = |ca| [&trusting(ca)[..], &["--etcd-cert", cert, "--etcd-key", key]].concat();
        vm1.meshctl(&trusting(ca)).refused("no etcd answers")?;
        vm1.shell("openssl req -x509 -newkey rsa:2048 -nodes -days 1 -keyout /dev/null -subj /CN=x -out /run/lab/x.pem")
            .ok()?;
        vm1.meshctl(&showing("/run/lab/x.pem")).refused("no etcd answers")?;
        vm1.meshctl(&showing("/run/lab/absent.pem")).refused("cannot read /run/lab/absent.pem")?;
        ensure!(store(&vm1)? == "redb" && !there(&vm1, "store.before-etcd"));

        cluster.daemons[2].kill()?;
        within(CONVERGES, "vm3 is lost", || {
            let node = cluster.list(&["node", "inspect", "vm3"])?;
            ensure!(field(&node[0], "status") == "down", "{node:?}");
            Ok(())
        })?;
        let before = history(&vm1)?;
        let traffic = site.traffic()?;
        within(CONVERGES, "etcd is there", || vm1.meshctl(&showing(ca)).ok().map(drop))?;
        changes(&vm1, "red")?;
        traffic.was_unharmed()?;
        ensure!(store(&vm1)?.contains(&etcd.url) && there(&vm1, "store.before-etcd") && !there(&vm1, "etcd"));
        let after = history(&vm1)?;
        ensure!(after.starts_with(&before), "{before:?}, then {after:?}");

        cluster.daemons[2].start()?;
        cluster.answer_in_turn(&site.client, 80, &REPLICAS)?;
        within(CONVERGES, "vm3 follows", || {
            let networks = vm3.meshctl(&["network", "ls"]).ok()?;
            ensure!(networks.contains("red"), "{networks}");
            Ok(())
        })?;
        // What the files hold is read again at each start, on each manager.
        cluster.daemons[0].restart()?;
        changes(&vm1, "green")?;
        vm1.meshctl(&["node", "promote", "vm2"]).ok()?;
        cluster.daemons[0].kill()?;
        changes(&vm2, "yellow")?;
        cluster.answer_in_turn(&site.client, 80, &REPLICAS)
    });
}

/// Far more than etcd takes in one transaction, into one of its default size.
#[test]
fn a_large_cluster_moves() {
    const SERVICES: usize = 10_000;
    scenario("large migration", |lab| {
        let host = lab.host("vm1")?;
        let meshd = host.meshd()?;
        let address = host.ip().to_string();
        host.meshctl(&["cluster", "init", "--advertise-addr", &address]).ok()?;
        host.meshctl(&["network", "create", "--subnet", "10.64.0.0/16", "blue"]).ok()?;
        host.meshctl(&["service", "create", "--name", "web", "--network", "blue"]).ok()?;
        let backup = "/run/lab/large";
        host.meshctl(&["cluster", "backup", backup]).ok()?;
        host.meshctl(&["cluster", "leave", "--force"]).ok()?;
        multiply_services(&host, backup, SERVICES)?;
        host.meshctl(&["cluster", "restore", backup]).ok()?;
        changes(&host, "red")?;

        let etcd = SiteEtcd::plain(&host, 2379)?;
        let migrate = [&MIGRATE[..], &["--etcd-endpoints", &etcd.url]].concat();
        within(CONVERGES, "etcd is there", || host.meshctl(&migrate).ok().map(drop))?;
        changes(&host, "green")?;
        let services = host.meshctl(&["-q", "service", "ls"]).ok()?;
        ensure!(services.lines().count() == SERVICES, "{}", services.lines().count());
        drop(meshd);
        Ok(())
    });
}

/// Gives the only service of a backup many likes.
fn multiply_services(host: &Host, backup: &str, count: usize) -> Result<()> {
    let path = host.file(backup);
    let text = fs::read_to_string(&path)?;
    let mut lines = text.lines();
    let (magic, header) = (lines.next().context("a backup")?, lines.next().context("a backup")?);
    let mut content: serde_json::Value = serde_json::from_str(lines.next().context("a backup")?)?;
    let records = content["records"].as_array_mut().context("records")?;
    let is_service = |record: &serde_json::Value| field(record, "key").starts_with("service/");
    let first = records.iter().find(|record| is_service(record)).context("a service")?.clone();
    let value = String::from_utf8(BASE64.decode(first["value"].as_str().unwrap_or_default())?)?;
    let service: serde_json::Value = serde_json::from_str(&value)?;
    let id = field(&service, "id");
    let vip = service["networks"][0]["vips"][0].as_str().context("a VIP")?;
    for number in 1..count {
        let name = format!("web{number}");
        let address = format!("10.64.{}.{}", 16 + number / 250, 1 + number % 250);
        let new_id = format!("{number:0width$x}", width = id.len());
        let value =
            value.replace(&id, &new_id).replace("\"web\"", &format!("\"{name}\"")).replace(vip, &address);
        let key = format!("service/{new_id}");
        records.push(serde_json::json!({ "key": key, "value": BASE64.encode(value) }));
    }
    fs::write(&path, format!("{magic}\n{header}\n{content}\n"))?;
    host.shell(&format!("printf 'sha256 %s\\n' \"$(sha256sum <{backup} | cut -d' ' -f1)\" >>{backup}"))
        .ok()
        .map(drop)
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
        let site = SiteEtcd::plain(&host, 2379)?;
        let url = site.url.as_str();
        let status = host.meshctl(&["-o", "json", "status"]).json()?;
        let root = format!("/meshd/{}/", field(&status, "cluster"));
        let etcd = |action: &str, body: String| {
            host.output(&["curl", "-fsS", "-d", &body, &format!("{url}/v3/kv/{action}")]).ok()
        };
        // Keys and values are base64 in etcd's JSON.
        let key = |name: &str| BASE64.encode(format!("{root}{name}"));
        let put = |name: &str, value: &str| {
            etcd("put", format!(r#"{{"key":"{}","value":"{}"}}"#, key(name), BASE64.encode(value)))
        };
        let one = |name: &str| format!(r#"{{"key":"{}"}}"#, key(name));
        within(CONVERGES, "the site's etcd is there", || put("cluster", "{}"))?;
        host.meshctl(&endpoints(url)).refused("already")?;
        unmoved("yellow")?;
        ensure!(etcd("range", one("cluster"))?.contains(&BASE64.encode("{}")));
        etcd("deleterange", one("cluster"))?;

        // What a migration of this node left that was cut off is cleared, and its part of the history is not told twice.
        put("migration", &field(&status["node"], "id"))?;
        put(
            "guard",
            r#"{"time_ms":1,"events":[{"action":"created","kind":"network","name":"twice","id":"","detail":""}]}"#,
        )?;
        put("network/left-over", "{}")?;
        let before = history(&host)?;
        host.meshctl(&endpoints(url)).ok()?;
        ensure!(!etcd("range", one("network/left-over"))?.contains("kvs"));
        let after = history(&host)?;
        ensure!(
            after.starts_with(&before) && !after.concat().contains("twice"),
            "{before:?}, then {after:?}"
        );
        ensure!(store(&host)?.contains(url) && there(&host, "store.before-etcd"));
        changes(&host, "black")?;
        ensure!(
            !etcd("range", one("migration"))?.contains("kvs"),
            "the mark of an unfinished migration is left"
        );
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
