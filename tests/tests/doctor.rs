//! `meshctl doctor` names each trouble, made for real, and nothing else; and says that all is well once it is gone.

use anyhow::{Context, Result, ensure};
use mesh_tests::{
    Background, CONVERGES, Clock, Cluster, Host, Lab, Meshd, Replica, ReplicaSpec, field, scenario, within,
};
use serde_json::Value;
use std::{net::TcpListener, time::Duration};

/// How long it may take until a trouble shows, or is gone: membership and repairs take some seconds.
const SHOWS: Duration = Duration::from_secs(60);

/// A container on the network `blue` of each node.
fn blue(cluster: &Cluster) -> Result<Vec<Background>> {
    let subnets = ["--subnet", "10.50.0.0/24", "--subnet", "fd00:50::/64"];
    cluster.vm1().meshctl(&[&["network", "create"], &subnets[..], &["blue"]].concat()).ok()?;
    let hosts = [(cluster.vm1(), "c1"), (cluster.vm2(), "c2"), (cluster.vm3(), "c3")];
    let run = |(host, name): (&Host, &str)| {
        host.run(&["--network", "blue", "--name", name], &["sleep", "infinity"])
    };
    let containers = hosts.into_iter().map(run).collect::<Result<Vec<_>>>()?;
    within(CONVERGES, "three endpoints", || {
        ensure!(cluster.list(&["endpoint", "ls"])?.len() == 3);
        Ok(())
    })?;
    Ok(containers)
}

/// What a node's doctor says: whether it exits 0, and the findings.
fn doctor(host: &Host, options: &[&str]) -> Result<(bool, Vec<Value>)> {
    let said = host.meshctl(&[&["-o", "json", "doctor"], options].concat());
    ensure!(matches!(said.code, Some(0 | 1)), "{said:?}");
    let diagnosis: Value = serde_json::from_str(&said.stdout).with_context(|| format!("{said:?}"))?;
    let healthy = said.code == Some(0);
    ensure!(diagnosis["healthy"] == healthy, "{said:?}");
    ensure!(diagnosis["node"] == host.name() || diagnosis["node"] == "", "{said:?}");
    let findings = diagnosis["findings"].as_array().cloned().context("no findings")?;
    let any_failed = findings.iter().any(|finding| field(finding, "outcome") == "failed");
    ensure!(any_failed != healthy, "{findings:#?}");
    Ok((healthy, findings))
}

/// `check` and the other node, of what failed.
fn failed(findings: &[Value]) -> Vec<(String, String)> {
    let failed = findings.iter().filter(|finding| field(finding, "outcome") == "failed");
    let mut failed: Vec<_> =
        failed.map(|finding| (field(finding, "check"), field(finding, "peer"))).collect();
    failed.sort();
    failed
}

/// Waits until a node's doctor names exactly these checks and other nodes; every one says what to do.
fn names(host: &Host, expected: &[(&str, &str)]) -> Result<Vec<Value>> {
    let mut expected: Vec<_> =
        expected.iter().map(|(check, peer)| ((*check).to_owned(), (*peer).to_owned())).collect();
    expected.sort();
    within(SHOWS, &format!("the doctor of {} names {expected:?}", host.name()), || {
        let (_, findings) = doctor(host, &[])?;
        ensure!(failed(&findings) == expected, "{:#?}", bad(&findings));
        let bad =
            findings.iter().filter(|finding| ["failed", "warning"].contains(&&*field(finding, "outcome")));
        for finding in bad.clone() {
            ensure!(!field(finding, "remedy").is_empty(), "no remedy: {finding:#}");
        }
        Ok(bad.cloned().collect())
    })
}

/// What is not as it should be.
fn bad(findings: &[Value]) -> Vec<&Value> {
    findings.iter().filter(|finding| !["ok", "skipped"].contains(&&*field(finding, "outcome"))).collect()
}

/// Waits until each node's doctor finds nothing at all.
fn healthy(cluster: &Cluster) -> Result<()> {
    for daemon in &cluster.daemons {
        within(SHOWS, &format!("{} is healthy", daemon.host().name()), || {
            let (_, findings) = doctor(daemon.host(), &[])?;
            ensure!(bad(&findings).is_empty(), "{:#?}", bad(&findings));
            Ok(())
        })?;
    }
    Ok(())
}

/// A check of a healthy node was made, not skipped.
fn made(findings: &[Value], check: &str) -> Result<()> {
    let outcomes: Vec<String> =
        findings.iter().filter(|f| field(f, "check") == check).map(|f| field(f, "outcome")).collect();
    ensure!(outcomes == ["ok"], "{check}: {outcomes:?} in {findings:#?}");
    Ok(())
}

fn shell(host: &mesh_tests::Namespace, script: &str) -> Result<()> {
    host.shell(script).ok().map(drop)
}

/// Runs a command in the network namespace of `blue` on a host.
fn inside(host: &Host, script: &str) -> Result<()> {
    let entered = format!(
        "set -e; for ns in {}/netns/*; do nsenter --net=$ns bash -ec '{script}'; done",
        host.run_dir()
    );
    shell(host, &entered)
}

/// Drops what a match of nft matches as it comes in to a host, before connection tracking.
fn drop_incoming(host: &Host, matches: &str) -> Result<()> {
    shell(
        host,
        &format!(
            "nft 'add table inet trouble; add chain inet trouble in {{ type filter hook prerouting priority -500; }}; add rule inet trouble in {matches} drop'"
        ),
    )
}

fn no_trouble(host: &Host) -> Result<()> {
    shell(host, "nft delete table inet trouble")
}

/// A daemon that is well finds nothing, from each node and in every form; then what blocks ports is named one by one.
#[test]
fn a_healthy_cluster_and_blocked_ports() {
    scenario("doctor: ports", |lab| {
        let cluster = Cluster::three(lab)?;
        let _resolver = lab.resolver()?;
        let (vm1, vm2, vm3) = (cluster.vm1(), cluster.vm2(), cluster.vm3());
        let _containers = blue(&cluster)?;
        healthy(&cluster)?;
        let (_, findings) = doctor(vm2, &[])?;
        for check in [
            "kernel",
            "forwarding",
            "firewall",
            "conntrack",
            "managers",
            "nodes",
            "membership-port",
            "clocks",
            "underlay-address",
            "vxlan-port",
            "mtu",
            "checksums",
            "kernel-state",
            "addresses",
            "subnets",
            "dns",
        ] {
            made(&findings, check)?;
        }
        let table = vm1.meshctl(&["doctor"]).ok()?;
        ensure!(table.starts_with("STATUS") && !table.contains("WHAT TO DO"), "{table}");
        ensure!(vm1.meshctl(&["-o", "yaml", "doctor"]).ok()?.contains("healthy: true"));
        ensure!(vm1.meshctl(&["-q", "doctor"]).ok()?.is_empty());
        vm1.meshctl(&["doctor", "--node", "vm9"]).refused("no node is called 'vm9'")?;
        vm1.meshctl(&["doctor", "--network", "red"]).refused("no network is called 'red'")?;

        // VXLAN, one way.
        drop_incoming(vm2, "udp dport 4789")?;
        let found = names(vm1, &[("vxlan-port", "vm2")])?;
        ensure!(
            field(&found[0], "place") == "vm1 <-> vm2"
                && field(&found[0], "result").contains("udp port 4789"),
            "{found:#?}"
        );
        names(vm2, &[("vxlan-port", "vm1"), ("vxlan-port", "vm3")])?;
        let (well, _) = doctor(vm1, &["--node", "vm3"])?;
        ensure!(well, "the link to vm3 is in order");
        let table = vm1.meshctl(&["doctor"]);
        ensure!(table.code == Some(1) && table.stdout.contains("let UDP 4789 pass"), "{table:?}");
        ensure!(table.stderr.contains("vm1 is not healthy: 1 finding FAILED"), "{table:?}");
        no_trouble(vm2)?;
        healthy(&cluster)?;

        // Membership.
        drop_incoming(vm3, "udp dport 7443")?;
        let found = names(vm1, &[("membership-port", "vm3")])?;
        ensure!(field(&found[0], "result").contains("udp port 7443 is blocked"), "{found:#?}");
        no_trouble(vm3)?;
        healthy(&cluster)?;

        // The manager's port: blocked, the daemon stopped, the host gone.
        drop_incoming(vm1, &format!("ip saddr {} tcp dport 7443", vm2.ip()))?;
        let found = names(vm2, &[("managers", "vm1"), ("managers", "")])?;
        ensure!(
            found.iter().any(|f| field(f, "result").contains("tcp port 7443 of 10.77.0.11 is blocked")),
            "{found:#?}"
        );
        no_trouble(vm1)?;
        healthy(&cluster)
    });
}

/// A host that belongs to no cluster: what its kernel lacks, and what an earlier life left there.
#[test]
fn a_host_without_a_cluster() {
    scenario("doctor: alone", |lab| {
        let _resolver = lab.resolver()?;
        let mut alone = lab.host("alone")?.meshd()?;
        let host = alone.host().clone();
        let said = host.meshctl(&["doctor"]);
        ensure!(said.ok()?.contains("the kernel has what is needed"), "{said:?}");
        host.meshctl(&["doctor", "--network", "blue"]).refused("cluster init")?;

        // Its disk is made anew, and a network with a container is still there.
        let address = host.ip().to_string();
        let init = ["cluster", "init", "--advertise-addr", &address];
        host.meshctl(&init).ok()?;
        host.meshctl(&["network", "create", "blue"]).ok()?;
        let _container = host.run(&["--network", "blue", "--name", "c"], &["sleep", "infinity"])?;
        within(CONVERGES, "the network is there", || shell(&host, "ip link show up4096"))?;
        within(CONVERGES, "nothing is wrong with it", || {
            let (_, findings) = doctor(&host, &[])?;
            ensure!(bad(&findings).is_empty(), "{:#?}", bad(&findings));
            Ok(())
        })?;
        alone.kill()?;
        std::fs::remove_dir_all(host.file(host.data_dir()))?;
        alone.start()?;
        let found = names(&host, &[("leftovers", ""), ("leftovers", "")])?;
        for what in [format!("namespace {}/netns/", host.run_dir()), "interface up4096".to_owned()] {
            ensure!(found.iter().any(|f| field(f, "result").contains(&what)), "{what}: {found:#?}");
        }
        let said = host.meshctl(&["doctor"]);
        ensure!(said.code == Some(1) && said.stdout.contains("takes it over or removes it"), "{said:?}");
        host.meshctl(&init).ok()?;
        let warnings = names(&host, &[])?;
        ensure!(warnings.is_empty(), "{warnings:#?}");
        ensure!(shell(&host, "ip link show up4096").is_err());

        // The settings of a kernel without IPv6, in the daemon's own mounts.
        alone.terminate()?;
        let alone = lab.host("bare")?.meshd_under(&["unshare", "--mount", "--propagation", "private"])?;
        let mounts = alone.host().of_process("mounts", alone.pid().context("it runs")?);
        shell(&mounts, "mkdir /run/nothing; mount --bind /run/nothing /proc/sys/net")?;
        let found = names(alone.host(), &[("kernel", "")])?;
        ensure!(field(&found[0], "result").contains("ipv6 in the kernel is missing"), "{found:#?}");
        ensure!(field(&found[0], "remedy").contains("ipv6.disable=1"), "{found:#?}");
        shell(&mounts, "umount /proc/sys/net")?;
        ensure!(names(alone.host(), &[])?.is_empty());
        Ok(())
    });
}

/// A daemon that does not run and a host that is gone are told from blocked ports.
#[test]
fn a_stopped_daemon_and_a_dead_host() {
    scenario("doctor: stopped", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let _resolver = lab.resolver()?;
        let _containers = blue(&cluster)?;
        healthy(&cluster)?;
        cluster.daemons[0].terminate()?;
        let found = names(cluster.vm2(), &[("managers", ""), ("nodes", "vm1")])?;
        ensure!(found.iter().any(|f| field(f, "result").contains("meshd does not run on vm1")), "{found:#?}");
        cluster.daemons[0].start()?;
        healthy(&cluster)?;
        shell(cluster.vm3(), "ip link set eth0 down")?;
        let found = names(cluster.vm1(), &[("nodes", "vm3")])?;
        ensure!(field(&found[0], "result").contains("no sign of life"), "{found:#?}");
        shell(cluster.vm3(), "ip link set eth0 up; ip route replace default via 10.77.0.1")?;
        healthy(&cluster)
    });
}

/// Packets that are too long for the path, packets whose checksum is spoilt, and addresses that two machines have.
#[test]
fn what_is_wrong_between_two_hosts() {
    scenario("doctor: links", |lab| {
        let cluster = Cluster::three(lab)?;
        let _resolver = lab.resolver()?;
        let (vm1, vm2) = (cluster.vm1(), cluster.vm2());
        let containers = blue(&cluster)?;
        healthy(&cluster)?;

        // One family alone does not get to vm2.
        let lost = "nft \"add table ip6 trouble; add chain ip6 trouble in { type filter hook prerouting priority -500; }; \
            add rule ip6 trouble in udp dport 7443 drop\"";
        inside(vm2, lost)?;
        let found = names(vm1, &[("vxlan-port", "vm2")])?;
        ensure!(field(&found[0], "result").contains("by ipv6, though ipv4 does"), "{found:#?}");
        inside(vm2, "nft delete table ip6 trouble")?;
        healthy(&cluster)?;

        // The switch's port of vm2 carries less than its hosts believe. It drops without a word, as switches do.
        // (Linux bridges that hand packets to iptables cut them in pieces instead.)
        lab.switch("sysctl -qw net.bridge.bridge-nf-call-iptables=0")?;
        let switch = |mtu: u32| lab.switch(&format!("ip link set vm2 mtu {mtu}"));
        switch(1300)?;
        let found = names(vm1, &[("mtu", "vm2")])?;
        ensure!(field(&found[0], "place").starts_with("vm1 -> vm2"), "{found:#?}");
        let result = field(&found[0], "result");
        ensure!(
            result.contains("1450 bytes (1500 on the underlay)") && result.contains("; about"),
            "{found:#?}"
        );
        switch(1500)?;
        healthy(&cluster)?;

        // Only the way back is narrow.
        let narrow = "meta length > 1300";
        drop_incoming(vm1, &format!("ip saddr {} {narrow}", vm2.ip()))?;
        let found = names(vm1, &[("mtu", "vm2")])?;
        ensure!(field(&found[0], "place").starts_with("vm2 -> vm1"), "{found:#?}");
        no_trouble(vm1)?;
        healthy(&cluster)?;

        // A card that spoils checksums: UDP inside VXLAN that has one arrives at vm1 with another. The card sums, so that
        // somebody looks at it. (8 bytes of UDP and 8 of VXLAN, 14 of Ethernet, 20 of IP with the protocol at 9; the sum is at
        // 6 of the inner UDP.)
        shell(vm2, "ethtool -K eth0 tx off")?;
        let (protocol, sum) = ((16 + 14 + 9) * 8, (16 + 14 + 20 + 6) * 8);
        shell(
            vm1,
            &format!(
                "nft 'add table inet trouble; add chain inet trouble in {{ type filter hook prerouting priority -500; }}; add rule inet trouble in ip saddr {} udp dport 4789 @th,{protocol},8 17 @th,{sum},16 != 0 @th,{sum},16 set 0x1234'",
                vm2.ip()
            ),
        )?;
        let found = names(vm1, &[("checksums", "vm2")])?;
        ensure!(field(&found[0], "place").starts_with("vm2 -> vm1"), "{found:#?}");
        let found = names(vm2, &[("checksums", "vm1")])?;
        ensure!(field(&found[0], "place").starts_with("vm2 -> vm1"), "{found:#?}");
        no_trouble(vm1)?;
        shell(vm2, "ethtool -K eth0 tx on")?;
        healthy(&cluster)?;

        // The underlay address of vm2 on another machine.
        let twin = lab.client("twin")?;
        shell(&twin, "ip address add 10.77.0.12/24 dev eth0")?;
        // What else is found follows from it: packets end at the one or the other.
        within(SHOWS, "vm1 finds both", || {
            let (_, findings) = doctor(vm1, &[])?;
            let found = findings
                .iter()
                .find(|f| field(f, "check") == "underlay-address" && field(f, "peer") == "vm2");
            let result = field(found.with_context(|| format!("{:#?}", bad(&findings)))?, "result");
            ensure!(result.contains("10.77.0.12 of node 'vm2' is on two machines"), "{result}");
            Ok(())
        })?;
        within(SHOWS, "vm2 finds the other", || {
            let (_, findings) = doctor(vm2, &[])?;
            let found = failed(&findings);
            ensure!(found.contains(&("underlay-address".to_owned(), String::new())), "{:#?}", bad(&findings));
            Ok(())
        })?;
        shell(&twin, "ip address del 10.77.0.12/24 dev eth0")?;
        // As the one that keeps it says when it comes up.
        for host in [vm1, cluster.vm3()] {
            shell(host, "ip neighbour flush dev eth0")?;
        }
        healthy(&cluster)?;

        // A container that takes another's address is heard by nobody: nothing is wrong.
        let c3 = cluster.vm3().of_process("c3", containers[2].child()?);
        let taken = cluster.address("c1")?;
        shell(&c3, &format!("ip address add {taken}/24 dev eth0"))?;
        healthy(&cluster)?;
        shell(&c3, &format!("ip address del {taken}/24 dev eth0"))?;
        healthy(&cluster)?;

        // Somebody with rights on the host puts a machine of that address into the network.
        let thief = lab.container("thief")?;
        inside(
            vm1,
            "ip link add foreign type veth peer name eth0 netns /run/netns/thief; ip link set foreign master br0 up",
        )?;
        let taken = cluster.address("c2")?;
        shell(&thief, &format!("ip address add {taken}/24 dev eth0; ip link set eth0 up"))?;
        let found = names(vm1, &[("addresses", "")])?;
        let result = field(&found[0], "result");
        ensure!(result.contains(&format!("{taken} is that of endpoint 'c2'")), "{found:#?}");
        inside(vm1, "ip link del foreign")?;
        healthy(&cluster)
    });
}

/// What others do to the kernel of a host, and what of a host is in the way of its networks.
#[test]
fn what_is_wrong_with_a_host() {
    scenario("doctor: host", |lab| {
        let mut cluster = Cluster::three(lab)?;
        let mut resolver = lab.resolver()?;
        let _containers = blue(&cluster)?;
        let (vm1, vm3) = (cluster.vm1().clone(), cluster.vm3().clone());
        healthy(&cluster)?;

        // Another daemon writes forwarding entries of its own, again and again.
        let entry = "02:00:00:00:00:99 dev vx4096 dst 10.77.0.99 self";
        let fight = format!(
            "while sleep 0.1; do for ns in {}/netns/*; do nsenter --net=$ns bridge fdb replace {entry}; done; done",
            vm1.run_dir()
        );
        let mut fighter = vm1.spawn(&["bash", "-c", &fight])?;
        let found = names(&vm1, &[("kernel-state", "")])?;
        let result = field(&found[0], "result");
        ensure!(result.contains("02:00:00:00:00:99") && result.contains("should not be there"), "{found:#?}");
        fighter.kill()?;
        healthy(&cluster)?;

        // One who did it once: repaired, a warning, exit 0.
        within(SHOWS, "it is mended, which is a warning", || {
            // The node itself may have mended it before anybody looked: once more, then.
            inside(&vm1, "ip link set br0 mtu 1400; ip address del 10.50.0.1/24 dev br0")?;
            let (well, found) = doctor(&vm1, &[])?;
            let warned = |f: &Value| field(f, "check") == "kernel-state" && field(f, "outcome") == "warning";
            ensure!(well && found.iter().any(warned), "{found:#?}");
            Ok(())
        })?;
        healthy(&cluster)?;

        // A firewall that drops what is forwarded.
        shell(
            &vm1,
            "nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'",
        )?;
        let found = names(&vm1, &[("firewall", "")])?;
        ensure!(field(&found[0], "place").contains("ip filter forward"), "{found:#?}");
        shell(
            &vm1,
            "nft 'add rule ip filter FORWARD oifname \"up*\" accept; add rule ip filter FORWARD iifname \"up*\" accept'",
        )?;
        healthy(&cluster)?;
        shell(&vm1, "nft 'delete table ip filter'")?;

        // Another daemon turns forwarding off, again and again.
        let mut fighter =
            vm1.spawn(&["bash", "-c", "while sleep 0.01; do sysctl -qw net.ipv4.ip_forward=0; done"])?;
        within(SHOWS, "vm1 finds it", || {
            let (_, findings) = doctor(&vm1, &["--node", "self"])?;
            let mut found = findings.iter().filter(|f| field(f, "check") == "forwarding");
            let named = |f: &Value| field(f, "result").contains("net.ipv4.ip_forward is 0");
            ensure!(found.any(named), "{:#?}", bad(&findings));
            Ok(())
        })?;
        fighter.kill()?;
        healthy(&cluster)?;

        // A published port that somebody else took while the daemon was away.
        cluster.daemons[2].terminate()?;
        let thief = vm3.inside(|| Ok(TcpListener::bind("0.0.0.0:8088")?))?;
        let publish = ["service", "create", "--name", "web", "--network", "blue", "--publish", "8088:80"];
        within(CONVERGES, "published without vm3", || vm1.meshctl(&publish).ok())?;
        cluster.daemons[2].start()?;
        let found = names(&vm3, &[("ports", "")])?;
        ensure!(field(&found[0], "result").contains("8088"), "{found:#?}");
        drop(thief);
        let spec = ReplicaSpec { name: "web2", network: Some("blue"), service: Some("web"), port: 80 };
        let _replica = Replica::start(cluster.vm2(), spec)?;
        cluster.endpoints("web", "1/1")?;
        healthy(&cluster)?;
        made(&doctor(&vm3, &[])?.1, "reach")?;

        // A firewall whose last rule refuses, as Red Hat's does; others see what it does.
        shell(
            &vm1,
            "nft 'add table inet site; add chain inet site forward { type filter hook forward priority 0; }; \
            add rule inet site forward ct state established,related accept; add rule inet site forward counter reject with icmpx admin-prohibited'",
        )?;
        let found = names(&vm1, &[("firewall", "")])?;
        ensure!(field(&found[0], "place").contains("inet site forward"), "{found:#?}");
        let found = names(cluster.vm2(), &[("reach", "vm1")])?;
        ensure!(field(&found[0], "result").contains("8088 (web)"), "{found:#?}");
        shell(
            &vm1,
            "nft 'insert rule inet site forward oifname \"up*\" accept; insert rule inet site forward iifname \"up*\" accept'",
        )?;
        healthy(&cluster)?;
        shell(&vm1, "nft delete table inet site")?;

        // Names that nobody answers.
        let fronts = cluster.daemons[0].fronts()?;
        let fronts = fronts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        shell(&vm1, &format!("kill -STOP {fronts}"))?;
        within(SHOWS, "vm1 finds it", || {
            let (_, findings) = doctor(&vm1, &["--node", "self"])?;
            let found = findings.iter().filter(|f| field(f, "check") == "dns");
            let mut texts = found.map(|f| field(f, "result"));
            ensure!(texts.any(|text| text.contains("10.50.0.1 does not answer")), "{:#?}", bad(&findings));
            Ok(())
        })?;
        shell(&vm1, &format!("kill -CONT {fronts}"))?;
        healthy(&cluster)?;

        // A subnet that the host has too.
        shell(
            &vm3,
            "ip link add other type bridge; ip address add 10.50.0.200/16 dev other; ip link set other up",
        )?;
        names(&vm3, &[("subnets", "")])?;
        shell(&vm3, "ip link del other")?;
        healthy(&cluster)?;

        // The resolver beyond is nobody's here: a warning, which says who.
        resolver.kill()?;
        let found = names(&vm1, &[])?;
        ensure!(found.len() == 1 && field(&found[0], "check") == "resolvers", "{found:#?}");
        ensure!(field(&found[0], "result").contains(":53 does not answer"), "{found:#?}");
        let _resolver = lab.resolver()?;
        healthy(&cluster)?;

        crowd_from_outside(lab, &cluster)?;

        // A firewall by iptables of the old kind, which nf_tables does not show; others see what it does.
        shell(&vm1, "iptables-legacy -P FORWARD DROP")?;
        let found = names(&vm1, &[("firewall", "")])?;
        ensure!(field(&found[0], "place").contains("iptables-legacy filter forward"), "{found:#?}");
        let found = names(cluster.vm2(), &[("reach", "vm1")])?;
        ensure!(field(&found[0], "result").contains("8088 (web)"), "{found:#?}");
        shell(
            &vm1,
            "iptables-legacy -A FORWARD -o up+ -j ACCEPT; iptables-legacy -A FORWARD -i up+ -j ACCEPT",
        )?;
        healthy(&cluster)
    });
}

/// Sends a datagram from each of many ports to each of some ports of a host, past its own connection tracking.
const FLOOD: &str = "import socket, struct, sys
to, eth, own = sys.argv[1:4]
first, last, low, high = map(int, sys.argv[4:])
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('eth0', 0))
ip = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 29, 0, 0, 64, 17, 0, socket.inet_aton(own), socket.inet_aton(to))
total = sum(struct.unpack('!10H', ip))
total = (total & 0xffff) + (total >> 16)
ip = ip[:10] + struct.pack('!H', ~((total & 0xffff) + (total >> 16)) & 0xffff) + ip[12:]
ether = bytes.fromhex(eth.replace(':', ''))
frame = bytearray(ether + b'\\2\\0\\0\\0\\0\\1\\x08\\0' + ip + struct.pack('!HHHH', 0, 0, 9, 0) + b'?')
for port in range(first, last + 1):
    frame[36:38] = port.to_bytes(2, 'big')
    for source in range(low, high):
        frame[34:36] = source.to_bytes(2, 'big')
        s.send(frame)
";

/// Somebody outside fills the table of connections of a node, in the end by a published port: others are served all the
/// same, and the doctor tells who it is. The limit is the machine's, what is counted each namespace's: no other test is
/// disturbed.
fn crowd_from_outside(lab: &Lab, cluster: &Cluster) -> Result<()> {
    let vm1 = cluster.vm1();
    vm1.meshctl(&["service", "update", "web", "--publish-add", "9999:9999/udp"]).ok()?;
    let (crowd, client) = (lab.client("crowd")?, lab.client("client")?);
    let link = vm1.output(&["ip", "-json", "link", "show", "dev", "eth0"]).json()?;
    let (to, mac, own) = (vm1.ip().to_string(), field(&link[0], "address"), crowd.ip().to_string());
    let number = |name: &str| -> Result<usize> {
        Ok(vm1.output(&["cat", &format!("/proc/sys/net/netfilter/nf_conntrack_{name}")]).ok()?.parse()?)
    };
    let most = number("max")?;
    let [first, low, high] = [9999 - most / 64_000, 1000, 65_000].map(|number| number.to_string());
    let ports = [first.as_str(), "9999", &low, &high];
    crowd.output(&[&["python3", "-c", FLOOD, &to, &mac, &own], &ports[..]].concat()).ok()?;
    let used = number("count")?;
    ensure!(used > most / 100 * 99, "{used} of {most} is not full");
    let answers = client.answers(&cluster.urls(8088)[0], 20)?;
    ensure!(answers == [("web2".to_owned(), 20)].into(), "while the table is full: {answers:?}");
    let found = names(vm1, &[("conntrack", "")])?;
    let result = field(&found[0], "result");
    ensure!(
        field(&found[0], "place") == "vm1" && result.contains(&format!("of them by {own}")),
        "{found:#?}"
    );
    ensure!(result.contains("for want of room") && !result.contains("and 0 connections"), "{result}");
    vm1.output(&["python3", "-c", FORGET]).ok()?;
    healthy(cluster)
}

/// Deletes all that is tracked in a namespace (`IPCTNL_MSG_CT_DELETE`).
const FORGET: &str = "import socket
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
s.send(bytes([20, 0, 0, 0, 2, 1, 5, 0, 1] + [0] * 11))
assert s.recv(4096)[16:20] == bytes(4)";

/// The same troubles where the nodes know each other by IPv6 addresses only; and a clock that is a minute ahead, then a few
/// seconds, then right.
#[test]
fn what_is_wrong_over_an_underlay_of_ipv6() {
    scenario("doctor: ipv6", |lab: &Lab| {
        let (vm1, vm2, vm3) = (lab.host("vm1")?, lab.host("vm2")?, lab.host("vm3")?);
        let clock = Clock::of(&vm2, "+60")?;
        let daemons: Vec<Meshd> = vec![vm1.meshd()?, clock.meshd()?, vm3.meshd()?];
        let cluster = Cluster::of_over_ipv6(daemons)?;
        let _resolver = lab.resolver()?;
        let _containers = blue(&cluster)?;

        let found = names(&vm1, &[("clocks", "vm2")])?;
        ensure!(field(&found[0], "result").contains("s ahead of that of vm1"), "{found:#?}");
        names(&vm2, &[("clocks", "vm1"), ("clocks", "vm3")])?;
        clock.set("+5")?;
        within(SHOWS, "some seconds are a warning", || {
            let warnings = names(&vm1, &[])?;
            ensure!(warnings.len() == 1 && field(&warnings[0], "check") == "clocks", "{warnings:#?}");
            Ok(())
        })?;
        clock.set("+0")?;
        healthy(&cluster)?;

        drop_incoming(&vm2, "udp dport 4789")?;
        let found = names(&vm1, &[("vxlan-port", "vm2")])?;
        ensure!(field(&found[0], "remedy").contains("let udp 4789 pass"), "{found:#?}");
        no_trouble(&vm2)?;
        drop_incoming(&vm3, "udp dport 7443")?;
        names(&vm1, &[("membership-port", "vm3")])?;
        no_trouble(&vm3)?;
        drop_incoming(&vm1, &format!("ip6 saddr {} tcp dport 7443", vm2.ip6()))?;
        names(&vm2, &[("managers", "vm1"), ("managers", "")])?;
        no_trouble(&vm1)?;
        healthy(&cluster)?;

        lab.switch("sysctl -qw net.bridge.bridge-nf-call-ip6tables=0")?;
        lab.switch("ip link set vm2 mtu 1400")?;
        let found = names(&vm1, &[("mtu", "vm2")])?;
        let result = field(&found[0], "result");
        ensure!(result.contains("1430 bytes (1500 on the underlay)"), "{found:#?}");
        lab.switch("ip link set vm2 mtu 1500")?;
        healthy(&cluster)?;

        let twin = lab.client("twin")?;
        shell(&twin, &format!("ip address add {}/64 dev eth0 nodad", vm2.ip6()))?;
        within(SHOWS, "vm1 finds both", || {
            let (_, findings) = doctor(&vm1, &[])?;
            let of_vm2 = |f: &&Value| field(f, "check") == "underlay-address" && field(f, "peer") == "vm2";
            let found = findings.iter().find(of_vm2).with_context(|| format!("{:#?}", bad(&findings)))?;
            ensure!(field(found, "result").contains("is on two machines"), "{found:#}");
            Ok(())
        })?;
        shell(&twin, &format!("ip address del {}/64 dev eth0", vm2.ip6()))?;
        for host in [&vm1, &vm3] {
            shell(host, "ip neighbour flush dev eth0")?;
        }
        healthy(&cluster)
    });
}
