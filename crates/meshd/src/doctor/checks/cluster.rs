//! The other nodes, and who manages them.

use super::{super::underlay::Port, Evidence, Found, between, count, host::here, or_fine};
use mesh_model::{NodeStatus, Role};

/// Milliseconds that clocks may differ by, until that is noticed and until it is in the way of certificates.
const NOTICED: u64 = 2_000;
const TOO_FAR: u64 = 30_000;

/// Whether managers answer on TCP.
pub(super) fn managers(evidence: &Evidence) -> Vec<Found> {
    if evidence.me.is_empty() {
        return vec![Found::skipped(here(evidence), "this node belongs to no cluster")];
    }
    let managers = &evidence.managers;
    let mut found = Vec::new();
    if managers.removed {
        found.push(Found::failed(
            here(evidence),
            "the managers say that this node is no member any more",
            "run 'meshctl cluster leave --force' here, then join again",
        ));
    } else if !managers.connected {
        let why = match managers.refusals.as_slice() {
            [] => String::new(),
            refusals => format!(" ({})", refusals.join("; ")),
        };
        found.push(Found::failed(
            here(evidence),
            format!("no manager answers this node{why}: traffic goes on, changes wait"),
            "see that the managers run and that TCP passes to their ports",
        ));
    }
    let others: Vec<_> = evidence.peers.iter().filter(|peer| peer.role == Role::Manager).collect();
    for peer in &others {
        let port = peer.address.port();
        let place = format!("{} -> {}", evidence.me, peer.name);
        let answers = peer.host_answers(&evidence.links);
        let trouble = match &peer.tcp {
            Port::Open => None,
            // Told of the node.
            _ if !answers => None,
            Port::Refused if peer.daemon_is_off(&evidence.links) => None,
            Port::Refused => Some(Found::failed(
                place,
                format!("no manager listens on TCP port {port} of {}", peer.address.ip()),
                format!("see 'meshctl status' and the log of meshd on {}", peer.name),
            )),
            Port::Strange(why) => Some(Found::failed(
                place,
                format!("the manager does not take this node on: {why}"),
                "see 'meshctl status' on both",
            )),
            Port::Silent | Port::Unreachable(_) => Some(Found::failed(
                place,
                format!(
                    "TCP port {port} of {} is blocked: the host answers, the port does not",
                    peer.address.ip()
                ),
                format!("let TCP {port} pass to {} (firewalls of both hosts and between them)", peer.name),
            )),
        };
        found.extend(trouble.map(|found| found.peer(&peer.name)));
    }
    or_fine(found, || {
        let own = usize::from(managers.here);
        Found::ok(here(evidence), format!("{} answer", count(others.len() + own, "manager")))
    })
}

/// The manager in this process and what it keeps the state in.
pub(super) fn store(evidence: &Evidence) -> Vec<Found> {
    let problems = evidence.managers.own.iter().map(|problem| {
        Found::failed(
            here(evidence),
            problem,
            "see the log of meshd; 'meshctl node ls' shows the other managers",
        )
    });
    let problems: Vec<Found> = problems.collect();
    if !evidence.managers.here && problems.is_empty() {
        return vec![Found::skipped(here(evidence), "no manager: managers keep the state")];
    }
    or_fine(problems, || Found::ok(here(evidence), "the manager and its store work"))
}

/// Whether the other nodes are there, and their daemons run.
pub(super) fn nodes(evidence: &Evidence) -> Vec<Found> {
    if evidence.peers.is_empty() {
        return vec![Found::skipped(here(evidence), "there is no other node")];
    }
    let links = &evidence.links;
    let found = evidence.peers.iter().filter_map(|peer| {
        let address = peer.address;
        let found = if peer.daemon_is_off(links) {
            let doubt = match peer.status {
                NodeStatus::Ready => ", or it is too old to answer probes",
                NodeStatus::Suspect | NodeStatus::Down => "",
            };
            Found::failed(
                &peer.name,
                format!("meshd does not run on {}{doubt}: its host answers, the daemon does not", peer.name),
                format!("start meshd on {}, and see its log if it ends again", peer.name),
            )
        } else if !peer.host_answers(links) {
            Found::failed(
                &peer.name,
                format!("no sign of life from {} at {}: no port of it answers", peer.name, address.ip()),
                format!(
                    "see that the host is up and that {} reaches it; 'meshctl node rm {}' if it is gone for good",
                    evidence.me, peer.name
                ),
            )
        } else {
            return None;
        };
        Some(found.peer(&peer.name))
    });
    or_fine(found.collect(), || {
        Found::ok(here(evidence), format!("{} up", count(evidence.peers.len(), "other node")))
    })
}

/// UDP, on which nodes find out who is there.
pub(super) fn membership_port(evidence: &Evidence) -> Vec<Found> {
    if evidence.peers.is_empty() {
        return vec![Found::skipped(here(evidence), "there is no other node")];
    }
    let missed = evidence.peers.iter().filter(|peer| peer.status != NodeStatus::Ready);
    let blocked =
        missed.filter(|peer| peer.host_answers(&evidence.links) && !peer.daemon_is_off(&evidence.links));
    let found = blocked.map(|peer| {
        let port = peer.address.port();
        let runs = peer.tcp == Port::Open || peer.links(&evidence.links).any(|link| link.heard.answered());
        let (result, remedy) = if runs {
            (
                format!(
                    "UDP port {port} is blocked between them: meshd runs on {}, and is counted as {}",
                    peer.name, peer.status
                ),
                format!("let UDP {port} pass both ways (firewalls of both hosts and between them)"),
            )
        } else {
            (
                format!("nothing answers on UDP port {port} of {}, though its host is up", peer.name),
                format!("see that meshd runs on {}, and let UDP {port} pass both ways", peer.name),
            )
        };
        Found::failed(between(evidence, &peer.name), result, remedy).peer(&peer.name)
    });
    or_fine(found.collect(), || {
        Found::ok(here(evidence), format!("{} heard over UDP", count(ready(evidence), "node")))
    })
}

fn ready(evidence: &Evidence) -> usize {
    evidence.peers.iter().filter(|peer| peer.status == NodeStatus::Ready).count()
}

/// How far the clocks of other nodes are from this one's.
pub(super) fn clocks(evidence: &Evidence) -> Vec<Found> {
    let mut told = 0;
    let mut found = Vec::new();
    for peer in &evidence.peers {
        let clocks = peer
            .links(&evidence.links)
            .filter(|link| link.heard.answered())
            .filter_map(|link| link.heard.clock);
        let Some((ahead, uncertain)) = clocks.min_by_key(|(_, uncertain)| *uncertain) else { continue };
        told += 1;
        let apart = ahead.unsigned_abs();
        let certain = apart.saturating_sub(uncertain);
        if certain < NOTICED {
            continue;
        }
        let direction = if ahead > 0 { "ahead of" } else { "behind" };
        let result = format!(
            "the clock of {} is {}.{} s {direction} that of {}",
            peer.name,
            apart / 1000,
            apart % 1000 / 100,
            evidence.me
        );
        let remedy = "set the clocks (chrony, systemd-timesyncd): certificates and logs go by them";
        let place = between(evidence, &peer.name);
        let found_here = if certain < TOO_FAR {
            Found::warning(place, result, remedy)
        } else {
            Found::failed(place, result, remedy)
        };
        found.push(found_here.peer(&peer.name));
    }
    if told == 0 {
        return vec![Found::skipped(here(evidence), "no other node told its time")];
    }
    or_fine(found, || {
        Found::ok(here(evidence), format!("the clocks of {} agree with this one", count(told, "node")))
    })
}
