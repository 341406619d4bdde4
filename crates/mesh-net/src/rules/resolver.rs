//! Names for Docker's containers. Their resolver is Docker's own, at 127.0.0.11: what it does not know it asks the host's
//! resolvers, from inside the container. Such a query passes the network's gateway, and is answered there.

use super::{IpVersion, Rules};
use crate::nft::{Datum, Field, Rule, Set, Source, Table};
use mesh_model::{Network, Target};

/// `IPPROTO_TCP` and `IPPROTO_UDP`.
const PROTOCOLS: [u8; 2] = [17, 6];
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
    for endpoint in rules.endpoints_here(network.id).filter(|e| matches!(e.target, Target::Docker(_))) {
        for address in endpoint.addresses.iter().filter(|address| version.is_of(address)) {
            if let Some(subnet) = network.subnet_of(*address) {
                resolvers.insert(vec![(*address).into()], vec![subnet.gateway.into()]);
            }
        }
    }
    table.set("resolvers", resolvers);
    let passing = |protocol| {
        let subnets = network.prefixes().filter(|cidr| version.is_of(&cidr.ip()));
        let to_port = Rule::new().protocol(protocol).eq(Field::ThDport, Datum::Port(PORT));
        subnets.fold(to_port, |rule, cidr| rule.outside(version.daddr(), cidr.network(), cidr.mask()))
    };
    let answered = |protocol| {
        passing(protocol).dnat(Source::Map { key: vec![version.saddr()], map: "resolvers".into() })
    };
    PROTOCOLS.map(answered).into()
}
