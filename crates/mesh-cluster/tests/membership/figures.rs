//! The figures of the crate's documentation.

use crate::sim::{Sim, millis, node};
use mesh_cluster::membership::Liveness;
use std::time::Duration;

/// Datagrams and bytes a second that one node sends, and seconds until a death is known: to the first as suspect, to
/// the last as down.
struct Row {
    suspect: Vec<f64>,
    down: Vec<f64>,
    bytes: f64,
    datagrams: f64,
}

fn measure(count: usize, loss: f64, runs: u64) -> Row {
    let mut row = Row { suspect: Vec::new(), down: Vec::new(), bytes: 0.0, datagrams: 0.0 };
    let mut sim = Sim::new(count, runs);
    sim.loss = loss;
    sim.run(millis(4000));
    for run in 0..runs {
        let victim = run as usize % count;
        let before = total(&sim);
        let quiet = millis(1000 + run * 37 % 200);
        sim.run(quiet);
        let after = total(&sim);
        row.datagrams += (after.0 - before.0) / quiet.as_secs_f64() / count as f64 / runs as f64;
        row.bytes += (after.1 - before.1) / quiet.as_secs_f64() / count as f64 / runs as f64;
        sim.kill(victim);
        let mut suspect = None;
        let (dead, mut asked) = (sim.now, 0u32);
        let down = sim.run_until(millis(8000), |sim| {
            if suspect.is_none() && sim.live.values().any(|d| d.verdicts()[&node(victim)] != Liveness::Alive)
            {
                suspect = Some(sim.now - dead);
            }
            // Asking everybody is dear; the time is right to within a few datagrams.
            asked += 1;
            asked.is_multiple_of(16) && suspect.is_some() && sim.all_say(victim, Liveness::Down)
        });
        row.suspect.push(suspect.map_or(f64::NAN, |d: Duration| d.as_secs_f64()));
        row.down.push(down.map_or(f64::NAN, |d| d.as_secs_f64()));
        sim.boot(victim, 1_000_000 + run);
        sim.run(millis(1500));
    }
    row.suspect.sort_by(f64::total_cmp);
    row.down.sort_by(f64::total_cmp);
    row
}

fn total(sim: &Sim) -> (f64, f64) {
    let tallies = sim.live.values().map(|detector| detector.tally());
    tallies.fold((0.0, 0.0), |(n, b), tally| (n + tally.sent as f64, b + tally.sent_bytes as f64))
}

#[test]
#[ignore = "a measurement of some minutes"]
fn figures() {
    print(&[(3, 0.0, 200), (3, 0.2, 200), (10, 0.0, 200), (10, 0.2, 200), (100, 0.0, 200), (100, 0.2, 40)]);
}

#[test]
#[ignore = "a measurement of many minutes"]
fn figures_of_1000_nodes() {
    print(&[(1000, 0.0, 6)]);
}

fn print(cases: &[(usize, f64, u64)]) {
    println!("nodes loss  suspect p50  p99   down p50  p99   max   datagrams/s  bytes/s");
    for &(count, loss, runs) in cases {
        let row = measure(count, loss, runs);
        let at = |times: &[f64], share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        println!(
            "{count:5} {loss:4.1}  {:11.2} {:4.2}  {:8.2} {:5.2} {:5.2}  {:11.1} {:8.0}",
            at(&row.suspect, 0.5),
            at(&row.suspect, 0.99),
            at(&row.down, 0.5),
            at(&row.down, 0.99),
            at(&row.down, 1.0),
            row.datagrams,
            row.bytes,
        );
    }
}
