//! The DNS packet path, without sockets: one query in, one answer out, in a network of 100 services with three
//! endpoints each.

use criterion::{Criterion, criterion_group, criterion_main};
use mesh_dns::{Names, Outcome, Table, Transport, answer};
use mesh_model::{NetworkId, ServiceId, Snapshot};
use rand::{SeedableRng, rngs::SmallRng};
use std::{collections::BTreeMap, hint::black_box};

const A: u16 = 1;
const PTR: u16 = 12;
const REPLICAS: usize = 3;

fn answers(criterion: &mut Criterion) {
    let (snapshot, network) = network();
    let table = Table::new(&snapshot, network).expect("the network is there");
    let vip = snapshot.find_service("service42").expect("a service").vips(network)[0].to_string();
    let reverse = vip.rsplit('.').collect::<Vec<_>>().join(".") + ".in-addr.arpa";
    let mut group = criterion.benchmark_group("dns/answer");
    for (id, name, rtype, forwarded) in [
        ("a", "service42", A, false),
        ("a-whole-name", "Service42.bench.mesh.internal", A, false),
        ("tasks-of-3", "tasks.service42", A, false),
        ("ptr", &reverse, PTR, false),
        ("nxdomain", "nothing.bench.mesh.internal", A, false),
        ("miss", "www.example.com", A, true),
    ] {
        let query = query(name, rtype);
        let mut rng = SmallRng::seed_from_u64(1);
        let mut out = [0; 1232];
        let names = Names::OfContainer(&table, &[]);
        let outcome = answer(names, &query, Transport::Udp, &mut rng, &mut out);
        assert_eq!(outcome == Outcome::Forward, forwarded, "{name}: {outcome:?}");
        group.bench_function(id, |bencher| {
            bencher.iter(|| answer(names, black_box(&query), Transport::Udp, &mut rng, &mut out));
        });
    }
    group.finish();
    criterion
        .bench_function("dns/table", |bencher| bencher.iter(|| Table::new(black_box(&snapshot), network)));
}

/// The shared cluster, with fewer replicas of each service.
fn network() -> (Snapshot, NetworkId) {
    let (mut snapshot, _) = mesh_benches::cluster(100);
    let mut replicas: BTreeMap<Option<ServiceId>, usize> = BTreeMap::new();
    snapshot.endpoints.retain(|_, endpoint| {
        let count = replicas.entry(endpoint.service).or_default();
        *count += 1;
        *count <= REPLICAS
    });
    let network = snapshot.find_network("bench").expect("the network").id;
    (snapshot, network)
}

/// A query as resolvers send it, with EDNS(0).
fn query(name: &str, rtype: u16) -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(rtype.to_be_bytes());
    query.extend([0, 1]);
    query.extend([0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
    query
}

criterion_group!(benches, answers);
criterion_main!(benches);
