//! Options of networks, and an underlay of IPv6.

use anyhow::{Result, ensure};
use mesh_tests::{
    CONVERGES, Cluster, Container, Host, Lab, Ping, Replica, ReplicaSpec, scenario, shares, within,
};

fn connect(lab: &Lab, host: &Host, network: &str, name: &str) -> Result<Container> {
    let container = lab.container(name)?;
    host.meshctl(&["network", "connect", "--name", name, network, &container.target()]).ok()?;
    Ok(container)
}

fn reaches(from: &Container, to: &str) -> Result<()> {
    from.output(&["ping", "-n", "-c1", "-W2", to]).ok().map(drop)
}

fn out_of_reach(from: &Container, to: &str) -> Result<()> {
    let ping = from.output(&["ping", "-n", "-c1", "-W1", to]);
    ensure!(ping.code != Some(0), "{} reaches {to}", from.name());
    Ok(())
}

#[test]
fn a_network_is_as_it_was_asked_for_and_grows() {
    scenario("options", |lab| {
        let cluster = Cluster::three(lab)?;
        let (vm1, vm2, vm3) = (cluster.vm1(), cluster.vm2(), cluster.vm3());
        let options =
            ["--subnet", "10.60.0.0/29", "--gateway", "10.60.0.6", "--mtu", "1300", "--label", "tier=db"];
        vm1.meshctl(&[&["network", "create"], &options[..], &["small"]].concat()).ok()?;
        let shown = &vm1.meshctl(&["-o", "json", "network", "inspect", "small"]).json()?[0];
        ensure!(shown["mtu"] == 1300 && shown["labels"]["tier"] == "db", "{shown}");
        ensure!(shown["subnets"][0]["gateway"] == "10.60.0.6", "{shown}");
        let (c1, c2) = (connect(lab, vm1, "small", "c1")?, connect(lab, vm2, "small", "c2")?);
        let _c3 = connect(lab, vm3, "small", "c3")?;
        ensure!(
            ["c1", "c2", "c3"].map(|name| cluster.address(name).unwrap_or_default())
                == ["10.60.0.1", "10.60.0.2", "10.60.0.3"]
        );
        ensure!(c1.output(&["ip", "link", "show", "eth0"]).ok()?.contains("mtu 1300"));
        ensure!(c1.output(&["ip", "route", "show", "default"]).ok()?.contains("via 10.60.0.6"));

        // An address rests before somebody else gets it, unless nothing else is left.
        vm3.meshctl(&["network", "disconnect", "small", "c3"]).ok()?;
        for (name, address) in [("c4", "10.60.0.4"), ("c5", "10.60.0.5"), ("c6", "10.60.0.3")] {
            connect(lab, vm3, "small", name)?;
            ensure!(cluster.address(name)? == address, "{name}: {}", cluster.address(name)?);
        }
        let late = lab.container("c7")?;
        let connect_late = ["network", "connect", "--name", "c7", "small", &late.target()];
        vm3.meshctl(&connect_late).refused("network update --subnet-add")?;

        let ping = Ping::start(&c1, "10.60.0.2")?;
        let grow =
            ["--subnet-add", "10.61.0.0/24", "--gateway", "10.61.0.254", "--ip-range", "10.61.0.64/26"];
        vm1.meshctl(&[&["network", "update", "--label-rm", "tier"], &grow[..], &["small"]].concat()).ok()?;
        vm3.meshctl(&connect_late).ok()?;
        ensure!(cluster.address("c7")? == "10.61.0.64");
        for (from, to) in
            [(&c1, "10.61.0.64"), (&c2, "10.61.0.64"), (&late, "10.60.0.1"), (&late, "10.60.0.2")]
        {
            reaches(from, to)?;
        }
        ensure!(late.dig(&["@10.61.0.254", "c1"])? == ["10.60.0.1"]);
        ping.go_on(20)?;
        let count = ping.stop()?;
        ensure!(count.lost == 0, "{count:?}");

        vm1.meshctl(&["network", "create", "unused"]).ok()?;
        vm1.meshctl(&["network", "prune"]).refused("--force")?;
        ensure!(vm1.meshctl(&["network", "prune", "-f"]).ok()?.trim() == "unused");
        let left = vm1.meshctl(&["-o", "json", "network", "ls"]).json()?;
        ensure!(left.as_array().is_some_and(|left| left.len() == 1), "{left}");

        // An internal network: itself, in both families, and nothing else.
        let subnets = ["--subnet", "10.62.0.0/24", "--subnet", "fd62::/64", "--internal", "inner"];
        vm1.meshctl(&[&["network", "create"], &subnets[..]].concat()).ok()?;
        let (i1, _i2) = (connect(lab, vm1, "inner", "i1")?, connect(lab, vm2, "inner", "i2")?);
        for to in ["10.62.0.3", "fd62::3", "10.62.0.1", "fd62::1"] {
            reaches(&i1, to)?;
        }
        i1.shell("ip route replace default via 10.62.0.1; ip -6 route replace default via fd62::1").ok()?;
        for to in ["10.77.0.1", "fd77::1", "10.77.0.11", "fd77::11", "10.60.0.1", "10.60.0.6"] {
            out_of_reach(&i1, to)?;
        }
        Ok(())
    });
}

/// Nodes that advertise IPv6 addresses: managers, agents, liveness, VXLAN and ingress go over those.
#[test]
fn an_underlay_of_ipv6() {
    scenario("ipv6 underlay", |lab| {
        let cluster = Cluster::three_over_ipv6(lab)?;
        let vm1 = cluster.vm1();
        for (name, subnets) in [
            ("four", &["--subnet", "10.60.0.0/24"][..]),
            ("six", &["--subnet", "fd61::/64"]),
            ("both", &["--subnet", "10.62.0.0/24", "--subnet", "fd62::/64"]),
        ] {
            vm1.meshctl(&[&["network", "create"], subnets, &[name]].concat()).ok()?;
        }
        let mut expected = vec![];
        let mut replicas = vec![];
        for (network, port) in [("four", "8004"), ("six", "8006"), ("both", "8000")] {
            let published = format!("{port}:80");
            vm1.meshctl(&[
                "service",
                "create",
                "--name",
                network,
                "--network",
                network,
                "--publish",
                &published,
            ])
            .ok()?;
            for host in [cluster.vm2(), cluster.vm3()] {
                let name = format!("{network}-{}", host.name());
                let spec =
                    ReplicaSpec { name: &name, network: Some(network), service: Some(network), port: 80 };
                replicas.push(Replica::start(host, spec)?);
                expected.push((network, name));
            }
            cluster.endpoints(network, "2/2")?;
        }
        let client = lab.client("client")?;
        for daemon in &cluster.daemons {
            let host = daemon.host();
            for (network, url) in [
                ("four", format!("http://{}:8004/", host.ip())),
                ("six", format!("http://[{}]:8006/", host.ip6())),
                ("both", format!("http://{}:8000/", host.ip())),
                ("both", format!("http://[{}]:8000/", host.ip6())),
            ] {
                let shared: Vec<(&str, usize)> = expected
                    .iter()
                    .filter(|(on, _)| *on == network)
                    .map(|(_, name)| (name.as_str(), 3))
                    .collect();
                within(CONVERGES, &url, || shares(&client.answers(&url, 6)?, &shared))?;
            }
        }
        let both = replicas.iter().position(|replica| replica.name() == "both-vm2");
        let inside = replicas[both.unwrap_or_default()].namespace()?;
        ensure!(inside.output(&["ip", "link", "show", "eth0"]).ok()?.contains("mtu 1430"));
        within(CONVERGES, "the name leads to both replicas", || {
            shares(&inside.answers("http://both/", 6)?, &[("both-vm2", 3), ("both-vm3", 3)])
        })
    });
}
