//! The host that looks.

use super::{Evidence, Found, count, or_fine};
use mesh_net::{
    nft::Passage,
    survey::{Losses, Survey, Usage},
};

/// Percent of a table's entries.
const NEARLY_FULL: u64 = 80;
const FULL: u64 = 95;

pub(super) fn kernel(evidence: &Evidence) -> Vec<Found> {
    let missing = evidence.missing.iter().map(|missing| {
        Found::failed(
            here(evidence),
            format!("{} is missing ({})", missing.what, missing.because),
            missing.remedy,
        )
    });
    or_fine(missing.collect(), || Found::ok(here(evidence), "the kernel has what is needed"))
}

/// Whether what comes by a published port is forwarded at all.
pub(super) fn forwarding(evidence: &Evidence) -> Vec<Found> {
    let survey = match survey(evidence) {
        Ok(survey) => survey,
        Err(skipped) => return skipped,
    };
    if evidence.networks.is_empty() {
        return vec![Found::skipped(here(evidence), "no network is on this node")];
    }
    let mut found = Vec::new();
    for (forwards, family, name) in [
        (survey.forwards_ipv4, "IPv4", "net.ipv4.ip_forward"),
        (survey.forwards_ipv6, "IPv6", "net.ipv6.conf.all.forwarding"),
    ] {
        if !forwards {
            found.push(Found::failed(
                here(evidence),
                format!("the host does not forward {family}: {name} is 0"),
                "find what sets it (sysctl.d, another daemon): meshd turns it on every few seconds",
            ));
        }
    }
    found.extend(survey.strict_uplinks.iter().map(|link| {
        Found::failed(
            format!("{}, {link}", here(evidence)),
            "a strict reverse path filter (rp_filter=1) drops answers of published ports",
            format!("set net.ipv4.conf.all.rp_filter to 0 or 2; meshd sets that of {link} to 2"),
        )
    }));
    or_fine(found, || Found::ok(here(evidence), "forwards, no strict reverse path filter"))
}

/// Whether other people's tables let through what is forwarded for published ports.
pub(super) fn firewall(evidence: &Evidence) -> Vec<Found> {
    let survey = match survey(evidence) {
        Ok(survey) => survey,
        Err(skipped) => return skipped,
    };
    if evidence.networks.is_empty() {
        return vec![Found::skipped(here(evidence), "no network is on this node")];
    }
    let chains = survey.forward_chains.iter().filter_map(|chain| {
        let place = format!("{}, chain '{}'", here(evidence), chain.name);
        match chain.passage {
            Passage::Open => None,
            Passage::Shut => Some(Found::failed(
                place,
                "drops what is forwarded to and from published ports and containers",
                "let it accept iifname \"up*\" and oifname \"up*\" (with Docker: 'iptables -I DOCKER-USER -o up+ -j ACCEPT', and the same with -i)",
            )),
            Passage::Unclear => Some(Found::warning(
                place,
                "drops what its rules do not accept, and they can't be judged from outside",
                "see that it accepts iifname \"up*\" and oifname \"up*\"",
            )),
        }
    });
    or_fine(chains.collect(), || Found::ok(here(evidence), "no firewall drops what is forwarded"))
}

pub(super) fn conntrack(evidence: &Evidence) -> Vec<Found> {
    let host = match survey(evidence) {
        Ok(survey) => survey.conntrack,
        Err(skipped) => return skipped,
    };
    let networks = evidence
        .networks
        .iter()
        .map(|network| (format!("{}, network '{}'", here(evidence), network.name), network.conntrack));
    let all = std::iter::once((here(evidence), host)).chain(networks);
    let mut known = 0;
    let found = all.filter_map(|(place, usage)| {
        let usage = usage?;
        known += 1;
        full(place, usage)
    });
    let found: Vec<Found> = found.collect();
    if known == 0 {
        return vec![Found::skipped(
            here(evidence),
            "the kernel does not say how many connections it tracks",
        )];
    }
    // Counted since the host started: no trouble any more, but worth to be known.
    let lost = host.map(|usage| usage.losses).filter(|losses| *losses != Losses::default());
    let before = lost.map(|losses| format!(", but {}", without_room(losses))).unwrap_or_default();
    or_fine(found, || {
        Found::ok(here(evidence), format!("room for connections in the host and in its networks{before}"))
    })
}

fn without_room(Losses { dropped, forgotten }: Losses) -> String {
    format!("so far {dropped} packets were dropped and {forgotten} connections forgotten for want of room")
}

fn full(place: String, Usage { used, max, most, losses }: Usage) -> Option<Found> {
    // A limit of 0 is none.
    let percent = used.saturating_mul(100).checked_div(max)?;
    let by = most.map(|(asker, count)| format!(", {count} of them by {asker}")).unwrap_or_default();
    let lost = if losses == Losses::default() {
        "new ones are dropped when it is full".to_owned()
    } else {
        without_room(losses)
    };
    let result = format!("{used} of {max} tracked connections ({percent} %){by}: {lost}");
    let remedy = "raise net.netfilter.nf_conntrack_max of the machine, or stop who opens so many ('conntrack -L' lists them)";
    match percent {
        0..NEARLY_FULL => None,
        NEARLY_FULL..FULL => Some(Found::warning(place, result, remedy)),
        _ => Some(Found::failed(place, result, remedy)),
    }
}

/// What is there though this node belongs to no cluster: nobody repairs it, and published ports lead there still.
pub(super) fn leftovers(evidence: &Evidence) -> Vec<Found> {
    let left = evidence.leftovers.iter().map(|left| {
        Found::failed(
            here(evidence),
            format!("{left} is left of an earlier life"),
            "'meshctl cluster init' or 'join' takes it over or removes it; a restart of the host does as well",
        )
    });
    or_fine(left.collect(), || Found::ok(here(evidence), "nothing is left of an earlier life"))
}

pub(super) fn here(evidence: &Evidence) -> String {
    if evidence.me.is_empty() { "this host".to_owned() } else { evidence.me.clone() }
}

fn survey(evidence: &Evidence) -> Result<&Survey, Vec<Found>> {
    match &evidence.survey {
        Some(Ok(survey)) => Ok(survey),
        Some(Err(why)) => Err(vec![Found::skipped(here(evidence), why)]),
        None => Err(vec![Found::skipped(here(evidence), "the host was not looked at")]),
    }
}

/// How many networks are on this node, in words.
pub(super) fn networks(evidence: &Evidence) -> String {
    count(evidence.networks.len(), "network")
}
