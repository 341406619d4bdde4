//! Tables of a network's own namespace.

use super::{IpVersion, OVERLAY_TABLE, PROBE_PORT, Rules, balance, resolver};
use crate::nft::{
    Base, ChainKind, CtDirection, Data, Datum, Field, Hook, Rule, Set, Source, Table, Type, Verdict, icmpv6,
};
use mesh_model::{Balance, Endpoint, Network, Service, Subnet};
use std::{net::IpAddr, sync::Arc};

/// `IPPROTO_ICMPV6`.
pub(super) const ICMPV6: u8 = 58;
/// `IPPROTO_UDP`.
const UDP: u8 = 17;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const CT_STATE_NEW: u32 = 1 << 3;

/// The whole table for one version.
pub(super) fn table(rules: &Rules<'_>, version: IpVersion, network: &Network) -> Table {
    let mut table = Table::new(version.family(), OVERLAY_TABLE);
    let untracked = resolver::untracked(&mut table, rules, version, network);
    marks(&mut table, untracked);
    limits(&mut table, rules, version, network);
    vips(&mut table, rules, version, network);
    sources(&mut table, rules, version, network);
    let resets = resets(&mut table, rules, version, network);
    let mut forward = vec![Rule::new().clamp_mss_to_path()];
    forward.extend(resets.clone());
    table.hook("forward", Base::new(ChainKind::Filter, Hook::Forward, -150), forward);
    probes(&mut table, rules, version);
    let mut output = Vec::from_iter(resets);
    if version == IpVersion::V6 {
        // Containers believe redirects, and answers of published ports would leave by the wrong node. There is no
        // sysctl against sending them.
        let redirect = Rule::new().protocol(ICMPV6).eq(Field::Icmpv6Type, Datum::Proto(icmpv6::ND_REDIRECT));
        output.push(redirect.drop());
    }
    if !output.is_empty() {
        table.hook("output", Base::new(ChainKind::Filter, Hook::Output, 0), output);
    }
    table
}

/// Probes are between nodes. What came from no other node's bridge has no mark; and what a container sends to another node
/// is not passed on, for there it would have this node's.
fn probes(table: &mut Table, rules: &Rules<'_>, version: IpVersion) {
    let mut nodes = Set::plain(&[version.address()]);
    let addresses = rules.snapshot.nodes.values().flat_map(|node| &node.addresses);
    for address in addresses.filter(|address| version.is_of(address)) {
        nodes.add(vec![(*address).into()]);
    }
    table.set("nodes", nodes);
    let probe = || Rule::new().protocol(UDP).eq(Field::ThDport, Datum::Port(PROBE_PORT));
    table.hook(
        "probes",
        Base::new(ChainKind::Filter, Hook::Input, 0),
        vec![probe().eq(Field::CtMark, Datum::Number(0)).drop()],
    );
    table.hook(
        "probes_of_others",
        Base::new(ChainKind::Filter, Hook::Forward, 0),
        vec![probe().is_in(&[version.daddr()], "nodes").drop()],
    );
}

/// A connection remembers the node that it came by, and what goes back is marked with it for policy routing.
///
/// A client may use the same port towards two nodes that choose the same replica. Each node has a zone of its own
/// (conntrack zones, for the original direction), so that these are two connections; and as the replica's answers would
/// be alike, the kernel gives the second another source port. Without that the replica takes the second SYN for a part of
/// the first connection, and what it answers has the client reset that.
///
/// What goes back gets the connection's mark also when that is 0, and what belongs to no connection gets none: else
/// packets would loop between two nodes.
fn marks(table: &mut Table, untracked: Vec<Rule>) {
    let zone = Rule::new().set_zone(Source::Field(Field::Mark));
    table.hook(
        "zones",
        Base::new(ChainKind::Filter, Hook::Prerouting, -300),
        untracked.into_iter().chain([zone]).collect(),
    );
    table.hook(
        "marks",
        Base::new(ChainKind::Filter, Hook::Prerouting, -150),
        vec![
            Rule::new().direction(CtDirection::Reply).set_mark(Source::Field(Field::CtMark)).accept(),
            Rule::new().direction(CtDirection::Original).set_ct_mark(Source::Field(Field::Mark)),
            Rule::new().set_mark(Source::Constant(vec![Datum::Number(0)])),
        ],
    );
}

/// Connections to endpoints on hosts that are lost meet a reset when their client next sends: it came by this node, whose
/// connection tracking makes the reset one of the address that the client knows. So do those of this node's relay and proxy. What is not sent meanwhile goes on when the
/// host returns. Most of the time there is none, and no rule to pass.
fn resets(table: &mut Table, rules: &Rules<'_>, version: IpVersion, network: &Network) -> Option<Rule> {
    let lost = &rules.snapshot.lost;
    if lost.is_empty() {
        return None;
    }
    let mut addresses = Set::plain(&[version.address()]);
    for endpoint in rules.endpoints(network.id).filter(|endpoint| lost.contains(&endpoint.node)) {
        let own = endpoint.addresses.iter().filter(|address| version.is_of(address));
        own.for_each(|address| addresses.add(vec![(*address).into()]));
    }
    table.set("lost", addresses);
    Some(Rule::new().is_in(&[version.daddr()], "lost").reject_tcp_reset())
}

/// No new connections for those who have too many. Most of the time there are none, and no rule to pass.
fn limits(table: &mut Table, rules: &Rules<'_>, version: IpVersion, network: &Network) {
    let here = |address: &&IpAddr| version.is_of(address) && network.subnet_of(**address).is_some();
    let mut limited = rules.local.limited.iter().filter(here).peekable();
    if limited.peek().is_none() {
        return;
    }
    let mut set = Set::plain(&[version.address()]);
    limited.for_each(|address| set.add(vec![(*address).into()]));
    table.set("limited", set);
    let new = Rule::new().is_in(&[version.saddr()], "limited").any_bit(Field::CtState, CT_STATE_NEW);
    table.hook("limits", Base::new(ChainKind::Filter, Hook::Prerouting, -160), vec![new.drop()]);
}

/// VIPs. The key is the address alone: a VIP stands for every protocol and port.
fn vips(table: &mut Table, rules: &Rules<'_>, version: IpVersion, network: &Network) {
    let mut vips = Vips {
        version,
        vips: Set::verdicts(&[version.address()]),
        slots: Set::map(&[version.address(), Type::Number], &[version.address()]),
        stand_ins: Set::map(&[version.address()], &[version.address()]),
        refused: Set::plain(&[version.address()]),
    };
    for service in rules.services() {
        for vip in service.vips(network.id).iter().filter(|vip| version.is_of(vip)) {
            let backends = rules.backends(service, network.id, version, false);
            vips.add(table, service, *vip, backends.into_iter().map(|address| vec![address]).collect());
        }
    }
    table.set("vips", vips.vips);
    table.set("slots", vips.slots);
    table.set("stand_ins", vips.stand_ins);
    table.set("refused", vips.refused);
    let mut prerouting = vec![Rule::new().vmap(&[version.daddr()], "vips")];
    prerouting.extend(resolver::rules(table, rules, version, network));
    table.hook("prerouting", Base::new(ChainKind::Nat, Hook::Prerouting, -100), prerouting);
    table.hook("input", Base::new(ChainKind::Filter, Hook::Input, 0), refusals(version));
}

/// A VIP is an address of this namespace: what is not translated, as there is no backend, arrives at the input hook.
/// A ping is told that the port is unreachable.
fn refusals(version: IpVersion) -> Vec<Rule> {
    let refused = || Rule::new().is_in(&[version.daddr()], "refused");
    let mut rules = vec![refused().reject_tcp_reset(), refused().reject_port_unreachable()];
    if version == IpVersion::V6 {
        // Neighbour discovery goes on.
        let echo = Datum::Proto(icmpv6::ECHO_REQUEST);
        rules.insert(0, refused().protocol(ICMPV6).ne(Field::Icmpv6Type, echo).accept());
    }
    rules
}

/// The sets and maps of VIPs under construction.
struct Vips {
    version: IpVersion,
    vips: Set,
    slots: Set,
    stand_ins: Set,
    refused: Set,
}

impl Vips {
    fn add(&mut self, table: &mut Table, service: &Service, vip: IpAddr, backends: Vec<Data>) {
        let chain = match (service.balance, backends.len()) {
            (_, 0) => return self.refused.add(vec![vip.into()]),
            (Balance::Random | Balance::Source, count) => {
                self.share(vip, backends);
                let (name, slot) = match service.balance {
                    Balance::Source => ("source".to_owned(), balance::slot(self.version)),
                    _ => (format!("random_{count}"), Field::NumgenRandom(count as u32)),
                };
                let key = vec![self.version.daddr(), slot];
                let choice = Source::Map { key, map: "slots".into() };
                let stand_in = Source::Map { key: vec![self.version.daddr()], map: "stand_ins".into() };
                table.shared_chain(&name, vec![Rule::new().dnat(choice), Rule::new().dnat(stand_in)]);
                name
            }
            (balance, _) => {
                let name = format!("vip_{vip}").replace(':', "_");
                let choices = balance::choices(self.version, balance, backends).into_iter();
                table.chain(&name, choices.map(|choice| Rule::new().dnat(choice)).collect());
                name
            }
        };
        self.vips.insert_verdict(vec![vip.into()], Verdict::Goto(chain));
    }

    /// A chain for each number of backends is enough for all services that choose at random, and one for all that choose by
    /// source: a change of backends is then one of elements only.
    ///
    /// A packet that meets that change may be in the chain for more backends than there are from then on, and find no
    /// slot for its number: another map, which has one for each VIP at every moment, stands in (see
    /// [`balance::choices`]).
    fn share(&mut self, vip: IpAddr, backends: Vec<Data>) {
        if let Some(first) = backends.first() {
            self.stand_ins.insert(vec![vip.into()], first.clone());
        }
        for (slot, backend) in (0u32..).zip(backends) {
            self.slots.insert(vec![vip.into(), Datum::Number(slot)], backend);
        }
    }
}

/// What bears the gateway's address for its sender's, as its answer would not come back otherwise.
fn sources(table: &mut Table, rules: &Rules<'_>, version: IpVersion, network: &Network) {
    let mut postrouting = past_default_routes(table, rules, version, network);
    postrouting.push(hairpin(table, rules, version, network));
    table.hook("postrouting", Base::new(ChainKind::Nat, Hook::Postrouting, 100), postrouting);
}

/// Datagrams from outside the network, for containers whose default route is another interface's, come from the gateway. A
/// server with a socket for all addresses answers to the sender alone, whatever address it was asked at: by that default
/// route the answer would leave past the mesh, with an address that nobody knows there. TCP answers from the address that was
/// asked, and policy routing leads that back (`desired/endpoint.rs`).
///
/// Not from a port below 1024, for answers to port 53 would be queries to the gateway's name server.
fn past_default_routes(
    table: &mut Table,
    rules: &Rules<'_>,
    version: IpVersion,
    network: &Network,
) -> Vec<Rule> {
    let mut elsewhere = Set::plain(&[version.address()]);
    let is_elsewhere = |endpoint: &&Arc<Endpoint>| {
        let attachment = rules.local.attachments.get(&endpoint.id);
        attachment.is_some_and(|attachment| attachment.is_elsewhere(version == IpVersion::V6))
    };
    for endpoint in rules.endpoints_here(network.id).filter(is_elsewhere) {
        let own = endpoint.addresses.iter().filter(|address| version.is_of(address));
        own.for_each(|address| elsewhere.add(vec![(*address).into()]));
    }
    table.set("elsewhere", elsewhere);
    let subnets = || network.subnets.iter().filter(|subnet| version.is_of(&subnet.gateway));
    let to_subnet = |subnet: &Subnet| {
        let rule = Rule::new().protocol(UDP).is_in(&[version.daddr()], "elsewhere");
        let rule = rule.within(version.daddr(), subnet.cidr.network(), subnet.cidr.mask());
        let rule = subnets()
            .map(|subnet| subnet.cidr)
            .fold(rule, |rule, cidr| rule.outside(version.saddr(), cidr.network(), cidr.mask()));
        rule.snat(vec![subnet.gateway.into(), Datum::Port(1024), Datum::Port(u16::MAX)].into())
    };
    subnets().map(to_subnet).collect()
}

/// A container that is balanced to itself would answer itself: its packets come from the gateway instead. Needed on its
/// own node only, which is where a VIP is translated.
fn hairpin(table: &mut Table, rules: &Rules<'_>, version: IpVersion, network: &Network) -> Rule {
    let mut pairs = Set::map(&[version.address(), version.address()], &[version.address()]);
    for endpoint in rules.endpoints_here(network.id) {
        for address in endpoint.addresses.iter().filter(|address| version.is_of(address)) {
            if let Some(subnet) = network.subnet_of(*address) {
                pairs.insert(vec![(*address).into(), (*address).into()], vec![subnet.gateway.into()]);
            }
        }
    }
    table.set("hairpin", pairs);
    let key = vec![version.saddr(), version.daddr()];
    Rule::new().snat(Source::Map { key, map: "hairpin".into() })
}
