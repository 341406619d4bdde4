//! Who is a manager.

use crate::{Node, NodeStatus, Refusal, Role, Snapshot};

/// The node as a manager. Only one that is up can become one: what it needs is handed to it.
pub fn promotion(node: &Node, status: NodeStatus) -> Result<Node, Refusal> {
    if status == NodeStatus::Down {
        return Err(Refusal::PromoteLost(node.name.to_string()));
    }
    Ok(Node { role: Role::Manager, ..node.clone() })
}

/// The node as a worker. One manager at least stays.
pub fn demotion(snapshot: &Snapshot, node: &Node) -> Result<Node, Refusal> {
    let others = snapshot.nodes.values().filter(|other| other.role == Role::Manager && other.id != node.id);
    if others.count() == 0 {
        return Err(Refusal::LastManager(node.name.to_string()));
    }
    Ok(Node { role: Role::Worker, ..node.clone() })
}
