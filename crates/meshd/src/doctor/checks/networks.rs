//! The networks on this node and its published ports.

use super::{
    super::underlay::Port,
    Evidence, Found, between, count,
    host::{here, networks},
    or_fine,
};
use ipnetwork::IpNetwork;
use std::collections::BTreeMap;

/// Lines of one kind before the rest is counted.
const LINES: usize = 8;

/// Whether the kernel holds what the state says.
pub(super) fn kernel_state(evidence: &Evidence) -> Vec<Found> {
    let state = &evidence.state;
    if let Some(why) = &state.unknown {
        return vec![Found::skipped(here(evidence), why)];
    }
    let place = |owner: &str| match owner {
        "" => here(evidence),
        owner => format!("{}, {owner}", here(evidence)),
    };
    let failures = state.failures.iter().map(|failure| {
        Found::failed(here(evidence), failure, "meshd tries again every few seconds: see its log")
    });
    let stays = state.stays.iter().map(|(owner, text)| {
        Found::failed(
            place(owner),
            format!("{text}: it was repaired, and is so again"),
            "find who changes it (another network daemon, a script): 'ip monitor all' and 'nft monitor' tell",
        )
    });
    let repaired = state.repaired.iter().map(|(owner, text)| {
        Found::warning(
            place(owner),
            format!("{text}: repaired now"),
            "somebody changed it by hand; if it comes back, look for another daemon that does",
        )
    });
    let found = limited(failures).into_iter().chain(limited(stays)).chain(limited(repaired)).collect();
    or_fine(found, || {
        Found::ok(here(evidence), format!("the kernel holds what it should for {}", networks(evidence)))
    })
}

/// The first lines, and how many more there are.
fn limited(found: impl Iterator<Item = Found>) -> Vec<Found> {
    let mut lines: Vec<Found> = found.collect();
    let more = lines.len().saturating_sub(LINES);
    lines.truncate(LINES);
    if let (1.., Some(last)) = (more, lines.last_mut()) {
        last.result += &format!(" (and {more} more like this)");
    }
    lines
}

/// Whether anybody else answers for an address of a network.
pub(super) fn addresses(evidence: &Evidence) -> Vec<Found> {
    if evidence.networks.is_empty() {
        return vec![Found::skipped(here(evidence), "no network is on this node")];
    }
    let asked = &evidence.duplicates;
    let inside = asked.found.iter().filter_map(|duplicate| Some((duplicate, duplicate.network.as_ref()?)));
    let found = inside.map(|(duplicate, network)| {
        let macs: Vec<String> = duplicate.others.iter().map(ToString::to_string).collect();
        let known = match duplicate.known.as_slice() {
            [] => String::new(),
            known => format!(" ({})", known.join(", ")),
        };
        Found::failed(
            format!("{}, network '{network}'", here(evidence)),
            format!(
                "duplicate address: {} is that of {}, but {}{known} answers for it",
                duplicate.address,
                duplicate.owner,
                macs.join(", ")
            ),
            "remove the address from the container that took it, or disconnect that container",
        )
        .network(network)
    });
    let found: Vec<Found> = found.collect();
    if let (true, Some(why)) = (found.is_empty(), &asked.unknown) {
        return vec![Found::skipped(here(evidence), why)];
    }
    or_fine(found, || {
        Found::ok(here(evidence), format!("{} asked for, each has one owner", count(asked.asked, "address")))
    })
}

/// Whether a subnet of a network is also that of the host.
pub(super) fn subnets(evidence: &Evidence) -> Vec<Found> {
    let Some(Ok(survey)) = &evidence.survey else {
        return vec![Found::skipped(here(evidence), "the host was not looked at")];
    };
    let mut found = Vec::new();
    for network in &evidence.networks {
        for subnet in &network.subnets {
            let host = survey.addresses.iter().find(|host| overlap(subnet, &host.address));
            found.extend(host.map(|host| {
                Found::failed(
                    format!("{}, network '{}'", here(evidence), network.name),
                    format!("its subnet {subnet} overlaps {} on {} of this host: one hides the other", host.address, host.link),
                    "make the network anew with another --subnet, or give the host's interface other addresses",
                )
                .network(&network.name)
            }));
        }
    }
    or_fine(found, || Found::ok(here(evidence), "no subnet of a network is also one of the host"))
}

fn overlap(one: &IpNetwork, other: &IpNetwork) -> bool {
    one.is_ipv4() == other.is_ipv4() && (one.contains(other.network()) || other.contains(one.network()))
}

/// Whether names are answered.
pub(super) fn dns(evidence: &Evidence) -> Vec<Found> {
    if evidence.networks.is_empty() {
        return vec![Found::skipped(here(evidence), "no network is on this node")];
    }
    let mut found = Vec::new();
    if evidence.front == Some(false) {
        found.push(Found::failed(
            here(evidence),
            "the process that serves names and the L7 ingress ('meshd front') does not run",
            "meshd starts it again by itself: see its log for why it ends",
        ));
    }
    found.extend(evidence.front_problems.iter().map(|problem| {
        Found::failed(here(evidence), problem, "meshd tries again every few seconds: see its log")
    }));
    for network in &evidence.networks {
        found.extend(network.mute.iter().map(|(gateway, why)| {
            Found::failed(
                format!("{}, network '{}'", here(evidence), network.name),
                format!("the name server {gateway} does not answer ({why})"),
                "see the log of meshd; SIGKILL to 'meshd front' makes it start a new one",
            )
            .network(&network.name)
        }));
    }
    or_fine(found, || Found::ok(here(evidence), format!("names of {} are answered", networks(evidence))))
}

/// Whether those answer whom names of others are asked of. They are not the mesh's: its own names are found without them.
pub(super) fn resolvers(evidence: &Evidence) -> Vec<Found> {
    if evidence.networks.is_empty() {
        return vec![Found::skipped(here(evidence), "no network is on this node")];
    }
    if evidence.resolvers.is_empty() {
        return vec![Found::skipped(
            here(evidence),
            "no resolver is known (/etc/resolv.conf, --dns-upstream): only names of the mesh are found",
        )];
    }
    let found = evidence.resolvers.iter().filter_map(|resolver| {
        let (place, remedy) = match &resolver.network {
            Some(network) => {
                let remedy = format!("see to that container, or name others: meshctl network update {network} --dns-add, --dns-rm");
                (format!("{}, network '{network}'", here(evidence)), remedy)
            }
            None => (here(evidence), "see to that server, or name others: /etc/resolv.conf, meshd --dns-upstream".to_owned()),
        };
        let result = match &resolver.mute {
            _ if resolver.loops => format!("the resolver {} asks this node in turn, and so is not asked", resolver.address),
            Some(why) => format!("the resolver {} does not answer ({why})", resolver.address),
            None => return None,
        };
        let found = Found::warning(place, result, remedy);
        Some(match &resolver.network {
            Some(network) => found.network(network),
            None => found,
        })
    });
    or_fine(found.collect(), || {
        let asked = count(evidence.resolvers.len(), "resolver");
        Found::ok(here(evidence), format!("{asked} beyond the mesh answered"))
    })
}

/// Whether this node holds what is published.
pub(super) fn ports(evidence: &Evidence) -> Vec<Found> {
    let degraded = evidence.degraded_ports.iter().map(|problem| {
        Found::failed(
            here(evidence),
            format!("published port degraded: {problem}"),
            "end what uses the port on this host, or publish another",
        )
    });
    let degraded: Vec<Found> = degraded.collect();
    if evidence.published == 0 && degraded.is_empty() {
        return vec![Found::skipped(here(evidence), "no port is published")];
    }
    or_fine(degraded, || {
        Found::ok(here(evidence), format!("holds {}", count(evidence.published, "published port")))
    })
}

/// Whether published ports answer through the other nodes.
pub(super) fn reach(evidence: &Evidence) -> Vec<Found> {
    let mut troubles: BTreeMap<(&str, Trouble), Vec<String>> = BTreeMap::new();
    let answers = |peer: &str| {
        let peer = evidence.peers.iter().find(|known| known.name == peer);
        peer.is_some_and(|peer| peer.host_answers(&evidence.links))
    };
    for ingress in evidence.ingress.iter().filter(|ingress| answers(&ingress.peer)) {
        if let Some(trouble) = Trouble::of(&ingress.answer) {
            let port = format!("{} ({})", ingress.port, ingress.service);
            troubles.entry((&ingress.peer, trouble)).or_default().push(port);
        }
    }
    let found = troubles.into_iter().map(|((peer, trouble), ports)| {
        trouble.found(format!("{} -> {peer}", evidence.me), peer, &ports.join(", ")).peer(peer)
    });
    let asked = evidence.ingress.len();
    or_fine(found.collect(), || match asked {
        0 => Found::skipped(between(evidence, "others"), "no TCP port with a replica is published"),
        _ => Found::ok(
            here(evidence),
            format!("{} answered through other nodes", count(asked, "published port")),
        ),
    })
}

/// What a published port does instead of answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble {
    Silent,
    /// Somebody on the way says that there is none: a firewall does, replicas don't.
    Barred,
    /// A firewall on the way may say so, or the replica.
    Refused,
}

impl Trouble {
    fn of(answer: &Port) -> Option<Self> {
        match answer {
            Port::Silent => Some(Self::Silent),
            Port::Unreachable(_) => Some(Self::Barred),
            Port::Refused => Some(Self::Refused),
            Port::Open | Port::Strange(_) => None,
        }
    }

    fn found(self, place: String, peer: &str, ports: &str) -> Found {
        match self {
            Self::Silent => Found::failed(
                place,
                format!("published ports are not answered through {peer}: {ports}"),
                format!(
                    "run 'meshctl doctor' on {peer}: a firewall there drops what is forwarded, or its networks reach no replica"
                ),
            ),
            Self::Barred => Found::failed(
                place,
                format!("published ports are said to be out of reach through {peer}: {ports}"),
                format!("run 'meshctl doctor' on {peer}: a firewall there or on the way refuses them"),
            ),
            Self::Refused => Found::warning(
                place,
                format!("published ports are refused through {peer}: {ports}"),
                format!(
                    "see that the replicas listen on their ports; if they do, a firewall on {peer} refuses what is forwarded"
                ),
            ),
        }
    }
}
