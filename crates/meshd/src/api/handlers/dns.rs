//! `dns`.

use super::{Answer, Failure, Json, Shared, not_found};
use crate::{agent::Applied, daemon::Member};
use axum::extract::State;
use mesh_api::{DnsView, NameServerView, RecordView, Resolve, Resolved, ResolvedView};
use mesh_dns::{Question, Reply, ResolveError, Upstream};
use mesh_model::{Network, NetworkId, Snapshot};
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

/// How long a name server may take, which may have to ask others.
const LIMIT: Duration = Duration::from_secs(6);
/// What is asked if no type is given.
const ADDRESSES: [&str; 2] = ["A", "AAAA"];

pub(in crate::api) async fn status(State(daemon): Shared) -> Answer<DnsView> {
    let member = daemon.member()?;
    let applied = Arc::clone(&member.agent.applied.borrow());
    Ok(Json(DnsView {
        servers: servers(&member.agent.snapshot(), &applied),
        upstreams: applied.names.upstreams.clone(),
    }))
}

/// The name servers by their networks, the host's last.
fn servers(snapshot: &Snapshot, applied: &Applied) -> Vec<NameServerView> {
    let mut addresses: BTreeMap<Option<NetworkId>, Vec<SocketAddr>> = BTreeMap::new();
    for (network, address) in &applied.name_servers {
        addresses.entry(*network).or_default().push(*address);
    }
    let counts: BTreeMap<_, _> = applied.names.counts.iter().copied().collect();
    let name = |id: NetworkId| snapshot.networks.get(&id).map(|network| network.name.to_string());
    let mut servers: Vec<NameServerView> = addresses
        .into_iter()
        .map(|(network, addresses)| NameServerView {
            network: network.map(|id| name(id).unwrap_or_else(|| id.to_string())),
            addresses,
            counts: counts.get(&network).copied().unwrap_or_default(),
        })
        .collect();
    servers.sort_by(|a, b| (a.network.is_none(), &a.network).cmp(&(b.network.is_none(), &b.network)));
    servers
}

/// Asks the name servers themselves, from inside their networks, as containers do.
pub(in crate::api) async fn resolve(State(daemon): Shared, Json(what): Json<Resolve>) -> Answer<Resolved> {
    let member = daemon.member()?;
    let types = match &what.rtype {
        Some(rtype) => vec![rtype.as_str()],
        None if what.name.parse::<std::net::IpAddr>().is_ok() => vec!["PTR"],
        None => ADDRESSES.to_vec(),
    };
    let questions = types.iter().map(|rtype| Question::new(&what.name, rtype, what.network.is_some()));
    let questions: Vec<Question> =
        questions.collect::<Result<_, ResolveError>>().map_err(|e| Failure::bad_request(e.to_string()))?;
    let snapshot = member.agent.snapshot();
    if let Some(wanted) = &what.network {
        let network = snapshot.find_network(wanted).ok_or_else(|| not_found("network", wanted))?;
        let answer = ask(&member, network, &questions).await?;
        let found = answer.ok_or_else(|| {
            let text = format!("nothing on network '{}' is called '{}'", network.name, what.name);
            Failure::not_found(text)
        })?;
        return Ok(Json(Resolved { answers: vec![found] }));
    }
    let here = snapshot.networks_on(member.identity.node);
    let here: Vec<&Arc<Network>> = here.iter().filter_map(|id| snapshot.networks.get(id)).collect();
    if here.is_empty() {
        return Err(Failure::not_found(
            "no network is on this node: connect something to one, or ask on a node that has containers",
        ));
    }
    let mut answers = Vec::new();
    for network in here {
        answers.extend(ask(&member, network, &questions).await?.filter(|answer| answer.authoritative));
    }
    if answers.is_empty() {
        let text = format!(
            "no network on this node has the name '{}': give --network to ask the resolvers beyond",
            what.name
        );
        return Err(Failure::not_found(text));
    }
    answers.sort_by(|a: &ResolvedView, b| a.network.cmp(&b.network));
    Ok(Json(Resolved { answers }))
}

/// What a network's name server says; none if there is no such name.
async fn ask(
    member: &Member,
    network: &Network,
    questions: &[Question],
) -> Result<Option<ResolvedView>, Failure> {
    let places = member.agent.applied.borrow().name_servers.clone();
    let server = places.iter().find(|(of, _)| *of == Some(network.id)).ok_or_else(|| {
        let text = format!(
            "network '{}' is not on this node: ask on one that has containers of it ('meshctl network inspect')",
            network.name
        );
        Failure::not_found(text)
    })?;
    let server = Upstream { address: server.1, network: Some(network.id) };
    let sockets = member.agent.sockets();
    let mut view =
        ResolvedView { network: network.name.to_string(), authoritative: false, records: Vec::new() };
    let mut exists = false;
    for question in questions {
        let reply = question.ask(server, &sockets, LIMIT).await;
        let Reply { authoritative, code, records } = reply.map_err(|e| {
            Failure::unavailable(format!("the name server of network '{}': {e}", network.name))
        })?;
        match u16::from(code) {
            NO_ERROR => exists = true,
            NX_DOMAIN => {}
            // Not the network's, and nobody else was to be asked.
            REFUSED if !authoritative => {}
            _ => {
                let text = format!("the name server of network '{}' says: {code}", network.name);
                return Err(Failure::unavailable(text));
            }
        }
        view.authoritative |= authoritative;
        view.records.extend(records.iter().map(|record| RecordView {
            name: record.name.to_ascii(),
            rtype: record.record_type().to_string(),
            ttl: record.ttl,
            data: record.data.to_string(),
        }));
    }
    Ok(exists.then_some(view))
}

/// Response codes (RFC 1035, 4.1.1).
const NO_ERROR: u16 = 0;
const NX_DOMAIN: u16 = 3;
const REFUSED: u16 = 5;
