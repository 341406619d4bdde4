//! Networks are apart, a host is no door into them, and strangers get nothing of a manager.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Lab, Namespace, Replica, ReplicaSpec, field, scenario, within};
use serde_json::Value;

/// The subnets of the network `blue`.
const BLUE: [&str; 2] = ["192.168.100.0/24", "fd00:100::/64"];

/// The service `web` on the network `blue`, published on port 80, with replicas on vm1 and vm2.
fn blue(lab: &Lab) -> Result<(Cluster, Vec<Replica>)> {
    let cluster = Cluster::three(lab)?;
    let vm1 = cluster.vm1();
    vm1.meshctl(&["network", "create", "--subnet", BLUE[0], "--subnet", BLUE[1], "blue"]).ok()?;
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
    let url =
        if address.contains(':') { format!("http://[{address}]/") } else { format!("http://{address}/") };
    let curl = from.output(&["curl", "-sS", "--max-time", "1", &url]);
    ensure!(matches!(curl.code, Some(7 | 28)), "{} reaches {address} by HTTP: {curl:?}", from.name());
    Ok(())
}

/// All addresses of an endpoint, and the VIPs of a service.
fn addresses(cluster: &Cluster, endpoints: &[&str], service: &str) -> Result<Vec<String>> {
    let service = cluster.list(&["service", "inspect", service])?;
    let mut lists = vec![service[0]["networks"][0]["addresses"].clone()];
    for endpoint in endpoints {
        lists.push(cluster.endpoint(endpoint)?["addresses"].clone());
    }
    let all = lists.iter().filter_map(Value::as_array).flatten().filter_map(Value::as_str);
    let all: Vec<String> = all.map(str::to_owned).collect();
    ensure!(all.len() == 2 * lists.len(), "not of both families each: {all:?}");
    Ok(all)
}

#[test]
fn another_network_neither_resolves_nor_reaches() {
    scenario("other network", |lab| {
        let (cluster, _replicas) = blue(lab)?;
        let subnets = ["--subnet", "192.168.200.0/24", "--subnet", "fd00:200::/64"];
        cluster.vm1().meshctl(&[&["network", "create"], &subnets[..], &["red"]].concat()).ok()?;
        let addresses = addresses(&cluster, &["web1", "web2"], "web")?;
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
                for kind in ["A", "AAAA"] {
                    let found = red.output(&["dig", "+short", "+tries=1", "+time=1", query, kind]).stdout;
                    let of_blue = found.contains("192.168.100.") || found.contains("fd00:100::");
                    ensure!(!of_blue, "{query} resolves to {found}");
                }
            }
            // Nor do the nameservers of the other network answer.
            for gateway in ["@192.168.100.1", "@fd00:100::1"] {
                let asked = red.output(&["dig", "+tries=1", "+time=1", gateway, "web"]);
                ensure!(asked.code == Some(9), "the gateway of blue answers red: {asked:?}");
            }
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
        let (web1, mac) = (cluster.endpoint("web1")?, field(&cluster.endpoint("web1")?, "mac"));
        let (node, vni) = (cluster.vm1().ip(), &network[0]["vni"]);
        let device = format!(
            "ip link add vx type vxlan id {vni} remote {node} dstport 4789 && ip link set vx up && \
             ip address add 192.168.100.200/24 dev vx && ip address add fd00:100::200/64 dev vx nodad"
        );
        neighbour.shell(&device).ok()?;
        let container = replicas[0].namespace()?;
        for (address, echos) in web1["addresses"].as_array().into_iter().flatten().zip([
            "awk '/^Icmp:/ && ++n == 2 { print $10 }' /proc/net/snmp",
            "awk '/^Icmp6InEchos / { print $2 }' /proc/net/snmp6",
        ]) {
            let address = address.as_str().context("an address")?;
            neighbour.output(&["ip", "neigh", "replace", address, "lladdr", &mac, "dev", "vx"]).ok()?;
            let before = container.shell(echos).ok()?;
            neighbour.output(&["ping", "-c3", "-i0.2", "-W1", address]);
            ensure!(container.shell(echos).ok()? == before, "frames of a stranger are taken: {address}");
            // The counter is the right one.
            cluster
                .vm1()
                .shell(&format!(
                    "nsenter --net=$(ls -d {}/netns/*) ping -c1 -W1 {address}",
                    cluster.vm1().run_dir()
                ))
                .ok()?;
            ensure!(container.shell(echos).ok()? != before, "pings are not counted: {address}");
        }
        neighbour.output(&["ip", "link", "del", "vx"]).ok()?;
        let addresses = addresses(&cluster, &["web1", "web2"], "web")?;
        for host in [cluster.vm1(), cluster.vm2(), cluster.vm3()] {
            for (subnet, via) in BLUE.into_iter().zip([host.ip().to_string(), host.ip6().to_string()]) {
                neighbour.output(&["ip", "route", "replace", subnet, "via", &via]).ok()?;
            }
            for address in &addresses {
                unreachable(&neighbour, address)?;
            }
            // Forwarding is on for ingress; that makes the host no router for anything else.
            for (beyond, via) in
                [("198.51.100.1", host.ip().to_string()), ("2001:db8::1", host.ip6().to_string())]
            {
                neighbour.output(&["ip", "route", "replace", beyond, "via", &via]).ok()?;
                let ping = neighbour.output(&["ping", "-c1", "-W1", beyond]);
                ensure!(ping.code != Some(0), "{} is a way to {beyond}", host.name());
            }
        }
        for subnet in BLUE {
            neighbour.output(&["ip", "route", "del", subnet]).ok()?;
        }
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
