//! Containers with every right in their own namespace that keep it in motion or fill it: that is their own affair, and stops
//! nobody else's.

use crate::lab::{Lab, Space};
use mesh_net::{Pass, desired::Owner};
use std::{
    io::Write,
    process::{Child, ChildStdin, Command, Stdio},
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
