//! Networks.

use crate::cluster::{Mesh, endpoint_spec, ip, name, net, network_spec, refused, service_spec};
use ipnetwork::{IpNetwork, Ipv4Network};
use mesh_model::{NetworkSpec, NetworkUpdate, VNI_FIRST, VNI_MAX, admit};
use proptest::prelude::*;
use std::{collections::BTreeSet, net::Ipv4Addr};

#[test]
fn nothing_said_is_a_subnet_of_the_pool_and_its_first_address_as_gateway() {
    let mut mesh = Mesh::new();
    let blue = mesh.network(&NetworkSpec::named(name("blue"))).unwrap();
    assert_eq!(blue.vni, VNI_FIRST);
    assert_eq!(blue.subnets.len(), 1);
    assert_eq!((blue.subnets[0].cidr, blue.subnets[0].gateway), (net("10.200.0.0/24"), ip("10.200.0.1")));
    assert!(!blue.internal && blue.mtu.is_none() && blue.subnets[0].range.is_none());
}

#[test]
fn ipv6_is_taken_from_the_pool_unless_given() {
    let mut mesh = Mesh::new();
    let dual = mesh.network(&NetworkSpec { ipv6: true, ..NetworkSpec::named(name("dual")) }).unwrap();
    let cidrs: Vec<IpNetwork> = dual.subnets.iter().map(|s| s.cidr).collect();
    assert_eq!(cidrs, [net("10.200.0.0/24"), net("fd00:200::/64")]);
    assert_eq!(dual.subnets[1].gateway, ip("fd00:200::1"));
    let own = NetworkSpec { ipv6: true, ..network_spec("own", &["fd01::/64"]) };
    assert_eq!(mesh.network(&own).unwrap().subnets.len(), 1);
}

#[test]
fn a_pool_ends() {
    let mut mesh = Mesh::new();
    for number in 0..4 {
        mesh.network(&NetworkSpec::named(name(&format!("n{number}")))).unwrap();
    }
    refused(mesh.network(&NetworkSpec::named(name("n4"))), "--subnet");
    mesh.network(&network_spec("n4", &["10.201.0.0/24"])).unwrap();
}

#[test]
fn a_pool_steps_around_what_users_chose() {
    let mut mesh = Mesh::with_network("chosen", &["10.200.1.128/25"]);
    let cidr = |mesh: &mut Mesh, of| mesh.network(&NetworkSpec::named(name(of))).unwrap().subnets[0].cidr;
    assert_eq!(cidr(&mut mesh, "a"), net("10.200.0.0/24"));
    assert_eq!(cidr(&mut mesh, "b"), net("10.200.2.0/24"));
}

#[test]
fn without_a_cluster_there_is_no_pool() {
    let fresh = admit::Fresh { id: 1, mac: 1, now: 1 };
    let spec = NetworkSpec::named(name("blue"));
    refused(admit::network(&mesh_model::Snapshot::default(), &spec, &[], fresh), "cluster init");
}

#[test]
fn subnets_that_overlap_are_refused() {
    let mut mesh = Mesh::with_network("blue", &["10.50.0.0/24", "fd50::/64"]);
    mesh.node("vm2", "198.51.100.7").unwrap();
    for (subnets, words) in [
        (&["10.50.0.0/24"][..], "network 'blue'"),
        (&["10.50.0.128/25"], "network 'blue'"),
        (&["10.0.0.0/8"], "network 'blue'"),
        (&["fd50::/48"], "network 'blue'"),
        (&["10.51.0.0/24", "fd50::/80"], "network 'blue'"),
        (&["10.51.0.0/24", "10.51.0.0/25"], "given as well"),
        (&["100.64.0.0/24"], "node address pool"),
        (&["fd64::/60"], "node address pool"),
        (&["198.51.100.0/24"], "node 'vm2'"),
    ] {
        refused(mesh.network(&network_spec("red", subnets)), words);
    }
    mesh.network(&network_spec("red", &["10.50.1.0/24", "10.51.0.0/24", "fd51::/64"])).unwrap();
}

#[test]
fn subnets_that_nobody_could_use_are_refused() {
    let mut mesh = Mesh::new();
    for (subnet, words) in [
        ("10.60.1.7/24", "did you mean 10.60.1.0/24?"),
        ("fd60::1/64", "did you mean fd60::/64?"),
        ("127.0.0.0/24", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("224.0.0.0/24", "unicast"),
        ("255.255.255.0/24", "unicast"),
        ("0.0.0.0/0", "unicast"),
        ("0.1.0.0/16", "unicast"),
        ("fe80::/64", "link-local"),
        ("ff02::/64", "unicast"),
        ("::/64", "unicast"),
        // Not what they begin with, but what they hold.
        ("64.0.0.0/2", "loopback"),
        ("128.0.0.0/1", "unicast"),
        ("168.0.0.0/6", "link-local"),
        ("c000::/2", "link-local"),
        ("10.60.0.0/30", "too small"),
        ("10.60.0.0/32", "too small"),
        ("fd60::/126", "too small"),
    ] {
        refused(mesh.network(&network_spec("red", &[subnet])), words);
    }
    for (number, subnet) in ["10.60.0.0/29", "fd60::/125", "11.0.0.0/8", "2001:db8::/32"].iter().enumerate() {
        mesh.network(&network_spec(&format!("n{number}"), &[subnet])).unwrap();
    }
}

#[test]
fn gateways_are_usable_addresses_of_a_subnet() {
    let mut mesh = Mesh::new();
    let with = |gateways: &[&str]| NetworkSpec {
        gateways: gateways.iter().map(|g| ip(g)).collect(),
        ..network_spec("blue", &["10.60.0.0/24", "fd60::/64"])
    };
    for bad in ["10.61.0.1", "10.60.0.0", "10.60.0.255", "fd60::", "fd61::1"] {
        refused(mesh.network(&with(&[bad])), bad);
    }
    refused(mesh.network(&with(&["10.60.0.1", "10.60.0.2"])), "10.60.0.2");
    let blue = mesh.network(&with(&["fd60::ff", "10.60.0.254"])).unwrap();
    assert_eq!(blue.gateways().collect::<Vec<_>>(), [ip("10.60.0.254"), ip("fd60::ff")]);
}

#[test]
fn ranges_are_parts_of_a_subnet() {
    let mut mesh = Mesh::new();
    let with = |ranges: &[&str]| NetworkSpec {
        ranges: ranges.iter().map(|r| net(r)).collect(),
        ..network_spec("blue", &["10.60.0.0/24"])
    };
    for bad in ["10.61.0.0/25", "10.60.0.0/23", "10.60.0.1/25", "fd60::/80"] {
        refused(mesh.network(&with(&[bad])), bad);
    }
    refused(mesh.network(&with(&["10.60.0.0/25", "10.60.0.128/25"])), "10.60.0.128/25");
    assert_eq!(
        mesh.network(&with(&["10.60.0.128/25"])).unwrap().subnets[0].range,
        Some(net("10.60.0.128/25"))
    );
}

#[test]
fn vnis_are_unique_and_in_range() {
    let mut mesh = Mesh::new();
    let with = |of: &str, vni| NetworkSpec { vni: Some(vni), ..NetworkSpec::named(name(of)) };
    for bad in [0, VNI_MAX + 1, u32::MAX] {
        refused(mesh.network(&with("a", bad)), "1 to 16777215");
    }
    assert_eq!(mesh.network(&with("a", VNI_FIRST)).unwrap().vni, VNI_FIRST);
    refused(mesh.network(&with("b", VNI_FIRST)), "taken by network 'a'");
    assert_eq!(mesh.network(&with("b", 1)).unwrap().vni, 1);
    assert_eq!(mesh.network(&NetworkSpec::named(name("c"))).unwrap().vni, VNI_FIRST + 1);
}

#[test]
fn names_encryption_and_mtu() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    // DNS can't tell them apart.
    refused(mesh.network(&NetworkSpec::named(name("BLUE"))), "exists already");
    let red = NetworkSpec::named(name("red"));
    refused(mesh.network(&NetworkSpec { encrypted: true, ..red.clone() }), "--encrypted");
    for mtu in [0, 1279, 65536] {
        refused(mesh.network(&NetworkSpec { mtu: Some(mtu), ..red.clone() }), "1280 to 65535");
    }
    assert_eq!(mesh.network(&NetworkSpec { mtu: Some(1280), ..red }).unwrap().mtu, Some(1280));
}

#[test]
fn a_network_in_use_stays() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let red = mesh.network(&NetworkSpec::named(name("red"))).unwrap();
    let blue = mesh.snapshot.find_network("blue").cloned().unwrap();
    assert_eq!(admit::network_removal(&mesh.snapshot, &blue), Ok(()));

    let web = endpoint_spec("blue", 1);
    let endpoint = mesh.endpoint(&mesh_model::EndpointSpec { name: Some(name("web1")), ..web }).unwrap();
    refused(admit::network_removal(&mesh.snapshot, &blue), "endpoint 'web1'");
    mesh.remove_endpoint(endpoint.id);
    assert_eq!(admit::network_removal(&mesh.snapshot, &blue), Ok(()));

    mesh.service(&service_spec("web", &["red", "blue"], &[])).unwrap();
    refused(admit::network_removal(&mesh.snapshot, &blue), "service 'web'");
    refused(admit::network_removal(&mesh.snapshot, &red), "service 'web'");
}

#[test]
fn pools_are_usable_and_apart() {
    let nets = |texts: &[&str]| texts.iter().map(|t| net(t)).collect::<Vec<_>>();
    let pools = |texts: &[&str]| admit::pools(&nets(texts), &[]);
    let of_nodes = |texts: &[&str]| admit::pools(&nets(&["10.0.0.0/8"]), &nets(texts));
    assert!(of_nodes(&["10.255.0.0/16", "fd00::/64"]).is_ok());
    refused(of_nodes(&["10.255.0.1/16"]), "host bits");
    refused(of_nodes(&["10.0.0.0/8"]), "--node-addr-pool");
    refused(of_nodes(&["8.0.0.0/5"]), "--node-addr-pool");
    assert!(pools(&["10.0.0.0/8", "fd00::/48"]).is_ok());
    refused(pools(&["10.0.0.0/8", "10.1.0.0/16"]), "given as well");
    refused(pools(&["127.0.0.0/8"]), "loopback");
    refused(pools(&["10.0.0.1/8"]), "did you mean 10.0.0.0/8?");
}

/// An IPv4 prefix somewhere in 10.0.0.0/12, so that many of them meet.
fn prefix() -> impl Strategy<Value = IpNetwork> {
    (any::<u32>(), 14u8..=29).prop_map(|(bits, length)| {
        let address = Ipv4Addr::from_bits(0x0a00_0000 | (bits & 0x000f_ffff));
        let network = Ipv4Network::new(address, length).unwrap().network();
        IpNetwork::V4(Ipv4Network::new(network, length).unwrap())
    })
}

proptest! {
    /// Whatever is asked for in whatever order, what is admitted is apart.
    #[test]
    fn admitted_networks_share_nothing(asked in prop::collection::vec(prop::option::of(prefix()), 1..24)) {
        let mut mesh = Mesh::new();
        for (number, subnet) in asked.iter().enumerate() {
            let spec = NetworkSpec {
                subnets: subnet.iter().copied().collect(),
                ..NetworkSpec::named(name(&format!("n{number}")))
            };
            let admitted = mesh.network(&spec);
            if let (Ok(network), Some(subnet)) = (&admitted, subnet) {
                prop_assert_eq!(network.subnets[0].cidr, *subnet);
            }
        }
        let networks: Vec<_> = mesh.snapshot.networks.values().collect();
        let vnis: BTreeSet<u32> = networks.iter().map(|n| n.vni).collect();
        prop_assert_eq!(vnis.len(), networks.len());
        for (at, one) in networks.iter().enumerate() {
            let subnet = &one.subnets[0];
            prop_assert!(subnet.cidr.contains(subnet.gateway));
            for two in &networks[..at] {
                let (one, two) = (subnet.cidr, two.subnets[0].cidr);
                prop_assert!(!one.contains(two.ip()) && !two.contains(one.ip()), "{one} and {two}");
            }
        }
    }
}

#[test]
fn a_subnet_is_added_to_what_stays_as_it_is() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/29"]);
    mesh.network(&network_spec("red", &["10.70.0.0/24"])).unwrap();
    let blue = mesh.snapshot.find_network("blue").unwrap().clone();
    let add = |subnets: &[&str]| NetworkUpdate {
        subnet_add: subnets.iter().map(|subnet| net(subnet)).collect(),
        ..NetworkUpdate::default()
    };
    let update = |mesh: &Mesh, update: &NetworkUpdate| admit::network_update(&mesh.snapshot, &blue, update);
    for (subnet, words) in [
        ("10.60.0.0/29", "network 'blue'"),
        ("10.70.0.128/25", "network 'red'"),
        ("10.61.0.1/24", "host bits"),
        ("10.61.0.0/30", "too small"),
    ] {
        refused(update(&mesh, &add(&[subnet])), words);
    }
    refused(update(&mesh, &add(&["10.61.0.0/24", "10.61.0.0/25"])), "given as well");
    let outside = NetworkUpdate { gateways: vec![ip("10.60.0.6")], ..add(&["10.61.0.0/24"]) };
    refused(update(&mesh, &outside), "gateway");
    let wanted = NetworkUpdate {
        gateways: vec![ip("10.61.0.254")],
        ranges: vec![net("10.61.0.128/25")],
        label_add: [("tier".to_owned(), "db".to_owned())].into(),
        ..add(&["10.61.0.0/24", "fd61::/64"])
    };
    let updated = update(&mesh, &wanted).unwrap();
    assert_eq!(updated.subnets[..1], blue.subnets[..]);
    assert_eq!(updated.gateways().collect::<Vec<_>>(), [ip("10.60.0.1"), ip("10.61.0.254"), ip("fd61::1")]);
    assert_eq!(updated.subnets[1].range, Some(net("10.61.0.128/25")));
    assert_eq!((updated.id, updated.vni, updated.labels.len()), (blue.id, blue.vni, 1));
    let unlabelled = NetworkUpdate { label_rm: vec!["tier".to_owned(), "none".to_owned()], ..add(&[]) };
    assert_eq!(admit::network_update(&mesh.snapshot, &updated, &unlabelled).unwrap().labels.len(), 0);
}

#[test]
fn networks_with_nothing_on_them_are_unused() {
    let mut mesh = Mesh::with_network("with-endpoint", &["10.60.0.0/24"]);
    for (network, subnet) in
        [("z-unused", "10.61.0.0/24"), ("with-service", "10.62.0.0/24"), ("a-unused", "10.63.0.0/24")]
    {
        mesh.network(&network_spec(network, &[subnet])).unwrap();
    }
    mesh.endpoint(&endpoint_spec("with-endpoint", 1)).unwrap();
    mesh.service(&service_spec("web", &["with-service"], &[])).unwrap();
    let unused: Vec<String> =
        admit::unused_networks(&mesh.snapshot).iter().map(|n| n.name.to_string()).collect();
    assert_eq!(unused, ["a-unused", "z-unused"]);
}
