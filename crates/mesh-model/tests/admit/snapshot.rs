//! Snapshots: changes, look-ups, and what they are on the wire and on disk.

use crate::cluster::{Mesh, endpoint_spec, name, service_spec};
use mesh_model::{
    Availability, Change, EndpointId, EndpointSpec, Health, HealthCheck, HealthKind, Key, NodeStatus, Object,
    Service, ServiceId, ServiceSpec, ServiceUpdate, Snapshot, Weight,
};
use proptest::prelude::*;
use std::sync::Arc;

/// A mesh with something of everything.
fn full() -> Mesh {
    let mut mesh = Mesh::with_network("blue", &["10.60.0.0/24", "fd60::/64"]);
    let check = HealthCheck {
        kind: HealthKind::Http("/".to_owned()),
        port: Some(80),
        interval_ms: 2_000,
        timeout_ms: 1_000,
        rise: 2,
        fall: 3,
    };
    let publish = ["80:80", "[fd00::1]:53:53/udp", "published=443,target=1,protocol=http,mode=host"];
    mesh.service(&ServiceSpec { health: Some(check), ..service_spec("web", &["blue"], &publish) }).unwrap();
    mesh.service(&service_spec("api", &["blue"], &[])).unwrap();
    for (inode, service) in [(1, Some("web")), (2, Some("web")), (3, Some("api")), (4, None)] {
        let service = service.map(str::to_owned);
        let endpoint_name = Some(name(&format!("e{inode}")));
        let aliases = vec![name("other")];
        let spec = EndpointSpec { service, name: endpoint_name, aliases, ..endpoint_spec("blue", inode) };
        mesh.endpoint(&spec).unwrap();
    }
    let ids: Vec<EndpointId> = mesh.snapshot.endpoints.keys().copied().collect();
    mesh.put(Object::Health(ids[0], Health::Healthy));
    mesh.put(Object::Health(ids[1], Health::Unhealthy));
    mesh.snapshot.revision = 42;
    mesh
}

/// Every record of a snapshot as a change that makes it.
fn records(snapshot: &Snapshot) -> Vec<Object> {
    let mut records: Vec<Object> = snapshot.cluster.iter().map(|c| Object::Cluster(Arc::clone(c))).collect();
    records.extend(snapshot.nodes.values().map(|n| Object::Node(Arc::clone(n))));
    records.extend(snapshot.networks.values().map(|n| Object::Network(Arc::clone(n))));
    records.extend(snapshot.services.values().map(|s| Object::Service(Arc::clone(s))));
    records.extend(snapshot.endpoints.values().map(|e| Object::Endpoint(Arc::clone(e))));
    records.extend(snapshot.health.iter().map(|(id, health)| Object::Health(*id, *health)));
    records
}

#[test]
fn a_snapshot_survives_its_text() {
    let snapshot = full().snapshot;
    let text = serde_json::to_string(&snapshot).unwrap();
    assert_eq!(serde_json::from_str::<Snapshot>(&text).unwrap(), snapshot);
    for record in records(&snapshot) {
        for change in [Change::Delete(record.key()), Change::Put(record)] {
            let text = serde_json::to_string(&change).unwrap();
            assert_eq!(serde_json::from_str::<Change>(&text).unwrap(), change, "{text}");
        }
    }
}

#[test]
fn keys_survive_their_text_and_nothing_else_is_one() {
    for record in records(&full().snapshot) {
        let key = record.key();
        assert_eq!(key.to_string().parse(), Ok(key));
    }
    for bad in
        ["", "node", "node/", "node/xyz", "cluster/1", "token/0000000000000001", "node/0000000000000001/x"]
    {
        assert!(bad.parse::<Key>().is_err(), "{bad}");
    }
}

#[test]
fn traffic_goes_to_healthy_endpoints_that_stay() {
    let mut mesh = full();
    let snapshot = &mesh.snapshot;
    let blue = snapshot.find_network("blue").unwrap().id;
    let (web, api) = (snapshot.find_service("web").unwrap().id, snapshot.find_service("api").unwrap().id);
    let names = |snapshot: &Snapshot, service| -> Vec<String> {
        snapshot.backends(service, blue).map(|e| e.name.to_string()).collect()
    };
    assert_eq!(names(snapshot, web), ["e1"], "one of two is unhealthy");
    assert_eq!(names(snapshot, api), ["e3"], "without a check it is in from the start");
    let (e1, e2) =
        (Arc::clone(snapshot.find_endpoint("e1").unwrap()), snapshot.find_endpoint("e2").unwrap().id);

    mesh.snapshot.apply(Change::Delete(Key::Health(e2)));
    assert_eq!(names(&mesh.snapshot, web), ["e1"], "no verdict yet: out until the first success");
    mesh.put(Object::Health(e2, Health::Healthy));
    mesh.put(Object::Endpoint(Arc::new(mesh_model::Endpoint { draining: true, ..(*e1).clone() })));
    assert_eq!(names(&mesh.snapshot, web), ["e2"]);
    assert_eq!(mesh.snapshot.replicas(web, blue).count(), 2);
    let e2 = Arc::clone(mesh.snapshot.find_endpoint("e2").unwrap());
    let weighted = |weight| mesh_model::Endpoint { weight, ..(*e2).clone() };
    mesh.put(Object::Endpoint(Arc::new(weighted(Weight::ZERO))));
    assert_eq!(names(&mesh.snapshot, web), [] as [&str; 0], "nothing for weight 0");
    mesh.put(Object::Endpoint(Arc::new(weighted(Weight::MAX))));
    assert_eq!(names(&mesh.snapshot, web), ["e2"]);

    let of_all = mesh.snapshot.backends_by_service(|_| true);
    let by_service: Vec<usize> =
        [web, api].iter().map(|s| of_all.get(&(*s, blue)).map_or(0, Vec::len)).collect();
    assert_eq!(by_service, [1, 1], "one pass says the same");
}

/// Down and drained nodes are out, suspects have a quarter; who is not told of has not been missed.
#[test]
fn traffic_goes_to_nodes_that_are_there() {
    let mut mesh = full();
    let e3 = Arc::clone(mesh.snapshot.find_endpoint("e3").unwrap());
    for (status, offered, share) in [
        (None, true, 4),
        (Some(NodeStatus::Ready), true, 4),
        (Some(NodeStatus::Suspect), true, 1),
        (Some(NodeStatus::Down), false, 4),
    ] {
        mesh.snapshot.status = status.map(|status| (e3.node, status)).into_iter().collect();
        let found = (mesh.snapshot.takes_traffic(&e3), mesh.snapshot.share_of(&e3));
        assert_eq!(found, (offered, share), "{status:?}");
    }
    mesh.snapshot.status.clear();
    let node = Arc::clone(&mesh.snapshot.nodes[&e3.node]);
    for (availability, offered) in
        [(Availability::Pause, true), (Availability::Drain, false), (Availability::Active, true)]
    {
        mesh.put(Object::Node(Arc::new(mesh_model::Node { availability, ..(*node).clone() })));
        assert_eq!(mesh.snapshot.takes_traffic(&e3), offered, "{availability}");
    }
}

#[test]
fn records_are_found_by_name_id_and_unique_prefix() {
    let mesh = full();
    let snapshot = &mesh.snapshot;
    let web = snapshot.find_service("web").unwrap();
    let id = web.id.to_string();
    assert_eq!(snapshot.find_service(&id), Some(web));
    let prefix = (1..=16).map(|n| &id[..n]).find(|p| snapshot.find_service(p).is_some()).unwrap();
    assert_eq!(snapshot.find_service(prefix), Some(web));
    assert!(snapshot.find_service(&prefix[..prefix.len() - 1]).is_none(), "two begin like that");
    assert!(snapshot.find_service("").is_none() && snapshot.find_service("we").is_none());
}

#[test]
fn a_few_digits_are_no_id() {
    let mut mesh = full();
    let web = Arc::clone(mesh.snapshot.find_service("web").unwrap());
    let lonely = Service { name: name("lonely"), id: ServiceId::from_bits(0xc0de << 48), ..(*web).clone() };
    mesh.put(Object::Service(Arc::new(lonely)));
    assert!(mesh.snapshot.find_service("c0de").is_some());
    for short in ["c", "c0", "c0d"] {
        assert!(mesh.snapshot.find_service(short).is_none(), "{short}: a name that is not there");
    }
}

#[test]
fn a_name_counts_before_the_prefix_of_an_id() {
    let mut mesh = full();
    let web = Arc::clone(mesh.snapshot.find_service("web").unwrap());
    let other = Service { name: name(&web.id.to_string()), id: ServiceId::from_bits(77), ..(*web).clone() };
    mesh.put(Object::Service(Arc::new(other)));
    assert_eq!(mesh.snapshot.find_service(&web.id.to_string()).unwrap().id.bits(), 77);
}

#[test]
fn an_endpoint_name_that_two_networks_have_is_no_name() {
    let mut mesh = full();
    mesh.network(&crate::cluster::network_spec("red", &["10.61.0.0/24"])).unwrap();
    let twin = EndpointSpec { name: Some(name("e1")), ..endpoint_spec("red", 9) };
    let twin = mesh.endpoint(&twin).unwrap();
    assert!(mesh.snapshot.find_endpoint("e1").is_none());
    assert_eq!(mesh.snapshot.find_endpoint(&twin.id.to_string()), Some(&twin));
}

fn check() -> impl Strategy<Value = HealthCheck> {
    let kind = prop_oneof![Just(HealthKind::Tcp), "/[a-z?=%/]{0,12}".prop_map(HealthKind::Http)];
    (kind, any::<Option<u16>>(), any::<u64>(), any::<u64>(), any::<u32>(), any::<u32>()).prop_map(
        |(kind, port, interval_ms, timeout_ms, rise, fall)| HealthCheck {
            kind,
            port,
            interval_ms,
            timeout_ms,
            rise,
            fall,
        },
    )
}

proptest! {
    /// An absent check and one that ends are told apart on the wire.
    #[test]
    fn updates_survive_their_text(
        health in prop::option::of(prop::option::of(check())),
        publish_rm in prop::collection::vec("[0-9:/a-z]{1,9}", 0..3),
        drain_timeout_ms: Option<u64>,
        aliases in prop::option::of(prop::collection::vec("[a-z]{1,5}", 0..3)),
    ) {
        let aliases = aliases.map(|aliases| aliases.iter().map(|a| name(a)).collect());
        let update = ServiceUpdate { health, publish_rm, drain_timeout_ms, aliases, ..ServiceUpdate::default() };
        let text = serde_json::to_string(&update).unwrap();
        let read: ServiceUpdate = serde_json::from_str(&text).unwrap();
        prop_assert_eq!((&read.health, &read.publish_rm), (&update.health, &update.publish_rm));
        prop_assert_eq!((read.drain_timeout_ms, &read.aliases), (update.drain_timeout_ms, &update.aliases));
    }

    /// Changes are idempotent, and the state is that of the last change to each record: what a stream that repeats
    /// itself after a broken connection needs.
    #[test]
    fn changes_may_be_repeated(picks in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..60)) {
        let objects = records(&full().snapshot);
        let changes: Vec<Change> = picks
            .iter()
            .map(|(which, put)| {
                let object = which.get(&objects).clone();
                if *put { Change::Put(object) } else { Change::Delete(object.key()) }
            })
            .collect();
        let once = changes.iter().fold(Snapshot::default(), applied);
        let twice = changes.iter().fold(Snapshot::default(), |s, change| applied(applied(s, change), change));
        prop_assert_eq!(&once, &twice);
        let replayed = changes.iter().chain(&changes).fold(Snapshot::default(), applied);
        prop_assert_eq!(&once, &replayed);
        for object in &objects {
            let last = changes.iter().rev().find(|change| match change {
                Change::Put(o) => o.key() == object.key(),
                Change::Delete(key) => *key == object.key(),
            });
            let there = records(&once).contains(object);
            prop_assert_eq!(there, matches!(last, Some(Change::Put(_))));
        }
    }
}

fn applied(mut snapshot: Snapshot, change: &Change) -> Snapshot {
    snapshot.apply(change.clone());
    snapshot
}

#[test]
fn an_update_that_says_nothing_of_the_check_may_leave_it_out() {
    let read: ServiceUpdate = serde_json::from_str("{}").unwrap();
    assert!(read.health.is_none());
    assert!(serde_json::from_str::<ServiceUpdate>(r#"{"health":null}"#).unwrap().health.is_none());
    assert_eq!(serde_json::from_str::<ServiceUpdate>(r#"{"health":[null]}"#).unwrap().health, Some(None));
}
