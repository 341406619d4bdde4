//! Tables of the host's namespace.

use super::{HOST_TABLE, IpVersion, Rules, balance, counters};
use crate::desired::{data_path_port, uplink};
use crate::nft::{
    Base, ChainKind, CtDirection, Data, Datum, Field, Hook, Rule, Set, Source, Table, Type, Verdict,
    ct_status,
};
use crate::ports::HostPort;
use mesh_model::{Endpoint, Health, NetworkId, Protocol, PublishMode, PublishedPort, Service, Transport};
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

/// `NF_CT_STATE_INVALID_BIT` and that of `IP_CT_NEW`.
const CT_STATE_INVALID: u32 = 1;
const CT_STATE_NEW: u32 = 1 << 3;
/// Maps of published ports: of all addresses, and of one.
const PORTS: &str = "ports";
const BOUND: &str = "bound";

/// Those that nobody is assigned (RFC 6335, section 6).
const DYNAMIC_PORTS: RangeInclusive<u16> = 49152..=65535;

/// The whole table for one version.
pub(super) fn table(rules: &Rules<'_>, version: IpVersion, closed: &BTreeSet<String>) -> Table {
    let mut table = Table::new(version.family(), HOST_TABLE);
    published_ports(&mut table, rules, version);
    counters::counters(&mut table, rules, version);
    uplinks(&mut table, rules);
    nodes(&mut table, rules, version);
    untracked(&mut table, rules, version);
    ways_out(&mut table, rules, version);
    as_asked(&mut table, rules, version);
    door(&mut table, rules, version, closed);
    table
}

/// Published ports: for anybody's packets to an address of this host, and for the host's own.
fn published_ports(table: &mut Table, rules: &Rules<'_>, version: IpVersion) {
    let mut ports = Ports {
        version,
        ports: Set::verdicts(&[Type::Proto, Type::Port]),
        bound: Set::verdicts(&[version.address(), Type::Proto, Type::Port]),
        refused: Set::plain(&[Type::Proto, Type::Port]),
        refused_bound: Set::plain(&[version.address(), Type::Proto, Type::Port]),
    };
    for service in rules.services() {
        let Some(network) = service.ingress_network() else { continue };
        let published = rules.snapshot.published_on(service, rules.me.id);
        for port in published.filter(|port| port.protocol != Protocol::Http) {
            ports.publish(table, rules, service, network, port);
        }
    }
    let own = rules.own_endpoints();
    for endpoint in own.filter(|endpoint| !endpoint.draining) {
        for port in &endpoint.ports {
            ports.publish_endpoint(table, endpoint, port);
        }
    }
    table.set(PORTS, ports.ports);
    table.set(BOUND, ports.bound);
    table.set("refused", ports.refused);
    table.set("refused_bound", ports.refused_bound);
    let daddr = version.daddr();
    // An address and port come before the port alone.
    table.chain(
        "published",
        vec![
            Rule::new().vmap(&[daddr, Field::L4proto, Field::ThDport], BOUND),
            Rule::new().vmap(&[Field::L4proto, Field::ThDport], PORTS),
        ],
    );
    table.hook(
        "prerouting",
        Base::new(ChainKind::Nat, Hook::Prerouting, -100),
        vec![Rule::new().daddr_is_local().jump("published")],
    );
    // 127.0.0.1 and ::1 are left to the relay: the kernel can't route from them.
    table.hook(
        "output",
        Base::new(ChainKind::Nat, Hook::Output, -100),
        vec![version.not_loopback().daddr_is_local().jump("published")],
    );
    // Containers reach what the host serves, as with Docker; those of internal networks reach nothing, whatever routes
    // they give themselves. A port without a backend is refused before the socket that holds it: connections that the relay
    // has already go on.
    let new = || Rule::new().any_bit(Field::CtState, CT_STATE_NEW);
    let udp = || Rule::new().protocol(Transport::Udp.number());
    let refused_bound =
        |rule: Rule| rule.is_in(&[daddr, Field::L4proto, Field::ThDport], "refused_bound").daddr_is_local();
    let refused = |rule: Rule| rule.is_in(&[Field::L4proto, Field::ThDport], "refused").daddr_is_local();
    table.hook(
        "input",
        Base::new(ChainKind::Filter, Hook::Input, 0),
        vec![
            to_vxlan(rules).goto("frames"),
            from_internal(),
            refused_bound(new()).reject_tcp_reset(),
            refused(new()).reject_tcp_reset(),
            refused_bound(udp()).reject_port_unreachable(),
            refused(udp()).reject_port_unreachable(),
        ],
    );
    table.chain("frames", vec![forged().drop(), strange(version)]);
}

/// The sets and maps of published ports under construction.
struct Ports {
    version: IpVersion,
    ports: Set,
    bound: Set,
    refused: Set,
    refused_bound: Set,
}

impl Ports {
    fn publish(
        &mut self,
        table: &mut Table,
        rules: &Rules<'_>,
        service: &Service,
        network: NetworkId,
        port: &PublishedPort,
    ) {
        let of_others = rules.local.others.contains(&HostPort::from(port));
        if of_others || port.ip.is_some_and(|ip| !self.version.is_of(&ip)) {
            return;
        }
        let here_only = port.mode == PublishMode::Host;
        let chain = chain_name(service, port);
        if table.chains.contains_key(&chain) {
            // Of the ports before.
            return self.lead(port.into(), Verdict::Goto(chain));
        }
        let backends = |version| rules.backends(service, network, version, here_only);
        let own = backends(self.version);
        if own.is_empty() {
            // Those of the other family are the relay's to reach.
            if backends(self.version.other()).is_empty() {
                self.refuse(port.into());
            }
        } else if is_led(port) {
            let protocol = port.protocol.transport().number();
            let target = (!is_one_of_many(service, port)).then_some(Datum::Port(port.target));
            let to = |address| std::iter::once(address).chain(target.clone()).collect();
            let backends = own.into_iter().map(to).collect();
            let choices = balance::choices(self.version, service.balance, backends).into_iter();
            let rules = choices.map(|choice| Rule::new().protocol(protocol).dnat(choice));
            table.chain(&chain, rules.collect());
            self.lead(port.into(), Verdict::Goto(chain));
        }
    }

    /// A port of an engine's container: it leads there whatever a check says, as where the engine does it itself.
    fn publish_endpoint(&mut self, table: &mut Table, endpoint: &Endpoint, port: &PublishedPort) {
        let Some(address) = self.version.address_of(endpoint) else { return };
        if port.ip.is_some_and(|ip| !self.version.is_of(&ip)) {
            return;
        }
        let (chain, protocol) = (chain_of_port(port), port.protocol.transport().number());
        let to = Source::Constant(vec![address, Datum::Port(port.target)]);
        table.chain(&chain, vec![Rule::new().protocol(protocol).dnat(to)]);
        self.lead(port.into(), Verdict::Goto(chain));
    }

    fn lead(&mut self, port: HostPort, to: Verdict) {
        let (map, key) = host_key(port);
        let map = if map == BOUND { &mut self.bound } else { &mut self.ports };
        map.insert_verdict(key, to);
    }

    fn refuse(&mut self, port: HostPort) {
        let (map, key) = host_key(port);
        if map == BOUND { self.refused_bound.add(key) } else { self.refused.add(key) }
    }
}

/// Whether the kernel can lead clients of a port to replicas: it writes no headers, and does not route from the loopback.
fn is_led(port: &PublishedPort) -> bool {
    port.proxy_protocol.is_none() && !port.ip.is_some_and(|ip| ip.is_loopback())
}

/// Which map leads a port to its chain, and by which key.
pub(crate) fn host_key(port: HostPort) -> (&'static str, Data) {
    let key = vec![Datum::Proto(port.transport.number()), Datum::Port(port.port)];
    match port.ip {
        Some(ip) => (BOUND, [vec![ip.into()], key].concat()),
        None => (PORTS, key),
    }
}

/// As many ports of a service have a chain each, and so take turns of their own. More would cost the kernel minutes: it
/// looks through all chains and sets for each name.
const FEW: usize = 16;

/// Whether a port shares a chain with others of its service that have the same number here and at the replicas.
fn is_one_of_many(service: &Service, port: &PublishedPort) -> bool {
    let alike = |other: &&PublishedPort| {
        other.published == other.target
            && (other.protocol, other.mode) == (port.protocol, port.mode)
            && is_led(other)
    };
    alike(&port) && service.ports.iter().filter(alike).nth(FEW).is_some()
}

/// Whether what goes through a port is counted: by elements of sets, for each port and replica, so of a service that has
/// more ports than this none is.
pub(super) fn is_counted(service: &Service, port: &PublishedPort) -> bool {
    port.protocol != Protocol::Http && is_led(port) && service.ports.len() <= Service::COUNTED_PORTS
}

fn chain_name(service: &Service, port: &PublishedPort) -> String {
    match (is_one_of_many(service, port), port.mode) {
        (false, _) => chain_of_port(port),
        (true, PublishMode::Ingress) => format!("{}_of_{}", port.protocol, service.id),
        (true, PublishMode::Host) => format!("{}_of_{}_here", port.protocol, service.id),
    }
}

/// `tcp_80`, or `tcp_80_at_10.0.0.1`. nft takes no colon in a name.
fn chain_of_port(port: &PublishedPort) -> String {
    let name = format!("{}_{}", port.protocol, port.published);
    match port.ip {
        Some(ip) => format!("{name}_at_{ip}").replace(':', "_"),
        None => name,
    }
}

/// The host's ends of the networks' uplinks. They are matched by their whole names, for a host may well have an
/// interface of its own that is called `uplink`.
fn uplinks(table: &mut Table, rules: &Rules<'_>) {
    let mut overlays = Set::plain(&[Type::Ifname]);
    let mut internal = Set::plain(&[Type::Ifname]);
    let mut same = Set::plain(&[Type::Ifname, Type::Ifname]);
    for network in rules.snapshot.networks.values() {
        let name = Datum::Ifname(uplink(network.vni).to_string());
        overlays.add(vec![name.clone()]);
        if network.internal {
            internal.add(vec![name.clone()]);
        }
        same.add(vec![name.clone(), name]);
    }
    table.set("overlays", overlays);
    table.set("internal", internal);
    table.set("same", same);
}

/// What leaves the overlays bears the host's address. So does what a container sends to a published port of its own
/// network: the replica would answer it directly, past the address translation.
fn ways_out(table: &mut Table, rules: &Rules<'_>, version: IpVersion) {
    let leaves = || Rule::new().is_in(&[Field::Iifname], "overlays").not_in(&[Field::Oifname], "overlays");
    senders(table, rules, version);
    table.hook(
        "postrouting",
        Base::new(ChainKind::Nat, Hook::Postrouting, 100),
        vec![
            leaves()
                .protocol(Transport::Udp.number())
                .not_in(&[version.saddr()], "senders")
                .not_in(&[version.saddr(), Field::ThSport], "announcers")
                .masquerade_from(DYNAMIC_PORTS),
            leaves().masquerade(),
            Rule::new().is_in(&[Field::Iifname, Field::Oifname], "same").masquerade(),
        ],
    );
}

/// Of a replica's datagram that is the first of a flow to connection tracking nobody knows whether it is a late answer, on its
/// way while its flow was forgotten. From a published port it would bind the client to that replica for as long as the client
/// asks. So replicas' flows begin at dynamic ports. Containers of no service keep theirs, and so do replicas that take
/// traffic, or are about to, at the published ports of their own: game servers announce themselves by these.
fn senders(table: &mut Table, rules: &Rules<'_>, version: IpVersion) {
    let of_version = |endpoint: &Endpoint| {
        let all = endpoint.addresses.iter().chain(&endpoint.local_addresses);
        all.copied().filter(|address| version.is_of(address)).map(Datum::from).collect::<Vec<_>>()
    };
    let mut senders = Set::plain(&[version.address()]);
    let own = rules.own_endpoints();
    for address in own.filter(|endpoint| endpoint.service.is_none()).flat_map(|own| of_version(own)) {
        senders.add(vec![address]);
    }
    let mut announcers = Set::plain(&[version.address(), Type::Port]);
    let keeps = |replica: &Endpoint| {
        let starts = || rules.snapshot.health_of(replica) == Health::Starting && !replica.is_withdrawn();
        replica.node == rules.me.id && (rules.snapshot.takes_traffic(replica) || starts())
    };
    for service in rules.services() {
        let Some(network) = service.ingress_network() else { continue };
        let replicas = rules.replicas.get(&(service.id, network)).into_iter().flatten();
        let addresses: Vec<Datum> =
            replicas.filter(|replica| keeps(replica)).flat_map(|replica| of_version(replica)).collect();
        let published = rules.snapshot.published_on(service, rules.me.id);
        let own_numbers = published.filter(|port| {
            port.protocol == Protocol::Udp && port.published == port.target && is_counted(service, port)
        });
        for port in own_numbers {
            for address in &addresses {
                announcers.add(vec![address.clone(), Datum::Port(port.target)]);
            }
        }
    }
    table.set("senders", senders);
    table.set("announcers", announcers);
}

/// VXLAN's packets: first of all conditions, so that these pass few rules, and all other packets none about them.
fn to_vxlan(rules: &Rules<'_>) -> Rule {
    Rule::new()
        .protocol(Transport::Udp.number())
        .eq(Field::ThDport, Datum::Port(data_path_port(rules.snapshot)))
}

/// What a container sends to the VXLAN port of a node: frames for any network, and masqueraded they would bear a node's
/// address.
fn forged() -> Rule {
    Rule::new().is_in(&[Field::Iifname], "overlays")
}

/// What comes out of an internal network. The prefix keeps packets of other interfaces from being looked up.
fn from_internal() -> Rule {
    Rule::new().begins(Field::Iifname, "up").is_in(&[Field::Iifname], "internal").goto("out_of_internal")
}

/// Who may send frames of which networks: the cluster's other nodes.
fn nodes(table: &mut Table, rules: &Rules<'_>, version: IpVersion) {
    let mut nodes = Set::plain(&[version.address()]);
    let others = rules.snapshot.nodes.values().filter(|node| node.id != rules.me.id);
    for address in others.map(|node| node.advertise.ip()).filter(|address| version.is_of(address)) {
        nodes.add(vec![address.into()]);
    }
    table.set("nodes", nodes);
    let vnis = rules.snapshot.networks.values().map(|network| Datum::Vni(network.vni));
    table.chain("strange", vnis.map(|vni| Rule::new().eq(Field::Vni, vni).drop()).collect());
}

/// What nodes exchange by VXLAN is no connection: each flow inside has a source port of its own, and so cost the table of
/// connections of either host two entries more, and each of its packets a look-up.
fn untracked(table: &mut Table, rules: &Rules<'_>, version: IpVersion) {
    for (name, hook, peer) in
        [("frames_in", Hook::Prerouting, version.saddr()), ("frames_out", Hook::Output, version.daddr())]
    {
        let frames = to_vxlan(rules).is_in(&[peer], "nodes").notrack();
        table.hook(name, Base::new(ChainKind::Filter, hook, -300), vec![frames]);
    }
}

/// Frames for the mesh's networks from an address that is no node's: VXLAN itself takes those of anybody, of a neighbour on
/// the LAN and of a node that was removed. Nodes send theirs from the address that they advertise. Other VXLAN networks
/// of the host may use the same port, and are left alone.
fn strange(version: IpVersion) -> Rule {
    Rule::new().not_in(&[version.saddr()], "nodes").jump("strange")
}

/// Frames for the mesh's networks from a process of this host: they bear a node's address. Whoever is no root here has no
/// business with them; those of VXLAN itself are of no socket.
fn smuggled(rules: &Rules<'_>) -> Rule {
    to_vxlan(rules).ne(Field::Skuid, Datum::Number(0)).jump("strange")
}

/// On a host with several uplinks, each with a routing table that a rule chooses by the source address, answers of published
/// ports are routed before their source is translated back: by the replica's address, which is in no rule, they would leave
/// by the main table's uplink, whose router may well refuse the other's address. So they get the address that was asked before
/// they are routed; translating it once more changes nothing. Most hosts have no such rules, and spare the packets this.
fn as_asked(table: &mut Table, rules: &Rules<'_>, version: IpVersion) {
    if !rules.local.routes_by_source {
        return;
    }
    let answers = Rule::new()
        .begins(Field::Iifname, "up")
        .is_in(&[Field::Iifname], "overlays")
        .direction(CtDirection::Reply)
        .any_bit(Field::CtStatus, ct_status::DNAT)
        // The host's own clients are at no uplink.
        .daddr_is_not_local();
    // After they are counted, by the replica's address, and before anything is translated.
    table.hook(
        "as_asked",
        Base::new(ChainKind::Filter, Hook::Prerouting, -149),
        vec![answers.set_saddr_asked(version == IpVersion::V6)],
    );
}

/// What comes out of an overlay and belongs to no connection: it would leave with an address of the overlay, as nothing
/// translates it. A replica whose connection was forgotten sends such packets.
fn untranslated() -> Rule {
    Rule::new()
        .begins(Field::Iifname, "up")
        .is_in(&[Field::Iifname], "overlays")
        .any_bit(Field::CtState, CT_STATE_INVALID)
        .drop()
}

/// The host is no door: into an overlay goes what came by a published port, and answers. All else is dropped, also what
/// connection tracking makes nothing of.
fn door(table: &mut Table, rules: &Rules<'_>, version: IpVersion, closed: &BTreeSet<String>) {
    let mut names = Set::plain(&[Type::Ifname]);
    for name in closed {
        names.add(vec![Datum::Ifname(name.clone())]);
    }
    table.set("closed", names);
    table.hook(
        "forward",
        Base::new(ChainKind::Filter, Hook::Forward, 0),
        vec![
            to_vxlan(rules).jump("forwarded_frames"),
            from_internal(),
            Rule::new().is_in(&[Field::Oifname], "overlays").goto("into_overlay"),
            untranslated(),
            Rule::new().is_in(&[Field::Iifname], "closed").is_in(&[Field::Oifname], "closed").drop(),
        ],
    );
    table.chain(
        "forwarded_frames",
        vec![forged().not_in(&[Field::Oifname], "overlays").drop(), strange(version)],
    );
    let sent = Base::new(ChainKind::Filter, Hook::Output, 0);
    table.hook("sent", sent, vec![smuggled(rules)]);
    let answers = || Rule::new().direction(CtDirection::Reply).accept();
    table.chain("out_of_internal", vec![answers(), Rule::new().drop()]);
    let published = Rule::new().any_bit(Field::CtStatus, ct_status::DNAT).accept();
    table.chain("into_overlay", vec![answers(), published, Rule::new().drop()]);
}
