//! Containers with every right in their own namespace that keep it in motion or fill it: that is their own affair, and stops
//! nobody else's.

use crate::lab::{Lab, Space};
use mesh_net::{Pass, desired::Owner};
use std::{
    io::Write,
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
    thread::{self, JoinHandle},
};

/// `ip -batch`, fed with lines for as long as it lives.
struct Batch {
    ip: Child,
    feeder: Option<JoinHandle<()>>,
}

impl Batch {
    fn start(space: &Space) -> (Self, ChildStdin) {
        let start = || {
            Command::new("ip")
                .args(["-force", "-batch", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
        };
        let mut ip = space.within(start).expect("ip is needed");
        let lines = ip.stdin.take().expect("stdin is piped");
        (Self { ip, feeder: None }, lines)
    }

    /// Repeats lines until it is dropped.
    fn forever(space: &Space, lines: &'static str) -> Self {
        let (mut batch, mut input) = Self::start(space);
        batch.feeder = Some(thread::spawn(move || while input.write_all(lines.as_bytes()).is_ok() {}));
        batch
    }

    /// Runs lines once.
    fn once(space: &Space, lines: impl Iterator<Item = String>) {
        let (mut batch, mut input) = Self::start(space);
        lines.for_each(|line| writeln!(input, "{line}").expect("it reads"));
        drop(input);
        batch.ip.wait().expect("it ends");
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let _ = self.ip.kill();
        let _ = self.ip.wait();
        self.feeder.take().map(JoinHandle::join);
    }
}

/// A listing that takes several parts and changes between any two of them is never consistent.
#[test]
fn a_container_that_keeps_changing_its_addresses_stops_nobody_else() {
    let mut lab = Lab::new(1, false);
    let network = lab.network(1);
    let [unruly, other] = [11, 12].map(|last| lab.container(0, 1, last));
    lab.reconcile(Pass::Changed);
    let many = (0..4000).map(|i| format!("addr add 10.66.{}.{}/32 dev eth0", i / 250, i % 250 + 1));
    Batch::once(lab.in_container(unruly), many);
    let flapper = Batch::forever(
        lab.in_container(unruly),
        "addr add 10.67.0.1/32 dev eth0\naddr del 10.67.0.1/32 dev eth0\n",
    );
    let new = lab.container(0, 1, 13);
    for forgotten in [false, true] {
        // A daemon that starts anew knows nothing of the unruly one, and leaves it alone all the same.
        if forgotten {
            lab.hosts[0].forget();
        }
        lab.hosts[0].overlay(network).ip("link del br0");
        let snapshot = lab.snapshot.clone();
        let report = lab.hosts[0].try_reconcile(&snapshot, Pass::Full);
        assert!(
            report.failures.iter().all(|failure| failure.owner == Owner::Endpoint(unruly)),
            "{:#?}",
            report.failures
        );
        assert_eq!(report.vanished, []);
        lab.in_container(new).reaches("10.1.0.12");
        lab.in_container(other).reaches("10.1.0.1");
        lab.in_container(other).reaches("10.1.0.11");
    }
    drop(flapper);
    lab.reconcile(Pass::Full);
    assert_eq!(lab.reconcile(Pass::Full), 0);
}

/// What a container has besides its interface is not even looked at.
#[test]
fn a_container_full_of_other_things_in_motion_is_read() {
    let mut lab = Lab::new(1, false);
    lab.network(1);
    let full = lab.container(0, 1, 11);
    lab.reconcile(Pass::Changed);
    let space = lab.in_container(full);
    let links = (0..200).map(|i| format!("link add d{i} type bridge"));
    let addresses = (0..4000).map(|i| format!("addr add 10.66.{}.{}/32 dev d0", i / 250, i % 250 + 1));
    let routes = (0..4000).map(|i| format!("route add 10.68.{}.{}/32 dev eth0", i / 250, i % 250 + 1));
    Batch::once(space, links.chain(addresses).chain(routes));
    let _flapper = Batch::forever(
        space,
        "addr add 10.67.0.1/32 dev d0\naddr del 10.67.0.1/32 dev d0\n\
         route add 10.69.0.0/24 dev eth0\nroute del 10.69.0.0/24 dev eth0\n\
         link add dx type bridge\nlink del dx\n",
    );
    for _ in 0..10 {
        assert_eq!(lab.reconcile(Pass::Full), 0);
    }
    lab.in_container(full).ip("addr del 10.1.0.11/24 dev eth0");
    assert!(lab.reconcile(Pass::Full) > 0);
    lab.in_container(full).reaches("10.1.0.1");
}

/// Somebody who may change a container's routes, the container among them, takes what the kernel makes with an address and
/// never again: each is brought back, and the pass fails for nobody.
#[test]
fn routes_that_a_container_flushes_come_back() {
    let mut lab = Lab::new(2, false);
    let [network, internal] = [1, 2].map(|number| lab.network(number));
    Arc::make_mut(lab.snapshot.networks.get_mut(&internal).expect("a network")).internal = true;
    let [one, _, inner, _] = [(0, 1, 11), (1, 1, 12), (0, 2, 11), (1, 2, 12)]
        .map(|(host, network, last)| lab.container(host, network, last));
    lab.reconcile(Pass::Changed);
    let Lab { hosts, containers, snapshot, .. } = &mut lab;
    let overlay = hosts[0].overlay(network);
    let places = [
        (&containers[&one], "eth0", ["10.1.0.12", "fd1::12", "10.77.0.12"].as_slice()),
        (&containers[&inner], "eth0", &["10.2.0.12", "fd2::12"]),
        (&overlay, "br0", &["10.1.0.11", "fd1::11"]),
    ];
    for (space, link, reached) in places {
        let before = space.ip("route") + &space.ip("-6 route");
        for family in ["-4", "-6"] {
            space.ip(&format!("{family} route flush dev {link}"));
        }
        assert!(!reached.iter().any(|to| to.contains('.') && space.pings(to)), "{link}: that is no damage");
        assert!(hosts[0].reconcile(snapshot, Pass::Full).steps > 0);
        assert_eq!(hosts[0].reconcile(snapshot, Pass::Full).steps, 0);
        reached.iter().for_each(|to| space.reaches(to));
        let without_own = |routes: &str| -> Vec<String> {
            routes.lines().filter(|line| !line.starts_with("fe80::")).map(str::to_owned).collect()
        };
        let after = space.ip("route") + &space.ip("-6 route");
        assert_eq!(without_own(&after), without_own(&before));
    }
}

/// A container that makes routes to its subnet itself needs none of ours: that is no failure, which would be told of each pass.
#[test]
fn a_container_may_have_its_own_route_to_its_subnet() {
    let mut lab = Lab::new(2, false);
    lab.network(1);
    let [one, _] = [lab.container(0, 1, 11), lab.container(1, 1, 12)];
    lab.reconcile(Pass::Changed);
    let space = &lab.containers[&one];
    for (family, own) in [("-4", "10.1.0.0/24 dev eth0 metric 1"), ("-6", "fd1::/64 dev eth0 metric 1024")] {
        space.ip(&format!("{family} route flush dev eth0"));
        space.ip(&format!("{family} route add {own}"));
    }
    lab.hosts[0].reconcile(&lab.snapshot, Pass::Full);
    ["10.1.0.12", "fd1::12", "10.77.0.12"].iter().for_each(|to| space.reaches(to));
}

/// Containers that an earlier version attached have the kernel's route to their subnet: that stays, and so does the container.
#[test]
fn addresses_with_a_route_of_the_kernels_are_adopted() {
    let mut lab = Lab::new(2, false);
    lab.network(1);
    let [one, _] = [lab.container(0, 1, 11), lab.container(1, 1, 12)];
    lab.reconcile(Pass::Changed);
    for (address, subnet) in [("10.1.0.11/24", "10.1.0.0/24"), ("fd1::11/64", "fd1::/64")] {
        let space = lab.in_container(one);
        space.ip(&format!("addr del {address} dev eth0"));
        space.ip("-6 route flush dev eth0");
        space.ip(&format!("addr add {address} dev eth0"));
        assert!(lab.reconcile(Pass::Full) > 0);
        assert_eq!(lab.reconcile(Pass::Full), 0);
        let space = lab.in_container(one);
        let family = if subnet.contains(':') { "-6" } else { "-4" };
        assert!(space.ip(&format!("{family} route show {subnet}")).contains("proto kernel"));
        space.reaches("10.1.0.12");
        space.reaches("fd1::12");
    }
}
