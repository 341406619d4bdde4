//! The pure half of the kernel data plane at 1,000 and at 100,000 endpoints: what a change costs a node before it meets the
//! kernel.

use criterion::{Criterion, criterion_group, criterion_main};
use mesh_benches::{Size, cluster, grown};
use mesh_model::{Balance, Change, Endpoint, NodeId, Object, Snapshot};
use mesh_net::{
    Scope,
    desired::{Attachment, Facts, desired},
    nft::diff,
    object::Objects,
    plan::{plan, record},
    rules::Rules,
};
use std::{collections::BTreeSet, hint::black_box, sync::Arc};

fn plans(c: &mut Criterion) {
    let (snapshot, me) = cluster(100);
    plans_of(c, "plan/1000 endpoints", &snapshot, me);
    rules(c, &snapshot);
    let size = Size { networks: 100, services: 100, replicas: 10, on_all_nodes: true };
    let (snapshot, me) = grown(size, Balance::Roundrobin);
    plans_of(c, "plan/100 networks of 1000 endpoints", &snapshot, me);
}

fn plans_of(c: &mut Criterion, name: &str, snapshot: &Snapshot, me: NodeId) {
    let node = snapshot.nodes[&me].clone();
    let local = snapshot.endpoints.values().filter(|e| e.node == me);
    let attachments = local.map(|e| (e.id, Attachment::default())).collect();
    let facts = Facts { mtu: 1450, attachments, ..Facts::default() };

    let empty = Objects::default();
    let whole = desired(snapshot, &node, &facts, &Scope::All);
    let mut settled = Objects::default();
    for work in plan(&empty, &whole) {
        work.steps.iter().for_each(|step| record(step, &mut settled));
    }
    let changed = desired(&drained(snapshot), &node, &facts, &Scope::All);

    let mut group = c.benchmark_group(name);
    group.bench_function("desired", |b| b.iter(|| desired(black_box(snapshot), &node, &facts, &Scope::All)));
    group.bench_function("from nothing", |b| b.iter(|| plan(black_box(&empty), &whole)));
    group.bench_function("nothing to do", |b| b.iter(|| plan(black_box(&settled), &whole)));
    group.bench_function("one endpoint drained", |b| b.iter(|| plan(black_box(&settled), &changed)));
    group.finish();
}

fn rules(c: &mut Criterion, snapshot: &Snapshot) {
    let node = snapshot.nodes.values().next().expect("three nodes");
    let network = snapshot.networks.values().next().expect("a network");
    let after = drained(snapshot);
    let before_tables = Rules::new(snapshot, node).overlay(network);
    let after_tables = Rules::new(&after, node).overlay(network);

    let mut group = c.benchmark_group("rules/1000 endpoints");
    group.bench_function("host tables", |b| {
        b.iter(|| Rules::new(black_box(snapshot), node).host(&BTreeSet::new()))
    });
    group.bench_function("overlay tables", |b| {
        b.iter(|| Rules::new(black_box(snapshot), node).overlay(network))
    });
    group.bench_function("difference, one endpoint drained", |b| {
        b.iter(|| {
            for (before, after) in before_tables.iter().zip(&after_tables) {
                black_box(diff(Some(before), after));
            }
        });
    });
    group.finish();
}

fn drained(snapshot: &Snapshot) -> Snapshot {
    let mut after = snapshot.clone();
    let endpoint = Endpoint::clone(after.endpoints.values().next().expect("endpoints"));
    after.apply(Change::Put(Object::Endpoint(Arc::new(Endpoint { draining: true, ..endpoint }))));
    after
}

criterion_group!(benches, plans);
criterion_main!(benches);
