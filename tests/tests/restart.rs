//! A daemon that ends and starts again adopts what exists: what flows keeps flowing.

use anyhow::{Result, ensure};
use mesh_tests::lab::Machine;
use mesh_tests::{Background, CONVERGES, Cluster, Host, Lab, Load, Namespace, Ping, Replica, ReplicaSpec};
use mesh_tests::{only, scenario, within};

/// A service with a replica on each node, and what can run to it across the events of a test.
struct Traffic {
    _replicas: Vec<Replica>,
    _waiting: Background,
    /// On vm2.
    container: Namespace,
    client: Machine,
    /// The address of the replica on vm1.
    replica: String,
    vip: String,
    /// The port on vm3.
    url: String,
}

impl Traffic {
    fn new(lab: &Lab, cluster: &Cluster) -> Result<Self> {
        let vm1 = cluster.vm1();
        vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"])
            .ok()?;
        let places = [(cluster.vm1(), "web1"), (cluster.vm2(), "web2"), (cluster.vm3(), "web3")];
        let replicas =
            places.into_iter().map(|(host, name)| replica(host, name)).collect::<Result<Vec<_>>>()?;
        let waiting = cluster.vm2().run(&["--network", "blue", "--name", "c"], &["sleep", "infinity"])?;
        let container = cluster.vm2().of_process("c", waiting.child()?);
        let client = lab.client("client")?;
        cluster.answer_in_turn(&client, 80, &["web1", "web2", "web3"])?;
        let (replica, vip, url) =
            (cluster.address("web1")?, cluster.vip("web")?, cluster.urls(80)[2].clone());
        Ok(Self { _replicas: replicas, _waiting: waiting, container, client, replica, vip, url })
    }

    /// Runs pings through the overlay and to the VIP, and requests to the published port, while `events` happen;
    /// none may be lost.
    fn across(&self, events: impl FnOnce() -> Result<()>) -> Result<()> {
        let direct = Ping::start(&self.container, &self.replica)?;
        let vip = Ping::start(&self.container, &self.vip)?;
        let load = Load::start(&self.client, &self.url)?;
        events()?;
        load.go_on(20)?;
        let (direct, vip) = (direct.stop()?, vip.stop()?);
        only(&load.stop()?, &["web1", "web2", "web3"])?;
        ensure!(
            direct.lost == 0 && vip.lost == 0,
            "lost pings: to the replica {direct:?}, to the VIP {vip:?}"
        );
        Ok(())
    }
}

fn replica(host: &Host, name: &str) -> Result<Replica> {
    Replica::start(host, ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 })
}

fn up_to_date(host: &Host) -> Result<()> {
    within(CONVERGES, "the node is up to date", || host.meshctl(&["status"]).ok().map(|_| ()))
}

#[test]
fn nothing_is_lost_while_daemons_are_killed_and_start_again() {
    scenario("killed daemons", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let traffic = Traffic::new(lab, &cluster)?;
        traffic.across(|| {
            for daemon in cluster.daemons.iter_mut().rev() {
                daemon.restart()?;
                up_to_date(daemon.host())?;
            }
            Ok(())
        })?;

        // The adopted state is one that changes are applied to.
        let _web4 = replica(cluster.vm2(), "web4")?;
        cluster.answer_in_turn(&traffic.client, 80, &["web1", "web2", "web3", "web4"])?;
        within(CONVERGES, "names are answered again", || {
            ensure!(traffic.container.dig(&["web"])? == [traffic.vip.as_str()]);
            ensure!(traffic.container.dig(&["tasks.web"])?.len() == 4);
            Ok(())
        })
    });
}

#[test]
fn nothing_is_lost_while_daemons_are_stopped_and_start_again() {
    scenario("stopped daemons", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let traffic = Traffic::new(lab, &cluster)?;
        traffic.across(|| {
            for daemon in cluster.daemons.iter_mut() {
                let status = daemon.terminate()?;
                ensure!(status.code() == Some(0), "meshd ended with {status}");
                daemon.start()?;
                up_to_date(daemon.host())?;
            }
            Ok(())
        })?;
        cluster.answer_in_turn(&traffic.client, 80, &["web1", "web2", "web3"])
    });
}

/// Fail static: a worker that starts while no manager answers runs from the snapshot on its disk.
#[test]
fn a_worker_starts_without_a_manager() {
    scenario("no manager", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let traffic = Traffic::new(lab, &cluster)?;
        traffic.across(|| {
            cluster.daemons[0].kill()?;
            cluster.daemons[1].restart()?;
            cluster.daemons[2].restart()?;
            within(CONVERGES, "names are answered from the snapshot", || {
                ensure!(traffic.container.dig(&["web"])? == [traffic.vip.as_str()]);
                Ok(())
            })?;
            cluster.daemons[0].start()
        })?;
        cluster.daemons.iter().try_for_each(|daemon| up_to_date(daemon.host()))
    });
}

/// The proxy listens again at once, although connections of its past are open or in TIME_WAIT on its port.
#[test]
fn an_http_port_is_taken_up_again() {
    scenario("http restart", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let vm1 = cluster.vm1();
        vm1.meshctl(&["network", "create", "--subnet", "10.50.0.0/24", "blue"]).ok()?;
        let publish = ["--publish", "published=80,target=80,protocol=http"];
        let service = ["service", "create", "--name", "web", "--network", "blue"];
        vm1.meshctl(&[&service[..], &publish[..]].concat()).ok()?;
        let _replica = replica(cluster.vm1(), "web1")?;
        let client = lab.client("client")?;
        cluster.answer_in_turn(&client, 80, &["web1"])?;

        let vm3 = cluster.vm3().clone();
        let url = &cluster.urls(80)[2];
        let open = format!("exec 3<>/dev/tcp/{}/80; sleep 60", vm3.ip());
        let _open = client.spawn(&["bash", "-c", &open])?;
        for _ in 0..5 {
            client.output(&["curl", "-fsS", "-H", "Connection: close", url]).ok()?;
        }
        let count = |state: &str| -> Result<usize> {
            let sockets = vm3.output(&["ss", "-Htan", "state", state, "sport = :80"]).ok()?;
            Ok(sockets.lines().count())
        };
        within(CONVERGES, "one is open, others are in TIME_WAIT", || {
            let (open, waiting) = (count("established")?, count("time-wait")?);
            ensure!(open > 0 && waiting > 0, "{open} open, {waiting} in TIME_WAIT");
            Ok(())
        })?;

        cluster.daemons[2].restart()?;
        within(CONVERGES, "it answers after SIGKILL", || client.curl(url))?;
        cluster.daemons[2].terminate()?;
        cluster.daemons[2].start()?;
        within(CONVERGES, "it answers after SIGTERM", || client.curl(url))?;
        ensure!(count("time-wait")? > 0, "nothing was left in TIME_WAIT");
        up_to_date(&vm3)
    });
}
