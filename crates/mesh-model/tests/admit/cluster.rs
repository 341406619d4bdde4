//! A cluster that grows by what is admitted to it, as a manager's does.

use ipnetwork::IpNetwork;
use mesh_model::{
    Change, Cluster, ClusterId, Endpoint, EndpointId, EndpointSpec, Name, Network, NetworkSpec, Node, NodeId,
    NodeSpec, Object, PublishedPort, Refusal, Role, Service, ServiceSpec, Snapshot, Target, admit,
    parse_publish,
};
use std::{net::IpAddr, sync::Arc};

/// The state, and the next random bits.
pub(crate) struct Mesh {
    pub(crate) snapshot: Snapshot,
    next: u64,
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn ports(specs: &[&str]) -> Vec<PublishedPort> {
    specs.iter().flat_map(|spec| parse_publish(spec).unwrap()).collect()
}

pub(crate) fn network_spec(of: &str, subnets: &[&str]) -> NetworkSpec {
    NetworkSpec { subnets: subnets.iter().map(|s| net(s)).collect(), ..NetworkSpec::named(name(of)) }
}

pub(crate) fn service_spec(of: &str, networks: &[&str], publish: &[&str]) -> ServiceSpec {
    ServiceSpec {
        name: name(of),
        networks: networks.iter().map(|n| (*n).to_owned()).collect(),
        aliases: Vec::new(),
        endpoint_mode: mesh_model::EndpointMode::Vip,
        ports: ports(publish),
        health: None,
        balance: mesh_model::Balance::Roundrobin,
        drain_timeout_ms: 10_000,
        prefer_local: false,
    }
}

/// An endpoint in a network namespace of its own.
pub(crate) fn endpoint_spec(network: &str, inode: u64) -> EndpointSpec {
    let target = Target::Netns(format!("/run/netns/{inode}").into());
    EndpointSpec { namespace_inode: inode, ..EndpointSpec::new(network, target, "eth0") }
}

impl Mesh {
    /// A cluster whose pools have room for four subnets a family, with one node.
    pub(crate) fn new() -> Self {
        let cluster = Cluster {
            id: ClusterId::from_bits(1),
            data_path_port: 4789,
            address_pools: vec![net("10.200.0.0/22"), net("fd00:200::/62")],
            node_pools: vec![net("100.64.0.0/16"), net("fd64::/64")],
            gossip_key: 0,
            authorities: vec![],
            cert_expiry_s: 0,
        };
        let mut mesh = Self { snapshot: Snapshot::default(), next: 0x1000 };
        mesh.put(Object::Cluster(Arc::new(cluster)));
        mesh.node("vm1", "192.0.2.1").unwrap();
        mesh
    }

    /// With a network of this subnet.
    pub(crate) fn with_network(of: &str, subnets: &[&str]) -> Self {
        let mut mesh = Self::new();
        mesh.network(&network_spec(of, subnets)).unwrap();
        mesh
    }

    pub(crate) fn put(&mut self, object: Object) {
        self.snapshot.apply(Change::Put(object));
    }

    fn fresh(&mut self) -> admit::Fresh {
        self.next += 1;
        admit::Fresh { id: self.next, mac: self.next, now: 1_800_000_000 }
    }

    pub(crate) fn node(&mut self, of: &str, address: &str) -> Result<Arc<Node>, Refusal> {
        let spec = NodeSpec { name: name(of), advertise: (ip(address), 7443).into() };
        let fresh = self.fresh();
        let node = Arc::new(admit::node(&self.snapshot, &spec, Role::Worker, fresh)?);
        self.put(Object::Node(Arc::clone(&node)));
        Ok(node)
    }

    pub(crate) fn network(&mut self, spec: &NetworkSpec) -> Result<Arc<Network>, Refusal> {
        let fresh = self.fresh();
        let network = Arc::new(admit::network(&self.snapshot, spec, &[], fresh)?);
        self.put(Object::Network(Arc::clone(&network)));
        Ok(network)
    }

    pub(crate) fn service(&mut self, spec: &ServiceSpec) -> Result<Arc<Service>, Refusal> {
        let fresh = self.fresh();
        let service = Arc::new(admit::service(&self.snapshot, spec, fresh)?);
        self.put(Object::Service(Arc::clone(&service)));
        Ok(service)
    }

    pub(crate) fn endpoint(&mut self, spec: &EndpointSpec) -> Result<Arc<Endpoint>, Refusal> {
        self.endpoint_on(self.first_node(), spec)
    }

    pub(crate) fn endpoint_on(
        &mut self,
        node: NodeId,
        spec: &EndpointSpec,
    ) -> Result<Arc<Endpoint>, Refusal> {
        let fresh = self.fresh();
        let endpoint = Arc::new(admit::endpoint(&self.snapshot, node, spec, fresh)?);
        self.put(Object::Endpoint(Arc::clone(&endpoint)));
        Ok(endpoint)
    }

    pub(crate) fn remove_endpoint(&mut self, id: EndpointId) {
        self.snapshot.apply(Change::Delete(mesh_model::Key::Endpoint(id)));
    }

    pub(crate) fn first_node(&self) -> NodeId {
        *self.snapshot.nodes.keys().next().unwrap()
    }
}

/// A refusal is what a person reads: its words are part of what is promised, and it is one line.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Refusal>, words: &str) {
    let said = result.expect_err("admitted").to_string();
    assert!(said.contains(words) && !said.contains('\n'), "{said:?} does not say {words:?}");
}
