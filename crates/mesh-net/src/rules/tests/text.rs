//! Small clusters and their tables, word for word, and as the kernel lists them.

use super::cluster::{add_replica, add_service, cluster, edit, network_id, node_id, published};
use crate::desired::Attachment;
use crate::nft::Table;
use crate::nft::tests::namespace::{in_namespace, list, load, load_text};
use crate::rules::{Local, Rules};
use mesh_model::{
    Balance, EndpointId, Health, Network, Protocol, ProxyProtocol, PublishMode, PublishedPort, ServiceId,
    Snapshot,
};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;

fn host(snapshot: &Snapshot) -> [Table; 2] {
    let closed = BTreeSet::from(["eth0".to_owned(), "wlan0".to_owned()]);
    Rules::new(snapshot, &snapshot.nodes[&node_id(1)]).host(&closed)
}

fn overlay(snapshot: &Snapshot) -> [Table; 3] {
    let network: &Network = &snapshot.networks[&network_id()];
    let rules = Rules::new(snapshot, &snapshot.nodes[&node_id(1)]);
    let elsewhere = Attachment { elsewhere_ipv4: true, ..Attachment::default() };
    let attachments = [(EndpointId::from_bits(14), elsewhere)].into();
    rules.with(Local { queries: NonZeroU32::new(20_000), attachments, ..Local::default() }).overlay(network)
}

/// Three nodes; `web` has two healthy replicas and a sick one, `dns` has none that takes traffic.
fn small() -> Snapshot {
    let mut snapshot = cluster(3);
    let ports = vec![published(80, 8080, Protocol::Tcp)];
    let web = add_service(&mut snapshot, 1, 100, Balance::Roundrobin, ports);
    let ports = vec![published(53, 53, Protocol::Udp), published(53, 53, Protocol::Tcp)];
    let dns = add_service(&mut snapshot, 2, 101, Balance::Roundrobin, ports);
    add_replica(&mut snapshot, web, 1, 11, Health::Healthy);
    add_replica(&mut snapshot, web, 2, 12, Health::Healthy);
    add_replica(&mut snapshot, web, 3, 13, Health::Unhealthy);
    add_replica(&mut snapshot, dns, 1, 14, Health::Starting);
    snapshot
}

/// What follows `name {` up to the line that closes it.
#[track_caller]
fn body<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let start = text.find(&format!("{name} {{\n")).unwrap_or_else(|| panic!("no {name} in\n{text}"));
    text[start..].lines().skip(1).take_while(|line| *line != "\t}").map(str::trim).collect()
}

#[test]
fn the_host_table_word_for_word() {
    let [ip, _] = host(&small());
    let expected = r#"table ip meshd {
	set announcers {
		type ipv4_addr . inet_service
		elements = { 10.78.0.14 . 53 }
	}
	map bound {
		type ipv4_addr . inet_proto . inet_service : verdict
	}
	set closed {
		type ifname
		elements = { "eth0", "wlan0" }
	}
	set connections {
		type inet_proto . inet_service . ipv4_addr
		counter
		elements = { tcp . 53 . 10.78.0.14, tcp . 8080 . 10.78.0.11, tcp . 8080 . 10.78.0.12, tcp . 8080 . 10.78.0.13, udp . 53 . 10.78.0.14 }
	}
	set from_replicas {
		type inet_proto . inet_service . ipv4_addr
		counter
		elements = { tcp . 53 . 10.78.0.14, tcp . 8080 . 10.78.0.11, tcp . 8080 . 10.78.0.12, tcp . 8080 . 10.78.0.13, udp . 53 . 10.78.0.14 }
	}
	set internal {
		type ifname
	}
	set nodes {
		type ipv4_addr
		elements = { 192.0.2.2, 192.0.2.3 }
	}
	set overlays {
		type ifname
		elements = { "up4096" }
	}
	map ports {
		type inet_proto . inet_service : verdict
		elements = { tcp . 80 : goto tcp_80 }
	}
	set refused {
		type inet_proto . inet_service
		elements = { tcp . 53, udp . 53 }
	}
	set refused_bound {
		type ipv4_addr . inet_proto . inet_service
	}
	set same {
		type ifname . ifname
		elements = { "up4096" . "up4096" }
	}
	set senders {
		type ipv4_addr
	}
	set to_replicas {
		type inet_proto . inet_service . ipv4_addr
		counter
		elements = { tcp . 53 . 10.78.0.14, tcp . 8080 . 10.78.0.11, tcp . 8080 . 10.78.0.12, tcp . 8080 . 10.78.0.13, udp . 53 . 10.78.0.14 }
	}
	chain count_connections {
		type nat hook postrouting priority 99; policy accept;
		oifname "up*" ct status & dnat != 0 meta l4proto . th dport . ip daddr @connections
	}
	chain count_received {
		type filter hook prerouting priority -150; policy accept;
		iifname "up*" ct status & dnat != 0 ct direction reply meta l4proto . th sport . ip saddr @from_replicas
	}
	chain count_sent {
		type filter hook postrouting priority 99; policy accept;
		oifname "up*" ct status & dnat != 0 ct direction original meta l4proto . th dport . ip daddr @to_replicas
	}
	chain forward {
		type filter hook forward priority 0; policy accept;
		meta l4proto udp th dport 4789 jump forwarded_frames
		iifname "up*" iifname @internal goto out_of_internal
		oifname @overlays goto into_overlay
		iifname "up*" iifname @overlays ct state & 1 != 0 drop
		iifname @closed oifname @closed drop
	}
	chain forwarded_frames {
		iifname @overlays oifname != @overlays drop
		ip saddr != @nodes jump strange
	}
	chain frames {
		iifname @overlays drop
		ip saddr != @nodes jump strange
	}
	chain frames_in {
		type filter hook prerouting priority -300; policy accept;
		meta l4proto udp th dport 4789 ip saddr @nodes notrack
	}
	chain frames_out {
		type filter hook output priority -300; policy accept;
		meta l4proto udp th dport 4789 ip daddr @nodes notrack
	}
	chain input {
		type filter hook input priority 0; policy accept;
		meta l4proto udp th dport 4789 goto frames
		iifname "up*" iifname @internal goto out_of_internal
		ct state & 8 != 0 ip daddr . meta l4proto . th dport @refused_bound fib daddr type local meta l4proto tcp reject with tcp reset
		ct state & 8 != 0 meta l4proto . th dport @refused fib daddr type local meta l4proto tcp reject with tcp reset
		meta l4proto udp ip daddr . meta l4proto . th dport @refused_bound fib daddr type local reject
		meta l4proto udp meta l4proto . th dport @refused fib daddr type local reject
	}
	chain into_overlay {
		ct direction reply accept
		ct status & dnat != 0 accept
		drop
	}
	chain out_of_internal {
		ct direction reply accept
		drop
	}
	chain output {
		type nat hook output priority -100; policy accept;
		ip daddr & 255.0.0.0 != 127.0.0.0 fib daddr type local jump published
	}
	chain postrouting {
		type nat hook postrouting priority 100; policy accept;
		iifname @overlays oifname != @overlays meta l4proto udp ip saddr != @senders ip saddr . th sport != @announcers masquerade to :49152-65535 fully-random
		iifname @overlays oifname != @overlays masquerade
		iifname . oifname @same masquerade
	}
	chain prerouting {
		type nat hook prerouting priority -100; policy accept;
		fib daddr type local jump published
	}
	chain published {
		ip daddr . meta l4proto . th dport vmap @bound
		meta l4proto . th dport vmap @ports
	}
	chain sent {
		type filter hook output priority 0; policy accept;
		meta l4proto udp th dport 4789 meta skuid != 0 jump strange
	}
	chain strange {
		@th,96,24 4096 drop
	}
	chain tcp_80 {
		meta l4proto tcp dnat to numgen inc mod 2 map { 0 : 10.78.0.11 . 8080, 1 : 10.78.0.12 . 8080 }
		meta l4proto tcp dnat to 10.78.0.11:8080
	}
}
"#;
    assert_eq!(ip.to_string(), expected);
}

#[test]
fn the_overlay_tables_word_for_word() {
    let [ip, ip6, bridge] = overlay(&small());
    let expected = r#"table ip mesh {
	set elsewhere {
		type ipv4_addr
		elements = { 10.78.0.14 }
	}
	set flooding {
		type ipv4_addr
		limit rate over 20000/second burst 20000 packets
		elements = { 10.78.0.11, 10.78.0.14 }
	}
	set gateways {
		type ipv4_addr
		elements = { 10.78.0.1 }
	}
	map hairpin {
		type ipv4_addr . ipv4_addr : ipv4_addr
		elements = { 10.78.0.11 . 10.78.0.11 : 10.78.0.1, 10.78.0.14 . 10.78.0.14 : 10.78.0.1 }
	}
	set nodes {
		type ipv4_addr
	}
	set refused {
		type ipv4_addr
		elements = { 10.78.0.101 }
	}
	map slots {
		type ipv4_addr . mark : ipv4_addr
	}
	map stand_ins {
		type ipv4_addr : ipv4_addr
	}
	map vips {
		type ipv4_addr : verdict
		elements = { 10.78.0.100 : goto vip_10.78.0.100 }
	}
	chain answers {
		type filter hook output priority -300; policy accept;
		meta l4proto udp th sport 53 ip saddr @gateways notrack
	}
	chain forward {
		type filter hook forward priority -150; policy accept;
		meta l4proto tcp tcp flags & 6 == 2 tcp option maxseg size set rt mtu
	}
	chain input {
		type filter hook input priority 0; policy accept;
		ip daddr @refused meta l4proto tcp reject with tcp reset
		ip daddr @refused reject
	}
	chain marks {
		type filter hook prerouting priority -150; policy accept;
		ct direction reply meta mark set ct mark accept
		ct direction original ct mark set meta mark
		meta mark set 0
	}
	chain postrouting {
		type nat hook postrouting priority 100; policy accept;
		meta l4proto udp ip daddr @elsewhere ip daddr & 255.255.255.0 == 10.78.0.0 ip saddr & 255.255.255.0 != 10.78.0.0 snat to 10.78.0.1:1024-65535
		snat to ip saddr . ip daddr map @hairpin
	}
	chain prerouting {
		type nat hook prerouting priority -100; policy accept;
		ip daddr vmap @vips
	}
	chain probes {
		type filter hook input priority 0; policy accept;
		meta l4proto udp th dport 7443 ct mark 0 drop
	}
	chain probes_of_others {
		type filter hook forward priority 0; policy accept;
		meta l4proto udp th dport 7443 ip daddr @nodes drop
	}
	chain queries {
		ip saddr @flooding counter drop
		notrack accept
	}
	chain vip_10.78.0.100 {
		dnat to numgen inc mod 2 map { 0 : 10.78.0.11, 1 : 10.78.0.12 }
		dnat to 10.78.0.11
	}
	chain zones {
		type filter hook prerouting priority -300; policy accept;
		meta l4proto udp th dport 53 ip daddr @gateways jump queries
		ct original zone set meta mark
	}
}
"#;
    assert_eq!(ip.to_string(), expected);
    let ip6 = ip6.to_string();
    assert_eq!(body(&ip6, "chain output").last(), Some(&"meta l4proto ipv6-icmp icmpv6 type 137 drop"));
    assert_eq!(
        body(&ip6, "chain vip_fd78__64"),
        ["dnat to numgen inc mod 2 map { 0 : fd78::b, 1 : fd78::c }", "dnat to fd78::b"]
    );
    let expected = r#"table bridge mesh {
	set here {
		type ipv4_addr
		elements = { 10.78.0.11, 10.78.0.14 }
	}
	set here6 {
		type ipv6_addr
		elements = { fd78::b, fd78::e }
	}
	map nodes {
		type ether_addr : mark
		elements = { 06:6d:00:00:00:02 : 2, 06:6d:00:00:00:03 : 3 }
	}
	set replicas {
		type ipv4_addr
		elements = { 10.78.0.11, 10.78.0.12, 10.78.0.13, 10.78.0.14 }
	}
	set replicas6 {
		type ipv6_addr
		elements = { fd78::b, fd78::c, fd78::d, fd78::e }
	}
	set senders {
		type ifname . ether_addr . ipv4_addr
		elements = { "p00000000000000" . 02:00:00:00:00:0b . 10.78.0.11, "p00000000000000" . 02:00:00:00:00:0e . 10.78.0.14 }
	}
	set senders6 {
		type ifname . ether_addr . ipv6_addr
		elements = { "p00000000000000" . 02:00:00:00:00:0b . fd78::b, "p00000000000000" . 02:00:00:00:00:0b . fe80::ff:fe00:b, "p00000000000000" . 02:00:00:00:00:0e . fd78::e, "p00000000000000" . 02:00:00:00:00:0e . fe80::ff:fe00:e }
	}
	set stations {
		type ifname . ether_addr
		elements = { "p00000000000000" . 02:00:00:00:00:0b, "p00000000000000" . 02:00:00:00:00:0e }
	}
	chain arp_from_container {
		iifname . ether saddr != @stations drop
		iifname . arp saddr ether . arp saddr ip @senders accept
		iifname . arp saddr ether != @stations drop
		arp saddr ip 0.0.0.0 accept
		drop
	}
	chain from_container {
		ether type ip goto ip_from_container
		ether type ip6 goto ip6_from_container
		ether type arp goto arp_from_container
		drop
	}
	chain from_node {
		ether type ip goto ip_from_node
		ether type ip6 goto ip6_from_node
	}
	chain hand_up {
		meta l4proto ipv6-icmp icmpv6 type 135 accept
		meta l4proto ipv6-icmp icmpv6 type 136 accept
		meta pkttype set host ether daddr set 06:6d:00:00:00:01
	}
	chain input {
		type filter hook input priority -300; policy accept;
		iifname "p*" ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 drop
	}
	chain ip6_from_container {
		ip6 saddr :: goto nameless
		iifname . ether saddr . ip6 saddr != @senders6 drop
		meta l4proto ipv6-icmp icmpv6 type 134 drop
		meta l4proto ipv6-icmp icmpv6 type 137 drop
		meta l4proto ipv6-icmp icmpv6 type 130 drop
		meta l4proto ipv6-icmp icmpv6 type 136 iifname . ether saddr . @th,64,128 != @senders6 drop
		meta l4proto udp th sport 547 drop
		ip6 daddr @replicas6 goto hand_up
		ip6 saddr @replicas6 ip6 daddr @here6 goto hand_up
	}
	chain ip6_from_node {
		ip6 saddr @replicas6 ip6 daddr @here6 goto hand_up
		ip6 saddr & ffff:ffff:ffff:ffff:: != fd78:: meta mark set ether saddr map @nodes
		meta mark != 0 ip6 daddr @here6 goto hand_up
	}
	chain ip_from_container {
		iifname . ether saddr . ip saddr != @senders drop
		meta l4proto udp th sport 67 drop
		ip daddr @replicas goto hand_up
		ip saddr @replicas ip daddr @here goto hand_up
	}
	chain ip_from_node {
		ip saddr @replicas ip daddr @here goto hand_up
		ip saddr & 255.255.255.0 != 10.78.0.0 meta mark set ether saddr map @nodes
		meta mark != 0 ip daddr @here goto hand_up
	}
	chain nameless {
		iifname . ether saddr != @stations drop
		meta l4proto ipv6-icmp icmpv6 type 135 accept
		meta l4proto ipv6-icmp icmpv6 type 131 accept
		meta l4proto ipv6-icmp icmpv6 type 143 accept
		drop
	}
	chain prerouting {
		type filter hook prerouting priority -300; policy accept;
		iifname "p*" goto from_container
		iifname "vx*" goto from_node
	}
}
"#;
    assert_eq!(bridge.to_string(), expected);
}

/// nft lists what it read itself by name, and the same of ours, in chains that others lead to, by its place in the packet.
fn raw(text: &str) -> String {
    [
        ("arp saddr ether", "@nh,64,48"),
        ("arp saddr ip 0.0.0.0", "@nh,112,32 0x0"),
        ("arp saddr ip", "@nh,112,32"),
        ("ip6 saddr ::", "@nh,64,128 0x0"),
        ("ip6 saddr", "@nh,64,128"),
        ("ip6 daddr", "@nh,192,128"),
        ("ip saddr", "@nh,96,32"),
        ("ip daddr", "@nh,128,32"),
        // And a prefix as such, or by its mask.
        ("@nh,96,32 & 0xffffff00 != 0xa4e0000", "@nh,96,32 != 10.78.0.0/24"),
        (
            "@nh,64,128 & 0xffffffffffffffff0000000000000000 != 0xfd780000000000000000000000000000",
            "@nh,64,128 != fd78::/64",
        ),
    ]
    .iter()
    .fold(text.to_owned(), |text, (name, place)| text.replace(name, place))
}

#[test]
fn the_kernel_takes_the_tables_and_lists_what_nft_would_have_made() {
    // nft lists a zone that is a mark, and what a neighbour discovery is about, but does not read them beside these types.
    let readable = |text: &str| {
        let text = text.replace("zone set meta mark", "zone set 1");
        text.replace("@th,64,128", "ip6 daddr")
    };
    let snapshot = small();
    for tables in [host(&snapshot).to_vec(), overlay(&snapshot).to_vec()] {
        let ours = in_namespace(|| {
            load(&tables.iter().collect::<Vec<_>>());
            list()
        });
        let theirs = in_namespace(|| {
            let text = tables.iter().map(Table::to_string).collect::<String>();
            let text = text.replace("zone set meta mark", "zone set 1");
            load_text(&text.replace("@th,64,128", "ip6 daddr"));
            list()
        });
        assert_eq!(raw(&readable(&ours)), raw(&readable(&theirs)));
    }
}

#[test]
fn a_port_bound_to_an_address_is_published_there_only() {
    let mut snapshot = small();
    edit(snapshot.services.values_mut().next(), |web| {
        web.ports[0].ip = Some("fd00:9::1".parse().unwrap());
    });
    edit(snapshot.services.values_mut().nth(1), |dns| {
        dns.ports.iter_mut().for_each(|port| port.ip = Some("10.9.0.1".parse().unwrap()));
    });
    let [ip, ip6] = host(&snapshot).map(|table| table.to_string());
    assert_eq!(body(&ip6, "map bound")[1], "elements = { fd00:9::1 . tcp . 80 : goto tcp_80_at_fd00_9__1 }");
    assert_eq!(body(&ip6, "map ports").len(), 1, "no elements");
    assert!(!ip.contains("tcp_80"), "{ip}");
    assert_eq!(body(&ip, "set refused_bound")[1], "elements = { 10.9.0.1 . tcp . 53, 10.9.0.1 . udp . 53 }");
    assert_eq!(body(&ip, "set refused").len(), 1, "no elements");
    assert_eq!(body(&ip6, "set refused_bound").len(), 1, "no elements");
}

#[test]
fn a_port_of_an_endpoint_leads_to_it_on_its_node_alone_whatever_its_check_says() {
    let mut snapshot = small();
    let port = published(9090, 80, Protocol::Tcp);
    let bound = PublishedPort {
        ip: Some("10.9.0.1".parse().expect("an address")),
        ..published(9091, 81, Protocol::Udp)
    };
    add_replica(&mut snapshot, ServiceId::from_bits(1), 1, 33, Health::Unhealthy);
    edit(snapshot.endpoints.get_mut(&EndpointId::from_bits(33)), |endpoint| {
        endpoint.ports = vec![port, bound]
    });
    let [ip, ip6] = host(&snapshot).map(|table| table.to_string());
    assert_eq!(body(&ip, "chain tcp_9090"), ["meta l4proto tcp dnat to 10.78.0.33:80"]);
    assert_eq!(body(&ip, "chain udp_9091_at_10.9.0.1"), ["meta l4proto udp dnat to 10.78.0.33:81"]);
    assert_eq!(body(&ip6, "chain tcp_9090"), ["meta l4proto tcp dnat to [fd78::21]:80"]);
    assert!(!ip6.contains("9091"));
    let [elsewhere, _] = Rules::new(&snapshot, &snapshot.nodes[&node_id(3)]).host(&BTreeSet::new());
    assert!(!elsewhere.to_string().contains("9090"), "{elsewhere}");
    edit(snapshot.endpoints.get_mut(&EndpointId::from_bits(33)), |endpoint| endpoint.draining = true);
    assert!(!host(&snapshot)[0].to_string().contains("9090"), "offered no new connections");
}

#[test]
fn a_port_in_host_mode_leads_to_replicas_here_and_is_closed_where_none_runs() {
    let mut snapshot = small();
    for service in snapshot.services.values_mut() {
        edit(Some(service), |service| {
            service.ports.iter_mut().for_each(|port| port.mode = PublishMode::Host)
        });
    }
    let [ip, _] = host(&snapshot);
    let text = ip.to_string();
    assert_eq!(body(&text, "chain tcp_80"), ["meta l4proto tcp dnat to 10.78.0.11:8080"]);
    assert_eq!(
        body(&text, "set refused")[1],
        "elements = { tcp . 53, udp . 53 }",
        "its replica here is not healthy"
    );

    let [ip, _] = Rules::new(&snapshot, &snapshot.nodes[&node_id(3)]).host(&BTreeSet::new());
    let text = ip.to_string();
    assert!(!text.contains("tcp_80"), "the replica there is not healthy");
    assert_eq!(
        body(&text, "set refused")[1],
        "elements = { tcp . 80 }",
        "of the other service there is none"
    );
}

#[test]
fn ports_that_a_process_serves_are_not_led_by_the_kernel() {
    let mut snapshot = small();
    let led = |snapshot: &Snapshot| {
        let [ip, ip6] = host(snapshot);
        [ip.sets["ports"].elements.len(), ip6.sets["ports"].elements.len(), ip.sets["bound"].elements.len()]
    };
    assert_eq!(led(&snapshot), [1, 1, 0]);
    edit(snapshot.services.values_mut().next(), |web| web.ports[0].protocol = Protocol::Http);
    assert_eq!(led(&snapshot), [0; 3]);
    for (proxy_protocol, ip) in [(Some(ProxyProtocol::V2), None), (None, Some(Ipv4Addr::LOCALHOST.into()))] {
        edit(snapshot.services.values_mut().next(), |web| {
            let of_relay = PublishedPort { ip, proxy_protocol, ..published(80, 8080, Protocol::Tcp) };
            web.ports[0] = of_relay;
        });
        assert_eq!(led(&snapshot), [0; 3]);
        let text = host(&snapshot)[0].to_string();
        assert!(!text.contains("tcp . 80"), "nor refused, as long as there is a backend: {text}");
    }
    snapshot.endpoints.clear();
    let text = host(&snapshot)[0].to_string();
    assert!(text.contains("127.0.0.1 . tcp . 80"), "then it is refused: {text}");
}

#[test]
fn local_replicas_are_preferred_as_long_as_there_are_any() {
    let mut snapshot = small();
    edit(snapshot.services.values_mut().next(), |web| web.prefer_local = true);
    let of_node = |snapshot: &Snapshot, node| {
        let [ip, _] = Rules::new(snapshot, &snapshot.nodes[&node_id(node)]).host(&BTreeSet::new());
        body(&ip.to_string(), "chain tcp_80").into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of_node(&snapshot, 1), ["meta l4proto tcp dnat to 10.78.0.11:8080"]);
    assert_eq!(of_node(&snapshot, 2), ["meta l4proto tcp dnat to 10.78.0.12:8080"]);
    assert_eq!(of_node(&snapshot, 3).len(), 2, "it has none that takes traffic");
    let network = &snapshot.networks[&network_id()];
    let [ip, ..] = Rules::new(&snapshot, &snapshot.nodes[&node_id(1)]).overlay(network);
    assert!(!ip.to_string().contains("10.78.0.12"), "by its VIP as well: {ip}");
}

#[test]
fn many_ports_of_a_service_share_a_chain_if_they_keep_their_numbers() {
    let snapshot = small();
    let many = |ports: std::ops::Range<u16>| {
        let mut snapshot = snapshot.clone();
        edit(snapshot.services.values_mut().next(), |web| {
            web.ports.extend(ports.map(|port| published(port, port, Protocol::Tcp)));
        });
        host(&snapshot)[0].clone()
    };
    let few = many(9000..9016);
    assert_eq!(few.chains.keys().filter(|chain| chain.starts_with("tcp_")).count(), 17);
    let table = many(9000..9017);
    let chain = "tcp_of_0000000000000001";
    let of_ports: Vec<_> = table.chains.keys().filter(|chain| chain.starts_with("tcp_")).collect();
    assert_eq!(of_ports, ["tcp_80", chain], "that of 80 leads to 8080");
    assert_eq!(
        body(&table.to_string(), &format!("chain {chain}")),
        [
            "meta l4proto tcp dnat to numgen inc mod 2 map { 0 : 10.78.0.11, 1 : 10.78.0.12 }",
            "meta l4proto tcp dnat to 10.78.0.11",
        ]
    );
    assert_eq!(table.sets["ports"].elements.len(), 18);
    in_namespace(|| load(&[&table]));
    let counted = |table: &Table| {
        table.sets["connections"]
            .elements
            .keys()
            .filter(|key| key[1] == crate::nft::Datum::Port(9000))
            .count()
    };
    assert_eq!(counted(&table), 3, "one for each replica");
    assert_eq!(counted(&many(9000..10025)), 0, "more would be too many elements");
}

#[test]
fn an_internal_network_has_no_way_out() {
    let mut snapshot = small();
    edit(snapshot.networks.get_mut(&network_id()), |network| network.internal = true);
    for table in host(&snapshot) {
        assert_eq!(body(&table.to_string(), "set internal")[1], "elements = { \"up4096\" }");
    }
}

#[test]
fn services_that_choose_at_random_share_a_chain_for_each_number_of_backends() {
    let mut snapshot = cluster(1);
    for number in 1..=3 {
        let service = add_service(&mut snapshot, number, 100 + number as u8, Balance::Random, Vec::new());
        for replica in 0..2 {
            add_replica(&mut snapshot, service, 1, number as u8 * 10 + replica, Health::Healthy);
        }
    }
    let [ip, ..] = overlay(&snapshot);
    let text = ip.to_string();
    assert_eq!(
        body(&text, "chain random_2"),
        ["dnat to ip daddr . numgen random mod 2 map @slots", "dnat to ip daddr map @stand_ins"]
    );
    assert_eq!(ip.sets["stand_ins"].elements.len(), 3);
    assert_eq!(text.matches("goto random_2").count(), 3);
    assert_eq!(ip.sets["slots"].elements.len(), 6);
    in_namespace(|| load(&[&ip]));
}
