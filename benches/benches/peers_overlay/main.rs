//! Containers on two hosts talk: over meshd's overlay, through a VIP on it, over a VXLAN built by hand with `ip link`,
//! and over Docker's own overlay. Throughput, processor time of the whole machine for each GiB, round trips and
//! connections, interleaved in rounds. `scripts/bench-peers overlay` runs it.

mod by_hand;
mod docker;
mod mesh;
mod traffic;

use anyhow::{Context, Result};
use mesh_benches::measure::Samples;
use mesh_tests::{Lab, Namespace};
use std::{env, net::Ipv4Addr, time::Duration};
use traffic::Server;

/// Two containers on two hosts, and how the first reaches the second.
struct Contender {
    name: &'static str,
    client: Namespace,
    server: Namespace,
    address: Ipv4Addr,
}

/// What the rounds found of one contender.
#[derive(Default)]
struct Found {
    /// Gbit/s of one TCP connection.
    throughput: Samples,
    /// Seconds of processor time a GiB.
    processor: Samples,
    /// Median round trip of 64 bytes over TCP, in microseconds.
    round_trip: Samples,
    /// The same, of the slowest hundredth.
    slowest: Samples,
    /// Microseconds to connect, be answered and close.
    connection: Samples,
}

fn main() -> Result<()> {
    let rounds: usize = env::var("BENCH_ROUNDS").map_or(Ok(5), |rounds| rounds.parse())?;
    let seconds: u64 = env::var("BENCH_SECONDS").map_or(Ok(3), |seconds| seconds.parse())?;
    let lab = Lab::new("peers-overlay")?;
    let mesh = mesh::Mesh::start(&lab)?;
    let docker = docker::Swarm::start(&lab)?;
    let mut contenders = vec![by_hand::start(&lab)?];
    contenders.extend(mesh.contenders()?);
    contenders.push(docker.contender()?);
    let servers = contenders.iter().map(Server::start).collect::<Result<Vec<_>>>()?;

    let mut found: Vec<Found> = contenders.iter().map(|_| Found::default()).collect();
    for round in 0..rounds {
        // Each goes first in some round.
        for turn in 0..contenders.len() {
            let at = (turn + round) % contenders.len();
            let (contender, found) = (&contenders[at], &mut found[at]);
            measure(contender, found, Duration::from_secs(seconds)).with_context(|| contender.name)?;
        }
        eprintln!("round {} of {rounds}", round + 1);
    }
    drop(servers);
    print(&contenders, &found, rounds, seconds);
    Ok(())
}

fn measure(contender: &Contender, found: &mut Found, length: Duration) -> Result<()> {
    let stream = traffic::stream(contender, length)?;
    found.throughput.push(stream.gbit_per_s);
    found.processor.push(stream.processor_per_gib);
    let trips = traffic::round_trips(contender)?;
    found.round_trip.push(trips.median());
    found.slowest.push(trips.quantile(0.99));
    found.connection.push(traffic::connections(contender)?.median());
    Ok(())
}

fn print(contenders: &[Contender], found: &[Found], rounds: usize, seconds: u64) {
    println!("{}", versions());
    println!(
        "{rounds} interleaved rounds of {seconds} s a stream: median (least–most); ratios to the VXLAN by hand,"
    );
    println!(
        "round by round. Processor: the whole machine's busy time less that of an idle run, both ends.\n"
    );
    println!(
        "| {:<22} | {:<21} | {:<17} | {:<18} | {:<17} | {:<15} | {:<15} | {:<16} |",
        "between containers",
        "Gbit/s",
        "ratio",
        "CPU s a GiB",
        "ratio",
        "trip p50 µs",
        "trip p99 µs",
        "connection µs"
    );
    println!("|{}", ["---|"; 8].concat());
    for (contender, one) in contenders.iter().zip(found) {
        println!(
            "| {:<22} | {:<21} | {:<17} | {:<18} | {:<17} | {:<15} | {:<15} | {:<16} |",
            contender.name,
            one.throughput.to_string(),
            one.throughput.per(&found[0].throughput).to_string(),
            one.processor.to_string(),
            one.processor.per(&found[0].processor).to_string(),
            one.round_trip.to_string(),
            one.slowest.to_string(),
            one.connection.to_string(),
        );
    }
    let at = |name: &str| contenders.iter().position(|contender| contender.name.contains(name));
    if let (Some(vip), Some(direct)) = (at("VIP"), at("to a replica")) {
        let ratio = found[vip].throughput.per(&found[direct].throughput);
        println!("\nThroughput through the VIP to that to the replica directly: {ratio}");
    }
}

/// Whose figures these are.
fn versions() -> String {
    format!(
        "meshd {}, Linux {}, {}, {}",
        env!("CARGO_PKG_VERSION"),
        traffic::first_line("uname", "-r"),
        traffic::first_line("iperf3", "--version"),
        traffic::first_line("dockerd", "--version"),
    )
}
