//! Frames that leave a node with its own address, though VXLAN did not send them: from what the host forwards and
//! translates, and from its users. Other nodes can't tell them from real ones, so that none may get out.

use crate::{
    attacks::{Scene, Sniffer, hex, send},
    lab::{Lab, Space, address, wait_until},
};
use mesh_model::NodeId;
use mesh_net::Pass;
use std::{net::UdpSocket, os::unix::process::CommandExt, process::Command};

/// A container of another engine's, behind a bridge of vm2's that bears the host's address outside.
fn behind_a_bridge(lab: &Lab) -> Space {
    let (host, container) = (&lab.hosts[1].space, Space::new("bridged"));
    host.ip(&format!("link add docker0 type veth peer name eth0 netns {}", container.path().display()));
    host.ip("addr add 10.88.0.1/24 dev docker0");
    host.ip("link set docker0 up");
    container.ip("addr add 10.88.0.2/24 dev eth0");
    container.ip("link set eth0 up");
    container.ip("route add default via 10.88.0.1");
    host.ok("nft add table ip docker");
    host.ok("nft add chain ip docker out { type nat hook postrouting priority 100; }");
    host.ok("nft add rule ip docker out ip saddr 10.88.0.0/24 masquerade");
    container.reaches("10.77.0.11");
    container
}

/// Sends one datagram to vm1's VXLAN port, as a user of vm2.
fn send_as(user: u32, host: &Space, datagram: &[u8]) -> bool {
    const SCRIPT: &str = "import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(bytes.fromhex(sys.argv[1]), ('10.77.0.11', 4789))";
    let datagram: String = datagram.iter().map(|byte| format!("{byte:02x}")).collect();
    let sent = || Command::new("python3").args(["-c", SCRIPT, &datagram]).uid(user).output();
    host.within(sent).expect("python3 is needed").status.success()
}

#[test]
fn nothing_but_vxlan_sends_frames_with_a_nodes_address() {
    const NOBODY: u32 = 65534;
    let mut scene = Scene::new();
    scene.lab.network(2);
    scene.lab.container(1, 2, 14);
    scene.lab.reconcile(Pass::Changed);
    let bridged = behind_a_bridge(&scene.lab);
    let attack = |scene: &Scene| -> Vec<&'static str> {
        let sniffer = Sniffer::start(scene.lab.in_container(scene.victim));
        let socket = bridged.within(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
        socket
            .send_to(&scene.capsule("through the bridge"), (address("10.77.0.11"), 4789))
            .expect("it is sent");
        send_as(NOBODY, &scene.lab.hosts[1].space, &scene.capsule("from a user"));
        // Over the same links.
        bridged.reaches("10.77.0.11");
        send(scene.lab.in_container(scene.attacker), &[scene.marked()]);
        let seen = sniffer.finish();
        let came = |word: &&str| seen.iter().any(|frame| frame.contains(&hex(word)));
        ["through the bridge", "from a user"].into_iter().filter(came).collect()
    };
    assert_eq!(attack(&scene), [""; 0]);
    // Users go on sending whatever else they like, and root does what it likes.
    assert!(send_as(NOBODY, &scene.lab.hosts[1].space, b"a VXLAN of somebody else's"));
    // The attacks are real ones, and each is stopped by what is meant to.
    scene.lab.hosts[1].space.ok("nft flush chain ip meshd sent");
    wait_until("the user gets in", || attack(&scene) == ["from a user"]);
    scene.lab.reconcile(Pass::Full);
    scene.lab.hosts[1].space.ok("nft flush chain ip meshd forward");
    wait_until("the container gets in", || attack(&scene) == ["through the bridge"]);
    scene.lab.reconcile(Pass::Full);
    assert_eq!(attack(&scene), [""; 0]);
}

/// A member may be the router between others: what they send to each other passes it, with their own addresses.
#[test]
fn a_member_that_is_a_router_forwards_frames_of_others() {
    let mut lab = Lab::new(3, false);
    lab.network(1);
    let router = &lab.hosts[1].space;
    for setting in ["ipv4.ip_forward=1", "ipv4.conf.all.send_redirects=0", "ipv4.conf.eth0.send_redirects=0"]
    {
        router.ok(&format!("sysctl -q net.{setting}"));
    }
    for (host, other) in [(0, 13), (2, 11)] {
        lab.hosts[host].space.ip(&format!("route add 10.77.0.{other}/32 via 10.77.0.12"));
    }
    let [one, _, three] = [(0, 11), (1, 12), (2, 13)].map(|(host, last)| lab.container(host, 1, last));
    lab.reconcile(Pass::Changed);
    lab.in_container(one).reaches("10.1.0.13");
    lab.in_container(three).reaches("fd1::11");
    // That is the way which they take, and it is open to members only.
    let removed = NodeId::from_bits(1);
    let mut without = lab.snapshot.clone();
    without.nodes.remove(&removed);
    lab.hosts[1].reconcile(&without, Pass::Changed);
    assert!(!lab.in_container(one).pings("10.1.0.13"));
    lab.reconcile(Pass::Changed);
    lab.in_container(one).reaches("10.1.0.13");
}
