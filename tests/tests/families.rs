//! IPv6 like IPv4, and UDP like TCP.

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Host, Lab, Replica, ReplicaSpec, scenario, shares, within};

fn network(cluster: &Cluster) -> Result<()> {
    let subnets = ["--subnet", "192.168.100.0/24", "--subnet", "fd00:100::/64"];
    cluster.vm1().meshctl(&[&["network", "create"], &subnets[..], &["blue"]].concat()).ok()?;
    Ok(())
}

fn replica(host: &Host, name: &str) -> Result<Replica> {
    Replica::start(host, ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 })
}

/// A network of both families with the service `web`, published on port 80, and a replica on each node.
fn web(lab: &Lab) -> Result<(Cluster, Vec<Replica>)> {
    let cluster = Cluster::three(lab)?;
    network(&cluster)?;
    let service = ["service", "create", "--name", "web", "--network", "blue", "--publish", "80:80"];
    cluster.vm1().meshctl(&service).ok()?;
    let places = [(cluster.vm1(), "web1"), (cluster.vm2(), "web2"), (cluster.vm3(), "web3")];
    let replicas = places.into_iter().map(|(host, name)| replica(host, name)).collect::<Result<Vec<_>>>()?;
    cluster.endpoints("web", "3/3")?;
    Ok((cluster, replicas))
}

const IN_TURN: [(&str, usize); 3] = [("web1", 4), ("web2", 4), ("web3", 4)];

#[test]
fn ipv6_inside() {
    scenario("ipv6 inside", |lab| {
        let (cluster, _replicas) = web(lab)?;
        let waiting = cluster.vm2().run(&["--network", "blue", "--name", "c"], &["sleep", "infinity"])?;
        let container = cluster.vm2().of_process("c", waiting.child()?);
        let (vip, replicas) = within(CONVERGES, "names have addresses of both families", || {
            let (vip, replicas) = (container.dig(&["web", "AAAA"])?, container.dig(&["tasks.web", "AAAA"])?);
            ensure!(vip.len() == 1 && replicas.len() == 3, "{vip:?}, {replicas:?}");
            Ok((vip[0].clone(), replicas))
        })?;
        ensure!(vip.starts_with("fd00:100::") && !replicas.contains(&vip));
        for address in replicas.iter().chain([&vip]) {
            container.output(&["ping", "-c1", "-W2", address]).ok()?;
        }
        let reverse = container.dig(&["-x", &vip])?;
        ensure!(reverse == ["web.blue.mesh.internal."], "{reverse:?}");
        within(CONVERGES, "the VIP leads to all", || {
            shares(&container.answers(&format!("http://[{vip}]/"), 12)?, &IN_TURN)
        })
    });
}

#[test]
fn ipv6_published_with_the_client_kept() {
    scenario("ipv6 published", |lab| {
        let (cluster, replicas) = web(lab)?;
        let client = lab.client("client")?;
        for daemon in &cluster.daemons {
            let url = format!("http://[{}]/", daemon.host().ip6());
            within(CONVERGES, &url, || shares(&client.answers(&url, 12)?, &IN_TURN))?;
        }
        for replica in &replicas {
            let logged = replica.nginx.requests()?;
            let others: Vec<_> =
                logged.iter().filter(|line| line.client != client.ip6().to_string()).collect();
            ensure!(!logged.is_empty() && others.is_empty(), "not from the client's own address: {others:?}");
        }
        Ok(())
    });
}

/// A DNS server as the replica: what asks and answers in datagrams.
#[test]
fn udp_published() {
    scenario("udp", |lab| {
        let (cluster, client) = (Cluster::three(lab)?, lab.client("client")?);
        network(&cluster)?;
        let service =
            ["service", "create", "--name", "names", "--network", "blue", "--publish", "5353:53/udp"];
        cluster.vm1().meshctl(&service).ok()?;
        let mut running = Vec::new();
        for (host, name, address) in
            [(cluster.vm1(), "dns1", "192.0.2.1"), (cluster.vm2(), "dns2", "192.0.2.2")]
        {
            let record = format!("--host-record=example.test,{address}");
            let server =
                ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"];
            let options = ["--user=root", "--pid-file=", "--bind-interfaces", &record];
            let place = ["--network", "blue", "--service", "names", "--name", name];
            running.push(host.run(&place, &[&server[..], &options[..]].concat())?);
        }
        cluster.endpoints("names", "2/2")?;
        let nodes = cluster.daemons.iter().map(|daemon| daemon.host());
        let addresses = nodes.flat_map(|host| [host.ip().to_string(), host.ip6().to_string()]);
        for server in addresses.map(|address| format!("@{address}")) {
            within(CONVERGES, "both answer on every node, over either family", || {
                let mut answers = Vec::new();
                // Each dig asks from another port, which makes another flow.
                for _ in 0..4 {
                    answers.extend(client.dig(&[&server, "-p", "5353", "example.test"])?);
                }
                answers.sort();
                ensure!(answers == ["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.2"], "{answers:?}");
                Ok(())
            })?;
        }
        Ok(())
    });
}
