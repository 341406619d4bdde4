//! Which endpoints are checked, and how: a pure function of the snapshot.

use crate::routes::reachable_address;
use mesh_model::{EndpointId, HealthKind, Name, NetworkId, NodeId, ProxyProtocol, Service, Snapshot};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

/// What one check does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// `GET` of a path answers 2xx or 3xx.
    Http {
        /// The path.
        path: String,
        /// The host that is asked for: the service's name.
        host: Name,
    },
    /// A connection is accepted.
    Tcp,
}

/// The check of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What it does.
    pub probe: Probe,
    /// The header that the port expects first, if any.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The network that the endpoint is reached by.
    pub network: NetworkId,
    /// The endpoint's address and the port that is checked.
    pub addr: SocketAddr,
    /// From one check to the next.
    pub interval: Duration,
    /// What one check may take.
    pub timeout: Duration,
    /// Successes in a row that bring a failed endpoint back.
    pub rise: u32,
    /// Failures in a row that take it out.
    pub fall: u32,
}

/// The checks of node `me`: one for each of its endpoints whose service has a check.
pub fn plan_checks(snapshot: &Snapshot, me: NodeId) -> BTreeMap<EndpointId, Check> {
    let node = snapshot.nodes.get(&me).map(Arc::as_ref);
    let local = snapshot.endpoints.values().filter(|endpoint| endpoint.node == me);
    let check = |endpoint: &Arc<mesh_model::Endpoint>| {
        let service = snapshot.services.get(&endpoint.service?)?;
        let health = service.health.as_ref()?;
        let port = service.health_port()?;
        let addr = SocketAddr::new(reachable_address(endpoint, node)?, port);
        let probe = match &health.kind {
            HealthKind::Http(path) => Probe::Http { path: path.clone(), host: service.name.clone() },
            HealthKind::Tcp => Probe::Tcp,
        };
        let check = Check {
            probe,
            proxy_protocol: expected_header(service, port),
            network: endpoint.network,
            addr,
            interval: Duration::from_millis(health.interval_ms.max(MIN_MILLIS)),
            timeout: Duration::from_millis(health.timeout_ms.max(MIN_MILLIS)),
            rise: health.rise,
            fall: health.fall,
        };
        Some((endpoint.id, check))
    };
    local.filter_map(check).collect()
}

/// What replicas of a service expect first at a port: a header, if that is what they are sent by a published one.
fn expected_header(service: &Service, target: u16) -> Option<ProxyProtocol> {
    service.ports.iter().filter(|port| port.target == target).find_map(|port| port.proxy_protocol)
}

/// No check is run more often than this, whatever a record says.
const MIN_MILLIS: u64 = 10;
