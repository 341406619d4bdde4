//! The checks: each makes findings of the evidence. Pure.
//!
//! A check that finds nothing wrong says so in one line, or why it could not look. What one check explains is not told again
//! by those after it: of a dead host, only that it is dead.

mod cluster;
mod host;
mod links;
mod networks;

#[cfg(test)]
mod tests;

use super::evidence::Evidence;
use mesh_api::{Diagnosis, Finding, Group, Outcome};

/// What a check is called, and what it finds.
struct Check {
    group: Group,
    name: &'static str,
    /// It is about this node alone.
    own: bool,
    find: fn(&Evidence) -> Vec<Found>,
}

const CHECKS: [Check; 21] = [
    Check { group: Group::Host, name: "kernel", own: true, find: host::kernel },
    Check { group: Group::Host, name: "forwarding", own: true, find: host::forwarding },
    Check { group: Group::Host, name: "firewall", own: true, find: host::firewall },
    Check { group: Group::Host, name: "conntrack", own: true, find: host::conntrack },
    Check { group: Group::Host, name: "leftovers", own: true, find: host::leftovers },
    Check { group: Group::Cluster, name: "managers", own: false, find: cluster::managers },
    Check { group: Group::Cluster, name: "store", own: true, find: cluster::store },
    Check { group: Group::Cluster, name: "nodes", own: false, find: cluster::nodes },
    Check { group: Group::Cluster, name: "membership-port", own: false, find: cluster::membership_port },
    Check { group: Group::Cluster, name: "clocks", own: false, find: cluster::clocks },
    Check { group: Group::Links, name: "underlay-address", own: false, find: links::underlay_addresses },
    Check { group: Group::Links, name: "vxlan-port", own: false, find: links::vxlan_port },
    Check { group: Group::Links, name: "mtu", own: false, find: links::mtu },
    Check { group: Group::Links, name: "checksums", own: false, find: links::checksums },
    Check { group: Group::Networks, name: "kernel-state", own: true, find: networks::kernel_state },
    Check { group: Group::Networks, name: "addresses", own: true, find: networks::addresses },
    Check { group: Group::Networks, name: "subnets", own: true, find: networks::subnets },
    Check { group: Group::Networks, name: "dns", own: true, find: networks::dns },
    Check { group: Group::Networks, name: "resolvers", own: true, find: networks::resolvers },
    Check { group: Group::Ingress, name: "ports", own: true, find: networks::ports },
    Check { group: Group::Ingress, name: "reach", own: false, find: networks::reach },
];

/// One line of a check, before it has the check's name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    outcome: Outcome,
    place: String,
    peer: Option<String>,
    network: Option<String>,
    result: String,
    remedy: String,
}

impl Found {
    fn new(outcome: Outcome, place: impl Into<String>, result: impl Into<String>) -> Self {
        let (place, result) = (place.into(), result.into());
        Self { outcome, place, peer: None, network: None, result, remedy: String::new() }
    }

    fn failed(place: impl Into<String>, result: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { remedy: remedy.into(), ..Self::new(Outcome::Failed, place, result) }
    }

    fn warning(place: impl Into<String>, result: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { remedy: remedy.into(), ..Self::new(Outcome::Warning, place, result) }
    }

    fn ok(place: impl Into<String>, result: impl Into<String>) -> Self {
        Self::new(Outcome::Ok, place, result)
    }

    fn skipped(place: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(Outcome::Skipped, place, why)
    }

    fn peer(self, peer: &str) -> Self {
        Self { peer: Some(peer.to_owned()), ..self }
    }

    fn network(self, network: &str) -> Self {
        Self { network: Some(network.to_owned()), ..self }
    }
}

/// Everything that the evidence shows.
pub(super) fn diagnose(evidence: &Evidence) -> Diagnosis {
    let made = CHECKS.iter().filter(|check| !(check.own && evidence.only_peers));
    let findings: Vec<Finding> = made
        .flat_map(|check| {
            let mut found = (check.find)(evidence);
            found.sort_by_key(|found| found.outcome);
            found.into_iter().map(|found| finding(check, found))
        })
        .collect();
    let healthy = findings.iter().all(|finding| finding.outcome != Outcome::Failed);
    Diagnosis { node: evidence.me.clone(), healthy, findings }
}

fn finding(check: &Check, found: Found) -> Finding {
    let Found { outcome, place, peer, network, result, remedy } = found;
    Finding {
        group: check.group,
        check: check.name.to_owned(),
        outcome,
        place,
        peer,
        network,
        result,
        remedy,
    }
}

/// What a check says that found nothing wrong among so many.
fn or_fine(found: Vec<Found>, fine: impl FnOnce() -> Found) -> Vec<Found> {
    if found.is_empty() { vec![fine()] } else { found }
}

/// `1 node`, `3 nodes`.
fn count(number: usize, one: &str) -> String {
    let plural = match number {
        1 => "",
        _ if one.ends_with('s') => "es",
        _ => "s",
    };
    format!("{number} {one}{plural}")
}

/// The place of what is between two nodes, whichever way.
fn between(evidence: &Evidence, peer: &str) -> String {
    format!("{} <-> {peer}", evidence.me)
}
