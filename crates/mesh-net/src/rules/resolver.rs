//! Names for Docker's containers. Their resolver is Docker's own, at 127.0.0.11: what it does not know it asks the host's
//! resolvers, from inside the container. Such a query passes the network's gateway, and is answered there.

use super::{IpVersion, Rules, bridge};
use crate::nft::{Base, ChainKind, Datum, Field, Hook, Limit, Rule, Set, Source, Table};
use mesh_model::{Endpoint, Network, Target};

const UDP: u8 = 17;
/// `IPPROTO_UDP` and `IPPROTO_TCP`.
const PROTOCOLS: [u8; 2] = [UDP, 6];
const PORT: u16 = 53;

/// Rules for the hook that translates destinations, after those of VIPs; none without such a container. What goes to an
/// address of the network itself is left alone: it may be a name server that somebody runs there.
pub(super) fn rules(
    table: &mut Table,
    rules: &Rules<'_>,
    version: IpVersion,
    network: &Network,
) -> Vec<Rule> {
    let mut resolvers = Set::map(&[version.address()], &[version.address()]);
    // The rules are there for all of them, though one alone may be looked at.
    if !rules.dockers.contains(&network.id) {
        return Vec::new();
    }
    for endpoint in rules.endpoints_here(network.id).filter(|endpoint| is_dockers(endpoint)) {
        for address in endpoint.addresses.iter().filter(|address| version.is_of(address)) {
            if let Some(subnet) = network.subnet_of(*address) {
                resolvers.insert(vec![(*address).into()], vec![subnet.gateway.into()]);
            }
        }
    }
    table.set("resolvers", resolvers);
    let answered = |protocol| {
        let to = Source::Map { key: vec![version.saddr()], map: "resolvers".into() };
        passing(version, network, protocol).dnat(to)
    };
    PROTOCOLS.map(answered).into()
}

/// Rules for the hook before connection tracking: what containers ask the network's name server, and are answered, is no
/// connection. Each query from a port of its own would take a place in the table for half a minute, and both ways cost time.
/// What Docker's resolver asks others is translated, and so tracked: nothing of Docker's containers is exempt.
pub(super) fn untracked(
    table: &mut Table,
    rules: &Rules<'_>,
    version: IpVersion,
    network: &Network,
) -> Vec<Rule> {
    let mut gateways = Set::plain(&[version.address()]);
    let own = network.gateways().filter(|gateway| version.is_of(gateway));
    own.for_each(|gateway| gateways.add(vec![gateway.into()]));
    table.set("gateways", gateways);
    let has_dockers = rules.dockers.contains(&network.id);
    if has_dockers {
        let mut dockers = Set::plain(&[version.address()]);
        for endpoint in rules.endpoints_here(network.id).filter(|endpoint| is_dockers(endpoint)) {
            for address in endpoint.addresses.iter().filter(|address| version.is_of(address)) {
                dockers.add(vec![(*address).into()]);
            }
        }
        table.set("dockers", dockers);
    }
    let of_server = |port: Field, server: Field| {
        Rule::new().protocol(UDP).eq(port, Datum::Port(PORT)).is_in(&[server], "gateways")
    };
    let exempt =
        |rule: Rule, client: Field| if has_dockers { rule.not_in(&[client], "dockers") } else { rule };
    let answers = exempt(of_server(Field::ThSport, version.saddr()), version.daddr());
    table.hook("answers", Base::new(ChainKind::Filter, Hook::Output, -300), vec![answers.notrack()]);
    let limited = rules.local.queries.map(|queries| limited(table, rules, version, network, queries.get()));
    // Whose zone is set is tracked after all: the hook's chain ends here.
    let passed = exempt(Rule::new(), version.saddr()).notrack().accept();
    table.chain("queries", limited.clone().into_iter().chain([passed]).collect());
    let queries = of_server(Field::ThDport, version.daddr()).jump("queries");
    let translated = limited.filter(|_| has_dockers).map(|limited| {
        // By the time that these have the server's address they have been tracked.
        let from_dockers = passing(version, network, UDP).is_in(&[version.saddr()], "dockers");
        Rule { statements: [from_dockers.statements, limited.statements].concat() }
    });
    [queries].into_iter().chain(translated).collect()
}

/// Drops what one address of this node asks beyond its limit, before it takes the place of others' queries in the server's
/// queue.
fn limited(
    table: &mut Table,
    rules: &Rules<'_>,
    version: IpVersion,
    network: &Network,
    queries: u32,
) -> Rule {
    let mut flooding = Set::above(&[version.address()], Limit { rate: queries.into(), burst: queries });
    let sources = rules.endpoints_here(network.id).flat_map(|endpoint| bridge::sources(endpoint));
    for address in sources.filter(|address| version.is_of(address)) {
        flooding.add(vec![address.into()]);
    }
    table.set("flooding", flooding);
    Rule::new().is_in(&[version.saddr()], "flooding").counter().drop()
}

/// Queries that pass the gateway on their way out of the network.
fn passing(version: IpVersion, network: &Network, protocol: u8) -> Rule {
    let subnets = network.prefixes().filter(|cidr| version.is_of(&cidr.ip()));
    let to_port = Rule::new().protocol(protocol).eq(Field::ThDport, Datum::Port(PORT));
    subnets.fold(to_port, |rule, cidr| rule.outside(version.daddr(), cidr.network(), cidr.mask()))
}

fn is_dockers(endpoint: &Endpoint) -> bool {
    matches!(endpoint.target, Target::Docker(_))
}
