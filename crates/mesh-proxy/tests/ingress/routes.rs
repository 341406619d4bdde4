//! Routes and checks as plain functions of a snapshot.

use crate::model::{self, ME, OTHER, port, service, set_health, snapshot};
use crate::rig::overlay;
use mesh_model::{Health, HealthKind, ProxyProtocol, PublishMode, Service, Snapshot};
use mesh_proxy::{Check, ListenAddr, Probe, Routes, plan_checks};
use std::sync::Arc;

fn backends(routes: &Routes, service: &str) -> Vec<u64> {
    let route = routes.iter().find(|route| *route.name == *service).expect("a route");
    route.backends.iter().map(|backend| backend.endpoint.bits()).collect()
}

fn update(snapshot: &mut Snapshot, id: u64, change: impl FnOnce(&mut Service)) {
    let service = snapshot.services.get_mut(&mesh_model::ServiceId::from_bits(id)).unwrap();
    change(Arc::make_mut(service));
}

fn two_nodes() -> Snapshot {
    let endpoints = vec![
        model::endpoint(1, 1, ME, overlay(1)),
        model::endpoint(2, 1, OTHER, overlay(2)),
        model::endpoint(3, 2, OTHER, overlay(3)),
    ];
    snapshot(vec![service(1, vec![port(80, 8080)]), service(2, vec![port(81, 8081)])], endpoints)
}

#[test]
fn a_port_leads_to_the_replicas_on_every_node() {
    let routes = Routes::new(&two_nodes(), ME);
    assert_eq!(backends(&routes, "service_1"), [1, 2]);
    let first = routes.iter().next().unwrap().backends[0];
    assert_eq!((first.addr.to_string().as_str(), first.network), ("10.1.0.1:8080", model::NETWORK));
    assert_eq!(routes.backends().len(), 3);
}

#[test]
fn one_that_drains_or_is_not_healthy_is_no_backend() {
    let mut snapshot = two_nodes();
    update(&mut snapshot, 1, |service| service.health = Some(model::check(HealthKind::Tcp, 1000)));
    assert!(backends(&Routes::new(&snapshot, ME), "service_1").is_empty(), "out until the first success");
    set_health(&mut snapshot, 1, Health::Healthy);
    set_health(&mut snapshot, 2, Health::Unhealthy);
    assert_eq!(backends(&Routes::new(&snapshot, ME), "service_1"), [1]);
    Arc::make_mut(snapshot.endpoints.values_mut().next().unwrap()).draining = true;
    assert!(backends(&Routes::new(&snapshot, ME), "service_1").is_empty());
    assert_eq!(Routes::new(&snapshot, ME).iter().count(), 2, "the port answers all the same");
}

#[test]
fn host_mode_is_for_nodes_with_a_replica_and_leads_to_theirs() {
    let mut snapshot = two_nodes();
    update(&mut snapshot, 1, |service| service.ports[0].mode = PublishMode::Host);
    update(&mut snapshot, 2, |service| service.ports[0].mode = PublishMode::Host);
    let routes = Routes::new(&snapshot, ME);
    assert_eq!(backends(&routes, "service_1"), [1]);
    let listen: Vec<ListenAddr> = routes.iter().map(|route| route.listen).collect();
    assert_eq!(listen, [ListenAddr { ip: None, port: 80 }]);
}

#[test]
fn local_replicas_are_preferred_as_long_as_there_are_any() {
    let mut snapshot = two_nodes();
    for id in [1, 2] {
        update(&mut snapshot, id, |service| service.prefer_local = true);
    }
    let routes = Routes::new(&snapshot, ME);
    assert_eq!((backends(&routes, "service_1"), backends(&routes, "service_2")), (vec![1], vec![3]));
    Arc::make_mut(snapshot.endpoints.values_mut().next().unwrap()).draining = true;
    assert_eq!(backends(&Routes::new(&snapshot, ME), "service_1"), [2]);
}

#[test]
fn a_replica_is_reached_by_a_family_that_the_node_has() {
    let mut snapshot = two_nodes();
    for endpoint in snapshot.endpoints.values_mut() {
        Arc::make_mut(endpoint).addresses = vec!["fd00::1".parse().unwrap(), "10.1.0.1".parse().unwrap()];
    }
    let first = Routes::new(&snapshot, ME).iter().next().unwrap().backends[0];
    assert!(first.addr.is_ipv4());
}

#[test]
fn checks_are_for_endpoints_of_this_node_whose_service_has_one() {
    let mut snapshot = two_nodes();
    assert!(plan_checks(&snapshot, ME).is_empty());
    let http = HealthKind::Http("/ready".into());
    update(&mut snapshot, 1, |service| service.health = Some(model::check(http, 2000)));
    let checks: Vec<(u64, Check)> =
        plan_checks(&snapshot, ME).into_iter().map(|(endpoint, check)| (endpoint.bits(), check)).collect();
    let [(1, check)] = &checks[..] else { panic!("{checks:?}") };
    assert_eq!(check.addr.to_string(), "10.1.0.1:8080", "the first TCP target unless a port is given");
    assert_eq!(check.probe, Probe::Http { path: "/ready".into(), host: "service_1".parse().unwrap() });
    assert_eq!(check.proxy_protocol, None);
    update(&mut snapshot, 1, |service| service.ports[0].proxy_protocol = Some(ProxyProtocol::V2));
    let checks = plan_checks(&snapshot, ME);
    assert_eq!(
        checks.values().next().unwrap().proxy_protocol,
        Some(ProxyProtocol::V2),
        "what the port expects"
    );
    update(&mut snapshot, 1, |service| service.health.as_mut().unwrap().port = Some(9000));
    assert_eq!(plan_checks(&snapshot, ME).values().next().unwrap().addr.port(), 9000);
}
