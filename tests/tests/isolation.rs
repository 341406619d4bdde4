//! Networks are apart, a host is no door into them, and strangers get nothing of a manager.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Lab, Namespace, Replica, ReplicaSpec, field, scenario, within};

/// The service `web` on the network `blue`, published on port 80, with replicas on vm1 and vm2.
fn blue(lab: &Lab) -> Result<(Cluster, Vec<Replica>)> {
    let cluster = Cluster::three(lab)?;
    let vm1 = cluster.vm1();
    vm1.meshctl(&["network", "create", "--subnet", "192.168.100.0/24", "blue"]).ok()?;
    vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue", "--publish", "8080:80"]).ok()?;
    let spec = |name| ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 };
    let replicas = vec![Replica::start(vm1, spec("web1"))?, Replica::start(cluster.vm2(), spec("web2"))?];
    cluster.endpoints("web", "2/2")?;
    Ok((cluster, replicas))
}

/// Neither answers to ping nor accepts a connection.
fn unreachable(from: &Namespace, address: &str) -> Result<()> {
    let ping = from.output(&["ping", "-c1", "-W1", address]);
    ensure!(ping.code != Some(0), "{} reaches {address} by ping", from.name());
    let curl = from.output(&["curl", "-sS", "--max-time", "1", &format!("http://{address}/")]);
    ensure!(matches!(curl.code, Some(7 | 28)), "{} reaches {address} by HTTP: {curl:?}", from.name());
    Ok(())
}

#[test]
fn another_network_neither_resolves_nor_reaches() {
    scenario("other network", |lab| {
        let (cluster, _replicas) = blue(lab)?;
        cluster.vm1().meshctl(&["network", "create", "--subnet", "192.168.200.0/24", "red"]).ok()?;
        let inside = ["web1", "web2"].map(|name| cluster.address(name));
        let mut addresses = inside.into_iter().collect::<Result<Vec<_>>>()?;
        addresses.push(cluster.vip("web")?);
        // On nodes that hold a replica and on one that does not.
        for host in [cluster.vm1(), cluster.vm3()] {
            let name = format!("red-{}", host.name());
            let waiting = host.run(&["--network", "red", "--name", &name], &["sleep", "infinity"])?;
            let red = host.of_process(&name, waiting.child()?);
            within(CONVERGES, "the own names resolve", || {
                ensure!(red.dig(&[&name])?.len() == 1);
                Ok(())
            })?;
            for query in ["web", "tasks.web", "web1", "web.blue", "web.blue.mesh.internal"] {
                let found = red.output(&["dig", "+short", "+tries=1", "+time=1", query]).stdout;
                ensure!(!found.contains("192.168.100."), "{query} resolves to {found}");
            }
            // Nor does the nameserver of the other network answer.
            let asked = red.output(&["dig", "+tries=1", "+time=1", "@192.168.100.1", "web"]);
            ensure!(asked.code == Some(9), "the gateway of blue answers red: {asked:?}");
            for address in &addresses {
                unreachable(&red, address)?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_neighbour_on_the_lan_gets_in_by_published_ports_only() {
    scenario("no door", |lab| {
        let (cluster, replicas) = blue(lab)?;
        let neighbour = lab.client("neighbour")?;
        cluster.answer_in_turn(&neighbour, 8080, &["web1", "web2"])?;
        // It speaks VXLAN, and knows all that a node knows.
        let network = cluster.list(&["network", "inspect", "blue"])?;
        let (web1, mac) = (cluster.address("web1")?, field(&cluster.endpoint("web1")?, "mac"));
        let (node, vni) = (cluster.vm1().ip(), &network[0]["vni"]);
        let device = format!(
            "ip link add vx type vxlan id {vni} remote {node} dstport 4789 && ip address add 192.168.100.200/24 dev vx && \
             ip link set vx up && ip neigh replace {web1} lladdr {mac} dev vx"
        );
        neighbour.shell(&device).ok()?;
        let (container, echos) =
            (replicas[0].namespace()?, "awk '/^Icmp:/ && ++n == 2 { print $10 }' /proc/net/snmp");
        let before = container.shell(echos).ok()?;
        neighbour.output(&["ping", "-c3", "-i0.2", "-W1", &web1]);
        ensure!(container.shell(echos).ok()? == before, "frames of a stranger are taken");
        neighbour.output(&["ip", "link", "del", "vx"]).ok()?;
        for host in [cluster.vm1(), cluster.vm2(), cluster.vm3()] {
            let via = host.ip().to_string();
            neighbour.output(&["ip", "route", "replace", "192.168.100.0/24", "via", &via]).ok()?;
            for address in [cluster.address("web1")?, cluster.address("web2")?, cluster.vip("web")?] {
                unreachable(&neighbour, &address)?;
            }
            // Forwarding is on for ingress; that makes the host no router for anything else.
            neighbour.output(&["ip", "route", "replace", "198.51.100.1", "via", &via]).ok()?;
            let ping = neighbour.output(&["ping", "-c1", "-W1", "198.51.100.1"]);
            ensure!(ping.code != Some(0));
        }
        let lan = neighbour.output(&["ip", "route", "del", "192.168.100.0/24"]);
        lan.ok()?;
        within(Duration::from_secs(5), "published ports are still answered", || {
            cluster.answer_in_turn(&neighbour, 8080, &["web1", "web2"])
        })
    });
}

#[test]
fn a_stranger_gets_nothing_of_a_manager_and_cannot_stay() {
    scenario("strangers", |lab| {
        let daemon = lab.host("vm1")?.meshd()?;
        let manager = daemon.host().ip().to_string();
        daemon.host().meshctl(&["cluster", "init", "--advertise-addr", &manager]).ok()?;
        let stranger = lab.client("stranger")?;
        let ask = |options: &[&str], path: &str| {
            let url = format!("https://{manager}:7443{path}");
            let mut line = vec!["curl", "-sk", "--http2-prior-knowledge", "--max-time", "60", &url];
            line.extend(["--header", "content-type: application/json"]);
            line.extend(options);
            stranger.output(&line)
        };
        for path in ["/v1/agent/applied", "/v1/agent/health", "/v1/nothing"] {
            let refused = ask(&["--write-out", "%{http_code}"], path).ok()?;
            ensure!(refused.ends_with("403"), "{path}: {refused}");
        }
        // A request that takes its time would hold a connection for minutes.
        let began = Instant::now();
        let cut = ask(&["--data", &"x".repeat(16_000), "--limit-rate", "100"], "/v1/join");
        ensure!(cut.code != Some(0) && began.elapsed() < Duration::from_secs(30), "{cut:?}");
        Ok(())
    });
}
