//! Managers that are killed: what flows keeps flowing, what was acknowledged is there afterwards.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    Background, CONVERGES, Cluster, Host, Load, Ping, Replica, ReplicaSpec, only, scenario, within,
};
use nix::sys::signal::Signal;

const REPLICAS: [&str; 3] = ["web1", "web2", "web3"];

/// A service on ports of the kernel and of the proxy, with a replica on each node.
fn web(cluster: &Cluster) -> Result<Vec<Replica>> {
    let vm1 = cluster.vm1();
    vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
    let service = ["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"];
    let http = ["--publish", "published=8080,target=80,protocol=http"];
    vm1.meshctl(&[&service[..], &http[..]].concat()).ok()?;
    let hosts = [vm1, cluster.vm2(), cluster.vm3()];
    let start = |(host, name): (&Host, &'static str)| {
        Replica::start(host, ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 })
    };
    hosts.into_iter().zip(REPLICAS).map(start).collect()
}

/// While the only manager is dead, the other nodes go on as they were, refuse changes in one clear line, and catch up
/// with it afterwards.
#[test]
fn the_only_manager_is_killed_under_load() {
    scenario("killed manager", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let _replicas = web(&cluster)?;
        let (vm2, vm3) = (cluster.vm2().clone(), cluster.vm3().clone());
        let mut waiting = vm2.run(&["--network", "blue", "--name", "c"], &["sleep", "infinity"])?;
        let container = vm2.of_process("c", waiting.child()?);
        let client = lab.client("client")?;
        cluster.answer_in_turn(&client, 80, &REPLICAS)?;
        cluster.answer_in_turn(&client, 8080, &REPLICAS)?;

        let ping = Ping::start(&container, &cluster.vip("web")?)?;
        let name = Load::repeat(&container, "dig", "dig +short +time=2 +tries=1 web")?;
        let kernel: Vec<Load> =
            cluster.urls(80).iter().map(|url| Load::start(&client, url)).collect::<Result<_>>()?;
        let proxy = Load::start(&client, &cluster.urls(8080)[2])?;
        let vip = cluster.vip("web")?;

        cluster.daemons[0].kill()?;
        let target = lab.container("late")?;
        let connect = ["network", "connect", "--name", "late", "blue", &target.target()];
        vm2.meshctl(&connect).refused("no manager answers")?;
        vm3.meshctl(&["service", "create", "--name", "other"]).refused("vm1")?;
        ensure!(vm3.meshctl(&["service", "ls"]).ok()?.contains("web"), "reads are answered");
        for load in kernel.iter().chain([&proxy, &name]) {
            load.go_on(20)?;
        }
        // Longer than anybody's patience with the manager: half a minute.
        ping.go_on(3000)?;
        for load in kernel.iter().chain([&proxy, &name]) {
            load.go_on(20)?;
        }
        cluster.daemons[0].start()?;
        for load in kernel.iter().chain([&proxy, &name]) {
            load.go_on(20)?;
        }

        for (load, host) in kernel.into_iter().zip(["vm1", "vm2", "vm3"]) {
            only(&load.stop()?, &REPLICAS).with_context(|| format!("through the kernel of {host}"))?;
        }
        only(&proxy.stop()?, &REPLICAS).context("through the proxy of vm3")?;
        only(&name.stop()?, &[&vip])?;
        let ping = ping.stop()?;
        ensure!(ping.lost == 0, "lost pings: {ping:?}");
        within(CONVERGES, "what was refused is done", || vm2.meshctl(&connect).ok())?;
        // A container that ended meanwhile is noticed, whoever was there to be told.
        cluster.daemons[0].kill()?;
        waiting.signal(Signal::SIGKILL)?;
        waiting.wait(CONVERGES)?;
        cluster.daemons[0].start()?;
        within(CONVERGES, "its endpoint is gone", || {
            ensure!(cluster.endpoint("c").is_err(), "it is still there");
            Ok(())
        })
    });
}

/// Creates networks one after the other, and writes down which were acknowledged.
struct Creator {
    process: Background,
    log: String,
    host: Host,
}

impl Creator {
    fn start(host: &Host, name: &str) -> Result<Self> {
        let (meshctl, socket) = (mesh_tests::host::binary("meshctl")?, host.socket());
        let log = format!("/run/lab/created-{name}");
        let script = format!(
            "for i in $(seq 1000); do
               {meshctl} --socket {socket} network create {name}-$i >/dev/null 2>>{log}.refused || exit 0
               echo {name}-$i >>{log}
             done"
        );
        let process = host.spawn(&["bash", "-c", &script])?;
        Ok(Self { process, log, host: host.clone() })
    }

    fn acknowledged(&self) -> Result<BTreeSet<String>> {
        let log = fs::read_to_string(self.host.file(&self.log)).context("nothing yet")?;
        Ok(log.lines().map(str::to_owned).collect())
    }

    /// What was acknowledged until a change failed, which must have been said in one line.
    fn finish(mut self) -> Result<BTreeSet<String>> {
        self.process.wait(CONVERGES)?;
        let refused = fs::read_to_string(self.host.file(format!("{}.refused", self.log)))?;
        ensure!(refused.lines().count() == 1 && refused.starts_with("meshctl: "), "{refused:?}");
        self.acknowledged()
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill_in_the_middle_of_changes() {
    scenario("acknowledged", |lab| {
        let host = lab.host("vm1")?;
        let mut daemon = host.meshd()?;
        host.meshctl(&["cluster", "init", "--advertise-addr", &host.ip().to_string()]).ok()?;
        let mut acknowledged = BTreeSet::new();
        for round in 0..4 {
            let creators: Vec<Creator> = (0..3)
                .map(|number| Creator::start(&host, &format!("n{round}-{number}")))
                .collect::<Result<_>>()?;
            within(CONVERGES, "changes are under way", || {
                let counts =
                    creators.iter().map(|c| Ok(c.acknowledged()?.len())).collect::<Result<Vec<_>>>()?;
                ensure!(counts.iter().all(|count| *count > 2), "{counts:?}");
                Ok(())
            })?;
            daemon.kill()?;
            for creator in creators {
                acknowledged.extend(creator.finish()?);
            }
            daemon.start()?;
            within(CONVERGES, "the node is up to date", || host.meshctl(&["status"]).ok())?;
            let listed = host.meshctl(&["-o", "json", "network", "ls"]).json()?;
            let there: BTreeSet<String> = listed
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|network| Some(network["name"].as_str()?.to_owned()))
                .collect();
            let lost: Vec<_> = acknowledged.difference(&there).collect();
            ensure!(lost.is_empty(), "round {round}: acknowledged and lost: {lost:?}");
        }
        ensure!(acknowledged.len() > 30, "{}", acknowledged.len());
        Ok(())
    });
}
