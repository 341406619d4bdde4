//! The data plane from outside: hosts on a LAN, containers on overlays, packets between them. Needs root.

mod attacks;
mod elsewhere;
mod lab;
mod life;
mod lost;
mod options;
mod partings;
mod passages;
mod smuggling;
mod unruly;
mod vip;

use lab::{Lab, address, ask, echo_datagrams, echo_streams, serve, wait_until};
use mesh_model::{Balance, NodeStatus, Protocol};
use mesh_net::{Error, PROBE_PORT, Pass, desired};
use socket2::{Domain, Socket};
use std::{
    cell::Cell,
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

fn two_containers(ipv6_underlay: bool) -> (Lab, [mesh_model::EndpointId; 2]) {
    let mut lab = Lab::new(2, ipv6_underlay);
    lab.network(1);
    let ends = [lab.container(0, 1, 11), lab.container(1, 1, 12)];
    lab.reconcile(Pass::Changed);
    (lab, ends)
}

#[test]
fn containers_on_two_hosts_reach_each_other_in_both_families_over_both() {
    for ipv6_underlay in [false, true] {
        let (lab, [one, two]) = two_containers(ipv6_underlay);
        for (from, last) in [(one, 12), (two, 11)] {
            let from = lab.in_container(from);
            from.reaches(&format!("10.1.0.{last}"));
            from.reaches(&format!("fd1::{last}"));
            from.reaches("10.1.0.1");
            from.reaches("fd1::1");
        }
    }
}

#[test]
fn a_new_data_plane_adopts_what_is_there() {
    let (mut lab, _) = two_containers(false);
    for pass in [Pass::Changed, Pass::Full] {
        assert_eq!(lab.reconcile(pass), 0, "{pass:?}");
    }
    for host in &mut lab.hosts {
        host.forget();
    }
    assert_eq!(lab.reconcile(Pass::Changed), 0);
}

#[test]
fn a_vip_answers_ping_and_spreads_connections_over_hosts() {
    let (mut lab, [one, two]) = two_containers(false);
    let client = lab.container(0, 1, 20);
    lab.service(1, &[one, two], None);
    lab.reconcile(Pass::Changed);
    serve(lab.in_container(one));
    serve(lab.in_container(two));
    let client = lab.in_container(client);
    client.reaches("10.1.0.100");
    client.reaches("fd1::100");
    for vip in ["10.1.0.100:80", "[fd1::100]:80"] {
        let mut served: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..20 {
            let (name, seen) = ask(client, vip).expect("the VIP answers");
            *served.entry(name).or_default() += 1;
            assert!([address("10.1.0.20"), address("fd1::20")].contains(&seen), "{seen}");
        }
        assert_eq!(served.into_values().collect::<Vec<_>>(), [10, 10], "{vip} takes turns");
    }
    // A replica that asks its own service reaches all, itself too.
    for _ in 0..4 {
        ask(lab.in_container(one), "10.1.0.100:80").expect("the VIP answers a replica");
        ask(lab.in_container(one), "[fd1::100]:80").expect("the VIP answers a replica");
    }
}

#[test]
fn a_published_port_answers_on_every_host_and_replicas_see_the_client() {
    for ipv6_underlay in [false, true] {
        let mut lab = Lab::new(3, ipv6_underlay);
        lab.network(1);
        let replicas = [lab.container(0, 1, 11), lab.container(1, 1, 12)];
        lab.service(1, &replicas, Some(8080));
        lab.reconcile(Pass::Changed);
        replicas.iter().for_each(|replica| serve(lab.in_container(*replica)));
        let client = lab.plug("client", 100);
        for host in 11..=13 {
            for (to, own) in [
                (format!("10.77.0.{host}:8080"), "10.77.0.100"),
                (format!("[fd77::{host}]:8080"), "fd77::100"),
            ] {
                let mut served = BTreeMap::new();
                for _ in 0..6 {
                    let (name, seen) = ask(&client, &to).unwrap_or_else(|e| panic!("{to}: {e}"));
                    assert_eq!(seen, address(own), "{to}");
                    *served.entry(name).or_insert(0) += 1;
                }
                assert_eq!(served.into_values().collect::<Vec<_>>(), [3, 3], "{to} takes turns");
            }
        }
        // The host's own clients.
        ask(&lab.hosts[2].space, "10.77.0.13:8080").expect("the host reaches its own port");
    }
}

#[test]
fn a_change_of_backends_refuses_no_connection() {
    refuses_no_connection(Balance::Roundrobin);
}

#[test]
fn a_change_of_backends_that_share_their_chain_refuses_no_connection() {
    refuses_no_connection(Balance::Random);
}

fn refuses_no_connection(balance: Balance) {
    const CHANGES: usize = 400;
    let mut lab = Lab::new(2, false);
    lab.network(1);
    let replicas = [lab.container(0, 1, 11), lab.container(1, 1, 12), lab.container(1, 1, 13)];
    let service = lab.service(1, &replicas, Some(8080));
    Arc::make_mut(lab.snapshot.services.get_mut(&service).expect("a service")).balance = balance;
    lab.reconcile(Pass::Changed);
    replicas.iter().for_each(|replica| serve(lab.in_container(*replica)));
    let (client, own) = (lab.plug("client", 100), lab.container(0, 1, 20));
    lab.reconcile(Pass::Changed);
    let node = lab.hosts[1].node.id;
    let Lab { hosts, snapshot, containers, .. } = &mut lab;
    let container = &containers[&own];
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let ask_on = |space, to| {
            let done = &done;
            scope.spawn(move || {
                let mut asked = 0;
                while !done.load(Ordering::Relaxed) {
                    ask(space, to).unwrap_or_else(|e| panic!("{to}: request {asked}: {e}"));
                    asked += 1;
                }
                asked
            })
        };
        let asking = [ask_on(&client, "10.77.0.11:8080"), ask_on(container, "10.1.0.100:80")];
        for change in 0..CHANGES {
            let status = if change % 2 == 0 { NodeStatus::Suspect } else { NodeStatus::Ready };
            snapshot.status.insert(node, status);
            hosts[0].reconcile(snapshot, Pass::Changed);
        }
        done.store(true, Ordering::Relaxed);
        for asked in asking {
            assert!(asked.join().expect("no request is refused") > 0);
        }
    });
}

#[test]
fn a_client_uses_one_port_towards_every_host() {
    let mut lab = Lab::new(3, false);
    lab.network(1);
    let replica = lab.container(0, 1, 11);
    let service = lab.service(1, &[replica], Some(8080));
    let service = lab.snapshot.services.get_mut(&service).map(Arc::make_mut).expect("a service");
    service.ports[0].protocol = Protocol::Udp;
    lab.reconcile(Pass::Changed);
    echo_datagrams(lab.in_container(replica));
    let client = lab.plug("client", 100).within(|| UdpSocket::bind("10.77.0.100:0")).expect("a socket");
    client.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    // For the replica's node it is one flow, and each answer goes back by the node that the last question came by.
    for host in [12, 11, 13, 11, 12] {
        let host: SocketAddr = format!("10.77.0.{host}:8080").parse().expect("an address");
        wait_until(&format!("{host} answers"), || {
            let answered = client.send_to(b"?", host).and_then(|_| client.recv_from(&mut [0; 8]));
            answered.is_ok_and(|(_, from)| from == host)
        });
    }
}

/// Connections of one client port to every host, all to one replica: they live side by side.
#[test]
fn connections_of_one_port_to_several_hosts_do_not_meet() {
    let mut lab = Lab::new(3, false);
    lab.network(1);
    let replica = lab.container(0, 1, 11);
    lab.service(1, &[replica], Some(8080));
    lab.reconcile(Pass::Changed);
    echo_streams(lab.in_container(replica));
    let client = lab.plug("client", 100);
    wait_until("the replica answers", || client.within(|| TcpStream::connect("10.77.0.11:8080")).is_ok());
    let connect = |port: u16, host: u8| {
        let socket = Socket::new(Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option");
        socket.bind(&SocketAddr::from(([10, 77, 0, 100], port)).into()).expect("the port");
        socket.connect(&SocketAddr::from(([10, 77, 0, host], 8080)).into()).expect("a connection");
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        stream
    };
    let mut echoes = |stream: &mut TcpStream| {
        stream.write_all(b"?").expect("it takes data");
        stream.read_exact(&mut [0]).expect("it answers");
    };
    client.within(|| {
        for (port, hosts) in [(40_000, [11, 12, 13]), (40_001, [13, 12, 11]), (40_002, [12, 11, 13])] {
            let mut open = Vec::new();
            for host in hosts {
                open.push(connect(port, host));
                open.iter_mut().for_each(&mut echoes);
            }
        }
    });
}

#[test]
fn what_is_removed_leaves_nothing() {
    let (mut lab, [one, two]) = two_containers(false);
    lab.snapshot.endpoints.remove(&one);
    lab.reconcile(Pass::Changed);
    let (gone, host) = (lab.in_container(one), &lab.hosts[0]);
    assert!(!gone.ip("-br link").contains("eth0"));
    assert!(!host.space.ip("-br link").contains("up4097"));
    assert!(
        !mesh_net::netns::directory(&host.run_dir).read_dir().is_ok_and(|mut files| files.next().is_some())
    );
    assert_eq!(host.space.ip("route show proto 109"), "");

    let report = lab.hosts[1].clear();
    assert!(report.failures.is_empty(), "{report:?}");
    let host = &lab.hosts[1].space;
    assert!(!lab.in_container(two).ip("-br link").contains("eth0"));
    assert_eq!(host.ok("nft list ruleset"), "");
    assert_eq!(host.ok("cat /proc/sys/net/ipv4/ip_forward").trim(), "0");
}

#[test]
fn drift_is_repaired_by_a_full_pass() {
    let (mut lab, [one, _]) = two_containers(false);
    let network = *lab.snapshot.networks.keys().next().expect("a network");
    let damages = [
        "ip link del br0",
        "ip link del vx4097",
        "ip link del up0",
        "ip addr flush dev br0",
        "ip neigh flush nud permanent dev vx4097",
        "ip rule flush",
        "ip link set br0 down",
        "nft flush ruleset",
        "sysctl -q net.ipv4.ip_forward=0",
    ];
    for damage in damages {
        lab.hosts[0].overlay(network).ok(damage);
        lab.reconcile(Pass::Full);
        assert_eq!(lab.reconcile(Pass::Full), 0, "{damage}");
        lab.in_container(one).reaches("10.1.0.12");
        lab.in_container(one).reaches("fd1::12");
        let overlay = lab.hosts[0].overlay(network);
        assert!(overlay.ok("nft list ruleset").contains("table bridge mesh"), "{damage}");
    }
    let port = desired::port(one);
    lab.hosts[0].overlay(network).ip(&format!("link del {port}"));
    lab.reconcile(Pass::Full);
    lab.in_container(one).reaches("10.1.0.12");
    lab.hosts[0].space.ip("link del up4097");
    lab.hosts[0].space.ok("nft flush ruleset");
    lab.reconcile(Pass::Full);
    assert!(lab.hosts[0].space.ok("nft list ruleset").contains("table ip6 meshd"));
    assert_eq!(lab.reconcile(Pass::Full), 0);
}

/// A full pass reads the networks in which the kernel says that something has changed, and what it says nothing of.
#[test]
fn a_full_pass_reads_what_has_changed() {
    let mut lab = Lab::new(2, false);
    let networks = [lab.network(1), lab.network(2)];
    let [one, two] = [lab.container(0, 1, 11), lab.container(0, 2, 11)];
    lab.container(1, 1, 12);
    let replica = lab.container(1, 2, 12);
    lab.service(2, &[replica], Some(8080));
    lab.reconcile(Pass::Changed);
    let [passes, all] = [Cell::new(0), Cell::new(0)];
    let read = |lab: &mut Lab| {
        let Lab { hosts, snapshot, .. } = lab;
        let report = hosts[0].reconcile(snapshot, Pass::Full);
        // Now and then everything is read.
        passes.set(passes.get() + 1);
        all.set(all.get() + usize::from(report.overlays_read == 2));
        [report.overlays_read % 2, report.steps, report.firewalls]
    };
    // What links said of themselves as they came up is heard.
    wait_until("nothing changes any more", || read(&mut lab) == [0, 0, 0]);
    let port = desired::port(two);
    let in_overlay = [
        "ip link del br0",
        "ip link set br0 down",
        "ip addr del fd2::100/128 dev br0",
        "ip addr add 10.2.0.99/32 dev br0",
        "ip neigh del 10.2.0.12 dev vx4098",
        "ip neigh replace 10.2.0.12 lladdr 02:00:00:00:00:01 dev br0 nud permanent",
        "bridge fdb append 02:00:00:00:00:01 dev vx4098 dst 10.77.0.13 self",
        "ip rule flush",
        "ip route del default",
        "ip -6 route add fd99::/64 via fe80::1 dev up0 proto 109",
        &format!("bridge link set dev {port} learning on"),
        &format!("ip link set {port} netns 1"),
    ];
    for damage in in_overlay {
        lab.hosts[0].overlay(networks[1]).ok(damage);
        let [overlays, steps, _] = read(&mut lab);
        assert!(overlays == 1 && steps > 0, "{damage}: {overlays} overlays read, {steps} steps");
        wait_until("what was mended is heard", || read(&mut lab) == [0, 0, 0]);
        assert_eq!(lab.hosts[0].inspect(&lab.snapshot), [] as [String; 0], "{damage}");
        lab.in_container(two).reaches("10.2.0.100");
    }
    // Of the rest the kernel says nothing here.
    let overlay = lab.hosts[0].overlay(networks[1]);
    let elsewhere = [
        (0, "sysctl -q net.ipv4.ip_forward=0", false),
        (0, "nft flush ruleset", true),
        (1, "ip route flush proto 109", false),
        (1, "nft delete table ip meshd", true),
        (2, "ip addr flush dev eth0 scope global", false),
        (3, "ip route del default", false),
    ];
    for (place, damage, of_firewall) in elsewhere {
        [&overlay, &lab.hosts[0].space, lab.in_container(one), lab.in_container(two)][place].ok(damage);
        let [overlays, steps, firewalls] = read(&mut lab);
        let mended = if of_firewall { firewalls } else { steps };
        assert!(overlays == 0 && mended > 0, "{damage}: {overlays} overlays read, {steps} steps");
        wait_until("what was mended is heard", || read(&mut lab) == [0, 0, 0]);
        assert_eq!(lab.hosts[0].inspect(&lab.snapshot), [] as [String; 0], "{damage}");
    }
    assert!(all.get() <= passes.get() / 20 + 2, "{} of {} passes read everything", all.get(), passes.get());
    // A change of the records comes with it.
    lab.hosts[0].overlay(networks[1]).ok("ip neigh del 10.2.0.12 dev br0");
    lab.container(0, 1, 13);
    let new = lab.container(1, 1, 14);
    let [overlays, ..] = read(&mut lab);
    assert_eq!(overlays, 1);
    lab.reconcile(Pass::Full);
    lab.in_container(one).reaches("10.1.0.13");
    lab.in_container(new).reaches("fd1::13");
    lab.in_container(two).reaches("10.2.0.100");
    assert_eq!(lab.hosts[0].inspect(&lab.snapshot), [] as [String; 0]);
}

/// Switches of links are as much part of the overlay as the links are.
#[test]
fn switches_that_others_turned_are_turned_back() {
    let (mut lab, [one, _]) = two_containers(false);
    let network = *lab.snapshot.networks.keys().next().expect("a network");
    let port = desired::port(one);
    let turns = [
        "ip link set vx4097 type vxlan learning".to_owned(),
        "ip link set br0 type bridge stp_state 1".to_owned(),
        "ip link set br0 type bridge mcast_snooping 1".to_owned(),
        "ip link set br0 type bridge group_fwd_mask 0".to_owned(),
        "bridge link set dev vx4097 isolated on".to_owned(),
        "bridge link set dev vx4097 learning on".to_owned(),
        "bridge link set dev vx4097 neigh_suppress on".to_owned(),
        format!("bridge link set dev {port} isolated on"),
        format!("bridge link set dev {port} neigh_suppress on"),
        format!("bridge link set dev {port} learning on"),
        format!("bridge link set dev {port} flood on"),
        format!("bridge link set dev {port} mcast_flood off"),
        format!("bridge link set dev {port} bcast_flood off"),
    ];
    let links = |lab: &Lab| lab.hosts[0].overlay(network).ip("-o link show type vxlan");
    let before = links(&lab);
    for turn in turns {
        lab.hosts[0].overlay(network).ok(&turn);
        assert_eq!(lab.reconcile(Pass::Full), 1, "{turn}");
        assert_eq!(lab.reconcile(Pass::Full), 0, "{turn}");
        // In place: the link is the same.
        assert_eq!(links(&lab), before, "{turn}");
    }
    // One made by somebody else that answers no questions is replaced.
    let overlay = lab.hosts[0].overlay(network);
    overlay.ip("link del vx4097");
    let make = format!(
        "link add vx4097 netns {} type vxlan id 4097 dstport 4789 local 10.77.0.11 nolearning",
        overlay.path().display()
    );
    lab.hosts[0].space.ip(&make);
    lab.reconcile(Pass::Full);
    assert_eq!(lab.reconcile(Pass::Full), 0);
    assert!(overlay.ip("-d link show vx4097").contains("proxy"));
    lab.in_container(one).reaches("10.1.0.12");
}

#[test]
fn what_others_changed_is_named_and_left_for_the_next_pass() {
    let (mut lab, _) = two_containers(false);
    let network = *lab.snapshot.networks.keys().next().expect("a network");
    let Lab { hosts, snapshot, .. } = &mut lab;
    let host = &mut hosts[0];
    // The first look takes note of the tables.
    assert_eq!(host.inspect(snapshot), [""; 0]);
    for (damage, expected) in [
        (
            "bridge fdb replace 02:00:00:00:00:99 dev vx4097 dst 192.0.2.9 self",
            "forwarding entry 02:00:00:00:00:99 via 192.0.2.9 on vx4097 should not be there",
        ),
        ("ip link set br0 mtu 1300", "interface br0 is not as it should be"),
        (
            "sysctl -q net.ipv4.conf.all.send_redirects=1",
            "the setting ipv4/conf/all/send_redirects=0 does not hold",
        ),
        (
            "sysctl -q net.ipv4.conf.all.accept_source_route=1",
            "the setting ipv4/conf/all/accept_source_route=0 does not hold",
        ),
        ("sysctl -q net.ipv4.conf.all.proxy_arp=1", "the setting ipv4/conf/all/proxy_arp=0 does not hold"),
        ("nft flush ruleset", "the nftables tables of the mesh were changed by somebody else"),
    ] {
        host.overlay(network).ok(damage);
        for _ in 0..2 {
            assert_eq!(host.inspect(snapshot), [expected], "{damage}: looking changes nothing");
        }
        host.reconcile(snapshot, Pass::Full);
        assert_eq!(host.inspect(snapshot), [""; 0], "{damage}");
    }
    // Tables of others are theirs.
    host.space.ok("nft add table ip other");
    assert_eq!(host.inspect(snapshot), [""; 0]);
    host.space.ok("nft delete table ip6 meshd");
    assert_eq!(host.inspect(snapshot).len(), 1);
}

#[test]
fn probes_are_taken_from_other_nodes_only() {
    let (lab, ends) = two_containers(false);
    let network = *lab.snapshot.networks.keys().next().expect("a network");
    let [here, there] = [0, 1].map(|host| lab.hosts[host].overlay(network));
    for to in &lab.hosts[0].node.addresses {
        let responder = here.within(|| UdpSocket::bind((*to, PROBE_PORT))).expect("the node's own address");
        responder.set_read_timeout(Some(Duration::from_millis(700))).expect("a timeout");
        let heard = |from: &lab::Space| {
            from.within(|| UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }))
                .and_then(|socket| socket.send_to(b"probe", (*to, PROBE_PORT)))
                .expect("it is sent");
            responder.recv(&mut [0; 8]).is_ok()
        };
        assert!(ends.iter().all(|end| !heard(lab.in_container(*end))), "{to}: a container gets there");
        let own = lab.hosts[1].node.addresses.iter().find(|own| own.is_ipv4() == to.is_ipv4()).expect("one");
        let socket = there.within(|| UdpSocket::bind((*own, 0))).expect("the other node's own address");
        wait_until("another node's probe is heard", || {
            socket.send_to(b"probe", (*to, PROBE_PORT)).expect("it is sent");
            responder.recv(&mut [0; 8]).is_ok()
        });
    }
}

#[test]
fn an_attachment_that_fails_leaves_nothing_and_names_what_is_wrong() {
    let mut lab = Lab::new(1, false);
    lab.network(1);
    let taken = lab.container(0, 1, 11);
    lab.in_container(taken).ip("link add eth0 type bridge");
    let gone = lab.container(0, 1, 12);
    lab.change(gone, |endpoint| endpoint.namespace_inode += 1);
    let file = lab.container(0, 1, 13);
    lab.change(file, |endpoint| endpoint.target = mesh_model::Target::Netns("/etc/hostname".into()));
    let host = lab.container(0, 1, 14);
    let path = lab.hosts[0].space.path();
    lab.change(host, |endpoint| {
        endpoint.target = mesh_model::Target::Netns(path);
        endpoint.namespace_inode = 0;
    });
    let snapshot = lab.snapshot.clone();
    let report = lab.hosts[0].try_reconcile(&snapshot, Pass::Changed);
    let mut vanished = report.vanished.clone();
    vanished.sort();
    assert_eq!(vanished, [gone, file]);
    let errors: Vec<&Error> = report.failures.iter().map(|failure| &failure.error).collect();
    assert!(matches!(errors[..], [Error::HostNamespace { .. }, Error::IfnameTaken { .. }]), "{errors:#?}");
    assert!(
        errors[1].to_string().contains(&lab.in_container(taken).path().display().to_string()),
        "{}",
        errors[1]
    );
    let network = *lab.snapshot.networks.keys().next().expect("a network");
    assert!(!lab.hosts[0].overlay(network).ip("-br link").contains(desired::port(taken).as_str()));
}

#[test]
fn a_target_with_a_default_route_elsewhere_keeps_it() {
    let (mut lab, [one, two]) = two_containers(false);
    let other = lab.container(0, 1, 30);
    let space = lab.in_container(other);
    space.ip("link add docker0 type bridge");
    space.ip("addr add 172.18.0.2/16 dev docker0");
    space.ip("link set docker0 up");
    space.ip("route add default via 172.18.0.1");
    lab.service(1, &[other], Some(8080));
    lab.reconcile(Pass::Changed);
    let space = lab.in_container(other);
    assert!(space.ip("route show default").contains("docker0"));
    assert!(space.ip("-6 route show default").contains("eth0"));
    serve(space);
    let client = lab.plug("client", 100);
    for host in [11, 12] {
        let (_, seen) = ask(&client, &format!("10.77.0.{host}:8080")).expect("the port answers");
        assert_eq!(seen, address("10.77.0.100"));
    }
    space.reaches("10.1.0.12");
    lab.in_container(two).reaches("10.1.0.30");
    lab.in_container(one).reaches("10.1.0.30");
    assert_eq!(lab.reconcile(Pass::Full), 0);
    lab.snapshot.endpoints.remove(&other);
    lab.reconcile(Pass::Changed);
    assert!(!lab.in_container(other).ip("rule").contains("10.1.0.30"));
}

#[test]
fn what_leaves_an_overlay_bears_the_hosts_address() {
    let (lab, [one, _]) = two_containers(false);
    let outside = lab.plug("outside", 100);
    serve(&outside);
    let datagrams = outside.within(|| UdpSocket::bind("[::]:81")).expect("a free port");
    datagrams.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    for (to, own, host) in [("10.77.0.100", "0.0.0.0:0", "10.77.0.11"), ("[fd77::100]", "[::]:0", "fd77::11")]
    {
        let (_, seen) = ask(lab.in_container(one), &format!("{to}:80")).expect("it answers");
        assert_eq!(seen, address(host));
        let sent = lab.in_container(one).within(|| UdpSocket::bind(own)?.send_to(b"?", format!("{to}:81")));
        sent.expect("a way out");
        let (_, seen) = datagrams.recv_from(&mut [0]).expect("a datagram");
        assert_eq!(seen.ip().to_canonical(), address(host));
    }
}

#[test]
fn the_host_is_no_door() {
    let (lab, [one, _]) = two_containers(false);
    let neighbour = lab.plug("neighbour", 100);
    neighbour.ip("route add 10.1.0.0/24 via 10.77.0.11");
    neighbour.ip("route add fd1::/64 via fd77::11");
    // The way exists: what it lacks is the permission.
    lab.in_container(one).reaches("10.77.0.100");
    assert!(!neighbour.pings("10.1.0.11"));
    assert!(!neighbour.pings("fd1::11"));
}
