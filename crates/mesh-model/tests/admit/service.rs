//! Services.

use crate::cluster::{Mesh, endpoint_spec, ip, name, network_spec, ports, refused, service_spec};
use mesh_model::{
    Balance, Cluster, EndpointMode, EndpointSpec, HealthCheck, HealthKind, Object, PublishedPort, Refusal,
    Service, ServiceSpec, ServiceUpdate, admit,
};
use proptest::prelude::*;
use std::{collections::BTreeSet, sync::Arc};

fn check(kind: HealthKind) -> HealthCheck {
    HealthCheck { kind, port: None, interval_ms: 2_000, timeout_ms: 1_000, rise: 2, fall: 3 }
}

fn update(mesh: &mut Mesh, of: &str, update: &ServiceUpdate) -> Result<Arc<Service>, Refusal> {
    let service = mesh.snapshot.find_service(of).cloned().unwrap();
    let updated = Arc::new(admit::service_update(&mesh.snapshot, &service, update, 0)?.0);
    mesh.put(Object::Service(Arc::clone(&updated)));
    Ok(updated)
}

fn shown(ports: &[PublishedPort]) -> Vec<String> {
    ports.iter().map(ToString::to_string).collect()
}

#[test]
fn a_vip_for_each_network_and_family() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24", "fd60::/64"]);
    mesh.network(&network_spec("red", &["10.61.0.0/24"])).unwrap();
    let web = mesh.service(&service_spec("web", &["blue", "red", "blue"], &[])).unwrap();
    let vips: Vec<_> = web.networks.iter().map(|on| on.vips.clone()).collect();
    assert_eq!(vips, [vec![ip("10.60.0.2"), ip("fd60::2")], vec![ip("10.61.0.2")]]);
    let api = mesh.service(&service_spec("api", &["red"], &[])).unwrap();
    assert_eq!(api.networks[0].vips, [ip("10.61.0.3")]);
}

#[test]
fn dnsrr_has_no_vip_until_it_is_vip() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let dnsrr = ServiceSpec { endpoint_mode: EndpointMode::Dnsrr, ..service_spec("web", &["blue"], &[]) };
    assert!(mesh.service(&dnsrr).unwrap().networks[0].vips.is_empty());
    mesh.endpoint(&endpoint_spec("blue", 1)).unwrap();
    let to = |mode| ServiceUpdate { endpoint_mode: Some(mode), ..ServiceUpdate::default() };
    let vip = update(&mut mesh, "web", &to(EndpointMode::Vip)).unwrap();
    assert_eq!(vip.networks[0].vips, [ip("10.60.0.3")]);
    let same = update(&mut mesh, "web", &to(EndpointMode::Vip)).unwrap();
    assert_eq!(same, vip, "an update to what is changes nothing");
    let back = update(&mut mesh, "web", &to(EndpointMode::Dnsrr)).unwrap();
    assert_eq!(back.networks, vip.networks, "whoever has the VIP goes on");
    assert_eq!(update(&mut mesh, "web", &to(EndpointMode::Vip)).unwrap().networks, vip.networks);
}

#[test]
fn what_does_not_exist_or_exists() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    refused(mesh.service(&service_spec("web", &["green"], &[])), "no network is called 'green'");
    mesh.service(&service_spec("web", &["blue"], &[])).unwrap();
    refused(mesh.service(&service_spec("Web", &["blue"], &[])), "exists already");
}

#[test]
fn a_network_without_a_free_address_takes_no_service() {
    let mut mesh = Mesh::with_network("tiny", &["10.60.0.0/29"]);
    for number in 0..5 {
        mesh.service(&service_spec(&format!("s{number}"), &["tiny"], &[])).unwrap();
    }
    refused(mesh.service(&service_spec("s5", &["tiny"], &[])), "no free address left");
    refused(mesh.endpoint(&endpoint_spec("tiny", 1)), "no free address left");
}

#[test]
fn ports_that_clash() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let publish = ["80:80", "192.0.2.1:443:443", "53:53/udp", "published=8080,target=80,protocol=http"];
    mesh.service(&service_spec("web", &["blue"], &publish)).unwrap();
    for taken in [
        "80:8080",
        "192.0.2.9:80:80",
        "79-81:79-81",
        "published=80,target=80,protocol=http",
        "443:443",
        "192.0.2.1:443:1",
        "53:5353/udp",
        "8080:80",
    ] {
        refused(
            mesh.service(&service_spec("other", &["blue"], &[taken])),
            "published already by service 'web'",
        );
    }
    for twice in [&["81:80", "81:81"][..], &["81:80", "81:80"], &["192.0.2.1:81:80", "81:80"]] {
        refused(mesh.service(&service_spec("other", &["blue"], twice)), "given twice");
    }
    let free = ["80:80/udp", "53:53", "192.0.2.2:443:443", "published=8080,target=81,protocol=http"];
    mesh.service(&service_spec("other", &["blue"], &free)).unwrap();
}

#[test]
fn free_ports_are_nobodys() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    mesh.service(&service_spec("taken", &["blue"], &["30000:1", "30002:1/udp"])).unwrap();
    let web =
        mesh.service(&service_spec("web", &["blue"], &["80-81", "53/udp", "54/udp", "55/udp"])).unwrap();
    assert_eq!(
        shown(&web.ports),
        ["*:30001->80/tcp", "*:30002->81/tcp", "*:30000->53/udp", "*:30001->54/udp", "*:30003->55/udp"]
    );
}

/// L7 ports may be shared, but only by those who ask for one by number.
#[test]
fn a_free_http_port_is_nobodys_either() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let http = ["target=80,protocol=http", "target=81,protocol=http"];
    let one = mesh.service(&service_spec("one", &["blue"], &http)).unwrap();
    let two = mesh.service(&service_spec("two", &["blue"], &http)).unwrap();
    let published: BTreeSet<u16> = one.ports.iter().chain(&two.ports).map(|p| p.published).collect();
    assert_eq!(published.len(), 4, "{published:?}");
}

#[test]
fn free_ports_end() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let all = mesh.service(&service_spec("all", &["blue"], &["30001-32767:30001-32767", "1"])).unwrap();
    assert_eq!(all.ports.last().map(|p| p.published), Some(30_000));
    refused(mesh.service(&service_spec("more", &["blue"], &["1"])), "30000 to 32767");
    mesh.service(&service_spec("more", &["blue"], &["1/udp"])).unwrap();
}

#[test]
fn a_proxy_header_goes_over_tcp_alone() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    for protocol in ["udp", "http"] {
        let port = format!("published=80,target=80,protocol={protocol},proxy-protocol=v2");
        let words = format!("no PROXY header can be sent over {protocol}");
        refused(mesh.service(&service_spec("web", &["blue"], &[&port])), &words);
    }
    let ports = ["published=80,target=80,proxy-protocol=v2", "127.0.0.1:81:81", "[::1]:53:53/udp"];
    assert_eq!(mesh.service(&service_spec("web", &["blue"], &ports)).unwrap().ports.len(), 3);
}

#[test]
fn checks_that_make_no_sense() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let sound = || HealthCheck { port: Some(80), ..check(HealthKind::Tcp) };
    let path = |path: &str| HealthCheck { kind: HealthKind::Http(path.to_owned()), ..sound() };
    for (health, words) in [
        (check(HealthKind::Tcp), "needs a port"),
        (HealthCheck { port: Some(0), ..sound() }, "1 to 65535"),
        (HealthCheck { interval_ms: 99, ..sound() }, "interval"),
        (HealthCheck { interval_ms: 3_600_001, ..sound() }, "interval"),
        (HealthCheck { timeout_ms: 0, ..sound() }, "timeout"),
        (HealthCheck { timeout_ms: 60_001, ..sound() }, "timeout"),
        (HealthCheck { rise: 0, ..sound() }, "rise and fall"),
        (HealthCheck { fall: 0, ..sound() }, "rise and fall"),
        (path(""), "starts with '/'"),
        (path("up"), "starts with '/'"),
        (path("/a b"), "no blanks"),
        (path("/a\r\nHost: x"), "no blanks"),
    ] {
        let spec = ServiceSpec { health: Some(health), ..service_spec("web", &["blue"], &["53:53/udp"]) };
        refused(mesh.service(&spec), words);
    }
    let first = ServiceSpec {
        health: Some(check(HealthKind::Http("/up?x=1".to_owned()))),
        ..service_spec("web", &["blue"], &["53:53/udp", "8080:80", "8081:81"])
    };
    assert_eq!(mesh.service(&first).unwrap().health_port(), Some(80), "the first that is not UDP");
}

#[test]
fn updates_change_what_they_say() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let web = mesh.service(&service_spec("web", &["blue"], &["80:80", "53:53", "53:53/udp"])).unwrap();
    assert_eq!(update(&mut mesh, "web", &ServiceUpdate::default()).unwrap(), web);

    let moved = ServiceUpdate {
        publish_rm: vec!["80".to_owned(), "53/udp".to_owned()],
        publish_add: ports(&["80:8080", "443"]),
        aliases: Some(vec![name("www")]),
        balance: Some(Balance::Random),
        drain_timeout_ms: Some(1),
        health: Some(Some(check(HealthKind::Tcp))),
        ..ServiceUpdate::default()
    };
    let moved = update(&mut mesh, "web", &moved).unwrap();
    assert_eq!(shown(&moved.ports), ["*:53->53/tcp", "*:80->8080/tcp", "*:30000->443/tcp"]);
    assert_eq!((moved.id, &moved.networks, moved.created), (web.id, &web.networks, web.created));
    assert_eq!((&*moved.aliases[0], moved.balance, moved.drain_timeout_ms), ("www", Balance::Random, 1));
    assert!(moved.health.is_some());
    let unchecked = ServiceUpdate { health: Some(None), ..ServiceUpdate::default() };
    assert!(update(&mut mesh, "web", &unchecked).unwrap().health.is_none());
}

#[test]
fn updates_are_refused_like_creations() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    mesh.service(&service_spec("other", &["blue"], &["81:81"])).unwrap();
    let checked =
        ServiceSpec { health: Some(check(HealthKind::Tcp)), ..service_spec("web", &["blue"], &["80:80"]) };
    mesh.service(&checked).unwrap();
    let add = |spec| ServiceUpdate { publish_add: ports(&[spec]), ..ServiceUpdate::default() };
    let rm = |port: &str| ServiceUpdate { publish_rm: vec![port.to_owned()], ..ServiceUpdate::default() };
    refused(update(&mut mesh, "web", &add("81:80")), "published already by service 'other'");
    refused(update(&mut mesh, "web", &add("80:81")), "given twice");
    for unknown in ["81", "80/udp", "80:81", "", "80:80/udp"] {
        refused(update(&mut mesh, "web", &rm(unknown)), "not published by this service");
    }
    refused(update(&mut mesh, "web", &rm("80")), "needs a port");
}

#[test]
fn ports_are_removed_by_all_that_they_are_published_by() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let all = ["9090-9092:80-82", "192.0.2.1:443:8443", "published=53,target=53,protocol=udp,mode=host"];
    mesh.service(&service_spec("web", &["blue"], &all)).unwrap();
    let mut rm = |port: &str| {
        let update_of = ServiceUpdate { publish_rm: vec![port.to_owned()], ..ServiceUpdate::default() };
        update(&mut mesh, "web", &update_of).map(|service| service.ports.len())
    };
    for other in ["9090-9093", "9091-9092:80-81", "192.0.2.2:443:8443", "published=53,target=53"] {
        refused(rm(other), "not published by this service");
    }
    assert_eq!(rm("9090-9091"), Ok(3));
    assert_eq!(rm("9092-9092:82-82/tcp"), Ok(2));
    assert_eq!(rm("192.0.2.1:443:8443"), Ok(1));
    assert_eq!(rm("published=53,target=53,protocol=udp,mode=host"), Ok(0));
}

#[test]
fn ports_are_taken_from_another_service_in_one_change() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let checked =
        ServiceSpec { health: Some(check(HealthKind::Tcp)), ..service_spec("old", &["blue"], &["80:80"]) };
    let old = mesh.service(&checked).unwrap();
    let web = mesh.service(&service_spec("web", &["blue"], &["81:80"])).unwrap();
    let take =
        |port: &str| ServiceUpdate { publish_add: ports(&[port]), take: true, ..ServiceUpdate::default() };
    let updated =
        |mesh: &Mesh, update: &ServiceUpdate| admit::service_update(&mesh.snapshot, &web, update, 0);
    refused(updated(&mesh, &take("80:8080")), "service 'old' would have no port for its health check");
    let mut unchecked = Service::clone(&old);
    unchecked.health = None;
    mesh.put(Object::Service(Arc::new(unchecked)));
    let (after, robbed) = updated(&mesh, &take("80:8080")).unwrap();
    assert_eq!(shown(&after.ports), ["*:81->80/tcp", "*:80->8080/tcp"]);
    assert_eq!(
        robbed.iter().map(|service| (service.id, service.ports.len())).collect::<Vec<_>>(),
        [(old.id, 0)]
    );
    let free = ServiceUpdate { take: true, ..ServiceUpdate::default() };
    assert!(updated(&mesh, &free).unwrap().1.is_empty());
    let again = ServiceUpdate { publish_add: ports(&["81:80"]), ..ServiceUpdate::default() };
    assert_eq!(updated(&mesh, &again).unwrap().0, *web, "what is there already is no second one");
}

#[test]
fn the_port_of_vxlan_is_the_clusters_own() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let mut cluster = Cluster::clone(mesh.snapshot.cluster.as_ref().unwrap());
    cluster.data_path_port = 30_000;
    mesh.put(Object::Cluster(Arc::new(cluster)));
    for taken in ["30000:53/udp", "192.0.2.1:30000:53/udp", "29999-30000:53-54/udp"] {
        refused(
            mesh.service(&service_spec("web", &["blue"], &[taken])),
            "port 30000/udp is the cluster's own",
        );
    }
    let web = mesh.service(&service_spec("web", &["blue"], &["30000:80", "53/udp"])).unwrap();
    assert_eq!(shown(&web.ports), ["*:30000->80/tcp", "*:30001->53/udp"]);
    let add = ServiceUpdate { publish_add: ports(&["30000:53/udp"]), ..ServiceUpdate::default() };
    refused(update(&mut mesh, "web", &add), "the cluster's own");
}

#[test]
fn a_service_with_endpoints_stays() {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
    let web = mesh.service(&service_spec("web", &["blue"], &[])).unwrap();
    assert_eq!(admit::service_removal(&mesh.snapshot, &web), Ok(()));
    let replica = EndpointSpec { service: Some("web".to_owned()), ..endpoint_spec("blue", 1) };
    let replica = mesh.endpoint(&replica).unwrap();
    refused(admit::service_removal(&mesh.snapshot, &web), "has 1 endpoints");
    mesh.remove_endpoint(replica.id);
    assert_eq!(admit::service_removal(&mesh.snapshot, &web), Ok(()));
}

/// A specification somewhere in a few ports, so that many of them meet.
fn publish() -> impl Strategy<Value = String> {
    let protocol = prop_oneof![Just("tcp"), Just("udp"), Just("http")];
    let published = prop::option::of(30_000u16..30_006);
    (published, 80u16..83, protocol, prop::option::of(1u8..3)).prop_map(
        |(published, target, protocol, ip)| {
            let published = published.map(|p| format!("published={p},")).unwrap_or_default();
            let ip = ip.map(|ip| format!(",ip=192.0.2.{ip}")).unwrap_or_default();
            format!("{published}target={target},protocol={protocol}{ip}")
        },
    )
}

proptest! {
    /// Whatever services ask for, no two of them hold one port, and no two VIPs are one.
    #[test]
    fn admitted_services_share_no_port_and_no_vip(
        asked in prop::collection::vec(prop::collection::vec(publish(), 0..4), 1..10),
    ) {
        let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24"]);
        for (number, specs) in asked.iter().enumerate() {
            let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
            let before = mesh.snapshot.clone();
            match mesh.service(&service_spec(&format!("s{number}"), &["blue"], &specs)) {
                Ok(service) => {
                    prop_assert_eq!(service.ports.len(), specs.len());
                    prop_assert!(service.ports.iter().all(|p| p.published != 0));
                }
                Err(_) => prop_assert_eq!(&mesh.snapshot, &before),
            }
        }
        let services: Vec<_> = mesh.snapshot.services.values().collect();
        let vips: BTreeSet<_> = services.iter().flat_map(|s| &s.networks[0].vips).collect();
        prop_assert_eq!(vips.len(), services.len());
        let held: Vec<&PublishedPort> = services.iter().flat_map(|s| &s.ports).collect();
        for (at, one) in held.iter().enumerate() {
            prop_assert!(held[..at].iter().all(|two| !one.clashes(two)), "{held:?}");
        }
    }
}
