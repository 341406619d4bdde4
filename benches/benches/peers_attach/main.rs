//! A container is attached and detached: by `meshctl`, by Docker and by CNI to meshd's network, beside Docker's own
//! overlay, Docker's bridge and CNI's bridge plugin. Wall time of the command, since it is what a user waits for,
//! interleaved in rounds. `scripts/bench-peers attach` runs it.

mod contenders;

use anyhow::Result;
use contenders::Contender;
use mesh_benches::measure::Samples;
use mesh_tests::Lab;
use std::env;

fn main() -> Result<()> {
    let rounds: usize = env::var("BENCH_ROUNDS").map_or(Ok(15), |rounds| rounds.parse())?;
    let lab = Lab::new("peers-attach")?;
    let scene = contenders::Scene::start(&lab)?;
    let contenders = scene.contenders()?;
    let mut found = vec![[Samples::default(), Samples::default()]; contenders.len()];
    // The first attachment makes what all others share.
    contenders.iter().try_for_each(|contender| contender.once().map(drop))?;
    for round in 0..rounds {
        // Each goes first in some round.
        for turn in 0..contenders.len() {
            let at = (turn + round) % contenders.len();
            let milliseconds = contenders[at].once()?;
            for (samples, one) in found[at].iter_mut().zip(milliseconds) {
                samples.push(one);
            }
        }
    }
    print(&scene.versions()?, &contenders, &found, rounds);
    Ok(())
}

fn print(versions: &str, contenders: &[Contender], found: &[[Samples; 2]], rounds: usize) {
    println!("{versions}");
    println!("{rounds} interleaved rounds; milliseconds of the command: median (least–most)\n");
    println!("| {:<46} | {:<20} | {:<20} |", "", "attach", "detach");
    println!("|---|---|---|");
    for (contender, [attach, detach]) in contenders.iter().zip(found) {
        println!("| {:<46} | {:<20} | {:<20} |", contender.name, attach.to_string(), detach.to_string());
    }
}
