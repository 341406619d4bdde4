//! Health checks: who fails them leaves DNS, VIP and ingress, and returns.

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Nginx, Replica, ReplicaSpec, scenario, shares, within};

const CHECK: [&str; 8] =
    ["--health-interval", "200ms", "--health-timeout", "200ms", "--health-rise", "2", "--health-fall", "2"];

fn service(cluster: &Cluster, check: &[&str]) -> Result<()> {
    let vm1 = cluster.vm1();
    vm1.meshctl(&["network", "create", "--subnet", "192.168.100.0/24", "blue"]).ok()?;
    let service = ["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"];
    vm1.meshctl(&[&service[..], check, &CHECK[..]].concat()).ok()?;
    Ok(())
}

const fn spec(name: &str) -> ReplicaSpec<'_> {
    ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 }
}

#[test]
fn an_unhealthy_replica_leaves_and_returns() {
    scenario("http check", |lab| {
        let (cluster, client) = (Cluster::three(lab)?, lab.client("client")?);
        service(&cluster, &["--health-http", "/health"])?;
        let web1 = Replica::start(cluster.vm1(), spec("web1"))?;
        let web2 = Replica::start(cluster.vm2(), spec("web2"))?;
        let waiting = cluster.vm3().run(&["--network", "blue", "--name", "c"], &["sleep", "infinity"])?;
        let container = cluster.vm3().of_process("c", waiting.child()?);
        let offered = |replicas: &[&Replica]| -> Result<()> {
            let names: Vec<&str> = replicas.iter().map(|replica| replica.name()).collect();
            cluster.endpoints("web", &format!("{}/2", names.len()))?;
            cluster.answer_in_turn(&client, 80, &names)?;
            within(CONVERGES, &format!("inside, {names:?} are offered"), || {
                let expected: Vec<_> = names.iter().map(|name| (*name, 3)).collect();
                shares(&container.answers("http://web/", 3 * names.len())?, &expected)?;
                let mut addresses =
                    names.iter().map(|name| cluster.address(name)).collect::<Result<Vec<_>>>()?;
                addresses.sort();
                let listed = container.dig(&["tasks.web"])?;
                ensure!(listed == addresses, "tasks.web is {listed:?}, expected {addresses:?}");
                Ok(())
            })
        };
        offered(&[&web1, &web2])?;
        web2.nginx.set_healthy(false)?;
        offered(&[&web1])?;
        ensure!(cluster.endpoint("web2")?["health"] == "unhealthy");
        web2.nginx.set_healthy(true)?;
        offered(&[&web1, &web2])?;
        // Health comes from the node beside the replica: also for the one on the manager.
        web1.nginx.set_healthy(false)?;
        offered(&[&web2])
    });
}

#[test]
fn a_replica_is_out_until_its_first_success() {
    scenario("tcp check", |lab| {
        let (cluster, client) = (Cluster::three(lab)?, lab.client("client")?);
        service(&cluster, &["--health-tcp"])?;
        let options = ["--network", "blue", "--service", "web", "--name", "web1"];
        let waiting = cluster.vm2().run(&options, &["sleep", "infinity"])?;
        let inside = cluster.vm2().of_process("web1", waiting.child()?);
        cluster.endpoints("web", "0/1")?;
        // Nobody is healthy: refused at once, not left hanging.
        let started = std::time::Instant::now();
        let asked = client.output(&["curl", "-sS", "--max-time", "5", &cluster.urls(80)[0]]);
        ensure!(
            asked.code == Some(7) && started.elapsed().as_secs() < 2,
            "{asked:?} after {:?}",
            started.elapsed()
        );
        let nginx = Nginx::new(cluster.vm2(), "web1", 80, "web1")?;
        let mut running = nginx.start(&inside)?;
        cluster.endpoints("web", "1/1")?;
        cluster.answer_in_turn(&client, 80, &["web1"])?;
        running.kill()?;
        cluster.endpoints("web", "0/1")
    });
}
