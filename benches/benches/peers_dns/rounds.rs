//! Contenders in turns, and the tables of what that found.

use super::{
    asking::{Load, Queries, Shape},
    place::{Contender, Place},
    zone::Zone,
};
use anyhow::{Context, Result};
use mesh_benches::measure::Samples;

/// What a query may cost at most, as a share of what it costs unbound.
const TARGET: f64 = 0.7;
/// In the order in which they are told of; the second is the one that the others are compared with.
const NAMES: [&str; 4] = ["meshd", "unbound", "dnsmasq", "aardvark-dns"];

const SHAPES: [Shape; 5] = [
    Shape { title: "as fast as it goes, 100 under way", every_kind: false, load: load(1, None) },
    Shape { title: "the same of 100 clients", every_kind: false, load: load(100, None) },
    Shape { title: "20,000 a second", every_kind: false, load: load(1, Some(20_000)) },
    Shape { title: "20,000 a second of 100 clients", every_kind: false, load: load(100, Some(20_000)) },
    Shape {
        title: "A, AAAA, PTR and unknown names, as fast as it goes",
        every_kind: true,
        load: load(1, None),
    },
];

const fn load(clients: u32, rate: Option<u32>) -> Load {
    Load { clients, rate }
}

/// How long everything takes.
#[derive(Clone, Copy)]
pub(super) struct Effort {
    pub(super) rounds: usize,
    /// Of one run of dnsperf.
    pub(super) seconds: u64,
}

/// What the rounds found of one contender with one shape.
#[derive(Default)]
pub(super) struct Found {
    /// Microseconds of the server's processor time a query.
    pub(super) processor: Samples,
    pub(super) per_second: Samples,
    /// Microseconds that all but the slowest hundredth were answered within.
    pub(super) late: Samples,
    pub(super) lost: u64,
    /// Why it is not asked.
    left_out: Option<String>,
}

/// Asks all contenders in turns, with each shape. Returns what of ours is not as it should be.
pub(super) fn compare(
    title: &str,
    place: &Place,
    zone: &Zone,
    contenders: &[Result<Contender>],
    effort: Effort,
) -> Result<Vec<String>> {
    let addresses = Queries::write(place, zone, false)?;
    let every_kind = Queries::write(place, zone, true)?;
    let queries = |shape: &Shape| if shape.every_kind { &every_kind } else { &addresses };
    let reasons = |queries| -> Vec<_> {
        contenders.iter().map(|contender| reason(place, contender, queries)).collect()
    };
    let (of_addresses, of_every_kind) = (reasons(&addresses), reasons(&every_kind));
    let mut found: Vec<Vec<Found>> = Vec::new();
    for shape in &SHAPES {
        let reasons = if shape.every_kind { &of_every_kind } else { &of_addresses };
        let all = reasons.iter().map(|left_out| Found { left_out: left_out.clone(), ..Found::default() });
        found.push(all.collect());
    }
    for round in 0..effort.rounds {
        for (shape, found) in SHAPES.iter().zip(&mut found) {
            // Each goes first in some round.
            for turn in 0..contenders.len() {
                let at = (turn + round) % contenders.len();
                if let (Ok(contender), None) = (&contenders[at], &found[at].left_out) {
                    measure(place, contender, queries(shape), shape.load, effort, &mut found[at])?;
                }
            }
        }
        eprintln!("{title}: round {} of {}", round + 1, effort.rounds);
    }
    let mut misses = Vec::new();
    for (shape, found) in SHAPES.iter().zip(&found) {
        let title = format!("{title}: {} names, {}", zone.len(), shape.title);
        print(&title, found);
        misses.extend(missed(found).into_iter().map(|miss| format!("{title}: {miss}")));
    }
    Ok(misses)
}

/// What is not as it should be of ours, which is the first.
fn missed(found: &[Found]) -> Vec<String> {
    let (ours, reference) = (&found[0], &found[1]);
    let mut misses = Vec::new();
    for (name, found) in NAMES.iter().zip([ours, reference]) {
        misses.extend(found.left_out.as_ref().map(|reason| format!("{name} not run: {reason}")));
    }
    let ratio = ours.processor.per(&reference.processor).median();
    if ratio > TARGET {
        misses.push(format!("a query costs {ratio:.2} of unbound's, {TARGET:.2} at most"));
    }
    if ours.lost > 0 {
        misses.push(format!("{} queries lost", ours.lost));
    }
    misses
}

/// Why a contender can't be compared, if so: figures of one that answers otherwise would be of something else.
fn reason(place: &Place, contender: &Result<Contender>, queries: &Queries) -> Option<String> {
    let err = match contender {
        Ok(contender) => &queries.check(place, contender).err()?,
        Err(err) => err,
    };
    Some(format!("{err:#}").lines().next().unwrap_or_default().to_owned())
}

/// One contender's turn.
pub(super) fn measure(
    place: &Place,
    contender: &Contender,
    queries: &Queries,
    load: Load,
    effort: Effort,
    found: &mut Found,
) -> Result<()> {
    let before = place.worked(contender)?;
    let asked = queries.ask(place, contender, load, effort.seconds).with_context(|| contender.name)?;
    let worked = place.worked(contender)?.saturating_sub(before);
    found.processor.push(worked.as_secs_f64() * 1e6 / asked.completed as f64);
    found.per_second.push(asked.per_second);
    // A run of its own, because dnsperf writes a line for each.
    let latencies = queries.latencies(place, contender, load)?;
    found.late.push(latencies.samples.quantile(0.99) * 1e6);
    found.lost += asked.lost + latencies.lost;
    Ok(())
}

fn print(title: &str, found: &[Found]) {
    let reference = &found[1].processor;
    println!("\n{title}\n");
    println!(
        "| {:<12} | {:<20} | {:<18} | {:<6} | {:<24} | {:<19} | {:<4} |",
        "", "CPU µs a query", "ratio", "target", "queries a second", "p99 µs", "lost"
    );
    println!("|{}", ["---|"; 7].concat());
    for (name, found) in NAMES.iter().zip(found) {
        if let Some(reason) = &found.left_out {
            println!("| {name:<12} | not run: {reason} |");
            continue;
        }
        println!(
            "| {name:<12} | {:<20} | {:<18} | {:<6} | {:<24} | {:<19} | {:<4} |",
            found.processor.to_string(),
            found.processor.per(reference).to_string(),
            if *name == NAMES[0] { format!("≤ {TARGET:.2}") } else { String::new() },
            found.per_second.to_string(),
            found.late.to_string(),
            found.lost,
        );
    }
}
