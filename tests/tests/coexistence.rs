//! Published ports beside what else a host has: rules that lead the same port elsewhere, a firewall that drops.

use anyhow::{Result, ensure};
use mesh_tests::{CONVERGES, Cluster, Echo, Host, Lab, Replica, ReplicaSpec, comes_back, scenario, within};
use std::net::SocketAddr;

fn network(cluster: &Cluster) -> Result<()> {
    let subnets = ["--subnet", "192.168.100.0/24", "--subnet", "fd00:100::/64"];
    cluster.vm1().meshctl(&[&["network", "create"], &subnets[..], &["blue"]].concat()).ok()?;
    Ok(())
}

fn nft(host: &Host, script: &str) -> Result<()> {
    host.output(&["nft", script]).ok().map(drop)
}

#[test]
fn a_port_that_others_rules_lead_elsewhere_is_refused_and_later_told() {
    scenario("translated port", |lab| {
        let cluster = Cluster::three(lab)?;
        network(&cluster)?;
        let (vm1, vm2) = (cluster.vm1(), cluster.vm2());
        let publish = |port: &str| {
            vm1.meshctl(&["service", "create", "--name", "web", "--network", "blue", "--publish", port])
        };
        // As somebody writes them by hand, and as Docker does where it runs no proxy of its own.
        nft(vm2, "add table ip theirs")?;
        nft(vm2, "add chain ip theirs prerouting { type nat hook prerouting priority -100; }")?;
        nft(vm2, "add rule ip theirs prerouting tcp dport { 8080, 8443 } dnat to 10.77.0.99:80")?;
        let docker =
            ["-p", "tcp", "-m", "tcp", "--dport", "8081", "-j", "DNAT", "--to-destination", "172.17.0.2:80"];
        vm2.output(&[&["iptables", "-t", "nat", "-A", "PREROUTING"], &docker[..]].concat()).ok()?;
        for (port, chain) in
            [(8080, "ip theirs prerouting"), (8443, "ip theirs prerouting"), (8081, "ip nat PREROUTING")]
        {
            let refused = publish(&format!("{port}:80"));
            let words = format!("node 'vm2': port {port}/tcp is led elsewhere by a rule in '{chain}'");
            ensure!(refused.code == Some(1) && refused.stderr.contains(&words), "{refused:?}");
            ensure!(refused.stderr.trim().lines().count() == 1, "{refused:?}");
        }
        ensure!(cluster.list(&["service", "ls"])?.is_empty(), "nothing is half made");
        // Those of UDP, and of another port, are none of it.
        publish("8082:80").ok()?;
        vm1.meshctl(&["service", "update", "--publish-add", "8080:80/udp", "web"]).ok()?;
        nft(vm2, "flush chain ip theirs prerouting")?;
        vm1.meshctl(&["service", "update", "--publish-add", "8080:80", "web"]).ok()?;

        // Somebody does it later: the node says so, until it is undone.
        let says = |expected: bool| {
            within(CONVERGES, &format!("vm2 says so: {expected}"), || {
                let status = vm2.meshctl(&["status"]).stdout;
                let said =
                    status.contains("port 8082/tcp is led elsewhere by a rule in 'ip theirs prerouting'");
                ensure!(said == expected, "{status}");
                Ok(())
            })
        };
        says(false)?;
        nft(vm2, "add rule ip theirs prerouting tcp dport 8082 redirect to :1")?;
        says(true)?;
        nft(vm2, "flush chain ip theirs prerouting")?;
        says(false)
    });
}

/// What a host's firewall has to accept, and no more, when it drops everything else that comes in or is forwarded.
const FIREWALL: &str = "table inet firewall {
  chain input {
    type filter hook input priority 0; policy drop;
    iif lo accept
    ct state established,related accept
    meta l4proto { icmp, ipv6-icmp } accept
    tcp dport 7443 accept
    udp dport { 4789, 7443 } accept
    iifname \"up*\" accept
    tcp dport 8090 accept
  }
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept
    iifname \"up*\" accept
    oifname \"up*\" accept
  }
}";

#[test]
fn a_firewall_that_drops_needs_a_rule_for_uplinks_and_one_for_each_port_of_the_proxy() {
    scenario("firewall", |lab: &Lab| {
        let cluster = Cluster::three(lab)?;
        for daemon in &cluster.daemons {
            let path = lab_file(daemon.host())?;
            daemon.host().output(&["nft", "-f", &path]).ok()?;
        }
        network(&cluster)?;
        let vm1 = cluster.vm1();
        let http = "published=8090,target=80,protocol=http";
        let web = ["service", "create", "--name", "web", "--network", "blue", "--publish", "8080:80"];
        vm1.meshctl(&[&web[..], &["--publish", http]].concat()).ok()?;
        let echo = ["service", "create", "--name", "echo", "--network", "blue", "--publish", "7777:7/udp"];
        vm1.meshctl(&echo).ok()?;
        let spec = ReplicaSpec { name: "web1", network: Some("blue"), service: Some("web"), port: 80 };
        let _web = Replica::start(vm1, spec)?;
        let container = lab.container("echo1")?;
        Echo::datagrams(&container, 7)?;
        let connect = ["network", "connect", "--name", "echo1", "--service", "echo", "blue"];
        cluster.vm2().meshctl(&[&connect[..], &[&container.target()]].concat()).ok()?;
        cluster.endpoints("web", "1/1")?;
        cluster.endpoints("echo", "1/1")?;
        let client = lab.client("client")?;
        for daemon in &cluster.daemons {
            let host = daemon.host();
            for (from, addresses) in [
                (&*client, [host.ip().to_string(), format!("[{}]", host.ip6())]),
                (&**host, ["127.0.0.1".to_owned(), "[::1]".to_owned()]),
                (&**host, [host.ip().to_string(), format!("[{}]", host.ip6())]),
            ] {
                for address in addresses {
                    for port in [8080, 8090] {
                        within(CONVERGES, &format!("{address}:{port}"), || {
                            from.curl(&format!("http://{address}:{port}/")).map(drop)
                        })?;
                    }
                    let to: SocketAddr = format!("{address}:7777").parse()?;
                    within(CONVERGES, &format!("datagrams to {to}"), || {
                        ensure!(comes_back(from, to)?);
                        Ok(())
                    })?;
                }
            }
            let doctor = host.meshctl(&["doctor"]);
            ensure!(doctor.code == Some(0), "{doctor:?}");
        }
        Ok(())
    });
}

/// The firewall's file, where the host finds it.
fn lab_file(host: &Host) -> Result<String> {
    let path = "/run/lab/firewall.nft";
    std::fs::write(host.file(path), FIREWALL)?;
    Ok(path.to_owned())
}
