//! A published port that moves from one service to another and back, to another port of its replicas, and from the kernel to the
//! proxy and back, under load.

use anyhow::{Result, ensure};
use mesh_tests::{
    Backend, CONVERGES, Cluster, Echo, Flows, Namespace, Nginx, Replica, ReplicaSpec, Wrks, scenario, within,
    wrk,
};

/// How often it moves there and back.
const TIMES: usize = 10;

fn leads_to(client: &Namespace, cluster: &Cluster, page: &str) -> Result<()> {
    // The command has returned: every node does as it says.
    for url in cluster.urls(80) {
        let answer = client.curl(&url)?;
        ensure!(answer.trim() == page, "{url} is {answer}'s");
    }
    Ok(())
}

#[test]
fn a_port_moves_under_load_and_nobody_notices() {
    scenario("moves", |lab| {
        let (cluster, client) = (Cluster::three(lab)?, lab.client("client")?);
        let vm1 = cluster.vm1();
        Backend::service(&cluster)?;
        let web = Backend::start(vm1, "web1")?;
        let second = Nginx::new(vm1, "second", 81, "web1 at 81")?;
        let inside = web.replica.namespace()?;
        let _second = (second.start(&inside)?, Echo::datagrams(&inside, 8)?);
        vm1.meshctl(&["service", "create", "--name", "next", "--network", "blue"]).ok()?;
        let spec = ReplicaSpec { name: "next1", network: Some("blue"), service: Some("next"), port: 80 };
        let next = Replica::start(cluster.vm2(), spec)?;
        let _echo = Echo::datagrams(&next.namespace()?, 7)?;
        cluster.endpoints("web", "1/1")?;
        cluster.endpoints("next", "1/1")?;
        within(CONVERGES, "web is published", || leads_to(&client, &cluster, "web1"))?;

        let take = ["service", "update", "--publish-add", "80:80", "--publish-add", "7:7/udp", "--take"];
        // Its check would be left without a port.
        vm1.meshctl(&[&take[..], &["next"]].concat()).refused("would have no port for its health check")?;
        vm1.meshctl(&["service", "update", "--health-port", "80", "web"]).ok()?;
        let hosts = [vm1, cluster.vm2(), cluster.vm3()];
        let [_, datagrams] = Backend::places(&hosts);
        let (wrks, flows) = (Wrks::start(&client, &cluster.urls(80))?, Flows::start(&client, &datagrams)?);
        for _ in 0..TIMES {
            for (service, page) in [("next", "next1"), ("web", "web1")] {
                vm1.meshctl(&[&take[..], &[service]].concat()).ok()?;
                leads_to(&client, &cluster, page)?;
            }
        }
        let listed = vm1.meshctl(&["service", "ls"]).ok()?;
        ensure!(listed.matches("80->80/tcp").count() == 1, "{listed}");
        let change = ["service", "update", "--publish-rm", "80", "--publish-rm", "7/udp"];
        for _ in 0..TIMES {
            for (tcp, udp, page) in [("80:81", "7:8/udp", "web1 at 81"), ("80:80", "7:7/udp", "web1")] {
                let to = ["--publish-add", tcp, "--publish-add", udp, "web"];
                vm1.meshctl(&[&change[..], &to].concat()).ok()?;
                leads_to(&client, &cluster, page)?;
            }
        }
        let http = "published=80,target=80,protocol=http";
        for _ in 0..TIMES {
            for port in [http, "80:80"] {
                let change = ["service", "update", "--publish-rm", "80", "--publish-add", port, "web"];
                vm1.meshctl(&change).ok()?;
                leads_to(&client, &cluster, "web1")?;
                for host in hosts {
                    let status = host.meshctl(&["status"]).stdout;
                    ensure!(!status.contains("in use"), "it is in its own way: {status}");
                }
            }
        }
        flows.go_on(100)?;
        wrks.none_hangs(wrk::PATIENCE)?;
        let (wrks, flows) = (wrks.stop()?, flows.stop()?);
        println!("wrk {wrks}; {flows}");
        wrks.none_failed()?;
        flows.none_failed()
    });
}
