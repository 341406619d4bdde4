//! Contenders in turn, round after round.

use super::{
    Contender, haproxy, mesh,
    rate::{self, CLIENTS},
    traffic::{self, Server},
};
use anyhow::{Context, Result};
use mesh_benches::measure::Samples;
use std::time::Duration;

/// Throughput of a published port, to that of containers on the overlay.
const THROUGHPUT: f64 = 0.8;
/// Processor time a GiB, to HAProxy's.
const PROCESSOR: f64 = 0.5;

#[derive(Clone, Copy)]
pub(super) struct Effort {
    pub(super) rounds: usize,
    /// Of a stream, and of connections as fast as they go.
    pub(super) seconds: u64,
}

/// What the rounds found of one contender.
#[derive(Default)]
pub(super) struct Found {
    /// Gbit/s of one TCP connection.
    pub(super) throughput: Samples,
    /// Seconds of processor time a GiB.
    pub(super) processor: Samples,
    /// Connections a second of [`CLIENTS`] at once.
    pub(super) per_second: Samples,
    /// Microseconds to connect, be answered and close.
    pub(super) connection: Samples,
    /// Median round trip of 64 bytes over TCP, in microseconds.
    round_trip: Samples,
    /// The same, of the slowest hundredth.
    slowest: Samples,
    /// Connections.
    pub(super) failed: usize,
}

/// What the contenders' clients ask for. Ends, where it is a process, when this is dropped.
pub(super) fn serve(contenders: &[Contender]) -> Result<Vec<Server>> {
    let start = |contender: &Contender| {
        rate::serve(&contender.server, rate::ONCE_PORT)?;
        Server::start(contender).context(contender.name)
    };
    contenders.iter().map(start).collect()
}

/// Measures and prints; returns what is not as it should be.
pub(super) fn compare(contenders: &[Contender], effort: Effort) -> Result<Vec<String>> {
    let mut found: Vec<Found> = contenders.iter().map(|_| Found::default()).collect();
    for round in 0..effort.rounds {
        // Each goes first in some round.
        for turn in 0..contenders.len() {
            let at = (turn + round) % contenders.len();
            measure(&contenders[at], effort, &mut found[at])?;
        }
        eprintln!("round {} of {}", round + 1, effort.rounds);
    }
    print(contenders, &found, effort);
    Ok(missed(contenders, &found))
}

/// One contender's turn.
pub(super) fn measure(contender: &Contender, effort: Effort, found: &mut Found) -> Result<()> {
    let length = Duration::from_secs(effort.seconds);
    let stream = traffic::stream(contender, length).context(contender.name)?;
    found.throughput.push(stream.gbit_per_s);
    found.processor.push(stream.processor_per_gib);
    let rate = rate::rate(contender, length).context(contender.name)?;
    found.per_second.push(rate.per_second);
    found.failed += rate.failed;
    found.connection.push(traffic::connections(contender).context(contender.name)?.median());
    let trips = traffic::round_trips(contender).context(contender.name)?;
    found.round_trip.push(trips.median());
    found.slowest.push(trips.quantile(0.99));
    Ok(())
}

fn of<'a>(contenders: &[Contender], found: &'a [Found], name: &str) -> Option<&'a Found> {
    contenders.iter().zip(found).find(|(contender, _)| contender.name == name).map(|(_, found)| found)
}

/// What is not as it should be.
fn missed(contenders: &[Contender], found: &[Found]) -> Vec<String> {
    let mut misses = Vec::new();
    let of = |name| of(contenders, found, name);
    if let (Some(port), Some(containers)) = (of(mesh::ELSEWHERE), of(mesh::CONTAINERS)) {
        let ratio = port.throughput.per(&containers.throughput).median();
        if ratio < THROUGHPUT {
            misses.push(format!(
                "{}: throughput {ratio:.2} of that between containers, {THROUGHPUT:.2} at least",
                mesh::ELSEWHERE
            ));
        }
    }
    for name in [mesh::ELSEWHERE, mesh::HERE] {
        let (Some(port), Some(haproxy)) = (of(name), of(haproxy::TCP)) else { continue };
        let ratio = port.processor.per(&haproxy.processor).median();
        if ratio > PROCESSOR {
            misses.push(format!("{name}: a GiB costs {ratio:.2} of HAProxy's, {PROCESSOR:.2} at most"));
        }
        if port.failed > 0 {
            misses.push(format!("{name}: {} connections failed", port.failed));
        }
    }
    misses
}

fn print(contenders: &[Contender], found: &[Found], effort: Effort) {
    println!(
        "{} interleaved rounds of {} s: median (least–most); ratios round by round: throughput to that between containers\n\
        on meshd's overlay (for a port aimed at: {THROUGHPUT:.2}), processor time to HAProxy's (aimed at: {PROCESSOR:.2}).\n\
        CPU: the whole machine's busy time less that of an idle run, both ends. Connections a second: {CLIENTS} at once.\n",
        effort.rounds, effort.seconds
    );
    println!(
        "| {:<30} | {:<19} | {:<16} | {:<16} | {:<16} | {:<20} | {:<6} | {:<13} | {:<15} | {:<15} |",
        "",
        "Gbit/s",
        "ratio",
        "CPU s a GiB",
        "ratio",
        "connections a second",
        "failed",
        "connection µs",
        "trip p50 µs",
        "trip p99 µs"
    );
    println!("|{}", ["---|"; 10].concat());
    let nobody = Found::default();
    let reference = |name| of(contenders, found, name).unwrap_or(&nobody);
    for (contender, one) in contenders.iter().zip(found) {
        println!(
            "| {:<30} | {:<19} | {:<16} | {:<16} | {:<16} | {:<20} | {:<6} | {:<13} | {:<15} | {:<15} |",
            contender.name,
            one.throughput.to_string(),
            one.throughput.per(&reference(mesh::CONTAINERS).throughput).to_string(),
            one.processor.to_string(),
            one.processor.per(&reference(haproxy::TCP).processor).to_string(),
            one.per_second.to_string(),
            one.failed,
            one.connection.to_string(),
            one.round_trip.to_string(),
            one.slowest.to_string(),
        );
    }
}
