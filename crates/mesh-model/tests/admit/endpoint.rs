//! Endpoints.

use crate::cluster::{Mesh, endpoint_spec, ip, name, net, network_spec, refused, service_spec};
use mesh_model::{
    ADDRESS_REST_S, Availability, Change, EndpointId, EndpointSpec, EndpointUpdate, Key, NetworkSpec, Node,
    NodeId, Object, PublishMode, Refusal, Service, Snapshot, Target, admit, parse_publish,
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

fn wanting(inode: u64, addresses: &[&str]) -> EndpointSpec {
    EndpointSpec { addresses: addresses.iter().map(|a| ip(a)).collect(), ..endpoint_spec("blue", inode) }
}

#[test]
fn an_address_of_each_family_is_given_out() {
    let mut mesh = Mesh::with_network("blue", &["fd60::/64", "10.60.0.0/24"]);
    mesh.service(&service_spec("web", &["blue"], &[])).unwrap();
    let one = mesh.endpoint(&endpoint_spec("blue", 1)).unwrap();
    assert_eq!(one.addresses, [ip("10.60.0.3"), ip("fd60::3")], "after the gateway and the VIP");
    let two = mesh.endpoint(&wanting(2, &["fd60::99"])).unwrap();
    assert_eq!(two.addresses, [ip("10.60.0.4"), ip("fd60::99")]);
    assert_ne!(one.mac, two.mac);
    mesh.network(&network_spec("six", &["fd61::/64"])).unwrap();
    assert_eq!(mesh.endpoint(&endpoint_spec("six", 1)).unwrap().addresses, [ip("fd61::2")]);
}

#[test]
fn a_second_subnet_is_used_when_the_first_is_full() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/29", "10.61.0.0/29"]);
    let given: Vec<IpAddr> =
        (0..10).map(|n| mesh.endpoint(&endpoint_spec("blue", n)).unwrap().addresses[0]).collect();
    assert_eq!((given[4], given[5]), (ip("10.60.0.6"), ip("10.61.0.2")));
    refused(mesh.endpoint(&endpoint_spec("blue", 10)), "no free address left");
}

/// Removes an endpoint at a time, as a manager does.
fn remove(mesh: &mut Mesh, id: EndpointId, now: u64) {
    let gone = Change::Delete(Key::Endpoint(id));
    let released = admit::release(&mesh.snapshot, std::slice::from_ref(&gone), now);
    released.into_iter().chain([gone]).for_each(|change| mesh.snapshot.apply(change));
}

#[test]
fn an_address_rests_before_somebody_else_gets_it() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/29", "fd60::/64"]);
    let at = |mesh: &Mesh, spec: &EndpointSpec, now| {
        let fresh = admit::Fresh { id: now << 8 | spec.namespace_inode, mac: 1, now };
        admit::endpoint(&mesh.snapshot, mesh.first_node(), spec, fresh).map(|e| e.addresses)
    };
    let ids: Vec<EndpointId> = (0..3).map(|n| mesh.endpoint(&endpoint_spec("blue", n)).unwrap().id).collect();
    remove(&mut mesh, ids[1], 1000);
    remove(&mut mesh, ids[0], 1010);
    assert_eq!(at(&mesh, &endpoint_spec("blue", 9), 1015).unwrap(), [ip("10.60.0.5"), ip("fd60::5")]);
    // Who asks for it by name gets it.
    assert_eq!(at(&mesh, &wanting(9, &["10.60.0.3"]), 1015).unwrap()[0], ip("10.60.0.3"));
    assert_eq!(at(&mesh, &endpoint_spec("blue", 9), 1000 + ADDRESS_REST_S).unwrap()[0], ip("10.60.0.3"));
    // When nothing else is free, the one that has rested longest.
    for n in 3..5 {
        mesh.endpoint(&wanting(n, &[&format!("10.60.0.{}", n + 2)])).unwrap();
    }
    assert_eq!(at(&mesh, &endpoint_spec("blue", 9), 1015).unwrap()[0], ip("10.60.0.3"));
    assert_eq!(
        at(&mesh, &endpoint_spec("blue", 9), 990).unwrap()[0],
        ip("10.60.0.3"),
        "by a clock that lags"
    );
    // What has rested is forgotten by the next that is given back, and all of it with the network.
    remove(&mut mesh, ids[2], 2000);
    let network = mesh.snapshot.find_network("blue").unwrap().id;
    let resting: Vec<IpAddr> = mesh.snapshot.released[&network].resting(1010).collect();
    assert_eq!(resting, [ip("10.60.0.4"), ip("fd60::4")]);
    let gone = [Change::Delete(Key::Network(network))];
    assert_eq!(admit::release(&mesh.snapshot, &gone, 2000), [Change::Delete(Key::Released(network))]);
}

#[test]
fn vips_rest_too_and_what_stays_is_not_given_back() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let web = mesh.service(&service_spec("web", &["blue"], &[])).unwrap();
    let network = mesh.snapshot.find_network("blue").unwrap().id;
    let put = |service: Service| [Change::Put(Object::Service(Arc::new(service)))];
    let renamed = Service { aliases: vec![name("www")], ..Service::clone(&web) };
    assert_eq!(admit::release(&mesh.snapshot, &put(renamed), 5), []);
    let mut without = Service::clone(&web);
    without.networks[0].vips.clear();
    let released = admit::release(&mesh.snapshot, &put(without), 5);
    let [Change::Put(Object::Released(on, addresses))] = &released[..] else { panic!("{released:?}") };
    assert_eq!((*on, addresses.resting(5).collect::<Vec<_>>()), (network, web.networks[0].vips.clone()));
    released.into_iter().for_each(|change| mesh.snapshot.apply(change));
    mesh.snapshot.services.clear();
    let spec = service_spec("api", &["blue"], &[]);
    let next = admit::service(&mesh.snapshot, &spec, admit::Fresh { id: 9, mac: 9, now: 6 }).unwrap();
    assert_eq!(next.networks[0].vips, [ip("10.60.0.3")]);
}

#[test]
fn addresses_that_cannot_be_had() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    mesh.service(&service_spec("web", &["blue"], &[])).unwrap();
    let holder = EndpointSpec { name: Some(name("holder")), ..wanting(1, &["10.60.0.50"]) };
    mesh.endpoint(&holder).unwrap();
    for (addresses, words) in [
        (&["10.61.0.1"][..], "outside"),
        (&["10.60.0.0"], "outside"),
        (&["10.60.0.255"], "outside"),
        (&["fd60::1"], "outside"),
        (&["10.60.0.1"], "the gateway"),
        (&["10.60.0.2"], "VIP"),
        (&["10.60.0.50"], "endpoint 'holder'"),
        (&["10.60.0.51", "10.60.0.52"], "10.60.0.52"),
        (&["10.60.0.51", "10.60.0.51"], "10.60.0.51"),
    ] {
        refused(mesh.endpoint(&wanting(2, addresses)), words);
    }
}

/// A range narrows what is given out, not what may be asked for.
#[test]
fn ranges_are_given_out_whole_and_nothing_beside_them() {
    let mut mesh = Mesh::new();
    let range = NetworkSpec { ranges: vec![net("10.60.0.8/30")], ..network_spec("blue", &["10.60.0.0/24"]) };
    mesh.network(&range).unwrap();
    let given: Vec<IpAddr> =
        (0..4).map(|n| mesh.endpoint(&endpoint_spec("blue", n)).unwrap().addresses[0]).collect();
    assert_eq!(given, ["10.60.0.8", "10.60.0.9", "10.60.0.10", "10.60.0.11"].map(ip));
    refused(mesh.endpoint(&endpoint_spec("blue", 4)), "no free address left");
    mesh.endpoint(&wanting(4, &["10.60.0.200"])).unwrap();
}

#[test]
fn a_range_at_the_edge_leaves_out_what_no_host_may_have() {
    let mut mesh = Mesh::new();
    let range = |of: &str, subnet: &str, range: &str| NetworkSpec {
        ranges: vec![net(range)],
        ..network_spec(of, &[subnet])
    };
    mesh.network(&range("blue", "10.60.0.0/24", "10.60.0.254/31")).unwrap();
    assert_eq!(mesh.endpoint(&endpoint_spec("blue", 1)).unwrap().addresses, [ip("10.60.0.254")]);
    refused(mesh.endpoint(&endpoint_spec("blue", 2)), "no free address left");
    mesh.network(&range("six", "fd60::/64", "fd60::/126")).unwrap();
    let given: Vec<IpAddr> =
        (0..2).map(|n| mesh.endpoint(&endpoint_spec("six", n)).unwrap().addresses[0]).collect();
    assert_eq!(given, [ip("fd60::2"), ip("fd60::3")], "neither the anycast address nor the gateway");
    refused(mesh.endpoint(&endpoint_spec("six", 2)), "no free address left");
}

#[test]
fn names_are_unique_in_a_network_and_made_up_if_absent() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    mesh.network(&network_spec("red", &["10.61.0.0/24"])).unwrap();
    mesh.service(&service_spec("web", &["blue"], &[])).unwrap();
    let named = |network, inode| EndpointSpec { name: Some(name("web1")), ..endpoint_spec(network, inode) };
    mesh.endpoint(&named("blue", 1)).unwrap();
    refused(mesh.endpoint(&named("blue", 2)), "exists already");
    mesh.endpoint(&named("red", 2)).unwrap();

    let replica = EndpointSpec { service: Some("web".to_owned()), ..endpoint_spec("blue", 3) };
    assert!(mesh.endpoint(&replica).unwrap().name.starts_with("web."));
    assert!(mesh.endpoint(&endpoint_spec("blue", 4)).unwrap().name.starts_with("endpoint."));
}

#[test]
fn the_longest_service_name_leaves_room_for_made_up_ones() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let long = "x".repeat(63);
    mesh.service(&service_spec(&long, &["blue"], &[])).unwrap();
    let replica = EndpointSpec { service: Some(long), ..endpoint_spec("blue", 1) };
    assert!(mesh.endpoint(&replica).unwrap().name.len() <= 63);
}

#[test]
fn one_interface_for_each_namespace_and_network() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    mesh.network(&network_spec("red", &["10.61.0.0/24"])).unwrap();
    let vm2 = mesh.node("vm2", "192.0.2.2").unwrap();
    mesh.endpoint(&EndpointSpec { name: Some(name("first")), ..endpoint_spec("blue", 7) }).unwrap();
    // The same namespace by another path.
    let again = EndpointSpec { target: Target::Pid(4711), ..endpoint_spec("blue", 7) };
    refused(mesh.endpoint(&again), "already on network 'blue' as endpoint 'first'");
    mesh.endpoint(&endpoint_spec("red", 7)).unwrap();
    // Inodes of another host say nothing here.
    mesh.endpoint_on(vm2.id, &endpoint_spec("blue", 7)).unwrap();
}

#[test]
fn what_does_not_exist_or_fit() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    mesh.network(&network_spec("red", &["10.61.0.0/24"])).unwrap();
    mesh.service(&service_spec("web", &["blue"], &[])).unwrap();
    refused(mesh.endpoint(&endpoint_spec("green", 1)), "no network is called 'green'");
    let of = |network, service: &str| EndpointSpec {
        service: Some(service.to_owned()),
        ..endpoint_spec(network, 1)
    };
    refused(mesh.endpoint(&of("blue", "api")), "no service is called 'api'");
    refused(mesh.endpoint(&of("red", "web")), "its networks are blue");
    for ifname in ["", "an-interface-name", ".", "..", "a/b", "a:b", "a b", "é"] {
        refused(
            mesh.endpoint(&EndpointSpec { ifname: ifname.to_owned(), ..endpoint_spec("blue", 1) }),
            "interface",
        );
    }
    refused(mesh.endpoint_on(NodeId::from_bits(99), &endpoint_spec("blue", 1)), "no node is called");
}

#[test]
fn only_an_active_node_takes_endpoints() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let node = Arc::clone(&mesh.snapshot.nodes[&mesh.first_node()]);
    for availability in [Availability::Pause, Availability::Drain] {
        mesh.put(Object::Node(Arc::new(Node { availability, ..Node::clone(&node) })));
        refused(mesh.endpoint(&endpoint_spec("blue", 1)), "not active");
    }
}

/// Every address that something has on a network.
fn held(snapshot: &Snapshot) -> Vec<IpAddr> {
    let endpoints = snapshot.endpoints.values().flat_map(|e| e.addresses.clone());
    let vips = snapshot.services.values().flat_map(|s| s.networks.iter().flat_map(|on| on.vips.clone()));
    let gateways = snapshot.networks.values().flat_map(|n| n.gateways().collect::<Vec<_>>());
    endpoints.chain(vips).chain(gateways).collect()
}

#[derive(Debug, Clone)]
enum Step {
    /// Connects, perhaps wanting the address of this number in the subnet.
    Connect(Option<u8>),
    /// Disconnects the endpoint at this place among those there are.
    Disconnect(prop::sample::Index),
    Service,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::option::of(0u8..40).prop_map(Step::Connect),
        2 => any::<prop::sample::Index>().prop_map(Step::Disconnect),
        1 => Just(Step::Service),
    ]
}

proptest! {
    /// Whatever comes and goes: no address is given out twice, none outside the subnet, none while one is free is
    /// refused, and what is refused changes nothing.
    #[test]
    fn addresses_are_given_out_once(steps in prop::collection::vec(step(), 1..80)) {
        let mut mesh = Mesh::with_network("blue", &["10.60.0.0/27", "fd60::/120"]);
        let subnets = [net("10.60.0.0/27"), net("fd60::/120")];
        for (number, step) in steps.into_iter().enumerate() {
            let free = 30 - held(&mesh.snapshot).iter().filter(|a| a.is_ipv4()).count();
            match step {
                Step::Connect(wanted) => {
                    let addresses = wanted.map(|n| IpAddr::from([10, 60, 0, n])).into_iter().collect();
                    let spec = EndpointSpec { addresses, ..endpoint_spec("blue", number as u64) };
                    let admitted = mesh.endpoint(&spec);
                    match wanted {
                        None => prop_assert_eq!(admitted.is_ok(), free > 0),
                        Some(n) => prop_assert!(admitted.is_err() || (1..31).contains(&n)),
                    }
                }
                Step::Disconnect(which) => {
                    let ids: Vec<EndpointId> = mesh.snapshot.endpoints.keys().copied().collect();
                    if !ids.is_empty() {
                        mesh.remove_endpoint(*which.get(&ids));
                    }
                }
                Step::Service => {
                    let admitted = mesh.service(&service_spec(&format!("s{number}"), &["blue"], &[]));
                    prop_assert_eq!(admitted.is_ok(), free > 0);
                }
            }
            let held = held(&mesh.snapshot);
            let once: BTreeSet<&IpAddr> = held.iter().collect();
            prop_assert_eq!(once.len(), held.len(), "{:?}", held);
            prop_assert!(held.iter().all(|a| subnets.iter().any(|s| s.contains(*a) && *a != s.network())));
            prop_assert!(!held.contains(&ip("10.60.0.31")), "the broadcast address");
        }
    }

    /// The MAC address is drawn, not derived: an address that is given out again comes with another.
    #[test]
    fn a_reused_address_has_another_mac(bits in prop::collection::btree_set(0u64..1 << 40, 2..6)) {
        let mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
        let mut macs = BTreeMap::new();
        for mac in &bits {
            let fresh = admit::Fresh { id: 1, mac: *mac, now: 1 };
            let endpoint =
                admit::endpoint(&mesh.snapshot, mesh.first_node(), &endpoint_spec("blue", 1), fresh).unwrap();
            prop_assert_eq!(&endpoint.addresses, &[ip("10.60.0.2")]);
            macs.insert(endpoint.mac, mac);
        }
        prop_assert_eq!(macs.len(), bits.len());
    }
}

#[test]
fn aliases_are_bounded() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let with = |inode, count| EndpointSpec {
        aliases: (0..count).map(|number| name(&format!("alias{number}"))).collect(),
        ..endpoint_spec("blue", inode)
    };
    mesh.endpoint(&with(1, 64)).unwrap();
    refused(mesh.endpoint(&with(2, 65)), "65 aliases");
}

#[test]
fn a_preferred_name_gives_way_and_becomes_an_alias() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let preferring =
        |inode| EndpointSpec { preferred_name: Some(name("web")), ..endpoint_spec("blue", inode) };
    assert_eq!(mesh.endpoint(&preferring(1)).unwrap().name, name("web"));
    let second = mesh.endpoint(&preferring(2)).unwrap();
    assert_ne!(second.name, name("web"));
    assert_eq!(second.aliases, [name("web")]);
    let named = EndpointSpec { name: Some(name("mine")), ..preferring(3) };
    let third = mesh.endpoint(&named).unwrap();
    assert_eq!((third.name.clone(), third.aliases.len()), (name("mine"), 0));
}

#[test]
fn a_service_has_its_name_to_itself() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    mesh.service(&service_spec("web", &["blue"], &[])).unwrap();
    mesh.service(&service_spec("api", &["blue"], &[])).unwrap();
    let called = |inode, of: Option<&str>| EndpointSpec {
        name: Some(name("Web")),
        service: of.map(str::to_owned),
        ..endpoint_spec("blue", inode)
    };
    refused(mesh.endpoint(&called(1, None)), "service 'Web' exists already");
    refused(mesh.endpoint(&called(1, Some("api"))), "service 'Web' exists already");
    let preferring = EndpointSpec { preferred_name: Some(name("web")), ..endpoint_spec("blue", 1) };
    let other = mesh.endpoint(&preferring).unwrap();
    assert_eq!(other.aliases, [name("web")], "an engine's name for it gives way");
    let rename = EndpointUpdate { name: Some(name("api")), ..EndpointUpdate::default() };
    refused(admit::endpoint_update(&mesh.snapshot, &other, &rename), "service 'api' exists already");
    assert_eq!(mesh.endpoint(&called(2, Some("web"))).unwrap().name, name("Web"), "a replica of it");
}

#[test]
fn a_mac_address_is_one_endpoints_on_a_network() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let with =
        |inode, mac: &str| EndpointSpec { mac: Some(mac.parse().unwrap()), ..endpoint_spec("blue", inode) };
    assert_eq!(mesh.endpoint(&with(1, "02:00:00:00:00:07")).unwrap().mac.to_string(), "02:00:00:00:00:07");
    // The other end of the first one's veth pair has the second of these.
    for taken in ["02:00:00:00:00:07", "0a:00:00:00:00:07"] {
        assert!(matches!(mesh.endpoint(&with(2, taken)), Err(Refusal::MacTaken { .. })), "{taken}");
    }
    for wrong in ["01:00:00:00:00:07", "00:00:00:00:00:00", "06:6d:00:00:00:01"] {
        assert!(matches!(mesh.endpoint(&with(2, wrong)), Err(Refusal::Mac(_))), "{wrong}");
    }
}

#[test]
fn ports_of_an_endpoint_are_its_nodes_and_nobody_elses_there() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let port = |text: &str| parse_publish(text).unwrap();
    let publishing = |inode, text: &str| EndpointSpec { ports: port(text), ..endpoint_spec("blue", inode) };
    let first = mesh.endpoint(&publishing(1, "8080:80")).unwrap();
    assert_eq!(first.ports[0].mode, PublishMode::Host);
    let taken = mesh.endpoint(&publishing(2, "192.0.2.1:8080:80")).unwrap_err();
    assert!(matches!(&taken, Refusal::PortOfEndpoint { port, .. } if port == "8080/tcp"), "{taken}");
    assert!(mesh.endpoint(&publishing(2, "8080:80/udp")).is_ok());
    let (snapshot, elsewhere) = (&mesh.snapshot, NodeId::from_bits(99));
    assert!(admit::endpoint_ports(snapshot, elsewhere, &port("8080:80")).is_ok(), "another node");
    for wrong in ["80", "published=80,target=80,protocol=http", "127.0.0.1:81:80"] {
        let refused = admit::endpoint_ports(snapshot, elsewhere, &port(wrong));
        assert!(
            matches!(refused, Err(Refusal::EndpointPort(_) | Refusal::PortOnLoopback(_))),
            "{wrong}: {refused:?}"
        );
    }
}
