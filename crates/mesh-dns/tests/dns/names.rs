//! Which names there are, and what is at them.

use crate::fixture::{Mesh, OTHER, OURS, addresses, ask, check, ip, negative, port};
use hickory_proto::{
    op::ResponseCode::{NXDomain, NoError},
    rr::{
        RData,
        RecordType::{A, AAAA, ANY, HINFO, MX, PTR, SOA, SRV, TXT},
    },
};
use mesh_dns::{Neighbours, Table};
use mesh_model::{Container, EndpointMode, Health, Key, NetworkId, NodeId, Protocol, Target};

#[test]
fn a_service_is_its_vip_by_every_name_it_has() {
    let table = Mesh::with_web().table();
    for name in
        ["nginx_service", "www", "NGINX_Service", "www.self-network", "Www.Self-Network.Mesh.Internal."]
    {
        assert_eq!(addresses(&table, name, A), ["192.168.100.2"], "{name}");
        assert_eq!(addresses(&table, name, AAAA), ["fd00:64::2"], "{name}");
    }
}

#[test]
fn tasks_are_the_healthy_endpoints_that_do_not_drain() {
    let mut mesh = Mesh::with_web();
    for name in ["tasks.nginx_service", "tasks.nginx_service.self-network.mesh.internal"] {
        assert_eq!(addresses(&mesh.table(), name, A), ["192.168.100.11", "192.168.100.13"]);
        assert_eq!(
            addresses(&mesh.table(), name, AAAA),
            ["fd00:64::11", "fd00:64::13"].map(|s| s.to_owned())
        );
    }
    for endpoint in mesh.snapshot.endpoints.values_mut() {
        std::sync::Arc::make_mut(endpoint).draining = true;
    }
    assert_eq!(negative(&mesh.table(), "tasks.nginx_service", A), NoError);
    assert_eq!(addresses(&mesh.table(), "nginx_service", A), ["192.168.100.2"], "the VIP stays");
}

#[test]
fn each_task_comes_first_now_and_then() {
    let table = Mesh::with_web().table();
    let mut first: Vec<_> = (0..200)
        .map(|_| ask(&table, "tasks.nginx_service", A).unwrap().answers[0].data.to_string())
        .collect();
    first.sort();
    first.dedup();
    assert_eq!(first, ["192.168.100.11", "192.168.100.13"]);
}

#[test]
fn without_a_vip_a_service_is_its_backends() {
    let mut mesh = Mesh::new();
    let service = mesh.service("db", |service| {
        service.endpoint_mode = EndpointMode::Dnsrr;
        service.networks[0].vips.clear();
        service.aliases = vec!["database".parse().unwrap()];
    });
    for last in [30, 31] {
        mesh.endpoint(&format!("db-{last}"), last, |endpoint| endpoint.service = Some(service));
    }
    for name in ["db", "database", "tasks.db"] {
        assert_eq!(addresses(&mesh.table(), name, A), ["192.168.100.30", "192.168.100.31"], "{name}");
    }
}

#[test]
fn endpoints_answer_to_their_names_unless_their_check_calls_them_out() {
    let table = Mesh::with_web().table();
    assert_eq!(addresses(&table, "web.1", A), ["192.168.100.11"]);
    assert_eq!(addresses(&table, "web.3.self-network", AAAA), ["fd00:64::13"]);
    assert_eq!(negative(&table, "web.2", A), NoError, "out, but not for others to answer");
    assert_eq!(addresses(&table, "replica", A), ["192.168.100.11", "192.168.100.13"]);
    assert_eq!(addresses(&table, "lonely", A), ["192.168.100.20"]);
}

#[test]
fn a_name_that_several_share_stands_for_all() {
    let mut mesh = Mesh::new();
    for last in [20, 21] {
        mesh.endpoint(&format!("e{last}"), last, |e| e.aliases = vec!["Shared".parse().unwrap()]);
    }
    assert_eq!(addresses(&mesh.table(), "shared", A), ["192.168.100.20", "192.168.100.21"]);
    let mut mesh = Mesh::new();
    for (name, number) in [("one", 80), ("two", 80)] {
        let id = mesh.service(name, |service| {
            service.aliases = vec!["both".parse().unwrap()];
            service.ports = vec![port(number, Protocol::Tcp)];
        });
        let last = 40 + mesh.snapshot.services.len() as u8;
        mesh.endpoint(&format!("{name}-1"), last, |endpoint| endpoint.service = Some(id));
    }
    assert_eq!(addresses(&mesh.table(), "both", A), ["192.168.100.2", "192.168.100.3"]);
    assert_eq!(ask(&mesh.table(), "_80._tcp.both", SRV).unwrap().answers.len(), 2);
}

#[test]
fn an_alias_of_a_vip_and_of_a_service_without_stands_for_all_of_both() {
    let mut mesh = Mesh::new();
    for (name, mode, lasts) in [("one", EndpointMode::Vip, [41, 42]), ("two", EndpointMode::Dnsrr, [43, 44])]
    {
        let id = mesh.service(name, |service| {
            service.endpoint_mode = mode;
            service.aliases = vec!["both".parse().unwrap()];
            service.ports = vec![port(80, Protocol::Tcp)];
            if mode == EndpointMode::Dnsrr {
                service.networks[0].vips.clear();
            }
        });
        for last in lasts {
            mesh.endpoint(&format!("{name}-{last}"), last, |endpoint| endpoint.service = Some(id));
        }
    }
    let table = mesh.table();
    for name in ["both", "both.self-network", "BOTH.self-network.mesh.internal."] {
        let expected = ["192.168.100.2", "192.168.100.43", "192.168.100.44"];
        assert_eq!(addresses(&table, name, A), expected, "{name}");
        assert_eq!(addresses(&table, name, AAAA), ["fd00:64::2", "fd00:64::43", "fd00:64::44"], "{name}");
    }
    assert_eq!(ask(&table, "_80._tcp.both", SRV).unwrap().answers.len(), 4, "tasks of both");
    assert_eq!(addresses(&table, "two", A), ["192.168.100.43", "192.168.100.44"]);
    assert_eq!(addresses(&table, "one", A), ["192.168.100.2"]);
}

#[test]
fn a_service_has_its_names_to_itself() {
    let mut mesh = Mesh::new();
    let web = mesh.service("web", |service| service.aliases = vec!["www".parse().unwrap()]);
    mesh.endpoint("Web", 50, |endpoint| endpoint.service = Some(web));
    mesh.endpoint("other", 51, |endpoint| {
        endpoint.aliases = ["WEB", "www", "tasks.web"].map(|alias| alias.parse().unwrap()).into();
    });
    mesh.service("api", |service| service.aliases = vec!["web".parse().unwrap(), "www".parse().unwrap()]);
    let table = mesh.table();
    assert_eq!(addresses(&table, "web", A), ["192.168.100.2"], "neither a replica, a stranger nor an alias");
    assert_eq!(addresses(&table, "tasks.web", A), ["192.168.100.50"]);
    assert_eq!(addresses(&table, "www", A), ["192.168.100.2", "192.168.100.3"], "two services share it");
    assert_eq!(addresses(&table, "other", A), ["192.168.100.51"]);
}

#[test]
fn reverse_names_lead_back() {
    let table = Mesh::with_web().table();
    let nibbles = |last: &str| format!("{last}{}.4.6.0.0.0.0.d.f.ip6.arpa.", ".0".repeat(22));
    for (name, expected) in [
        ("2.100.168.192.in-addr.arpa.".to_owned(), "nginx_service.Self-Network.mesh.internal."),
        ("12.100.168.192.IN-ADDR.arpa.".to_owned(), "web.2.Self-Network.mesh.internal."),
        (nibbles("0.2"), "Lonely.Self-Network.mesh.internal."),
    ] {
        let message = ask(&table, &name, PTR).unwrap_or_else(|| panic!("{name} is forwarded"));
        let [record] = &message.answers[..] else { panic!("{name}: {message}") };
        assert_eq!(record.data.to_string(), expected);
        assert!(message.metadata.authoritative);
        assert_eq!(negative(&table, &name, TXT), NoError, "{name}");
    }
    assert_eq!(negative(&table, "99.100.168.192.in-addr.arpa.", PTR), NXDomain);
    assert_eq!(negative(&table, "x.2.100.168.192.in-addr.arpa.", PTR), NXDomain);
    assert_eq!(negative(&table, "100.168.192.in-addr.arpa.", PTR), NoError);
    assert!(ask(&table, "1.0.7.10.in-addr.arpa.", PTR).is_none(), "another network's address");
    assert!(ask(&table, "168.192.in-addr.arpa.", PTR).is_none());
}

#[test]
fn srv_names_every_task_with_its_addresses() {
    let table = Mesh::with_web().table();
    for name in ["_8080._tcp.nginx_service", "_8080._TCP.www.self-network", "_53._udp.www"] {
        let message = ask(&table, name, SRV).unwrap_or_else(|| panic!("{name} is forwarded"));
        let mut targets: Vec<_> = message
            .answers
            .iter()
            .map(|record| match &record.data {
                RData::SRV(srv) => (srv.port, srv.target.to_ascii()),
                other => panic!("{other}"),
            })
            .collect();
        targets.sort();
        let number = if name.contains("udp") { 53 } else { 8080 };
        let target = |index: u8| (number, format!("web.{index}.Self-Network.mesh.internal."));
        assert_eq!(targets, [target(1), target(3)], "{name}");
        assert_eq!(message.additionals.len(), 4, "two addresses each: {message}");
        for record in &message.additionals {
            let owner = record.name.to_ascii();
            let found = addresses(&table, &owner, record.record_type());
            assert_eq!(found, [record.data.to_string()], "{owner}");
        }
    }
    assert_eq!(negative(&table, "_8081._tcp.nginx_service", SRV), NXDomain);
    assert_eq!(negative(&table, "_08080._tcp.nginx_service", SRV), NXDomain);
    assert_eq!(negative(&table, "_8080._udp.nginx_service", SRV), NXDomain);
    assert_eq!(negative(&table, "_8080._tcp.lonely", SRV), NXDomain);
    assert_eq!(negative(&table, "_tcp.nginx_service", SRV), NoError);
    assert_eq!(negative(&table, "_8080._tcp.nginx_service", A), NoError);
    assert!(ask(&table, "_8080._tcp.example", SRV).is_none());
}

#[test]
fn srv_without_a_healthy_task_has_no_data() {
    let mut mesh = Mesh::with_web();
    mesh.snapshot.health.values_mut().for_each(|health| *health = Health::Starting);
    assert_eq!(negative(&mesh.table(), "_8080._tcp.nginx_service", SRV), NoError);
}

#[test]
fn a_known_name_of_another_type_has_no_data_and_is_not_forwarded() {
    let table = Mesh::with_web().table();
    for name in ["nginx_service", "tasks.www.self-network.mesh.internal", "lonely.self-network", "web.1"] {
        if name.starts_with("tasks.www") {
            assert_eq!(negative(&table, name, MX), NXDomain, "tasks. goes with the service's own name only");
        } else {
            assert_eq!(negative(&table, name, MX), NoError);
            assert_eq!(negative(&table, name, PTR), NoError);
        }
    }
    let mut mesh = Mesh::new();
    mesh.endpoint_at("v4only", vec![ip("192.168.100.77")], |_| {});
    assert_eq!(negative(&mesh.table(), "v4only", AAAA), NoError);
}

#[test]
fn any_is_refused_politely() {
    let table = Mesh::with_web().table();
    for name in ["nginx_service", "2.100.168.192.in-addr.arpa.", "mesh.internal."] {
        let message = ask(&table, name, ANY).unwrap();
        let [record] = &message.answers[..] else { panic!("{message}") };
        assert_eq!(record.record_type(), HINFO);
    }
    assert_eq!(negative(&table, "no.mesh.internal.", ANY), NXDomain);
}

#[test]
fn below_the_domain_we_know_all_there_is() {
    let table = Mesh::with_web().table();
    for absent in [
        "nothing.self-network.mesh.internal.",
        "nginx_service.other.mesh.internal.",
        "other.mesh.internal.",
        "self-network.self-network.mesh.internal.",
        "xself-network.mesh.internal.",
        "9.self-network.mesh.internal.",
    ] {
        assert_eq!(negative(&table, absent, A), NXDomain, "{absent}");
    }
    // RFC 8020: what has names below it exists.
    let mut mesh = Mesh::new();
    mesh.endpoint("a.b.c", 60, |_| {});
    for empty in ["mesh.internal.", "self-network.mesh.internal.", "b.c.self-network.mesh.internal."] {
        assert_eq!(negative(&mesh.table(), empty, A), NoError, "{empty}");
    }
    let soa = ask(&table, "mesh.internal.", SOA).unwrap();
    assert_eq!(soa.answers[0].record_type(), SOA);
}

#[test]
fn what_is_not_ours_is_forwarded() {
    let mut mesh = Mesh::with_web();
    mesh.endpoint_at("elsewhere", vec![ip("10.7.0.9")], |endpoint| endpoint.network = OTHER);
    mesh.service("far", |service| service.networks[0].network = OTHER);
    let table = mesh.table();
    for name in
        ["example.com.", "unknown", "elsewhere", "far", "tasks.far", "x.self-network", "2", "internal.", "."]
    {
        assert!(ask(&table, name, A).is_none(), "{name}");
    }
    let other = Table::new(&mesh.snapshot, OTHER).unwrap();
    assert_eq!(addresses(&other, "elsewhere.other.mesh.internal.", A), ["10.7.0.9"]);
    assert!(ask(&other, "nginx_service", A).is_none());
}

#[test]
fn dots_in_names_of_networks_and_names_that_dns_cannot_say() {
    let mut mesh = Mesh::new();
    mesh.network(OURS, "prod.eu", &["192.168.100.0/24"]);
    mesh.endpoint("a.b", 61, |_| {});
    mesh.endpoint("x..y", 62, |_| {});
    let table = mesh.table();
    for name in ["a.b", "a.b.prod.eu", "A.B.PROD.EU.mesh.internal."] {
        assert_eq!(addresses(&table, name, A), ["192.168.100.61"], "{name}");
    }
    assert_eq!(negative(&table, "eu.mesh.internal.", A), NoError);
    assert_eq!(negative(&table, "62.100.168.192.in-addr.arpa.", PTR), NXDomain);
    assert!(Table::new(&mesh.snapshot, NetworkId::from_bits(99)).is_none());
    mesh.network(OURS, "no..name", &["192.168.100.0/24"]);
    assert_eq!(addresses(&mesh.table(), "a.b", A), ["192.168.100.61"]);
    assert_eq!(addresses(&mesh.table(), "a.b.0000000000000001.mesh.internal.", A), ["192.168.100.61"]);
}

#[test]
fn a_checked_replica_without_a_verdict_is_not_offered_yet() {
    let mut mesh = Mesh::new();
    let service = mesh.service("new", |service| service.health = Some(check()));
    mesh.endpoint("new.1", 70, |endpoint| endpoint.service = Some(service));
    assert_eq!(negative(&mesh.table(), "new.1", A), NoError);
    assert_eq!(negative(&mesh.table(), "tasks.new", A), NoError);
}

#[test]
fn a_container_on_several_networks_is_known_by_its_namespace() {
    let mut mesh = Mesh::new();
    let (here, elsewhere) = (NodeId::from_bits(1), NodeId::from_bits(2));
    let mut place = |last: u8, network, inode, node, path: Option<&str>| {
        let address = if network == OURS { format!("192.168.100.{last}") } else { format!("10.7.0.{last}") };
        mesh.endpoint_at(&format!("e{last}.{inode}"), vec![ip(&address)], |endpoint| {
            (endpoint.network, endpoint.namespace_inode, endpoint.node) = (network, inode, node);
            endpoint.target = match path {
                Some(path) => Target::Docker(Container { name: "c".to_owned(), netns: Some(path.into()) }),
                None => Target::Pid(1),
            };
        })
    };
    let both = [place(10, OURS, 7, here, None), place(11, OTHER, 7, here, None)];
    // Before its namespace is there, Docker says where it will be.
    let staged = [place(12, OURS, 0, here, Some("/run/d")), place(13, OTHER, 0, here, Some("/run/d"))];
    // Of another container, and of another host's with the same number.
    let others = [place(14, OURS, 8, here, None), place(15, OTHER, 7, elsewhere, None)];
    let keys: Vec<Key> = [both, staged, others].concat().into_iter().map(Key::Endpoint).collect();
    let mut neighbours = Neighbours::default();
    assert!(neighbours.update(&mesh.snapshot, here, &keys));
    let found = neighbours.other_networks();
    let of = |network, address: &str| found[&network].get(&ip(address)).cloned().unwrap_or_default();
    for (network, address, expected) in [
        (OURS, "192.168.100.10", Some(OTHER)),
        (OTHER, "10.7.0.11", Some(OURS)),
        (OURS, "192.168.100.12", Some(OTHER)),
        (OTHER, "10.7.0.13", Some(OURS)),
        (OURS, "192.168.100.14", None),
        (OTHER, "10.7.0.15", None),
    ] {
        assert_eq!(of(network, address), expected.into_iter().collect(), "{address}");
    }
    // All addresses of a container that somebody knows by one of them.
    let beside = |network, address: &str| -> std::collections::BTreeSet<String> {
        neighbours.addresses_beside(network, ip(address)).iter().map(ToString::to_string).collect()
    };
    for (one, other, addresses) in [
        ((OURS, "192.168.100.10"), (OTHER, "10.7.0.11"), ["192.168.100.10", "10.7.0.11"]),
        ((OURS, "192.168.100.12"), (OTHER, "10.7.0.13"), ["192.168.100.12", "10.7.0.13"]),
    ] {
        let expected = addresses.map(str::to_owned).into();
        assert_eq!(beside(one.0, one.1), expected);
        assert_eq!(beside(other.0, other.1), expected);
    }
    assert_eq!(beside(OURS, "192.168.100.14"), ["192.168.100.14".to_owned()].into());
    assert!(beside(OTHER, "10.7.0.15").is_empty(), "another node's");
    assert!(!neighbours.update(&mesh.snapshot, here, &keys), "nothing differs");
    mesh.snapshot.endpoints.remove(&both[1]);
    assert!(neighbours.update(&mesh.snapshot, here, &keys));
    assert!(!neighbours.other_networks()[&OURS].contains_key(&ip("192.168.100.10")));
}
