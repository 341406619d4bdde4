//! What we send is what nft would have sent for the same text.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::namespace::{in_namespace, list, load, load_text};
use crate::nft::{
    Base, ChainKind, CtDirection, Datum, Family, Field, Hook, Limit, Policy, Rule, Set, Source, SourceHash,
    Table, Type, Verdict, ct_status, icmpv6,
};

/// The table reads the same whether nft made it from its text or we made it over netlink.
#[track_caller]
fn assert_same_as_nft(table: &Table) {
    let ours = in_namespace(|| {
        load(&[table]);
        list()
    });
    let theirs = in_namespace(|| {
        load_text(&table.to_string());
        list()
    });
    assert_eq!(ours, theirs, "our text was:\n{table}");
    assert!(ours.contains("table"), "nothing was made");
}

fn v4(address: [u8; 4]) -> Datum {
    Datum::Ipv4(address.into())
}

fn v6(last: u16) -> Datum {
    Datum::Ipv6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last))
}

#[test]
fn an_ipv4_nat_table() {
    let mut table = Table::new(Family::Ip, "meshd");
    let mut ports = Set::verdicts(&[Type::Proto, Type::Port]);
    ports.insert_verdict(vec![Datum::Proto(6), Datum::Port(80)], Verdict::Goto("tcp_80".into()));
    ports.insert_verdict(vec![Datum::Proto(17), Datum::Port(53)], Verdict::Jump("udp_53".into()));
    ports.insert_verdict(vec![Datum::Proto(17), Datum::Port(54)], Verdict::Drop);
    table.set("ports", ports);
    let mut bound = Set::verdicts(&[Type::Ipv4, Type::Proto, Type::Port]);
    bound.insert_verdict(
        vec![v4([10, 9, 0, 1]), Datum::Proto(6), Datum::Port(81)],
        Verdict::Goto("tcp_80".into()),
    );
    table.set("bound", bound);
    let mut pairs = Set::plain(&[Type::Ipv4, Type::Ipv4]);
    pairs.add(vec![v4([10, 0, 0, 1]), v4([10, 0, 0, 1])]);
    table.set("hairpin", pairs);
    let mut flooding = Set::above(&[Type::Ipv4], Limit { rate: 20_000, burst: 30_000 });
    flooding.add(vec![v4([10, 0, 0, 1])]);
    table.set("flooding", flooding);

    let prerouting = Base::new(ChainKind::Nat, Hook::Prerouting, -100);
    table.hook(
        "prerouting",
        prerouting,
        vec![
            Rule::new().daddr_is_local().vmap(&[Field::IpDaddr, Field::L4proto, Field::ThDport], "bound"),
            Rule::new().daddr_is_local().vmap(&[Field::L4proto, Field::ThDport], "ports"),
        ],
    );
    let slots =
        Set::slots([vec![v4([10, 0, 0, 1]), Datum::Port(8080)], vec![v4([10, 0, 0, 2]), Datum::Port(8080)]]);
    let dnat = Rule::new().protocol(6).dnat(Source::Inline { key: Field::NumgenInc(2), map: slots });
    table.chain("tcp_80", vec![dnat]);
    let slots = Set::slots([vec![v4([10, 0, 0, 1])], vec![v4([10, 0, 0, 3])], vec![v4([10, 0, 0, 4])]]);
    let random = Rule::new().dnat(Source::Inline { key: Field::NumgenRandom(3), map: slots });
    let constant = Rule::new().protocol(17).dnat(Source::Constant(vec![v4([10, 0, 0, 3]), Datum::Port(53)]));
    table.chain("udp_53", vec![Rule::new().protocol(17).counter().back(), random, constant]);
    table.hook(
        "postrouting",
        Base::new(ChainKind::Nat, Hook::Postrouting, 100),
        vec![
            Rule::new().begins(Field::Iifname, "up").not_begins(Field::Oifname, "up").masquerade(),
            Rule::new().protocol(17).masquerade_from(49152..=65535),
            Rule::new()
                .is_in(&[Field::IpSaddr, Field::IpDaddr], "hairpin")
                .snat(Source::Constant(vec![v4([10, 0, 0, 254])])),
        ],
    );
    table.hook(
        "output",
        Base::new(ChainKind::Nat, Hook::Output, -100),
        vec![
            Rule::new()
                .outside(Field::IpDaddr, Ipv4Addr::new(127, 0, 0, 0), Ipv4Addr::new(255, 0, 0, 0))
                .daddr_is_local()
                .jump("udp_53"),
        ],
    );
    assert_same_as_nft(&table);
}

#[test]
fn a_source_as_it_was_asked() {
    for (family, ipv6) in [(Family::Ip, false), (Family::Ip6, true)] {
        let mut table = Table::new(family, "mesh");
        let rule = Rule::new().direction(CtDirection::Reply).set_saddr_asked(ipv6);
        table.hook("as_asked", Base::new(ChainKind::Filter, Hook::Prerouting, -149), vec![rule]);
        assert_same_as_nft(&table);
    }
}

#[test]
fn an_ipv4_filter_table() {
    let mut table = Table::new(Family::Ip, "mesh");
    let mut closed = Set::plain(&[Type::Ifname]);
    closed.add(vec![Datum::Ifname("eth0".into())]);
    closed.add(vec![Datum::Ifname("an-interface-15".into())]);
    table.set("closed", closed);
    table.set("empty", Set::plain(&[Type::Port]));
    table.hook(
        "forward",
        Base { policy: Policy::Drop, ..Base::new(ChainKind::Filter, Hook::Forward, 0) },
        vec![
            Rule::new()
                .begins(Field::Oifname, "up")
                .direction(CtDirection::Original)
                .no_bit(Field::CtStatus, ct_status::DNAT)
                .drop(),
            Rule::new().is_in(&[Field::Iifname], "closed").is_in(&[Field::Oifname], "closed").drop(),
            Rule::new().not_in(&[Field::Iifname], "closed").accept(),
            Rule::new().clamp_mss_to_path(),
            Rule::new().any_bit(Field::CtStatus, ct_status::DNAT).accept(),
        ],
    );
    table.hook(
        "marks",
        Base::new(ChainKind::Filter, Hook::Prerouting, -150),
        vec![
            Rule::new()
                .direction(CtDirection::Original)
                .ne(Field::Mark, Datum::Number(0))
                .set_ct_mark(Source::Field(Field::Mark)),
            Rule::new().direction(CtDirection::Original).set_mark(Source::Constant(vec![Datum::Number(0)])),
            Rule::new().direction(CtDirection::Reply).set_mark(Source::Field(Field::CtMark)),
        ],
    );
    table.hook(
        "input",
        Base::new(ChainKind::Filter, Hook::Input, 0),
        vec![
            Rule::new().eq(Field::IpDaddr, v4([10, 0, 0, 9])).reject_tcp_reset(),
            Rule::new().protocol(17).is_in(&[Field::ThDport], "empty").reject_port_unreachable(),
        ],
    );
    assert_same_as_nft(&table);
}

#[test]
fn an_ipv6_table() {
    let mut table = Table::new(Family::Ip6, "mesh");
    let mut vips = Set::verdicts(&[Type::Ipv6]);
    vips.insert_verdict(vec![v6(9)], Verdict::Goto("vip".into()));
    table.set("vips", vips);
    let mut pairs = Set::plain(&[Type::Ipv6, Type::Ipv6]);
    pairs.add(vec![v6(1), v6(1)]);
    table.set("hairpin", pairs);
    let slots = Set::slots([vec![v6(1), Datum::Port(80)], vec![v6(2), Datum::Port(80)]]);
    let dnat = Rule::new().protocol(6).dnat(Source::Inline { key: Field::NumgenInc(2), map: slots });
    table.chain("vip", vec![dnat]);
    table.hook(
        "prerouting",
        Base::new(ChainKind::Nat, Hook::Prerouting, -100),
        vec![
            Rule::new().vmap(&[Field::Ip6Daddr], "vips"),
            Rule::new().protocol(6).dnat(Source::Constant(vec![v6(7), Datum::Port(443)])),
        ],
    );
    table.hook(
        "postrouting",
        Base::new(ChainKind::Nat, Hook::Postrouting, 100),
        vec![
            Rule::new()
                .is_in(&[Field::Ip6Saddr, Field::Ip6Daddr], "hairpin")
                .snat(Source::Constant(vec![v6(254)])),
        ],
    );
    table.hook(
        "output",
        Base::new(ChainKind::Filter, Hook::Output, 0),
        vec![
            Rule::new().protocol(58).eq(Field::Icmpv6Type, Datum::Proto(icmpv6::ND_REDIRECT)).drop(),
            Rule::new().ne(Field::Ip6Daddr, Ipv6Addr::LOCALHOST).daddr_is_local().accept(),
        ],
    );
    table.hook(
        "input",
        Base::new(ChainKind::Filter, Hook::Input, 0),
        vec![Rule::new().protocol(17).eq(Field::ThDport, Datum::Port(53)).reject_port_unreachable()],
    );
    table.hook(
        "forward",
        Base::new(ChainKind::Filter, Hook::Forward, 0),
        vec![Rule::new().clamp_mss_to_path()],
    );
    assert_same_as_nft(&table);
}

#[test]
fn a_bridge_table() {
    let mut table = Table::new(Family::Bridge, "mesh");
    let mut nodes = Set::map(&[Type::Ether], &[Type::Number]);
    nodes.insert(vec![Datum::Ether([2, 0x6d, 0, 0, 0, 1])], vec![Datum::Number(1)]);
    nodes.insert(vec![Datum::Ether([2, 0x6d, 0, 0, 0, 2])], vec![Datum::Number(2)]);
    table.set("nodes", nodes);
    let source = Source::Map { key: vec![Field::EtherSaddr], map: "nodes".into() };
    table.hook(
        "prerouting",
        Base::new(ChainKind::Filter, Hook::Prerouting, -300),
        vec![
            Rule::new().begins(Field::Iifname, "vx").set_mark(source),
            Rule::new().eq(Field::Iifname, Datum::Ifname("vx1".into())).accept(),
        ],
    );
    assert_same_as_nft(&table);
}

/// A number as part of a key can't be written as a type for nft (it wants `typeof`), but the kernel takes it.
#[test]
fn slots_shared_by_services() {
    let mut table = Table::new(Family::Ip, "mesh");
    let mut slots = Set::map(&[Type::Ipv4, Type::Number], &[Type::Ipv4]);
    slots.insert(vec![v4([10, 0, 0, 9]), Datum::Number(0)], vec![v4([10, 0, 0, 1])]);
    slots.insert(vec![v4([10, 0, 0, 9]), Datum::Number(1)], vec![v4([10, 0, 0, 2])]);
    table.set("slots", slots);
    let key = vec![Field::IpDaddr, Field::NumgenRandom(2)];
    let hash = Field::IpSaddrHash(SourceHash { modulus: 2, seed: 7 });
    let [dnat, hashed] = [key, vec![Field::IpDaddr, hash]]
        .map(|key| Rule::new().dnat(Source::Map { key, map: "slots".into() }));
    table.hook("prerouting", Base::new(ChainKind::Nat, Hook::Prerouting, -100), vec![dnat, hashed]);
    let listing = in_namespace(|| {
        load(&[&table]);
        list()
    });
    assert!(listing.contains("dnat to ip daddr . numgen random mod 2 map @slots"), "{listing}");
    let hashed = "dnat to ip daddr . jhash ip saddr mod 2 seed 0x7 map @slots";
    assert!(listing.contains(hashed), "{listing}");
    assert!(listing.contains("10.0.0.9 . 0x00000001 : 10.0.0.2"), "{listing}");
}
