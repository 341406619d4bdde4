//! Services: VIPs, published ports and checks.

use super::{
    Fresh, aliases,
    endpoint::{free, used},
};
use crate::{
    EndpointMode, HealthCheck, HealthKind, Network, NetworkId, NodeId, Protocol, PublishedPort, Refusal,
    Service, ServiceId, ServiceNetwork, ServiceSpec, ServiceUpdate, Snapshot, Transport, port::NamedPort,
    service::first_tcp_target,
};
use std::{borrow::Cow, net::IpAddr, sync::Arc};

/// Where published ports are taken from if the user gives none, as in Swarm and Kubernetes.
const PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;

/// The service that a specification stands for. Its networks exist already: the manager makes `default` first.
pub fn service(snapshot: &Snapshot, spec: &ServiceSpec, fresh: Fresh) -> Result<Service, Refusal> {
    if snapshot.services.values().any(|s| s.name.same(&spec.name)) {
        return Err(Refusal::NameTaken { kind: "service", name: spec.name.to_string() });
    }
    let id = ServiceId::from_bits(fresh.id);
    let mut networks: Vec<ServiceNetwork> = Vec::new();
    for wanted in &spec.networks {
        let network = snapshot
            .find_network(wanted)
            .ok_or_else(|| Refusal::NotFound { kind: "network", wanted: wanted.clone() })?;
        if networks.iter().all(|on| on.network != network.id) {
            networks.push(ServiceNetwork {
                network: network.id,
                vips: vips(snapshot, network, spec.endpoint_mode, fresh.now)?,
            });
        }
    }
    let ports = with_free_ports(snapshot, &[], &spec.ports, None)?;
    check_health(spec.health.as_ref(), &ports)?;
    Ok(Service {
        id,
        name: spec.name.clone(),
        networks,
        aliases: aliases(&spec.aliases)?,
        endpoint_mode: spec.endpoint_mode,
        ports,
        health: spec.health.clone(),
        balance: spec.balance,
        prefer_local: spec.prefer_local,
        drain_timeout_ms: spec.drain_timeout_ms,
        created: fresh.now,
    })
}

/// The service as it is after an update, and those that it took ports from.
pub fn service_update(
    snapshot: &Snapshot,
    service: &Service,
    update: &ServiceUpdate,
    now: u64,
) -> Result<(Service, Vec<Service>), Refusal> {
    let mut updated = service.clone();
    let kept = remove_ports(&service.ports, &update.publish_rm)?;
    // What is there already need not be added.
    let added: Vec<_> = update.publish_add.iter().filter(|port| !kept.contains(port)).cloned().collect();
    let robbed = if update.take { without(snapshot, service.id, &added)? } else { Vec::new() };
    let mut left = Cow::Borrowed(snapshot);
    for service in &robbed {
        left.to_mut().services.insert(service.id, Arc::new(service.clone()));
    }
    updated.ports = with_free_ports(&left, &kept, &added, Some(service.id))?;
    if let Some(given) = &update.aliases {
        updated.aliases = aliases(given)?;
    }
    if let Some(health) = &update.health {
        updated.health.clone_from(health);
    }
    updated.balance = update.balance.unwrap_or(service.balance);
    updated.prefer_local = update.prefer_local.unwrap_or(service.prefer_local);
    updated.drain_timeout_ms = update.drain_timeout_ms.unwrap_or(service.drain_timeout_ms);
    if let Some(mode) = update.endpoint_mode.filter(|mode| *mode != service.endpoint_mode) {
        updated.endpoint_mode = mode;
        // Those that it has stay: somebody may still use them.
        for on in updated.networks.iter_mut().filter(|on| on.vips.is_empty()) {
            let network = network_of(snapshot, on.network)?;
            on.vips = vips(snapshot, network, mode, now)?;
        }
    }
    check_health(updated.health.as_ref(), &updated.ports)?;
    Ok((updated, robbed))
}

/// The other services that have one of these ports, without it.
fn without(snapshot: &Snapshot, own: ServiceId, ports: &[PublishedPort]) -> Result<Vec<Service>, Refusal> {
    let mut robbed = Vec::new();
    for service in snapshot.services.values().filter(|service| service.id != own) {
        let is_taken =
            |has: &PublishedPort| ports.iter().any(|port| port.published != 0 && port.clashes(has));
        if service.ports.iter().any(is_taken) {
            let mut service = Service::clone(service);
            service.ports.retain(|port| !is_taken(port));
            check_health(service.health.as_ref(), &service.ports)
                .map_err(|_| Refusal::LeftWithoutCheck(service.name.to_string()))?;
            robbed.push(service);
        }
    }
    Ok(robbed)
}

/// Whether a service may be removed: its endpoints would otherwise lose their place without a word.
pub fn service_removal(snapshot: &Snapshot, service: &Service) -> Result<(), Refusal> {
    match snapshot.endpoints.values().filter(|e| e.service == Some(service.id)).count() {
        0 => Ok(()),
        count => Err(Refusal::ServiceInUse { service: service.name.to_string(), count }),
    }
}

/// The ports without those named: `80`, `80/tcp`, `9090-9091`, or what a port was published by.
pub fn remove_ports(ports: &[PublishedPort], named: &[String]) -> Result<Vec<PublishedPort>, Refusal> {
    let mut kept = ports.to_vec();
    for name in named {
        let none = || Refusal::PortNotPublished(name.clone());
        for named in NamedPort::parse(name).map_err(|_| none())? {
            let before = kept.len();
            kept.retain(|port| !named.is(port));
            if kept.len() == before {
                return Err(none());
            }
        }
    }
    Ok(kept)
}

fn network_of(snapshot: &Snapshot, id: NetworkId) -> Result<&Arc<Network>, Refusal> {
    snapshot.networks.get(&id).ok_or_else(|| Refusal::NotFound { kind: "network", wanted: id.to_string() })
}

fn vips(
    snapshot: &Snapshot,
    network: &Network,
    mode: EndpointMode,
    now: u64,
) -> Result<Vec<IpAddr>, Refusal> {
    if mode == EndpointMode::Dnsrr {
        return Ok(Vec::new());
    }
    let used = used(snapshot, network);
    let families = [false, true].map(|v6| free(snapshot, network, v6, &used, now));
    Ok(families.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// `kept` and `added` together, with free ports in place of 0 and no clash among them or with other services.
fn with_free_ports(
    snapshot: &Snapshot,
    kept: &[PublishedPort],
    added: &[PublishedPort],
    own: Option<ServiceId>,
) -> Result<Vec<PublishedPort>, Refusal> {
    let mut ports = kept.to_vec();
    for port in added {
        if port.proxy_protocol.is_some() && port.protocol != Protocol::Tcp {
            return Err(Refusal::ProxyProtocol(port.protocol));
        }
        let mut port = port.clone();
        if port.published == 0 {
            // HTTP ports may be shared, but whoever leaves the choice to the cluster wants one of its own.
            let protocol = match port.protocol.transport() {
                Transport::Tcp => Protocol::Tcp,
                Transport::Udp => Protocol::Udp,
            };
            let free = |number: &u16| {
                let candidate = PublishedPort { published: *number, protocol, ..port.clone() };
                port_taken(snapshot, &candidate, own, None).is_ok()
                    && !ports.iter().any(|p| p.clashes(&candidate))
            };
            port.published = PORTS.into_iter().find(free).ok_or(Refusal::PortsExhausted)?;
        }
        if ports.iter().any(|p| p.clashes(&port) || *p == port) {
            return Err(Refusal::PortTwice(format!("{}/{}", port.published, port.protocol)));
        }
        port_taken(snapshot, &port, own, None)?;
        ports.push(port);
    }
    Ok(ports)
}

/// Refuses a port that VXLAN, a service other than `own`, or an endpoint on any node or on `node` alone, has.
pub(super) fn port_taken(
    snapshot: &Snapshot,
    port: &PublishedPort,
    own: Option<ServiceId>,
    node: Option<NodeId>,
) -> Result<(), Refusal> {
    // Nobody holds it on a node that has no network yet.
    let vxlan = snapshot.cluster.as_ref().map(|cluster| cluster.data_path_port);
    if port.protocol.transport() == Transport::Udp && vxlan == Some(port.published) {
        return Err(Refusal::PortOfVxlan(port.published));
    }
    let clashes = |ports: &[PublishedPort]| ports.iter().any(|p| p.clashes(port));
    let text = || format!("{}/{}", port.published, port.protocol);
    let mut services = snapshot.services.values().filter(|s| Some(s.id) != own);
    if let Some(service) = services.find(|s| clashes(&s.ports)) {
        return Err(Refusal::PortTaken { port: text(), service: service.name.to_string() });
    }
    let mut endpoints = snapshot.endpoints.values().filter(|e| node.is_none_or(|node| e.node == node));
    match endpoints.find(|e| clashes(&e.ports)) {
        None => Ok(()),
        Some(endpoint) => {
            let node = snapshot.nodes.get(&endpoint.node);
            Err(Refusal::PortOfEndpoint {
                port: text(),
                endpoint: endpoint.name.to_string(),
                node: node.map_or_else(|| endpoint.node.to_string(), |node| node.name.to_string()),
            })
        }
    }
}

fn check_health(health: Option<&HealthCheck>, ports: &[PublishedPort]) -> Result<(), Refusal> {
    let Some(check) = health else { return Ok(()) };
    let bad = |text: &str| Err(Refusal::Health(text.to_owned()));
    if check.port.or_else(|| first_tcp_target(ports)).is_none() {
        return Err(Refusal::HealthPort);
    }
    if check.port == Some(0) {
        return bad("ports go from 1 to 65535");
    }
    if !(100..=3_600_000).contains(&check.interval_ms) {
        return bad("the interval goes from 100ms to 1h");
    }
    if !(1..=60_000).contains(&check.timeout_ms) {
        return bad("the timeout goes from 1ms to 60s");
    }
    if check.rise == 0 || check.fall == 0 {
        return bad("rise and fall are at least 1");
    }
    match &check.kind {
        HealthKind::Http(path) if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic()) => {
            bad("the path starts with '/' and has no blanks or controls")
        }
        _ => Ok(()),
    }
}
