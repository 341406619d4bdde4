//! Datagrams that come again, or to the wrong place.

use crate::sim::{Sim, millis};
use mesh_cluster::membership::{Liveness, Refusal};

#[test]
fn recorded_datagrams_change_nothing() {
    let mut sim = Sim::new(4, 1);
    sim.record = Some(Vec::new());
    sim.run(millis(3000));
    let record = sim.record.take().unwrap();
    let taken = |sim: &Sim| sim.live.values().map(|detector| detector.tally().taken).sum::<u64>();
    let before = taken(&sim);
    for (to, datagram) in &record {
        sim.deliver(*to, datagram.clone());
    }
    assert_eq!(taken(&sim), before);
    let replayed = |sim: &Sim| sim.live.values().map(|d| d.tally().refused(Refusal::Replayed)).sum::<u64>();
    assert_eq!(replayed(&sim), record.len() as u64);
    assert!(sim.agreed());
}

#[test]
fn the_dead_are_not_raised_by_their_words() {
    let mut sim = Sim::new(4, 2);
    sim.record = Some(Vec::new());
    sim.run(millis(3000));
    sim.kill(3);
    let record = sim.record.take().unwrap();
    // Everything ever said is said again and again while the death is found out, and afterwards.
    for _ in 0..40 {
        for (to, datagram) in &record {
            sim.deliver(*to, datagram.clone());
        }
        sim.run(millis(100));
    }
    assert!(sim.agreed(), "{}", sim.picture());
}

#[test]
fn after_a_restart_of_all_a_record_raises_the_dead_for_3_seconds_at_most() {
    let mut sim = Sim::new(4, 3);
    sim.record = Some(Vec::new());
    sim.run(millis(3000));
    let record = sim.record.take().unwrap();
    for index in 0..4 {
        sim.kill(index);
    }
    for index in 0..3 {
        sim.boot(index, 5000);
    }
    sim.run(millis(4000));
    assert!(sim.all_say(3, Liveness::Down), "{}", sim.picture());
    for round in 0..40 {
        for (to, datagram) in &record {
            sim.deliver(*to, datagram.clone());
        }
        sim.run(millis(100));
        // Once raised and found dead, the same life is not believed again.
        assert!(round < 30 || sim.all_say(3, Liveness::Down), "{}", sim.picture());
    }
    assert!(sim.agreed(), "{}", sim.picture());
}

#[test]
fn datagrams_for_others_and_ones_own_are_dropped() {
    let mut sim = Sim::new(3, 4);
    sim.record = Some(Vec::new());
    sim.run(millis(1000));
    let record = sim.record.take().unwrap();
    for (to, datagram) in &record {
        // To one's own sender for some, to a third for others.
        sim.deliver((to + 1) % 3, datagram.clone());
    }
    let misdirected: u64 = sim.live.values().map(|d| d.tally().refused(Refusal::Misdirected)).sum();
    assert!(misdirected >= record.len() as u64);
    sim.run(millis(3000));
    assert!(sim.agreed() && sim.false_downs.is_empty(), "{}", sim.picture());
}
