//! Commits, aborts, deletion and the notice of drift.

use std::net::Ipv4Addr;

use super::namespace::{in_namespace, list, listed, load, load_text};
use crate::nft::{
    Base, ChainKind, Datum, Family, Field, Hook, Nft, NftError, Rule, Set, Source, Table, Type, Verdict, diff,
};

/// `services` services with a chain and two slots each, behind one verdict map.
fn services(services: u32) -> Table {
    let mut table = Table::new(Family::Ip, "mesh");
    let mut vips = Set::verdicts(&[Type::Ipv4]);
    for service in 0..services {
        let vip = Ipv4Addr::from(0x0a00_0000 + service);
        let chain = format!("vip_{service}");
        let slots = Set::slots((1u32..3).map(|n| vec![Ipv4Addr::from(0x0b00_0000 + service * 4 + n).into()]));
        let rule = Rule::new().dnat(Source::Inline { key: Field::NumgenInc(2), map: slots });
        table.chain(&chain, vec![rule]);
        vips.insert_verdict(vec![vip.into()], Verdict::Goto(chain));
    }
    table.set("vips", vips);
    table.hook(
        "prerouting",
        Base::new(ChainKind::Nat, Hook::Prerouting, -100),
        vec![Rule::new().counter().vmap(&[Field::IpDaddr], "vips")],
    );
    table
}

#[test]
fn an_aborted_batch_leaves_the_old_table_and_names_the_object() {
    in_namespace(|| {
        let before = services(3);
        load(&[&before]);
        let listing = list();

        let mut broken = before.clone();
        broken.chain("vip_0", vec![Rule::new().accept()]);
        broken.chain("astray", vec![Rule::new().jump("nowhere")]);
        let error = Nft::open().unwrap().commit(&diff(Some(&before), &broken)).unwrap_err();
        let NftError::Refused { object, .. } = &error else { panic!("{error}") };
        assert_eq!(object, "rule 'jump nowhere' in chain ip mesh astray");
        assert_eq!(list(), listing);
    });
}

#[test]
fn a_patch_over_a_table_that_somebody_removed_is_refused_and_a_replacement_heals() {
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        let (before, after) = (services(2), services(3));
        load(&[&before]);
        load_text("delete table ip mesh");
        assert!(nft.commit(&diff(Some(&before), &after)).is_err());
        nft.commit(&diff(None, &after)).unwrap();
        assert!(nft.fingerprint(Family::Ip, "mesh").unwrap().is_some());
        assert!(list().contains("vip_2"));
    });
}

#[test]
fn a_replacement_takes_the_place_of_whatever_was_there() {
    in_namespace(|| {
        load_text(
            "table ip mesh {\n set vips {\n type ipv4_addr\n elements = { 1.2.3.4 }\n }\n chain old {\n ip saddr @vips drop\n }\n }",
        );
        load(&[&services(1)]);
        let healed = listed();
        assert!(!list().contains("old"));
        assert_eq!(
            healed,
            in_namespace(|| {
                load(&[&services(1)]);
                listed()
            })
        );
    });
}

#[test]
fn a_table_goes_and_one_that_is_not_there_may_go_too() {
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        load(&[&services(2)]);
        nft.delete_table(Family::Ip, "mesh").unwrap();
        assert_eq!(list(), "");
        nft.delete_table(Family::Ip, "mesh").unwrap();
        assert_eq!(list(), "");
        assert_eq!(nft.fingerprint(Family::Ip, "mesh").unwrap(), None);
    });
}

#[test]
fn thousands_of_elements_and_chains_fit_one_transaction() {
    in_namespace(|| {
        let before = services(5000);
        let mut nft = Nft::open().unwrap();
        nft.commit(&diff(None, &before)).unwrap();
        let mut after = before.clone();
        after.chain("vip_17", vec![Rule::new().dnat(Source::Constant(vec![Ipv4Addr::LOCALHOST.into()]))]);
        let patch = diff(Some(&before), &after);
        assert_eq!(patch.len(), 2, "one chain is flushed and filled");
        nft.commit(&patch).unwrap();
        assert_eq!(list().matches("numgen").count(), 4999);
    });
}

#[test]
fn a_changed_element_is_all_that_is_sent() {
    let before = services(50);
    let mut after = before.clone();
    let vips = after.sets.get_mut("vips").unwrap();
    vips.insert_verdict(vec![Ipv4Addr::new(10, 0, 0, 7).into()], Verdict::Goto("vip_8".into()));
    assert_eq!(diff(Some(&before), &after).len(), 2, "one element goes, one comes");
    assert!(diff(Some(&after), &after).is_empty());
}

#[test]
fn a_fingerprint_notices_every_kind_of_meddling_and_nothing_else() {
    in_namespace(|| {
        let mut nft = Nft::open().unwrap();
        let table = services(20);
        load(&[&table]);
        let fresh = nft.fingerprint(Family::Ip, "mesh").unwrap();
        let generation = nft.generation().unwrap();
        assert_eq!(nft.fingerprint(Family::Ip, "mesh").unwrap(), fresh);
        load_text("table ip other {\n chain c {\n accept\n }\n }");
        assert_eq!(nft.fingerprint(Family::Ip, "mesh").unwrap(), fresh, "another table is none of ours");
        assert_ne!(nft.generation().unwrap(), generation);

        for meddling in [
            "flush chain ip mesh vip_3",
            "flush chain ip mesh vip_3\nadd rule ip mesh vip_3 dnat to numgen inc mod 2 map { 0 : 1.1.1.1, 1 : 2.2.2.2 }",
            "add element ip mesh vips { 9.9.9.9 : drop }",
            "delete element ip mesh vips { 10.0.0.5 }",
            "add rule ip mesh prerouting accept",
            "add chain ip mesh guest",
            "flush ruleset",
        ] {
            load(&[&table]);
            let fresh = nft.fingerprint(Family::Ip, "mesh").unwrap();
            load_text(meddling);
            assert_ne!(nft.fingerprint(Family::Ip, "mesh").unwrap(), fresh, "{meddling}");
        }
    });
}

#[test]
fn the_namespace_is_the_one_of_the_thread_that_opened() {
    let elsewhere = in_namespace(|| {
        let mut opened = Nft::open().unwrap();
        let elsewhere = in_namespace(|| {
            opened.commit(&diff(None, &services(1))).unwrap();
            list()
        });
        assert!(list().contains("table ip mesh"));
        elsewhere
    });
    assert_eq!(elsewhere, "");
}

#[test]
fn two_tables_come_in_one_transaction() {
    in_namespace(|| {
        let mut batch = diff(None, &services(2));
        let mut other = Table::new(Family::Bridge, "mesh");
        let mut nodes = Set::map(&[Type::Ether], &[Type::Number]);
        nodes.insert(vec![Datum::Ether([2; 6])], vec![Datum::Number(7)]);
        other.set("nodes", nodes);
        batch.update(None, &other);
        Nft::open().unwrap().commit(&batch).unwrap();
        assert!(list().contains("02:02:02:02:02:02 : 0x00000007"), "{}", list());
    });
}
