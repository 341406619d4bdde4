//! What went through published ports: of all nodes as `service inspect` tells it, of one as its metrics do.

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    CONVERGES, Cluster, Echo, Host, Lab, Replica, ReplicaSpec, comes_back, field, scenario, within,
};
use serde_json::Value;

/// What is told of the port of `web` of one node: by endpoint, connections, packets and bytes sent, packets and bytes received.
fn told(asked: &Host, node: &Host, port: u64) -> Result<Vec<(String, [u64; 5])>> {
    let view = asked.meshctl(&["-o", "json", "service", "inspect", "web"]).json()?;
    let lines = view[0]["traffic"].as_array().cloned().unwrap_or_default();
    let of_port =
        lines.into_iter().filter(|line| line["published"][0] == port && line["node"] == node.name());
    of_port
        .map(|line| {
            let number = |value: &Value| value.as_u64().context("no number");
            let counts = [
                number(&line["connections"])?,
                number(&line["sent"]["packets"])?,
                number(&line["sent"]["bytes"])?,
                number(&line["received"]["packets"])?,
                number(&line["received"]["bytes"])?,
            ];
            Ok((field(&line, "endpoint"), counts))
        })
        .collect()
}

/// The value of a metric whose labels contain all of these.
fn metric(metrics: &str, name: &str, labels: &[&str]) -> Result<u64> {
    let mut lines = metrics.lines().filter(|line| line.starts_with(&format!("{name}{{")));
    let line = lines.find(|line| labels.iter().all(|label| line.contains(label)));
    let line = line.with_context(|| format!("no {name} with {labels:?} in\n{metrics}"))?;
    Ok(line.rsplit(' ').next().context("no value")?.parse()?)
}

#[test]
fn what_goes_through_a_port_is_counted() {
    scenario("traffic", |lab: &Lab| {
        let host = |name| -> Result<_> {
            let host = lab.host(name)?;
            host.meshd_under(&["sh", "-c", r#"exec "$@" --metrics-listen 127.0.0.1:9469"#, "sh"])
        };
        let cluster = Cluster::managers_of(vec![host("vm1")?, host("vm2")?, host("vm3")?])?;
        let (vm1, vm3) = (cluster.vm1(), cluster.vm3());
        let subnets = ["--subnet", "192.168.100.0/24", "--subnet", "fd00:100::/64"];
        vm1.meshctl(&[&["network", "create"], &subnets[..], &["blue"]].concat()).ok()?;
        let publish = ["--publish", "8080:80", "--publish", "7777:7/udp"];
        let health = ["--health-http", "/health", "--health-interval", "100ms"];
        let create = ["service", "create", "--name", "web", "--network", "blue"];
        vm1.meshctl(&[&create[..], &publish, &health].concat()).ok()?;
        let spec = |name| ReplicaSpec { name, network: Some("blue"), service: Some("web"), port: 80 };
        let web1 = Replica::start(vm1, spec("web1"))?;
        let web2 = Replica::start(cluster.vm2(), spec("web2"))?;
        let _echoes = [Echo::datagrams(&web1.namespace()?, 7)?, Echo::datagrams(&web2.namespace()?, 7)?];
        cluster.endpoints("web", "2/2")?;
        let client = lab.client("client")?;
        let ask = |count| -> Result<()> {
            for url in [format!("http://{}:8080/", vm3.ip()), format!("http://[{}]:8080/", vm3.ip6())] {
                client.answers(&url, count)?;
            }
            Ok(())
        };
        ask(6)?;
        // The host's own, too.
        vm3.answers(&format!("http://{}:8080/", vm3.ip()), 2)?;
        let counts = told(vm3, vm3, 8080)?;
        for (endpoint, [connections, sent, sent_bytes, received, received_bytes]) in &counts {
            ensure!(*connections == 7, "{endpoint}: {counts:?}");
            // A connection has five packets at least each way: to open, to ask and to close it.
            ensure!(*sent >= 7 * 4 && *received >= 7 * 3, "{counts:?}");
            ensure!(*sent_bytes > 7 * 200 && *received_bytes > 7 * 200, "{counts:?}");
        }
        ensure!(counts.iter().map(|(endpoint, _)| endpoint.as_str()).eq(["web1", "web2"]), "{counts:?}");
        // Nobody asked this one, and each tells of all.
        let of_vm1 = told(vm3, vm1, 8080)?;
        ensure!(of_vm1.is_empty(), "{of_vm1:?}");
        ensure!(told(vm1, vm3, 8080)? == counts, "{:?}", told(vm1, vm3, 8080)?);

        // A flow of datagrams is one; a refused check costs no count.
        within(CONVERGES, "a datagram comes back", || {
            ensure!(comes_back(&client, (vm3.ip(), 7777).into())?);
            Ok(())
        })?;
        let flows: u64 = told(vm3, vm3, 7777)?.iter().map(|(_, counts)| counts[0]).sum();
        ensure!(flows >= 1, "{:?}", told(vm3, vm3, 7777)?);
        web2.nginx.set_healthy(false)?;
        cluster.endpoints("web", "1/2")?;
        ensure!(told(vm3, vm3, 8080)? == counts, "{:?}", told(vm3, vm3, 8080)?);
        ask(3)?;
        let after = told(vm3, vm3, 8080)?;
        ensure!((after[0].1[0], after[1].1[0]) == (13, 7), "{after:?}");

        // What a process relays is told a little later.
        for url in ["http://127.0.0.1:8080/", "http://[::1]:8080/"] {
            vm1.answers(url, 2)?;
        }
        within(CONVERGES, "what is relayed is counted", || {
            let relayed = told(vm3, vm1, 8080)?;
            ensure!(relayed.len() == 1 && relayed[0].0 == "web1", "the other is unhealthy: {relayed:?}");
            let [connections, _, sent, _, received] = relayed[0].1;
            ensure!(connections == 4 && sent > 200 && received > 200, "{relayed:?}");
            Ok(())
        })?;

        let text = vm3.meshctl(&["service", "inspect", "web"]).ok()?;
        ensure!(text.contains("8080/tcp on vm3 to web1: 13 connections, sent "), "{text}");
        ensure!(text.contains("8080/tcp on vm1 to web1: 4 connections, sent "), "{text}");
        ensure!(!text.contains(" on vm2 to "), "nothing to tell of: {text}");
        cluster.daemons[1].pause()?;
        let text = vm1.meshctl(&["service", "inspect", "web"]).ok()?;
        let not_told = text.lines().any(|line| line.starts_with("Not told by:") && line.ends_with(" vm2"));
        ensure!(not_told && text.contains("8080/tcp on vm3 to web1: 13 connections, sent "), "{text}");
        cluster.daemons[1].resume()?;
        for metrics in [vm3.meshctl(&["metrics"]).ok()?, vm3.curl("http://127.0.0.1:9469/metrics")?] {
            let labels = ["node=\"vm3\"", "service=\"web\"", "published=\"8080\"", "endpoint=\"web1\""];
            ensure!(metric(&metrics, "mesh_port_connections_total", &labels)? == 13, "{metrics}");
            let received = [&labels[..], &["direction=\"received\""]].concat();
            ensure!(metric(&metrics, "mesh_port_bytes_total", &received)? == after[0].1[4], "{metrics}");
            ensure!(metrics.lines().any(|line| line == "mesh_ports_degraded 0"), "{metrics}");
        }
        // Not from outside.
        let outside = client.output(&["curl", "-sS", &format!("http://{}:9469/metrics", vm3.ip())]);
        ensure!(outside.code == Some(7), "{outside:?}");
        Ok(())
    });
}
