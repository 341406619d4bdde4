//! A zone that follows the state has the names that one made anew has.

use crate::fixture::{OTHER, OURS, ask, check, ip, port};
use hickory_proto::rr::RecordType;
use mesh_dns::{Table, Zone};
use mesh_model::{
    Availability, Change, Endpoint, EndpointId, EndpointMode, Health, Key, Node, NodeId, NodeStatus, Object,
    Protocol, Service, ServiceId, ServiceNetwork, Snapshot,
};
use proptest::prelude::*;
use std::sync::Arc;

/// Names that several records share, some below others, some with letters of both cases.
const NAMES: [&str; 7] = ["web", "Web", "db", "tasks.web", "a.web", "x.y.z", "y.z"];

/// What a user, a check or a node that dies may do.
#[derive(Debug, Clone)]
enum Step {
    Service {
        id: u64,
        name: usize,
        alias: usize,
        dnsrr: bool,
        checked: bool,
        here: bool,
        ports: bool,
    },
    NoService(u64),
    Endpoint {
        id: u64,
        name: usize,
        alias: usize,
        service: Option<u64>,
        node: u64,
        here: bool,
        draining: bool,
    },
    NoEndpoint(u64),
    Health(u64, Option<bool>),
    Node {
        id: u64,
        down: bool,
        drained: bool,
    },
    Publish,
}

fn step() -> impl Strategy<Value = Step> {
    let (name, id) = (|| 0..NAMES.len(), || 1u64..5);
    prop_oneof![
        3 => (id(), name(), name(), any::<[bool; 4]>()).prop_map(|(id, name, alias, [dnsrr, checked, off, ports])| {
            Step::Service { id, name, alias, dnsrr, checked, here: !off || id > 1, ports }
        }),
        1 => id().prop_map(Step::NoService),
        5 => (1u64..9, name(), name(), prop::option::of(id()), 1u64..3, any::<[bool; 2]>()).prop_map(
            |(id, name, alias, service, node, [off, draining])| {
                Step::Endpoint { id, name, alias, service, node, here: !off || id > 2, draining }
            }
        ),
        1 => (1u64..9).prop_map(Step::NoEndpoint),
        2 => (1u64..9, any::<Option<bool>>()).prop_map(|(id, healthy)| Step::Health(id, healthy)),
        1 => (1u64..3, any::<bool>(), any::<bool>())
            .prop_map(|(id, down, drained)| Step::Node { id, down, drained }),
        4 => Just(Step::Publish),
    ]
}

/// The state, and what of it has changed since a zone looked.
struct State {
    snapshot: Snapshot,
    changed: Vec<Key>,
}

impl State {
    fn put(&mut self, object: Object) {
        self.changed.push(object.key());
        self.snapshot.apply(Change::Put(object));
    }

    fn delete(&mut self, key: Key) {
        self.changed.push(key);
        self.snapshot.apply(Change::Delete(key));
    }

    fn take(&mut self, step: &Step, mesh: &crate::fixture::Mesh) {
        match *step {
            Step::Service { id, name, alias, dnsrr, checked, here, ports } => {
                let network = if here { OURS } else { OTHER };
                let vips =
                    vec![ip(&format!("192.168.100.{}", 100 + id)), ip(&format!("fd00:64::{}", 100 + id))];
                let service = Service {
                    id: ServiceId::from_bits(id),
                    name: NAMES[name].parse().unwrap(),
                    networks: vec![ServiceNetwork { network, vips }],
                    aliases: vec![NAMES[alias].parse().unwrap()],
                    endpoint_mode: if dnsrr { EndpointMode::Dnsrr } else { EndpointMode::Vip },
                    ports: if ports { vec![port(80, Protocol::Tcp)] } else { Vec::new() },
                    health: checked.then(check),
                    balance: Default::default(),
                    drain_timeout_ms: 0,
                    prefer_local: false,
                    created: 0,
                };
                self.put(Object::Service(Arc::new(service)));
            }
            Step::NoService(id) => self.delete(Key::Service(ServiceId::from_bits(id))),
            Step::Endpoint { id, name, alias, service, node, here, draining } => {
                let template = mesh.snapshot.endpoints.values().next().unwrap();
                let endpoint = Endpoint {
                    id: EndpointId::from_bits(id),
                    name: NAMES[name].parse().unwrap(),
                    network: if here { OURS } else { OTHER },
                    node: NodeId::from_bits(node),
                    addresses: vec![ip(&format!("192.168.100.{}", 10 + id))],
                    aliases: vec![NAMES[alias].parse().unwrap()],
                    service: service.map(ServiceId::from_bits),
                    draining,
                    ..Endpoint::clone(template)
                };
                self.put(Object::Endpoint(Arc::new(endpoint)));
            }
            Step::NoEndpoint(id) => self.delete(Key::Endpoint(EndpointId::from_bits(id))),
            Step::Health(id, healthy) => {
                let id = EndpointId::from_bits(id);
                match healthy {
                    Some(true) => self.put(Object::Health(id, Health::Healthy)),
                    Some(false) => self.put(Object::Health(id, Health::Unhealthy)),
                    None => self.delete(Key::Health(id)),
                }
            }
            Step::Node { id, down, drained } => {
                let node = NodeId::from_bits(id);
                let status = if down { NodeStatus::Down } else { NodeStatus::default() };
                self.snapshot.status.insert(node, status);
                let availability = if drained { Availability::Drain } else { Availability::Active };
                let record = crate::fixture::node(node, availability);
                self.put(Object::Node(Arc::<Node>::new(record)));
            }
            Step::Publish => {}
        }
    }
}

/// Everything that can be asked, and what is answered: sorted, as answers rotate.
fn everything(table: &Table) -> Vec<String> {
    let mut all = Vec::new();
    let mut asked = |name: &str, rtype: RecordType| {
        let answer = ask(table, name, rtype).map(|message| {
            // All but the SOA: its serial says when the zone changed last, and one made anew can't know.
            let records = message.all_sections().filter(|record| record.record_type() != RecordType::SOA);
            let mut records: Vec<String> = records.map(|record| record.to_string()).collect();
            records.sort();
            (message.metadata.response_code, records)
        });
        all.push(format!("{name} {rtype}: {answer:?}"));
    };
    for name in
        NAMES.iter().flat_map(|name| [name.to_string(), format!("tasks.{name}"), format!("_80._tcp.{name}")])
    {
        for rtype in [RecordType::A, RecordType::AAAA, RecordType::SRV] {
            asked(&format!("{name}."), rtype);
            asked(&format!("{name}.self-network.mesh.internal."), rtype);
        }
    }
    for above in ["z.self-network.mesh.internal.", "tasks.self-network.mesh.internal."] {
        asked(above, RecordType::A);
    }
    for last in 0..=255 {
        asked(&format!("{last}.100.168.192.in-addr.arpa."), RecordType::PTR);
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_happens_it_is_as_made_anew(steps in prop::collection::vec(step(), 1..60)) {
        let mesh = crate::fixture::Mesh::with_web();
        let mut state = State { snapshot: crate::fixture::Mesh::new().snapshot, changed: Vec::new() };
        let mut zone = Zone::new(&state.snapshot, OURS).unwrap();
        for step in steps.iter().chain([&Step::Publish]) {
            state.take(step, &mesh);
            if matches!(step, Step::Publish) {
                state.snapshot.revision += 1;
                prop_assert!(zone.update(&state.snapshot, &std::mem::take(&mut state.changed)));
                let anew = Table::new(&state.snapshot, OURS).unwrap();
                prop_assert_eq!(everything(&zone.table()), everything(&anew));
            }
        }
    }
}

#[test]
fn a_table_stays_as_it_was_when_its_zone_goes_on() {
    let mut mesh = crate::fixture::Mesh::with_web();
    let mut zone = Zone::new(&mesh.snapshot, OURS).unwrap();
    let before = zone.news().unwrap();
    assert!(zone.news().is_none(), "nothing has changed");
    let id = mesh.endpoint("late", 99, |_| {});
    assert!(zone.update(&mesh.snapshot, &[Key::Endpoint(id)]));
    assert!(ask(&before, "late.", RecordType::A).is_none());
    assert!(ask(&zone.table(), "late.", RecordType::A).is_some());
    mesh.snapshot.networks.remove(&OURS);
    assert!(!zone.update(&mesh.snapshot, &[Key::Network(OURS)]), "the network is gone");
}

#[test]
fn what_changes_elsewhere_is_no_news_of_a_zone() {
    let mut mesh = crate::fixture::Mesh::with_web();
    let mut zone = Zone::new(&mesh.snapshot, OURS).unwrap();
    let before = serial(&zone.news().unwrap());
    let elsewhere = mesh.endpoint("elsewhere", 98, |endpoint| endpoint.network = OTHER);
    mesh.snapshot.revision += 1;
    assert!(zone.update(&mesh.snapshot, &[Key::Endpoint(elsewhere)]));
    assert!(zone.news().is_none());
    let here = mesh.endpoint("here", 99, |_| {});
    assert!(zone.update(&mesh.snapshot, &[Key::Endpoint(here)]));
    assert!(serial(&zone.news().unwrap()) > before, "whoever compares serials sees that the zone changed");
}

fn serial(table: &Table) -> u32 {
    let answer = ask(table, "mesh.internal.", RecordType::SOA).unwrap();
    match &answer.answers[0].data {
        hickory_proto::rr::RData::SOA(soa) => soa.serial,
        other => panic!("no SOA: {other}"),
    }
}
