//! Who is believed, for how long, and what a certificate is good for.

use anyhow::{Context, Result, ensure};
use mesh_tests::host::binary;
use mesh_tests::{
    Background, CONVERGES, Cluster, Host, MemberConnection, Meshd, Outcome, credentials, scenario, within,
};
use serde_json::Value;
use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};
use tokio::time::timeout;

/// Preloaded, it moves a process's clock. Debian's multiarch folder is the machine's.
const FAKETIME: &str = "/usr/lib/$(uname -m)-linux-gnu/faketime/libfaketime.so.1";

fn pem(host: &Host) -> String {
    format!("/run/lab/{}/data/node.pem", host.name())
}

/// One field of a node's own certificate, as `openssl x509` prints it.
fn certificate(host: &Host, field: &str) -> Result<String> {
    host.output(&["openssl", "x509", "-noout", field, "-in", &pem(host)]).ok()
}

/// The local ports of a node's connections to managers: one that was made anew has another.
fn connections(host: &Host) -> Result<String> {
    let command = "ss -Htn state established dport = :7443 | awk '{ print $3 }' | sort";
    let ports = host.shell(command).ok()?;
    ensure!(!ports.is_empty(), "{} is connected to no manager", host.name());
    Ok(ports)
}

fn ready(host: &Host) -> Result<()> {
    within(CONVERGES, "the node is up to date", || host.meshctl(&["status"]).ok().map(drop))
}

fn join(host: &Host, token: &str, manager: &Host) -> Outcome {
    host.meshctl(&["cluster", "join", "--token", token, &format!("{}:7443", manager.ip())])
}

fn token(manager: &Host) -> Result<String> {
    manager.meshctl(&["-q", "cluster", "join-token", "worker"]).ok()
}

/// Certificates that live for 20 seconds: those in use are renewed under an open stream, one that expired while its
/// node was off is renewed before anything else.
#[test]
fn certificates_renew_themselves() {
    scenario("renewals", |lab| {
        let mut daemons: Vec<Meshd> =
            ["vm1", "vm2", "vm3"].iter().map(|name| lab.host(name)?.meshd()).collect::<Result<_>>()?;
        let vm1 = daemons[0].host().clone();
        let address = vm1.ip().to_string();
        let init =
            |expiry| vm1.meshctl(&["cluster", "init", "--advertise-addr", &address, "--cert-expiry", expiry]);
        init("1s").refused("20s")?;
        init("20s").ok()?;
        let token = token(&vm1)?;
        for daemon in &daemons[1..] {
            join(daemon.host(), &token, &vm1).ok()?;
        }
        daemons[2].kill()?;
        let vm2 = daemons[1].host().clone();
        let (first, connection) = (certificate(&vm2, "-serial")?, connections(&vm2)?);
        // Each is valid for 20 s, whenever it is looked at: what took the place of the first came before that ended.
        let still_valid = ["openssl", "x509", "-noout", "-checkend", "1", "-in", &pem(&vm2)];
        for _ in 0..2 {
            let held = certificate(&vm2, "-serial")?;
            within(Duration::from_secs(25), "a running node renews its certificate", || {
                if let Err(lapsed) = vm2.output(&still_valid).ok() {
                    return Ok(Err(lapsed.context("it was renewed too late")));
                }
                ensure!(certificate(&vm2, "-serial")? != held);
                Ok(Ok(()))
            })??;
        }
        ensure!(certificate(&vm2, "-serial")? != first);
        ensure!(vm2.file(pem(&vm2)).metadata()?.permissions().mode() & 0o777 == 0o600);

        let vm3 = daemons[2].host().clone();
        within(Duration::from_secs(25), "the certificate of the node that is off expires", || {
            vm3.output(&["openssl", "x509", "-noout", "-checkend", "0", "-in", &pem(&vm3)])
                .refused_by_openssl()
        })?;
        daemons[2].start()?;
        ready(&vm3)?;
        vm3.output(&["openssl", "x509", "-noout", "-checkend", "0", "-in", &pem(&vm3)]).ok()?;
        vm1.meshctl(&["network", "create", "blue"]).ok()?;
        ensure!(connections(&vm2)? == connection, "the stream of vm2 was interrupted");
        Ok(())
    });
}

trait Openssl {
    /// `openssl x509 -checkend` says no.
    fn refused_by_openssl(&self) -> Result<()>;
}

impl Openssl for Outcome {
    fn refused_by_openssl(&self) -> Result<()> {
        ensure!(self.code == Some(1), "{self:?}");
        Ok(())
    }
}

fn rotation(manager: &Host) -> Result<Value> {
    let view = manager.meshctl(&["-o", "json", "cluster", "ca"]).json()?;
    Ok(view["rotation"].clone())
}

fn waits_for(manager: &Host, node: &str) -> Result<()> {
    within(CONVERGES, "all nodes but one have a certificate of the new CA", || {
        let rotation = rotation(manager)?;
        ensure!(rotation["waiting_for"] == serde_json::json!([node]), "{rotation}");
        Ok(())
    })
}

fn settled(manager: &Host) -> Result<()> {
    within(CONVERGES, "the old CA is forgotten", || {
        let rotation = rotation(manager)?;
        ensure!(rotation.is_null(), "{rotation}");
        Ok(())
    })
}

#[test]
fn the_ca_is_replaced_under_open_streams() {
    scenario("new CA", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let (vm1, vm2, vm3) = (cluster.vm1().clone(), cluster.vm2().clone(), cluster.vm3().clone());
        let late = lab.host("vm4")?.meshd()?;
        let old = token(&vm1)?;
        let (issuer, streams) = (certificate(&vm2, "-issuer")?, [connections(&vm1)?, connections(&vm2)?]);
        vm1.meshctl(&["cluster", "ca", "--rotate", "--force"]).refused("not being replaced")?;
        vm2.meshctl(&["cluster", "ca", "--rotate"]).refused(&vm1.ip().to_string())?;
        cluster.daemons[2].kill()?;

        vm1.meshctl(&["cluster", "ca", "--rotate"]).ok()?;
        waits_for(&vm1, "vm3")?;
        ensure!(certificate(&vm2, "-issuer")? != issuer);
        within(CONVERGES, "status tells what is waited for", || {
            ensure!(vm1.meshctl(&["status"]).ok()?.contains("waits for vm3"));
            Ok(())
        })?;
        vm1.meshctl(&["cluster", "ca", "--rotate"]).refused("being replaced already")?;
        join(late.host(), &old, &vm1).refused("cluster ca --rotate")?;
        join(late.host(), &token(&vm1)?, &vm1).ok()?;

        cluster.daemons[2].start()?;
        ready(&vm3)?;
        settled(&vm1)?;
        ensure!([connections(&vm1)?, connections(&vm2)?] == streams, "a stream was interrupted");
        for daemon in &mut cluster.daemons {
            daemon.restart()?;
        }
        [&vm1, &vm2, &vm3].into_iter().try_for_each(ready)?;

        // Given up on, a node that is away is out until it joins again; so is who has taken what it proved itself with,
        // and is connected still.
        cluster.daemons[2].kill()?;
        vm1.meshctl(&["cluster", "ca", "--rotate"]).ok()?;
        waits_for(&vm1, "vm3")?;
        let (stolen, manager) = (credentials(&vm3)?, SocketAddr::from((vm1.ip(), 7443)));
        vm3.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let thief = MemberConnection::open(manager, &stolen, 1 << 16).await?;
                let vm1 = vm1.clone();
                let force = move || vm1.meshctl(&["cluster", "ca", "--rotate", "--force"]).ok();
                tokio::task::spawn_blocking(force).await??;
                // However it ends.
                drop(timeout(CONVERGES, thief.served).await.context("the connection goes on")?);
                Ok(())
            })
        })?;
        settled(&vm1)?;
        cluster.daemons[2].start()?;
        within(CONVERGES, "the log of the node says what to do", || {
            let log = std::fs::read_to_string(vm3.file(vm3.log_path()))?;
            ensure!(log.contains("the CA was replaced while this node was away"), "{log}");
            Ok(())
        })?;
        ensure!(vm3.meshctl(&["status"]).code == Some(1));
        ready(&vm2)
    });
}

/// Three managers: the etcds start again one after the other, with the CA coming and again with the old one going.
#[test]
fn the_ca_is_replaced_under_three_managers() {
    scenario("new CA, three managers", |lab| {
        let mut cluster = Cluster::managers(lab)?;
        let hosts: Vec<Host> = cluster.daemons.iter().map(|daemon| daemon.host().clone()).collect();
        let restarts = |times: usize| {
            within(CONVERGES * 2, "every etcd has learnt of the CAs", || {
                for host in &hosts {
                    let log = std::fs::read_to_string(host.file(host.log_path()))?;
                    let there = log.matches("etcd starts again: it is to trust").count();
                    ensure!(there == times, "{there} of {times} on {}", host.name());
                }
                Ok(())
            })
        };
        // One for the agent, one to each other manager.
        let streams = || hosts.iter().map(connections).collect::<Result<Vec<_>>>();
        let before = within(CONVERGES, "all are connected", || {
            let streams = streams()?;
            ensure!(streams.iter().all(|ports| ports.lines().count() == 3), "{streams:?}");
            Ok(streams)
        })?;

        let stop = AtomicBool::new(false);
        let outcomes = thread::scope(|scope| {
            let changing = scope.spawn(|| {
                let mut outcomes = Vec::new();
                while !stop.load(Relaxed) {
                    let name = format!("n{}", outcomes.len());
                    outcomes.push(hosts[1].meshctl(&["network", "create", &name]));
                }
                outcomes
            });
            let replaced = (|| {
                hosts[0].meshctl(&["cluster", "ca", "--rotate"]).ok()?;
                settled(&hosts[0])?;
                restarts(2)
            })();
            stop.store(true, Relaxed);
            let outcomes = changing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            replaced.map(|()| outcomes)
        })?;
        eprintln!("{} changes while the CA was replaced", outcomes.len());
        let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.code != Some(0)).collect();
        ensure!(failed.is_empty(), "{} of {}: {failed:?}", failed.len(), outcomes.len());
        ensure!(streams()? == before, "a stream was interrupted: {before:?}, {:?}", streams()?);

        // One that was away knows the old CA only, its etcd too.
        cluster.daemons[2].kill()?;
        hosts[0].meshctl(&["cluster", "ca", "--rotate"]).ok()?;
        waits_for(&hosts[0], "vm3")?;
        cluster.daemons[2].start()?;
        hosts.iter().try_for_each(ready)?;
        settled(&hosts[0])?;
        for daemon in &mut cluster.daemons {
            daemon.restart()?;
            ready(daemon.host())?;
        }
        within(CONVERGES, "changes are taken", || {
            hosts[2].meshctl(&["network", "create", "last"]).ok().map(drop)
        })
    });
}

/// A client with a node's certificate, or with none. `line` is what curl gets: method and path, then a body.
fn ask(from: &Host, manager: &Host, identity: Option<&Host>, line: &[&str]) -> Result<(String, String)> {
    let to = format!("manager.role.mesh.internal:7443:{}:7443", manager.ip());
    let (method, url) = (line[0], format!("https://manager.role.mesh.internal:7443{}", line[1]));
    // All hosts' files are in reach of the lab; the authority is the last certificate in the file.
    let ca = "/run/lab/ca.pem";
    let last = format!("tac {} | sed '/BEGIN CERTIFICATE/q' | tac > {ca}", pem(manager));
    from.shell(&last).ok()?;
    let mut command = vec!["curl", "-sS", "--http2", "--max-time", "3", "--cacert", ca, "--connect-to", &to];
    let own = identity.map(pem);
    if let Some(own) = &own {
        command.extend(["--cert", own, "--key", own]);
    }
    command.extend(["-w", "\n%{http_code}", "-H", "content-type: application/json", "-X", method]);
    if let Some(body) = line.get(2).filter(|body| !body.is_empty()) {
        command.extend(["-d", body]);
    }
    command.push(&url);
    let answer = from.output(&command).ok()?;
    let (body, code) = answer.rsplit_once('\n').context("no status")?;
    Ok((code.to_owned(), body.to_owned()))
}

#[test]
fn a_worker_can_change_nothing_but_its_own() {
    scenario("a worker's certificate", |lab| {
        let cluster = Cluster::three(lab)?;
        let (vm1, vm2, vm3) = (cluster.vm1(), cluster.vm2(), cluster.vm3());
        vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        vm1.meshctl(&[
            "service",
            "create",
            "--name",
            "web",
            "--network",
            "blue",
            "--health-tcp",
            "--health-port",
            "80",
        ])
        .ok()?;
        let [theirs, own] = [(vm3, "theirs"), (vm2, "own")].map(|(host, name)| -> Result<String> {
            let target = lab.container(name)?.target();
            let connect = ["network", "connect", "--name", name, "--service", "web", "blue", &target];
            host.meshctl(&connect).ok()?;
            let id = cluster.endpoint(name)?["id"].clone();
            Ok(id.as_str().context("no ID")?.to_owned())
        });
        let (theirs, own) = (theirs?, own?);
        let before = cluster.list(&["endpoint", "ls"])?;
        let worker = |line: &[&str]| ask(vm2, vm1, Some(vm2), line);

        // What is not its own is refused; what only managers may ask is refused; what does not exist does not.
        let endpoint = |id: &str| format!("/v1/agent/endpoints/{id}");
        let drain = |id: &str| endpoint(id) + "/drain";
        for (method, path, body) in [
            ("DELETE", endpoint(&theirs), ""),
            ("POST", drain(&theirs), ""),
            ("PATCH", endpoint(&theirs), r#"{"name":"mine"}"#),
            ("PUT", endpoint(&theirs), r#"{"network":"blue","target":{"pid":1},"ifname":"eth0"}"#),
            ("POST", "/v1/manager/confirm".into(), r#"{"revision":1,"except":null}"#),
            ("POST", "/v1/manager/hold".into(), r#"{"ports":[]}"#),
            ("POST", "/v1/manager/release".into(), r#"{"id":1}"#),
            ("POST", "/v1/manager/store".into(), ""),
            // What a manager needs to be one: the keys of everything.
            ("POST", "/v1/agent/promotion".into(), ""),
        ] {
            let (code, text) = worker(&[method, &path, body])?;
            ensure!(code == "403", "{method} {path}: {code} {text}");
        }
        for path in ["/v1/networks", "/v1/services", "/v1/cluster/ca/rotate", "/v1/cluster/join-token"] {
            let (code, text) = worker(&["POST", path])?;
            ensure!(code == "404", "{path}: {code} {text}");
        }
        // It declines what nobody asked of it: neither record nor role change.
        let (code, text) = worker(&["POST", "/v1/agent/declined", r#"{"reason":"\u001b[2J"}"#])?;
        ensure!(code == "200", "{code} {text}");
        let records = vm1.meshctl(&["cluster", "backup", "-"]).ok()?;
        ensure!(records.contains("certificate/") && !records.contains("declined/"), "it left a record");
        let lie = format!(r#"{{"authority":"{}","expires":1}}"#, "x".repeat(1000));
        let (code, text) = worker(&["POST", "/v1/agent/certificate", &lie])?;
        ensure!(code == "422" || code == "400", "{code} {text}");
        // A key of its own gets it a certificate of its own role only.
        let key =
            "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /dev/null -subj /";
        let csr =
            serde_json::json!({ "csr": vm2.shell(&format!("{key}CN=manager.role.mesh.internal")).ok()? });
        let (code, text) = worker(&["POST", "/v1/agent/renew", &csr.to_string()])?;
        ensure!(code == "200", "{code} {text}");
        let renewed: Value = serde_json::from_str(&text)?;
        let renewed = renewed["certificate"].as_str().context("no certificate")?;
        let names = vm2.shell(&format!("openssl x509 -noout -ext subjectAltName <<<'{renewed}'")).ok()?;
        ensure!(names.contains("worker.role") && !names.contains("manager"), "{names}");
        // A verdict on another's endpoint is left out.
        let verdict = format!(r#"{{"endpoints":[["{theirs}","healthy"]]}}"#);
        worker(&["POST", "/v1/agent/health", &verdict])?;
        ensure!(cluster.list(&["endpoint", "ls"])? == before);

        // No certificate: nothing but joining, which needs a token.
        for path in ["/v1/agent/applied", "/v1/manager/hold", "/v1/agent/renew"] {
            let (code, text) = ask(vm2, vm1, None, &["POST", path])?;
            ensure!(code == "403", "{path}: {code} {text}");
        }
        // Its own it may change.
        let (code, text) = worker(&["DELETE", &endpoint(&own)])?;
        ensure!(code == "200", "{code} {text}");

        // Removed, it is refused: the open stream ends, and what it asks is not heard.
        let (code, text) = worker(&["POST", "/v1/agent/withdraw"])?;
        ensure!(code == "200", "{code} {text}");
        within(Duration::from_secs(1), "the removed node's stream ends", || {
            ensure!(vm2.meshctl(&["status"]).code == Some(1));
            Ok(())
        })?;
        let (code, text) = worker(&["POST", "/v1/agent/renew", r#"{"csr":""}"#])?;
        ensure!(code == "410" && text.contains("removed"), "{code} {text}");
        let (code, text) = worker(&["POST", "/v1/agent/applied", r#"{"revision":1}"#])?;
        ensure!(code == "410" && text.contains("removed"), "{code} {text}");
        Ok(())
    });
}

/// A meshd with a name of its own choice and a clock that is wrong by so much, such as `-400d`.
fn odd(host: &Host, name: &str, clock: &str) -> Result<(Background, String)> {
    let run = format!("/run/lab/{}/odd{clock}", host.name());
    let preload = if clock == "+0" { "true" } else { &format!("export LD_PRELOAD={FAKETIME}") };
    let script = format!(
        "{preload}; FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME='{clock}' exec {} --name {name} --data-dir {run}/data --run-dir {run}",
        binary("meshd")?
    );
    let process = host.spawn(&["bash", "-c", &script])?;
    let socket = format!("{run}/meshd.sock");
    within(CONVERGES, "meshd answers", || {
        ensure!(host.file(&socket).exists());
        Ok(())
    })?;
    Ok((process, socket))
}

#[test]
fn who_can_not_join_leaves_nothing() {
    scenario("refused joins", |lab| {
        let cluster = Cluster::three(lab)?;
        let (vm1, meshctl) = (cluster.vm1(), binary("meshctl")?);
        let other = lab.host("vm4")?.meshd()?;
        let other = other.host();
        other.meshctl(&["cluster", "init", "--advertise-addr", &other.ip().to_string()]).ok()?;
        let (token, foreign) = (token(vm1)?, token(other)?);
        let new = lab.host("vm5")?;
        let before = (cluster.list(&["node", "ls"])?.len(), new.kernel_objects()?);

        let cases = [
            (&new, "vm5", "+0", &foreign, vm1, "another cluster"),
            (&new, "vm5", "+0", &token, other, "another cluster"),
            (&new, "vm2", "+0", &token, vm1, "exists already"),
            (cluster.vm2(), "vm5", "+0", &token, vm1, "'vm2'"),
            (&new, "vm5", "-400d", &token, vm1, "set the clocks"),
            (&new, "vm5", "+400d", &token, vm1, "set the clocks"),
        ];
        for (host, name, clock, token, manager, said) in cases {
            let (mut meshd, socket) = odd(host, name, clock)?;
            let manager = format!("{}:7443", manager.ip());
            let join = [&meshctl, "--socket", &socket, "cluster", "join", "--token", token, &manager];
            host.output(&join).refused(said)?;
            host.output(&[&meshctl, "--socket", &socket, "node", "ls"]).refused("cluster init")?;
            meshd.kill()?;
            host.output(&["rm", "-rf", socket.trim_end_matches("/meshd.sock")]).ok()?;
        }
        ensure!((cluster.list(&["node", "ls"])?.len(), new.kernel_objects()?) == before);
        Ok(())
    });
}
