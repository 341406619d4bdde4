//! Whatever two tables are: the patch between them leads to the same as the second made afresh.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::namespace::{in_namespace, listed};
use crate::nft::{
    Base, Batch, ChainKind, Datum, Family, Field, Hook, Nft, Rule, Set, Source, Table, Type, Verdict, diff,
};

/// What a random table is made of. Chain `n` leads only to chains after it, so that there are no loops.
#[derive(Clone, Debug)]
struct Recipe {
    /// Which of the chains there are, and for each the kinds of its rules.
    chains: Vec<Option<Vec<RuleRecipe>>>,
    /// Elements of the verdict map: address, and the chain it leads to.
    verdicts: Option<Vec<(u8, u8)>>,
    /// Elements of a map with data.
    data: Option<Vec<(u8, u8)>>,
    /// Another key type for the map: the table can't be patched then.
    reshaped: bool,
    priority: i32,
}

#[derive(Clone, Debug)]
enum RuleRecipe {
    Accept,
    Leads(u8),
    Verdicts,
    Data,
    Slots(Vec<u8>),
}

fn rule_recipe() -> impl Strategy<Value = RuleRecipe> {
    prop_oneof![
        Just(RuleRecipe::Accept),
        any::<u8>().prop_map(RuleRecipe::Leads),
        Just(RuleRecipe::Verdicts),
        Just(RuleRecipe::Data),
        prop::collection::vec(any::<u8>(), 1..5).prop_map(RuleRecipe::Slots),
    ]
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let chain = prop::option::weighted(0.7, prop::collection::vec(rule_recipe(), 0..4));
    let elements = || prop::option::weighted(0.8, prop::collection::vec((0u8..8, any::<u8>()), 0..8));
    (
        prop::collection::vec(chain, 5),
        elements(),
        elements(),
        prop::bool::weighted(0.1),
        prop_oneof![9 => Just(0), 1 => Just(10)],
    )
        .prop_map(|(chains, verdicts, data, reshaped, priority)| Recipe {
            chains,
            verdicts,
            data,
            reshaped,
            priority,
        })
}

/// The recipe's table. The base chain `hook` may use the verdict map, the others only what follows them.
fn cook(recipe: &Recipe) -> Table {
    let mut table = Table::new(Family::Ip, "random");
    let present: Vec<usize> =
        (0..recipe.chains.len()).filter(|index| recipe.chains[*index].is_some()).collect();
    if let Some(elements) = &recipe.data {
        let mut map = if recipe.reshaped {
            Set::map(&[Type::Ipv4, Type::Port], &[Type::Number])
        } else {
            Set::map(&[Type::Ipv4], &[Type::Number])
        };
        for (key, data) in elements {
            let mut key = vec![Ipv4Addr::new(10, 0, 0, *key).into()];
            key.extend(recipe.reshaped.then_some(Datum::Port(80)));
            map.insert(key, vec![Datum::Number(u32::from(*data))]);
        }
        table.set("data", map);
    }
    if let Some(elements) = &recipe.verdicts {
        let mut map = Set::verdicts(&[Type::Ipv4]);
        for (key, to) in elements {
            let to = present.get(usize::from(*to) % (present.len() + 1));
            let verdict = to.map_or(Verdict::Drop, |chain| Verdict::Goto(format!("c{chain}")));
            map.insert_verdict(vec![Ipv4Addr::new(10, 0, 1, *key).into()], verdict);
        }
        table.set("verdicts", map);
    }
    for index in &present {
        let rules = recipe.chains[*index].iter().flatten();
        table.chain(
            &format!("c{index}"),
            rules.map(|rule| cook_rule(recipe, &present, *index, rule)).collect(),
        );
    }
    let mut entry = Vec::new();
    if recipe.verdicts.is_some() {
        entry.push(Rule::new().vmap(&[Field::IpDaddr], "verdicts"));
    }
    entry.extend(present.first().map(|chain| Rule::new().jump(&format!("c{chain}"))));
    table.hook("hook", Base::new(ChainKind::Nat, Hook::Prerouting, recipe.priority), entry);
    table
}

fn cook_rule(recipe: &Recipe, present: &[usize], index: usize, rule: &RuleRecipe) -> Rule {
    let later: Vec<&usize> = present.iter().filter(|chain| **chain > index).collect();
    match rule {
        RuleRecipe::Leads(to) if !later.is_empty() => {
            Rule::new().protocol(6).jump(&format!("c{}", later[usize::from(*to) % later.len()]))
        }
        RuleRecipe::Data if recipe.data.is_some() && !recipe.reshaped => {
            Rule::new().set_mark(Source::Map { key: vec![Field::IpDaddr], map: "data".into() })
        }
        RuleRecipe::Slots(slots) => {
            let map = Set::slots(slots.iter().map(|slot| vec![Ipv4Addr::new(10, 1, 0, *slot).into()]));
            Rule::new().dnat(Source::Inline { key: Field::NumgenInc(slots.len() as u32), map })
        }
        RuleRecipe::Verdicts if index == 0 => Rule::new().any_bit(Field::CtState, 8).back(),
        _ => Rule::new().counter().accept(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_patch_leads_to_the_same_as_a_fresh_table(before in recipe(), after in recipe()) {
        let (before, after) = (cook(&before), cook(&after));
        let commit = |batches: &[Batch]| in_namespace(|| {
            let mut nft = Nft::open().unwrap();
            for batch in batches {
                nft.commit(batch).unwrap_or_else(|error| panic!("{error}\nfrom {before}\nto {after}"));
            }
            listed()
        });
        let patched = commit(&[diff(None, &before), diff(Some(&before), &after)]);
        let fresh = commit(&[diff(None, &after)]);
        prop_assert_eq!(patched, fresh);
        prop_assert!(diff(Some(&after), &after).is_empty());
    }
}
