//! Whatever the cluster: each backend that may take traffic is in its service's slots exactly once, and no other is.

use super::cluster::{add_replica, add_service, addresses, cluster, edit, network_id, node_id, published};
use crate::nft::{Batch, Data, Datum, Field, Rule, Source, Statement, Table, Value, Verdict};
use crate::rules::{Local, Rules};
use crate::scope::Scope;
use mesh_model::{
    Balance, Container, EndpointId, EndpointMode, Health, Protocol, PublishMode, Snapshot, Target, Weight,
    slots,
};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;

#[derive(Debug, Clone)]
struct Replica {
    node: u32,
    health: Health,
    draining: bool,
    weight: u32,
    /// Whether it is a container of Docker's.
    dockers: bool,
    /// Whether it has a port of its own.
    port: bool,
}

#[derive(Debug, Clone)]
struct Recipe {
    balance: Balance,
    mode: PublishMode,
    protocol: Protocol,
    /// Whether it has no VIP.
    dnsrr: bool,
    replicas: Vec<Replica>,
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let health = prop::sample::select(vec![Health::Healthy, Health::Unhealthy, Health::Starting]);
    let replica = (1u32..4, health, prop::bool::weighted(0.2));
    let replica = replica.prop_map(|(node, health, draining)| Replica {
        node,
        health,
        draining,
        weight: 1,
        dockers: false,
        port: false,
    });
    (
        prop::sample::select(vec![Balance::Roundrobin, Balance::Random, Balance::Source]),
        prop::sample::select(vec![PublishMode::Ingress, PublishMode::Host]),
        prop::collection::vec(replica, 0..7),
    )
        .prop_map(|(balance, mode, replicas)| Recipe {
            balance,
            mode,
            protocol: Protocol::Tcp,
            dnsrr: false,
            replicas,
        })
}

/// The same with all that makes a difference.
fn rich_recipe() -> impl Strategy<Value = Recipe> {
    let extras = prop::collection::vec((0u32..4, any::<[bool; 2]>()), 7);
    (recipe(), prop::bool::weighted(0.3), prop::bool::weighted(0.2), extras).prop_map(
        |(mut recipe, udp, dnsrr, extras)| {
            recipe.protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            recipe.dnsrr = dnsrr;
            for (replica, (weight, [dockers, port])) in recipe.replicas.iter_mut().zip(extras) {
                *replica = Replica { weight, dockers, port, ..replica.clone() };
            }
            recipe
        },
    )
}

/// Service `n` has VIP `200 + n`, port `80 + n`, and replicas from address `10 n` on.
fn cook(recipes: &[Recipe]) -> Snapshot {
    let mut snapshot = cluster(3);
    for (number, recipe) in (1u8..).zip(recipes) {
        let mut port = published(80 + u16::from(number), 8080, recipe.protocol);
        port.mode = recipe.mode;
        let service = add_service(&mut snapshot, number.into(), 200 + number, recipe.balance, vec![port]);
        if recipe.dnsrr {
            edit(snapshot.services.get_mut(&service), |service| {
                service.endpoint_mode = EndpointMode::Dnsrr;
                service.networks[0].vips.clear();
            });
        }
        for (host, replica) in (number * 10..).zip(&recipe.replicas) {
            add_replica(&mut snapshot, service, replica.node, host, replica.health);
            edit(snapshot.endpoints.values_mut().find(|e| e.addresses == addresses(host)), |endpoint| {
                endpoint.draining = replica.draining;
                endpoint.weight = replica.weight.try_into().expect("a weight");
                if replica.dockers {
                    endpoint.target = Target::Docker(Container { name: "c".into(), netns: None });
                }
                endpoint
                    .ports
                    .extend(replica.port.then(|| published(9000 + u16::from(host), 80, Protocol::Tcp)));
            });
        }
    }
    snapshot
}

/// The addresses that should be chosen from, slot by slot.
fn expected(number: u8, recipe: &Recipe, here_only: bool, ipv6: bool) -> Vec<Datum> {
    let chosen: Vec<u8> = (number * 10..)
        .zip(&recipe.replicas)
        .filter(|(_, replica)| replica.health == Health::Healthy && !replica.draining)
        .filter(|(_, replica)| !here_only || replica.node == 1)
        .map(|(host, _)| host)
        .collect();
    let hosts = if recipe.balance == Balance::Source && chosen.len() > 1 {
        let weighed: Vec<_> =
            chosen.iter().map(|host| (EndpointId::from_bits((*host).into()), Weight::default())).collect();
        slots::owners(&weighed).into_iter().map(|index| chosen[index]).collect()
    } else {
        chosen
    };
    hosts.into_iter().map(|host| addresses(host)[usize::from(ipv6)].into()).collect()
}

/// What a chain's first rule chooses from for a VIP, slot by slot. If that is a map of its own, a second rule stands in
/// with one of the choices.
fn choices(table: &Table, verdict: Option<&Value>, vip: Option<&Datum>) -> Vec<Data> {
    let Some(Value::Verdict(Verdict::Goto(chain))) = verdict else { return Vec::new() };
    let target = |rule: &Rule| match rule.statements.last() {
        Some(Statement::Nat(_, source)) => source.clone(),
        _ => panic!("{chain} translates"),
    };
    let targets: Vec<Source> = table.chains[chain].rules.iter().map(target).collect();
    let source = match &targets[..] {
        [only] => only,
        [own @ Source::Inline { map, .. }, Source::Constant(stand_in)] => {
            let first = map.elements.values().next();
            assert_eq!(first, Some(&Value::Data(stand_in.clone())), "one of the choices stands in");
            own
        }
        [shared @ Source::Map { .. }, Source::Map { map, .. }] => {
            let Source::Map { map: slots, .. } = shared else { unreachable!("it is one") };
            let vip = vip.expect("shared by VIPs");
            let first = &table.sets[slots].elements[&vec![vip.clone(), Datum::Number(0)]];
            assert_eq!(table.sets[map].elements[&vec![vip.clone()]], *first, "one of the choices stands in");
            shared
        }
        others => panic!("{chain}: {others:?}"),
    };
    let (elements, modulus): (Vec<(&Data, &Value)>, _) = match source {
        Source::Constant(data) => return vec![data.clone()],
        Source::Inline { key, map } => (map.elements.iter().collect(), *key),
        Source::Map { key, map } => {
            let of_vip = |(key, _): &(&Data, &Value)| key.first() == vip;
            (table.sets[map].elements.iter().filter(of_vip).collect(), key[1])
        }
        Source::Field(_) => panic!("{chain} chooses an address"),
    };
    let numbers: Vec<Option<&Datum>> = elements.iter().map(|(key, _)| key.last()).collect();
    let wanted: Vec<Datum> = (0..elements.len() as u32).map(Datum::Number).collect();
    assert_eq!(numbers, wanted.iter().map(Some).collect::<Vec<_>>(), "slots are numbered without a gap");
    let count = elements.len() as u32;
    match modulus {
        Field::NumgenInc(numbers) | Field::NumgenRandom(numbers) => {
            assert_eq!(count, numbers, "as many slots as the generator makes numbers");
        }
        Field::IpSaddrHash(hash) | Field::Ip6SaddrHash(hash) => {
            assert!(count == hash.modulus || count == 1, "the one backend stands in for itself");
        }
        other => panic!("{other} makes no numbers"),
    }
    elements
        .into_iter()
        .map(|(_, value)| match value {
            Value::Data(data) => data.clone(),
            other => panic!("{other:?} is no address"),
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_backend_is_in_its_slots_exactly_once(recipes in prop::collection::vec(recipe(), 0..5)) {
        let snapshot = cook(&recipes);
        let rules = Rules::new(&snapshot, &snapshot.nodes[&node_id(1)]);
        let host = rules.host(&BTreeSet::new());
        let overlay = rules.overlay(&snapshot.networks[&network_id()]);
        for ipv6 in [false, true] {
            let (host, overlay) = (&host[usize::from(ipv6)], &overlay[usize::from(ipv6)]);
            for (number, recipe) in (1u8..).zip(&recipes) {
                let vip: Datum = addresses(200 + number)[usize::from(ipv6)].into();
                let wanted = expected(number, recipe, false, ipv6);
                let found = choices(overlay, overlay.sets["vips"].elements.get(&vec![vip.clone()]), Some(&vip));
                prop_assert_eq!(&found, &wanted.iter().map(|a| vec![a.clone()]).collect::<Vec<_>>());
                let refused = overlay.sets["refused"].elements.contains_key(&vec![vip]);
                prop_assert_eq!(refused, wanted.is_empty(), "a VIP leads somewhere or is refused");

                let key = vec![Datum::Proto(6), Datum::Port(80 + u16::from(number))];
                let wanted: Vec<Data> = expected(number, recipe, recipe.mode == PublishMode::Host, ipv6)
                    .into_iter()
                    .map(|address| vec![address, Datum::Port(8080)])
                    .collect();
                prop_assert_eq!(choices(host, host.sets["ports"].elements.get(&key), None), wanted);
            }
            let leads = overlay.sets["vips"].elements.len() + overlay.sets["refused"].elements.len();
            prop_assert_eq!(leads, recipes.len());
        }
    }

    /// From state to state by what changed alone comes to what is made of everything.
    #[test]
    fn parts_amend_the_whole(states in prop::collection::vec(prop::collection::vec(rich_recipe(), 0..5), 2..5)) {
        let tables = |rules: Rules<'_>| -> Vec<Table> {
            let rules = rules.with(Local { queries: NonZeroU32::new(100), ..Local::default() });
            let overlay = rules.overlay(&rules.snapshot.networks[&network_id()]);
            rules.host(&BTreeSet::new()).into_iter().chain(overlay).collect()
        };
        let mut before = cook(&states[0]);
        let mut held = tables(Rules::new(&before, &before.nodes[&node_id(1)]));
        for state in &states[1..] {
            // Records that are the same are shared.
            let mut after = before.clone();
            cook(state).changes_since(&before).into_iter().for_each(|change| after.apply(change));
            let me = Arc::clone(&after.nodes[&node_id(1)]);
            let scope = Scope::between(&before, &after);
            let parts = [&before, &after].map(|state| tables(Rules::of(state, &me, &scope)));
            let whole = tables(Rules::new(&after, &me));
            for (at, held) in held.iter_mut().enumerate() {
                match held.part(&parts[0][at], &parts[1][at]) {
                    Some(part) => Batch::default().amend(held, &part, &parts[1][at]),
                    // The first or the last container of Docker's.
                    None => *held = whole[at].clone(),
                }
                prop_assert_eq!(&held.sets, &whole[at].sets);
                // Others may lead to a shared chain that is no longer needed.
                let mut chains = held.chains.clone();
                chains.retain(|name, chain| !chain.shared || whole[at].chains.contains_key(name));
                prop_assert_eq!(&chains, &whole[at].chains);
            }
            before = after;
        }
    }
}
