//! What must hold while the data plane comes, goes and meets hosts that others have configured.

use crate::lab::{Lab, Space};
use mesh_net::{Pass, desired};
use nix::sched::{CloneFlags, unshare};
use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

/// Pings a hundred times a second until it is asked for the outcome.
struct Pings(Child);

impl Pings {
    fn start(space: &Space, address: &str) -> Self {
        let start = || {
            Command::new("ping")
                .args(["-n", "-i", "0.01", address])
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
        };
        Self(space.within(start).expect("ping is needed"))
    }

    /// Sent and answered; those still under way when it ended count as answered.
    fn outcome(self) -> (u32, u32) {
        let pid = nix::unistd::Pid::from_raw(self.0.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("ping runs");
        let output = self.0.wait_with_output().expect("ping ends");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text
            .lines()
            .find(|line| line.contains("transmitted"))
            .unwrap_or_else(|| panic!("no summary: {text}"));
        let mut numbers = line.split(", ").filter_map(|part| part.split(' ').next()?.parse().ok());
        (numbers.next().expect("sent"), numbers.next().expect("received"))
    }
}

#[test]
fn nothing_flaps_when_the_data_plane_restarts() {
    let mut lab = Lab::new(2, false);
    lab.network(1);
    let [one, two] = [lab.container(0, 1, 11), lab.container(1, 1, 12)];
    lab.service(1, &[two], Some(8080));
    lab.reconcile(Pass::Changed);
    let pings: Vec<Pings> = ["10.1.0.12", "fd1::12", "10.1.0.100", "fd1::100"]
        .into_iter()
        .map(|to| {
            lab.in_container(one).reaches(to);
            Pings::start(lab.in_container(one), to)
        })
        .collect();
    // Ten times at least, and for as long as some pings take: a pass is quicker than that.
    let (started, mut restarts) = (Instant::now(), 0);
    while restarts < 10 || started.elapsed() < Duration::from_secs(1) {
        for host in &mut lab.hosts {
            host.forget();
        }
        assert_eq!(lab.reconcile(Pass::Full), 0);
        restarts += 1;
    }
    for pings in pings {
        let (sent, received) = pings.outcome();
        assert!(sent > 10 && sent - received <= 1, "{received} of {sent} were answered");
    }
}

#[test]
fn the_first_packet_after_an_attachment_arrives() {
    let mut lab = Lab::new(2, false);
    lab.network(1);
    let one = lab.container(0, 1, 11);
    lab.reconcile(Pass::Changed);
    for last in 20..40 {
        let new = lab.container(1, 1, last);
        lab.reconcile(Pass::Changed);
        assert!(lab.in_container(one).pings(&format!("10.1.0.{last}")), "to {last}");
        assert!(lab.in_container(new).pings("fd1::11"), "from {last}");
    }
}

#[test]
fn hosts_and_containers_may_have_ipv6_switched_off() {
    let mut lab = Lab::new(2, false);
    lab.network(1);
    let [one, two] = [lab.container(0, 1, 11), lab.container(1, 1, 12)];
    let off = [
        "net.ipv6.conf.all.disable_ipv6=1",
        "net.ipv6.conf.default.disable_ipv6=1",
        "net.ipv4.conf.all.rp_filter=1",
    ];
    let everywhere = lab.hosts.iter().map(|host| &host.space).chain(lab.containers.values());
    everywhere
        .for_each(|space| off.iter().for_each(|setting| drop(space.ok(&format!("sysctl -q {setting}")))));
    lab.reconcile(Pass::Changed);
    assert_eq!(lab.reconcile(Pass::Full), 0);
    lab.in_container(one).reaches("10.1.0.12");
    lab.in_container(two).reaches("fd1::11");
    lab.in_container(one).reaches("10.77.0.11");
}

#[test]
fn a_target_may_be_on_more_networks_and_internal_ones_lead_nowhere() {
    let mut lab = Lab::new(2, false);
    let [_, _, internal] = [1, 2, 3].map(|number| lab.network(number));
    Arc::make_mut(lab.snapshot.networks.get_mut(&internal).expect("a network")).internal = true;
    let shared = lab.container(0, 3, 11);
    let target = lab.snapshot.endpoints[&shared].clone();
    for (network, ifname) in [(1, "eth1"), (2, "eth2")] {
        let also = lab.container(0, network, 11);
        lab.change(also, |endpoint| {
            endpoint.target = target.target.clone();
            endpoint.namespace_inode = target.namespace_inode;
            endpoint.ifname = ifname.into();
        });
    }
    let peers = [lab.container(1, 1, 12), lab.container(1, 2, 12), lab.container(1, 3, 12)];
    lab.reconcile(Pass::Changed);
    assert_eq!(lab.reconcile(Pass::Full), 0);
    let space = lab.in_container(shared);
    for network in 1..=3 {
        space.reaches(&format!("10.{network}.0.12"));
        space.reaches(&format!("fd{network}::12"));
    }
    assert!(space.ip("route show default").contains("eth1"));
    assert_eq!(lab.in_container(peers[2]).ip("route show default"), "");
    // The other network takes the default route over when the first goes.
    let first =
        lab.snapshot.endpoints.values().find(|endpoint| endpoint.ifname == "eth1").expect("an endpoint").id;
    lab.snapshot.endpoints.remove(&first);
    // What is in a target is seen on full passes.
    let Lab { hosts, snapshot, .. } = &mut lab;
    for pass in [Pass::Changed, Pass::Full] {
        hosts.iter_mut().for_each(|host| drop(host.reconcile(snapshot, pass)));
    }
    assert!(lab.in_container(shared).ip("route show default").contains("eth2"));
    assert_eq!(lab.reconcile(Pass::Full), 0);
}

#[test]
fn the_host_does_not_become_a_router_for_what_it_had_before() {
    let mut lab = Lab::new(1, false);
    lab.network(1);
    let inner = Space::new("inner");
    let host = &lab.hosts[0].space;
    host.ip(&format!("link add eth1 type veth peer name eth0 netns {}", inner.path().display()));
    host.ip("addr add 10.88.0.1/24 dev eth1");
    host.ip("link set eth1 up");
    inner.ip("addr add 10.88.0.2/24 dev eth0");
    inner.ip("link set eth0 up");
    inner.ip("route add default via 10.88.0.1");
    let neighbour = lab.plug("neighbour", 100);
    neighbour.ip("route add 10.88.0.0/24 via 10.77.0.11");
    let container = lab.container(0, 1, 11);
    lab.reconcile(Pass::Changed);
    // The overlay is routed out, to both sides of the host: only they are not joined.
    lab.in_container(container).reaches("10.77.0.100");
    lab.in_container(container).reaches("10.88.0.2");
    assert!(!neighbour.pings("10.88.0.2"));
    // Also when somebody turns forwarding off, and after a restart, which finds the host forwarding.
    lab.hosts[0].space.ok("sysctl -q net.ipv4.ip_forward=0");
    std::fs::remove_file(lab.hosts[0].run_dir.join("forwarding")).expect("it is remembered");
    lab.reconcile(Pass::Full);
    lab.in_container(container).reaches("10.77.0.100");
    assert!(!neighbour.pings("10.88.0.2"));
    lab.hosts[0].forget();
    lab.reconcile(Pass::Full);
    assert!(!neighbour.pings("10.88.0.2"));
}

#[test]
fn a_failed_network_is_taken_away_and_said() {
    let mut lab = Lab::new(1, false);
    let network = lab.network(1);
    let endpoint = lab.container(0, 1, 11);
    lab.hosts[0].space.ip("link add taken type vxlan id 4097 dstport 4789 local 10.77.0.11");
    let snapshot = lab.snapshot.clone();
    let report = lab.hosts[0].try_reconcile(&snapshot, Pass::Changed);
    let owners: Vec<_> = report.failures.iter().map(|failure| failure.owner).collect();
    assert_eq!(owners, [desired::Owner::Network(network), desired::Owner::Endpoint(endpoint)], "{report:?}");
    assert!(report.failures[0].error.to_string().contains("give the network another VNI"), "{report:?}");
    assert!(!mesh_net::netns::namespace_of(&lab.hosts[0].run_dir, network).exists());
    assert!(!lab.hosts[0].space.ip("-br link").contains("up4097"));
    lab.hosts[0].space.ip("link del taken");
    lab.reconcile(Pass::Changed);
    lab.in_container(endpoint).reaches("10.1.0.1");
}

/// What the host has of its own, in forms that come close to the mesh's.
fn of_others(host: &Space) -> String {
    let looked = [
        "ip -br link show dev up7",
        "ip -br addr show dev up7",
        "ip route show proto static",
        "ip rule show table 77",
        "ip neigh show dev up7",
        "nft list table ip mesh",
        "nft list table inet meshd",
        "bridge link show dev up7",
        "ip -br link show dev br0",
    ];
    looked.map(|command| host.ok(command)).concat()
}

#[test]
fn what_others_made_is_left_alone_and_orphans_go() {
    let mut lab = Lab::new(1, false);
    let network = lab.network(1);
    let container = lab.container(0, 1, 11);
    let host = &lab.hosts[0].space;
    // An interface of the name that network 7 would have, a table and a bridge of names that meshd uses elsewhere.
    for command in [
        "ip link add br0 type bridge",
        "ip link add up7 type veth peer name up8",
        "ip link set up7 master br0",
        "ip link set up7 up",
        "ip addr add 10.99.0.1/24 dev up7",
        "ip neigh add 10.99.0.9 lladdr 02:00:00:00:00:09 dev up7",
        "ip route add 10.98.0.0/24 via 10.77.0.100 proto static",
        "ip rule add from 10.99.0.0/24 lookup 77",
        "nft add table ip mesh",
        "nft add table inet meshd",
        "nft add set inet meshd kept { type ipv4_addr; }",
    ] {
        host.ok(command);
    }
    let before = of_others(host);
    lab.reconcile(Pass::Changed);
    // An earlier life had a network that is none any more.
    let orphan = lab.network(9);
    let stray = lab.container(0, 9, 19);
    lab.reconcile(Pass::Changed);
    lab.in_container(stray).reaches("10.9.0.1");
    lab.hosts[0].forget();
    lab.snapshot.networks.remove(&orphan);
    lab.snapshot.endpoints.remove(&stray);
    lab.reconcile(Pass::Changed);
    assert!(!mesh_net::netns::namespace_of(&lab.hosts[0].run_dir, orphan).exists());
    let links = lab.hosts[0].space.ip("-br link");
    assert!(!links.contains("up4105") && !lab.in_container(stray).ip("-br link").contains("eth0"), "{links}");

    lab.hosts[0].overlay(network).ip("link del br0");
    lab.reconcile(Pass::Full);
    lab.in_container(container).reaches("10.1.0.1");
    let report = lab.hosts[0].clear();
    assert!(report.failures.is_empty(), "{report:?}");
    assert_eq!(of_others(&lab.hosts[0].space), before);
}

/// Somebody takes a network's namespace from its place while a socket still holds it: its links are not left to stand in
/// the way of the new ones.
#[test]
fn a_namespace_that_is_lost_is_made_anew_at_once() {
    let mut lab = Lab::new(2, false);
    let network = lab.network(1);
    let [one, _] = [lab.container(0, 1, 11), lab.container(1, 1, 12)];
    lab.reconcile(Pass::Changed);
    let held = lab.hosts[0].overlay(network).within(|| std::net::UdpSocket::bind("10.1.0.1:53"));
    let path = mesh_net::netns::namespace_of(&lab.hosts[0].run_dir, network);
    for and_the_file in [false, true] {
        nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).expect("it is mounted");
        if and_the_file {
            std::fs::remove_file(&path).expect("a file");
        }
        lab.reconcile(Pass::Full);
        assert_eq!(lab.reconcile(Pass::Full), 0);
        lab.in_container(one).reaches("10.1.0.12");
        lab.in_container(one).reaches("fd1::12");
    }
    drop(held);
}

/// A full table of open files says nothing of what lives: namespaces and containers stay as they are.
#[test]
fn who_can_open_no_files_takes_nothing_away() {
    let mut lab = Lab::new(2, false);
    lab.network(1);
    let [one, _] = [lab.container(0, 1, 11), lab.container(1, 1, 12)];
    lab.reconcile(Pass::Changed);
    lab.in_container(one).reaches("10.1.0.12");
    let snapshot = lab.snapshot.clone();
    // Of this thread alone: other tests go on.
    unshare(CloneFlags::CLONE_FILES).expect("root is needed");
    for free in 0..12 {
        let report = lab.hosts[0].reconcile_with_files(&snapshot, free);
        assert_eq!(report.vanished, [], "with {free} files");
        assert!(free > 0 || !report.failures.is_empty(), "it can't have looked");
    }
    assert_eq!(lab.reconcile(Pass::Full), 0);
    assert!(lab.in_container(one).pings("10.1.0.12"));
}
