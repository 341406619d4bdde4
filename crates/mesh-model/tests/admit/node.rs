//! Nodes.

use crate::cluster::{Mesh, endpoint_spec, ip, net, refused};
use mesh_model::{Availability, Cluster, Health, Node, NodeStatus, NodeUpdate, Object, Role, admit};
use std::{collections::BTreeSet, sync::Arc};

#[test]
fn each_node_has_an_index_and_addresses_of_its_own() {
    let mut mesh = Mesh::new();
    let two = mesh.node("vm2", "192.0.2.2").unwrap();
    assert_eq!((two.index, &two.addresses[..]), (2, &[ip("100.64.0.2"), ip("fd64::2")][..]));
    let three = mesh.node("vm3", "2001:db8::3").unwrap();
    assert_eq!(three.index, 3);

    let marks: BTreeSet<u32> = mesh.snapshot.nodes.values().map(|n| n.mark()).collect();
    let macs: BTreeSet<_> = mesh.snapshot.nodes.values().map(|n| n.bridge_mac()).collect();
    let links: BTreeSet<_> = mesh.snapshot.nodes.values().map(|n| n.bridge_link_local()).collect();
    assert_eq!((marks.len(), macs.len(), links.len()), (3, 3, 3));
    assert!(!marks.contains(&0), "a mark of 0 is no mark");
}

#[test]
fn what_a_node_left_is_given_out_again() {
    let mut mesh = Mesh::new();
    let two = mesh.node("vm2", "192.0.2.2").unwrap();
    mesh.node("vm3", "192.0.2.3").unwrap();
    mesh.snapshot.apply(mesh_model::Change::Delete(mesh_model::Key::Node(two.id)));
    let four = mesh.node("vm4", "192.0.2.4").unwrap();
    assert_eq!((four.index, &four.addresses), (2, &two.addresses));
}

#[test]
fn names_and_addresses_are_unique_and_reachable() {
    let mut mesh = Mesh::new();
    refused(mesh.node("VM1", "192.0.2.2"), "exists already");
    refused(mesh.node("vm2", "192.0.2.1"), "node 'vm1'");
    for address in ["0.0.0.0", "127.0.0.1", "::1", "::", "224.0.0.1"] {
        refused(mesh.node("vm2", address), "can't be advertised");
    }
}

#[test]
fn hosts_are_not_inside_the_overlay() {
    let mut mesh = Mesh::with_network("blue", &["192.168.100.0/24"]);
    refused(mesh.node("vm2", "100.64.7.7"), "the node address pool");
    refused(mesh.node("vm2", "192.168.100.9"), "network 'blue'");
    assert_eq!(mesh.snapshot.nodes.len(), 1);
}

#[test]
fn a_node_pool_ends() {
    let mut mesh = Mesh::new();
    let cluster = mesh.snapshot.cluster.as_deref().cloned().unwrap();
    mesh.put(Object::Cluster(Arc::new(Cluster { node_pools: vec![net("100.64.0.0/30")], ..cluster })));
    mesh.node("vm2", "192.0.2.2").unwrap();
    refused(mesh.node("vm3", "192.0.2.3"), "100.64.0.0/30");
}

#[test]
fn an_update_changes_what_it_names() {
    let mesh = Mesh::new();
    let one = mesh.snapshot.nodes[&mesh.first_node()].clone();
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let update = NodeUpdate { label_add: labels(&[("zone", "a"), ("disk", "ssd")]), ..NodeUpdate::default() };
    let two = admit::node_update(&one, &update);
    assert_eq!((two.availability, &two.labels), (Availability::Active, &update.label_add));
    let update = NodeUpdate {
        availability: Some(Availability::Drain),
        label_add: labels(&[("zone", "b")]),
        label_rm: vec!["disk".into(), "absent".into()],
    };
    let three = admit::node_update(&two, &update);
    assert_eq!((three.availability, three.labels), (Availability::Drain, labels(&[("zone", "b")])));
}

#[test]
fn a_node_goes_with_its_endpoints_and_its_key() {
    let mut mesh = Mesh::with_network("blue", &["192.168.100.0/24"]);
    let two = mesh.node("vm2", "192.0.2.2").unwrap();
    let stays = mesh.endpoint(&endpoint_spec("blue", 1)).unwrap();
    let goes = mesh.endpoint_on(two.id, &endpoint_spec("blue", 2)).unwrap();
    mesh.put(Object::Health(goes.id, Health::Healthy));
    let remove = |node, status, force| admit::node_removal(&mesh.snapshot, node, status, force);
    let one = Node { role: Role::Manager, ..(*mesh.snapshot.nodes[&mesh.first_node()]).clone() };
    refused(remove(&one, NodeStatus::Down, true), "'vm1' is a manager");
    refused(remove(&two, NodeStatus::Ready, false), "'vm2' is up");
    refused(remove(&two, NodeStatus::Suspect, false), "'vm2' is up");
    let by_force = remove(&two, NodeStatus::Ready, true).unwrap();
    assert_eq!(remove(&two, NodeStatus::Down, false).unwrap(), by_force);
    by_force.into_iter().for_each(|change| mesh.snapshot.apply(change));
    assert_eq!(mesh.snapshot.endpoints.keys().collect::<Vec<_>>(), [&stays.id]);
    assert!(mesh.snapshot.health.is_empty() && !mesh.snapshot.nodes.contains_key(&two.id));
    assert_eq!(mesh.snapshot.cluster.as_ref().unwrap().gossip_key, 1, "it knows key 0");
}
