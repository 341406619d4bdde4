//! A port published with `protocol=http`: balanced in the proxy.

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Replica, ReplicaSpec, scenario, within};

const fn spec(name: &str) -> ReplicaSpec<'_> {
    ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 8000 }
}

fn service(cluster: &Cluster) -> Result<()> {
    let vm1 = cluster.vm1();
    vm1.meshctl(&["network", "create", "--subnet", "192.168.100.0/24", "blue"]).ok()?;
    let service = ["service", "create", "--name", "web", "--network", "blue"];
    let published = ["--publish", "published=80,target=8000,protocol=http"];
    let check = ["--health-http", "/health", "--health-interval", "200ms", "--health-fall", "2"];
    vm1.meshctl(&[&service[..], &published[..], &check[..]].concat()).ok()?;
    Ok(())
}

#[test]
fn requests_go_round_robin_with_the_client_told() {
    scenario("http", |lab| {
        let (cluster, client) = (Cluster::three(lab)?, lab.client("client")?);
        service(&cluster)?;
        let web1 = Replica::start(cluster.vm1(), spec("web1"))?;
        let web2 = Replica::start(cluster.vm2(), spec("web2"))?;
        cluster.answer_in_turn(&client, 80, &["web1", "web2"])?;
        for replica in [&web1, &web2] {
            let logged = replica.nginx.requests()?;
            let client = client.ip().to_string();
            let others: Vec<_> = logged.iter().filter(|line| line.forwarded_for != client).collect();
            ensure!(!logged.is_empty() && others.is_empty(), "X-Forwarded-For is not {client}: {others:?}");
        }

        // A network of IPv4 alone is no reason to turn IPv6 clients away.
        for daemon in &cluster.daemons {
            client.curl(&format!("http://[{}]/", daemon.host().ip6()))?;
        }
        let logged = [web1.nginx.requests()?, web2.nginx.requests()?].concat();
        let count = logged.iter().filter(|line| line.forwarded_for == client.ip6().to_string()).count();
        ensure!(count == 3, "{count} of 3 requests with the client's IPv6 address in {logged:?}");

        web2.nginx.set_healthy(false)?;
        cluster.endpoints("web", "1/2")?;
        cluster.answer_in_turn(&client, 80, &["web1"])?;
        web2.nginx.set_healthy(true)?;
        cluster.endpoints("web", "2/2")?;
        cluster.answer_in_turn(&client, 80, &["web1", "web2"])
    });
}

#[test]
fn requests_on_one_connection_are_balanced_too() {
    scenario("http keep-alive", |lab| {
        let (cluster, client) = (Cluster::three(lab)?, lab.client("client")?);
        service(&cluster)?;
        let _web1 = Replica::start(cluster.vm1(), spec("web1"))?;
        let _web2 = Replica::start(cluster.vm2(), spec("web2"))?;
        cluster.answer_in_turn(&client, 80, &["web1", "web2"])?;
        let url = &cluster.urls(80)[2];
        // curl keeps its connection for the URLs of one command line; %{num_connects} counts new ones.
        let line = ["curl", "-fsS", "-w", "%{stderr}%{num_connects}", url, url, url, url];
        let asked = client.output(&line);
        let said = asked.ok()?;
        ensure!(asked.stderr == "1000", "one connection: {asked:?}");
        let count = |page: &str| said.lines().filter(|line| *line == page).count();
        ensure!(count("web1") == 2 && count("web2") == 2, "{said}");
        Ok(())
    });
}

#[test]
fn without_a_healthy_replica_the_answer_is_503() {
    scenario("http 503", |lab| {
        let (cluster, client) = (Cluster::three(lab)?, lab.client("client")?);
        service(&cluster)?;
        for url in cluster.urls(80) {
            within(CONVERGES, "503", || {
                let line = ["curl", "-sS", "--max-time", "2", "-o", "/dev/null", "-w", "%{http_code}", &url];
                ensure!(client.output(&line).ok()? == "503");
                Ok(())
            })?;
        }
        Ok(())
    });
}
