//! What the kernel can't lead to replicas: clients of the host's loopback, those of another family, and PROXY headers.

use anyhow::{Result, ensure};
use mesh_tests::{
    CONVERGES, Cluster, Echo, Host, Lab, Namespace, Nginx, Replica, ReplicaSpec, comes_back, scenario,
    shares, within,
};
use std::net::SocketAddr;

const IN_TURN: [(&str, usize); 2] = [("web1", 4), ("web2", 4)];

fn network(cluster: &Cluster, subnets: &[&str]) -> Result<()> {
    let subnets: Vec<&str> = subnets.iter().flat_map(|subnet| ["--subnet", subnet]).collect();
    cluster.vm1().meshctl(&[&["network", "create"], &subnets[..], &["blue"]].concat()).ok()?;
    Ok(())
}

fn service(cluster: &Cluster, name: &str, options: &[&str]) -> Result<()> {
    let create = ["service", "create", "--name", name, "--network", "blue"];
    cluster.vm1().meshctl(&[&create[..], options].concat()).ok()?;
    Ok(())
}

/// nginx on two of three hosts.
fn web(cluster: &Cluster) -> Result<Vec<Replica>> {
    let spec = |name| ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 };
    let replicas =
        vec![Replica::start(cluster.vm1(), spec("web1"))?, Replica::start(cluster.vm2(), spec("web2"))?];
    cluster.endpoints("web", "2/2")?;
    Ok(replicas)
}

/// A container that sends datagrams back, on vm2.
fn echo(lab: &Lab, cluster: &Cluster) -> Result<()> {
    let container = lab.container("echo1")?;
    Echo::datagrams(&container, 7)?;
    let connect = ["network", "connect", "--name", "echo1", "--service", "echo", "blue"];
    cluster.vm2().meshctl(&[&connect[..], &[&container.target()]].concat()).ok()?;
    cluster.endpoints("echo", "1/1")
}

fn both_answer_in_turn(client: &Namespace, url: &str) -> Result<()> {
    within(CONVERGES, url, || shares(&client.answers(url, 8)?, &IN_TURN))
}

fn datagrams_come_back(client: &Namespace, to: &str) -> Result<()> {
    let to: SocketAddr = to.parse()?;
    within(CONVERGES, &format!("datagrams to {to} come back"), || {
        ensure!(comes_back(client, to)?);
        Ok(())
    })
}

/// Each kind of a host's own clients, and a daemon that is away meanwhile.
#[test]
fn the_loopback_of_every_host_reaches_every_replica() {
    scenario("loopback", |lab| {
        let mut cluster = Cluster::three(lab)?;
        network(&cluster, &["192.168.100.0/24", "fd00:100::/64"])?;
        service(&cluster, "web", &["--publish", "8080:80", "--publish", "127.0.0.1:8081:80"])?;
        service(&cluster, "echo", &["--publish", "7777:7/udp"])?;
        // 7: refused, as there is no replica yet.
        let refused = |host: &Host, url: &str| {
            within(CONVERGES, &format!("{url} is refused"), || {
                let asked = host.output(&["curl", "-sS", "--max-time", "5", url]);
                ensure!(asked.code == Some(7), "{asked:?}");
                Ok(())
            })
        };
        for address in ["127.0.0.1:8080", "[::1]:8080", "127.0.0.1:8081"] {
            refused(cluster.vm3(), &format!("http://{address}/"))?;
        }
        let replicas = web(&cluster)?;
        echo(lab, &cluster)?;
        let hosts = [cluster.vm1().clone(), cluster.vm3().clone()];
        let works = || -> Result<()> {
            for host in &hosts {
                for address in
                    ["127.0.0.1:8080", "[::1]:8080", "127.0.0.1:8081", &format!("{}:8080", host.ip())]
                {
                    both_answer_in_turn(host, &format!("http://{address}/"))?;
                }
                for to in ["127.0.0.1:7777", "[::1]:7777", &format!("{}:7777", host.ip())] {
                    datagrams_come_back(host, to)?;
                }
            }
            Ok(())
        };
        works()?;
        // Bound to the loopback, it is nobody else's.
        let client = lab.client("client")?;
        refused(&hosts[1], &format!("http://{}:8081/", hosts[1].ip()))?;
        let asked = client.output(&["curl", "-sS", &format!("http://{}:8081/", hosts[1].ip())]);
        ensure!(asked.code == Some(7), "{asked:?}");

        cluster.daemons[2].kill()?;
        works()?;
        cluster.daemons[2].start()?;
        works()?;
        drop(replicas);
        for address in ["127.0.0.1:8080", "[::1]:8080"] {
            refused(&hosts[1], &format!("http://{address}/"))?;
        }
        Ok(())
    });
}

/// A network of one family serves clients of the other, though not with their addresses.
#[test]
fn clients_of_the_family_that_a_network_lacks_are_served() {
    scenario("other family", |lab| {
        let cluster = Cluster::three(lab)?;
        network(&cluster, &["192.168.100.0/24"])?;
        service(&cluster, "web", &["--publish", "8080:80"])?;
        service(&cluster, "echo", &["--publish", "7777:7/udp"])?;
        let _replicas = web(&cluster)?;
        echo(lab, &cluster)?;
        let client = lab.client("client")?;
        for daemon in &cluster.daemons {
            let address = daemon.host().ip6();
            both_answer_in_turn(&client, &format!("http://[{address}]:8080/"))?;
            datagrams_come_back(&client, &format!("[{address}]:7777"))?;
        }
        Ok(())
    });
}

/// Checks of a port that expects a header send one too, or no replica would ever be healthy.
#[test]
fn replicas_are_told_their_clients_by_the_proxy_protocol() {
    scenario("proxy protocol", |lab| {
        let cluster = Cluster::three(lab)?;
        network(&cluster, &["192.168.100.0/24", "fd00:100::/64"])?;
        let client = lab.client("client")?;
        for (number, version) in ["v1", "v2"].into_iter().enumerate() {
            let (name, port) = (format!("web{version}"), 8080 + number);
            let publish = format!("published={port},target=80,proxy-protocol={version}");
            let health = ["--health-http", "/health", "--health-interval", "200ms"];
            service(&cluster, &name, &[&["--publish", &publish], &health[..]].concat())?;
            let nginx = Nginx::behind_proxy_protocol(cluster.vm2(), &name, 80)?;
            let command = nginx.command();
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            let place = ["--network", "blue", "--service", &name, "--name", &name];
            let _running = cluster.vm2().run(&place, &command)?;
            cluster.endpoints(&name, "1/1")?;
            let mut expected = Vec::new();
            for host in [cluster.vm2(), cluster.vm3()] {
                let from_afar = [
                    (host.ip().to_string(), client.ip().to_string()),
                    (format!("[{}]", host.ip6()), client.ip6().to_string()),
                ];
                for (address, from) in from_afar {
                    let url = format!("http://{address}:{port}/");
                    within(CONVERGES, &url, || client.curl(&url).map(drop))?;
                    expected.push(from);
                }
                for (address, from) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")] {
                    host.curl(&format!("http://{address}:{port}/"))?;
                    expected.push(from.to_owned());
                }
            }
            let told: Vec<String> = nginx.requests()?.into_iter().map(|line| line.client).collect();
            ensure!(told == expected, "{version}: {told:?}");
        }
        Ok(())
    });
}
