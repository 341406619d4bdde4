//! The managers' etcd: one that they run, or one that somebody else does.

use anyhow::{Context, Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Host, Meshd, SiteEtcd, SiteTls, scenario, within};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{fs, path::PathBuf};

/// The etcd that a daemon runs, as the test sees it.
fn etcd_of(meshd: &Meshd) -> Result<Pid> {
    let meshd = meshd.pid().context("meshd does not run")?;
    let tasks = fs::read_dir(format!("/proc/{meshd}/task"))?.flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<i32> = children
        .flat_map(|pids| pids.split_whitespace().filter_map(|p| p.parse().ok()).collect::<Vec<_>>())
        .collect();
    let is_etcd =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "etcd");
    let found = children.into_iter().find(is_etcd).context("no etcd among the children of meshd")?;
    Ok(Pid::from_raw(found))
}

/// Waits until a change is taken.
fn changes(host: &Host, network: &str) -> Result<()> {
    within(CONVERGES, "changes are taken", || {
        let made = host.meshctl(&["network", "create", network]);
        if made.stderr.contains("exists") { Ok(()) } else { made.ok().map(|_| ()) }
    })
}

fn networks(host: &Host) -> Result<String> {
    host.meshctl(&["network", "ls"]).ok()
}

#[test]
fn the_etcd_of_a_manager_is_started_guarded_and_kept() {
    scenario("a manager's etcd", |lab| {
        let mut cluster = Cluster::three_with(lab, &["--store", "etcd"])?;
        let (vm1, vm2) = (cluster.vm1().clone(), cluster.vm2().clone());
        changes(&vm1, "blue")?;
        within(CONVERGES, "the manager leads", || {
            let table = vm2.meshctl(&["node", "ls"]).ok()?;
            ensure!(table.lines().any(|row| row.contains("vm1") && row.contains("Leader")), "{table}");
            Ok(())
        })?;

        let directory = vm1.file(format!("{}/etcd", vm1.data_dir()));
        let mode = |path: PathBuf| -> Result<u32> {
            use std::os::unix::fs::PermissionsExt;
            Ok(fs::metadata(path)?.permissions().mode() & 0o777)
        };
        ensure!(mode(directory.clone())? == 0o700 && mode(directory.join("etcd.pem"))? == 0o600);

        // A worker's certificate is of the same CA, but not a manager's.
        let own = format!("{}/etcd/etcd.pem", vm1.data_dir());
        let trusted = format!("{}/etcd/trusted.pem", vm1.data_dir());
        let worker = format!("{}/node.pem", vm2.data_dir());
        let ask = |host: &Host, certificate: &str, url: &str| {
            host.output(&[
                "curl",
                "-sS",
                "--http1.1",
                "--max-time",
                "5",
                "--cacert",
                &trusted,
                "--cert",
                certificate,
                url,
            ])
        };
        let (client, peer) = ("https://127.0.0.1:7444/version", format!("https://{}:7445/version", vm1.ip()));
        ensure!(ask(&vm1, &own, client).ok()?.contains("etcdserver"));
        ensure!(ask(&vm2, &own, &peer).ok()?.contains("etcdserver"));
        for (host, url) in [(&vm1, client), (&vm2, peer.as_str())] {
            let refused = ask(host, &worker, url);
            ensure!(refused.code == Some(56) || refused.code == Some(35), "{refused:?}");
        }

        // The child dies.
        let child = etcd_of(&cluster.daemons[0])?;
        kill(child, Signal::SIGKILL)?;
        changes(&vm1, "red")?;
        let next = etcd_of(&cluster.daemons[0])?;
        ensure!(next != child, "the same process");

        // meshd dies, and the child with it.
        cluster.daemons[0].kill()?;
        within(CONVERGES, "etcd ended with meshd", || {
            ensure!(kill(next, None).is_err(), "etcd still runs");
            Ok(())
        })?;
        cluster.daemons[0].start()?;
        changes(&vm1, "green")?;
        let listed = networks(&vm1)?;
        ensure!(["blue", "red", "green"].iter().all(|name| listed.contains(name)), "{listed}");

        // meshd is asked to end.
        let child = etcd_of(&cluster.daemons[0])?;
        let status = cluster.daemons[0].terminate()?;
        ensure!(status.success() && kill(child, None).is_err(), "{status}");
        Ok(())
    });
}

/// Where nodes' certificates live for 20 seconds, those of the etcds are replaced sooner than that: members show the new ones
/// to each other, and every change is taken meanwhile.
#[test]
fn the_etcds_certificates_are_renewed() {
    scenario("renewals of etcd", |lab| {
        let mut cluster = Cluster::managers_with(lab, &["--store", "etcd", "--cert-expiry", "20s"])?;
        let hosts: Vec<Host> = cluster.daemons.iter().map(|daemon| daemon.host().clone()).collect();
        let own = |host: &Host| format!("{}/etcd/etcd.pem", host.data_dir());
        let kept =
            |host: &Host| host.output(&["openssl", "x509", "-noout", "-serial", "-in", &own(host)]).ok();
        let shown = |host: &Host| {
            let (at, own) = (format!("{}:7445", host.ip()), own(host));
            host.shell(&format!(
                "openssl s_client -connect {at} -cert {own} -key {own} </dev/null 2>/dev/null | openssl x509 -noout -serial"
            ))
            .ok()
        };
        let mut changes = 0;
        for _ in 0..2 {
            let before = hosts.iter().map(kept).collect::<Result<Vec<_>>>()?;
            within(CONVERGES, "every etcd has another certificate", || {
                hosts[changes % 3].meshctl(&["network", "create", &format!("n{changes}")]).ok()?;
                changes += 1;
                for (host, before) in hosts.iter().zip(&before) {
                    ensure!(kept(host)? != *before, "{} has not", host.name());
                    ensure!(shown(host)? == kept(host)?, "{} shows another", host.name());
                }
                Ok(())
            })?;
        }
        for daemon in &mut cluster.daemons {
            daemon.restart()?;
            self::changes(daemon.host(), &format!("of-{}", daemon.host().name()))?;
        }
        Ok(())
    });
}

#[test]
fn what_keeps_an_etcd_from_starting_is_said_and_nothing_is_left() {
    scenario("no etcd", |lab| {
        let host = lab.host("vm1")?;
        let _meshd = host.meshd()?;
        let address = host.ip().to_string();
        let init = ["cluster", "init", "--advertise-addr", &address, "--store", "etcd"];
        let other = format!("--listen-peer-urls=http://{address}:7445");
        let mut taken = host.spawn(&["etcd", "--data-dir=/run/lab/vm1/other", &other])?;
        within(CONVERGES, "the port is taken", || {
            let listening = host.output(&["ss", "-Htln", "sport = :7445"]).ok()?;
            ensure!(!listening.is_empty());
            Ok(())
        })?;
        host.meshctl(&init).refused("7445")?;
        taken.kill()?;
        let left: Vec<_> =
            fs::read_dir(host.file(host.data_dir()))?.flatten().map(|e| e.file_name()).collect();
        ensure!(left.is_empty(), "{left:?}");
        let absent = ["--etcd-endpoints", "http://127.0.0.1:9"];
        host.meshctl(&[&init[..], &absent].concat()).refused("http://127.0.0.1:9")?;
        host.meshctl(&init).ok()?;
        changes(&host, "blue")
    });
}

#[test]
fn an_etcd_of_the_site_is_used() {
    scenario("the site's etcd", |lab| {
        let host = lab.host("vm1")?;
        let etcd = SiteEtcd::tls(&host, 2389)?;
        let Some(SiteTls { ca, cert, key }) = &etcd.tls else { unreachable!("it speaks TLS") };

        let mut meshd = host.meshd()?;
        let address = host.ip().to_string();
        let init = ["cluster", "init", "--advertise-addr", &address, "--etcd-endpoints"];
        let guarded = [&init[..], &[&etcd.url]].concat();
        let with_ca = [&guarded[..], &["--etcd-ca", ca]].concat();
        within(CONVERGES, "etcd is there and wants a certificate", || {
            host.meshctl(&with_ca).refused("no etcd answers")
        })?;
        host.meshctl(&guarded).refused("--etcd-ca")?;
        let whole = [&with_ca[..], &["--etcd-cert", cert, "--etcd-key", key]].concat();
        host.meshctl(&whole).ok()?;
        changes(&host, "blue")?;
        meshd.restart()?;
        changes(&host, "red")?;

        // Another cluster on the plain one.
        let second = lab.host("vm2")?;
        let _second = second.meshd()?;
        let address = second.ip().to_string();
        let plain = SiteEtcd::plain(&second, 2379)?;
        let init = ["cluster", "init", "--advertise-addr", &address, "--etcd-endpoints", &plain.url];
        within(CONVERGES, "the plain etcd is used", || second.meshctl(&init).ok().map(|_| ()))?;
        changes(&second, "blue")?;
        ensure!(networks(&host)?.contains("red"));
        Ok(())
    });
}

/// Three managers on the site's etcd: any of them takes changes while another is away, and none leads.
#[test]
fn managers_share_the_sites_etcd() {
    scenario("managers on the site's etcd", |lab| {
        let etcd = SiteEtcd::tls(&lab.host("etcd")?, 2389)?;
        let Some(SiteTls { ca, cert, key }) = &etcd.tls else { unreachable!("it speaks TLS") };
        let options =
            ["--etcd-endpoints", &etcd.url, "--etcd-ca", ca, "--etcd-cert", cert, "--etcd-key", key];
        let mut cluster = Cluster::managers_with(lab, &options)?;
        let hosts: Vec<Host> = cluster.daemons.iter().map(|daemon| daemon.host().clone()).collect();
        for (host, network) in hosts.iter().zip(["blue", "green", "red"]) {
            changes(host, network)?;
        }
        cluster.daemons[0].kill()?;
        changes(&hosts[1], "while-away")?;
        hosts[2].meshctl(&["node", "demote", "vm3"]).ok()?;
        within(CONVERGES, "vm3 is a worker", || {
            hosts[2].meshctl(&["network", "create", "x"]).refused("run the command on a manager")
        })?;
        cluster.daemons[0].start()?;
        changes(&hosts[0], "back")?;
        hosts[0].meshctl(&["node", "promote", "vm3"]).ok()?;
        changes(&hosts[2], "promoted")?;
        let known = networks(&hosts[1])?;
        let all = ["blue", "green", "red", "while-away", "back", "promoted"];
        ensure!(all.iter().all(|name| known.contains(name)), "{known}");
        Ok(())
    });
}
