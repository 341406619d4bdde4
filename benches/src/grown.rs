//! Clusters of thousands of services.

use crate::{cluster, parse};
use ipnetwork::IpNetwork;
use mesh_model::{
    Balance, Change, Endpoint, EndpointId, Key, MacAddr, Network, NetworkId, NodeId, Object, Service,
    ServiceId, Snapshot, Subnet,
};
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

/// How large a cluster is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Networks, at most 100.
    pub networks: u32,
    /// Services on each network.
    pub services: u32,
    /// Replicas of each service.
    pub replicas: u32,
    /// Whether the node that is measured has its share of the replicas, rather than none.
    pub on_all_nodes: bool,
}

/// A cluster of three nodes and of a size; and the node to measure. What the rules of a manager made of one service is
/// repeated: to ask them for thousands takes long, and they are not what is measured. The first service of each network
/// publishes a port.
pub fn grown(size: Size, balance: Balance) -> (Snapshot, NodeId) {
    let (mut snapshot, me) = cluster(1);
    let network = snapshot.networks.values().next().cloned().expect("a network");
    let service = snapshot.services.values().next().cloned().expect("a service");
    let replica = snapshot.endpoints.values().find(|e| e.node != me).cloned().expect("a replica");
    let nodes = snapshot.nodes.keys().copied().filter(|node| size.on_all_nodes || *node != me).collect();
    let endpoints = snapshot.endpoints.keys().map(|id| Key::Endpoint(*id));
    let all: Vec<Key> = endpoints.chain([Key::Service(service.id), Key::Network(network.id)]).collect();
    all.into_iter().for_each(|key| snapshot.apply(Change::Delete(key)));
    let mut grown = Grown { size, balance, network, service, replica, nodes, snapshot, drawn: 0 };
    (0..size.networks).for_each(|number| grown.network(number));
    (grown.snapshot, me)
}

/// What is repeated, and what has become of it.
struct Grown {
    size: Size,
    balance: Balance,
    network: Arc<Network>,
    service: Arc<Service>,
    replica: Arc<Endpoint>,
    nodes: Vec<NodeId>,
    snapshot: Snapshot,
    drawn: u32,
}

impl Grown {
    fn network(&mut self, number: u32) {
        let first = Ipv4Addr::new(10, 128 + number as u8, 0, 0);
        let cidr = IpNetwork::new(first.into(), 16).expect("a prefix");
        let network = Network {
            id: NetworkId::from_bits(u64::from(number) + 1),
            name: parse(&format!("network{number}")),
            vni: self.network.vni + number,
            subnets: vec![Subnet {
                cidr,
                gateway: Ipv4Addr::from_bits(first.to_bits() + 1).into(),
                range: None,
            }],
            ..Network::clone(&self.network)
        };
        let id = network.id;
        self.put(Object::Network(Arc::new(network)));
        // Beyond the gateway.
        let mut addresses = (first.to_bits() + 2..).map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits)));
        for service in 0..self.size.services {
            self.service(id, number, service, &mut addresses);
        }
    }

    fn service(
        &mut self,
        network: NetworkId,
        of: u32,
        number: u32,
        addresses: &mut impl Iterator<Item = IpAddr>,
    ) {
        self.drawn += 1;
        let mut service = Service {
            id: ServiceId::from_bits(self.drawn.into()),
            name: parse(&format!("service{}", self.drawn)),
            balance: self.balance,
            ..Service::clone(&self.service)
        };
        service.networks[0].network = network;
        service.networks[0].vips = addresses.next().into_iter().collect();
        if number > 0 {
            service.ports.clear();
        }
        service.ports.iter_mut().for_each(|port| port.published = 20_000 + of as u16);
        for replica in 0..self.size.replicas {
            let bits = u64::from(self.drawn * self.size.replicas + replica);
            let endpoint = Endpoint {
                id: EndpointId::from_bits(bits.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                name: parse(&format!("web{bits}")),
                network,
                node: self.nodes[replica as usize % self.nodes.len()],
                addresses: addresses.next().into_iter().collect(),
                mac: MacAddr::endpoint(bits),
                service: Some(service.id),
                ..Endpoint::clone(&self.replica)
            };
            self.put(Object::Endpoint(Arc::new(endpoint)));
        }
        self.put(Object::Service(Arc::new(service)));
    }

    fn put(&mut self, object: Object) {
        self.snapshot.apply(Change::Put(object));
    }
}
