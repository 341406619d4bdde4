//! Our server while its table is swapped all the time: what that does to others' queries, and how soon a change is seen.

use super::{
    asking::{Load, Queries},
    ours,
    place::{CLIENT_CPU, Contender, Place},
    rounds::{self, Effort, Found},
    staleness::{Heard, INTERVAL, MAX_AGE, query},
    zone::Zone,
};
use anyhow::Result;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, SystemTime},
};

/// Asked a second, all the while.
const RATE: u32 = 20_000;
const LOAD: Load = Load { clients: 1, rate: Some(RATE) };
/// One that has no answer by then is lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// Returns what is not as it should be.
pub(super) fn measure(
    place: &Place,
    zone: &Zone,
    contender: &Contender,
    effort: Effort,
) -> Result<Vec<String>> {
    let queries = Queries::write(place, zone, false)?;
    let (mut still, mut swapping, mut heard) = (Found::default(), Found::default(), Heard::default());
    let (probe, mut asked) = (query(&ours::changing()?), Duration::ZERO);
    for _ in 0..effort.rounds {
        rounds::measure(place, contender, &queries, LOAD, effort, &mut still)?;
        ours::swap(place, true)?;
        let start = SystemTime::now();
        let measured = probing(place, contender, &probe, &mut heard, || {
            rounds::measure(place, contender, &queries, LOAD, effort, &mut swapping)
        });
        asked += start.elapsed()?;
        ours::swap(place, false)?;
        measured?;
    }
    let swaps = ours::swaps(place)?;
    println!("\nmesh-dns alone: {} names, {RATE} a second, while the table is swapped;", zone.len());
    println!("what it costs to make the tables is counted as well\n");
    println!("| {:<8} | {:<20} | {:<19} | {:<4} |", "", "CPU µs a query", "p99 µs", "lost");
    println!("|{}", ["---|"; 4].concat());
    for (name, found) in [("still", &still), ("swapping", &swapping)] {
        let (processor, late) = (found.processor.to_string(), found.late.to_string());
        println!("| {name:<8} | {processor:<20} | {late:<19} | {:<4} |", found.lost);
    }
    let wanted = 1.0 / INTERVAL.as_secs_f64();
    println!(
        "\n{:.0} swaps a second (wanted: {wanted:.0}). Of the name that changed with each: {} answers, {} queries lost;",
        swaps.len() as f64 / asked.as_secs_f64(),
        heard.said.len(),
        heard.lost
    );
    let ages: Vec<Duration> = heard.said.iter().filter_map(|said| said.age(said.heard, &swaps)).collect();
    let stale = ages.iter().filter(|&&age| age > MAX_AGE).count();
    println!(
        "behind for more than {} ms (none may be): {stale}; at most {:.1} ms from the change to an answer without it.",
        MAX_AGE.as_millis(),
        ages.iter().max().copied().unwrap_or_default().as_secs_f64() * 1e3
    );
    let lost = still.lost + swapping.lost + heard.lost;
    let misses = [(lost, "queries lost"), (stale as u64, "answers behind for too long")];
    let missed = misses.into_iter().filter(|(count, _)| *count > 0);
    Ok(missed.map(|(count, what)| format!("while the table is swapped: {count} {what}")).collect())
}

/// Asks for the name that changes, from the client, while something runs.
fn probing<T>(
    place: &Place,
    contender: &Contender,
    query: &[u8],
    heard: &mut Heard,
    run: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let prober = scope.spawn(|| place.client.inside(|| probe(place, contender, query, heard, &over)));
        let done = run();
        over.store(true, Ordering::Relaxed);
        prober.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        done
    })
}

fn probe(
    place: &Place,
    contender: &Contender,
    query: &[u8],
    heard: &mut Heard,
    over: &AtomicBool,
) -> Result<()> {
    let mut cpu = CpuSet::new();
    cpu.set(CLIENT_CPU)?;
    sched_setaffinity(Pid::from_raw(0), &cpu)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((place.address, contender.port))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(heard.ask(&socket, query, over)?)
}
