//! Snapshots of every table.

use crate::{
    endpoint, network, node,
    output::{Column, Style, table},
    service, status,
};
use mesh_api::{
    AddressesView, CountView, DegradedView, EndpointView, FrontState, FrontView, NetworkUse, NetworkView,
    NodeView, ServiceView, SourceNatView, State, StatusView, TrafficView,
};
use mesh_model::{
    Availability, Balance, EndpointId, EndpointMode, Health, HealthCheck, HealthKind, MacAddr, NetworkDns,
    NetworkId, NodeId, NodeStatus, Protocol, Role, ServiceId, Subnet, Target, parse_publish,
};
use std::collections::BTreeMap;

const NOW: u64 = 1_800_000_000;
const SHORT: Style = Style { whole: false, now: NOW };
const WHOLE: Style = Style { whole: true, now: NOW };

fn list<T>(records: &[T], columns: &[Column<T>]) -> String {
    table::rows(records, columns, &SHORT)
}

fn node(name: &str, index: u64) -> NodeView {
    NodeView {
        id: NodeId::from_bits(0x1a2b_3c4d_5e6f_7080 + index),
        name: name.to_owned(),
        role: if index == 1 { Role::Manager } else { Role::Worker },
        status: if index == 3 { NodeStatus::Down } else { NodeStatus::Ready },
        availability: if index == 2 { Availability::Drain } else { Availability::Active },
        leader: index == 1,
        local: index == 2,
        address: format!("10.0.0.{index}:7443").parse().unwrap(),
        overlay_addresses: vec![format!("100.64.0.{index}").parse().unwrap(), "fd64::1".parse().unwrap()],
        labels: BTreeMap::from([("zone".to_owned(), "a".to_owned()), ("disk".to_owned(), "ssd".to_owned())]),
        created: NOW - 7_200,
    }
}

fn dns() -> NetworkDns {
    let resolvers = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let domains = [
        ("corp.example".parse().unwrap(), resolvers(&["10.1.0.53", "10.2.0.53"])),
        ("a.corp.example".parse().unwrap(), resolvers(&["10.3.0.53"])),
    ];
    NetworkDns { upstreams: resolvers(&["10.0.0.53", "[fd00::53]:5353"]), domains: domains.into() }
}

fn network(name: &str, internal: bool) -> NetworkView {
    let subnet = |cidr: &str, gateway: &str, range: Option<&str>| Subnet {
        cidr: cidr.parse().unwrap(),
        gateway: gateway.parse().unwrap(),
        range: range.map(|range| range.parse().unwrap()),
    };
    NetworkView {
        id: NetworkId::from_bits(0xfeed_0000_0000_0001),
        name: name.to_owned(),
        vni: 4096,
        subnets: vec![
            subnet("192.168.100.0/24", "192.168.100.1", Some("192.168.100.128/25")),
            subnet("fd00:1::/64", "fd00:1::1", None),
        ],
        internal,
        mtu: internal.then_some(1400),
        dns: if internal { dns() } else { NetworkDns::default() },
        labels: BTreeMap::new(),
        endpoints: vec![NetworkUse {
            id: "00000000000000aa".to_owned(),
            name: "web1".to_owned(),
            addresses: vec!["192.168.100.129".parse().unwrap()],
            node: Some("vm1".to_owned()),
        }],
        services: vec![NetworkUse {
            id: "00000000000000bb".to_owned(),
            name: "web".to_owned(),
            addresses: vec!["192.168.100.130".parse().unwrap(), "fd00:1::2".parse().unwrap()],
            node: None,
        }],
        created: NOW - 90,
    }
}

fn service(name: &str, publish: &[&str]) -> ServiceView {
    ServiceView {
        id: ServiceId::from_bits(0xabcd_ef01_2345_6789),
        name: name.to_owned(),
        endpoint_mode: EndpointMode::Vip,
        networks: vec![AddressesView {
            network: "blue".to_owned(),
            addresses: vec!["192.168.100.2".parse().unwrap()],
        }],
        aliases: vec!["www".to_owned()],
        ports: publish.iter().flat_map(|spec| parse_publish(spec).unwrap()).collect(),
        health: Some(HealthCheck {
            kind: HealthKind::Http("/up".to_owned()),
            port: Some(81),
            interval_ms: 2_000,
            timeout_ms: 250,
            rise: 2,
            fall: 3,
        }),
        balance: Balance::Roundrobin,
        drain_timeout_ms: 10_000,
        prefer_local: false,
        traffic: Vec::new(),
        degraded: Vec::new(),
        silent: Vec::new(),
        healthy: 2,
        total: 3,
        source_nat: Vec::new(),
        created: NOW - 86_400,
    }
}

fn endpoint(name: &str, health: Health, draining: bool, service: bool) -> EndpointView {
    EndpointView {
        id: EndpointId::from_bits(0x0123_4567_89ab_cdef),
        name: name.to_owned(),
        network: "blue".to_owned(),
        service: service.then(|| "web".to_owned()),
        node: "vm1".to_owned(),
        addresses: vec!["192.168.100.3".parse().unwrap(), "fd00:1::3".parse().unwrap()],
        mac: MacAddr::endpoint(0x1234),
        aliases: Vec::new(),
        health,
        weight: mesh_model::Weight::default(),
        draining,
        target: Target::Pid(4711),
        ifname: "eth0".to_owned(),
        ports: Vec::new(),
        owner: None,
        source_nat: Vec::new(),
        nameservers: vec!["192.168.100.1".parse().unwrap()],
        created: NOW - 61,
    }
}

#[test]
fn node_ls() {
    let nodes = [node("vm1", 1), node("vm2", 2), node("vm3", 3)];
    insta::assert_snapshot!(list(&nodes, node::COLUMNS), @r"
    ID               NAME   STATUS   AVAILABILITY   MANAGER STATUS   ADDRESS
    1a2b3c4d5e6f     vm1    Ready    Active         Leader           10.0.0.1
    1a2b3c4d5e6f *   vm2    Ready    Drain                           10.0.0.2
    1a2b3c4d5e6f     vm3    Down     Active                          10.0.0.3
    ");
}

#[test]
fn node_inspect() {
    insta::assert_snapshot!(table::fields(&node("vm1", 1), node::FIELDS, &WHOLE), @r"
    ID:                  1a2b3c4d5e6f7081
    Name:                vm1
    Role:                manager (leader)
    Status:              Ready
    Availability:        Active
    Address:             10.0.0.1:7443
    Overlay addresses:   100.64.0.1, fd64::1
    Labels:              disk=ssd, zone=a
    Joined:              2 hours ago
    ");
}

#[test]
fn network_ls() {
    let networks = [network("blue", false), network("db", true)];
    insta::assert_snapshot!(list(&networks, network::COLUMNS), @r"
    ID             NAME   VNI    SUBNETS                         ENDPOINTS   FLAGS
    feed00000000   blue   4096   192.168.100.0/24, fd00:1::/64   1
    feed00000000   db     4096   192.168.100.0/24, fd00:1::/64   1           internal
    ");
}

#[test]
fn network_inspect() {
    insta::assert_snapshot!(table::fields(&network("db", true), network::FIELDS, &WHOLE), @r"
    ID:            feed000000000001
    Name:          db
    VNI:           4096
    Subnets:       192.168.100.0/24 (gateway 192.168.100.1, range 192.168.100.128/25), fd00:1::/64 (gateway fd00:1::1)
    Internal:      yes
    MTU:           1400
    DNS:           10.0.0.53, [fd00::53]:5353
    DNS domains:   a.corp.example 10.3.0.53
                   corp.example 10.1.0.53, 10.2.0.53
    Services:      web 192.168.100.130, fd00:1::2
    Endpoints:     web1 192.168.100.129 on vm1
    Created:       1 minute ago
    ");
}

#[test]
fn service_ls() {
    let services = [service("web", &["80:80", "[fd00::1]:53:5353/udp"]), service("quiet", &[])];
    insta::assert_snapshot!(list(&services, service::COLUMNS), @r"
    ID             NAME    MODE   ENDPOINTS   PORTS
    abcdef012345   web     vip    2/3         *:80->80/tcp, [fd00::1]:53->5353/udp
    abcdef012345   quiet   vip    2/3
    ");
}

#[test]
fn service_inspect() {
    let mut web = service("web", &["80:80"]);
    web.source_nat = ["web1", "web2"]
        .map(|endpoint| SourceNatView {
            endpoint: endpoint.to_owned(),
            node: "vm1".to_owned(),
            addresses: vec!["192.168.100.3".parse().unwrap()],
        })
        .into();
    web.degraded =
        vec![DegradedView { node: "vm2".to_owned(), problem: "port 80/tcp is in use by nginx".to_owned() }];
    let counted = |endpoint: &str, connections| TrafficView {
        node: "vm1".to_owned(),
        service: "web".to_owned(),
        protocol: Protocol::Tcp,
        published: vec![80],
        target: 80,
        endpoint: endpoint.to_owned(),
        connections,
        sent: CountView { packets: connections * 5, bytes: connections * 100 },
        received: CountView { packets: connections * 4, bytes: connections * 1_000_000 },
    };
    web.traffic = vec![counted("web1", 3), counted("web2", 0)];
    web.silent = vec!["vm3".to_owned()];
    insta::assert_snapshot!(table::fields(&web, service::FIELDS, &WHOLE), @r"
    ID:              abcdef0123456789
    Name:            web
    Mode:            vip
    Networks:        blue 192.168.100.2
    Aliases:         www
    Ports:           *:80->80/tcp
    Endpoints:       2 of 3 take traffic
    Source NAT:      UDP to web1 on vm1 (192.168.100.3) comes from the gateway
                     UDP to web2 on vm1 (192.168.100.3) comes from the gateway
    Degraded:        vm2: port 80/tcp is in use by nginx
    Traffic:         80/tcp on vm1 to web1: 3 connections, sent 300 B (15 packets), received 3.0 MB (12 packets)
    Not told by:     vm3
    Health check:    GET /up, port 81, every 2s, timeout 250ms, rise 2, fall 3
    Balance:         roundrobin
    Drain timeout:   10s
    Created:         1 day ago
    ");
}

#[test]
fn service_ps() {
    let endpoints = [
        endpoint("web1", Health::Healthy, false, true),
        endpoint("web2", Health::Starting, false, true),
        endpoint("web3", Health::Unhealthy, true, true),
    ];
    insta::assert_snapshot!(list(&endpoints, service::PS_COLUMNS), @r"
    ID             NAME   NETWORK   NODE   ADDRESS                    HEALTH                SINCE
    0123456789ab   web1   blue      vm1    192.168.100.3, fd00:1::3   healthy               1 minute ago
    0123456789ab   web2   blue      vm1    192.168.100.3, fd00:1::3   starting              1 minute ago
    0123456789ab   web3   blue      vm1    192.168.100.3, fd00:1::3   unhealthy, draining   1 minute ago
    ");
}

#[test]
fn endpoint_ls() {
    let endpoints =
        [endpoint("web1", Health::Healthy, false, true), endpoint("test", Health::Unchecked, false, false)];
    insta::assert_snapshot!(list(&endpoints, endpoint::COLUMNS), @r"
    ID             NAME   NETWORK   SERVICE   NODE   ADDRESS                    HEALTH
    0123456789ab   web1   blue      web       vm1    192.168.100.3, fd00:1::3   healthy
    0123456789ab   test   blue                vm1    192.168.100.3, fd00:1::3   unchecked
    ");
}

#[test]
fn endpoint_inspect() {
    let mut endpoint = endpoint("test", Health::Unchecked, true, false);
    endpoint.source_nat = vec!["192.168.100.3".parse().unwrap()];
    insta::assert_snapshot!(table::fields(&endpoint, endpoint::FIELDS, &WHOLE), @r"
    ID:             0123456789abcdef
    Name:           test
    Network:        blue
    Node:           vm1
    Addresses:      192.168.100.3, fd00:1::3
    MAC:            02:00:00:00:12:34
    Health:         unchecked, draining
    Target:         pid:4711
    Interface:      eth0
    Source NAT:     UDP from outside to 192.168.100.3 comes from the gateway
    Name servers:   192.168.100.1
    Connected:      1 minute ago
    ");
}

#[test]
fn whole_ids_are_whole() {
    insta::assert_snapshot!(table::rows(&[node("vm1", 2)], node::COLUMNS, &WHOLE), @r"
    ID                   NAME   STATUS   AVAILABILITY   MANAGER STATUS   ADDRESS
    1a2b3c4d5e6f7082 *   vm1    Ready    Drain                           10.0.0.2
    ");
}

#[test]
fn an_empty_table_has_its_head() {
    insta::assert_snapshot!(list(&[], service::COLUMNS), @"ID   NAME   MODE   ENDPOINTS   PORTS");
}

#[test]
fn status() {
    let ready = StatusView {
        version: "0.1.0".to_owned(),
        state: State::Ready,
        node: Some(node("vm1", 1)),
        cluster: Some("00000000000000cc".to_owned()),
        managers: vec!["10.0.0.1:7443".parse().unwrap()],
        revision: 17,
        fronts: [
            (40, FrontState::Serving, Some("0.1.0")),
            (30, FrontState::Finishing, Some("0.0.9")),
            (20, FrontState::Finishing, None),
        ]
        .map(|(pid, state, version)| FrontView { pid, state, version: version.map(str::to_owned) })
        .to_vec(),
        problems: vec!["port 80 is taken by another program".to_owned(), "no IPv6".to_owned()],
    };
    insta::assert_snapshot!(table::fields(&ready, status::FIELDS, &WHOLE), @r"
    State:      ready
    Node:       vm1 (1a2b3c4d5e6f7081, manager)
    Address:    10.0.0.1:7443
    Cluster:    00000000000000cc
    Managers:   10.0.0.1:7443
    Revision:   17
    Version:    0.1.0
    Front:      process 40 serves
                process 30 (version 0.0.9) finishes its connections
                process 20 (of an earlier version) finishes its connections
    Problems:   port 80 is taken by another program
                no IPv6
    ");

    let alone = StatusView {
        state: State::Unclustered,
        node: None,
        cluster: None,
        managers: Vec::new(),
        revision: 0,
        fronts: Vec::new(),
        problems: Vec::new(),
        ..ready
    };
    insta::assert_snapshot!(table::fields(&alone, status::FIELDS, &WHOLE), @r"
    State:      waits for 'meshctl cluster init' or 'meshctl cluster join'
    Revision:   0
    Version:    0.1.0
    ");
}
