//! Inputs that the benches share.

mod grown;
pub mod measure;

pub use grown::{Size, grown};

use mesh_model::{
    Change, Cluster, ClusterId, EndpointSpec, NetworkSpec, NodeId, NodeSpec, Object, Role, ServiceSpec,
    Snapshot, Target, admit, parse_publish,
};
use std::sync::Arc;

/// A cluster of three nodes with one network and `services` services of ten replicas each, spread over the nodes; every
/// tenth service publishes a port. Made by the rules that a manager runs, so that it is a cluster that could be.
pub fn cluster(services: u16) -> (Snapshot, NodeId) {
    let mut bench = Bench::default();
    let nodes: Vec<NodeId> = (1..=3).map(|host| bench.node(host)).collect();
    let network = NetworkSpec { subnets: vec![parse("10.128.0.0/16")], ..NetworkSpec::named(parse("bench")) };
    let fresh = bench.fresh();
    let network = admit::network(&bench.snapshot, &network, &[], fresh).expect("a free subnet");
    bench.put(Object::Network(Arc::new(network)));
    for number in 0..services {
        bench.service(number);
        for replica in 0..10 {
            bench.replica(number, nodes[replica % nodes.len()]);
        }
    }
    (bench.snapshot, nodes[0])
}

#[derive(Default)]
struct Bench {
    snapshot: Snapshot,
    drawn: u64,
}

impl Bench {
    fn node(&mut self, host: u8) -> NodeId {
        if self.snapshot.cluster.is_none() {
            let pools = (vec![parse("10.128.0.0/9")], vec![parse("100.127.0.0/16")]);
            let id = ClusterId::from_bits(1);
            let cluster = Cluster {
                id,
                data_path_port: 4789,
                address_pools: pools.0,
                node_pools: pools.1,
                gossip_key: 0,
                authorities: vec![],
                cert_expiry_s: 0,
            };
            self.put(Object::Cluster(Arc::new(cluster)));
        }
        let spec =
            NodeSpec { name: parse(&format!("vm{host}")), advertise: ([192, 0, 2, host], 7443).into() };
        let fresh = self.fresh();
        let node = admit::node(&self.snapshot, &spec, Role::Worker, fresh).expect("a free index");
        let id = node.id;
        self.put(Object::Node(Arc::new(node)));
        id
    }

    fn service(&mut self, number: u16) {
        let ports = format!("{}:80", 20_000 + number);
        let spec = ServiceSpec {
            name: parse(&format!("service{number}")),
            networks: vec!["bench".to_owned()],
            aliases: Vec::new(),
            endpoint_mode: Default::default(),
            ports: if number.is_multiple_of(10) {
                parse_publish(&ports).expect("a port")
            } else {
                Vec::new()
            },
            health: None,
            balance: Default::default(),
            drain_timeout_ms: 10_000,
            prefer_local: false,
        };
        let fresh = self.fresh();
        let service = admit::service(&self.snapshot, &spec, fresh).expect("a free VIP");
        self.put(Object::Service(Arc::new(service)));
    }

    fn replica(&mut self, service: u16, node: NodeId) {
        let fresh = self.fresh();
        let target = Target::Netns(format!("/run/netns/{}", fresh.id).into());
        let spec = EndpointSpec {
            service: Some(format!("service{service}")),
            namespace_inode: fresh.id,
            ..EndpointSpec::new("bench", target, "eth0")
        };
        let endpoint = admit::endpoint(&self.snapshot, node, &spec, fresh).expect("a free address");
        self.put(Object::Endpoint(Arc::new(endpoint)));
    }

    fn put(&mut self, object: Object) {
        self.snapshot.apply(Change::Put(object));
        self.snapshot.revision += 1;
    }

    /// Numbers in place of random bits: each run measures the same input.
    fn fresh(&mut self) -> admit::Fresh {
        self.drawn += 1;
        admit::Fresh { id: self.drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15), mac: self.drawn, now: 0 }
    }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("written right here")
}
