//! Membership in virtual time, against what the network can do, and over real UDP.

mod figures;
mod replay;
mod sim;
mod udp;

use mesh_cluster::membership::{ClusterKey, ClusterKeys, Liveness, Refusal};
use proptest::prelude::*;
use sim::{Sim, millis, node};
use std::sync::Arc;

/// Until the last live node has a lost one as down.
const BOUND: u64 = 3000;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_dead_node_is_down_on_all_and_back_on_all(
        count in 2usize..20, seed: u64, loss in 0.0..0.2, delay in 1u64..20, again in 0u64..5000,
    ) {
        let mut sim = Sim::new(count, seed);
        sim.loss = loss;
        sim.delay = delay * 100..delay * 1000;
        sim.run(millis(3500));
        sim.kill(0);
        let took = sim.run_until(millis(BOUND), |sim| sim.all_say(0, Liveness::Down));
        prop_assert!(took.is_some(), "{}", sim.picture());
        sim.run(millis(again));
        // Also with a clock that went back: the generation is lower than before.
        sim.boot(0, if seed % 2 == 0 { 1 } else { 1_000_000 });
        let took = sim.run_until(millis(3000), |sim| sim.all_say(0, Liveness::Alive));
        prop_assert!(took.is_some(), "{}", sim.picture());
    }

    #[test]
    fn halves_find_each_other_again(
        sides in prop::collection::vec(0u8..3, 2..16), seed: u64, loss in 0.0..0.1, apart in 100u64..20_000,
    ) {
        let mut sim = Sim::new(sides.len(), seed);
        sim.loss = loss;
        sim.run(millis(3500));
        sim.side.clone_from(&sides);
        sim.run(millis(apart));
        // Who is alone has to find out about each of the others by itself, one probe after the other.
        if apart > BOUND + 400 * sides.len() as u64 {
            for (who, detector) in &sim.live {
                for (of, (_, liveness)) in detector.verdicts().iter().enumerate() {
                    prop_assert_eq!(sides[*who] != sides[of], *liveness == Liveness::Down, "{}", sim.picture());
                }
            }
        }
        sim.side.fill(0);
        sim.run(millis(4000));
        sim.loss = 0.0;
        let whole = sim.run_until(millis(1000), Sim::agreed);
        prop_assert!(whole.is_some(), "{}", sim.picture());
    }

    #[test]
    fn whatever_happened_the_living_agree_in_the_end(
        count in 2usize..12, seed: u64,
        story in prop::collection::vec((0usize..12, 0u8..4, 0u64..2000), 0..12),
    ) {
        let mut sim = Sim::new(count, seed);
        sim.loss = 0.1;
        for (at, (index, deed, pause)) in story.into_iter().enumerate() {
            let index = index % count;
            match (deed, sim.live.contains_key(&index)) {
                (0, true) => sim.kill(index),
                (1, true) => sim.leave(index),
                (_, false) => sim.boot(index, at as u64 * 7 % 5),
                (2, _) => sim.side[index] = 1,
                _ => sim.side[index] = 0,
            }
            sim.run(millis(pause));
        }
        sim.side.fill(0);
        sim.run(millis(4000));
        sim.loss = 0.0;
        let whole = sim.run_until(millis(4000), Sim::agreed);
        prop_assert!(whole.is_some(), "{}", sim.picture());
    }
}

#[test]
fn no_live_node_is_down_while_one_in_five_datagrams_is_lost() {
    for (count, seconds) in [(2, 300), (3, 300), (5, 300), (20, 120), (60, 30)] {
        let mut sim = Sim::new(count, count as u64);
        sim.loss = 0.2;
        sim.run(millis(seconds * 1000));
        assert!(sim.false_downs.is_empty(), "{count} nodes: {:?}\n{}", sim.false_downs, sim.picture());
    }
}

#[test]
fn who_leaves_is_down_at_once() {
    let mut sim = Sim::new(10, 1);
    sim.run(millis(3500));
    sim.leave(4);
    let took = sim.run_until(millis(500), |sim| sim.all_say(4, Liveness::Down));
    assert!(took.is_some(), "{}", sim.picture());
    // And nobody else went with it.
    assert!(sim.agreed());
}

#[test]
fn a_quick_restart_goes_unnoticed() {
    let mut sim = Sim::new(5, 2);
    sim.run(millis(3500));
    // A later one, the same once more, one that is lower.
    for generation in [5000, 5000, 10] {
        sim.kill(2);
        sim.run(millis(150));
        sim.boot(2, generation);
        let down = sim.run_until(millis(4000), |sim| {
            sim.live.values().any(|detector| detector.verdicts()[&node(2)] == Liveness::Down)
        });
        assert_eq!(down, None, "{}", sim.picture());
        assert!(sim.agreed(), "{}", sim.picture());
    }
}

#[test]
fn who_is_not_in_the_snapshot_is_not_heard_and_goes_no_further() {
    let mut sim = Sim::new(6, 3);
    sim.run(millis(3500));
    // 0 is removed on all others; 5 gets to know last, and 0 not at all.
    let mut fewer = (*sim.nodes).clone();
    fewer.remove(&node(0));
    let fewer = Arc::new(fewer);
    let now = sim.now;
    for index in 1..5 {
        sim.live.get_mut(&index).unwrap().set_nodes(fewer.clone(), now);
    }
    sim.run(millis(5000));
    // Through 5, 0 makes the others suspects again and again. That convinces nobody.
    assert!(sim.false_downs.iter().all(|(who, of)| *who == 0 || *of == 0), "{:?}", sim.false_downs);
    for index in 1..5 {
        assert_eq!(sim.verdicts(index).keys().collect::<Vec<_>>(), fewer.keys().collect::<Vec<_>>());
        assert!(sim.live[&index].tally().refused(Refusal::Foreign) > 0);
    }
    assert_eq!(sim.verdicts(5)[&node(0)], Liveness::Alive);
    let now = sim.now;
    sim.live.get_mut(&5).unwrap().set_nodes(fewer, now);
    sim.run(millis(3000));
    for index in 1..6 {
        assert!(
            sim.verdicts(index).values().all(|liveness| *liveness == Liveness::Alive),
            "{}",
            sim.picture()
        );
    }
    assert!(
        sim.verdicts(0).iter().all(|(of, v)| *of == node(0) || *v == Liveness::Down),
        "{}",
        sim.picture()
    );
}

#[test]
fn a_key_change_goes_unnoticed_and_shuts_out_who_has_not_the_new_one() {
    let mut sim = Sim::new(5, 4);
    sim.run(millis(3500));
    let (old, new) = (ClusterKey::new(1, [1; 32]), ClusterKey::new(2, [2; 32]));
    let steps = [
        ClusterKeys { current: old.clone(), other: Some(new.clone()) },
        ClusterKeys { current: new.clone(), other: Some(old) },
        ClusterKeys::only(new),
    ];
    // 4 is removed: from the set first, then by the key.
    let mut fewer = (*sim.nodes).clone();
    fewer.remove(&node(4));
    let fewer = Arc::new(fewer);
    for keys in steps {
        for index in 0..4 {
            let now = sim.now;
            sim.live.get_mut(&index).unwrap().set_nodes(fewer.clone(), now);
        }
        for index in 0..4 {
            sim.live.get_mut(&index).unwrap().set_keys(keys.clone());
            // The others have it a little later each.
            sim.run(millis(700));
        }
    }
    sim.run(millis(BOUND));
    assert!(
        sim.verdicts(4).iter().all(|(of, v)| *of == node(4) || *v == Liveness::Down),
        "{}",
        sim.picture()
    );
    assert!((0..4).all(|index| sim.live[&index].tally().refused(Refusal::Key) > 0));
    sim.kill(4);
    assert!(sim.agreed(), "{}", sim.picture());
    assert!(sim.false_downs.iter().all(|(who, of)| *who == 4 || *of == 4), "{:?}", sim.false_downs);
}

#[test]
fn who_stood_still_condemns_nobody() {
    let mut sim = Sim::new(4, 5);
    sim.run(millis(3500));
    for _ in 0..10 {
        // Frozen for a while in the middle of anything; what was sent to it is lost.
        let frozen = sim.live.remove(&1).unwrap();
        sim.run(millis(700));
        sim.live.insert(1, frozen);
        let now = sim.now;
        sim.live.get_mut(&1).unwrap().wake(now);
        sim.run(millis(3000));
        assert!(sim.agreed(), "{}", sim.picture());
    }
    assert!(sim.false_downs.is_empty(), "{:?}", sim.false_downs);
}
