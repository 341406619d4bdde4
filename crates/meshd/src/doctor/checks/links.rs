//! What passes between the hosts.

use super::{
    super::{
        evidence::{Link, Peer},
        prober::Reply,
    },
    Evidence, Found, between, count,
    host::here,
    or_fine,
};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes that VXLAN adds to what a network's MTU counts.
const OVERHEAD_IPV4: u32 = 50;
const OVERHEAD_IPV6: u32 = 70;

/// Whether two machines have the same underlay address.
pub(super) fn underlay_addresses(evidence: &Evidence) -> Vec<Found> {
    let mut found = Vec::new();
    let mut by_address: BTreeMap<_, Vec<&str>> = BTreeMap::new();
    let own = evidence.address.map(|address| (address, evidence.me.as_str()));
    let all = evidence.peers.iter().map(|peer| (peer.address.ip(), peer.name.as_str()));
    for (address, name) in own.into_iter().chain(all) {
        by_address.entry(address).or_default().push(name);
    }
    for (address, names) in by_address.iter().filter(|(_, names)| names.len() > 1) {
        found.push(Found::failed(
            names.join(", "),
            format!("these nodes have the same address, {address}"),
            "take those that are gone out with 'meshctl node rm'",
        ));
    }
    let asked = &evidence.duplicates;
    for duplicate in asked.found.iter().filter(|duplicate| duplicate.network.is_none()) {
        let macs: Vec<String> = duplicate.others.iter().map(ToString::to_string).collect();
        let place = duplicate.peer.as_ref().map_or_else(|| here(evidence), |peer| between(evidence, peer));
        let result = if duplicate.peer.is_some() {
            format!(
                "{} of {} is on two machines: {} answer for it",
                duplicate.address,
                duplicate.owner,
                macs.join(" and ")
            )
        } else {
            format!(
                "{}, this node's address, is on another machine too: {}",
                duplicate.address,
                macs.join(", ")
            )
        };
        let failed = Found::failed(
            place,
            result,
            "give one of the machines another address ('ip neighbour' and the switch tell where it is)",
        );
        found.push(Found { peer: duplicate.peer.clone(), ..failed });
    }
    if let (true, Some(why)) = (found.is_empty(), &asked.unknown) {
        return vec![Found::skipped(here(evidence), why)];
    }
    or_fine(found, || Found::ok(here(evidence), "each address of a node on this LAN is on one machine"))
}

/// Whether VXLAN passes.
pub(super) fn vxlan_port(evidence: &Evidence) -> Vec<Found> {
    if evidence.peers.is_empty() {
        return vec![Found::skipped(here(evidence), "there is no other node")];
    }
    let (mut found, mut passes, mut none) = (Vec::new(), 0, Vec::new());
    for peer in &evidence.peers {
        let links: Vec<&Link> = peer.links(&evidence.links).collect();
        if links.is_empty() {
            none.push(peer.name.as_str());
        } else if links.iter().any(|link| link.heard.reached()) {
            passes += 1;
            found.extend(partly(evidence, &links));
        } else if peer.host_answers(&evidence.links) && !peer.daemon_is_off(&evidence.links) {
            found.push(blocked(evidence, peer, &links));
        }
    }
    if !none.is_empty() && !evidence.networks.is_empty() {
        let names = none.join(", ");
        found.push(Found::skipped(
            format!("{} <-> {names}", evidence.me),
            "no network is on both: nothing can be sent over one",
        ));
    }
    if evidence.links_left_out > 0 {
        let left_out = count(evidence.links_left_out, "link");
        found.push(Found::skipped(
            here(evidence),
            format!("{left_out} not asked: '--node' or '--network' asks fewer"),
        ));
    }
    or_fine(found, || match passes {
        0 => Found::skipped(
            here(evidence),
            "no network is on this node and another: nothing can be sent over one",
        ),
        _ => Found::ok(here(evidence), format!("VXLAN passes to {}", count(passes, "node"))),
    })
}

fn blocked(evidence: &Evidence, peer: &Peer, links: &[&Link]) -> Found {
    let port = evidence.vxlan_port;
    let unsent = links.iter().find_map(|link| link.heard.unsent.as_ref());
    let why = unsent.map(|why| format!(" ({why})")).unwrap_or_default();
    Found::failed(
        between(evidence, &peer.name),
        format!("UDP port {port} (VXLAN) is blocked between them: the host {} answers, but nothing passes over the networks{why}", peer.name),
        format!("let UDP {port} pass both ways between {} and {} (firewalls of both hosts, security groups)", evidence.me, peer.name),
    )
    .peer(&peer.name)
}

/// What does not pass while something else does: a network, or one family of it.
fn partly(evidence: &Evidence, links: &[&Link]) -> Vec<Found> {
    let mut networks: BTreeMap<&str, (Option<&Link>, Option<&Link>)> = BTreeMap::new();
    for link in links {
        let (passes, lost) = networks.entry(&link.network).or_default();
        *(if link.heard.reached() { passes } else { lost }) = Some(link);
    }
    let lost = networks.into_values().filter_map(|(passes, lost)| Some((lost?, passes)));
    lost.map(|(lost, passes)| one_only(evidence, lost, passes)).collect()
}

fn one_only(evidence: &Evidence, link: &Link, passes: Option<&Link>) -> Found {
    let why = link.heard.unsent.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let (by, though) = match passes {
        Some(passes) => (format!(" by {}", link.family()), format!("{} does", passes.family())),
        None => (String::new(), format!("other networks reach {}", link.peer)),
    };
    Found::failed(
        format!("{}, network '{}'", between(evidence, &link.peer), link.network),
        format!("nothing passes over '{}'{by}, though {though}{why}", link.network),
        format!(
            "run 'meshctl doctor --network {}' on {}: its kernel state is most likely to blame",
            link.network, link.peer
        ),
    )
    .peer(&link.peer)
    .network(&link.network)
}

/// Which way something fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    There,
    Back,
    /// The other node sends less than this one.
    Shorter,
}

/// Whether what is as long as a network's MTU passes.
pub(super) fn mtu(evidence: &Evidence) -> Vec<Found> {
    let way = |link: &Link| match (link.heard.full_there, link.heard.full) {
        _ if !link.heard.answered() => None,
        (Reply::Silent, _) => Some(Way::There),
        (_, Reply::TooLong) => Some(Way::Shorter),
        (_, Reply::Silent) => Some(Way::Back),
        _ => None,
    };
    let mut found: Vec<Found> = grouped(evidence, way)
        .into_iter()
        .map(|((peer, way), links)| too_long(evidence, peer, way, &links))
        .collect();
    found.extend(evidence.networks.iter().filter_map(|network| {
        let (asked, fits) = (network.mtu?, evidence.state.overlay_mtu?);
        (asked > fits).then(|| {
            let result = format!("its MTU is {asked}, but the underlay leaves {fits}: full packets are cut in two or lost");
            let remedy = format!("make the network anew with --mtu {fits} or less, or raise the MTU of the underlay's interfaces");
            Found::warning(format!("{}, network '{}'", here(evidence), network.name), result, remedy).network(&network.name)
        })
    }));
    let asked = evidence.links.iter().filter(|link| link.heard.full_there == Reply::Answered).count();
    or_fine(found, || match asked {
        0 => Found::skipped(here(evidence), "nothing answers over a network"),
        _ => Found::ok(here(evidence), "what is as long as a network's MTU passes both ways"),
    })
}

fn too_long(evidence: &Evidence, peer: &str, way: Way, links: &[&Link]) -> Found {
    let largest = links.iter().filter_map(|link| link.mtu).max().unwrap_or_default();
    let overhead =
        if evidence.address.is_some_and(|address| address.is_ipv6()) { OVERHEAD_IPV6 } else { OVERHEAD_IPV4 };
    let outer = largest + overhead;
    let me = &evidence.me;
    let passes = links.iter().filter_map(|link| link.heard.longest).min();
    let passes = passes
        .map(|longest| format!("; about {longest} bytes ({}) pass", longest + overhead))
        .unwrap_or_default();
    let black_hole = |from: &str, to: &str| {
        let result = format!(
            "MTU black hole: small packets pass, packets of {largest} bytes ({outer} on the underlay) are lost{passes}"
        );
        let remedy = format!(
            "let the path carry {outer} bytes (switches, tunnels, interfaces of both hosts), or lower the MTU of the interface of {me} and {peer} so that the networks follow"
        );
        Found::failed(format!("{from} -> {to}{}", on_networks(evidence, links)), result, remedy)
    };
    let found = match way {
        Way::There => black_hole(me, peer),
        Way::Back => black_hole(peer, me),
        Way::Shorter => Found::failed(
            format!("{}{}", between(evidence, peer), on_networks(evidence, links)),
            format!(
                "the MTU of the networks on {me} is {largest}, on {peer} it is less: longer packets are lost there"
            ),
            "give the underlay interfaces of both hosts the same MTU, or make the networks with --mtu",
        ),
    };
    found.peer(peer)
}

/// Whether what bears a UDP checksum arrives as what bears none does.
pub(super) fn checksums(evidence: &Evidence) -> Vec<Found> {
    let way = |link: &Link| match (link.heard.plain, link.heard.summed_there, link.heard.summed) {
        (Reply::Answered, Reply::Silent, _) => Some(Way::There),
        (Reply::Answered, Reply::Answered, Reply::Silent) => Some(Way::Back),
        _ => None,
    };
    let found = grouped(evidence, way).into_iter().map(|((peer, way), links)| {
        let (from, to) = if way == Way::There { (evidence.me.as_str(), peer) } else { (peer, evidence.me.as_str()) };
        Found::failed(
            format!("{from} -> {to}{}", on_networks(evidence, &links)),
            "checksum offload trouble: packets with a checksum are lost inside VXLAN, packets without one pass",
            format!("on {from}, turn the offload off: 'ethtool -K INTERFACE tx-checksum-ip-generic off tx-udp_tnl-csum-segmentation off' for the underlay's interface, or update its driver"),
        )
        .peer(peer)
    });
    let asked = evidence.links.iter().filter(|link| link.heard.summed == Reply::Answered).count();
    or_fine(found.collect(), || match asked {
        0 => Found::skipped(here(evidence), "nothing answers over a network"),
        _ => Found::ok(here(evidence), "packets with checksums arrive"),
    })
}

/// The links for which something fails, by the other node and the way it fails.
fn grouped(evidence: &Evidence, way: impl Fn(&Link) -> Option<Way>) -> BTreeMap<(&str, Way), Vec<&Link>> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for link in &evidence.links {
        if let Some(way) = way(link) {
            groups.entry((link.peer.as_str(), way)).or_default().push(link);
        }
    }
    groups
}

/// The networks, and the family if the other one is well.
fn on_networks(evidence: &Evidence, links: &[&Link]) -> String {
    let networks: BTreeSet<&str> = links.iter().map(|link| link.network.as_str()).collect();
    let place = match networks.first() {
        Some(only) if networks.len() == 1 => format!(", network '{only}'"),
        _ => format!(", {} networks", networks.len()),
    };
    let of_other = |known: &Link| {
        let there = |link: &&Link| link.peer == known.peer && link.ipv6 != known.ipv6;
        networks.contains(known.network.as_str()) && links.iter().all(there)
    };
    match links.first() {
        Some(link) if evidence.links.iter().any(of_other) => format!("{place} ({})", link.family()),
        _ => place,
    }
}
