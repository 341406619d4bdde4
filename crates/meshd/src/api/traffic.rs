//! What goes through published ports: of all nodes for `service inspect`, and of this one as metrics.

use super::{Failure, views::node_name, whole::Whole};
use crate::{
    agent::counted,
    daemon::Member,
    wire::{Counted, PortsReport, PortsReports},
};
use mesh_api::{DegradedView, ServiceView, TrafficView};
use mesh_model::{NodeId, Protocol, PublishedPort, Service, ServiceId, Snapshot};
use std::time::Duration;
use tokio::time::timeout;

/// How long the managers may take to ask their nodes: longer than these may take to answer.
const ASK: Duration = Duration::from_secs(5);

/// What went through this node's ports of all services: led by the kernel, and relayed.
pub(super) async fn of_this_node(
    member: &Member,
    snapshot: &Snapshot,
) -> Result<[Vec<TrafficView>; 2], Failure> {
    let counts = member.agent.traffic().await.ok_or_else(ending)?;
    if let Err(err) = &counts.led {
        return Err(Failure::internal(err.to_string()));
    }
    let me = member.identity.node;
    Ok([counted::led_of_service, counted::relayed_of_service].map(|counted| {
        let services = snapshot.services.values();
        let of_services = services.flat_map(|service| {
            let counted = counted(snapshot, service, &counts).into_iter();
            counted.filter_map(|of| view(snapshot, me, service, &of))
        });
        of_services.collect()
    }))
}

/// What all nodes tell of a service's ports.
pub(super) async fn of_service(
    member: &Member,
    whole: &Whole,
    service: &Service,
    view_so_far: ServiceView,
) -> Result<ServiceView, Failure> {
    let snapshot = &*whole.snapshot;
    if service.ports.is_empty() {
        return Ok(view_so_far);
    }
    let (own, others) =
        tokio::join!(member.agent.ports_report(service.id), of_all(member, whole, service.id));
    let mut reports = others;
    reports.insert(member.identity.node, own.ok_or_else(ending)?);
    let mut shown = view_so_far;
    let mut nodes: Vec<_> = snapshot.nodes.values().collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    for node in nodes {
        let Some(PortsReport { counted, degraded }) = reports.remove(&node.id) else {
            shown.silent.push(node.name.to_string());
            continue;
        };
        shown.traffic.extend(counted.iter().filter_map(|of| view(snapshot, node.id, service, of)));
        let degraded = degraded.into_iter();
        shown.degraded.extend(degraded.map(|problem| DegradedView { node: node.name.to_string(), problem }));
    }
    Ok(shown)
}

/// Those that answer a manager, if one can be asked.
async fn of_all(member: &Member, whole: &Whole, service: ServiceId) -> PortsReports {
    if let Some(manager) = member.manager() {
        return manager.ports(service).await;
    }
    if whole.is_partial() {
        return PortsReports::new();
    }
    let asked = timeout(ASK, member.agent.link.get(&format!("/v1/agent/ports/{service}"))).await;
    asked.ok().and_then(Result::ok).unwrap_or_default()
}

/// None of an endpoint that is not known here (yet, or any more).
fn view(snapshot: &Snapshot, node: NodeId, service: &Service, of: &Counted) -> Option<TrafficView> {
    let leads_there = |port: &&PublishedPort| {
        let same = port.protocol.transport() == of.protocol.transport();
        port.protocol != Protocol::Http && same && port.target == of.target
    };
    Some(TrafficView {
        node: node_name(snapshot, node),
        service: service.name.to_string(),
        protocol: of.protocol,
        published: service.ports.iter().filter(leads_there).map(|port| port.published).collect(),
        target: of.target,
        endpoint: snapshot.endpoints.get(&of.endpoint)?.name.to_string(),
        connections: of.connections,
        sent: of.sent,
        received: of.received,
    })
}

fn ending() -> Failure {
    Failure::unavailable("meshd is ending".to_owned())
}
